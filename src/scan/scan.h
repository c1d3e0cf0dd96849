/*
 * scan.h
 *		Credentials in text: the rules that know them, and one pass to find them.
 *
 * A caller takes the rules in force from ruleset_current() and gives texts to
 * scan_text(), which calls back for each finding, in the order of the text.
 * The files: rules.c is the table of the built-in rules, pattern.c their small
 * pattern language, keyword.c the automaton that looks for all keywords at
 * once, judge.c tells random from written, match.c holds the matchers that a
 * pattern cannot express, ruleset.c adds the users' rules, scan.c is the pass.
 */
#ifndef MLINT_SCAN_H
#define MLINT_SCAN_H

#include "postgres.h"

#include "regex/regex.h"
#include "scan/pattern.h"

typedef enum ScanSeverity
{
	SCAN_LOW,
	SCAN_MEDIUM,
	SCAN_HIGH,
	SCAN_CRITICAL
} ScanSeverity;

/* What is known of where a text comes from: by its path, or by the caller. */
#define SCAN_GENERATED	0x01	/* lock file, minified, image: nothing generic */
#define SCAN_LESSER		0x02	/* tests, examples: one severity less */
#define SCAN_OPTION		0x04	/* "name=value" of an option in a catalog */

typedef struct ScanSubject
{
	const uint8 *data;
	size_t		len;
	int			place;			/* SCAN_GENERATED, ... */
} ScanSubject;

/* A keyword of a rule in the subject. */
typedef struct ScanHit
{
	size_t		start;
	size_t		end;
} ScanHit;

/* What a rule found: the secret, and how much of its start may be shown. */
typedef struct ScanMatch
{
	size_t		start;
	size_t		end;
	int			shown;
	float		entropy;
	ScanSeverity severity;		/* the rule's, unless the matcher changes it */
} ScanMatch;

/* "name = value" in one of the many forms that it has in source text. */
typedef struct Assignment
{
	size_t		name_start;
	size_t		name_end;
	size_t		start;			/* of the value, without quotes */
	size_t		end;
	bool		quoted;
} Assignment;

typedef struct ScanRule ScanRule;

/* A rule's own look at a hit, or a second look at what its pattern found. */
typedef bool (*ScanMatcher) (const ScanRule *rule, const ScanSubject *s,
							 const ScanHit *hit, ScanMatch *m);

typedef enum ScanKind
{
	/*
	 * The credential has a form of its own, and the pattern begins with the
	 * keyword (or with sets of characters in front of it).
	 */
	SCAN_FORM,
	/* The keyword is in the name of what is assigned, the value the pattern. */
	SCAN_NAMED,
	/* The matcher alone knows. */
	SCAN_SPECIAL,
	/* A user's regular expression, on the text around the keyword. */
	SCAN_REGEX
} ScanKind;

#define SCAN_WEAK		0x01	/* a short prefix: stricter about what is
								 * beside it */
#define SCAN_GENERIC	0x02	/* yields to every other rule */
#define SCAN_ANY_ENTROPY 0x04	/* what a person chose: not judged by chance */

struct ScanRule
{
	const char *name;
	const char *description;
	ScanSeverity severity;
	ScanKind	kind;
	const char *keywords;		/* separated by spaces */
	const char *pattern;
	float		min_entropy;
	int			flags;
	ScanMatcher matcher;		/* SCAN_SPECIAL; else a check, or NULL */
};

extern const ScanRule scan_rules[];
extern const int scan_rule_count;

/* A rule in force. */
typedef struct CompiledRule
{
	ScanRule	rule;
	Pattern    *pattern;		/* SCAN_FORM, SCAN_NAMED */
	regex_t    *regex;			/* SCAN_REGEX */
	int			rank;			/* where findings overlap, the lower one stays */
} CompiledRule;

typedef struct KeywordIndex KeywordIndex;

typedef struct RuleSet
{
	CompiledRule *rules;
	int			nrules;
	KeywordIndex *keywords;
} RuleSet;

/* ---- ruleset.c ---- */

/*
 * The rules in force now. Valid until the next call in this process, whatever
 * happens to the rules meanwhile.
 */
