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

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/dshash.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/dsa.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/shmem.h"
#include "delivery/stats.h"

PG_FUNCTION_INFO_V1(mlint_destination_stats);

#define AREA_BYTES	((size_t) 256 * 1024)

#define FIRST_OCTAVE	10
#define LAST_OCTAVE		26

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

static const SharedTable stats_table = {sizeof(StatsKey), sizeof(StatsEntry)};

static SharedArea *shared = NULL;
static dsa_area *area = NULL;
static dshash_table *table = NULL;

static Size
shared_size(void)
{
	return shared_area_size(AREA_BYTES);
}

static void
init_shared(LWLockPadded *locks)
{
	shared_area_create(shared, AREA_BYTES, &stats_table, 1);
}

static const SharedPart part = {
	.name = "mlint destinations",
	.size = shared_size,
	.memory = (void **) &shared,
	.init = init_shared,
};

void
stats_init(void)
{
	shared_part(&part);
}

static void
attach(void)
{
	if (table == NULL)
		area = shared_area_attach(shared, part.name, &stats_table, 1, &table);
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
	counters->latency_us += outcome->elapsed_us;
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
		sum->latency_us += counters->latency_us;
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

/*
 * How many attempts took no longer than 2^10, 2^11 ... 2^26 microseconds (1 ms
 * to 67 s), and how many there were: bounds of buckets, so that the counts are
 * exact.
 */
static Datum
latency_octaves(const DestinationCounters *counters)
{
	Datum		counts[LAST_OCTAVE - FIRST_OCTAVE + 2];
	int64		seen = 0;
	int			n = 0;

	for (int i = 0; i < STATS_BUCKETS; i++)
	{
		if (i % 8 == 0 && i / 8 >= FIRST_OCTAVE && i / 8 <= LAST_OCTAVE)
			counts[n++] = Int64GetDatum(seen);
		seen += counters->latency[i];
	}
	counts[n++] = Int64GetDatum(seen);
	return PointerGetDatum(construct_array(counts, n, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
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
		Datum		values[15];
		bool		nulls[15] = {0};

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
		values[13] = Float8GetDatum(c->latency_us / 1000000.0);
		values[14] = latency_octaves(c);
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}
