/*
 * latency.c
 *		One event on an idle system: how long from commit to arrival?
 *
 * Three things are timed in turn, many times over, with a pause between, so
 * that everything is asleep when it begins:
 *
 *		event	COMMIT of a transaction that published, to the arrival of the
 *				request
 *		notify	COMMIT of a transaction that notified, to the arrival of the
 *				notification in another session
 *		curl	a bare request, to its arrival
 *
 * The receiver is a thread of this program, so that all is told by one clock.
 * Both commits are counted from just before they are sent.
 *
 *		latency PORT ROUNDS "publishing SQL"
 *
 * listens on the port, for a destination that exists already, and prints
 * "event p50_us p99_us", likewise "notify" and "curl".
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <curl/curl.h>
#include <libpq-fe.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS	64
#define WARM_UP			10
#define PAUSE_MS		20
#define PATIENCE_MS		10000

static int	listener;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t arrival = PTHREAD_COND_INITIALIZER;
static uint64_t arrived_at;		/* 0: nothing has arrived yet */

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "latency: %s: %s\n", what, why);
	exit(1);
}

static uint64_t
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A request that is whole: headers and as much body as they promise. */
static bool
request_complete(const char *data, size_t len)
{
	const char *end = strstr(data, "\r\n\r\n");
	const char *length = strcasestr(data, "\r\ncontent-length:");
	size_t		body = length ? strtoul(length + 17, NULL, 10) : 0;

	return end && len >= (size_t) (end + 4 - data) + body;
}

/* The receiver: notes when a request's first byte arrives, answers 200. */
static void *
receive(void *arg)
{
	static const char answer[] =
	"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
	static char data[MAX_CONNECTIONS][16384];
	static size_t len[MAX_CONNECTIONS];
	struct pollfd fds[MAX_CONNECTIONS];
	int			n = 1;

	(void) arg;
	fds[0].fd = listener;
	fds[0].events = POLLIN;
	while (poll(fds, n, -1) > 0)
	{
		uint64_t	now = now_ns();

		for (int i = n - 1; i > 0; i--)
		{
			ssize_t		got;

			if (!fds[i].revents)
				continue;
			got = read(fds[i].fd, data[i] + len[i],
					   sizeof(data[i]) - 1 - len[i]);
			if (got <= 0)
			{
				close(fds[i].fd);
				n--;
				fds[i] = fds[n];
				memcpy(data[i], data[n], sizeof(data[i]));
				len[i] = len[n];
				continue;
			}
			if (len[i] == 0)
			{
				pthread_mutex_lock(&lock);
				arrived_at = now;
				pthread_cond_signal(&arrival);
				pthread_mutex_unlock(&lock);
			}
			len[i] += got;
			data[i][len[i]] = '\0';
			if (request_complete(data[i], len[i]))
			{
				len[i] = 0;
				if (write(fds[i].fd, answer, sizeof(answer) - 1) < 0)
					fail("receiver", "write failed");
			}
		}
		if (fds[0].revents && n < MAX_CONNECTIONS)
		{
			fds[n].fd = accept(listener, NULL, NULL);
			fds[n].events = POLLIN;
			fds[n].revents = 0;
			len[n] = 0;
			n++;
		}
	}
	return NULL;
}

static void
receiver_start(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	pthread_t	thread;
	int			on = 1;

	address.sin_port = htons(port);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		listen(listener, 64) != 0 ||
		pthread_create(&thread, NULL, receive, NULL) != 0)
		fail("receiver", "cannot listen");
}

static void
expect_nothing(void)
{
	pthread_mutex_lock(&lock);
	arrived_at = 0;
	pthread_mutex_unlock(&lock);
}

/* When the request that was to come has come. */
static uint64_t
wait_arrival(void)
{
	struct timespec until;
	uint64_t	at;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += PATIENCE_MS / 1000;
	pthread_mutex_lock(&lock);
	while (arrived_at == 0)
		if (pthread_cond_timedwait(&arrival, &lock, &until) != 0)
			fail("receiver", "nothing arrived");
	at = arrived_at;
	pthread_mutex_unlock(&lock);
	return at;
}

static PGconn *
session(void)
{
	PGconn	   *conn = PQconnectdb("");

	if (PQstatus(conn) != CONNECTION_OK)
		fail("connection", PQerrorMessage(conn));
	return conn;
}

