/*
 * schedule.c
 *		Archives the sessions that nothing was said in for some days.
 *
 * The job "archival" calls mlint.archival_work(). A run goes through the index
 * on (active_at, id) of the sessions that are not archived, from the oldest to
 * the time before which a session is due, so it reads no other; and only
 * forward, so it meets none twice, also not one that fails. It does that in
 * batches, each a transaction: of batch_size sessions, or fewer when they take
 * more than a second, so that nobody waits for long for a session. Each session
 * is archived in a subtransaction: one that fails is written down, and the rest
 * goes on. What fails for all alike (no master key, no room on the disk, a cancel)
 * breaks the run off.
 *
 * A session and its archive change in the batch's transaction. So a crash
 * loses the batch as a whole, and all that is left of it are sessions that are
 * due.
 *
 * active_at is at most an hour too early. A session is due when it is an hour
 * older than it need be, which makes it certain. One that has had a sign of life
 * since it was found is skipped by archive_session(), which looks once more when
 * it has the session's lock.
 *
 * Between batches the run sleeps for as long as the batch took. Where the
 * machine is busy a batch takes longer, and so does the pause.
 *
 * What a run does is in its row of mlint.archival_run, which each batch brings
 * up to date; that is its progress, and its record when it ends. The process
 * that is at work holds a lock, so there is one at a time; a row that says
 * "running" while nobody holds it is one of a process that died, and whoever
 * has the lock next closes it.
 */
#include "postgres.h"

#include "archive/archive.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/owner.h"
#include "common/rows.h"
#include "common/trial.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "retention/retention.h"
#include "storage/condition_variable.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_archival_set);
PG_FUNCTION_INFO_V1(mlint_archival_run);
PG_FUNCTION_INFO_V1(mlint_archival_wait);
PG_FUNCTION_INFO_V1(mlint_archival_work);

#define JOB				"archival"
#define INTERVAL_MAX	8784	/* hours: a leap year */
#define BATCH_MAX		10000
/* A batch that has taken so long ends. */
#define BATCH_US		USECS_PER_SEC
/* Who waits for a run looks again after so long in any case. */
#define LOOK_MS			1000

/* A run, in the process that is at work. */
typedef struct Run
{
	MemoryContext context;		/* outlives its transactions */
	int64		id;
	ArchiveRequest request;
	int			batch_size;
	TimestampTz due_before;
	/* The last session that it came to. */
	TimestampTz active_at;
	int64		session;
	bool		more;
	int64		worked;			/* microseconds that the last batch took */
	/* What the batch has done. */
	int64		archived;
	int64		failed;
	int64		skipped;
	int64		bytes;
} Run;

/* A session that is due. */
typedef struct Due
{
	int64		id;
	char	   *session_id;
	TimestampTz active_at;
} Due;

static Datum
column(int row, int n, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, n,
						 isnull);
}

/*
 * ---- settings ----
 */

/* An integer argument within bounds. */
static int
required_int(FunctionCallInfo fcinfo, int n, const char *what, int min,
			 int max)
{
	int			value;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
	value = PG_GETARG_INT32(n);
	if (value < min || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between %d and %d", what, min, max),
				 errdetail("It is %d.", value)));
	return value;
}

/* The level exists, and the period is long enough for it. */
static void
check_retention(const char *level, int days)
{
	int			least = retention_level_days(level, NULL);

	if (days < least)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retention_days is less than compliance level \"%s\" demands",
						level),
				 errdetail("It is %d, and the level demands at least %d.",
						   days, least)));
}

/*
 * mlint.archival_set(interval_hours, archive_after_days, retention_days,
 * batch_size, compliance_level, enabled)
 */
