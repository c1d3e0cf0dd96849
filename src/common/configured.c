/*
 * configured.c
 *		Create, alter, drop and find what is configured by a name, a kind and
 *		options.
 *
 * Whatever can be known to be wrong is refused here: whoever creates or alters
 * a thing must be allowed to use every credential that its options name. One
 * that runs SQL does so as its creator, so nobody else may say what it runs. A
 * thing whose creator was dropped belongs to whoever alters it.
 *
 * An option might hold a credential in the clear, by mistake. So statements
 * are kept out of the log from the first thing that can go wrong, and the
 * audit log has options by their names alone.
 *
 * SQL is put together of a sort's own words, which are constants of ours.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/configured.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/role.h"
#include "common/peertext.h"

#define NAME_MAX_BYTES	63

/* ---- kinds and names ---- */

/* One of the sort's, as far as it is known without loading a module. */
static const ConfiguredKind *
known_kind(const ConfiguredSort *sort, const char *name)
{
	for (int i = 0; sort->kinds[i]; i++)
	{
		if (strcmp(sort->kinds[i]->name, name) == 0)
			return sort->kinds[i];
	}
	return NULL;
}

static const ConfiguredKind *
loaded_kind(const ConfiguredSort *sort, const ConfiguredKind *kind,
			bool missing_ok)
{
	return sort->load ? sort->load(kind->name, missing_ok) : kind;
}

const ConfiguredKind *
configured_kind(const ConfiguredSort *sort, const char *name)
{
	const ConfiguredKind *kind = known_kind(sort, name);
	StringInfoData known;

	if (kind)
		return loaded_kind(sort, kind, false);
	initStringInfo(&known);
	for (int i = 0; sort->kinds[i]; i++)
		appendStringInfo(&known, "%s%s", i > 0 ? ", " : "",
						 sort->kinds[i]->name);
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("there is no kind \"%s\" of %s", name, sort->noun),
			 errhint("The kinds are: %s. The view mlint.%s_kinds shows their options.",
					 known.data, sort->identifier)));
}

static void
not_reserved(const ConfiguredSort *sort, const char *name, const char *done)
{
	if (sort->reserved && strcmp(name, sort->reserved) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("%s \"%s\" cannot be %s", sort->noun, name, done),
				 errdetail("%s", sort->reserved_for)));
}

void
configured_check_name(const ConfiguredSort *sort, const char *name)
{
	size_t		len = strlen(name);

	not_reserved(sort, name, "created");
	if (len == 0 || len > NAME_MAX_BYTES ||
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789_.-") != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of %s %s",
						strchr("aeiou", sort->noun[0]) ? "an" : "a",
						sort->noun),
				 errdetail("A name is 1 to %d characters: letters of the English alphabet, digits, and any of _ . -",
						   NAME_MAX_BYTES)));
}

void
configured_missing(const ConfiguredSort *sort, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("%s \"%s\" does not exist", sort->noun, name),
			 errhint("The view mlint.%ss lists them; mlint.%s_create() makes one.",
					 sort->identifier, sort->identifier)));
}

/* ---- options ---- */

/* The tables that are for a kind; returns how many. */
static int
option_tables(const ConfiguredSort *sort, const ConfiguredKind *kind,
			  const Option *tables[2])
{
	tables[0] = kind->options;
	tables[1] = sort->options;
	return sort->options ? 2 : 1;
}

void *
configured_parse(const ConfiguredSort *sort, const ConfiguredKind *kind,
				 Jsonb *options, const char *what)
{
	const Option *tables[2];
	int			ntables = option_tables(sort, kind, tables);
	void	   *parsed = palloc0(kind->options_size);

	option_parse(tables, ntables, options, what, parsed);
	return parsed;
}

static void
check_for(const ConfiguredSort *sort, const Configured *c, Oid role,
		  const char *action)
{
	const Option *tables[2];
	int			ntables = option_tables(sort, c->kind, tables);

	if (sort->check)
		sort->check(c, role, action);
	option_check_credentials(tables, ntables, c->parsed, role, c->what);
}

