/*
 * policy.c
 *		Retention policies: how long archives are kept.
 *
 * A policy keeps for at least as long as its compliance level demands, and its
 * level is never exchanged for one that demands less. An archive names its
 * policy, and the end of its period follows from the policy as it is at that
 * moment: so altering one counts at once for however many archives, and the
 * column that the expiry job finds them by is brought up to date afterwards,
 * by that job (expiry/).
 *
 * Whoever archives locks the policy FOR SHARE: so an alteration waits for
 * archives that were made with what was valid before, and brings them up to
 * date too.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/trial.h"
#include "retention/retention.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_retention_policy_create);
PG_FUNCTION_INFO_V1(mlint_retention_policy_alter);
PG_FUNCTION_INFO_V1(mlint_retention_policy_drop);

#define NAME_MAX_BYTES		63

/* The arguments of create and alter, in their order. */
enum
{
	NAME, DAYS, LEVEL, AUTO_DELETE, DESCRIPTION, MATCH_TAG, MATCH_METADATA,
	NFIELDS
};

static const RowArgument fields[NFIELDS] = {
	{"name", TEXTOID, false}, {"retention_days", INT4OID, false},
	{"level", TEXTOID, false}, {"auto_delete", BOOLOID, false},
	{"description", TEXTOID, true}, {"match_tag", TEXTOID, true},
	{"match_metadata", JSONBOID, true},
};

/* A policy as it is to be. */
typedef struct PolicyRow
{
	Datum		values[NFIELDS];
	bool		nulls[NFIELDS];
} PolicyRow;

/* ---- levels ---- */

int
retention_level_days(const char *level, bool *erasable)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(level)};
	OwnerScope	scope;
	bool		isnull;
	int			days;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT days, erasable FROM mlint.retention_level WHERE level = $1",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
	{
		owner_run(NULL,
				  "SELECT pg_catalog.string_agg(level, ', ' ORDER BY level)"
				  " FROM mlint.retention_level", SPI_OK_SELECT, 0, NULL, NULL,
				  NULL);
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("compliance level \"%s\" does not exist", level),
				 errhint("It is one of: %s.",
						 TextDatumGetCString(owner_column(1, &isnull)))));
	}
	days = DatumGetInt32(owner_column(1, &isnull));
	if (erasable)
		*erasable = DatumGetBool(owner_column(2, &isnull));
	owner_end(&scope);
	return days;
}

void
retention_check_days(int days)
{
	if (days < 1 || days > RETENTION_DAYS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retention_days must be between 1 and %d",
						RETENTION_DAYS_MAX)));
}

/* ---- finding one ---- */

static void
pg_attribute_noreturn()
policy_unknown(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("retention policy \"%s\" does not exist", name),
			 errhint("mlint.retention_policies shows those that there are.")));
}

void
retention_policy_find(const char *name, Datum tags, Jsonb *metadata,
					  RetentionPolicy *policy)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {TEXTOID, TEXTARRAYOID, JSONBOID};
	Datum		values[] = {name ? CStringGetTextDatum(name) : (Datum) 0,
	tags, JsonbPGetDatum(metadata)};
	char		nulls[] = {name ? ' ' : 'n', tags ? ' ' : 'n',
	metadata ? ' ' : 'n', '\0'};
	static SPIPlanPtr by_name = NULL;
	static SPIPlanPtr by_match = NULL;
	OwnerScope	scope;
	bool		isnull;

	memset(policy, 0, sizeof(*policy));
	owner_begin(&scope);
	owner_run(name ? &by_name : &by_match, name ?
			  "SELECT p.id, p.name::text, p.days, p.auto_delete, p.level, l.days,"
			  " l.erasable FROM mlint.retention_policy p"
			  " JOIN mlint.retention_level l USING (level)"
			  " WHERE p.name = $1 FOR SHARE OF p" :
			  "SELECT p.id, p.name::text, p.days, p.auto_delete, p.level, l.days,"
			  " l.erasable FROM mlint.retention_policy p"
			  " JOIN mlint.retention_level l USING (level)"
			  " WHERE (p.match_tag IS NOT NULL OR p.match_metadata IS NOT NULL)"
			  " AND (p.match_tag IS NULL OR p.match_tag = ANY ($2))"
			  " AND (p.match_metadata IS NULL OR $3 @> p.match_metadata)"
			  " ORDER BY p.days DESC, l.erasable, p.id LIMIT 1 FOR SHARE OF p",
			  SPI_OK_SELECT, 3, types, values, nulls);
	if (SPI_processed > 0)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);

		policy->id = DatumGetInt32(owner_column(1, &isnull));
		policy->name = TextDatumGetCString(owner_column(2, &isnull));
		policy->days = DatumGetInt32(owner_column(3, &isnull));
		policy->auto_delete = DatumGetBool(owner_column(4, &isnull));
		policy->level = TextDatumGetCString(owner_column(5, &isnull));
		policy->level_days = DatumGetInt32(owner_column(6, &isnull));
		policy->erasable = DatumGetBool(owner_column(7, &isnull));
		MemoryContextSwitchTo(spi);
	}
	else if (name)
		policy_unknown(name);
	owner_end(&scope);
}

