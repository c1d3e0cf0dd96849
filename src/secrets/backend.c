/*
 * backend.c
 *		Calls to secret backends: find the row, ask the cache, mind the
 *		breaker, call the kind, make something of a failure.
 *
 * A call runs in a memory context of its own, whose end wipes what is
 * confidential, however it comes. Failures of a peer are values until they
 * get here; so a value that is a little old can be served in place of an
 * error without a subtransaction, which a reader in a parallel query could
 * not have.
 *
 * The breaker is in shared memory: whoever finds out that a backend is down
 * spares all others the wait. Only what says that it is down counts against
 * it: no connection, no answer in time, an answer that is none, 429 and 5xx.
 * A backend that refuses us or knows no such secret is up, and then nothing
 * stale is served either: it may be that we are not to have it any more.
 *
 * A backend's credentials are references too, and may lie in another backend.
 * Going round in a circle is noticed by the names of those being called.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/trial.h"
#include "common/audit.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/credential.h"
#include "common/owner.h"
#include "secrets/backend_row.h"
#include "secrets/cache.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_secret_refresh);

/* Those being called by this process, one inside the other. */
typedef struct Calling
{
	struct Calling *outer;
	const char *name;
} Calling;

static Calling *calling = NULL;

void
backend_init(void)
{
	cache_init();
}

/* ---- rows ---- */

/* Find a backend by its name, or by id when that is NULL. */
static bool
find_row(const char *name, int32 id, Backend *b)
{
	Configured	c;

	if (!configured_find(&secret_backends, name, id, &c))
		return false;
	b->id = c.id;
	b->name = c.name;
	b->kind = (const BackendKind *) c.kind;
	b->options = c.parsed;
	crypto_sha256(VARDATA(c.options), VARSIZE(c.options) - VARHDRSZ,
				  b->digest);
	return true;
}

bool
backend_exists(const char *backend)
{
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(backend)};
	bool		found;

	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT FROM mlint.secret_backend"
							  " WHERE name = $1", 1, types, values, NULL,
							  ActiveSnapshotSet(), 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.secret_backend");
	found = SPI_processed > 0;
	owner_end(&scope);
	return found;
}

/* ---- a call ---- */

/* One verb's call, whatever the verb. */
typedef struct Call
{
	Backend		backend;
	MemoryContext caller;
	const char *verb;			/* as in "could not ... secret backend" */
	const char *secret;			/* NULL: none in particular */
	bool		regardless;		/* of an open breaker */
} Call;

typedef BackendResult (*CallBody) (Backend *b, void *arg);

/*
 * Names are parts of paths, in files and in URLs: one that would lead out of
 * its place is refused for all kinds alike.
 */
static void
check_name(const char *backend, const char *name)
{
	size_t		len = strlen(name);
	bool		ok = len > 0 && len <= SECRET_NAME_MAX &&
	strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
		   "0123456789_./-") == len;

	for (const char *p = name; ok; p++)
	{
		size_t		part = strcspn(p, "/");

		ok = part > 0 && !(part == 1 && p[0] == '.') &&
			!(part == 2 && p[0] == '.' && p[1] == '.');
		p += part;
		if (*p == '\0')
			break;
	}
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of a secret in secret backend \"%s\"",
						backend),
				 errdetail("A name is 1 to %d characters: letters of the English alphabet, digits, and any of _ . / -; none of its parts between slashes is empty, \".\" or \"..\".",
						   SECRET_NAME_MAX)));
}

/* "could not read secret "x" from secret backend "y"": what was to be done. */
static char *
call_words(const Call *call)
{
	if (call->secret == NULL)
		return psprintf("could not %s secret backend \"%s\"", call->verb,
						call->backend.name);
	return psprintf("could not %s secret \"%s\" in secret backend \"%s\"",
					call->verb, call->secret, call->backend.name);
}

/* Raise a failure, from the caller's own context. */
static void
pg_attribute_noreturn()
call_raise(Call *call)
{
	Backend    *b = &call->backend;
	char	   *detail;

	MemoryContextSwitchTo(call->caller);
	detail = b->detail ? pstrdup(b->detail) : NULL;
	ereport(ERROR,
			(errcode(b->sqlstate),
			 errmsg("%s: %s", call_words(call), pstrdup(b->reason)),
			 detail ? errdetail("It says: %s", detail) : 0,
			 b->hint ? errhint("%s", b->hint) : 0));
}

