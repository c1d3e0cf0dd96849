/*
 * secrets.c
 *		The functions that a caller sees: arguments, privilege, audit.
 *
 * Every one of them goes the same way: the full name, the privilege on it, an
 * entry in the audit log, and only then the store or the backend. What is
 * transactional (everything local but reading) is audited as changed; what
 * takes place whatever becomes of the transaction, reading and all that a
 * backend does, as done, and before it is done.
 *
 * Text values are UTF-8 outside of PostgreSQL, whatever the database's
 * encoding. Statements that fail in here are hidden from the log, because
 * they may contain a value. What is returned lies in a memory context of its
 * own, so that it is wiped when the caller's context goes.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/credential.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "common/plaintext.h"
#include "common/relwatch.h"
#include "common/rows.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "secrets/access.h"
#include "secrets/erasure_key.h"
#include "secrets/keyrow.h"
#include "secrets/master_key.h"
#include "secrets/secrets.h"
#include "secrets/store.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_secret_put);
PG_FUNCTION_INFO_V1(mlint_secret_put_bytes);
PG_FUNCTION_INFO_V1(mlint_secret_get);
PG_FUNCTION_INFO_V1(mlint_secret_get_bytes);
PG_FUNCTION_INFO_V1(mlint_secret_versions);
PG_FUNCTION_INFO_V1(mlint_secret_destroy);
PG_FUNCTION_INFO_V1(mlint_secret_drop);
PG_FUNCTION_INFO_V1(mlint_secret_alter);

static const char *const secret_types[] = {
	"api_key", "database_password", "ssh_key", "tls_certificate",
	"encryption_key", "oauth_token", "service_account", "webhook_secret"
};

/*
 * That values have changed is told by a relcache invalidation of the view
 * mlint.secrets, which nothing else invalidates: it comes to all processes
 * with the commit, also that of a prepared transaction, and locks nothing, so
 * that transactions which store secrets do not wait for each other.
 */
static Oid	values_relation = InvalidOid;
static uint64 values_changed = 0;

static char *resolve_reference(const char *name, size_t *len);
static uint64 secret_generation(void);
static void count_change(Datum arg, Oid relid);

void
secrets_init(void)
{
	master_key_define_settings();
	erasure_key_define_settings();
	keyrow_init();
	access_init();
	backend_init();
	credential_register_secrets(resolve_reference, secret_permitted_to_read,
								secret_generation);
	relation_watch(count_change, (Datum) 0);
}

static void
count_change(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == values_relation)
		values_changed++;
}

void
secret_values_changed(void)
{
	CacheInvalidateRelcacheByRelid(mlint_relation("secrets"));
	worker_wake_at_commit(WORKER_DISPATCHER);
}

static uint64
secret_generation(void)
{
	if (!OidIsValid(values_relation))
		values_relation = mlint_relation("secrets");
	return values_changed;
}

void
secret_wipe(SecretValue *value)
{
	crypto_wipe(value->data, value->len);
	pfree(value->data);
	value->data = NULL;
	value->len = 0;
}

/* A full name, taken apart. */
typedef struct SecretName
{
	const char *full;
	const char *backend;		/* NULL: the local store */
	const char *name;			/* there */
} SecretName;

static bool
name_valid(const char *name, size_t len)
{
	return len >= 1 && len <= SECRET_NAME_MAX &&
		strspn(name, SECRET_NAME_CHARACTERS) >= len;
}

/*
 * Take a full name apart. A bad one is not repeated in the message: it may be
 * a value given in the wrong place.
 */
static SecretName
name_parse(const char *full)
{
	SecretName	n = {.full = full,.name = full};
	const char *colon = strchr(full, ':');
	bool		ok = true;

	if (colon)
	{
		ok = name_valid(full, colon - full);
		n.backend = pnstrdup(full, colon - full);
		n.name = colon + 1;
	}
	if (!ok || !name_valid(n.name, strlen(n.name)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of a secret"),
				 errdetail("A name is 1 to %d characters: letters of the English alphabet, digits, and any of _ . / -; \"backend:\" may stand before it.",
						   SECRET_NAME_MAX)));
	if (n.backend && strcmp(n.backend, "local") == 0)
	{
		n.backend = NULL;
		n.full = n.name;
	}
	return n;
}

