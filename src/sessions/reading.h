/*
 * reading.h
 *		Reading queries that are put together from what the caller asks for.
 *
 * Conditions that are not asked for are not in the text, and values are known
 * to the planner, so that each query gets the index that serves it.
 */
#ifndef MLINT_SESSIONS_READING_H
#define MLINT_SESSIONS_READING_H

#include "fmgr.h"
#include "lib/stringinfo.h"

#define READING_ARGUMENTS		16

typedef struct Reading
{
	StringInfoData sql;
	bool		has_where;
	int			nargs;
	Oid			types[READING_ARGUMENTS];
	Datum		values[READING_ARGUMENTS];
} Reading;

extern void reading_begin(Reading *reading, const char *sql);

/* Add a value; returns its number, n of $n. */
extern int	reading_value(Reading *reading, Oid type, Datum value);

/* Add a condition on one value; a %d in it is that value's number. */
extern void reading_where(Reading *reading, const char *condition, Oid type,
						  Datum value) pg_attribute_printf(2, 0);

/*
 * Run it in the calling statement's snapshot; its rows are the result of a
 * function that returns a set of them.
 */
extern Datum reading_rows(Reading *reading, FunctionCallInfo fcinfo);

/*
 * The same when there is one column and one row, a copy; or, with latest, of
 * what is committed now.
 */
extern Datum reading_one(Reading *reading, bool latest, bool *isnull);

#endif
