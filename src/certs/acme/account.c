/*
 * account.c
 *		The functions about accounts at certificate authorities.
 *
 * They write down what is wanted; the job certificates does it. The account's
 * key is the secret acme/<name>, made here. An account that was never
 * registered, or was deactivated, is created again under its name, also when
 * its authority could not be told, for that may be gone, or the key; one that
 * is in use is never replaced.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "certs/acme/acme.h"
#include "certs/acme/binding.h"
#include "certs/certs.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/credential.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "secrets/secrets.h"
#include "secrets/store.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_acme_account_create);
PG_FUNCTION_INFO_V1(mlint_acme_account_rollover);
PG_FUNCTION_INFO_V1(mlint_acme_account_deactivate);
PG_FUNCTION_INFO_V1(mlint_acme_account_wait);

#define NAME_MAX_CHARS		63
#define EMAIL_MAX		254
#define LIMIT_MAX_DAYS	366
/* Somebody who waits looks again after so long in any case. */
#define LOOK_MS			1000

/* Directories that have a name. */
static const char *const directories[][2] = {
	{"letsencrypt", "https://acme-v02.api.letsencrypt.org/directory"},
	{"letsencrypt-staging",
	"https://acme-staging-v02.api.letsencrypt.org/directory"}
};

/* ---- arguments ---- */

static void
check_name(const char *name)
{
	size_t		len = strlen(name);

	if (len == 0 || len > NAME_MAX_CHARS ||
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789_.-") != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of an ACME account"),
				 errdetail("A name is 1 to %d characters: letters of the English alphabet, digits, and any of _ . -",
						   NAME_MAX_CHARS)));
}

/* A directory by its name, or by its URL. */
static const char *
directory_url(const char *given)
{
	Origins		origins;

	for (int i = 0; i < lengthof(directories); i++)
	{
		if (strcmp(given, directories[i][0]) == 0)
			return directories[i][1];
	}
	if (strstr(given, "://") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("there is no ACME directory \"%s\"", given),
				 errhint("Give its URL, or one of: letsencrypt, letsencrypt-staging.")));
	http_url_check(given, "directory_url");
	if (!origins_begin(&origins, given))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("directory_url is no URL of an ACME directory"),
				 errhint("Give an absolute URL, such as https://acme.example.com/directory.")));
	/* RFC 8555, 6.1 */
	if (strncmp(origins.origin[0], "https:", 6) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("directory_url must begin with https://"),
				 errhint("ACME is spoken by https only; ca names the certificates that the authority's server is trusted by, if the system's are not enough.")));
	return given;
}

/* An address that a contact can be made of (RFC 8555, 7.3). */
static void
check_email(const char *email)
{
	const char *at = strchr(email, '@');
	bool		ok = at && at > email && at[1] && strchr(at + 1, '@') == NULL &&
	strlen(email) <= EMAIL_MAX;

	for (const char *p = email; ok && *p; p++)
		ok = *p > ' ' && *p <= '~' && strchr(",;?&%\"<>()\\", *p) == NULL;
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("email is not one address of the form name@host"),
				 errdetail("It is in ASCII, at most %d characters, and has none of , ; ? & %% \" < > ( ) \\ in it.",
						   EMAIL_MAX)));
}

static void
check_ca(Jsonb *ca, Oid role, const char *what)
{
	JsonbValue	value;
	Credential	credential;
	char	   *option = psprintf("ca of %s", what);

	if (JB_ROOT_IS_SCALAR(ca))
		value.type = jbvString;
	else
	{
		value.type = jbvBinary;
		value.val.binary.data = &ca->root;
		value.val.binary.len = VARSIZE(ca) - VARHDRSZ;
	}
	credential = credential_parse(&value, option);
	credential_check(&credential, role, option);
}

static void
check_limit(int max_orders, Interval *per)
{
	/* More would be beyond the times that there are. */
	Interval	longest = {.day = LIMIT_MAX_DAYS};

	if (max_orders < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_orders must be at least 1")));
	if (per->month < 0 || per->day < 0 || per->time < 0 ||
		(per->month == 0 && per->day == 0 && per->time == 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_orders_per must be longer than nothing")));
	if (DatumGetBool(DirectFunctionCall2(interval_gt, IntervalPGetDatum(per),
										 IntervalPGetDatum(&longest))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_orders_per must not be longer than %d days",
						LIMIT_MAX_DAYS)));
}

static void
pg_attribute_noreturn()
no_such_account(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("ACME account \"%s\" does not exist", name),
			 errhint("The view mlint.acme_accounts lists them; mlint.acme_account_create() makes one.")));
}

/* ---- creating ---- */

