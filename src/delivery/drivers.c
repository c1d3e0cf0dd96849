/*
 * drivers.c
 *		Which drivers there are, their options, and functions of the user's.
 *
 * A destination's options are those of its driver and those that every
 * destination has; both are tables, parsed into one struct that begins with a
 * DeliveryOptions.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_func.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/varlena.h"

#include "common/compat.h"
#include "common/errors.h"
#include "delivery/driver.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_driver_options);

extern const Driver http_driver;
extern const Driver slack_driver;
extern const Driver discord_driver;
extern const Driver function_driver;
extern const Driver notify_driver;

const Driver *const drivers[] = {
	&http_driver, &slack_driver, &discord_driver, &function_driver,
	&notify_driver, NULL
};

static const Option retry_options[] = {
	RETRY_OPTIONS(DeliveryOptions, retry)
};

static const Option breaker_options[] = {
	BREAKER_OPTIONS(DeliveryOptions, breaker)
};

static const Option delivery_options[] = {
	{"max_in_flight", OPTION_INT, offsetof(DeliveryOptions, max_in_flight),
		"32", 1, WORKER_MAX_IN_FLIGHT, NULL, NULL, false,
	"deliveries to this destination at the same time"},
	{"ordered", OPTION_BOOL, offsetof(DeliveryOptions, ordered),
		"false", 0, 0, NULL, NULL, false,
	"one at a time, in the order of publishing; a retry holds up the rest"},
	{"transform", OPTION_FUNCTION, offsetof(DeliveryOptions, transform),
		NULL, 0, 0, NULL, NULL, false,
	"function (jsonb) returns jsonb that makes the body from the event"},
	{"retry", OPTION_GROUP, 0, NULL, 0, 0, NULL, retry_options, false,
	"when a failed delivery is tried again"},
	{"breaker", OPTION_GROUP, 0, NULL, 0, 0, NULL, breaker_options, false,
	"when a failing destination is left alone"},
	{NULL}
};

const Driver *
driver_find(const char *name)
{
	for (int i = 0; drivers[i]; i++)
	{
		if (strcmp(drivers[i]->name, name) == 0)
			return drivers[i];
	}
	return NULL;
}

void *
driver_parse_options(const Driver *driver, Jsonb *options,
					 const char *destination)
{
	const Option *const tables[] = {driver->options, delivery_options};
	void	   *parsed = palloc0(driver->options_size);

	option_parse(tables, lengthof(tables), options,
				 psprintf("destination \"%s\"", destination), parsed);
	return parsed;
}

bool
driver_runs_sql(const Driver *driver, const void *options)
{
	return driver->execute != NULL ||
		((const DeliveryOptions *) options)->transform != NULL;
}

typedef struct CredentialCheck
{
	Oid			owner;
	const char *destination;
} CredentialCheck;

static void
check_credential(const Credential *credential, const char *option, void *arg)
{
	CredentialCheck *check = arg;

	credential_check(credential, check->owner,
					 psprintf("option \"%s\" of destination \"%s\"", option,
							  check->destination));
}

void
driver_check(const Driver *driver, const void *options, Oid owner,
			 const char *destination)
{
	const Option *const tables[] = {driver->options, delivery_options};
	const DeliveryOptions *common = options;
	CredentialCheck check = {owner, destination};

	option_credentials(tables, lengthof(tables), options, check_credential,
					   &check);
	if (common->transform)
		(void) driver_function(common->transform, JSONBOID, owner,
							   "transform");
	if (driver->check)
		driver->check(options, owner);
}

static void
pg_attribute_noreturn()
may_not_execute(const char *name, Oid owner, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("role \"%s\" may not execute %s(jsonb), which option \"%s\" names",
					GetUserNameFromId(owner, true), name, what),
			 errhint("The function runs as the role that created the destination: grant it EXECUTE on the function and USAGE on its schema.")));
}

/*
 * A function's name as an option has it, "schema.function". Raises; a name
 * that is no name at all is reported as one of this option.
 */
static List *
function_name(const char *name, const char *what)
{
	List	   *raw;
	List	   *names = NIL;
	ListCell   *lc;

	if (!SplitIdentifierString(pstrdup(name), '.', &raw) || raw == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"%s\" must be the name of a function", what),
				 errhint("Write it as schema.function, without arguments; double quotes enclose a name that has other characters than letters, digits and \"_\".")));
	if (list_length(raw) == 1)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"%s\" names the function \"%s\" without its schema",
						what, name),
				 errhint("Write it as schema.function, for example \"public.%s\": the workers have no search_path of yours.",
						 name)));
	if (list_length(raw) > 2)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"%s\" names the function \"%s\" with too many dots",
						what, name),
				 errhint("Write it as schema.function.")));
	foreach(lc, raw)
		names = lappend(names, makeString(pstrdup((char *) lfirst(lc))));
	return names;
}

