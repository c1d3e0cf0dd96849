/*
 * credential.c
 *		{"secret": ...}, {"env": ...}, {"file": ...}: read, permit, resolve.
 *
 * Naming a credential is as good as reading it, since whoever names it also
 * chooses where it is sent. So a secret may be named by those who may read it;
 * a variable of the server's environment
 * or a file of the server by those who could read the file anyway, the
 * members of pg_read_server_files.
 *
 * A plain credential is refused without being repeated in the message.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_authid.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/credential.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/acl.h"
#include "utils/json.h"

/* A credential is a token, a key or a certificate: never larger than this. */
#define CREDENTIAL_MAX_BYTES	65536

static SecretResolver resolve_secret = NULL;
static SecretResolver resolve_previous = NULL;
static SecretReadable secret_readable = NULL;
static SecretGeneration secret_generation = NULL;

uint64
credential_generation(void)
{
	return secret_generation();
}

void
credential_register_secrets(SecretResolver resolve, SecretReadable readable,
							SecretGeneration generation)
{
	resolve_secret = resolve;
	secret_readable = readable;
	secret_generation = generation;
}

void
credential_register_previous(SecretResolver resolve)
{
	resolve_previous = resolve;
}

/* Raise the one error of a reference that is none. */
static void
pg_attribute_noreturn()
credential_malformed(const char *what, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("%s must be a reference to a credential", what),
			 errdetail("%s", detail),
			 errhint("Store it with mlint.secret_put('name', 'value') and write {\"secret\": \"name\"}; {\"env\": \"NAME\"} and {\"file\": \"/path\"} work too."),
			 errhidestmt(true)));
}

Credential
credential_parse(JsonbValue *value, const char *what)
{
	Credential	c = {CREDENTIAL_NONE};
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	v;

	if (value->type == jbvString)
		credential_malformed(what,
							 "A credential itself is not stored in options, where views and dumps would show it.");
	if (value->type != jbvBinary ||
		!JsonContainerIsObject(value->val.binary.data) ||
		JsonContainerSize(value->val.binary.data) != 1)
		credential_malformed(what,
							 "A reference is an object with one key: secret, env or file.");

	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			if (v.val.string.len == 6 && memcmp(v.val.string.val, "secret", 6) == 0)
				c.kind = CREDENTIAL_SECRET;
			else if (v.val.string.len == 3 && memcmp(v.val.string.val, "env", 3) == 0)
				c.kind = CREDENTIAL_ENV;
			else if (v.val.string.len == 4 && memcmp(v.val.string.val, "file", 4) == 0)
				c.kind = CREDENTIAL_FILE;
			else
				credential_malformed(what,
									 "A reference is an object with one key: secret, env or file.");
		}
		else if (token == WJB_VALUE)
		{
			if (v.type != jbvString || v.val.string.len == 0)
				credential_malformed(what,
									 "The name in a reference is a string that is not empty.");
			c.name = pnstrdup(v.val.string.val, v.val.string.len);
		}
	}

	/* An object of one key has had a key and a value. */
	Assert(c.kind != CREDENTIAL_NONE && c.name != NULL);
	if (c.kind == CREDENTIAL_FILE && !is_absolute_path(c.name))
		credential_malformed(what, "The path of a file is absolute.");
	if (c.kind == CREDENTIAL_ENV && strchr(c.name, '=') != NULL)
		credential_malformed(what,
							 "The name of an environment variable has no \"=\" in it.");
	return c;
}

/* Enter into the audit log that a role may not use a credential. */
static void
audit_denied(const Credential *c, Oid role, const char *what)
{
	static const char *const kinds[] = {
		[CREDENTIAL_SECRET] = "secret",
		[CREDENTIAL_ENV] = "env",
		[CREDENTIAL_FILE] = "file",
	};
	StringInfoData details;

	initStringInfo(&details);
	appendStringInfoString(&details, "{\"for\": ");
	escape_json(&details, what);
	appendStringInfoString(&details, ", \"role\": ");
	escape_json(&details, GetUserNameFromId(role, false));
	appendStringInfoChar(&details, '}');
	audit(AUDIT_DENIED, "credential.use", kinds[c->kind], c->name,
		  details.data);
}

