/*
 * document.h
 *		A session as a document, written and read as a stream.
 *
 *	{"messages": [{...}, ...], "schema": 1, "session": {...}, "usage": {...}}
 *
 * UTF-8 whatever the database's encoding; keys in the order of RFC 8785, and
 * its escapes, so that there is one text for one session. Numbers are the
 * exception: they are PostgreSQL's own text, since RFC 8785 would round them
 * to what a double can hold. Times are UTC with microseconds. A key for each
 * column that is not null, so that null in a jsonb is told from none. "usage" is
 * what its messages say of tokens, added up, for whoever reads the document;
 * nothing is restored from it.
 */
#ifndef MLINT_ARCHIVE_DOCUMENT_H
#define MLINT_ARCHIVE_DOCUMENT_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "utils/memutils.h"

#define DOCUMENT_SCHEMA		1

/* Takes the next bytes, which are valid during the call. */
typedef void (*DocumentSink) (const char *data, size_t len, void *arg);

typedef struct DocumentFacts
{
	int64		bytes;
	int			messages;
} DocumentFacts;

/*
 * Write a session that is locked, as it is committed now, whatever the
 * transaction's snapshot. With take, its messages are deleted on the way, all
 * that were written and no other. In an owner scope. Raises
 * ERRCODE_UNTRANSLATABLE_CHARACTER for text that is not UTF-8 and cannot be
 * made so.
 */
extern void document_write(const char *session_id, int64 session, bool take,
						   DocumentSink sink, void *arg,
						   DocumentFacts *facts);

/* A column of mlint.message or mlint.session, as documents have it. */
typedef struct DocumentColumn
{
	const char *name;			/* of the descriptor */
	int			attnum;
	Oid			type;
} DocumentColumn;

/*
 * All but the one that is a number of this database's, in the order of the
 * document; palloc'd.
 */
extern DocumentColumn *document_columns(TupleDesc desc, const char *except,
										int *n);

/*
 * Reading is being given the document's pieces. For each object in "messages",
 * and for "session", the visitor gets its fields.
 */
typedef struct DocumentField
{
	char	   *name;
	char	   *value;			/* UTF-8, terminated; of a string its content,
								 * else its JSON */
	size_t		len;
	bool		string;
} DocumentField;

typedef void (*DocumentVisitor) (bool session, const DocumentField *fields,
								 int nfields, void *arg);

typedef struct DocumentReader DocumentReader;

/* Lives in the current memory context. */
extern DocumentReader *document_reader_begin(DocumentVisitor visit,
											 void *arg);

/* False: it is not such a document. What was visited must not be used. */
extern bool document_read(DocumentReader *reader, const char *data,
						  size_t len);

/* True: that was all of it, and it was whole. */
extern bool document_reader_end(DocumentReader *reader);

#endif
