/*
 * decide.c
 *		One decision, from a rule's name and an identifier to an answer; and
 *		the SQL functions that answer at once.
 *
 * The plain case, one rule of this server's memory without overrides, is what
 * a hot loop calls: a comparison of names, a key's hash, one look into the
 * shared table. Nothing is allocated on that way but the row that rate_check
 * returns.
 *
 * Several rules: those that another server decides on are asked first, one
 * after the other, then those of this server's memory all at once. What was
 * taken from a backend is given back when a later one refuses, so all or
 * nothing holds at the end, though not at each moment in between.
 *
 * Overrides come before the rule's law: deny refuses and allow lets pass, and
 * both take nothing; limit has the law of the override judge the same key.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "common/audit.h"
#include "common/int.h"
#include "common/errors.h"
#include "ratelimit/decide.h"
#include "ratelimit/queue.h"
#include "ratelimit/ratelimit.h"
#include "ratelimit/remote.h"

PG_FUNCTION_INFO_V1(mlint_rate_check);
PG_FUNCTION_INFO_V1(mlint_rate_allow);
PG_FUNCTION_INFO_V1(mlint_rate_peek);
PG_FUNCTION_INFO_V1(mlint_rate_check_all);
PG_FUNCTION_INFO_V1(mlint_rate_check_pre_request);
PG_FUNCTION_INFO_V1(mlint_rate_reset);

/* ---- decisions ---- */

/* One rule of a decision, on its way. */
typedef struct Part
{
	const RateRule *rule;
	const RateLaw *law;			/* the rule's or an override's */
	const char *identifier;
	Size		len;
	bool		settled;		/* by an override */
	bool		answered;		/* the verdict is there */
	bool		taken;			/* from a backend, and can be given back */
	RateVerdict verdict;
	bool		degraded;
	const char *reason;
} Part;

static void
cost_too_small(int64 cost)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("the cost of a rate limit's check must be greater than zero, not %lld",
					(long long) cost)));
}

static void
cost_too_large(const Part *part, int64 cost)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("a cost of %lld can never be met by rate limit \"%s\"",
					(long long) cost, part->rule->name),
			 part->law == &part->rule->law ?
			 errdetail("It has at most %lld at once.",
					   (long long) part->law->burst) :
			 errdetail("An override lets this identifier have at most %lld at once.",
					   (long long) part->law->burst),
			 errhint("Take it in parts, or allow more at once: by the burst of a bucket, or the rate of a window.")));
}

/* What an override that takes nothing says. */
static void
settle(Part *part, const RateOverride *override, int64 now)
{
	RateVerdict *v = &part->verdict;

	memset(v, 0, sizeof(*v));
	part->settled = part->answered = true;
	v->capacity = part->law->burst;
	if (override->action == RATE_ALLOW)
	{
		v->allowed = true;
		v->remaining = v->capacity;
		v->reset_at = now;
		part->reason = "allowed";
		return;
	}
	v->reset_at = override->expires_at;
	v->retry_after = override->expires_at == PG_INT64_MAX ? PG_INT64_MAX :
		override->expires_at - now;
	part->reason = override->reason ? override->reason : "denied";
}

/* What is asked of one rule: whom it means, and by which law. */
static void
begin_part(Part *part, const RateRule *rule, const char *identifier, Size len,
		   int64 cost, RateIntent intent)
{
	part->rule = rule;
	part->law = &rule->law;
	part->settled = part->answered = part->taken = part->degraded = false;
	part->reason = NULL;
	part->len = len;
	part->identifier = rule->scope == RATE_CUSTOM ? identifier :
		rate_identify(rule, identifier, &part->len);
	if (unlikely(rule->overrides != NULL))
	{
		int64		now = rate_now();
		const RateOverride *override = rate_override(rule, part->identifier,
													 part->len, now);

		if (override && override->action == RATE_LIMIT)
			part->law = &override->law;
		else if (override && intent != RATE_FORGET)
			settle(part, override, now);
	}
	if (unlikely(cost > part->law->burst) && !part->settled &&
		intent != RATE_FORGET)
		cost_too_large(part, cost);
}

