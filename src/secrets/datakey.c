/*
 * datakey.c
 *		Data keys: made, opened, destroyed, rewrapped.
 *
 * key = HMAC-SHA-256(leaf, random bytes, purpose). The random bytes are in the
 * row, wrapped with the master key and bound to the store's identity, purpose
 * and id. The leaf is in the erasure key file alone.
 *
 * Which leaf. One file serves all databases of a cluster, and all copies of
 * each, so leaves are numbered such that no two keys share one, unless they are
 * the same key. The upper half of a number is a digest of the store's identity,
 * the cluster's and the database's OID, the lower half is the key's id: dense,
 * so that the file stays small. A database that is copied as a TEMPLATE, or
 * restored beside the first, has the identity and another OID. So what it makes
 * from then on is its own, and what it took along is what it is in the first
 * one: when that destroys it, it is destroyed in both. When the copy does, the
 * leaf stays for as long as the first one is there, which may be under a hold
 * that the copy knows nothing of. After going back in time a database counts the
 * same numbers again; one whose leaf was cut in the future that is no more is
 * passed over.
 *
 * Destroying. What is in the file does not roll back, so the transaction only
 * moves the row's id and leaf to mlint.data_key_destroyed. After the commit,
 * and after that is on disk, the job cuts. It does so for all that it finds
 * not cut; when the file is not the one that it left (an older copy that was put
 * back, a standby's own after a promotion, or another database has cut), it
 * holds all that were ever destroyed against it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/owner.h"
#include "common/rows.h"
#include "common/trial.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "secrets/datakey.h"
#include "secrets/erasure_key.h"
#include "secrets/keyrow.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "worker/worker.h"

#define PURPOSE_MAX		100

/* Leaves that one transaction of the job cuts. */
#define ERASE_BATCH		10000

/* Columns of mlint.data_key. */
#define KEY_ID			1
#define KEY_PURPOSE		2
#define KEY_TREE		3
#define KEY_LEAF		4
#define KEY_KEY_ID		5
#define KEY_WRAPPED		6

PG_FUNCTION_INFO_V1(mlint_data_key_rewrap);
PG_FUNCTION_INFO_V1(mlint_data_key_erase);
PG_FUNCTION_INFO_V1(mlint_erasure_key_state);

/* ---- one key ---- */

static SealContext
data_key_context(const char *purpose, int64 id)
{
	char		name[PURPOSE_MAX + 32];

	snprintf(name, sizeof(name), "%s " INT64_FORMAT, purpose, id);
	return seal_context(SEAL_DATA_KEY, name, 0);
}

/* The leaf that a key of this id has when a database of this cluster made it. */
static int64
data_key_leaf(Oid database, int64 id)
{
	static const char label[16] = "mlint leaves of";
	uint8		of[sizeof(label) + 16 + 16];
	uint8		digest[CRYPTO_SHA256_BYTES];
	uint64		cluster = pg_hton64(GetSystemIdentifier());
	uint32		part;

	memcpy(of, label, sizeof(label));
	key_store(of + sizeof(label));
	memcpy(of + sizeof(label) + 16, &cluster, 8);
	part = pg_hton32(database);
	memcpy(of + sizeof(label) + 24, &part, 4);
	part = pg_hton32((uint32) (id >> 32));
	memcpy(of + sizeof(label) + 28, &part, 4);
	crypto_sha256(of, sizeof(of), digest);
	memcpy(&part, digest, 4);
	return (int64) (pg_ntoh32(part) & 0x7fffffff) << 32 | (id & 0xffffffff);
}

/* The key itself; leaf_key may be its place. */
static void
data_key_derive(const uint8 *leaf_key, const uint8 *bytes,
				const char *purpose, uint8 key[CRYPTO_KEY_BYTES])
{
	static const char label[] = "mlint data key";
	HmacPart	parts[] = {
		{label, sizeof(label)},
		{bytes, CRYPTO_KEY_BYTES},
		{purpose, strlen(purpose)}
	};

	crypto_hmac(leaf_key, CRYPTO_KEY_BYTES, parts, lengthof(parts), key);
}

/*
 * The tree for new keys. A database whose keys are of another tree needs the
 * file of that first: else there would be two files, each with half the keys.
 */
