/*
 * acm.c
 *		AWS Certificate Manager, in one region or several.
 *
 * The first import makes an ARN, which later ones keep, so that load balancers
 * and distributions go on with the new certificate by themselves. An import
 * that a crash has left open is looked for by its tag before there is another:
 * each import without an ARN makes a certificate of its own. What was imported
 * is fetched and compared; only then does the region serve it.
 */
#include "postgres.h"

#include "certs/targets/kind.h"
#include "common/api.h"
#include "common/aws.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/sigv4.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* By which an import is known again. */
#define TAG				"mlint-certificate"
#define TAGS_MAX		49
#define PAGES_MAX		100
#define PLACEHOLDER		"{region}"

typedef struct AcmOptions
{
	TargetOptions common;
	char	  **regions;
	AwsAccess	access;
	char	   *endpoint;
	Jsonb	   *tags;
} AcmOptions;

#define AT(member) offsetof(AcmOptions, member)

static const Option acm_options[] = {
	{"regions", OPTION_LIST, AT(regions), NULL, 0, 0, NULL, NULL, true,
	"regions that it is imported into; CloudFront wants us-east-1"},
	AWS_ACCESS_OPTIONS(AT(access), true, "access key"),
	{"endpoint", OPTION_TEXT, AT(endpoint), NULL, 0, 0, NULL, NULL, false,
	"URL to use instead of the regions', for example of VPC endpoints; {region} in it stands for the region"},
	{"tags", OPTION_JSON, AT(tags), NULL, 0, 0, NULL, NULL, false,
	"tags of the certificate, given at its first import"},
	{NULL}
};

/* Where a region's API is, without slashes at the end. */
static char *
region_url(const AcmOptions *o, const char *region)
{
	const char *at = o->endpoint ? strstr(o->endpoint, PLACEHOLDER) : NULL;

	if (o->endpoint == NULL)
		return aws_url("acm", region);
	if (at == NULL)
		return url_base(o->endpoint);
	return url_base(psprintf("%.*s%s%s", (int) (at - o->endpoint),
							 o->endpoint, region, at + strlen(PLACEHOLDER)));
}

static void
check_tags(const Jsonb *tags, const char *what)
{
	JsonbIterator *it = JsonbIteratorInit(&unconstify(Jsonb *, tags)->root);
	JsonbIteratorToken token;
	JsonbValue	v;

	if (JB_ROOT_COUNT(tags) > TAGS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"tags\" of %s has more than %d members",
						what, TAGS_MAX)));
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_VALUE && v.type != jbvString)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("option \"tags\" of %s must have strings as members",
							what)));
	}
}

static void
acm_check(const void *options, Oid owner, const char *what)
{
	const AcmOptions *o = options;

	for (char **region = o->regions; *region; region++)
	{
		aws_region_check(*region, "regions", what);
		http_url_check(region_url(o, *region),
					   psprintf("option \"endpoint\" of %s", what));
	}
	http_header_check("x-amz-access-key", o->access.access_key_id, what);
	if (o->tags)
		check_tags(o->tags, what);
}

static char **
acm_regions(const void *options)
{
	return ((const AcmOptions *) options)->regions;
}

/* ---- calls ---- */

/* What the calls of one push have in common. */
typedef struct Acm
{
	const AcmOptions *options;
	SigV4		keys;
	char	   *url;
	char	   *service;		/* for messages */
} Acm;

static char *
take(const Credential *c)
{
	size_t		len;
	char	   *value = credential_resolve(c, &len);

	return api_confidential(value, len);
}

static void
acm_open(Acm *acm, const AcmOptions *o, const char *region)
{
	memset(acm, 0, sizeof(*acm));
	acm->options = o;
	acm->keys.key_id = o->access.access_key_id;
	acm->keys.secret = take(&o->access.secret_access_key);
	if (o->access.session_token.kind != CREDENTIAL_NONE)
		acm->keys.token = take(&o->access.session_token);
	acm->keys.region = region;
	acm->keys.service = "acm";
	acm->url = psprintf("%s/", region_url(o, region));
	acm->service = psprintf("Certificate Manager in region \"%s\"", region);
}

/* The name of the error, without what stands before '#' and after ':'. */
static char *
error_name(const ApiCall *call)
{
	const char *type = api_text(call->json, "__type");
	const char *hash = type ? strrchr(type, '#') : NULL;

	if (type == NULL)
		return pstrdup("");
	type = hash ? hash + 1 : type;
	return pnstrdup(type, strcspn(type, ":"));
}

