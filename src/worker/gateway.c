/*
 * gateway.c
 *		The HTTP face: answers what rooms have registered, and /health.
 *
 * The first thing of ours that listens, so it is made of as little as can be.
 * The process has no database: what it answers lies in shared memory. It takes
 * GET and HEAD, and no bodies; a path is compared as it came, never decoded. It
 * cannot be made to wait: libmicrohttpd works on an epoll set of its own, which
 * sits in the WaitEventSet beside the latch, and handlers only look things up.
 *
 * What it gives to each is bounded. A connection has a few kilobytes for its
 * request's header, and ten seconds, from when it was accepted or from its last
 * answer, to have brought the whole of the next: one clock for headers that
 * trickle in, answers that nobody takes and connections that are merely kept.
 * They stand in a list in the order in which their time is over, so there is
 * nothing to search. When the table of connections is nearly full, the first in
 * the list goes for each that comes: who holds many open and sends nothing only
 * pushes out his own.
 *
 * An address that cannot be listened at is said in the log once, and tried
 * again after a delay that doubles; what else is listed is served meanwhile.
 *
 * Callbacks of the library must not raise, so they only take notes: what there
 * is to be said is said by the loop.
 */
#include "postgres.h"

#include <microhttpd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/peertext.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "worker/gateway.h"
#include "worker/gateway_listen.h"
#include "worker/worker.h"

PGDLLEXPORT void mlint_gateway_main(Datum main_arg);

#define MAX_ROUTES			8

/*
 * A validation is one short connection, a busy proxy keeps some dozens. More
 * only gives more room to those who hold them open for nothing.
 */
#define MAX_CONNECTIONS		1000
/* Of them all, from where on the oldest goes for each that comes. */
#define CROWDED(max)		((max) - (max) / 8)
/* Descriptors that PostgreSQL itself may want in this process. */
#define OTHER_DESCRIPTORS	256
/* For the header of a request and that of its answer; proxies add to it. */
#define CONNECTION_BYTES	8192
/* A challenge's path has 71 bytes. */
#define MAX_URL				1024
/* Authorities give up waiting for an answer after about as long. */
#define REQUEST_MS			10000
/* After this a connection is closed with its next answer. */
#define CONNECTION_AGE_MS	(10 * 60 * 1000)
/* Overdue connections are looked for no more often. */
#define OVERDUE_MS			100
#define MAX_RETRY_MS		60000
/* No more than one line in the log about troubles of the library. */
#define TROUBLE_MS			60000
/* With work at hand, look at the latch after as many rounds. */
#define MAX_ROUNDS			64
/* Out of descriptors: before the next try. */
#define BREATH_MS			100

typedef struct Route
{
	const char *prefix;
	size_t		len;
	GatewayHandler handler;
} Route;

/* An address of the setting, and what listens there. */
typedef struct Listener
{
	ListenAddress where;
	struct MHD_Daemon *daemon;	/* NULL: nothing */
	int			connections;
	uint64		accepted;
	bool		readable;		/* says the WaitEventSet */
	int			failures;
	int64		retry_at;		/* when daemon is NULL */
	int			error;			/* of the last try */
} Listener;

typedef struct Connection
{
	dlist_node	node;			/* in waiting, or in free_connections */
	Listener   *listener;
	int			socket;
	int64		since;			/* accepted, or last answered */
	int64		accepted_at;
	bool		dropped;		/* shut down, and in no list */
} Connection;

/* The answers that never change; kept open, and not. */
typedef enum Fixed
{
	FIXED_HEALTH,
	FIXED_NOT_FOUND,
	FIXED_METHOD,
	FIXED_BODY,
	FIXED_URL,
	FIXED_COUNT
} Fixed;

static const struct
{
	unsigned int status;
	const char *type;
	const char *body;
}			fixed[FIXED_COUNT] =

{
	[FIXED_HEALTH] = {200, "application/json", "{\"status\":\"ok\"}\n"},
	[FIXED_NOT_FOUND] = {404, "text/plain", "not found\n"},
	[FIXED_METHOD] = {405, "text/plain", "only GET and HEAD are answered\n"},
	[FIXED_BODY] = {413, "text/plain", "a request must not have a body\n"},
	[FIXED_URL] = {414, "text/plain", "the path is too long\n"},
};

static Route routes[MAX_ROUTES];
static int	nroutes = 0;

static Listener listeners[LISTEN_MAX];
static int	nlisteners = 0;
static struct MHD_Response *responses[FIXED_COUNT][2];	/* [1]: the last */

static Connection *connections;
static int	max_connections;
static int	nconnections = 0;
static dlist_head waiting = DLIST_STATIC_INIT(waiting);
static dlist_head free_connections = DLIST_STATIC_INIT(free_connections);