static void
execute(PGconn * conn, const char *sql)
{
	PGresult   *result = PQexec(conn, sql);

	if (PQresultStatus(result) != PGRES_COMMAND_OK &&
		PQresultStatus(result) != PGRES_TUPLES_OK)
		fail(sql, PQerrorMessage(conn));
	PQclear(result);
}

/* Send COMMIT; when was that? */
static uint64_t
commit_send(PGconn * conn)
{
	uint64_t	at = now_ns();

	if (!PQsendQuery(conn, "COMMIT") || PQflush(conn) != 0)
		fail("COMMIT", PQerrorMessage(conn));
	return at;
}

static void
commit_finish(PGconn * conn)
{
	PGresult   *result;

	while ((result = PQgetResult(conn)))
	{
		if (PQresultStatus(result) != PGRES_COMMAND_OK)
			fail("COMMIT", PQerrorMessage(conn));
		PQclear(result);
	}
}

static uint64_t
time_event(PGconn * conn, const char *publish)
{
	uint64_t	start;
	uint64_t	end;

	execute(conn, "BEGIN");
	execute(conn, publish);
	expect_nothing();
	start = commit_send(conn);
	end = wait_arrival();
	commit_finish(conn);
	return end - start;
}

static uint64_t
time_notify(PGconn * conn, PGconn * other)
{
	struct pollfd fd = {.fd = PQsocket(other),.events = POLLIN};
	PGnotify   *notify;
	uint64_t	start;
	uint64_t	end;

	execute(conn, "BEGIN");
	execute(conn, "NOTIFY bench");
	start = commit_send(conn);
	do
	{
		if (poll(&fd, 1, PATIENCE_MS) != 1 || !PQconsumeInput(other))
			fail("notify", "nothing arrived");
	}
	while ((notify = PQnotifies(other)) == NULL);
	end = now_ns();
	PQfreemem(notify);
	commit_finish(conn);
	return end - start;
}

static uint64_t
time_curl(CURL *curl)
{
	uint64_t	start;
	CURLcode	code;

	expect_nothing();
	start = now_ns();
	if ((code = curl_easy_perform(curl)) != CURLE_OK)
		fail("curl", curl_easy_strerror(code));
	return wait_arrival() - start;
}

static int
compare(const void *a, const void *b)
{
	uint64_t	x = *(const uint64_t *) a;
	uint64_t	y = *(const uint64_t *) b;

	return (x > y) - (x < y);
}

static void
report(const char *name, uint64_t * times, int n)
{
	qsort(times, n, sizeof(uint64_t), compare);
	printf("%s\t%.0f\t%.0f\n", name, times[n / 2] / 1e3,
		   times[(int) (n * 0.99)] / 1e3);
}

int
main(int argc, char **argv)
{
	int			rounds = argc == 4 ? atoi(argv[2]) : 0;
	uint64_t   *times[3];
	char		url[64];
	PGconn	   *conn;
	PGconn	   *other;
	CURL	   *curl;

	if (rounds < 1)
	{
		fprintf(stderr, "usage: latency PORT ROUNDS \"publishing SQL\"\n");
		return 2;
	}
	receiver_start(atoi(argv[1]));
	conn = session();
	other = session();
	execute(other, "LISTEN bench");

	curl_global_init(CURL_GLOBAL_ALL);
	curl = curl_easy_init();
	snprintf(url, sizeof(url), "http://127.0.0.1:%d/ok", atoi(argv[1]));
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, "{\"type\": \"bench.latency\"}");
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);

	for (int i = 0; i < 3; i++)
		times[i] = calloc(rounds, sizeof(uint64_t));
	for (int i = -WARM_UP; i < rounds; i++)
	{
		uint64_t	t[3];

		/* An idle system is what is measured: let it fall asleep. */
		poll(NULL, 0, PAUSE_MS);
		t[0] = time_event(conn, argv[3]);
		poll(NULL, 0, PAUSE_MS);
		t[1] = time_notify(conn, other);
		poll(NULL, 0, PAUSE_MS);
		t[2] = time_curl(curl);
		for (int j = 0; j < 3 && i >= 0; j++)
			times[j][i] = t[j];
	}
	report("event", times[0], rounds);
	report("notify", times[1], rounds);
	report("curl", times[2], rounds);
	return 0;
}
