/*
 * rest.c
 *		What was reported and is not in the totals yet.
 *
 * The rest is the rows of those transactions that the fold's position, a
 * snapshot, does not see, and the caller's snapshot does. It is read by ranges
 * of transaction ids, so that its size is all that matters: not how much is
 * folded but not yet emptied, nor how long some transaction has been open.
 *
 * Each row comes as what it adds to the totals, priced: for all, its model, its
 * tags and its session one tuple of usage, one for each currency in which its
 * model has a price, one for each metric. So the fold and every report add up
 * the same things, and only the caller's SQL says by what.
 *
 * A price is the one with the latest valid_from among those that were valid and
 * set when the row was tracked; of its version's own, or else of the model's.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "common/rows.h"
#include "usage/usage.h"
#include "usage/usagelog.h"

PG_FUNCTION_INFO_V1(mlint_usage_rest);
PG_FUNCTION_INFO_V1(mlint_usage_log_pending);

#define MODEL_ROOM		256

/* ---- which rows ---- */

/* Called with each row; false: that is enough. */
typedef bool (*RestVisitor) (HeapTuple row, TupleDesc desc, void *arg);

/* Rows whose transaction id is such as the key says. */
static bool
visit_range(Relation table, Oid index, Snapshot snapshot,
			StrategyNumber strategy, Oid operator, uint64 xid,
			RestVisitor visit, void *arg)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	row;
	bool		more = true;

	ScanKeyInit(&key, USAGE_XID, strategy, operator,
				FullTransactionIdGetDatum(FullTransactionIdFromU64(xid)));
	scan = systable_beginscan(table, index, true, snapshot, 1, &key);
	while (more && (row = systable_getnext(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		more = visit(row, RelationGetDescr(table), arg);
	}
	systable_endscan(scan);
	return more;
}

static bool
note_row(HeapTuple row, TupleDesc desc, void *arg)
{
	*(bool *) arg = true;
	return false;
}

/*
 * The rest in one of the tables. Its mark must be there: who does not see that
 * has a snapshot from before the table was emptied, and from before it was noted
 * that nothing of it is in the rest. The fold prevents that on this server,
 * but cannot on a standby.
 */
static bool
visit_log(int log, const Cursor *folded, Snapshot snapshot,
		  RestVisitor visit, void *arg)
{
	Oid			index = usage_log_index(log);
	Relation	table = table_open(usage_log_table(log), AccessShareLock);
	bool		marked = false;
	bool		more = true;

	(void) visit_range(table, index, snapshot, BTEqualStrategyNumber,
					   F_XID8EQ, 0, note_row, &marked);
	if (!marked)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access to the usage log"),
				 errdetail("Reports of usage that this snapshot should see were added to the totals and removed."),
				 errhint("Retry the transaction.")));
	for (int i = 0; more && i < folded->nxip; i++)
		more = visit_range(table, index, snapshot, BTEqualStrategyNumber,
						   F_XID8EQ, folded->xip[i], visit, arg);
	if (more)
		more = visit_range(table, index, snapshot,
						   BTGreaterEqualStrategyNumber, F_XID8GE,
						   folded->xmax, visit, arg);
	table_close(table, AccessShareLock);
	return more;
}

/* ---- prices ---- */

typedef struct Price
{
	char	   *version;
	char	   *currency;
	TimestampTz valid_from;
	TimestampTz set_at;
	Numeric		prompt;			/* of one token */
	Numeric		completion;
} Price;

/* All of one model, by currency, the latest first. */
typedef struct ModelPrices
{
	char		model[MODEL_ROOM];
	int			n;
	Price	   *prices;
} ModelPrices;

/* Columns of mlint.usage_price. */
enum
{
	PRICE_MODEL_ID = 1, PRICE_VERSION, PRICE_CURRENCY, PRICE_VALID_FROM,
	PRICE_SET_AT, PRICE_PROMPT, PRICE_COMPLETION, PRICE_PER
};

typedef struct Rest
{
	char		scope;			/* 0: all */
	char	   *name;
	int64		session;
	ReturnSetInfo *result;
	Snapshot	snapshot;
	HTAB	   *models;			/* of ModelPrices */
	MemoryContext context;		/* for the whole call */
	MemoryContext per_row;
} Rest;

