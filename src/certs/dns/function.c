/*
 * function.c
 *		Records that a function of the user's makes.
 *
 * It is told the name of the record, the zone and the value, and how to do it is
 * its own business: any service that mlint.http() reaches, a table that a name
 * server of PowerDNS reads.
 */
#include "postgres.h"

#include "certs/challenge_function.h"
#include "certs/dns/kind.h"

#define OWNER_DID	"created the DNS provider"

typedef struct FunctionOptions
{
	DnsOptions	common;
	char	   *function;
} FunctionOptions;

static const Option function_options[] = {
	{"function", OPTION_FUNCTION, offsetof(FunctionOptions, function), NULL, 0,
		0, NULL, NULL, true,
	"function that makes and removes the record, schema.function: it takes one jsonb, with action (present or remove), record, zone, value, identifier and token"},
	{NULL}
};

static void
function_check(const void *options, Oid owner, const char *what)
{
	const FunctionOptions *o = options;

	challenge_function_check(o->function, owner, "function", OWNER_DID);
}

static void
call(const FunctionOptions *o, Oid owner, const DnsRecord *record,
	 const char *action)
{
	ChallengeCall told = {
		.action = action,
		.type = "dns-01",
		.identifier = record->identifier,
		.token = record->token,
		.record = record->name,
		.zone = record->zone,
		.value = record->value
	};

	challenge_function_call(o->function, owner, "function", OWNER_DID, &told,
							o->common.timeout_ms);
}

static Jsonb *
function_present(const void *options, Oid owner, const DnsRecord *record)
{
	call(options, owner, record, "present");
	return NULL;
}

static void
function_remove(const void *options, Oid owner, const DnsRecord *record)
{
	call(options, owner, record, "remove");
}

const DnsKind dns_function = {
	.base = {
		.name = "function",
		.help = "A function of yours",
		.options = function_options,
		.options_size = sizeof(FunctionOptions),
		.runs_sql = true
	},
	.check = function_check,
	.present = function_present,
	.remove = function_remove,
};
