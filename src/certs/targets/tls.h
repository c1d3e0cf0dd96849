/*
 * tls.h
 *		What certificate does a server serve?
 */
#ifndef MLINT_TARGETS_TLS_H
#define MLINT_TARGETS_TLS_H

#include "common/crypto.h"
#include "datatype/timestamp.h"

typedef enum TlsProtocol
{
	TLS_AT_ONCE,
	TLS_POSTGRES				/* after an SSLRequest */
} TlsProtocol;

typedef struct Served
{
	char	   *serial;			/* hex, lower case, two digits a byte */
	uint8		fingerprint[CRYPTO_SHA256_BYTES];
	TimestampTz not_after;
	int			length;			/* of the chain, the leaf included */
} Served;

/*
 * Connect, within the time (with "machine" wherever that is: it is the machine's
 * own configuration that says so), and see what is served for this name (an address
 * is not asked for by SNI); palloc'd. Nothing is verified: whose certificate it
 * is is what is to be found out. Raises ERRCODE_MLINT_CONNECTION, _TIMEOUT or
 * _ADDRESS_REFUSED, and what an interrupt raises.
 */
extern Served *tls_look(const char *host, int port, TlsProtocol protocol,
						const char *server_name, bool machine,
						int timeout_ms);

#endif
