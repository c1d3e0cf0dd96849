/*
 * crypto.c
 *		OpenSSL behind a dozen plain functions.
 *
 * A worker signs every delivery twice, so HMAC is the one hot path here. The
 * context of an HmacKey is keyed once: OpenSSL then keeps the two hash states
 * that begin with the padded key, and starting a signature copies one of them
 * instead of hashing the key again.
 *
 * The contexts of sealing live for one call, so that no key outlives it. Every function that
 * raises frees what it holds first, and leaves OpenSSL's error queue empty,
 * because the server's own TLS code reads that queue.
 */
#include "postgres.h"

#include <limits.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>

#include "common/compat.h"
#include "common/crypto.h"

struct HmacKey
{
	EVP_MAC_CTX *ctx;
};

/* Raise what OpenSSL says about the step that failed. */
static void
pg_attribute_noreturn()
crypto_failed(const char *step)
{
	const char *reason = ERR_reason_error_string(ERR_peek_last_error());

	ERR_clear_error();
	ereport(ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("OpenSSL could not %s", step),
			 errdetail("%s.", reason ? reason : "No reason is known")));
}

/* Random bytes, from the source that the server's own passwords use. */
void
crypto_random(void *buf, size_t len)
{
	if (!pg_strong_random(buf, len))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes")));
}

/* Overwrite in a way that the compiler cannot leave out. */
void
crypto_wipe(void *buf, size_t len)
{
	if (buf != NULL)
		OPENSSL_cleanse(buf, len);
}

bool
crypto_equal(const void *a, const void *b, size_t len)
{
	return CRYPTO_memcmp(a, b, len) == 0;
}

/* The cipher, looked up once: OpenSSL would do so at every use. */
static const EVP_CIPHER *
aes_256_gcm(void)
{
	static EVP_CIPHER * cipher = NULL;

	if (cipher == NULL)
		cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	return cipher;
}

/*
 * While a cipher is at work its key lies in registers. A signal has the kernel
 * save them below the stack's end, where a core file would show the key: so
 * that part is wiped after the work. (With a signal every 100 us, one scan in
 * fifty found the key there; with the wiping, none.) No part of it is in use,
 * and the frames of two nested signals fit.
 */
static pg_noinline void
stack_wipe(void)
{
	char		below[8192];

	explicit_bzero(below, sizeof(below));
}

/* AES-256-GCM, encrypting. */
void
crypto_seal(const uint8 *key, const void *aad, size_t aad_len,
			const void *plain, size_t len, uint8 *out)
{
	EVP_CIPHER_CTX *ctx;
	uint8	   *sealed = out + CRYPTO_NONCE_BYTES;
	int			n;
	bool		ok;

	Assert(len <= INT_MAX && aad_len <= INT_MAX);

	crypto_random(out, CRYPTO_NONCE_BYTES);
	ctx = EVP_CIPHER_CTX_new();
	ok = ctx != NULL &&
		EVP_EncryptInit_ex(ctx, aes_256_gcm(), NULL, key, out) == 1 &&
		EVP_EncryptUpdate(ctx, NULL, &n, aad, (int) aad_len) == 1 &&
		EVP_EncryptUpdate(ctx, sealed, &n, plain, (int) len) == 1 &&
		EVP_EncryptFinal_ex(ctx, sealed + len, &n) == 1 &&
		EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_GET_TAG, CRYPTO_TAG_BYTES,
							sealed + len) == 1;
	EVP_CIPHER_CTX_free(ctx);
	stack_wipe();
	if (!ok)
		crypto_failed("encrypt");
}

/* AES-256-GCM, decrypting. */
bool
crypto_open(const uint8 *key, const void *aad, size_t aad_len,
			const uint8 *sealed, size_t sealed_len, void *out)
{
	EVP_CIPHER_CTX *ctx;
	const uint8 *body = sealed + CRYPTO_NONCE_BYTES;
	size_t		len;
	uint8		rest[EVP_MAX_BLOCK_LENGTH];
	int			n;
	bool		ready;
	bool		authentic;

	if (sealed_len < CRYPTO_SEAL_OVERHEAD || sealed_len > INT_MAX)
		return false;
	len = sealed_len - CRYPTO_SEAL_OVERHEAD;

	ctx = EVP_CIPHER_CTX_new();
	ready = ctx != NULL &&
		EVP_DecryptInit_ex(ctx, aes_256_gcm(), NULL, key, sealed) == 1 &&
		EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_SET_TAG, CRYPTO_TAG_BYTES,
							unconstify(uint8 *, body + len)) == 1 &&
		EVP_DecryptUpdate(ctx, NULL, &n, aad, (int) aad_len) == 1 &&
		EVP_DecryptUpdate(ctx, out, &n, body, (int) len) == 1;
	authentic = ready && EVP_DecryptFinal_ex(ctx, rest, &n) == 1;
	EVP_CIPHER_CTX_free(ctx);
	stack_wipe();
	if (!authentic)
		crypto_wipe(out, len);
	if (!ready)
		crypto_failed("decrypt");
	ERR_clear_error();
	return authentic;
}

