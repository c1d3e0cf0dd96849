/*
 * usage.h
 *		Tokens, latency and money: counted in the caller's transaction.
 *
 * usage_track() appends one row and nothing else, so that no row is hot. A job
 * folds what was appended into totals by hour, day, model, tag and session; a
 * report is the totals and the short rest that is not folded yet, both in one
 * snapshot, so that it is exact at any moment.
 */
#ifndef MLINT_USAGE_H
#define MLINT_USAGE_H

/* Called once by _PG_init. */
extern void usage_init(void);

/*
 * A session is removed: its totals go, those of models, tags and days stay.
 * In an owner scope.
 */
extern void usage_forget_session(int64 session);

/*
 * Raise ERRCODE_MLINT_RATE_LIMITED when a budget whose action is refuse, and
 * that the session falls under, is spent. For whatever leads to spending.
 */
extern void usage_budget_require(int64 session);

#endif
