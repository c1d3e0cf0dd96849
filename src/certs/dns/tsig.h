/*
 * tsig.h
 *		Transaction signatures of DNS messages (RFC 8945).
 */
#ifndef MLINT_DNS_TSIG_H
#define MLINT_DNS_TSIG_H

/* In the order of tsig_algorithms. */
typedef enum TsigAlgorithm
{
	TSIG_SHA256,
	TSIG_SHA384,
	TSIG_SHA512,
	TSIG_SHA1
} TsigAlgorithm;

/* For an option; the first is the one that everybody has. */
extern const char *const tsig_algorithms[];

typedef struct TsigKey
{
	const char *name;			/* as the server knows it */
	TsigAlgorithm algorithm;
	const uint8 *secret;		/* the caller's to wipe */
	size_t		len;
} TsigKey;

#define TSIG_MAC_MAX	64
#define TSIG_ROOM		700		/* what signing adds at most */

/*
 * Sign a message, behind which there is TSIG_ROOM; returns its new length, and
 * the MAC, which the answer is signed with too.
 */
extern size_t tsig_sign(const TsigKey *key, uint8 *message, size_t len,
						uint8 *mac, size_t *mac_len);

typedef enum TsigVerdict
{
	TSIG_GOOD,
	TSIG_NONE,					/* there is no signature */
	TSIG_REJECTED,				/* the server says that ours is not good */
	TSIG_BAD					/* the server's is not good */
} TsigVerdict;

/*
 * Is the answer signed with this key, to the message with this MAC, and now?
 * If not, *why says why, in a constant text.
 */
extern TsigVerdict tsig_verify(const TsigKey *key, const uint8 *answer,
							   size_t len, const uint8 *mac, size_t mac_len,
							   const char **why);

#endif
