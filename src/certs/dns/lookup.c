/*
 * lookup.c
 *		Asking name servers, over TCP; see lookup.h.
 *
 * Each question has a connection of its own, with a length in front of each
 * message (RFC 1035, 4.2.2). An answer must have our id, our question and no
 * sign of being cut; that is all that an answer over TCP can be held to.
 *
 * Whether a record is to be seen is asked of every address of every name
 * server of the zone. A name server counts when all of its addresses that can
 * be reached show the record, and one can be: on a machine without IPv6 half of
 * the addresses are out of reach for good.
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "certs/dns/lookup.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/http.h"
#include "common/peertext.h"
#include "lib/stringinfo.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#define RESOLV_CONF			"/etc/resolv.conf"
#define RESOLVERS_MAX		3
/* More a zone has none, and more we do not ask. */
#define NAMESERVERS_MAX		16
#define ADDRESSES_MAX		8
/* No name server takes longer for an answer; and all together not longer. */
#define QUESTION_MAX_MS		5000
#define ROUND_MAX_MS		15000
/* So long another address of one that was seen may take. */
#define OTHER_MAX_MS		1000
/* Bytes of what is said about servers that lack a record. */
#define WAITING_MAX			1000

/* ---- what ldns allocates ---- */

static void
free_packet(void *packet)
{
	ldns_pkt_free(packet);
}

static void
free_rdf(void *rdf)
{
	ldns_rdf_deep_free(rdf);
}

