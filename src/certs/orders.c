/*
 * orders.c
 *		Begins orders, within the limits of accounts.
 *
 * A certificate whose due_at has come gets an order, if its account has room:
 * no more than max_orders in any window of max_orders_per. What counts are the
 * orders that were sent in the last window, and those that are still to be
 * sent. The window is taken a little longer than it is, since what we send at
 * even distances may arrive at uneven ones.
 *
 * What has no room stays due, and nothing is written for it; so a run costs no
 * more when ten thousand wait. Renewals go first, those that were due first
 * before others: what is in use must not expire because somebody asks for many
 * new ones.
 *
 * Orders are kept for as long as they count, and a while longer: expiry.c
 * forgets them.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/lifecycle.h"
#include "common/owner.h"
#include "common/trial.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Orders that one call begins. */
#define BATCH			100
/* When nothing tells when there will be room. */
#define LOOK_AGAIN_US	(60 * USECS_PER_SEC)
/* A certificate with which nothing can be done is left alone for so long. */
#define LEAVE_ALONE_S	300

/* The window of an account a, as we count. */
#define WINDOW			"(a.max_orders_per * 1.02 + '1 second'::interval)"

/*
 * How many orders the account has room for, its row locked; none as long as
 * somebody changes it. In a scope.
 */
static int
account_room(int account)
{
	static SPIPlanPtr lock = NULL;
	static SPIPlanPtr count = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(account)};
	bool		isnull;

	owner_run(&lock,
			  "SELECT FROM mlint.acme_account a WHERE a.id = $1"
			  " AND a.status = 'valid'"
			  " AND a.not_before <= pg_catalog.clock_timestamp()"
			  " FOR NO KEY UPDATE SKIP LOCKED",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		return 0;
	/* Counted under the lock, so that two runs do not share what is left. */
	owner_run(&count,
			  "SELECT a.max_orders"
			  " - (SELECT pg_catalog.count(*) FROM mlint.acme_order o"
			  " WHERE o.account_id = a.id"
			  " AND o.ordered_at > pg_catalog.clock_timestamp() - " WINDOW ")::int"
			  " - (SELECT pg_catalog.count(*) FROM mlint.acme_order o"
			  " WHERE o.account_id = a.id AND o.ordered_at IS NULL"
			  " AND o.finished_at IS NULL)::int"
			  " FROM mlint.acme_account a WHERE a.id = $1",
			  SPI_OK_SELECT, 1, types, values, NULL);
	return Max(DatumGetInt32(owner_column(1, &isnull)), 0);
}

/* Certificates that are due, locked: at most n ids, palloc'd by the caller. */
static int
lock_due(int account, bool renewals, int n, pg_uuid_t *ids)
{
	static SPIPlanPtr plans[2] = {NULL, NULL};
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(account), Int32GetDatum(n)};
	bool		isnull;

	owner_run(&plans[renewals], renewals ?
			  "SELECT id FROM mlint.certificate WHERE account_id = $1"
			  " AND due_at <= pg_catalog.clock_timestamp()"
			  " AND version_id IS NOT NULL"
			  " ORDER BY due_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED" :
			  "SELECT id FROM mlint.certificate WHERE account_id = $1"
			  " AND due_at <= pg_catalog.clock_timestamp()"
			  " AND version_id IS NULL"
			  " ORDER BY due_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
			  SPI_OK_SELECT, 2, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
		ids[i] = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc, 1,
											  &isnull));
	return SPI_processed;
}

/* The order itself. What it replaces is what is in use, if that still counts. */
static int64
insert_order(const Certificate *c)
{
	static SPIPlanPtr insert = NULL;
	static SPIPlanPtr update = NULL;
	OwnerScope	scope;
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(&c->id)};
	bool		isnull;
	int64		order;

	owner_begin(&scope);
	owner_run(&insert,
			  "INSERT INTO mlint.acme_order (certificate_id, account_id, replaces)"
			  " SELECT c.id, c.account_id, v.ari_id FROM mlint.certificate c"
			  " LEFT JOIN mlint.certificate_version v ON v.id = c.version_id"
			  " AND v.revoked_at IS NULL"
			  " AND v.not_after > pg_catalog.clock_timestamp()"
			  " WHERE c.id = $1 RETURNING id",
			  SPI_OK_INSERT_RETURNING, 1, types, values, NULL);
	order = DatumGetInt64(owner_column(1, &isnull));
	owner_run(&update,
			  "UPDATE mlint.certificate SET due_at = NULL WHERE id = $1",
			  SPI_OK_UPDATE, 1, types, values, NULL);
	owner_end(&scope);
	return order;
}

