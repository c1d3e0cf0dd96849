/*
 * store.h
 *		The local store: envelope encryption in a table.
 *
 * Each version of a secret is sealed (AES-256-GCM) under a data key of its
 * own, and the data key under the master key of the day (master_key.h). Both
 * seals are bound to the store's identity, the secret's name and the version:
 * what is moved to another row, another name or another database does not
 * open. The identity lies in mlint.wrapping_key and goes along in a dump, so
 * that a restored database opens wherever the same master key is.
 */
#ifndef MLINT_STORE_H
#define MLINT_STORE_H

#include "datatype/timestamp.h"
#include "secrets/backend.h"

typedef struct StoredSecret
{
	int64		id;
	int			version;		/* the current one; 0: none yet */
	int			previous;		/* valid too until then; 0: none */
	TimestampTz previous_until;
} StoredSecret;

extern void store_init(void);

/* What the calling statement sees, without a privilege. */
extern bool store_find(const char *name, StoredSecret *secret);

/*
 * Open a version. False when there is no such version; raises
 * ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE when it was destroyed,
 * ERRCODE_MLINT_MASTER_KEY and ERRCODE_MLINT_SECRET_CORRUPT.
 */
extern bool store_open_version(const char *name, const StoredSecret *secret,
							   int version, SecretValue *value);

/*
 * Store a version; a new secret belongs to the current user. "about" may be
 * NULL: what is NULL in it stays as it is.
 */
extern int	store_put_version(const char *name, const void *data, size_t len,
							  const SecretAbout *about, bool current);
extern void store_make_current(const char *name, int version, int grace_s);
extern void store_destroy(const char *name, int version);
extern void store_drop(const char *name);

#endif