/* May the backend be called now? If not, that is the failure. */
static bool
breaker_lets(Call *call)
{
	Backend    *b = &call->backend;
	TimestampTz now = GetCurrentTimestamp();
	BackendState *state = backend_state_lock(b->id);
	bool		lets = breaker_allows(&state->breaker, now, true) ||
	call->regardless;
	int64		left = (state->breaker.retry_at - now + USECS_PER_SEC - 1) /
	USECS_PER_SEC;
	char		last[sizeof(state->last_error)];

	strlcpy(last, state->last_error, sizeof(last));
	backend_state_unlock(state);
	if (lets)
		return true;
	(void) backend_fail(b, ERRCODE_MLINT_BREAKER_OPEN, true, NULL,
						"mlint.secret_backend_test() tries it at once, and closes the breaker when it works.",
						"its circuit breaker is open for another %d s, since: %s",
						(int) Max(left, 1), last);
	return false;
}

/* Tell the breaker and the view how a call ended. */
static void
call_account(Call *call, BackendResult result)
{
	Backend    *b = &call->backend;
	TimestampTz now = GetCurrentTimestamp();
	BackendState *state = backend_state_lock(b->id);

	if (result == BACKEND_FAILED && b->down)
		(void) breaker_failure(&state->breaker, &b->options->breaker, now);
	else
		breaker_success(&state->breaker);
	if (result == BACKEND_FAILED)
	{
		state->last_error_at = now;
		strlcpy(state->last_error, b->reason, sizeof(state->last_error));
	}
	else
		state->last_success_at = now;
	backend_state_unlock(state);
}

/* Look for circles, then let the kind do it. */
static BackendResult
call_kind(Call *call, CallBody body, void *arg)
{
	Calling		frame = {calling, call->backend.name};
	BackendResult result;

	check_stack_depth();
	for (Calling *c = calling; c != NULL; c = c->outer)
	{
		if (strcmp(c->name, call->backend.name) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("the credentials of secret backend \"%s\" lead back to itself",
							call->backend.name),
					 errhint("Keep the credentials of one of the backends on the way in the local store.")));
	}
	PG_TRY();
	{
		calling = &frame;
		result = body(&call->backend, arg);
	}
	PG_FINALLY();
	{
		calling = frame.outer;
	}
	PG_END_TRY();
	return result;
}

/*
 * Begin a call on the backend of this name or, when that is NULL, id; NULL
 * when there is none of that id. What is allocated from here on ends with
 * call_end(). That looks at the call, which so is not on the stack.
 */
static Call *
call_begin(const char *backend, int32 id, const char *verb, const char *secret)
{
	Call	   *call = palloc0(sizeof(Call));
	Backend    *b = &call->backend;

	call->caller = CurrentMemoryContext;
	call->verb = verb;
	call->secret = secret;
	b->context = AllocSetContextCreate(CurrentMemoryContext,
									   "mlint secret backend",
									   ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(b->context);
	if (!find_row(backend, id, b))
	{
		MemoryContextSwitchTo(call->caller);
		MemoryContextDelete(b->context);
		if (backend)
			configured_missing(&secret_backends, backend);
		return NULL;
	}
	if (secret)
		check_name(b->name, secret);
	return call;
}

static void
call_end(Call *call)
{
	MemoryContextSwitchTo(call->caller);
	MemoryContextDelete(call->backend.context);
	pfree(call);
}

/* Run one verb: breaker, kind, account. */
static BackendResult
call_run(Call *call, CallBody body, void *arg)
{
	Backend    *b = &call->backend;
	BackendResult result;

	if (!breaker_lets(call))
		return BACKEND_FAILED;
	b->deadline = GetCurrentTimestamp() + b->options->timeout_ms *
		INT64CONST(1000);
	result = call_kind(call, body, arg);
	call_account(call, result);
	return result;
}

static void
pg_attribute_noreturn()
not_supported(const Call *call, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s: %s", call_words(call), what),
			 errdetail("A backend of kind \"%s\" is read only.",
					   call->backend.kind->base.name)));
}

/* ---- get ---- */

typedef struct GetArguments
{
	const char *name;
	const char *version;
	SecretValue *value;
} GetArguments;

static BackendResult
get_body(Backend *b, void *arg)
{
	GetArguments *get = arg;
	BackendResult result = b->kind->get(b, get->name, get->version,
										get->value);

	if (result == BACKEND_OK && get->value->len > SECRET_VALUE_MAX)
	{
		secret_wipe(get->value);
		return backend_fail(b, ERRCODE_MLINT_SERIALIZATION, false, NULL, NULL,
							"its value is larger than %d bytes",
							SECRET_VALUE_MAX);
	}
	return result;
}

