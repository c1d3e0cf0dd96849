/*
 * limit.c
 *		The limit that deliveries are measured against: a plain loop.
 *
 * One thread posts N signed requests over C keep-alive connections, as fast
 * as libcurl allows: the same headers, signatures and size of body as mlint's
 * http driver, and nothing else, no database, no log, no retries. Buffers are
 * made once and written over, the HMAC key is set up once.
 *
 * Both ways to drive curl_multi are tried, curl_multi_poll() and
 * curl_multi_socket_action() on an epoll descriptor, and both reported:
 *
 *		limit URL REQUESTS CONNECTIONS
 *
 * prints, for each, "engine requests_a_second p50_us p99_us", and last the
 * faster one again as "best". Any answer but 200 ends it.
 */
#include <curl/curl.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define SHA256_BYTES	32
#define ID_BYTES		32
#define MAX_FD			4096

/* One connection's worth of request; the headers point into the buffers. */
typedef struct Request
{
	CURL	   *curl;
	struct curl_slist header[5];
	char		id[64];
	char		timestamp[64];
	char		standard[96];
	char		hub[128];
	char		body[512];
	size_t		body_len;
	uint64_t	sent_at;
} Request;

typedef struct Result
{
	const char *engine;
	double		rate;
	uint32_t	p50;
	uint32_t	p99;
} Result;

static CURLM *multi;
static EVP_MAC_CTX *mac;
static const char *url;
static int	total;
static int	sent;
static int	done;
static uint32_t * latency;

static int	epoll_fd;
static long timeout_ms;
static uint32_t watched[MAX_FD];	/* epoll events by descriptor */

static void
fail(const char *what)
{
	fprintf(stderr, "limit: %s\n", what);
	exit(1);
}

static uint64_t
now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void
key_setup(void)
{
	static unsigned char key[24] = "the bench has no secrets";
	OSSL_PARAM	params[] = {
		OSSL_PARAM_construct_utf8_string("digest", "SHA256", 0),
		OSSL_PARAM_construct_end()
	};
	EVP_MAC    *hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);

	mac = EVP_MAC_CTX_new(hmac);
	if (!mac || !EVP_MAC_init(mac, key, sizeof(key), params))
		fail("no HMAC");
	EVP_MAC_free(hmac);
}

static void
sign(const char *prefix, size_t prefix_len, const Request *r,
	 unsigned char *out)
{
	size_t		len;

	if (!EVP_MAC_init(mac, NULL, 0, NULL) ||
		!EVP_MAC_update(mac, (const unsigned char *) prefix, prefix_len) ||
		!EVP_MAC_update(mac, (const unsigned char *) r->body, r->body_len) ||
		!EVP_MAC_final(mac, out, &len, SHA256_BYTES))
		fail("HMAC failed");
}

/* Body, id, time and both signatures of the n-th request. */
static void
request_write(Request *r, int n)
{
	static const char hex[] = "0123456789abcdef";
	unsigned char digest[SHA256_BYTES];
	char		id[ID_BYTES];
	char		signed_prefix[96];
	long		seconds = (long) time(NULL);
	char	   *out;

	snprintf(id, sizeof(id), "evt_1a2b3c4d_%d", n);
	r->body_len = snprintf(r->body, sizeof(r->body),
						   "{\"id\": \"%s\", \"type\": \"bench.run\", "
						   "\"timestamp\": \"2026-01-01T00:00:00.000000Z\", "
						   "\"data\": {\"run\": %d, \"model\": \"resnet-50\", "
						   "\"epoch\": 12, \"accuracy\": 0.9312, "
						   "\"dataset\": \"imagenet-1k\", "
						   "\"commit\": \"0f343b0931126a20f133d67c2b018a3b\"}, "
						   "\"metadata\": {}}", id, n);

	snprintf(r->id, sizeof(r->id), "webhook-id: %s", id);
	snprintf(r->timestamp, sizeof(r->timestamp), "webhook-timestamp: %ld",
			 seconds);

	snprintf(signed_prefix, sizeof(signed_prefix), "%s.%ld.", id, seconds);
	sign(signed_prefix, strlen(signed_prefix), r, digest);
	strcpy(r->standard, "webhook-signature: v1,");
	EVP_EncodeBlock((unsigned char *) r->standard + strlen(r->standard),
					digest, SHA256_BYTES);

	sign("", 0, r, digest);
	strcpy(r->hub, "X-Webhook-Signature: sha256=");
	out = r->hub + strlen(r->hub);
	for (int i = 0; i < SHA256_BYTES; i++)
	{
		*out++ = hex[digest[i] >> 4];
		*out++ = hex[digest[i] & 15];
	}
	*out = '\0';
}

