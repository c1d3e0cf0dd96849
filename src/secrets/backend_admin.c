/*
 * backend_admin.c
 *		Secret backends as an administrator sees them: create, alter, drop,
 *		test, list, watch.
 *
 * Whatever can be known to be wrong is refused here. Whoever creates or alters
 * a backend must be allowed to use every credential that it names, and, where
 * it uses what is the server's own (its environment, its files, the identity
 * of its machine), be a member of pg_read_server_files: the backend goes where
 * its options say, so naming one is as good as having it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/credential.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "secrets/backend_row.h"
#include "secrets/cache.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_secret_backend_create);
PG_FUNCTION_INFO_V1(mlint_secret_backend_alter);
PG_FUNCTION_INFO_V1(mlint_secret_backend_drop);
PG_FUNCTION_INFO_V1(mlint_secret_backend_test);
PG_FUNCTION_INFO_V1(mlint_secret_backend_options);
PG_FUNCTION_INFO_V1(mlint_secret_backend_state);
PG_FUNCTION_INFO_V1(mlint_secret_cache_drop);
PG_FUNCTION_INFO_V1(mlint_secret_list);

#define BACKEND_NAME_MAX	63

/* 'local' is the store in the database: always there, never a row. */
static void
not_local(const char *name, const char *what)
{
	if (strcmp(name, "local") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("secret backend \"local\" cannot be %s", what),
				 errdetail("It is the store in this database.")));
}

static void
pg_attribute_noreturn()
no_such_backend(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("secret backend \"%s\" does not exist", name),
			 errhint("The view mlint.secret_backends lists them; mlint.secret_backend_create() makes one.")));
}

static const BackendKind *
find_kind(const char *name)
{
	const BackendKind *kind = backend_kind(name);
	StringInfoData known;

	if (kind)
		return kind;
	initStringInfo(&known);
	for (int i = 0; backend_kinds[i]; i++)
		appendStringInfo(&known, "%s%s", i > 0 ? ", " : "",
						 backend_kinds[i]->name);
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("there is no kind \"%s\" of secret backend", name),
			 errhint("The kinds are: %s. The view mlint.secret_backend_kinds shows their options.",
					 known.data)));
}

static void
check_name(const char *name)
{
	size_t		len = strlen(name);

	not_local(name, "created");
	if (len == 0 || len > BACKEND_NAME_MAX ||
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789_.-") != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of a secret backend"),
				 errdetail("A name is 1 to %d characters: letters of the English alphabet, digits, and any of _ . -",
						   BACKEND_NAME_MAX)));
}

/* May this role have a backend with these options? Raises what is wrong. */
static void
check_options(const BackendKind *kind, Jsonb *options, Oid role,
			  const char *name, const char *action)
{
	char	   *what = psprintf("secret backend \"%s\"", name);
	const Option *const tables[] = {kind->options, backend_options};
	BackendOptions *parsed = backend_parse(kind, options, what);

	if (kind->check(parsed, what) &&
		!has_privs_of_role(role, ROLE_PG_READ_SERVER_FILES))
	{
		audit(AUDIT_DENIED, action, "secret_backend", name, NULL);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to use what belongs to the server for %s",
						what),
				 errdetail("With these options a backend of kind \"%s\" uses the server's environment, its files or its machine's identity. Only members of pg_read_server_files may name these.",
						   kind->name)));
	}
	option_check_credentials(tables, lengthof(tables), parsed, role, what);
}

