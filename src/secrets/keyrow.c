/*
 * keyrow.c
 *		Which master key wraps which data key, and changing it.
 *
 * mlint.wrapping_key has a row for each master key that this database has
 * used; the one with the highest id is the one to seal with. A process keeps
 * the rows in memory until a relcache invalidation of the table, which every
 * change of it sends, also to itself when the change is rolled back.
 *
 * A rotation only adds a row. From its commit on new versions are sealed with
 * the new key, and the job master_key_rewrap wraps the data keys of all others
 * anew, batch by batch, each a transaction. Both keys open meanwhile, so
 * readers notice nothing, and after a crash the job goes through the table
 * again and finds only what is left. A version that was being stored while the
 * key changed is found by the next run. The job goes on with the data keys of
 * other rooms (datakey.c).
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/trial.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/owner.h"
#include "common/relwatch.h"
#include "common/rows.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "port/pg_bswap.h"
#include "secrets/access.h"
#include "secrets/keyrow.h"
#include "secrets/master_key.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#define WRAPPED_KEY_BYTES		(CRYPTO_KEY_BYTES + CRYPTO_SEAL_OVERHEAD)

/* Columns of mlint.wrapping_key. */
#define KEY_ID					1
#define KEY_STORE				2
#define KEY_CHECK				3
#define KEY_CREATED_AT			4

PG_FUNCTION_INFO_V1(mlint_master_keys);
PG_FUNCTION_INFO_V1(mlint_master_key_rotate);
PG_FUNCTION_INFO_V1(mlint_secret_rewrap);

typedef struct KeyRow
{
	int			id;
	TimestampTz created_at;
	uint8		check[MASTER_KEY_CHECK_BYTES];
} KeyRow;

/* The rows as this process knows them, in the order of their ids. */
static struct
{
	bool		valid;			/* nothing has changed since they were read */
	uint32		changes;		/* how often it has */
	Oid			relation;
	int			n;
	KeyRow	   *rows;
	pg_uuid_t	store;
}			known;

static void
forget_rows(Datum arg, Oid relid)
{
	if (relid != InvalidOid && relid != known.relation)
		return;
	known.valid = false;
	known.changes++;
}

void
keyrow_init(void)
{
	relation_watch(forget_rows, (Datum) 0);
}

/* A bytea of ours of exactly this many bytes, or NULL. */
static const uint8 *
bytea_of(Datum value, size_t len)
{
	bytea	   *b = DatumGetByteaPP(value);

	return VARSIZE_ANY_EXHDR(b) == len ? (uint8 *) VARDATA_ANY(b) : NULL;
}

static void
read_rows(void)
{
	uint32		changes;

	/* What arrives while we read makes us read again. */
	do
	{
		RowScan		scan;
		HeapTuple	row;
		int			room = 0;

		if (known.rows)
			pfree(known.rows);
		known.rows = NULL;
		known.n = 0;
		known.relation = mlint_relation("wrapping_key");
		changes = known.changes;
		rows_begin(&scan, "wrapping_key", "wrapping_key_pkey", 0, NULL, true);
		while ((row = rows_next(&scan)) != NULL)
		{
			KeyRow	   *key;
			const uint8 *check;
			Datum		store;
			bool		isnull;

			if (known.n == room)
			{
				room = Max(2 * room, 4);
				known.rows = known.rows ?
					repalloc(known.rows, room * sizeof(KeyRow)) :
					MemoryContextAlloc(TopMemoryContext,
									   room * sizeof(KeyRow));
			}
			key = &known.rows[known.n];
			key->id = DatumGetInt32(heap_getattr(row, KEY_ID, scan.desc,
												 &isnull));
			check = bytea_of(heap_getattr(row, KEY_CHECK, scan.desc, &isnull),
							 MASTER_KEY_CHECK_BYTES);
			if (check == NULL)
				elog(ERROR, "the check value of master key %d is damaged",
					 key->id);
			memcpy(key->check, check, MASTER_KEY_CHECK_BYTES);
			key->created_at =
				DatumGetTimestampTz(heap_getattr(row, KEY_CREATED_AT,
												 scan.desc, &isnull));
			store = heap_getattr(row, KEY_STORE, scan.desc, &isnull);
			Assert(!isnull);
			known.store = *DatumGetUUIDP(store);
			known.n++;
		}
		rows_end(&scan);
	} while (changes != known.changes);
	/* The first ones may come with a dump, whose COPY sends no invalidation. */
	known.valid = known.n > 0;
}

