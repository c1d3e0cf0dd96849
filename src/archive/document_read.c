/*
 * document_read.c
 *		Reading a session's document as it comes; see document.h.
 *
 * A machine that is given the bytes in pieces of any size and knows, between
 * two of them, where it is. It holds one message: names and values of its
 * fields, one after the other, strings without their escapes. Other values are
 * kept as they are written, for the input function of their type.
 *
 * It reads what document.c writes and nothing else: no white space, and no
 * escapes but those that are needed.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "archive/document.h"
#include "common/compat.h"

#define MAX_FIELDS		64
#define STEP_BYTES		(16 * 1024 * 1024)

typedef enum State
{
	BEGIN,						/* { of the document */
	OBJECT_FIRST,				/* a key, or the end of an empty object */
	OBJECT_KEY,					/* a key */
	KEY,						/* in a key */
	COLON,
	VALUE,
	STRING,						/* in a string that is a value */
	STRING_ESCAPE,
	STRING_HEX,
	RAW,						/* in any other value */
	RAW_STRING,
	RAW_ESCAPE,
	AFTER_VALUE,				/* , or the end of the object */
	ELEMENT_FIRST,				/* a message, or the end of the array */
	ELEMENT,					/* a message */
	AFTER_ELEMENT,				/* , or the end of the array */
	DONE,
	WRONG
} State;

typedef enum Where
{
	TOP,
	MESSAGE,
	SESSION
} Where;

typedef struct Offsets
{
	size_t		name;
	size_t		value;
	size_t		len;
	bool		string;
} Offsets;

struct DocumentReader
{
	DocumentVisitor visit;
	void	   *arg;
	State		state;
	Where		where;
	int			depth;			/* of brackets in a raw value */
	int			hex;			/* digits of \u00xx to come */
	unsigned	code;
	bool		has_schema;
	bool		has_messages;
	bool		has_session;
	int			nfields;		/* in the present object */
	Offsets		offsets[MAX_FIELDS];
	size_t		used;
	size_t		size;
	char	   *buffer;
};

DocumentReader *
document_reader_begin(DocumentVisitor visit, void *arg)
{
	DocumentReader *reader = palloc0(sizeof(DocumentReader));

	reader->visit = visit;
	reader->arg = arg;
	reader->size = 8192;
	reader->buffer = palloc(reader->size);
	return reader;
}

/* A large buffer grows in steps: twice a large message is much. */
static inline void
keep(DocumentReader *reader, const char *data, size_t len)
{
	if (unlikely(reader->size - reader->used < len))
	{
		size_t		need = reader->used + len;

		reader->size = need < STEP_BYTES ? Max(need, reader->size * 2) :
			(need / STEP_BYTES + 1) * STEP_BYTES;
		reader->buffer = repalloc_huge(reader->buffer, reader->size);
	}
	memcpy(reader->buffer + reader->used, data, len);
	reader->used += len;
}

static void
keep_char(DocumentReader *reader, char c)
{
	keep(reader, &c, 1);
}

/* A new object at this level, or none. */
static void
clear(DocumentReader *reader)
{
	reader->nfields = 0;
	reader->used = 0;
}

static void
visit(DocumentReader *reader)
{
	DocumentField fields[MAX_FIELDS];

	for (int i = 0; i < reader->nfields; i++)
	{
		fields[i].name = reader->buffer + reader->offsets[i].name;
		fields[i].value = reader->buffer + reader->offsets[i].value;
		fields[i].len = reader->offsets[i].len;
		fields[i].string = reader->offsets[i].string;
	}
	reader->visit(reader->where == SESSION, fields, reader->nfields,
				  reader->arg);
}

/* The key ends here: where its value goes. */
static State
key_end(DocumentReader *reader)
{
	keep_char(reader, '\0');
	if (reader->nfields == MAX_FIELDS)
		return WRONG;
	return COLON;
}

/* The first byte of a value; consumed unless RAW. */
static State
value_begin(DocumentReader *reader, char c)
{
	Offsets    *field = &reader->offsets[reader->nfields];
	const char *name = reader->buffer + field->name;

	if (reader->where == TOP && strcmp(name, "messages") == 0)
	{
		if (c != '[' || reader->has_messages)
			return WRONG;
		reader->has_messages = true;
		clear(reader);
		return ELEMENT_FIRST;
	}
	if (reader->where == TOP && strcmp(name, "session") == 0)
	{
		if (c != '{' || reader->has_session)
			return WRONG;
		reader->has_session = true;
		reader->where = SESSION;
		clear(reader);
		return OBJECT_FIRST;
	}
	field->value = reader->used;
	field->string = c == '"';
	reader->depth = 0;
	return field->string ? STRING : RAW;
}

static State
value_end(DocumentReader *reader)
{
	Offsets    *field = &reader->offsets[reader->nfields];

	field->len = reader->used - field->value;
	keep_char(reader, '\0');
	if (reader->where != TOP)
	{
		reader->nfields++;
		return AFTER_VALUE;
	}
	if (strcmp(reader->buffer + field->name, "schema") == 0)
	{
		if (strcmp(reader->buffer + field->value,
				   CppAsString2(DOCUMENT_SCHEMA)) != 0)
			return WRONG;
		reader->has_schema = true;
	}
	clear(reader);
	return AFTER_VALUE;
}

