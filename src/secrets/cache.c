/*
 * cache.c
 *		Values from secret backends, kept in shared memory; breakers, counters.
 *
 * Two dshash tables in a dsa area that begins in the main shared memory and
 * grows as needed: one of values, one of backends. Values are bounded by
 * CACHE_BYTES; when that is full, those that nobody has used for longest go.
 *
 * Shared memory is what a core of any process, or whoever may attach to it,
 * shows. So every value is sealed with AES-256-GCM, under a key that is drawn
 * when the server starts and lies in a page of its own, private to each
 * process that is forked from the postmaster, locked, and left out of cores.
 * No other process has it, nothing ever writes it down, and what it sealed
 * ends with the server. That it is not derived from the master key means that
 * the cache works where no local secret was ever stored, and while the master
 * key can't be had.
 *
 * The key of an entry has a digest of all that it is about, the options of
 * the backend included: an entry of other options is simply never found,
 * whatever transactions do with the row. The key is the additional data of the
 * seal, so that an entry put in another's place does not open.
 *
 * Two things can make a kept value too old: it was read before somebody wrote
 * a new one, and stored after. For that the backend's epoch is noted before
 * reading and compared when storing.
 */
#include "postgres.h"

#include <sys/mman.h>

#include "common/compat.h"
#include "common/crypto.h"
#include "common/shmem.h"
#include "lib/dshash.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "utils/dsa.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "secrets/cache.h"

#define AREA_BYTES		((size_t) 512 * 1024)
#define CACHE_BYTES		((uint64) 16 * 1024 * 1024)

typedef struct EntryKey
{
	Oid			database;
	int32		backend;
	uint8		digest[CRYPTO_SHA256_BYTES];
} EntryKey;

typedef struct Entry
{
	EntryKey	key;			/* must be first */
	dsa_pointer body;			/* an EntryBody */
	uint32		size;			/* of the body */
	bool		valid;			/* false: only known, to be read again */
	bool		watched;
	bool		slot;			/* something a kind keeps for itself */
	TimestampTz fresh_until;
	TimestampTz stale_until;
	TimestampTz used_at;		/* written under a shared lock: a hint */
} Entry;

/* Three terminated strings, then the sealed value. */
typedef struct EntryBody
{
	uint32		name;			/* where each begins */
	uint32		version;		/* as asked for; empty: the current one */
	uint32		given;			/* as the backend calls it */
	uint32		sealed;
	char		data[FLEXIBLE_ARRAY_MEMBER];
} EntryBody;

typedef struct StateKey
{
	Oid			database;
	int32		backend;
} StateKey;

typedef struct StateEntry
{
	StateKey	key;			/* must be first */
	BackendState state;
} StateEntry;

typedef struct CacheShared
{
	pg_atomic_uint64 bytes;		/* of all entries and their bodies */
	SharedArea	area;			/* last: it has no fixed size */
} CacheShared;

static const SharedTable tables[] = {
	{sizeof(EntryKey), sizeof(Entry)},
	{sizeof(StateKey), sizeof(StateEntry)}
};

static CacheShared *shared = NULL;
static uint8 *cache_key = NULL;
static dsa_area *area = NULL;
static dshash_table *entries = NULL;
static dshash_table *states = NULL;

static Size
shared_size(void)
{
	return add_size(offsetof(CacheShared, area), shared_area_size(AREA_BYTES));
}

static void
init_shared(LWLockPadded *locks)
{
	pg_atomic_init_u64(&shared->bytes, 0);
	shared_area_create(&shared->area, AREA_BYTES, tables, lengthof(tables));
}

static const SharedPart part = {
	.name = "mlint secret cache",
	.size = shared_size,
	.memory = (void **) &shared,
	.init = init_shared,
};

