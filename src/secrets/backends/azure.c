/*
 * azure.c
 *		Azure Key Vault: its secrets, by the REST API of version 7.4.
 *
 * We log in with the credentials of a client (Microsoft Entra ID), or, where
 * none are given, as the managed identity of the machine. The token is kept,
 * sealed, for all processes, until a few minutes before it ends; after a 401
 * we log in again, once.
 *
 * Names there have letters, digits and hyphens, nothing else: another name is
 * an error here that says so, rather than one there that does not.
 */
#include "postgres.h"

#include "common/azure.h"
#include "common/errors.h"
#include "secrets/kind.h"

#define API_VERSION		"api-version=7.4"
#define PAGES_MAX		500
#define EXPIRY_MARGIN_S	300
#define NAME_MAX_CHARS	127

typedef struct AzureOptions
{
	BackendOptions common;
	char	   *vault_url;
	char	   *ca;
	AzureLogin	login;
	char	   *resource;
} AzureOptions;

#define AT(member) offsetof(AzureOptions, member)

static const Option azure_options[] = {
	{"vault_url", OPTION_URL, AT(vault_url), NULL, 0, 0, NULL, NULL, false,
	"https://NAME.vault.azure.net; AZURE_VAULT_URL of the server's environment if not given"},
	{"ca", OPTION_TEXT, AT(ca), NULL, 0, 0, NULL, NULL, false,
	"certificates to trust instead of the system's, PEM"},
	AZURE_LOGIN_OPTIONS(AzureOptions, login),
	{"resource", OPTION_URL, AT(resource), "https://vault.azure.net", 0, 0,
		NULL, NULL, false,
	"what the token is for; sovereign clouds have another"},
	{NULL}
};

static bool
azure_check(const BackendOptions *options, const char *what)
{
	const AzureOptions *o = (const AzureOptions *) options;

	if (o->vault_url == NULL && environment("AZURE_VAULT_URL") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s needs option \"vault_url\"", what),
				 errdetail("Nor is AZURE_VAULT_URL set in the server's environment.")));
	return azure_login_check(&o->login, what);
}

static const AzureOptions *
azure_of(const Backend *b)
{
	return (const AzureOptions *) b->options;
}

static char *
vault_base(const Backend *b)
{
	const char *url = azure_of(b)->vault_url;

	return url_base(url ? url : environment("AZURE_VAULT_URL"));
}

static BackendResult
azure_refused(Backend *b, const Exchange *e)
{
	return exchange_refused(b, e, api_text(json_object_get(e->json, "error"),
										   "message"));
}

/* ---- tokens ---- */

/* Take the token out of the answer, and keep it. */
static BackendResult
token_take(Backend *b, const Exchange *e, char **token)
{
	long		seconds;
	const char *text = azure_login_token(e->json, &seconds);

	if (e->status != 200)
		return backend_fail(b, e->status == 400 || e->status == 401 ?
							ERRCODE_MLINT_AUTHENTICATION : ERRCODE_MLINT_API,
							false, api_text(e->json, "error_description"),
							"Check the options with which the backend logs in, or whether the machine has a managed identity.",
							"the login failed (status %d)", e->status);
	if (text == NULL)
		return exchange_strange(b, "its answer to the login has no token");
	*token = confidential(b, pstrdup(text), strlen(text));
	backend_keep(b, "token", text, seconds - EXPIRY_MARGIN_S);
	return BACKEND_OK;
}

static BackendResult
login(Backend *b, char **token)
{
	const AzureOptions *o = azure_of(b);
	AzureLoginRequest request;
	Exchange	e = {0};

	azure_login_request(&o->login, o->resource,
						o->login.client_secret.kind == CREDENTIAL_NONE ? NULL :
						backend_credential(b, &o->login.client_secret),
						&request);
	e.url = request.url;
	e.headers = request.headers;
	e.body = request.body;
	e.metadata = request.metadata;
	e.ca = o->ca;
	if (!exchange(b, &e))
		return BACKEND_FAILED;
	return token_take(b, &e, token);
}

/* One exchange with a token; after a 401 once more, with a new one. */
static BackendResult
azure_ask(Backend *b, Exchange *e, const char *method, const char *url,
		  const char *body)
{
	char	   *token = backend_kept(b, "token");
	bool		fresh = token == NULL;

	if (token == NULL && login(b, &token) != BACKEND_OK)
		return BACKEND_FAILED;
	for (;;)
	{
		char	   *bearer = psprintf("Bearer %s", token);

		confidential(b, bearer, strlen(bearer));
		memset(e, 0, sizeof(*e));
		e->method = method;
		e->url = url;
		e->ca = azure_of(b)->ca;
		e->body = body;
		e->headers = http_header(NULL, "Authorization", bearer);
		if (body)
			e->headers = http_header(e->headers, "Content-Type",
									 "application/json");
		if (!exchange(b, e))
			return BACKEND_FAILED;
		if (e->status != 401 || fresh)
			return BACKEND_OK;
		fresh = true;
		backend_unkeep(b, "token");
		if (login(b, &token) != BACKEND_OK)
			return BACKEND_FAILED;
	}
}