static void *
own(void *object, void (*release) (void *))
{
	MemoryContextCallback *callback;

	if (object == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	callback = MemoryContextAllocExtended(CurrentMemoryContext,
										  sizeof(MemoryContextCallback),
										  MCXT_ALLOC_NO_OOM);
	if (callback == NULL)
	{
		release(object);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	}
	callback->func = release;
	callback->arg = object;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	return object;
}

ldns_pkt *
dns_own_packet(ldns_pkt * packet)
{
	return own(packet, free_packet);
}

ldns_rdf *
dns_own_name(const char *name)
{
	return own(ldns_dname_new_frm_str(name), free_rdf);
}

ldns_pkt *
dns_read(const uint8 *wire, size_t len)
{
	ldns_pkt   *packet = NULL;

	if (ldns_wire2pkt(&packet, wire, len) != LDNS_STATUS_OK)
		return NULL;
	return dns_own_packet(packet);
}

uint8 *
dns_write(const ldns_pkt * packet, size_t room, size_t *len)
{
	uint8_t    *made = NULL;
	uint8	   *wire;

	if (ldns_pkt2wire(&made, packet, len) != LDNS_STATUS_OK)
		elog(ERROR, "could not make a DNS message");
	wire = MemoryContextAllocExtended(CurrentMemoryContext, *len + room,
									  MCXT_ALLOC_NO_OOM);
	if (wire)
		memcpy(wire, made, *len);
	free(made);
	if (wire == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	return wire;
}

const char *
dns_rcode_text(int rcode)
{
	static const char *const texts[] = {"NOERROR", "FORMERR", "SERVFAIL",
		"NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET",
	"NOTAUTH", "NOTZONE"};

	return rcode >= 0 && rcode < lengthof(texts) ? texts[rcode] :
		psprintf("RCODE %d", rcode);
}

char *
dns_name_text(const ldns_rdf * name)
{
	char	   *made = ldns_rdf2str(name);
	char	   *text;
	size_t		len;

	if (made == NULL)
		return NULL;
	text = MemoryContextAllocExtended(CurrentMemoryContext, strlen(made) + 1,
									  MCXT_ALLOC_NO_OOM);

	if (text)
		memcpy(text, made, strlen(made) + 1);
	free(made);
	if (text == NULL)
		return NULL;
	len = strlen(text);
	if (len > 0 && text[len - 1] == '.')
		text[	  --len] = '\0';

	for (char *p = text; *p; p++)
		*p = pg_ascii_tolower(*p);
	if (len == 0 || len > DNS_NAME_MAX ||
		strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != len)
		return NULL;
	return text;
}

/* ---- servers ---- */

const char *
dns_server_text(const DnsServer *server)
{
	if (server->port == DNS_PORT)
		return server->host;
	return psprintf(strchr(server->host, ':') ? "[%s]:%d" : "%s:%d",
					server->host, server->port);
}

static bool
is_address(const char *text)
{
	uint8		bytes[16];

	return inet_pton(AF_INET, text, bytes) == 1 ||
		inet_pton(AF_INET6, text, bytes) == 1;
}

static bool
is_host_name(const char *text)
{
	size_t		len = strlen(text);

	return len > 0 && len <= DNS_NAME_MAX && text[0] != '.' &&
	text[		0] != '-' &&
				strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
					   "0123456789-_.") == len;
}

bool
dns_server_parse(const char *text, int port, bool names_too,
				 DnsServer *server)
{
	char	   *host = pstrdup(text);
	char	   *colon = strrchr(host, ':');
	char	   *end;
	long		given;

	memset(server, 0, sizeof(*server));
	server->port = port;
	if (host[0] == '[')
	{
		char	   *bracket = strchr(host, ']');

		if (bracket == NULL || (bracket[1] != '\0' && bracket[1] != ':'))
			return false;
		colon = bracket[1] == ':' ? bracket + 1 : NULL;
		*bracket = '\0';
		host++;
	}
	else if (colon && strchr(host, ':') != colon)
		colon = NULL;			/* IPv6, without a port */
	if (colon)
	{
		*colon = '\0';
		errno = 0;
		given = strtol(colon + 1, &end, 10);
		if (colon[1] < '0' || colon[1] > '9' || *end != '\0' || errno ||
			given < 1 || given > 65535)
			return false;
		server->port = (int) given;
	}
	server->host = host;
	return is_address(host) || (names_too && is_host_name(host));
}

/* The machine's resolvers, at most RESOLVERS_MAX; how many there are. */
static int
system_resolvers(DnsServer *servers)
{
	FILE	   *file = AllocateFile(RESOLV_CONF, "r");
	char		line[512];
	int			n = 0;

	if (file == NULL)
		return 0;
	while (n < RESOLVERS_MAX && fgets(line, sizeof(line), file))
	{
		char	   *save;
		char	   *word = strtok_r(line, " \t\r\n", &save);
		char	   *address;

		if (word == NULL || strcmp(word, "nameserver") != 0)
			continue;
		address = strtok_r(NULL, " \t\r\n", &save);
		if (address == NULL || !is_address(address))
			continue;
		servers[n].host = pstrdup(address);
		servers[n].port = DNS_PORT;
		servers[n++].system = true;
	}
	FreeFile(file);
	return n;
}

/* Whom to ask about anything; raises when there is nobody. */
static int
resolvers(const DnsOptions *options, DnsServer *servers)
{
	int			n = 1;

	memset(servers, 0, RESOLVERS_MAX * sizeof(DnsServer));
	if (options->resolver == NULL)
		n = system_resolvers(servers);
	else if (!dns_server_parse(options->resolver, DNS_PORT, false, servers))
		elog(ERROR, "option \"resolver\" was not checked");
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("there is no name server to ask: %s names none",
						RESOLV_CONF),
				 errhint("Name one in option \"resolver\" of the DNS provider.")));
	return n;
}

/* ---- one exchange ---- */

static void
pg_attribute_printf(3, 4)
fail(DnsFailure *failure, int sqlstate, const char *fmt,...)
{
	va_list		args;

	failure->sqlstate = sqlstate;
	va_start(args, fmt);
	vsnprintf(failure->text, sizeof(failure->text), fmt, args);
	va_end(args);
}

