/*
 * run.c
 *		The job certificates: takes accounts, orders, challenges, revocations
 *		and renewal windows as far as they go.
 *
 * An errand is a row's turn: one request after the other, until the row has to
 * wait (then the row says until when, and the errand is over). Each is in one
 * of these phases:
 *
 *	waits for a look at its row, or for the account's directory
 *	fetches the directory, for itself and those who wait
 *	fetches a nonce
 *	has a request that can leave, or is under way
 *
 * The loop gathers what has come back, and in one transaction lets each errand
 * take note of its answer, and then say what it wants next; each in a
 * subtransaction, so that what fails is undone and recorded alone. It looks at
 * the tables in the same transaction, when somebody has called or a row is due.
 * Then it commits, and what is wanted leaves. So whatever an answer has changed
 * is committed before the row's next request leaves, and many rows share a
 * commit.
 *
 * A nonce that the server rejects is no failure: the request leaves again with
 * the one that came with the rejection. A server that asks to be left alone
 * gets nothing of the account before then, and no row counts that as a failure.
 *
 * A run ends when nothing is under way, and nothing will be due for a moment.
 * Only one is at work at a time; another waits for its lock.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "certs/acme/acme.h"
#include "certs/acme/order.h"
#include "certs/certs.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/netpolicy.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "common/pg_prng.h"
#include "common/trial.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_certificate_run);

#define TIMEOUT_MS			30000
#define CONNECT_TIMEOUT_MS	10000
/* In a row; a server that rejects more has lost its mind. */
#define NONCE_REJECTIONS	20
/* A run stays so long for what is due soon, or for a solver of an open order. */
#define LINGER_MS			2000
/* A row that somebody has locked for longer must not keep others waiting. */
#define LOCK_TIMEOUT		"2s"
/* Between two looks that find nothing. */
#define LOOK_MIN_MS			200
/* And looks at least so often. */
#define LOOK_MS				30000
/* What the gateway has no room for comes again as after so many failures. */
#define FULL_DOUBLINGS		3
/* What waits for its account looks again after so long. */
#define ACCOUNT_WAIT_MS		500
#define RETRY_MAX_S			300
#define POLL_FIRST_MS		50
#define POLL_MAX_MS			10000
/* An account is not held for longer because of a new order. */
#define NEW_ORDER_HOLD_S	900
/* A key of ours in WORKER_LOCK_CLASS, beside the dispatchers' lanes. */
#define LOCK_RUN			2000
#define TEXT_MAX			4000

typedef enum Phase
{
	PHASE_START,				/* its row is to be looked at */
	PHASE_WAITING,				/* somebody else fetches the directory */
	PHASE_DIRECTORY,
	PHASE_NONCE,
	PHASE_REQUEST,
	PHASE_OVER
} Phase;

typedef struct Run
{
	MemoryContext context;
	HttpClient *client;
	WaitEventSet *wait_set;
	MemoryContextCallback callback;
	dlist_head	errands;
	int			n;
	bool		arrived;		/* some answer has */
	bool		more;			/* the last look left something behind */
	TimestampTz next_due;		/* of any row without an errand */
	bool		open_orders;
} Run;

static Run *run;

/* ---- when next ---- */

TimestampTz
retry_at(int attempts, int retry_after)
{
	double		bound = Min(pow(2, attempts), RETRY_MAX_S) * USECS_PER_SEC;
	int64		delay = (int64) (bound / 2) +
	(int64) pg_prng_uint64_range(&pg_global_prng_state, 0,
								 (uint64) (bound / 2));

	return GetCurrentTimestamp() +
		Max(delay, Min(retry_after, RETRY_AFTER_MAX_S) * USECS_PER_SEC);
}

TimestampTz
poll_at(int polls, int retry_after)
{
	int64		ms = Min(POLL_FIRST_MS << Min(polls, 20), POLL_MAX_MS);

	return GetCurrentTimestamp() +
		Max(ms * 1000, Min(retry_after, RETRY_AFTER_MAX_S) * USECS_PER_SEC);
}

/* ---- errands ---- */

static void
errand_create(const ErrandKind *kind, int64 id, int32 account)
{
	MemoryContext context = AllocSetContextCreate(run->context, "mlint errand",
												  ALLOCSET_DEFAULT_SIZES);
	Errand	   *errand = MemoryContextAllocZero(context, sizeof(Errand));

	errand->kind = kind;
	errand->id = id;
	errand->context = context;
	errand->account = account_find(account);
	errand->retry_after = -1;
	dlist_push_tail(&run->errands, &errand->node);
	run->n++;
}

