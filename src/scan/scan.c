/*
 * scan.c
 *		Find credentials in a text, in one pass.
 *
 * The automaton of all rules' keywords runs over the text, and around each
 * keyword the rule it belongs to looks at a bounded number of bytes. So the
 * time is the text's length, plus what the hits cost, and nothing in a text
 * can make it more.
 *
 * A match lies near its keyword: it begins at most SCAN_REACH bytes before.
 * Matches therefore wait until the pass is that much further; then nothing
 * that could overlap them or come before them is left to be found, and they
 * are reported in the order of the text. Where two rules find the same text
 * the special one keeps it. Only what waits is in memory.
 *
 * The secret itself leaves no trace: what is reported is its first few
 * characters, and statements that fail in here are kept out of the log.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/tuplestore.h"

#include "common/compat.h"
#include "common/crypto.h"
#include "common/glob.h"
#include "common/peertext.h"
#include "scan/scan.h"

/* A match begins no further in front of the keyword that led to it. */
#define SCAN_REACH		512

/* The text that a user's expression gets around a keyword. */
#define REGEX_BEFORE	256
#define REGEX_AFTER		1024
#define REGEX_SURE		512		/* what lies within this is found */

#define EXCERPT_SHOWN	48		/* bytes of a public prefix, at most */

typedef struct WaitingMatch
{
	ScanMatch	match;
	const CompiledRule *rule;
} WaitingMatch;

typedef struct TextScan
{
	ScanSubject subject;
	const RuleSet *rules;
	FindingVisitor visit;
	void	   *arg;

	WaitingMatch *waiting;
	int			nwaiting;
	int			waiting_max;
	size_t	   *searched;		/* by rule: how far a regex has seen it all */
	size_t		reported;		/* no match begins before */

	/* Where line and column have been counted to. */
	size_t		counted;
	int			line;
	int			column;
} TextScan;

PG_FUNCTION_INFO_V1(mlint_secret_scan);

/* Move line and column on to a place that is not before the last one. */
static void
count_to(TextScan *scan, size_t place)
{
	const char *data = (const char *) scan->subject.data;

	while (scan->counted < place)
	{
		const char *from = data + scan->counted;
		const char *newline = memchr(from, '\n', place - scan->counted);

		if (newline == NULL)
		{
			size_t		piece = Min(place - scan->counted, 1024 * 1024 * 1024);

			scan->column += pg_mbstrlen_with_len(from, (int) piece);
			scan->counted += piece;
		}
		else
		{
			scan->line++;
			scan->column = 1;
			scan->counted = newline + 1 - data;
		}
	}
}

/* The first few characters, on one line, and asterisks. */
static void
excerpt_make(const TextScan *scan, const ScanMatch *m, char *excerpt)
{
	const char *secret = (const char *) scan->subject.data + m->start;
	int			len = m->end - m->start;
	int			shown = Max(Min(m->shown, EXCERPT_SHOWN), Min(4, len / 6));

	shown = Min(shown, len - 1);
	shown = pg_mbcliplen(secret, shown, shown);
	memcpy(excerpt, secret, shown);
	for (int i = 0; i < shown; i++)
	{
		if ((uint8) excerpt[i] < ' ' || excerpt[i] == 0x7F)
			excerpt[i] = ' ';
	}
	memcpy(excerpt + shown, "***", sizeof("***"));
}

static void
report(TextScan *scan, const WaitingMatch *w)
{
	char		excerpt[EXCERPT_SHOWN + 4];
	ScanFinding finding;

	count_to(scan, w->match.start);
	excerpt_make(scan, &w->match, excerpt);
	finding.rule = &w->rule->rule;
	finding.line = scan->line;
	finding.column = scan->column;
	finding.excerpt = excerpt;
	finding.entropy = w->match.entropy;
	finding.severity = w->match.severity;
	if ((scan->subject.place & SCAN_LESSER) && finding.severity > SCAN_LOW)
		finding.severity--;
	scan->visit(&finding, scan->arg);
}

static int
match_compare(const void *a, const void *b)
{
	const WaitingMatch *x = a;
	const WaitingMatch *y = b;

	if (x->match.start != y->match.start)
		return x->match.start < y->match.start ? -1 : 1;
	return x->rule->rank - y->rule->rank;
}

