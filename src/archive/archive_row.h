/*
 * archive_row.h
 *		Rows of mlint.archive, between the files of this room.
 */
#ifndef MLINT_ARCHIVE_ROW_H
#define MLINT_ARCHIVE_ROW_H

#include "archive/chunk.h"
#include "common/compat.h"

/* Settings. */
extern int	archive_compression;
extern bool archive_encryption;

typedef struct ArchiveRow
{
	ArchiveForm form;
	int64		session;
	char	   *session_id;		/* palloc'd */
	int			messages;
} ArchiveRow;

/* As the active snapshot sees it. False: there is none. */
extern bool archive_find(const pg_uuid_t *id, ArchiveRow *row);

/*
 * Lock its session, then the archive, until the transaction ends, and read it
 * as it is then. In an owner scope. False: there is none.
 */
extern bool archive_lock(const pg_uuid_t *id, ArchiveRow *row);

/*
 * Raise ERRCODE_MLINT_ARCHIVE_CORRUPT unless it is whole, as the active
 * snapshot sees it, and of the session that its row says.
 */
extern void archive_check(const ArchiveRow *row);

/* ERRCODE_UNDEFINED_OBJECT */
extern void pg_attribute_noreturn() archive_unknown(const pg_uuid_t *id);

/* palloc'd */
extern char *archive_id_text(const pg_uuid_t *id);

/*
 * Delete chunks, row and data key of a locked archive; an object in a store
 * becomes garbage. The session is the caller's. In an owner scope.
 */
extern void archive_drop(const ArchiveRow *row);

/*
 * Execute a statement that was prepared and kept, with what is committed now
 * whatever the transaction's snapshot is. Returns SPI_processed.
 */
extern uint64 latest_execute(struct _SPI_plan *plan, Datum *values);

#endif