/* Why it is as it is, of what this server's memory decided. */
static const char *
local_reason(const RateVerdict *verdict, int64 cost, RateIntent intent,
			 bool crowded)
{
	if (unlikely(crowded))
		return "crowded";
	if (verdict->allowed)
		return NULL;
	/* What is there but may not be taken is for others, who wait. */
	return verdict->remaining >= cost && intent != RATE_TAKE_NOW ?
		"waiting" : "limited";
}

static void
ask_remote(Part *part, int64 cost, RateIntent intent, bool in_turn)
{
	(void) remote_decide(part->rule, part->law, part->identifier, part->len,
						 cost, intent, in_turn, &part->verdict,
						 &part->degraded, &part->reason);
	if (!part->verdict.allowed && part->reason == NULL)
		part->reason = "limited";
	part->answered = true;
	part->taken = part->verdict.allowed &&
		(intent == RATE_TAKE || intent == RATE_TAKE_NOW);
}

/*
 * Ask all that are not settled. False as soon as one of a backend refuses, or
 * those of this server's memory do.
 */
static bool
ask_parts(Part *parts, int n, int64 cost, RateIntent intent, bool in_turn)
{
	RateAsk		asks[RATE_MAX_TOGETHER];
	RateVerdict verdicts[RATE_MAX_TOGETHER];
	Part	   *asked[RATE_MAX_TOGETHER];
	int			nasks = 0;
	bool		crowded = false;
	bool		allowed;

	for (int i = 0; i < n; i++)
	{
		Part	   *part = &parts[i];

		if (part->settled)
			continue;
		if (part->rule->backend)
		{
			ask_remote(part, cost, intent, in_turn);
			if (!part->verdict.allowed)
				return false;
			continue;
		}
		rate_key(&asks[nasks].key, part->rule->slot, part->identifier,
				 part->len);
		asks[nasks].law = part->law;
		asks[nasks].cost = cost;
		asked[nasks++] = part;
	}
	if (nasks == 0)
		return true;
	allowed = table_decide(asks, nasks, intent, in_turn, verdicts, &crowded);
	for (int i = 0; i < nasks; i++)
	{
		asked[i]->verdict = verdicts[i];
		asked[i]->answered = true;
		asked[i]->reason = local_reason(&verdicts[i], cost, intent, crowded);
	}
	return allowed;
}

/* Is a's answer the one to give, rather than b's? */
static bool
more_telling(const Part *a, const Part *b)
{
	if (a->verdict.allowed != b->verdict.allowed)
		return !a->verdict.allowed;
	if (!a->verdict.allowed)
		return a->verdict.retry_after > b->verdict.retry_after;
	return (double) a->verdict.remaining / a->verdict.capacity <
		(double) b->verdict.remaining / b->verdict.capacity;
}

/* Several rules, all or none. */
static void
decide_together(Part *parts, int n, int64 cost, RateIntent intent,
				bool in_turn, RateAnswer *answer)
{
	bool		allowed = true;
	int			told = -1;

	for (int i = 0; i < n; i++)
		allowed &= !parts[i].settled || parts[i].verdict.allowed;
	if (allowed && !ask_parts(parts, n, cost, intent, in_turn))
	{
		for (int i = 0; i < n; i++)
		{
			Part		back = parts[i];

			if (back.taken)
				ask_remote(&back, cost, RATE_GIVE, true);
		}
	}
	for (int i = 0; i < n; i++)
	{
		if (parts[i].answered &&
			(told < 0 || more_telling(&parts[i], &parts[told])))
			told = i;
	}
	answer->verdict = parts[told].verdict;
	answer->denied = parts[told].settled && !parts[told].verdict.allowed;
	answer->degraded = parts[told].degraded;
	answer->reason = parts[told].reason;
	answer->rule = told;
	for (int i = 0; i < n; i++)
		answer->degraded |= parts[i].degraded;
}

