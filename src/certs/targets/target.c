/*
 * target.c
 *		Where certificates are used, as rows: create, alter, drop.
 *
 * A target belongs to one certificate and has one region or several, each with
 * a row that says what it serves. Regions come and go with the options; what is
 * in a region that goes stays there. Whoever makes a target of a kind that wants
 * the key must be able to read it, and is asked again before each push.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/certs.h"
#include "certs/targets/kind.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "secrets/secrets.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_certificate_target_create);
PG_FUNCTION_INFO_V1(mlint_certificate_target_alter);
PG_FUNCTION_INFO_V1(mlint_certificate_target_drop);
PG_FUNCTION_INFO_V1(mlint_certificate_target_options);

static const ConfiguredKind *const kinds[] = {&target_file.base,
	&target_acm.base, &target_azure.base, &target_destination.base,
&target_postgres.base, NULL};

static const Option target_options[] = {
	{"timeout_ms", OPTION_INT, offsetof(TargetOptions, timeout_ms), "30000",
		100, 600000, NULL, NULL, false,
	"how long a request may take, in milliseconds"},
	{"retry_delay_ms", OPTION_INT, offsetof(TargetOptions, retry_delay_ms),
		"10000", 10, 86400000, NULL, NULL, false,
	"upper bound of the delay after the first failure, in milliseconds; it doubles with each"},
	{"retry_max_delay_ms", OPTION_INT,
		offsetof(TargetOptions, retry_max_delay_ms), "900000", 10, 86400000,
		NULL, NULL, false,
	"no delay is longer, in milliseconds"},
	{NULL}
};

static const TargetKind *
kind_of(const Configured *c)
{
	return (const TargetKind *) c->kind;
}

static void
check_target(const Configured *c, Oid role, const char *action)
{
	if (kind_of(c)->check)
		kind_of(c)->check(c->parsed, role, c->what);
}

const ConfiguredSort target_sort = {
	.noun = "certificate target",
	.identifier = "certificate_target",
	.kinds = kinds,
	.options = target_options,
	.owned = true,
	.check = check_target,
};

/* The certificate that a target is of. */
typedef struct Pushable
{
	Datum		id;
	char	   *name;
	char	   *key_secret;
} Pushable;

/* Find it, and keep it from being dropped. */
static Pushable
pushable(FunctionCallInfo fcinfo)
{
	Pushable	found = {UUIDPGetDatum(required_uuid(fcinfo, 0, "certificate"))};
	Oid			types[] = {UUIDOID};
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT name, key_secret FROM mlint.certificate WHERE id = $1"
			  " FOR KEY SHARE", SPI_OK_SELECT, 1, types, &found.id, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("certificate %s does not exist",
						DatumGetCString(DirectFunctionCall1(uuid_out,
															found.id))),
				 errhint("The view mlint.certificates lists them.")));
	MemoryContextSwitchTo(caller);
	found.name = TextDatumGetCString(owner_column(1, &isnull));
	found.key_secret = TextDatumGetCString(owner_column(2, &isnull));
	owner_end(&scope);
	return found;
}

static void
pg_attribute_noreturn()
no_such_target(const Pushable *certificate, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("certificate \"%s\" has no target \"%s\"",
					certificate->name, name),
			 errhint("The view mlint.certificate_targets lists them.")));
}

static void
check_strategy(const char *strategy)
{
	if (strcmp(strategy, "sync") != 0 && strcmp(strategy, "async") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("strategy must be \"sync\" or \"async\", not \"%s\"",
						strategy),
				 errhint("A sync target must have a certificate before that is in use; an async one gets it then.")));
}

/* May it have the key that it wants? */
static void
require_key(const Configured *c, const Pushable *certificate,
			const char *action)
{
	if (kind_of(c)->wants_key)
		secret_require(certificate->key_secret, SECRET_READ, action);
}

/*
 * See that no other target goes to the same place. Two that are created at once
 * are told apart by the lock on the table.
 */
static void
check_place(const Configured *c)
{
	char	   *place = kind_of(c)->place ?
	kind_of(c)->place(c->parsed) : NULL;
	Oid			types[] = {TEXTOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(c->kind->name),
	Int32GetDatum(c->id)};
	SPITupleTable *rows;
	uint64		n;
	OwnerScope	scope;
	bool		isnull;

	if (place == NULL)
		return;
	owner_begin(&scope);
	owner_run(NULL,
			  "LOCK TABLE mlint.certificate_target IN SHARE ROW EXCLUSIVE MODE",
			  SPI_OK_UTILITY, 0, NULL, NULL, NULL);
	owner_run(NULL,
			  "SELECT t.name, t.options, c.name FROM mlint.certificate_target t"
			  " JOIN mlint.certificate c ON c.id = t.certificate_id"
			  " WHERE t.kind = $1 AND t.id <> $2", SPI_OK_SELECT, 2, types,
			  values, NULL);
	rows = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		char	   *name = SPI_getvalue(rows->vals[i], rows->tupdesc, 1);
		Jsonb	   *options = DatumGetJsonbP(SPI_getbinval(rows->vals[i],
														   rows->tupdesc, 2,
														   &isnull));
		void	   *parsed = configured_parse(&target_sort, c->kind, options,
											  psprintf("certificate target \"%s\"",
													   name));

		if (strcmp(kind_of(c)->place(parsed), place) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("%s is the place of target \"%s\" of certificate \"%s\" already",
							place, name, SPI_getvalue(rows->vals[i],
													  rows->tupdesc, 3)),
					 errhint("Drop that target first with mlint.certificate_target_drop().")));
	}
	owner_end(&scope);
}

