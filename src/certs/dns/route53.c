/*
 * route53.c
 *		Records at Amazon Route 53.
 *
 * Route 53 keeps sets: all values of a name and type are one thing. So a value
 * is added to, or taken from, the set that is there, by a change that deletes the
 * old set, exactly as it was read, and makes the new one: both or neither is
 * done, and neither if somebody has changed the set meanwhile, which is then
 * read again. A change takes up to a minute until all servers have it, which
 * Route 53 is asked about.
 *
 * Its documents are XML. Of an answer we take the text of elements that have
 * names of their own; what goes back, goes back escaped as it came.
 */
#include "postgres.h"

#include "certs/dns/kind.h"
#include "certs/dns/made.h"
#include "common/api.h"
#include "common/aws.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/sigv4.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"

#define API				"2013-04-01"
#define NAMESPACE		"https://route53.amazonaws.com/doc/2013-04-01/"
#define ID_MAX			64
/* So often we try to change a set that others change, too. */
#define TRIES			5
#define VALUES_MAX		400

typedef struct Route53Options
{
	DnsOptions	common;
	char	   *hosted_zone_id;
	char	   *region;
	char	   *endpoint;
	AwsAccess	access;
} Route53Options;

#define AT(member) offsetof(Route53Options, member)

static const Option route53_options[] = {
	{"hosted_zone_id", OPTION_TEXT, AT(hosted_zone_id), NULL, 0, 0, NULL, NULL,
		false,
	"id of the hosted zone; the public one of the zone's name if not given"},
	AWS_ACCESS_OPTIONS(AT(access), true, "access key"),
	{"region", OPTION_TEXT, AT(region), "us-east-1", 0, 0, NULL, NULL, false,
	"region that requests are signed for"},
	{"endpoint", OPTION_URL, AT(endpoint), "https://route53.amazonaws.com", 0,
		0, NULL, NULL, false,
	"URL of the API"},
	{NULL}
};

/* A set of TXT records, as it is there. */
typedef struct RecordSet
{
	bool		there;
	char	   *name;			/* all of these escaped for XML */
	char	   *ttl;
	List	   *values;			/* of char * */
} RecordSet;

/* What goes into a URL as it is. */
static bool
is_id(const char *id)
{
	size_t		len = id ? strlen(id) : 0;

	return len > 0 && len <= ID_MAX &&
		strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789") == len;
}

static void
route53_check(const void *options, Oid owner, const char *what)
{
	const Route53Options *o = options;

	if (o->hosted_zone_id && !is_id(o->hosted_zone_id))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"hosted_zone_id\" of %s is not an id", what),
				 errhint("Write it like Z0123456789ABCDEFGHIJ.")));
	aws_region_check(o->region, "region", what);
	http_header_check("x-amz-access-key", o->access.access_key_id, what);
}

/* ---- XML ---- */

/*
 * The content of the next element of this name at or after *at, which moves
 * behind it; NULL: there is none. It has no element of the same name in it.
 */
static char *
next_element(const char **at, const char *name)
{
	char	   *open = psprintf("<%s>", name);
	char	   *close = psprintf("</%s>", name);
	const char *begin = *at ? strstr(*at, open) : NULL;
	const char *end;

	if (begin == NULL)
		return NULL;
	begin += strlen(open);
	end = strstr(begin, close);
	if (end == NULL)
		return NULL;
	*at = end + strlen(close);
	return pnstrdup(begin, end - begin);
}

static char *
element(const char *xml, const char *name)
{
	const char *at = xml;

	return next_element(&at, name);
}

/* ---- calls ---- */

