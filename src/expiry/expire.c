/*
 * expire.c
 *		The job archive_expire: what is done when a retention period ends.
 *
 * When the period of an archive ends follows from its policy as it is now. The
 * column expires_at is where the job finds it by index, and may be behind: so a
 * run first brings up to date the archives of policies that were altered, in
 * the order of their ids, and then takes what is due in the order of
 * expires_at, looks at the policy once more, and
 *
 *	deletes it		if the policy says auto_delete and it is not held,
 *	announces it	else (archive.expired), once; what was announced is out of
 *					the index, so that it costs later runs nothing.
 *
 * What changes the answer puts it back there: a hold that is released, a
 * policy that is applied or altered.
 *
 * Both go in batches of a transaction each, of 100 or 1,000 archives or a
 * second's work, and pass over what others have locked: the next run finds it.
 * An archive is deleted in a subtransaction under the lock of its session and,
 * shared, of its policy, so that what holds at that moment counts. One that
 * fails stays as it was; the rest goes on, and the run ends in an error that
 * says how many did.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "archive/archive.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/owner.h"
#include "common/trial.h"
#include "delivery/delivery.h"
#include "retention/retention.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_archive_expire);

#define EXPIRE_BATCH		100
#define REFRESH_BATCH		1000
/* A batch takes no longer than that, and one archive more. */
#define BATCH_US			USECS_PER_SEC
/* Failures of a run that are written down one by one. */
#define FAILURES_TOLD		10

/* How far a run has got. */
typedef struct Run
{
	TimestampTz began;
	TimestampTz after_time;		/* the last one that was looked at */
	pg_uuid_t	after_id;
	int64		deleted;
	int64		announced;
	int64		failed;
	char	   *first_error;	/* in the run's memory context */
	MemoryContext context;
	char	   *session;		/* what is being deleted, in the transaction's */
	char	   *policy;
} Run;

/* An archive that seems due. */
typedef struct Due
{
	TimestampTz expires_at;
	pg_uuid_t	id;
} Due;

/* ---- altered policies ---- */

/*
 * Bring up to date some archives of a policy that was altered. False: there is
 * none left that is not locked.
 *
 * Whoever alters the policy meanwhile waits for the row of retention_stale,
 * and has us begin again.
 */
static bool
refresh_batch(void *arg)
{
	Oid			types[] = {INT4OID, UUIDOID, INT4OID, BOOLOID};
	Datum		values[4];
	OwnerScope	scope;
	bool		isnull;
	bool		again;
	int64		found;
	int64		locked;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT s.policy, coalesce(s.after, '00000000-0000-0000-0000-000000000000'),"
			  " s.again FROM mlint.retention_stale s"
			  " WHERE NOT (s.again AND s.after IS NULL)"
			  " ORDER BY s.policy LIMIT 1 FOR UPDATE SKIP LOCKED",
			  SPI_OK_SELECT, 0, NULL, NULL, NULL);
	if (SPI_processed == 0)
	{
		owner_end(&scope);
		return false;
	}
	values[0] = owner_column(1, &isnull);
	values[1] = owner_column(2, &isnull);
	again = DatumGetBool(owner_column(3, &isnull));
	owner_run(NULL,
			  "SELECT days, auto_delete FROM mlint.retention_policy WHERE id = $1",
			  SPI_OK_SELECT, 1, types, values, NULL);
	values[2] = owner_column(1, &isnull);
	values[3] = owner_column(2, &isnull);
	owner_run(NULL,
			  "WITH batch AS MATERIALIZED (SELECT a.id FROM mlint.archive a"
			  " WHERE a.policy_id = $1 AND a.id > $2 ORDER BY a.id"
			  " LIMIT " CppAsString2(REFRESH_BATCH) "),"
			  " free AS MATERIALIZED (SELECT a.id, a.archived_at"
			  " + '24:00'::interval * greatest($3, a.retention_days,"
			  " (SELECT l.days FROM mlint.retention_level l"
			  " WHERE l.level = a.compliance)) AS ends_at"
			  " FROM mlint.archive a JOIN batch b ON b.id = a.id"
			  " FOR NO KEY UPDATE OF a SKIP LOCKED),"
			  " changed AS (UPDATE mlint.archive a SET expires_at = f.ends_at,"
			  " announced_at = NULL FROM free f"
			  " WHERE a.id = f.id AND a.policy_id = $1"
			  " AND (a.expires_at <> f.ends_at"
			  " OR ($4 AND a.announced_at IS NOT NULL)))"
			  " SELECT (SELECT pg_catalog.count(*) FROM batch),"
			  " (SELECT pg_catalog.count(*) FROM free),"
			  " (SELECT b.id FROM batch b ORDER BY b.id DESC LIMIT 1)",
			  SPI_OK_SELECT, 4, types, values, NULL);
	found = DatumGetInt64(owner_column(1, &isnull));
	locked = DatumGetInt64(owner_column(2, &isnull));
	again |= locked < found;
	values[1] = owner_column(3, &isnull);
	if (found == REFRESH_BATCH)
		owner_run(NULL, again ?
				  "UPDATE mlint.retention_stale SET after = $2, again = true"
				  " WHERE policy = $1" :
				  "UPDATE mlint.retention_stale SET after = $2 WHERE policy = $1",
				  SPI_OK_UPDATE, 2, types, values, NULL);
	else if (again)
		/* For the next run, which clears the mark. */
		owner_run(NULL,
				  "UPDATE mlint.retention_stale SET after = NULL, again = true"
				  " WHERE policy = $1", SPI_OK_UPDATE, 1, types, values, NULL);
	else
		owner_run(NULL,
				  "DELETE FROM mlint.retention_stale WHERE policy = $1",
				  SPI_OK_DELETE, 1, types, values, NULL);
	owner_end(&scope);
	INJECTION("expire-refresh");
	return true;
}

