/*
 * made.h
 *		What is written down of something that was made: an object of texts.
 */
#ifndef MLINT_DNS_MADE_H
#define MLINT_DNS_MADE_H

#include "utils/jsonb.h"

/* {"key": "value", ...} of pairs; the last key is NULL. */
extern Jsonb *made_of(const char *key,...) __attribute__((sentinel));

/* The same with an object in it, unless that is NULL. */
extern Jsonb *made_with(Jsonb *made, const char *key, Jsonb *object);

/* A member; NULL: there is none of this type. The object may be NULL. */
extern char *made_text(Jsonb *made, const char *key);
extern Jsonb *made_object(Jsonb *made, const char *key);

#endif