static size_t
body_ignore(char *data, size_t size, size_t n, void *arg)
{
	(void) data;
	(void) arg;
	return size * n;
}

/* A closed socket has left the epoll set by itself. */
static int
socket_close(void *arg, curl_socket_t fd)
{
	(void) arg;
	watched[fd] = 0;
	return close(fd);
}

static void
request_setup(Request *r)
{
	char	   *lines[] = {r->id, r->timestamp, r->standard, r->hub,
	"Content-Type: application/json"};

	for (int i = 0; i < 5; i++)
	{
		r->header[i].data = lines[i];
		r->header[i].next = i < 4 ? &r->header[i + 1] : NULL;
	}
	r->curl = curl_easy_init();
	curl_easy_setopt(r->curl, CURLOPT_URL, url);
	curl_easy_setopt(r->curl, CURLOPT_HTTPHEADER, r->header);
	curl_easy_setopt(r->curl, CURLOPT_USERAGENT, "mlint/1.0");
	curl_easy_setopt(r->curl, CURLOPT_POSTFIELDS, r->body);
	curl_easy_setopt(r->curl, CURLOPT_WRITEFUNCTION, body_ignore);
	curl_easy_setopt(r->curl, CURLOPT_PRIVATE, r);
	curl_easy_setopt(r->curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(r->curl, CURLOPT_CLOSESOCKETFUNCTION, socket_close);
	curl_easy_setopt(r->curl, CURLOPT_TIMEOUT_MS, 30000L);
	curl_easy_setopt(r->curl, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
}

/* Send the next request on this handle, if there is one to send. */
static void
request_send(Request *r)
{
	if (sent == total)
		return;
	request_write(r, ++sent);
	curl_easy_setopt(r->curl, CURLOPT_POSTFIELDSIZE, (long) r->body_len);
	r->sent_at = now_us();
	curl_multi_add_handle(multi, r->curl);
}

/* Take in what has finished, and send as much again. */
static void
collect(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(multi, &left)))
	{
		Request    *r;
		long		status;

		if (message->msg != CURLMSG_DONE)
			continue;
		if (message->data.result != CURLE_OK)
			fail(curl_easy_strerror(message->data.result));
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE,
						  (char **) &r);
		curl_easy_getinfo(r->curl, CURLINFO_RESPONSE_CODE, &status);
		if (status != 200)
			fail("an answer that is not 200");
		latency[done++] = (uint32_t) (now_us() - r->sent_at);
		curl_multi_remove_handle(multi, r->curl);
		request_send(r);
	}
}

static void
run_poll(void)
{
	int			running;

	while (done < total)
	{
		curl_multi_perform(multi, &running);
		collect();
		if (done < total)
			curl_multi_poll(multi, NULL, 0, 1000, NULL);
	}
}

/*
 * libcurl wants to wait for a socket, or no longer. Between two requests it
 * wants nothing of a connection and then the same again; the socket stays in
 * the epoll set meanwhile, which saves three system calls a request.
 */
