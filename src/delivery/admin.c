/*
 * admin.c
 *		Destinations as an administrator sees them: create, alter, drop, test,
 *		replay.
 *
 * Whatever can be known to be wrong is refused here, with an error that says
 * how to mend it, and not later in a worker's log. A destination belongs to
 * the role that creates it; its functions run as that role.
 *
 * What changes is in the audit log, by name: values of options are not, since
 * a URL can be as good as a password.
 *
 * Every change bumps the generation of 'destinations', in the same
 * transaction, and wakes the dispatchers when it commits.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/datetime.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "common/trial.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/generation.h"
#include "common/glob.h"
#include "common/owner.h"
#include "common/role.h"
#include "common/peertext.h"
#include "delivery/delivery.h"
#include "delivery/driver.h"
#include "delivery/stats.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_destination_create);
PG_FUNCTION_INFO_V1(mlint_destination_alter);
PG_FUNCTION_INFO_V1(mlint_destination_drop);
PG_FUNCTION_INFO_V1(mlint_destination_test);
PG_FUNCTION_INFO_V1(mlint_dead_letter_replay);
PG_FUNCTION_INFO_V1(mlint_delivery_retry);
PG_FUNCTION_INFO_V1(mlint_breaker_reset);
PG_FUNCTION_INFO_V1(mlint_event_type_matches);
PG_FUNCTION_INFO_V1(mlint_in_flight);

#define NAME_MAX_BYTES	63

/* Run a statement with up to six arguments; returns the rows it touched. */
static uint64
run(const char *sql, int nargs, const Oid *types, Datum *values,
	const char *nulls)
{
	int			result = SPI_execute_with_args(sql, nargs,
											   unconstify(Oid *, types),
											   values, nulls, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql,
			 SPI_result_code_string(result));
	return SPI_processed;
}

static Datum
column(int number, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, number,
						 isnull);
}

/* ---- what a caller passes ---- */

static const Driver *
find_driver(const char *name)
{
	const Driver *driver = driver_find(name);
	StringInfoData known;

	if (driver)
		return driver;
	initStringInfo(&known);
	for (int i = 0; drivers[i]; i++)
		appendStringInfo(&known, "%s%s", i > 0 ? ", " : "", drivers[i]->name);
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("there is no driver \"%s\"", name),
			 errhint("The drivers are: %s. The view mlint.drivers shows their options.",
					 known.data)));
}

/* Does the pattern match a type that is listed or was published before? */
static bool
pattern_is_known(const char *pattern)
{
	if (SPI_execute("SELECT name FROM mlint.event_type"
					" UNION ALL (SELECT DISTINCT type FROM"
					" (SELECT type FROM mlint.event ORDER BY id DESC LIMIT 10000) e)",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read event types");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *type = SPI_getvalue(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1);

		if (glob_match(pattern, type))
			return true;
	}
	return false;
}

/*
 * Patterns that can match no event type are errors. One that matches no type
 * known so far may be a slip of the pen, or ahead of its first event: a
 * warning. In an owner scope.
 */
static void
check_patterns(ArrayType *array)
{
	Datum	   *values;
	bool	   *nulls;
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values,
					  &nulls, &n);
	if (n == 0 || ARR_NDIM(array) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("events must be a list of at least one pattern"),
				 errhint("'{*}' is every event; a destination only for send() can have a pattern that nobody publishes.")));
	for (int i = 0; i < n; i++)
	{
		char	   *pattern;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("events must not contain null")));
		pattern = TextDatumGetCString(values[i]);
		if (pattern[0] == '\0' || strlen(pattern) > 255)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("event pattern \"%s\" can match no event type: it must be 1 to 255 bytes long",
							pattern)));
		for (const char *p = pattern; *p; p++)
		{
			if ((unsigned char) *p < ' ' || *p == 0x7f)
				ereport(ERROR,
						(errcode(ERRCODE_MLINT_CONFIGURATION),
						 errmsg("event pattern %d contains a control character, so it can match no event type",
								i + 1)));
		}
		if (!pattern_is_known(pattern))
			ereport(WARNING,
					(errmsg("event pattern \"%s\" matches no event type known so far",
							pattern),
					 errhint("If that is not a slip, nothing is wrong: it will match once such events are published. The view mlint.event_types lists those with a meaning of their own.")));
	}
}

