/*
 * erase.c
 *		mlint.erase_subject(): all sessions and archives of one person go.
 *
 * Which they are is said by their metadata, a session's or an archive's, found
 * by GIN. Each is locked, looked at again as it is then, and removed; what a
 * hold or a compliance level forbids is written down, and the rest goes on. All
 * of it is one transaction, for the caller is to have one receipt: memory is
 * bounded, whatever there is, but not the locks and the time.
 *
 * Only READ COMMITTED will do: an older snapshot would miss sessions that were
 * committed before the call.
 *
 * Data keys are destroyed with the commit, and for good when the job
 * data_key_erase has cut them out of the erasure key file; mlint.erasures says
 * when that was.
 *
 * The value that was asked for is kept nowhere: the request's row and the
 * receipt have a salted digest, by which who knows the value recognises it.
 */
#include "postgres.h"

#include <ctype.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "archive/archive.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/owner.h"
#include "common/plaintext.h"
#include "expiry/receipt.h"
#include "retention/retention.h"
#include "secrets/erasure_key.h"
#include "sessions/sessions.h"

PG_FUNCTION_INFO_V1(mlint_erase_subject);
PG_FUNCTION_INFO_V1(mlint_erase_subject_matching);

#define SALT_BYTES			16
#define FETCH				1000
/* Refusals that the receipt lists; mlint.erasure_refusals has all. */
#define REFUSALS_LISTED		1000
/* A number longer than that is nobody's id. */
#define NUMBER_MAX			100

typedef struct Erasure
{
	int64		id;
	const char *key;			/* NULL: by containment */
	Datum		match[2];		/* jsonb: metadata that contains one of them */
	char		digest[2 * CRYPTO_SHA256_BYTES + 1];
	int64		sessions;
	int64		archives;
	int64		unencrypted;
	int64		refused;
} Erasure;

/* ---- whose ---- */

/* A number as JSON has it, without an exponent; or true, or false. */
static bool
is_plain_literal(const char *value)
{
	const char *p = value;

	if (strcmp(value, "true") == 0 || strcmp(value, "false") == 0)
		return true;
	if (strlen(value) > NUMBER_MAX)
		return false;
	if (*p == '-')
		p++;
	if (!isdigit((unsigned char) *p) ||
		(*p == '0' && isdigit((unsigned char) p[1])))
		return false;
	while (isdigit((unsigned char) *p))
		p++;
	if (*p == '.')
	{
		if (!isdigit((unsigned char) *++p))
			return false;
		while (isdigit((unsigned char) *p))
			p++;
	}
	return *p == '\0';
}

/* {"key": value} as jsonb. */
static Datum
pair(const char *key, const char *value, bool literal)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	escape_json(&json, key);
	appendStringInfoString(&json, ": ");
	if (literal)
		appendStringInfoString(&json, value);
	else
		escape_json(&json, value);
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

/*
 * Something empty in an object that is asked for would match all that is of
 * its kind.
 */
static void
check_match(Jsonb *match)
{
	JsonbIterator *it = JsonbIteratorInit(&match->root);
	JsonbValue	v;
	JsonbIteratorToken token;
	JsonbIteratorToken before = WJB_DONE;

	if (!JB_ROOT_IS_OBJECT(match))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the subject must be a JSON object"),
				 errhint("{\"user\": {\"id\": 7}} erases all whose metadata contains that.")));
	while ((token = JsonbIteratorNext(&it, &v, false)) != WJB_DONE)
	{
		if ((token == WJB_END_OBJECT && before == WJB_BEGIN_OBJECT) ||
			(token == WJB_END_ARRAY && before == WJB_BEGIN_ARRAY))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the subject must not have an empty object or array"),
					 errdetail("It would match everybody who has any.")));
		before = token;
	}
}

