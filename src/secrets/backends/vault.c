/*
 * vault.c
 *		HashiCorp Vault and OpenBao: the KV secrets engine, versions 1 and 2.
 *
 * A token is had by one of three ways (it is given; AppRole; Kubernetes) and
 * kept, sealed, for all processes, as long as its lease runs: a hundred
 * sessions that read secrets log in once. When two thirds of the lease are
 * over, whoever comes next renews it, or the job secret_refresh does; if that
 * fails we log in again. A 403 means a token that was revoked, or something
 * that is forbidden: we log in again, once, and then we know.
 *
 * What a name is, the path below the mount, holds an object with fields. One
 * field of it is the secret's value (option "field"), or the whole object is.
 */
#include "postgres.h"

#include "common/errors.h"
#include "secrets/kind.h"
#include "utils/timestamp.h"

/* Pages of a listing that we follow, and names that we gather. */
#define LIST_CALLS_MAX		1000
#define LIST_NAMES_MAX		10000
#define LIST_DEPTH_MAX		32
/* A token that does not end is looked at again after this. */
#define TOKEN_KEEP_S		(24 * 3600)
/* How long we believe that an engine is of the version it was. */
#define ENGINE_KEEP_S		3600

typedef enum VaultAuth
{
	AUTH_TOKEN,
	AUTH_APPROLE,
	AUTH_KUBERNETES
} VaultAuth;

typedef enum VaultEngine
{
	ENGINE_AUTO,
	ENGINE_1,
	ENGINE_2
} VaultEngine;

typedef struct VaultOptions
{
	BackendOptions common;
	char	   *url;
	char	   *mount;
	int			engine;			/* VaultEngine */
	char	   *field;
	char	   *namespace;
	char	   *ca;
	bool		custom_metadata;
	int			auth;			/* VaultAuth */
	char	   *auth_mount;
	Credential	token;
	char	   *role_id;
	Credential	secret_id;
	char	   *role;
	Credential	jwt;
} VaultOptions;

#define AT(member) offsetof(VaultOptions, member)

static const char *const vault_auths[] = {
	"token", "approle", "kubernetes", NULL
};
static const char *const vault_engines[] = {"auto", "1", "2", NULL};

static const Option vault_options[] = {
	{"url", OPTION_URL, AT(url), NULL, 0, 0, NULL, NULL, false,
	"where the server is; VAULT_ADDR of the server's environment if not given"},
	{"mount", OPTION_TEXT, AT(mount), "secret", 0, 0, NULL, NULL, false,
	"path at which the KV secrets engine is mounted"},
	{"kv_version", OPTION_ENUM, AT(engine), "auto", 0, 0, vault_engines, NULL,
	false, "version of that engine; auto asks the server"},
	{"field", OPTION_TEXT, AT(field), "value", 0, 0, NULL, NULL, false,
	"field of the stored object that is the value; empty: the whole, as JSON"},
	{"namespace", OPTION_TEXT, AT(namespace), NULL, 0, 0, NULL, NULL, false,
	"namespace that mounts are in"},
	{"ca", OPTION_TEXT, AT(ca), NULL, 0, 0, NULL, NULL, false,
	"certificates to trust instead of the system's, PEM"},
	{"custom_metadata", OPTION_BOOL, AT(custom_metadata), "true", 0, 0, NULL,
		NULL, false,
	"store type, description and metadata as custom metadata (version 2 only)"},
	{"auth", OPTION_ENUM, AT(auth), "token", 0, 0, vault_auths, NULL, false,
	"how we log in"},
	{"auth_mount", OPTION_TEXT, AT(auth_mount), NULL, 0, 0, NULL, NULL, false,
	"path at which the auth method is mounted, if not at its name"},
	{"token", OPTION_CREDENTIAL, AT(token), NULL, 0, 0, NULL, NULL, false,
	"token: the token; VAULT_TOKEN of the server's environment if not given"},
	{"role_id", OPTION_TEXT, AT(role_id), NULL, 0, 0, NULL, NULL, false,
	"approle: the role"},
	{"secret_id", OPTION_CREDENTIAL, AT(secret_id), NULL, 0, 0, NULL, NULL,
	false, "approle: its secret, where the role demands one"},
	{"role", OPTION_TEXT, AT(role), NULL, 0, 0, NULL, NULL, false,
	"kubernetes: the role"},
	{"jwt", OPTION_CREDENTIAL, AT(jwt), NULL, 0, 0, NULL, NULL, false,
	"kubernetes: the service account's token, as a rule {\"file\": \"/var/run/secrets/kubernetes.io/serviceaccount/token\"}"},
	{NULL}
};