/* Report what begins and ends so far back that nothing more can touch it. */
static void
report_until(TextScan *scan, size_t place)
{
	int			n = 0;

	qsort(scan->waiting, scan->nwaiting, sizeof(WaitingMatch), match_compare);
	while (n < scan->nwaiting &&
		   scan->waiting[n].match.end + SCAN_REACH < place)
	{
		scan->reported = scan->waiting[n].match.start;
		report(scan, &scan->waiting[n++]);
	}
	scan->nwaiting -= n;
	memmove(scan->waiting, scan->waiting + n,
			sizeof(WaitingMatch) * scan->nwaiting);
}

/*
 * Which of two matches of the same text stays? A user's rule and a built-in
 * special one are both right.
 */
static bool
both_stay(const CompiledRule *a, const CompiledRule *b)
{
	return (a->rule.kind == SCAN_REGEX) != (b->rule.kind == SCAN_REGEX) &&
		((a->rule.flags | b->rule.flags) & SCAN_GENERIC) == 0;
}

static void
add_match(TextScan *scan, const CompiledRule *rule, const ScanMatch *m,
		  size_t place)
{
	int			kept = 0;
	bool		loses = false;

	if (m->start < scan->reported)
		return;
	for (int i = 0; i < scan->nwaiting && !loses; i++)
	{
		const WaitingMatch *w = &scan->waiting[i];

		loses = w->match.start < m->end && m->start < w->match.end &&
			!both_stay(w->rule, rule) && w->rule->rank <= rule->rank;
	}
	if (loses)
		return;
	for (int i = 0; i < scan->nwaiting; i++)
	{
		const WaitingMatch *w = &scan->waiting[i];

		if (w->match.start >= m->end || m->start >= w->match.end ||
			both_stay(w->rule, rule))
			scan->waiting[kept++] = *w;
	}
	scan->nwaiting = kept;

	if (scan->nwaiting == scan->waiting_max)
		report_until(scan, place);
	if (scan->nwaiting == scan->waiting_max)
	{
		scan->waiting_max *= 2;
		scan->waiting = repalloc_array(scan->waiting, WaitingMatch,
									   scan->waiting_max);
	}
	scan->waiting[scan->nwaiting].match = *m;
	scan->waiting[scan->nwaiting++].rule = rule;
}

static bool
is_word(uint8 c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
		(c >= 'a' && c <= 'z') || c == '_';
}

/*
 * May a token begin here? Not in the middle of a word; but what is left of it
 * may be an escape: \n, %3D, \u0022.
 */
static bool
may_begin(const ScanSubject *s, size_t start, bool weak)
{
	uint8		before;

	if (start == 0)
		return true;
	before = s->data[start - 1];
	if (!is_word(before))
		return !weak || strchr("+-./", before) == NULL;
	return (start >= 2 && s->data[start - 2] == '\\' &&
			strchr("nrt", before) != NULL) ||
		(start >= 3 && s->data[start - 3] == '%' && isxdigit(before)) ||
		(start >= 6 && s->data[start - 6] == '\\' &&
		 s->data[start - 5] == 'u' && isxdigit(before));
}

static bool
may_end(const ScanSubject *s, size_t end, bool weak)
{
	return end >= s->len || (!is_word(s->data[end]) &&
							 !(weak && strchr("+-/=", s->data[end])));
}

static bool
match_form(const CompiledRule *c, const ScanSubject *s, const ScanHit *hit,
		   ScanMatch *m)
{
	const Pattern *p = c->pattern;
	bool		weak = (c->rule.flags & SCAN_WEAK) != 0;
	size_t		body;
	int			literal;

	if (!pattern_lead(p, s->data, hit->start, &m->start) ||
		!may_begin(s, m->start, weak) ||
		!pattern_match(p, p->lead, s->data, s->len, hit->start, &m->end,
					   &literal) ||
		!may_end(s, m->end, weak))
		return false;
	m->shown = p->lead == 0 ? literal : 0;
	body = m->start + m->shown;
	if (m->end > body)
	{
		m->entropy = entropy_of(s->data + body, m->end - body);
		if (m->entropy < c->rule.min_entropy ||
			(c->rule.min_entropy > 0 &&
			 (is_placeholder(s->data + body, m->end - body) ||
			  is_sequence(s->data + body, m->end - body))))
			return false;
	}
	else
		m->entropy = 0;
	return c->rule.matcher == NULL || c->rule.matcher(&c->rule, s, hit, m);
}

