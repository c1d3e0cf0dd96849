/*
 * lifecycle.c
 *		What becomes of an order's end, and of what is pushed.
 *
 * A certificate goes
 *
 *	REQUESTED	asked for; waits for its account to have room
 *	ISSUING		an order is under way, and nothing is in use
 *	ISSUED		a version was issued and verified, and waits for the targets
 *				that must have it first
 *	ACTIVE		a version is in use
 *	RENEWING	the same, and an order for the next is under way
 *	FAILED		nothing was issued yet, and the last order failed
 *	REVOKED		what was in use was revoked
 *	EXPIRED		what is in use has expired
 *
 * The version in use stays in use until the next was issued, verified (its
 * chain builds, its names are those asked for, its key is ours) and taken to
 * where it must be first. An order that fails changes nothing but when the
 * next begins; that is what attempts, error and due_at say.
 *
 * All of this runs in transactions of the jobs, and each call is whole: what a
 * crash leaves is a row from which the job comes to the same call again, and
 * one that comes twice finds the order finished and does nothing. Locks are
 * taken on the order first, then on the certificate.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/lifecycle.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/owner.h"
#include "secrets/secrets.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

/* When the authority does not say when to ask for a window again. */
#define ARI_DEFAULT_S	(6 * 3600)
#define ARI_SHORTEST_S	60
#define ARI_LONGEST_S	SECS_PER_DAY
#define KEY_COMPROMISE	1

/* An order that is under way. */
typedef struct Order
{
	int64		id;
	int			key_version;	/* 0: none yet */
} Order;

/* The order and its certificate, locked; false: there is none, or it is over. */
static bool
lock_order(int64 id, Order *order, Certificate *c)
{
	static SPIPlanPtr plan = NULL;
	OwnerScope	scope;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	pg_uuid_t	certificate;
	bool		isnull;
	bool		found;

	order->id = id;
	owner_begin(&scope);
	owner_run(&plan,
			  "SELECT certificate_id, coalesce(key_version, 0)"
			  " FROM mlint.acme_order WHERE id = $1 AND finished_at IS NULL"
			  " FOR NO KEY UPDATE", SPI_OK_SELECT, 1, types, values, NULL);
	found = SPI_processed > 0;
	if (found)
	{
		certificate = *DatumGetUUIDP(owner_column(1, &isnull));
		order->key_version = DatumGetInt32(owner_column(2, &isnull));
	}
	owner_end(&scope);
	return found && certificate_lock(&certificate, c);
}

/* ---- keys ---- */

/* Is that version of the certificate's secret there? */
static bool
has_key(const Certificate *c, int version)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TEXTOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(c->key_secret),
	Int32GetDatum(version)};

	return owner_do(&plan,
					"SELECT FROM mlint.secret s JOIN mlint.secret_version k"
					" ON k.secret_id = s.id WHERE s.name = $1 AND k.version = $2"
					" AND k.destroyed_at IS NULL",
					SPI_OK_SELECT, 2, types, values, NULL);
}

/*
 * The key of the version in use, when the next is to have it too; 0: none, as
 * when it was destroyed, or is in other hands.
 */
static int
kept_key(const Certificate *c)
{
	CertificateVersion v;

	if (!c->reuse_key || c->version == 0 || c->account == 0 ||
		!version_read(c->version, &v) || v.key_compromised ||
		!has_key(c, v.key_version))
		return 0;
	return v.key_version;
}

static void
read_key(const Certificate *c, int version, SecretValue *key)
{
	if (!secret_read(c->key_secret, psprintf("%d", version), key))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("secret \"%s\" has no version %d", c->key_secret,
						version),
				 errhint("It is a private key of certificate \"%s\"; have that renewed.",
						 c->name)));
}

/* A new key, stored. */
static int
make_key(const Certificate *c, SecretValue *key)
{
	volatile int version = 0;

	key->data = key_generate(c->key_type);
	key->len = strlen(key->data);
	PG_TRY();
	{
		version = version_store_key(c->key_secret, c->name, key->data,
									c->created_by);
	}
	PG_CATCH();
	{
		crypto_wipe(key->data, key->len);
		PG_RE_THROW();
	}
	PG_END_TRY();
	key->version = psprintf("%d", version);
	return version;
}

void
certificate_order_key(int64 id, SecretValue *key)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(id), 0};
	Order		order;
	Certificate c;
	int			version;

	if (!lock_order(id, &order, &c))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("order " INT64_FORMAT " is not under way", id)));
	if (order.key_version != 0)
	{
		read_key(&c, order.key_version, key);
		return;
	}
	version = kept_key(&c);
	if (version != 0)
		read_key(&c, version, key);
	else
		version = make_key(&c, key);
	values[1] = Int32GetDatum(version);
	owner_do(&plan,
			 "UPDATE mlint.acme_order SET key_version = $2 WHERE id = $1",
			 SPI_OK_UPDATE, 2, types, values, NULL);
}

