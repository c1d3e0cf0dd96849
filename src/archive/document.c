/*
 * document.c
 *		Writing a session as its document; see document.h.
 *
 * The columns are taken from the tables as they are, so that one that is added
 * there is in the documents too. Messages are read by their index, past the
 * executor, and deleted in the same pass; that is also what makes sure that
 * what is written and what is deleted is the same.
 *
 * A message is held in memory once, and not even that when it lies out of line
 * without compression: then in slices. Everything else is a buffer of a fixed
 * size that is handed on when it is full.
 *
 * Text is most of the work. It is copied eight bytes at a time as long as none
 * of the eight must be escaped.
 */
#include "postgres.h"

#include <math.h>

#include "access/detoast.h"
#include "access/heapam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "archive/document.h"
#include "common/compat.h"
#include "common/rows.h"

#define BUFFER_BYTES	65536
#define SLICE_BYTES		(1024 * 1024)
/* A byte becomes at most six: \u001f. */
#define ESCAPE_GROWTH	6

typedef struct Document
{
	const char *session_id;
	const char *message;		/* that is being written, for errors */
	int			encoding;
	DocumentSink sink;
	void	   *arg;
	int64		prompts;		/* what its messages say, added up */
	int64		responses;
	double		prompt_tokens;
	double		completion_tokens;
	int64		bytes;			/* handed on */
	size_t		used;
	char		buffer[BUFFER_BYTES];
} Document;

/* ---- bytes ---- */

static void
flush(Document *doc)
{
	if (doc->used == 0)
		return;
	doc->sink(doc->buffer, doc->used, doc->arg);
	doc->bytes += doc->used;
	doc->used = 0;
}

static inline void
put(Document *doc, const char *data, size_t len)
{
	if (len > BUFFER_BYTES - doc->used)
	{
		flush(doc);
		if (len > BUFFER_BYTES)
		{
			doc->sink(data, len, doc->arg);
			doc->bytes += len;
			return;
		}
	}
	memcpy(doc->buffer + doc->used, data, len);
	doc->used += len;
}

static inline void
put_char(Document *doc, char c)
{
	put(doc, &c, 1);
}

static inline void
put_cstring(Document *doc, const char *text)
{
	put(doc, text, strlen(text));
}

/* Must one of these eight bytes be escaped? */
static inline bool
any_escaped(uint64 x)
{
	const uint64 ones = UINT64CONST(0x0101010101010101);
	const uint64 tops = UINT64CONST(0x8080808080808080);
	uint64		quote = x ^ (ones * '"');
	uint64		backslash = x ^ (ones * '\\');

	return (((x - ones * 0x20) & ~x) | ((quote - ones) & ~quote) |
			((backslash - ones) & ~backslash)) & tops;
}

/* One byte as JSON has it; returns where the next one goes. */
static inline char *
escape_byte(char *out, unsigned char c)
{
	static const char digits[] = "0123456789abcdef";

	if (likely(c >= 0x20 && c != '"' && c != '\\'))
	{
		*out++ = (char) c;
		return out;
	}
	*out++ = '\\';
	switch (c)
	{
		case '\b':
			*out++ = 'b';
			break;
		case '\t':
			*out++ = 't';
			break;
		case '\n':
			*out++ = 'n';
			break;
		case '\f':
			*out++ = 'f';
			break;
		case '\r':
			*out++ = 'r';
			break;
		case '"':
		case '\\':
			*out++ = (char) c;
			break;
		default:
			*out++ = 'u';
			*out++ = '0';
			*out++ = '0';
			*out++ = digits[c >> 4];
			*out++ = digits[c & 0x0f];
			break;
	}
	return out;
}

/* The inside of a string, from UTF-8. */
static void
put_escaped(Document *doc, const char *data, size_t len)
{
	const char *end = data + len;

	while (data < end)
	{
		size_t		room = (BUFFER_BYTES - doc->used) / ESCAPE_GROWTH;
		const char *stop;
		char	   *out;

		if (room < 16)
		{
			flush(doc);
			continue;
		}
		stop = data + Min(room, (size_t) (end - data));
		out = doc->buffer + doc->used;
		while (stop - data >= (ptrdiff_t) sizeof(uint64))
		{
			uint64		x;

			memcpy(&x, data, sizeof(x));
			if (likely(!any_escaped(x)))
			{
				memcpy(out, &x, sizeof(x));
				out += sizeof(x);
				data += sizeof(x);
				continue;
			}
			for (int i = 0; i < sizeof(x); i++)
				out = escape_byte(out, (unsigned char) *data++);
		}
		while (data < stop)
			out = escape_byte(out, (unsigned char) *data++);
		doc->used = out - doc->buffer;
	}
}

