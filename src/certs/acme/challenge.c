/*
 * challenge.c
 *		The steps of a challenge, that is of one name's authorization.
 *
 *	new			the authorization is read; what the authority will look for is
 *				shown, or a solver is asked to					-> waiting
 *	waiting		once it is present, the authority is told		-> answered
 *	answered	the authorization is polled					-> valid, invalid
 *
 * An authorization that is valid already, from another order, needs none of
 * this. The last valid one takes the order on, and one that fails ends it: an
 * authority issues all names or nothing.
 *
 * What the gateway shows it shows at once, without a solver's job. Of all else
 * presence says whose turn it is; see the table. When an authorization is over,
 * however it ended, what was shown is taken away.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/acme/acme.h"
#include "certs/acme/order.h"
#include "certs/certs.h"
#include "certs/http_challenge.h"
#include "common/crypto.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

/* Nothing is shown for longer, if nobody takes it away. */
#define SHOWN_MAX_S		(24 * 3600)

typedef enum ChallengeStep
{
	STEP_READ,
	STEP_ANSWER,
	STEP_POLL
} ChallengeStep;

typedef struct Challenge
{
	int64		id;
	int64		order_id;
	char	   *authorization_url;
	char	   *identifier;
	char	   *url;
	char	   *token;
	char	   *status;
	char	   *error;
	bool		present;
	int			polls;
	int			attempts;
	TimestampTz poll_at;
	Datum		domains;
	char	   *type;			/* as the certificate wants it */
	bool		gateway;		/* shows it */
	TimestampTz shown_until;
} Challenge;

/* ---- the row ---- */

/* NULL: it is gone, or its order is over. */
static Challenge *
load(int64 id)
{
	static Oid	types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(id), Int32GetDatum(SHOWN_MAX_S)};
	MemoryContext caller = CurrentMemoryContext;
	Challenge  *c = NULL;
	OwnerScope	scope;
	bool		isnull;

	owner_begin(&scope);
	ACME_SQL("SELECT a.order_id, a.authorization_url, a.identifier, a.url,"
			 " a.token, a.status, a.error, a.presence = 'present', a.polls,"
			 " a.poll_attempts, a.poll_at, c.domains, c.challenge,"
			 " c.challenge = 'http-01' AND c.solver IS NULL,"
			 " least(o.expires_at, pg_catalog.clock_timestamp()"
			 " + pg_catalog.make_interval(secs => $2))"
			 " FROM mlint.acme_challenge a"
			 " JOIN mlint.acme_order o ON o.id = a.order_id"
			 " JOIN mlint.certificate c ON c.id = o.certificate_id"
			 " WHERE a.id = $1 AND o.state = 'authorizing'",
			 SPI_OK_SELECT, types, values, NULL);
	if (SPI_processed > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		c = palloc0(sizeof(Challenge));
		c->id = id;
		c->order_id = DatumGetInt64(owner_column(1, &isnull));
		c->authorization_url = owner_text(2);
		c->identifier = owner_text(3);
		c->url = owner_text(4);
		c->token = owner_text(5);
		c->status = owner_text(6);
		c->error = owner_text(7);
		c->present = DatumGetBool(owner_column(8, &isnull));
		c->polls = DatumGetInt32(owner_column(9, &isnull));
		c->attempts = DatumGetInt32(owner_column(10, &isnull));
		c->poll_at = DatumGetTimestampTz(owner_column(11, &isnull));
		c->domains = PointerGetDatum(PG_DETOAST_DATUM_COPY(owner_column(12, &isnull)));
		c->type = owner_text(13);
		c->gateway = DatumGetBool(owner_column(14, &isnull));
		c->shown_until = DatumGetTimestampTz(owner_column(15, &isnull));
		MemoryContextSwitchTo(old);
	}
	owner_end(&scope);
	return c;
}

static void
enter(int64 id, const char *status, TimestampTz poll_at, const char *error)
{
	static Oid	types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(id), CStringGetTextDatum(status),
		TimestampTzGetDatum(poll_at),
	error ? CStringGetTextDatum(error) : (Datum) 0};

	ACME_DO("UPDATE mlint.acme_challenge SET status = $2, poll_at = $3,"
			" error = $4, polls = 0, poll_attempts = 0 WHERE id = $1",
			SPI_OK_UPDATE, types, values, error ? NULL : "   n");
}

/* ---- showing, and taking away ---- */

/* Those of an order that are shown, or of all orders: order 0. */
#define SHOWN_BY_GATEWAY \
	" FROM mlint.acme_challenge a" \
	" JOIN mlint.acme_order o ON o.id = a.order_id" \
	" JOIN mlint.certificate c ON c.id = o.certificate_id" \
	" WHERE a.presence = 'present' AND a.type = 'http-01'" \
	" AND c.solver IS NULL AND c.challenge = 'http-01'"