static ApiCall
call(const Route53Options *o, const char *method, const char *path,
	 const char *body, bool tolerant)
{
	ApiCall		c = {
		.service = "Route 53",
		.method = method,
		.url = psprintf("%s/" API "/%s", url_base(o->endpoint), path),
		.ca = o->access.ca,
		.timeout_ms = o->common.timeout_ms,
		.tolerant = true
	};
	SigV4		keys = {.key_id = o->access.access_key_id,.region = o->region,
	.service = "route53"};
	SigV4Header type = {"content-type", "application/xml"};
	size_t		len;
	char	   *code;

	keys.secret = credential_resolve(&o->access.secret_access_key, &len);
	(void) api_confidential(unconstify(char *, keys.secret), len);
	if (o->access.session_token.kind != CREDENTIAL_NONE)
	{
		keys.token = credential_resolve(&o->access.session_token, &len);
		(void) api_confidential(unconstify(char *, keys.token), len);
	}
	c.body = body;
	c.body_len = body ? strlen(body) : 0;
	c.headers = sigv4_sign(&keys, method, c.url, &type, body ? 1 : 0,
						   body ? body : "", c.body_len);
	api_call(&c);
	code = c.status >= 400 ? element(c.text, "Code") : NULL;
	if (code && strncmp(code, "Throttl", 7) == 0)
		api_throttled(&c, element(c.text, "Message"));
	if (c.status >= 400 && !tolerant)
	{
		char	   *says = element(c.text, "Message");

		/* The words about a signature quote the request. */
		if (says && strstr(says, "Canonical"))
			says = NULL;
		api_refused(&c, says ? says : code);
	}
	return c;
}

/* The answer must be a document of this name. */
static void
require_document(const ApiCall *c, const char *name)
{
	if (strstr(c->text, psprintf("<%s", name)) == NULL)
		api_strange(c, psprintf("without a %s", name));
}

static char *
find_zone(const Route53Options *o, const char *zone)
{
	ApiCall		c;
	const char *at;
	char	   *one;

	if (o->hosted_zone_id)
		return o->hosted_zone_id;
	c = call(o, "GET", psprintf("hostedzonesbyname?dnsname=%s&maxitems=10",
								sigv4_escape(zone, true)), NULL, false);
	require_document(&c, "ListHostedZonesByNameResponse");
	at = c.text;
	while ((one = next_element(&at, "HostedZone")) != NULL)
	{
		char	   *name = element(one, "Name");
		char	   *private = element(one, "PrivateZone");
		char	   *id = element(one, "Id");
		const char *slash = id ? strrchr(id, '/') : NULL;

		if (name == NULL || id == NULL ||
			pg_strcasecmp(name, psprintf("%s.", zone)) != 0 ||
			(private && strcmp(private, "true") == 0))
			continue;
		id = slash ? pstrdup(slash + 1) : id;
		if (!is_id(id))
			api_strange(&c, "with an id that is none");
		return id;
	}
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("Route 53 has no public hosted zone \"%s\" for these keys",
					zone),
			 errhint("Check the account of the keys; or name the zone's id in option \"hosted_zone_id\".")));
}

/* The set that is there. */
static void
read_set(const Route53Options *o, const char *zone, const DnsRecord *record,
		 RecordSet *set)
{
	ApiCall		c = call(o, "GET",
						 psprintf("hostedzone/%s/rrset?maxitems=1&name=%s&type=TXT",
								  zone, sigv4_escape(record->name, true)),
						 NULL, false);
	char	   *one = element(c.text, "ResourceRecordSet");
	const char *at;
	char	   *value;

	require_document(&c, "ListResourceRecordSetsResponse");
	memset(set, 0, sizeof(*set));
	set->name = psprintf("%s.", record->name);
	set->ttl = psprintf("%d", o->common.ttl);
	if (one == NULL || element(one, "Name") == NULL ||
		element(one, "Type") == NULL ||
		pg_strcasecmp(element(one, "Name"), set->name) != 0 ||
		strcmp(element(one, "Type"), "TXT") != 0)
		return;
	if (element(one, "SetIdentifier"))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the record \"%s\" has a routing policy at Route 53",
						record->name),
				 errhint("Make it a simple record, or a CNAME to a name that is there for challenges alone.")));
	set->there = true;
	if (element(one, "TTL"))
		set->ttl = element(one, "TTL");
	at = one;
	while ((value = next_element(&at, "Value")) != NULL &&
		   list_length(set->values) <= VALUES_MAX)
		set->values = lappend(set->values, value);
}

/* Is this value, escaped or not, the quoted text? */
static bool
value_is(const char *value, const char *text)
{
	return strcmp(value, psprintf("\"%s\"", text)) == 0 ||
		strcmp(value, psprintf("&quot;%s&quot;", text)) == 0;
}

/* ---- changes ---- */

static void
append_change(StringInfo out, const char *action, const RecordSet *set,
			  List *values)
{
	ListCell   *lc;

	appendStringInfo(out,
					 "<Change><Action>%s</Action><ResourceRecordSet>"
					 "<Name>%s</Name><Type>TXT</Type><TTL>%s</TTL>"
					 "<ResourceRecords>", action, set->name, set->ttl);
	foreach(lc, values)
		appendStringInfo(out, "<ResourceRecord><Value>%s</Value></ResourceRecord>",
						 (char *) lfirst(lc));
	appendStringInfoString(out,
						   "</ResourceRecords></ResourceRecordSet></Change>");
}