static CacheItem
value_item(const Backend *b, const char *name, const char *version)
{
	CacheItem	item = {
		.backend = b->id,
		.digest = b->digest,
		.name = name,
		.version = version
	};

	return item;
}

/* Read from the backend, and keep what was read. */
static BackendResult
get_and_keep(Call *call, const char *name, const char *version, bool watch,
			 SecretValue *value)
{
	Backend    *b = &call->backend;
	GetArguments get = {name, version, value};
	CacheItem	item = value_item(b, name, version);
	uint64		epoch = cache_epoch(b->id);
	BackendResult result = call_run(call, get_body, &get);

	if (result == BACKEND_OK && b->options->cache_ttl_s > 0)
		cache_store(&item, value, epoch, b->options->cache_ttl_s,
					b->options->stale_s, watch);
	else if (result == BACKEND_ABSENT)
		cache_remove(&item);
	return result;
}

/* The value where the caller wants it; the one in the call's context goes. */
static void
hand_over(Call *call, SecretValue *from, SecretValue *to)
{
	to->len = from->len;
	to->data = MemoryContextAlloc(call->caller, from->len + 1);
	memcpy(to->data, from->data, from->len);
	to->data[to->len] = '\0';
	to->version = MemoryContextStrdup(call->caller, from->version);
	secret_wipe(from);
}

static void
count_get(int32 backend, bool hit, bool stale)
{
	BackendState *state = backend_state_lock(backend);

	state->hits += hit;
	state->misses += !hit;
	state->stale += stale;
	backend_state_unlock(state);
}

bool
backend_get(const char *backend, const char *name, const char *version,
			SecretValue *value)
{
	Call	   *call = call_begin(backend, 0, "read", name);
	Backend    *b = &call->backend;
	CacheItem	item = value_item(b, name, version);
	bool		watch = MyWorker && MyWorker->kind == WORKER_DISPATCHER;
	SecretValue kept;
	SecretValue read;
	CacheState	cached = CACHE_NOTHING;
	BackendResult result;

	if (b->options->cache_ttl_s > 0)
		cached = cache_find(&item, watch, &kept);
	if (cached == CACHE_FRESH && !b->kind->local)
	{
		count_get(b->id, true, false);
		hand_over(call, &kept, value);
		call_end(call);
		return true;
	}
	if (cached != CACHE_NOTHING)
		confidential(b, kept.data, kept.len);
	result = get_and_keep(call, name, version, watch, &read);
	if (result == BACKEND_FAILED && b->down && cached != CACHE_NOTHING)
	{
		count_get(b->id, false, true);
		hand_over(call, &kept, value);
		call_end(call);
		return true;
	}
	count_get(b->id, false, false);
	if (result == BACKEND_FAILED)
		call_raise(call);
	if (result == BACKEND_OK)
		hand_over(call, &read, value);
	call_end(call);
	return result == BACKEND_OK;
}

/* ---- put, delete ---- */

/*
 * A secret was changed: forget it, and have those read it again that keep it
 * for longer than a call.
 */
static void
forget_secret(const Backend *b, const char *name)
{
	if (cache_forget(b->id, name, false))
		secret_values_changed();
}

typedef struct PutArguments
{
	const char *name;
	const char *data;
	size_t		len;
	const SecretAbout *about;
	char	   *version;
} PutArguments;

static BackendResult
put_body(Backend *b, void *arg)
{
	PutArguments *put = arg;

	return b->kind->put(b, put->name, put->data, put->len, put->about,
						&put->version);
}

char *
backend_put(const char *backend, const char *name, const void *data,
			size_t len, const SecretAbout *about)
{
	Call	   *call = call_begin(backend, 0, "write", name);
	Backend    *b = &call->backend;
	PutArguments put = {name, NULL, len, about};
	char	   *version;

	if (b->kind->put == NULL)
		not_supported(call, "it cannot be written");
	put.data = memcpy(palloc(len + 1), data, len);
	((char *) put.data)[len] = '\0';
	confidential(b, unconstify(char *, put.data), len);
	if (call_run(call, put_body, &put) == BACKEND_FAILED)
	{
		/* It may have come there all the same. */
		if (b->down)
			(void) cache_forget(b->id, name, false);
		call_raise(call);
	}
	version = MemoryContextStrdup(call->caller, put.version);
	forget_secret(b, name);
	call_end(call);
	return version;
}