/* A new key, as a version of the account's secret that is (not) current. */
static int
store_key(const char *secret, bool current)
{
	SecretAbout about = {"service_account", "key of an ACME account", NULL};
	size_t		len;
	char	   *key = jws_key_generate(&len);
	int			version = 0;

	PG_TRY();
	{
		version = store_put_version(secret, key, len, &about, current);
	}
	PG_FINALLY();
	{
		crypto_wipe(key, len);
	}
	PG_END_TRY();
	return version;
}

/* What there is under the name: may it be created again, and with which key? */
typedef struct Predecessor
{
	bool		exists;
	bool		closed;			/* deactivated, or that has been tried: its
								 * key is dead */
	int			key_version;
} Predecessor;

static Predecessor
find_predecessor(const char *name)
{
	static Oid	types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	Predecessor p = {false};
	OwnerScope	scope;
	bool		isnull;
	bool		used;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT c.closed, a.key_version, NOT c.closed AND a.url IS NOT NULL"
			  " FROM mlint.acme_account a CROSS JOIN LATERAL"
			  " (SELECT a.status = 'deactivated'"
			  " OR (a.status = 'deactivating' AND a.attempts > 0) AS closed) c"
			  " WHERE a.name = $1 FOR UPDATE OF a",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed > 0)
	{
		p.exists = true;
		p.closed = DatumGetBool(owner_column(1, &isnull));
		p.key_version = DatumGetInt32(owner_column(2, &isnull));
		used = DatumGetBool(owner_column(3, &isnull));
		if (used)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("ACME account \"%s\" already exists", name),
					 errhint("It gets another key with mlint.acme_account_rollover(), and is closed with mlint.acme_account_deactivate(); then it can be created again.")));
	}
	owner_end(&scope);
	return p;
}

/* The version of the key that the account begins with. */
static int
first_key(const char *name, const char *secret, const Predecessor *p)
{
	StoredSecret stored;

	if (p->exists && !p->closed)
		return p->key_version;
	if (!p->exists && store_find(secret, &stored))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("ACME account \"%s\" cannot be created: secret \"%s\", which would be its key, exists already",
						name, secret)));
	return store_key(secret, true);
}

/*
 * mlint.acme_account_create(name, directory_url, email, eab, ca, max_orders,
 * max_orders_per)
 */
Datum
mlint_acme_account_create(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {TEXTOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID,
	INT4OID, INTERVALOID, TEXTOID, INT4OID, OIDOID};
	char	   *name = required_text(fcinfo, 0, "name");
	const char *url;
	char	   *secret;
	char	   *what;
	Predecessor predecessor;
	Datum		values[10];
	char		nulls[] = "          ";
	StringInfoData details;

	HIDE_STATEMENT_BEGIN();
	require_writable(fcinfo);
	check_name(name);
	what = psprintf("ACME account \"%s\"", name);
	url = directory_url(required_text(fcinfo, 1, "directory_url"));
	if (!PG_ARGISNULL(2))
		check_email(text_to_cstring(PG_GETARG_TEXT_PP(2)));
	if (!PG_ARGISNULL(3))
		binding_check(PG_GETARG_JSONB_P(3), GetUserId(), what);
	if (!PG_ARGISNULL(4))
		check_ca(PG_GETARG_JSONB_P(4), GetUserId(), what);
	HIDE_STATEMENT_END();
	if (PG_ARGISNULL(5) || PG_ARGISNULL(6))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("max_orders and max_orders_per must not be null")));
	check_limit(PG_GETARG_INT32(5), PG_GETARG_INTERVAL_P(6));

	secret = psprintf("acme/%s", name);
	predecessor = find_predecessor(name);
	initStringInfo(&details);
	appendStringInfoString(&details, "{\"directory_url\": ");
	escape_json(&details, url);
	appendStringInfoChar(&details, '}');
	audit(AUDIT_CHANGED, "acme_account.create", "acme_account", name,
		  details.data);
	for (int i = 0; i < 7; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : fcinfo->args[i].value;
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	values[1] = CStringGetTextDatum(url);
	values[7] = CStringGetTextDatum(secret);
	values[8] = Int32GetDatum(first_key(name, secret, &predecessor));
	values[9] = ObjectIdGetDatum(GetUserId());
	owner_do(NULL,
			 "INSERT INTO mlint.acme_account (name, directory_url, email, eab,"
			 " ca, max_orders, max_orders_per, key_secret, key_version,"
			 " created_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
			 " ON CONFLICT (name) DO UPDATE SET directory_url = $2, email = $3,"
			 " eab = $4, ca = $5, max_orders = $6, max_orders_per = $7,"
			 " key_version = $9, new_key_version = NULL, created_by = $10,"
			 " status = 'pending', url = NULL, orders_url = NULL,"
			 " directory = NULL, directory_at = NULL, not_before = '-infinity',"
			 " next_at = pg_catalog.clock_timestamp(), attempts = 0,"
			 " error = NULL", SPI_OK_INSERT, lengthof(types), types, values,
			 nulls);
	(void) job_request(CERTIFICATE_JOB);
	worker_wake_at_commit(WORKER_JOB);
	PG_RETURN_VOID();
}

