/*
 * exchange.c
 *		What the kinds of secret backends have in common: one HTTP exchange,
 *		JSON, and the care for what is confidential.
 *
 * Everything that may be a credential or a value is told to confidential():
 * bodies that are sent, answers, tokens. It is wiped when the call's memory
 * context ends, by an error too, and what a peer says about a failure is shown
 * only after each such text in it has been struck out; peers do quote what
 * they were sent. libcurl wipes nothing of its own, so the exchange is marked
 * confidential for our client; jansson's blocks are wiped as they are freed.
 */
#include "postgres.h"

#include "common/crypto.h"
#include "common/errors.h"
#include "common/peertext.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "secrets/kind.h"

/* A page of names, or a value of 64 kB with each byte escaped, fits well. */
#define ANSWER_MAX		(1024 * 1024)
#define DETAIL_MAX		240
/* Shorter texts are words, not credentials. */
#define STRIKE_MIN		4

/* ---- wiping ---- */

static void
wipe_confidential(void *arg)
{
	Backend    *b = arg;

	for (Confidential *c = b->confidential; c != NULL; c = c->next)
		crypto_wipe(c->data, c->len);
	b->confidential = NULL;
}

char *
confidential(Backend *b, char *data, size_t len)
{
	Confidential *c = MemoryContextAlloc(b->context, sizeof(Confidential));

	if (b->confidential == NULL)
	{
		MemoryContextCallback *callback =
		MemoryContextAlloc(b->context, sizeof(MemoryContextCallback));

		callback->func = wipe_confidential;
		callback->arg = b;
		MemoryContextRegisterResetCallback(b->context, callback);
	}
	c->data = data;
	c->len = len;
	c->next = b->confidential;
	b->confidential = c;
	return data;
}

char *
backend_credential(Backend *b, const Credential *c)
{
	size_t		len;
	char	   *value = credential_resolve(c, &len);

	return confidential(b, value, len);
}

const char *
environment(const char *name)
{
	const char *value = getenv(name);

	return value && value[0] != '\0' ? value : NULL;
}

static void
json_free(void *arg)
{
	json_decref(arg);
}

