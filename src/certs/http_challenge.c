/*
 * http_challenge.c
 *		What the gateway answers below /.well-known/acme-challenge/.
 *
 * A hash table of a fixed size in the main shared memory, so that the gateway,
 * which has no database and must not raise, can look a token up with nothing
 * but a shared lock. A token is a random name that an authority has chosen, and
 * is the whole key: whoever knows it may have its value, which is what the
 * authority is told in public anyway.
 *
 * What is not hidden again (its database was dropped, its job died) goes when
 * its time is over: it is answered no more, and its place is taken when there
 * is no other.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "certs/http_challenge.h"
#include "common/shmem.h"
#include "worker/gateway.h"

/* Orders of a hundred names each for forty certificates at a time. */
#define MAX_CHALLENGES		4096
#define NBUCKETS			4096	/* a power of two */
#define NONE				(-1)

typedef struct Challenge
{
	int			next;			/* in the bucket, or among the free ones */
	TimestampTz until;
	char		token[HTTP_CHALLENGE_TOKEN_MAX + 1];
	char		value[HTTP_CHALLENGE_VALUE_MAX + 1];
} Challenge;

typedef struct ChallengeTable
{
	LWLock	   *lock;
	int			free;
	int			buckets[NBUCKETS];
	Challenge	challenges[MAX_CHALLENGES];
} ChallengeTable;

static ChallengeTable *table = NULL;

static Size
table_size(void)
{
	return sizeof(ChallengeTable);
}

static int
lock_count(void)
{
	return 1;
}

static void
init_table(LWLockPadded *locks)
{
	table->lock = &locks[0].lock;
	for (int i = 0; i < NBUCKETS; i++)
		table->buckets[i] = NONE;
	for (int i = 0; i < MAX_CHALLENGES; i++)
		table->challenges[i].next = i + 1 < MAX_CHALLENGES ? i + 1 : NONE;
	table->free = 0;
}

static const SharedPart part = {
	.name = "mlint http-01 challenges",
	.size = table_size,
	.locks = lock_count,
	.memory = (void **) &table,
	.init = init_table,
};

/* base64url without padding, by RFC 8555, 8.3. */
static bool
token_is_one(const char *token)
{
	size_t		len = strspn(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
							 "abcdefghijklmnopqrstuvwxyz0123456789-_");

	return len > 0 && len <= HTTP_CHALLENGE_TOKEN_MAX && token[len] == '\0';
}

static int *
token_bucket(const char *token)
{
	return &table->buckets[hash_bytes((const unsigned char *) token,
									  strlen(token)) & (NBUCKETS - 1)];
}

/* Where the chain points to the token's place, or ends. */
static int *
token_link(const char *token)
{
	int		   *link = token_bucket(token);

	while (*link != NONE && strcmp(table->challenges[*link].token, token) != 0)
		link = &table->challenges[*link].next;
	return link;
}

/* Take out what the link points to. */
static void
unlink_challenge(int *link)
{
	int			index = *link;
	Challenge  *challenge = &table->challenges[index];

	*link = challenge->next;
	challenge->next = table->free;
	table->free = index;
}

/* Make room: take out what is over. */
static void
remove_expired(TimestampTz now)
{
	for (int i = 0; i < NBUCKETS; i++)
	{
		int		   *link = &table->buckets[i];

		while (*link != NONE)
		{
			Challenge  *challenge = &table->challenges[*link];

			if (challenge->until <= now)
				unlink_challenge(link);
			else
				link = &challenge->next;
		}
	}
}

/* Show it, if there is room. */
static bool
show(const char *token, const char *value, TimestampTz until)
{
	int		   *link = token_link(token);
	Challenge  *challenge;

	if (*link == NONE)
	{
		int			index;

		if (table->free == NONE)
		{
			remove_expired(GetCurrentTimestamp());
			link = token_link(token);
		}
		index = table->free;
		if (index == NONE)
			return false;
		table->free = table->challenges[index].next;
		table->challenges[index].next = NONE;
		*link = index;
	}
	challenge = &table->challenges[*link];
	challenge->until = until;
	strlcpy(challenge->token, token, sizeof(challenge->token));
	strlcpy(challenge->value, value, sizeof(challenge->value));
	return true;
}

void
http_challenge_show(const char *token, const char *value, TimestampTz until)
{
	bool		shown;

	if (!token_is_one(token))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the token of an http-01 challenge is not base64url of at most %d characters",
						HTTP_CHALLENGE_TOKEN_MAX)));
	if (strlen(value) > HTTP_CHALLENGE_VALUE_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the value of an http-01 challenge is longer than %d bytes",
						HTTP_CHALLENGE_VALUE_MAX)));
	LWLockAcquire(table->lock, LW_EXCLUSIVE);
	shown = show(token, value, until);
	LWLockRelease(table->lock);
	if (!shown)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the gateway already shows %d http-01 challenges",
						MAX_CHALLENGES),
				 errhint("It is tried again; there is room when authorities have looked at others.")));
}

void
http_challenge_hide(const char *token)
{
	int		   *link;

	LWLockAcquire(table->lock, LW_EXCLUSIVE);
	link = token_link(token);
	if (*link != NONE)
		unlink_challenge(link);
	LWLockRelease(table->lock);
}

/* The gateway's route: the value, as RFC 8555, 8.3 wants it. */
static void
answer_challenge(const char *token, GatewayAnswer *answer)
{
	int			index;

	if (!token_is_one(token))
		return;
	LWLockAcquire(table->lock, LW_SHARED);
	index = *token_link(token);
	if (index != NONE &&
		table->challenges[index].until > GetCurrentTimestamp())
	{
		answer->status = 200;
		answer->content_type = "application/octet-stream";
		answer->len = strlen(table->challenges[index].value);
		memcpy(answer->body, table->challenges[index].value, answer->len);
	}
	LWLockRelease(table->lock);
}

void
http_challenge_init(void)
{
	StaticAssertStmt(HTTP_CHALLENGE_VALUE_MAX <= GATEWAY_BODY_MAX,
					 "a value fits into an answer");
	shared_part(&part);
	gateway_route("/.well-known/acme-challenge/", answer_challenge);
}
