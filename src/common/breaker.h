/*
 * breaker.h
 *		The one circuit breaker.
 *
 * Closed: everything passes. After `threshold` failures in a row it opens:
 * nothing passes for `timeout_s`. Then it is half-open: one probe passes; its
 * success closes the breaker, its failure opens it again. The state lies in
 * shared memory, so that all processes agree; the caller holds whatever lock
 * guards the struct (a spinlock will do). A struct of zeros is closed.
 */
#ifndef MLINT_BREAKER_H
#define MLINT_BREAKER_H

#include "datatype/timestamp.h"

typedef enum BreakerState
{
	BREAKER_CLOSED,
	BREAKER_OPEN,
	BREAKER_HALF_OPEN
} BreakerState;

typedef struct BreakerPolicy
{
	int			threshold;		/* failures in a row; 0: never opens */
	int			timeout_s;
} BreakerPolicy;

typedef struct Breaker
{
	BreakerState state;
	int			failures;		/* in a row */
	TimestampTz retry_at;		/* open: when to become half-open; probing:
								 * when to give the probe up for lost */
	int			timeout_s;		/* of the policy that opened it */
	bool		probing;		/* half-open: the probe is out */
} Breaker;

#define BREAKER_OPTIONS(type, member) \
	{"threshold", OPTION_INT, offsetof(type, member.threshold), \
		"5", 0, 1000000, NULL, NULL, false, \
		"failures in a row that open the breaker; 0: it never opens"}, \
	{"timeout_s", OPTION_INT, offsetof(type, member.timeout_s), \
		"60", 1, 86400, NULL, NULL, false, \
		"seconds it stays open before one delivery is tried"}, \
	{NULL}

/*
 * May one pass now? Becomes half-open when the time has come. With take, the
 * half-open state's single probe is handed out; it comes back by
 * breaker_success() or breaker_failure(), or is given up after timeout_s.
 */
extern bool breaker_allows(Breaker *b, TimestampTz now, bool take);
extern void breaker_success(Breaker *b);

/* True when this failure opened it, or opened it again. */
extern bool breaker_failure(Breaker *b, const BreakerPolicy *policy,
							TimestampTz now);
extern void breaker_reset(Breaker *b);
extern const char *breaker_state_name(BreakerState state);

#endif
