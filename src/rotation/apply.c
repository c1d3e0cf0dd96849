/*
 * apply.c
 *		Bring a value to where it is used, and find out whether it works there.
 *
 * Four ways to apply: call a function, give a PostgreSQL role the password
 * (here, or over a connection), put it to a backend, tell a destination.
 * Each may happen twice, after a crash, and must come to the same.
 *
 * A role of this server gets its password within the transaction, past the
 * parser: neither the password nor a statement with its verifier exists
 * anywhere, and the secret's new version becomes current in the same
 * transaction. So whoever reads the secret reads what works.
 *
 * A destination is told by an event which version to fetch; the value is in no
 * event. It is applied when the delivery has ended well.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/user.h"
#include "common/trial.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/plaintext.h"
#include "common/userfunction.h"
#include "delivery/delivery.h"
#include "executor/spi.h"
#include "libpq/crypt.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "rotation/rotation.h"
#include "secrets/backend.h"
#include "secrets/secrets.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

typedef enum ApplyKind
{
	APPLY_FUNCTION,
	APPLY_ROLE,
	APPLY_BACKEND,
	APPLY_DESTINATION
} ApplyKind;

static const char *const apply_kinds[] = {"function", "role", "backend",
"destination", NULL};

struct Apply
{
	int			kind;
	char	   *function;
	int			timeout_ms;
	char	   *role;
	ServerAddress server;		/* host NULL: a role of this server */
	char	   *user;
	Credential	password;
	char	   *backend;
	char	   *name;
	char	   *destination;
};

typedef enum VerifyKind
{
	VERIFY_FUNCTION,
	VERIFY_LOGIN,
	VERIFY_READ
} VerifyKind;

static const char *const verify_kinds[] = {"function", "login", "read", NULL};

struct Verify
{
	int			kind;
	char	   *function;
	int			timeout_ms;
	char	   *role;
	ServerAddress server;
	char	   *backend;
	char	   *name;
};

#define IN_APPLY(member) offsetof(Apply, member)
#define IN_VERIFY(member) offsetof(Verify, member)

#define APPLY_KIND {"kind", OPTION_ENUM, IN_APPLY(kind), "function", 0, 0, \
	apply_kinds, NULL, false, "how the value is applied"}
#define VERIFY_KIND {"kind", OPTION_ENUM, IN_VERIFY(kind), "function", 0, 0, \
	verify_kinds, NULL, false, "how the value is verified"}

static const Option connection_options[] = {
	SERVER_ADDRESS_OPTIONS(Apply, server),
	{"user", OPTION_TEXT, IN_APPLY(user), NULL, 0, 0, NULL, NULL,
	true, "role that may give the other one a password"},
	{"password", OPTION_CREDENTIAL, IN_APPLY(password), NULL, 0, 0, NULL, NULL,
	true, "its password"},
	{NULL}
};
static const Option apply_function_options[] = {
	APPLY_KIND,
	{"function", OPTION_FUNCTION, IN_APPLY(function), NULL, 0, 0, NULL, NULL,
	true, "function (name text, version integer, value text or bytea)"},
	{"timeout_ms", OPTION_INT, IN_APPLY(timeout_ms), "30000", 1, 3600000, NULL,
		NULL,
	false, "milliseconds that a call may take"},
	{NULL}
};
static const Option apply_role_options[] = {
	APPLY_KIND,
	{"role", OPTION_TEXT, IN_APPLY(role), NULL, 0, 0, NULL, NULL,
	true, "PostgreSQL role whose password the secret is"},
	{"connection", OPTION_GROUP, 0, NULL, 0, 0, NULL, connection_options,
	false, "the server that the role is of, if it is another"},
	{NULL}
};
static const Option apply_backend_options[] = {
	APPLY_KIND,
	{"backend", OPTION_TEXT, IN_APPLY(backend), NULL, 0, 0, NULL, NULL,
	true, "backend that the value is put to"},
	{"name", OPTION_TEXT, IN_APPLY(name), NULL, 0, 0, NULL, NULL,
	true, "name that it gets there"},
	{NULL}
};
static const Option apply_destination_options[] = {
	APPLY_KIND,
	{"destination", OPTION_TEXT, IN_APPLY(destination), NULL, 0, 0, NULL, NULL,
	true, "destination that is told which version to fetch"},
	{NULL}
};

