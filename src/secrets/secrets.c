/*
 * secrets.c
 *		Put, get and drop secrets: an envelope for each version.
 *
 * Storing a version draws a random data key, seals the value under it and the
 * data key under the master key, and keeps both. So the master key seals
 * little, and another master key will mean sealing the data keys again, never
 * the values; key_id says which master key a row needs.
 *
 * Name and version are additional data of both seals: a ciphertext that is
 * moved to another row, by an accident or by a hand, does not open. Nothing of
 * the cluster or database is bound in, because a dump must open wherever the
 * same master key is.
 *
 * A value is UTF-8 when sealed, whatever the database's encoding. It reaches
 * no SQL statement of ours, and statements of the caller that fail in here are
 * hidden from the log, because they may contain it.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/compat.h"
#include "common/credential.h"
#include "common/errors.h"
#include "common/generation.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "common/plaintext.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "port/pg_bswap.h"
#include "secrets/master_key.h"
#include "secrets/secrets.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "worker/worker.h"

#define WRAPPED_KEY_BYTES		(CRYPTO_KEY_BYTES + CRYPTO_SEAL_OVERHEAD)

PG_FUNCTION_INFO_V1(mlint_secret_put);
PG_FUNCTION_INFO_V1(mlint_secret_get);
PG_FUNCTION_INFO_V1(mlint_secret_drop);

void
secrets_init(void)
{
	master_key_define_settings();
	credential_register_secrets(secret_value, secret_exists);
}

/* What a seal is for: the additional data of the two seals of a version. */
typedef struct SealContext
{
	char		data[64 + SECRET_NAME_MAX];
	size_t		len;
} SealContext;

/* "purpose", a zero, the version in network order, the name. */
static SealContext
seal_context(const char *purpose, const char *name, int version)
{
	SealContext c;
	uint32		ordered = pg_hton32((uint32) version);
	size_t		purpose_len = strlen(purpose) + 1;
	size_t		name_len = strlen(name);

	Assert(purpose_len + sizeof(ordered) + name_len <= sizeof(c.data));
	memcpy(c.data, purpose, purpose_len);
	memcpy(c.data + purpose_len, &ordered, sizeof(ordered));
	memcpy(c.data + purpose_len + sizeof(ordered), name, name_len);
	c.len = purpose_len + sizeof(ordered) + name_len;
	return c;
}

#define KEY_CONTEXT(name, version)		\
	seal_context("mlint secret data key", name, version)
#define VALUE_CONTEXT(name, version)	\
	seal_context("mlint secret value", name, version)

static bool
secret_name_valid(const char *name)
{
	size_t		len = strlen(name);

	return len >= 1 && len <= SECRET_NAME_MAX &&
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789_./-") == len;
}

/*
 * The argument that names a secret. A bad one is not repeated in the message:
 * it may be a value given in the wrong place.
 */
static char *
secret_name_argument(FunctionCallInfo fcinfo)
{
	char	   *name;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the name of a secret must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (!secret_name_valid(name))
	{
		crypto_wipe(name, strlen(name));
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of a secret"),
				 errdetail("A name is 1 to %d characters: letters of the English alphabet, digits, and any of _ . / -",
						   SECRET_NAME_MAX)));
	}
	return name;
}

/* A bytea of ours of exactly this many bytes, or NULL. */
static const uint8 *
bytea_of(Datum value, size_t len)
{
	bytea	   *b = DatumGetByteaPP(value);

	return VARSIZE_ANY_EXHDR(b) == len ? (uint8 *) VARDATA_ANY(b) : NULL;
}

static Datum
bytea_make(const void *data, size_t len)
{
	return PointerGetDatum(cstring_to_text_with_len(data, (int) len));
}

/* Raise that a stored row is not what was stored. */
static void
pg_attribute_noreturn()
secret_corrupt(const char *name, int version, const char *part)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_SECRET_CORRUPT),
			 errmsg("version %d of secret \"%s\" does not decrypt",
					version, name),
			 errdetail("The master key is the right one, but %s is damaged, or belongs to another secret or version.",
					   part),
			 errhint("Store the value again with mlint.secret_put, or restore the table mlint.secret_version.")));
}

/* Find the newest master key row: its id, 0 if there is none, and check. */
static int
current_master_key(uint8 check[MASTER_KEY_CHECK_BYTES])
{
	bool		isnull;
	const uint8 *stored;
	int			id;

	if (SPI_execute("SELECT id, check_value FROM mlint.master_key"
					" ORDER BY id DESC LIMIT 1", false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.master_key");
	if (SPI_processed == 0)
		return 0;
	id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
									 SPI_tuptable->tupdesc, 1, &isnull));
	stored = bytea_of(SPI_getbinval(SPI_tuptable->vals[0],
									SPI_tuptable->tupdesc, 2, &isnull),
					  MASTER_KEY_CHECK_BYTES);
	if (stored == NULL)
		elog(ERROR, "the check value of master key %d is damaged", id);
	memcpy(check, stored, MASTER_KEY_CHECK_BYTES);
	return id;
}

