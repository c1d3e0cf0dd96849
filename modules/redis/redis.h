/*
 * redis.h
 *		The parts of mlint_redis: rate limits in Redis or Valkey.
 *
 * mlint_redis.c has the verbs, script.c the laws as Lua, topology.c knows
 * which server to ask, wire.c talks to one server.
 */
#ifndef MLINT_REDIS_H
#define MLINT_REDIS_H

#include "postgres.h"

#include <hiredis/hiredis.h>

#include "ratelimit/remote_kind.h"

typedef enum RedisMode
{
	REDIS_STANDALONE,
	REDIS_SENTINEL,
	REDIS_CLUSTER
} RedisMode;

typedef struct RedisOptions
{
	RemoteOptions common;		/* first */
	char	   *hosts;
	int			mode;			/* RedisMode */
	char	   *master;
	char	   *username;
	Credential	password;
	char	   *sentinel_username;
	Credential	sentinel_password;
	int			database;
	bool		tls;
	char	   *ca;
	bool		verify;
	Credential	certificate;
	Credential	key;
	char	   *prefix;
} RedisOptions;

/* One server, and our connection to it. */
typedef struct Peer
{
	struct Peer *next;
	char	   *host;
	int			port;
	bool		sentinel;		/* it is one: other credentials, no database */
	bool		seed;			/* the options name it */
	bool		wanted;			/* see nodes_prune() */
	int64		used_at;		/* host->clock() */

	MemoryContext context;		/* of what follows; NULL: not connected */
	HttpConnection *connection;
	redisReader *reader;
	bool		busy;			/* an answer is still to come */
	bool		sent;			/* of the last command: it may have arrived */
	MemoryContextCallback callback;
} Peer;

typedef struct Store
{
	MemoryContext context;
	const RedisOptions *options;
	int			nseeds;
	Peer	   *seeds;			/* as the options list them */
	int			seed;			/* which to begin with */
	Peer	   *nodes;			/* all that were met */
	Peer	   *master;			/* standalone and sentinel; NULL: to be found */
	Peer	  **slots;			/* cluster; NULL: to be read */
	int			nnodes;
	bool		found;			/* since nodes_prune(): who is who */
	int64		deadline;		/* host->clock(): of all that is asked for one
								 * decision; PG_INT64_MAX: of each by itself */
	char	   *shas[8];		/* of the scripts, when loaded */
} Store;

/* Words to send; what they point to stays where it is meanwhile. */
typedef struct Command
{
	bool		once;			/* twice would be wrong: don't send again when
								 * it may have arrived */
	int			argc;
	const char *argv[32];
	size_t		lens[32];
	char		numbers[32][24];	/* texts of those that are numbers */
} Command;

/* Of a Cluster. */
#define SLOTS			16384

extern const RemoteHost *host;

/* ---- wire.c ---- */

extern void command_text(Command *command, const char *text);
extern void command_bytes(Command *command, const void *data, size_t len);
extern void command_int(Command *command, int64 number);

/*
 * One round trip, within the options' timeout. The reply is the caller's to free with
 * freeReplyObject(); an error of the server's is a reply too. NULL, with
 * *failure filled, when there is none; the connection is closed then.
 */
extern redisReply * node_call(Store *store, Peer *node,
							  const Command *command, RemoteFailure *failure);
extern void node_close(Peer *node);

/*
 * The node of a name and port, perhaps told by a server. NULL: it cannot be
 * one, or there are too many.
 */
extern Peer *node_find(Store *store, const char *name, int64 port,
					   bool sentinel);

/*
 * When it has been found out who is who: forget those that have neither a part
 * in it nor a place in the options. For who has no node in his hands.
 */
extern void nodes_prune(Store *store);

/* Is this the name of a host? */
extern bool host_name_valid(const char *name);

extern bool fail(RemoteFailure *failure, int sqlstate, const char *fmt,...)
			pg_attribute_printf(3, 4);

/* What the server says, as a failure; takes the reply. */
extern bool fail_reply(RemoteFailure *failure, const Peer *node,
					   redisReply * reply);

/* ---- topology.c ---- */

/* NULL, or why these are no hosts; fills the list. */
extern const char *hosts_parse(Store *store, const char *hosts);

/* Once: those of the list are nodes. */
extern void seeds_begin(Store *store);

/*
 * Send a command to the server that has this key, wherever that takes us. The
 * reply is never one that says to go elsewhere.
 */
extern redisReply * store_call(Store *store, const char *key, size_t len,
							   const Command *command, RemoteFailure *failure);

/*
 * The n-th server that has keys, for what concerns all. NULL: there are no
 * more, and failure->sqlstate is 0, or they could not be found.
 */
extern Peer *store_node(Store *store, int n, RemoteFailure *failure);

/* Forget who is who. */
extern void store_forget(Store *store);

/* ---- script.c ---- */

extern const char *const scripts[];
extern int	script_of(const RateLaw *law);
extern const char *script_check_law(const RateLaw *law);

/* The script's arguments. */
extern void script_arguments(Command *command, const RemoteAsk *ask);

/*
 * What it returned, having been asked for so many tokens. False: not what it
 * should.
 */
extern bool script_answer(const RateLaw *law, const redisReply * reply,
						  int64 want, RemoteAnswer *answer);

#endif
