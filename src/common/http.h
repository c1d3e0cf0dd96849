/*
 * http.h
 *		The one HTTP client: libcurl's multi interface on an epoll descriptor.
 *
 * A worker keeps one HttpClient for its life, puts http_client_fd() into its
 * WaitEventSet, and calls http_client_run() when that is readable or the
 * client's timeout has passed. A backend calls http_perform(), which is the
 * same client with a loop around it that waits on the latch, so that cancel
 * and statement_timeout work.
 *
 * Every connection is guarded: see netpolicy.h. Only http and https; proxies
 * of the environment and redirects are not followed; response bodies are kept
 * up to a limit and the rest is not read. libcurl's resolver runs in a thread
 * of its own, with every signal blocked.
 *
 * Callbacks run inside libcurl and must not raise errors: they only take
 * notes. Memory of a client and its requests is libcurl's and malloc's, freed
 * by http_client_destroy(); http_client_create() registers that with the
 * current memory context, so that an error cannot leak it.
 */
#ifndef MLINT_HTTP_H
#define MLINT_HTTP_H

#include <curl/curl.h>

#include "utils/jsonb.h"

typedef struct HttpClient HttpClient;
typedef struct HttpRequest HttpRequest;

typedef enum HttpFailure
{
	HTTP_OK,					/* there is a status, whatever it is */
	HTTP_INVALID,				/* the request itself cannot be sent */
	HTTP_REFUSED,				/* by the network policy */
	HTTP_UNREACHABLE,			/* resolution, connect, reset, half a response */
	HTTP_TLS,					/* handshake or certificate */
	HTTP_TIMEOUT,
	HTTP_PROTOCOL,				/* not HTTP */
	HTTP_CANCELLED				/* by http_request_cancel() */
} HttpFailure;

/* What stays the same over the life of a request object. */
typedef struct HttpTarget
{
	const char *url;
	const char *method;			/* NULL: POST with a body, GET without */
	int			timeout_ms;		/* of the whole exchange */
	int			connect_timeout_ms;
	const char *ca;				/* PEM text; NULL: the system's store */
	bool		verify;			/* the certificate and its name */
	size_t		keep_body;		/* bytes of the response body to keep */
	bool		keep_headers;	/* keep the response headers too */
	bool		confidential;	/* wipe all that is kept of the exchange */
	bool		metadata;		/* a URL of our own, not of a caller's, to the
								 * machine's metadata service: not guarded */
	bool		connect_only;	/* http_connect()'s: no request follows */
	const char *certificate;	/* PEM: our own, and its key; or NULL */
	const char *key;
} HttpTarget;

typedef struct HttpResponse
{
	HttpFailure failure;
	int			status;			/* 0 when there was none */
	char		error[256];		/* why, for a person; "" when HTTP_OK */
	const char *body;			/* terminated; valid until the next submit */
	size_t		body_len;
	bool		truncated;		/* there was more than keep_body */
	const char *headers;		/* raw header lines, when kept */
	size_t		headers_len;
	int			retry_after;	/* seconds, from Retry-After; -1: none */
	int64		elapsed_us;
	int64		bytes_sent;		/* of the request's body */
} HttpResponse;

typedef void (*HttpDone) (HttpRequest *request, const HttpResponse *response,
						  void *arg);

/* Once, in the postmaster's or the backend's first use: curl's globals. */
extern void http_startup(void);

extern HttpClient *http_client_create(int max_connections);
extern void http_client_destroy(HttpClient *client);
extern int	http_client_fd(HttpClient *client);

/* Milliseconds until http_client_run() must be called anyway; -1: never. */
extern long http_client_timeout(HttpClient *client);

/* Move everything that can move. Calls done callbacks. Never blocks. */
extern void http_client_run(HttpClient *client);

/*
 * In a backend: wait for the next thing to happen, with the latch, and run.
 * Raises what an interrupt raises.
 */
extern void http_client_wait(HttpClient *client);

/* Close idle connections: after the network policy or the DNS changed. */
extern void http_client_forget_connections(HttpClient *client);