static void
tree_for_new_keys(uint8 tree[ERASURE_ID_BYTES])
{
	static uint8 seen[ERASURE_ID_BYTES];
	static bool any_seen = false;
	ErasureKeyFile file;
	bool		isnull;

	if (any_seen)
	{
		erasure_key_look(false, &file);
		if (memcmp(file.tree, seen, ERASURE_ID_BYTES) == 0)
		{
			memcpy(tree, seen, ERASURE_ID_BYTES);
			return;
		}
	}
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute("SELECT k.tree FROM mlint.data_key k"
					" ORDER BY k.id DESC LIMIT 1",
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.data_key");
	PopActiveSnapshot();
	erasure_key_look(SPI_processed == 0, &file);
	if (SPI_processed > 0)
	{
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
										  SPI_tuptable->tupdesc, 1, &isnull);

		/* Raises if it is another's. */
		(void) erasure_key_living(DatumGetUUIDP(value)->data, 0);
	}
	memcpy(tree, file.tree, ERASURE_ID_BYTES);
	memcpy(seen, file.tree, ERASURE_ID_BYTES);
	/* What a transaction that rolls back has made is no reason for an error. */
	any_seen = SPI_processed > 0;
}

int64
data_key_create(const char *purpose, uint8 key[CRYPTO_KEY_BYTES])
{
	Oid			types[] = {INT8OID, TEXTOID, UUIDOID, INT8OID, INT4OID, BYTEAOID};
	Datum		values[6];
	OwnerScope	scope;
	SealContext context;
	pg_uuid_t	tree;
	uint8		bytes[CRYPTO_KEY_BYTES];
	Oid			sequence;
	int64		id;
	int64		leaf;
	int			key_id;

	Assert(strlen(purpose) <= PURPOSE_MAX);
	owner_begin(&scope);
	key_id = key_row_current();
	tree_for_new_keys(tree.data);
	sequence = mlint_relation("data_key_id_seq");
	do
	{
		CHECK_FOR_INTERRUPTS();
		id = nextval_internal(sequence, false);
		leaf = data_key_leaf(MyDatabaseId, id);
	} while (!erasure_key_leaf(tree.data, leaf, key));

	crypto_random(bytes, sizeof(bytes));
	PG_TRY();
	{
		context = data_key_context(purpose, id);
		values[5] = PointerGetDatum(key_wrap(&context, key_id, bytes));
		data_key_derive(key, bytes, purpose, key);
	}
	PG_CATCH();
	{
		crypto_wipe(bytes, sizeof(bytes));
		crypto_wipe(key, CRYPTO_KEY_BYTES);
		PG_RE_THROW();
	}
	PG_END_TRY();
	crypto_wipe(bytes, sizeof(bytes));

	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(purpose);
	values[2] = UUIDPGetDatum(&tree);
	values[3] = Int64GetDatum(leaf);
	values[4] = Int32GetDatum(key_id);
	owner_run(NULL, "INSERT INTO mlint.data_key"
			  " (id, purpose, tree, leaf, key_id, wrapped)"
			  " OVERRIDING SYSTEM VALUE"
			  " VALUES ($1, $2, $3, $4, $5, $6)",
			  SPI_OK_INSERT, 6, types, values, NULL);
	owner_end(&scope);
	return id;
}

static void
pg_attribute_noreturn()
data_key_gone(int64 id)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("data key " INT64_FORMAT " was destroyed", id),
			 errdetail("What was sealed with it cannot be read any more.")));
}

/* When was it destroyed? False: it was not. */
static bool
data_key_was_destroyed(int64 id)
{
	RowScan		scan;
	ScanKeyData key;
	bool		found;

	row_key(&key, 1, F_INT8EQ, Int64GetDatum(id));
	rows_begin(&scan, "data_key_destroyed", "data_key_destroyed_pkey", 1,
			   &key, true);
	found = rows_next(&scan) != NULL;
	rows_end(&scan);
	return found;
}

