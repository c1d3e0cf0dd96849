/*
 * sessions.c
 *		Sessions: their rows, how these are locked, and the functions on them.
 *
 * Who adds a message locks the session's row in FOR KEY SHARE, so any number
 * can at once, and a change of the status disturbs nobody. Who archives or
 * removes a session locks it FOR UPDATE, which waits for all of them and keeps
 * the next ones out. Locking follows the row to its latest version and then
 * looks at the status there, so that it holds in any isolation level: what
 * came after the transaction's snapshot counts, and is no serialization error.
 *
 * A row is not updated for a message, or a busy session would be a row with
 * thousands of versions. Only active_at moves, and only when it is an hour old.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/owner.h"
#include "common/rows.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "sessions/check.h"
#include "sessions/row.h"
#include "usage/usage.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(mlint_session_register);
PG_FUNCTION_INFO_V1(mlint_session_get);
PG_FUNCTION_INFO_V1(mlint_session_set_status);
PG_FUNCTION_INFO_V1(mlint_session_delete);

/* How old active_at becomes. */
#define ACTIVE_US	USECS_PER_HOUR

const char *const session_status_words[] = {"active", "completed", "failed",
"archived", NULL};

static SessionArchiver archiver = NULL;

void
sessions_init(void)
{
}

void
session_register_archiver(SessionArchiver function)
{
	archiver = function;
}

void
session_unknown(const char *session_id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("session \"%s\" does not exist", session_id),
			 errhint("mlint.session_register() adds a session; mlint.session_list() lists them.")));
}

/* ---- rows ---- */

SessionStatus
session_status(const char *word)
{
	for (int i = 0; session_status_words[i]; i++)
	{
		if (strcmp(session_status_words[i], word) == 0)
			return i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid status of a session: \"%s\"", word),
			 errhint("It is one of: active, completed, failed, archived.")));
}

static void
take_row(HeapTuple row, TupleDesc desc, Session *session)
{
	bool		isnull;

	session->id = DatumGetInt64(heap_getattr(row, SESSION_ROW_ID, desc,
											 &isnull));
	session->status =
		session_status(TextDatumGetCString(heap_getattr(row, SESSION_STATUS,
														desc, &isnull)));
	session->active_at =
		DatumGetTimestampTz(heap_getattr(row, SESSION_ACTIVE_AT, desc,
										 &isnull));
}

/* Begin a scan for the row with this session_id, or with this id. */
static void
scan_begin(RowScan *scan, const char *session_id, int64 id, bool latest)
{
	ScanKeyData key;

	if (session_id)
		row_key(&key, SESSION_SESSION_ID, F_TEXTEQ,
				CStringGetTextDatum(session_id));
	else
		row_key(&key, SESSION_ROW_ID, F_INT8EQ, Int64GetDatum(id));
	rows_begin(scan, "session", session_id ? "session_session_id_key" :
			   "session_pkey", 1, &key, latest);
}

static bool
find(const char *session_id, bool latest, Session *session)
{
	RowScan		scan;
	HeapTuple	row;

	scan_begin(&scan, session_id, 0, latest);
	row = rows_next(&scan);
	if (row)
		take_row(row, scan.desc, session);
	rows_end(&scan);
	return row != NULL;
}

bool
session_find(const char *session_id, Session *session)
{
	return find(session_id, true, session);
}

bool
session_read(const char *session_id, Session *session)
{
	return find(session_id, false, session);
}

/* Where a row is that is committed now. */
static bool
find_place(const char *session_id, int64 id, ItemPointer place)
{
	RowScan		scan;
	HeapTuple	row;

	scan_begin(&scan, session_id, id, true);
	row = rows_next(&scan);
	if (row)
		*place = row->t_self;
	rows_end(&scan);
	return row != NULL;
}

