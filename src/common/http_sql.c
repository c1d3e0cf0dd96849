/*
 * http_sql.c
 *		mlint.http(): one HTTP exchange, as a function.
 *
 * A thin layer over http_perform(): SQL values in, checked with errors that
 * name the argument; a row out. What the peer answered is a result, whatever
 * its status; that there was no answer is an error, with a SQLSTATE of its
 * own for each reason. A response is bytes from a stranger: it becomes text
 * only if it is text in the database's encoding.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/errors.h"
#include "common/http.h"
#include "common/peertext.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#define KEEP_BODY_BYTES		(64 * 1024)
#define TIMEOUT_MAX_MS		(3600 * 1000)
#define METHOD_MAX			32

PG_FUNCTION_INFO_V1(mlint_http);

/* The lines of one response header, put together. */
typedef struct HeaderField
{
	char	   *name;			/* lower case */
	List	   *values;			/* of StringInfo */
} HeaderField;

/* The method in upper case, as all registered ones are. */
static char *
method_argument(FunctionCallInfo fcinfo, int n)
{
	char	   *method = required_text(fcinfo, n, "method of mlint.http()");

	for (char *p = method; *p != '\0'; p++)
		*p = pg_ascii_toupper(*p);
	if (!http_is_token(method) || strlen(method) > METHOD_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("invalid HTTP method"),
				 errhint("Give one word, such as GET, POST, PUT, PATCH, DELETE or HEAD.")));
	if (strcmp(method, "CONNECT") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("HTTP method CONNECT is not supported"),
				 errdetail("It opens a tunnel through a proxy, and proxies are not used.")));
	return method;
}

/* The timeout in milliseconds, at least one. */
static int
timeout_argument(FunctionCallInfo fcinfo, int n)
{
	Interval   *timeout;
	double		ms;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("timeout of mlint.http() must not be null")));
	timeout = PG_GETARG_INTERVAL_P(n);
	ms = ((double) timeout->month * DAYS_PER_MONTH + timeout->day) *
		SECS_PER_DAY * 1000.0 + timeout->time / 1000.0;
	if (ms <= 0 || ms > TIMEOUT_MAX_MS)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("timeout of mlint.http() is out of range"),
				 errdetail("It must be more than zero and at most one hour.")));
	return (int) Max(ms, 1);
}

/* Text as it is sent: in UTF-8. */
static char *
text_to_utf8(char *string, size_t *len)
{
	size_t		bytes = len ? *len : strlen(string);
	char	   *utf8 = pg_server_to_any(string, bytes, PG_UTF8);

	if (len && utf8 != string)
		*len = strlen(utf8);
	return utf8;
}

/*
 * The request's headers, checked: an object of strings, numbers and booleans.
 * All are checked before the first is put into libcurl's list, which an error
 * would leak.
 */
static struct curl_slist *
headers_argument(FunctionCallInfo fcinfo, int n, bool has_body)
{
	struct curl_slist *list = NULL;
	bool		has_type = false;
	List	   *names = NIL;
	List	   *values = NIL;
	ListCell   *name;
	ListCell   *value;

	if (!PG_ARGISNULL(n))
	{
		Jsonb	   *headers = PG_GETARG_JSONB_P(n);
		JsonbIterator *it;
		JsonbIteratorToken token;
		JsonbValue	v;

		if (!JB_ROOT_IS_OBJECT(headers))
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("headers of mlint.http() must be a JSON object"),
					 errhint("For example: {\"Accept\": \"application/json\"}.")));
		it = JsonbIteratorInit(&headers->root);
		while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
		{
			char	   *text = NULL;

			if (token == WJB_KEY)
			{
				names = lappend(names, pnstrdup(v.val.string.val,
												v.val.string.len));
				continue;
			}
			if (token != WJB_VALUE)
				continue;
			/* Its key came before. */
			Assert(names != NIL);
			if (v.type == jbvString)
				text = pnstrdup(v.val.string.val, v.val.string.len);

			else if (v.type == jbvBool)
				text = pstrdup(v.val.boolean ? "true" : "false");

			else if (v.type == jbvNumeric)
				text = DatumGetCString(DirectFunctionCall1(numeric_out,
														   NumericGetDatum(v.val.numeric)));

			else
				ereport(ERROR,
						(errcode(ERRCODE_MLINT_CONFIGURATION),
						 errmsg("invalid header \"%s\" in mlint.http()",
								(char *) llast(names)),
						 errdetail("Its value is null, an object or an array."),
						 errhint("Give a string; leave out what is not to be sent.")));
			values = lappend(values, text_to_utf8(text, NULL));
		}
	}

	forboth(name, names, value, values)
	{
		http_header_check(lfirst(name), lfirst(value), "mlint.http()");
		if (pg_strcasecmp(lfirst(name), "content-type") == 0)
			has_type = true;
	}
	forboth(name, names, value, values)
		list = http_header(list, lfirst(name), lfirst(value));
	if (has_body && !has_type)
		list = http_header(list, "Content-Type", "application/json");
	return list;
}

