/*
 * rule.c
 *		Rules and overrides, as each process knows them.
 *
 * A rule is read by one look into the index on its name, together with all
 * its overrides, when it is first asked for, and kept in this process's
 * memory. Whoever changes one sends a relcache invalidation of the table
 * (rule_admin.c): the server delivers it when the change commits, before the
 * committing session hears of it, also after COMMIT PREPARED and on a
 * standby; and to the changing transaction itself at once, and again when it
 * is rolled back.
 *
 * A session would take in what was sent with the next lock on a table, which
 * a statement that runs for hours may never take. So each lookup takes it in
 * itself: when nothing was sent that is a look at one flag in shared memory.
 *
 * The callback only notes that all is stale; nothing is freed but by the next
 * lookup, so that what one lookup returned is good until then. Rows are read by
 * the latest snapshot, not the transaction's, so that a rule holds under
 * REPEATABLE READ too.
 *
 * A rule that does not exist is not remembered: asking for it is an error.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "common/int.h"
#include "common/relwatch.h"
#include "common/rows.h"
#include "ratelimit/rule.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* A longer name is nobody's. */
#define NAME_ROOM	NAMEDATALEN

/* Columns of mlint.rate_rule and mlint.rate_override. */
enum
{
	RULE_ID = 1, RULE_NAME, RULE_ALGORITHM, RULE_RATE, RULE_PER, RULE_BURST,
	RULE_STRATEGY, RULE_SCOPE, RULE_SETTING, RULE_IPV4_PREFIX,
	RULE_IPV6_PREFIX, RULE_MAX_WAIT, RULE_PRE_REQUEST, RULE_BACKEND,
	RULE_MODE, RULE_FAIL, RULE_LEASE
};
enum
{
	OVERRIDE_RULE_ID = 1, OVERRIDE_IDENTIFIER, OVERRIDE_ACTION,
	OVERRIDE_RATE, OVERRIDE_BURST, OVERRIDE_EXPIRES_AT, OVERRIDE_REASON
};

typedef struct RuleEntry
{
	char		name[NAME_ROOM];	/* filled up with zeros */
	RateRule	rule;
} RuleEntry;

typedef struct OverrideKey
{
	const char *data;
	Size		len;
} OverrideKey;

typedef struct OverrideEntry
{
	OverrideKey key;
	RateOverride override;
} OverrideEntry;

static struct
{
	bool		stale;			/* nothing in it may be used any more */
	Oid			rule_table;
	Oid			override_table;
	MemoryContext context;
	HTAB	   *rules;			/* of RuleEntry */
	RateRule   *last;			/* asked for; or NULL */
	bool		pre_request_known;
	List	   *pre_request;
}			cache = {.stale = true};

const char *const rate_algorithm_words[] = {"token_bucket", "leaky_bucket",
"fixed_window", "sliding_window", NULL};
const char *const rate_strategy_words[] = {"hard", "retry_after", "queue",
"throttle", "graceful", NULL};
const char *const rate_scope_words[] = {"global", "user", "ip", "endpoint",
"custom", NULL};
const char *const rate_mode_words[] = {"exact", "leased", NULL};
const char *const rate_fail_words[] = {"open", "closed", "local", NULL};
const char *const rate_action_words[] = {"allow", "deny", "limit", NULL};

/* May be called at any time and anywhere. */
static void
mark_stale(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == cache.rule_table ||
		relation == cache.override_table)
		cache.stale = true;
}

void
rule_init(void)
{
	relation_watch(mark_stale, (Datum) 0);
}

int
rate_word(const char *const *words, const char *word)
{
	for (int i = 0; words[i]; i++)
	{
		if (strcmp(words[i], word) == 0)
			return i;
	}
	return -1;
}

bool
rate_interval_us(const Interval *interval, int64 *us)
{
	int64		days;

	if (interval->month != 0 ||
		pg_mul_s64_overflow(interval->day, USECS_PER_DAY, &days) ||
		pg_add_s64_overflow(days, interval->time, us))
		return false;
	return *us >= 0 && *us <= RATE_MAX_PER;
}

