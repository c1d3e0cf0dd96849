/*
 * price.c
 *		model_price_set(): what tokens cost.
 *
 * Prices are only ever added. What was reported before a price was set is
 * never priced by it, whatever its valid_from, and what is reported after that
 * is not folded before the price is committed; so that it does not matter when a
 * report is folded.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "common/argument.h"
#include "common/audit.h"
#include "common/owner.h"
#include "usage/usage.h"
#include "usage/usagelog.h"

PG_FUNCTION_INFO_V1(mlint_model_price_set);

#define VERSION_MAX_BYTES	255
#define PRICE_DIGITS_MAX	40

/* The arguments, in their order. */
enum
{
	MODEL_ID, PROMPT, COMPLETION, CURRENCY, PER, VALID_FROM, VERSION
};

/* The price as text. */
static char *
price_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	char	   *digits;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
	digits = DatumGetCString(DirectFunctionCall1(numeric_out,
												 PG_GETARG_DATUM(n)));
	/* That lets NaN, infinity and signs through no more than a flood. */
	if (strlen(digits) > PRICE_DIGITS_MAX ||
		strspn(digits, "0123456789.") != strlen(digits))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("%s must be a price, zero or more, of at most %d digits",
						what, PRICE_DIGITS_MAX)));
	return digits;
}

/* A power of ten, so that the price of one token is exact. */
static int32
per_argument(FunctionCallInfo fcinfo)
{
	int32		per = PG_ARGISNULL(PER) ? 0 : PG_GETARG_INT32(PER);
	int32		rest = per;

	while (rest > 1 && rest % 10 == 0)
		rest /= 10;
	if (rest != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("per must be a power of ten"),
				 errhint("It is the number of tokens that the price is for: 1, 1000 or 1000000.")));
	return per;
}

/*
 * mlint.model_price_set(model_id, prompt, completion, currency, per,
 * valid_from, model_version)
 */
Datum
mlint_model_price_set(PG_FUNCTION_ARGS)
{
	char	   *model_id = required_text(fcinfo, MODEL_ID, "model_id");
	char	   *prompt = price_argument(fcinfo, PROMPT, "prompt");
	char	   *completion = price_argument(fcinfo, COMPLETION, "completion");
	char	   *currency = required_text(fcinfo, CURRENCY, "currency");
	int32		per = per_argument(fcinfo);
	char	   *version = PG_ARGISNULL(VERSION) ? "" :
	text_to_cstring(PG_GETARG_TEXT_PP(VERSION));
	TimestampTz valid_from = PG_ARGISNULL(VALID_FROM) ?
	GetCurrentTransactionStartTimestamp() :
	PG_GETARG_TIMESTAMPTZ(VALID_FROM);
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID,
	NUMERICOID, NUMERICOID, INT4OID, TEXTOID};
	Datum		values[8];
	StringInfoData details;
	OwnerScope	owner;

	require_writable(fcinfo);
	usage_check_name(model_id, "model_id");
	usage_check_currency(currency);
	if (strlen(version) > VERSION_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("model_version must be at most %d bytes long",
						VERSION_MAX_BYTES)));
	if (TIMESTAMP_NOT_FINITE(valid_from))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("valid_from must be a finite time")));

	values[0] = CStringGetTextDatum(model_id);
	values[1] = CStringGetTextDatum(version);
	values[2] = CStringGetTextDatum(currency);
	values[3] = TimestampTzGetDatum(valid_from);
	values[4] = PG_GETARG_DATUM(PROMPT);
	values[5] = PG_GETARG_DATUM(COMPLETION);
	values[6] = Int32GetDatum(per);
	values[7] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	owner_begin(&owner);
	/* No fold from here to the commit. */
	owner_run(NULL, "SELECT FROM mlint.usage_fold FOR UPDATE",
			  SPI_OK_SELECT, 0, NULL, NULL, NULL);
	owner_run(NULL, "INSERT INTO mlint.usage_price (model_id,"
			  " model_version, currency, valid_from, set_at,"
			  " prompt, completion, per, set_by)"
			  " VALUES ($1, $2, $3, $4,"
			  " pg_catalog.clock_timestamp(), $5, $6, $7, $8)",
			  SPI_OK_INSERT, 8, types, values, NULL);
	owner_end(&owner);

	initStringInfo(&details);
	appendStringInfo(&details, "{\"prompt\": %s, \"completion\": %s, \"currency\": \"%s\", \"per\": %d, \"model_version\": ",
					 prompt, completion, currency, per);
	escape_json(&details, version);
	appendStringInfoChar(&details, '}');
	audit(AUDIT_CHANGED, "model_price.set", "model", model_id, details.data);
	PG_RETURN_VOID();
}
