/*
 * names.h
 *		The names that a certificate is for.
 */
#ifndef MLINT_CERTS_NAMES_H
#define MLINT_CERTS_NAMES_H

#include "utils/array.h"

/* What a certificate of any public authority has at most. */
#define NAMES_MAX	100

typedef struct CertificateName
{
	char	   *text;			/* lower case, A-labels (RFC 5890), no final
								 * dot; of an address its canonical form */
	bool		address;		/* an IP address (RFC 8738) */
	bool		wildcard;		/* "*." is part of text */
} CertificateName;

/*
 * The names in an array, as they will be in the certificate, palloc'd.
 * challenge ("http-01", "dns-01", or NULL for none) must be able to prove them.
 * Raises ERRCODE_MLINT_CONFIGURATION with the name and what is wrong with it:
 * none or more than NAMES_MAX, null, spaces, empty or overlong labels, more
 * than 253 characters, twice the same, a wildcard over http-01, an address
 * over dns-01, what is no host name in any script (RFC 5891).
 */
extern CertificateName *certificate_names(ArrayType *domains,
										  const char *challenge, int *n);

/* Is the host name (or address) one of these names, wildcards considered? */
extern bool certificate_name_matches(const CertificateName *names, int n,
									 const char *host);

#endif
