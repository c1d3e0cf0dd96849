/*
 * gateway_listen.h
 *		mlint.gateway_listen: addresses, and sockets that listen there.
 */
#ifndef MLINT_GATEWAY_LISTEN_H
#define MLINT_GATEWAY_LISTEN_H

#include <sys/socket.h>

#define LISTEN_MAX	8

typedef struct ListenAddress
{
	char text[	64];			/* "127.0.0.1:8080", "[::1]:8080" */
	struct sockaddr_storage address;
	socklen_t	len;
} ListenAddress;

typedef struct ListenList
{
	int			n;
	ListenAddress addresses[LISTEN_MAX];
} ListenList;

/* Define the setting. */
extern void gateway_listen_define(void);

/* The setting as it is now. Good until it is read again. */
extern const ListenList *gateway_listen(void);

/* A socket that listens there, or -1 and errno. */
extern int	gateway_listen_open(const ListenAddress *where);

/* What to do about that errno; NULL: nothing that we know. */
extern const char *gateway_listen_hint(int error);

#endif
