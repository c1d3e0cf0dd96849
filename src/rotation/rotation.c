/*
 * rotation.c
 *		A secret's way from one value to the next, step by step.
 *
 * A rotation is a row of mlint.secret_rotation, taken by the job from state to
 * state; each step is a transaction of its own:
 *
 *	idle		a value is generated and stored, not current	-> generated
 *	generated	it is written down that it will be applied	-> applying
 *	applying	it is applied									-> verifying
 *	verifying	it is verified and made current				-> idle
 *	restoring	the current value is applied again, verified	-> idle
 *
 * Before anything outside of this database may change, the row says so. So a
 * crash leaves a state from which the next run goes on: a step whose effect is
 * lost is done again, and applying is something that may be done twice. A step
 * that fails is rolled back alone, and its failure is recorded: if the target
 * may have the new value it gets the current one again (restoring, which is
 * tried until it succeeds), and the new version is destroyed. Then the
 * rotation is tried again after a delay that grows; when on_failure's retries
 * are used up it is paused.
 *
 * What takes effect with a transaction (the password of a role of this server)
 * is applied and made current in one; if it then cannot be verified, the old
 * value is applied and made current in one too. For all others the new version
 * becomes current when it was seen to work, and what is read for a moment
 * before is the old one.
 *
 * During the grace the version before stays valid: what signs, signs with
 * both. When it ends, dispatchers are told to read their secrets again.
 *
 * Values are in memory for the length of a step, and wiped. Errors of a step
 * may come from functions of the user's, so a value that is in a message is
 * taken out of it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/credential.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/owner.h"
#include "common/role.h"
#include "common/retry.h"
#include "common/trial.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "rotation/rotation.h"
#include "secrets/store.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_secret_rotation_set);
PG_FUNCTION_INFO_V1(mlint_secret_rotation_drop);
PG_FUNCTION_INFO_V1(mlint_secret_rotate);
PG_FUNCTION_INFO_V1(mlint_secret_rotate_wait);
PG_FUNCTION_INFO_V1(mlint_secret_rotation_run);

#define JOB					"secret_rotation"
#define EVERY_MIN_S			60
/* Nobody waits, and nothing is valid, for longer than that: 68 years. */
#define INTERVAL_MAX_S		PG_INT32_MAX
/* Restoring is tried no more often, whatever on_failure says. */
#define RESTORE_MIN_US		USECS_PER_SEC
/* How long a run stays for deliveries that are under way, and looks again. */
#define DELIVERY_WAIT_MS	30000
#define DELIVERY_LOOK_MS	1000
/* Somebody who waits looks again after so long in any case. */
#define LOOK_MS				1000

typedef struct FailureOptions
{
	RetryPolicy retry;
} FailureOptions;

static const Option failure_options[] = {
	{"strategy", OPTION_ENUM, offsetof(FailureOptions, retry.strategy),
		"exponential", 0, 0, retry_strategies, NULL, false,
	"how the delay grows from attempt to attempt"},
	{"max_retries", OPTION_INT, offsetof(FailureOptions, retry.max_retries),
		"5", 0, 1000, NULL, NULL, false,
	"attempts after the first; then the rotation is paused"},
	{"initial_delay_ms", OPTION_INT,
		offsetof(FailureOptions, retry.initial_delay_ms),
		"60000", 0, 86400000, NULL, NULL, false,
	"upper bound of the first delay, in milliseconds"},
	{"multiplier", OPTION_REAL, offsetof(FailureOptions, retry.multiplier),
		"2", 1, 100, NULL, NULL, false,
	"growth of the bound from attempt to attempt (exponential)"},
	{"max_delay_ms", OPTION_INT, offsetof(FailureOptions, retry.max_delay_ms),
		"3600000", 0, 86400000, NULL, NULL, false,
	"no delay is longer, in milliseconds"},
	{NULL}
};

/* In the order of the essay; the texts are the table's. */
typedef enum RotationState
{
	ROTATION_IDLE,
	ROTATION_GENERATED,
	ROTATION_APPLYING,
	ROTATION_VERIFYING,
	ROTATION_RESTORING
} RotationState;

static const char *const state_names[] = {"idle", "generated", "applying",
"verifying", "restoring"};

/* What failed, as events say it. */
static const char *const step_names[] = {"generate", "apply", "apply",
"verify", "restore"};

/* A row of mlint.secret_rotation, for one step. */
typedef struct Rotation
{
	int64		secret_id;
	char	   *name;
	Oid			owner;
	Jsonb	   *generator;
	Jsonb	   *apply;			/* NULL: none */
	Jsonb	   *verify;
	Jsonb	   *on_failure;
	int			grace_s;
	RotationState state;
	int			version;		/* 0: none */
	int			old_version;
	int64		event_id;		/* 0: none */
	int			failures;
	int			current;		/* the secret's current version */
} Rotation;

/* The value that a step works with, to be wiped whatever happens. */
static SecretValue at_hand;