static bool
send_all(HttpConnection *connection, const uint8 *data, size_t len,
		 int64 deadline, DnsFailure *failure)
{
	while (len > 0)
	{
		ssize_t		n = http_connection_send(connection, data, len);

		if (n < 0)
		{
			fail(failure, ERRCODE_MLINT_CONNECTION,
				 "it has closed the connection");
			return false;
		}
		data += n;
		len -= n;
		if (n == 0 && !http_connection_wait(connection, true, deadline))
		{
			fail(failure, ERRCODE_MLINT_TIMEOUT, "it took too long");
			return false;
		}
	}
	return true;
}

static bool
receive_all(HttpConnection *connection, uint8 *data, size_t len,
			int64 deadline, DnsFailure *failure)
{
	while (len > 0)
	{
		ssize_t		n = http_connection_receive(connection, data, len);

		if (n < 0)
		{
			fail(failure, ERRCODE_MLINT_CONNECTION,
				 "it has closed the connection without an answer");
			return false;
		}
		data += n;
		len -= n;
		if (n == 0 && !http_connection_wait(connection, false, deadline))
		{
			fail(failure, ERRCODE_MLINT_TIMEOUT, "it took too long to answer");
			return false;
		}
	}
	return true;
}

/* The exchange on an open connection. */
static uint8 *
converse(HttpConnection *connection, const uint8 *query, size_t len,
		 int64 deadline, size_t *answer_len, DnsFailure *failure)
{
	uint8	   *message = palloc(len + 2);
	uint8	   *answer;
	uint8		prefix[2];

	message[0] = len >> 8;
	message[1] = len & 0xff;
	memcpy(message + 2, query, len);
	if (!send_all(connection, message, len + 2, deadline, failure) ||
		!receive_all(connection, prefix, sizeof(prefix), deadline, failure))
		return NULL;
	*answer_len = (size_t) prefix[0] << 8 | prefix[1];
	if (*answer_len < LDNS_HEADER_SIZE)
	{
		fail(failure, ERRCODE_MLINT_HTTP, "its answer is no DNS message");
		return NULL;
	}
	answer = palloc(*answer_len);
	if (!receive_all(connection, answer, *answer_len, deadline, failure))
		return NULL;
	return answer;
}

uint8 *
dns_exchange(const DnsServer *server, const uint8 *query, size_t len,
			 int timeout_ms, size_t *answer_len, DnsFailure *failure)
{
	ConnectionTarget target = {
		.host = server->host,
		.port = server->port,
		.machine = server->system,
		.timeout_ms = timeout_ms
	};
	HttpResponse refused;
	HttpConnection *connection;
	uint8	   *answer;
	int64		deadline = http_clock() + timeout_ms * INT64CONST(1000);

	if (len > PG_UINT16_MAX)
		elog(ERROR, "a DNS message is too long");
	connection = http_connect(&target, &refused);
	if (connection == NULL)
	{
		fail(failure, http_sqlstate(&refused), "%s", refused.error);
		return NULL;
	}
	answer = converse(connection, query, len, deadline, answer_len, failure);
	http_connection_close(connection);
	return answer;
}

/* ---- questions ---- */

bool
dns_answers(const ldns_pkt * answer, const ldns_pkt * question)
{
	const		ldns_rr_list *asked = ldns_pkt_question(question);
	const		ldns_rr_list *said = ldns_pkt_question(answer);
	const		ldns_rr *a;
	const		ldns_rr *b;

	if (!ldns_pkt_qr(answer) || ldns_pkt_tc(answer) ||
		ldns_pkt_id(answer) != ldns_pkt_id(question) ||
		ldns_pkt_get_opcode(answer) != ldns_pkt_get_opcode(question) ||
		ldns_rr_list_rr_count(said) != 1)
		return false;
	a = ldns_rr_list_rr(asked, 0);
	b = ldns_rr_list_rr(said, 0);
	return ldns_rr_get_type(a) == ldns_rr_get_type(b) &&
		ldns_rr_get_class(a) == ldns_rr_get_class(b) &&
		ldns_dname_compare(ldns_rr_owner(a), ldns_rr_owner(b)) == 0;
}

