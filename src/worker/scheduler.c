/*
 * scheduler.c
 *		Starts each job when it is due, in a process of its own.
 *
 * A job is a row of mlint.job. The scheduler marks a run as begun, which puts
 * the job off as if it had failed, and starts a job worker; the worker runs
 * the job's command and records how it ended, which puts it back on its
 * interval. So a job whose process is killed is simply late.
 *
 * The command runs as one that a client sends would: at top level, in a portal
 * and a transaction of its own. So a job that has more to do than one
 * transaction should hold is a procedure, and commits as it goes.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/audit.h"
#include "common/compat.h"
#include "common/owner.h"
#include "worker/worker.h"

PGDLLEXPORT void mlint_scheduler_main(Datum main_arg);
PGDLLEXPORT void mlint_job_main(Datum main_arg);

PG_FUNCTION_INFO_V1(mlint_job_run_now);
PG_FUNCTION_INFO_V1(mlint_worker_slots);

#define POLL_MS		60000
/* So long a process may take to start. */
#define START_S		30
/* So often a restore is asked whether it has ended, if nobody says so. */
#define RESTORE_MS	5000
/* A job that finds every place taken is tried again after this. */
#define BUSY_MS		1000
/* So often the log is told that there is no process for a job. */
#define COMPLAIN_MS	60000

/* Is this job running here, or how many jobs are (job 0)? */
static int
jobs_running(int job)
{
	int			n = 0;

	for (int i = 0; i < worker_slot_count(); i++)
	{
		WorkerSlot *slot = worker_slot(i);

		/* One whose process never came to be. */
		if (slot->kind == WORKER_JOB && slot->database == MyDatabaseId &&
			slot->pid == 0 && GetCurrentTimestamp() - slot->started_at >
			START_S * USECS_PER_SEC)
			worker_slot_free(i);
		if (slot->kind == WORKER_JOB && slot->database == MyDatabaseId &&
			(job == 0 || slot->lane == job))
			n++;
	}
	return n;
}

static void
begin_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	worker_check_extension();
	SPI_connect();
}

static void
end_transaction(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* Run a statement whose only parameter is a job. In a transaction. */
static void
run_for_job(const char *sql, int job, int expected)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(job)};

	if (SPI_execute_with_args(sql, 1, types, args, NULL, false,
							  0) != expected)
		elog(ERROR, "could not schedule job %d", job);
}

/* The run that has begun does not take place. */
static void
begin_again(int job)
{
	begin_transaction();
	run_for_job("SELECT mlint.job_begin_again($1)", job, SPI_OK_SELECT);
	end_transaction();
}

/*
 * Requests may come with every transaction while a job waits for its turn. One
 * does for all that we see: the run that it brings begins later than these.
 * Who adds more is not held up.
 */
static void
merge_requests(int job)
{
	run_for_job("DELETE FROM mlint.job_request r WHERE r.job_id = $1"
				" AND r.ctid <> (SELECT o.ctid FROM mlint.job_request o"
				" WHERE o.job_id = $1 ORDER BY o.at LIMIT 1)", job,
				SPI_OK_DELETE);
}

/* Start the process of a job; false when there is no room for one. */
static bool
start_job(int job)
{
	static TimestampTz complained_at = 0;
	BackgroundWorkerHandle *handle;
	TimestampTz now = GetCurrentTimestamp();
	int			index = worker_slot_take(WORKER_JOB, MyDatabaseId, job, 0);

	if (index >= 0 && worker_start(index, &handle))
	{
		pfree(handle);
		return true;
	}
	if ((index >= 0 || !launcher_held(MyDatabaseId)) &&
		now - complained_at >= COMPLAIN_MS * INT64CONST(1000))
	{
		complained_at = now;
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("mlint cannot start a worker for a job: all of max_worker_processes are taken"),
				 errhint("Raise max_worker_processes, or lower mlint.job_workers. The job is tried again every second.")));
	}
	return false;
}

/*
 * Start what is due. Returns milliseconds until there is more to start.
 */