/* What the last step came to, for INJECTION. */
static const char *reached pg_attribute_unused();

/* The version before the current one, while both are valid. */
static char *
previous_value(const char *name, size_t *len)
{
	SecretValue value;

	if (!secret_read_previous(name, &value))
		return NULL;
	*len = value.len;
	return value.data;
}

void
rotation_init(void)
{
	credential_register_previous(previous_value);
}

static void
audit_rotation(AuditOutcome outcome, const char *action, const Rotation *r,
			   const char *reason)
{
	StringInfoData details;

	initStringInfo(&details);
	appendStringInfo(&details, "{\"version\": %d, \"step\": \"%s\"",
					 r->version, step_names[r->state]);
	if (reason)
	{
		appendStringInfoString(&details, ", \"reason\": ");
		escape_json(&details, reason);
	}
	appendStringInfoChar(&details, '}');
	audit(outcome, action, "secret", r->name, details.data);
}

/* ---- the functions of the interface ---- */

/* The argument that names a secret of the local store. */
static char *
local_name(FunctionCallInfo fcinfo, int privilege, const char *action)
{
	char	   *name;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the name of a secret must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	secret_require(name, privilege, action);
	if (strchr(name, ':') != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("secret \"%s\" is not kept in the local store", name),
				 errdetail("A rotation needs two versions at a time."),
				 errhint("Rotate a local secret, and have it put there: {\"kind\": \"backend\", ...} in \"apply\".")));
	return name;
}

/* An interval's length in seconds, as EXTRACT(epoch FROM ...) has it. */
static double
interval_s(const Interval *i)
{
	int			years = i->month / MONTHS_PER_YEAR;

	return years * DAYS_PER_YEAR * SECS_PER_DAY +
		(i->month % MONTHS_PER_YEAR * (double) DAYS_PER_MONTH + i->day) *
		SECS_PER_DAY + i->time / (double) USECS_PER_SEC;
}

static void
pg_attribute_noreturn()
no_rotation(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("secret \"%s\" has no rotation", name),
			 errhint("Set one with mlint.secret_rotation_set.")));
}

static void
require_argument(FunctionCallInfo fcinfo, int i, const char *what)
{
	if (PG_ARGISNULL(i))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
}

/* Times that make sense, in $3, $7 and $9 of set_rotation(). */
static void
check_times(const Interval *every, const Interval *grace,
			const Interval *warn_before)
{
	if (interval_s(every) < EVERY_MIN_S || interval_s(every) > INTERVAL_MAX_S)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"every\" must be between one minute and 68 years")));
	/* "1 month -30 days" is a step back in February. */
	if (every->month < 0 || every->day < 0 || every->time < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no part of \"every\" may be negative")));
	if (interval_s(grace) < 0 || interval_s(grace) > INTERVAL_MAX_S)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"grace\" must not be negative, nor longer than 68 years")));
	if (interval_s(warn_before) < 0 ||
		interval_s(warn_before) > interval_s(every))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"warn_before\" must be between zero and \"every\"")));
}

/* All that can be checked before a value exists. */
static void
check_options(const char *name, Oid owner, Jsonb *generator, Jsonb *apply,
			  Jsonb *verify, Jsonb *on_failure)
{
	const Option *table = failure_options;
	FailureOptions failure;
	Apply	   *parsed = NULL;

	(void) generator_parse(generator, owner);
	if (apply)
	{
		parsed = apply_parse(apply);
		apply_check(parsed, name, owner);
	}
	if (verify)
		verify_check(verify_parse(verify, parsed), name, owner);
	option_parse(&table, 1, on_failure, "\"on_failure\"", &failure);
}

/*
 * mlint.secret_rotation_set(name, every, generator, apply, verify, grace,
 * on_failure, warn_before). Whoever says where values go reads them, so that
 * takes the privilege to read; whoever makes values writes them.
 */
