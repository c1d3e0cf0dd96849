/*
 * http.c
 *		The http driver: a signed POST, and what all HTTP-based drivers share.
 *
 * An HttpSender is a destination's URL with the headers that never change,
 * and the request objects that have been used for it before: a connection
 * stays open, and an attempt costs only its own headers.
 *
 * How an answer is judged: 2xx is delivered. No answer, 408, 425, 429 and 5xx
 * are tried again, after Retry-After if the peer says so; other answers are
 * final. 410 says that the destination is gone: it is disabled.
 */
#include "postgres.h"

#include "common/crypto.h"
#include "common/errors.h"
#include "delivery/driver.h"
#include "delivery/signature.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* Idle request objects that a process keeps, over all destinations. */
#define MAX_IDLE	256
/* Of an error's body, shown in mlint.deliveries. */
#define EXCERPT		160
/* A peer that asks for more, in seconds, is asked again after so long. */
#define RETRY_AFTER_MAX	86400
/* Secrets that sign a delivery at the same time. */
#define MAX_SIGNATURES	8

struct HttpSender
{
	HttpClient *client;
	HttpTarget	target;
	int			nheaders;
	char	  **headers;
	int			nidle;
	int			idle_room;
	HttpRequest **idle;
};

typedef struct Sending
{
	HttpSender *sender;
	char	   *body;			/* to be freed; NULL: not ours */
} Sending;

static int	total_idle = 0;

HttpSender *
http_sender_create(HttpClient *client, const HttpTarget *target)
{
	HttpSender *sender = palloc0(sizeof(HttpSender));

	sender->client = client;
	sender->target = *target;
	sender->target.url = pstrdup(target->url);
	if (target->method)
		sender->target.method = pstrdup(target->method);
	if (target->ca)
		sender->target.ca = pstrdup(target->ca);
	sender->idle_room = 16;
	sender->idle = palloc(sizeof(HttpRequest *) * sender->idle_room);
	sender->headers = palloc(sizeof(char *) * 8);
	return sender;
}

void
http_sender_add_header(HttpSender *sender, const char *name,
					   const char *value)
{
	http_header_check(name, value, "destination");
	if (sender->nheaders >= 8 && (sender->nheaders & 7) == 0)
		sender->headers = repalloc(sender->headers, sizeof(char *) *
								   (sender->nheaders + 8));
	sender->headers[sender->nheaders++] = psprintf("%s: %s", name, value);
}

void
http_sender_free(HttpSender *sender)
{
	for (int i = 0; i < sender->nidle; i++)
		http_request_free(sender->idle[i]);
	total_idle -= sender->nidle;
	sender->nidle = 0;
	for (int i = 0; i < sender->nheaders; i++)
		crypto_wipe(sender->headers[i], strlen(sender->headers[i]));
	crypto_wipe(unconstify(char *, sender->target.url),
				strlen(sender->target.url));
}

/* Judge an answer. */
static Outcome
judge(const HttpResponse *response)
{
	Outcome		outcome = {0};
	int			status = response->status;

	outcome.status = status;
	outcome.retry_after = Min(response->retry_after, RETRY_AFTER_MAX);
	outcome.elapsed_us = response->elapsed_us;
	outcome.bytes = response->bytes_sent;
	if (response->failure != HTTP_OK)
	{
		outcome.kind = response->failure == HTTP_INVALID ||
			response->failure == HTTP_REFUSED ? OUTCOME_DEAD : OUTCOME_RETRY;
		strlcpy(outcome.error, response->error, sizeof(outcome.error));
		return outcome;
	}
	if (status >= 200 && status < 300)
	{
		outcome.kind = OUTCOME_DELIVERED;
		return outcome;
	}
	if (status == 408 || status == 425 || status == 429 || status >= 500)
		outcome.kind = OUTCOME_RETRY;
	else
		outcome.kind = OUTCOME_DEAD;
	outcome.disable = status == 410;
	if (outcome.disable)
		strlcpy(outcome.error, "HTTP 410: the receiver says that it is gone for good",
				sizeof(outcome.error));
	else if (status >= 300 && status < 400)
		snprintf(outcome.error, sizeof(outcome.error),
				 "HTTP %d: redirects are not followed, give the final URL",
				 status);
	else
		snprintf(outcome.error, sizeof(outcome.error), "HTTP %d%s%.*s",
				 status, response->body_len > 0 ? ": " : "",
				 (int) Min(response->body_len, EXCERPT), response->body);
	return outcome;
}

