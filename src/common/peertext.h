/*
 * peertext.h
 *		Words of others in our messages, and our callers' words out of the log.
 */
#ifndef MLINT_PEERTEXT_H
#define MLINT_PEERTEXT_H

/*
 * Make bytes from outside, or text that was cut, valid in the database's
 * encoding, in place: a character cut at the end goes, and if that is not it,
 * every byte beyond ASCII becomes '?'. Never raises.
 */
extern void peer_text_clean(char *text);

/*
 * While a function looks at arguments that may hold credentials: an error
 * leaves neither the statement nor its context in the server's log. The pair
 * brackets the code in one function; an error in between needs no end.
 *
 * auto_explain would print bind parameters as constants of the plan, and is
 * switched off until the transaction ends.
 */
#define HIDE_STATEMENT_BEGIN() \
	ErrorContextCallback hidden_statement = { \
		.previous = error_context_stack, \
		.callback = hide_statement \
	}; \
	error_context_stack = &hidden_statement; \
	hide_plan()
#define HIDE_STATEMENT_END() \
	error_context_stack = hidden_statement.previous

extern void hide_statement(void *arg);
extern void hide_plan(void);

#endif