static void
check_destination_name(const char *name)
{
	size_t		len = strlen(name);

	if (len == 0 || len > NAME_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("a destination's name must be 1 to %d bytes long",
						NAME_MAX_BYTES)));
	for (const char *p = name; *p; p++)
	{
		if ((unsigned char) *p < ' ' || *p == 0x7f)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("a destination's name must not contain control characters")));
	}
}

static void
no_such_destination(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("destination \"%s\" does not exist", name),
			 errhint("The view mlint.destinations lists them; mlint.destination_create() makes one.")));
}

int32
destination_id(const char *name, char **driver)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(name)};
	OwnerScope	scope;
	MemoryContext caller = CurrentMemoryContext;
	int32		id;
	bool		isnull;

	owner_begin(&scope);
	if (run("SELECT id, driver FROM mlint.destination"
			" WHERE name = $1 AND dropped_at IS NULL",
			1, types, values, NULL) == 0)
		no_such_destination(name);
	id = DatumGetInt32(column(1, &isnull));
	if (driver)
		*driver = MemoryContextStrdup(caller,
									  TextDatumGetCString(column(2, &isnull)));
	owner_end(&scope);
	return id;
}

char *
destination_of_rate_rule(const char *rule)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(rule)};
	OwnerScope	scope;
	MemoryContext caller = CurrentMemoryContext;
	char	   *found = NULL;
	bool		isnull;

	owner_begin(&scope);
	if (run("SELECT format('destination \"%s\"', name) FROM mlint.destination"
			" WHERE options->>'rate_rule' = $1 AND dropped_at IS NULL"
			" ORDER BY name LIMIT 1", 1, types, values, NULL) > 0)
		found = MemoryContextStrdup(caller,
									TextDatumGetCString(column(1, &isnull)));
	owner_end(&scope);
	return found;
}

/* ---- create, alter, drop ---- */

/*
 * Enter what is given of a destination: options by name alone, enabled as -1
 * when it is not.
 */
static void
audit_destination(const char *action, const char *name, const char *driver,
				  Jsonb *options, ArrayType *events, int enabled)
{
	StringInfoData details;
	const char *separator = "";

	initStringInfo(&details);
	appendStringInfoChar(&details, '{');
	if (driver)
	{
		appendStringInfo(&details, "\"driver\": \"%s\"", driver);
		separator = ", ";
	}
	if (enabled >= 0)
	{
		appendStringInfo(&details, "%s\"enabled\": %s", separator,
						 enabled ? "true" : "false");
		separator = ", ";
	}
	if (options)
	{
		appendStringInfo(&details, "%s\"options\": ", separator);
		option_names(&details, options);
		separator = ", ";
	}
	if (events)
	{
		appendStringInfo(&details, "%s\"events\": ", separator);
		appendStringInfoString(&details,
							   TextDatumGetCString(DirectFunctionCall1(array_to_json, PointerGetDatum(events))));
	}
	appendStringInfoChar(&details, '}');
	audit(AUDIT_CHANGED, action, "destination", name, details.data);
}

