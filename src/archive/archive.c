/*
 * archive.c
 *		The start of the room.
 */
#include "postgres.h"

#include "archive/archive.h"

void
archive_init(void)
{
}
