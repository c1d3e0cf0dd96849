/*
 * master_key.h
 *		The key that wraps all data keys: where it comes from, and where it
 *		stays while a process uses it.
 *
 * Which key is the right one is known by its check value, an empty message
 * sealed under it, which lies in mlint.master_key.
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
 * was made with, or ERRCODE_MLINT_MASTER_KEY. With NULL nothing has been
 * sealed yet in this database, and a key may be made if there is none.
 */
extern const uint8 *master_key_get(const uint8 *check);

extern void master_key_make_check(const uint8 *key,
								  uint8 check[MASTER_KEY_CHECK_BYTES]);

#endif