/* A path in an option must not lead to another part of the API. */
static void
check_path(const char *path, const char *option, const char *what)
{
	bool		ok = path == NULL || path[0] != '\0';

	for (const char *p = path; ok && p && *p;)
	{
		size_t		part = strcspn(p, "/");

		ok = part > 0 && strspn(p, "abcdefghijklmnopqrstuvwxyz"
								"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
								"0123456789_.-") >= part &&
			!(p[0] == '.' && (part == 1 || (part == 2 && p[1] == '.')));
		p += part;
		p += *p == '/';
	}
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"%s\" of %s must be a path", option, what),
				 errdetail("It consists of letters, digits and any of _ . -, in parts with a slash between them; none of these is \".\" or \"..\".")));
}

static void
pg_attribute_noreturn()
needs(const char *auth, const char *option, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("%s needs option \"%s\"", what, option),
			 errdetail("It logs in by \"%s\".", auth)));
}

static bool
vault_check(const BackendOptions *options, const char *what)
{
	const VaultOptions *o = (const VaultOptions *) options;

	check_path(o->mount, "mount", what);
	check_path(o->auth_mount, "auth_mount", what);
	check_path(o->namespace, "namespace", what);
	if (o->url == NULL && environment("VAULT_ADDR") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s needs option \"url\"", what),
				 errdetail("Nor is VAULT_ADDR set in the server's environment.")));
	if (o->auth == AUTH_APPROLE && o->role_id == NULL)
		needs("approle", "role_id", what);
	if (o->auth == AUTH_KUBERNETES && o->role == NULL)
		needs("kubernetes", "role", what);
	if (o->auth == AUTH_KUBERNETES && o->jwt.kind == CREDENTIAL_NONE)
		needs("kubernetes", "jwt", what);
	if (o->auth == AUTH_TOKEN && o->token.kind == CREDENTIAL_NONE)
	{
		if (environment("VAULT_TOKEN") == NULL)
			needs("token", "token", what);
		return true;
	}
	return false;
}

static const VaultOptions *
vault_of(const Backend *b)
{
	return (const VaultOptions *) b->options;
}

static char *
vault_url(const Backend *b, const char *path)
{
	const char *url = vault_of(b)->url;

	return psprintf("%s/v1/%s", url_base(url ? url : environment("VAULT_ADDR")),
					path);
}

/* One exchange with the API. token may be NULL: before a login. */
static bool
vault_call(Backend *b, Exchange *e, const char *method, const char *path,
		   const char *token, json_t *body)
{
	const VaultOptions *o = vault_of(b);

	memset(e, 0, sizeof(*e));
	e->method = method;
	e->url = vault_url(b, path);
	e->ca = o->ca;
	if (body)
		e->body = json_write(b, body);
	e->headers = http_header(NULL, "X-Vault-Request", "true");
	if (o->namespace)
		e->headers = http_header(e->headers, "X-Vault-Namespace",
								 o->namespace);
	if (token)
		e->headers = http_header(e->headers, "X-Vault-Token", token);
	if (body)
		e->headers = http_header(e->headers, "Content-Type",
								 "application/json");
	return exchange(b, e);
}

static const char *
vault_says(const Exchange *e)
{
	const json_t *errors = json_object_get(e->json, "errors");

	return json_string_value(json_array_get(errors, 0));
}

static BackendResult
vault_refused(Backend *b, const Exchange *e)
{
	return exchange_refused(b, e, vault_says(e));
}

/* ---- tokens ---- */

