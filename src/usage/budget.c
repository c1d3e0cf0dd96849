/*
 * budget.c
 *		Budgets: how much may be spent, and refusing more.
 *
 * What is spent is always recorded; what a budget refuses is what leads to
 * spending. How a budget stands is a report like any other (room.sql), in the
 * latest snapshot and with what this transaction has reported itself, so that
 * it is exact at once.
 *
 * Each process keeps a list of the budgets that refuse, until the relcache
 * invalidation of their table comes. A session to which none of them applies
 * costs one look at its row, and nothing when there are none.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/relwatch.h"
#include "common/rows.h"
#include "sessions/sessions.h"
#include "usage/usage.h"
#include "usage/usagelog.h"

PG_FUNCTION_INFO_V1(mlint_usage_budget_set);
PG_FUNCTION_INFO_V1(mlint_usage_budget_drop);
PG_FUNCTION_INFO_V1(mlint_usage_budget_check);
PG_FUNCTION_INFO_V1(mlint_usage_budget_decision);
PG_FUNCTION_INFO_V1(mlint_usage_budget_states);

#define MONEY_DIGITS_MAX	40

/* The arguments of usage_budget_set(), in their order. */
enum
{
	SCOPE, TOKENS, MONEY, CURRENCY, PER, ACTION
};

/* Columns of mlint.usage_budget. */
enum
{
	BUDGET_SCOPE = 1, BUDGET_NAME, BUDGET_PER, BUDGET_TOKENS, BUDGET_MONEY,
	BUDGET_CURRENCY, BUDGET_ACTION
};

static const char *const periods[] = {"hour", "day", "week", "month", "ever",
NULL};
static const char *const actions[] = {"event", "refuse", NULL};

/* What identifies a budget. */
typedef struct Budget
{
	char		scope;			/* USAGE_OF_... */
	char	   *name;
	char	   *per;
} Budget;

/* Those that refuse, as this process knows them. */
static struct
{
	bool		stale;			/* something has changed since */
	bool		complete;		/* no error has ended the reading */
	Oid			table;
	MemoryContext context;
	int			n;
	Budget	   *budgets;
}			cache = {.stale = true};

static void
mark_stale(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == cache.table)
		cache.stale = true;
}

void
usage_budget_init(void)
{
	relation_watch(mark_stale, (Datum) 0);
}

static void
read_budgets(void)
{
	RowScan		scan;
	HeapTuple	row;
	bool		isnull;
	MemoryContext old;
	int			room = 4;

	if (cache.context)
		MemoryContextReset(cache.context);
	else
		cache.context = AllocSetContextCreate(CacheMemoryContext,
											  "mlint budgets",
											  ALLOCSET_SMALL_SIZES);
	cache.n = 0;
	cache.complete = false;
	cache.table = mlint_relation("usage_budget");
	cache.stale = false;
	cache.budgets = MemoryContextAlloc(cache.context, sizeof(Budget) * room);
	rows_begin(&scan, "usage_budget", "usage_budget_pkey", 0, NULL, true);
	old = MemoryContextSwitchTo(cache.context);
	while ((row = rows_next(&scan)) != NULL)
	{
		Budget		budget;
		Datum		action = heap_getattr(row, BUDGET_ACTION, scan.desc,
										  &isnull);

		if (strcmp(TextDatumGetCString(action), "refuse") != 0)
			continue;
		budget.scope = DatumGetChar(heap_getattr(row, BUDGET_SCOPE, scan.desc,
												 &isnull));
		budget.name = TextDatumGetCString(heap_getattr(row, BUDGET_NAME,
													   scan.desc, &isnull));
		budget.per = TextDatumGetCString(heap_getattr(row, BUDGET_PER,
													  scan.desc, &isnull));
		if (cache.n == room)
			cache.budgets = repalloc(cache.budgets,
									 sizeof(Budget) * (room *= 2));
		cache.budgets[cache.n++] = budget;
	}
	MemoryContextSwitchTo(old);
	rows_end(&scan);
	cache.complete = true;
}

/* Are there any that refuse? */
static bool
budgets_known(void)
{
	AcceptInvalidationMessages();
	while (cache.stale || !cache.complete)
		read_budgets();
	return cache.n > 0;
}