/* A question, ready to be sent. */
static ldns_pkt *
question(const char *name, ldns_rr_type type, bool recurse)
{
	ldns_rdf   *owner = ldns_dname_new_frm_str(name);
	ldns_pkt   *packet = owner ?
	ldns_pkt_query_new(owner, type, LDNS_RR_CLASS_IN,
					   recurse ? LDNS_RD : 0) : NULL;
	uint16		id;

	if (packet == NULL && owner)
		ldns_rdf_deep_free(owner);
	(void) dns_own_packet(packet);
	crypto_random(&id, sizeof(id));
	ldns_pkt_set_id(packet, id);
	return packet;
}

ldns_pkt *
dns_ask(const DnsServer *server, const char *name, ldns_rr_type type,
		bool recurse, int timeout_ms, DnsFailure *failure)
{
	ldns_pkt   *asked = question(name, type, recurse);
	ldns_pkt   *said;
	uint8	   *answer;
	size_t		len;
	uint8	   *query = dns_write(asked, 0, &len);

	answer = dns_exchange(server, query, len, Min(timeout_ms, QUESTION_MAX_MS),
						  &len, failure);
	if (answer == NULL)
		return NULL;
	said = dns_read(answer, len);
	if (said == NULL || !dns_answers(said, asked))
	{
		fail(failure, ERRCODE_MLINT_HTTP, said == NULL ?
			 "its answer is no DNS message" :
			 "its answer is not to our question");
		return NULL;
	}
	return said;
}

/* As dns_resolve(), with the failure for the caller. */
static ldns_pkt *
resolve(const DnsOptions *options, const char *name, ldns_rr_type type,
		DnsFailure *failure)
{
	DnsServer	servers[RESOLVERS_MAX];
	int			n = resolvers(options, servers);

	Assert(n > 0);
	for (int i = 0; i < n; i++)
	{
		DnsFailure	why;
		ldns_pkt   *said = dns_ask(&servers[i], name, type, true,
								   options->timeout_ms, &why);
		int			rcode;

		if (said == NULL)
		{
			fail(failure, why.sqlstate, "name server %s: %s",
				 dns_server_text(&servers[i]), why.text);
			continue;
		}
		rcode = ldns_pkt_get_rcode(said);
		if (rcode == LDNS_RCODE_NOERROR || rcode == LDNS_RCODE_NXDOMAIN)
			return said;
		fail(failure, ERRCODE_MLINT_API,
			 "name server %s answered with %s",
			 dns_server_text(&servers[i]), dns_rcode_text(rcode));
	}
	return NULL;
}

ldns_pkt *
dns_resolve(const DnsOptions *options, const char *name, ldns_rr_type type)
{
	DnsFailure	failure;
	ldns_pkt   *said = resolve(options, name, type, &failure);

	if (said == NULL)
		ereport(ERROR,
				(errcode(failure.sqlstate),
				 errmsg("could not look up \"%s\": %s", name, failure.text),
				 failure.sqlstate == ERRCODE_MLINT_ADDRESS_REFUSED ?
				 errhint("See the settings mlint.http_deny and mlint.http_allow.") :
				 errhint("Questions are asked over TCP. Option \"resolver\" of the DNS provider names another name server.")));
	return said;
}

/* ---- is it to be seen? ---- */

/* A name server of a zone, and where it is. */
typedef struct Nameserver
{
	const char *name;
	int			n;
	DnsServer	addresses[ADDRESSES_MAX];
} Nameserver;

typedef enum Sight
{
	SHOWN,
	LACKING,
	UNREACHABLE
} Sight;