void
data_key_open(int64 id, const char *purpose, uint8 key[CRYPTO_KEY_BYTES])
{
	RowScan		scan;
	ScanKeyData by_id;
	HeapTuple	row;
	SealContext context;
	uint8		bytes[CRYPTO_KEY_BYTES];
	bytea	   *wrapped;
	pg_uuid_t	tree;
	int64		leaf;
	int			key_id;
	Datum		column;
	bool		isnull;

	row_key(&by_id, KEY_ID, F_INT8EQ, Int64GetDatum(id));
	rows_begin(&scan, "data_key", "data_key_pkey", 1, &by_id, true);
	row = rows_next(&scan);
	if (row == NULL)
	{
		rows_end(&scan);
		if (data_key_was_destroyed(id))
			data_key_gone(id);
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("data key " INT64_FORMAT " does not exist", id),
				 errhint("Restore the table mlint.data_key from a dump of this database.")));
	}
	column = heap_getattr(row, KEY_TREE, scan.desc, &isnull);
	Assert(!isnull);
	tree = *DatumGetUUIDP(column);
	leaf = DatumGetInt64(heap_getattr(row, KEY_LEAF, scan.desc, &isnull));
	key_id = DatumGetInt32(heap_getattr(row, KEY_KEY_ID, scan.desc, &isnull));
	wrapped = DatumGetByteaPCopy(heap_getattr(row, KEY_WRAPPED, scan.desc,
											  &isnull));
	rows_end(&scan);

	context = data_key_context(purpose, id);
	if (!key_unwrap(&context, key_id, wrapped, bytes))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_SECRET_CORRUPT),
				 errmsg("data key " INT64_FORMAT " does not decrypt", id),
				 errdetail("The master key is the right one, but the row is damaged, or belongs to another key, purpose or database."),
				 errhint("Restore the table mlint.data_key from a dump of this database.")));
	PG_TRY();
	{
		if (!erasure_key_leaf(tree.data, leaf, key))
			data_key_gone(id);
		data_key_derive(key, bytes, purpose, key);
	}
	PG_FINALLY();
	{
		crypto_wipe(bytes, sizeof(bytes));
	}
	PG_END_TRY();
}

/* Have the job run, once for each subtransaction that needs it. */
static void
request_erasing(void)
{
	static TransactionId requested = InvalidTransactionId;

	if (requested != GetCurrentTransactionId())
		(void) job_request("data_key_erase");
	requested = GetCurrentTransactionId();
}

void
data_key_destroy(int64 id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	OwnerScope	scope;
	Snapshot	snapshot;
	bool		done;

	owner_begin(&scope);
	if (!plan)
	{
		SPIPlanPtr	made =
		SPI_prepare("WITH gone AS (DELETE FROM mlint.data_key"
					" WHERE id = $1 RETURNING id, tree, leaf)"
					" INSERT INTO mlint.data_key_destroyed (id, tree, leaf)"
					" SELECT g.id, g.tree, g.leaf FROM gone g", 1, types);

		if (!made || SPI_keepplan(made) != 0)
			elog(ERROR, "could not prepare to destroy a data key");
		plan = made;
	}
	/* What is destroyed may be newer than the transaction's snapshot. */
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (SPI_execute_snapshot(plan, values, NULL, snapshot, InvalidSnapshot,
							 false, true, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not destroy a data key");
	UnregisterSnapshot(snapshot);
	done = SPI_processed > 0;
	owner_end(&scope);
	if (done)
		request_erasing();
	else if (!data_key_was_destroyed(id))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("data key " INT64_FORMAT " does not exist", id)));
}

/* ---- cutting what was destroyed ---- */

/* What the job is about to cut. */
typedef struct Condemned
{
	int			n;
	Datum	   *ids;
	int64	   *leaves;
	bool		all;			/* no more are left */
} Condemned;

/* The other databases of the cluster. */
typedef struct Others
{
	int			n;
	Oid		   *databases;
	int64	   *leaves;			/* of their keys of this id */
	int64		id;
} Others;

static void
find_others(Others *others)
{
	if (SPI_execute("SELECT d.oid FROM pg_catalog.pg_database d"
					" WHERE d.datname <> pg_catalog.current_database()",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read pg_database");
	others->n = SPI_processed;
	others->databases = palloc(sizeof(Oid) * (others->n + 1));
	others->leaves = palloc(sizeof(int64) * (others->n + 1));
	others->id = -1;
	for (int i = 0; i < others->n; i++)
	{
		bool		isnull;

		others->databases[i] =
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
										   SPI_tuptable->tupdesc, 1, &isnull));
	}
}

/* Is it the leaf of a key that one of them has made? */
static bool
leaf_of_others(Others *others, int64 id, int64 leaf)
{
	/* Only the upper half is computed, and that seldom changes. */
	if (others->id < 0 || others->id >> 32 != id >> 32)
	{
		for (int i = 0; i < others->n; i++)
			others->leaves[i] = data_key_leaf(others->databases[i], id);
		others->id = id;
	}
	for (int i = 0; i < others->n; i++)
	{
		if (others->leaves[i] >> 32 == leaf >> 32)
			return true;
	}
	return false;
}

