/*
 * mlint_redis.c
 *		The module for rate limits in Redis or Valkey: its options and verbs.
 *
 * The core loads it by name in the process that first needs it; so what it
 * links (hiredis) is needed by nobody else. See remote_kind.h for what the two
 * are to each other.
 */
#include "redis.h"

#include "common/compat.h"
#include "common/errors.h"
#include "fmgr.h"
#include "utils/memutils.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const RateRemote *mlint_rate_remote(const RemoteHost *core);

const RemoteHost *host = NULL;

#define AT(member)		offsetof(RedisOptions, member)
#define PREFIX_MAX		100

static const char *const modes[] = {"standalone", "sentinel", "cluster", NULL};

static const Option redis_options[] = {
	{"hosts", OPTION_TEXT, AT(hosts), NULL, 0, 0, NULL, NULL, true,
	"host:port, several separated by commas: the servers; of mode sentinel, the Sentinels; of mode cluster, some servers to begin with"},
	{"mode", OPTION_ENUM, AT(mode), "standalone", 0, 0, modes, NULL, false,
	"standalone (of several hosts, the one that is the master), sentinel or cluster"},
	{"master", OPTION_TEXT, AT(master), NULL, 0, 0, NULL, NULL, false,
	"name of the master that the Sentinels watch"},
	{"username", OPTION_TEXT, AT(username), NULL, 0, 0, NULL, NULL, false,
	"user to log in as; without one, the default user"},
	{"password", OPTION_CREDENTIAL, AT(password), NULL, 0, 0, NULL, NULL,
	false, "password to log in with"},
	{"sentinel_username", OPTION_TEXT, AT(sentinel_username), NULL, 0, 0,
	NULL, NULL, false, "user to log in to the Sentinels as"},
	{"sentinel_password", OPTION_CREDENTIAL, AT(sentinel_password), NULL, 0,
	0, NULL, NULL, false, "password to log in to the Sentinels with"},
	{"database", OPTION_INT, AT(database), "0", 0, 65535, NULL, NULL, false,
	"number of the database"},
	{"tls", OPTION_BOOL, AT(tls), "false", 0, 0, NULL, NULL, false,
	"whether connections are made by TLS, 1.2 or later"},
	{"ca", OPTION_TEXT, AT(ca), NULL, 0, 0, NULL, NULL, false,
	"certificates to trust instead of the system's, PEM"},
	{"verify", OPTION_BOOL, AT(verify), "true", 0, 0, NULL, NULL, false,
	"whether the server's certificate and its name are verified"},
	{"certificate", OPTION_CREDENTIAL, AT(certificate), NULL, 0, 0, NULL,
	NULL, false, "client certificate, PEM"},
	{"key", OPTION_CREDENTIAL, AT(key), NULL, 0, 0, NULL, NULL, false,
	"its private key, PEM"},
	{"prefix", OPTION_TEXT, AT(prefix), "mlint", 0, 0, NULL, NULL, false,
	"what all keys begin with, before a colon: servers that share limits share it"},
	{NULL}
};

static void
pg_attribute_noreturn()
wrong(const char *what, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("invalid options for %s", what),
			 errdetail_internal("%s", detail)));
}

static void
redis_check(const RemoteOptions *common, const char *what)
{
	const RedisOptions *options = (const RedisOptions *) common;
	Store		store = {.options = options};
	const char *fault = hosts_parse(&store, options->hosts);

	if (fault)
		wrong(what, psprintf("hosts: %s", fault));
	if ((options->mode == REDIS_SENTINEL) != (options->master != NULL))
		wrong(what, "Mode \"sentinel\" needs \"master\", and no other mode has one.");
	if (options->mode == REDIS_CLUSTER && options->database != 0)
		wrong(what, "A cluster has no other database than 0.");
	if (options->mode != REDIS_SENTINEL &&
		(options->sentinel_username ||
		 options->sentinel_password.kind != CREDENTIAL_NONE))
		wrong(what, "\"sentinel_username\" and \"sentinel_password\" are for mode \"sentinel\".");
	if ((options->username &&
		 options->password.kind == CREDENTIAL_NONE) ||
		(options->sentinel_username &&
		 options->sentinel_password.kind == CREDENTIAL_NONE))
		wrong(what, "A user name needs a password.");
	if ((options->certificate.kind == CREDENTIAL_NONE) !=
		(options->key.kind == CREDENTIAL_NONE))
		wrong(what, "\"certificate\" and \"key\" come together.");
	if (!options->tls &&
		(options->ca || options->certificate.kind != CREDENTIAL_NONE))
		wrong(what, "\"ca\" and \"certificate\" are for \"tls\": true.");
	if (strlen(options->prefix) > PREFIX_MAX ||
		strpbrk(options->prefix, "{}*?[]\\") != NULL)
		wrong(what, "prefix: It has at most 100 bytes, and none of {}*?[]\\.");
}

