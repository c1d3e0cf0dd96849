/*
 * target.c
 *		What is done to one session or archive: hold, release, apply a policy.
 *
 * A session is locked FOR KEY SHARE while a hold is placed on it or released:
 * whoever deletes has it locked FOR UPDATE, and so has the expiry job, which
 * passes over what is held.
 */
#include "postgres.h"

#include <ctype.h>

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/uuid.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/trial.h"
#include "retention/retention.h"

PG_FUNCTION_INFO_V1(mlint_archive_hold);
PG_FUNCTION_INFO_V1(mlint_archive_release);
PG_FUNCTION_INFO_V1(mlint_retention_policy_apply);

#define REASON_MAX_BYTES	1000

/* A session and, if it has one, its archive. */
typedef struct Target
{
	int64		session;
	char	   *session_id;
	char	   *archive;		/* as text, or NULL */
} Target;

/*
 * Lock the session that $1 leads to, and fill in the target. The archive is
 * looked up in a statement of its own, which sees what was committed while we
 * waited for the lock. In an owner scope.
 */
static bool
lock_target(const char *which, Oid type, Datum value, Target *target)
{
	Oid			types[] = {INT8OID};
	bool		isnull;

	owner_run(NULL, psprintf("SELECT s.id, s.session_id::text FROM mlint.session s"
							 " WHERE s.id = (%s) FOR KEY SHARE", which),
			  SPI_OK_SELECT, 1, &type, &value, NULL);
	if (SPI_processed == 0)
		return false;
	value = owner_column(1, &isnull);
	target->session = DatumGetInt64(value);
	target->session_id = SPI_getvalue(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 2);
	owner_run(NULL,
			  "SELECT id::text FROM mlint.archive WHERE session = $1",
			  SPI_OK_SELECT, 1, types, &value, NULL);
	target->archive = SPI_processed == 0 ? NULL :
		SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	return true;
}

/* A text as a UUID; false when it is none. */
static bool
parse_uuid(const char *value, Datum *uuid)
{
	Trial		trial;
	volatile bool parsed = true;
	int			digits = 0;

	for (const char *p = value; *p; p++)
		digits += isxdigit((unsigned char) *p) != 0;
	if (digits != 2 * UUID_LEN || strlen(value) > 2 * UUID_LEN + 9)
		return false;
	trial_begin(&trial);
	PG_TRY();
	{
		*uuid = DirectFunctionCall1(uuid_in, CStringGetDatum(value));
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		if (error->sqlerrcode != ERRCODE_INVALID_TEXT_REPRESENTATION)
			ReThrowError(error);
		parsed = false;
	}
	PG_END_TRY();
	return parsed;
}

static void
pg_attribute_noreturn()
no_archive(const char *id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("archive \"%s\" does not exist", id)));
}

#define OF_SESSION	"SELECT i.id FROM mlint.session i WHERE i.session_id = $1"
#define OF_ARCHIVE	"SELECT i.session FROM mlint.archive i WHERE i.id = $1"
#define OF_HOLD		"SELECT i.session FROM mlint.hold i WHERE i.id = $1"

/*
 * Lock what the first argument names: the id of a session, or of an archive as
 * text; an archive's uuid; a hold's number. In an owner scope.
 */
static void
lock_argument(FunctionCallInfo fcinfo, Target *target)
{
	Oid			type = get_fn_expr_argtype(fcinfo->flinfo, 0);
	Datum		value;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the session or archive must not be null")));
	value = PG_GETARG_DATUM(0);
	if (type == INT8OID)
	{
		if (!lock_target(OF_HOLD, INT8OID, value, target))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("hold %lld does not exist",
							(long long) DatumGetInt64(value)),
					 errhint("mlint.holds shows those that there are.")));
	}
	else if (type == UUIDOID)
	{
		if (!lock_target(OF_ARCHIVE, UUIDOID, value, target))
			no_archive(DatumGetCString(DirectFunctionCall1(uuid_out, value)));
	}
	else
	{
		Datum		uuid;

		if (!lock_target(OF_SESSION, TEXTOID, value, target) &&
			!(parse_uuid(TextDatumGetCString(value), &uuid) &&
			  lock_target(OF_ARCHIVE, UUIDOID, uuid, target)))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("neither a session nor an archive \"%s\" exists",
							TextDatumGetCString(value))));
	}
}

static void
check_reason(const char *reason)
{
	if (reason[0] == '\0' || strlen(reason) > REASON_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the reason must be 1 to %d bytes long",
						REASON_MAX_BYTES)));
}

static void
audit_hold(const char *action, const Target *target, int64 hold,
		   const char *reason)
{
	StringInfoData details;

	initStringInfo(&details);
	appendStringInfoChar(&details, '{');
	if (hold)
		appendStringInfo(&details, "\"hold\": " INT64_FORMAT ", ", hold);
	if (target->archive)
		appendStringInfo(&details, "\"archive\": \"%s\", ", target->archive);
	appendStringInfoString(&details, "\"reason\": ");
	if (reason)
		escape_json(&details, reason);
	else
		appendStringInfoString(&details, "null");
	appendStringInfoChar(&details, '}');
	audit(AUDIT_CHANGED, action, "session", target->session_id, details.data);
}

/* mlint.archive_hold(target, reason), mlint.archive_hold(archive_id, reason) */
Datum
mlint_archive_hold(PG_FUNCTION_ARGS)
{
	char	   *reason = required_text(fcinfo, 1, "reason");
	Target		target;
	OwnerScope	scope;
	int64		hold;

	require_writable(fcinfo);
	check_reason(reason);
	owner_begin(&scope);
	lock_argument(fcinfo, &target);
	hold = hold_place(target.session, reason);
	audit_hold("hold.place", &target, hold, reason);
	owner_end(&scope);
	PG_RETURN_INT64(hold);
}

