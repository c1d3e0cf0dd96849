/*
 * keypair.h
 *		New key pairs.
 */
#ifndef MLINT_KEYPAIR_H
#define MLINT_KEYPAIR_H

typedef struct KeyPair
{
	char	   *private_key;	/* PKCS #8 PEM, palloc'd; the caller wipes it */
	size_t		private_len;
	char	   *public_key;		/* SubjectPublicKeyInfo, PEM */
} KeyPair;

/*
 * Generate one: "RSA" of so many bits, "EC" on a named curve ("P-256", ...),
 * "ED25519". A large RSA key takes seconds, and cancel works meanwhile.
 */
extern void keypair_generate(const char *algorithm, int bits,
							 const char *curve, KeyPair *out);

#endif
