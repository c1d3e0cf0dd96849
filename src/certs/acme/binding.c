/*
 * binding.c
 *		External account bindings; see binding.h.
 *
 * The key comes as authorities give it out, base64url, and lives in memory for
 * the length of a signature.
 */
#include "postgres.h"

#include "certs/acme/binding.h"
#include "common/credential.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/option.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#define KID_MAX		1024
/* RFC 7518, 3.2 wants 32 bytes; authorities have given out less. */
#define HMAC_MIN	16

typedef struct Binding
{
	char	   *kid;
	Credential	hmac;
} Binding;

static const Option binding_options[] = {
	{"kid", OPTION_TEXT, offsetof(Binding, kid), NULL, 0, 0, NULL, NULL, true,
	"identifier of the key, as the authority gives it"},
	{"hmac", OPTION_CREDENTIAL, offsetof(Binding, hmac), NULL, 0, 0, NULL, NULL,
	true, "the key, base64url"},
	{NULL}
};

static Binding
parse(Jsonb *eab, const char *what)
{
	const Option *table = binding_options;
	Binding		binding;

	if (!JB_ROOT_IS_OBJECT(eab))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("eab of %s must be an object", what),
				 errhint("Write {\"kid\": \"...\", \"hmac\": {\"secret\": \"name\"}}, with the key stored by mlint.secret_put().")));
	option_parse(&table, 1, eab, psprintf("eab of %s", what), &binding);
	if (binding.kid == NULL || binding.kid[0] == '\0' ||
		strlen(binding.kid) > KID_MAX || binding.hmac.kind == CREDENTIAL_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("eab of %s must have a \"kid\" and an \"hmac\"", what),
				 errhint("Write {\"kid\": \"...\", \"hmac\": {\"secret\": \"name\"}}, with the key stored by mlint.secret_put().")));
	return binding;
}

void
binding_check(Jsonb *eab, Oid role, const char *what)
{
	const Option *table = binding_options;
	Binding		binding = parse(eab, what);

	option_check_credentials(&table, 1, &binding, role,
							 psprintf("eab of %s", what));
}

char *
binding_sign(const char *eab, const JwsKey *key, const char *url)
{
	Binding		binding = parse(DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
																   CStringGetDatum(eab))), "the account");
	size_t		len;
	char	   *text = credential_resolve(&binding.hmac, &len);
	size_t		hmac_len = 0;
	uint8	   *hmac = strlen(text) == len ? jws_unbase64url(text, &hmac_len) : NULL;
	char	   *jws = NULL;

	crypto_wipe(text, len);
	if (hmac && hmac_len >= HMAC_MIN)
		jws = jws_binding(key, binding.kid, hmac, hmac_len, url);
	if (hmac)
		crypto_wipe(hmac, hmac_len);
	if (jws == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the key of the external account binding is not base64url"),
				 errdetail("It must be at least %d bytes, as the authority gives it out.",
						   HMAC_MIN)));
	return jws;
}
