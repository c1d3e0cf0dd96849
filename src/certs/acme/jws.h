/*
 * jws.h
 *		What we sign for an authority: JWS (RFC 7515) as RFC 8555, 6.2 wants it.
 *
 * Account keys are P-256, signatures ES256. Texts are palloc'd in the current
 * context; a key is freed with the context it was opened in.
 */
#ifndef MLINT_ACME_JWS_H
#define MLINT_ACME_JWS_H

typedef struct JwsKey JwsKey;

/* A new account key, PKCS #8 PEM, for the caller to wipe. */
extern char *jws_key_generate(size_t *len);

/* Raises when this is no P-256 key in PEM. */
extern JwsKey *jws_key_open(const char *pem, size_t len);

/*
 * A request's body. kid is the account's URL; NULL: the key itself is sent.
 * payload is JSON; "": this is a POST-as-GET. nonce NULL: none (an inner JWS).
 */
extern char *jws_sign(const JwsKey *key, const char *kid, const char *nonce,
					  const char *url, const char *payload);

/* The externalAccountBinding of a key (RFC 8555, 7.3.4); hmac is raw. */
extern char *jws_binding(const JwsKey *key, const char *kid,
						 const uint8 *hmac, size_t hmac_len, const char *url);

/* The payload of a key change (RFC 8555, 7.3.5), signed by the new key. */
extern char *jws_key_change(const JwsKey *old_key, const JwsKey *new_key,
							const char *account_url, const char *url);

/* RFC 7638. */
extern char *jws_thumbprint(const JwsKey *key);

/* base64url without padding. */
extern char *jws_base64url(const void *data, size_t len);

/* Its bytes, with or without padding; NULL: it is none. */
extern uint8 *jws_unbase64url(const char *text, size_t *len);

#endif
