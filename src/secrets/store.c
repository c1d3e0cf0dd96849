/*
 * store.c
 *		The local store: versions sealed under keys of their own.
 *
 * Storing a version draws a random data key, seals the value under it and the
 * data key under the master key, and keeps both. So the master key seals
 * little, and another master key means sealing the data keys again, never the
 * values (rewrap.c); key_id says which master key a row needs.
 *
 * Additional data of both seals are the store's identity, the name and the
 * version: a ciphertext that is moved, by an accident or by a hand, does not
 * open. Nothing of the cluster is bound in, because a dump must open wherever
 * the same master key is.
 *
 * A read costs two index lookups and two decryptions. It goes by rows.h
 * instead of SPI; what is read of mlint.wrapping_key is kept, and read again
 * after a relcache invalidation of that table, which every change of it sends.
 * Values reach no SQL statement.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "common/credential.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/rows.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "secrets/access.h"
#include "secrets/keyrow.h"
#include "secrets/store.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

/* Columns of mlint.secret. */
#define SECRET_ID				1
#define SECRET_NAME				2
#define SECRET_VERSION			3
#define SECRET_PREVIOUS			5
#define SECRET_PREVIOUS_UNTIL	6

/* Columns of mlint.secret_version. */
#define VERSION_SECRET_ID		1
#define VERSION_VERSION			2
#define VERSION_KEY_ID			3
#define VERSION_WRAPPED_KEY		4
#define VERSION_SEALED			5

/* Raise that a stored row is not what was stored. */
static void
pg_attribute_noreturn()
secret_corrupt(const char *name, int version, const char *part)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_SECRET_CORRUPT),
			 errmsg("version %d of secret \"%s\" does not decrypt",
					version, name),
			 errdetail("The master key is the right one, but %s is damaged, or belongs to another secret, version or database.",
					   part),
			 errhint("Store the value again with mlint.secret_put, or restore the table mlint.secret_version.")));
}

bool
store_find(const char *name, StoredSecret *secret)
{
	RowScan		scan;
	ScanKeyData key;
	HeapTuple	row;
	bool		isnull;

	row_key(&key, SECRET_NAME, F_TEXTEQ, CStringGetTextDatum(name));
	rows_begin(&scan, "secret", "secret_name_key", 1, &key, false);
	row = rows_next(&scan);
	if (row)
	{
		secret->id = DatumGetInt64(heap_getattr(row, SECRET_ID, scan.desc,
												&isnull));
		secret->version = DatumGetInt32(heap_getattr(row, SECRET_VERSION,
													 scan.desc, &isnull));
		secret->previous = DatumGetInt32(heap_getattr(row, SECRET_PREVIOUS,
													  scan.desc, &isnull));
		secret->previous_until =
			DatumGetTimestampTz(heap_getattr(row, SECRET_PREVIOUS_UNTIL,
											 scan.desc, &isnull));
	}
	rows_end(&scan);
	return row != NULL;
}

/* Open the two seals of a version. The value is palloc'd. */
static void
open_seals(const char *name, int version, int key_id, bytea *wrapped,
		   bytea *sealed, SecretValue *value)
{
	uint8		data_key[CRYPTO_KEY_BYTES];
	size_t		sealed_len = VARSIZE_ANY_EXHDR(sealed);
	SealContext context;
	bool		ok;

	context = seal_context(SEAL_SECRET_KEY, name, version);
	if (!key_unwrap(&context, key_id, wrapped, data_key))
		secret_corrupt(name, version, "its data key");
	if (sealed_len < CRYPTO_SEAL_OVERHEAD)
	{
		crypto_wipe(data_key, sizeof(data_key));
		secret_corrupt(name, version, "its value");
	}

	context = seal_context(SEAL_VALUE, name, version);
	value->data = palloc(sealed_len + 1);
	ok = crypto_open(data_key, context.data, context.len,
					 (uint8 *) VARDATA_ANY(sealed), sealed_len, value->data);
	crypto_wipe(data_key, sizeof(data_key));
	if (!ok)
		secret_corrupt(name, version, "its value");
	value->len = sealed_len - CRYPTO_SEAL_OVERHEAD;
	value->data[value->len] = '\0';
	value->version = psprintf("%d", version);
}

