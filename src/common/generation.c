/*
 * generation.c
 *		Bump the number that tells workers to read a room's rows again.
 *
 * One row a room, updated in the changing transaction: the number is seen to
 * move exactly when the change is, and a rollback takes both back. Once a
 * (sub)transaction is enough, however much it changes.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/generation.h"
#include "executor/spi.h"
#include "utils/builtins.h"

int64
generation_bump(const char *room)
{
	static struct
	{
		TransactionId xid;
		char		room[NAMEDATALEN];
		int64		number;
	}			last;
	TransactionId xid = GetCurrentTransactionIdIfAny();
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(room)};
	bool		isnull;

	if (TransactionIdIsValid(xid) && last.xid == xid &&
		strcmp(last.room, room) == 0)
		return last.number;
	if (SPI_execute_with_args("UPDATE mlint.generation"
							  " SET generation = generation + 1"
							  " WHERE room = $1 RETURNING generation",
							  1, types, values, NULL,
							  false, 0) != SPI_OK_UPDATE_RETURNING ||
		SPI_processed != 1)
		elog(ERROR, "there is no row for \"%s\" in mlint.generation", room);
	last.number = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											  SPI_tuptable->tupdesc, 1,
											  &isnull));
	strlcpy(last.room, room, sizeof(last.room));
	last.xid = GetCurrentTransactionId();
	return last.number;
}
