/*
 * table.c
 *		The shared table of keys; see table.h.
 *
 * A key is a slot of 88 bytes, found through chains that begin in an array of
 * heads. Keys are spread over partitions by their hash; each partition has its
 * own heads and its lock, under which a key's state, its counters and its
 * place in the chain change. The clock is read under the lock, so that it
 * never runs behind a state unless it really went back. A decision about one
 * key that is known touches nothing but the lock, a head and the slot.
 *
 * A sliding window has two segments in its slot and may take up to three
 * further slots for more. If none is free, its oldest segments are merged
 * into the later of them, which makes it stricter, never laxer.
 *
 * Free slots are a list. When it is empty, whoever needs one sweeps: goes over
 * the heads by a clock hand that all processes share, and frees the keys that
 * are idle. Some are freed at once, so that it is not done for each newcomer.
 * A round that found little is followed by a pause, during which newcomers
 * share the key of their rule ("the crowd") without looking: a full table
 * must not cost more than one that is not.
 *
 * What keys count is in their slots; a rule's own counters (rule_slot.c) are
 * what keys that are gone, and the crowd, have left.
 *
 * Order of locks: rules, partitions by number, crowds by number. The spinlock
 * of the free list is held for a few instructions, with no other inside.
 * Nothing raises while a partition or a crowd is locked.
 */
#include "postgres.h"

#include <sys/time.h>

#include "common/crypto.h"
#include "common/hashfn.h"
#include "common/shmem.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "ratelimit/rule_slot.h"
#include "ratelimit/save.h"
#include "storage/ipc.h"
#include "storage/spin.h"
#include "utils/guc.h"

#define NONE			PG_UINT32_MAX

#define PARTITIONS		128
#define CROWD_LOCKS		16
#define CROWD_LOCK		PARTITIONS
#define LOCKS			(PARTITIONS + CROWD_LOCKS)

/* Of sweeping: heads at a time under a lock, and for one newcomer. */
#define CHUNK			64
#define SWEEP_HEADS		131072
#define SWEEP_KEYS		64

/* Between sweeps that find little, in microseconds. */
#define MIN_PAUSE		INT64CONST(10000)
#define MAX_PAUSE		INT64CONST(1000000)

/* Of going over all: heads at a time under a lock. */
#define PART_HEADS		4096

#define INLINE_SEGMENTS	2
#define MORE_SEGMENTS	21
#define MORE_SLOTS		3

#define ALGORITHM		0x07
#define WAITING			0x08

typedef struct Slot
{
	uint32		next;			/* in the chain, or the list of free slots */
	uint32		hash;
	uint16		rule;
	uint8		len;
	uint8		flags;			/* the algorithm, and WAITING */
	uint32		more;			/* sliding window: a slot with segments */
	int64		idle_at;
	union
	{
		int64		value;
		uint32		segments[INLINE_SEGMENTS];	/* 0: there are no more */
	}			u;
	uint64		allowed;
	uint64		refused;
	char text[	RATE_KEY_TEXT];
} Slot;

/* The same memory, when it holds what a sliding window has no room for. */
typedef struct MoreSlot
{
	uint32		more;
	uint32		segments[MORE_SEGMENTS];
} MoreSlot;

StaticAssertDecl(sizeof(Slot) == 88, "the memory of a key is documented");
StaticAssertDecl(sizeof(MoreSlot) == sizeof(Slot), "one pool for both");
StaticAssertDecl(INLINE_SEGMENTS + MORE_SLOTS * MORE_SEGMENTS >=
				 RATE_MAX_SEGMENTS, "a sliding window must fit");

typedef struct Table
{
	uint64		seed;
	uint32		nslots;
	uint32		nheads;			/* of each partition */
	int64		exhausted_at;	/* keys that are not here were exhausted then;
								 * 0: they are fresh */
	pg_atomic_uint64 test_clock;	/* 0: the real one */

	/* Free slots. */
	slock_t		mutex;
	uint32		free;
	uint32		unused;			/* those from here on never were used */

	/* Sweeping. */
	pg_atomic_uint64 hand;		/* chunks visited */
	pg_atomic_uint64 pause_until;
} Table;

static Table *table = NULL;
static uint32 *heads;
static Slot *slots;
static LWLockPadded *locks;

static int	max_keys = 100000;

typedef enum CrashStart
{
	START_FULL,
	START_EMPTY
} CrashStart;

static const struct config_enum_entry crash_starts[] = {
	{"full", START_FULL, false},
	{"empty", START_EMPTY, false},
	{NULL, 0, false}
};
static int	crash_start = START_FULL;

int64
rate_now(void)
{
	struct timeval tv;

#ifdef MLINT_INJECTION_POINTS
	uint64		test = pg_atomic_read_u64(&table->test_clock);

	if (test != 0)
		return (int64) test;
#endif
	gettimeofday(&tv, NULL);
	return (int64) tv.tv_sec * 1000000 + tv.tv_usec;
}

#ifdef MLINT_INJECTION_POINTS
PG_FUNCTION_INFO_V1(mlint_rate_test_clock);

/* Set the time for all processes; null: the real one again. */
Datum
mlint_rate_test_clock(PG_FUNCTION_ARGS)
{
	int64		now = PG_ARGISNULL(0) ? 0 : PG_GETARG_INT64(0);

	if (now < 0 || now > RATE_MAX_TIME)
		elog(ERROR, "no such time");
	pg_atomic_write_u64(&table->test_clock, (uint64) now);
	PG_RETURN_VOID();
}
#endif