/*
 * Of this tree's destroyed leaves those that are to be cut: those that are not
 * said to be, and with compare those that are in the file all the same. What
 * another database has made is left to that, for as long as it is there.
 */
static void
find_condemned(const ErasureKeyFile *file, bool compare, Condemned *found)
{
	Oid			types[] = {UUIDOID};
	pg_uuid_t	tree;
	Datum		values[1];
	Portal		portal;
	Others		others;

	find_others(&others);
	memcpy(tree.data, file->tree, UUID_LEN);
	values[0] = UUIDPGetDatum(&tree);
	found->n = 0;
	found->ids = palloc(sizeof(Datum) * ERASE_BATCH);
	found->leaves = palloc(sizeof(int64) * ERASE_BATCH);
	found->all = true;
	portal = SPI_cursor_open_with_args(NULL, compare ?
									   "SELECT id, leaf, erased_at IS NULL"
									   " FROM mlint.data_key_destroyed"
									   " WHERE tree = $1" :
									   "SELECT id, leaf, true"
									   " FROM mlint.data_key_destroyed"
									   " WHERE tree = $1 AND erased_at IS NULL",
									   1, types, values, NULL, true,
									   CURSOR_OPT_NO_SCROLL);
	while (found->all)
	{
		SPI_cursor_fetch(portal, true, 1000);
		if (SPI_processed == 0)
			break;
		for (uint64 r = 0; r < SPI_processed; r++)
		{
			HeapTuple	row = SPI_tuptable->vals[r];
			TupleDesc	desc = SPI_tuptable->tupdesc;
			bool		isnull;
			Datum		id = SPI_getbinval(row, desc, 1, &isnull);
			int64		leaf = DatumGetInt64(SPI_getbinval(row, desc, 2,
														   &isnull));
			bool		waits = DatumGetBool(SPI_getbinval(row, desc, 3,
														   &isnull));
			bool		living = erasure_key_living(file->tree, leaf);

			if (living ? leaf_of_others(&others, DatumGetInt64(id), leaf) :
				!waits)
				continue;
			if (found->n == ERASE_BATCH)
			{
				found->all = false;
				break;
			}
			found->ids[found->n] = id;
			found->leaves[found->n++] = leaf;
		}
		SPI_freetuptable(SPI_tuptable);
		CHECK_FOR_INTERRUPTS();
	}
	SPI_cursor_close(portal);
}

