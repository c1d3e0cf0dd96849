/*
 * rfc2136.c
 *		Records by dynamic update (RFC 2136), signed with TSIG: BIND, Knot,
 *		PowerDNS, Windows.
 *
 * One update adds or deletes exactly one TXT record, and leaves others of its
 * name alone: deleting is by value. Both may be repeated. The zone is in the
 * message; a server that is not its primary says so.
 */
#include "postgres.h"

#include "certs/dns/lookup.h"
#include "certs/dns/tsig.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"

typedef struct UpdateOptions
{
	DnsOptions	common;
	char	   *server;
	char	   *key_name;
	Credential	key;
	int			algorithm;
} UpdateOptions;

#define AT(member) offsetof(UpdateOptions, member)

static const Option update_options[] = {
	{"server", OPTION_TEXT, AT(server), NULL, 0, 0, NULL, NULL, true,
	"primary name server of the zones: host, host:port, [IPv6 address]:port"},
	{"key_name", OPTION_TEXT, AT(key_name), NULL, 0, 0, NULL, NULL, true,
	"name of the TSIG key"},
	{"key", OPTION_CREDENTIAL, AT(key), NULL, 0, 0, NULL, NULL, true,
	"the TSIG key, base64 as in the name server's configuration"},
	{"algorithm", OPTION_ENUM, AT(algorithm), "hmac-sha256", 0, 0,
		tsig_algorithms, NULL, false,
	"algorithm of the TSIG key"},
	{NULL}
};

static void
update_check(const void *options, Oid owner, const char *what)
{
	const UpdateOptions *o = options;
	DnsServer	server;
	size_t		len = strlen(o->key_name);

	if (!dns_server_parse(o->server, DNS_PORT, true, &server))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"server\" of %s is not the name or address of a server",
						what),
				 errhint("Write it like ns1.example.com, 192.0.2.1:5353 or [2001:db8::1]:5353.")));
	if (len == 0 || len > DNS_NAME_MAX || o->key_name[0] == '.' ||
		strstr(o->key_name, "..") != NULL ||
		strspn(o->key_name, "abcdefghijklmnopqrstuvwxyz"
			   "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != len)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"key_name\" of %s is not the name of a key",
						what)));
}

/* The key's bytes, which the caller wipes. */
static uint8 *
resolve_key(const UpdateOptions *o, size_t *len)
{
	size_t		text_len;
	char	   *text = credential_resolve(&o->key, &text_len);
	uint8	   *secret = palloc(text_len + 1);
	int			n = crypto_unbase64(text, text_len, secret);

	crypto_wipe(text, text_len);
	if (n <= 0)
	{
		crypto_wipe(secret, text_len);
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the TSIG key \"%s\" is not base64", o->key_name)));
	}
	*len = n;
	return secret;
}

/* ---- the message ---- */

static ldns_rr *
txt_record(const DnsRecord *record, ldns_rr_class class, uint32 ttl)
{
	size_t		len = strlen(record->value);
	uint8		string[256];
	ldns_rr    *rr = ldns_rr_new();
	ldns_rdf   *owner = ldns_dname_new_frm_str(record->name);
	ldns_rdf   *rdf;

	if (len > 255)
		elog(ERROR, "the value of a TXT record is too long");
	string[0] = (uint8) len;
	memcpy(string + 1, record->value, len);
	rdf = ldns_rdf_new_frm_data(LDNS_RDF_TYPE_STR, len + 1, string);
	if (rr == NULL || owner == NULL || rdf == NULL)
		elog(ERROR, "could not make a DNS record");
	ldns_rr_set_owner(rr, owner);
	ldns_rr_set_type(rr, LDNS_RR_TYPE_TXT);
	ldns_rr_set_class(rr, class);
	ldns_rr_set_ttl(rr, ttl);
	ldns_rr_push_rdf(rr, rdf);
	return rr;
}

/* Add the record; or delete it, which class NONE says (2.5.4). */
static ldns_pkt *
update_message(const DnsRecord *record, bool add, int ttl)
{
	ldns_rr_list *records = ldns_rr_list_new();
	ldns_rr    *rr = txt_record(record, add ? LDNS_RR_CLASS_IN :
								LDNS_RR_CLASS_NONE, add ? ttl : 0);
	ldns_rdf   *zone = ldns_dname_new_frm_str(record->zone);
	ldns_pkt   *packet = NULL;
	uint16		id;

	if (records && zone && ldns_rr_list_push_rr(records, rr))
		packet = ldns_update_pkt_new(zone, LDNS_RR_CLASS_IN, NULL, records,
									 NULL);
	if (records)
		ldns_rr_list_deep_free(records);
	(void) dns_own_packet(packet);
	crypto_random(&id, sizeof(id));
	ldns_pkt_set_id(packet, id);
	ldns_pkt_set_rd(packet, false);
	return packet;
}

