/*
 * restore.c
 *		Keep the workers from rows of a dump until all of them are there.
 *
 * pg_restore and psql fill our tables one after the other, in several sessions
 * if asked to, in an order that has nothing to do with how the tables belong
 * together. A worker that looked in between would find an archive whose holds
 * are yet to come. So there is a fence, which has two parts.
 *
 * One is a lock. Every table that is in a dump has a trigger on INSERT, which
 * lets pass what is ours: what a function or a procedure does, and our workers.
 * A COPY or an INSERT that comes from a session directly is a restore, and that
 * session takes the lock, in a mode that others of its kind can have too, and
 * keeps it until it ends. The first of them waits for jobs that are running,
 * which hold it in another mode.
 *
 * The other is a row of mlint.restore, written in the transaction that restores
 * rows, so that it is seen when they are. For a session may end, and the server
 * crash, before all is there. What the dump had is in the dump, mlint.dump: how
 * many rows of which table. When the last session has let go of the lock, the
 * scheduler compares; only when nothing lacks does it settle what came in, and
 * delete the row, and all go on.
 *
 * The trigger also has the statement's foreign keys unchecked: the dump was
 * consistent, and sessions that restore at the same time don't wait for each
 * other. Our triggers that matter to a restore are enabled ALWAYS.
 *
 * A worker reads a counter in shared memory, after having taken its snapshot,
 * and looks closer only when that has moved: what a snapshot sees of a restore
 * was counted before.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "common/argument.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "tcop/cmdtag.h"
#include "utils/guc.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/owner.h"
#include "common/userfunction.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_restore_fence);
PG_FUNCTION_INFO_V1(mlint_restore_accept);

/* A restorer has the one, who must not meet one the other. */
#define RESTORING	RowExclusiveLock
#define WORKING		ShareLock

static void
restore_locktag(LOCKTAG *tag)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, WORKER_LOCK_RESTORE,
						 WORKER_LOCK_CLASS);
}

