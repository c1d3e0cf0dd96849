/*
 * rule_slot.c
 *		Rules in shared memory; see rule_slot.h and table.h.
 *
 * A rule gets a slot when it is first used on this server, and keeps it while
 * any of its keys remembers something. The slots are as many as there was
 * memory for when the server started. When all are taken, a rule that
 * remembers nothing makes room, of several the one that was looked up longest
 * ago; what it had counted is lost.
 *
 * A rule that is dropped gives its slot back when that commits. What was
 * dropped along with its extension or its database cannot say so: such slots
 * are found when there is no other left.
 */
#include "postgres.h"

#include <math.h>

#include "common/rows.h"
#include "common/shmem.h"
#include "miscadmin.h"
#include "ratelimit/rule_slot.h"
#include "ratelimit/save.h"
#include "utils/syscache.h"

RuleSlots  *rate_rule_slots = NULL;

static void
rule_begin(RuleSlot *rule, Oid database, Oid relation, int64 id)
{
	memset(rule, 0, sizeof(*rule));
	pg_atomic_init_u64(&rule->longest, 0);
	pg_atomic_init_u64(&rule->allowed, 0);
	pg_atomic_init_u64(&rule->refused, 0);
	pg_atomic_init_u64(&rule->crowded, 0);
	pg_atomic_init_u64(&rule->evictions, 0);
	pg_atomic_init_u64(&rule->waited, 0);
	for (int i = 0; i < RATE_WAIT_BUCKETS; i++)
		pg_atomic_init_u64(&rule->waits[i], 0);
	rule->algorithm = -1;
	rule->database = database;
	rule->relation = relation;
	rule->id = id;
}

/*
 * The slot that may be given to another rule: nobody's, or of those that
 * remember nothing of anybody the one that was looked up longest ago. -1 if
 * there is none. relation is this database's mlint.rate_rule; the lock of the
 * rules is held.
 */
static int
idle_slot(Oid relation)
{
	bool	   *busy;
	int64		now = rate_now();
	int			found = -1;

	for (uint32 i = 0; i < rate_rule_slots->nslots; i++)
	{
		const RuleSlot *rule = slot_of_rule(i);

		/* What an extension that was dropped has left is nobody's, too. */
		if (rule->database == InvalidOid ||
			(rule->database == MyDatabaseId && rule->relation != relation))
			return i;
	}
	busy = palloc0(rate_rule_slots->nslots * sizeof(bool));
	table_busy_rules(busy);
	for (uint32 i = 0; i < rate_rule_slots->nslots; i++)
	{
		const RuleSlot *rule = slot_of_rule(i);

		if (!busy[i] &&
			(rule->algorithm < 0 || rule->crowd.idle_at <= now) &&
			(found < 0 || rule->used_at < slot_of_rule(found)->used_at))
			found = i;
	}
	pfree(busy);
	return found;
}

/* The slot of a rule of this database, or -1. The lock of the rules is held. */
static int
find_slot(Oid relation, int64 rule_id)
{
	uint32		used = pg_atomic_read_u32(&rate_rule_slots->used);

	for (uint32 i = 0; i < used; i++)
	{
		const RuleSlot *rule = slot_of_rule(i);

		if (rule->id == rule_id && rule->database == MyDatabaseId &&
			rule->relation == relation)
			return i;
	}
	return -1;
}

/* Find a slot, or take one; -1 if there is none. */
static int
take_slot(Oid relation, int64 rule_id)
{
	int			found;

	LWLockAcquire(rate_rule_slots->lock, LW_EXCLUSIVE);
	found = find_slot(relation, rule_id);
	if (found < 0)
	{
		uint32		used = pg_atomic_read_u32(&rate_rule_slots->used);

		if (used < rate_rule_slots->nslots)
		{
			found = used;
			rule_begin(slot_of_rule(found), MyDatabaseId, relation,
					   rule_id);
			pg_atomic_write_u32(&rate_rule_slots->used, used + 1);
		}
		else if ((found = idle_slot(relation)) >= 0)
		{
			/* Nobody finds it by the old name while its keys go. */
			slot_of_rule(found)->database = InvalidOid;
			table_forget_rule(found);
			rule_begin(slot_of_rule(found), MyDatabaseId, relation,
					   rule_id);
		}
	}
	if (found >= 0)
		slot_of_rule(found)->used_at = rate_now();
	LWLockRelease(rate_rule_slots->lock);
	return found;
}

