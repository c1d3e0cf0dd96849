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

/*
 * Stand at the end of the key's line. Checks of others no longer overtake.
 * From here on the caller must see to it that queue_leave() is called, also
 * after an error and when the process exits.
 */
extern void queue_join(const RateKey *key, int64 cost);

/* Do we stand in the line of this very key? */
extern bool queue_in_line(const RateKey *key);

/* The cost of all that are ahead of us; 0: it is our turn. */
extern int64 queue_ahead(void);

/* Leave, and wake who is first then. Harmless for one who does not wait. */
extern void queue_leave(void);

/* Have all that wait look again, because something has been reset. */
extern void queue_wake(void);

/* Shared memory. Called once by ratelimit_init(). */
extern void queue_init(void);

#endif
