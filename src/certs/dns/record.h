/*
 * record.h
 *		Where the record of a challenge is to be made.
 */
#ifndef MLINT_DNS_RECORD_H
#define MLINT_DNS_RECORD_H

#include "certs/dns/kind.h"

/*
 * The name of the TXT record that an authority looks for (RFC 8555, 8.4), as
 * it is after all CNAMEs, and the zone that it is in. palloc'd. Raises what
 * cannot be found.
 */
extern void dns_record_locate(const DnsOptions *options,
							  const char *identifier, char **name,
							  char **zone);

/* Is this name the domain, or below it? */
extern bool dns_name_within(const char *name, const char *domain);

/* The name without the zone, "@" for the zone itself. */
extern char *dns_name_relative(const char *name, const char *zone);

#endif