/* mlint.secret_backend_create(name, kind, options) */
Datum
mlint_secret_backend_create(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {TEXTOID, TEXTOID, JSONBOID};
	char	   *name = required_text(fcinfo, 0, "name");
	const BackendKind *kind = find_kind(required_text(fcinfo, 1, "kind"));
	OwnerScope	scope;
	Datum		values[3];
	bool		isnull;
	int32		id;

	HIDE_STATEMENT_BEGIN();
	check_name(name);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("options must not be null")));
	check_options(kind, PG_GETARG_JSONB_P(2), GetUserId(), name,
				  "secret_backend.create");
	HIDE_STATEMENT_END();

	audit(AUDIT_CHANGED, "secret_backend.create", "secret_backend", name,
		  psprintf("{\"kind\": \"%s\"}", kind->name));
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(kind->name);
	values[2] = PG_GETARG_DATUM(2);
	owner_begin(&scope);
	if (SPI_execute_with_args("INSERT INTO mlint.secret_backend (name, kind, options)"
							  " VALUES ($1, $2, pg_catalog.jsonb_strip_nulls($3))"
							  " ON CONFLICT (name) DO NOTHING RETURNING id",
							  3, types, values, NULL, false,
							  0) != SPI_OK_INSERT_RETURNING)
		elog(ERROR, "could not write mlint.secret_backend");
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("secret backend \"%s\" already exists", name),
				 errhint("Change it with mlint.secret_backend_alter().")));
	id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
									 SPI_tuptable->tupdesc, 1, &isnull));
	/* Ids begin again when the extension is created again. */
	(void) cache_forget(id, NULL, true);
	backend_state_forget(id);
	secret_values_changed();
	owner_end(&scope);
	(void) job_request("secret_refresh");
	PG_RETURN_VOID();
}

/* mlint.secret_backend_alter(name, options): merged; null takes one away. */
Datum
mlint_secret_backend_alter(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {TEXTOID, JSONBOID};
	char	   *name = required_text(fcinfo, 0, "name");
	Oid			role = GetUserId();
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	Datum		values[2];
	const BackendKind *kind;
	BackendState *state;
	Jsonb	   *options;
	bool		isnull;
	int32		id;

	HIDE_STATEMENT_BEGIN();
	not_local(name, "altered");
	if (PG_ARGISNULL(1) || !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(1)))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("options must be a JSON object")));
	values[0] = CStringGetTextDatum(name);
	values[1] = PG_GETARG_DATUM(1);
	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT id, kind,"
							  " pg_catalog.jsonb_strip_nulls(options || $2)"
							  " FROM mlint.secret_backend WHERE name = $1"
							  " FOR UPDATE", 2, types, values, NULL, false,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.secret_backend");
	if (SPI_processed == 0)
		no_such_backend(name);
#define FIELD(n) \
	SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n, &isnull)
	id = DatumGetInt32(FIELD(1));
	kind = find_kind(TextDatumGetCString(FIELD(2)));
	MemoryContextSwitchTo(caller);
	options = (Jsonb *) PG_DETOAST_DATUM_COPY(FIELD(3));
#undef FIELD
	owner_end(&scope);
	check_options(kind, options, role, name, "secret_backend.alter");
	HIDE_STATEMENT_END();

	audit(AUDIT_CHANGED, "secret_backend.alter", "secret_backend", name, NULL);
	values[1] = JsonbPGetDatum(options);
	owner_begin(&scope);
	if (SPI_execute_with_args("UPDATE mlint.secret_backend"
							  " SET options = $2,"
							  " altered_at = pg_catalog.clock_timestamp()"
							  " WHERE name = $1", 2, types, values, NULL,
							  false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write mlint.secret_backend");
	(void) cache_forget(id, NULL, false);
	/* What was wrong may be mended. */
	state = backend_state_lock(id);
	breaker_reset(&state->breaker);
	backend_state_unlock(state);
	secret_values_changed();
	owner_end(&scope);
	PG_RETURN_VOID();
}

/* mlint.secret_backend_drop(name) */
Datum
mlint_secret_backend_drop(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {TEXTOID};
	char	   *name = required_text(fcinfo, 0, "name");
	Datum		values[] = {CStringGetTextDatum(name)};
	OwnerScope	scope;
	bool		isnull;

	not_local(name, "dropped");
	owner_begin(&scope);
	if (SPI_execute_with_args("DELETE FROM mlint.secret_backend"
							  " WHERE name = $1 RETURNING id", 1, types,
							  values, NULL, false,
							  0) != SPI_OK_DELETE_RETURNING)
		elog(ERROR, "could not delete from mlint.secret_backend");
	if (SPI_processed == 0)
		no_such_backend(name);
	(void) cache_forget(DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
													SPI_tuptable->tupdesc, 1,
													&isnull)), NULL, false);
	secret_values_changed();
	owner_end(&scope);
	audit(AUDIT_CHANGED, "secret_backend.drop", "secret_backend", name, NULL);
	PG_RETURN_VOID();
}

