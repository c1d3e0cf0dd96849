/*
 * owner.c
 *		Become the owner of our tables for a few statements.
 *
 * Three things are switched, and all are put back by the server itself
 * if the transaction or subtransaction aborts: the user (with
 * SECURITY_LOCAL_USERID_CHANGE, so that nothing run inside can SET ROLE out of
 * it), the search_path (pg_catalog alone, and pg_temp named last, so that a
 * temporary object is never taken for ours), and the SPI connection. A fourth
 * only where it is not as always: session_replication_role, since without our
 * triggers and foreign keys rows would be left behind.
 *
 * The caller is remembered for the audit log, for as long as the scope lasts.
 *
 * Ours are the bootstrap superuser's means, so what runs inside is only fixed
 * SQL with every relation and function named in full.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "commands/trigger.h"
#include "common/owner.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"

/*
 * Whom the scopes that are open put back, and in which subtransaction they
 * began; those beyond the last place are nested in one of ours anyway.
 */
#define MAX_SCOPES	16

static struct
{
	Oid			user;
	int			level;
}			scopes[MAX_SCOPES];
static int	nscopes = 0;

static void
forget_scopes(XactEvent event, void *arg)
{
	nscopes = 0;
}

/* An error has ended the scopes of this subtransaction. */
static void
forget_inner_scopes(SubXactEvent event, SubTransactionId sub,
					SubTransactionId parent, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	nscopes = Min(nscopes, MAX_SCOPES);
	while (nscopes > 0 &&
		   scopes[nscopes - 1].level >= GetCurrentTransactionNestLevel())
		nscopes--;
}

static void
push_scope(Oid user)
{
	static bool watching = false;

	if (!watching)
	{
		RegisterXactCallback(forget_scopes, NULL);
		RegisterSubXactCallback(forget_inner_scopes, NULL);
		watching = true;
	}
	if (nscopes < MAX_SCOPES)
	{
		scopes[nscopes].user = user;
		scopes[nscopes].level = GetCurrentTransactionNestLevel();
	}
	nscopes++;
}

Oid
owner_caller(void)
{
	Oid			user = GetUserId();

	for (int i = Min(nscopes, MAX_SCOPES) - 1;
		 i >= 0 && user == BOOTSTRAP_SUPERUSERID; i--)
		user = scopes[i].user;
	return user;
}

void
owner_run(SPIPlanPtr *plan, const char *sql, int expected, int nargs,
		  Oid *types, Datum *values, const char *nulls)
{
	int			result;

	if (plan && *plan == NULL)
	{
		SPIPlanPtr	made = SPI_prepare(sql, nargs, types);

		if (made == NULL || SPI_keepplan(made) != 0)
			elog(ERROR, "could not prepare: %s", sql);
		*plan = made;
	}
	result = plan ? SPI_execute_plan(*plan, values, nulls, false, 0) :
		SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);
	if (result != expected)
		elog(ERROR, "unexpected result of: %s", sql);
}

bool
owner_do(SPIPlanPtr *plan, const char *sql, int expected, int nargs,
		 Oid *types, Datum *values, const char *nulls)
{
	OwnerScope	scope;
	bool		any;

	owner_begin(&scope);
	owner_run(plan, sql, expected, nargs, types, values, nulls);
	any = SPI_processed > 0;
	owner_end(&scope);
	return any;
}

Datum
owner_column(int n, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n,
						 isnull);
}

char *
owner_text(int n)
{
	bool		isnull;
	Datum		value = owner_column(n, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

bool
owner_scope_open(void)
{
	return nscopes > 0;
}

void
owner_begin(OwnerScope *scope)
{
	GetUserIdAndSecContext(&scope->user, &scope->context);
	push_scope(scope->user);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   scope->context | SECURITY_LOCAL_USERID_CHANGE);
	scope->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SessionReplicationRole != SESSION_REPLICATION_ROLE_ORIGIN)
		(void) set_config_option("session_replication_role", "origin",
								 PGC_SUSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
owner_end(OwnerScope *scope)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	AtEOXact_GUC(false, scope->guc_level);
	SetUserIdAndSecContext(scope->user, scope->context);
	nscopes--;
}
