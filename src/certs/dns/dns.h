/*
 * dns.h
 *		DNS providers, for those who solve challenges.
 */
#ifndef MLINT_DNS_H
#define MLINT_DNS_H

#include "certs/dns/kind.h"

/* A row of mlint.dns_provider, its options parsed. */
typedef struct DnsProvider
{
	const char *name;
	const DnsKind *kind;
	Oid			owner;			/* the role that created it */
	const DnsOptions *options;	/* the kind's struct */
} DnsProvider;

/* Raises ERRCODE_UNDEFINED_OBJECT if there is none of this name. */
extern void dns_provider_open(const char *name, DnsProvider *provider);

/* The same, and it is not dropped before the transaction ends. */
extern void dns_provider_require(const char *name);

/*
 * Is the record to be seen: does the service say so, if it says anything, and
 * do all servers show it? If not, *waiting says what is not yet.
 */
extern bool dns_provider_shows(const DnsProvider *provider,
							   const DnsRecord *record, char **waiting);

#endif