static int
compare_prices(const void *a, const void *b)
{
	const Price *x = a;
	const Price *y = b;
	int			order = strcmp(x->currency, y->currency);

	if (order != 0)
		return order;
	if (x->valid_from != y->valid_from)
		return x->valid_from > y->valid_from ? -1 : 1;
	if (x->set_at != y->set_at)
		return x->set_at > y->set_at ? -1 : 1;
	return 0;
}

/* per is a power of ten, so that this is exact. */
static Numeric
price_of_one(Datum price, int per)
{
	char		one[16];

	snprintf(one, sizeof(one), "1e-%d",
			 per >= 1000000000 ? 9 : per >= 100000000 ? 8 :
			 per >= 10000000 ? 7 : per >= 1000000 ? 6 : per >= 100000 ? 5 :
			 per >= 10000 ? 4 : per >= 1000 ? 3 : per >= 100 ? 2 :
			 per >= 10 ? 1 : 0);
	return DatumGetNumeric(DirectFunctionCall2(numeric_mul, price,
											   DirectFunctionCall3(numeric_in,
																   CStringGetDatum(one),
																   ObjectIdGetDatum(InvalidOid),
																   Int32GetDatum(-1))));
}

static void
read_prices(Rest *rest, ModelPrices *model)
{
	MemoryContext old = MemoryContextSwitchTo(rest->context);
	ScanKeyData key;
	RowScan		scan;
	HeapTuple	row;
	int			room = 4;

	model->n = 0;
	model->prices = palloc(sizeof(Price) * room);
	row_key(&key, PRICE_MODEL_ID, F_TEXTEQ, CStringGetTextDatum(model->model));
	rows_begin(&scan, "usage_price", "usage_price_pkey", 1, &key, false);
	while ((row = rows_next(&scan)) != NULL)
	{
		Datum		values[PRICE_PER + 1];
		bool		nulls[PRICE_PER + 1];
		Price	   *price;

		for (int i = PRICE_MODEL_ID; i <= PRICE_PER; i++)
			values[i] = heap_getattr(row, i, scan.desc, &nulls[i]);
		if (model->n == room)
			model->prices = repalloc(model->prices,
									 sizeof(Price) * (room *= 2));
		price = &model->prices[model->n++];
		price->version = TextDatumGetCString(values[PRICE_VERSION]);
		price->currency = TextDatumGetCString(values[PRICE_CURRENCY]);
		price->valid_from = DatumGetTimestampTz(values[PRICE_VALID_FROM]);
		price->set_at = DatumGetTimestampTz(values[PRICE_SET_AT]);
		price->prompt = price_of_one(values[PRICE_PROMPT],
									 DatumGetInt32(values[PRICE_PER]));
		price->completion = price_of_one(values[PRICE_COMPLETION],
										 DatumGetInt32(values[PRICE_PER]));
	}
	rows_end(&scan);
	qsort(model->prices, model->n, sizeof(Price), compare_prices);
	MemoryContextSwitchTo(old);
}

static ModelPrices *
prices_of(Rest *rest, const char *model)
{
	ModelPrices *found;
	char		key[MODEL_ROOM];
	bool		known;

	strlcpy(key, model, sizeof(key));
	found = hash_search(rest->models, key, HASH_ENTER, &known);
	if (!known)
		read_prices(rest, found);
	return found;
}

/* ---- what a row adds ---- */

/* The row's columns, and what was made of them. */
typedef struct Report
{
	Datum		values[USAGE_COLUMNS + 1];
	bool		nulls[USAGE_COLUMNS + 1];
	int64		prompt_tokens;
	int64		completion_tokens;
	int			namounts;
	char	   *kinds;
	Datum	   *keys;
	Datum	   *amounts;
} Report;

static void
report_amount(Report *report, char kind, Datum key, Datum amount)
{
	report->kinds[report->namounts] = kind;
	report->keys[report->namounts] = key;
	report->amounts[report->namounts++] = amount;
}

static Datum
cost(const Price *price, const Report *report)
{
	Datum		prompt =
	DirectFunctionCall2(numeric_mul, NumericGetDatum(price->prompt),
						NumericGetDatum(int64_to_numeric(report->prompt_tokens)));
	Datum		completion =
	DirectFunctionCall2(numeric_mul, NumericGetDatum(price->completion),
						NumericGetDatum(int64_to_numeric(report->completion_tokens)));

	return DirectFunctionCall2(numeric_add, prompt, completion);
}

