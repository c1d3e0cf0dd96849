/*
 * move.c
 *		The job archive_move: bytes of archives to the store, and objects of
 *		removed archives out of it.
 *
 * One archive at a time, in two transactions. The first enters the object that
 * is to be made into mlint.archive_garbage, as one that nobody needs. The second
 * sends the chunks, reads them back by their digests, locks the archive's row,
 * and if that is what it was, names the store in it, deletes the chunks and the
 * entry. So the bytes are in the database until they are known to be in the
 * store, and an object that a crash, a failure or a removal leaves behind is
 * entered, and deleted by the next run. An entry whose archive has come to be in
 * that store is only taken out.
 *
 * A failure is recorded with its archive, which is tried again after a growing
 * delay (retry.h), for ever: it loses nothing but room. Failures of the store
 * itself also count for its breaker, and while that is open nothing is tried. One
 * bad archive is passed over.
 */
#include "postgres.h"

#include "archive/store.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/breaker.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/owner.h"
#include "common/retry.h"
#include "common/rows.h"
#include "common/trial.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_archive_move_begin);
PG_FUNCTION_INFO_V1(mlint_archive_move_one);
PG_FUNCTION_INFO_V1(mlint_archive_garbage_delete);

/* What is read back at a time. */
#define PIECE_BYTES		(1024 * 1024)
#define ERROR_MAX		500

/* At first a second, at last half an hour and more. */
static const RetryPolicy delays = {RETRY_EXPONENTIAL, 1000000000, 2000, 2, 3600000};
static const BreakerPolicy breaker_policy = {5, 60};

#define FIELD(row, n) \
	SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, n, &isnull)

/*
 * One at a time until its transaction ends: else one who deletes garbage takes
 * an object away that another is about to hand an archive over to.
 */
static void
be_alone(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, RelationRelationId,
					   mlint_relation("archive_garbage"), 1);
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("archives are being moved already")));
}

/* ---- the breaker of a store, which lies in its row of state ---- */

/*
 * With lock the row is locked, and made if it is not there. In an owner scope.
 */
static void
breaker_load(int32 store, bool lock, Breaker *b)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(store)};
	bool		isnull;

	memset(b, 0, sizeof(*b));
	if (lock)
		owner_run(NULL,
				  "INSERT INTO mlint.archive_store_state AS s (store) VALUES ($1)"
				  " ON CONFLICT (store) DO UPDATE SET failures = s.failures"
				  " RETURNING breaker, failures, retry_at, timeout_s, probing",
				  SPI_OK_INSERT_RETURNING, 1, types, values, NULL);
	else
		owner_run(NULL,
				  "SELECT breaker, failures, retry_at, timeout_s, probing"
				  " FROM mlint.archive_store_state WHERE store = $1",
				  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		return;
	b->state = DatumGetInt32(FIELD(0, 1));
	b->failures = DatumGetInt32(FIELD(0, 2));
	b->retry_at = DatumGetTimestampTz(FIELD(0, 3));
	b->timeout_s = DatumGetInt32(FIELD(0, 4));
	b->probing = DatumGetBool(FIELD(0, 5));
}

static void
breaker_save(int32 store, const Breaker *b)
{
	Oid			types[] = {INT4OID, INT4OID, INT4OID, TIMESTAMPTZOID, INT4OID,
	BOOLOID};
	Datum		values[] = {Int32GetDatum(store), Int32GetDatum(b->state),
		Int32GetDatum(b->failures), TimestampTzGetDatum(b->retry_at),
	Int32GetDatum(b->timeout_s), BoolGetDatum(b->probing)};

	owner_run(NULL,
			  "UPDATE mlint.archive_store_state SET breaker = $2, failures = $3,"
			  " retry_at = $4, timeout_s = $5, probing = $6 WHERE store = $1",
			  SPI_OK_UPDATE, 6, types, values, NULL);
}

/*
 * May the store be used now? Whoever alters or drops it does not wait for what
 * then takes its time.
 */
static bool
store_allowed(int32 store)
{
	Breaker		b;

	breaker_load(store, false, &b);
	return breaker_allows(&b, GetCurrentTimestamp(), false);
}