/* Free the slots of databases that are no more; false if there were none. */
static bool
free_dropped_databases(void)
{
	bool		freed = false;

	for (uint32 i = 0; i < rate_rule_slots->nslots; i++)
	{
		RuleSlot   *rule = slot_of_rule(i);
		Oid			database = rule->database;

		if (database == MyDatabaseId ||
			SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database)))
			continue;
		LWLockAcquire(rate_rule_slots->lock, LW_EXCLUSIVE);
		if (rule->database == database)
		{
			rule->database = InvalidOid;
			freed = true;
		}
		LWLockRelease(rate_rule_slots->lock);
	}
	return freed;
}

void
table_no_room_for_rule(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("there is no room in shared memory for another rate limit"),
			 errdetail("All %u places are taken by rules that still remember what somebody has used.",
					   rate_rule_slots->nslots),
			 errhint("There is one for each 100 of mlint.rate_max_keys, and at least 64. Raise it and restart the server, or use one rule for many identifiers.")));
}

int
table_rule_slot(int64 rule_id)
{
	Oid			relation = mlint_relation("rate_rule");
	int			found = take_slot(relation, rule_id);

	if (found < 0 && free_dropped_databases())
		found = take_slot(relation, rule_id);
	if (found < 0)
		table_no_room_for_rule();
	return found;
}

int
table_find_rule(int64 rule_id)
{
	Oid			relation = mlint_relation("rate_rule");
	int			found;

	LWLockAcquire(rate_rule_slots->lock, LW_SHARED);
	found = find_slot(relation, rule_id);
	LWLockRelease(rate_rule_slots->lock);
	return found;
}

bool
table_rule_kept(int rule_slot, int64 rule_id)
{
	return rule_slot >= 0 && slot_of_rule(rule_slot)->id == rule_id &&
		slot_of_rule(rule_slot)->database == MyDatabaseId;
}

void
table_drop_rule(Oid relation, int64 rule_id)
{
	int			found;

	LWLockAcquire(rate_rule_slots->lock, LW_EXCLUSIVE);
	found = find_slot(relation, rule_id);
	if (found >= 0)
	{
		slot_of_rule(found)->database = InvalidOid;
		table_forget_rule(found);
	}
	LWLockRelease(rate_rule_slots->lock);
}

/* ---- counters ---- */

RateTotals *
table_totals(int *n)
{
	Oid			relation = mlint_relation("rate_rule");
	uint32		used = pg_atomic_read_u32(&rate_rule_slots->used);
	KeyCounts  *counts = palloc0(Max(used, 1) * sizeof(KeyCounts));
	RateTotals *all = palloc(Max(used, 1) * sizeof(RateTotals));

	table_count_keys(counts, used);
	*n = 0;
	for (uint32 i = 0; i < used; i++)
	{
		RuleSlot   *rule = slot_of_rule(i);
		RateTotals *totals = &all[*n];

		if (rule->database != MyDatabaseId || rule->relation != relation)
			continue;
		totals->rule_id = rule->id;
		totals->keys = counts[i].keys;
		totals->allowed = counts[i].allowed +
			pg_atomic_read_u64(&rule->allowed);
		totals->refused = counts[i].refused +
			pg_atomic_read_u64(&rule->refused);
		totals->crowded = pg_atomic_read_u64(&rule->crowded);
		totals->evictions = pg_atomic_read_u64(&rule->evictions);
		totals->waited = pg_atomic_read_u64(&rule->waited);
		for (int k = 0; k < RATE_WAIT_BUCKETS; k++)
			totals->waits[k] = pg_atomic_read_u64(&rule->waits[k]);
		(*n)++;
	}
	pfree(counts);
	return all;
}

