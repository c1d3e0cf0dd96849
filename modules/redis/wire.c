/*
 * wire.c
 *		One server: connect, log in, send a command, read its answer.
 *
 * hiredis makes the bytes of a command and reads those of an answer; the
 * connection is the core's, which resolves, connects, does TLS, and waits on
 * the latch.
 *
 * An interrupt may strike while an answer is still to come. Then `busy` stays
 * set, and whoever uses the node next closes the connection first: an answer
 * that belongs to another question is never read. The reader of hiredis is
 * freed by the end of the connection's memory context.
 *
 * A server may say anything. What hiredis would allocate on its word alone, an
 * array's room, is limited, and so are depth and length of an answer; what it
 * calls a server is one only if it has a host's name, and there are only so
 * many that we remember, and fewer that we are connected to.
 */
#include "redis.h"

#include "common/errors.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define ANSWER_MAX		(4 * 1024 * 1024)
#define ARRAY_MAX		65536	/* elements; a map of slots has 16384 at most */
#define DEPTH_MAX		6
#define NODES_MAX		256
#define CONNECTIONS_MAX	32		/* a session has only so many descriptors */

bool
fail(RemoteFailure *failure, int sqlstate, const char *fmt,...)
{
	va_list		args;

	failure->sqlstate = sqlstate;
	va_start(args, fmt);
	vsnprintf(failure->text, sizeof(failure->text), fmt, args);
	va_end(args);
	/* It may be cut, and may quote the server. */
	for (char *p = failure->text; *p; p++)
	{
		if (*p < ' ' || *p > '~')
			*p = '?';
	}
	return false;
}

bool
fail_reply(RemoteFailure *failure, const Peer *node, redisReply * reply)
{
	const char *text = reply->type == REDIS_REPLY_ERROR ? reply->str :
	"an answer that is not the command's";
	int			sqlstate = ERRCODE_MLINT_API;

	if (strncmp(text, "NOAUTH", 6) == 0 || strncmp(text, "WRONGPASS", 9) == 0 ||
		strncmp(text, "NOPERM", 6) == 0 || strncmp(text, "ERR AUTH", 8) == 0)
		sqlstate = ERRCODE_MLINT_AUTHENTICATION;
	(void) fail(failure, sqlstate, "%s:%d says: %.150s", node->host,
				node->port, text);
	freeReplyObject(reply);
	return false;
}

/* ---- commands ---- */

void
command_bytes(Command *command, const void *data, size_t len)
{
	Assert(command->argc < lengthof(command->argv));
	command->argv[command->argc] = data;
	command->lens[command->argc++] = len;
}

void
command_text(Command *command, const char *text)
{
	command_bytes(command, text, strlen(text));
}

void
command_int(Command *command, int64 number)
{
	char	   *text = command->numbers[command->argc];

	command_bytes(command, text, pg_lltoa(number, text));
}

/* ---- answers ---- */

#if HIREDIS_MAJOR >= 1
typedef size_t ArrayLength;
#else
typedef int ArrayLength;
#endif

static const redisReplyObjectFunctions *theirs = NULL;

/* As hiredis does; NULL, which it takes for lack of memory, of too much. */
static void *
create_array(const redisReadTask *task, ArrayLength elements)
{
	int			depth = 0;

	for (const redisReadTask *t = task; t != NULL; t = t->parent)
		depth++;
	if (elements > ARRAY_MAX || depth > DEPTH_MAX)
		return NULL;
	return theirs->createArray(task, elements);
}

/* A reader that does not allocate whatever it is told to. */
static redisReader *
reader_create(void)
{
	static redisReplyObjectFunctions ours;
	redisReader *reader = redisReaderCreate();

	if (reader == NULL)
		return NULL;
	if (theirs == NULL)
	{
		theirs = reader->fn;
		ours = *theirs;
		ours.createArray = create_array;
	}
	reader->fn = &ours;
	return reader;
}

/* ---- nodes ---- */

bool
host_name_valid(const char *name)
{
	size_t		len = strlen(name);

	if (len == 0 || len > 255)
		return false;
	for (const char *p = name; *p; p++)
	{
		if (*p <= ' ' || *p > '~' || strchr("/@?#\\[]", *p))
			return false;
	}
	return true;
}