void
credential_check(const Credential *c, Oid role, const char *what)
{
	switch (c->kind)
	{
		case CREDENTIAL_NONE:
			break;
		case CREDENTIAL_SECRET:
			if (!secret_readable(c->name, role))
			{
				audit_denied(c, role, what);
				ereport(ERROR,
						(errcode(ERRCODE_UNDEFINED_OBJECT),
						 errmsg("secret \"%s\", named by %s, does not exist, or you may not read it",
								c->name, what),
						 errhint("Store it with mlint.secret_put; the view mlint.secrets lists those that are yours to use.")));
			}
			break;
		case CREDENTIAL_ENV:
		case CREDENTIAL_FILE:
			if (!has_privs_of_role(role, ROLE_PG_READ_SERVER_FILES))
			{
				audit_denied(c, role, what);
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("permission denied to use %s of the server for %s",
								c->kind == CREDENTIAL_ENV ?
								"an environment variable" : "a file",
								what),
						 errdetail("Only members of pg_read_server_files may name one."),
						 errhint("Store the credential with mlint.secret_put, and name that secret.")));
			}
			break;
	}
}

/* The value of a variable of the server's environment. */
static char *
credential_from_env(const char *name, size_t *len)
{
	const char *value = getenv(name);

	if (value == NULL || value[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("environment variable \"%s\" is not set in the server",
						name),
				 errhint("Set it where the server is started, and restart the server.")));
	*len = strlen(value);
	return pnstrdup(value, *len);
}

/* The content of a file of the server, without its last newline. */
static char *
credential_from_file(const char *path, size_t *len)
{
	struct stat st;
	char	   *value;
	ssize_t		n = 0;
	size_t		have = 0;
	int			fd;

	/* O_NONBLOCK, so that a FIFO cannot hold us. */
	fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0 || fstat(fd, &st) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("could not open credential file \"%s\": %m", path),
				 errhint("The file must be readable by the server's operating-system user.")));
	if (!S_ISREG(st.st_mode) || st.st_size > CREDENTIAL_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("credential file \"%s\" is not a regular file of at most %d bytes",
						path, CREDENTIAL_MAX_BYTES)));

	value = palloc(CREDENTIAL_MAX_BYTES + 1);
	while (have < CREDENTIAL_MAX_BYTES &&
		   (n = read(fd, value + have, CREDENTIAL_MAX_BYTES - have)) > 0)
		have += n;
	if (n < 0)
	{
		crypto_wipe(value, have);
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("could not read credential file \"%s\": %m", path)));
	}
	CloseTransientFile(fd);

	if (have > 0 && value[have - 1] == '\n')
		have--;
	if (have > 0 && value[have - 1] == '\r')
		have--;
	if (have == 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("credential file \"%s\" is empty", path)));
	value[have] = '\0';
	*len = have;
	return value;
}

char *
credential_resolve(const Credential *c, size_t *len)
{
	switch (c->kind)
	{
		case CREDENTIAL_SECRET:
			return resolve_secret(c->name, len);
		case CREDENTIAL_ENV:
			return credential_from_env(c->name, len);
		case CREDENTIAL_FILE:
			return credential_from_file(c->name, len);
		case CREDENTIAL_NONE:
			break;
	}
	elog(ERROR, "there is no credential to resolve");
	return NULL;				/* keep the compiler quiet */
}

char *
credential_resolve_previous(const Credential *c, size_t *len)
{
	if (c->kind != CREDENTIAL_SECRET || resolve_previous == NULL)
		return NULL;
	return resolve_previous(c->name, len);
}