Datum
mlint_secret_rotation_set(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"name", "every", "generator", NULL,
	NULL, "grace", "on_failure"};
	char	   *name = local_name(fcinfo, SECRET_ROTATE, "rotation.set");
	OwnerScope	scope;
	StoredSecret secret;
	Interval   *warn_before;
	Oid			types[] = {INT8OID, OIDOID, INTERVALOID, JSONBOID, JSONBOID,
	JSONBOID, INTERVALOID, JSONBOID, INTERVALOID};
	Datum		values[9];
	char		nulls[9];

	require_writable(fcinfo);
	for (int i = 1; i < lengthof(names); i++)
	{
		if (names[i])
			require_argument(fcinfo, i, names[i]);
	}
	if (!PG_ARGISNULL(3) || !PG_ARGISNULL(4))
		secret_require(name, SECRET_READ, "rotation.set");
	if (generator_by_function(PG_GETARG_JSONB_P(2)))
		secret_require(name, SECRET_WRITE, "rotation.set");
	if (!store_find(name, &secret))
		secret_unknown(name);
	if (PG_ARGISNULL(7))
		warn_before = DatumGetIntervalP(DirectFunctionCall2(interval_div,
															PG_GETARG_DATUM(1),
															Float8GetDatum(10)));
	else
		warn_before = PG_GETARG_INTERVAL_P(7);
	check_times(PG_GETARG_INTERVAL_P(1), PG_GETARG_INTERVAL_P(5),
				warn_before);
	check_options(name, GetUserId(), PG_GETARG_JSONB_P(2),
				  PG_ARGISNULL(3) ? NULL : PG_GETARG_JSONB_P(3),
				  PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4),
				  PG_GETARG_JSONB_P(6));

	values[0] = Int64GetDatum(secret.id);
	values[1] = ObjectIdGetDatum(GetUserId());
	for (int i = 1; i < 7; i++)
		values[i + 1] = fcinfo->args[i].value;
	values[8] = IntervalPGetDatum(warn_before);
	memset(nulls, ' ', sizeof(nulls));
	nulls[4] = PG_ARGISNULL(3) ? 'n' : ' ';
	nulls[5] = PG_ARGISNULL(4) ? 'n' : ' ';

	owner_begin(&scope);
	owner_run(NULL,
			  "INSERT INTO mlint.secret_rotation AS r (secret_id, owner, every,"
			  " generator, apply, verify, grace, on_failure, warn_before, next_at)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,"
			  " pg_catalog.clock_timestamp() + $3)"
			  " ON CONFLICT (secret_id) DO UPDATE SET owner = $2, every = $3,"
			  " generator = $4, apply = $5, verify = $6, grace = $7,"
			  " on_failure = $8, warn_before = $9, paused = false, failures = 0,"
			  " last_error = NULL, next_at = coalesce(r.last_rotated_at,"
			  " r.created_at) + $3 WHERE r.state = 'idle'",
			  SPI_OK_INSERT, 9, types, values, nulls);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("secret \"%s\" is being rotated", name),
				 errhint("Try again when the state in mlint.rotations is idle; mlint.secret_rotate_wait waits for it.")));
	owner_end(&scope);
	audit(AUDIT_CHANGED, "rotation.set", "secret", name, NULL);
	(void) job_request(JOB);
	PG_RETURN_VOID();
}

/* Lock the rotation of a secret; its state and version. In an owner scope. */
static RotationState
lock_rotation(const char *name, int *version)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	char	   *state;
	bool		isnull;

	owner_run(NULL,
			  "SELECT r.state, coalesce(r.version, 0) FROM mlint.secret_rotation r"
			  " JOIN mlint.secret s ON s.id = r.secret_id"
			  " WHERE s.name = $1 FOR UPDATE OF r",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		no_rotation(name);
	state = TextDatumGetCString(owner_column(1, &isnull));
	*version = DatumGetInt32(owner_column(2, &isnull));
	for (int i = 0; i < lengthof(state_names); i++)
	{
		if (strcmp(state, state_names[i]) == 0)
			return (RotationState) i;
	}
	elog(ERROR, "unknown state of a rotation");
	return ROTATION_IDLE;		/* keep the compiler quiet */
}

/* mlint.secret_rotation_drop(name, force) */
Datum
mlint_secret_rotation_drop(PG_FUNCTION_ARGS)
{
	char	   *name = local_name(fcinfo, SECRET_ROTATE, "rotation.drop");
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	RotationState state;
	int			version;

	require_writable(fcinfo);
	owner_begin(&scope);
	state = lock_rotation(name, &version);
	if (state > ROTATION_GENERATED && !PG_GETARG_BOOL(1))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("secret \"%s\" is being rotated", name),
				 errdetail("Version %d may be in use where it was applied, and is not current.",
						   version),
				 errhint("Try again when the state in mlint.rotations is idle. With force => true nothing is put right, and the version is kept.")));
	if (state == ROTATION_GENERATED)
		store_destroy(name, version);
	owner_run(NULL,
			  "DELETE FROM mlint.secret_rotation r USING mlint.secret s"
			  " WHERE s.id = r.secret_id AND s.name = $1",
			  SPI_OK_DELETE, 1, types, values, NULL);
	owner_end(&scope);
	audit(AUDIT_CHANGED, "rotation.drop", "secret", name, NULL);
	PG_RETURN_VOID();
}

/* mlint.secret_rotate(name) */
Datum
mlint_secret_rotate(PG_FUNCTION_ARGS)
{
	char	   *name = local_name(fcinfo, SECRET_ROTATE, "rotation.rotate");
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	int			version;

	require_writable(fcinfo);
	owner_begin(&scope);
	(void) lock_rotation(name, &version);
	owner_run(NULL,
			  "UPDATE mlint.secret_rotation r SET paused = false, failures = 0,"
			  " next_at = pg_catalog.clock_timestamp()"
			  " FROM mlint.secret s WHERE s.id = r.secret_id AND s.name = $1",
			  SPI_OK_UPDATE, 1, types, values, NULL);
	owner_end(&scope);
	audit(AUDIT_CHANGED, "rotation.rotate", "secret", name, NULL);
	(void) job_request(JOB);
	PG_RETURN_VOID();
}

