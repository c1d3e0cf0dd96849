/*
 * userfunction.c
 *		Look up, permit and call what an option names; see userfunction.h.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_func.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/varlena.h"

#include "common/audit.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/role.h"
#include "common/userfunction.h"

static LOCKTAG kept;
static LOCKMODE kept_mode = NoLock;

static void
pg_attribute_noreturn()
may_not_execute(const char *name, const UserFunctionKind *kind, Oid owner,
				const char *what)
{
	StringInfoData details;

	initStringInfo(&details);
	appendStringInfoString(&details, "{\"for\": ");
	escape_json(&details, what);
	appendStringInfoString(&details, ", \"role\": ");
	escape_json(&details, GetUserNameFromId(owner, false));
	appendStringInfoChar(&details, '}');
	audit(AUDIT_DENIED, "function.use", "function", name, details.data);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("role \"%s\" may not execute %s(%s), which option \"%s\" names",
					GetUserNameFromId(owner, true), name, kind->shown, what),
			 errhint("The function runs as the role that %s: grant it EXECUTE on the function and USAGE on its schema.",
					 kind->owner_did)));
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
user_function(const char *name, const UserFunctionKind *kind, Oid result,
			  Oid owner, const char *what, bool missing_ok)
{
	List	   *names = function_name(name, what);
	Oid			schema = get_namespace_oid(strVal(linitial(names)), true);
	Oid			function = InvalidOid;
	HeapTuple	tuple;
	Form_pg_proc proc;

	role_require(owner, kind->owner_did);
	if (OidIsValid(schema) &&
		mlint_namespace_aclcheck(schema, owner, ACL_USAGE) != ACLCHECK_OK)
		may_not_execute(name, kind, owner, what);
	if (OidIsValid(schema))
		function = LookupFuncName(names, kind->nargs, kind->types, true);
	if (!OidIsValid(function) && missing_ok)
		return InvalidOid;
	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"%s\": there is no function %s(%s)", what,
						name, kind->shown),
				 OidIsValid(result) ?
				 errhint("It takes %s, and returns %s.", kind->takes,
						 format_type_be(result)) :
				 errhint("It takes %s.", kind->takes)));

	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->prokind != PROKIND_FUNCTION || proc->proretset ||
		(OidIsValid(result) && proc->prorettype != result))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"%s\": %s(%s) must be a function that returns %s",
						what, name, kind->shown, OidIsValid(result) ?
						format_type_be(result) : "one value")));
	ReleaseSysCache(tuple);

	if (mlint_function_aclcheck(function, owner, ACL_EXECUTE) != ACLCHECK_OK)
		may_not_execute(name, kind, owner, what);
	return function;
}

/* The call itself, as the owner. */
static Datum
invoke(Oid function, int nargs, const Datum *args, bool *isnull)
{
	LOCAL_FCINFO(fcinfo, FUNC_MAX_ARGS);
	FmgrInfo	flinfo;
	Datum		result;
	ConstraintsSetStmt *constraints = makeNode(ConstraintsSetStmt);

	fmgr_info(function, &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, nargs, InvalidOid,
							 NULL, NULL);
	for (int i = 0; i < nargs; i++)
	{
		fcinfo->args[i].value = args[i];
		fcinfo->args[i].isnull = false;
	}

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
	*isnull = fcinfo->isnull;
	return result;
}

void
user_function_keeps(const LOCKTAG *tag, LOCKMODE mode)
{
	kept = *tag;
	kept_mode = mode;
}

/*
 * What a function locks as the session (pg_advisory_lock()), and leaves locked
 * when it fails, must not stay so for as long as this process lives; and it must
 * not unlock what we keep (pg_advisory_unlock_all()). Both act on locks of the
 * session only. So the transaction has ours too meanwhile, and after, when all of
 * the session's were let go, the session has it again, which neither waits nor
 * fails.
 */
static void
begin_locks(void)
{
	if (kept_mode != NoLock)
		(void) LockAcquire(&kept, kept_mode, false, false);
}

static void
end_locks(void)
{
	if (kept_mode == NoLock)
		return;
	LockReleaseSession(USER_LOCKMETHOD);
	(void) LockAcquire(&kept, kept_mode, true, false);
}

Datum
user_function_call(Oid function, const UserFunctionKind *kind, Oid owner,
				   const Datum *args, int timeout_ms, bool *isnull)
{
	Oid			user;
	int			context;
	int			nest;
	volatile Datum result = (Datum) 0;
	bool		timed = MyBackendType == B_BG_WORKER && timeout_ms > 0;

	role_require(owner, kind->owner_did);
	begin_locks();
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
		result = invoke(function, kind->nargs, args, isnull);
	}
	PG_FINALLY();
	{
		end_locks();
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
