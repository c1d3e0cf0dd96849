/*
 * law.c
 *		The four algorithms; see law.h for what each of them admits.
 *
 * The buckets are GCRA: what has been taken is one time, at which the bucket
 * would be full again. Taking moves it on by cost * per / rate, and may not
 * move it further than burst * per / rate from now. The time is a whole number
 * of microseconds, idle_at, less value / rate of one: so it is exact, and
 * from idle_at on the bucket is as good as new. The leaky bucket is the same,
 * but whoever comes before that time has to wait for it.
 *
 * The fixed window is a count and the end of its window.
 *
 * The sliding window counts by steps of per / RATE_STEPS. What was taken in a
 * step counts until per after the end of that step. Steps are numbered since
 * 1970; a time lies in step number time * RATE_STEPS / per, so that step k
 * counts in step n exactly if n - k <= RATE_STEPS, and per need not be a
 * multiple of anything. idle_at is the beginning of the first step in which
 * the newest segment does not count; this says what the newest step's number
 * is, and six bits of each segment say the others'. A state for which that
 * does not come out was made under another law.
 */
#include "postgres.h"

#include "common/int.h"
#include "ratelimit/law.h"

#ifndef HAVE_INT128
#error "the laws need integers of 128 bits"
#endif

/* Longest time from empty to full: some 1,100 years. */
#define MAX_FULL_US		(INT64CONST(1) << 55)

#define COUNT_BITS		26
#define COUNT_OF(s)		((int64) ((s) & RATE_SLIDING_MAX))
#define STEP_BITS(s)	((s) >> COUNT_BITS)
#define SEGMENT(step, count) \
	(((uint32) ((step) & 63) << COUNT_BITS) | (uint32) (count))

const char *
law_prepare(RateLaw *law)
{
	int128		full;

	if (law->rate <= 0)
		return "rate must be greater than zero";
	if (law->per < RATE_MIN_PER)
		return "per must be at least a millisecond";
	if (law->per > RATE_MAX_PER)
		return "per must be at most 3660 days";
	if (law->burst <= 0)
		return "burst must be greater than zero";
	if (law->algorithm == RATE_FIXED_WINDOW ||
		law->algorithm == RATE_SLIDING_WINDOW)
	{
		if (law->burst != law->rate)
			return "burst is for buckets: a window holds its rate";
		if (law->algorithm == RATE_SLIDING_WINDOW &&
			law->rate > RATE_SLIDING_MAX)
			return "rate of a sliding_window must be at most 67108863: use token_bucket or fixed_window for more";
	}

	law->token_us = law->per / law->rate;
	law->token_rest = law->per % law->rate;
	full = (int128) law->burst * law->per;
	if (full / law->rate > MAX_FULL_US)
		return "burst must not take longer than 1000 years to fill at this rate";
	law->full_us = (int64) (full / law->rate);
	law->full_rest = (int64) (full % law->rate);
	return NULL;
}

/* ---- buckets ---- */

/* cost * per / rate, as whole microseconds and a rest over rate. */
static inline int64
cost_time(const RateLaw *law, int64 cost, int64 *rest)
{
	int64		product;

	if (cost == 1)
	{
		*rest = law->token_rest;
		return law->token_us;
	}
	if (unlikely(pg_mul_s64_overflow(cost, law->per, &product)))
	{
		int128		wide = (int128) cost * law->per;

		*rest = (int64) (wide % law->rate);
		return (int64) (wide / law->rate);
	}
	*rest = product % law->rate;
	return product / law->rate;
}

/* An empty bucket. */
static inline void
bucket_empty(const RateLaw *law, RateState *state, int64 now)
{
	state->idle_at = now + law->full_us;
	state->value = 0;
	if (law->full_rest > 0)
	{
		state->idle_at++;
		state->value = law->rate - law->full_rest;
	}
}

