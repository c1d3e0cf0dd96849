/*
 * provider.c
 *		DNS providers as rows: create, alter, drop, test, open.
 *
 * Whatever can be known to be wrong with options is refused here. A provider is
 * dropped only when no certificate is to be proved with it, and nothing of ours
 * is left where it leads, but for what has been given up.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/certs.h"
#include "certs/dns/dns.h"
#include "certs/dns/lookup.h"
#include "certs/dns/record.h"
#include "common/argument.h"
#include "common/audit.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/http.h"
#include "common/owner.h"
#include "common/role.h"
#include "common/trial.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_dns_provider_create);
PG_FUNCTION_INFO_V1(mlint_dns_provider_alter);
PG_FUNCTION_INFO_V1(mlint_dns_provider_drop);
PG_FUNCTION_INFO_V1(mlint_dns_provider_test);
PG_FUNCTION_INFO_V1(mlint_dns_provider_options);

/* How often a test looks whether its record is to be seen. */
#define LOOK_MS		500

#define AT(member) offsetof(DnsOptions, member)

static const Option common_options[] = {
	{"timeout_ms", OPTION_INT, AT(timeout_ms), "10000", 100, 120000, NULL,
		NULL, false,
	"how long one exchange with the service, or with a name server, may take, in milliseconds"},
	{"propagation_timeout_s", OPTION_INT, AT(propagation_timeout_s), "600", 0,
		86400, NULL, NULL, false,
	"how long to wait until all name servers of the zone show the record, in seconds; 0: nobody looks"},
	{"ttl", OPTION_INT, AT(ttl), "60", 1, 86400, NULL, NULL, false,
	"time to live of the record, in seconds"},
	{"zone", OPTION_TEXT, AT(zone), NULL, 0, 0, NULL, NULL, false,
	"zone that the records are in; found in DNS if not given"},
	{"resolver", OPTION_TEXT, AT(resolver), NULL, 0, 0, NULL, NULL, false,
	"address, or address:port, of the name server that zones, aliases and name servers are looked up at, over TCP; those of /etc/resolv.conf if not given"},
	{"nameservers", OPTION_TEXT, AT(nameservers), NULL, 0, 0, NULL, NULL,
		false,
	"addresses of the name servers that must show the record, separated by commas; those of the zone if not given"},
	{"port", OPTION_INT, AT(port), "53", 1, 65535, NULL, NULL, false,
	"port of the zone's name servers"},
	{NULL}
};

static const ConfiguredKind *const kinds[] = {
	&dns_rfc2136.base, &dns_cloudflare.base, &dns_route53.base,
	&dns_azure.base, &dns_function.base, NULL
};

/* ---- checks ---- */

static void
bad_option(const char *option, const char *what, const char *must)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("option \"%s\" of %s must be %s", option, what, must),
			 errhint("Write an address like 192.0.2.1, 192.0.2.1:5353 or [2001:db8::1]:5353.")));
}

static void
check_provider(const Configured *c, Oid role, const char *action)
{
	const DnsOptions *o = c->parsed;
	const DnsKind *kind = (const DnsKind *) c->kind;
	DnsServer	server;
	char	   *save;

	if (o->resolver && !dns_server_parse(o->resolver, DNS_PORT, false,
										 &server))
		bad_option("resolver", c->what, "the address of a name server");
	if (o->nameservers)
	{
		char	   *word = strtok_r(pstrdup(o->nameservers), ", ", &save);

		if (word == NULL)
			bad_option("nameservers", c->what,
					   "addresses of name servers, separated by commas");
		for (; word; word = strtok_r(NULL, ", ", &save))
		{
			if (!dns_server_parse(word, o->port, false, &server))
				bad_option("nameservers", c->what,
						   "addresses of name servers, separated by commas");
		}
	}
	if (o->zone && (o->zone[0] == '\0' || o->zone[0] == '.' ||
					strlen(o->zone) > DNS_NAME_MAX ||
					strstr(o->zone, "..") != NULL ||
					strspn(o->zone, "abcdefghijklmnopqrstuvwxyz"
						   "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") !=
					strlen(o->zone)))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"zone\" of %s must be the name of a zone",
						c->what)));
	if (kind->check)
		kind->check(o, role, c->what);
}

