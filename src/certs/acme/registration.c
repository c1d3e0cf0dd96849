/*
 * registration.c
 *		The steps of an account: it is registered, gets another key, is closed.
 *
 *	pending, failed		newAccount				-> valid
 *	valid, new_key_version
 *						keyChange				-> valid, with that key
 *	deactivating		status "deactivated"	-> deactivated
 *
 * Each may be repeated after a crash. newAccount with the same key finds the
 * account that it has made. Of a key change whose answer was lost nobody knows
 * which key the server has: it is tried once more, and when it is refused the
 * server is asked whether it knows the new key (onlyReturnExisting). Only
 * accountDoesNotExist means no, and only then is that key destroyed. Until it
 * is clear nothing else of the account is sent; nor while the change is under
 * way, since what was signed by the old key would come too late.
 *
 * A registration that the server refuses is tried again from time to time, for
 * what was wrong may be mended there (a binding, terms to be agreed to).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/acme/acme.h"
#include "certs/acme/binding.h"
#include "common/audit.h"
#include "common/owner.h"
#include "secrets/store.h"
#include "secrets/secrets.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

/* A refused registration: from a minute to a day, doubled each time. */
#define REFUSED_MIN_S	60
#define REFUSED_MAX_S	(24 * 3600)

typedef enum AccountStep
{
	STEP_REGISTER,
	STEP_KEY_CHANGE,
	STEP_KEY_CHECK,				/* which one does the server know? */
	STEP_DEACTIVATE
} AccountStep;

/* ---- the row ---- */

static bool
is_unregistered(const AcmeAccount *account)
{
	return strcmp(account->status, "pending") == 0 ||
		strcmp(account->status, "failed") == 0;
}

/* Nothing more is to be done. */
static void
rest(const AcmeAccount *account, const char *status, const char *error)
{
	static Oid	types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(account->id),
		CStringGetTextDatum(status),
	error ? CStringGetTextDatum(error) : (Datum) 0};

	ACME_DO("UPDATE mlint.acme_account SET status = $2, error = $3,"
			" attempts = 0, next_at = NULL, new_key_version = NULL"
			" WHERE id = $1", SPI_OK_UPDATE, types, values,
			error ? NULL : "  n");
}

static void
wait_until(const AcmeAccount *account, const char *status, const char *error,
		   int attempts, TimestampTz until)
{
	static Oid	types[] = {INT4OID, TEXTOID, TEXTOID, INT4OID,
	TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(account->id),
		CStringGetTextDatum(status), CStringGetTextDatum(error),
	Int32GetDatum(attempts), TimestampTzGetDatum(until)};

	ACME_DO("UPDATE mlint.acme_account SET status = $2, error = $3,"
			" attempts = $4, next_at = $5 WHERE id = $1", SPI_OK_UPDATE, types,
			values, NULL);
}

/* Its orders need not wait any longer, for better or worse. */
static void
wake_orders(const AcmeAccount *account)
{
	static Oid	types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(account->id)};

	ACME_DO("UPDATE mlint.acme_order SET next_at = pg_catalog.clock_timestamp()"
			" WHERE account_id = $1 AND finished_at IS NULL"
			" AND state <> 'authorizing'"
			" AND next_at > pg_catalog.clock_timestamp()",
			SPI_OK_UPDATE, types, values, NULL);
}

/* ---- what it wants ---- */

static char *
registration(AcmeAccount *account, const char *url)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"termsOfServiceAgreed\": true");
	if (account->email)
	{
		appendStringInfoString(&json, ", \"contact\": [");
		escape_json(&json, psprintf("mailto:%s", account->email));
		appendStringInfoChar(&json, ']');
	}
	if (account->eab)
		appendStringInfo(&json, ", \"externalAccountBinding\": %s",
						 binding_sign(account->eab, account_key(account), url));
	appendStringInfoChar(&json, '}');
	return json.data;
}

/* Nobody knows which key the server has: it is asked. */
static void
doubt_key(Errand *errand, const char *text)
{
	errand->step = STEP_KEY_CHECK;
	errand->state = MemoryContextStrdup(errand->context, text);
}