/* One rule. */
static void
decide_one(const RateRule *rule, const char *identifier, Size len, int64 cost,
		   RateIntent intent, bool in_turn, RateAnswer *answer)
{
	Part		part;

	begin_part(&part, rule, identifier, len, cost, intent);
	if (likely(!part.settled && rule->backend == NULL))
	{
		RateAsk		ask;
		bool		crowded = false;

		rate_key(&ask.key, rule->slot, part.identifier, part.len);
		ask.law = part.law;
		ask.cost = cost;
		(void) table_decide(&ask, 1, intent, in_turn, &answer->verdict,
							&crowded);
		answer->denied = answer->degraded = false;
		answer->reason = local_reason(&answer->verdict, cost, intent, crowded);
		return;
	}
	if (!part.settled)
		ask_remote(&part, cost, intent, in_turn);
	answer->verdict = part.verdict;
	answer->denied = part.settled && !part.verdict.allowed;
	answer->degraded = part.degraded;
	answer->reason = part.reason;
}

void
rate_decide(const char *const *names, const Size *lens, int n,
			const char *identifier, Size len, int64 cost, RateIntent intent,
			bool in_turn, RateAnswer *answer)
{
	const RateRule *rules[RATE_MAX_TOGETHER];
	Part		parts[RATE_MAX_TOGETHER];

	if (unlikely(cost < 1))
		cost_too_small(cost);
	answer->rule = 0;
	if (n == 1)
	{
		decide_one(rate_rule(names[0], lens[0]), identifier, len, cost,
				   intent, in_turn, answer);
		return;
	}
	rate_rules(names, lens, n, rules);
	for (int i = 0; i < n; i++)
	{
		for (int j = 0; j < i; j++)
		{
			if (rules[i]->id == rules[j]->id)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("rate limit \"%s\" is named twice",
								rules[i]->name)));
		}
	}
	for (int i = 0; i < n; i++)
		begin_part(&parts[i], rules[i], identifier, len, cost, intent);
	decide_together(parts, n, cost, intent, in_turn, answer);
}

/* ---- for workers ---- */

bool
rate_pass(const char *name, const char *identifier, int64 *retry_after)
{
	const RateRule *rule = rate_rule_find(name, strlen(name));
	RateAnswer	answer;

	*retry_after = 0;
	if (rule == NULL)
		return true;
	decide_one(rule, identifier, strlen(identifier), 1, RATE_TAKE_NOW, false,
			   &answer);
	if (!answer.verdict.allowed)
		*retry_after = answer.verdict.retry_after;
	return answer.verdict.allowed;
}

void
rate_rule_check_for_worker(const char *name, const char *what)
{
	const RateRule *rule = rate_rule(name, strlen(name));

	if (rule->backend && rule->mode == RATE_EXACT)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s cannot be rate limit \"%s\"", what, name),
				 errdetail("Each of its decisions is a question to backend \"%s\", and a worker does not wait for that.",
						   rule->backend),
				 errhint("Use a rule of mode leased, or one of this server's memory.")));
}

/* ---- arguments and results ---- */

void
rate_us_interval(int64 us, Interval *interval)
{
	interval->month = 0;
	interval->day = 0;
	interval->time = us;
}

TimestampTz
rate_us_timestamp(int64 us)
{
	TimestampTz at;

	if (pg_sub_s64_overflow(us, RATE_EPOCH_US, &at))
		return DT_NOBEGIN;
	return us == PG_INT64_MAX || at >= END_TIMESTAMP ? DT_NOEND :
		at < MIN_TIMESTAMP ? DT_NOBEGIN : at;
}

const char *
rate_rule_argument(FunctionCallInfo fcinfo, int n, Size *len)
{
	text	   *name;

	if (unlikely(PG_ARGISNULL(n)))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("rule must not be null")));
	name = PG_GETARG_TEXT_PP(n);
	*len = VARSIZE_ANY_EXHDR(name);
	return VARDATA_ANY(name);
}

