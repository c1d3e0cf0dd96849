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

/* Is what runs now one of our own statements? */
extern bool owner_scope_open(void);

#endif
