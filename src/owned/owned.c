/*
 * owned.c
 *		Give what belongs to a role to another.
 *
 * REASSIGN OWNED and DROP ROLE know nothing of our rows. What was a dropped
 * role's is not run until it has another owner; this is how it gets one.
 *
 * What the new owner may do is not asked here but when it is done: the owner
 * of a rotation, a target or a function is checked at each use.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/generation.h"
#include "common/owner.h"
#include "common/rows.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_owned_reassign);

/*
 * From whom ($1, the name; empty: from those that are gone), to whom ($2).
 * Each column of type mlint.role_id has one.
 */
static const char *const transfers[] = {
	"UPDATE mlint.secret_grant SET role = $2"
	" WHERE role::text = $1 AND privilege = 'owner'",
	"UPDATE mlint.secret_rotation SET owner = $2 WHERE owner::text = $1",
	"UPDATE mlint.secret_mount SET created_by = $2 WHERE created_by::text = $1",
	"UPDATE mlint.acme_account SET created_by = $2 WHERE created_by::text = $1",
	"UPDATE mlint.certificate SET created_by = $2 WHERE created_by::text = $1",
	"UPDATE mlint.dns_provider SET created_by = $2 WHERE created_by::text = $1",
	"UPDATE mlint.certificate_target SET created_by = $2"
	" WHERE created_by::text = $1",
	"UPDATE mlint.acme_challenge SET owner = $2 WHERE owner::text = $1",
};

/* Who may: as with REASSIGN OWNED, who could act as either. */
static void
require_both(const char *role, Oid old, const char *new_role, Oid new)
{
	bool		may = has_privs_of_role(GetUserId(), new) &&
	(!OidIsValid(old) || has_privs_of_role(GetUserId(), old));

	if (may)
		return;
	audit(AUDIT_DENIED, "owned.reassign", "role", role, NULL);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to give away what belongs to others"),
			 OidIsValid(old) ?
			 errhint("Be a member of both roles, \"%s\" and \"%s\".", role,
					 new_role) :
			 errhint("Be a member of role \"%s\".", new_role)));
}

/* Dispatchers keep the owners of destinations in memory. */
static uint64
transfer_destinations(Datum from, Datum to)
{
	Oid			types[] = {TEXTOID, OIDOID, INT8OID};
	Datum		values[] = {from, to,
	Int64GetDatum(generation_bump("destinations"))};

	owner_run(NULL,
			  "UPDATE mlint.destination SET owner = $2, generation = $3"
			  " WHERE owner::text = $1", SPI_OK_UPDATE, 3, types, values,
			  NULL);
	worker_wake_at_commit(WORKER_DISPATCHER);
	return SPI_processed;
}

/* Grants to roles that are gone serve nobody, and could not be revoked. */
static void
forget_grants(void)
{
	owner_run(NULL,
			  "DELETE FROM mlint.secret_grant WHERE role::text = ''",
			  SPI_OK_DELETE, 0, NULL, NULL, NULL);
	CacheInvalidateRelcacheByRelid(mlint_relation("secret_grant"));
}

/* mlint.owned_reassign(role, new_role) */
Datum
mlint_owned_reassign(PG_FUNCTION_ARGS)
{
	char	   *role = PG_ARGISNULL(0) ? NULL :
	text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *new_role = required_text(fcinfo, 1, "new_role");
	Oid			old = role ? get_role_oid(role, false) : InvalidOid;
	Oid			new = get_role_oid(new_role, false);
	Oid			types[] = {TEXTOID, OIDOID};
	Datum		values[] = {CStringGetTextDatum(role ? role : ""),
	ObjectIdGetDatum(new)};
	OwnerScope	scope;
	StringInfoData details;
	int64		n;

	require_writable(fcinfo);
	require_both(role, old, new_role, new);
	initStringInfo(&details);
	appendStringInfoString(&details, "{\"new_role\": ");
	escape_json(&details, new_role);
	appendStringInfoChar(&details, '}');
	audit(AUDIT_CHANGED, "owned.reassign", "role", role, details.data);

	owner_begin(&scope);
	n = transfer_destinations(values[0], values[1]);
	for (int i = 0; i < lengthof(transfers); i++)
	{
		owner_run(NULL, transfers[i], SPI_OK_UPDATE, 2, types, values, NULL);
		n += SPI_processed;
	}
	if (role == NULL)
		forget_grants();
	owner_end(&scope);
	PG_RETURN_INT64(n);
}
