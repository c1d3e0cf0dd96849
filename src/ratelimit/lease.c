/*
 * lease.c
 *		Leased rules: borrow a slice of a shared limit, and decide from it.
 *
 * A slice is `lease` tokens that the backend has counted as taken. It lies in
 * this server's table under the plain key, for all its processes, and is spent
 * there without asking anybody until it is used up or its time is over:
 * a second, or the end of a fixed window if that is sooner. What is left then
 * goes back with the next borrowing of the same key, or by the job rate_lease_return,
 * in the same atomic step in which the store lends or refuses.
 *
 * So a server never holds more than one slice of a key, and what it spends was
 * granted by the law at most a second ago: over any interval t no more is
 * admitted than the law admits over t, plus one slice for each server. Of a
 * fixed window not even that, since no slice outlives its window by the
 * store's clock.
 *
 * A refusal is kept in place of a slice until it is worth asking again, a
 * second at most: so refusing costs no round trips, and what others give back
 * is found.
 *
 * When a slice is used up, all processes notice at once, and one borrows. The
 * others wait for it on a condition variable, no longer than a round trip may
 * take, and then look again; whoever waited in vain asks for
 * what he needs, and no more. Nobody holds a lock while he talks to the backend.
 *
 * What goes back says how long ago it was taken. We only know when it was
 * asked for and when its answer came, so the time that a round trip may
 * take is added: the store then never gives back to a window in which nothing was
 * taken.
 */
#include "postgres.h"

#include "common/compat.h"
#include "common/owner.h"
#include "common/shmem.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "ratelimit/remote_store.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_rate_lease_return);

#define SLICE_US		INT64CONST(1000000)
#define BORROWERS		128
#define MAX_TRIES		3

/* Who borrows; keys share these by their hash. */
typedef struct Borrowing
{
	pg_atomic_uint64 until;		/* http_clock(): busy no longer than this */
	ConditionVariable done;
} Borrowing;

static Borrowing *borrowings = NULL;

static Size
shared_size(void)
{
	return sizeof(Borrowing) * BORROWERS;
}

static void
shared_init(LWLockPadded *locks)
{
	for (int i = 0; i < BORROWERS; i++)
	{
		pg_atomic_init_u64(&borrowings[i].until, 0);
		ConditionVariableInit(&borrowings[i].done);
	}
}

static const SharedPart part = {
	.name = "mlint rate leases",
	.size = shared_size,
	.memory = (void **) &borrowings,
	.init = shared_init
};

void
lease_init(void)
{
	shared_part(&part);
}

void
lease_begin(void)
{
	(void) job_request("rate_lease_return");
}

/* Tokens to borrow at a time. */
static int64
lease_size(const RateRule *rule, const RateLaw *law)
{
	if (rule->lease > 0)
		return Min(rule->lease, law->burst);
	return Max(law->burst / 20, 1);
}

/* No exchange with the backend takes longer, in microseconds. */
static int64
exchange_us(const RemoteStore *store)
{
	return (store->options->timeout_ms + store->options->connect_timeout_ms) *
		INT64CONST(1000);
}

/*
 * Be the one who borrows: what borrowing_end() wants; or 0, after having
 * waited for another, who may have borrowed what we need.
 */
static uint64
borrowing_begin(Borrowing *borrowing, int64 longest)
{
	static uint32 wait_event = 0;
	uint64		until = pg_atomic_read_u64(&borrowing->until);
	int64		now = http_clock();

	if ((int64) until <= now &&
		pg_atomic_compare_exchange_u64(&borrowing->until, &until,
									   (uint64) (now + longest)))
		return (uint64) (now + longest);
	if (wait_event == 0)
		wait_event = mlint_wait_event("MlintRateLease");
	ConditionVariablePrepareToSleep(&borrowing->done);
	while ((int64) pg_atomic_read_u64(&borrowing->until) > now)
	{
		int64		left = (int64) pg_atomic_read_u64(&borrowing->until) - now;

		if (left > 0)
			ConditionVariableTimedSleep(&borrowing->done,
										(long) (left / 1000 + 1),
										wait_event);
		now = http_clock();
	}
	ConditionVariableCancelSleep();
	return 0;
}

/* It took no longer than it may, so nobody else has begun. */
static bool
borrowing_stands(Borrowing *borrowing, uint64 mine)
{
	return mine != 0 && pg_atomic_read_u64(&borrowing->until) == mine;
}