/*
 * The check value of a key; NULL when there is no such row. One that we do not
 * know may have come with a dump, too.
 */
static const uint8 *
key_check(int id)
{
	for (int attempt = 0; attempt < 2; attempt++)
	{
		if (!known.valid)
			read_rows();
		for (int i = known.n - 1; i >= 0; i--)
		{
			if (known.rows[i].id == id)
				return known.rows[i].check;
		}
		known.valid = false;
	}
	return NULL;
}

static int
newest_id(void)
{
	if (!known.valid)
		read_rows();
	return known.n > 0 ? known.rows[known.n - 1].id : 0;
}

/* The master key of a row, or the error. */
static const uint8 *
key_of(int id)
{
	const uint8 *check = key_check(id);

	if (check == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("there is no row for master key %d in mlint.wrapping_key",
						id),
				 errhint("Restore that table from a dump of this database.")));
	return master_key_get(check);
}

/* Add a row, and have everybody read the rows again. In an owner scope. */
static void
insert_row(int id, const uint8 *key)
{
	Oid			types[] = {INT4OID, BYTEAOID};
	uint8		check[MASTER_KEY_CHECK_BYTES];
	Datum		values[2];

	master_key_make_check(key, check);
	values[0] = Int32GetDatum(id);
	values[1] = PointerGetDatum(cstring_to_text_with_len((char *) check,
														 sizeof(check)));
	owner_run(NULL, "INSERT INTO mlint.wrapping_key"
			  " (id, store, check_value)"
			  " VALUES ($1, coalesce((SELECT k.store"
			  " FROM mlint.wrapping_key k LIMIT 1),"
			  " pg_catalog.gen_random_uuid()), $2)"
			  " ON CONFLICT DO NOTHING",
			  SPI_OK_INSERT, 2, types, values, NULL);
	CacheInvalidateRelcacheByRelid(mlint_relation("wrapping_key"));
	CommandCounterIncrement();
}

/*
 * Of two sessions that store the first secret at the same moment the second
 * waits for the first one's row, and uses it.
 */
int
key_row_current(void)
{
	if (newest_id() == 0)
		insert_row(1, master_key_get(NULL));
	return newest_id();
}

SealContext
seal_context(const char *purpose, const char *name, int version)
{
	SealContext c;
	uint32		ordered = pg_hton32((uint32) version);
	size_t		name_len = strlen(name);
	char	   *to = c.data;

	if (!known.valid)
		read_rows();
	Assert(strlen(purpose) + 1 + UUID_LEN + sizeof(ordered) + name_len <=
		   sizeof(c.data));
	to = stpcpy(to, purpose) + 1;
	memcpy(to, known.store.data, UUID_LEN);
	to += UUID_LEN;
	memcpy(to, &ordered, sizeof(ordered));
	to += sizeof(ordered);
	memcpy(to, name, name_len);
	c.len = to + name_len - c.data;
	return c;
}

void
key_store(uint8 id[16])
{
	if (!known.valid)
		read_rows();
	memcpy(id, known.store.data, UUID_LEN);
}

bool
key_unwrap(const SealContext *context, int key_id, bytea *wrapped,
		   uint8 *key)
{
	const uint8 *master = key_of(key_id);

	return VARSIZE_ANY_EXHDR(wrapped) == WRAPPED_KEY_BYTES &&
		crypto_open(master, context->data, context->len,
					(uint8 *) VARDATA_ANY(wrapped), WRAPPED_KEY_BYTES, key);
}