Peer *
node_find(Store *store, const char *name, int64 port, bool sentinel)
{
	MemoryContext old;
	Peer	   *node;

	for (node = store->nodes; node != NULL; node = node->next)
	{
		if (node->port == port && node->sentinel == sentinel &&
			strcmp(node->host, name) == 0)
			return node;
	}
	if (port < 1 || port > 65535 || !host_name_valid(name) ||
		store->nnodes >= NODES_MAX + store->nseeds)
		return NULL;
	old = MemoryContextSwitchTo(store->context);
	node = palloc0(sizeof(Peer));
	node->host = pstrdup(name);
	node->port = port;
	node->sentinel = sentinel;
	node->next = store->nodes;
	store->nodes = node;
	store->nnodes++;
	MemoryContextSwitchTo(old);
	return node;
}

static void
reader_gone(void *arg)
{
	Peer	   *node = arg;

	if (node->reader)
		redisReaderFree(node->reader);
	node->reader = NULL;
}

void
node_close(Peer *node)
{
	MemoryContext context = node->context;

	node->context = NULL;
	node->connection = NULL;
	node->busy = false;
	if (context)
		MemoryContextDelete(context);
}

void
nodes_prune(Store *store)
{
	Peer	  **link = &store->nodes;

	if (!store->found || (store->master == NULL && store->slots == NULL))
		return;
	store->found = false;
	for (Peer *node = store->nodes; node != NULL; node = node->next)
		node->wanted = node->seed || node == store->master;
	for (int i = 0; store->slots && i < SLOTS; i++)
	{
		if (store->slots[i])
			store->slots[i]->wanted = true;
	}
	while (*link)
	{
		Peer	   *node = *link;

		if (node->wanted)
		{
			link = &node->next;
			continue;
		}
		*link = node->next;
		store->nnodes--;
		node_close(node);
		pfree(node->host);
		pfree(node);
	}
}

/* Send all of it. */
static bool
node_send(Peer *node, const char *data, size_t len, int64 deadline)
{
	while (len > 0)
	{
		ssize_t		n = host->send(node->connection, data, len);

		if (n < 0)
			return false;
		data += n;
		len -= n;
		if (n == 0 && !host->wait(node->connection, true, deadline))
			return false;
	}
	return true;
}

/* The next answer; NULL: why is in *failure. */
static redisReply *
node_receive(Peer *node, int64 deadline, int timeout_ms,
			 RemoteFailure *failure)
{
	size_t		total = 0;
	bool		waited = false;

	for (;;)
	{
		char		buf[16384];
		void	   *reply = NULL;
		ssize_t		n;

		if (redisReaderGetReply(node->reader, &reply) != REDIS_OK)
		{
			fail(failure, ERRCODE_MLINT_HTTP,
				 "%s:%d does not speak the protocol of Redis", node->host,
				 node->port);
			return NULL;
		}
		if (reply)
			return reply;
		/* The first look would come too soon. */
		n = waited ?
			host->receive(node->connection, buf, sizeof(buf)) : 0;
		if (n > 0)
		{
			total += n;
			if (total > ANSWER_MAX ||
				redisReaderFeed(node->reader, buf, n) != REDIS_OK)
			{
				fail(failure, ERRCODE_MLINT_HTTP,
					 "the answer of %s:%d is too long", node->host,
					 node->port);
				return NULL;
			}
			continue;
		}
		if (n < 0)
		{
			fail(failure, ERRCODE_MLINT_CONNECTION,
				 "%s:%d closed the connection", node->host, node->port);
			return NULL;
		}
		if (!host->wait(node->connection, false, deadline))
		{
			fail(failure, ERRCODE_MLINT_TIMEOUT,
				 "%s:%d did not answer within %d ms", node->host,
				 node->port, timeout_ms);
			return NULL;
		}
		waited = true;
	}
}