/*
 * A header's bytes as text of this database: valid UTF-8 in a database of
 * that encoding is kept, and ASCII in any; of the rest each byte becomes '?'.
 */
static void
append_header_text(StringInfo to, const char *data, size_t len)
{
	bool		keep = GetDatabaseEncoding() == PG_UTF8 &&
	pg_verify_mbstr(PG_UTF8, data, len, true);

	for (size_t i = 0; i < len; i++)
		appendStringInfoChar(to, data[i] != '\0' &&
							 (keep || !IS_HIGHBIT_SET(data[i]))
							 ? data[i] : '?');
}

/* Skip spaces, tabs and line ends on both sides. */
static const char *
trim(const char *data, const char *end, size_t *len)
{
	while (data < end && strchr(" \t\r\n", *data) != NULL)
		data++;
	while (end > data && strchr(" \t\r\n", end[-1]) != NULL)
		end--;
	*len = end - data;
	return data;
}

/* The raw header lines, those of one name together. */
static List *
header_fields(const char *raw, size_t raw_len)
{
	const char *end = raw + raw_len;
	List	   *fields = NIL;
	StringInfo	last = NULL;

	for (const char *line = raw; line < end;)
	{
		const char *eol = memchr(line, '\n', end - line);
		const char *next = eol ? eol + 1 : end;
		const char *colon = memchr(line, ':', next - line);
		const char *part;
		size_t		len;

		if (last != NULL && (*line == ' ' || *line == '\t'))
		{
			/* A folded line (RFC 9112, 5.2) goes on with the value. */
			part = trim(line, next, &len);
			appendStringInfoChar(last, ' ');
			append_header_text(last, part, len);
		}
		else if (colon != NULL)
		{
			StringInfoData name;
			HeaderField *field = NULL;
			ListCell   *lc;

			initStringInfo(&name);
			part = trim(line, colon, &len);
			append_header_text(&name, part, len);
			for (char *p = name.data; *p != '\0'; p++)
				*p = pg_ascii_tolower(*p);
			foreach(lc, fields)
			{
				field = lfirst(lc);
				if (strcmp(field->name, name.data) == 0)
					break;
				field = NULL;
			}
			if (field == NULL)
			{
				field = palloc0(sizeof(HeaderField));
				field->name = name.data;
				fields = lappend(fields, field);
			}
			last = makeStringInfo();
			part = trim(colon + 1, next, &len);
			append_header_text(last, part, len);
			field->values = lappend(field->values, last);
		}
		line = next;
	}
	return fields;
}

static JsonbValue
json_string(char *data, int len)
{
	JsonbValue	v = {.type = jbvString};

	v.val.string.val = data;
	v.val.string.len = len;
	return v;
}

/*
 * The response's headers as an object: names in lower case, repeated ones
 * joined by ", " as RFC 9110 (5.3) allows. Set-Cookie must not be joined, so
 * it is an array, always.
 */
