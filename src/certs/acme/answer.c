/*
 * answer.c
 *		What an authority answers, read; see answer.h.
 *
 * An answer is taken as a whole or not at all: its status, its content type,
 * its JSON (whose depth is measured before the parser, which recurses, sees
 * it), then the members that its kind must have. Members that we don't know are
 * passed over, as RFC 8555 wants. A wrong type, an unknown status or a URL that
 * leads elsewhere make it malformed, and "fault" says which; it never quotes
 * what came.
 *
 * snprintf() and the like are the server's own inside it, so that this file
 * makes its texts itself.
 */
#include "postgres.h"

#include <strings.h>

#include "certs/acme/answer.h"

/* The server has a function of this name, too, and the linker would take it. */
#define json_object json_object_of_jansson
#include <jansson.h>
#undef json_object

/* A person reads no more of a problem's texts. */
#define DETAIL_MAX		1000
#define NAME_MAX_BYTES	300
#define TYPE_MAX		100

/* ---- small things ---- */

/* Append to a text in a buffer, cut to what has room. */
static void
append(char *out, size_t size, const char *text)
{
	size_t		used = strlen(out);
	size_t		len = strlen(text);

	if (len > size - 1 - used)
		len = size - 1 - used;
	memcpy(out + used, text, len);
	out[used + len] = '\0';
}

/* The same for what may be long, and hold anything. */
static void
append_foreign(char *out, size_t size, const char *text, size_t max)
{
	size_t		at = strlen(out);

	for (size_t i = 0; i < max && text[i] != '\0' && at < size - 1; i++)
	{
		unsigned char c = (unsigned char) text[i];

		out[at++] = c < ' ' || c == 0x7f ? ' ' : (char) c;
	}
	out[at] = '\0';
}

static void
append_number(char *out, size_t size, int n)
{
	char		digits[16];
	int			at = sizeof(digits) - 1;

	digits[at] = '\0';
	do
	{
		digits[--at] = '0' + n % 10;
		n /= 10;
	} while (n > 0);
	append(out, size, digits + at);
}

static bool
malformed(Answer *answer, const char *what)
{
	answer->outcome = ANSWER_MALFORMED;
	answer->fault[0] = '\0';
	append(answer->fault, sizeof(answer->fault), what);
	return false;
}

/* The same for a member: "<what> of the order is missing or no text". */
static bool
malformed_member(Answer *answer, const char *member, const char *how)
{
	answer->outcome = ANSWER_MALFORMED;
	answer->fault[0] = '\0';
	append(answer->fault, sizeof(answer->fault), "its member \"");
	append(answer->fault, sizeof(answer->fault), member);
	append(answer->fault, sizeof(answer->fault), "\" ");
	append(answer->fault, sizeof(answer->fault), how);
	return false;
}

static bool
is_base64url(const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++)
	{
		char		c = text[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			  (c >= '0' && c <= '9') || c == '-' || c == '_'))
			return false;
	}
	return len > 0;
}

/* ---- URLs ---- */

/*
 * Scheme, host and port of a URL, in lower case and with the port written out;
 * how long the URL's own authority part is does not matter then. False for
 * anything out of the ordinary: credentials, a fragment, what must be escaped.
 */
static bool
url_origin(const char *url, char out[ORIGIN_BYTES])
{
	size_t		len = strlen(url);
	size_t		scheme;
	size_t		host;
	size_t		n = 0;
	const char *at;
	long		port;

	if (len > ANSWER_URL_MAX)
		return false;
	for (const char *p = url; *p; p++)
	{
		if (*p <= ' ' || *p > '~' || strchr("#\\\"<>^`{|}", *p) != NULL)
			return false;
	}
	if (strncasecmp(url, "https://", 8) == 0)
		scheme = 8;
	else if (strncasecmp(url, "http://", 7) == 0)
		scheme = 7;
	else
		return false;
	port = scheme == 8 ? 443 : 80;

	at = url + scheme;
	if (*at == '[')
	{
		host = 1 + strspn(at + 1, "0123456789abcdefABCDEF:.");
		if (host < 3 || at[host] != ']')
			return false;
		host++;
	}
	else
		host = strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-");
	if (host == 0 || host > 255)
		return false;
	if (at[host] == ':')
	{
		size_t		digits = strspn(at + host + 1, "0123456789");

		if (digits < 1 || digits > 5)
			return false;
		port = 0;
		for (size_t i = 0; i < digits; i++)
			port = port * 10 + (at[host + 1 + i] - '0');
		if (port < 1 || port > 65535)
			return false;
		if (strchr("/?", at[host + 1 + digits]) == NULL)
			return false;
	}
	else if (strchr("/?", at[host]) == NULL)
		return false;

	for (const char *p = url; p < at + host; p++)
		out[n++] = *p >= 'A' && *p <= 'Z' ? *p - 'A' + 'a' : *p;
	out[n] = '\0';
	append(out, ORIGIN_BYTES, ":");
	append_number(out, ORIGIN_BYTES, (int) port);
	return true;
}

