/*
 * http.c
 *		The one HTTP client: libcurl's multi interface on an epoll descriptor.
 *
 * libcurl tells us which sockets it waits for (socket_wanted) and when it
 * wants to be called anyway (timer_wanted). The sockets go into an epoll set
 * of our own, whose descriptor the caller waits for; http_client_run() then
 * hands libcurl only the sockets that are ready. So the work of one call is
 * proportional to what happened, however many connections are open.
 *
 * The cost of one request is what decides a dispatcher's rate. A request
 * object therefore keeps its easy handle, with all options that do not change
 * set once. To submit it again sets the body's address and length, and hangs
 * the caller's headers behind two of ours, which suppress "Expect" (a round
 * trip for nothing) and libcurl's guess of a Content-Type. Signals are
 * blocked once for each batch of socket events, not for each call.
 *
 * Connections and cached names belong to a pool, which is one CURLM. When
 * the network policy has changed, the pool is replaced: what is in flight
 * ends in the old one, which then goes, and nothing new can travel on a
 * connection or a name that was judged by the old policy.
 *
 * libcurl's resolver thread may hang in the C library for longer than a
 * request may last. CURLOPT_QUICK_EXIT lets us abandon it; without that,
 * ending the request would wait for the thread. Since 8.20 the threads are the
 * pool's, which has the same option, and they are so few that names that hang
 * would hold up others.
 *
 * Everything that a peer sends is bounded: headers in bytes and lines (over
 * all interim responses of one exchange), the body by what is kept of it and
 * what is read and dropped to keep the connection alive.
 */
#include "postgres.h"

#include <limits.h>
#include <signal.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/http.h"
#include "common/netpolicy.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#if LIBCURL_VERSION_NUM < 0x075700
#error "mlint needs libcurl 7.87 or later (CURLOPT_QUICK_EXIT)"
#endif

#define HEADERS_MAX			(64 * 1024) /* bytes of one exchange */
#define HEADER_LINES_MAX	1000
#define BODY_READ_MAX		(64 * 1024) /* or keep_body, if that is more */
#define URL_MAX				8192
#define EVENTS_MAX			256 /* taken from epoll at a time */

/* Bytes from a peer, in malloc's memory. */
typedef struct Bytes
{
	char	   *data;
	size_t		len;
	size_t		size;
	bool		confidential;	/* no copy of them stays in freed memory */
} Bytes;

typedef struct HttpPool
{
	struct HttpPool *next;
	HttpClient *client;
	CURLM	   *multi;
	uint32		id;				/* of this pool, in epoll events */
	int			in_flight;		/* submitted, not yet reported */
	int			running;		/* of these, not yet ended for libcurl */
	int64		deadline;		/* monotonic microseconds; -1: none */
} HttpPool;

/* What the memory context calls; outlives a client destroyed before it. */
typedef struct HttpClientGuard
{
	MemoryContextCallback callback;
	HttpClient *client;
} HttpClientGuard;

struct HttpClient
{
	int			epoll_fd;
	int			max_connections;
	uint64		generation;		/* of the network policy */
	uint32		pools_made;
	HttpPool   *pools;			/* the current one, then those that drain */
	dlist_head	requests;
	dlist_head	settled;		/* ended without libcurl, to be reported */
	HttpClientGuard *guard;
};

typedef enum RequestState
{
	REQUEST_IDLE,
	REQUEST_IN_FLIGHT,
	REQUEST_SETTLED,
	REQUEST_CONNECTED			/* connect_only: libcurl keeps the socket */
} RequestState;

/* Which of libcurl's kinds of request the handle is set to. */
typedef enum RequestKind
{
	REQUEST_UNSET,
	REQUEST_WITHOUT_BODY,
	REQUEST_WITH_BODY
} RequestKind;

struct HttpRequest
{
	dlist_node	node;			/* in client->requests */
	dlist_node	settled;		/* in client->settled */
	HttpClient *client;
	HttpPool   *pool;			/* while in flight */
	RequestState state;
	RequestKind kind;
	CURL	   *easy;
	char	   *host;			/* as the network policy wants it */
	const char *invalid;		/* why it cannot be sent, or NULL */
	bool		is_head;
	bool		body_expected;	/* by the method: send a length of 0 */
	int			timeout_ms;
	int			connect_timeout_ms;
	size_t		keep_body;
	bool		keep_headers;
	bool		confidential;
	bool		metadata;
	bool		connect_only;
	struct curl_slist own[2];	/* our headers; the caller's hang behind */

	HttpDone	done;
	void	   *arg;
	int64		started;

	/* Notes that the callbacks take, of one exchange. */
	Bytes		body;
	Bytes		headers;
	size_t		body_bytes;
	size_t		header_bytes;
	int			header_lines;
	int			retry_after;
	bool		body_stopped;
	bool		headers_stopped;
	bool		out_of_memory;
	bool		refused;		/* an address was, for this reason: */
	bool		opened;			/* another one was not */
	char		reason[200];
	char		curl_error[CURL_ERROR_SIZE];

	HttpResponse response;
};

/* Microseconds of a clock that never goes back. */
int64
http_clock(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void
bytes_free(Bytes *bytes)
{
	if (bytes->confidential && bytes->data != NULL)
		crypto_wipe(bytes->data, bytes->size);
	free(bytes->data);
}

/* Add bytes, with a terminator behind them. False: out of memory. */
static bool
bytes_append(Bytes *bytes, const char *data, size_t len)
{
	if (bytes->len + len + 1 > bytes->size)
	{
		size_t		size = Max(1024, bytes->size * 2);
		char	   *grown;

		while (size < bytes->len + len + 1)
			size *= 2;
		if (!bytes->confidential || bytes->data == NULL)
			grown = realloc(bytes->data, size);
		else if ((grown = malloc(size)) != NULL)
		{
			memcpy(grown, bytes->data, bytes->len);
			bytes_free(bytes);
		}
		if (grown == NULL)
			return false;
		bytes->data = grown;
		bytes->size = size;
	}
	memcpy(bytes->data + bytes->len, data, len);
	bytes->len += len;
	bytes->data[bytes->len] = '\0';
	return true;
}

/* curl's globals. Idempotent; an error names what is missing. */
void
http_startup(void)
{
	static bool started = false;

	if (started)
		return;
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		ereport(ERROR,
				(errcode(ERRCODE_SYSTEM_ERROR),
				 errmsg("libcurl could not be initialized")));
	if (!(curl_version_info(CURLVERSION_NOW)->features & CURL_VERSION_ASYNCHDNS))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("libcurl was built without an asynchronous resolver"),
				 errdetail("Resolving a name would block the server process."),
				 errhint("Install a libcurl with the threaded resolver or c-ares; Debian's libcurl4 has it.")));
	started = true;
}

