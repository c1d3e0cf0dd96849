/*
 * postgres.c
 *		This server's own certificate.
 *
 * The server reads ssl_cert_file and ssl_key_file when it starts, and keeps what
 * it has when they do not fit at a reload; but it does not start with two that
 * do not fit. Two files cannot change at once, so a crash between them would
 * leave a server that does not start any more. Hence both settings must name
 * one file, with the chain and the key in it, of which OpenSSL takes what it
 * wants. It is written beside, loaded by OpenSSL as the server will do, and
 * renamed; then the postmaster is told to reload. The certificate is there when
 * a new connection is served it.
 *
 * Who makes such a target replaces a file of the server's: superusers only.
 */
#include "postgres.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "certs/targets/kind.h"
#include "certs/targets/tls.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/place.h"
#include "common/trial.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#define KEY_FILE_MODE	0600
/* How long the postmaster may take to reload, and how often we look. */
#define RELOAD_MS		10000
#define LOOK_EVERY_MS	100

typedef struct PostgresOptions
{
	TargetOptions common;
	bool		verify;
	char	   *host;
} PostgresOptions;

#define AT(member) offsetof(PostgresOptions, member)

static const Option postgres_options[] = {
	{"verify", OPTION_BOOL, AT(verify), "true", 0, 0, NULL, NULL, false,
	"whether to connect, after the reload, and see that it is served"},
	{"host", OPTION_TEXT, AT(host), NULL, 0, 0, NULL, NULL, false,
	"address to connect to for that; by default one of listen_addresses"},
	{NULL}
};

static const char *
setting(const char *name)
{
	const char *value = GetConfigOption(name, false, false);

	return value ? value : "";
}

static bool
tls_is_on(void)
{
	return strcmp(setting("ssl"), "on") == 0;
}

/* Say how to get to one file from where the server is. */
static void
pg_attribute_noreturn()
refuse_settings(const char *cert, const char *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("ssl_cert_file (\"%s\") and ssl_key_file (\"%s\") must name the same file",
					cert, key),
			 errdetail("Two files cannot be replaced at once, and a crash in between would keep the server from starting."),
			 tls_is_on() ?
			 errhint("In the data directory, as the server's user: (umask 077; cat %s %s >server.pem); then ALTER SYSTEM SET ssl_cert_file = 'server.pem'; ALTER SYSTEM SET ssl_key_file = 'server.pem'; SELECT pg_reload_conf().",
					 cert, key) :
			 errhint("ALTER SYSTEM SET ssl_cert_file = 'server.pem'; ALTER SYSTEM SET ssl_key_file = 'server.pem'; SELECT pg_reload_conf(); and, when the certificate is there, ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf().")));
}

/* The file that is replaced: the directory it is in, and its name there. */
static void
find_file(char **directory, char **name)
{
	const char *cert = setting("ssl_cert_file");
	const char *key = setting("ssl_key_file");
	char	   *path;
	char	   *slash;

	if (cert[0] == '\0' || strcmp(cert, key) != 0)
		refuse_settings(cert, key);
	path = is_absolute_path(cert) ? pstrdup(cert) :
		psprintf("%s/%s", DataDir, cert);
	canonicalize_path(path);
	slash = strrchr(path, '/');
	if ((!is_absolute_path(cert) && strcmp(slash + 1, cert) != 0) ||
		slash[1] == '\0' || strlen(slash + 1) > PLACE_NAME_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("ssl_cert_file (\"%s\") must be the name of a file in the data directory, or an absolute path",
						cert)));
	*name = pstrdup(slash + 1);
	*slash = '\0';
	*directory = path[0] ? path : pstrdup("/");
}

/* Close, and raise what went wrong. */
static void
finish(Place *place, const char *directory, const char *name)
{
	place_close(place);
	if (place->fault == NULL)
		return;
	errno = place->error;
	if (place->error)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("\"%s/%s\": %s: %m", directory, name, place->fault)));
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("the server's certificate cannot be kept in \"%s/%s\": %s",
					directory, name, place->fault)));
}

/* See that the name is a file's, or nobody's. */
static void
look_at_file(Place *place)
{
	struct stat st;

	if (fstatat(place->fd, place->name, &st, AT_SYMLINK_NOFOLLOW) != 0)
	{
		if (errno != ENOENT)
			(void) place_fail(place, "it could not be looked at", errno);
	}
	else if (!S_ISREG(st.st_mode))
		(void) place_fail(place, "it is a link, or no file at all", 0);
	else if (st.st_uid != geteuid())
		(void) place_fail(place, "it does not belong to the server's operating-system user",
						  0);
}

