/*
 * shmem.c
 *		Shared memory of a room; see shmem.h.
 */
#include "postgres.h"

#include "common/shmem.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"

#define MAX_PARTS	16

static const SharedPart *parts[MAX_PARTS];
static int	nparts = 0;
static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static void
request_all(void)
{
	if (previous_request_hook)
		previous_request_hook();
	for (int i = 0; i < nparts; i++)
	{
		RequestAddinShmemSpace(parts[i]->size());
		if (parts[i]->locks)
			RequestNamedLWLockTranche(parts[i]->name, parts[i]->locks());
	}
}

static void
startup_all(void)
{
	if (previous_startup_hook)
		previous_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	for (int i = 0; i < nparts; i++)
	{
		Size		size = parts[i]->size();
		bool		found;

		*parts[i]->memory = ShmemInitStruct(parts[i]->name, size, &found);
		if (!found)
		{
			memset(*parts[i]->memory, 0, size);
			parts[i]->init(parts[i]->locks ?
						   GetNamedLWLockTranche(parts[i]->name) : NULL);
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

void
shared_part(const SharedPart *part)
{
	if (nparts == MAX_PARTS)
		elog(ERROR, "too many parts of shared memory");
	if (nparts == 0)
	{
		previous_request_hook = shmem_request_hook;
		shmem_request_hook = request_all;
		previous_startup_hook = shmem_startup_hook;
		shmem_startup_hook = startup_all;
	}
	parts[nparts++] = part;
}

/* ---- areas ---- */

Size
shared_area_size(Size bytes)
{
	return add_size(add_size(offsetof(SharedArea, start), bytes),
					MAXIMUM_ALIGNOF);
}

static void *
area_start(SharedArea *shared)
{
	return (void *) MAXALIGN(shared->start);
}

static void
table_parameters(const SharedArea *shared, const SharedTable *table,
				 dshash_parameters *params)
{
	memset(params, 0, sizeof(*params));
	params->key_size = table->key_size;
	params->entry_size = table->entry_size;
	params->compare_function = dshash_memcmp;
	params->hash_function = dshash_memhash;
#if PG_VERSION_NUM >= 170000
	params->copy_function = dshash_memcpy;
#endif
	params->tranche_id = shared->tranche;
}

void
shared_area_create(SharedArea *shared, Size bytes, const SharedTable *tables,
				   int ntables)
{
	dsa_area   *area;

	Assert(ntables <= SHARED_MAX_TABLES);
	shared->tranche = LWLockNewTrancheId();
	shared->bytes = bytes;
	area = dsa_create_in_place(area_start(shared), bytes, shared->tranche,
							   NULL);
	dsa_pin(area);
	/* The postmaster must not create segments: keep to what is here. */
	dsa_set_size_limit(area, bytes);
	for (int i = 0; i < ntables; i++)
	{
		dshash_parameters params;
		dshash_table *created;

		table_parameters(shared, &tables[i], &params);
		created = dshash_create(area, &params, NULL);
		shared->tables[i] = dshash_get_hash_table_handle(created);
		dshash_detach(created);
	}
	dsa_set_size_limit(area, SIZE_MAX);
	dsa_detach(area);
}

dsa_area *
shared_area_attach(SharedArea *shared, const char *name,
				   const SharedTable *tables, int ntables,
				   dshash_table **attached)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	dsa_area   *area;

	LWLockRegisterTranche(shared->tranche, name);
	area = dsa_attach_in_place(area_start(shared), NULL);
	dsa_pin_mapping(area);
	for (int i = 0; i < ntables; i++)
	{
		dshash_parameters params;

		table_parameters(shared, &tables[i], &params);
		attached[i] = dshash_attach(area, &params, shared->tables[i], NULL);
	}
	MemoryContextSwitchTo(old);
	return area;
}
