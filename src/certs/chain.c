/*
 * chain.c
 *		Chains of certificates as they come: read, put in order, described.
 *
 * Authorities send the leaf first; people paste what they have. So the order
 * is found out: the leaf is the certificate that has issued none of the
 * others, and from it upwards each is followed by its issuer. A root at the
 * end goes: clients have it, and must. A certificate that is in nobody's line
 * is an error, because it shows that something else is missing. Of several
 * issuers of one name (cross-signing) the first in the text is taken.
 *
 * Sizes and counts are bounded before anything is computed from them, and what
 * is taken out of a certificate as text is ASCII: names with other bytes in
 * them, or with a NUL, are refused (what follows a NUL was the trick of many
 * an attack), and subjects have everything else escaped.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "certs/x509.h"
#include "common/bio.h"
#include "lib/stringinfo.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

/* 20 octets by RFC 5280; old authorities have a few more. */
#define SERIAL_MAX_BYTES	64
/* As much as is kept of a subject or issuer. */
#define SUBJECT_MAX			1000
/* The names that some CDN's certificates have, and more. */
#define CHAIN_MAX_NAMES		1000
#define KEY_ID_MAX_BYTES	64

/* ---- reading ---- */

static bool
is_among(STACK_OF(X509) * certs, X509 *cert)
{
	for (int i = 0; i < sk_X509_num(certs); i++)
	{
		if (X509_cmp(sk_X509_value(certs, i), cert) == 0)
			return true;
	}
	return false;
}

/* All certificates of a text, each once; NULL or *error. */
static STACK_OF(X509) *read_certificates(const char *pem, const char **error)
{
	STACK_OF(X509) * certs = sk_X509_new_null();
	BIO		   *in = BIO_new_mem_buf(pem, -1);
	X509	   *cert;
	unsigned long reason;

	ERR_clear_error();
	while (in && certs && *error == NULL &&
		   (cert = PEM_read_bio_X509(in, NULL, NULL, NULL)) != NULL)
	{
		/* One more than a chain has: the root goes. */
		if (sk_X509_num(certs) > CHAIN_MAX_LENGTH)
			*error = "it has too many certificates";
		if (*error || is_among(certs, cert) || sk_X509_push(certs, cert) <= 0)
			X509_free(cert);
	}
	reason = ERR_GET_REASON(ERR_peek_last_error());
	if (*error == NULL && (in == NULL || certs == NULL))
		*error = "there is not the memory for it";
	else if (*error == NULL && reason != PEM_R_NO_START_LINE)
		*error = "it has something that is no certificate in PEM";
	else if (*error == NULL && sk_X509_num(certs) == 0)
		*error = "there is no certificate in PEM";
	BIO_free(in);
	ERR_clear_error();
	return certs;
}

static bool
has_issued(X509 *issuer, X509 *subject)
{
	return issuer != subject && X509_check_issued(issuer, subject) == X509_V_OK;
}

static bool
is_self_signed(X509 *cert)
{
	return X509_check_issued(cert, cert) == X509_V_OK;
}

/* The certificate that has issued none of the others; -1: not just one. */
static int
find_leaf(STACK_OF(X509) * certs)
{
	int			n = sk_X509_num(certs);
	int			leaf = -1;

	for (int i = 0; i < n; i++)
	{
		bool		issuer = false;

		for (int j = 0; j < n; j++)
			issuer |= has_issued(sk_X509_value(certs, i),
								 sk_X509_value(certs, j));
		if (issuer)
			continue;
		if (leaf >= 0)
			return -1;
		leaf = i;
	}
	return leaf;
}

/*
 * Whose issuer is among the others, upwards from the leaf: the places in line,
 * and how many. A root is in it only when it is alone.
 */
static int
line_up(STACK_OF(X509) * certs, int leaf, int *line)
{
	int			n = sk_X509_num(certs);
	bool		used[CHAIN_MAX_LENGTH + 1] = {false};
	int			length = 0;

	for (int at = leaf; at >= 0;)
	{
		X509	   *cert = sk_X509_value(certs, at);

		used[at] = true;
		line[length++] = at;
		at = -1;
		for (int i = 0; i < n && at < 0; i++)
		{
			X509	   *issuer = sk_X509_value(certs, i);

			if (!used[i] && has_issued(issuer, cert) &&
				!is_self_signed(issuer))
				at = i;
		}
	}
	return length;
}

/* Does every certificate have its place in the line, or issue one that has? */
static bool
all_belong(STACK_OF(X509) * certs, const int *line, int length)
{
	for (int i = 0; i < sk_X509_num(certs); i++)
	{
		bool		belongs = false;

		for (int j = 0; j < length; j++)
			belongs |= line[j] == i ||
				has_issued(sk_X509_value(certs, i),
						   sk_X509_value(certs, line[j]));
		if (!belongs)
			return false;
	}
	return true;
}

/* ---- describing ---- */

