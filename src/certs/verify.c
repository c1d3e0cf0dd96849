/*
 * verify.c
 *		Would a client take this chain?
 *
 * A client has a root, and we may not: authorities of a company's own, test
 * servers. So the uppermost certificate counts as trusted, and what is below
 * it is checked as a client does: signatures, validity, use for servers, path
 * length, constraints on names, strength of keys and digests. Then the names
 * must be exactly those asked for, and the key its own.
 */
#include "postgres.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include "certs/openssl.h"
#include "certs/x509.h"
#include "utils/timestamp.h"

/* What clients ask for by default: no SHA-1, no keys of 1023 bits. */
#define SECURITY_LEVEL	1

/* The certificates of a chain that chain_read() has put in order. */
static STACK_OF(X509) *load_chain(const char *pem)
{
	STACK_OF(X509) * certs = sk_X509_new_null();
	BIO		   *in = BIO_new_mem_buf(pem, -1);
	X509	   *cert;

	while (in && certs &&
		   (cert = PEM_read_bio_X509(in, NULL, NULL, NULL)) != NULL)
	{
		if (sk_X509_push(certs, cert) <= 0)
			X509_free(cert);
	}
	BIO_free(in);
	ERR_clear_error();
	return certs;
}

/* OpenSSL's verdict: an X509_V_... code, and of which certificate, from 0. */
static int
verdict(STACK_OF(X509) * certs, time_t at, int *depth)
{
	X509_STORE *store = X509_STORE_new();
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();
	X509_VERIFY_PARAM *param;
	int			code = X509_V_ERR_UNSPECIFIED;

	*depth = 0;
	if (store && ctx && sk_X509_num(certs) > 0 &&
		X509_STORE_add_cert(store,
							sk_X509_value(certs,
										  sk_X509_num(certs) - 1)) == 1 &&
		X509_STORE_CTX_init(ctx, store, sk_X509_value(certs, 0), certs) == 1)
	{
		param = X509_STORE_CTX_get0_param(ctx);
		X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_PARTIAL_CHAIN);
		X509_VERIFY_PARAM_set_time(param, at);
		X509_VERIFY_PARAM_set_depth(param, CHAIN_MAX_LENGTH);
		X509_VERIFY_PARAM_set_auth_level(param, SECURITY_LEVEL);
		if (X509_STORE_CTX_set_purpose(ctx, X509_PURPOSE_SSL_SERVER) == 1)
		{
			(void) X509_verify_cert(ctx);
			code = X509_STORE_CTX_get_error(ctx);
			*depth = X509_STORE_CTX_get_error_depth(ctx);
		}
	}
	X509_STORE_CTX_free(ctx);
	X509_STORE_free(store);
	ERR_clear_error();
	return code;
}

/* Is the key the leaf's own? */
static bool
key_matches(STACK_OF(X509) * certs, const char *pem)
{
	EVP_PKEY   *key = key_load(pem);
	bool		matches = key && sk_X509_num(certs) > 0 &&
	X509_check_private_key(sk_X509_value(certs, 0), key) == 1;

	EVP_PKEY_free(key);
	ERR_clear_error();
	return matches;
}

static bool
chain_has_name(const Chain *chain, const char *name)
{
	for (int i = 0; i < chain->nnames; i++)
	{
		if (strcmp(chain->names[i], name) == 0)
			return true;
	}
	return false;
}

static bool
name_wanted(const CertificateName *names, int n, const char *name)
{
	for (int i = 0; i < n; i++)
	{
		if (strcmp(names[i].text, name) == 0)
			return true;
	}
	return false;
}

/* NULL, or how the names differ from those asked for. */
static char *
names_differ(const Chain *chain, const CertificateName *names, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (!chain_has_name(chain, names[i].text))
			return psprintf("the certificate is not for \"%s\"", names[i].text);
	}
	for (int i = 0; i < chain->nnames; i++)
	{
		if (!name_wanted(names, n, chain->names[i]))
			return psprintf("the certificate is for \"%s\" too, which was not asked for",
							chain->names[i]);
	}
	return NULL;
}

char *
chain_verify(const Chain *chain, const CertificateName *names, int n,
			 const char *key, TimestampTz at)
{
	STACK_OF(X509) * certs = load_chain(chain->pem);
	int			depth;
	int			code = verdict(certs, timestamptz_to_time_t(at), &depth);
	bool		ours = key == NULL || key_matches(certs, key);

	sk_X509_pop_free(certs, X509_free);
	if (code != X509_V_OK && depth == 0)
		return psprintf("the certificate does not verify: %s",
						X509_verify_cert_error_string(code));
	if (code != X509_V_OK)
		return psprintf("certificate %d of the chain does not verify: %s",
						depth + 1, X509_verify_cert_error_string(code));
	if (!ours)
		return pstrdup("the key is not the certificate's");
	return names ? names_differ(chain, names, n) : NULL;
}
