/*
 * append.h
 *		Appending rows to a table of ours, where that must cost little.
 *
 * A row goes straight into the table, past the executor: no plan, no routing
 * to partitions, no check of privileges that nobody has, no trigger. What is
 * needed for that, the table and its indexes, is looked up once, and again when
 * anything about it has changed.
 *
 * The table is an ordinary one; its indexes have no expressions, predicates
 * or deferred checks.
 */
#ifndef MLINT_APPEND_H
#define MLINT_APPEND_H

#include "access/htup.h"
#include "nodes/execnodes.h"
#include "utils/relcache.h"

typedef struct AppendTarget
{
	const char *name;			/* for messages: "the event log" */

	/*
	 * Say which table takes new rows now, in `table`, and in `from` those
	 * whose invalidation means that this may be another one by now.
	 */
	void		(*find) (struct AppendTarget *target);
	Oid			table;
	Oid			from[2];

	/* append.c's own */
	bool		valid;			/* nothing has changed since */
	bool		complete;		/* and it was looked up to the end */
	int			nindexes;
	Oid		   *indexes;
	IndexInfo **infos;
	MemoryContext context;
} AppendTarget;

/* Once, in the room's _init(). */
extern void append_watch(AppendTarget *target);

/* Have find() called, unless nothing has changed since it was. */
extern void append_know(AppendTarget *target);

/*
 * Open the table that takes new rows, as find() says now. It stays locked
 * (ROW EXCLUSIVE) until the transaction ends: whoever then has it alone knows
 * all that will ever be in it, if find() says another one.
 */
extern Relation append_open(AppendTarget *target);

/* Append one row, with a value or null for each column. */
extern ItemPointerData append_row(AppendTarget *target, Relation table,
								  Datum *values, bool *nulls);

#endif
