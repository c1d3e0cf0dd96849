/*
 * admin.c
 *		Users' own rules, and which rules are in force.
 *
 * The table is written under the owner's identity, and each change makes every
 * process compile its rules anew (ruleset.c). Limits keep the automaton of
 * keywords, which every process that scans has, at a few megabytes.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "catalog/namespace.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/owner.h"
#include "scan/scan.h"

#define RULES_MAX			200
#define RULE_NAME_MAX		63
#define PATTERN_MAX_BYTES	1000
#define KEYWORDS_MAX		8
#define KEYWORD_MIN_BYTES	3
#define KEYWORD_MAX_BYTES	32

PG_FUNCTION_INFO_V1(mlint_secret_rule_create);
PG_FUNCTION_INFO_V1(mlint_secret_rule_drop);
PG_FUNCTION_INFO_V1(mlint_secret_rule_enable);
PG_FUNCTION_INFO_V1(mlint_secret_rule_builtin);

/* Every process reads the rules again once this transaction has committed. */
static void
rules_changed(void)
{
	CacheInvalidateRelcacheByRelid(get_relname_relid("secret_rule",
													 get_namespace_oid("mlint",
																	   false)));
}

static void
audit_rule(const char *action, const char *name)
{
	audit(AUDIT_CHANGED, action, "secret_rule", name, NULL);
}

static bool
is_rule_name(const char *name)
{
	size_t		len = strlen(name);

	return len >= 1 && len <= RULE_NAME_MAX && name[0] != '-' &&
		strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == len;
}

static void
pg_attribute_noreturn()
rule_unknown(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("secret rule \"%s\" does not exist", name),
			 errhint("The view mlint.secret_rules lists the rules.")));
}

/* One to KEYWORDS_MAX words of printable ASCII. */
static void
check_keywords(ArrayType *keywords)
{
	Datum	   *words;
	bool	   *nulls;
	int			n;
	bool		good;

	deconstruct_array(keywords, TEXTOID, -1, false, TYPALIGN_INT, &words,
					  &nulls, &n);
	good = n >= 1 && n <= KEYWORDS_MAX && ARR_NDIM(keywords) == 1;
	for (int i = 0; i < n && good; i++)
	{
		char	   *word = nulls[i] ? "" : TextDatumGetCString(words[i]);
		size_t		len = strlen(word);

		good = len >= KEYWORD_MIN_BYTES && len <= KEYWORD_MAX_BYTES;
		for (size_t k = 0; k < len && good; k++)
			good = word[k] >= ' ' && word[k] < 0x7F;
	}
	if (!good)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("invalid keywords of a secret rule"),
				 errdetail("A rule has 1 to %d keywords, each of %d to %d printable ASCII characters.",
						   KEYWORDS_MAX, KEYWORD_MIN_BYTES,
						   KEYWORD_MAX_BYTES),
				 errhint("Name what always stands in or next to the secret, such as its prefix: the pattern is tried only near a keyword.")));
}

/* It must compile, and not match everywhere. */
static void
check_pattern(const char *pattern)
{
	regex_t    *regex;
	pg_wchar	nothing[1] = {0};
	int			code;

	if (strlen(pattern) < 1 || strlen(pattern) > PATTERN_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the pattern of a secret rule must have 1 to %d bytes",
						PATTERN_MAX_BYTES)));
	regex = scan_regex_compile(pattern);
	code = pg_regexec(regex, nothing, 0, 0, NULL, 0, NULL, 0);
	pg_regfree(regex);
	if (code == REG_OKAY)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the pattern of a secret rule must not match the empty string"),
				 errhint("Give a number of repetitions with a lower bound, such as {20,40}.")));
}

/* How many rows has the SPI statement touched? */
static uint64
execute(const char *sql, int nargs, Oid *types, Datum *values,
		const char *nulls)
{
	int			code = SPI_execute_with_args(sql, nargs, types, values, nulls,
											 false, 0);

	if (code < 0)
		elog(ERROR, "could not write mlint.secret_rule: %s",
			 SPI_result_code_string(code));
	return SPI_processed;
}