static void
add_addresses(const DnsOptions *options, Nameserver *ns, ldns_rr_type type,
			  DnsFailure *failure)
{
	ldns_pkt   *said = resolve(options, ns->name, type, failure);
	ldns_rr_list *answer;

	if (said == NULL)
		return;
	answer = ldns_pkt_answer(said);
	for (size_t i = 0; i < ldns_rr_list_rr_count(answer) &&
		 ns->n < ADDRESSES_MAX; i++)
	{
		ldns_rr    *rr = ldns_rr_list_rr(answer, i);
		ldns_rdf   *rdf = ldns_rr_rdf(rr, 0);
		char text[	INET6_ADDRSTRLEN];

		if (ldns_rr_get_type(rr) != type || rdf == NULL)
			continue;
		if (inet_ntop(type == LDNS_RR_TYPE_A ? AF_INET : AF_INET6,
					  ldns_rdf_data(rdf), text, sizeof(text)) == NULL)
			continue;
		ns->addresses[ns->n].host = pstrdup(text);
		ns->addresses[ns->n].system = false;
		ns->addresses[ns->n++].port = options->port;
	}
}

/* Those that the option names, each by itself. */
static List *
named_servers(const DnsOptions *options)
{
	List	   *list = NIL;
	char	   *save;

	for (char *word = strtok_r(pstrdup(options->nameservers), ", ", &save);
		 word; word = strtok_r(NULL, ", ", &save))
	{
		Nameserver *ns = palloc0(sizeof(Nameserver));

		ns->name = word;
		ns->n = 1;
		if (!dns_server_parse(word, options->port, false, &ns->addresses[0]))
			elog(ERROR, "option \"nameservers\" was not checked");
		list = lappend(list, ns);
	}
	return list;
}

/* Those that the zone names. */
static List *
zone_servers(const DnsOptions *options, const char *zone)
{
	ldns_rdf   *owner = dns_own_name(zone);
	ldns_rr_list *answer =
	ldns_pkt_answer(dns_resolve(options, zone, LDNS_RR_TYPE_NS));
	List	   *list = NIL;

	for (size_t i = 0; i < ldns_rr_list_rr_count(answer) &&
		 list_length(list) < NAMESERVERS_MAX; i++)
	{
		ldns_rr    *rr = ldns_rr_list_rr(answer, i);
		Nameserver *ns;
		char	   *name;

		if (ldns_rr_get_type(rr) != LDNS_RR_TYPE_NS ||
			ldns_rr_rdf(rr, 0) == NULL ||
			ldns_dname_compare(ldns_rr_owner(rr), owner) != 0)
			continue;
		name = dns_name_text(ldns_rr_rdf(rr, 0));
		if (name == NULL)
			continue;
		ns = palloc0(sizeof(Nameserver));
		ns->name = name;
		list = lappend(list, ns);
	}
	if (list == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_API),
				 errmsg("the resolver knows no name server of zone \"%s\"",
						zone),
				 errhint("Options \"zone\" and \"nameservers\" of the DNS provider name them.")));
	return list;
}

/* Is one of the answer's TXT records of this name and value? */
static bool
has_value(const ldns_pkt * said, const char *name, const char *value)
{
	ldns_rdf   *owner = dns_own_name(name);
	ldns_rr_list *answer = ldns_pkt_answer(said);

	for (size_t i = 0; i < ldns_rr_list_rr_count(answer); i++)
	{
		ldns_rr    *rr = ldns_rr_list_rr(answer, i);
		StringInfoData text;

		if (ldns_rr_get_type(rr) != LDNS_RR_TYPE_TXT ||
			ldns_dname_compare(ldns_rr_owner(rr), owner) != 0)
			continue;
		initStringInfo(&text);
		for (size_t k = 0; k < ldns_rr_rd_count(rr); k++)
		{
			const		ldns_rdf *rdf = ldns_rr_rdf(rr, k);

			/* Each string has its length in front. */
			if (ldns_rdf_size(rdf) > 1)
				appendBinaryStringInfo(&text,
									   (const char *) ldns_rdf_data(rdf) + 1,
									   ldns_rdf_size(rdf) - 1);
		}
		if (text.len == strlen(value) &&
			memcmp(text.data, value, text.len) == 0)
			return true;
	}
	return false;
}

