/*
 * access.c
 *		Who may do what with which secret: grants, owners, one error.
 *
 * mlint.secret_grant has a row for each grant. Most are given on a name and
 * found by it in the index at each use. The few that are given on a pattern
 * are kept in each process's memory; granting and revoking one sends a
 * relcache invalidation of the table, so that all sessions read them again at
 * the moment when the change commits, and none before.
 *
 * Whoever holds no privilege on a secret learns nothing of it: there is one
 * error for an unknown name and for a forbidden one, and each is audited.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/errors.h"
#include "common/glob.h"
#include "common/owner.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "secrets/access.h"
#include "secrets/secrets.h"
#include "common/relwatch.h"
#include "common/rows.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#define PATTERN_MAX		511

/* Columns of mlint.secret_grant. */
#define GRANT_PATTERN	1
#define GRANT_ROLE		2
#define GRANT_PRIVILEGE	3

PG_FUNCTION_INFO_V1(mlint_secret_privileges);
PG_FUNCTION_INFO_V1(mlint_secret_grant);
PG_FUNCTION_INFO_V1(mlint_secret_revoke);

typedef struct WildGrant
{
	char	   *pattern;
	Oid			role;
	int			privilege;
} WildGrant;

/* The grants on patterns, as this process knows them. */
static struct
{
	bool		valid;			/* nothing has changed since they were read */
	uint32		changes;		/* how often it has */
	Oid			relation;
	MemoryContext context;
	int			n;
	WildGrant  *grants;
}			wild;

static const struct
{
	const char *name;
	int			privilege;
}			privilege_names[] = {
	{"read", SECRET_READ},
	{"write", SECRET_WRITE},
	{"rotate", SECRET_ROTATE},
	{"admin", SECRET_ADMIN},
	{"owner", SECRET_OWNER}
};

static void
forget_wild(Datum arg, Oid relid)
{
	if (relid != InvalidOid && relid != wild.relation)
		return;
	wild.valid = false;
	wild.changes++;
}

void
access_init(void)
{
	relation_watch(forget_wild, (Datum) 0);
}

/* The bit of a privilege's name; 0 for none that can be granted or is held. */
static int
privilege_of(const char *name)
{
	for (int i = 0; i < lengthof(privilege_names); i++)
	{
		if (strcmp(name, privilege_names[i].name) == 0)
			return privilege_names[i].privilege;
	}
	return 0;
}

/* Read the grants on patterns again. */
static void
read_wild(void)
{
	RowScan		scan;
	HeapTuple	row;
	uint32		changes;

	if (wild.context == NULL)
		wild.context = AllocSetContextCreate(TopMemoryContext,
											 "mlint grants on secrets",
											 ALLOCSET_SMALL_SIZES);
	/* What arrives while we read makes us read again. */
	do
	{
		int			room = 0;

		wild.n = 0;
		wild.grants = NULL;
		MemoryContextReset(wild.context);
		wild.relation = mlint_relation("secret_grant");
		changes = wild.changes;
		rows_begin(&scan, "secret_grant", "secret_grant_wild", 0, NULL, true);
		while ((row = rows_next(&scan)) != NULL)
		{
			bool		isnull;
			WildGrant  *grant;

			if (wild.n == room)
			{
				room = Max(2 * room, 16);
				wild.grants = wild.grants ?
					repalloc(wild.grants, room * sizeof(WildGrant)) :
					MemoryContextAlloc(wild.context,
									   room * sizeof(WildGrant));
			}
			grant = &wild.grants[wild.n];
			grant->role = DatumGetObjectId(heap_getattr(row, GRANT_ROLE,
														scan.desc, &isnull));
			grant->privilege =
				privilege_of(TextDatumGetCString(heap_getattr(row,
															  GRANT_PRIVILEGE,
															  scan.desc,
															  &isnull)));
			grant->pattern =
				MemoryContextStrdup(wild.context,
									TextDatumGetCString(heap_getattr(row,
																	 GRANT_PATTERN,
																	 scan.desc,
																	 &isnull)));
			wild.n++;
		}
		rows_end(&scan);
	} while (changes != wild.changes);
	wild.valid = true;
}

bool
secret_administrator(Oid role)
{
	return superuser_arg(role) ||
		has_privs_of_role(role, get_role_oid("mlint_admin", false));
}

