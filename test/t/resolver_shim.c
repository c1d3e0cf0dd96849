/*
 * resolver_shim.c
 *		getaddrinfo() for tests, by LD_PRELOAD: names that hang or lie.
 *
 * hang.test never resolves; metadata.test and metadata6.test are cloud
 * metadata addresses; pinned.test is loopback; rebind.test is loopback the
 * first time a process asks, a metadata address from then on. flip.test is
 * 127.0.0.2 and 127.0.0.1 in turn. Who asks for the addresses of IPv6 apart,
 * as libcurl 8.23 does, is told that there are none, and it does not count.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

int
getaddrinfo(const char *node, const char *service,
			const struct addrinfo *hints, struct addrinfo **res)
{
	static int	asked;
	static int	flipped;
	int			(*real) (const char *, const char *, const struct addrinfo *,
						 struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
	size_t		len = node ? strlen(node) : 0;
	int			v6 = hints && hints->ai_family == AF_INET6;
	char		name[256];

	if (len == 0 || len >= sizeof(name))
		return real(node, service, hints, res);
	strcpy(name, node);
	if (name[len - 1] == '.')
		name[len - 1] = '\0';
	if (strcasecmp(name, "hang.test") == 0)
		for (;;)
			pause();
	if (strcasecmp(name, "metadata.test") == 0)
		node = "169.254.169.254";
	else if (strcasecmp(name, "metadata6.test") == 0)
		node = "fd00:ec2::254";
	else if (strcasecmp(name, "pinned.test") == 0)
		node = "127.0.0.1";
	else if (strcasecmp(name, "rebind.test") == 0)
		node = v6 || asked++ == 0 ? "127.0.0.1" : "169.254.169.254";
	else if (strcasecmp(name, "flip.test") == 0)
		node = v6 || flipped++ % 2 == 0 ? "127.0.0.2" : "127.0.0.1";
	return real(node, service, hints, res);
}
