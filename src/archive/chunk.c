/*
 * chunk.c
 *		The bytes of an archive; see chunk.h.
 *
 * Writing: digest, compress, seal, insert. Up to 1 MiB of document is
 * gathered before anything is compressed. Most documents end before that, and
 * zstd, which then knows the size, does them in one go with tables of a fitting
 * size; longer ones become a stream. Its window and tables are limited, so that
 * a high level takes time and not memory.
 *
 * A chunk is sealed only when there are more bytes than it can hold, or there
 * are none any more: only then is it known whether it is the last one.
 *
 * zstd's contexts and the buffers are made once in a transaction, for all the
 * archives that it writes or reads, and end with it, however it ends.
 */
#include "postgres.h"

#include <zstd.h>

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "archive/chunk.h"
#include "archive/dictionary.h"
#include "archive/store.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/rows.h"
#include "secrets/datakey.h"

#define PURPOSE			"archive"
#define SEAL_PURPOSE	"mlint archive"

/*
 * 2 MiB of window and 8 MiB of tables at most. Levels below LARGE_LEVEL have no
 * more by themselves.
 */
#define LARGE_LEVEL		9
#define WINDOW_LOG		21
#define WINDOW_LOG_READ	23		/* a dictionary's own may be larger */
#define TABLE_LOG		20

#define ATTR_ARCHIVE	1		/* of mlint.archive_chunk */
#define ATTR_N			2
#define ATTR_BYTES		3
#define CHUNK_NATTS		3

/* What is made once in a transaction. */
typedef struct Bench
{
	ZSTD_CCtx  *compress;
	ZSTD_DCtx  *decompress;
	uint8		key[CRYPTO_KEY_BYTES];
	char	   *plain;			/* CHUNK_BYTES of document */
	char	   *chunk;			/* CHUNK_BYTES to be sealed */
	char	   *sealed;			/* a bytea with a sealed chunk */
} Bench;

struct ChunkWriter
{
	ArchiveForm *form;
	pg_cryptohash_ctx *hash;
	Relation	relation;
	CatalogIndexState indexes;
	size_t		plain_used;
	size_t		chunk_used;
};

/* The additional data of a chunk's seal. */
typedef struct ChunkContext
{
	char		purpose[sizeof(SEAL_PURPOSE)];
	pg_uuid_t	archive;
	uint8		n[4];
	uint8		last;
} ChunkContext;

static Bench *bench = NULL;

/* ---- what a transaction's archives share ---- */

static void
bench_end(void *arg)
{
	ZSTD_freeCCtx(bench->compress);
	ZSTD_freeDCtx(bench->decompress);
	crypto_wipe(bench->key, sizeof(bench->key));
	bench = NULL;
}

static void
bench_begin(void)
{
	MemoryContextCallback *end;

	if (bench)
		return;
	end = MemoryContextAlloc(TopTransactionContext,
							 sizeof(MemoryContextCallback));
	end->func = bench_end;
	end->arg = NULL;
	bench = MemoryContextAllocZero(TopTransactionContext, sizeof(Bench));
	MemoryContextRegisterResetCallback(TopTransactionContext, end);
	bench->plain = MemoryContextAlloc(TopTransactionContext, CHUNK_BYTES);
	bench->chunk = MemoryContextAlloc(TopTransactionContext, CHUNK_BYTES);
	bench->sealed = MemoryContextAlloc(TopTransactionContext, VARHDRSZ +
									   CHUNK_BYTES + CRYPTO_SEAL_OVERHEAD);
}

static void
pg_attribute_noreturn()
out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("out of memory"),
			 errdetail("zstd could not get what it needs.")));
}

static size_t
zstd_done(size_t result)
{
	if (ZSTD_isError(result))
		elog(ERROR, "zstd failed: %s", ZSTD_getErrorName(result));
	return result;
}

static void
compress_begin(const ArchiveForm *form)
{
	ZSTD_CCtx  *c;

	if (bench->compress == NULL)
		bench->compress = ZSTD_createCCtx();
	c = bench->compress;
	if (c == NULL)
		out_of_memory();
	zstd_done(ZSTD_CCtx_reset(c, ZSTD_reset_session_and_parameters));
	zstd_done(ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel,
									 form->level));
	if (form->level >= LARGE_LEVEL)
	{
		zstd_done(ZSTD_CCtx_setParameter(c, ZSTD_c_windowLog, WINDOW_LOG));
		zstd_done(ZSTD_CCtx_setParameter(c, ZSTD_c_hashLog, TABLE_LOG));
		zstd_done(ZSTD_CCtx_setParameter(c, ZSTD_c_chainLog, TABLE_LOG));
	}
	if (form->dictionary != 0)
		zstd_done(ZSTD_CCtx_refCDict(c, dictionary_for_writing(form->dictionary,
															   form->level)));
}