static Datum
headers_result(const HttpResponse *response)
{
	JsonbParseState *state = NULL;
	ListCell   *lc;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	foreach(lc, header_fields(response->headers, response->headers_len))
	{
		HeaderField *field = lfirst(lc);
		bool		is_cookie = strcmp(field->name, "set-cookie") == 0;
		StringInfoData joined;
		ListCell   *value;
		JsonbValue	v;

		initStringInfo(&joined);
		v = json_string(field->name, strlen(field->name));
		pushJsonbValue(&state, WJB_KEY, &v);
		if (is_cookie)
			pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
		foreach(value, field->values)
		{
			StringInfo text = lfirst(value);

			if (is_cookie)
			{
				v = json_string(text->data, text->len);
				pushJsonbValue(&state, WJB_ELEM, &v);
				continue;
			}
			if (joined.len > 0)
				appendStringInfoString(&joined, ", ");
			appendBinaryStringInfo(&joined, text->data, text->len);
		}
		if (is_cookie)
			pushJsonbValue(&state, WJB_END_ARRAY, NULL);
		else
		{
			v = json_string(joined.data, joined.len);
			pushJsonbValue(&state, WJB_VALUE, &v);
		}
	}
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
														   WJB_END_OBJECT,
														   NULL)));
}

/* The response's body as text of this database. */
static Datum
body_result(const HttpResponse *response)
{
	const char *body = response->body;
	int			len = (int) response->body_len;
	int			valid = pg_encoding_verifymbstr(PG_UTF8, body, len);
	char	   *text;

	/* Where we cut the body we may have cut a character. */
	if (response->truncated && len - valid < MAX_MULTIBYTE_CHAR_LEN &&
		valid < len && pg_utf_mblen((const unsigned char *) body + valid) > len - valid)
		len = valid;
	if (valid < len)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_SERIALIZATION),
				 errmsg("the response's body is not text"),
				 errdetail("Status %d; at byte %d the body is not valid UTF-8.",
						   response->status, valid + 1),
				 errhint("mlint.http() returns text. Ask the server for JSON or plain text in UTF-8, for example with an Accept header.")));
	text = pg_any_to_server(unconstify(char *, body), len, PG_UTF8);

	return PointerGetDatum(cstring_to_text_with_len(text,
													text == body ? len : strlen(text)));
}

/*
 * mlint.http(method, url, headers, body, timeout): status, headers, body,
 * elapsed.
 */
Datum
mlint_http(PG_FUNCTION_ARGS)
{
	HttpTarget	target = {
		.verify = true,
		.keep_body = KEEP_BODY_BYTES,
		.keep_headers = true
	};
	struct curl_slist *headers;
	HttpResponse *response;
	Interval   *elapsed = palloc0(sizeof(Interval));
	char	   *body = NULL;
	size_t		body_len = 0;
	TupleDesc	tupdesc;
	Datum		values[4];
	bool		nulls[4] = {false};

	/* Headers hold credentials. */
	hide_plan();
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	target.method = method_argument(fcinfo, 0);
	target.url = required_text(fcinfo, 1, "url of mlint.http()");
	http_url_check(target.url, "mlint.http()");
	if (!PG_ARGISNULL(3))
	{
		text	   *argument = PG_GETARG_TEXT_PP(3);

		body = text_to_cstring(argument);
		body_len = VARSIZE_ANY_EXHDR(argument);
		body = text_to_utf8(body, &body_len);
		if (strcmp(target.method, "HEAD") == 0)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("a HEAD request has no body")));
	}
	target.timeout_ms = timeout_argument(fcinfo, 4);
	target.connect_timeout_ms = target.timeout_ms;
	headers = headers_argument(fcinfo, 2, body != NULL);

	response = http_perform(&target, headers, body, body_len);
	if (response->failure != HTTP_OK)
		ereport(ERROR,
				(errcode(http_sqlstate(response)),
				 errmsg("HTTP request failed: %s", response->error),
				 response->failure == HTTP_REFUSED
				 ? errhint("See the settings mlint.http_deny and mlint.http_allow. Link-local and cloud metadata addresses are refused whatever they say.")
				 : 0));
	if (response->truncated)
		ereport(WARNING,
				(errmsg("the response's body was cut after 64 kB"),
				 errdetail("The rest was not read.")));

	elapsed->time = response->elapsed_us;
	values[0] = Int32GetDatum(response->status);
	values[1] = headers_result(response);
	values[2] = body_result(response);
	values[3] = IntervalPGetDatum(elapsed);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc),
													  values, nulls)));
}
