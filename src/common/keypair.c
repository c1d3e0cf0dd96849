/*
 * keypair.c
 *		New key pairs, on OpenSSL.
 *
 * The private key is written to a BIO of secure memory, so that OpenSSL's copy
 * is wiped; its objects are freed before any error.
 */
#include "postgres.h"

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>

#include "common/bio.h"
#include "common/crypto.h"
#include "common/keypair.h"
#include "miscadmin.h"

/* OpenSSL asks between candidates whether it is to go on. */
static int
not_interrupted(EVP_PKEY_CTX *ctx)
{
	return !ProcDiePending && !QueryCancelPending;
}

/* NULL if interrupted. */
static EVP_PKEY *
generate_rsa(int bits)
{
	EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
	EVP_PKEY   *pair = NULL;

	if (ctx && EVP_PKEY_keygen_init(ctx) == 1 &&
		EVP_PKEY_CTX_set_rsa_keygen_bits(ctx, bits) == 1)
	{
		EVP_PKEY_CTX_set_cb(ctx, not_interrupted);
		if (EVP_PKEY_generate(ctx, &pair) != 1)
			pair = NULL;
	}
	EVP_PKEY_CTX_free(ctx);
	return pair;
}

static EVP_PKEY *
generate(const char *algorithm, int bits, const char *curve)
{
	if (strcmp(algorithm, "RSA") == 0)
		return generate_rsa(bits);
	if (strcmp(algorithm, "EC") == 0)
		return EVP_EC_gen(curve);
	return EVP_PKEY_Q_keygen(NULL, NULL, algorithm);
}

void
keypair_generate(const char *algorithm, int bits, const char *curve,
				 KeyPair *out)
{
	EVP_PKEY   *pair = generate(algorithm, bits, curve);
	BIO		   *private = BIO_new(BIO_s_secmem());
	BIO		   *public = BIO_new(BIO_s_mem());
	size_t		public_len;

	memset(out, 0, sizeof(*out));
	if (pair && private && public &&
		PEM_write_bio_PKCS8PrivateKey(private, pair, NULL, NULL, 0, NULL,
									  NULL) == 1 &&
		PEM_write_bio_PUBKEY(public, pair) == 1)
	{
		out->public_key = bio_text(public, &public_len);
		out->private_key = bio_text(private, &out->private_len);
	}
	EVP_PKEY_free(pair);
	BIO_free(private);
	BIO_free(public);
	ERR_clear_error();
	if (out->private_key == NULL || out->public_key == NULL)
	{
		crypto_wipe(out->private_key, out->private_len);
		CHECK_FOR_INTERRUPTS();
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("OpenSSL could not generate a key pair of kind \"%s\"",
						algorithm)));
	}
}