Datum
mlint_archival_set(PG_FUNCTION_ARGS)
{
	int			interval_hours = required_int(fcinfo, 0, "interval_hours", 1,
											  INTERVAL_MAX);
	int			after_days = required_int(fcinfo, 1, "archive_after_days", 0,
										  RETENTION_DAYS_MAX);
	int			retention_days = required_int(fcinfo, 2, "retention_days", 1,
											  RETENTION_DAYS_MAX);
	int			batch_size = required_int(fcinfo, 3, "batch_size", 1,
										  BATCH_MAX);
	char	   *level = required_text(fcinfo, 4, "compliance_level");
	bool		enabled;
	OwnerScope	scope;
	StringInfoData details;
	Oid			types[] = {INT4OID, INT4OID, INT4OID, INT4OID, TEXTOID,
	BOOLOID, TEXTOID};
	Datum		values[7];

	require_writable(fcinfo);
	if (PG_ARGISNULL(5))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("enabled must not be null")));
	enabled = PG_GETARG_BOOL(5);

	check_retention(level, retention_days);
	owner_begin(&scope);
	values[0] = Int32GetDatum(interval_hours);
	values[1] = Int32GetDatum(after_days);
	values[2] = Int32GetDatum(retention_days);
	values[3] = Int32GetDatum(batch_size);
	values[4] = CStringGetTextDatum(level);
	values[5] = BoolGetDatum(enabled);
	values[6] = CStringGetTextDatum(GetUserNameFromId(scope.user, false));
	owner_run(NULL,
			  "INSERT INTO mlint.archival (interval_hours, archive_after_days,"
			  " retention_days, batch_size, compliance, enabled, set_by)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7)"
			  " ON CONFLICT (one) DO UPDATE SET interval_hours = $1,"
			  " archive_after_days = $2, retention_days = $3, batch_size = $4,"
			  " compliance = $5, enabled = $6, set_by = $7,"
			  " set_at = pg_catalog.clock_timestamp()",
			  SPI_OK_INSERT, 7, types, values, NULL);
	owner_end(&scope);

	initStringInfo(&details);
	appendStringInfo(&details, "{\"interval_hours\": %d, \"archive_after_days\": %d,"
					 " \"retention_days\": %d, \"batch_size\": %d, \"compliance_level\": ",
					 interval_hours, after_days, retention_days, batch_size);
	escape_json(&details, level);
	appendStringInfo(&details, ", \"enabled\": %s}",
					 enabled ? "true" : "false");
	audit(AUDIT_CHANGED, "archival.set", "archival", NULL, details.data);
	worker_wake_at_commit(WORKER_SCHEDULER);
	PG_RETURN_VOID();
}

/*
 * mlint.archival_run(): the row of the run to come, or of one that was asked
 * for before and has not begun.
 */
Datum
mlint_archival_run(PG_FUNCTION_ARGS)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[1];
	bool		asked;
	bool		isnull;
	int64		id;

	require_writable(fcinfo);
	owner_begin(&scope);
	/* Held, so that nobody disables the job before it has our request. */
	owner_run(NULL,
			  "SELECT FROM mlint.archival FOR SHARE", SPI_OK_SELECT, 0, NULL,
			  NULL, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the archival scheduler has no settings"),
				 errhint("Say which sessions are due with mlint.archival_set(); with enabled => false, runs begin only when asked for.")));
	owner_run(NULL,
			  "SELECT r.id FROM mlint.archival_run r WHERE r.state = 'requested'"
			  " FOR UPDATE", SPI_OK_SELECT, 0, NULL, NULL, NULL);
	asked = SPI_processed > 0;
	/* Somebody may do the same: then the update, of nothing, returns that. */
	values[0] = CStringGetTextDatum(GetUserNameFromId(scope.user, false));
	if (!asked)
		owner_run(NULL,
				  "INSERT INTO mlint.archival_run AS r (state, requested_by)"
				  " VALUES ('requested', $1)"
				  " ON CONFLICT (state) WHERE state = 'requested'"
				  " DO UPDATE SET requested_by = r.requested_by RETURNING r.id",
				  SPI_OK_INSERT_RETURNING, 1, types, values, NULL);
	id = DatumGetInt64(column(0, 1, &isnull));
	owner_end(&scope);
	if (!asked)
		(void) job_request(JOB);
	audit(AUDIT_CHANGED, "archival.run", "archival", NULL, NULL);
	PG_RETURN_INT64(id);
}

