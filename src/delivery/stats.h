/*
 * stats.h
 *		Counters and circuit breakers of destinations, in shared memory.
 *
 * Dispatchers count in memory of their own and add up here once a batch. They
 * survive ROLLBACK and workers' deaths, not a restart of the server.
 */
#ifndef MLINT_STATS_H
#define MLINT_STATS_H

#include "common/breaker.h"
#include "delivery/driver.h"

/* Eight buckets an octave of microseconds: a bucket is 9 % wide. */
#define STATS_BUCKETS	256

typedef struct DestinationCounters
{
	int64		delivered;
	int64		failed;
	int64		retried;
	int64		dead;
	int64		bytes;
	int64		latency_us;		/* of all attempts together */
	int64		latency[STATS_BUCKETS];
	TimestampTz last_error_at;
	char		last_error[256];
} DestinationCounters;

extern void stats_init(void);

/* Count one attempt into memory of the caller's. */
extern void stats_count(DestinationCounters *counters,
						const Outcome *outcome, TimestampTz now);

/*
 * Add to the shared counters, and exchange the breaker: ours goes out, unless
 * somebody has reset it since *resets, when the reset one comes in. With
 * STATS_UNKNOWN in *resets, the shared one comes in whatever it is.
 */
#define STATS_UNKNOWN	UINT32_MAX

extern void stats_exchange(int32 destination_id,
						   const DestinationCounters *counters,
						   Breaker *breaker, uint32 *resets);

/* breaker_reset(): false when there is nothing on that destination. */
extern bool stats_reset_breaker(int32 destination_id);
extern void stats_forget(int32 destination_id);

#endif