/* ---- keys ---- */

static inline uint32
hash_text(int rule_slot, const char *start, Size len)
{
	return (uint32) hash_bytes_extended((const unsigned char *) start,
										(int) len, table->seed + rule_slot);
}

void
rate_key(RateKey *key, int rule_slot, const char *identifier, Size len)
{
	key->rule = (uint16) rule_slot;
	if (likely(len <= RATE_KEY_TEXT))
	{
		key->len = (uint8) len;
		memset(key->text, 0, sizeof(key->text));
		memcpy(key->text, identifier, len);
	}
	else
	{
		uint8		digest[32];
		const int	start = RATE_KEY_TEXT - 16;

		crypto_sha256(identifier, len, digest);
		memcpy(key->text, identifier, start);
		memcpy(&key->text[start], digest, 16);
		key->len = 255;
		len = RATE_KEY_TEXT;
	}
	key->hash = hash_text(rule_slot, key->text, len);
}

static inline int
partition_of(uint32 hash)
{
	return hash & (PARTITIONS - 1);
}

static inline LWLock *
partition_lock(int partition)
{
	return &locks[partition].lock;
}

static inline LWLock *
crowd_lock(int rule_slot)
{
	return &locks[CROWD_LOCK + rule_slot % CROWD_LOCKS].lock;
}

static inline uint32 *
head_of(uint32 hash)
{
	return &heads[(uint64) partition_of(hash) * table->nheads +
				  (((uint64) hash * table->nheads) >> 32)];
}

/* The key's slot, or NONE. The partition is locked. */
static inline uint32
find(const RateKey *key)
{
	uint32		at = *head_of(key->hash);

	while (at != NONE)
	{
		const Slot *slot = &slots[at];

		if (slot->hash == key->hash && slot->rule == key->rule &&
			slot->len == key->len &&
			memcmp(slot->text, key->text, RATE_KEY_TEXT) == 0)
			break;
		at = slot->next;
	}
	return at;
}

/*
 * To go over all keys: a part at a time, which is locked meanwhile.
 *
 * for (; part_lock(&part, LW_SHARED); part_unlock(&part))
 *     ... heads from part.first to before part.end ...
 */
typedef struct Part
{
	int			partition;
	uint32		done;			/* heads of the partition */
	uint32	   *first;
	uint32	   *end;
} Part;

static bool
part_lock(Part *part, LWLockMode mode)
{
	uint32	   *first = &heads[(uint64) part->partition * table->nheads];

	if (part->partition == PARTITIONS)
		return false;
	part->first = first + part->done;
	part->end = first + Min(part->done + PART_HEADS, table->nheads);
	LWLockAcquire(partition_lock(part->partition), mode);
	return true;
}

static void
part_unlock(Part *part)
{
	LWLockRelease(partition_lock(part->partition));
	part->done += part->end - part->first;
	if (part->done == table->nheads)
	{
		part->partition++;
		part->done = 0;
	}
}

/* ---- free slots ---- */

static uint32
pop_slot(void)
{
	uint32		at;

	SpinLockAcquire(&table->mutex);
	at = table->free;
	if (at != NONE)
		table->free = slots[at].next;
	else if (table->unused < table->nslots)
		at = table->unused++;
	SpinLockRelease(&table->mutex);
	return at;
}

static void
push_slot(uint32 at)
{
	SpinLockAcquire(&table->mutex);
	slots[at].next = table->free;
	table->free = at;
	SpinLockRelease(&table->mutex);
}

/* Without the lock: may be wrong by the time it is used. */
static inline bool
any_slot_free(void)
{
	return table->free != NONE || table->unused < table->nslots;
}

/* Free what a sliding window has beyond its slot. */
static void
free_more(Slot *slot)
{
	while (slot->more != NONE)
	{
		uint32		at = slot->more;

		slot->more = ((MoreSlot *) &slots[at])->more;
		push_slot(at);
	}
}

/*
 * Take a key out of its chain; its slot is the caller's then. What it has
 * counted stays with its rule.
 */
static void
unlink_key(uint32 *link)
{
	Slot	   *slot = &slots[*link];
	RuleSlot   *rule = slot_of_rule(slot->rule);

	*link = slot->next;
	free_more(slot);
	pg_atomic_fetch_add_u64(&rule->allowed, slot->allowed);
	pg_atomic_fetch_add_u64(&rule->refused, slot->refused);
}

static uint32 *
link_to(const RateKey *key, uint32 at)
{
	uint32	   *link = head_of(key->hash);

	while (*link != at)
		link = &slots[*link].next;
	return link;
}

static void
key_of(const Slot *slot, RateKey *key)
{
	key->hash = slot->hash;
	key->rule = slot->rule;
	key->len = slot->len;
	memcpy(key->text, slot->text, RATE_KEY_TEXT);
}

/* Put a key into a slot. The partition is locked. */
static void
link_key(uint32 at, const RateKey *key, RateAlgorithm algorithm)
{
	Slot	   *slot = &slots[at];
	uint32	   *head = head_of(key->hash);

	slot->hash = key->hash;
	slot->rule = key->rule;
	slot->len = key->len;
	slot->flags = (uint8) algorithm;
	slot->more = NONE;
	slot->idle_at = 0;
	slot->u.value = 0;
	slot->allowed = 0;
	slot->refused = 0;
	memcpy(slot->text, key->text, RATE_KEY_TEXT);
	slot->next = *head;
	*head = at;
}

/* ---- states ---- */