/* What the gateway answers is in memory that a crash has cleared. */
static void
show_again(void)
{
	static Oid	types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(SHOWN_MAX_S)};
	OwnerScope	scope;
	bool		isnull;

	owner_begin(&scope);
	ACME_SQL("SELECT a.token, a.value, least(o.expires_at,"
			 " pg_catalog.clock_timestamp()"
			 " + pg_catalog.make_interval(secs => $1))"
			 SHOWN_BY_GATEWAY " AND o.state = 'authorizing'",
			 SPI_OK_SELECT, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		http_challenge_show(SPI_getvalue(row, desc, 1),
							SPI_getvalue(row, desc, 2),
							DatumGetTimestampTz(SPI_getbinval(row, desc, 3,
															  &isnull)));
	}
	owner_end(&scope);
}

/*
 * Orders may have ended without us: their certificates were dropped. What the
 * gateway shows for them is over at once; what a solver has perhaps made, its
 * job removes.
 */
static void
forget_orphans(void)
{
	static SPIPlanPtr plan = NULL;
	OwnerScope	scope;

	owner_begin(&scope);
	owner_run(&plan,
			  "UPDATE mlint.acme_challenge a SET poll_at = 'infinity',"
			  " status = 'given up', presence = CASE"
			  " WHEN a.solver IS NOT NULL THEN a.presence"
			  " WHEN a.presence = 'present' THEN 'removed' ELSE 'none' END"
			  " WHERE (a.status IN ('new', 'answered', 'given up')"
			  " OR (a.status = 'waiting' AND a.presence = 'present')"
			  " OR a.presence = 'wanted')"
			  " AND a.poll_at < 'infinity' AND NOT EXISTS"
			  " (SELECT FROM mlint.acme_order o"
			  " WHERE o.id = a.order_id AND o.state = 'authorizing')"
			  " RETURNING a.token",
			  SPI_OK_UPDATE_RETURNING, 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *token = SPI_getvalue(SPI_tuptable->vals[i],
										 SPI_tuptable->tupdesc, 1);

		if (token)
			http_challenge_hide(token);
	}
	owner_end(&scope);
}

void
challenges_begin(void)
{
	forget_orphans();
	show_again();
}

/*
 * Take away what is shown for an order, or for one challenge of it (0: all).
 * What a solver has perhaps made is for it to remove.
 */
static void
take_away(int64 order, int64 challenge)
{
	static Oid	types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(order), Int64GetDatum(challenge)};
	OwnerScope	scope;
	bool		solvers;

	owner_begin(&scope);
	ACME_SQL("SELECT a.token" SHOWN_BY_GATEWAY
			 " AND a.order_id = $1 AND $2 IN (0, a.id)",
			 SPI_OK_SELECT, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
		http_challenge_hide(SPI_getvalue(SPI_tuptable->vals[i],
										 SPI_tuptable->tupdesc, 1));
	ACME_SQL("UPDATE mlint.acme_challenge a SET presence = CASE"
			 " WHEN a.presence = 'wanted' THEN 'none'"
			 " WHEN c.solver IS NULL AND c.challenge = 'http-01' THEN 'removed'"
			 " ELSE 'removing' END, attempts = 0,"
			 " next_at = pg_catalog.clock_timestamp()"
			 " FROM mlint.acme_order o, mlint.certificate c"
			 " WHERE a.order_id = $1 AND $2 IN (0, a.id) AND o.id = a.order_id"
			 " AND c.id = o.certificate_id"
			 " AND a.presence IN ('wanted', 'presenting', 'checking', 'present')",
			 SPI_OK_UPDATE, types, values, NULL);
	ACME_SQL("SELECT FROM mlint.acme_challenge"
			 " WHERE order_id = $1 AND $2 IN (0, id) AND presence = 'removing'"
			 " LIMIT 1", SPI_OK_SELECT, types, values, NULL);
	solvers = SPI_processed > 0;
	owner_end(&scope);
	if (solvers)
		(void) job_request(CERTIFICATE_CHALLENGE_JOB);
}

void
challenges_end(int64 order)
{
	static Oid	types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(order)};

	take_away(order, 0);
	ACME_DO("UPDATE mlint.acme_challenge SET poll_at = 'infinity',"
			" status = CASE WHEN status IN ('valid', 'invalid') THEN status"
			" ELSE 'given up' END"
			" WHERE order_id = $1 AND poll_at < 'infinity'",
			SPI_OK_UPDATE, types, values, NULL);
}

