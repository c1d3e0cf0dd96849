/*
 * models.c
 *		Models: what there is to be used, in which versions.
 *
 * A registry and no more: a session may name a model that is not in it. A
 * version is never changed, so that what was said with it can be told; what is
 * no longer to be used is deprecated, with a reason and what to use instead.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/owner.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "sessions/check.h"
#include "sessions/reading.h"
#include "sessions/row.h"
#include "utils/builtins.h"
#include "utils/json.h"

PG_FUNCTION_INFO_V1(mlint_model_register);
PG_FUNCTION_INFO_V1(mlint_model_get);
PG_FUNCTION_INFO_V1(mlint_model_list);
PG_FUNCTION_INFO_V1(mlint_model_deprecate);
PG_FUNCTION_INFO_V1(mlint_model_reinstate);

#define TEXT_BYTES_MAX	10000

/* A version; null is the empty one. */
static char *
version_argument(FunctionCallInfo fcinfo, int n)
{
	char	   *version = optional_name_argument(fcinfo, n, "version");

	return version ? version : pstrdup("");
}

/* Some words, for people; NULL if not given. */
static char *
words_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	char	   *words;

	if (PG_ARGISNULL(n))
		return NULL;
	words = required_text(fcinfo, n, what);
	if (strlen(words) > TEXT_BYTES_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s must be at most %d bytes long, not %zu", what,
						TEXT_BYTES_MAX, strlen(words))));
	return words;
}

/* How messages speak of a version of a model. */
static char *
shown(const char *model_id, const char *version)
{
	return version[0] == '\0' ? psprintf("model \"%s\"", model_id) :
		psprintf("version \"%s\" of model \"%s\"", version, model_id);
}

static void
pg_attribute_noreturn()
model_unknown(const char *model_id, const char *version)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("%s is not registered",
					version ? shown(model_id, version) :
					psprintf("model \"%s\"", model_id)),
			 errhint("mlint.models lists those that are; mlint.model_register() adds one.")));
}

/* For the audit log; the texts' names and values, in pairs, NULL ends. */
static char *
details(const char *version, const char *key, const char *value)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"version\": ");
	if (version)
		escape_json(&json, version);
	else
		appendStringInfoString(&json, "null");
	if (value)
	{
		appendStringInfo(&json, ", \"%s\": ", key);
		escape_json(&json, value);
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

/* The registered model as a row of mlint.models. */
static Datum
read_model(FunctionCallInfo fcinfo, const char *model_id, const char *version,
		   bool latest)
{
	Reading		reading;
	Datum		value;
	bool		isnull;

	reading_begin(&reading, "SELECT (SELECT m FROM mlint.models m");
	reading_where(&reading, "m.model_id = $%d", TEXTOID,
				  CStringGetTextDatum(model_id));
	if (version)
		reading_where(&reading, "m.version = $%d", TEXTOID,
					  CStringGetTextDatum(version));
	/* The newest, before those that are deprecated. */
	appendStringInfoString(&reading.sql, " ORDER BY m.deprecated_at IS NOT NULL,"
						   " m.registered_at DESC, m.version DESC LIMIT 1)");
	value = reading_one(&reading, latest, &isnull);
	if (isnull)
		model_unknown(model_id, version);
	return value;
}

/*
 * mlint.model_register(model_id, version, provider, parameters, description,
 * capabilities, tags, metadata)
 */
Datum
mlint_model_register(PG_FUNCTION_ARGS)
{
	static SessionStatement insert = {
		"INSERT INTO mlint.model (model_id, version, provider, parameters,"
		" description, capabilities, tags, metadata, registered_by)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
		" ON CONFLICT (model_id, version) DO NOTHING",
		9, {TEXTOID, TEXTOID, TEXTOID, JSONBOID, TEXTOID, TEXTARRAYOID,
		TEXTARRAYOID, JSONBOID, TEXTOID}
	};
	static SessionStatement same = {
		"SELECT FROM mlint.model WHERE (model_id, version, provider,"
		" parameters, description, capabilities, tags, metadata) IS NOT"
		" DISTINCT FROM ROW($1, $2, $3, $4, $5, $6, $7, $8)",
		8, {TEXTOID, TEXTOID, TEXTOID, JSONBOID, TEXTOID, TEXTARRAYOID,
		TEXTARRAYOID, JSONBOID}
	};
	char	   *model_id = name_argument(fcinfo, 0, "model_id");
	char	   *version = version_argument(fcinfo, 1);
	char	   *provider = optional_name_argument(fcinfo, 2, "provider");
	char	   *description = words_argument(fcinfo, 4, "description");
	Datum		values[9];
	OwnerScope	scope;
	bool		added;

	values[0] = CStringGetTextDatum(model_id);
	values[1] = CStringGetTextDatum(version);
	values[2] = CStringGetTextDatum(provider ? provider : "");
	values[3] = JsonbPGetDatum(object_argument(fcinfo, 3, "parameters"));
	values[4] = CStringGetTextDatum(description ? description : "");
	values[5] = PointerGetDatum(tags_argument(fcinfo, 5, "capabilities"));
	values[6] = PointerGetDatum(tags_argument(fcinfo, 6, "tags"));
	values[7] = JsonbPGetDatum(object_argument(fcinfo, 7, "metadata"));
	values[8] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	require_writable(fcinfo);

	owner_begin(&scope);
	added = session_write(&same, values, NULL) == 0;
	if (added && session_write(&insert, values, NULL) == 0)
	{
		/* There is one, or was until a moment ago. */
		added = false;
		if (session_write(&same, values, NULL) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNIQUE_VIOLATION),
					 errmsg("%s is registered already, differently",
							shown(model_id, version)),
					 errdetail("A version of a model is not changed."),
					 errhint("Register another version, and deprecate this one with mlint.model_deprecate().")));
	}
	owner_end(&scope);
	if (added)
		audit(AUDIT_CHANGED, "model.register", "model", model_id,
			  details(version, "provider", provider));
	PG_RETURN_DATUM(read_model(fcinfo, model_id, version, true));
}

