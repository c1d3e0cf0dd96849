/*
 * track.c
 *		usage_track(): one row, in the caller's transaction.
 *
 * The row says all that the totals need, the session's model and tags of that
 * moment too, so that what is counted later does not depend on what has become
 * of the session. It is appended past the executor (append.h); no row is
 * updated or locked.
 *
 * Somebody has to ask for the fold. A report that finds it resting does; and
 * when many come, the one that happens to be the first on every 64th page of
 * the table. That needs no counter that all would have to share, and holds
 * for reports of any size.
 *
 * A session that is removed leaves a row without a model, by which the fold
 * takes its total away: nobody but the fold ever writes totals.
 */
#include "postgres.h"

#include <math.h>

#include "access/table.h"
#include "access/xact.h"
#include "common/int.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/itemptr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/xid8.h"

#include "common/append.h"
#include "common/argument.h"
#include "common/rows.h"
#include "sessions/sessions.h"
#include "usage/usage.h"
#include "usage/usagelog.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_usage_track);

/* Reports between two requests for a fold, in pages. */
#define FOLD_PAGES			64
#define METRICS_MAX			64
#define METRIC_DIGITS_MAX	40
/* A year. */
#define LATENCY_MAX_MS		(366.0 * 86400 * 1000)

static void find_log(AppendTarget *target);

static AppendTarget target = {.name = "the usage log",.find = find_log};
static bool fold_rests;

void
usage_track_init(void)
{
	append_watch(&target);
}

static void
find_log(AppendTarget *log)
{
	UsagePosition position;

	log->from[0] = mlint_relation("usage_fold");
	usage_position(NULL, false, &position);
	log->table = usage_log_table(position.log);
	fold_rests = position.resting;
}

/*
 * Ask for the fold when this transaction commits. Once a subtransaction is
 * enough: what one asks for goes when it is rolled back.
 */
static void
request_fold(void)
{
	static TransactionId asked = InvalidTransactionId;
	TransactionId xid = GetCurrentTransactionId();

	if (xid == asked)
		return;
	(void) job_request("usage_fold");
	asked = xid;
}

static void
append_usage(Datum *values, bool *nulls)
{
	Relation	table = append_open(&target);
	ItemPointerData place;

	values[USAGE_XID - 1] =
		FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[USAGE_TRACKED_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
	place = append_row(&target, table, values, nulls);
	/* The lock stays until the transaction ends. */
	table_close(table, NoLock);
	if (fold_rests ||
		(ItemPointerGetOffsetNumber(&place) == FirstOffsetNumber &&
		 ItemPointerGetBlockNumber(&place) % FOLD_PAGES == FOLD_PAGES - 1))
		request_fold();
}

static int32
tokens_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	int64		tokens;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
	tokens = PG_GETARG_INT64(n);
	if (tokens < 0 || tokens > PG_INT32_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("%s must be 0 to %d, not " INT64_FORMAT, what,
						PG_INT32_MAX, tokens)));
	return (int32) tokens;
}

/* In microseconds, so that sums of it are exact. */
static int64
latency_argument(FunctionCallInfo fcinfo, int n)
{
	double		ms = PG_GETARG_FLOAT8(n);

	if (!(ms >= 0 && ms <= LATENCY_MAX_MS))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("latency_ms must be 0 to %.0f, not %g",
						LATENCY_MAX_MS, ms)));
	return (int64) rint(ms * 1000);
}