const char *
rate_law(RateLaw *law, RateAlgorithm algorithm, int64 rate, int64 per,
		 int64 burst)
{
	memset(law, 0, sizeof(*law));
	law->algorithm = algorithm;
	law->rate = rate;
	law->per = per;
	law->burst = burst != 0 ? burst : rate;
	return law_prepare(law);
}

/* ---- reading ---- */

/* Take in what others have changed; forget all if that concerns us. */
static void
refresh(void)
{
	HASHCTL		ctl = {0};

	AcceptInvalidationMessages();
	if (likely(!cache.stale))
		return;
	cache.rules = NULL;
	cache.last = NULL;
	cache.pre_request_known = false;
	cache.pre_request = NIL;
	if (cache.context == NULL)
		cache.context = AllocSetContextCreate(TopMemoryContext,
											  "mlint rate limits",
											  ALLOCSET_SMALL_SIZES);
	else
		MemoryContextReset(cache.context);
	ctl.keysize = NAME_ROOM;
	ctl.entrysize = sizeof(RuleEntry);
	ctl.hcxt = cache.context;
	cache.rules = hash_create("mlint rate limits", 16, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	cache.stale = false;
}

/* From here on changes of the tables concern us. */
static void
watch_tables(void)
{
	cache.rule_table = mlint_relation("rate_rule");
	cache.override_table = mlint_relation("rate_override");
}

/* A column as a C string in the cache's memory; NULL for a null. */
static char *
column_text(HeapTuple row, const RowScan *scan, int column)
{
	bool		isnull;
	Datum		value = heap_getattr(row, column, scan->desc, &isnull);

	if (isnull)
		return NULL;
	return MemoryContextStrdup(cache.context, TextDatumGetCString(value));
}

/* 0 for a null */
static int64
column_int64(HeapTuple row, const RowScan *scan, int column)
{
	bool		isnull;
	Datum		value = heap_getattr(row, column, scan->desc, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

static int
column_int(HeapTuple row, const RowScan *scan, int column)
{
	bool		isnull;

	return DatumGetInt32(heap_getattr(row, column, scan->desc, &isnull));
}

static int
column_word(HeapTuple row, const RowScan *scan, int column,
			const char *const *words)
{
	bool		isnull;
	char	   *word = TextDatumGetCString(heap_getattr(row, column,
														scan->desc,
														&isnull));
	int			i = rate_word(words, word);

	if (i < 0)
		elog(ERROR, "unknown word \"%s\" in a rate limit", word);
	return i;
}

static int64
column_us(HeapTuple row, const RowScan *scan, int column)
{
	bool		isnull;
	int64		us;

	if (!rate_interval_us(DatumGetIntervalP(heap_getattr(row, column,
														 scan->desc,
														 &isnull)), &us))
		elog(ERROR, "interval of a rate limit is out of range");
	return us;
}

static void
prepare_law(RateLaw *law, const RateRule *rule, RateAlgorithm algorithm,
			int64 rate, int64 per, int64 burst)
{
	const char *wrong = rate_law(law, algorithm, rate, per, burst);

	if (wrong)
		elog(ERROR, "rate limit \"%s\": %s", rule->name, wrong);
}

static uint32
override_hash(const void *key, Size size)
{
	const OverrideKey *k = key;

	return hash_bytes((const unsigned char *) k->data, k->len);
}

static int
override_compare(const void *a, const void *b, Size size)
{
	const OverrideKey *k = a;
	const OverrideKey *l = b;

	return k->len != l->len || memcmp(k->data, l->data, k->len) != 0;
}

static HTAB *
make_override_table(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(OverrideKey);
	ctl.entrysize = sizeof(OverrideEntry);
	ctl.hash = override_hash;
	ctl.match = override_compare;
	ctl.hcxt = cache.context;
	return hash_create("mlint rate limit overrides", 16, &ctl,
					   HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
					   HASH_CONTEXT);
}

static void
read_overrides(RateRule *rule)
{
	RowScan		scan;
	ScanKeyData key;
	HeapTuple	row;

	rule->overrides = NULL;
	row_key(&key, OVERRIDE_RULE_ID, F_INT8EQ, Int64GetDatum(rule->id));
	rows_begin(&scan, "rate_override", "rate_override_rule", 1, &key, true);
	while ((row = rows_next(&scan)) != NULL)
	{
		OverrideKey name;
		OverrideEntry *entry;
		RateOverride *override;
		Datum		expires_at;
		bool		isnull;

		if (rule->overrides == NULL)
			rule->overrides = make_override_table();
		name.data = column_text(row, &scan, OVERRIDE_IDENTIFIER);
		name.len = strlen(name.data);
		entry = hash_search(rule->overrides, &name, HASH_ENTER, NULL);
		override = &entry->override;
		memset(override, 0, sizeof(*override));
		override->action = column_word(row, &scan, OVERRIDE_ACTION,
									   rate_action_words);
		override->reason = column_text(row, &scan, OVERRIDE_REASON);
		if (override->action == RATE_LIMIT)
			prepare_law(&override->law, rule, rule->law.algorithm,
						column_int64(row, &scan, OVERRIDE_RATE),
						rule->law.per,
						column_int64(row, &scan, OVERRIDE_BURST));
		expires_at = heap_getattr(row, OVERRIDE_EXPIRES_AT, scan.desc,
								  &isnull);
		if (isnull || TIMESTAMP_IS_NOEND(DatumGetTimestampTz(expires_at)))
			override->expires_at = PG_INT64_MAX;
		else if (TIMESTAMP_IS_NOBEGIN(DatumGetTimestampTz(expires_at)))
			override->expires_at = PG_INT64_MIN;
		else
			override->expires_at = DatumGetTimestampTz(expires_at) +
				RATE_EPOCH_US;
	}
	rows_end(&scan);
}

static void
read_rule(RateRule *rule, HeapTuple row, const RowScan *scan)
{
	bool		isnull;

	memset(rule, 0, sizeof(*rule));
	rule->slot = -1;
	rule->id = column_int64(row, scan, RULE_ID);
	rule->name = column_text(row, scan, RULE_NAME);
	rule->name_len = strlen(rule->name);
	prepare_law(&rule->law, rule,
				column_word(row, scan, RULE_ALGORITHM, rate_algorithm_words),
				column_int64(row, scan, RULE_RATE),
				column_us(row, scan, RULE_PER),
				column_int64(row, scan, RULE_BURST));
	rule->strategy = column_word(row, scan, RULE_STRATEGY,
								 rate_strategy_words);
	rule->scope = column_word(row, scan, RULE_SCOPE, rate_scope_words);
	rule->setting = column_text(row, scan, RULE_SETTING);
	rule->ipv4_prefix = column_int(row, scan, RULE_IPV4_PREFIX);
	rule->ipv6_prefix = column_int(row, scan, RULE_IPV6_PREFIX);
	rule->max_wait = column_us(row, scan, RULE_MAX_WAIT);
	rule->pre_request = DatumGetBool(heap_getattr(row, RULE_PRE_REQUEST,
												  scan->desc, &isnull));
	rule->backend = column_text(row, scan, RULE_BACKEND);
	rule->mode = column_word(row, scan, RULE_MODE, rate_mode_words);
	rule->fail = column_word(row, scan, RULE_FAIL, rate_fail_words);
	rule->lease = column_int64(row, scan, RULE_LEASE);
}

/* Read a rule from its table into the cache; NULL when there is none. */
static RateRule *
load_rule(const char *name, Size len, const char *key_name)
{
	RowScan		scan;
	ScanKeyData key;
	HeapTuple	row;
	RateRule	rule;
	RuleEntry  *entry;

	watch_tables();
	row_key(&key, RULE_NAME, F_TEXTEQ,
			PointerGetDatum(cstring_to_text_with_len(name, len)));
	rows_begin(&scan, "rate_rule", "rate_rule_name", 1, &key, true);
	row = rows_next(&scan);
	if (row != NULL)
		read_rule(&rule, row, &scan);
	rows_end(&scan);
	if (row == NULL)
		return NULL;
	read_overrides(&rule);
	entry = hash_search(cache.rules, key_name, HASH_ENTER, NULL);
	entry->rule = rule;
	return &entry->rule;
}

/*
 * The rule of this name, without a look at what others have changed; it need
 * not have a place in shared memory.
 */
static inline RateRule *
known_rule(const char *name, Size len)
{
	char		key[NAME_ROOM] = {0};
	RateRule   *rule = cache.last;
	RuleEntry  *entry;

	if (likely(rule != NULL && rule->name_len == len &&
			   memcmp(rule->name, name, len) == 0))
		return rule;
	if (len >= NAME_ROOM)
		return NULL;
	memcpy(key, name, len);
	entry = hash_search(cache.rules, key, HASH_FIND, NULL);
	rule = entry ? &entry->rule : load_rule(name, len, key);
	if (rule)
		cache.last = rule;
	return rule;
}

/* The same, with its place: it may have been given away meanwhile. */
static inline RateRule *
find_rule(const char *name, Size len)
{
	RateRule   *rule = known_rule(name, len);

	if (rule && unlikely(!table_rule_kept(rule->slot, rule->id)))
		rule->slot = table_rule_slot(rule->id);
	return rule;
}

/* ---- for others ---- */

void
rate_rule_unknown(const char *name, Size len)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("rate limit \"%.*s\" does not exist", (int) len, name),
			 errhint("The view mlint.rate_rules lists them; mlint.rate_rule_create() makes one.")));
}

