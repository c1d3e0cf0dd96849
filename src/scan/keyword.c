/*
 * keyword.c
 *		All keywords of all rules, looked for in one pass over the text.
 *
 * The automaton of Aho and Corasick, made deterministic: one state a prefix of
 * a keyword, and for each state and character the next state, whether the
 * character goes on or falls back. The text is read byte by byte without ever
 * stepping back, at the same speed whatever the number of keywords. Letters
 * are folded to lower case on the way.
 *
 * Characters that occur in no keyword share one column of the table, which
 * makes it small enough for the cache. An entry holds the offset of the next
 * state's row, and in its lowest bit whether keywords end there.
 *
 * In the server encodings no byte of a multi-byte character is ASCII, so
 * that bytes can be compared where keywords are ASCII.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "scan/scan.h"

/* A keyword that ends in a state, and the next of that state. */
typedef struct KeywordEnd
{
	int			rule;
	int			len;
	int			next;			/* -1: no more */
} KeywordEnd;

typedef struct KeywordState
{
	int			depth;
	int			ends;			/* own keywords: index, or -1 */
	int			shorter;		/* nearest suffix that has keywords, or 0 */
	int			fallback;
} KeywordState;

struct KeywordIndex
{
	uint8		columns[256];
	int			ncolumns;
	KeywordState *states;
	int			nstates;
	int			states_max;
	uint32	   *next;			/* state * 128 while built, then rows */
	KeywordEnd *ends;
	int			nends;
	int			ends_max;
};

/* Bytes of text between two looks at interrupts. */
#define KEYWORD_STRIDE	(256 * 1024)

static uint8
fold(uint8 c)
{
	return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
}

static int
state_add(KeywordIndex *index, int depth)
{
	KeywordState *state;

	if (index->nstates == index->states_max)
	{
		index->states_max *= 2;
		index->states = repalloc_array(index->states, KeywordState,
									   index->states_max);
		index->next = repalloc_huge(index->next, sizeof(uint32) * 128 *
									index->states_max);
	}
	state = &index->states[index->nstates];
	state->depth = depth;
	state->ends = -1;
	state->shorter = 0;
	state->fallback = 0;
	memset(index->next + (Size) index->nstates * 128, 0, sizeof(uint32) * 128);
	return index->nstates++;
}

KeywordIndex *
keyword_index_create(void)
{
	KeywordIndex *index = palloc0(sizeof(KeywordIndex));

	index->states_max = 1024;
	index->states = palloc_array(KeywordState, index->states_max);
	index->next = palloc(sizeof(uint32) * 128 * index->states_max);
	index->ends_max = 256;
	index->ends = palloc_array(KeywordEnd, index->ends_max);
	index->ncolumns = 1;
	state_add(index, 0);
	return index;
}

/* The keyword is ASCII. */
void
keyword_index_add(KeywordIndex *index, const char *keyword, int rule)
{
	int			state = 0;
	KeywordEnd *end;

	for (const char *p = keyword; *p; p++)
	{
		uint8		c = fold(*p);
		uint32		next;

		Assert(c < 128);
		if (index->columns[c] == 0)
			index->columns[c] = index->ncolumns++;
		next = index->next[(Size) state * 128 + c];
		if (next == 0)
		{
			next = state_add(index, index->states[state].depth + 1);
			index->next[(Size) state * 128 + c] = next;
		}
		state = next;
	}
	if (index->nends == index->ends_max)
	{
		index->ends_max *= 2;
		index->ends = repalloc_array(index->ends, KeywordEnd,
									 index->ends_max);
	}
	end = &index->ends[index->nends];
	end->rule = rule;
	end->len = strlen(keyword);
	end->next = index->states[state].ends;
	index->states[state].ends = index->nends++;
}

/* Complete every state's row, in the order of depth, and pack the table. */
void
keyword_index_finish(KeywordIndex *index)
{
	int		   *queue = palloc_array(int, index->nstates);
	int			head = 0;
	int			tail = 0;
	uint32	   *rows;

	queue[tail++] = 0;
	while (head < tail)
	{
		int			state = queue[head++];
		uint32	   *next = index->next + (Size) state * 128;
		int			fallback = index->states[state].fallback;

		for (int c = 0; c < 128; c++)
		{
			uint32		fall = state == 0 ? 0 :
			index->next[(Size) fallback * 128 + c];
			KeywordState *child;

			if (index->columns[c] == 0)
				continue;
			if (next[c] == 0)
			{
				next[c] = fall;
				continue;
			}
			child = &index->states[next[c]];
			child->fallback = fall;
			child->shorter = index->states[fall].ends >= 0 ? (int) fall :
				index->states[fall].shorter;
			queue[tail++] = next[c];
		}
	}
	pfree(queue);

	rows = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(uint32) *
								  index->nstates * index->ncolumns);
	for (int state = 0; state < index->nstates; state++)
	{
		uint32	   *row = rows + (Size) state * index->ncolumns;

		row[0] = 0;
		for (int c = 0; c < 128; c++)
		{
			int			to = index->next[(Size) state * 128 + c];

			if (index->columns[c] == 0)
				continue;
			row[index->columns[c]] = (uint32) to * index->ncolumns * 2 +
				(index->states[to].ends >= 0 ||
				 index->states[to].shorter != 0);
		}
	}
	pfree(index->next);
	index->next = rows;
	for (int c = 'A'; c <= 'Z'; c++)
		index->columns[c] = index->columns[fold(c)];
}

/* Report every keyword that ends in this state. */
static void
visit_ends(const KeywordIndex *index, uint32 state, size_t end,
		   KeywordVisitor visit, void *arg)
{
	do
	{
		for (int e = index->states[state].ends; e >= 0;
			 e = index->ends[e].next)
			visit(index->ends[e].rule, index->ends[e].len, end, arg);
		state = index->states[state].shorter;
	} while (state != 0);
}

void
keyword_index_scan(const KeywordIndex *index, const uint8 *data, size_t len,
				   KeywordVisitor visit, void *arg)
{
	const uint32 *rows = index->next;
	const uint8 *columns = index->columns;
	uint32		entry = 0;

	for (size_t from = 0; from < len; from += KEYWORD_STRIDE)
	{
		size_t		to = Min(len, from + KEYWORD_STRIDE);

		CHECK_FOR_INTERRUPTS();
		for (size_t i = from; i < to; i++)
		{
			entry = rows[(entry >> 1) + columns[data[i]]];
			if (unlikely(entry & 1))
				visit_ends(index, (entry >> 1) / index->ncolumns, i + 1,
						   visit, arg);
		}
	}
}
