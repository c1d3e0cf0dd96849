/*
 * authority.c
 *		An account as a run knows it: keys, directory, nonces.
 *
 * The row is read anew at each step, for somebody may have changed it; what is
 * dear is kept while it is good: the account's key (each reading of which the
 * audit log has), the certificates that the server is trusted by, its
 * directory (for a day), and nonces, of which every answer brings one.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "certs/acme/acme.h"
#include "certs/certs.h"
#include "common/audit.h"
#include "common/credential.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/owner.h"
#include "secrets/secrets.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* A server that says no time is left alone for so long. */
#define HOLD_S			60

static MemoryContext accounts_context = NULL;
static dlist_head accounts;

void
accounts_begin(MemoryContext context)
{
	accounts_context = context;
	dlist_init(&accounts);
}

AcmeAccount *
account_find(int32 id)
{
	dlist_iter	iter;
	AcmeAccount *account;

	dlist_foreach(iter, &accounts)
	{
		account = dlist_container(AcmeAccount, node, iter.cur);
		if (account->id == id)
			return account;
	}
	account = MemoryContextAllocZero(accounts_context, sizeof(AcmeAccount));
	account->id = id;
	account->row = AllocSetContextCreate(accounts_context, "mlint account",
										 ALLOCSET_SMALL_SIZES);
	account->keys = AllocSetContextCreate(accounts_context, "mlint account keys",
										  ALLOCSET_SMALL_SIZES);
	account->directories = AllocSetContextCreate(accounts_context,
												 "mlint ACME directory",
												 ALLOCSET_SMALL_SIZES);
	dlist_push_tail(&accounts, &account->node);
	return account;
}

/* ---- the directory ---- */

static void
directory_gone(void *arg)
{
	answer_free((Answer *) arg);
}

/* Keep a copy of an answer; its JSON is the copy's from here on. */
static void
keep_directory(AcmeAccount *account, Answer *answer)
{
	Answer	   *kept;
	MemoryContextCallback *callback;

	MemoryContextReset(account->directories);
	account->directory = NULL;
	kept = MemoryContextAlloc(account->directories, sizeof(Answer));
	callback = MemoryContextAlloc(account->directories,
								  sizeof(MemoryContextCallback));
	memcpy(kept, answer, sizeof(Answer));
	answer->json = NULL;
	callback->func = directory_gone;
	callback->arg = kept;
	MemoryContextRegisterResetCallback(account->directories, callback);
	account->directory = kept;
	account->origins = kept->directory.origins;
}

/* Only in memory. */
static void
drop_directory(AcmeAccount *account)
{
	MemoryContextReset(account->directories);
	account->directory = NULL;
	(void) origins_begin(&account->origins, account->directory_url);
}

void
account_forget_directory(AcmeAccount *account)
{
	static Oid	types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(account->id)};

	drop_directory(account);
	ACME_DO("UPDATE mlint.acme_account SET directory_at = NULL WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
}

/* What was kept in the row, read in the same way as what comes. */
static void
read_kept_directory(AcmeAccount *account, const char *kept)
{
	static const char headers[] = "Content-Type: application/json\r\n";
	Received	received = {200, headers, sizeof(headers) - 1, kept,
	strlen(kept), false, false};
	Answer	   *answer = palloc(sizeof(Answer));

	answer_read(ANSWER_DIRECTORY, &account->origins, &received, answer);
	if (answer->outcome == ANSWER_GOOD)
		keep_directory(account, answer);
	answer_free(answer);
	pfree(answer);
}

static void
directory_member(StringInfo out, const char *name, const char *url)
{
	if (url == NULL)
		return;
	appendStringInfo(out, "\"%s\": ", name);
	escape_json(out, url);
	appendStringInfoString(out, ", ");
}

