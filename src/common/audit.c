/*
 * audit.c
 *		The ring between those who act and the auditor who writes.
 *
 * An entry must outlive the transaction that makes it, so it is not written
 * by that transaction: it is copied into a ring in shared memory, under a
 * lock that is held for one memcpy, and the auditor of the database writes
 * and commits what it finds there, many at a time. Nothing is ever dropped;
 * when the ring is full, callers wait.
 *
 * What a caller waits for depends on what it does:
 *
 * - AUDIT_CHANGED takes effect when the transaction commits, so the wait is
 *   there (and at PREPARE): the auditor must have committed the entry. That
 *   its commit is on disk needs no wait, since ours comes later in the same
 *   WAL. Which transaction the entry belongs to is known by the id of the
 *   current subtransaction; the auditor finds out what became of it.
 *
 * - AUDIT_DONE takes effect at once. With mlint.audit_durability = flush the
 *   caller waits until the auditor has committed, which it does
 *   asynchronously, and then flushes the WAL up to there itself. So the
 *   auditor goes on with the next batch meanwhile, and callers share flushes
 *   with each other and with everybody's commits, the way commits do.
 *
 * - AUDIT_DENIED and AUDIT_FAILED have no effect to hold back: no wait.
 *
 * Someone who waits says so, and wakes the auditor. Otherwise the auditor is
 * woken when it sleeps soundly, and then gathers for a moment before it
 * writes.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "replication/syncrep.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/syscache.h"

#include "common/audit_ring.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "common/retention.h"
#include "common/shmem.h"

PG_FUNCTION_INFO_V1(mlint_audit_note);
PG_FUNCTION_INFO_V1(mlint_audit_buffer);

/* A caller waits so long for an auditor to come. */
#define ABSENT_MS		10000
/* It looks again at least this often, should nobody wake it. */
#define LOOK_MS			1000
/* The auditor need not gather any longer. */
#define RING_ENOUGH		(AUDIT_RING_BYTES / 4)
#define CLIP_BYTES		300

typedef enum AuditDurability
{
	DURABILITY_FLUSH,
	DURABILITY_MEMORY
} AuditDurability;

static const struct config_enum_entry durabilities[] = {
	{"flush", DURABILITY_FLUSH, false},
	{"memory", DURABILITY_MEMORY, false},
	{NULL, 0, false}
};

typedef struct AuditShared
{
	LWLock	   *lock;			/* whose area is whose */
	ConditionVariable opened;
	int			nareas;
	AuditArea	areas[FLEXIBLE_ARRAY_MEMBER];
} AuditShared;

static AuditShared *shared = NULL;
static AuditArea *my_area = NULL;	/* where this database's was */
static int	durability = DURABILITY_FLUSH;
static char *retention = NULL;
static void (*summon_auditor) (void) = NULL;
static void (*write_directly) (const AuditRecord *record) = NULL;

/* The changes of the current transaction: the last one's ticket, and how deep
 * in subtransactions there may be any. */
static AuditArea *changed_area = NULL;
static uint64 changed_ticket = 0;
static int	changed_level = 0;

/* ---- shared memory ---- */

/* Each database takes three workers at least, one of them an auditor. */
static int
area_count(void)
{
	return Max(max_worker_processes / 3, 1);
}

static Size
shared_size(void)
{
	return add_size(offsetof(AuditShared, areas),
					mul_size(area_count(), sizeof(AuditArea)));
}

static int
lock_count(void)
{
	return 1 + area_count();
}

static void
init_shared(LWLockPadded *locks)
{
	shared->lock = &locks[0].lock;
	ConditionVariableInit(&shared->opened);
	shared->nareas = area_count();
	for (int i = 0; i < shared->nareas; i++)
	{
		shared->areas[i].lock = &locks[i + 1].lock;
		for (int k = 0; k < lengthof(shared->areas[i].moved); k++)
			ConditionVariableInit(&shared->areas[i].moved[k]);
	}
}

static const SharedPart part = {
	.name = "mlint audit",
	.size = shared_size,
	.locks = lock_count,
	.memory = (void **) &shared,
	.init = init_shared,
};

