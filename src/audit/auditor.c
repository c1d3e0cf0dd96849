/*
 * auditor.c
 *		The process that writes the audit log of a database.
 *
 * It takes what is in the ring, appends it to the log as one batch, commits,
 * and says how far it has come. Records stay in the ring until then, so an
 * auditor that fails loses none: the next one finds them. All commits are
 * asynchronous; whoever needs an entry on disk flushes the WAL (see audit.c).
 * While nobody waits it lets records gather for a moment.
 *
 * An entry that stands for a change carries the id of its (sub)transaction.
 * Those that have not ended are kept in a table in memory. When one is found
 * to have been rolled back, an entry of its own says so, because entries
 * themselves never change. Up to which entry all are settled is noted in a
 * sequence, mlint.audit_open, so that after a crash, or when the table in
 * memory was full, they are found again in the log.
 *
 * A checkpoint is an entry too, and an event with the entry's hash in it:
 * whoever subscribes to it has a proof outside of how the log was.
 *
 * On SIGTERM the auditor writes what is there, ends with a checkpoint, and
 * closes the ring: who comes later waits for the next auditor.
 */
#include "postgres.h"

#include <signal.h>

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "audit/auditor.h"
#include "audit/writer.h"
#include "common/compat.h"
#include "common/owner.h"
#include "delivery/delivery.h"
#include "worker/worker.h"

PGDLLEXPORT void mlint_auditor_main(Datum main_arg);

#define BATCH_RECORDS	1000
/* Records that nobody waits for may gather so long, or to a quarter ring. */
#define GATHER_MS		100
#define GATHER_BYTES	(AUDIT_RING_BYTES / 4)
/* The end of the log is noted so long after it moved. */
#define NOTE_MS			1000
#define CHECKPOINT_S	3600
/* A checkpoint that meets a lock is tried again after this. */
#define CHECKPOINT_RETRY_S	10
/* Transactions are looked after this often, should nobody tell. */
#define RESOLVE_MS		60000
/* Transactions with changes that are kept in memory. */
#define MAX_OPEN		65536
/* For no lock do we let callers wait longer than this. */
#define LOCK_TIMEOUT	"5s"

/* A transaction that has not ended, with changes in the log. */
typedef struct OpenTransaction
{
	uint64		subxid;			/* hash key */
	int64		seq;			/* its first entry */
} OpenTransaction;

static AuditArea *area = NULL;
static ChainHead head;			/* as it is committed */
static HTAB *open_transactions = NULL;

/* Entries from here on may be of transactions that are not in the table. */
static int64 untracked_from = 1;
static int64 noted_seq = 0;
static int64 noted_open = 0;
static TimestampTz note_at = 0; /* 0: nothing to note */
static TimestampTz resolve_at = 0;

/* Looking after many takes long: not before ten times as long has passed. */
static TimestampTz resolve_after = 0;
static TimestampTz gather_until = 0;
static bool checkpoint_due = false; /* something was written since the last */
static TimestampTz checkpoint_at = 0;
static volatile sig_atomic_t leaving = false;

/*
 * Finish, and leave. What could hold us up until then is a lock, and for that
 * we wait LOCK_TIMEOUT at most.
 */
static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	leaving = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/* ---- transactions ---- */

static void
begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	worker_check_extension();
}

/*
 * Commit what moves the log to a new head and has come from the ring up to a
 * position (or not from the ring: 0), and tell everybody. In between nothing
 * can fail; but the process can end, and the next auditor must know what it
 * finds.
 */
static void
commit(const ChainHead *next, uint64 position)
{
	PopActiveSnapshot();
	LWLockAcquire(area->lock, LW_EXCLUSIVE);
	area->batch_end = position;
	area->batch_xid = GetTopTransactionIdIfAny();
	area->batch_seq = next->seq;
	LWLockRelease(area->lock);

	CommitTransactionCommand();

	head = *next;
	LWLockAcquire(area->lock, LW_EXCLUSIVE);
	if (position != 0)
		area->written = position;
	area->lsn = XactLastCommitEnd;
	area->seq = head.seq;
	memcpy(area->hash, head.hash, sizeof(area->hash));
	LWLockRelease(area->lock);
	if (position != 0)
		ConditionVariableBroadcast(&area->moved[area->batch % 2]);
	if (note_at == 0)
		note_at = GetCurrentTimestamp() + NOTE_MS * INT64CONST(1000);
}