/* In each currency: the version's own price, or the model's. */
static void
add_costs(Report *report, const ModelPrices *model)
{
	TimestampTz at = DatumGetTimestampTz(report->values[USAGE_TRACKED_AT]);
	char	   *version =
	TextDatumGetCString(report->values[USAGE_MODEL_VERSION]);

	for (int i = 0; i < model->n;)
	{
		const Price *own = NULL;
		const Price *general = NULL;
		const char *currency = model->prices[i].currency;

		for (; i < model->n &&
			 strcmp(model->prices[i].currency, currency) == 0; i++)
		{
			const Price *price = &model->prices[i];

			if (price->valid_from > at || price->set_at > at)
				continue;
			if (price->version[0] == '\0')
				general = general ? general : price;
			else if (strcmp(price->version, version) == 0)
				own = own ? own : price;
		}
		if (own || general)
			report_amount(report, 'c', CStringGetTextDatum(currency),
						  cost(own ? own : general, report));
	}
}

static void
add_metrics(Report *report, Jsonb *custom)
{
	JsonbIterator *it = JsonbIteratorInit(&custom->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	Datum		name = (Datum) 0;

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = PointerGetDatum(cstring_to_text_with_len(value.val.string.val,
															value.val.string.len));
		else if (token == WJB_VALUE)
			report_amount(report, 'm', name,
						  NumericGetDatum(value.val.numeric));
	}
}

/* Hand out what the report adds to one thing. */
static void
emit(Rest *rest, const Report *report, char scope, Datum name)
{
	Datum		values[10];
	bool		nulls[10] = {0};
	bool		latency = !report->nulls[USAGE_LATENCY_US];

	values[0] = CharGetDatum(scope);
	values[1] = name;
	values[2] = report->values[USAGE_TRACKED_AT];
	values[3] = CharGetDatum('u');
	values[4] = CStringGetTextDatum("");
	values[5] = Int32GetDatum(report->completion_tokens > 0 || latency);
	values[6] = Int64GetDatum(report->prompt_tokens);
	values[7] = Int64GetDatum(report->completion_tokens);
	values[8] = report->values[USAGE_LATENCY_US];
	nulls[8] = !latency;
	nulls[9] = true;
	tuplestore_putvalues(rest->result->setResult, rest->result->setDesc,
						 values, nulls);

	nulls[5] = nulls[6] = nulls[7] = nulls[8] = true;
	nulls[9] = false;
	for (int i = 0; i < report->namounts; i++)
	{
		values[3] = CharGetDatum(report->kinds[i]);
		values[4] = report->keys[i];
		values[9] = report->amounts[i];
		tuplestore_putvalues(rest->result->setResult, rest->result->setDesc,
							 values, nulls);
	}
}

static bool
same_text(Datum a, const char *b)
{
	text	   *t = DatumGetTextPP(a);

	return VARSIZE_ANY_EXHDR(t) == strlen(b) &&
		memcmp(VARDATA_ANY(t), b, VARSIZE_ANY_EXHDR(t)) == 0;
}

/* The tags, each once. */
static int
distinct_tags(const Report *report, Datum **tags)
{
	int			n;
	int			kept = 0;

	if (report->nulls[USAGE_TAGS])
		return 0;
	deconstruct_array(DatumGetArrayTypeP(report->values[USAGE_TAGS]), TEXTOID,
					  -1, false, TYPALIGN_INT, tags, NULL, &n);
	for (int i = 0; i < n; i++)
	{
		char	   *tag = TextDatumGetCString((*tags)[i]);
		int			j = 0;

		while (j < kept && !same_text((*tags)[j], tag))
			j++;
		if (j == kept)
			(*tags)[kept++] = (*tags)[i];
	}
	return kept;
}

static bool
wanted(const Rest *rest, char scope)
{
	return rest->scope == 0 || rest->scope == scope;
}