static void
borrowing_end(Borrowing *borrowing, uint64 mine)
{
	/* Unless it took so long that another has begun. */
	if (pg_atomic_compare_exchange_u64(&borrowing->until, &mine, 0))
		ConditionVariableBroadcast(&borrowing->done);
}

/* When what was asked for then is over, by our clock. */
static int64
slice_end(const RateLaw *law, const RemoteAnswer *answer, int64 asked)
{
	int64		life = SLICE_US;

	if (law->algorithm == RATE_FIXED_WINDOW)
		life = Min(life, answer->before.idle_at - answer->now);
	return asked + life;
}

/* How long ago at most was a slice taken that ends then? */
static int64
slice_age(const RemoteStore *store, int64 until, int64 now)
{
	return Max(now - until, 0) + SLICE_US + exchange_us(store);
}

/*
 * Borrow a slice and take the cost out of it; what is left of the one before
 * goes back. Who is not the one who borrows, or is no longer, takes the cost
 * alone. False: the backend is away.
 */
static bool
borrow(RemoteStore *store, const RateRule *rule, const RateLaw *law,
	   const RateKey *key, int64 cost, Borrowing *borrowing, uint64 mine,
	   RateVerdict *verdict, int64 *retry_after)
{
	RemoteAsk	ask = {.law = law,.intent = RATE_TAKE,.need = cost};
	RemoteAnswer answer;
	int64		asked = rate_now();
	int64		before_until;
	int64		until;
	int64		left;
	char	   *text;
	bool		answered;

	/* What is left is worth keeping while nobody can take it back. */
	if (remote_is_away(store, retry_after))
		return false;
	ask.want = mine == 0 ? cost : Max(cost, lease_size(rule, law));
	ask.key = text = remote_key(rule->name, key, &ask.key_len);

	left = table_drain(key, &before_until);
	ask.give = Min(left, law->burst);
	ask.give_age = slice_age(store, before_until, asked);
	/* If the answer is lost, it may have been given back: so it is gone. */
	answered = remote_ask(store, &ask, &answer, retry_after);
	pfree(text);
	if (!answered)
		return false;
	until = slice_end(law, &answer, asked);
	law_decide(law, &answer.before, answer.now, cost, RATE_PEEK, verdict);
	verdict->reset_at += rate_now() - answer.now;
	if (answer.taken >= cost)
	{
		int64		spare = answer.taken - cost;

		verdict->allowed = true;
		verdict->retry_after = 0;
		verdict->remaining = spare;
		if (spare > 0 && borrowing_stands(borrowing, mine))
			(void) table_lend(key, spare, until);
		table_count(key, true);
	}
	else
	{
		verdict->allowed = false;
		verdict->retry_after = Max(verdict->retry_after, 1);
		table_refuse(key, cost, rate_now() +
					 Min(verdict->retry_after, SLICE_US));
	}
	return true;
}

/* One borrows, those who come meanwhile wait for it. */
static bool
borrow_in_turn(RemoteStore *store, const RateRule *rule, const RateLaw *law,
			   const RateKey *key, int64 cost, RateIntent intent,
			   bool in_turn, RateVerdict *verdict, int64 *retry_after)
{
	Borrowing  *borrowing = &borrowings[key->hash % BORROWERS];
	volatile bool answered = false;
	volatile uint64 mine = 0;

	for (int i = 0; i < MAX_TRIES && mine == 0; i++)
	{
		mine = borrowing_begin(borrowing, exchange_us(store));
		if (table_spend(key, law, cost, intent, in_turn, verdict))
		{
			if (mine != 0)
				borrowing_end(borrowing, mine);
			return true;
		}
	}
	PG_TRY();
	{
		answered = borrow(store, rule, law, key, cost, borrowing, mine, verdict,
						  retry_after);
	}
	PG_FINALLY();
	{
		if (mine != 0)
			borrowing_end(borrowing, mine);
	}
	PG_END_TRY();
	return answered;
}

