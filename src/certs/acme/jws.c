/*
 * jws.c
 *		What we sign for an authority; see jws.h.
 *
 * JSON is written by hand: it is four members, in an order that RFC 7638
 * prescribes for a key anyway. OpenSSL signs in DER, and JWS wants the two
 * numbers side by side, 32 bytes each.
 *
 * OpenSSL's objects live within one function each, but for the key of a
 * JwsKey, which a memory-context callback frees.
 */
#include "postgres.h"

#include <openssl/core_names.h>
#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include "certs/acme/jws.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/keypair.h"
#include "lib/stringinfo.h"
#include "utils/json.h"
#include "utils/memutils.h"

#define COORDINATE_BYTES	32
#define SIGNATURE_BYTES		(2 * COORDINATE_BYTES)

struct JwsKey
{
	MemoryContextCallback callback;
	EVP_PKEY   *pair;
	char	   *jwk;			/* as RFC 7638 wants it */
};

/* ---- base64url ---- */

char *
jws_base64url(const void *data, size_t len)
{
	char	   *out = palloc(CRYPTO_BASE64_BYTES(len));
	size_t		n;

	crypto_base64(data, len, out);
	n = strcspn(out, "=");
	out[n] = '\0';
	for (size_t i = 0; i < n; i++)
	{
		if (out[i] == '+')
			out[i] = '-';
		else if (out[i] == '/')
			out[i] = '_';
	}
	return out;
}

uint8 *
jws_unbase64url(const char *text, size_t *len)
{
	size_t		n = strlen(text);
	char	   *padded;
	uint8	   *out;
	int			bytes;

	while (n > 0 && text[n - 1] == '=')
		n--;
	padded = palloc(n + 4);
	for (size_t i = 0; i < n; i++)
		padded[i] = text[i] == '-' ? '+' : text[i] == '_' ? '/' : text[i];

	while (n % 4 != 0)
		padded[n++] = '=';
	out = palloc(n + 1);
	bytes = crypto_unbase64(padded, n, out);
	crypto_wipe(padded, n);
	if (bytes < 0)
		return NULL;
	*len = bytes;
	return out;
}

/* ---- keys ---- */

char *
jws_key_generate(size_t *len)
{
	KeyPair		pair;

	keypair_generate("EC", 0, "P-256", &pair);
	*len = pair.private_len;
	return pair.private_key;
}

static void
key_context_gone(void *arg)
{
	EVP_PKEY_free(((JwsKey *) arg)->pair);
}

/* A coordinate of the public point. */
static bool
coordinate(EVP_PKEY *pair, const char *name, uint8 out[COORDINATE_BYTES])
{
	BIGNUM	   *n = NULL;
	bool		ok = EVP_PKEY_get_bn_param(pair, name, &n) == 1 &&
	BN_bn2binpad(n, out, COORDINATE_BYTES) == COORDINATE_BYTES;

	BN_free(n);
	return ok;
}

JwsKey *
jws_key_open(const char *pem, size_t len)
{
	JwsKey	   *key = palloc0(sizeof(JwsKey));
	BIO		   *bio;
	char		group[32] = "";
	uint8		x[COORDINATE_BYTES];
	uint8		y[COORDINATE_BYTES];
	bool		ok;

	key->callback.func = key_context_gone;
	key->callback.arg = key;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &key->callback);

	bio = BIO_new_mem_buf(pem, (int) len);
	key->pair = bio ? PEM_read_bio_PrivateKey(bio, NULL, NULL, "") : NULL;
	BIO_free(bio);
	ok = key->pair && EVP_PKEY_is_a(key->pair, "EC") &&
		EVP_PKEY_get_utf8_string_param(key->pair, OSSL_PKEY_PARAM_GROUP_NAME,
									   group, sizeof(group), NULL) == 1 &&
		strcmp(group, "prime256v1") == 0 &&
		coordinate(key->pair, OSSL_PKEY_PARAM_EC_PUB_X, x) &&
		coordinate(key->pair, OSSL_PKEY_PARAM_EC_PUB_Y, y);
	ERR_clear_error();
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the key of the account is no P-256 key in PEM")));
	key->jwk = psprintf("{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"%s\",\"y\":\"%s\"}",
						jws_base64url(x, sizeof(x)),
						jws_base64url(y, sizeof(y)));
	return key;
}