/* ---- transactions with changes ---- */

/* An entry of a transaction that may not have ended is in the log. */
static void
track(uint64 subxid, int64 seq)
{
	OpenTransaction *open;
	bool		found;

	/* Full, or behind: it will be read from the log. */
	if (untracked_from <= seq)
		return;
	if (hash_get_num_entries(open_transactions) >= MAX_OPEN)
	{
		untracked_from = seq;
		return;
	}
	open = hash_search(open_transactions, &subxid, HASH_ENTER, &found);
	if (!found)
		open->seq = seq;
}

/* Has it ended, and how? */
static bool
transaction_ended(uint64 subxid, bool *rolled_back)
{
	TransactionId xid = (TransactionId) subxid;

	*rolled_back = false;
	if (!mlint_xid_in_clog(subxid))
		return true;			/* so long ago that nobody can tell */
	if (TransactionIdIsInProgress(xid))
		return false;
	*rolled_back = !TransactionIdDidCommit(xid);
	return true;
}

/* Enter that these were rolled back. */
static void
write_rollbacks(const uint64 *subxids, int n)
{
	ChainHead	next = head;
	const AuditRecord **records;

	begin();
	records = palloc(sizeof(AuditRecord *) * n);
	for (int i = 0; i < n; i++)
	{
		AuditRecordBuffer *buffer = palloc(sizeof(AuditRecordBuffer));
		char		xid[32];

		snprintf(xid, sizeof(xid), UINT64_FORMAT, subxids[i]);
		audit_compose(buffer, "transaction.rolled_back", "transaction", xid,
					  AUDIT_DONE, NULL);
		records[i] = &buffer->record;
	}
	writer_append(&next, records, n);
	commit(&next, 0);
	checkpoint_due = true;
}

/*
 * Read from the log what is not in the table, as far as there is room.
 * Transactions that an entry says were rolled back need no other.
 */
static void
read_untracked(void)
{
	Oid			types[1] = {INT8OID};
	OwnerScope	scope;
	uint64		n;

	do
	{
		Datum		values[1] = {Int64GetDatum(untracked_from)};
		int64		from = untracked_from;

		begin();
		owner_begin(&scope);
		owner_run(NULL, "SELECT e.seq, e.subxid FROM mlint.audit_entry e"
				  " WHERE e.seq >= $1 AND e.subxid IS NOT NULL"
				  " AND NOT EXISTS (SELECT FROM mlint.audit_entry r"
				  " WHERE r.action = 'transaction.rolled_back'"
				  " AND r.object = e.subxid::text)"
				  " ORDER BY e.seq LIMIT 1000",
				  SPI_OK_SELECT, 1, types, values, NULL);
		n = SPI_processed;
		untracked_from = PG_INT64_MAX;
		for (uint64 i = 0; i < n; i++)
		{
			bool		isnull;
			int64		seq = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
														  SPI_tuptable->tupdesc,
														  1, &isnull));
			uint64		subxid = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
															 SPI_tuptable->tupdesc,
															 2, &isnull));

			from = seq + 1;
			track(subxid, seq);
		}
		owner_end(&scope);
		PopActiveSnapshot();
		CommitTransactionCommand();
		if (untracked_from == PG_INT64_MAX && n == 1000)
			untracked_from = from;
	} while (n == 1000 &&
			 hash_get_num_entries(open_transactions) < MAX_OPEN);
}

