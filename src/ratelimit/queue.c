/*
 * queue.c
 *		Lines of backends that wait for a key; see queue.h.
 *
 * All that wait, for whatever key, are in one list in order of arrival; a
 * key's line is those of the list who wait for it. So there is nothing to
 * allocate, and nothing of a line is left when its last leaves. A backend has
 * one place, since it waits for one key at a time.
 *
 * The list has one lock. It is taken when somebody joins, leaves or wakes up,
 * which is when a backend goes to sleep or to work anyway. The table's locks
 * are taken while it is held, never the other way round: that a line begins or
 * ends and that the table knows of it is one step.
 */
#include "postgres.h"

#include "common/int.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"

#include "common/shmem.h"
#include "ratelimit/queue.h"

typedef struct Place
{
	dlist_node	node;			/* in the list, while waiting */
	bool		waiting;		/* written by its owner alone */
	RateKey		key;
	int64		cost;
	Latch	   *latch;
} Place;

typedef struct Lines
{
	LWLock	   *lock;			/* the list, and what is in it */
	dlist_head	waiting;		/* in order of arrival */
	Place		places[FLEXIBLE_ARRAY_MEMBER];	/* by number of the backend */
} Lines;

static Lines *lines = NULL;

/* Auxiliary processes run no SQL, and come behind all others in the array. */
static Place *
my_place(void)
{
	ptrdiff_t	number = MyProc - ProcGlobal->allProcs;

	if (number >= MaxBackends)
		elog(ERROR, "this process cannot wait for a rate limit");
	return &lines->places[number];
}

static bool
same_key(const RateKey *a, const RateKey *b)
{
	return a->hash == b->hash && a->rule == b->rule && a->len == b->len &&
		memcmp(a->text, b->text, Min(a->len, RATE_KEY_TEXT)) == 0;
}

/* Who is the first to wait for a key? */
static Place *
first_of_line(const RateKey *key)
{
	dlist_iter	iter;

	dlist_foreach(iter, &lines->waiting)
	{
		Place	   *place = dlist_container(Place, node, iter.cur);

		if (same_key(&place->key, key))
			return place;
	}
	return NULL;
}

void
queue_join(const RateKey *key, int64 cost)
{
	Place	   *place = my_place();

	Assert(!place->waiting);
	LWLockAcquire(lines->lock, LW_EXCLUSIVE);
	if (first_of_line(key) == NULL)
		table_set_waiting(key, true);
	place->key = *key;
	place->cost = cost;
	place->latch = MyLatch;
	place->waiting = true;
	dlist_push_tail(&lines->waiting, &place->node);
	LWLockRelease(lines->lock);
}

bool
queue_in_line(const RateKey *key)
{
	Place	   *place = my_place();

	return place->waiting && same_key(&place->key, key);
}

int64
queue_ahead(void)
{
	Place	   *mine = my_place();
	int64		ahead = 0;
	dlist_iter	iter;

	LWLockAcquire(lines->lock, LW_SHARED);
	dlist_foreach(iter, &lines->waiting)
	{
		Place	   *place = dlist_container(Place, node, iter.cur);

		if (place == mine)
			break;
		if (same_key(&place->key, &mine->key) &&
			pg_add_s64_overflow(ahead, place->cost, &ahead))
			ahead = PG_INT64_MAX;
	}
	LWLockRelease(lines->lock);
	return ahead;
}

void
queue_leave(void)
{
	Place	   *place = my_place();
	Place	   *first;
	bool		was_first;

	if (!place->waiting)
		return;
	LWLockAcquire(lines->lock, LW_EXCLUSIVE);
	was_first = first_of_line(&place->key) == place;
	dlist_delete(&place->node);
	place->waiting = false;
	first = first_of_line(&place->key);
	if (first == NULL)
		table_set_waiting(&place->key, false);
	else if (was_first)
		SetLatch(first->latch);
	LWLockRelease(lines->lock);
}

void
queue_wake(void)
{
	dlist_iter	iter;

	LWLockAcquire(lines->lock, LW_SHARED);
	dlist_foreach(iter, &lines->waiting)
		SetLatch(dlist_container(Place, node, iter.cur)->latch);
	LWLockRelease(lines->lock);
}

/* ---- shared memory ---- */

static Size
lines_size(void)
{
	return add_size(offsetof(Lines, places),
					mul_size(MaxBackends, sizeof(Place)));
}

static int
lines_locks(void)
{
	return 1;
}

static void
lines_init(LWLockPadded *locks)
{
	lines->lock = &locks[0].lock;
	dlist_init(&lines->waiting);
}

static const SharedPart lines_part = {
	.name = "mlint rate queue",
	.size = lines_size,
	.locks = lines_locks,
	.memory = (void **) &lines,
	.init = lines_init,
};

void
queue_init(void)
{
	shared_part(&lines_part);
}
