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

void
generation_bump(const char *room)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(room)};

	if (SPI_execute_with_args("UPDATE mlint.generation"
							  " SET generation = generation + 1"
							  " WHERE room = $1",
							  1, types, values, NULL,
							  false, 0) != SPI_OK_UPDATE ||
		SPI_processed != 1)
		elog(ERROR, "there is no row for \"%s\" in mlint.generation", room);
}
