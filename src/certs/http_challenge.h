/*
 * http_challenge.h
 *		http-01 through the gateway: what it answers, in shared memory.
 *
 * Shown and hidden outside of transactions: showing again is harmless, and what
 * a crash of the server takes away is shown again by the job before it asks the
 * authority to look. What nobody hides goes at its time.
 */
#ifndef MLINT_HTTP_CHALLENGE_H
#define MLINT_HTTP_CHALLENGE_H

#include "datatype/timestamp.h"

/* base64url, by RFC 8555, 8.3; and "." and a thumbprint more. */
#define HTTP_CHALLENGE_TOKEN_MAX	128
#define HTTP_CHALLENGE_VALUE_MAX	256

/* Raises when there is no room, or the token is none. */
extern PGDLLEXPORT void http_challenge_show(const char *token, const char *value,
											TimestampTz until);
extern PGDLLEXPORT void http_challenge_hide(const char *token);

/* Shared memory, and the gateway's route. Called by certs_init(). */
extern void http_challenge_init(void);

#endif
