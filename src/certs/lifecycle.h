/*
 * lifecycle.h
 *		A certificate's row and its versions, between the files that take a
 *		certificate through its life.
 *
 *	certificate.c	the row: locking it, its state, its events
 *	version.c		what was issued: rows, keys
 *	renewal.c		when: the arithmetic of renewals and of failures
 *	orders.c		begins orders, within the limits of accounts
 *	lifecycle.c		what becomes of an order's end, and of what is pushed
 *	issue.c, import.c, change.c, wait.c		what SQL calls
 *	expiry.c		what comes by itself with time
 */
#ifndef MLINT_CERTS_LIFECYCLE_H
#define MLINT_CERTS_LIFECYCLE_H

#include "certs/certs.h"
#include "certs/x509.h"
#include "common/audit.h"
#include "common/compat.h"
#include "utils/array.h"

/* ---- certificate.c ---- */

/* In the order in which the essay of lifecycle.c tells of them. */
typedef enum CertificateState
{
	CERTIFICATE_REQUESTED,
	CERTIFICATE_ISSUING,
	CERTIFICATE_ISSUED,
	CERTIFICATE_ACTIVE,
	CERTIFICATE_RENEWING,
	CERTIFICATE_FAILED,
	CERTIFICATE_REVOKED,
	CERTIFICATE_EXPIRED
} CertificateState;

extern const char *const certificate_states[];

/* A row of mlint.certificate, palloc'd in the context of whoever asked. */
typedef struct Certificate
{
	pg_uuid_t	id;
	char	   *name;
	ArrayType  *domains;
	int			account;		/* 0: imported */
	char	   *key_type;
	bool		auto_renew;
	bool		reuse_key;
	double		renew_before_s; /* -1: not said */
	CertificateState state;
	char	   *key_secret;
	int64		version;		/* 0: none */
	int64		next_version;
	int			attempts;
	char	   *error;
	Oid			created_by;
	/* Of the version in use. */
	bool		revoked;
	TimestampTz not_after;
} Certificate;

/* Lock the row and read it; false: there is none. */
extern bool certificate_lock(const pg_uuid_t *id, Certificate *c);

/* Raise that there is no such certificate. */
extern void pg_attribute_noreturn() certificate_unknown(const pg_uuid_t *id);

/* The state without an order under way. */
extern CertificateState certificate_rest(const Certificate *c);

/* Go on to a state, audited; details (JSON, or NULL) are the entry's. */
extern void certificate_enter(Certificate *c, CertificateState state,
							  const char *details);

/*
 * Publish an event about a certificate. version 0: the one in use; more is an
 * object whose members go along, or NULL.
 */
extern void certificate_publish(const Certificate *c, const char *type,
								int64 version, const char *more);

/* {"error": ...}, for audit entries and events; cut to what goes into both. */
extern char *certificate_error_json(const char *error);

/* The uuid as text. */
extern char *certificate_id_text(const pg_uuid_t *id);

/* Is there an order under way? */
extern bool certificate_ordered(const Certificate *c);

/* ---- version.c ---- */

typedef struct CertificateVersion
{
	int64		id;
	pg_uuid_t	certificate;
	int			key_version;
	bool		key_compromised;
	int			revoke_reason;	/* -1: none is asked for */
	TimestampTz not_before;
	TimestampTz not_after;
	TimestampTz issued_at;
	TimestampTz before_issued_at;	/* of the version before; DT_NOBEGIN */
	TimestampTz ari_start;		/* 0: no window was suggested */
	TimestampTz ari_end;
} CertificateVersion;

extern bool version_read(int64 id, CertificateVersion *v);
extern int64 version_insert(const Certificate *c, const Chain *chain,
							int key_version);

/* Store a key as a version of the certificate's secret, not current yet. */
extern int	version_store_key(const char *secret, const char *name,
							  const char *key, Oid owner);

/* Destroy the key of an order that came to nothing, unless it is used. */
extern void version_discard_key(const Certificate *c, int key_version);

/* ---- renewal.c ---- */

/* When to renew, of itself; each call draws another moment of a span. */
extern TimestampTz renewal_time(const CertificateVersion *v,
								double renew_before_s);

/* When to try again after so many failures. */
extern TimestampTz renewal_retry_time(int attempts, TimestampTz not_after,
									  int retry_after_s);

/* Write down when a certificate is renewed, as its newest version says. */
extern void renewal_schedule(const Certificate *c,
							 const CertificateVersion *v);

/* ---- lifecycle.c ---- */

/*
 * A version has come: it waits for the targets that must have it first, or is
 * in use at once.
 */
extern void certificate_take(Certificate *c, int64 version);

/* ---- issue.c ---- */

/*
 * The name of a certificate, and of the secret with its keys: what the caller
 * says, or what follows from the first name in the certificate. Raises
 * ERRCODE_INVALID_NAME.
 */
extern char *certificate_name(const char *given, const char *first);
extern char *certificate_secret(const char *name);

/* Names as a text array. */
extern ArrayType *certificate_domains(const CertificateName *names, int n);

/* ---- expiry.c ---- */

#define CERTIFICATE_EXPIRY_JOB	"certificate_expiry"

#endif
