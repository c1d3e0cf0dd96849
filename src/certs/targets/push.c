/*
 * push.c
 *		The job certificate_targets: certificates to where they should be.
 *
 * A region is due when it serves another version than it should, or when it is
 * to be pushed again whatever it serves. A push is two transactions: the first
 * says in the region's row which version is on its way, so that after a crash
 * the kind is told that it may have arrived; the second pushes and records what
 * came of it, under a lock on the row. A push that fails is rolled back alone
 * and tried again after a delay that grows, without end; another version is
 * tried at once.
 *
 * A version that targets must have first (sync) is brought into use when the
 * last region of them has it, or none is left that must. Until then the
 * certificate says why it is not in use.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "certs/certs.h"
#include "certs/targets/kind.h"
#include "common/audit.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/owner.h"
#include "common/role.h"
#include "common/retry.h"
#include "common/trial.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "secrets/secrets.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_certificate_target_run);

/* A run ends after so long, so that other jobs have a turn. */
#define RUN_S		10

/* What the first transaction of a push has chosen for the second. */
static int32 claimed_target;
static char *claimed_region;
static bool claimed_repeated;

/* What the certificate is still to be told of a push that failed, or NULL. */
static char *in_the_way;
static pg_uuid_t in_the_way_of;

/* The key that a push works with, to be wiped whatever happens. */
static SecretValue at_hand;

/* A region to be pushed to. */
typedef struct Push
{
	Configured	target;
	char	   *region;
	char	   *reference;		/* or NULL */
	int			attempts;		/* that failed */
	bool		waited_for;		/* the version is not in use before it is
								 * there */
	PushedCertificate certificate;
} Push;

/* ---- the certificate, as kinds want it ---- */

/* Where the leaf ends in a chain. */
static const char *
after_leaf(const char *chain)
{
	static const char end[] = "-----END CERTIFICATE-----";
	const char *at = strstr(chain, end);

	if (at == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the chain of a certificate is none")));
	at += strlen(end);
	return at + strspn(at, "\r\n");
}

uint8 *
pushed_der(const PushedCertificate *certificate, size_t *len)
{
	char	   *base64 = palloc(strlen(certificate->leaf) + 1);
	uint8	   *der;
	int			n = 0;
	int			bytes;

	for (const char *line = certificate->leaf; *line;)
	{
		size_t		width = strcspn(line, "\r\n");

		if (line[0] != '-')
		{
			memcpy(base64 + n, line, width);
			n += width;
		}
		line += width;
		line += strspn(line, "\r\n");
	}
	der = palloc(n + 1);
	bytes = crypto_unbase64(base64, n, der);
	if (bytes < 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the chain of certificate \"%s\" is none",
						certificate->name)));
	*len = bytes;
	return der;
}

char *
pushed_key_and_chain(const char *key, const char *chain)
{
	StringInfoData out;

	initStringInfo(&out);
	/* Growing leaves copies, as psprintf() does of how a text begins. */
	enlargeStringInfo(&out, strlen(key) + strlen(chain) + 1);
	appendStringInfoString(&out, key);
	if (out.len > 0 && out.data[out.len - 1] != '\n')
		appendStringInfoChar(&out, '\n');
	appendStringInfoString(&out, chain);
	return out.data;
}

static void
add_member(StringInfo out, const char *name, const char *value)
{
	appendStringInfo(out, "%s\"%s\": ", out->len > 1 ? ", " : "", name);
	escape_json(out, value);
}

Jsonb *
pushed_document(const PushedCertificate *certificate, bool with_chain)
{
	StringInfoData out;
	char		fingerprint[2 * CRYPTO_SHA256_BYTES + 1];

	initStringInfo(&out);
	crypto_hex(certificate->fingerprint, CRYPTO_SHA256_BYTES, fingerprint);
	appendStringInfoChar(&out, '{');
	add_member(&out, "certificate",
			   DatumGetCString(DirectFunctionCall1(uuid_out,
												   UUIDPGetDatum(certificate->id))));
	add_member(&out, "name", certificate->name);
	add_member(&out, "target", certificate->target);
	add_member(&out, "serial", certificate->serial);
	add_member(&out, "fingerprint_sha256", fingerprint);
	add_member(&out, "not_after", certificate->not_after);
	add_member(&out, "key_secret", certificate->key_secret);
	appendStringInfo(&out, ", \"key_version\": %d, \"domains\": %s",
					 certificate->key_version, certificate->names);
	if (with_chain)
		add_member(&out, "chain", certificate->chain);
	appendStringInfoChar(&out, '}');
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(out.data)));
}