/* Is nothing of this rotation due or under way? If so, did it go well? */
static bool
rotation_rests(const char *name, bool *well)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	SPIPlanPtr	plan;
	bool		isnull;
	bool		rests;

	owner_begin(&scope);
	plan = SPI_prepare("SELECT r.paused OR r.next_at >"
					   " pg_catalog.clock_timestamp() AND (r.state = 'idle'"
					   " OR r.failures > 0 AND r.event_id IS NULL),"
					   " r.failures = 0 AND r.state = 'idle'"
					   " FROM mlint.secret_rotation r"
					   " JOIN mlint.secret s ON s.id = r.secret_id"
					   " WHERE s.name = $1", 1, types);
	if (plan == NULL ||
		SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(),
							 InvalidSnapshot, true, false,
							 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look at a rotation");
	if (SPI_processed == 0)
		no_rotation(name);
	rests = DatumGetBool(owner_column(1, &isnull));
	*well = DatumGetBool(owner_column(2, &isnull));
	owner_end(&scope);
	return rests;
}

/* mlint.secret_rotate_wait(name, timeout) */
Datum
mlint_secret_rotate_wait(PG_FUNCTION_ARGS)
{
	char	   *name = local_name(fcinfo, SECRET_ROTATE, "rotation.wait");
	double		timeout = interval_s(PG_GETARG_INTERVAL_P(1));
	TimestampTz deadline = GetCurrentTimestamp() +
	(TimestampTz) (Min(Max(timeout, 0), INTERVAL_MAX_S) * USECS_PER_SEC);
	bool		rests;
	bool		well = false;

	ConditionVariablePrepareToSleep(worker_delivered());
	while (!(rests = rotation_rests(name, &well)))
	{
		long		left = (deadline - GetCurrentTimestamp()) / 1000;

		if (left <= 0)
			break;
		(void) ConditionVariableTimedSleep(worker_delivered(),
										   Min(left + 1, LOOK_MS),
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	PG_RETURN_BOOL(rests && well);
}

/* ---- the steps ---- */

/* Read a version into at_hand. */
static void
take_value(const Rotation *r, int version)
{
	if (!secret_read(r->name, psprintf("%d", version), &at_hand))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("secret \"%s\" has no version %d", r->name, version)));
}

static void
wipe_value(void)
{
	if (at_hand.data)
		crypto_wipe(at_hand.data, at_hand.len);
	at_hand.data = NULL;
	at_hand.len = 0;
}

/* The row goes on to another state. */
static void
enter_state(Rotation *r, RotationState state)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, INT4OID, INT8OID,
	INT4OID};
	Datum		values[] = {Int64GetDatum(r->secret_id),
		CStringGetTextDatum(state_names[state]), Int32GetDatum(r->version),
		Int32GetDatum(r->old_version), Int64GetDatum(r->event_id),
	Int32GetDatum(r->event_id == 0 ? 0 : DELIVERY_LOOK_MS)};

	owner_do(NULL,
			 "UPDATE mlint.secret_rotation SET state = $2,"
			 " version = nullif($3, 0), old_version = nullif($4, -1),"
			 " event_id = nullif($5, 0), next_at = pg_catalog.clock_timestamp()"
			 " + pg_catalog.make_interval(secs => $6 / 1000.0)"
			 " WHERE secret_id = $1", SPI_OK_UPDATE, 6, types, values, NULL);
	r->state = state;
}

/* When it is taken on, if not at once. In an owner scope. */
static void
put_off(const Rotation *r, int64 delay_us)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(r->secret_id),
	Int64GetDatum(delay_us)};

	owner_run(NULL,
			  "UPDATE mlint.secret_rotation SET next_at ="
			  " pg_catalog.clock_timestamp()"
			  " + pg_catalog.make_interval(secs => $2 / 1000000.0)"
			  " WHERE secret_id = $1", SPI_OK_UPDATE, 2, types, values, NULL);
}

/*
 * Is the owner still somebody who may rotate this, and say where it goes? Asked
 * before each value that goes there: it may be long after the one before, and
 * one that somebody has stored since the owner lost his privileges.
 */
static void
check_owner(const Rotation *r)
{
	role_require(r->owner, "set the rotation");
	if (!secret_permitted(r->owner, r->name, SECRET_ROTATE) ||
		((r->apply || r->verify) &&
		 !secret_permitted(r->owner, r->name, SECRET_READ)) ||
		(generator_by_function(r->generator) &&
		 !secret_permitted(r->owner, r->name, SECRET_WRITE)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\", which set the rotation, has not the privileges for it any more",
						GetUserNameFromId(r->owner, true)),
				 errhint("Grant them again, or drop the rotation and set it as another role.")));
	check_options(r->name, r->owner, r->generator, r->apply, r->verify,
				  r->on_failure);
}