static State
object_end(DocumentReader *reader)
{
	Where		where = reader->where;

	if (where == TOP)
		return DONE;
	visit(reader);
	clear(reader);
	reader->where = TOP;
	return where == SESSION ? AFTER_VALUE : AFTER_ELEMENT;
}

/* The byte after a backslash. */
static State
escaped(DocumentReader *reader, char c)
{
	switch (c)
	{
		case 'b':
			keep_char(reader, '\b');
			return STRING;
		case 't':
			keep_char(reader, '\t');
			return STRING;
		case 'n':
			keep_char(reader, '\n');
			return STRING;
		case 'f':
			keep_char(reader, '\f');
			return STRING;
		case 'r':
			keep_char(reader, '\r');
			return STRING;
		case '"':
		case '\\':
			keep_char(reader, c);
			return STRING;
		case 'u':
			reader->hex = 4;
			reader->code = 0;
			return STRING_HEX;
		default:
			return WRONG;
	}
}

static State
escaped_hex(DocumentReader *reader, char c)
{
	int			digit = c >= '0' && c <= '9' ? c - '0' :
	c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;

	if (digit < 0)
		return WRONG;
	reader->code = reader->code << 4 | (unsigned) digit;
	if (--reader->hex > 0)
		return STRING_HEX;
	if (reader->code == 0 || reader->code >= 0x20)
		return WRONG;
	keep_char(reader, (char) reader->code);
	return STRING;
}

/* Bytes of a string up to a quote or backslash; returns where that is. */
static const char *
keep_plain(DocumentReader *reader, const char *p, const char *end)
{
	const char *quote = memchr(p, '"', end - p);
	const char *stop = quote ? quote : end;
	const char *backslash = memchr(p, '\\', stop - p);

	stop = backslash ? backslash : stop;
	keep(reader, p, stop - p);
	return stop;
}

/* One byte of a value that is no string; false: it is behind the value. */
static bool
raw_byte(DocumentReader *reader, char c)
{
	if (c == '{' || c == '[')
		reader->depth++;
	else if (c == '}' || c == ']' || c == ',')
	{
		if (reader->depth == 0)
			return false;
		if (c != ',')
			reader->depth--;
	}
	keep_char(reader, c);
	return true;
}

static State
begin_message(DocumentReader *reader)
{
	reader->where = MESSAGE;
	clear(reader);
	return OBJECT_FIRST;
}

/* What is expected is one of at most two bytes. */
static State
expect(char c, char first, State then, char second, State otherwise)
{
	if (c == first)
		return then;
	if (c == second && second != '\0')
		return otherwise;
	return WRONG;
}

bool
document_read(DocumentReader *reader, const char *data, size_t len)
{
	const char *p = data;
	const char *end = data + len;
	State		state = reader->state;

	while (p < end && state != WRONG)
	{
		switch (state)
		{
			case BEGIN:
				state = expect(*p++, '{', OBJECT_KEY, '\0', WRONG);
				break;
			case OBJECT_FIRST:
				if (*p == '}')
				{
					p++;
					state = object_end(reader);
					break;
				}
				/* fall through */
			case OBJECT_KEY:
				state = expect(*p++, '"', KEY, '\0', WRONG);
				if (reader->nfields < MAX_FIELDS)
					reader->offsets[reader->nfields].name = reader->used;
				break;
			case KEY:
				p = keep_plain(reader, p, end);
				if (p < end)
					state = *p++ == '"' ? key_end(reader) : WRONG;
				break;
			case COLON:
				state = expect(*p++, ':', VALUE, '\0', WRONG);
				break;
			case VALUE:
				state = value_begin(reader, *p);
				if (state != RAW)
					p++;
				break;
			case STRING:
				p = keep_plain(reader, p, end);
				if (p < end)
					state = *p++ == '"' ? value_end(reader) : STRING_ESCAPE;
				break;
			case STRING_ESCAPE:
				state = escaped(reader, *p++);
				break;
			case STRING_HEX:
				state = escaped_hex(reader, *p++);
				break;
			case RAW:
				if (!raw_byte(reader, *p))
					state = value_end(reader);
				else if (*p++ == '"')
					state = RAW_STRING;
				break;
			case RAW_STRING:
				p = keep_plain(reader, p, end);
				if (p == end)
					break;
				state = *p == '"' ? RAW : RAW_ESCAPE;
				keep_char(reader, *p++);
				break;
			case RAW_ESCAPE:
				keep_char(reader, *p++);
				state = RAW_STRING;
				break;
			case AFTER_VALUE:
				if (*p == '}')
				{
					p++;
					state = object_end(reader);
				}
				else
					state = expect(*p++, ',', OBJECT_KEY, '\0', WRONG);
				break;
			case ELEMENT_FIRST:
				state = expect(*p++, '{', ELEMENT, ']', AFTER_VALUE);
				if (state == ELEMENT)
					state = begin_message(reader);
				break;
			case ELEMENT:
				state = *p++ == '{' ? begin_message(reader) : WRONG;
				break;
			case AFTER_ELEMENT:
				state = expect(*p++, ',', ELEMENT, ']', AFTER_VALUE);
				break;
			case DONE:
			case WRONG:
				state = WRONG;
				break;
		}
	}
	reader->state = state;
	return state != WRONG;
}

bool
document_reader_end(DocumentReader *reader)
{
	return reader->state == DONE && reader->has_schema &&
		reader->has_messages && reader->has_session;
}