/* ---- one push ---- */

/*
 * Choose the next region, and say in its row what is on its way. What has
 * failed comes last, so that it holds up nothing that can be done. A certificate
 * that somebody is dropping is left alone.
 */
static bool
claim(void *arg)
{
	OwnerScope	scope;
	Oid			types[] = {INT4OID, TEXTOID, INT8OID};
	Datum		values[3];
	bool		isnull;
	bool		found;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT p.target_id, p.region, p.wanted_id,"
			  " p.pushing_id IS NOT NULL"
			  " AND p.version_id IS DISTINCT FROM p.pushing_id"
			  " FROM mlint.certificate_push p"
			  " JOIN mlint.certificate_region r ON r.target_id = p.target_id"
			  " AND r.region = p.region"
			  " JOIN mlint.certificate c ON c.id = p.certificate_id"
			  ", LATERAL (SELECT p.pushing_id IS NOT DISTINCT FROM p.wanted_id"
			  " AND r.attempts > 0) has (failed)"
			  " WHERE p.wanted_id IS NOT NULL"
			  " AND (p.next_at <= pg_catalog.clock_timestamp()"
			  " OR p.version_id IS DISTINCT FROM p.wanted_id AND"
			  " (p.next_at IS NULL OR p.pushing_id IS DISTINCT FROM p.wanted_id))"
			  " ORDER BY has.failed, p.sync AND NOT has.failed DESC,"
			  " p.next_at NULLS FIRST, p.target_id, p.region"
			  " LIMIT 1 FOR UPDATE OF r SKIP LOCKED"
			  " FOR KEY SHARE OF c SKIP LOCKED", SPI_OK_SELECT, 0, NULL, NULL,
			  NULL);
	found = SPI_processed > 0;
	if (found)
	{
		values[0] = owner_column(1, &isnull);
		values[1] = owner_column(2, &isnull);
		values[2] = owner_column(3, &isnull);
		claimed_target = DatumGetInt32(values[0]);
		claimed_repeated = DatumGetBool(owner_column(4, &isnull));
		if (claimed_region)
			pfree(claimed_region);
		claimed_region = MemoryContextStrdup(TopMemoryContext,
											 TextDatumGetCString(values[1]));
		owner_run(NULL,
				  "UPDATE mlint.certificate_region SET pushing_id = $3,"
				  " next_at = pg_catalog.clock_timestamp(),"
				  " attempts = CASE WHEN pushing_id = $3 THEN attempts ELSE 0 END"
				  " WHERE target_id = $1 AND region = $2", SPI_OK_UPDATE, 3, types,
				  values, NULL);
	}
	owner_end(&scope);
	return found;
}

/*
 * Keep the certificate from being dropped, before anything of it is locked. The
 * lock stands in nobody's way who only changes its row. False: it is gone, or
 * somebody is dropping it, whose end is not waited for. In an owner scope.
 */
static bool
hold_certificate(Datum target)
{
	Oid			types[] = {INT4OID};

	owner_run(NULL,
			  "SELECT FROM mlint.certificate c WHERE c.id ="
			  " (SELECT t.certificate_id FROM mlint.certificate_target t"
			  " WHERE t.id = $1) FOR KEY SHARE SKIP LOCKED", SPI_OK_SELECT, 1,
			  types, &target, NULL);
	return SPI_processed > 0;
}

