/*
 * chunk.h
 *		The bytes of an archive: a stream in, a stream out, in bounded memory.
 *
 * The stored form is the document, compressed (or not), cut into chunks of
 * CHUNK_BYTES, the last one shorter, each sealed (or not) under the archive's
 * data key with the archive's id, the chunk's number and whether it is the last
 * as additional data. So chunk n of an object in a store is at n * CHUNK_BYTES,
 * when sealed at n * (CHUNK_BYTES + CRYPTO_SEAL_OVERHEAD), and no chunk can be
 * exchanged, dropped or added.
 */
#ifndef MLINT_ARCHIVE_CHUNK_H
#define MLINT_ARCHIVE_CHUNK_H

#include "common/compat.h"
#include "common/crypto.h"
#include "utils/uuid.h"

#define CHUNK_BYTES		(1024 * 1024)

/* How the bytes of one archive are kept: columns of mlint.archive. */
typedef struct ArchiveForm
{
	pg_uuid_t	id;
	int64		data_key;		/* 0: not encrypted */
	int			level;			/* zstd; 0: not compressed */
	int32		dictionary;		/* mlint.archive_dictionary; 0: none */
	int64		plain_bytes;
	int64		stored_bytes;
	int			chunks;
	uint8		sha256[CRYPTO_SHA256_BYTES];	/* of the document */
	int32		store;			/* mlint.archive_store; 0: the database */
} ArchiveForm;

/*
 * Write: chunk_writer_begin() takes id, level and dictionary from the form; with
 * encrypt it makes a data key, whose id goes into the form. The bytes are
 * inserted into mlint.archive_chunk as they come; end fills in the rest of the
 * form. One at a time in a process; what it holds ends with the transaction.
 */
typedef struct ChunkWriter ChunkWriter;

extern ChunkWriter *chunk_writer_begin(ArchiveForm *form, bool encrypt);
extern void chunk_write(ChunkWriter *writer, const void *data, size_t len);
extern void chunk_writer_end(ChunkWriter *writer);

/*
 * Read, as the active snapshot sees it: calls take() with pieces of the
 * document, in order, each valid during the call. Raises
 * ERRCODE_MLINT_ARCHIVE_CORRUPT when a chunk does not open, and at the end when
 * length or digest differ: what was taken until then must not be used.
 */
typedef void (*ChunkTake) (const char *data, size_t len, void *arg);

extern void chunk_read(const ArchiveForm *form, ChunkTake take, void *arg);

/* ERRCODE_MLINT_ARCHIVE_CORRUPT; detail is a sentence. */
extern void pg_attribute_noreturn() chunk_corrupt(const ArchiveForm *form,
												  const char *detail);

#endif
