/*
 * keyrow.h
 *		The rows of mlint.wrapping_key, and other keys under master keys.
 */
#ifndef MLINT_KEYROW_H
#define MLINT_KEYROW_H

#include "common/crypto.h"
#include "secrets/secrets.h"

/* What a seal is for. */
#define SEAL_SECRET_KEY	"mlint secret data key"
#define SEAL_VALUE		"mlint secret value"
#define SEAL_DATA_KEY	"mlint data key"

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

/* What tells this database's store from others; a copy has the same. */
extern void key_store(uint8 id[16]);

/*
 * Unwrap a key into 32 bytes that the caller wipes, or wrap one in a palloc'd
 * bytea. Unwrapping is false for what was not wrapped so. Both raise
 * ERRCODE_MLINT_MASTER_KEY when the master key is not at hand.
 */
extern bool key_unwrap(const SealContext *context, int key_id, bytea *wrapped,
					   uint8 *key);
extern bytea *key_wrap(const SealContext *context, int key_id,
					   const uint8 *key);

/*
 * Can what a master key wraps be opened? For those who rewrap: where one key is
 * lost the rest is done all the same. asked, false at first, keeps the source
 * from being asked again and again.
 */
extern bool key_opens(int key_id, bool *asked);

#endif