/* ---- text in the database's encoding ---- */

static void
pg_attribute_noreturn()
untranslatable(const Document *doc, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
			 errmsg("session \"%s\" cannot be archived: its text cannot be written as UTF-8",
					doc->session_id),
			 doc->message ?
			 errdetail("Message %s has %s.", doc->message, why) :
			 errdetail("The session's own row has %s.", why),
			 errhint("Correct the text, or delete what has it.")));
}

/*
 * Text as UTF-8, palloc'd unless it is that already. It must be possible to
 * get the same bytes back.
 */
static const char *
as_utf8(Document *doc, const char *data, size_t len, size_t *utf8_len)
{
	int			from = doc->encoding;
	size_t		room = len * MAX_CONVERSION_GROWTH + 1;
	char	   *utf8;
	char	   *back;
	Oid			there;
	Oid			home;

	*utf8_len = len;
	if (from == PG_UTF8)
		return data;
	if (from == PG_SQL_ASCII)
	{
		if (!pg_verify_mbstr(PG_UTF8, data, (int) len, true))
			untranslatable(doc, "bytes that are not UTF-8, which encoding \"SQL_ASCII\" lets pass");
		return data;
	}

	there = FindDefaultConversionProc(from, PG_UTF8);
	home = FindDefaultConversionProc(PG_UTF8, from);
	if (!OidIsValid(there) || !OidIsValid(home))
		untranslatable(doc, "an encoding that has no conversion");
	utf8 = palloc(room);
	if (pg_do_encoding_conversion_buf(there, from, PG_UTF8,
									  (unsigned char *) data, (int) len,
									  (unsigned char *) utf8, (int) room,
									  true) != (int) len)
		untranslatable(doc, "a character that has no equivalent in Unicode");
	*utf8_len = strlen(utf8);
	room = *utf8_len * MAX_CONVERSION_GROWTH + 1;
	back = palloc(room);
	if (pg_do_encoding_conversion_buf(home, PG_UTF8, from,
									  (unsigned char *) utf8,
									  (int) *utf8_len,
									  (unsigned char *) back, (int) room,
									  true) != (int) *utf8_len ||
		strlen(back) != len || memcmp(back, data, len) != 0)
		untranslatable(doc, "a character that would not come back from Unicode as it was");
	pfree(back);
	return utf8;
}

/* The inside of a string, whatever its encoding, in pieces. */
static void
put_text(Document *doc, const char *data, size_t len)
{
	if (doc->encoding == PG_UTF8)
	{
		put_escaped(doc, data, len);
		return;
	}
	while (len > 0)
	{
		size_t		piece = len;
		size_t		utf8_len;
		const char *utf8;

		if (len > BUFFER_BYTES && doc->encoding != PG_SQL_ASCII)
			piece = pg_encoding_mbcliplen(doc->encoding, data,
										  (int) Min(len, INT_MAX),
										  BUFFER_BYTES);
		utf8 = as_utf8(doc, data, piece, &utf8_len);
		put_escaped(doc, utf8, utf8_len);
		if (utf8 != data)
			pfree(unconstify(char *, utf8));
		data += piece;
		len -= piece;
	}
}

/* A text as a string: in slices where it can be read in slices. */
static void
put_text_datum(Document *doc, Datum value)
{
	struct varlena *given = (struct varlena *) DatumGetPointer(value);

	put_char(doc, '"');
	if (doc->encoding == PG_UTF8 && VARATT_IS_EXTERNAL_ONDISK(given))
	{
		struct varatt_external toast;

		VARATT_EXTERNAL_GET_POINTER(toast, given);
		if (!VARATT_EXTERNAL_IS_COMPRESSED(toast) &&
			toast.va_rawsize > SLICE_BYTES)
		{
			int32		size = toast.va_rawsize - VARHDRSZ;

			for (int32 at = 0; at < size; at += SLICE_BYTES)
			{
				struct varlena *slice = detoast_attr_slice(given, at,
														   SLICE_BYTES);

				put_escaped(doc, VARDATA_ANY(slice),
							VARSIZE_ANY_EXHDR(slice));
				pfree(slice);
				CHECK_FOR_INTERRUPTS();
			}
			put_char(doc, '"');
			return;
		}
	}
	{
		struct varlena *whole = pg_detoast_datum_packed(given);

		put_text(doc, VARDATA_ANY(whole), VARSIZE_ANY_EXHDR(whole));
		if (whole != given)
			pfree(whole);
	}
	put_char(doc, '"');
}

/* ---- values ---- */

