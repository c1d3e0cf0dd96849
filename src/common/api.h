/*
 * api.h
 *		One call of an HTTP API that answers with JSON.
 *
 * For whoever calls a service in the middle of a step and wants an error when
 * it fails. What arrives is limited in size and depth.
 */
#ifndef MLINT_API_H
#define MLINT_API_H

/* Before jansson, whose macros have names of the server's functions. */
#include "utils/fmgrprotos.h"

/* The server has a function of this name, too, and the linker would take it. */
#define json_object json_object_of_jansson
#include <jansson.h>
#undef json_object

#include "common/compat.h"
#include "common/http.h"
#include "nodes/pg_list.h"

typedef struct ApiCall
{
	const char *service;		/* whom messages speak of: "Cloudflare" */
	const char *method;			/* NULL: POST with a body, GET without */
	const char *url;
	const char *ca;				/* PEM; NULL: the system's store */
	int			timeout_ms;
	struct curl_slist *headers; /* taken, and freed */
	const char *body;			/* the caller's to wipe */
	size_t		body_len;
	size_t		max_bytes;		/* of the answer; 0: 1 MiB */
	bool		confidential;	/* the answer is wiped, and in no message */
	bool		secret_body;	/* nor is what was sent, should it be quoted */
	bool		tolerant;		/* statuses of 400 and more, 429 and 5xx
								 * apart, are the caller's to judge */
	bool		metadata;		/* see HttpTarget */

	int			status;
	char	   *text;			/* of the answer */
	size_t		len;
	json_t	   *json;			/* freed with the context it was made in;
								 * NULL: the answer was none */
	List	   *credentials;	/* api.c's: in no message */
} ApiCall;

/*
 * Raises the failure as http_sqlstate() calls it, but status 429 as
 * ERRCODE_MLINT_RATE_LIMITED, with what the service said (peertext.h). Cancel
 * works.
 */
extern void api_call(ApiCall *call);

/*
 * Raise what an answer comes to that a tolerant caller has looked at. "says"
 * is what the service says about it, or NULL for what can be found in its JSON.
 */
extern void api_refused(const ApiCall *call, const char *says)
			pg_attribute_noreturn();

/*
 * The same as too many requests, ERRCODE_MLINT_RATE_LIMITED, where the status
 * does not say so.
 */
extern void api_throttled(const ApiCall *call, const char *says)
			pg_attribute_noreturn();

/* Seconds that the last answer asked us to wait; -1: it did not. */
extern int	api_retry_after(void);

/* Raise that it answered "with ..." or "without ...", against its protocol. */
extern void api_strange(const ApiCall *call, const char *what)
			pg_attribute_noreturn();

/* A string member, or NULL; one with a NUL in it counts as none. */
extern const char *api_text(const json_t *object, const char *key);

/* From here on jansson's blocks are wiped as they are freed. */
extern void api_json_prepare(void);

/* Read JSON, no deeper than 64 levels; NULL when it is none. */
extern json_t *api_json(const char *text, size_t len);

/* Free the json_t with the current context. NULL is "out of memory". */
extern json_t *api_json_own(json_t *json);

/* Wipe this when the current context ends, or an error ends it. */
extern char *api_confidential(char *data, size_t len);

/* The URL without slashes at its end. */
extern char *url_base(const char *url);

#endif