/* Is the version being tried still there, or did somebody destroy it by hand? */
static bool
version_lives(const Rotation *r)
{
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(r->secret_id),
	Int32GetDatum(r->version)};

	return owner_do(NULL,
					"SELECT FROM mlint.secret_version WHERE secret_id = $1"
					" AND version = $2 AND destroyed_at IS NULL FOR UPDATE",
					SPI_OK_SELECT, 2, types, values, NULL);
}

/*
 * Lock the secret until the end of the transaction, and see that its current
 * version is still the one that this step began with: what somebody has stored
 * by hand meanwhile is newer than what we have.
 */
static void
require_unchanged(const Rotation *r, int expected)
{
	OwnerScope	scope;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(r->secret_id)};
	bool		isnull;
	int			current;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT version FROM mlint.secret WHERE id = $1 FOR NO KEY UPDATE",
			  SPI_OK_SELECT, 1, types, values, NULL);
	current = SPI_processed == 0 ? 0 : DatumGetInt32(owner_column(1, &isnull));
	owner_end(&scope);
	if (current != expected)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("version %d of secret \"%s\" was stored during the rotation",
						current, r->name)));
}

/* idle: a new value, stored where nobody reads it yet. */
static void
step_generate(Rotation *r)
{
	Generated	made;
	Oid			types[] = {INT8OID, INT4OID, TEXTOID};
	Datum		values[3];

	check_owner(r);
	generator_run(generator_parse(r->generator, r->owner), r->name, r->owner,
				  &made);
	at_hand.data = made.data;
	at_hand.len = made.len;
	r->version = secret_store(r->name, made.data, made.len, false);
	r->old_version = r->current;
	if (made.public_key)
	{
		values[0] = Int64GetDatum(r->secret_id);
		values[1] = Int32GetDatum(r->version);
		values[2] = CStringGetTextDatum(made.public_key);
		owner_do(NULL,
				 "INSERT INTO mlint.secret_public_key (secret_id, version,"
				 " public_key) VALUES ($1, $2, $3)", SPI_OK_INSERT, 3, types,
				 values, NULL);
	}
	enter_state(r, ROTATION_GENERATED);
}

/* The value at hand, as apply.c takes it. */
static Application
application(const Rotation *r, int version)
{
	Application a = {
		.name = r->name,
		.version = version,
		.owner = r->owner,
		.data = at_hand.data,
		.len = at_hand.len,
		.event_id = r->event_id
	};

	return a;
}

/*
 * Apply a version. False: a delivery that does it is under way, whose event
 * is in the row then.
 */
static bool
apply_version(Rotation *r, int version)
{
	Application a;
	bool		done;

	if (r->apply == NULL)
		return true;
	take_value(r, version);
	a = application(r, version);
	done = apply_run(apply_parse(r->apply), &a);
	wipe_value();
	r->event_id = done ? 0 : a.event_id;
	return done;
}

static void
verify_version(const Rotation *r, int version)
{
	Application a;

	if (r->verify == NULL)
		return;
	take_value(r, version);
	a = application(r, version);
	verify_run(verify_parse(r->verify,
							r->apply ? apply_parse(r->apply) : NULL), &a);
	wipe_value();
}

/* Does the version become current in the transaction that applies it? */
static bool
is_atomic(const Rotation *r)
{
	return r->apply && apply_is_atomic(apply_parse(r->apply));
}

/* applying */
static void
step_apply(Rotation *r)
{
	bool		done;

	if (r->event_id == 0)
		check_owner(r);
	done = apply_version(r, r->version);
	INJECTION("rotation-applied");
	if (done && is_atomic(r))
	{
		require_unchanged(r, r->old_version);
		secret_make_current(r->name, r->version, r->grace_s);
	}
	enter_state(r, done ? ROTATION_VERIFYING : ROTATION_APPLYING);
}

/* Done: the new version is current, and the next is a while away. */
static void
finish(Rotation *r)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, INT4OID};
	Datum		values[] = {Int64GetDatum(r->secret_id),
		CStringGetTextDatum(r->name), Int32GetDatum(r->version),
	Int32GetDatum(r->old_version)};

	/* It may be that already; then this is without effect. */
	require_unchanged(r, is_atomic(r) ? r->version : r->old_version);
	if (!version_lives(r))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("version %d of secret \"%s\" was destroyed during the rotation",
						r->version, r->name)));
	secret_make_current(r->name, r->version, r->grace_s);
	audit_rotation(AUDIT_CHANGED, "rotation.finish", r, NULL);
	owner_do(NULL,
			 "WITH done AS (UPDATE mlint.secret_rotation SET state = 'idle',"
			 " version = NULL, old_version = NULL, event_id = NULL, failures = 0,"
			 " last_error = NULL, last_rotated_at = pg_catalog.clock_timestamp(),"
			 " next_at = pg_catalog.clock_timestamp() + every,"
			 " overlap_until = CASE WHEN grace > '0' AND $4 > 0"
			 " THEN pg_catalog.clock_timestamp() + grace END"
			 " WHERE secret_id = $1 RETURNING next_at, overlap_until)"
			 " SELECT mlint.publish('secret.rotated', pg_catalog.jsonb_build_object("
			 "'name', $2, 'version', $3, 'previous_version', nullif($4, 0),"
			 " 'overlap_until', overlap_until, 'next_at', next_at)) FROM done",
			 SPI_OK_SELECT, 4, types, values, NULL);
	r->state = ROTATION_IDLE;
}

