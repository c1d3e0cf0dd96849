/*
 * rule_admin.c
 *		Rules and overrides as an administrator sees them: create, alter, drop.
 *
 * Whatever can be known to be wrong with a rule is refused here, with what to
 * do instead. All of a rule is checked as it will be: alter reads the row,
 * puts what is given over it and checks the whole, with its overrides.
 *
 * The invalidation that makes every process read again is entered before the
 * row is written: so the end of that statement makes it known to this session
 * too, and a rollback takes it back.
 */
#include "postgres.h"

#include <ctype.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/rows.h"
#include "ratelimit/decide.h"
#include "ratelimit/ratelimit.h"
#include "ratelimit/remote.h"

#define NAME_MAX_BYTES		63
#define SETTING_MAX_BYTES	255

PG_FUNCTION_INFO_V1(mlint_rate_rule_create);
PG_FUNCTION_INFO_V1(mlint_rate_rule_alter);
PG_FUNCTION_INFO_V1(mlint_rate_rule_drop);
PG_FUNCTION_INFO_V1(mlint_rate_override_set);
PG_FUNCTION_INFO_V1(mlint_rate_override_drop);

/* The arguments of create and alter, in their order. */
typedef enum RuleField
{
	NAME, ALGORITHM, RATE, PER, BURST, STRATEGY, SCOPE, BACKEND, MAX_WAIT,
	MODE, FAIL, LEASE, SETTING, IPV4_PREFIX, IPV6_PREFIX, PRE_REQUEST,
	DESCRIPTION, NFIELDS
} RuleField;

static const RowArgument fields[NFIELDS] = {
	{"name", TEXTOID, false},
	{"algorithm", TEXTOID, false},
	{"rate", INT8OID, false},
	{"per", INTERVALOID, false},
	{"burst", INT8OID, true},
	{"strategy", TEXTOID, false},
	{"scope", TEXTOID, false},
	{"backend", TEXTOID, true},
	{"max_wait", INTERVALOID, false},
	{"mode", TEXTOID, false},
	{"fail", TEXTOID, false},
	{"lease", INT8OID, true},
	{"setting", TEXTOID, true},
	{"ipv4_prefix", INT4OID, false},
	{"ipv6_prefix", INT4OID, false},
	{"pre_request", BOOLOID, false},
	{"description", TEXTOID, true},
};

#define COLUMNS \
	"name, algorithm, rate, per, burst, strategy, scope, backend, max_wait," \
	" mode, fail, lease, setting, ipv4_prefix, ipv6_prefix, pre_request," \
	" description"

/* A rule as it is to be. */
typedef struct RuleRow
{
	Datum		values[NFIELDS];
	bool		nulls[NFIELDS];
	RateLaw		law;
} RuleRow;

static char *
field_text(const RuleRow *row, RuleField field)
{
	return row->nulls[field] ? NULL : TextDatumGetCString(row->values[field]);
}

static int64
field_int64(const RuleRow *row, RuleField field)
{
	return row->nulls[field] ? 0 : DatumGetInt64(row->values[field]);
}

/* ---- what a rule may be ---- */

static bool
has_control_character(const char *text)
{
	for (const char *p = text; *p; p++)
	{
		if ((unsigned char) *p < ' ' || *p == 0x7f)
			return true;
	}
	return false;
}

static void
check_name(const char *name)
{
	size_t		len = strlen(name);

	if (len == 0 || len > NAME_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("the name of a rate limit must be 1 to %d bytes long",
						NAME_MAX_BYTES)));
	if (has_control_character(name))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("the name of a rate limit must not contain control characters")));
}

/* The place of a word in its list, or an error that shows the list. */
static int
known_word(const char *what, const char *rule, const char *const *words,
		   const char *word)
{
	int			i = rate_word(words, word);
	StringInfoData known;

	if (i >= 0)
		return i;
	initStringInfo(&known);
	for (int w = 0; words[w]; w++)
		appendStringInfo(&known, "%s%s", w > 0 ? ", " : "", words[w]);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid %s of rate limit \"%s\": \"%s\"", what, rule, word),
			 errhint("It is one of: %s.", known.data)));
}

static int
field_word(const RuleRow *row, RuleField field, const char *const *words)
{
	return known_word(fields[field].name, field_text(row, NAME), words,
					  field_text(row, field));
}

