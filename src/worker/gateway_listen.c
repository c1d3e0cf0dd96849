/*
 * gateway_listen.c
 *		Where the gateway listens: mlint.gateway_listen.
 *
 * A list of "port", "address:port" and "[address]:port". A port alone is on
 * loopback, so that opening to others takes writing an address down. Addresses
 * are numbers: a name would have to be looked up by every process that reads
 * the setting.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <unistd.h>

#include "common/compat.h"
#include "worker/gateway_listen.h"

/* Connections that wait to be accepted; the kernel has a limit of its own. */
#define LISTEN_BACKLOG		1024

static char *setting;
static const ListenList nowhere = {0};
static const ListenList *list = &nowhere;

/* A decimal number from 1 to 65535, and nothing after it. */
static bool
port_parse(const char *text, in_port_t * port)
{
	size_t		digits = strspn(text, "0123456789");
	int			number = digits > 0 && digits <= 5 ? (int) strtol(text, NULL, 10) : 0;

	*port = htons(number);
	return text[digits] == '\0' && number > 0 && number <= 65535;
}

/* Read one entry. Returns NULL, or what is wrong with it. */
static const char *
address_parse(char *entry, ListenAddress *where)
{
	struct sockaddr_in *in = (struct sockaddr_in *) &where->address;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *) &where->address;
	char	   *colon = strrchr(entry, ':');
	char	   *port = colon ? colon + 1 : entry;
	size_t		len;

	memset(where, 0, sizeof(*where));
	if (colon != NULL)
		*colon = '\0';
	len = strlen(entry);
	if (colon != NULL && entry[0] == '[' && len > 1 && entry[len - 1] == ']')
	{
		entry[len - 1] = '\0';
		where->len = sizeof(*in6);
		in6->sin6_family = AF_INET6;
		if (inet_pton(AF_INET6, entry + 1, &in6->sin6_addr) != 1)
			return "What is in brackets is not an IPv6 address.";
		if (!port_parse(port, &in6->sin6_port))
			return "The port is not a number from 1 to 65535.";
		snprintf(where->text, sizeof(where->text), "[%s]:%s", entry + 1, port);
		return NULL;
	}
	where->len = sizeof(*in);
	in->sin_family = AF_INET;
	in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (colon != NULL && strchr(entry, ':') != NULL)
		return "An IPv6 address is written in brackets, and a port follows.";
	if (colon != NULL && inet_pton(AF_INET, entry, &in->sin_addr) != 1)
		return "What precedes the port is not an IPv4 address; names are not looked up.";
	if (!port_parse(port, &in->sin_port))
		return "The port is not a number from 1 to 65535.";
	snprintf(where->text, sizeof(where->text), "%s:%s",
			 colon ? entry : "127.0.0.1", port);
	return NULL;
}

/* Read the whole list. Returns NULL, or what is wrong, and with which. */
static const char *
list_parse(const char *text, ListenList *parsed, char *entry, size_t size)
{
	memset(parsed, 0, sizeof(*parsed));
	entry[0] = '\0';
	if (text[strspn(text, " \t\n")] == '\0')
		return NULL;
	for (const char *at = text;; at++)
	{
		char		copy[sizeof(((ListenAddress *) NULL)->text)];
		const char *fault;
		size_t		len;

		at += strspn(at, " \t\n");
		len = strcspn(at, ",");
		while (len > 0 && strchr(" \t\n", at[len - 1]) != NULL)
			len--;
		strlcpy(entry, at, Min(len + 1, size));
		if (len == 0)
			return "An entry is empty.";
		if (len >= sizeof(copy))
			return "It is longer than an address and a port can be.";
		if (parsed->n == LISTEN_MAX)
			return "There are more addresses than the gateway listens at (8).";
		strlcpy(copy, entry, sizeof(copy));
		fault = address_parse(copy, &parsed->addresses[parsed->n]);
		if (fault != NULL)
			return fault;
		for (int i = 0; i < parsed->n; i++)
			if (strcmp(parsed->addresses[i].text,
					   parsed->addresses[parsed->n].text) == 0)
				return "It is there twice.";
		parsed->n++;
		at += strcspn(at, ",");
		if (*at == '\0')
			return NULL;
	}
}

static bool
listen_check(char **newval, void **extra, GucSource source)
{
	ListenList *parsed = mlint_guc_malloc(sizeof(ListenList));
	char		entry[80];
	const char *fault;

	if (parsed == NULL)
		return false;
	fault = list_parse(*newval, parsed, entry, sizeof(entry));
	if (fault != NULL)
	{
		GUC_check_errdetail("\"%s\": %s", entry, fault);
		GUC_check_errhint("Write a port (8080, on loopback), address:port (192.0.2.1:8080, 0.0.0.0:8080 for all) or [address]:port ([::1]:8080); several are separated by commas.");
		mlint_guc_free(parsed);
		return false;
	}
	*extra = parsed;
	return true;
}

static void
listen_assign(const char *newval, void *extra)
{
	list = extra ? extra : &nowhere;
}

void
gateway_listen_define(void)
{
	DefineCustomStringVariable("mlint.gateway_listen",
							   "Where the HTTP gateway listens; empty: there is none.",
							   "A port (8080: on loopback), address:port or [address]:port; several are separated by commas. It answers http-01 challenges and /health, nothing else. A certificate authority asks at port 80: have a web server pass /.well-known/acme-challenge/ on, or let the server bind that port.",
							   &setting,
							   "",
							   PGC_SIGHUP,
							   GUC_LIST_INPUT,
							   listen_check,
							   listen_assign,
							   NULL);
}

const ListenList *
gateway_listen(void)
{
	return list;
}

int
gateway_listen_open(const ListenAddress *where)
{
	const int	on = 1;
	int			family = where->address.ss_family;
	int			s = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
						   0);
	int			error;

	if (s < 0)
		return -1;
	/* Each address family is listed by itself. */
	if (setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
		(family != AF_INET6 ||
		 setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) == 0) &&
		bind(s, (const struct sockaddr *) &where->address, where->len) == 0 &&
		listen(s, LISTEN_BACKLOG) == 0)
		return s;
	error = errno;
	close(s);
	errno = error;
	return -1;
}

const char *
gateway_listen_hint(int error)
{
	switch (error)
	{
		case EADDRINUSE:
			return "Another process listens there. Stop it, or choose another port in mlint.gateway_listen.";
		case EACCES:
			return "The server's user may not listen at ports below 1024. Choose another in mlint.gateway_listen and have a web server pass /.well-known/acme-challenge/ on to it, or give the server CAP_NET_BIND_SERVICE.";
		case EADDRNOTAVAIL:
			return "That is no address of this machine. mlint.gateway_listen says where the gateway listens.";
		case EAFNOSUPPORT:
			return "This machine has no addresses of that kind. mlint.gateway_listen says where the gateway listens.";
		default:
			return NULL;
	}
}
