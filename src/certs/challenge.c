/*
 * challenge.c
 *		The job certificate_challenges: what an authority looks for is shown,
 *		and taken away again.
 *
 * A challenge is a row of mlint.acme_challenge, taken by the job from presence
 * to presence; each step is a transaction of its own:
 *
 *	wanted		it is written down where it will be shown	-> presenting
 *	presenting	it is shown									-> checking
 *	checking	it was seen where the authority looks		-> present
 *	removing	it is taken away							-> removed
 *
 * From presenting on something may be there, whatever became of the process; so
 * presenting and removing are done again after a crash, and what was ever in
 * presenting ends in removing: when the engine says so (its order is over), or
 * when the job finds that the order is over, is gone, or has stood still for a
 * week.
 *
 * A step that fails is rolled back alone and tried again after a delay that
 * grows. Showing is given up after some minutes, which ends the order; taking
 * away after about a day, which is logged. A record of DNS then stays to be seen
 * in the row until somebody has mended the provider; a file or what a function
 * did is forgotten: a token of an order that is over proves nothing. Seeing is no
 * more than looking now and then, until the provider's patience ends: nobody
 * waits for it.
 *
 * Solvers take turns, a step of each at a time, and one that cannot be reached
 * is left alone for a while with all that is to be done there, so that none
 * waits for long on account of another.
 *
 * Rows are not locked while a solver is called. A row that was changed
 * meanwhile has had it decided by somebody else what comes next; only that
 * something is there now must not be lost.
 *
 * Challenges that the gateway shows are no work for this job: they have no
 * solver.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "certs/certs.h"
#include "certs/solver.h"
#include "common/api.h"
#include "common/audit.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/owner.h"
#include "common/retry.h"
#include "common/trial.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_certificate_challenge_run);

/* A run stays for what is due within so long. */
#define STAY_MS			2000
/* How often it is looked whether something is seen: at first, and at last. */
#define LOOK_MIN_MS		500
#define LOOK_MAX_MS		15000
/* Others of a solver that could not be reached wait at least so long. */
#define REACH_MS		5000
/* And no longer than this, however long removing may wait, if nobody says so. */
#define PATIENCE_US		INT64CONST(120000000)

/* Whatever a service asks for, it is asked again after so long. */
#define WAIT_MAX_S		3600

/* Some minutes, and about a day: delays are half their bound on average. */
static const RetryPolicy showing = {RETRY_EXPONENTIAL, 6, 5000, 2, 120000};
static const RetryPolicy removing = {RETRY_EXPONENTIAL, 55, 10000, 2, 3600000};

/* In the order of the essay; the texts are the table's. */
typedef enum Presence
{
	WANTED,
	PRESENTING,
	CHECKING,
	PRESENT,
	REMOVING,
	REMOVED
} Presence;

static const char *const presence_names[] = {"wanted", "presenting",
"checking", "present", "removing", "removed"};

/* A row, for one step. */
typedef struct Challenge
{
	int64		id;
	Presence	presence;
	Solving		solving;
	int			attempts;
	int64		shown_ms;		/* since it was; -1: it was not */
} Challenge;

/* What the last step came to, for INJECTION. */
static const char *reached pg_attribute_unused();

static void
audit_challenge(AuditOutcome outcome, const char *action, const Challenge *c,
				const char *reason)
{
	StringInfoData details;

	initStringInfo(&details);
	appendStringInfo(&details, "{\"type\": \"%s\", \"solver\": ",
					 c->solving.type);
	escape_json(&details, c->solving.solver);
	if (reason)
	{
		appendStringInfoString(&details, ", \"reason\": ");
		escape_json(&details, reason);
	}
	appendStringInfoChar(&details, '}');
	audit(outcome, action, "challenge", c->solving.identifier, details.data);
}

/* ---- a row ---- */

