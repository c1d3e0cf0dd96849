/*
 * remote_kind.h
 *		What a kind of shared backend is: between remote.c and its module.
 *
 * A module (mlint_redis) has one function, mlint_rate_remote, which gets what
 * the core can do for it and hands over what it can do for the core. It need
 * not see any symbol of the core's. All verbs run in the calling process, wait
 * on its latch, end within the backend's timeouts, and report a failure of
 * their peer as a value; what they raise is an interrupt, or out of memory.
 *
 * The store keeps one state for each key, and changes it in one atomic step by
 * its own clock. What it answers with is the state it judged; the verdict's
 * figures are then law.c's.
 */
#ifndef MLINT_RATE_REMOTE_KIND_H
#define MLINT_RATE_REMOTE_KIND_H

#include "common/breaker.h"
#include "common/configured.h"
#include "common/http.h"
#include "ratelimit/law.h"

/* What every backend has; the options of a kind begin with this. */
typedef struct RemoteOptions
{
	int			timeout_ms;		/* of a round trip */
	int			connect_timeout_ms;
	BreakerPolicy breaker;
} RemoteOptions;

typedef struct RemoteFailure
{
	int			sqlstate;
	char text[	256];			/* for a person; the rest of a sentence */
} RemoteFailure;

/*
 * First `give` tokens go back that were taken `give_age` microseconds ago;
 * then, of intent TAKE or TAKE_NOW, as many are taken as there are, at most
 * `want`, or none if that is fewer than `need`. PEEK changes nothing, FORGET
 * removes the state.
 */
typedef struct RemoteAsk
{
	const char *key;			/* any bytes; the cluster's hash tag is in it */
	size_t		key_len;
	const RateLaw *law;
	RateIntent	intent;
	int64		need;
	int64		want;
	int64		give;
	int64		give_age;
} RemoteAsk;

typedef struct RemoteAnswer
{
	int64		now;			/* by the store's clock */
	int64		taken;
	RateState	before;			/* what was given is in it, what was taken not */
} RemoteAnswer;

typedef struct RateRemote
{
	ConfiguredKind base;

	/*
	 * What the table cannot say; raises ERRCODE_MLINT_CONFIGURATION. And of a
	 * law: NULL, or why the store cannot keep to it (a whole sentence).
	 */
	void		(*check) (const RemoteOptions *options, const char *what);
	const char *(*check_law) (const RateLaw *law);

	/*
	 * A store, in the current memory context, which ends it; connects to
	 * nothing yet. The options stay where they are for as long.
	 */
	void	   *(*open) (const RemoteOptions *options);

	/* False, with *failure filled, when there is no answer. */
	bool		(*decide) (void *store, const RemoteAsk *ask,
						   RemoteAnswer *answer, RemoteFailure *failure);

	/* Remove all states whose key begins so. */
	bool		(*forget) (void *store, const char *beginning, size_t len,
						   RemoteFailure *failure);

	/* Connect anew, and say what was found: palloc'd. */
	bool		(*test) (void *store, char **words, RemoteFailure *failure);
} RateRemote;

/* What the core does for a module. */
typedef struct RemoteHost
{
	uint32		version;		/* REMOTE_VERSION of the core */
	HttpConnection *(*connect) (const ConnectionTarget *target,
								HttpResponse *failure);
	void		(*close) (HttpConnection *connection);
	ssize_t		(*send) (HttpConnection *connection, const void *data,
						 size_t len);
	ssize_t		(*receive) (HttpConnection *connection, void *data,
							size_t size);
	bool		(*wait) (HttpConnection *connection, bool writable,
						 int64 deadline);
	bool		(*stale) (HttpConnection *connection);
	int64		(*clock) (void);

	/* As credential_resolve(), but a failure is a value: NULL. */
	char	   *(*credential) (const Credential *c, size_t *len,
							   RemoteFailure *failure);
	void		(*wipe) (void *data, size_t len);
} RemoteHost;

/* Changes with every struct above. */
#define REMOTE_VERSION	2

/* NULL: the module is of another version. */
typedef const RateRemote *(*RateRemoteEntry) (const RemoteHost *host);

#endif
