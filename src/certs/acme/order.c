/*
 * order.c
 *		The steps of an order.
 *
 *	new				it is written down that it will be sent		-> ordering
 *	ordering		newOrder					-> authorizing or ready
 *	authorizing		its challenges have their turns (challenge.c)	-> ready
 *	ready			its key is stored							-> finalizing
 *	finalizing		finalize					-> processing or downloading
 *	processing		it is polled							-> downloading
 *	downloading		the chain is fetched: certificate_order_issued()
 *
 * Two things must not be lost in a crash: that an order was sent, and the key
 * that it was finalized with. So both are on disk before the request leaves. An
 * order that is found "ordering" may have been made without our knowing: it is
 * looked for in the account's list of orders, where the server has one, before
 * it is sent again. To finalize twice is answered by orderNotReady, and then
 * the order itself says how far it is.
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "catalog/pg_type.h"
#include "certs/acme/acme.h"
#include "certs/acme/order.h"
#include "certs/certs.h"
#include "certs/names.h"
#include "certs/x509.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "secrets/secrets.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

/* Pages of the list of orders that are read, and orders that are looked at. */
#define LIST_PAGES_MAX	200
#define LOOK_MAX		50
/* Polls within which an order that was finalized may turn out to be ready. */
#define READY_POLLS		4

typedef enum OrderStep
{
	STEP_NEW,
	STEP_LIST,
	STEP_LOOK,
	STEP_FINALIZE,
	STEP_POLL,
	STEP_DOWNLOAD
} OrderStep;

typedef struct Order
{
	int64		id;
	char	   *state;
	Datum		domains;		/* text[] */
	char	   *challenge;
	char	   *replaces;
	char	   *url;
	char	   *finalize_url;
	char	   *certificate_url;
	TimestampTz deadline;		/* of its authorizations */
	TimestampTz expires_at;
	TimestampTz next_at;
	int			attempts;
	int			polls;
} Order;

/* An order that may have been made: what is left to look at. */
typedef struct Search
{
	int			pages;
	char	   *page;			/* NULL: the list has been read */
	int			n;
	char	   *urls[LOOK_MAX]; /* the last ones of the list */
} Search;

/* ---- the row ---- */

/* NULL: it is gone, or over. */
static Order *
load(int64 id)
{
	static Oid	types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	MemoryContext caller = CurrentMemoryContext;
	Order	   *order = NULL;
	OwnerScope	scope;
	bool		isnull;

	owner_begin(&scope);
	ACME_SQL("SELECT o.state, c.domains, c.challenge, o.replaces, o.url,"
			 " o.finalize_url, o.certificate_url,"
			 " least(o.expires_at, o.ordered_at + interval '7 days'),"
			 " coalesce(o.expires_at, 'infinity'), o.next_at, o.attempts, o.polls"
			 " FROM mlint.acme_order o JOIN mlint.certificate c"
			 " ON c.id = o.certificate_id"
			 " WHERE o.id = $1 AND o.finished_at IS NULL",
			 SPI_OK_SELECT, types, values, NULL);
	if (SPI_processed > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		order = palloc0(sizeof(Order));
		order->id = id;
		order->state = owner_text(1);
		order->domains = PointerGetDatum(PG_DETOAST_DATUM_COPY(owner_column(2, &isnull)));
		order->challenge = owner_text(3);
		order->replaces = owner_text(4);
		order->url = owner_text(5);
		order->finalize_url = owner_text(6);
		order->certificate_url = owner_text(7);
		order->deadline = DatumGetTimestampTz(owner_column(8, &isnull));
		order->expires_at = DatumGetTimestampTz(owner_column(9, &isnull));
		order->next_at = DatumGetTimestampTz(owner_column(10, &isnull));
		order->attempts = DatumGetInt32(owner_column(11, &isnull));
		order->polls = DatumGetInt32(owner_column(12, &isnull));
		MemoryContextSwitchTo(old);
	}
	owner_end(&scope);
	return order;
}

