/*
 * owner.c
 *		Become the owner of our tables for a few statements.
 *
 * Three things are switched, and all three are put back by the server itself
 * if the transaction or subtransaction aborts: the user (with
 * SECURITY_LOCAL_USERID_CHANGE, so that nothing run inside can SET ROLE out of
 * it), the search_path (pg_catalog alone, and pg_temp named last, so that a
 * temporary object is never taken for ours), and the SPI connection.
 *
 * Ours are the bootstrap superuser's means, so what runs inside is only fixed
 * SQL with every relation and function named in full.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "common/owner.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/guc.h"

void
owner_begin(OwnerScope *scope)
{
	GetUserIdAndSecContext(&scope->user, &scope->context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   scope->context | SECURITY_LOCAL_USERID_CHANGE);
	scope->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
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
}