/* The region that was claimed, locked, with all that is to be pushed. */
static Push *
load(void)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(claimed_target),
	CStringGetTextDatum(claimed_region)};
	OwnerScope	scope;
	Push	   *push = NULL;
	PushedCertificate *v;
	bytea	   *fingerprint;
	bool		isnull;

	owner_begin(&scope);
	if (!hold_certificate(values[0]))
	{
		owner_end(&scope);
		return NULL;
	}
	owner_run(NULL,
			  "SELECT t.name, t.kind, t.options, t.created_by, r.reference,"
			  " r.attempts, p.wanted_id = c.next_version_id, c.id, c.name, v.id,"
			  " v.serial, pg_catalog.to_json(v.names)::text,"
			  " pg_catalog.to_json(v.not_after) #>> '{}', v.fingerprint, v.chain,"
			  " c.key_secret, v.key_version"
			  " FROM mlint.certificate_push p"
			  " JOIN mlint.certificate_region r ON r.target_id = p.target_id"
			  " AND r.region = p.region"
			  " JOIN mlint.certificate_target t ON t.id = p.target_id"
			  " JOIN mlint.certificate c ON c.id = p.certificate_id"
			  " JOIN mlint.certificate_version v ON v.id = p.wanted_id"
			  " WHERE p.target_id = $1 AND p.region = $2 AND r.pushing_id = v.id"
			  " FOR UPDATE OF r SKIP LOCKED", SPI_OK_SELECT, 2, types, values,
			  NULL);
	if (SPI_processed > 0)
	{
		MemoryContextSwitchTo(caller);
		push = palloc0(sizeof(Push));
		v = &push->certificate;
		push->target.id = claimed_target;
		push->target.name = owner_text(1);
		push->target.what = psprintf("certificate target \"%s\"",
									 push->target.name);
		push->target.kind = configured_kind(&target_sort, owner_text(2));
		push->target.options = DatumGetJsonbPCopy(owner_column(3, &isnull));
		push->target.created_by = DatumGetObjectId(owner_column(4, &isnull));
		push->region = pstrdup(claimed_region);
		push->reference = owner_text(5);
		push->attempts = DatumGetInt32(owner_column(6, &isnull));
		push->waited_for = DatumGetBool(owner_column(7, &isnull)) && !isnull;
		v->id = DatumGetUUIDP(datumCopy(owner_column(8, &isnull), false,
										UUID_LEN));
		v->name = owner_text(9);
		v->target = push->target.name;
		v->version = DatumGetInt64(owner_column(10, &isnull));
		v->serial = owner_text(11);
		v->names = owner_text(12);
		v->not_after = owner_text(13);
		fingerprint = DatumGetByteaPP(owner_column(14, &isnull));
		if (VARSIZE_ANY_EXHDR(fingerprint) == sizeof(v->fingerprint))
			memcpy(v->fingerprint, VARDATA_ANY(fingerprint),
				   sizeof(v->fingerprint));
		v->chain = owner_text(15);
		v->issuers = after_leaf(v->chain);
		v->leaf = pnstrdup(v->chain, v->issuers - v->chain);
		v->key_secret = owner_text(16);
		v->key_version = DatumGetInt32(owner_column(17, &isnull));
		v->repeated = claimed_repeated;
	}
	owner_end(&scope);
	return push;
}

static const TargetKind *
kind_of(const Push *push)
{
	return (const TargetKind *) push->target.kind;
}

/* May who made the target still have it? It can be long ago. */
static void
check_owner(const Push *push)
{
	const Option *const tables[] = {push->target.kind->options,
	target_sort.options};
	Oid			owner = push->target.created_by;

	role_require(owner, "made the target");
	if (kind_of(push)->wants_key &&
		!secret_permitted(owner, push->certificate.key_secret, SECRET_READ))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\", which made the target, may not read the certificate's key any more",
						GetUserNameFromId(owner, true)),
				 errhint("Grant it again, or alter the target as another role.")));
	if (kind_of(push)->check)
		kind_of(push)->check(push->target.parsed, owner, push->target.what);
	option_check_credentials(tables, lengthof(tables), push->target.parsed,
							 owner, push->target.what);
}

static void
wipe_key(void)
{
	if (at_hand.data)
		secret_wipe(&at_hand);
	at_hand.data = NULL;
}

static void
take_key(const Push *push)
{
	const PushedCertificate *v = &push->certificate;

	if (!secret_read(v->key_secret, psprintf("%d", v->key_version), &at_hand))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the key of the certificate, version %d of secret \"%s\", is not there any more",
						v->key_version, v->key_secret),
				 errhint("Have the certificate issued or imported again.")));
}