/* In ApplyKind's order. */
static const Option *const apply_tables[] = {apply_function_options,
	apply_role_options, apply_backend_options, apply_destination_options
};

static const Option address_options[] = {
	SERVER_ADDRESS_OPTIONS(Verify, server),
	{NULL}
};
static const Option verify_function_options[] = {
	VERIFY_KIND,
	{"function", OPTION_FUNCTION, IN_VERIFY(function), NULL, 0, 0, NULL, NULL,
	true, "function (name text, version integer, value text or bytea) returns boolean"},
	{"timeout_ms", OPTION_INT, IN_VERIFY(timeout_ms), "30000", 1, 3600000, NULL,
		NULL,
	false, "milliseconds that a call may take"},
	{NULL}
};
static const Option verify_login_options[] = {
	VERIFY_KIND,
	{"role", OPTION_TEXT, IN_VERIFY(role), NULL, 0, 0, NULL, NULL,
	false, "PostgreSQL role to log in as; by default the one that apply names"},
	{"connection", OPTION_GROUP, 0, NULL, 0, 0, NULL, address_options,
	false, "where; by default where the role is that apply names"},
	{NULL}
};
static const Option verify_read_options[] = {VERIFY_KIND, {NULL}};

/* In VerifyKind's order. */
static const Option *const verify_tables[] = {verify_function_options,
	verify_login_options, verify_read_options
};

/* The two forms of a function that is given a value. */
static const Oid text_arguments[] = {TEXTOID, INT4OID, TEXTOID};
static const Oid bytea_arguments[] = {TEXTOID, INT4OID, BYTEAOID};

static const UserFunctionKind value_functions[] = {
	{
		.nargs = 3,
		.types = bytea_arguments,
		.shown = "text, integer, bytea",
		.takes = "the name of the secret, the version and the value",
		.owner_did = "set the rotation"
	},
	{
		.nargs = 3,
		.types = text_arguments,
		.shown = "text, integer, text",
		.takes = "the name of the secret, the version and the value",
		.owner_did = "set the rotation"
	}
};

/* Find a function that is given a value; of which form it is. */
static Oid
value_function(const char *name, Oid result, Oid owner,
			   const UserFunctionKind **kind)
{
	Oid			function;

	*kind = &value_functions[0];
	function = user_function(name, *kind, result, owner, "function", true);
	if (OidIsValid(function))
		return function;
	*kind = &value_functions[1];
	return user_function(name, *kind, result, owner, "function", false);
}

/*
 * Call such a function. The value lies in memory of ours once more while it
 * runs; what the function makes of it is the function's.
 */
static Datum
call_value_function(const char *name, Oid result_type, int timeout_ms,
					const Application *a, bool *isnull)
{
	const UserFunctionKind *volatile kind;
	volatile Oid function;
	const UserFunctionKind *found;
	struct varlena *value;
	Datum		args[3];
	volatile Datum result = (Datum) 0;

	function = value_function(name, result_type, a->owner, &found);
	kind = found;
	if (kind->types[2] == TEXTOID)
		value = plaintext_give(unconstify(char *, a->data), a->len);
	else
		value = cstring_to_text_with_len(a->data, a->len);
	args[0] = CStringGetTextDatum(a->name);
	args[1] = Int32GetDatum(a->version);
	args[2] = PointerGetDatum(value);
	PG_TRY();
	{
		result = user_function_call(function, kind, a->owner, args,
									timeout_ms, isnull);
	}
	PG_FINALLY();
	{
		crypto_wipe(VARDATA(value), VARSIZE(value) - VARHDRSZ);
	}
	PG_END_TRY();
	return result;
}

/* A value as a password: text, which a zero byte would end. */
static const char *
as_password(const Application *a)
{
	if (strlen(a->data) != a->len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("version %d of secret \"%s\" cannot be a password: it has a zero byte",
						a->version, a->name)));
	return a->data;
}

