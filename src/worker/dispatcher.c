/*
 * dispatcher.c
 *		The process that delivers.
 *
 * Events come from the log in batches, each delivery of a batch ends with an
 * outcome, and a batch is committed as a whole: outcomes are appended to
 * mlint.delivery or mlint.pending, and the lane's cursor moves, in one
 * transaction. Up to MAX_BATCHES are open at a time, so that the network does
 * not wait for the database; they are committed in the order in which they
 * were read. After a crash what was open is read again, and sent again under
 * the same webhook-id.
 *
 * Nothing may hold up the log for long. What cannot be attempted now (a
 * scheduled event, a disabled or broken destination, an open breaker) is
 * parked in mlint.pending at once. What is still under way when its batch is
 * STRAGGLER_MS old is parked too and carries on by itself; and where several
 * destinations share the lane, what a slow one has not even begun is parked,
 * and its later events queue up behind.
 *
 * What is due in mlint.pending is taken up a destination at a time. Such a
 * delivery stands for itself: its row is changed or deleted with the next
 * commit.
 *
 * A destination with a rate limit asks it for each delivery: for one from the
 * log just before it is submitted, for one from mlint.pending before its row is
 * taken up. So a backlog lies still, however long it is: its rows are written
 * once, and read and deleted as they may pass.
 *
 * The work inside callbacks of the HTTP client is limited to taking notes;
 * everything that may raise happens in the loop. An error there ends the
 * process, and the launcher starts another.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "lib/ilist.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/injection.h"
#include "common/netpolicy.h"
#include "common/peertext.h"
#include "common/trial.h"
#include "common/userfunction.h"
#include "delivery/destination.h"
#include "delivery/log.h"
#include "ratelimit/ratelimit.h"
#include "worker/worker.h"

PGDLLEXPORT void mlint_dispatcher_main(Datum main_arg);

#define MAX_BATCHES			4
#define BATCH_EVENTS		1000
#define BATCH_DELIVERIES	4000
#define BATCH_BYTES			(4 * 1024 * 1024)
/* Read on when fewer deliveries from the log wait to be submitted. */
#define LOW_WATER			500
#define PENDING_BATCH		500
/* Take up no more that is pending when so much of it is in memory. */
#define MAX_PENDING			10000
#define MAX_PENDING_BYTES	(16 * 1024 * 1024)
/*
 * When half the places are taken, a destination gets only a few more: many
 * that hang must not keep all others out.
 */
#define CROWDED_IN_FLIGHT	4
/* The last places are for destinations that have not been slow. */
#define RESERVED_IN_FLIGHT	64
#define STRAGGLER_MS		250
/* A parked straggler's row is not due while it is likely under way. */
#define STRAGGLER_DUE_MS	60000
/* Asked to leave, we wait so long for what is under way. */
#define RETIRE_MS			1000
/* Outcomes of pending deliveries are committed after so long, or so many. */
#define RECORD_MS			20
#define RECORD_COUNT		200
/*
 * Between two looks at the log while events come one by one: a busy dispatcher
 * takes several at a time, instead of competing with their publishers.
 */
#define PACE_MS				2
/* Deliveries inside the database, between two looks around. */
#define EXECUTE_COUNT		50
#define EXECUTE_MS			20
#define POLL_MS				60000
/* A destination that cannot be disabled now is tried again after this. */
#define DISABLE_RETRY_MS	1000
/* A rate limit that refuses is asked again in between, as it may change. */
#define LIMIT_MIN_US		1000
#define LIMIT_MAX_US		(5 * INT64CONST(1000000))

typedef struct Batch
{
	dlist_node	node;
	Cursor	   *after;			/* where the log has been read up to */
	slist_head	deliveries;
	int			n;
	int			unresolved;		/* without an outcome */
	TimestampTz looked_at;		/* for stragglers */
} Batch;

typedef enum DeliveryState
{
	DELIVERY_READY,
	DELIVERY_FLYING,
	DELIVERY_ENDED
} DeliveryState;

typedef struct Delivery
{
	Attempt		attempt;		/* must be first */
	Destination *destination;
	Batch	   *batch;			/* NULL: stands for itself */
	slist_node	in_batch;
	dlist_node	node;			/* in ready, flying, ended or results */
	DeliveryState state;
	bool		had_row;		/* has one in mlint.pending */
	bool		recorded;		/* committed with its own work */
	bool		passed;			/* its rate limit has let it pass */
	bool		probes;			/* finds out for the breaker */
	int			attempts;
	int			slot;			/* in MyWorker->in_flight */
	TimestampTz first_attempt_at;
	TimestampTz submitted_at;
	TimestampTz finished_at;
	TimestampTz next_attempt_at;
	Outcome		outcome;
} Delivery;

static HttpClient *http = NULL;
static WaitEventSet *wait_set = NULL;
static WaitEventSet *pace_set = NULL;	/* the same without the latch */
static MemoryContext deliveries_context = NULL;
static Cursor *cursor = NULL;	/* what has been read, committed or not */
static bool cursor_moved = false;	/* beyond what is committed */

static dlist_head batches = DLIST_STATIC_INIT(batches);
static int	nbatches = 0;
static dlist_head active = DLIST_STATIC_INIT(active);
static dlist_head ended = DLIST_STATIC_INIT(ended);
static dlist_head results = DLIST_STATIC_INIT(results);
static int	nresults = 0;
static TimestampTz results_since = 0;
static int	nready = 0;			/* not yet submitted */
static int	nfresh = 0;			/* those of them that are part of a batch */
static int64 pending_bytes = 0; /* of the bodies of the others */
static int	nflying = 0;
static bool deferred = false;	/* a slow destination waits for a place */
static TimestampTz next_timer = 0;	/* some destination may be due then */
static uint64 secrets_generation = 0;
static uint64 policy_generation = 0;
static bool log_has_more = true;
static bool restoring = false;	/* take up nothing */
static TimestampTz log_read_at = 0;
static TimestampTz recorded_at = 0;
static TimestampTz disable_at = PG_INT64_MAX;	/* some destination is gone */
static TimestampTz measured_at = 0;

/* Is it so long ago? A clock that was set back counts as yes. */
static bool
passed(TimestampTz since, long ms, TimestampTz now)
{
	return now < since || now - since >= ms * INT64CONST(1000);
}

/* ---- transactions ---- */

/*
 * Take note of what has changed in configuration. False while that, and what is
 * pending, may be a part of what a dump had: we are called when it is all there.
 */
static bool
refresh(void)
{
	int64		destinations = log_destinations_generation();
	uint64		secrets = credential_generation();
	bool		sql_lane;

	restoring = restore_under_way();
	if (restoring)
		return false;
	if (secrets != secrets_generation)
	{
		destinations_mark_stale();
		/* What could not be opened for want of a secret is due again. */
		next_timer = 0;
	}
	secrets_generation = secrets;
	if (destinations != destinations_generation())
	{
		destinations_load(destinations, &sql_lane);
		next_timer = 0;
		if (sql_lane)
			launcher_want_sql_lane();
	}
	return true;
}

