/*
 * table.h
 *		The shared table of keys: what is remembered of each identifier.
 *
 * One key is one identifier under one rule. The table has room for
 * mlint.rate_max_keys, asked for when the server starts; keys are spread over
 * partitions, each with its lock, under which state and counters change. No
 * lock is held when a function of this header returns.
 *
 * When the table is full, keys that are idle (as good as new) make room. If
 * there is none, an identifier that is not known shares one key of its rule
 * with all others in that position ("crowded"), so that no number of new
 * identifiers makes known ones forget what they have used.
 *
 * None of it is transactional: what was taken stays taken after a rollback.
 */
#ifndef MLINT_RATE_TABLE_H
#define MLINT_RATE_TABLE_H

#include "common/compat.h"
#include "ratelimit/law.h"

/*
 * An identifier as the table knows it: up to RATE_KEY_TEXT bytes are kept as
 * they are; of a longer one a beginning and the first 16 bytes of its SHA-256,
 * so that two are never mistaken for each other.
 */
#define RATE_KEY_TEXT	40

typedef struct RateKey
{
	uint32		hash;
	uint16		rule;			/* RateRule's slot */
	uint8		len;			/* bytes of text; 255: a digest is in it */
	char text[	RATE_KEY_TEXT];
} RateKey;

extern void rate_key(RateKey *key, int rule_slot, const char *identifier,
					 Size len);

/* What is asked of one key. */
typedef struct RateAsk
{
	RateKey		key;
	const RateLaw *law;
	int64		cost;
} RateAsk;

/*
 * Decide on n questions together, RATE_MAX_TOGETHER at most and of different
 * rules: what the intent says is done to all, if all are allowed, or to none.
 * Returns whether it was; each verdict is what its own key has to say. A key that
 * somebody waits for (queue.h) refuses whoever is not in_turn; if that alone is
 * why, its verdict's remaining is cost or more. Each ask of intent
 * TAKE or TAKE_NOW counts as one check, allowed or refused as the whole was.
 * *crowded, if not NULL, is set when a key was shared for want of room.
 */
#define RATE_MAX_TOGETHER	16

extern bool table_decide(const RateAsk *asks, int n, RateIntent intent,
						 bool in_turn, RateVerdict *verdicts, bool *crowded);

/*
 * Is somebody waiting for this key? While so, it does not make room. Of a key
 * that is not in the table (nothing is owed, or it is crowded) nothing is
 * noted.
 */
extern void table_set_waiting(const RateKey *key, bool waiting);

/*
 * Put a borrowed slice into a key of a RATE_SLICE law. False if there was no
 * room for it: then it is still the caller's. What was not lent refuses.
 */
extern bool table_lend(const RateKey *key, int64 granted, int64 until);

/*
 * Decide from a slice. True: the answer is in *verdict, and counted. False:
 * there is not enough left in it, so that it is time to borrow; or, to give
 * back, it is over. Of a key that somebody waits for, as table_decide().
 */
extern bool table_spend(const RateKey *key, const RateLaw *law, int64 cost,
						RateIntent intent, bool in_turn,
						RateVerdict *verdict);

/* Take what is left of a slice out of it, over or not, and when it ends. */
extern int64 table_drain(const RateKey *key, int64 *until);

/*
 * Remember that there is not so much to borrow until then; not if there is a
 * slice after all. table_spend() then refuses.
 */
extern void table_refuse(const RateKey *key, int64 cost, int64 until);

/*
 * Of limits that are decided elsewhere: does the key refuse whoever is not in
 * turn? And count a check that was decided.
 */
extern bool table_is_waiting(const RateKey *key);
extern void table_count(const RateKey *key, bool allowed);

/* The keys of a rule whose slices are over and not used up, palloc'd. */
extern RateKey *table_unused_slices(int rule_slot, int *n);

/* Forget all keys of a rule; of one only: table_decide(RATE_FORGET). */
extern void table_forget_rule(int rule_slot);

/* Microseconds since 1970. Tests of an injection build can set it. */
extern int64 rate_now(void);

/* ---- rules in shared memory: their keys' number, and their counters ---- */

#define RATE_WAIT_BUCKETS	40	/* bucket i: waits below 2^((i+1)/2) * 100 us */

typedef struct RateTotals
{
	int64		rule_id;
	uint64		allowed;		/* checks */
	uint64		refused;
	uint64		crowded;		/* among these, decided by the shared key */
	uint64		evictions;		/* idle keys that made room for others */
	uint64		waited;			/* rate_acquire calls that slept */
	int64		keys;			/* now remembered */
	uint64		waits[RATE_WAIT_BUCKETS];
} RateTotals;

/*
 * The slot of a rule of the current database; taken if it has none yet.
 * Raises ERRCODE_CONFIGURATION_LIMIT_EXCEEDED when all are in use by rules
 * that still remember something.
 */
extern int	table_rule_slot(int64 rule_id);

extern void table_no_room_for_rule(void) pg_attribute_noreturn();

/* The same, but if it has none, -1. */
extern int	table_find_rule(int64 rule_id);

/*
 * Is the slot still this rule's? When there are too many rules, one whose keys
 * are all idle may lose its place: ask before each use of a slot that was kept.
 * Slot -1 is nobody's.
 */
extern bool table_rule_kept(int rule_slot, int64 rule_id);

/*
 * A rule of this database's table of rules was dropped: forget its keys, and
 * free its slot for others. Raises nothing and reads no catalog.
 */
extern void table_drop_rule(Oid relation, int64 rule_id);

/*
 * Of all rules of this database that have a slot, palloc'd. It goes over the
 * whole table once.
 */
extern RateTotals *table_totals(int *n);
extern void table_count_wait(int rule_slot, int64 waited_us);

/* One key, for mlint.rate_top(); all of a slot, palloc'd; of slot -1 none. */
typedef struct RateKeyUse
{
	RateKey		key;
	uint64		allowed;
	uint64		refused;
} RateKeyUse;

extern RateKeyUse *table_keys(int rule_slot, int *n);

/* Settings and shared memory; saving at shutdown, loading at start. */
extern void table_init(void);

#endif