/* ASCII, palloc'd; NULL when OpenSSL cannot. */
static char *
name_text(const X509_NAME *name)
{
	BIO		   *out = BIO_new(BIO_s_mem());
	char	   *result = NULL;
	size_t		len;

	if (out && X509_NAME_print_ex(out, name, 0, XN_FLAG_RFC2253) >= 0)
		result = bio_text(out, &len);
	BIO_free(out);
	if (result && len > SUBJECT_MAX)
		memcpy(result + SUBJECT_MAX - 3, "...", 4);
	return result;
}

/* The PEM of one certificate, appended. */
static bool
append_pem(StringInfo text, X509 *cert)
{
	BIO		   *out = BIO_new(BIO_s_mem());
	char	   *pem = NULL;
	size_t		len;

	if (out && PEM_write_bio_X509(out, cert) == 1)
		pem = bio_text(out, &len);
	BIO_free(out);
	if (pem)
		appendBinaryStringInfo(text, pem, len);
	return pem != NULL;
}

static bool
timestamp_of(const ASN1_TIME *time, TimestampTz *result)
{
	struct tm	tm;

	/* Years have four digits, so nothing overflows. */
	if (ASN1_TIME_to_tm(time, &tm) != 1)
		return false;
	*result = (date2j(tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday) -
			   POSTGRES_EPOCH_JDATE) * USECS_PER_DAY +
		((tm.tm_hour * 60 + tm.tm_min) * 60 + tm.tm_sec) * USECS_PER_SEC;
	return true;
}

/* Hex, without leading zero bytes, with a sign if it has one. */
static char *
serial_text(const ASN1_INTEGER *serial)
{
	const uint8 *data = ASN1_STRING_get0_data(serial);
	int			len = ASN1_STRING_length(serial);
	bool		negative = ASN1_STRING_type(serial) == V_ASN1_NEG_INTEGER;
	char	   *result;

	if (len > SERIAL_MAX_BYTES)
		return NULL;
	while (len > 1 && *data == 0)
	{
		data++;
		len--;
	}
	result = palloc(2 * len + 2);
	result[0] = '-';
	crypto_hex(data, len, result + negative);
	return result;
}

/* base64url without padding. */
static char *
base64url(const uint8 *data, size_t len)
{
	char	   *text = palloc(CRYPTO_BASE64_BYTES(len));

	crypto_base64(data, len, text);
	for (char *p = text; *p; p++)
	{
		if (*p == '+')
			*p = '-';
		else if (*p == '/')
			*p = '_';
		else if (*p == '=')
			*p = '\0';
	}
	return text;
}

/* RFC 9773, 4.1: key identifier and serial, each as its DER has it. */
static char *
ari_id(X509 *leaf)
{
	const ASN1_OCTET_STRING *id = X509_get0_authority_key_id(leaf);
	const ASN1_INTEGER *serial = X509_get0_serialNumber(leaf);
	int			len = ASN1_STRING_length(serial);
	uint8		der[SERIAL_MAX_BYTES + 1];

	if (id == NULL || ASN1_STRING_length(id) < 1 ||
		ASN1_STRING_length(id) > KEY_ID_MAX_BYTES ||
		ASN1_STRING_type(serial) == V_ASN1_NEG_INTEGER || len < 1)
		return NULL;
	der[0] = 0;
	memcpy(der + 1, ASN1_STRING_get0_data(serial), len);
	return psprintf("%s.%s",
					base64url(ASN1_STRING_get0_data(id),
							  ASN1_STRING_length(id)),
					der[1] & 0x80 ? base64url(der, len + 1) :
					base64url(der + 1, len));
}

/* As key_generate() calls it, or as OpenSSL does. */
static char *
key_type(EVP_PKEY *key)
{
	char		group[64];
	size_t		len;

	if (EVP_PKEY_is_a(key, "RSA"))
		return psprintf("rsa%d", EVP_PKEY_get_bits(key));
	if (EVP_PKEY_is_a(key, "EC") &&
		EVP_PKEY_get_group_name(key, group, sizeof(group), &len) == 1)
	{
		if (strcmp(group, "prime256v1") == 0)
			return pstrdup("ec256");
		return pstrdup(strcmp(group, "secp384r1") == 0 ? "ec384" : group);
	}
	return pstrdup(EVP_PKEY_get0_type_name(key));
}

/* A host name of the certificate's; NULL when it has bytes that none has. */
static char *
host_name(const ASN1_STRING *string)
{
	int			len = ASN1_STRING_length(string);
	const uint8 *data = ASN1_STRING_get0_data(string);
	char	   *name;

	if (len < 1 || len > 255)
		return NULL;
	name = palloc(len + 1);
	for (int i = 0; i < len; i++)
	{
		if (data[i] <= ' ' || data[i] >= 0x7f)
			return NULL;
		name[i] = pg_ascii_tolower(data[i]);
	}
	name[len] = '\0';
	return name;
}