/* Has the run ended? What is committed now counts. */
static bool
run_ended(int64 id)
{
	OwnerScope	scope;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	SPIPlanPtr	plan;
	bool		isnull;
	bool		ended;

	owner_begin(&scope);
	plan = SPI_prepare("SELECT r.finished_at IS NOT NULL"
					   " FROM mlint.archival_run r WHERE r.id = $1", 1, types);
	if (plan == NULL ||
		SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(),
							 InvalidSnapshot, true, false,
							 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look at a run");
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("run " INT64_FORMAT " of the archival scheduler does not exist", id),
				 errhint("The transaction that calls mlint.archival_run() must commit first.")));
	ended = DatumGetBool(column(0, 1, &isnull));
	owner_end(&scope);
	return ended;
}

/* mlint.archival_wait(run, timeout) */
Datum
mlint_archival_wait(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	TimestampTz deadline =
	DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
											TimestampTzGetDatum(GetCurrentTimestamp()),
											PG_GETARG_DATUM(1)));
	bool		ended;

	ConditionVariablePrepareToSleep(worker_delivered());
	while (!(ended = run_ended(id)))
	{
		TimestampTz now = GetCurrentTimestamp();

		if (deadline <= now)
			break;
		(void) ConditionVariableTimedSleep(worker_delivered(),
										   Min((deadline - now) / 1000 + 1,
											   LOOK_MS),
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	PG_RETURN_BOOL(ended);
}

/*
 * ---- a run ----
 */

/* One process at a time. False: there is another. */
static bool
run_lock(LOCKTAG *tag)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, RelationRelationId,
					   mlint_relation("archival_run"), 1);
	return LockAcquire(tag, ExclusiveLock, true, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Runs whose process died; are there any? Their last batch is when they were
 * last seen. In an owner scope.
 */
static bool
close_crashed(void)
{
	owner_run(NULL,
			  "WITH dead AS (UPDATE mlint.archival_run r SET state = 'crashed',"
			  " finished_at = coalesce(r.updated_at, r.started_at),"
			  " error = 'its process or the server died'"
			  " WHERE r.state = 'running' RETURNING r.*)"
			  " SELECT mlint.publish('archival.failed',"
			  " pg_catalog.jsonb_build_object('run', id, 'error', error,"
			  " 'archived', archived, 'failed', failed, 'skipped', skipped))"
			  " FROM dead ORDER BY id", SPI_OK_SELECT, 0, NULL, NULL, NULL);
	return SPI_processed > 0;
}

/*
 * Nothing is to run by itself: disable the job, unless a run is asked for; who
 * asks holds the settings. In an owner scope.
 */
static void
job_rest(void)
{
	owner_run(NULL,
			  "SELECT FROM mlint.archival FOR UPDATE SKIP LOCKED",
			  SPI_OK_SELECT, 0, NULL, NULL, NULL);
	if (SPI_processed > 0)
		owner_run(NULL,
				  "UPDATE mlint.job SET enabled = false"
				  " WHERE name = '" JOB "' AND enabled"
				  " AND NOT EXISTS (SELECT FROM mlint.archival WHERE enabled)"
				  " AND NOT EXISTS (SELECT FROM mlint.archival_run"
				  " WHERE state = 'requested')", SPI_OK_UPDATE, 0, NULL, NULL,
				  NULL);
}

/* Failures of what is archived or gone by now. In an owner scope. */
static void
sweep_failures(void)
{
	owner_run(NULL,
			  "DELETE FROM mlint.archival_failure f WHERE NOT EXISTS"
			  " (SELECT FROM mlint.session s WHERE s.id = f.session"
			  " AND s.status <> 'archived')", SPI_OK_DELETE, 0, NULL, NULL,
			  NULL);
}

/*
 * Close what died, and begin a run: one that was asked for, that is due, or that
 * does what one that died has left. Its id stays 0 when there is none to begin.
 */
static void
run_begin(Run *run)
{
	OwnerScope	scope;
	Oid			types[] = {INT4OID, TIMESTAMPTZOID};
	Oid			left_type[] = {BOOLOID};
	Datum		values[2];
	Datum		left;
	bool		isnull;

	/* On disk: a crash from here on is one of this run. */
	job_commit_durably();
	owner_begin(&scope);
	left = BoolGetDatum(close_crashed());
	sweep_failures();
	owner_run(NULL,
			  "SELECT a.batch_size, a.retention_days, a.compliance,"
			  " pg_catalog.clock_timestamp() - pg_catalog.make_interval("
			  "hours => a.archive_after_days * 24 + 1) FROM mlint.archival a"
			  " WHERE a.enabled OR $1 OR EXISTS (SELECT FROM mlint.archival_run"
			  " WHERE state = 'requested')",
			  SPI_OK_SELECT, 1, left_type, &left, NULL);
	if (SPI_processed == 0)
	{
		job_rest();
		owner_end(&scope);
		return;
	}
	run->batch_size = DatumGetInt32(column(0, 1, &isnull));
	run->request.retention_days = DatumGetInt32(column(0, 2, &isnull));
	run->request.compliance =
		MemoryContextStrdup(run->context,
							TextDatumGetCString(column(0, 3, &isnull)));
	run->due_before = DatumGetTimestampTz(column(0, 4, &isnull));
	run->active_at = DT_NOBEGIN;
	run->more = true;

	values[0] = Int32GetDatum(MyProcPid);
	values[1] = TimestampTzGetDatum(run->due_before);
	owner_run(NULL,
			  "UPDATE mlint.archival_run SET state = 'running', pid = $1,"
			  " started_at = pg_catalog.clock_timestamp(), due_before = $2"
			  " WHERE state = 'requested' RETURNING id",
			  SPI_OK_UPDATE_RETURNING, 2, types, values, NULL);
	if (SPI_processed == 0)
		owner_run(NULL,
				  "INSERT INTO mlint.archival_run (state, pid, started_at, due_before)"
				  " VALUES ('running', $1, pg_catalog.clock_timestamp(), $2)"
				  " RETURNING id", SPI_OK_INSERT_RETURNING, 2, types, values,
				  NULL);
	run->id = DatumGetInt64(column(0, 1, &isnull));
	owner_end(&scope);
}

/* In an owner scope: nothing but the index, whatever the planner believes. */
static void
by_index_only(void)
{
	static const char *const others[] = {"enable_seqscan",
	"enable_bitmapscan", "enable_sort"};

	for (int i = 0; i < lengthof(others); i++)
		(void) set_config_option(others[i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
}

/* How many are due. */
static void
run_count(Run *run)
{
	OwnerScope	scope;
	Oid			types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(run->id),
	TimestampTzGetDatum(run->due_before)};

	owner_begin(&scope);
	by_index_only();
	owner_run(NULL,
			  "UPDATE mlint.archival_run SET due = (SELECT pg_catalog.count(*)"
			  " FROM mlint.session s"
			  " WHERE s.status <> 'archived' AND s.active_at < $2),"
			  " updated_at = pg_catalog.clock_timestamp() WHERE id = $1",
			  SPI_OK_UPDATE, 2, types, values, NULL);
	owner_end(&scope);
}

/* The next sessions that are due, in the current context. */
static Due *
next_due(const Run *run, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	OwnerScope	scope;
	Oid			types[] = {TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT4OID};
	Datum		values[] = {TimestampTzGetDatum(run->active_at),
		Int64GetDatum(run->session), TimestampTzGetDatum(run->due_before),
	Int32GetDatum(run->batch_size)};
	Due		   *due;
	bool		isnull;

	owner_begin(&scope);
	by_index_only();
	owner_run(NULL,
			  "SELECT s.id, s.session_id, s.active_at FROM mlint.session s"
			  " WHERE s.status <> 'archived' AND s.active_at < $3"
			  " AND (s.active_at, s.id) > ($1, $2)"
			  " ORDER BY s.active_at, s.id LIMIT $4",
			  SPI_OK_SELECT, 4, types, values, NULL);
	*n = SPI_processed;
	due = MemoryContextAlloc(context, sizeof(Due) * (*n + 1));
	for (int i = 0; i < *n; i++)
	{
		due[i].id = DatumGetInt64(column(i, 1, &isnull));
		due[i].session_id =
			MemoryContextStrdup(context,
								TextDatumGetCString(column(i, 2, &isnull)));
		due[i].active_at = DatumGetTimestampTz(column(i, 3, &isnull));
	}
	owner_end(&scope);
	return due;
}

/* Does it say something about all sessions? */
static bool
fails_for_all(const ErrorData *error)
{
	switch (error->sqlerrcode)
	{
		case ERRCODE_MLINT_MASTER_KEY:
		case ERRCODE_MLINT_AUDIT:
		case ERRCODE_DISK_FULL:
			return true;
		default:
			return ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
				ERRCODE_OPERATOR_INTERVENTION;
	}
}

/* Write down that a session could not be archived. */
static void
record_failure(const Run *run, const Due *due, const ErrorData *error)
{
	Oid			types[] = {INT8OID, INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(due->id), Int64GetDatum(run->id),
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode)),
	CStringGetTextDatum(error->message ? error->message : "")};

	owner_do(NULL,
			 "INSERT INTO mlint.archival_failure AS f"
			 " (session, run, failed_at, sqlstate, error)"
			 " VALUES ($1, $2, pg_catalog.clock_timestamp(), $3, $4)"
			 " ON CONFLICT (session) DO UPDATE SET run = $2,"
			 " failures = f.failures + 1,"
			 " failed_at = pg_catalog.clock_timestamp(), sqlstate = $3,"
			 " error = $4", SPI_OK_INSERT, 4, types, values, NULL);
}

