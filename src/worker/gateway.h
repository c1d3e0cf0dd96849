/*
 * gateway.h
 *		The HTTP face: one process that answers at mlint.gateway_listen.
 *
 * It has no connection to any database: what it answers lies in shared memory,
 * and rooms say what that is by registering a route. Handlers run in the
 * gateway's loop, must not wait and must not raise.
 */
#ifndef MLINT_GATEWAY_H
#define MLINT_GATEWAY_H

#define GATEWAY_BODY_MAX	1024

typedef struct GatewayAnswer
{
	int			status;			/* 404 until the handler says otherwise */
	const char *content_type;	/* a constant */
	size_t		len;
	char		body[GATEWAY_BODY_MAX];
} GatewayAnswer;

/* Answer a GET of prefix + rest; rest is not decoded. */
typedef void (*GatewayHandler) (const char *rest, GatewayAnswer *answer);

/* From a room's _init(). The prefix ends with "/". */
extern void gateway_route(const char *prefix, GatewayHandler handler);

/* The setting, and the route /health. Called by worker_init(). */
extern void gateway_init(void);

#endif