int
secret_privileges(Oid role, const char *name)
{
	int			held = 0;
	RowScan		scan;
	ScanKeyData key;
	HeapTuple	row;

	if (secret_administrator(role))
		return SECRET_ANY;

	row_key(&key, GRANT_PATTERN, F_TEXTEQ, CStringGetTextDatum(name));
	rows_begin(&scan, "secret_grant", "secret_grant_role", 1, &key, true);
	while ((row = rows_next(&scan)) != NULL)
	{
		bool		isnull;
		Oid			holder = DatumGetObjectId(heap_getattr(row, GRANT_ROLE,
														   scan.desc,
														   &isnull));

		if (has_privs_of_role(role, holder))
			held |= privilege_of(TextDatumGetCString(heap_getattr(row,
																  GRANT_PRIVILEGE,
																  scan.desc,
																  &isnull)));
	}
	rows_end(&scan);

	if (!wild.valid)
		read_wild();
	for (int i = 0; i < wild.n; i++)
	{
		if (glob_match(wild.grants[i].pattern, name) &&
			has_privs_of_role(role, wild.grants[i].role))
			held |= wild.grants[i].privilege;
	}
	return held & (SECRET_OWNER | SECRET_ADMIN) ? SECRET_ANY : held;
}

bool
secret_permitted(Oid role, const char *name, int privileges)
{
	return (secret_privileges(role, name) & privileges) != 0;
}

void
secret_unknown(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("secret \"%s\" does not exist, or you may not do that with it",
					name),
			 errhint("The view mlint.secrets lists those that are, and what you may do with each. Others are granted by their owners and by members of mlint_admin, with mlint.secret_grant. A new name takes the privilege write on a pattern that it matches.")));
}

void
secret_require(const char *name, int privilege, const char *action)
{
	if (secret_permitted(GetUserId(), name, privilege))
		return;
	audit(AUDIT_DENIED, action, "secret", name, NULL);
	secret_unknown(name);
}

/* mlint.secret_privileges(name text) returns text[] */
Datum
mlint_secret_privileges(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int			held = secret_privileges(GetUserId(), name);
	Datum		names[lengthof(privilege_names)];
	int			n = 0;

	for (int i = 0; i < lengthof(privilege_names); i++)
	{
		if (held & privilege_names[i].privilege)
			names[n++] = CStringGetTextDatum(privilege_names[i].name);
	}
	PG_RETURN_ARRAYTYPE_P(construct_array(names, n, TEXTOID, -1, false,
										  TYPALIGN_INT));
}

/*
 * Other sessions, and ours, read the grants on patterns again; and whoever has a
 * value in memory asks again whether he may.
 */
static void
grants_changed(const char *pattern)
{
	secret_values_changed();
	if (strpbrk(pattern, "*?") != NULL)
		CacheInvalidateRelcacheByRelid(mlint_relation("secret_grant"));
}

static void
insert_grant(const char *pattern, Oid role, const char *privilege, Oid by)
{
	Oid			types[] = {TEXTOID, OIDOID, TEXTOID, TEXTOID};
	Datum		values[4];

	values[0] = CStringGetTextDatum(pattern);
	values[1] = ObjectIdGetDatum(role);
	values[2] = CStringGetTextDatum(privilege);
	values[3] = CStringGetTextDatum(GetUserNameFromId(by, false));
	owner_run(NULL, "INSERT INTO mlint.secret_grant"
			  " (pattern, role, privilege, granted_by)"
			  " VALUES ($1, $2, $3, $4)"
			  " ON CONFLICT DO NOTHING",
			  SPI_OK_INSERT, 4, types, values, NULL);
}

void
secret_owner_set(const char *name, Oid role)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	OwnerScope	scope;

	owner_begin(&scope);
	owner_run(NULL, "DELETE FROM mlint.secret_grant"
			  " WHERE pattern = $1 AND privilege = 'owner'",
			  SPI_OK_DELETE, 1, types, values, NULL);
	insert_grant(name, role, "owner", role);
	owner_end(&scope);
}

void
secret_grants_drop(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	OwnerScope	scope;

	owner_begin(&scope);
	owner_run(NULL, "DELETE FROM mlint.secret_grant WHERE pattern = $1",
			  SPI_OK_DELETE, 1, types, values, NULL);
	owner_end(&scope);
}

typedef struct Grant
{
	char	   *pattern;
	Oid			role;
	char	   *privilege;
	char	   *details;		/* for the audit log */
} Grant;

