/*
 * launcher.c
 *		Keeps the right workers running in the right databases.
 *
 * The launcher has no database. It reads the list of databases, and sends a
 * scheduler into each that may have the extension; a scheduler that finds
 * none says so and leaves, and the launcher does not ask again until CREATE
 * EXTENSION commits there. Where the scheduler stays, an auditor and
 * dispatchers follow. The gateway, which has no database either, runs whenever
 * mlint.gateway_listen is set.
 *
 * It sleeps until a worker ends, a backend leaves it mail, or a minute has
 * passed. A worker that dies is started again at once; one that dies young,
 * after a delay that doubles to a minute.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "worker/worker.h"

PGDLLEXPORT void mlint_launcher_main(Datum main_arg);

#define LOOK_INTERVAL_MS	60000
#define MAX_BACKOFF_S		60
/* With all of max_worker_processes taken, try again after this. */
#define FULL_RETRY_S		5
/* A dispatcher has so long to retire before it is terminated. */
#define RETIRE_MS			2000
/* A worker that lived this long was well. */
#define WELL_S				60
/* Databases asked at the same time whether they have the extension. */
#define MAX_PROBES			4

typedef struct Database
{
	Oid			oid;			/* hash key */
	bool		listed;			/* still in pg_database */
	bool		absent;			/* has no extension */
	bool		looked;			/* asked to look since we last sent somebody */
	int			failures;		/* workers that died young, in a row */
	TimestampTz retry_at;
} Database;

/* What the launcher knows of the process in a slot. */
typedef struct Child
{
	BackgroundWorkerHandle *handle; /* NULL: none */
	Oid			database;
	WorkerKind	kind;
	int			lane;
	int			lanes;
	TimestampTz started_at;
	TimestampTz retire_at;		/* told to stop; terminated at that time */
	bool		told_to_stop;
} Child;

static HTAB *databases;
static Child *children;
static Database cluster;		/* of the gateway, which has none */
static TimestampTz complained_at = 0;

static Database *
database_find(Oid oid)
{
	bool		found;
	Database   *db = hash_search(databases, &oid, HASH_ENTER, &found);

	if (!found)
	{
		memset(db, 0, sizeof(Database));
		db->oid = oid;
	}
	return db;
}

/* Whose is this child? NULL: the database's, which is no longer there. */
static Database *
child_database(const Child *child)
{
	if (child->kind == WORKER_GATEWAY)
		return &cluster;
	return hash_search(databases, &child->database, HASH_FIND, NULL);
}

/* Bring our list in line with pg_database. */
static void
list_databases(void)
{
	HASH_SEQ_STATUS seq;
	Database   *db;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	hash_seq_init(&seq, databases);
	while ((db = hash_seq_search(&seq)) != NULL)
		db->listed = false;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (form->datallowconn)
			database_find(form->oid)->listed = true;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();

	hash_seq_init(&seq, databases);
	while ((db = hash_seq_search(&seq)) != NULL)
	{
		if (!db->listed)
			hash_search(databases, &db->oid, HASH_REMOVE, NULL);
	}
}

/* Read the mail; true when it asks for a new list of databases. */
static bool
read_mail(void)
{
	LauncherMail mail;

	launcher_mail(&mail);
	for (int i = 0; i < mail.nabsent; i++)
	{
		Database   *db = database_find(mail.absent[i]);

		/* An answer may be older than a CREATE EXTENSION. */
		db->absent = !db->looked;
	}
	for (int i = 0; i < mail.nlook; i++)
	{
		Database   *db = database_find(mail.look[i]);

		db->absent = false;
		db->looked = true;
		db->failures = 0;
		db->retry_at = 0;
	}
	return mail.look_all;
}

/* Note which children have ended, and who must wait before the next. */
static void
reap_children(TimestampTz now)
{
	for (int i = 0; i < worker_slot_count(); i++)
	{
		Child	   *child = &children[i];
		WorkerSlot *slot = worker_slot(i);
		Database   *db;
		pid_t		pid;

		if (child->handle == NULL ||
			GetBackgroundWorkerPid(child->handle, &pid) != BGWH_STOPPED)
			continue;
		/* One that never came to adopt its slot leaves it to us. */
		if (slot->kind == child->kind && slot->database == child->database &&
			slot->pid == 0)
			worker_slot_free(i);

		/* The database may be gone, or be closed to connections. */
		db = child_database(child);
		if (db == NULL)
		{
			pfree(child->handle);
			memset(child, 0, sizeof(Child));
			continue;
		}
		if (child->told_to_stop || db->absent)
			db->failures = 0;
		else if (now - child->started_at > WELL_S * USECS_PER_SEC)
			db->failures = 1;
		else
			db->failures++;
		db->retry_at = db->failures <= 1 ? 0 :
			now + Min(MAX_BACKOFF_S, 1 << Min(db->failures - 1, 6)) *
			USECS_PER_SEC;
		pfree(child->handle);
		memset(child, 0, sizeof(Child));
	}
}

