/*
 * rule_slot.h
 *		Rules in shared memory: a slot each, with what their keys have in common.
 *
 * Between rule_slot.c, which gives slots to rules and takes them back, and
 * table.c, whose keys belong to them. For all others: table.h.
 */
#ifndef MLINT_RATE_RULE_SLOT_H
#define MLINT_RATE_RULE_SLOT_H

#include "port/atomics.h"
#include "ratelimit/table.h"
#include "storage/lwlock.h"

typedef struct RuleSlot
{
	/*
	 * Whose it is; the lock of the rules is for change. A rule's id is good
	 * for the life of its table.
	 */
	Oid			database;		/* InvalidOid: nobody's */
	Oid			relation;		/* mlint.rate_rule, which can be made anew */
	int64		id;
	int64		used_at;

	bool		forgiven;		/* keys that are not here are fresh ones */
	pg_atomic_uint64 longest;	/* debt that was seen; see may_free() */

	/* What keys that are gone, and the crowd, have counted. */
	pg_atomic_uint64 allowed;
	pg_atomic_uint64 refused;
	pg_atomic_uint64 crowded;
	pg_atomic_uint64 evictions;
	pg_atomic_uint64 waited;
	pg_atomic_uint64 waits[RATE_WAIT_BUCKETS];

	/* Under the crowd's lock: the key of those for whom there is no room. */
	int			algorithm;		/* or -1: there is none yet */
	RateState	crowd;
} RuleSlot;

typedef struct RuleSlots
{
	LWLock	   *lock;			/* taken before those of the table */
	uint32		nslots;
	pg_atomic_uint32 used;		/* those from here on never were used */
	RuleSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} RuleSlots;

extern RuleSlots *rate_rule_slots;

static inline RuleSlot *
slot_of_rule(int rule_slot)
{
	return &rate_rule_slots->slots[rule_slot];
}

/* ---- table.c ---- */

/* How many keys there is room for. */
extern int	table_max_keys(void);

/* Which slots have keys that are not idle? */
extern void table_busy_rules(bool *busy);

/* What the keys of a slot count, and how many they are. */
typedef struct KeyCounts
{
	int64		keys;
	uint64		allowed;
	uint64		refused;
} KeyCounts;

/* Add that up for each of the first slots, in one pass. */
extern void table_count_keys(KeyCounts *counts, uint32 nslots);

/* ---- rule_slot.c ---- */

/* Shared memory. Called once, before table_init(). */
extern void rule_slot_init(void);

#endif
