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

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

#include "common/compat.h"
#include "ratelimit/table.h"

/* From PostgreSQL's epoch to Unix's, in microseconds. */
#define RATE_EPOCH_US \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

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
	Size		name_len;
	int			slot;			/* in shared memory; in the cache also -1 */
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
	int64		lease;			/* tokens borrowed at a time; 0: not said */
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
 * The rule of this name (not terminated). Raises ERRCODE_UNDEFINED_OBJECT;
 * rate_rule_find() returns NULL instead. What it points to is good until the
 * next call of one of these functions. Needs a transaction.
 */
extern const RateRule *rate_rule(const char *name, Size len);
extern const RateRule *rate_rule_find(const char *name, Size len);

/* Its id, for who only wants to look at what is there; 0 when there is none. */
extern int64 rate_rule_id(const char *name, Size len);

/* Several at once, so that all are good together. Raises as rate_rule(). */
extern void rate_rules(const char *const *names, const Size *lens, int n,
					   const RateRule **rules);

extern void rate_rule_unknown(const char *name, Size len)
			pg_attribute_noreturn();

/* All rules with pre_request, as a List of their names, in order. */
extern List *rate_pre_request_rules(void);

/* The override in force for an identifier, or NULL. */
extern const RateOverride *rate_override(const RateRule *rule,
										 const char *identifier, Size len,
										 int64 now);

/* The words of the enums above, in their order; NULL ends each list. */
extern const char *const rate_algorithm_words[];
extern const char *const rate_strategy_words[];
extern const char *const rate_scope_words[];
extern const char *const rate_mode_words[];
extern const char *const rate_fail_words[];
extern const char *const rate_action_words[];

/* The place of a word in its list; -1 when it is not there. */
extern int	rate_word(const char *const *words, const char *word);

/*
 * An interval in microseconds; a day has 24 hours. False when it has months,
 * is negative, or is longer than RATE_MAX_PER.
 */
extern bool rate_interval_us(const Interval *interval, int64 *us);

/*
 * The law of a rule, or of an override by its own rate and burst (0: not
 * given). Returns what law_prepare() returns.
 */
extern const char *rate_law(RateLaw *law, RateAlgorithm algorithm, int64 rate,
							int64 per, int64 burst);

/* Called once by ratelimit_init(). */
extern void rule_init(void);

#endif
