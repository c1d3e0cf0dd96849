/*
 * secrets.h
 *		Secrets: read, stored and permitted, wherever they are kept.
 *
 * A name is 1 to 255 characters of [A-Za-z0-9_./-]; "name" is a secret of the
 * local store (store.h), "backend:name" one that another system keeps
 * (backend.h). What a reference {"secret": ...} names, what grants are given
 * on, what the audit log shows, is this full name.
 */
#ifndef MLINT_SECRETS_H
#define MLINT_SECRETS_H

#include "common/compat.h"

/* Names and their limits. */
#define SECRET_NAME_CHARACTERS \
	"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-"
#define SECRET_NAME_MAX			255
#define SECRET_VALUE_MAX		65536

/* What a role may do with a secret; SECRET_ADMIN is all of it. */
#define SECRET_READ		1
#define SECRET_WRITE	2
#define SECRET_ROTATE	4
#define SECRET_ADMIN	8

/* A value: palloc'd, a terminator follows; secret_wipe() when it was used. */
typedef struct SecretValue
{
	char	   *data;
	size_t		len;
	char	   *version;		/* as its backend calls it */
} SecretValue;

/* Settings, and the resolver behind {"secret": ...}. Called by _PG_init. */
extern void secrets_init(void);

/*
 * Does the role have one of these privileges on the secret of this full name?
 * Owners, members of mlint_admin and superusers have all.
 */
extern bool secret_permitted(Oid role, const char *name, int privileges);

/*
 * The current user must hold the privilege, or the attempt is audited as
 * denied ("action", e.g. "secret.read") and ends in the one error that an
 * unknown name gives too.
 */
extern void secret_require(const char *name, int privilege,
						   const char *action);
extern void pg_attribute_noreturn() secret_unknown(const char *name);

/* Does the secret exist, and may the role read it? For references. */
extern bool secret_permitted_to_read(const char *name, Oid role);

/*
 * The value of a version, NULL for the current one; false when there is none.
 * Asks for no privilege: that is the caller's. The read is audited, before
 * the value exists. Raises ERRCODE_MLINT_MASTER_KEY,
 * ERRCODE_MLINT_SECRET_CORRUPT, and what a backend raises. In the current
 * context; needs a transaction.
 */
extern bool secret_read(const char *name, const char *version,
						SecretValue *value);

/*
 * The local version that was current before this one, while both are valid
 * (see mlint.secret_rotation_set's grace); false when there is none.
 */
extern bool secret_read_previous(const char *name, SecretValue *value);

/*
 * Store a new version in the local store, unaudited, and return its number.
 * Unless it is made current at once it waits for secret_make_current(), which
 * lets the version before it stay valid until then + grace_s, tells
 * dispatchers and mounts, and notifies mlint_secret.
 */
extern int	secret_store(const char *name, const void *data, size_t len,
						 bool current);
extern void secret_make_current(const char *name, int version, int grace_s);

extern void secret_wipe(SecretValue *value);

/*
 * Values have changed, or will have at the commit of this transaction:
 * whoever keeps one in memory resolves it again. No row is locked.
 */
extern void secret_values_changed(void);

#endif