Oid
driver_function(const char *name, Oid result, Oid owner, const char *what)
{
	List	   *names = function_name(name, what);
	Oid			types[1] = {JSONBOID};
	Oid			schema = get_namespace_oid(strVal(linitial(names)), true);
	Oid			function = InvalidOid;
	HeapTuple	tuple;
	Form_pg_proc proc;

	if (OidIsValid(schema) &&
		mlint_namespace_aclcheck(schema, owner, ACL_USAGE) != ACLCHECK_OK)
		may_not_execute(name, owner, what);
	if (OidIsValid(schema))
		function = LookupFuncName(names, 1, types, true);
	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"%s\": there is no function %s(jsonb)", what,
						name),
				 errhint("It takes one argument of type jsonb, the event%s.",
						 result == JSONBOID ? ", and returns jsonb" : "")));

	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->prokind != PROKIND_FUNCTION || proc->proretset ||
		(OidIsValid(result) && proc->prorettype != result))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"%s\": %s(jsonb) must be a function that returns %s",
						what, name, OidIsValid(result) ?
						format_type_be(result) : "one value")));
	ReleaseSysCache(tuple);

	if (mlint_function_aclcheck(function, owner, ACL_EXECUTE) != ACLCHECK_OK)
		may_not_execute(name, owner, what);
	return function;
}

/* The call itself, as the owner. */
static char *
call_function(Oid function, const char *json, bool want_result)
{
	LOCAL_FCINFO(fcinfo, 1);
	FmgrInfo	flinfo;
	Datum		result;
	ConstraintsSetStmt *constraints = makeNode(ConstraintsSetStmt);

	fmgr_info(function, &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = DirectFunctionCall1(jsonb_in,
												CStringGetDatum(json));
	fcinfo->args[0].isnull = false;

	/*
	 * What it would defer runs at once, as the owner. Only in a worker, where
	 * nothing of anybody else's has been deferred before.
	 */
	if (MyBackendType == B_BG_WORKER)
	{
		constraints->deferred = false;
		AfterTriggerSetState(constraints);
	}
	result = FunctionCallInvoke(fcinfo);
	CommandCounterIncrement();

	if (!want_result || fcinfo->isnull)
		return NULL;
	return DatumGetCString(DirectFunctionCall1(jsonb_out, result));
}

char *
driver_call_function(Oid function, Oid owner, const char *json,
					 int timeout_ms, bool want_result)
{
	Oid			user;
	int			context;
	int			nest;
	char	   *volatile result = NULL;
	bool		timed = MyBackendType == B_BG_WORKER && timeout_ms > 0;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the role that created the destination, whose function is to be called, does not exist any more"),
				 errhint("Drop the destination and create it again as another role.")));

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(owner, context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	nest = NewGUCNestLevel();
	(void) set_config_option("search_path", "\"$user\", public, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (timed)
		enable_timeout_after(STATEMENT_TIMEOUT, timeout_ms);
	PG_TRY();
	{
		result = call_function(function, json, want_result);
	}
	PG_FINALLY();
	{
		if (timed)
		{
			disable_timeout(STATEMENT_TIMEOUT, false);
			/* It may have struck just now: that is not for who comes next. */
			QueryCancelPending = false;
		}
	}
	PG_END_TRY();
	AtEOXact_GUC(false, nest);
	SetUserIdAndSecContext(user, context);
	return result;
}

/* ---- mlint.driver_options() ---- */

typedef struct OptionRows
{
	ReturnSetInfo *result;
	const char *driver;
} OptionRows;

static void
add_option_row(const Option *option, const char *name, void *arg)
{
	OptionRows *rows = arg;
	char	   *bounds = option_bounds(option);
	Datum		values[7];
	bool		nulls[7] = {0};

	values[0] = CStringGetTextDatum(rows->driver);
	values[1] = CStringGetTextDatum(name);
	values[2] = CStringGetTextDatum(option_type_name(option));
	values[3] = option->preset ? CStringGetTextDatum(option->preset) :
		(Datum) 0;
	nulls[3] = option->preset == NULL;
	values[4] = bounds ? CStringGetTextDatum(bounds) : (Datum) 0;
	nulls[4] = bounds == NULL;
	values[5] = BoolGetDatum(option->required);
	values[6] = CStringGetTextDatum(option->help);
	tuplestore_putvalues(rows->result->setResult, rows->result->setDesc,
						 values, nulls);
}

Datum
mlint_driver_options(PG_FUNCTION_ARGS)
{
	OptionRows	rows;

	InitMaterializedSRF(fcinfo, 0);
	rows.result = (ReturnSetInfo *) fcinfo->resultinfo;
	for (int i = 0; drivers[i]; i++)
	{
		rows.driver = drivers[i]->name;
		option_each(drivers[i]->options, add_option_row, &rows);
		option_each(delivery_options, add_option_row, &rows);
	}
	return (Datum) 0;
}