static void put_container(Document *doc, JsonbContainer * container);

static void
put_json_value(Document *doc, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			put(doc, "null", 4);
			break;
		case jbvBool:
			put_cstring(doc, value->val.boolean ? "true" : "false");
			break;
		case jbvNumeric:
			{
				char	   *text = DatumGetCString(DirectFunctionCall1(numeric_out,
																	   NumericGetDatum(value->val.numeric)));

				put_cstring(doc, text);
				pfree(text);
				break;
			}
		case jbvString:
			put_char(doc, '"');
			put_text(doc, value->val.string.val, value->val.string.len);
			put_char(doc, '"');
			break;
		case jbvBinary:
			put_container(doc, value->val.binary.data);
			break;
		default:
			elog(ERROR, "unexpected jsonb value type: %d",
				 (int) value->type);
	}
}

typedef struct Member
{
	const char *key;			/* UTF-8 */
	size_t		len;
	JsonbValue	value;
} Member;

/*
 * The order of UTF-16 code units. It is that of UTF-8's bytes, but for the
 * characters beyond 16 bits, which come before U+E000.
 */
static int
compare_members(const void *a, const void *b)
{
	const Member *x = a;
	const Member *y = b;
	size_t		len = Min(x->len, y->len);

	for (size_t i = 0; i < len; i++)
	{
		unsigned char p = x->key[i];
		unsigned char q = y->key[i];

		if (p == q)
			continue;
		if (p >= 0xee && q >= 0xee && (p >= 0xf0) != (q >= 0xf0))
			return p >= 0xf0 ? -1 : 1;
		return p < q ? -1 : 1;
	}
	return x->len < y->len ? -1 : x->len > y->len;
}

static void
put_object(Document *doc, JsonbContainer * container)
{
	int			n = JsonContainerSize(container);
	Member	   *members = palloc(sizeof(Member) * Max(n, 1));
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbValue	value;
	int			i = 0;
	JsonbIteratorToken token;

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			members[i].key = as_utf8(doc, value.val.string.val,
									 value.val.string.len, &members[i].len);
		else if (token == WJB_VALUE)
			members[i++].value = value;
	}
	Assert(i == n);
	qsort(members, n, sizeof(Member), compare_members);

	put_char(doc, '{');
	for (i = 0; i < n; i++)
	{
		if (i > 0)
			put_char(doc, ',');
		put_char(doc, '"');
		put_escaped(doc, members[i].key, members[i].len);
		put(doc, "\":", 2);
		put_json_value(doc, &members[i].value);
	}
	put_char(doc, '}');
	pfree(members);
}

/* A jsonb is at most as deep as its parser let it be; so is this. */
static void
put_container(Document *doc, JsonbContainer * container)
{
	JsonbIterator *it;
	JsonbValue	value;
	JsonbIteratorToken token;
	bool		first = true;

	check_stack_depth();
	CHECK_FOR_INTERRUPTS();
	if (JsonContainerIsObject(container))
	{
		put_object(doc, container);
		return;
	}
	if (!JsonContainerIsScalar(container))
		put_char(doc, '[');
	it = JsonbIteratorInit(container);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (!first)
			put_char(doc, ',');
		first = false;
		put_json_value(doc, &value);
	}
	if (!JsonContainerIsScalar(container))
		put_char(doc, ']');
}

/*
 * A jsonb whose text no jsonb can be made of again is refused: a few bytes of
 * numeric can be 100 kB of digits.
 */
static void
put_jsonb(Document *doc, Jsonb *jsonb, const char *column)
{
	int64		before = doc->bytes + doc->used;

	put_container(doc, &jsonb->root);
	if (doc->bytes + doc->used - before >= MaxAllocSize)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("session \"%s\" cannot be archived: the text of a \"%s\" has more than %zu bytes",
						doc->session_id, column, (size_t) MaxAllocSize),
				 doc->message ?
				 errdetail("It is message %s's.", doc->message) :
				 errdetail("It is in the session's own row.")));
}

