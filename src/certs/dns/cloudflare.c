/*
 * cloudflare.c
 *		Records at Cloudflare, by its API (version 4) with a token that may edit
 *		DNS, and read zones unless the zone's id is given.
 *
 * Cloudflare keeps records, not sets of them: each value is one with an id of
 * its own. One that is there already is refused, and then found. What is removed
 * is the record that we remember, or, if we died before we could, the one of
 * that name and value.
 */
#include "postgres.h"

#include "certs/dns/kind.h"
#include "certs/dns/made.h"
#include "common/api.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/sigv4.h"

#define TTL_MIN			60
#define ID_MAX			64
#define RECORDS_MAX		100
/* "An identical record already exists": the code has changed once. */
#define CODE_IDENTICAL		81058
#define CODE_IDENTICAL_OLD	81057

typedef struct CloudflareOptions
{
	DnsOptions	common;
	Credential	token;
	char	   *zone_id;
	char	   *endpoint;
	char	   *ca;
} CloudflareOptions;

#define AT(member) offsetof(CloudflareOptions, member)

static const Option cloudflare_options[] = {
	{"token", OPTION_CREDENTIAL, AT(token), NULL, 0, 0, NULL, NULL, true,
	"API token with the permission to edit DNS of the zones, and to read zones unless zone_id is given"},
	{"zone_id", OPTION_TEXT, AT(zone_id), NULL, 0, 0, NULL, NULL, false,
	"id of the zone; found by its name if not given"},
	{"endpoint", OPTION_URL, AT(endpoint),
		"https://api.cloudflare.com/client/v4", 0, 0, NULL, NULL, false,
	"URL of the API"},
	{"ca", OPTION_TEXT, AT(ca), NULL, 0, 0, NULL, NULL, false,
	"certificates to trust instead of the system's, PEM"},
	{NULL}
};

/* What goes into a URL as it is. */
static bool
is_id(const char *id)
{
	size_t		len = id ? strlen(id) : 0;

	return len > 0 && len <= ID_MAX &&
		strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789-_") == len;
}

static void
cloudflare_check(const void *options, Oid owner, const char *what)
{
	const CloudflareOptions *o = options;

	if (o->zone_id && !is_id(o->zone_id))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"zone_id\" of %s is not an id", what)));
}

/* ---- calls ---- */

/* Call; statuses of 400 and more are the caller's when "tolerant". */
static ApiCall
call(const CloudflareOptions *o, const char *method, const char *path,
	 json_t *body, bool tolerant)
{
	ApiCall		c = {
		.service = "Cloudflare",
		.method = method,
		.url = psprintf("%s/%s", url_base(o->endpoint), path),
		.ca = o->ca,
		.timeout_ms = o->common.timeout_ms,
		.tolerant = tolerant
	};
	size_t		len;
	char	   *token = credential_resolve(&o->token, &len);
	char	   *bearer;

	(void) api_confidential(token, len);
	bearer = psprintf("Bearer %s", token);
	(void) api_confidential(bearer, strlen(bearer));
	c.headers = http_header(NULL, "Authorization", bearer);
	if (body)
	{
		char	   *text = json_dumps(body, JSON_COMPACT);

		if (text == NULL)
			elog(ERROR, "could not write JSON");
		c.headers = http_header(c.headers, "Content-Type", "application/json");
		c.body = pstrdup(text);
		c.body_len = strlen(c.body);
		free(text);
	}
	api_call(&c);
	return c;
}

static json_t *
result_of(const ApiCall *c)
{
	json_t	   *result = json_object_get(c->json, "result");

	if (result == NULL || !json_is_true(json_object_get(c->json, "success")))
		api_strange(c, "without a result");
	return result;
}

static bool
has_error(const ApiCall *c, json_int_t code)
{
	json_t	   *errors = json_object_get(c->json, "errors");
	json_t	   *error;
	size_t		i;

	json_array_foreach(errors, i, error)
	{
		if (json_integer_value(json_object_get(error, "code")) == code)
			return true;
	}
	return false;
}