static Challenge *
load(int64 id)
{
	OwnerScope	scope;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext spi;
	Challenge  *c = NULL;
	Datum		made;
	char	   *presence;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT h.presence, h.type, h.identifier, h.token, h.value,"
			  " h.solver, h.owner, h.attempts, coalesce(pg_catalog.date_part('epoch',"
			  " pg_catalog.clock_timestamp() - h.presented_at) * 1000, -1)::int8,"
			  " h.made FROM mlint.acme_challenge h WHERE h.id = $1"
			  " AND h.presence IN ('wanted', 'presenting', 'checking', 'removing')",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed > 0)
	{
		spi = MemoryContextSwitchTo(caller);
		c = palloc0(sizeof(Challenge));
		c->id = id;
		presence = owner_text(1);
		while (strcmp(presence, presence_names[c->presence]) != 0)
			c->presence++;
		c->solving.type = owner_text(2);
		c->solving.identifier = owner_text(3);
		c->solving.token = owner_text(4);
		c->solving.value = owner_text(5);
		c->solving.solver = owner_text(6);
		c->solving.owner = DatumGetObjectId(owner_column(7, &isnull));
		c->attempts = DatumGetInt32(owner_column(8, &isnull));
		c->shown_ms = DatumGetInt64(owner_column(9, &isnull));
		made = owner_column(10, &isnull);
		c->solving.made = isnull ? NULL :
			(Jsonb *) PG_DETOAST_DATUM_COPY(made);
		MemoryContextSwitchTo(spi);
	}
	owner_end(&scope);
	return c;
}

/*
 * The step is done. If somebody has decided otherwise meanwhile, that stands;
 * but what was just shown must go, also when it counts as removed.
 */
static void
enter(Challenge *c, Presence to, Jsonb *made)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, JSONBOID, BOOLOID};
	Datum		values[] = {Int64GetDatum(c->id),
		CStringGetTextDatum(presence_names[c->presence]),
		CStringGetTextDatum(presence_names[to]),
		made ? JsonbPGetDatum(made) : (Datum) 0,
	BoolGetDatum(c->presence == PRESENTING)};
	char		nulls[] = {' ', ' ', ' ', made ? ' ' : 'n', ' '};

	owner_do(NULL,
			 "UPDATE mlint.acme_challenge SET presence = CASE"
			 " WHEN presence = $2 THEN $3"
			 " WHEN presence = 'removed' AND $5 THEN 'removing'"
			 " ELSE presence END,"
			 " made = $4, attempts = 0, solver_error = NULL,"
			 " next_at = pg_catalog.clock_timestamp(),"
			 " presented_at = CASE WHEN $5 THEN pg_catalog.clock_timestamp()"
			 " ELSE presented_at END WHERE id = $1",
			 SPI_OK_UPDATE, 5, types, values, nulls);
	if (to == PRESENT)
	{
		(void) job_request(CERTIFICATE_JOB);
		worker_wake_at_commit(WORKER_JOB);
	}
	reached = presence_names[to];
}

/* Not yet: the same step again after so long. */
static void
put_off(const Challenge *c, int64 delay_us, int attempts, const char *error)
{
	Oid			types[] = {INT8OID, TEXTOID, FLOAT8OID, INT4OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(c->id),
		CStringGetTextDatum(presence_names[c->presence]),
		Float8GetDatum(delay_us < 0 ? get_float8_infinity() :
					   delay_us / 1000000.0),
	Int32GetDatum(attempts), CStringGetTextDatum(error)};

	owner_do(NULL,
			 "UPDATE mlint.acme_challenge SET next_at = CASE"
			 " WHEN $3 = 'infinity' THEN 'infinity'"
			 " ELSE pg_catalog.clock_timestamp()"
			 " + $3 * '1 second'::pg_catalog.interval END,"
			 " attempts = $4, solver_error = $5"
			 " WHERE id = $1 AND presence = $2",
			 SPI_OK_UPDATE, 5, types, values, NULL);
	reached = "put-off";
}

