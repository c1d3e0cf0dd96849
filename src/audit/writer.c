/*
 * writer.c
 *		Writes entries into the month's partition, chained.
 *
 * The auditor can be asked for 100,000 entries a second and more, so they go
 * in the way COPY puts rows in: past planner and partition routing, many at a
 * time, one WAL record a page. There is one writer at a time: the auditor; or
 * the transaction that has created the extension and has not committed yet.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "pgtime.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "audit/writer.h"
#include "common/compat.h"
#include "common/owner.h"

#define READ_ROWS	10000

/* The table's columns. */
enum
{
	COLUMN_SEQ,
	COLUMN_MONTH,
	COLUMN_AT,
	COLUMN_PID,
	COLUMN_XID,
	COLUMN_SUBXID,
	COLUMN_HASH,
	COLUMN_TEXTS,
	NCOLUMNS = COLUMN_TEXTS + AUDIT_NFIELDS
};

int
writer_month(TimestampTz at)
{
	struct pg_tm tm;
	fsec_t		fsec;

	if (timestamp2tm(at, NULL, &tm, &fsec, NULL, NULL) != 0)
		elog(ERROR, "timestamp out of range");
	return tm.tm_year * 100 + tm.tm_mon;
}

static int
next_month(int month)
{
	return month % 100 == 12 ? month + 89 : month + 1;
}

/* The partition of a month, or InvalidOid. */
static Oid
find_partition(int month)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "audit_entry_%d", month);
	return get_relname_relid(name, get_namespace_oid("mlint", false));
}

void
writer_prepare_month(int month)
{
	int			months[2] = {month, next_month(month)};

	for (int i = 0; i < lengthof(months); i++)
	{
		Oid			types[1] = {INT4OID};
		Datum		values[1] = {Int32GetDatum(months[i])};
		OwnerScope	scope;

		if (OidIsValid(find_partition(months[i])))
			continue;
		owner_begin(&scope);
		owner_run(NULL, "SELECT mlint.audit_month_begin($1)",
				  SPI_OK_SELECT, 1, types, values, NULL);
		owner_end(&scope);
	}
}

/* Open the partition to write to; if it is gone, it is made again. */
static Relation
open_partition(int month)
{
	Relation	partition;

	if (!OidIsValid(find_partition(month)))
		writer_prepare_month(month);
	partition = table_open(find_partition(month), RowExclusiveLock);
	if (!partition->rd_rel->relispartition ||
		RelationGetDescr(partition)->natts != NCOLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"%s\" is not a partition of the audit log",
						RelationGetRelationName(partition)),
				 errhint("Attach it to mlint.audit_entry again.")));
	return partition;
}

/* The record as it is hashed. */
static void
describe(const AuditRecord *record, int64 seq, ChainEntry *entry)
{
	const char *text = record->texts;

	entry->seq = seq;
	entry->at = record->at;
	entry->pid = record->pid;
	entry->xid = record->xid;
	entry->subxid = record->subxid;
	for (int i = 0; i < AUDIT_NFIELDS; i++)
	{
		bool		isnull = record->len[i] == AUDIT_NULL;

		entry->texts[i].data = isnull ? NULL : text;

		entry->texts[i].len = isnull ? 0 : record->len[i];
		text	  +=entry->texts[i].len;
	}
}

static Datum
xid8_datum(uint64 xid)
{
	return FullTransactionIdGetDatum(FullTransactionIdFromU64(xid));
}

/* The record as a row at the end of the chain. */
static void
fill_row(TupleTableSlot *slot, ChainHead *head, const AuditRecord *record)
{
	ChainEntry	entry;
	Datum	   *values = slot->tts_values;
	bool	   *nulls = slot->tts_isnull;
	bytea	   *hash = palloc(VARHDRSZ + CRYPTO_SHA256_BYTES);

	describe(record, head->seq + 1, &entry);
	chain_hash(head->hash, &entry, head->hash);
	head->seq++;
	SET_VARSIZE(hash, VARHDRSZ + CRYPTO_SHA256_BYTES);
	memcpy(VARDATA(hash), head->hash, CRYPTO_SHA256_BYTES);

	ExecClearTuple(slot);
	memset(nulls, 0, sizeof(bool) * NCOLUMNS);
	values[COLUMN_SEQ] = Int64GetDatum(entry.seq);
	values[COLUMN_MONTH] = Int32GetDatum(head->month);
	values[COLUMN_AT] = TimestampTzGetDatum(entry.at);
	values[COLUMN_PID] = Int32GetDatum(entry.pid);
	values[COLUMN_XID] = xid8_datum(entry.xid);
	nulls[COLUMN_XID] = entry.xid == 0;
	values[COLUMN_SUBXID] = xid8_datum(entry.subxid);
	nulls[COLUMN_SUBXID] = entry.subxid == 0;
	values[COLUMN_HASH] = PointerGetDatum(hash);
	for (int i = 0; i < AUDIT_NFIELDS; i++)
	{
		ChainText  *t = &entry.texts[i];

		nulls[COLUMN_TEXTS + i] = t->data == NULL;
		values[COLUMN_TEXTS + i] = t->data == NULL ? (Datum) 0 :
			PointerGetDatum(cstring_to_text_with_len(t->data, t->len));
	}
	ExecStoreVirtualTuple(slot);
}

