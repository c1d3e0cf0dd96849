/*
 * transcript.c
 *		What was said, in order: from a leaf of the tree up to its beginning.
 *
 * The tool calls of a response belong to it, so a transcript has all of them,
 * also when what follows was added after one of them, or after the response
 * itself.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "sessions/check.h"
#include "sessions/message.h"
#include "sessions/reading.h"
#include "sessions/row.h"
#include "utils/uuid.h"

PG_FUNCTION_INFO_V1(mlint_session_transcript);
PG_FUNCTION_INFO_V1(mlint_session_branches);

/* The id of a session whose messages are here, in the statement's snapshot. */
static int64
live_session(const char *session_id)
{
	Session		session;

	if (!session_read(session_id, &session))
		session_unknown(session_id);
	if (session.status == SESSION_ARCHIVED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("session \"%s\" is archived", session_id),
				 errhint("mlint.archive_get() shows what was said; mlint.archive_restore() brings it back.")));
	return session.id;
}

/* mlint.session_transcript(session_id, leaf) */
Datum
mlint_session_transcript(PG_FUNCTION_ARGS)
{
	char	   *session_id = name_argument(fcinfo, 0, "session_id");
	int64		session = live_session(session_id);
	Reading		reading;

	reading_begin(&reading, "WITH RECURSIVE up AS ("
				  " SELECT m.id, m.parent, 0 AS height FROM (");
	if (PG_ARGISNULL(1))
		appendStringInfoString(&reading.sql, "SELECT l.* FROM mlint.message l");
	else
	{
		message_require(PG_GETARG_UUID_P(1), session, session_id);
		appendStringInfoString(&reading.sql, "SELECT l.* FROM mlint.message l");
		reading_where(&reading, "l.id = $%d", UUIDOID, PG_GETARG_DATUM(1));
	}
	reading_where(&reading, "l.session = $%d", INT8OID, Int64GetDatum(session));
	appendStringInfoString(&reading.sql,
						   " ORDER BY l.seq DESC LIMIT 1) m"
						   " UNION ALL"
						   " SELECT m.id, m.parent, up.height + 1"
						   " FROM up JOIN mlint.message m ON m.id = up.parent)"
						   " SELECT m.id, m.parent, m.kind, m.content,"
						   " m.model_id, m.usage, m.latency_ms, m.tool,"
						   " m.metadata, m.created_at"
						   " FROM (SELECT id, height FROM up"
						   " UNION SELECT t.id, up.height - 1"
						   " FROM up JOIN mlint.message t"
						   " ON t.parent = up.id AND t.kind = 'tool_call') p"
						   " JOIN mlint.message m ON m.id = p.id"
						   " ORDER BY p.height DESC, m.kind <> 'tool_call',"
						   " m.seq");
	return reading_rows(&reading, fcinfo);
}

/* mlint.session_branches(session_id): the leaves, oldest first. */
Datum
mlint_session_branches(PG_FUNCTION_ARGS)
{
	char	   *session_id = name_argument(fcinfo, 0, "session_id");
	Reading		reading;

	reading_begin(&reading, "WITH followed AS ("
				  " SELECT coalesce(t.parent, m.parent) AS id"
				  " FROM mlint.message m LEFT JOIN mlint.message t"
				  " ON t.id = m.parent AND t.kind = 'tool_call'"
				  " WHERE m.session = $1 AND m.kind <> 'tool_call'"
				  " AND m.parent IS NOT NULL)"
				  " SELECT m.id, m.kind, m.created_at FROM mlint.message m"
				  " WHERE m.session = $1 AND m.kind <> 'tool_call'"
				  " AND NOT EXISTS (SELECT FROM followed f WHERE f.id = m.id)"
				  " ORDER BY m.seq");
	(void) reading_value(&reading, INT8OID,
						 Int64GetDatum(live_session(session_id)));
	return reading_rows(&reading, fcinfo);
}