static void
begin(bool snapshot)
{
	log_begin(snapshot);
	worker_check_extension();
}

/* ---- deliveries ---- */

static Delivery *
create_delivery(Destination *d, Event *event)
{
	Delivery   *delivery = MemoryContextAllocZero(deliveries_context,
												  sizeof(Delivery));

	event->refs++;
	delivery->destination = d;
	delivery->attempt.event = event;
	delivery->attempt.body = event->body;
	delivery->attempt.body_len = event->body_len;
	delivery->slot = -1;
	return delivery;
}

static void
free_delivery(Delivery *delivery)
{
	if (delivery->attempt.transformed)
		pfree(unconstify(char *, delivery->attempt.body));
	event_release(delivery->attempt.event);
	pfree(delivery);
}

static void
activate(Destination *d)
{
	if (d->is_active || d->nready == 0)
		return;
	dlist_push_tail(&active, &d->active);
	d->is_active = true;
}

static void
deactivate(Destination *d)
{
	if (!d->is_active)
		return;
	dlist_delete(&d->active);
	d->is_active = false;
}

static void
push_ready(Delivery *delivery)
{
	Destination *d = delivery->destination;

	dlist_push_tail(&d->ready, &delivery->node);
	d->nready++;
	nready++;
	if (delivery->batch)
		nfresh++;
	else
		pending_bytes += delivery->attempt.body_len;
	activate(d);
}

static Delivery *
pop_ready(Destination *d)
{
	Delivery   *delivery = dlist_container(Delivery, node,
										   dlist_pop_head_node(&d->ready));

	d->nready--;
	nready--;
	if (delivery->batch)
		nfresh--;
	else
		pending_bytes -= delivery->attempt.body_len;
	return delivery;
}

/* How many deliveries may the destination have in flight? */
static int
max_in_flight(Destination *d)
{
	if (d->options->ordered)
		return 1;
	if (nflying > WORKER_MAX_IN_FLIGHT / 2)
		return Min(d->options->max_in_flight, CROWDED_IN_FLIGHT);
	return d->options->max_in_flight;
}

/* An outcome without an attempt. */
static void
park(Delivery *delivery, TimestampTz until, const char *why)
{
	delivery->state = DELIVERY_ENDED;
	delivery->outcome.kind = OUTCOME_PARKED;
	delivery->next_attempt_at = until;
	strlcpy(delivery->outcome.error, why ? why : "",
			sizeof(delivery->outcome.error));
	delivery->batch->unresolved--;
	delivery->destination->uncommitted++;
}

/*
 * The peer is not to be bothered now: give back what is ready. Deliveries of
 * a batch are parked; those with a row are simply forgotten.
 */
static void
hold_back(Destination *d, TimestampTz now)
{
	while (d->nready > 0)
	{
		Delivery   *delivery = pop_ready(d);

		if (delivery->had_row)
		{
			free_delivery(delivery);
			d->next_due = Min(d->next_due, now);
			d->after_time = DT_NOBEGIN;
		}
		else
			park(delivery, now, d->broken);
	}
	deactivate(d);
}

/* When may the destination be tried again? 0: now; PG_INT64_MAX: unknown. */
static TimestampTz
unavailable_until(Destination *d, TimestampTz now)
{
	TimestampTz until = 0;

	if (!d->enabled || d->dropped)
		return PG_INT64_MAX;
	if (d->hold_until > now)
		until = d->hold_until;
	if (d->broken_until > now)
		until = Max(until, d->broken_until);
	if (!breaker_allows(&d->breaker, now, false))
	{
		/* Half-open: when its probe is back we shall know. */
		if (d->breaker.state != BREAKER_OPEN)
			return PG_INT64_MAX;
		until = Max(until, d->breaker.retry_at);
	}
	return until;
}

/* Has its rate limit refused, and may not yet be asked again? */
static bool
limit_refuses(const Destination *d, TimestampTz now)
{
	/* A clock that was set back must not make it long. */
	return d->limited_until > now && d->limited_until - now <= LIMIT_MAX_US;
}

/* When may something new be begun? */
static TimestampTz
paused_until(Destination *d, TimestampTz now)
{
	TimestampTz until = unavailable_until(d, now);

	return limit_refuses(d, now) ? Max(until, d->limited_until) : until;
}

/* Look at the destination's pending rows again at the right time. */
static void
set_timer(Destination *d, TimestampTz now)
{
	if (d->next_due == PG_INT64_MAX || d->nready > 0)
		return;
	next_timer = Min(next_timer, Max(d->next_due, paused_until(d, now)));
}

static void
count_outcome(Destination *d, const Outcome *outcome, TimestampTz now)
{
	if (d->counters == NULL)
		d->counters = MemoryContextAllocZero(TopMemoryContext,
											 sizeof(DestinationCounters));
	stats_count(d->counters, outcome, now);
	MyWorker->deliveries++;
}

/* An attempt begins: while the breaker is half-open, it is the probe. */
static void
take_probe(Delivery *delivery, TimestampTz now)
{
	Breaker    *breaker = &delivery->destination->breaker;

	(void) breaker_allows(breaker, now, true);
	delivery->probes = breaker->probing;
}

/* It found out nothing: another may. */
static void
give_probe_back(Delivery *delivery)
{
	Destination *d = delivery->destination;

	if (!delivery->probes)
		return;
	delivery->probes = false;
	d->breaker.probing = false;
	d->breaker_changed = true;
}

/*
 * An attempt has ended: what follows from its outcome.
 */
