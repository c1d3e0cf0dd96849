/*
 * usage.c
 *		What the files of this room have in common.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"

#include "common/errors.h"
#include "common/rows.h"
#include "usage/usage.h"
#include "usage/usagelog.h"

#define NAME_MAX_BYTES		255

/* Columns of mlint.usage_fold and mlint.session. */
enum
{
	FOLD_ONE = 1, FOLD_FOLDED, FOLD_LOG, FOLD_SPARE, FOLD_DRAINED, FOLD_RESTING
};
enum
{
	SESSION_ID = 1, SESSION_NAME, SESSION_MODEL_ID, SESSION_MODEL_VERSION,
	SESSION_STATUS, SESSION_TAGS
};

void
usage_init(void)
{
	usage_track_init();
	usage_budget_init();
}

void
usage_position(Snapshot snapshot, bool folded, UsagePosition *position)
{
	RowScan		scan;
	HeapTuple	row;
	bool		isnull;

	rows_begin(&scan, "usage_fold", "usage_fold_pkey", 0, NULL,
			   snapshot == NULL);
	row = rows_next(&scan);
	if (!row)
		elog(ERROR, "mlint.usage_fold is empty");
	position->log = DatumGetInt32(heap_getattr(row, FOLD_LOG, scan.desc,
											   &isnull));
	position->resting = DatumGetBool(heap_getattr(row, FOLD_RESTING,
												  scan.desc, &isnull));
	position->other_done = DatumGetBool(heap_getattr(row, FOLD_SPARE,
													 scan.desc, &isnull));
	if (!position->other_done)
	{
		(void) heap_getattr(row, FOLD_DRAINED, scan.desc, &isnull);
		position->other_done = !isnull;
	}
	position->folded = NULL;
	if (folded)
	{
		Datum		value = heap_getattr(row, FOLD_FOLDED, scan.desc,
										 &isnull);

		position->folded =
			cursor_parse(DatumGetCString(DirectFunctionCall1(pg_snapshot_out,
															 value)), 0, 0);
	}
	rows_end(&scan);
}

Oid
usage_log_table(int log)
{
	return mlint_relation(log == 1 ? "usage_log_1" : "usage_log_2");
}

Oid
usage_log_index(int log)
{
	return mlint_relation(log == 1 ? "usage_log_1_xid" : "usage_log_2_xid");
}

bool
usage_session(const char *session_id, int64 id, bool latest,
			  UsageSession *session)
{
	RowScan		scan;
	ScanKeyData key;
	HeapTuple	row;
	bool		isnull;

	if (session_id)
		row_key(&key, SESSION_NAME, F_TEXTEQ, CStringGetTextDatum(session_id));
	else
		row_key(&key, SESSION_ID, F_INT8EQ, Int64GetDatum(id));
	rows_begin(&scan, "session", session_id ? "session_session_id_key" :
			   "session_pkey", 1, &key, latest);
	row = rows_next(&scan);
	if (row)
	{
		session->id = DatumGetInt64(heap_getattr(row, SESSION_ID, scan.desc,
												 &isnull));
		session->session_id =
			TextDatumGetCString(heap_getattr(row, SESSION_NAME, scan.desc,
											 &isnull));
		session->model_id =
			TextDatumGetCString(heap_getattr(row, SESSION_MODEL_ID, scan.desc,
											 &isnull));
		session->model_version =
			TextDatumGetCString(heap_getattr(row, SESSION_MODEL_VERSION,
											 scan.desc, &isnull));
		session->tags = PointerGetDatum(DatumGetArrayTypePCopy(
															   heap_getattr(row, SESSION_TAGS,
																			scan.desc,
																			&isnull)));
		deconstruct_array(DatumGetArrayTypeP(session->tags), TEXTOID, -1,
						  false, TYPALIGN_INT, &session->tag, NULL,
						  &session->ntags);
	}
	rows_end(&scan);
	return row != NULL;
}

void
usage_check_name(const char *name, const char *what)
{
	size_t		len = strlen(name);

	if (len == 0 || len > NAME_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be 1 to %d bytes long, not %zu", what,
						NAME_MAX_BYTES, len)));
	for (const char *p = name; *p; p++)
	{
		if ((unsigned char) *p < ' ' || *p == 0x7f)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s contains a control character", what)));
	}
}

void
usage_check_currency(const char *currency)
{
	size_t		len = strlen(currency);

	if (len < 3 || len > 8 ||
		strspn(currency, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not a currency", currency),
				 errhint("A currency is 3 to 8 upper case letters, such as USD or EUR.")));
}
