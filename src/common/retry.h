/*
 * retry.h
 *		The one retry policy: when is the next attempt, if there is one.
 */
#ifndef MLINT_RETRY_H
#define MLINT_RETRY_H

#include "common/option.h"

typedef enum RetryStrategy
{
	RETRY_EXPONENTIAL,
	RETRY_LINEAR,
	RETRY_IMMEDIATE,
	RETRY_NONE
} RetryStrategy;

/* Delays in milliseconds. Embedded as "retry" in a room's options struct. */
typedef struct RetryPolicy
{
	int			strategy;		/* RetryStrategy */
	int			max_retries;	/* attempts after the first */
	int			initial_delay_ms;
	double		multiplier;
	int			max_delay_ms;
} RetryPolicy;

/*
 * The rows of a retry group whose RetryPolicy lies at this member of a room's
 * options struct.
 */
#define RETRY_OPTIONS(type, member) \
	{"strategy", OPTION_ENUM, offsetof(type, member.strategy), \
		"exponential", 0, 0, retry_strategies, NULL, false, \
		"how the delay grows from attempt to attempt"}, \
	{"max_retries", OPTION_INT, offsetof(type, member.max_retries), \
		"8", 0, 1000, NULL, NULL, false, \
		"attempts after the first; then the delivery is dead"}, \
	{"initial_delay_ms", OPTION_INT, offsetof(type, member.initial_delay_ms), \
		"1000", 0, 86400000, NULL, NULL, false, \
		"upper bound of the first delay, in milliseconds"}, \
	{"multiplier", OPTION_REAL, offsetof(type, member.multiplier), \
		"2", 1, 100, NULL, NULL, false, \
		"growth of the bound from attempt to attempt (exponential)"}, \
	{"max_delay_ms", OPTION_INT, offsetof(type, member.max_delay_ms), \
		"3600000", 0, 86400000, NULL, NULL, false, \
		"no delay is longer, in milliseconds"}, \
	{NULL}

extern const char *const retry_strategies[];

/*
 * Microseconds to wait after the attempt-th failed attempt (1 is the first),
 * or -1 when that was the last. Full jitter: uniform between 0 and the bound.
 * retry_after (seconds, -1: none) is what the peer asked for; it is a lower
 * bound of the delay, whatever the strategy.
 */
extern int64 retry_delay(const RetryPolicy *policy, int attempt,
						 int retry_after);

#endif
