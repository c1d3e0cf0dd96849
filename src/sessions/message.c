/*
 * message.c
 *		What is said in a session: prompts, responses, tool calls.
 *
 * Messages are a tree. A prompt follows a response, or begins; a response
 * follows a prompt, or a tool call whose result the model was given; a tool
 * call belongs to the response that asked for it. Nothing is changed ever: who
 * asks again, or edits, adds a branch.
 *
 * A message costs little beside its row: the session's row is locked, the one
 * it follows looked up, and the row inserted past planner and executor, the
 * way publish() does. All that the table's constraints say is seen to here;
 * the foreign key, by the lock.
 */
#include "postgres.h"

#include <math.h>

#include "access/detoast.h"
#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "commands/sequence.h"
#include "common/argument.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "common/compat.h"
#include "common/rows.h"
#include "common/uuid7.h"
#include "sessions/check.h"
#include "sessions/message.h"
#include "sessions/row.h"
#include "usage/usage.h"

PG_FUNCTION_INFO_V1(mlint_prompt_add);
PG_FUNCTION_INFO_V1(mlint_response_add);
PG_FUNCTION_INFO_V1(mlint_tool_call_add);

/* Archives hold a message in memory, as JSON; a value of a row ends at 1 GB. */
#define CONTENT_BYTES	(256 * 1024 * 1024)

/* Columns of mlint.message. */
enum
{
	MESSAGE_ID = 1,
	MESSAGE_SESSION,
	MESSAGE_SEQ,
	MESSAGE_PARENT,
	MESSAGE_KIND,
	MESSAGE_CONTENT,
	MESSAGE_MODEL_ID,
	MESSAGE_USAGE,
	MESSAGE_LATENCY_MS,
	MESSAGE_TOOL,
	MESSAGE_METADATA,
	MESSAGE_CREATED_AT,
	MESSAGE_NCOLUMNS = MESSAGE_CREATED_AT
};

typedef enum MessageKind
{
	PROMPT,
	RESPONSE,
	TOOL_CALL
} MessageKind;

static const char *const kinds[] = {"prompt", "response", "tool_call"};

/* One that is in the table. */
typedef struct Message
{
	pg_uuid_t	id;
	int64		session;
	MessageKind kind;
} Message;

/* One that is to be added; 0 is null. */
typedef struct NewMessage
{
	MessageKind kind;
	const pg_uuid_t *parent;	/* NULL: none */
	Datum		content;
	Datum		model_id;
	Datum		usage;
	Datum		latency_ms;
	bool		has_latency;
	Datum		tool;
	Jsonb	   *metadata;
} NewMessage;

/* ---- the table ---- */

static void
take_row(HeapTuple row, TupleDesc desc, Message *message)
{
	bool		isnull;
	char	   *kind = TextDatumGetCString(heap_getattr(row, MESSAGE_KIND,
														desc, &isnull));

	message->id = *DatumGetUUIDP(heap_getattr(row, MESSAGE_ID, desc, &isnull));
	message->session = DatumGetInt64(heap_getattr(row, MESSAGE_SESSION, desc,
												  &isnull));
	message->kind = kind[0] == 'p' ? PROMPT : kind[0] == 'r' ? RESPONSE :
		TOOL_CALL;
}

/* A message, as it is now or in the statement's snapshot. */
static bool
find_message(const pg_uuid_t *id, bool latest, Message *message)
{
	RowScan		scan;
	ScanKeyData key;
	HeapTuple	row;

	row_key(&key, MESSAGE_ID, F_UUID_EQ, UUIDPGetDatum(id));
	rows_begin(&scan, "message", "message_pkey", 1, &key, latest);
	row = rows_next(&scan);
	if (row)
		take_row(row, scan.desc, message);
	rows_end(&scan);
	return row != NULL;
}

