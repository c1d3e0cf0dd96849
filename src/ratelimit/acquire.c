/*
 * acquire.c
 *		rate_acquire(): take from a limit by its strategy.
 *
 * What can be had at once is had by every strategy. They differ in what is
 * done when it can't:
 *
 *	hard		raises.
 *	retry_after	returns the refusal.
 *	queue		stands in the key's line (queue.h), up to max_wait, and
 *				returns the refusal if that is not enough. That can be
 *				foreseen: then it is refused at once, and no connection is held
 *				for nothing.
 *	throttle	as queue; and before it comes to that, what is taken from a
 *				bucket that is more than half used is slowed down: by nothing
 *				at half, growing to the pace of the rule when all is used.
 *	graceful	takes what is left, passes, and says so.
 *
 * A leaky bucket is about when things leave. By any strategy a caller waits in
 * line until it may leave, and takes then (a millisecond ahead, and sleeps that
 * out, so that the time it takes to wake up does not add to the spacing);
 * refused is who finds the bucket full, or would have to wait longer than
 * max_wait. Had each taken a place long ahead of its time, then one who gives
 * up would leave a hole that nobody can use, or two behind it with the same time
 * to leave.
 *
 * So nothing is taken while waiting in line, and there is nothing to give back
 * when it ends early: by cancel, a timeout, the end of the session. What is
 * slowed down has been taken, and is given back then.
 *
 * Rules and overrides may change meanwhile: the wait is a chain of looks, each
 * with what is in force by then, when something happened and at least every
 * LOOK_US. The wait ends in a TAKE, refused or not, and those before it only
 * peek, so that each call counts as one check. Of a limit that several servers
 * share, the line is this server's alone; its first asks the backend when the
 * backend has said that it may be worth it, and what is asked in vain counts.
 */
#include "postgres.h"

#include "common/int.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "common/compat.h"
#include "common/errors.h"
#include "ratelimit/acquire.h"
#include "ratelimit/queue.h"

PG_FUNCTION_INFO_V1(mlint_rate_acquire);

#define LOOK_US			INT64CONST(1000000)
/* A latch's timeout is in milliseconds; shorter waits are slept. */
#define LATCH_US		INT64CONST(1000)
/* Longer than anybody waits, and can be added to. */
#define FOREVER_US		(INT64CONST(1) << 60)
/* A backend elsewhere is not asked more often than this. */
#define REMOTE_PAUSE_US	INT64CONST(10000)

typedef struct Acquire
{
	/* As given. */
	const char *rule;
	Size		len;
	const char *identifier;
	Size		idlen;
	int64		cost;
	int64		max_wait;

	/* What was in force at the last look. */
	int64		rule_id;
	int			slot;
	RateStrategy strategy;
	RateLaw		law;
	RateKey		key;
	bool		remote;
	bool		denied;			/* by an override, here or by the answer */
	int64		patience;		/* how long may be waited in all */

	uint64		started;
	bool		slept;
	int64		wait;			/* until it may be worth asking again */
	RateAnswer *answer;
} Acquire;

/* Time that passes whatever becomes of the clock, in microseconds. */
static uint64
monotonic_us(void)
{
	instr_time	t;

	INSTR_TIME_SET_CURRENT(t);
	return INSTR_TIME_GET_MICROSEC(t);
}

static int64
waited(const Acquire *a)
{
	return monotonic_us() - a->started;
}

/* How long it takes until so many tokens have come. */
static int64
time_of(const RateLaw *law, int64 tokens)
{
	double		us = (double) tokens * law->per / law->rate;

	return us < FOREVER_US ? (int64) us : FOREVER_US;
}

/* See what is in force. Raises when the rule is gone. */
static void
look(Acquire *a)
{
	const RateRule *rule = rate_rule(a->rule, a->len);
	const RateOverride *override;
	const char *identifier;
	Size		len = a->idlen;

	a->rule_id = rule->id;
	a->slot = rule->slot;
	a->strategy = rule->strategy;
	a->law = rule->law;
	a->remote = rule->backend != NULL;
	a->patience = a->max_wait >= 0 ? a->max_wait : rule->max_wait;
	identifier = rate_identify(rule, a->identifier, &len);
	rate_key(&a->key, rule->slot, identifier, len);
	override = rate_override(rule, identifier, len, rate_now());
	a->denied = override && override->action == RATE_DENY;
	if (override && override->action == RATE_LIMIT)
		a->law = override->law;
}

