/*
 * slots.c
 *		The processes' slots in shared memory, and the launcher's mailbox.
 *
 * A slot says which process works where, how to wake it and what it has done.
 * There are as many as the server can run background workers. A publisher
 * wakes the dispatchers of its database by walking the slots without a lock:
 * at worst it sets the latch of a process that has just taken another's
 * place, which costs that process one look around.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "access/xact.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/guc.h"
#include "utils/resowner.h"

#include "common/compat.h"
#include "common/shmem.h"
#include "worker/gateway.h"
#include "worker/worker.h"

#define MAX_HOLDS 16
#define HOLD_TIMEOUT_MS 10000
#define ORPHAN_START_MS 2000

typedef struct Hold
{
	Oid			database;		/* InvalidOid: free */
	pid_t		pid;
} Hold;

typedef struct WorkerShared
{
	LWLock	   *lock;			/* slots taken and freed, mail, holds */
	Latch	   *launcher;
	LauncherMail mail;
	Hold		holds[MAX_HOLDS];
	ConditionVariable slot_freed;
	ConditionVariable delivered;
	pg_atomic_uint64 restores;
	int			nslots;
	WorkerSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} WorkerShared;

int			worker_dispatchers = 1;
int			worker_job_limit = 2;
WorkerSlot *MyWorker = NULL;

static WorkerShared *shared = NULL;
static uint32 wake_kinds = 0;	/* bits of WorkerKind, woken at commit */

/* What each kind of worker is called, and where it begins. */
static const struct
{
	const char *type;
	const char *function;
}			kinds[] = {
	[WORKER_NONE] = {NULL, NULL},
	[WORKER_LAUNCHER] = {"mlint launcher", "mlint_launcher_main"},
	[WORKER_SCHEDULER] = {"mlint scheduler", "mlint_scheduler_main"},
	[WORKER_AUDITOR] = {"mlint auditor", "mlint_auditor_main"},
	[WORKER_DISPATCHER] = {"mlint dispatcher", "mlint_dispatcher_main"},
	[WORKER_JOB] = {"mlint job", "mlint_job_main"},
	[WORKER_GATEWAY] = {"mlint gateway", "mlint_gateway_main"},
};

static Size
shared_size(void)
{
	return add_size(offsetof(WorkerShared, slots),
					mul_size(max_worker_processes, sizeof(WorkerSlot)));
}

static int
lock_count(void)
{
	return 1;
}

static void
init_shared(LWLockPadded *locks)
{
	shared->lock = &locks[0].lock;
	shared->nslots = max_worker_processes;
	ConditionVariableInit(&shared->slot_freed);
	ConditionVariableInit(&shared->delivered);
	pg_atomic_init_u64(&shared->restores, 0);
}

static const SharedPart part = {
	.name = "mlint workers",
	.size = shared_size,
	.locks = lock_count,
	.memory = (void **) &shared,
	.init = init_shared,
};

/* Nobody is woken for a transaction that does not commit now. */
static void
forget_wakes(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		wake_kinds = 0;
}

/*
 * Wake whom the transaction has work for, when it is visible and its cache
 * invalidations have been sent: the phase that comes after both.
 */
static void
wake_at_commit(ResourceReleasePhase phase, bool commit, bool top, void *arg)
{
	if (wake_kinds == 0 || phase != RESOURCE_RELEASE_AFTER_LOCKS || !commit ||
		!top)
		return;
	for (int kind = WORKER_LAUNCHER; kind <= WORKER_JOB; kind++)
	{
		if (wake_kinds & (1U << kind))
			worker_wake(kind);
	}
	wake_kinds = 0;
}