/* verifying */
static void
step_verify(Rotation *r)
{
	verify_version(r, r->version);
	INJECTION("rotation-verified");
	finish(r);
}

/* The version came to nothing: nobody may find it, and there is none new. */
static void
abandon(Rotation *r, int64 delay_us, bool pause)
{
	OwnerScope	scope;
	Oid			types[] = {INT8OID, INT4OID, BOOLOID};
	Datum		values[] = {Int64GetDatum(r->secret_id),
	Int32GetDatum(r->version), BoolGetDatum(pause)};

	if (version_lives(r))
		store_destroy(r->name, r->version);
	owner_begin(&scope);
	owner_run(NULL,
			  "DELETE FROM mlint.secret_public_key"
			  " WHERE secret_id = $1 AND version = $2", SPI_OK_DELETE, 2, types,
			  values, NULL);
	owner_run(NULL,
			  "UPDATE mlint.secret_rotation SET state = 'idle', version = NULL,"
			  " old_version = NULL, event_id = NULL, paused = $3"
			  " WHERE secret_id = $1", SPI_OK_UPDATE, 3, types, values, NULL);
	put_off(r, delay_us);
	owner_end(&scope);
	r->state = ROTATION_IDLE;
}

/* When to try again after the failures there were; -1: not by itself. */
static int64
delay_after(const Rotation *r, int64 *longest)
{
	const Option *table = failure_options;
	FailureOptions options;

	option_parse(&table, 1, r->on_failure, "\"on_failure\"", &options);
	*longest = options.retry.max_delay_ms * INT64CONST(1000);
	return retry_delay(&options.retry, r->failures, -1);
}

/*
 * restoring: what is applied is the version that is current, which may be one
 * that somebody has stored meanwhile; but the old one, if the version that
 * failed is current.
 */
static void
step_restore(Rotation *r)
{
	int			version = r->current == r->version ? r->old_version :
	r->current;
	int64		longest;
	int64		delay;

	if (version > 0)
	{
		if (r->event_id == 0)
			check_owner(r);
		if (!apply_version(r, version))
		{
			enter_state(r, ROTATION_RESTORING);
			return;
		}
		INJECTION("rotation-restored");
		require_unchanged(r, r->current);
		if (version != r->current)
			secret_make_current(r->name, version, 0);
		/* What took effect with this transaction, nobody sees yet. */
		if (!is_atomic(r))
			verify_version(r, version);
	}
	delay = delay_after(r, &longest);
	abandon(r, Max(delay, 0), delay < 0);
}

/* Take the rotation one step on, or raise. */
static void
advance(Rotation *r)
{
	switch (r->state)
	{
		case ROTATION_IDLE:
			step_generate(r);
			break;
		case ROTATION_GENERATED:
			enter_state(r, ROTATION_APPLYING);
			break;
		case ROTATION_APPLYING:
			step_apply(r);
			break;
		case ROTATION_VERIFYING:
			step_verify(r);
			break;
		case ROTATION_RESTORING:
			step_restore(r);
			break;
	}
}

/* A text with each occurrence of a word struck out. */
static char *
without(const char *text, const char *word)
{
	StringInfoData out;
	const char *at;

	initStringInfo(&out);
	while ((at = strstr(text, word)) != NULL)
	{
		appendBinaryStringInfo(&out, text, at - text);
		appendStringInfoString(&out, "[...]");
		text = at + strlen(word);
	}
	appendStringInfoString(&out, text);
	return out.data;
}

/*
 * What an error says without the value at hand, as text or as bytea shows it.
 * DETAIL has a part of a row, of which nobody knows which part of the value it
 * has. Of a length that goes into an event, an audit entry and a row: functions
 * of the user's have no measure.
 */
static char *
without_value(ErrorData *error)
{
	if (at_hand.data)
		error->detail = NULL;
	if (at_hand.data && at_hand.len >= 4 && error->message)
	{
		char	   *hex = palloc(2 * at_hand.len + 1);

		crypto_hex(at_hand.data, at_hand.len, hex);
		error->message = without(error->message, hex);
		if (strlen(at_hand.data) == at_hand.len)
			error->message = without(error->message, at_hand.data);
		crypto_wipe(hex, 2 * at_hand.len);
	}
	return error_reason(error);
}