/* ---- an order's end ---- */

/* The order is over; problem and error may be NULL. */
static void
finish_order(int64 id, const char *state, const char *problem,
			 const char *error)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[4];
	char		nulls[] = {' ', ' ', problem ? ' ' : 'n', error ? ' ' : 'n'};

	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(state);
	values[2] = problem ? CStringGetTextDatum(problem) : 0;
	values[3] = error ? CStringGetTextDatum(error) : 0;
	owner_do(&plan,
			 "UPDATE mlint.acme_order SET state = $2, problem = $3, error = $4,"
			 " finished_at = pg_catalog.clock_timestamp() WHERE id = $1",
			 SPI_OK_UPDATE, 4, types, values, nulls);
}

/* A member of a JSON object that begins with "error", put in behind it. */
static char *
failure_json(const char *error, const char *problem)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoString(&json, certificate_error_json(error));
	json.data[--json.len] = '\0';
	appendStringInfoString(&json, ", \"problem\": ");
	if (problem)
		escape_json(&json, pnstrdup(problem, 100));
	else
		appendStringInfoString(&json, "null");
	appendStringInfoChar(&json, '}');
	return json.data;
}

/* The certificate says what failed, and when the next order begins. */
static void
record_failure(Certificate *c, const char *error, int retry_after)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[3];
	char		nulls[] = {' ', ' ', c->auto_renew ? ' ' : 'n'};

	c->attempts++;
	values[0] = UUIDPGetDatum(&c->id);
	values[1] = CStringGetTextDatum(error);
	values[2] = TimestampTzGetDatum(renewal_retry_time(c->attempts,
													   c->not_after,
													   retry_after));
	owner_do(&plan,
			 "UPDATE mlint.certificate SET attempts = attempts + 1,"
			 " error = $2, error_at = pg_catalog.clock_timestamp(),"
			 " due_at = $3 WHERE id = $1",
			 SPI_OK_UPDATE, 3, types, values, nulls);
}

static void
order_failed(const Order *order, Certificate *c, const char *problem,
			 const char *error, int retry_after)
{
	char	   *details = failure_json(error, problem);

	finish_order(order->id, "failed", problem, error);
	if (order->key_version != 0)
		version_discard_key(c, order->key_version);
	record_failure(c, error, retry_after);
	certificate_enter(c, certificate_rest(c), details);
	certificate_publish(c, "certificate.failed", 0, details);
}

void
certificate_order_failed(int64 id, const char *problem, const char *error,
						 int retry_after)
{
	Order		order;
	Certificate c;

	if (lock_order(id, &order, &c))
		order_failed(&order, &c, problem, error, retry_after);
}

/* NULL, or what is wrong with what was issued. */
static char *
verify_issued(const Certificate *c, const Order *order, const Chain *chain)
{
	int			n;
	CertificateName *names = certificate_names(c->domains, NULL, &n);
	SecretValue key;
	char	   *volatile fault = NULL;

	if (order->key_version == 0)
		return pstrdup("the order has no key");
	read_key(c, order->key_version, &key);
	PG_TRY();
	{
		fault = chain_verify(chain, names, n, key.data, GetCurrentTimestamp());
	}
	PG_FINALLY();
	{
		secret_wipe(&key);
	}
	PG_END_TRY();
	return fault;
}

void
certificate_order_issued(int64 id, const char *pem)
{
	Order		order;
	Certificate c;
	Chain	   *chain;
	char	   *fault = NULL;

	if (!lock_order(id, &order, &c))
		return;
	chain = chain_read(pem, &fault);
	if (chain)
		fault = verify_issued(&c, &order, chain);
	if (fault)
	{
		order_failed(&order, &c, NULL,
					 psprintf("what the authority has issued cannot be used: %s",
							  fault), -1);
		return;
	}
	finish_order(id, "issued", NULL, NULL);
	certificate_take(&c, version_insert(&c, chain, order.key_version));
	INJECTION("certificate-issued");
}

/* ---- from issued to active ---- */

/* Is there a target that must have it first? */
static bool
has_sync_targets(const Certificate *c)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(&c->id)};

	return owner_do(&plan,
					"SELECT FROM mlint.certificate_target t"
					" WHERE t.certificate_id = $1 AND t.strategy = 'sync' LIMIT 1",
					SPI_OK_SELECT, 1, types, values, NULL);
}

