/*
 * solver.h
 *		Who shows what the authority looks for.
 *
 * A certificate names its solver in one text:
 *
 *	http-01		"gateway" or null, "file:<directory>" (a webroot, below
 *				mlint.certificate_directory), "function:<schema.name>"
 *	dns-01		the name of a DNS provider
 *
 * A function takes one jsonb and returns anything: {"action": "present" or
 * "remove", "type", "identifier", "token", "record", "value"}, as they are
 * known; record is the name of a TXT record (dns-01). It is called as the role
 * that created the certificate (or the provider), and may be called again with
 * the same.
 */
#ifndef MLINT_CERTS_SOLVER_H
#define MLINT_CERTS_SOLVER_H

#include "utils/jsonb.h"

/*
 * Is this a solver that the role may use for challenges of this type? Raises
 * what is wrong. Returns the text as it is to be stored; NULL: the gateway.
 */
extern char *solver_check(const char *challenge, const char *solver, Oid role);

/* ---- for the job: each raises what goes wrong, and may be repeated ---- */

typedef struct Solving
{
	const char *type;
	const char *identifier;
	const char *token;
	const char *value;
	const char *solver;			/* not the gateway */
	Oid			owner;			/* of the certificate */
	Jsonb	   *made;			/* NULL before solver_locate() */
} Solving;

/* Is it a record of DNS, by a provider? */
extern bool solver_is_dns(const Solving *s);

/* Where it is to be shown, to be written down before it is: an object. */
extern Jsonb *solver_locate(const Solving *s);

/* Show it. Returns what is to be written down in place of "made". */
extern Jsonb *solver_present(const Solving *s);

/*
 * Can the authority see it? If not, *waiting says what is missing, and
 * *patience_s how long after showing it that may be so.
 */
extern bool solver_shows(const Solving *s, char **waiting, int *patience_s);

/* Take it away, whether or not it is there. */
extern void solver_remove(const Solving *s);

#endif