bool
origins_begin(Origins *origins, const char *directory_url)
{
	origins->n = 1;
	return url_origin(directory_url, origins->origin[0]);
}

bool
origins_allow(const Origins *origins, const char *url)
{
	char		origin[ORIGIN_BYTES];

	if (!url_origin(url, origin))
		return false;
	for (int i = 0; i < origins->n; i++)
	{
		if (strcmp(origins->origin[i], origin) == 0)
			return true;
	}
	return false;
}

/* What the directory names is trusted too; but not without TLS, if it has it. */
static bool
origins_add(Origins *origins, const char *url)
{
	char		origin[ORIGIN_BYTES];

	if (!url_origin(url, origin))
		return false;
	if (strncmp(origins->origin[0], "https:", 6) == 0 &&
		strncmp(origin, "https:", 6) != 0)
		return false;
	if (origins_allow(origins, url))
		return true;
	if (origins->n == ORIGINS_MAX)
		return false;
	memcpy(origins->origin[origins->n++], origin, ORIGIN_BYTES);
	return true;
}

/* ---- headers ---- */

/* The value of a header line, if it is this one. */
static bool
header_is(const char *line, size_t len, const char *name, const char **value,
		  size_t *value_len)
{
	size_t		n = strlen(name);

	if (len <= n || strncasecmp(line, name, n) != 0 || line[n] != ':')
		return false;
	line += n + 1;
	len -= n + 1;
	while (len > 0 && (*line == ' ' || *line == '\t'))
	{
		line++;
		len--;
	}
	while (len > 0 && strchr(" \t\r\n", line[len - 1]) != NULL)
		len--;
	*value = line;
	*value_len = len;
	return true;
}

/* A URL in a header, if it is allowed. */
static void
take_url(const Origins *origins, const char *value, size_t len,
		 char out[ANSWER_URL_MAX + 1])
{
	if (len == 0 || len > ANSWER_URL_MAX || memchr(value, '\0', len))
		return;
	memcpy(out, value, len);
	out[len] = '\0';
	if (!origins_allow(origins, out))
		out[0] = '\0';
}

/* Is there rel="next" among a link's parameters? */
static bool
is_next(const char *at, size_t len)
{
	for (size_t i = 0; i + 8 <= len; i++)
	{
		if (strncasecmp(at + i, "rel=next", 8) == 0 ||
			(i + 10 <= len && strncasecmp(at + i, "rel=\"next\"", 10) == 0))
			return true;
	}
	return false;
}

/* The links of a Link header (RFC 8288): which one leads to the next page? */
static void
take_next(const Origins *origins, const char *value, size_t len,
		  char out[ANSWER_URL_MAX + 1])
{
	while (len > 0)
	{
		const char *open = memchr(value, '<', len);
		const char *close;
		size_t		rest;
		size_t		parameters;

		if (open == NULL)
			return;
		rest = len - (open - value);
		close = memchr(open, '>', rest);
		if (close == NULL)
			return;
		rest -= close - open;
		parameters = 0;
		while (parameters < rest && close[parameters] != '<')
			parameters++;
		if (is_next(close, parameters))
			take_url(origins, open + 1, close - open - 1, out);
		value = close + parameters;
		len = rest - parameters;
	}
}

typedef enum ContentType
{
	CONTENT_OTHER,
	CONTENT_JSON,
	CONTENT_PROBLEM,
	CONTENT_CHAIN
} ContentType;

