/*
 * x509.h
 *		Keys, signing requests and chains, on OpenSSL.
 *
 * Everything comes and goes as PEM or DER and is palloc'd in the current
 * context; no object of OpenSSL outlives a call, errors included. Keys are the
 * caller's to wipe. Whatever is read may be hostile.
 */
#ifndef MLINT_CERTS_X509_H
#define MLINT_CERTS_X509_H

#include "certs/names.h"
#include "common/crypto.h"
#include "datatype/timestamp.h"

#define CHAIN_MAX_BYTES		262144
#define CHAIN_MAX_LENGTH	10

/*
 * A private key, PKCS #8 PEM: "ec256", "ec384", "rsa2048", "rsa4096". Cancel
 * works. Raises ERRCODE_MLINT_CONFIGURATION for another type.
 */
extern char *key_generate(const char *type);

/*
 * A private key of somebody else's (PEM), as we keep keys: PKCS #8 PEM. NULL,
 * with *error (palloc'd) saying why: not one, encrypted, or of a kind that no
 * server has.
 */
extern char *key_read(const char *pem, char **error);

/* A signing request (RFC 2986) for these names, DER. */
extern char *csr_create(const char *key, const CertificateName *names, int n,
						size_t *len);

/* The same as PEM. */
extern char *csr_to_pem(const char *der, size_t len);

/* What is in a chain. */
typedef struct Chain
{
	char	   *pem;			/* normalized: certificates only, leaf first,
								 * without the root */
	int			length;
	char	   *leaf;			/* PEM */
	char	   *serial;			/* hex, lower case, two digits a byte */
	char	   *issuer;			/* RFC 2253 */
	char	   *subject;
	char	   *key_type;		/* "ec256", "rsa2048", …, or OpenSSL's name */
	char	  **names;			/* of subjectAltName: DNS names and addresses */
	int			nnames;
	TimestampTz not_before;
	TimestampTz not_after;
	uint8		fingerprint[CRYPTO_SHA256_BYTES];
	char	   *ari_id;			/* RFC 9773, 4.1; NULL: it cannot be made */
} Chain;

/*
 * Read a chain, in whatever order it is. NULL, with *error (palloc'd) saying
 * why: no PEM, no certificate, too long or too large, a certificate that
 * belongs to none.
 */
extern Chain *chain_read(const char *pem, char **error);

/* SHA-1 of the first certificate in PEM; false: there is none. */
#define CHAIN_SHA1_BYTES	20
extern bool chain_sha1(const char *pem, uint8 digest[CHAIN_SHA1_BYTES]);

/*
 * Would a client take it, but for the root, at this time? Each signature is
 * checked, validity, use and constraints; the uppermost certificate counts as
 * trusted. The names must be exactly these (names NULL: any), and the key (PEM;
 * NULL: any) its own. NULL, or what is wrong.
 */
extern char *chain_verify(const Chain *chain, const CertificateName *names,
						  int n, const char *key, TimestampTz at);

#endif
