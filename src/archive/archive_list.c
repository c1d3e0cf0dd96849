/*
 * archive_list.c
 *		Pages of archives, newest first.
 *
 * The order is that of the primary key, since ids grow with time: a page after
 * an id costs the same however deep it is; page n has n pages walked.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "common/owner.h"
#include "sessions/check.h"

PG_FUNCTION_INFO_V1(mlint_archive_list);
PG_FUNCTION_INFO_V1(mlint_archive_list_after);

/* What both functions filter by: arguments 2 and up. */
#define NFILTERS	5

static void
list(FunctionCallInfo fcinfo, Datum after, bool first, int64 offset, int limit)
{
	Oid			types[] = {UUIDOID, INT8OID, INT4OID, TEXTOID, TEXTOID,
	TEXTOID, BOOLOID, TIMESTAMPTZOID};
	Datum		values[lengthof(types)] = {after, Int64GetDatum(offset),
	Int32GetDatum(limit)};
	char		nulls[lengthof(types) + 1] = {first ? 'n' : ' ', ' ', ' '};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	OwnerScope	scope;

	for (int i = 0; i < NFILTERS; i++)
	{
		values[3 + i] = PG_GETARG_DATUM(2 + i);
		nulls[3 + i] = PG_ARGISNULL(2 + i) ? 'n' : ' ';
	}
	InitMaterializedSRF(fcinfo, 0);
	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT * FROM mlint.archives WHERE ($1 IS NULL OR id < $1)"
							  " AND ($4 IS NULL OR policy = $4)"
							  " AND ($5 IS NULL OR tags @> ARRAY[$5])"
							  " AND ($6 IS NULL OR store = $6)"
							  " AND ($7 IS NULL OR held = $7)"
							  " AND ($8 IS NULL OR expires_at < $8)"
							  " ORDER BY id DESC OFFSET $2 LIMIT $3",
							  lengthof(types), types, values, nulls, true,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not list archives");
	for (uint64 i = 0; i < SPI_processed; i++)
		tuplestore_puttuple(result->setResult, SPI_tuptable->vals[i]);
	owner_end(&scope);
}

/* mlint.archive_list(page, page_size, policy, tag, store, held, expires_before) */
Datum
mlint_archive_list(PG_FUNCTION_ARGS)
{
	int64		page = page_argument(fcinfo, 0);
	int			size = page_size_argument(fcinfo, 1);

	list(fcinfo, (Datum) 0, true, (page - 1) * size, size);
	return (Datum) 0;
}

/* mlint.archive_list_after(after, page_size, policy, tag, store, held, expires_before) */
Datum
mlint_archive_list_after(PG_FUNCTION_ARGS)
{
	int			size = page_size_argument(fcinfo, 1);

	list(fcinfo, PG_GETARG_DATUM(0), PG_ARGISNULL(0), 0, size);
	return (Datum) 0;
}