static void
conclude(Delivery *delivery, TimestampTz now)
{
	Destination *d = delivery->destination;
	Outcome    *outcome = &delivery->outcome;

	delivery->state = DELIVERY_ENDED;
	peer_text_clean(outcome->error);
	delivery->attempts++;
	delivery->finished_at = now;
	if (delivery->first_attempt_at == 0)
		delivery->first_attempt_at = delivery->submitted_at;

	if (outcome->kind == OUTCOME_RETRY)
	{
		int64		delay = retry_delay(&d->options->retry,
										delivery->attempts,
										outcome->retry_after);

		if (delay < 0)
			outcome->kind = OUTCOME_DEAD;
		delivery->next_attempt_at = now + Max(delay, 0);
		if (breaker_failure(&d->breaker, &d->options->breaker, now))
			ereport(LOG,
					(errmsg("mlint: destination \"%s\" has failed %d times in a row, its circuit breaker is open",
							d->name, d->breaker.failures),
					 errdetail("Last error: %s", outcome->error)));
		d->breaker_changed = true;
		if (outcome->retry_after > 0)
			d->hold_until = now + outcome->retry_after * USECS_PER_SEC;
	}
	else if (outcome->kind == OUTCOME_DEAD && outcome->status == 0)
	{
		/* It has not come to the peer: that says nothing of it. */
		give_probe_back(delivery);
	}
	else if (d->breaker.failures > 0 || d->breaker.state != BREAKER_CLOSED)
	{
		/* Delivered, or refused by a peer that is well. */
		breaker_success(&d->breaker);
		d->breaker_changed = true;
	}
	else if (outcome->elapsed_us < STRAGGLER_MS * INT64CONST(1000))
		d->slow = false;
	if (outcome->disable)
	{
		d->enabled = false;
		d->gone = true;
		disable_at = now;
	}
	count_outcome(d, outcome, now);

	if (delivery->batch)
	{
		delivery->batch->unresolved--;
		if (outcome->kind == OUTCOME_RETRY)
			d->uncommitted++;
	}
	else
	{
		if (nresults++ == 0)
			results_since = now;
		dlist_push_tail(&results, &delivery->node);
		d->unrecorded++;
	}

	/* What must not overtake, or need not try, goes back. */
	if (outcome->kind == OUTCOME_RETRY && d->options->ordered)
		d->next_due = Min(d->next_due, delivery->next_attempt_at);
	if ((outcome->kind == OUTCOME_RETRY && d->options->ordered) ||
		unavailable_until(d, now) > now)
		hold_back(d, now);
	activate(d);
	set_timer(d, now);
}

/* ---- lanes ---- */

static void
lane_locktag(LOCKTAG *tag, int lane)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, (uint32) lane,
						 WORKER_LOCK_CLASS);
}

static void
lock_lane(int lane, bool acquire)
{
	LOCKTAG		tag;

	lane_locktag(&tag, lane);
	if (acquire)
		(void) LockAcquire(&tag, ExclusiveLock, true, false);
	else
		(void) LockRelease(&tag, ExclusiveLock, true);
}

/* ---- submitting ---- */

/* The driver's call when an attempt ends; from within the HTTP client. */
static void
attempt_done(Attempt *attempt, const Outcome *outcome)
{
	Delivery   *delivery = (Delivery *) attempt;

	delivery->outcome = *outcome;
	MyWorker->in_flight[delivery->slot].event_id = 0;
	dlist_delete(&delivery->node);
	dlist_push_tail(&ended, &delivery->node);
	nflying--;
}

static int
take_slot(Delivery *delivery)
{
	static int	hint = 0;

	for (;;)
	{
		hint = (hint + 1) % WORKER_MAX_IN_FLIGHT;
		if (MyWorker->in_flight[hint].event_id == 0)
			break;
	}
	MyWorker->in_flight[hint].destination_id = delivery->destination->id;
	MyWorker->in_flight[hint].event_id = delivery->attempt.event->id;
	return hint;
}

static Record
make_record(const Delivery *delivery)
{
	Record		r = {0};

	r.event_id = delivery->attempt.event->id;
	r.destination_id = delivery->destination->id;
	r.segment = delivery->attempt.event->segment;
	r.had_row = delivery->had_row;
	r.forget = delivery->destination->dropped;
	r.kind = delivery->outcome.kind;
	r.attempts = delivery->attempts;
	r.next_attempt_at = delivery->next_attempt_at;
	r.first_attempt_at = delivery->first_attempt_at;
	r.finished_at = delivery->finished_at;
	r.elapsed_us = delivery->outcome.elapsed_us;
	r.status = delivery->outcome.status;
	r.error = delivery->outcome.error;
	return r;
}

/*
 * Run code of the user's in a transaction of its own. When it fails the
 * outcome says so, and why, and the result is false.
 */
