/*
 * archive.c
 *		The start of the room.
 */
#include "postgres.h"

#include "archive/archive.h"
#include "archive/store.h"

void
archive_init(void)
{
	store_define_settings();
}
