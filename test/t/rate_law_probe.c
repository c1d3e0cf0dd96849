/*
 * rate_law_probe.c
 *		The laws of rate limits against slow exact models.
 *
 * rate_law_probe SEED SCHEDULES runs random schedules of each algorithm:
 * rates, times, costs and intents of all sizes, clocks that jump forth and
 * back, rules that change in between. It prints what it has done, and stops
 * with status 1 and the seed at the first decision that is not as it must be.
 *
 * The models are written from what law.h promises, not from how law.c does
 * it: a bucket is a number of tokens that grows, a window a log of what was
 * admitted.
 */
#include "postgres_fe.h"

#include "ratelimit/law.h"

/* Of libc: nothing is linked but the laws. */
#undef printf

#define MAX_EVENTS	4096

typedef struct Event
{
	int64		at;
	int64		step;			/* as counted; moves when the clock goes back */
	int64		cost;
} Event;

typedef struct Model
{
	int64		last;			/* time of the last decision */
	int128		tokens;			/* of a bucket, times per */
	int64		window;			/* fixed: its number, */
	int64		taken;			/* and what was taken */
	int64		ends;			/* sliding: when nothing counts any more */
	int			nevents;
	Event		events[MAX_EVENTS];

	/* What was admitted since the clock went back, a rule changed or all. */
	int			nlog;
	Event		log[MAX_EVENTS];
} Model;

static uint64 seed;
static uint64 schedule;
static uint64 decisions;
static uint64 admitted;

static const char *const names[] = {
	"token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "slice"
};