/* The area of this database, or NULL. It may have an auditor or not. */
static AuditArea *
find_area(void)
{
	if (my_area && my_area->database == MyDatabaseId)
		return my_area;
	my_area = NULL;
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < shared->nareas; i++)
	{
		if (shared->areas[i].database == MyDatabaseId)
			my_area = &shared->areas[i];
	}
	LWLockRelease(shared->lock);
	return my_area;
}

/* ---- the ring ---- */

/*
 * Copy a record in, if there is room; it is never split. The caller has the
 * lock.
 */
static bool
ring_put(AuditArea *area, const AuditRecord *record)
{
	Size		at = area->head % AUDIT_RING_BYTES;
	Size		left = AUDIT_RING_BYTES - at;
	Size		skip = left < record->size ? left : 0;

	if (area->head + skip + record->size - area->written > AUDIT_RING_BYTES)
		return false;
	if (skip > 0)
	{
		((AuditRecord *) (area->ring + at))->size = 0;
		area->head += skip;
		at = 0;
	}
	memcpy(area->ring + at, record, record->size);
	area->head += record->size;
	return true;
}

const AuditRecord *
audit_area_read(AuditArea *area, uint64 *position)
{
	Size		at = *position % AUDIT_RING_BYTES;
	const AuditRecord *record = (AuditRecord *) (area->ring + at);

	if (record->size == 0)
	{
		*position += AUDIT_RING_BYTES - at;
		record = (AuditRecord *) area->ring;
	}
	*position += record->size;
	return record;
}

/*
 * Must the auditor be woken? The caller has the lock, and sets the latch that
 * it gets when it has given the lock back.
 */
static Latch *
call_auditor(AuditArea *area, bool urgent)
{
	if (area->state == AUDITOR_BUSY ||
		(area->state == AUDITOR_GATHERING && !urgent))
		return NULL;
	area->state = AUDITOR_BUSY;
	return area->latch;
}

/* ---- waiting ---- */

/*
 * What to wait on until a position is written. The caller has the lock.
 */
static ConditionVariable *
turn_of(AuditArea *area, uint64 position)
{
	return &area->moved[(area->batch + (position > area->taken)) % 2];
}

/*
 * There is no auditor. Ask for one, and give up when none comes in time;
 * *deadline is 0 at first.
 */
static void
bear_absence(TimestampTz *deadline)
{
	TimestampTz now = GetCurrentTimestamp();

	if (*deadline == 0)
	{
		*deadline = now + ABSENT_MS * INT64CONST(1000);
		summon_auditor();
	}
	else if (now > *deadline)
	{
		ConditionVariableCancelSleep();
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_AUDIT),
				 errmsg("the audit log of database \"%s\" is not being written",
						get_database_name(MyDatabaseId)),
				 errdetail("No auditor came within %d seconds, and what cannot be accounted for does not happen.",
						   ABSENT_MS / 1000),
				 errhint("The server's log says why it does not start; mlint.stat_workers shows those that run. It takes one of max_worker_processes for each database.")));
	}
}

/*
 * Hand the record to the auditor, waiting for room and for the auditor.
 * Returns the ticket; *where is the area it is for.
 */
static uint64
hand_over(const AuditRecord *record, AuditArea **where)
{
	TimestampTz deadline = 0;
	uint64		ticket = 0;

	for (;;)
	{
		AuditArea  *area = find_area();
		ConditionVariable *turn = &shared->opened;
		Latch	   *latch = NULL;
		bool		present = false;

		if (area)
		{
			LWLockAcquire(area->lock, LW_EXCLUSIVE);
			present = area->open && area->database == MyDatabaseId;
			if (present && ring_put(area, record))
			{
				ticket = area->head;
				latch = call_auditor(area, ticket - area->written >=
									 RING_ENOUGH);
			}
			else if (present)
			{
				/* Whatever is written next makes room. */
				area->wanted = area->head;
				turn = turn_of(area, area->written + 1);
				latch = call_auditor(area, true);
			}
			LWLockRelease(area->lock);
			if (latch)
				SetLatch(latch);
			if (ticket != 0)
			{
				*where = area;
				break;
			}
		}
		if (present)
			deadline = 0;
		else
			bear_absence(&deadline);
		(void) ConditionVariableTimedSleep(turn, LOOK_MS,
										   mlint_wait_event("MlintAuditRing"));
	}
	ConditionVariableCancelSleep();
	return ticket;
}

