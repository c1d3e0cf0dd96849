/*
 * procedure.c
 *		What procedures that jobs call have in common.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "replication/syncrep.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "worker/worker.h"

void
job_procedure_begin(FunctionCallInfo fcinfo, const char *procedure,
					const char *hint)
{
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("%s cannot run inside a transaction block", procedure),
				 errhint("%s", hint)));
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
job_procedure_end(void)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

bool
job_transaction(JobWork work, void *arg, bool durable)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	bool		more;

	if (durable)
		job_commit_durably();
	more = work(arg);
	MemoryContextSwitchTo(old);
	SPI_commit();
	return more;
}

void
job_commit_durably(void)
{
	/* A lower source would change what it is reset to, and not what is SET. */
	if (synchronous_commit < SYNCHRONOUS_COMMIT_REMOTE_FLUSH)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0,
								 false);
}

void
job_seen_durably(void)
{
	job_commit_durably();
	XLogFlush(XactLastRecEnd);
	HOLD_INTERRUPTS();
	SyncRepWaitForLSN(XactLastRecEnd, false);
	RESUME_INTERRUPTS();
	CHECK_FOR_INTERRUPTS();
}
