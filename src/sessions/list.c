/*
 * list.c
 *		Sessions in pages, newest first.
 *
 * A page by its number reads all pages before it, which is what such numbers
 * cost; nobody looks at page 1,000. Who reads on and on takes pages by cursor:
 * the place of the last row in the index (started_at, session_id), from where
 * the next page is a few rows of that index, however deep. What is registered
 * meanwhile neither shifts such pages nor is met twice.
 *
 * How many there are is a question of its own, since to count a million rows
 * costs more than to show fifty.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "sessions/check.h"
#include "sessions/reading.h"
#include "sessions/row.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(mlint_session_list);
PG_FUNCTION_INFO_V1(mlint_session_list_after);
PG_FUNCTION_INFO_V1(mlint_session_count);
PG_FUNCTION_INFO_V1(mlint_session_cursor);

/* A cursor is this, and in hexadecimal a time and a session_id. */
#define CURSOR_PREFIX	"s1"

/* The six arguments from the first on that choose sessions. */
static void
filter(Reading *reading, FunctionCallInfo fcinfo, int first)
{
	if (!PG_ARGISNULL(first))
	{
		char	   *word = name_argument(fcinfo, first, "status");

		(void) session_status(word);
		reading_where(reading, "s.status = $%d", TEXTOID,
					  CStringGetTextDatum(word));
	}
	if (!PG_ARGISNULL(first + 1))
		reading_where(reading, "s.tags @> ARRAY[$%d]", TEXTOID,
					  PG_GETARG_DATUM(first + 1));
	if (!PG_ARGISNULL(first + 2))
		reading_where(reading, "s.model_id = $%d", TEXTOID,
					  PG_GETARG_DATUM(first + 2));
	if (!PG_ARGISNULL(first + 3))
		reading_where(reading, "s.metadata @> $%d", JSONBOID,
					  JsonbPGetDatum(object_argument(fcinfo, first + 3,
													 "metadata")));
	if (!PG_ARGISNULL(first + 4))
		reading_where(reading, "s.started_at >= $%d", TIMESTAMPTZOID,
					  PG_GETARG_DATUM(first + 4));
	if (!PG_ARGISNULL(first + 5))
		reading_where(reading, "s.started_at < $%d", TIMESTAMPTZOID,
					  PG_GETARG_DATUM(first + 5));
}

/* mlint.session_list(page, page_size, status, tag, ...) */
Datum
mlint_session_list(PG_FUNCTION_ARGS)
{
	int64		page = page_argument(fcinfo, 0);
	int			page_size = page_size_argument(fcinfo, 1);
	Reading		reading;

	reading_begin(&reading, "SELECT s.* FROM mlint.sessions s");
	filter(&reading, fcinfo, 2);
	appendStringInfo(&reading.sql,
					 " ORDER BY s.started_at DESC, s.session_id DESC"
					 " LIMIT %d OFFSET " INT64_FORMAT, page_size,
					 (page - 1) * page_size);
	return reading_rows(&reading, fcinfo);
}

/* mlint.session_count(status, tag, ..., up_to) */
Datum
mlint_session_count(PG_FUNCTION_ARGS)
{
	Reading		reading;
	bool		isnull;

	reading_begin(&reading, "SELECT pg_catalog.count(*) FROM"
				  " (SELECT FROM mlint.session s");
	filter(&reading, fcinfo, 0);
	if (!PG_ARGISNULL(6))
	{
		if (PG_GETARG_INT64(6) < 1)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("up_to must be at least 1")));
		appendStringInfo(&reading.sql, " LIMIT $%d",
						 reading_value(&reading, INT8OID, PG_GETARG_DATUM(6)));
	}
	appendStringInfoString(&reading.sql, ") c");
	PG_RETURN_DATUM(reading_one(&reading, false, &isnull));
}

/* ---- cursors ---- */

static char *
cursor_make(TimestampTz started_at, const char *session_id)
{
	uint64		at = pg_hton64((uint64) started_at);
	size_t		len = strlen(session_id);
	char	   *cursor = palloc(strlen(CURSOR_PREFIX) +
								2 * (sizeof(at) + len) + 1);
	char	   *p = cursor + sprintf(cursor, "%s", CURSOR_PREFIX);

	p += hex_encode((const char *) &at, sizeof(at), p);
	p += hex_encode(session_id, len, p);
	*p = '\0';
	return cursor;
}

/* Read one. False: no cursor of ours looks like this. */
static bool
cursor_read(const char *cursor, TimestampTz *started_at, char **session_id)
{
	size_t		prefix = strlen(CURSOR_PREFIX);
	size_t		digits = strlen(cursor);
	char	   *bytes;
	size_t		len;
	uint64		at;

	if (strncmp(cursor, CURSOR_PREFIX, prefix) != 0)
		return false;
	cursor += prefix;
	digits -= prefix;
	if (digits % 2 != 0 || digits <= 2 * sizeof(at) ||
		digits > 2 * (sizeof(at) + SESSIONS_NAME_BYTES) ||
		strspn(cursor, "0123456789abcdef") != digits)
		return false;
	bytes = palloc(digits / 2 + 1);
	len = hex_decode(cursor, digits, bytes) - sizeof(at);
	memcpy(&at, bytes, sizeof(at));
	bytes += sizeof(at);
	bytes[len] = '\0';
	if (strlen(bytes) != len || !pg_verifymbstr(bytes, len, true))
		return false;
	*started_at = (TimestampTz) pg_ntoh64(at);
	*session_id = bytes;
	return IS_VALID_TIMESTAMP(*started_at);
}

/* mlint.session_cursor(session) */
Datum
mlint_session_cursor(PG_FUNCTION_ARGS)
{
	HeapTupleHeader session = PG_GETARG_HEAPTUPLEHEADER(0);
	bool		isnull;
	Datum		started_at = GetAttributeByName(session, "started_at", &isnull);
	Datum		session_id;

	if (isnull)
		PG_RETURN_NULL();
	session_id = GetAttributeByName(session, "session_id", &isnull);
	if (isnull)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(cursor_make(DatumGetTimestampTz(started_at),
												 TextDatumGetCString(session_id))));
}

/* mlint.session_list_after(cursor, page_size, status, tag, ...) */
Datum
mlint_session_list_after(PG_FUNCTION_ARGS)
{
	int			page_size = page_size_argument(fcinfo, 1);
	Reading		reading;

	reading_begin(&reading, "SELECT s.* FROM mlint.sessions s");
	filter(&reading, fcinfo, 2);
	if (!PG_ARGISNULL(0))
	{
		TimestampTz started_at;
		char	   *session_id;
		int			at;

		if (!cursor_read(required_text(fcinfo, 0, "cursor"), &started_at,
						 &session_id))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid cursor"),
					 errhint("Give what mlint.session_cursor() says of the last session of the page before, or null for the first page.")));
		at = reading_value(&reading, TIMESTAMPTZOID,
						   TimestampTzGetDatum(started_at));
		reading_where(&reading, psprintf("(s.started_at, s.session_id) < ($%d, $%%d)",
										 at),
					  TEXTOID, CStringGetTextDatum(session_id));
	}
	appendStringInfo(&reading.sql,
					 " ORDER BY s.started_at DESC, s.session_id DESC LIMIT %d",
					 page_size);
	return reading_rows(&reading, fcinfo);
}