static void
pg_attribute_noreturn()
acm_refused(const ApiCall *call)
{
	static const char *const of_keys[] = {
		"AccessDeniedException", "AccessDenied", "ExpiredTokenException",
		"ExpiredToken", "IncompleteSignature", "InvalidClientTokenId",
		"InvalidSignatureException", "MissingAuthenticationToken",
		"NotAuthorized", "OptInRequired", "RequestExpired",
		"SignatureDoesNotMatch", "AuthFailure", "UnrecognizedClientException"
	};
	char	   *name = error_name(call);
	const char *says = api_text(call->json, "message");
	bool		keys = call->status == 401 || call->status == 403;

	if (says == NULL)
		says = api_text(call->json, "Message");
	/* The request is quoted in the words about a signature: leave them. */
	if (says && (strstr(says, "Canonical") || call->confidential))
		says = NULL;
	if (strlen(name) > 64 || !http_is_token(name))
		name[0] = '\0';
	for (int i = 0; i < lengthof(of_keys); i++)
		keys = keys || strcmp(name, of_keys[i]) == 0;
	if (keys)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_AUTHENTICATION),
				 errmsg("%s refused our credentials (status %d%s%s)",
						call->service, call->status, name[0] ? ", " : "", name),
				 errhint("Check the keys, what they are permitted there, and the region.")));
	if (name[0] == '\0')
		api_refused(call, says);
	api_refused(call, says ? psprintf("%s, %s", name, says) : name);
}

/* One operation; body is wiped. Failures are the caller's to judge. */
static void
acm_call(const Acm *acm, ApiCall *call, const char *operation, char *body)
{
	SigV4Header headers[] = {
		{"content-type", "application/x-amz-json-1.1"},
		{"x-amz-target", psprintf("CertificateManager.%s", operation)}
	};

	memset(call, 0, sizeof(*call));
	call->service = acm->service;
	call->url = acm->url;
	call->ca = acm->options->access.ca;
	call->timeout_ms = acm->options->common.timeout_ms;
	call->body = api_confidential(body, strlen(body));
	call->body_len = strlen(body);
	call->tolerant = true;
	call->secret_body = strcmp(operation, "ImportCertificate") == 0;
	call->headers = sigv4_sign(&acm->keys, "POST", acm->url, headers,
							   lengthof(headers), body, strlen(body));
	api_call(call);
}

static bool
is_absent(const ApiCall *call)
{
	return call->status >= 400 &&
		strcmp(error_name(call), "ResourceNotFoundException") == 0;
}

/* ---- what is there ---- */

/* Is the certificate of this ARN ours? */
static bool
arn_serves(const Acm *acm, const char *arn, const PushedCertificate *c)
{
	ApiCall		call;
	PushedCertificate there = {.name = c->name};
	uint8	   *ours;
	uint8	   *theirs;
	size_t		our_len;
	size_t		their_len;

	acm_call(acm, &call, "GetCertificate",
			 psprintf("{\"CertificateArn\": \"%s\"}", arn));
	if (is_absent(&call))
		return false;
	if (call.status != 200)
		acm_refused(&call);
	there.leaf = api_text(call.json, "Certificate");
	if (there.leaf == NULL)
		api_strange(&call, "without a certificate");
	ours = pushed_der(c, &our_len);
	theirs = pushed_der(&there, &their_len);
	return our_len == their_len && memcmp(ours, theirs, our_len) == 0;
}

/* Fit to be in JSON as it is. */
static bool
is_arn(const char *text)
{
	return text &&strncmp(text, "arn:", 4) == 0 && strlen(text) <= 2048 &&
	strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
		   "0123456789:/_.+=@,-") == strlen(text);
}

static char *
tag_value(const PushedCertificate *c)
{
	return psprintf("%s/%s",
					DatumGetCString(DirectFunctionCall1(uuid_out,
														UUIDPGetDatum(c->id))),
					c->target);
}

static bool
has_our_tag(const Acm *acm, const char *arn, const char *value)
{
	ApiCall		call;
	json_t	   *tags;
	json_t	   *tag;
	size_t		i;

	acm_call(acm, &call, "ListTagsForCertificate",
			 psprintf("{\"CertificateArn\": \"%s\"}", arn));
	if (is_absent(&call))
		return false;
	if (call.status != 200)
		acm_refused(&call);
	tags = json_object_get(call.json, "Tags");
	json_array_foreach(tags, i, tag)
	{
		const char *key = api_text(tag, "Key");
		const char *is = api_text(tag, "Value");

		if (key && is && strcmp(key, TAG) == 0 && strcmp(is, value) == 0)
			return true;
	}
	return false;
}