const RateRule *
rate_rule_find(const char *name, Size len)
{
	refresh();
	return find_rule(name, len);
}

int64
rate_rule_id(const char *name, Size len)
{
	RateRule   *rule;

	refresh();
	rule = known_rule(name, len);
	return rule ? rule->id : 0;
}

const RateRule *
rate_rule(const char *name, Size len)
{
	const RateRule *rule;

	refresh();
	rule = find_rule(name, len);
	if (unlikely(rule == NULL))
		rate_rule_unknown(name, len);
	return rule;
}

void
rate_rules(const char *const *names, const Size *lens, int n,
		   const RateRule **rules)
{
	refresh();
	for (int i = 0; i < n; i++)
	{
		rules[i] = find_rule(names[i], lens[i]);
		if (rules[i] == NULL)
			rate_rule_unknown(names[i], lens[i]);
	}
	/* The only place that was left may have gone from one to the next. */
	for (int i = 0; i < n; i++)
	{
		if (!table_rule_kept(rules[i]->slot, rules[i]->id))
			table_no_room_for_rule();
	}
}

List *
rate_pre_request_rules(void)
{
	RowScan		scan;
	HeapTuple	row;
	List	   *names = NIL;

	refresh();
	if (cache.pre_request_known)
		return cache.pre_request;
	watch_tables();
	rows_begin(&scan, "rate_rule", "rate_rule_name", 0, NULL, true);
	while ((row = rows_next(&scan)) != NULL)
	{
		bool		isnull;

		if (DatumGetBool(heap_getattr(row, RULE_PRE_REQUEST, scan.desc,
									  &isnull)))
		{
			char	   *name = column_text(row, &scan, RULE_NAME);
			MemoryContext old = MemoryContextSwitchTo(cache.context);

			names = lappend(names, name);
			MemoryContextSwitchTo(old);
		}
	}
	rows_end(&scan);
	cache.pre_request = names;
	cache.pre_request_known = true;
	return cache.pre_request;
}

const RateOverride *
rate_override(const RateRule *rule, const char *identifier, Size len,
			  int64 now)
{
	OverrideKey key = {identifier, len};
	OverrideEntry *entry;

	if (likely(rule->overrides == NULL))
		return NULL;
	entry = hash_search(rule->overrides, &key, HASH_FIND, NULL);
	if (entry == NULL || entry->override.expires_at <= now)
		return NULL;
	return &entry->override;
}