/* Find out which transactions have ended, and enter which were rolled back. */
static void
resolve(void)
{
	TimestampTz began = GetCurrentTimestamp();
	TimestampTz now;
	uint64		rolled_back[BATCH_RECORDS];
	int			n;

	do
	{
		HASH_SEQ_STATUS seq;
		OpenTransaction *open;

		if (untracked_from <= head.seq &&
			hash_get_num_entries(open_transactions) < MAX_OPEN / 2)
			read_untracked();
		n = 0;
		hash_seq_init(&seq, open_transactions);
		while ((open = hash_seq_search(&seq)) != NULL)
		{
			bool		undone;

			if (n == BATCH_RECORDS)
			{
				hash_seq_term(&seq);
				break;
			}
			if (!transaction_ended(open->subxid, &undone))
				continue;
			if (undone)
				rolled_back[n++] = open->subxid;
			else
				hash_search(open_transactions, &open->subxid, HASH_REMOVE,
							NULL);
		}
		if (n > 0)
			write_rollbacks(rolled_back, n);
		for (int i = 0; i < n; i++)
			hash_search(open_transactions, &rolled_back[i], HASH_REMOVE,
						NULL);
	} while (n == BATCH_RECORDS ||
			 (untracked_from <= head.seq &&
			  hash_get_num_entries(open_transactions) < MAX_OPEN / 2));
	now = GetCurrentTimestamp();
	resolve_at = now + RESOLVE_MS * INT64CONST(1000);
	resolve_after = now + 10 * Max(now - began, 0);
}

/* ---- the log ---- */

/* Write a batch from the ring up to its end. */
static void
write_batch(uint64 end)
{
	const AuditRecord *records[BATCH_RECORDS];
	ChainHead	next = head;
	uint64		position = area->written;
	int64		first = head.seq + 1;
	int			n = 0;
	uint64		subxids[BATCH_RECORDS];

	begin();
	while (position < end && n < BATCH_RECORDS)
	{
		records[n] = audit_area_read(area, &position);
		subxids[n] = records[n]->subxid;
		n++;
	}
	writer_append(&next, records, n);
	commit(&next, position);

	for (int i = 0; i < n; i++)
	{
		if (subxids[i] != 0)
			track(subxids[i], first + i);
	}
	checkpoint_due = true;
	gather_until = 0;
	MyWorker->batches++;
	MyWorker->events += n;
	MyWorker->active_at = GetCurrentTimestamp();
}

/* Set a sequence of ours, in place and whatever becomes of transactions. */
static void
set_sequence(const char *name, int64 value)
{
	Oid			sequence = get_relname_relid(name,
											 get_namespace_oid("mlint", false));

	if (!OidIsValid(sequence))
		elog(ERROR, "mlint.%s does not exist", name);
	(void) DirectFunctionCall2(setval_oid, ObjectIdGetDatum(sequence),
							   Int64GetDatum(value));
}

/*
 * Note where the log ends, and from where on transactions may be open. It
 * follows the commit of what it tells of in the WAL, so it is never ahead.
 */
static void
note_position(void)
{
	int64		open_from = Min(untracked_from, head.seq + 1);
	HASH_SEQ_STATUS seq;
	OpenTransaction *open;

	hash_seq_init(&seq, open_transactions);
	while ((open = hash_seq_search(&seq)) != NULL)
		open_from = Min(open_from, open->seq);
	note_at = 0;
	if (head.seq <= noted_seq && open_from == noted_open)
		return;
	begin();
	if (head.seq > noted_seq)
		set_sequence("audit_head", head.seq);
	if (open_from != noted_open)
		set_sequence("audit_open", open_from);
	PopActiveSnapshot();
	CommitTransactionCommand();
	noted_seq = head.seq;
	noted_open = open_from;
}