static void
begin_order(const pg_uuid_t *id)
{
	Certificate c;
	int64		order;

	if (!certificate_lock(id, &c))
		return;
	order = insert_order(&c);
	certificate_enter(&c, c.version != 0 && !c.revoked ?
					  CERTIFICATE_RENEWING : CERTIFICATE_ISSUING,
					  psprintf("{\"order\": " INT64_FORMAT "}", order));
}

/* What is due for an account that is closed is renewed no more, and says so. */
static void
give_up(const pg_uuid_t *id)
{
	static SPIPlanPtr plan = NULL;
	Certificate c;
	Oid			types[] = {UUIDOID, TEXTOID};
	Datum		values[2];

	if (!certificate_lock(id, &c))
		return;
	c.attempts++;
	values[0] = UUIDPGetDatum(id);
	values[1] = CStringGetTextDatum("the account was deactivated");
	owner_do(&plan,
			 "UPDATE mlint.certificate SET due_at = NULL,"
			 " attempts = attempts + 1, error = $2,"
			 " error_at = pg_catalog.clock_timestamp() WHERE id = $1",
			 SPI_OK_UPDATE, 2, types, values, NULL);
	certificate_enter(&c, certificate_rest(&c), NULL);
	certificate_publish(&c, "certificate.failed", 0, NULL);
}

/* It says why nothing could be done with it, and is tried again later. */
static void
leave_alone(const pg_uuid_t *id, const ErrorData *error)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, TEXTOID, INT4OID};
	Datum		values[] = {UUIDPGetDatum(id),
	CStringGetTextDatum(error->message), Int32GetDatum(LEAVE_ALONE_S)};

	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("ACME: certificate %s could not be gone on with: %s",
					certificate_id_text(id), error->message)));
	owner_do(&plan,
			 "UPDATE mlint.certificate SET error = $2,"
			 " error_at = pg_catalog.clock_timestamp(), due_at ="
			 " pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3)"
			 " WHERE id = $1", SPI_OK_UPDATE, 3, types, values, NULL);
}

/*
 * Do something with a certificate, whose row is locked. One with which it cannot
 * be done, such as one whose event is too large, must not keep others from
 * going on.
 */
static void
try_with(const pg_uuid_t *id, void (*work) (const pg_uuid_t *id))
{
	ErrorData  *volatile error = NULL;
	Trial		trial;

	trial_begin(&trial);
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		work(id);
		PopActiveSnapshot();
		trial_end(&trial);
	}
	PG_CATCH();
	{
		error = trial_failed(&trial);
	}
	PG_END_TRY();
	if (error == NULL)
		return;
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	leave_alone(id, error);
	FreeErrorData(error);
}

/* Give up to n certificates of closed accounts up; returns how many. */
static int
give_up_some(int n)
{
	static SPIPlanPtr plan = NULL;
	OwnerScope	scope;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(n)};
	pg_uuid_t	ids[BATCH];
	int			found;
	bool		isnull;

	owner_begin(&scope);
	owner_run(&plan,
			  "SELECT c.id FROM mlint.certificate c"
			  " JOIN mlint.acme_account a ON a.id = c.account_id"
			  " WHERE a.status IN ('deactivating', 'deactivated')"
			  " AND c.due_at <= pg_catalog.clock_timestamp()"
			  " LIMIT $1 FOR NO KEY UPDATE OF c SKIP LOCKED",
			  SPI_OK_SELECT, 1, types, values, NULL);
	found = SPI_processed;
	for (int i = 0; i < found; i++)
		ids[i] = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc, 1,
											  &isnull));
	owner_end(&scope);
	for (int i = 0; i < found; i++)
		try_with(&ids[i], give_up);
	return found;
}

