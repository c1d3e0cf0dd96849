/*
 * configured.h
 *		Things that an administrator configures: a name, a kind and options,
 *		one row of a table each.
 *
 * A room says in a static ConfiguredSort what its sort of thing is called and
 * what kinds of it there are. Its SQL functions to create, alter and drop are
 * then a call of the like-named function here and what the room does besides:
 * reset a breaker, wake a job. Names, kinds, options, credentials, the audit
 * log and the words of errors are the same for all of them.
 *
 * The table is mlint.<identifier>, with the columns id (int), name (unique),
 * kind, options (jsonb), altered_at and, for a sort that is owned, created_by.
 * The views mlint.<identifier>s and mlint.<identifier>_kinds and the functions
 * mlint.<identifier>_create() and _alter() are named in hints.
 */
#ifndef MLINT_CONFIGURED_H
#define MLINT_CONFIGURED_H

#include "common/compat.h"
#include "common/option.h"
#include "fmgr.h"

/* What a room's own struct of a kind begins with, as a member "base". */
typedef struct ConfiguredKind
{
	const char *name;
	const char *help;			/* one line */
	const Option *options;
	size_t		options_size;	/* of the struct that they fill */
	bool		runs_sql;		/* as the creator: only who can be that may
								 * alter it */
} ConfiguredKind;

/* One of them. */
typedef struct Configured
{
	int32		id;				/* 0: it is being created */
	char	   *name;
	char	   *what;			/* "DNS provider \"x\"", for messages */
	const ConfiguredKind *kind;
	Jsonb	   *options;
	void	   *parsed;			/* the options in the kind's struct */
	Oid			created_by;		/* of a sort that is owned */
} Configured;

typedef struct ConfiguredSort
{
	const char *noun;			/* "DNS provider": in messages */
	const char *identifier;		/* "dns_provider": in SQL, and in the audit
								 * log */
	const ConfiguredKind *const *kinds; /* NULL-terminated */
	const Option *options;		/* what every kind has, too; or NULL */
	const char *reserved;		/* a name that none can have, or NULL, */
	const char *reserved_for;	/* and why: a sentence */
	bool		owned;

	/* For kinds that are modules: the whole of one. Raises, or returns NULL. */
	const ConfiguredKind *(*load) (const char *kind, bool missing_ok);

	/*
	 * What the tables of options cannot say, and whether this role may have
	 * it; raises what is wrong. "action" is for an entry of what was denied.
	 */
	void		(*check) (const Configured *c, Oid role, const char *action);

	/* In an owner scope, the row locked: raise if it cannot be dropped. */
	void		(*check_drop) (int32 id, const char *name);
} ConfiguredSort;

/* mlint.x_create(name, kind, options); returns the id. */
extern int32 configured_create(const ConfiguredSort *sort,
							   FunctionCallInfo fcinfo);

/*
 * mlint.x_alter(name, options): merged, null takes one away. With more
 * arguments, which are the room's, options may be null and stay as they are.
 * Returns the id; the row is locked.
 */
extern int32 configured_alter(const ConfiguredSort *sort,
							  FunctionCallInfo fcinfo);

/* mlint.x_drop(name); returns the id that it had. */
extern int32 configured_drop(const ConfiguredSort *sort,
							 FunctionCallInfo fcinfo);

/* mlint.x_options() */
extern Datum configured_options(const ConfiguredSort *sort,
								FunctionCallInfo fcinfo);

/*
 * By its name, or by its id when that is NULL; palloc'd, options parsed.
 * False when there is none.
 */
extern bool configured_find(const ConfiguredSort *sort, const char *name,
							int32 id, Configured *found);

/* Raise that there is none. */
extern void pg_attribute_noreturn() configured_missing(const ConfiguredSort *sort,
													   const char *name);

/* ---- parts, for a room whose rows are not found by a name alone ---- */

/* Raises ERRCODE_MLINT_CONFIGURATION with the kinds that there are. */
extern const ConfiguredKind *configured_kind(const ConfiguredSort *sort,
											 const char *name);

/* Raises ERRCODE_INVALID_NAME, or ERRCODE_RESERVED_NAME. */
extern void configured_check_name(const ConfiguredSort *sort,
								  const char *name);

/*
 * May the current user have it with these options, and its creator, if that is
 * another? Takes name, kind, options and created_by, fills what and parsed,
 * and keeps the statement out of the log. "verb" is "create" or "alter".
 */
extern void configured_check(const ConfiguredSort *sort, Configured *c,
							 const char *verb);

/* The names of the options, and the kind unless NULL, for the audit log. */
extern char *configured_details(const char *kind, Jsonb *options);

/* The options in the kind's struct, palloc'd. */
extern void *configured_parse(const ConfiguredSort *sort,
							  const ConfiguredKind *kind, Jsonb *options,
							  const char *what);

#endif