/* It cannot be shown: the order is over, and what may be there goes. */
static void
give_up(const Challenge *c, const char *error)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(c->id),
		CStringGetTextDatum(c->presence == WANTED ? "none" : "removing"),
		CStringGetTextDatum(error),
	CStringGetTextDatum(presence_names[c->presence])};

	audit_challenge(AUDIT_CHANGED, "challenge.give_up", c, error);
	owner_do(NULL,
			 "UPDATE mlint.acme_challenge SET status = 'given up', presence = $2,"
			 " error = $3, solver_error = NULL, attempts = 0,"
			 " next_at = pg_catalog.clock_timestamp(),"
			 " poll_at = pg_catalog.clock_timestamp()"
			 " WHERE id = $1 AND presence = $4",
			 SPI_OK_UPDATE, 4, types, values, NULL);
	(void) job_request(CERTIFICATE_JOB);
	worker_wake_at_commit(WORKER_JOB);
	reached = "given-up";
}

/* ---- steps ---- */

/* From soon to now and then, as time goes by. */
static int64
look_again_us(const Challenge *c)
{
	return Min(Max(c->shown_ms / 4, LOOK_MIN_MS), LOOK_MAX_MS) *
		INT64CONST(1000);
}

static void
step_check(Challenge *c)
{
	char	   *waiting;
	int			patience_s;

	if (solver_shows(&c->solving, &waiting, &patience_s))
		enter(c, PRESENT, c->solving.made);
	else if (c->shown_ms > patience_s * INT64CONST(1000))
		give_up(c, psprintf("the record was not seen in %d s: %s", patience_s,
							waiting));
	else
		put_off(c, look_again_us(c), 0, waiting);
}

/* Take the challenge one step on, or raise. */
static void
advance(Challenge *c)
{
	Jsonb	   *made;

	switch (c->presence)
	{
		case WANTED:
			enter(c, PRESENTING, solver_locate(&c->solving));
			break;
		case PRESENTING:
			audit_challenge(AUDIT_CHANGED, "challenge.present", c, NULL);
			made = solver_present(&c->solving);
			INJECTION("challenge-shown");
			enter(c, CHECKING, made);
			break;
		case CHECKING:
			step_check(c);
			break;
		case REMOVING:
			audit_challenge(AUDIT_CHANGED, "challenge.remove", c, NULL);
			solver_remove(&c->solving);
			INJECTION("challenge-hidden");
			enter(c, REMOVED, NULL);
			break;
		case PRESENT:
		case REMOVED:
			break;
	}
}

/* ---- failures ---- */

/* Would the next attempt fail for the same reason? */
static bool
is_lasting(int sqlstate)
{
	switch (sqlstate)
	{
		case ERRCODE_MLINT_CONFIGURATION:
		case ERRCODE_MLINT_ADDRESS_REFUSED:
		case ERRCODE_UNDEFINED_OBJECT:
		case ERRCODE_INSUFFICIENT_PRIVILEGE:
			return true;
		default:
			return false;
	}
}

/* Would others of the same solver fail, too? */
static bool
is_unreachable(int sqlstate)
{
	return sqlstate == ERRCODE_MLINT_CONNECTION ||
		sqlstate == ERRCODE_MLINT_TIMEOUT ||
		sqlstate == ERRCODE_MLINT_RATE_LIMITED ||
		sqlstate == ERRCODE_QUERY_CANCELED;
}

/* Nobody of this solver's is due before that. */
static void
leave_alone(const Challenge *c, int64 delay_us)
{
	Oid			types[] = {TEXTOID, FLOAT8OID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(c->solving.solver),
		Float8GetDatum(Max(delay_us, REACH_MS * INT64CONST(1000)) /
					   1000000.0),
	Int64GetDatum(c->id)};

	owner_do(NULL,
			 "UPDATE mlint.acme_challenge SET next_at ="
			 " pg_catalog.clock_timestamp() + $2 * '1 second'::pg_catalog.interval"
			 " WHERE id IN (SELECT h.id FROM mlint.acme_challenge h"
			 " WHERE h.solver = $1 AND h.id <> $3"
			 " AND h.presence IN ('wanted', 'presenting', 'checking', 'removing')"
			 " AND h.next_at < pg_catalog.clock_timestamp()"
			 " + $2 * '1 second'::pg_catalog.interval FOR UPDATE SKIP LOCKED)",
			 SPI_OK_UPDATE, 3, types, values, NULL);
}