static void
sending_done(HttpRequest *request, const HttpResponse *response, void *arg)
{
	Attempt    *attempt = arg;
	Sending    *sending = attempt->driver_data;
	HttpSender *sender = sending->sender;
	Outcome		outcome = judge(response);

	if (total_idle < MAX_IDLE && sender->nidle < sender->idle_room)
	{
		sender->idle[sender->nidle++] = request;
		total_idle++;
	}
	else
		http_request_free(request);
	if (sending->body)
		pfree(sending->body);
	pfree(sending);
	attempt->driver_data = NULL;
	attempt->done(attempt, &outcome);
}

/* Append a header; false when there is no memory for it. */
static bool
add_line(struct curl_slist **headers, const char *line)
{
	struct curl_slist *longer = curl_slist_append(*headers, line);

	if (longer == NULL)
		return false;
	*headers = longer;
	return true;
}

/* A request that cannot be put together now. */
static void
sending_impossible(Attempt *attempt)
{
	Outcome		outcome = {.kind = OUTCOME_RETRY,.retry_after = -1};

	strlcpy(outcome.error, "the request could not be signed or put together, memory is short",
			sizeof(outcome.error));
	attempt->done(attempt, &outcome);
}

void
http_sender_send(HttpSender *sender, Attempt *attempt,
				 struct curl_slist *headers, const char *body,
				 size_t body_len, bool free_body)
{
	HttpRequest *request;
	Sending    *sending;

	for (int i = 0; i < sender->nheaders; i++)
	{
		if (add_line(&headers, sender->headers[i]))
			continue;
		curl_slist_free_all(headers);
		if (free_body)
			pfree(unconstify(char *, body));
		sending_impossible(attempt);
		return;
	}
	if (sender->nidle > 0)
	{
		request = sender->idle[--sender->nidle];
		total_idle--;
	}
	else
		request = http_request_create(sender->client, &sender->target);
	sending = palloc(sizeof(Sending));
	sending->sender = sender;
	sending->body = free_body ? unconstify(char *, body) : NULL;
	attempt->driver_data = sending;
	http_request_submit(request, headers, body, body_len, sending_done,
						attempt);
}

/* ---- the http driver ---- */

typedef enum SignatureForm
{
	SIGNATURE_BOTH,
	SIGNATURE_STANDARD,
	SIGNATURE_HUB,
	SIGNATURE_NONE
} SignatureForm;

typedef enum AuthType
{
	AUTH_NONE,
	AUTH_BEARER,
	AUTH_BASIC,
	AUTH_HEADER
} AuthType;

typedef struct HttpOptions
{
	DeliveryOptions delivery;
	char	   *url;
	int			method;
	Jsonb	   *headers;
	int			timeout_ms;
	int			connect_timeout_ms;
	int			auth_type;
	Credential	auth_token;
	char	   *auth_username;
	Credential	auth_password;
	char	   *auth_name;
	Credential	auth_value;
	CredentialList signing_secret;
	int			signature;
	char	   *tls_ca;
	bool		tls_verify;
} HttpOptions;

typedef struct HttpState
{
	HttpSender *sender;
	SignatureForm signature;
	int			nkeys;
	SigningKey *keys[MAX_SIGNATURES];
} HttpState;

static const char *const methods[] = {"POST", "PUT", "PATCH", NULL};
static const char *const signature_forms[] = {"both", "standard", "hub",
"none", NULL};
static const char *const auth_types[] = {"none", "bearer", "basic", "header",
NULL};

#define AT(member) offsetof(HttpOptions, member)

static const Option auth_options[] = {
	{"type", OPTION_ENUM, AT(auth_type), "none", 0, 0, auth_types, NULL,
	false, "how requests are authenticated"},
	{"token", OPTION_CREDENTIAL, AT(auth_token), NULL, 0, 0, NULL, NULL,
	false, "bearer: the token"},
	{"username", OPTION_TEXT, AT(auth_username), NULL, 0, 0, NULL, NULL,
	false, "basic: the user"},
	{"password", OPTION_CREDENTIAL, AT(auth_password), NULL, 0, 0, NULL, NULL,
	false, "basic: the password"},
	{"name", OPTION_TEXT, AT(auth_name), NULL, 0, 0, NULL, NULL,
	false, "header: its name, such as X-API-Key"},
	{"value", OPTION_CREDENTIAL, AT(auth_value), NULL, 0, 0, NULL, NULL,
	false, "header: its value"},
	{NULL}
};

