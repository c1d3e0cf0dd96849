/*
 * certificate.c
 *		What an authority is asked about certificates that it has issued: to
 *		revoke them (RFC 8555, 7.6), and when to renew them (RFC 9773).
 *
 * A revocation is asked for again until the server has done it, or says that it
 * will not, or the account was closed; the certificate says why. A renewal
 * window is a suggestion: when it cannot be had, it is asked for later, as long
 * as the certificate is valid.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/acme/acme.h"
#include "certs/certs.h"
#include "common/audit.h"
#include "common/owner.h"
#include "common/pg_prng.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

/* A revocation that failed is asked for again after about so long. */
#define REVOKE_AGAIN_S		60
/* A renewal window that could not be had, the same. */
#define RENEWAL_AGAIN_S		(6 * 3600)

/* Up to half as long again, so that many do not come together. */
static TimestampTz
later(int s, int retry_after)
{
	s = Max(s, Min(retry_after, RETRY_AFTER_MAX_S));
	return GetCurrentTimestamp() + s * USECS_PER_SEC +
		(TimestampTz) pg_prng_uint64_range(&pg_global_prng_state, 0,
										   s * USECS_PER_SEC / 2);
}

static void
want(Errand *errand, AnswerKind kind, const char *url, const char *payload,
	 Signature signature)
{
	errand->want.kind = kind;
	errand->want.url = MemoryContextStrdup(errand->context, url);
	errand->want.payload = MemoryContextStrdup(errand->context, payload);
	errand->want.signature = signature;
}

/* ---- revocation ---- */

/* The first certificate of a PEM text, as JWS wants DER. */
static char *
leaf_base64url(const char *pem)
{
	static const char begin[] = "-----BEGIN CERTIFICATE-----";
	const char *at = strstr(pem, begin);
	const char *end = at ? strstr(at, "-----END") : NULL;
	StringInfoData out;

	if (end == NULL)
		elog(ERROR, "a stored certificate is no PEM");
	initStringInfo(&out);
	for (at += sizeof(begin) - 1; at < end; at++)
	{
		if (*at == '+')
			appendStringInfoChar(&out, '-');
		else if (*at == '/')
			appendStringInfoChar(&out, '_');
		else if (*at != '\n' && *at != '\r' && *at != '=')
			appendStringInfoChar(&out, *at);
	}
	return out.data;
}

static void revocation_given_up(const Errand *errand, const char *text);

static bool
revocation_next(Errand *errand)
{
	static Oid	types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(errand->id)};
	const char *url = account_directory(errand->account)->revoke;
	char	   *payload = NULL;
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	bool		isnull;

	owner_begin(&scope);
	ACME_SQL("SELECT chain, coalesce(revoke_reason, 0)"
			 " FROM mlint.certificate_version"
			 " WHERE id = $1 AND revoke_at <= pg_catalog.clock_timestamp()"
			 " AND revoked_at IS NULL", SPI_OK_SELECT, types, values, NULL);
	if (SPI_processed > 0)
	{
		char	   *leaf = leaf_base64url(TextDatumGetCString(owner_column(1, &isnull)));
		int			reason = DatumGetInt32(owner_column(2, &isnull));

		payload = MemoryContextStrdup(caller,
									  psprintf("{\"certificate\": \"%s\", \"reason\": %d}",
											   leaf, reason));
	}
	owner_end(&scope);
	if (payload == NULL)
		return false;
	if (url == NULL)
	{
		revocation_given_up(errand, "the server revokes no certificates");
		return false;
	}
	want(errand, ANSWER_DONE, url, payload, SIGNED_BY_ACCOUNT);
	errand->reached = "revoking";
	return true;
}

static const char *
revocation_answered(Errand *errand, const Answer *answer)
{
	job_commit_durably();
	certificate_revoked(errand->id);
	errand->reached = "revoked";
	return NULL;
}

/* The certificate says why, and (NULL: for good) when it is asked for again. */
static void
revocation_waits(const Errand *errand, const char *text, TimestampTz until)
{
	static Oid	types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(errand->id),
		CStringGetTextDatum(psprintf("the certificate was not revoked: %s",
									 text)),
	TimestampTzGetDatum(until)};

	ACME_DO("WITH v AS (UPDATE mlint.certificate_version"
			" SET revoke_at = nullif($3, 'infinity'),"
			" revoke_reason = CASE WHEN $3 < 'infinity' THEN revoke_reason END"
			" WHERE id = $1 RETURNING certificate_id)"
			" UPDATE mlint.certificate c SET error = $2,"
			" error_at = pg_catalog.clock_timestamp()"
			" FROM v WHERE c.id = v.certificate_id",
			SPI_OK_UPDATE, types, values, NULL);
}

static void
revocation_given_up(const Errand *errand, const char *text)
{
	audit(AUDIT_FAILED, "certificate.revocation_refused",
		  "certificate_version", psprintf(INT64_FORMAT, errand->id), NULL);
	revocation_waits(errand, text, DT_NOEND);
}

/* Again, but not before its account is, if that must be registered first. */
static void
revocation_failed(Errand *errand, const char *text, int max, int retry_after)
{
	const AcmeAccount *account = errand->account;
	TimestampTz until = later(REVOKE_AGAIN_S, retry_after);

	if (strcmp(account->status, "failed") == 0 && account->next_at != DT_NOEND)
		until = Max(until, account->next_at);
	revocation_waits(errand, text, until);
}

