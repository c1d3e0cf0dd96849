/*
 * rule.h
 *		Rules and overrides, as each process knows them.
 *
 * mlint.rate_rule and mlint.rate_override are read when they are first needed
 * and kept until they change. A change is announced by a relcache
 * invalidation of the table, which is sent before the commit returns; each
 * lookup takes in what was sent, so a change is in force everywhere from then
 * on, also in the middle of a statement, on a standby, and after COMMIT
 * PREPARED.
 */
#ifndef MLINT_RATE_RULE_H
#define MLINT_RATE_RULE_H

#include "ratelimit/table.h"

typedef enum RateStrategy
{
	RATE_HARD,
	RATE_RETRY_AFTER,
	RATE_QUEUE,
	RATE_THROTTLE,
	RATE_GRACEFUL
} RateStrategy;

typedef enum RateScope
{
	RATE_GLOBAL,
	RATE_USER,
	RATE_IP,
	RATE_ENDPOINT,
	RATE_CUSTOM
} RateScope;

typedef enum RateMode
{
	RATE_EXACT,
	RATE_LEASED
} RateMode;

typedef enum RateFail
{
	RATE_FAIL_OPEN,
	RATE_FAIL_CLOSED,
	RATE_FAIL_LOCAL
} RateFail;

typedef struct RateRule
{
	int64		id;
	char	   *name;
	int			slot;			/* in shared memory */
	RateLaw		law;
	RateStrategy strategy;
	RateScope	scope;
	char	   *setting;		/* where the identifier is found; or NULL */
	int			ipv4_prefix;
	int			ipv6_prefix;
	int64		max_wait;		/* microseconds */
	bool		pre_request;
	char	   *backend;		/* NULL: this server's memory alone */
	RateMode	mode;
	RateFail	fail;
	int64		lease;			/* tokens borrowed at a time */
	struct HTAB *overrides;		/* NULL: there are none */
} RateRule;

typedef enum RateAction
{
	RATE_ALLOW,
	RATE_DENY,
	RATE_LIMIT
} RateAction;

typedef struct RateOverride
{
	RateAction	action;
	RateLaw		law;			/* RATE_LIMIT */
	int64		expires_at;		/* microseconds since 1970; PG_INT64_MAX */
	const char *reason;
} RateOverride;

/*
 * The rule of this name (not terminated). Raises ERRCODE_UNDEFINED_OBJECT.
 * What it points to is good until the next call of this function or of
 * anything else that takes in invalidations. Needs a transaction.
 */
extern const RateRule *rate_rule(const char *name, Size len);

/* All rules with pre_request, as a List of their names. */
extern List *rate_pre_request_rules(void);

/* The override in force for an identifier, or NULL. */
extern const RateOverride *rate_override(const RateRule *rule,
										 const char *identifier, Size len,
										 int64 now);

/* Called once by ratelimit_init(). */
extern void rule_init(void);

#endif
