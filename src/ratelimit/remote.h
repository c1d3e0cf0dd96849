/*
 * remote.h
 *		Rules that several servers share: a backend decides, or lends.
 *
 * The core knows no protocol. A backend's kind is a module of its own, loaded
 * by the process that first needs it, which hands over a RateRemote (see
 * remote_kind.h). Around it is what every kind needs: the options
 * (mlint.rate_backend), the breaker (one a backend, in shared memory), what
 * happens when the backend is away, and leases (lease.c).
 */
#ifndef MLINT_RATE_REMOTE_H
#define MLINT_RATE_REMOTE_H

#include "ratelimit/decide.h"

/*
 * Decide for a rule with a backend, by this law (the rule's, or an
 * override's): exact, leased, or, when the backend is away, as the rule's
 * `fail` says; then *degraded and *reason are set. Never raises for a
 * backend's failure.
 */
extern bool remote_decide(const RateRule *rule, const RateLaw *law,
						  const char *identifier, Size len, int64 cost,
						  RateIntent intent, bool in_turn,
						  RateVerdict *verdict, bool *degraded,
						  const char **reason);

/*
 * Can there be this rule? For whoever creates or alters one, before it is
 * written; its backend is not NULL. Raises ERRCODE_UNDEFINED_OBJECT for a
 * backend that does not exist, ERRCODE_MLINT_CONFIGURATION for what the
 * backend cannot do. rule->slot and rule->overrides are not looked at.
 */
extern void remote_check_rule(const RateRule *rule);

/* The same for the law of an override. */
extern void remote_check_law(const char *rule, const char *backend,
							 const RateLaw *law);

/*
 * Have the backend forget what all identifiers have used of a rule. Raises what
 * goes wrong.
 */
extern void remote_forget_rule(const RateRule *rule);

/* Called once by ratelimit_init(). */
extern void remote_init(void);

#endif