/* "tag:x per month", palloc'd. */
static char *
budget_title(const Budget *budget)
{
	const char *what = budget->scope == USAGE_OF_ALL ? "all" :
	budget->scope == USAGE_OF_MODEL ? "model:" :
	budget->scope == USAGE_OF_TAG ? "tag:" : "session:";

	if (strcmp(budget->per, "ever") == 0)
		return psprintf("%s%s", what, budget->name);
	return psprintf("%s%s per %s", what, budget->name, budget->per);
}

static bool
applies(const Budget *budget, const UsageSession *session)
{
	switch (budget->scope)
	{
		case USAGE_OF_ALL:
			return true;
		case USAGE_OF_MODEL:
			return strcmp(budget->name, session->model_id) == 0;
		case USAGE_OF_SESSION:
			return strcmp(budget->name, session->session_id) == 0;
	}
	for (int i = 0; i < session->ntags; i++)
	{
		if (strcmp(budget->name, TextDatumGetCString(session->tag[i])) == 0)
			return true;
	}
	return false;
}

/* How a budget stands. */
typedef struct Standing
{
	bool		found;
	TimestampTz ends;
	bool		limits_tokens;
	int64		tokens;
	int64		tokens_spent;
	char	   *spent;			/* "120 of 100 tokens are spent." */
	double		percent;
	bool		exceeded;
} Standing;

/*
 * As of now, this transaction's own reports included. In a memory context of
 * the caller's.
 */
static void
budget_standing(const Budget *budget, Standing *standing)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext caller = CurrentMemoryContext;
	Datum		args[3] = {CharGetDatum(budget->scope),
	CStringGetTextDatum(budget->name), CStringGetTextDatum(budget->per)};
	OwnerScope	owner;

	memset(standing, 0, sizeof(*standing));
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	owner_begin(&owner);
	if (!plan)
	{
		Oid			types[3] = {CHAROID, TEXTOID, TEXTOID};
		SPIPlanPtr	made =
		SPI_prepare("SELECT s.ends, b.tokens, s.tokens_spent,"
					" CASE WHEN s.tokens_spent >= b.tokens THEN"
					" pg_catalog.format('%s of %s tokens are spent.',"
					" s.tokens_spent, b.tokens)"
					" ELSE pg_catalog.format('%s of %s %s are spent.',"
					" pg_catalog.trim_scale(s.money_spent),"
					" pg_catalog.trim_scale(b.money), b.currency) END,"
					" s.percent::double precision, s.percent >= 100"
					" FROM mlint.usage_budget b,"
					" mlint.usage_budget_state(b, pg_catalog.clock_timestamp()) s"
					" WHERE b.scope = $1 AND b.name = $2 AND b.per = $3"
					" AND b.action = 'refuse'", 3, types);

		if (!made || SPI_keepplan(made) != 0)
			elog(ERROR, "could not prepare a look at a budget");
		plan = made;
	}
	if (SPI_execute_plan(plan, args, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read a budget");
	if (SPI_processed == 1)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		standing->found = true;
		standing->ends = DatumGetTimestampTz(SPI_getbinval(row, desc, 1,
														   &isnull));
		standing->tokens = DatumGetInt64(SPI_getbinval(row, desc, 2,
													   &isnull));
		standing->limits_tokens = !isnull;
		standing->tokens_spent = DatumGetInt64(SPI_getbinval(row, desc, 3,
															 &isnull));
		standing->spent = MemoryContextStrdup(caller,
											  SPI_getvalue(row, desc, 4));
		standing->percent = DatumGetFloat8(SPI_getbinval(row, desc, 5,
														 &isnull));
		standing->exceeded = DatumGetBool(SPI_getbinval(row, desc, 6,
														&isnull));
	}
	owner_end(&owner);
	PopActiveSnapshot();
}

static void
pg_attribute_noreturn()
refuse(const Budget *budget, const Standing *standing)
{
	TimestampTz now = GetCurrentTimestamp();

	if (TIMESTAMP_NOT_FINITE(standing->ends))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_RATE_LIMITED),
				 errmsg("usage budget \"%s\" is exceeded",
						budget_title(budget)),
				 errdetail("%s It does not begin anew.", standing->spent),
				 errhint("mlint.usage_budget_set() can raise it.")));
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_RATE_LIMITED),
			 errmsg("usage budget \"%s\" is exceeded", budget_title(budget)),
			 errdetail("%s Retry after %.3f seconds, at %s.", standing->spent,
					   Max(standing->ends - now, 0) / 1000000.0,
					   timestamptz_to_str(standing->ends)),
			 errhint("Try again then, when it begins anew; mlint.usage_budget_set() can raise it.")));
}

