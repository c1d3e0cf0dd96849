/*
 * csr.c
 *		Signing requests (RFC 2986).
 *
 * The names are in subjectAltName, which is all that counts. The first host
 * name that fits is the common name too: some authorities that are asked by
 * hand want one, and those that speak ACME drop or ignore it.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "certs/openssl.h"
#include "certs/x509.h"
#include "common/bio.h"

#define PEM_TYPE		"CERTIFICATE REQUEST"
/* ub-common-name of RFC 5280. */
#define COMMON_NAME_MAX	64

/* One name for subjectAltName; NULL if there is not the memory. */
static GENERAL_NAME *
general_name(const CertificateName *name)
{
	GENERAL_NAME *general = GENERAL_NAME_new();
	ASN1_STRING *value = name->address ? ASN1_OCTET_STRING_new() :
	ASN1_IA5STRING_new();
	uint8		address[16];
	bool		six = strchr(name->text, ':') != NULL;
	bool		ok;

	if (name->address)
		ok = inet_pton(six ? AF_INET6 : AF_INET, name->text, address) == 1 &&
			value && ASN1_STRING_set(value, address, six ? 16 : 4) == 1;
	else
		ok = value && ASN1_STRING_set(value, name->text, -1) == 1;
	if (!ok || general == NULL)
	{
		ASN1_STRING_free(value);
		GENERAL_NAME_free(general);
		return NULL;
	}
	GENERAL_NAME_set0_value(general, name->address ? GEN_IPADD : GEN_DNS,
							value);
	return general;
}

/* Put the names into the request. */
static bool
add_names(X509_REQ *request, const CertificateName *names, int n)
{
	GENERAL_NAMES *all = GENERAL_NAMES_new();

	STACK_OF(X509_EXTENSION) * extensions = NULL;
	bool		ok = all != NULL;

	for (int i = 0; ok && i < n; i++)
	{
		GENERAL_NAME *one = general_name(&names[i]);

		ok = one && sk_GENERAL_NAME_push(all, one) > 0;
		if (!ok)
			GENERAL_NAME_free(one);
	}
	ok = ok && X509V3_add1_i2d(&extensions, NID_subject_alt_name, all, 0,
							   X509V3_ADD_DEFAULT) == 1 &&
		X509_REQ_add_extensions(request, extensions) == 1;
	GENERAL_NAMES_free(all);
	sk_X509_EXTENSION_pop_free(extensions, X509_EXTENSION_free);
	return ok;
}

static bool
add_common_name(X509_REQ *request, const CertificateName *names, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (!names[i].address && strlen(names[i].text) <= COMMON_NAME_MAX)
			return X509_NAME_add_entry_by_NID(X509_REQ_get_subject_name(request),
											  NID_commonName, MBSTRING_ASC,
											  (const uint8 *) names[i].text,
											  -1, -1, 0) == 1;
	}
	return true;
}

/* EdDSA brings its own digest. */
static const EVP_MD *
digest_for(EVP_PKEY *key)
{
	return EVP_PKEY_is_a(key, "RSA") || EVP_PKEY_is_a(key, "EC") ?
		EVP_sha256() : NULL;
}

char *
csr_create(const char *pem, const CertificateName *names, int n, size_t *len)
{
	EVP_PKEY   *key = key_load(pem);
	X509_REQ   *request = X509_REQ_new();
	BIO		   *out = BIO_new(BIO_s_mem());
	char	   *der = NULL;

	if (key && request && out &&
		X509_REQ_set_version(request, X509_REQ_VERSION_1) == 1 &&
		X509_REQ_set_pubkey(request, key) == 1 &&
		add_common_name(request, names, n) &&
		add_names(request, names, n) &&
		X509_REQ_sign(request, key, digest_for(key)) > 0 &&
		i2d_X509_REQ_bio(out, request) == 1)
		der = bio_text(out, len);
	X509_REQ_free(request);
	EVP_PKEY_free(key);
	BIO_free(out);
	ERR_clear_error();
	if (der == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("OpenSSL could not make a signing request")));
	return der;
}

char *
csr_to_pem(const char *der, size_t len)
{
	BIO		   *out = BIO_new(BIO_s_mem());
	char	   *pem = NULL;

	if (out && PEM_write_bio(out, PEM_TYPE, "", (const uint8 *) der, len) > 0)
		pem = bio_text(out, &len);
	BIO_free(out);
	ERR_clear_error();
	if (pem == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	return pem;
}