extern const RuleSet *ruleset_current(void);

/* A regular expression in the current context; raises what is wrong with it. */
extern regex_t *scan_regex_compile(const char *pattern);
extern const ScanRule *scan_rule_find(const char *name);
extern const char *scan_severity_name(ScanSeverity severity);
extern bool scan_severity_parse(const char *name, ScanSeverity *severity);

/* ---- keyword.c ---- */

/* Called for each keyword in the text; end is one past it. */
typedef void (*KeywordVisitor) (int rule, int keyword_len, size_t end,
								void *arg);
extern KeywordIndex *keyword_index_create(void);
extern void keyword_index_add(KeywordIndex *index, const char *keyword,
							  int rule);
extern void keyword_index_finish(KeywordIndex *index);
extern void keyword_index_scan(const KeywordIndex *index, const uint8 *data,
							   size_t len, KeywordVisitor visit, void *arg);

/* ---- judge.c ---- */

extern float entropy_of(const uint8 *data, size_t len);

/* Is this a stand-in for a secret: "changeme", "${TOKEN}", "xxxxxxxx"? */
extern bool is_placeholder(const uint8 *data, size_t len);

/* Runs and sequences ("0000", "abcd", "1234") instead of chance? */
extern bool is_sequence(const uint8 *data, size_t len);

/* Could only a generator have written this? */
extern bool is_random(const uint8 *data, size_t len);

/* Would a person take this for a strong password? */
extern bool is_strong_password(const uint8 *data, size_t len);
extern bool is_uuid(const uint8 *data, size_t len);

/* Does the text contain this, in any case? The needle is lower case. */
extern bool contains(const uint8 *data, size_t len, const char *needle);

/* ---- match.c ---- */

extern bool assignment_around(const ScanSubject *s, const ScanHit *hit,
							  Assignment *a);
extern bool match_generic_secret(const ScanRule *rule, const ScanSubject *s,
								 const ScanHit *hit, ScanMatch *m);
extern bool match_generic_password(const ScanRule *rule, const ScanSubject *s,
								   const ScanHit *hit, ScanMatch *m);
extern bool match_private_key(const ScanRule *rule, const ScanSubject *s,
							  const ScanHit *hit, ScanMatch *m);
extern bool match_url(const ScanRule *rule, const ScanSubject *s,
					  const ScanHit *hit, ScanMatch *m);
extern bool match_dsn(const ScanRule *rule, const ScanSubject *s,
					  const ScanHit *hit, ScanMatch *m);
extern bool match_role_password(const ScanRule *rule, const ScanSubject *s,
								const ScanHit *hit, ScanMatch *m);
extern bool match_sql_option(const ScanRule *rule, const ScanSubject *s,
							 const ScanHit *hit, ScanMatch *m);
extern bool match_netrc(const ScanRule *rule, const ScanSubject *s,
						const ScanHit *hit, ScanMatch *m);
extern bool match_pgpass(const ScanRule *rule, const ScanSubject *s,
						 const ScanHit *hit, ScanMatch *m);
extern bool match_bearer(const ScanRule *rule, const ScanSubject *s,
						 const ScanHit *hit, ScanMatch *m);
extern bool match_basic_auth(const ScanRule *rule, const ScanSubject *s,
							 const ScanHit *hit, ScanMatch *m);
extern bool check_crc32(const ScanRule *rule, const ScanSubject *s,
						const ScanHit *hit, ScanMatch *m);
extern bool check_jwt(const ScanRule *rule, const ScanSubject *s,
					  const ScanHit *hit, ScanMatch *m);

/* ---- scan.c ---- */

typedef struct ScanFinding
{
	const ScanRule *rule;
	int			line;			/* from 1 */
	int			column;			/* from 1, in characters */
	const char *excerpt;
	float		entropy;
	ScanSeverity severity;
} ScanFinding;

typedef void (*FindingVisitor) (const ScanFinding *finding, void *arg);

extern int	scan_place(const char *path);
extern void scan_text(const RuleSet *rules, const char *data, size_t len,
					  int place, FindingVisitor visit, void *arg);

#endif