static Sight
look(const DnsServer *server, const char *name, const char *value,
	 int timeout_ms, DnsFailure *failure)
{
	ldns_pkt   *said = dns_ask(server, name, LDNS_RR_TYPE_TXT, false,
							   timeout_ms, failure);
	int			rcode;

	if (said == NULL)
		return UNREACHABLE;
	rcode = ldns_pkt_get_rcode(said);
	if (rcode == LDNS_RCODE_NOERROR && has_value(said, name, value))
		return SHOWN;
	if (rcode == LDNS_RCODE_NOERROR || rcode == LDNS_RCODE_NXDOMAIN)
		fail(failure, ERRCODE_MLINT_TIMEOUT, "does not show it");
	else
		fail(failure, ERRCODE_MLINT_API, "answers with %s",
			 dns_rcode_text(rcode));
	return LACKING;
}

static void
note(StringInfo waiting, const char *name, const DnsServer *server,
	 const char *why)
{
	if (waiting->len > WAITING_MAX)
		return;
	appendStringInfo(waiting, "%s%s", waiting->len > 0 ? "; " : "", name);
	if (server && strcmp(name, server->host) != 0 &&
		strcmp(name, dns_server_text(server)) != 0)
		appendStringInfo(waiting, " (%s)", dns_server_text(server));
	appendStringInfo(waiting, " %s", why);
}

/* Does this name server show it at all addresses that can be reached? */
static bool
server_shows(const DnsOptions *options, Nameserver *ns, const char *name,
			 const char *value, int64 deadline, StringInfo waiting)
{
	DnsFailure	unreached = {0};
	const DnsServer *where = NULL;
	bool		shown = false;
	bool		lacking = false;

	/* Whoever owns the zone says how many names there are, and how slow. */
	if (ns->n == 0 && http_clock() < deadline)
	{
		fail(&unreached, ERRCODE_MLINT_API, "it has no address");
		add_addresses(options, ns, LDNS_RR_TYPE_A, &unreached);
		add_addresses(options, ns, LDNS_RR_TYPE_AAAA, &unreached);
	}
	for (int i = 0; i < ns->n && http_clock() < deadline; i++)
	{
		DnsFailure	failure;

		switch (look(&ns->addresses[i], name, value,
					 Min(options->timeout_ms,
						 shown ? OTHER_MAX_MS : QUESTION_MAX_MS), &failure))
		{
			case SHOWN:
				shown = true;
				break;
			case LACKING:
				note(waiting, ns->name, &ns->addresses[i], failure.text);
				lacking = true;
				break;
			case UNREACHABLE:
				unreached = failure;
				where = &ns->addresses[i];
				break;
		}
	}
	if (!shown && !lacking)
		note(waiting, ns->name, where,
			 unreached.text[0] ?
			 psprintf("cannot be asked: %s", unreached.text) :
			 "was not asked for lack of time");
	return shown && !lacking;
}

bool
dns_visible(const DnsOptions *options, const char *zone, const char *name,
			const char *value, char **waiting)
{
	List	   *servers = options->nameservers ? named_servers(options) :
	zone_servers(options, zone);
	int64		deadline = http_clock() + ROUND_MAX_MS * INT64CONST(1000);
	StringInfoData text;
	ListCell   *lc;
	bool		all = true;

	initStringInfo(&text);
	foreach(lc, servers)
	{
		if (!server_shows(options, lfirst(lc), name, value, deadline, &text))
			all = false;
	}
	peer_text_clean(text.data);
	*waiting = text.data;

	return all;
}
