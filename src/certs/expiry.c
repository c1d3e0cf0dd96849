/*
 * expiry.c
 *		The job certificate_expiry: what comes by itself with time.
 *
 * Warnings, when 30, 14, 7, 3 days and one are left, each once for a
 * certificate, and anew after a renewal. A threshold counts only when the
 * lifetime is longer than it; and one that is going to be renewed as planned
 * is not warned about: with an authority's short-lived certificates nobody
 * could tell a warning from the daily business. As soon as a renewal has failed
 * or is overdue, the thresholds count.
 *
 * Certificates that expire say so. Keys are destroyed when the last
 * certificate that they belong to was replaced and has expired, or was
 * compromised. Orders go when they count no more and a day has passed, those
 * that failed after 90 days, and their challenges with them; versions a year
 * after they have expired, unless they are still somewhere. And a certificate
 * that waits for an order that is not there (orders are in no dump), or that is
 * to be kept valid and has no time for that, is due again.
 *
 * Each piece of work is one transaction, of at most BATCH rows. What cannot be
 * warned of is told at the end of the run, which is an error then.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/lifecycle.h"
#include "common/owner.h"
#include "common/trial.h"
#include "miscadmin.h"
#include "secrets/store.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_certificate_expiry_run);

#define BATCH		200

/* The rows of a statement that returns ids of certificates, palloc'd. */
static pg_uuid_t *
select_ids(SPIPlanPtr *plan, const char *sql, int *n)
{
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(BATCH)};
	pg_uuid_t  *ids;
	bool		isnull;

	owner_begin(&scope);
	owner_run(plan, sql, SPI_OK_SELECT, 1, types, values, NULL);
	*n = SPI_processed;
	ids = MemoryContextAlloc(caller, (*n + 1) * sizeof(pg_uuid_t));
	for (int i = 0; i < *n; i++)
		ids[i] = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc, 1,
											  &isnull));
	owner_end(&scope);
	return ids;
}

/* When its next order begins, if nothing else says so. */
static void
make_due(const Certificate *c)
{
	static SPIPlanPtr update = NULL;
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(&c->id)};

	owner_do(&update,
			 "UPDATE mlint.certificate SET due_at ="
			 " pg_catalog.clock_timestamp()"
			 " WHERE id = $1 AND due_at IS NULL",
			 SPI_OK_UPDATE, 1, types, values, NULL);
	(void) job_request(CERTIFICATE_JOB);
}

/* An order that is not there: lost with a dump, or with a hand's mistake. */
static bool
resume_lost(void *arg)
{
	static SPIPlanPtr plan = NULL;
	int			n;
	pg_uuid_t  *ids = select_ids(&plan,
								 "SELECT c.id FROM mlint.certificate c"
								 " WHERE c.state IN ('ISSUING', 'RENEWING')"
								 " AND NOT EXISTS (SELECT FROM mlint.acme_order o"
								 " WHERE o.certificate_id = c.id"
								 " AND o.finished_at IS NULL)"
								 " LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED", &n);

	for (int i = 0; i < n; i++)
	{
		Certificate c;

		if (!certificate_lock(&ids[i], &c))
			continue;
		make_due(&c);
		certificate_enter(&c, certificate_rest(&c), NULL);
	}
	return n == BATCH;
}

/*
 * One that is to be kept valid, and that nobody would try again: its account
 * was closed and is open again, what was revoked has had a successor waiting,
 * or was not revoked in the end.
 */
static bool
resume_forgotten(void *arg)
{
	static SPIPlanPtr plan = NULL;
	int			n;
	pg_uuid_t  *ids = select_ids(&plan,
								 "SELECT c.id FROM mlint.certificate c"
								 " JOIN mlint.acme_account a"
								 " ON a.id = c.account_id AND a.status = 'valid'"
								 " WHERE c.auto_renew AND c.due_at IS NULL"
								 " AND c.state IN ('REQUESTED', 'FAILED',"
								 " 'ACTIVE', 'EXPIRED')"
								 " AND NOT EXISTS (SELECT"
								 " FROM mlint.certificate_version v"
								 " WHERE v.id = c.version_id"
								 " AND v.revoke_at IS NOT NULL"
								 " AND v.revoked_at IS NULL)"
								 " LIMIT $1 FOR NO KEY UPDATE OF c SKIP LOCKED",
								 &n);

	for (int i = 0; i < n; i++)
	{
		CertificateVersion v;
		Certificate c;

		if (!certificate_lock(&ids[i], &c))
			continue;
		if (c.version != 0 && version_read(c.version, &v))
			renewal_schedule(&c, &v);
		else
			make_due(&c);
	}
	return n == BATCH;
}