/*
 * Wait until the auditor has committed what the ticket is for. Returns how
 * far the WAL must be flushed for that to be on disk.
 */
static XLogRecPtr
wait_written(AuditArea *area, uint64 ticket)
{
	TimestampTz deadline = 0;
	XLogRecPtr	lsn;

	for (;;)
	{
		ConditionVariable *turn;
		Latch	   *latch = NULL;
		bool		written;
		bool		present;

		LWLockAcquire(area->lock, LW_EXCLUSIVE);
		written = area->written >= ticket;
		present = area->open;
		lsn = area->lsn;
		turn = turn_of(area, ticket);
		if (!written)
		{
			area->wanted = Max(area->wanted, ticket);
			latch = call_auditor(area, true);
		}
		LWLockRelease(area->lock);
		if (written)
			break;
		if (latch)
			SetLatch(latch);
		if (present)
			deadline = 0;
		else
			bear_absence(&deadline);
		(void) ConditionVariableTimedSleep(turn, LOOK_MS,
										   mlint_wait_event("MlintAuditWrite"));
	}
	ConditionVariableCancelSleep();
	return lsn;
}

/* ---- who acts ---- */

typedef struct RoleName
{
	Oid			role;
	NameData	name;
} RoleName;

static RoleName current_role;
static RoleName session_role;

static void
forget_role_names(Datum arg, int cache, uint32 hash)
{
	current_role.role = InvalidOid;
	session_role.role = InvalidOid;
}

/* The name of a role, kept; one that was dropped has a number. */
static const char *
role_name(RoleName *known, Oid role)
{
	static bool watching = false;
	HeapTuple	tuple;

	if (known->role == role)
		return NameStr(known->name);
	if (!watching)
		CacheRegisterSyscacheCallback(AUTHOID, forget_role_names, (Datum) 0);
	watching = true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	if (HeapTupleIsValid(tuple))
	{
		known->name = ((Form_pg_authid) GETSTRUCT(tuple))->rolname;
		ReleaseSysCache(tuple);
	}
	else
		snprintf(NameStr(known->name), NAMEDATALEN, "%u", role);
	known->role = role;
	return NameStr(known->name);
}

/* The client's address as type inet shows it, or NULL. */
static const char *
client_address(void)
{
	static bool known = false;
	static char address[64];

	if (!known && MyProcPort)
	{
		LOCAL_FCINFO(call, 0);
		Datum		inet;

		InitFunctionCallInfoData(*call, NULL, 0, InvalidOid, NULL, NULL);
		inet = inet_client_addr(call);
		if (!call->isnull)
			strlcpy(address,
					DatumGetCString(DirectFunctionCall1(inet_out, inet)),
					sizeof(address));
	}
	known = true;
	return address[0] ? address : NULL;
}

static void
add_text(AuditRecordBuffer *buffer, AuditField field, const char *text)
{
	AuditRecord *record = &buffer->record;
	size_t		len = text ? strlen(text) : 0;

	record->len[field] = text ? len : AUDIT_NULL;

	if (record->size + len > sizeof(buffer->bytes))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("an entry of the audit log may have %d bytes, and this is longer",
						AUDIT_ENTRY_MAX)));
	if (len > 0)
		memcpy(buffer->bytes + record->size, text, len);
	record->size += len;
}