/* mlint.destination_create(name, driver, options, events, enabled) */
Datum
mlint_destination_create(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {TEXTOID, TEXTOID, JSONBOID, TEXTARRAYOID,
	BOOLOID, OIDOID, BOOLOID, INT8OID};
	char	   *name = required_text(fcinfo, 0, "name");
	const Driver *driver = find_driver(required_text(fcinfo, 1, "driver"));
	Jsonb	   *options;
	void	   *parsed;
	OwnerScope	scope;
	Datum		values[8];
	int32		id;
	bool		isnull;

	HIDE_STATEMENT_BEGIN();
	require_writable(fcinfo);
	for (int i = 2; i < 5; i++)
	{
		static const char *const names[] = {"options", "events", "enabled"};

		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be null", names[i - 2])));
	}
	options = PG_GETARG_JSONB_P(2);
	check_destination_name(name);
	parsed = driver_parse_options(driver, options, name);
	driver_check(driver, parsed, GetUserId(), name);
	audit_destination("destination.create", name, driver->name, options,
					  PG_GETARG_ARRAYTYPE_P(3), PG_GETARG_BOOL(4) ? 1 : 0);
	HIDE_STATEMENT_END();

	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(driver->name);
	values[2] = JsonbPGetDatum(options);
	values[3] = PG_GETARG_DATUM(3);
	values[4] = PG_GETARG_DATUM(4);
	values[5] = ObjectIdGetDatum(GetUserId());
	values[6] = BoolGetDatum(driver_runs_sql(driver, parsed));

	owner_begin(&scope);
	check_patterns(PG_GETARG_ARRAYTYPE_P(3));
	values[7] = Int64GetDatum(generation_bump("destinations"));
	/* The bump serializes this with other changes of destinations. */
	if (run("SELECT FROM mlint.destination"
			" WHERE name = $1 AND dropped_at IS NULL",
			1, types, values, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("destination \"%s\" already exists", name),
				 errhint("Change it with mlint.destination_alter().")));
	if (DatumGetBool(values[6]))
		(void) run("SELECT mlint.sql_lane_begin()", 0, NULL, NULL, NULL);
	(void) run("INSERT INTO mlint.destination (name, driver, options, events,"
			   " enabled, owner, runs_sql, generation, after_event_id)"
			   " SELECT $1, $2, $3, $4, $5, $6, $7, $8,"
			   " CASE WHEN is_called THEN last_value ELSE 0 END"
			   " FROM mlint.event_id RETURNING id",
			   8, types, values, NULL);
	id = DatumGetInt32(column(1, &isnull));
	/* Ids begin again when the extension is created again. */
	stats_forget(id);
	owner_end(&scope);
	worker_wake_at_commit(WORKER_DISPATCHER);
	PG_RETURN_INT32(id);
}

