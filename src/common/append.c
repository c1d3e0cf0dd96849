/*
 * append.c
 *		Appending rows past the executor; see append.h.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "common/append.h"
#include "common/relwatch.h"

static void
forget_target(Datum arg, Oid relation)
{
	AppendTarget *target = (AppendTarget *) DatumGetPointer(arg);

	if (relation == InvalidOid || relation == target->table ||
		relation == target->from[0] || relation == target->from[1])
		target->valid = false;
}

void
append_watch(AppendTarget *target)
{
	relation_watch(forget_target, PointerGetDatum(target));
}

static bool
target_known(const AppendTarget *target)
{
	return target->valid && target->complete;
}

/* Keep what index_insert() wants to know of one index. */
static void
keep_index(AppendTarget *target, Oid oid)
{
	Relation	index = index_open(oid, RowExclusiveLock);
	MemoryContext old = MemoryContextSwitchTo(target->context);
	IndexInfo  *info = BuildIndexInfo(index);

	MemoryContextSwitchTo(old);
	if (info->ii_Expressions || info->ii_Predicate)
		elog(ERROR, "index \"%s\" on %s has expressions or a predicate, which are not maintained",
			 RelationGetRelationName(index), target->name);
	/* One being built will be announced when it is ready. */
	if (info->ii_ReadyForInserts)
	{
		target->indexes[target->nindexes] = oid;
		target->infos[target->nindexes++] = info;
	}
	index_close(index, RowExclusiveLock);
}

static void
find_target(AppendTarget *target)
{
	Relation	table;
	List	   *indexes;
	ListCell   *lc;

	/* Cancelled half-way, or changed meanwhile, it does not count. */
	target->complete = false;
	target->nindexes = 0;
	if (target->context)
		MemoryContextReset(target->context);
	else
		target->context = AllocSetContextCreate(CacheMemoryContext,
												"mlint append",
												ALLOCSET_SMALL_SIZES);
	target->valid = true;
	target->find(target);

	table = table_open(target->table, RowExclusiveLock);
	if (table->rd_rel->relam != HEAP_TABLE_AM_OID)
		elog(ERROR, "\"%s\" is not a heap table",
			 RelationGetRelationName(table));
	indexes = RelationGetIndexList(table);
	target->indexes = MemoryContextAlloc(target->context, sizeof(Oid) *
										 Max(list_length(indexes), 1));
	target->infos = MemoryContextAlloc(target->context, sizeof(IndexInfo *) *
									   Max(list_length(indexes), 1));
	foreach(lc, indexes)
		keep_index(target, lfirst_oid(lc));
	table_close(table, RowExclusiveLock);
	target->complete = true;
}

void
append_know(AppendTarget *target)
{
	if (!target_known(target))
		find_target(target);
}

Relation
append_open(AppendTarget *target)
{
	for (;;)
	{
		Relation	table;

		append_know(target);
		table = try_table_open(target->table, RowExclusiveLock);
		if (table && target_known(target))
			return table;
		if (table)
			table_close(table, RowExclusiveLock);
		target->valid = false;
	}
}

ItemPointerData
append_row(AppendTarget *target, Relation table, Datum *values, bool *nulls)
{
	HeapTuple	tuple = heap_form_tuple(RelationGetDescr(table), values,
										nulls);
	ItemPointerData place;

	heap_insert(table, tuple, GetCurrentCommandId(true), 0, NULL);
	for (int i = 0; i < target->nindexes; i++)
	{
		Relation	index = index_open(target->indexes[i], RowExclusiveLock);
		IndexInfo  *info = target->infos[i];
		Datum		keys[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];

		for (int k = 0; k < info->ii_NumIndexAttrs; k++)
		{
			int			att = info->ii_IndexAttrNumbers[k] - 1;

			keys[k] = values[att];
			isnull[k] = nulls[att];
		}
		(void) index_insert(index, keys, isnull, &tuple->t_self, table,
							info->ii_Unique ? UNIQUE_CHECK_YES :
							UNIQUE_CHECK_NO, false, info);
		index_close(index, RowExclusiveLock);
	}
	place = tuple->t_self;
	heap_freetuple(tuple);
	return place;
}
