/*
 * names.c
 *		The names that a certificate is for: host names, wildcards, addresses.
 *
 * What a caller writes becomes what will stand in the certificate: lower case,
 * labels in ASCII (A-labels, RFC 5890), no final dot; an address in its
 * canonical form. Labels beyond ASCII go through libidn2, by IDNA 2008 with the
 * mapping of UTS #46 (nontransitional: a sharp s stays one); so do those that
 * claim to be A-labels, which must be what they stand for. Everything else is
 * checked here, so that each refusal can say which name it is and why: an
 * authority would say less, and count the attempt.
 *
 * Refused is what no authority and no client can take. What is a matter of an
 * authority's policy (a name of one label, a reserved domain) is left to it.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <idn2.h>

#include "catalog/pg_type.h"
#include "certs/names.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/peertext.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#define NAME_MAX_BYTES		253
#define LABEL_MAX_BYTES		63
/* Longer ones are refused before anything is computed from them. */
#define GIVEN_MAX_BYTES		1020
/* As much of a name as a message shows. */
#define SHOWN_MAX_BYTES		300

/* Raise what is wrong with a name. */
static void
pg_attribute_noreturn()
refuse(const char *given, const char *why, const char *hint)
{
	int			len = strlen(given);
	int			shown = pg_mbcliplen(given, len, SHOWN_MAX_BYTES);

	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("\"%.*s%s\" cannot be in a certificate: %s", shown, given,
					shown < len ? "..." : "", why),
			 hint ? errhint("%s", hint) : 0));
}

/* The canonical form of an address, palloc'd; NULL: it is none. */
static char *
canonical_address(const char *text)
{
	uint8		address[16];
	char		canonical[INET6_ADDRSTRLEN];
	int			family = strchr(text, ':') ? AF_INET6 : AF_INET;

	if (inet_pton(family, text, address) != 1 ||
		inet_ntop(family, address, canonical, sizeof(canonical)) == NULL)
		return NULL;
	return pstrdup(canonical);
}

static bool
ascii_only(const char *text)
{
	for (; *text; text ++)
	{
		if (IS_HIGHBIT_SET(*text))
			return false;
	}
	return true;
}

/* Has it a label that says that it is encoded? */
static bool
has_encoded_label(const char *name)
{
	for (const char *label = name; label;)
	{
		if (pg_strncasecmp(label, "xn--", 4) == 0)
			return true;
		label = strchr(label, '.');
		if (label)
			label++;
	}
	return false;
}