/* What is known of a key that is not here. */
static void
unknown_state(const RateAsk *ask, RateState *state)
{
	state->idle_at = 0;
	state->value = 0;
	state->nsegments = 0;
	if (table->exhausted_at != 0 && !slot_of_rule(ask->key.rule)->forgiven)
		law_exhaust(ask->law, state, table->exhausted_at);
}

static void
load_segments(const Slot *slot, RateState *state)
{
	const uint32 *from = slot->u.segments;
	int			room = INLINE_SEGMENTS;
	uint32		more = slot->more;

	state->value = 0;
	state->nsegments = 0;
	for (;;)
	{
		for (int i = 0; i < room; i++)
		{
			if (from[i] == 0)
				return;
			state->segments[state->nsegments++] = from[i];
		}
		if (more == NONE)
			return;
		from = ((MoreSlot *) &slots[more])->segments;
		more = ((MoreSlot *) &slots[more])->more;
		room = MORE_SEGMENTS;
	}
}

/* Merge the oldest segments into one, so that no more than room are left. */
static void
merge_segments(RateState *state, int room)
{
	int			too_many = state->nsegments - room;
	uint32		count = 0;

	for (int i = 0; i < too_many; i++)
		count += state->segments[i] & RATE_SLIDING_MAX;
	memmove(state->segments, state->segments + too_many,
			room * sizeof(uint32));
	state->segments[0] += count;
	state->nsegments = room;
}

static void
store_segments(Slot *slot, RateState *state)
{
	uint32	   *link = &slot->more;
	int			at;

	/* As many slots as are needed, or as there are. */
	for (at = INLINE_SEGMENTS; at < state->nsegments; at += MORE_SEGMENTS)
	{
		if (*link == NONE)
		{
			uint32		got = pop_slot();

			if (got == NONE)
			{
				merge_segments(state, at);
				break;
			}
			((MoreSlot *) &slots[got])->more = NONE;
			*link = got;
		}
		link = &((MoreSlot *) &slots[*link])->more;
	}
	while (*link != NONE)
	{
		uint32		surplus = *link;

		*link = ((MoreSlot *) &slots[surplus])->more;
		push_slot(surplus);
	}

	for (int i = 0; i < INLINE_SEGMENTS; i++)
		slot->u.segments[i] = i < state->nsegments ? state->segments[i] : 0;
	at = INLINE_SEGMENTS;
	for (uint32 more = slot->more; more != NONE;)
	{
		MoreSlot   *to = (MoreSlot *) &slots[more];

		for (int i = 0; i < MORE_SEGMENTS; i++, at++)
			to->segments[i] = at < state->nsegments ? state->segments[at] : 0;
		more = to->more;
	}
}

/* A key of another algorithm, which its rule had before, is a fresh one. */
static inline void
load_state(Slot *slot, const RateLaw *law, RateState *state)
{
	if (unlikely((slot->flags & ALGORITHM) != law->algorithm))
	{
		free_more(slot);
		slot->flags = (slot->flags & ~ALGORITHM) | law->algorithm;
		slot->idle_at = 0;
		slot->u.value = 0;
	}
	state->idle_at = slot->idle_at;
	if (law->algorithm == RATE_SLIDING_WINDOW)
		load_segments(slot, state);
	else
	{
		state->value = slot->u.value;
		state->nsegments = 0;
	}
}

static void
raise_longest(RuleSlot *rule, int64 debt)
{
	uint64		longest = pg_atomic_read_u64(&rule->longest);

	while (debt > (int64) longest &&
		   !pg_atomic_compare_exchange_u64(&rule->longest, &longest,
										   (uint64) debt))
		 /* longest has been read again */ ;
}

static inline void
store_state(Slot *slot, const RateLaw *law, RateState *state, int64 now)
{
	RuleSlot   *rule = slot_of_rule(slot->rule);
	int64		debt = state->idle_at - now;

	slot->idle_at = state->idle_at;
	if (law->algorithm == RATE_SLIDING_WINDOW)
		store_segments(slot, state);
	else
		slot->u.value = state->value;
	if (unlikely(debt > (int64) pg_atomic_read_u64(&rule->longest)))
		raise_longest(rule, debt);
}

/* ---- making room ---- */

/*
 * May this key be forgotten? One that owes for longer than any of its rule
 * ever did when it was used is left from before the clock went back: it owes
 * as long as that from now.
 */
static inline bool
may_free(Slot *slot, int64 now)
{
	int64		longest;

	if (slot->flags & WAITING)
		return false;
	if (slot->idle_at <= now)
		return true;
	longest = (int64) pg_atomic_read_u64(&slot_of_rule(slot->rule)->longest);
	if (unlikely(slot->idle_at - now > longest))
	{
		slot->idle_at = now + longest;
		if ((slot->flags & ALGORITHM) <= RATE_LEAKY_BUCKET)
			slot->u.value = 0;
	}
	return false;
}

/*
 * Free what is idle in a chunk of heads. Returns how many keys went; of the
 * others, the soonest that will be idle goes to *next_idle.
 */
