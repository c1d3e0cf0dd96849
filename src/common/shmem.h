/*
 * shmem.h
 *		Shared memory of a room: asked for, found and set up in one way.
 *
 * A room describes what it wants in a static SharedPart and hands that over
 * from its _init(), in the postmaster. Everything else is the two hooks that
 * PostgreSQL has for it, which are installed once for all rooms.
 *
 * For tables that grow there is a SharedArea inside such a part: a dsa area
 * that begins in the main shared memory and grows by segments, with dshash
 * tables in it.
 */
#ifndef MLINT_SHMEM_H
#define MLINT_SHMEM_H

#include "lib/dshash.h"
#include "storage/lwlock.h"
#include "utils/dsa.h"

typedef struct SharedPart
{
	const char *name;			/* of the memory and of its locks */
	Size		(*size) (void); /* called once the settings are read */
	int			(*locks) (void);	/* how many LWLocks; NULL: none */

	/*
	 * The memory, in every process. init is called once, in the postmaster
	 * (again after a crash), with zeroed memory and the locks.
	 */
	void	  **memory;
	void		(*init) (LWLockPadded *locks);
} SharedPart;

extern void shared_part(const SharedPart *part);

#define SHARED_MAX_TABLES	2

typedef struct SharedTable
{
	size_t		key_size;
	size_t		entry_size;
} SharedTable;

/* In shared memory; bytes is what lies in the main shared memory. */
typedef struct SharedArea
{
	int			tranche;
	Size		bytes;
	dshash_table_handle tables[SHARED_MAX_TABLES];
	char		start[FLEXIBLE_ARRAY_MEMBER];
} SharedArea;

extern Size shared_area_size(Size bytes);

/* In init: make the area and its tables. */
extern void shared_area_create(SharedArea *shared, Size bytes,
							   const SharedTable *tables, int ntables);

/*
 * In a process: attach, for its life. Returns the area; the tables are put
 * into attached, in the order of their making.
 */
extern dsa_area *shared_area_attach(SharedArea *shared, const char *name,
									const SharedTable *tables, int ntables,
									dshash_table **attached);

#endif
