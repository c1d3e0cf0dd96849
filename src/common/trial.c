/*
 * trial.c
 *		Try what may raise, and go on if it does; see trial.h.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/trial.h"
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

void
error_take(char *message, size_t size)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(TopMemoryContext, "mlint error",
											   ALLOCSET_SMALL_SIZES);
	ErrorData  *error;

	MemoryContextSwitchTo(work);
	error = CopyErrorData();
	strlcpy(message, error->message ? error->message :
			"an error without a message", size);
	FlushErrorState();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
}