/*
 * What is wrong with a URL, as a sentence, or NULL. The host is returned in
 * malloc's memory, if wanted: in lower case, without a trailing dot. The
 * sentences never quote the URL, which may hold credentials.
 */
static const char *
url_fault(const char *url, char **host)
{
	const char *fault = NULL;
	const char *after;
	CURLU	   *parsed;
	CURLUcode	code;
	char	   *part = NULL;

	for (const char *p = url; *p != '\0'; p++)
	{
		if ((unsigned char) *p <= ' ' || *p == 0x7f)
			return "It contains a space or a control character; in a URL these are percent-encoded.";
		if ((unsigned char) *p > 0x7f)
			return "It contains a character outside ASCII; in a path these are percent-encoded, in a host name written as punycode (xn--).";
	}
	if (strlen(url) > URL_MAX)
		return "It is longer than 8192 bytes.";
	if (pg_strncasecmp(url, "http://", 7) == 0)
		after = url + 7;
	else if (pg_strncasecmp(url, "https://", 8) == 0)
		after = url + 8;
	else
		return "It does not begin with http:// or https://.";
	if (*after == '\0' || strchr("/?#", *after) != NULL)
		return "It has no host.";

	parsed = curl_url();
	if (parsed == NULL)
		return "There is no memory to parse it.";
	code = curl_url_set(parsed, CURLUPART_URL, url, 0);
	if (code == CURLUE_BAD_PORT_NUMBER)
		fault = "Its port is not a number from 1 to 65535.";
	else if (code == CURLUE_NO_HOST)
		fault = "It has no host.";
	else if (code != CURLUE_OK)
		fault = "It is not a URL: its host, port or an escape in it is malformed.";
	else if (curl_url_get(parsed, CURLUPART_USER, &part, 0) == CURLUE_OK ||
			 curl_url_get(parsed, CURLUPART_PASSWORD, &part, 0) == CURLUE_OK)
		fault = "It contains a user name or a password; credentials are sent in a header.";
	else if (strchr(url, '#') != NULL)
		fault = "It contains a fragment (#), which is never sent to a server.";
	else if (curl_url_get(parsed, CURLUPART_PORT, &part, 0) == CURLUE_OK &&
			 strtol(part, NULL, 10) == 0)
		fault = "Its port is not a number from 1 to 65535.";
	curl_free(part);
	part = NULL;

	if (fault == NULL &&
		(curl_url_get(parsed, CURLUPART_HOST, &part, 0) != CURLUE_OK ||
		 part[0] == '\0'))
		fault = "It has no host.";
	if (fault == NULL && host != NULL)
	{
		size_t		len = strlen(part);

		if (len > 1 && part[len - 1] == '.')
			part[--len] = '\0';
		for (char *p = part; *p != '\0'; p++)
			*p = pg_ascii_tolower(*p);
		*host = strdup(part);
		if (*host == NULL)
			fault = "There is no memory to parse it.";
	}
	curl_free(part);
	curl_url_cleanup(parsed);
	return fault;
}

/* Raise if this is not a URL that we would send to. */
void
http_url_check(const char *url, const char *what)
{
	const char *fault = url_fault(url, NULL);

	if (fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("invalid URL in %s", what),
				 errdetail_internal("%s", fault),
				 errhint("Give an absolute URL, such as https://host:8443/path?query.")));
}

/* May this character stand in a token (RFC 9110, 5.6.2)? */
static inline bool
is_token_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
		(c >= '0' && c <= '9') ||
		(c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

/* Is this a token: what a method or the name of a header may be? */
bool
http_is_token(const char *text)
{
	const char *p = text;

	while (is_token_char(*p))
		p++;
	return p > text &&*p == '\0';
}

/*
 * What is wrong with a header, as a sentence, or NULL. Besides malformed ones
 * these are the headers that say where a message ends and where it goes: two
 * of them that disagree are how requests are smuggled.
 */
static const char *
header_fault(const char *name, const char *value)
{
	static const char *const own[] = {
		"connection", "content-length", "expect", "host", "keep-alive",
		"proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"
	};

	if (!http_is_token(name))
		return "A header's name consists of letters, digits and \"-\" (RFC 9110, 5.6.2).";
	for (const char *p = value; *p != '\0'; p++)
	{
		if ((unsigned char) *p < ' ' || *p == 0x7f)
			return "Its value contains a control character, such as a line break.";
	}
	for (int i = 0; i < lengthof(own); i++)
	{
		if (pg_strcasecmp(name, own[i]) == 0)
			return "This header is set by the HTTP client itself, from the URL and the body.";
	}
	return NULL;
}

static void
header_report(const char *fault, const char *name, const char *what)
{
	if (http_is_token(name))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("invalid header \"%s\" in %s", name, what),
				 errdetail_internal("%s", fault)));
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("invalid header name in %s", what),
			 errdetail_internal("%s", fault)));
}

/* Raise if the header cannot be sent. Its value is never quoted. */
void
http_header_check(const char *name, const char *value, const char *what)
{
	const char *fault = header_fault(name, value);

	if (fault != NULL)
		header_report(fault, name, what);
}

/* Append "name: value"; on error the list is freed. */
struct curl_slist *
http_header(struct curl_slist *list, const char *name, const char *value)
{
	const char *fault = header_fault(name, value);
	size_t		name_len = strlen(name);
	size_t		value_len;
	char		fixed[512];
	char	   *line = fixed;
	struct curl_slist *grown = NULL;

	if (fault != NULL)
	{
		curl_slist_free_all(list);
		header_report(fault, name, "a request");
	}
	while (*value == ' ')
		value++;
	value_len = strlen(value);
	while (value_len > 0 && value[value_len - 1] == ' ')
		value_len--;

	if (name_len + value_len + 3 > sizeof(fixed))
		line = malloc(name_len + value_len + 3);
	if (line != NULL)
	{
		memcpy(line, name, name_len);
		/* To libcurl "name:" means no header, "name;" one without a value. */
		if (value_len == 0)
			memcpy(line + name_len, ";", 2);
		else
		{
			memcpy(line + name_len, ": ", 2);
			memcpy(line + name_len + 2, value, value_len);
			line[name_len + 2 + value_len] = '\0';
		}
		grown = curl_slist_append(list, line);
		crypto_wipe(line, name_len + value_len + 2);
		if (line != fixed)
			free(line);
	}
	if (grown == NULL)
	{
		curl_slist_free_all(list);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while building the headers of a request.")));
	}
	return grown;
}

