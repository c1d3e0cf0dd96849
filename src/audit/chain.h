/*
 * chain.h
 *		The chain of hashes over the audit log.
 */
#ifndef MLINT_CHAIN_H
#define MLINT_CHAIN_H

#include "common/audit_ring.h"

/* One entry, as it is hashed. A text that is null has no data. */
typedef struct ChainText
{
	const char *data;
	size_t		len;
} ChainText;

typedef struct ChainEntry
{
	int64		seq;
	TimestampTz at;
	int32		pid;
	uint64		xid;			/* 0: null */
	uint64		subxid;			/* 0: null */
	ChainText	texts[AUDIT_NFIELDS];
} ChainEntry;

/* Where a chain has got to; before the first entry all is zero. */
typedef struct ChainHead
{
	int64		seq;
	int			month;			/* year * 100 + month */
	uint8		hash[CRYPTO_SHA256_BYTES];
} ChainHead;

/* The hash of an entry that comes after the one with the hash before. */
extern void chain_hash(const uint8 before[CRYPTO_SHA256_BYTES],
					   const ChainEntry *entry,
					   uint8 hash[CRYPTO_SHA256_BYTES]);

#endif
