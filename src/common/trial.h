/*
 * trial.h
 *		Try what may raise, and go on if it does.
 *
 *		trial_begin(&trial);
 *		PG_TRY();
 *		{
 *			what may raise
 *			trial_end(&trial);
 *		}
 *		PG_CATCH();
 *		{
 *			error = trial_failed(&trial);
 *		}
 *		PG_END_TRY();
 *
 * It runs in a subtransaction, which is over in any case when the error is
 * looked at or raised again: one that was left open would leave a session that
 * has begun no block in a failed one.
 */
#ifndef MLINT_TRIAL_H
#define MLINT_TRIAL_H

#include "utils/palloc.h"
#include "utils/resowner.h"

typedef struct Trial
{
	MemoryContext context;
	ResourceOwner resources;
} Trial;

/* The memory context stays the caller's. */
extern void trial_begin(Trial *trial);
extern void trial_end(const Trial *trial);

/* In place of trial_end(): it was only to be seen whether it can be done. */
extern void trial_undo(const Trial *trial);

/*
 * In PG_CATCH: undo what was tried, and return the error, palloc'd in the
 * caller's context and cleared. ReThrowError() raises it again.
 */
extern ErrorData *trial_failed(const Trial *trial);

/*
 * In PG_CATCH without a trial: clear the error, and take its message. For whoever
 * has a long life: FreeErrorData() leaves some of what CopyErrorData() copies.
 */
extern void error_take(char *message, size_t size);

/*
 * What an error says, with its detail, palloc'd: at most ERROR_REASON_MAX bytes,
 * and three dots, so that it goes into an audit entry (AUDIT_ENTRY_MAX) also when
 * each byte takes six to be escaped.
 */
#define ERROR_REASON_MAX	1000
extern char *error_reason(const ErrorData *error);

#endif