/* The entry, and the event that carries its hash away. */
static void
write_checkpoint(void)
{
	AuditRecordBuffer buffer;
	const AuditRecord *record = &buffer.record;
	ChainHead	next = head;
	char		hash[2 * CRYPTO_SHA256_BYTES + 1];
	char		stamp[MAXDATELEN + 1];
	int			utc = 0;
	StringInfoData data;
	Datum		jsonb;
	Datum		metadata;

	begin();
	/* The event log may be locked for a drop that waits for us. */
	(void) set_config_option("lock_timeout", "500ms", PGC_SUSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	audit_compose(&buffer, "audit.checkpoint", "audit_log", NULL, AUDIT_DONE,
				  NULL);
	writer_append(&next, &record, 1);

	crypto_hex(next.hash, sizeof(next.hash), hash);
	JsonEncodeDateTime(stamp, TimestampTzGetDatum(record->at),
					   TIMESTAMPTZOID, &utc);
	initStringInfo(&data);
	appendStringInfo(&data, "{\"seq\": " INT64_FORMAT ", \"hash\": \"%s\", \"at\": \"%s\", \"database\": ",
					 next.seq, hash, stamp);
	escape_json(&data, get_database_name(MyDatabaseId));
	appendStringInfoChar(&data, '}');
	jsonb = DirectFunctionCall1(jsonb_in, CStringGetDatum(data.data));
	metadata = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	(void) event_publish("audit.checkpoint", DatumGetJsonbP(jsonb),
						 DatumGetJsonbP(metadata), NULL, 0, 0);
	commit(&next, 0);
	checkpoint_due = false;
}

/*
 * A checkpoint, unless something is in its way: then later. The log itself
 * does not depend on it.
 */
static void
checkpoint(void)
{
	MemoryContext old = CurrentMemoryContext;

	checkpoint_at = GetCurrentTimestamp() + CHECKPOINT_S * USECS_PER_SEC;
	PG_TRY();
	{
		write_checkpoint();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(old);
		FlushErrorState();
		RESUME_INTERRUPTS();
		checkpoint_at = GetCurrentTimestamp() +
			CHECKPOINT_RETRY_S * USECS_PER_SEC;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
}

/* ---- the loop ---- */

/*
 * Decide under the lock what there is to do, or that there is nothing: then
 * callers know that they must wake us. Returns how long to sleep in ms, -1
 * for ever, 0 not at all. *end is where the records in the ring end.
 */
static long
look(uint64 *end, bool *resolve_now)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until = PG_INT64_MAX;
	bool		gather = false;
	bool		work;

	LWLockAcquire(area->lock, LW_EXCLUSIVE);
	*end = area->head;
	*resolve_now = area->resolve && now >= resolve_after;
	if (*resolve_now)
		area->resolve = false;
	else if (area->resolve)
		until = resolve_after;
	work = *resolve_now || leaving;
	/* Who comes from now on waits for the next auditor. */
	if (leaving)
		area->open = false;
	if (area->head != area->written)
	{
		if (gather_until == 0)
			gather_until = now + GATHER_MS * INT64CONST(1000);
		gather = area->wanted <= area->written &&
			area->head - area->written < GATHER_BYTES && now < gather_until;
		until = Min(until, gather_until);
		work |= !gather;
	}
	else
	{
		if (note_at != 0)
			until = Min(until, note_at);
		if (hash_get_num_entries(open_transactions) > 0)
			until = Min(until, resolve_at);
		if (checkpoint_due)
			until = Min(until, checkpoint_at);
		work |= until <= now;
	}
	if (work && *end > area->written)
	{
		area->batch++;
		area->taken = *end;
	}
	if (!work)
		area->state = gather ? AUDITOR_GATHERING : AUDITOR_SLEEPING;
	LWLockRelease(area->lock);

	if (work)
		return 0;
	return until == PG_INT64_MAX ? -1 : (until - now) / 1000 + 1;
}

static void
sleep_for(long ms)
{
	pgstat_report_activity(STATE_IDLE, NULL);
	pgstat_report_stat(false);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
					 (ms >= 0 ? WL_TIMEOUT : 0), ms,
					 mlint_wait_event("MlintAuditorMain"));
	ResetLatch(MyLatch);
	MyWorker->wakeups++;
	LWLockAcquire(area->lock, LW_EXCLUSIVE);
	area->state = AUDITOR_BUSY;
	LWLockRelease(area->lock);
}

static void
close_area(int code, Datum arg)
{
	audit_area_close(area);
}