static Child *
find_child(Oid database, WorkerKind kind, int lane)
{
	for (int i = 0; i < worker_slot_count(); i++)
	{
		Child	   *child = &children[i];

		if (child->handle && child->database == database &&
			child->kind == kind && (lane < 0 || child->lane == lane))
			return child;
	}
	return NULL;
}

/* False when there is no room for another process. */
static bool
start_child(Oid database, WorkerKind kind, int lane, int lanes)
{
	BackgroundWorkerHandle *handle;
	Child	   *child;
	int			index = worker_slot_take(kind, database, lane, lanes);

	if (index < 0 && launcher_held(database))
		return true;
	if (index < 0 || !worker_start(index, &handle))
	{
		TimestampTz now = GetCurrentTimestamp();

		if (now - complained_at >= LOOK_INTERVAL_MS * 1000L)
		{
			complained_at = now;
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 OidIsValid(database) ?
					 errmsg("mlint cannot start a worker for database %u: all of max_worker_processes are taken",
							database) :
					 errmsg("mlint cannot start its gateway: all of max_worker_processes are taken"),
					 errhint("Raise max_worker_processes: mlint needs one for its launcher, one for its gateway if mlint.gateway_listen is set, and for each database with the extension one scheduler, one auditor, mlint.dispatchers dispatchers (one more with destinations that run SQL) and up to mlint.job_workers jobs.")));
		}
		return false;
	}
	child = &children[index];
	child->handle = handle;
	child->database = database;
	child->kind = kind;
	child->lane = lane;
	child->lanes = lanes;
	child->started_at = GetCurrentTimestamp();
	return true;
}

/*
 * End the database's workers of a kind (WORKER_NONE: all). Dispatchers may
 * finish what they have under way, so that nothing is sent twice. Returns
 * when to come back to those who do not.
 */
static TimestampTz
stop_children(Oid database, WorkerKind kind, int first_lane, TimestampTz now)
{
	TimestampTz next = PG_INT64_MAX;

	for (int i = 0; i < worker_slot_count(); i++)
	{
		Child	   *child = &children[i];

		if (child->handle == NULL || child->database != database ||
			(kind != WORKER_NONE &&
			 (child->kind != kind || child->lane < first_lane)))
			continue;
		if (!child->told_to_stop && child->kind == WORKER_DISPATCHER)
		{
			worker_retire(i);
			child->retire_at = now + RETIRE_MS * 1000L;
		}
		child->told_to_stop = true;
		if (child->retire_at <= now)
			TerminateBackgroundWorker(child->handle);
		else
			next = Min(next, child->retire_at);
	}
	return next;
}

/* Job workers are the scheduler's children: only their processes reach us. */
static void
stop_jobs(Oid database)
{
	for (int i = 0; i < worker_slot_count(); i++)
	{
		volatile WorkerSlot *slot = worker_slot(i);
		pid_t		pid = slot->pid;

		if (slot->kind == WORKER_JOB && slot->database == database && pid > 0)
			kill(pid, SIGTERM);
	}
}

/* Has a dispatcher asked for one that runs SQL? */
static bool
sql_lane_wanted(Oid database)
{
	for (int i = 0; i < worker_slot_count(); i++)
	{
		volatile WorkerSlot *slot = worker_slot(i);

		if (slot->kind == WORKER_DISPATCHER && slot->database == database &&
			slot->wants_sql_lane)
			return true;
	}
	return false;
}

/*
 * Dispatchers for a database whose scheduler has found the extension. Returns
 * when to come back.
 */
static TimestampTz
keep_dispatchers(Database *db, TimestampTz now)
{
	int			lanes = worker_dispatchers;

	/* The network lanes share the destinations, so they change together. */
	for (int i = 0; i < worker_slot_count(); i++)
	{
		Child	   *child = &children[i];

		if (child->handle && child->database == db->oid &&
			child->kind == WORKER_DISPATCHER && child->lane > 0 &&
			child->lanes != lanes)
			return stop_children(db->oid, WORKER_DISPATCHER, 1, now);
	}
	for (int lane = sql_lane_wanted(db->oid) ? 0 : 1; lane <= lanes; lane++)
	{
		if (find_child(db->oid, WORKER_DISPATCHER, lane) == NULL &&
			!start_child(db->oid, WORKER_DISPATCHER, lane, lanes))
			return now + FULL_RETRY_S * USECS_PER_SEC;
	}
	return PG_INT64_MAX;
}

