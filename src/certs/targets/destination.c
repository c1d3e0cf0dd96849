/*
 * destination.c
 *		Certificates through the delivery log, to one destination.
 *
 * What is published is an event for that destination alone, in the transaction
 * that records the push, so once for each version; the log sees to the rest. It
 * carries the chain and the name of the secret that the key is in, never the
 * key.
 */
#include "postgres.h"

#include "certs/targets/kind.h"
#include "common/errors.h"
#include "delivery/delivery.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#define TYPE_MAX	255

typedef struct DestinationOptions
{
	TargetOptions common;
	char	   *destination;
	char	   *type;
} DestinationOptions;

#define AT(member) offsetof(DestinationOptions, member)

static const Option destination_options[] = {
	{"destination", OPTION_TEXT, AT(destination), NULL, 0, 0, NULL, NULL, true,
	"name of the destination"},
	{"type", OPTION_TEXT, AT(type), "certificate.pushed", 0, 0, NULL, NULL,
		false,
	"type of the event"},
	{NULL}
};

static void
destination_check(const void *options, Oid owner, const char *what)
{
	const DestinationOptions *o = options;

	if (o->type[0] == '\0' || strlen(o->type) > TYPE_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"type\" of %s must be the type of an event, 1 to %d bytes",
						what, TYPE_MAX)));
	(void) destination_id(o->destination, NULL);
}

static char *
destination_push(const void *options, Oid owner, const char *region,
				 const PushedCertificate *certificate, const char *key,
				 const char *reference)
{
	const DestinationOptions *o = options;
	int64		event = event_publish(o->type,
									  pushed_document(certificate, true),
									  DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
																		 CStringGetDatum("{}"))),
									  NULL, 0,
									  destination_id(o->destination, NULL));

	return psprintf("event " INT64_FORMAT, event);
}

const TargetKind target_destination = {
	.base = {
		.name = "destination",
		.help = "an event to a destination",
		.options = destination_options,
		.options_size = sizeof(DestinationOptions)
	},
	.check = destination_check,
	.push = destination_push,
};