/* ---- changing ---- */

/*
 * Lock it for the function; what is under way about it must be over. Returns
 * its secret.
 */
static char *
lock_account(FunctionCallInfo fcinfo, const char *name, const char *must_be)
{
	static Oid	types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	char	   *status;
	char	   *secret;
	bool		isnull;

	require_writable(fcinfo);
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT CASE WHEN new_key_version IS NULL THEN status"
			  " ELSE 'given another key already' END, key_secret"
			  " FROM mlint.acme_account WHERE name = $1 FOR UPDATE",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		no_such_account(name);
	status = TextDatumGetCString(owner_column(1, &isnull));
	if (strcmp(status, must_be) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("ACME account \"%s\" is %s", name, status),
				 errhint("It must be %s; mlint.acme_accounts shows how it is.",
						 must_be)));
	secret = MemoryContextStrdup(caller,
								 TextDatumGetCString(owner_column(2, &isnull)));
	owner_end(&scope);
	return secret;
}

static void
change(const char *sql, const char *name, int version)
{
	static Oid	types[] = {TEXTOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(name), Int32GetDatum(version)};

	owner_do(NULL, sql, SPI_OK_UPDATE, 2, types, values, NULL);
	(void) job_request(CERTIFICATE_JOB);
	worker_wake_at_commit(WORKER_JOB);
}

/* mlint.acme_account_rollover(name) */
Datum
mlint_acme_account_rollover(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "name");
	char	   *secret = lock_account(fcinfo, name, "valid");
	int			version = store_key(secret, false);

	/* The server must not have a key that a crash takes away from us. */
	job_commit_durably();
	audit(AUDIT_CHANGED, "acme_account.rollover", "acme_account", name,
		  psprintf("{\"version\": %d}", version));
	change("UPDATE mlint.acme_account SET new_key_version = $2, attempts = 0,"
		   " error = NULL, next_at = pg_catalog.clock_timestamp()"
		   " WHERE name = $1", name, version);
	PG_RETURN_VOID();
}

/* mlint.acme_account_deactivate(name) */
Datum
mlint_acme_account_deactivate(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "name");

	(void) lock_account(fcinfo, name, "valid");
	audit(AUDIT_CHANGED, "acme_account.deactivate", "acme_account", name,
		  NULL);
	change("UPDATE mlint.acme_account SET status = 'deactivating',"
		   " attempts = $2, error = NULL,"
		   " next_at = pg_catalog.clock_timestamp() WHERE name = $1", name, 0);
	PG_RETURN_VOID();
}

/* ---- waiting ---- */

/* Its status, and what is wrong, if anything is; is something under way? */
static bool
look_at(const char *name, char **status, char **error)
{
	static Oid	types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext old;
	OwnerScope	scope;
	SPIPlanPtr	plan;
	bool		isnull;
	bool		rests;

	owner_begin(&scope);
	plan = SPI_prepare("SELECT next_at IS NULL OR status = 'failed', status,"
					   " error FROM mlint.acme_account WHERE name = $1", 1,
					   types);
	if (plan == NULL ||
		SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(),
							 InvalidSnapshot, true, false,
							 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look at an account");
	if (SPI_processed == 0)
		no_such_account(name);
	rests = DatumGetBool(owner_column(1, &isnull));
	old = MemoryContextSwitchTo(caller);
	*status = TextDatumGetCString(owner_column(2, &isnull));
	*error = owner_text(3);
	MemoryContextSwitchTo(old);
	owner_end(&scope);
	return rests;
}

/* mlint.acme_account_wait(name, timeout) */
Datum
mlint_acme_account_wait(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "name");
	char	   *status;
	char	   *error;
	TimestampTz deadline;
	bool		rests;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("timeout must not be null")));
	deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													   TimestampTzGetDatum(GetCurrentTimestamp()),
													   PG_GETARG_DATUM(1)));
	ConditionVariablePrepareToSleep(worker_delivered());
	while (!(rests = look_at(name, &status, &error)) &&
		   GetCurrentTimestamp() < deadline)
		(void) ConditionVariableTimedSleep(worker_delivered(),
										   Min((deadline - GetCurrentTimestamp()) / 1000 + 1,
											   LOOK_MS), PG_WAIT_EXTENSION);
	ConditionVariableCancelSleep();
	if (!rests)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_TIMEOUT),
				 errmsg("ACME account \"%s\" is still %s", name, status),
				 error ? errdetail("%s", error) : 0));
	if (error)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_API),
				 errmsg("ACME account \"%s\": %s", name, error),
				 errhint(strcmp(status, "failed") == 0 ?
						 "It is tried again from time to time; or create it again, with what is right." :
						 "The account is %s, as it was before.", status)));
	PG_RETURN_TEXT_P(cstring_to_text(status));
}