static char *
find_zone(const CloudflareOptions *o, const char *zone)
{
	ApiCall		c;
	json_t	   *result;
	const char *id;

	if (o->zone_id)
		return o->zone_id;
	c = call(o, "GET", psprintf("zones?name=%s", sigv4_escape(zone, true)),
			 NULL, false);
	result = result_of(&c);
	if (json_is_array(result) && json_array_size(result) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("Cloudflare shows no zone \"%s\" to this token", zone),
				 errhint("Check the zones that the token is for, and that it may read zones; or name the zone's id in option \"zone_id\".")));
	id = api_text(json_array_get(result, 0), "id");
	if (!is_id(id))
		api_strange(&c, "without the id of the zone");
	return pstrdup(id);
}

/* Does a record's content, quoted or not, have this value? */
static bool
content_is(const char *content, const char *value)
{
	size_t		len = strlen(value);

	if (content == NULL)
		return false;
	return strcmp(content, value) == 0 ||
		(strlen(content) == len + 2 && content[0] == '"' &&
		 content[len + 1] == '"' && memcmp(content + 1, value, len) == 0);
}

/* The id of the record with our value, or NULL. */
static char *
find_record(const CloudflareOptions *o, const char *zone,
			const DnsRecord *record)
{
	ApiCall		c = call(o, "GET",
						 psprintf("zones/%s/dns_records?type=TXT&name=%s&per_page=%d",
								  zone, sigv4_escape(record->name, true),
								  RECORDS_MAX), NULL, false);
	json_t	   *one;
	size_t		i;

	json_array_foreach(result_of(&c), i, one)
	{
		const char *id = api_text(one, "id");

		if (is_id(id) && content_is(api_text(one, "content"), record->value))
			return pstrdup(id);
	}
	return NULL;
}

/* ---- the verbs ---- */

static Jsonb *
cloudflare_present(const void *options, Oid owner, const DnsRecord *record)
{
	const CloudflareOptions *o = options;
	char	   *zone = find_zone(o, record->zone);
	json_t	   *body = api_json_own(json_pack("{sssssssi}",
											  "type", "TXT",
											  "name", record->name,
											  "content",
											  psprintf("\"%s\"", record->value),
											  "ttl",
											  Max(o->common.ttl, TTL_MIN)));
	ApiCall		c = call(o, "POST", psprintf("zones/%s/dns_records", zone),
						 body, true);
	const char *id;

	if (c.status >= 400 && (has_error(&c, CODE_IDENTICAL) ||
							has_error(&c, CODE_IDENTICAL_OLD)))
		id = find_record(o, zone, record);
	else if (c.status >= 400)
		api_refused(&c, NULL);
	else
		id = api_text(result_of(&c), "id");
	if (!is_id(id))
		api_strange(&c, "without the id of the record");
	return made_of("zone_id", zone, "id", id, NULL);
}

static void
delete_record(const CloudflareOptions *o, const char *zone, const char *id)
{
	ApiCall		c = call(o, "DELETE",
						 psprintf("zones/%s/dns_records/%s", zone, id), NULL,
						 true);

	if (c.status >= 400 && c.status != 404)
		api_refused(&c, NULL);
}

static void
cloudflare_remove(const void *options, Oid owner, const DnsRecord *record)
{
	const CloudflareOptions *o = options;
	char	   *zone = made_text(record->made, "zone_id");
	char	   *id = made_text(record->made, "id");

	if (zone == NULL)
		zone = find_zone(o, record->zone);
	if (id == NULL)
		id = find_record(o, zone, record);
	if (id)
		delete_record(o, zone, id);
}

const DnsKind dns_cloudflare = {
	.base = {
		.name = "cloudflare",
		.help = "Cloudflare",
		.options = cloudflare_options,
		.options_size = sizeof(CloudflareOptions)
	},
	.check = cloudflare_check,
	.present = cloudflare_present,
	.remove = cloudflare_remove,
};