/*
 * ALTER ROLE ... PASSWORD, with the privileges of a role, and a verifier in
 * place of the password.
 */
static void
alter_role_password(const char *role, Oid as, char *verifier)
{
	AlterRoleStmt *statement = makeNode(AlterRoleStmt);
	RoleSpec   *spec = makeNode(RoleSpec);
	ParseState *pstate = make_parsestate(NULL);
	Oid			user;
	int			context;

	spec->roletype = ROLESPEC_CSTRING;
	spec->rolename = pstrdup(role);
	spec->location = -1;
	statement->role = spec;
	statement->options = list_make1(makeDefElem("password",
												(Node *) makeString(verifier),
												-1));
	statement->action = +1;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(as, context | SECURITY_LOCAL_USERID_CHANGE);
	(void) AlterRole(pstate, statement);
	SetUserIdAndSecContext(user, context);
	CommandCounterIncrement();
	free_parsestate(pstate);
}

/* What is stored of a password. */
static char *
make_verifier(const char *role, const char *password)
{
	/* What looks like one already would be taken for one. */
	if (get_password_type(password) != PASSWORD_TYPE_PLAINTEXT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the new password of role \"%s\" looks like a stored verifier",
						role)));
	return encrypt_password(PASSWORD_TYPE_SCRAM_SHA_256, role, password);
}

/* Give a role of this server its password, and see whether it takes it. */
static void
apply_role_here(const Apply *apply, const Application *a)
{
	const char *password = as_password(a);
	const char *why = NULL;
	char	   *verifier;

	alter_role_password(apply->role, a->owner,
						make_verifier(apply->role, password));
	verifier = get_role_password(apply->role, &why);
	if (verifier == NULL ||
		plain_crypt_verify(apply->role, verifier, password, &why) != STATUS_OK)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_AUTHENTICATION),
				 errmsg("the server does not take the new password of role \"%s\"",
						apply->role),
				 why ? errdetail("%s", why) : 0));
}

static void
apply_role_there(const Apply *apply, const Application *a)
{
	size_t		len;
	char	   *password = credential_resolve(&apply->password, &len);

	PG_TRY();
	{
		login_set_password(&apply->server, apply->user, password,
						   apply->role, as_password(a));
	}
	PG_FINALLY();
	{
		crypto_wipe(password, len);
	}
	PG_END_TRY();
}

/* Tell the destination, or look what has become of that. */
static bool
apply_by_delivery(const Apply *apply, Application *a)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID, TEXTOID, INT4OID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(apply->destination),
		CStringGetTextDatum(a->name), Int32GetDatum(a->version),
	Int64GetDatum(a->event_id)};
	bool		isnull;
	const char *state;
	bool		delivered;

	owner_begin(&scope);
	if (a->event_id == 0)
	{
		if (SPI_execute_with_args("SELECT mlint.send($1, 'secret.apply',"
								  " pg_catalog.jsonb_build_object('name', $2,"
								  " 'version', $3))", 3, types, values, NULL,
								  false, 1) != SPI_OK_SELECT)
			elog(ERROR, "could not send an event");
		a->event_id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1,
												  &isnull));
		owner_end(&scope);
		return false;
	}
	/* Its number may be another event's, where a dump has brought us. */
	if (SPI_execute_with_args("SELECT d.state, d.error FROM mlint.deliveries d"
							  " JOIN mlint.events e ON e.id = d.event_id"
							  " WHERE d.event_id = $4 AND d.destination = $1"
							  " AND e.type = 'secret.apply' AND e.data ="
							  " pg_catalog.jsonb_build_object('name', $2,"
							  " 'version', $3)", 4, types, values, NULL,
							  false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.deliveries");
	state = SPI_processed == 0 ? "none" :
		SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (strcmp(state, "dead") == 0 || strcmp(state, "none") == 0)
	{
		const char *error = SPI_processed == 0 ? NULL :
		SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);

		ereport(ERROR,
				(errcode(ERRCODE_MLINT_API),
				 errmsg("the delivery to destination \"%s\" failed: %s",
						apply->destination,
						error ? error : "the event is not there any more")));
	}
	delivered = strcmp(state, "delivered") == 0;
	owner_end(&scope);
	return delivered;
}

