/*
 * dictionary.h
 *		What many sessions have in common, known to zstd beforehand.
 *
 * A dictionary is a row of mlint.archive_dictionary, sealed under a data key of
 * its own. It never changes, and stays as long as an archive needs it.
 */
#ifndef MLINT_ARCHIVE_DICTIONARY_H
#define MLINT_ARCHIVE_DICTIONARY_H

#include <zstd.h>

/* Called once by archive_init(). */
extern void dictionary_init(void);

/* The one for new archives; 0: none. */
extern int32 dictionary_current(void);

/*
 * As zstd wants it, kept in this process and valid until the transaction ends.
 * Raises ERRCODE_MLINT_ARCHIVE_CORRUPT when it does not open.
 */
extern const ZSTD_CDict *dictionary_for_writing(int32 id, int level);
extern const ZSTD_DDict *dictionary_for_reading(int32 id);

/*
 * The level that a dictionary is prepared for. The tables of lower ones do not
 * hold the places of half a megabyte.
 */
#define DICTIONARY_LEVEL(level)	Max(level, 4)

/* Of mlint.archive_dictionary.sealed. */
#define DICTIONARY_PURPOSE	"archive dictionary"

#endif
