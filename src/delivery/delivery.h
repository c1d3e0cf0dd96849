/*
 * delivery.h
 *		The delivery room: an event log, destinations, and their dispatch.
 *
 * Publishing appends one row to mlint.event in the caller's transaction and
 * wakes the dispatchers at commit. A dispatcher reads the log in batches
 * bounded by snapshots, fans each event out to destinations in memory, hands
 * deliveries to drivers, and commits a batch's outcomes together with the
 * movement of its cursor.
 */
#ifndef MLINT_DELIVERY_H
#define MLINT_DELIVERY_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

/* Settings and shared memory. Called once by _PG_init. */
extern void delivery_init(void);

/* Largest data and metadata of an event, bytes as stored. */
extern int	delivery_event_max_bytes;

/*
 * Publish from C, in the current transaction. key may be NULL; deliver_at 0:
 * at once; destination_id 0: all that match. Returns the event's id, or that
 * of the event which had the key before. The arguments are not checked again.
 */
extern int64 event_publish(const char *type, Jsonb *data, Jsonb *metadata,
						   const char *key, TimestampTz deliver_at,
						   int32 destination_id);

/*
 * The id of a living destination, and its driver's name if wanted (palloc'd).
 * Raises ERRCODE_UNDEFINED_OBJECT.
 */
extern int32 destination_id(const char *name, char **driver);

/* Who keeps to a rate limit, 'destination "x"' (palloc'd), or NULL. */
extern char *destination_of_rate_rule(const char *rule);

#endif