/* What has expired. One that is being renewed says so when that has failed. */
static bool
expire(void *arg)
{
	static SPIPlanPtr plan = NULL;
	int			n;
	pg_uuid_t  *ids = select_ids(&plan,
								 "SELECT c.id FROM mlint.certificate c"
								 " JOIN mlint.certificate_version v"
								 " ON v.id = c.version_id"
								 " WHERE c.state = 'ACTIVE'"
								 " AND v.not_after <= pg_catalog.clock_timestamp()"
								 " LIMIT $1 FOR NO KEY UPDATE OF c SKIP LOCKED",
								 &n);

	for (int i = 0; i < n; i++)
	{
		Certificate c;

		if (certificate_lock(&ids[i], &c))
			certificate_enter(&c, certificate_rest(&c), NULL);
	}
	return n == BATCH;
}

/* A run, and what it could not do. */
typedef struct Run
{
	pg_uuid_t	after;			/* the last certificate that was warned of */
	int64		failed;
	char	   *first_error;	/* in the run's memory context */
	MemoryContext context;
} Run;

/* Of which certificates it is time to warn. */
typedef struct Near
{
	pg_uuid_t	id;
	int32		days;
} Near;

/*
 * Those that come near, in the order of their ids. days is the smallest
 * threshold that is reached; a renewal that is planned, or has been under way
 * for no more than its slack, keeps it from counting.
 */
static int
find_near(const pg_uuid_t *after, Near *near)
{
	static SPIPlanPtr plan = NULL;
	OwnerScope	scope;
	Oid			types[] = {INT4OID, UUIDOID};
	Datum		values[] = {Int32GetDatum(BATCH), UUIDPGetDatum(after)};
	int			n;

	owner_begin(&scope);
	owner_run(&plan,
			  "SELECT c.id, d.days FROM mlint.certificate c"
			  " JOIN mlint.certificate_version v ON v.id = c.version_id"
			  " CROSS JOIN LATERAL (SELECT pg_catalog.min(t.days) AS days"
			  " FROM (VALUES (30), (14), (7), (3), (1)) t (days)"
			  " WHERE v.not_after - pg_catalog.clock_timestamp()"
			  " <= pg_catalog.make_interval(hours => 24 * t.days)"
			  " AND v.not_after - v.not_before"
			  " > pg_catalog.make_interval(hours => 24 * t.days)) d"
			  " CROSS JOIN LATERAL (SELECT pg_catalog.clock_timestamp()"
			  " - least('1 hour'::interval, (v.not_after - v.not_before) / 50)"
			  " AS since) s"
			  " WHERE c.id > $2 AND v.not_after > pg_catalog.clock_timestamp()"
			  " AND v.not_after < pg_catalog.clock_timestamp() + '31 days'::interval"
			  " AND v.revoked_at IS NULL AND d.days IS NOT NULL"
			  " AND (c.warned_days IS NULL OR d.days < c.warned_days)"
			  " AND NOT (c.auto_renew AND c.attempts = 0 AND c.error IS NULL"
			  " AND (coalesce(c.due_at > s.since, false)"
			  " OR EXISTS (SELECT FROM mlint.acme_order o"
			  " WHERE o.certificate_id = c.id AND o.finished_at IS NULL"
			  " AND o.created_at > s.since)))"
			  " ORDER BY c.id LIMIT $1 FOR NO KEY UPDATE OF c SKIP LOCKED",
			  SPI_OK_SELECT, 2, types, values, NULL);
	n = SPI_processed;
	for (int i = 0; i < n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		near[i].id = *DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
		near[i].days = DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull));
	}
	owner_end(&scope);
	return n;
}