/* The row of the request. */
static void
begin_request(Erasure *e, const char *subject)
{
	Oid			types[] = {TEXTOID, TEXTOID, BYTEAOID, BYTEAOID};
	Plaintext	plain = plaintext_take(CStringGetTextDatum(subject));
	char	   *salted = palloc(SALT_BYTES + plain.len);
	bytea	   *salt = palloc(VARHDRSZ + SALT_BYTES);
	bytea	   *digest = palloc(VARHDRSZ + CRYPTO_SHA256_BYTES);
	Datum		values[4];
	bool		isnull;

	SET_VARSIZE(salt, VARHDRSZ + SALT_BYTES);
	SET_VARSIZE(digest, VARHDRSZ + CRYPTO_SHA256_BYTES);
	crypto_random(VARDATA(salt), SALT_BYTES);
	memcpy(salted, VARDATA(salt), SALT_BYTES);
	memcpy(salted + SALT_BYTES, plain.data, plain.len);
	crypto_sha256(salted, SALT_BYTES + plain.len, (uint8 *) VARDATA(digest));
	crypto_hex(VARDATA(digest), CRYPTO_SHA256_BYTES, e->digest);
	plaintext_wipe(&plain);

	values[0] = CStringGetTextDatum(GetUserNameFromId(owner_caller(), false));
	values[1] = e->key ? CStringGetTextDatum(e->key) : (Datum) 0;
	values[2] = PointerGetDatum(salt);
	values[3] = PointerGetDatum(digest);
	owner_run(NULL,
			  "INSERT INTO mlint.erasure (requested_at, requested_by, key, salt,"
			  " digest) VALUES (pg_catalog.clock_timestamp(), $1, $2, $3, $4)"
			  " RETURNING id", SPI_OK_INSERT_RETURNING, 4, types, values,
			  e->key ? NULL : " n  ");
	e->id = DatumGetInt64(owner_column(1, &isnull));
}

/* ---- one session ---- */

/* What is known of a session that is locked. */
typedef struct Subject
{
	int64		id;
	char	   *session_id;
	Datum		tags;
	Jsonb	   *metadata;
	bool		archived;
	pg_uuid_t	archive;
	int64		data_key;		/* 0: none */
	TimestampTz erasable_at;	/* 0: at any time */
	char	   *policy;			/* or NULL */
} Subject;

/*
 * Lock it, and read it as it is then. False: it is gone, or not this person's
 * any more.
 */
static bool
lock_subject(const Erasure *e, Subject *s)
{
	static SPIPlanPtr found = NULL;
	Oid			types[] = {INT8OID, JSONBOID, JSONBOID};
	Datum		values[] = {Int64GetDatum(s->id), e->match[0], e->match[1]};
	Session		session;
	Datum		value;
	bool		isnull;

	if (!session_lock(s->session_id, false, &session) || session.id != s->id)
		return false;
	owner_run(&found, "SELECT s.tags, s.metadata, a.id, a.data_key, v.erasable_at, v.policy"
			  " FROM mlint.session s"
			  " LEFT JOIN mlint.archive a ON a.session = s.id"
			  " LEFT JOIN mlint.archive_periods v ON v.archive_id = a.id"
			  " WHERE s.id = $1 AND (s.metadata @> $2 OR s.metadata @> $3"
			  " OR a.metadata @> $2 OR a.metadata @> $3)",
			  SPI_OK_SELECT, 3, types, values, NULL);
	if (SPI_processed == 0)
		return false;
	s->tags = owner_column(1, &isnull);
	s->metadata = DatumGetJsonbP(owner_column(2, &isnull));
	value = owner_column(3, &isnull);
	s->archived = !isnull;
	if (s->archived)
		s->archive = *DatumGetUUIDP(value);
	value = owner_column(4, &isnull);
	s->data_key = isnull ? 0 : DatumGetInt64(value);
	value = owner_column(5, &isnull);
	s->erasable_at = isnull ? 0 : DatumGetTimestampTz(value);
	s->policy = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 6);
	return true;
}

/* What forbids to erase it, or NULL; until when, 0: that is not known. */
static const char *
forbidden(const Subject *s, TimestampTz *until)
{
	*until = 0;
	if (retention_hold(s->id))
		return "hold";
	if (s->archived)
	{
		if (s->erasable_at <= GetCurrentTimestamp())
			return NULL;
		*until = s->erasable_at;
		return "compliance";
	}
	else
	{
		RetentionPolicy policy;

		retention_policy_find(NULL, s->tags, s->metadata, &policy);
		return policy.id != 0 && !policy.erasable ? "compliance" : NULL;
	}
}

static void
refuse(Erasure *e, const Subject *s, const char *reason, TimestampTz until)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID, TEXTOID, UUIDOID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(e->id),
		CStringGetTextDatum(s->session_id), UUIDPGetDatum(&s->archive),
	CStringGetTextDatum(reason), TimestampTzGetDatum(until)};
	char		nulls[] = {' ', ' ', s->archived ? ' ' : 'n', ' ',
	until ? ' ' : 'n', '\0'};

	owner_run(&plan, "INSERT INTO mlint.erasure_refusal (erasure, session_id, archive,"
			  " reason, until) VALUES ($1, $2, $3, $4, $5)",
			  SPI_OK_INSERT, 5, types, values, nulls);
	e->refused++;
}