/* Record that a step failed, which was rolled back. */
static void
step_failed(Challenge *c, int sqlstate, const char *error)
{
	bool		gone = c->presence == REMOVING;
	int			wait_s = sqlstate == ERRCODE_MLINT_RATE_LIMITED ?
	Min(api_retry_after(), WAIT_MAX_S) : -1;
	int64		delay = retry_delay(gone ? &removing : &showing,
									c->attempts + 1, wait_s);

	if (!gone && (delay < 0 || is_lasting(sqlstate)))
	{
		give_up(c, error);
		return;
	}
	if (delay < 0)
	{
		bool		dns = solver_is_dns(&c->solving);

		audit_challenge(AUDIT_CHANGED, "challenge.abandon", c, error);
		ereport(LOG,
				(errcode(sqlstate),
				 errmsg("what solver \"%s\" has shown for \"%s\" could not be removed, and may be left: %s",
						c->solving.solver, c->solving.identifier, error),
				 dns ? errhint("See mlint.certificate_challenges. It is tried again when the DNS provider is altered.") : 0));
		if (!dns)
		{
			enter(c, REMOVED, NULL);
			return;
		}
	}
	put_off(c, delay, c->attempts + 1, error);
	if (is_unreachable(sqlstate))
		leave_alone(c, wait_s < 0 ? Min(delay, PATIENCE_US) : delay);
}

static void
run_step(int64 id)
{
	Trial		trial;
	Challenge  *c = load(id);
	ErrorData  *volatile error = NULL;

	if (c == NULL)
		return;
	trial_begin(&trial);
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		advance(c);
		PopActiveSnapshot();
		trial_end(&trial);
	}
	PG_CATCH();
	{
		error = trial_failed(&trial);
		/* Of somebody who called us; a worker's is a function's time-out. */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED && MyWorker == NULL)
			ReThrowError(error);
	}
	PG_END_TRY();
	if (error)
		step_failed(c, error->sqlerrcode, error_reason(error));
}

/* ---- what there is to do ---- */

/* What this job has to do with, and what is over. */
#define OVER \
	"(h.order_id IS NULL OR h.status IN ('valid', 'invalid', 'given up')" \
	" OR h.presented_at < pg_catalog.clock_timestamp()" \
	" - '7 days'::pg_catalog.interval" \
	" OR EXISTS (SELECT FROM mlint.acme_order o WHERE o.id = h.order_id" \
	" AND o.finished_at IS NOT NULL))"

/* Rows that need no solver to be called. */
static void
sort_out(void)
{
	OwnerScope	scope;

	owner_begin(&scope);
	owner_run(NULL,
			  "UPDATE mlint.acme_challenge h SET solver = c.solver,"
			  " owner = c.created_by FROM mlint.acme_order o"
			  " JOIN mlint.certificate c ON c.id = o.certificate_id"
			  " WHERE o.id = h.order_id AND h.presence = 'wanted'"
			  " AND h.solver IS NULL AND c.solver IS NOT NULL",
			  SPI_OK_UPDATE, 0, NULL, NULL, NULL);
	owner_run(NULL,
			  "UPDATE mlint.acme_challenge SET presence ="
			  " CASE presence WHEN 'wanted' THEN 'none' ELSE 'removing' END,"
			  " attempts = 0, next_at = pg_catalog.clock_timestamp()"
			  " WHERE id IN (SELECT h.id FROM mlint.acme_challenge h"
			  " WHERE h.solver IS NOT NULL AND h.presence IN"
			  " ('wanted', 'presenting', 'checking', 'present') AND " OVER
			  " FOR UPDATE SKIP LOCKED)", SPI_OK_UPDATE, 0, NULL, NULL, NULL);
	owner_run(NULL,
			  "DELETE FROM mlint.acme_challenge WHERE order_id IS NULL"
			  " AND (solver IS NULL OR presence IN ('none', 'removed'))",
			  SPI_OK_DELETE, 0, NULL, NULL, NULL);
	owner_end(&scope);
}