/*
 * Keep a token: "renewable expiry renewal token", times in microseconds; no
 * expiry is 0.
 */
static void
token_keep(Backend *b, const char *token, int64 ttl_s, bool renewable)
{
	TimestampTz now = GetCurrentTimestamp();
	char	   *kept = psprintf("%d " INT64_FORMAT " " INT64_FORMAT " %s",
								renewable,
								ttl_s > 0 ? now + ttl_s * USECS_PER_SEC : 0,
								ttl_s > 0 ? now + ttl_s * USECS_PER_SEC * 2 / 3 : 0,
								token);

	confidential(b, kept, strlen(kept));
	backend_keep(b, "token", kept, ttl_s > 0 ? ttl_s : TOKEN_KEEP_S);
}

/* The kept token, or NULL; *due says that it should be renewed. */
static char *
token_kept(Backend *b, bool *due)
{
	char	   *kept = backend_kept(b, "token");
	int			renewable;
	int64		expires;
	int64		renew;
	int			at = 0;

	*due = false;
	if (kept == NULL ||
	/* NOLINTNEXTLINE(cert-err34-c): these are our own words */
		sscanf(kept, "%d " INT64_FORMAT " " INT64_FORMAT " %n", &renewable,
			   &expires, &renew, &at) != 3)
		return NULL;
	*due = renewable && renew != 0 && GetCurrentTimestamp() >= renew;
	return kept + at;
}

/* Take the token out of the answer to a login, and keep it. */
static BackendResult
token_take(Backend *b, Exchange *e, char **token)
{
	json_t	   *auth = json_object_get(e->json, "auth");
	const char *text = api_text(auth, "client_token");

	if (e->status != 200)
	{
		/* A wrong role or secret is 400, and 404 where nothing is mounted. */
		if (e->status == 400 && !vault_says(e))
			return vault_refused(b, e);
		return backend_fail(b, ERRCODE_MLINT_AUTHENTICATION, false,
							vault_says(e),
							"Check the options with which the backend logs in.",
							"the login by \"%s\" failed (status %d)",
							vault_auths[vault_of(b)->auth], e->status);
	}
	if (text == NULL)
		return exchange_strange(b, "its answer to the login has no token");
	*token = confidential(b, pstrdup(text), strlen(text));
	token_keep(b, text,
			   json_integer_value(json_object_get(auth, "lease_duration")),
			   json_is_true(json_object_get(auth, "renewable")));
	return BACKEND_OK;
}

/* A token that is given: learn how long it lasts. */
static BackendResult
token_look(Backend *b, char **token)
{
	const VaultOptions *o = vault_of(b);
	Exchange	e;
	json_t	   *data;

	if (o->token.kind != CREDENTIAL_NONE)
		*token = backend_credential(b, &o->token);
	else if (environment("VAULT_TOKEN") != NULL)
		*token = pstrdup(environment("VAULT_TOKEN"));
	else
		return backend_fail(b, ERRCODE_MLINT_CONFIGURATION, false, NULL, NULL,
							"VAULT_TOKEN is not set in the server's environment");
	confidential(b, *token, strlen(*token));
	if (!vault_call(b, &e, "GET", "auth/token/lookup-self", *token, NULL))
		return BACKEND_FAILED;
	/* It may be forbidden, and the token good for what it is needed for. */
	data = e.status == 200 ? json_object_get(e.json, "data") : NULL;
	token_keep(b, *token, json_integer_value(json_object_get(data, "ttl")),
			   json_is_true(json_object_get(data, "renewable")));
	return BACKEND_OK;
}

static BackendResult
login(Backend *b, char **token)
{
	const VaultOptions *o = vault_of(b);
	const char *mount = o->auth_mount ? o->auth_mount : vault_auths[o->auth];
	json_t	   *body;
	Exchange	e;

	if (o->auth == AUTH_TOKEN)
		return token_look(b, token);
	if (o->auth == AUTH_APPROLE)
	{
		char	   *secret = o->secret_id.kind == CREDENTIAL_NONE ? NULL :
		backend_credential(b, &o->secret_id);

		body = secret ? json_pack("{ssss}", "role_id", o->role_id,
								  "secret_id", secret) :
			json_pack("{ss}", "role_id", o->role_id);
	}
	else
		body = json_pack("{ssss}", "role", o->role, "jwt",
						 backend_credential(b, &o->jwt));
	if (!vault_call(b, &e, "POST", psprintf("auth/%s/login", url_base(mount)),
					NULL, body))
		return BACKEND_FAILED;
	return token_take(b, &e, token);
}