static int
sweep_chunk(uint32 chunk, uint32 chunks_each, uint32 *spare, int *nspare,
			int want, int64 *next_idle)
{
	int			partition = chunk / chunks_each;
	uint32		first = (chunk % chunks_each) * CHUNK;
	uint32		last = Min(first + CHUNK, table->nheads);
	int			freed = 0;
	int64		now;

	LWLockAcquire(partition_lock(partition), LW_EXCLUSIVE);
	now = rate_now();
	for (uint32 i = first; i < last; i++)
	{
		uint32	   *link = &heads[(uint64) partition * table->nheads + i];

		while (*link != NONE)
		{
			uint32		at = *link;
			Slot	   *slot = &slots[at];

			if (!may_free(slot, now))
			{
				*next_idle = Min(*next_idle, slot->idle_at);
				link = &slot->next;
				continue;
			}
			pg_atomic_fetch_add_u64(&slot_of_rule(slot->rule)->evictions, 1);
			unlink_key(link);
			freed++;
			if (*nspare < want)
				spare[(*nspare)++] = at;
			else
				push_slot(at);
		}
	}
	LWLockRelease(partition_lock(partition));
	return freed;
}

/*
 * Has a sweep found so little, not long ago, that another would not be worth
 * it? Not if it is long only because the clock went back.
 */
static bool
sweep_pauses(int64 now)
{
	int64		until = (int64) pg_atomic_read_u64(&table->pause_until);

	return now < until && until - now <= MAX_PAUSE;
}

/*
 * Find `want` slots by making idle keys go; fewer if there are none. After a
 * sweep that has found less than one in 64 heads there is a pause, such that
 * sweeping costs a few percent of one processor at most; and if it has found
 * none anywhere, until one is idle, but not for too long, since others may
 * have come meanwhile.
 */
static void
sweep(uint32 *spare, int *nspare, int want)
{
	uint32		chunks_each = (table->nheads + CHUNK - 1) / CHUNK;
	uint32		chunks = chunks_each * PARTITIONS;
	uint32		most = Min(chunks, SWEEP_HEADS / CHUNK);
	int64		next_idle = PG_INT64_MAX;
	int64		pause;
	int64		now;
	uint32		visited;
	int			freed = 0;

	for (visited = 0; visited < most && freed < SWEEP_KEYS; visited++)
	{
		uint32		chunk;

		if (sweep_pauses(rate_now()))
			return;
		chunk = pg_atomic_fetch_add_u64(&table->hand, 1) % chunks;
		freed += sweep_chunk(chunk, chunks_each, spare, nspare, want,
							 &next_idle);
	}
	if (freed >= visited)
		return;
	now = rate_now();
	pause = Max((int64) visited * CHUNK / 2, MIN_PAUSE);
	if (freed == 0 && visited == chunks)
		pause = Max(pause, next_idle - now);
	pg_atomic_write_u64(&table->pause_until,
						(uint64) (now + Min(pause, MAX_PAUSE)));
}

/* ---- several keys at once ---- */

typedef struct Places
{
	int			n;
	int			npartitions;
	int			partitions[RATE_MAX_TOGETHER];	/* ascending */
	uint32		slots[RATE_MAX_TOGETHER];
} Places;

static void
add_sorted(int *numbers, int *n, int number)
{
	int			i = *n;

	for (int j = 0; j < *n; j++)
		if (numbers[j] == number)
			return;
	for (; i > 0 && numbers[i - 1] > number; i--)
		numbers[i] = numbers[i - 1];
	numbers[i] = number;
	(*n)++;
}

static void
lock_all(Places *places, const RateAsk *asks)
{
	for (int i = 0; i < places->npartitions; i++)
		LWLockAcquire(partition_lock(places->partitions[i]), LW_EXCLUSIVE);
	for (int i = 0; i < places->n; i++)
		places->slots[i] = find(&asks[i].key);
}

static void
unlock_all(Places *places)
{
	for (int i = places->npartitions; i-- > 0;)
		LWLockRelease(partition_lock(places->partitions[i]));
}

/* Taking is a check; looking and giving back are not. */
static inline bool
counts(RateIntent intent)
{
	return intent == RATE_TAKE || intent == RATE_TAKE_NOW;
}

/*
 * Does an ask with this intent make a key that is not there? A slice has to
 * be lent first. To forget one that counts as exhausted, one that is not has
 * to be there.
 */
static inline bool
makes_key(const RateAsk *ask, RateIntent intent)
{
	if (ask->law->algorithm == RATE_SLICE)
		return false;
	return counts(intent) ||
		(intent == RATE_FORGET && table->exhausted_at != 0);
}

/*
 * Lock the partitions of all asks and find their keys, making those that are
 * to be made if there is room.
 */
static void
lock_places(Places *places, const RateAsk *asks, int n, bool make[])
{
	uint32		spare[RATE_MAX_TOGETHER];
	int			nspare = 0;

	places->n = n;
	places->npartitions = 0;
	for (int i = 0; i < n; i++)
		add_sorted(places->partitions, &places->npartitions,
				   partition_of(asks[i].key.hash));

	for (bool swept = false;; swept = true)
	{
		int			want = 0;
		uint32		at;

		lock_all(places, asks);
		for (int i = 0; i < n; i++)
			want += places->slots[i] == NONE && make[i];
		while (nspare < want && (at = pop_slot()) != NONE)
			spare[nspare++] = at;
		if (nspare >= want || swept)
			break;
		unlock_all(places);
		sweep(spare, &nspare, want);
	}

	for (int i = 0; i < n; i++)
		if (places->slots[i] == NONE && make[i] && nspare > 0)
		{
			RateState	state;
			uint32		at = spare[--nspare];

			link_key(at, &asks[i].key, asks[i].law->algorithm);
			places->slots[i] = at;
			if (table->exhausted_at != 0)
			{
				unknown_state(&asks[i], &state);
				store_state(&slots[at], asks[i].law, &state, rate_now());
			}
		}
	while (nspare > 0)
		push_slot(spare[--nspare]);
}

