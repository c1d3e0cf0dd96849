/*
 * search.c
 *		Full-text search in what was said.
 *
 * The index is on an expression, so a message is not stored twice; what is in
 * it is session_words(): a bounded part of the content, from which no tsvector
 * can grow too large, without what nobody searches for and the parser is slow
 * at, such as images in base64. So no content can make an insert fail.
 *
 * Newest first is the order of the primary key: a word that is everywhere is
 * found by going back in time, a rare one by the index. Which it is the planner
 * cannot know, since words that were erased would stay in its statistics; so the
 * index is asked whether there are more than some matches. To rank means to weigh
 * every match, so it is the newest matches that are ranked, and not all of a
 * year's.
 */
#include "postgres.h"

#include <math.h>

#include "access/detoast.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/compat.h"
#include "common/rows.h"
#include "mb/pg_wchar.h"
#include "nodes/value.h"
#include "sessions/check.h"
#include "sessions/message.h"
#include "sessions/reading.h"
#include "tsearch/ts_utils.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/uuid.h"

PG_FUNCTION_INFO_V1(mlint_session_words);
PG_FUNCTION_INFO_V1(mlint_session_snippet);
PG_FUNCTION_INFO_V1(mlint_session_search);

/* How much of a message is searched, and how many matches are ranked. */
#define TEXT_BYTES		(128 * 1024)
#define RANKED			1000
#define QUERY_BYTES		1000

/* Matches that are few among however few messages. */
#define MANY			1000

/*
 * A longer run without white space is no word: of ASCII it is left out, of
 * another script it is cut into pieces.
 */
#define RUN_BYTES		1024

/* A tag may be as long as the text, and is no word either. */
static bool
parts_words(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r') || c == '<';
}

/* Copy a run of bytes between white space; returns where it ends. */
static char *
copy_run(char *to, const char *run, int len)
{
	bool		ascii = true;
	int			since = 0;

	if (len <= RUN_BYTES)
	{
		memcpy(to, run, len);
		return to + len;
	}
	for (int i = 0; i < len && ascii; i++)
		ascii = !IS_HIGHBIT_SET(run[i]);
	for (int i = 0; i < len && !ascii;)
	{
		int			n = Min(pg_mblen(run + i), len - i);

		if (since + n > RUN_BYTES)
		{
			*to++ = ' ';
			since = 0;
		}
		memcpy(to, run + i, n);
		to += n;
		since += n;
		i += n;
	}
	return to;
}

/* What is searched of a message, palloc'd. */
static text *
searched(FunctionCallInfo fcinfo)
{
	text	   *content = PG_GETARG_TEXT_P_SLICE(0, 0, TEXT_BYTES);
	const char *from = VARDATA_ANY(content);
	int			len = pg_mbcliplen(from, VARSIZE_ANY_EXHDR(content), TEXT_BYTES);
	text	   *result = palloc(VARHDRSZ + len + len / (RUN_BYTES / 2) + 1);
	char	   *to = VARDATA(result);

	for (int i = 0; i < len;)
	{
		int			begin = i;

		while (i < len && !parts_words(from[i]))
			i++;
		to = copy_run(to, from + begin, i - begin);
		if (i < len)
			*to++ = from[i] == '<' ? ' ' : from[i];
		while (i < len && parts_words(from[i]))
			i++;
	}
	SET_VARSIZE(result, to - (char *) result);
	return result;
}

/*
 * Call a function of text search that takes a configuration and args. It tells
 * the client of each word that is too long, and of stretches of none as well:
 * nobody wants to know that of a prompt.
 */