static bool
visit_report(HeapTuple row, TupleDesc desc, void *arg)
{
	Rest	   *rest = arg;
	Report		report = {.namounts = 0};
	MemoryContext old;
	Datum	   *tags = NULL;
	int			ntags = 0;
	int64		session;
	bool		all,
				model,
				of_session;

	MemoryContextReset(rest->per_row);
	old = MemoryContextSwitchTo(rest->per_row);
	heap_deform_tuple(row, desc, report.values + 1, report.nulls + 1);
	session = DatumGetInt64(report.values[USAGE_SESSION]);
	if (report.nulls[USAGE_MODEL_ID])
	{
		if (rest->scope == 0)
			emit(rest, &report, 'f',
				 CStringGetTextDatum(psprintf(INT64_FORMAT, session)));
		MemoryContextSwitchTo(old);
		return true;
	}

	all = wanted(rest, USAGE_OF_ALL);
	model = wanted(rest, USAGE_OF_MODEL) &&
		(!rest->name || same_text(report.values[USAGE_MODEL_ID], rest->name));
	of_session = wanted(rest, USAGE_OF_SESSION) &&
		(!rest->name || session == rest->session);
	if (wanted(rest, USAGE_OF_TAG))
		ntags = distinct_tags(&report, &tags);
	if (ntags > 0 && rest->name)
	{
		int			i = 0;

		while (i < ntags && !same_text(tags[i], rest->name))
			i++;
		tags += i;
		ntags = i < ntags;
	}

	if (all || model || of_session || ntags > 0)
	{
		Jsonb	   *custom = report.nulls[USAGE_CUSTOM] ? NULL :
		DatumGetJsonbP(report.values[USAGE_CUSTOM]);
		ModelPrices *prices =
		prices_of(rest, TextDatumGetCString(report.values[USAGE_MODEL_ID]));
		int			room = prices->n + (custom ? JB_ROOT_COUNT(custom) : 0);

		report.kinds = palloc(Max(room, 1));
		report.keys = palloc(sizeof(Datum) * Max(room, 1));
		report.amounts = palloc(sizeof(Datum) * Max(room, 1));
		report.prompt_tokens =
			DatumGetInt32(report.values[USAGE_PROMPT_TOKENS]);
		report.completion_tokens =
			DatumGetInt32(report.values[USAGE_COMPLETION_TOKENS]);
		add_costs(&report, prices);
		if (custom)
			add_metrics(&report, custom);

		if (all)
			emit(rest, &report, USAGE_OF_ALL, CStringGetTextDatum(""));
		if (model)
			emit(rest, &report, USAGE_OF_MODEL,
				 report.values[USAGE_MODEL_ID]);
		for (int i = 0; i < ntags; i++)
			emit(rest, &report, USAGE_OF_TAG, tags[i]);
		if (of_session)
			emit(rest, &report, USAGE_OF_SESSION,
				 CStringGetTextDatum(psprintf(INT64_FORMAT, session)));
	}
	MemoryContextSwitchTo(old);
	return true;
}

/* mlint.usage_rest(of_scope, of_name) */
Datum
mlint_usage_rest(PG_FUNCTION_ARGS)
{
	Rest		rest = {.result = (ReturnSetInfo *) fcinfo->resultinfo};
	UsagePosition position;
	HASHCTL		control = {.keysize = MODEL_ROOM,
	.entrysize = sizeof(ModelPrices)};

	InitMaterializedSRF(fcinfo, 0);
	rest.context = CurrentMemoryContext;
	rest.per_row = AllocSetContextCreate(CurrentMemoryContext, "usage row",
										 ALLOCSET_DEFAULT_SIZES);
	control.hcxt = CurrentMemoryContext;
	rest.models = hash_create("prices of models", 64, &control,
							  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	if (!PG_ARGISNULL(0))
		rest.scope = PG_GETARG_CHAR(0);
	if (!PG_ARGISNULL(1) && rest.scope != USAGE_OF_ALL)
	{
		rest.name = text_to_cstring(PG_GETARG_TEXT_PP(1));
		if (rest.scope == USAGE_OF_SESSION)
			rest.session = pg_strtoint64(rest.name);
	}
	rest.snapshot = GetActiveSnapshot();
	usage_position(rest.snapshot, true, &position);
	for (int log = 1; log <= USAGE_LOGS; log++)
	{
		if (log == position.log || !position.other_done)
			(void) visit_log(log, position.folded, rest.snapshot,
							 visit_report, &rest);
	}
	return (Datum) 0;
}

/* mlint.usage_log_pending(log): as of now. */
Datum
mlint_usage_log_pending(PG_FUNCTION_ARGS)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	UsagePosition position;
	bool		pending = false;

	usage_position(NULL, true, &position);
	(void) visit_log(PG_GETARG_INT32(0), position.folded, snapshot, note_row,
					 &pending);
	UnregisterSnapshot(snapshot);
	PG_RETURN_BOOL(pending);
}
