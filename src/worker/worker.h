/*
 * worker.h
 *		The processes of mlint, and how others reach them.
 *
 * One launcher for the cluster; in each database that has the extension one
 * scheduler, one auditor, a dispatcher for each lane, and a job worker for each
 * job that runs; and one gateway, where mlint.gateway_listen is set, that has no
 * database either. Every one of them owns a slot in shared memory. A lane is a share of
 * the destinations: lanes 1 to mlint.dispatchers serve those that only talk
 * to the network, lane 0 those that run SQL of the user's, so that a slow
 * function never delays a webhook.
 */
#ifndef MLINT_WORKER_H
#define MLINT_WORKER_H

#include "fmgr.h"
#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

typedef enum WorkerKind
{
	WORKER_NONE,				/* a free slot */
	WORKER_LAUNCHER,
	WORKER_SCHEDULER,
	WORKER_AUDITOR,
	WORKER_DISPATCHER,
	WORKER_JOB,
	WORKER_GATEWAY
} WorkerKind;

/* Deliveries that one dispatcher can have in flight at a time. */
#define WORKER_MAX_IN_FLIGHT	512

typedef struct InFlight
{
	int64		event_id;		/* 0: free */
	int32		destination_id;
} InFlight;

/*
 * One process. Written by its owner alone, read by anybody without a lock:
 * what a view shows may be a moment old. Only taking and freeing a slot are
 * guarded by the lock; `calls` and `retire` are for others to set.
 */
typedef struct WorkerSlot
{
	WorkerKind	kind;
	Oid			database;
	int			lane;			/* dispatcher: its lane; job worker: the job */
	int			lanes;			/* dispatcher: how many network lanes there
								 * are */
	bool		ready;			/* connected, and the extension is there */
	bool		wants_sql_lane; /* dispatcher: its database needs lane 0 */
	pid_t		pid;			/* 0 while the process is starting */
	Latch	   *latch;			/* in shared memory; NULL while starting */
	pg_atomic_uint32 calls;		/* how often it was woken */
	bool		retire;			/* it is to finish what it does, and leave */
	TimestampTz started_at;
	TimestampTz active_at;		/* when it last had work */
	uint64		wakeups;
	uint64		events;			/* read from the log; auditor: entries
								 * written; gateway: requests answered */
	uint64		deliveries;		/* attempts ended */
	uint64		batches;		/* committed */
	int64		memory;			/* bytes in its memory contexts */
	int			in_flight_count;	/* gateway: its connections */
	InFlight	in_flight[WORKER_MAX_IN_FLIGHT];
} WorkerSlot;

/* Settings. */
extern int	worker_dispatchers;
extern int	worker_job_limit;

/* Settings, shared memory, hooks and the launcher. Called once by _PG_init. */
extern void worker_init(void);

/*
 * Wake every worker of this kind in the current database: now, or when the
 * current transaction commits (not if it aborts).
 */
extern void worker_wake(WorkerKind kind);
extern void worker_wake_at_commit(WorkerKind kind);

/*
 * Have a job run at once, when the current transaction commits; false when
 * there is none of that name. What is committed with the request is seen by
 * the run, also when the job is running meanwhile. A job that is disabled until
 * its first use is enabled.
 */
extern bool job_request(const char *name);

/*
 * The same, at a time; for a run that knows when there is more to do. What a
 * run has not asked for again when it ends is not remembered.
 */
extern bool job_request_at(const char *name, TimestampTz at);

/*
 * For a procedure that a job calls, and that commits as it goes. It begins with
 * this, which raises an error in a transaction block ("procedure" is its name,
 * "hint" how else it is run), and ends with job_procedure_end().
 */
extern void job_procedure_begin(FunctionCallInfo fcinfo, const char *procedure,
								const char *hint);
extern void job_procedure_end(void);

/* The hint for a job whose procedure it is. */
#define JOB_RUN_HINT(job) \
	"It is the job " job "; SELECT mlint.job_run_now('" job "') has it run now."

/*
 * One transaction of it: the work in a context that goes with it. Returns what
 * the work returns. "durable" is job_commit_durably().
 */
typedef bool (*JobWork) (void *arg);
extern bool job_transaction(JobWork work, void *arg, bool durable);

/*
 * What this transaction commits is on disk before what follows relies on it.
 * (A worker's commits otherwise don't wait for the disk.)
 */
