/*
 * dictionary.c
 *		Dictionaries at work; see dictionary.h. How they are made: train.c.
 *
 * What zstd makes of a dictionary costs as much as many archives, so a process
 * keeps the last few. Which one is for new archives is looked up when the
 * table has changed.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "executor/spi.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "archive/dictionary.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/relwatch.h"
#include "common/rows.h"
#include "secrets/datakey.h"

/* Ready for use, as one process keeps it: some MB each. */
typedef struct Ready
{
	Oid			table;			/* the extension may be made anew */
	int32		id;				/* 0: free */
	int			level;			/* 0: for reading */
	ZSTD_CDict *writing;
	ZSTD_DDict *reading;
	uint64		used;
} Ready;

#define MAX_READY	4

static Ready ready[MAX_READY];
static uint64 uses = 0;

/* The newest row, and the table's OID, for the callback. */
static bool current_known = false;
static int32 current = 0;
static Oid	current_table = InvalidOid;

static void
forget_current(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == current_table)
		current_known = false;
}

void
dictionary_init(void)
{
	relation_watch(forget_current, (Datum) 0);
}

int32
dictionary_current(void)
{
	RowScan		scan;
	HeapTuple	tuple;

	if (current_known)
		return current;
	current_table = mlint_relation("archive_dictionary");
	current = 0;
	current_known = true;
	rows_begin(&scan, "archive_dictionary", "archive_dictionary_pkey", 0, NULL,
			   true);
	while ((tuple = rows_next(&scan)) != NULL)
	{
		bool		isnull;

		current = DatumGetInt32(heap_getattr(tuple,
											 SPI_fnumber(scan.desc, "id"),
											 scan.desc, &isnull));
	}
	rows_end(&scan);
	return current;
}

/* The bytes of a dictionary, palloc'd. */
static char *
open_dictionary(int32 id, size_t *len)
{
	uint8		key[CRYPTO_KEY_BYTES];
	ScanKeyData scankey;
	RowScan		scan;
	HeapTuple	tuple;
	bytea	   *sealed = NULL;
	int64		data_key = 0;
	char	   *plain = NULL;
	bool		isnull;

	row_key(&scankey, 1, F_INT4EQ, Int32GetDatum(id));
	rows_begin(&scan, "archive_dictionary", "archive_dictionary_pkey", 1,
			   &scankey, true);
	tuple = rows_next(&scan);
	if (tuple != NULL)
	{
		data_key = DatumGetInt64(heap_getattr(tuple,
											  SPI_fnumber(scan.desc,
														  "data_key"),
											  scan.desc, &isnull));
		sealed = DatumGetByteaPCopy(heap_getattr(tuple,
												 SPI_fnumber(scan.desc,
															 "sealed"),
												 scan.desc, &isnull));
	}
	rows_end(&scan);

	if (sealed != NULL && VARSIZE_ANY_EXHDR(sealed) > CRYPTO_SEAL_OVERHEAD)
	{
		*len = VARSIZE_ANY_EXHDR(sealed) - CRYPTO_SEAL_OVERHEAD;
		plain = palloc(*len);
		data_key_open(data_key, DICTIONARY_PURPOSE, key);
		if (!crypto_open(key, DICTIONARY_PURPOSE, sizeof(DICTIONARY_PURPOSE),
						 (uint8 *) VARDATA_ANY(sealed),
						 VARSIZE_ANY_EXHDR(sealed), plain))
			plain = NULL;
		crypto_wipe(key, sizeof(key));
	}
	if (plain == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_ARCHIVE_CORRUPT),
				 errmsg("dictionary %d of archives is %s", id,
						sealed ? "damaged, or was tampered with" : "missing"),
				 errhint("Restore its row of mlint.archive_dictionary from a backup; archives that were made with it need it.")));
	return plain;
}

/* The place of this dictionary, filled or to be filled. */
static Ready *
find_ready(int32 id, int level)
{
	Ready	   *oldest = &ready[0];
	Oid			table = mlint_relation("archive_dictionary");

	for (int i = 0; i < MAX_READY; i++)
	{
		if (ready[i].id == id && ready[i].level == level &&
			ready[i].table == table)
		{
			ready[i].used = ++uses;
			return &ready[i];
		}
		if (ready[i].used < oldest->used)
			oldest = &ready[i];
	}
	ZSTD_freeCDict(oldest->writing);
	ZSTD_freeDDict(oldest->reading);
	memset(oldest, 0, sizeof(*oldest));
	oldest->table = table;
	return oldest;
}

static void
fill_ready(Ready *place, int32 id, int level)
{
	size_t		len;
	char	   *plain = open_dictionary(id, &len);

	if (level != 0)
		place->writing = ZSTD_createCDict(plain, len,
										  DICTIONARY_LEVEL(level));
	else
		place->reading = ZSTD_createDDict(plain, len);
	pfree(plain);
	if (place->writing == NULL && place->reading == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("zstd could not get what it needs for a dictionary.")));
	place->id = id;
	place->level = level;
	place->used = ++uses;
}

const		ZSTD_CDict *
dictionary_for_writing(int32 id, int level)
{
	Ready	   *place = find_ready(id, level);

	if (place->id == 0)
		fill_ready(place, id, level);
	return place->writing;
}

const		ZSTD_DDict *
dictionary_for_reading(int32 id)
{
	Ready	   *place = find_ready(id, 0);

	if (place->id == 0)
		fill_ready(place, id, 0);
	return place->reading;
}
