/*
 * queue.h
 *		Who waits for which key, in order of arrival.
 *
 * One place for each backend in shared memory. Nothing is taken while
 * waiting: the first in the line takes when its time has come, and wakes the
 * next; whoever leaves, for whatever reason, only leaves the line.
 */
#ifndef MLINT_RATE_QUEUE_H
#define MLINT_RATE_QUEUE_H

#include "ratelimit/table.h"

/* Stand at the end of the key's line. Returns the cost of those ahead. */
extern int64 queue_join(const RateKey *key, int64 cost);

/* Is it our turn? */
extern bool queue_first(void);

/* Leave, and wake who is first then. Also called when the process exits. */
extern void queue_leave(void);

/* Wake the first in a key's line, because the limit has changed. */
extern void queue_wake(const RateKey *key);

/* Shared memory. Called once by ratelimit_init(). */
extern void queue_init(void);

#endif