/* mlint.model_get(model_id, version) */
Datum
mlint_model_get(PG_FUNCTION_ARGS)
{
	char	   *model_id = name_argument(fcinfo, 0, "model_id");
	char	   *version = optional_name_argument(fcinfo, 1, "version");

	PG_RETURN_DATUM(read_model(fcinfo, model_id, version, false));
}

/* mlint.model_list(page, page_size, provider, capability, tag, deprecated) */
Datum
mlint_model_list(PG_FUNCTION_ARGS)
{
	int64		page = page_argument(fcinfo, 0);
	int			page_size = page_size_argument(fcinfo, 1);
	Reading		reading;

	reading_begin(&reading, "SELECT m.* FROM mlint.models m");
	if (!PG_ARGISNULL(2))
		reading_where(&reading, "m.provider = $%d", TEXTOID, PG_GETARG_DATUM(2));
	if (!PG_ARGISNULL(3))
		reading_where(&reading, "m.capabilities @> ARRAY[$%d]", TEXTOID,
					  PG_GETARG_DATUM(3));
	if (!PG_ARGISNULL(4))
		reading_where(&reading, "m.tags @> ARRAY[$%d]", TEXTOID,
					  PG_GETARG_DATUM(4));
	if (!PG_ARGISNULL(5))
		reading_where(&reading, "(m.deprecated_at IS NOT NULL) = $%d", BOOLOID,
					  PG_GETARG_DATUM(5));
	appendStringInfo(&reading.sql,
					 " ORDER BY m.model_id, m.registered_at DESC,"
					 " m.version DESC LIMIT %d OFFSET " INT64_FORMAT,
					 page_size, (page - 1) * page_size);
	return reading_rows(&reading, fcinfo);
}

/* Deprecate versions, or all; or the other way round. */
static void
set_deprecated(FunctionCallInfo fcinfo, const char *model_id,
			   const char *version, const char *reason, const char *successor,
			   bool deprecate)
{
	static SessionStatement statement = {
		"UPDATE mlint.model SET"
		" deprecated_at = CASE WHEN $5 THEN"
		" coalesce(deprecated_at, pg_catalog.clock_timestamp()) END,"
		" deprecation_reason = $3, successor = $4"
		" WHERE model_id = $1 AND (version = $2 OR $2 IS NULL)",
		5, {TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID}
	};
	static SessionStatement registered = {
		"SELECT FROM mlint.model WHERE model_id = $1 LIMIT 1", 1, {TEXTOID}
	};
	const char *texts[] = {model_id, version, reason, successor};
	Datum		values[5];
	char		nulls[5];
	OwnerScope	scope;

	for (int i = 0; i < lengthof(texts); i++)
	{
		values[i] = texts[i] ? CStringGetTextDatum(texts[i]) : (Datum) 0;
		nulls[i] = texts[i] ? ' ' : 'n';
	}
	values[4] = BoolGetDatum(deprecate);
	nulls[4] = ' ';
	owner_begin(&scope);
	if (successor)
	{
		Datum		model = CStringGetTextDatum(successor);

		if (session_write(&registered, &model, NULL) == 0)
			model_unknown(successor, NULL);
	}
	if (session_write(&statement, values, nulls) == 0)
		model_unknown(model_id, version);
	owner_end(&scope);
	audit(AUDIT_CHANGED, deprecate ? "model.deprecate" : "model.reinstate",
		  "model", model_id, details(version, "successor", successor));
}

/* mlint.model_deprecate(model_id, version, reason, successor) */
Datum
mlint_model_deprecate(PG_FUNCTION_ARGS)
{
	require_writable(fcinfo);
	set_deprecated(fcinfo, name_argument(fcinfo, 0, "model_id"),
				   optional_name_argument(fcinfo, 1, "version"),
				   words_argument(fcinfo, 2, "reason"),
				   PG_ARGISNULL(3) ? NULL :
				   name_argument(fcinfo, 3, "successor"), true);
	PG_RETURN_VOID();
}

/* mlint.model_reinstate(model_id, version) */
Datum
mlint_model_reinstate(PG_FUNCTION_ARGS)
{
	require_writable(fcinfo);
	set_deprecated(fcinfo, name_argument(fcinfo, 0, "model_id"),
				   optional_name_argument(fcinfo, 1, "version"),
				   NULL, NULL, false);
	PG_RETURN_VOID();
}
