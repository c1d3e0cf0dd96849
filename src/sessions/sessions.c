/*
 * sessions.c
 *		The start of the room.
 */
#include "postgres.h"

#include "sessions/sessions.h"

void
sessions_init(void)
{
}