/* Take it there; returns what it is called there. */
static char *
push_one(Push *push)
{
	char	   *reference;

	push->target.parsed = configured_parse(&target_sort, push->target.kind,
										   push->target.options,
										   push->target.what);
	check_owner(push);
	if (kind_of(push)->wants_key)
		take_key(push);
	reference = kind_of(push)->push(push->target.parsed,
									push->target.created_by, push->region,
									&push->certificate, at_hand.data,
									push->reference);
	wipe_key();
	INJECTION("certificate-pushed");
	return reference;
}

/* Enter what came of a push into the audit log. */
static void
audit_push(const Push *push, const char *action, const char *reason)
{
	StringInfoData details;

	initStringInfo(&details);
	appendStringInfoChar(&details, '{');
	add_member(&details, "region", push->region);
	add_member(&details, "serial", push->certificate.serial);
	if (reason)
		add_member(&details, "reason", reason);
	appendStringInfoChar(&details, '}');
	audit(AUDIT_CHANGED, action, "certificate_target",
		  psprintf("%s/%s", push->certificate.name, push->target.name),
		  details.data);
}

static void
record_pushed(const Push *push, const char *reference)
{
	Oid			types[] = {INT4OID, TEXTOID, INT8OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(push->target.id),
		CStringGetTextDatum(push->region),
		Int64GetDatum(push->certificate.version),
	reference ? CStringGetTextDatum(reference) : (Datum) 0};
	char		nulls[] = {' ', ' ', ' ', reference ? ' ' : 'n'};

	audit_push(push, "certificate_target.push", NULL);
	owner_do(NULL,
			 "UPDATE mlint.certificate_region SET version_id = $3,"
			 " reference = $4, pushed_at = pg_catalog.clock_timestamp(),"
			 " next_at = NULL, attempts = 0, error = NULL"
			 " WHERE target_id = $1 AND region = $2", SPI_OK_UPDATE, 4, types,
			 values, nulls);
}

/* How long until the next attempt, after one more failure. */
static int64
delay_after(const Push *push)
{
	const TargetOptions *options = push->target.parsed;
	RetryPolicy policy = {RETRY_EXPONENTIAL, PG_INT32_MAX, 10000, 2, 900000};

	/* They may be what failed. */
	if (options)
	{
		policy.initial_delay_ms = options->retry_delay_ms;
		policy.max_delay_ms = options->retry_max_delay_ms;
	}
	return retry_delay(&policy, push->attempts + 1, -1);
}

/* What the certificate is to be told, in a transaction of its own. */
static void
remember_in_the_way(const Push *push, const char *reason)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	in_the_way = push->region[0] ?
		psprintf("target \"%s\", region \"%s\": %s", push->target.name,
				 push->region, reason) :
		psprintf("target \"%s\": %s", push->target.name, reason);
	in_the_way_of = *push->certificate.id;
	MemoryContextSwitchTo(old);
}

/*
 * The certificate says why it is not in use. Not with the push: who drops the
 * certificate has its row locked, and waits for the push to end.
 */
static bool
tell_certificate(void *arg)
{
	certificate_push_failed(&in_the_way_of, in_the_way);
	pfree(in_the_way);
	in_the_way = NULL;
	return true;
}

static void
record_failed(const Push *push, const char *reason)
{
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID, INT8OID};
	Datum		values[] = {Int32GetDatum(push->target.id),
		CStringGetTextDatum(push->region), CStringGetTextDatum(reason),
	Int64GetDatum(delay_after(push))};

	/* Once for each version, not for each attempt. */
	if (push->attempts == 0)
		audit_push(push, "certificate_target.fail", reason);
	owner_do(NULL,
			 "UPDATE mlint.certificate_region SET attempts = attempts + 1,"
			 " error = $3, next_at = pg_catalog.clock_timestamp()"
			 " + pg_catalog.make_interval(secs => $4 / 1000000.0)"
			 " WHERE target_id = $1 AND region = $2", SPI_OK_UPDATE, 4, types,
			 values, NULL);
	if (push->waited_for)
		remember_in_the_way(push, reason);
}

/* An error that ends the run rather than a step of it. */
static void
rethrow_interrupt(ErrorData *error)
{
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
		ReThrowError(error);
}