/* A length of time in microseconds, of at least min_us. */
static int64
field_us(const RuleRow *row, RuleField field, int64 min_us,
		 const char *min_words)
{
	Interval   *interval = DatumGetIntervalP(row->values[field]);
	int64		us;

	if (interval->month != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" of rate limit \"%s\" must not have months or years",
						fields[field].name, field_text(row, NAME)),
				 errdetail("An interval with months has no fixed length."),
				 errhint("Write it in days; a day is 24 hours.")));
	if (!rate_interval_us(interval, &us) || us < min_us)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" of rate limit \"%s\" must be between %s and %d days",
						fields[field].name, field_text(row, NAME), min_words,
						(int) (RATE_MAX_PER / USECS_PER_DAY))));
	return us;
}

/*
 * What law_prepare() has against it, as an error about what: 'rate limit "x"'.
 */
static void
check_law(RateLaw *law, const char *what, RateAlgorithm algorithm, int64 rate,
		  int64 per, int64 burst, bool burst_given)
{
	const char *wrong;

	if (rate <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the rate of %s must be greater than zero", what),
				 errhint("To let nobody pass, use mlint.rate_override_set(rule, identifier, 'deny').")));
	if (burst_given &&
		(algorithm == RATE_FIXED_WINDOW || algorithm == RATE_SLIDING_WINDOW))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s cannot have a burst", what),
				 errdetail("A %s admits up to its rate at once.",
						   rate_algorithm_words[algorithm]),
				 errhint("Leave burst out; token_bucket and leaky_bucket have one.")));
	if (burst_given && burst <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the burst of %s must be greater than zero", what)));
	wrong = rate_law(law, algorithm, rate, per, burst);
	if (wrong)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is not possible: %s", what, wrong)));
}

/* Can a setting have this name? One of the server's is looked up elsewhere. */
static bool
is_custom_setting(const char *name)
{
	bool		dotted = false;
	bool		begins = true;

	for (const char *p = name; *p; p++)
	{
		bool		letter = isalpha((unsigned char) *p) || *p == '_' ||
		IS_HIGHBIT_SET(*p);

		if (*p == '.' ? begins :
			!letter && (begins || !(isdigit((unsigned char) *p) || *p == '$')))
			return false;
		begins = *p == '.';
		dotted |= begins;
	}
	return dotted && !begins;
}

/*
 * The setting where an identifier is found; whoever names it must be allowed
 * to see it, since its value will be seen by those who watch the limit.
 */
static void
check_setting(const char *rule, const char *setting, RateScope scope)
{
	const char *key = strchr(setting, '>');
	char	   *name = pnstrdup(setting, key ? key - setting : strlen(setting));

	if (scope == RATE_GLOBAL || scope == RATE_CUSTOM)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rate limit \"%s\" of scope %s takes no setting", rule,
						rate_scope_words[scope]),
				 errdetail(scope == RATE_GLOBAL ?
						   "It has one identifier for all." :
						   "Its identifier is the one that each call gives."),
				 errhint("Scopes user, ip and endpoint can take the identifier from a setting.")));
	if (name[0] == '\0' || (key && key[1] == '\0') ||
		strlen(setting) > SETTING_MAX_BYTES || has_control_character(setting) ||
		(GetConfigOption(name, true, true) == NULL && !is_custom_setting(name)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid setting of rate limit \"%s\": \"%s\"", rule,
						setting),
				 errdetail("It is the name of a setting such as app.client, or name>key for a setting that holds a JSON object, such as request.headers>x-api-key; at most %d bytes.",
						   SETTING_MAX_BYTES)));
}

static void
check_prefix(const RuleRow *row, RuleField field, int max)
{
	int			prefix = DatumGetInt32(row->values[field]);

	if (prefix < 0 || prefix > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" of rate limit \"%s\" must be between 0 and %d",
						fields[field].name, field_text(row, NAME), max)));
}

/* As decisions know the rule; but for its id, place and overrides. */
static void
make_rule(RateRule *rule, const RuleRow *row)
{
	memset(rule, 0, sizeof(*rule));
	rule->name = field_text(row, NAME);
	rule->name_len = strlen(rule->name);
	rule->law = row->law;
	rule->strategy = field_word(row, STRATEGY, rate_strategy_words);
	rule->scope = field_word(row, SCOPE, rate_scope_words);
	rule->setting = field_text(row, SETTING);
	rule->ipv4_prefix = DatumGetInt32(row->values[IPV4_PREFIX]);
	rule->ipv6_prefix = DatumGetInt32(row->values[IPV6_PREFIX]);
	rule->backend = field_text(row, BACKEND);
	rule->mode = field_word(row, MODE, rate_mode_words);
	rule->fail = field_word(row, FAIL, rate_fail_words);
	rule->lease = field_int64(row, LEASE);
}

