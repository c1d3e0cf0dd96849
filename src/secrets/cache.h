/*
 * cache.h
 *		Values from secret backends, kept in shared memory; breakers, counters.
 *
 * Values are sealed: see cache.c. Everything is of the current database.
 */
#ifndef MLINT_SECRET_CACHE_H
#define MLINT_SECRET_CACHE_H

#include "common/breaker.h"
#include "nodes/pg_list.h"
#include "secrets/secrets.h"

/*
 * What an entry is about. The digest of the backend's options is part of it,
 * so that what was read under other options is never found. slot is NULL for
 * the value of a secret, or names what a kind keeps for itself.
 */
typedef struct CacheItem
{
	int32		backend;
	const uint8 *digest;		/* 32 bytes */
	const char *slot;
	const char *name;
	const char *version;		/* as asked for; NULL: the current one */
} CacheItem;

typedef enum CacheState
{
	CACHE_NOTHING,
	CACHE_STALE,				/* to be used when the backend is down */
	CACHE_FRESH
} CacheState;

/* Shared memory, and the key. Called once by _PG_init. */
extern void cache_init(void);

/*
 * Look. The value is palloc'd, as its caller must wipe it. With watch the
 * entry is from now on kept fresh by mlint.secret_refresh().
 */
extern CacheState cache_find(const CacheItem *item, bool watch,
							 SecretValue *value);

/*
 * Keep a value; ttl_s and stale_s are counted from now. The epoch is the one
 * that cache_epoch() gave before the value was read: when entries were
 * forgotten since then, the value may be older than that and is not kept.
 */
extern uint64 cache_epoch(int32 backend);
extern void cache_store(const CacheItem *item, const SecretValue *value,
						uint64 epoch, int64 ttl_s, int64 stale_s, bool watch);

/*
 * Forget the entries of a backend (0: of all), of one secret or (NULL) of all.
 * Those that are watched can't be read any more, but mlint.secret_refresh()
 * still knows them; "entirely" ends that as well. True when there was one.
 */
extern bool cache_forget(int32 backend, const char *name, bool entirely);
extern void cache_remove(const CacheItem *item);

/* Take out what can't be served any more. */
extern void cache_sweep(void);

/* Watched entries that run out before then: a List of these. */
typedef struct CacheWatched
{
	int32		backend;
	char	   *name;
	char	   *version;		/* NULL: the current one */
	uint8		digest[32];		/* of what the entry is about */
} CacheWatched;

extern List *cache_watched(TimestampTz before);

/* Is it this item's? Not when the backend's options have changed since. */
extern bool cache_watches(const CacheWatched *watched, const CacheItem *item);
extern void cache_unwatch(const CacheWatched *watched);

/* ---- a backend's breaker and counters ---- */

typedef struct BackendState
{
	Breaker		breaker;
	uint64		epoch;
	int64		hits;
	int64		misses;
	int64		stale;
	TimestampTz last_success_at;
	TimestampTz last_error_at;
	char		last_error[256];
} BackendState;

/* Exclusive until unlocked; made if it is not there. Nothing may raise. */
extern BackendState *backend_state_lock(int32 backend);
extern void backend_state_unlock(BackendState *state);
extern void backend_state_forget(int32 backend);

/* Entries with a value that can be served, and a copy of the state. */
extern int	cache_count(int32 backend, BackendState *copy);

#endif