bool
store_open_version(const char *name, const StoredSecret *secret, int version,
				   SecretValue *value)
{
	RowScan		scan;
	ScanKeyData keys[2];
	HeapTuple	row;
	Datum		wrapped;
	Datum		sealed;
	int			key_id;
	bool		isnull;
	bool		destroyed;

	row_key(&keys[0], VERSION_SECRET_ID, F_INT8EQ, Int64GetDatum(secret->id));
	row_key(&keys[1], VERSION_VERSION, F_INT4EQ, Int32GetDatum(version));
	rows_begin(&scan, "secret_version", "secret_version_pkey", 2, keys, false);
	row = rows_next(&scan);
	if (row == NULL)
	{
		rows_end(&scan);
		return false;
	}
	key_id = DatumGetInt32(heap_getattr(row, VERSION_KEY_ID, scan.desc,
										&isnull));
	wrapped = heap_getattr(row, VERSION_WRAPPED_KEY, scan.desc, &destroyed);
	sealed = heap_getattr(row, VERSION_SEALED, scan.desc, &isnull);
	if (destroyed || isnull)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("version %d of secret \"%s\" was destroyed",
						version, name),
				 errhint("mlint.secret_versions tells when and by whom. Store a new version with mlint.secret_put.")));
	open_seals(name, version, key_id, DatumGetByteaPP(wrapped),
			   DatumGetByteaPP(sealed), value);
	rows_end(&scan);
	return true;
}

static int64
int64_result(int column)
{
	bool		isnull;

	return DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, column,
									   &isnull));
}

static int
int32_result(int column)
{
	bool		isnull;

	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, column,
									   &isnull));
}

/*
 * The row of a secret for a new version, made if there is none, and locked.
 * Returns the version's number.
 */
static int
next_version(const char *name, const SecretAbout *about, int64 *id,
			 bool *made)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, JSONBOID};
	Datum		values[4];
	char		nulls[4] = {' ', 'n', 'n', 'n'};

	values[0] = CStringGetTextDatum(name);
	if (about && about->type)
	{
		values[1] = CStringGetTextDatum(about->type);
		nulls[1] = ' ';
	}
	if (about && about->description)
	{
		values[2] = CStringGetTextDatum(about->description);
		nulls[2] = ' ';
	}
	if (about && about->metadata)
	{
		values[3] = JsonbPGetDatum(about->metadata);
		nulls[3] = ' ';
	}
	if (SPI_execute_with_args("INSERT INTO mlint.secret AS s"
							  " (name, version, latest, type, description, metadata)"
							  " VALUES ($1, 0, 1, coalesce($2, 'api_key'), $3,"
							  " coalesce($4, '{}'))"
							  " ON CONFLICT (name) DO UPDATE SET"
							  " latest = s.latest + 1,"
							  " type = coalesce($2, s.type),"
							  " description = coalesce($3, s.description),"
							  " metadata = coalesce($4, s.metadata)"
							  " RETURNING id, latest",
							  4, types, values, nulls,
							  false, 0) != SPI_OK_INSERT_RETURNING ||
		SPI_processed != 1)
		elog(ERROR, "could not write mlint.secret");
	*id = int64_result(1);
	*made = int32_result(2) == 1;
	return int32_result(2);
}