static void
put_timestamp(Document *doc, TimestampTz at)
{
	struct pg_tm tm;
	fsec_t		fsec;
	char text[	MAXDATELEN + 1];

	if (TIMESTAMP_NOT_FINITE(at))
		EncodeSpecialTimestamp(at, text);
	else if (timestamp2tm(at, NULL, &tm, &fsec, NULL, NULL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	else
		snprintf(text, sizeof(text),
				 "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ%s",
				 tm.tm_year > 0 ? tm.tm_year : 1 - tm.tm_year, tm.tm_mon,
				 tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int) fsec,
				 tm.tm_year > 0 ? "" : " BC");
	put_char(doc, '"');
	put_cstring(doc, text);
	put_char(doc, '"');
}

static void
put_double(Document *doc, double value)
{
	char text[	DOUBLE_SHORTEST_DECIMAL_LEN];

	double_to_shortest_decimal_buf(value, text);
	if (isfinite(value))
		put_cstring(doc, text);
	else
	{
		put_char(doc, '"');
		put_cstring(doc, text);
		put_char(doc, '"');
	}
}

static void
put_uuid(Document *doc, const pg_uuid_t *uuid)
{
	static const char digits[] = "0123456789abcdef";
	char text[	2 * UUID_LEN + 6];
	char	   *out = text;

	*out++ = '"';
	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = digits[uuid->data[i] >> 4];
		*out++ = digits[uuid->data[i] & 0x0f];
	}
	*out++ = '"';
	put(doc, text, out - text);
}

static void
put_text_array(Document *doc, ArrayType *array)
{
	Datum	   *values;
	bool	   *nulls;
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values,
					  &nulls, &n);
	put_char(doc, '[');
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			put_char(doc, ',');
		if (nulls[i])
			put(doc, "null", 4);
		else
			put_text_datum(doc, values[i]);
	}
	put_char(doc, ']');
}

static void
put_value(Document *doc, const DocumentColumn *column, Datum value)
{
	char text[	MAXINT8LEN + 1];

	switch (column->type)
	{
		case TEXTOID:
			put_text_datum(doc, value);
			break;
		case JSONBOID:
			put_jsonb(doc, DatumGetJsonbP(value), column->name);
			break;
		case UUIDOID:
			put_uuid(doc, DatumGetUUIDP(value));
			break;
		case TIMESTAMPTZOID:
			put_timestamp(doc, DatumGetTimestampTz(value));
			break;
		case INT8OID:
			put(doc, text, pg_lltoa(DatumGetInt64(value), text));
			break;
		case INT4OID:
			put(doc, text, pg_ltoa(DatumGetInt32(value), text));
			break;
		case FLOAT8OID:
			put_double(doc, DatumGetFloat8(value));
			break;
		case BOOLOID:
			put_cstring(doc, DatumGetBool(value) ? "true" : "false");
			break;
		case TEXTARRAYOID:
			put_text_array(doc, DatumGetArrayTypeP(value));
			break;
		default:
			elog(ERROR, "documents have no values of type %u (column %s)",
				 column->type, column->name);
	}
}

/* ---- rows ---- */

static int
compare_columns(const void *a, const void *b)
{
	return strcmp(((const DocumentColumn *) a)->name, ((const DocumentColumn *) b)->name);
}

DocumentColumn *
document_columns(TupleDesc desc, const char *except, int *n)
{
	DocumentColumn *columns = palloc(sizeof(DocumentColumn) * desc->natts);

	*n = 0;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || att->attgenerated ||
			strcmp(NameStr(att->attname), except) == 0)
			continue;
		columns[*n].name = NameStr(att->attname);
		columns[*n].attnum = i + 1;
		columns[*n].type = att->atttypid;
		(*n)++;
	}
	qsort(columns, *n, sizeof(DocumentColumn), compare_columns);
	return columns;
}

static void
put_row(Document *doc, HeapTuple tuple, TupleDesc desc,
		const DocumentColumn *columns, int n, Datum *values, bool *nulls)
{
	bool		first = true;

	heap_deform_tuple(tuple, desc, values, nulls);
	put_char(doc, '{');
	for (int i = 0; i < n; i++)
	{
		if (nulls[columns[i].attnum - 1])
			continue;
		put(doc, first ? "\"" : ",\"", first ? 1 : 2);
		first = false;
		put_cstring(doc, columns[i].name);
		put(doc, "\":", 2);
		put_value(doc, &columns[i], values[columns[i].attnum - 1]);
	}
	put_char(doc, '}');
}

/* A number of tokens in a message's usage. */
static double
tokens(Jsonb *usage, const char *name)
{
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(usage) ||
		getKeyJsonValueFromContainer(&usage->root, name, strlen(name),
									 &value) == NULL ||
		value.type != jbvNumeric)
		return 0;
	return Min(1e15,
			   DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
												  NumericGetDatum(value.val.numeric))));
}

static void
count_message(Document *doc, Datum kind, bool kind_null, Datum usage,
			  bool usage_null)
{
	text	   *word = kind_null ? NULL : DatumGetTextPP(kind);

	if (word && VARSIZE_ANY_EXHDR(word) > 0)
	{
		doc->prompts += *VARDATA_ANY(word) == 'p';
		doc->responses += *VARDATA_ANY(word) == 'r';
	}
	if (!usage_null)
	{
		Jsonb	   *jsonb = DatumGetJsonbP(usage);

		doc->prompt_tokens += tokens(jsonb, "prompt_tokens");
		doc->completion_tokens += tokens(jsonb, "completion_tokens");
	}
}

