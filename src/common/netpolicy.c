/*
 * netpolicy.c
 *		Where the database may connect to.
 *
 * Whoever may name a URL can make the server connect to it, and the server
 * often stands where its users do not: beside a metadata service that hands
 * out the machine's credentials, in a network of unprotected neighbours. So
 * each connection is judged here, by the address that the socket is about to
 * connect to and not by what the URL looks like: "2130706433", "0x7f.1", a
 * name that resolves differently the second time and an IPv4 address wrapped
 * in IPv6 are all the same address in the end.
 *
 * Three tables decide, the first that speaks wins: addresses that no setting
 * can open (their only use for us would be an attack), mlint.http_deny, and
 * mlint.http_allow. The two settings are parsed by their check hooks into a
 * flat array, so that judging neither allocates nor raises: it happens in a
 * callback of a library that an error must not jump out of.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "common/compat.h"
#include "common/glob.h"
#include "common/netpolicy.h"
#include "utils/guc.h"

/* A host name has at most 253 characters, and no address text is longer. */
#define ENTRY_TEXT_MAX		253

typedef struct Address
{
	int			family;			/* AF_INET or AF_INET6 */
	uint8		bytes[16];		/* network order; IPv4 uses four */
} Address;

typedef struct AddressBlock
{
	Address		address;
	int			bits;
} AddressBlock;

/* One entry of a list: a block of addresses, or a pattern of host names. */
typedef struct PolicyEntry
{
	bool		is_host;
	AddressBlock block;
	char text[	ENTRY_TEXT_MAX + 1];	/* as written, in lower case */
} PolicyEntry;

typedef struct PolicyList
{
	int			n;
	PolicyEntry entries[FLEXIBLE_ARRAY_MEMBER];
} PolicyList;

/* What no setting can open. */
static const struct
{
	const char *block;
	const char *why;
}			forbidden[] =

{
	{"0.0.0.0/8", "an unspecified address"},
	{"100.100.100.200/32", "a cloud metadata service"},
	{"168.63.129.16/32", "a cloud metadata service"},
	{"169.254.169.254/32", "a cloud metadata service"},
	{"169.254.0.0/16", "a link-local address"},
	{"192.0.0.192/32", "a cloud metadata service"},
	{"224.0.0.0/4", "a multicast address"},
	{"255.255.255.255/32", "a broadcast address"},
	{"240.0.0.0/4", "a reserved address"},
	{"::/128", "an unspecified address"},
	{"fe80::/10", "a link-local address"},
	{"ff00::/8", "a multicast address"},
	{"fd00:ec2::23/128", "a cloud metadata service"},
	{"fd00:ec2::254/128", "a cloud metadata service"},
	{"fd00:c1::a9fe:a9fe/128", "a cloud metadata service"},
	{"fd00:42::42/128", "a cloud metadata service"},
	{"fd20:ce::254/128", "a cloud metadata service"},
};

/* IPv6 blocks with an IPv4 address in them, and the byte where it starts. */
static const struct
{
	const char *block;
	int			offset;
}			wrappers[] =

{
	{"::ffff:0:0/96", 12},		/* mapped */
	{"::ffff:0:0:0/96", 12},	/* translated (SIIT) */
	{"64:ff9b::/96", 12},		/* NAT64 */
	{"64:ff9b:1::/48", 12},		/* a network's own NAT64 (RFC 8215) */
	{"2002::/16", 2},			/* 6to4 */
	{"::/96", 12},				/* compatible */
};

static char *http_deny;
static char *http_allow;
static const PolicyList *denied;
static const PolicyList *allowed;
static uint64 generation;

static AddressBlock forbidden_blocks[lengthof(forbidden)];
static AddressBlock wrapper_blocks[lengthof(wrappers)];

/* Is the address in the block? */
static bool
block_contains(const AddressBlock *block, const Address *address)
{
	int			bytes = block->bits / 8;
	int			rest = block->bits % 8;
	uint8		mask = (uint8) (0xff00 >> rest);

	return block->address.family == address->family &&
		memcmp(block->address.bytes, address->bytes, bytes) == 0 &&
		(rest == 0 ||
		 ((block->address.bytes[bytes] ^ address->bytes[bytes]) & mask) == 0);
}

/* ::1 lies among the IPv4-compatible addresses and is not one; nor is ::. */
static bool
address_is_wrapped(const Address *address, int *offset)
{
	static const uint8 zeros[15];

	if (address->family != AF_INET6 ||
		(memcmp(address->bytes, zeros, 15) == 0 && address->bytes[15] <= 1))
		return false;
	for (int i = 0; i < lengthof(wrappers); i++)
	{
		if (block_contains(&wrapper_blocks[i], address))
		{
			*offset = wrappers[i].offset;
			return true;
		}
	}
	return false;
}