static bool
match_named(const CompiledRule *c, const ScanSubject *s, const ScanHit *hit,
			ScanMatch *m)
{
	Assignment	a;
	size_t		end;
	int			literal;

	if (!assignment_around(s, hit, &a) ||
		!pattern_match(c->pattern, 0, s->data, a.end, a.start, &end,
					   &literal) || end != a.end)
		return false;
	m->start = a.start;
	m->end = a.end;
	m->shown = 0;
	m->entropy = entropy_of(s->data + a.start, a.end - a.start);
	return m->entropy >= c->rule.min_entropy &&
		!is_placeholder(s->data + a.start, a.end - a.start) &&
		!is_sequence(s->data + a.start, a.end - a.start);
}

/*
 * A user's expression on the text around a keyword. What lies within
 * REGEX_SURE bytes after a keyword was seen by its search, so that keywords
 * in there need none of their own.
 */
static void
search_regex(TextScan *scan, const CompiledRule *c, int rule, const ScanHit *hit)
{
	const ScanSubject *s = &scan->subject;
	size_t		from = hit->start > REGEX_BEFORE ?
	hit->start - REGEX_BEFORE : 0;
	size_t		to = Min(s->len, hit->end + REGEX_AFTER);
	pg_wchar   *wide;
	int			nwide;
	int			at = 0;

	if (hit->end <= scan->searched[rule])
		return;
	/* An ASCII byte is where a character begins, in every encoding. */
	while (from > 0 && from < hit->start && IS_HIGHBIT_SET(s->data[from]))
		from++;
	while (to < s->len && to > hit->end && IS_HIGHBIT_SET(s->data[to]))
		to--;
	scan->searched[rule] = hit->end + REGEX_SURE;

	wide = palloc_array(pg_wchar, to - from + 1);
	nwide = pg_mb2wchar_with_len((const char *) s->data + from, wide,
								 to - from);
	while (at <= nwide)
	{
		regmatch_t	found[2];
		int			group;
		int			code = pg_regexec(c->regex, wide, nwide, at, NULL, 2,
									  found, 0);
		char	   *text;
		ScanMatch	m;

		if (code == REG_NOMATCH)
			break;
		if (code != REG_OKAY)
		{
			char		reason[128];

			CHECK_FOR_INTERRUPTS();
			pg_regerror(code, c->regex, reason, sizeof(reason));
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_REGULAR_EXPRESSION),
					 errmsg("the pattern of secret rule \"%s\" failed: %s",
							c->rule.name, reason)));
		}
		group = c->regex->re_nsub > 0 && found[1].rm_so >= 0 ? 1 : 0;
		at = Max(found[0].rm_eo, found[0].rm_so + 1);

		/* From characters back to bytes. */
		text = palloc((Size) MAX_MULTIBYTE_CHAR_LEN * nwide + 1);

		m.start = from + pg_wchar2mb_with_len(wide, text,
											  found[group].rm_so);
		m.end = m.start + pg_wchar2mb_with_len(wide + found[group].rm_so,
											   text, found[group].rm_eo -
											   found[group].rm_so);
		crypto_wipe(text, (Size) MAX_MULTIBYTE_CHAR_LEN * nwide + 1);
		pfree(text);
		m.shown = 0;
		m.severity = c->rule.severity;
		m.entropy = entropy_of(s->data + m.start, m.end - m.start);
		if (m.end > m.start && m.entropy >= c->rule.min_entropy)
			add_match(scan, c, &m, hit->end);
	}
	crypto_wipe(wide, sizeof(pg_wchar) * (to - from + 1));
	pfree(wide);
}

static void
keyword_found(int rule, int keyword_len, size_t end, void *arg)
{
	TextScan   *scan = arg;
	const CompiledRule *c = &scan->rules->rules[rule];
	ScanHit		hit = {end - keyword_len, end};
	ScanMatch	m;
	bool		found = false;

	m.severity = c->rule.severity;
	switch (c->rule.kind)
	{
		case SCAN_FORM:
			found = match_form(c, &scan->subject, &hit, &m);
			break;
		case SCAN_NAMED:
			found = match_named(c, &scan->subject, &hit, &m);
			break;
		case SCAN_SPECIAL:
			found = c->rule.matcher(&c->rule, &scan->subject, &hit, &m);
			break;
		case SCAN_REGEX:
			search_regex(scan, c, rule, &hit);
			break;
	}
	if (found)
	{
		Assert(m.start + SCAN_REACH >= hit.start);
		add_match(scan, c, &m, end);
	}
}