/* The name in ASCII, lower case, palloc'd. "host" lacks the "*.". */
static char *
to_ascii(const char *given, char *host)
{
	char	   *utf8;
	uint8_t    *ascii = NULL;
	char	   *result;
	int			rc;

	if (ascii_only(host) && !has_encoded_label(host))
	{
		result = pstrdup(host);
		for (char *p = result; *p; p++)
			*p = pg_ascii_tolower(*p);
		return result;
	}
	utf8 = pg_server_to_any(host, strlen(host), PG_UTF8);
	rc = idn2_lookup_u8((const uint8_t *) utf8, &ascii,
						IDN2_NFC_INPUT | IDN2_NONTRANSITIONAL);
	if (rc != IDN2_OK)
	{
		char	   *why = pstrdup(idn2_strerror(rc));

		peer_text_clean(why);
		refuse(given, psprintf("it is no host name by IDNA 2008 (%s)", why),
			   NULL);
	}
	result = palloc_extended(strlen((char *) ascii) + 1, MCXT_ALLOC_NO_OOM);
	if (result)
		memcpy(result, ascii, strlen((char *) ascii) + 1);
	idn2_free(ascii);
	if (result == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	for (char *p = result; *p; p++)
		*p = pg_ascii_tolower(*p);
	return result;
}

/* A label of a host name: letters, digits and hyphens (RFC 1123, 2.1). */
static void
check_label(const char *given, const char *label, int len)
{
	if (len == 0)
		refuse(given, "it has an empty label", NULL);
	if (len > LABEL_MAX_BYTES)
		refuse(given,
			   psprintf("a label has %d characters in ASCII, and may have %d",
						len, LABEL_MAX_BYTES), NULL);
	for (int i = 0; i < len; i++)
	{
		char		c = label[i];

		if (c == '*')
			refuse(given, "a wildcard stands for the whole first label, and for no other",
				   "Write \"*.example.com\".");
		if (c == ' ')
			refuse(given, "it has a space", NULL);
		if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'))
			refuse(given, psprintf("a host name has no \"%c\"", c),
				   c == ':' || c == '/' ? "Give the name alone, without scheme, port or path." : NULL);
	}
	if (label[0] == '-' || label[len - 1] == '-')
		refuse(given, "a label begins or ends with a hyphen", NULL);
}

/* All that can be said of a host name in ASCII. "wildcard": "*." went before. */
static void
check_host(const char *given, const char *host, bool wildcard)
{
	const char *label = host;
	const char *dot;
	int			len = strlen(host) + (wildcard ? 2 : 0);

	/* Labels first: of an empty one the length says nothing. */
	while ((dot = strchr(label, '.')) != NULL)
	{
		check_label(given, label, dot - label);
		label = dot + 1;
	}
	check_label(given, label, strlen(label));
	if (len > NAME_MAX_BYTES)
		refuse(given, psprintf("it has %d characters in ASCII, and may have %d",
							   len, NAME_MAX_BYTES), NULL);
	if (strspn(label, "0123456789") == strlen(label))
		refuse(given, "its last label is a number, and it is no address", NULL);
	if (wildcard && label == host)
		refuse(given, "no client takes a wildcard for all of a top-level domain",
			   NULL);
}

/* Nothing that is not seen, or not meant. */
static void
check_characters(const char *given)
{
	if (*given == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the names of a certificate must not be empty")));
	if (strlen(given) > GIVEN_MAX_BYTES)
		refuse(given, psprintf("it has %zu bytes, and a host name has %d characters",
							   strlen(given), NAME_MAX_BYTES), NULL);
	for (const char *p = given; *p; p++)
	{
		if (*p == ' ')
			refuse(given, "it has a space", NULL);
		if ((unsigned char) *p < ' ' || *p == 0x7f)
			refuse(given, "it has a control character", NULL);
	}
}

/* One name, as it will be in the certificate. */
static CertificateName
normalize(const char *given)
{
	CertificateName name = {NULL};
	char	   *host;
	int			len;

	check_characters(given);
	name.text = canonical_address(given);
	name.address = name.text !=NULL;
	if (name.address)
		return name;
	name.wildcard = strncmp(given, "*.", 2) == 0;
	host = to_ascii(given,
					unconstify(char *, given + (name.wildcard ? 2 : 0)));
	len = strlen(host);
	if (len > 1 && host[len - 1] == '.')
		host[len - 1] = '\0';
	if (canonical_address(host))
		refuse(given, name.wildcard ? "an address has no wildcard" :
			   "an address has no final dot", NULL);
	check_host(given, host, name.wildcard);
	name.text = name.wildcard ? psprintf("*.%s", host) : host;
	return name;
}

/* Can it be proved so? */
static void
check_challenge(const char *given, const CertificateName *name,
				const char *challenge)
{
	if (challenge == NULL)
		return;
	if (name->wildcard && strcmp(challenge, "http-01") == 0)
		refuse(given, "a wildcard cannot be proved over http-01",
			   "Use challenge => 'dns-01'.");
	if (name->address && strcmp(challenge, "dns-01") == 0)
		refuse(given, "an address cannot be proved over dns-01",
			   "Use challenge => 'http-01'.");
}

CertificateName *
certificate_names(ArrayType *domains, const char *challenge, int *n)
{
	Datum	   *given;
	bool	   *nulls;
	CertificateName *names;

	if (ARR_NDIM(domains) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the names of a certificate must be an array of one dimension")));
	deconstruct_array(domains, TEXTOID, -1, false, TYPALIGN_INT, &given,
					  &nulls, n);
	if (*n < 1 || *n > NAMES_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("a certificate has 1 to %d names, not %d", NAMES_MAX,
						*n)));
	names = palloc0(*n * sizeof(CertificateName));
	for (int i = 0; i < *n; i++)
	{
		char	   *name;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("the names of a certificate must not be null")));
		name = TextDatumGetCString(given[i]);
		names[i] = normalize(name);
		check_challenge(name, &names[i], challenge);
		for (int j = 0; j < i; j++)
		{
			if (strcmp(names[i].text, names[j].text) == 0)
				refuse(name, psprintf("it is named twice, as %s",
									  names[i].text), NULL);
		}
	}
	return names;
}

bool
certificate_name_matches(const CertificateName *names, int n,
						 const char *host)
{
	char	   *wanted = canonical_address(host);
	const char *rest = NULL;

	if (wanted == NULL)
	{
		int			len;

		wanted = pstrdup(host);
		len = strlen(wanted);
		for (char *p = wanted; *p; p++)
			*p = pg_ascii_tolower(*p);
		if (len > 1 && wanted[len - 1] == '.')
			wanted[len - 1] = '\0';
		rest = strchr(wanted, '.');
	}
	for (int i = 0; i < n; i++)
	{
		if (strcmp(names[i].text, wanted) == 0)
			return true;
		/* "*" is one label, and not an empty one. */
		if (names[i].wildcard && rest && rest > wanted &&
			strcmp(names[i].text +1, rest) == 0)
			return true;
	}
	return false;
}
