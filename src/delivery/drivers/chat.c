/*
 * chat.c
 *		What the drivers of chat services share; see chat.h.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/json.h"

#include "common/crypto.h"
#include "delivery/drivers/chat.h"

const Option chat_options[] = {
	{"url", OPTION_CREDENTIAL, offsetof(ChatOptions, url),
		NULL, 0, 0, NULL, NULL, true,
	"the webhook's URL, which is a credential: a reference to it"},
	{"timeout_ms", OPTION_INT, offsetof(ChatOptions, timeout_ms),
		"30000", 1, 3600000, NULL, NULL, false,
	"milliseconds that a delivery may take"},
	{NULL}
};

ChatState *
chat_open(const ChatService *service, const ChatOptions *o,
		  HttpClient *client)
{
	ChatState  *state = palloc0(sizeof(ChatState));
	HttpTarget	target = {0};
	size_t		len;
	char	   *url = credential_resolve(&o->url, &len);

	http_url_check(url, "url");
	target.url = url;
	target.method = "POST";
	target.timeout_ms = o->timeout_ms;
	target.connect_timeout_ms = Min(o->timeout_ms, 10000);
	target.verify = true;
	target.keep_body = 160;
	state->service = service;
	state->sender = http_sender_create(client, &target);
	crypto_wipe(url, len);
	http_sender_add_header(state->sender, "Content-Type", "application/json");
	return state;
}

void
chat_close(void *state)
{
	http_sender_free(((ChatState *) state)->sender);
}

/* The bytes of at most so many characters; bodies are in UTF-8. */
static size_t
clip_utf8(const char *text, size_t len, int max)
{
	size_t		bytes = 0;

	for (int chars = 0; bytes < len; bytes++)
	{
		/* Not a continuation: another character begins. */
		if ((text[bytes] & 0xC0) !=0x80 && chars++ == max)
			break;
	}
	return bytes;
}

/* At most max characters, as the service wants to have them. */
static void
append_clipped(StringInfo buf, const ChatService *service, const char *text,
			   size_t len)
{
	size_t		clipped = clip_utf8(text, len, service->max_data);

	for (size_t i = 0; i < clipped; i++)
	{
		if (service->escape_markup && text[i] == '&')
			appendStringInfoString(buf, "&amp;");
		else if (service->escape_markup && text[i] == '<')
			appendStringInfoString(buf, "&lt;");
		else if (service->escape_markup && text[i] == '>')
			appendStringInfoString(buf, "&gt;");
		else
			appendStringInfoChar(buf, text[i]);
	}
	if (clipped < len)
		appendStringInfoString(buf, " ...");
}

void
chat_submit(void *arg, Attempt *attempt)
{
	ChatState  *state = arg;
	const ChatService *service = state->service;
	const Event *event = attempt->event;
	StringInfoData text;
	StringInfoData body;

	if (attempt->transformed)
	{
		http_sender_send(state->sender, attempt, NULL, attempt->body,
						 attempt->body_len, false);
		return;
	}
	if (strncmp(event->type, service->own_types,
				strlen(service->own_types)) == 0)
	{
		http_sender_send(state->sender, attempt, NULL, event->data,
						 event->data_len, false);
		return;
	}
	initStringInfo(&text);
	appendStringInfoString(&text, service->before_type);
	append_clipped(&text, service, event->type, strlen(event->type));
	appendStringInfoString(&text, service->before_data);
	append_clipped(&text, service, event->data, event->data_len);
	appendStringInfoString(&text, service->after_data);
	initStringInfo(&body);
	appendStringInfo(&body, "{\"%s\":", service->field);
	escape_json(&body, text.data);
	appendStringInfoChar(&body, '}');
	pfree(text.data);
	http_sender_send(state->sender, attempt, NULL, body.data, body.len, true);
}
