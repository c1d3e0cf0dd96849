/*
 * kind.h
 *		What a kind of certificate target is.
 *
 * A kind is a table of options and a verb that takes a certificate to one of
 * the target's regions. It runs in the job, may wait for its peer on the latch,
 * raises what goes wrong, and may be repeated with the same certificate. The
 * transaction that it runs in is the one that records what came of it.
 */
#ifndef MLINT_TARGET_KIND_H
#define MLINT_TARGET_KIND_H

#include "common/configured.h"
#include "common/crypto.h"
#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* What every target has; the options of a kind begin with this. */
typedef struct TargetOptions
{
	int			timeout_ms;		/* of one exchange */
	int			retry_delay_ms; /* after the first failure */
	int			retry_max_delay_ms;
} TargetOptions;

/* A version to be pushed. */
typedef struct PushedCertificate
{
	const pg_uuid_t *id;
	const char *name;			/* the certificate's */
	const char *target;			/* the target's */
	int64		version;
	const char *serial;
	const char *names;			/* a JSON array */
	const char *not_after;		/* ISO 8601 */
	uint8		fingerprint[CRYPTO_SHA256_BYTES];
	const char *chain;			/* PEM, leaf first */
	const char *leaf;
	const char *issuers;		/* the rest of the chain; "" when there is
								 * none */
	const char *key_secret;		/* whose version key_version is the key */
	int			key_version;
	bool		repeated;		/* it, or one before it, was on its way and
								 * may have arrived */
} PushedCertificate;

typedef struct TargetKind
{
	ConfiguredKind base;		/* its options' struct begins with
								 * TargetOptions */
	bool		wants_key;		/* its creator must be able to read the key */
	/* More than a table can check; may be NULL. Asked again before each push. */
	void		(*check) (const void *options, Oid owner, const char *what);
	/* The regions, palloc'd, NULL at the end; NULL: one, called "". */
	char	  **(*regions) (const void *options);

	/*
	 * Of what there is but one, so that two targets would fight over it, for
	 * messages; NULL: nothing.
	 */
	char	   *(*place) (const void *options);

	/*
	 * Push. key (PEM) is wiped by the caller. reference is what the last push
	 * to this region returned, or NULL; returns the like.
	 */
	char	   *(*push) (const void *options, Oid owner, const char *region,
						 const PushedCertificate *certificate,
						 const char *key, const char *reference);
} TargetKind;

extern const TargetKind target_file;
extern const TargetKind target_acm;
extern const TargetKind target_azure;
extern const TargetKind target_destination;
extern const TargetKind target_postgres;

extern const ConfiguredSort target_sort;

/* The leaf as DER, palloc'd. */
extern uint8 *pushed_der(const PushedCertificate *certificate, size_t *len);

/* The key, then the chain, as one text, which is the caller's to wipe. */
extern char *pushed_key_and_chain(const char *key, const char *chain);

/* What an event says of a certificate that was pushed; never the key. */
extern Jsonb *pushed_document(const PushedCertificate *certificate,
							  bool with_chain);

#endif
