/*
 * stats.c
 *		Counters and circuit breakers of destinations, in shared memory.
 *
 * A dshash table keyed by database and destination, in a dsa area that begins
 * in the main shared memory and grows as needed. A destination has an entry
 * once something was attempted there.
 */
#include "postgres.h"

#include <math.h>

#include "fmgr.h"
#include "funcapi.h"
#include "lib/dshash.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/dsa.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "delivery/stats.h"

PG_FUNCTION_INFO_V1(mlint_destination_stats);

#define AREA_BYTES	((size_t) 256 * 1024)

typedef struct StatsKey
{
	Oid			database;
	int32		destination_id;
} StatsKey;

typedef struct StatsEntry
{
	StatsKey	key;			/* must be first */
	Breaker		breaker;
	uint32		resets;			/* how often somebody reset the breaker */
	DestinationCounters counters;
} StatsEntry;

typedef struct StatsShared
{
	int			tranche;
	dshash_table_handle table;
	char		area[FLEXIBLE_ARRAY_MEMBER];
} StatsShared;

static StatsShared *shared = NULL;
static dsa_area *area = NULL;
static dshash_table *table = NULL;
static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static Size
shared_size(void)
{
	return offsetof(StatsShared, area) + MAXALIGN(AREA_BYTES);
}

static char *
shared_area(void)
{
	return (char *) MAXALIGN(shared->area);
}

static void
table_parameters(dshash_parameters *params)
{
	memset(params, 0, sizeof(*params));
	params->key_size = sizeof(StatsKey);
	params->entry_size = sizeof(StatsEntry);
	params->compare_function = dshash_memcmp;
	params->hash_function = dshash_memhash;
#if PG_VERSION_NUM >= 170000
	params->copy_function = dshash_memcpy;
#endif
	params->tranche_id = shared->tranche;
}

static void
request_shared(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(add_size(shared_size(), MAXIMUM_ALIGNOF));
}