static char *
text_argument(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

/* The arguments name and, when there is one, backend. */
static SecretName
name_argument(FunctionCallInfo fcinfo, int backend_argument)
{
	char	   *name = text_argument(fcinfo, 0);
	char	   *backend = backend_argument < 0 ? NULL :
	text_argument(fcinfo, backend_argument);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the name of a secret must not be null")));
	if (backend && strcmp(backend, "local") != 0)
		name = psprintf("%s:%s", backend, name);
	return name_parse(name);
}

/* A version of the local store, from what the caller calls it. */
static int
local_version(const SecretName *name, const char *version)
{
	char	   *end;
	long		number;

	errno = 0;
	number = strtol(version, &end, 10);
	if (errno != 0 || *end != '\0' || number < 1 || number > PG_INT32_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the version of a secret must be 1 or more"),
				 errhint("Leave it out for the current version.")));
	return (int) number;
}

/* Raise that a secret of the caller's has no such version. */
static void
pg_attribute_noreturn()
no_version(const char *name, const char *version)
{
	if (version == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("secret \"%s\" has no current version yet", name),
				 errhint("What is to be its first value is not in use yet; mlint.rotations tells more, and mlint.certificates if it is the key of one.")));
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("secret \"%s\" has no version %s", name, version),
			 errhint("mlint.secret_versions lists the versions.")));
}

static void
audit_read(const SecretName *name, const char *version)
{
	char		details[64];

	/* Versions of other systems are words of theirs: only ours are numbers. */
	if (name->backend == NULL && version)
		snprintf(details, sizeof(details), "{\"version\": %s}", version);
	audit(AUDIT_DONE, "secret.read", "secret", name->full,
		  name->backend == NULL && version ? details : NULL);
}

/* secret_read() of a name that was taken apart. */
static bool
read_value(const SecretName *name, const char *version, SecretValue *value)
{
	StoredSecret secret;
	char		number[12];
	int			wanted;

	if (name->backend)
	{
		audit_read(name, version);
		return backend_get(name->backend, name->name, version, value);
	}
	if (!store_find(name->name, &secret))
		return false;
	wanted = version ? local_version(name, version) : secret.version;
	if (wanted == 0)
		return false;
	snprintf(number, sizeof(number), "%d", wanted);
	audit_read(name, number);
	return store_open_version(name->name, &secret, wanted, value);
}

bool
secret_read(const char *name, const char *version, SecretValue *value)
{
	SecretName	n = name_parse(name);

	return read_value(&n, version, value);
}

bool
secret_read_previous(const char *name, SecretValue *value)
{
	SecretName	n = name_parse(name);
	StoredSecret secret;
	char		number[12];

	if (n.backend || !store_find(n.name, &secret) || secret.previous == 0 ||
		secret.previous_until <= GetCurrentTimestamp())
		return false;
	snprintf(number, sizeof(number), "%d", secret.previous);
	audit_read(&n, number);
	return store_open_version(n.name, &secret, secret.previous, value);
}

/* Behind {"secret": ...}: the current value. */
static char *
resolve_reference(const char *name, size_t *len)
{
	SecretValue value;

	if (!secret_read(name, NULL, &value))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("secret \"%s\" does not exist", name),
				 errhint("The view mlint.secrets lists those that exist.")));
	*len = value.len;
	return value.data;
}

bool
secret_permitted_to_read(const char *name, Oid role)
{
	SecretName	n = name_parse(name);
	StoredSecret secret;

	return secret_permitted(role, n.full, SECRET_READ) &&
		(n.backend ? backend_exists(n.backend) : store_find(n.name, &secret));
}

int
secret_store(const char *name, const void *data, size_t len, bool current)
{
	return store_put_version(name, data, len, NULL, current);
}

void
secret_make_current(const char *name, int version, int grace_s)
{
	store_make_current(name, version, grace_s);
}

/* ---- put ---- */