static bool
lock_fence(LOCKMODE mode, bool session, bool wait)
{
	LOCKTAG		tag;

	restore_locktag(&tag);
	return LockAcquire(&tag, mode, session, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

/* ---- who restores ---- */

/* Our lock has just been released: whoever waited for that may look. */
static void
wake_at_exit(int code, Datum arg)
{
	worker_wake(WORKER_SCHEDULER);
	worker_wake(WORKER_DISPATCHER);
}

/*
 * The transaction has the lock, too: pg_advisory_unlock_all() takes it from the
 * session only, and rows of a transaction that is prepared would come when
 * nobody expects them (PREPARE refuses a lock that both have).
 */
static void
close_fence(void)
{
	static bool wakes = false;
	LOCKTAG		tag;
	bool		held;

	restore_locktag(&tag);
	held = mlint_lock_held(&tag, RESTORING);
	(void) lock_fence(RESTORING, false, true);
	if (held)
		return;
	(void) lock_fence(RESTORING, true, true);
	pg_atomic_fetch_add_u64(worker_restores(), 1);
	if (!wakes)
		on_shmem_exit(wake_at_exit, (Datum) 0);
	wakes = true;
}

/* What the session has been sent: of what a function does, its call. */
static CommandTag
statement_tag(void)
{
	return ActivePortal ? ActivePortal->commandTag : CMDTAG_UNKNOWN;
}

/*
 * Our functions have become another user by then (owner.c, SECURITY DEFINER),
 * whatever it is that calls them; those that have not, only a superuser calls.
 */
static bool
is_restore(void)
{
	CommandTag	tag = statement_tag();
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	return !(context & SECURITY_LOCAL_USERID_CHANGE) && !MyWorker &&
		!creating_extension && (tag == CMDTAG_COPY || tag == CMDTAG_INSERT);
}

/* Rows that come by COPY are a dump's, of which a list must come too. */
static void
note_restore(void)
{
	static SPIPlanPtr plan = NULL;
	static Oid	types[] = {BOOLOID};
	Datum		values[] = {BoolGetDatum(statement_tag() == CMDTAG_COPY)};
	OwnerScope	scope;

	owner_begin(&scope);
	owner_run(&plan,
			  "INSERT INTO mlint.restore (copied) SELECT $1 WHERE NOT EXISTS"
			  " (SELECT FROM mlint.restore r WHERE r.copied OR NOT $1)",
			  SPI_OK_INSERT, 1, types, values, NULL);
	owner_end(&scope);
}

/*
 * Only until the statement ends, however it does. The table tells one statement
 * from another that a trigger of it runs.
 */
static void
check_foreign_keys(Oid table, bool check)
{
	static Oid	unchecked = InvalidOid;
	static int	role;
	static const char *const names[] = {
		[SESSION_REPLICATION_ROLE_ORIGIN] = "origin",
		[SESSION_REPLICATION_ROLE_REPLICA] = "replica",
		[SESSION_REPLICATION_ROLE_LOCAL] = "local",
	};

	/* A statement that failed leaves its table behind, but not the setting. */
	if (check ? unchecked != table :
		SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		return;
	if (!check)
		role = SessionReplicationRole;
	unchecked = check ? InvalidOid : table;
	(void) set_config_option("session_replication_role",
							 check ? names[role] : "replica",
							 PGC_SUSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true,
							 0, false);
}

/* The trigger of every table that is in a dump, at both ends of an INSERT. */
Datum
mlint_restore_fence(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "mlint.restore_fence() is a trigger");
	if (!is_restore())
		return PointerGetDatum(NULL);
	if (TRIGGER_FIRED_BEFORE(trigger->tg_event))
	{
		close_fence();
		note_restore();
	}
	check_foreign_keys(RelationGetRelid(trigger->tg_relation),
					   !TRIGGER_FIRED_BEFORE(trigger->tg_event));
	return PointerGetDatum(NULL);
}

/* ---- who must not meet a restore ---- */

/* Are rows there that are not settled, as of now? In SPI. */
static bool
unsettled(void)
{
	bool		found;

	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute("SELECT FROM mlint.restore", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.restore");
	found = SPI_processed > 0;
	PopActiveSnapshot();
	return found;
}

bool
restore_under_way(void)
{
	static bool clear = false;
	static uint64 seen = 0;
	uint64		begun;

	pg_memory_barrier();
	begun = pg_atomic_read_u64(worker_restores());
	if (clear && begun == seen)
		return false;
	clear = false;
	seen = begun;
	if (lock_fence(WORKING, false, false) && !unsettled())
	{
		/* Come again, with a snapshot that is of after it all. */
		clear = true;
		pg_atomic_fetch_add_u32(&MyWorker->calls, 1);
		SetLatch(MyLatch);
	}
	worker_activity("waiting for the end of a restore");
	return true;
}

bool
restore_hold_off(void)
{
	LOCKTAG		tag;

	restore_locktag(&tag);
	user_function_keeps(&tag, WORKING);
	return lock_fence(WORKING, true, false) && !unsettled();
}

bool
restore_settle(void)
{
	static bool judged = false;
	static uint64 judged_at = 0;
	uint64		begun = pg_atomic_read_u64(worker_restores());
	bool		isnull;

	/* What lacked then lacks until somebody else restores. */
	if (judged && judged_at == begun)
		return false;
	if (!lock_fence(ExclusiveLock, false, false))
		return true;
	if (SPI_execute("SELECT why, again FROM mlint.restore_settle(false)",
					false, 0) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not settle a restore");
	if (SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1) == NULL)
	{
		worker_wake_at_commit(WORKER_DISPATCHER);
		worker_wake_at_commit(WORKER_SCHEDULER);
	}
	if (DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
								   SPI_tuptable->tupdesc, 2, &isnull)))
		return true;
	judged = true;
	judged_at = begun;
	return false;
}

static bool
others_restore(void)
{
	return owner_do(NULL, "SELECT FROM mlint.restores r, unnest(r.pids) pid"
					" WHERE pid <> pg_backend_pid()",
					SPI_OK_SELECT, 0, NULL, NULL, NULL);
}

/* mlint.restore_accept() */
Datum
mlint_restore_accept(PG_FUNCTION_ARGS)
{
	OwnerScope	scope;
	char	   *why;

	require_writable(fcinfo);
	/* A worker that looks has the lock for a moment. */
	if (others_restore())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("sessions are still restoring"),
				 errhint("Wait for their end. The view mlint.restores has their process ids.")));
	(void) lock_fence(ExclusiveLock, false, true);
	audit(AUDIT_CHANGED, "restore.accept", "restore", NULL, NULL);
	owner_begin(&scope);
	owner_run(NULL, "SELECT why FROM mlint.restore_settle(true)", SPI_OK_SELECT, 0,
			  NULL, NULL, NULL);
	why = owner_text(1);
	if (why)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("what was restored cannot be settled: %s", why)));
	owner_end(&scope);
	worker_wake_at_commit(WORKER_DISPATCHER);
	worker_wake_at_commit(WORKER_SCHEDULER);
	PG_RETURN_VOID();
}
