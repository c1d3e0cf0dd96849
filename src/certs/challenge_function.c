/*
 * challenge_function.c
 *		A function of the user's that shows what the authority looks for.
 *
 * It takes one jsonb and what it returns is not looked at: that it returns says
 * that it is done. What it changes in this database commits with the state of
 * the challenge. It may be called again with the same.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/challenge_function.h"
#include "common/userfunction.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"

static const Oid arguments[] = {JSONBOID};

static UserFunctionKind
kind_of(const char *owner_did)
{
	return (UserFunctionKind)
	{
		.nargs = 1,
			.types = arguments,
			.shown = "jsonb",
			.takes = "one argument of type jsonb, the challenge",
			.owner_did = owner_did
	};
}

void
challenge_function_check(const char *function, Oid owner, const char *what,
						 const char *owner_did)
{
	UserFunctionKind kind = kind_of(owner_did);

	(void) user_function(function, &kind, InvalidOid, owner, what, false);
}

static void
append(StringInfo out, const char *key, const char *value)
{
	if (value == NULL)
		return;
	appendStringInfo(out, "%s\"%s\": ", out->len > 1 ? ", " : "", key);
	escape_json(out, value);
}

void
challenge_function_call(const char *function, Oid owner, const char *what,
						const char *owner_did, const ChallengeCall *call,
						int timeout_ms)
{
	UserFunctionKind kind = kind_of(owner_did);
	Oid			oid = user_function(function, &kind, InvalidOid, owner, what,
									false);
	StringInfoData text;
	Datum		argument;
	bool		isnull;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	append(&text, "action", call->action);
	append(&text, "type", call->type);
	append(&text, "identifier", call->identifier);
	append(&text, "token", call->token);
	append(&text, "record", call->record);
	append(&text, "zone", call->zone);
	append(&text, "value", call->value);
	appendStringInfoChar(&text, '}');
	argument = DirectFunctionCall1(jsonb_in, CStringGetDatum(text.data));
	(void) user_function_call(oid, &kind, owner, &argument, timeout_ms,
							  &isnull);
}
