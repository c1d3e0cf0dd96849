/*
 * evalsha.c
 *		The limit that exact decisions in Redis are measured against: a bare
 *		loop.
 *
 * C threads, each with a connection of hiredis, call mlint's own script for a
 * token bucket by EVALSHA as fast as the answers come, with the arguments that
 * mlint gives it, on a thousand keys; and do nothing with the answers. Linked
 * with the module's script.c, so that it is the same script.
 *
 *		evalsha PORT CLIENTS SECONDS
 *
 * prints decisions a second.
 */
#include <hiredis/hiredis.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KEYS	1000

extern const char *const scripts[];

/* What script.c wants of the module, and this does not use. */
void		command_text(void);
void		command_int(void);

void
command_text(void)
{
	abort();
}

void
command_int(void)
{
	abort();
}

static int	port;
static int	seconds;

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}

static void *
client(void *arg)
{
	redisContext *redis = redisConnect("127.0.0.1", port);
	redisReply *loaded;
	char		sha[41];
	long	   *count = arg;
	double		end = now() + seconds;
	unsigned	seed = (unsigned) (size_t) arg;

	if (redis == NULL || redis->err)
		exit(1);
	loaded = redisCommand(redis, "SCRIPT LOAD %s", scripts[0]);
	if (loaded == NULL || loaded->type != REDIS_REPLY_STRING)
		exit(1);
	memcpy(sha, loaded->str, 41);
	freeReplyObject(loaded);
	while (now() < end)
	{
		char		key[32];
		/* 1,000,000 a second, as many at once; one is taken. */
		const char *argv[] = {"EVALSHA", sha, "1", key, "t", "1", "1", "0",
			"0", "1000000", "1000000", "0", "1", "0", "1", "0", "1", "0",
			"0", "0"
		};
		redisReply *reply;

		snprintf(key, sizeof(key), "bare:exact:{%d}", rand_r(&seed) % KEYS);
		reply = redisCommandArgv(redis, sizeof(argv) / sizeof(argv[0]), argv,
								 NULL);
		if (reply == NULL || reply->type != REDIS_REPLY_ARRAY)
			exit(1);
		freeReplyObject(reply);
		(*count)++;
	}
	redisFree(redis);
	return NULL;
}

int
main(int argc, char **argv)
{
	int			clients;
	pthread_t	threads[256];
	long		counts[256] = {0};
	long		total = 0;

	if (argc != 4 || (clients = atoi(argv[2])) < 1 || clients > 256)
		return 2;
	port = atoi(argv[1]);
	seconds = atoi(argv[3]);
	for (int i = 0; i < clients; i++)
		pthread_create(&threads[i], NULL, client, &counts[i]);
	for (int i = 0; i < clients; i++)
	{
		pthread_join(threads[i], NULL);
		total += counts[i];
	}
	printf("%ld\n", total / seconds);
	return 0;
}