/* Targets have something to do: all, or those that must have it first. */
static void
wake_targets(const Certificate *c, bool sync_only)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, BOOLOID};
	Datum		values[] = {UUIDPGetDatum(&c->id), BoolGetDatum(sync_only)};
	bool		some;

	some = owner_do(&plan,
					"UPDATE mlint.certificate_region r SET attempts = 0,"
					" next_at = pg_catalog.clock_timestamp()"
					" FROM mlint.certificate_target t, mlint.certificate c"
					" WHERE c.id = $1 AND t.certificate_id = c.id"
					" AND r.target_id = t.id"
					" AND r.version_id IS DISTINCT FROM coalesce(c.next_version_id,"
					" c.version_id)"
					" AND (t.strategy = 'sync' OR NOT $2)",
					SPI_OK_UPDATE, 2, types, values, NULL);
	if (some || sync_only)
		(void) job_request(CERTIFICATE_TARGET_JOB);
}

void
certificate_take(Certificate *c, int64 version)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, INT8OID};
	Datum		values[] = {UUIDPGetDatum(&c->id), Int64GetDatum(version)};
	CertificateVersion v;

	owner_do(&plan,
			 "UPDATE mlint.certificate SET next_version_id = $2, attempts = 0,"
			 " error = NULL, error_at = NULL WHERE id = $1",
			 SPI_OK_UPDATE, 2, types, values, NULL);
	c->next_version = version;
	c->attempts = 0;
	if (!version_read(version, &v))
		elog(ERROR, "a certificate's version is gone");
	renewal_schedule(c, &v);
	certificate_enter(c, CERTIFICATE_ISSUED,
					  psprintf("{\"version\": " INT64_FORMAT "}", version));
	if (has_sync_targets(c))
		wake_targets(c, true);
	else
		certificate_activate(&c->id);
}

/* The row and the versions, old and new. */
static void
switch_version(const Certificate *c)
{
	static SPIPlanPtr use = NULL;
	static SPIPlanPtr replace = NULL;
	static SPIPlanPtr activate = NULL;
	OwnerScope	scope;
	Oid			types[] = {UUIDOID, INT8OID};
	Datum		values[] = {UUIDPGetDatum(&c->id),
	Int64GetDatum(c->next_version)};

	owner_begin(&scope);
	owner_run(&replace,
			  "UPDATE mlint.certificate_version"
			  " SET replaced_at = pg_catalog.clock_timestamp()"
			  " WHERE certificate_id = $1 AND id <> $2 AND replaced_at IS NULL",
			  SPI_OK_UPDATE, 2, types, values, NULL);
	owner_run(&activate,
			  "UPDATE mlint.certificate_version"
			  " SET activated_at = pg_catalog.clock_timestamp()"
			  " WHERE certificate_id = $1 AND id = $2",
			  SPI_OK_UPDATE, 2, types, values, NULL);
	owner_run(&use,
			  "UPDATE mlint.certificate c SET version_id = v.id,"
			  " next_version_id = NULL, warned_days = NULL, error = NULL,"
			  " error_at = NULL, ari_at = CASE WHEN c.account_id IS NOT NULL"
			  " AND c.auto_renew AND v.ari_id IS NOT NULL"
			  " THEN pg_catalog.clock_timestamp() END"
			  " FROM mlint.certificate_version v WHERE c.id = $1 AND v.id = $2",
			  SPI_OK_UPDATE, 2, types, values, NULL);
	owner_end(&scope);
}

void
certificate_activate(const pg_uuid_t *certificate)
{
	Certificate c;
	CertificateVersion v;
	bool		first;

	if (!certificate_lock(certificate, &c) || c.next_version == 0 ||
		!version_read(c.next_version, &v))
		return;
	first = c.version == 0;
	switch_version(&c);
	secret_make_current(c.key_secret, v.key_version, 0);
	c.version = v.id;
	c.next_version = 0;
	c.revoked = false;
	c.not_after = v.not_after;
	certificate_enter(&c, certificate_ordered(&c) ? CERTIFICATE_RENEWING :
					  certificate_rest(&c),
					  psprintf("{\"version\": " INT64_FORMAT "}", v.id));
	wake_targets(&c, false);
	certificate_publish(&c, first ? "certificate.issued" :
						"certificate.renewed", 0, NULL);
}