/* The arguments type, description and metadata, from this one on. */
static SecretAbout
about_arguments(FunctionCallInfo fcinfo, int first)
{
	SecretAbout about = {
		.type = text_argument(fcinfo, first),
		.description = text_argument(fcinfo, first + 1),
		.metadata = PG_ARGISNULL(first + 2) ? NULL :
		PG_GETARG_JSONB_P(first + 2)
	};

	if (about.type)
	{
		bool		found = false;

		for (int i = 0; i < lengthof(secret_types); i++)
			found |= strcmp(about.type, secret_types[i]) == 0;
		if (!found)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("there is no type of secret of that name"),
					 errhint("Types are api_key, database_password, ssh_key, tls_certificate, encryption_key, oauth_token, service_account and webhook_secret.")));
	}
	if (about.metadata && !JB_ROOT_IS_OBJECT(about.metadata))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the metadata of a secret must be a JSON object")));
	return about;
}

/* Store a value where it belongs. Returns the version; 0 if it is no number. */
static int
put_value(FunctionCallInfo fcinfo, const SecretName *name, const char *data,
		  size_t len, const SecretAbout *about)
{
	int			version;

	if (len < 1 || len > SECRET_VALUE_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the value of a secret must have 1 to %d bytes, not %zu",
						SECRET_VALUE_MAX, len)));
	secret_require(name->full, SECRET_WRITE, "secret.put");
	require_writable(fcinfo);
	if (name->backend)
	{
		char	   *made;

		audit(AUDIT_DONE, "secret.put", "secret", name->full, NULL);
		made = backend_put(name->backend, name->name, data, len, about);
		return made && strspn(made, "0123456789") == strlen(made) &&
			strlen(made) < 10 ? (int) strtol(made, NULL, 10) : 0;
	}
	version = store_put_version(name->name, data, len, about, true);
	audit(AUDIT_CHANGED, "secret.put", "secret", name->full,
		  psprintf("{\"version\": %d}", version));
	return version;
}

static void
pg_attribute_noreturn()
null_value(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("the value of a secret must not be null"),
			 errhint("To remove a secret, use mlint.secret_drop.")));
}

