/*
 * retry.c
 *		The one retry policy.
 *
 * The bound of the delay grows with each failed attempt, and the delay itself
 * is drawn uniformly between zero and the bound ("full jitter"): deliveries
 * that failed together do not come back together, which is what brings a
 * recovering receiver down again.
 */
#include "postgres.h"

#include <math.h>

#include "common/pg_prng.h"
#include "common/retry.h"
#include "datatype/timestamp.h"

/* In RetryStrategy's order. */
const char *const retry_strategies[] = {
	"exponential", "linear", "immediate", "none", NULL
};

/* The longest delay after this many failed attempts, in milliseconds. */
static double
retry_bound(const RetryPolicy *policy, int attempt)
{
	double		bound = 0;

	switch ((RetryStrategy) policy->strategy)
	{
		case RETRY_EXPONENTIAL:
			/* Infinity, when it overflows, is cut to max_delay_ms below. */
			bound = policy->initial_delay_ms;
			if (bound > 0)
				bound *= pow(policy->multiplier, attempt - 1);
			break;
		case RETRY_LINEAR:
			bound = (double) policy->initial_delay_ms * attempt;
			break;
		case RETRY_IMMEDIATE:
		case RETRY_NONE:
			break;
	}
	return Min(bound, policy->max_delay_ms);
}

/* Microseconds until the next attempt; -1: there is none. See retry.h. */
int64
retry_delay(const RetryPolicy *policy, int attempt, int retry_after)
{
	uint64		bound;
	int64		delay;

	if (policy->strategy == RETRY_NONE || attempt > policy->max_retries)
		return -1;

	bound = (uint64) (retry_bound(policy, attempt) * 1000.0);
	delay = (int64) pg_prng_uint64_range(&pg_global_prng_state, 0, bound);
	return Max(delay, (int64) retry_after * USECS_PER_SEC);
}