const char *
rate_identifier_argument(FunctionCallInfo fcinfo, int n, Size *len)
{
	text	   *identifier;

	if (PG_ARGISNULL(n))
	{
		*len = 0;
		return "";
	}
	identifier = PG_GETARG_TEXT_PP(n);
	*len = VARSIZE_ANY_EXHDR(identifier);
	return VARDATA_ANY(identifier);
}

int64
rate_cost_argument(FunctionCallInfo fcinfo, int n)
{
	if (unlikely(PG_ARGISNULL(n)))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("cost must not be null")));
	return PG_GETARG_INT64(n);
}

/*
 * The row type that the function returns. The type cache knows it from one
 * statement to the next, and keeps it until something else is looked up.
 */
static TupleDesc
result_desc(FunctionCallInfo fcinfo)
{
	Oid			type = get_fn_expr_rettype(fcinfo->flinfo);
	TypeCacheEntry *entry;

	if (!OidIsValid(type))
		type = get_func_rettype(fcinfo->flinfo->fn_oid);
	entry = lookup_type_cache(type, TYPECACHE_TUPDESC);
	if (entry->tupDesc == NULL)
		elog(ERROR, "return type must be a row type");
	return entry->tupDesc;
}

Datum
rate_answer_datum(FunctionCallInfo fcinfo, const char *rule, Size len,
				  const RateAnswer *answer)
{
	const RateVerdict *v = &answer->verdict;
	Interval	retry_after;
	Interval	delay;
	Datum		values[9];
	bool		nulls[9] = {0};

	values[0] = BoolGetDatum(v->allowed);
	values[1] = Int64GetDatum(v->remaining);
	values[2] = Int64GetDatum(v->capacity);
	rate_us_interval(v->retry_after, &retry_after);
	values[3] = IntervalPGetDatum(&retry_after);
	nulls[3] = v->allowed || v->retry_after == PG_INT64_MAX;
	values[4] = TimestampTzGetDatum(rate_us_timestamp(v->reset_at));
	rate_us_interval(v->delay, &delay);
	values[5] = IntervalPGetDatum(&delay);
	values[6] = BoolGetDatum(answer->degraded);
	nulls[7] = answer->reason == NULL;
	values[7] = nulls[7] ? (Datum) 0 : CStringGetTextDatum(answer->reason);
	values[8] = PointerGetDatum(cstring_to_text_with_len(rule, len));
	return HeapTupleGetDatum(heap_form_tuple(result_desc(fcinfo), values,
											 nulls));
}

/* ---- SQL functions ---- */

/* One rule, the whole answer. */
static Datum
answer_row(FunctionCallInfo fcinfo, RateIntent intent)
{
	Size		len;
	Size		idlen;
	const char *rule = rate_rule_argument(fcinfo, 0, &len);
	const char *identifier = rate_identifier_argument(fcinfo, 1, &idlen);
	RateAnswer	answer;

	rate_decide(&rule, &len, 1, identifier, idlen,
				rate_cost_argument(fcinfo, 2), intent, false, &answer);
	return rate_answer_datum(fcinfo, rule, len, &answer);
}

/* mlint.rate_check(rule, identifier, cost) */
Datum
mlint_rate_check(PG_FUNCTION_ARGS)
{
	return answer_row(fcinfo, RATE_TAKE);
}

/* mlint.rate_peek(rule, identifier, cost) */
Datum
mlint_rate_peek(PG_FUNCTION_ARGS)
{
	return answer_row(fcinfo, RATE_PEEK);
}

/* mlint.rate_allow(rule, identifier, cost) */
Datum
mlint_rate_allow(PG_FUNCTION_ARGS)
{
	Size		len;
	Size		idlen;
	const char *rule = rate_rule_argument(fcinfo, 0, &len);
	const char *identifier = rate_identifier_argument(fcinfo, 1, &idlen);
	RateAnswer	answer;

	rate_decide(&rule, &len, 1, identifier, idlen,
				rate_cost_argument(fcinfo, 2), RATE_TAKE_NOW, false, &answer);
	PG_RETURN_BOOL(answer.verdict.allowed);
}