/* mlint.destination_alter(name, options, events, enabled) */
Datum
mlint_destination_alter(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID, JSONBOID, TEXTARRAYOID, BOOLOID,
	INT8OID, OIDOID};
	char	   *name = required_text(fcinfo, 0, "name");
	OwnerScope	scope;
	Datum		values[6];
	char		nulls[6] = {' ', ' ', ' ', ' ', ' ', ' '};
	Oid			by_name[2] = {TEXTOID, JSONBOID};
	Datum		name_values[2];
	char		name_nulls[2] = {' ', ' '};
	const Driver *driver;
	Oid			owner;
	bool		ran_sql;
	void	   *parsed;
	bool		isnull;

	HIDE_STATEMENT_BEGIN();
	require_writable(fcinfo);
	if (!PG_ARGISNULL(1) && !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(1)))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("options must be a JSON object")));
	for (int i = 1; i < 4; i++)
	{
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
	}
	name_values[0] = CStringGetTextDatum(name);
	name_values[1] = values[1];
	name_nulls[1] = nulls[1];

	owner_begin(&scope);
	values[4] = Int64GetDatum(generation_bump("destinations"));
	if (run("SELECT id, driver, owner, runs_sql,"
			" jsonb_strip_nulls(options || coalesce($2, '{}'))"
			" FROM mlint.destination WHERE name = $1 AND dropped_at IS NULL"
			" FOR UPDATE", 2, by_name, name_values, name_nulls) == 0)
		no_such_destination(name);
	values[0] = column(1, &isnull);
	driver = find_driver(TextDatumGetCString(column(2, &isnull)));
	owner = DatumGetObjectId(column(3, &isnull));
	/* One without an owner becomes the property of who says what it does. */
	if (!role_exists(owner) && !PG_ARGISNULL(1))
		owner = scope.user;
	values[5] = ObjectIdGetDatum(owner);
	ran_sql = DatumGetBool(column(4, &isnull));
	values[1] = PointerGetDatum(PG_DETOAST_DATUM_COPY(column(5, &isnull)));
	nulls[1] = ' ';
	if (!PG_ARGISNULL(2))
		check_patterns(PG_GETARG_ARRAYTYPE_P(2));
	parsed = driver_parse_options(driver, DatumGetJsonbP(values[1]), name);
	if (!PG_ARGISNULL(1))
	{
		/* What an option names runs as the owner, not as whoever names it. */
		if (ran_sql && !has_privs_of_role(scope.user, owner))
		{
			audit(AUDIT_DENIED, "destination.alter", "destination", name, NULL);
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("only members of role \"%s\", which created destination \"%s\", may change its options",
							GetUserNameFromId(owner, true), name),
					 errdetail("Its function runs as that role.")));
		}

		/*
		 * Whoever names a function or a credential must be allowed to use it,
		 * and so must the destination's owner, who will.
		 */
		driver_check(driver, parsed, owner, name);
		if (scope.user != owner)
			driver_check(driver, parsed, scope.user, name);
	}
	if (driver_runs_sql(driver, parsed) != ran_sql)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a transform cannot be given to or taken from an existing destination"),
				 errdetail("Another dispatcher would have to take it over in the middle of the log."),
				 errhint("Create another destination, and drop this one when nothing is pending for it.")));
	audit_destination("destination.alter", name, NULL,
					  PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1),
					  PG_ARGISNULL(2) ? NULL : PG_GETARG_ARRAYTYPE_P(2),
					  PG_ARGISNULL(3) ? -1 : PG_GETARG_BOOL(3) ? 1 : 0);
	HIDE_STATEMENT_END();
	(void) run("UPDATE mlint.destination SET options = $2,"
			   " events = coalesce($3, events),"
			   " enabled = coalesce($4, enabled),"
			   " disabled_reason = CASE WHEN $4 IS NULL THEN disabled_reason END,"
			   " generation = $5, owner = $6, altered_at = clock_timestamp()"
			   " WHERE id = $1", 6, types, values, nulls);
	owner_end(&scope);
	worker_wake_at_commit(WORKER_DISPATCHER);
	PG_RETURN_VOID();
}

/* mlint.destination_drop(name). Its dispatcher deletes what is pending. */
Datum
mlint_destination_drop(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID, INT8OID};
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	OwnerScope	scope;
	Datum		values[2];

	require_writable(fcinfo);
	owner_begin(&scope);
	values[1] = Int64GetDatum(generation_bump("destinations"));
	values[0] = Int32GetDatum(destination_id(name, NULL));
	(void) run("UPDATE mlint.destination SET dropped_at = clock_timestamp(),"
			   " generation = $2 WHERE id = $1", 2, types, values, NULL);
	owner_end(&scope);
	audit(AUDIT_CHANGED, "destination.drop", "destination", name, NULL);
	worker_wake_at_commit(WORKER_DISPATCHER);
	PG_RETURN_VOID();
}

/* ---- test ---- */

typedef struct TestRun
{
	Attempt		attempt;		/* must be first */
	Outcome		outcome;
	bool		ended;
} TestRun;

static void
test_done(Attempt *attempt, const Outcome *outcome)
{
	TestRun    *test = (TestRun *) attempt;

	test->outcome = *outcome;
	test->ended = true;
}