/* All of a rule; what is as good as not given becomes null. */
static void
check_rule(RuleRow *row, int64 *per)
{
	char	   *name;
	RateAlgorithm algorithm;
	RateScope	scope;
	RateMode	mode;

	for (int i = 0; i < NFIELDS; i++)
	{
		if (row->nulls[i] && !fields[i].optional)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be null", fields[i].name)));
	}
	name = field_text(row, NAME);
	check_name(name);
	algorithm = field_word(row, ALGORITHM, rate_algorithm_words);
	(void) field_word(row, STRATEGY, rate_strategy_words);
	scope = field_word(row, SCOPE, rate_scope_words);
	mode = field_word(row, MODE, rate_mode_words);
	(void) field_word(row, FAIL, rate_fail_words);
	*per = field_us(row, PER, RATE_MIN_PER, "1 millisecond");
	(void) field_us(row, MAX_WAIT, 0, "zero");
	check_law(&row->law, psprintf("rate limit \"%s\"", name), algorithm, field_int64(row, RATE), *per,
			  field_int64(row, BURST), !row->nulls[BURST]);
	if (!row->nulls[SETTING])
		check_setting(name, field_text(row, SETTING), scope);
	if (scope == RATE_CUSTOM && DatumGetBool(row->values[PRE_REQUEST]))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rate limit \"%s\" cannot have both scope custom and pre_request",
						name),
				 errdetail("mlint.rate_pre_request() gives no identifier, so all requests would share one."),
				 errhint("Use scope user, ip or endpoint; or global, if one for all is meant.")));
	check_prefix(row, IPV4_PREFIX, 32);
	check_prefix(row, IPV6_PREFIX, 128);

	if (!row->nulls[BACKEND] && strcmp(field_text(row, BACKEND), "local") == 0)
		row->nulls[BACKEND] = true;
	if (mode == RATE_LEASED && row->nulls[BACKEND])
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rate limit \"%s\" cannot be leased without a backend",
						name),
				 errdetail("A lease is a part of a limit that several servers share."),
				 errhint("Name a backend that was made with mlint.rate_backend_create(), or use mode exact.")));
	if (!row->nulls[LEASE] && mode != RATE_LEASED)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rate limit \"%s\" has a lease but is not leased",
						name),
				 errhint("Leave lease out, or use mode leased.")));
	if (!row->nulls[LEASE] && field_int64(row, LEASE) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the lease of rate limit \"%s\" must be greater than zero",
						name)));
	if (!row->nulls[BACKEND])
	{
		RateRule	rule;

		make_rule(&rule, row);
		if (rule.lease > rule.law.burst)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the lease of rate limit \"%s\" must be at most its capacity, %lld",
							name, (long long) rule.law.burst)));
		remote_check_rule(&rule);
	}
}

/*
 * All rules with pre_request are asked together: one too many would have every
 * request fail.
 */
static void
check_pre_requests(void)
{
	if (SPI_execute("SELECT FROM mlint.rate_rule WHERE pre_request", false,
					RATE_MAX_TOGETHER + 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.rate_rule");
	if (SPI_processed > RATE_MAX_TOGETHER)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("more than %d rate limits cannot have pre_request",
						RATE_MAX_TOGETHER),
				 errhint("mlint.rate_rule_alter(name, pre_request => false) takes it from one.")));
}

/* ---- writing ---- */

/* Every process, this one included, reads that table's rows again. */
static void
changed(const char *table)
{
	CacheInvalidateRelcacheByRelid(mlint_relation(table));
}

/* Run a statement on the whole row; how many rows were touched? */
static uint64
write_row(const char *sql, RuleRow *row)
{
	Oid			types[NFIELDS];
	char		nulls[NFIELDS + 1];

	for (int i = 0; i < NFIELDS; i++)
	{
		types[i] = fields[i].type;
		nulls[i] = row->nulls[i] ? 'n' : ' ';
	}
	nulls[NFIELDS] = '\0';
	if (SPI_execute_with_args(sql, NFIELDS, types, row->values, nulls, false,
							  0) < 0)
		elog(ERROR, "could not write mlint.rate_rule");
	return SPI_processed;
}