/* The arguments of grant and revoke, and whether the caller may. */
static Grant
grant_arguments(FunctionCallInfo fcinfo, const char *action)
{
	Grant		grant;
	char	   *role;
	StringInfoData details;
	size_t		len;

	for (int i = 0; i < 3; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("pattern, role and privilege must not be null")));
	}
	grant.pattern = text_to_cstring(PG_GETARG_TEXT_PP(0));
	role = text_to_cstring(PG_GETARG_TEXT_PP(1));
	grant.privilege = text_to_cstring(PG_GETARG_TEXT_PP(2));

	/* As elsewhere; but "local:*" is not "*", which means backends too. */
	if (strncmp(grant.pattern, "local:", 6) == 0 &&
		strpbrk(grant.pattern, "*?") == NULL)
		grant.pattern += 6;
	else if (strncmp(grant.pattern, "local:", 6) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("a pattern cannot begin with \"local:\""),
				 errdetail("Names in the local store have no backend before them.")));
	len = strlen(grant.pattern);
	if (len == 0 || len > PATTERN_MAX ||
		strspn(grant.pattern, SECRET_NAME_CHARACTERS ":*?") != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid pattern of names of secrets"),
				 errdetail("A pattern is a name, or backend:name, in which * stands for any characters and ? for one.")));
	grant.role = get_role_oid(role, false);
	if ((privilege_of(grant.privilege) & SECRET_ANY) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no privilege \"%s\" on secrets",
						grant.privilege),
				 errhint("Privileges are read, write, rotate and admin.")));

	/* On several secrets at once, some of them others', only who has all. */
	if (strpbrk(grant.pattern, "*?") == NULL)
		secret_require(grant.pattern, SECRET_ADMIN, action);
	else if (!secret_administrator(GetUserId()))
	{
		audit(AUDIT_DENIED, action, "secret", grant.pattern, NULL);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for a pattern of names of secrets"),
				 errdetail("Only members of mlint_admin give and take privileges by pattern."),
				 errhint("Name one secret that is yours.")));
	}

	initStringInfo(&details);
	appendStringInfoString(&details, "{\"role\": ");
	escape_json(&details, role);
	appendStringInfo(&details, ", \"privilege\": \"%s\"}", grant.privilege);
	grant.details = details.data;
	return grant;
}

/* mlint.secret_grant(name_pattern text, role text, privilege text) */
Datum
mlint_secret_grant(PG_FUNCTION_ARGS)
{
	Grant		grant = grant_arguments(fcinfo, "secret.grant");
	OwnerScope	scope;

	require_writable(fcinfo);
	audit(AUDIT_CHANGED, "secret.grant", "secret", grant.pattern,
		  grant.details);
	owner_begin(&scope);
	insert_grant(grant.pattern, grant.role, grant.privilege, scope.user);
	owner_end(&scope);
	grants_changed(grant.pattern);
	PG_RETURN_VOID();
}

/* mlint.secret_revoke(name_pattern text, role text, privilege text) */
Datum
mlint_secret_revoke(PG_FUNCTION_ARGS)
{
	Grant		grant = grant_arguments(fcinfo, "secret.revoke");
	OwnerScope	scope;
	Oid			types[] = {TEXTOID, OIDOID, TEXTOID};
	Datum		values[3];

	require_writable(fcinfo);
	audit(AUDIT_CHANGED, "secret.revoke", "secret", grant.pattern,
		  grant.details);
	owner_begin(&scope);
	values[0] = CStringGetTextDatum(grant.pattern);
	values[1] = ObjectIdGetDatum(grant.role);
	values[2] = CStringGetTextDatum(grant.privilege);
	owner_run(NULL, "DELETE FROM mlint.secret_grant"
			  " WHERE pattern = $1 AND role = $2"
			  " AND privilege = $3",
			  SPI_OK_DELETE, 3, types, values, NULL);
	if (SPI_processed == 0)
		ereport(WARNING,
				(errmsg("role \"%s\" had not been granted %s on \"%s\"",
						GetUserNameFromId(grant.role, false),
						grant.privilege, grant.pattern),
				 errhint("The view mlint.secret_grants lists the grants; another pattern, or a role that it is a member of, may still give it.")));
	owner_end(&scope);
	grants_changed(grant.pattern);
	PG_RETURN_VOID();
}
