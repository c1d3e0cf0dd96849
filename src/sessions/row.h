/*
 * row.h
 *		Rows of mlint.session: found, locked, written; for this room alone.
 *
 * All that is decided about a session is decided by its latest version, whatever
 * the transaction's isolation level: a snapshot that is older could say that it
 * is live when it is archived.
 */
#ifndef MLINT_SESSIONS_ROW_H
#define MLINT_SESSIONS_ROW_H

#include "access/htup.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "nodes/lockoptions.h"
#include "sessions/sessions.h"
#include "utils/snapshot.h"

/* Columns of mlint.session. The view mlint.sessions has all but the first. */
enum
{
	SESSION_ROW_ID = 1,
	SESSION_SESSION_ID,
	SESSION_MODEL_ID,
	SESSION_MODEL_VERSION,
	SESSION_STATUS,
	SESSION_TAGS,
	SESSION_METADATA,
	SESSION_STARTED_AT,
	SESSION_ENDED_AT,
	SESSION_ACTIVE_AT,
	SESSION_UPDATED_AT,
	SESSION_NCOLUMNS = SESSION_UPDATED_AT
};

/* By name, as in the enum; and back, or an error that lists them. */
extern const char *const session_status_words[];
extern SessionStatus session_status(const char *word);

/* session_find(), but in the calling statement's snapshot. */
extern bool session_read(const char *session_id, Session *session);

/*
 * The row's latest version, locked until the transaction ends, by its
 * session_id or, when that is NULL, by its id. Skip: not if that means to wait.
 * The tuple is palloc'd. False: there is none, or it was skipped.
 */
extern bool session_row_lock(const char *session_id, int64 id,
							 LockTupleMode mode, bool skip,
							 Session *session, HeapTuple *tuple);

/*
 * It has shown a sign of life: move active_at on if that is an hour old. Never
 * waits: whoever has the row locked for a change writes it as well.
 */
extern void session_touch(const Session *session);

/* A statement of ours whose plan is kept. */
typedef struct SessionStatement
{
	const char *sql;
	int			nargs;
	Oid			types[10];
	SPIPlanPtr	plan;
} SessionStatement;

/*
 * Run it on what is committed now. In an owner scope. Returns SPI_processed.
 */
extern uint64 session_write(SessionStatement *statement, Datum *values,
							const char *nulls);

#endif