static const Option tls_options[] = {
	{"ca", OPTION_TEXT, AT(tls_ca), NULL, 0, 0, NULL, NULL,
	false, "certificates to trust instead of the system's, PEM"},
	{"verify", OPTION_BOOL, AT(tls_verify), "true", 0, 0, NULL, NULL,
	false, "whether the certificate and its name are checked"},
	{NULL}
};

static const Option options[] = {
	{"url", OPTION_URL, AT(url), NULL, 0, 0, NULL, NULL,
	true, "where to send"},
	{"method", OPTION_ENUM, AT(method), "POST", 0, 0, methods, NULL,
	false, "HTTP method"},
	{"headers", OPTION_JSON, AT(headers), NULL, 0, 0, NULL, NULL,
	false, "more headers: names to strings, or to references"},
	{"timeout_ms", OPTION_INT, AT(timeout_ms), "30000", 1, 3600000, NULL, NULL,
	false, "milliseconds that a delivery may take"},
	{"connect_timeout_ms", OPTION_INT, AT(connect_timeout_ms), "10000", 1,
		600000, NULL, NULL,
	false, "milliseconds that connecting may take"},
	{"auth", OPTION_GROUP, 0, NULL, 0, 0, NULL, auth_options,
	false, "authentication"},
	{"signing_secret", OPTION_CREDENTIALS, AT(signing_secret), NULL, 0, 0,
		NULL, NULL,
	false, "secret that signs; several while it is being rotated, the newest first"},
	{"signature", OPTION_ENUM, AT(signature), "both", 0, 0, signature_forms,
		NULL,
	false, "standard: Standard Webhooks; hub: X-Webhook-Signature"},
	{"tls", OPTION_GROUP, 0, NULL, 0, 0, NULL, tls_options,
	false, "TLS"},
	{NULL}
};

/* Does a header of this name usually carry a credential? */
static bool
is_credential_header(const char *name)
{
	static const char *const names[] = {"authorization",
		"proxy-authorization", "cookie", "x-api-key", "api-key", "apikey",
	"x-auth-token", "x-access-token", "x-auth-key"};
	size_t		len = strlen(name);

	for (int i = 0; i < lengthof(names); i++)
	{
		if (pg_strcasecmp(name, names[i]) == 0)
			return true;
	}
	return (len > 6 && pg_strcasecmp(name + len - 6, "-token") == 0) ||
		(len > 7 && pg_strcasecmp(name + len - 7, "-secret") == 0);
}

/*
 * Go through the headers option. visit gets a plain value or a reference.
 */
typedef void (*HeaderVisitor) (const char *name, const char *value,
							   const Credential *credential, void *arg);

static void
each_header(Jsonb *headers, HeaderVisitor visit, void *arg)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	v;

	if (headers == NULL)
		return;
	it = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		char	   *name;

		if (token != WJB_KEY)
			continue;
		name = pnstrdup(v.val.string.val, v.val.string.len);
		(void) JsonbIteratorNext(&it, &v, true);
		if (v.type == jbvString && !is_credential_header(name))
			visit(name, pnstrdup(v.val.string.val, v.val.string.len), NULL,
				  arg);
		else if (v.type != jbvString && v.type != jbvBinary)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("header \"%s\" must be a string, or a reference to a credential",
							name),
					 errhint("For example {\"X-Tenant\": \"a\", \"X-Key\": {\"secret\": \"name\"}}.")));
		else
		{
			Credential	credential = credential_parse(&v, psprintf("header \"%s\"", name));

			visit(name, NULL, &credential, arg);
		}
	}
}

/* The header that an authentication of this kind adds; NULL: none. */
static const char *
auth_header(const HttpOptions *o)
{
	switch ((AuthType) o->auth_type)
	{
		case AUTH_NONE:
			break;
		case AUTH_BEARER:
		case AUTH_BASIC:
			return "Authorization";
		case AUTH_HEADER:
			return o->auth_name;
	}
	return NULL;
}

/* Those that make a delivery what it is are nobody else's to set. */
static bool
is_own_header(const char *name)
{
	static const char *const names[] = {"webhook-id", "webhook-timestamp",
	"webhook-signature", "X-Webhook-Signature"};

	for (int i = 0; i < lengthof(names); i++)
	{
		if (pg_strcasecmp(name, names[i]) == 0)
			return true;
	}
	return false;
}

static void
refuse_own_header(const char *name, const char *option)
{
	if (is_own_header(name))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("header \"%s\" in option \"%s\" is set by the driver itself",
						name, option),
				 errhint("The options \"signing_secret\" and \"signature\" say how deliveries are signed.")));
}