/* libcurl: this is what to wait for on a socket. */
static int
socket_wanted(CURL *easy, curl_socket_t fd, int what, void *arg, void *known)
{
	HttpPool   *pool = arg;
	int			epoll_fd = pool->client->epoll_fd;
	struct epoll_event event = {0};

	if (what == CURL_POLL_REMOVE)
	{
		epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, &event);
		return 0;
	}
	if (what & CURL_POLL_IN)
		event.events |= EPOLLIN;
	if (what & CURL_POLL_OUT)
		event.events |= EPOLLOUT;
	event.data.u64 = (uint64) pool->id << 32 | (uint32) fd;
	if (epoll_ctl(epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd,
				  &event) != 0)
	{
		int			op;

		if (errno == ENOENT)
			op = EPOLL_CTL_ADD;
		else if (errno == EEXIST)
			op = EPOLL_CTL_MOD;
		else
			return -1;
		if (epoll_ctl(epoll_fd, op, fd, &event) != 0)
			return -1;
	}
	if (known == NULL)
		curl_multi_assign(pool->multi, fd, pool);
	return 0;
}

/* libcurl: call me in so many milliseconds; -1: no need. */
static int
timer_wanted(CURLM *multi, long timeout_ms, void *arg)
{
	HttpPool   *pool = arg;

	if (timeout_ms < 0)
		pool->deadline = -1;
	else if (timeout_ms == 0)
		pool->deadline = 0;
	else
		pool->deadline = http_clock() + (int64) timeout_ms * 1000;
	return 0;
}

/* libcurl: open a socket to this address. Here the network policy rules. */
static curl_socket_t
socket_open(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	HttpRequest *request = arg;

	if (!request->metadata &&
		!netpolicy_allows(request->host, &address->addr,
						  request->reason, sizeof(request->reason)))
	{
		request->refused = true;
		return CURL_SOCKET_BAD;
	}
	request->opened = true;
	return socket(address->family, address->socktype | SOCK_CLOEXEC,
				  address->protocol);
}

/* Seconds from a Retry-After's value: a number or an HTTP-date. -1: neither. */
static int
retry_after_parse(const char *text, size_t len)
{
	char		value[64];
	time_t		date;

	while (len > 0 && strchr(" \t\r\n", text[len - 1]) != NULL)
		len--;
	while (len > 0 && (*text == ' ' || *text == '\t'))
	{
		text	  ++;

		len--;
	}
	if (len == 0 || len >= sizeof(value))
		return -1;
	memcpy(value, text, len);
	value[len] = '\0';
	if (strspn(value, "0123456789") == len)
		return len > 9 ? INT_MAX : (int) strtol(value, NULL, 10);
	date = curl_getdate(value, NULL);
	if (date == (time_t) - 1)
		return -1;
	return (int) Min(Max(date - time(NULL), 0), INT_MAX);
}

/* libcurl: a line of the response's headers. */
static size_t
header_received(char *data, size_t size, size_t n, void *arg)
{
	HttpRequest *request = arg;
	size_t		len = size * n;

	request->header_bytes += len;
	request->header_lines++;
	if (request->header_bytes > HEADERS_MAX ||
		request->header_lines > HEADER_LINES_MAX)
	{
		request->headers_stopped = true;
		return 0;
	}
	if (request->body_bytes > 0)
		return len;				/* a trailer */
	if (len >= 5 && memcmp(data, "HTTP/", 5) == 0)
	{
		/* An interim response's headers are not the response's. */
		request->headers.len = 0;
		request->retry_after = -1;
		return len;
	}
	if (len > 12 && pg_strncasecmp(data, "retry-after:", 12) == 0)
		request->retry_after = retry_after_parse(data + 12, len - 12);
	if (request->keep_headers && !bytes_append(&request->headers, data, len))
	{
		request->out_of_memory = true;
		return 0;
	}
	return len;
}

/* libcurl: a piece of the response's body. */
static size_t
body_received(char *data, size_t size, size_t n, void *arg)
{
	HttpRequest *request = arg;
	size_t		len = size * n;
	size_t		room = request->keep_body - request->body.len;

	request->body_bytes += len;
	if (room > 0 && !bytes_append(&request->body, data, Min(len, room)))
	{
		request->out_of_memory = true;
		return 0;
	}
	if (request->body_bytes > Max(request->keep_body, BODY_READ_MAX))
	{
		request->body_stopped = true;
		return 0;
	}
	return len;
}

static void
pool_free(HttpPool *pool)
{
	if (pool->multi != NULL)
		curl_multi_cleanup(pool->multi);
	free(pool);
}

/* A pool without connections. NULL: out of memory. */
static HttpPool *
pool_create(HttpClient *client)
{
	HttpPool   *pool = calloc(1, sizeof(HttpPool));

	if (pool == NULL)
		return NULL;
	pool->client = client;
	pool->id = client->pools_made++;
	pool->deadline = -1;
	pool->multi = curl_multi_init();
	if (pool->multi == NULL)
	{
		free(pool);
		return NULL;
	}
	curl_multi_setopt(pool->multi, CURLMOPT_SOCKETFUNCTION, socket_wanted);
	curl_multi_setopt(pool->multi, CURLMOPT_SOCKETDATA, pool);
	curl_multi_setopt(pool->multi, CURLMOPT_TIMERFUNCTION, timer_wanted);
	curl_multi_setopt(pool->multi, CURLMOPT_TIMERDATA, pool);
	curl_multi_setopt(pool->multi, CURLMOPT_MAXCONNECTS,
					  (long) client->max_connections);
	curl_multi_setopt(pool->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS,
					  (long) client->max_connections);
#if LIBCURL_VERSION_NUM >= 0x081400
	curl_multi_setopt(pool->multi, CURLMOPT_QUICK_EXIT, 1L);
	curl_multi_setopt(pool->multi, CURLMOPT_RESOLVE_THREADS_MAX,
					  (long) Max(client->max_connections, 20));
#endif
	return pool;
}

/* Free the pools behind the current one in which nothing is left. */
static void
pools_drain(HttpClient *client)
{
	HttpPool  **link = &client->pools->next;

	while (*link != NULL)
	{
		HttpPool   *pool = *link;

		if (pool->in_flight > 0)
			link = &pool->next;
		else
		{
			*link = pool->next;
			pool_free(pool);
		}
	}
}

/* The memory context that a client was created in goes. */
static void
client_context_gone(void *arg)
{
	HttpClientGuard *guard = arg;

	if (guard->client != NULL)
		http_client_destroy(guard->client);
}