/* It goes on to another state, whose turn is then. */
static void
enter(Errand *errand, const char *state, TimestampTz next_at)
{
	static Oid	types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(errand->id),
	CStringGetTextDatum(state), TimestampTzGetDatum(next_at)};

	ACME_DO("UPDATE mlint.acme_order SET state = $2, next_at = $3,"
			" attempts = 0, polls = 0, problem = NULL, error = NULL,"
			" ordered_at = coalesce(ordered_at, pg_catalog.clock_timestamp())"
			" WHERE id = $1", SPI_OK_UPDATE, types, values, NULL);
	errand->reached = state;
}

bool
order_proven(int64 order)
{
	static SPIPlanPtr plan = NULL;
	static Oid	types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(order)};

	return owner_do(&plan,
					"UPDATE mlint.acme_order SET state = 'ready', attempts = 0,"
					" polls = 0, error = NULL, next_at = pg_catalog.clock_timestamp()"
					" WHERE id = $1 AND state = 'authorizing' AND NOT EXISTS"
					" (SELECT FROM mlint.acme_challenge"
					" WHERE order_id = $1 AND status <> 'valid')",
					SPI_OK_UPDATE, 1, types, values, NULL);
}

void
order_end(int64 order, const Problem *problem, const char *text,
		  int retry_after)
{
	char	   *type = problem && problem->type ? pstrdup(problem->type) : NULL;

	if (type)
		peer_text_clean(type);
	job_commit_durably();
	challenges_end(order);
	certificate_order_failed(order, type, text, retry_after);
}

/* ---- names ---- */

static bool
same_address(const char *a, const char *b)
{
	uint8		x[16];
	uint8		y[16];

	for (int i = 0; i < 2; i++)
	{
		int			family = i == 0 ? AF_INET : AF_INET6;

		if (inet_pton(family, a, x) == 1 && inet_pton(family, b, y) == 1)
			return memcmp(x, y, i == 0 ? 4 : 16) == 0;
	}
	return false;
}

static bool
same_name(const char *ours, const Identifier *theirs, bool wildcard)
{
	if (theirs->address)
		return same_address(ours, theirs->value);
	if (wildcard)
	{
		if (strncmp(ours, "*.", 2) != 0)
			return false;
		ours += 2;
	}
	return pg_strcasecmp(ours, theirs->value) == 0;
}

static int
array_texts(Datum domains, Datum **elements)
{
	int			n;

	deconstruct_array(DatumGetArrayTypeP(domains), TEXTOID, -1, false,
					  TYPALIGN_INT, elements, NULL, &n);
	return n;
}

bool
order_has_name(Datum domains, const Identifier *identifier, bool wildcard)
{
	Datum	   *elements;
	int			n = array_texts(domains, &elements);

	for (int i = 0; i < n; i++)
	{
		if (same_name(TextDatumGetCString(elements[i]), identifier, wildcard))
			return true;
	}
	return false;
}

/* Is it for the names that we want, and for no others? */
static bool
same_names(const Order *order, const OrderAnswer *answer)
{
	Datum	   *elements;
	int			n = array_texts(order->domains, &elements);

	if (n != answer->n)
		return false;
	for (int i = 0; i < answer->n; i++)
	{
		if (!order_has_name(order->domains, &answer->identifiers[i], false))
			return false;
	}
	return true;
}

/* ---- what it wants ---- */