/* ---- what a policy may be ---- */

static char *
field_text(const PolicyRow *row, int field)
{
	return TextDatumGetCString(row->values[field]);
}

static void
check_name(const char *name)
{
	bool		printable = name[0] != '\0';

	for (const char *p = name; *p; p++)
		printable &= (unsigned char) *p >= ' ' && *p != 0x7f;
	if (!printable || strlen(name) > NAME_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("the name of a retention policy must be 1 to %d bytes long, without control characters",
						NAME_MAX_BYTES)));
}

/* All of a policy, as it is to be. */
static void
check_policy(const PolicyRow *row)
{
	char	   *name;
	char	   *level;
	int			days;
	int			least;

	for (int i = 0; i < NFIELDS; i++)
	{
		if (row->nulls[i] && !fields[i].optional)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be null", fields[i].name)));
	}
	name = field_text(row, NAME);
	check_name(name);
	level = field_text(row, LEVEL);
	days = DatumGetInt32(row->values[DAYS]);
	retention_check_days(days);
	least = retention_level_days(level, NULL);
	if (days < least)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retention policy \"%s\" cannot keep for only %d days",
						name, days),
				 errdetail("Compliance level %s demands at least %d.", level,
						   least)));
	if (!row->nulls[MATCH_METADATA])
	{
		Jsonb	   *match = DatumGetJsonbP(row->values[MATCH_METADATA]);

		if (!JB_ROOT_IS_OBJECT(match) || JB_ROOT_COUNT(match) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("match_metadata of retention policy \"%s\" must be a JSON object with one key or more",
							name),
					 errdetail("A policy matches what has all that the object has.")));
	}
}

/* ---- the functions of the interface ---- */

static uint64
write_row(const char *sql, int expected, PolicyRow *row)
{
	Oid			types[NFIELDS];
	char		nulls[NFIELDS + 1] = {0};

	for (int i = 0; i < NFIELDS; i++)
	{
		types[i] = fields[i].type;
		nulls[i] = row->nulls[i] ? 'n' : ' ';
	}
	owner_run(NULL, sql, expected, NFIELDS, types, row->values, nulls);
	return SPI_processed;
}

/* mlint.retention_policy_create(name, retention_days, level, ...) */
Datum
mlint_retention_policy_create(PG_FUNCTION_ARGS)
{
	PolicyRow	row;
	OwnerScope	scope;
	bool		isnull;
	int32		id;

	require_writable(fcinfo);
	for (int i = 0; i < NFIELDS; i++)
	{
		row.values[i] = PG_GETARG_DATUM(i);
		row.nulls[i] = PG_ARGISNULL(i);
	}
	check_policy(&row);
	audit(AUDIT_CHANGED, "retention_policy.create", "retention_policy",
		  field_text(&row, NAME), given_arguments(fcinfo, fields, NFIELDS));
	owner_begin(&scope);
	if (write_row("INSERT INTO mlint.retention_policy (name, days, level,"
				  " auto_delete, description, match_tag, match_metadata)"
				  " VALUES ($1, $2, $3, $4, $5, $6, $7)"
				  " ON CONFLICT (name) DO NOTHING RETURNING id",
				  SPI_OK_INSERT_RETURNING, &row) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("retention policy \"%s\" already exists",
						field_text(&row, NAME)),
				 errhint("mlint.retention_policy_alter() changes it.")));
	id = DatumGetInt32(owner_column(1, &isnull));
	owner_end(&scope);
	PG_RETURN_INT32(id);
}