extern void job_commit_durably(void);

/*
 * What this transaction has seen committed outlives a crash, and the primary
 * where a standby is synchronous, before something outside follows from it
 * that cannot be taken back. The transaction must have written something.
 */
extern void job_seen_durably(void);

/*
 * Our class of advisory locks (users' are 1 and 2), and which there are: lanes,
 * what whoever levels them holds, and the fence of a restore.
 */
#define WORKER_LOCK_CLASS	0x4D4C
#define WORKER_LOCK_LEVEL	1000
#define WORKER_LOCK_RESTORE	1001

/* How many sessions have begun to restore, in all databases. */
extern pg_atomic_uint64 *worker_restores(void);

/* ---- for the processes themselves ---- */

/*
 * Is what this transaction's snapshot sees perhaps a part of what a dump had?
 * Then nothing may be done with it. The worker is woken when that may have
 * changed. In SPI.
 */
extern bool restore_under_way(void);

/*
 * The scheduler's, while it is: see whether it has ended, and end it. True when
 * that is to be asked again soon. In SPI.
 */
extern bool restore_settle(void);

/*
 * Keep whoever wants to restore waiting until this process ends; false when it
 * is too late for that. In SPI.
 */
extern bool restore_hold_off(void);

extern WorkerSlot *MyWorker;

/*
 * worker_slot_take() returns -1 when none is free or the database is held.
 * Slots are taken by whoever starts a process, adopted by the process, and
 * freed at its exit; or by whoever could not start it.
 */
extern int	worker_slot_take(WorkerKind kind, Oid database, int lane,
							 int lanes);
extern void worker_slot_free(int index);
extern void worker_slot_adopt(int index);
extern int	worker_slot_count(void);
extern WorkerSlot *worker_slot(int index);

/*
 * Start a process for a slot. Returns false, having freed the slot, when
 * there is no room for one (max_worker_processes).
 */
extern bool worker_start(int index, BackgroundWorkerHandle **handle);

/* Ask the worker in a slot to leave of its own accord. */
extern void worker_retire(int index);

/* Has this process been woken since it last answered? With answer, it does. */
extern bool worker_called(bool answer);

/*
 * What every database worker does first: adopt the slot, unblock signals,
 * connect. Tells the launcher whether the database has the extension, and
 * exits when it has not.
 */
extern void worker_enter(Datum main_arg);

/* In a transaction: exit when the extension that we began with is gone. */
extern void worker_check_extension(void);

/* SIGHUP, interrupts. True when the settings were read again. */
extern bool worker_interrupts(void);

/*
 * Wait to be woken or for the time; -1: no limit. Returns at once when a call
 * has come since the last worker_called().
 */
extern void worker_wait(long timeout_ms);

/* Show what this process does in pg_stat_activity. */
extern void worker_activity(const char *fmt,...) pg_attribute_printf(1, 2);
extern void worker_idle(void);

/* Deliveries ended, a rotation went on: who waits for that looks again. */
extern ConditionVariable *worker_delivered(void);

/* ---- between the launcher and everybody ---- */

/* Is there anything to listen at? */
extern bool gateway_wanted(void);

/* Ask the launcher to look at this database again; InvalidOid: at all. */
extern void launcher_look(Oid database);

/* A dispatcher has found that its database needs one for lane 0. */
extern void launcher_want_sql_lane(void);

/*
 * While a database is held, no worker of ours runs there: launcher_hold()
 * returns when the last is gone, or after ten seconds. launcher_release()
 * ends all that the backend holds.
 */
extern void launcher_hold(Oid database);
extern void launcher_release(void);

/* At the launcher's start: workers of one before it are ended. */
extern void launcher_end_orphans(void);

/* The mailbox as the launcher reads it. */
typedef struct LauncherMail
{
	bool		look_all;
	int			nlook;
	Oid			look[32];
	int			nabsent;		/* databases found to have no extension */
	Oid			absent[32];
} LauncherMail;

extern void launcher_attach(void);
extern void launcher_mail(LauncherMail *mail);
extern void worker_answer(bool has_extension);
extern bool launcher_held(Oid database);

/* Installs the hooks that watch CREATE/DROP EXTENSION and DATABASE. */
extern void stepaside_init(void);

#endif