static int
socket_wanted(CURL *curl, curl_socket_t fd, int what, void *arg, void *known)
{
	struct epoll_event event = {.data.fd = fd};

	(void) curl;
	(void) arg;
	(void) known;
	if (fd >= MAX_FD)
		fail("too many descriptors");
	if (what == CURL_POLL_REMOVE)
		return 0;

	event.events = (what & CURL_POLL_IN ? EPOLLIN : 0) |
		(what & CURL_POLL_OUT ? EPOLLOUT : 0);
	if (event.events == watched[fd])
		return 0;
	epoll_ctl(epoll_fd, watched[fd] ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd,
			  &event);
	watched[fd] = event.events;
	return 0;
}

static int
timer_wanted(CURLM *m, long ms, void *arg)
{
	(void) m;
	(void) arg;
	timeout_ms = ms;
	return 0;
}

static void
run_epoll(void)
{
	struct epoll_event events[256];
	int			running;

	while (done < total)
	{
		int			n = 0;

		if (timeout_ms != 0)
			n = epoll_wait(epoll_fd, events, 256,
						   timeout_ms < 0 ? 1000 : (int) timeout_ms);
		if (n == 0)
		{
			timeout_ms = -1;
			curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
		}
		for (int i = 0; i < n; i++)
		{
			int			what = 0;

			if (events[i].events & EPOLLIN)
				what |= CURL_CSELECT_IN;
			if (events[i].events & EPOLLOUT)
				what |= CURL_CSELECT_OUT;
			if (events[i].events & (EPOLLERR | EPOLLHUP))
				what |= CURL_CSELECT_ERR;
			curl_multi_socket_action(multi, events[i].data.fd, what, &running);
		}
		collect();
	}
}

static int
compare(const void *a, const void *b)
{
	uint32_t	x = *(const uint32_t *) a;
	uint32_t	y = *(const uint32_t *) b;

	return (x > y) - (x < y);
}

/* All requests by one engine, on fresh connections. */
static Result
measure(const char *engine, int connections)
{
	bool		epoll = strcmp(engine, "epoll") == 0;
	Request    *requests = calloc(connections, sizeof(Request));
	Result		result = {.engine = engine};
	uint64_t	start;

	multi = curl_multi_init();
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) connections);
	sent = done = 0;
	timeout_ms = -1;
	if (epoll)
	{
		epoll_fd = epoll_create1(EPOLL_CLOEXEC);
		curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, socket_wanted);
		curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, timer_wanted);
	}

	start = now_us();
	for (int i = 0; i < connections; i++)
	{
		request_setup(&requests[i]);
		request_send(&requests[i]);
	}
	if (epoll)
		run_epoll();
	else
		run_poll();
	result.rate = total * 1e6 / (now_us() - start);

	qsort(latency, total, sizeof(uint32_t), compare);
	result.p50 = latency[total / 2];
	result.p99 = latency[(int) (total * 0.99)];

	for (int i = 0; i < connections; i++)
		curl_easy_cleanup(requests[i].curl);
	curl_multi_cleanup(multi);
	if (epoll)
		close(epoll_fd);
	free(requests);
	return result;
}

static void
print_result(const char *name, const Result *r)
{
	printf("%s\t%.0f\t%u\t%u\n", name, r->rate, r->p50, r->p99);
}

int
main(int argc, char **argv)
{
	Result		poll;
	Result		epoll;
	int			connections;

	if (argc != 4 || (total = atoi(argv[2])) < 1 ||
		(connections = atoi(argv[3])) < 1)
	{
		fprintf(stderr, "usage: limit URL REQUESTS CONNECTIONS\n");
		return 2;
	}
	url = argv[1];
	if (connections > total)
		connections = total;
	latency = calloc(total, sizeof(uint32_t));
	curl_global_init(CURL_GLOBAL_ALL);
	key_setup();

	poll = measure("poll", connections);
	print_result(poll.engine, &poll);
	epoll = measure("epoll", connections);
	print_result(epoll.engine, &epoll);
	print_result("best", poll.rate > epoll.rate ? &poll : &epoll);
	return 0;
}