/* Archive one session, if it can be; else write down why not. */
static void
archive_one(Run *run, const Due *due)
{
	Trial		trial;
	ErrorData  *volatile error = NULL;

	trial_begin(&trial);
	PG_TRY();
	{
		pg_uuid_t	id;
		int64		bytes;
		ArchiveResult result;

		PushActiveSnapshot(GetTransactionSnapshot());
		result = archive_session(due->session_id, &run->request, true,
								 run->due_before, &id, &bytes);
		PopActiveSnapshot();
		INJECTION("archival-session");
		trial_end(&trial);
		if (result == ARCHIVE_DONE)
		{
			run->archived++;
			run->bytes += bytes;
		}
		else
			run->skipped++;
	}
	PG_CATCH();
	{
		error = trial_failed(&trial);
	}
	PG_END_TRY();
	if (error == NULL)
		return;
	if (fails_for_all(error))
		ReThrowError(error);
	run->failed++;
	record_failure(run, due, error);
}

/* Add what a batch has done to the run's row. */
static void
record_batch(Run *run)
{
	Oid			types[] = {INT8OID, INT8OID, INT8OID, INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(run->id),
		Int64GetDatum(run->archived), Int64GetDatum(run->failed),
	Int64GetDatum(run->skipped), Int64GetDatum(run->bytes)};

	owner_do(NULL,
			 "UPDATE mlint.archival_run SET archived = archived + $2,"
			 " failed = failed + $3, skipped = skipped + $4,"
			 " bytes = bytes + $5, batches = batches + 1,"
			 " updated_at = pg_catalog.clock_timestamp() WHERE id = $1",
			 SPI_OK_UPDATE, 5, types, values, NULL);
	run->archived = run->failed = run->skipped = run->bytes = 0;
}

