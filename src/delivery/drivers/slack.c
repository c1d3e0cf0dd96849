/*
 * slack.c
 *		The slack driver: messages to a Slack webhook.
 *
 * slack_message() and slack_alert() make events of its own types. Slack cuts a
 * section's text at 3,000 characters, so no more data is shown than fits.
 */
#include "postgres.h"

#include "delivery/drivers/chat.h"

static const ChatService service = {
	.own_types = "slack.",
	.field = "text",
	.before_type = "*",
	.before_data = "*\n```",
	.after_data = "```",
	.max_data = 2500,
	.escape_markup = true,
};

static void *
slack_open(const void *options, Oid owner, HttpClient *client)
{
	return chat_open(&service, options, client);
}

const Driver slack_driver = {
	.name = "slack",
	.help = "posts to a Slack webhook",
	.options = chat_options,
	.options_size = sizeof(ChatOptions),
	.open = slack_open,
	.close = chat_close,
	.submit = chat_submit,
};