static ContentType
content_type(const char *value, size_t len)
{
	static const struct
	{
		const char *name;
		ContentType type;
	}			types[] = {
		{"application/json", CONTENT_JSON},
		{"application/problem+json", CONTENT_PROBLEM},
		{"application/pem-certificate-chain", CONTENT_CHAIN}
	};

	for (int i = 0; i < lengthof(types); i++)
	{
		size_t		n = strlen(types[i].name);

		if (len >= n && strncasecmp(value, types[i].name, n) == 0 &&
			(len == n || strchr("; \t", value[n]) != NULL))
			return types[i].type;
	}
	return CONTENT_OTHER;
}

/* Take what we want of the headers; returns the body's type. */
static ContentType
read_headers(AnswerKind kind, const Origins *origins, const Received *received,
			 Answer *answer, char next[ANSWER_URL_MAX + 1])
{
	const char *at = received->headers;
	const char *end = at + received->headers_len;
	ContentType type = CONTENT_OTHER;

	while (at < end)
	{
		const char *newline = memchr(at, '\n', end - at);
		size_t		len = (newline ? newline + 1 : end) - at;
		const char *value;
		size_t		n;

		if (header_is(at, len, "Content-Type", &value, &n))
			type = content_type(value, n);
		else if (header_is(at, len, "Replay-Nonce", &value, &n))
		{
			if (n <= ANSWER_NONCE_MAX && is_base64url(value, n))
			{
				memcpy(answer->nonce, value, n);
				answer->nonce[n] = '\0';
			}
		}
		else if (header_is(at, len, "Location", &value, &n))
			take_url(origins, value, n, answer->location);
		else if (kind == ANSWER_ORDERS &&
				 header_is(at, len, "Link", &value, &n))
			take_next(origins, value, n, next);
		at += len;
	}
	return type;
}

/* ---- JSON ---- */

/* Is it nested no deeper than anything of ACME's is? */
static bool
is_shallow(const char *body, size_t len)
{
	int			depth = 0;
	bool text = false;

	for (size_t i = 0; i < len; i++)
	{
		char		c = body[i];

		if (text)
		{
			if (c == '\\')
				i++;
			else if (c == '"')
				text = false;
		}
		else if (c == '"')
			text = true;

		else if (c == '{' || c == '[')
		{
			if (++depth > ANSWER_MAX_DEPTH)
				return false;
		}
		else if (c == '}' || c == ']')
			depth--;
	}
	return true;
}

static bool
read_json(const Received *received, Answer *answer)
{
	json_error_t error;

	if (!is_shallow(received->body, received->body_len))
		return malformed(answer, "its JSON is nested too deeply");
	answer->json = json_loadb(received->body, received->body_len,
							  JSON_REJECT_DUPLICATES, &error);
	if (!json_is_object(answer->json))
		return malformed(answer, "it is no JSON object");
	return true;
}

/* A text member of bounded length, or NULL. */
static const char *
text_of(const json_t *object, const char *member, size_t max)
{
	json_t	   *value = json_object_get(object, member);

	if (!json_is_string(value) || json_string_length(value) > max)
		return NULL;
	return json_string_value(value);
}

/* A URL that must be there. */
static bool
required_url(Answer *answer, const Origins *origins, const json_t *object,
			 const char *member, const char **url)
{
	*url = text_of(object, member, ANSWER_URL_MAX);
	if (*url == NULL)
		return malformed_member(answer, member, "is missing, or is no URL");
	if (!origins_allow(origins, *url))
		return malformed_member(answer, member,
								"is a URL that leads away from the server");
	return true;
}

static bool
optional_url(Answer *answer, const Origins *origins, const json_t *object,
			 const char *member, const char **url)
{
	json_t	   *value = json_object_get(object, member);

	*url = NULL;
	if (value == NULL || json_is_null(value))
		return true;
	return required_url(answer, origins, object, member, url);
}

static bool
read_status(Answer *answer, const json_t *object, AcmeStatus *status)
{
	static const char *const names[] = {"pending", "ready", "processing",
	"valid", "invalid", "deactivated", "expired", "revoked"};
	const char *text = text_of(object, "status", TYPE_MAX);

	for (int i = 0; text &&i < lengthof(names); i++)
	{
		if (strcmp(text, names[i]) == 0)
		{
			*status = (AcmeStatus) i;
			return true;
		}
	}
	return malformed_member(answer, "status", "is missing, or unknown");
}