/* ---- decisions ---- */

/*
 * One decision on a state. Whoever is not in turn is refused, and told what
 * there would be: remaining is what the law has, even if it is the cost.
 */
static inline void
decide(const RateAsk *ask, RateState *state, int64 now, RateIntent intent,
	   bool blocked, RateVerdict *verdict)
{
	if (likely(!blocked))
	{
		law_decide(ask->law, state, now, ask->cost, intent, verdict);
		return;
	}
	law_decide(ask->law, state, now, ask->cost, RATE_PEEK, verdict);
	if (!verdict->allowed)
		return;
	verdict->allowed = false;
	verdict->remaining += ask->cost;
	verdict->retry_after = Max(Max(verdict->delay, ask->law->token_us), 1);
	verdict->delay = 0;
}

static inline bool
is_blocked(const Slot *slot, RateIntent intent, bool in_turn)
{
	return (slot->flags & WAITING) && !in_turn &&
		intent != RATE_GIVE && intent != RATE_FORGET;
}

/* A key that is forgotten makes room, unless somebody waits for it. */
static void
give_up_key(const RateKey *key, uint32 at)
{
	if (slots[at].flags & WAITING)
		return;
	unlink_key(link_to(key, at));
	push_slot(at);
}

/* Decide on one key that is there already. Returns false if it is not. */
static inline bool
decide_known(const RateAsk *ask, RateIntent intent, bool in_turn,
			 RateVerdict *verdict)
{
	LWLock	   *lock = partition_lock(partition_of(ask->key.hash));
	RateState	state;
	Slot	   *slot;
	uint32		at;
	int64		now;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	at = find(&ask->key);
	if (unlikely(at == NONE))
	{
		LWLockRelease(lock);
		return false;
	}
	slot = &slots[at];
	now = rate_now();
	load_state(slot, ask->law, &state);
	decide(ask, &state, now, intent, is_blocked(slot, intent, in_turn),
		   verdict);
	store_state(slot, ask->law, &state, now);
	if (likely(counts(intent)))
	{
		if (verdict->allowed)
			slot->allowed++;
		else
			slot->refused++;
	}
	else if (intent == RATE_FORGET && table->exhausted_at == 0)
		give_up_key(&ask->key, at);
	LWLockRelease(lock);
	return true;
}

/*
 * The general case. Decisions are made on copies, so that nothing has
 * happened if one is refused. Whoever is refused is stored all the same: the
 * law may have put right what was left from before the clock went back.
 */
static bool
decide_all(const RateAsk *asks, int n, RateIntent intent, bool in_turn,
		   RateVerdict *verdicts, bool *crowded)
{
	RateState	states[RATE_MAX_TOGETHER];
	bool		make[RATE_MAX_TOGETHER];
	bool		in_crowd[RATE_MAX_TOGETHER];
	int			crowds[RATE_MAX_TOGETHER];
	int			ncrowds = 0;
	bool		allowed = true;
	bool		full = false;
	Places		places;
	int64		now;

	/* Would whoever is not known and only looks be in the crowd? */
	if (intent == RATE_PEEK)
		full = !any_slot_free() && sweep_pauses(rate_now());
	for (int i = 0; i < n; i++)
		make[i] = makes_key(&asks[i], intent);
	lock_places(&places, asks, n, make);
	for (int i = 0; i < n; i++)
	{
		in_crowd[i] = places.slots[i] == NONE &&
			asks[i].law->algorithm != RATE_SLICE && (counts(intent) || full);
		if (in_crowd[i])
			add_sorted(crowds, &ncrowds, asks[i].key.rule % CROWD_LOCKS);
	}
	for (int i = 0; i < ncrowds; i++)
		/* cppcheck-suppress uninitvar; add_sorted() has filled it */
		LWLockAcquire(&locks[CROWD_LOCK + crowds[i]].lock, LW_EXCLUSIVE);

	now = rate_now();
	for (int i = 0; i < n; i++)
	{
		const RateAsk *ask = &asks[i];
		RuleSlot   *rule = slot_of_rule(ask->key.rule);
		bool		blocked = false;

		if (places.slots[i] != NONE)
		{
			Slot	   *slot = &slots[places.slots[i]];

			blocked = is_blocked(slot, intent, in_turn);
			load_state(slot, ask->law, &states[i]);
		}
		else if (in_crowd[i] && rule->algorithm == (int) ask->law->algorithm)
			states[i] = rule->crowd;
		else
			unknown_state(ask, &states[i]);
		decide(ask, &states[i], now, intent, blocked, &verdicts[i]);
		allowed = allowed && verdicts[i].allowed;
	}

	for (int i = 0; i < n; i++)
	{
		const RateAsk *ask = &asks[i];
		RuleSlot   *rule = slot_of_rule(ask->key.rule);
		bool		stands = allowed || !verdicts[i].allowed;

		if (places.slots[i] != NONE)
		{
			Slot	   *slot = &slots[places.slots[i]];

			if (stands)
				store_state(slot, ask->law, &states[i], now);
			if (counts(intent))
				*(allowed ? &slot->allowed : &slot->refused) += 1;
			else if (intent == RATE_FORGET && table->exhausted_at == 0)
				give_up_key(&ask->key, places.slots[i]);
		}
		else if (in_crowd[i])
		{
			if (stands)
			{
				rule->algorithm = ask->law->algorithm;
				rule->crowd = states[i];
			}
			if (!counts(intent))
				continue;
			pg_atomic_fetch_add_u64(allowed ? &rule->allowed : &rule->refused,
									1);
			pg_atomic_fetch_add_u64(&rule->crowded, 1);
		}
	}
	for (int i = ncrowds; i-- > 0;)
		LWLockRelease(&locks[CROWD_LOCK + crowds[i]].lock);
	unlock_all(&places);
	if (crowded != NULL)
		*crowded = ncrowds > 0;
	return allowed;
}

