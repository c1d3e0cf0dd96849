/*
 * identifier.c
 *		Whom a rule means: from what the caller gave, or from the session.
 *
 *	custom		what the caller gave
 *	global		one for all: the empty identifier, whatever was given
 *	user		what was given; else the rule's setting; else session_user
 *	ip			what was given, which must be an address; else the rule's
 *				setting; else the client's address, or "local" for a socket;
 *				always masked by the rule's prefix lengths
 *	endpoint	what was given; else the rule's setting, or request.path
 *
 * A setting is read at each decision, since a pooler or PostgREST sets it for
 * each transaction. It is the session's own and may hold anything: whatever
 * cannot be used counts as not there, and what is next in the list is taken.
 *
 * Of a list of addresses with commas, as in X-Forwarded-For, the last counts:
 * that is the one which the nearest proxy has seen itself. All before it
 * can be made up by the client.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "common/compat.h"
#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "ratelimit/decide.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inet.h"

#define ENDPOINT_SETTING	"request.path"

/* An address as text, "/" and a prefix length. */
#define ADDRESS_ROOM		(INET6_ADDRSTRLEN + 5)

/* ---- a member of a JSON object ---- */

typedef struct MemberSearch
{
	JsonLexContext *lex;
	const char *key;
	bool		here;			/* what comes next is its value */
	char	   *value;
} MemberSearch;

static mlint_json_result
member_start(void *state, char *name, bool isnull)
{
	MemberSearch *search = state;

	search->here = search->lex->lex_level == 1 &&
		strcmp(name, search->key) == 0;
	if (search->here)
		search->value = NULL;
	mlint_json_done();
}

static mlint_json_result
member_end(void *state, char *name, bool isnull)
{
	((MemberSearch *) state)->here = false;
	mlint_json_done();
}

static mlint_json_result
member_scalar(void *state, char *token, JsonTokenType type)
{
	MemberSearch *search = state;

	if (search->here && search->lex->lex_level == 1 &&
		type != JSON_TOKEN_NULL)
		search->value = token;
	mlint_json_done();
}

/* The scalar of this name in a JSON object; NULL if there is none. */
static const char *
json_member(const char *json, const char *key)
{
	MemberSearch search = {0};
	JsonSemAction actions = {0};

	search.key = key;
	search.lex = mlint_json_lexer(json, strlen(json));
	actions.semstate = &search;
	actions.object_field_start = member_start;
	actions.object_field_end = member_end;
	actions.scalar = member_scalar;
	if (pg_parse_json(search.lex, &actions) != JSON_SUCCESS)
		return NULL;
	return search.value;
}

/*
 * The value of a rule's setting, NULL if there is none that can be used. It
 * is the caller's: of a setting that is no string, PostgreSQL returns a buffer
 * which the next one overwrites.
 */
static const char *
setting_value(const char *setting)
{
	const char *key = strchr(setting, '>');
	const char *value;

	if (key == NULL)
	{
		value = GetConfigOption(setting, true, false);
		if (value)
			value = pstrdup(value);
	}
	else
	{
		char		name[256];

		strlcpy(name, setting, Min(sizeof(name), key - setting + 1));
		value = GetConfigOption(name, true, false);
		if (value && value[0])
			value = json_member(value, key + 1);
	}
	return value && value[0] ? value : NULL;
}

/* ---- addresses ---- */

typedef struct Address
{
	int			family;			/* AF_INET or AF_INET6 */
	uint8		bytes[16];
	int			bits;			/* of its prefix: what follows it says nothing */
} Address;

/* An IPv4 address that came as ::ffff:a.b.c.d is one. */
static void
unmap(Address *address)
{
	static const uint8 mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

	if (address->family != AF_INET6 || address->bits < 96 ||
		memcmp(address->bytes, mapped, sizeof(mapped)) != 0)
		return;
	memmove(address->bytes, address->bytes + 12, 4);
	address->family = AF_INET;
	address->bits -= 96;
}

/*
 * Read "192.0.2.1", "2001:db8::1", also with a prefix length as inet writes
 * it, and with a port as some proxies do: "192.0.2.1:80", "[2001:db8::1]:80".
 */