bool
session_row_lock(const char *session_id, int64 id, LockTupleMode mode,
				 bool skip, Session *session, HeapTuple *tuple)
{
	Relation	relation = table_open(mlint_relation("session"), RowShareLock);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	ItemPointerData place;
	bool		found = false;

	/*
	 * The lock must be on the version that an update makes at this moment,
	 * too, or it is lost when that commits. One that is removed while we wait
	 * may be there anew.
	 */
	while (find_place(session_id, id, &place))
	{
		TM_FailureData failure;
		TM_Result	result;

		result = table_tuple_lock(relation, &place, GetActiveSnapshot(), slot,
								  GetCurrentCommandId(true), mode,
								  skip ? LockWaitSkip : LockWaitBlock,
								  TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS |
								  TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
		if (result == TM_Ok)
		{
			HeapTuple	row = ExecCopySlotHeapTuple(slot);

			take_row(row, RelationGetDescr(relation), session);
			if (tuple)
				*tuple = row;
			found = true;
			break;
		}
		if (result == TM_WouldBlock)
			break;
		if (result != TM_Deleted)
			elog(ERROR, "could not lock a session: result %d", (int) result);
		CHECK_FOR_INTERRUPTS();
	}
	ExecDropSingleTupleTableSlot(slot);
	/* The lock stays until the transaction ends. */
	table_close(relation, NoLock);
	return found;
}

bool
session_lock(const char *session_id, bool skip_locked, Session *session)
{
	return session_row_lock(session_id, 0, LockTupleExclusive, skip_locked,
							session, NULL);
}

bool
session_lock_shared(const char *session_id, Session *session)
{
	return session_row_lock(session_id, 0, LockTupleKeyShare, false, session,
							NULL);
}

uint64
session_write(SessionStatement *statement, Datum *values, const char *nulls)
{
	Snapshot	snapshot;
	int			result;

	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(statement->sql, statement->nargs,
									   statement->types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare a statement on sessions");
		statement->plan = plan;
	}
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	result = SPI_execute_snapshot(statement->plan, values, nulls, snapshot,
								  InvalidSnapshot, false, true, 0);
	UnregisterSnapshot(snapshot);
	if (result < 0)
		elog(ERROR, "could not write sessions: %s",
			 SPI_result_code_string(result));
	return SPI_processed;
}

void
session_touch(const Session *session)
{
	static SessionStatement statement = {
		"UPDATE mlint.session SET active_at = $2"
		" WHERE id = $1 AND active_at < $2",
		2, {INT8OID, TIMESTAMPTZOID}
	};
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[] = {Int64GetDatum(session->id),
	TimestampTzGetDatum(now)};
	Session		latest;
	OwnerScope	scope;

	if (now - session->active_at < ACTIVE_US ||
		!session_row_lock(NULL, session->id, LockTupleNoKeyExclusive, true,
						  &latest, NULL))
		return;
	owner_begin(&scope);
	(void) session_write(&statement, values, NULL);
	owner_end(&scope);
}

void
session_status_set(int64 id, SessionStatus status)
{
	/* Who was ended and is archived has ended when it did, still. */
	static SessionStatement statement = {
		"UPDATE mlint.session SET status = $2, updated_at = $3,"
		" active_at = CASE $2 WHEN 'archived' THEN active_at ELSE $3 END,"
		" ended_at = CASE $2 WHEN 'archived' THEN ended_at"
		" WHEN 'active' THEN NULL ELSE coalesce(ended_at, $3) END"
		" WHERE id = $1",
		3, {INT8OID, TEXTOID, TIMESTAMPTZOID}
	};
	Datum		values[3];
	OwnerScope	scope;

	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(session_status_words[status]);
	values[2] = TimestampTzGetDatum(GetCurrentTimestamp());
	owner_begin(&scope);
	if (session_write(&statement, values, NULL) != 1)
		elog(ERROR, "a session that is locked is gone");
	owner_end(&scope);
}

void
session_remove(int64 id)
{
	static SessionStatement messages = {
		"DELETE FROM mlint.message WHERE session = $1", 1, {INT8OID}
	};
	static SessionStatement session = {
		"DELETE FROM mlint.session WHERE id = $1", 1, {INT8OID}
	};
	Datum		values[] = {Int64GetDatum(id)};
	OwnerScope	scope;

	owner_begin(&scope);
	usage_forget_session(id);
	(void) session_write(&messages, values, NULL);
	if (session_write(&session, values, NULL) != 1)
		elog(ERROR, "a session that is locked is gone");
	owner_end(&scope);
}

/* A row of the table as one of the view. */
static Datum
view_row(FunctionCallInfo fcinfo, HeapTuple row, TupleDesc desc)
{
	Datum		values[SESSION_NCOLUMNS];
	bool		nulls[SESSION_NCOLUMNS];
	TupleDesc	result;

	if (get_call_result_type(fcinfo, NULL, &result) != TYPEFUNC_COMPOSITE ||
		result->natts != SESSION_NCOLUMNS - 1)
		elog(ERROR, "return type must be mlint.sessions");
	heap_deform_tuple(row, desc, values, nulls);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(result),
											 values + 1, nulls + 1));
}