static void
postgres_check(const void *options, Oid owner, const char *what)
{
	char	   *directory;
	char	   *name;
	Place		place;

	if (!superuser_arg(owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only superusers may have the server's own certificate replaced")));
	find_file(&directory, &name);
	if (place_open_directory(&place, directory, name))
		look_at_file(&place);
	finish(&place, directory, name);
}

static char *
postgres_place(const void *options)
{
	return pstrdup("this server");
}

/* ---- the file ---- */

/* Whoever started the server in a terminal is not asked there. */
static int
no_passphrase(char *buffer, int size, int writing, void *arg)
{
	return 0;
}

/* Would the server take this file? NULL, or why not (not ours to free). */
static const char *
server_would_refuse(const char *path)
{
	SSL_CTX    *context = SSL_CTX_new(TLS_method());
	const char *fault = NULL;
	unsigned long code;

	ERR_clear_error();
	if (context)
		SSL_CTX_set_default_passwd_cb(context, no_passphrase);
	if (context == NULL ||
		SSL_CTX_use_certificate_chain_file(context, path) != 1 ||
		SSL_CTX_use_PrivateKey_file(context, path, SSL_FILETYPE_PEM) != 1 ||
		SSL_CTX_check_private_key(context) != 1)
	{
		code = ERR_get_error();
		fault = code ? ERR_reason_error_string(code) : NULL;
		if (fault == NULL)
			fault = "OpenSSL does not say why";
	}
	SSL_CTX_free(context);
	ERR_clear_error();
	return fault;
}

/* Write the file beside, with all on disk. */
static bool
write_beside(Place *place, const char *data, size_t len)
{
	int			fd = place_create(place);
	bool		ok;

	if (fd < 0)
		return false;
	ok = place_write(place, fd, data, len);
	if (ok && fchmod(fd, KEY_FILE_MODE) != 0)
		ok = place_fail(place, "could not set the mode", errno);
	if (ok && fsync(fd) != 0)
		ok = place_fail(place, "could not flush", errno);
	(void) close(fd);
	return ok;
}

static void
replace_file(const char *directory, const char *name,
			 const PushedCertificate *certificate, const char *key)
{
	char	   *both = psprintf("%s%s%s", certificate->chain, key,
								key[strlen(key) - 1] == '\n' ? "" : "\n");
	const char *refused = NULL;
	Place		place;

	if (place_open_directory(&place, directory, name))
		look_at_file(&place);
	if (place.fault == NULL && write_beside(&place, both, strlen(both)))
	{
		refused = server_would_refuse(psprintf("%s/%s", directory,
											   place.temporary));
		INJECTION("certificate-server-written");
		if (refused == NULL)
			(void) place_rename(&place);
	}
	if (place.fd >= 0 && (refused || place.fault))
		(void) unlinkat(place.fd, place.temporary, 0);
	crypto_wipe(both, strlen(both));
	finish(&place, directory, name);
	if (refused)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the server would not take the certificate: %s",
						refused),
				 errdetail("Its file is as it was.")));
}

/* ---- what is served ---- */

/* An address at which this server listens, or NULL. */
static char *
own_address(void)
{
	char	   *all = pstrdup(setting("listen_addresses"));
	List	   *addresses;
	char	   *first;

	if (!SplitGUCList(all, ',', &addresses) || addresses == NIL)
		return NULL;
	first = linitial(addresses);
	if (strcmp(first, "*") == 0 || strcmp(first, "0.0.0.0") == 0 ||
		strcmp(first, "localhost") == 0)
		return pstrdup("127.0.0.1");
	if (strcmp(first, "::") == 0)
		return pstrdup("::1");
	return first;
}

/*
 * Is a new connection to this host (NULL: where the server listens) served this
 * certificate? What is in the way is raised.
 */
static bool
is_served(const char *host, const PushedCertificate *certificate)
{
	/* Our own address is not a caller's to say. */
	Served	   *served = tls_look(host ? host : own_address(), PostPortNumber,
								  TLS_POSTGRES, NULL, host == NULL,
								  RELOAD_MS);

	return memcmp(served->fingerprint, certificate->fingerprint,
				  CRYPTO_SHA256_BYTES) == 0;
}

static void
pause_for(long ms)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = mlint_wait_event("MlintCertificateReload");
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 ms, wait_event);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

static void
require_served(const char *host, const PushedCertificate *certificate)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  RELOAD_MS);

	while (!is_served(host, certificate))
	{
		if (GetCurrentTimestamp() >= end)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_API),
					 errmsg("the server has reloaded, and serves another certificate than the one in its file"),
					 errhint("The server's log says why.")));
		pause_for(LOOK_EVERY_MS);
	}
}

static char *
postgres_push(const void *options, Oid owner, const char *region,
			  const PushedCertificate *certificate, const char *key,
			  const char *reference)
{
	const PostgresOptions *o = options;
	char	   *directory;
	char	   *name;

	find_file(&directory, &name);
	replace_file(directory, name, certificate, key);
	INJECTION("certificate-server-replaced");
	if (kill(PostmasterPid, SIGHUP) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_SYSTEM_ERROR),
				 errmsg("could not tell the postmaster to reload: %m")));
	if (o->verify && tls_is_on() && (o->host || own_address()))
		require_served(o->host, certificate);
	return psprintf("%s/%s", directory, name);
}

const TargetKind target_postgres = {
	.base = {
		.name = "postgres",
		.help = "this server's own certificate",
		.options = postgres_options,
		.options_size = sizeof(PostgresOptions)
	},
	.wants_key = true,
	.check = postgres_check,
	.place = postgres_place,
	.push = postgres_push,
};
