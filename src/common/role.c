/*
 * role.c
 *		Type mlint.role_id: a role that a row of ours names.
 *
 * What runs or reads as somebody must never do so as somebody else. So a row
 * has the role's oid, which no other role gets: one that is renamed stays the
 * owner, and one that is dropped leaves nothing to the next of its name. An
 * oid of one cluster means another role in the next, though, or none; so in
 * text, which is what dumps are made of, the type is the role's name.
 *
 * A name that is not known here becomes no role at all, with a warning:
 * restoring goes on, and what belongs to nobody is not run until somebody
 * takes it over (mlint.owned_reassign). A role that is gone is the empty
 * string, which is no role's name.
 *
 * In C the datum is an oid, and SQL casts it to one by itself.
 */
#include "postgres.h"

#include "common/role.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(mlint_role_id_in);
PG_FUNCTION_INFO_V1(mlint_role_id_out);

/* mlint.role_id_in(cstring) */
Datum
mlint_role_id_in(PG_FUNCTION_ARGS)
{
	char	   *name = PG_GETARG_CSTRING(0);
	Oid			role = InvalidOid;

	if (name[0] != '\0')
	{
		role = get_role_oid(name, true);
		if (!OidIsValid(role))
			ereport(WARNING,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("role \"%s\" does not exist", name),
					 errdetail("What was its own belongs to nobody, and what it was granted is granted to nobody."),
					 errhint("The view mlint.owned lists what has no owner; give it one with mlint.owned_reassign(NULL, 'role').")));
	}
	PG_RETURN_OID(role);
}

/* mlint.role_id_out(mlint.role_id) */
Datum
mlint_role_id_out(PG_FUNCTION_ARGS)
{
	char	   *name = GetUserNameFromId(PG_GETARG_OID(0), true);

	PG_RETURN_CSTRING(name ? name : pstrdup(""));
}

bool
role_exists(Oid role)
{
	return SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role));
}

void
role_require(Oid role, const char *did)
{
	if (!role_exists(role))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the role that %s does not exist any more", did),
				 errhint("The view mlint.owned lists what has no owner; give it one with mlint.owned_reassign(NULL, 'role').")));
}
