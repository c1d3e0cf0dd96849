/*
 * azure.c
 *		Records at Azure DNS, by Azure's resource manager.
 *
 * Azure keeps sets: all values of a name and type are one thing, with an ETag. A
 * value is added to, or taken from, the set that is there, on the condition that
 * it is still the one that was read; if not, it is read again. An empty set is
 * deleted.
 */
#include "postgres.h"

#include "certs/dns/kind.h"
#include "certs/dns/record.h"
#include "common/azure.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/sigv4.h"

#define API_VERSION		"2018-05-01"
#define TRIES			5

typedef struct AzureDnsOptions
{
	DnsOptions	common;
	AzureLogin	login;
	char	   *subscription_id;
	char	   *resource_group;
	char	   *endpoint;
	char	   *ca;
} AzureDnsOptions;

#define AT(member) offsetof(AzureDnsOptions, member)

static const Option azure_dns_options[] = {
	{"subscription_id", OPTION_TEXT, AT(subscription_id), NULL, 0, 0, NULL,
		NULL, true,
	"subscription that the zones are in"},
	{"resource_group", OPTION_TEXT, AT(resource_group), NULL, 0, 0, NULL, NULL,
	true, "resource group that the zones are in"},
	AZURE_LOGIN_OPTIONS(AzureDnsOptions, login),
	{"endpoint", OPTION_URL, AT(endpoint), "https://management.azure.com", 0,
		0, NULL, NULL, false,
	"URL of the resource manager"},
	{"ca", OPTION_TEXT, AT(ca), NULL, 0, 0, NULL, NULL, false,
	"certificates to trust instead of the system's, PEM"},
	{NULL}
};

static void
azure_dns_check(const void *options, Oid owner, const char *what)
{
	const AzureDnsOptions *o = options;

	if (o->subscription_id[0] == '\0' ||
		strspn(o->subscription_id, "abcdefABCDEF0123456789-") !=
		strlen(o->subscription_id))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"subscription_id\" of %s is not an id", what)));
	if (o->resource_group[0] == '\0' || strlen(o->resource_group) > 90)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"resource_group\" of %s is not the name of a resource group",
						what)));
	azure_login_permit(&o->login, owner, what);
}

/* ---- calls ---- */

/* On a set; header and its value (or NULL) are a condition. */
static ApiCall
call(const AzureDnsOptions *o, const char *bearer, const DnsRecord *record,
	 const char *method, json_t *body, const char *condition,
	 const char *etag)
{
	ApiCall		c = {
		.service = "Azure DNS",
		.method = method,
		.ca = o->ca,
		.timeout_ms = o->common.timeout_ms,
		.tolerant = true
	};

	c.url = psprintf("%s/subscriptions/%s/resourceGroups/%s/providers"
					 "/Microsoft.Network/dnsZones/%s/TXT/%s?api-version="
					 API_VERSION, url_base(o->endpoint), o->subscription_id,
					 sigv4_escape(o->resource_group, true),
					 sigv4_escape(record->zone, true),
					 sigv4_escape(dns_name_relative(record->name,
													record->zone), true));
	c.headers = http_header(NULL, "Authorization", bearer);
	if (condition)
		c.headers = http_header(c.headers, condition, etag);
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

/* The set that is there, as "properties" of its document; NULL: there is none. */
static json_t *
read_set(const AzureDnsOptions *o, const char *bearer,
		 const DnsRecord *record, char **etag)
{
	ApiCall		c = call(o, bearer, record, "GET", NULL, NULL, NULL);
	json_t	   *properties = json_object_get(c.json, "properties");

	if (c.status == 404 &&
		api_text(json_object_get(c.json, "error"), "code") &&
		strcmp(api_text(json_object_get(c.json, "error"), "code"),
			   "NotFound") == 0)
		return NULL;
	if (c.status >= 400)
		api_refused(&c, NULL);
	if (!json_is_object(properties) || api_text(c.json, "etag") == NULL)
		api_strange(&c, "without a record set");
	*etag = pstrdup(api_text(c.json, "etag"));
	return properties;
}

/* Is this one of {"value": ["...", ...]} our value? Long ones are in parts. */
static bool
value_is(const json_t *one, const char *value)
{
	json_t	   *parts = json_object_get(one, "value");
	json_t	   *part;
	size_t		i;

	json_array_foreach(parts, i, part)
	{
		size_t		len = json_string_length(part);

		if (!json_is_string(part) || strlen(value) < len ||
			memcmp(value, json_string_value(part), len) != 0)
			return false;
		value += len;
	}
	return *value == '\0';
}

/* The set's values, but for ours; *found says whether it was there. */
static json_t *
other_values(json_t *properties, const char *value, bool *found)
{
	json_t	   *others = api_json_own(json_array());
	json_t	   *one;
	size_t		i;

	*found = false;
	json_array_foreach(json_object_get(properties, "TXTRecords"), i, one)
	{
		if (value_is(one, value))
			*found = true;
		else if (json_array_append(others, one) != 0)
			elog(ERROR, "could not write JSON");
	}
	return others;
}

/* Put the set, or delete it. False: it was changed meanwhile. */
static bool
write_set(const AzureDnsOptions *o, const char *bearer,
		  const DnsRecord *record, json_t *properties, json_t *values,
		  const char *etag)
{
	json_t	   *ttl = json_object_get(properties, "TTL");
	json_t	   *body = NULL;
	ApiCall		c;

	if (json_array_size(values) > 0)
		body = api_json_own(json_pack("{s{sIsO}}", "properties", "TTL",
									  json_is_integer(ttl) ?
									  json_integer_value(ttl) :
									  (json_int_t) o->common.ttl,
									  "TXTRecords", values));
	c = call(o, bearer, record, body ? "PUT" : "DELETE", body,
			 etag ? "If-Match" : "If-None-Match", etag ? etag : "*");
	if (c.status == 412)
		return false;
	if (c.status >= 400 && !(body == NULL && c.status == 404))
		api_refused(&c, NULL);
	return true;
}

static void
bring_about(const AzureDnsOptions *o, const DnsRecord *record, bool present)
{
	char	   *bearer = azure_login(&o->login, o->endpoint, o->ca,
									 o->common.timeout_ms);

	for (int i = 0; i < TRIES; i++)
	{
		char	   *etag = NULL;
		json_t	   *properties = read_set(o, bearer, record, &etag);
		bool		found;
		json_t	   *values = other_values(properties, record->value, &found);

		if (found == present)
			return;
		if (present &&
			json_array_append_new(values, json_pack("{s[s]}", "value",
													record->value)) != 0)
			elog(ERROR, "could not write JSON");
		if (write_set(o, bearer, record, properties, values, etag))
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_API),
			 errmsg("the record \"%s\" at Azure DNS is changed by others all the time",
					record->name)));
}

/* ---- the verbs ---- */

static Jsonb *
azure_dns_present(const void *options, Oid owner, const DnsRecord *record)
{
	bring_about(options, record, true);
	return NULL;
}

static void
azure_dns_remove(const void *options, Oid owner, const DnsRecord *record)
{
	bring_about(options, record, false);
}

const DnsKind dns_azure = {
	.base = {
		.name = "azure",
		.help = "Azure DNS",
		.options = azure_dns_options,
		.options_size = sizeof(AzureDnsOptions)
	},
	.check = azure_dns_check,
	.present = azure_dns_present,
	.remove = azure_dns_remove,
};