bytea *
key_wrap(const SealContext *context, int key_id, const uint8 *key)
{
	const uint8 *master = key_of(key_id);
	bytea	   *wrapped = palloc(VARHDRSZ + WRAPPED_KEY_BYTES);

	SET_VARSIZE(wrapped, VARHDRSZ + WRAPPED_KEY_BYTES);
	crypto_seal(master, context->data, context->len, key, CRYPTO_KEY_BYTES,
				(uint8 *) VARDATA(wrapped));
	return wrapped;
}

/* What each key wraps, in the order of the rows. */
typedef struct KeyUse
{
	int64		versions;		/* of secrets */
	int64		data_keys;
} KeyUse;

static KeyUse *
count_uses(int nrows)
{
	KeyUse	   *uses = palloc0(sizeof(KeyUse) * nrows);
	OwnerScope	scope;

	owner_begin(&scope);
	if (SPI_execute("SELECT key_id, true, pg_catalog.count(*)"
					" FROM mlint.secret_version"
					" WHERE destroyed_at IS NULL GROUP BY key_id"
					" UNION ALL SELECT key_id, false, pg_catalog.count(*)"
					" FROM mlint.data_key GROUP BY key_id",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not count what master keys wrap");
	for (uint64 r = 0; r < SPI_processed; r++)
	{
		HeapTuple	row = SPI_tuptable->vals[r];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		int			id = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
		bool		of_secrets = DatumGetBool(SPI_getbinval(row, desc, 2,
															&isnull));
		int64		n = DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));

		for (int i = 0; i < nrows; i++)
		{
			if (known.rows[i].id != id)
				continue;
			if (of_secrets)
				uses[i].versions = n;
			else
				uses[i].data_keys = n;
		}
	}
	owner_end(&scope);
	return uses;
}

/*
 * Does the source give a key now? If it gives none at all, why not (palloc'd).
 */
static bool
source_gives(const uint8 *check, char **why)
{
	Trial		trial;
	volatile bool available = false;

	*why = NULL;
	trial_begin(&trial);
	PG_TRY();
	{
		available = master_key_available(check);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		if (error->sqlerrcode != ERRCODE_MLINT_MASTER_KEY)
			ReThrowError(error);
		*why = pstrdup(error->message);
		FreeErrorData(error);
	}
	PG_END_TRY();
	return available;
}

/* mlint.master_keys(counted) */
Datum
mlint_master_keys(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		counted = PG_GETARG_BOOL(0);
	KeyUse	   *uses;
	int			nrows;
	bool		asked = false;
	char	   *why = NULL;

	InitMaterializedSRF(fcinfo, 0);
	nrows = newest_id() == 0 ? 0 : known.n;
	uses = counted ? count_uses(nrows) : NULL;
	for (int i = 0; i < nrows; i++)
	{
		/* Looking for a key may make us read the rows again. */
		KeyRow		row = known.rows[i];
		Datum		values[8];
		bool		nulls[8] = {0};
		bool		current = i == nrows - 1;
		bool		needed = counted &&
		(uses[i].versions > 0 || uses[i].data_keys > 0);
		bool		available = master_key_held(row.check);

		/* Once is enough: a command may take its time. */
		if (!available && !asked)
		{
			available = source_gives(row.check, &why);
			asked = true;
		}
		values[0] = Int32GetDatum(row.id);
		values[1] = CStringGetTextDatum(current ? "current" :
										needed ? "retiring" :
										"retired");
		nulls[1] = !counted && !current;
		values[2] = CStringGetTextDatum(master_key_source());
		values[3] = TimestampTzGetDatum(row.created_at);
		values[4] = Int64GetDatum(counted ? uses[i].versions : 0);
		values[5] = Int64GetDatum(counted ? uses[i].data_keys : 0);
		nulls[4] = nulls[5] = !counted;
		values[6] = BoolGetDatum(available);
		if (!available && (current || needed))
			values[7] = CStringGetTextDatum(why ? why :
											"the source does not give this key: what is under it does not open");
		else if (current && master_key_in_data_directory())
			values[7] = CStringGetTextDatum("the key lies in the data directory: a copy of that contains the secrets and their key; see mlint.master_key_file and mlint.master_key_command");
		else
			nulls[7] = true;
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}

/* mlint.master_key_rotate() returns int */
Datum
mlint_master_key_rotate(PG_FUNCTION_ARGS)
{
	OwnerScope	scope;
	const uint8 **checks;
	const uint8 *key;
	int			id;

	require_writable(fcinfo);
	owner_begin(&scope);
	/* One rotation at a time; nobody else locks the table so. */
	owner_run(NULL, "LOCK TABLE mlint.wrapping_key IN SHARE ROW EXCLUSIVE MODE",
			  SPI_OK_UTILITY, 0, NULL, NULL, NULL);
	id = newest_id() + 1;
	if (id == 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no secret has been stored in this database yet"),
				 errhint("There is no master key to rotate; the first secret takes the first key that %s gives.",
						 master_key_source())));
	checks = palloc(sizeof(uint8 *) * known.n);
	for (int i = 0; i < known.n; i++)
		checks[i] = memcpy(palloc(MASTER_KEY_CHECK_BYTES),
						   known.rows[i].check, MASTER_KEY_CHECK_BYTES);
	key = master_key_next(checks, known.n);
	insert_row(id, key);
	INJECTION("master-key-before-commit");
	owner_run(NULL, "SELECT mlint.job_run_now('master_key_rewrap')",
			  SPI_OK_SELECT, 0, NULL, NULL, NULL);
	owner_end(&scope);
	audit(AUDIT_CHANGED, "master_key.rotate", "master_key",
		  psprintf("%d", id), NULL);
	PG_RETURN_INT32(id);
}