static ChunkContext
chunk_context(const ArchiveForm *form, int n, bool last)
{
	ChunkContext context;
	uint32		number = pg_hton32((uint32) n);

	memset(&context, 0, sizeof(context));
	memcpy(context.purpose, SEAL_PURPOSE, sizeof(SEAL_PURPOSE));
	context.archive = form->id;
	memcpy(context.n, &number, sizeof(number));
	context.last = last;
	return context;
}

/* ---- writing ---- */

ChunkWriter *
chunk_writer_begin(ArchiveForm *form, bool encrypt)
{
	ChunkWriter *writer = palloc(sizeof(ChunkWriter));

	bench_begin();
	form->data_key = encrypt ? data_key_create(PURPOSE, bench->key) : 0;
	form->plain_bytes = 0;
	form->stored_bytes = 0;
	form->chunks = 0;
	form->store = 0;
	if (form->level != 0)
		compress_begin(form);
	writer->form = form;
	writer->plain_used = 0;
	writer->chunk_used = 0;
	writer->hash = pg_cryptohash_create(PG_SHA256);
	if (writer->hash == NULL || pg_cryptohash_init(writer->hash) < 0)
		elog(ERROR, "could not begin a digest");
	writer->relation = table_open(mlint_relation("archive_chunk"),
								  RowExclusiveLock);
	writer->indexes = CatalogOpenIndexes(writer->relation);
	return writer;
}

/* Seal what is in the chunk, and insert it. */
static void
chunk_flush(ChunkWriter *writer, bool last)
{
	ArchiveForm *form = writer->form;
	Datum		values[CHUNK_NATTS];
	bool		nulls[CHUNK_NATTS] = {0};
	HeapTuple	tuple;
	size_t		len = writer->chunk_used;

	CHECK_FOR_INTERRUPTS();
	if (form->data_key != 0)
	{
		ChunkContext context = chunk_context(form, form->chunks, last);

		crypto_seal(bench->key, &context, sizeof(context), bench->chunk, len,
					(uint8 *) VARDATA(bench->sealed));
		len += CRYPTO_SEAL_OVERHEAD;
	}
	else
		memcpy(VARDATA(bench->sealed), bench->chunk, len);
	SET_VARSIZE(bench->sealed, VARHDRSZ + len);

	values[ATTR_ARCHIVE - 1] = UUIDPGetDatum(&form->id);
	values[ATTR_N - 1] = Int32GetDatum(form->chunks);
	values[ATTR_BYTES - 1] = PointerGetDatum(bench->sealed);
	tuple = heap_form_tuple(RelationGetDescr(writer->relation), values, nulls);
	CatalogTupleInsertWithInfo(writer->relation, tuple, writer->indexes);
	heap_freetuple(tuple);
	form->chunks++;
	form->stored_bytes += len;
	writer->chunk_used = 0;
}

/* Bytes into the chunk, which is flushed before it would run over. */
static void
chunk_append(ChunkWriter *writer, const char *data, size_t len)
{
	while (len > 0)
	{
		size_t		n;

		if (writer->chunk_used == CHUNK_BYTES)
			chunk_flush(writer, false);
		n = Min(len, CHUNK_BYTES - writer->chunk_used);
		memcpy(bench->chunk + writer->chunk_used, data, n);
		writer->chunk_used += n;
		data += n;
		len -= n;
	}
}

/* Compress what was gathered. */
static void
plain_flush(ChunkWriter *writer, bool last)
{
	ZSTD_inBuffer in = {bench->plain, writer->plain_used, 0};
	size_t		left;

	writer->plain_used = 0;
	if (writer->form->level == 0)
	{
		chunk_append(writer, bench->plain, in.size);
		return;
	}
	do
	{
		ZSTD_outBuffer out = {bench->chunk, CHUNK_BYTES, 0};

		if (writer->chunk_used == CHUNK_BYTES)
			chunk_flush(writer, false);
		out.pos = writer->chunk_used;
		left = zstd_done(ZSTD_compressStream2(bench->compress, &out, &in,
											  last ? ZSTD_e_end :
											  ZSTD_e_continue));
		writer->chunk_used = out.pos;
	} while (last ? left != 0 : in.pos < in.size);
}