/* Nobody else can ask for it when the account is closed. */
static void
revocation_refused(Errand *errand, const Problem *problem, const char *text)
{
	const char *status = errand->account->status;
	bool		closed = strcmp(status, "deactivating") == 0 ||
	strcmp(status, "deactivated") == 0;

	if (problem && problem->kind == PROBLEM_ALREADY_REVOKED)
		(void) revocation_answered(errand, NULL);
	else if (problem || closed)
		revocation_given_up(errand, text);
	else
		revocation_failed(errand, text, ACME_MAX_ATTEMPTS, errand->retry_after);
}

static void
revocation_put_off(Errand *errand, TimestampTz until)
{
	static Oid	types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(errand->id),
	TimestampTzGetDatum(until)};

	ACME_DO("UPDATE mlint.certificate_version SET revoke_at = $2"
			" WHERE id = $1 AND revoked_at IS NULL",
			SPI_OK_UPDATE, types, values, NULL);
}

const ErrandKind revocation_errand = {
	"revocation", revocation_next, revocation_answered, revocation_refused,
	revocation_failed, revocation_put_off
};

/* ---- renewal windows ---- */

static void
renewal_put_off(Errand *errand, TimestampTz until)
{
	static Oid	types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(errand->id),
	TimestampTzGetDatum(until)};

	ACME_DO("UPDATE mlint.certificate SET ari_at = $2"
			" WHERE version_id = $1 AND ari_at IS NOT NULL",
			SPI_OK_UPDATE, types, values, NULL);
}

/*
 * The server has no windows: all certificates of the account whose time to ask
 * has come, and that have none from before, are put off at once. Whoever has one
 * of them locked is not waited for.
 */
static void
account_has_no_windows(const AcmeAccount *account)
{
	static Oid	types[] = {INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(account->id),
	TimestampTzGetDatum(later(RENEWAL_AGAIN_S, -1))};

	ACME_DO("UPDATE mlint.certificate SET ari_at = $2 WHERE id IN"
			" (SELECT c.id FROM mlint.certificate c"
			" JOIN mlint.certificate_version v ON v.id = c.version_id"
			" WHERE c.account_id = $1 AND v.ari_start IS NULL"
			" AND c.ari_at <= pg_catalog.clock_timestamp()"
			" FOR NO KEY UPDATE OF c SKIP LOCKED)",
			SPI_OK_UPDATE, types, values, NULL);
}

/* RFC 9773, 4.3: of what has expired nobody asks. True: it has. */
static bool
renewal_is_over(int64 version)
{
	static SPIPlanPtr plan = NULL;
	static Oid	types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(version)};

	return owner_do(&plan,
					"UPDATE mlint.certificate c SET ari_at = NULL"
					" FROM mlint.certificate_version v WHERE v.id = $1"
					" AND c.version_id = v.id AND c.ari_at IS NOT NULL"
					" AND v.not_after <= pg_catalog.clock_timestamp()",
					SPI_OK_UPDATE, lengthof(types), types, values, NULL);
}

static bool
renewal_next(Errand *errand)
{
	static Oid	types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(errand->id)};
	const char *url = account_directory(errand->account)->renewal_info;
	MemoryContext caller = CurrentMemoryContext;
	char	   *ari_id = NULL;
	OwnerScope	scope;
	bool		due;

	if (renewal_is_over(errand->id))
		return false;
	if (url == NULL)
		account_has_no_windows(errand->account);
	owner_begin(&scope);
	ACME_SQL("SELECT v.ari_id FROM mlint.certificate c"
			 " JOIN mlint.certificate_version v ON v.id = c.version_id"
			 " WHERE v.id = $1 AND c.ari_at <= pg_catalog.clock_timestamp()",
			 SPI_OK_SELECT, types, values, NULL);
	due = SPI_processed > 0;
	if (due)
	{
		bool		isnull;
		Datum		value = owner_column(1, &isnull);

		if (!isnull)
			ari_id = MemoryContextStrdup(caller, TextDatumGetCString(value));
	}
	owner_end(&scope);
	if (!due)
		return false;
	if (url == NULL || ari_id == NULL)
	{
		certificate_renewal_suggested(errand->id, 0, 0, NULL, -1);
		return false;
	}
	want(errand, ANSWER_RENEWAL, psprintf("%s%s%s", url,
										  url[strlen(url) - 1] == '/' ? "" : "/",
										  ari_id), "", UNSIGNED);
	errand->reached = "renewal";
	return true;
}

static const char *
renewal_answered(Errand *errand, const Answer *answer)
{
	certificate_renewal_suggested(errand->id, answer->renewal.start,
								  answer->renewal.end, answer->renewal.url,
								  errand->retry_after);
	return NULL;
}

static void
renewal_failed(Errand *errand, const char *text, int max, int retry_after)
{
	renewal_put_off(errand, later(RENEWAL_AGAIN_S, retry_after));
}

static void
renewal_refused(Errand *errand, const Problem *problem, const char *text)
{
	renewal_failed(errand, text, 0, errand->retry_after);
}

const ErrandKind renewal_errand = {
	"renewal", renewal_next, renewal_answered, renewal_refused, renewal_failed,
	renewal_put_off
};