/* Numbers by name, or an error. False: there are none. */
static bool
check_metrics(Jsonb *custom)
{
	JsonbIterator *it;
	JsonbValue	value;
	JsonbIteratorToken token;
	char	   *name = NULL;

	if (!JB_ROOT_IS_OBJECT(custom))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("custom must be a JSON object of numbers")));
	if (JB_ROOT_COUNT(custom) > METRICS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("custom has %d metrics, more than %d",
						(int) JB_ROOT_COUNT(custom), METRICS_MAX)));
	it = JsonbIteratorInit(&custom->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			name = pnstrdup(value.val.string.val, value.val.string.len);
			usage_check_name(name, "the name of a metric");
		}
		else if (token == WJB_VALUE)
		{
			char	   *digits;

			if (value.type != jbvNumeric)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("metric \"%s\" is not a number", name),
						 errhint("custom is a JSON object of numbers, which are summed up by name.")));
			digits = DatumGetCString(DirectFunctionCall1(numeric_out,
														 NumericGetDatum(value.val.numeric)));
			if (strlen(digits) > METRIC_DIGITS_MAX)
				ereport(ERROR,
						(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						 errmsg("metric \"%s\" has more than %d digits", name,
								METRIC_DIGITS_MAX)));
		}
	}
	return JB_ROOT_COUNT(custom) > 0;
}

/*
 * mlint.usage_track(session_id, prompt_tokens, completion_tokens, model_id,
 * latency_ms, custom)
 */
Datum
mlint_usage_track(PG_FUNCTION_ARGS)
{
	char	   *session_id = required_text(fcinfo, 0, "session_id");
	Datum		values[USAGE_COLUMNS];
	bool		nulls[USAGE_COLUMNS] = {0};
	UsageSession session;
	const char *model_id;
	const char *model_version = "";

	require_writable(fcinfo);
	values[USAGE_PROMPT_TOKENS - 1] =
		Int32GetDatum(tokens_argument(fcinfo, 1, "prompt_tokens"));
	values[USAGE_COMPLETION_TOKENS - 1] =
		Int32GetDatum(tokens_argument(fcinfo, 2, "completion_tokens"));
	nulls[USAGE_LATENCY_US - 1] = PG_ARGISNULL(4);
	if (!PG_ARGISNULL(4))
		values[USAGE_LATENCY_US - 1] =
			Int64GetDatum(latency_argument(fcinfo, 4));
	nulls[USAGE_CUSTOM - 1] = PG_ARGISNULL(5) ||
		!check_metrics(PG_GETARG_JSONB_P(5));
	if (!nulls[USAGE_CUSTOM - 1])
		values[USAGE_CUSTOM - 1] = JsonbPGetDatum(PG_GETARG_JSONB_P(5));

	if (!usage_session(session_id, 0, true, &session))
		session_unknown(session_id);
	model_id = session.model_id;
	if (!PG_ARGISNULL(3))
	{
		model_id = text_to_cstring(PG_GETARG_TEXT_PP(3));
		usage_check_name(model_id, "model_id");
	}
	/* The session's version is one of the session's model. */
	if (strcmp(model_id, session.model_id) == 0)
		model_version = session.model_version;

	values[USAGE_SESSION - 1] = Int64GetDatum(session.id);
	values[USAGE_MODEL_ID - 1] = CStringGetTextDatum(model_id);
	values[USAGE_MODEL_VERSION - 1] = CStringGetTextDatum(model_version);
	values[USAGE_TAGS - 1] = session.tags;
	nulls[USAGE_TAGS - 1] = session.ntags == 0;
	append_usage(values, nulls);
	PG_RETURN_VOID();
}

void
usage_forget_session(int64 session)
{
	Datum		values[USAGE_COLUMNS];
	bool		nulls[USAGE_COLUMNS];

	memset(nulls, true, sizeof(nulls));
	nulls[USAGE_XID - 1] = false;
	nulls[USAGE_SESSION - 1] = false;
	nulls[USAGE_TRACKED_AT - 1] = false;
	nulls[USAGE_PROMPT_TOKENS - 1] = false;
	nulls[USAGE_COMPLETION_TOKENS - 1] = false;
	values[USAGE_SESSION - 1] = Int64GetDatum(session);
	values[USAGE_PROMPT_TOKENS - 1] = Int32GetDatum(0);
	values[USAGE_COMPLETION_TOKENS - 1] = Int32GetDatum(0);
	append_usage(values, nulls);
	usage_budget_forget(session);
}
