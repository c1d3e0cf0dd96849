/*
 * lookup.h
 *		Asking name servers, over TCP.
 *
 * Messages are built and read with ldns; connections are the HTTP client's, so
 * that the network policy holds, and cancel works. What ldns allocates goes
 * with the memory context that it was made in. Whatever is read may be hostile.
 */
#ifndef MLINT_DNS_LOOKUP_H
#define MLINT_DNS_LOOKUP_H

#include <ldns/ldns.h>

#include "certs/dns/kind.h"

#define DNS_PORT			53
/* Of a name in text, without a final dot. */
#define DNS_NAME_MAX		253

typedef struct DnsServer
{
	char	   *host;			/* an address; or a name, where one is allowed */
	int			port;
	bool		system;			/* from the machine's own configuration */
} DnsServer;

/* Why there is no answer. */
typedef struct DnsFailure
{
	int			sqlstate;
	char text[	512];
} DnsFailure;

/* The server as messages say it. */
extern const char *dns_server_text(const DnsServer *server);

/*
 * "address", "address:port", "[address]:port"; with names_too also a host
 * name. False if it is none of these.
 */
extern bool dns_server_parse(const char *text, int port, bool names_too,
							 DnsServer *server);

/*
 * Send a message and receive its answer, in the current context; NULL with
 * *failure filled.
 */
extern uint8 *dns_exchange(const DnsServer *server, const uint8 *query,
						   size_t len, int timeout_ms, size_t *answer_len,
						   DnsFailure *failure);

/* Read a message; NULL: it is none. Freed with the current context. */
extern ldns_pkt * dns_read(const uint8 *wire, size_t len);

/* A message as it is sent, with so many bytes of room behind. */
extern uint8 *dns_write(const ldns_pkt * packet, size_t room, size_t *len);

/* Is this the answer to what was asked? */
extern bool dns_answers(const ldns_pkt * answer, const ldns_pkt * question);

/* ldns objects, freed with the current context. NULL raises out of memory. */
extern ldns_pkt * dns_own_packet(ldns_pkt * packet);
extern ldns_rdf * dns_own_name(const char *name);

/* What a name server says of its answer, for messages: "NXDOMAIN". */
extern const char *dns_rcode_text(int rcode);

/* A name in lower case, without a final dot; NULL: no name that we go along
 * with, which has only letters, digits, "-", "_" and "." in it. */
extern char *dns_name_text(const ldns_rdf * name);

/*
 * Ask one server. NULL with *failure: there is no answer, or it is none to the
 * question. Statuses of the answer are the caller's to judge.
 */
extern ldns_pkt * dns_ask(const DnsServer *server, const char *name,
						  ldns_rr_type type, bool recurse, int timeout_ms,
						  DnsFailure *failure);

/*
 * Ask the resolvers, one after the other. Raises unless one of them says that
 * there is or is not what was asked for.
 */
extern ldns_pkt * dns_resolve(const DnsOptions *options, const char *name,
							  ldns_rr_type type);

/*
 * Do all servers of the zone show this TXT record? If not, *waiting says who
 * does not and why, in a text for a person.
 */
extern bool dns_visible(const DnsOptions *options, const char *zone,
						const char *name, const char *value, char **waiting);

#endif
