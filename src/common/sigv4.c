/*
 * sigv4.c
 *		AWS Signature Version 4: canonical request, string to sign, signature.
 *
 * From "Create a signed AWS API request" of the AWS documentation. All
 * headers that are handed in are signed, and Host as libcurl will send it. What
 * is confidential in here, the secret key in the first HMAC's key and the
 * session token among the headers, is wiped; the finished headers are the
 * client's, which wipes those of a confidential request.
 */
#include "postgres.h"

#include <time.h>

#include "common/compat.h"
#include "common/http.h"
#include "common/sigv4.h"
#include "lib/stringinfo.h"

static void
hmac_text(const void *key, size_t key_len, const char *words,
		  uint8 out[CRYPTO_SHA256_BYTES])
{
	HmacPart	part = {words, strlen(words)};

	crypto_hmac(key, key_len, &part, 1, out);
}

static char *
sha256_hex(const void *data, size_t len)
{
	uint8		digest[CRYPTO_SHA256_BYTES];
	char	   *hex = palloc(2 * sizeof(digest) + 1);

	crypto_sha256(data, len, digest);
	crypto_hex(digest, sizeof(digest), hex);
	return hex;
}

/* The Host header that libcurl will send. */
static char *
host_of(const char *url)
{
	const char *begin = strstr(url, "://") + 3;
	char	   *host = pnstrdup(begin, strcspn(begin, "/?"));
	const char *preset = pg_strncasecmp(url, "https", 5) == 0 ? ":443" : ":80";
	size_t		len = strlen(host);
	size_t		preset_len = strlen(preset);

	for (char *p = host; *p; p++)
		*p = pg_ascii_tolower(*p);
	if (len > preset_len && strcmp(host + len - preset_len, preset) == 0)
		host[len - preset_len] = '\0';
	return host;
}

static int
header_cmp(const void *a, const void *b)
{
	const SigV4Header *left = a;
	const SigV4Header *right = b;

	return strcmp(left->name, right->name);
}

static void
add_header(SigV4Header *headers, int *n, const char *name, const char *value)
{
	headers[*n].name = name;
	headers[*n].value = value;
	(*n)++;
}

/* The key of a day, a region and a service. */
static void
signing_key(const SigV4 *keys, const char *day, uint8 key[CRYPTO_SHA256_BYTES])
{
	char	   *first = psprintf("AWS4%s", keys->secret);

	hmac_text(first, strlen(first), day, key);
	crypto_wipe(first, strlen(first));
	pfree(first);
	hmac_text(key, CRYPTO_SHA256_BYTES, keys->region, key);
	hmac_text(key, CRYPTO_SHA256_BYTES, keys->service, key);
	hmac_text(key, CRYPTO_SHA256_BYTES, "aws4_request", key);
}

struct curl_slist *
sigv4_sign(const SigV4 *keys, const char *method, const char *url,
		   const SigV4Header *headers, int nheaders, const void *body,
		   size_t body_len)
{
	SigV4Header all[SIGV4_MAX_HEADERS + 4];
	const char *path = strchr(strstr(url, "://") + 3, '/');
	const char *query = strchr(url, '?');
	char	   *digest = sha256_hex(body, body_len);
	time_t		now = time(NULL);
	struct tm	utc;
	char		when[32];
	char	   *scope;
	char	   *to_sign;
	StringInfoData names;
	StringInfoData canonical;
	uint8		key[CRYPTO_SHA256_BYTES];
	char		signature[2 * CRYPTO_SHA256_BYTES + 1];
	struct curl_slist *list = NULL;
	int			n = 0;

	Assert(nheaders <= SIGV4_MAX_HEADERS);
	gmtime_r(&now, &utc);
	(void) strftime(when, sizeof(when), "%Y%m%dT%H%M%SZ", &utc);
	scope = psprintf("%.8s/%s/%s/aws4_request", when, keys->region,
					 keys->service);

	for (; n < nheaders; n++)
		all[n] = headers[n];
	add_header(all, &n, "host", host_of(url));
	add_header(all, &n, "x-amz-date", when);
	if (strcmp(keys->service, "s3") == 0)
		add_header(all, &n, "x-amz-content-sha256", digest);
	if (keys->token)
		add_header(all, &n, "x-amz-security-token", keys->token);
	qsort(all, n, sizeof(SigV4Header), header_cmp);

	initStringInfo(&names);
	initStringInfo(&canonical);
	if (path == NULL || (query && path > query))
		path = "/";
	appendStringInfo(&canonical, "%s\n%.*s\n%s\n", method,
					 (int) strcspn(path, "?"), path, query ? query + 1 : "");
	for (int i = 0; i < n; i++)
	{
		appendStringInfo(&names, "%s%s", i > 0 ? ";" : "", all[i].name);
		appendStringInfo(&canonical, "%s:%s\n", all[i].name, all[i].value);
	}
	appendStringInfo(&canonical, "\n%s\n%s", names.data, digest);
	to_sign = psprintf("AWS4-HMAC-SHA256\n%s\n%s\n%s", when, scope,
					   sha256_hex(canonical.data, canonical.len));
	crypto_wipe(canonical.data, canonical.len);

	signing_key(keys, pnstrdup(when, 8), key);
	hmac_text(key, sizeof(key), to_sign, key);
	crypto_hex(key, sizeof(key), signature);
	crypto_wipe(key, sizeof(key));

	for (int i = 0; i < n; i++)
	{
		if (strcmp(all[i].name, "host") != 0)
			list = http_header(list, all[i].name, all[i].value);
	}
	return http_header(list, "Authorization",
					   psprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s",
								keys->key_id, scope, names.data, signature));
}

char *
sigv4_escape(const char *words, bool slash)
{
	StringInfoData out;

	initStringInfo(&out);
	for (const unsigned char *p = (const unsigned char *) words; *p; p++)
	{
		if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
			(*p >= '0' && *p <= '9') || strchr("-._~", *p) != NULL ||
			(*p == '/' && !slash))
			appendStringInfoChar(&out, *p);
		else
			appendStringInfo(&out, "%%%02X", *p);
	}
	return out.data;
}