/* A level is exchanged for one that demands as much, or more. */
static void
check_level_change(const char *name, const char *from, const char *to)
{
	bool		erasable_from;
	bool		erasable_to;
	int			days_from = retention_level_days(from, &erasable_from);
	int			days_to = retention_level_days(to, &erasable_to);

	if (days_to < days_from || (erasable_to && !erasable_from))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retention policy \"%s\" cannot go from compliance level %s to %s",
						name, from, to),
				 days_to < days_from ?
				 errdetail("It demands %d days, not %d.", days_to, days_from) :
				 errdetail("It lets a person's right to erasure come first."),
				 errhint("Create another policy for archives that are yet to be made.")));
}

/* mlint.retention_policy_alter(name, ...): null leaves as it is. */
Datum
mlint_retention_policy_alter(PG_FUNCTION_ARGS)
{
	PolicyRow	row;
	char	   *name = required_text(fcinfo, NAME, "name");
	Oid			types[] = {TEXTOID};
	Datum		values[] = {PG_GETARG_DATUM(NAME)};
	OwnerScope	scope;

	require_writable(fcinfo);
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT name::text, days, level, auto_delete, description, match_tag,"
			  " match_metadata FROM mlint.retention_policy WHERE name = $1"
			  " FOR NO KEY UPDATE", SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		policy_unknown(name);
	heap_deform_tuple(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
					  row.values, row.nulls);
	if (!PG_ARGISNULL(LEVEL))
		check_level_change(name, field_text(&row, LEVEL),
						   text_to_cstring(PG_GETARG_TEXT_PP(LEVEL)));
	for (int i = 1; i < NFIELDS; i++)
	{
		if (!PG_ARGISNULL(i))
		{
			row.values[i] = PG_GETARG_DATUM(i);
			row.nulls[i] = false;
		}
	}
	check_policy(&row);
	audit(AUDIT_CHANGED, "retention_policy.alter", "retention_policy", name,
		  given_arguments(fcinfo, fields, NFIELDS));
	(void) write_row("UPDATE mlint.retention_policy SET days = $2, level = $3,"
					 " auto_delete = $4, description = $5, match_tag = $6,"
					 " match_metadata = $7,"
					 " altered_at = pg_catalog.clock_timestamp()"
					 " WHERE name = $1", SPI_OK_UPDATE, &row);
	if (!PG_ARGISNULL(DAYS) || !PG_ARGISNULL(AUTO_DELETE))
	{
		owner_run(NULL,
				  "INSERT INTO mlint.retention_stale (policy)"
				  " SELECT id FROM mlint.retention_policy WHERE name = $1"
				  " ON CONFLICT (policy) DO UPDATE SET after = NULL, again = false",
				  SPI_OK_INSERT, 1, types, values, NULL);
		(void) job_request(RETENTION_JOB);
	}
	owner_end(&scope);
	PG_RETURN_VOID();
}

/* Delete the policy; the foreign keys on it say whether it is in use. */
static void
drop_policy(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	Trial		trial;
	ErrorData  *volatile error = NULL;

	trial_begin(&trial);
	PG_TRY();
	{
		OwnerScope	scope;

		owner_begin(&scope);
		owner_run(NULL,
				  "DELETE FROM mlint.retention_policy WHERE name = $1",
				  SPI_OK_DELETE, 1, types, values, NULL);
		if (SPI_processed == 0)
			policy_unknown(name);
		owner_end(&scope);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		error = trial_failed(&trial);
	}
	PG_END_TRY();
	if (error == NULL)
		return;
	if (error->sqlerrcode != ERRCODE_FOREIGN_KEY_VIOLATION)
		ReThrowError(error);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("retention policy \"%s\" is in use", name),
			 errdetail("There are archives that are kept by it."),
			 errhint("mlint.retention_policy_apply() gives an archive another policy.")));
}

/* mlint.retention_policy_drop(name) */
Datum
mlint_retention_policy_drop(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "name");

	require_writable(fcinfo);
	drop_policy(name);
	audit(AUDIT_CHANGED, "retention_policy.drop", "retention_policy", name,
		  NULL);
	PG_RETURN_VOID();
}