static void registration_refused(const AcmeAccount *account, const char *text);

static bool
account_next(Errand *errand)
{
	AcmeAccount *account = errand->account;
	const DirectoryAnswer *directory = account_directory(account);
	Want	   *want = &errand->want;

	if (account->next_at > GetCurrentTimestamp())
		return false;
	memset(want, 0, sizeof(Want));
	if (is_unregistered(account))
	{
		errand->step = STEP_REGISTER;
		if (directory->binding_required && account->eab == NULL)
		{
			registration_refused(account, "the server wants an external account binding: the key that it gives out goes into eab (externalAccountRequired)");
			return false;
		}
		want->kind = ANSWER_ACCOUNT;
		want->url = directory->new_account;
		want->payload = registration(account, want->url);
		want->signature = SIGNED_BY_KEY;
	}
	else if (strcmp(account->status, "deactivating") == 0)
	{
		errand->step = STEP_DEACTIVATE;
		if (account->url == NULL)
		{
			rest(account, "deactivated", NULL);
			return false;
		}
		want->kind = ANSWER_ACCOUNT;
		want->url = account->url;
		want->payload = "{\"status\":\"deactivated\"}";
	}
	else if (account->new_key_version == 0)
	{
		rest(account, account->status, NULL);
		return false;
	}
	else if (errand->step == STEP_KEY_CHECK || directory->key_change == NULL)
	{
		if (errand->step != STEP_KEY_CHECK)
			doubt_key(errand, "the server has no key change");
		want->kind = ANSWER_ACCOUNT;
		want->url = directory->new_account;
		want->payload = "{\"onlyReturnExisting\":true}";
		want->signature = SIGNED_BY_NEW_KEY;
	}
	else
	{
		errand->step = STEP_KEY_CHANGE;
		want->kind = ANSWER_DONE;
		want->url = directory->key_change;
		want->payload = jws_key_change(account_key(account),
									   account_new_key(account), account->url,
									   want->url);
	}
	errand->reached = "account";
	want->url = MemoryContextStrdup(errand->context, want->url);
	want->payload = MemoryContextStrdup(errand->context, want->payload);
	return true;
}

/* ---- what comes of it ---- */

static const char *
registered(AcmeAccount *account, const Answer *answer)
{
	static Oid	types[] = {INT4OID, TEXTOID, TEXTOID};
	const char *orders = answer->account.orders;
	Datum		values[3];

	if (answer->location[0] == '\0')
		return "it has no Location, which would be the account";
	if (answer->account.status != ACME_VALID)
		return "the account is not valid";
	job_commit_durably();
	audit(AUDIT_CHANGED, "acme_account.register", "acme_account",
		  account->name, NULL);
	values[0] = Int32GetDatum(account->id);
	values[1] = CStringGetTextDatum(answer->location);
	values[2] = orders ? CStringGetTextDatum(orders) : (Datum) 0;
	ACME_DO("UPDATE mlint.acme_account SET url = $2, orders_url = $3"
			" WHERE id = $1", SPI_OK_UPDATE, types, values,
			orders ? NULL : "  n");
	rest(account, "valid", NULL);
	wake_orders(account);
	return NULL;
}

static void
key_changed(const AcmeAccount *account)
{
	static Oid	types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(account->id)};

	job_commit_durably();
	audit(AUDIT_CHANGED, "acme_account.rolled_over", "acme_account",
		  account->name, psprintf("{\"version\": %d}", account->new_key_version));
	secret_make_current(account->key_secret, account->new_key_version, 0);
	ACME_DO("UPDATE mlint.acme_account SET key_version = new_key_version"
			" WHERE id = $1", SPI_OK_UPDATE, types, values, NULL);
	rest(account, "valid", NULL);
	wake_orders(account);
}

static void
deactivated(const AcmeAccount *account)
{
	job_commit_durably();
	audit(AUDIT_CHANGED, "acme_account.deactivated", "acme_account",
		  account->name, NULL);
	rest(account, "deactivated", NULL);
	wake_orders(account);
}