/* Do the two rests make a microsecond? Their sum may not fit. */
static inline bool
rests_carry(const RateLaw *law, int64 value)
{
	return value >= law->rate - law->full_rest;
}

/*
 * Microseconds, rounded up, from now until no more is owed than can be; at
 * most 0 if that is so now.
 */
static inline int64
bucket_excess(const RateLaw *law, int64 idle_at, int64 value, int64 now)
{
	return idle_at - now - law->full_us - (rests_carry(law, value) ? 1 : 0);
}

/* What is in the bucket: whole tokens. */
static inline int64
bucket_tokens(const RateLaw *law, int64 idle_at, int64 value, int64 now)
{
	int64		whole = now + law->full_us - idle_at;
	int64		rest = value - (law->rate - law->full_rest);
	int64		product;

	if (rest >= 0)
		whole++;
	else
		rest += law->rate;
	if (unlikely(pg_mul_s64_overflow(whole, law->rate, &product) ||
				 pg_add_s64_overflow(product, rest, &product)))
		return (int64) (((int128) whole * law->rate + rest) / law->per);
	return product / law->per;
}

static inline void
bucket_decide(const RateLaw *law, RateState *state, int64 now, int64 cost,
			  RateIntent intent, RateVerdict *verdict)
{
	int64		idle_at;
	int64		value;
	int64		rest;
	int64		excess;
	int64		delay;

	if (unlikely(state->value < 0 || state->value >= law->rate))
		state->value = 0;		/* the rate has changed: round up */
	if (state->idle_at <= now)
		state->idle_at = state->value = 0;
	else if (unlikely(state->idle_at > now + law->full_us + 1 ||
					  bucket_excess(law, state->idle_at, state->value,
									now) > 0))
		bucket_empty(law, state, now);
	idle_at = Max(state->idle_at, now);
	delay = idle_at - now;

	if (unlikely(intent == RATE_GIVE))
	{
		idle_at -= cost_time(law, cost, &rest);
		value = state->value - (law->rate - rest);
		if (value >= 0)
			idle_at--;
		else
			value += law->rate;
		if (idle_at <= now)
			idle_at = value = 0;
		state->idle_at = idle_at;
		state->value = value;
		idle_at = Max(idle_at, now);
	}
	else
	{
		idle_at += cost_time(law, cost, &rest);
		value = state->value - rest;
		if (value < 0)
		{
			idle_at++;
			value += law->rate;
		}
		excess = bucket_excess(law, idle_at, value, now);
		if (law->algorithm == RATE_LEAKY_BUCKET && intent == RATE_TAKE_NOW)
			excess = delay;		/* which is no less */
		if (excess > 0)
		{
			verdict->allowed = false;
			verdict->retry_after = excess;
			idle_at = now + delay;
			value = state->value;
		}
		else
		{
			if (law->algorithm == RATE_LEAKY_BUCKET)
				verdict->delay = delay;
			if (intent != RATE_PEEK)
			{
				state->idle_at = idle_at;
				state->value = value;
			}
		}
	}
	verdict->reset_at = idle_at;
	verdict->remaining = bucket_tokens(law, idle_at, value, now);
}

/* ---- fixed window ---- */

static inline int64
window_end(const RateLaw *law, int64 now)
{
	return now - now % law->per + law->per;
}

static inline void
fixed_decide(const RateLaw *law, RateState *state, int64 now, int64 cost,
			 RateIntent intent, RateVerdict *verdict)
{
	int64		taken = state->value;

	if (state->idle_at <= now || unlikely(taken < 0))
		taken = 0;
	/* A window of another time or law is taken for the present one. */
	state->idle_at = window_end(law, now);

	if (unlikely(intent == RATE_GIVE))
		state->value = taken = Max(taken - cost, 0);
	else if (taken > law->rate || cost > law->rate - taken)
	{
		verdict->allowed = false;
		verdict->retry_after = state->idle_at - now;
		state->value = taken;
	}
	else
	{
		state->value = taken;
		taken += cost;
		if (intent != RATE_PEEK)
			state->value = taken;
	}
	verdict->remaining = Max(law->rate - taken, 0);
	verdict->reset_at = taken > 0 ? state->idle_at : now;
	if (state->value == 0)
		state->idle_at = 0;
}