typedef struct HeaderCheck
{
	const HttpOptions *options;
	Oid			owner;
} HeaderCheck;

static void
check_header(const char *name, const char *value,
			 const Credential *credential, void *arg)
{
	HeaderCheck *check = arg;
	const char *auth = auth_header(check->options);

	http_header_check(name, value ? value : "", "option \"headers\"");
	refuse_own_header(name, "headers");
	if (auth && pg_strcasecmp(name, auth) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("header \"%s\" is given by both \"headers\" and \"auth\"",
						name),
				 errhint("Leave one of them out.")));
	if (credential)
		credential_check(credential, check->owner,
						 psprintf("header \"%s\"", name));
}

static void
require(bool given, const char *option, const char *type)
{
	if (!given)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("auth of type \"%s\" needs the option \"auth.%s\"",
						type, option)));
}

static void
http_check(const void *opts, Oid owner)
{
	const HttpOptions *o = opts;
	HeaderCheck check = {o, owner};

	switch ((AuthType) o->auth_type)
	{
		case AUTH_NONE:
			if (o->auth_token.kind || o->auth_password.kind ||
				o->auth_value.kind || o->auth_username || o->auth_name)
				ereport(ERROR,
						(errcode(ERRCODE_MLINT_CONFIGURATION),
						 errmsg("option \"auth\" has no type"),
						 errhint("For example {\"auth\": {\"type\": \"bearer\", \"token\": {\"secret\": \"name\"}}}.")));
			break;
		case AUTH_BEARER:
			require(o->auth_token.kind != CREDENTIAL_NONE, "token", "bearer");
			break;
		case AUTH_BASIC:
			require(o->auth_username != NULL, "username", "basic");
			require(o->auth_password.kind != CREDENTIAL_NONE, "password",
					"basic");
			break;
		case AUTH_HEADER:
			require(o->auth_name != NULL, "name", "header");
			require(o->auth_value.kind != CREDENTIAL_NONE, "value", "header");
			http_header_check(o->auth_name, "", "option \"auth.name\"");
			refuse_own_header(o->auth_name, "auth.name");
			break;
	}
	if (o->signing_secret.n > MAX_SIGNATURES)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"signing_secret\" takes at most %d secrets",
						MAX_SIGNATURES)));
	each_header(o->headers, check_header, &check);
}

static void
add_secret_header(HttpSender *sender, const char *name, const char *prefix,
				  const Credential *credential)
{
	size_t		len;
	char	   *value = credential_resolve(credential, &len);
	char	   *full = psprintf("%s%s", prefix, value);

	crypto_wipe(value, len);
	http_sender_add_header(sender, name, full);
	crypto_wipe(full, strlen(full));
	pfree(full);
}

static void
add_basic_auth(HttpSender *sender, const char *username,
			   const Credential *credential)
{
	size_t		len;
	char	   *password = credential_resolve(credential, &len);
	char	   *pair = psprintf("%s:%s", username, password);
	size_t		pair_len = strlen(pair);
	char	   *encoded = palloc(CRYPTO_BASE64_BYTES(pair_len) + 6);

	crypto_wipe(password, len);
	memcpy(encoded, "Basic ", 6);
	crypto_base64(pair, pair_len, encoded + 6);
	crypto_wipe(pair, pair_len);
	http_sender_add_header(sender, "Authorization", encoded);
	crypto_wipe(encoded, strlen(encoded));
}

typedef struct HeaderAdder
{
	HttpSender *sender;
	bool		content_type;
} HeaderAdder;

static void
add_header(const char *name, const char *value,
		   const Credential *credential, void *arg)
{
	HeaderAdder *adder = arg;

	if (pg_strcasecmp(name, "Content-Type") == 0)
		adder->content_type = true;
	if (credential)
		add_secret_header(adder->sender, name, "", credential);
	else
		http_sender_add_header(adder->sender, name, value);
}

static void
http_close(void *arg)
{
	HttpState  *state = arg;

	if (state->sender)
		http_sender_free(state->sender);
	for (int i = 0; i < state->nkeys; i++)
		signing_key_free(state->keys[i]);
	state->nkeys = 0;
}

/* Sign with this secret too. */
static void
add_key(HttpState *state, char *secret, size_t len)
{
	/* A malformed one raises; the secret goes with its context then. */
	state->keys[state->nkeys] = signing_key_create(secret, len);
	state->nkeys++;
	crypto_wipe(secret, len);
}