/* The newest message of a session. */
static bool
newest_message(int64 session, Message *message)
{
	Relation	table = table_open(mlint_relation("message"), AccessShareLock);
	Relation	index = index_open(mlint_relation("message_session"),
								   AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	row;

	row_key(&key, MESSAGE_SESSION, F_INT8EQ, Int64GetDatum(session));
	scan = systable_beginscan_ordered(table, index, snapshot, 1, &key);
	row = systable_getnext_ordered(scan, BackwardScanDirection);
	if (row)
		take_row(row, RelationGetDescr(table), message);
	systable_endscan_ordered(scan);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	table_close(table, AccessShareLock);
	return row != NULL;
}

/*
 * Put a row into the table and its indexes. These call functions of ours, which
 * the caller may have no privilege on.
 */
static void
insert_row(Relation table, TupleTableSlot *slot)
{
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *target = makeNode(ResultRelInfo);
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   context | SECURITY_LOCAL_USERID_CHANGE);
	InitResultRelInfo(target, table, 0, NULL, 0);
	ExecOpenIndices(target, false);
	table_tuple_insert(table, slot, GetCurrentCommandId(true), 0, NULL);
	if (target->ri_NumIndices > 0)
		(void) mlint_insert_index_tuples(target, slot, estate);
	ExecCloseIndices(target);
	FreeExecutorState(estate);
	SetUserIdAndSecContext(user, context);
}

/* Add a message to a session that is locked. */
static Datum
add_message(const Session *session, const NewMessage *message)
{
	Relation	table = table_open(mlint_relation("message"),
								   RowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(table, NULL);
	TimestampTz now = GetCurrentTimestamp();
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	Datum		values[MESSAGE_NCOLUMNS + 1];

	uuid7_make(id, now);
	memset(values, 0, sizeof(values));
	values[MESSAGE_ID] = UUIDPGetDatum(id);
	values[MESSAGE_SESSION] = Int64GetDatum(session->id);
	values[MESSAGE_SEQ] =
		Int64GetDatum(nextval_internal(mlint_relation("message_seq_seq"),
									   false));
	values[MESSAGE_PARENT] = UUIDPGetDatum(message->parent);
	values[MESSAGE_KIND] = CStringGetTextDatum(kinds[message->kind]);
	values[MESSAGE_CONTENT] = message->content;
	values[MESSAGE_MODEL_ID] = message->model_id;
	values[MESSAGE_USAGE] = message->usage;
	values[MESSAGE_LATENCY_MS] = message->latency_ms;
	values[MESSAGE_TOOL] = message->tool;
	values[MESSAGE_METADATA] = JsonbPGetDatum(message->metadata);
	values[MESSAGE_CREATED_AT] = TimestampTzGetDatum(now);

	ExecClearTuple(slot);
	for (int i = 0; i < MESSAGE_NCOLUMNS; i++)
	{
		slot->tts_values[i] = values[i + 1];
		slot->tts_isnull[i] = values[i + 1] == 0;
	}
	/* The one number that may be 0. */
	slot->tts_isnull[MESSAGE_LATENCY_MS - 1] = !message->has_latency;
	ExecStoreVirtualTuple(slot);
	insert_row(table, slot);
	ExecDropSingleTupleTableSlot(slot);
	/* The lock stays until the transaction ends. */
	table_close(table, NoLock);
	CommandCounterIncrement();
	session_touch(session);
	return UUIDPGetDatum(id);
}

/* ---- arguments ---- */

static Datum
content_argument(FunctionCallInfo fcinfo, int n)
{
	Size		bytes;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("content must not be null")));
	bytes = toast_raw_datum_size(PG_GETARG_DATUM(n)) - VARHDRSZ;
	if (bytes > CONTENT_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("content must be at most %d bytes long, not %zu",
						CONTENT_BYTES, bytes),
				 errhint("Keep what is that long elsewhere, and say in metadata where.")));
	return PG_GETARG_DATUM(n);
}

static pg_uuid_t *
message_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
	return PG_GETARG_UUID_P(n);
}

static void
latency_argument(FunctionCallInfo fcinfo, int n, NewMessage *message)
{
	float8		latency;

	message->has_latency = !PG_ARGISNULL(n);
	if (!message->has_latency)
		return;
	latency = PG_GETARG_FLOAT8(n);
	if (isnan(latency) || isinf(latency) || latency < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("latency_ms must be a finite number that is not negative")));
	message->latency_ms = Float8GetDatum(latency);
}