int
store_put_version(const char *name, const void *data, size_t len,
				  const SecretAbout *about, bool current)
{
	OwnerScope	scope;
	Oid			caller = GetUserId();
	Oid			types[] = {INT8OID, INT4OID, INT4OID, BYTEAOID, BYTEAOID,
	TEXTOID};
	Datum		values[6];
	uint8		data_key[CRYPTO_KEY_BYTES];
	bytea	   *sealed;
	SealContext context;
	int64		id;
	bool		made;
	int			key_id;
	int			version;

	owner_begin(&scope);
	version = next_version(name, about, &id, &made);
	if (made)
		secret_owner_set(name, caller);

	key_id = key_row_current();
	sealed = palloc(VARHDRSZ + len + CRYPTO_SEAL_OVERHEAD);
	SET_VARSIZE(sealed, VARHDRSZ + len + CRYPTO_SEAL_OVERHEAD);
	crypto_random(data_key, sizeof(data_key));
	context = seal_context(SEAL_SECRET_KEY, name, version);
	values[3] = PointerGetDatum(key_wrap(&context, key_id, data_key));
	context = seal_context(SEAL_VALUE, name, version);
	crypto_seal(data_key, context.data, context.len, data, len,
				(uint8 *) VARDATA(sealed));
	crypto_wipe(data_key, sizeof(data_key));

	values[0] = Int64GetDatum(id);
	values[1] = Int32GetDatum(version);
	values[2] = Int32GetDatum(key_id);
	values[4] = PointerGetDatum(sealed);
	values[5] = CStringGetTextDatum(GetUserNameFromId(caller, false));
	owner_run(NULL, "INSERT INTO mlint.secret_version (secret_id,"
			  " version, key_id, wrapped_key, sealed, created_by)"
			  " VALUES ($1, $2, $3, $4, $5, $6)",
			  SPI_OK_INSERT, 6, types, values, NULL);
	owner_end(&scope);
	if (current)
		store_make_current(name, version, 0);
	return version;
}

/* Whoever keeps the value in memory, or in a file, reads it again. */
static void
value_changed(const char *name, int version)
{
	secret_values_changed();
	if (version > 0)
		Async_Notify("mlint_secret",
					 psprintf("{\"name\": \"%s\", \"version\": %d}", name,
							  version));
}

void
store_make_current(const char *name, int version, int grace_s)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID, INT4OID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(name), Int32GetDatum(version),
	Int32GetDatum(grace_s)};

	owner_begin(&scope);
	owner_run(NULL, "UPDATE mlint.secret SET version = $2,"
			  " previous = version,"
			  " previous_until = CASE WHEN version = 0 OR $3 = 0"
			  " THEN '-infinity' ELSE pg_catalog.clock_timestamp()"
			  " + pg_catalog.make_interval(secs => $3) END,"
			  " updated_at = pg_catalog.now()"
			  " WHERE name = $1 AND version <> $2",
			  SPI_OK_UPDATE, 3, types, values, NULL);
	if (SPI_processed > 0)
		value_changed(name, version);
	owner_end(&scope);
}

void
store_destroy(const char *name, int version)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID, INT4OID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name), Int32GetDatum(version),
	CStringGetTextDatum(GetUserNameFromId(GetUserId(), false))};

	owner_begin(&scope);
	owner_run(NULL, "UPDATE mlint.secret_version v"
			  " SET wrapped_key = NULL, sealed = NULL,"
			  " destroyed_at = pg_catalog.now(),"
			  " destroyed_by = $3"
			  " FROM mlint.secret s WHERE s.name = $1"
			  " AND v.secret_id = s.id AND v.version = $2"
			  " AND v.destroyed_at IS NULL",
			  SPI_OK_UPDATE, 3, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("secret \"%s\" has no version %d that could be destroyed",
						name, version),
				 errhint("mlint.secret_versions lists the versions.")));
	/* Nor is it valid beside the current one any more. */
	owner_run(NULL, "UPDATE mlint.secret"
			  " SET previous_until = '-infinity'"
			  " WHERE name = $1 AND previous = $2",
			  SPI_OK_UPDATE, 3, types, values, NULL);
	value_changed(name, 0);
	owner_end(&scope);
}

void
store_drop(const char *name)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	owner_begin(&scope);
	owner_run(NULL, "DELETE FROM mlint.secret WHERE name = $1",
			  SPI_OK_DELETE, 1, types, values, NULL);
	if (SPI_processed == 0)
		secret_unknown(name);
	secret_grants_drop(name);
	value_changed(name, 0);
	owner_end(&scope);
}