/* One batch. */
static void
run_batch(Run *run)
{
	MemoryContext batch = CurrentMemoryContext;
	MemoryContext each = AllocSetContextCreate(batch, "mlint archival",
											   ALLOCSET_DEFAULT_SIZES);
	TimestampTz began = GetCurrentTimestamp();
	int			n;
	Due		   *due = next_due(run, &n);
	int			done = 0;

	while (done < n)
	{
		MemoryContextSwitchTo(each);
		archive_one(run, &due[done]);
		MemoryContextSwitchTo(batch);
		MemoryContextReset(each);
		run->active_at = due[done].active_at;
		run->session = due[done].id;
		done++;
		INJECTION(psprintf("archival-after-%d", done));
		CHECK_FOR_INTERRUPTS();
		if (GetCurrentTimestamp() - began > BATCH_US)
			break;
	}
	MemoryContextDelete(each);
	run->more = done < n || n == run->batch_size;
	if (done > 0)
		record_batch(run);
	INJECTION("archival-before-commit");
}

/* As long asleep as at work. */
static void
run_pause(Run *run)
{
	(void) DirectFunctionCall1(pg_sleep,
							   Float8GetDatum(run->worked /
											  (double) USECS_PER_SEC));
}

/* The last transaction of a run. */
static void
run_end(const Run *run, const char *error)
{
	OwnerScope	scope;
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(run->id),
	error ? CStringGetTextDatum(error) : (Datum) 0};

	owner_begin(&scope);
	owner_run(NULL,
			  "WITH ended AS (UPDATE mlint.archival_run r"
			  " SET state = CASE WHEN $2 IS NULL THEN 'completed' ELSE 'failed' END,"
			  " finished_at = pg_catalog.clock_timestamp(), error = $2"
			  " WHERE r.id = $1 RETURNING r.*)"
			  " SELECT mlint.publish('archival.' || e.state,"
			  " pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object("
			  "'run', e.id, 'error', e.error, 'archived', e.archived,"
			  " 'failed', e.failed, 'skipped', e.skipped, 'bytes', e.bytes,"
			  " 'duration_ms', (pg_catalog.date_part('epoch',"
			  " e.finished_at - e.started_at) * 1000)::bigint))) FROM ended e",
			  SPI_OK_SELECT, 2, types, values, error ? "  " : " n");
	sweep_failures();
	job_rest();
	owner_end(&scope);
}

