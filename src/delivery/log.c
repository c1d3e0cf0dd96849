/*
 * log.c
 *		The dispatcher's access to the tables; see log.h.
 *
 * Every statement is prepared once a process. They are planned to go by
 * index, whatever the statistics say: the tables are queues, whose statistics
 * are always old. Events are handed from the executor straight into memory of
 * their own, a row at a time, so that a batch is bounded by the bytes it holds
 * and not only by its rows.
 *
 * The log is read under a snapshot that is taken before the statement's locks:
 * a segment that was attached, written to and committed before the snapshot is
 * then always in the plan.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/datetime.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "common/compat.h"
#include "common/generation.h"
#include "common/peertext.h"
#include "common/trial.h"
#include "delivery/delivery.h"
#include "delivery/log.h"

typedef struct Segment
{
	int			segment;
	char		token[16];
} Segment;

/* Segments that we know the token of; read again when a new one appears. */
static Segment *segments = NULL;
static int	nsegments = 0;

static MemoryContext events_context = NULL;
static ItemPointerData cursor_tid;

/*
 * The event being written as JSON, 0: none; and the last ones that could not
 * be, more than any one read meets.
 */
#define MAX_FAULTS	1024

typedef struct Fault
{
	int64		event_id;
	char		reason[160];
} Fault;

static int64 writing_event = 0;
static Fault *faults = NULL;
static int	next_fault = 0;

/* What events are written into; for the network, in UTF-8 (RFC 8259). */
static StringInfoData body;
static bool utf8_bodies = false;

void
log_init(bool for_network)
{
	utf8_bodies = for_network;
}

/* ---- transactions and statements ---- */

void
log_begin(bool snapshot)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (snapshot)
		XactIsoLevel = XACT_REPEATABLE_READ;
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
}

void
log_commit(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
}

void
log_abort(void)
{
	AbortCurrentTransaction();
}

typedef struct Statement
{
	const char *sql;
	int			nargs;
	Oid			types[10];
	SPIPlanPtr	plan;
} Statement;

/*
 * Run a statement, preparing it at first. nulls as SPI has it, or NULL. dest
 * gets the rows, if there is one; else SPI_tuptable has them. Returns the
 * number of rows.
 */
static uint64
run(Statement *statement, Datum *values, const char *nulls, bool read_only,
	DestReceiver *dest)
{
	static const char *const by_index[][2] = {
		{"enable_seqscan", "off"}, {"enable_bitmapscan", "off"},
		{"enable_hashjoin", "off"}, {"enable_mergejoin", "off"},
		{"plan_cache_mode", "force_generic_plan"},
	};
	int			nest = NewGUCNestLevel();
	MemoryContext old = CurrentMemoryContext;
	int			result;

	for (int i = 0; i < lengthof(by_index); i++)
		(void) set_config_option(by_index[i][0], by_index[i][1], PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(statement->sql, statement->nargs,
									   statement->types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare \"%s\"", statement->sql);
		statement->plan = plan;
	}
	if (dest)
	{
		SPIExecuteOptions options = {0};
		ParamListInfo params = makeParamList(statement->nargs);

		for (int i = 0; i < statement->nargs; i++)
		{
			params->params[i].value = values[i];
			params->params[i].isnull = nulls && nulls[i] == 'n';
			params->params[i].pflags = PARAM_FLAG_CONST;
			params->params[i].ptype = statement->types[i];
		}
		options.params = params;
		options.read_only = read_only;
		options.dest = dest;
		result = SPI_execute_plan_extended(statement->plan, &options);
	}
	else
		result = SPI_execute_plan(statement->plan, values, nulls, read_only,
								  0);
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->sql,
			 SPI_result_code_string(result));
	AtEOXact_GUC(true, nest);
	/* SPI leaves us in a context of its own. */
	MemoryContextSwitchTo(old);
	return SPI_processed;
}

/* Column of a row in SPI_tuptable. */
static Datum
column(int row, int number, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 number, isnull);
}

static Datum
xid8_datum(uint64 xid)
{
	return FullTransactionIdGetDatum(FullTransactionIdFromU64(xid));
}

static uint64
datum_xid8(Datum datum)
{
	return U64FromFullTransactionId(DatumGetFullTransactionId(datum));
}