bool
table_decide(const RateAsk *asks, int n, RateIntent intent, bool in_turn,
			 RateVerdict *verdicts, bool *crowded)
{
	/* Windows that slide may need more slots; make room for them before. */
	for (int i = 0; i < n; i++)
		if (asks[i].law->algorithm == RATE_SLIDING_WINDOW && !any_slot_free())
		{
			int			none = 0;

			sweep(NULL, &none, 0);
		}

	if (crowded != NULL)
		*crowded = false;
	/* A key that was given back to may be idle before its time. */
	if (unlikely(intent == RATE_GIVE))
		pg_atomic_write_u64(&table->pause_until, 0);
	if (n == 1 && likely(decide_known(asks, intent, in_turn, verdicts)))
		return verdicts->allowed;
	return decide_all(asks, n, intent, in_turn, verdicts, crowded);
}

void
table_set_waiting(const RateKey *key, bool waiting)
{
	LWLock	   *lock = partition_lock(partition_of(key->hash));
	uint32		at;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	at = find(key);
	if (at != NONE && waiting)
		slots[at].flags |= WAITING;
	else if (at != NONE)
		slots[at].flags &= ~WAITING;
	LWLockRelease(lock);
}

bool
table_lend(const RateKey *key, int64 granted, int64 until)
{
	RateLaw		law = {.algorithm = RATE_SLICE};
	RateAsk		ask = {.key = *key,.law = &law};
	bool		make = true;
	Places		places;

	lock_places(&places, &ask, 1, &make);
	if (places.slots[0] != NONE)
	{
		Slot	   *slot = &slots[places.slots[0]];
		RateState	state;
		int64		now = rate_now();

		load_state(slot, &law, &state);
		law_lend(&state, now, granted, until);
		store_state(slot, &law, &state, now);
	}
	unlock_all(&places);
	return places.slots[0] != NONE;
}

/* ---- limits that are decided elsewhere ---- */

/*
 * Lock the partition of a key and find it, or make it if there is room; NULL
 * if it is not there. places must be unlocked in any case.
 */
static Slot *
lock_key(Places *places, const RateKey *key, bool make)
{
	RateLaw		law = {.algorithm = RATE_SLICE};
	RateAsk		ask = {.key = *key,.law = &law};

	lock_places(places, &ask, 1, &make);
	return places->slots[0] == NONE ? NULL : &slots[places->slots[0]];
}

bool
table_spend(const RateKey *key, const RateLaw *law, int64 cost,
			RateIntent intent, bool in_turn, RateVerdict *verdict)
{
	LWLock	   *lock = partition_lock(partition_of(key->hash));
	uint32		at;
	Slot	   *slot;
	int64		now;
	int64		left;
	bool		blocked;
	bool		decided = true;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	at = find(key);
	if (at == NONE)
	{
		LWLockRelease(lock);
		return false;
	}
	slot = &slots[at];
	now = rate_now();
	blocked = is_blocked(slot, intent, in_turn);
	if (unlikely((slot->flags & ALGORITHM) != RATE_SLICE))
		left = 0;
	else
		left = slot->idle_at > now ? slot->u.value : 0;

	verdict->capacity = law->burst;
	verdict->delay = verdict->retry_after = 0;
	verdict->remaining = Max(left, 0);
	verdict->reset_at = Max(slot->idle_at, now);
	verdict->allowed = false;
	if (unlikely(blocked))
	{
		verdict->retry_after = Max(law->token_us, 1);
		verdict->remaining = Max(left, cost);
	}
	else if (unlikely(intent == RATE_GIVE))
	{
		decided = left > 0;
		if (decided)
			slot->u.value += cost;
		verdict->allowed = true;
	}
	else if (likely(cost <= left))
	{
		verdict->allowed = true;
		verdict->remaining -= cost;
		if (intent != RATE_PEEK)
			slot->u.value -= cost;
	}
	else if (left < 0 && cost >= -left)
		verdict->retry_after = slot->idle_at - now;
	else
		decided = false;
	if (decided && counts(intent))
	{
		if (verdict->allowed)
			slot->allowed++;
		else
			slot->refused++;
	}
	/* As new it may be forgotten. */
	if (decided && slot->u.value == 0 && !blocked &&
		(slot->flags & ALGORITHM) == RATE_SLICE)
		slot->idle_at = 0;
	LWLockRelease(lock);
	return decided;
}

int64
table_drain(const RateKey *key, int64 *until)
{
	LWLock	   *lock = partition_lock(partition_of(key->hash));
	int64		left = 0;
	uint32		at;

	*until = 0;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	at = find(key);
	if (at != NONE && (slots[at].flags & ALGORITHM) == RATE_SLICE)
	{
		left = Max(slots[at].u.value, 0);
		*until = slots[at].idle_at;
		slots[at].u.value = 0;
		slots[at].idle_at = 0;
	}
	LWLockRelease(lock);
	return left;
}

