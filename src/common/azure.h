/*
 * azure.h
 *		Logging in to Azure (Microsoft Entra ID), for whatever speaks to it.
 *
 * As a client with a secret, or, where none is given, as the managed identity of
 * the machine.
 */
#ifndef MLINT_AZURE_H
#define MLINT_AZURE_H

#include "common/api.h"
#include "common/option.h"

/* Embedded in the options of a kind. */
typedef struct AzureLogin
{
	char	   *tenant_id;
	char	   *client_id;
	Credential	client_secret;
	char	   *authority;
	char	   *identity_endpoint;
} AzureLogin;

/* The rows of a table for an AzureLogin at this member of a struct. */
#define AZURE_LOGIN_OPTIONS(type, member) \
	{"tenant_id", OPTION_TEXT, offsetof(type, member.tenant_id), \
		NULL, 0, 0, NULL, NULL, false, \
		"tenant (directory) of the client"}, \
	{"client_id", OPTION_TEXT, offsetof(type, member.client_id), \
		NULL, 0, 0, NULL, NULL, false, \
		"client (application); of a managed identity, where the machine has several"}, \
	{"client_secret", OPTION_CREDENTIAL, offsetof(type, member.client_secret), \
		NULL, 0, 0, NULL, NULL, false, \
		"secret of the client; if not given we are the machine's managed identity"}, \
	{"authority", OPTION_URL, offsetof(type, member.authority), \
		"https://login.microsoftonline.com", 0, 0, NULL, NULL, false, \
		"where clients log in"}, \
	{"identity_endpoint", OPTION_URL, offsetof(type, member.identity_endpoint), \
		NULL, 0, 0, NULL, NULL, false, \
		"URL that gives out tokens of the managed identity, other than a virtual machine's own"}

/*
 * What the table cannot say. Returns whether we are the machine's managed
 * identity, which is the server's operating-system user's to lend.
 */
extern bool azure_login_check(const AzureLogin *login, const char *what);

/* The same, raising unless the role may lend the machine's identity. */
extern void azure_login_permit(const AzureLogin *login, Oid role,
							   const char *what);

/* The request for a token: secret is the client's, or NULL. */
typedef struct AzureLoginRequest
{
	char	   *url;
	struct curl_slist *headers;
	char	   *body;			/* NULL: none; confidential */
	bool		metadata;		/* see HttpTarget */
} AzureLoginRequest;

extern void azure_login_request(const AzureLogin *login, const char *resource,
								const char *secret,
								AzureLoginRequest *request);

/* What came back: the token and for how long it is good; NULL: there is none. */
extern const char *azure_login_token(const json_t *answer, long *seconds);

/* Log in, and return the header's value, "Bearer ...", wiped with the context. */
extern char *azure_login(const AzureLogin *login, const char *resource,
						 const char *ca, int timeout_ms);

#endif
