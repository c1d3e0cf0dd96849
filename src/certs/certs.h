/*
 * certs.h
 *		Certificates: issued, renewed, pushed out and watched.
 *
 * A certificate (mlint.certificate) is what is wanted: names, an account, a
 * challenge. What was got are its versions (mlint.certificate_version), of
 * which one is in use. Between the two stands an order (mlint.acme_order) with
 * a challenge (mlint.acme_challenge) for each name. Each is a row whose state
 * says how far it is, and each step from state to state is a transaction of its
 * own, so that a crash leaves what the next run goes on from:
 *
 *	lifecycle.c	decides: when an order begins, what becomes of its end, when
 *				a certificate warns and expires
 *	acme/		talks to the certificate authority: job certificates
 *	solver.c	shows what the authority looks for: job certificate_challenges;
 *				http-01 through the gateway needs no job (http_challenge.h)
 *	dns/		where records are made
 *	targets/	takes certificates to where they are used, and looks whether
 *				they are: jobs certificate_targets, certificate_watches
 */
#ifndef MLINT_CERTS_H
#define MLINT_CERTS_H

#include "datatype/timestamp.h"
#include "secrets/secrets.h"
#include "utils/uuid.h"

/*
 * Directory (mlint.certificate_directory) below which the targets and the
 * solver of kind "file" write; "" when there is none.
 */
extern char *certificate_directory;

/* Settings, shared memory, the gateway's route. Called once by _PG_init. */
extern void certs_init(void);

#define CERTIFICATE_JOB				"certificates"
#define CERTIFICATE_CHALLENGE_JOB	"certificate_challenges"
#define CERTIFICATE_TARGET_JOB		"certificate_targets"
#define CERTIFICATE_WATCH_JOB		"certificate_watches"

/* ---- lifecycle.c: for the job that talks to the authority ---- */

/*
 * Begin the orders that are due, as far as the limits of their accounts allow
 * (max_orders, not_before): rows of mlint.acme_order in state 'new'. What must
 * wait stays due. In the caller's transaction; false: there may be more.
 */
extern bool certificate_orders_begin(void);

/*
 * When certificate_orders_begin() has something to do next: a certificate is
 * due, or an account that some wait for has room. DT_NOEND: nothing will be.
 */
extern TimestampTz certificate_orders_next(void);

/*
 * The private key for an order: a new one, or that of the certificate in use
 * if it is to be kept. It is a version of the certificate's secret that is not
 * current yet, and its number goes into the order's row; called again, it is
 * the same. The caller wipes it. In the caller's transaction.
 */
extern void certificate_order_key(int64 order, SecretValue *key);

/*
 * The authority has issued: this is the chain (PEM, as it came). Ends the
 * order. Verifies that the chain builds, that the names are those asked for and
 * the key is ours; then the chain is the next version, and in use at once
 * unless a target must have it first. One that does not verify ends the order
 * as failed. In the caller's transaction.
 */
extern void certificate_order_issued(int64 order, const char *chain);

/*
 * The order has failed, or cannot be gone on with. Ends it; the certificate
 * keeps the version that it has, and another order begins after a delay that
 * grows, and after retry_after (seconds; -1: not said). problem is the type of
 * the problem document without "urn:ietf:params:acme:error:", or NULL.
 */
extern void certificate_order_failed(int64 order, const char *problem,
									 const char *error, int retry_after);

/* The authority suggests to renew between these (RFC 9773), and to ask again
 * after so many seconds; start 0: it suggests nothing. */
extern void certificate_renewal_suggested(int64 version, TimestampTz start,
										  TimestampTz end, const char *url,
										  int retry_after);

extern void certificate_revoked(int64 version);

/* ---- lifecycle.c: for the job that pushes ---- */

/* All targets that must have it first have it: now it is in use. */
extern void certificate_activate(const pg_uuid_t *certificate);

/*
 * A target that must have it first cannot get it, for now. It goes on being
 * tried; the certificate says why it is not in use.
 */
extern void certificate_push_failed(const pg_uuid_t *certificate,
									const char *error);

#endif
