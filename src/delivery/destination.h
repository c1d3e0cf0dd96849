/*
 * destination.h
 *		A dispatcher's view of the destinations, and which of them an event
 *		goes to.
 *
 * All destinations of the database are in memory, but only name, patterns and
 * state; options are parsed, and the driver opened, when there is something
 * to deliver. What changes is read again as it changes.
 */
#ifndef MLINT_DESTINATION_H
#define MLINT_DESTINATION_H

#include "lib/ilist.h"

#include "delivery/driver.h"
#include "delivery/log.h"
#include "delivery/stats.h"

typedef struct Destination
{
	int32		id;				/* hash key */
	char	   *name;
	const Driver *driver;		/* NULL: no such driver in this library */
	char	  **patterns;
	int			npatterns;
	bool		enabled;
	bool		dropped;
	bool		gone;			/* said so, and is to be disabled */
	bool		runs_sql;
	Oid			owner;
	int64		after_event_id; /* later events only */

	/* Open: the driver is ready. */
	MemoryContext context;		/* of what follows; NULL: not open */
	DeliveryOptions *options;
	void	   *state;
	bool		stale;			/* to be reopened when nothing is in flight */
	TimestampTz broken_until;	/* could not be opened; not tried before */
	char	   *broken;			/* why; NULL: it could */

	/* Deliveries in memory. */
	dlist_head	ready;			/* not yet submitted */
	int			nready;
	dlist_head	flying;			/* submitted */
	int			in_flight;
	int			unrecorded;		/* ended, with a row in mlint.pending */
	int			uncommitted;	/* of a batch, to be retried or parked */
	bool		slow;			/* kept a batch from being committed */
	bool		is_active;		/* in the dispatcher's list of those that can
								 * be submitted to */
	dlist_node	active;

	/* Deliveries in mlint.pending. */
	bool		lagging;		/* there may be some that are due: new ones
								 * queue up behind them */
	TimestampTz next_due;		/* PG_INT64_MAX: there are none */
	TimestampTz hold_until;		/* the peer has asked for a pause */
	TimestampTz limited_until;	/* its rate limit has refused */
	uint64		limit_turn;		/* when it last let one pass: a number that
								 * grows */
	TimestampTz after_time;		/* what is up to here has been taken up */
	int64		after_id;
	bool		pass_took;		/* some of that since the beginning */

	Breaker		breaker;
	uint32		breaker_resets;
	bool		breaker_changed;
	DestinationCounters *counters;	/* since the last commit; NULL: none */
} Destination;

/* Forget all, and load this lane's destinations from now on. */
extern void destinations_init(int lane, int lanes);

/*
 * Read what has changed up to a generation. Needs a transaction. Sets
 * *sql_lane when there is a lane 0.
 */
extern void destinations_load(int64 generation, bool *sql_lane);
extern int64 destinations_generation(void);

/* Secrets have changed: open drivers must resolve their credentials anew. */
extern void destinations_mark_stale(void);

/* This lane's destinations for an event, or for those sent to one alone. */
extern Destination *const *destinations_match(const EventHead *head, int *n);

/* All of this lane's; NULL ends. Start with *cursor = 0. */
extern Destination *destinations_next(int *cursor);
extern int	destinations_count(void);
extern Destination *destinations_get(int i);

/* How many are enabled. */
extern int	destinations_enabled(void);

/*
 * Get ready to deliver, in a transaction. False, and broken says why, when
 * that is not possible now. Never raises but for cancellation.
 */
extern bool destination_open(Destination *d, HttpClient *http,
							 TimestampTz now);
extern void destination_close(Destination *d);

/*
 * May its owner still use what it was opened with? If not it is stale, and
 * broken says why. In a transaction.
 */
extern bool destination_check(Destination *d);

#endif