int
rotation_kind(Jsonb *json, const char *const *names, const char *what)
{
	JsonbValue	storage;
	JsonbValue *kind = NULL;

	if (JB_ROOT_IS_OBJECT(json))
		kind = getKeyJsonValueFromContainer(&json->root, "kind", 4, &storage);
	if (kind == NULL || kind->type != jbvString)
		return 0;
	for (int i = 0; names[i]; i++)
	{
		if (strlen(names[i]) == kind->val.string.len &&
			memcmp(names[i], kind->val.string.val,
				   kind->val.string.len) == 0)
			return i;
	}
	return 0;
}

Apply *
apply_parse(Jsonb *json)
{
	Apply	   *apply = palloc0(sizeof(Apply));
	int			kind = rotation_kind(json, apply_kinds, "\"apply\"");

	option_parse(&apply_tables[kind], 1, json, "\"apply\"", apply);
	return apply;
}

Verify *
verify_parse(Jsonb *json, const Apply *apply)
{
	Verify	   *verify = palloc0(sizeof(Verify));
	int			kind = rotation_kind(json, verify_kinds, "\"verify\"");

	option_parse(&verify_tables[kind], 1, json, "\"verify\"", verify);
	if (verify->kind == VERIFY_LOGIN && apply && apply->kind == APPLY_ROLE)
	{
		if (verify->role == NULL)
			verify->role = apply->role;
		if (verify->server.host == NULL)
			verify->server = apply->server;
	}
	if (verify->kind == VERIFY_LOGIN && verify->role == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("\"verify\" does not say which role logs in"),
				 errhint("For example {\"kind\": \"login\", \"role\": \"app\"}.")));
	if (verify->kind == VERIFY_READ)
	{
		if (apply == NULL || apply->kind != APPLY_BACKEND)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("\"verify\" of kind \"read\" reads what \"apply\" has put to a backend"),
					 errhint("Use it with {\"kind\": \"backend\", ...} in \"apply\".")));
		verify->backend = apply->backend;
		verify->name = apply->name;
	}
	return verify;
}

/* Enter into the audit log what the rotation of this secret may not use. */
static void
audit_denied(const char *name, const char *what)
{
	audit(AUDIT_DENIED, "rotation.set", "secret", name,
		  psprintf("{\"for\": \"%s\"}", what));
}

/* Connections go where their owner says, so only administrators may say. */
static void
check_server(const ServerAddress *server, const char *name, Oid owner,
			 const char *what)
{
	if (server->host == NULL)
		return;
	if (!has_privs_of_role(owner, get_role_oid("mlint_admin", false)))
	{
		audit_denied(name, "connection");
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to use a connection in \"%s\"",
						what),
				 errdetail("Only members of mlint_admin may say where the server connects to.")));
	}
	if (server->sslrootcert && strcmp(server->sslrootcert, "system") != 0 &&
		!has_privs_of_role(owner, ROLE_PG_READ_SERVER_FILES))
	{
		audit_denied(name, "sslrootcert");
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to use a file of the server for \"sslrootcert\""),
				 errdetail("Only members of pg_read_server_files may name one.")));
	}
}

/*
 * May the owner give this role a password? What decides that differs from
 * version to version, so it is tried, and taken back.
 */
static void
check_role(const char *role, const char *name, Oid owner)
{
	HeapTuple	tuple = SearchSysCache1(AUTHNAME, CStringGetDatum(role));
	bool		can_login;
	Trial		trial;
	volatile bool may = true;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" does not exist", role)));
	can_login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	if (!can_login)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("role \"%s\" cannot log in, so it needs no password",
						role)));

	trial_begin(&trial);
	PG_TRY();
	{
		alter_role_password(role, owner,
							make_verifier(role, "not to be committed"));
		trial_undo(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		if (error->sqlerrcode != ERRCODE_INSUFFICIENT_PRIVILEGE)
			ReThrowError(error);
		may = false;
	}
	PG_END_TRY();
	if (!may)
	{
		audit_denied(name, "role");
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" may not give role \"%s\" a password",
						GetUserNameFromId(owner, true), role),
				 errhint("ALTER ROLE ... PASSWORD needs CREATEROLE, since PostgreSQL 16 with ADMIN OPTION on the role.")));
	}
}

