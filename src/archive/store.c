/*
 * store.c
 *		Object stores as rows: create, alter, drop, test, open.
 *
 * One store at a time takes new archives; the others keep what they have.
 * Whatever can be known to be wrong with options is refused here. Whoever names
 * a credential must be allowed to use it. A store is dropped only when nothing
 * is in it any more.
 */
#include "postgres.h"

#include "archive/store.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/owner.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_archive_store_create);
PG_FUNCTION_INFO_V1(mlint_archive_store_alter);
PG_FUNCTION_INFO_V1(mlint_archive_store_drop);
PG_FUNCTION_INFO_V1(mlint_archive_store_test);
PG_FUNCTION_INFO_V1(mlint_archive_store_options);

#define PREFIX_MAX		512
#define JOB				"archive_move"

static const ConfiguredKind *const kinds[] = {
	&store_s3.base, &store_file.base, NULL
};

static const Option store_options[] = {
	{"prefix", OPTION_TEXT, offsetof(StoreOptions, prefix), "", 0, 0, NULL,
		NULL, false,
	"what the objects' names begin with, as in \"mlint/\"; the archive's id follows"},
	{"timeout_ms", OPTION_INT, offsetof(StoreOptions, timeout_ms), "60000",
		100, 3600000, NULL, NULL, false,
	"how long a request may take, in milliseconds; the largest carries 16 MiB"},
	{NULL}
};

static void
check_store(const Configured *c, Oid role, const char *action)
{
	const char *prefix = ((StoreOptions *) c->parsed)->prefix;

	if (strlen(prefix) > PREFIX_MAX ||
		strspn(prefix, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789_=.-/") != strlen(prefix) ||
		prefix[0] == '/' || strstr(prefix, "//") || strstr(prefix, ".."))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"prefix\" of %s must be at most %d letters of the English alphabet, digits, and any of _ = . - /",
						c->what, PREFIX_MAX),
				 errdetail("It does not begin with \"/\", and has neither \"//\" nor \"..\" in it.")));
	((const StoreKind *) c->kind)->check(c->parsed, c->what);
}

/* A store that has archives, or objects that are still to go, must stay. */
static void
check_empty(int32 id, const char *name)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(id)};
	bool		isnull;

	owner_run(NULL,
			  "SELECT EXISTS (SELECT FROM mlint.archive WHERE store = $1),"
			  " EXISTS (SELECT FROM mlint.archive_garbage WHERE store = $1)",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (DatumGetBool(owner_column(1, &isnull)))
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("archive store \"%s\" cannot be dropped: there are archives in it",
						name),
				 errhint("With mlint.archive_store_alter(%s, active => false) it gets no new ones.",
						 quote_literal_cstr(name))));
	if (DatumGetBool(owner_column(2, &isnull)))
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("archive store \"%s\" cannot be dropped: objects in it are still to be deleted",
						name),
				 errhint("The job archive_move does so; mlint.archive_stores shows how many are left, and what it last failed with.")));
}

static const ConfiguredSort stores = {
	.noun = "archive store",
	.identifier = "archive_store",
	.kinds = kinds,
	.options = store_options,
	.reserved = "database",
	.reserved_for = "It is this database, where archives are until a store takes them.",
	.check = check_store,
	.check_drop = check_empty
};

/* Whether a store gets new archives: then the others get none. */
static void
set_active(int32 id, bool active)
{
	Oid			types[] = {INT4OID, BOOLOID};
	Datum		values[] = {Int32GetDatum(id), BoolGetDatum(active)};

	owner_run(NULL,
			  "UPDATE mlint.archive_store SET active = false"
			  " WHERE $2 AND active AND id <> $1", SPI_OK_UPDATE, 2, types,
			  values, NULL);
	owner_run(NULL,
			  "UPDATE mlint.archive_store SET active = $2 WHERE id = $1",
			  SPI_OK_UPDATE, 2, types, values, NULL);
}

/* mlint.archive_store_create(name, kind, options) */
Datum
mlint_archive_store_create(PG_FUNCTION_ARGS)
{
	int32		id = configured_create(&stores, fcinfo);
	OwnerScope	scope;

	owner_begin(&scope);
	set_active(id, true);
	owner_end(&scope);
	(void) job_request(JOB);
	PG_RETURN_VOID();
}

/*
 * mlint.archive_store_alter(name, options, active): options are merged, null
 * takes one away. What has failed is tried again at once.
 */
