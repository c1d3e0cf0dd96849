/*
 * wait.c
 *		mlint.certificate_wait().
 *
 * What is waited for is done by jobs in transactions of their own, so it is
 * looked at with the latest snapshot, whatever the caller's isolation level;
 * and what the caller itself has asked for and not committed will not be done
 * while it waits, which is an error at once.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "certs/lifecycle.h"
#include "common/argument.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/owner.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_certificate_wait);

/* Somebody who waits looks again after so long in any case. */
#define LOOK_MS		1000
#define WAIT_MAX_S	PG_INT32_MAX

/* What a look shows; texts are palloc'd. */
typedef struct Look
{
	char	   *name;
	char	   *state;
	char	   *error;			/* NULL: nothing failed */
	char	   *problem;		/* of the last order, if it failed; or NULL */
	int			attempts;
	bool		under_way;
	bool		uncommitted;	/* by this transaction */
	char	   *account_error;	/* its account was refused: it waits for that */
	char	   *account;		/* NULL: it was imported */
	TimestampTz room_at;		/* when its account has room; DT_NOBEGIN: now */
	/* Of the order that is under way. */
	char	   *order_error;	/* NULL: none is, or nothing has failed */
	bool		limited;		/* that is a limit of the authority's */
	TimestampTz order_at;		/* when it goes on */
} Look;

/* Look at the certificate as it is committed now; false: there is none. */
static bool
look_at(const pg_uuid_t *id, Look *look)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext spi;
	OwnerScope	scope;
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(id)};
	bool		isnull;
	bool		found;

	owner_begin(&scope);
	if (plan == NULL)
	{
		plan = SPI_prepare("SELECT c.name, c.state, c.error, c.attempts,"
						   " c.state IN ('REQUESTED', 'ISSUING', 'RENEWING')"
						   " OR c.next_version_id IS NOT NULL"
						   " OR coalesce(c.due_at <= pg_catalog.clock_timestamp(), false)"
						   " OR coalesce(v.revoke_at IS NOT NULL"
						   " AND v.revoked_at IS NULL, false),"
						   " c.xmin, (SELECT o.problem FROM mlint.acme_order o"
						   " WHERE o.certificate_id = c.id"
						   " AND o.finished_at IS NOT NULL"
						   " ORDER BY o.id DESC LIMIT 1),"
						   " coalesce(a.not_before, '-infinity'), a.name,"
						   " CASE WHEN a.status = 'failed' AND c.due_at IS NOT NULL"
						   " THEN a.error END, p.error,"
						   " coalesce(p.problem = 'rateLimited', false),"
						   " coalesce(p.next_at, '-infinity')"
						   " FROM mlint.certificate c"
						   " LEFT JOIN mlint.acme_order p"
						   " ON p.certificate_id = c.id"
						   " AND p.finished_at IS NULL"
						   " LEFT JOIN mlint.certificate_version v"
						   " ON v.id = c.version_id"
						   " LEFT JOIN mlint.acme_account a"
						   " ON a.id = c.account_id"
						   " WHERE c.id = $1", 1, types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare to look at a certificate");
	}
	if (SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(),
							 InvalidSnapshot, true, false,
							 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look at a certificate");
	found = SPI_processed > 0;
	if (found)
	{
		spi = MemoryContextSwitchTo(caller);
		look->name = owner_text(1);
		look->state = owner_text(2);
		look->error = owner_text(3);
		look->problem = owner_text(7);
		look->account = owner_text(9);
		look->account_error = owner_text(10);
		look->order_error = owner_text(11);
		MemoryContextSwitchTo(spi);
		look->attempts = DatumGetInt32(owner_column(4, &isnull));
		look->under_way = DatumGetBool(owner_column(5, &isnull));
		look->uncommitted =
			TransactionIdIsCurrentTransactionId(DatumGetTransactionId(owner_column(6, &isnull)));
		look->room_at = DatumGetTimestampTz(owner_column(8, &isnull));
		look->limited = DatumGetBool(owner_column(12, &isnull));
		look->order_at = DatumGetTimestampTz(owner_column(13, &isnull));
	}
	owner_end(&scope);
	return found;
}

/* Raise what failed. */
static void
raise_failure(const Look *look)
{
	int			code = ERRCODE_MLINT_API;

	if (look->problem && strcmp(look->problem, "rateLimited") == 0)
		code = ERRCODE_MLINT_RATE_LIMITED;
	else if (look->problem &&
			 (strcmp(look->problem, "accountDoesNotExist") == 0 ||
			  strcmp(look->problem, "externalAccountRequired") == 0))
		code = ERRCODE_MLINT_AUTHENTICATION;
	ereport(ERROR,
			(errcode(code),
			 errmsg("certificate \"%s\" is %s: %s", look->name, look->state,
					look->error),
			 errhint("mlint.certificates and mlint.certificate_orders tell more, and when it is tried again.")));
}

/* Raise that its order waits for longer than anybody waits here. */
static void
pg_attribute_noreturn()
raise_limit(const Look *look)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_RATE_LIMITED),
			 errmsg("certificate \"%s\" is still %s: %s", look->name,
					look->state, look->order_error),
			 errdetail("It goes on at %s.", timestamptz_to_str(look->order_at)),
			 errhint("mlint.certificate_orders shows how far it is.")));
}