void
table_refuse(const RateKey *key, int64 cost, int64 until)
{
	Places		places;
	Slot	   *slot = lock_key(&places, key, true);
	RateLaw		law = {.algorithm = RATE_SLICE};
	RateState	state;
	int64		now = rate_now();

	if (slot)
	{
		load_state(slot, &law, &state);
		if (state.idle_at <= now || state.value <= 0)
		{
			state.idle_at = until;
			state.value = -cost;
			store_state(slot, &law, &state, now);
		}
		slot->refused++;
	}
	else
		pg_atomic_fetch_add_u64(&slot_of_rule(key->rule)->refused, 1);
	unlock_all(&places);
}

bool
table_is_waiting(const RateKey *key)
{
	LWLock	   *lock = partition_lock(partition_of(key->hash));
	uint32		at;
	bool		waiting;

	LWLockAcquire(lock, LW_SHARED);
	at = find(key);
	waiting = at != NONE && (slots[at].flags & WAITING);
	LWLockRelease(lock);
	return waiting;
}

void
table_count(const RateKey *key, bool allowed)
{
	Places		places;
	Slot	   *slot = lock_key(&places, key, true);
	RuleSlot   *rule = slot_of_rule(key->rule);

	if (slot)
		*(allowed ? &slot->allowed : &slot->refused) += 1;
	else
		pg_atomic_fetch_add_u64(allowed ? &rule->allowed : &rule->refused, 1);
	unlock_all(&places);
}

RateKey *
table_unused_slices(int rule_slot, int *n)
{
	Part		part = {0};
	int			room = 64;
	int			found;
	RateKey    *keys = palloc(room * sizeof(RateKey));

	*n = 0;
	/* Nothing is allocated under a lock: again, if there was no room. */
	for (; part_lock(&part, LW_SHARED);)
	{
		int64		now = rate_now();

		found = *n;
		for (uint32 *head = part.first; head < part.end; head++)
			for (uint32 at = *head; at != NONE; at = slots[at].next)
			{
				const Slot *slot = &slots[at];

				if (slot->rule == rule_slot &&
					(slot->flags & ALGORITHM) == RATE_SLICE &&
					slot->u.value > 0 && slot->idle_at <= now &&
					found++ < room)
					key_of(slot, &keys[found - 1]);
			}
		if (found <= room)
		{
			*n = found;
			part_unlock(&part);
			CHECK_FOR_INTERRUPTS();
			continue;
		}
		LWLockRelease(partition_lock(part.partition));
		room = Max(room * 2, found + found / 2);
		keys = repalloc_huge(keys, (Size) room * sizeof(RateKey));
	}
	return keys;
}

/* ---- all keys of a rule ---- */

/* Forget the keys of a rule, and its crowd. */
void
table_forget_rule(int rule_slot)
{
	Part		part = {0};
	RuleSlot   *rule = slot_of_rule(rule_slot);

	LWLockAcquire(crowd_lock(rule_slot), LW_EXCLUSIVE);
	rule->forgiven = true;
	rule->algorithm = -1;
	LWLockRelease(crowd_lock(rule_slot));

	for (; part_lock(&part, LW_EXCLUSIVE); part_unlock(&part))
		for (uint32 *head = part.first; head < part.end; head++)
			for (uint32 *link = head; *link != NONE;)
			{
				uint32		at = *link;
				Slot	   *slot = &slots[at];

				if (slot->rule != rule_slot)
					link = &slot->next;
				else if (slot->flags & WAITING)
				{
					free_more(slot);
					slot->idle_at = 0;
					slot->u.value = 0;
					link = &slot->next;
				}
				else
				{
					unlink_key(link);
					push_slot(at);
				}
			}
}

void
table_busy_rules(bool *busy)
{
	Part		part = {0};
	int64		now = rate_now();

	for (; part_lock(&part, LW_EXCLUSIVE); part_unlock(&part))
		for (uint32 *head = part.first; head < part.end; head++)
			for (uint32 at = *head; at != NONE; at = slots[at].next)
				if (!busy[slots[at].rule] && !may_free(&slots[at], now))
					busy[slots[at].rule] = true;
}

void
table_count_keys(KeyCounts *counts, uint32 nslots)
{
	Part		part = {0};

	while (part_lock(&part, LW_SHARED))
	{
		for (uint32 *head = part.first; head < part.end; head++)
			for (uint32 at = *head; at != NONE; at = slots[at].next)
				if (slots[at].rule < nslots)
				{
					KeyCounts  *count = &counts[slots[at].rule];

					count->keys++;
					count->allowed += slots[at].allowed;
					count->refused += slots[at].refused;
				}
		part_unlock(&part);
		CHECK_FOR_INTERRUPTS();
	}
}

RateKeyUse *
table_keys(int rule_slot, int *n)
{
	Part		part = {0};
	int			room = 64;
	int			found = 0;
	RateKeyUse *uses = palloc(room * sizeof(RateKeyUse));

	*n = 0;
	/* Nothing is allocated under a lock: again, if there was no room. */
	for (; part_lock(&part, LW_SHARED);)
	{
		found = *n;
		for (uint32 *head = part.first; head < part.end; head++)
			for (uint32 at = *head; at != NONE; at = slots[at].next)
			{
				const Slot *slot = &slots[at];

				if (slot->rule != rule_slot || found++ >= room)
					continue;
				key_of(slot, &uses[found - 1].key);
				uses[found - 1].allowed = slot->allowed;
				uses[found - 1].refused = slot->refused;
			}
		if (found <= room)
		{
			*n = found;
			part_unlock(&part);
			CHECK_FOR_INTERRUPTS();
			continue;
		}
		LWLockRelease(partition_lock(part.partition));
		room = Max(room * 2, found + found / 2);
		uses = repalloc_huge(uses, (Size) room * sizeof(RateKeyUse));
	}
	return uses;
}