/* The second transaction. */
static bool
push_claimed(void *arg)
{
	Push	   *push = load();
	Trial		trial;
	char	   *volatile reason = NULL;
	char	   *volatile reference = NULL;

	/* Somebody else has it in hand, or it is not wanted any more. */
	if (push == NULL)
		return false;
	trial_begin(&trial);
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		reference = push_one(push);
		PopActiveSnapshot();
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		wipe_key();
		rethrow_interrupt(error);
		reason = error_reason(error);
	}
	PG_END_TRY();
	if (reason)
		record_failed(push, reason);
	else
		record_pushed(push, reference);
	return true;
}

/* ---- what all that must have it first have ---- */

static List *ready;				/* uuids, in TopMemoryContext */

static bool
find_ready(void *arg)
{
	OwnerScope	scope;
	MemoryContext old;
	bool		isnull;

	list_free_deep(ready);
	ready = NIL;
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT c.id FROM mlint.certificate c"
			  " WHERE c.next_version_id IS NOT NULL AND NOT EXISTS ("
			  "SELECT FROM mlint.certificate_push p"
			  " WHERE p.certificate_id = c.id AND p.sync"
			  " AND p.version_id IS DISTINCT FROM c.next_version_id)",
			  SPI_OK_SELECT, 0, NULL, NULL, NULL);
	old = MemoryContextSwitchTo(TopMemoryContext);
	for (uint64 i = 0; i < SPI_processed; i++)
		ready = lappend(ready,
						DatumGetPointer(datumCopy(SPI_getbinval(SPI_tuptable->vals[i],
																SPI_tuptable->tupdesc,
																1, &isnull),
												  false, UUID_LEN)));
	MemoryContextSwitchTo(old);
	owner_end(&scope);
	return ready != NIL;
}

static bool
activate_first(void *arg)
{
	const pg_uuid_t *id = linitial(ready);
	Trial		trial;
	char	   *volatile reason = NULL;

	trial_begin(&trial);
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		certificate_activate(id);
		PopActiveSnapshot();
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		rethrow_interrupt(error);
		reason = error_reason(error);
	}
	PG_END_TRY();
	if (reason)
		certificate_push_failed(id, reason);
	return reason == NULL;
}

/* ---- the run ---- */

/* Have the job run when the next attempt is due. */
static bool
ask_again(void *arg)
{
	OwnerScope	scope;
	TimestampTz at;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT min(p.next_at) FROM mlint.certificate_push p"
			  " WHERE p.wanted_id IS NOT NULL", SPI_OK_SELECT, 0, NULL, NULL,
			  NULL);
	at = DatumGetTimestampTz(owner_column(1, &isnull));
	owner_end(&scope);
	if (isnull)
		return false;
	/* What is due yet is locked by somebody, or has been left for other jobs. */
	if (at <= GetCurrentTimestamp())
		at = GetCurrentTimestamp() + USECS_PER_SEC;
	(void) job_request_at(CERTIFICATE_TARGET_JOB, at);
	return false;
}

/* CALL mlint.certificate_target_run() */
Datum
mlint_certificate_target_run(PG_FUNCTION_ARGS)
{
	TimestampTz until;
	bool		some;

	job_procedure_begin(fcinfo, "mlint.certificate_target_run()",
						JOB_RUN_HINT("certificate_targets"));

	until = GetCurrentTimestamp() + RUN_S * USECS_PER_SEC;
	do
	{
		some = GetCurrentTimestamp() < until &&
			job_transaction(claim, NULL, true);
		if (some)
		{
			INJECTION("certificate-push-claimed");
			(void) job_transaction(push_claimed, NULL, true);
			if (in_the_way)
				(void) job_transaction(tell_certificate, NULL, true);
			ConditionVariableBroadcast(worker_delivered());
			CHECK_FOR_INTERRUPTS();
		}
		/* At once: others may fail for as long as we run. */
		if (job_transaction(find_ready, NULL, true))
		{
			for (; ready != NIL; ready = list_delete_first(ready))
			{
				some = job_transaction(activate_first, NULL, true) || some;
				pfree(linitial(ready));
			}
			ConditionVariableBroadcast(worker_delivered());
		}
	} while (some);
	(void) job_transaction(ask_again, NULL, true);
	job_procedure_end();
	PG_RETURN_VOID();
}
