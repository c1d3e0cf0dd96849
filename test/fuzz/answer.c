/*
 * answer.c
 *		Fuzz what reads an authority's answers (src/certs/acme/answer.c).
 *
 * Sources: certs/acme/answer.c
 *
 * An input is a kind of answer ('a' is ANSWER_DIRECTORY), a digit of flags
 * (1: cut off, 2: with Retry-After), the status in three digits, a newline, and
 * then headers, an empty line and the body, as they came. Two kinds more read
 * lines: 'k' URLs, 'l' times. Besides not to crash, what is read has to keep
 * what answer.h promises.
 */
#include "postgres.h"

#include <stdio.h>
#include <stdlib.h>

#include "certs/acme/answer.h"

#define DIRECTORY	"https://ca.test/dir"

extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

static void
promise(bool kept, const char *what)
{
	if (!kept)
	{
		fputs("broken promise: ", stderr);
		fputs(what, stderr);
		fputs("\n", stderr);
		abort();
	}
}

/* A copy of its own, so that a read beyond its end is seen. */
static char *
copy(const uint8 *data, size_t len)
{
	char	   *s = malloc(len + 1);

	memcpy(s, data, len);
	s[len] = '\0';
	return s;
}

/* ---- what is promised ---- */

static void
check_text(const char *text, size_t max)
{
	promise(strlen(text) <= max, "texts are bounded");
}

static void
check_url(const Origins *origins, const char *url, bool required)
{
	promise(url != NULL || !required, "required URLs are there");
	if (url == NULL)
		return;
	promise(origins_allow(origins, url), "URLs lead to the authority");
	check_text(url, ANSWER_URL_MAX);
	promise(strncmp(url, "https://", 8) == 0 || strncasecmp(url, "https://", 8) == 0,
			"TLS stays TLS");
	for (const char *p = url; *p; p++)
		promise(*p > ' ' && *p < 0x7f, "URLs are ASCII without spaces");
}

static void
check_problem(const Problem *problem)
{
	static const size_t sizes[] = {1, 2, 5, 17, 100, 4000, 100000};

	promise(problem->nsub >= 0, "subproblems are counted");
	for (size_t i = 0; i < lengthof(sizes); i++)
	{
		char	   *out = malloc(sizes[i]);

		problem_text(problem, i % 2 ? "a.example" : NULL, out, sizes[i]);
		promise(strlen(out) < sizes[i], "a problem's text is cut");
		for (char *p = out; *p; p++)
			promise((unsigned char) *p >= ' ' && *p != 0x7f, "and has no control characters");
		free(out);
	}
}

static void
check_status(AcmeStatus status)
{
	promise(status >= ACME_PENDING && status <= ACME_REVOKED, "a status is one");
}

static void
check_identifier(const Identifier *identifier)
{
	promise(identifier->value != NULL, "an identifier has a value");
	check_text(identifier->value, 300);
}

static void
check_order(const Origins *origins, const OrderAnswer *o)
{
	check_status(o->status);
	promise(o->n >= 1 && o->n <= ANSWER_MAX_NAMES, "names are bounded");
	promise(o->nauthorizations >= 1 && o->nauthorizations <= ANSWER_MAX_NAMES,
			"authorizations are bounded");
	for (int i = 0; i < o->n; i++)
		check_identifier(&o->identifiers[i]);
	for (int i = 0; i < o->nauthorizations; i++)
		check_url(origins, o->authorizations[i], true);
	check_url(origins, o->finalize, true);
	check_url(origins, o->certificate, false);
	if (o->has_problem)
		check_problem(&o->problem);
}

