/*
 * archive.c
 *		Settings of the room, and its archives as rows.
 *
 * Whoever changes what an archive holds has its session locked first, and then
 * the row. In between it is read anew, with a snapshot taken after the lock:
 * in REPEATABLE READ, too, what counts is what is there.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "archive/archive.h"
#include "archive/store.h"
#include "archive/archive_row.h"
#include "archive/dictionary.h"
#include "common/compat.h"
#include "common/rows.h"
#include "secrets/datakey.h"
#include "sessions/sessions.h"

int			archive_compression = 3;
bool		archive_encryption = true;

extern void archive_session_by_default(const char *session_id);

void
archive_init(void)
{
	store_define_settings();
	DefineCustomIntVariable("mlint.archive_compression",
							"Level at which zstd compresses new archives; 0 turns it off.",
							"Levels above 3 take several times as long for a few percent less.",
							&archive_compression, 3, 0, 19, PGC_SUSET, 0,
							NULL, NULL, NULL);
	DefineCustomBoolVariable("mlint.archive_encryption",
							 "Encrypt new archives, each under a data key of its own.",
							 "An archive without a key cannot be made unreadable by destroying one.",
							 &archive_encryption, true, PGC_SUSET, 0,
							 NULL, NULL, NULL);
	dictionary_init();
	session_register_archiver(archive_session_by_default);
}

char *
archive_id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

void
archive_unknown(const pg_uuid_t *id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("archive \"%s\" does not exist", archive_id_text(id)),
			 errhint("View mlint.archives shows the archives.")));
}

uint64
latest_execute(SPIPlanPtr plan, Datum *values)
{
	int			result;

	PushActiveSnapshot(GetLatestSnapshot());
	result = SPI_execute_snapshot(plan, values, NULL, GetActiveSnapshot(),
								  InvalidSnapshot, false, true, 0);
	PopActiveSnapshot();
	if (result < 0)
		elog(ERROR, "a statement failed: %s", SPI_result_code_string(result));
	return SPI_processed;
}

/* The name of a session, palloc'd; NULL: there is none. */
static char *
session_name(int64 session)
{
	ScanKeyData key;
	RowScan		scan;
	HeapTuple	tuple;
	char	   *name = NULL;
	bool		isnull;

	row_key(&key, get_attnum(mlint_relation("session"), "id"), F_INT8EQ,
			Int64GetDatum(session));
	rows_begin(&scan, "session", "session_pkey", 1, &key, false);
	tuple = rows_next(&scan);
	if (tuple)
		name = TextDatumGetCString(heap_getattr(tuple,
												SPI_fnumber(scan.desc,
															"session_id"),
												scan.desc, &isnull));
	rows_end(&scan);
	return name;
}

/* A column of an archive; null is 0. */
static Datum
column(HeapTuple tuple, TupleDesc desc, const char *name)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, SPI_fnumber(desc, name), desc,
									 &isnull);

	return isnull ? (Datum) 0 : value;
}

bool
archive_find(const pg_uuid_t *id, ArchiveRow *row)
{
	ScanKeyData key;
	RowScan		scan;
	HeapTuple	tuple;

	row_key(&key, 1, F_UUID_EQ, UUIDPGetDatum(id));
	rows_begin(&scan, "archive", "archive_pkey", 1, &key, false);
	tuple = rows_next(&scan);
	if (tuple)
	{
		TupleDesc	d = scan.desc;
		ArchiveForm *f = &row->form;
		bytea	   *digest = DatumGetByteaPP(column(tuple, d, "sha256"));

		memset(row, 0, sizeof(*row));
		f->id = *id;
		f->data_key = DatumGetInt64(column(tuple, d, "data_key"));
		f->level = DatumGetInt16(column(tuple, d, "zstd_level"));
		f->dictionary = DatumGetInt32(column(tuple, d, "dictionary"));
		f->plain_bytes = DatumGetInt64(column(tuple, d, "plain_bytes"));
		f->stored_bytes = DatumGetInt64(column(tuple, d, "stored_bytes"));
		f->chunks = DatumGetInt32(column(tuple, d, "chunks"));
		f->store = DatumGetInt32(column(tuple, d, "store"));
		memcpy(f->sha256, VARDATA_ANY(digest),
			   Min(VARSIZE_ANY_EXHDR(digest), sizeof(f->sha256)));
		row->session = DatumGetInt64(column(tuple, d, "session"));
		row->messages = DatumGetInt32(column(tuple, d, "messages"));
	}
	rows_end(&scan);
	if (tuple)
		row->session_id = session_name(row->session);
	return tuple != NULL && row->session_id != NULL;
}

static bool
find_latest(const pg_uuid_t *id, ArchiveRow *row)
{
	bool		found;

	PushActiveSnapshot(GetLatestSnapshot());
	found = archive_find(id, row);
	PopActiveSnapshot();
	return found;
}

bool
archive_lock(const pg_uuid_t *id, ArchiveRow *row)
{
	static SPIPlanPtr lock = NULL;
	Oid			types[1] = {UUIDOID};
	Datum		values[1] = {UUIDPGetDatum(id)};
	Session		session;

	if (!find_latest(id, row) ||
		!session_lock(row->session_id, false, &session))
		return false;
	if (lock == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare("SELECT FROM mlint.archive WHERE id = $1 FOR UPDATE",
									   1, types);

		SPI_keepplan(plan);
		lock = plan;
	}
	return latest_execute(lock, values) == 1 && find_latest(id, row) &&
		row->session == session.id;
}
