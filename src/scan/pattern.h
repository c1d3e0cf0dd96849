/*
 * pattern.h
 *		Patterns of the built-in rules: a small part of regular expressions.
 *
 * Literal characters, sets ([A-Za-z0-9], \d, \w, \s) with a count ({36},
 * {20,64}, {20,}, ?, *, +), and choices between literals ((AKIA|ASIA)). A set
 * takes as much as it can and never gives back, so matching is linear. Where
 * what follows a set is not in the set, as in every pattern here, that is
 * what PostgreSQL's engine finds too.
 */
#ifndef MLINT_PATTERN_H
#define MLINT_PATTERN_H

#include "postgres.h"

typedef struct ByteSet
{
	uint64		bits[4];
} ByteSet;

static inline bool
byteset_has(const ByteSet *set, uint8 c)
{
	return (set->bits[c >> 6] >> (c & 63)) & 1;
}

typedef enum StepKind
{
	STEP_LITERAL,				/* text, len */
	STEP_CHOICE,				/* text, len: alternatives with | in between */
	STEP_SET					/* min to max of set */
} StepKind;

typedef struct PatternStep
{
	StepKind	kind;
	char	   *text;
	int			len;
	ByteSet		set;
	int			min;
	int			max;
} PatternStep;

typedef struct Pattern
{
	int			nsteps;
	int			lead;			/* sets before the first other step */
	PatternStep *steps;
} Pattern;

/* The longest repetition, where a pattern sets no bound. */
#define PATTERN_REPEAT_MAX		4096

extern Pattern *pattern_compile(const char *source);

/*
 * From step `step` on, at `at`: true, and where the match ends; *literal is
 * the length of the literal that it began with.
 */
extern bool pattern_match(const Pattern *p, int step, const uint8 *data,
						  size_t len, size_t at, size_t *end, int *literal);

/* Go back over the leading sets from `at`; true, and where they begin. */
extern bool pattern_lead(const Pattern *p, const uint8 *data, size_t at,
						 size_t *start);

#endif