void
errand_become(Errand *errand, const ErrandKind *kind, int64 id)
{
	errand->kind = kind;
	errand->id = id;
	errand->step = 0;
	errand->state = NULL;
	errand->nonce_rejections = 0;
}

/* Its request is over, whatever came of it. */
static void
request_end(Errand *errand)
{
	http_request_free(errand->request);
	errand->request = NULL;
	errand->done = false;
	errand->account->in_flight--;
}

static void
errand_free(Errand *errand)
{
	dlist_delete(&errand->node);
	run->n--;
	MemoryContextDelete(errand->context);
}

/* ---- what an errand wants ---- */

/*
 * What the row wants cannot be had, and the server did not say so. True: the
 * row may want something else. What refuses not its request, but what that
 * takes, refuses all that it may want; it waits then, or is over.
 */
static bool
refuse(Errand *errand, const char *text)
{
	if (errand->phase != PHASE_REQUEST)
		errand->step = 0;
	errand->kind->refused(errand, NULL, text);
	return errand->phase == PHASE_REQUEST;
}

/* What is not the account's own can be sent only when that is in order. */
static bool
account_serves(Errand *errand)
{
	AcmeAccount *account = errand->account;
	TimestampTz now = GetCurrentTimestamp();

	if (errand->kind == &account_errand)
		return true;
	if (strcmp(account->status, "valid") == 0 && account->new_key_version == 0)
		return true;
	if (strcmp(account->status, "pending") == 0 ||
		strcmp(account->status, "valid") == 0)
	{
		TimestampTz next = account->next_at == DT_NOEND ? now :
		account->next_at;

		errand->kind->put_off(errand, Max(next, now) +
							  ACCOUNT_WAIT_MS * INT64CONST(1000));
	}
	else
		(void) refuse(errand,
					  psprintf(strcmp(account->status, "failed") == 0 ?
							   "ACME account \"%s\" is not registered: mlint.acme_accounts says why" :
							   "ACME account \"%s\" is deactivated",
							   account->name));
	return false;
}

/*
 * See what the row wants. In a transaction and a trial. Keys are opened here,
 * where secrets can be read.
 */
static void
prepare(Errand *errand, const ErrorData *why)
{
	AcmeAccount *account = account_load(errand->account->id);
	MemoryContext old;
	bool		some;

	errand->phase = PHASE_OVER;
	if (account == NULL)
		return;
	if (account->not_before > GetCurrentTimestamp())
	{
		errand->kind->put_off(errand, account->not_before);
		return;
	}
	if (!account_serves(errand))
		return;
	if (account_directory(account) == NULL)
	{
		errand->phase = account->fetching ? PHASE_WAITING : PHASE_DIRECTORY;
		account->fetching = true;
		return;
	}
	old = CurrentMemoryContext;
	some = errand->kind->next(errand);
	MemoryContextSwitchTo(old);
	if (!some)
		return;
	if (errand->want.signature == SIGNED_BY_NEW_KEY)
		(void) account_new_key(account);
	else if (errand->want.signature != UNSIGNED)
		(void) account_key(account);
	errand->phase = PHASE_REQUEST;
}

/* libcurl: take a note. */
static void
request_done(HttpRequest *request, const HttpResponse *response, void *arg)
{
	Errand	   *errand = arg;

	errand->response = unconstify(HttpResponse *, response);
	errand->done = true;
	run->arrived = true;
}

static struct curl_slist *
headers_for(const Errand *errand)
{
	struct curl_slist *headers = http_header(NULL, "User-Agent", "mlint/1.0");

	headers = http_header(headers, "Accept-Language", "en");
	if (errand->phase == PHASE_REQUEST && errand->want.signature != UNSIGNED)
		headers = http_header(headers, "Content-Type",
							  "application/jose+json");
	if (errand->phase == PHASE_REQUEST && errand->want.kind == ANSWER_CHAIN)
		headers = http_header(headers, "Accept",
							  "application/pem-certificate-chain");
	return headers;
}

static void
submit(Errand *errand, const char *url, const char *method)
{
	HttpTarget	target = {
		.url = url,
		.method = method,
		.timeout_ms = TIMEOUT_MS,
		.connect_timeout_ms = CONNECT_TIMEOUT_MS,
		.ca = errand->account->ca,
		.verify = true,
		.keep_body = ACME_MAX_ANSWER,
		.keep_headers = true
	};
	size_t		len = errand->body ? strlen(errand->body) : 0;

	errand->request = http_request_create(run->client, &target);
	errand->account->in_flight++;
	errand->response = NULL;
	errand->done = false;
	http_request_submit(errand->request, headers_for(errand), errand->body,
						len, request_done, errand);
}

