/*
 * usage.c
 *		The start of the room.
 */
#include "postgres.h"

#include "usage/usage.h"

void
usage_init(void)
{
}