/* Note how the use of the store ended; error NULL: well. */
static void
store_used(int32 store, const char *error, int64 moved, int64 bytes,
		   int64 deleted)
{
	Oid			types[] = {INT4OID, TEXTOID, INT8OID, INT8OID, INT8OID};
	Datum		values[] = {Int32GetDatum(store),
		error ? CStringGetTextDatum(error) : (Datum) 0, Int64GetDatum(moved),
	Int64GetDatum(bytes), Int64GetDatum(deleted)};
	char		nulls[] = {' ', error ? ' ' : 'n', ' ', ' ', ' '};
	Breaker		b;

	breaker_load(store, true, &b);
	/* It was let pass, so an open one is half-open by now. */
	(void) breaker_allows(&b, GetCurrentTimestamp(), true);
	if (error)
		(void) breaker_failure(&b, &breaker_policy, GetCurrentTimestamp());
	else
		breaker_success(&b);
	breaker_save(store, &b);
	owner_run(NULL, "UPDATE mlint.archive_store_state SET"
			  " last_error = coalesce($2, last_error),"
			  " last_error_at = CASE WHEN $2 IS NULL"
			  " THEN last_error_at"
			  " ELSE pg_catalog.clock_timestamp() END,"
			  " last_success_at = CASE WHEN $2 IS NULL"
			  " THEN pg_catalog.clock_timestamp()"
			  " ELSE last_success_at END,"
			  " moved = moved + $3,"
			  " moved_bytes = moved_bytes + $4,"
			  " deleted = deleted + $5"
			  " WHERE store = $1",
			  SPI_OK_UPDATE, 5, types, values, nulls);
}

/*
 * An error that is a matter of this run is raised again; of others the text is
 * returned, and whether it was the store that failed.
 */
static char *
failure_text(ErrorData *error, bool *of_store)
{
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
		error->sqlerrcode == ERRCODE_OUT_OF_MEMORY ||
		error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE)
		ReThrowError(error);
	*of_store = error->sqlerrcode != ERRCODE_MLINT_ARCHIVE_CORRUPT &&
		error->sqlerrcode != ERRCODE_PROGRAM_LIMIT_EXCEEDED &&
		error->sqlerrcode != ERRCODE_DATA_CORRUPTED;
	return psprintf("%.*s%s%.*s", ERROR_MAX, error->message,
					error->detail ? ". " : "", ERROR_MAX,
					error->detail ? error->detail : "");
}

/* ---- one archive ---- */

/* The chunks, in their order, as a source of bytes. */
typedef struct ChunkSource
{
	pg_uuid_t	archive;
	int			chunks;
	int			next;			/* chunk to be read */
	MemoryContext context;		/* of the present one */
	const char *data;
	size_t		left;
	size_t	   *lengths;		/* of each chunk */
	uint8		(*digests)[CRYPTO_SHA256_BYTES];
} ChunkSource;

static void
pg_attribute_noreturn()
chunk_missing(const ChunkSource *from, int n)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_ARCHIVE_CORRUPT),
			 errmsg("chunk %d of archive \"%s\" is not as it was written", n,
					DatumGetCString(DirectFunctionCall1(uuid_out,
														UUIDPGetDatum(&from->archive))))));
}

static void
next_chunk(ChunkSource *from)
{
	Oid			types[] = {UUIDOID, INT4OID};
	Datum		values[] = {UUIDPGetDatum(&from->archive),
	Int32GetDatum(from->next)};
	OwnerScope	scope;
	struct varlena *bytes;
	bool		isnull;

	MemoryContextReset(from->context);
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT c.bytes FROM mlint.archive_chunk c"
			  " WHERE c.archive = $1 AND c.n = $2", SPI_OK_SELECT, 2, types, values,
			  NULL);
	if (SPI_processed == 0)
		chunk_missing(from, from->next);
	MemoryContextSwitchTo(from->context);
	bytes = PG_DETOAST_DATUM_COPY(FIELD(0, 1));
	owner_end(&scope);
	from->data = VARDATA_ANY(bytes);
	from->left = VARSIZE_ANY_EXHDR(bytes);
	if (from->left != from->lengths[from->next])
		chunk_missing(from, from->next);
	crypto_sha256(from->data, from->left, from->digests[from->next]);
	from->next++;
}

/* A StoreSource. */
static void
take_bytes(void *buffer, size_t len, void *arg)
{
	ChunkSource *from = arg;
	char	   *to = buffer;

	while (len > 0)
	{
		size_t		n;

		CHECK_FOR_INTERRUPTS();
		if (from->left == 0)
		{
			if (from->next == from->chunks)
				chunk_missing(from, from->chunks);
			next_chunk(from);
		}
		n = Min(len, from->left);
		memcpy(to, from->data, n);
		to += n;
		len -= n;
		from->data += n;
		from->left -= n;
	}
}