void
configured_check(const ConfiguredSort *sort, Configured *c, const char *verb)
{
	char	   *action = psprintf("%s.%s", sort->identifier, verb);

	HIDE_STATEMENT_BEGIN();
	c->what = psprintf("%s \"%s\"", sort->noun, c->name);
	if (c->kind->runs_sql && !has_privs_of_role(GetUserId(), c->created_by))
	{
		audit(AUDIT_DENIED, action, sort->identifier, c->name, NULL);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only members of role \"%s\", which created %s, may change its options",
						GetUserNameFromId(c->created_by, true), c->what),
				 errdetail("What they name runs as that role.")));
	}
	c->parsed = configured_parse(sort, c->kind, c->options, c->what);
	check_for(sort, c, GetUserId(), action);
	if (sort->owned && c->created_by != GetUserId())
		check_for(sort, c, c->created_by, action);
	HIDE_STATEMENT_END();
}

char *
configured_details(const char *kind, Jsonb *options)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	if (kind)
		appendStringInfo(&buf, "\"kind\": \"%s\", ", kind);
	appendStringInfoString(&buf, "\"options\": ");
	option_names(&buf, options);
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* ---- rows ---- */

/* Take a row of id, name, kind, options and, if owned, created_by. */
static void
take_row(const ConfiguredSort *sort, MemoryContext context, Configured *c)
{
	MemoryContext spi = MemoryContextSwitchTo(context);
	char	   *kind;
	bool		isnull;

	memset(c, 0, sizeof(*c));
	c->id = DatumGetInt32(owner_column(1, &isnull));
	c->name = TextDatumGetCString(owner_column(2, &isnull));
	c->what = psprintf("%s \"%s\"", sort->noun, c->name);
	kind = TextDatumGetCString(owner_column(3, &isnull));
	c->kind = known_kind(sort, kind);
	if (c->kind == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s is of kind \"%s\", which is not part of the mlint that the server has loaded",
						c->what, kind),
				 errhint("Restart the server with the library that the extension's version belongs to.")));
	c->kind = loaded_kind(sort, c->kind, false);
	c->options = (Jsonb *) PG_DETOAST_DATUM_COPY(owner_column(4, &isnull));
	if (sort->owned)
		c->created_by = DatumGetObjectId(owner_column(5, &isnull));
	MemoryContextSwitchTo(spi);
}

bool
configured_find(const ConfiguredSort *sort, const char *name, int32 id,
				Configured *found)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {TEXTOID, INT4OID};
	Datum		values[] = {name ? CStringGetTextDatum(name) : (Datum) 0,
	Int32GetDatum(id)};
	char		nulls[] = {name ? ' ' : 'n', ' '};
	char	   *sql = psprintf("SELECT id, name, kind, options%s FROM mlint.%s"
							   " WHERE name = $1 OR $1 IS NULL AND id = $2",
							   sort->owned ? ", created_by" : "",
							   sort->identifier);
	OwnerScope	scope;
	bool		exists;

	owner_begin(&scope);
	/* A parallel query, too, may have to find one. */
	if (SPI_execute_with_args(sql, 2, types, values, nulls,
							  ActiveSnapshotSet(), 1) != SPI_OK_SELECT)
		elog(ERROR, "unexpected result of: %s", sql);
	exists = SPI_processed > 0;
	if (exists)
		take_row(sort, caller, found);
	owner_end(&scope);
	if (exists)
		found->parsed = configured_parse(sort, found->kind, found->options,
										 found->what);
	return exists;
}

int32
configured_create(const ConfiguredSort *sort, FunctionCallInfo fcinfo)
{
	static Oid	types[] = {TEXTOID, TEXTOID, JSONBOID, OIDOID};
	Configured	c = {.created_by = GetUserId()};
	OwnerScope	scope;
	Datum		values[4];
	bool		isnull;

	HIDE_STATEMENT_BEGIN();
	require_writable(fcinfo);
	c.name = required_text(fcinfo, 0, "name");
	c.kind = configured_kind(sort, required_text(fcinfo, 1, "kind"));
	configured_check_name(sort, c.name);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("options must not be null")));
	c.options = PG_GETARG_JSONB_P(2);
	configured_check(sort, &c, "create");
	HIDE_STATEMENT_END();

	audit(AUDIT_CHANGED, psprintf("%s.create", sort->identifier),
		  sort->identifier, c.name,
		  configured_details(c.kind->name, c.options));
	values[0] = CStringGetTextDatum(c.name);
	values[1] = CStringGetTextDatum(c.kind->name);
	values[2] = JsonbPGetDatum(c.options);
	values[3] = ObjectIdGetDatum(c.created_by);
	owner_begin(&scope);
	owner_run(NULL,
			  psprintf("INSERT INTO mlint.%s (name, kind, options%s)"
					   " VALUES ($1, $2, pg_catalog.jsonb_strip_nulls($3)%s)"
					   " ON CONFLICT (name) DO NOTHING RETURNING id",
					   sort->identifier, sort->owned ? ", created_by" : "",
					   sort->owned ? ", $4" : ""),
			  SPI_OK_INSERT_RETURNING, sort->owned ? 4 : 3, types, values,
			  NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("%s \"%s\" already exists", sort->noun, c.name),
				 errhint("Change it with mlint.%s_alter().",
						 sort->identifier)));
	c.id = DatumGetInt32(owner_column(1, &isnull));
	owner_end(&scope);
	return c.id;
}

