/*
 * remote_store.h
 *		Backends as this process knows them: between remote.c, lease.c and
 *		remote_admin.c.
 */
#ifndef MLINT_RATE_REMOTE_STORE_H
#define MLINT_RATE_REMOTE_STORE_H

#include "ratelimit/remote.h"
#include "ratelimit/remote_kind.h"
#include "storage/spin.h"

/* In shared memory, one for each backend in use. */
typedef struct RemoteState
{
	Oid			database;		/* 0: free */
	int32		backend;
	slock_t		lock;
	Breaker		breaker;
	uint64		failures;
	TimestampTz last_success_at;
	TimestampTz last_error_at;
	char		last_error[256];
} RemoteState;

/* One backend; all of it lies in its context. */
typedef struct RemoteStore
{
	struct RemoteStore *next;
	MemoryContext context;
	int32		id;
	char	   *name;
	const RateRemote *kind;
	RemoteOptions *options;
	RemoteState *state;
	void	   *store;			/* the module's */
	int64		told_at;		/* when the state was told of a success */
} RemoteStore;

extern const ConfiguredSort rate_backends;

/*
 * The module of a kind. Raises ERRCODE_UNDEFINED_FILE if it is not installed;
 * or, with missing_ok, returns NULL.
 */
extern const ConfiguredKind *remote_load(const char *kind, bool missing_ok);

/* Good until invalidations are taken in again. Raises if there is none. */
extern RemoteStore *remote_store(const char *backend);

extern void remote_state_copy(int32 backend, RemoteState *copy);
extern void remote_state_reset(int32 backend);

/* In a transaction that changes mlint.rate_backend. */
extern void remote_changed(void);

/*
 * Ask, minding the breaker. False when it is open, or the backend failed:
 * then *retry_after says when it is worth another try.
 */
extern bool remote_ask(RemoteStore *store, const RemoteAsk *ask,
					   RemoteAnswer *answer, int64 *retry_after);

/* Is its breaker open, so that there is no use in asking? */
extern bool remote_is_away(const RemoteStore *store, int64 *retry_after);

/* Ask whatever the breaker says; the failure is raised. */
extern char *remote_test(const char *backend);

/* The key of an identifier's state, palloc'd. */
extern char *remote_key(const char *rule, const RateKey *key, size_t *len);

/* ---- leases (lease.c) ---- */

/* As remote_decide(), of a leased rule; false: the backend is away. */
extern bool lease_decide(RemoteStore *store, const RateRule *rule,
						 const RateLaw *law, const RateKey *key, int64 cost,
						 RateIntent intent, bool in_turn,
						 RateVerdict *verdict, int64 *retry_after);

/* There is a leased rule: from now on unused slices are looked for. */
extern void lease_begin(void);
extern void lease_init(void);

#endif
