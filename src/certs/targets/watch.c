/*
 * watch.c
 *		The job certificate_watches: what do servers really serve?
 *
 * Whoever has pushed a certificate knows that it is there, not that it is in
 * use: a server may not have been told to reload. A watch connects as a client
 * would, and compares. When another certificate is served than the one in use,
 * that is published (certificate.mismatch), once for each that is seen; but not
 * before the one in use has been so for five minutes, which is what a push and
 * a reload may take. A server that cannot be reached serves nothing, and its
 * row says why.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/certs.h"
#include "certs/targets/tls.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "common/trial.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_certificate_watch_create);
PG_FUNCTION_INFO_V1(mlint_certificate_watch_drop);
PG_FUNCTION_INFO_V1(mlint_certificate_watch_run);

#define LOOK_TIMEOUT_MS	10000
/* A run ends after so long, so that other jobs have a turn. */
#define RUN_S			10
#define HOST_MAX		253

/* ---- the functions of the interface ---- */

static void
check_host(const char *host, const char *what)
{
	size_t		len = strlen(host);

	if (len == 0 || len > HOST_MAX ||
		strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789.-_:") != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a host name or an address", what),
				 errhint("Names in other scripts are written as they are in DNS: xn--...")));
}

/* Raise unless there is such a certificate; returns its name. */
static char *
require_certificate(Datum id)
{
	Oid			types[] = {UUIDOID};
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	char	   *name;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT name FROM mlint.certificate WHERE id = $1 FOR KEY SHARE",
			  SPI_OK_SELECT, 1, types, &id, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("certificate %s does not exist",
						DatumGetCString(DirectFunctionCall1(uuid_out, id))),
				 errhint("The view mlint.certificates lists them.")));
	MemoryContextSwitchTo(caller);
	name = TextDatumGetCString(owner_column(1, &isnull));
	owner_end(&scope);
	return name;
}

static void
audit_watch(const char *action, const char *certificate, const char *host,
			int port)
{
	audit(AUDIT_CHANGED, action, "certificate_watch",
		  psprintf("%s/%s:%d", certificate, host, port), NULL);
}

/*
 * mlint.certificate_watch_create(certificate, host, port, protocol,
 * server_name, every)
 */
Datum
mlint_certificate_watch_create(PG_FUNCTION_ARGS)
{
	Oid			types[] = {UUIDOID, TEXTOID, INT4OID, TEXTOID, TEXTOID,
	INTERVALOID};
	Datum		id = UUIDPGetDatum(required_uuid(fcinfo, 0, "certificate"));
	char	   *host = required_text(fcinfo, 1, "host");
	char	   *protocol = required_text(fcinfo, 3, "protocol");
	int			port;
	char	   *name;
	Datum		values[6];
	char		nulls[6];
	OwnerScope	scope;

	require_writable(fcinfo);
	if (PG_ARGISNULL(2) || PG_ARGISNULL(5))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", PG_ARGISNULL(2) ? "port" : "every")));
	port = PG_GETARG_INT32(2);
	check_host(host, "host");
	if (!PG_ARGISNULL(4))
		check_host(text_to_cstring(PG_GETARG_TEXT_PP(4)), "server_name");
	if (port < 1 || port > 65535)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("port must be between 1 and 65535")));
	if (strcmp(protocol, "tls") != 0 && strcmp(protocol, "postgres") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("protocol must be \"tls\" or \"postgres\", not \"%s\"",
						protocol)));
	name = require_certificate(id);
	audit_watch("certificate_watch.create", name, host, port);
	for (int i = 0; i < lengthof(values); i++)
	{
		values[i] = fcinfo->args[i].value;
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	owner_begin(&scope);
	/* No months and no years: what is left is a length. */
	owner_run(NULL,
			  "SELECT $1 BETWEEN '10 seconds' AND '30 days'"
			  " AND pg_catalog.date_part('year', $1) = 0"
			  " AND pg_catalog.date_part('month', $1) = 0", SPI_OK_SELECT, 1,
			  types + 5, values + 5, NULL);
	{
		bool		isnull;

		if (!DatumGetBool(owner_column(1, &isnull)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"every\" must be between 10 seconds and 30 days"),
					 errhint("Months and years have no length of their own: write days.")));
	}
	owner_run(NULL,
			  "INSERT INTO mlint.certificate_watch (certificate_id, host, port,"
			  " protocol, server_name, every) VALUES ($1, $2, $3, $4, $5, $6)"
			  " ON CONFLICT (certificate_id, host, port) DO NOTHING",
			  SPI_OK_INSERT, 6, types, values, nulls);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("certificate \"%s\" is watched at \"%s\", port %d, already",
						name, host, port)));
	owner_end(&scope);
	(void) job_request(CERTIFICATE_WATCH_JOB);
	PG_RETURN_VOID();
}