static void
audit_deletion(const Erasure *e, const Subject *s)
{
	StringInfoData details;

	initStringInfo(&details);
	appendStringInfoString(&details, "{\"policy\": ");
	if (s->policy)
		escape_json(&details, s->policy);
	else
		appendStringInfoString(&details, "null");
	appendStringInfoString(&details, ", \"reason\": \"erasure\", \"session\": ");
	escape_json(&details, s->session_id);
	appendStringInfo(&details, ", \"erasure\": " INT64_FORMAT "}", e->id);
	if (s->archived)
		audit(AUDIT_CHANGED, "archive.delete", "archive",
			  DatumGetCString(DirectFunctionCall1(uuid_out,
												  UUIDPGetDatum(&s->archive))),
			  details.data);
	else
		audit(AUDIT_CHANGED, "session.delete", "session", s->session_id,
			  details.data);
}

static void
erase(Erasure *e, const Subject *s)
{
	audit_deletion(e, s);
	if (s->archived)
	{
		static SPIPlanPtr plan = NULL;
		Oid			types[] = {INT8OID, UUIDOID, INT8OID};
		Datum		values[] = {Int64GetDatum(e->id),
		UUIDPGetDatum(&s->archive), Int64GetDatum(s->data_key)};

		owner_run(&plan, "INSERT INTO mlint.erasure_archive (erasure, archive, data_key)"
				  " VALUES ($1, $2, nullif($3, 0))", SPI_OK_INSERT, 3, types,
				  values, NULL);
		if (!archive_remove(&s->archive))
			elog(ERROR, "an archive that was locked is gone");
		e->archives++;
		e->unencrypted += s->data_key == 0;
	}
	else
	{
		session_remove(s->id);
		e->sessions++;
	}
}

/* ---- all of them ---- */

/* Sessions by number, so that two erasures wait for each other in one order. */
static void
erase_all(Erasure *e)
{
	Oid			types[] = {JSONBOID, JSONBOID};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "mlint erasure",
												  ALLOCSET_DEFAULT_SIZES);
	Portal		found = SPI_cursor_open_with_args(NULL,
												  "SELECT s.id, s.session_id::text FROM mlint.session s"
												  " WHERE s.id IN (SELECT i.id FROM mlint.session i"
												  " WHERE i.metadata @> $1 OR i.metadata @> $2"
												  " UNION SELECT a.session FROM mlint.archive a"
												  " WHERE a.metadata @> $1 OR a.metadata @> $2)"
												  " ORDER BY s.id", 2, types, e->match, NULL,
												  false, 0);

	for (;;)
	{
		SPITupleTable *batch;
		uint64		n;

		SPI_cursor_fetch(found, true, FETCH);
		batch = SPI_tuptable;
		n = SPI_processed;
		if (n == 0)
			break;
		for (uint64 i = 0; i < n; i++)
		{
			Subject		s = {0};
			OwnerScope	scope;
			MemoryContext old;
			const char *reason;
			TimestampTz until;
			bool		isnull;

			CHECK_FOR_INTERRUPTS();
			/* A scope of its own: what SPI keeps goes with it. */
			owner_begin(&scope);
			old = MemoryContextSwitchTo(context);
			s.id = DatumGetInt64(SPI_getbinval(batch->vals[i], batch->tupdesc,
											   1, &isnull));
			s.session_id = SPI_getvalue(batch->vals[i], batch->tupdesc, 2);
			if (lock_subject(e, &s))
			{
				reason = forbidden(&s, &until);
				if (reason)
					refuse(e, &s, reason, until);
				else
					erase(e, &s);
			}
			MemoryContextSwitchTo(old);
			owner_end(&scope);
			MemoryContextReset(context);
		}
		SPI_freetuptable(batch);
	}
	SPI_cursor_close(found);
	MemoryContextDelete(context);
}