static void *
redis_open(const RemoteOptions *options)
{
	Store	   *store = palloc0(sizeof(Store));

	store->context = CurrentMemoryContext;
	store->options = (const RedisOptions *) options;
	(void) hosts_parse(store, store->options->hosts);
	seeds_begin(store);
	return store;
}

/* The key as the server knows it. */
static char *
full_key(const Store *store, const char *key, size_t key_len, size_t *len)
{
	size_t		prefix = strlen(store->options->prefix);
	char	   *full = palloc(prefix + 1 + key_len);

	memcpy(full, store->options->prefix, prefix);
	full[prefix] = ':';
	memcpy(full + prefix + 1, key, key_len);
	*len = prefix + 1 + key_len;
	return full;
}

/* Call a script, by its digest, which the server tells when it loads it. */
static redisReply *
script_call(Store *store, const char *key, size_t len, const RemoteAsk *ask,
			RemoteFailure *failure)
{
	int			script = script_of(ask->law);

	for (int i = 0; i < 2; i++)
	{
		bool		known = store->shas[script] != NULL && i == 0;
		Command		command = {.once = ask->give > 0};
		redisReply *reply;

		if (store->shas[script] == NULL)
		{
			Command		load = {0};

			command_text(&load, "SCRIPT");
			command_text(&load, "LOAD");
			command_text(&load, scripts[script]);
			reply = store_call(store, key, len, &load, failure);
			if (reply == NULL)
				return NULL;
			if (reply->type != REDIS_REPLY_STRING || reply->len != 40)
				return reply;
			store->shas[script] = MemoryContextStrdup(store->context,
													  reply->str);
			freeReplyObject(reply);
			known = true;
		}
		command_text(&command, known ? "EVALSHA" : "EVAL");
		command_text(&command, known ? store->shas[script] : scripts[script]);
		command_int(&command, 1);
		command_bytes(&command, key, len);
		script_arguments(&command, ask);
		reply = store_call(store, key, len, &command, failure);
		/* Its scripts were flushed, or it is another: EVAL loads it too. */
		if (reply == NULL || reply->type != REDIS_REPLY_ERROR || !known ||
			strncmp(reply->str, "NOSCRIPT", 8) != 0)
			return reply;
		freeReplyObject(reply);
	}
	fail(failure, ERRCODE_MLINT_API, "the server forgets its scripts");
	return NULL;
}

/* Which server it was does not matter to the words. */
static bool
strange(RemoteFailure *failure, redisReply * reply)
{
	Peer		server = {.host = "the server"};

	if (reply->type != REDIS_REPLY_ERROR)
	{
		freeReplyObject(reply);
		return fail(failure, ERRCODE_MLINT_HTTP,
					"the server's answer is not the script's");
	}
	(void) fail_reply(failure, &server, reply);
	return false;
}

static bool
redis_decide(void *arg, const RemoteAsk *ask, RemoteAnswer *answer,
			 RemoteFailure *failure)
{
	Store	   *store = arg;
	size_t		len;
	char	   *key = full_key(store, ask->key, ask->key_len, &len);
	redisReply *reply;

	nodes_prune(store);
	store->deadline = host->clock() +
		(store->options->common.timeout_ms +
		 store->options->common.connect_timeout_ms) * INT64CONST(1000);
	if (ask->intent == RATE_FORGET)
	{
		Command		command = {0};

		command_text(&command, "DEL");
		command_bytes(&command, key, len);
		reply = store_call(store, key, len, &command, failure);
		memset(answer, 0, sizeof(*answer));
		if (reply && reply->type == REDIS_REPLY_INTEGER)
		{
			freeReplyObject(reply);
			pfree(key);
			return true;
		}
	}
	else
		reply = script_call(store, key, len, ask, failure);
	pfree(key);
	if (reply == NULL)
		return false;
	if (!script_answer(ask->law, reply, ask->want, answer))
		return strange(failure, reply);
	freeReplyObject(reply);
	return true;
}

/* What a piece of a SCAN has found, out of the hands of malloc. */
typedef struct Found
{
	char	   *key;
	size_t		len;
} Found;

static Found *
found_keys(const redisReply * keys, size_t *n)
{
	Found	   *found = palloc(sizeof(Found) * (keys->elements + 1));

	*n = 0;
	for (size_t i = 0; i < keys->elements; i++)
	{
		const		redisReply *key = keys->element[i];

		if (key->type != REDIS_REPLY_STRING)
			continue;
		found[*n].key = memcpy(palloc(key->len + 1), key->str, key->len);
		found[(*n)++].len = key->len;
	}
	return found;
}

/* Remove them; false: failure. */
static bool
remove_keys(Store *store, const Found *found, size_t n,
			RemoteFailure *failure)
{
	for (size_t i = 0; i < n; i++)
	{
		Command		command = {0};
		redisReply *reply;

		command_text(&command, "DEL");
		command_bytes(&command, found[i].key, found[i].len);
		reply = store_call(store, found[i].key, found[i].len, &command,
						   failure);
		if (reply == NULL)
			return false;
		if (reply->type != REDIS_REPLY_INTEGER)
			return strange(failure, reply);
		freeReplyObject(reply);
	}
	return true;
}