/* Days from 2000-01-01 to this one of the Gregorian calendar. */
static int64
days_since_2000(int year, int month, int day)
{
	int64		y = month <= 2 ? year - 1 : year;
	int64		era = y / 400;
	int64		of_era = y - era * 400;
	int64		of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

	return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year -
		730425;
}

/* So many digits, and what they come to. */
static bool
digits(const char **at, int n, int *value)
{
	*value = 0;
	for (int i = 0; i < n; i++, (*at)++)
	{
		if (**at < '0' || **at > '9')
			return false;
		*value = *value * 10 + (**at - '0');
	}
	return true;
}

bool
answer_time(const char *text, TimestampTz *time)
{
	int			year,
				month,
				day,
				hour,
				minute,
				second;
	int			zone_hour = 0,
				zone_minute = 0;
	int			sign = 0;
	int64		micro = 0;

	if (!digits(&text, 4, &year) || *text ++!= '-' ||
		!digits(&text, 2, &month) || *text ++!= '-' ||
		!digits(&text, 2, &day) || (*text !='T' && *text !='t' && *text !=' '))
		return false;
	text	  ++;

	if (!digits(&text, 2, &hour) || *text ++!= ':' ||
		!digits(&text, 2, &minute) || *text ++!= ':' ||
		!digits(&text, 2, &second))
		return false;
	if (*text == '.')
	{
		int64		unit = 100000;

		if (text[1] < '0' || text[1] > '9')
			return false;
		for (text ++; *text >='0' && *text <='9'; text ++, unit /= 10)
			micro += (*text -'0') *unit;
	}
	if (*text == '+' || *text == '-')
	{
		sign = *text ++== '-' ? 1 : -1;
		if (!digits(&text, 2, &zone_hour) || *text ++!= ':' ||
			!digits(&text, 2, &zone_minute))
			return false;
	}
	else if (*text !='Z' && *text !='z')
		return false;
	else
		text	  ++;

	if (*text !='\0' || year < 1970 || month < 1 || month > 12 || day < 1 ||
		day > 31 || hour > 23 || minute > 59 || second > 60 ||
		zone_hour > 23 || zone_minute > 59)
		return false;
	*time = ((days_since_2000(year, month, day) * 24 + hour +
			  sign * zone_hour) * 60 + minute + sign * zone_minute) *
		60 * USECS_PER_SEC + second * USECS_PER_SEC + micro;
	return true;
}

/* ---- problems ---- */

static ProblemKind
problem_kind(const char *type, int status, bool retry_after)
{
	static const struct
	{
		const char *type;
		ProblemKind kind;
	}			kinds[] = {
		{"badNonce", PROBLEM_BAD_NONCE},
		{"rateLimited", PROBLEM_RATE_LIMITED},
		{"serverInternal", PROBLEM_TRANSIENT},
		{"accountDoesNotExist", PROBLEM_NO_ACCOUNT},
		{"orderNotReady", PROBLEM_ORDER_NOT_READY},
		{"alreadyRevoked", PROBLEM_ALREADY_REVOKED},
		{"alreadyReplaced", PROBLEM_ALREADY_REPLACED}
	};

	if (status == 429 || (status == 503 && retry_after))
		return PROBLEM_RATE_LIMITED;
	for (int i = 0; type && i < lengthof(kinds); i++)
	{
		if (strcmp(type, kinds[i].type) == 0)
			return kinds[i].kind;
	}
	if (status >= 500 || status == 408 || status == 425)
		return PROBLEM_TRANSIENT;
	return PROBLEM_OTHER;
}

/* A problem's type without what ACME's have in common. */
static const char *
problem_type(const json_t *object)
{
	static const char prefix[] = "urn:ietf:params:acme:error:";
	const char *type = text_of(object, "type", TYPE_MAX);

	if (type && strncmp(type, prefix, sizeof(prefix) - 1) == 0)
		return type + sizeof(prefix) - 1;
	return type && strcmp(type, "about:blank") != 0 ? type : NULL;
}

