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

void
usage_forget_session(int64 session)
{
}

void
usage_budget_require(int64 session)
{
}
