/*
 * law.h
 *		The four algorithms: arithmetic on a small state, and nothing else.
 *
 * No shared memory, no locks, no clock, no allocation, no error: a law, a
 * state and a time go in, a verdict and a new state come out. So the laws can
 * be held against a slow exact model under any schedule.
 *
 * All times are microseconds since 1970-01-01 00:00 UTC; all arithmetic is on
 * integers and exact: a token of `per`/`rate` microseconds is kept as a whole
 * part and a remainder over `rate`. Only where a rule's rate changes, what a
 * bucket owes may move by less than a microsecond.
 *
 * What each admits:
 *
 *	token bucket	over any interval t at most burst + rate * t / per
 *	leaky bucket	the same into a queue of burst places; what leaves it
 *					(the time of the decision plus its delay, which is
 *					rounded up to a microsecond) is spaced by
 *					cost * per / rate
 *	fixed window	at most rate in each window [k * per, (k + 1) * per)
 *	sliding window	at most rate in any window of length per; and it admits
 *					whatever an exact log over 1.02 * per would
 *	slice			what was borrowed from elsewhere, while it lasts
 *
 * A clock that goes backwards: what the state owes is never more than a full
 * debt from now (an empty bucket, a full window), so nobody is locked out for
 * longer than that; and nothing that was taken is given back by it. A jump
 * forward admits what is full by then: one burst.
 */
#ifndef MLINT_RATE_LAW_H
#define MLINT_RATE_LAW_H

typedef enum RateAlgorithm
{
	RATE_TOKEN_BUCKET,
	RATE_LEAKY_BUCKET,
	RATE_FIXED_WINDOW,
	RATE_SLIDING_WINDOW,
	RATE_SLICE					/* internal: a lease from a shared limit */
} RateAlgorithm;

/* The window slides in steps of per / 50. */
#define RATE_STEPS			50
#define RATE_MAX_SEGMENTS	(RATE_STEPS + 1)

/* A segment of a sliding window: six bits say which step, the rest how much. */
#define RATE_SLIDING_MAX	((INT64CONST(1) << 26) - 1)

/* Times are from 0 to here: the year 4253. */
#define RATE_MAX_TIME		(INT64CONST(1) << 56)

#define RATE_MIN_PER		INT64CONST(1000)
#define RATE_MAX_PER		(INT64CONST(3660) * 86400 * 1000000)

typedef struct RateLaw
{
	RateAlgorithm algorithm;
	int64		rate;			/* tokens ... */
	int64		per;			/* ... in so many microseconds */
	int64		burst;			/* capacity: of a window, its rate */

	/* Worked out by law_prepare(). */
	int64		token_us;		/* time of one token: whole microseconds, */
	int64		token_rest;		/* and rest / rate of one */
	int64		full_us;		/* time from empty to full, the same */
	int64		full_rest;
} RateLaw;

/*
 * What is remembered of one key. From idle_at on it is as if it had never
 * been used. value is of the buckets: value / rate microseconds before idle_at
 * it is so already; of the fixed window and the slice: tokens taken, or left. A
 * state of zeros is a fresh one. A state that another law has made, but of the
 * same algorithm, will do: what it owes counts, as if taken now if need be.
 */
typedef struct RateState
{
	int64		idle_at;
	int64		value;
	int			nsegments;		/* sliding window: oldest first */
	uint32		segments[RATE_MAX_SEGMENTS];
} RateState;

typedef struct RateVerdict
{
	bool		allowed;
	int64		remaining;		/* tokens that could be taken now, after this */
	int64		capacity;
	int64		retry_after;	/* refused: microseconds until this cost could
								 * pass if nobody else came; else 0. A slice
								 * does not know: 0 */
	int64		reset_at;		/* when all of the capacity is there again */
	int64		delay;			/* allowed by a leaky bucket: wait so long */
} RateVerdict;

typedef enum RateIntent
{
	RATE_TAKE,
	RATE_TAKE_NOW,				/* only if there is no delay */
	RATE_PEEK,					/* as TAKE, but nothing is taken */
	RATE_GIVE,					/* give back what was just taken; allowed */
	RATE_FORGET					/* like fresh; always allowed */
} RateIntent;

/*
 * Work out the rest of a law. NULL, or why there can be no such law, for a
 * person (a whole sentence's predicate: "rate must be greater than zero").
 */
extern const char *law_prepare(RateLaw *law);

/*
 * cost is from 1 to law->burst: more can never be met, and is the caller's
 * error to raise. now is from 0 to RATE_MAX_TIME.
 */
extern void law_decide(const RateLaw *law, RateState *state, int64 now,
					   int64 cost, RateIntent intent, RateVerdict *verdict);

/* A state that has nothing left at this time, as if all had just been taken. */
extern void law_exhaust(const RateLaw *law, RateState *state, int64 now);

/* A slice: `granted` tokens more, until then. */
extern void law_lend(RateState *state, int64 now, int64 granted, int64 until);

#endif