static void
decide(Acquire *a, int64 cost, RateIntent intent, bool in_turn,
	   RateAnswer *answer)
{
	rate_decide(&a->rule, &a->len, 1, a->identifier, a->idlen, cost, intent,
				in_turn, answer);
}

static bool
is_leaky(const Acquire *a)
{
	return a->law.algorithm == RATE_LEAKY_BUCKET;
}

/* Take, if it can be had without any delay; or with one, if that may be. */
static bool
take(Acquire *a, bool in_turn, bool ahead)
{
	decide(a, a->cost, is_leaky(a) && !ahead ? RATE_TAKE_NOW : RATE_TAKE,
		   in_turn, a->answer);
	a->denied = a->answer->denied;
	a->wait = a->answer->verdict.retry_after;
	if (a->remote)
		a->wait = Max(a->wait, REMOTE_PAUSE_US);
	return a->answer->verdict.allowed;
}

/* Peek whether we can take, first, so that a vain look counts as no check. */
static bool
take_if_due(Acquire *a, bool in_turn)
{
	RateVerdict *verdict = &a->answer->verdict;
	int64		ahead = in_turn ? LATCH_US : 0;

	/* A peek at a backend elsewhere would cost as much as the question. */
	if (a->remote)
		return take(a, in_turn, false);
	decide(a, a->cost, RATE_PEEK, in_turn, a->answer);
	if (verdict->allowed && verdict->delay <= ahead)
		return take(a, in_turn, in_turn);
	if (verdict->allowed)
		a->wait = verdict->delay - ahead;
	else if (is_leaky(a))
		a->wait = verdict->retry_after +
			Max(time_of(&a->law, a->law.burst - a->cost) - ahead, 0);
	else
		a->wait = verdict->retry_after;
	return false;
}

/* What would become of a cost that is not ours, by the law of the last look. */
static RateVerdict
foresee(Acquire *a, int64 cost)
{
	RateAsk		ask = {.key = a->key,.law = &a->law,.cost = cost};
	RateAnswer	answer;

	if (a->remote)
		decide(a, cost, RATE_PEEK, true, &answer);
	else
		(void) table_decide(&ask, 1, RATE_PEEK, true, &answer.verdict, NULL);
	return answer.verdict;
}

/*
 * How long it will take at least until the cost of those ahead, and then ours,
 * can pass. Nobody is turned away who would have made it.
 */
static int64
expected_wait(Acquire *a, int64 ahead)
{
	const RateLaw *law = &a->law;
	RateVerdict verdict;
	int64		total;
	int64		first;
	int64		turns;
	int64		wait;

	if (pg_add_s64_overflow(ahead, a->cost, &total))
		return FOREVER_US;
	switch (law->algorithm)
	{
		case RATE_TOKEN_BUCKET:
			first = Min(total, law->burst);
			verdict = foresee(a, first);
			return verdict.retry_after + time_of(law, total - first);

		case RATE_LEAKY_BUCKET:
			/* All before us must have left. */
			verdict = foresee(a, a->cost);
			wait = verdict.allowed ? verdict.delay :
				verdict.retry_after + time_of(law, law->burst - a->cost);
			return wait + time_of(law, ahead);

		default:
			/* No window lets more than its rate through. */
			turns = (total - 1) / law->burst;
			verdict = foresee(a, total - turns * law->burst);
			wait = verdict.retry_after;
			if (law->algorithm == RATE_FIXED_WINDOW && verdict.allowed &&
				turns > 0)
			{
				wait = Max(verdict.reset_at - rate_now(), 0);
				turns--;
			}
			return wait + (turns < FOREVER_US / law->per ?
						   turns * law->per : FOREVER_US);
	}
}

/* ---- waiting ---- */