/* Renew the kept token, or get another. */
static BackendResult
renew(Backend *b, char **token)
{
	Exchange	e;

	if (!vault_call(b, &e, "POST", "auth/token/renew-self", *token,
					json_object_new()))
		return BACKEND_FAILED;
	if (e.status == 200)
		return token_take(b, &e, token);
	backend_unkeep(b, "token");
	return login(b, token);
}

/*
 * One exchange with a token: the kept one, renewed if it is time, or one of a
 * new login; after a 403 again with one of a new login. body is written for
 * each attempt; this takes the reference.
 */
static BackendResult
vault_ask(Backend *b, Exchange *e, const char *method, const char *path,
		  json_t *body)
{
	bool		due;
	bool		fresh = false;
	char	   *token = token_kept(b, &due);

	if (body)
		json_own(b, body);
	if (token == NULL)
	{
		fresh = true;
		if (login(b, &token) != BACKEND_OK)
			return BACKEND_FAILED;
	}
	else if (due && renew(b, &token) != BACKEND_OK)
		return BACKEND_FAILED;
	for (;;)
	{
		if (!vault_call(b, e, method, path, token, body ? json_incref(body) : NULL))
			return BACKEND_FAILED;
		if (e->status != 403 || fresh)
			break;
		fresh = true;
		backend_unkeep(b, "token");
		if (login(b, &token) != BACKEND_OK)
			return BACKEND_FAILED;
	}
	/* A token of the login just now that is no good must not stay. */
	if (e->status == 403 && vault_of(b)->auth == AUTH_TOKEN)
		backend_unkeep(b, "token");
	return BACKEND_OK;
}

/* Which version of the engine is mounted? */
static BackendResult
vault_engine(Backend *b, VaultEngine *engine)
{
	const VaultOptions *o = vault_of(b);
	const char *kept;
	const char *type;
	const char *version;
	json_t	   *data;
	Exchange	e;

	*engine = o->engine;
	if (*engine != ENGINE_AUTO)
		return BACKEND_OK;
	kept = backend_kept(b, "engine");
	if (kept)
	{
		*engine = kept[0] == '2' ? ENGINE_2 : ENGINE_1;
		return BACKEND_OK;
	}
	if (vault_ask(b, &e, "GET", psprintf("sys/internal/ui/mounts/%s",
										 url_base(o->mount)), NULL) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status != 200)
		return backend_fail(b, e.status == 403 ?
							ERRCODE_MLINT_AUTHENTICATION : ERRCODE_MLINT_API,
							false, vault_says(&e),
							"Is it mounted there, and may the token use it? The server tells of a mount only who may; option \"kv_version\" saves asking.",
							"which secrets engine is mounted at \"%s\" cannot be found out (status %d)",
							o->mount, e.status);
	data = json_object_get(e.json, "data");
	type = api_text(data, "type");
	version = api_text(json_object_get(data, "options"), "version");
	if (type == NULL || (strcmp(type, "kv") != 0 && strcmp(type, "generic") != 0))
		return backend_fail(b, ERRCODE_MLINT_CONFIGURATION, false, NULL,
							"Name the mount of a KV secrets engine.",
							"the secrets engine at \"%s\" is not KV", o->mount);
	*engine = version && strcmp(version, "2") == 0 ? ENGINE_2 : ENGINE_1;
	backend_keep(b, "engine", *engine == ENGINE_2 ? "2" : "1", ENGINE_KEEP_S);
	return BACKEND_OK;
}

