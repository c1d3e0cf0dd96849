/*
 * netpolicy.h
 *		Where the database may connect to: the guard against being a proxy
 *		into its own network.
 *
 * Addresses are checked after resolution, at the moment of connecting, so
 * that a name which resolves differently the second time (DNS rebinding)
 * gains nothing. Always refused: unspecified, link-local, multicast and
 * broadcast addresses and the clouds' metadata services. IPv4 addresses
 * wrapped in IPv6 (mapped, compatible, NAT64, 6to4) are judged as what they
 * wrap. mlint.http_deny and mlint.http_allow set the rest: lists, separated
 * by commas, of CIDR blocks, single addresses and host patterns ("*.corp").
 * Denied is what matches http_deny, or what matches nothing in a http_allow
 * that is not empty. A host pattern is judged by the name in the URL, an
 * address block by the address connected to.
 */
#ifndef MLINT_NETPOLICY_H
#define MLINT_NETPOLICY_H

#include <sys/socket.h>

/* Define mlint.http_deny and mlint.http_allow; called once by _PG_init. */
extern void netpolicy_define_settings(void);

/*
 * May we connect to this address for a URL with this host name? If not, a
 * reason for a person is written. Safe inside library callbacks: never
 * raises.
 */
extern bool netpolicy_allows(const char *host, const struct sockaddr *addr,
							 char *reason, size_t reason_len);

/* Changes whenever a setting does: connections made before are stale. */
extern uint64 netpolicy_generation(void);

#endif
