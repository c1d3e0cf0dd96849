/*
 * discord.c
 *		The discord driver: messages to a Discord webhook.
 *
 * discord_message() makes events of its own type. Discord takes 2,000
 * characters of content, so no more data is shown than fits.
 */
#include "postgres.h"

#include "delivery/drivers/chat.h"

static const ChatService service = {
	.own_types = "discord.",
	.field = "content",
	.before_type = "**",
	.before_data = "**\n```json\n",
	.after_data = "\n```",
	.max_data = 1600,
	.escape_markup = false,
};

static void *
discord_open(const void *options, Oid owner, HttpClient *client)
{
	return chat_open(&service, options, client);
}

const Driver discord_driver = {
	.name = "discord",
	.help = "posts to a Discord webhook",
	.options = chat_options,
	.options_size = sizeof(ChatOptions),
	.open = discord_open,
	.close = chat_close,
	.submit = chat_submit,
};