/* Scan a text, valid in the database's encoding. */
void
scan_text(const RuleSet *rules, const char *data, size_t len, int place,
		  FindingVisitor visit, void *arg)
{
	TextScan	scan = {
		.subject = {(const uint8 *) data, len, place},
		.rules = rules,
		.visit = visit,
		.arg = arg,
		.waiting_max = 64,
		.line = 1,
		.column = 1
	};

	scan.waiting = palloc_array(WaitingMatch, scan.waiting_max);
	scan.searched = palloc0_array(size_t, Max(rules->nrules, 1));
	keyword_index_scan(rules->keywords, scan.subject.data, len,
					   keyword_found, &scan);
	report_until(&scan, SIZE_MAX);
	pfree(scan.waiting);
	pfree(scan.searched);
}

/* What a path says of the text in it. */
int
scan_place(const char *path)
{
	static const char *const generated[] = {
		"*.lock", "*-lock.json", "*-lock.yaml", "*-lock.yml", "*.lock.hcl",
		"*.lockfile", "*go.sum", "*npm-shrinkwrap.json", "*.min.js",
		"*.min.css", "*.map", "*.svg", "*.snap", "*.ipynb", "*.pdf",
		"*sha256sums*", "*checksums*", "*.sum", "*.po", "*.pot", "*.crt",
		"*.cer", "*.pub", "*package-lock*", "*.asc", NULL
	};
	static const char *const lesser[] = {
		"test/*", "tests/*", "*/test/*", "*/tests/*", "*/testdata/*",
		"testdata/*", "*fixture*", "*example*", "*/mock*", "*.md", "*.rst",
		"*_test.*", "*.test.*", "*_spec.*", "*.spec.*", "*sample*", "docs/*",
		"*/docs/*", "spec/*", "*/spec/*", "*template*", NULL
	};
	char	   *folded = asc_tolower(path, strlen(path));
	int			place = 0;

	for (char *p = folded; *p; p++)
	{
		if (*p == '\\')
			*p = '/';
	}
	for (const char *const *p = generated; *p; p++)
	{
		if (glob_match(*p, folded))
			place |= SCAN_GENERATED;
	}
	for (const char *const *p = lesser; *p; p++)
	{
		if (glob_match(*p, folded))
			place |= SCAN_LESSER;
	}
	pfree(folded);
	return place;
}

static void
finding_to_row(const ScanFinding *finding, void *arg)
{
	ReturnSetInfo *result = arg;
	Datum		values[6];
	bool		nulls[6] = {0};

	values[0] = CStringGetTextDatum(finding->rule->name);
	values[1] = Int32GetDatum(finding->line);
	values[2] = Int32GetDatum(finding->column);
	values[3] = CStringGetTextDatum(finding->excerpt);
	values[4] = Float4GetDatum(finding->entropy);
	values[5] = CStringGetTextDatum(scan_severity_name(finding->severity));
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	pfree(DatumGetPointer(values[0]));
	pfree(DatumGetPointer(values[3]));
	pfree(DatumGetPointer(values[5]));
}

/* secret_scan(content, path): what lies in a text. */
Datum
mlint_secret_scan(PG_FUNCTION_ARGS)
{
	HIDE_STATEMENT_BEGIN();

	InitMaterializedSRF(fcinfo, 0);
	if (!PG_ARGISNULL(0))
	{
		int			place = PG_ARGISNULL(1) ? 0 :
		scan_place(text_to_cstring(PG_GETARG_TEXT_PP(1)));
		text	   *content = PG_GETARG_TEXT_PP(0);

		scan_text(ruleset_current(), VARDATA_ANY(content),
				  VARSIZE_ANY_EXHDR(content), place, finding_to_row,
				  fcinfo->resultinfo);
		PG_FREE_IF_COPY(content, 0);
	}
	HIDE_STATEMENT_END();
	return (Datum) 0;
}