/* mlint.certificate_watch_drop(certificate, host, port) */
Datum
mlint_certificate_watch_drop(PG_FUNCTION_ARGS)
{
	Oid			types[] = {UUIDOID, TEXTOID, INT4OID};
	Datum		values[] = {UUIDPGetDatum(required_uuid(fcinfo, 0, "certificate")),
	CStringGetTextDatum(required_text(fcinfo, 1, "host")), PG_GETARG_DATUM(2)};
	char		nulls[] = {' ', ' ', PG_ARGISNULL(2) ? 'n' : ' '};
	char	   *name;
	char	   *host = TextDatumGetCString(values[1]);
	OwnerScope	scope;

	require_writable(fcinfo);
	name = require_certificate(values[0]);
	owner_begin(&scope);
	owner_run(NULL,
			  "DELETE FROM mlint.certificate_watch"
			  " WHERE certificate_id = $1 AND host = $2 AND port = $3",
			  SPI_OK_DELETE, 3, types, values, nulls);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("certificate \"%s\" is not watched at \"%s\", port %d",
						name, host, PG_ARGISNULL(2) ? 0 : PG_GETARG_INT32(2)),
				 errhint("The view mlint.certificate_watches lists what is.")));
	owner_end(&scope);
	audit_watch("certificate_watch.drop", name, host, PG_GETARG_INT32(2));
	PG_RETURN_VOID();
}

/* ---- one look ---- */

typedef struct Watch
{
	int32		id;
	char	   *host;
	int			port;
	TlsProtocol protocol;
	char	   *server_name;	/* or NULL */
	char	   *chain;			/* of the version in use; NULL: there is none */
} Watch;

/* The watch that is due, locked. */
static Watch *
next_due(void)
{
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	Watch	   *w = NULL;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT w.id, w.host, w.port, w.protocol = 'postgres',"
			  " w.server_name, v.chain FROM mlint.certificate_watch w"
			  " JOIN mlint.certificate c ON c.id = w.certificate_id"
			  " LEFT JOIN mlint.certificate_version v ON v.id = c.version_id"
			  " WHERE w.next_at <= pg_catalog.clock_timestamp()"
	/* Another is in use, and has had its time to get there. */
			  " OR w.checked_at < v.activated_at + '5 minutes'"
			  " AND v.activated_at <= pg_catalog.clock_timestamp() - '5 minutes'::interval"
			  " ORDER BY w.next_at LIMIT 1 FOR UPDATE OF w SKIP LOCKED",
			  SPI_OK_SELECT, 0, NULL, NULL, NULL);
	if (SPI_processed > 0)
	{
		MemoryContextSwitchTo(caller);
		w = palloc0(sizeof(Watch));
		w->id = DatumGetInt32(owner_column(1, &isnull));
		w->host = TextDatumGetCString(owner_column(2, &isnull));
		w->port = DatumGetInt32(owner_column(3, &isnull));
		w->protocol = DatumGetBool(owner_column(4, &isnull)) ?
			TLS_POSTGRES : TLS_AT_ONCE;
		w->server_name = owner_text(5);
		w->chain = owner_text(6);
	}
	owner_end(&scope);
	return w;
}

/* How many certificates there are in a chain (PEM). */
static int
length_of(const char *chain)
{
	int			n = 0;

	while ((chain = strstr(chain, "-----BEGIN CERTIFICATE-----")) != NULL)
	{
		n++;
		chain++;
	}
	return n;
}

/* What is to be said of the chain that was sent, when the leaf is ours. */
static char *
note_on(const Watch *w, const Served *served)
{
	int			expected = w->chain ? length_of(w->chain) : 0;

	if (served->length == 1 && expected > 1)
		return pstrdup("the server sends no intermediate certificate: clients that do not have it refuse the connection");
	if (served->length < expected)
		return psprintf("the server sends %d certificates, the chain has %d",
						served->length, expected);
	return NULL;
}