static void
warn_of(const Near *near)
{
	static SPIPlanPtr plan = NULL;
	OwnerScope	scope;
	Oid			types[] = {UUIDOID, INT4OID};
	Datum		values[] = {UUIDPGetDatum(&near->id),
	Int32GetDatum(near->days)};

	owner_begin(&scope);
	owner_run(&plan,
			  "WITH w AS (UPDATE mlint.certificate SET warned_days = $2"
			  " WHERE id = $1 RETURNING *)"
			  " SELECT mlint.publish('certificate.expiring',"
			  " pg_catalog.jsonb_build_object('id', w.id, 'name', w.name,"
			  " 'domains', w.domains, 'state', w.state, 'account', a.name,"
			  " 'days', $2, 'serial', v.serial, 'issuer', v.issuer,"
			  " 'fingerprint_sha256', pg_catalog.encode(v.fingerprint, 'hex'),"
			  " 'not_before', v.not_before, 'not_after', v.not_after,"
			  " 'auto_renew', w.auto_renew,"
			  " 'renew_at', w.due_at, 'attempts', w.attempts, 'error', w.error))"
			  " FROM w JOIN mlint.certificate_version v ON v.id = w.version_id"
			  " LEFT JOIN mlint.acme_account a ON a.id = w.account_id",
			  SPI_OK_SELECT, 2, types, values, NULL);
	owner_end(&scope);
}

/*
 * Warn of what comes near. An event that cannot be published (it may be larger
 * than mlint.event_max_bytes) is tried again by the next run, and keeps nothing
 * else from being done.
 */
static bool
warn(void *arg)
{
	Run		   *run = arg;
	Near	   *near = palloc(BATCH * sizeof(Near));
	int			n = find_near(&run->after, near);

	for (int i = 0; i < n; i++)
	{
		ErrorData  *volatile error = NULL;
		Trial		trial;

		trial_begin(&trial);
		PG_TRY();
		{
			warn_of(&near[i]);
			trial_end(&trial);
		}
		PG_CATCH();
		{
			error = trial_failed(&trial);
		}
		PG_END_TRY();
		run->after = near[i].id;
		if (error == NULL)
			continue;
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
		if (run->failed++ == 0)
			run->first_error = MemoryContextStrdup(run->context,
												   error->message);
		FreeErrorData(error);
	}
	return n == BATCH;
}

/* A key that no certificate needs any more. */
typedef struct OldKey
{
	char	   *secret;
	int			version;
	bool		stored;
} OldKey;

/*
 * Mark the versions whose keys can go; of those that no other version has, and
 * that are there, which they are.
 */
static int
mark_old_keys(OldKey *keys)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(BATCH)};
	bool		isnull;
	int			n;

	owner_begin(&scope);
	owner_run(&plan,
			  "WITH old AS (SELECT v.id FROM mlint.certificate_version v"
			  " WHERE v.replaced_at IS NOT NULL AND NOT v.key_gone"
			  " AND (v.not_after <= pg_catalog.clock_timestamp()"
			  " OR v.key_compromised)"
			  " LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED),"
			  " gone AS (UPDATE mlint.certificate_version v SET key_gone = true"
			  " FROM old, mlint.certificate c WHERE v.id = old.id"
			  " AND c.id = v.certificate_id"
			  " RETURNING v.id, c.id AS certificate, c.key_secret, v.key_version)"
			  " SELECT g.key_secret, g.key_version, EXISTS (SELECT"
			  " FROM mlint.secret s JOIN mlint.secret_version k"
			  " ON k.secret_id = s.id WHERE s.name = g.key_secret"
			  " AND k.version = g.key_version AND k.destroyed_at IS NULL)"
			  " AND NOT EXISTS (SELECT FROM mlint.certificate_version o"
			  " WHERE o.certificate_id = g.certificate"
			  " AND o.key_version = g.key_version AND NOT o.key_gone"
			  " AND o.id NOT IN (SELECT id FROM gone))"
			  " AND NOT EXISTS (SELECT FROM mlint.acme_order o"
			  " WHERE o.certificate_id = g.certificate"
			  " AND o.key_version = g.key_version AND o.finished_at IS NULL)"
			  " FROM gone g",
			  SPI_OK_SELECT, 1, types, values, NULL);
	n = SPI_processed;
	for (int i = 0; i < n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		keys[i].secret = MemoryContextStrdup(caller,
											 SPI_getvalue(row, desc, 1));
		keys[i].version = DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull));
		keys[i].stored = DatumGetBool(SPI_getbinval(row, desc, 3, &isnull));
	}
	owner_end(&scope);
	return n;
}