Datum
mlint_archive_store_alter(PG_FUNCTION_ARGS)
{
	Oid			types[] = {INT4OID};
	int32		id = configured_alter(&stores, fcinfo);
	Datum		values[] = {Int32GetDatum(id)};
	OwnerScope	scope;

	owner_begin(&scope);
	if (!PG_ARGISNULL(2))
		set_active(id, PG_GETARG_BOOL(2));
	/* What was wrong may be mended. */
	owner_run(NULL,
			  "UPDATE mlint.archive_store_state SET breaker = 0, failures = 0"
			  " WHERE store = $1", SPI_OK_UPDATE, 1, types, values, NULL);
	owner_run(NULL,
			  "UPDATE mlint.archive_garbage SET next_at = '-infinity'"
			  " WHERE store = $1 AND next_at > '-infinity'",
			  SPI_OK_UPDATE, 1, types, values, NULL);
	owner_run(NULL,
			  "UPDATE mlint.archive_move SET next_at = '-infinity'"
			  " WHERE EXISTS (SELECT FROM mlint.archive_store"
			  " WHERE id = $1 AND active)", SPI_OK_UPDATE, 1, types, values,
			  NULL);
	owner_end(&scope);
	(void) job_request(JOB);
	PG_RETURN_VOID();
}

/* mlint.archive_store_drop(name) */
Datum
mlint_archive_store_drop(PG_FUNCTION_ARGS)
{
	(void) configured_drop(&stores, fcinfo);
	PG_RETURN_VOID();
}

/* ---- an open store ---- */

/* By its name, or by its id when that is NULL. */
static Store *
open_row(const char *name, int32 id)
{
	Store	   *store = palloc0(sizeof(Store));
	Configured	c;

	if (!configured_find(&stores, name, id, &c))
		configured_missing(&stores, name ? name : psprintf("%d", id));
	store->id = c.id;
	store->name = c.name;
	store->kind = (const StoreKind *) c.kind;
	store->options = c.parsed;
	store->context = CurrentMemoryContext;
	return store;
}

Store *
store_open(int32 id)
{
	return open_row(NULL, id);
}

static char *
object_name(const Store *store, const pg_uuid_t *archive)
{
	return psprintf("%s%s", store->options->prefix,
					DatumGetCString(DirectFunctionCall1(uuid_out,
														UUIDPGetDatum(archive))));
}

void
store_put(Store *store, const pg_uuid_t *archive, int64 size,
		  StoreSource source, void *arg)
{
	store->kind->put(store, object_name(store, archive), size, source, arg);
}

void
store_get(Store *store, const pg_uuid_t *archive, int64 offset, size_t len,
		  void *buffer)
{
	store->kind->get(store, object_name(store, archive), offset, len, buffer);
}

void
store_delete(Store *store, const pg_uuid_t *archive)
{
	store->kind->delete(store, object_name(store, archive));
}

void
store_fail(const Store *store, int sqlstate, const char *detail,
		   const char *reason,...)
{
	char		words[1024];
	va_list		args;

	va_start(args, reason);
	vsnprintf(words, sizeof(words), reason, args);
	va_end(args);
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("could not use archive store \"%s\": %s", store->name,
					words),
			 detail && detail[0] ? errdetail("It said: %s", detail) : 0,
			 sqlstate == ERRCODE_MLINT_AUTHENTICATION ?
			 errhint("Check the store's credentials, and what they permit in the bucket: to put, get and delete objects, to list and abort multipart uploads.") :
			 sqlstate == ERRCODE_MLINT_ADDRESS_REFUSED ?
			 errhint("See the settings mlint.http_deny and mlint.http_allow.") :
			 sqlstate == ERRCODE_MLINT_TIMEOUT ?
			 errhint("See option \"timeout_ms\" of the store.") : 0));
}

static void
test_source(void *buffer, size_t len, void *arg)
{
	memcpy(buffer, arg, len);
}

/* mlint.archive_store_test(name): put, get and delete an object. */
Datum
mlint_archive_store_test(PG_FUNCTION_ARGS)
{
	static char sent[] = "A test of mlint's; it can be deleted.\n";
	char	   *name = required_text(fcinfo, 0, "name");
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "mlint store test",
											   ALLOCSET_DEFAULT_SIZES);
	char		got[sizeof(sent) - 1];
	uint8		random[8];
	char		hex[2 * sizeof(random) + 1];
	char	   *object;
	char	   *place;
	Store	   *store;

	audit(AUDIT_DONE, "archive_store.test", "archive_store", name, NULL);
	MemoryContextSwitchTo(work);
	store = open_row(name, 0);
	crypto_random(random, sizeof(random));
	crypto_hex(random, sizeof(random), hex);
	object = psprintf("%smlint-test-%s", store->options->prefix, hex);
	store->kind->put(store, object, sizeof(got), test_source,
					 sent);
	store->kind->get(store, object, 0, sizeof(got), got);
	store->kind->delete(store, object);
	if (memcmp(got, sent, sizeof(got)) != 0)
		store_fail(store, ERRCODE_MLINT_API, NULL,
				   "it gave other bytes than it was sent");
	MemoryContextSwitchTo(caller);
	place = pstrdup(store->kind->place(store));
	MemoryContextDelete(work);
	PG_RETURN_TEXT_P(cstring_to_text(place));
}

/* mlint.archive_store_options() */
Datum
mlint_archive_store_options(PG_FUNCTION_ARGS)
{
	return configured_options(&stores, fcinfo);
}