/*
 * One step, with what it allocates in a context that goes with its transaction.
 * When it fails, its work is undone, and the error is returned in the run's
 * context.
 */
static ErrorData *
run_step(void (*step) (Run *run), Run *run)
{
	ErrorData  *volatile error = NULL;
	Trial		trial;

	MemoryContextSwitchTo(run->context);
	trial_begin(&trial);
	PG_TRY();
	{
		MemoryContextSwitchTo(TopTransactionContext);
		step(run);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		error = trial_failed(&trial);
	}
	PG_END_TRY();
	return error;
}

/* All of a run. */
static void
run_all(Run *run)
{
	ErrorData  *error;

	run_begin(run);
	SPI_commit();
	if (run->id == 0)
		return;

	error = run_step(run_count, run);
	SPI_commit();
	while (error == NULL && run->more)
	{
		TimestampTz began = GetCurrentTimestamp();

		error = run_step(run_batch, run);
		SPI_commit();
		INJECTION("archival-after-commit");
		run->worked = GetCurrentTimestamp() - began;
		if (error == NULL && run->more)
			error = run_step(run_pause, run);
	}

	run_end(run, error ? error->message : NULL);
	SPI_commit();
	ConditionVariableBroadcast(worker_delivered());
	/* The job is tried again, but not against whoever cancelled it. */
	if (error && error->sqlerrcode != ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
}

/* CALL mlint.archival_work() */
Datum
mlint_archival_work(PG_FUNCTION_ARGS)
{
	Run			run = {.context = CurrentMemoryContext};
	LOCKTAG		lock;

	require_writable(fcinfo);
	job_procedure_begin(fcinfo, "mlint.archival_work()",
						"It is the job archival; SELECT mlint.archival_run() has it run now.");
	if (!run_lock(&lock))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("a run of the archival scheduler is going on already"),
				 errhint("The view mlint.archival_progress shows it.")));
	PG_TRY();
	{
		run_all(&run);
	}
	PG_FINALLY();
	{
		LockRelease(&lock, ExclusiveLock, true);
	}
	PG_END_TRY();
	job_procedure_end();
	PG_RETURN_VOID();
}
