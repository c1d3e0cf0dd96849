/*
 * argument.c
 *		Arguments of SQL functions: those that must be there, and what the
 *		audit log gets of the others; and where a function may not be called.
 *
 * A function that is STRICT answers null to a null, and does nothing; one that
 * changes something must say so instead.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/audit.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

void
require_writable(FunctionCallInfo fcinfo)
{
	char	   *name;

	if (!XactReadOnly && !IsInParallelMode())
		return;
	name = psprintf("mlint.%s()", get_func_name(fcinfo->flinfo->fn_oid));
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot execute %s during recovery", name),
				 errhint("This server is a standby: call it on the primary.")));
	PreventCommandIfReadOnly(name);
	PreventCommandIfParallelMode(name);
}

/* The argument must not be null. */
static void
require(FunctionCallInfo fcinfo, int n, const char *what)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
}

char *
required_text(FunctionCallInfo fcinfo, int n, const char *what)
{
	require(fcinfo, n, what);
	return text_to_cstring(PG_GETARG_TEXT_PP(n));
}

pg_uuid_t *
required_uuid(FunctionCallInfo fcinfo, int n, const char *what)
{
	require(fcinfo, n, what);
	return PG_GETARG_UUID_P(n);
}

/* As PostgreSQL writes it unless told otherwise, whatever the session is told. */
static char *
interval_text(const Interval *interval)
{
	struct pg_itm itm;
	char	   *written = palloc(MAXDATELEN + 1);

	interval2itm(*interval, &itm);
	EncodeInterval(&itm, INTSTYLE_POSTGRES, written);
	return written;
}

char *
given_arguments(FunctionCallInfo fcinfo, const RowArgument *arguments, int n)
{
	StringInfoData json;

	initStringInfo(&json);
	for (int i = 1; i < n; i++)
	{
		Oid			type = arguments[i].type;
		Oid			output;
		bool		varlena;
		char	   *text;

		if (PG_ARGISNULL(i))
			continue;
		getTypeOutputInfo(type, &output, &varlena);
		text = type == INTERVALOID ? interval_text(PG_GETARG_INTERVAL_P(i)) :
		OidOutputFunctionCall(output, PG_GETARG_DATUM(i));

		appendStringInfo(&json, "%s\"%s\": ", json.len ? ", " : "{",
						 arguments[i].name);
		if (type == INT8OID || type == INT4OID)
			appendStringInfoString(&json, text);
		else if (type == BOOLOID)
			appendStringInfoString(&json, text[0] == 't' ? "true" : "false");
		else
			escape_json(&json, audit_clip(text));
	}
	if (json.len == 0)
		return NULL;
	appendStringInfoChar(&json, '}');
	return json.data;
}
