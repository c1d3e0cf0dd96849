/*
 * argument.c
 *		Arguments of SQL functions that must be there.
 *
 * A function that is STRICT answers null to a null, and does nothing; one that
 * changes something must say so instead.
 */
#include "postgres.h"

#include "common/argument.h"
#include "utils/builtins.h"

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