/*
 * When a key is lost that is no reason to leave others as they are; the view
 * mlint.master_key warns of it. Without any key there is an error.
 */
bool
key_opens(int key_id, bool *asked)
{
	const uint8 *check = key_check(key_id);

	if (check == NULL || master_key_held(check))
		return check != NULL;
	if (!*asked && master_key_available(check))
		return true;
	*asked = true;
	return false;
}

/* The name of a secret, for the additional data; NULL if it is gone. */
static char *
name_of(int64 id)
{
	RowScan		scan;
	ScanKeyData key;
	HeapTuple	row;
	char	   *name = NULL;
	bool		isnull;

	row_key(&key, 1, F_INT8EQ, Int64GetDatum(id));
	rows_begin(&scan, "secret", "secret_pkey", 1, &key, true);
	row = rows_next(&scan);
	if (row)
		name = TextDatumGetCString(heap_getattr(row, 2, scan.desc, &isnull));
	rows_end(&scan);
	return name;
}

/* Where the rewrapping writes. */
typedef struct Rewrapper
{
	Relation	relation;
	Relation	index;
	IndexInfo  *index_info;
	TupleTableSlot *slot;
	Snapshot	snapshot;
	int			key_id;
	bool		asked;			/* see key_opens() */
} Rewrapper;

/*
 * Wrap a version's data key with the current master key. False when it was
 * none of ours to do: destroyed, dropped or done by somebody else meanwhile.
 */