static RateRuleUser rule_user = NULL;

void
rate_rule_watch(RateRuleUser user)
{
	rule_user = user;
}

/* Which worker keeps to the rule? NULL: none. */
static char *
worker_of_rule(const char *name)
{
	return rule_user ? rule_user(name) : NULL;
}

/*
 * Rules that this transaction has created and dropped: those that are not
 * there when it has ended leave nothing in shared memory.
 */
typedef struct Changed
{
	Oid			relation;
	int64		id;
	bool		created;		/* else dropped */
	SubTransactionId by;
} Changed;

static List *changes = NIL;		/* in TopTransactionContext */

static void
settle_changes(XactEvent event, void *arg)
{
	ListCell   *lc;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	foreach(lc, changes)
	{
		Changed    *rule = lfirst(lc);

		if (event == (rule->created ? XACT_EVENT_ABORT : XACT_EVENT_COMMIT))
			table_drop_rule(rule->relation, rule->id);
	}
	changes = NIL;
}

/* What a subtransaction has changed is its parent's, or was not. */
static void
settle_inner_changes(SubXactEvent event, SubTransactionId sub,
					 SubTransactionId parent, void *arg)
{
	ListCell   *lc;

	foreach(lc, changes)
	{
		Changed    *rule = lfirst(lc);

		if (rule->by != sub)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			rule->by = parent;
		else if (event == SUBXACT_EVENT_ABORT_SUB)
		{
			if (rule->created)
				table_drop_rule(rule->relation, rule->id);
			changes = foreach_delete_current(changes, lc);
		}
	}
}

/* The rule is the one whose id the last statement has returned. */
static void
note_change(bool created)
{
	static bool watching = false;
	MemoryContext old;
	Changed    *rule;
	bool		isnull;

	if (!watching)
	{
		RegisterXactCallback(settle_changes, NULL);
		RegisterSubXactCallback(settle_inner_changes, NULL);
		watching = true;
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	rule = palloc(sizeof(Changed));
	rule->relation = mlint_relation("rate_rule");
	rule->id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1,
										   &isnull));
	rule->created = created;
	rule->by = GetCurrentSubTransactionId();
	changes = lappend(changes, rule);
	MemoryContextSwitchTo(old);
}

/* mlint.rate_rule_create(name, algorithm, rate, per, ...) */
Datum
mlint_rate_rule_create(PG_FUNCTION_ARGS)
{
	RuleRow		row;
	OwnerScope	scope;
	int64		per;

	require_writable(fcinfo);
	for (int i = 0; i < NFIELDS; i++)
	{
		row.values[i] = PG_GETARG_DATUM(i);
		row.nulls[i] = PG_ARGISNULL(i);
	}
	check_rule(&row, &per);
	audit(AUDIT_CHANGED, "rate_rule.create", "rate_rule",
		  field_text(&row, NAME), given_arguments(fcinfo, fields, NFIELDS));
	owner_begin(&scope);
	changed("rate_rule");
	if (write_row("INSERT INTO mlint.rate_rule (" COLUMNS ") VALUES"
				  " ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,"
				  " $14, $15, $16, $17) ON CONFLICT (name) DO NOTHING"
				  " RETURNING id",
				  &row) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("rate limit \"%s\" already exists",
						field_text(&row, NAME)),
				 errhint("mlint.rate_rule_alter() changes it.")));
	note_change(true);
	if (DatumGetBool(row.values[PRE_REQUEST]))
		check_pre_requests();
	owner_end(&scope);
	PG_RETURN_VOID();
}

/*
 * The rule's row, locked, so that it and its overrides are changed by one at
 * a time; in the memory that was current before.
 */
