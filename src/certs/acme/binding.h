/*
 * binding.h
 *		External account bindings: {"kid": ..., "hmac": a reference}.
 */
#ifndef MLINT_ACME_BINDING_H
#define MLINT_ACME_BINDING_H

#include "certs/acme/jws.h"
#include "utils/jsonb.h"

/* Is it one, whose key this role may use? Raises what is wrong. */
extern void binding_check(Jsonb *eab, Oid role, const char *what);

/* The JWS that binds the key, from a stored binding (JSON text). */
extern char *binding_sign(const char *eab, const JwsKey *key,
						  const char *url);

#endif