static BackendResult
delete_body(Backend *b, void *arg)
{
	return b->kind->delete(b, arg);
}

bool
backend_delete(const char *backend, const char *name)
{
	Call	   *call = call_begin(backend, 0, "delete", name);
	Backend    *b = &call->backend;
	BackendResult result;

	if (b->kind->delete == NULL)
		not_supported(call, "it cannot be deleted");
	result = call_run(call, delete_body, unconstify(char *, name));
	if (result == BACKEND_FAILED)
	{
		if (b->down)
			(void) cache_forget(b->id, name, false);
		call_raise(call);
	}
	forget_secret(b, name);
	call_end(call);
	return result == BACKEND_OK;
}

/* ---- versions, list, test ---- */

/*
 * What a kind tells is first gathered: the caller's function must not run in
 * the middle of a call.
 */
typedef struct Told
{
	char	   *text;
	bool		current;
	TimestampTz created_at;
} Told;

typedef struct Telling
{
	const char *text;			/* name of the secret, or prefix */
	List	   *told;
} Telling;

static void
tell_version(const char *version, bool current, TimestampTz created_at,
			 void *arg)
{
	Telling    *telling = arg;
	Told	   *told = palloc(sizeof(Told));

	told->text = pstrdup(version);
	told->current = current;
	told->created_at = created_at;
	telling->told = lappend(telling->told, told);
}

static BackendResult
versions_body(Backend *b, void *arg)
{
	Telling    *telling = arg;

	return b->kind->versions(b, telling->text, tell_version, telling);
}

bool
backend_versions(const char *backend, const char *name, VersionVisitor visit,
				 void *arg)
{
	Call	   *call = call_begin(backend, 0, "list the versions of", name);
	Telling		telling = {name};
	BackendResult result;
	ListCell   *lc;

	result = call_run(call, versions_body, &telling);
	if (result == BACKEND_FAILED)
		call_raise(call);
	MemoryContextSwitchTo(call->caller);
	foreach(lc, telling.told)
	{
		Told	   *told = lfirst(lc);

		visit(told->text, told->current, told->created_at, arg);
	}
	call_end(call);
	return result == BACKEND_OK;
}

static void
tell_name(const char *name, void *arg)
{
	Telling    *telling = arg;

	telling->told = lappend(telling->told, pstrdup(name));
}

static BackendResult
list_body(Backend *b, void *arg)
{
	Telling    *telling = arg;

	return b->kind->list(b, telling->text, tell_name, telling);
}

List *
backend_list(const char *backend, const char *prefix)
{
	Call	   *call = call_begin(backend, 0, "list the secrets of", NULL);
	Telling		telling = {prefix};
	List	   *names = NIL;
	ListCell   *lc;

	if (call_run(call, list_body, &telling) == BACKEND_FAILED)
		call_raise(call);
	MemoryContextSwitchTo(call->caller);
	foreach(lc, telling.told)
		names = lappend(names, pstrdup(lfirst(lc)));
	call_end(call);
	return names;
}

static BackendResult
test_body(Backend *b, void *arg)
{
	return b->kind->test(b, arg);
}

char *
backend_test(const char *backend)
{
	Call	   *call = call_begin(backend, 0, "use", NULL);
	char	   *words = NULL;

	call->regardless = true;
	if (call_run(call, test_body, &words) == BACKEND_FAILED)
		call_raise(call);
	words = MemoryContextStrdup(call->caller, words);
	call_end(call);
	return words;
}

/* ---- what a kind keeps ---- */

static CacheItem
slot_item(const Backend *b, const char *slot)
{
	CacheItem	item = {.backend = b->id,.digest = b->digest,.slot = slot};

	return item;
}

char *
backend_kept(Backend *b, const char *slot)
{
	CacheItem	item = slot_item(b, slot);
	SecretValue value;

	if (cache_find(&item, false, &value) != CACHE_FRESH)
		return NULL;
	return confidential(b, value.data, value.len);
}

void
backend_keep(Backend *b, const char *slot, const char *text, int64 seconds)
{
	CacheItem	item = slot_item(b, slot);
	SecretValue value = {unconstify(char *, text), strlen(text), ""};

	if (seconds > 0)
		cache_store(&item, &value, cache_epoch(b->id), seconds, 0, false);
}

void
backend_unkeep(Backend *b, const char *slot)
{
	CacheItem	item = slot_item(b, slot);

	cache_remove(&item);
}