/* May the target have the new value, now that a step in this state failed? */
static bool
must_restore(const Rotation *r)
{
	switch (r->state)
	{
		case ROTATION_IDLE:
		case ROTATION_GENERATED:
			break;
		case ROTATION_APPLYING:
			return r->apply != NULL && !is_atomic(r);
		case ROTATION_VERIFYING:
			return r->apply != NULL;
		case ROTATION_RESTORING:
			return true;
	}
	return false;
}

static void
publish_failed(const Rotation *r, RotationState failed, int version,
			   const char *reason)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(r->secret_id),
		CStringGetTextDatum(r->name), Int32GetDatum(version),
	CStringGetTextDatum(step_names[failed]), CStringGetTextDatum(reason)};

	owner_do(NULL,
			 "SELECT mlint.publish('secret.rotation_failed',"
			 " pg_catalog.jsonb_build_object('name', $2, 'version', nullif($3, 0),"
			 " 'step', $4, 'reason', $5, 'failures', r.failures,"
			 " 'paused', r.paused,"
			 " 'next_at', CASE WHEN NOT r.paused THEN r.next_at END))"
			 " FROM mlint.secret_rotation r WHERE r.secret_id = $1",
			 SPI_OK_SELECT, 5, types, values, NULL);
}

/*
 * Record that a step failed, which was rolled back. Restoring is not given up:
 * it is put off for longer and longer.
 */
static void
step_failed(Rotation *r, const char *reason)
{
	OwnerScope	scope;
	RotationState failed = r->state;
	int			version = r->version;
	int64		longest;
	int64		delay;
	Oid			types[] = {INT8OID, TEXTOID, INT4OID};
	Datum		values[3];

	audit_rotation(AUDIT_CHANGED, "rotation.fail", r, reason);
	r->failures++;
	r->event_id = 0;
	delay = delay_after(r, &longest);
	values[0] = Int64GetDatum(r->secret_id);
	values[1] = CStringGetTextDatum(reason);
	values[2] = Int32GetDatum(r->failures);
	owner_do(NULL,
			 "UPDATE mlint.secret_rotation SET last_error = $2, failures = $3"
			 " WHERE secret_id = $1", SPI_OK_UPDATE, 3, types, values, NULL);

	if (!must_restore(r))
		abandon(r, Max(delay, 0), delay < 0);
	else
		enter_state(r, ROTATION_RESTORING);
	if (failed == ROTATION_RESTORING)
	{
		owner_begin(&scope);
		put_off(r, Max(delay < 0 ? longest : delay, RESTORE_MIN_US));
		owner_end(&scope);
	}
	publish_failed(r, failed, version, reason);
}

/* The rotation that is due, locked; one under way before one to begin. */
static Rotation *
next_due(void)
{
	OwnerScope	scope;
	Rotation   *r = NULL;
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	bool		isnull;
	char	   *state;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT r.secret_id, s.name, r.owner, r.generator, r.apply, r.verify,"
			  " r.on_failure, EXTRACT(epoch FROM r.grace)::int, r.state,"
			  " coalesce(r.version, 0), coalesce(r.old_version, -1),"
			  " coalesce(r.event_id, 0), r.failures, s.version"
			  " FROM mlint.secret_rotation r"
			  " JOIN mlint.secret s ON s.id = r.secret_id"
			  " WHERE NOT r.paused AND r.next_at <= pg_catalog.clock_timestamp()"
			  " ORDER BY r.state = 'idle', r.next_at LIMIT 1"
			  " FOR UPDATE OF r SKIP LOCKED"
			  " FOR KEY SHARE OF s SKIP LOCKED", SPI_OK_SELECT, 0, NULL, NULL, NULL);
	if (SPI_processed > 0)
	{
		old = MemoryContextSwitchTo(context);
		r = palloc0(sizeof(Rotation));
		r->secret_id = DatumGetInt64(owner_column(1, &isnull));
		r->name = TextDatumGetCString(owner_column(2, &isnull));
		r->owner = DatumGetObjectId(owner_column(3, &isnull));
		r->generator = DatumGetJsonbPCopy(owner_column(4, &isnull));
		r->apply = (Jsonb *) DatumGetPointer(owner_column(5, &isnull));
		r->apply = isnull ? NULL :
			DatumGetJsonbPCopy(PointerGetDatum(r->apply));
		r->verify = (Jsonb *) DatumGetPointer(owner_column(6, &isnull));
		r->verify = isnull ? NULL :
			DatumGetJsonbPCopy(PointerGetDatum(r->verify));
		r->on_failure = DatumGetJsonbPCopy(owner_column(7, &isnull));
		r->grace_s = DatumGetInt32(owner_column(8, &isnull));
		state = TextDatumGetCString(owner_column(9, &isnull));
		while (strcmp(state, state_names[r->state]) != 0)
			r->state++;
		r->version = DatumGetInt32(owner_column(10, &isnull));
		r->old_version = DatumGetInt32(owner_column(11, &isnull));
		r->event_id = DatumGetInt64(owner_column(12, &isnull));
		r->failures = DatumGetInt32(owner_column(13, &isnull));
		r->current = DatumGetInt32(owner_column(14, &isnull));
		MemoryContextSwitchTo(old);
	}
	owner_end(&scope);
	return r;
}

