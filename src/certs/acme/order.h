/*
 * order.h
 *		What the steps of a challenge do to its order.
 */
#ifndef MLINT_ACME_ORDER_H
#define MLINT_ACME_ORDER_H

#include "certs/acme/acme.h"

/* If all its names are proven it goes on: true. */
extern bool order_proven(int64 order);

/* It is over; nothing need be shown any more. problem may be NULL. */
extern void order_end(int64 order, const Problem *problem, const char *text,
					  int retry_after);

/* Was newOrder what it has asked for? */
extern bool order_is_new(const Errand *errand);

/* It has met a limit: it waits, and says why. */
extern void order_limited(Errand *errand, const char *text, int retry_after);

/* Is this identifier of an answer one of these names (text[])? */
extern bool order_has_name(Datum domains, const Identifier *identifier,
						   bool wildcard);

#endif