static bool
is_among(const OldKey *keys, int n, const OldKey *key)
{
	for (int i = 0; i < n; i++)
	{
		if (keys[i].version == key->version &&
			strcmp(keys[i].secret, key->secret) == 0)
			return true;
	}
	return false;
}

static bool
destroy_keys(void *arg)
{
	OldKey	   *keys = palloc(BATCH * sizeof(OldKey));
	int			n = mark_old_keys(keys);

	for (int i = 0; i < n; i++)
	{
		/* Two versions of one certificate can have had the same. */
		if (!keys[i].stored || is_among(keys, i, &keys[i]))
			continue;
		audit(AUDIT_CHANGED, "secret.destroy", "secret", keys[i].secret,
			  psprintf("{\"version\": %d}", keys[i].version));
		store_destroy(keys[i].secret, keys[i].version);
	}
	return n == BATCH;
}

static bool
delete_batch(SPIPlanPtr *plan, const char *sql)
{
	OwnerScope	scope;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(BATCH)};
	uint64		n;

	owner_begin(&scope);
	owner_run(plan, sql, SPI_OK_DELETE, 1, types, values, NULL);
	n = SPI_processed;
	owner_end(&scope);
	return n == BATCH;
}

/* Orders that count no more. What they made and did not remove goes first. */
static bool
forget_orders(void *arg)
{
	static SPIPlanPtr plan = NULL;

	return delete_batch(&plan,
						"DELETE FROM mlint.acme_order WHERE id IN ("
						"SELECT o.id FROM mlint.acme_order o"
						" JOIN mlint.acme_account a ON a.id = o.account_id"
						" WHERE o.finished_at < pg_catalog.clock_timestamp()"
						" - CASE WHEN o.state = 'issued' THEN '1 day'::interval"
						" ELSE '90 days'::interval END"
						" AND (o.ordered_at IS NULL OR o.ordered_at <"
						" pg_catalog.clock_timestamp() - 2 * a.max_orders_per)"
						" LIMIT $1 FOR UPDATE OF o SKIP LOCKED)");
}

/*
 * Challenges of orders that are gone, but for what a solver is still to remove.
 * By the index acme_challenge_orphan.
 */
static bool
forget_challenges(void *arg)
{
	static SPIPlanPtr plan = NULL;

	return delete_batch(&plan,
						"DELETE FROM mlint.acme_challenge WHERE id IN ("
						"SELECT h.id FROM mlint.acme_challenge h"
						" WHERE h.order_id IS NULL AND (h.solver IS NULL"
						" OR h.presence IN ('none', 'removed'))"
						" LIMIT $1 FOR UPDATE OF h SKIP LOCKED)");
}

static bool
forget_versions(void *arg)
{
	static SPIPlanPtr plan = NULL;

	return delete_batch(&plan,
						"DELETE FROM mlint.certificate_version WHERE id IN ("
						"SELECT v.id FROM mlint.certificate_version v"
						" WHERE v.key_gone AND v.replaced_at IS NOT NULL"
						" AND v.not_after < pg_catalog.clock_timestamp()"
						" - '1 year'::interval"
						" AND NOT EXISTS (SELECT FROM mlint.certificate c"
						" WHERE c.id = v.certificate_id"
						" AND v.id IN (c.version_id, c.next_version_id))"
						" AND NOT EXISTS (SELECT FROM mlint.certificate_region r"
						" WHERE r.version_id = v.id)"
						" LIMIT $1 FOR UPDATE OF v SKIP LOCKED)");
}

/* CALL mlint.certificate_expiry_run() */
Datum
mlint_certificate_expiry_run(PG_FUNCTION_ARGS)
{
	static const JobWork works[] = {resume_lost, resume_forgotten,
		expire, warn,
	destroy_keys, forget_orders, forget_challenges, forget_versions};
	Run			run = {0};

	job_procedure_begin(fcinfo, "mlint.certificate_expiry_run()",
						JOB_RUN_HINT("certificate_expiry"));
	run.context = CurrentMemoryContext;
	for (int i = 0; i < lengthof(works); i++)
	{
		while (job_transaction(works[i], &run, false))
			CHECK_FOR_INTERRUPTS();
	}
	if (run.failed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("certificate.expiring could not be published of %lld certificates: %s",
						(long long) run.failed, run.first_error),
				 errhint("The next run tries again.")));
	job_procedure_end();
	PG_RETURN_VOID();
}