/* One server's keys that match. */
static bool
forget_in(Store *store, Peer *node, const char *pattern, size_t len,
		  RemoteFailure *failure)
{
	char		cursor[32] = "0";

	do
	{
		Command		command = {0};
		redisReply *reply;
		Found	   *found;
		size_t		n;

		command_text(&command, "SCAN");
		command_text(&command, cursor);
		command_text(&command, "MATCH");
		command_bytes(&command, pattern, len);
		command_text(&command, "COUNT");
		command_text(&command, "1000");
		reply = node_call(store, node, &command, failure);
		if (reply == NULL)
			return false;
		if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
			reply->element[0]->type != REDIS_REPLY_STRING ||
			reply->element[1]->type != REDIS_REPLY_ARRAY)
			return strange(failure, reply);
		strlcpy(cursor, reply->element[0]->str, sizeof(cursor));
		found = found_keys(reply->element[1], &n);
		freeReplyObject(reply);
		if (!remove_keys(store, found, n, failure))
			return false;
		pfree(found);
	} while (strcmp(cursor, "0") != 0);
	return true;
}

static bool
redis_forget(void *arg, const char *beginning, size_t beginning_len,
			 RemoteFailure *failure)
{
	Store	   *store = arg;
	size_t		len;
	char	   *key = full_key(store, beginning, beginning_len, &len);
	char	   *pattern = palloc(2 * len + 1);
	size_t		n = 0;
	Peer	   *node;

	nodes_prune(store);
	store->deadline = PG_INT64_MAX;
	for (size_t i = 0; i < len; i++)
	{
		if (strchr("*?[]\\^-", key[i]) != NULL)
			pattern[n++] = '\\';
		pattern[n++] = key[i];
	}
	pattern[n++] = '*';
	for (int i = 0; (node = store_node(store, i, failure)) != NULL; i++)
	{
		if (!forget_in(store, node, pattern, n, failure))
			return false;
	}
	return failure->sqlstate == 0;
}

/* "redis_version:7.0.15" of INFO, or NULL. */
static char *
version_in(const char *info)
{
	const char *at = strstr(info, "valkey_version:");
	const char *name = "Valkey";

	if (at == NULL)
	{
		at = strstr(info, "redis_version:");
		name = "Redis";
	}
	if (at == NULL)
		return NULL;
	at = strchr(at, ':') + 1;
	return psprintf("%s %.*s", name, (int) Min(strcspn(at, "\r\n"), 30), at);
}

static bool
redis_test(void *arg, char **words, RemoteFailure *failure)
{
	static const char probe[] = "test:{test}";
	Store	   *store = arg;
	RateLaw		law = {.algorithm = RATE_FIXED_WINDOW,.rate = 1,.per = 1000};
	RemoteAsk	ask = {.key = probe,.key_len = strlen(probe),.law = &law,
	.intent = RATE_PEEK,.need = 1,.want = 1};
	RemoteAnswer answer;
	Command		command = {0};
	redisReply *reply;
	Peer	   *node;
	char	   *version;
	int			n = 0;
	int64		began;

	/* Anew, with the credentials of now. */
	store_forget(store);
	for (node = store->nodes; node != NULL; node = node->next)
		node_close(node);
	failure->sqlstate = 0;
	if (!redis_decide(store, &ask, &answer, failure))
		return false;
	began = host->clock();
	if (!redis_decide(store, &ask, &answer, failure))
		return false;
	began = host->clock() - began;
	store->deadline = PG_INT64_MAX;

	node = store_node(store, 0, failure);
	if (node == NULL)
		return false;
	command_text(&command, "INFO");
	command_text(&command, "server");
	reply = node_call(store, node, &command, failure);
	if (reply == NULL)
		return false;
	version = reply->type == REDIS_REPLY_STRING ? version_in(reply->str) : NULL;
	freeReplyObject(reply);
	if (store->options->mode == REDIS_CLUSTER)
	{
		while (store_node(store, n, failure) != NULL)
			n++;
		*words = psprintf("%s, a cluster of %d masters; a decision takes %d us",
						  version ? version : "a server", n, (int) began);
	}
	else
		*words = psprintf("%s at %s:%d; a decision takes %d us",
						  version ? version : "a server", node->host,
						  node->port, (int) began);
	return true;
}

static const RateRemote redis_remote = {
	.base.name = "redis",
	.base.help = "Redis or Valkey, alone, behind Sentinel or as a cluster",
	.base.options = redis_options,
	.base.options_size = sizeof(RedisOptions),
	.check = redis_check,
	.check_law = script_check_law,
	.open = redis_open,
	.decide = redis_decide,
	.forget = redis_forget,
	.test = redis_test
};

const RateRemote *
mlint_rate_remote(const RemoteHost *core)
{
	if (core->version != REMOTE_VERSION)
		return NULL;
	host = core;
	return &redis_remote;
}