static char *
shown(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

static void
pg_attribute_noreturn()
message_unknown(const pg_uuid_t *id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("there is no message %s", shown(id)),
			 errdetail("It was never added, or its session has been archived or deleted.")));
}

static void
require_in_session(const Message *message, int64 session,
				   const char *session_id)
{
	if (message->session != session)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("message %s is not in session \"%s\"",
						shown(&message->id), session_id)));
}

void
message_require(const pg_uuid_t *id, int64 session, const char *session_id)
{
	Message		message;

	if (!find_message(id, false, &message))
		message_unknown(id);
	require_in_session(&message, session, session_id);
}

const char *
message_kind(const char *word)
{
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strcmp(kinds[i], word) == 0)
			return word;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid kind of a message: \"%s\"", word),
			 errhint("It is one of: prompt, response, tool_call.")));
}

/*
 * The message that is followed, with its session locked, as long as it is not
 * archived.
 */
static Message
followed_message(const pg_uuid_t *id, Session *session, HeapTuple *row)
{
	Message		message;

	if (!find_message(id, true, &message) ||
		!session_row_lock(NULL, message.session, LockTupleKeyShare, false,
						  session, row))
		message_unknown(id);
	return message;
}

/* A column of a session's row, as a text. */
static Datum
session_text(HeapTuple row, AttrNumber column)
{
	Relation	table = table_open(mlint_relation("session"), AccessShareLock);
	bool		isnull;
	Datum		value = heap_getattr(row, column, RelationGetDescr(table),
									 &isnull);

	table_close(table, AccessShareLock);
	return value;
}

static void
require_live(const Session *session, HeapTuple row)
{
	if (session->status == SESSION_ARCHIVED)
		session_archived(TextDatumGetCString(session_text(row,
														  SESSION_SESSION_ID)));
}

static void
pg_attribute_noreturn()
cannot_follow(MessageKind kind, const Message *message, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("a %s cannot follow message %s, which is a %s",
					kinds[kind], shown(&message->id), kinds[message->kind]),
			 errhint("%s", hint)));
}

/* ---- functions ---- */

/*
 * What a prompt follows. Null is the newest message, as in a chat that goes on;
 * the nil UUID is nothing: the prompt begins anew.
 */
static const pg_uuid_t *
prompt_parent(FunctionCallInfo fcinfo, int n, const char *session_id,
			  const Session *session, Message *message)
{
	static const pg_uuid_t nil = {{0}};

	if (PG_ARGISNULL(n))
		return newest_message(session->id, message) ? &message->id : NULL;
	if (memcmp(PG_GETARG_UUID_P(n), &nil, sizeof(nil)) == 0)
		return NULL;
	if (!find_message(PG_GETARG_UUID_P(n), true, message))
		message_unknown(PG_GETARG_UUID_P(n));
	require_in_session(message, session->id, session_id);
	if (message->kind == PROMPT)
		cannot_follow(PROMPT, message,
					  "Give the response that it follows; the one that the prompt itself follows, to ask in its place.");
	return &message->id;
}

/* mlint.prompt_add(session_id, content, metadata, parent) */
Datum
mlint_prompt_add(PG_FUNCTION_ARGS)
{
	char	   *session_id = name_argument(fcinfo, 0, "session_id");
	NewMessage	message = {PROMPT};
	Message		parent;
	Session		session;

	message.content = content_argument(fcinfo, 1);
	message.metadata = object_argument(fcinfo, 2, "metadata");
	require_writable(fcinfo);
	if (!session_lock_shared(session_id, &session))
		session_unknown(session_id);
	if (session.status == SESSION_ARCHIVED)
		session_archived(session_id);
	if (session.status != SESSION_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("session \"%s\" is %s", session_id,
						session_status_words[session.status]),
				 errhint("mlint.session_set_status(session_id, 'active') resumes it.")));
	usage_budget_require(session.id);
	message.parent = prompt_parent(fcinfo, 3, session_id, &session, &parent);
	PG_RETURN_DATUM(add_message(&session, &message));
}

