/*
 * issue.c
 *		mlint.certificate_issue(): what is refused, and the row of what is not.
 *
 * Nothing is asked of anybody here: all that can be said without the authority
 * is said at once, the rest is the job's. A name is used once. Asking twice for
 * the same is an error and no second certificate, because scripts that are run
 * again would use up what an authority gives away in a week.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/lifecycle.h"
#include "certs/solver.h"
#include "common/argument.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/owner.h"
#include "miscadmin.h"
#include "secrets/store.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_certificate_issue);

#define NAME_MAX_BYTES	200
#define NAME_CHARACTERS \
	"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
#define SECRET_PREFIX	"certificates/"

/* What makes a row of mlint.certificate. */
typedef struct Request
{
	CertificateName *names;
	int			nnames;
	int			account;
	char	   *challenge;
	char	   *solver;			/* NULL: the gateway */
	char	   *key_type;
	bool		auto_renew;
	Interval   *renew_before;	/* NULL: not said */
	char	   *name;
	bool		reuse_key;
} Request;

char *
certificate_name(const char *given, const char *first)
{
	StringInfoData name;

	if (given)
	{
		int			len = strlen(given);

		if (len < 1 || len > NAME_MAX_BYTES ||
			strspn(given, NAME_CHARACTERS) != len)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_NAME),
					 errmsg("invalid name of a certificate"),
					 errdetail("A name is 1 to %d characters: letters of the English alphabet, digits, and any of _ . -",
							   NAME_MAX_BYTES)));
		return pstrdup(given);
	}
	initStringInfo(&name);
	for (const char *p = first; *p && name.len < NAME_MAX_BYTES - 10; p++)
	{
		if (*p == '*')
			appendStringInfoString(&name, "wildcard");
		else
			appendStringInfoChar(&name, strchr(NAME_CHARACTERS, *p) ? *p : '-');
	}
	return name.data;
}

char *
certificate_secret(const char *name)
{
	return psprintf(SECRET_PREFIX "%s", name);
}

ArrayType *
certificate_domains(const CertificateName *names, int n)
{
	Datum	   *elements = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		elements[i] = CStringGetTextDatum(names[i].text);
	return construct_array(elements, n, TEXTOID, -1, false, TYPALIGN_INT);
}

/* The account that is to be asked, kept from going meanwhile. */
static int
find_account(const char *name)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	bool		isnull;
	bool		open;
	int			id;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT id, status NOT IN ('deactivating', 'deactivated')"
			  " FROM mlint.acme_account WHERE name = $1 FOR KEY SHARE",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("ACME account \"%s\" does not exist", name),
				 errhint("The view mlint.acme_accounts lists them; mlint.acme_account_create() makes one.")));
	id = DatumGetInt32(owner_column(1, &isnull));
	open = DatumGetBool(owner_column(2, &isnull));
	owner_end(&scope);
	if (!open)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("ACME account \"%s\" was deactivated", name),
				 errhint("Use another; mlint.acme_account_create() makes one.")));
	return id;
}

static void
check_challenge(const char *challenge)
{
	if (strcmp(challenge, "http-01") != 0 && strcmp(challenge, "dns-01") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("there is no type of challenge \"%s\"", challenge),
				 errhint("Types are http-01 and dns-01.")));
}

static void
check_key_type(const char *type)
{
	static const char *const types[] = {"ec256", "ec384", "rsa2048", "rsa4096"};

	for (int i = 0; i < lengthof(types); i++)
	{
		if (strcmp(types[i], type) == 0)
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("there is no type of key \"%s\"", type),
			 errhint("Types are ec256, ec384, rsa2048 and rsa4096.")));
}

static void
check_renew_before(const Interval *i)
{
	Interval	zero = {0};

	if (i && !DatumGetBool(DirectFunctionCall2(interval_gt,
											   IntervalPGetDatum(i),
											   IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("renew_before must be longer than zero")));
}

static bool
required_bool(FunctionCallInfo fcinfo, int n, const char *what)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
	return PG_GETARG_BOOL(n);
}

