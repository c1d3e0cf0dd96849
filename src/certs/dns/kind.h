/*
 * kind.h
 *		What a kind of DNS provider is.
 *
 * A kind is a table of options and verbs that make a TXT record and remove
 * it. Others may be there beside it, with the same name: two names of one
 * certificate can need two records of one name. Verbs run in the job (or in
 * dns_provider_test()), may wait for their peer on the latch, raise what goes
 * wrong, and may be repeated: to make what is there, or to remove what is not,
 * is no failure.
 */
#ifndef MLINT_DNS_KIND_H
#define MLINT_DNS_KIND_H

#include "common/configured.h"

/* What every provider has, in front of its kind's own. */
typedef struct DnsOptions
{
	int			timeout_ms;		/* of one exchange */
	int			propagation_timeout_s;	/* until all servers must show it; 0:
										 * nobody looks */
	int			ttl;			/* of the record, seconds */
	char	   *zone;			/* that records are made in; NULL: found */
	char	   *resolver;		/* "address" or "address:port"; NULL: the
								 * system's */
	char	   *nameservers;	/* instead of those of the zone: the like,
								 * separated by commas; NULL: the zone's */
	int			port;			/* of the zone's servers */
} DnsOptions;

typedef struct DnsRecord
{
	const char *name;			/* "_acme-challenge.example.com", no final dot */
	const char *zone;			/* the zone that it is in */
	const char *value;			/* of the TXT record */
	const char *identifier;		/* the domain, without "*." */
	const char *token;			/* of the challenge */
	Jsonb	   *made;			/* what present() returned; NULL: it may have
								 * died before */
} DnsRecord;

typedef struct DnsKind
{
	ConfiguredKind base;		/* its options' struct begins with DnsOptions */
	/* More than a table can check; may be NULL. */
	void		(*check) (const void *options, Oid owner, const char *what);
	/* Returns what the others will want to know, an object, or NULL. */
	Jsonb	   *(*present) (const void *options, Oid owner,
							const DnsRecord *record);
	/* Does the service say that its servers have it? NULL: it says nothing. */
	bool		(*settled) (const void *options, Oid owner,
							const DnsRecord *record);
	void		(*remove) (const void *options, Oid owner,
						   const DnsRecord *record);
} DnsKind;

extern const DnsKind dns_rfc2136;
extern const DnsKind dns_cloudflare;
extern const DnsKind dns_route53;
extern const DnsKind dns_azure;
extern const DnsKind dns_function;

#endif
