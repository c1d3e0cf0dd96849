/*
 * keyrow.h
 *		The rows of mlint.wrapping_key, and data keys under master keys.
 */
#ifndef MLINT_KEYROW_H
#define MLINT_KEYROW_H

#include "common/crypto.h"
#include "secrets/secrets.h"

/* What a seal is for. */
#define SEAL_DATA_KEY	"mlint secret data key"
#define SEAL_VALUE		"mlint secret value"

/* The additional data of a seal. */
typedef struct SealContext
{
	char		data[64 + SECRET_NAME_MAX];
	size_t		len;
} SealContext;

extern void keyrow_init(void);

/* purpose, a zero, the store's identity, the version in network order, name */
extern SealContext seal_context(const char *purpose, const char *name,
								int version);

/*
 * The id of the key to seal with. The first one to be used in a database gets
 * its row here. In an owner scope; raises ERRCODE_MLINT_MASTER_KEY.
 */
extern int	key_row_current(void);

/*
 * Unwrap a data key into 32 bytes that the caller wipes, or wrap one in a
 * palloc'd bytea. Unwrapping is false for what was not wrapped so. Both raise
 * ERRCODE_MLINT_MASTER_KEY when the master key is not at hand.
 */
extern bool data_key_unwrap(const char *name, int version, int key_id,
							bytea *wrapped, uint8 *data_key);
extern bytea *data_key_wrap(const char *name, int version, int key_id,
							const uint8 *data_key);

#endif