/* The regions that the options name, and no others. In an owner scope. */
static void
set_regions(const Configured *c, bool again)
{
	static char *one[] = {"", NULL};
	char	  **regions = kind_of(c)->regions ?
	kind_of(c)->regions(c->parsed) : one;
	ArrayBuildState *build = NULL;
	Oid			types[] = {INT4OID, TEXTARRAYOID, BOOLOID};
	Datum		values[3];

	for (; *regions; regions++)
		build = accumArrayResult(build, CStringGetTextDatum(*regions), false,
								 TEXTOID, CurrentMemoryContext);
	values[0] = Int32GetDatum(c->id);
	values[1] = makeArrayResult(build, CurrentMemoryContext);
	values[2] = BoolGetDatum(again);
	owner_run(NULL,
			  "DELETE FROM mlint.certificate_region"
			  " WHERE target_id = $1 AND region <> ALL ($2)", SPI_OK_DELETE, 2,
			  types, values, NULL);
	/* What failed is tried at once; all is, when it may go elsewhere. */
	owner_run(NULL,
			  "UPDATE mlint.certificate_region SET attempts = 0,"
			  " next_at = pg_catalog.clock_timestamp()"
			  " WHERE target_id = $1 AND ($3 OR attempts > 0)",
			  SPI_OK_UPDATE, 3, types, values, NULL);
	owner_run(NULL,
			  "INSERT INTO mlint.certificate_region (target_id, region)"
			  " SELECT $1, u.region FROM pg_catalog.unnest($2) u(region)"
			  " ON CONFLICT DO NOTHING", SPI_OK_INSERT, 2, types, values, NULL);
}

/* Enter what was done to a target into the audit log. */
static void
audit_target(const char *action, const Pushable *certificate,
			 const char *name, const char *details)
{
	audit(AUDIT_CHANGED, action, "certificate_target",
		  psprintf("%s/%s", certificate->name, name), details);
}

/* mlint.certificate_target_create(certificate, kind, options, strategy, name) */
Datum
mlint_certificate_target_create(PG_FUNCTION_ARGS)
{
	Oid			types[] = {UUIDOID, TEXTOID, TEXTOID, JSONBOID, TEXTOID,
	OIDOID};
	Datum		values[6];
	Configured	c = {0};
	Pushable	certificate;
	char	   *strategy;
	OwnerScope	scope;
	bool		isnull;

	HIDE_STATEMENT_BEGIN();
	require_writable(fcinfo);
	c.kind = configured_kind(&target_sort, required_text(fcinfo, 1, "kind"));
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("options must not be null")));
	c.options = PG_GETARG_JSONB_P(2);
	strategy = required_text(fcinfo, 3, "strategy");
	check_strategy(strategy);
	c.name = PG_ARGISNULL(4) ? pstrdup(c.kind->name) :
		text_to_cstring(PG_GETARG_TEXT_PP(4));
	configured_check_name(&target_sort, c.name);
	c.created_by = GetUserId();
	certificate = pushable(fcinfo);
	configured_check(&target_sort, &c, "create");
	require_key(&c, &certificate, "certificate_target.create");
	check_place(&c);
	HIDE_STATEMENT_END();

	audit_target("certificate_target.create", &certificate, c.name,
				 configured_details(c.kind->name, c.options));
	values[0] = certificate.id;
	values[1] = CStringGetTextDatum(c.name);
	values[2] = CStringGetTextDatum(c.kind->name);
	values[3] = JsonbPGetDatum(c.options);
	values[4] = CStringGetTextDatum(strategy);
	values[5] = ObjectIdGetDatum(c.created_by);
	owner_begin(&scope);
	owner_run(NULL,
			  "INSERT INTO mlint.certificate_target (certificate_id, name, kind,"
			  " options, strategy, created_by) VALUES ($1, $2, $3,"
			  " pg_catalog.jsonb_strip_nulls($4), $5, $6)"
			  " ON CONFLICT (certificate_id, name) DO NOTHING RETURNING id",
			  SPI_OK_INSERT_RETURNING, 6, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("certificate \"%s\" has a target \"%s\" already",
						certificate.name, c.name),
				 errhint("Change it with mlint.certificate_target_alter(), or give the new one a name.")));
	c.id = DatumGetInt32(owner_column(1, &isnull));
	set_regions(&c, true);
	owner_end(&scope);
	(void) job_request(CERTIFICATE_TARGET_JOB);
	PG_RETURN_TEXT_P(cstring_to_text(c.name));
}