static void
check_unused(int32 id, const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	bool		isnull;

	owner_run(NULL,
			  "SELECT (SELECT c.name FROM mlint.certificate c"
			  " WHERE c.challenge = 'dns-01' AND c.solver = $1"
			  " ORDER BY c.name LIMIT 1),"
			  " EXISTS (SELECT FROM mlint.acme_challenge h"
			  " WHERE h.type = 'dns-01' AND h.solver = $1"
			  " AND h.presence IN ('presenting', 'checking', 'present', 'removing')"
			  " AND h.next_at < 'infinity')",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1))
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("DNS provider \"%s\" cannot be dropped: certificate \"%s\" is proved with it",
						name, SPI_getvalue(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1))));
	if (DatumGetBool(owner_column(2, &isnull)))
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("DNS provider \"%s\" cannot be dropped: records made with it are still to be removed",
						name),
				 errhint("The job certificate_challenges does so; the view mlint.certificate_challenges shows them, and what it last failed with.")));
}

static const ConfiguredSort providers = {
	.noun = "DNS provider",
	.identifier = "dns_provider",
	.kinds = kinds,
	.options = common_options,
	.owned = true,
	.check = check_provider,
	.check_drop = check_unused
};

/* ---- the functions of the interface ---- */

/* What has failed, or was given up, is tried again at once. */
static void
try_again(Datum name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {name};
	bool		some;

	some = owner_do(NULL,
					"UPDATE mlint.acme_challenge"
					" SET next_at = pg_catalog.clock_timestamp(), attempts = 0"
					" WHERE type = 'dns-01' AND solver = $1"
					" AND presence IN ('wanted', 'presenting', 'checking', 'removing')",
					SPI_OK_UPDATE, 1, types, values, NULL);
	if (some)
		(void) job_request(CERTIFICATE_CHALLENGE_JOB);
}

/*
 * mlint.dns_provider_create(name, kind, options). One of that name may have been
 * dropped when removing a record of it had been given up.
 */
Datum
mlint_dns_provider_create(PG_FUNCTION_ARGS)
{
	(void) configured_create(&providers, fcinfo);
	try_again(PG_GETARG_DATUM(0));
	PG_RETURN_VOID();
}

/* mlint.dns_provider_alter(name, options) */
Datum
mlint_dns_provider_alter(PG_FUNCTION_ARGS)
{
	(void) configured_alter(&providers, fcinfo);
	try_again(PG_GETARG_DATUM(0));
	PG_RETURN_VOID();
}

/* mlint.dns_provider_drop(name) */
Datum
mlint_dns_provider_drop(PG_FUNCTION_ARGS)
{
	(void) configured_drop(&providers, fcinfo);
	PG_RETURN_VOID();
}

/* mlint.dns_provider_options() */
Datum
mlint_dns_provider_options(PG_FUNCTION_ARGS)
{
	return configured_options(&providers, fcinfo);
}

void
dns_provider_open(const char *name, DnsProvider *provider)
{
	Configured	c;

	if (!configured_find(&providers, name, 0, &c))
		configured_missing(&providers, name);
	provider->name = c.name;
	provider->kind = (const DnsKind *) c.kind;
	provider->owner = c.created_by;
	provider->options = c.parsed;
	if (c.kind->runs_sql)
		role_require(c.created_by, "created the DNS provider");
}

void
dns_provider_require(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	OwnerScope	scope;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT FROM mlint.dns_provider WHERE name = $1 FOR KEY SHARE",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		configured_missing(&providers, name);
	owner_end(&scope);
}