/* Draw the key, in the postmaster. Its page is copied to each child. */
static void
make_key(void)
{
	void	   *page = mmap(NULL, CRYPTO_KEY_BYTES, PROT_READ | PROT_WRITE,
							MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
#ifdef MADV_DONTDUMP
	(void) madvise(page, CRYPTO_KEY_BYTES, MADV_DONTDUMP);
#endif
	(void) mlock(page, CRYPTO_KEY_BYTES);
	crypto_random(page, CRYPTO_KEY_BYTES);
	cache_key = page;
}

void
cache_init(void)
{
	make_key();
	shared_part(&part);
}

static void
attach(void)
{
	dshash_table *attached[lengthof(tables)];

	if (states)
		return;
	/* Locks are not inherited with the page. */
	(void) mlock(cache_key, CRYPTO_KEY_BYTES);
	area = shared_area_attach(&shared->area, part.name, tables,
							  lengthof(tables), attached);
	entries = attached[0];
	states = attached[1];
}

/* ---- entries ---- */

/* What an entry is about, digested: each part with its terminator. */
static EntryKey
entry_key(const CacheItem *item)
{
	EntryKey	key = {MyDatabaseId, item->backend};
	StringInfoData about;

	initStringInfo(&about);
	appendBinaryStringInfo(&about, (const char *) item->digest,
						   CRYPTO_SHA256_BYTES);
	appendStringInfo(&about, "%s%c%s%c%s", item->slot ? item->slot : "", '\0',
					 item->name ? item->name : "", '\0',
					 item->version ? item->version : "");
	crypto_sha256(about.data, about.len, key.digest);
	pfree(about.data);
	return key;
}

/* Count an entry out and free its body; the entry is the caller's. */
static void
entry_release(Entry *entry)
{
	pg_atomic_sub_fetch_u64(&shared->bytes, entry->size + sizeof(Entry));
	dsa_free(area, entry->body);
}

CacheState
cache_find(const CacheItem *item, bool watch, SecretValue *value)
{
	EntryKey	key = entry_key(item);
	TimestampTz now = GetCurrentTimestamp();
	CacheState	found = CACHE_NOTHING;
	EntryBody  *copy = NULL;
	uint32		size = 0;
	Entry	   *entry;

	attach();
	entry = dshash_find(entries, &key, false);
	if (entry == NULL)
		return CACHE_NOTHING;
	if (entry->valid && now < entry->stale_until)
	{
		found = now < entry->fresh_until ? CACHE_FRESH : CACHE_STALE;
		size = entry->size;
		copy = palloc(size);
		memcpy(copy, dsa_get_address(area, entry->body), size);
		entry->used_at = now;
	}
	if (watch)
		entry->watched = true;
	dshash_release_lock(entries, entry);
	if (found == CACHE_NOTHING)
		return CACHE_NOTHING;

	value->len = size - offsetof(EntryBody, data) - copy->sealed -
		CRYPTO_SEAL_OVERHEAD;
	value->data = palloc(value->len + 1);
	value->version = pstrdup(copy->data + copy->given);
	if (!crypto_open(cache_key, &key, sizeof(key),
					 (uint8 *) copy->data + copy->sealed,
					 value->len + CRYPTO_SEAL_OVERHEAD, value->data))
		found = CACHE_NOTHING;
	else
		value->data[value->len] = '\0';
	pfree(copy);
	return found;
}

/* Entries by how long they have not been used. */
typedef struct EntryAge
{
	TimestampTz used_at;
	uint32		size;
} EntryAge;

static int
entry_age_compare(const void *a, const void *b)
{
	TimestampTz at = ((const EntryAge *) a)->used_at;
	TimestampTz bt = ((const EntryAge *) b)->used_at;

	return at < bt ? -1 : at > bt;
}

/* Make room for so many bytes, and an eighth of the cache more. */
static void
evict(uint64 need)
{
	dshash_seq_status seq;
	Entry	   *entry;
	EntryAge   *ages;
	int			n = 0;
	int			room = 1024;
	uint64		wanted = need + CACHE_BYTES / 8;
	uint64		freed = 0;
	TimestampTz before = 0;

	ages = palloc(sizeof(EntryAge) * room);
	dshash_seq_init(&seq, entries, false);
	while ((entry = dshash_seq_next(&seq)) != NULL)
	{
		if (n == room)
		{
			room *= 2;
			ages = repalloc_huge(ages, sizeof(EntryAge) * room);
		}
		ages[n].used_at = entry->used_at;
		ages[n++].size = entry->size + sizeof(Entry);
	}
	dshash_seq_term(&seq);
	qsort(ages, n, sizeof(EntryAge), entry_age_compare);
	for (int i = 0; i < n && freed < wanted; i++)
	{
		freed += ages[i].size;
		before = ages[i].used_at;
	}
	pfree(ages);

	dshash_seq_init(&seq, entries, true);
	while ((entry = dshash_seq_next(&seq)) != NULL)
	{
		if (entry->used_at <= before)
		{
			entry_release(entry);
			dshash_delete_current(&seq);
		}
	}
	dshash_seq_term(&seq);
}

/* The body of an entry, in shared memory; InvalidDsaPointer: no memory. */
static dsa_pointer
make_body(const EntryKey *key, const CacheItem *item, const SecretValue *value,
		  uint32 *size)
{
	const char *name = item->name ? item->name : "";
	const char *version = item->version ? item->version : "";
	uint32		name_len = strlen(name) + 1;
	uint32		version_len = strlen(version) + 1;
	uint32		given_len = strlen(value->version) + 1;
	uint32		sealed_at = name_len + version_len + given_len;
	EntryBody  *body;
	dsa_pointer pointer;

	*size = offsetof(EntryBody, data) + sealed_at + value->len +
		CRYPTO_SEAL_OVERHEAD;
	if (pg_atomic_read_u64(&shared->bytes) + *size + sizeof(Entry) >
		CACHE_BYTES)
		evict(*size + sizeof(Entry));
	body = palloc(*size);
	body->name = 0;
	body->version = name_len;
	body->given = name_len + version_len;
	body->sealed = sealed_at;
	memcpy(body->data + body->name, name, name_len);
	memcpy(body->data + body->version, version, version_len);
	memcpy(body->data + body->given, value->version, given_len);
	crypto_seal(cache_key, key, sizeof(*key), value->data, value->len,
				(uint8 *) body->data + sealed_at);
	pointer = dsa_allocate_extended(area, *size, DSA_ALLOC_NO_OOM);
	if (DsaPointerIsValid(pointer))
		memcpy(dsa_get_address(area, pointer), body, *size);
	pfree(body);
	return pointer;
}

uint64
cache_epoch(int32 backend)
{
	BackendState *state = backend_state_lock(backend);
	uint64		epoch = state->epoch;

	backend_state_unlock(state);
	return epoch;
}

void
cache_store(const CacheItem *item, const SecretValue *value, uint64 epoch,
			int64 ttl_s, int64 stale_s, bool watch)
{
	EntryKey	key = entry_key(item);
	TimestampTz now = GetCurrentTimestamp();
	dsa_pointer body;
	uint32		size;
	Entry	   *entry;
	bool		found;

	attach();
	body = make_body(&key, item, value, &size);
	if (!DsaPointerIsValid(body))
		return;
	entry = dshash_find_or_insert(entries, &key, &found);
	if (found)
		entry_release(entry);
	else
		entry->watched = false;
	entry->body = body;
	entry->size = size;
	entry->slot = item->slot != NULL;
	entry->watched |= watch;
	entry->fresh_until = now + ttl_s * USECS_PER_SEC;
	entry->stale_until = entry->fresh_until + stale_s * USECS_PER_SEC;
	entry->used_at = now;
	entry->valid = true;
	pg_atomic_add_fetch_u64(&shared->bytes, size + sizeof(Entry));
	dshash_release_lock(entries, entry);

	/*
	 * Whoever forgets first moves the epoch and then looks for entries: ours
	 * was there for him to find, or we see here that it came too late.
	 */
	if (cache_epoch(item->backend) != epoch &&
		(entry = dshash_find(entries, &key, true)) != NULL)
	{
		entry->valid = false;
		dshash_release_lock(entries, entry);
	}
}

bool
cache_forget(int32 backend, const char *name, bool entirely)
{
	dshash_seq_status seq;
	Entry	   *entry;
	bool		watched = false;

	attach();
	if (backend != 0)
	{
		BackendState *state = backend_state_lock(backend);

		state->epoch++;
		backend_state_unlock(state);
	}
	else
	{
		StateEntry *state;

		dshash_seq_init(&seq, states, true);
		while ((state = dshash_seq_next(&seq)) != NULL)
			if (state->key.database == MyDatabaseId)
				state->state.epoch++;
		dshash_seq_term(&seq);
	}

	dshash_seq_init(&seq, entries, true);
	while ((entry = dshash_seq_next(&seq)) != NULL)
	{
		if (entry->key.database != MyDatabaseId ||
			(backend != 0 && entry->key.backend != backend))
			continue;
		if (name)
		{
			EntryBody  *body = dsa_get_address(area, entry->body);

			if (entry->slot || strcmp(body->data + body->name, name) != 0)
				continue;
		}
		watched |= entry->watched;
		if (entry->watched && !entirely)
			entry->valid = false;
		else
		{
			entry_release(entry);
			dshash_delete_current(&seq);
		}
	}
	dshash_seq_term(&seq);
	return watched;
}

static void
remove_entry(const EntryKey *key)
{
	Entry	   *entry;

	attach();
	entry = dshash_find(entries, key, true);
	if (entry == NULL)
		return;
	entry_release(entry);
	dshash_delete_entry(entries, entry);
}

void
cache_remove(const CacheItem *item)
{
	EntryKey	key = entry_key(item);

	remove_entry(&key);
}

void
cache_sweep(void)
{
	TimestampTz now = GetCurrentTimestamp();
	dshash_seq_status seq;
	Entry	   *entry;

	attach();
	dshash_seq_init(&seq, entries, true);
	while ((entry = dshash_seq_next(&seq)) != NULL)
	{
		if (entry->watched || (entry->valid && now < entry->stale_until))
			continue;
		entry_release(entry);
		dshash_delete_current(&seq);
	}
	dshash_seq_term(&seq);
}

List *
cache_watched(TimestampTz before)
{
	dshash_seq_status seq;
	Entry	   *entry;
	List	   *result = NIL;

	attach();
	dshash_seq_init(&seq, entries, false);
	while ((entry = dshash_seq_next(&seq)) != NULL)
	{
		EntryBody  *body;
		CacheWatched *watched;

		if (entry->key.database != MyDatabaseId || !entry->watched ||
			(entry->valid && entry->fresh_until > before))
			continue;
		body = dsa_get_address(area, entry->body);
		watched = palloc0(sizeof(CacheWatched));
		watched->backend = entry->key.backend;
		memcpy(watched->digest, entry->key.digest, sizeof(watched->digest));
		watched->name = pstrdup(body->data + body->name);
		if (body->data[body->version] != '\0')
			watched->version = pstrdup(body->data + body->version);
		result = lappend(result, watched);
	}
	dshash_seq_term(&seq);
	return result;
}

bool
cache_watches(const CacheWatched *watched, const CacheItem *item)
{
	EntryKey	key = entry_key(item);

	return watched->backend == item->backend &&
		memcmp(watched->digest, key.digest, sizeof(key.digest)) == 0;
}

void
cache_unwatch(const CacheWatched *watched)
{
	EntryKey	key = {MyDatabaseId, watched->backend};

	memcpy(key.digest, watched->digest, sizeof(key.digest));
	remove_entry(&key);
}

/* ---- states ---- */

static StateKey
state_key(int32 backend)
{
	StateKey	key = {MyDatabaseId, backend};

	return key;
}

BackendState *
backend_state_lock(int32 backend)
{
	StateKey	key = state_key(backend);
	StateEntry *entry;
	bool		found;

	attach();
	entry = dshash_find_or_insert(states, &key, &found);
	if (!found)
		memset(&entry->state, 0, sizeof(entry->state));
	return &entry->state;
}

void
backend_state_unlock(BackendState *state)
{
	dshash_release_lock(states, (char *) state - offsetof(StateEntry, state));
}

void
backend_state_forget(int32 backend)
{
	StateKey	key = state_key(backend);

	attach();
	(void) dshash_delete_key(states, &key);
}

int
cache_count(int32 backend, BackendState *copy)
{
	TimestampTz now = GetCurrentTimestamp();
	dshash_seq_status seq;
	Entry	   *entry;
	StateKey	key = state_key(backend);
	StateEntry *state;
	int			n = 0;

	/* Whoever looks makes none: he may look for what has never been there. */
	attach();
	memset(copy, 0, sizeof(*copy));
	state = dshash_find(states, &key, false);
	if (state)
	{
		*copy = state->state;
		dshash_release_lock(states, state);
	}
	dshash_seq_init(&seq, entries, false);
	while ((entry = dshash_seq_next(&seq)) != NULL)
	{
		if (entry->key.database == MyDatabaseId &&
			entry->key.backend == backend && !entry->slot && entry->valid &&
			now < entry->stale_until)
			n++;
	}
	dshash_seq_term(&seq);
	return n;
}