static WaitEventSet *wait_set = NULL;
static uint32 wait_event;

/* Milliseconds of the monotonic clock, as of this round of the loop. */
static int64 now_ms;

/*
 * What there is to be said: clients that misbehave are everyday and only for
 * who looks for them, what keeps clients out is for the administrator.
 */
static char trouble[200];
static int	trouble_level = DEBUG1;
static uint64 troubles = 0;
static int64 trouble_told_at[2] = {-TROUBLE_MS, -TROUBLE_MS};	/* LOG is [1] */

void
gateway_route(const char *prefix, GatewayHandler handler)
{
	if (nroutes == MAX_ROUTES)
		elog(ERROR, "too many routes of the gateway");
	routes[nroutes].prefix = prefix;
	routes[nroutes].len = strlen(prefix);
	routes[nroutes].handler = handler;
	nroutes++;
}

void
gateway_init(void)
{
	gateway_listen_define();
}

bool
gateway_wanted(void)
{
	return gateway_listen()->n > 0;
}

static void
read_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	now_ms = t.tv_sec * INT64CONST(1000) + t.tv_nsec / 1000000;
}

static void note(int level, const char *format, va_list args)
			pg_attribute_printf(2, 0);
static void note_refusal(const char *format,...) pg_attribute_printf(1, 2);
static void note_library(void *cls, const char *format, va_list args)
			pg_attribute_printf(2, 0);

static void
note(int level, const char *format, va_list args)
{
	troubles++;
	if (level < trouble_level)
		return;
	trouble_level = level;
	vsnprintf(trouble, sizeof(trouble), format, args);
}

static void
note_refusal(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	note(LOG, format, args);
	va_end(args);
}

/* Callback: the library has something to say. */
static void
note_library(void *cls, const char *format, va_list args)
{
	note(strstr(format, "accept") ? LOG : DEBUG1, format, args);
}

/* ---- connections ---- */

/*
 * End the connection that has waited longest. Its socket then tells the
 * library, which closes it in its next round.
 */
static void
drop_first(void)
{
	Connection *c = dlist_head_element(Connection, node, &waiting);

	dlist_delete(&c->node);
	c->dropped = true;
	(void) shutdown(c->socket, SHUT_RDWR);
}

static void
drop_overdue(void)
{
	while (!dlist_is_empty(&waiting) &&
		   dlist_head_element(Connection, node, &waiting)->since +
		   REQUEST_MS <= now_ms)
		drop_first();
}

static Connection *
connection_of(struct MHD_Connection *connection)
{
	return MHD_get_connection_info(connection,
								   MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
}

/* Callback: may this client come in? */
static enum MHD_Result
accept_client(void *cls, const struct sockaddr *address, socklen_t len)
{
	return nconnections < max_connections ? MHD_YES : MHD_NO;
}

static void
connection_begin(Listener *listener, struct MHD_Connection *connection,
				 void **context)
{
	Connection *c = dlist_container(Connection, node,
									dlist_pop_head_node(&free_connections));

	c->listener = listener;
	c->socket = MHD_get_connection_info(connection,
										MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
	c->since = c->accepted_at = now_ms;
	c->dropped = false;
	dlist_push_tail(&waiting, &c->node);
	*context = c;
	listener->connections++;
	listener->accepted++;
	nconnections++;
	if (nconnections > CROWDED(max_connections))
	{
		drop_first();
		note_refusal("more than %d connections: those that have waited longest are closed",
					 CROWDED(max_connections));
	}
}

static void
connection_end(Connection *c)
{
	if (!c->dropped)
		dlist_delete(&c->node);
	dlist_push_head(&free_connections, &c->node);
	c->listener->connections--;
	nconnections--;
}

/* Callback: a connection begins or ends. */
static void
note_connection(void *cls, struct MHD_Connection *connection, void **context,
				enum MHD_ConnectionNotificationCode code)
{
	if (code == MHD_CONNECTION_NOTIFY_STARTED)
		connection_begin(cls, connection, context);
	else if (*context != NULL)
		connection_end(*context);
}

/* Callback: a request has been answered, or has failed. */
static void
note_answered(void *cls, struct MHD_Connection *connection, void **seen,
			  enum MHD_RequestTerminationCode how)
{
	Connection *c = connection_of(connection);

	if (how == MHD_REQUEST_TERMINATED_COMPLETED_OK)
		MyWorker->events++;
	if (c->dropped)
		return;
	c->since = now_ms;
	dlist_delete(&c->node);
	dlist_push_tail(&waiting, &c->node);
}

/* ---- requests ---- */

static struct MHD_Response *
make_response(const char *type, const char *body, size_t len,
			  enum MHD_ResponseMemoryMode mode, bool last)
{
	struct MHD_Response *response =
	MHD_create_response_from_buffer(len, (void *) body, mode);

	if (response == NULL)
		return NULL;
	if (MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
								type) == MHD_YES &&
		(!last || MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION,
										  "close") == MHD_YES))
		return response;
	MHD_destroy_response(response);
	return NULL;
}