static char *
new_order(const Order *order, const DirectoryAnswer *directory)
{
	StringInfoData json;
	int			n;
	CertificateName *names = certificate_names(DatumGetArrayTypeP(order->domains),
											   order->challenge, &n);

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"identifiers\": [");
	for (int i = 0; i < n; i++)
	{
		appendStringInfo(&json, "%s{\"type\": \"%s\", \"value\": ",
						 i > 0 ? ", " : "", names[i].address ? "ip" : "dns");
		escape_json(&json, names[i].text);
		appendStringInfoChar(&json, '}');
	}
	appendStringInfoChar(&json, ']');
	if (order->replaces && directory->renewal_info)
	{
		appendStringInfoString(&json, ", \"replaces\": ");
		escape_json(&json, order->replaces);
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

/* The signing request, made with the order's key. */
static char *
finalization(const Order *order)
{
	SecretValue key;
	int			n;
	CertificateName *names = certificate_names(DatumGetArrayTypeP(order->domains),
											   order->challenge, &n);
	char	   *csr = NULL;
	size_t		len;

	certificate_order_key(order->id, &key);
	PG_TRY();
	{
		csr = csr_create(key.data, names, n, &len);
	}
	PG_FINALLY();
	{
		secret_wipe(&key);
	}
	PG_END_TRY();
	return psprintf("{\"csr\": \"%s\"}", jws_base64url(csr, len));
}

static void
want(Errand *errand, OrderStep step, AnswerKind kind, const char *url,
	 const char *payload)
{
	errand->step = step;
	memset(&errand->want, 0, sizeof(Want));
	errand->want.kind = kind;
	errand->want.url = MemoryContextStrdup(errand->context, url);
	errand->want.payload = MemoryContextStrdup(errand->context, payload);
}

/*
 * It may have been sent before: look for it first. When there is nothing (more)
 * to look at, it is sent.
 */
static void
want_search(Errand *errand, const Order *order)
{
	const char *list = errand->account->orders_url;
	Search	   *search = errand->state;

	if (search == NULL)
	{
		search = MemoryContextAllocZero(errand->context, sizeof(Search));
		search->page = list ? MemoryContextStrdup(errand->context, list) : NULL;
		errand->state = search;
	}
	if (search->page)
		want(errand, STEP_LIST, ANSWER_ORDERS, search->page, "");
	else if (search->n > 0)
		want(errand, STEP_LOOK, ANSWER_ORDER, search->urls[search->n - 1], "");
	else
		want(errand, STEP_NEW, ANSWER_ORDER,
			 account_directory(errand->account)->new_order,
			 new_order(order, account_directory(errand->account)));
}

/* Has it run out? What is issued can still be fetched. */
static bool
expired(Errand *errand, const Order *order)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		authorizing = strcmp(order->state, "authorizing") == 0;

	if (order->url == NULL || strcmp(order->state, "downloading") == 0 ||
		now < (authorizing ? order->deadline : order->expires_at))
		return false;
	order_end(order->id, NULL, authorizing ?
			  "the names were not proven before the order expired" :
			  "the order expired before its certificate was issued", -1);
	errand->reached = "failed";
	return true;
}

static bool
order_next(Errand *errand)
{
	TimestampTz now = GetCurrentTimestamp();
	Order	   *order = load(errand->id);
	const char *state;

	if (order == NULL || order->next_at > now || expired(errand, order))
		return false;
	state = order->state;
	if (strcmp(state, "authorizing") == 0)
	{
		/* It is its challenges' turn. */
		order_errand.put_off(errand, order->deadline);
		return false;
	}
	if (strcmp(state, "new") == 0)
	{
		enter(errand, "ordering", now);
		job_commit_durably();
		want(errand, STEP_NEW, ANSWER_ORDER,
			 account_directory(errand->account)->new_order,
			 new_order(order, account_directory(errand->account)));
	}
	else if (strcmp(state, "ordering") == 0)
	{
		errand->reached = "searching";
		want_search(errand, order);
	}
	else if (strcmp(state, "ready") == 0)
	{
		char	   *payload = finalization(order);

		enter(errand, "finalizing", now);
		job_commit_durably();
		want(errand, STEP_FINALIZE, ANSWER_ORDER, order->finalize_url,
			 payload);
	}
	else if (strcmp(state, "finalizing") == 0)
	{
		errand->reached = "finalizing";
		want(errand, STEP_FINALIZE, ANSWER_ORDER, order->finalize_url,
			 finalization(order));
	}
	else if (strcmp(state, "processing") == 0)
	{
		errand->reached = "processing";
		want(errand, STEP_POLL, ANSWER_ORDER, order->url, "");
	}
	else
	{
		errand->reached = "downloading";
		want(errand, STEP_DOWNLOAD, ANSWER_CHAIN, order->certificate_url, "");
	}
	return true;
}