void
audit_compose(AuditRecordBuffer *buffer, const char *action,
			  const char *object_type, const char *object,
			  AuditOutcome outcome, const char *details)
{
	static const char *const outcomes[] = {"ok", "ok", "denied", "failed"};
	AuditRecord *record = &buffer->record;

	record->size = offsetof(AuditRecord, texts);
	record->pid = MyProcPid;
	record->at = GetCurrentTimestamp();
	record->subxid = 0;
	if (outcome == AUDIT_CHANGED)
		record->subxid = U64FromFullTransactionId(GetCurrentFullTransactionId());
	record->xid = U64FromFullTransactionId(GetTopFullTransactionIdIfAny());
	add_text(buffer, AUDIT_ROLE, role_name(&current_role, owner_caller()));
	add_text(buffer, AUDIT_SESSION_ROLE,
			 role_name(&session_role, GetSessionUserId()));
	/* Processes of ours have no name but that of their kind. */
	add_text(buffer, AUDIT_APPLICATION,
			 application_name && application_name[0] ? application_name :
			 MyBgworkerEntry ? MyBgworkerEntry->bgw_type : "");
	add_text(buffer, AUDIT_CLIENT_ADDR, client_address());
	add_text(buffer, AUDIT_ACTION, action);
	add_text(buffer, AUDIT_OBJECT_TYPE, object_type);
	add_text(buffer, AUDIT_OBJECT, object);
	add_text(buffer, AUDIT_OUTCOME, outcomes[outcome]);
	add_text(buffer, AUDIT_DETAILS, details);
	record->size = MAXALIGN(record->size);
}

/* ---- the call ---- */

/*
 * Details as jsonb prints them: what is hashed can then be had from the view.
 * A caller in a loop tends to give the same again.
 */
static const char *
canonical(const char *details)
{
	static char given[256];
	static char result[512];
	Jsonb	   *jsonb;
	char	   *text;

	if (details == NULL)
		return NULL;
	if (given[0] && strcmp(details, given) == 0)
		return result;
	jsonb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											   CStringGetDatum(details)));
	if (!JB_ROOT_IS_OBJECT(jsonb))
		elog(ERROR, "details of an audit entry must be a JSON object");
	text = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));

	pfree(jsonb);
	if (strlen(details) < sizeof(given) && strlen(text) < sizeof(result))
	{
		strlcpy(given, details, sizeof(given));
		strlcpy(result, text, sizeof(result));
	}
	return text;
}

/*
 * Has this transaction itself created the extension? Then no auditor can see
 * the log, and whatever is rolled back goes together with the log.
 */
static bool
extension_is_new(void)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;
	bool		is_new;

	if (!TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return false;
	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum("mlint"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	is_new = HeapTupleIsValid(tuple) &&
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return is_new;
}

void
audit(AuditOutcome outcome, const char *action, const char *object_type,
	  const char *object, const char *details)
{
	AuditRecordBuffer buffer;
	AuditArea  *area;
	uint64		ticket;

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_AUDIT),
				 errmsg("\"%s\" is possible only on the primary server, because the audit log cannot be written here",
						action),
				 errdetail("This server is in recovery, and what cannot be accounted for does not happen.")));

	audit_compose(&buffer, action, object_type, object, outcome,
				  canonical(details));
	area = find_area();
	if ((area == NULL || !area->open) && extension_is_new())
	{
		write_directly(&buffer.record);
		return;
	}
	ticket = hand_over(&buffer.record, &area);
	if (outcome == AUDIT_CHANGED)
	{
		changed_area = area;
		changed_ticket = ticket;
		changed_level = GetCurrentTransactionNestLevel();
	}
	else if (outcome == AUDIT_DONE && durability == DURABILITY_FLUSH)
	{
		XLogRecPtr	lsn = wait_written(area, ticket);

		XLogFlush(lsn);
		HOLD_INTERRUPTS();
		SyncRepWaitForLSN(lsn, false);
		RESUME_INTERRUPTS();
	}
}

/*
 * mlint.audit_note(action, object_type, object, details, kind): audit() for
 * our functions in SQL. A change is waited for here and not at commit, since
 * they note what they do before they take locks that the auditor might need.
 */