void
writer_append(ChainHead *head, const AuditRecord *const *records, int n)
{
	Relation	partition;
	EState	   *estate;
	ResultRelInfo *target;
	TupleTableSlot **slots = palloc(sizeof(TupleTableSlot *) * n);

	/* A clock that was set back does not take the log back. */
	head->month = Max(head->month, writer_month(GetCurrentTimestamp()));
	partition = open_partition(head->month);
	estate = CreateExecutorState();
	target = makeNode(ResultRelInfo);
	InitResultRelInfo(target, partition, 0, NULL, 0);
	ExecOpenIndices(target, false);

	for (int i = 0; i < n; i++)
	{
		slots[i] = table_slot_create(partition, NULL);
		fill_row(slots[i], head, records[i]);
	}
	table_multi_insert(partition, slots, n, GetCurrentCommandId(true), 0,
					   NULL);
	for (int i = 0; i < n; i++)
	{
		if (target->ri_NumIndices > 0)
			(void) mlint_insert_index_tuples(target, slots[i], estate);
		ResetPerTupleExprContext(estate);
		ExecDropSingleTupleTableSlot(slots[i]);
	}
	ExecCloseIndices(target);
	FreeExecutorState(estate);
	pfree(slots);
	/* The lock stays until the transaction ends. */
	table_close(partition, NoLock);
}

/* Read up to so many rows; returns how many there are. */
static uint64
read_rows(const char *sql, int64 argument)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(argument)};

	owner_run(NULL, sql, SPI_OK_SELECT, 1, types, values, NULL);
	return SPI_processed;
}

static Datum
column(uint64 row, int number, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 number, isnull);
}

/* A row (seq, month, hash) as the head. */
static void
take_row(ChainHead *head, uint64 row)
{
	bool		isnull;
	Datum		hash = column(row, 3, &isnull);

	head->seq = DatumGetInt64(column(row, 1, &isnull));
	head->month = DatumGetInt32(column(row, 2, &isnull));
	if (!isnull &&
		VARSIZE_ANY_EXHDR(DatumGetByteaPP(hash)) == CRYPTO_SHA256_BYTES)
		memcpy(head->hash, VARDATA_ANY(DatumGetByteaPP(hash)),
			   CRYPTO_SHA256_BYTES);
}

/*
 * The sequence tells where the log ended a moment ago; from there it is
 * followed as far as it goes without a gap. If entries were removed from its
 * end, numbers go on after them, so that the gap remains to be seen.
 */
void
writer_find_head(ChainHead *head)
{
	OwnerScope	scope;
	int64		noted = 0;
	uint64		n;
	bool		isnull;

	memset(head, 0, sizeof(ChainHead));
	owner_begin(&scope);
	if (read_rows("SELECT s.last_value FROM mlint.audit_head s"
				  " WHERE s.is_called AND $1 = 0", 0) == 1)
		noted = DatumGetInt64(column(0, 1, &isnull));
	if (read_rows("SELECT e.seq, e.month, e.hash FROM mlint.audit_entry e"
				  " WHERE e.seq <= $1 ORDER BY e.seq DESC LIMIT 1", noted) == 1)
		take_row(head, 0);
	head->seq = Max(head->seq, noted);
	do
	{
		n = read_rows("SELECT e.seq, e.month, e.hash FROM mlint.audit_entry e"
					  " WHERE e.seq > $1 ORDER BY e.seq LIMIT "
					  CppAsString2(READ_ROWS), head->seq);
		for (uint64 i = 0; i < n; i++)
		{
			if (DatumGetInt64(column(i, 1, &isnull)) != head->seq + 1)
			{
				n = 0;
				break;
			}
			take_row(head, i);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (n == READ_ROWS);
	owner_end(&scope);
}
