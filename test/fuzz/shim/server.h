/*
 * server.h
 *		A server, as far as fuzzing needs one; see server.c.
 */
#ifndef FUZZ_SERVER_H
#define FUZZ_SERVER_H


/* Run it, and free all that it has palloc'd. False: it has raised an error. */
extern bool server_try(void (*step) (const uint8 *data, size_t size),
					   const uint8 *data, size_t size);
extern void server_forget(void);

#endif