/* ---- sliding window ---- */

/* When what was taken in this step no longer counts. */
static inline int64
step_expiry(const RateLaw *law, int64 step)
{
	return ((step + RATE_STEPS + 1) * law->per + RATE_STEPS - 1) / RATE_STEPS;
}

/*
 * Make the state one of this law and this time, and return what counts. What
 * lies ahead of now, or was counted in other steps, counts as of now.
 */
static int64
sliding_settle(const RateLaw *law, RateState *state, int64 now, int64 step)
{
	int64		newest;
	int64		used = 0;
	int			kept = 0;
	uint32		present = 0;
	bool		foreign;

	if (state->idle_at <= now)
		state->nsegments = 0;
	if (state->nsegments == 0)
		return 0;

	foreign = state->idle_at > RATE_MAX_TIME + 2 * RATE_MAX_PER;
	newest = foreign ? 0 :
		state->idle_at * RATE_STEPS / law->per - (RATE_STEPS + 1);
	foreign = foreign || step_expiry(law, newest) != state->idle_at ||
		STEP_BITS(state->segments[state->nsegments - 1]) != (newest & 63);

	for (int i = 0; i < state->nsegments; i++)
	{
		uint32		segment = state->segments[i];
		int64		at = newest - ((newest - STEP_BITS(segment)) & 63);

		if (foreign || at >= step)
			present += COUNT_OF(segment);
		else if (step - at <= RATE_STEPS)
			state->segments[kept++] = segment;
		else
			continue;
		used += COUNT_OF(segment);
	}
	if (present > 0)
		state->segments[kept++] =
			SEGMENT(step, Min(present, RATE_SLIDING_MAX));
	state->nsegments = kept;
	return used;
}

/* Add to the present step, which is the last if it is there. */
static inline void
sliding_add(RateState *state, int64 step, int64 count)
{
	if (state->nsegments > 0 &&
		STEP_BITS(state->segments[state->nsegments - 1]) == (step & 63))
		state->segments[state->nsegments - 1] += count;
	else
		state->segments[state->nsegments++] = SEGMENT(step, count);
}

/* Take from what was counted last. */
static void
sliding_give(RateState *state, int64 count)
{
	while (state->nsegments > 0 && count > 0)
	{
		uint32	   *last = &state->segments[state->nsegments - 1];
		int64		part = Min(COUNT_OF(*last), count);

		*last -= part;
		count -= part;
		if (COUNT_OF(*last) == 0)
			state->nsegments--;
	}
}

/* The step of the last segment; all of them are of the last RATE_STEPS + 1. */
static inline int64
sliding_newest(const RateState *state, int64 step)
{
	return step - ((step - STEP_BITS(state->segments[state->nsegments - 1])) &
				   63);
}

/* When so much of what counts will have ceased to, more than 0. */
static int64
sliding_free_at(const RateLaw *law, const RateState *state, int64 step,
				int64 count)
{
	int			i = 0;

	while (i < state->nsegments - 1 &&
		   (count -= COUNT_OF(state->segments[i])) > 0)
		i++;
	return step_expiry(law, step -
					   ((step - STEP_BITS(state->segments[i])) & 63));
}

