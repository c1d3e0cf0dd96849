/*
 * ruleset.c
 *		The rules in force: the built-in ones and mlint.secret_rule, compiled.
 *
 * Compiling takes a millisecond, so each process keeps its rules. Whoever
 * changes the table invalidates the table's relcache entry, which reaches
 * every process when the change commits (and our own at once, and again if it
 * rolls back); the next scan then compiles anew. The table is read with the
 * newest snapshot, not the transaction's, since what is kept must be right for
 * the next transaction too.
 *
 * A row whose pattern is NULL is about the built-in rule of its name.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "common/compat.h"
#include "common/relwatch.h"
#include "scan/scan.h"

/* Columns of mlint.secret_rule. */
enum
{
	RULE_NAME = 1,
	RULE_PATTERN,
	RULE_KEYWORDS,
	RULE_SEVERITY,
	RULE_DESCRIPTION,
	RULE_MIN_ENTROPY,
	RULE_ENABLED
};

static MemoryContext current_context;
static RuleSet *current;
static Oid	current_relation;
static bool current_valid;

static const char *const severity_names[] = {
	[SCAN_LOW] = "low",
	[SCAN_MEDIUM] = "medium",
	[SCAN_HIGH] = "high",
	[SCAN_CRITICAL] = "critical"
};

const char *
scan_severity_name(ScanSeverity severity)
{
	return severity_names[severity];
}

bool
scan_severity_parse(const char *name, ScanSeverity *severity)
{
	for (int i = 0; i < lengthof(severity_names); i++)
	{
		if (strcmp(name, severity_names[i]) == 0)
		{
			*severity = i;
			return true;
		}
	}
	return false;
}

const ScanRule *
scan_rule_find(const char *name)
{
	for (int i = 0; i < scan_rule_count; i++)
	{
		if (strcmp(scan_rules[i].name, name) == 0)
			return &scan_rules[i];
	}
	return NULL;
}

regex_t *
scan_regex_compile(const char *pattern)
{
	regex_t    *regex = palloc0(sizeof(regex_t));
	int			len = strlen(pattern);
	pg_wchar   *wide = palloc_array(pg_wchar, len + 1);
	int			code = pg_regcomp(regex, wide,
								  pg_mb2wchar_with_len(pattern, wide, len),
								  REG_ADVANCED, C_COLLATION_OID);

	pfree(wide);
	if (code != REG_OKAY)
	{
		char		reason[128];

		pg_regerror(code, regex, reason, sizeof(reason));
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_REGULAR_EXPRESSION),
				 errmsg("invalid regular expression: %s", reason)));
	}
	return regex;
}

static void
forget_if_ours(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == current_relation)
		current_valid = false;
}

static void
ruleset_free(void)
{
	if (current != NULL)
	{
		RuleSet    *old = current;

		current = NULL;
		for (int i = 0; i < old->nrules; i++)
		{
			if (old->rules[i].regex != NULL)
				pg_regfree(old->rules[i].regex);
		}
	}
	if (current_context != NULL)
	{
		MemoryContext context = current_context;

		current_context = NULL;
		MemoryContextDelete(context);
	}
}

/* Is the built-in rule of this name among those that are switched off? */
static bool
is_disabled(const ScanRule *rule, List *disabled)
{
	ListCell   *cell;

	foreach(cell, disabled)
	{
		if (strcmp(lfirst(cell), rule->name) == 0)
			return true;
	}
	return false;
}

static void
add_keywords(RuleSet *set, int rule, char *keywords)
{
	char	   *rest = keywords;
	char	   *word;

	/* A keyword may end in a blank; then the separator is a second one. */
	while (*rest)
	{
		word = rest;
		rest = strchr(rest, ' ');
		if (rest == NULL)
			rest = word + strlen(word);
		else
		{
			if (rest[1] == '\0' || rest[1] == ' ')
				rest++;
			if (*rest)
				*rest++ = '\0';
		}
		keyword_index_add(set->keywords, word, rule);
	}
}

