/*
 * archive_session.c
 *		Archiving sessions: one, or many of which each succeeds or fails alone.
 *
 * All is one transaction: the session is locked, what is committed by then is
 * written and deleted, and the row says where it is. Until the commit everybody
 * else sees the session live; whoever waits to add to it finds it archived.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "archive/archive.h"
#include "archive/archive_row.h"
#include "archive/dictionary.h"
#include "archive/document.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/owner.h"
#include "common/rows.h"
#include "common/trial.h"
#include "common/uuid7.h"
#include "retention/retention.h"
#include "sessions/check.h"
#include "sessions/sessions.h"

PG_FUNCTION_INFO_V1(mlint_archive_session);
PG_FUNCTION_INFO_V1(mlint_archive_batch);

/* Unless told otherwise. */
#define RETENTION_DAYS		365

extern void archive_session_by_default(const char *session_id);

/* ---- how long ---- */

/* The elements of two arrays of text in one. */
static Datum
tags_together(Datum a, Datum b)
{
	Datum	   *x;
	Datum	   *y;
	int			n;
	int			m;

	if (b == 0)
		return a;
	deconstruct_array(DatumGetArrayTypeP(a), TEXTOID, -1, false, TYPALIGN_INT,
					  &x, NULL, &n);
	deconstruct_array(DatumGetArrayTypeP(b), TEXTOID, -1, false, TYPALIGN_INT,
					  &y, NULL, &m);
	x = repalloc(x, sizeof(Datum) * Max(n + m, 1));
	memcpy(x + n, y, sizeof(Datum) * m);
	return PointerGetDatum(construct_array(x, n + m, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/* Is there a policy that applies to what it matches? Most sites have none. */
static bool
any_policy_matches(void)
{
	RowScan		scan;
	HeapTuple	tuple;
	bool		found = false;

	rows_begin(&scan, "retention_policy", "retention_policy_pkey", 0, NULL,
			   true);
	while (!found && (tuple = rows_next(&scan)) != NULL)
		found = !heap_attisnull(tuple, SPI_fnumber(scan.desc, "match_tag"),
								scan.desc) ||
			!heap_attisnull(tuple, SPI_fnumber(scan.desc, "match_metadata"),
							scan.desc);
	rows_end(&scan);
	return found;
}

/*
 * The policy that was asked for, or one that matches the tags or metadata of
 * the session and the archive, taken together.
 */
static void
find_policy(const ArchiveRequest *request, int64 session,
			RetentionPolicy *policy)
{
	ScanKeyData key;
	RowScan		scan;
	HeapTuple	tuple;
	bool		isnull;
	Datum		tags;
	Datum		metadata;

	if (request->policy)
	{
		retention_policy_find(request->policy, (Datum) 0, NULL, policy);
		return;
	}
	if (!any_policy_matches())
		return;
	row_key(&key, 1, F_INT8EQ, Int64GetDatum(session));
	rows_begin(&scan, "session", "session_pkey", 1, &key, true);
	tuple = rows_next(&scan);
	if (tuple == NULL)
		elog(ERROR, "a session that is locked is gone");
	tags = heap_getattr(tuple, SPI_fnumber(scan.desc, "tags"), scan.desc,
						&isnull);
	tags = PointerGetDatum(DatumGetArrayTypePCopy(tags));
	metadata = heap_getattr(tuple, SPI_fnumber(scan.desc, "metadata"),
							scan.desc, &isnull);
	metadata = JsonbPGetDatum(DatumGetJsonbPCopy(metadata));
	rows_end(&scan);
	if (request->metadata)
		metadata = DirectFunctionCall2(jsonb_concat, metadata,
									   JsonbPGetDatum(request->metadata));
	retention_policy_find(NULL, tags_together(tags, request->tags),
						  DatumGetJsonbP(metadata), policy);
}

/* ---- one session ---- */

static void
insert_row(const ArchiveForm *form, int64 session, int messages,
		   const ArchiveRequest *request, int32 policy, TimestampTz at,
		   TimestampTz expires)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, INT8OID, INT4OID, TEXTOID, INT4OID,
		TIMESTAMPTZOID, TEXTOID, TIMESTAMPTZOID, TEXTARRAYOID, JSONBOID,
		INT4OID, INT8OID, INT4OID, INT4OID, INT8OID, INT8OID, INT4OID,
	BYTEAOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	bytea	   *digest = palloc(VARHDRSZ + sizeof(form->sha256));

	if (plan == NULL)
	{
		SPIPlanPtr	prepared = SPI_prepare("INSERT INTO mlint.archive (id, session, policy_id,"
										   " compliance, retention_days, archived_at, archived_by,"
										   " expires_at, tags, metadata, messages, data_key,"
										   " zstd_level, dictionary, plain_bytes, stored_bytes,"
										   " chunks, sha256) VALUES ($1, $2, $3, $4, $5, $6, $7,"
										   " $8, coalesce($9, '{}'), coalesce($10, '{}'), $11,"
										   " $12, $13::smallint, $14, $15, $16, $17, $18)",
										   lengthof(types), types);

		if (prepared == NULL || SPI_keepplan(prepared) != 0)
			elog(ERROR, "could not prepare the statement of an archive");
		plan = prepared;
	}
	SET_VARSIZE(digest, VARHDRSZ + sizeof(form->sha256));
	memcpy(VARDATA(digest), form->sha256, sizeof(form->sha256));
	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';

	values[0] = UUIDPGetDatum(&form->id);
	values[1] = Int64GetDatum(session);
	values[2] = Int32GetDatum(policy);
	nulls[2] = policy == 0 ? 'n' : ' ';
	values[3] = request->compliance ?
		CStringGetTextDatum(request->compliance) : (Datum) 0;
	nulls[3] = request->compliance ? ' ' : 'n';
	values[4] = Int32GetDatum(request->retention_days);
	values[5] = TimestampTzGetDatum(at);
	values[6] = CStringGetTextDatum(GetUserNameFromId(owner_caller(), false));
	values[7] = TimestampTzGetDatum(expires);
	values[8] = request->tags;
	nulls[8] = request->tags ? ' ' : 'n';
	values[9] = request->metadata ? JsonbPGetDatum(request->metadata) :
		(Datum) 0;
	nulls[9] = request->metadata ? ' ' : 'n';
	values[10] = Int32GetDatum(messages);
	values[11] = Int64GetDatum(form->data_key);
	nulls[11] = form->data_key == 0 ? 'n' : ' ';
	values[12] = Int32GetDatum(form->level);
	values[13] = Int32GetDatum(form->dictionary);
	nulls[13] = form->dictionary == 0 ? 'n' : ' ';
	values[14] = Int64GetDatum(form->plain_bytes);
	values[15] = Int64GetDatum(form->stored_bytes);
	values[16] = Int32GetDatum(form->chunks);
	values[17] = PointerGetDatum(digest);
	if (SPI_execute_plan(plan, values, nulls, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not insert an archive");
}

static void
sink_to_chunks(const char *data, size_t len, void *arg)
{
	chunk_write(arg, data, len);
}

static void
pg_attribute_noreturn()
already_archived(const char *session_id)
{
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 errmsg("session \"%s\" is archived already", session_id),
			 errhint("View mlint.archives shows its archive.")));
}

static void
audit_archived(const char *session_id, const ArchiveForm *form,
			   const ArchiveRequest *request, const RetentionPolicy *policy,
			   TimestampTz expires)
{
	StringInfoData details;

	initStringInfo(&details);
	appendStringInfoString(&details, "{\"session\": ");
	escape_json(&details, session_id);
	if (policy->id != 0)
	{
		appendStringInfoString(&details, ", \"policy\": ");
		escape_json(&details, policy->name);
	}
	if (request->compliance)
	{
		appendStringInfoString(&details, ", \"compliance\": ");
		escape_json(&details, request->compliance);
	}
	appendStringInfo(&details, ", \"expires_at\": ");
	escape_json(&details, timestamptz_to_str(expires));
	appendStringInfo(&details, ", \"encrypted\": %s}",
					 archive_encryption ? "true" : "false");
	audit(AUDIT_CHANGED, "archive.create", "archive",
		  archive_id_text(&form->id), details.data);
}

/* A session that is locked, in an owner scope. */
static void
archive_locked(const char *session_id, int64 session,
			   const ArchiveRequest *request, ArchiveForm *form)
{
	RetentionPolicy policy = {0};
	DocumentFacts facts;
	ChunkWriter *writer;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz expires;
	int			days = request->retention_days;

	retention_check_days(days);
	find_policy(request, session, &policy);
	days = Max(days, policy.days);
	if (request->compliance)
		days = Max(days, retention_level_days(request->compliance, NULL));
	expires = retention_end(now, days);

	memset(form, 0, sizeof(*form));
	uuid7_make(&form->id, now);
	form->level = archive_compression;
	if (form->level != 0)
		form->dictionary = dictionary_current();
	audit_archived(session_id, form, request, &policy, expires);

	writer = chunk_writer_begin(form, archive_encryption);
	document_write(session_id, session, true, sink_to_chunks, writer, &facts);
	chunk_writer_end(writer);
	Assert(form->plain_bytes == facts.bytes);
	INJECTION("archive-written");
	insert_row(form, session, facts.messages, request, policy.id, now,
			   expires);
	INJECTION("archive-created");
	session_status_set(session, SESSION_ARCHIVED);
}

ArchiveResult
archive_session(const char *session_id, const ArchiveRequest *request,
				bool skip, TimestampTz inactive_since, pg_uuid_t *id,
				int64 *bytes)
{
	OwnerScope	scope;
	Session		session;
	ArchiveForm form;
	ArchiveResult result = ARCHIVE_SKIPPED;

	owner_begin(&scope);
	if (!session_lock(session_id, skip, &session))
	{
		if (!skip)
			session_unknown(session_id);
	}
	else if (session.status == SESSION_ARCHIVED)
	{
		if (!skip)
			already_archived(session_id);
	}
	else if (!skip || session.active_at <= inactive_since)
	{
		archive_locked(session_id, session.id, request, &form);
		*id = form.id;
		*bytes = form.plain_bytes;
		result = ARCHIVE_DONE;
	}
	owner_end(&scope);
	return result;
}

/* session_set_status(session_id, 'archived') */
void
archive_session_by_default(const char *session_id)
{
	ArchiveRequest request = {.retention_days = RETENTION_DAYS};
	pg_uuid_t	id;
	int64		bytes;

	(void) archive_session(session_id, &request, false, 0, &id, &bytes);
}

/* ---- SQL ---- */

/* The arguments after the first: retention_days, policy, tags, metadata. */
static ArchiveRequest
request_arguments(FunctionCallInfo fcinfo)
{
	ArchiveRequest request = {.retention_days = RETENTION_DAYS};

	require_writable(fcinfo);
	if (!PG_ARGISNULL(1))
		request.retention_days = PG_GETARG_INT32(1);
	if (!PG_ARGISNULL(2))
		request.policy = text_to_cstring(PG_GETARG_TEXT_PP(2));
	request.tags = PointerGetDatum(tags_argument(fcinfo, 3, "tags"));
	request.metadata = object_argument(fcinfo, 4, "metadata");
	return request;
}

/* mlint.archive_session(session_id, retention_days, policy, tags, metadata) */
Datum
mlint_archive_session(PG_FUNCTION_ARGS)
{
	char	   *session_id = name_argument(fcinfo, 0, "session_id");
	ArchiveRequest request = request_arguments(fcinfo);
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	int64		bytes;

	(void) archive_session(session_id, &request, false, 0, id, &bytes);
	PG_RETURN_UUID_P(id);
}

/*
 * Archive one of a batch, in a subtransaction. Returns the error, or NULL.
 * What ends the whole statement is not one session's failure.
 */
static char *
archive_alone(const char *session_id, const ArchiveRequest *request,
			  pg_uuid_t *id)
{
	Trial		trial;
	ErrorData  *volatile error = NULL;
	int64		bytes;

	trial_begin(&trial);
	PG_TRY();
	{
		check_name(session_id, "session_id");
		(void) archive_session(session_id, request, false, 0, id, &bytes);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		error = trial_failed(&trial);
	}
	PG_END_TRY();
	if (error == NULL)
		return NULL;
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
		ERRCODE_OPERATOR_INTERVENTION)
		ReThrowError(error);
	return error->message;
}

/* mlint.archive_batch(session_ids, retention_days, policy, tags, metadata) */
Datum
mlint_archive_batch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ArchiveRequest request;
	MemoryContext context;
	MemoryContext old;
	Datum	   *ids;
	bool	   *isnull;
	int			n;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("session_ids must not be null")));
	request = request_arguments(fcinfo);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false,
					  TYPALIGN_INT, &ids, &isnull, &n);
	InitMaterializedSRF(fcinfo, 0);
	context = AllocSetContextCreate(CurrentMemoryContext, "mlint archive batch",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	for (int i = 0; i < n; i++)
	{
		pg_uuid_t	id;
		char	   *error = "session_id must not be null";
		Datum		values[3];
		bool		nulls[3];

		CHECK_FOR_INTERRUPTS();
		if (!isnull[i])
			error = archive_alone(TextDatumGetCString(ids[i]), &request, &id);
		values[0] = ids[i];
		nulls[0] = isnull[i];
		values[1] = UUIDPGetDatum(&id);
		nulls[1] = error != NULL;
		values[2] = error ? CStringGetTextDatum(error) : (Datum) 0;
		nulls[2] = error == NULL;
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return (Datum) 0;
}