/* The strings of the target are copied. Raises on out of memory only. */
extern HttpRequest *http_request_create(HttpClient *client,
										const HttpTarget *target);
extern void http_request_free(HttpRequest *request);

/*
 * Send. headers belongs to the request from here on (freed after use); body
 * must stay where it is until done is called. done is called exactly once,
 * from http_client_run(), never from here.
 */
extern void http_request_submit(HttpRequest *request,
								struct curl_slist *headers,
								const void *body, size_t body_len,
								HttpDone done, void *arg);
extern void http_request_cancel(HttpRequest *request);

/*
 * A synchronous exchange in a backend. The response's texts are palloc'd;
 * of a confidential one they are the caller's to wipe. Interrupts are
 * honoured within 100 ms; nothing leaks when they strike.
 */
extern HttpResponse *http_perform(const HttpTarget *target,
								  struct curl_slist *headers,
								  const void *body, size_t body_len);

/* The same with a client of the caller's, which keeps its connection. */
extern HttpResponse *http_exchange(HttpClient *client,
								   const HttpTarget *target,
								   struct curl_slist *headers,
								   const void *body, size_t body_len);

/* ---- connections, for other protocols than HTTP ---- */

/*
 * A connection that this client has opened: resolved, judged by the network
 * policy, with TLS 1.2 or later if asked for, and then the caller's to speak
 * whatever it likes on.
 */
typedef struct HttpConnection HttpConnection;

typedef struct ConnectionTarget
{
	const char *host;			/* a name, or an address without brackets */
	int			port;
	bool		tls;
	const char *ca;				/* PEM text; NULL: the system's store */
	bool		verify;			/* the certificate and its name */
	const char *certificate;	/* PEM: our own, and its key; or NULL */
	const char *key;
	bool		machine;		/* the machine's own configuration says where,
								 * not a caller: not guarded */
	int			timeout_ms;		/* to connect, handshake included */
} ConnectionTarget;

/*
 * Open one, which ends with the current memory context at the latest. NULL,
 * with the failure and its text in *failure, when that was not possible.
 * Raises what an interrupt raises, and out of memory.
 */
extern HttpConnection *http_connect(const ConnectionTarget *target,
									HttpResponse *failure);
extern void http_connection_close(HttpConnection *connection);

/* The address that it leads to, as a number, palloc'd. */
extern char *http_connection_address(const HttpConnection *connection);

/*
 * Bytes sent or received, never blocking: 0 when there is nothing to be done
 * now, -1 when the connection has ended.
 */
extern ssize_t http_connection_send(HttpConnection *connection,
									const void *data, size_t len);
extern ssize_t http_connection_receive(HttpConnection *connection,
									   void *data, size_t size);

/*
 * Wait until the socket is readable, or writable, or the time (monotonic, see
 * http_clock()) has come: then false. Raises what an interrupt raises.
 */
extern bool http_connection_wait(HttpConnection *connection, bool writable,
								 int64 deadline);

/* Was it made under a network policy that has changed since? */
extern bool http_connection_stale(HttpConnection *connection);

/* Microseconds of a clock that never goes back. */
extern int64 http_clock(void);

/*
 * Append "name: value". Raises ERRCODE_MLINT_CONFIGURATION for a name that is
 * not a token (RFC 9110, 5.6.2), a value with a control character in it, and
 * the headers that the client itself sets (Host, Content-Length, …). On error
 * the list is freed.
 */
extern struct curl_slist *http_header(struct curl_slist *list,
									  const char *name, const char *value);

/* Is this a token, as a method and a header's name must be? */
extern bool http_is_token(const char *text);
extern void http_header_check(const char *name, const char *value,
							  const char *what);

/*
 * Is this a URL that we would send to? Raises ERRCODE_MLINT_CONFIGURATION:
 * scheme other than http and https, no host, credentials in it, a control
 * character or space, a fragment. "what" names the option.
 */
extern void http_url_check(const char *url, const char *what);

/* The SQLSTATE that stands for a failure or for a status of 400 and more. */
extern int	http_sqlstate(const HttpResponse *response);

#endif
