/*
 * userfunction.h
 *		Functions of the user's that an option names, and workers call.
 *
 * They run as the role that named them, with its privileges and in a
 * security-restricted operation, and for no longer than a timeout.
 */
#ifndef MLINT_USERFUNCTION_H
#define MLINT_USERFUNCTION_H

#include "storage/lock.h"

/* What such a function is like, and how messages speak of it. */
typedef struct UserFunctionKind
{
	int			nargs;
	const Oid  *types;
	const char *shown;			/* the types, "jsonb" */
	const char *takes;			/* "one argument of type jsonb, the event" */
	const char *owner_did;		/* the role that "created the destination" */
} UserFunctionKind;

/*
 * The function of this name ("schema.function") and kind, with the given
 * result type (InvalidOid: any), which the owner may execute. Raises
 * ERRCODE_MLINT_CONFIGURATION, ERRCODE_INSUFFICIENT_PRIVILEGE or, where the
 * owner is gone, ERRCODE_UNDEFINED_OBJECT; with
 * missing_ok InvalidOid says that there is none.
 */
extern Oid	user_function(const char *name, const UserFunctionKind *kind,
						  Oid result, Oid owner, const char *what,
						  bool missing_ok);

/*
 * Call it as the owner. The timeout works in a worker only; in a session the
 * session's own statement_timeout does. Errors pass through.
 */
extern Datum user_function_call(Oid function, const UserFunctionKind *kind,
								Oid owner, const Datum *args, int timeout_ms,
								bool *isnull);

/*
 * The one advisory lock that this process has as a session: none of these
 * functions takes it away, and none leaves another behind.
 */
extern void user_function_keeps(const LOCKTAG *tag, LOCKMODE mode);

#endif
