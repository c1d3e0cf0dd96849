/*
 * generation.c
 *		Bump the number that tells workers to read a room's rows again.
 *
 * One row a room, updated in the changing transaction: the number is seen to
 * move exactly when the change is, and a rollback takes both back.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/generation.h"
#include "executor/spi.h"
#include "utils/builtins.h"

int64
generation_bump(const char *room)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(room)};
	bool		isnull;

	if (SPI_execute_with_args("UPDATE mlint.generation"
							  " SET generation = generation + 1"
							  " WHERE room = $1 RETURNING generation",
							  1, types, values, NULL,
							  false, 0) != SPI_OK_UPDATE_RETURNING ||
		SPI_processed != 1)
		elog(ERROR, "there is no row for \"%s\" in mlint.generation", room);
	return DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, 1, &isnull));
}