/* secret_rule_create(name, pattern, keywords, severity, description, entropy) */
Datum
mlint_secret_rule_create(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "the name of a secret rule");
	char	   *pattern = required_text(fcinfo, 1, "the pattern of a secret rule");
	char	   *severity = required_text(fcinfo, 3, "the severity of a secret rule");
	float4		min_entropy = PG_ARGISNULL(5) ? 0 : PG_GETARG_FLOAT4(5);
	Oid			types[] = {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID, TEXTOID,
	FLOAT4OID};
	Datum		values[6];
	char		nulls[7] = "      ";
	ScanSeverity parsed;
	OwnerScope	scope;

	require_writable(fcinfo);
	if (!is_rule_name(name))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of a secret rule"),
				 errdetail("A name is 1 to %d lower-case letters, digits and hyphens.",
						   RULE_NAME_MAX)));
	if (scan_rule_find(name) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("secret rule \"%s\" is built in", name),
				 errhint("Choose another name; mlint.secret_rule_enable('%s', false) switches the built-in one off.",
						 name)));
	if (!scan_severity_parse(severity, &parsed))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("invalid severity of a secret rule"),
				 errdetail("It is one of low, medium, high, critical.")));
	if (!(min_entropy >= 0 && min_entropy <= 8))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the minimum entropy of a secret rule must be 0 to 8 bits a character")));
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the keywords of a secret rule must not be null")));
	check_keywords(PG_GETARG_ARRAYTYPE_P(2));
	check_pattern(pattern);

	for (int i = 0; i < 5; i++)
		values[i] = PG_GETARG_DATUM(i);
	values[5] = Float4GetDatum(min_entropy);
	nulls[4] = PG_ARGISNULL(4) ? 'n' : ' ';

	owner_begin(&scope);
	if (execute("SELECT FROM mlint.secret_rule WHERE pattern IS NOT NULL",
				0, NULL, NULL, NULL) >= RULES_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("there are %d secret rules already", RULES_MAX),
				 errhint("Drop one with mlint.secret_rule_drop, or join several into one pattern.")));
	if (execute("INSERT INTO mlint.secret_rule"
				" (name, pattern, keywords, severity, description, min_entropy)"
				" VALUES ($1, $2, $3, $4, $5, $6)"
				" ON CONFLICT (name) DO NOTHING",
				6, types, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("secret rule \"%s\" already exists", name)));
	owner_end(&scope);
	audit_rule("secret_rule.create", name);
	rules_changed();
	PG_RETURN_VOID();
}

Datum
mlint_secret_rule_drop(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "the name of a secret rule");
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	OwnerScope	scope;

	require_writable(fcinfo);
	if (scan_rule_find(name) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("secret rule \"%s\" is built in and cannot be dropped",
						name),
				 errhint("mlint.secret_rule_enable('%s', false) switches it off.",
						 name)));
	owner_begin(&scope);
	if (execute("DELETE FROM mlint.secret_rule WHERE name = $1",
				1, types, values, NULL) == 0)
		rule_unknown(name);
	owner_end(&scope);
	audit_rule("secret_rule.drop", name);
	rules_changed();
	PG_RETURN_VOID();
}

/* secret_rule_enable(name, enabled) */
Datum
mlint_secret_rule_enable(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "the name of a secret rule");
	Oid			types[] = {TEXTOID, BOOLOID};
	Datum		values[2];
	OwnerScope	scope;
	bool		builtin = scan_rule_find(name) != NULL;

	require_writable(fcinfo);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("enabled must not be null")));
	values[0] = CStringGetTextDatum(name);
	values[1] = BoolGetDatum(PG_GETARG_BOOL(1));
	owner_begin(&scope);
	if (execute(builtin ?
				"INSERT INTO mlint.secret_rule (name, enabled) VALUES ($1, $2)"
				" ON CONFLICT (name) DO UPDATE SET enabled = $2" :
				"UPDATE mlint.secret_rule SET enabled = $2 WHERE name = $1",
				2, types, values, NULL) == 0)
		rule_unknown(name);
	owner_end(&scope);
	audit_rule(PG_GETARG_BOOL(1) ? "secret_rule.enable" :
			   "secret_rule.disable", name);
	rules_changed();
	PG_RETURN_VOID();
}

/* The keywords of a built-in rule as text[]. */
static Datum
keywords_array(const char *keywords)
{
	ArrayBuildState *array = NULL;
	const char *word = keywords;

	while (*word)
	{
		const char *end = strchr(word, ' ');

		if (end == NULL)
			end = word + strlen(word);
		else if (end[1] == '\0')
			end++;
		array = accumArrayResult(array,
								 PointerGetDatum(cstring_to_text_with_len(word,
																		  end - word)),
								 false, TEXTOID, CurrentMemoryContext);
		word = *end ? end + 1 : end;
	}
	return makeArrayResult(array, CurrentMemoryContext);
}

/* secret_rule_builtin(): behind the view mlint.secret_rules. */
Datum
mlint_secret_rule_builtin(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < scan_rule_count; i++)
	{
		const ScanRule *rule = &scan_rules[i];
		Datum		values[6];
		bool		nulls[6] = {0};

		values[0] = CStringGetTextDatum(rule->name);
		values[1] = CStringGetTextDatum(rule->description);
		values[2] = CStringGetTextDatum(scan_severity_name(rule->severity));
		values[3] = keywords_array(rule->keywords);
		nulls[4] = rule->pattern == NULL;
		values[4] = nulls[4] ? (Datum) 0 : CStringGetTextDatum(rule->pattern);
		values[5] = Float4GetDatum(rule->min_entropy);
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}