/* Nothing in a problem can be wrong: what cannot be read is not there. */
static void
read_problem(const json_t *object, int status, bool retry_after,
			 Problem *problem)
{
	json_t	   *subproblems = json_object_get(object, "subproblems");

	memset(problem, 0, sizeof(Problem));
	problem->status = status;
	problem->type = problem_type(object);
	problem->detail = text_of(object, "detail", PG_INT32_MAX);
	problem->instance = text_of(object, "instance", ANSWER_URL_MAX);
	problem->kind = problem_kind(problem->type, status, retry_after);
	if (!json_is_array(subproblems))
		return;
	problem->nsub = (int) json_array_size(subproblems);
	for (int i = 0; i < problem->nsub && i < ANSWER_MAX_SUBPROBLEMS; i++)
	{
		json_t	   *sub = json_array_get(subproblems, i);
		Subproblem *s = &problem->sub[i];

		s->type = problem_type(sub);
		s->detail = text_of(sub, "detail", PG_INT32_MAX);
		s->identifier = text_of(json_object_get(sub, "identifier"), "value",
								NAME_MAX_BYTES);
	}
}

/* The problem of an order or of a challenge, if there is one. */
static bool
inner_problem(const json_t *object, Problem *problem)
{
	json_t	   *error = json_object_get(object, "error");

	if (!json_is_object(error))
		return false;
	read_problem(error, 0, false, problem);
	return true;
}

void
problem_text(const Problem *problem, const char *about, char *out, size_t size)
{
	out[0] = '\0';
	if (about)
	{
		append_foreign(out, size, about, NAME_MAX_BYTES);
		append(out, size, ": ");
	}
	if (problem->detail)
		append_foreign(out, size, problem->detail, DETAIL_MAX);
	else if (problem->type == NULL)
		append(out, size, "the server gave no reason");
	if (problem->type)
	{
		append(out, size, problem->detail ? " (" : "");
		append_foreign(out, size, problem->type, TYPE_MAX);
		append(out, size, problem->detail ? ")" : "");
	}
	else if (problem->status > 0)
	{
		append(out, size, " (status ");
		append_number(out, size, problem->status);
		append(out, size, ")");
	}
	for (int i = 0; i < problem->nsub && i < ANSWER_MAX_SUBPROBLEMS; i++)
	{
		const Subproblem *s = &problem->sub[i];

		append(out, size, "; ");
		if (s->identifier)
		{
			append_foreign(out, size, s->identifier, NAME_MAX_BYTES);
			append(out, size, ": ");
		}
		append_foreign(out, size, s->detail ? s->detail :
					   s->type ? s->type : "no reason", DETAIL_MAX);
	}
	if (problem->nsub > ANSWER_MAX_SUBPROBLEMS)
		append(out, size, "; and more");
	if (problem->instance)
	{
		append(out, size, "; see ");
		append_foreign(out, size, problem->instance, ANSWER_URL_MAX);
	}
}

/* ---- what each kind has ---- */

static bool
directory_url(Answer *answer, const char *member, bool required,
			  const char **url)
{
	json_t	   *value = json_object_get(answer->json, member);

	*url = NULL;
	if (!required && (value == NULL || json_is_null(value)))
		return true;
	*url = text_of(answer->json, member, ANSWER_URL_MAX);
	if (*url == NULL)
		return malformed_member(answer, member, "is missing, or is no URL");
	if (!origins_add(&answer->directory.origins, *url))
		return malformed_member(answer, member,
								"is no URL that we would send to");
	return true;
}

static bool
read_directory(Answer *answer, const Origins *origins)
{
	DirectoryAnswer *d = &answer->directory;

	d->origins = *origins;
	d->binding_required =
		json_is_true(json_object_get(json_object_get(answer->json, "meta"),
									 "externalAccountRequired"));
	return directory_url(answer, "newNonce", true, &d->new_nonce) &&
		directory_url(answer, "newAccount", true, &d->new_account) &&
		directory_url(answer, "newOrder", true, &d->new_order) &&
		directory_url(answer, "revokeCert", false, &d->revoke) &&
		directory_url(answer, "keyChange", false, &d->key_change) &&
		directory_url(answer, "renewalInfo", false, &d->renewal_info);
}

static bool
read_account(Answer *answer, const Origins *origins)
{
	AccountAnswer *a = &answer->account;

	return read_status(answer, answer->json, &a->status) &&
		optional_url(answer, origins, answer->json, "orders", &a->orders);
}

static bool
read_identifier(Answer *answer, const json_t *object, Identifier *identifier)
{
	const char *type = text_of(object, "type", TYPE_MAX);

	identifier->value = text_of(object, "value", NAME_MAX_BYTES);
	if (type == NULL || identifier->value == NULL ||
		(strcmp(type, "dns") != 0 && strcmp(type, "ip") != 0))
		return malformed_member(answer, "identifier",
								"is missing, or is none of a name or address");
	identifier->address = strcmp(type, "ip") == 0;
	return true;
}