/*
 * Take the next rotation that is due one step on; a step that fails is rolled
 * back, and that it failed is recorded. False when none is due.
 */
static bool
run_step(void *arg)
{
	Trial		trial;
	Rotation   *r = next_due();
	RotationState before;
	char	   *volatile reason = NULL;

	if (r == NULL)
		return false;
	before = r->state;
	trial_begin(&trial);
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		advance(r);
		PopActiveSnapshot();
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		/* Of somebody who called us; a worker's is a function's time-out. */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED && MyWorker == NULL)
		{
			wipe_value();
			ReThrowError(error);
		}
		reason = without_value(error);
	}
	PG_END_TRY();
	wipe_value();
	if (reason)
	{
		/* As it was before the step, which changes the struct as it goes. */
		r->state = before;
		if (before == ROTATION_IDLE)
			r->version = 0;
		step_failed(r, reason);
	}
	reached = state_names[r->state];
	return true;
}

/* ---- what is due by itself ---- */

/* The grace of some secrets is over: what signs reads its secrets again. */
static void
end_overlaps(void)
{
	OwnerScope	scope;

	owner_begin(&scope);
	owner_run(NULL,
			  "UPDATE mlint.secret_rotation SET overlap_until = NULL"
			  " WHERE overlap_until <= pg_catalog.clock_timestamp()",
			  SPI_OK_UPDATE, 0, NULL, NULL, NULL);
	/* The secret's own word: the rotation may be gone meanwhile. */
	owner_run(NULL,
			  "UPDATE mlint.secret SET previous_until = '-infinity'"
			  " WHERE previous_until > '-infinity'"
			  " AND previous_until <= pg_catalog.clock_timestamp()",
			  SPI_OK_UPDATE, 0, NULL, NULL, NULL);
	if (SPI_processed > 0)
		secret_values_changed();
	owner_end(&scope);
}

/* Announce what is due soon, or overdue: once for each version. */
static void
publish_expiring(void)
{

	owner_do(NULL,
			 "WITH expiring AS (UPDATE mlint.secret_rotation r"
			 " SET warned_version = s.version FROM mlint.secret s"
			 " WHERE s.id = r.secret_id AND r.state = 'idle'"
			 " AND r.warned_version IS DISTINCT FROM s.version"
			 " AND pg_catalog.clock_timestamp() >="
			 " coalesce(r.last_rotated_at, r.created_at) + r.every - r.warn_before"
			 " AND (r.paused OR r.next_at > pg_catalog.clock_timestamp())"
			 " RETURNING s.name, s.version, r.paused, r.next_at,"
			 " coalesce(r.last_rotated_at, r.created_at) + r.every AS due_at)"
			 " SELECT mlint.publish('secret.expiring',"
			 " pg_catalog.jsonb_build_object('name', name, 'version', version,"
			 " 'due_at', due_at, 'overdue', due_at <= pg_catalog.clock_timestamp(),"
			 " 'paused', paused, 'next_at', CASE WHEN NOT paused THEN next_at END))"
			 " FROM expiring", SPI_OK_SELECT, 0, NULL, NULL, NULL);
}

/* Does a rotation wait for a delivery? */
static bool
deliveries_under_way(void *arg)
{
	return owner_do(NULL,
					"SELECT FROM mlint.secret_rotation"
					" WHERE event_id IS NOT NULL AND NOT paused LIMIT 1",
					SPI_OK_SELECT, 0, NULL, NULL, NULL);
}

static bool
run_housekeeping(void *arg)
{
	end_overlaps();
	publish_expiring();
	return false;
}

/* CALL mlint.secret_rotation_run() */
Datum
mlint_secret_rotation_run(PG_FUNCTION_ARGS)
{
	TimestampTz wait_until = 0;

	job_procedure_begin(fcinfo, "mlint.secret_rotation_run()",
						JOB_RUN_HINT("secret_rotation"));

	(void) job_transaction(run_housekeeping, NULL, true);
	for (;;)
	{
		while (job_transaction(run_step, NULL, true))
		{
			ConditionVariableBroadcast(worker_delivered());
			INJECTION(psprintf("rotation-%s", reached));
			wait_until = 0;
		}
		if (!job_transaction(deliveries_under_way, NULL, true))
			break;
		if (wait_until == 0)
			wait_until = GetCurrentTimestamp() +
				DELIVERY_WAIT_MS * INT64CONST(1000);
		if (wait_until <= GetCurrentTimestamp())
			break;
		ConditionVariablePrepareToSleep(worker_delivered());
		(void) ConditionVariableTimedSleep(worker_delivered(),
										   DELIVERY_LOOK_MS,
										   PG_WAIT_EXTENSION);
		ConditionVariableCancelSleep();
	}
	job_procedure_end();
	PG_RETURN_VOID();
}
