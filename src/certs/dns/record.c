/*
 * record.c
 *		Where the record of a challenge is to be made; see record.h.
 *
 * Whoever cannot, or does not want to, have the zone of a domain changed by
 * mlint makes _acme-challenge.<domain> a CNAME once, into a zone that is there
 * for that alone. Authorities follow it, so we do, for a bounded number of
 * steps, and make the record where it leads.
 *
 * The zone is the closest ancestor that has an SOA record (RFC 2136, 4.3 does
 * it the same way), unless an option says it. A name server that answers with
 * anything but "it is" and "it is not" ends the search with an error: taken for
 * "it is not" it would have us make the record elsewhere.
 */
#include "postgres.h"

#include "certs/dns/lookup.h"
#include "certs/dns/record.h"
#include "common/errors.h"

#define CNAMES_MAX		8
#define PREFIX			"_acme-challenge."

bool
dns_name_within(const char *name, const char *domain)
{
	size_t		n = strlen(name);
	size_t		d = strlen(domain);

	return n >= d && pg_strcasecmp(name + n - d, domain) == 0 &&
		(n == d || name[n - d - 1] == '.');
}

char *
dns_name_relative(const char *name, const char *zone)
{
	size_t		n = strlen(name);
	size_t		z = strlen(zone);

	return n == z ? pstrdup("@") : pnstrdup(name, n - z - 1);
}

/* Where a name is an alias of, or NULL. */
static char *
alias_of(const DnsOptions *options, const char *name)
{
	ldns_rdf   *owner = dns_own_name(name);
	ldns_rr_list *answer =
	ldns_pkt_answer(dns_resolve(options, name, LDNS_RR_TYPE_CNAME));

	for (size_t i = 0; i < ldns_rr_list_rr_count(answer); i++)
	{
		ldns_rr    *rr = ldns_rr_list_rr(answer, i);
		char	   *target;

		if (ldns_rr_get_type(rr) != LDNS_RR_TYPE_CNAME ||
			ldns_rr_rdf(rr, 0) == NULL ||
			ldns_dname_compare(ldns_rr_owner(rr), owner) != 0)
			continue;
		target = dns_name_text(ldns_rr_rdf(rr, 0));
		if (target == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("\"%s\" is a CNAME of what is no host name",
							name)));
		return target;
	}
	return NULL;
}

static char *
follow_aliases(const DnsOptions *options, char *name)
{
	const char *first = name;

	for (int i = 0; i <= CNAMES_MAX; i++)
	{
		char	   *next = alias_of(options, name);

		if (next == NULL)
			return name;
		name = next;
	}
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("\"%s\" is a CNAME that leads through more than %d others, or back to itself",
					first, CNAMES_MAX)));
}

/* Does a zone begin at this name? */
static bool
is_apex(const DnsOptions *options, const char *name)
{
	ldns_rdf   *owner = dns_own_name(name);
	ldns_rr_list *answer =
	ldns_pkt_answer(dns_resolve(options, name, LDNS_RR_TYPE_SOA));

	for (size_t i = 0; i < ldns_rr_list_rr_count(answer); i++)
	{
		ldns_rr    *rr = ldns_rr_list_rr(answer, i);

		if (ldns_rr_get_type(rr) == LDNS_RR_TYPE_SOA &&
			ldns_dname_compare(ldns_rr_owner(rr), owner) == 0)
			return true;
	}
	return false;
}

static char *
find_zone(const DnsOptions *options, const char *name)
{
	for (const char *at = name; at; at = strchr(at, '.'))
	{
		if (at != name)
			at++;
		if (is_apex(options, at))
			return pstrdup(at);
	}
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_API),
			 errmsg("could not find the zone that \"%s\" is in", name),
			 errhint("Option \"zone\" of the DNS provider names it.")));
}

/* What the option says, if it can be true. */
static char *
given_zone(const DnsOptions *options, const char *name)
{
	char	   *zone = pstrdup(options->zone);
	size_t		len = strlen(zone);

	if (len > 1 && zone[len - 1] == '.')
		zone[len - 1] = '\0';
	for (char *p = zone; *p; p++)
		*p = pg_ascii_tolower(*p);
	if (!dns_name_within(name, zone))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("\"%s\" is not in the zone \"%s\" of the DNS provider",
						name, zone),
				 errhint("Without option \"zone\" the zone of each name is found.")));
	return zone;
}

/* It goes into messages, URLs and documents as it is. */
static void
check_domain(const char *domain)
{
	size_t		len = strlen(domain);

	if (len == 0 || domain[0] == '.' || strstr(domain, "..") != NULL ||
		strspn(domain, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789-_.") != len)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("what a challenge of type dns-01 is to be for is not the name of a domain"),
				 errhint("Names in other scripts are written as they are in DNS: xn--...")));
}

void
dns_record_locate(const DnsOptions *options, const char *identifier,
				  char **name, char **zone)
{
	if (strncmp(identifier, "*.", 2) == 0)
		identifier += 2;
	check_domain(identifier);
	*name = psprintf(PREFIX "%s", identifier);
	if (strlen(*name) > DNS_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("\"%s\" is too long for a challenge of type dns-01",
						identifier)));
	*name = follow_aliases(options, *name);
	*zone = options->zone ? given_zone(options, *name) :
		find_zone(options, *name);
}
