/*
 * relwatch.c
 *		One relcache callback for all rooms.
 *
 * A process of PostgreSQL has room for ten of them, its own included, and ends
 * when somebody asks for one more.
 */
#include "postgres.h"

#include "common/relwatch.h"
#include "utils/memutils.h"

typedef struct Watcher
{
	RelcacheCallbackFunction changed;
	Datum		arg;
	struct Watcher *next;
} Watcher;

static Watcher *watchers = NULL;

static void
tell(Datum arg, Oid relation)
{
	for (Watcher *w = watchers; w; w = w->next)
		w->changed(w->arg, relation);
}

void
relation_watch(RelcacheCallbackFunction changed, Datum arg)
{
	Watcher    *watcher = MemoryContextAlloc(TopMemoryContext,
											 sizeof(Watcher));

	if (!watchers)
		CacheRegisterRelcacheCallback(tell, (Datum) 0);
	watcher->changed = changed;
	watcher->arg = arg;
	watcher->next = watchers;
	watchers = watcher;
}