void
table_count_wait(int rule_slot, int64 waited_us)
{
	RuleSlot   *rule = slot_of_rule(rule_slot);
	int			bucket = 0;

	while (bucket < RATE_WAIT_BUCKETS - 1 &&
		   waited_us >= 100 * pow(2, (bucket + 1) / 2.0))
		bucket++;
	pg_atomic_fetch_add_u64(&rule->waits[bucket], 1);
	pg_atomic_fetch_add_u64(&rule->waited, 1);
}

/* ---- saving and loading: by the postmaster, when nobody else is there ---- */

void
table_get_rule(uint32 rule_slot, SavedRule *saved)
{
	RuleSlot   *rule = slot_of_rule(rule_slot);

	memset(saved, 0, sizeof(*saved));
	saved->database = rule->database;
	saved->relation = rule->relation;
	saved->id = rule->id;
	saved->used_at = rule->used_at;
	saved->longest = (int64) pg_atomic_read_u64(&rule->longest);
	saved->forgiven = rule->forgiven;
	saved->allowed = pg_atomic_read_u64(&rule->allowed);
	saved->refused = pg_atomic_read_u64(&rule->refused);
	saved->crowded = pg_atomic_read_u64(&rule->crowded);
	saved->evictions = pg_atomic_read_u64(&rule->evictions);
	saved->waited = pg_atomic_read_u64(&rule->waited);
	for (int i = 0; i < RATE_WAIT_BUCKETS; i++)
		saved->waits[i] = pg_atomic_read_u64(&rule->waits[i]);
	saved->algorithm = rule->algorithm;
	if (rule->algorithm >= 0)
	{
		saved->crowd.idle_at = rule->crowd.idle_at;
		saved->crowd.value = rule->crowd.value;
		saved->crowd.nsegments = rule->crowd.nsegments;
		memcpy(saved->crowd.segments, rule->crowd.segments,
			   rule->crowd.nsegments * sizeof(uint32));
	}
}

int
table_put_rule(const SavedRule *saved)
{
	uint32		used = pg_atomic_read_u32(&rate_rule_slots->used);
	RuleSlot   *rule = slot_of_rule(used);

	if (used == rate_rule_slots->nslots)
		return -1;
	rule_begin(rule, saved->database, saved->relation, saved->id);
	rule->used_at = saved->used_at;
	rule->forgiven = saved->forgiven;
	pg_atomic_write_u64(&rule->longest, (uint64) saved->longest);
	pg_atomic_write_u64(&rule->allowed, saved->allowed);
	pg_atomic_write_u64(&rule->refused, saved->refused);
	pg_atomic_write_u64(&rule->crowded, saved->crowded);
	pg_atomic_write_u64(&rule->evictions, saved->evictions);
	pg_atomic_write_u64(&rule->waited, saved->waited);
	for (int i = 0; i < RATE_WAIT_BUCKETS; i++)
		pg_atomic_write_u64(&rule->waits[i], saved->waits[i]);
	rule->algorithm = saved->algorithm;
	rule->crowd = saved->crowd;
	pg_atomic_write_u32(&rate_rule_slots->used, used + 1);
	return used;
}

/* ---- setting up ---- */

static uint32
rule_slots(void)
{
	return Min(Max(64, table_max_keys() / 100), 65535);
}

static Size
rules_size(void)
{
	return add_size(offsetof(RuleSlots, slots),
					mul_size(rule_slots(), sizeof(RuleSlot)));
}

static int
rules_locks(void)
{
	return 1;
}

static void
rules_init(LWLockPadded *given)
{
	rate_rule_slots->lock = &given[0].lock;
	rate_rule_slots->nslots = rule_slots();
	pg_atomic_init_u32(&rate_rule_slots->used, 0);
}

void
rule_slot_init(void)
{
	static const SharedPart part = {
		.name = "mlint rate rules",
		.size = rules_size,
		.locks = rules_locks,
		.memory = (void **) &rate_rule_slots,
		.init = rules_init
	};

	shared_part(&part);
}