/* ---- what comes of it ---- */

/* The order ends as the server says. */
static void
invalid(Errand *errand, const OrderAnswer *answer)
{
	const Problem *problem = answer->has_problem ? &answer->problem : NULL;

	order_end(errand->id, problem, problem ? problem_message(problem, NULL) :
			  "the server has made the order invalid, and gives no reason",
			  errand->retry_after);
	errand->reached = "failed";
}

/* Its authorizations, to be read. */
static void
insert_challenges(int64 order, const OrderAnswer *answer)
{
	static Oid	types[] = {INT8OID, TEXTARRAYOID};
	Datum		urls[ANSWER_MAX_NAMES];
	Datum		values[2];

	for (int i = 0; i < answer->nauthorizations; i++)
		urls[i] = CStringGetTextDatum(answer->authorizations[i]);
	values[0] = Int64GetDatum(order);
	values[1] = PointerGetDatum(construct_array(urls, answer->nauthorizations,
												TEXTOID, -1, false,
												TYPALIGN_INT));
	ACME_DO("INSERT INTO mlint.acme_challenge (order_id, authorization_url)"
			" SELECT $1, url FROM pg_catalog.unnest($2) url"
			" ON CONFLICT DO NOTHING", SPI_OK_INSERT, types, values, NULL);
}

/*
 * A server may answer with the order that is pending for the same names, as
 * when they are wanted with two types of key. It has one certificate; this one
 * is asked for again later. True: so it is.
 */
static bool
wait_for_other(const Order *order, const char *url)
{
	static SPIPlanPtr plan = NULL;
	static Oid	types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(order->id), CStringGetTextDatum(url),
		TimestampTzGetDatum(retry_at(order->polls + 1, -1)),
	CStringGetTextDatum("the server has answered with the order of another certificate for these names, which goes first")};

	return owner_do(&plan,
					"UPDATE mlint.acme_order o SET polls = o.polls + 1,"
					" attempts = 0, next_at = $3, problem = NULL, error = $4"
					" FROM mlint.acme_order other WHERE o.id = $1"
					" AND other.account_id = o.account_id AND other.id <> o.id"
					" AND other.finished_at IS NULL AND other.url = $2",
					SPI_OK_UPDATE, lengthof(types), types, values, NULL);
}