/* Take the area, find the end of the log, and let callers in. */
static void
enter(void)
{
	HASHCTL		ctl = {0};
	ChainHead	found;
	bool		isnull;
	Oid			extension;
	uint64		committed;
	OwnerScope	scope;

	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(OpenTransaction);
	open_transactions = hash_create("mlint open transactions", 64, &ctl,
									HASH_ELEM | HASH_BLOBS);
	begin();
	extension = get_extension_oid("mlint", false);
	area = audit_area_take(extension, &committed);
	before_shmem_exit(close_area, 0);
	writer_find_head(&found);
	writer_prepare_month(writer_month(GetCurrentTimestamp()));
	owner_begin(&scope);
	if (SPI_execute("SELECT CASE WHEN h.is_called THEN h.last_value ELSE 0 END, o.last_value"
					" FROM mlint.audit_head h, mlint.audit_open o",
					true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not read where the audit log ends");
	noted_seq = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											SPI_tuptable->tupdesc, 1,
											&isnull));
	noted_open = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											 SPI_tuptable->tupdesc, 2,
											 &isnull));
	owner_end(&scope);
	untracked_from = noted_open;
	/* What the auditor before knew, the table may not tell any more. */
	if (area->seq > found.seq)
	{
		found.seq = area->seq;
		memcpy(found.hash, area->hash, sizeof(found.hash));
	}
	/* A commit of our own lies behind any of the auditor before in the WAL. */
	(void) GetTopTransactionId();
	commit(&found, committed);
	checkpoint_due = head.seq > 0;
	checkpoint_at = GetCurrentTimestamp() + CHECKPOINT_S * USECS_PER_SEC;
	audit_area_open(area);
}

void
mlint_auditor_main(Datum main_arg)
{
	static const char *const by_index[] = {"enable_seqscan",
		"enable_bitmapscan", "enable_sort", "enable_hashjoin",
	"enable_mergejoin"};
	int			month = 0;

	worker_enter(main_arg);
	pqsignal(SIGTERM, handle_sigterm);
	SetConfigOption("lock_timeout", LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	/* The log is large, and what we look up is at its end. */
	for (int i = 0; i < lengthof(by_index); i++)
		SetConfigOption(by_index[i], "off", PGC_SUSET, PGC_S_OVERRIDE);
	enter();
	for (;;)
	{
		uint64		end;
		bool		resolve_now;
		long		sleep_ms;
		TimestampTz now;

		(void) worker_interrupts();
		if (worker_called(true))
		{
			begin();
			PopActiveSnapshot();
			CommitTransactionCommand();
		}
		sleep_ms = look(&end, &resolve_now);
		if (sleep_ms != 0)
		{
			sleep_for(sleep_ms);
			continue;
		}
		worker_activity("writing the audit log");
		while (area->written < end)
			write_batch(end);

		now = GetCurrentTimestamp();
		if (resolve_now || now >= resolve_at || leaving)
			resolve();
		if (note_at != 0 && now >= note_at)
		{
			resolve();
			note_position();
			MyWorker->memory = MemoryContextMemAllocated(TopMemoryContext,
														 true);
		}
		if (checkpoint_due && (leaving || now >= checkpoint_at))
			checkpoint();
		/* The next month's partition is there before it is needed. */
		if (month != writer_month(now))
		{
			begin();
			writer_prepare_month(writer_month(now));
			PopActiveSnapshot();
			CommitTransactionCommand();
			month = writer_month(now);
		}
		if (leaving && !area->open)
			break;
	}
	note_position();
	XLogFlush(area->lsn);
	proc_exit(0);
}

/* ---- for callers ---- */

static void
summon(void)
{
	launcher_look(MyDatabaseId);
}

/* In the transaction that has created the extension. */
static void
write_now(const AuditRecord *record)
{
	ChainHead	end;

	writer_find_head(&end);
	writer_append(&end, &record, 1);
	CommandCounterIncrement();
}

void
auditor_init(void)
{
	audit_register_room(summon, write_now);
}