/*
 * mlint.response_add(prompt_id, content, usage, model_id, latency_ms,
 * metadata). To a session that has ended meanwhile, too: what was asked may be
 * answered.
 */
Datum
mlint_response_add(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *prompt_id = message_argument(fcinfo, 0, "prompt_id");
	char	   *model_id = PG_ARGISNULL(3) ? NULL :
	name_argument(fcinfo, 3, "model_id");
	NewMessage	message = {RESPONSE, prompt_id};
	Message		parent;
	Session		session;
	HeapTuple	row;

	message.content = content_argument(fcinfo, 1);
	if (!PG_ARGISNULL(2))
		message.usage = JsonbPGetDatum(object_argument(fcinfo, 2, "usage"));
	latency_argument(fcinfo, 4, &message);
	message.metadata = object_argument(fcinfo, 5, "metadata");
	require_writable(fcinfo);
	parent = followed_message(prompt_id, &session, &row);
	require_live(&session, row);
	if (parent.kind == RESPONSE)
		cannot_follow(RESPONSE, &parent,
					  "Give the prompt that it answers, or the tool call whose result it uses.");
	message.model_id = model_id ? CStringGetTextDatum(model_id) :
		session_text(row, SESSION_MODEL_ID);
	PG_RETURN_DATUM(add_message(&session, &message));
}

/* The call as JSON: name and arguments, and what went wrong, if so. */
static Datum
describe_tool(const char *name, Jsonb *arguments, Datum error)
{
	JsonbParseState *state = NULL;
	JsonbValue	value;
	JsonbValue	object;

#define KEY(word) \
	(value.type = jbvString, value.val.string.val = (word), \
	 value.val.string.len = strlen(word), \
	 (void) pushJsonbValue(&state, WJB_KEY, &value))
	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	KEY("name");
	value.val.string.val = unconstify(char *, name);
	value.val.string.len = strlen(name);
	(void) pushJsonbValue(&state, WJB_VALUE, &value);
	KEY("arguments");
	object.type = jbvBinary;
	object.val.binary.data = &arguments->root;
	object.val.binary.len = VARSIZE(arguments) - VARHDRSZ;
	(void) pushJsonbValue(&state, WJB_VALUE, &object);
	if (error)
	{
		KEY("error");
		value.val.string.val = TextDatumGetCString(error);
		value.val.string.len = strlen(value.val.string.val);
		(void) pushJsonbValue(&state, WJB_VALUE, &value);
	}
#undef KEY
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
														   WJB_END_OBJECT,
														   NULL)));
}

/*
 * mlint.tool_call_add(response_id, name, arguments, result, error, latency_ms,
 * metadata)
 */
Datum
mlint_tool_call_add(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *response_id = message_argument(fcinfo, 0, "response_id");
	char	   *name = name_argument(fcinfo, 1, "name");
	Jsonb	   *arguments = object_argument(fcinfo, 2, "arguments");
	NewMessage	message = {TOOL_CALL, response_id};
	Message		parent;
	Session		session;
	HeapTuple	row;

	message.content = PG_ARGISNULL(3) ? CStringGetTextDatum("") :
		content_argument(fcinfo, 3);
	if (!PG_ARGISNULL(4) &&
		toast_raw_datum_size(PG_GETARG_DATUM(4)) > SESSIONS_METADATA_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("error must not be larger than %d bytes",
						SESSIONS_METADATA_BYTES),
				 errhint("Give what is longer as result.")));
	message.tool = describe_tool(name, arguments,
								 PG_ARGISNULL(4) ? 0 : PG_GETARG_DATUM(4));
	latency_argument(fcinfo, 5, &message);
	message.metadata = object_argument(fcinfo, 6, "metadata");
	require_writable(fcinfo);
	parent = followed_message(response_id, &session, &row);
	require_live(&session, row);
	if (parent.kind != RESPONSE)
		cannot_follow(TOOL_CALL, &parent,
					  "Give the response that asked for it; several calls have the same.");
	PG_RETURN_DATUM(add_message(&session, &message));
}