static int64
read_row(const char *name, RuleRow *row, MemoryContext context)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	MemoryContext spi;
	SPITupleTable *result;
	bool		isnull;

	owner_run(NULL, "SELECT " COLUMNS ", id FROM mlint.rate_rule"
			  " WHERE name = $1 FOR UPDATE",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		rate_rule_unknown(name, strlen(name));
	result = SPI_tuptable;
	spi = MemoryContextSwitchTo(context);
	memset(row, 0, sizeof(*row));
	for (int i = 0; i < NFIELDS; i++)
	{
		row->values[i] = SPI_getbinval(result->vals[0], result->tupdesc, i + 1,
									   &row->nulls[i]);
		if (!row->nulls[i])
			row->values[i] = datumCopy(row->values[i],
									   get_typbyval(fields[i].type),
									   get_typlen(fields[i].type));
	}
	MemoryContextSwitchTo(spi);
	return DatumGetInt64(SPI_getbinval(result->vals[0], result->tupdesc,
									   NFIELDS + 1, &isnull));
}

/* Each override that limits must be possible under the rule as it will be. */
static void
check_overrides(int64 id, const RuleRow *row, int64 per)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	SPITupleTable *result;
	uint64		n;

	owner_run(NULL, "SELECT DISTINCT rate, burst"
			  " FROM mlint.rate_override"
			  " WHERE rule_id = $1 AND action = 'limit'",
			  SPI_OK_SELECT, 1, types, values, NULL);
	result = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		RateLaw		law;
		bool		isnull;
		bool		no_burst;
		int64		rate = DatumGetInt64(SPI_getbinval(result->vals[i],
													   result->tupdesc, 1,
													   &isnull));
		int64		burst = DatumGetInt64(SPI_getbinval(result->vals[i],
														result->tupdesc, 2,
														&no_burst));

		check_law(&law, psprintf("an override of rate limit \"%s\", to %lld,",
								 field_text(row, NAME), (long long) rate),
				  row->law.algorithm, rate, per, no_burst ? 0 : burst,
				  !no_burst);
		if (!row->nulls[BACKEND])
			remote_check_law(field_text(row, NAME), field_text(row, BACKEND),
							 &law);
	}
}

/*
 * Whom an override is about, as decisions know him: an address masked as the
 * rule does it, any other identifier as it is.
 */
static char *
override_identifier(const RuleRow *row, char *given)
{
	RateRule	rule;
	Size		len = strlen(given);
	const char *identified;
	char	   *found;

	make_rule(&rule, row);
	if (given[0] == '\0' &&
		(rule.scope == RATE_USER || rule.scope == RATE_IP))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an override of rate limit \"%s\" must name an identifier",
						rule.name),
				 errdetail("Under scope %s no identifier is empty.",
						   rate_scope_words[rule.scope])));
	if (given[0] == '\0')
		return given;
	if (rule.scope == RATE_GLOBAL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an override of rate limit \"%s\" must be of the empty identifier",
						rule.name),
				 errdetail("Under scope global all share one identifier, ''.")));
	identified = rate_identify(&rule, given, &len);
	found = pnstrdup(identified, len);
	if (rule.scope == RATE_IP)
	{
		int			prefix = strchr(found, ':') ? rule.ipv6_prefix :
		rule.ipv4_prefix;
		char	   *slash = strchr(found, '/');

		if (slash && strtol(slash + 1, NULL, 10) < prefix)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("an override of rate limit \"%s\" cannot be of \"%s\"",
							rule.name, found),
					 errdetail("The limit tells addresses apart by %d bits, so that no client is this network.",
							   prefix),
					 errhint("Set one for each client, or a smaller ipv4_prefix or ipv6_prefix of the limit.")));
	}
	return found;
}

/*
 * An override is of an identifier as the rule makes it. Where that changes, as
 * with another prefix, none must silently come to hold for nobody.
 */
static void
check_override_identifiers(int64 id, const RuleRow *row)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	SPITupleTable *result;
	uint64		n;

	owner_run(NULL, "SELECT identifier FROM mlint.rate_override"
			  " WHERE rule_id = $1",
			  SPI_OK_SELECT, 1, types, values, NULL);
	result = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		char	   *identifier = SPI_getvalue(result->vals[i],
											  result->tupdesc, 1);

		if (strcmp(override_identifier(row, identifier), identifier) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("rate limit \"%s\" has an override of \"%s\", which would hold for nobody then",
							field_text(row, NAME),
							audit_clip(identifier)),
					 errhint("Drop it with mlint.rate_override_drop(), and set it again after this change.")));
	}
}

