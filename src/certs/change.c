/*
 * change.c
 *		What an administrator does with a certificate that there is.
 *
 * Renewing and revoking are asked for here and done by the job. A certificate
 * that is revoked because its key is in other hands, and that is to be kept
 * valid, gets a successor with a new key at once: its names have done nothing
 * wrong, and its servers must not be without. For any other reason the end is
 * meant, and there is none until mlint.certificate_renew() asks for it: an order
 * that is under way ends.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "certs/lifecycle.h"
#include "common/argument.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/owner.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "secrets/store.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_certificate_renew);
PG_FUNCTION_INFO_V1(mlint_certificate_revoke);
PG_FUNCTION_INFO_V1(mlint_certificate_drop);
PG_FUNCTION_INFO_V1(mlint_certificate_get);

/* RFC 5280, 5.3.1; those that an owner may give. */
static const struct
{
	const char *name;
	int			code;
}			reasons[] =

{
	{"unspecified", 0},
	{"keyCompromise", 1},
	{"affiliationChanged", 3},
	{"superseded", 4},
	{"cessationOfOperation", 5}
};

#define KEY_COMPROMISE	1

/* The certificate that the first argument names, locked. */
static void
required_certificate(FunctionCallInfo fcinfo, Certificate *c)
{
	pg_uuid_t  *id = required_uuid(fcinfo, 0, "id");

	if (!certificate_lock(id, c))
		certificate_unknown(id);
}

/* Raise unless its authority can be asked for it. */
static void
require_account(const Certificate *c, const char *what, const char *hint)
{
	static const char *const closed = "its account was deactivated";
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(c->account)};
	bool		open;

	open = owner_do(NULL,
					"SELECT FROM mlint.acme_account WHERE id = $1"
					" AND status NOT IN ('deactivating', 'deactivated')",
					SPI_OK_SELECT, 1, types, values, NULL);
	if (c->account == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("certificate \"%s\" cannot be %s: it was imported",
						c->name, what),
				 errhint("%s", hint)));
	if (!open)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("certificate \"%s\" cannot be %s: %s", c->name, what,
						closed)));
}

/* Have an order begin as soon as the account has room. */
static void
make_due(const Certificate *c)
{
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(&c->id)};

	owner_do(NULL,
			 "UPDATE mlint.certificate SET attempts = 0, error = NULL,"
			 " error_at = NULL, due_at = pg_catalog.clock_timestamp()"
			 " WHERE id = $1", SPI_OK_UPDATE, 1, types, values, NULL);
	(void) job_request(CERTIFICATE_JOB);
	worker_wake_at_commit(WORKER_JOB);
}

/* mlint.certificate_renew(id) */
Datum
mlint_certificate_renew(PG_FUNCTION_ARGS)
{
	Certificate c;

	require_writable(fcinfo);
	required_certificate(fcinfo, &c);
	require_account(&c, "renewed",
					"Renew it where it comes from, and import the next with mlint.certificate_import().");
	if (certificate_ordered(&c))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("certificate \"%s\" is being %s already", c.name,
						c.version ? "renewed" : "issued"),
				 errhint("mlint.certificate_wait() waits for it; mlint.certificate_orders shows how far it is.")));
	make_due(&c);
	audit(AUDIT_CHANGED, "certificate.renew", "certificate", c.name, NULL);
	PG_RETURN_VOID();
}

static int
reason_code(const char *name)
{
	for (int i = 0; i < lengthof(reasons); i++)
	{
		if (strcmp(reasons[i].name, name) == 0)
			return reasons[i].code;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("there is no reason \"%s\" to revoke a certificate", name),
			 errhint("Reasons are unspecified, keyCompromise, affiliationChanged, superseded and cessationOfOperation.")));
	return -1;					/* keep the compiler quiet */
}

/* Raise unless what is in use, which goes into v, can be revoked. */
static void
check_revocable(const Certificate *c, CertificateVersion *v)
{
	const char *why = NULL;

	if (c->version == 0 || !version_read(c->version, v))
		why = "nothing was issued yet";
	else if (c->revoked)
		why = "it was revoked before";
	else if (c->not_after <= GetCurrentTimestamp())
		why = "it has expired";
	else if (v->revoke_reason >= 0)
		why = "that was asked for before, and is under way";
	if (why)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("certificate \"%s\" cannot be revoked: %s", c->name,
						why)));
}