void
chunk_write(ChunkWriter *writer, const void *data, size_t len)
{
	const char *from = data;

	if (pg_cryptohash_update(writer->hash, data, len) < 0)
		elog(ERROR, "could not go on with a digest");
	writer->form->plain_bytes += len;
	while (len > 0)
	{
		size_t		n;

		if (writer->plain_used == CHUNK_BYTES)
			plain_flush(writer, false);
		n = Min(len, CHUNK_BYTES - writer->plain_used);
		memcpy(bench->plain + writer->plain_used, from, n);
		writer->plain_used += n;
		from += n;
		len -= n;
	}
}

void
chunk_writer_end(ChunkWriter *writer)
{
	plain_flush(writer, true);
	chunk_flush(writer, true);
	if (pg_cryptohash_final(writer->hash, writer->form->sha256,
							CRYPTO_SHA256_BYTES) < 0)
		elog(ERROR, "could not end a digest");
	pg_cryptohash_free(writer->hash);
	crypto_wipe(bench->key, sizeof(bench->key));
	CatalogCloseIndexes(writer->indexes);
	table_close(writer->relation, NoLock);
	pfree(writer);
}

/* ---- reading ---- */

typedef struct ChunkReader
{
	const ArchiveForm *form;
	ChunkTake	take;
	void	   *arg;
	pg_cryptohash_ctx *hash;
	int64		plain;
	int64		stored;
	bool		frame_ended;
} ChunkReader;

void
chunk_corrupt(const ArchiveForm *form, const char *detail)
{
	char	   *id = DatumGetCString(DirectFunctionCall1(uuid_out,
														 UUIDPGetDatum(&form->id)));

	ereport(ERROR,
			(errcode(ERRCODE_MLINT_ARCHIVE_CORRUPT),
			 errmsg("archive \"%s\" is damaged, or was tampered with", id),
			 errdetail("%s", detail),
			 errhint("Restore its rows of mlint.archive and mlint.archive_chunk, or its object in the store, from a backup.")));
}

/* A piece of the document. */
static void
give(ChunkReader *reader, const char *data, size_t len)
{
	if (len == 0)
		return;
	reader->plain += len;
	if (reader->plain > reader->form->plain_bytes)
		chunk_corrupt(reader->form, "It holds more than its row says.");
	if (pg_cryptohash_update(reader->hash, (const uint8 *) data, len) < 0)
		elog(ERROR, "could not go on with a digest");
	reader->take(data, len, reader->arg);
}

static void
expand(ChunkReader *reader, const char *data, size_t len)
{
	ZSTD_inBuffer in = {data, len, 0};
	ZSTD_outBuffer out = {bench->plain, CHUNK_BYTES, 0};

	/* What fills the buffer may have more behind it, without more input. */
	do
	{
		size_t		left;

		CHECK_FOR_INTERRUPTS();
		if (reader->frame_ended)
			chunk_corrupt(reader->form, "Something follows its end.");
		out.pos = 0;
		left = ZSTD_decompressStream(bench->decompress, &out, &in);
		if (ZSTD_isError(left))
			chunk_corrupt(reader->form, "It does not decompress.");
		give(reader, bench->plain, out.pos);
		reader->frame_ended = left == 0;
	} while (in.pos < in.size ||
			 (out.pos == CHUNK_BYTES && !reader->frame_ended));
}

/* One stored chunk. */
static void
open_chunk(ChunkReader *reader, int n, const char *data, size_t len)
{
	const ArchiveForm *form = reader->form;

	reader->stored += len;
	if (form->data_key != 0)
	{
		ChunkContext context = chunk_context(form, n, n == form->chunks - 1);

		if (len < CRYPTO_SEAL_OVERHEAD ||
			len > CHUNK_BYTES + CRYPTO_SEAL_OVERHEAD ||
			!crypto_open(bench->key, &context, sizeof(context),
						 (const uint8 *) data, len, bench->chunk))
			chunk_corrupt(form, psprintf("Chunk %d of %d does not open with its key.",
										 n + 1, form->chunks));
		data = bench->chunk;
		len -= CRYPTO_SEAL_OVERHEAD;
	}
	if (form->level != 0)
		expand(reader, data, len);
	else
		give(reader, data, len);
}