/* Sign the request that is wanted, or fetch what a signature takes. */
static void
send_request(Errand *errand)
{
	AcmeAccount *account = errand->account;
	const Want *want = &errand->want;
	MemoryContext old = MemoryContextSwitchTo(errand->context);
	char	   *nonce = NULL;

	errand->body = NULL;
	errand->phase = PHASE_REQUEST;
	if (want->signature == UNSIGNED)
		submit(errand, want->url, "GET");
	else if ((nonce = account_take_nonce(account)) == NULL)
	{
		errand->phase = PHASE_NONCE;
		submit(errand, account_directory(account)->new_nonce, "HEAD");
	}
	else
	{
		const JwsKey *key = want->signature == SIGNED_BY_NEW_KEY ?
		account_new_key(account) : account_key(account);

		errand->body = jws_sign(key, want->signature == SIGNED_BY_ACCOUNT ?
								account->url : NULL, nonce, want->url,
								want->payload);
		pfree(nonce);
		submit(errand, want->url, "POST");
	}
	MemoryContextSwitchTo(old);
}

/* Does somebody want to change the account itself? */
static bool
is_changing(const AcmeAccount *account)
{
	dlist_iter	iter;

	dlist_foreach(iter, &run->errands)
	{
		Errand	   *errand = dlist_container(Errand, node, iter.cur);

		if (errand->kind == &account_errand && errand->account == account &&
			(errand->phase == PHASE_REQUEST || errand->phase == PHASE_NONCE))
			return true;
	}
	return false;
}

/*
 * What changes the account itself is sent when nothing else of it is under way,
 * and nothing else until it is back.
 */
static bool
may_send(const Errand *errand)
{
	if (errand->request || errand->phase == PHASE_OVER ||
		errand->phase == PHASE_START || errand->phase == PHASE_WAITING)
		return false;
	if (errand->phase == PHASE_DIRECTORY)
		return true;
	if (errand->kind == &account_errand)
		return errand->account->in_flight == 0;
	return !is_changing(errand->account);
}

/*
 * Is what the request takes still in memory? Another's turn may have shown
 * that the directory, or the keys, must be read anew.
 */
static bool
has_means(const Errand *errand)
{
	const AcmeAccount *account = errand->account;

	if (account_directory(account) == NULL)
		return false;
	switch (errand->want.signature)
	{
		case UNSIGNED:
			return true;
		case SIGNED_BY_NEW_KEY:
			return account->new_key != NULL;
		case SIGNED_BY_ACCOUNT:
			return account->url != NULL && account->key != NULL;
		case SIGNED_BY_KEY:
			return account->key != NULL;
	}
	return false;
}

/* What cannot be sent any more as it was wanted is looked at again. */
static void
send_all(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &run->errands)
	{
		Errand	   *errand = dlist_container(Errand, node, iter.cur);

		if (!may_send(errand))
			continue;
		if (errand->phase == PHASE_DIRECTORY)
		{
			errand->body = NULL;
			submit(errand, errand->account->directory_url, "GET");
		}
		else if (has_means(errand))
			send_request(errand);
		else
			errand->phase = PHASE_START;
	}
}

/* ---- what has come back ---- */

static void
answer_gone(void *arg)
{
	answer_free((Answer *) arg);
}

/* In the current context, whose end frees it. */
static Answer *
read_response(const Errand *errand, AnswerKind kind)
{
	const HttpResponse *r = errand->response;
	Received	received = {r->status, r->headers, r->headers_len, r->body,
	r->body_len, r->truncated, r->retry_after >= 0};
	Answer	   *answer = palloc0(sizeof(Answer));
	MemoryContextCallback *callback = palloc(sizeof(MemoryContextCallback));

	callback->func = answer_gone;
	callback->arg = answer;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	answer_read(kind, &errand->account->origins, &received, answer);
	return answer;
}

static AnswerKind
expected(const Errand *errand)
{
	return errand->phase == PHASE_DIRECTORY ? ANSWER_DIRECTORY :
		errand->phase == PHASE_NONCE ? ANSWER_NONCE : errand->want.kind;
}

static bool
is_bad_nonce(const Answer *answer)
{
	return answer->outcome == ANSWER_PROBLEM &&
		answer->problem.kind == PROBLEM_BAD_NONCE;
}

/*
 * A nonce that has come, or was rejected: the request leaves (again), and the
 * database need not hear of it.
 */
