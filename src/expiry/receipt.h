/*
 * receipt.h
 *		Signed statements of what was erased.
 *
 * A receipt is a JSON object. Its signature (Ed25519, RFC 8032) is over all
 * members but "signature", written as RFC 8785 says: keys sorted, no white
 * space, UTF-8. The key pair is made at first use; the private key is the
 * secret RECEIPT_SECRET, the public one is in mlint.secret_public_keys.
 */
#ifndef MLINT_RECEIPT_H
#define MLINT_RECEIPT_H

#include "utils/jsonb.h"

#define RECEIPT_SECRET	"mlint/erasure-receipts"

/* The receipt with its signature. */
extern Jsonb *receipt_sign(Jsonb *receipt);

#endif