int64
log_destinations_generation(void)
{
	static Statement statement = {
		"SELECT max(generation) FROM mlint.generation"
		" WHERE room = 'destinations'"
	};
	int64		generation;
	bool		lost;

	(void) run(&statement, NULL, NULL, true, NULL);
	generation = DatumGetInt64(column(0, 1, &lost));
	if (lost)
		elog(ERROR, "mlint.generation has lost its rows");
	return generation;
}

/* ---- events ---- */

static void
load_segments(void)
{
	static Statement statement = {"SELECT segment, token FROM mlint.segment"};
	int			n = run(&statement, NULL, NULL, true, NULL);

	if (segments)
		pfree(segments);
	segments = MemoryContextAlloc(TopMemoryContext,
								  sizeof(Segment) * Max(n, 1));
	nsegments = n;
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		segments[i].segment = DatumGetInt32(column(i, 1, &isnull));
		strlcpy(segments[i].token,
				TextDatumGetCString(column(i, 2, &isnull)),
				sizeof(segments[i].token));
	}
}

static const char *
segment_token(int segment)
{
	for (int i = 0; i < nsegments; i++)
	{
		if (segments[i].segment == segment)
			return segments[i].token;
	}
	return NULL;
}

/* The columns that make an event, in every statement that reads them. */
#define EVENT_COLUMNS \
	"e.id, e.segment, e.xid, e.published_at, e.deliver_at," \
	" e.destination_id, e.type, e.data, e.metadata, e.life, e.webhook_id"
#define EVENT_NCOLUMNS 11

/* One huge event must not keep its buffer for good. */
static void
shrink_body(void)
{
	if (body.maxlen <= 1024 * 1024)
		return;
	pfree(body.data);
	body.data = NULL;
	body.maxlen = 0;
}

bool
log_blame_event(void)
{
	char		message[sizeof(faults->reason)];
	Fault	   *fault;

	if (writing_event == 0)
		return false;
	if (faults == NULL)
		faults = MemoryContextAllocZero(TopMemoryContext,
										sizeof(Fault) * MAX_FAULTS);
	fault = &faults[next_fault++ % MAX_FAULTS];
	error_take(message, sizeof(message));
	fault->event_id = writing_event;
	snprintf(fault->reason, sizeof(fault->reason),
			 "the event cannot be written as JSON: %s", message);
	writing_event = 0;
	shrink_body();
	return true;
}

static const char *
event_fault(int64 event_id)
{
	for (int i = 0; i < Min(next_fault, MAX_FAULTS); i++)
	{
		if (faults[i].event_id == event_id)
			return faults[i].reason;
	}
	return NULL;
}

/*
 * What was appended to the body since then, in UTF-8, if it is to leave the
 * database.
 */
static void
encode_body(int since)
{
	char	   *encoded;

	if (!utf8_bodies || GetDatabaseEncoding() == PG_UTF8)
		return;
	encoded = pg_server_to_any(body.data + since, body.len - since, PG_UTF8);
	if (encoded == body.data + since)
		return;
	body.len = since;
	appendStringInfoString(&body, encoded);
}

/* Write the envelope; returns where data lies in it. */
static size_t
write_body(const Datum *values, const char *type, size_t *data_len)
{
	Jsonb	   *data = DatumGetJsonbP(values[7]);
	Jsonb	   *metadata = DatumGetJsonbP(values[8]);
	char		stamp[MAXDATELEN + 1];
	int			utc = 0;
	size_t		data_at;
	size_t		metadata_at;

	JsonEncodeDateTime(stamp, values[3], TIMESTAMPTZOID, &utc);
	appendStringInfo(&body, "{\"id\":" INT64_FORMAT ",\"type\":",
					 DatumGetInt64(values[0]));
	escape_json(&body, type);
	appendStringInfo(&body, ",\"timestamp\":\"%s\",\"data\":", stamp);
	encode_body(0);
	data_at = body.len;
	(void) JsonbToCString(&body, &data->root, VARSIZE(data));
	encode_body(data_at);
	*data_len = body.len - data_at;
	metadata_at = body.len;
	appendStringInfoString(&body, ",\"metadata\":");
	(void) JsonbToCString(&body, &metadata->root, VARSIZE(metadata));
	appendStringInfoChar(&body, '}');
	encode_body(metadata_at);
	return data_at;
}