static bool
settle_nonce(Errand *errand)
{
	MemoryContext work;
	MemoryContext old;
	Answer	   *answer;
	bool		settled;

	if (errand->response->failure != HTTP_OK ||
		errand->phase == PHASE_DIRECTORY ||
		(errand->phase == PHASE_REQUEST && errand->response->status < 400))
		return false;
	work = AllocSetContextCreate(run->context, "mlint ACME answer",
								 ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(work);
	answer = read_response(errand, expected(errand));
	if (errand->phase == PHASE_NONCE)
		settled = answer->outcome == ANSWER_GOOD && answer->nonce[0];
	else
		settled = is_bad_nonce(answer) &&
			++errand->nonce_rejections < NONCE_REJECTIONS;
	if (settled)
		account_put_nonce(errand->account, answer->nonce);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
	if (settled)
	{
		request_end(errand);
		errand->phase = PHASE_REQUEST;
	}
	return settled;
}

/* Text of a peer's, as a row can hold it. */
static char *
cleaned(const char *text)
{
	char	   *copy = pstrdup(text);

	peer_text_clean(copy);
	return copy;
}

char *
problem_message(const Problem *problem, const char *about)
{
	char text[	TEXT_MAX];

	problem_text(problem, about, text, sizeof(text));
	return cleaned(text);
}

static const char *
asked_for(const Errand *errand)
{
	static const char *const names[] = {"the directory", "a nonce",
		"the account", "the order", "the authorization", "the challenge",
		"the certificate", "the renewal window", "the list of orders",
	"the request"};

	return names[expected(errand)];
}

/*
 * The following say whether the row may want something else now; if not, it
 * waits, or is over.
 */

/*
 * The server wants to be left alone. What it says to a new order may be about
 * its names alone (authorities count certificates for a name, too), so that
 * the order waits for as long as it must, and others are not kept from trying
 * for longer than a while.
 */
static void
take_limit(Errand *errand, const char *text)
{
	AcmeAccount *account = errand->account;

	if (errand->phase == PHASE_REQUEST && order_is_new(errand))
	{
		account_hold(account, Min(errand->retry_after, NEW_ORDER_HOLD_S));
		order_limited(errand, text, errand->retry_after);
		return;
	}
	account_hold(account, errand->retry_after);
	errand->kind->put_off(errand, account->not_before);
}

/* The server says no. */
static bool
take_problem(Errand *errand, const Answer *answer)
{
	const Problem *problem = &answer->problem;
	char	   *clean = problem_message(problem, NULL);

	if (problem->kind == PROBLEM_RATE_LIMITED)
	{
		take_limit(errand, clean);
		return false;
	}
	if (problem->kind == PROBLEM_TRANSIENT ||
		problem->kind == PROBLEM_BAD_NONCE)
	{
		errand->kind->failed(errand, clean, ACME_MAX_ATTEMPTS,
							 errand->retry_after);
		return false;
	}
	if (errand->phase != PHASE_REQUEST)
	{
		errand->kind->failed(errand,
							 psprintf("%s could not be had: %s",
									  asked_for(errand), clean),
							 ACME_MAX_NONSENSE, errand->retry_after);
		return false;
	}
	if (problem->kind == PROBLEM_NO_ACCOUNT &&
		errand->want.signature == SIGNED_BY_ACCOUNT &&
		strcmp(errand->account->status, "deactivating") != 0)
	{
		account_lost(errand->account, clean);
		return false;
	}
	/* A server may have moved what its directory names. */
	if (problem->status == 404)
		account_forget_directory(errand->account);
	errand->kind->refused(errand, problem, clean);
	return true;
}

/* There was no answer. */
static bool
take_silence(Errand *errand)
{
	const HttpResponse *r = errand->response;
	bool		odd = r->failure == HTTP_TLS || r->failure == HTTP_PROTOCOL;
	char	   *text = psprintf("%s could not be had: %s", asked_for(errand),
								cleaned(r->error));

	if (r->failure == HTTP_REFUSED || r->failure == HTTP_INVALID)
		return refuse(errand, text);
	errand->kind->failed(errand, text,
						 odd ? ACME_MAX_NONSENSE : ACME_MAX_ATTEMPTS, -1);
	return false;
}

static bool
take_nonsense(Errand *errand, const char *fault)
{
	errand->kind->failed(errand,
						 psprintf("the server's answer for %s cannot be used: %s",
								  asked_for(errand), fault),
						 ACME_MAX_NONSENSE, errand->retry_after);
	return false;
}

static bool
take_good(Errand *errand, Answer *answer)
{
	const char *fault;

	if (errand->phase == PHASE_DIRECTORY)
	{
		account_take_directory(errand->account, answer);
		return true;
	}
	if (errand->phase == PHASE_NONCE)
		return take_nonsense(errand, "it has no Replay-Nonce");
	fault = errand->kind->answered(errand, answer);
	return fault ? take_nonsense(errand, fault) : true;
}

static bool
take_answer(Errand *errand)
{
	Answer	   *answer;

	if (account_load(errand->account->id) == NULL)
		return false;
	errand->retry_after = -1;
	if (errand->response->failure != HTTP_OK)
		return take_silence(errand);
	errand->retry_after = errand->response->retry_after;
	answer = read_response(errand, expected(errand));
	account_put_nonce(errand->account, answer->nonce);
	switch (answer->outcome)
	{
		case ANSWER_GOOD:
			return take_good(errand, answer);
		case ANSWER_PROBLEM:
			return take_problem(errand, answer);
		case ANSWER_MALFORMED:
			return take_nonsense(errand, answer->fault);
		case ANSWER_REDIRECT:
			return refuse(errand,
						  psprintf("the server redirects (status %d) where %s was asked for, which is not followed",
								   answer->status, asked_for(errand)));
	}
	return false;				/* keep the compiler quiet */
}

/* ---- trials ---- */

typedef void (*Step) (Errand *errand, const ErrorData *why);

static void
conclude(Errand *errand, const ErrorData *why)
{
	if (errand->reached)
		INJECTION(psprintf("acme-%s-answered", errand->reached));
	errand->phase = take_answer(errand) ? PHASE_START : PHASE_OVER;
}

/* A step could not be done: say so in the row. */
static void
record_failure(Errand *errand, const ErrorData *error)
{
	char	   *text = error->detail ? psprintf("%s (%s)", error->message,
												error->detail) : error->message;

	errand->phase = PHASE_OVER;
	if (errand->account->status == NULL)
		return;
	if (error->sqlerrcode == ERRCODE_MLINT_CONFIGURATION)
		(void) refuse(errand, text);
	else if (error->sqlerrcode == ERRCODE_CONFIGURATION_LIMIT_EXCEEDED)
		/* The gateway shows as much as it can: others will have done. */
		errand->kind->put_off(errand, retry_at(FULL_DOUBLINGS, -1));
	else
		errand->kind->failed(errand, text, ACME_MAX_ATTEMPTS, -1);
}

static void
leave_alone(Errand *errand, const ErrorData *why)
{
	errand->kind->put_off(errand, GetCurrentTimestamp() +
						  RETRY_MAX_S * USECS_PER_SEC);
}

/* Try something; NULL, or why it could not be done. */
static ErrorData *
attempt(Errand *errand, Step step, const ErrorData *why)
{
	ErrorData  *volatile error = NULL;
	Trial		trial;

	trial_begin(&trial);
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		step(errand, why);
		PopActiveSnapshot();
		trial_end(&trial);
	}
	PG_CATCH();
	{
		error = trial_failed(&trial);
	}
	PG_END_TRY();
	return error;
}