/* mlint.secret_backend_test(name) */
Datum
mlint_secret_backend_test(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "name");

	audit(AUDIT_DONE, "secret_backend.test", "secret_backend", name, NULL);
	if (strcmp(name, "local") == 0)
		PG_RETURN_TEXT_P(cstring_to_text("the store in this database"));
	PG_RETURN_TEXT_P(cstring_to_text(backend_test(name)));
}

/* mlint.secret_cache_drop(backend): of one, or of all. */
Datum
mlint_secret_cache_drop(PG_FUNCTION_ARGS)
{
	char	   *name = NULL;
	int32		id = 0;

	if (!PG_ARGISNULL(0))
		name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	audit(AUDIT_DONE, "secret_cache.drop", "secret_backend", name, NULL);
	if (name)
	{
		static Oid	types[] = {TEXTOID};
		Datum		values[] = {CStringGetTextDatum(name)};
		OwnerScope	scope;
		bool		isnull;

		owner_begin(&scope);
		if (SPI_execute_with_args("SELECT id FROM mlint.secret_backend"
								  " WHERE name = $1", 1, types, values, NULL,
								  false, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not read mlint.secret_backend");
		if (SPI_processed == 0)
			no_such_backend(name);
		id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &isnull));
		owner_end(&scope);
	}
	(void) cache_forget(id, NULL, false);
	PG_RETURN_VOID();
}

/* mlint.secret_list(backend, prefix) returns setof text */
Datum
mlint_secret_list(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *backend = required_text(fcinfo, 0, "backend");
	char	   *prefix = PG_ARGISNULL(1) ? pstrdup("") :
	text_to_cstring(PG_GETARG_TEXT_PP(1));
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	audit(AUDIT_DONE, "secret.list", "secret_backend", backend, NULL);
	foreach(lc, backend_list(backend, prefix))
	{
		Datum		values[1];
		bool		nulls[1] = {false};
		char	   *name = lfirst(lc);

		peer_text_clean(name);
		values[0] = CStringGetTextDatum(name);
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}

/* ---- what the views show ---- */

/* mlint.secret_backend_options() */
Datum
mlint_secret_backend_options(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; backend_kinds[i]; i++)
	{
		option_rows(result, backend_kinds[i]->name, backend_kinds[i]->options);
		option_rows(result, backend_kinds[i]->name, backend_options);
	}
	return (Datum) 0;
}

/* mlint.secret_backend_state(id) returns record */
Datum
mlint_secret_backend_state(PG_FUNCTION_ARGS)
{
	BackendState state;
	int			cached = cache_count(PG_GETARG_INT32(0), &state);
	TupleDesc	desc;
	Datum		values[9];
	bool		nulls[9] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(breaker_state_name(state.breaker.state));
	values[1] = TimestampTzGetDatum(state.breaker.retry_at);
	nulls[1] = state.breaker.state != BREAKER_OPEN;
	values[2] = Int32GetDatum(cached);
	values[3] = Int64GetDatum(state.hits);
	values[4] = Int64GetDatum(state.misses);
	values[5] = Int64GetDatum(state.stale);
	values[6] = TimestampTzGetDatum(state.last_success_at);
	nulls[6] = state.last_success_at == 0;
	values[7] = CStringGetTextDatum(state.last_error);
	values[8] = TimestampTzGetDatum(state.last_error_at);
	nulls[7] = nulls[8] = state.last_error_at == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
