/*
 * api.c
 *		One call of an HTTP API that answers with JSON; see api.h.
 *
 * Services quote what they were sent, credentials in headers included. So what
 * a service says about a failure is shown only after the last word of each
 * header's value was struck out of it, and what it shares with a body that is
 * secret; of a confidential call it is not shown at all. Copies of either are wiped when the caller's memory context ends, by
 * an error too.
 */
#include "postgres.h"

#include <malloc.h>

#include "common/api.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/peertext.h"
#include "utils/memutils.h"

#define ANSWER_MAX			(1024 * 1024)
#define CONNECT_TIMEOUT_MS	10000
#define DEPTH_MAX			64
#define WORDS_MAX			240
/* Shorter texts are words, not credentials. */
#define STRIKE_MIN			8
/* So many bytes in a row that are in the body, too, are quoted from there. */
#define QUOTE_MIN			16

/* ---- memory ---- */

typedef struct Wiping
{
	MemoryContextCallback callback;
	char	   *data;
	size_t		len;
} Wiping;

static void
wipe(void *arg)
{
	Wiping	   *w = arg;

	crypto_wipe(w->data, w->len);
}

char *
api_confidential(char *data, size_t len)
{
	Wiping	   *w = palloc(sizeof(Wiping));

	w->data = data;
	w->len = len;
	w->callback.func = wipe;
	w->callback.arg = w;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &w->callback);
	return data;
}

/* free() for jansson, which keeps strings in malloc's memory. */
static void
free_wiped(void *block)
{
	if (block == NULL)
		return;
	crypto_wipe(block, malloc_usable_size(block));
	free(block);
}

void
api_json_prepare(void)
{
	static bool prepared = false;

	if (!prepared)
		json_set_alloc_funcs(malloc, free_wiped);
	prepared = true;
}

static void
json_free(void *arg)
{
	json_decref(arg);
}

json_t *
api_json_own(json_t *json)
{
	MemoryContextCallback *callback = NULL;

	if (json)
		callback = palloc_extended(sizeof(*callback), MCXT_ALLOC_NO_OOM);
	if (callback == NULL)
	{
		json_decref(json);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	callback->func = json_free;
	callback->arg = json;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	return json;
}

/* ---- JSON ---- */

/* Is this nested deeper than we read? Whether it is JSON is not looked at. */
static bool
too_deep(const char *text, size_t len)
{
	int			depth = 0;
	bool		quoted = false;

	for (size_t i = 0; i < len; i++)
	{
		if (quoted && text[i] == '\\')
			i++;
		else if (text[i] == '"')
			quoted = !quoted;
		else if (!quoted && (text[i] == '{' || text[i] == '['))
			depth++;
		else if (!quoted && (text[i] == '}' || text[i] == ']'))
			depth--;
		if (depth > DEPTH_MAX)
			return true;
	}
	return false;
}

json_t *
api_json(const char *text, size_t len)
{
	json_error_t error;

	api_json_prepare();
	if (len == 0 || too_deep(text, len))
		return NULL;
	return json_loadb(text, len, JSON_ALLOW_NUL, &error);
}

const char *
api_text(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	if (!json_is_string(value) ||
		strlen(json_string_value(value)) != json_string_length(value))
		return NULL;
	return json_string_value(value);
}

char *
url_base(const char *url)
{
	char	   *base = pstrdup(url);
	size_t		len = strlen(base);

	while (len > 0 && base[len - 1] == '/')
		base[--len] = '\0';
	return base;
}

/* ---- failures ---- */

static int	retry_after = -1;

/* What can be read in an error's body, whoever the service is. */
static const char *
words_of(const json_t *json)
{
	const json_t *error = json_object_get(json, "error");
	const json_t *first = json_array_get(json_object_get(json, "errors"), 0);
	const char *words;

	if ((words = api_text(json, "error_description")) != NULL ||
		(words = api_text(json, "message")) != NULL ||
		(words = api_text(json, "Message")) != NULL ||
		(words = api_text(error, "message")) != NULL ||
		(words = api_text(first, "message")) != NULL ||
		(words = api_text(json, "error")) != NULL ||
		(words = api_text(json, "detail")) != NULL)
		return words;
	return NULL;
}

/* What may be a credential in each of the headers. */
static List *
credentials_in(const struct curl_slist *headers)
{
	List	   *found = NIL;

	for (; headers; headers = headers->next)
	{
		const char *space = strrchr(headers->data, ' ');

		if (space && strlen(space + 1) >= STRIKE_MIN)
			found = lappend(found, api_confidential(pstrdup(space + 1),
													strlen(space + 1)));
	}
	return found;
}

/* Strike out what is quoted from the body. */
static void
strike_quotes(char *shown, const ApiCall *call)
{
	size_t		len = strlen(shown);
	char	   *marks = palloc0(len + 1);

	for (size_t i = 0; i + QUOTE_MIN <= len; i++)
	{
		if (memmem(call->body, call->body_len, shown + i, QUOTE_MIN) != NULL)
			memset(marks + i, 1, QUOTE_MIN);
	}
	for (size_t i = 0; i < len; i++)
	{
		if (marks[i])
			shown[i] = '*';
	}
}

/* Words of theirs, fit to be shown. */
static char *
fit_to_show(const char *words, const ApiCall *call)
{
	/* Uncut, for half a credential is not found. */
	char	   *shown = pstrdup(words);
	ListCell   *lc;

	if (call->secret_body && call->body)
		strike_quotes(shown, call);
	foreach(lc, call->credentials)
	{
		const char *credential = lfirst(lc);
		char	   *at = shown;

		while ((at = strstr(at, credential)) != NULL)
		{
			memset(at, '*', strlen(credential));
			at += strlen(credential);
		}
	}
	for (char *p = shown; *p; p++)
	{
		if ((unsigned char) *p < ' ' || *p == 0x7f)
			*p = ' ';
	}
	if (strlen(shown) > WORDS_MAX)
		shown[WORDS_MAX] = '\0';
	peer_text_clean(shown);
	return shown;
}

void
api_throttled(const ApiCall *call, const char *says)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_RATE_LIMITED),
			 errmsg("%s has had too many requests (status %d)", call->service,
					call->status),
			 says ? errdetail("It says: %s", fit_to_show(says, call)) : 0));
}