static char *
optional_text(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* The arguments, checked. */
static void
take_request(FunctionCallInfo fcinfo, Request *r)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("domains must not be null")));
	r->challenge = required_text(fcinfo, 2, "challenge");
	check_challenge(r->challenge);
	r->names = certificate_names(PG_GETARG_ARRAYTYPE_P(0), r->challenge,
								 &r->nnames);
	r->key_type = required_text(fcinfo, 4, "key_type");
	check_key_type(r->key_type);
	r->auto_renew = required_bool(fcinfo, 5, "auto_renew");
	r->renew_before = PG_ARGISNULL(6) ? NULL : PG_GETARG_INTERVAL_P(6);
	check_renew_before(r->renew_before);
	r->name = certificate_name(optional_text(fcinfo, 7), r->names[0].text);
	r->reuse_key = required_bool(fcinfo, 8, "reuse_key");
	r->account = find_account(required_text(fcinfo, 1, "account"));
	r->solver = solver_check(r->challenge, optional_text(fcinfo, 3),
							 GetUserId());
}

/* Raise that the name is taken. */
static void
pg_attribute_noreturn()
name_taken(const char *name, bool by_secret)
{
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 by_secret ? errmsg("secret \"%s\" exists already",
								certificate_secret(name)) :
			 errmsg("certificate \"%s\" exists already", name),
			 errhint("Give another name with name => ...; the view mlint.certificates lists those there are.")));
}

static pg_uuid_t
insert_certificate(const Request *r)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID, TEXTARRAYOID, INT4OID, TEXTOID, TEXTOID,
	TEXTOID, BOOLOID, INTERVALOID, BOOLOID, TEXTOID, OIDOID};
	Datum		values[11];
	char		nulls[11];
	pg_uuid_t	id;
	bool		isnull;

	memset(nulls, ' ', sizeof(nulls));
	values[0] = CStringGetTextDatum(r->name);
	values[1] = PointerGetDatum(certificate_domains(r->names, r->nnames));
	values[2] = Int32GetDatum(r->account);
	values[3] = CStringGetTextDatum(r->challenge);
	values[4] = r->solver ? CStringGetTextDatum(r->solver) : 0;
	nulls[4] = r->solver ? ' ' : 'n';
	values[5] = CStringGetTextDatum(r->key_type);
	values[6] = BoolGetDatum(r->auto_renew);
	values[7] = r->renew_before ? IntervalPGetDatum(r->renew_before) : 0;
	nulls[7] = r->renew_before ? ' ' : 'n';
	values[8] = BoolGetDatum(r->reuse_key);
	values[9] = CStringGetTextDatum(certificate_secret(r->name));
	values[10] = ObjectIdGetDatum(GetUserId());
	owner_begin(&scope);
	owner_run(NULL,
			  "INSERT INTO mlint.certificate (name, domains, account_id,"
			  " challenge, solver, key_type, auto_renew, renew_before,"
			  " reuse_key, key_secret, created_by, state, due_at)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11,"
			  " 'REQUESTED', pg_catalog.clock_timestamp())"
			  " ON CONFLICT (name) DO NOTHING RETURNING id",
			  SPI_OK_INSERT_RETURNING, 11, types, values, nulls);
	if (SPI_processed == 0)
		name_taken(r->name, false);
	id = *DatumGetUUIDP(owner_column(1, &isnull));
	owner_end(&scope);
	return id;
}

/*
 * mlint.certificate_issue(domains, account, challenge, solver, key_type,
 * auto_renew, renew_before, name, reuse_key)
 */
Datum
mlint_certificate_issue(PG_FUNCTION_ARGS)
{
	Request		r;
	StoredSecret secret;
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	require_writable(fcinfo);
	take_request(fcinfo, &r);
	*id = insert_certificate(&r);
	if (store_find(certificate_secret(r.name), &secret))
		name_taken(r.name, true);
	audit(AUDIT_CHANGED, "certificate.issue", "certificate", r.name,
		  psprintf("{\"id\": \"%s\", \"names\": %d}",
				   certificate_id_text(id), r.nnames));
	(void) job_request(CERTIFICATE_JOB);
	(void) job_request(CERTIFICATE_EXPIRY_JOB);
	worker_wake_at_commit(WORKER_JOB);
	PG_RETURN_UUID_P(id);
}