/* Have it shown: by the gateway at once, else by a solver. */
static void
show(const Challenge *c, const ChallengeAnswer *offered,
	 const char *identifier, const char *value)
{
	static Oid	types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	BOOLOID};
	Datum		values[] = {Int64GetDatum(c->id),
		CStringGetTextDatum(identifier), CStringGetTextDatum(offered->type),
		CStringGetTextDatum(offered->url), CStringGetTextDatum(offered->token),
	CStringGetTextDatum(value), BoolGetDatum(c->gateway)};

	if (c->gateway)
		http_challenge_show(offered->token, value, c->shown_until);
	ACME_DO("UPDATE mlint.acme_challenge SET identifier = $2, type = $3,"
			" url = $4, token = $5, value = $6, status = 'waiting',"
			" presence = CASE WHEN $7 THEN 'present' ELSE 'wanted' END,"
			" wanted_at = pg_catalog.clock_timestamp(),"
			" next_at = pg_catalog.clock_timestamp(),"
			" poll_at = pg_catalog.clock_timestamp(), poll_attempts = 0,"
			" error = NULL WHERE id = $1", SPI_OK_UPDATE, types, values, NULL);
	if (c->gateway)
		return;
	(void) job_request(CERTIFICATE_CHALLENGE_JOB);
	worker_wake_at_commit(WORKER_JOB);
}

/* ---- what it wants ---- */

static void
want(Errand *errand, ChallengeStep step, AnswerKind kind, const char *url,
	 const char *payload)
{
	errand->step = step;
	memset(&errand->want, 0, sizeof(Want));
	errand->want.kind = kind;
	errand->want.url = MemoryContextStrdup(errand->context, url);
	errand->want.payload = payload;
}

static void
end_order(Errand *errand, const Challenge *c, const Problem *problem,
		  const char *text)
{
	enter(c->id, "invalid", DT_NOEND, text);
	order_end(c->order_id, problem, text, errand->retry_after);
	errand->reached = "failed";
}

static bool
challenge_next(Errand *errand)
{
	Challenge  *c = load(errand->id);

	if (c == NULL || c->poll_at > GetCurrentTimestamp())
		return false;
	errand->reached = "reading";
	if (strcmp(c->status, "new") == 0)
		want(errand, STEP_READ, ANSWER_AUTHORIZATION, c->authorization_url, "");
	else if (strcmp(c->status, "waiting") == 0 && c->present)
	{
		errand->reached = "waiting";
		want(errand, STEP_ANSWER, ANSWER_CHALLENGE, c->url, "{}");
	}
	else if (strcmp(c->status, "answered") == 0)
	{
		errand->reached = "answered";
		want(errand, STEP_POLL, ANSWER_AUTHORIZATION, c->authorization_url, "");
	}
	else
	{
		/* Its solver has given up. */
		if (strcmp(c->status, "given up") == 0)
			end_order(errand, c, NULL,
					  psprintf("%s: %s", c->identifier, c->error ? c->error :
							   "the challenge could not be shown"));
		return false;
	}
	return true;
}

/* ---- what comes of it ---- */

/* The name is proven; the last one takes the order on. */
static void
proven(Errand *errand, const Challenge *c)
{
	take_away(c->order_id, c->id);
	enter(c->id, "valid", DT_NOEND, NULL);
	errand->reached = "proven";
	if (order_proven(c->order_id))
		errand_become(errand, &order_errand, c->order_id);
}

/* The authorization will not be valid. Which challenge says why? */
static void
not_proven(Errand *errand, const Challenge *c, const AuthorizationAnswer *a)
{
	const Problem *problem = NULL;

	for (int i = 0; i < a->n; i++)
	{
		if (a->challenges[i].has_problem &&
			(problem == NULL ||
			 (c->url && strcmp(a->challenges[i].url, c->url) == 0)))
			problem = &a->challenges[i].problem;
	}
	end_order(errand, c, problem, problem ?
			  problem_message(problem, a->identifier.value) :
			  psprintf("%s: the server has given the authorization up, and gives no reason",
					   a->identifier.value));
}

static const ChallengeAnswer *
find_offered(const AuthorizationAnswer *a, const char *type)
{
	for (int i = 0; i < a->n; i++)
	{
		if (strcmp(a->challenges[i].type, type) == 0)
			return &a->challenges[i];
	}
	return NULL;
}

static void
not_offered(Errand *errand, const Challenge *c, const AuthorizationAnswer *a)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfo(&text, "%s: the server offers no %s challenge, but ",
					 a->identifier.value, c->type);
	for (int i = 0; i < a->n; i++)
		appendStringInfo(&text, "%s%.60s", i > 0 ? ", " : "",
						 a->challenges[i].type);
	if (a->n == 0)
		appendStringInfoString(&text, "none at all");
	peer_text_clean(text.data);
	end_order(errand, c, NULL, text.data);
}