Datum
mlint_audit_note(PG_FUNCTION_ARGS)
{
	static const char *const kinds[] = {"changed", "done", "denied",
	"failed"};
	char	   *details = NULL;
	char	   *kind;
	int			outcome = 0;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(4))
		elog(ERROR, "action, object_type and kind must not be null");
	if (!PG_ARGISNULL(3))
	{
		Jsonb	   *jsonb = PG_GETARG_JSONB_P(3);

		details = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
	}
	kind = text_to_cstring(PG_GETARG_TEXT_PP(4));
	while (outcome < lengthof(kinds) && strcmp(kind, kinds[outcome]) != 0)
		outcome++;
	if (outcome == lengthof(kinds))
		elog(ERROR, "kind must be changed, done, denied or failed");
	audit(outcome, text_to_cstring(PG_GETARG_TEXT_PP(0)),
		  text_to_cstring(PG_GETARG_TEXT_PP(1)),
		  PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2)),
		  details);
	if (outcome == AUDIT_CHANGED && changed_area)
		(void) wait_written(changed_area, changed_ticket);
	PG_RETURN_VOID();
}

/* ---- the end of transactions ---- */

/* Changes may have been rolled back: the auditor is to look, and to say so. */
static void
call_to_resolve(AuditArea *area)
{
	Latch	   *latch;

	LWLockAcquire(area->lock, LW_EXCLUSIVE);
	latch = area->resolve ? NULL : call_auditor(area, true);
	area->resolve = true;
	LWLockRelease(area->lock);
	if (latch)
		SetLatch(latch);
}

char *
audit_clip(const char *text)
{
	return pnstrdup(text, pg_mbcliplen(text, strlen(text), CLIP_BYTES));
}

void
audit_prepared_ended(void)
{
	AuditArea  *area = find_area();

	if (area)
		call_to_resolve(area);
}

/*
 * The transaction is about to commit. What fails now would be logged with the
 * statement that has brought it here, and that may contain a secret.
 */
static void
wait_for_changes(void)
{
	HIDE_STATEMENT_BEGIN();
	(void) wait_written(changed_area, changed_ticket);
	HIDE_STATEMENT_END();
}

static void
on_xact(XactEvent event, void *arg)
{
	if (changed_area == NULL)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			wait_for_changes();
			break;
		case XACT_EVENT_ABORT:
			call_to_resolve(changed_area);
			changed_area = NULL;
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			changed_area = NULL;
			break;
		default:
			break;
	}
}

static void
on_subxact(SubXactEvent event, SubTransactionId sub, SubTransactionId parent,
		   void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (changed_area == NULL || changed_level < level)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		call_to_resolve(changed_area);
	if (event == SUBXACT_EVENT_ABORT_SUB || event == SUBXACT_EVENT_COMMIT_SUB)
		changed_level = level - 1;
}

/* ---- for the auditor ---- */

/*
 * Can nobody miss what the area holds? Its auditor has left, and so has
 * everything in the ring, unless the database itself was dropped.
 */
static bool
area_is_idle(AuditArea *area)
{
	Oid			database = area->database;
	bool		exists = SearchSysCacheExists1(DATABASEOID,
											   ObjectIdGetDatum(database));
	bool		idle;

	LWLockAcquire(area->lock, LW_SHARED);
	idle = area->database == database && area->latch == NULL &&
		(area->head == area->written || !exists);
	LWLockRelease(area->lock);
	return idle;
}

/* The area for this database: the one it had, a free one, an idle one. */
static AuditArea *
choose_area(void)
{
	for (int i = 0; i < shared->nareas; i++)
	{
		if (shared->areas[i].database == MyDatabaseId)
			return &shared->areas[i];
	}
	for (int i = 0; i < shared->nareas; i++)
	{
		if (!OidIsValid(shared->areas[i].database) ||
			area_is_idle(&shared->areas[i]))
			return &shared->areas[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("there is no room for the audit log of another database"),
			 errdetail("All %d areas of shared memory are in use.",
					   shared->nareas),
			 errhint("Raise max_worker_processes: there is an area for every three of them.")));
}

