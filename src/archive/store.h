/*
 * store.h
 *		Where archives' bytes are kept outside of the database.
 *
 * A store is a row of mlint.archive_store: a name, a kind and options. A kind is a
 * table of options and four verbs, which wait on the latch and end within the
 * store's timeout. An object's name is "<prefix><archive id>".
 *
 * Bytes go there after the archive has been committed: the job archive_move
 * sends them, reads them back by their digest, and only then commits the row
 * that names the store and is without chunks. Objects of removed archives are
 * in mlint.archive_garbage until the same job has deleted them: whoever removes
 * an archive that is in a store enters it there, in the same transaction.
 */
#ifndef MLINT_ARCHIVE_STORE_H
#define MLINT_ARCHIVE_STORE_H

#include "common/compat.h"
#include "common/configured.h"
#include "common/http.h"
#include "utils/uuid.h"

/* What every store has; the options of a kind begin with this. */
typedef struct StoreOptions
{
	int			timeout_ms;		/* of each request */
	char	   *prefix;			/* before each object's name */
} StoreOptions;

typedef struct StoreKind StoreKind;

/* One store, opened for some calls, in the memory context of its opening. */
typedef struct Store
{
	int32		id;
	char	   *name;
	const StoreKind *kind;
	const StoreOptions *options;	/* the kind's struct */
	MemoryContext context;
	void	   *state;			/* the kind's */
} Store;

/* The next bytes of what is sent: exactly len of them, into buffer. */
typedef void (*StoreSource) (void *buffer, size_t len, void *arg);

struct StoreKind
{
	ConfiguredKind base;

	/* What the table cannot say. Raises ERRCODE_MLINT_CONFIGURATION. */
	void		(*check) (const StoreOptions *options, const char *what);

	/*
	 * Each raises the error of its failure (errors.h). put replaces, and an
	 * object is there whole or not at all; get is a range, exactly len bytes;
	 * delete of what is not there is no failure. place says where it is, for
	 * a person.
	 */
	void		(*put) (Store *store, const char *object, int64 size,
						StoreSource source, void *arg);
	void		(*get) (Store *store, const char *object, int64 offset,
						size_t len, void *buffer);
	void		(*delete) (Store *store, const char *object);
	char	   *(*place) (Store *store);
};

extern const StoreKind store_s3;
extern const StoreKind store_file;

/* Settings. Called by archive_init(). */
extern void store_define_settings(void);

/* Raises ERRCODE_UNDEFINED_OBJECT. */
extern Store *store_open(int32 id);
extern void store_put(Store *store, const pg_uuid_t *archive, int64 size,
					  StoreSource source, void *arg);
extern void store_get(Store *store, const pg_uuid_t *archive, int64 offset,
					  size_t len, void *buffer);
extern void store_delete(Store *store, const pg_uuid_t *archive);

/*
 * For the kinds: raise a failure. reason is the rest of a sentence, detail the
 * peer's words or NULL.
 */
extern void pg_attribute_noreturn() store_fail(const Store *store,
											   int sqlstate,
											   const char *detail,
											   const char *reason,...)
			pg_attribute_printf(4, 5);

#endif
