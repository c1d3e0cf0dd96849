/*
 * remote_admin.c
 *		Rate backends as an administrator sees them: create, alter, drop,
 *		test, watch.
 *
 * Whatever can be known to be wrong is refused here, which takes the kind's
 * module: it has the table of options. Whoever creates or alters a backend
 * must be allowed to use every credential that it names. A change makes every
 * process connect anew before its next decision.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "ratelimit/remote_store.h"

PG_FUNCTION_INFO_V1(mlint_rate_backend_create);
PG_FUNCTION_INFO_V1(mlint_rate_backend_alter);
PG_FUNCTION_INFO_V1(mlint_rate_backend_drop);
PG_FUNCTION_INFO_V1(mlint_rate_backend_test);
PG_FUNCTION_INFO_V1(mlint_rate_backend_options);
PG_FUNCTION_INFO_V1(mlint_rate_backend_state);

#define BACKEND_NAME_MAX	63

/* 'local' is this server's memory: always there, never a row. */
static void
not_local(const char *name, const char *what)
{
	if (strcmp(name, "local") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("rate backend \"local\" cannot be %s", what),
				 errdetail("It is this server's memory.")));
}

static void
pg_attribute_noreturn()
no_such_backend(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("rate backend \"%s\" does not exist", name),
			 errhint("The view mlint.rate_backends lists them; mlint.rate_backend_create() makes one.")));
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
				 errmsg("invalid name of a rate backend"),
				 errdetail("A name is 1 to %d characters: letters of the English alphabet, digits, and any of _ . -",
						   BACKEND_NAME_MAX)));
}

/* May this role have a backend with these options? Raises what is wrong. */
static void
check_options(const RateRemote *kind, Jsonb *options, Oid role,
			  const char *name)
{
	char	   *what = psprintf("rate backend \"%s\"", name);
	const Option *const tables[] = {kind->options, remote_options};
	RemoteOptions *parsed = remote_parse(kind, options, what);

	kind->check(parsed, what);
	option_check_credentials(tables, lengthof(tables), parsed, role, what);
}

/* For the audit log: the kind, if it is new, and the names of the options. */
static char *
audit_details(const char *kind, Jsonb *options)
{
	JsonbIterator *it = JsonbIteratorInit(&options->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	StringInfoData buf;
	const char *separator = "";

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	if (kind)
		appendStringInfo(&buf, "\"kind\": \"%s\", ", kind);
	appendStringInfoString(&buf, "\"options\": [");
	(void) JsonbIteratorNext(&it, &value, false);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		appendStringInfoString(&buf, separator);
		escape_json(&buf, pnstrdup(value.val.string.val,
								   value.val.string.len));
		separator = ", ";
	}
	appendStringInfoString(&buf, "]}");
	return buf.data;
}

/* mlint.rate_backend_create(name, kind, options) */
Datum
mlint_rate_backend_create(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {TEXTOID, TEXTOID, JSONBOID};
	char	   *name = required_text(fcinfo, 0, "name");
	const RateRemote *kind = remote_kind(required_text(fcinfo, 1, "kind"),
										 false);
	OwnerScope	scope;
	Datum		values[3];

	HIDE_STATEMENT_BEGIN();
	check_name(name);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("options must not be null")));
	check_options(kind, PG_GETARG_JSONB_P(2), GetUserId(), name);
	HIDE_STATEMENT_END();

	audit(AUDIT_CHANGED, "rate_backend.create", "rate_backend", name,
		  audit_details(kind->kind, PG_GETARG_JSONB_P(2)));
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(kind->kind);
	values[2] = PG_GETARG_DATUM(2);
	owner_begin(&scope);
	remote_changed();
	if (SPI_execute_with_args("INSERT INTO mlint.rate_backend (name, kind, options)"
							  " VALUES ($1, $2, pg_catalog.jsonb_strip_nulls($3))"
							  " ON CONFLICT (name) DO NOTHING",
							  3, types, values, NULL, false,
							  0) != SPI_OK_INSERT)
		elog(ERROR, "could not write mlint.rate_backend");
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("rate backend \"%s\" already exists", name),
				 errhint("Change it with mlint.rate_backend_alter().")));
	owner_end(&scope);
	PG_RETURN_VOID();
}

