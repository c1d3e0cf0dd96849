/*
 * azure.c
 *		Certificates of Azure Key Vault, in one vault or several.
 *
 * An import makes a new version of the certificate of that name, which services
 * that follow the name take up by themselves. What is there is looked at first
 * after a push that may have arrived, so that a crash makes no version twice;
 * and what the vault answers with is compared.
 */
#include "postgres.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/pkcs12.h>

#include "certs/targets/kind.h"
#include "common/azure.h"
#include "common/errors.h"
#include "common/peertext.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"

#define API_VERSION		"api-version=7.4"
#define NAME_MAX_CHARS	127
/* Bytes of an id that go into a row. */
#define ID_MAX			1000

typedef enum AzureFormat
{
	FORMAT_PEM,
	FORMAT_PKCS12
} AzureFormat;

static const char *const formats[] = {"pem", "pkcs12", NULL};
static const char *const content_types[] = {"application/x-pem-file",
"application/x-pkcs12"};

typedef struct AzureOptions
{
	TargetOptions common;
	char	  **vaults;
	char	   *name;
	int			format;
	bool		exportable;
	Jsonb	   *tags;
	AzureLogin	login;
	char	   *resource;
	char	   *ca;
} AzureOptions;

#define AT(member) offsetof(AzureOptions, member)

static const Option azure_options[] = {
	{"vaults", OPTION_LIST, AT(vaults), NULL, 0, 0, NULL, NULL, true,
	"URLs of the vaults, https://NAME.vault.azure.net"},
	{"name", OPTION_TEXT, AT(name), NULL, 0, 0, NULL, NULL, true,
	"name of the certificate in the vaults"},
	{"format", OPTION_ENUM, AT(format), "pkcs12", 0, 0, formats, NULL, false,
	"what its readers get it as; App Service and Application Gateway want pkcs12"},
	{"exportable", OPTION_BOOL, AT(exportable), "true", 0, 0, NULL, NULL,
	false, "whether its readers get the key"},
	{"tags", OPTION_JSON, AT(tags), NULL, 0, 0, NULL, NULL, false,
	"tags of the certificate"},
	AZURE_LOGIN_OPTIONS(AzureOptions, login),
	{"resource", OPTION_URL, AT(resource), "https://vault.azure.net", 0, 0,
		NULL, NULL, false,
	"what the token is for; sovereign clouds have another"},
	{"ca", OPTION_TEXT, AT(ca), NULL, 0, 0, NULL, NULL, false,
	"certificates to trust instead of the system's, PEM"},
	{NULL}
};

static void
azure_check(const void *options, Oid owner, const char *what)
{
	const AzureOptions *o = options;
	size_t		len = strlen(o->name);

	for (char **vault = o->vaults; *vault; vault++)
		http_url_check(*vault, psprintf("option \"vaults\" of %s", what));
	if (len == 0 || len > NAME_MAX_CHARS ||
		strspn(o->name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789-") != len)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"name\" of %s must be 1 to %d letters, digits and hyphens",
						what, NAME_MAX_CHARS)));
	azure_login_permit(&o->login, owner, what);
}

static char **
azure_regions(const void *options)
{
	return ((const AzureOptions *) options)->vaults;
}

/* ---- PKCS #12 ---- */

/* The chain and the key as PKCS #12 without a password; 0 when that fails. */
static int
make_pkcs12(const char *chain, const char *key, unsigned char **der)
{
	BIO		   *chain_bio = BIO_new_mem_buf(chain, -1);
	BIO		   *key_bio = BIO_new_mem_buf(key, -1);
	EVP_PKEY   *pkey = key_bio ?
	PEM_read_bio_PrivateKey(key_bio, NULL, NULL, "") : NULL;
	X509	   *leaf = chain_bio ?
	PEM_read_bio_X509(chain_bio, NULL, NULL, NULL) : NULL;

	STACK_OF(X509) * issuers = sk_X509_new_null();
	PKCS12	   *pkcs12 = NULL;
	X509	   *issuer;
	int			len = 0;

	while (issuers && leaf &&
		   (issuer = PEM_read_bio_X509(chain_bio, NULL, NULL, NULL)) != NULL)
	{
		if (!sk_X509_push(issuers, issuer))
		{
			X509_free(issuer);
			break;
		}
	}
	if (pkey && leaf && issuers)
		pkcs12 = PKCS12_create("", NULL, pkey, leaf, issuers, 0, 0, 0, 0, 0);
	if (pkcs12)
		len = i2d_PKCS12(pkcs12, der);
	PKCS12_free(pkcs12);
	sk_X509_pop_free(issuers, X509_free);
	X509_free(leaf);
	EVP_PKEY_free(pkey);
	BIO_free(key_bio);
	BIO_free(chain_bio);
	ERR_clear_error();
	return len;
}