char *
jws_thumbprint(const JwsKey *key)
{
	uint8		hash[CRYPTO_SHA256_BYTES];

	crypto_sha256(key->jwk, strlen(key->jwk), hash);
	return jws_base64url(hash, sizeof(hash));
}

/* ---- signatures ---- */

/* ES256 of a text. */
static bool
sign(EVP_PKEY *pair, const char *text, size_t len, uint8 out[SIGNATURE_BYTES])
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	ECDSA_SIG  *parts = NULL;
	uint8		der[256];
	size_t		der_len = sizeof(der);
	const uint8 *at = der;
	bool		ok;

	ok = ctx &&
		EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, pair) == 1 &&
		EVP_DigestSign(ctx, der, &der_len, (const uint8 *) text, len) == 1 &&
		(parts = d2i_ECDSA_SIG(NULL, &at, (long) der_len)) != NULL &&
		BN_bn2binpad(ECDSA_SIG_get0_r(parts), out,
					 COORDINATE_BYTES) == COORDINATE_BYTES &&
		BN_bn2binpad(ECDSA_SIG_get0_s(parts), out + COORDINATE_BYTES,
					 COORDINATE_BYTES) == COORDINATE_BYTES;
	ECDSA_SIG_free(parts);
	EVP_MD_CTX_free(ctx);
	ERR_clear_error();
	return ok;
}

/* The flattened serialization, but for its end: signature and brace. */
static char *
unsigned_jws(const char *header, const char *payload, char **signed_text)
{
	char	   *h = jws_base64url(header, strlen(header));
	char	   *p = jws_base64url(payload, strlen(payload));

	*signed_text = psprintf("%s.%s", h, p);
	return psprintf("{\"protected\":\"%s\",\"payload\":\"%s\",\"signature\":\"",
					h, p);
}

char *
jws_sign(const JwsKey *key, const char *kid, const char *nonce,
		 const char *url, const char *payload)
{
	StringInfoData header;
	char	   *text;
	char	   *jws;
	uint8		signature[SIGNATURE_BYTES];

	initStringInfo(&header);
	appendStringInfoString(&header, "{\"alg\":\"ES256\",");
	if (kid)
	{
		appendStringInfoString(&header, "\"kid\":");
		escape_json(&header, kid);
	}
	else
		appendStringInfo(&header, "\"jwk\":%s", key->jwk);
	if (nonce)
		appendStringInfo(&header, ",\"nonce\":\"%s\"", nonce);
	appendStringInfoString(&header, ",\"url\":");
	escape_json(&header, url);
	appendStringInfoChar(&header, '}');

	jws = unsigned_jws(header.data, payload, &text);
	if (!sign(key->pair, text, strlen(text), signature))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("OpenSSL could not sign a request")));
	return psprintf("%s%s\"}", jws, jws_base64url(signature,
												  sizeof(signature)));
}

char *
jws_binding(const JwsKey *key, const char *kid, const uint8 *hmac,
			size_t hmac_len, const char *url)
{
	StringInfoData header;
	char	   *text;
	char	   *jws;
	HmacPart	part;
	uint8		signature[CRYPTO_SHA256_BYTES];

	initStringInfo(&header);
	appendStringInfoString(&header, "{\"alg\":\"HS256\",\"kid\":");
	escape_json(&header, kid);
	appendStringInfoString(&header, ",\"url\":");
	escape_json(&header, url);
	appendStringInfoChar(&header, '}');

	jws = unsigned_jws(header.data, key->jwk, &text);
	part.data = text;

	part.len = strlen(text);
	crypto_hmac(hmac, hmac_len, &part, 1, signature);
	return psprintf("%s%s\"}", jws, jws_base64url(signature,
												  sizeof(signature)));
}

char *
jws_key_change(const JwsKey *old_key, const JwsKey *new_key,
			   const char *account_url, const char *url)
{
	StringInfoData payload;

	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"account\":");
	escape_json(&payload, account_url);
	appendStringInfo(&payload, ",\"oldKey\":%s}", old_key->jwk);
	return jws_sign(new_key, NULL, NULL, url, payload.data);
}