void
worker_init(void)
{
	BackgroundWorker launcher = {0};

	DefineCustomIntVariable("mlint.dispatchers",
							"Dispatcher processes in each database.",
							"Raise it when one dispatcher uses a whole core and deliveries wait. Each destination belongs to one dispatcher.",
							&worker_dispatchers, 1, 1, 16,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("mlint.job_workers",
							"Jobs that may run at the same time in each database.",
							"Jobs are periodic work such as dropping old events. Each running job takes one of max_worker_processes.",
							&worker_job_limit, 2, 1, 64,
							PGC_SIGHUP, 0, NULL, NULL, NULL);

	gateway_init();
	shared_part(&part);
	RegisterXactCallback(forget_wakes, NULL);
	RegisterResourceReleaseCallback(wake_at_commit, NULL);
	stepaside_init();

	/*
	 * pg_upgrade has a server run in this mode, old or new: what it holds is
	 * being copied, or half there. Nobody works then.
	 */
	if (IsBinaryUpgrade)
		return;
	launcher.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	launcher.bgw_start_time = BgWorkerStart_RecoveryFinished;
	launcher.bgw_restart_time = 5;
	strlcpy(launcher.bgw_library_name, "mlint", BGW_MAXLEN);
	strlcpy(launcher.bgw_function_name, kinds[WORKER_LAUNCHER].function,
			BGW_MAXLEN);
	strlcpy(launcher.bgw_name, kinds[WORKER_LAUNCHER].type, BGW_MAXLEN);
	strlcpy(launcher.bgw_type, kinds[WORKER_LAUNCHER].type, BGW_MAXLEN);
	RegisterBackgroundWorker(&launcher);
}

int
worker_slot_count(void)
{
	return shared->nslots;
}

WorkerSlot *
worker_slot(int index)
{
	return &shared->slots[index];
}

ConditionVariable *
worker_delivered(void)
{
	return &shared->delivered;
}

pg_atomic_uint64 *
worker_restores(void)
{
	return &shared->restores;
}

/* Is the database held? The caller has the lock. */
static bool
held_by_anyone(Oid database)
{
	for (int i = 0; i < MAX_HOLDS; i++)
	{
		if (OidIsValid(database) && shared->holds[i].database == database)
			return true;
	}
	return false;
}

int
worker_slot_take(WorkerKind kind, Oid database, int lane, int lanes)
{
	int			index = -1;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->nslots && !held_by_anyone(database); i++)
	{
		WorkerSlot *slot = &shared->slots[i];

		if (slot->kind != WORKER_NONE)
			continue;
		memset(slot, 0, sizeof(WorkerSlot));
		slot->kind = kind;
		slot->database = database;
		slot->lane = lane;
		slot->lanes = lanes;
		slot->started_at = GetCurrentTimestamp();
		pg_atomic_init_u32(&slot->calls, 0);
		index = i;
		break;
	}
	LWLockRelease(shared->lock);
	return index;
}

void
worker_slot_free(int index)
{
	WorkerSlot *slot = &shared->slots[index];

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot->kind = WORKER_NONE;
	slot->latch = NULL;
	slot->pid = 0;
	LWLockRelease(shared->lock);
	ConditionVariableBroadcast(&shared->slot_freed);
}

/* At process exit: our slot, if it is still ours. */
static void
leave_slot(int code, Datum arg)
{
	if (MyWorker != NULL && MyWorker->pid == MyProcPid)
		worker_slot_free(MyWorker - shared->slots);
	MyWorker = NULL;
}

void
worker_slot_adopt(int index)
{
	WorkerSlot *slot = &shared->slots[index];

	bool		ours;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	ours = slot->kind != WORKER_NONE && slot->pid == 0;
	if (ours)
	{
		slot->pid = MyProcPid;
		slot->latch = MyLatch;
		slot->started_at = GetCurrentTimestamp();
	}
	LWLockRelease(shared->lock);
	/* Too late: who started us has given us up. */
	if (!ours)
		proc_exit(0);
	MyWorker = slot;
	before_shmem_exit(leave_slot, 0);
	if (launcher_held(slot->database))
		proc_exit(0);
}

bool
worker_start(int index, BackgroundWorkerHandle **handle)
{
	WorkerSlot *slot = &shared->slots[index];
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = Int32GetDatum(index);
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "mlint", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, kinds[slot->kind].function, BGW_MAXLEN);
	strlcpy(worker.bgw_type, kinds[slot->kind].type, BGW_MAXLEN);
	if (slot->kind == WORKER_SCHEDULER || slot->kind == WORKER_AUDITOR ||
		slot->kind == WORKER_GATEWAY)
		strlcpy(worker.bgw_name, worker.bgw_type, BGW_MAXLEN);
	else
		snprintf(worker.bgw_name, BGW_MAXLEN, "%s %d", worker.bgw_type,
				 slot->lane);
	if (RegisterDynamicBackgroundWorker(&worker, handle))
		return true;
	worker_slot_free(index);
	return false;
}

void
worker_wake(WorkerKind kind)
{
	for (int i = 0; i < shared->nslots; i++)
	{
		volatile WorkerSlot *slot = &shared->slots[i];
		Latch	   *latch = slot->latch;

		if (slot->kind != kind || slot->database != MyDatabaseId)
			continue;
		pg_atomic_fetch_add_u32(&shared->slots[i].calls, 1);
		if (latch)
			SetLatch(latch);
	}
}

/*
 * The latch alone does not tell: whatever waits in between, for a lock or in
 * a function of the user's, resets it.
 */
bool
worker_called(bool answer)
{
	static uint32 answered = 0;
	uint32		calls = pg_atomic_read_u32(&MyWorker->calls);
	bool		called = calls != answered;

	if (answer)
		answered = calls;
	return called;
}

