/*
 * credential.h
 *		References to credentials, resolved at the moment of use.
 *
 * Wherever an option takes a credential it takes a reference: {"secret":
 * "name"}, {"env": "NAME"} or {"file": "/path"}. What is stored in a table or
 * shown in a view is the reference; the value exists only in the process that
 * uses it, for as long as it uses it.
 *
 * env and file read what belongs to the server's operating-system user, so
 * naming one needs the privileges of pg_read_server_files.
 */
#ifndef MLINT_CREDENTIAL_H
#define MLINT_CREDENTIAL_H

#include "utils/jsonb.h"

typedef enum CredentialKind
{
	CREDENTIAL_NONE,
	CREDENTIAL_SECRET,
	CREDENTIAL_ENV,
	CREDENTIAL_FILE
} CredentialKind;

typedef struct Credential
{
	CredentialKind kind;
	char	   *name;			/* of the secret, variable or file */
} Credential;

/*
 * Read a reference from a JSON value. Raises ERRCODE_MLINT_CONFIGURATION,
 * showing the right form, for a plain string or any other shape; "what" names
 * the option in that message. Strings are palloc'd.
 */
extern Credential credential_parse(JsonbValue *value, const char *what);

/*
 * May this role use the reference? Raises ERRCODE_INSUFFICIENT_PRIVILEGE if
 * not, and ERRCODE_UNDEFINED_OBJECT if it names a secret that does not exist
 * or that the role may not read.
 */
extern void credential_check(const Credential *c, Oid role, const char *what);

/*
 * The value, palloc'd in the current context with its length in *len (a
 * terminator follows). The caller wipes it with crypto_wipe(). A trailing
 * newline of a file is not part of the value. Needs a transaction.
 */
extern char *credential_resolve(const Credential *c, size_t *len);

/*
 * The value that was current before, while it is valid beside the current one
 * (a rotation's grace); NULL when there is none. As credential_resolve().
 */
extern char *credential_resolve_previous(const Credential *c, size_t *len);

/*
 * A number that grows, in this process, when what credentials resolve to may
 * have changed: whoever keeps a value resolves it again. What was committed
 * before the transaction began is in it. Needs a transaction.
 */
extern uint64 credential_generation(void);

/*
 * How {"secret": ...} is resolved: the secrets room registers itself, so that
 * common/ knows no room. "readable" says whether the secret exists and the
 * role may read it, "generation" is behind credential_generation().
 */
typedef char *(*SecretResolver) (const char *name, size_t *len);
typedef bool (*SecretReadable) (const char *name, Oid role);
typedef uint64 (*SecretGeneration) (void);
extern void credential_register_secrets(SecretResolver resolve,
										SecretReadable readable,
										SecretGeneration generation);
extern void credential_register_previous(SecretResolver resolve);

#endif