static void
check_challenge(const Origins *origins, const ChallengeAnswer *c)
{
	check_status(c->status);
	promise(c->type != NULL, "a challenge has a type");
	check_url(origins, c->url, true);
	promise(c->token || (strcmp(c->type, "http-01") != 0 && strcmp(c->type, "dns-01") != 0),
			"those we know have a token");
	if (c->token)
	{
		check_text(c->token, ANSWER_TOKEN_MAX);
		promise(strspn(c->token, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") ==
				strlen(c->token) && *c->token, "tokens are base64url");
	}
	if (c->has_problem)
		check_problem(&c->problem);
}

static void
check_authorization(const Origins *origins, const AuthorizationAnswer *a)
{
	check_status(a->status);
	check_identifier(&a->identifier);
	promise(a->n >= 0 && a->n <= ANSWER_MAX_CHALLENGES, "challenges are bounded");
	for (int i = 0; i < a->n; i++)
		check_challenge(origins, &a->challenges[i]);
}

static void
check_directory(const DirectoryAnswer *d)
{
	promise(d->origins.n >= 1 && d->origins.n <= ORIGINS_MAX, "origins are bounded");
	check_url(&d->origins, d->new_nonce, true);
	check_url(&d->origins, d->new_account, true);
	check_url(&d->origins, d->new_order, true);
	check_url(&d->origins, d->revoke, false);
	check_url(&d->origins, d->key_change, false);
	check_url(&d->origins, d->renewal_info, false);
}

static void
check_answer(AnswerKind kind, const Origins *origins, const Received *received,
			 const Answer *answer)
{
	check_text(answer->nonce, ANSWER_NONCE_MAX);
	check_text(answer->location, ANSWER_URL_MAX);
	if (answer->location[0])
		check_url(origins, answer->location, true);
	switch (answer->outcome)
	{
		case ANSWER_PROBLEM:
			promise(received->status >= 400, "a problem is a failure");
			check_problem(&answer->problem);
			return;
		case ANSWER_MALFORMED:
			promise(answer->fault[0] != '\0', "what is malformed is said");
			check_text(answer->fault, sizeof(answer->fault) - 1);
			return;
		case ANSWER_REDIRECT:
			promise(received->status >= 300 && received->status < 400, "a redirect is one");
			return;
		case ANSWER_GOOD:
			promise(received->status >= 200 && received->status < 300, "good is 2xx");
			break;
	}
	switch (kind)
	{
		case ANSWER_DIRECTORY:
			check_directory(&answer->directory);
			break;
		case ANSWER_ACCOUNT:
			check_status(answer->account.status);
			check_url(origins, answer->account.orders, false);
			break;
		case ANSWER_ORDER:
			check_order(origins, &answer->order);
			break;
		case ANSWER_AUTHORIZATION:
			check_authorization(origins, &answer->authorization);
			break;
		case ANSWER_CHALLENGE:
			check_challenge(origins, &answer->challenge);
			break;
		case ANSWER_RENEWAL:
			promise(answer->renewal.start < answer->renewal.end, "a window has a length");
			if (answer->renewal.url)
				check_text(answer->renewal.url, ANSWER_URL_MAX);
			break;
		case ANSWER_ORDERS:
			promise(answer->orders.n >= 0 && answer->orders.n <= ANSWER_MAX_ORDERS,
					"orders are bounded");
			for (int i = 0; i < answer->orders.n; i++)
				check_url(origins, answer->orders.urls[i], true);
			if (answer->orders.next[0])
				check_url(origins, answer->orders.next, true);
			break;
		case ANSWER_CHAIN:
			promise(strstr(received->body, "BEGIN CERTIFICATE") != NULL, "a chain is PEM");
			break;
		case ANSWER_NONCE:
		case ANSWER_DONE:
			break;
	}
}

/* ---- inputs ---- */

static void
read_answer(AnswerKind kind, int flags, const uint8 *data, size_t size)
{
	static Answer answer;		/* large */
	Origins		origins;
	Received	received = {0};
	size_t		head = 0;
	char	   *headers;
	char	   *body;

	if (size < 4)
		return;
	for (int i = 0; i < 3; i++)
	{
		if (data[i] < '0' || data[i] > '9')
			return;
		received.status = received.status * 10 + data[i] - '0';
	}
	data += 4;
	size -= 4;

	/* To the empty line. */
	while (head < size &&
		   !(data[head] == '\n' &&
			 (head == 0 || data[head - 1] == '\n' ||
			  (head >= 2 && data[head - 1] == '\r' && data[head - 2] == '\n') ||
			  (head == 1 && data[0] == '\r'))))
		head++;
	if (head < size)
		head++;

	/* Headers are not terminated; the body is. */
	headers = malloc(head ? head : 1);
	memcpy(headers, data, head);
	body = copy(data + head, size - head);
	received.headers = headers;
	received.headers_len = head;
	received.body = body;
	received.body_len = size - head;
	received.truncated = (flags & 1) != 0;
	received.retry_after = (flags & 2) != 0;

	promise(origins_begin(&origins, DIRECTORY), "a URL is a URL");
	answer_read(kind, &origins, &received, &answer);
	check_answer(kind, &origins, &received, &answer);
	answer_free(&answer);
	free(headers);
	free(body);
}

static void
read_url(const char *line)
{
	Origins		origins;

	if (!origins_begin(&origins, line))
		return;
	promise(origins.n == 1 && strlen(origins.origin[0]) < ORIGIN_BYTES, "an origin is bounded");
	promise(origins_allow(&origins, line), "a URL is of its own origin");
	promise(strlen(line) <= ANSWER_URL_MAX, "URLs are bounded");
	promise(strchr(origins.origin[0], '@') == NULL, "credentials are none");
}

static void
read_time(const char *line)
{
	TimestampTz t;

	if (answer_time(line, &t))
		promise(t > INT64CONST(-31) * 365 * 86400 * USECS_PER_SEC &&
				t < INT64CONST(8001) * 366 * 86400 * USECS_PER_SEC, "times are of this era");
}

static void
read_lines(const uint8 *data, size_t size, void (*read) (const char *line))
{
	while (size > 0)
	{
		const uint8 *newline = memchr(data, '\n', size);
		size_t		len = newline ? newline - data : size;
		char	   *line = copy(data, len);

		read(line);
		free(line);
		if (newline == NULL)
			return;
		data += len + 1;
		size -= len + 1;
	}
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	int			kind;

	if (size < 2)
		return 0;
	kind = data[0] - 'a';
	if (kind >= 0 && kind < ANSWER_KINDS)
		read_answer((AnswerKind) kind, data[1] - '0', data + 2, size - 2);
	else if (kind == ANSWER_KINDS)
		read_lines(data + 1, size - 1, read_url);
	else if (kind == ANSWER_KINDS + 1)
		read_lines(data + 1, size - 1, read_time);
	return 0;
}
