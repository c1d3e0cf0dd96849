/*
 * rows.c
 *		Reading our own tables by their indexes; see rows.h.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "common/rows.h"
#include "storage/lockdefs.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

Oid
mlint_relation(const char *name)
{
	Oid			found = get_relname_relid(name,
										  get_namespace_oid("mlint", false));

	if (!OidIsValid(found))
		elog(ERROR, "relation mlint.%s does not exist", name);
	return found;
}

void
row_key(ScanKey key, AttrNumber attribute, Oid equal, Datum value)
{
	ScanKeyInit(key, attribute, BTEqualStrategyNumber, equal, value);
}

void
rows_begin(RowScan *scan, const char *table, const char *index,
		   int nkeys, ScanKey keys, bool latest)
{
	scan->snapshot = NULL;
	if (latest || !ActiveSnapshotSet())
		scan->snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan->relation = table_open(mlint_relation(table), AccessShareLock);
	scan->desc = RelationGetDescr(scan->relation);
	scan->scan = systable_beginscan(scan->relation, mlint_relation(index),
									true,
									scan->snapshot ? scan->snapshot :
									GetActiveSnapshot(), nkeys, keys);
}

HeapTuple
rows_next(RowScan *scan)
{
	return systable_getnext(scan->scan);
}

void
rows_end(RowScan *scan)
{
	systable_endscan(scan->scan);
	table_close(scan->relation, AccessShareLock);
	if (scan->snapshot)
		UnregisterSnapshot(scan->snapshot);
}
