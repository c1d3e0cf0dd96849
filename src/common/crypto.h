/*
 * crypto.h
 *		The few primitives that mlint needs, on OpenSSL.
 *
 * Nothing here invents cryptography: AES-256-GCM (NIST SP 800-38D), HMAC
 * (RFC 2104) with SHA-256, base64 (RFC 4648), random bytes from the operating
 * system. Key material belongs to the caller, who wipes it with crypto_wipe()
 * before freeing it. Failures of OpenSSL itself raise an ERROR, and no
 * OpenSSL object outlives one: each is freed before the ereport.
 */
#ifndef MLINT_CRYPTO_H
#define MLINT_CRYPTO_H

#define CRYPTO_KEY_BYTES		32	/* AES-256 key */
#define CRYPTO_NONCE_BYTES		12	/* GCM nonce */
#define CRYPTO_TAG_BYTES		16	/* GCM tag */
#define CRYPTO_SHA256_BYTES		32
/* What crypto_seal() adds to a plaintext: nonce in front, tag behind. */
#define CRYPTO_SEAL_OVERHEAD	(CRYPTO_NONCE_BYTES + CRYPTO_TAG_BYTES)

extern void crypto_random(void *buf, size_t len);
extern void crypto_wipe(void *buf, size_t len);

/* True when equal, in time that depends on len alone. */
extern bool crypto_equal(const void *a, const void *b, size_t len);

/*
 * Seal: nonce || ciphertext || tag into out, which has room for
 * len + CRYPTO_SEAL_OVERHEAD bytes. A fresh random nonce each time.
 */
extern void crypto_seal(const uint8 *key, const void *aad, size_t aad_len,
						const void *plain, size_t len, uint8 *out);

/*
 * Open what crypto_seal() made; sealed_len includes the overhead. False, with
 * out wiped, when it does not authenticate. out has room for sealed_len -
 * CRYPTO_SEAL_OVERHEAD bytes.
 */
extern bool crypto_open(const uint8 *key, const void *aad, size_t aad_len,
						const uint8 *sealed, size_t sealed_len, void *out);

extern void crypto_sha256(const void *data, size_t len,
						  uint8 out[CRYPTO_SHA256_BYTES]);

/*
 * HMAC-SHA-256 with a key that is used many times. The key schedule is kept,
 * so that a signature costs only the hashing. hmac_key_create() allocates
 * outside palloc: the owner calls hmac_key_free(), which wipes.
 */
typedef struct HmacKey HmacKey;

typedef struct HmacPart
{
	const void *data;
	size_t		len;
} HmacPart;

extern HmacKey *hmac_key_create(const void *key, size_t len);
extern void hmac_key_free(HmacKey *key);

/* The parts are hashed one after the other. Returns false if OpenSSL fails. */
extern bool hmac_sign(HmacKey *key, const HmacPart *parts, int n,
					  uint8 out[CRYPTO_SHA256_BYTES]);

/* Once, raising if OpenSSL fails. out may be the key. */
extern void crypto_hmac(const void *key, size_t key_len,
						const HmacPart *parts, int n,
						uint8 out[CRYPTO_SHA256_BYTES]);

/*
 * Base64 with padding. Encoding writes a terminated string and needs
 * CRYPTO_BASE64_BYTES(len); decoding returns the byte count, or -1 for
 * anything but valid base64, and needs 3 * len / 4 bytes.
 */
#define CRYPTO_BASE64_BYTES(len)	(((len) + 2) / 3 * 4 + 1)
extern void crypto_base64(const void *data, size_t len, char *out);
extern int	crypto_unbase64(const char *text, size_t len, void *out);

/* Lower-case hex, terminated; out has room for 2 * len + 1. */
extern void crypto_hex(const void *data, size_t len, char *out);

#endif