static bool
parse_address(const char *given, Size len, Address *address)
{
	char		copy[ADDRESS_ROOM + 8];
	char	   *host = copy;
	char	   *end;

	for (; len > 0 && *given == ' '; len--)
		given++;
	while (len > 0 && given[len - 1] == ' ')
		len--;
	if (len == 0 || len >= sizeof(copy) || memchr(given, '\0', len))
		return false;
	memcpy(copy, given, len);
	copy[len] = '\0';
	address->bits = -1;
	if (*host == '[')
	{
		host++;
		end = strchr(host, ']');
		if (end == NULL || (end[1] != '\0' && end[1] != ':'))
			return false;
		*end = '\0';
	}
	else if ((end = strchr(host, '/')) != NULL)
	{
		size_t		digits = strspn(end + 1, "0123456789");

		if (digits < 1 || digits > 3 || end[1 + digits] != '\0')
			return false;
		address->bits = (int) strtol(end + 1, NULL, 10);
		*end = '\0';
	}
	else if ((end = strchr(host, ':')) != NULL && strchr(host, '.') &&
			 strchr(end + 1, ':') == NULL)
		*end = '\0';
	if ((end = strchr(host, '%')) != NULL)
		*end = '\0';			/* the zone of a link-local address */

	if (inet_pton(AF_INET, host, address->bytes) == 1)
		address->family = AF_INET;
	else if (inet_pton(AF_INET6, host, address->bytes) == 1)
		address->family = AF_INET6;
	else
		return false;
	if (address->bits < 0)
		address->bits = address->family == AF_INET ? 32 : 128;
	else if (address->bits > (address->family == AF_INET ? 32 : 128))
		return false;
	unmap(address);
	return true;
}

/* The address that the session comes from; none by a socket, or in a worker. */
static bool
client_address(Address *address)
{
	static enum
	{
		UNKNOWN, KNOWN, NONE
	}			state = UNKNOWN;
	static Address client;

	if (state == UNKNOWN)
	{
		LOCAL_FCINFO(call, 0);
		Datum		addr = 0;

		InitFunctionCallInfoData(*call, NULL, 0, InvalidOid, NULL, NULL);
		if (MyProcPort)
			addr = inet_client_addr(call);
		state = NONE;
		if (MyProcPort && !call->isnull)
		{
			inet	   *from = DatumGetInetPP(addr);

			client.family = ip_family(from) == PGSQL_AF_INET ? AF_INET :
				AF_INET6;
			client.bits = ip_maxbits(from);
			memcpy(client.bytes, ip_addr(from), ip_addrsize(from));
			unmap(&client);
			state = KNOWN;
		}
	}
	*address = client;
	return state == KNOWN;
}

/* The network that a rule takes an address for: "2001:db8::/64". */
static const char *
address_text(const RateRule *rule, Address *address, Size *len)
{
	int			full = address->family == AF_INET ? 32 : 128;
	int			prefix = address->family == AF_INET ? rule->ipv4_prefix :
	rule->ipv6_prefix;
	char	   *network = palloc(ADDRESS_ROOM);

	prefix = Min(prefix, address->bits);
	for (int i = 0; i < full / 8; i++)
	{
		int			keep = Max(Min(prefix - 8 * i, 8), 0);

		address->bytes[i] &= 0xff << (8 - keep);
	}
	if (inet_ntop(address->family, address->bytes, network,
				  ADDRESS_ROOM) == NULL)
		elog(ERROR, "could not format an address: %m");
	*len = strlen(network);
	if (prefix < full)
		*len += snprintf(network + *len, ADDRESS_ROOM - *len, "/%d", prefix);
	return network;
}

static const char *
identify_address(const RateRule *rule, const char *given, Size *len)
{
	Address		address;

	if (*len > 0)
	{
		if (*len == 5 && memcmp(given, "local", 5) == 0)
			return given;
		if (!parse_address(given, *len, &address))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
					 errmsg("\"%s\" is not an IP address",
							pnstrdup(given, pg_mbcliplen(given, *len, 60))),
					 errdetail("Rate limit \"%s\" is of scope ip.",
							   rule->name),
					 errhint("Leave the identifier empty to take the address of the client.")));
		return address_text(rule, &address, len);
	}
	if (rule->setting)
	{
		const char *value = setting_value(rule->setting);

		if (value)
		{
			const char *comma = strrchr(value, ',');
			const char *last = comma ? comma + 1 : value;

			if (parse_address(last, strlen(last), &address))
				return address_text(rule, &address, len);
		}
	}
	if (client_address(&address))
		return address_text(rule, &address, len);
	*len = 5;
	return "local";
}

const char *
rate_identify(const RateRule *rule, const char *given, Size *len)
{
	const char *found = NULL;

	if (rule->scope == RATE_CUSTOM)
		return given;
	if (rule->scope == RATE_GLOBAL)
	{
		*len = 0;
		return "";
	}
	if (rule->scope == RATE_IP)
		return identify_address(rule, given, len);
	if (*len > 0)
		return given;

	if (rule->setting)
		found = setting_value(rule->setting);
	else if (rule->scope == RATE_ENDPOINT)
		found = setting_value(ENDPOINT_SETTING);
	if (found == NULL)
		found = rule->scope == RATE_USER ?
			GetUserNameFromId(GetSessionUserId(), false) : "";
	*len = strlen(found);
	return found;
}