static bool
run_users_code(Delivery *delivery, void (*code) (Delivery *),
			   const char *failure)
{
	MemoryContext old = CurrentMemoryContext;
	Outcome    *outcome = &delivery->outcome;
	volatile bool ok = true;

	delivery->submitted_at = GetCurrentTimestamp();
	outcome->kind = OUTCOME_DELIVERED;
	outcome->retry_after = -1;
	worker_activity("calling a function for event " INT64_FORMAT " to %s",
					delivery->attempt.event->id, delivery->destination->name);
	PG_TRY();
	{
		begin(false);
		code(delivery);
		log_commit();
	}
	PG_CATCH();
	{
		size_t		len = strlcpy(outcome->error, failure,
								  sizeof(outcome->error));

		error_take(outcome->error + len, sizeof(outcome->error) - len);
		log_abort();
		outcome->kind = OUTCOME_RETRY;
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	outcome->elapsed_us = GetCurrentTimestamp() - delivery->submitted_at;
	return ok;
}

static void
claim_and_execute(Delivery *delivery)
{
	Destination *d = delivery->destination;
	Record		r = make_record(delivery);

	r.attempts++;
	r.finished_at = delivery->submitted_at;
	if (r.first_attempt_at == 0)
		r.first_attempt_at = delivery->submitted_at;
	/* Made already: a row that is left of it goes all the same. */
	if (log_claim(&r))
		d->driver->execute(d->state, &delivery->attempt);
}

/*
 * Code of the user's has ended. When it failed and, as we look, the owner may
 * not run it or it is gone, that was no attempt: all wait, and the destination
 * is opened again.
 */
static void
conclude_code(Delivery *delivery)
{
	Destination *d = delivery->destination;
	TimestampTz now = GetCurrentTimestamp();
	bool		usable = true;

	if (delivery->outcome.kind == OUTCOME_RETRY)
	{
		begin(true);
		usable = destination_check(d);
		log_commit();
	}
	if (usable)
	{
		conclude(delivery, now);
		return;
	}
	give_probe_back(delivery);
	push_ready(delivery);
	hold_back(d, now);
	set_timer(d, now);
}

/*
 * Deliver inside the database: what the driver does and the record of it are
 * one transaction, so that it is done once however often we try.
 */
static void
execute(Delivery *delivery)
{
	take_probe(delivery, GetCurrentTimestamp());
	delivery->outcome.bytes = delivery->attempt.body_len;
	delivery->recorded = run_users_code(delivery, claim_and_execute, "");
	conclude_code(delivery);
}

static void
call_transform(Delivery *delivery)
{
	Destination *d = delivery->destination;
	Outcome    *outcome = &delivery->outcome;
	char	   *body = driver_call_function(d->options->transform, JSONBOID,
											d->owner, "transform",
											delivery->attempt.event->body,
											DRIVER_TRANSFORM_TIMEOUT_MS);

	if (body == NULL)
	{
		outcome->kind = OUTCOME_DEAD;
		strlcpy(outcome->error, "the transform function returned NULL",
				sizeof(outcome->error));
		return;
	}
	if (d->driver->submit)
		body = pg_server_to_any(body, strlen(body), PG_UTF8);
	delivery->attempt.body_len = strlen(body);
	delivery->attempt.body = MemoryContextStrdup(deliveries_context, body);
	delivery->attempt.transformed = true;
}

/* The destination's function shapes the body; false when it did not. */
static bool
transform(Delivery *delivery)
{
	return run_users_code(delivery, call_transform,
						  "the transform function failed: ") &&
		delivery->attempt.transformed;
}

/* ---- rate limits ---- */

/* Whose limit is being asked, so that an error can be told. */
static Destination *asking = NULL;
static uint64 last_limit_turn = 0;

static bool
is_limited(const Destination *d)
{
	return d->options && d->options->rate_rule;
}

/* Whom the limit counts. */
static const char *
limit_identifier(const Destination *d)
{
	return d->options->rate_identifier ? d->options->rate_identifier : d->name;
}

static bool
same_limit(const Destination *a, const Destination *b)
{
	return is_limited(a) && is_limited(b) &&
		strcmp(a->options->rate_rule, b->options->rate_rule) == 0 &&
		strcmp(limit_identifier(a), limit_identifier(b)) == 0;
}

/*
 * Refused: wait until then, and all others of this limit with it, so that they
 * are due together and whose_turn() says who is the next to have it.
 */
static void
pause_limited(const Destination *refused, TimestampTz until)
{
	for (int i = 0; i < destinations_count(); i++)
	{
		Destination *d = destinations_get(i);

		if (same_limit(d, refused))
			d->limited_until = until;
	}
}

/*
 * May one more go to this destination? If not, it is paused. In a
 * transaction; an error is for ask_failed().
 */
static bool
ask_limit(Destination *d, TimestampTz now)
{
	int64		retry_after = 0;
	bool		passed;

	asking = d;
	INJECTION("rate-limit-ask");
	passed = rate_pass(d->options->rate_rule, limit_identifier(d),
					   &retry_after);
	asking = NULL;
	if (passed)
		d->limit_turn = ++last_limit_turn;
	else
		pause_limited(d, now +
					  Max(LIMIT_MIN_US, Min(retry_after, LIMIT_MAX_US)));
	return passed;
}

/*
 * After an error: was it a rate limit that cannot be asked? Then the error is
 * cleared, with its transaction, and the destination waits.
 */
static bool
ask_failed(TimestampTz now)
{
	Destination *d = asking;
	char		message[1000];

	asking = NULL;
	if (d == NULL || geterrcode() == ERRCODE_QUERY_CANCELED)
		return false;
	error_take(message, sizeof(message));
	log_abort();
	ereport(LOG,
			(errmsg("mlint: destination \"%s\" waits, since its rate limit \"%s\" cannot be asked: %s",
					d->name, d->options->rate_rule, message)));
	d->limited_until = now + LIMIT_MAX_US;
	return true;
}

/* Ask for one that comes from the log, in a transaction of its own. */
static bool
passes_limit(Destination *d, TimestampTz now)
{
	MemoryContext old = CurrentMemoryContext;
	volatile bool passed = false;

	PG_TRY();
	{
		begin(false);
		passed = ask_limit(d, now);
		log_commit();
	}
	PG_CATCH();
	{
		if (!ask_failed(now))
			PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return passed;
}

/* The limit has refused: park what it has not let pass. */
static void
park_limited(Destination *d, TimestampTz now)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &d->ready)
	{
		Delivery   *delivery = dlist_container(Delivery, node, iter.cur);

		if (delivery->passed)
			continue;
		dlist_delete(&delivery->node);
		d->nready--;
		nready--;
		nfresh--;
		park(delivery, now, NULL);
	}
}

/* Start what can be started, a delivery of each destination in turn. */
static void
submit_ready(TimestampTz now)
{
	int			executed = 0;

	if (deferred && nflying < WORKER_MAX_IN_FLIGHT - RESERVED_IN_FLIGHT)
	{
		deferred = false;
		for (int i = 0; i < destinations_count(); i++)
			activate(destinations_get(i));
	}
	while (!dlist_is_empty(&active) && nflying < WORKER_MAX_IN_FLIGHT &&
		   executed < EXECUTE_COUNT &&
		   (executed == 0 ||
			!passed(now, EXECUTE_MS, GetCurrentTimestamp())))
	{
		Destination *d = dlist_head_element(Destination, active, &active);
		Delivery   *delivery;

		deactivate(d);
		if (d->dropped || d->context == NULL || unavailable_until(d, now) > now)
		{
			hold_back(d, now);
			set_timer(d, now);
			continue;
		}
		/* Wait for what is under way: it ends, and then we come back. */
		if (d->in_flight > 0 &&
			(d->stale || d->in_flight >= max_in_flight(d)))
			continue;
		if (d->slow && nflying >= WORKER_MAX_IN_FLIGHT - RESERVED_IN_FLIGHT)
		{
			deferred = true;
			continue;
		}
		if (d->stale)
		{
			/* To be opened anew; that takes a transaction. */
			begin(true);
			(void) destination_open(d, http, now);
			log_commit();
			activate(d);
			continue;
		}

		delivery = dlist_head_element(Delivery, node, &d->ready);
		if (is_limited(d) && !delivery->passed)
		{
			delivery->passed = !limit_refuses(d, now) && passes_limit(d, now);
			if (!delivery->passed)
				park_limited(d, now);
			activate(d);
			set_timer(d, now);
			continue;
		}
		(void) pop_ready(d);
		activate(d);
		if (d->options->transform)
		{
			executed++;
			if (!transform(delivery))
			{
				conclude_code(delivery);
				continue;
			}
		}
		if (d->driver->execute)
		{
			execute(delivery);
			executed++;
			continue;
		}
		take_probe(delivery, now);
		delivery->state = DELIVERY_FLYING;
		delivery->submitted_at = now;
		delivery->slot = take_slot(delivery);
		delivery->attempt.done = attempt_done;
		dlist_push_tail(&d->flying, &delivery->node);
		d->in_flight++;
		nflying++;
		/* The next may pass before this one has ended. */
		if (is_limited(d))
			set_timer(d, now);
		d->driver->submit(d->state, &delivery->attempt);
	}
}

/* Conclude the attempts that ended in the HTTP client. */
static void
conclude_ended(TimestampTz now)
{
	while (!dlist_is_empty(&ended))
	{
		Delivery   *delivery = dlist_container(Delivery, node,
											   dlist_pop_head_node(&ended));

		delivery->destination->in_flight--;
		conclude(delivery, now);
	}
}

/* ---- reading ---- */

