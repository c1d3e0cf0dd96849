/*
 * function.c
 *		The function driver: calls fn(event jsonb) inside the database.
 *
 * The call, and the record that the delivery is done, are one transaction:
 * what the function does to tables happens exactly once. It runs as the role
 * that created the destination, in a security-restricted operation.
 */
#include "postgres.h"

#include "utils/jsonb.h"

#include "delivery/driver.h"

typedef struct FunctionOptions
{
	DeliveryOptions delivery;
	char	   *fn;
	int			timeout_ms;
} FunctionOptions;

typedef struct FunctionState
{
	const char *fn;
	Oid			owner;
	int			timeout_ms;
} FunctionState;

static const Option options[] = {
	{"fn", OPTION_FUNCTION, offsetof(FunctionOptions, fn),
		NULL, 0, 0, NULL, NULL, true,
	"function (jsonb) that is called with the event"},
	{"timeout_ms", OPTION_INT, offsetof(FunctionOptions, timeout_ms),
		"30000", 1, 3600000, NULL, NULL, false,
	"milliseconds that a call may take"},
	{NULL}
};

static void
function_check(const void *opts, Oid owner)
{
	(void) driver_function(((const FunctionOptions *) opts)->fn, InvalidOid,
						   owner, "fn");
}

static void *
function_open(const void *opts, Oid owner, HttpClient *http)
{
	const FunctionOptions *o = opts;
	FunctionState *state = palloc(sizeof(FunctionState));

	state->fn = o->fn;
	state->owner = owner;
	state->timeout_ms = o->timeout_ms;
	return state;
}

static void
function_close(void *state)
{
}

static void
function_execute(void *arg, Attempt *attempt)
{
	FunctionState *state = arg;

	(void) driver_call_function(state->fn, InvalidOid, state->owner, "fn",
								attempt->body, state->timeout_ms);
}

const Driver function_driver = {
	.name = "function",
	.help = "calls a function in this database, exactly once",
	.options = options,
	.options_size = sizeof(FunctionOptions),
	.check = function_check,
	.open = function_open,
	.close = function_close,
	.execute = function_execute,
};
