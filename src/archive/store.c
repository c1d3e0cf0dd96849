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
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_archive_store_create);
PG_FUNCTION_INFO_V1(mlint_archive_store_alter);
PG_FUNCTION_INFO_V1(mlint_archive_store_drop);
PG_FUNCTION_INFO_V1(mlint_archive_store_test);
PG_FUNCTION_INFO_V1(mlint_archive_store_options);

#define STORE_NAME_MAX	63
#define PREFIX_MAX		512
#define JOB				"archive_move"

const StoreKind *const store_kinds[] = {&store_s3, &store_file, NULL};

static const Option store_options[] = {
	{"prefix", OPTION_TEXT, offsetof(StoreOptions, prefix), "", 0, 0, NULL,
		NULL, false,
	"what the objects' names begin with, as in \"mlint/\"; the archive's id follows"},
	{"timeout_ms", OPTION_INT, offsetof(StoreOptions, timeout_ms), "60000",
		100, 3600000, NULL, NULL, false,
	"how long a request may take, in milliseconds; the largest carries 16 MiB"},
	{NULL}
};

static const StoreKind *
find_kind(const char *name)
{
	StringInfoData known;

	initStringInfo(&known);
	for (int i = 0; store_kinds[i]; i++)
	{
		if (strcmp(store_kinds[i]->name, name) == 0)
			return store_kinds[i];
		appendStringInfo(&known, "%s%s", i > 0 ? ", " : "",
						 store_kinds[i]->name);
	}
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("there is no kind \"%s\" of archive store", name),
			 errhint("The kinds are: %s. The view mlint.archive_store_kinds shows their options.",
					 known.data)));
}

static void
pg_attribute_noreturn()
no_such_store(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("archive store \"%s\" does not exist", name),
			 errhint("The view mlint.archive_stores lists them; mlint.archive_store_create() makes one.")));
}

static void
check_name(const char *name)
{
	size_t		len = strlen(name);

	if (strcmp(name, "database") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("archive store \"database\" cannot be created"),
				 errdetail("It is this database, where archives are until a store takes them.")));
	if (len == 0 || len > STORE_NAME_MAX ||
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789_.-") != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of an archive store"),
				 errdetail("A name is 1 to %d characters: letters of the English alphabet, digits, and any of _ . -",
						   STORE_NAME_MAX)));
}

/* Options into the kind's struct, with all that the tables say. */
static StoreOptions *
parse(const StoreKind *kind, Jsonb *options, const char *what)
{
	const Option *const tables[] = {kind->options, store_options};
	void	   *parsed = palloc0(kind->options_size);

	option_parse(tables, lengthof(tables), options, what, parsed);
	return parsed;
}

/* May this role have a store with these options? Raises what is wrong. */
static void
check_options(const StoreKind *kind, Jsonb *options, Oid role,
			  const char *name)
{
	char	   *what = psprintf("archive store \"%s\"", name);
	const Option *const tables[] = {kind->options, store_options};
	StoreOptions *parsed = parse(kind, options, what);

	if (strlen(parsed->prefix) > PREFIX_MAX ||
		strspn(parsed->prefix,
			   "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789_=.-/") != strlen(parsed->prefix) ||
		parsed->prefix[0] == '/' || strstr(parsed->prefix, "//") ||
		strstr(parsed->prefix, ".."))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"prefix\" of %s must be at most %d letters of the English alphabet, digits, and any of _ = . - /",
						what, PREFIX_MAX),
				 errdetail("It does not begin with \"/\", and has neither \"//\" nor \"..\" in it.")));
	kind->check(parsed, what);
	option_check_credentials(tables, lengthof(tables), parsed, role, what);
}

/* The others keep what they have, and get nothing new. */
static void
make_only_active(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	owner_run(NULL,
			  "UPDATE mlint.archive_store SET active = false"
			  " WHERE active AND name <> $1", SPI_OK_UPDATE, 1, types, values,
			  NULL);
}