/* Is this the revision of the file that we left? */
static bool
revision_known(const ErasureKeyFile *file)
{
	bool		isnull;
	Datum		value;

	if (SPI_execute("SELECT r.revision FROM mlint.erasure_key_revision r",
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.erasure_key_revision");
	if (SPI_processed == 0)
		return false;
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						  &isnull);
	return memcmp(DatumGetUUIDP(value)->data, file->revision, UUID_LEN) == 0;
}

static void
execute(const char *sql, int n, Oid *types, Datum *values)
{
	if (SPI_execute_with_args(sql, n, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not record what was erased");
}

/* mlint.data_key_erase(): one batch. erased, and whether there may be more. */
Datum
mlint_data_key_erase(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	OwnerScope	scope;
	ErasureKeyFile file;
	Condemned	condemned = {0};
	uint8		found[ERASURE_ID_BYTES];
	pg_uuid_t	left;
	Datum		values[2];
	bool		nulls[2] = {false, false};
	bool		known;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	owner_begin(&scope);
	if (SPI_execute("SELECT FROM mlint.data_key_destroyed LIMIT 1", true,
					1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.data_key_destroyed");
	/* Where nothing was destroyed there need not be a file. */
	if (SPI_processed > 0)
	{
		erasure_key_look(false, &file);
		known = revision_known(&file);
		find_condemned(&file, !known, &condemned);

		if (condemned.n > 0)
		{
			Oid			types[] = {INT8ARRAYOID};
			Datum		ids =
			PointerGetDatum(construct_array(condemned.ids, condemned.n,
											INT8OID, 8,
											FLOAT8PASSBYVAL, 'd'));

			execute("UPDATE mlint.data_key_destroyed SET erased_at ="
					" coalesce(erased_at, pg_catalog.clock_timestamp())"
					" WHERE id = ANY ($1)",
					1, types, &ids);
			/* No crash may take back what we saw committed before that. */
			job_seen_durably();
		}
		INJECTION("data-key-before-erase");
		erasure_key_destroy(file.tree, condemned.leaves, condemned.n, found,
							left.data);
		INJECTION("data-key-erased");
		if (condemned.all &&
			memcmp(found, file.revision, ERASURE_ID_BYTES) == 0 &&
			(!known ||
			 memcmp(left.data, file.revision, ERASURE_ID_BYTES) != 0))
		{
			Oid			types[] = {UUIDOID};
			Datum		revision = UUIDPGetDatum(&left);

			execute("INSERT INTO mlint.erasure_key_revision AS r (revision)"
					" VALUES ($1) ON CONFLICT (one) DO UPDATE"
					" SET revision = $1",
					1, types, &revision);
		}
	}
	owner_end(&scope);
	values[0] = Int64GetDatum(condemned.n);
	values[1] = BoolGetDatum(condemned.n > 0 && !condemned.all);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* ---- another master key ---- */

/*
 * Wrap under another master key. NULL for what does not open: a damaged row is
 * left as it is, and opening it says so.
 */
static Datum
rewrap(const SealContext *context, int from, int to, bool *asked,
	   Datum wrapped)
{
	uint8		bytes[CRYPTO_KEY_BYTES];
	volatile Datum result = (Datum) 0;

	if (!key_opens(from, asked) ||
		!key_unwrap(context, from, DatumGetByteaPP(wrapped), bytes))
		return (Datum) 0;
	PG_TRY();
	{
		result = PointerGetDatum(key_wrap(context, to, bytes));
	}
	PG_FINALLY();
	{
		crypto_wipe(bytes, sizeof(bytes));
	}
	PG_END_TRY();
	return result;
}

/*
 * mlint.data_key_rewrap(after_id, batch): of the keys behind after_id those that
 * an older master key wraps, up to "batch". last_id is null at the end.
 */
Datum
mlint_data_key_rewrap(PG_FUNCTION_ARGS)
{
	Oid			types[] = {INT8OID, INT4OID, INT4OID};
	Oid			changed_types[] = {INT8ARRAYOID, BYTEAARRAYOID, INT4OID};
	TupleDesc	result;
	OwnerScope	scope;
	Datum		values[3];
	bool		nulls[2] = {false, false};
	Datum	   *ids;
	Datum	   *wraps;
	int64		last = 0;
	int			batch = PG_GETARG_INT32(1);
	int			found = 0;
	int			n = 0;
	int			key_id;
	bool		asked = false;

	if (get_call_result_type(fcinfo, NULL, &result) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	result = BlessTupleDesc(result);
	owner_begin(&scope);
	/* Without a row for a master key there is nothing that it could wrap. */
	if (SPI_execute("SELECT FROM mlint.data_key LIMIT 1", false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.data_key");
	if (SPI_processed > 0)
	{
		key_id = key_row_current();
		values[0] = PG_GETARG_DATUM(0);
		values[1] = PG_GETARG_DATUM(1);
		values[2] = Int32GetDatum(key_id);
		owner_run(NULL, "SELECT k.id, k.purpose, k.key_id, k.wrapped"
				  " FROM mlint.data_key k"
				  " WHERE k.id > $1 AND k.key_id <> $3"
				  " ORDER BY k.id LIMIT $2"
				  " FOR UPDATE SKIP LOCKED",
				  SPI_OK_SELECT, 3, types, values, NULL);
		found = SPI_processed;
		ids = palloc(sizeof(Datum) * (found + 1));
		wraps = palloc(sizeof(Datum) * (found + 1));
		for (int r = 0; r < found; r++)
		{
			HeapTuple	row = SPI_tuptable->vals[r];
			TupleDesc	desc = SPI_tuptable->tupdesc;
			SealContext context;
			bool		isnull;
			int			under = DatumGetInt32(SPI_getbinval(row, desc, 3,
															&isnull));

			last = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
			context =
				data_key_context(TextDatumGetCString(SPI_getbinval(row, desc, 2,
																   &isnull)),
								 last);
			wraps[n] = rewrap(&context, under, key_id, &asked,
							  SPI_getbinval(row, desc, 4, &isnull));
			if (DatumGetPointer(wraps[n]) == NULL)
				continue;
			ids[n++] = Int64GetDatum(last);
		}
		values[0] = PointerGetDatum(construct_array(ids, n, INT8OID, 8,
													FLOAT8PASSBYVAL, 'd'));
		values[1] = PointerGetDatum(construct_array(wraps, n, BYTEAOID, -1,
													false, 'i'));
		if (n > 0 &&
			SPI_execute_with_args("UPDATE mlint.data_key k"
								  " SET key_id = $3, wrapped = w.wrapped"
								  " FROM ROWS FROM (pg_catalog.unnest($1),"
								  " pg_catalog.unnest($2)) w (id, wrapped)"
								  " WHERE k.id = w.id",
								  3, changed_types, values, NULL,
								  false, 0) != SPI_OK_UPDATE)
			elog(ERROR, "could not write mlint.data_key");
		INJECTION("data-key-rewrap-before-commit");
	}
	owner_end(&scope);
	values[0] = Int64GetDatum(last);
	nulls[0] = found < batch;
	values[1] = Int64GetDatum(n);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(result, values, nulls)));
}

/* ---- what an administrator sees ---- */

/* mlint.erasure_key_state(): where the file is, and whether it is in order */
Datum
mlint_erasure_key_state(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[6];
	bool		nulls[6] = {false, false, false, false, false, false};
	ErasureKeyFile file = {0};
	Trial		trial;
	volatile bool available = false;
	char	   *volatile why = NULL;
	pg_uuid_t	tree;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	trial_begin(&trial);
	PG_TRY();
	{
		erasure_key_look(false, &file);
		available = true;
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		if (error->sqlerrcode != ERRCODE_MLINT_MASTER_KEY)
			ReThrowError(error);
		why = pstrdup(error->message);
		FreeErrorData(error);
	}
	PG_END_TRY();

	memcpy(tree.data, file.tree, UUID_LEN);
	values[0] = CStringGetTextDatum(erasure_key_source());
	values[1] = BoolGetDatum(erasure_key_in_data_directory());
	values[2] = BoolGetDatum(available);
	values[3] = UUIDPGetDatum(&tree);
	values[4] = Int64GetDatum(file.bytes);
	nulls[3] = nulls[4] = !available;
	values[5] = why ? CStringGetTextDatum(why) : (Datum) 0;
	nulls[5] = why == NULL;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

#ifdef MLINT_INJECTION_POINTS

/*
 * For tests, which declare them in SQL: the keys themselves. Not in a build
 * that anybody uses.
 */
PG_FUNCTION_INFO_V1(mlint_test_data_key_create);
PG_FUNCTION_INFO_V1(mlint_test_data_key_open);
PG_FUNCTION_INFO_V1(mlint_test_data_key_destroy);
PG_FUNCTION_INFO_V1(mlint_test_erasure_leaf);
PG_FUNCTION_INFO_V1(mlint_test_erasure_destroy);

static Datum
key_datum(const uint8 *key)
{
	return PointerGetDatum(cstring_to_text_with_len((const char *) key,
													CRYPTO_KEY_BYTES));
}

/* (purpose) returns bigint */
Datum
mlint_test_data_key_create(PG_FUNCTION_ARGS)
{
	uint8		key[CRYPTO_KEY_BYTES];

	PG_RETURN_INT64(data_key_create(text_to_cstring(PG_GETARG_TEXT_PP(0)),
									key));
}

/* (id, purpose) returns bytea */
Datum
mlint_test_data_key_open(PG_FUNCTION_ARGS)
{
	uint8		key[CRYPTO_KEY_BYTES];

	data_key_open(PG_GETARG_INT64(0), text_to_cstring(PG_GETARG_TEXT_PP(1)),
				  key);
	PG_RETURN_DATUM(key_datum(key));
}

/* (id) returns void */
Datum
mlint_test_data_key_destroy(PG_FUNCTION_ARGS)
{
	data_key_destroy(PG_GETARG_INT64(0));
	PG_RETURN_VOID();
}

/* (leaf) returns bytea: null if it was destroyed; makes the file */
Datum
mlint_test_erasure_leaf(PG_FUNCTION_ARGS)
{
	uint8		key[CRYPTO_KEY_BYTES];
	ErasureKeyFile file;

	erasure_key_look(true, &file);
	if (!erasure_key_leaf(file.tree, PG_GETARG_INT64(0), key))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(key_datum(key));
}

/* (leaves bigint[]) returns void */
Datum
mlint_test_erasure_destroy(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P_COPY(0);
	uint8		found[ERASURE_ID_BYTES];
	uint8		left[ERASURE_ID_BYTES];
	ErasureKeyFile file;

	erasure_key_look(true, &file);
	erasure_key_destroy(file.tree, (int64 *) ARR_DATA_PTR(array),
						ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array)),
						found, left);
	PG_RETURN_VOID();
}

#endif