/* mlint.rate_backend_alter(name, options): merged; null takes one away. */
Datum
mlint_rate_backend_alter(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {TEXTOID, JSONBOID};
	char	   *name = required_text(fcinfo, 0, "name");
	Oid			role = GetUserId();
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	Datum		values[2];
	const RateRemote *kind;
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
							  " FROM mlint.rate_backend WHERE name = $1"
							  " FOR UPDATE", 2, types, values, NULL, false,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.rate_backend");
	if (SPI_processed == 0)
		no_such_backend(name);
#define FIELD(n) \
	SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n, &isnull)
	id = DatumGetInt32(FIELD(1));
	kind = remote_kind(TextDatumGetCString(FIELD(2)), false);
	MemoryContextSwitchTo(caller);
	options = (Jsonb *) PG_DETOAST_DATUM_COPY(FIELD(3));
#undef FIELD
	owner_end(&scope);
	check_options(kind, options, role, name);
	HIDE_STATEMENT_END();

	audit(AUDIT_CHANGED, "rate_backend.alter", "rate_backend", name,
		  audit_details(NULL, PG_GETARG_JSONB_P(1)));
	values[1] = JsonbPGetDatum(options);
	owner_begin(&scope);
	remote_changed();
	if (SPI_execute_with_args("UPDATE mlint.rate_backend"
							  " SET options = $2,"
							  " altered_at = pg_catalog.clock_timestamp()"
							  " WHERE name = $1", 2, types, values, NULL,
							  false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write mlint.rate_backend");
	owner_end(&scope);
	/* What was wrong may be mended. */
	remote_state_reset(id);
	PG_RETURN_VOID();
}

/* mlint.rate_backend_drop(name) */
Datum
mlint_rate_backend_drop(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {TEXTOID};
	char	   *name = required_text(fcinfo, 0, "name");
	Datum		values[] = {CStringGetTextDatum(name)};
	OwnerScope	scope;

	not_local(name, "dropped");
	owner_begin(&scope);
	/* Locked, so that no rule comes to use it meanwhile. */
	if (SPI_execute_with_args("SELECT FROM mlint.rate_backend"
							  " WHERE name = $1 FOR UPDATE", 1, types, values,
							  NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.rate_backend");
	if (SPI_processed == 0)
		no_such_backend(name);
	if (SPI_execute_with_args("SELECT name FROM mlint.rate_rule"
							  " WHERE backend = $1 ORDER BY name COLLATE \"C\""
							  " LIMIT 1", 1, types, values, NULL, false,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.rate_rule");
	if (SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("rate backend \"%s\" is in use", name),
				 errdetail("Rate limit \"%s\" is kept there.",
						   SPI_getvalue(SPI_tuptable->vals[0],
										SPI_tuptable->tupdesc, 1)),
				 errhint("Move its rules to another backend with mlint.rate_rule_alter(), or drop them.")));
	remote_changed();
	if (SPI_execute_with_args("DELETE FROM mlint.rate_backend"
							  " WHERE name = $1", 1, types, values, NULL,
							  false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not delete from mlint.rate_backend");
	owner_end(&scope);
	audit(AUDIT_CHANGED, "rate_backend.drop", "rate_backend", name, NULL);
	PG_RETURN_VOID();
}

/* mlint.rate_backend_test(name) */
Datum
mlint_rate_backend_test(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "name");

	audit(AUDIT_DONE, "rate_backend.test", "rate_backend", name, NULL);
	if (strcmp(name, "local") == 0)
		PG_RETURN_TEXT_P(cstring_to_text("this server's memory"));
	PG_RETURN_TEXT_P(cstring_to_text(remote_test(name)));
}

/* ---- what the views show ---- */

/* mlint.rate_backend_options(): of the kinds whose modules are installed. */
Datum
mlint_rate_backend_options(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; remote_kinds[i]; i++)
	{
		const RateRemote *kind = remote_kind(remote_kinds[i], true);

		if (kind == NULL)
			continue;
		option_rows(result, kind->kind, kind->options);
		option_rows(result, kind->kind, remote_options);
	}
	return (Datum) 0;
}

/* mlint.rate_backend_state(id) returns record */
Datum
mlint_rate_backend_state(PG_FUNCTION_ARGS)
{
	RemoteState state;
	TupleDesc	desc;
	Datum		values[6];
	bool		nulls[6] = {0};

	remote_state_copy(PG_GETARG_INT32(0), &state);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(breaker_state_name(state.breaker.state));
	values[1] = TimestampTzGetDatum(state.breaker.retry_at);
	nulls[1] = state.breaker.state != BREAKER_OPEN;
	values[2] = Int64GetDatum(state.failures);
	values[3] = TimestampTzGetDatum(state.last_success_at);
	nulls[3] = state.last_success_at == 0;
	values[4] = CStringGetTextDatum(state.last_error);
	values[5] = TimestampTzGetDatum(state.last_error_at);
	nulls[4] = nulls[5] = state.last_error_at == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