/*
 * The master key to seal with, and its id. The first one to be used in this
 * database leaves its check value; of two sessions that do so at the same
 * time, the second finds the first one's.
 */
static const uint8 *
sealing_key(int *id)
{
	uint8		check[MASTER_KEY_CHECK_BYTES];

	*id = current_master_key(check);
	if (*id == 0)
	{
		Oid			types[] = {BYTEAOID};
		Datum		values[1];

		master_key_make_check(master_key_get(NULL), check);
		values[0] = bytea_make(check, sizeof(check));
		if (SPI_execute_with_args("INSERT INTO mlint.master_key (id, check_value)"
								  " VALUES (1, $1) ON CONFLICT DO NOTHING",
								  1, types, values, NULL,
								  false, 0) != SPI_OK_INSERT)
			elog(ERROR, "could not write mlint.master_key");
		*id = current_master_key(check);
	}
	return master_key_get(check);
}

/* The number of a new version of this secret, whose row is then locked. */
static int
next_version(const char *name, int64 *secret_id)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	bool		isnull;

	if (SPI_execute_with_args("INSERT INTO mlint.secret AS s (name)"
							  " VALUES ($1)"
							  " ON CONFLICT (name) DO UPDATE"
							  " SET version = s.version + 1,"
							  " updated_at = pg_catalog.now()"
							  " RETURNING id, version",
							  1, types, values, NULL,
							  false, 0) != SPI_OK_INSERT_RETURNING ||
		SPI_processed != 1)
		elog(ERROR, "could not write mlint.secret");
	*secret_id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											 SPI_tuptable->tupdesc, 1,
											 &isnull));
	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, 2, &isnull));
}

/* Store a new version of a secret, and return its number. */
static int
store_value(const char *name, const char *value, size_t len)
{
	OwnerScope	scope;
	Oid			types[] = {INT8OID, INT4OID, INT4OID, BYTEAOID, BYTEAOID};
	Datum		values[5];
	const uint8 *master;
	uint8		data_key[CRYPTO_KEY_BYTES];
	uint8		wrapped[WRAPPED_KEY_BYTES];
	uint8	   *sealed;
	SealContext context;
	int64		secret_id;
	int			key_id;
	int			version;

	owner_begin(&scope);
	sealed = palloc(len + CRYPTO_SEAL_OVERHEAD);
	master = sealing_key(&key_id);
	version = next_version(name, &secret_id);

	crypto_random(data_key, sizeof(data_key));
	context = KEY_CONTEXT(name, version);
	crypto_seal(master, context.data, context.len,
				data_key, sizeof(data_key), wrapped);
	context = VALUE_CONTEXT(name, version);
	crypto_seal(data_key, context.data, context.len, value, len, sealed);
	crypto_wipe(data_key, sizeof(data_key));

	values[0] = Int64GetDatum(secret_id);
	values[1] = Int32GetDatum(version);
	values[2] = Int32GetDatum(key_id);
	values[3] = bytea_make(wrapped, sizeof(wrapped));
	values[4] = bytea_make(sealed, len + CRYPTO_SEAL_OVERHEAD);
	if (SPI_execute_with_args("INSERT INTO mlint.secret_version"
							  " (secret_id, version, key_id, wrapped_key, sealed)"
							  " VALUES ($1, $2, $3, $4, $5)",
							  5, types, values, NULL,
							  false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write mlint.secret_version");
	generation_bump("secrets");
	/* Deliveries may be waiting for this. */
	worker_wake_at_commit(WORKER_DISPATCHER);
	owner_end(&scope);
	return version;
}

/* mlint.secret_put(name text, value text) returns int */
Datum
mlint_secret_put(PG_FUNCTION_ARGS)
{
	char	   *name;
	Plaintext	value;
	volatile int version = 0;

	HIDE_STATEMENT_BEGIN();
	name = secret_name_argument(fcinfo);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the value of a secret must not be null"),
				 errhint("To remove a secret, use mlint.secret_drop.")));
	value = plaintext_take(PG_GETARG_DATUM(1));
	PG_TRY();
	{
		if (value.len < 1 || value.len > SECRET_VALUE_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the value of a secret must have 1 to %d bytes, not %zu",
							SECRET_VALUE_MAX, value.len)));
		version = store_value(name, value.data, value.len);
	}
	PG_FINALLY();
	{
		plaintext_wipe(&value);
	}
	PG_END_TRY();
	HIDE_STATEMENT_END();
	PG_RETURN_INT32(version);
}