/*
 * What is due: of each solver one, and not the one that fails again and again
 * before the others. Returns how many, in memory of "context".
 */
static int
next_due(MemoryContext context, int64 **ids)
{
	OwnerScope	scope;
	int			n;
	bool		isnull;

	sort_out();
	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT DISTINCT ON (h.type, h.solver) h.id"
			  " FROM mlint.acme_challenge h WHERE h.solver IS NOT NULL"
			  " AND h.presence IN ('wanted', 'presenting', 'checking', 'removing')"
			  " AND h.next_at <= pg_catalog.clock_timestamp()"
			  " ORDER BY h.type, h.solver, h.attempts, h.next_at, h.id",
			  SPI_OK_SELECT, 0, NULL, NULL, NULL);
	n = SPI_processed;
	*ids = MemoryContextAlloc(context, sizeof(int64) * (n + 1));
	for (int i = 0; i < n; i++)
		(*ids)[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
												SPI_tuptable->tupdesc, 1,
												&isnull));
	owner_end(&scope);
	return n;
}

/* Milliseconds until there is more to do, as far as is known; -1: nothing. */
static long
next_in(void)
{
	OwnerScope	scope;
	TimestampTz at;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT min(h.next_at) FROM mlint.acme_challenge h"
			  " WHERE h.solver IS NOT NULL AND h.next_at < 'infinity'"
			  " AND h.presence IN ('wanted', 'presenting', 'checking', 'removing')",
			  SPI_OK_SELECT, 0, NULL, NULL, NULL);
	at = DatumGetTimestampTz(owner_column(1, &isnull));
	owner_end(&scope);
	if (isnull)
		return -1;
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), at);
}

/* ---- the job ---- */

/*
 * Begin to work in a transaction: in a context that goes with it, and on disk
 * before the next step begins, which relies on it.
 */
static MemoryContext
begin_work(void)
{
	job_commit_durably();
	return MemoryContextSwitchTo(TopTransactionContext);
}

static void
end_work(MemoryContext own)
{
	MemoryContextSwitchTo(own);
	SPI_commit();
}

/* All that is due now, solvers in turn. */
static void
run_due(MemoryContext own)
{
	for (;;)
	{
		int64	   *ids;
		int			n;

		begin_work();
		n = next_due(own, &ids);
		end_work(own);
		for (int i = 0; i < n; i++)
		{
			CHECK_FOR_INTERRUPTS();
			begin_work();
			run_step(ids[i]);
			end_work(own);
			INJECTION(psprintf("challenge-%s", reached));
		}
		pfree(ids);
		if (n == 0)
			return;
	}
}

/* CALL mlint.certificate_challenge_run() */
Datum
mlint_certificate_challenge_run(PG_FUNCTION_ARGS)
{
	MemoryContext own;

	job_procedure_begin(fcinfo, "mlint.certificate_challenge_run()",
						JOB_RUN_HINT("certificate_challenges"));
	own = CurrentMemoryContext;

	for (;;)
	{
		long		wait_ms;

		run_due(own);
		begin_work();
		wait_ms = next_in();
		if (wait_ms > STAY_MS || (wait_ms >= 0 && MyWorker == NULL))
			(void) job_request_at(CERTIFICATE_CHALLENGE_JOB,
								  GetCurrentTimestamp() +
								  wait_ms * INT64CONST(1000));
		end_work(own);
		if (wait_ms < 0 || wait_ms > STAY_MS || MyWorker == NULL)
			break;
		worker_wait(wait_ms);
		CHECK_FOR_INTERRUPTS();
	}
	job_procedure_end();
	PG_RETURN_VOID();
}
