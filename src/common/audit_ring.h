/*
 * audit_ring.h
 *		Shared memory between those who act (audit.c) and the auditor who
 *		writes (src/audit/auditor.c).
 *
 * Each database with an auditor has an area: a ring of records, and how far
 * they are written. Positions count the bytes that ever went through the
 * area's ring; they only grow, even when the area changes hands, so that the
 * position behind a record serves as its owner's ticket: the record is in the
 * log once `written` has reached it.
 */
#ifndef MLINT_AUDIT_RING_H
#define MLINT_AUDIT_RING_H

#include "common/audit.h"
#include "common/crypto.h"
#include "access/xlogdefs.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#define AUDIT_RING_BYTES	(256 * 1024)

/* The texts of a record, in the order in which they are hashed. */
typedef enum AuditField
{
	AUDIT_ROLE,
	AUDIT_SESSION_ROLE,
	AUDIT_APPLICATION,
	AUDIT_CLIENT_ADDR,
	AUDIT_ACTION,
	AUDIT_OBJECT_TYPE,
	AUDIT_OBJECT,
	AUDIT_OUTCOME,
	AUDIT_DETAILS,
	AUDIT_NFIELDS
} AuditField;

#define AUDIT_NULL		0xFFFF	/* length of a text that is null */

typedef struct AuditRecord
{
	uint32		size;			/* with its texts, MAXALIGNed; 0: the ring
								 * goes on at its beginning */
	int32		pid;
	TimestampTz at;
	uint64		xid;			/* of the whole transaction; 0: none */
	uint64		subxid;			/* changed: whose fate it shares; 0: no one's */
	uint16		len[AUDIT_NFIELDS];
	char		texts[FLEXIBLE_ARRAY_MEMBER];	/* one after the other */
} AuditRecord;

#define AUDIT_RECORD_MAX \
	MAXALIGN(offsetof(AuditRecord, texts) + AUDIT_ENTRY_MAX)

/* Room for one record, on the stack. */
typedef union AuditRecordBuffer
{
	AuditRecord record;
	char		bytes[AUDIT_RECORD_MAX];
} AuditRecordBuffer;

typedef enum AuditorState
{
	AUDITOR_BUSY,				/* will look again before it sleeps */
	AUDITOR_GATHERING,			/* sleeps for a moment: wake it if urgent */
	AUDITOR_SLEEPING			/* wake it */
} AuditorState;

typedef struct AuditArea
{
	LWLock	   *lock;			/* all that follows */
	Oid			database;		/* InvalidOid: free */
	Oid			extension;		/* whose log this is */
	bool		open;			/* the auditor is there */
	Latch	   *latch;			/* the auditor's */
	AuditorState state;
	bool		resolve;		/* a transaction with changes was rolled back */
	uint64		head;			/* end of the last record */
	uint64		written;		/* up to here is committed, and free again */
	uint64		wanted;			/* up to here somebody waits for it */
	XLogRecPtr	lsn;			/* flushed to here, what is written is on disk */
	int64		seq;			/* the last entry of the log */
	uint8		hash[CRYPTO_SHA256_BYTES];
	/* What the auditor is committing; 0: nothing. */
	uint64		batch_end;
	TransactionId batch_xid;
	int64		batch_seq;

	/*
	 * Batches that were taken, up to where the last was, and who waits for it
	 * to be written or for the one after it: by turns, so that a commit wakes
	 * those whom it concerns.
	 */
	uint64		batch;
	uint64		taken;
	ConditionVariable moved[2];
	char		ring[AUDIT_RING_BYTES] pg_attribute_aligned(MAXIMUM_ALIGNOF);
} AuditArea;

/* ---- for the auditor ---- */

/*
 * Take the area of this database, or raise ERRCODE_CONFIGURATION_LIMIT_EXCEEDED.
 * What an auditor before has left in the ring is there, unless it was meant
 * for an extension that is gone. Up to *committed that auditor had committed,
 * but not come to say so. The area stays closed.
 */
extern AuditArea *audit_area_take(Oid extension, uint64 *committed);

/* Let callers in; and end that, whatever is in the ring. */
extern void audit_area_open(AuditArea *area);
extern void audit_area_close(AuditArea *area);

/* The record at a position; moves the position behind it. */
extern const AuditRecord *audit_area_read(AuditArea *area, uint64 *position);

/*
 * Fill in a record. details must be canonical: the text of a jsonb value.
 * A record that is too long raises an error.
 */
extern void audit_compose(AuditRecordBuffer *buffer, const char *action,
						  const char *object_type, const char *object,
						  AuditOutcome outcome, const char *details);

/*
 * The last entry that the present auditor has written, and that it may be
 * about to commit; false when there is none.
 */
extern bool audit_area_head(int64 *written, int64 *committing);

/*
 * What the audit room does for callers: have the launcher send an auditor;
 * write a record in the current transaction, which has created the extension
 * itself, so that nobody else could.
 */
extern void audit_register_room(void (*summon) (void),
								void (*write) (const AuditRecord *record));

#endif