/* How long the chunks are; returns their sum. */
static int64
measure(ChunkSource *from)
{
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(&from->archive)};
	OwnerScope	scope;
	int64		size = 0;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT c.n, pg_catalog.octet_length(c.bytes)"
			  " FROM mlint.archive_chunk c WHERE c.archive = $1 ORDER BY c.n",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed != from->chunks)
		chunk_missing(from, Min(SPI_processed, from->chunks));
	for (int i = 0; i < from->chunks; i++)
	{
		if (DatumGetInt32(FIELD(i, 1)) != i)
			chunk_missing(from, i);
		from->lengths[i] = DatumGetInt32(FIELD(i, 2));
		size += from->lengths[i];
	}
	owner_end(&scope);
	return size;
}

/* Is in the store what was in the chunks? */
static void
read_back(Store *store, const ChunkSource *from)
{
	char	   *piece = NULL;
	size_t		room = 0;
	int64		at = 0;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext each = AllocSetContextCreate(caller, "mlint reading back",
											   ALLOCSET_DEFAULT_SIZES);

	for (int i = 0; i < from->chunks; i++)
	{
		uint8		digest[CRYPTO_SHA256_BYTES];

		CHECK_FOR_INTERRUPTS();
		if (from->lengths[i] > room)
		{
			room = Max(from->lengths[i], PIECE_BYTES);
			if (piece)
				pfree(piece);
			piece = palloc(room);
		}
		MemoryContextSwitchTo(each);
		store_get(store, &from->archive, at, from->lengths[i], piece);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(each);
		crypto_sha256(piece, from->lengths[i], digest);
		if (memcmp(digest, from->digests[i], sizeof(digest)) != 0)
			store_fail(store, ERRCODE_MLINT_API, NULL,
					   "it gave other bytes than it was sent");
		at += from->lengths[i];
	}
	if (piece)
		pfree(piece);
	MemoryContextDelete(each);
}

/*
 * The archive's row, or what must not have changed in it, nor in where the
 * bytes went.
 */
#define ARCHIVE_ROW \
	"SELECT a.chunks, ROW(a.chunks, a.stored_bytes, a.data_key, a.sha256," \
	" (SELECT s.options FROM mlint.archive_store s WHERE s.id = $2))::text" \
	" FROM mlint.archive a WHERE a.id = $1 AND a.store IS NULL"

/* Lock the row and put the store into it, if it still is what was sent. */
static bool
hand_over(int32 store, const pg_uuid_t *archive, const char *row)
{
	Oid			types[] = {UUIDOID, INT4OID};
	Datum		values[] = {UUIDPGetDatum(archive), Int32GetDatum(store)};
	OwnerScope	scope;
	bool		same;
	bool		isnull;

	owner_begin(&scope);
	/* Whoever alters the store comes before, or waits. */
	owner_run(NULL,
			  "SELECT FROM mlint.archive_store WHERE id = $2 FOR SHARE",
			  SPI_OK_SELECT, 2, types, values, NULL);
	owner_run(NULL, ARCHIVE_ROW " FOR UPDATE OF a", SPI_OK_SELECT, 2, types, values,
			  NULL);
	same = SPI_processed == 1 &&
		strcmp(TextDatumGetCString(FIELD(0, 2)), row) == 0;
	if (same)
	{
		owner_run(NULL,
				  "UPDATE mlint.archive SET store = $2 WHERE id = $1",
				  SPI_OK_UPDATE, 2, types, values, NULL);
		owner_run(NULL,
				  "DELETE FROM mlint.archive_chunk WHERE archive = $1",
				  SPI_OK_DELETE, 1, types, values, NULL);
		owner_run(NULL,
				  "DELETE FROM mlint.archive_garbage"
				  " WHERE archive = $1 AND store = $2", SPI_OK_DELETE, 2, types,
				  values, NULL);
		owner_run(NULL,
				  "DELETE FROM mlint.archive_move WHERE archive = $1",
				  SPI_OK_DELETE, 1, types, values, NULL);
	}
	owner_end(&scope);
	return same;
}

