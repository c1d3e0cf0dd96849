/*
 * solver.c
 *		Who shows what the authority looks for; see solver.h.
 *
 * What is written down of a record of DNS is its name and its zone, since where
 * aliases lead may be another place when it is to be removed, and what the kind
 * of provider has to say of it: {"record", "zone", "by"}.
 */
#include "postgres.h"

#include "certs/challenge_file.h"
#include "certs/challenge_function.h"
#include "certs/dns/dns.h"
#include "certs/dns/made.h"
#include "certs/dns/record.h"
#include "certs/solver.h"
#include "common/errors.h"

#define FILE_PREFIX			"file:"
#define FUNCTION_PREFIX		"function:"
#define OWNER_DID			"created the certificate"
#define FUNCTION_TIMEOUT_MS	30000

/* What follows a prefix; NULL: the text does not begin with it. */
static const char *
after_prefix(const char *text, const char *prefix)
{
	size_t		len = strlen(prefix);

	return strncmp(text, prefix, len) == 0 ? text +len : NULL;
}

char *
solver_check(const char *challenge, const char *solver, Oid role)
{
	const char *rest;

	if (strcmp(challenge, "dns-01") == 0)
	{
		if (solver == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("a challenge of type dns-01 needs a solver"),
					 errhint("It is the name of a DNS provider; mlint.dns_provider_create() makes one, and the view mlint.dns_providers lists them.")));
		dns_provider_require(solver);
		return pstrdup(solver);
	}
	if (solver == NULL || strcmp(solver, "gateway") == 0)
		return NULL;
	if ((rest = after_prefix(solver, FILE_PREFIX)) != NULL)
		challenge_file_check(rest);
	else if ((rest = after_prefix(solver, FUNCTION_PREFIX)) != NULL)
		challenge_function_check(rest, role, "solver", OWNER_DID);
	else
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("there is no solver \"%s\" for challenges of type http-01",
						solver),
				 errhint("Solvers are gateway, file:<directory> and function:<schema.function>.")));
	return pstrdup(solver);
}

/* The record as it was written down; false: nothing was. */
static bool
record_of(const Solving *s, DnsRecord *record)
{
	memset(record, 0, sizeof(*record));
	record->name = made_text(s->made, "record");
	record->zone = made_text(s->made, "zone");
	record->identifier = s->identifier;
	record->token = s->token;
	record->value = s->value;
	record->made = made_object(s->made, "by");
	return record->name && record->zone;
}

/* ---- http-01 ---- */

static void
show_http(const Solving *s, const char *action)
{
	const char *rest;
	ChallengeCall call = {
		.action = action,
		.type = s->type,
		.identifier = s->identifier,
		.token = s->token,
		.value = s->value
	};

	if ((rest = after_prefix(s->solver, FUNCTION_PREFIX)) != NULL)
		challenge_function_call(rest, s->owner, "solver", OWNER_DID, &call,
								FUNCTION_TIMEOUT_MS);
	else if ((rest = after_prefix(s->solver, FILE_PREFIX)) == NULL)
		elog(ERROR, "there is no solver \"%s\"", s->solver);
	else if (strcmp(action, "present") == 0)
		challenge_file_write(rest, s->token, s->value);
	else
		challenge_file_remove(rest, s->token);
}

/* ---- the verbs ---- */

bool
solver_is_dns(const Solving *s)
{
	return strcmp(s->type, "dns-01") == 0;
}

Jsonb *
solver_locate(const Solving *s)
{
	DnsProvider provider;
	char	   *record;
	char	   *zone;

	if (!solver_is_dns(s))
		return made_of("solver", s->solver, NULL);
	dns_provider_open(s->solver, &provider);
	dns_record_locate(provider.options, s->identifier, &record, &zone);
	return made_of("record", record, "zone", zone, NULL);
}

Jsonb *
solver_present(const Solving *s)
{
	DnsProvider provider;
	DnsRecord	record;

	if (!solver_is_dns(s))
	{
		show_http(s, "present");
		return s->made;
	}
	if (!record_of(s, &record))
		elog(ERROR, "a challenge's record was not located");
	dns_provider_open(s->solver, &provider);
	return made_with(made_of("record", record.name, "zone", record.zone, NULL),
					 "by", provider.kind->present(provider.options,
												  provider.owner, &record));
}

bool
solver_shows(const Solving *s, char **waiting, int *patience_s)
{
	DnsProvider provider;
	DnsRecord	record;

	*waiting = NULL;
	*patience_s = 0;
	if (!solver_is_dns(s) || !record_of(s, &record))
		return true;
	dns_provider_open(s->solver, &provider);
	*patience_s = provider.options->propagation_timeout_s;
	return dns_provider_shows(&provider, &record, waiting);
}

void
solver_remove(const Solving *s)
{
	DnsProvider provider;
	DnsRecord	record;

	if (!solver_is_dns(s))
		show_http(s, "remove");
	else if (record_of(s, &record))
	{
		dns_provider_open(s->solver, &provider);
		provider.kind->remove(provider.options, provider.owner, &record);
	}
}
