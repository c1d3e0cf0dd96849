/*
 * acquire.h
 *		Take from a limit the way its rule's strategy says, waiting if so.
 */
#ifndef MLINT_RATE_ACQUIRE_H
#define MLINT_RATE_ACQUIRE_H

#include "ratelimit/decide.h"

/*
 * Take the cost, by the rule's strategy. max_wait in microseconds, -1: the
 * rule's own. What it has waited is the answer's delay. Raises
 * ERRCODE_MLINT_RATE_LIMITED for a refusal if the strategy is hard; all others
 * return it. Waits on the latch, in order of arrival; takes nothing meanwhile.
 */
extern void rate_acquire(const char *rule, Size len, const char *identifier,
						 Size idlen, int64 cost, int64 max_wait,
						 RateAnswer *answer);

#endif
