/*
 * trial.c
 *		Try what may raise, and go on if it does; see trial.h.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/trial.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

static void
restore(const Trial *trial)
{
	MemoryContextSwitchTo(trial->context);
	CurrentResourceOwner = trial->resources;
}

void
trial_begin(Trial *trial)
{
	trial->context = CurrentMemoryContext;
	trial->resources = CurrentResourceOwner;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(trial->context);
}

void
trial_end(const Trial *trial)
{
	ReleaseCurrentSubTransaction();
	restore(trial);
}

void
trial_undo(const Trial *trial)
{
	RollbackAndReleaseCurrentSubTransaction();
	restore(trial);
}

ErrorData *
trial_failed(const Trial *trial)
{
	ErrorData  *error;

	MemoryContextSwitchTo(trial->context);
	error = CopyErrorData();
	FlushErrorState();
	trial_undo(trial);
	return error;
}

static const char *
said(const ErrorData *error)
{
	return error->message ? error->message : "an error without a message";
}

void
error_take(char *message, size_t size)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(TopMemoryContext, "mlint error",
											   ALLOCSET_SMALL_SIZES);
	ErrorData  *error;

	MemoryContextSwitchTo(work);
	error = CopyErrorData();
	strlcpy(message, said(error), size);
	FlushErrorState();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
}

char *
error_reason(const ErrorData *error)
{
	char	   *reason = error->detail ?
	psprintf("%s (%s)", said(error), error->detail) : pstrdup(said(error));
	int			len = strlen(reason);

	if (len <= ERROR_REASON_MAX)
		return reason;
	return psprintf("%.*s...", pg_mbcliplen(reason, len, ERROR_REASON_MAX),
					reason);
}
