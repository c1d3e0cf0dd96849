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

#include "catalog/pg_authid.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/errors.h"
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

static const ConfiguredKind *const kinds[] = {
	&vault_kind.base, &aws_kind.base, &azure_kind.base, &env_kind.base,
	&file_kind.base, NULL
};

static const Option breaker_options[] = {
	BREAKER_OPTIONS(BackendOptions, breaker)
};

static const Option backend_options[] = {
	{"timeout_ms", OPTION_INT, offsetof(BackendOptions, timeout_ms),
		"5000", 1, 60000, NULL, NULL, false,
	"no call takes longer, in milliseconds"},
	{"cache_ttl_s", OPTION_INT, offsetof(BackendOptions, cache_ttl_s),
		"300", 0, 86400, NULL, NULL, false,
	"seconds for which a value that was read is kept; 0: not at all"},
	{"stale_s", OPTION_INT, offsetof(BackendOptions, stale_s),
		"3600", 0, 604800, NULL, NULL, false,
	"seconds after that in which it is still served while the backend is down"},
	{"breaker", OPTION_GROUP, 0, NULL, 0, 0, NULL, breaker_options, false,
	"when a backend that is down is left alone"},
	{NULL}
};

static void
check_backend(const Configured *c, Oid role, const char *action)
{
	const BackendKind *kind = (const BackendKind *) c->kind;

	if (kind->check(c->parsed, c->what) &&
		!has_privs_of_role(role, ROLE_PG_READ_SERVER_FILES))
	{
		audit(AUDIT_DENIED, action, "secret_backend", c->name, NULL);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to use what belongs to the server for %s",
						c->what),
				 errdetail("With these options a backend of kind \"%s\" uses the server's environment, its files or its machine's identity. Only members of pg_read_server_files may name these.",
						   c->kind->name)));
	}
}

/* 'local' is the store in the database: always there, never a row. */
const ConfiguredSort secret_backends = {
	.noun = "secret backend",
	.identifier = "secret_backend",
	.kinds = kinds,
	.options = backend_options,
	.reserved = "local",
	.reserved_for = "It is the store in this database.",
	.check = check_backend
};

/* mlint.secret_backend_create(name, kind, options) */
Datum
mlint_secret_backend_create(PG_FUNCTION_ARGS)
{
	int32		id = configured_create(&secret_backends, fcinfo);

	/* Ids begin again when the extension is created again. */
	(void) cache_forget(id, NULL, true);
	backend_state_forget(id);
	secret_values_changed();
	(void) job_request("secret_refresh");
	PG_RETURN_VOID();
}

/* mlint.secret_backend_alter(name, options): merged; null takes one away. */
Datum
mlint_secret_backend_alter(PG_FUNCTION_ARGS)
{
	int32		id = configured_alter(&secret_backends, fcinfo);
	BackendState *state;

	(void) cache_forget(id, NULL, false);
	/* What was wrong may be mended. */
	state = backend_state_lock(id);
	breaker_reset(&state->breaker);
	backend_state_unlock(state);
	secret_values_changed();
	PG_RETURN_VOID();
}

/* mlint.secret_backend_drop(name) */
Datum
mlint_secret_backend_drop(PG_FUNCTION_ARGS)
{
	int32		id = configured_drop(&secret_backends, fcinfo);

	(void) cache_forget(id, NULL, false);
	secret_values_changed();
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
		Configured	c;

		if (!configured_find(&secret_backends, name, 0, &c))
			configured_missing(&secret_backends, name);
		id = c.id;
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
	return configured_options(&secret_backends, fcinfo);
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