/*
 * mlint.certificate_target_alter(certificate, name, options, strategy): options
 * are merged, null takes one away. Who alters a target answers for it from then
 * on.
 */
Datum
mlint_certificate_target_alter(PG_FUNCTION_ARGS)
{
	Oid			types[] = {UUIDOID, TEXTOID, JSONBOID};
	Oid			set_types[] = {INT4OID, JSONBOID, TEXTOID, OIDOID};
	Datum		values[4];
	Configured	c = {0};
	Pushable	certificate;
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	bool		other;
	bool		isnull;

	HIDE_STATEMENT_BEGIN();
	require_writable(fcinfo);
	c.name = required_text(fcinfo, 1, "name");
	if (!PG_ARGISNULL(2) && !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(2)))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("options must be a JSON object")));
	if (!PG_ARGISNULL(3))
		check_strategy(text_to_cstring(PG_GETARG_TEXT_PP(3)));
	certificate = pushable(fcinfo);
	values[0] = certificate.id;
	values[1] = CStringGetTextDatum(c.name);
	values[2] = PG_ARGISNULL(2) ?
		DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")) :
		PG_GETARG_DATUM(2);
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT id, kind, pg_catalog.jsonb_strip_nulls(options || $3),"
			  " pg_catalog.jsonb_strip_nulls(options || $3) <> options, strategy"
			  " FROM mlint.certificate_target"
			  " WHERE certificate_id = $1 AND name = $2 FOR NO KEY UPDATE",
			  SPI_OK_SELECT, 3, types, values, NULL);
	if (SPI_processed == 0)
		no_such_target(&certificate, c.name);
	MemoryContextSwitchTo(caller);
	c.id = DatumGetInt32(owner_column(1, &isnull));
	c.kind = configured_kind(&target_sort,
							 TextDatumGetCString(owner_column(2, &isnull)));
	c.options = DatumGetJsonbPCopy(owner_column(3, &isnull));
	other = DatumGetBool(owner_column(4, &isnull));
	values[2] = PG_ARGISNULL(3) ?
		CStringGetTextDatum(TextDatumGetCString(owner_column(5, &isnull))) :
		PG_GETARG_DATUM(3);
	owner_end(&scope);
	c.created_by = GetUserId();
	configured_check(&target_sort, &c, "alter");
	require_key(&c, &certificate, "certificate_target.alter");
	check_place(&c);
	HIDE_STATEMENT_END();

	audit_target("certificate_target.alter", &certificate, c.name,
				 PG_ARGISNULL(2) ? NULL :
				 configured_details(NULL, PG_GETARG_JSONB_P(2)));
	values[0] = Int32GetDatum(c.id);
	values[1] = JsonbPGetDatum(c.options);
	values[3] = ObjectIdGetDatum(c.created_by);
	owner_begin(&scope);
	owner_run(NULL,
			  "UPDATE mlint.certificate_target SET options = $2, strategy = $3,"
			  " created_by = $4, altered_at = pg_catalog.clock_timestamp()"
			  " WHERE id = $1", SPI_OK_UPDATE, 4, set_types, values, NULL);
	set_regions(&c, other);
	owner_end(&scope);
	(void) job_request(CERTIFICATE_TARGET_JOB);
	PG_RETURN_VOID();
}

/* mlint.certificate_target_drop(certificate, name) */
Datum
mlint_certificate_target_drop(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 1, "name");
	Pushable	certificate;
	Oid			types[] = {UUIDOID, TEXTOID};
	Datum		values[2];
	OwnerScope	scope;

	require_writable(fcinfo);
	certificate = pushable(fcinfo);
	values[0] = certificate.id;
	values[1] = CStringGetTextDatum(name);
	owner_begin(&scope);
	owner_run(NULL,
			  "DELETE FROM mlint.certificate_target"
			  " WHERE certificate_id = $1 AND name = $2", SPI_OK_DELETE, 2,
			  types, values, NULL);
	if (SPI_processed == 0)
		no_such_target(&certificate, name);
	owner_end(&scope);
	audit_target("certificate_target.drop", &certificate, name, NULL);
	/* What others must have first may now be in use. */
	(void) job_request(CERTIFICATE_TARGET_JOB);
	PG_RETURN_VOID();
}

/* mlint.certificate_target_options() */
Datum
mlint_certificate_target_options(PG_FUNCTION_ARGS)
{
	return configured_options(&target_sort, fcinfo);
}