/* Where a delivery that has just been read goes. In a transaction. */
static void
route(Delivery *delivery, TimestampTz now)
{
	Destination *d = delivery->destination;
	Event	   *event = delivery->attempt.event;
	TimestampTz scheduled = event->deliver_at;

	if (event->fault && destination_open(d, http, now))
	{
		delivery->outcome.kind = OUTCOME_DEAD;
		delivery->outcome.retry_after = -1;
		strlcpy(delivery->outcome.error, event->fault,
				sizeof(delivery->outcome.error));
		conclude(delivery, now);
		return;
	}
	if (!delivery->had_row)
	{
		if (scheduled > now)
		{
			park(delivery, scheduled, NULL);
			return;
		}
		if (d->lagging || paused_until(d, now) > now)
		{
			park(delivery, now, d->broken);
			return;
		}
		if (!destination_open(d, http, now))
		{
			park(delivery, now, d->broken);
			return;
		}
		if (d->options->ordered &&
			(d->next_due != PG_INT64_MAX || d->uncommitted > 0))
		{
			park(delivery, now, NULL);
			return;
		}
	}
	push_ready(delivery);
}

static bool
wants_event(const EventHead *head, void *arg)
{
	int			n;
	Destination *const *match = destinations_match(head, &n);

	for (int i = 0; i < n; i++)
	{
		if (head->id > match[i]->after_event_id)
			return true;
	}
	return false;
}

static bool
take_event(Event *event, void *arg)
{
	Batch	   *batch = arg;
	EventHead	head = {event->id, event->type, event->destination_id};
	int			n;
	Destination *const *match = destinations_match(&head, &n);

	for (int i = 0; i < n; i++)
	{
		Delivery   *delivery;

		if (event->id <= match[i]->after_event_id)
			continue;
		delivery = create_delivery(match[i], event);
		delivery->batch = batch;
		slist_push_head(&batch->deliveries, &delivery->in_batch);
		batch->n++;
		batch->unresolved++;
	}
	event_release(event);
	return batch->n < BATCH_DELIVERIES;
}