static void
read_database(ChunkReader *reader)
{
	const ArchiveForm *form = reader->form;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "mlint archive chunk",
												  ALLOCSET_DEFAULT_SIZES);
	ScanKeyData key;
	RowScan		scan;
	HeapTuple	tuple;
	int			n = 0;

	row_key(&key, ATTR_ARCHIVE, F_UUID_EQ, UUIDPGetDatum(&form->id));
	rows_begin(&scan, "archive_chunk", "archive_chunk_pkey", 1, &key, false);
	while ((tuple = rows_next(&scan)) != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		bytea	   *bytes;
		bool		isnull;

		if (DatumGetInt32(heap_getattr(tuple, ATTR_N, scan.desc,
									   &isnull)) != n || n >= form->chunks)
			chunk_corrupt(form, "Its chunks are not numbered as its row says.");
		bytes = DatumGetByteaPP(heap_getattr(tuple, ATTR_BYTES, scan.desc,
											 &isnull));
		MemoryContextSwitchTo(old);
		open_chunk(reader, n, VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes));
		MemoryContextReset(context);
		n++;
	}
	rows_end(&scan);
	MemoryContextDelete(context);
	if (n != form->chunks)
		chunk_corrupt(form, psprintf("It has %d of its %d chunks.", n,
									 form->chunks));
}

static void
read_store(ChunkReader *reader)
{
	const ArchiveForm *form = reader->form;
	int64		unit = CHUNK_BYTES +
	(form->data_key != 0 ? CRYPTO_SEAL_OVERHEAD : 0);
	Store	   *store = store_open(form->store);

	if (form->stored_bytes <= (form->chunks - 1) * unit ||
		form->stored_bytes > form->chunks * unit)
		chunk_corrupt(form, "Its row has a number of chunks that does not go with its size.");
	for (int n = 0; n < form->chunks; n++)
	{
		int64		offset = n * unit;
		size_t		len = Min(unit, form->stored_bytes - offset);

		CHECK_FOR_INTERRUPTS();
		store_get(store, &form->id, offset, len, bench->sealed);
		open_chunk(reader, n, bench->sealed, len);
	}
}

void
chunk_read(const ArchiveForm *form, ChunkTake take, void *arg)
{
	ChunkReader reader = {.form = form,.take = take,.arg = arg};
	uint8		digest[CRYPTO_SHA256_BYTES];

	bench_begin();
	if (form->chunks < 1)
		chunk_corrupt(form, "Its row says that it has no chunks.");
	if (form->data_key != 0)
		data_key_open(form->data_key, PURPOSE, bench->key);
	if (form->level != 0)
	{
		if (bench->decompress == NULL)
			bench->decompress = ZSTD_createDCtx();
		if (bench->decompress == NULL)
			out_of_memory();
		zstd_done(ZSTD_DCtx_reset(bench->decompress,
								  ZSTD_reset_session_and_parameters));
		zstd_done(ZSTD_DCtx_setParameter(bench->decompress,
										 ZSTD_d_windowLogMax, WINDOW_LOG_READ));
		if (form->dictionary != 0)
			zstd_done(ZSTD_DCtx_refDDict(bench->decompress,
										 dictionary_for_reading(form->dictionary)));
	}
	reader.hash = pg_cryptohash_create(PG_SHA256);
	if (reader.hash == NULL || pg_cryptohash_init(reader.hash) < 0)
		elog(ERROR, "could not begin a digest");

	if (form->store != 0)
		read_store(&reader);
	else
		read_database(&reader);

	crypto_wipe(bench->key, sizeof(bench->key));
	if (pg_cryptohash_final(reader.hash, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not end a digest");
	pg_cryptohash_free(reader.hash);
	if (form->level != 0 && !reader.frame_ended)
		chunk_corrupt(form, "It ends too early.");
	if (reader.plain != form->plain_bytes ||
		reader.stored != form->stored_bytes)
		chunk_corrupt(form, "Its size is not what its row says.");
	if (!crypto_equal(digest, form->sha256, sizeof(digest)))
		chunk_corrupt(form, "Its SHA-256 is not what its row says.");
}
