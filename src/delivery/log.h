/*
 * log.h
 *		The dispatcher's access to the tables: read the log and what is
 *		pending, record outcomes. Nothing else in a dispatcher runs SQL.
 *
 * All of it happens in transactions that the caller opens with log_begin()
 * and ends with log_commit(); an error in between is the caller's to catch
 * with log_abort().
 */
#ifndef MLINT_LOG_H
#define MLINT_LOG_H

#include "common/cursor.h"
#include "delivery/driver.h"

/*
 * Once: are the bodies for the network, in UTF-8, or for functions in this
 * database, in its encoding?
 */
extern void log_init(bool for_network);

/* snapshot: one snapshot for all that is read (REPEATABLE READ). */
extern void log_begin(bool snapshot);
extern void log_commit(void);
extern void log_abort(void);

/* ---- reading ---- */

/* Counters that grow with every change of destinations and of secrets. */
extern int64 log_destinations_generation(void);

/*
 * Hand events on, in the log's order, from the cursor. The visitor decides
 * with the head of the event (type, times, destination) whether it wants the
 * body; if so it gets an Event in memory of its own, to be freed with
 * event_release(). It returns false to stop after this one. Returns the
 * advanced cursor, in the current context, and whether there was more.
 */
typedef struct EventHead
{
	int64		id;
	const char *type;
	int32		destination_id; /* 0: all that match */
} EventHead;

typedef struct EventVisitor
{
	bool		(*wants) (const EventHead *head, void *arg);
	bool		(*take) (Event *event, void *arg);
	/* Events skipped and taken so far, and bytes of bodies taken. */
	int64		seen;
	int64		bytes;
	/* Stop after so many of them. */
	int64		max_seen;
	int64		max_bytes;
	bool		heads_only;		/* events come without a body */
	void	   *arg;
} EventVisitor;

extern Cursor *log_read(const Cursor *cursor, EventVisitor *visitor,
						bool *more);

/*
 * After an error in log_read() or log_read_pending(): was it one event that
 * could not be written as JSON? Then the error is cleared, and that event has
 * a fault and no body when it is read again. The transaction is the caller's
 * to abort.
 */
extern bool log_blame_event(void);

extern void event_release(Event *event);

/* Pending deliveries that are due for a destination. */
typedef struct PendingRow
{
	Event	   *event;			/* to be released */
	int			attempts;
	TimestampTz next_attempt_at;
	TimestampTz first_attempt_at;	/* 0: none yet */
} PendingRow;

typedef bool (*PendingVisitor) (PendingRow *row, void *arg);

/*
 * Those due by now after the given place, in the order of (next_attempt_at,
 * id); or, ordered, those not put off to a time that has never come, in the
 * order of id, due or not. At most limit, and about max_bytes of bodies.
 * Returns how many were visited.
 */
extern int	log_read_pending(int32 destination_id, bool ordered,
							 TimestampTz now, TimestampTz after_time,
							 int64 after_id, int limit, int64 max_bytes,
							 PendingVisitor visit, void *arg, bool *more);

/* When is the next one due after that time? PG_INT64_MAX: there is none. */
extern TimestampTz log_next_due(int32 destination_id, TimestampTz after);

/* ---- recording ---- */

/* What became of a delivery. */
typedef struct Record
{
	int64		event_id;
	int32		destination_id;
	int			segment;
	bool		had_row;		/* it was in mlint.pending */
	bool		forget;			/* its destination is dropped: nothing stays
								 * pending */
	OutcomeKind kind;
	int			attempts;
	TimestampTz next_attempt_at;	/* OUTCOME_RETRY and OUTCOME_PARKED */
	TimestampTz first_attempt_at;
	TimestampTz finished_at;
	int64		elapsed_us;
	int			status;
	const char *error;			/* "" for none */
} Record;

extern void log_record(const Record *records, int n);

/*
 * Claim one delivery for this transaction, which is to make it: false when
 * it was made already, or is no more.
 */
extern bool log_claim(const Record *record);

extern Cursor *log_load_cursor(int lane, int lanes);
extern void log_save_cursor(int lane, const Cursor *cursor);

/* Lanes whose number does not fit; see dispatcher.c. */
typedef struct OldLane
{
	int			lane;
	int			lanes;
	Cursor	   *cursor;
} OldLane;
extern int	log_old_lanes(int lanes, OldLane **old);
extern void log_reset_lanes(int lanes, const Cursor *cursor);

extern void log_disable(int32 destination_id, const char *name,
						const char *reason);

#endif