/* mlint.rate_rule_alter(name, ...): what is null stays. */
Datum
mlint_rate_rule_alter(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "name");
	MemoryContext caller = CurrentMemoryContext;
	RuleRow		row;
	OwnerScope	scope;
	int64		id;
	int64		per;

	require_writable(fcinfo);
	owner_begin(&scope);
	id = read_row(name, &row, caller);
	owner_end(&scope);
	for (int i = 1; i < NFIELDS; i++)
	{
		if (PG_ARGISNULL(i))
			continue;
		row.values[i] = PG_GETARG_DATUM(i);
		row.nulls[i] = false;
		/* 0 and the empty string take away. */
		if (fields[i].optional && i != BACKEND)
			row.nulls[i] = fields[i].type == TEXTOID ?
				VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(i)) == 0 :
				PG_GETARG_INT64(i) == 0;
	}
	check_rule(&row, &per);
	if (!row.nulls[BACKEND] &&
		field_word(&row, MODE, rate_mode_words) == RATE_EXACT)
	{
		char	   *user = worker_of_rule(name);

		if (user)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("rate limit \"%s\" cannot be of mode exact with a backend, since %s keeps to it",
							name, user),
					 errdetail("Each of its decisions would be a question to the backend, and a worker does not wait for that."),
					 errhint("Use mode leased.")));
	}
	audit(AUDIT_CHANGED, "rate_rule.alter", "rate_rule", name,
		  given_arguments(fcinfo, fields, NFIELDS));
	owner_begin(&scope);
	check_overrides(id, &row, per);
	if (!PG_ARGISNULL(SCOPE) || !PG_ARGISNULL(IPV4_PREFIX) ||
		!PG_ARGISNULL(IPV6_PREFIX))
		check_override_identifiers(id, &row);
	changed("rate_rule");
	(void) write_row("UPDATE mlint.rate_rule SET (" COLUMNS ") ="
					 " ROW($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
					 " $13, $14, $15, $16, $17),"
					 " altered_at = pg_catalog.clock_timestamp()"
					 " WHERE name = $1", &row);
	if (DatumGetBool(row.values[PRE_REQUEST]))
		check_pre_requests();
	owner_end(&scope);
	PG_RETURN_VOID();
}

/* mlint.rate_rule_drop(name) */
Datum
mlint_rate_rule_drop(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "name");
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	OwnerScope	scope;
	char	   *user = worker_of_rule(name);

	require_writable(fcinfo);
	if (user)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot drop rate limit \"%s\", since %s keeps to it",
						name, user),
				 errhint("Give it another limit, or none, first.")));
	owner_begin(&scope);
	changed("rate_rule");
	owner_run(NULL, "DELETE FROM mlint.rate_rule WHERE name = $1"
			  " RETURNING id",
			  SPI_OK_DELETE_RETURNING, 1, types, values, NULL);
	if (SPI_processed == 0)
		rate_rule_unknown(name, strlen(name));
	note_change(false);
	owner_end(&scope);
	audit(AUDIT_CHANGED, "rate_rule.drop", "rate_rule", name, NULL);
	PG_RETURN_VOID();
}

/* ---- overrides ---- */

/* Delete the override, if there is one. */
static bool
delete_override(int64 rule_id, const char *identifier)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[2];

	values[0] = Int64GetDatum(rule_id);
	values[1] = CStringGetTextDatum(identifier);
	owner_run(NULL, "DELETE FROM mlint.rate_override"
			  " WHERE (rule_id::text || ':' || identifier)"
			  " = ($1::text || ':' || $2)",
			  SPI_OK_DELETE, 2, types, values, NULL);
	return SPI_processed > 0;
}

static char *
audit_override(const char *identifier, const char *action, int64 rate,
			   int64 burst, const char *expires_at, const char *reason)
{
	StringInfoData details;

	initStringInfo(&details);
	appendStringInfoString(&details, "{\"identifier\": ");
	escape_json(&details, audit_clip(identifier));
	if (action)
		appendStringInfo(&details, ", \"action\": \"%s\"", action);
	if (rate)
		appendStringInfo(&details, ", \"rate\": %lld", (long long) rate);
	if (burst)
		appendStringInfo(&details, ", \"burst\": %lld", (long long) burst);
	if (expires_at)
		appendStringInfo(&details, ", \"expires_at\": \"%s\"", expires_at);
	if (reason)
	{
		appendStringInfoString(&details, ", \"reason\": ");
		escape_json(&details, audit_clip(reason));
	}
	appendStringInfoChar(&details, '}');
	return details.data;
}