/* The event of a test: it is not in the log, and its id is 0. */
static Event *
test_event(const char *name)
{
	Event	   *event = palloc0(sizeof(Event));
	StringInfoData body;
	StringInfoData data;
	char		stamp[MAXDATELEN + 1];
	uint64		nonce;
	int			utc = 0;

	if (!pg_strong_random(&nonce, sizeof(nonce)))
		elog(ERROR, "could not generate a random event id");
	event->published_at = GetCurrentTimestamp();
	event->type = "destination.test";
	event->webhook_id = psprintf("evt_test_%016llx",
								 (unsigned long long) nonce);
	JsonEncodeDateTime(stamp, TimestampTzGetDatum(event->published_at),
					   TIMESTAMPTZOID, &utc);
	initStringInfo(&data);
	appendStringInfoString(&data, "{\"destination\": ");
	escape_json(&data, name);
	appendStringInfoChar(&data, '}');
	initStringInfo(&body);
	appendStringInfo(&body, "{\"id\":0,\"type\":\"%s\",\"timestamp\":\"%s\",\"data\":",
					 event->type, stamp);
	event->data_len = data.len;
	appendStringInfoString(&body, data.data);
	appendStringInfoString(&body, ",\"metadata\":{}}");
	event->body = body.data;
	event->body_len = body.len;
	event->data = strstr(body.data, data.data);
	event->refs = 1;
	return event;
}

/* One attempt with the driver, waiting for its end. */
static void
run_test(const char *name, const Driver *driver, DeliveryOptions *options,
		 Oid owner, HttpClient *http, TestRun *test)
{
	void	   *volatile state = NULL;
	Attempt    *attempt = &test->attempt;

	PG_TRY();
	{
		state = driver->open(options, owner, http);
		driver_check_rights(driver, options, owner, name);
		if (options->transform)
		{
			char	   *body = driver_call_function(options->transform, JSONBOID, owner,
													"transform", attempt->body,
													DRIVER_TRANSFORM_TIMEOUT_MS);

			if (body == NULL)
				ereport(ERROR,
						(errcode(ERRCODE_MLINT_SERIALIZATION),
						 errmsg("the transform function returned NULL")));
			attempt->body = body;
			attempt->body_len = strlen(body);
			attempt->transformed = true;
		}
		if (driver->execute)
		{
			driver->execute(state, attempt);
			test->outcome.kind = OUTCOME_DELIVERED;
		}
		else
		{
			attempt->done = test_done;
			attempt->body = pg_server_to_any(attempt->body, attempt->body_len,
											 PG_UTF8);
			attempt->body_len = strlen(attempt->body);
			driver->submit(state, attempt);
			while (!test->ended)
				http_client_wait(http);
		}
	}
	PG_CATCH();
	{
		if (state)
			driver->close(state);
		http_client_destroy(http);
		PG_RE_THROW();
	}
	PG_END_TRY();
	driver->close(state);
	http_client_destroy(http);
}

/*
 * mlint.destination_test(name): ok, status, detail, elapsed. A failure of the
 * destination is a result, not an error.
 */