AuditArea *
audit_area_take(Oid extension, uint64 *committed)
{
	AuditArea  *area = choose_area();
	Oid			owner = area->database;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (area->latch != NULL || area->database != owner)
	{
		LWLockRelease(shared->lock);
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another auditor has taken the area in shared memory"),
				 errhint("It will be tried again.")));
	}
	LWLockAcquire(area->lock, LW_EXCLUSIVE);
	if (area->database != MyDatabaseId || area->extension != extension)
	{
		area->database = MyDatabaseId;
		area->extension = extension;
		area->written = area->head;
		area->seq = 0;
	}
	area->taken = area->written;
	*committed = area->written;
	if (area->batch_end > area->written &&
		TransactionIdDidCommit(area->batch_xid))
		*committed = area->batch_end;
	area->batch_end = 0;
	area->batch_seq = 0;
	area->wanted = area->head;
	area->latch = MyLatch;
	area->state = AUDITOR_BUSY;
	area->resolve = true;
	LWLockRelease(area->lock);
	LWLockRelease(shared->lock);
	return area;
}

/* All who wait for the auditor are to look again. */
static void
wake_waiters(AuditArea *area)
{
	for (int i = 0; i < lengthof(area->moved); i++)
		ConditionVariableBroadcast(&area->moved[i]);
}

void
audit_area_open(AuditArea *area)
{
	LWLockAcquire(area->lock, LW_EXCLUSIVE);
	area->open = true;
	LWLockRelease(area->lock);
	ConditionVariableBroadcast(&shared->opened);
	wake_waiters(area);
}

void
audit_area_close(AuditArea *area)
{
	LWLockAcquire(area->lock, LW_EXCLUSIVE);
	area->open = false;
	area->latch = NULL;
	LWLockRelease(area->lock);
	wake_waiters(area);
}

bool
audit_area_head(int64 *written, int64 *committing)
{
	AuditArea  *area = find_area();
	bool		present = false;

	if (area)
	{
		LWLockAcquire(area->lock, LW_SHARED);
		present = area->open && area->database == MyDatabaseId;
		*written = area->seq;
		*committing = Max(area->seq, area->batch_seq);
		LWLockRelease(area->lock);
	}
	return present;
}

/* mlint.audit_buffer(): how the ring of this database stands. */
Datum
mlint_audit_buffer(PG_FUNCTION_ARGS)
{
	AuditArea  *area = find_area();
	TupleDesc	desc;
	Datum		values[5];
	bool		nulls[5] = {0};
	bool		open = false;
	int64		seq = 0;
	uint64		waiting = 0;
	TimestampTz oldest = 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "the result of audit_buffer() is a row");
	if (area)
	{
		LWLockAcquire(area->lock, LW_SHARED);
		if (area->database == MyDatabaseId)
		{
			uint64		position = area->written;

			open = area->open;
			seq = area->seq;
			waiting = area->head - area->written;
			if (waiting > 0)
				oldest = audit_area_read(area, &position)->at;
		}
		LWLockRelease(area->lock);
	}
	values[0] = BoolGetDatum(open);
	values[1] = Int64GetDatum(waiting);
	values[2] = Int64GetDatum(AUDIT_RING_BYTES);
	values[3] = TimestampTzGetDatum(oldest);
	nulls[3] = oldest == 0;
	values[4] = Int64GetDatum(seq);
	nulls[4] = seq == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

void
audit_register_room(void (*summon) (void),
					void (*write) (const AuditRecord *record))
{
	summon_auditor = summon;
	write_directly = write;
}

void
audit_init(void)
{
	DefineCustomEnumVariable("mlint.audit_durability",
							 "When an action that cannot be undone, such as reading a secret, may take place.",
							 "flush: when its entry in the audit log is on disk. memory: at once; a crash of the server loses the entries of about the last tenth of a second.",
							 &durability, DURABILITY_FLUSH, durabilities,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("mlint.audit_retention",
							   "How long entries of the audit log are kept.",
							   "They are dropped by whole months.",
							   &retention, "1 year", PGC_SIGHUP, 0,
							   retention_check, NULL, NULL);
	shared_part(&part);
	RegisterXactCallback(on_xact, NULL);
	RegisterSubXactCallback(on_subxact, NULL);
}