/* Send, read back, hand over. False: it is not there, or not as it was. */
static bool
move(int32 store_id, const pg_uuid_t *archive, int64 *bytes)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "mlint archive move",
											   ALLOCSET_DEFAULT_SIZES);
	Oid			types[] = {UUIDOID, INT4OID};
	Datum		values[] = {UUIDPGetDatum(archive), Int32GetDatum(store_id)};
	ChunkSource from = {.archive = *archive};
	OwnerScope	scope;
	char	   *row = NULL;
	Store	   *store;
	bool		there;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL, ARCHIVE_ROW, SPI_OK_SELECT, 2, types, values, NULL);
	there = SPI_processed == 1;
	MemoryContextSwitchTo(work);
	if (there)
	{
		from.chunks = DatumGetInt32(FIELD(0, 1));
		row = TextDatumGetCString(FIELD(0, 2));
	}
	owner_end(&scope);
	if (there)
	{
		MemoryContextSwitchTo(work);
		from.context = AllocSetContextCreate(work, "mlint chunk",
											 ALLOCSET_DEFAULT_SIZES);
		from.lengths = palloc(sizeof(size_t) * Max(from.chunks, 1));
		from.digests = palloc(sizeof(*from.digests) * Max(from.chunks, 1));
		*bytes = measure(&from);
		store = store_open(store_id);
		INJECTION("archive-move-before-put");
		store_put(store, archive, *bytes, take_bytes, &from);
		INJECTION("archive-move-put");
		read_back(store, &from);
		INJECTION("archive-move-verified");
		there = hand_over(store_id, archive, row);
		INJECTION("archive-move-before-commit");
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(work);
	return there;
}

/* Record that an archive could not be moved. In an owner scope. */
static void
record_failure(const pg_uuid_t *archive, const char *error)
{
	Oid			types[] = {UUIDOID, TEXTOID, FLOAT8OID};
	Datum		values[] = {UUIDPGetDatum(archive),
	CStringGetTextDatum(error), 0};
	bool		isnull;

	/* It may be gone. */
	owner_run(NULL, "INSERT INTO mlint.archive_move AS m (archive, error)"
			  " SELECT a.id, $2 FROM mlint.archive a"
			  " WHERE a.id = $1 FOR KEY SHARE"
			  " ON CONFLICT (archive) DO UPDATE SET error = $2,"
			  " attempts = m.attempts + 1,"
			  " failed_at = pg_catalog.clock_timestamp()"
			  " RETURNING attempts",
			  SPI_OK_INSERT_RETURNING, 2, types, values, NULL);
	if (SPI_processed == 0)
		return;
	values[2] = Float8GetDatum(retry_delay(&delays,
										   DatumGetInt32(FIELD(0, 1)), -1) /
							   (double) USECS_PER_SEC);
	owner_run(NULL,
			  "UPDATE mlint.archive_move SET next_at = pg_catalog.clock_timestamp()"
			  " + pg_catalog.make_interval(secs => $3) WHERE archive = $1",
			  SPI_OK_UPDATE, 3, types, values, NULL);
}

/* mlint.archive_move_one(store, archive): false when it failed. */
Datum
mlint_archive_move_one(PG_FUNCTION_ARGS)
{
	int32		store = PG_GETARG_INT32(0);
	pg_uuid_t  *archive = PG_GETARG_UUID_P(1);
	OwnerScope	scope;
	Trial		trial;
	volatile bool moved = false;
	volatile int64 bytes = 0;
	char	   *volatile error = NULL;
	bool		of_store = false;

	be_alone();
	trial_begin(&trial);
	PG_TRY();
	{
		int64		size = 0;

		moved = move(store, archive, &size);
		bytes = size;
		trial_end(&trial);
	}
	PG_CATCH();
	{
		error = failure_text(trial_failed(&trial), &of_store);
	}
	PG_END_TRY();

	owner_begin(&scope);
	if (error)
		record_failure(archive, error);
	if (moved || (error && of_store))
		store_used(store, error, moved ? 1 : 0, bytes, 0);
	owner_end(&scope);
	PG_RETURN_BOOL(error == NULL);
}

/*
 * mlint.archive_move_begin(after_at, after_id): the next archive that is to be
 * moved, with the store; its object is entered as garbage, until it is none.
 */
Datum
mlint_archive_move_begin(PG_FUNCTION_ARGS)
{
	Oid			types[] = {TIMESTAMPTZOID, UUIDOID};
	Datum		from[] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1)};
	Oid			entry_types[] = {INT4OID, UUIDOID};
	Datum		values[3] = {0};
	bool		nulls[3] = {true, true, true};
	pg_uuid_t	archive;
	TupleDesc	desc;
	OwnerScope	scope;
	bool		isnull;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT s.id, a.id, a.archived_at FROM mlint.archive_store s,"
			  " LATERAL (SELECT a.id, a.archived_at FROM mlint.archive a"
			  " LEFT JOIN mlint.archive_move m ON m.archive = a.id"
			  " WHERE a.store IS NULL AND (a.archived_at, a.id) > ($1, $2)"
			  " AND coalesce(m.next_at <= pg_catalog.clock_timestamp(), true)"
			  " ORDER BY a.archived_at, a.id LIMIT 1) a"
			  " WHERE s.active", SPI_OK_SELECT, 2, types, from, NULL);
	if (SPI_processed > 0)
	{
		values[0] = FIELD(0, 1);
		archive = *DatumGetUUIDP(FIELD(0, 2));
		values[1] = UUIDPGetDatum(&archive);
		values[2] = FIELD(0, 3);
		if (store_allowed(DatumGetInt32(values[0])))
		{
			owner_run(NULL,
					  "INSERT INTO mlint.archive_garbage (store, archive)"
					  " SELECT $1, $2 WHERE NOT EXISTS (SELECT"
					  " FROM mlint.archive_garbage WHERE archive = $2 AND store = $1)",
					  SPI_OK_INSERT, 2, entry_types, values, NULL);
			job_commit_durably();
			nulls[0] = nulls[1] = nulls[2] = false;
		}
	}
	owner_end(&scope);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* ---- garbage ---- */