/*
 * The budget that says most about a session: the first that is spent, else
 * the one that is spent the most. False: none applies.
 */
static bool
decisive_budget(const UsageSession *session, Budget *budget,
				Standing *standing)
{
	bool		found = false;
	int			n = 0;
	Budget	   *mine = palloc(sizeof(Budget) * Max(cache.n, 1));

	/* The list may be read again while we look at them. */
	for (int i = 0; i < cache.n; i++)
	{
		if (!applies(&cache.budgets[i], session))
			continue;
		mine[n].scope = cache.budgets[i].scope;
		mine[n].name = pstrdup(cache.budgets[i].name);
		mine[n++].per = pstrdup(cache.budgets[i].per);
	}
	for (int i = 0; i < n; i++)
	{
		Standing	s;

		budget_standing(&mine[i], &s);
		if (!s.found || (found && s.percent <= standing->percent))
			continue;
		found = true;
		*budget = mine[i];
		*standing = s;
		if (s.exceeded)
			break;
	}
	return found;
}

static void
require(const UsageSession *session)
{
	Budget		budget;
	Standing	standing;

	if (decisive_budget(session, &budget, &standing) && standing.exceeded)
		refuse(&budget, &standing);
}

void
usage_budget_require(int64 session)
{
	UsageSession found;

	if (budgets_known() && usage_session(NULL, session, true, &found))
		require(&found);
}

/* mlint.usage_budget_check(session_id) */
Datum
mlint_usage_budget_check(PG_FUNCTION_ARGS)
{
	char	   *session_id = required_text(fcinfo, 0, "session_id");
	UsageSession session;

	if (!usage_session(session_id, 0, true, &session))
		session_unknown(session_id);
	if (budgets_known())
		require(&session);
	PG_RETURN_VOID();
}

/* mlint.usage_budget_decision(session_id) */
Datum
mlint_usage_budget_decision(PG_FUNCTION_ARGS)
{
	char	   *session_id = required_text(fcinfo, 0, "session_id");
	UsageSession session;
	Budget		budget;
	Standing	s;
	TupleDesc	desc;
	Datum		values[9];
	bool		nulls[9] = {0};

	if (!usage_session(session_id, 0, true, &session))
		session_unknown(session_id);
	if (!budgets_known() || !decisive_budget(&session, &budget, &s))
		PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != lengthof(values))
		elog(ERROR, "mlint.rate_decision is not what it was");

	values[0] = BoolGetDatum(!s.exceeded);
	values[1] = Int64GetDatum(Max(s.tokens - s.tokens_spent, 0));
	values[2] = Int64GetDatum(s.tokens);
	nulls[1] = nulls[2] = !s.limits_tokens;
	nulls[3] = !s.exceeded || TIMESTAMP_NOT_FINITE(s.ends);
	if (!nulls[3])
	{
		Interval   *wait = palloc0(sizeof(Interval));

		wait->time = Max(s.ends - GetCurrentTimestamp(), 0);
		values[3] = IntervalPGetDatum(wait);
	}
	values[4] = TimestampTzGetDatum(s.ends);
	nulls[4] = TIMESTAMP_NOT_FINITE(s.ends);
	nulls[5] = true;
	values[6] = BoolGetDatum(false);
	values[7] = CStringGetTextDatum("budget");
	nulls[7] = !s.exceeded;
	values[8] = CStringGetTextDatum(budget_title(&budget));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/* ---- administration ---- */

/* "all", "model:x", "tag:x" or "session:x". */
static void
parse_scope(char *text, Budget *budget)
{
	static const struct
	{
		const char *prefix;
		char		scope;
	}			kinds[] = {
		{"model:", USAGE_OF_MODEL}, {"tag:", USAGE_OF_TAG},
		{"session:", USAGE_OF_SESSION}
	};

	budget->scope = USAGE_OF_ALL;
	budget->name = "";
	if (strcmp(text, "all") == 0)
		return;
	for (int i = 0; i < lengthof(kinds); i++)
	{
		size_t		len = strlen(kinds[i].prefix);

		if (strncmp(text, kinds[i].prefix, len) != 0)
			continue;
		budget->scope = kinds[i].scope;
		budget->name = text +len;

		usage_check_name(budget->name, "what a budget is for");
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" is not a scope", text),
			 errhint("A scope is all, or model:, tag: or session: and a name.")));
}

