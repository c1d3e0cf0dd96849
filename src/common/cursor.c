/*
 * cursor.c
 *		Arithmetic on cursors of logs; see cursor.h.
 */
#include "postgres.h"

#include "access/transam.h"
#include "lib/stringinfo.h"
#include "utils/snapshot.h"

#include "common/cursor.h"

static Cursor *
cursor_create(uint64 xmax, int room)
{
	Cursor	   *cursor = palloc0(sizeof(Cursor));

	cursor->xmax = xmax;
	cursor->xip = palloc(sizeof(uint64) * Max(room, 1));
	return cursor;
}

void
cursor_free(Cursor *cursor)
{
	pfree(cursor->xip);
	pfree(cursor);
}

Cursor *
cursor_copy(const Cursor *cursor)
{
	Cursor	   *copy = cursor_create(cursor->xmax, cursor->nxip);

	copy->nxip = cursor->nxip;
	memcpy(copy->xip, cursor->xip, sizeof(uint64) * cursor->nxip);
	copy->partial_xid = cursor->partial_xid;
	copy->partial_id = cursor->partial_id;
	return copy;
}

/* The text is xmin:xmax:xip,…, as pg_snapshot writes it. */
Cursor *
cursor_parse(const char *snapshot, uint64 partial_xid, int64 partial_id)
{
	Cursor	   *cursor;
	char	   *end;
	uint64		xmax;
	int			room = 1;

	for (const char *p = snapshot; *p; p++)
		room += *p == ',';
	(void) strtoull(snapshot, &end, 10);
	xmax = strtoull(end + 1, &end, 10);
	cursor = cursor_create(xmax, room);
	while (end[0] != '\0' && end[1] != '\0')
		cursor->xip[cursor->nxip++] = strtoull(end + 1, &end, 10);
	cursor->partial_xid = partial_xid;
	cursor->partial_id = partial_id;
	return cursor;
}

char *
cursor_snapshot(const Cursor *cursor)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":",
					 cursor->nxip > 0 ? cursor->xip[0] : cursor->xmax,
					 cursor->xmax);
	for (int i = 0; i < cursor->nxip; i++)
		appendStringInfo(&buf, "%s" UINT64_FORMAT, i > 0 ? "," : "",
						 cursor->xip[i]);
	return buf.data;
}

/* A transaction id of a current snapshot, widened by its epoch. */
static uint64
widen_xid(TransactionId xid, FullTransactionId next)
{
	uint64		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return (epoch << 32) | xid;
}

static int
compare_xid(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return x < y ? -1 : x > y;
}

Cursor *
cursor_at(Snapshot snapshot)
{
	FullTransactionId next = ReadNextFullTransactionId();
	Cursor	   *cursor = cursor_create(widen_xid(snapshot->xmax, next),
									   snapshot->xcnt);

	for (uint32 i = 0; i < snapshot->xcnt; i++)
		cursor->xip[cursor->nxip++] = widen_xid(snapshot->xip[i], next);
	qsort(cursor->xip, cursor->nxip, sizeof(uint64), compare_xid);
	return cursor;
}

static bool
in_progress(const Cursor *cursor, uint64 xid)
{
	return bsearch(&xid, cursor->xip, cursor->nxip, sizeof(uint64),
				   compare_xid) != NULL;
}

int
cursor_ranges(const Cursor *cursor, const Cursor *now, CursorRange **ranges)
{
	CursorRange *list = palloc(sizeof(CursorRange) * (cursor->nxip + 1));
	int			n = 0;

	/* A transaction that was begun is read to its end before any other. */
	if (cursor->partial_xid != 0)
	{
		list[0].from_xid = cursor->partial_xid;
		list[0].from_id = cursor->partial_id;
		list[0].before_xid = cursor->partial_xid + 1;
		*ranges = list;
		return 1;
	}

	/* Those that were in progress and have ended: one transaction each. */
	for (int i = 0; i < cursor->nxip; i++)
	{
		uint64		xid = cursor->xip[i];

		if (xid >= now->xmax || in_progress(now, xid))
			continue;
		list[n].from_xid = xid;
		list[n].from_id = 0;
		list[n++].before_xid = xid + 1;
	}

	/* Those that began since. */
	if (cursor->xmax < now->xmax)
	{
		list[n].from_xid = cursor->xmax;
		list[n].from_id = 0;
		list[n++].before_xid = now->xmax;
	}
	*ranges = list;
	return n;
}

/* The same when only the rest of partial_xid was to be read. */
static Cursor *
advance_partial(const Cursor *cursor, bool stopped, int64 id)
{
	Cursor	   *next = cursor_copy(cursor);

	if (stopped)
	{
		next->partial_id = id;
		return next;
	}
	next->partial_xid = 0;
	next->partial_id = 0;
	if (next->xmax == cursor->partial_xid)
		next->xmax++;
	next->nxip = 0;
	for (int i = 0; i < cursor->nxip; i++)
	{
		if (cursor->xip[i] != cursor->partial_xid)
			next->xip[next->nxip++] = cursor->xip[i];
	}
	return next;
}

Cursor *
cursor_advance(const Cursor *cursor, const Cursor *now, bool stopped,
			   uint64 xid, int64 id)
{
	Cursor	   *next;

	if (cursor->partial_xid != 0)
		return advance_partial(cursor, stopped, id);

	next = cursor_create(now->xmax, cursor->nxip + now->nxip);
	if (stopped)
	{
		next->xmax = Max(Min(xid, now->xmax), cursor->xmax);
		next->partial_xid = xid;
		next->partial_id = id;
	}
	else
		next->xmax = Max(now->xmax, cursor->xmax);

	for (int i = 0; i < cursor->nxip; i++)
	{
		uint64		old = cursor->xip[i];

		/* Ended ones are read now, but for those beyond where we stopped. */
		if (old >= now->xmax || in_progress(now, old) ||
			(stopped && old >= xid))
			next->xip[next->nxip++] = old;
	}
	for (int i = 0; i < now->nxip; i++)
	{
		uint64		running = now->xip[i];

		if (running >= cursor->xmax && running < next->xmax)
			next->xip[next->nxip++] = running;
	}
	return next;
}
