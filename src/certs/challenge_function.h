/*
 * challenge_function.h
 *		A function of the user's that shows what the authority looks for.
 */
#ifndef MLINT_CHALLENGE_FUNCTION_H
#define MLINT_CHALLENGE_FUNCTION_H

/* What it is told; NULL: it is not known, or does not apply. */
typedef struct ChallengeCall
{
	const char *action;			/* "present", "remove" */
	const char *type;			/* "http-01", "dns-01" */
	const char *identifier;
	const char *token;
	const char *record;
	const char *zone;
	const char *value;
} ChallengeCall;

/*
 * May the owner have it called? what names the option, owner_did is as in
 * userfunction.h. Raises what is wrong.
 */
extern void challenge_function_check(const char *function, Oid owner,
									 const char *what, const char *owner_did);

/* Call it as the owner. In a worker it may take timeout_ms. */
extern void challenge_function_call(const char *function, Oid owner,
									const char *what, const char *owner_did,
									const ChallengeCall *call,
									int timeout_ms);

#endif
