/*
 * signature.h
 *		Signatures of webhooks: Standard Webhooks, and the hub's older form.
 *
 * Standard Webhooks (https://www.standardwebhooks.com) signs
 * "id.timestamp.body", so that a receiver can refuse what is old; a secret
 * "whsec_<base64>" stands for the bytes that it encodes, any other for itself.
 * The hub form signs the body alone, under the secret's bytes as they are.
 *
 * A SigningKey is made once from a secret, and then signs without touching the
 * secret again. Nothing here allocates once the key is made, and the signing
 * functions never raise: false means that OpenSSL failed.
 */
#ifndef MLINT_SIGNATURE_H
#define MLINT_SIGNATURE_H

typedef struct SigningKey SigningKey;

/* Room for one signature of each form, terminator included. */
#define SIGNATURE_STANDARD_BYTES	48	/* "v1,", 44 of base64 */
#define SIGNATURE_HUB_BYTES			72	/* "sha256=", 64 of hex */

/*
 * Raises ERRCODE_MLINT_CONFIGURATION for an empty secret and for one that
 * begins with "whsec_" but is not base64 after that. The caller wipes the
 * secret, and gives the key back to signing_key_free(), which wipes it; it
 * lies outside palloc and survives errors and transactions.
 */
extern SigningKey *signing_key_create(const char *secret, size_t len);
extern void signing_key_free(SigningKey *key);

/*
 * The value of webhook-signature: one signature for each key (several while
 * secrets are being rotated), separated by spaces. out has room for n times
 * SIGNATURE_STANDARD_BYTES. timestamp is in seconds since 1970.
 */
extern bool signature_standard(SigningKey *const *keys, int n,
							   const char *id, size_t id_len,
							   int64 timestamp,
							   const void *body, size_t body_len, char *out);

/* The value of X-Webhook-Signature; out has SIGNATURE_HUB_BYTES. */
extern bool signature_hub(SigningKey *key, const void *body, size_t body_len,
						  char *out);

#endif