/* Sleep until the latch is set, but no longer than that. */
static void
doze(Acquire *a, int64 us)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = mlint_wait_event("MlintRateLimit");
	a->slept = true;
	if (us >= LATCH_US)
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 us / 1000, wait_event);
		ResetLatch(MyLatch);
	}
	else if (us > 0)
		pg_usleep(us);
	CHECK_FOR_INTERRUPTS();
}

/*
 * Is there a place for us? In a leaky bucket there are only so many; who
 * queues or is throttled may wait until there is one.
 */
static bool
has_room(const Acquire *a, int64 expected)
{
	if (expected > a->patience)
		return false;
	return a->strategy == RATE_QUEUE || a->strategy == RATE_THROTTLE ||
		expected + time_of(&a->law, a->cost) <= time_of(&a->law, a->law.burst);
}

/*
 * Wait for our turn; false when that takes too long. It is the caller who
 * leaves the line.
 */
static bool
wait_turn(Acquire *a)
{
	int64		expected;

	queue_join(&a->key, a->cost);
	expected = expected_wait(a, queue_ahead());
	while (has_room(a, expected))
	{
		int64		left = a->patience - waited(a);
		int64		ahead = queue_ahead();

		a->wait = LOOK_US;
		if (ahead == 0 && take_if_due(a, true))
			return true;
		expected = ahead == 0 ? a->wait : 0;
		if (left <= 0 || expected > left)
			break;
		doze(a, Min(Min(a->wait, left), LOOK_US));

		look(a);
		if (a->denied)
			break;
		if (!queue_in_line(&a->key))
		{
			/* The rule sees us as somebody else now. */
			queue_leave();
			queue_join(&a->key, a->cost);
		}
	}
	expected = a->denied ? 0 : expected_wait(a, queue_ahead());
	if (take(a, queue_ahead() == 0, false))
		return true;
	a->answer->verdict.retry_after = Max(a->answer->verdict.retry_after,
										 expected);
	return false;
}

static void
count_wait(const Acquire *a)
{
	if (a->slept && table_rule_kept(a->slot, a->rule_id))
		table_count_wait(a->slot, waited(a));
}

/* A wait in line is ended by an error or with the session. */
static void
give_up(int code, Datum arg)
{
	queue_leave();
	count_wait((Acquire *) DatumGetPointer(arg));
}

/* A wait that was slept through has ended early: return what it took. */
static void
give_back(int code, Datum arg)
{
	Acquire    *a = (Acquire *) DatumGetPointer(arg);
	RateAsk		ask = {.key = a->key,.law = &a->law,.cost = a->cost};
	RateVerdict verdict;

	/* No talking to another server while a transaction or process ends. */
	if (!a->remote && table_rule_kept(a->slot, a->rule_id))
		(void) table_decide(&ask, 1, RATE_GIVE, true, &verdict, NULL);
	count_wait(a);
}

/* Throttle: what has been taken is to be worth a delay. */
static void
slow_down(Acquire *a)
{
	RateVerdict *verdict = &a->answer->verdict;
	double		used = (double) (verdict->capacity - verdict->remaining -
								 a->cost) / verdict->capacity;
	int64		until;

	if (used <= 0.5)
		return;
	until = Min((int64) ((2 * used - 1) * time_of(&a->law, a->cost)),
				a->patience);
	if (waited(a) >= until)
		return;
	PG_ENSURE_ERROR_CLEANUP(give_back, PointerGetDatum(a));
	{
		int64		left;

		while ((left = until - waited(a)) > 0)
			doze(a, left);
	}
	PG_END_ENSURE_ERROR_CLEANUP(give_back, PointerGetDatum(a));
}

/* ---- strategies ---- */

/* By the law alone: take now, or in our turn if that is what we wait for. */
static bool
acquire(Acquire *a)
{
	bool		waits = is_leaky(a) || a->strategy == RATE_QUEUE ||
	a->strategy == RATE_THROTTLE;
	volatile bool passed = false;

	if (!waits || a->denied || a->patience == 0)
		return take(a, false, false);
	if (take_if_due(a, false))
		return true;
	PG_ENSURE_ERROR_CLEANUP(give_up, PointerGetDatum(a));
	{
		passed = wait_turn(a);
	}
	PG_END_ENSURE_ERROR_CLEANUP(give_up, PointerGetDatum(a));
	queue_leave();
	return passed;
}

