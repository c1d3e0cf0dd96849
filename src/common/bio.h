/*
 * bio.h
 *		What OpenSSL has written, as memory of ours.
 */
#ifndef MLINT_BIO_H
#define MLINT_BIO_H

#include <openssl/bio.h>

/*
 * What a memory BIO holds, palloc'd and terminated; NULL if there is not the
 * memory, so that the caller can free the rest before it raises.
 */
extern char *bio_text(BIO *bio, size_t *len);

#endif