/*
 * Build an event, all of it in one chunk. Scratch memory is the current
 * context.
 */
static Event *
make_event(const Datum *values, const bool *isnull, bool with_body)
{
	Event	   *event;
	int64		id = DatumGetInt64(values[0]);
	int			segment = DatumGetInt32(values[1]);
	char	   *type = TextDatumGetCString(values[6]);
	char		made_id[64];
	const char *webhook_id = made_id;
	size_t		type_len = strlen(type) + 1;
	size_t		id_len;
	size_t		data_at = 0;
	size_t		data_len = 0;
	const char *fault = event_fault(id);
	char	   *p;

	if (body.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(&body);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(&body);
	if (fault == NULL && with_body)
	{
		writing_event = id;
		data_at = write_body(values, type, &data_len);
	}
	/* The copy of a database has its tokens, but not its oid. */
	if (isnull[10])
		snprintf(made_id, sizeof(made_id), "evt_%s%08x%x_" INT64_FORMAT,
				 segment_token(segment), (uint32) DatumGetInt32(values[9]),
				 MyDatabaseId, id);
	else
		webhook_id = TextDatumGetCString(values[10]);
	id_len = strlen(webhook_id) + 1;

	if (events_context == NULL)
		events_context = AllocSetContextCreate(TopMemoryContext,
											   "mlint events",
											   ALLOCSET_DEFAULT_SIZES);
	event = MemoryContextAllocHuge(events_context, sizeof(Event) + type_len +
								   id_len + body.len + 1);
	writing_event = 0;
	event->id = id;
	event->segment = segment;
	event->refs = 1;
	event->published_at = DatumGetTimestampTz(values[3]);
	event->deliver_at = isnull[4] ? 0 : DatumGetTimestampTz(values[4]);
	event->destination_id = isnull[5] ? 0 : DatumGetInt32(values[5]);
	p = (char *) (event + 1);
	event->type = memcpy(p, type, type_len);
	p += type_len;
	event->webhook_id = memcpy(p, webhook_id, id_len);
	p += id_len;
	event->body = memcpy(p, body.data, body.len + 1);
	event->body_len = body.len;
	event->data = event->body + data_at;
	event->data_len = data_len;
	event->fault = fault;
	shrink_body();
	return event;
}

void
event_release(Event *event)
{
	if (--event->refs == 0)
		pfree(event);
}

/* ---- reading the log ---- */

typedef struct LogReceiver
{
	DestReceiver pub;
	EventVisitor *visitor;
	MemoryContext scratch;
	uint64		xid;			/* of the last event handed on */
	int64		id;
	bool		stopped;		/* by the visitor or by its limits */
	bool		unknown_segment;
	uint64		flushed_xid;	/* whose commit is known to be on disk */
} LogReceiver;

/*
 * What leaves must be on disk: a transaction that committed asynchronously is
 * visible before its WAL is flushed, and a crash could undo it.
 */
static void
flush_commit(LogReceiver *receiver, uint64 xid)
{
	XLogRecPtr	lsn;

	if (xid == receiver->flushed_xid)
		return;
	receiver->flushed_xid = xid;
	if (!mlint_xid_in_clog(xid))
		return;
	lsn = TransactionIdGetCommitLSN((TransactionId) xid);
	if (!XLogRecPtrIsInvalid(lsn))
		XLogFlush(lsn);
}

static bool
receive_event(TupleTableSlot *slot, DestReceiver *self)
{
	LogReceiver *receiver = (LogReceiver *) self;
	EventVisitor *visitor = receiver->visitor;
	EventHead	head;
	MemoryContext old;
	bool		go_on = true;

	slot_getallattrs(slot);
	if (segment_token(DatumGetInt32(slot->tts_values[1])) == NULL)
	{
		receiver->unknown_segment = true;
		return false;
	}

	MemoryContextReset(receiver->scratch);
	old = MemoryContextSwitchTo(receiver->scratch);
	head.id = DatumGetInt64(slot->tts_values[0]);
	head.type = TextDatumGetCString(slot->tts_values[6]);
	head.destination_id = slot->tts_isnull[5] ? 0 :
		DatumGetInt32(slot->tts_values[5]);
	receiver->xid = datum_xid8(slot->tts_values[2]);
	receiver->id = head.id;
	visitor->seen++;
	if (visitor->wants(&head, visitor->arg))
	{
		Event	   *event = make_event(slot->tts_values, slot->tts_isnull,
									   !visitor->heads_only);

		flush_commit(receiver, receiver->xid);
		visitor->bytes += event->body_len;
		go_on = visitor->take(event, visitor->arg);
	}
	MemoryContextSwitchTo(old);
	receiver->stopped = !go_on || visitor->seen >= visitor->max_seen ||
		visitor->bytes >= visitor->max_bytes;
	return !receiver->stopped;
}

static void
start_receiving(DestReceiver *self, int operation, TupleDesc typeinfo)
{
}

static void
end_receiving(DestReceiver *self)
{
}

static void
init_receiver(LogReceiver *receiver,
			  bool (*receive) (TupleTableSlot *, DestReceiver *))
{
	memset(receiver, 0, sizeof(LogReceiver));
	receiver->pub.receiveSlot = receive;
	receiver->pub.rStartup = start_receiving;
	receiver->pub.rShutdown = end_receiving;
	receiver->pub.rDestroy = end_receiving;
	receiver->pub.mydest = DestNone;
	/* It ends with the transaction, whatever the caller's context is. */
	receiver->scratch = AllocSetContextCreate(CurTransactionContext,
											  "mlint event scratch",
											  ALLOCSET_DEFAULT_SIZES);
}

Cursor *
log_read(const Cursor *cursor, EventVisitor *visitor, bool *more)
{
	static Statement statement = {
		"SELECT " EVENT_COLUMNS " FROM mlint.event e"
		" WHERE (e.xid, e.id) > ($1, $2) AND e.xid < $3"
		" ORDER BY e.xid, e.id",
		3, {XID8OID, INT8OID, XID8OID}
	};
	Cursor	   *now = cursor_at(GetActiveSnapshot());
	Cursor	   *next;
	CursorRange *ranges;
	int			n = cursor_ranges(cursor, now, &ranges);
	LogReceiver receiver;

	init_receiver(&receiver, receive_event);
	receiver.visitor = visitor;
	for (int i = 0; i < n && !receiver.stopped; i++)
	{
		CursorRange *range = &ranges[i];

		do
		{
			Datum		values[3];

			if (receiver.unknown_segment)
				load_segments();
			receiver.unknown_segment = false;
			values[0] = xid8_datum(range->from_xid);
			values[1] = Int64GetDatum(range->from_id);
			values[2] = xid8_datum(range->before_xid);
			(void) run(&statement, values, NULL, true, &receiver.pub);
			if (receiver.unknown_segment && receiver.xid >= range->from_xid &&
				receiver.xid < range->before_xid)
			{
				range->from_xid = receiver.xid;
				range->from_id = receiver.id;
			}
		} while (receiver.unknown_segment);
	}
	*more = receiver.stopped || cursor->partial_xid != 0;
	MemoryContextDelete(receiver.scratch);
	next = cursor_advance(cursor, now, receiver.stopped, receiver.xid,
						  receiver.id);
	cursor_free(now);
	pfree(ranges);
	return next;
}

/* ---- reading what is pending ---- */

typedef struct PendingReceiver
{
	LogReceiver log;
	PendingVisitor visit;
	void	   *arg;
	int64		max_bytes;
	int64		bytes;
	int			visited;
} PendingReceiver;

static bool
receive_pending(TupleTableSlot *slot, DestReceiver *self)
{
	PendingReceiver *receiver = (PendingReceiver *) self;
	PendingRow	row;
	MemoryContext old;
	bool		go_on;

	slot_getallattrs(slot);
	if (segment_token(DatumGetInt32(slot->tts_values[1])) == NULL)
	{
		receiver->log.unknown_segment = true;
		return false;
	}
	MemoryContextReset(receiver->log.scratch);
	old = MemoryContextSwitchTo(receiver->log.scratch);
	row.event = make_event(slot->tts_values, slot->tts_isnull, true);
	MemoryContextSwitchTo(old);
	row.attempts = DatumGetInt32(slot->tts_values[EVENT_NCOLUMNS]);
	row.next_attempt_at =
		DatumGetTimestampTz(slot->tts_values[EVENT_NCOLUMNS + 1]);
	row.first_attempt_at = slot->tts_isnull[EVENT_NCOLUMNS + 2] ? 0 :
		DatumGetTimestampTz(slot->tts_values[EVENT_NCOLUMNS + 2]);
	receiver->visited++;
	receiver->bytes += row.event->body_len;
	go_on = receiver->visit(&row, receiver->arg) &&
		receiver->bytes < receiver->max_bytes;
	receiver->log.stopped = !go_on;
	return go_on;
}

int
log_read_pending(int32 destination_id, bool ordered, TimestampTz now,
				 TimestampTz after_time, int64 after_id, int limit,
				 int64 max_bytes, PendingVisitor visit, void *arg,
				 bool *more)
{
#define PENDING_COLUMNS \
	EVENT_COLUMNS ", p.attempts, p.next_attempt_at, p.first_attempt_at" \
	" FROM mlint.pending p" \
	" JOIN mlint.event e ON e.id = p.event_id AND e.segment = p.segment" \
	" WHERE p.destination_id = $1"
	static Statement by_time = {
		"SELECT " PENDING_COLUMNS " AND p.next_attempt_at <= $2"
		" AND (p.next_attempt_at, p.event_id) > ($4, $5)"
		" ORDER BY p.next_attempt_at, p.event_id LIMIT $3",
		5, {INT4OID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID}
	};
	static Statement by_id = {
		"SELECT " PENDING_COLUMNS
		" AND (p.attempts > 0 OR p.next_attempt_at <= $2)"
		" ORDER BY p.event_id LIMIT $3",
		3, {INT4OID, TIMESTAMPTZOID, INT8OID}
	};
	PendingReceiver receiver = {0};
	Datum		values[5];

	init_receiver(&receiver.log, receive_pending);
	receiver.visit = visit;
	receiver.arg = arg;
	receiver.max_bytes = max_bytes;
	values[0] = Int32GetDatum(destination_id);
	values[1] = TimestampTzGetDatum(now);
	values[3] = TimestampTzGetDatum(after_time);
	values[4] = Int64GetDatum(after_id);
	if (nsegments == 0)
		load_segments();
	do
	{
		if (receiver.log.unknown_segment)
			load_segments();
		receiver.log.unknown_segment = false;
		values[2] = Int64GetDatum(limit - receiver.visited);
		(void) run(ordered ? &by_id : &by_time, values, NULL, true,
				   &receiver.log.pub);
		/* Half a batch will do: the rest comes with the next. */
	} while (receiver.log.unknown_segment && receiver.visited == 0);
	*more = receiver.log.stopped || receiver.log.unknown_segment ||
		receiver.visited == limit;
	MemoryContextDelete(receiver.log.scratch);
	return receiver.visited;
}

TimestampTz
log_next_due(int32 destination_id, TimestampTz after)
{
	static Statement statement = {
		"SELECT next_attempt_at FROM mlint.pending WHERE destination_id = $1"
		" AND next_attempt_at > $2 ORDER BY next_attempt_at LIMIT 1",
		2, {INT4OID, TIMESTAMPTZOID}
	};
	Datum		values[2] = {Int32GetDatum(destination_id),
	TimestampTzGetDatum(after)};
	bool		isnull;

	if (run(&statement, values, NULL, true, NULL) == 0)
		return PG_INT64_MAX;
	return DatumGetTimestampTz(column(0, 1, &isnull));
}

/* ---- recording ---- */

/* Arrays of a statement's columns, filled a row at a time. */
typedef struct Columns
{
	int			n;
	int			ncolumns;
	const Oid  *types;			/* of the elements */
	Datum	   *values[10];
	bool	   *nulls[10];
} Columns;

static void
columns_init(Columns *columns, const Oid *types, int ncolumns, int room)
{
	columns->n = 0;
	columns->ncolumns = ncolumns;
	columns->types = types;
	for (int i = 0; i < ncolumns; i++)
	{
		columns->values[i] = palloc(sizeof(Datum) * room);
		columns->nulls[i] = palloc0(sizeof(bool) * room);
	}
}

static void
columns_put(Columns *columns, int column, Datum value, bool isnull)
{
	columns->values[column][columns->n] = value;
	columns->nulls[column][columns->n] = isnull;
}

static void
columns_run(Columns *columns, Statement *statement)
{
	Datum		arrays[10];

	if (columns->n == 0)
		return;
	for (int i = 0; i < columns->ncolumns; i++)
	{
		int16		len;
		bool		byval;
		char		align;
		int			lower = 1;

		get_typlenbyvalalign(columns->types[i], &len, &byval, &align);
		arrays[i] = PointerGetDatum(construct_md_array(columns->values[i],
													   columns->nulls[i], 1,
													   &columns->n, &lower,
													   columns->types[i], len,
													   byval, align));
	}
	(void) run(statement, arrays, NULL, false, NULL);
}

/* A peer's words as text of this database. */
static Datum
error_datum(const char *error)
{
	char	   *clean = pstrdup(error);

	peer_text_clean(clean);
	return CStringGetTextDatum(clean);
}

#define ENDED_SQL(source, conflict) \
	"INSERT INTO mlint.delivery (event_id, destination_id, segment, state," \
	" attempts, status_code, error, first_attempt_at, finished_at," \
	" latency_us) " source " ON CONFLICT DO NOTHING" conflict

static const Oid ended_types[] = {INT8OID, INT4OID, INT4OID, CHAROID, INT4OID,
INT4OID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID};

/* The row of mlint.delivery. */
static void
put_ended(Columns *ended, const Record *r)
{
	columns_put(ended, 0, Int64GetDatum(r->event_id), false);
	columns_put(ended, 1, Int32GetDatum(r->destination_id), false);
	columns_put(ended, 2, Int32GetDatum(r->segment), false);
	columns_put(ended, 3,
				CharGetDatum(r->kind == OUTCOME_DELIVERED ? 'd' : 'x'), false);
	columns_put(ended, 4, Int32GetDatum(r->attempts), false);
	columns_put(ended, 5, Int32GetDatum(r->status), r->status == 0);
	columns_put(ended, 6, r->error[0] ? error_datum(r->error) : (Datum) 0,
				r->error[0] == '\0');
	columns_put(ended, 7, TimestampTzGetDatum(r->first_attempt_at),
				r->first_attempt_at == 0);
	columns_put(ended, 8, TimestampTzGetDatum(r->finished_at), false);
	columns_put(ended, 9, Int64GetDatum(r->elapsed_us), false);
	ended->n++;
}

/* The row of mlint.pending. */
static void
put_pending(Columns *pending, const Record *r)
{
	columns_put(pending, 0, Int64GetDatum(r->event_id), false);
	columns_put(pending, 1, Int32GetDatum(r->destination_id), false);
	columns_put(pending, 2, Int32GetDatum(r->segment), false);
	columns_put(pending, 3, Int32GetDatum(r->attempts), false);
	columns_put(pending, 4, TimestampTzGetDatum(r->next_attempt_at), false);
	columns_put(pending, 5, TimestampTzGetDatum(r->first_attempt_at),
				r->first_attempt_at == 0);
	columns_put(pending, 6, Int32GetDatum(r->status), r->status == 0);
	columns_put(pending, 7, r->error[0] ? error_datum(r->error) : (Datum) 0,
				r->error[0] == '\0');
	pending->n++;
}

void
log_record(const Record *records, int n)
{
#define PENDING_ARRAYS \
	"unnest($1, $2, $3, $4, $5, $6, $7, $8) AS n (event_id, destination_id," \
	" segment, attempts, next_attempt_at, first_attempt_at, status_code, error)"
#define PENDING_TYPES \
	{INT8ARRAYOID, INT4ARRAYOID, INT4ARRAYOID, INT4ARRAYOID, \
	TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID, TEXTARRAYOID}
	static const Oid pending_types[] = {INT8OID, INT4OID, INT4OID, INT4OID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID, TEXTOID};
	static Statement insert_ended = {
		ENDED_SQL("SELECT * FROM"
				  " unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", ""),
		10, {INT8ARRAYOID, INT4ARRAYOID, INT4ARRAYOID, CHARARRAYOID,
			INT4ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID,
		TIMESTAMPTZARRAYOID, INT8ARRAYOID}
	};
	static Statement insert_pending = {
		"INSERT INTO mlint.pending (event_id, destination_id, segment,"
		" attempts, next_attempt_at, first_attempt_at, status_code, error)"
		" SELECT * FROM " PENDING_ARRAYS " ON CONFLICT DO NOTHING",
		8, PENDING_TYPES
	};
	static Statement update_pending = {
		"UPDATE mlint.pending p SET attempts = n.attempts,"
		" next_attempt_at = n.next_attempt_at,"
		" first_attempt_at = n.first_attempt_at,"
		" status_code = n.status_code, error = n.error"
		" FROM " PENDING_ARRAYS
		" WHERE p.event_id = n.event_id AND p.destination_id = n.destination_id",
		8, PENDING_TYPES
	};
	static Statement delete_pending = {
		"DELETE FROM mlint.pending p"
		" USING unnest($1, $2) AS n (event_id, destination_id)"
		" WHERE p.event_id = n.event_id AND p.destination_id = n.destination_id",
		2, {INT8ARRAYOID, INT4ARRAYOID}
	};
	Columns		ended;
	Columns		parked;
	Columns		retried;
	Columns		done;

	columns_init(&ended, ended_types, lengthof(ended_types), n);
	columns_init(&parked, pending_types, lengthof(pending_types), n);
	columns_init(&retried, pending_types, lengthof(pending_types), n);
	columns_init(&done, pending_types, 2, n);
	for (int i = 0; i < n; i++)
	{
		const Record *r = &records[i];

		bool		ends = r->kind != OUTCOME_RETRY &&
		r->kind != OUTCOME_PARKED;

		/* Of what is dropped, even the segment may be gone with its row. */
		if (ends && !(r->forget && r->had_row))
			put_ended(&ended, r);
		else if (!r->forget)
			put_pending(r->had_row ? &retried : &parked, r);
		if (r->had_row && (ends || r->forget))
		{
			columns_put(&done, 0, Int64GetDatum(r->event_id), false);
			columns_put(&done, 1, Int32GetDatum(r->destination_id), false);
			done.n++;
		}
	}
	columns_run(&ended, &insert_ended);
	columns_run(&parked, &insert_pending);
	columns_run(&retried, &update_pending);
	columns_run(&done, &delete_pending);
}

bool
log_claim(const Record *r)
{
	static Statement claim_row = {
		"DELETE FROM mlint.pending WHERE event_id = $1 AND destination_id = $2",
		2, {INT8OID, INT4OID}
	};
	static Statement claim = {
		ENDED_SQL("VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", ""),
		10, {INT8OID, INT4OID, INT4OID, CHAROID, INT4OID, INT4OID, TEXTOID,
		TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID}
	};
	Columns		row;
	Datum		values[10];
	char		nulls[10];

	columns_init(&row, ended_types, lengthof(ended_types), 1);
	put_ended(&row, r);
	for (int i = 0; i < lengthof(ended_types); i++)
	{
		values[i] = row.values[i][0];
		nulls[i] = row.nulls[i][0] ? 'n' : ' ';
	}
	if (r->had_row && run(&claim_row, values, NULL, false, NULL) != 1)
		return false;
	return run(&claim, values, nulls, false, NULL) == 1;
}

/* ---- cursors ---- */

Cursor *
log_load_cursor(int lane, int lanes)
{
	static Statement statement = {
		"SELECT snapshot::text, partial_xid, partial_id, ctid"
		" FROM mlint.log_cursor WHERE lane = $1 AND (lanes = $2 OR lane = 0)",
		2, {INT4OID, INT4OID}
	};
	Datum		values[2] = {Int32GetDatum(lane), Int32GetDatum(lanes)};
	bool		isnull;

	if (run(&statement, values, NULL, true, NULL) != 1)
		return NULL;
	cursor_tid = *(ItemPointer) DatumGetPointer(column(0, 4, &isnull));
	return cursor_parse(TextDatumGetCString(column(0, 1, &isnull)),
						datum_xid8(column(0, 2, &isnull)),
						DatumGetInt64(column(0, 3, &isnull)));
}

/*
 * The row is found by its physical place, which we know since we wrote it:
 * while a snapshot elsewhere keeps its old versions alive, an index would lead
 * through all of them.
 */
void
log_save_cursor(int lane, const Cursor *cursor)
{
#define SAVE_CURSOR_SQL(where) \
	"UPDATE mlint.log_cursor SET snapshot = $2::pg_snapshot," \
	" partial_xid = $3, partial_id = $4 WHERE " where " lane = $1" \
	" RETURNING ctid"
	static Statement by_place = {
		SAVE_CURSOR_SQL("ctid = $5 AND"),
		5, {INT4OID, TEXTOID, XID8OID, INT8OID, TIDOID}
	};
	static Statement by_lane = {
		SAVE_CURSOR_SQL(""), 4, {INT4OID, TEXTOID, XID8OID, INT8OID}
	};
	Datum		values[5];
	bool		isnull;

	values[0] = Int32GetDatum(lane);
	values[1] = CStringGetTextDatum(cursor_snapshot(cursor));
	values[2] = xid8_datum(cursor->partial_xid);
	values[3] = Int64GetDatum(cursor->partial_id);
	values[4] = PointerGetDatum(&cursor_tid);
	if (run(&by_place, values, NULL, false, NULL) != 1 &&
		run(&by_lane, values, NULL, false, NULL) != 1)
		elog(ERROR, "mlint.log_cursor has lost the row of lane %d", lane);
	cursor_tid = *(ItemPointer) DatumGetPointer(column(0, 1, &isnull));
}

int
log_old_lanes(int lanes, OldLane **old)
{
	static Statement statement = {
		"SELECT lane, lanes, snapshot::text, partial_xid, partial_id"
		" FROM mlint.log_cursor WHERE lane > 0 AND lanes <> $1",
		1, {INT4OID}
	};
	Datum		values[1] = {Int32GetDatum(lanes)};
	int			n = run(&statement, values, NULL, true, NULL);

	*old = palloc(sizeof(OldLane) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		(*old)[i].lane = DatumGetInt32(column(i, 1, &isnull));
		(*old)[i].lanes = DatumGetInt32(column(i, 2, &isnull));
		(*old)[i].cursor =
			cursor_parse(TextDatumGetCString(column(i, 3, &isnull)),
						 datum_xid8(column(i, 4, &isnull)),
						 DatumGetInt64(column(i, 5, &isnull)));
	}
	return n;
}

void
log_reset_lanes(int lanes, const Cursor *cursor)
{
	static Statement drop = {
		"DELETE FROM mlint.log_cursor WHERE lane > 0"
	};
	static Statement create = {
		"INSERT INTO mlint.log_cursor SELECT lane, $1, $2::pg_snapshot, $3, $4"
		" FROM generate_series(1, $1) AS lane",
		4, {INT4OID, TEXTOID, XID8OID, INT8OID}
	};
	Datum		values[4];

	values[0] = Int32GetDatum(lanes);
	values[1] = CStringGetTextDatum(cursor_snapshot(cursor));
	values[2] = xid8_datum(cursor->partial_xid);
	values[3] = Int64GetDatum(cursor->partial_id);
	(void) run(&drop, NULL, NULL, false, NULL);
	(void) run(&create, values, NULL, false, NULL);
}

/*
 * A destination has said that it is gone: hold what comes, and say so. Raises
 * ERRCODE_LOCK_NOT_AVAILABLE while somebody is changing destinations.
 */
void
log_disable(int32 destination_id, const char *name, const char *reason)
{
	static Statement lock = {
		"SELECT FROM mlint.generation WHERE room = 'destinations'"
		" FOR UPDATE NOWAIT"
	};
	static Statement statement = {
		"UPDATE mlint.destination SET enabled = false, disabled_reason = $2,"
		" generation = $3, altered_at = clock_timestamp()"
		" WHERE id = $1 AND enabled AND dropped_at IS NULL",
		3, {INT4OID, TEXTOID, INT8OID}
	};
	Datum		values[3];
	StringInfoData data;

	(void) run(&lock, NULL, NULL, false, NULL);
	values[0] = Int32GetDatum(destination_id);
	values[1] = error_datum(reason);
	values[2] = Int64GetDatum(generation_bump("destinations"));
	if (run(&statement, values, NULL, false, NULL) == 0)
		return;
	initStringInfo(&data);
	appendStringInfoString(&data, "{\"destination\":");
	escape_json(&data, name);
	appendStringInfoString(&data, ",\"reason\":");
	escape_json(&data, TextDatumGetCString(values[1]));
	appendStringInfoChar(&data, '}');
	(void) event_publish("destination.disabled",
						 DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(data.data))),
						 DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"))),
						 NULL, 0, 0);
}
