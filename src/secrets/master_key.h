/*
 * master_key.h
 *		The keys that wrap all data keys: where they come from, and where they
 *		stay while a process uses them.
 *
 * Which key is which is known by a check value, an empty message sealed under
 * it, which lies in mlint.wrapping_key.
 */
#ifndef MLINT_MASTER_KEY_H
#define MLINT_MASTER_KEY_H

#include "common/crypto.h"

#define MASTER_KEY_CHECK_BYTES	CRYPTO_SEAL_OVERHEAD

/* Define mlint.master_key_command and mlint.master_key_file. */
extern void master_key_define_settings(void);

/*
 * The master key, in memory that this file owns; valid until the next call or
 * change of settings. With a check value it is the key that the check value
 * was made with, or ERRCODE_MLINT_MASTER_KEY. With NULL it is the first one
 * that there is: nothing has been sealed yet in this database, and a key may
 * be made if there is none.
 */
extern const uint8 *master_key_get(const uint8 *check);

/* Is that key in memory already? */
extern bool master_key_held(const uint8 *check);

/* Is it there, or does the source give it? Raises ERRCODE_MLINT_MASTER_KEY when there is none. */
extern bool master_key_available(const uint8 *check);

/*
 * A key that none of the check values was made with, to seal with from now
 * on. Raises ERRCODE_MLINT_MASTER_KEY when only the administrator can give
 * one and has not.
 */
extern const uint8 *master_key_next(const uint8 *const *checks, int n);

extern void master_key_make_check(const uint8 *key,
								  uint8 check[MASTER_KEY_CHECK_BYTES]);

/* Where the keys come from, for messages and the view. */
extern const char *master_key_source(void);
extern bool master_key_in_data_directory(void);

#endif