static long
start_due_jobs(void)
{
	long		wait_ms = POLL_MS;
	int			njobs;
	int		   *due;
	int			ndue = 0;
	int		   *running;
	int			nrunning = 0;
	int			room;

	begin_transaction();
	if (restore_under_way())
	{
		bool		again = restore_settle();

		end_transaction();
		return again ? RESTORE_MS : POLL_MS;
	}
	if (SPI_execute("SELECT id, pg_catalog.date_part('epoch', least(next_run_at,"
					" (SELECT greatest(r.at, '1970-01-01') FROM mlint.job_request r"
					" WHERE r.job_id = j.id ORDER BY r.at LIMIT 1))"
					" - pg_catalog.clock_timestamp()) * 1000"
					" FROM mlint.job j WHERE enabled ORDER BY 2",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.job");
	njobs = SPI_processed;
	due = MemoryContextAlloc(TopMemoryContext, sizeof(int) * (njobs + 1));
	running = palloc(sizeof(int) * (njobs + 1));
	for (int i = 0; i < njobs; i++)
	{
		bool		isnull;
		int			job = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
													  SPI_tuptable->tupdesc,
													  1, &isnull));
		double		left = DatumGetFloat8(SPI_getbinval(SPI_tuptable->vals[i],
														SPI_tuptable->tupdesc,
														2, &isnull));

		if (left > 0)
			wait_ms = Min(left + 1, wait_ms);
		else if (jobs_running(job) > 0)
			running[nrunning++] = job;
		else
			due[ndue++] = job;
	}

	room = Max(worker_job_limit - jobs_running(0), 0);
	if (ndue > room)
		wait_ms = Min(wait_ms, BUSY_MS);
	for (int i = 0; i < nrunning; i++)
		merge_requests(running[i]);
	for (int i = room; i < ndue; i++)
		merge_requests(due[i]);
	ndue = Min(ndue, room);
	for (int i = 0; i < ndue; i++)
		run_for_job("SELECT mlint.job_begin($1)", due[i], SPI_OK_SELECT);
	end_transaction();

	/* That it has begun is committed before it can end. */
	for (int i = 0; i < ndue; i++)
	{
		if (start_job(due[i]))
			continue;
		begin_again(due[i]);
		wait_ms = Min(wait_ms, BUSY_MS);
	}
	pfree(due);
	return wait_ms;
}

void
mlint_scheduler_main(Datum main_arg)
{
	worker_enter(main_arg);
	for (;;)
	{
		long		wait_ms;

		(void) worker_interrupts();
		worker_activity("looking for due jobs");
		wait_ms = start_due_jobs();
		worker_idle();
		worker_wait(wait_ms);
	}
}