/* Graceful: take what is there, and pass. */
static void
pass_degraded(Acquire *a)
{
	RateVerdict *verdict = &a->answer->verdict;

	if (verdict->remaining > 0 && verdict->remaining < a->cost)
		decide(a, verdict->remaining,
			   is_leaky(a) ? RATE_TAKE_NOW : RATE_TAKE, false, a->answer);
	verdict->allowed = true;
	verdict->retry_after = 0;
	verdict->delay = 0;
	a->answer->degraded = true;
	a->answer->reason = "graceful";
}

static void
raise_refusal(Acquire *a)
{
	int64		us = a->answer->verdict.retry_after;
	char	   *name = pnstrdup(a->rule, a->len);

	if (a->denied)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_RATE_LIMITED),
				 errmsg("rate limit \"%s\" is closed to this caller", name),
				 a->answer->reason ?
				 errdetail("An override denies: %s.", a->answer->reason) : 0,
				 errhint("The view mlint.rate_overrides shows until when.")));
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_RATE_LIMITED),
			 errmsg("rate limit \"%s\" is exceeded", name),
			 errdetail("Retry after %.3f seconds, at %s.", us / 1000000.0,
					   timestamptz_to_str(GetCurrentTimestamp() + us)),
			 errhint("Try again then. A rule whose strategy is \"queue\" waits by itself, up to max_wait.")));
}

void
rate_acquire(const char *rule, Size len, const char *identifier, Size idlen,
			 int64 cost, int64 max_wait, RateAnswer *answer)
{
	Acquire		a = {
		.rule = rule,
		.len = len,
		.identifier = identifier,
		.idlen = idlen,
		.cost = cost,
		.max_wait = max_wait,
		.started = monotonic_us(),
		.answer = answer,
	};
	bool		passed;

	look(&a);
	passed = acquire(&a);
	if (passed)
	{
		int64		departs = waited(&a) + answer->verdict.delay;
		int64		left;

		while ((left = departs - waited(&a)) > 0)
			doze(&a, left);
		if (a.strategy == RATE_THROTTLE && !is_leaky(&a))
			slow_down(&a);
	}
	count_wait(&a);
	if (!passed && a.strategy == RATE_HARD)
		raise_refusal(&a);
	if (!passed && a.strategy == RATE_GRACEFUL && !a.denied)
		pass_degraded(&a);
	answer->verdict.delay = a.slept ? waited(&a) : 0;
}

/* ---- SQL ---- */

/* max_wait in microseconds; -1 for null. */
static int64
max_wait_argument(FunctionCallInfo fcinfo, int n)
{
	const Interval *interval;
	int64		us;

	if (PG_ARGISNULL(n))
		return -1;
	interval = PG_GETARG_INTERVAL_P(n);
	if (interval->month != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_wait must not have months or years"),
				 errdetail("An interval with months has no fixed length."),
				 errhint("Write it in days; a day is 24 hours.")));
	if (!rate_interval_us(interval, &us))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_wait must be between zero and %d days",
						(int) (RATE_MAX_PER / USECS_PER_DAY)),
				 errhint("With '0' nothing is waited for; with null, as long as the rule says.")));
	return us;
}

/* mlint.rate_acquire(rule, identifier, cost, max_wait) */
Datum
mlint_rate_acquire(PG_FUNCTION_ARGS)
{
	Size		len;
	Size		idlen;
	const char *rule = rate_rule_argument(fcinfo, 0, &len);
	const char *identifier = rate_identifier_argument(fcinfo, 1, &idlen);
	RateAnswer	answer;

	rate_acquire(rule, len, identifier, idlen, rate_cost_argument(fcinfo, 2),
				 max_wait_argument(fcinfo, 3), &answer);
	return rate_answer_datum(fcinfo, rule, len, &answer);
}
