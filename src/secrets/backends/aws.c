/*
 * aws.c
 *		AWS Secrets Manager.
 *
 * The API is one URL to which JSON is posted, with the operation in a header,
 * signed with Signature Version 4 (common/sigv4.h).
 *
 * Keys are the first that there are of: the options; AWS_ACCESS_KEY_ID and
 * what belongs to it in the server's environment; what a container's
 * credentials endpoint gives out (ECS, EKS); the role of the instance (IMDSv2).
 * The last two end after some hours. They are kept, sealed, for all processes
 * until five minutes before; and when a call is refused for them, new ones
 * are fetched, once.
 *
 * A version is what Secrets Manager calls a version id (a UUID as a rule), or
 * a staging label, AWSCURRENT or AWSPREVIOUS or one of your own.
 */
#include "postgres.h"

#include "common/aws.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/sigv4.h"
#include "secrets/kind.h"
#include "utils/timestamp.h"

#define PAGES_MAX		200
#define EXPIRY_MARGIN_S	300
#define INSTANCE_URL	"http://169.254.169.254"
#define CONTAINER_URL	"http://169.254.170.2"
/* The shortest version id; a staging label is told from it by that. */
#define VERSION_ID_MIN	32

typedef struct AwsOptions
{
	BackendOptions common;
	char	   *region;
	char	   *endpoint;
	AwsAccess	access;
	char	   *metadata_endpoint;
	int			recovery_window_days;
} AwsOptions;

#define AT(member) offsetof(AwsOptions, member)

static const Option aws_options[] = {
	{"region", OPTION_TEXT, AT(region), NULL, 0, 0, NULL, NULL, false,
	"region; AWS_REGION or AWS_DEFAULT_REGION of the server's environment if not given"},
	{"endpoint", OPTION_URL, AT(endpoint), NULL, 0, 0, NULL, NULL, false,
	"URL to use instead of the region's, for example of a VPC endpoint"},
	AWS_ACCESS_OPTIONS(AT(access), false,
					   "access key; if not given, keys of the environment, the container or the instance are used"),
	{"metadata_endpoint", OPTION_URL, AT(metadata_endpoint), NULL, 0, 0, NULL,
		NULL, false,
	"URL of an instance metadata service other than EC2's own"},
	{"recovery_window_days", OPTION_INT, AT(recovery_window_days), "30", 0, 30,
		NULL, NULL, false,
	"days in which a deleted secret can be restored there, 7 to 30; 0: none, it is gone"},
	{NULL}
};

/* Keys to sign with. */
typedef struct AwsKeys
{
	const char *id;
	const char *secret;
	const char *token;			/* or NULL */
	bool		kept;			/* others may be had */
} AwsKeys;

static const AwsOptions *
aws_of(const Backend *b)
{
	return (const AwsOptions *) b->options;
}

static const char *
aws_region(const AwsOptions *o)
{
	if (o->region)
		return o->region;
	return environment("AWS_REGION") ? environment("AWS_REGION") :
		environment("AWS_DEFAULT_REGION");
}

static bool
aws_check(const BackendOptions *options, const char *what)
{
	const AwsOptions *o = (const AwsOptions *) options;
	const char *region = aws_region(o);

	if (region == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s needs option \"region\"", what),
				 errdetail("Nor is AWS_REGION set in the server's environment.")));
	aws_region_check(region, "region", what);
	if ((o->access.access_key_id != NULL) !=
		(o->access.secret_access_key.kind != CREDENTIAL_NONE))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("options \"access_key_id\" and \"secret_access_key\" of %s must be given together",
						what)));
	if (o->access.session_token.kind != CREDENTIAL_NONE && o->access.access_key_id == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"session_token\" of %s needs option \"access_key_id\"",
						what)));
	if (o->recovery_window_days > 0 && o->recovery_window_days < 7)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"recovery_window_days\" of %s must be 0, or 7 to 30",
						what)));
	return o->access.access_key_id == NULL;
}

/* ---- keys ---- */

