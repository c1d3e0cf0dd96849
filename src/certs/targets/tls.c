/*
 * tls.c
 *		What certificate does a server serve? See tls.h.
 *
 * The connection is our HTTP client's, so that the network policy holds and
 * nothing blocks; OpenSSL's handshake runs over buffers in memory that we carry
 * to and fro. What the server sends as its chain is noted when OpenSSL asks
 * whether to trust it, so that it is known even if the server then wants a
 * certificate of ours.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include "certs/targets/tls.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/http.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#define CHAIN_MAX		20
#define PIECE			16384
/* As libpq's NEGOTIATE_SSL_CODE. */
#define SSL_REQUEST		80877103

/* What the handshake is about; freed whatever happens. */
typedef struct Look
{
	const char *host;
	int			port;
	int64		deadline;		/* by http_clock() */
	HttpConnection *connection;
	SSL_CTX    *context;
	SSL		   *ssl;
	BIO		   *in;				/* from the server; the SSL's */
	BIO		   *out;
	int			n;				/* certificates that were sent */
	X509	   *sent[CHAIN_MAX];
} Look;

static void
pg_attribute_noreturn()
look_failed(const Look *look, int code, const char *why)
{
	ereport(ERROR,
			(errcode(code),
			 errmsg("\"%s\", port %d: %s", look->host, look->port, why)));
}

/* OpenSSL asks whether to trust what the server has sent: note it. */
static int
note_chain(X509_STORE_CTX *store, void *arg)
{
	Look	   *look = arg;

	STACK_OF(X509) * chain = X509_STORE_CTX_get0_untrusted(store);

	for (int i = 0; i < sk_X509_num(chain) && look->n < CHAIN_MAX; i++)
	{
		X509	   *x509 = sk_X509_value(chain, i);

		if (X509_up_ref(x509))
			look->sent[look->n++] = x509;
	}
	return 1;
}

/* ---- bytes ---- */

static void
wait_for(Look *look, bool writable)
{
	if (!http_connection_wait(look->connection, writable, look->deadline))
		look_failed(look, ERRCODE_MLINT_TIMEOUT, "it took too long");
}

static void
send_all(Look *look, const char *data, size_t len)
{
	while (len > 0)
	{
		ssize_t		n = http_connection_send(look->connection, data, len);

		if (n < 0)
			look_failed(look, ERRCODE_MLINT_CONNECTION,
						"the connection has ended");
		data += n;
		len -= n;
		if (n == 0)
			wait_for(look, true);
	}
}

/*
 * Some bytes; 0 when the connection has ended. Also one that never lets us wait
 * comes to its deadline: OpenSSL skips HelloRequests without end.
 */
static size_t
receive_some(Look *look, char *data, size_t size)
{
	ssize_t		n;

	CHECK_FOR_INTERRUPTS();
	if (http_clock() >= look->deadline)
		look_failed(look, ERRCODE_MLINT_TIMEOUT, "it took too long");
	while ((n = http_connection_receive(look->connection, data, size)) == 0)
		wait_for(look, false);
	return n < 0 ? 0 : n;
}

/* ---- the handshake ---- */

/* Ask a PostgreSQL server for TLS. */
static void
request_tls(Look *look)
{
	uint32		request[2] = {pg_hton32(8), pg_hton32(SSL_REQUEST)};
	char		answer;

	send_all(look, (char *) request, sizeof(request));
	if (receive_some(look, &answer, 1) == 0)
		look_failed(look, ERRCODE_MLINT_CONNECTION,
					"the connection has ended");
	if (answer == 'N')
		look_failed(look, ERRCODE_MLINT_CONNECTION,
					"the server does no TLS");
	if (answer != 'S')
		look_failed(look, ERRCODE_MLINT_HTTP,
					"it does not speak PostgreSQL's protocol");
}

static bool
is_address(const char *host)
{
	struct in6_addr any;

	return inet_pton(AF_INET, host, &any) == 1 ||
		inet_pton(AF_INET6, host, &any) == 1;
}

static void
prepare(Look *look, const char *server_name)
{
	look->context = SSL_CTX_new(TLS_client_method());
	if (look->context == NULL)
		look_failed(look, ERRCODE_OUT_OF_MEMORY, "out of memory");
	/* Whatever is served there is to be seen. */
	SSL_CTX_set_security_level(look->context, 0);
	(void) SSL_CTX_set_min_proto_version(look->context, TLS1_VERSION);
	SSL_CTX_set_cert_verify_callback(look->context, note_chain, look);
	look->ssl = SSL_new(look->context);
	look->in = BIO_new(BIO_s_mem());
	look->out = BIO_new(BIO_s_mem());
	if (look->ssl == NULL || look->in == NULL || look->out == NULL)
	{
		BIO_free(look->in);
		BIO_free(look->out);
		look_failed(look, ERRCODE_OUT_OF_MEMORY, "out of memory");
	}
	SSL_set_bio(look->ssl, look->in, look->out);
	SSL_set_verify(look->ssl, SSL_VERIFY_PEER, NULL);
	if (!is_address(server_name) &&
		!SSL_set_tlsext_host_name(look->ssl, server_name))
		look_failed(look, ERRCODE_MLINT_CONFIGURATION,
					"its name cannot be asked for");
}