/* The same in base64, wiped with the context. */
static char *
pkcs12_base64(const PushedCertificate *certificate, const char *key)
{
	unsigned char *der = NULL;
	int			len = make_pkcs12(certificate->chain, key, &der);
	char	   *base64;

	base64 = len > 0 ? palloc_extended(CRYPTO_BASE64_BYTES(len),
									   MCXT_ALLOC_NO_OOM) : NULL;
	if (base64)
		crypto_base64(der, len, base64);
	OPENSSL_clear_free(der, Max(len, 0));
	if (base64 == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not make PKCS #12 of certificate \"%s\"",
						certificate->name)));
	return api_confidential(base64, strlen(base64));
}

/* ---- calls ---- */

static void
vault_call(const AzureOptions *o, ApiCall *call, const char *vault,
		   const char *bearer, const char *rest, const char *body)
{
	memset(call, 0, sizeof(*call));
	call->service = psprintf("Key Vault at \"%s\"", vault);
	call->url = psprintf("%s/certificates/%s%s?%s", url_base(vault), o->name,
						 rest, API_VERSION);
	call->ca = o->ca;
	call->timeout_ms = o->common.timeout_ms;
	call->tolerant = true;
	call->headers = http_header(NULL, "Authorization", bearer);
	if (body)
	{
		call->headers = http_header(call->headers, "Content-Type",
									"application/json");
		call->body = body;
		call->body_len = strlen(body);
		call->secret_body = true;
	}
	api_call(call);
}

/* Is what the vault answers with this certificate? Its id is in *id. */
static bool
is_this(const ApiCall *call, const PushedCertificate *certificate, char **id)
{
	const char *cer = api_text(call->json, "cer");
	const char *says = api_text(call->json, "id");
	size_t		len;
	uint8	   *der = pushed_der(certificate, &len);
	char	   *expected = palloc(CRYPTO_BASE64_BYTES(len));

	crypto_base64(der, len, expected);
	*id = says ? pnstrdup(says, ID_MAX) : NULL;
	if (*id)
		peer_text_clean(*id);
	return cer && says && strcmp(cer, expected) == 0;
}

/* What imports it. Wiped with the context. */
static char *
import_body(const AzureOptions *o, const PushedCertificate *certificate,
			const char *key)
{
	StringInfoData body;

	initStringInfo(&body);
	/* Growing leaves copies. */
	enlargeStringInfo(&body, 8 * (strlen(certificate->chain) + strlen(key)) + 65536);
	appendStringInfoString(&body, "{\"value\": ");
	if (o->format == FORMAT_PEM)
	{
		char	   *pem = pushed_key_and_chain(key, certificate->chain);

		escape_json(&body, api_confidential(pem, strlen(pem)));
	}
	else
		escape_json(&body, pkcs12_base64(certificate, key));
	appendStringInfo(&body,
					 ", \"policy\": {\"key_props\": {\"exportable\": %s},"
					 " \"secret_props\": {\"contentType\": \"%s\"}}",
					 o->exportable ? "true" : "false",
					 content_types[o->format]);
	if (o->tags)
		appendStringInfo(&body, ", \"tags\": %s",
						 JsonbToCString(NULL, &o->tags->root, 0));
	appendStringInfoChar(&body, '}');
	return api_confidential(body.data, body.len);
}

static char *
azure_push(const void *options, Oid owner, const char *region,
		   const PushedCertificate *certificate, const char *key,
		   const char *reference)
{
	const AzureOptions *o = options;
	char	   *bearer = azure_login(&o->login, o->resource, o->ca,
									 o->common.timeout_ms);
	ApiCall		call;
	char	   *id;

	if (certificate->repeated)
	{
		vault_call(o, &call, region, bearer, "", NULL);
		if (call.status == 200 && is_this(&call, certificate, &id))
			return id;
	}
	vault_call(o, &call, region, bearer, "/import",
			   import_body(o, certificate, key));
	if (call.status != 200)
		api_refused(&call, NULL);
	if (!is_this(&call, certificate, &id))
		api_strange(&call, "with another certificate");
	return id;
}

const TargetKind target_azure = {
	.base = {
		.name = "azure",
		.help = "certificates of Azure Key Vault",
		.options = azure_options,
		.options_size = sizeof(AzureOptions)
	},
	.wants_key = true,
	.check = azure_check,
	.regions = azure_regions,
	.push = azure_push,
};