/* The job's command, and its name for pg_stat_activity; NULL: it is gone. */
static char *
job_command(int job, MemoryContext cxt)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(job)};
	char	   *command = NULL;

	begin_transaction();
	if (SPI_execute_with_args("SELECT command, name FROM mlint.job WHERE id = $1",
							  1, types, args, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.job");
	if (SPI_processed == 1)
	{
		HeapTuple	row = SPI_tuptable->vals[0];

		command = MemoryContextStrdup(cxt, SPI_getvalue(row,
														SPI_tuptable->tupdesc,
														1));
		worker_activity("running job %s",
						SPI_getvalue(row, SPI_tuptable->tupdesc, 2));
	}
	end_transaction();
	return command;
}

/* Run one statement as if a client had sent it; it may be a CALL that commits. */
static void
run_command(const char *command, MemoryContext cxt)
{
	MemoryContext old;
	Portal		portal;
	RawStmt    *statement;
	List	   *plans;
	DestReceiver *receiver = CreateDestReceiver(DestNone);
	QueryCompletion qc;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	/* What a procedure's own commits must not free. */
	old = MemoryContextSwitchTo(cxt);
	PushActiveSnapshot(GetTransactionSnapshot());
	worker_check_extension();
	statement = linitial_node(RawStmt, pg_parse_query(command));
	plans = pg_plan_queries(pg_analyze_and_rewrite_fixedparams(statement,
															   command, NULL,
															   0, NULL),
							command, 0, NULL);
	PopActiveSnapshot();

	portal = CreateNewPortal();
	portal->visible = false;
	PortalDefineQuery(portal, NULL, command,
					  CreateCommandTag(statement->stmt), plans, NULL);
	PortalStart(portal, NULL, 0, InvalidSnapshot);
	(void) mlint_portal_run(portal, receiver, &qc);
	receiver->rDestroy(receiver);
	PortalDrop(portal, false);
	MemoryContextSwitchTo(old);
	CommitTransactionCommand();
}

/* Run the job; NULL, or why it failed (palloc'd in cxt). */
static char *
run_job(int job, MemoryContext cxt)
{
	char	   *message = NULL;

	PG_TRY();
	{
		char	   *command = job_command(job, cxt);

		if (command)
			run_command(command, cxt);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(cxt);
		message = pstrdup(error->message);
	}
	PG_END_TRY();
	return message;
}

void
mlint_job_main(Datum main_arg)
{
	int			job;
	bool		allowed;
	char	   *message;
	Oid			types[2] = {INT4OID, TEXTOID};
	Datum		args[2];
	char		nulls[2] = {' ', ' '};

	worker_enter(main_arg);
	job = MyWorker->lane;
	begin_transaction();
	allowed = restore_hold_off();
	end_transaction();
	if (!allowed)
	{
		begin_again(job);
		worker_wake(WORKER_SCHEDULER);
		proc_exit(0);
	}
	message = run_job(job, TopMemoryContext);

	begin_transaction();
	args[0] = Int32GetDatum(job);
	args[1] = message ? CStringGetTextDatum(message) : (Datum) 0;
	nulls[1] = message ? ' ' : 'n';
	if (SPI_execute_with_args("SELECT mlint.job_end($1, $2)", 2, types, args,
							  nulls, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not record the end of a job");
	end_transaction();
	worker_wake(WORKER_SCHEDULER);
	proc_exit(0);
}

static bool
request(const char *name, TimestampTz at)
{
	static Oid	types[] = {TEXTOID, TIMESTAMPTZOID};
	Datum		args[] = {CStringGetTextDatum(name), TimestampTzGetDatum(at)};
	OwnerScope	scope;
	bool		found;

	owner_begin(&scope);
	owner_run(NULL,
			  "INSERT INTO mlint.job_request (job_id, at)"
			  " SELECT id, $2 FROM mlint.job WHERE name = $1", SPI_OK_INSERT, 2,
			  types, args, NULL);
	found = SPI_processed > 0;
	/* One that had nothing to do so far has now. */
	owner_run(NULL,
			  "UPDATE mlint.job SET enabled = true"
			  " WHERE name = $1 AND NOT enabled", SPI_OK_UPDATE, 1, types, args,
			  NULL);
	owner_end(&scope);
	worker_wake_at_commit(WORKER_SCHEDULER);
	return found;
}

bool
job_request(const char *name)
{
	return request(name, DT_NOBEGIN);
}

bool
job_request_at(const char *name, TimestampTz at)
{
	return request(name, at);
}

/* mlint.job_run_now(name) */
Datum
mlint_job_run_now(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));

	require_writable(fcinfo);
	if (!job_request(name))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" does not exist", name),
				 errhint("The view mlint.jobs lists them.")));
	audit(AUDIT_CHANGED, "job.run", "job", name, NULL);
	PG_RETURN_VOID();
}

/* mlint.worker_slots() */
Datum
mlint_worker_slots(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"", "launcher", "scheduler",
	"auditor", "dispatcher", "job", "gateway"};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < worker_slot_count(); i++)
	{
		WorkerSlot *slot = worker_slot(i);
		WorkerKind	kind = slot->kind;
		Datum		values[13];
		bool		nulls[13] = {0};

		if (kind == WORKER_NONE)
			continue;
		values[0] = Int32GetDatum(slot->pid);
		nulls[0] = slot->pid == 0;
		values[1] = CStringGetTextDatum(names[kind]);
		values[2] = ObjectIdGetDatum(slot->database);
		nulls[2] = kind == WORKER_LAUNCHER || kind == WORKER_GATEWAY;
		values[3] = Int32GetDatum(slot->lane);
		nulls[3] = kind != WORKER_DISPATCHER && kind != WORKER_JOB;
		values[4] = CStringGetTextDatum(slot->pid == 0 ? "starting" :
										"running");
		values[5] = TimestampTzGetDatum(slot->started_at);
		values[6] = TimestampTzGetDatum(slot->active_at);
		nulls[6] = slot->active_at == 0;
		values[7] = Int64GetDatum(slot->wakeups);
		values[8] = Int64GetDatum(slot->batches);
		values[9] = Int64GetDatum(slot->events);
		values[10] = Int64GetDatum(slot->deliveries);
		values[11] = Int32GetDatum(slot->in_flight_count);
		values[12] = Int64GetDatum(slot->memory);
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}
