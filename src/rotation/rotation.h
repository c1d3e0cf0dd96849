/*
 * rotation.h
 *		New values for secrets: made, applied, verified, made current.
 *
 * rotation.c takes a rotation from step to step and knows what to do when one
 * fails; generate.c makes values; apply.c brings them to where they are used
 * and finds out whether they work there; login.c speaks libpq for it.
 */
#ifndef MLINT_ROTATION_H
#define MLINT_ROTATION_H

#include "common/option.h"

/* Called once by _PG_init. */
extern void rotation_init(void);

/*
 * What kind a JSON object of options is, {"kind": ...}; {"function": ...}
 * needs none. An index into names. Raises ERRCODE_MLINT_CONFIGURATION.
 */
extern int	rotation_kind(Jsonb *json, const char *const *names,
						  const char *what);

/* ---- generate.c ---- */

typedef struct Generator Generator;

typedef struct Generated
{
	char	   *data;
	size_t		len;
	char	   *public_key;		/* of a key pair: PEM; else NULL */
} Generated;

/* Parse and check; functions must be the owner's to call. */
extern Generator *generator_parse(Jsonb *json, Oid owner);

/* Does a function of the owner's make the values, who so knows them? */
extern bool generator_by_function(Jsonb *json);

/* A new value, palloc'd; the caller wipes it. */
extern void generator_run(const Generator *generator, const char *name,
						  Oid owner, Generated *out);

/* ---- apply.c ---- */

/* One value on its way to where it is used. */
typedef struct Application
{
	const char *name;			/* of the secret */
	int			version;
	Oid			owner;
	const char *data;
	size_t		len;
	int64		event_id;		/* the delivery that brings it; 0: none yet */
} Application;

typedef struct Apply Apply;
typedef struct Verify Verify;

/*
 * Parse, and check what the owner may do. "apply" may be NULL: nothing has to
 * be told, or nothing to be verified but that.
 */
extern Apply *apply_parse(Jsonb *json);
extern void apply_check(const Apply *apply, const char *name, Oid owner);
extern Verify *verify_parse(Jsonb *json, const Apply *apply);
extern void verify_check(const Verify *verify, const char *name,
						 Oid owner);

/* Does applying take effect with the transaction, and not without it? */
extern bool apply_is_atomic(const Apply *apply);

/*
 * Apply; may be done twice. False: it is on its way, look again when the
 * delivery a->event_id has ended. Raises when it failed.
 */
extern bool apply_run(const Apply *apply, Application *a);

/* Raises unless the value works. */
extern void verify_run(const Verify *verify, const Application *a);

/* ---- login.c ---- */

typedef struct ServerAddress
{
	char	   *host;			/* NULL: this server */
	int			port;
	char	   *dbname;
	int			sslmode;
	char	   *sslrootcert;
	int			timeout_ms;
} ServerAddress;

extern const char *const server_sslmodes[];

#define SERVER_ADDRESS_OPTIONS(type, member) \
	{"host", OPTION_TEXT, offsetof(type, member.host), \
		NULL, 0, 0, NULL, NULL, true, \
		"name or address of a PostgreSQL server, or the directory of its socket"}, \
	{"port", OPTION_INT, offsetof(type, member.port), \
		"5432", 1, 65535, NULL, NULL, false, "its port"}, \
	{"dbname", OPTION_TEXT, offsetof(type, member.dbname), \
		"postgres", 0, 0, NULL, NULL, false, "database to connect to"}, \
	{"sslmode", OPTION_ENUM, offsetof(type, member.sslmode), \
		"prefer", 0, 0, server_sslmodes, NULL, false, "as in libpq"}, \
	{"sslrootcert", OPTION_TEXT, offsetof(type, member.sslrootcert), \
		NULL, 0, 0, NULL, NULL, false, \
		"file with the certificates to trust"}, \
	{"timeout_ms", OPTION_INT, offsetof(type, member.timeout_ms), \
		"10000", 1, 600000, NULL, NULL, false, \
		"milliseconds that connecting and all that follows may take"}

/*
 * Log in, with this password and no other means. Raises
 * ERRCODE_MLINT_CONNECTION, ERRCODE_MLINT_TIMEOUT, and
 * ERRCODE_MLINT_AUTHENTICATION when the server did not ask for the password.
 * address NULL, or without a host, is this server and database.
 */
extern void login_check(const ServerAddress *address, const char *user,
						const char *password);

/* Log in so, and give a role a new password. */
extern void login_set_password(const ServerAddress *address, const char *user,
							   const char *password, const char *role,
							   const char *new_password);

#endif