static void
startup_shared(void)
{
	bool		found;

	if (previous_startup_hook)
		previous_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("mlint destinations",
							 add_size(shared_size(), MAXIMUM_ALIGNOF), &found);
	if (!found)
	{
		dshash_parameters params;
		dsa_area   *first;
		dshash_table *created;

		shared->tranche = LWLockNewTrancheId();
		first = dsa_create_in_place(shared_area(), AREA_BYTES,
									shared->tranche, NULL);
		dsa_pin(first);
		/* The postmaster must not create segments: keep to what is here. */
		dsa_set_size_limit(first, AREA_BYTES);
		table_parameters(&params);
		created = dshash_create(first, &params, NULL);
		shared->table = dshash_get_hash_table_handle(created);
		dsa_set_size_limit(first, SIZE_MAX);
		dshash_detach(created);
		dsa_detach(first);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
stats_init(void)
{
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shared;
}

static void
attach(void)
{
	MemoryContext old;
	dshash_parameters params;

	if (table)
		return;
	LWLockRegisterTranche(shared->tranche, "mlint destinations");
	old = MemoryContextSwitchTo(TopMemoryContext);
	area = dsa_attach_in_place(shared_area(), NULL);
	dsa_pin_mapping(area);
	table_parameters(&params);
	table = dshash_attach(area, &params, shared->table, NULL);
	MemoryContextSwitchTo(old);
}

static int
latency_bucket(int64 us)
{
	int			bucket = us <= 1 ? 0 : (int) (8 * log2((double) us));

	return Min(bucket, STATS_BUCKETS - 1);
}

/* The upper end of a bucket, in seconds. */
static double
bucket_seconds(int bucket)
{
	return exp2((bucket + 1) / 8.0) / 1000000.0;
}

void
stats_count(DestinationCounters *counters, const Outcome *outcome,
			TimestampTz now)
{
	counters->latency[latency_bucket(outcome->elapsed_us)]++;
	counters->bytes += outcome->bytes;
	if (outcome->kind == OUTCOME_DELIVERED)
	{
		counters->delivered++;
		return;
	}
	counters->failed++;
	if (outcome->kind == OUTCOME_RETRY)
		counters->retried++;
	else
		counters->dead++;
	counters->last_error_at = now;
	strlcpy(counters->last_error, outcome->error,
			sizeof(counters->last_error));
}

static StatsKey
stats_key(int32 destination_id)
{
	StatsKey	key = {MyDatabaseId, destination_id};

	return key;
}

void
stats_exchange(int32 destination_id, const DestinationCounters *counters,
			   Breaker *breaker, uint32 *resets)
{
	StatsKey	key = stats_key(destination_id);
	StatsEntry *entry;
	bool		found;

	attach();
	entry = dshash_find_or_insert(table, &key, &found);
	if (!found)
	{
		memset((char *) entry + sizeof(StatsKey), 0,
			   sizeof(StatsEntry) - sizeof(StatsKey));
		*resets = 0;
	}
	if (entry->resets != *resets)
	{
		*breaker = entry->breaker;
		*resets = entry->resets;
	}
	else
		entry->breaker = *breaker;
	if (counters)
	{
		DestinationCounters *sum = &entry->counters;

		sum->delivered += counters->delivered;
		sum->failed += counters->failed;
		sum->retried += counters->retried;
		sum->dead += counters->dead;
		sum->bytes += counters->bytes;
		for (int i = 0; i < STATS_BUCKETS; i++)
			sum->latency[i] += counters->latency[i];
		if (counters->last_error_at != 0)
		{
			sum->last_error_at = counters->last_error_at;
			memcpy(sum->last_error, counters->last_error,
				   sizeof(sum->last_error));
		}
	}
	dshash_release_lock(table, entry);
}

bool
stats_reset_breaker(int32 destination_id)
{
	StatsKey	key = stats_key(destination_id);
	StatsEntry *entry;

	attach();
	entry = dshash_find(table, &key, true);
	if (entry == NULL)
		return false;
	breaker_reset(&entry->breaker);
	entry->resets++;
	dshash_release_lock(table, entry);
	return true;
}

void
stats_forget(int32 destination_id)
{
	StatsKey	key = stats_key(destination_id);

	attach();
	(void) dshash_delete_key(table, &key);
}

static Datum
quantile(const DestinationCounters *counters, double q, bool *isnull)
{
	int64		total = 0;
	int64		seen = 0;

	for (int i = 0; i < STATS_BUCKETS; i++)
		total += counters->latency[i];
	*isnull = total == 0;
	for (int i = 0; i < STATS_BUCKETS && total > 0; i++)
	{
		seen += counters->latency[i];
		if (seen >= q * total)
		{
			Interval   *interval = palloc0(sizeof(Interval));

			interval->time = (int64) (bucket_seconds(i) * USECS_PER_SEC);
			return IntervalPGetDatum(interval);
		}
	}
	return (Datum) 0;
}

/* mlint.destination_stats() */
Datum
mlint_destination_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	StatsEntry *entry;
	StatsEntry *copies;
	int			n = 0;
	int			room = 64;
	dshash_seq_status seq;

	InitMaterializedSRF(fcinfo, 0);
	attach();

	/* Copy under the lock, build tuples without it. */
	copies = palloc(sizeof(StatsEntry) * room);
	dshash_seq_init(&seq, table, false);
	while ((entry = dshash_seq_next(&seq)) != NULL)
	{
		if (entry->key.database != MyDatabaseId)
			continue;
		if (n == room)
		{
			room *= 2;
			copies = repalloc_huge(copies, sizeof(StatsEntry) * room);
		}
		copies[n++] = *entry;
	}
	dshash_seq_term(&seq);

	for (int i = 0; i < n; i++)
	{
		DestinationCounters *c = &copies[i].counters;
		Breaker    *breaker = &copies[i].breaker;
		Datum		values[13];
		bool		nulls[13] = {0};

		values[0] = Int32GetDatum(copies[i].key.destination_id);
		values[1] = Int64GetDatum(c->delivered);
		values[2] = Int64GetDatum(c->failed);
		values[3] = Int64GetDatum(c->retried);
		values[4] = Int64GetDatum(c->dead);
		values[5] = Int64GetDatum(c->bytes);
		values[6] = quantile(c, 0.50, &nulls[6]);
		values[7] = quantile(c, 0.95, &nulls[7]);
		values[8] = quantile(c, 0.99, &nulls[8]);
		values[9] = CStringGetTextDatum(breaker_state_name(breaker->state));
		values[10] = TimestampTzGetDatum(breaker->retry_at);
		nulls[10] = breaker->state != BREAKER_OPEN;
		values[11] = CStringGetTextDatum(c->last_error);
		values[12] = TimestampTzGetDatum(c->last_error_at);
		nulls[11] = nulls[12] = c->last_error_at == 0;
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}