/*
 * Try a step; what comes of it, or its failure, is in the transaction. A row
 * that cannot even say that it has failed must not keep others from going on.
 */
static void
try_step(Errand *errand, Step step)
{
	MemoryContext work = AllocSetContextCreate(run->context, "mlint ACME step",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	ErrorData  *error = attempt(errand, step, NULL);

	if (error)
		error = attempt(errand, record_failure, error);
	if (error)
	{
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("ACME: the failure of %s " INT64_FORMAT " could not be recorded: %s",
						errand->kind->name, errand->id, error->message)));
		error = attempt(errand, leave_alone, NULL);
	}
	if (error)
		ReThrowError(error);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
}

/* ---- looking ---- */

/* Ids of rows that have an errand. */
static Datum
ids_of(const ErrandKind *kind)
{
	Datum		ids[ACME_MAX_IN_FLIGHT];
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &run->errands)
	{
		Errand	   *errand = dlist_container(Errand, node, iter.cur);

		if (errand->kind == kind && errand->phase != PHASE_OVER)
			ids[n++] = Int64GetDatum(errand->id);
	}
	return PointerGetDatum(construct_array(ids, n, INT8OID, 8, true,
										   TYPALIGN_DOUBLE));
}

/* Has an account as many errands as it may have? */
static bool
account_is_full(const AcmeAccount *account)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &run->errands)
	{
		Errand	   *errand = dlist_container(Errand, node, iter.cur);

		if (errand->account == account && errand->phase != PHASE_OVER)
			n++;
	}
	return n >= ACME_MAX_OF_ACCOUNT;
}