/* Keep a directory that has come: what we use of it. */
void
account_take_directory(AcmeAccount *account, Answer *answer)
{
	static Oid	types[] = {INT4OID, TEXTOID};
	const DirectoryAnswer *d = &answer->directory;
	StringInfoData text;
	Datum		values[2];

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	directory_member(&text, "newNonce", d->new_nonce);
	directory_member(&text, "newAccount", d->new_account);
	directory_member(&text, "newOrder", d->new_order);
	directory_member(&text, "revokeCert", d->revoke);
	directory_member(&text, "keyChange", d->key_change);
	directory_member(&text, "renewalInfo", d->renewal_info);
	appendStringInfo(&text, "\"meta\": {\"externalAccountRequired\": %s}}",
					 d->binding_required ? "true" : "false");
	keep_directory(account, answer);

	values[0] = Int32GetDatum(account->id);
	values[1] = CStringGetTextDatum(text.data);
	ACME_DO("UPDATE mlint.acme_account SET directory = $2::jsonb,"
			" directory_at = pg_catalog.clock_timestamp() WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
}

const DirectoryAnswer *
account_directory(const AcmeAccount *account)
{
	return account->directory ? &account->directory->directory : NULL;
}

/* ---- the row ---- */

/* A text column in the account's memory, or NULL. */
static char *
text_column(AcmeAccount *account, int n)
{
	char	   *text = owner_text(n);

	return text ? MemoryContextStrdup(account->row, text) : NULL;
}

static int64
int_column(int n)
{
	bool		isnull;
	Datum		value = owner_column(n, &isnull);

	return isnull ? 0 : DatumGetInt32(value);
}

/* What was read of secrets may not be so any more. */
static void
forget_keys(AcmeAccount *account)
{
	MemoryContextReset(account->keys);
	account->key = NULL;
	account->new_key = NULL;
	account->ca = NULL;
}

/* The certificates that the server is trusted by, if it is not the system's. */
static void
resolve_ca(AcmeAccount *account)
{
	Jsonb	   *reference;
	JsonbValue	value;
	Credential	credential;
	size_t		len;
	char	   *pem;

	if (account->ca_reference == NULL || account->ca)
		return;
	reference = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
												   CStringGetDatum(account->ca_reference)));
	value.type = jbvBinary;
	value.val.binary.data = &reference->root;
	value.val.binary.len = VARSIZE(reference) - VARHDRSZ;
	credential = credential_parse(&value, "ca");
	pem = credential_resolve(&credential, &len);
	account->ca = MemoryContextStrdup(account->keys, pem);
	crypto_wipe(pem, len);
}

AcmeAccount *
account_load(int32 id)
{
	static Oid	types[] = {INT4OID, BOOLOID};
	AcmeAccount *account = account_find(id);
	Datum		values[] = {Int32GetDatum(id),
	BoolGetDatum(account->directory == NULL)};
	int			key_version = account->key_version;
	int			new_key_version = account->new_key_version;
	uint64		secrets = credential_generation();
	OwnerScope	scope;
	char	   *directory;
	bool		isnull;
	bool		fresh;

	owner_begin(&scope);
	ACME_SQL("SELECT name, directory_url, email, eab::text, ca::text,"
			 " key_secret, key_version, new_key_version, status, url, orders_url,"
			 " attempts, not_before, coalesce(next_at, 'infinity'),"
			 " coalesce(directory_at > pg_catalog.clock_timestamp() - interval '1 day'"
			 " AND directory_at <= pg_catalog.clock_timestamp(), false),"
			 " CASE WHEN $2 THEN directory::text END"
			 " FROM mlint.acme_account WHERE id = $1",
			 SPI_OK_SELECT, types, values, NULL);
	if (SPI_processed == 0)
	{
		owner_end(&scope);
		return NULL;
	}
	MemoryContextReset(account->row);
	account->name = text_column(account, 1);
	account->directory_url = text_column(account, 2);
	account->email = text_column(account, 3);
	account->eab = text_column(account, 4);
	account->ca_reference = text_column(account, 5);
	account->key_secret = text_column(account, 6);
	account->key_version = int_column(7);
	account->new_key_version = int_column(8);
	account->status = text_column(account, 9);
	account->url = text_column(account, 10);
	account->orders_url = text_column(account, 11);
	account->attempts = int_column(12);
	account->not_before = DatumGetTimestampTz(owner_column(13, &isnull));
	account->next_at = DatumGetTimestampTz(owner_column(14, &isnull));
	fresh = DatumGetBool(owner_column(15, &isnull));
	directory = text_column(account, 16);
	owner_end(&scope);

	if (!fresh || account->directory == NULL)
		drop_directory(account);
	if (fresh && directory)
		read_kept_directory(account, directory);
	if (account->key_version != key_version ||
		account->new_key_version != new_key_version ||
		account->secrets != secrets)
		forget_keys(account);
	account->secrets = secrets;
	resolve_ca(account);
	return account;
}