/* The server has this order: take note of it, and see how far it is. */
static const char *
take(Errand *errand, const Order *order, const char *url,
	 const OrderAnswer *answer)
{
	static Oid	types[] = {INT8OID, TEXTOID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[4];
	TimestampTz now = GetCurrentTimestamp();

	if (!same_names(order, answer))
		return "it is an order for other names";
	if (answer->status == ACME_INVALID)
	{
		invalid(errand, answer);
		return NULL;
	}
	if (wait_for_other(order, url))
		return NULL;
	values[0] = Int64GetDatum(order->id);
	values[1] = CStringGetTextDatum(url);
	values[2] = CStringGetTextDatum(answer->finalize);
	values[3] = TimestampTzGetDatum(answer->expires);
	ACME_DO("UPDATE mlint.acme_order SET url = $2, finalize_url = $3,"
			" expires_at = $4 WHERE id = $1", SPI_OK_UPDATE, types, values,
			answer->expires == 0 ? "   n" : NULL);
	job_commit_durably();
	if (answer->status == ACME_READY)
		enter(errand, "ready", now);
	else if (answer->status != ACME_PENDING)
		enter(errand, "processing", now);
	else
	{
		insert_challenges(order->id, answer);
		enter(errand, "authorizing", now + 7 * USECS_PER_DAY);
		order_errand.put_off(errand, load(order->id)->deadline);
	}
	return NULL;
}

/* A page of the list: those on it that we know are no news. */
static const char *
take_list(Errand *errand, const OrdersAnswer *answer)
{
	static Oid	types[] = {INT4OID, TEXTARRAYOID};
	Search	   *search = errand->state;
	Datum	   *urls = palloc(sizeof(Datum) * (answer->n + 1));
	Datum		values[2];
	OwnerScope	scope;

	for (int i = 0; i < answer->n; i++)
		urls[i] = CStringGetTextDatum(answer->urls[i]);
	values[0] = Int32GetDatum(errand->account->id);
	values[1] = PointerGetDatum(construct_array(urls, answer->n, TEXTOID, -1,
												false, TYPALIGN_INT));
	owner_begin(&scope);
	ACME_SQL("SELECT u.url FROM pg_catalog.unnest($2) WITH ORDINALITY u (url, n)"
			 " WHERE NOT EXISTS (SELECT FROM mlint.acme_order o"
			 " WHERE o.account_id = $1 AND o.url = u.url) ORDER BY u.n",
			 SPI_OK_SELECT, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *url = SPI_getvalue(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc, 1);

		if (search->n == LOOK_MAX)
			memmove(search->urls, search->urls + 1,
					sizeof(char *) * --search->n);
		search->urls[search->n++] = MemoryContextStrdup(errand->context, url);
	}
	owner_end(&scope);
	search->page = answer->next[0] && ++search->pages < LIST_PAGES_MAX ?
		MemoryContextStrdup(errand->context, answer->next) : NULL;
	return NULL;
}

/* One that we don't know: is it the one that we look for? */
static const char *
take_found(Errand *errand, const Order *order, const OrderAnswer *answer)
{
	Search	   *search = errand->state;
	const char *url = search->urls[--search->n];

	if ((answer->status == ACME_PENDING || answer->status == ACME_READY) &&
		same_names(order, answer))
		return take(errand, order, url, answer);
	return NULL;
}

/* The certificate is there. */
static void
download(Errand *errand, const OrderAnswer *answer)
{
	static Oid	types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(errand->id),
	CStringGetTextDatum(answer->certificate)};

	ACME_DO("UPDATE mlint.acme_order SET certificate_url = $2 WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
	enter(errand, "downloading", GetCurrentTimestamp());
}

/*
 * It is to be looked at again, or finalized again: processing or finalizing is
 * its state then. Some time for all of that must be enough.
 */
static void
poll_again(Errand *errand, const Order *order, const char *state)
{
	static Oid	types[] = {INT8OID, TIMESTAMPTZOID, TEXTOID};
	Datum		values[3];

	if (order->polls >= ACME_MAX_POLLS)
	{
		order_end(order->id, NULL,
				  "the server has not issued the certificate in time: the order never left processing",
				  errand->retry_after);
		errand->reached = "failed";
		return;
	}
	values[0] = Int64GetDatum(order->id);
	values[1] = TimestampTzGetDatum(poll_at(order->polls, errand->retry_after));
	values[2] = CStringGetTextDatum(state);
	ACME_DO("UPDATE mlint.acme_order SET state = $3, polls = polls + 1,"
			" next_at = $2, attempts = 0, error = NULL WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
	errand->reached = state;
}

/* How far it is after finalize. */
static const char *
take_progress(Errand *errand, const Order *order, const OrderAnswer *answer)
{
	switch (answer->status)
	{
		case ACME_VALID:
			if (answer->certificate == NULL)
				return "the order is valid, but has no certificate";
			download(errand, answer);
			break;
		case ACME_INVALID:
			invalid(errand, answer);
			break;
		case ACME_PROCESSING:
			poll_again(errand, order, "processing");
			break;
		case ACME_READY:
			/* That it was finalized got lost. */
			if (errand->step == STEP_FINALIZE || order->polls > READY_POLLS)
				return "the order is ready, though it was finalized";
			poll_again(errand, order, "finalizing");
			break;
		default:
			return "the order is in no state to have been finalized";
	}
	return NULL;
}

static const char *
order_answered(Errand *errand, const Answer *answer)
{
	Order	   *order = load(errand->id);

	if (order == NULL)
		return NULL;
	switch ((OrderStep) errand->step)
	{
		case STEP_NEW:
			if (answer->location[0] == '\0')
				return "it has no Location, which would be the order";
			return take(errand, order, answer->location, &answer->order);
		case STEP_LIST:
			return take_list(errand, &answer->orders);
		case STEP_LOOK:
			return take_found(errand, order, &answer->order);
		case STEP_FINALIZE:
		case STEP_POLL:
			return take_progress(errand, order, &answer->order);
		case STEP_DOWNLOAD:
			job_commit_durably();
			challenges_end(order->id);
			certificate_order_issued(order->id, answer->chain);
			errand->reached = "issued";
			break;
	}
	return NULL;
}

/* ---- when it goes wrong ---- */

/* The server will not have it that we replace that certificate. */
static void
forget_replaced(int64 order)
{
	static Oid	types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(order)};

	ACME_DO("UPDATE mlint.acme_order SET replaces = NULL WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
}

static void
order_refused(Errand *errand, const Problem *problem, const char *text)
{
	Search	   *search = errand->state;
	Order	   *order = load(errand->id);

	if (order == NULL)
		return;
	if (errand->step == STEP_LIST && search && search->page)
	{
		/* Then there is no list. */
		search->page = NULL;
		return;
	}
	if (errand->step == STEP_LOOK && search && search->n > 0)
	{
		search->n--;
		return;
	}

	/*
	 * Perhaps it only will not have what is replaced: it is replaced already,
	 * or is of another account or authority, as the account was before it was
	 * created anew. Without that we would be refused for ever.
	 */
	if (errand->step == STEP_NEW && order->replaces && problem)
	{
		forget_replaced(order->id);
		return;
	}
	if (errand->step == STEP_FINALIZE && problem &&
		problem->kind == PROBLEM_ORDER_NOT_READY)
	{
		poll_again(errand, order, "processing");
		return;
	}
	order_end(order->id, problem, text, errand->retry_after);
	errand->reached = "failed";
}

static void
order_failed(Errand *errand, const char *text, int max, int retry_after)
{
	static Oid	types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID};
	Order	   *order = load(errand->id);
	Datum		values[3];

	if (order == NULL)
		return;
	if (order->attempts + 1 >= max)
	{
		order_end(order->id, NULL, text, retry_after);
		errand->reached = "failed";
		return;
	}
	values[0] = Int64GetDatum(order->id);
	values[1] = CStringGetTextDatum(text);
	values[2] = TimestampTzGetDatum(retry_at(order->attempts + 1, retry_after));
	ACME_DO("UPDATE mlint.acme_order SET attempts = attempts + 1,"
			" problem = NULL, error = $2, next_at = $3 WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
}

static void
order_put_off(Errand *errand, TimestampTz until)
{
	static Oid	types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(errand->id),
	TimestampTzGetDatum(until)};

	ACME_DO("UPDATE mlint.acme_order SET next_at = $2 WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
}

bool
order_is_new(const Errand *errand)
{
	return errand->kind == &order_errand && errand->step == STEP_NEW;
}

void
order_limited(Errand *errand, const char *text, int retry_after)
{
	static Oid	types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID};
	TimestampTz until = retry_at(0, retry_after);
	Datum		values[] = {Int64GetDatum(errand->id),
		CStringGetTextDatum(text),
	TimestampTzGetDatum(Max(errand->account->not_before, until))};

	ACME_DO("UPDATE mlint.acme_order SET next_at = $3, error = $2,"
			" problem = 'rateLimited' WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
}

const ErrandKind order_errand = {
	"order", order_next, order_answered, order_refused, order_failed,
	order_put_off
};