/* A command and its answer, on a connection that is there. */
static redisReply *
node_exchange(Store *store, Peer *node, const Command *command,
			  RemoteFailure *failure)
{
	int			timeout_ms = store->options->common.timeout_ms;
	int64		deadline = Min(host->clock() + timeout_ms * INT64CONST(1000),
							   store->deadline);
	char	   *bytes;
	char	   *copy;
	int			len = redisFormatCommandArgv(&bytes, command->argc,
											 (const char **) command->argv,
											 command->lens);
	char		small[1024];
	redisReply *reply;
	bool		sent;

	if (len < 0)
	{
		fail(failure, ERRCODE_OUT_OF_MEMORY, "out of memory");
		return NULL;
	}
	/* To wait is to be interrupted, and malloc's memory would leak. */
	copy = len <= sizeof(small) ? small :
		MemoryContextAlloc(node->context, len);
	memcpy(copy, bytes, len);
	host->wipe(bytes, len);
	free(bytes);

	node->busy = node->sent = true;
	sent = node_send(node, copy, len, deadline);
	host->wipe(copy, len);
	if (copy != small)
		pfree(copy);
	if (!sent)
	{
		if (host->clock() >= deadline)
			fail(failure, ERRCODE_MLINT_TIMEOUT,
				 "%s:%d took nothing within %d ms", node->host, node->port,
				 timeout_ms);
		else
			fail(failure, ERRCODE_MLINT_CONNECTION,
				 "%s:%d closed the connection", node->host, node->port);
		node_close(node);
		return NULL;
	}
	reply = node_receive(node, deadline, timeout_ms, failure);
	if (reply)
		node->busy = false;
	else
		node_close(node);
	return reply;
}

/* Send a command whose answer is OK. */
static bool
node_command_ok(Store *store, Peer *node, const Command *command,
				RemoteFailure *failure)
{
	redisReply *reply = node_exchange(store, node, command, failure);

	if (reply == NULL)
		return false;
	if (reply->type != REDIS_REPLY_STATUS)
	{
		fail_reply(failure, node, reply);
		node_close(node);
		return false;
	}
	freeReplyObject(reply);
	return true;
}

/* Log in; the password is wiped, whatever comes. */
static bool
node_authenticate(Store *store, Peer *node, const char *username,
				  char *password, size_t len, RemoteFailure *failure)
{
	Command		command = {0};
	volatile bool ok = false;

	command_text(&command, "AUTH");
	if (username)
		command_text(&command, username);
	command_bytes(&command, password, len);
	PG_TRY();
	{
		ok = node_command_ok(store, node, &command, failure);
	}
	PG_CATCH();
	{
		host->wipe(password, len);
		PG_RE_THROW();
	}
	PG_END_TRY();
	host->wipe(password, len);
	return ok;
}

/*
 * Present our credentials, and choose the database. Not in the node's context,
 * which a failure ends.
 */
static bool
node_login(Store *store, Peer *node, RemoteFailure *failure)
{
	const RedisOptions *options = store->options;
	const Credential *password = node->sentinel ?
	&options->sentinel_password : &options->password;
	const char *username = node->sentinel ? options->sentinel_username :
	options->username;
	Command		command = {0};

	if (password->kind != CREDENTIAL_NONE)
	{
		size_t		len;
		char	   *value = host->credential(password, &len, failure);
		bool		ok;

		if (value == NULL)
		{
			node_close(node);
			return false;
		}
		ok = node_authenticate(store, node, username, value, len, failure);
		pfree(value);
		if (!ok)
			return false;
	}
	if (options->database != 0 && !node->sentinel)
	{
		command_text(&command, "SELECT");
		command_int(&command, options->database);
		return node_command_ok(store, node, &command, failure);
	}
	return true;
}

/* A PEM text that a credential holds; NULL: failure. */
static char *
pem(const Credential *credential, RemoteFailure *failure)
{
	size_t		len;

	/* cppcheck-suppress returnDanglingLifetime; the length is not kept */
	return host->credential(credential, &len, failure);
}