/* A user's rule from its row. */
static void
add_user_rule(RuleSet *set, TupleDesc desc, HeapTuple row)
{
	CompiledRule *c = &set->rules[set->nrules];
	bool		isnull;
	Datum	   *words;
	int			nwords;

#define COLUMN(n)	heap_getattr(row, n, desc, &isnull)
	c->rule.name = TextDatumGetCString(COLUMN(RULE_NAME));
	c->rule.pattern = TextDatumGetCString(COLUMN(RULE_PATTERN));
	if (!scan_severity_parse(TextDatumGetCString(COLUMN(RULE_SEVERITY)),
							 &c->rule.severity))
		c->rule.severity = SCAN_HIGH;
	c->rule.min_entropy = DatumGetFloat4(COLUMN(RULE_MIN_ENTROPY));
	c->rule.kind = SCAN_REGEX;
	c->rank = scan_rule_count;
	deconstruct_array(DatumGetArrayTypeP(COLUMN(RULE_KEYWORDS)), TEXTOID, -1,
					  false, TYPALIGN_INT, &words, NULL, &nwords);
	c->regex = scan_regex_compile(c->rule.pattern);
	set->nrules++;
	for (int i = 0; i < nwords; i++)
		keyword_index_add(set->keywords, TextDatumGetCString(words[i]),
						  set->nrules - 1);
#undef COLUMN
}

static void
ruleset_compile(Relation relation)
{
	TupleDesc	desc = RelationGetDescr(relation);
	SysScanDesc rows;
	HeapTuple	row;
	List	   *disabled = NIL;
	List	   *own = NIL;
	ListCell   *cell;
	MemoryContext caller;

	ruleset_free();
	current_context = AllocSetContextCreate(TopMemoryContext,
											"mlint secret rules",
											ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(current_context);

	rows = systable_beginscan(relation, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(row = systable_getnext(rows)))
	{
		bool		isnull;
		bool		builtin;

		(void) heap_getattr(row, RULE_PATTERN, desc, &builtin);
		if (DatumGetBool(heap_getattr(row, RULE_ENABLED, desc, &isnull)))
		{
			if (!builtin)
				own = lappend(own, heap_copytuple(row));
		}
		else if (builtin)
			disabled = lappend(disabled,
							   TextDatumGetCString(heap_getattr(row, RULE_NAME,
																desc,
																&isnull)));
	}

	current = palloc0(sizeof(RuleSet));
	current->rules = palloc0_array(CompiledRule,
								   scan_rule_count + list_length(own));
	current->keywords = keyword_index_create();
	for (int i = 0; i < scan_rule_count; i++)
	{
		CompiledRule *c = &current->rules[current->nrules];

		if (is_disabled(&scan_rules[i], disabled))
			continue;
		c->rule = scan_rules[i];
		c->rank = scan_rules[i].flags & SCAN_GENERIC ?
			scan_rule_count + 1 + i : i;
		if (c->rule.pattern != NULL)
			c->pattern = pattern_compile(c->rule.pattern);
		add_keywords(current, current->nrules++, pstrdup(c->rule.keywords));
	}
	foreach(cell, own)
		add_user_rule(current, desc, lfirst(cell));
	systable_endscan(rows);
	keyword_index_finish(current->keywords);
	MemoryContextSwitchTo(caller);
}

const RuleSet *
ruleset_current(void)
{
	static bool registered = false;
	Oid			oid = get_relname_relid("secret_rule",
										get_namespace_oid("mlint", false));
	Relation	relation;

	if (!OidIsValid(oid))
		elog(ERROR, "table mlint.secret_rule does not exist");
	if (!registered)
	{
		relation_watch(forget_if_ours, (Datum) 0);
		registered = true;
	}

	/* Taking the lock takes in what others have committed. */
	relation = table_open(oid, AccessShareLock);
	if (!current_valid || current_relation != oid || current == NULL)
	{
		current_relation = oid;
		current_valid = true;	/* until something comes in meanwhile */
		PG_TRY();
		{
			ruleset_compile(relation);
		}
		PG_CATCH();
		{
			current_valid = false;
			ruleset_free();
			PG_RE_THROW();
		}
		PG_END_TRY();
	}
	table_close(relation, AccessShareLock);
	return current;
}
