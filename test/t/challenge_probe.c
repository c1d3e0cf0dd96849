/*
 * challenge_probe.c
 *		Puts http-01 challenges where the gateway finds them, without an order
 *		at an authority; for 167_gateway.pl and bench/gateway.sh.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "certs/http_challenge.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(challenge_show);
PG_FUNCTION_INFO_V1(challenge_hide);

Datum
challenge_show(PG_FUNCTION_ARGS)
{
	http_challenge_show(text_to_cstring(PG_GETARG_TEXT_PP(0)),
						text_to_cstring(PG_GETARG_TEXT_PP(1)),
						PG_GETARG_TIMESTAMPTZ(2));
	PG_RETURN_VOID();
}

Datum
challenge_hide(PG_FUNCTION_ARGS)
{
	http_challenge_hide(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}
