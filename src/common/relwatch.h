/*
 * relwatch.h
 *		Being told that a table has changed.
 *
 * What this process keeps of a table's rows is stale when the table's relcache
 * invalidation comes, which whoever changes them sends in the changing
 * transaction (CacheInvalidateRelcacheByRelid).
 */
#ifndef MLINT_RELWATCH_H
#define MLINT_RELWATCH_H

#include "utils/inval.h"

/*
 * Call this for every invalidation, for the life of the process; with
 * InvalidOid for all tables. It is called at any time and anywhere, so it only
 * takes note.
 */
extern void relation_watch(RelcacheCallbackFunction changed, Datum arg);

#endif
