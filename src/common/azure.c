/*
 * azure.c
 *		Logging in to Azure; see azure.h.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "common/azure.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/sigv4.h"
#include "utils/acl.h"

#define IDENTITY_URL	"http://169.254.169.254/metadata/identity/oauth2/token"

bool
azure_login_check(const AzureLogin *login, const char *what)
{
	if (login->client_secret.kind != CREDENTIAL_NONE &&
		(login->tenant_id == NULL || login->client_id == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s needs options \"tenant_id\" and \"client_id\"",
						what),
				 errdetail("It logs in with \"client_secret\".")));
	if (login->tenant_id &&
		strspn(login->tenant_id, "abcdefghijklmnopqrstuvwxyz"
			   "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789.-") != strlen(login->tenant_id))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"tenant_id\" of %s is neither an id nor a domain",
						what)));
	return login->client_secret.kind == CREDENTIAL_NONE;
}

void
azure_login_permit(const AzureLogin *login, Oid role, const char *what)
{
	if (azure_login_check(login, what) &&
		!has_privs_of_role(role, ROLE_PG_READ_SERVER_FILES))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to use the machine's identity for %s",
						what),
				 errhint("Give option \"client_secret\", or do it as a member of pg_read_server_files.")));
}

void
azure_login_request(const AzureLogin *login, const char *resource,
					const char *secret, AzureLoginRequest *request)
{
	char	   *scope = sigv4_escape(url_base(resource), true);
	char	   *client = login->client_id ?
	sigv4_escape(login->client_id, true) : NULL;

	memset(request, 0, sizeof(*request));
	if (secret)
	{
		char	   *escaped = sigv4_escape(secret, true);
		StringInfoData body;

		/* azure_login_check() */
		Assert(client != NULL);
		(void) api_confidential(escaped, strlen(escaped));
		request->url = psprintf("%s/%s/oauth2/v2.0/token",
								url_base(login->authority), login->tenant_id);
		initStringInfo(&body);
		/* Growing leaves copies, as psprintf() does of how a text begins. */
		enlargeStringInfo(&body, strlen(client) + strlen(escaped) +
						  strlen(scope) + 128);
		appendStringInfo(&body, "grant_type=client_credentials&client_id=%s&client_secret=%s&scope=%s%%2F.default",
						 client, escaped, scope);
		request->body = api_confidential(body.data, body.len);
		request->headers = http_header(NULL, "Content-Type",
									   "application/x-www-form-urlencoded");
		return;
	}
	request->url = psprintf("%s?api-version=2018-02-01&resource=%s%s%s",
							login->identity_endpoint ?
							login->identity_endpoint : IDENTITY_URL, scope,
							client ? "&client_id=" : "", client ? client : "");
	request->headers = http_header(NULL, "Metadata", "true");
	request->metadata = login->identity_endpoint == NULL;
}

const char *
azure_login_token(const json_t *answer, long *seconds)
{
	const json_t *expires = json_object_get(answer, "expires_in");

	/* A number here, a string of digits there. */
	*seconds = json_is_string(expires) ? strtol(json_string_value(expires), NULL, 10) :
		(long) json_integer_value(expires);
	return api_text(answer, "access_token");
}

char *
azure_login(const AzureLogin *login, const char *resource, const char *ca,
			int timeout_ms)
{
	ApiCall		call = {.service = "the login of Azure",.ca = ca,
	.timeout_ms = timeout_ms,.confidential = true,.tolerant = true};
	AzureLoginRequest request;
	char	   *secret = NULL;
	const char *token;
	char	   *bearer;
	size_t		len;
	long		seconds;

	if (login->client_secret.kind != CREDENTIAL_NONE)
	{
		secret = credential_resolve(&login->client_secret, &len);
		(void) api_confidential(secret, len);
	}
	azure_login_request(login, resource, secret, &request);
	call.url = request.url;
	call.headers = request.headers;
	call.body = request.body;
	call.body_len = request.body ? strlen(request.body) : 0;
	call.metadata = request.metadata;
	api_call(&call);
	if (call.status != 200)
		ereport(ERROR,
				(errcode(call.status == 400 || call.status == 401 ?
						 ERRCODE_MLINT_AUTHENTICATION : ERRCODE_MLINT_API),
				 errmsg("the login of Azure failed (status %d)", call.status),
				 errhint("Check tenant_id, client_id and client_secret, or whether the machine has a managed identity.")));
	token = azure_login_token(call.json, &seconds);
	if (token == NULL)
		api_strange(&call, "without a token");
	bearer = psprintf("Bearer %s", token);
	return api_confidential(bearer, strlen(bearer));
}