/* A client for at most so many connections at a time. */
HttpClient *
http_client_create(int max_connections)
{
	HttpClientGuard *guard = palloc0(sizeof(HttpClientGuard));
	HttpClient *client;

	http_startup();
	client = calloc(1, sizeof(HttpClient));
	if (client == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	dlist_init(&client->requests);
	dlist_init(&client->settled);
	client->max_connections = max_connections;
	client->generation = netpolicy_generation();
	client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (client->epoll_fd < 0)
	{
		free(client);
		ereport(ERROR,
				(errcode_for_socket_access(),
				 errmsg("could not create an epoll descriptor: %m")));
	}
	client->pools = pool_create(client);
	if (client->pools == NULL)
	{
		close(client->epoll_fd);
		free(client);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	client->guard = guard;
	guard->client = client;
	guard->callback.func = client_context_gone;
	guard->callback.arg = guard;
	MemoryContextRegisterResetCallback(CurrentMemoryContext,
									   &guard->callback);
	return client;
}

/* Free a client and its requests. What is in flight is abandoned. */
void
http_client_destroy(HttpClient *client)
{
	dlist_mutable_iter iter;

	client->guard->client = NULL;
	dlist_foreach_modify(iter, &client->requests)
		http_request_free(dlist_container(HttpRequest, node, iter.cur));
	while (client->pools != NULL)
	{
		HttpPool   *pool = client->pools;

		client->pools = pool->next;
		pool_free(pool);
	}
	close(client->epoll_fd);
	free(client);
}

int
http_client_fd(HttpClient *client)
{
	return client->epoll_fd;
}

/* Milliseconds until http_client_run() must be called anyway; -1: never. */
long
http_client_timeout(HttpClient *client)
{
	int64		deadline = -1;

	if (!dlist_is_empty(&client->settled))
		return 0;
	for (HttpPool *pool = client->pools; pool != NULL; pool = pool->next)
	{
		if (pool->deadline == 0 || pool->in_flight > pool->running)
			return 0;
		if (pool->deadline > 0 &&
			(deadline < 0 || pool->deadline < deadline))
			deadline = pool->deadline;
	}
	if (deadline < 0)
		return -1;
	return (long) Max((deadline - http_clock() + 999) / 1000, 0);
}

/* Has the time come that libcurl asked for, in any pool? */
static bool
client_is_due(HttpClient *client)
{
	int64		now = 0;

	for (HttpPool *pool = client->pools; pool != NULL; pool = pool->next)
	{
		if (pool->deadline < 0)
			continue;
		if (pool->deadline > 0 && now == 0)
			now = http_clock();
		if (pool->deadline <= now)
			return true;
	}
	return false;
}

/*
 * Let libcurl work: on the sockets that are ready, if asked to look, and on
 * the timers that are due. It may start a resolver thread, which inherits
 * our signal mask and must never be the one that a signal is delivered to.
 */
static void
client_pump(HttpClient *client, bool look)
{
	struct epoll_event events[EVENTS_MAX];
	int			n = 0;
	sigset_t	all;
	sigset_t	before;

	if (look)
		n = epoll_wait(client->epoll_fd, events, EVENTS_MAX, 0);
	if (n <= 0 && !client_is_due(client))
		return;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	for (int i = 0; i < n; i++)
	{
		HttpPool   *pool = client->pools;
		uint32		id = events[i].data.u64 >> 32;
		int			ready = 0;

		while (pool != NULL && pool->id != id)
			pool = pool->next;
		if (pool == NULL)
			continue;
		/* An error is for libcurl to find, so that it can name it. */
		if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
			ready |= CURL_CSELECT_IN;
		if (events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
			ready |= CURL_CSELECT_OUT;
		curl_multi_socket_action(pool->multi,
								 (int) (uint32) events[i].data.u64,
								 ready, &pool->running);
	}
	if (client_is_due(client))
	{
		int64		now = http_clock();

		for (HttpPool *pool = client->pools; pool != NULL; pool = pool->next)
		{
			if (pool->deadline < 0 || pool->deadline > now)
				continue;
			pool->deadline = -1;
			curl_multi_socket_action(pool->multi, CURL_SOCKET_TIMEOUT, 0,
									 &pool->running);
		}
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
}

/*
 * Write why a request failed: our words, then libcurl's in brackets, if they
 * add something. libcurl's may quote what the peer sent, so only printable
 * ASCII is kept of them.
 */
static void
describe(HttpResponse *response, HttpFailure failure, const char *words,
		 const char *detail)
{
	response->failure = failure;
	if (detail == NULL || detail[0] == '\0')
		snprintf(response->error, sizeof(response->error), "%s", words);
	else
		snprintf(response->error, sizeof(response->error), "%s (%s)", words,
				 detail);
	for (char *p = response->error; *p != '\0'; p++)
	{
		if (*p < ' ' || *p > '~')
			*p = '?';
	}
}

/* Which part of the exchange took too long? */
static void
describe_timeout(HttpRequest *request)
{
	HttpResponse *response = &request->response;
	curl_off_t	resolved = 0;
	curl_off_t	connected = 0;
	curl_off_t	secured = 0;
	long		sent = 0;
	char	   *scheme = NULL;
	char		words[400];
	int			limit = request->timeout_ms;

	curl_easy_getinfo(request->easy, CURLINFO_REQUEST_SIZE, &sent);
	curl_easy_getinfo(request->easy, CURLINFO_NAMELOOKUP_TIME_T, &resolved);
	curl_easy_getinfo(request->easy, CURLINFO_CONNECT_TIME_T, &connected);
	curl_easy_getinfo(request->easy, CURLINFO_APPCONNECT_TIME_T, &secured);
	curl_easy_getinfo(request->easy, CURLINFO_SCHEME, &scheme);
	if (request->connect_timeout_ms > 0 &&
		request->connect_timeout_ms < limit)
		limit = request->connect_timeout_ms;

	/* On a connection that was there already all these times are none. */
	if (sent > 0)
		snprintf(words, sizeof(words), "%s within %d ms",
				 request->header_lines == 0
				 ? "there was no response"
				 : "the response was not complete", request->timeout_ms);
	else if (!request->opened && resolved == 0 && connected == 0)
		snprintf(words, sizeof(words),
				 "the name of host \"%.100s\" was not resolved within %d ms",
				 request->host, limit);
	else if (scheme != NULL && pg_strcasecmp(scheme, "https") == 0 &&
			 request->opened && (connected == 0 || secured == 0))
		snprintf(words, sizeof(words),
				 "host \"%.100s\" did not complete a TLS connection within %d ms",
				 request->host, limit);
	else
		snprintf(words, sizeof(words),
				 "host \"%.100s\" did not accept a connection within %d ms",
				 request->host, limit);
	describe(response, HTTP_TIMEOUT, words, NULL);
}

/* Translate how libcurl ended the exchange into a failure and its text. */
static void
response_judge(HttpRequest *request, CURLcode code)
{
	HttpResponse *response = &request->response;
	const char *detail = request->curl_error;
	char		words[300];

	if (request->out_of_memory)
	{
		describe(response, HTTP_UNREACHABLE,
				 "there was no memory for the response", NULL);
		return;
	}
	if (request->headers_stopped)
	{
		describe(response, HTTP_PROTOCOL,
				 "the response's headers exceed 64 kB or 1000 lines", NULL);
		return;
	}
	if (code == CURLE_OK || request->body_stopped)
	{
		response->failure = HTTP_OK;
		return;
	}
	if (request->refused && !request->opened)
	{
		describe(response, HTTP_REFUSED, request->reason, NULL);
		return;
	}

	switch (code)
	{
		case CURLE_OPERATION_TIMEDOUT:
			describe_timeout(request);
			break;
		case CURLE_COULDNT_RESOLVE_HOST:
			snprintf(words, sizeof(words),
					 "the name of host \"%s\" could not be resolved",
					 request->host);
			describe(response, HTTP_UNREACHABLE, words, NULL);
			break;
		case CURLE_COULDNT_CONNECT:
			{
				long		os_errno = 0;

				curl_easy_getinfo(request->easy, CURLINFO_OS_ERRNO,
								  &os_errno);
				snprintf(words, sizeof(words),
						 "could not connect to host \"%s\"", request->host);
				describe(response, HTTP_UNREACHABLE, words,
						 os_errno ? strerror((int) os_errno) : detail);
				break;
			}
		case CURLE_GOT_NOTHING:
			describe(response, HTTP_UNREACHABLE,
					 "the server closed the connection without an answer",
					 NULL);
			break;
		case CURLE_PARTIAL_FILE:
			describe(response, HTTP_UNREACHABLE,
					 "the server closed the connection in the middle of the response",
					 NULL);
			break;
		case CURLE_SEND_ERROR:
		case CURLE_RECV_ERROR:
			describe(response, HTTP_UNREACHABLE,
					 "the connection broke during the exchange", detail);
			break;
		case CURLE_PEER_FAILED_VERIFICATION:
			describe(response, HTTP_TLS,
					 "the server's certificate is not trusted", detail);
			break;
		case CURLE_SSL_CACERT_BADFILE:
			describe(response, HTTP_TLS,
					 "the CA certificates cannot be read", detail);
			break;
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_CIPHER:
		case CURLE_SSL_ISSUER_ERROR:
		case CURLE_SSL_INVALIDCERTSTATUS:
		case CURLE_SSL_ENGINE_INITFAILED:
			describe(response, HTTP_TLS, "the TLS handshake failed", detail);
			break;
		case CURLE_OUT_OF_MEMORY:
			/* Some versions say so of a header line over their own limit. */
			if (request->header_lines == 0)
			{
				describe(response, HTTP_UNREACHABLE,
						 "there was no memory for the request", NULL);
				break;
			}
			/* FALLTHROUGH */
		case CURLE_UNSUPPORTED_PROTOCOL:	/* HTTP/0.9 */
		case CURLE_WEIRD_SERVER_REPLY:
		case CURLE_BAD_CONTENT_ENCODING:
		case CURLE_HTTP2:
		case CURLE_HTTP2_STREAM:
		case CURLE_WRITE_ERROR:
#if LIBCURL_VERSION_NUM >= 0x080600
		case CURLE_TOO_LARGE:
#endif
			describe(response, HTTP_PROTOCOL,
					 "the server's answer is not valid HTTP", detail);
			break;
		default:
			describe(response, HTTP_UNREACHABLE, curl_easy_strerror(code),
					 detail);
			break;
	}
}

static void
headers_wipe(struct curl_slist *headers)
{
	for (; headers != NULL; headers = headers->next)
		crypto_wipe(headers->data, strlen(headers->data));
}

/* Take a request out of libcurl's hands. */
static void
request_detach(HttpRequest *request)
{
	HttpPool   *pool = request->pool;

	curl_multi_remove_handle(pool->multi, request->easy);
	pool->in_flight--;
	/* We may be ahead of libcurl's own count. */
	pool->running = Min(pool->running, pool->in_flight);
	request->pool = NULL;
}

/* Free what belonged to the last exchange. */
static void
request_release(HttpRequest *request)
{
	if (request->confidential)
		headers_wipe(request->own[1].next);
	curl_slist_free_all(request->own[1].next);
	request->own[1].next = NULL;
	request->state = REQUEST_IDLE;
}

/* Tell the caller how a request ended. He may submit or free it at once. */
static void
request_report(HttpRequest *request)
{
	HttpResponse *response = &request->response;

	response->elapsed_us = http_clock() - request->started;
	request_release(request);
	request->done(request, response, request->arg);
}

/* Gather the response of an exchange that libcurl has ended. */
static void
request_finish(HttpRequest *request, CURLcode code)
{
	HttpResponse *response = &request->response;
	curl_off_t	sent = 0;
	long		status = 0;

	response_judge(request, code);
	if (request->connect_only && response->failure == HTTP_OK)
	{
		/* Taken out of libcurl's hands, it would be closed. */
		request->state = REQUEST_CONNECTED;
		request->done(request, response, request->arg);
		return;
	}
	request_detach(request);
	if (response->failure == HTTP_OK)
	{
		curl_easy_getinfo(request->easy, CURLINFO_RESPONSE_CODE, &status);
		response->status = (int) status;
		response->body = request->body.len > 0 ? request->body.data : "";
		response->body_len = request->body.len;
		response->truncated = request->body_bytes > request->body.len;
		response->headers = request->headers.len > 0
			? request->headers.data : "";
		response->headers_len = request->headers.len;
		response->retry_after = request->retry_after;
	}
	curl_easy_getinfo(request->easy, CURLINFO_SIZE_UPLOAD_T, &sent);
	response->bytes_sent = sent;
	request_report(request);
}

/* Move everything that can move. Calls done callbacks. Never blocks. */
void
http_client_run(HttpClient *client)
{
	client_pump(client, true);

	for (HttpPool *pool = client->pools; pool != NULL; pool = pool->next)
	{
		CURLMsg    *message;
		int			left;

		while ((message = curl_multi_info_read(pool->multi, &left)) != NULL)
		{
			HttpRequest *request;

			if (message->msg != CURLMSG_DONE)
				continue;
			curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE,
							  (char **) &request);
			request_finish(request, message->data.result);
		}
	}
	while (!dlist_is_empty(&client->settled))
	{
		HttpRequest *request = dlist_container(HttpRequest, settled,
											   dlist_pop_head_node(&client->settled));

		request_report(request);
	}
	pools_drain(client);

	/* What the callbacks submitted leaves without another round. */
	client_pump(client, false);
}

/*
 * Use no connection and no cached name again that exists now. Without memory
 * for a new pool the connections are used once more than wished; the next
 * submit tries again, because client->generation is not touched here.
 */
void
http_client_forget_connections(HttpClient *client)
{
	HttpPool   *pool = pool_create(client);

	if (pool == NULL)
		return;
	pool->next = client->pools;
	client->pools = pool;
}

/*
 * HTTP/2 over TLS, where libcurl is up to it. Before 8.1 (which rewrote that
 * part) a connection that several requests share now and then loses the one
 * that opened it. HTTP/1.1 on kept connections is no slower.
 */
static long
http_version(void)
{
	if (curl_version_info(CURLVERSION_NOW)->version_num < 0x080100)
		return CURL_HTTP_VERSION_1_1;
	return CURL_HTTP_VERSION_2TLS;
}

/* Set what stays the same over the life of a request object. */
static bool
request_configure(HttpRequest *request, const HttpTarget *target)
{
	CURL	   *easy = request->easy;
	bool		ok = true;

#define SET(option, value) \
	(ok = ok && curl_easy_setopt(easy, option, value) == CURLE_OK)

	SET(CURLOPT_URL, target->url);
	SET(CURLOPT_PRIVATE, (void *) request);
	SET(CURLOPT_ERRORBUFFER, request->curl_error);
	SET(CURLOPT_PROTOCOLS_STR, "http,https");
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_PROXY, "");
	SET(CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	SET(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	SET(CURLOPT_HTTP_VERSION, http_version());
	SET(CURLOPT_HTTP09_ALLOWED, 0L);
	SET(CURLOPT_USERAGENT, "mlint/1.0");
	SET(CURLOPT_HTTPHEADER, &request->own[0]);
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_QUICK_EXIT, 1L);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	SET(CURLOPT_TIMEOUT_MS, (long) target->timeout_ms);
	SET(CURLOPT_CONNECTTIMEOUT_MS, (long) target->connect_timeout_ms);
	SET(CURLOPT_OPENSOCKETFUNCTION, socket_open);
	SET(CURLOPT_OPENSOCKETDATA, request);
	SET(CURLOPT_HEADERFUNCTION, header_received);
	SET(CURLOPT_HEADERDATA, request);
	SET(CURLOPT_WRITEFUNCTION, body_received);
	SET(CURLOPT_WRITEDATA, request);
	SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_SSL_VERIFYPEER, target->verify ? 1L : 0L);
	SET(CURLOPT_SSL_VERIFYHOST, target->verify ? 2L : 0L);
	if (target->ca != NULL)
	{
		struct curl_blob blob = {
			.data = (void *) target->ca,
			.len = strlen(target->ca),
			.flags = CURL_BLOB_COPY
		};

		/* This CA instead of the system's, not beside it. */
		SET(CURLOPT_CAPATH, NULL);
		SET(CURLOPT_CAINFO, NULL);
		SET(CURLOPT_CAINFO_BLOB, &blob);
	}
	if (target->certificate != NULL)
	{
		struct curl_blob certificate = {
			.data = (void *) target->certificate,
			.len = strlen(target->certificate),
			.flags = CURL_BLOB_COPY
		};
		struct curl_blob key = {
			.data = (void *) target->key,
			.len = strlen(target->key),
			.flags = CURL_BLOB_COPY
		};

		SET(CURLOPT_SSLCERT_BLOB, &certificate);
		SET(CURLOPT_SSLKEY_BLOB, &key);
	}
	if (target->connect_only)
	{
		SET(CURLOPT_CONNECT_ONLY, 1L);
		SET(CURLOPT_SSL_ENABLE_ALPN, 0L);
	}
	if (request->is_head)
		SET(CURLOPT_NOBODY, 1L);
	else if (target->method != NULL)
		SET(CURLOPT_CUSTOMREQUEST, target->method);
#undef SET
	return ok;
}

/* Make a request object, to be submitted as often as wished. */
HttpRequest *
http_request_create(HttpClient *client, const HttpTarget *target)
{
	HttpRequest *request = calloc(1, sizeof(HttpRequest));
	const char *method = target->method;

	if (request == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	request->client = client;
	request->own[0].data = "Expect:";
	request->own[0].next = &request->own[1];
	request->own[1].data = "Content-Type:";
	request->timeout_ms = target->timeout_ms;
	request->connect_timeout_ms = target->connect_timeout_ms;
	request->keep_body = target->keep_body;
	request->keep_headers = target->keep_headers;
	request->confidential = target->confidential;
	request->body.confidential = target->confidential;
	request->headers.confidential = target->confidential;
	request->metadata = target->metadata;
	request->connect_only = target->connect_only;
	if (method != NULL)
	{
		request->is_head = strcmp(method, "HEAD") == 0;
		request->body_expected = strcmp(method, "POST") == 0 ||
			strcmp(method, "PUT") == 0 || strcmp(method, "PATCH") == 0;
		if (!http_is_token(method) || strcmp(method, "CONNECT") == 0)
			request->invalid = "the method cannot be sent";
	}
	if (request->invalid == NULL)
		request->invalid = url_fault(target->url, &request->host);
	if (request->host == NULL)
		request->host = strdup("");
	request->easy = curl_easy_init();
	if (request->host == NULL || request->easy == NULL ||
		!request_configure(request, target))
	{
		if (request->easy != NULL)
			curl_easy_cleanup(request->easy);
		free(request->host);
		free(request);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while preparing an HTTP request.")));
	}
	dlist_push_tail(&client->requests, &request->node);
	return request;
}

/* Free a request. One that is in flight is abandoned without a report. */
void
http_request_free(HttpRequest *request)
{
	if (request->state == REQUEST_IN_FLIGHT ||
		request->state == REQUEST_CONNECTED)
		request_detach(request);
	else if (request->state == REQUEST_SETTLED)
		dlist_delete(&request->settled);
	request_release(request);
	dlist_delete(&request->node);
	curl_easy_cleanup(request->easy);
	bytes_free(&request->body);
	bytes_free(&request->headers);
	free(request->host);
	free(request);
}

/* End a request without libcurl; http_client_run() reports it. */
static void
request_settle(HttpRequest *request, HttpFailure failure, const char *words)
{
	describe(&request->response, failure, words, NULL);
	request->state = REQUEST_SETTLED;
	dlist_push_tail(&request->client->settled, &request->settled);
}

/* Set the handle to a request with or without a body. */
static void
request_set_body(HttpRequest *request, const void *body, size_t body_len)
{
	CURL	   *easy = request->easy;

	if (body == NULL && !request->body_expected)
	{
		if (request->kind != REQUEST_WITHOUT_BODY && !request->is_head)
			curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
		request->kind = REQUEST_WITHOUT_BODY;
		return;
	}
	curl_easy_setopt(easy, CURLOPT_POSTFIELDS,
					 body != NULL ? (const char *) body : "");
	curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE,
					 (curl_off_t) (body != NULL ? body_len : 0));
	request->kind = REQUEST_WITH_BODY;
}

/* Send; see http.h. */
void
http_request_submit(HttpRequest *request, struct curl_slist *headers,
					const void *body, size_t body_len,
					HttpDone done, void *arg)
{
	HttpClient *client = request->client;
	HttpResponse *response = &request->response;

	Assert(request->state == REQUEST_IDLE);
	if (client->generation != netpolicy_generation())
	{
		HttpPool   *before = client->pools;

		http_client_forget_connections(client);
		if (client->pools != before)
			client->generation = netpolicy_generation();
	}

	request->own[1].next = headers;
	request->done = done;
	request->arg = arg;
	request->started = http_clock();
	request->body.len = 0;
	request->headers.len = 0;
	request->body_bytes = 0;
	request->header_bytes = 0;
	request->header_lines = 0;
	request->retry_after = -1;
	request->body_stopped = false;
	request->headers_stopped = false;
	request->out_of_memory = false;
	request->refused = false;
	request->opened = false;
	request->curl_error[0] = '\0';
	response->failure = HTTP_OK;
	response->status = 0;
	response->error[0] = '\0';
	response->body = "";
	response->body_len = 0;
	response->truncated = false;
	response->headers = "";
	response->headers_len = 0;
	response->retry_after = -1;
	response->bytes_sent = 0;

	if (request->invalid == NULL && request->is_head && body != NULL)
	{
		request_settle(request, HTTP_INVALID, "a HEAD request has no body");
		return;
	}
	if (request->invalid != NULL)
	{
		request_settle(request, HTTP_INVALID, request->invalid);
		return;
	}
	request_set_body(request, body, body_len);
	if (curl_multi_add_handle(client->pools->multi, request->easy) != CURLM_OK)
	{
		request_settle(request, HTTP_UNREACHABLE,
					   "there was no memory for the request");
		return;
	}
	request->pool = client->pools;
	request->pool->in_flight++;
	request->pool->running++;
	request->state = REQUEST_IN_FLIGHT;
}

/* End a request now; http_client_run() reports it as cancelled. */
void
http_request_cancel(HttpRequest *request)
{
	if (request->state != REQUEST_IN_FLIGHT)
		return;
	request_detach(request);
	request_settle(request, HTTP_CANCELLED, "cancelled");
}

/*
 * Wait in a backend until something can move, and move it.
 */
void
http_client_wait(HttpClient *client)
{
	static uint32 wait_event = 0;
	long		timeout;

	if (wait_event == 0)
		wait_event = mlint_wait_event("MlintHttp");
	CHECK_FOR_INTERRUPTS();
	timeout = http_client_timeout(client);
	(void) WaitLatchOrSocket(MyLatch,
							 WL_LATCH_SET | WL_SOCKET_READABLE |
							 WL_EXIT_ON_PM_DEATH |
							 (timeout >= 0 ? WL_TIMEOUT : 0),
							 http_client_fd(client), timeout, wait_event);
	ResetLatch(MyLatch);
	http_client_run(client);
}

/* http_perform()'s callback: the exchange has ended. */
static void
exchange_done(HttpRequest *request, const HttpResponse *response, void *arg)
{
	*(const HttpResponse **) arg = response;
}

/* A terminated copy of all bytes: pnstrdup() would end at the first zero. */
static char *
bytes_copy(const char *data, size_t len)
{
	char	   *copy = palloc(len + 1);

	if (len > 0)
		memcpy(copy, data, len);
	copy[len] = '\0';
	return copy;
}

/* The response with its texts in the current memory context. */
static HttpResponse *
response_copy(const HttpResponse *response)
{
	HttpResponse *copy = palloc(sizeof(HttpResponse));

	*copy = *response;
	copy->body = bytes_copy(response->body, response->body_len);
	copy->headers = bytes_copy(response->headers, response->headers_len);
	return copy;
}

/* Run one exchange to its end; the caller frees the client, come what may. */
static pg_noinline HttpResponse *
exchange_run(HttpClient *client, HttpRequest *request,
			 struct curl_slist *headers, const void *body, size_t body_len)
{
	const HttpResponse *ended = NULL;

	http_request_submit(request, headers, body, body_len, exchange_done,
						&ended);
	while (ended == NULL)
		http_client_wait(client);
	return response_copy(ended);
}

HttpResponse *
http_exchange(HttpClient *client, const HttpTarget *target,
			  struct curl_slist *headers, const void *body, size_t body_len)
{
	HttpRequest *volatile request = NULL;
	struct curl_slist *volatile unsent = headers;
	HttpResponse *response;

	PG_TRY();
	{
		request = http_request_create(client, target);
		unsent = NULL;
		response = exchange_run(client, request, headers, body, body_len);
	}
	PG_CATCH();
	{
		if (target->confidential)
			headers_wipe(unsent);
		curl_slist_free_all(unsent);
		if (request != NULL)
			http_request_free(request);
		PG_RE_THROW();
	}
	PG_END_TRY();
	http_request_free(request);
	return response;
}

/*
 * A synchronous exchange in a backend: the client with a loop around it that
 * waits on the latch as well, so that a cancel ends it at once.
 */
HttpResponse *
http_perform(const HttpTarget *target, struct curl_slist *headers,
			 const void *body, size_t body_len)
{
	HttpClient *volatile client = NULL;
	struct curl_slist *volatile unsent = headers;
	HttpResponse *response;

	PG_TRY();
	{
		client = http_client_create(1);
		unsent = NULL;
		response = http_exchange(client, target, headers, body, body_len);
	}
	PG_CATCH();
	{
		if (target->confidential)
			headers_wipe(unsent);
		curl_slist_free_all(unsent);
		if (client != NULL)
			http_client_destroy(client);
		PG_RE_THROW();
	}
	PG_END_TRY();
	http_client_destroy(client);
	return response;
}

/* ---- connections, for other protocols than HTTP ---- */

/*
 * A client of its own with one request, that never becomes one. The wait set
 * is kept, since a round trip may take less time than to make one.
 */
struct HttpConnection
{
	MemoryContext context;
	HttpClient *client;
	HttpRequest *request;
	WaitEventSet *set;
	int			position;		/* of the socket in the set */
	uint32		events;			/* that the set waits for */
	MemoryContextCallback callback;
};

static void
connection_gone(void *arg)
{
	HttpConnection *connection = arg;

	if (connection->set != NULL)
		FreeWaitEventSet(connection->set);
}

/* What to wait for on the connection's socket, from when there is one. */
static void
connection_watch(HttpConnection *connection)
{
	curl_socket_t fd = CURL_SOCKET_BAD;

	curl_easy_getinfo(connection->request->easy, CURLINFO_ACTIVESOCKET, &fd);
	connection->set = mlint_create_wait_event_set(3);
	AddWaitEventToSet(connection->set, WL_LATCH_SET, PGINVALID_SOCKET,
					  MyLatch, NULL);
	AddWaitEventToSet(connection->set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET,
					  NULL, NULL);
	connection->events = WL_SOCKET_READABLE;
	connection->position = AddWaitEventToSet(connection->set,
											 connection->events, fd, NULL,
											 NULL);
}

/* Open a connection; see http.h. */
HttpConnection *
http_connect(const ConnectionTarget *target, HttpResponse *failure)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "mlint connection",
												  ALLOCSET_SMALL_SIZES);
	HttpConnection *connection = MemoryContextAllocZero(context,
														sizeof(HttpConnection));
	const HttpResponse *volatile ended = NULL;
	HttpTarget	http = {
		.timeout_ms = target->timeout_ms,
		.connect_timeout_ms = target->timeout_ms,
		.ca = target->ca,
		.verify = target->verify,
		.certificate = target->certificate,
		.key = target->key,
		.metadata = target->machine,
		.connect_only = true
	};

	connection->context = context;
	connection->callback.func = connection_gone;
	connection->callback.arg = connection;
	MemoryContextRegisterResetCallback(context, &connection->callback);
	/* What would be another part of a URL. */
	if (strpbrk(target->host, "/?#@\\[]") != NULL)
	{
		memset(failure, 0, sizeof(*failure));
		failure->failure = HTTP_INVALID;
		strlcpy(failure->error, "the host must be a name or an address",
				sizeof(failure->error));
		MemoryContextDelete(context);
		return NULL;
	}
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		http.url = psprintf(strchr(target->host, ':') ? "%s://[%s]:%d" :
							"%s://%s:%d", target->tls ? "https" : "http",
							target->host, target->port);
		connection->client = http_client_create(1);
		connection->request = http_request_create(connection->client, &http);
		http_request_submit(connection->request, NULL, NULL, 0, exchange_done,
							(void *) &ended);
		while (ended == NULL)
			http_client_wait(connection->client);
		if (ended->failure == HTTP_OK)
			connection_watch(connection);
		MemoryContextSwitchTo(caller);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		MemoryContextDelete(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	*failure = *ended;
	if (ended->failure == HTTP_OK)
		return connection;
	MemoryContextDelete(context);
	return NULL;
}

void
http_connection_close(HttpConnection *connection)
{
	MemoryContextDelete(connection->context);
}

char *
http_connection_address(const HttpConnection *connection)
{
	char	   *address = NULL;

	curl_easy_getinfo(connection->request->easy, CURLINFO_PRIMARY_IP, &address);
	return pstrdup(address ? address : "");
}

ssize_t
http_connection_send(HttpConnection *connection, const void *data, size_t len)
{
	size_t		sent = 0;
	CURLcode	code = curl_easy_send(connection->request->easy, data, len,
									  &sent);

	if (code == CURLE_OK || code == CURLE_AGAIN)
		return (ssize_t) sent;
	return -1;
}

ssize_t
http_connection_receive(HttpConnection *connection, void *data, size_t size)
{
	size_t		got = 0;
	CURLcode	code = curl_easy_recv(connection->request->easy, data, size,
									  &got);

	if (code == CURLE_AGAIN)
		return 0;
	return code == CURLE_OK && got > 0 ? (ssize_t) got : -1;
}

bool
http_connection_wait(HttpConnection *connection, bool writable,
					 int64 deadline)
{
	static uint32 wait_event = 0;
	uint32		events = WL_SOCKET_READABLE |
	(writable ? WL_SOCKET_WRITEABLE : 0);

	if (wait_event == 0)
		wait_event = mlint_wait_event("MlintConnection");
	if (events != connection->events)
	{
		ModifyWaitEvent(connection->set, connection->position, events, NULL);
		connection->events = events;
	}
	for (;;)
	{
		WaitEvent	event;
		int64		left = deadline - http_clock();

		if (left <= 0)
			return false;
		if (WaitEventSetWait(connection->set, (long) ((left + 999) / 1000),
							 &event, 1, wait_event) == 0)
			continue;
		if (event.events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE))
			return true;
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

bool
http_connection_stale(HttpConnection *connection)
{
	return connection->client->generation != netpolicy_generation();
}

/* The SQLSTATE that stands for a failure or for a status of 400 and more. */
int
http_sqlstate(const HttpResponse *response)
{
	switch (response->failure)
	{
		case HTTP_OK:
			break;
		case HTTP_INVALID:
			return ERRCODE_MLINT_CONFIGURATION;
		case HTTP_REFUSED:
			return ERRCODE_MLINT_ADDRESS_REFUSED;
		case HTTP_UNREACHABLE:
		case HTTP_TLS:
			return ERRCODE_MLINT_CONNECTION;
		case HTTP_TIMEOUT:
			return ERRCODE_MLINT_TIMEOUT;
		case HTTP_PROTOCOL:
			return ERRCODE_MLINT_HTTP;
		case HTTP_CANCELLED:
			return ERRCODE_QUERY_CANCELED;
	}
	switch (response->status)
	{
		case 401:
		case 403:
		case 407:
			return ERRCODE_MLINT_AUTHENTICATION;
		default:
			return response->status >= 400
				? ERRCODE_MLINT_API : ERRCODE_SUCCESSFUL_COMPLETION;
	}
}