/* Is what was asked for no more wanted? The account was created again. */
static bool
is_outdated(const Errand *errand)
{
	return errand->step == STEP_DEACTIVATE &&
		strcmp(errand->account->status, "deactivating") != 0;
}

static const char *
account_answered(Errand *errand, const Answer *answer)
{
	AcmeAccount *account = errand->account;

	if (is_outdated(errand))
		return NULL;
	switch ((AccountStep) errand->step)
	{
		case STEP_REGISTER:
			return registered(account, answer);
		case STEP_KEY_CHECK:
			if (strcmp(answer->location, account->url) != 0)
				return "the new key is that of another account";
			key_changed(account);
			break;
		case STEP_KEY_CHANGE:
			key_changed(account);
			break;
		case STEP_DEACTIVATE:
			if (answer->account.status == ACME_VALID)
				return "the account is still valid";
			deactivated(account);
			break;
	}
	return NULL;
}

static void
registration_refused(const AcmeAccount *account, const char *text)
{
	int			s = REFUSED_MIN_S << Min(account->attempts, 11);

	audit(AUDIT_FAILED, "acme_account.refused", "acme_account", account->name,
		  NULL);
	wait_until(account, "failed", text, account->attempts + 1,
			   GetCurrentTimestamp() +
			   Min(s, REFUSED_MAX_S) * INT64CONST(1000000));
	wake_orders(account);
}

/* The server has not taken the new key: it comes to nothing. */
static void
rollover_refused(const AcmeAccount *account, const char *text)
{
	audit(AUDIT_CHANGED, "acme_account.rollover_refused", "acme_account",
		  account->name, NULL);
	store_destroy(account->key_secret, account->new_key_version);
	rest(account, "valid",
		 psprintf("the key was not changed: %s", text));
	wake_orders(account);
}

/*
 * Only a registration is given up, and that not for good. Of the other two
 * nobody knows how far they got.
 */
static void
account_failed(Errand *errand, const char *text, int max, int retry_after)
{
	AcmeAccount *account = errand->account;

	if (account->attempts >= max && is_unregistered(account))
	{
		registration_refused(account, text);
		return;
	}
	wait_until(account, account->status, text, account->attempts + 1,
			   retry_at(account->attempts + 1, retry_after));
}

/* That is how a server answers an account that is no more. */
static bool
is_closed(const Problem *problem)
{
	return problem->status == 401 || problem->kind == PROBLEM_NO_ACCOUNT ||
		(problem->type && strcmp(problem->type, "unauthorized") == 0);
}

/*
 * A registration may begin anew. Of what the server may have done before, only
 * the server itself can say that it has not: what stands between us and it, or
 * is wrong here, decides nothing.
 */
static void
account_refused(Errand *errand, const Problem *problem, const char *text)
{
	AcmeAccount *account = errand->account;
	AccountStep step = errand->step;

	if (is_outdated(errand))
		return;
	if (step == STEP_REGISTER && is_unregistered(account))
		registration_refused(account, text);
	else if (step == STEP_KEY_CHANGE)
		doubt_key(errand, text);
	else if (step == STEP_KEY_CHECK && problem &&
			 problem->kind == PROBLEM_NO_ACCOUNT)
		rollover_refused(account, errand->state);
	else if (step == STEP_DEACTIVATE && problem && is_closed(problem))
		deactivated(account);
	else if (step == STEP_DEACTIVATE && problem)
		rest(account, "valid",
			 psprintf("the account was not deactivated: %s", text));
	else
		account_failed(errand, text, ACME_MAX_ATTEMPTS, errand->retry_after);
}

static void
account_put_off(Errand *errand, TimestampTz until)
{
	static Oid	types[] = {INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(errand->account->id),
	TimestampTzGetDatum(until)};

	ACME_DO("UPDATE mlint.acme_account SET next_at = $2 WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
}

const ErrandKind account_errand = {
	"account", account_next, account_answered, account_refused, account_failed,
	account_put_off
};
