/*
 * import.c
 *		Certificates from elsewhere: signing requests for them, and taking them
 *		over.
 *
 * An imported certificate is a certificate like others but that it has no
 * account: nobody renews it, and it is watched, warned about and pushed all the
 * same. What is imported is verified as what is issued is; that it is for
 * nobody's use, or that its key is another's, is said at once.
 *
 * A key that a signing request was made for is a version of the certificate's
 * secret already, and never leaves it: certificate_import(chain, NULL, name)
 * finds it there.
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
#include "common/peertext.h"
#include "common/plaintext.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "secrets/store.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_certificate_csr);
PG_FUNCTION_INFO_V1(mlint_certificate_import);

static char *
optional_text(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* The certificate of a name, locked; false: there is none. */
static bool
lock_named(const char *name, Certificate *c)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	pg_uuid_t	id;
	bool		isnull;
	bool		found;

	owner_begin(&scope);
	owner_run(NULL, "SELECT id FROM mlint.certificate WHERE name = $1",
			  SPI_OK_SELECT, 1, types, values, NULL);
	found = SPI_processed > 0;
	if (found)
		id = *DatumGetUUIDP(owner_column(1, &isnull));
	owner_end(&scope);
	return found && certificate_lock(&id, c);
}

/* Raise when an authority issues the certificate of that name. */
static void
require_imported(const char *name, const Certificate *c)
{
	if (c->account != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("certificate \"%s\" exists already, and is issued by an authority",
						name),
				 errhint("Give another name.")));
}

/* Whoever stores keys in a secret that there is must be allowed to. */
static void
require_secret(const char *secret, const char *action)
{
	StoredSecret stored;

	if (store_find(secret, &stored))
		secret_require(secret, SECRET_WRITE, action);
}

/* ---- signing requests ---- */

/* A key, stored, and a request with it, PEM. */
static char *
make_request(const CertificateName *names, int n, const char *key_type,
			 const char *name)
{
	char	   *volatile key = key_generate(key_type);
	char	   *volatile pem = NULL;

	PG_TRY();
	{
		size_t		len;
		char	   *der = csr_create(key, names, n, &len);

		pem = csr_to_pem(der, len);
		(void) version_store_key(certificate_secret(name), name, key,
								 GetUserId());
	}
	PG_FINALLY();
	{
		crypto_wipe(key, strlen(key));
	}
	PG_END_TRY();
	return pem;
}

/* mlint.certificate_csr(domains, key_type, name) */
Datum
mlint_certificate_csr(PG_FUNCTION_ARGS)
{
	CertificateName *names;
	int			n;
	char	   *key_type = required_text(fcinfo, 1, "key_type");
	char	   *name;
	char	   *pem;
	Certificate c;
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false};

	require_writable(fcinfo);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("domains must not be null")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	names = certificate_names(PG_GETARG_ARRAYTYPE_P(0), NULL, &n);
	name = certificate_name(optional_text(fcinfo, 2), names[0].text);
	if (lock_named(name, &c))
		require_imported(name, &c);
	require_secret(certificate_secret(name), "certificate.csr");
	pem = make_request(names, n, key_type, name);
	audit(AUDIT_CHANGED, "certificate.csr", "certificate", name, NULL);
	values[0] = CStringGetTextDatum(pem);
	values[1] = CStringGetTextDatum(certificate_secret(name));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/* ---- importing ---- */

/* Raise why a chain or a key is not taken. name NULL: it is not known yet. */
static void
pg_attribute_noreturn()
refuse(const char *name, const char *what, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 name ? errmsg("the %s of certificate \"%s\" cannot be imported: %s",
						   what, name, why) :
			 errmsg("the %s cannot be imported: %s", what, why)));
}

/* The key argument, as we keep keys; the caller wipes it. */
static char *
given_key(Datum argument, const char *name)
{
	Plaintext	given = plaintext_take(argument);
	char	   *pem = pnstrdup(given.data, given.len);
	char	   *error = NULL;
	char	   *key = key_read(pem, &error);

	crypto_wipe(pem, given.len);
	plaintext_wipe(&given);
	if (key == NULL)
		refuse(name, "key", error);
	return key;
}

/* The latest version of the certificate's secret; *version says which. */
static char *
requested_key(const char *name, int *version)
{
	char	   *secret = certificate_secret(name);
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(secret)};
	SecretValue value;
	bool		isnull;

	*version = 0;
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT v.version FROM mlint.secret s"
			  " JOIN mlint.secret_version v ON v.secret_id = s.id"
			  " WHERE s.name = $1 AND v.destroyed_at IS NULL"
			  " ORDER BY v.version DESC LIMIT 1",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed > 0)
		*version = DatumGetInt32(owner_column(1, &isnull));
	owner_end(&scope);
	if (*version == 0 ||
		!secret_read(secret, psprintf("%d", *version), &value))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no key for certificate \"%s\"", name),
				 errhint("Give the key, or the name that mlint.certificate_csr() was called with.")));
	return value.data;
}

