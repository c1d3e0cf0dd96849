/*
 * ratelimit.h
 *		Rate limits, for the other rooms.
 *
 * How the room is made: law.c is the arithmetic, table.c the shared table of
 * keys, rule_slot.c what the keys of a rule have in common there, save.c their
 * file over a restart; rule.c knows the rules and rule_admin.c changes them; identifier.c says whom a rule means, decide.c decides and has
 * the SQL functions that answer at once; acquire.c waits, with queue.c for the
 * order; remote.c asks a backend that several servers share (the Redis one is
 * the module mlint_redis); stats.c shows.
 */
#ifndef MLINT_RATELIMIT_H
#define MLINT_RATELIMIT_H

/* Settings and shared memory. Called once by _PG_init. */
extern void ratelimit_init(void);

/*
 * For a worker: may this pass now? If not, microseconds until it may be worth
 * asking again. A rule that is gone lets pass. Needs a transaction. Does not
 * wait, but for a slice of a leased rule that is used up.
 */
extern bool rate_pass(const char *rule, const char *identifier,
					  int64 *retry_after);

/*
 * May a worker that must not wait keep to this rule? Raises
 * ERRCODE_UNDEFINED_OBJECT, and ERRCODE_MLINT_CONFIGURATION for a rule whose
 * backend is asked for each decision. "what" names the option.
 */
extern void rate_rule_check_for_worker(const char *rule, const char *what);

/*
 * A room whose workers keep to rules says so once, at the server's start, with
 * a function that is given a rule's name and returns who keeps to it, such as
 * 'destination "x"', or NULL. Such a rule cannot be dropped, nor become one
 * that a worker must not keep to.
 */
typedef char *(*RateRuleUser) (const char *rule);

extern void rate_rule_watch(RateRuleUser user);

#endif