static bool
rewrap_version(Rewrapper *to, HeapTuple row, const char *name)
{
	TupleDesc	desc = RelationGetDescr(to->relation);
	Datum		values[9];
	bool		nulls[9];
	bool		replace[9] = {false, false, true, true};
	uint8		data_key[CRYPTO_KEY_BYTES];
	SealContext context;
	int			version;
	HeapTuple	changed;
	TM_FailureData failure;
	LockTupleMode mode;
#if PG_VERSION_NUM >= 160000
	TU_UpdateIndexes indexes;
#else
	bool		indexes;
#endif

	heap_deform_tuple(row, desc, values, nulls);
	version = DatumGetInt32(values[1]);
	context = seal_context(SEAL_SECRET_KEY, name, version);
	if (nulls[3] || !key_opens(DatumGetInt32(values[2]), &to->asked) ||
		!key_unwrap(&context, DatumGetInt32(values[2]),
					DatumGetByteaPP(values[3]), data_key))
	{
		/* A damaged one is left as it is: reading it says so. */
		return false;
	}
	values[2] = Int32GetDatum(to->key_id);
	PG_TRY();
	{
		values[3] = PointerGetDatum(key_wrap(&context, to->key_id, data_key));
	}
	PG_FINALLY();
	{
		crypto_wipe(data_key, sizeof(data_key));
	}
	PG_END_TRY();

	changed = heap_modify_tuple(row, desc, values, nulls, replace);
	ExecForceStoreHeapTuple(changed, to->slot, false);
	if (table_tuple_update(to->relation, &row->t_self, to->slot,
						   GetCurrentCommandId(true), to->snapshot,
						   InvalidSnapshot, true, &failure, &mode,
						   &indexes) != TM_Ok)
		return false;
#if PG_VERSION_NUM >= 160000
	if (indexes == TU_All)
#else
	if (indexes)
#endif
	{
		Datum		keys[2] = {values[0], values[1]};
		bool		isnull[2] = {false, false};

		(void) index_insert(to->index, keys, isnull, &to->slot->tts_tid,
							to->relation, UNIQUE_CHECK_YES, false,
							to->index_info);
	}
	return true;
}

/*
 * mlint.secret_rewrap(after_id, batch): the secrets behind after_id, until
 * "batch" versions are done. last_id is null at the end of the table.
 */
Datum
mlint_secret_rewrap(PG_FUNCTION_ARGS)
{
	int64		after = PG_GETARG_INT64(0);
	int			batch = PG_GETARG_INT32(1);
	Rewrapper	to;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	row;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext each;
	char		name[SECRET_NAME_MAX + 1] = "";
	int64		named = 0;
	int64		last = 0;
	int64		done = 0;
	bool		ended = true;
	Datum		values[2];
	bool		nulls[2] = {false, false};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	to.key_id = newest_id();
	to.asked = false;
	if (to.key_id > 0)
	{
		to.relation = table_open(mlint_relation("secret_version"),
								 RowExclusiveLock);
		to.index = index_open(mlint_relation("secret_version_pkey"),
							  RowExclusiveLock);
		to.index_info = BuildIndexInfo(to.index);
		to.slot = MakeSingleTupleTableSlot(RelationGetDescr(to.relation),
										   &TTSOpsHeapTuple);
		to.snapshot = RegisterSnapshot(GetLatestSnapshot());
		each = AllocSetContextCreate(caller, "mlint rewrapping",
									 ALLOCSET_SMALL_SIZES);
		ScanKeyInit(&key, 1, BTGreaterStrategyNumber, F_INT8GT,
					Int64GetDatum(after));
		scan = systable_beginscan(to.relation, RelationGetRelid(to.index),
								  true, to.snapshot, 1, &key);
		while ((row = systable_getnext(scan)) != NULL)
		{
			bool		isnull;
			int64		id = DatumGetInt64(heap_getattr(row, 1,
														RelationGetDescr(to.relation),
														&isnull));

			CHECK_FOR_INTERRUPTS();
			if (done >= batch && id != last)
			{
				ended = false;
				break;
			}
			last = id;
			if (DatumGetInt32(heap_getattr(row, 3,
										   RelationGetDescr(to.relation),
										   &isnull)) == to.key_id)
				continue;
			MemoryContextReset(each);
			MemoryContextSwitchTo(each);
			if (named != id)
			{
				char	   *found = name_of(id);

				strlcpy(name, found ? found : "", sizeof(name));
				named = id;
			}
			if (name[0] != '\0' && rewrap_version(&to, row, name))
			{
				done++;
				INJECTION("rewrap-version");
			}
			MemoryContextSwitchTo(caller);
			ExecClearTuple(to.slot);
		}
		systable_endscan(scan);
		ExecDropSingleTupleTableSlot(to.slot);
		UnregisterSnapshot(to.snapshot);
		index_close(to.index, RowExclusiveLock);
		table_close(to.relation, RowExclusiveLock);
		INJECTION("rewrap-before-commit");
	}
	values[0] = Int64GetDatum(last);
	nulls[0] = ended;
	values[1] = Int64GetDatum(done);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
