/*
 * sigv4.h
 *		AWS Signature Version 4, for whatever speaks to AWS or like it.
 *
 * We sign ourselves: it is a few HMACs, and libcurl's own signing takes the
 * session token, query strings and the digest of S3's bodies in only from one
 * version of 8 to the next.
 */
#ifndef MLINT_SIGV4_H
#define MLINT_SIGV4_H

#include <curl/curl.h>

#include "common/crypto.h"

typedef struct SigV4
{
	const char *key_id;
	const char *secret;
	const char *token;			/* of temporary keys; or NULL */
	const char *region;
	const char *service;		/* "s3", "secretsmanager" */
} SigV4;

typedef struct SigV4Header
{
	const char *name;			/* in lower case */
	const char *value;
} SigV4Header;

#define SIGV4_MAX_HEADERS	16

/*
 * The headers to send, the given ones and those that sign. The URL is as it will
 * be sent: its path and query are encoded, the parameters of the query in
 * order and each with "=". For S3 the digest of the body is a header, too.
 */
extern struct curl_slist *sigv4_sign(const SigV4 *keys, const char *method,
									 const char *url,
									 const SigV4Header *headers, int nheaders,
									 const void *body, size_t body_len);

/* RFC 3986: all but letters, digits and -._~ is encoded, "/" where told. */
extern char *sigv4_escape(const char *words, bool slash);

#endif