static bool
read_order(Answer *answer, const Origins *origins)
{
	OrderAnswer *o = &answer->order;
	json_t	   *identifiers = json_object_get(answer->json, "identifiers");
	json_t	   *authorizations = json_object_get(answer->json,
												 "authorizations");
	const char *expires = text_of(answer->json, "expires", TYPE_MAX);

	if (!read_status(answer, answer->json, &o->status) ||
		!required_url(answer, origins, answer->json, "finalize",
					  &o->finalize) ||
		!optional_url(answer, origins, answer->json, "certificate",
					  &o->certificate))
		return false;
	if (expires && !answer_time(expires, &o->expires))
		return malformed_member(answer, "expires", "is no time");
	o->n = (int) json_array_size(identifiers);
	if (o->n < 1 || o->n > ANSWER_MAX_NAMES)
		return malformed_member(answer, "identifiers",
								"is missing, empty or too long");
	for (int i = 0; i < o->n; i++)
	{
		if (!read_identifier(answer, json_array_get(identifiers, i),
							 &o->identifiers[i]))
			return false;
	}
	o->nauthorizations = (int) json_array_size(authorizations);
	if (o->nauthorizations < 1 || o->nauthorizations > ANSWER_MAX_NAMES)
		return malformed_member(answer, "authorizations",
								"is missing, empty or too long");
	for (int i = 0; i < o->nauthorizations; i++)
	{
		json_t	   *url = json_array_get(authorizations, i);

		if (!json_is_string(url) ||
			!origins_allow(origins, json_string_value(url)))
			return malformed_member(answer, "authorizations",
									"has a URL that leads away from the server");
		o->authorizations[i] = json_string_value(url);
	}
	o->has_problem = inner_problem(answer->json, &o->problem);
	return true;
}

/* of: its type is one that we know, so that it must be whole. */
static bool
read_challenge(Answer *answer, const Origins *origins, const json_t *object,
			   ChallengeAnswer *c)
{
	json_t	   *token = json_object_get(object, "token");

	c->type = text_of(object, "type", TYPE_MAX);
	if (c->type == NULL)
		return malformed_member(answer, "type", "is missing, or no text");
	if (!required_url(answer, origins, object, "url", &c->url) ||
		!read_status(answer, object, &c->status))
		return false;
	if (token)
	{
		if (!json_is_string(token) ||
			json_string_length(token) > ANSWER_TOKEN_MAX ||
			!is_base64url(json_string_value(token),
						  json_string_length(token)))
			return malformed_member(answer, "token", "is no token");
		c->token = json_string_value(token);
	}
	else if (strcmp(c->type, "http-01") == 0 || strcmp(c->type, "dns-01") == 0)
		return malformed_member(answer, "token", "is missing");
	c->has_problem = inner_problem(object, &c->problem);
	return true;
}

static bool
read_authorization(Answer *answer, const Origins *origins)
{
	AuthorizationAnswer *a = &answer->authorization;
	json_t	   *challenges = json_object_get(answer->json, "challenges");

	if (!read_status(answer, answer->json, &a->status) ||
		!read_identifier(answer, json_object_get(answer->json, "identifier"),
						 &a->identifier))
		return false;
	a->wildcard = json_is_true(json_object_get(answer->json, "wildcard"));
	if (!json_is_array(challenges) ||
		json_array_size(challenges) > ANSWER_MAX_CHALLENGES)
		return malformed_member(answer, "challenges",
								"is missing, or too long");
	a->n = (int) json_array_size(challenges);
	for (int i = 0; i < a->n; i++)
	{
		if (!read_challenge(answer, origins, json_array_get(challenges, i),
							&a->challenges[i]))
			return false;
	}
	return true;
}

static bool
read_renewal(Answer *answer)
{
	RenewalAnswer *r = &answer->renewal;
	json_t	   *window = json_object_get(answer->json, "suggestedWindow");
	const char *start = text_of(window, "start", TYPE_MAX);
	const char *end = text_of(window, "end", TYPE_MAX);
	char		origin[ORIGIN_BYTES];

	if (start == NULL || end == NULL || !answer_time(start, &r->start) ||
		!answer_time(end, &r->end) || r->end <= r->start)
		return malformed_member(answer, "suggestedWindow",
								"is missing, or no period of time");
	/* It is not ours to follow, so it may lead anywhere. */
	r->url = text_of(answer->json, "explanationURL", ANSWER_URL_MAX);
	if (r->url && !url_origin(r->url, origin))
		r->url = NULL;
	return true;
}