static char *
address_text(const ASN1_STRING *string)
{
	char		address[INET6_ADDRSTRLEN];
	int			len = ASN1_STRING_length(string);

	if ((len != 4 && len != 16) ||
		inet_ntop(len == 4 ? AF_INET : AF_INET6,
				  ASN1_STRING_get0_data(string), address,
				  sizeof(address)) == NULL)
		return NULL;
	return pstrdup(address);
}

/* The names of subjectAltName, into the chain; or what is wrong with them. */
static const char *
take_names(const GENERAL_NAMES *all, Chain *chain)
{
	int			n = all ? sk_GENERAL_NAME_num(all) : 0;

	if (n > CHAIN_MAX_NAMES)
		return "its certificate has too many names";
	chain->names = palloc((n + 1) * sizeof(char *));
	for (int i = 0; i < n; i++)
	{
		int			type;
		const ASN1_STRING *value;
		char	   *name;

		value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(all, i), &type);
		if (type != GEN_DNS && type != GEN_IPADD)
			continue;
		name = type == GEN_DNS ? host_name(value) : address_text(value);
		if (name == NULL)
			return "its certificate has a name that is no host name and no address";
		chain->names[chain->nnames++] = name;
	}
	return NULL;
}

/* All about the leaf; or what is wrong with it. */
static const char *
describe_leaf(X509 *leaf, const GENERAL_NAMES *names, Chain *chain)
{
	EVP_PKEY   *key = X509_get0_pubkey(leaf);
	unsigned int len;
	StringInfoData pem;

	initStringInfo(&pem);
	chain->serial = serial_text(X509_get0_serialNumber(leaf));
	chain->issuer = name_text(X509_get_issuer_name(leaf));
	chain->subject = name_text(X509_get_subject_name(leaf));
	if (chain->serial == NULL)
		return "its certificate has a serial number that is too long";
	if (key == NULL)
		return "its certificate has a key that cannot be read";
	if (chain->issuer == NULL || chain->subject == NULL ||
		!append_pem(&pem, leaf) ||
		X509_digest(leaf, EVP_sha256(), chain->fingerprint, &len) != 1)
		return "OpenSSL cannot write its certificate";
	if (!timestamp_of(X509_get0_notBefore(leaf), &chain->not_before) ||
		!timestamp_of(X509_get0_notAfter(leaf), &chain->not_after))
		return "its certificate has a time that cannot be read";
	chain->leaf = pem.data;
	chain->key_type = key_type(key);
	chain->ari_id = ari_id(leaf);
	return take_names(names, chain);
}

/* Put in order, and describe. */
static const char *
describe(STACK_OF(X509) * certs, Chain *chain, GENERAL_NAMES **names)
{
	int			leaf = find_leaf(certs);
	int			line[CHAIN_MAX_LENGTH + 1];
	StringInfoData pem;

	if (leaf < 0)
		return "it has certificates that do not belong to one chain";
	chain->length = line_up(certs, leaf, line);
	if (!all_belong(certs, line, chain->length))
		return "it has certificates that do not belong to one chain";
	if (chain->length > CHAIN_MAX_LENGTH)
		return "it has too many certificates";
	initStringInfo(&pem);
	for (int i = 0; i < chain->length; i++)
	{
		if (!append_pem(&pem, sk_X509_value(certs, line[i])))
			return "OpenSSL cannot write its certificates";
	}
	chain->pem = pem.data;
	*names = X509_get_ext_d2i(sk_X509_value(certs, leaf),
							  NID_subject_alt_name, NULL, NULL);
	return describe_leaf(sk_X509_value(certs, leaf), *names, chain);
}

Chain *
chain_read(const char *pem, char **error)
{
	Chain	   *chain = palloc0(sizeof(Chain));

	/* What is to be freed is in memory, and not in a register. */
	GENERAL_NAMES **names = palloc0(sizeof(GENERAL_NAMES *));
	const char *volatile fault;
	const char *why = NULL;

	STACK_OF(X509) * certs;

	if (strlen(pem) > CHAIN_MAX_BYTES)
	{
		*error = psprintf("it has %zu bytes, and may have %d", strlen(pem),
						  CHAIN_MAX_BYTES);
		return NULL;
	}
	certs = read_certificates(pem, &why);
	fault = why;
	PG_TRY();
	{
		if (fault == NULL)
			fault = describe(certs, chain, names);
	}
	PG_FINALLY();
	{
		sk_X509_pop_free(certs, X509_free);
		GENERAL_NAMES_free(*names);
		ERR_clear_error();
	}
	PG_END_TRY();
	if (fault == NULL)
		return chain;
	*error = pstrdup(fault);
	return NULL;
}

bool
chain_sha1(const char *pem, uint8 digest[CHAIN_SHA1_BYTES])
{
	BIO		   *in = BIO_new_mem_buf(pem, -1);
	X509	   *cert = in ? PEM_read_bio_X509(in, NULL, NULL, NULL) : NULL;
	bool		ok = cert && X509_digest(cert, EVP_sha1(), digest, NULL) == 1;

	X509_free(cert);
	BIO_free(in);
	ERR_clear_error();
	return ok;
}
