/*
 * backend.h
 *		Where secrets are kept that the local store does not keep.
 *
 * A backend is a row of mlint.secret_backend: a name, a kind and options. A
 * kind is four verbs and a table of options; what it cannot do is NULL, and
 * the error for that is raised here. All verbs are synchronous in the calling
 * process, wait on its latch, and end within the backend's timeout.
 *
 * Values that were read are kept in shared memory for the backend's
 * cache_ttl_s, sealed; they serve all processes of the database, and for
 * stale_s longer while the backend is down. Writing or deleting through us,
 * and secret_backend_alter(), drop what they concern. What a dispatcher has
 * read is read again before it runs out (mlint.secret_refresh), and dispatchers
 * are told when it has changed.
 *
 * What is done to a backend is done: it does not roll back.
 */
#ifndef MLINT_BACKEND_H
#define MLINT_BACKEND_H

#include "datatype/timestamp.h"
#include "secrets/secrets.h"
#include "utils/jsonb.h"

/* What is put beside a value, as far as the backend has a place for it. */
typedef struct SecretAbout
{
	const char *type;			/* each may be NULL */
	const char *description;
	Jsonb	   *metadata;
} SecretAbout;

/* Shared memory. Called by secrets_init(). */
extern void backend_init(void);

/*
 * These raise ERRCODE_UNDEFINED_OBJECT for a backend that does not exist,
 * ERRCODE_MLINT_BREAKER_OPEN, and the error of the failure itself. They ask
 * for no privilege and audit nothing.
 */

/* False when the backend has no such secret, or no such version of it. */
extern bool backend_get(const char *backend, const char *name,
						const char *version, SecretValue *value);

/* Returns the new version as the backend calls it, palloc'd. */
extern char *backend_put(const char *backend, const char *name,
						 const void *data, size_t len,
						 const SecretAbout *about);

/* False when there was none. */
extern bool backend_delete(const char *backend, const char *name);

/* Calls visit for each version that the backend tells of, newest first. */
typedef void (*VersionVisitor) (const char *version, bool current,
								TimestampTz created_at, void *arg);
extern bool backend_versions(const char *backend, const char *name,
							 VersionVisitor visit, void *arg);

/* 'local' is none of these: it is the store, not a row. */
extern bool backend_exists(const char *backend);

#endif
