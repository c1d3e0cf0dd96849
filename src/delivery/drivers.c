/*
 * drivers.c
 *		Which drivers there are, their options, and functions of the user's.
 *
 * A destination's options are those of its driver and those that every
 * destination has; both are tables, parsed into one struct that begins with a
 * DeliveryOptions.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "common/errors.h"
#include "common/role.h"
#include "common/userfunction.h"
#include "delivery/driver.h"
#include "ratelimit/ratelimit.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_driver_options);

const Driver *const drivers[] = {
	&http_driver, &slack_driver, &discord_driver, &function_driver,
	&notify_driver, NULL
};

static const Option retry_options[] = {
	RETRY_OPTIONS(DeliveryOptions, retry)
};

static const Option breaker_options[] = {
	BREAKER_OPTIONS(DeliveryOptions, breaker)
};

static const Option delivery_options[] = {
	{"max_in_flight", OPTION_INT, offsetof(DeliveryOptions, max_in_flight),
		"32", 1, WORKER_MAX_IN_FLIGHT, NULL, NULL, false,
	"deliveries to this destination at the same time"},
	{"ordered", OPTION_BOOL, offsetof(DeliveryOptions, ordered),
		"false", 0, 0, NULL, NULL, false,
	"one at a time, in the order of publishing; a retry holds up the rest"},
	{"transform", OPTION_FUNCTION, offsetof(DeliveryOptions, transform),
		NULL, 0, 0, NULL, NULL, false,
	"function (jsonb) returns jsonb that makes the body from the event"},
	{"rate_rule", OPTION_TEXT, offsetof(DeliveryOptions, rate_rule),
		NULL, 0, 0, NULL, NULL, false,
	"rate limit that deliveries to this destination keep to, one token each"},
	{"rate_identifier", OPTION_TEXT,
		offsetof(DeliveryOptions, rate_identifier), NULL, 0, 0, NULL, NULL, false,
	"whom the limit counts; by default the destination, by its name"},
	{"retry", OPTION_GROUP, 0, NULL, 0, 0, NULL, retry_options, false,
	"when a failed delivery is tried again"},
	{"breaker", OPTION_GROUP, 0, NULL, 0, 0, NULL, breaker_options, false,
	"when a failing destination is left alone"},
	{NULL}
};

const Driver *
driver_find(const char *name)
{
	for (int i = 0; drivers[i]; i++)
	{
		if (strcmp(drivers[i]->name, name) == 0)
			return drivers[i];
	}
	return NULL;
}

void *
driver_parse_options(const Driver *driver, Jsonb *options,
					 const char *destination)
{
	const Option *const tables[] = {driver->options, delivery_options};
	void	   *parsed = palloc0(driver->options_size);

	option_parse(tables, lengthof(tables), options,
				 psprintf("destination \"%s\"", destination), parsed);
	return parsed;
}

bool
driver_runs_sql(const Driver *driver, const void *options)
{
	return driver->execute != NULL ||
		((const DeliveryOptions *) options)->transform != NULL;
}

static const Oid event_argument[] = {JSONBOID};

/* What functions that options of a destination name are like. */
static const UserFunctionKind event_function = {
	.nargs = 1,
	.types = event_argument,
	.shown = "jsonb",
	.takes = "one argument of type jsonb, the event",
	.owner_did = "created the destination"
};

static void
check_rate_rule(const DeliveryOptions *options, const char *destination)
{
	if (options->rate_rule)
		rate_rule_check_for_worker(options->rate_rule,
								   psprintf("option \"rate_rule\" of destination \"%s\"",
											destination));
	else if (options->rate_identifier)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("destination \"%s\" has a rate_identifier, but no rate_rule",
						destination)));
}

void
driver_check_rights(const Driver *driver, const void *options, Oid owner,
					const char *destination)
{
	const Option *const tables[] = {driver->options, delivery_options};
	const DeliveryOptions *common = options;

	role_require(owner, event_function.owner_did);
	option_check_credentials(tables, lengthof(tables), options, owner,
							 psprintf("destination \"%s\"", destination));
	if (common->transform)
		(void) driver_function(common->transform, JSONBOID, owner,
							   "transform");
	if (driver->check)
		driver->check(options, owner);
}

void
driver_check(const Driver *driver, const void *options, Oid owner,
			 const char *destination)
{
	driver_check_rights(driver, options, owner, destination);
	check_rate_rule(options, destination);
}

Oid
driver_function(const char *name, Oid result, Oid owner, const char *what)
{
	return user_function(name, &event_function, result, owner, what, false);
}

char *
driver_call_function(const char *name, Oid result, Oid owner, const char *what,
					 const char *json, int timeout_ms)
{
	Oid			function = driver_function(name, result, owner, what);
	Datum		event = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));
	bool		isnull;
	Datum		value = user_function_call(function, &event_function, owner,
										   &event, timeout_ms, &isnull);

	if (isnull || result != JSONBOID)
		return NULL;
	return DatumGetCString(DirectFunctionCall1(jsonb_out, value));
}

/* ---- mlint.driver_options() ---- */

Datum
mlint_driver_options(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; drivers[i]; i++)
	{
		option_rows(result, drivers[i]->name, drivers[i]->options);
		option_rows(result, drivers[i]->name, delivery_options);
	}
	return (Datum) 0;
}
