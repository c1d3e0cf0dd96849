/*
 * cursor.h
 *		How far a log has been read whose rows carry their transaction's id.
 *
 * A cursor is a snapshot, and a place within one transaction. Read are: the
 * rows of every transaction that the snapshot sees, and of partial_xid
 * those up to partial_id; the rest of that transaction is read before
 * anything else is, so that there is never more than one. A row of a transaction that was in
 * progress stays unread until it commits, however late, and holds up nobody.
 * Transaction ids are 64 bits wide here.
 */
#ifndef MLINT_CURSOR_H
#define MLINT_CURSOR_H

#include "utils/snapshot.h"

typedef struct Cursor
{
	uint64		xmax;			/* at and beyond this nothing is read */
	int			nxip;
	uint64	   *xip;			/* ascending: below xmax and not read */
	uint64		partial_xid;
	int64		partial_id;
} Cursor;

/* All of these allocate in the current context. */
extern Cursor *cursor_parse(const char *snapshot, uint64 partial_xid,
							int64 partial_id);
extern Cursor *cursor_copy(const Cursor *cursor);
extern void cursor_free(Cursor *cursor);

/* The text of a pg_snapshot. */
extern char *cursor_snapshot(const Cursor *cursor);

/* Everything that this MVCC snapshot sees. */
extern Cursor *cursor_at(Snapshot snapshot);

/*
 * Reading on: the ranges of transaction ids that hold what is not read and
 * visible now, in order; each from (from_xid, from_id) exclusive to before_xid
 * exclusive.
 */
typedef struct CursorRange
{
	uint64		from_xid;
	int64		from_id;
	uint64		before_xid;
} CursorRange;

extern int	cursor_ranges(const Cursor *cursor, const Cursor *now,
						  CursorRange **ranges);

/*
 * The cursor after reading these ranges: all of them, or, if stopped, in
 * their order up to (xid, id) inclusive.
 */
extern Cursor *cursor_advance(const Cursor *cursor, const Cursor *now,
							  bool stopped, uint64 xid, int64 id);

#endif