/*
 * Lock the order that is under way, if there is one: before the certificate,
 * as the job does. Returns the version of the key that it has, or 0.
 */
static int
lock_open_order(const pg_uuid_t *id)
{
	OwnerScope	scope;
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(id)};
	int			key_version = 0;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT coalesce(key_version, 0) FROM mlint.acme_order"
			  " WHERE certificate_id = $1 AND finished_at IS NULL FOR UPDATE",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed > 0)
		key_version = DatumGetInt32(owner_column(1, &isnull));
	owner_end(&scope);
	return key_version;
}

/*
 * End the order that is under way. One that was sent goes on counting, and what
 * was made to prove its names is removed by the jobs; one that was not sent
 * never was.
 */
static void
end_open_order(const Certificate *c, const char *why)
{
	OwnerScope	scope;
	Oid			types[] = {UUIDOID, TEXTOID};
	Datum		values[] = {UUIDPGetDatum(&c->id), CStringGetTextDatum(why)};

	owner_begin(&scope);
	owner_run(NULL,
			  "DELETE FROM mlint.acme_order WHERE certificate_id = $1"
			  " AND ordered_at IS NULL AND finished_at IS NULL",
			  SPI_OK_DELETE, 1, types, values, NULL);
	owner_run(NULL,
			  "UPDATE mlint.acme_order SET state = 'failed', error = $2,"
			  " finished_at = pg_catalog.clock_timestamp()"
			  " WHERE certificate_id = $1 AND finished_at IS NULL",
			  SPI_OK_UPDATE, 2, types, values, NULL);
	owner_end(&scope);
	(void) job_request(CERTIFICATE_JOB);
	(void) job_request(CERTIFICATE_CHALLENGE_JOB);
	worker_wake_at_commit(WORKER_JOB);
}

/* Nothing comes after what is in use, unless that is not revoked after all. */
static void
stop_renewal(const Certificate *c)
{
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(&c->id)};

	owner_do(NULL, "UPDATE mlint.certificate SET due_at = NULL WHERE id = $1",
			 SPI_OK_UPDATE, 1, types, values, NULL);
}

/* A version is to be revoked, as soon as the job gets to it. */
static void
ask_to_revoke(int64 version, int code)
{
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(version), Int32GetDatum(code)};

	owner_do(NULL,
			 "UPDATE mlint.certificate_version SET revoke_reason = $2,"
			 " revoke_at = pg_catalog.clock_timestamp() WHERE id = $1",
			 SPI_OK_UPDATE, 2, types, values, NULL);
}

/*
 * The key of what is in use is in other hands. What else has it is not to be
 * used any more, nor is the key, whether or not the authority revokes.
 */
static void
condemn_key(Certificate *c, const CertificateVersion *v)
{
	CertificateVersion next;
	Oid			types[] = {UUIDOID, INT4OID};
	Datum		values[] = {UUIDPGetDatum(&c->id),
	Int32GetDatum(v->key_version)};

	owner_do(NULL,
			 "UPDATE mlint.certificate_version SET key_compromised = true"
			 " WHERE certificate_id = $1 AND key_version = $2",
			 SPI_OK_UPDATE, 2, types, values, NULL);
	if (c->next_version == 0 || !version_read(c->next_version, &next) ||
		next.key_version != v->key_version)
		return;
	ask_to_revoke(c->next_version, KEY_COMPROMISE);
	owner_do(NULL,
			 "UPDATE mlint.certificate SET next_version_id = NULL,"
			 " error = NULL, error_at = NULL WHERE id = $1",
			 SPI_OK_UPDATE, 1, types, values, NULL);
	c->next_version = 0;
}