static Datum
call_quietly(PGFunction function, int nargs, const Datum *args)
{
	LOCAL_FCINFO(fcinfo, 4);
	List	   *config = list_make2(makeString("pg_catalog"),
									makeString("english"));
	int			client = client_min_messages;
	int			log = log_min_messages;
	Datum		result;

	InitFunctionCallInfoData(*fcinfo, NULL, nargs + 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = ObjectIdGetDatum(get_ts_config_oid(config, false));
	fcinfo->args[0].isnull = false;
	for (int i = 0; i < nargs; i++)
	{
		fcinfo->args[i + 1].value = args[i];
		fcinfo->args[i + 1].isnull = false;
	}
	client_min_messages = Max(client, WARNING);
	log_min_messages = Max(log, WARNING);
	PG_TRY();
	{
		result = function(fcinfo);
	}
	PG_FINALLY();
	{
		client_min_messages = client;
		log_min_messages = log;
	}
	PG_END_TRY();
	return result;
}

/* mlint.session_words(content): what the index is on. */
Datum
mlint_session_words(PG_FUNCTION_ARGS)
{
	Datum		args[] = {PointerGetDatum(searched(fcinfo))};

	PG_RETURN_DATUM(call_quietly(to_tsvector_byid, lengthof(args), args));
}

/* mlint.session_snippet(content, query) */
Datum
mlint_session_snippet(PG_FUNCTION_ARGS)
{
	Datum		args[3];

	args[0] = PointerGetDatum(searched(fcinfo));
	args[1] = PG_GETARG_DATUM(1);
	args[2] = CStringGetTextDatum("StartSel=**, StopSel=**, MaxFragments=2,"
								  " MaxWords=25, MinWords=8, ShortWord=0");
	PG_RETURN_DATUM(call_quietly(ts_headline_byid_opt, lengthof(args), args));
}

/* What is looked for, as a tsquery. Says so when there is no word in it. */
static Datum
parse_query(Datum words)
{
	Reading		reading;
	bool		isnull;

	reading_begin(&reading, "SELECT websearch_to_tsquery('pg_catalog.english', $1)");
	(void) reading_value(&reading, TEXTOID, words);
	return reading_one(&reading, false, &isnull);
}

/*
 * Are there so many matches that to go back in time finds "wanted" of them
 * sooner than to fetch all does? Among n messages are m matches, so that is to
 * read wanted * n / m messages, or m.
 */
static bool
words_common(Datum query, int wanted)
{
	Relation	table = table_open(mlint_relation("message"), AccessShareLock);
	double		n = Max(table->rd_rel->reltuples, 0);
	int64		many = Max(MANY, (int64) sqrt(wanted * n));
	Reading		reading;
	bool		isnull;

	table_close(table, AccessShareLock);
	reading_begin(&reading, "SELECT pg_catalog.count(*) >= $1 FROM (SELECT FROM mlint.message m");
	(void) reading_value(&reading, INT8OID, Int64GetDatum(many));
	reading_where(&reading, "mlint.session_words(m.content) @@ $%d", TSQUERYOID,
				  query);
	appendStringInfoString(&reading.sql, " LIMIT $1) c");
	return DatumGetBool(reading_one(&reading, false, &isnull));
}

/*
 * mlint.session_search(reading, session_id, kind, tag, metadata, said_from,
 * said_to, sort, page_size, after)
 */
Datum
mlint_session_search(PG_FUNCTION_ARGS)
{
	char	   *words = required_text(fcinfo, 0, "query");
	char	   *sort = name_argument(fcinfo, 7, "sort");
	int			page_size = page_size_argument(fcinfo, 8);
	bool		by_rank = strcmp(sort, "rank") == 0;
	int			wanted = by_rank ? RANKED : page_size;
	bool		of_sessions = !PG_ARGISNULL(1) || !PG_ARGISNULL(3) ||
	!PG_ARGISNULL(4);
	Datum		query;
	Reading		reading;

	if (strlen(words) > QUERY_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("query must be at most %d bytes long, not %zu",
						QUERY_BYTES, strlen(words))));
	if (!by_rank && strcmp(sort, "newest") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid sort: \"%s\"", sort),
				 errhint("It is one of: rank, newest.")));
	if (by_rank && !PG_ARGISNULL(9))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there are no further pages of a search by rank"),
				 errhint("Use sort => 'newest' to go through all matches.")));

	query = parse_query(PG_GETARG_DATUM(0));
	reading_begin(&reading,
				  "SELECT p.session_id, p.id, p.kind, p.created_at, p.rank,"
				  " mlint.session_snippet(p.content, $1)"
				  " FROM (SELECT m.session_id, m.id, m.kind, m.created_at,"
				  " ts_rank(mlint.session_words(m.content), $1) AS rank,"
				  " m.content"
				  " FROM (SELECT m.* FROM"
				  " (SELECT s.session_id, m.id, m.kind, m.created_at, m.content"
				  " FROM mlint.message m JOIN mlint.session s ON s.id = m.session");
	reading_where(&reading, "mlint.session_words(m.content) @@ $%d", TSQUERYOID,
				  query);
	if (!PG_ARGISNULL(1))
		reading_where(&reading, "s.session_id = $%d", TEXTOID, PG_GETARG_DATUM(1));
	if (!PG_ARGISNULL(2))
		reading_where(&reading, "m.kind = $%d", TEXTOID,
					  CStringGetTextDatum(message_kind(name_argument(fcinfo, 2,
																	 "kind"))));
	if (!PG_ARGISNULL(3))
		reading_where(&reading, "s.tags @> ARRAY[$%d]", TEXTOID,
					  PG_GETARG_DATUM(3));
	if (!PG_ARGISNULL(4))
		reading_where(&reading, "s.metadata @> $%d", JSONBOID,
					  JsonbPGetDatum(object_argument(fcinfo, 4, "metadata")));
	if (!PG_ARGISNULL(5))
		reading_where(&reading, "m.created_at >= $%d", TIMESTAMPTZOID,
					  PG_GETARG_DATUM(5));
	if (!PG_ARGISNULL(6))
		reading_where(&reading, "m.created_at < $%d", TIMESTAMPTZOID,
					  PG_GETARG_DATUM(6));
	if (!PG_ARGISNULL(9))
		reading_where(&reading, "m.id < $%d", UUIDOID, PG_GETARG_DATUM(9));
	/* OFFSET 0: not by the order in which they are wanted. */
	appendStringInfo(&reading.sql, "%s) m ORDER BY m.id DESC LIMIT %d) m",
					 of_sessions || !words_common(query, wanted) ?
					 " OFFSET 0" : "", wanted);
	if (by_rank)
		appendStringInfo(&reading.sql, " ORDER BY rank DESC, m.id DESC LIMIT %d",
						 page_size);
	appendStringInfo(&reading.sql, ") p ORDER BY %s p.id DESC",
					 by_rank ? "p.rank DESC," : "");
	return reading_rows(&reading, fcinfo);
}