/* The ids of those that have: what more they have due must not hide others'. */
static Datum
full_accounts(void)
{
	Datum		ids[ACME_MAX_IN_FLIGHT / ACME_MAX_OF_ACCOUNT];
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &run->errands)
	{
		AcmeAccount *account = dlist_container(Errand, node,
											   iter.cur)->account;
		bool		known = false;

		for (int i = 0; i < n; i++)
			known |= DatumGetInt32(ids[i]) == account->id;
		if (!known && account_is_full(account))
			ids[n++] = Int32GetDatum(account->id);
	}
	return PointerGetDatum(construct_array(ids, n, INT4OID, 4, true,
										   TYPALIGN_INT));
}

/*
 * Create errands for the rows (id, account) that the last statement found, as
 * far as their accounts have room.
 */
static void
take_rows(const ErrandKind *kind)
{
	uint64		n = SPI_processed;
	int64	   *ids = palloc(sizeof(int64) * (n + 1));
	int32	   *accounts = palloc(sizeof(int32) * (n + 1));
	bool		isnull;

	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		ids[i] = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
		accounts[i] = DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull));
	}
	for (uint64 i = 0; i < n; i++)
	{
		if (!account_is_full(account_find(accounts[i])))
			errand_create(kind, ids[i], accounts[i]);
	}
}

/* How many more errands there may be. */
static int
room(void)
{
	return ACME_MAX_IN_FLIGHT - run->n;
}

#define LOOK_FOR(kind, sql) \
	do { \
		Datum		args_[] = {ids_of(&(kind)), Int32GetDatum(room()), \
		full_accounts()}; \
		if (room() > 0) \
		{ \
			ACME_SQL(sql, SPI_OK_SELECT, look_types, args_, NULL); \
			take_rows(&(kind)); \
		} \
	} while (0)

/* Whose turn at the authority it is: the words of the index's predicate. */
#define CHALLENGE_DUE \
	" FROM mlint.acme_challenge a" \
	" JOIN mlint.acme_order o ON o.id = a.order_id AND o.state = 'authorizing'" \
	" WHERE (a.status IN ('new', 'answered', 'given up')" \
	" OR (a.status = 'waiting' AND a.presence = 'present'))" \
	" AND a.id <> ALL ($1)"

static void
look_for_rows(void)
{
	static Oid	look_types[] = {INT8ARRAYOID, INT4OID, INT4ARRAYOID};

	LOOK_FOR(account_errand,
			 "SELECT id::bigint, id FROM mlint.acme_account"
			 " WHERE next_at <= pg_catalog.clock_timestamp()"
			 " AND id <> ALL ($1) AND id <> ALL ($3)"
			 " ORDER BY next_at LIMIT $2");
	LOOK_FOR(challenge_errand,
			 "SELECT a.id, o.account_id" CHALLENGE_DUE
			 " AND a.poll_at <= pg_catalog.clock_timestamp()"
			 " AND o.account_id <> ALL ($3) ORDER BY a.poll_at LIMIT $2");
	LOOK_FOR(order_errand,
			 "SELECT id, account_id FROM mlint.acme_order"
			 " WHERE finished_at IS NULL"
			 " AND next_at <= pg_catalog.clock_timestamp()"
			 " AND id <> ALL ($1) AND account_id <> ALL ($3)"
			 " ORDER BY next_at LIMIT $2");
	LOOK_FOR(revocation_errand,
			 "SELECT v.id, c.account_id FROM mlint.certificate_version v"
			 " JOIN mlint.certificate c ON c.id = v.certificate_id"
			 " WHERE v.revoke_at <= pg_catalog.clock_timestamp()"
			 " AND v.revoked_at IS NULL AND c.account_id IS NOT NULL"
			 " AND v.id <> ALL ($1) AND c.account_id <> ALL ($3)"
			 " ORDER BY v.revoke_at LIMIT $2");
	LOOK_FOR(renewal_errand,
			 "SELECT version_id, account_id FROM mlint.certificate"
			 " WHERE ari_at <= pg_catalog.clock_timestamp()"
			 " AND account_id IS NOT NULL AND version_id IS NOT NULL"
			 " AND version_id <> ALL ($1) AND account_id <> ALL ($3)"
			 " ORDER BY ari_at LIMIT $2");
	run->more = room() <= 0;
}