/* Is this the last answer that the connection gets? */
static bool
answer_is_last(struct MHD_Connection *connection)
{
	return now_ms - connection_of(connection)->accepted_at > CONNECTION_AGE_MS;
}

static enum MHD_Result
answer_fixed(struct MHD_Connection *connection, Fixed which)
{
	return MHD_queue_response(connection, fixed[which].status,
							  responses[which][answer_is_last(connection)]);
}

static enum MHD_Result
answer_route(struct MHD_Connection *connection, const Route *route,
			 const char *url)
{
	GatewayAnswer answer;
	struct MHD_Response *response;
	enum MHD_Result done;

	answer.status = 404;
	answer.content_type = "text/plain";
	answer.len = 0;
	route->handler(url + route->len, &answer);
	if (answer.status == 404)
		return answer_fixed(connection, FIXED_NOT_FOUND);
	response = make_response(answer.content_type, answer.body, answer.len,
							 MHD_RESPMEM_MUST_COPY,
							 answer_is_last(connection));
	if (response == NULL)
		return MHD_NO;
	done = MHD_queue_response(connection, answer.status, response);
	MHD_destroy_response(response);
	return done;
}

/* Callback: does this header announce a body? */
static enum MHD_Result
look_for_body(void *has_body, enum MHD_ValueKind kind, const char *name,
			  const char *value)
{
	if (pg_strcasecmp(name, MHD_HTTP_HEADER_TRANSFER_ENCODING) != 0 &&
		(pg_strcasecmp(name, MHD_HTTP_HEADER_CONTENT_LENGTH) != 0 ||
		 (value != NULL && strcmp(value, "0") == 0)))
		return MHD_YES;
	*(bool *) has_body = true;
	return MHD_NO;
}

/*
 * Callback: a header is complete (not yet seen), then the request is. What is
 * answered at the first call is not read on, and its connection is closed.
 */
static enum MHD_Result
take_request(void *cls, struct MHD_Connection *connection, const char *url,
			 const char *method, const char *version, const char *upload,
			 size_t *upload_size, void **seen)
{
	bool		has_body = false;

	if (*seen == NULL)
	{
		*seen = connection;
		if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
			return answer_fixed(connection, FIXED_METHOD);
		(void) MHD_get_connection_values(connection, MHD_HEADER_KIND,
										 look_for_body, &has_body);
		if (has_body)
			return answer_fixed(connection, FIXED_BODY);
		if (strlen(url) > MAX_URL)
			return answer_fixed(connection, FIXED_URL);
		return MHD_YES;
	}
	if (strcmp(url, "/health") == 0)
		return answer_fixed(connection, FIXED_HEALTH);
	for (int i = 0; i < nroutes; i++)
	{
		if (strncmp(url, routes[i].prefix, routes[i].len) == 0)
			return answer_route(connection, &routes[i], url);
	}
	return answer_fixed(connection, FIXED_NOT_FOUND);
}

/* Callback: nothing is decoded. */
static size_t
leave_as_it_is(void *cls, struct MHD_Connection *connection, char *text)
{
	return strlen(text);
}

/* Callback: the library cannot go on. Only this process is to end. */
static void
give_up(void *cls, const char *file, unsigned int line, const char *reason)
{
	ereport(FATAL,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("libmicrohttpd gives up at line %u: %s", line,
					reason ? reason : "no reason given")));
}

static void
make_fixed_responses(void)
{
	for (int which = 0; which < FIXED_COUNT; which++)
	{
		for (int last = 0; last <= 1; last++)
		{
			struct MHD_Response *response =
			make_response(fixed[which].type, fixed[which].body,
						  strlen(fixed[which].body),
						  MHD_RESPMEM_PERSISTENT, last);

			if (response == NULL ||
				(which == FIXED_METHOD &&
				 MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW,
										 "GET, HEAD") != MHD_YES))
				ereport(ERROR,
						(errcode(ERRCODE_OUT_OF_MEMORY),
						 errmsg("out of memory")));
			responses[which][last] = response;
		}
	}
}

/* ---- listening ---- */

