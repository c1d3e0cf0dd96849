/*
 * report.c
 *		mlint.retention_report(): what will go when.
 *
 * It is exact: ends of periods are computed from the policies as they are. Which
 * archives to look at is known by the indexes on expires_at, but for those of
 * policies that were altered a moment ago, whose expires_at is behind.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "common/compat.h"
#include "common/owner.h"

PG_FUNCTION_INFO_V1(mlint_retention_report);

#define NCOLUMNS	9

/* mlint.retention_report(at) */
Datum
mlint_retention_report(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {PG_GETARG_DATUM(0)};
	OwnerScope	scope;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("at must not be null")));
	InitMaterializedSRF(fcinfo, 0);
	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT v.policy, p.level, CASE WHEN v.auto_delete"
							  " THEN 'delete' ELSE 'announce' END AS action,"
							  " pg_catalog.count(*),"
							  " pg_catalog.sum(a.stored_bytes)::bigint,"
							  " pg_catalog.count(*) FILTER (WHERE EXISTS (SELECT"
							  " FROM mlint.hold h WHERE h.session = a.session"
							  " AND h.released_at IS NULL)),"
							  " pg_catalog.count(v.announced_at),"
							  " pg_catalog.min(v.ends_at),"
							  " pg_catalog.max(v.ends_at)"
							  " FROM mlint.archive a"
							  " JOIN mlint.archive_periods v ON v.archive_id = a.id"
							  " LEFT JOIN mlint.retention_policy p"
							  " ON p.id = a.policy_id"
							  " WHERE ((a.announced_at IS NULL AND a.expires_at <= $1)"
							  " OR (a.announced_at IS NOT NULL AND a.expires_at <= $1)"
							  " OR a.policy_id = ANY (ARRAY(SELECT s.policy"
							  " FROM mlint.retention_stale s)))"
							  " AND v.ends_at <= $1"
							  " GROUP BY 1, 2, 3 ORDER BY 8, 1",
							  1, types, values, NULL, true,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.archive");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		row[NCOLUMNS];
		bool		nulls[NCOLUMNS];

		for (int n = 0; n < NCOLUMNS; n++)
			row[n] = SPI_getbinval(SPI_tuptable->vals[i],
								   SPI_tuptable->tupdesc, n + 1, &nulls[n]);
		tuplestore_putvalues(result->setResult, result->setDesc, row, nulls);
	}
	owner_end(&scope);
	return (Datum) 0;
}
