/*
 * wait.c
 *		event_wait(): sleep until every delivery of an event has ended.
 *
 * All have ended when each dispatcher lane has taken note of the event and
 * nothing is pending for it. Dispatchers broadcast a condition variable when
 * they commit; we look again each time, with a snapshot of our own.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "utils/xid8.h"

#include "common/owner.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_event_wait);

/* Look again after so long even if nobody says that anything has changed. */
#define LOOK_MS	10000

/* Have all deliveries ended? */
static bool
event_ended(int64 event_id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(event_id)};
	OwnerScope	scope;
	bool		isnull;
	bool		ended;
	uint64		xid;
	SPIPlanPtr	plan;

	owner_begin(&scope);
	plan = SPI_prepare("SELECT NOT EXISTS (SELECT FROM mlint.log_cursor c"
					   " WHERE NOT mlint.cursor_covers(c, e.xid, e.id))"
					   " AND NOT EXISTS (SELECT FROM mlint.pending p"
					   " JOIN mlint.destination d ON d.id = p.destination_id"
					   " WHERE p.event_id = e.id AND d.dropped_at IS NULL), e.xid"
					   " FROM mlint.event e WHERE e.id = $1", 1, types);
	if (plan == NULL)
		elog(ERROR, "could not prepare the look at an event");
	if (SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(),
							 InvalidSnapshot, true, false,
							 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look at an event");
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("event " INT64_FORMAT " does not exist", event_id),
				 errdetail("Either it was never published, or the transaction that publishes it has not committed, or it is older than mlint.event_retention.")));
	ended = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, 1, &isnull));
	xid = U64FromFullTransactionId(DatumGetFullTransactionId(SPI_getbinval(SPI_tuptable->vals[0],
																		   SPI_tuptable->tupdesc,
																		   2, &isnull)));
	if (xid == U64FromFullTransactionId(GetTopFullTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("event " INT64_FORMAT " was published by this transaction, which must commit first",
						event_id),
				 errhint("Call mlint.event_wait() in a transaction of its own.")));
	owner_end(&scope);
	return ended;
}

/* mlint.event_wait(event_id, timeout) */
Datum
mlint_event_wait(PG_FUNCTION_ARGS)
{
	int64		event_id = PG_GETARG_INT64(0);
	Interval   *timeout = PG_GETARG_INTERVAL_P(1);
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz deadline =
	DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
											TimestampTzGetDatum(now),
											IntervalPGetDatum(timeout)));
	bool		ended;

	ConditionVariablePrepareToSleep(worker_delivered());
	while (!(ended = event_ended(event_id)))
	{
		long		left = (deadline - GetCurrentTimestamp()) / 1000;

		if (deadline <= GetCurrentTimestamp())
			break;
		(void) ConditionVariableTimedSleep(worker_delivered(),
										   Min(left + 1, LOOK_MS),
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	PG_RETURN_BOOL(ended);
}