/* Those that were locked in the last run are looked at in this one. */
static bool
refresh_begin(void *arg)
{

	owner_do(NULL,
			 "UPDATE mlint.retention_stale s SET again = false"
			 " FROM (SELECT i.policy FROM mlint.retention_stale i"
			 " WHERE i.again AND i.after IS NULL FOR UPDATE SKIP LOCKED) f"
			 " WHERE s.policy = f.policy", SPI_OK_UPDATE, 0, NULL, NULL, NULL);
	return false;
}

/* ---- what is due ---- */

/* The next archives whose expires_at is past, palloc'd. */
static int
find_due(const Run *r, Due **due)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {TIMESTAMPTZOID, UUIDOID, TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(r->after_time),
	UUIDPGetDatum(&r->after_id), TimestampTzGetDatum(r->began)};
	OwnerScope	scope;
	bool		isnull;
	int			n;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT a.expires_at, a.id FROM mlint.archive a"
			  " WHERE a.announced_at IS NULL AND a.expires_at <= $3"
			  " AND (a.expires_at, a.id) > ($1, $2)"
			  " ORDER BY a.expires_at, a.id LIMIT " CppAsString2(EXPIRE_BATCH),
			  SPI_OK_SELECT, 3, types, values, NULL);
	n = (int) SPI_processed;
	*due = MemoryContextAlloc(context, n * sizeof(Due) + 1);
	for (int i = 0; i < n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		(*due)[i].expires_at =
			DatumGetTimestampTz(SPI_getbinval(row, desc, 1, &isnull));
		(*due)[i].id =
			*DatumGetUUIDP(SPI_getbinval(row, desc, 2, &isnull));
	}
	owner_end(&scope);
	return n;
}

/*
 * Lock the archive's session against all others, and its policy against
 * alterations. False: another transaction has one of them, or it is gone.
 */
