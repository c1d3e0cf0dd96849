/*
 * owner.h
 *		SQL of our own on our own tables, in the middle of a caller's call.
 *
 * Our tables have no grants. A C function that must touch them runs its SPI
 * statements as the bootstrap superuser, between owner_begin() and
 * owner_end(), with a search_path that nobody else can write to; an error in
 * between restores the caller's identity by itself, at transaction abort.
 */
#ifndef MLINT_OWNER_H
#define MLINT_OWNER_H

#include "executor/spi.h"

typedef struct OwnerScope
{
	Oid			user;
	int			context;
	int			guc_level;
} OwnerScope;

/* Also connects to SPI. */
extern void owner_begin(OwnerScope *scope);
extern void owner_end(OwnerScope *scope);

/*
 * Who it is done for: the current user, or the one who was it when the
 * outermost of our scopes began.
 */
extern Oid	owner_caller(void);

/*
 * Run a statement, in a scope, and keep its plan in *plan for the next time
 * (NULL: don't). What it comes to is "expected", or an error.
 */
extern void owner_run(SPIPlanPtr *plan, const char *sql, int expected,
					  int nargs, Oid *types, Datum *values,
					  const char *nulls);

/*
 * The same in a scope of its own, for a statement whose rows nobody reads.
 * Were there any: returned, inserted, changed?
 */
extern bool owner_do(SPIPlanPtr *plan, const char *sql, int expected,
					 int nargs, Oid *types, Datum *values, const char *nulls);

/* A column, from 1, of the first row that it returned. */
extern Datum owner_column(int n, bool *isnull);

/* One of type text, palloc'd; or NULL. */
extern char *owner_text(int n);

/* Is what runs now one of our own statements? */
extern bool owner_scope_open(void);

#endif