void
worker_retire(int index)
{
	volatile WorkerSlot *slot = &shared->slots[index];
	Latch	   *latch = slot->latch;

	slot->retire = true;
	if (latch)
		SetLatch(latch);
}

void
worker_wake_at_commit(WorkerKind kind)
{
	wake_kinds |= 1U << kind;
}

/* ---- the launcher's mailbox ---- */

static void
wake_launcher(void)
{
	Latch	   *latch = ((volatile WorkerShared *) shared)->launcher;

	if (latch)
		SetLatch(latch);
}

static void
forget_launcher(int code, Datum arg)
{
	shared->launcher = NULL;
}

void
launcher_attach(void)
{
	int			index = worker_slot_take(WORKER_LAUNCHER, InvalidOid, 0, 0);

	if (index >= 0)
		worker_slot_adopt(index);
	before_shmem_exit(forget_launcher, 0);
	shared->launcher = MyLatch;
}

/* Add to a short list in the mailbox; false when it is full. */
static bool
list_add(Oid *list, int *n, int size, Oid database)
{
	for (int i = 0; i < *n; i++)
	{
		if (list[i] == database)
			return true;
	}
	if (*n == size)
		return false;
	list[(*n)++] = database;
	return true;
}

void
launcher_look(Oid database)
{
	LauncherMail *mail = &shared->mail;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (!OidIsValid(database) ||
		!list_add(mail->look, &mail->nlook, lengthof(mail->look), database))
		mail->look_all = true;
	LWLockRelease(shared->lock);
	wake_launcher();
}

void
launcher_mail(LauncherMail *mail)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	*mail = shared->mail;
	memset(&shared->mail, 0, sizeof(LauncherMail));
	LWLockRelease(shared->lock);
}

void
worker_answer(bool has_extension)
{
	LauncherMail *mail = &shared->mail;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (has_extension)
		MyWorker->ready = true;
	else
		(void) list_add(mail->absent, &mail->nabsent,
						lengthof(mail->absent), MyDatabaseId);
	LWLockRelease(shared->lock);
	wake_launcher();
}

void
launcher_want_sql_lane(void)
{
	MyWorker->wants_sql_lane = true;
	wake_launcher();
}

bool
launcher_held(Oid database)
{
	bool		held;

	LWLockAcquire(shared->lock, LW_SHARED);
	held = held_by_anyone(database);
	LWLockRelease(shared->lock);
	return held;
}

/*
 * They know nothing of the new launcher, nor it of them. One that has no
 * process yet is given a moment to get one.
 */
void
launcher_end_orphans(void)
{
	TimestampTz deadline = GetCurrentTimestamp() + ORPHAN_START_MS * 1000L;
	bool		any = true;

	ConditionVariablePrepareToSleep(&shared->slot_freed);
	while (any)
	{
		any = false;
		for (int i = 0; i < shared->nslots; i++)
		{
			volatile WorkerSlot *slot = &shared->slots[i];
			pid_t		pid = slot->pid;

			if (slot->kind != WORKER_SCHEDULER &&
				slot->kind != WORKER_AUDITOR &&
				slot->kind != WORKER_DISPATCHER &&
				slot->kind != WORKER_GATEWAY)
				continue;
			any = true;
			if (pid > 0)
				(void) kill(pid, SIGTERM);
			else if (GetCurrentTimestamp() > deadline)
				worker_slot_free(i);
		}
		if (any)
			(void) ConditionVariableTimedSleep(&shared->slot_freed, 100,
											   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/* Is a process of ours in that database, or on its way there? */
static bool
database_in_use(Oid database)
{
	bool		used = false;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < shared->nslots; i++)
		used |= shared->slots[i].kind != WORKER_NONE &&
			shared->slots[i].database == database;
	LWLockRelease(shared->lock);
	return used;
}

void
launcher_hold(Oid database)
{
	TimestampTz deadline = GetCurrentTimestamp() + HOLD_TIMEOUT_MS * 1000L;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HOLDS; i++)
	{
		if (OidIsValid(shared->holds[i].database))
			continue;
		shared->holds[i].database = database;
		shared->holds[i].pid = MyProcPid;
		break;
	}
	LWLockRelease(shared->lock);
	wake_launcher();

	ConditionVariablePrepareToSleep(&shared->slot_freed);
	while (database_in_use(database))
	{
		long		left = (deadline - GetCurrentTimestamp()) / 1000;

		if (left <= 0)
			break;
		(void) ConditionVariableTimedSleep(&shared->slot_freed, left,
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

void
launcher_release(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HOLDS; i++)
	{
		if (shared->holds[i].pid == MyProcPid)
			memset(&shared->holds[i], 0, sizeof(Hold));
	}
	shared->mail.look_all = true;
	LWLockRelease(shared->lock);
	wake_launcher();
}