int32
configured_alter(const ConfiguredSort *sort, FunctionCallInfo fcinfo)
{
	static Oid	types[] = {TEXTOID, JSONBOID, OIDOID};
	MemoryContext caller = CurrentMemoryContext;
	char	   *name = required_text(fcinfo, 0, "name");
	Configured	c;
	OwnerScope	scope;
	Jsonb	   *given = NULL;
	Datum		values[3];

	HIDE_STATEMENT_BEGIN();
	require_writable(fcinfo);
	not_reserved(sort, name, "altered");
	if (!PG_ARGISNULL(1))
		given = PG_GETARG_JSONB_P(1);
	else if (PG_NARGS() > 2)
		given = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
												   CStringGetDatum("{}")));
	if (given == NULL || !JB_ROOT_IS_OBJECT(given))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("options must be a JSON object")));
	values[0] = CStringGetTextDatum(name);
	values[1] = JsonbPGetDatum(given);
	owner_begin(&scope);
	owner_run(NULL,
			  psprintf("SELECT id, name, kind,"
					   " pg_catalog.jsonb_strip_nulls(options || $2)%s"
					   " FROM mlint.%s WHERE name = $1 FOR NO KEY UPDATE",
					   sort->owned ? ", created_by" : "", sort->identifier),
			  SPI_OK_SELECT, 2, types, values, NULL);
	if (SPI_processed == 0)
		configured_missing(sort, name);
	take_row(sort, caller, &c);
	owner_end(&scope);
	if (sort->owned && !role_exists(c.created_by))
		c.created_by = GetUserId();
	configured_check(sort, &c, "alter");
	HIDE_STATEMENT_END();

	audit(AUDIT_CHANGED, psprintf("%s.alter", sort->identifier),
		  sort->identifier, name, configured_details(NULL, given));
	values[1] = JsonbPGetDatum(c.options);
	values[2] = ObjectIdGetDatum(c.created_by);
	owner_do(NULL,
			 psprintf("UPDATE mlint.%s SET options = $2,%s"
					  " altered_at = pg_catalog.clock_timestamp()"
					  " WHERE name = $1", sort->identifier,
					  sort->owned ? " created_by = $3," : ""),
			 SPI_OK_UPDATE, sort->owned ? 3 : 2, types, values, NULL);
	return c.id;
}

int32
configured_drop(const ConfiguredSort *sort, FunctionCallInfo fcinfo)
{
	Oid			types[] = {TEXTOID};
	char	   *name = required_text(fcinfo, 0, "name");
	Datum		values[] = {CStringGetTextDatum(name)};
	OwnerScope	scope;
	bool		isnull;
	int32		id;

	require_writable(fcinfo);
	not_reserved(sort, name, "dropped");
	owner_begin(&scope);
	/* Locked, so that nothing comes to use it meanwhile. */
	owner_run(NULL,
			  psprintf("SELECT id FROM mlint.%s WHERE name = $1 FOR UPDATE",
					   sort->identifier),
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		configured_missing(sort, name);
	id = DatumGetInt32(owner_column(1, &isnull));
	if (sort->check_drop)
		sort->check_drop(id, name);
	owner_run(NULL,
			  psprintf("DELETE FROM mlint.%s WHERE name = $1",
					   sort->identifier),
			  SPI_OK_DELETE, 1, types, values, NULL);
	owner_end(&scope);
	audit(AUDIT_CHANGED, psprintf("%s.drop", sort->identifier),
		  sort->identifier, name, NULL);
	return id;
}

/* ---- what the view of the kinds shows ---- */

Datum
configured_options(const ConfiguredSort *sort, FunctionCallInfo fcinfo)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; sort->kinds[i]; i++)
	{
		const ConfiguredKind *kind = loaded_kind(sort, sort->kinds[i], true);

		if (kind == NULL)
			continue;
		option_rows(result, kind->name, kind->options);
		if (sort->options)
			option_rows(result, kind->name, sort->options);
	}
	return (Datum) 0;
}