/* The ARN of an import of ours that we know nothing of, or NULL. */
static char *
find_import(const Acm *acm, const PushedCertificate *c)
{
	/* Without these only RSA of 2048 bits is listed. */
	static const char includes[] = "\"Includes\": {\"keyTypes\": [\"RSA_1024\","
	"\"RSA_2048\", \"RSA_3072\", \"RSA_4096\", \"EC_prime256v1\","
	"\"EC_secp384r1\", \"EC_secp521r1\"]}";
	char	   *value = tag_value(c);
	const char *next = NULL;
	ApiCall		call;

	for (int page = 0; page == 0 || (next && page < PAGES_MAX); page++)
	{
		StringInfoData body;
		json_t	   *list;
		json_t	   *item;
		size_t		i;

		initStringInfo(&body);
		appendStringInfo(&body, "{%s", includes);
		if (next)
		{
			appendStringInfoString(&body, ", \"NextToken\": ");
			escape_json(&body, next);
		}
		appendStringInfoChar(&body, '}');
		acm_call(acm, &call, "ListCertificates", body.data);
		if (call.status != 200)
			acm_refused(&call);
		list = json_object_get(call.json, "CertificateSummaryList");
		json_array_foreach(list, i, item)
		{
			const char *arn = api_text(item, "CertificateArn");

			if (is_arn(arn) && has_our_tag(acm, arn, value))
				return pstrdup(arn);
		}
		next = api_text(call.json, "NextToken");
		if (next && next[0] == '\0')
			next = NULL;
	}
	/* It may be on a page that was not read: import nothing twice. */
	if (next)
		api_strange(&call, "with a list that does not end");
	return NULL;
}

/* ---- the import ---- */

static void
add_base64(StringInfo out, const char *name, const char *pem)
{
	size_t		len = strlen(pem);
	char	   *base64 = palloc(CRYPTO_BASE64_BYTES(len));

	crypto_base64(pem, len, base64);
	(void) api_confidential(base64, strlen(base64));
	appendStringInfo(out, "%s\"%s\": \"%s\"", out->len > 1 ? ", " : "", name,
					 base64);
}

static void
add_tag(StringInfo out, const char *key, const char *value)
{
	appendStringInfo(out, "%s{\"Key\": ", out->data[out->len - 1] == '[' ?
					 "" : ", ");
	escape_json(out, key);
	appendStringInfoString(out, ", \"Value\": ");
	escape_json(out, value);
	appendStringInfoChar(out, '}');
}

static void
add_tags(StringInfo out, const AcmOptions *o, const PushedCertificate *c)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	v;
	char	   *key = NULL;

	appendStringInfoString(out, ", \"Tags\": [");
	add_tag(out, TAG, tag_value(c));
	it = o->tags ? JsonbIteratorInit(&o->tags->root) : NULL;
	while (it && (token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			key = pnstrdup(v.val.string.val, v.val.string.len);
		else if (token == WJB_VALUE)
			add_tag(out, key, pnstrdup(v.val.string.val, v.val.string.len));
	}
	appendStringInfoChar(out, ']');
}

/* Returns the ARN, or NULL when there is none of this name any more. */
static char *
import(const Acm *acm, const PushedCertificate *c, const char *key,
	   const char *arn)
{
	ApiCall		call;
	StringInfoData body;
	const char *got;

	initStringInfo(&body);
	/* Growing leaves copies. */
	enlargeStringInfo(&body, 4 * (strlen(c->chain) + strlen(key)) + 65536);
	appendStringInfoChar(&body, '{');
	add_base64(&body, "Certificate", c->leaf);
	add_base64(&body, "PrivateKey", key);
	if (c->issuers[0])
		add_base64(&body, "CertificateChain", c->issuers);
	if (arn)
		appendStringInfo(&body, ", \"CertificateArn\": \"%s\"", arn);
	else
		add_tags(&body, acm->options, c);
	appendStringInfoChar(&body, '}');
	acm_call(acm, &call, "ImportCertificate", body.data);
	if (arn && is_absent(&call))
		return NULL;
	if (call.status != 200)
		acm_refused(&call);
	got = api_text(call.json, "CertificateArn");
	if (!is_arn(got))
		api_strange(&call, "without an ARN");
	return pstrdup(got);
}

static char *
acm_push(const void *options, Oid owner, const char *region,
		 const PushedCertificate *certificate, const char *key,
		 const char *reference)
{
	Acm			acm;
	char	   *arn = NULL;

	acm_open(&acm, options, region);
	if (reference)
		arn = import(&acm, certificate, key, reference);
	/* Never there, or deleted by somebody; or not recorded when it was made. */
	if (arn == NULL && certificate->repeated)
	{
		reference = find_import(&acm, certificate);
		if (reference)
			arn = import(&acm, certificate, key, reference);
	}
	if (arn == NULL)
		arn = import(&acm, certificate, key, NULL);
	if (!arn_serves(&acm, arn, certificate))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_API),
				 errmsg("%s has taken the certificate, and has another one",
						acm.service)));
	return arn;
}

const TargetKind target_acm = {
	.base = {
		.name = "aws-acm",
		.help = "AWS Certificate Manager",
		.options = acm_options,
		.options_size = sizeof(AcmOptions)
	},
	.wants_key = true,
	.check = acm_check,
	.regions = acm_regions,
	.push = acm_push,
};
