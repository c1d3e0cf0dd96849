/*
 * pattern.c
 *		Compile and match the patterns of built-in rules; see pattern.h.
 *
 * Patterns are ours, so that what is wrong with one is a bug and an elog.
 */
#include "postgres.h"

#include "scan/pattern.h"

static void
byteset_add(ByteSet *set, uint8 from, uint8 to)
{
	for (int c = from; c <= to; c++)
		set->bits[c >> 6] |= UINT64CONST(1) << (c & 63);
}

/* Add \w, \d, \s or an escaped character. */
static void
byteset_add_escape(ByteSet *set, char c)
{
	switch (c)
	{
		case 'w':
			byteset_add(set, 'A', 'Z');
			byteset_add(set, 'a', 'z');
			byteset_add(set, '0', '9');
			byteset_add(set, '_', '_');
			break;
		case 'd':
			byteset_add(set, '0', '9');
			break;
		case 's':
			byteset_add(set, '\t', '\r');
			byteset_add(set, ' ', ' ');
			break;
		default:
			byteset_add(set, c, c);
	}
}

/* The set after '[': returns what follows ']'. */
static const char *
parse_set(const char *p, ByteSet *set)
{
	while (*p != ']')
	{
		if (*p == '\0')
			elog(ERROR, "pattern with an open set");
		if (*p == '\\')
		{
			byteset_add_escape(set, p[1]);
			p += 2;
		}
		else if (p[1] == '-' && p[2] != ']')
		{
			byteset_add(set, p[0], p[2]);
			p += 3;
		}
		else
		{
			byteset_add(set, *p, *p);
			p++;
		}
	}
	return p + 1;
}

/* A count, if there is one: returns what follows. */
static const char *
parse_count(const char *p, int *min, int *max)
{
	char	   *end;

	*min = *max = 1;
	if (*p == '?')
	{
		*min = 0;
		return p + 1;
	}
	if (*p == '*' || *p == '+')
	{
		*min = *p == '+';
		*max = PATTERN_REPEAT_MAX;
		return p + 1;
	}
	if (*p != '{')
		return p;
	*min = *max = strtol(p + 1, &end, 10);
	if (*end == ',')
	{
		p = end + 1;
		*max = strtol(p, &end, 10);
		if (end == p)
			*max = PATTERN_REPEAT_MAX;
	}
	if (*end != '}' || *min > *max)
		elog(ERROR, "pattern with a bad count");
	return end + 1;
}

Pattern *
pattern_compile(const char *source)
{
	Pattern    *p = palloc0(sizeof(Pattern));
	const char *c = source;

	p->steps = palloc0_array(PatternStep, strlen(source));
	while (*c)
	{
		PatternStep *step = &p->steps[p->nsteps++];
		const char *counted;
		bool		single = false;

		if (*c == '(')
		{
			const char *close = strchr(c, ')');

			if (close == NULL)
				elog(ERROR, "pattern with an open choice");
			step->kind = STEP_CHOICE;
			step->len = close - c - 1;
			step->text = pnstrdup(c + 1, step->len);
			c = close + 1;
			continue;
		}

		step->kind = STEP_SET;
		if (*c == '[')
			counted = parse_set(c + 1, &step->set);
		else if (*c == '\\')
		{
			single = strchr("wds", c[1]) == NULL;
			byteset_add_escape(&step->set, c[1]);
			counted = c + 2;
		}
		else
		{
			single = true;
			byteset_add(&step->set, *c, *c);
			counted = c + 1;
		}
		c = parse_count(counted, &step->min, &step->max);
		if (single && c == counted)
		{
			step->kind = STEP_LITERAL;
			step->text = palloc(strlen(source));
			step->text[0] = counted[-1];
			step->len = 1;
			if (p->nsteps > 1 && step[-1].kind == STEP_LITERAL)
			{
				step[-1].text[step[-1].len++] = step->text[0];
				memset(step, 0, sizeof(*step));
				p->nsteps--;
			}
		}
	}
	while (p->lead < p->nsteps && p->steps[p->lead].kind == STEP_SET)
		p->lead++;
	return p;
}

/* The length of the alternative that stands at `at`, or -1. */
static int
match_choice(const PatternStep *step, const uint8 *data, size_t len, size_t at)
{
	const char *from = step->text;

	for (;;)
	{
		const char *bar = strchr(from, '|');
		int			n = bar ? bar - from : strlen(from);

		if (at + n <= len && memcmp(data + at, from, n) == 0)
			return n;
		if (bar == NULL)
			return -1;
		from = bar + 1;
	}
}

bool
pattern_match(const Pattern *p, int step, const uint8 *data, size_t len,
			  size_t at, size_t *end, int *literal)
{
	bool		leading = true;

	*literal = 0;
	for (; step < p->nsteps; step++)
	{
		const PatternStep *s = &p->steps[step];
		int			n = 0;

		switch (s->kind)
		{
			case STEP_LITERAL:
				n = s->len;
				if (at + n > len || memcmp(data + at, s->text, n) != 0)
					return false;
				break;
			case STEP_CHOICE:
				n = match_choice(s, data, len, at);
				if (n < 0)
					return false;
				break;
			case STEP_SET:
				while (n < s->max && at + n < len &&
					   byteset_has(&s->set, data[at + n]))
					n++;
				if (n < s->min)
					return false;
				break;
		}
		leading = leading && s->kind != STEP_SET;
		if (leading)
			*literal += n;
		at += n;
	}
	*end = at;
	return true;
}

bool
pattern_lead(const Pattern *p, const uint8 *data, size_t at, size_t *start)
{
	for (int i = p->lead - 1; i >= 0; i--)
	{
		const PatternStep *s = &p->steps[i];
		int			n = 0;

		while (n < s->max && at > (size_t) n &&
			   byteset_has(&s->set, data[at - n - 1]))
			n++;
		if (n < s->min)
			return false;
		at -= n;
	}
	*start = at;
	return true;
}
