/*
 * injection.h
 *		Places where a test may make the process die, fail or stop.
 *
 * INJECTION("rotation-after-apply") does nothing, and is nothing, unless mlint
 * was built with `make MLINT_INJECTION=1`. Then it looks for a file
 * mlint_injection.rotation-after-apply in the data directory, whose first word
 * says what happens:
 *
 *	kill	SIGKILL to this process: a crash, and the server's recovery
 *	error	an ERROR
 *	wait	until the file is gone; interrupts are honoured
 *
 * The file is removed before kill and error, so that each strikes once.
 * PostgreSQL's own INJECTION_POINT would do, but is not in 15 and 16.
 */
#ifndef MLINT_INJECTION_H
#define MLINT_INJECTION_H

#ifdef MLINT_INJECTION_POINTS
extern void injection_run(const char *name);
#define INJECTION(name)		injection_run(name)
#else
#define INJECTION(name)		((void) 0)
#endif

#endif