/* mlint.rate_check_all(rules, identifier, cost) */
Datum
mlint_rate_check_all(PG_FUNCTION_ARGS)
{
	const char *rules[RATE_MAX_TOGETHER];
	Size		lens[RATE_MAX_TOGETHER];
	ArrayType  *array;
	Datum	   *elements;
	bool	   *nulls;
	int			n;
	Size		idlen;
	const char *identifier = rate_identifier_argument(fcinfo, 1, &idlen);
	RateAnswer	answer;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("rules must not be null")));
	array = PG_GETARG_ARRAYTYPE_P(0);
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements,
					  &nulls, &n);
	if (n < 1 || n > RATE_MAX_TOGETHER || ARR_NDIM(array) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rules must be a list of 1 to %d rate limits",
						RATE_MAX_TOGETHER)));
	for (int i = 0; i < n; i++)
	{
		text	   *name;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("rules must not contain null")));
		name = DatumGetTextPP(elements[i]);
		rules[i] = VARDATA_ANY(name);
		lens[i] = VARSIZE_ANY_EXHDR(name);
	}
	rate_decide(rules, lens, n, identifier, idlen,
				rate_cost_argument(fcinfo, 2), RATE_TAKE, false, &answer);
	Assert(answer.rule >= 0 && answer.rule < n);
	return rate_answer_datum(fcinfo, rules[answer.rule], lens[answer.rule],
							 &answer);
}

/* mlint.rate_check_pre_request(): by all rules with pre_request; or null. */
Datum
mlint_rate_check_pre_request(PG_FUNCTION_ARGS)
{
	const char *rules[RATE_MAX_TOGETHER];
	Size		lens[RATE_MAX_TOGETHER];
	int			n = 0;
	ListCell   *lc;
	RateAnswer	answer;

	foreach(lc, rate_pre_request_rules())
	{
		if (n == RATE_MAX_TOGETHER)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("more than %d rate limits have pre_request",
							RATE_MAX_TOGETHER)));
		rules[n] = pstrdup(lfirst(lc));
		lens[n] = strlen(rules[n]);
		n++;
	}
	if (n == 0)
		PG_RETURN_NULL();
	rate_decide(rules, lens, n, "", 0, 1, RATE_TAKE, false, &answer);
	Assert(answer.rule >= 0 && answer.rule < n);
	return rate_answer_datum(fcinfo, rules[answer.rule], lens[answer.rule],
							 &answer);
}

/* mlint.rate_reset(rule, identifier): null for all. */
Datum
mlint_rate_reset(PG_FUNCTION_ARGS)
{
	Size		len;
	const char *name = rate_rule_argument(fcinfo, 0, &len);
	const RateRule *rule = rate_rule(name, len);
	char	   *object = pstrdup(rule->name);
	StringInfoData details;
	RateAnswer	answer;

	initStringInfo(&details);
	if (PG_ARGISNULL(1))
	{
		audit(AUDIT_DONE, "rate_limit.reset", "rate_rule", object, NULL);
		rule = rate_rule(name, len);
		if (rule->backend)
			remote_forget_rule(rule);
		table_forget_rule(rule->slot);
	}
	else
	{
		Size		idlen;
		const char *identifier = rate_identifier_argument(fcinfo, 1, &idlen);

		appendStringInfoString(&details, "{\"identifier\": ");
		escape_json(&details, pnstrdup(identifier,
									   pg_mbcliplen(identifier, idlen, 300)));
		appendStringInfoChar(&details, '}');
		audit(AUDIT_DONE, "rate_limit.reset", "rate_rule", object,
			  details.data);
		rate_decide(&name, &len, 1, identifier, idlen, 1, RATE_FORGET, true,
					&answer);
	}
	queue_wake();
	PG_RETURN_VOID();
}