/* The accounts that somebody waits for, palloc'd in the caller's context. */
static int
accounts_wanted(int **accounts)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	bool		isnull;
	int			n;

	owner_begin(&scope);
	owner_run(&plan,
			  "SELECT a.id FROM mlint.acme_account a WHERE a.status = 'valid'"
			  " AND a.not_before <= pg_catalog.clock_timestamp()"
			  " AND (EXISTS (SELECT FROM mlint.certificate c"
			  " WHERE c.account_id = a.id AND c.version_id IS NULL"
			  " AND c.due_at <= pg_catalog.clock_timestamp())"
			  " OR EXISTS (SELECT FROM mlint.certificate c"
			  " WHERE c.account_id = a.id AND c.version_id IS NOT NULL"
			  " AND c.due_at <= pg_catalog.clock_timestamp()))"
			  " ORDER BY a.id", SPI_OK_SELECT, 0, NULL, NULL, NULL);
	n = SPI_processed;
	*accounts = MemoryContextAlloc(caller, (n + 1) * sizeof(int));
	for (int i = 0; i < n; i++)
		(*accounts)[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
													 SPI_tuptable->tupdesc, 1,
													 &isnull));
	owner_end(&scope);
	return n;
}

/* Begin up to n orders of one account; returns how many. */
static int
begin_for_account(int account, int n)
{
	OwnerScope	scope;
	pg_uuid_t	ids[BATCH];
	int			room;
	int			found;

	owner_begin(&scope);
	room = Min(account_room(account), n);
	found = room > 0 ? lock_due(account, true, room, ids) : 0;
	if (found < room)
		found += lock_due(account, false, room - found, ids + found);
	owner_end(&scope);
	for (int i = 0; i < found; i++)
		try_with(&ids[i], begin_order);
	return found;
}

bool
certificate_orders_begin(void)
{
	int			left = BATCH;
	int		   *accounts;
	int			n;

	left -= give_up_some(left);
	n = accounts_wanted(&accounts);
	for (int i = 0; i < n && left > 0; i++)
		left -= begin_for_account(accounts[i], left);
	return left > 0;
}

TimestampTz
certificate_orders_next(void)
{
	static SPIPlanPtr plan = NULL;
	OwnerScope	scope;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(GetCurrentTimestamp() +
												LOOK_AGAIN_US)};
	TimestampTz next;
	bool		isnull;

	/*
	 * An account that is full has room when as many have left its window as
	 * there are too many in it, and one more.
	 */
	owner_begin(&scope);
	owner_run(&plan,
			  "SELECT pg_catalog.min(greatest(least("
			  "(SELECT pg_catalog.min(c.due_at) FROM mlint.certificate c"
			  " WHERE c.account_id = a.id AND c.version_id IS NULL),"
			  "(SELECT pg_catalog.min(c.due_at) FROM mlint.certificate c"
			  " WHERE c.account_id = a.id AND c.version_id IS NOT NULL)),"
			  " a.not_before,"
			  " CASE WHEN n.sent + n.open >= a.max_orders THEN"
			  " coalesce((SELECT o.ordered_at + " WINDOW
			  " FROM mlint.acme_order o WHERE o.account_id = a.id"
			  " AND o.ordered_at > pg_catalog.clock_timestamp() - " WINDOW
			  " ORDER BY o.ordered_at"
			  " OFFSET greatest(n.sent + n.open - a.max_orders, 0) LIMIT 1), $1) END))"
			  " FROM mlint.acme_account a, LATERAL (SELECT"
			  " (SELECT pg_catalog.count(*) FROM mlint.acme_order o"
			  " WHERE o.account_id = a.id"
			  " AND o.ordered_at > pg_catalog.clock_timestamp() - " WINDOW ") AS sent,"
			  " (SELECT pg_catalog.count(*) FROM mlint.acme_order o"
			  " WHERE o.account_id = a.id AND o.ordered_at IS NULL"
			  " AND o.finished_at IS NULL) AS open) n"
			  " WHERE a.status = 'valid' AND EXISTS (SELECT FROM mlint.certificate c"
			  " WHERE c.account_id = a.id AND c.due_at IS NOT NULL)",
			  SPI_OK_SELECT, 1, types, values, NULL);
	next = DatumGetTimestampTz(owner_column(1, &isnull));
	if (isnull)
		next = DT_NOEND;
	owner_end(&scope);
	return next;
}