bool
dns_provider_shows(const DnsProvider *provider, const DnsRecord *record,
				   char **waiting)
{
	*waiting = NULL;
	if (provider->options->propagation_timeout_s == 0)
		return true;
	if (provider->kind->settled &&
		!provider->kind->settled(provider->options, provider->owner, record))
	{
		*waiting = psprintf("DNS provider \"%s\" has not yet told its name servers",
							provider->name);
		return false;
	}
	return dns_visible(provider->options, record->zone, record->name,
					   record->value, waiting);
}

/* ---- the test ---- */

/* Wait until the record is to be seen; raises when that takes too long. */
static void
wait_until_shown(const DnsProvider *provider, const DnsRecord *record)
{
	int64		deadline = http_clock() +
	provider->options->propagation_timeout_s * USECS_PER_SEC;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext each = AllocSetContextCreate(caller, "mlint DNS look",
											   ALLOCSET_DEFAULT_SIZES);
	char	   *waiting;

	MemoryContextSwitchTo(each);
	while (!dns_provider_shows(provider, record, &waiting))
	{
		if (http_clock() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_TIMEOUT),
					 errmsg("the record \"%s\" was made, and not seen in %d s",
							record->name,
							provider->options->propagation_timeout_s),
					 errdetail("%s.", waiting),
					 errhint("See option \"propagation_timeout_s\" of the DNS provider.")));
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOOK_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(each);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(each);
}

/* What removing fails with is less than why it was needed. */
static void
remove_quietly(const DnsProvider *provider, const DnsRecord *record)
{
	Trial		trial;

	trial_begin(&trial);
	PG_TRY();
	{
		provider->kind->remove(provider->options, provider->owner, record);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			ReThrowError(error);
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("the record \"%s\" of the test may still be there: %s",
						record->name, error->message)));
	}
	PG_END_TRY();
}

/* Make it and see it; it is removed also when that fails. */
static void
make_and_see(const DnsProvider *provider, DnsRecord *record)
{
	Trial		trial;

	trial_begin(&trial);
	PG_TRY();
	{
		record->made = provider->kind->present(provider->options,
											   provider->owner, record);
		wait_until_shown(provider, record);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		remove_quietly(provider, record);
		ReThrowError(error);
	}
	PG_END_TRY();
}

/* A value as a challenge has it: 43 characters of base64url. */
static char *
random_value(void)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
	char	   *value = palloc(44);
	uint8		bytes[43];

	crypto_random(bytes, sizeof(bytes));
	for (int i = 0; i < 43; i++)
		value[i] = letters[bytes[i] & 63];
	value[43] = '\0';
	return value;
}

/* mlint.dns_provider_test(name, domain) */
Datum
mlint_dns_provider_test(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "name");
	char	   *domain = required_text(fcinfo, 1, "domain");
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(caller, "mlint DNS test",
											   ALLOCSET_DEFAULT_SIZES);
	DnsProvider provider;
	DnsRecord	record = {0};
	char	   *record_name;
	char	   *zone;
	int64		begun;
	text	   *result;

	audit(AUDIT_DONE, "dns_provider.test", "dns_provider", name, NULL);
	MemoryContextSwitchTo(work);
	dns_provider_open(name, &provider);
	dns_record_locate(provider.options, domain, &record_name, &zone);
	record.name = record_name;
	record.zone = zone;
	record.identifier = domain;
	record.token = record.value = random_value();
	begun = http_clock();
	make_and_see(&provider, &record);
	begun = http_clock() - begun;
	provider.kind->remove(provider.options, provider.owner, &record);
	MemoryContextSwitchTo(caller);
	result = cstring_to_text(psprintf(provider.options->propagation_timeout_s ?
									  "%s in zone %s, seen after %.1f s" :
									  "%s in zone %s, made in %.1f s",
									  record.name, record.zone,
									  begun / 1000000.0));
	MemoryContextDelete(work);
	PG_RETURN_TEXT_P(result);
}
