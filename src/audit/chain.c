/*
 * chain.c
 *		The chain of hashes: how an entry is hashed, and audit_verify().
 *
 * The hash of an entry is SHA-256 over the hash before it and the entry's
 * columns in a fixed order and an unambiguous form: numbers big-endian in 8
 * bytes (pid in 4, null as 0), the time as microseconds since 2000-01-01 UTC,
 * texts with their length in 4 bytes before them, and a null as the length
 * 0xFFFFFFFF. These are the forms that PostgreSQL's own int8send() and
 * timestamptz_send() give, so that the chain can be recomputed in SQL, or by
 * anybody who has a copy.
 *
 * audit_verify() walks the log in order of seq and reports the first entry
 * that does not fit. That something is missing at the end is known from the
 * sequence in which the auditor notes where the log ends, and from the
 * auditor's memory; that the beginning is missing is right if the audit log
 * itself has an entry which says that it was purged, with the hash to go on
 * from.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "audit/chain.h"
#include "common/compat.h"
#include "common/owner.h"

PG_FUNCTION_INFO_V1(mlint_audit_verify);

#define FETCH_ROWS		1000
#define INTACT			PG_INT64_MIN	/* no entry: nothing is broken */
#define FIXED_BYTES		(CRYPTO_SHA256_BYTES + 4 * 8 + 4)

/* ---- hashing ---- */

static uint8 *
put_int64(uint8 *out, uint64 value)
{
	uint64		big = pg_hton64(value);

	memcpy(out, &big, sizeof(big));
	return out + sizeof(big);
}

static uint8 *
put_int32(uint8 *out, uint32 value)
{
	uint32		big = pg_hton32(value);

	memcpy(out, &big, sizeof(big));
	return out + sizeof(big);
}

void
chain_hash(const uint8 before[CRYPTO_SHA256_BYTES], const ChainEntry *entry,
		   uint8 hash[CRYPTO_SHA256_BYTES])
{
	uint8		small[FIXED_BYTES + AUDIT_NFIELDS * 4 + AUDIT_ENTRY_MAX];
	uint8	   *encoded = small;
	uint8	   *out;
	size_t		len = FIXED_BYTES;

	/* What we have written fits; what somebody else has may not. */
	for (int i = 0; i < AUDIT_NFIELDS; i++)
		len += 4 + entry->texts[i].len;
	if (len > sizeof(small))
		encoded = MemoryContextAllocHuge(CurrentMemoryContext, len);

	memcpy(encoded, before, CRYPTO_SHA256_BYTES);
	out = encoded + CRYPTO_SHA256_BYTES;
	out = put_int64(out, entry->seq);
	out = put_int64(out, entry->at);
	out = put_int32(out, entry->pid);
	out = put_int64(out, entry->xid);
	out = put_int64(out, entry->subxid);
	for (int i = 0; i < AUDIT_NFIELDS; i++)
	{
		const ChainText *text = &entry->texts[i];

		out = put_int32(out, text->data ? text->len : PG_UINT32_MAX);
		if (text->len > 0)
			memcpy(out, text->data, text->len);
		out += text->len;
	}
	crypto_sha256(encoded, len, hash);
	if (encoded != small)
		pfree(encoded);
}

/* ---- verifying ---- */

/* A row of mlint.audit_entry, in the order in which we select. */
#define COLUMNS "e.seq, e.month, e.hash, e.at, e.pid, e.xid, e.subxid," \
	" e.role, e.session_role, e.application, e.client_addr, e.action," \
	" e.object_type, e.object, e.outcome, e.details"

static Datum
column(int row, int number, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 number, isnull);
}

/* A number, 0 for null. */
static int64
column_int64(int row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

/* The hash in a column; false when it can be none. */
static bool
column_hash(int row, int number, uint8 hash[CRYPTO_SHA256_BYTES])
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);
	bytea	   *bytes;

	if (isnull)
		return false;
	bytes = DatumGetByteaPP(value);
	if (VARSIZE_ANY_EXHDR(bytes) != CRYPTO_SHA256_BYTES)
		return false;
	memcpy(hash, VARDATA_ANY(bytes), CRYPTO_SHA256_BYTES);
	return true;
}

/* Does the row follow what head stands for? If so, it is the head. */
static bool
row_follows(int row, ChainHead *head)
{
	ChainEntry	entry = {0};
	uint8		stored[CRYPTO_SHA256_BYTES];
	uint8		computed[CRYPTO_SHA256_BYTES];
	bool		isnull;
	int			month = DatumGetInt32(column(row, 2, &isnull));

	if (isnull || month < head->month || !column_hash(row, 3, stored))
		return false;
	entry.seq = column_int64(row, 1);
	entry.at = column_int64(row, 4);
	entry.pid = DatumGetInt32(column(row, 5, &isnull));
	entry.xid = column_int64(row, 6);
	entry.subxid = column_int64(row, 7);
	for (int i = 0; i < AUDIT_NFIELDS; i++)
	{
		Datum		value = column(row, 8 + i, &isnull);

		if (!isnull)
		{
			text	   *t = DatumGetTextPP(value);

			entry.texts[i].data = VARDATA_ANY(t);
			entry.texts[i].len = VARSIZE_ANY_EXHDR(t);
		}
	}
	chain_hash(head->hash, &entry, computed);
	if (!crypto_equal(stored, computed, sizeof(stored)))
		return false;
	head->seq = entry.seq;
	head->month = month;
	memcpy(head->hash, stored, sizeof(stored));
	return true;
}