/* Serve a socket that listens; it is the library's from here on. */
static struct MHD_Daemon *
serve(Listener *listener, int s)
{
	unsigned int flags = MHD_USE_EPOLL | MHD_USE_ERROR_LOG;

	if (listener->where.address.ss_family == AF_INET6)
		flags |= MHD_USE_IPv6;
	return MHD_start_daemon(flags, 0, accept_client, NULL, take_request, NULL,
							MHD_OPTION_EXTERNAL_LOGGER, note_library, NULL,
							MHD_OPTION_LISTEN_SOCKET, s,
							MHD_OPTION_CONNECTION_LIMIT,
							(unsigned int) max_connections,
							MHD_OPTION_CONNECTION_MEMORY_LIMIT,
							(size_t) CONNECTION_BYTES,
							MHD_OPTION_CONNECTION_TIMEOUT, 0U,
							MHD_OPTION_NOTIFY_CONNECTION, note_connection,
							listener,
							MHD_OPTION_NOTIFY_COMPLETED, note_answered, NULL,
							MHD_OPTION_UNESCAPE_CALLBACK, leave_as_it_is, NULL,
							MHD_OPTION_END);
}

static void
listener_open(Listener *listener)
{
	int			s = gateway_listen_open(&listener->where);
	int			error = errno;
	const char *hint;

	if (s >= 0)
	{
		listener->daemon = serve(listener, s);
		if (listener->daemon != NULL)
		{
			ereport(LOG,
					(errmsg("mlint gateway listens at %s",
							listener->where.text)));
			listener->failures = 0;
			return;
		}
		error = ENOMEM;
		close(s);
	}
	hint = gateway_listen_hint(error);
	errno = error;
	if (listener->failures++ == 0 || error != listener->error)
		ereport(LOG,
				(errcode_for_socket_access(),
				 errmsg("mlint gateway cannot listen at %s: %m",
						listener->where.text),
				 errdetail("It goes on trying, less and less often."),
				 hint ? errhint("%s", hint) : 0));
	listener->error = error;
	listener->retry_at = now_ms +
		Min(MAX_RETRY_MS, 1000 << Min(listener->failures - 1, 6));
}

/* What pg_stat_activity shows. */
static void
show_listeners(void)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < nlisteners; i++)
		appendStringInfo(&text, "%s%s %s", i > 0 ? ", " : "",
						 listeners[i].daemon ? "listening at" :
						 "cannot listen at", listeners[i].where.text);
	pgstat_report_activity(STATE_IDLE, text.data);
	pfree(text.data);
}

/* The latch, the postmaster, and the epoll set of each that listens. */
static void
make_wait_set(void)
{
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = mlint_create_wait_event_set(LISTEN_MAX + 2);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL,
					  NULL);
	for (int i = 0; i < nlisteners; i++)
	{
		if (listeners[i].daemon != NULL)
			AddWaitEventToSet(wait_set, WL_SOCKET_READABLE,
							  MHD_get_daemon_info(listeners[i].daemon,
												  MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd,
							  NULL, &listeners[i]);
	}
}

/* Try what does not listen, if it is time to. */
static void
open_listeners(void)
{
	bool		tried = false;

	for (int i = 0; i < nlisteners; i++)
	{
		if (listeners[i].daemon != NULL || listeners[i].retry_at > now_ms)
			continue;
		listener_open(&listeners[i]);
		tried = true;
	}
	if (!tried)
		return;
	make_wait_set();
	show_listeners();
}

/* Do as the setting says: what it lists no more ends, with its connections. */
static void
follow_setting(void)
{
	const ListenList *list = gateway_listen();
	bool		same = list->n == nlisteners;

	for (int i = 0; same && i < nlisteners; i++)
		same = strcmp(list->addresses[i].text, listeners[i].where.text) == 0;
	if (same)
		return;
	for (int i = 0; i < nlisteners; i++)
	{
		if (listeners[i].daemon != NULL)
			MHD_stop_daemon(listeners[i].daemon);
	}
	memset(listeners, 0, sizeof(listeners));
	nlisteners = list->n;
	for (int i = 0; i < nlisteners; i++)
		listeners[i].where = list->addresses[i];
	make_wait_set();
}

/* ---- the loop ---- */

/* So many connections as the process may have descriptors for. */
static void
make_connections(void)
{
	const		rlim_t want = MAX_CONNECTIONS + OTHER_DESCRIPTORS;
	struct rlimit limit;

	max_connections = MAX_CONNECTIONS;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
	{
		if (limit.rlim_cur < want)
		{
			limit.rlim_cur = Min(want, limit.rlim_max);
			(void) setrlimit(RLIMIT_NOFILE, &limit);
			(void) getrlimit(RLIMIT_NOFILE, &limit);
		}
		if (limit.rlim_cur < want)
			max_connections = Max(64, (int) limit.rlim_cur -
								  OTHER_DESCRIPTORS);
	}
	connections = MemoryContextAllocZero(TopMemoryContext,
										 max_connections * sizeof(Connection));
	for (int i = 0; i < max_connections; i++)
		dlist_push_tail(&free_connections, &connections[i].node);
}