/*
 * The gateway, if there is to be one. It follows changes of its setting by
 * itself. Returns when to come back.
 */
static TimestampTz
keep_gateway(TimestampTz now)
{
	if (!gateway_wanted())
	{
		cluster.failures = 0;
		cluster.retry_at = 0;
		return stop_children(InvalidOid, WORKER_GATEWAY, 0, now);
	}
	if (find_child(InvalidOid, WORKER_GATEWAY, -1) != NULL)
		return PG_INT64_MAX;
	if (cluster.retry_at > now)
		return cluster.retry_at;
	if (!start_child(InvalidOid, WORKER_GATEWAY, 0, 0))
		return now + FULL_RETRY_S * USECS_PER_SEC;
	return PG_INT64_MAX;
}

/*
 * Start and stop what should be. Returns when somebody is to be tried again.
 */
static TimestampTz
keep_workers(TimestampTz now)
{
	TimestampTz next = PG_INT64_MAX;
	HASH_SEQ_STATUS seq;
	Database   *db;
	int			probes = 0;

	for (int i = 0; i < worker_slot_count(); i++)
	{
		Child	   *child = &children[i];

		if (child->handle == NULL)
			continue;
		if (child->kind == WORKER_SCHEDULER && !worker_slot(i)->ready)
			probes++;
		/* No more connections to its database: not ours either. */
		if (child_database(child) == NULL)
			next = Min(next, stop_children(child->database, WORKER_NONE, 0,
										   now));
	}

	hash_seq_init(&seq, databases);
	while ((db = hash_seq_search(&seq)) != NULL)
	{
		Child	   *scheduler;

		if (launcher_held(db->oid))
		{
			next = Min(next, stop_children(db->oid, WORKER_NONE, 0, now));
			stop_jobs(db->oid);
			continue;
		}
		if (db->absent)
		{
			next = Min(next, stop_children(db->oid, WORKER_NONE, 0, now));
			continue;
		}
		if (db->retry_at > now)
		{
			next = Min(next, db->retry_at);
			continue;
		}
		scheduler = find_child(db->oid, WORKER_SCHEDULER, -1);
		if (scheduler == NULL)
		{
			if (probes++ >= MAX_PROBES)
				continue;
			db->looked = false;
			if (!start_child(db->oid, WORKER_SCHEDULER, 0, 0))
				next = Min(next, now + FULL_RETRY_S * USECS_PER_SEC);
		}
		else
		{
			if (!worker_slot(scheduler - children)->ready)
				continue;
			if (find_child(db->oid, WORKER_AUDITOR, -1) == NULL &&
				!start_child(db->oid, WORKER_AUDITOR, 0, 0))
				next = Min(next, now + FULL_RETRY_S * USECS_PER_SEC);
			next = Min(next, keep_dispatchers(db, now));
		}
	}
	return next;
}

void
mlint_launcher_main(Datum main_arg)
{
	HASHCTL		ctl = {0};
	TimestampTz listed_at = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	launcher_attach();
	launcher_end_orphans();

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Database);
	databases = hash_create("mlint databases", 64, &ctl,
							HASH_ELEM | HASH_BLOBS);
	children = MemoryContextAllocZero(TopMemoryContext,
									  worker_slot_count() * sizeof(Child));

	/* A launcher that failed has left children whom nobody watches. */
	for (int i = 0; i < worker_slot_count(); i++)
	{
		volatile WorkerSlot *slot = worker_slot(i);
		pid_t		pid = slot->pid;

		if (slot->kind != WORKER_LAUNCHER && slot->kind != WORKER_NONE &&
			pid > 0)
			kill(pid, SIGTERM);
	}

	for (;;)
	{
		TimestampTz now;
		TimestampTz next;
		long		wait_ms = LOOK_INTERVAL_MS;

		(void) worker_interrupts();
		now = GetCurrentTimestamp();
		if (read_mail() || now - listed_at >= LOOK_INTERVAL_MS * 1000L)
		{
			list_databases();
			listed_at = now;
		}
		reap_children(now);
		next = keep_workers(now);
		next = Min(next, keep_gateway(now));
		if (next != PG_INT64_MAX)
			wait_ms = Min(wait_ms, (next - now) / 1000 + 1);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 wait_ms, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