Datum
mlint_destination_test(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			types[1] = {TEXTOID};
	Datum		by_name[1] = {PG_GETARG_DATUM(0)};
	OwnerScope	scope;
	const Driver *driver;
	Jsonb	   *options;
	Oid			owner;
	TestRun    *test = palloc0(sizeof(TestRun));
	TimestampTz start;
	Interval   *elapsed = palloc0(sizeof(Interval));
	MemoryContext old = CurrentMemoryContext;
	Trial		trial;
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {0};
	bool		isnull;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	owner_begin(&scope);
	if (run("SELECT driver, options, owner, runs_sql FROM mlint.destination"
			" WHERE name = $1 AND dropped_at IS NULL",
			1, types, by_name, NULL) == 0)
		no_such_destination(name);
	driver = find_driver(TextDatumGetCString(column(1, &isnull)));
	owner = DatumGetObjectId(column(3, &isnull));
	if (DatumGetBool(column(4, &isnull)))
		role_require(owner, "created the destination");
	if (DatumGetBool(column(4, &isnull)) &&
		!has_privs_of_role(scope.user, owner))
	{
		audit(AUDIT_DENIED, "destination.test", "destination", name, NULL);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only members of role \"%s\", which created destination \"%s\", may test it",
						GetUserNameFromId(owner, true), name),
				 errdetail("Its function runs as that role.")));
	}
	MemoryContextSwitchTo(old);
	audit(AUDIT_DONE, "destination.test", "destination", name, NULL);
	options = DatumGetJsonbPCopy(column(2, &isnull));

	test->attempt.event = test_event(name);
	test->attempt.body = test->attempt.event->body;
	test->attempt.body_len = test->attempt.event->body_len;
	start = GetCurrentTimestamp();
	MemoryContextSwitchTo(old);
	trial_begin(&trial);
	PG_TRY();
	{
		run_test(name, driver, driver_parse_options(driver, options, name), owner,
				 http_client_create(1), test);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
		test->outcome.kind = OUTCOME_DEAD;
		strlcpy(test->outcome.error, error->message,
				sizeof(test->outcome.error));
	}
	PG_END_TRY();
	owner_end(&scope);

	peer_text_clean(test->outcome.error);
	elapsed->time = GetCurrentTimestamp() - start;
	values[0] = BoolGetDatum(test->outcome.kind == OUTCOME_DELIVERED);
	values[1] = Int32GetDatum(test->outcome.status);
	nulls[1] = test->outcome.status == 0;
	values[2] = CStringGetTextDatum(test->outcome.kind == OUTCOME_DELIVERED ?
									"delivered" : test->outcome.error);
	values[3] = IntervalPGetDatum(elapsed);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/* ---- once more ---- */

/* Dispatchers must look at these destinations' pending rows. */
static void
touch_destinations(int32 id)
{
	static const Oid types[] = {INT4OID, INT8OID};
	Datum		values[2];

	values[0] = Int32GetDatum(id);
	values[1] = Int64GetDatum(generation_bump("destinations"));
	(void) run("UPDATE mlint.destination SET generation = $2"
			   " WHERE ($1 = 0 OR id = $1) AND dropped_at IS NULL",
			   2, types, values, NULL);
	worker_wake_at_commit(WORKER_DISPATCHER);
}

/* mlint.dead_letter_replay(destination, since) */
Datum
mlint_dead_letter_replay(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID, TIMESTAMPTZOID};
	OwnerScope	scope;
	Datum		values[2];
	char		nulls[2] = {' ', ' '};
	int32		id = 0;
	uint64		n;

	require_writable(fcinfo);
	if (!PG_ARGISNULL(0))
		id = destination_id(text_to_cstring(PG_GETARG_TEXT_PP(0)), NULL);
	values[0] = Int32GetDatum(id);
	values[1] = PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1);
	nulls[1] = PG_ARGISNULL(1) ? 'n' : ' ';
	owner_begin(&scope);
	n = run("WITH dead AS (DELETE FROM mlint.delivery l"
			" USING mlint.destination d"
			" WHERE l.state = 'x' AND d.id = l.destination_id"
			" AND d.dropped_at IS NULL AND ($1 = 0 OR l.destination_id = $1)"
			" AND ($2 IS NULL OR l.finished_at >= $2)"
			" RETURNING l.event_id, l.destination_id, l.segment,"
			" l.first_attempt_at, l.status_code, l.error)"
			" INSERT INTO mlint.pending (event_id, destination_id, segment,"
			" next_attempt_at, first_attempt_at, status_code, error)"
			" SELECT event_id, destination_id, segment, clock_timestamp(),"
			" first_attempt_at, status_code, error FROM dead"
			" ON CONFLICT DO NOTHING", 2, types, values, nulls);
	if (n > 0)
		touch_destinations(id);
	owner_end(&scope);
	audit(AUDIT_CHANGED, "dead_letter.replay", "destination",
		  id == 0 ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0)),
		  psprintf("{\"deliveries\": " UINT64_FORMAT "}", n));
	PG_RETURN_INT64(n);
}