static void
pg_attribute_noreturn()
raise_timeout(const Look *look)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_TIMEOUT),
			 errmsg("certificate \"%s\" is still %s", look->name, look->state),
			 look->order_error ? errdetail("%s", look->order_error) :
			 look->room_at > GetCurrentTimestamp() ?
			 errdetail("Its authority has asked to be left alone until %s.",
					   timestamptz_to_str(look->room_at)) : 0,
			 errhint("It goes on; mlint.certificate_orders shows how far it is, and mlint.jobs whether the job certificates runs.")));
}

/*
 * Look, and raise what there is to raise. True: nothing is under way any more.
 */
static bool
rests(const pg_uuid_t *id, Look *look)
{
	if (!look_at(id, look))
		certificate_unknown(id);
	if (look->uncommitted && look->under_way)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("certificate \"%s\" was asked for in this transaction, and nothing happens before it commits",
						look->name),
				 errhint("Commit, and wait then.")));

	/*
	 * Under way or not: a target, or an order, has failed, and is tried
	 * again.
	 */
	if (look->error && (!look->under_way || strcmp(look->state, "ISSUED") == 0))
		raise_failure(look);
	if (look->account_error && look->under_way)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_API),
				 errmsg("certificate \"%s\" is %s, and waits for its account \"%s\", which could not be registered: %s",
						look->name, look->state, look->account,
						look->account_error),
				 errhint("Create the account again, with what is right; the certificate is ordered then.")));
	return !look->under_way;
}

static double
seconds_of(Datum interval)
{
	return DatumGetFloat8(DirectFunctionCall2(interval_part,
											  CStringGetTextDatum("epoch"),
											  interval));
}

/* mlint.certificate_wait(id, timeout) */
Datum
mlint_certificate_wait(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = required_uuid(fcinfo, 0, "id");
	TimestampTz deadline;
	Look		look;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("timeout must not be null")));
	deadline = GetCurrentTimestamp() +
		(TimestampTz) (Min(Max(seconds_of(PG_GETARG_DATUM(1)), 0),
						   WAIT_MAX_S) * USECS_PER_SEC);
	ConditionVariablePrepareToSleep(worker_delivered());
	while (!rests(id, &look))
	{
		long		left = (deadline - GetCurrentTimestamp()) / 1000;

		if (look.limited && look.order_at > deadline)
			raise_limit(&look);
		if (left <= 0)
			raise_timeout(&look);
		(void) ConditionVariableTimedSleep(worker_delivered(),
										   Min(left + 1, LOOK_MS),
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	PG_RETURN_TEXT_P(cstring_to_text(look.state));
}