/* ---- the verbs ---- */

static BackendResult
check_name(Backend *b, const char *name)
{
	size_t		len = strlen(name);

	if (len <= NAME_MAX_CHARS &&
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789-") == len)
		return BACKEND_OK;
	return backend_fail(b, ERRCODE_INVALID_NAME, false, NULL,
						"Write db-password, not db/password or db_password.",
						"a name in Key Vault is 1 to %d letters, digits and hyphens",
						NAME_MAX_CHARS);
}

static char *
secret_url(const Backend *b, const char *name, const char *rest)
{
	return psprintf("%s/secrets/%s%s?%s", vault_base(b), name, rest,
					API_VERSION);
}

/* What follows the last slash of an id: a version, or a name. */
static const char *
id_tail(const json_t *json)
{
	const char *id = api_text(json, "id");
	const char *slash = id ? strrchr(id, '/') : NULL;

	return slash && slash[1] != '\0' ? slash + 1 : NULL;
}

static BackendResult
azure_get(Backend *b, const char *name, const char *version,
		  SecretValue *value)
{
	Exchange	e;
	json_t	   *text;
	const char *tail;

	if (check_name(b, name) != BACKEND_OK)
		return BACKEND_FAILED;
	if (version &&
		(version[0] == '\0' || strspn(version, "0123456789abcdefABCDEF-") != strlen(version)))
		return BACKEND_ABSENT;
	if (azure_ask(b, &e, "GET", secret_url(b, name, version ?
										   psprintf("/%s", version) : ""),
				  NULL) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status == 404)
		return BACKEND_ABSENT;
	if (e.status != 200)
		return azure_refused(b, &e);
	text = json_object_get(e.json, "value");

	if (!json_is_string(text))
		return exchange_strange(b, "its answer has no value");
	value->len = json_string_length(text);
	value->data = palloc(value->len + 1);
	memcpy(value->data, json_string_value(text), value->len);
	value->data[value->len] = '\0';
	tail = id_tail(e.json);
	value->version = pstrdup(tail ? tail : VERSION_CURRENT);
	return BACKEND_OK;
}

static BackendResult
azure_put(Backend *b, const char *name, const void *data, size_t len,
		  const SecretAbout *about, char **version)
{
	Exchange	e;
	json_t	   *body;
	json_t	   *told = about_object(b, about);
	const char *tail;

	if (check_name(b, name) != BACKEND_OK)
		return BACKEND_FAILED;
	if (!json_carries(data, len))
		return backend_fail(b, ERRCODE_MLINT_SERIALIZATION, false, NULL,
							"Store it encoded, for example in base64.",
							"a value there is text in UTF-8, and this one is not");
	body = json_pack("{so}", "value", json_stringn(data, len));
	if (told)
		json_object_set(body, "tags", told);
	if (json_object_get(told, "type"))
		json_object_set(body, "contentType", json_object_get(told, "type"));
	if (azure_ask(b, &e, "PUT", secret_url(b, name, ""),
				  json_write(b, body)) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status != 200)
		return azure_refused(b, &e);
	tail = id_tail(e.json);
	if (tail == NULL)
		return exchange_strange(b, "its answer has no version");
	*version = pstrdup(tail);
	return BACKEND_OK;
}

static BackendResult
azure_delete(Backend *b, const char *name)
{
	Exchange	e;

	if (check_name(b, name) != BACKEND_OK)
		return BACKEND_FAILED;
	if (azure_ask(b, &e, "DELETE", secret_url(b, name, ""), NULL) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status == 404)
		return BACKEND_ABSENT;
	return e.status == 200 ? BACKEND_OK : azure_refused(b, &e);
}

/*
 * Follow the pages of a listing. The link to the next one must stay in the
 * vault: our token goes with the request.
 */
typedef void (*ItemVisitor) (json_t *item, void *arg);

static BackendResult
azure_pages(Backend *b, const char *url, ItemVisitor visit, void *arg)
{
	char	   *inside = psprintf("%s/", vault_base(b));

	for (int page = 0; page < PAGES_MAX; page++)
	{
		Exchange	e;
		json_t	   *items;
		json_t	   *item;
		size_t		i;

		if (azure_ask(b, &e, "GET", url, NULL) != BACKEND_OK)
			return BACKEND_FAILED;
		if (e.status == 404)
			return BACKEND_ABSENT;
		if (e.status != 200)
			return azure_refused(b, &e);
		items = json_object_get(e.json, "value");
		if (!json_is_array(items))
			return exchange_strange(b, "its answer has no list");
		json_array_foreach(items, i, item)
			visit(item, arg);
		url = api_text(e.json, "nextLink");
		if (url == NULL || url[0] == '\0')
			return BACKEND_OK;
		if (pg_strncasecmp(url, inside, strlen(inside)) != 0)
			return exchange_strange(b, "the next page that it names is in another place");
	}
	return backend_fail(b, ERRCODE_MLINT_API, false, NULL, NULL,
						"its list has more than %d pages", PAGES_MAX);
}

typedef struct AzureVersion
{
	char	   *id;
	bool		current;
	double		created;
} AzureVersion;

/* Newest first; of the same second the current one. */
static int
version_compare(const ListCell *a, const ListCell *b)
{
	const AzureVersion *x = lfirst(a);
	const AzureVersion *y = lfirst(b);

	if (x->created != y->created)
		return x->created > y->created ? -1 : 1;
	return (int) y->current - (int) x->current;
}

static void
take_version(json_t *item, void *arg)
{
	List	  **versions = arg;
	json_t	   *attributes = json_object_get(item, "attributes");
	const char *tail = id_tail(item);
	AzureVersion *version;

	if (tail == NULL || json_is_false(json_object_get(attributes, "enabled")))
		return;
	version = palloc0(sizeof(AzureVersion));
	version->id = pstrdup(tail);
	version->created = json_number_value(json_object_get(attributes, "created"));
	*versions = lappend(*versions, version);
}

/*
 * Which version is current is known only by reading the secret: times of
 * creation are whole seconds.
 */
static BackendResult
azure_versions(Backend *b, const char *name, VersionVisitor visit, void *arg)
{
	List	   *versions = NIL;
	ListCell   *lc;
	SecretValue now = {0};
	BackendResult result = azure_get(b, name, NULL, &now);

	if (result != BACKEND_OK)
		return result;
	Assert(now.version != NULL);
	confidential(b, now.data, now.len);
	result = azure_pages(b, secret_url(b, name, "/versions"), take_version,
						 &versions);
	if (result != BACKEND_OK)
		return result;
	foreach(lc, versions)
	{
		AzureVersion *version = lfirst(lc);

		version->current = strcmp(version->id, now.version) == 0;
	}
	list_sort(versions, version_compare);
	foreach(lc, versions)
	{
		AzureVersion *version = lfirst(lc);

		visit(version->id, version->current,
			  time_from_epoch(version->created), arg);
	}
	return BACKEND_OK;
}

typedef struct AzureListing
{
	const char *prefix;
	NameVisitor visit;
	void	   *arg;
} AzureListing;

static void
take_name(json_t *item, void *arg)
{
	AzureListing *l = arg;
	const char *name = id_tail(item);

	if (name && strncmp(name, l->prefix, strlen(l->prefix)) == 0)
		l->visit(name, l->arg);
}

static BackendResult
azure_list(Backend *b, const char *prefix, NameVisitor visit, void *arg)
{
	AzureListing l = {prefix, visit, arg};

	return azure_pages(b, psprintf("%s/secrets?maxresults=25&%s", vault_base(b),
								   API_VERSION), take_name, &l);
}

static BackendResult
azure_test(Backend *b, char **words)
{
	Exchange	e;

	if (azure_ask(b, &e, "GET", psprintf("%s/secrets?maxresults=1&%s",
										 vault_base(b), API_VERSION),
				  NULL) != BACKEND_OK)
		return BACKEND_FAILED;
	if (e.status != 200)
		return azure_refused(b, &e);
	*words = psprintf("Key Vault, as %s",
					  azure_of(b)->login.client_secret.kind == CREDENTIAL_NONE ?
					  "the machine's managed identity" : "a client");
	return BACKEND_OK;
}

const BackendKind azure_kind = {
	.base.name = "azure",
	.base.help = "Azure Key Vault",
	.base.options = azure_options,
	.base.options_size = sizeof(AzureOptions),
	.check = azure_check,
	.get = azure_get,
	.put = azure_put,
	.delete = azure_delete,
	.versions = azure_versions,
	.list = azure_list,
	.test = azure_test,
};