/* mlint.delivery_retry(event_id, destination) */
Datum
mlint_delivery_retry(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT8OID, INT4OID};
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	int32		id = destination_id(name, NULL);
	OwnerScope	scope;
	Datum		values[2];

	require_writable(fcinfo);
	values[0] = PG_GETARG_DATUM(0);
	values[1] = Int32GetDatum(id);
	owner_begin(&scope);
	if (run("UPDATE mlint.pending SET next_attempt_at = clock_timestamp()"
			" WHERE event_id = $1 AND destination_id = $2",
			2, types, values, NULL) == 0 &&
		run("WITH ended AS (DELETE FROM mlint.delivery l USING mlint.event e"
			" WHERE l.event_id = $1 AND l.destination_id = $2"
			" AND e.id = l.event_id AND e.segment = l.segment"
			" AND NOT EXISTS (SELECT FROM mlint.log_cursor c"
			" WHERE NOT mlint.cursor_covers(c, e.xid, e.id))"
			" RETURNING l.event_id, l.destination_id, l.segment,"
			" l.first_attempt_at)"
			" INSERT INTO mlint.pending (event_id, destination_id, segment,"
			" next_attempt_at, first_attempt_at)"
			" SELECT event_id, destination_id, segment, clock_timestamp(),"
			" first_attempt_at FROM ended", 2, types, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("event " INT64_FORMAT " has no delivery to \"%s\" that could be retried",
						PG_GETARG_INT64(0), name),
				 errhint("The view mlint.deliveries lists them. A delivery that is being made for the first time cannot be retried yet.")));
	touch_destinations(id);
	owner_end(&scope);
	audit(AUDIT_CHANGED, "delivery.retry", "destination", name,
		  psprintf("{\"event\": " INT64_FORMAT "}", PG_GETARG_INT64(0)));
	PG_RETURN_VOID();
}

/* mlint.breaker_reset(destination) */
Datum
mlint_breaker_reset(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int32		id = destination_id(name, NULL);
	OwnerScope	scope;

	require_writable(fcinfo);
	/* It is closed at once, and stays so whatever becomes of us. */
	audit(AUDIT_DONE, "breaker.reset", "destination", name, NULL);
	(void) stats_reset_breaker(id);
	owner_begin(&scope);
	touch_destinations(id);
	owner_end(&scope);
	PG_RETURN_VOID();
}

/* ---- for the views ---- */

/* mlint.event_type_matches(patterns, event_type) */
Datum
mlint_event_type_matches(PG_FUNCTION_ARGS)
{
	Datum	   *values;
	bool	   *nulls;
	int			n;
	char	   *type = text_to_cstring(PG_GETARG_TEXT_PP(1));

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false,
					  TYPALIGN_INT, &values, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i] && glob_match(TextDatumGetCString(values[i]), type))
			PG_RETURN_BOOL(true);
	}
	PG_RETURN_BOOL(false);
}

/* mlint.in_flight() */
Datum
mlint_in_flight(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < worker_slot_count(); i++)
	{
		WorkerSlot *slot = worker_slot(i);

		if (slot->kind != WORKER_DISPATCHER || slot->database != MyDatabaseId)
			continue;
		for (int k = 0; k < WORKER_MAX_IN_FLIGHT; k++)
		{
			InFlight	flight = slot->in_flight[k];
			Datum		values[2];
			bool		nulls[2] = {0};

			if (flight.event_id == 0)
				continue;
			values[0] = Int64GetDatum(flight.event_id);
			values[1] = Int32GetDatum(flight.destination_id);
			tuplestore_putvalues(result->setResult, result->setDesc, values,
								 nulls);
		}
	}
	return (Datum) 0;
}
