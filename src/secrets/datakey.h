/*
 * datakey.h
 *		Data keys for other rooms, which can be destroyed for good.
 *
 * A data key is a row of mlint.data_key: random bytes wrapped with the master
 * key, as those of secrets are, and rewrapped with them when that changes. The
 * key itself is derived from those bytes and from a leaf of the erasure key
 * file (erasure_key.h), which is not in the database, its WAL or its backups. A
 * key that is destroyed is cut out of that file too, so that no copy of the
 * row, wherever it lies, opens anything any more; every other key stays.
 *
 * What was destroyed stays in mlint.data_key_destroyed (id, destroyed_at,
 * erased_at: when it was cut out of the file; null: not yet), which other rooms
 * may join. Whether that reaches backups erasure_key_in_data_directory() says.
 */
#ifndef MLINT_DATAKEY_H
#define MLINT_DATAKEY_H

#include "common/crypto.h"

/*
 * A new key, into 32 bytes that the caller wipes. "purpose" separates the
 * rooms' keys: one does not open as another's; 100 characters at most. Returns
 * its id. Raises ERRCODE_MLINT_MASTER_KEY.
 */
extern int64 data_key_create(const char *purpose,
							 uint8 key[CRYPTO_KEY_BYTES]);

/*
 * Raises ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE when it was destroyed,
 * ERRCODE_MLINT_MASTER_KEY when a key that it needs is not at hand,
 * ERRCODE_MLINT_SECRET_CORRUPT when its row is damaged or of another purpose.
 */
extern void data_key_open(int64 id, const char *purpose,
						  uint8 key[CRYPTO_KEY_BYTES]);

/*
 * Destroy it with the commit of this transaction: the row goes, and the job
 * data_key_erase cuts the leaf. Nothing happens if it rolls back, nor if it is
 * destroyed already.
 */
extern void data_key_destroy(int64 id);

#endif