/* The receipt, signed, and kept with the request. */
static Jsonb *
write_receipt(const Erasure *e)
{
	bool		in_backups = erasure_key_in_data_directory();
	Oid			types[] = {INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, BOOLOID,
	JSONBOID};
	Datum		values[] = {Int64GetDatum(e->id), Int64GetDatum(e->sessions),
		Int64GetDatum(e->archives), Int64GetDatum(e->unencrypted),
	Int64GetDatum(e->refused), BoolGetDatum(in_backups), 0};
	Jsonb	   *receipt;
	bool		isnull;

	owner_run(NULL,
			  "SELECT pg_catalog.jsonb_build_object("
			  "'type', 'mlint.erasure', 'version', 1, 'id', e.id,"
			  " 'database', pg_catalog.current_database(),"
			  " 'requested_at', pg_catalog.to_char(e.requested_at AT TIME ZONE 'UTC',"
			  " 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),"
			  " 'requested_by', e.requested_by,"
			  " 'subject', pg_catalog.jsonb_build_object('key', e.key,"
			  " 'salt', pg_catalog.encode(e.salt, 'hex'),"
			  " 'sha256', pg_catalog.encode(e.digest, 'hex')),"
			  " 'erased', pg_catalog.jsonb_build_object('sessions', $2,"
			  " 'archives', $3, 'data_keys', $3 - $4),"
			  " 'refused', pg_catalog.jsonb_build_object('count', $5, 'list',"
			  " coalesce((SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object("
			  "'session', r.session_id, 'archive', r.archive, 'reason', r.reason,"
			  " 'until', pg_catalog.to_char(r.until AT TIME ZONE 'UTC',"
			  " 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))) FROM (SELECT i.*"
			  " FROM mlint.erasure_refusal i WHERE i.erasure = e.id"
			  " ORDER BY i.session_id LIMIT " CppAsString2(REFUSALS_LISTED) ") r),"
			  " '[]'::jsonb)),"
			  " 'effect', 'with the commit of the transaction; data keys are gone for"
			  " good when mlint.erasures.completed_at is set',"
			  " 'backups', pg_catalog.jsonb_build_object("
			  "'archives', CASE WHEN $3 = $4 THEN NULL WHEN $6"
			  " THEN 'readable from copies of the data directory that include the erasure key file'"
			  " ELSE 'unreadable' END,"
			  " 'unencrypted_archives', $4, 'live_sessions', $2),"
			  " 'remains', pg_catalog.jsonb_build_array("
			  "'totals of usage by model, tag and day, without sessions',"
			  " 'events that were published, for their retention',"
			  " 'entries of the audit log',"
			  " 'earlier backups and WAL of what is counted in backups.unencrypted_archives and backups.live_sessions'))"
			  " FROM mlint.erasure e WHERE e.id = $1",
			  SPI_OK_SELECT, 6, types, values, NULL);
	receipt = receipt_sign(DatumGetJsonbP(owner_column(1, &isnull)));
	values[6] = JsonbPGetDatum(receipt);
	owner_run(NULL,
			  "UPDATE mlint.erasure SET sessions = $2, archives = $3,"
			  " unencrypted = $4, refused = $5, in_backups = $6, receipt = $7"
			  " WHERE id = $1", SPI_OK_UPDATE, 7, types, values, NULL);
	return receipt;
}

static Datum
erase_subject(Erasure *e, const char *subject)
{
	MemoryContext caller = CurrentMemoryContext;
	StringInfoData details;
	OwnerScope	scope;
	Jsonb	   *receipt;

	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("mlint.erase_subject() cannot run in a transaction of isolation level %s",
						XactIsoLevel == XACT_SERIALIZABLE ? "SERIALIZABLE" : "REPEATABLE READ"),
				 errdetail("It would miss sessions that were committed after the transaction began."),
				 errhint("Use READ COMMITTED.")));
	owner_begin(&scope);
	begin_request(e, subject);
	erase_all(e);
	receipt = write_receipt(e);
	initStringInfo(&details);
	appendStringInfo(&details, "{\"key\": ");
	if (e->key)
		escape_json(&details, e->key);
	else
		appendStringInfoString(&details, "null");
	appendStringInfo(&details, ", \"subject_sha256\": \"%s\", \"sessions\": "
					 INT64_FORMAT ", \"archives\": " INT64_FORMAT
					 ", \"refused\": " INT64_FORMAT "}",
					 e->digest, e->sessions, e->archives, e->refused);
	audit(AUDIT_CHANGED, "subject.erase", "erasure",
		  psprintf(INT64_FORMAT, e->id), details.data);
	MemoryContextSwitchTo(caller);
	receipt = DatumGetJsonbPCopy(JsonbPGetDatum(receipt));
	owner_end(&scope);
	return JsonbPGetDatum(receipt);
}

/* mlint.erase_subject(key, value) */
Datum
mlint_erase_subject(PG_FUNCTION_ARGS)
{
	char	   *key = required_text(fcinfo, 0, "key");
	char	   *value = required_text(fcinfo, 1, "value");
	Erasure		e = {.key = key};

	require_writable(fcinfo);
	if (key[0] == '\0' || value[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("neither key nor value may be empty")));
	e.match[0] = pair(key, value, false);
	e.match[1] = pair(key, value, is_plain_literal(value));
	return erase_subject(&e, value);
}

/* mlint.erase_subject(subject) */
Datum
mlint_erase_subject_matching(PG_FUNCTION_ARGS)
{
	Jsonb	   *match;
	Erasure		e = {0};

	require_writable(fcinfo);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the subject must not be null")));
	match = PG_GETARG_JSONB_P(0);
	check_match(match);
	e.match[0] = e.match[1] = JsonbPGetDatum(match);
	return erase_subject(&e, JsonbToCString(NULL, &match->root,
											VARSIZE(match)));
}
