/*
 * chat.h
 *		What the drivers of chat services share.
 *
 * A chat service has a webhook whose URL is the credential. Events of the
 * service's own types carry a message as the service takes it; of any other
 * event a short text is made from its type and data.
 */
#ifndef MLINT_CHAT_H
#define MLINT_CHAT_H

#include "delivery/driver.h"

typedef struct ChatService
{
	const char *own_types;		/* prefix of its own event types */
	const char *field;			/* of the message's text */
	const char *before_type;
	const char *before_data;
	const char *after_data;
	int			max_data;		/* characters of data shown */
	bool		escape_markup;	/* & < > as entities */
} ChatService;

typedef struct ChatOptions
{
	DeliveryOptions delivery;
	Credential	url;
	int			timeout_ms;
} ChatOptions;

typedef struct ChatState
{
	const ChatService *service;
	HttpSender *sender;
} ChatState;

extern const Option chat_options[];
extern ChatState *chat_open(const ChatService *service,
							const ChatOptions *options, HttpClient *client);
extern void chat_close(void *state);
extern void chat_submit(void *state, Attempt *attempt);

#endif
