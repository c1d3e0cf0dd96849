/*
 * rows.h
 *		Reading our own tables without SPI, where a read must cost little.
 *
 * A scan of one of mlint's tables by one of its indexes. The snapshot is the
 * calling statement's, so that a STABLE function stays that; or, with
 * "latest", what is committed (and ours) now. No privileges are asked for.
 */
#ifndef MLINT_ROWS_H
#define MLINT_ROWS_H

#include "access/genam.h"
#include "access/skey.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

typedef struct RowScan
{
	TupleDesc	desc;
	Relation	relation;
	SysScanDesc scan;
	Snapshot	snapshot;		/* registered by us, or NULL */
} RowScan;

/* The table or index of this name in schema mlint. */
extern Oid	mlint_relation(const char *name);

/* attribute = value, by the function of this OID (F_TEXTEQ, F_INT8EQ, ...) */
extern void row_key(ScanKey key, AttrNumber attribute, Oid equal,
					Datum value);

extern void rows_begin(RowScan *scan, const char *table, const char *index,
					   int nkeys, ScanKey keys, bool latest);

/* The next row, valid until the next call; NULL after the last. */
extern HeapTuple rows_next(RowScan *scan);
extern void rows_end(RowScan *scan);

#endif