static bool
lock_archive(Datum id)
{
	static SPIPlanPtr session = NULL;
	static SPIPlanPtr archive = NULL;
	static SPIPlanPtr policy = NULL;
	static SPIPlanPtr without = NULL;
	Oid			types[] = {UUIDOID};

	owner_run(&session, "SELECT FROM mlint.session s WHERE s.id ="
			  " (SELECT a.session FROM mlint.archive a WHERE a.id = $1)"
			  " FOR UPDATE SKIP LOCKED", SPI_OK_SELECT, 1, types, &id, NULL);
	if (SPI_processed == 0)
		return false;
	owner_run(&archive, "SELECT FROM mlint.archive WHERE id = $1 FOR UPDATE SKIP LOCKED",
			  SPI_OK_SELECT, 1, types, &id, NULL);
	if (SPI_processed == 0)
		return false;
	owner_run(&policy, "SELECT FROM mlint.retention_policy p WHERE p.id ="
			  " (SELECT a.policy_id FROM mlint.archive a WHERE a.id = $1)"
			  " FOR SHARE SKIP LOCKED", SPI_OK_SELECT, 1, types, &id, NULL);
	if (SPI_processed > 0)
		return true;
	owner_run(&without, "SELECT FROM mlint.archive WHERE id = $1 AND policy_id IS NULL",
			  SPI_OK_SELECT, 1, types, &id, NULL);
	return SPI_processed > 0;
}

static void
audit_expired(AuditOutcome outcome, const char *archive, const char *session,
			  const char *policy, const char *error)
{
	StringInfoData details;

	initStringInfo(&details);
	appendStringInfoString(&details, "{\"policy\": ");
	if (policy)
		escape_json(&details, policy);
	else
		appendStringInfoString(&details, "null");
	appendStringInfoString(&details, ", \"reason\": \"expired\", \"session\": ");
	if (session)
		escape_json(&details, session);
	else
		appendStringInfoString(&details, "null");
	if (error)
	{
		appendStringInfoString(&details, ", \"error\": ");
		escape_json(&details, error);
	}
	appendStringInfoChar(&details, '}');
	audit(outcome, "archive.delete", "archive", archive, details.data);
}

/*
 * One archive, whose period seems to be over: deleted, announced, or found not
 * to be due. In an owner scope and a subtransaction.
 */
static void
expire_one(Run *r, const pg_uuid_t *archive)
{
	static SPIPlanPtr found = NULL;
	static SPIPlanPtr behind = NULL;
	static SPIPlanPtr announce = NULL;
	Oid			types[] = {UUIDOID, TIMESTAMPTZOID};
	Datum		values[] = {UUIDPGetDatum(archive),
	TimestampTzGetDatum(r->began)};
	bool		isnull;
	char	   *id;
	Jsonb	   *data;

	if (!lock_archive(values[0]))
		return;
	owner_run(&found, "SELECT v.ends_at <= $2, v.auto_delete AND h.held IS NULL,"
			  " v.archive_id::text, v.session_id::text, v.policy,"
			  " pg_catalog.jsonb_build_object('archive_id', v.archive_id,"
			  " 'session_id', v.session_id, 'policy', v.policy,"
			  " 'compliance', v.compliance, 'archived_at', v.archived_at,"
			  " 'expired_at', v.ends_at, 'bytes', a.stored_bytes,"
			  " 'auto_delete', v.auto_delete, 'held', h.held IS NOT NULL)"
			  " FROM mlint.archive_periods v"
			  " JOIN mlint.archive a ON a.id = v.archive_id"
			  " LEFT JOIN LATERAL (SELECT true AS held FROM mlint.hold h"
			  " WHERE h.session = a.session AND h.released_at IS NULL LIMIT 1) h"
			  " ON true WHERE v.archive_id = $1 AND v.announced_at IS NULL",
			  SPI_OK_SELECT, 2, types, values, NULL);
	if (SPI_processed == 0)
		return;
	if (!DatumGetBool(owner_column(1, &isnull)))
	{
		owner_run(&behind, "UPDATE mlint.archive a SET expires_at = v.ends_at"
				  " FROM mlint.archive_periods v"
				  " WHERE v.archive_id = a.id AND a.id = $1",
				  SPI_OK_UPDATE, 1, types, values, NULL);
		return;
	}
	if (DatumGetBool(owner_column(2, &isnull)))
	{
		TupleDesc	desc = SPI_tuptable->tupdesc;
		HeapTuple	row = SPI_tuptable->vals[0];

		/* Outside of SPI's memory: also for what is said if it fails. */
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

		id = SPI_getvalue(row, desc, 3);
		r->session = SPI_getvalue(row, desc, 4);
		r->policy = SPI_getvalue(row, desc, 5);
		MemoryContextSwitchTo(old);
		if (archive_remove(archive))
		{
			audit_expired(AUDIT_CHANGED, id, r->session, r->policy, NULL);
			r->deleted++;
		}
		return;
	}
	data = DatumGetJsonbPCopy(owner_column(6, &isnull));
	owner_run(&announce, "UPDATE mlint.archive SET announced_at ="
			  " pg_catalog.clock_timestamp() WHERE id = $1",
			  SPI_OK_UPDATE, 1, types, values, NULL);
	(void) event_publish("archive.expired", data,
						 DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
															CStringGetDatum("{}"))),
						 NULL, 0, 0);
	r->announced++;
}

