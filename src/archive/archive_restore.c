/*
 * archive_restore.c
 *		An archived session as live rows again.
 *
 * The document is read twice: first to see that it is whole, so that nothing is
 * done with one that is not, and then to insert what it holds. Its session stays
 * locked meanwhile. Everything is as it was, but for active_at: a restored
 * session has just had a sign of life, or the scheduler would archive it again.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "archive/archive_row.h"
#include "archive/document.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/owner.h"
#include "common/rows.h"
#include "sessions/sessions.h"

PG_FUNCTION_INFO_V1(mlint_archive_restore);

typedef struct Restoration
{
	const ArchiveRow *row;
	DocumentReader *reader;
	DocumentColumn *columns;	/* of mlint.message */
	int			ncolumns;
	SPIPlanPtr	insert;			/* session, then the columns */
	Datum	   *values;
	char	   *nulls;
	MemoryContext context;		/* of one message */
	SessionStatus status;		/* the session's, and when it was last changed */
	TimestampTz updated_at;
} Restoration;

/* ---- values ---- */

/* Text as the database has it. */
static char *
own_text(const DocumentField *field, size_t *len)
{
	char	   *own = field->value;

	*len = field->len;
	if (GetDatabaseEncoding() != PG_UTF8 &&
		GetDatabaseEncoding() != PG_SQL_ASCII)
	{
		size_t		room = field->len * MAX_CONVERSION_GROWTH + 1;
		Oid			conversion = FindDefaultConversionProc(PG_UTF8,
														   GetDatabaseEncoding());

		own = palloc_extended(room, MCXT_ALLOC_HUGE);
		*len = 0;
		for (size_t at = 0; at < field->len;)
		{
			int			piece = pg_encoding_mbcliplen(PG_UTF8,
													  field->value + at,
													  (int) Min(field->len - at,
																INT_MAX / 8),
													  INT_MAX / 8);

			if (pg_do_encoding_conversion_buf(conversion, PG_UTF8,
											  GetDatabaseEncoding(),
											  (unsigned char *) field->value + at,
											  piece,
											  (unsigned char *) own + *len,
											  (int) Min(room - *len, INT_MAX),
											  false) != piece)
				elog(ERROR, "a conversion ended early");
			*len += strlen(own + *len);
			at += piece;
		}
	}
	return own;
}

static Datum
json_datum(const DocumentField *field)
{
	size_t		len;
	char	   *own = own_text(field, &len);

	if (field->string)
	{
		StringInfoData quoted;

		initStringInfo(&quoted);
		escape_json(&quoted, own);
		own = quoted.data;
	}
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(own));
}

static Datum
field_datum(const DocumentField *field, Oid type)
{
	size_t		len;
	char	   *own;

	switch (type)
	{
		case TEXTOID:
			own = own_text(field, &len);
			return PointerGetDatum(cstring_to_text_with_len(own, (int) len));
		case JSONBOID:
			return json_datum(field);
		case UUIDOID:
			return DirectFunctionCall1(uuid_in, CStringGetDatum(field->value));
		case TIMESTAMPTZOID:
			return DirectFunctionCall3(timestamptz_in,
									   CStringGetDatum(field->value),
									   ObjectIdGetDatum(InvalidOid),
									   Int32GetDatum(-1));
		case INT8OID:
			return DirectFunctionCall1(int8in, CStringGetDatum(field->value));
		case INT4OID:
			return DirectFunctionCall1(int4in, CStringGetDatum(field->value));
		case FLOAT8OID:
			return DirectFunctionCall1(float8in,
									   CStringGetDatum(field->value));
		case BOOLOID:
			return DirectFunctionCall1(boolin, CStringGetDatum(field->value));
		default:
			elog(ERROR, "documents have no values of type %u", type);
	}
}

/* ---- rows ---- */

static void
prepare_insert(Restoration *restoration)
{
	Relation	relation = table_open(mlint_relation("message"),
									  AccessShareLock);
	StringInfoData sql;
	StringInfoData places;
	Oid		   *types;
	int			n;

	restoration->columns = document_columns(RelationGetDescr(relation),
											"session", &n);
	restoration->ncolumns = n;
	types = palloc(sizeof(Oid) * (n + 1));
	types[0] = INT8OID;
	initStringInfo(&sql);
	initStringInfo(&places);
	for (int i = 0; i < n; i++)
	{
		appendStringInfo(&sql, ", %s",
						 quote_identifier(restoration->columns[i].name));
		appendStringInfo(&places, ", $%d", i + 2);
		types[i + 1] = restoration->columns[i].type;
	}
	restoration->insert = SPI_prepare(psprintf("INSERT INTO mlint.message (session%s) VALUES ($1%s)",
											   sql.data, places.data),
									  n + 1, types);
	if (restoration->insert == NULL)
		elog(ERROR, "could not prepare the statement of a message");
	restoration->values = palloc(sizeof(Datum) * (n + 1));
	restoration->nulls = palloc(n + 1);
	restoration->values[0] = Int64GetDatum(restoration->row->session);
	restoration->nulls[0] = ' ';
	table_close(relation, NoLock);
}