/* When is there something to be done that has no errand? */
static void
look_ahead(void)
{
	static Oid	types[] = {INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID,
	INT8ARRAYOID, INT8ARRAYOID, INT4ARRAYOID};
	Datum		values[] = {ids_of(&challenge_errand), ids_of(&order_errand),
		ids_of(&account_errand), ids_of(&revocation_errand),
		ids_of(&renewal_errand),
	full_accounts()};
	OwnerScope	scope;
	bool		isnull;

	owner_begin(&scope);
	ACME_SQL("SELECT least('infinity',"
			 " (SELECT a.poll_at" CHALLENGE_DUE
			 " AND o.account_id <> ALL ($6) ORDER BY a.poll_at LIMIT 1),"
			 " (SELECT next_at FROM mlint.acme_order WHERE finished_at IS NULL"
			 " AND id <> ALL ($2) AND account_id <> ALL ($6)"
			 " ORDER BY next_at LIMIT 1),"
			 " (SELECT min(next_at) FROM mlint.acme_account"
			 " WHERE id <> ALL ($3) AND id <> ALL ($6)),"
			 " (SELECT v.revoke_at FROM mlint.certificate_version v"
			 " JOIN mlint.certificate c ON c.id = v.certificate_id"
			 " WHERE v.revoke_at IS NOT NULL AND v.revoked_at IS NULL"
			 " AND c.account_id <> ALL ($6) AND v.id <> ALL ($4)"
			 " ORDER BY v.revoke_at LIMIT 1),"
			 " (SELECT ari_at FROM mlint.certificate WHERE ari_at IS NOT NULL"
			 " AND account_id <> ALL ($6) AND version_id IS NOT NULL"
			 " AND version_id <> ALL ($5) ORDER BY ari_at LIMIT 1)),"
			 " EXISTS (SELECT FROM mlint.acme_order WHERE finished_at IS NULL)",
			 SPI_OK_SELECT, types, values, NULL);
	run->next_due = DatumGetTimestampTz(owner_column(1, &isnull));
	run->open_orders = DatumGetBool(owner_column(2, &isnull));
	owner_end(&scope);
	run->next_due = Min(run->next_due, certificate_orders_next());
}

/* Take up what is due, as far as there is room. */
static void
look(void)
{
	OwnerScope	scope;

	while (!certificate_orders_begin())
		CHECK_FOR_INTERRUPTS();
	owner_begin(&scope);
	look_for_rows();
	owner_end(&scope);
}

/* ---- the loop ---- */

/* Has somebody something for us? */
static bool
is_called(void)
{
	return MyWorker && worker_called(true);
}

/*
 * Those who wait for a directory that could not be had take the same answer:
 * they would only ask the same.
 */
static void
share_answer(const Errand *fetcher)
{
	dlist_iter	iter;

	dlist_foreach(iter, &run->errands)
	{
		Errand	   *errand = dlist_container(Errand, node, iter.cur);

		if (errand->phase != PHASE_WAITING ||
			errand->account != fetcher->account)
			continue;
		errand->phase = PHASE_DIRECTORY;
		errand->response = fetcher->response;
		try_step(errand, conclude);
	}
}

static void
conclude_done(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &run->errands)
	{
		Errand	   *errand = dlist_container(Errand, node, iter.cur);
		bool		fetched = errand->phase == PHASE_DIRECTORY;

		if (!errand->done)
			continue;
		if (fetched)
			errand->account->fetching = false;
		try_step(errand, conclude);
		if (fetched && account_directory(errand->account) == NULL)
			share_answer(errand);
		request_end(errand);
	}
}

/* See what they want who begin, have got an answer, or have waited. */
static void
prepare_all(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &run->errands)
	{
		Errand	   *errand = dlist_container(Errand, node, iter.cur);

		if (errand->phase == PHASE_START ||
			(errand->phase == PHASE_WAITING && !errand->account->fetching))
			try_step(errand, prepare);
	}
}

/*
 * Everything that there is to do in the database, in one transaction. Without
 * room for what there is to find nobody looks, and a call stays unanswered.
 */
static void
take_turn(void)
{
	bool		looks = room() > 0 &&
	(is_called() || run->more || run->next_due <= GetCurrentTimestamp());
	int			n = run->n;

	conclude_done();
	if (looks)
		look();
	looks = looks && run->n == n;
	prepare_all();
	look_ahead();
	/* What is due and is not taken up is not asked for all the time. */
	if (looks)
		run->next_due = Max(run->next_due, GetCurrentTimestamp() +
							LOOK_MIN_MS * INT64CONST(1000));
}

static void
in_transaction(void (*work) (void))
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	(void) set_config_option("lock_timeout", LOCK_TIMEOUT, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0,
							 false);
	work();
	MemoryContextSwitchTo(old);
	SPI_commit();
	ConditionVariableBroadcast(worker_delivered());
}

