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
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "archive/archive.h"
#include "archive/archive_row.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/owner.h"
#include "retention/retention.h"
#include "secrets/datakey.h"
#include "sessions/sessions.h"

PG_FUNCTION_INFO_V1(mlint_archive_delete);

/* Of a reason, in bytes. */
#define REASON_MAX		1000

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

/*
 * What the log says of an archive that is deleted by hand; and is that before
 * the end of a period that a policy or a compliance level demands?
 */
static char *
delete_details(const pg_uuid_t *id, const char *session_id,
			   const char *reason, bool *early)
{
	Oid			types[] = {UUIDOID, TEXTOID, TEXTOID};
	Datum		values[] = {UUIDPGetDatum(id),
		CStringGetTextDatum(session_id),
	reason ? CStringGetTextDatum(reason) : (Datum) 0};
	bool		isnull;
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	HeapTuple	row;
	TupleDesc	desc;
	char	   *details;

	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT json_strip_nulls(json_build_object("
							  "'session', $2, 'reason', $3, 'policy', policy,"
							  " 'compliance', compliance,"
							  " 'expires_at', ends_at))::text,"
							  " coalesce(policy, compliance) IS NOT NULL"
							  " AND ends_at > clock_timestamp()"
							  " FROM mlint.archive_periods"
							  " WHERE archive_id = $1",
							  3, types, values, reason ? NULL : "  n", true,
							  1) != SPI_OK_SELECT || SPI_processed != 1)
		archive_unknown(id);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	details = MemoryContextStrdup(caller,
								  TextDatumGetCString(SPI_getbinval(row, desc,
																	1, &isnull)));
	*early = DatumGetBool(SPI_getbinval(row, desc, 2, &isnull));
	owner_end(&scope);
	return details;
}

/* mlint.archive_delete(id, reason) */
Datum
mlint_archive_delete(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id;
	char	   *reason = NULL;
	char	   *details;
	bool		early;
	ArchiveRow	row;

	require_writable(fcinfo);
	id = required_uuid(fcinfo, 0, "id");
	if (!PG_ARGISNULL(1))
		reason = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (reason && strlen(reason) > REASON_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("reason must be at most %d bytes long", REASON_MAX)));
	PushActiveSnapshot(GetLatestSnapshot());
	if (!archive_find(id, &row))
		archive_unknown(id);
	details = delete_details(id, row.session_id, reason, &early);
	if (early && !has_privs_of_role(GetUserId(),
									get_role_oid("mlint_admin", false)))
	{
		audit(AUDIT_DENIED, "archive.delete", "archive", archive_id_text(id),
			  details);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the retention period of archive \"%s\" is not over",
						archive_id_text(id)),
				 errhint("mlint.archive_periods shows when it ends. Until then only a member of mlint_admin may delete the archive.")));
	}
	audit(AUDIT_CHANGED, "archive.delete", "archive", archive_id_text(id),
		  details);
	PopActiveSnapshot();
	if (!archive_remove(id))
		archive_unknown(id);
	PG_RETURN_VOID();
}