/* mlint.secret_put(name, value text, type, description, metadata, backend) */
Datum
mlint_secret_put(PG_FUNCTION_ARGS)
{
	SecretName	name;
	SecretAbout about;
	Plaintext	value;
	volatile int version = 0;

	HIDE_STATEMENT_BEGIN();
	name = name_argument(fcinfo, 5);
	if (PG_ARGISNULL(1))
		null_value();
	about = about_arguments(fcinfo, 2);
	value = plaintext_take(PG_GETARG_DATUM(1));
	PG_TRY();
	{
		version = put_value(fcinfo, &name, value.data, value.len, &about);
	}
	PG_FINALLY();
	{
		plaintext_wipe(&value);
	}
	PG_END_TRY();
	HIDE_STATEMENT_END();
	if (version == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(version);
}

/* mlint.secret_put_bytes(name, value bytea, ...) */
Datum
mlint_secret_put_bytes(PG_FUNCTION_ARGS)
{
	SecretName	name;
	SecretAbout about;
	bytea	   *given;
	bytea	   *value;
	volatile int version = 0;

	HIDE_STATEMENT_BEGIN();
	name = name_argument(fcinfo, 5);
	if (PG_ARGISNULL(1))
		null_value();
	about = about_arguments(fcinfo, 2);
	given = (bytea *) DatumGetPointer(PG_GETARG_DATUM(1));
	value = DatumGetByteaPP(PG_GETARG_DATUM(1));
	PG_TRY();
	{
		version = put_value(fcinfo, &name, VARDATA_ANY(value),
							VARSIZE_ANY_EXHDR(value), &about);
	}
	PG_FINALLY();
	{
		if (value != given)
			crypto_wipe(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
	}
	PG_END_TRY();
	HIDE_STATEMENT_END();
	if (version == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(version);
}

/* ---- get ---- */

/* Before the context goes in which a result lies. */
static void
wipe_result(void *arg)
{
	crypto_wipe(VARDATA_ANY(arg), VARSIZE_ANY_EXHDR(arg));
}

/* The value that the arguments name, for whoever may read it. */
static SecretValue
get_value(FunctionCallInfo fcinfo)
{
	SecretName	name = name_argument(fcinfo, 2);
	SecretValue value;
	char	   *version = NULL;

	if (!PG_ARGISNULL(1))
		version = get_fn_expr_argtype(fcinfo->flinfo, 1) == INT4OID ?
			psprintf("%d", PG_GETARG_INT32(1)) : text_argument(fcinfo, 1);
	if (version && name.backend == NULL)
		(void) local_version(&name, version);
	secret_require(name.full, SECRET_READ, "secret.read");
	if (!read_value(&name, version, &value))
	{
		StoredSecret secret;

		if (name.backend == NULL && !store_find(name.name, &secret))
			secret_unknown(name.full);
		if (name.backend && version == NULL)
			secret_unknown(name.full);
		no_version(name.full, version);
	}
	return value;
}

/*
 * mlint.secret_get(name, version, backend). What is returned lies in a
 * context of its own below the caller's, and is wiped before that goes. A
 * caller that frees a result on its own would free it too early; none does,
 * since a function may return what is not palloc'd.
 */
static Datum
give_value(FunctionCallInfo fcinfo, bool as_text)
{
	SecretValue value = get_value(fcinfo);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "mlint secret",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	MemoryContextCallback *wipe = palloc(sizeof(MemoryContextCallback));
	struct varlena *volatile result = NULL;

	PG_TRY();
	{
		if (as_text &&
			!pg_verify_mbstr(PG_UTF8, value.data, (int) value.len, true))
			ereport(ERROR,
					(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
					 errmsg("the value of this secret is not text"),
					 errhint("Read it with mlint.secret_get_bytes.")));
		result = as_text ? plaintext_give(value.data, value.len) :
			cstring_to_text_with_len(value.data, (int) value.len);
	}
	PG_FINALLY();
	{
		secret_wipe(&value);
	}
	PG_END_TRY();
	wipe->func = wipe_result;
	wipe->arg = result;
	MemoryContextRegisterResetCallback(context, wipe);
	MemoryContextSwitchTo(caller);
	PG_RETURN_POINTER(result);
}

Datum
mlint_secret_get(PG_FUNCTION_ARGS)
{
	return give_value(fcinfo, true);
}

/* mlint.secret_get_bytes(name, version, backend) returns bytea */
Datum
mlint_secret_get_bytes(PG_FUNCTION_ARGS)
{
	return give_value(fcinfo, false);
}

/* ---- versions ---- */

static void
backend_version_row(const char *version, bool current, TimestampTz created_at,
					void *arg)
{
	ReturnSetInfo *result = arg;
	Datum		values[6] = {0};
	bool		nulls[6] = {false, false, false, true, true, true};

	values[0] = CStringGetTextDatum(version);
	values[1] = CStringGetTextDatum(current ? "current" : "old");
	values[2] = TimestampTzGetDatum(created_at);
	nulls[2] = created_at == 0;
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* The versions of the local store, as SPI gives them. */
static void
local_version_rows(const char *name, ReturnSetInfo *result)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		argument = CStringGetTextDatum(name);

	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT v.version::text,"
							  " CASE WHEN v.destroyed_at IS NOT NULL THEN 'destroyed'"
							  " WHEN v.version = s.version THEN 'current'"
							  " WHEN v.version = s.previous AND s.previous_until"
							  " > pg_catalog.clock_timestamp() THEN 'previous'"
							  " WHEN v.version > s.version THEN 'waiting'"
							  " ELSE 'old' END,"
							  " v.created_at, v.created_by, v.destroyed_at,"
							  " v.destroyed_by"
							  " FROM mlint.secret s JOIN mlint.secret_version v"
							  " ON v.secret_id = s.id WHERE s.name = $1"
							  " ORDER BY v.version DESC",
							  1, types, &argument, NULL,
							  ActiveSnapshotSet(), 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.secret_version");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		values[6];
		bool		nulls[6];

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
						  values, nulls);
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	owner_end(&scope);
}

/* mlint.secret_versions(name, backend) */
Datum
mlint_secret_versions(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	SecretName	name = name_argument(fcinfo, 1);
	StoredSecret secret;

	secret_require(name.full, SECRET_ANY, "secret.versions");
	InitMaterializedSRF(fcinfo, 0);
	if (name.backend)
	{
		if (!backend_versions(name.backend, name.name, backend_version_row,
							  result))
			secret_unknown(name.full);
		return (Datum) 0;
	}
	if (!store_find(name.name, &secret))
		secret_unknown(name.full);
	local_version_rows(name.name, result);
	return (Datum) 0;
}

/* ---- destroy, drop, alter ---- */

/* mlint.secret_destroy(name, version) */
Datum
mlint_secret_destroy(PG_FUNCTION_ARGS)
{
	SecretName	name = name_argument(fcinfo, -1);
	int			version;

	require_writable(fcinfo);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the version must not be null"),
				 errhint("To remove a secret with all its versions, use mlint.secret_drop.")));
	version = PG_GETARG_INT32(1);
	if (name.backend)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("single versions can be destroyed only in the local store"),
				 errhint("Destroy it in the system that keeps it, or drop the secret.")));
	secret_require(name.full, SECRET_ADMIN, "secret.destroy");
	store_destroy(name.name, version);
	audit(AUDIT_CHANGED, "secret.destroy", "secret", name.full,
		  psprintf("{\"version\": %d}", version));
	PG_RETURN_VOID();
}

