/*
 * archive_remove.c
 *		Archives that go: deleted for good, or back to live rows.
 *
 * The data key is destroyed with the archive, so that what backups and old WAL
 * hold of it cannot be read either (secrets/datakey.h).
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/json.h"

#include "archive/archive.h"
#include "archive/archive_row.h"
#include "common/audit.h"
#include "common/owner.h"
#include "retention/retention.h"
#include "secrets/datakey.h"
#include "sessions/sessions.h"

PG_FUNCTION_INFO_V1(mlint_archive_delete);

void
archive_drop(const ArchiveRow *row)
{
	static SPIPlanPtr chunks = NULL;
	static SPIPlanPtr archive = NULL;
	static SPIPlanPtr garbage = NULL;
	Oid			types[2] = {UUIDOID, INT4OID};
	Datum		values[2] = {UUIDPGetDatum(&row->form.id),
	Int32GetDatum(row->form.store)};

	if (garbage == NULL)
	{
		chunks = SPI_prepare("DELETE FROM mlint.archive_chunk WHERE archive = $1",
							 1, types);
		SPI_keepplan(chunks);
		archive = SPI_prepare("DELETE FROM mlint.archive WHERE id = $1", 1,
							  types);
		SPI_keepplan(archive);
		garbage = SPI_prepare("INSERT INTO mlint.archive_garbage (archive, store) VALUES ($1, $2)",
							  2, types);
		SPI_keepplan(garbage);
	}
	latest_execute(chunks, values);
	if (latest_execute(archive, values) != 1)
		elog(ERROR, "archive %s is not there",
			 archive_id_text(&row->form.id));
	if (row->form.store != 0)
		latest_execute(garbage, values);
	if (row->form.data_key != 0)
		data_key_destroy(row->form.data_key);
}

bool
archive_remove(const pg_uuid_t *id)
{
	OwnerScope	scope;
	ArchiveRow	row;
	bool		found;

	owner_begin(&scope);
	found = archive_lock(id, &row);
	if (found)
	{
		retention_refuse_held(row.session,
							  psprintf("archive \"%s\"", archive_id_text(id)));
		archive_drop(&row);
		session_remove(row.session);
	}
	owner_end(&scope);
	return found;
}