/* Keys out of a document of the container's or the instance's; and keep it. */
static BackendResult
keys_take(Backend *b, const char *text, const json_t *json, AwsKeys *keys)
{
	const char *id = api_text(json, "AccessKeyId");
	const char *secret = api_text(json, "SecretAccessKey");
	const char *token = api_text(json, "Token");
	TimestampTz expires = time_from_text(api_text(json, "Expiration"));

	if (id == NULL || secret == NULL)
		return exchange_strange(b, "its metadata service has no keys to give");
	keys->id = id;
	keys->secret = confidential(b, pstrdup(secret), strlen(secret));
	keys->token = token ? confidential(b, pstrdup(token), strlen(token)) : NULL;
	keys->kept = true;
	if (expires != 0)
		backend_keep(b, "keys", text,
					 (expires - GetCurrentTimestamp()) / USECS_PER_SEC -
					 EXPIRY_MARGIN_S);
	return BACKEND_OK;
}

static BackendResult
keys_refused(Backend *b, const Exchange *e, const char *who)
{
	return backend_fail(b, ERRCODE_MLINT_AUTHENTICATION, false, NULL,
						"Give the instance or the container a role, or name keys in the backend's options.",
						"%s gives no keys (status %d)", who, e->status);
}

/* The endpoint that ECS and EKS name in a container's environment. */
static BackendResult
keys_of_container(Backend *b, AwsKeys *keys)
{
	const char *relative = environment("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
	const char *full = environment("AWS_CONTAINER_CREDENTIALS_FULL_URI");
	const char *token = environment("AWS_CONTAINER_AUTHORIZATION_TOKEN");
	const char *file = environment("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
	Exchange	e = {.metadata = true};

	e.url = relative ? psprintf("%s%s", CONTAINER_URL, relative) : full;
	if (file)
	{
		Credential	c = {CREDENTIAL_FILE, unconstify(char *, file)};

		token = backend_credential(b, &c);
	}
	if (token)
		e.headers = http_header(NULL, "Authorization", token);
	if (!exchange(b, &e))
		return BACKEND_FAILED;
	if (e.status != 200)
		return keys_refused(b, &e, "the container's credentials endpoint");
	return keys_take(b, e.text, e.json, keys);
}

/* The role of the instance, by IMDSv2: a token, the role's name, its keys. */
static BackendResult
keys_of_instance(Backend *b, AwsKeys *keys)
{
	const AwsOptions *o = aws_of(b);
	char	   *base = url_base(o->metadata_endpoint ? o->metadata_endpoint :
								INSTANCE_URL);
	bool		own = o->metadata_endpoint == NULL;
	const char *roles = "/latest/meta-data/iam/security-credentials/";
	Exchange	e = {.metadata = own,.method = "PUT"};
	char	   *token;
	char	   *role;

	e.url = psprintf("%s/latest/api/token", base);
	e.headers = http_header(NULL, "X-aws-ec2-metadata-token-ttl-seconds",
							"300");
	e.json_optional = true;
	if (!exchange(b, &e))
		return BACKEND_FAILED;
	token = pnstrdup(e.text, strcspn(e.text, "\r\n"));
	confidential(b, token, strlen(token));
	if (e.status != 200 || token[0] == '\0')
		return keys_refused(b, &e, "the instance's metadata service");

	memset(&e, 0, sizeof(e));
	e.metadata = own;
	e.json_optional = true;
	e.url = psprintf("%s%s", base, roles);
	e.headers = http_header(NULL, "X-aws-ec2-metadata-token", token);
	if (!exchange(b, &e))
		return BACKEND_FAILED;
	role = pnstrdup(e.text, strcspn(e.text, "\r\n"));
	if (e.status != 200 || role[0] == '\0')
		return keys_refused(b, &e, "the instance's metadata service");

	memset(&e, 0, sizeof(e));
	e.metadata = own;
	e.url = psprintf("%s%s%s", base, roles, url_escape(b, role));
	e.headers = http_header(NULL, "X-aws-ec2-metadata-token", token);
	if (!exchange(b, &e))
		return BACKEND_FAILED;
	if (e.status != 200)
		return keys_refused(b, &e, "the instance's metadata service");
	return keys_take(b, e.text, e.json, keys);
}

static BackendResult
aws_keys(Backend *b, AwsKeys *keys)
{
	const AwsOptions *o = aws_of(b);
	char	   *kept;

	memset(keys, 0, sizeof(*keys));
	if (o->access.access_key_id)
	{
		keys->id = o->access.access_key_id;
		keys->secret = backend_credential(b, &o->access.secret_access_key);
		if (o->access.session_token.kind != CREDENTIAL_NONE)
			keys->token = backend_credential(b, &o->access.session_token);
		return BACKEND_OK;
	}
	if (environment("AWS_ACCESS_KEY_ID") && environment("AWS_SECRET_ACCESS_KEY"))
	{
		const char *secret = environment("AWS_SECRET_ACCESS_KEY");

		keys->id = environment("AWS_ACCESS_KEY_ID");
		keys->secret = confidential(b, pstrdup(secret), strlen(secret));
		if (environment("AWS_SESSION_TOKEN"))
		{
			char	   *token = pstrdup(environment("AWS_SESSION_TOKEN"));

			keys->token = confidential(b, token, strlen(token));
		}
		return BACKEND_OK;
	}
	kept = backend_kept(b, "keys");
	if (kept)
	{
		json_t	   *json = json_own(b, json_loads(kept, 0, NULL));

		return keys_take(b, kept, json, keys);
	}
	if (environment("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") ||
		environment("AWS_CONTAINER_CREDENTIALS_FULL_URI"))
		return keys_of_container(b, keys);
	return keys_of_instance(b, keys);
}

/* The headers of a request, signed. */
static struct curl_slist *
sign(Backend *b, const AwsKeys *keys, const char *url, const char *target,
	 const char *body)
{
	SigV4		with = {keys->id, keys->secret, keys->token,
	aws_region(aws_of(b)), "secretsmanager"};
	SigV4Header headers[] = {
		{"content-type", "application/x-amz-json-1.1"},
		{"x-amz-target", target}
	};

	return sigv4_sign(&with, "POST", url, headers, lengthof(headers), body,
					  strlen(body));
}

/* ---- calls ---- */

/* The name of the error, without what stands before '#' and after ':'. */
static char *
aws_error(const Exchange *e)
{
	const char *type = api_text(e->json, "__type");
	const char *hash;

	if (type == NULL)
		return pstrdup("");
	hash = strrchr(type, '#');
	type = hash ? hash + 1 : type;
	return pnstrdup(type, strcspn(type, ":"));
}

static bool
aws_error_is(const Exchange *e, const char *error)
{
	return e->status >= 400 && strcmp(aws_error(e), error) == 0;
}

/* Errors of the keys, or of what they may do. */
static bool
aws_forbids(const Exchange *e)
{
	static const char *const errors[] = {
		"AccessDeniedException", "AccessDenied", "ExpiredTokenException",
		"ExpiredToken", "IncompleteSignature", "IncompleteSignatureException",
		"InvalidClientTokenId", "InvalidSignatureException",
		"MissingAuthenticationToken", "MissingAuthenticationTokenException",
		"NotAuthorized", "OptInRequired", "RequestExpired",
		"SignatureDoesNotMatch", "AuthFailure", "UnrecognizedClientException"
	};
	char	   *error = aws_error(e);

	if (e->status == 401 || e->status == 403)
		return true;
	for (int i = 0; e->status >= 400 && i < lengthof(errors); i++)
	{
		if (strcmp(error, errors[i]) == 0)
			return true;
	}
	return false;
}

static BackendResult
aws_refused(Backend *b, const Exchange *e)
{
	const char *says = api_text(e->json, "message");
	char	   *error = aws_error(e);

	/* It goes into the sentence itself: words of theirs, but short ones. */
	if (strlen(error) > 64 || !http_is_token(error))
		error[0] = '\0';
	if (says == NULL)
		says = api_text(e->json, "Message");
	/* The signature of a request that was quoted is in the words: leave them. */
	if (says && strstr(says, "Canonical"))
		says = NULL;
	if (aws_forbids(e))
		return backend_fail(b, ERRCODE_MLINT_AUTHENTICATION, false, says,
							"Check the backend's keys, the role's policies and the region.",
							"it refused our credentials (status %d%s%s)",
							e->status, error[0] ? ", " : "", error);
	return backend_fail(b, ERRCODE_MLINT_API,
						strcmp(error, "ThrottlingException") == 0, says, NULL,
						"it answered with status %d%s%s", e->status,
						error[0] ? ", " : "", error);
}

/* One operation; with keys that are kept, once more with new ones. */
static BackendResult
aws_call(Backend *b, Exchange *e, const char *operation, json_t *arguments)
{
	const AwsOptions *o = aws_of(b);
	const char *region = aws_region(o);
	const char *target = psprintf("secretsmanager.%s", operation);
	char	   *body = json_write(b, arguments);
	char	   *url;

	url = o->endpoint ? psprintf("%s/", url_base(o->endpoint)) :
		psprintf("%s/", aws_url("secretsmanager", region));
	for (int attempt = 0;; attempt++)
	{
		AwsKeys		keys;

		if (aws_keys(b, &keys) != BACKEND_OK)
			return BACKEND_FAILED;
		memset(e, 0, sizeof(*e));
		e->url = url;
		e->ca = o->access.ca;
		e->body = body;
		e->headers = sign(b, &keys, url, target, body);
		if (!exchange(b, e))
			return BACKEND_FAILED;
		if (!keys.kept || attempt > 0 || !aws_forbids(e))
			return BACKEND_OK;
		backend_unkeep(b, "keys");
	}
}

/* Is the secret there no more, or not at all? */
static bool
aws_absent(const Exchange *e)
{
	const char *says = api_text(e->json, "message");

	if (says == NULL)
		says = api_text(e->json, "Message");
	return aws_error_is(e, "ResourceNotFoundException") ||
		(aws_error_is(e, "InvalidRequestException") && says &&
		 strstr(says, "marked for deletion") != NULL) ||
		(aws_error_is(e, "InvalidRequestException") && says &&
		 strstr(says, "marked deleted") != NULL);
}

/* ---- the verbs ---- */

static BackendResult
aws_get(Backend *b, const char *name, const char *version, SecretValue *value)
{
	json_t	   *arguments = json_pack("{ss}", "SecretId", name);
	Exchange	e;
	const char *text;
	json_t	   *string;

	if (version)
		json_object_set_new(arguments, strlen(version) >= VERSION_ID_MIN ?
							"VersionId" : "VersionStage", json_string(version));
	if (aws_call(b, &e, "GetSecretValue", arguments) != BACKEND_OK)
		return BACKEND_FAILED;
	if (aws_absent(&e))
		return BACKEND_ABSENT;
	/* A version id that cannot be one. */
	if (version && aws_error_is(&e, "InvalidParameterException"))
		return BACKEND_ABSENT;
	if (e.status != 200)
		return aws_refused(b, &e);
	text = api_text(e.json, "VersionId");

	value->version = pstrdup(text ? text : VERSION_CURRENT);
	string = json_object_get(e.json, "SecretString");
	if (json_is_string(string))
	{
		value->len = json_string_length(string);
		value->data = palloc(value->len + 1);
		memcpy(value->data, json_string_value(string), value->len);
		value->data[value->len] = '\0';
		return BACKEND_OK;
	}
	text = api_text(e.json, "SecretBinary");

	if (text)
	{
		int			len;

		value->data = palloc(strlen(text) + 1);
		len = crypto_unbase64(text, strlen(text), value->data);
		if (len >= 0)
		{
			value->len = len;
			value->data[len] = '\0';
			return BACKEND_OK;
		}
	}
	return exchange_strange(b, "its answer has no value");
}

/* Put the value among the arguments: text as it is, other bytes in base64. */
static void
set_value(Backend *b, json_t *arguments, const char *data, size_t len)
{
	char	   *encoded;

	if (json_carries(data, len))
	{
		json_object_set_new(arguments, "SecretString", json_stringn(data, len));
		return;
	}
	encoded = palloc(CRYPTO_BASE64_BYTES(len));
	crypto_base64(data, len, encoded);
	confidential(b, encoded, strlen(encoded));
	json_object_set_new(arguments, "SecretBinary", json_string(encoded));
}

/* A random UUID, which makes a repeated request the same one. */
static char *
request_token(void)
{
	uint8		bytes[16];
	char		hex[33];

	crypto_random(bytes, sizeof(bytes));
	bytes[6] = (bytes[6] & 0x0f) | 0x40;
	bytes[8] = (bytes[8] & 0x3f) | 0x80;
	crypto_hex(bytes, sizeof(bytes), hex);
	return psprintf("%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12,
					hex + 16, hex + 20);
}

/* [{"Key": ..., "Value": ...}], of all but the description. */
static json_t *
tags_of(json_t *about)
{
	json_t	   *tags = json_array();
	const char *key;
	json_t	   *value;

	json_object_foreach(about, key, value)
	{
		if (strcmp(key, "description") != 0)
			json_array_append_new(tags, json_pack("{sssO}", "Key", key,
												  "Value", value));
	}
	return tags;
}

static BackendResult
aws_create(Backend *b, Exchange *e, const char *name, const char *data,
		   size_t len, json_t *about)
{
	json_t	   *arguments = json_pack("{ssss}", "Name", name,
									  "ClientRequestToken", request_token());
	json_t	   *description = json_object_get(about, "description");
	json_t	   *tags = tags_of(about);

	set_value(b, arguments, data, len);
	if (description)
		json_object_set(arguments, "Description", description);
	if (json_array_size(tags) > 0)
		json_object_set(arguments, "Tags", tags);
	json_decref(tags);
	return aws_call(b, e, "CreateSecret", arguments);
}

/*
 * Tell what is to be told about a secret that exists, before its value: so a
 * put that fails has not changed the value.
 */
static BackendResult
aws_describe(Backend *b, Exchange *e, const char *name, json_t *about)
{
	json_t	   *description = json_object_get(about, "description");
	json_t	   *tags = json_own(b, tags_of(about));

	memset(e, 0, sizeof(*e));
	if (description &&
		aws_call(b, e, "UpdateSecret",
				 json_pack("{sssssO}", "SecretId", name,
						   "ClientRequestToken", request_token(),
						   "Description", description)) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e->status < 400 && json_array_size(tags) > 0 &&
		aws_call(b, e, "TagResource", json_pack("{sssO}", "SecretId", name,
												"Tags", tags)) != BACKEND_OK)
		return BACKEND_FAILED;
	return BACKEND_OK;
}

static BackendResult
aws_put(Backend *b, const char *name, const void *data, size_t len,
		const SecretAbout *about, char **version)
{
	json_t	   *told = about_object(b, about);
	json_t	   *arguments;
	const char *text;
	Exchange	e;

	if (told && aws_describe(b, &e, name, told) != BACKEND_OK)
		return BACKEND_FAILED;
	if (told == NULL || e.status < 400)
	{
		arguments = json_pack("{ssss}", "SecretId", name,
							  "ClientRequestToken", request_token());
		set_value(b, arguments, data, len);
		if (aws_call(b, &e, "PutSecretValue", arguments) != BACKEND_OK)
			return BACKEND_FAILED;
	}
	if (aws_error_is(&e, "ResourceNotFoundException") &&
		aws_create(b, &e, name, data, len, told) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status != 200)
		return aws_refused(b, &e);
	text = api_text(e.json, "VersionId");

	if (text == NULL)
		return exchange_strange(b, "its answer has no version");
	*version = pstrdup(text);
	return BACKEND_OK;
}

/*
 * Is there such a secret, not yet deleted? Asked before deleting, which
 * succeeds for one that does not exist when there is no recovery window.
 */
static BackendResult
aws_look(Backend *b, Exchange *e, const char *name)
{
	if (aws_call(b, e, "DescribeSecret",
				 json_pack("{ss}", "SecretId", name)) != BACKEND_OK)
		return BACKEND_FAILED;
	if (aws_absent(e) || json_is_number(json_object_get(e->json, "DeletedDate")))
		return BACKEND_ABSENT;
	return e->status == 200 ? BACKEND_OK : aws_refused(b, e);
}

static BackendResult
aws_delete(Backend *b, const char *name)
{
	int			days = aws_of(b)->recovery_window_days;
	Exchange	e;
	BackendResult there = aws_look(b, &e, name);

	if (there != BACKEND_OK)
		return there;
	if (aws_call(b, &e, "DeleteSecret", days > 0 ?
				 json_pack("{sssi}", "SecretId", name,
						   "RecoveryWindowInDays", days) :
				 json_pack("{sssb}", "SecretId", name,
						   "ForceDeleteWithoutRecovery", 1)) != BACKEND_OK)
		return BACKEND_FAILED;
	if (aws_absent(&e))
		return BACKEND_ABSENT;
	return e.status == 200 ? BACKEND_OK : aws_refused(b, &e);
}

typedef struct AwsVersion
{
	char	   *id;
	bool		current;
	double		created;
} AwsVersion;

/* Newest first; of the same moment the current one. */
static int
version_compare(const ListCell *a, const ListCell *b)
{
	const AwsVersion *x = lfirst(a);
	const AwsVersion *y = lfirst(b);

	if (x->created != y->created)
		return x->created > y->created ? -1 : 1;
	return (int) y->current - (int) x->current;
}

/* A list is whole, or an error. */
static BackendResult
too_many_pages(Backend *b)
{
	return backend_fail(b, ERRCODE_MLINT_API, false, NULL, NULL,
						"its list has more than %d pages", PAGES_MAX);
}

static BackendResult
aws_versions(Backend *b, const char *name, VersionVisitor visit, void *arg)
{
	Exchange	e = {0};
	List	   *versions = NIL;
	ListCell   *lc;
	const char *next = NULL;
	BackendResult there = aws_look(b, &e, name);

	if (there != BACKEND_OK)
		return there;
	for (int page = 0; page == 0 || (next && page < PAGES_MAX); page++)
	{
		json_t	   *arguments = json_pack("{sssi}", "SecretId", name,
										  "MaxResults", 100);
		json_t	   *list;
		json_t	   *v;
		size_t		i;

		if (next)
			json_object_set_new(arguments, "NextToken", json_string(next));
		if (aws_call(b, &e, "ListSecretVersionIds", arguments) != BACKEND_OK)
			return BACKEND_FAILED;
		if (e.status != 200)
			return aws_refused(b, &e);
		list = json_object_get(e.json, "Versions");
		json_array_foreach(list, i, v)
		{
			const char *id = api_text(v, "VersionId");
			json_t	   *stages = json_object_get(v, "VersionStages");
			json_t	   *stage;
			size_t		s;
			AwsVersion *version;

			if (id == NULL)
				continue;
			version = palloc0(sizeof(AwsVersion));
			version->id = pstrdup(id);
			version->created = json_number_value(json_object_get(v, "CreatedDate"));
			json_array_foreach(stages, s, stage)
			{
				if (json_is_string(stage) &&
					strcmp(json_string_value(stage), "AWSCURRENT") == 0)
					version->current = true;
			}
			versions = lappend(versions, version);
		}
		next = api_text(e.json, "NextToken");
		if (next && next[0] == '\0')
			next = NULL;
	}
	if (next)
		return too_many_pages(b);
	list_sort(versions, version_compare);
	foreach(lc, versions)
	{
		AwsVersion *version = lfirst(lc);

		visit(version->id, version->current, time_from_epoch(version->created),
			  arg);
	}
	return BACKEND_OK;
}

static BackendResult
aws_list(Backend *b, const char *prefix, NameVisitor visit, void *arg)
{
	Exchange	e = {0};
	const char *next = NULL;

	for (int page = 0; page == 0 || (next && page < PAGES_MAX); page++)
	{
		json_t	   *arguments = json_pack("{si}", "MaxResults", 100);
		json_t	   *list;
		json_t	   *secret;
		size_t		i;

		if (prefix[0] != '\0')
			json_object_set_new(arguments, "Filters",
								json_pack("[{sss[s]}]", "Key", "name",
										  "Values", prefix));
		if (next)
			json_object_set_new(arguments, "NextToken", json_string(next));
		if (aws_call(b, &e, "ListSecrets", arguments) != BACKEND_OK)
			return BACKEND_FAILED;
		if (e.status != 200)
			return aws_refused(b, &e);
		list = json_object_get(e.json, "SecretList");
		if (!json_is_array(list))
			return exchange_strange(b, "its answer has no list of secrets");
		json_array_foreach(list, i, secret)
		{
			const char *name = api_text(secret, "Name");

			if (name && strncmp(name, prefix, strlen(prefix)) == 0)
				visit(name, arg);
		}
		next = api_text(e.json, "NextToken");
		if (next && next[0] == '\0')
			next = NULL;
	}
	return next ? too_many_pages(b) : BACKEND_OK;
}

static BackendResult
aws_test(Backend *b, char **words)
{
	Exchange	e;

	if (aws_call(b, &e, "ListSecrets",
				 json_pack("{si}", "MaxResults", 1)) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status != 200)
		return aws_refused(b, &e);
	*words = psprintf("Secrets Manager in region \"%s\"",
					  aws_region(aws_of(b)));
	return BACKEND_OK;
}

const BackendKind aws_kind = {
	.base.name = "aws",
	.base.help = "AWS Secrets Manager",
	.base.options = aws_options,
	.base.options_size = sizeof(AwsOptions),
	.check = aws_check,
	.get = aws_get,
	.put = aws_put,
	.delete = aws_delete,
	.versions = aws_versions,
	.list = aws_list,
	.test = aws_test,
};