/* Errands whose turn is over go; and a test may have us die here. */
static void
leave_behind(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &run->errands)
	{
		Errand	   *errand = dlist_container(Errand, node, iter.cur);

		if (errand->reached && !errand->request)
			INJECTION(psprintf("acme-%s", errand->reached));
		if (errand->phase == PHASE_OVER)
			errand_free(errand);
	}
}

/* Is there anything for the database? Nonces are not. */
static bool
has_work(void)
{
	dlist_iter	iter;
	bool		some = false;

	dlist_foreach(iter, &run->errands)
	{
		Errand	   *errand = dlist_container(Errand, node, iter.cur);

		if ((errand->done && !settle_nonce(errand)) ||
			errand->phase == PHASE_START)
			some = true;
	}
	return some ||
		(room() > 0 && ((MyWorker && worker_called(false)) || run->more ||
						run->next_due <= GetCurrentTimestamp()));
}

/* Wait for the latch, the network, or what is due. */
static void
wait_for_work(TimestampTz until)
{
	WaitEvent	event;
	long		http_ms = http_client_timeout(run->client);
	TimestampTz now = GetCurrentTimestamp();
	long		ms = Min(Max((until - now) / 1000 + 1, 0), LOOK_MS);

	if (until <= now)
		ms = 0;
	if (http_ms >= 0)
		ms = Min(ms, http_ms);
	if (WaitEventSetWait(run->wait_set, ms, &event, 1,
						 PG_WAIT_EXTENSION) == 1 &&
		event.events == WL_LATCH_SET)
		ResetLatch(MyLatch);
}

static void
obey(void)
{
	static uint64 policy = 0;

	if (MyWorker)
		(void) worker_interrupts();
	else
		CHECK_FOR_INTERRUPTS();
	if (policy != netpolicy_generation())
		http_client_forget_connections(run->client);
	policy = netpolicy_generation();
}

static void
loop(void)
{
	TimestampTz busy_at = GetCurrentTimestamp();

	in_transaction(challenges_begin);
	for (;;)
	{
		TimestampTz now;
		TimestampTz leave_at;

		obey();
		if (has_work())
		{
			in_transaction(take_turn);
			leave_behind();
		}
		send_all();
		run->arrived = false;
		http_client_run(run->client);
		if (run->arrived || has_work())
			continue;

		now = GetCurrentTimestamp();
		if (run->n > 0 || run->next_due <= now)
			busy_at = now;
		leave_at = busy_at + LINGER_MS * INT64CONST(1000);
		if (run->n == 0 && run->next_due > leave_at &&
			(!run->open_orders || now >= leave_at))
			break;
		wait_for_work(room() <= 0 ? DT_NOEND : run->n > 0 ? run->next_due :
					  Min(run->next_due, leave_at));
	}
}

/* The next run is in a minute at the latest. */
static void
request_next(void)
{
	if (run->next_due < GetCurrentTimestamp() + USECS_PER_MINUTE)
		(void) job_request_at(CERTIFICATE_JOB, run->next_due);
}

static void
run_gone(void *arg)
{
	FreeWaitEventSet(((Run *) arg)->wait_set);
}

static void
run_begin(void)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "mlint ACME run",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	run = palloc0(sizeof(Run));
	run->context = context;
	dlist_init(&run->errands);
	accounts_begin(context);
	run->next_due = DT_NOBEGIN;
	run->client = http_client_create(ACME_MAX_IN_FLIGHT);
	run->wait_set = mlint_create_wait_event_set(3);
	run->callback.func = run_gone;
	run->callback.arg = run;
	MemoryContextRegisterResetCallback(context, &run->callback);
	AddWaitEventToSet(run->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch,
					  NULL);
	AddWaitEventToSet(run->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET,
					  NULL, NULL);
	AddWaitEventToSet(run->wait_set, WL_SOCKET_READABLE,
					  http_client_fd(run->client), NULL, NULL);
	MemoryContextSwitchTo(old);
}

/* CALL mlint.certificate_run() */
Datum
mlint_certificate_run(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	job_procedure_begin(fcinfo, "mlint.certificate_run()",
						JOB_RUN_HINT("certificates"));
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, LOCK_RUN, WORKER_LOCK_CLASS);
	(void) LockAcquire(&tag, ExclusiveLock, true, false);
	PG_TRY();
	{
		run_begin();
		loop();
		in_transaction(request_next);
		MemoryContextDelete(run->context);
	}
	PG_FINALLY();
	{
		(void) LockRelease(&tag, ExclusiveLock, true);
	}
	PG_END_TRY();
	job_procedure_end();
	PG_RETURN_VOID();
}
