/*
 * message.h
 *		Messages, for the files of this room.
 */
#ifndef MLINT_SESSIONS_MESSAGE_H
#define MLINT_SESSIONS_MESSAGE_H

#include "utils/uuid.h"

/* Raise unless there is such a message in the session. */
extern void message_require(const pg_uuid_t *id, int64 session,
							const char *session_id);

/* A kind's name, as given, or an error that lists them. */
extern const char *message_kind(const char *word);

#endif