json_t *
json_own(Backend *b, json_t *json)
{
	MemoryContextCallback *callback;

	if (json == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	callback = MemoryContextAllocExtended(b->context, sizeof(*callback),
										  MCXT_ALLOC_NO_OOM);
	if (callback == NULL)
	{
		json_decref(json);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	callback->func = json_free;
	callback->arg = json;
	MemoryContextRegisterResetCallback(b->context, callback);
	return json;
}

char *
json_write(Backend *b, json_t *json)
{
	char	   *text;
	size_t		len;
	size_t		written;

	json_own(b, json);
	len = json_dumpb(json, NULL, 0, JSON_COMPACT);
	text = MemoryContextAlloc(b->context, len + 1);

	written = json_dumpb(json, text, len, JSON_COMPACT);
	if (len == 0 || written != len)
		elog(ERROR, "could not write a JSON document");
	text[		len] = '\0';

	return confidential(b, text, len);
}

bool
json_carries(const void *data, size_t len)
{
	return pg_encoding_verifymbstr(PG_UTF8, data, (int) len) == (int) len;
}

/* ---- failures ---- */

/* Overwrite each confidential text in what a peer has said. */
static void
strike_out(Backend *b, char *text)
{
	for (Confidential *c = b->confidential; c != NULL; c = c->next)
	{
		char	   *at = text;

		/* Answers are among them; only what was sent can be in an answer. */
		if (c->len < STRIKE_MIN || c->len > strlen(text))
			continue;
		while ((at = memmem(at, strlen(at), c->data, c->len)) != NULL)
		{
			memset(at, '*', c->len);
			at += c->len;
		}
	}
}

BackendResult
backend_fail(Backend *b, int sqlstate, bool down, const char *detail,
			 const char *hint, const char *reason,...)
{
	char		words[1024];
	va_list		args;

	va_start(args, reason);
	vsnprintf(words, sizeof(words), reason, args);
	va_end(args);
	b->sqlstate = sqlstate;
	b->down = down;
	b->reason = MemoryContextStrdup(b->context, words);
	b->detail = NULL;
	b->hint = hint;
	if (detail && detail[0] != '\0')
	{
		size_t		len = strlen(detail);
		char	   *shown = MemoryContextAlloc(b->context, len +
											   sizeof("..."));

		memcpy(shown, detail, len + 1);
		strike_out(b, shown);
		for (char *p = shown; *p; p++)
		{
			if ((unsigned char) *p < ' ' || *p == 0x7f)
				*p = ' ';
		}
		if (strlen(shown) > DETAIL_MAX)
			memcpy(shown + DETAIL_MAX, "...", sizeof("..."));
		peer_text_clean(shown);
		b->detail = shown;
	}
	return BACKEND_FAILED;
}

BackendResult
exchange_refused(Backend *b, const Exchange *e, const char *peer_says)
{
	bool		login = e->status == 401 || e->status == 403 || e->status == 407;

	return backend_fail(b, login ? ERRCODE_MLINT_AUTHENTICATION :
						ERRCODE_MLINT_API, false, peer_says,
						login ? "Check the backend's credentials, and what they are permitted there." : NULL,
						login ? "it refused our credentials (status %d)" :
						"it answered with status %d", e->status);
}

BackendResult
exchange_strange(Backend *b, const char *what)
{
	return backend_fail(b, ERRCODE_MLINT_SERIALIZATION, true, NULL,
						"Check that its URL leads to the service that the backend's kind speaks to.",
						"%s", what);
}

/* ---- HTTP ---- */

/* What can be read in an error's body, whoever the peer is. */
static const char *
peer_words(const json_t *json)
{
	const json_t *error = json_object_get(json, "error");
	const json_t *errors = json_object_get(json, "errors");
	const char *words;

	if ((words = api_text(json, "error_description")) != NULL ||
		(words = api_text(json, "message")) != NULL ||
		(words = api_text(json, "Message")) != NULL ||
		(words = api_text(error, "message")) != NULL ||
		(words = api_text(json, "error")) != NULL)
		return words;
	if (json_is_string(json_array_get(errors, 0)))
		return json_string_value(json_array_get(errors, 0));
	return NULL;
}

bool
exchange(Backend *b, Exchange *e)
{
	HttpTarget	target = {
		.url = e->url,
		.method = e->method,
		.ca = e->ca,
		.verify = true,
		.keep_body = ANSWER_MAX,
		.confidential = true,
		.metadata = e->metadata
	};
	struct curl_slist *headers = e->headers;
	HttpResponse *response;
	int64		left = (b->deadline - GetCurrentTimestamp()) / 1000;

	e->headers = NULL;
	e->json = NULL;
	e->text = NULL;
	target.timeout_ms = (int) Max(left, 1);
	target.connect_timeout_ms = target.timeout_ms;
	response = http_perform(&target, headers, e->body,
							e->body ? strlen(e->body) : 0);
	confidential(b, unconstify(char *, response->body), response->body_len);
	e->status = response->status;
	e->text = unconstify(char *, response->body);

	if (response->failure != HTTP_OK)
	{
		bool		refused = response->failure == HTTP_REFUSED ||
		response->failure == HTTP_INVALID;

		(void) backend_fail(b, http_sqlstate(response), !refused, NULL,
							response->failure == HTTP_REFUSED ?
							"See the settings mlint.http_deny and mlint.http_allow." :
							response->failure == HTTP_TIMEOUT ?
							"See option \"timeout_ms\" of the backend." : NULL,
							"%s", response->error);
		return false;
	}
	if (response->truncated)
	{
		(void) exchange_strange(b, "its answer is larger than 1 MB");
		return false;
	}
	e->json = api_json(response->body, response->body_len);
	if (e->json)
		(void) json_own(b, e->json);
	if (response->status == 429 || response->status >= 500)
	{
		(void) backend_fail(b, ERRCODE_MLINT_API, true, peer_words(e->json),
							NULL, response->status == 429 ?
							"it has had too many requests (status %d)" :
							"it failed (status %d)", response->status);
		return false;
	}
	if (response->status >= 300 && response->status < 400)
	{
		(void) backend_fail(b, ERRCODE_MLINT_API, false, NULL,
							"Name the URL that it redirects to: redirects are not followed.",
							"it answered with a redirect (status %d)",
							response->status);
		return false;
	}
	if (response->status < 300 && response->body_len > 0 && e->json == NULL &&
		!e->json_optional)
	{
		(void) exchange_strange(b, "its answer is not JSON");
		return false;
	}
	return true;
}

char *
url_escape(Backend *b, const char *text)
{
	StringInfoData out;

	initStringInfo(&out);
	for (const unsigned char *p = (const unsigned char *) text; *p; p++)
	{
		if (isalnum(*p) || strchr("-._~", *p) != NULL)
			appendStringInfoChar(&out, *p);
		else
			appendStringInfo(&out, "%%%02X", *p);
	}
	return out.data;
}

/* ---- times ---- */

TimestampTz
time_from_epoch(double seconds)
{
	/* Years 1970 to 9999; anything else is no time of ours. */
	if (!(seconds > 0 && seconds < 253402300800.0))
		return 0;
	return (TimestampTz) ((seconds - (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
						   (double) SECS_PER_DAY) * USECS_PER_SEC);
}

TimestampTz
time_from_text(const char *text)
{
	int			year,
				month,
				day,
				hour,
				minute;
	double		second;

	if (text == NULL ||
	/* NOLINTNEXTLINE(cert-err34-c): no number has more digits than fit */
		sscanf(text, "%4d-%2d-%2dT%2d:%2d:%lf", &year, &month, &day, &hour,
			   &minute, &second) != 6 ||
		year < 1970 || month < 1 || month > 12 || day < 1 || day > 31 ||
		text[strlen(text) - 1] != 'Z')
		return 0;
	return time_from_epoch((date2j(year, month, day) - UNIX_EPOCH_JDATE) *
						   (double) SECS_PER_DAY +
						   hour * 3600 + minute * 60 + second);
}

/* ---- what is told about a secret ---- */

/* A text of this database as UTF-8. */
static char *
to_utf8(const char *text)
{
	return pg_server_to_any(unconstify(char *, text), strlen(text), PG_UTF8);
}

json_t *
about_object(Backend *b, const SecretAbout *about)
{
	json_t	   *object;

	api_json_prepare();
	if (about == NULL ||
		(about->type == NULL && about->description == NULL &&
		 (about->metadata == NULL || !JB_ROOT_IS_OBJECT(about->metadata) ||
		  JB_ROOT_COUNT(about->metadata) == 0)))
		return NULL;
	object = json_own(b, json_object_new());
	if (about->metadata && JB_ROOT_IS_OBJECT(about->metadata))
	{
		JsonbIterator *it = JsonbIteratorInit(&about->metadata->root);
		JsonbIteratorToken token;
		JsonbValue	v;
		char	   *key = NULL;

		while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
		{
			if (token == WJB_KEY)
				key = pnstrdup(v.val.string.val, v.val.string.len);
			else if (token == WJB_VALUE)
			{
				char	   *text = v.type == jbvString ?
				pnstrdup(v.val.string.val, v.val.string.len) :
				JsonbToCString(NULL, &JsonbValueToJsonb(&v)->root, 0);

				Assert(key != NULL);
				json_object_set_new(object, to_utf8(key),
									json_string(to_utf8(text)));
			}
		}
	}
	if (about->type)
		json_object_set_new(object, "type", json_string(about->type));
	if (about->description)
		json_object_set_new(object, "description",
							json_string(to_utf8(about->description)));
	return object;
}