static bool
read_orders(Answer *answer, const Origins *origins,
			const char next[ANSWER_URL_MAX + 1])
{
	OrdersAnswer *o = &answer->orders;
	json_t	   *orders = json_object_get(answer->json, "orders");

	if (!json_is_array(orders) || json_array_size(orders) > ANSWER_MAX_ORDERS)
		return malformed_member(answer, "orders", "is missing, or too long");
	o->n = (int) json_array_size(orders);
	for (int i = 0; i < o->n; i++)
	{
		json_t	   *url = json_array_get(orders, i);

		if (!json_is_string(url) ||
			!origins_allow(origins, json_string_value(url)))
			return malformed_member(answer, "orders",
									"has a URL that leads away from the server");
		o->urls[i] = json_string_value(url);
	}
	memcpy(o->next, next, sizeof(o->next));
	return true;
}

static bool
read_chain(Answer *answer, const Received *received)
{
	static const char begin[] = "-----BEGIN CERTIFICATE-----";

	if (memchr(received->body, '\0', received->body_len) != NULL ||
		strstr(received->body, begin) == NULL)
		return malformed(answer, "it has no certificate in PEM");
	answer->chain = received->body;
	return true;
}

/* What a status of 300 and more says. */
static void
read_failure(const Received *received, ContentType type, Answer *answer)
{
	if (received->status < 400)
	{
		answer->outcome = ANSWER_REDIRECT;
		return;
	}
	answer->outcome = ANSWER_PROBLEM;
	/* What we can't read of it makes it no less of a failure. */
	if (type == CONTENT_PROBLEM && !received->truncated &&
		is_shallow(received->body, received->body_len))
		answer->json = json_loadb(received->body, received->body_len, 0, NULL);
	read_problem(answer->json, received->status, received->retry_after,
				 &answer->problem);
}

static bool
read_good(AnswerKind kind, const Origins *origins, const Received *received,
		  ContentType type, const char next[ANSWER_URL_MAX + 1],
		  Answer *answer)
{
	if (kind == ANSWER_NONCE || kind == ANSWER_DONE)
		return true;
	if (received->truncated)
		return malformed(answer, "it is too long");
	if (type != (kind == ANSWER_CHAIN ? CONTENT_CHAIN : CONTENT_JSON))
		return malformed(answer, kind == ANSWER_CHAIN ?
						 "its content type is not application/pem-certificate-chain" :
						 "its content type is not application/json");
	if (kind == ANSWER_CHAIN)
		return read_chain(answer, received);
	if (!read_json(received, answer))
		return false;
	switch (kind)
	{
		case ANSWER_DIRECTORY:
			return read_directory(answer, origins);
		case ANSWER_ACCOUNT:
			return read_account(answer, origins);
		case ANSWER_ORDER:
			return read_order(answer, origins);
		case ANSWER_AUTHORIZATION:
			return read_authorization(answer, origins);
		case ANSWER_CHALLENGE:
			return read_challenge(answer, origins, answer->json,
								  &answer->challenge);
		case ANSWER_RENEWAL:
			return read_renewal(answer);
		case ANSWER_ORDERS:
			return read_orders(answer, origins, next);
		case ANSWER_NONCE:
		case ANSWER_CHAIN:
		case ANSWER_DONE:
			break;
	}
	return true;
}

void
answer_read(AnswerKind kind, const Origins *origins, const Received *received,
			Answer *answer)
{
	ContentType type;
	char		next[ANSWER_URL_MAX + 1] = "";

	memset(answer, 0, sizeof(Answer));
	answer->status = received->status;
	type = read_headers(kind, origins, received, answer, next);
	if (received->status >= 300)
		read_failure(received, type, answer);
	else if (received->status < 200)
		(void) malformed(answer, "its status is none");
	else
		(void) read_good(kind, origins, received, type, next, answer);
}

void
answer_free(Answer *answer)
{
	json_decref(answer->json);
	answer->json = NULL;
}