static void
insert_message(Restoration *restoration, const DocumentField *fields,
			   int nfields)
{
	int			at = 0;

	/* Both are in the same order. */
	for (int i = 0; i < restoration->ncolumns; i++)
	{
		const DocumentColumn *column = &restoration->columns[i];
		bool		found = at < nfields &&
		strcmp(fields[at].name, column->name) == 0;

		restoration->nulls[i + 1] = found ? ' ' : 'n';
		restoration->values[i + 1] = found ?
			field_datum(&fields[at++], column->type) : (Datum) 0;
	}
	if (at < nfields)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("archive \"%s\" has messages with \"%s\", which mlint.message has no column for",
						archive_id_text(&restoration->row->form.id),
						fields[at].name),
				 errhint("Was it made by a later version of mlint?")));
	if (SPI_execute_plan(restoration->insert, restoration->values,
						 restoration->nulls, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not insert a message");
}

static void
take_session(Restoration *restoration, const DocumentField *fields,
			 int nfields)
{
	static const struct
	{
		const char *word;
		SessionStatus status;
	}			words[] = {
		{"active", SESSION_ACTIVE}, {"completed", SESSION_COMPLETED},
		{"failed", SESSION_FAILED}
	};

	for (int i = 0; i < nfields; i++)
	{
		if (strcmp(fields[i].name, "updated_at") == 0)
			restoration->updated_at = DatumGetTimestampTz(field_datum(&fields[i],
																	  TIMESTAMPTZOID));
		else if (strcmp(fields[i].name, "status") == 0)
		{
			for (int w = 0; w < lengthof(words); w++)
			{
				if (strcmp(fields[i].value, words[w].word) == 0)
					restoration->status = words[w].status;
			}
		}
	}
}

static void
visit(bool session, const DocumentField *fields, int nfields, void *arg)
{
	Restoration *restoration = arg;
	MemoryContext old = MemoryContextSwitchTo(restoration->context);

	CHECK_FOR_INTERRUPTS();
	if (session)
		take_session(restoration, fields, nfields);
	else
		insert_message(restoration, fields, nfields);
	MemoryContextSwitchTo(old);
	MemoryContextReset(restoration->context);
}

static void
take(const char *data, size_t len, void *arg)
{
	Restoration *restoration = arg;

	if (!document_read(restoration->reader, data, len))
		chunk_corrupt(&restoration->row->form,
					  "It is not the document of a session.");
}

static void
set_session(const Restoration *restoration)
{
	Oid			types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(restoration->row->session),
	TimestampTzGetDatum(restoration->updated_at)};
	SPIPlanPtr	plan;

	session_status_set(restoration->row->session, restoration->status);
	plan = SPI_prepare("UPDATE mlint.session SET updated_at = $2 WHERE id = $1",
					   2, types);
	if (plan == NULL || latest_execute(plan, values) != 1)
		elog(ERROR, "a session that is locked is gone");
	SPI_freeplan(plan);
}

static void
restore(const ArchiveRow *row)
{
	Restoration restoration = {.row = row};

	restoration.context = AllocSetContextCreate(CurrentMemoryContext,
												"mlint restore",
												ALLOCSET_DEFAULT_SIZES);
	restoration.reader = document_reader_begin(visit, &restoration);
	prepare_insert(&restoration);
	PushActiveSnapshot(GetLatestSnapshot());
	archive_check(row);
	chunk_read(&row->form, take, &restoration);
	PopActiveSnapshot();
	set_session(&restoration);
	archive_drop(row);
}

/* mlint.archive_restore(id) */
Datum
mlint_archive_restore(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = required_uuid(fcinfo, 0, "id");
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	ArchiveRow	row;
	StringInfoData details;
	char	   *session_id;

	require_writable(fcinfo);
	owner_begin(&scope);
	if (!archive_lock(id, &row))
		archive_unknown(id);
	session_id = MemoryContextStrdup(caller, row.session_id);
	initStringInfo(&details);
	appendStringInfoString(&details, "{\"session\": ");
	escape_json(&details, session_id);
	appendStringInfoChar(&details, '}');
	audit(AUDIT_CHANGED, "archive.restore", "archive", archive_id_text(id),
		  details.data);
	restore(&row);
	owner_end(&scope);
	PG_RETURN_TEXT_P(cstring_to_text(session_id));
}
