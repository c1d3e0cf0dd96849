/*
 * archive_read.c
 *		Looking into archives: as jsonb, as text, and whether they are whole.
 *
 * Digest and length are known to be right only at the end, so nothing is
 * handed out before: archive_get() gathers the document, archive_document()
 * puts its pieces into a tuplestore, which goes to disk when it is large.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "archive/archive_row.h"
#include "archive/document.h"
#include "common/argument.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/plaintext.h"
#include "common/trial.h"

PG_FUNCTION_INFO_V1(mlint_archive_get);
PG_FUNCTION_INFO_V1(mlint_archive_document);
PG_FUNCTION_INFO_V1(mlint_archive_verify);

/* What the strings, or the members, of one jsonb may have together. */
#define JSONB_MAX_BYTES		JENTRY_OFFLENMASK

static void
archive_get_row(FunctionCallInfo fcinfo, ArchiveRow *row)
{
	pg_uuid_t  *id = required_uuid(fcinfo, 0, "id");

	if (!archive_find(id, row))
		archive_unknown(id);
}

static void
pg_attribute_noreturn()
too_large(const ArchiveRow *row)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("the document of archive \"%s\" is too large for a jsonb",
					archive_id_text(&row->form.id)),
			 errdetail("It has " INT64_FORMAT " bytes; a jsonb holds at most %u.",
					   row->form.plain_bytes, JSONB_MAX_BYTES),
			 errhint("mlint.archive_document() returns it as text, in pieces; mlint.archive_restore() makes it a session again.")));
}

static void
take_into_buffer(const char *data, size_t len, void *arg)
{
	appendBinaryStringInfo(arg, data, (int) len);
}

/* mlint.archive_get(id) */
Datum
mlint_archive_get(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	ArchiveRow	row;
	StringInfoData document;
	volatile Datum result = (Datum) 0;

	archive_get_row(fcinfo, &row);
	if (row.form.plain_bytes > JSONB_MAX_BYTES)
		too_large(&row);
	initStringInfo(&document);
	enlargeStringInfo(&document, (int) row.form.plain_bytes);
	chunk_read(&row.form, take_into_buffer, &document);

	/* Many small numbers need several times their text. */
	PG_TRY();
	{
		text	   *own = plaintext_give(document.data, document.len);

		pfree(document.data);
		result = DirectFunctionCall1(jsonb_in,
									 CStringGetDatum(text_to_cstring(own)));
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_PROGRAM_LIMIT_EXCEEDED &&
			error->sqlerrcode != ERRCODE_INTERNAL_ERROR)
			PG_RE_THROW();
		FlushErrorState();
		too_large(&row);
	}
	PG_END_TRY();
	PG_RETURN_DATUM(result);
}

/* Whole characters for rows of text; what is cut waits for the rest. */
typedef struct Pieces
{
	ReturnSetInfo *result;
	MemoryContext context;
	StringInfoData rest;
} Pieces;

static void
put_piece(Pieces *pieces, int len)
{
	MemoryContext old = MemoryContextSwitchTo(pieces->context);
	bool		isnull = false;
	Datum		value = PointerGetDatum(plaintext_give(pieces->rest.data, len));

	tuplestore_putvalues(pieces->result->setResult, pieces->result->setDesc,
						 &value, &isnull);
	MemoryContextSwitchTo(old);
	MemoryContextReset(pieces->context);
	pieces->rest.len -= len;
	memmove(pieces->rest.data, pieces->rest.data + len, pieces->rest.len);
}

static void
take_into_rows(const char *data, size_t len, void *arg)
{
	Pieces	   *pieces = arg;
	int			whole;

	appendBinaryStringInfo(&pieces->rest, data, (int) len);
	if (pieces->rest.len < CHUNK_BYTES)
		return;
	whole = pg_encoding_mbcliplen(PG_UTF8, pieces->rest.data,
								  pieces->rest.len, CHUNK_BYTES);
	if (whole > 0)
		put_piece(pieces, whole);
}

/* mlint.archive_document(id) */
Datum
mlint_archive_document(PG_FUNCTION_ARGS)
{
	ArchiveRow	row;
	Pieces		pieces;

	archive_get_row(fcinfo, &row);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	pieces.result = (ReturnSetInfo *) fcinfo->resultinfo;
	pieces.context = AllocSetContextCreate(CurrentMemoryContext,
										   "mlint archive piece",
										   ALLOCSET_DEFAULT_SIZES);
	initStringInfo(&pieces.rest);
	chunk_read(&row.form, take_into_rows, &pieces);
	while (pieces.rest.len > 0)
		put_piece(&pieces,
				  pg_encoding_mbcliplen(PG_UTF8, pieces.rest.data,
										pieces.rest.len, CHUNK_BYTES));
	return (Datum) 0;
}

/* ---- verifying ---- */

typedef struct Check
{
	const ArchiveRow *row;
	DocumentReader *reader;
	int64		messages;
	bool		session;		/* it is of the one that the row says */
} Check;

static void
visit_to_check(bool session, const DocumentField *fields, int nfields,
			   void *arg)
{
	Check	   *check = arg;
	Plaintext	session_id;

	check->messages += !session;
	if (!session)
		return;
	session_id = plaintext_take(CStringGetTextDatum(check->row->session_id));
	for (int i = 0; i < nfields; i++)
	{
		if (strcmp(fields[i].name, "session_id") == 0 &&
			fields[i].len == session_id.len &&
			memcmp(fields[i].value, session_id.data, session_id.len) == 0)
			check->session = true;
	}
}

static void
take_to_check(const char *data, size_t len, void *arg)
{
	Check	   *check = arg;

	if (!document_read(check->reader, data, len))
		chunk_corrupt(&check->row->form,
					  "It is not the document of a session.");
}

void
archive_check(const ArchiveRow *row)
{
	Check		check = {.row = row};

	check.reader = document_reader_begin(visit_to_check, &check);
	chunk_read(&row->form, take_to_check, &check);
	if (!document_reader_end(check.reader))
		chunk_corrupt(&row->form, "It is not the document of a session.");
	if (!check.session)
		chunk_corrupt(&row->form, "It is of another session than its row says.");
	if (check.messages != row->messages)
		chunk_corrupt(&row->form, "It has not as many messages as its row says.");
}

/* mlint.archive_verify(id) */
Datum
mlint_archive_verify(PG_FUNCTION_ARGS)
{
	ArchiveRow	row;
	Trial		trial;
	ErrorData  *volatile error = NULL;

	archive_get_row(fcinfo, &row);
	trial_begin(&trial);
	PG_TRY();
	{
		archive_check(&row);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		error = trial_failed(&trial);
	}
	PG_END_TRY();
	if (error == NULL)
		PG_RETURN_BOOL(true);
	if (error->sqlerrcode != ERRCODE_MLINT_ARCHIVE_CORRUPT)
		ReThrowError(error);
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("%s", error->message),
			 errdetail("%s", error->detail)));
	PG_RETURN_BOOL(false);
}