/* Read a batch from the log, and send it on its way. */
static void
read_log(void)
{
	EventVisitor visitor = {0};
	Batch	   *batch = MemoryContextAllocZero(deliveries_context,
											   sizeof(Batch));
	Delivery  **order;
	MemoryContext volatile old;
	Cursor	   *volatile next;
	slist_iter	iter;
	int			i;
	TimestampTz now;

	slist_init(&batch->deliveries);
	visitor.wants = wants_event;
	visitor.take = take_event;
	visitor.arg = batch;
	visitor.max_seen = BATCH_EVENTS;
	visitor.max_bytes = BATCH_BYTES;

	begin(true);
	if (!refresh())
	{
		log_commit();
		pfree(batch);
		log_has_more = false;
		log_read_at = GetCurrentTimestamp();
		return;
	}
	old = MemoryContextSwitchTo(deliveries_context);
	PG_TRY();
	{
		next = log_read(cursor, &visitor, &log_has_more);
	}
	PG_CATCH();
	{
		/* Is one event to blame? Then read again, knowing it. */
		if (!log_blame_event())
			PG_RE_THROW();
		log_abort();
		MemoryContextSwitchTo(old);
		while (!slist_is_empty(&batch->deliveries))
			free_delivery(slist_container(Delivery, in_batch,
										  slist_pop_head_node(&batch->deliveries)));
		pfree(batch);
		log_has_more = true;
		return;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	cursor_free(cursor);
	cursor = next;
	cursor_moved |= visitor.seen > 0;

	/* The list has the last first; deliveries go out in the log's order. */
	now = GetCurrentTimestamp();
	log_read_at = now;
	batch->looked_at = now;
	order = palloc(sizeof(Delivery *) * Max(batch->n, 1));
	i = batch->n;
	slist_foreach(iter, &batch->deliveries)
		order[--i] = slist_container(Delivery, in_batch, iter.cur);
	for (i = 0; i < batch->n; i++)
		route(order[i], now);
	log_commit();

	MyWorker->events += visitor.seen;
	if (batch->n == 0)
	{
		pfree(batch);
		return;
	}
	MyWorker->active_at = now;
	old = MemoryContextSwitchTo(deliveries_context);
	batch->after = cursor_copy(cursor);
	MemoryContextSwitchTo(old);
	dlist_push_tail(&batches, &batch->node);
	nbatches++;
}

typedef struct PendingTaker
{
	Destination *destination;
	TimestampTz now;
	int			taken;
	int			room;			/* with a rate limit: what can go now */
	TimestampTz last_time;
	int64		last_id;
	TimestampTz blocked_until;	/* ordered: one waits, and all behind it */
	List	   *deliveries;
} PendingTaker;

static bool
take_pending(PendingRow *row, void *arg)
{
	PendingTaker *taker = arg;
	Destination *d = taker->destination;
	dlist_iter	iter;
	bool		known = false;

	dlist_foreach(iter, &d->flying)
		known |= dlist_container(Delivery, node, iter.cur)->attempt.event->id ==
		row->event->id;
	if (!known && row->next_attempt_at > taker->now)
		taker->blocked_until = row->next_attempt_at;
	else if (!known && is_limited(d) &&
			 (taker->taken == taker->room || !ask_limit(d, taker->now)))
	{
		/* It stays where it is, and so do those behind it. */
		event_release(row->event);
		return false;
	}
	if (!known && taker->blocked_until == 0)
	{
		Delivery   *delivery = create_delivery(d, row->event);
		MemoryContext old = MemoryContextSwitchTo(deliveries_context);

		delivery->had_row = true;
		delivery->passed = true;
		delivery->attempts = row->attempts;
		delivery->first_attempt_at = row->first_attempt_at;
		taker->deliveries = lappend(taker->deliveries, delivery);
		MemoryContextSwitchTo(old);
		taker->taken++;
	}
	taker->last_time = row->next_attempt_at;
	taker->last_id = row->event->id;
	event_release(row->event);
	return taker->blocked_until == 0;
}

static void record(TimestampTz now);

/* Take up what is due in mlint.pending for one destination. */
static void
read_pending(Destination *d, TimestampTz now)
{
	PendingTaker taker = {0};
	volatile int limit = 1;
	volatile int visited;
	bool		more;
	ListCell   *lc;

	if (d->unrecorded > 0)
		record(now);
	taker.destination = d;
	taker.now = now;
	taker.last_time = d->after_time;
	taker.last_id = d->after_id;

	begin(true);
	if (!refresh() || !d->enabled || !destination_open(d, http, now))
	{
		log_commit();
		set_timer(d, now);
		return;
	}
	/* What is in memory comes first; its end sets the timer again. */
	if (d->options->ordered && (d->in_flight > 0 || d->uncommitted > 0))
	{
		log_commit();
		return;
	}
	/* A few rounds' worth: others want to be in memory too. */
	if (d->breaker.state == BREAKER_CLOSED)
		limit = Min(PENDING_BATCH, 4 * d->options->max_in_flight);
	/* What a limit lets pass must go at once. The next end sets the timer. */
	taker.room = max_in_flight(d) - d->in_flight;
	if (is_limited(d) && taker.room <= 0)
	{
		log_commit();
		return;
	}
	PG_TRY();
	{
		visited = log_read_pending(d->id, d->options->ordered, now,
								   d->after_time, d->after_id, limit,
								   BATCH_BYTES, take_pending, &taker, &more);
	}
	PG_CATCH();
	{
		if (log_blame_event())
			log_abort();
		else if (!ask_failed(now))
			PG_RE_THROW();
		foreach(lc, taker.deliveries)
			free_delivery(lfirst(lc));
		list_free(taker.deliveries);
		next_timer = now;
		return;
	}
	PG_END_TRY();
	if (d->options->ordered)
	{
		if (taker.blocked_until != 0)
			d->next_due = taker.blocked_until;
		else if (visited == 0)
		{
			d->lagging = false;
			d->next_due = log_next_due(d->id, now);
		}
	}
	else
	{
		bool		from_beginning = d->after_time == DT_NOBEGIN;

		d->pass_took = taker.taken > 0 || (!from_beginning && d->pass_took);
		if (!more && (from_beginning || !d->pass_took))
		{
			/* What is due, and known, is in flight: its end comes by itself. */
			d->lagging = false;
			d->next_due = log_next_due(d->id, now);
		}
		/* From the end, look once more from the beginning. */
		d->after_time = more ? taker.last_time : DT_NOBEGIN;
		d->after_id = more ? taker.last_id : 0;
	}
	foreach(lc, taker.deliveries)
		route(lfirst(lc), now);
	log_commit();
	list_free(taker.deliveries);
	if (taker.taken > 0)
		MyWorker->active_at = now;
	set_timer(d, now);
}

/* Is there room for more that is pending? */
static bool
may_take_pending(void)
{
	return nready - nfresh < MAX_PENDING &&
		pending_bytes < MAX_PENDING_BYTES;
}

static bool
is_due(Destination *d, TimestampTz now)
{
	return d->nready == 0 && d->next_due <= now &&
		paused_until(d, now) <= now;
}

/* Of those that are due and share its limit, the one that waited longest. */
static Destination *
whose_turn(Destination *d, TimestampTz now)
{
	Destination *first = d;

	for (int i = 0; is_limited(d) && i < destinations_count(); i++)
	{
		Destination *other = destinations_get(i);

		if (other->limit_turn < first->limit_turn && same_limit(d, other) &&
			is_due(other, now))
			first = other;
	}
	return first;
}

/*
 * Look at every destination that may be due, going on where the last look
 * ended, so that all have their turn.
 */
static void
read_due(TimestampTz now)
{
	static int	next = 0;
	int			n = destinations_count();

	if (now < next_timer || restoring)
		return;
	next_timer = PG_INT64_MAX;
	for (int i = 0; i < n && may_take_pending(); i++)
	{
		Destination *d = destinations_get(next++ % n);

		if (d->breaker.state != BREAKER_CLOSED)
			stats_exchange(d->id, NULL, &d->breaker, &d->breaker_resets);
		if (is_due(d, now))
		{
			Destination *first = whose_turn(d, now);

			read_pending(first, now);
			if (first != d)
				set_timer(d, now);
		}
		else
			set_timer(d, now);
	}
	next %= Max(n, 1);
	/* Perhaps not all were looked at: then come back when there is room. */
	if (!may_take_pending())
		next_timer = now;
}

/* ---- recording ---- */

/*
 * Attempts that have taken long let go of their batch: they get rows in
 * mlint.pending now, and carry on by themselves. Their rows are due when
 * they are likely to have ended; where deliveries are in order, what comes
 * behind such a row waits for it, so it is due at once.
 */
static void
release_stragglers(Batch *batch, TimestampTz now, int age_ms, int due_ms)
{
	Record	   *records = palloc(sizeof(Record) * Max(batch->n, 1));
	int			n = 0;
	slist_mutable_iter iter;

	slist_foreach_modify(iter, &batch->deliveries)
	{
		Delivery   *delivery = slist_container(Delivery, in_batch, iter.cur);
		Destination *d = delivery->destination;
		TimestampTz due = now + due_ms * INT64CONST(1000);

		if (delivery->state != DELIVERY_FLYING ||
			now - delivery->submitted_at < age_ms * INT64CONST(1000))
			continue;
		if (d->options->ordered)
			due = now;
		slist_delete_current(&iter);
		batch->n--;
		batch->unresolved--;
		delivery->batch = NULL;
		records[n] = make_record(delivery);
		records[n].kind = OUTCOME_PARKED;
		records[n++].next_attempt_at = due;
		delivery->had_row = true;
		d->slow = true;
		d->next_due = Min(d->next_due, due);
		set_timer(d, now);
	}
	if (n > 0)
	{
		begin(false);
		log_record(records, n);
		log_commit();
	}
	pfree(records);
}

/*
 * The log, or the record of what others got, waits for destinations that have
 * as much in flight as they may: park what they have not begun, unless nobody
 * else would gain by it.
 */
static void
release_log(TimestampTz now)
{
	Destination *d;
	int			i = 0;

	if (destinations_enabled() < 2)
		return;
	while ((d = destinations_next(&i)) != NULL)
	{
		if (d->nready == 0)
			continue;
		hold_back(d, now);
		d->lagging = true;
	}
}

/* What a committed outcome means for its destination. */
static void
after_commit(Delivery *delivery, TimestampTz now)
{
	Destination *d = delivery->destination;

	if (delivery->outcome.kind == OUTCOME_RETRY ||
		delivery->outcome.kind == OUTCOME_PARKED)
	{
		if (delivery->batch)
			d->uncommitted--;
		d->next_due = Min(d->next_due, delivery->next_attempt_at);
		if (delivery->outcome.kind == OUTCOME_PARKED &&
			delivery->next_attempt_at <= now)
			d->lagging = true;
		set_timer(d, now);
	}
	if (!d->dropped && (d->counters || d->breaker_changed))
	{
		stats_exchange(d->id, d->counters, &d->breaker, &d->breaker_resets);
		d->breaker_changed = false;
		if (d->counters)
			pfree(d->counters);
		d->counters = NULL;
	}
	free_delivery(delivery);
}

static void
add_record(Record *records, int *n, Delivery *delivery, TimestampTz now)
{
	/* What is due at once is due after all that was taken up before. */
	if (delivery->outcome.kind == OUTCOME_PARKED)
		delivery->next_attempt_at = Max(delivery->next_attempt_at, now);
	if (!delivery->recorded)
		records[(*n)++] = make_record(delivery);
}

/*
 * Commit what has ended: the complete batches at the head, with the cursor,
 * and the deliveries that stand for themselves.
 */
static void
record(TimestampTz now)
{
	Cursor	   *after = NULL;
	Record	   *records;
	int			n = 0;
	int			complete = 0;
	int			total = nresults;
	dlist_iter	iter;
	slist_iter	in_batch;

	dlist_foreach(iter, &batches)
	{
		Batch	   *batch = dlist_container(Batch, node, iter.cur);

		if (batch->unresolved > 0)
			break;
		complete++;
		total += batch->n;
		after = batch->after;
	}
	if (nbatches == complete && cursor_moved)
		after = cursor;

	begin(false);
	worker_activity("recording %d outcomes", total);
	records = palloc(sizeof(Record) * Max(total, 1));
	dlist_foreach(iter, &batches)
	{
		Batch	   *batch = dlist_container(Batch, node, iter.cur);

		if (batch->unresolved > 0)
			break;
		slist_foreach(in_batch, &batch->deliveries)
			add_record(records, &n,
					   slist_container(Delivery, in_batch, in_batch.cur), now);
	}
	dlist_foreach(iter, &results)
		add_record(records, &n, dlist_container(Delivery, node, iter.cur),
				   now);
	log_record(records, n);
	if (after)
		log_save_cursor(MyWorker->lane, after);
	log_commit();

	while (complete-- > 0)
	{
		Batch	   *batch = dlist_container(Batch, node,
											dlist_pop_head_node(&batches));

		while (!slist_is_empty(&batch->deliveries))
			after_commit(slist_container(Delivery, in_batch,
										 slist_pop_head_node(&batch->deliveries)),
						 now);
		cursor_free(batch->after);
		pfree(batch);
		nbatches--;
	}
	if (after == cursor)
		cursor_moved = false;
	while (!dlist_is_empty(&results))
	{
		Delivery   *delivery = dlist_container(Delivery, node,
											   dlist_pop_head_node(&results));

		delivery->destination->unrecorded--;
		after_commit(delivery, now);
	}
	nresults = 0;
	if (passed(measured_at, 1000, now))
	{
		MyWorker->memory = MemoryContextMemAllocated(TopMemoryContext, true);
		measured_at = now;
	}
	recorded_at = now;
	MyWorker->batches++;
	/* Under load we are never idle, and autovacuum goes by these. */
	pgstat_report_stat(false);
	ConditionVariableBroadcast(worker_delivered());
}

/*
 * Disable the destinations that said they are gone. When somebody holds the
 * locks, the lane goes on, and tries again.
 */
static void
disable_gone(TimestampTz now)
{
	MemoryContext old = CurrentMemoryContext;
	Destination *d;
	int			i = 0;

	disable_at = PG_INT64_MAX;
	while ((d = destinations_next(&i)) != NULL)
	{
		if (!d->gone)
			continue;
		d->enabled = false;
		PG_TRY();
		{
			begin(false);
			log_disable(d->id, d->name,
						"HTTP 410: the receiver says that it is gone for good");
			log_commit();
			d->gone = false;
		}
		PG_CATCH();
		{
			if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
				PG_RE_THROW();
			FlushErrorState();
			log_abort();
			MemoryContextSwitchTo(old);
			disable_at = now + DISABLE_RETRY_MS * INT64CONST(1000);
		}
		PG_END_TRY();
	}
}

static Batch *
head_batch(void)
{
	return dlist_is_empty(&batches) ? NULL :
		dlist_head_element(Batch, node, &batches);
}

/* Is it time to commit? */
static bool
should_record(TimestampTz now)
{
	Batch	   *head = head_batch();

	if (head && head->unresolved == 0)
		return true;
	if (nresults > 0 &&
		(nresults >= RECORD_COUNT || (nready == 0 && nflying == 0) ||
		 passed(results_since, RECORD_MS, now)))
		return true;
	return head == NULL && cursor_moved &&
		passed(recorded_at, RECORD_MS, now);
}

typedef struct Leveller
{
	Record	   *records;
	int			n;
	int			room;
} Leveller;

static bool
level_event(Event *event, void *arg)
{
	Leveller   *leveller = arg;
	EventHead	head = {event->id, event->type, event->destination_id};
	int			n;
	Destination *const *match = destinations_match(&head, &n);

	if (leveller->n + n > leveller->room)
	{
		leveller->room = leveller->n + n + BATCH_DELIVERIES;
		leveller->records = repalloc_huge(leveller->records,
										  sizeof(Record) * leveller->room);
	}
	for (int i = 0; i < n; i++)
	{
		Record	   *r = &leveller->records[leveller->n];

		if (event->id <= match[i]->after_event_id)
			continue;
		memset(r, 0, sizeof(Record));
		r->event_id = event->id;
		r->destination_id = match[i]->id;
		r->segment = event->segment;
		r->kind = OUTCOME_PARKED;
		r->next_attempt_at = Max(event->deliver_at, GetCurrentTimestamp());
		r->error = "";
		leveller->n++;
	}
	event_release(event);
	return leveller->n < BATCH_DELIVERIES;
}

/* Park a part of what an old lane has not read; true when there is more. */
static bool
level_part(OldLane *lane)
{
	MemoryContext part = AllocSetContextCreate(CurrentMemoryContext,
											   "mlint levelling",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(part);
	Leveller	leveller = {palloc(sizeof(Record)), 0, 1};
	EventVisitor visitor = {0};
	Cursor	   *next;
	bool		more;

	CHECK_FOR_INTERRUPTS();
	visitor.wants = wants_event;
	visitor.take = level_event;
	visitor.heads_only = true;
	visitor.max_seen = BATCH_EVENTS;
	visitor.max_bytes = BATCH_BYTES;
	visitor.arg = &leveller;
	next = log_read(lane->cursor, &visitor, &more);
	log_record(leveller.records, leveller.n);
	MemoryContextSwitchTo(deliveries_context);
	cursor_free(lane->cursor);
	lane->cursor = cursor_copy(next);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(part);
	return more;
}

/*
 * mlint.dispatchers has changed, and with it which destination belongs to
 * which lane. Bring the old lanes to one point in the log: what each had not
 * read is parked for its destinations, whosever they are now. A part is a
 * transaction, but for the last, in which all lanes meet.
 */
static void
level_lanes(int lanes)
{
	OldLane    *old;
	int			n;
	int64		destinations;
	bool		sql_lane;
	bool		more = true;

	begin(true);
	MemoryContextSwitchTo(deliveries_context);
	n = log_old_lanes(lanes, &old);
	log_commit();

	/* Whoever is still at work there must have ended. */
	for (int i = 0; i < n; i++)
		lock_lane(old[i].lane, true);
	for (int i = 0; i < n; i++)
	{
		destinations_init(old[i].lane, old[i].lanes);
		for (more = true; more;)
		{
			begin(true);
			destinations = log_destinations_generation();
			destinations_load(destinations, &sql_lane);
			more = level_part(&old[i]);
			log_save_cursor(old[i].lane, old[i].cursor);
			log_commit();
		}
	}

	begin(true);
	destinations = log_destinations_generation();
	for (int i = 0; i < n; i++)
	{
		destinations_init(old[i].lane, old[i].lanes);
		destinations_load(destinations, &sql_lane);
		while (level_part(&old[i]))
			continue;
	}
	log_reset_lanes(lanes, cursor_at(GetActiveSnapshot()));
	log_commit();
	for (int i = 0; i < n; i++)
		lock_lane(old[i].lane, false);
	ereport(LOG,
			(errmsg("mlint: destinations are now shared by %d dispatchers",
					lanes)));
}

/* Become the one dispatcher of our lane, and find where to go on. */
static void
enter_lane(int lane, int lanes)
{
	MemoryContext old = CurrentMemoryContext;
	Cursor	   *found;
	LOCKTAG		tag;

	lock_lane(WORKER_LOCK_LEVEL, true);
	lock_lane(lane, true);
	lane_locktag(&tag, lane);
	user_function_keeps(&tag, ExclusiveLock);
	for (;;)
	{
		begin(true);
		MemoryContextSwitchTo(deliveries_context);
		found = log_load_cursor(lane, lanes);
		MemoryContextSwitchTo(old);
		log_commit();
		if (found)
			break;
		if (lane == 0)
			elog(ERROR, "mlint.log_cursor has lost the row of lane 0");
		level_lanes(lanes);
	}
	lock_lane(WORKER_LOCK_LEVEL, false);
	cursor = found;
	destinations_init(lane, lanes);
}

/* ---- the loop ---- */

/* Nothing can be done until something happens: until when at most? */
static long
wait_ms(TimestampTz now)
{
	long		ms = passed(log_read_at, POLL_MS, now) ? 0 :
	POLL_MS - (now - log_read_at) / 1000;
	long		http_ms = http_client_timeout(http);
	Batch	   *head = head_batch();

	if (http_ms >= 0)
		ms = Min(ms, http_ms);
	if (next_timer != PG_INT64_MAX && may_take_pending() && !restoring)
		ms = Min(ms, Max(0, (next_timer - now) / 1000 + 1));
	if (nresults > 0 || cursor_moved)
		ms = Min(ms, RECORD_MS);
	if (disable_at != PG_INT64_MAX)
		ms = Min(ms, Max(0, (disable_at - now) / 1000 + 1));
	if (head)
		ms = Min(ms, STRAGGLER_MS / 2);
	return ms;
}

/* Has the log been read only just now? */
static bool
pacing(TimestampTz now)
{
	return !passed(log_read_at, PACE_MS, now);
}

/*
 * Wait for the latch or the network. When we have been called already, and are
 * only pacing, the latch is not waited for, so that setting it costs publishers
 * next to nothing.
 */
static void
wait_for_work(TimestampTz now)
{
	WaitEvent	event;
	long		timeout = wait_ms(now);

	if (worker_called(false))
	{
		if (!pacing(now))
			return;
		(void) WaitEventSetWait(pace_set, Min(timeout, PACE_MS), &event, 1,
								PG_WAIT_EXTENSION);
		return;
	}
	if (nflying == 0 && nready == 0)
	{
		worker_idle();
		MyWorker->wakeups++;
	}
	if (WaitEventSetWait(wait_set, timeout, &event, 1,
						 PG_WAIT_EXTENSION) == 1 &&
		event.events == WL_LATCH_SET)
		ResetLatch(MyLatch);
}

/*
 * Asked to leave: begin nothing, wait for what is under way, and commit. What
 * takes too long is left to the next dispatcher, which will send it again.
 */
static void
retire(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz deadline = now + RETIRE_MS * INT64CONST(1000);
	Destination *d;
	dlist_iter	iter;
	int			i;

	worker_activity("finishing %d deliveries", nflying);
	for (;;)
	{
		WaitEvent	event;
		long		wait_ms = http_client_timeout(http);
		long		left_ms = (deadline - now) / 1000 + 1;

		(void) worker_interrupts();
		for (i = 0; (d = destinations_next(&i)) != NULL;)
			hold_back(d, now);
		if (nflying == 0 || now >= deadline)
			break;
		if (WaitEventSetWait(wait_set, wait_ms < 0 ? left_ms :
							 Min(wait_ms, left_ms), &event, 1,
							 PG_WAIT_EXTENSION) == 1 &&
			event.events == WL_LATCH_SET)
			ResetLatch(MyLatch);
		http_client_run(http);
		now = GetCurrentTimestamp();
		conclude_ended(now);
	}
	dlist_foreach(iter, &batches)
		release_stragglers(dlist_container(Batch, node, iter.cur), now, 0, 0);
	record(now);
	proc_exit(0);
}

static void
settings_changed(void)
{
	if (policy_generation == netpolicy_generation())
		return;
	policy_generation = netpolicy_generation();
	http_client_forget_connections(http);
}

void
mlint_dispatcher_main(Datum main_arg)
{
	worker_enter(main_arg);

	deliveries_context = AllocSetContextCreate(TopMemoryContext,
											   "mlint deliveries",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(TopMemoryContext);
	http = http_client_create(WORKER_MAX_IN_FLIGHT);
	policy_generation = netpolicy_generation();
	wait_set = mlint_create_wait_event_set(3);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL,
					  NULL);
	AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, http_client_fd(http),
					  NULL, NULL);
	pace_set = mlint_create_wait_event_set(2);
	AddWaitEventToSet(pace_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL,
					  NULL);
	AddWaitEventToSet(pace_set, WL_SOCKET_READABLE, http_client_fd(http),
					  NULL, NULL);
	log_init(MyWorker->lane > 0);
	enter_lane(MyWorker->lane, MyWorker->lanes);

	for (;;)
	{
		TimestampTz now;
		Batch	   *head;
		bool		idle = true;

		if (worker_interrupts())
			settings_changed();
		if (MyWorker->retire)
			retire();
		now = GetCurrentTimestamp();
		if ((!pacing(now) && worker_called(true)) ||
			passed(log_read_at, POLL_MS, now))
			log_has_more = true;

		while (log_has_more && nbatches < MAX_BATCHES && nfresh < LOW_WATER)
		{
			read_log();
			idle = false;
		}
		now = GetCurrentTimestamp();
		read_due(now);
		submit_ready(now);
		http_client_run(http);
		if (!dlist_is_empty(&ended))
		{
			now = GetCurrentTimestamp();
			conclude_ended(now);
			submit_ready(now);
			idle = false;
		}

		head = head_batch();
		if (head && head->unresolved > 0 &&
			passed(head->looked_at, STRAGGLER_MS, now))
		{
			head->looked_at = now;
			release_stragglers(head, now, STRAGGLER_MS, STRAGGLER_DUE_MS);
			if (nfresh > 0 && (dlist_is_empty(&active) ||
							   nflying >= WORKER_MAX_IN_FLIGHT))
				release_log(now);
		}
		if (should_record(now))
		{
			record(now);
			idle = false;
		}
		if (now >= disable_at)
		{
			disable_gone(now);
			idle = false;
		}
		if (!dlist_is_empty(&active) && nflying < WORKER_MAX_IN_FLIGHT)
			idle = false;
		MyWorker->in_flight_count = nflying;
		if (idle)
			wait_for_work(now);
	}
}