/* The path of a secret, in one of the parts that version 2 has. */
static char *
vault_path(const Backend *b, VaultEngine engine, const char *part,
		   const char *name)
{
	char	   *mount = url_base(vault_of(b)->mount);

	return engine == ENGINE_1 ? psprintf("%s/%s", mount, name) :
		psprintf("%s/%s/%s", mount, part, name);
}

/* ---- the verbs ---- */

/* The value in a stored object. */
static BackendResult
vault_value(Backend *b, json_t *object, SecretValue *value)
{
	const VaultOptions *o = vault_of(b);
	json_t	   *field;

	if (!json_is_object(object))
		return exchange_strange(b, "its answer has no object with fields");
	if (o->field[0] == '\0')
	{
		char	   *text = json_write(b, json_incref(object));

		value->len = strlen(text);
		value->data = pstrdup(text);
		return BACKEND_OK;
	}
	field = json_object_get(object, o->field);
	if (field == NULL)
		return backend_fail(b, ERRCODE_MLINT_CONFIGURATION, false, NULL,
							"Option \"field\" of the backend says which one is the value; empty, it is the whole object.",
							"what is stored there has no field \"%s\"",
							o->field);
	if (json_is_string(field))
	{
		value->len = json_string_length(field);
		value->data = palloc(value->len + 1);
		memcpy(value->data, json_string_value(field), value->len);
		value->data[value->len] = '\0';
	}
	else
	{
		size_t		flags = JSON_COMPACT | JSON_ENCODE_ANY;

		value->len = json_dumpb(field, NULL, 0, flags);
		value->data = palloc(value->len + 1);
		json_dumpb(field, value->data, value->len, flags);
		value->data[value->len] = '\0';
	}
	return BACKEND_OK;
}

static BackendResult
vault_get(Backend *b, const char *name, const char *version,
		  SecretValue *value)
{
	VaultEngine engine;
	Exchange	e;
	char	   *path;
	json_t	   *data;
	bool		current = version == NULL ||
	strcmp(version, VERSION_CURRENT) == 0;

	if (vault_engine(b, &engine) != BACKEND_OK)
		return BACKEND_FAILED;
	if (!current && (engine == ENGINE_1 || strlen(version) > 9 ||
					 version[0] == '\0' || version[0] == '0' ||
					 strspn(version, "0123456789") != strlen(version)))
		return BACKEND_ABSENT;
	path = vault_path(b, engine, "data", name);
	if (!current)
		path = psprintf("%s?version=%s", path, version);
	if (vault_ask(b, &e, "GET", path, NULL) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status == 404)
		return BACKEND_ABSENT;
	if (e.status != 200)
		return vault_refused(b, &e);
	data = json_object_get(e.json, "data");
	value->version = pstrdup(VERSION_CURRENT);
	if (engine == ENGINE_2)
	{
		json_t	   *metadata = json_object_get(data, "metadata");

		value->version = psprintf("%d", (int) json_integer_value(json_object_get(metadata, "version")));
		data = json_object_get(data, "data");
	}
	return vault_value(b, data, value);
}

/* The object that is to be stored. */
static BackendResult
vault_object(Backend *b, const char *value, size_t len, json_t **object)
{
	const VaultOptions *o = vault_of(b);
	json_error_t error;

	if (!json_carries(value, len))
		return backend_fail(b, ERRCODE_MLINT_SERIALIZATION, false, NULL,
							"Store it encoded, for example in base64.",
							"a value there is text in UTF-8, and this one is not");
	if (o->field[0] != '\0')
	{
		*object = json_object_new();
		json_object_set_new(*object, o->field, json_stringn(value, len));
		return BACKEND_OK;
	}
	*object = json_loadb(value, len, JSON_ALLOW_NUL, &error);
	if (!json_is_object(*object))
	{
		json_decref(*object);
		return backend_fail(b, ERRCODE_MLINT_SERIALIZATION, false, NULL,
							"The backend's option \"field\" is empty, so a value is a whole JSON object.",
							"the value is not a JSON object");
	}
	return BACKEND_OK;
}