/* mlint.certificate_revoke(id, reason) */
Datum
mlint_certificate_revoke(PG_FUNCTION_ARGS)
{
	char	   *reason = required_text(fcinfo, 1, "reason");
	int			code = reason_code(reason);
	Certificate c;
	CertificateVersion v;
	int			order_key;
	bool		ordered;

	require_writable(fcinfo);
	order_key = lock_open_order(required_uuid(fcinfo, 0, "id"));
	required_certificate(fcinfo, &c);
	/* It may have begun just now; then it has no key. */
	ordered = certificate_ordered(&c);
	require_account(&c, "revoked",
					"Have it revoked where it comes from.");
	check_revocable(&c, &v);
	ask_to_revoke(c.version, code);
	if (code == KEY_COMPROMISE)
		condemn_key(&c, &v);
	else
		stop_renewal(&c);
	if (ordered && (code != KEY_COMPROMISE || order_key == v.key_version))
	{
		end_open_order(&c, "what it was to replace is being revoked");
		if (order_key != 0)
			version_discard_key(&c, order_key);
		ordered = false;
	}
	if (!ordered)
		certificate_enter(&c, certificate_rest(&c), NULL);
	if (code == KEY_COMPROMISE && c.auto_renew && c.next_version == 0 &&
		!ordered)
		make_due(&c);
	audit(AUDIT_CHANGED, "certificate.revoke", "certificate", c.name,
		  psprintf("{\"reason\": \"%s\"}", reason));
	(void) job_request(CERTIFICATE_JOB);
	worker_wake_at_commit(WORKER_JOB);
	PG_RETURN_VOID();
}

/* mlint.certificate_drop(id) */
Datum
mlint_certificate_drop(PG_FUNCTION_ARGS)
{
	Oid			types[] = {UUIDOID};
	Datum		values[1];
	Certificate c;
	StoredSecret secret;

	require_writable(fcinfo);
	(void) lock_open_order(required_uuid(fcinfo, 0, "id"));
	required_certificate(fcinfo, &c);
	values[0] = UUIDPGetDatum(&c.id);
	end_open_order(&c, "the certificate was dropped");
	owner_do(NULL, "DELETE FROM mlint.certificate WHERE id = $1",
			 SPI_OK_DELETE, 1, types, values, NULL);
	if (store_find(c.key_secret, &secret))
		store_drop(c.key_secret);
	audit(AUDIT_CHANGED, "certificate.drop", "certificate", c.name, NULL);
	PG_RETURN_VOID();
}

/* ---- get ---- */

/* The first certificate of a chain that we have written. */
static char *
leaf_of(const char *chain)
{
	static const char end[] = "-----END CERTIFICATE-----\n";
	const char *at = strstr(chain, end);

	return at ? pnstrdup(chain, at - chain + strlen(end)) : pstrdup(chain);
}

/* What old inventories know a certificate by, hex. */
static char *
sha1_of(const char *leaf)
{
	uint8		digest[CHAIN_SHA1_BYTES];
	char	   *hex = palloc(2 * sizeof(digest) + 1);

	if (!chain_sha1(leaf, digest))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a certificate that was stored cannot be read")));
	crypto_hex(digest, sizeof(digest), hex);
	return hex;
}

/*
 * mlint.certificate_get(id). Columns of the query are those of the result but
 * for leaf (4) and fingerprint_sha1 (7), which are made from the chain.
 */
Datum
mlint_certificate_get(PG_FUNCTION_ARGS)
{
	enum
	{
		NAME, STATE, CHAIN, LEAF, SERIAL, SHA256, SHA1, ISSUER, NOT_BEFORE,
		NOT_AFTER, DOMAINS, KEY_SECRET, KEY_VERSION, COLUMNS
	};
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	Oid			types[] = {UUIDOID};
	Datum		args[] = {PG_GETARG_DATUM(0)};
	TupleDesc	desc;
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS];
	HeapTuple	row;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT c.name, c.state, v.chain, NULL::text, v.serial,"
			  " pg_catalog.encode(v.fingerprint, 'hex'), NULL::text, v.issuer,"
			  " v.not_before, v.not_after, c.domains, c.key_secret,"
			  " v.key_version FROM mlint.certificate c"
			  " LEFT JOIN mlint.certificate_version v ON v.id = c.version_id"
			  " WHERE c.id = $1", SPI_OK_SELECT, 1, types, args, NULL);
	if (SPI_processed == 0)
		certificate_unknown(PG_GETARG_UUID_P(0));
	for (int i = 0; i < COLUMNS; i++)
		values[i] = owner_column(i + 1, &nulls[i]);
	if (!nulls[CHAIN])
	{
		char	   *leaf = leaf_of(TextDatumGetCString(values[CHAIN]));

		values[LEAF] = CStringGetTextDatum(leaf);
		values[SHA1] = CStringGetTextDatum(sha1_of(leaf));
		nulls[LEAF] = nulls[SHA1] = false;
	}
	MemoryContextSwitchTo(caller);
	row = heap_form_tuple(desc, values, nulls);
	owner_end(&scope);
	PG_RETURN_DATUM(HeapTupleGetDatum(row));
}
