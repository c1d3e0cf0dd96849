/*
 * topology.c
 *		Which server to ask: one, the master that the Sentinels name, or the
 *		one of a Cluster that has the key.
 *
 * What is known is used until it turns out to be wrong: a connection that
 * fails, a server that says READONLY (it is no master any more) or MOVED (the
 * slot is another's). Then it is found out anew, and the command is sent again.
 * If it had been carried out and only the answer was lost, what was asked for
 * is taken twice, which errs on the safe side; what gives back is not sent
 * again then.
 *
 * Where several servers can tell, the one that could not last time is asked
 * last: one that swallows every packet costs one timeout, not each time one.
 *
 * Only Sentinels and Clusters send us elsewhere, which is what they are there
 * for; a server that is asked alone gets no password sent to others.
 */
#include "redis.h"

#include "common/errors.h"

#define MAX_HOPS		5

/* ---- hosts ---- */

const char *
hosts_parse(Store *store, const char *hosts)
{
	const char *p = hosts;
	int			n = 0;

	for (const char *c = hosts; *c; c++)
		n += *c == ',';
	store->seeds = palloc0(sizeof(Peer) * (n + 1));
	store->nseeds = 0;
	for (;;)
	{
		const char *end = p + strcspn(p, ",");
		const char *first = p;
		const char *last = end;
		const char *colon;
		Peer	   *seed = &store->seeds[store->nseeds];

		while (first < last && *first == ' ')
			first++;
		while (last > first && last[-1] == ' ')
			last--;
		if (first == last)
			return "A host is missing.";
		seed->port = store->options->mode == REDIS_SENTINEL ? 26379 : 6379;
		if (*first == '[')
		{
			const char *bracket = memchr(first, ']', last - first);

			if (bracket == NULL)
				return "A bracket is not closed.";
			seed->host = pnstrdup(first + 1, bracket - first - 1);
			colon = bracket + 1 < last ? bracket + 1 : NULL;
			if (colon && *colon != ':')
				return "After an address in brackets comes a colon and the port.";
		}
		else
		{
			colon = memchr(first, ':', last - first);
			seed->host = pnstrdup(first, (colon ? colon : last) - first);
		}
		if (colon)
		{
			char	   *digits = pnstrdup(colon + 1, last - colon - 1);

			seed->port = strspn(digits, "0123456789") == strlen(digits) &&
				strlen(digits) <= 5 ? (int) strtol(digits, NULL, 10) : 0;
			if (seed->port < 1 || seed->port > 65535)
				return "A port is a number from 1 to 65535.";
		}
		if (seed->host[0] == '\0' ||
			!host_name_valid(seed->host))
			return "A host is a name or an address, with a colon and the port behind it.";
		store->nseeds++;
		if (*end == '\0')
			return NULL;
		p = end + 1;
	}
}

void
store_forget(Store *store)
{
	store->master = NULL;
	if (store->slots)
		pfree(store->slots);
	store->slots = NULL;
}

void
seeds_begin(Store *store)
{
	for (int i = 0; i < store->nseeds; i++)
	{
		Peer	   *node = node_find(store, store->seeds[i].host,
									 store->seeds[i].port,
									 store->options->mode == REDIS_SENTINEL);

		node->seed = true;
	}
}

/* The i-th of the seeds, counted from the one to begin with. */
static Peer *
seed_node(Store *store, int i)
{
	Peer	   *seed = &store->seeds[(store->seed + i) % store->nseeds];

	return node_find(store, seed->host, seed->port,
					 store->options->mode == REDIS_SENTINEL);
}

/* ---- one master ---- */

/* Is it what we look for? */
static bool
node_is_master(Store *store, Peer *node, RemoteFailure *failure)
{
	Command		command = {0};
	redisReply *reply;
	bool		is_master;

	command_text(&command, "ROLE");
	reply = node_call(store, node, &command, failure);
	if (reply == NULL)
		return false;
	if (reply->type != REDIS_REPLY_ARRAY || reply->elements < 1 ||
		reply->element[0]->type != REDIS_REPLY_STRING)
		return fail_reply(failure, node, reply);
	is_master = strcmp(reply->element[0]->str, "master") == 0;
	freeReplyObject(reply);
	if (!is_master)
		return fail(failure, ERRCODE_MLINT_CONNECTION,
					"%s:%d is no master", node->host, node->port);
	return true;
}