/*
 * mlint.rate_override_set(rule, identifier, action, rate, burst, expires_at,
 * reason)
 */
Datum
mlint_rate_override_set(PG_FUNCTION_ARGS)
{
	static Oid	types[] = {INT8OID, TEXTOID, TEXTOID, INT8OID, INT8OID,
	TIMESTAMPTZOID, TEXTOID, TEXTOID};
	char	   *name = required_text(fcinfo, 0, "rule");
	char	   *identifier = required_text(fcinfo, 1, "identifier");
	char	   *word = required_text(fcinfo, 2, "action");
	RateAction	action = known_word("action of an override", name,
									rate_action_words, word);
	int64		rate = PG_ARGISNULL(3) ? 0 : PG_GETARG_INT64(3);
	int64		burst = PG_ARGISNULL(4) ? 0 : PG_GETARG_INT64(4);
	char	   *reason = PG_ARGISNULL(6) ? NULL :
	text_to_cstring(PG_GETARG_TEXT_PP(6));
	char	   *expires_at = NULL;
	MemoryContext caller = CurrentMemoryContext;
	RuleRow		row;
	Datum		values[8];
	char		nulls[] = "        ";
	OwnerScope	scope;
	int64		id;

	require_writable(fcinfo);
	if (action != RATE_LIMIT && !(PG_ARGISNULL(3) && PG_ARGISNULL(4)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an override with action %s takes neither rate nor burst",
						word),
				 errhint("They are of action limit.")));
	if (action == RATE_LIMIT && PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an override with action limit must have a rate"),
				 errhint("It is what the identifier has instead of the rule's, in the rule's \"per\".")));
	if (!PG_ARGISNULL(5))
	{
		if (PG_GETARG_TIMESTAMPTZ(5) <= GetCurrentTimestamp())
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("expires_at of an override must lie in the future"),
					 errhint("mlint.rate_override_drop() ends an override now.")));
		expires_at = pstrdup(timestamptz_to_str(PG_GETARG_TIMESTAMPTZ(5)));
	}

	owner_begin(&scope);
	id = read_row(name, &row, caller);
	owner_end(&scope);
	identifier = override_identifier(&row, identifier);
	if (action == RATE_LIMIT)
	{
		int64		per;

		if (!rate_interval_us(DatumGetIntervalP(row.values[PER]), &per))
			elog(ERROR, "interval of a rate limit is out of range");
		check_law(&row.law,
				  psprintf("an override of rate limit \"%s\"", name),
				  rate_word(rate_algorithm_words, field_text(&row, ALGORITHM)),
				  rate, per, burst, !PG_ARGISNULL(4));
		if (!row.nulls[BACKEND])
			remote_check_law(name, field_text(&row, BACKEND), &row.law);
	}
	audit(AUDIT_CHANGED, "rate_override.set", "rate_rule", name,
		  audit_override(identifier, word, rate, burst, expires_at, reason));

	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(identifier);
	for (int i = 2; i < 7; i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	values[7] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	owner_begin(&scope);
	changed("rate_override");
	(void) delete_override(id, identifier);
	owner_run(NULL, "INSERT INTO mlint.rate_override (rule_id,"
			  " identifier, action, rate, burst, expires_at,"
			  " reason, set_by)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
			  SPI_OK_INSERT, 8, types, values, nulls);
	owner_end(&scope);
	PG_RETURN_VOID();
}

/* mlint.rate_override_drop(rule, identifier) */
Datum
mlint_rate_override_drop(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "rule");
	char	   *identifier = required_text(fcinfo, 1, "identifier");
	MemoryContext caller = CurrentMemoryContext;
	RuleRow		row;
	OwnerScope	scope;
	int64		id;

	require_writable(fcinfo);
	owner_begin(&scope);
	id = read_row(name, &row, caller);
	owner_end(&scope);
	identifier = override_identifier(&row, identifier);
	owner_begin(&scope);
	changed("rate_override");
	if (!delete_override(id, identifier))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("rate limit \"%s\" has no override for this identifier",
						name),
				 errhint("The view mlint.rate_overrides lists them.")));
	owner_end(&scope);
	audit(AUDIT_CHANGED, "rate_override.drop", "rate_rule", name,
		  audit_override(identifier, NULL, 0, 0, NULL, NULL));
	PG_RETURN_VOID();
}