/* The session as functions return it; unknown is an error. */
static Datum
read_session(FunctionCallInfo fcinfo, const char *session_id, bool latest)
{
	RowScan		scan;
	HeapTuple	row;
	Datum		result;

	scan_begin(&scan, session_id, 0, latest);
	row = rows_next(&scan);
	if (row == NULL)
		session_unknown(session_id);
	result = view_row(fcinfo, row, scan.desc);
	rows_end(&scan);
	return result;
}

/* ---- functions ---- */

/* What a session is registered with. */
typedef struct Registration
{
	const char *session_id;
	const char *model_id;
	const char *model_version;
	ArrayType  *tags;
	Jsonb	   *metadata;
	TimestampTz started_at;
	bool		started_at_given;
} Registration;

/* In what does a row differ from the registration? NULL: in nothing. */
static const char *
difference(const Registration *r, HeapTuple row, TupleDesc desc)
{
	bool		isnull;
	ArrayType  *tags;

#define COLUMN(n)	heap_getattr(row, n, desc, &isnull)
	if (strcmp(TextDatumGetCString(COLUMN(SESSION_MODEL_ID)),
			   r->model_id) != 0)
		return "model_id";
	if (strcmp(TextDatumGetCString(COLUMN(SESSION_MODEL_VERSION)),
			   r->model_version) != 0)
		return "model_version";
	/* Both sorted, and built by the same function. */
	tags = DatumGetArrayTypeP(COLUMN(SESSION_TAGS));
	if (VARSIZE(tags) != VARSIZE(r->tags) ||
		memcmp(tags, r->tags, VARSIZE(tags)) != 0)
		return "tags";
	if (compareJsonbContainers(&DatumGetJsonbP(COLUMN(SESSION_METADATA))->root,
							   &r->metadata->root) != 0)
		return "metadata";
	if (r->started_at_given &&
		DatumGetTimestampTz(COLUMN(SESSION_STARTED_AT)) != r->started_at)
		return "started_at";
#undef COLUMN
	return NULL;
}

/*
 * The session as it is registered, which must be as is asked for. False: it is
 * not there.
 */
static bool
registered(FunctionCallInfo fcinfo, const Registration *r, Datum *result)
{
	RowScan		scan;
	HeapTuple	row;

	scan_begin(&scan, r->session_id, 0, true);
	row = rows_next(&scan);
	if (row)
	{
		const char *different = difference(r, row, scan.desc);

		if (different)
			ereport(ERROR,
					(errcode(ERRCODE_UNIQUE_VIOLATION),
					 errmsg("session \"%s\" exists already, with other %s",
							r->session_id, different),
					 errdetail("Registering it once more does nothing when model_id, model_version, tags, metadata and, if given, started_at are the same."),
					 errhint("Use another session_id for another session; mlint.session_get() shows this one.")));
		*result = view_row(fcinfo, row, scan.desc);
	}
	rows_end(&scan);
	return row != NULL;
}

/*
 * Add the row, unless somebody else does at the same time: then wait for what
 * becomes of that. True: it is ours.
 */
static bool
insert_session(const Registration *r)
{
	static SessionStatement statement = {
		"INSERT INTO mlint.session (session_id, model_id, model_version,"
		" tags, metadata, started_at, active_at, updated_at)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $7)"
		" ON CONFLICT (session_id) DO NOTHING",
		7, {TEXTOID, TEXTOID, TEXTOID, TEXTARRAYOID, JSONBOID, TIMESTAMPTZOID,
		TIMESTAMPTZOID}
	};
	Datum		values[7];
	OwnerScope	scope;
	bool		added;

	values[0] = CStringGetTextDatum(r->session_id);
	values[1] = CStringGetTextDatum(r->model_id);
	values[2] = CStringGetTextDatum(r->model_version);
	values[3] = PointerGetDatum(r->tags);
	values[4] = JsonbPGetDatum(r->metadata);
	values[5] = TimestampTzGetDatum(r->started_at);
	values[6] = TimestampTzGetDatum(GetCurrentTimestamp());
	owner_begin(&scope);
	added = session_write(&statement, values, NULL) == 1;
	owner_end(&scope);
	return added;
}