static char *
word_argument(FunctionCallInfo fcinfo, int n, const char *name,
			  const char *what, const char *const *words, const char *hint)
{
	char	   *word = required_text(fcinfo, n, name);

	for (int i = 0; words[i]; i++)
	{
		if (strcmp(words[i], word) == 0)
			return word;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" is not %s", word, what),
			 errhint("%s", hint)));
}

static char *
per_argument(FunctionCallInfo fcinfo, int n)
{
	return word_argument(fcinfo, n, "per", "a period", periods,
						 "A period is hour, day, week, month (all in UTC) or ever.");
}

/* Every process reads the budgets again. */
static void
changed(void)
{
	CacheInvalidateRelcacheByRelid(mlint_relation("usage_budget"));
}

static void
check_amounts(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(TOKENS) && PG_ARGISNULL(MONEY))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a budget limits tokens, money, or both"),
				 errhint("mlint.usage_budget_drop() removes one.")));
	if (!PG_ARGISNULL(TOKENS) && PG_GETARG_INT64(TOKENS) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("tokens must be more than 0, not " INT64_FORMAT,
						PG_GETARG_INT64(TOKENS))));
	if (!PG_ARGISNULL(MONEY))
	{
		char	   *digits =
		DatumGetCString(DirectFunctionCall1(numeric_out,
											PG_GETARG_DATUM(MONEY)));

		if (strlen(digits) > MONEY_DIGITS_MAX ||
			strspn(digits, "0123456789.") != strlen(digits) ||
			strspn(digits, "0.") == strlen(digits))
			ereport(ERROR,
					(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
					 errmsg("money must be more than 0, and of at most %d digits",
							MONEY_DIGITS_MAX)));
	}
}

/* mlint.usage_budget_set(scope, tokens, money, currency, per, action) */
Datum
mlint_usage_budget_set(PG_FUNCTION_ARGS)
{
	char	   *scope = required_text(fcinfo, SCOPE, "scope");
	char	   *currency = required_text(fcinfo, CURRENCY, "currency");
	char	   *action = word_argument(fcinfo, ACTION, "action", "an action",
									   actions,
									   "An action is event or refuse.");
	Oid			types[] = {CHAROID, TEXTOID, TEXTOID, INT8OID, NUMERICOID,
	TEXTOID, TEXTOID, TEXTOID};
	Datum		values[8];
	char		nulls[] = "        ";
	Budget		budget;
	UsageSession session;
	StringInfoData details;
	OwnerScope	owner;

	require_writable(fcinfo);
	parse_scope(scope, &budget);
	usage_check_currency(currency);
	check_amounts(fcinfo);
	budget.per = budget.scope == USAGE_OF_SESSION ? "ever" : "month";
	if (!PG_ARGISNULL(PER))
		budget.per = per_argument(fcinfo, PER);
	if (budget.scope == USAGE_OF_SESSION)
	{
		if (strcmp(budget.per, "ever") != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a budget for a session is for all of its life"),
					 errhint("Set per to ever, or give the session a tag and the tag a budget.")));
		if (!usage_session(budget.name, 0, true, &session))
			session_unknown(budget.name);
	}

	values[0] = CharGetDatum(budget.scope);
	values[1] = CStringGetTextDatum(budget.name);
	values[2] = CStringGetTextDatum(budget.per);
	values[3] = PG_ARGISNULL(TOKENS) ? 0 : PG_GETARG_DATUM(TOKENS);
	nulls[3] = PG_ARGISNULL(TOKENS) ? 'n' : ' ';
	values[4] = PG_ARGISNULL(MONEY) ? 0 : PG_GETARG_DATUM(MONEY);
	nulls[4] = PG_ARGISNULL(MONEY) ? 'n' : ' ';
	values[5] = CStringGetTextDatum(currency);
	values[6] = CStringGetTextDatum(action);
	values[7] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	owner_begin(&owner);
	changed();
	owner_run(NULL, "INSERT INTO mlint.usage_budget AS b (scope,"
			  " name, per, tokens, money, currency, action,"
			  " set_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
			  " ON CONFLICT (scope, name, per) DO UPDATE SET"
			  " tokens = excluded.tokens,"
			  " money = excluded.money,"
			  " currency = excluded.currency,"
			  " action = excluded.action,"
			  " set_by = excluded.set_by,"
			  " set_at = excluded.set_at",
			  SPI_OK_INSERT, 8, types, values, nulls);
	/* What was announced of the old one says nothing of the new. */
	owner_run(NULL, "DELETE FROM mlint.usage_notice"
			  " WHERE scope = $1 AND name = $2 AND per = $3",
			  SPI_OK_DELETE, 3, types, values, NULL);
	owner_end(&owner);

	initStringInfo(&details);
	appendStringInfo(&details, "{\"per\": \"%s\", \"action\": \"%s\"",
					 budget.per, action);
	if (!PG_ARGISNULL(TOKENS))
		appendStringInfo(&details, ", \"tokens\": " INT64_FORMAT,
						 PG_GETARG_INT64(TOKENS));
	if (!PG_ARGISNULL(MONEY))
		appendStringInfo(&details, ", \"money\": %s, \"currency\": \"%s\"",
						 DatumGetCString(DirectFunctionCall1(numeric_out,
															 PG_GETARG_DATUM(MONEY))),
						 currency);
	appendStringInfoChar(&details, '}');
	audit(AUDIT_CHANGED, "usage_budget.set", "usage_budget", scope,
		  details.data);
	PG_RETURN_VOID();
}

