/*
 * sessions.h
 *		Sessions, for the other rooms.
 *
 * A session is a row of mlint.session and its messages in mlint.message. Whoever
 * adds a message holds the row in FOR KEY SHARE (the foreign key does that);
 * whoever archives or removes a session holds it FOR UPDATE, by session_lock(),
 * and then sees all that was committed before. Who waited for that lock finds
 * the session archived, and gets an error: a message is either in the archive,
 * or was never accepted.
 */
#ifndef MLINT_SESSIONS_H
#define MLINT_SESSIONS_H

#include "common/compat.h"
#include "datatype/timestamp.h"

/* Settings. Called once by _PG_init. */
extern void sessions_init(void);

typedef enum SessionStatus
{
	SESSION_ACTIVE,
	SESSION_COMPLETED,
	SESSION_FAILED,
	SESSION_ARCHIVED
} SessionStatus;

typedef struct Session
{
	int64		id;
	SessionStatus status;
	TimestampTz active_at;
} Session;

/* What is committed, and ours, now; without a lock. False: there is none. */
extern bool session_find(const char *session_id, Session *session);

/*
 * Keep it from being archived or removed until the transaction ends, as whoever
 * adds something to it must, and then look at its status. Waits while another
 * transaction does one of the two. False: there is none.
 */
extern bool session_lock_shared(const char *session_id, Session *session);

/*
 * Lock it against messages, changes, archiving and removal until the
 * transaction ends. False: there is none; with skip_locked also when another
 * transaction has it. What is read of the session afterwards must be read with
 * GetLatestSnapshot(), or it may lack what was committed while we waited.
 */
extern bool session_lock(const char *session_id, bool skip_locked,
						 Session *session);

/* ERRCODE_UNDEFINED_OBJECT: session "x" does not exist. */
extern void pg_attribute_noreturn() session_unknown(const char *session_id);

/* ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE: session "x" is archived. */
extern void pg_attribute_noreturn() session_archived(const char *session_id);

/*
 * Set the status of a locked session, whatever the transition; other rooms use
 * it for archived and back. ended_at stays as it is for archived, and what it
 * was for completed and failed. All but archived is a sign of life, so that
 * what was restored is not due for archiving at once.
 */
extern void session_status_set(int64 id, SessionStatus status);

/*
 * Remove a locked session's row, messages and usage. Whoever may not be
 * removed (retention.h's triggers) raises.
 */
extern void session_remove(int64 id);

/*
 * session_set_status(..., 'archived') is archive_session(): the archive room
 * says how.
 */
typedef void (*SessionArchiver) (const char *session_id);
extern void session_register_archiver(SessionArchiver archiver);

#endif
