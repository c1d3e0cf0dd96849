/*
 * notify.c
 *		The notify driver: NOTIFY on a channel.
 *
 * A notification carries at most 8,000 bytes. An event that is longer goes
 * without data and metadata, and with "truncated": true; the listener finds
 * the rest in mlint.events.
 */
#include "postgres.h"

#include "commands/async.h"
#include "lib/stringinfo.h"
#include "utils/json.h"

#include "common/errors.h"
#include "delivery/driver.h"

/* async.c takes payloads shorter than NAMEDATALEN less than a block. */
#define PAYLOAD_MAX		7999

typedef struct NotifyOptions
{
	DeliveryOptions delivery;
	char	   *channel;
} NotifyOptions;

static const Option options[] = {
	{"channel", OPTION_TEXT, offsetof(NotifyOptions, channel),
		NULL, 0, 0, NULL, NULL, true,
	"channel to notify, as in LISTEN"},
	{NULL}
};

static void
notify_check(const void *opts, Oid owner)
{
	const NotifyOptions *o = opts;

	if (o->channel[0] == '\0' || strlen(o->channel) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"channel\" must be 1 to %d bytes long",
						NAMEDATALEN - 1)));
}

static void *
notify_open(const void *opts, Oid owner, HttpClient *http)
{
	return pstrdup(((const NotifyOptions *) opts)->channel);
}

static void
notify_close(void *state)
{
}

static void
notify_execute(void *channel, Attempt *attempt)
{
	const char *payload = attempt->body;
	StringInfoData buf;

	if (attempt->body_len > PAYLOAD_MAX)
	{
		initStringInfo(&buf);
		appendStringInfo(&buf, "{\"id\":" INT64_FORMAT ",\"type\":",
						 attempt->event->id);
		escape_json(&buf, attempt->event->type);
		appendStringInfoString(&buf, ",\"truncated\":true}");
		payload = buf.data;
	}
	Async_Notify(channel, payload);
}

const Driver notify_driver = {
	.name = "notify",
	.help = "sends a NOTIFY to those who LISTEN",
	.options = options,
	.options_size = sizeof(NotifyOptions),
	.check = notify_check,
	.open = notify_open,
	.close = notify_close,
	.execute = notify_execute,
};
