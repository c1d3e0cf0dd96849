/*
 * decide.h
 *		One decision, from a rule's name and an identifier to an answer.
 *
 * Everything that limits goes through here: the SQL functions, rate_acquire,
 * the trigger, and other rooms (by ratelimit.h). It finds rule and override,
 * judges by the rule's backend, and says why.
 */
#ifndef MLINT_RATE_DECIDE_H
#define MLINT_RATE_DECIDE_H

#include "fmgr.h"

#include "ratelimit/rule.h"

typedef struct RateAnswer
{
	RateVerdict verdict;
	bool		denied;			/* by an override: waiting is of no use */
	bool		degraded;		/* decided with less than the rule asks for */
	const char *reason;			/* static, or the override's; NULL when it was
								 * plainly allowed: see docs/rate-limits.md */
	int			rule;			/* index of the rule that the verdict is of */
} RateAnswer;

/*
 * Decide for n rules together (their names, in the order of `names`): all take
 * or none. identifier as the caller gave it: what scope and prefix make of it
 * happens here. Raises for an unknown rule, a cost below 1 or above what can
 * ever be met, and the same rule twice; never for a refusal. in_turn: see
 * table.h. The answer's verdict is the refusing rule's with the longest
 * retry_after, or else of the rule with the least share remaining.
 */
extern void rate_decide(const char *const *names, const Size *lens, int n,
						const char *identifier, Size len, int64 cost,
						RateIntent intent, bool in_turn, RateAnswer *answer);

/*
 * The identifier that a rule's scope makes of what the caller gave: palloc'd
 * or the caller's own. Raises for an address that is none.
 */
extern const char *rate_identify(const RateRule *rule, const char *given,
								 Size *len);

/*
 * Arguments of SQL functions, read in place: a rule's name must not be null,
 * an identifier that is null counts as empty, and so does a cost as an error.
 */
extern const char *rate_rule_argument(FunctionCallInfo fcinfo, int n,
									  Size *len);
extern const char *rate_identifier_argument(FunctionCallInfo fcinfo, int n,
											Size *len);
extern int64 rate_cost_argument(FunctionCallInfo fcinfo, int n);

/* An answer as mlint.rate_decision, which the function is declared to return. */
extern Datum rate_answer_datum(FunctionCallInfo fcinfo, const char *rule,
							   Size len, const RateAnswer *answer);

/* Microseconds as an interval or a time; PG_INT64_MAX is for ever. */
extern void rate_us_interval(int64 us, Interval *interval);
extern TimestampTz rate_us_timestamp(int64 us);

#endif
