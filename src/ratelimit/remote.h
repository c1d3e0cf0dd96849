/*
 * remote.h
 *		Rules that several servers share: a backend decides, or lends.
 *
 * The core knows no protocol. A backend's kind is a module of its own, loaded
 * by the process that first needs it, which hands over a RateRemote. Around it
 * is what every kind needs: the options (mlint.rate_backend), the breaker
 * (one a rule, in shared memory), what happens when the backend is away, and
 * leases.
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

/* Called once by ratelimit_init(). */
extern void remote_init(void);

#endif