/* mlint.secret_drop(name, backend) */
Datum
mlint_secret_drop(PG_FUNCTION_ARGS)
{
	SecretName	name = name_argument(fcinfo, 1);

	secret_require(name.full, SECRET_ADMIN, "secret.drop");
	require_writable(fcinfo);
	if (name.backend)
	{
		audit(AUDIT_DONE, "secret.drop", "secret", name.full, NULL);
		if (!backend_delete(name.backend, name.name))
			secret_unknown(name.full);
		PG_RETURN_VOID();
	}
	store_drop(name.name);
	audit(AUDIT_CHANGED, "secret.drop", "secret", name.full, NULL);
	PG_RETURN_VOID();
}

/* mlint.secret_alter(name, type, description, metadata, owner) */
Datum
mlint_secret_alter(PG_FUNCTION_ARGS)
{
	SecretName	name = name_argument(fcinfo, -1);
	SecretAbout about = about_arguments(fcinfo, 1);
	char	   *owner = text_argument(fcinfo, 4);
	OwnerScope	scope;
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, JSONBOID};
	Datum		values[4];
	char		nulls[4] = {' ', 'n', 'n', 'n'};
	StringInfoData details;

	require_writable(fcinfo);
	if (name.backend)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("secret \"%s\" is not kept in the local store",
						name.full),
				 errhint("Change it in the system that keeps it.")));
	secret_require(name.full, SECRET_ADMIN, "secret.alter");

	values[0] = CStringGetTextDatum(name.name);
	if (about.type)
	{
		values[1] = CStringGetTextDatum(about.type);
		nulls[1] = ' ';
	}
	if (about.description)
	{
		values[2] = CStringGetTextDatum(about.description);
		nulls[2] = ' ';
	}
	if (about.metadata)
	{
		values[3] = JsonbPGetDatum(about.metadata);
		nulls[3] = ' ';
	}
	owner_begin(&scope);
	owner_run(NULL, "UPDATE mlint.secret SET"
			  " type = coalesce($2, type),"
			  " description = coalesce($3, description),"
			  " metadata = coalesce($4, metadata)"
			  " WHERE name = $1",
			  SPI_OK_UPDATE, 4, types, values, nulls);
	if (SPI_processed == 0)
		secret_unknown(name.full);
	owner_end(&scope);

	initStringInfo(&details);
	appendStringInfoChar(&details, '{');
	if (owner)
	{
		secret_owner_set(name.name, get_role_oid(owner, false));
		appendStringInfoString(&details, "\"owner\": ");
		escape_json(&details, owner);
	}
	appendStringInfoChar(&details, '}');
	audit(AUDIT_CHANGED, "secret.alter", "secret", name.full, details.data);
	PG_RETURN_VOID();
}