/*
 * mlint.archive_release(target, reason), of an archive, of a hold. If it would
 * have been deleted but for the hold, the job looks at it again.
 */
Datum
mlint_archive_release(PG_FUNCTION_ARGS)
{
	bool		one = get_fn_expr_argtype(fcinfo->flinfo, 0) == INT8OID;
	char	   *reason = PG_ARGISNULL(1) ? NULL :
	text_to_cstring(PG_GETARG_TEXT_PP(1));
	Oid			types[] = {INT8OID};
	Datum		values[1];
	Target		target;
	OwnerScope	scope;
	int64		released;

	require_writable(fcinfo);
	if (reason)
		check_reason(reason);
	owner_begin(&scope);
	lock_argument(fcinfo, &target);
	released = hold_release(target.session, one ? PG_GETARG_INT64(0) : 0,
							reason);
	if (released > 0)
	{
		values[0] = Int64GetDatum(target.session);
		owner_run(NULL,
				  "UPDATE mlint.archive a SET announced_at = NULL"
				  " FROM mlint.retention_policy p WHERE a.session = $1"
				  " AND a.announced_at IS NOT NULL AND p.id = a.policy_id"
				  " AND p.auto_delete", SPI_OK_UPDATE, 1, types, values, NULL);
		audit_hold("hold.release", &target, one ? PG_GETARG_INT64(0) : 0,
				   reason);
	}
	owner_end(&scope);
	PG_RETURN_INT64(released);
}

/*
 * Is the policy at least what the archive is under now? $1 is the archive,
 * whose row is locked.
 */
static void
check_binding(Datum archive, const RetentionPolicy *policy)
{
	Oid			types[] = {UUIDOID};
	char	   *id = DatumGetCString(DirectFunctionCall1(uuid_out, archive));
	int			days;
	bool		bound_erasable;
	bool		stays_unerasable;
	bool		isnull;

	owner_run(NULL,
			  "SELECT coalesce(greatest(c.days, l.days), 0),"
			  " coalesce(l.erasable, true), NOT coalesce(c.erasable, true)"
			  " FROM mlint.archive a"
			  " LEFT JOIN mlint.retention_level c ON c.level = a.compliance"
			  " LEFT JOIN mlint.retention_policy p ON p.id = a.policy_id"
			  " LEFT JOIN mlint.retention_level l ON l.level = p.level"
			  " WHERE a.id = $1", SPI_OK_SELECT, 1, types, &archive, NULL);
	days = DatumGetInt32(owner_column(1, &isnull));
	bound_erasable = DatumGetBool(owner_column(2, &isnull));
	stays_unerasable = DatumGetBool(owner_column(3, &isnull));
	if (policy->days < days)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_HELD),
				 errmsg("retention policy \"%s\" cannot be applied to archive \"%s\"",
						policy->name, id),
				 errdetail("The compliance levels that the archive is under demand %d days; the policy keeps for %d.",
						   days, policy->days)));
	if (policy->erasable && !bound_erasable && !stays_unerasable)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_HELD),
				 errmsg("retention policy \"%s\" cannot be applied to archive \"%s\"",
						policy->name, id),
				 errdetail("The level of the archive's present policy does not let it be erased on request; the policy's level %s does.",
						   policy->level)));
}

/* The name of the policy with this number. In an owner scope. */
static char *
policy_name(int32 id)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(id)};

	owner_run(NULL,
			  "SELECT name::text FROM mlint.retention_policy WHERE id = $1",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("retention policy %d does not exist", id),
				 errhint("mlint.retention_policies shows those that there are.")));
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}

/*
 * mlint.retention_policy_apply(archive_id, policy),
 * mlint.retention_policy_apply(archive_id, policy_id)
 */
Datum
mlint_retention_policy_apply(PG_FUNCTION_ARGS)
{
	bool		by_id = get_fn_expr_argtype(fcinfo->flinfo, 1) == INT4OID;
	char	   *name;
	Oid			types[] = {UUIDOID, INT4OID, INT4OID};
	Datum		values[3];
	RetentionPolicy policy;
	StringInfoData details;
	OwnerScope	scope;
	char	   *id;

	require_writable(fcinfo);
	values[0] = UUIDPGetDatum(required_uuid(fcinfo, 0, "archive_id"));
	id = DatumGetCString(DirectFunctionCall1(uuid_out, values[0]));
	if (by_id && PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("policy_id must not be null")));
	name = by_id ? NULL : required_text(fcinfo, 1, "policy");
	owner_begin(&scope);
	if (by_id)
		name = policy_name(PG_GETARG_INT32(1));
	retention_policy_find(name, (Datum) 0, NULL, &policy);
	values[1] = Int32GetDatum(policy.id);
	values[2] = Int32GetDatum(policy.days);
	owner_run(NULL,
			  "SELECT FROM mlint.archive WHERE id = $1 FOR NO KEY UPDATE",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		no_archive(id);
	check_binding(values[0], &policy);
	owner_run(NULL,
			  "UPDATE mlint.archive a SET policy_id = $2, announced_at = NULL,"
			  " expires_at = a.archived_at + '24:00'::interval * greatest($3,"
			  " a.retention_days, (SELECT l.days FROM mlint.retention_level l"
			  " WHERE l.level = a.compliance)) WHERE a.id = $1",
			  SPI_OK_UPDATE, 3, types, values, NULL);
	initStringInfo(&details);
	appendStringInfoString(&details, "{\"policy\": ");
	escape_json(&details, name);
	appendStringInfoChar(&details, '}');
	audit(AUDIT_CHANGED, "retention_policy.apply", "archive", id,
		  details.data);
	owner_end(&scope);
	PG_RETURN_VOID();
}