/* What could not be done: written down, unless there is too much of it. */
static void
expire_failed(Run *r, const pg_uuid_t *archive, const ErrorData *error)
{
	char	   *id = DatumGetCString(DirectFunctionCall1(uuid_out,
														 UUIDPGetDatum(archive)));

	if (r->failed++ == 0)
		r->first_error = MemoryContextStrdup(r->context,
											 psprintf("archive \"%s\": %s", id,
													  error->message));
	if (r->failed > FAILURES_TOLD)
		return;
	audit_expired(AUDIT_FAILED, id, r->session, r->policy, error->message);
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("archive \"%s\", whose retention period is over, could not be dealt with: %s",
					id, error->message)));
}

/* Waiting for others, or being waited for, is no failure of the archive's. */
static bool
is_contention(int sqlstate)
{
	return sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED ||
		sqlstate == ERRCODE_T_R_SERIALIZATION_FAILURE ||
		sqlstate == ERRCODE_LOCK_NOT_AVAILABLE;
}

static void
try_one(Run *r, const pg_uuid_t *archive)
{
	Run			before = *r;
	Trial		trial;
	ErrorData  *volatile error = NULL;

	r->session = r->policy = NULL;
	trial_begin(&trial);
	PG_TRY();
	{
		OwnerScope	scope;

		owner_begin(&scope);
		expire_one(r, archive);
		owner_end(&scope);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		error = trial_failed(&trial);
	}
	PG_END_TRY();
	if (error == NULL)
		return;
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	r->deleted = before.deleted;
	r->announced = before.announced;
	if (!is_contention(error->sqlerrcode))
		expire_failed(r, archive, error);
	FreeErrorData(error);
}

/* A transaction's work. False: there was nothing left that is due. */
static bool
expire_batch(void *arg)
{
	Run		   *r = arg;
	TimestampTz began = GetCurrentTimestamp();
	Due		   *due;
	int			n = find_due(r, &due);

	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		try_one(r, &due[i].id);
		r->after_time = due[i].expires_at;
		r->after_id = due[i].id;
		INJECTION("expire-archive");
		if (GetCurrentTimestamp() - began >= BATCH_US)
			break;
	}
	return n > 0;
}

/* CALL mlint.archive_expire() */
Datum
mlint_archive_expire(PG_FUNCTION_ARGS)
{
	Run			r = {.after_time = DT_NOBEGIN,.began = GetCurrentTimestamp()};

	require_writable(fcinfo);
	job_procedure_begin(fcinfo, "mlint.archive_expire()",
						JOB_RUN_HINT("archive_expire"));
	r.context = CurrentMemoryContext;

	(void) job_transaction(refresh_begin, NULL, false);
	while (job_transaction(refresh_batch, NULL, false))
		;
	while (job_transaction(expire_batch, &r, false))
		;
	if (r.failed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%lld archives whose retention period is over could not be dealt with",
						(long long) r.failed),
				 errdetail("%lld were deleted, %lld announced. The first failure: %s.",
						   (long long) r.deleted, (long long) r.announced,
						   r.first_error)));
	job_procedure_end();
	PG_RETURN_VOID();
}