static void
sliding_decide(const RateLaw *law, RateState *state, int64 now, int64 cost,
			   RateIntent intent, RateVerdict *verdict)
{
	int64		step = now * RATE_STEPS / law->per;
	int64		used = sliding_settle(law, state, now, step);

	if (unlikely(intent == RATE_GIVE))
	{
		sliding_give(state, cost);
		used = Max(used - cost, 0);
	}
	else if (used > law->rate || cost > law->rate - used)
	{
		verdict->allowed = false;
		verdict->retry_after =
			sliding_free_at(law, state, step, used + cost - law->rate) - now;
	}
	else
	{
		used += cost;
		if (intent != RATE_PEEK)
			sliding_add(state, step, cost);
	}
	verdict->remaining = Max(law->rate - used, 0);
	state->value = 0;
	state->idle_at = state->nsegments == 0 ? 0 :
		step_expiry(law, sliding_newest(state, step));
	verdict->reset_at = used == 0 ? now :
		intent == RATE_PEEK && verdict->allowed ? step_expiry(law, step) :
		state->idle_at;
}

/* ---- slices ---- */

static inline int64
saturated_sum(int64 a, int64 b)
{
	int64		sum;

	return pg_add_s64_overflow(a, b, &sum) ? PG_INT64_MAX : sum;
}

static inline void
slice_decide(RateState *state, int64 now, int64 cost,
			 RateIntent intent, RateVerdict *verdict)
{
	int64		left = state->value;

	if (state->idle_at <= now)
	{
		state->idle_at = state->value = left = 0;
		if (intent == RATE_GIVE)
			cost = 0;
	}
	if (unlikely(intent == RATE_GIVE))
		state->value = left = saturated_sum(left, cost);
	else if (cost > left)
		verdict->allowed = false;
	else
	{
		left -= cost;
		if (intent != RATE_PEEK)
			state->value = left;
	}
	verdict->remaining = left;
	verdict->reset_at = Max(state->idle_at, now);
}

void
law_lend(RateState *state, int64 now, int64 granted, int64 until)
{
	/* Below 0 is a refusal, see table_refuse(). */
	if (state->idle_at <= now || state->value < 0)
		state->value = 0;
	state->value = saturated_sum(state->value, granted);
	state->idle_at = until;
	state->nsegments = 0;
}

/* ---- all ---- */

void
law_decide(const RateLaw *law, RateState *state, int64 now, int64 cost,
		   RateIntent intent, RateVerdict *verdict)
{
	verdict->allowed = true;
	verdict->capacity = law->burst;
	verdict->retry_after = 0;
	verdict->delay = 0;
	if (unlikely(intent == RATE_FORGET))
	{
		state->idle_at = state->value = state->nsegments = 0;
		verdict->remaining = law->algorithm == RATE_SLICE ? 0 : law->burst;
		verdict->reset_at = now;
		return;
	}
	/* No more can have been taken. */
	if (unlikely(intent == RATE_GIVE))
		cost = Min(cost, law->burst);
	switch (law->algorithm)
	{
		case RATE_TOKEN_BUCKET:
		case RATE_LEAKY_BUCKET:
			bucket_decide(law, state, now, cost, intent, verdict);
			break;
		case RATE_FIXED_WINDOW:
			fixed_decide(law, state, now, cost, intent, verdict);
			break;
		case RATE_SLIDING_WINDOW:
			sliding_decide(law, state, now, cost, intent, verdict);
			break;
		case RATE_SLICE:
			slice_decide(state, now, cost, intent, verdict);
			break;
	}
}

void
law_exhaust(const RateLaw *law, RateState *state, int64 now)
{
	state->value = 0;
	state->nsegments = 0;
	switch (law->algorithm)
	{
		case RATE_TOKEN_BUCKET:
		case RATE_LEAKY_BUCKET:
			bucket_empty(law, state, now);
			break;
		case RATE_FIXED_WINDOW:
			state->idle_at = window_end(law, now);
			state->value = law->rate;
			break;
		case RATE_SLIDING_WINDOW:
			{
				int64		step = now * RATE_STEPS / law->per;

				sliding_add(state, step, law->rate);
				state->idle_at = step_expiry(law, step);
				break;
			}
		case RATE_SLICE:
			state->idle_at = 0;
			break;
	}
}