void
apply_check(const Apply *apply, const char *name, Oid owner)
{
	const UserFunctionKind *kind;
	char	   *full;

	switch ((ApplyKind) apply->kind)
	{
		case APPLY_FUNCTION:
			(void) value_function(apply->function, InvalidOid, owner, &kind);
			break;
		case APPLY_ROLE:
			if (apply->server.host == NULL)
				check_role(apply->role, name, owner);
			else
			{
				check_server(&apply->server, name, owner, "apply");
				credential_check(&apply->password, owner,
								 "option \"connection.password\" of \"apply\"");
			}
			break;
		case APPLY_BACKEND:
			if (!backend_exists(apply->backend))
				ereport(ERROR,
						(errcode(ERRCODE_UNDEFINED_OBJECT),
						 errmsg("secret backend \"%s\" does not exist",
								apply->backend)));
			full = psprintf("%s:%s", apply->backend, apply->name);
			if (!secret_permitted(owner, full, SECRET_WRITE))
			{
				audit(AUDIT_DENIED, "secret.put", "secret", full, NULL);
				secret_unknown(full);
			}
			break;
		case APPLY_DESTINATION:
			(void) destination_id(apply->destination, NULL);
			break;
	}
}

void
verify_check(const Verify *verify, const char *name, Oid owner)
{
	const UserFunctionKind *kind;

	if (verify->kind == VERIFY_FUNCTION)
		(void) value_function(verify->function, BOOLOID, owner, &kind);
	else if (verify->kind == VERIFY_LOGIN)
		check_server(&verify->server, name, owner, "verify");
}

bool
apply_is_atomic(const Apply *apply)
{
	return apply->kind == APPLY_ROLE && apply->server.host == NULL;
}

bool
apply_run(const Apply *apply, Application *a)
{
	SecretAbout about = {0};
	bool		isnull;

	switch ((ApplyKind) apply->kind)
	{
		case APPLY_FUNCTION:
			(void) call_value_function(apply->function, InvalidOid,
									   apply->timeout_ms, a, &isnull);
			break;
		case APPLY_ROLE:
			if (apply->server.host == NULL)
				apply_role_here(apply, a);
			else
				apply_role_there(apply, a);
			break;
		case APPLY_BACKEND:
			(void) backend_put(apply->backend, apply->name, a->data, a->len,
							   &about);
			break;
		case APPLY_DESTINATION:
			return apply_by_delivery(apply, a);
	}
	return true;
}

/* What the backend has must be the value. */
static void
verify_read(const Verify *verify, const Application *a)
{
	SecretValue value;
	bool		same;

	if (!backend_get(verify->backend, verify->name, NULL, &value))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("secret backend \"%s\" does not have \"%s\" after it was put there",
						verify->backend, verify->name)));
	same = value.len == a->len && crypto_equal(value.data, a->data, a->len);
	secret_wipe(&value);
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_API),
				 errmsg("secret backend \"%s\" has another value of \"%s\" than was put there",
						verify->backend, verify->name)));
}

void
verify_run(const Verify *verify, const Application *a)
{
	bool		isnull;
	Datum		works;

	switch ((VerifyKind) verify->kind)
	{
		case VERIFY_FUNCTION:
			works = call_value_function(verify->function, BOOLOID,
										verify->timeout_ms, a, &isnull);
			if (isnull || !DatumGetBool(works))
				ereport(ERROR,
						(errcode(ERRCODE_MLINT_AUTHENTICATION),
						 errmsg("%s says that version %d does not work",
								verify->function, a->version)));
			break;
		case VERIFY_LOGIN:
			login_check(&verify->server, verify->role, as_password(a));
			break;
		case VERIFY_READ:
			verify_read(verify, a);
			break;
	}
}