static uint64
random_bits(void)
{
	uint64		z = (seed += UINT64CONST(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64CONST(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64CONST(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* From 0 to below n. */
static int64
below(int64 n)
{
	return (int64) (random_bits() % (uint64) n);
}

/* From low to high, all magnitudes alike, and the ends more often. */
static int64
magnitude(int64 low, int64 high)
{
	int			bits = 1;
	int64		value;

	if (below(16) == 0)
		return below(2) ? low : high;
	while (bits < 63 && (high >> bits) > 0)
		bits++;
	value = (int64) (random_bits() >> (64 - (1 + below(bits))));
	return Min(Max(value, low), high);
}

static void
fail(const RateLaw *law, const char *what, int64 now, int64 cost, int64 is,
	 int64 should_be)
{
	printf("schedule %llu: %s rate %lld per %lld burst %lld now %lld cost %lld:"
		   " %s is %lld, should be %lld\n",
		   (unsigned long long) schedule, names[law->algorithm],
		   (long long) law->rate, (long long) law->per,
		   (long long) law->burst, (long long) now, (long long) cost, what,
		   (long long) is, (long long) should_be);
	exit(1);
}

#define SAME(what, is, should_be) \
	do { \
		if ((is) != (should_be)) \
			fail(law, what, now, cost, (int64) (is), (int64) (should_be)); \
	} while (0)

#define HOLDS(what, condition)	SAME(what, !!(condition), true)

static int128
divide_up(int128 a, int128 b)
{
	return (a + b - 1) / b;
}

/* ---- the models ---- */

static int128
full_tokens(const RateLaw *law)
{
	return (int128) law->burst * law->per;
}

/*
 * A bucket: tokens come at rate / per, up to burst. When the clock goes back,
 * the time that one that is not full needs is longer, but it is never less
 * than empty.
 */
static void
model_bucket(const RateLaw *law, Model *model, int64 now, int64 cost,
			 RateIntent intent, RateVerdict *should)
{
	int128		full = full_tokens(law);
	int128		price = (int128) cost * law->per;
	int128		left;

	if (model->tokens != full)
		model->tokens += (int128) law->rate * (now - model->last);
	model->tokens = Min(Max(model->tokens, 0), full);

	if (intent == RATE_GIVE)
		model->tokens = Min(model->tokens + price, full);
	left = model->tokens;
	if (intent == RATE_GIVE)
		 /* allowed */ ;
	else if (price > left)
	{
		should->allowed = false;
		should->retry_after = (int64) divide_up(price - left, law->rate);
	}
	else
	{
		if (law->algorithm == RATE_LEAKY_BUCKET)
			should->delay = (int64) divide_up(full - left, law->rate);
		left -= price;
	}
	if (intent == RATE_TAKE_NOW && law->algorithm == RATE_LEAKY_BUCKET &&
		model->tokens < full)
	{
		should->allowed = false;
		should->delay = 0;
		should->retry_after =
			Max(should->retry_after,
				(int64) divide_up(full - model->tokens, law->rate));
		left = model->tokens;
	}
	if (intent == RATE_TAKE || intent == RATE_TAKE_NOW)
		model->tokens = left;
	should->remaining = (int64) (left / law->per);
	should->reset_at = now + (int64) divide_up(full - left, law->rate);
}

static void
model_fixed(const RateLaw *law, Model *model, int64 now, int64 cost,
			RateIntent intent, RateVerdict *should)
{
	int64		window = now / law->per;
	int128		taken;

	if (window > model->window)
		model->taken = 0;
	model->window = window;
	taken = model->taken;
	if (intent == RATE_GIVE)
		taken = model->taken = (int64) Max(taken - cost, 0);
	else if (taken + cost > law->rate)
	{
		should->allowed = false;
		should->retry_after = (window + 1) * law->per - now;
	}
	else
		taken += cost;
	if (intent == RATE_TAKE || intent == RATE_TAKE_NOW)
		if (should->allowed)
			model->taken = (int64) taken;
	should->remaining = (int64) Max(law->rate - taken, 0);
	should->reset_at = taken > 0 ? (window + 1) * law->per : now;
}

/* What was counted in a step counts so long. */
static int64
counts_until(const RateLaw *law, int64 step)
{
	return (int64) (divide_up((int128) (step + 1) * law->per, RATE_STEPS) +
					law->per);
}

static void
note(Event *events, int *n, int64 at, int64 step, int64 cost)
{
	events[*n].at = at;
	events[*n].step = step;
	events[*n].cost = cost;
	(*n)++;
}

static void
forget_event(Model *model, int i)
{
	model->nevents--;
	memmove(&model->events[i], &model->events[i + 1],
			(model->nevents - i) * sizeof(Event));
}

static void
model_sliding(const RateLaw *law, Model *model, int64 now, int64 cost,
			  RateIntent intent, RateVerdict *should)
{
	int64		step = (int64) ((int128) now * RATE_STEPS / law->per);
	int128		used = 0;
	int64		reset_at = now;

	for (int i = 0; i < model->nevents; i++)
	{
		Event	   *event = &model->events[i];

		event->step = Min(event->step, step);
		if (counts_until(law, event->step) <= now)
			forget_event(model, i--);
		else
			used += event->cost;
	}
	if (intent == RATE_GIVE)
	{
		for (int64 rest = cost; rest > 0 && model->nevents > 0;)
		{
			Event	   *event = &model->events[model->nevents - 1];
			int64		part = Min(event->cost, rest);

			event->cost -= part;
			rest -= part;
			used -= part;
			if (event->cost == 0)
				model->nevents--;
		}
	}
	else if (used + cost > law->rate)
	{
		int128		then = used;
		int			i = 0;

		should->allowed = false;
		while (then + cost > law->rate)
			then -= model->events[i++].cost;
		should->retry_after =
			counts_until(law, model->events[i - 1].step) - now;
	}
	else
	{
		used += cost;
		if (intent != RATE_PEEK)
			note(model->events, &model->nevents, now, step, cost);
		else
			reset_at = counts_until(law, step);
	}
	for (int i = 0; i < model->nevents; i++)
		reset_at = Max(reset_at, counts_until(law, model->events[i].step));
	should->remaining = (int64) Max(law->rate - used, 0);
	should->reset_at = reset_at;
}

/* ---- what must hold whatever the model says ---- */

/*
 * The promises about what is admitted, from the log alone. It is of a time in
 * which the clock only went forward and the law was the same.
 */
static void
check_log(const RateLaw *law, const Model *model, int64 now, int64 cost,
		  RateIntent intent, const RateVerdict *verdict)
{
	int128		sum = 0;
	int128		longer = 0;

	if (intent == RATE_GIVE)
		return;
	if (verdict->allowed && intent != RATE_PEEK)
	{
		for (int i = model->nlog; i-- > 0;)
		{
			const Event *event = &model->log[i];

			sum += event->cost;
			switch (law->algorithm)
			{
				case RATE_TOKEN_BUCKET:
				case RATE_LEAKY_BUCKET:
					HOLDS("at most burst + rate * t",
						  (sum - law->burst) * law->per <=
						  (int128) law->rate * (now - event->at));
					break;
				case RATE_FIXED_WINDOW:
					HOLDS("at most rate in a window",
						  event->at / law->per != now / law->per ||
						  sum <= law->rate);
					break;
				case RATE_SLIDING_WINDOW:
					HOLDS("at most rate in any window",
						  now - event->at >= law->per || sum <= law->rate);
					break;
				default:
					break;
			}
		}
	}
	if (!verdict->allowed && law->algorithm == RATE_SLIDING_WINDOW)
	{
		for (int i = 0; i < model->nevents; i++)
			if ((int128) (now - model->events[i].at) * 50 <
				(int128) law->per * 51)
				longer += model->events[i].cost;
		HOLDS("refused only if a log over 1.02 * per would",
			  longer + cost > law->rate);
	}
}

static void
same_verdicts(const RateLaw *law, int64 now, int64 cost,
			  const RateVerdict *is, const RateVerdict *should)
{
	SAME("allowed", is->allowed, should->allowed);
	SAME("remaining", is->remaining, should->remaining);
	SAME("capacity", is->capacity, law->burst);
	SAME("retry_after", is->retry_after, should->retry_after);
	SAME("reset_at", is->reset_at, should->reset_at);
	SAME("delay", is->delay, should->delay);
}

/* A refusal names the first microsecond at which this would pass. */
static void
check_retry(const RateLaw *law, const RateState *state, int64 now, int64 cost,
			RateIntent intent, int64 retry_after)
{
	int64		times[3];

	HOLDS("retry_after is more than 0", retry_after > 0);
	times[0] = now + retry_after - 1;
	times[1] = now + 1 + below(retry_after);
	times[2] = now + retry_after;
	for (int i = 0; i < 3; i++)
	{
		RateState	copy = *state;
		RateVerdict verdict;

		law_decide(law, &copy, times[i], cost, intent, &verdict);
		SAME("allowed when retried", verdict.allowed,
			 times[i] == now + retry_after);
	}
}

/* From idle_at on a state is like a fresh one, and not before. */
static void
check_idle(const RateLaw *law, const RateState *state, int64 now, int64 cost)
{
	RateState	copy = *state;
	RateState	fresh;
	RateVerdict is;
	RateVerdict should;
	int64		at = Max(state->idle_at, now);

	memset(&fresh, 0, sizeof(fresh));
	law_decide(law, &copy, at, cost, RATE_TAKE, &is);
	law_decide(law, &fresh, at, cost, RATE_TAKE, &should);
	same_verdicts(law, at, cost, &is, &should);
	SAME("idle_at then", copy.idle_at, fresh.idle_at);
	SAME("value then", copy.value, fresh.value);
	if (state->idle_at > now && (law->algorithm == RATE_FIXED_WINDOW ||
								 law->algorithm == RATE_SLIDING_WINDOW))
	{
		memset(&fresh, 0, sizeof(fresh));
		copy = *state;
		law_decide(law, &copy, state->idle_at - 1, 1, RATE_PEEK, &is);
		law_decide(law, &fresh, state->idle_at - 1, 1, RATE_PEEK, &should);
		HOLDS("something counts until then", is.remaining < should.remaining ||
			  !is.allowed);
	}
}

/* ---- schedules ---- */

static void
random_law(RateLaw *law, RateAlgorithm algorithm)
{
	do
	{
		law->algorithm = algorithm;
		law->rate = magnitude(1, PG_INT64_MAX);
		law->per = magnitude(RATE_MIN_PER, RATE_MAX_PER);
		law->burst = magnitude(1, PG_INT64_MAX);
		if (below(2))
			law->rate = 1 + below(20);
		if (below(2))
			law->burst = 1 + below(50);
		if (algorithm == RATE_SLIDING_WINDOW)
			law->rate = Min(law->rate, RATE_SLIDING_MAX);
		if (algorithm == RATE_FIXED_WINDOW || algorithm == RATE_SLIDING_WINDOW)
			law->burst = law->rate;
	} while (law_prepare(law) != NULL);
}

static int64
random_step(const RateLaw *law)
{
	int64		most = law->algorithm == RATE_TOKEN_BUCKET ||
	law->algorithm == RATE_LEAKY_BUCKET ? law->full_us : law->per;

	switch (below(8))
	{
		case 0:
			return 0;
		case 1:
			return below(3);
		case 2:
			return below(2 * law->token_us + 2);
		case 3:
			return below(law->per / RATE_STEPS * 2 + 1);
		case 4:
			return law->per;
		case 5:
			return below(most + 2);
		case 6:
			return below(most / 8 + 1);
		default:
			return magnitude(0, 4 * Max(most, law->per));
	}
}

/* Let the model go on from the state, whatever it owes. */
static void
adopt(const RateLaw *law, const RateState *state, Model *model, int64 now)
{
	model->last = now;
	model->nlog = 0;
	model->nevents = 0;
	model->tokens = full_tokens(law);
	model->window = now / law->per;
	model->taken = 0;
	if (state->idle_at <= now)
		return;
	model->tokens -= (int128) (state->idle_at - now) * law->rate - state->value;
	model->taken = state->value;
	for (int i = 0; i < state->nsegments; i++)
	{
		int64		step = now * RATE_STEPS / law->per;
		uint32		segment = state->segments[i];

		note(model->events, &model->nevents, now,
			 step - ((step - (segment >> 26)) & 63),
			 segment & RATE_SLIDING_MAX);
	}
}

static int64
taken_of(const RateState *state)
{
	int64		sum = 0;

	for (int i = 0; i < state->nsegments; i++)
		sum += state->segments[i] & RATE_SLIDING_MAX;
	return sum;
}

/*
 * A state of other steps is told by its time and its newest step, which may
 * fit by chance.
 */
static bool
fits_by_chance(const RateLaw *law, const RateState *state)
{
	int64		step = state->idle_at * RATE_STEPS / law->per - RATE_STEPS - 1;

	return state->nsegments > 0 &&
		counts_until(law, step) == state->idle_at &&
		state->segments[state->nsegments - 1] >> 26 == (step & 63);
}

/*
 * A rule changes: what was owed goes on, and never for longer than what can
 * be owed by the new one.
 */
static void
change_law(RateLaw *law, RateState *state, Model *model, int64 now)
{
	RateLaw		old = *law;
	RateState	before = *state;
	RateVerdict verdict;
	int64		cost = 1;

	random_law(law, old.algorithm);
	if (below(2))
	{
		law->per = old.per;
		if (law_prepare(law) != NULL)
			random_law(law, old.algorithm);
	}
	law_decide(law, state, now, 1, RATE_PEEK, &verdict);
	if (law->algorithm == RATE_FIXED_WINDOW)
	{
		SAME("taken", state->value, before.idle_at > now ? before.value : 0);
		HOLDS("locked out for a window", verdict.retry_after <= law->per);
	}
	else if (law->algorithm == RATE_SLIDING_WINDOW)
	{
		HOLDS("taken goes on", taken_of(state) <= taken_of(&before));
		if (before.idle_at <= now)
			SAME("what no longer counts", taken_of(state), 0);
		if (before.idle_at > now && law->per != old.per &&
			!fits_by_chance(law, &before))
			SAME("all of it", taken_of(state), taken_of(&before));
		HOLDS("locked out for a window",
			  (int128) verdict.retry_after * 50 <= (int128) law->per * 51 + 50);
	}
	else
	{
		int64		owed = Max(before.idle_at - now, 0);
		int64		owes = Max(state->idle_at - now, 0);

		HOLDS("owed goes on", owes == owed || owes == law->full_us ||
			  owes == law->full_us + 1);
		HOLDS("no more than full", owes <= Min(owed, law->full_us + 1));
		HOLDS("no less than was owed", owes >= Min(owed, law->full_us));
	}
	adopt(law, state, model, now);
}

static void
run_schedule(RateAlgorithm algorithm)
{
	static Model model;
	RateLaw		law_of;
	RateLaw    *law = &law_of;
	RateState	state;
	bool		forth_only = below(2);
	bool		changes = below(4) == 0;
	int			steps = 20 + below(400);
	int64		now = magnitude(0, RATE_MAX_TIME / 2);

	random_law(law, algorithm);
	memset(&state, 0, sizeof(state));
	if (below(8) == 0)
		law_exhaust(law, &state, now);
	adopt(law, &state, &model, now);

	for (int i = 0; i < steps; i++)
	{
		RateVerdict is;
		RateVerdict should = {.allowed = true,.capacity = law->burst};
		RateIntent	intent = RATE_TAKE;
		int64		cost = 1;
		int64		ahead = random_step(law);

		if (now > RATE_MAX_TIME - ahead)
			break;
		if (!forth_only && below(10) == 0)
		{
			now = Max(now - ahead, 0);
			model.nlog = 0;
		}
		else
			now += ahead;
		if (changes && below(20) == 0)
		{
			change_law(law, &state, &model, now);
			should.capacity = law->burst;
		}

		if (below(2))
			cost = magnitude(1, law->burst);
		switch (below(16))
		{
			case 0:
				intent = RATE_GIVE;
				model.nlog = 0;
				break;
			case 1:
			case 2:
				intent = RATE_PEEK;
				break;
			case 3:
			case 4:
				intent = RATE_TAKE_NOW;
				break;
		}
		if (below(200) == 0)
		{
			law_decide(law, &state, now, cost, RATE_FORGET, &is);
			HOLDS("all is there", is.allowed && is.remaining == law->burst &&
				  is.reset_at == now && state.idle_at == 0);
			adopt(law, &state, &model, now);
		}

		if (algorithm == RATE_FIXED_WINDOW)
			model_fixed(law, &model, now, cost, intent, &should);
		else if (algorithm == RATE_SLIDING_WINDOW)
			model_sliding(law, &model, now, cost, intent, &should);
		else
			model_bucket(law, &model, now, cost, intent, &should);
		model.last = now;

		law_decide(law, &state, now, cost, intent, &is);
		same_verdicts(law, now, cost, &is, &should);
		decisions++;
		if (is.allowed && (intent == RATE_TAKE || intent == RATE_TAKE_NOW))
		{
			admitted++;
			note(model.log, &model.nlog, now, 0, cost);
		}
		if (forth_only && !changes)
			check_log(law, &model, now, cost, intent, &is);
		if (!is.allowed)
			check_retry(law, &state, now, cost, intent, is.retry_after);
		check_idle(law, &state, now, cost);
	}
}

/* ---- laws that cannot be, and slices ---- */

static void
check_prepare(RateAlgorithm algorithm, int64 rate, int64 per, int64 burst,
			  const char *why)
{
	RateLaw		law = {algorithm, rate, per, burst};
	const char *is = law_prepare(&law);

	if (why == NULL ? is != NULL : is == NULL || strstr(is, why) == NULL)
	{
		printf("%s rate %lld per %lld burst %lld: \"%s\", should be \"%s\"\n",
			   names[algorithm], (long long) rate, (long long) per,
			   (long long) burst, is ? is : "", why ? why : "");
		exit(1);
	}
}

static void
check_laws(void)
{
	const int64 least = PG_INT64_MIN;
	const int64 most = PG_INT64_MAX;

	for (RateAlgorithm a = RATE_TOKEN_BUCKET; a <= RATE_SLICE; a++)
	{
		bool		window = a == RATE_FIXED_WINDOW ||
		a == RATE_SLIDING_WINDOW;

		check_prepare(a, 0, 1000000, 1, "rate must be greater");
		check_prepare(a, -1, 1000000, 1, "rate must be greater");
		check_prepare(a, least, least, least, "rate must be greater");
		check_prepare(a, 1, RATE_MIN_PER - 1, 1, "a millisecond");
		check_prepare(a, 1, least, 1, "a millisecond");
		check_prepare(a, 1, RATE_MAX_PER + 1, 1, "3660 days");
		check_prepare(a, 1, most, 1, "3660 days");
		check_prepare(a, 1, 1000000, 0, "burst must be greater");
		check_prepare(a, 1, 1000000, least, "burst must be greater");
		check_prepare(a, 2, 1000000, 3, window ? "burst is for" : NULL);
		check_prepare(a, 1, RATE_MAX_PER, most,
					  window ? "burst is for" : "1000 years");
		check_prepare(a, most, RATE_MAX_PER, most,
					  a == RATE_SLIDING_WINDOW ? "use token_bucket" : NULL);
		check_prepare(a, most, RATE_MIN_PER, most,
					  a == RATE_SLIDING_WINDOW ? "use token_bucket" : NULL);
	}
	check_prepare(RATE_SLIDING_WINDOW, RATE_SLIDING_MAX, 1000000,
				  RATE_SLIDING_MAX, NULL);
	check_prepare(RATE_SLIDING_WINDOW, RATE_SLIDING_MAX + 1, 1000000,
				  RATE_SLIDING_MAX + 1, "use token_bucket");
}

static void
check_slice(void)
{
	RateLaw		law_of = {RATE_SLICE, 10, 1000000, 10};
	const RateLaw *law = &law_of;
	RateState	state = {0};
	RateVerdict is;
	int64		now = 1000000;
	int64		cost = 3;

	law_prepare(&law_of);
	law_decide(law, &state, now, cost, RATE_TAKE, &is);
	HOLDS("nothing was lent", !is.allowed && is.remaining == 0);
	law_lend(&state, now, 7, now + 100);
	for (int i = 0; i < 3; i++)
	{
		law_decide(law, &state, now + i, cost, RATE_TAKE, &is);
		SAME("allowed of a slice", is.allowed, i < 2);
		SAME("left of a slice", is.remaining, i == 0 ? 4 : 1);
	}
	law_decide(law, &state, now, cost, RATE_GIVE, &is);
	SAME("left when given back", is.remaining, 4);
	law_lend(&state, now, 5, now + 200);
	law_decide(law, &state, now + 199, cost, RATE_PEEK, &is);
	SAME("left when lent more", is.remaining, 6);
	law_decide(law, &state, now + 200, cost, RATE_TAKE, &is);
	HOLDS("a slice ends", !is.allowed && is.remaining == 0);
	law_lend(&state, now, PG_INT64_MAX, now + 500);
	law_lend(&state, now, PG_INT64_MAX, now + 500);
	law_decide(law, &state, now, cost, RATE_PEEK, &is);
	SAME("as much as there can be", is.remaining, PG_INT64_MAX - cost);
}

int
main(int argc, char **argv)
{
	uint64		first = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
	uint64		schedules = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000;

	check_laws();
	check_slice();
	for (RateAlgorithm a = RATE_TOKEN_BUCKET; a < RATE_SLICE; a++)
	{
		decisions = admitted = 0;
		for (uint64 i = 0; i < schedules; i++)
		{
			seed = schedule = first + i;
			run_schedule(a);
		}
		printf("%s: %llu of %llu admitted in %llu schedules\n", names[a],
			   (unsigned long long) admitted, (unsigned long long) decisions,
			   (unsigned long long) schedules);
	}
	return 0;
}
