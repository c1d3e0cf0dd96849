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

extern void erasure_key_define_settings(void);

/*
 * The key of a leaf (1 and up), into 32 bytes that the caller wipes. False: it
 * was destroyed. "root" is the identity of the tree that the leaf is of (16
 * bytes); with create, it is filled in, and a file is made when there is none and
 * the database has no leaf yet. Raises ERRCODE_MLINT_MASTER_KEY when the file is
 * missing, damaged or of another tree, saying what to do.
 */
extern bool erasure_key_leaf(uint8 root[16], bool create, int64 leaf,
							 uint8 key[CRYPTO_KEY_BYTES]);

/*
 * Destroy leaves; done, and on disk, when it returns. The file is replaced as
 * a whole, and the old one overwritten. Locks out other processes.
 */
extern void erasure_key_destroy(const uint8 root[16], const int64 *leaves,
								int n);

/* Does it lie in the data directory, so that backups have it? */
extern bool erasure_key_in_data_directory(void);

#endif
