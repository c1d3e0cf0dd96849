/*
 * ratelimit.c
 *		The room's beginning; see ratelimit.h.
 */
#include "postgres.h"

#include "ratelimit/queue.h"
#include "ratelimit/ratelimit.h"
#include "ratelimit/remote.h"
#include "ratelimit/rule.h"
#include "ratelimit/rule_slot.h"
#include "ratelimit/table.h"

void
ratelimit_init(void)
{
	rule_slot_init();
	table_init();
	rule_init();
	queue_init();
	remote_init();
}