/*
 * Put these values in place of those that were read. False: somebody has
 * changed the set meanwhile. *change is the id to ask about.
 */
static bool
change_set(const Route53Options *o, const char *zone, const RecordSet *set,
		   List *values, char **change)
{
	StringInfoData body;
	ApiCall		c;
	char	   *id;
	char	   *code;
	const char *slash;

	initStringInfo(&body);
	appendStringInfoString(&body,
						   "<?xml version=\"1.0\" encoding=\"UTF-8\"?>"
						   "<ChangeResourceRecordSetsRequest xmlns=\"" NAMESPACE
						   "\"><ChangeBatch><Changes>");
	if (set->there)
		append_change(&body, "DELETE", set, set->values);
	if (values != NIL)
		append_change(&body, set->there ? "UPSERT" : "CREATE", set, values);
	appendStringInfoString(&body,
						   "</Changes></ChangeBatch>"
						   "</ChangeResourceRecordSetsRequest>");
	c = call(o, "POST", psprintf("hostedzone/%s/rrset/", zone), body.data,
			 true);
	code = element(c.text, "Code");
	if (c.status == 400 &&
		(strstr(c.text, "InvalidChangeBatch") != NULL ||
		 (code && strcmp(code, "PriorRequestNotComplete") == 0)))
	{
		*change = element(c.text, "Message");
		return false;
	}
	if (c.status >= 400)
		api_refused(&c, element(c.text, "Message"));
	require_document(&c, "ChangeResourceRecordSetsResponse");
	id = element(c.text, "Id");
	slash = id ? strrchr(id, '/') : NULL;
	*change = slash ? pstrdup(slash + 1) : id;
	if (!is_id(*change))
		api_strange(&c, "without the id of the change");
	return true;
}

/* With our value, or without it; NULL: so it is already. */
static char *
bring_about(const Route53Options *o, const char *zone,
			const DnsRecord *record, bool present)
{
	char	   *change = NULL;

	for (int i = 0; i < TRIES; i++)
	{
		RecordSet	set;
		List	   *values = NIL;
		ListCell   *lc;
		bool		found = false;

		CHECK_FOR_INTERRUPTS();
		read_set(o, zone, record, &set);
		foreach(lc, set.values)
		{
			if (value_is(lfirst(lc), record->value))
				found = true;
			else
				values = lappend(values, lfirst(lc));
		}
		if (found == present)
			return NULL;
		if (present)
			values = lappend(values, psprintf("\"%s\"", record->value));
		if (change_set(o, zone, &set, values, &change))
			return change;
	}
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_API),
			 errmsg("Route 53 refuses to change the record \"%s\"",
					record->name),
			 errdetail("It was read and changed %d times. It says: %s", TRIES,
					   change ? change : "nothing")));
}

/* ---- the verbs ---- */

static Jsonb *
route53_present(const void *options, Oid owner, const DnsRecord *record)
{
	char	   *zone = find_zone(options, record->zone);
	char	   *change = bring_about(options, zone, record, true);

	if (change == NULL)
		return made_of("zone_id", zone, NULL);
	return made_of("zone_id", zone, "change", change, NULL);
}

static bool
route53_settled(const void *options, Oid owner, const DnsRecord *record)
{
	char	   *change = made_text(record->made, "change");
	ApiCall		c;
	char	   *status;

	if (change == NULL)
		return true;
	c = call(options, "GET", psprintf("change/%s", change), NULL, false);
	require_document(&c, "GetChangeResponse");
	status = element(c.text, "Status");
	return status && strcmp(status, "INSYNC") == 0;
}

static void
route53_remove(const void *options, Oid owner, const DnsRecord *record)
{
	char	   *zone = made_text(record->made, "zone_id");

	if (zone == NULL)
		zone = find_zone(options, record->zone);
	(void) bring_about(options, zone, record, false);
}

const DnsKind dns_route53 = {
	.base = {
		.name = "route53",
		.help = "Amazon Route 53",
		.options = route53_options,
		.options_size = sizeof(Route53Options)
	},
	.check = route53_check,
	.present = route53_present,
	.settled = route53_settled,
	.remove = route53_remove,
};