int
api_retry_after(void)
{
	return retry_after;
}

void
api_refused(const ApiCall *call, const char *says)
{
	bool		login = call->status == 401 || call->status == 403 ||
	call->status == 407;
	HttpResponse response = {.failure = HTTP_OK,.status = call->status};
	int			code = call->status < 400 ? ERRCODE_MLINT_API :
	http_sqlstate(&response);

	if (says == NULL)
		says = words_of(call->json);
	if (call->confidential)
		says = NULL;
	if (call->status == 429)
		api_throttled(call, says);
	if (call->status >= 300 && call->status < 400)
		ereport(ERROR,
				(errcode(code),
				 errmsg("%s answered with a redirect (status %d)",
						call->service, call->status),
				 errhint("Name the URL that it redirects to: redirects are not followed.")));
	ereport(ERROR,
			(errcode(code),
			 login ?
			 errmsg("%s refused our credentials (status %d)", call->service,
					call->status) :
			 errmsg("%s answered with status %d", call->service,
					call->status),
			 says ? errdetail("It says: %s", fit_to_show(says, call)) : 0,
			 login ? errhint("Check the credentials, and what they are permitted there.") : 0));
}

void
api_strange(const ApiCall *call, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_SERIALIZATION),
			 errmsg("%s answered %s", call->service, what),
			 errhint("Check that its URL leads to the service that it should.")));
}

/* ---- the call ---- */

void
api_call(ApiCall *call)
{
	HttpTarget	target = {
		.url = call->url,
		.method = call->method,
		.ca = call->ca,
		.verify = true,
		.keep_body = call->max_bytes ? call->max_bytes : ANSWER_MAX,
		.confidential = true,
		.metadata = call->metadata,
		.timeout_ms = call->timeout_ms,
		.connect_timeout_ms = Min(call->timeout_ms, CONNECT_TIMEOUT_MS)
	};
	struct curl_slist *headers = call->headers;
	HttpResponse *response;

	call->credentials = credentials_in(headers);
	call->headers = NULL;
	call->json = NULL;
	response = http_perform(&target, headers, call->body, call->body_len);
	call->text = unconstify(char *, response->body);
	call->len = response->body_len;
	call->status = response->status;
	retry_after = response->retry_after;
	if (call->confidential)
		(void) api_confidential(call->text, call->len);

	if (response->failure != HTTP_OK)
		ereport(ERROR,
				(errcode(http_sqlstate(response)),
				 errmsg("could not reach %s: %s", call->service,
						response->error),
				 response->failure == HTTP_REFUSED ?
				 errhint("See the settings mlint.http_deny and mlint.http_allow.") : 0));
	if (response->truncated)
		api_strange(call, "with more than is read of an answer");
	call->json = api_json(call->text, call->len);
	if (call->json)
		(void) api_json_own(call->json);
	if (call->status == 429 || call->status >= 500 ||
		(call->status >= 300 && call->status < 400) ||
		(call->status >= 400 && !call->tolerant))
		api_refused(call, NULL);
}