/* ---- saving and loading: by the postmaster, when nobody else is there ---- */

uint32
table_saved_keys(void)
{
	uint64		nheads = (uint64) PARTITIONS * table->nheads;
	uint32		n = 0;

	for (uint64 i = 0; i < nheads; i++)
		for (uint32 at = heads[i]; at != NONE; at = slots[at].next)
			n++;
	return n;
}

bool
table_next_key(uint64 *position, SavedKey *saved)
{
	uint64		nheads = (uint64) PARTITIONS * table->nheads;
	Slot	   *slot;
	uint32		at;

	/* The position is a head, and the number of its keys that are done. */
	for (;; *position = ((*position >> 32) + 1) << 32)
	{
		uint32		skip = (uint32) *position;

		if (*position >> 32 >= nheads)
			return false;
		at = heads[*position >> 32];
		while (at != NONE && skip-- > 0)
			at = slots[at].next;
		if (at != NONE)
			break;
	}
	(*position)++;
	slot = &slots[at];
	memset(saved, 0, sizeof(*saved));
	saved->rule = slot->rule;
	saved->len = slot->len;
	saved->algorithm = slot->flags & ALGORITHM;
	memcpy(saved->text, slot->text, RATE_KEY_TEXT);
	saved->allowed = slot->allowed;
	saved->refused = slot->refused;
	saved->idle_at = slot->idle_at;
	if (saved->algorithm == RATE_SLIDING_WINDOW)
	{
		RateState	state;

		load_segments(slot, &state);
		saved->nsegments = state.nsegments;
		memcpy(saved->segments, state.segments,
			   state.nsegments * sizeof(uint32));
	}
	else
		saved->value = slot->u.value;
	return true;
}

void
table_put_key(const SavedKey *saved, bool keep, bool merge)
{
	uint32		at = keep ? pop_slot() : NONE;
	RateKey		key;
	Slot	   *slot;

	if (at == NONE)
	{
		pg_atomic_fetch_add_u64(&slot_of_rule(saved->rule)->allowed, saved->allowed);
		pg_atomic_fetch_add_u64(&slot_of_rule(saved->rule)->refused, saved->refused);
		return;
	}
	key.rule = saved->rule;
	key.len = saved->len;
	memcpy(key.text, saved->text, RATE_KEY_TEXT);
	key.hash = hash_text(key.rule, key.text,
						 key.len == 255 ? RATE_KEY_TEXT : key.len);
	link_key(at, &key, saved->algorithm);
	slot = &slots[at];
	slot->allowed = saved->allowed;
	slot->refused = saved->refused;
	slot->idle_at = saved->idle_at;
	if (saved->algorithm == RATE_SLIDING_WINDOW)
	{
		RateState	state;

		state.nsegments = saved->nsegments;
		memcpy(state.segments, saved->segments,
			   saved->nsegments * sizeof(uint32));
		if (merge && state.nsegments > INLINE_SEGMENTS)
			merge_segments(&state, INLINE_SEGMENTS);
		store_segments(slot, &state);
	}
	else
		slot->u.value = saved->value;
}

/* ---- setting up ---- */

int
table_max_keys(void)
{
	return max_keys;
}

static uint32
partition_heads(void)
{
	return (max_keys + PARTITIONS - 1) / PARTITIONS;
}

static Size
table_size(void)
{
	Size		size = MAXALIGN(sizeof(Table));

	size = add_size(size, mul_size(max_keys, sizeof(Slot)));
	return add_size(size, mul_size(partition_heads(),
								   PARTITIONS * sizeof(uint32)));
}

static int
table_locks(void)
{
	return LOCKS;
}

static void
table_shmem_init(LWLockPadded *given)
{
	char	   *at = (char *) table + MAXALIGN(sizeof(Table));

	locks = given;
	crypto_random(&table->seed, sizeof(table->seed));
	table->nslots = max_keys;
	table->nheads = partition_heads();
	pg_atomic_init_u64(&table->test_clock, 0);
	SpinLockInit(&table->mutex);
	table->free = NONE;
	pg_atomic_init_u64(&table->hand, 0);
	pg_atomic_init_u64(&table->pause_until, 0);

	slots = (Slot *) at;
	at += (Size) table->nslots * sizeof(Slot);
	heads = (uint32 *) at;
	memset(heads, 0xff, (Size) table->nheads * PARTITIONS * sizeof(uint32));

	if (!save_load(table->nslots) && crash_start == START_EMPTY)
		table->exhausted_at = rate_now();
	if (!IsUnderPostmaster)
		on_shmem_exit(save_at_exit, 0);
}

void
table_init(void)
{
	static const SharedPart part = {
		.name = "mlint rate limits",
		.size = table_size,
		.locks = table_locks,
		.memory = (void **) &table,
		.init = table_shmem_init
	};

	DefineCustomIntVariable("mlint.rate_max_keys",
							"How many identifiers rate limits can tell apart.",
							"Each takes about 100 bytes of shared memory, whether used or not; a sliding window takes up to four places. When all are taken, those that have nothing left to remember make room, and new identifiers share one limit while there are none.",
							&max_keys, 100000, 100, 100000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("mlint.rate_crash_start",
							 "What rate limits have left when the server starts after a crash.",
							 "full: everything, so that up to one burst more passes. empty: nothing, so that nobody passes before a limit has filled again. After a clean shutdown they go on where they were.",
							 &crash_start, START_FULL, crash_starts,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	shared_part(&part);
}
