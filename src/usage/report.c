/*
 * report.c
 *		session_usage() and model_usage(): the totals and the rest, added up.
 *
 * They are STABLE: what the calling statement sees is what they report, on a
 * standby too.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "common/argument.h"
#include "common/owner.h"
#include "sessions/sessions.h"
#include "usage/usage.h"
#include "usage/usagelog.h"

PG_FUNCTION_INFO_V1(mlint_session_usage);
PG_FUNCTION_INFO_V1(mlint_model_usage);

/* A mlint.usage_stats. */
static Datum
report(char scope, const char *name, TimestampTz from, TimestampTz to)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[4] = {CharGetDatum(scope), CStringGetTextDatum(name),
	TimestampTzGetDatum(from), TimestampTzGetDatum(to)};
	OwnerScope	owner;
	Datum		stats;
	bool		isnull;

	owner_begin(&owner);
	if (!plan)
	{
		Oid			types[4] = {CHAROID, TEXTOID, TIMESTAMPTZOID,
		TIMESTAMPTZOID};
		SPIPlanPtr	made = SPI_prepare("SELECT mlint.usage_report($1, $2, $3, $4)",
									   4, types);

		if (!made || SPI_keepplan(made) != 0)
			elog(ERROR, "could not prepare a report of usage");
		plan = made;
	}
	if (SPI_execute_plan(plan, args, NULL, true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not report usage");
	stats = SPI_datumTransfer(SPI_getbinval(SPI_tuptable->vals[0],
											SPI_tuptable->tupdesc, 1,
											&isnull), false, -1);
	owner_end(&owner);
	return stats;
}

/* mlint.session_usage(session_id) */
Datum
mlint_session_usage(PG_FUNCTION_ARGS)
{
	char	   *session_id = required_text(fcinfo, 0, "session_id");
	UsageSession session;

	if (!usage_session(session_id, 0, false, &session))
		session_unknown(session_id);
	PG_RETURN_DATUM(report(USAGE_OF_SESSION,
						   psprintf(INT64_FORMAT, session.id),
						   DT_NOBEGIN, DT_NOEND));
}

/* The whole hour at or before a time; or at or after it. */
static TimestampTz
whole_hour(TimestampTz at, bool after)
{
	int64		into = at % USECS_PER_HOUR;

	if (TIMESTAMP_NOT_FINITE(at) || into == 0)
		return at;
	if (into < 0)
		into += USECS_PER_HOUR;
	return at - into + (after ? USECS_PER_HOUR : 0);
}

/* mlint.model_usage(model_id, from, to) */
Datum
mlint_model_usage(PG_FUNCTION_ARGS)
{
	char	   *model_id = required_text(fcinfo, 0, "model_id");
	TimestampTz from = PG_ARGISNULL(1) ? DT_NOBEGIN :
	PG_GETARG_TIMESTAMPTZ(1);
	TimestampTz to = PG_ARGISNULL(2) ? DT_NOEND : PG_GETARG_TIMESTAMPTZ(2);

	if (from > to)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("from must not be later than to")));
	PG_RETURN_DATUM(report(USAGE_OF_MODEL, model_id, whole_hour(from, false),
						   whole_hour(to, true)));
}