/*
 * The same with one from before a rotation: if it is malformed nothing has ever
 * been signed with it, and nobody will miss it.
 */
static void
add_previous_key(HttpState *state, char *secret, size_t len)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		add_key(state, secret, len);
	}
	PG_CATCH();
	{
		crypto_wipe(secret, len);
		if (geterrcode() != ERRCODE_MLINT_CONFIGURATION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
}

/*
 * The sender, and the keys: all current secrets, the newest first, and then
 * those that are valid beside them since a rotation.
 */
static void
open_sender(HttpState *state, const HttpOptions *o, HttpClient *client)
{
	HttpTarget	target = {0};
	HeaderAdder adder;
	char	   *secret;
	size_t		len;

	target.url = o->url;
	target.method = methods[o->method];
	target.timeout_ms = o->timeout_ms;
	target.connect_timeout_ms = o->connect_timeout_ms;
	target.ca = o->tls_ca;
	target.verify = o->tls_verify;
	target.keep_body = EXCERPT;
	state->sender = adder.sender = http_sender_create(client, &target);
	adder.content_type = false;
	each_header(o->headers, add_header, &adder);
	if (!adder.content_type)
		http_sender_add_header(state->sender, "Content-Type",
							   "application/json");

	if (o->auth_type == AUTH_BEARER)
		add_secret_header(state->sender, "Authorization", "Bearer ",
						  &o->auth_token);
	else if (o->auth_type == AUTH_BASIC)
		add_basic_auth(state->sender, o->auth_username, &o->auth_password);
	else if (o->auth_type == AUTH_HEADER)
		add_secret_header(state->sender, o->auth_name, "", &o->auth_value);

	state->signature = o->signing_secret.n == 0 ? SIGNATURE_NONE :
		o->signature;
	if (state->signature == SIGNATURE_NONE)
		return;
	for (int i = 0; i < o->signing_secret.n; i++)
	{
		secret = credential_resolve(&o->signing_secret.items[i], &len);
		add_key(state, secret, len);
	}
	for (int i = 0; i < o->signing_secret.n && state->nkeys < MAX_SIGNATURES;
		 i++)
	{
		secret = credential_resolve_previous(&o->signing_secret.items[i],
											 &len);
		if (secret)
			add_previous_key(state, secret, len);
	}
}

static void *
http_open(const void *opts, Oid owner, HttpClient *client)
{
	HttpState  *state = palloc0(sizeof(HttpState));

	PG_TRY();
	{
		open_sender(state, opts, client);
	}
	PG_CATCH();
	{
		http_close(state);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return state;
}

static void
http_submit(void *arg, Attempt *attempt)
{
	HttpState  *state = arg;
	const Event *event = attempt->event;
	struct curl_slist *headers = NULL;
	bool		ok;
	char		line[64 + MAX_SIGNATURES * SIGNATURE_STANDARD_BYTES];
	int			n;

	snprintf(line, sizeof(line), "webhook-id: %s", event->webhook_id);
	ok = add_line(&headers, line);
	if (state->signature == SIGNATURE_BOTH ||
		state->signature == SIGNATURE_STANDARD)
	{
		pg_time_t	now = (pg_time_t) time(NULL);

		snprintf(line, sizeof(line), "webhook-timestamp: " INT64_FORMAT,
				 (int64) now);
		ok = ok && add_line(&headers, line);
		n = strlcpy(line, "webhook-signature: ", sizeof(line));
		ok = ok && signature_standard(state->keys, state->nkeys,
									  event->webhook_id,
									  strlen(event->webhook_id), now,
									  attempt->body, attempt->body_len,
									  line + n) &&
			add_line(&headers, line);
	}
	if (state->signature == SIGNATURE_BOTH ||
		state->signature == SIGNATURE_HUB)
	{
		n = strlcpy(line, "X-Webhook-Signature: ", sizeof(line));
		ok = ok && signature_hub(state->keys[0], attempt->body,
								 attempt->body_len, line + n) &&
			add_line(&headers, line);
	}
	if (!ok)
	{
		/* Never unsigned, and never without its headers. */
		curl_slist_free_all(headers);
		sending_impossible(attempt);
		return;
	}
	http_sender_send(state->sender, attempt, headers, attempt->body,
					 attempt->body_len, false);
}

const Driver http_driver = {
	.name = "http",
	.help = "sends the event to a URL, signed",
	.options = options,
	.options_size = sizeof(HttpOptions),
	.check = http_check,
	.open = http_open,
	.close = http_close,
	.submit = http_submit,
};