static void
flush(Look *look)
{
	char		piece[PIECE];
	int			n;

	while ((n = BIO_read(look->out, piece, sizeof(piece))) > 0)
		send_all(look, piece, n);
}

/* Why the handshake failed, if nothing was sent as a certificate. */
static void
handshake_failed(Look *look)
{
	unsigned long code = ERR_get_error();
	const char *reason = code ? ERR_reason_error_string(code) : NULL;

	ERR_clear_error();
	if (look->n == 0)
		look_failed(look, ERRCODE_MLINT_CONNECTION,
					psprintf("no TLS: %s", reason ? reason :
							 "the handshake failed"));
}

static void
shake_hands(Look *look)
{
	char		piece[PIECE];

	for (;;)
	{
		int			done;
		size_t		n;

		ERR_clear_error();
		done = SSL_connect(look->ssl);
		if (done != 1 && SSL_get_error(look->ssl, done) != SSL_ERROR_WANT_READ)
		{
			handshake_failed(look);
			return;
		}
		flush(look);
		if (done == 1)
			return;
		n = receive_some(look, piece, sizeof(piece));
		if (n == 0)
		{
			if (look->n == 0)
				look_failed(look, ERRCODE_MLINT_CONNECTION,
							"no TLS: the connection has ended");
			return;
		}
		if (BIO_write(look->in, piece, n) != n)
			look_failed(look, ERRCODE_OUT_OF_MEMORY, "out of memory");
	}
}

/* ---- what was sent ---- */

static TimestampTz
time_of(const ASN1_TIME *when)
{
	struct tm	tm;

	if (!ASN1_TIME_to_tm(when, &tm))
		return 0;
	return ((TimestampTz) (date2j(tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday) -
						   POSTGRES_EPOCH_JDATE) * SECS_PER_DAY +
			tm.tm_hour * SECS_PER_HOUR + tm.tm_min * SECS_PER_MINUTE +
			tm.tm_sec) * USECS_PER_SEC;
}

static char *
serial_of(const X509 *x509)
{
	const ASN1_INTEGER *serial = X509_get0_serialNumber(x509);
	int			len = ASN1_STRING_length(serial);
	char	   *hex = palloc(2 * len + 1);

	crypto_hex(ASN1_STRING_get0_data(serial), len, hex);
	return hex;
}

static Served *
describe(const Look *look)
{
	Served	   *served = palloc0(sizeof(Served));
	unsigned int len;

	served->serial = serial_of(look->sent[0]);
	served->not_after = time_of(X509_get0_notAfter(look->sent[0]));
	served->length = look->n;
	if (!X509_digest(look->sent[0], EVP_sha256(), served->fingerprint, &len))
		look_failed(look, ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
					"its certificate cannot be hashed");
	return served;
}

Served *
tls_look(const char *host, int port, TlsProtocol protocol,
		 const char *server_name, bool machine, int timeout_ms)
{
	Look	   *look = palloc0(sizeof(Look));
	ConnectionTarget target = {.host = host,.port = port,.machine = machine,
	.timeout_ms = timeout_ms};
	HttpResponse failure;
	Served	   *volatile served = NULL;

	look->host = host;
	look->port = port;
	look->deadline = http_clock() + timeout_ms * INT64CONST(1000);
	look->connection = http_connect(&target, &failure);
	if (look->connection == NULL)
		look_failed(look, http_sqlstate(&failure), failure.error);
	PG_TRY();
	{
		if (protocol == TLS_POSTGRES)
			request_tls(look);
		prepare(look, server_name ? server_name : host);
		shake_hands(look);
		if (look->n == 0)
			look_failed(look, ERRCODE_MLINT_CONNECTION,
						"no TLS: it sends no certificate");
		served = describe(look);
	}
	PG_FINALLY();
	{
		for (int i = 0; i < look->n; i++)
			X509_free(look->sent[i]);
		SSL_free(look->ssl);
		SSL_CTX_free(look->context);
		http_connection_close(look->connection);
	}
	PG_END_TRY();
	return served;
}