/* Ask a Sentinel. */
static Peer *
sentinel_master(Store *store, Peer *sentinel, RemoteFailure *failure)
{
	Command		command = {0};
	redisReply *reply;
	Peer	   *master;

	command_text(&command, "SENTINEL");
	command_text(&command, "get-master-addr-by-name");
	command_text(&command, store->options->master);
	reply = node_call(store, sentinel, &command, failure);
	if (reply == NULL)
		return NULL;
	if (reply->type == REDIS_REPLY_NIL)
	{
		freeReplyObject(reply);
		fail(failure, ERRCODE_MLINT_CONFIGURATION,
			 "the Sentinel at %s:%d knows no master \"%s\"", sentinel->host,
			 sentinel->port, store->options->master);
		return NULL;
	}
	if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
		reply->element[0]->type != REDIS_REPLY_STRING ||
		reply->element[1]->type != REDIS_REPLY_STRING)
	{
		fail_reply(failure, sentinel, reply);
		return NULL;
	}
	master = node_find(store, reply->element[0]->str,
					   strtol(reply->element[1]->str, NULL, 10), false);
	freeReplyObject(reply);
	if (master == NULL)
		fail(failure, ERRCODE_MLINT_HTTP,
			 "the Sentinel at %s:%d names no host for \"%s\"",
			 sentinel->host, sentinel->port, store->options->master);
	/* It is not needed again soon. */
	node_close(sentinel);
	return master;
}

/* Find the master, among the hosts or by the Sentinels. */
static Peer *
find_master(Store *store, RemoteFailure *failure)
{
	for (int i = 0; i < store->nseeds; i++)
	{
		Peer	   *node = seed_node(store, i);

		if (store->options->mode == REDIS_SENTINEL)
			node = sentinel_master(store, node, failure);
		else if (store->nseeds == 1)
			return store->master = node;
		if (node != NULL && node_is_master(store, node, failure))
		{
			store->seed = (store->seed + i) % store->nseeds;
			store->found = true;
			return store->master = node;
		}
		/* One that does not answer has cost its time: next time another. */
		if (failure->sqlstate == ERRCODE_MLINT_TIMEOUT)
			break;
	}
	store->seed = (store->seed + 1) % store->nseeds;
	return NULL;
}

/* ---- clusters ---- */

/* CRC-16/XMODEM, by which a Cluster tells slots. */
static uint16
crc16(const char *data, size_t len)
{
	uint16		crc = 0;

	for (size_t i = 0; i < len; i++)
	{
		crc ^= (uint16) ((unsigned char) data[i]) << 8;
		for (int bit = 0; bit < 8; bit++)
			crc = crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1;
	}
	return crc;
}

static int
slot_of(const char *key, size_t len)
{
	const char *open = memchr(key, '{', len);

	if (open)
	{
		const char *close = memchr(open + 1, '}', key + len - open - 1);

		if (close && close > open + 1)
			return crc16(open + 1, close - open - 1) % SLOTS;
	}
	return crc16(key, len) % SLOTS;
}

/* Read from one server of the cluster which has which slots. */
static bool
read_slots(Store *store, Peer *from, RemoteFailure *failure)
{
	Command		command = {0};
	redisReply *reply;
	Peer	  **slots;

	command_text(&command, "CLUSTER");
	command_text(&command, "SLOTS");
	reply = node_call(store, from, &command, failure);
	if (reply == NULL)
		return false;
	if (reply->type != REDIS_REPLY_ARRAY)
		return fail_reply(failure, from, reply);
	slots = MemoryContextAllocZero(store->context, sizeof(Peer *) * SLOTS);
	for (size_t i = 0; i < reply->elements; i++)
	{
		redisReply *range = reply->element[i];
		redisReply *where;
		const char *name;
		Peer	   *node;

		if (range->type != REDIS_REPLY_ARRAY || range->elements < 3 ||
			range->element[0]->type != REDIS_REPLY_INTEGER ||
			range->element[1]->type != REDIS_REPLY_INTEGER ||
			range->element[0]->integer < 0 ||
			range->element[1]->integer >= SLOTS)
			continue;
		where = range->element[2];
		if (where->type != REDIS_REPLY_ARRAY || where->elements < 2 ||
			where->element[1]->type != REDIS_REPLY_INTEGER)
			continue;
		/* No name is the one that we asked by. */
		name = where->element[0]->type == REDIS_REPLY_STRING &&
			where->element[0]->len > 0 &&
			strcmp(where->element[0]->str, "?") != 0 ?
			where->element[0]->str : from->host;
		node = node_find(store, name, where->element[1]->integer, false);
		for (long long s = range->element[0]->integer;
			 s <= range->element[1]->integer; s++)
			slots[s] = node;
	}
	freeReplyObject(reply);
	if (store->slots)
		pfree(store->slots);
	store->slots = slots;
	store->found = true;
	return true;
}

static bool
find_slots(Store *store, RemoteFailure *failure)
{
	/* Whoever has been met knows as well as the hosts of the options. */
	for (Peer *node = store->nodes; node != NULL; node = node->next)
	{
		if (!node->connection || node->busy)
			continue;
		if (read_slots(store, node, failure))
			return true;
		if (failure->sqlstate == ERRCODE_MLINT_TIMEOUT)
			return false;
	}
	for (int i = 0; i < store->nseeds; i++)
	{
		if (read_slots(store, seed_node(store, i), failure))
		{
			store->seed = (store->seed + i) % store->nseeds;
			return true;
		}
		if (failure->sqlstate == ERRCODE_MLINT_TIMEOUT)
			break;
	}
	store->seed = (store->seed + 1) % store->nseeds;
	return false;
}

