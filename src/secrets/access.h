/*
 * access.h
 *		Who may do what with which secret.
 *
 * A grant gives a role a privilege on the secrets whose full name matches a
 * pattern; what it gives, it gives to the role's members too. The owner of a
 * secret has a grant of its own kind. See secrets.h for asking.
 */
#ifndef MLINT_ACCESS_H
#define MLINT_ACCESS_H

#include "secrets/secrets.h"

/* The privilege of whoever made the secret; only one role has it. */
#define SECRET_OWNER	16

#define SECRET_ANY		(SECRET_READ | SECRET_WRITE | SECRET_ROTATE | \
						 SECRET_ADMIN)

extern void access_init(void);

/* All that the role may do with the secret. */
extern int	secret_privileges(Oid role, const char *name);

/* May this role do everything with every secret? */
extern bool secret_administrator(Oid role);

/* Make the role the owner, the only one; grants of others stay. */
extern void secret_owner_set(const char *name, Oid role);

/* With a secret go the grants that were given on it by its name. */
extern void secret_grants_drop(const char *name);

#endif