/* Open the two seals of a version. The value is palloc'd in "where". */
static char *
secret_open(const char *name, int version, const uint8 *master,
			bytea *wrapped, bytea *sealed, MemoryContext where, size_t *len)
{
	SealContext context = KEY_CONTEXT(name, version);
	uint8		data_key[CRYPTO_KEY_BYTES];
	size_t		sealed_len = VARSIZE_ANY_EXHDR(sealed);
	char	   *value;
	bool		ok;

	if (VARSIZE_ANY_EXHDR(wrapped) != WRAPPED_KEY_BYTES ||
		!crypto_open(master, context.data, context.len,
					 (uint8 *) VARDATA_ANY(wrapped), WRAPPED_KEY_BYTES,
					 data_key))
		secret_corrupt(name, version, "its data key");

	context = VALUE_CONTEXT(name, version);
	value = MemoryContextAlloc(where, sealed_len + 1);
	ok = crypto_open(data_key, context.data, context.len,
					 (uint8 *) VARDATA_ANY(sealed), sealed_len, value);
	crypto_wipe(data_key, sizeof(data_key));
	if (!ok)
		secret_corrupt(name, version, "its value");
	*len = sealed_len - CRYPTO_SEAL_OVERHEAD;
	value[*len] = '\0';
	return value;
}

bool
secret_exists(const char *name)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	bool		found;

	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT FROM mlint.secret WHERE name = $1",
							  1, types, values, NULL,
							  ActiveSnapshotSet(), 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.secret");
	found = SPI_processed > 0;
	owner_end(&scope);
	return found;
}

/*
 * The caller's snapshot is used if it has one, so that mlint.secret_get is
 * stable; a worker that has none sees what is committed now.
 */
char *
secret_value(const char *name, int version, size_t *len)
{
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	Oid			types[] = {TEXTOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(name), Int32GetDatum(version)};
	HeapTuple	row;
	TupleDesc	desc;
	const uint8 *check;
	char	   *value;
	bool		isnull;

	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT v.version, v.wrapped_key, v.sealed,"
							  " k.check_value"
							  " FROM mlint.secret s"
							  " JOIN mlint.secret_version v ON v.secret_id = s.id"
							  " JOIN mlint.master_key k ON k.id = v.key_id"
							  " WHERE s.name = $1 AND v.version ="
							  " CASE $2 WHEN 0 THEN s.version ELSE $2 END",
							  2, types, values, NULL,
							  ActiveSnapshotSet(), 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.secret_version");
	if (SPI_processed == 0)
	{
		if (version != 0 && secret_exists(name))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("secret \"%s\" has no version %d", name, version),
					 errhint("The view mlint.secrets shows the current version of each secret.")));
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("secret \"%s\" does not exist", name),
				 errhint("The view mlint.secrets lists those that exist.")));
	}

	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	version = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
	check = bytea_of(SPI_getbinval(row, desc, 4, &isnull),
					 MASTER_KEY_CHECK_BYTES);
	if (check == NULL)
		elog(ERROR, "the check value of the master key is damaged");
	value = secret_open(name, version, master_key_get(check),
						DatumGetByteaPP(SPI_getbinval(row, desc, 2, &isnull)),
						DatumGetByteaPP(SPI_getbinval(row, desc, 3, &isnull)),
						caller, len);
	owner_end(&scope);
	return value;
}

/* mlint.secret_get(name text, version int default null) returns text */
Datum
mlint_secret_get(PG_FUNCTION_ARGS)
{
	char	   *name = secret_name_argument(fcinfo);
	char	   *value;
	size_t		len;
	text	   *result;

	if (!PG_ARGISNULL(1) && PG_GETARG_INT32(1) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the version of a secret must be 1 or more"),
				 errhint("Leave it out for the current version.")));
	value = secret_value(name, PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1), &len);
	result = plaintext_give(value, len);
	crypto_wipe(value, len);
	pfree(value);
	PG_RETURN_TEXT_P(result);
}

/* mlint.secret_drop(name text) returns void */
Datum
mlint_secret_drop(PG_FUNCTION_ARGS)
{
	char	   *name = secret_name_argument(fcinfo);
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	owner_begin(&scope);
	if (SPI_execute_with_args("DELETE FROM mlint.secret WHERE name = $1",
							  1, types, values, NULL,
							  false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not delete from mlint.secret");
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("secret \"%s\" does not exist", name),
				 errhint("The view mlint.secrets lists those that exist.")));
	generation_bump("secrets");
	/* Deliveries may be waiting for this. */
	worker_wake_at_commit(WORKER_DISPATCHER);
	owner_end(&scope);
	PG_RETURN_VOID();
}