/* The IPv4 address inside an IPv6 one; any other address unchanged. */
static Address
address_unwrap(const Address *address)
{
	Address		inner = {.family = AF_INET};
	int			offset;

	if (!address_is_wrapped(address, &offset))
		return *address;
	memcpy(inner.bytes, address->bytes + offset, 4);
	return inner;
}

/*
 * Read "address" or "address/bits". Returns NULL, or what is wrong with it.
 */
static const char *
block_parse(const char *text, AddressBlock *block)
{
	char		address[INET6_ADDRSTRLEN];
	const char *slash = strchr(text, '/');
	size_t		len = slash ? slash - text : strlen(text);
	int			width;

	memset(block, 0, sizeof(*block));
	if (len >= sizeof(address))
		return "It is not an IPv4 or IPv6 address.";
	memcpy(address, text, len);
	address[len] = '\0';
	if (inet_pton(AF_INET, address, block->address.bytes) == 1)
		block->address.family = AF_INET;
	else if (inet_pton(AF_INET6, address, block->address.bytes) == 1)
		block->address.family = AF_INET6;
	else
		return "It is not an IPv4 or IPv6 address.";

	width = block->address.family == AF_INET ? 32 : 128;
	block->bits = width;
	if (slash)
	{
		size_t		digits = strspn(slash + 1, "0123456789");

		if (digits == 0 || digits > 3 || slash[1 + digits] != '\0' ||
			strtol(slash + 1, NULL, 10) > width)
			return "The prefix length after \"/\" is not a number from 0 to 32 (IPv4) or 128 (IPv6).";
		block->bits = (int) strtol(slash + 1, NULL, 10);
	}
	for (int bit = block->bits; bit < width; bit++)
	{
		if (block->address.bytes[bit / 8] & (0x80 >> bit % 8))
			return "It has bits set to the right of its prefix length.";
	}
	return NULL;
}

/*
 * Read one entry of a list, already in lower case. Returns NULL, or what is
 * wrong with it.
 */