static BackendResult
vault_put(Backend *b, const char *name, const void *data, size_t len,
		  const SecretAbout *about, char **version)
{
	VaultEngine engine;
	Exchange	e;
	json_t	   *object = NULL;
	json_t	   *custom;
	json_t	   *number;

	if (vault_engine(b, &engine) != BACKEND_OK ||
		vault_object(b, data, len, &object) != BACKEND_OK)
		return BACKEND_FAILED;
	json_own(b, object);
	custom = engine == ENGINE_2 && vault_of(b)->custom_metadata ?
		about_object(b, about) : NULL;

	/* First, so that a put which fails has not changed the value. */
	if (custom)
	{
		if (vault_ask(b, &e, "POST", vault_path(b, engine, "metadata", name),
					  json_pack("{sO}", "custom_metadata", custom)) != BACKEND_OK)
			return BACKEND_FAILED;
		if (e.status != 200 && e.status != 204)
			return vault_refused(b, &e);
	}
	if (vault_ask(b, &e, "POST", vault_path(b, engine, "data", name),
				  engine == ENGINE_1 ? json_incref(object) :
				  json_pack("{sO}", "data", object)) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status != 200 && e.status != 204)
		return vault_refused(b, &e);
	number = json_object_get(json_object_get(e.json, "data"), "version");
	*version = number ? psprintf("%d", (int) json_integer_value(number)) :
		pstrdup(VERSION_CURRENT);
	return BACKEND_OK;
}

/* Is there such a secret? With *e, its metadata (version 2) or the secret. */
static BackendResult
vault_look(Backend *b, VaultEngine engine, const char *name, Exchange *e)
{
	if (vault_ask(b, e, "GET", vault_path(b, engine, "metadata", name),
				  NULL) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e->status == 404)
		return BACKEND_ABSENT;
	return e->status == 200 ? BACKEND_OK : vault_refused(b, e);
}

static BackendResult
vault_delete(Backend *b, const char *name)
{
	VaultEngine engine;
	Exchange	e;
	BackendResult there;

	if (vault_engine(b, &engine) != BACKEND_OK)
		return BACKEND_FAILED;
	there = vault_look(b, engine, name, &e);
	if (there != BACKEND_OK)
		return there;
	if (vault_ask(b, &e, "DELETE", vault_path(b, engine, "metadata", name),
				  NULL) != BACKEND_OK)
		return BACKEND_FAILED;
	return e.status == 200 || e.status == 204 ? BACKEND_OK :
		vault_refused(b, &e);
}

static BackendResult
vault_versions(Backend *b, const char *name, VersionVisitor visit, void *arg)
{
	VaultEngine engine;
	Exchange	e;
	json_t	   *data;
	json_t	   *versions;
	int			current;
	BackendResult there;

	if (vault_engine(b, &engine) != BACKEND_OK)
		return BACKEND_FAILED;
	there = vault_look(b, engine, name, &e);
	if (there != BACKEND_OK)
		return there;
	if (engine == ENGINE_1)
	{
		visit(VERSION_CURRENT, true, 0, arg);
		return BACKEND_OK;
	}
	data = json_object_get(e.json, "data");
	versions = json_object_get(data, "versions");
	current = (int) json_integer_value(json_object_get(data, "current_version"));
	if (!json_is_object(versions))
		return exchange_strange(b, "its answer has no versions");

	/* Numbers without gaps but for the oldest, which are gone. */
	for (int left = json_object_size(versions), n = current; left > 0 && n > 0; n--)
	{
		char		number[16];
		json_t	   *v;
		const char *deleted;

		snprintf(number, sizeof(number), "%d", n);
		v = json_object_get(versions, number);
		if (v == NULL)
			break;
		left--;
		deleted = api_text(v, "deletion_time");
		if (json_is_true(json_object_get(v, "destroyed")) ||
			(deleted && deleted[0] != '\0' &&
			 time_from_text(deleted) <= GetCurrentTimestamp()))
			continue;
		visit(number, n == current, time_from_text(api_text(v, "created_time")),
			  arg);
	}
	return BACKEND_OK;
}

typedef struct VaultListing
{
	VaultEngine engine;
	const char *prefix;
	NameVisitor visit;
	void	   *arg;
	int			calls;
	int			names;
} VaultListing;