/* ---- the job ---- */

static BackendResult
tend_body(Backend *b, void *arg)
{
	return b->kind->tend(b);
}

/*
 * One piece of the job's work, in a subtransaction: what it raises (a credential
 * that does not resolve) is the view's and the log's, and not the others' loss.
 */
static bool
run_apart(bool (*work) (int32 id, const CacheWatched *watched), int32 id,
		  const CacheWatched *watched)
{
	Trial		trial;
	volatile bool changed = false;

	trial_begin(&trial);
	PG_TRY();
	{
		changed = work(id, watched);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);
		BackendState *state;

		/* Who cancels means the whole. */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
		state = backend_state_lock(id);
		state->last_error_at = GetCurrentTimestamp();
		strlcpy(state->last_error, error->message, sizeof(state->last_error));
		backend_state_unlock(state);
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("could not keep up a secret backend: %s",
						error->message)));
	}
	PG_END_TRY();
	return changed;
}

/* Let a backend keep up what runs out; one that fails says so in the view. */
static bool
tend_one(int32 id, const CacheWatched *none)
{
	Call	   *call = call_begin(NULL, id, "keep up", NULL);

	if (call == NULL)
		return false;
	if (call->backend.kind->tend)
		(void) call_run(call, tend_body, NULL);
	call_end(call);
	return false;
}

static void
tend_backends(void)
{
	OwnerScope	scope;
	int32	   *ids;
	int			n;
	bool		isnull;
	MemoryContext caller = CurrentMemoryContext;

	owner_begin(&scope);
	if (SPI_execute("SELECT id FROM mlint.secret_backend", true,
					0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.secret_backend");
	n = SPI_processed;
	ids = MemoryContextAlloc(caller, sizeof(int32) * Max(n, 1));
	for (int i = 0; i < n; i++)
		ids[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
											 SPI_tuptable->tupdesc, 1,
											 &isnull));
	owner_end(&scope);

	for (int i = 0; i < n; i++)
		(void) run_apart(tend_one, ids[i], NULL);
}

/*
 * Read a watched secret again. True when it is not what it was: another value,
 * or none any more. Of a backend that was altered or dropped dispatchers were
 * told by whoever did it.
 */
static bool
refresh_one(int32 id, const CacheWatched *watched)
{
	Call	   *call = call_begin(NULL, id, "refresh", watched->name);
	Backend    *b;
	CacheItem	item;
	SecretValue before;
	SecretValue after;
	bool		known;
	bool		changed = false;
	BackendResult result;

	if (call == NULL)
	{
		cache_unwatch(watched);
		return false;
	}
	b = &call->backend;
	item = value_item(b, watched->name, watched->version);
	if (!cache_watches(watched, &item))
	{
		cache_unwatch(watched);
		call_end(call);
		return false;
	}
	known = cache_find(&item, false, &before) != CACHE_NOTHING;
	if (known)
		confidential(b, before.data, before.len);
	audit(AUDIT_DONE, "secret.refresh", "secret",
		  psprintf("%s:%s", b->name, watched->name), NULL);
	result = get_and_keep(call, watched->name, watched->version, true, &after);
	if (result == BACKEND_OK)
	{
		changed = !known || before.len != after.len ||
			!crypto_equal(before.data, after.data, after.len);
		secret_wipe(&after);
	}
	else if (result == BACKEND_ABSENT)
		changed = true;
	call_end(call);
	return changed;
}

/* mlint.secret_refresh() returns int: how many have changed. */
Datum
mlint_secret_refresh(PG_FUNCTION_ARGS)
{
	MemoryContext each = AllocSetContextCreate(CurrentMemoryContext,
											   "mlint secret refresh",
											   ALLOCSET_SMALL_SIZES);
	List	   *watched;
	ListCell   *lc;
	int			changed = 0;

	tend_backends();
	/* By when the next run may have been late. */
	watched = cache_watched(GetCurrentTimestamp() + 75 * USECS_PER_SEC);
	foreach(lc, watched)
	{
		MemoryContext old = MemoryContextSwitchTo(each);

		CHECK_FOR_INTERRUPTS();
		changed += run_apart(refresh_one,
							 ((CacheWatched *) lfirst(lc))->backend,
							 lfirst(lc));
		MemoryContextSwitchTo(old);
		MemoryContextReset(each);
	}
	cache_sweep();
	if (changed > 0)
		secret_values_changed();
	PG_RETURN_INT32(changed);
}