/* What the authority will look for: RFC 8555, 8.1, 8.3 and 8.4. */
static char *
shown_value(AcmeAccount *account, const char *type, const char *token)
{
	char	   *value = psprintf("%s.%s", token,
								 jws_thumbprint(account_key(account)));
	uint8		hash[CRYPTO_SHA256_BYTES];

	if (strcmp(type, "dns-01") != 0)
		return value;
	crypto_sha256(value, strlen(value), hash);
	return jws_base64url(hash, sizeof(hash));
}

static const char *
take_authorization(Errand *errand, const Challenge *c,
				   const AuthorizationAnswer *a)
{
	const ChallengeAnswer *offered = find_offered(a, c->type);

	if (!order_has_name(c->domains, &a->identifier, a->wildcard))
		return "the authorization is of a name that was not asked for";
	if (a->status == ACME_VALID)
		proven(errand, c);
	else if (a->status != ACME_PENDING)
		not_proven(errand, c, a);
	else if (offered == NULL)
		not_offered(errand, c, a);
	else
	{
		show(c, offered, a->identifier.value,
			 shown_value(errand->account, offered->type, offered->token));
		errand->reached = "waiting";
	}
	return NULL;
}

static void
poll_again(Errand *errand, const Challenge *c)
{
	static Oid	types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[2];

	if (c->polls >= ACME_MAX_POLLS)
	{
		end_order(errand, c, NULL,
				  psprintf("%s: the server has not decided in time: the authorization never left pending",
						   c->identifier));
		return;
	}
	values[0] = Int64GetDatum(c->id);
	values[1] = TimestampTzGetDatum(poll_at(c->polls + 1,
											errand->retry_after));
	ACME_DO("UPDATE mlint.acme_challenge SET polls = polls + 1, poll_at = $2,"
			" poll_attempts = 0 WHERE id = $1", SPI_OK_UPDATE, types, values,
			NULL);
}

static const char *
challenge_answered(Errand *errand, const Answer *answer)
{
	Challenge  *c = load(errand->id);

	if (c == NULL)
		return NULL;
	switch ((ChallengeStep) errand->step)
	{
		case STEP_READ:
			return take_authorization(errand, c, &answer->authorization);
		case STEP_ANSWER:
			enter(c->id, "answered",
				  answer->challenge.status == ACME_PENDING ||
				  answer->challenge.status == ACME_PROCESSING ?
				  poll_at(0, errand->retry_after) : GetCurrentTimestamp(),
				  NULL);
			errand->reached = "answered";
			break;
		case STEP_POLL:
			if (answer->authorization.status == ACME_VALID)
				proven(errand, c);
			else if (answer->authorization.status == ACME_PENDING)
				poll_again(errand, c);
			else
				not_proven(errand, c, &answer->authorization);
			break;
	}
	return NULL;
}

static void
challenge_refused(Errand *errand, const Problem *problem, const char *text)
{
	Challenge  *c = load(errand->id);

	if (c == NULL)
		return;
	if (errand->step == STEP_ANSWER)
		/* Perhaps it was told before; the authorization says what it is. */
		enter(c->id, "answered", GetCurrentTimestamp(), text);
	else
		end_order(errand, c, problem, c->identifier ?
				  psprintf("%s: %s", c->identifier, text) : text);
}

static void
challenge_failed(Errand *errand, const char *text, int max, int retry_after)
{
	static Oid	types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID};
	Challenge  *c = load(errand->id);
	Datum		values[3];

	if (c == NULL)
		return;
	if (c->attempts + 1 >= max)
	{
		end_order(errand, c, NULL, c->identifier ?
				  psprintf("%s: %s", c->identifier, text) : text);
		return;
	}
	values[0] = Int64GetDatum(c->id);
	values[1] = CStringGetTextDatum(text);
	values[2] = TimestampTzGetDatum(retry_at(c->attempts + 1, retry_after));
	ACME_DO("UPDATE mlint.acme_challenge SET poll_attempts = poll_attempts + 1,"
			" error = $2, poll_at = $3 WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
}

static void
challenge_put_off(Errand *errand, TimestampTz until)
{
	static Oid	types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(errand->id),
	TimestampTzGetDatum(until)};

	ACME_DO("UPDATE mlint.acme_challenge SET poll_at = $2 WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
}

const ErrandKind challenge_errand = {
	"challenge", challenge_next, challenge_answered, challenge_refused,
	challenge_failed, challenge_put_off
};
