/*
 * archive.h
 *		Archives of sessions, for the other rooms.
 *
 * An archived session keeps its row of mlint.session (status archived); what was
 * said in it is a document (document.h), compressed and sealed in chunks
 * (chunk.h), in the database or an object store (store.h). Each archive has a
 * data key of its own (secrets/datakey.h).
 */
#ifndef MLINT_ARCHIVE_H
#define MLINT_ARCHIVE_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* Settings. Called once by _PG_init. */
extern void archive_init(void);

/* How a session is archived. */
typedef struct ArchiveRequest
{
	int			retention_days;
	const char *policy;			/* a name; NULL: one that matches, if any */
	const char *compliance;		/* a level to keep to as well; NULL: none */
	Datum		tags;			/* text[] of the archive; 0: none */
	Jsonb	   *metadata;		/* of the archive; NULL: none */
} ArchiveRequest;

typedef enum ArchiveResult
{
	ARCHIVE_DONE,
	ARCHIVE_SKIPPED				/* locked by another transaction, active since
								 * inactive_since, archived or gone */
} ArchiveResult;

/*
 * Archive a session in the current transaction, audited. skip says that what is
 * locked, or has had a sign of life since inactive_since, is passed over; else
 * that is waited for, and inactive_since does not count. All other failures
 * raise. bytes is the document's size.
 */
extern ArchiveResult archive_session(const char *session_id,
									 const ArchiveRequest *request,
									 bool skip, TimestampTz inactive_since,
									 pg_uuid_t *id, int64 *bytes);

/*
 * Remove an archive with its bytes, its data key and its session: from here
 * when the transaction commits, from an object store soon after. Locks the
 * session first. False: there is no such archive (any more). Audits nothing:
 * that is the caller's, who knows why. Raises ERRCODE_MLINT_HELD.
 */
extern bool archive_remove(const pg_uuid_t *id);

#endif