void
certificate_push_failed(const pg_uuid_t *certificate, const char *error)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, TEXTOID};
	Datum		values[] = {UUIDPGetDatum(certificate),
	CStringGetTextDatum(error)};
	Certificate c;
	char	   *details;

	/* It is tried again and again; told of is what is new. */
	if (!certificate_lock(certificate, &c) || c.next_version == 0 ||
		(c.error && strcmp(c.error, error) == 0))
		return;
	details = certificate_error_json(error);
	audit(AUDIT_CHANGED, "certificate.push_failed", "certificate", c.name,
		  details);
	owner_do(&plan,
			 "UPDATE mlint.certificate SET error = $2,"
			 " error_at = pg_catalog.clock_timestamp() WHERE id = $1",
			 SPI_OK_UPDATE, 2, types, values, NULL);
	certificate_publish(&c, "certificate.failed", c.next_version, details);
}

/* ---- what else the authority says ---- */

/* The certificate of a version, locked. */
static bool
lock_version(int64 id, CertificateVersion *v, Certificate *c)
{
	return version_read(id, v) && certificate_lock(&v->certificate, c);
}

/* Write down a window; false: it is the one that was there before. */
static bool
set_window(int64 version, TimestampTz start, TimestampTz end, const char *url)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID};
	Datum		values[4];
	char		nulls[] = {' ', start ? ' ' : 'n', start ? ' ' : 'n',
	url ? ' ' : 'n'};

	values[0] = Int64GetDatum(version);
	values[1] = TimestampTzGetDatum(start);
	values[2] = TimestampTzGetDatum(end);
	values[3] = url ? CStringGetTextDatum(url) : 0;

	return owner_do(&plan,
					"UPDATE mlint.certificate_version SET ari_start = $2, ari_end = $3,"
					" ari_url = $4 WHERE id = $1 AND (ari_start, ari_end, ari_url)"
					" IS DISTINCT FROM ($2, $3, $4)",
					SPI_OK_UPDATE, 4, types, values, nulls);
}

void
certificate_renewal_suggested(int64 version, TimestampTz start,
							  TimestampTz end, const char *url,
							  int retry_after)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, INT4OID};
	Datum		values[2];
	CertificateVersion v;
	Certificate c;
	int			again_s = retry_after < 0 ? ARI_DEFAULT_S :
	Min(Max(retry_after, ARI_SHORTEST_S), ARI_LONGEST_S);

	if (!lock_version(version, &v, &c) || c.version != version)
		return;
	values[0] = UUIDPGetDatum(&c.id);
	values[1] = Int32GetDatum(again_s);
	owner_do(&plan,
			 "UPDATE mlint.certificate SET ari_at ="
			 " pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $2)"
			 " WHERE id = $1", SPI_OK_UPDATE, 2, types, values, NULL);

	/* A moment that was drawn stays, unless the window has moved. */
	if (!set_window(version, start, end, url) ||
		(start == v.ari_start && end == v.ari_end))
		return;
	/* An attempt that failed has a time of its own; what is issued waits. */
	if (c.attempts > 0 || c.next_version != 0 || c.revoked ||
		certificate_ordered(&c))
		return;
	v.ari_start = start;
	v.ari_end = end;
	renewal_schedule(&c, &v);
}

/* That it was not revoked so far is no error any more. */
static void
forget_revocation_error(const Certificate *c)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(&c->id)};

	owner_do(&plan,
			 "UPDATE mlint.certificate SET error = NULL, error_at = NULL"
			 " WHERE id = $1 AND attempts = 0 AND next_version_id IS NULL"
			 " AND error IS NOT NULL", SPI_OK_UPDATE, 1, types, values, NULL);
}

/* Nothing comes after a certificate that was revoked, unless it is asked for. */
static void
stop_renewal(const Certificate *c)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(&c->id)};

	owner_do(&plan,
			 "UPDATE mlint.certificate SET due_at = NULL, ari_at = NULL"
			 " WHERE id = $1", SPI_OK_UPDATE, 1, types, values, NULL);
}

void
certificate_revoked(int64 version)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(version)};
	CertificateVersion v;
	Certificate c;
	bool		done;

	if (!lock_version(version, &v, &c))
		return;
	done = owner_do(&plan,
					"UPDATE mlint.certificate_version"
					" SET revoked_at = pg_catalog.clock_timestamp()"
					" WHERE id = $1 AND revoked_at IS NULL",
					SPI_OK_UPDATE, 1, types, values, NULL);
	if (!done)
		return;
	if (c.version == version)
	{
		c.revoked = true;
		forget_revocation_error(&c);
		if (v.revoke_reason != KEY_COMPROMISE || !c.auto_renew)
			stop_renewal(&c);
		certificate_enter(&c, certificate_ordered(&c) ?
						  CERTIFICATE_ISSUING : certificate_rest(&c), NULL);
	}
	certificate_publish(&c, "certificate.revoked", version, NULL);
}