/* The names below a folder, "" or "a/b/". */
static BackendResult
vault_walk(Backend *b, VaultListing *l, const char *folder, int depth)
{
	Exchange	e;
	json_t	   *keys;
	json_t	   *key;
	size_t		i;

	if (++l->calls > LIST_CALLS_MAX || l->names > LIST_NAMES_MAX)
		return backend_fail(b, ERRCODE_MLINT_API, false, NULL,
							"Name a longer prefix.",
							"there are more than %d names or %d folders",
							LIST_NAMES_MAX, LIST_CALLS_MAX);
	if (vault_ask(b, &e, "GET", psprintf("%s?list=true",
										 vault_path(b, l->engine, "metadata",
													folder)), NULL) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status == 404)
		return BACKEND_OK;
	if (e.status != 200)
		return vault_refused(b, &e);
	keys = json_object_get(json_object_get(e.json, "data"), "keys");
	if (!json_is_array(keys))
		return exchange_strange(b, "its answer has no list of names");
	json_array_foreach(keys, i, key)
	{
		const char *text = json_string_value(key);
		char	   *name;
		size_t		len;

		if (text == NULL)
			continue;
		name = psprintf("%s%s", folder, text);
		len = strlen(name);
		if (strncmp(name, l->prefix, Min(len, strlen(l->prefix))) != 0)
			continue;
		if (name[len - 1] != '/')
		{
			if (len >= strlen(l->prefix))
			{
				l->names++;
				l->visit(name, l->arg);
			}
		}
		else if (depth < LIST_DEPTH_MAX && strspn(name, "abcdefghijklmnopqrstuvwxyz"
												  "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
												  "0123456789_./-") == len &&
				 vault_walk(b, l, name, depth + 1) != BACKEND_OK)
			return BACKEND_FAILED;
	}
	return BACKEND_OK;
}

static BackendResult
vault_list(Backend *b, const char *prefix, NameVisitor visit, void *arg)
{
	VaultListing l = {ENGINE_AUTO, prefix, visit, arg};
	const char *slash = strrchr(prefix, '/');

	if (vault_engine(b, &l.engine) != BACKEND_OK)
		return BACKEND_FAILED;
	return vault_walk(b, &l, slash ? pnstrdup(prefix, slash + 1 - prefix) : "",
					  0);
}

static BackendResult
vault_test(Backend *b, char **words)
{
	VaultEngine engine;
	Exchange	e;
	json_t	   *data;
	int64		ttl;

	backend_unkeep(b, "engine");
	if (vault_ask(b, &e, "GET", "auth/token/lookup-self", NULL) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status != 200)
		return vault_refused(b, &e);
	data = json_object_get(e.json, "data");
	ttl = json_integer_value(json_object_get(data, "ttl"));
	if (vault_engine(b, &engine) != BACKEND_OK)
		return BACKEND_FAILED;
	*words = psprintf("KV version %d at \"%s\"; the token %s",
					  engine == ENGINE_1 ? 1 : 2, vault_of(b)->mount,
					  ttl > 0 ? psprintf("ends in " INT64_FORMAT " s", ttl) :
					  "does not end");
	return BACKEND_OK;
}

/* Renew what is kept; have a token that is given looked at, and so kept. */
static BackendResult
vault_tend(Backend *b)
{
	bool		due;
	char	   *token = token_kept(b, &due);

	if (token == NULL)
		return vault_of(b)->auth == AUTH_TOKEN ? token_look(b, &token) :
			BACKEND_OK;
	return due ? renew(b, &token) : BACKEND_OK;
}

const BackendKind vault_kind = {
	.base.name = "vault",
	.base.help = "HashiCorp Vault or OpenBao, secrets engine KV version 1 or 2",
	.base.options = vault_options,
	.base.options_size = sizeof(VaultOptions),
	.check = vault_check,
	.get = vault_get,
	.put = vault_put,
	.delete = vault_delete,
	.versions = vault_versions,
	.list = vault_list,
	.test = vault_test,
	.tend = vault_tend,
};