/* Open the connection; the current context is the node's. */
static bool
node_open(Store *store, Peer *node, RemoteFailure *failure)
{
	const RedisOptions *options = store->options;
	ConnectionTarget target = {
		.host = node->host,
		.port = node->port,
		.tls = options->tls,
		.ca = options->ca,
		.verify = options->verify,
		.timeout_ms = options->common.connect_timeout_ms
	};
	HttpResponse response = {0};
	char	   *certificate = NULL;
	char	   *volatile key = NULL;
	int64		left_ms = (store->deadline - host->clock()) / 1000;

	if (left_ms <= 0)
		return fail(failure, ERRCODE_MLINT_TIMEOUT,
					"no time is left to connect to %s:%d", node->host,
					node->port);
	target.timeout_ms = (int) Min(target.timeout_ms, left_ms);
	if (options->certificate.kind != CREDENTIAL_NONE)
	{
		certificate = pem(&options->certificate, failure);
		if (certificate == NULL)
			return false;
		key = pem(&options->key, failure);
		if (key == NULL)
			return false;
		target.certificate = certificate;
		target.key = key;
	}
	PG_TRY();
	{
		node->connection = host->connect(&target, &response);
	}
	PG_FINALLY();
	{
		if (key)
			host->wipe(key, strlen(key));
	}
	PG_END_TRY();
	if (node->connection == NULL)
	{
		int			sqlstate = ERRCODE_MLINT_CONNECTION;

		if (response.failure == HTTP_REFUSED)
			sqlstate = ERRCODE_MLINT_ADDRESS_REFUSED;
		else if (response.failure == HTTP_TIMEOUT)
			sqlstate = ERRCODE_MLINT_TIMEOUT;
		return fail(failure, sqlstate, "%s:%d: %s", node->host, node->port,
					response.error);
	}
	return true;
}

/* Make room for one more: close what was used the longest time ago. */
static void
connections_limit(Store *store)
{
	Peer	   *oldest = NULL;
	int			n = 0;

	for (Peer *node = store->nodes; node != NULL; node = node->next)
	{
		if (node->context == NULL)
			continue;
		n++;
		if (oldest == NULL || node->used_at < oldest->used_at)
			oldest = node;
	}
	if (n >= CONNECTIONS_MAX)
		node_close(oldest);
}

/* Be connected and logged in. */
static bool
node_connect(Store *store, Peer *node, RemoteFailure *failure)
{
	MemoryContext old;
	bool		ok;

	node->used_at = host->clock();
	if (node->connection && !node->busy && !host->stale(node->connection))
		return true;
	node_close(node);
	connections_limit(store);
	node->context = AllocSetContextCreate(store->context,
										  "mlint redis connection",
										  ALLOCSET_SMALL_SIZES);
	node->callback.func = reader_gone;
	node->callback.arg = node;
	MemoryContextRegisterResetCallback(node->context, &node->callback);
	old = MemoryContextSwitchTo(node->context);
	/* Until it is logged in, it is no connection for others. */
	node->busy = true;
	ok = node_open(store, node, failure);
	MemoryContextSwitchTo(old);
	if (!ok)
	{
		node_close(node);
		return false;
	}
	node->reader = reader_create();
	if (node->reader == NULL)
	{
		node_close(node);
		return fail(failure, ERRCODE_OUT_OF_MEMORY, "out of memory");
	}
	node->reader->maxbuf = 64 * 1024;
	if (!node_login(store, node, failure))
		return false;
	node->busy = node->sent = false;
	return true;
}

/* Has the server closed the connection since it was last used? */
static bool
node_is_gone(Peer *node)
{
	char		buf[1];

	return host->receive(node->connection, buf, sizeof(buf)) != 0;
}

/*
 * See redis.h. A connection that was idle may have been closed by the server
 * long ago. That is found out by the first use, which then begins anew; or
 * before it, when the command must not be sent twice.
 */
redisReply *
node_call(Store *store, Peer *node, const Command *command,
		  RemoteFailure *failure)
{
	bool		kept = node->connection != NULL && !node->busy;
	redisReply *reply;

	node->sent = false;
	if (kept && command->once && node_is_gone(node))
		node_close(node);
	if (!node_connect(store, node, failure))
		return NULL;
	reply = node_exchange(store, node, command, failure);
	if (reply == NULL && kept && !command->once &&
		failure->sqlstate == ERRCODE_MLINT_CONNECTION &&
		node_connect(store, node, failure))
		reply = node_exchange(store, node, command, failure);
	return reply;
}