static void
put_usage(Document *doc)
{
	put_cstring(doc, psprintf("{\"total_completion_tokens\":%.0f,"
							  "\"total_prompt_tokens\":%.0f,"
							  "\"total_prompts\":" INT64_FORMAT ","
							  "\"total_responses\":" INT64_FORMAT ","
							  "\"total_tokens\":%.0f}",
							  doc->completion_tokens, doc->prompt_tokens,
							  doc->prompts, doc->responses,
							  doc->prompt_tokens + doc->completion_tokens));
}

/* How a message is called in an error: by its id. */
static const char *
message_name(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Datum		id = heap_getattr(tuple, SPI_fnumber(desc, "id"), desc,
								  &isnull);

	return DatumGetCString(DirectFunctionCall1(uuid_out, id));
}

static int
put_messages(Document *doc, int64 session, bool take)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "mlint message",
												  ALLOCSET_DEFAULT_SIZES);
	Oid			table = mlint_relation("message");
	ScanKeyData key;
	RowScan		scan;
	HeapTuple	tuple;
	DocumentColumn *columns;
	Datum	   *values;
	bool	   *nulls;
	int			kind;
	int			usage;
	int			n;
	int			messages = 0;

	if (take)
		LockRelationOid(table, RowExclusiveLock);
	row_key(&key, get_attnum(table, "session"), F_INT8EQ,
			Int64GetDatum(session));
	rows_begin(&scan, "message", "message_session", 1, &key, true);
	columns = document_columns(scan.desc, "session", &n);
	values = palloc(sizeof(Datum) * scan.desc->natts);
	nulls = palloc(sizeof(bool) * scan.desc->natts);
	kind = SPI_fnumber(scan.desc, "kind") - 1;
	usage = SPI_fnumber(scan.desc, "usage") - 1;
	put_char(doc, '[');
	while ((tuple = rows_next(&scan)) != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		CHECK_FOR_INTERRUPTS();
		if (messages++ > 0)
			put_char(doc, ',');
		doc->message = message_name(tuple, scan.desc);
		put_row(doc, tuple, scan.desc, columns, n, values, nulls);
		count_message(doc, values[kind], nulls[kind], values[usage],
					  nulls[usage]);
		if (take)
			simple_heap_delete(scan.relation, &tuple->t_self);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	doc->message = NULL;
	put_char(doc, ']');
	rows_end(&scan);
	if (take)
		CommandCounterIncrement();
	MemoryContextDelete(context);
	return messages;
}

static void
put_session(Document *doc, int64 session)
{
	ScanKeyData key;
	RowScan		scan;
	HeapTuple	tuple;
	DocumentColumn *columns;
	int			n;

	row_key(&key, get_attnum(mlint_relation("session"), "id"), F_INT8EQ,
			Int64GetDatum(session));
	rows_begin(&scan, "session", "session_pkey", 1, &key, true);
	tuple = rows_next(&scan);
	if (tuple == NULL)
		elog(ERROR, "session " INT64_FORMAT " is not there", session);
	columns = document_columns(scan.desc, "id", &n);
	put_row(doc, tuple, scan.desc, columns, n,
			palloc(sizeof(Datum) * scan.desc->natts),
			palloc(sizeof(bool) * scan.desc->natts));
	rows_end(&scan);
}

void
document_write(const char *session_id, int64 session, bool take,
			   DocumentSink sink, void *arg, DocumentFacts *facts)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "mlint document",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Document   *doc = palloc(sizeof(Document));

	doc->prompts = 0;
	doc->responses = 0;
	doc->prompt_tokens = 0;
	doc->completion_tokens = 0;
	doc->session_id = session_id;
	doc->message = NULL;
	doc->encoding = GetDatabaseEncoding();
	doc->sink = sink;
	doc->arg = arg;
	doc->bytes = 0;
	doc->used = 0;

	put_cstring(doc, "{\"messages\":");
	facts->messages = put_messages(doc, session, take);
	put_cstring(doc, ",\"schema\":" CppAsString2(DOCUMENT_SCHEMA)
				",\"session\":");
	put_session(doc, session);
	put_cstring(doc, ",\"usage\":");
	put_usage(doc);
	put_char(doc, '}');
	flush(doc);
	facts->bytes = doc->bytes;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}
