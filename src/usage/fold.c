/*
 * fold.c
 *		What the fold, which is SQL (room.sql), cannot do in SQL.
 *
 * The job usage_fold adds the rest (rest.c) to the totals and moves its position
 * in one statement, by one snapshot: so each report is counted once, however
 * late its transaction commits, and a crash in between has done nothing. It
 * holds the row of its position locked, so there is never a second one.
 *
 * Reports are never deleted one by one. When the table that takes them has
 * grown, the other one takes its turn, and it is emptied as a whole, with
 * TRUNCATE. That is not transactional for those with older snapshots: to them
 * the rows would be gone and not yet in the totals. So it is done in three
 * transactions: the other table takes its turn; once nobody holds the old one
 * who could add to it, and all of it is folded, that is noted; and once every
 * snapshot sees that note, and so the totals, the table is emptied.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "fmgr.h"
#include "storage/procarray.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/xid8.h"

#include "common/argument.h"
#include "common/rows.h"
#include "usage/usage.h"

PG_FUNCTION_INFO_V1(mlint_usage_log_open);
PG_FUNCTION_INFO_V1(mlint_usage_seen_by_all);

/* mlint.usage_log_open() */
Datum
mlint_usage_log_open(PG_FUNCTION_ARGS)
{
	require_writable(fcinfo);
	CacheInvalidateRelcacheByRelid(mlint_relation("usage_fold"));
	PG_RETURN_VOID();
}

/* mlint.usage_seen_by_all(xid) */
Datum
mlint_usage_seen_by_all(PG_FUNCTION_ARGS)
{
	uint64		xid = U64FromFullTransactionId(PG_GETARG_FULLTRANSACTIONID(0));
	Relation	table = table_open(mlint_relation("usage_fold"),
								   AccessShareLock);
	TransactionId oldest = GetOldestNonRemovableTransactionId(table);
	FullTransactionId next = ReadNextFullTransactionId();
	uint64		epoch = EpochFromFullTransactionId(next);

	table_close(table, AccessShareLock);
	if (oldest > XidFromFullTransactionId(next))
		epoch--;
	PG_RETURN_BOOL(xid < ((epoch << 32) | oldest));
}