/* Delete an object. The error, or NULL. */
static char *
delete_object(int32 store, const pg_uuid_t *archive, bool *of_store)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "mlint garbage",
											   ALLOCSET_DEFAULT_SIZES);
	Trial		trial;
	char	   *volatile error = NULL;

	trial_begin(&trial);
	PG_TRY();
	{
		MemoryContextSwitchTo(work);
		store_delete(store_open(store), archive);
		MemoryContextSwitchTo(caller);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		error = failure_text(trial_failed(&trial), of_store);
	}
	PG_END_TRY();
	MemoryContextDelete(work);
	return error;
}

/*
 * mlint.archive_garbage_delete(after_id): the next entry that is due. last_id
 * is null when there is none; failed says that its object could not be deleted.
 */
Datum
mlint_archive_garbage_delete(PG_FUNCTION_ARGS)
{
	Oid			types[] = {INT8OID, FLOAT8OID};
	Oid			error_types[] = {INT8OID, TEXTOID};
	Datum		entry[2] = {PG_GETARG_DATUM(0), 0};
	Datum		values[2] = {0};
	bool		nulls[2] = {true, false};
	bool		failed = false;
	TupleDesc	desc;
	OwnerScope	scope;
	bool		isnull;

	require_writable(fcinfo);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	be_alone();
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT g.id, g.store, g.archive, g.attempts,"
			  " EXISTS (SELECT FROM mlint.archive a"
			  " WHERE a.id = g.archive AND a.store = g.store)"
			  " FROM mlint.archive_garbage g WHERE g.id > $1"
			  " AND g.next_at <= pg_catalog.clock_timestamp()"
			  " ORDER BY g.id LIMIT 1", SPI_OK_SELECT, 1, types, entry, NULL);
	if (SPI_processed > 0)
	{
		int32		store = DatumGetInt32(FIELD(0, 2));
		pg_uuid_t	archive = *DatumGetUUIDP(FIELD(0, 3));
		int			attempts = DatumGetInt32(FIELD(0, 4));
		bool		needed = DatumGetBool(FIELD(0, 5));
		bool		of_store = false;
		char	   *error = NULL;

		values[0] = entry[0] = FIELD(0, 1);
		nulls[0] = false;
		if (needed || store_allowed(store))
		{
			if (!needed)
			{
				/* It has failed until it says otherwise. */
				entry[1] = Float8GetDatum(retry_delay(&delays, attempts + 1,
													  -1) /
										  (double) USECS_PER_SEC);
				owner_run(NULL,
						  "UPDATE mlint.archive_garbage"
						  " SET attempts = attempts + 1,"
						  " next_at = pg_catalog.clock_timestamp()"
						  " + pg_catalog.make_interval(secs => $2)"
						  " WHERE id = $1", SPI_OK_UPDATE, 2, types, entry, NULL);
				/* No crash may bring an archive back without its bytes. */
				job_seen_durably();
				error = delete_object(store, &archive, &of_store);
				INJECTION("archive-garbage-deleted");
				store_used(store, error, 0, 0, error ? 0 : 1);
			}
			failed = error != NULL;
			if (!failed)
				owner_run(NULL,
						  "DELETE FROM mlint.archive_garbage WHERE id = $1",
						  SPI_OK_DELETE, 1, types, entry, NULL);
			else
			{
				entry[1] = CStringGetTextDatum(error);
				owner_run(NULL,
						  "UPDATE mlint.archive_garbage SET error = $2"
						  " WHERE id = $1", SPI_OK_UPDATE, 2, error_types, entry,
						  NULL);
			}
		}
	}
	owner_end(&scope);
	values[1] = BoolGetDatum(failed);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