/* Say what there is to be said, but not all the time. */
static void
report_trouble(void)
{
	/* What nobody sees must not hold up what somebody should. */
	if (troubles == 0 || now_ms < trouble_told_at[trouble_level == LOG] +
		TROUBLE_MS)
		return;
	for (char *c = trouble; *c != '\0'; c++)
	{
		if ((unsigned char) *c < ' ' || (unsigned char) *c > '~')
			*c = *c == '\n' ? '\0' : '?';
	}
	ereport(trouble_level,
			(errmsg("mlint gateway: %s", trouble),
			 troubles > 1 ?
			 errdetail_plural("%llu more message was left out.",
							  "%llu more messages were left out.",
							  troubles - 1,
							  (unsigned long long) (troubles - 1)) : 0));
	trouble_told_at[trouble_level == LOG] = now_ms;
	troubles = 0;
	trouble_level = DEBUG1;
}

/*
 * Let the library do what there is to do. True when it had something to do, so
 * that it may well have more.
 */
static bool
run_listener(Listener *listener)
{
	uint64		answered = MyWorker->events;
	uint64		accepted = listener->accepted;
	MHD_UNSIGNED_LONG_LONG timeout;
	bool		worked;

	(void) MHD_run(listener->daemon);
	worked = MyWorker->events != answered || listener->accepted != accepted;

	/* Somebody is at the door and cannot be let in: no descriptors. */
	if (listener->readable && !worked && listener->connections == 0)
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, BREATH_MS, wait_event);
	listener->readable = false;
	return worked ||
		(MHD_get_timeout(listener->daemon, &timeout) == MHD_YES &&
		 timeout == 0);
}

/*
 * Under load there is more to do when a round ends, and another one is cheaper
 * than to ask the kernel whether there is. Returns false when there may be
 * more, but others must be looked at first.
 */
static bool
run(void)
{
	for (int round = 0; round < MAX_ROUNDS; round++)
	{
		bool		worked = false;

		for (int i = 0; i < nlisteners; i++)
		{
			if (listeners[i].daemon != NULL)
				worked |= run_listener(&listeners[i]);
		}
		if (!worked)
			return true;
		if (((volatile Latch *) MyLatch)->is_set)
			break;
		read_clock();
	}
	return false;
}

/* Until when may we sleep? -1: for good. */
static long
wait_ms(void)
{
	int64		at = PG_INT64_MAX;

	for (int i = 0; i < nlisteners; i++)
	{
		if (listeners[i].daemon == NULL)
			at = Min(at, listeners[i].retry_at);
	}
	if (troubles > 0 && trouble_level == LOG)
		at = Min(at, trouble_told_at[true] + TROUBLE_MS);
	if (!dlist_is_empty(&waiting))
		at = Min(at, Max(now_ms + OVERDUE_MS,
						 dlist_head_element(Connection, node,
											&waiting)->since + REQUEST_MS));
	return at == PG_INT64_MAX ? -1 : Max(0, at - now_ms);
}

static void
wait_for_work(long timeout)
{
	WaitEvent	events[LISTEN_MAX + 1];
	int			n = WaitEventSetWait(wait_set, timeout, events,
									 lengthof(events), wait_event);

	for (int i = 0; i < n; i++)
	{
		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		else
			((Listener *) events[i].user_data)->readable = true;
	}
	if (n > 0)
		MyWorker->active_at = GetCurrentTimestamp();
	MyWorker->wakeups++;
}

void
mlint_gateway_main(Datum main_arg)
{
	worker_slot_adopt(DatumGetInt32(main_arg));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	/* For pg_stat_activity: a session without a database. */
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	wait_event = mlint_wait_event("MlintGateway");
	MHD_set_panic_func(give_up, NULL);
	make_connections();
	make_fixed_responses();
	make_wait_set();
	for (;;)
	{
		bool		done;

		(void) worker_interrupts();
		read_clock();
		follow_setting();
		open_listeners();
		drop_overdue();
		done = run();
		report_trouble();
		MyWorker->in_flight_count = nconnections;
		MyWorker->memory = MemoryContextMemAllocated(TopMemoryContext, true);
		wait_for_work(done ? wait_ms() : 0);
	}
}