/*
 * mlint.session_register(session_id, model_id, model_version, tags, metadata,
 * started_at)
 */
Datum
mlint_session_register(PG_FUNCTION_ARGS)
{
	Registration r;
	Session		session;
	Datum		result;

	r.session_id = name_argument(fcinfo, 0, "session_id");
	r.model_id = name_argument(fcinfo, 1, "model_id");
	r.model_version = optional_name_argument(fcinfo, 2, "model_version");
	if (r.model_version == NULL)
		r.model_version = "";
	r.tags = tags_argument(fcinfo, 3, "tags");
	r.metadata = object_argument(fcinfo, 4, "metadata");
	r.started_at_given = !PG_ARGISNULL(5);
	r.started_at = r.started_at_given ? time_argument(fcinfo, 5, "started_at") :
		GetCurrentTransactionStartTimestamp();
	require_writable(fcinfo);

	/* One that is being removed is none, once it is. */
	while (!((session_lock_shared(r.session_id, &session) ||
			  insert_session(&r)) &&
			 registered(fcinfo, &r, &result)))
		CHECK_FOR_INTERRUPTS();
	PG_RETURN_DATUM(result);
}

/* mlint.session_get(session_id) */
Datum
mlint_session_get(PG_FUNCTION_ARGS)
{
	char	   *session_id = name_argument(fcinfo, 0, "session_id");

	PG_RETURN_DATUM(read_session(fcinfo, session_id, false));
}

/* Raise unless a session may go from one status to another that is not it. */
static void
check_transition(const char *session_id, SessionStatus from, SessionStatus to)
{
	if (from == SESSION_ARCHIVED)
		session_archived(session_id);
	if (from != SESSION_ACTIVE && to != SESSION_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("session \"%s\" is %s and cannot become %s",
						session_id, session_status_words[from],
						session_status_words[to]),
				 errhint("It has ended. Resume it first, with mlint.session_set_status(session_id, 'active').")));
}

void
session_archived(const char *session_id)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("session \"%s\" is archived", session_id),
			 errhint("mlint.archive_restore() brings it back.")));
}

static void
archive(const char *session_id)
{
	Session		session;

	if (!session_find(session_id, &session))
		session_unknown(session_id);
	if (session.status == SESSION_ARCHIVED)
		return;
	if (archiver == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("session \"%s\" cannot be archived, because there is nothing that archives",
						session_id)));
	archiver(session_id);
}

/* mlint.session_set_status(session_id, status) */
Datum
mlint_session_set_status(PG_FUNCTION_ARGS)
{
	char	   *session_id = name_argument(fcinfo, 0, "session_id");
	char	   *word = name_argument(fcinfo, 1, "status");
	SessionStatus status = session_status(word);
	Session		session;

	require_writable(fcinfo);
	if (status == SESSION_ARCHIVED)
		archive(session_id);
	else
	{
		if (!session_row_lock(session_id, 0, LockTupleNoKeyExclusive, false,
							  &session, NULL))
			session_unknown(session_id);
		if (session.status != status)
		{
			check_transition(session_id, session.status, status);
			session_status_set(session.id, status);
		}
	}
	PG_RETURN_DATUM(read_session(fcinfo, session_id, true));
}

/* mlint.session_delete(session_id) */
Datum
mlint_session_delete(PG_FUNCTION_ARGS)
{
	char	   *session_id = name_argument(fcinfo, 0, "session_id");
	Session		session;

	require_writable(fcinfo);
	if (!session_lock(session_id, false, &session))
		session_unknown(session_id);
	if (session.status == SESSION_ARCHIVED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("session \"%s\" is archived", session_id),
				 errhint("mlint.archive_delete() removes it together with its archive.")));
	audit(AUDIT_CHANGED, "session.delete", "session", session_id, NULL);
	session_remove(session.id);
	PG_RETURN_VOID();
}
