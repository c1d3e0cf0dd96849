/*
 * audit.h
 *		The one way into the audit log.
 *
 * Whatever configures, reads a secret, is denied, overrides a limit, deletes
 * or purges calls audit() once. The entry goes to shared memory, where a
 * rollback does not reach it, and from there the auditor of the database
 * writes it into mlint.audit_log, chained by hash.
 */
#ifndef MLINT_AUDIT_H
#define MLINT_AUDIT_H

typedef enum AuditOutcome
{
	/*
	 * The transaction changes something. The entry is in the log before the
	 * transaction can commit, and says so if it was rolled back. The call
	 * assigns a transaction id.
	 */
	AUDIT_CHANGED,

	/*
	 * Something took place whatever becomes of the transaction: a secret was
	 * read, a request was sent. With mlint.audit_durability = flush the entry
	 * is on disk when the call returns.
	 */
	AUDIT_DONE,
	/* It was refused, or was tried and failed; an ereport(ERROR) follows. */
	AUDIT_DENIED,
	AUDIT_FAILED
} AuditOutcome;

/*
 * Enter one action. "action" is "noun.verb" ("secret.read"), object_type and
 * object say on what (object may be NULL), details is the text of a JSON
 * object or NULL; never a secret value. Names are in the database's encoding;
 * all is copied, and together at most AUDIT_ENTRY_MAX bytes.
 *
 * The entry names the current user; within owner_begin() and owner_end(), the
 * one before. It needs a transaction.
 *
 * Waits on the latch while the ring is full, and as said above. Raises
 * ERRCODE_MLINT_AUDIT when nobody writes the log (a standby; an auditor that
 * does not come up within ten seconds), so that what cannot be accounted for
 * does not happen. Call it before the effect of AUDIT_DONE.
 */
#define AUDIT_ENTRY_MAX		8192

extern void audit(AuditOutcome outcome, const char *action,
				  const char *object_type, const char *object,
				  const char *details);

/* As much of a text as goes into details; as JSON it may be six times as long. */
extern char *audit_clip(const char *text);

/*
 * A prepared transaction has ended, so that the auditor may have to say that
 * its changes were rolled back.
 */
extern void audit_prepared_ended(void);

/* Settings and shared memory. Called once by _PG_init. */
extern void audit_init(void);

#endif
