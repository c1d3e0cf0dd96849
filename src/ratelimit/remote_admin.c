/*
 * remote_admin.c
 *		Rate backends as an administrator sees them: create, alter, drop,
 *		test, watch.
 *
 * Whatever can be known to be wrong is refused here, which takes the kind's
 * module: it has the table of options. Whoever creates or alters a backend
 * must be allowed to use every credential that it names. A change makes every
 * process connect anew before its next decision; that is entered before the
 * row is written, so that the end of that statement tells this session, too.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/errors.h"
#include "common/owner.h"
#include "ratelimit/remote_store.h"

PG_FUNCTION_INFO_V1(mlint_rate_backend_create);
PG_FUNCTION_INFO_V1(mlint_rate_backend_alter);
PG_FUNCTION_INFO_V1(mlint_rate_backend_drop);
PG_FUNCTION_INFO_V1(mlint_rate_backend_test);
PG_FUNCTION_INFO_V1(mlint_rate_backend_options);
PG_FUNCTION_INFO_V1(mlint_rate_backend_state);

static const ConfiguredKind redis = {.name = "redis"};

static const ConfiguredKind *const kinds[] = {&redis, NULL};

static const Option breaker_options[] = {
	{"threshold", OPTION_INT, offsetof(RemoteOptions, breaker.threshold),
		"5", 0, 1000000, NULL, NULL, false,
	"failures in a row that open the breaker; 0: it never opens"},
	{"timeout_s", OPTION_INT, offsetof(RemoteOptions, breaker.timeout_s),
		"5", 1, 86400, NULL, NULL, false,
	"seconds it stays open before one call is tried"},
	{NULL}
};

static const Option remote_options[] = {
	{"timeout_ms", OPTION_INT, offsetof(RemoteOptions, timeout_ms),
		"250", 1, 60000, NULL, NULL, false,
	"no round trip takes longer, in milliseconds"},
	{"connect_timeout_ms", OPTION_INT,
		offsetof(RemoteOptions, connect_timeout_ms),
		"1000", 1, 60000, NULL, NULL, false,
	"no connection takes longer to make, in milliseconds"},
	{"breaker", OPTION_GROUP, 0, NULL, 0, 0, NULL, breaker_options, false,
	"when a backend that is down is left alone"},
	{NULL}
};

static void
check_backend(const Configured *c, Oid role, const char *action)
{
	((const RateRemote *) c->kind)->check(c->parsed, c->what);
}

static void
check_unused(int32 id, const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	owner_run(NULL,
			  "SELECT name FROM mlint.rate_rule WHERE backend = $1"
			  " ORDER BY name COLLATE \"C\" LIMIT 1", SPI_OK_SELECT, 1, types,
			  values, NULL);
	if (SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("rate backend \"%s\" is in use", name),
				 errdetail("Rate limit \"%s\" is kept there.",
						   SPI_getvalue(SPI_tuptable->vals[0],
										SPI_tuptable->tupdesc, 1)),
				 errhint("Move its rules to another backend with mlint.rate_rule_alter(), or drop them.")));
}

/* 'local' is this server's memory: always there, never a row. */
const ConfiguredSort rate_backends = {
	.noun = "rate backend",
	.identifier = "rate_backend",
	.kinds = kinds,
	.options = remote_options,
	.reserved = "local",
	.reserved_for = "It is this server's memory.",
	.load = remote_load,
	.check = check_backend,
	.check_drop = check_unused
};

/* mlint.rate_backend_create(name, kind, options) */
Datum
mlint_rate_backend_create(PG_FUNCTION_ARGS)
{
	remote_changed();
	(void) configured_create(&rate_backends, fcinfo);
	PG_RETURN_VOID();
}

/* mlint.rate_backend_alter(name, options): merged; null takes one away. */
Datum
mlint_rate_backend_alter(PG_FUNCTION_ARGS)
{
	remote_changed();
	/* What was wrong may be mended. */
	remote_state_reset(configured_alter(&rate_backends, fcinfo));
	PG_RETURN_VOID();
}

/* mlint.rate_backend_drop(name) */
Datum
mlint_rate_backend_drop(PG_FUNCTION_ARGS)
{
	remote_changed();
	(void) configured_drop(&rate_backends, fcinfo);
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
	return configured_options(&rate_backends, fcinfo);
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