/* Run a statement with one bigint; returns the number of rows. */
static uint64
run(const char *sql, int64 argument)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(argument)};

	if (SPI_execute_with_args(sql, 1, types, values, NULL, true,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the audit log");
	return SPI_processed;
}

/* Where the retained log begins: the head that it goes on from. */
static void
find_beginning(ChainHead *head)
{
	memset(head, 0, sizeof(ChainHead));
	if (run("SELECT (p.details::jsonb ->> 'to')::bigint,"
			" decode(p.details::jsonb ->> 'hash', 'hex')"
			" FROM mlint.audit_entry p"
			" WHERE p.object_type = 'audit_log' AND p.action = 'audit.purged'"
			" AND p.seq > $1"
			" AND coalesce(pg_xact_status(p.subxid), 'committed') = 'committed'"
			" AND NOT EXISTS (SELECT FROM mlint.audit_entry r"
			" WHERE r.action = 'transaction.rolled_back'"
			" AND r.object = p.subxid::text)"
			" ORDER BY p.seq DESC LIMIT 1", 0) == 0)
		return;
	if (column_hash(0, 2, head->hash))
		head->seq = column_int64(0, 1);
}

/*
 * The first entry from head on, up to the last one, that is not as it was, or
 * INTACT.
 */
static int64
first_broken(ChainHead *head, int64 from, int64 to, int64 end)
{
	Oid			types[2] = {INT8OID, INT8OID};
	Datum		values[2] = {Int64GetDatum(from), Int64GetDatum(to)};
	Portal		cursor;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "mlint audit_verify",
												  ALLOCSET_DEFAULT_SIZES);
	int64		broken = INTACT;

	cursor = SPI_cursor_open_with_args(NULL,
									   "SELECT " COLUMNS " FROM mlint.audit_entry e"
									   " WHERE e.seq >= $1 AND e.seq <= $2"
									   " ORDER BY e.seq, e.month",
									   2, types, values, NULL, true, 0);
	while (broken == INTACT)
	{
		MemoryContext old;

		SPI_cursor_fetch(cursor, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		old = MemoryContextSwitchTo(context);
		for (uint64 i = 0; i < SPI_processed && broken == INTACT; i++)
		{
			int64		seq = column_int64(i, 1);
			int64		expected = head->seq + 1;

			CHECK_FOR_INTERRUPTS();
			if (seq > expected && expected <= end)
				broken = expected;	/* removed */
			else if (seq != expected || !row_follows(i, head))
				broken = seq;	/* inserted, changed */
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(cursor);
	if (broken == INTACT && head->seq < Min(to, end))
		broken = head->seq + 1;
	return broken;
}

/* What lies before the beginning: put there, or put back after a purge. */
static int64
first_before(const ChainHead *head)
{
	bool		isnull;
	int64		seq;

	(void) run("SELECT min(e.seq) FROM mlint.audit_entry e WHERE e.seq <= $1",
			   head->seq);
	seq = DatumGetInt64(column(0, 1, &isnull));
	return isnull ? INTACT : seq;
}

/*
 * The log between two entries, PG_INT64_MIN: its beginning, PG_INT64_MAX: its
 * end. Returns INTACT, or the first entry that is not. The order of what is
 * read matters, since the log grows meanwhile: first where it must reach to,
 * then the snapshot, then where it may reach to. With the lock no month can be
 * dropped under us.
 */
static int64
verify(int64 from, int64 to)
{
	Oid			log = get_relname_relid("audit_entry",
										get_namespace_oid("mlint", false));
	ChainHead	head;
	int64		end = 0;
	int64		known = 0;
	int64		written;
	int64		committing;
	int64		broken = INTACT;

	LockRelationOid(log, AccessShareLock);
	if (audit_area_head(&written, &committing))
		end = written;
	if (run("SELECT CASE WHEN s.is_called THEN s.last_value ELSE 0 END"
			" FROM mlint.audit_head s WHERE $1 = 0", 0) == 1)
		end = Max(end, column_int64(0, 1));

	PushActiveSnapshot(GetLatestSnapshot());
	find_beginning(&head);
	if (from <= head.seq)
		broken = first_before(&head);
	else if (from > head.seq + 1)
	{
		head.seq = from - 1;
		if (run("SELECT e.hash, e.month FROM mlint.audit_entry e"
				" WHERE e.seq = $1", head.seq) == 0 ||
			!column_hash(0, 1, head.hash))
			broken = from <= end ? from : INTACT;
	}
	if (broken == INTACT)
		broken = first_broken(&head, head.seq + 1, to, end);
	PopActiveSnapshot();

	/* What is there beyond what the auditor ever wrote, somebody else put. */
	if (audit_area_head(&written, &committing))
		known = committing;
	if (broken == INTACT && known > 0 && head.seq >= from && head.seq > known)
		broken = known + 1;
	return broken;
}

/* mlint.audit_verify(from_seq, to_seq) */
Datum
mlint_audit_verify(PG_FUNCTION_ARGS)
{
	static const char *const by_index[] = {"enable_seqscan",
	"enable_bitmapscan", "enable_sort", "enable_incremental_sort"};
	int64		from = PG_ARGISNULL(0) ? PG_INT64_MIN : PG_GETARG_INT64(0);
	int64		to = PG_ARGISNULL(1) ? PG_INT64_MAX : PG_GETARG_INT64(1);
	OwnerScope	scope;
	int64		broken;

	owner_begin(&scope);
	/* By index, in order, whatever the statistics say. */
	for (int i = 0; i < lengthof(by_index); i++)
		(void) set_config_option(by_index[i], "off", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	broken = verify(from, to);
	owner_end(&scope);
	if (broken == INTACT)
		PG_RETURN_NULL();
	PG_RETURN_INT64(broken);
}