/* mlint.usage_budget_drop(scope, per) */
Datum
mlint_usage_budget_drop(PG_FUNCTION_ARGS)
{
	char	   *scope = required_text(fcinfo, 0, "scope");
	Oid			types[] = {CHAROID, TEXTOID, TEXTOID};
	Datum		values[3];
	char		nulls[] = "   ";
	char	   *per = PG_ARGISNULL(1) ? NULL : per_argument(fcinfo, 1);
	Budget		budget;
	OwnerScope	owner;

	require_writable(fcinfo);
	parse_scope(scope, &budget);
	values[0] = CharGetDatum(budget.scope);
	values[1] = CStringGetTextDatum(budget.name);
	values[2] = per ? CStringGetTextDatum(per) : (Datum) 0;
	nulls[2] = per ? ' ' : 'n';
	owner_begin(&owner);
	changed();
	owner_run(NULL, "DELETE FROM mlint.usage_notice"
			  " WHERE scope = $1 AND name = $2"
			  " AND ($3 IS NULL OR per = $3)",
			  SPI_OK_DELETE, 3, types, values, nulls);
	owner_run(NULL, "DELETE FROM mlint.usage_budget"
			  " WHERE scope = $1 AND name = $2"
			  " AND ($3 IS NULL OR per = $3)",
			  SPI_OK_DELETE, 3, types, values, nulls);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 per ? errmsg("there is no budget for \"%s\" per %s", scope, per) :
				 errmsg("there is no budget for \"%s\"", scope),
				 errhint("The view mlint.usage_budgets lists them.")));
	owner_end(&owner);
	audit(AUDIT_CHANGED, "usage_budget.drop", "usage_budget", scope, NULL);
	PG_RETURN_VOID();
}

void
usage_budget_forget(int64 session)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(session)};
	OwnerScope	owner;

	owner_begin(&owner);
	owner_run(NULL, "DELETE FROM mlint.usage_budget b"
			  " USING mlint.session s WHERE s.id = $1"
			  " AND b.scope = 's' AND b.name = s.session_id",
			  SPI_OK_DELETE, 1, types, values, NULL);
	if (SPI_processed > 0)
		changed();
	owner_end(&owner);
}

/* mlint.usage_budget_states() */
Datum
mlint_usage_budget_states(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	OwnerScope	owner;

	InitMaterializedSRF(fcinfo, 0);
	owner_begin(&owner);
	if (SPI_execute("SELECT b.scope, b.name, b.per, s.begins, s.ends,"
					" s.tokens_spent, s.money_spent, s.percent"
					" FROM mlint.usage_budget b,"
					" mlint.usage_budget_state(b, pg_catalog.clock_timestamp()) s",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the budgets");
	for (uint64 i = 0; i < SPI_processed; i++)
		tuplestore_puttuple(result->setResult, SPI_tuptable->vals[i]);
	owner_end(&owner);
	return (Datum) 0;
}