/* "MOVED 3999 127.0.0.1:6381": that node; NULL: it can be none. */
static Peer *
redirected(Store *store, const Peer *from, const char *text, int *slot)
{
	const char *where;
	const char *colon;
	char	   *name;
	long		to;
	Peer	   *node;

	text	  +=strcspn(text, " ");

	to = strtol(text, NULL, 10);
	text	  +=strspn(text, " ");
	where = text +strcspn(text, " ");

	where += strspn(where, " ");
	colon = strrchr(where, ':');
	if (colon == NULL || to < 0 || to >= SLOTS)
		return NULL;
	*slot = to;
	name = colon == where ? pstrdup(from->host) :
		pnstrdup(where, colon - where);
	node = node_find(store, name, strtol(colon + 1, NULL, 10), false);
	pfree(name);
	return node;
}

/* ---- calls ---- */

/* The server that has this key, as far as we know. */
static Peer *
find_node(Store *store, const char *key, size_t len, RemoteFailure *failure)
{
	Peer	   *node;

	if (store->options->mode != REDIS_CLUSTER)
		return store->master ? store->master : find_master(store, failure);
	if (store->slots == NULL && !find_slots(store, failure))
		return NULL;
	node = store->slots[slot_of(key, len)];
	if (node == NULL)
	{
		store_forget(store);
		fail(failure, ERRCODE_MLINT_CONNECTION,
			 "no server of the cluster has the slot of the key");
	}
	return node;
}

static bool
starts(const redisReply * reply, const char *word)
{
	return reply->type == REDIS_REPLY_ERROR &&
		strncmp(reply->str, word, strlen(word)) == 0;
}

redisReply *
store_call(Store *store, const char *key, size_t len, const Command *command,
		   RemoteFailure *failure)
{
	Peer	   *node = find_node(store, key, len, failure);
	bool		asking = false;

	for (int hop = 0; node != NULL && hop < MAX_HOPS; hop++)
	{
		redisReply *reply;
		int			slot;

		if (asking)
		{
			Command		ask = {0};

			command_text(&ask, "ASKING");
			reply = node_call(store, node, &ask, failure);
			if (reply)
				freeReplyObject(reply);
			asking = false;
		}
		reply = node_call(store, node, command, failure);
		if (reply == NULL)
		{
			/* If another has taken its place, go there. */
			Peer	   *before = node;
			RemoteFailure again = {0};

			store_forget(store);
			if (failure->sqlstate != ERRCODE_MLINT_CONNECTION || hop > 0 ||
				(command->once && node->sent) ||
				(store->options->mode == REDIS_STANDALONE &&
				 store->nseeds == 1))
				return NULL;
			node = find_node(store, key, len, &again);
			if (node == before)
				return NULL;
			continue;
		}
		if (reply->type != REDIS_REPLY_ERROR)
			return reply;
		if (store->options->mode == REDIS_CLUSTER &&
			(starts(reply, "MOVED ") || starts(reply, "ASK ")))
		{
			Peer	   *target = redirected(store, node, reply->str, &slot);

			asking = starts(reply, "ASK ");
			if (target == NULL)
			{
				store_forget(store);
				return reply;
			}
			if (!asking && store->slots)
				store->slots[slot] = target;
			node = target;
			freeReplyObject(reply);
			continue;
		}
		if (starts(reply, "READONLY") || starts(reply, "MASTERDOWN") ||
			starts(reply, "LOADING") || starts(reply, "CLUSTERDOWN") ||
			starts(reply, "TRYAGAIN"))
		{
			Peer	   *before = node;

			/* Not now, or not here any more; it was not carried out. */
			store_forget(store);
			fail_reply(failure, node, reply);
			node_close(before);
			if (hop > 0)
				return NULL;
			node = find_node(store, key, len, failure);
			if (node == before && store->options->mode != REDIS_SENTINEL)
				return NULL;
			continue;
		}
		return reply;
	}
	if (failure->sqlstate == 0)
		fail(failure, ERRCODE_MLINT_CONNECTION,
			 "the servers send us from one to the other");
	return NULL;
}

Peer *
store_node(Store *store, int n, RemoteFailure *failure)
{
	Peer	   *last = NULL;

	if (store->options->mode != REDIS_CLUSTER)
	{
		if (n == 0)
			return store->master ? store->master :
				find_master(store, failure);
		failure->sqlstate = 0;
		return NULL;
	}
	if (store->slots == NULL && !find_slots(store, failure))
		return NULL;
	/* Those that have slots, each once, in the order of all nodes. */
	for (Peer *node = store->nodes; node != NULL; node = node->next)
	{
		for (int s = 0; s < SLOTS; s++)
		{
			if (store->slots[s] != node)
				continue;
			if (n-- == 0)
				last = node;
			break;
		}
		if (last)
			return last;
	}
	failure->sqlstate = 0;
	return NULL;
}