/* Look at, or give back to, what the store has. */
static bool
ask_store(RemoteStore *store, const RateRule *rule, const RateLaw *law,
		  const RateKey *key, int64 cost, RateIntent intent,
		  RateVerdict *verdict, int64 *retry_after)
{
	RemoteAsk	ask = {.law = law,.intent = intent};
	RemoteAnswer answer;

	ask.key = remote_key(rule->name, key, &ask.key_len);
	if (intent == RATE_GIVE)
		ask.give = cost;
	else
		ask.need = ask.want = cost;
	if (!remote_ask(store, &ask, &answer, retry_after))
		return false;
	law_decide(law, &answer.before, answer.now, cost,
			   intent == RATE_GIVE ? RATE_PEEK : intent, verdict);
	if (intent == RATE_GIVE)
		verdict->allowed = true;
	verdict->reset_at += rate_now() - answer.now;
	return true;
}

bool
lease_decide(RemoteStore *store, const RateRule *rule, const RateLaw *law,
			 const RateKey *key, int64 cost, RateIntent intent, bool in_turn,
			 RateVerdict *verdict, int64 *retry_after)
{
	int64		until;

	if (intent == RATE_FORGET)
		(void) table_drain(key, &until);
	else if (likely(table_spend(key, law, cost, intent, in_turn, verdict)))
		return true;
	if (intent == RATE_TAKE || intent == RATE_TAKE_NOW)
		return borrow_in_turn(store, rule, law, key, cost, intent, in_turn,
							  verdict, retry_after);
	return ask_store(store, rule, law, key, cost, intent, verdict,
					 retry_after);
}

/* ---- the job ---- */

/* Give back what a key has left; false: the backend is away. */
static bool
return_slice(RemoteStore *store, const char *rule, const RateLaw *law,
			 const RateKey *key)
{
	RemoteAsk	ask = {.law = law,.intent = RATE_GIVE};
	RemoteAnswer answer;
	int64		until;
	int64		left = table_drain(key, &until);
	int64		retry_after;

	if (left == 0)
		return true;
	ask.key = remote_key(rule, key, &ask.key_len);
	ask.give = Min(left, law->burst);
	ask.give_age = slice_age(store, until, rate_now());
	return remote_ask(store, &ask, &answer, &retry_after);
}

/* The names of the leased rules. */
static List *
leased_rules(void)
{
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	List	   *names = NIL;

	owner_begin(&scope);
	if (SPI_execute("SELECT name FROM mlint.rate_rule"
					" WHERE mode = 'leased' AND backend IS NOT NULL", true,
					0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.rate_rule");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *name = SPI_getvalue(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1);
		MemoryContext old = MemoryContextSwitchTo(caller);

		names = lappend(names, pstrdup(name));
		MemoryContextSwitchTo(old);
	}
	owner_end(&scope);
	return names;
}

/*
 * The law that a slice was borrowed by; false if that cannot be told, which is
 * so of a long identifier when the rule has overrides.
 */
static bool
slice_law(const RateRule *rule, const RateKey *key, RateLaw *law)
{
	const RateOverride *override = NULL;

	if (rule->overrides && key->len > RATE_KEY_TEXT)
		return false;
	if (rule->overrides)
		override = rate_override(rule, key->text, key->len, rate_now());
	*law = override && override->action == RATE_LIMIT ?
		override->law : rule->law;
	return true;
}

/*
 * mlint.rate_lease_return(): what is left of slices that are over goes back;
 * returns how many there were.
 */
Datum
mlint_rate_lease_return(PG_FUNCTION_ARGS)
{
	ListCell   *lc;
	int64		returned = 0;

	foreach(lc, leased_rules())
	{
		const char *name = lfirst(lc);
		const RateRule *rule = rate_rule_find(name, strlen(name));
		RemoteStore *store;
		RateKey    *keys;
		int			n;

		if (rule == NULL || rule->backend == NULL)
			continue;
		store = remote_store(rule->backend);
		keys = table_unused_slices(rule->slot, &n);
		for (int i = 0; i < n; i++)
		{
			RateLaw		law;
			int64		unused;

			CHECK_FOR_INTERRUPTS();
			if (remote_is_away(store, &unused))
				break;
			/* The rule may have been read again meanwhile. */
			rule = rate_rule_find(name, strlen(name));
			if (rule == NULL || rule->backend == NULL)
				break;
			if (!slice_law(rule, &keys[i], &law))
				continue;
			if (!return_slice(store, name, &law, &keys[i]))
				break;
			returned++;
		}
		pfree(keys);
	}
	PG_RETURN_INT64(returned);
}
