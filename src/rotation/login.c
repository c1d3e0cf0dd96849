/*
 * login.c
 *		Sessions with PostgreSQL servers, by libpq, that wait on the latch.
 *
 * A session has one deadline for all that happens in it, and ends with the
 * function that opened it, whatever happens. Its server must ask for the
 * password: one that lets in whoever comes has verified nothing, and one that
 * goes by the operating system's user would let anybody in who may set a
 * rotation, as the user that the server runs as.
 *
 * A name is resolved by the HTTP client, whose wait can be cancelled and which
 * judges each address by the network policy; libpq gets the one that answered,
 * and asks for no name again. So nothing is connected to that may not be: whether
 * somebody listens there would be an answer, too. Sockets in the file system
 * are not the network's.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "commands/dbcommands.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/http.h"
#include "common/peertext.h"
#include "libpq-fe.h"
#include "libpq/pqcomm.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "rotation/rotation.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

const char *const server_sslmodes[] = {"disable", "allow", "prefer",
"require", "verify-ca", "verify-full", NULL};

#define HERE_TIMEOUT_MS		10000

typedef struct Session
{
	PGconn	   *conn;
	TimestampTz deadline;
	char	   *host;
} Session;

/* What libpq has to say, on one line and without its newline. */
static char *
complaint(PGconn *conn)
{
	char	   *text = pchomp(PQerrorMessage(conn));

	peer_text_clean(text);
	for (char *p = text; *p; p++)
	{
		if (*p == '\n')
			*p = ' ';
	}
	return text;
}

/* Wait until libpq can go on. */
static void
session_wait(Session *session, int events)
{
	for (;;)
	{
		long		left = (session->deadline - GetCurrentTimestamp()) / 1000;
		int			rc;

		if (left <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_TIMEOUT),
					 errmsg("the PostgreSQL server at \"%s\" took too long",
							session->host)));
		rc = WaitLatchOrSocket(MyLatch, events | WL_LATCH_SET | WL_TIMEOUT |
							   WL_EXIT_ON_PM_DEATH, PQsocket(session->conn),
							   left + 1, PG_WAIT_EXTENSION);
		if (rc & WL_LATCH_SET)
			ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (rc & events)
			return;
	}
}

/*
 * An address of the server that answers and that the network policy lets pass,
 * found by connecting there.
 */
static char *
allowed_address(const Session *session, int port, bool here)
{
	ConnectionTarget target = {
		.host = session->host,
		.port = port,
		.machine = here,
		.timeout_ms = (session->deadline - GetCurrentTimestamp()) / 1000
	};
	HttpResponse failure;
	HttpConnection *connection = http_connect(&target, &failure);
	char	   *address;

	if (connection == NULL)
		ereport(ERROR,
				(errcode(http_sqlstate(&failure)),
				 errmsg("could not log in: %s", failure.error)));
	address = http_connection_address(connection);
	http_connection_close(connection);
	return address;
}

/* Take a connection from its start to its end, good or bad. */
static void
session_connect(Session *session)
{
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	if (session->conn == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	while (PQstatus(session->conn) != CONNECTION_BAD &&
		   status != PGRES_POLLING_OK && status != PGRES_POLLING_FAILED)
	{
		session_wait(session, status == PGRES_POLLING_READING ?
					 WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE);
		status = PQconnectPoll(session->conn);
	}
	if (PQstatus(session->conn) != CONNECTION_OK)
	{
		const char *text = complaint(session->conn);

		ereport(ERROR,
				(errcode(strstr(text, "authentication failed") ?
						 ERRCODE_MLINT_AUTHENTICATION :
						 ERRCODE_MLINT_CONNECTION),
				 errmsg("could not log in: %s", text)));
	}
	if (!PQconnectionUsedPassword(session->conn))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_AUTHENTICATION),
				 errmsg("the PostgreSQL server at \"%s\" did not ask for the password",
						session->host),
				 errhint("Its pg_hba.conf must have the method scram-sha-256 for this connection.")));
}