/* ---- keys ---- */

static JwsKey *
open_key(AcmeAccount *account, int version)
{
	SecretValue value;
	MemoryContext old;
	JwsKey	   *key;

	if (version == 0 ||
		!secret_read(account->key_secret, psprintf("%d", version), &value))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the key of ACME account \"%s\" is gone", account->name),
				 errdetail("It was version %d of secret \"%s\".", version,
						   account->key_secret),
				 errhint("Deactivate the account, and create it again.")));
	old = MemoryContextSwitchTo(account->keys);
	key = jws_key_open(value.data, value.len);
	MemoryContextSwitchTo(old);
	secret_wipe(&value);
	return key;
}

const JwsKey *
account_key(AcmeAccount *account)
{
	if (account->key == NULL)
		account->key = open_key(account, account->key_version);
	return account->key;
}

const JwsKey *
account_new_key(AcmeAccount *account)
{
	if (account->new_key == NULL)
		account->new_key = open_key(account, account->new_key_version);
	return account->new_key;
}

/* ---- nonces ---- */

void
account_put_nonce(AcmeAccount *account, const char *nonce)
{
	if (nonce[0] == '\0' || account->nnonces == ACME_NONCES)
		return;
	account->nonces[account->nnonces++] =
		MemoryContextStrdup(accounts_context, nonce);
}

/* The youngest: servers forget the oldest first. */
char *
account_take_nonce(AcmeAccount *account)
{
	return account->nnonces > 0 ? account->nonces[--account->nnonces] : NULL;
}

/* ---- what an answer says of the account ---- */

void
account_hold(AcmeAccount *account, int retry_after)
{
	static Oid	types[] = {INT4OID, TIMESTAMPTZOID};
	int			s = Min(retry_after < 0 ? HOLD_S : retry_after, RETRY_AFTER_MAX_S);
	Datum		values[2];

	account->not_before = GetCurrentTimestamp() + Max(s, 1) * USECS_PER_SEC;
	values[0] = Int32GetDatum(account->id);
	values[1] = TimestampTzGetDatum(account->not_before);
	ACME_DO("UPDATE mlint.acme_account SET not_before = $2 WHERE id = $1",
			SPI_OK_UPDATE, types, values, NULL);
}

void
account_lost(AcmeAccount *account, const char *error)
{
	static SPIPlanPtr plan = NULL;
	static Oid	types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(account->id),
	CStringGetTextDatum(error)};
	bool		lost;

	lost = owner_do(&plan,
					"UPDATE mlint.acme_account SET status = 'failed', url = NULL,"
					" orders_url = NULL, error = $2, attempts = 1,"
					" next_at = pg_catalog.clock_timestamp() + interval '1 minute'"
					" WHERE id = $1 AND url IS NOT NULL",
					SPI_OK_UPDATE, 2, types, values, NULL);
	if (lost)
		audit(AUDIT_CHANGED, "acme_account.lost", "acme_account",
			  account->name, NULL);
}