/* ---- the exchange ---- */

static void
pg_attribute_noreturn()
update_failed(const DnsServer *server, const DnsRecord *record, int sqlstate,
			  const char *why)
{
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("could not update zone \"%s\": name server %s: %s",
					record->zone, dns_server_text(server), why),
			 sqlstate == ERRCODE_MLINT_AUTHENTICATION ?
			 errhint("Check options \"key_name\", \"key\" and \"algorithm\" of the DNS provider, and what the key may update there.") :
			 sqlstate == ERRCODE_MLINT_ADDRESS_REFUSED ?
			 errhint("See the settings mlint.http_deny and mlint.http_allow.") :
			 0));
}

/* What the answer to an update comes to; raises unless it was done. */
static void
judge(const DnsServer *server, const DnsRecord *record,
	  const ldns_pkt * message, const ldns_pkt * answer, TsigVerdict verdict,
	  const char *why)
{
	int			rcode;

	if (answer == NULL || !ldns_pkt_qr(answer) ||
		ldns_pkt_id(answer) != ldns_pkt_id(message) ||
		ldns_pkt_get_opcode(answer) != LDNS_PACKET_UPDATE)
		update_failed(server, record, ERRCODE_MLINT_HTTP,
					  "its answer is none to our update");
	rcode = ldns_pkt_get_rcode(answer);
	if (verdict == TSIG_REJECTED)
		update_failed(server, record, ERRCODE_MLINT_AUTHENTICATION, why);
	if (verdict == TSIG_BAD ||
		(verdict == TSIG_NONE && rcode == LDNS_RCODE_NOERROR))
		update_failed(server, record, ERRCODE_MLINT_AUTHENTICATION, why);
	if (rcode == LDNS_RCODE_REFUSED)
		update_failed(server, record, ERRCODE_MLINT_AUTHENTICATION,
					  "it does not let this key do it (REFUSED)");
	/* Of a key that is wrong, too, when it does not sign to say so. */
	if (rcode == LDNS_RCODE_NOTAUTH)
		update_failed(server, record, ERRCODE_MLINT_AUTHENTICATION,
					  "it does not know the key, or is not in charge of the zone (NOTAUTH)");
	if (rcode != LDNS_RCODE_NOERROR)
		update_failed(server, record, ERRCODE_MLINT_API,
					  psprintf("it answered with %s", dns_rcode_text(rcode)));
}

/* Sign, send and verify; the answer, or NULL with *failure. */
static uint8 *
exchange(const UpdateOptions *o, const TsigKey *key, const DnsServer *server,
		 uint8 *wire, size_t len, size_t *answer_len, TsigVerdict *verdict,
		 const char **why, DnsFailure *failure)
{
	uint8		mac[TSIG_MAC_MAX];
	size_t		mac_len;
	uint8	   *answer;

	len = tsig_sign(key, wire, len, mac, &mac_len);
	answer = dns_exchange(server, wire, len, o->common.timeout_ms, answer_len,
						  failure);
	if (answer)
		*verdict = tsig_verify(key, answer, *answer_len, mac, mac_len, why);
	return answer;
}

static void
update(const UpdateOptions *o, const DnsRecord *record, bool add)
{
	ldns_pkt   *volatile message = update_message(record, add, o->common.ttl);
	TsigKey		key = {.name = o->key_name,.algorithm = o->algorithm};
	size_t		len;
	size_t		answer_len = 0;
	uint8	   *wire = dns_write(message, TSIG_ROOM, &len);
	uint8	   *volatile answer = NULL;
	DnsServer	server;
	DnsFailure	failure;
	TsigVerdict verdict = TSIG_NONE;
	const char *why = "";

	if (!dns_server_parse(o->server, DNS_PORT, true, &server))
		elog(ERROR, "option \"server\" was not checked");
	key.secret = resolve_key(o, &key.len);
	PG_TRY();
	{
		answer = exchange(o, &key, &server, wire, len, &answer_len, &verdict,
						  &why, &failure);
	}
	PG_FINALLY();
	{
		crypto_wipe(unconstify(uint8 *, key.secret), key.len);
	}
	PG_END_TRY();
	if (answer == NULL)
		update_failed(&server, record, failure.sqlstate, failure.text);
	judge(&server, record, message, dns_read(answer, answer_len), verdict, why);
}

static Jsonb *
update_present(const void *options, Oid owner, const DnsRecord *record)
{
	update(options, record, true);
	return NULL;
}

static void
update_remove(const void *options, Oid owner, const DnsRecord *record)
{
	update(options, record, false);
}

const DnsKind dns_rfc2136 = {
	.base = {
		.name = "rfc2136",
		.help = "A name server that takes dynamic updates, signed with TSIG",
		.options = update_options,
		.options_size = sizeof(UpdateOptions)
	},
	.check = update_check,
	.present = update_present,
	.remove = update_remove,
};