/* A leaf alone may be all there is; more often something was left out. */
static void
notice_short_chain(const char *name, const Chain *chain)
{
	if (chain->length == 1 && strcmp(chain->issuer, chain->subject) != 0)
		ereport(NOTICE,
				(errmsg("the chain of certificate \"%s\" is the certificate alone",
						name),
				 errdetail("Its issuer is \"%s\".", chain->issuer),
				 errhint("Unless all clients know that issuer, import the chain with its certificate.")));
}

static Chain *
given_chain(const char *pem, const char *name)
{
	char	   *error = NULL;
	Chain	   *chain = chain_read(pem, &error);

	if (chain == NULL)
		refuse(name, "chain", error);
	if (chain->nnames == 0)
		refuse(name, "chain",
			   "it is for no host name and no address");
	return chain;
}

/* The certificate of that name, made if there is none, and locked. */
static void
take_certificate(const char *name, const Chain *chain, Certificate *c)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID, TEXTOID, OIDOID};
	Datum		values[4];
	Datum	   *names = palloc(chain->nnames * sizeof(Datum));

	for (int i = 0; i < chain->nnames; i++)
		names[i] = CStringGetTextDatum(chain->names[i]);
	values[0] = CStringGetTextDatum(name);
	values[1] = PointerGetDatum(construct_array(names, chain->nnames, TEXTOID,
												-1, false, TYPALIGN_INT));
	values[2] = CStringGetTextDatum(certificate_secret(name));
	values[3] = ObjectIdGetDatum(GetUserId());
	owner_do(NULL,
			 "INSERT INTO mlint.certificate AS c (name, domains, auto_renew,"
			 " key_secret, created_by, state)"
			 " VALUES ($1, $2, false, $3, $4, 'REQUESTED')"
			 " ON CONFLICT (name) DO UPDATE SET domains = $2"
			 " WHERE c.account_id IS NULL",
			 SPI_OK_INSERT, 4, types, values, NULL);
	if (!lock_named(name, c))
		elog(ERROR, "a certificate is gone");
	require_imported(name, c);
}

/* Is it what is in use, or on the way to be, and is its key there? */
static bool
is_in_use(const Certificate *c, const Chain *chain)
{
	Oid			types[] = {INT8OID, INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(c->version),
		Int64GetDatum(c->next_version),
		CStringGetTextDatum(chain->pem),
	CStringGetTextDatum(c->key_secret)};

	return owner_do(NULL,
					"SELECT FROM mlint.certificate_version v"
					" JOIN mlint.secret s ON s.name = $4"
					" JOIN mlint.secret_version k ON k.secret_id = s.id"
					" AND k.version = v.key_version AND k.destroyed_at IS NULL"
					" WHERE v.id = coalesce(nullif($2, 0), $1) AND v.chain = $3",
					SPI_OK_SELECT, 4, types, values, NULL);
}

/* Verify, store the key unless it is there already, and put it to use. */
static pg_uuid_t
import(const char *name, const Chain *chain, const char *key,
	   int key_version)
{
	Certificate c;
	char	   *fault = chain_verify(chain, NULL, 0, key,
									 GetCurrentTimestamp());

	if (fault)
		refuse(name, "chain", fault);
	require_secret(certificate_secret(name), "certificate.import");
	take_certificate(name, chain, &c);
	if (is_in_use(&c, chain))
	{
		ereport(NOTICE,
				(errmsg("certificate \"%s\" has that chain already", name)));
		return c.id;
	}
	notice_short_chain(name, chain);
	if (key_version == 0)
		key_version = version_store_key(c.key_secret, name, key, GetUserId());
	audit(AUDIT_CHANGED, "certificate.import", "certificate", name,
		  psprintf("{\"id\": \"%s\", \"serial\": \"%s\"}",
				   certificate_id_text(&c.id), chain->serial));
	certificate_take(&c, version_insert(&c, chain, key_version));
	(void) job_request(CERTIFICATE_EXPIRY_JOB);
	return c.id;
}

/* mlint.certificate_import(chain, key, name) */
Datum
mlint_certificate_import(PG_FUNCTION_ARGS)
{
	char	   *name;
	Chain	   *chain;
	char	   *volatile key = NULL;
	int		   *key_version = palloc0(sizeof(int));
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	HIDE_STATEMENT_BEGIN();
	require_writable(fcinfo);
	name = optional_text(fcinfo, 2);
	if (name)
		name = certificate_name(name, NULL);
	chain = given_chain(required_text(fcinfo, 0, "chain"), name);
	name = certificate_name(name, chain->names[0]);
	key = PG_ARGISNULL(1) ? requested_key(name, key_version) :
		given_key(PG_GETARG_DATUM(1), name);
	PG_TRY();
	{
		*id = import(name, chain, key, *key_version);
	}
	PG_FINALLY();
	{
		crypto_wipe(key, strlen(key));
	}
	PG_END_TRY();
	HIDE_STATEMENT_END();
	PG_RETURN_UUID_P(id);
}