/* Record what was seen, and publish what begins to differ. */
static void
record_seen(const Watch *w, const Served *served)
{
	Oid			types[] = {INT4OID, TEXTOID, BYTEAOID, TIMESTAMPTZOID,
	TEXTOID};
	bytea	   *fingerprint = palloc(VARHDRSZ + CRYPTO_SHA256_BYTES);
	char	   *note = note_on(w, served);
	Datum		values[] = {Int32GetDatum(w->id),
		CStringGetTextDatum(served->serial), PointerGetDatum(fingerprint),
		TimestampTzGetDatum(served->not_after),
	note ? CStringGetTextDatum(note) : (Datum) 0};
	char		nulls[] = {' ', ' ', ' ', ' ', note ? ' ' : 'n'};
	OwnerScope	scope;

	SET_VARSIZE(fingerprint, VARHDRSZ + CRYPTO_SHA256_BYTES);
	memcpy(VARDATA(fingerprint), served->fingerprint, CRYPTO_SHA256_BYTES);
	owner_begin(&scope);
	owner_run(NULL,
			  "UPDATE mlint.certificate_watch w SET served_serial = $2,"
			  " served_fingerprint = $3, served_not_after = $4,"
			  " note = CASE WHEN v.fingerprint = $3 THEN $5 END,"
			  " checked_at = pg_catalog.clock_timestamp(), error = NULL,"
			  " differs_since = CASE WHEN v.fingerprint <> $3 THEN"
			  " coalesce(w.differs_since, pg_catalog.clock_timestamp()) END,"
			  " told_fingerprint = CASE WHEN v.fingerprint <> $3 THEN"
			  " w.told_fingerprint END,"
	/* A look when the push and the reload should be over. */
			  " next_at = least(pg_catalog.clock_timestamp() + w.every,"
			  " CASE WHEN v.fingerprint <> $3 AND"
			  " v.activated_at > pg_catalog.clock_timestamp() - interval '5 minutes'"
			  " THEN v.activated_at + interval '5 minutes' END)"
			  " FROM mlint.certificate c LEFT JOIN mlint.certificate_version v"
			  " ON v.id = c.version_id"
			  " WHERE w.id = $1 AND c.id = w.certificate_id", SPI_OK_UPDATE, 5,
			  types, values, nulls);
	owner_run(NULL,
			  "WITH told AS (UPDATE mlint.certificate_watch w"
			  " SET told_fingerprint = w.served_fingerprint"
			  " FROM mlint.certificate c JOIN mlint.certificate_version v"
			  " ON v.id = c.version_id"
			  " WHERE w.id = $1 AND c.id = w.certificate_id"
			  " AND w.differs_since IS NOT NULL"
			  " AND w.told_fingerprint IS DISTINCT FROM w.served_fingerprint"
			  " AND coalesce(v.activated_at, v.issued_at) <="
			  " pg_catalog.clock_timestamp() - interval '5 minutes'"
			  " RETURNING c.id, c.name, w.host, w.port, w.served_serial,"
			  " w.served_not_after, v.serial, w.differs_since)"
			  " SELECT mlint.publish('certificate.mismatch',"
			  " pg_catalog.jsonb_build_object('certificate', id, 'name', name,"
			  " 'host', host, 'port', port, 'serves', served_serial,"
			  " 'serves_until', served_not_after, 'should_serve', serial,"
			  " 'since', differs_since)) FROM told", SPI_OK_SELECT, 1, types,
			  values, NULL);
	owner_end(&scope);
}

/* Record why nothing could be seen. */
static void
record_failed(const Watch *w, const char *reason)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(w->id), CStringGetTextDatum(reason)};

	owner_do(NULL,
			 "UPDATE mlint.certificate_watch SET error = $2,"
			 " checked_at = pg_catalog.clock_timestamp(),"
			 " next_at = pg_catalog.clock_timestamp() + every WHERE id = $1",
			 SPI_OK_UPDATE, 2, types, values, NULL);
}

/* Look at the next server that is due; false when there is none. */
static bool
look_at_next(void *arg)
{
	Watch	   *w = next_due();
	Trial		trial;
	Served	   *volatile served = NULL;
	char	   *volatile reason = NULL;

	if (w == NULL)
		return false;
	trial_begin(&trial);
	PG_TRY();
	{
		served = tls_look(w->host, w->port, w->protocol, w->server_name,
						  false, LOOK_TIMEOUT_MS);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			ReThrowError(error);
		reason = pstrdup(error->message);
		peer_text_clean(reason);
	}
	PG_END_TRY();
	if (served)
		record_seen(w, served);
	else
		record_failed(w, reason);
	return true;
}

/* ---- the run ---- */

/* Have the job run when the next look is due. */
static bool
ask_again(void *arg)
{
	OwnerScope	scope;
	TimestampTz at;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL, "SELECT min(next_at) FROM mlint.certificate_watch",
			  SPI_OK_SELECT, 0, NULL, NULL, NULL);
	at = DatumGetTimestampTz(owner_column(1, &isnull));
	/* What is due yet is locked by somebody, or has been left for other jobs. */
	if (!isnull)
		(void) job_request_at(CERTIFICATE_WATCH_JOB,
							  Max(at, GetCurrentTimestamp() + USECS_PER_SEC));
	owner_end(&scope);
	return false;
}

/* CALL mlint.certificate_watch_run() */
Datum
mlint_certificate_watch_run(PG_FUNCTION_ARGS)
{
	TimestampTz until = GetCurrentTimestamp() + RUN_S * USECS_PER_SEC;

	job_procedure_begin(fcinfo, "mlint.certificate_watch_run()",
						JOB_RUN_HINT("certificate_watches"));
	while (GetCurrentTimestamp() < until &&
		   job_transaction(look_at_next, NULL, false))
		CHECK_FOR_INTERRUPTS();
	(void) job_transaction(ask_again, NULL, false);
	job_procedure_end();
	PG_RETURN_VOID();
}