static const char *
entry_parse(PolicyEntry *entry)
{
	char	   *text = entry->text;
	size_t		len = strlen(text);
	const char *fault;

	if (strpbrk(text, "/:") != NULL)
	{
		int			offset;

		fault = block_parse(text, &entry->block);
		if (fault != NULL)
			return strchr(text, '/') && !strstr(text, "://") ? fault :
				"It is not an IPv6 address; a host is named without scheme and port.";
		/* What is judged is the address inside, so keep that. */
		if (entry->block.bits > 96 &&
			address_is_wrapped(&entry->block.address, &offset) &&
			offset == 12)
		{
			entry->block.address = address_unwrap(&entry->block.address);
			entry->block.bits -= 96;
		}
		return NULL;
	}
	if (block_parse(text, &entry->block) == NULL)
		return NULL;

	entry->is_host = true;
	if (strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-_.*?") != len)
		return "A host pattern consists of letters, digits, \"-\", \"_\", \".\", \"*\" and \"?\".";
	if (strspn(text, "0123456789.*?") == len &&
		strpbrk(text, "0123456789") != NULL)
		return "It is not an IPv4 address; a block of addresses is written like 10.0.0.0/8.";
	if (len > 1 && text[len - 1] == '.')
		text[	  --len] = '\0';

	if (text[0] == '.' || strstr(text, "..") != NULL)
		return "A host pattern has no empty labels; all hosts of a domain are written like *.example.com.";
	return NULL;
}

/* Parse a list for its setting's check hook. */
static bool
policy_check(char **newval, void **extra, GucSource source)
{
	const char *at = *newval;
	PolicyList *list;
	int			n = 0;

	if (at[strspn(at, " \t\n")] != '\0')
	{
		n = 1;
		for (const char *p = at; *p != '\0'; p++)
			n += *p == ',';
	}
	list = mlint_guc_malloc(offsetof(PolicyList, entries) +
							n * sizeof(PolicyEntry));
	if (list == NULL)
		return false;
	list->n = n;

	for (int i = 0; i < n; i++)
	{
		PolicyEntry *entry = &list->entries[i];
		size_t		len;
		const char *fault;

		memset(entry, 0, sizeof(*entry));
		at += strspn(at, " \t\n");
		len = strcspn(at, ",");
		while (len > 0 && strchr(" \t\n", at[len - 1]) != NULL)
			len--;
		if (len == 0)
			fault = "An entry is empty.";
		else if (len > ENTRY_TEXT_MAX)
			fault = "An entry is longer than a host name can be.";
		else
		{
			for (size_t c = 0; c < len; c++)
				entry->text[c] = pg_ascii_tolower(at[c]);
			fault = entry_parse(entry);
		}
		if (fault != NULL)
		{
			GUC_check_errdetail("Entry %d, \"%.*s\": %s", i + 1,
								(int) Min(len, ENTRY_TEXT_MAX), at, fault);
			GUC_check_errhint("Separate with commas what is to match: CIDR blocks (10.0.0.0/8), addresses (::1) and host patterns (*.example.com).");
			mlint_guc_free(list);
			return false;
		}
		at += strcspn(at, ",") + 1;
	}
	*extra = list;
	return true;
}

static void
deny_assign(const char *newval, void *extra)
{
	denied = extra;
	generation++;
}

static void
allow_assign(const char *newval, void *extra)
{
	allowed = extra;
	generation++;
}

/* Define mlint.http_deny and mlint.http_allow; called once by _PG_init. */
void
netpolicy_define_settings(void)
{
	for (int i = 0; i < lengthof(forbidden); i++)
		if (block_parse(forbidden[i].block, &forbidden_blocks[i]) != NULL)
			elog(ERROR, "bad address block \"%s\"", forbidden[i].block);
	for (int i = 0; i < lengthof(wrappers); i++)
		if (block_parse(wrappers[i].block, &wrapper_blocks[i]) != NULL)
			elog(ERROR, "bad address block \"%s\"", wrappers[i].block);

	DefineCustomStringVariable("mlint.http_deny",
							   "Addresses and hosts that HTTP requests must not go to.",
							   "A list, separated by commas, of CIDR blocks, addresses and host patterns. Set it, for example to 127.0.0.0/8, ::1, 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, fc00::/7, where those who configure destinations must not reach the internal network. Link-local and cloud metadata addresses are always refused.",
							   &http_deny,
							   "",
							   PGC_SIGHUP,
							   GUC_LIST_INPUT,
							   policy_check,
							   deny_assign,
							   NULL);
	DefineCustomStringVariable("mlint.http_allow",
							   "Addresses and hosts that HTTP requests may go to; empty: all that are not denied.",
							   "A list like mlint.http_deny, which has precedence. Set it where only a few receivers are legitimate.",
							   &http_allow,
							   "",
							   PGC_SIGHUP,
							   GUC_LIST_INPUT,
							   policy_check,
							   allow_assign,
							   NULL);
}

/* The first entry that matches the host or the address, or NULL. */
static const PolicyEntry *
list_match(const PolicyList *list, const char *host, const Address *address)
{
	for (int i = 0; list != NULL && i < list->n; i++)
	{
		const PolicyEntry *entry = &list->entries[i];

		if (entry->is_host ? glob_match(entry->text, host)
			: block_contains(&entry->block, address))
			return entry;
	}
	return NULL;
}

/* The address for a person; the host too, when it is a name. */
static const char *
address_name(const Address *address, const char *host, char *out,
			 size_t out_len)
{
	char text[	INET6_ADDRSTRLEN] = "?";

	inet_ntop(address->family, address->bytes, text, sizeof(text));
	if (host[0] == '[' || strcmp(host, text) == 0)
		snprintf(out, out_len, "address %s", text);
	else
		snprintf(out, out_len, "address %s of host \"%.60s\"", text, host);
	return out;
}

/* May we connect to this address for a URL with this host name? */
bool
netpolicy_allows(const char *host, const struct sockaddr *addr,
				 char *reason, size_t reason_len)
{
	Address		outer = {.family = addr->sa_family};
	Address		address;
	char		what[INET6_ADDRSTRLEN + 100];
	const PolicyEntry *entry;

	if (addr->sa_family == AF_INET)
		memcpy(outer.bytes,
			   &((const struct sockaddr_in *) addr)->sin_addr, 4);
	else if (addr->sa_family == AF_INET6)
		memcpy(outer.bytes,
			   &((const struct sockaddr_in6 *) addr)->sin6_addr, 16);
	else
	{
		snprintf(reason, reason_len, "only IPv4 and IPv6 are spoken");
		return false;
	}
	address = address_unwrap(&outer);

	for (int i = 0; i < lengthof(forbidden); i++)
	{
		if (block_contains(&forbidden_blocks[i], &address))
		{
			snprintf(reason, reason_len,
					 "%s is %s, which is always refused",
					 address_name(&outer, host, what, sizeof(what)),
					 forbidden[i].why);
			return false;
		}
	}
	entry = list_match(denied, host, &address);
	if (entry == NULL)
		entry = list_match(denied, host, &outer);
	if (entry != NULL)
	{
		snprintf(reason, reason_len,
				 "%s is denied by mlint.http_deny (%s)",
				 address_name(&outer, host, what, sizeof(what)), entry->text);
		return false;
	}
	if (allowed != NULL && allowed->n > 0 &&
		list_match(allowed, host, &address) == NULL)
	{
		snprintf(reason, reason_len, "%s is not among mlint.http_allow",
				 address_name(&outer, host, what, sizeof(what)));
		return false;
	}
	return true;
}

/* Changes whenever a setting does. */
uint64
netpolicy_generation(void)
{
	return generation;
}
