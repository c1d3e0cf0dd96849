/*
 * erasure_key.h
 *		The erasure key file: keys by number, of which each can be destroyed.
 *
 * The keys are the leaves of a binary tree in which each node is derived from
 * the one above (a puncturable pseudorandom function: Goldreich, Goldwasser,
 * Micali 1986; Boneh, Waters 2013). The file holds the nodes from which the
 * living leaves can be derived, at first only the root. To destroy a leaf its
 * ancestors are replaced by what hangs beside the path to it; nobody can then
 * derive it, and all others can be. Neighbours that are destroyed cost no
 * more than one.
 *
 * The file is mlint.erasure_key_file, "mlint_erasure.key" in the data directory
 * unless set. There backups copy it, and what they hold can be read with what
 * they hold: put it elsewhere, beside the master key, and destruction reaches
 * backups and archived WAL. It is made by the first use, and is as precious as
 * the master key.
 */
#ifndef MLINT_ERASURE_KEY_H
#define MLINT_ERASURE_KEY_H

#include "common/crypto.h"

#define ERASURE_ID_BYTES	16

/* What is known of the file. */
typedef struct ErasureKeyFile
{
	uint8		tree[ERASURE_ID_BYTES]; /* which tree it is; never changes */
	uint8		revision[ERASURE_ID_BYTES]; /* another one with each change */
	int64		bytes;
} ErasureKeyFile;

extern void erasure_key_define_settings(void);

/*
 * Look at the file. Raises ERRCODE_MLINT_MASTER_KEY when it is missing or
 * damaged, saying what to do; with may_make, which says that nothing in this
 * database needs one yet, one that is missing is made.
 */
extern void erasure_key_look(bool may_make, ErasureKeyFile *file);

/*
 * The key of a leaf (0 and up), into 32 bytes that the caller wipes. False: it
 * was destroyed. Raises ERRCODE_MLINT_MASTER_KEY also when the file is of
 * another tree.
 */
extern bool erasure_key_leaf(const uint8 *tree, int64 leaf,
							 uint8 key[CRYPTO_KEY_BYTES]);

/* Only whether it could be derived. */
extern bool erasure_key_living(const uint8 *tree, int64 leaf);

/*
 * Destroy leaves; done, and on disk, when it returns. Those that are destroyed
 * already cost nothing. The file is replaced as a whole and the old one
 * overwritten, under a lock that all databases share. The revisions are that
 * which was found and that which is left.
 */
extern void erasure_key_destroy(const uint8 *tree, int64 *leaves, int n,
								uint8 found[ERASURE_ID_BYTES],
								uint8 left[ERASURE_ID_BYTES]);

/* Where the file is, for messages and the view. */
extern const char *erasure_key_source(void);

/* Does it lie in the data directory, so that backups have it? */
extern bool erasure_key_in_data_directory(void);

#endif
