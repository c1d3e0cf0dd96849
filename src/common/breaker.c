/*
 * breaker.c
 *		The one circuit breaker: closed, open, half-open.
 *
 * A destination that keeps failing is left alone for a while, so that it can
 * recover and so that nothing else waits behind it; then a single probe finds
 * out whether it has. Only failures in a row count: one success forgets them.
 *
 * The probe is lent, not given: a process that takes it and vanishes would
 * otherwise hold the breaker half-open for ever. When no outcome has come
 * back for timeout_s, another probe passes.
 *
 * Nothing here takes a lock, waits, allocates or raises an error, so all of
 * it can run under a spinlock.
 */
#include "postgres.h"

#include "common/breaker.h"

/* May one pass now? See breaker.h. */
bool
breaker_allows(Breaker *b, TimestampTz now, bool take)
{
	if (b->state == BREAKER_CLOSED)
		return true;

	if (now >= b->retry_at)
	{
		b->state = BREAKER_HALF_OPEN;
		b->probing = false;
	}
	if (b->state == BREAKER_OPEN || b->probing)
		return false;

	if (take)
	{
		b->probing = true;
		b->retry_at = now + b->timeout_s * USECS_PER_SEC;
	}
	return true;
}

/* It works: close, and forget the failures. */
void
breaker_success(Breaker *b)
{
	breaker_reset(b);
}

/* It failed. True when this failure opened the breaker. */
bool
breaker_failure(Breaker *b, const BreakerPolicy *policy, TimestampTz now)
{
	if (b->failures < PG_INT32_MAX)
		b->failures++;

	if (policy->threshold == 0)
	{
		b->state = BREAKER_CLOSED;
		return false;
	}
	if (b->state == BREAKER_OPEN)
		return false;
	if (b->state == BREAKER_CLOSED && b->failures < policy->threshold)
		return false;

	b->state = BREAKER_OPEN;
	b->probing = false;
	b->timeout_s = policy->timeout_s;
	b->retry_at = now + b->timeout_s * USECS_PER_SEC;
	return true;
}

/* As new: closed, nothing failed. All zeros is this state too. */
void
breaker_reset(Breaker *b)
{
	b->state = BREAKER_CLOSED;
	b->failures = 0;
	b->retry_at = 0;
	b->timeout_s = 0;
	b->probing = false;
}

/* The state's name, as the views show it. */
const char *
breaker_state_name(BreakerState state)
{
	switch (state)
	{
		case BREAKER_CLOSED:
			return "closed";
		case BREAKER_OPEN:
			return "open";
		case BREAKER_HALF_OPEN:
			return "half-open";
	}
	return "?";
}