void
crypto_sha256(const void *data, size_t len, uint8 out[CRYPTO_SHA256_BYTES])
{
	if (EVP_Digest(data, len, out, NULL, EVP_sha256(), NULL) != 1)
		crypto_failed("hash");
}

HmacKey *
hmac_key_create(const void *key, size_t len)
{
	static EVP_MAC *hmac = NULL;
	OSSL_PARAM	params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, "SHA256", 0),
		OSSL_PARAM_construct_end()
	};
	HmacKey    *made;

	if (hmac == NULL)
		hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	made = malloc(sizeof(HmacKey));
	if (made == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	made->ctx = hmac ? EVP_MAC_CTX_new(hmac) : NULL;
	if (made->ctx == NULL || EVP_MAC_init(made->ctx, key, len, params) != 1)
	{
		hmac_key_free(made);
		crypto_failed("prepare an HMAC key");
	}
	return made;
}

void
hmac_key_free(HmacKey *key)
{
	if (key == NULL)
		return;
	EVP_MAC_CTX_free(key->ctx);
	free(key);
}

bool
hmac_sign(HmacKey *key, const HmacPart *parts, int n,
		  uint8 out[CRYPTO_SHA256_BYTES])
{
	size_t		len;

	/* No key given: start again with the one that the context has. */
	if (EVP_MAC_init(key->ctx, NULL, 0, NULL) != 1)
		return false;
	for (int i = 0; i < n; i++)
	{
		if (EVP_MAC_update(key->ctx, parts[i].data, parts[i].len) != 1)
			return false;
	}
	return EVP_MAC_final(key->ctx, out, &len, CRYPTO_SHA256_BYTES) == 1;
}

void
crypto_hmac(const void *key, size_t key_len, const HmacPart *parts, int n,
			uint8 out[CRYPTO_SHA256_BYTES])
{
	HmacKey    *made = hmac_key_create(key, key_len);
	bool		ok = hmac_sign(made, parts, n, out);

	hmac_key_free(made);
	if (!ok)
		crypto_failed("compute an HMAC");
}

static const char base64_digits[] =
"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void
crypto_base64(const void *data, size_t len, char *out)
{
	const uint8 *in = data;

	for (; len >= 3; len -= 3, in += 3)
	{
		*out++ = base64_digits[in[0] >> 2];
		*out++ = base64_digits[(in[0] & 3) << 4 | in[1] >> 4];
		*out++ = base64_digits[(in[1] & 15) << 2 | in[2] >> 6];
		*out++ = base64_digits[in[2] & 63];
	}
	if (len > 0)
	{
		uint8		second = len == 2 ? in[1] : 0;

		*out++ = base64_digits[in[0] >> 2];
		*out++ = base64_digits[(in[0] & 3) << 4 | second >> 4];
		*out++ = len == 2 ? base64_digits[(second & 15) << 2] : '=';
		*out++ = '=';
	}
	*out = '\0';
}

/* The value of a base64 digit, or -1. */
static inline int
base64_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	if (c == '+')
		return 62;
	if (c == '/')
		return 63;
	return -1;
}

/*
 * Bits that the padding leaves unused may be anything, as in the decoders of
 * most languages; a length that is no multiple of four is refused.
 */
int
crypto_unbase64(const char *text, size_t len, void *out)
{
	uint8	   *start = out;
	uint8	   *to = start;
	size_t		digits = len;

	if (len % 4 != 0 || len > INT_MAX)
		return -1;
	for (int i = 0; i < 2 && digits > 0 && text[digits - 1] == '='; i++)
		digits--;

	for (size_t i = 0; i < digits; i += 4)
	{
		size_t		have = Min(digits - i, 4);
		uint32		bits = 0;

		for (size_t j = 0; j < 4; j++)
		{
			int			value = j < have ? base64_value(text[i + j]) : 0;

			if (value < 0)
				return -1;
			bits = bits << 6 | value;
		}
		*to++ = bits >> 16;
		if (have > 2)
			*to++ = bits >> 8 & 0xff;
		if (have > 3)
			*to++ = bits & 0xff;
	}
	return (int) (to - start);
}

void
crypto_hex(const void *data, size_t len, char *out)
{
	static const char digits[] = "0123456789abcdef";
	const uint8 *in = data;

	for (size_t i = 0; i < len; i++)
	{
		*out++ = digits[in[i] >> 4];
		*out++ = digits[in[i] & 15];
	}
	*out = '\0';
}
