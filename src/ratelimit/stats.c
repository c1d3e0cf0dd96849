/*
 * stats.c
 *		What the rate limits have done: counters, and who is busiest.
 *
 * Counters and keys are of this server's shared table; nothing here takes
 * from a limit or changes one, nor takes a place there for a rule that has
 * none: with more rules than places, looking must not cost others theirs.
 */
#include "postgres.h"

#include <math.h>

#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "ratelimit/decide.h"

/* Of a long identifier; a digest follows. */
#define RATE_KEY_BEGINNING	(RATE_KEY_TEXT - 16)

PG_FUNCTION_INFO_V1(mlint_rate_totals);
PG_FUNCTION_INFO_V1(mlint_rate_top);

/*
 * How long did this share of those who waited wait at most? The upper bound
 * of the bucket, 100 us * 2^((i + 1) / 2); 0 when nobody has waited.
 */
static int64
wait_quantile(const RateTotals *totals, double share)
{
	uint64		all = 0;
	uint64		below = 0;

	for (int i = 0; i < RATE_WAIT_BUCKETS; i++)
		all += totals->waits[i];
	for (int i = 0; i < RATE_WAIT_BUCKETS && all > 0; i++)
	{
		below += totals->waits[i];
		if (below >= share * all)
			return (int64) (100 * pow(2, (i + 1) / 2.0));
	}
	return 0;
}

/* mlint.rate_totals(): a row for each rule that has been asked for here. */
Datum
mlint_rate_totals(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	RateTotals *all;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	all = table_totals(&n);
	for (int i = 0; i < n; i++)
	{
		const RateTotals *totals = &all[i];
		Interval	p50;
		Interval	p99;
		Datum		values[9];
		bool		nulls[9] = {0};

		rate_us_interval(wait_quantile(totals, 0.5), &p50);
		rate_us_interval(wait_quantile(totals, 0.99), &p99);
		values[0] = Int64GetDatum(totals->rule_id);
		values[1] = Int64GetDatum(totals->allowed);
		values[2] = Int64GetDatum(totals->refused);
		values[3] = Int64GetDatum(totals->crowded);
		values[4] = Int64GetDatum(totals->waited);
		values[5] = IntervalPGetDatum(&p50);
		values[6] = IntervalPGetDatum(&p99);
		nulls[5] = nulls[6] = p50.time == 0;
		values[7] = Int64GetDatum(totals->keys);
		values[8] = Int64GetDatum(totals->evictions);
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}

/* More checks first; among equals always in the same order. */
static int
by_checks(const void *a, const void *b)
{
	const RateKeyUse *k = a;
	const RateKeyUse *l = b;
	uint64		m = k->allowed + k->refused;
	uint64		n = l->allowed + l->refused;

	if (m != n)
		return m > n ? -1 : 1;
	return memcmp(k->key.text, l->key.text, RATE_KEY_TEXT);
}

static int
by_refused(const void *a, const void *b)
{
	const RateKeyUse *k = a;
	const RateKeyUse *l = b;

	if (k->refused != l->refused)
		return k->refused > l->refused ? -1 : 1;
	return by_checks(a, b);
}

/* An identifier as far as it is kept. */
static Datum
shown_identifier(const RateKey *key)
{
	char text[	RATE_KEY_TEXT + 4];
	int			len = key->len;

	if (len <= RATE_KEY_TEXT)
		return PointerGetDatum(cstring_to_text_with_len(key->text, len));
	len = pg_mbcliplen(key->text, RATE_KEY_BEGINNING, RATE_KEY_BEGINNING);
	memcpy(text, key->text, len);
	strlcpy(text +len, "...", sizeof(text) - len);
	return CStringGetTextDatum(text);
}

/* mlint.rate_top(rule, n) */
Datum
mlint_rate_top(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Size		len;
	const char *name = rate_rule_argument(fcinfo, 0, &len);
	int64		id;
	RateKeyUse *keys;
	RateKeyUse	last = {0};		/* of those refused most often */
	int			wanted;
	int			n;

	if (PG_ARGISNULL(1) || PG_GETARG_INT32(1) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("n must be greater than zero")));
	wanted = PG_GETARG_INT32(1);
	id = rate_rule_id(name, len);
	if (id == 0)
		rate_rule_unknown(name, len);
	InitMaterializedSRF(fcinfo, 0);
	keys = table_keys(table_find_rule(id), &n);

	qsort(keys, n, sizeof(RateKeyUse), by_refused);
	if (n > wanted)
		last = keys[wanted - 1];
	qsort(keys, n, sizeof(RateKeyUse), by_checks);
	for (int i = 0; i < n; i++)
	{
		Datum		values[3];
		bool		nulls[3] = {0};

		if (i >= wanted && by_refused(&keys[i], &last) > 0)
			continue;
		values[0] = shown_identifier(&keys[i].key);
		values[1] = Int64GetDatum(keys[i].allowed);
		values[2] = Int64GetDatum(keys[i].refused);
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}