/* Run one statement; its text is in no message. */
static void
session_execute(Session *session, const char *sql)
{
	PGconn	   *conn = session->conn;
	PGresult   *result;
	bool		ok = true;

	/* Else libpq shows the line that the server says is wrong. */
	(void) PQsetErrorVerbosity(conn, PQERRORS_TERSE);
	if (!PQsendQuery(conn, sql))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONNECTION),
				 errmsg("%s", complaint(conn))));
	for (;;)
	{
		while (PQisBusy(conn))
		{
			session_wait(session, WL_SOCKET_READABLE);
			if (!PQconsumeInput(conn))
				break;
		}
		result = PQgetResult(conn);
		if (result == NULL)
			break;
		ok = ok && PQresultStatus(result) == PGRES_COMMAND_OK;
		PQclear(result);
	}
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_API),
				 errmsg("the PostgreSQL server at \"%s\" refused: %s",
						session->host, complaint(conn))));
}

/* The directory of a socket of this server's, or its own address. */
static char *
own_host(void)
{
	char	   *list = pstrdup(Unix_socket_directories ?
							   Unix_socket_directories : "");
	char	   *end = strchr(list, ',');

	if (end)
		*end = '\0';
	while (*list == ' ')
		list++;
	return *list ? list : pstrdup("localhost");
}

/* Begin to connect. The password is libpq's from here on, which wipes it. */
static void
session_start(Session *session, const ServerAddress *address,
			  const char *user, const char *password)
{
	bool		here = address == NULL || address->host == NULL;
	char	   *host = here ? own_host() : address->host;
	int			port = here ? PostPortNumber : address->port;
	const char *const keywords[] = {"host", "hostaddr", "port", "dbname", "user",
		"password", "sslmode", "gssencmode", "application_name",
	"client_encoding", "sslrootcert", NULL};
	const char *values[] = {
		host, NULL, psprintf("%d", port),
		here ? get_database_name(MyDatabaseId) : address->dbname,
		user, password,
		server_sslmodes[here ? 2 : address->sslmode],
		"disable", "mlint rotation", "UTF8",
		here ? NULL : address->sslrootcert, NULL
	};

	session->host = host;
	session->deadline = GetCurrentTimestamp() +
		(here ? HERE_TIMEOUT_MS : address->timeout_ms) * INT64CONST(1000);
	if (!is_unixsock_path(host))
		values[1] = allowed_address(session, port, here);
	session->conn = PQconnectStartParams(keywords, values, false);
}

/*
 * Give the role a verifier that libpq has computed: the password itself does
 * not leave this process.
 */
static void
set_password(Session *session, const char *role, const char *password)
{
	char	   *verifier = PQencryptPasswordConn(session->conn, password, role,
												 "scram-sha-256");
	char	   *copy = verifier ? pstrdup(verifier) : NULL;
	char	   *name = PQescapeIdentifier(session->conn, role, strlen(role));
	char	   *name_copy = name ? pstrdup(name) : NULL;

	PQfreemem(verifier);
	PQfreemem(name);
	if (copy == NULL || name_copy == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONNECTION),
				 errmsg("could not prepare the new password: %s",
						complaint(session->conn))));
	session_execute(session, psprintf("ALTER ROLE %s PASSWORD '%s'",
									  name_copy, copy));
}

/* A session from its beginning to its end; role NULL: only log in. */
static void
run_session(const ServerAddress *address, const char *user,
			const char *password, const char *role, const char *new_password)
{
	Session    *session = palloc0(sizeof(Session));

	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("there are too many open files to connect to a server"),
				 errhint("Raise max_files_per_process.")));
	PG_TRY();
	{
		session_start(session, address, user, password);
		session_connect(session);
		if (role)
			set_password(session, role, new_password);
	}
	PG_FINALLY();
	{
		PQfinish(session->conn);
		ReleaseExternalFD();
	}
	PG_END_TRY();
}

void
login_check(const ServerAddress *address, const char *user,
			const char *password)
{
	run_session(address, user, password, NULL, NULL);
}

void
login_set_password(const ServerAddress *address, const char *user,
				   const char *password, const char *role,
				   const char *new_password)
{
	run_session(address, user, password, role, new_password);
}
