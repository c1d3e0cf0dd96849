/*
 * key.c
 *		Private keys of certificates.
 *
 * A key is kept as PKCS #8 PEM, whoever made it. What is read may come from
 * anywhere: it must be whole (its two halves belong together), not encrypted,
 * and of a kind that servers and clients speak.
 */
#include "postgres.h"

#include <openssl/err.h>
#include <openssl/pem.h>

#include "certs/openssl.h"
#include "certs/x509.h"
#include "common/bio.h"
#include "common/errors.h"
#include "common/keypair.h"

/* Larger RSA keys are of no use, and signing with them takes seconds. */
#define RSA_MIN_BITS	2048
#define RSA_MAX_BITS	8192

static const struct
{
	const char *name;
	const char *algorithm;
	int			bits;
	const char *curve;
}			types[] =

{
	{"ec256", "EC", 0, "P-256"},
	{"ec384", "EC", 0, "P-384"},
	{"rsa2048", "RSA", 2048, NULL},
	{"rsa4096", "RSA", 4096, NULL}
};

char *
key_generate(const char *type)
{
	KeyPair		pair;

	for (int i = 0; i < lengthof(types); i++)
	{
		if (strcmp(types[i].name, type) == 0)
		{
			keypair_generate(types[i].algorithm, types[i].bits,
							 types[i].curve, &pair);
			return pair.private_key;
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("there is no type of key \"%s\"", type),
			 errhint("Types are ec256, ec384, rsa2048 and rsa4096.")));
	return NULL;				/* keep the compiler quiet */
}

/* Nobody is asked for a passphrase; that one was wanted is noted. */
static int
no_passphrase(char *buf, int size, int rwflag, void *asked)
{
	*(bool *) asked = true;
	return -1;
}

static EVP_PKEY *
load(const char *pem, bool *encrypted)
{
	BIO		   *in = BIO_new_mem_buf(pem, -1);
	EVP_PKEY   *key = in ? PEM_read_bio_PrivateKey(in, NULL, no_passphrase,
												   encrypted) : NULL;

	BIO_free(in);
	ERR_clear_error();
	return key;
}

EVP_PKEY *
key_load(const char *pem)
{
	bool		encrypted = false;

	return load(pem, &encrypted);
}

/* Do the two halves of the key belong together? */
static bool
key_is_whole(EVP_PKEY *key)
{
	EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
	bool		whole = ctx && EVP_PKEY_pairwise_check(ctx) == 1;

	EVP_PKEY_CTX_free(ctx);
	ERR_clear_error();
	return whole;
}

/* What is wrong with a key that could be read; NULL: nothing. */
static const char *
key_fault(EVP_PKEY *key)
{
	if (EVP_PKEY_is_a(key, "RSA"))
	{
		int			bits = EVP_PKEY_get_bits(key);

		if (bits < RSA_MIN_BITS || bits > RSA_MAX_BITS)
			return "an RSA key must have 2048 to 8192 bits";
	}
	else if (!EVP_PKEY_is_a(key, "EC") && !EVP_PKEY_is_a(key, "ED25519") &&
			 !EVP_PKEY_is_a(key, "ED448"))
		return "it is neither an RSA nor an elliptic curve key";
	return key_is_whole(key) ? NULL :
		"its private and its public half do not belong together";
}

char *
key_read(const char *pem, char **error)
{
	bool		encrypted = false;
	EVP_PKEY   *key = load(pem, &encrypted);
	BIO		   *out = BIO_new(BIO_s_secmem());
	const char *fault = key ? key_fault(key) : encrypted ?
	"it is encrypted" : "it is no private key in PEM";
	char	   *result = NULL;
	size_t		len;

	if (fault == NULL && out &&
		PEM_write_bio_PKCS8PrivateKey(out, key, NULL, NULL, 0, NULL,
									  NULL) == 1)
		result = bio_text(out, &len);
	EVP_PKEY_free(key);
	BIO_free(out);
	ERR_clear_error();
	if (result == NULL)
		*error = pstrdup(fault ? fault : "OpenSSL could not write it");
	return result;
}