/* mlint.archive_store_create(name, kind, options) */
Datum
mlint_archive_store_create(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {TEXTOID, TEXTOID, JSONBOID};
	char	   *name = required_text(fcinfo, 0, "name");
	const StoreKind *kind = find_kind(required_text(fcinfo, 1, "kind"));
	OwnerScope	scope;
	Datum		values[3];

	HIDE_STATEMENT_BEGIN();
	PreventCommandIfReadOnly("mlint.archive_store_create()");
	check_name(name);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("options must not be null")));
	check_options(kind, PG_GETARG_JSONB_P(2), GetUserId(), name);
	HIDE_STATEMENT_END();

	audit(AUDIT_CHANGED, "archive_store.create", "archive_store", name,
		  psprintf("{\"kind\": \"%s\"}", kind->name));
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(kind->name);
	values[2] = PG_GETARG_DATUM(2);
	owner_begin(&scope);
	make_only_active(name);
	owner_run(NULL,
			  "INSERT INTO mlint.archive_store (name, kind, options)"
			  " VALUES ($1, $2, pg_catalog.jsonb_strip_nulls($3))"
			  " ON CONFLICT (name) DO NOTHING", SPI_OK_INSERT, 3, types, values,
			  NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("archive store \"%s\" already exists", name),
				 errhint("Change it with mlint.archive_store_alter().")));
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
	static Oid	types[] = {TEXTOID, JSONBOID, BOOLOID, INT4OID};
	char	   *name = required_text(fcinfo, 0, "name");
	Oid			role = GetUserId();
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	Datum		values[4];
	const StoreKind *kind;
	Jsonb	   *options;
	bool		active;
	bool		isnull;
	int32		id;

	HIDE_STATEMENT_BEGIN();
	PreventCommandIfReadOnly("mlint.archive_store_alter()");
	if (!PG_ARGISNULL(1) && !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(1)))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("options must be a JSON object")));
	values[0] = CStringGetTextDatum(name);
	values[1] = PG_ARGISNULL(1) ?
		DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")) :
		PG_GETARG_DATUM(1);
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT id, kind, pg_catalog.jsonb_strip_nulls(options || $2), active"
			  " FROM mlint.archive_store WHERE name = $1 FOR NO KEY UPDATE",
			  SPI_OK_SELECT, 2, types, values, NULL);
	if (SPI_processed == 0)
		no_such_store(name);
	id = DatumGetInt32(owner_column(1, &isnull));
	kind = find_kind(TextDatumGetCString(owner_column(2, &isnull)));
	active = PG_ARGISNULL(2) ? DatumGetBool(owner_column(4, &isnull)) :
		PG_GETARG_BOOL(2);
	MemoryContextSwitchTo(caller);
	options = (Jsonb *) PG_DETOAST_DATUM_COPY(owner_column(3, &isnull));
	owner_end(&scope);
	check_options(kind, options, role, name);
	HIDE_STATEMENT_END();

	audit(AUDIT_CHANGED, "archive_store.alter", "archive_store", name, NULL);
	values[1] = JsonbPGetDatum(options);
	values[2] = BoolGetDatum(active);
	values[3] = Int32GetDatum(id);
	owner_begin(&scope);
	if (active)
		make_only_active(name);
	owner_run(NULL,
			  "UPDATE mlint.archive_store SET options = $2, active = $3,"
			  " altered_at = pg_catalog.clock_timestamp() WHERE name = $1",
			  SPI_OK_UPDATE, 3, types, values, NULL);
	/* What was wrong may be mended. */
	owner_run(NULL,
			  "UPDATE mlint.archive_store_state SET breaker = 0, failures = 0"
			  " WHERE store = $1", SPI_OK_UPDATE, 1, types + 3, values + 3,
			  NULL);
	owner_run(NULL,
			  "UPDATE mlint.archive_garbage SET next_at = '-infinity'"
			  " WHERE store = $1 AND next_at > '-infinity'",
			  SPI_OK_UPDATE, 1, types + 3, values + 3, NULL);
	if (active)
		owner_run(NULL,
				  "UPDATE mlint.archive_move SET next_at = '-infinity'",
				  SPI_OK_UPDATE, 0, NULL, NULL, NULL);
	owner_end(&scope);
	(void) job_request(JOB);
	PG_RETURN_VOID();
}

/* mlint.archive_store_drop(name) */
Datum
mlint_archive_store_drop(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {TEXTOID};
	char	   *name = required_text(fcinfo, 0, "name");
	Datum		values[] = {CStringGetTextDatum(name)};
	Datum		id;
	Oid			id_type[] = {INT4OID};
	OwnerScope	scope;
	bool		isnull;

	PreventCommandIfReadOnly("mlint.archive_store_drop()");
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT id FROM mlint.archive_store WHERE name = $1 FOR UPDATE",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		no_such_store(name);
	id = owner_column(1, &isnull);
	owner_run(NULL,
			  "SELECT EXISTS (SELECT FROM mlint.archive WHERE store = $1),"
			  " EXISTS (SELECT FROM mlint.archive_garbage WHERE store = $1)",
			  SPI_OK_SELECT, 1, id_type, &id, NULL);
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
	owner_run(NULL,
			  "DELETE FROM mlint.archive_store WHERE id = $1", SPI_OK_DELETE, 1,
			  id_type, &id, NULL);
	owner_end(&scope);
	audit(AUDIT_CHANGED, "archive_store.drop", "archive_store", name, NULL);
	PG_RETURN_VOID();
}

/* ---- an open store ---- */

/* By its name, or by its id when that is NULL. */
static Store *
open_row(const char *name, int32 id)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {TEXTOID, INT4OID};
	Datum		values[] = {name ? CStringGetTextDatum(name) : (Datum) 0,
	Int32GetDatum(id)};
	char		nulls[] = {name ? ' ' : 'n', ' '};
	Store	   *store = palloc0(sizeof(Store));
	OwnerScope	scope;
	Jsonb	   *options;
	bool		isnull;

	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT id, name, kind, options"
							  " FROM mlint.archive_store"
							  " WHERE name = $1 OR $1 IS NULL AND id = $2",
							  2, types, values, nulls, false,
							  1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.archive_store");
	if (SPI_processed == 0)
		no_such_store(name ? name : psprintf("%d", id));
	MemoryContextSwitchTo(caller);
	store->id = DatumGetInt32(owner_column(1, &isnull));
	store->name = TextDatumGetCString(owner_column(2, &isnull));
	store->kind = find_kind(TextDatumGetCString(owner_column(3, &isnull)));
	options = (Jsonb *) PG_DETOAST_DATUM_COPY(owner_column(4, &isnull));
	owner_end(&scope);
	store->context = caller;
	store->options = parse(store->kind, options,
						   psprintf("archive store \"%s\"", store->name));
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
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; store_kinds[i]; i++)
	{
		option_rows(result, store_kinds[i]->name, store_kinds[i]->options);
		option_rows(result, store_kinds[i]->name, store_options);
	}
	return (Datum) 0;
}
