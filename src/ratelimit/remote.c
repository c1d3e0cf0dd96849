/*
 * remote.c
 *		Rules that several servers share: find the backend, mind its breaker,
 *		and what happens when it is away.
 *
 * A backend is a row of mlint.rate_backend. Each process keeps what it has
 * made of one, with the module's connection in it, until an invalidation of
 * that table says that it was changed; all of it lies in a memory context of
 * its own, whose end closes the connection.
 *
 * A backend that does not answer must cost little: it has its timeout for each
 * round trip, and the breaker in shared memory spares all processes the wait
 * once a few of them have found out. Then, and for each call that failed before,
 * the rule's `fail` decides: to let pass, to refuse, or to count in this
 * server's own table by the same law. It is logged when the breaker opens and
 * when it closes, not for each call.
 *
 * A credential of the backend that does not resolve is a failure like any
 * other. It is resolved when a connection is made, in a subtransaction,
 * because what it raises must not reach whoever asked for a decision.
 *
 * The store's answer is the state that it judged, and its time. What the
 * verdict says comes of that by law.c, so that a shared limit answers in the
 * same words as one of this server's; only the times are moved to our clock.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xact.h"
#include "common/trial.h"
#include "common/credential.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/peertext.h"
#include "common/relwatch.h"
#include "common/rows.h"
#include "common/shmem.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "ratelimit/remote_store.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define MAX_BACKENDS_IN_USE		64

/* Columns of mlint.rate_backend. */
enum
{
	BACKEND_ID = 1, BACKEND_NAME, BACKEND_KIND, BACKEND_OPTIONS
};

typedef struct RemoteShared
{
	LWLock	   *lock;			/* of taking a place */
	RemoteState states[MAX_BACKENDS_IN_USE];
} RemoteShared;

static RemoteShared *shared = NULL;

/* What this process knows. */
static RemoteStore *stores = NULL;
static bool stale = false;
static Oid	backend_table = InvalidOid;

/* ---- shared memory ---- */

static Size
shared_size(void)
{
	return sizeof(RemoteShared);
}

static int
shared_locks(void)
{
	return 1;
}

static void
shared_init(LWLockPadded *locks)
{
	shared->lock = &locks[0].lock;
	for (int i = 0; i < MAX_BACKENDS_IN_USE; i++)
		SpinLockInit(&shared->states[i].lock);
}

static const SharedPart part = {
	.name = "mlint rate backends",
	.size = shared_size,
	.locks = shared_locks,
	.memory = (void **) &shared,
	.init = shared_init
};

/*
 * The state of a backend of this database. If there is no place for it, the
 * one that was not used for the longest time makes room; it may be of a
 * backend or a database that is gone. Who still points to it finds out by its
 * id.
 */
static RemoteState *
state_find(int32 backend)
{
	RemoteState *found = NULL;
	TimestampTz oldest = DT_NOEND;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_BACKENDS_IN_USE; i++)
	{
		RemoteState *state = &shared->states[i];
		TimestampTz used;

		if (state->database == MyDatabaseId && state->backend == backend)
		{
			LWLockRelease(shared->lock);
			return state;
		}
		used = Max(state->last_success_at, state->last_error_at);
		if (used < oldest)
		{
			found = state;
			oldest = used;
		}
	}
	SpinLockAcquire(&found->lock);
	found->database = MyDatabaseId;
	found->backend = backend;
	breaker_reset(&found->breaker);
	found->failures = 0;
	found->last_success_at = found->last_error_at = 0;
	found->last_error[0] = '\0';
	SpinLockRelease(&found->lock);
	LWLockRelease(shared->lock);
	return found;
}

/* Zeros for a backend that has not been used. */
void
remote_state_copy(int32 backend, RemoteState *copy)
{
	memset(copy, 0, sizeof(*copy));
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < MAX_BACKENDS_IN_USE; i++)
	{
		RemoteState *state = &shared->states[i];

		if (state->database != MyDatabaseId || state->backend != backend)
			continue;
		SpinLockAcquire(&state->lock);
		*copy = *state;
		SpinLockRelease(&state->lock);
		break;
	}
	LWLockRelease(shared->lock);
}

/* It was altered: what it did before does not count any more. */
void
remote_state_reset(int32 backend)
{
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < MAX_BACKENDS_IN_USE; i++)
	{
		RemoteState *state = &shared->states[i];

		if (state->database != MyDatabaseId || state->backend != backend)
			continue;
		SpinLockAcquire(&state->lock);
		breaker_reset(&state->breaker);
		SpinLockRelease(&state->lock);
		break;
	}
	LWLockRelease(shared->lock);
}

/* ---- modules ---- */

static char *host_credential(const Credential *c, size_t *len,
							 RemoteFailure *failure);

static const RemoteHost host = {
	.version = REMOTE_VERSION,
	.connect = http_connect,
	.close = http_connection_close,
	.send = http_connection_send,
	.receive = http_connection_receive,
	.wait = http_connection_wait,
	.stale = http_connection_stale,
	.clock = http_clock,
	.credential = host_credential,
	.wipe = crypto_wipe
};

const ConfiguredKind *
remote_load(const char *kind, bool missing_ok)
{
	char	   *library;
	char	   *path;
	RateRemoteEntry entry;
	const RateRemote *remote;

	library = psprintf("$libdir/mlint_%s", kind);
	path = psprintf("%s/mlint_%s%s", pkglib_path, kind, DLSUFFIX);
	if (access(path, R_OK) != 0)
	{
		if (missing_ok)
			return NULL;
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FILE),
				 errmsg("the module for rate backends of kind \"%s\" is not installed",
						kind),
				 errdetail("There is no file \"%s\".", path),
				 errhint("Build mlint where the development files of hiredis are (libhiredis-dev), and install it again.")));
	}
	entry = (RateRemoteEntry) load_external_function(library,
													 "mlint_rate_remote",
													 true, NULL);
	remote = entry(&host);
	if (remote == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("module \"%s\" is not of the mlint that the server has loaded",
						path),
				 errhint("Install both from one build, and restart the server.")));
	return &remote->base;
}

/*
 * A credential's value, or NULL. What resolving it raises is put into the
 * failure, but an interrupt.
 */
static char *
host_credential(const Credential *c, size_t *len, RemoteFailure *failure)
{
	Trial		trial;
	char	   *volatile value = NULL;

	trial_begin(&trial);
	PG_TRY();
	{
		value = credential_resolve(c, len);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
		failure->sqlstate = error->sqlerrcode;
		snprintf(failure->text, sizeof(failure->text),
				 "a credential does not resolve: %s", error->message);
		peer_text_clean(failure->text);
		FreeErrorData(error);
		value = NULL;
	}
	PG_END_TRY();
	return value;
}

/* ---- backends in this process ---- */

/* May be called at any time and anywhere. */
static void
mark_stale(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == backend_table)
		stale = true;
}

void
remote_changed(void)
{
	CacheInvalidateRelcacheByRelid(mlint_relation("rate_backend"));
}

/* Read a backend's row into a store's context. */
static void
store_read(RemoteStore *store, const char *name)
{
	RowScan		scan;
	ScanKeyData key;
	HeapTuple	row;
	bool		isnull;
	char	   *kind;
	const ConfiguredKind *found;
	Jsonb	   *options;
	char	   *what = psprintf("rate backend \"%s\"", name);

	row_key(&key, BACKEND_NAME, F_TEXTEQ, CStringGetTextDatum(name));
	rows_begin(&scan, "rate_backend", "rate_backend_name_key", 1, &key, true);
	row = rows_next(&scan);
	if (row == NULL)
	{
		rows_end(&scan);
		configured_missing(&rate_backends, name);
	}
	store->id = DatumGetInt32(heap_getattr(row, BACKEND_ID, scan.desc,
										   &isnull));
	store->name = pstrdup(name);
	kind = TextDatumGetCString(heap_getattr(row, BACKEND_KIND, scan.desc,
											&isnull));
	options = DatumGetJsonbPCopy(heap_getattr(row, BACKEND_OPTIONS,
											  scan.desc, &isnull));
	rows_end(&scan);
	found = configured_kind(&rate_backends, kind);
	store->kind = (const RateRemote *) found;
	store->options = configured_parse(&rate_backends, found, options, what);
	store->state = state_find(store->id);
	store->store = store->kind->open(store->options);
}

RemoteStore *
remote_store(const char *backend)
{
	MemoryContext context;
	MemoryContext caller = CurrentMemoryContext;
	RemoteStore *store;

	if (unlikely(stale))
	{
		/* In this order: closing a connection must not come twice. */
		stale = false;
		while ((store = stores) != NULL)
		{
			stores = store->next;
			MemoryContextDelete(store->context);
		}
	}
	for (store = stores; store != NULL; store = store->next)
	{
		if (strcmp(store->name, backend) != 0)
			continue;
		if (unlikely(store->state->backend != store->id ||
					 store->state->database != MyDatabaseId))
			store->state = state_find(store->id);
		return store;
	}

	backend_table = mlint_relation("rate_backend");
	/* Below the caller's until it is whole. */
	context = AllocSetContextCreate(CurrentMemoryContext,
									"mlint rate backend",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	store = palloc0(sizeof(RemoteStore));
	store->context = context;
	store_read(store, backend);
	MemoryContextSwitchTo(caller);
	MemoryContextSetParent(context, TopMemoryContext);
	store->next = stores;
	stores = store;
	return store;
}

/* ---- asking ---- */

/* May it be called now? If not, when. */
static bool
breaker_lets(RemoteState *state, int64 *retry_after)
{
	TimestampTz now;
	bool		lets;

	/* Unlocked: a closed one that has just opened costs one call more. */
	if (likely(state->breaker.state == BREAKER_CLOSED))
		return true;
	now = GetCurrentTimestamp();
	SpinLockAcquire(&state->lock);
	lets = breaker_allows(&state->breaker, now, true);
	*retry_after = Max(state->breaker.retry_at - now, 1000);
	SpinLockRelease(&state->lock);
	return lets;
}

bool
remote_is_away(const RemoteStore *store, int64 *retry_after)
{
	RemoteState *state = store->state;
	TimestampTz now;
	bool		away;

	if (likely(state->breaker.state == BREAKER_CLOSED))
		return false;
	now = GetCurrentTimestamp();
	SpinLockAcquire(&state->lock);
	away = !breaker_allows(&state->breaker, now, false);
	*retry_after = Max(state->breaker.retry_at - now, 1000);
	SpinLockRelease(&state->lock);
	return away;
}

/* Tell the breaker, the view and the log how a call ended. */
static void
account(RemoteStore *store, const RemoteFailure *failure, int64 *retry_after)
{
	RemoteState *state = store->state;
	TimestampTz now = GetCurrentTimestamp();
	BreakerState before;
	BreakerState after;

	SpinLockAcquire(&state->lock);
	before = state->breaker.state;
	if (failure == NULL)
	{
		breaker_success(&state->breaker);
		state->last_success_at = now;
	}
	else
	{
		(void) breaker_failure(&state->breaker, &store->options->breaker, now);
		state->failures++;
		state->last_error_at = now;
		memcpy(state->last_error, failure->text, sizeof(state->last_error));
	}
	after = state->breaker.state;
	*retry_after = after == BREAKER_CLOSED ?
		store->options->timeout_ms * INT64CONST(1000) :
		Max(state->breaker.retry_at - now, 1000);
	SpinLockRelease(&state->lock);

	if (failure && before == BREAKER_CLOSED && after != BREAKER_CLOSED)
		ereport(LOG,
				(errcode(failure->sqlstate),
				 errmsg("rate backend \"%s\" is away: %s", store->name,
						failure->text),
				 errdetail("Its circuit breaker is open; it is tried again every %d s. Until then each rule does what its \"fail\" says.",
						   store->options->breaker.timeout_s)));
	else if (failure == NULL && before != BREAKER_CLOSED)
		ereport(LOG,
				(errmsg("rate backend \"%s\" answers again", store->name)));
}

bool
remote_ask(RemoteStore *store, const RemoteAsk *ask, RemoteAnswer *answer,
		   int64 *retry_after)
{
	RemoteFailure failure = {0};
	bool		answered;

	if (!breaker_lets(store->state, retry_after))
		return false;
	answered = store->kind->decide(store->store, ask, answer, &failure);
	/* As long as all is well, it is told once a second. */
	if (unlikely(!answered || store->state->breaker.failures > 0 ||
				 store->state->breaker.state != BREAKER_CLOSED ||
				 http_clock() - store->told_at > USECS_PER_SEC))
	{
		account(store, answered ? NULL : &failure, retry_after);
		store->told_at = http_clock();
	}
	return answered;
}

static void
pg_attribute_noreturn()
raise_failure(const RemoteStore *store, const RemoteFailure *failure)
{
	ereport(ERROR,
			(errcode(failure->sqlstate),
			 errmsg("could not use rate backend \"%s\": %s", store->name,
					pstrdup(failure->text))));
}

/* For what must not be done by halves. */
static void
pg_attribute_noreturn()
raise_away(const RemoteStore *store)
{
	RemoteState *state = store->state;
	RemoteFailure failure = {.sqlstate = ERRCODE_MLINT_CONNECTION};

	SpinLockAcquire(&state->lock);
	memcpy(failure.text, state->last_error, sizeof(failure.text));
	SpinLockRelease(&state->lock);
	raise_failure(store, &failure);
}

char *
remote_test(const char *backend)
{
	RemoteStore *store = remote_store(backend);
	RemoteFailure failure = {0};
	char	   *words = NULL;
	int64		retry_after;
	bool		answered = store->kind->test(store->store, &words, &failure);

	account(store, answered ? NULL : &failure, &retry_after);
	if (!answered)
		raise_failure(store, &failure);
	return words;
}

/*
 * What identifies a state in the store: rule and identifier, as our own table
 * knows it, with the braces that keep it in one place of a cluster. Whatever a
 * rule is called, no two of them can make the same key.
 */
static void
append_rule(StringInfo buf, const char *name)
{
	for (const char *p = name; *p; p++)
	{
		if (strchr(":{}%", *p) || (unsigned char) *p <= ' ')
			appendStringInfo(buf, "%%%02x", (unsigned char) *p);
		else
			appendStringInfoChar(buf, *p);
	}
	appendStringInfoChar(buf, ':');
}

char *
remote_key(const char *rule, const RateKey *key, size_t *len)
{
	StringInfoData buf;

	initStringInfo(&buf);
	append_rule(&buf, rule);
	appendStringInfoChar(&buf, '{');
	appendBinaryStringInfo(&buf, key->text,
						   Min(key->len, RATE_KEY_TEXT));
	appendStringInfoString(&buf, key->len > RATE_KEY_TEXT ? "}#" : "}");
	*len = buf.len;
	return buf.data;
}

/* ---- deciding ---- */

/* An exact decision. False: the backend is away. */
static bool
exact_decide(RemoteStore *store, const RateRule *rule, const RateLaw *law,
			 const RateKey *key, int64 cost, RateIntent intent,
			 RateVerdict *verdict, int64 *retry_after)
{
	RemoteAsk	ask = {.law = law,.intent = intent};
	RemoteAnswer answer;
	char	   *text;
	bool		answered;

	ask.key = text = remote_key(rule->name, key, &ask.key_len);

	if (intent == RATE_GIVE)
		ask.give = cost;
	else
		ask.need = ask.want = cost;
	answered = remote_ask(store, &ask, &answer, retry_after);
	pfree(text);
	if (!answered)
		return false;
	law_decide(law, &answer.before, answer.now, cost,
			   intent == RATE_GIVE ? RATE_PEEK : intent, verdict);
	if (intent == RATE_GIVE)
	{
		verdict->allowed = true;
		verdict->retry_after = verdict->delay = 0;
	}
	else if (intent == RATE_TAKE || intent == RATE_TAKE_NOW)
	{
		/* It is the store's decision, which must be the law's as well. */
#ifdef MLINT_INJECTION_POINTS
		if (verdict->allowed != (answer.taken > 0))
			elog(ERROR, "rate backend \"%s\" decides by another law",
				 store->name);
#endif
		verdict->allowed = answer.taken > 0;
	}
	verdict->reset_at += rate_now() - answer.now;
	return true;
}

/*
 * Decide by this server's own table. A leased rule has its slices under the
 * plain key, so what is counted here is under another.
 */
static void
local_decide(const RateRule *rule, const RateLaw *law, const char *identifier,
			 Size len, int64 cost, RateIntent intent, bool in_turn,
			 RateVerdict *verdict)
{
	RateAsk		ask = {.law = law,.cost = cost};

	if (rule->mode == RATE_LEASED)
	{
		char	   *own = palloc(len + 1);

		own[0] = '\0';
		memcpy(own + 1, identifier, len);
		rate_key(&ask.key, rule->slot, own, len + 1);
		pfree(own);
	}
	else
		rate_key(&ask.key, rule->slot, identifier, len);
	(void) table_decide(&ask, 1, intent, in_turn, verdict, NULL);
}

/* Decide without the backend. */
static void
away_decide(const RateRule *rule, const RateLaw *law, const RateKey *key,
			const char *identifier, Size len, int64 cost, RateIntent intent,
			bool in_turn, int64 retry_after, RateVerdict *verdict)
{
	bool		counts = intent == RATE_TAKE || intent == RATE_TAKE_NOW;

	if (rule->fail == RATE_FAIL_LOCAL)
	{
		local_decide(rule, law, identifier, len, cost, intent, in_turn,
					 verdict);
		return;
	}
	memset(verdict, 0, sizeof(*verdict));
	verdict->capacity = law->burst;
	verdict->reset_at = rate_now();
	verdict->allowed = rule->fail == RATE_FAIL_OPEN || intent == RATE_GIVE;
	if (verdict->allowed)
		verdict->remaining = law->burst - (counts ? cost : 0);
	else
	{
		verdict->retry_after = retry_after;
		verdict->reset_at += retry_after;
	}
	if (counts)
		table_count(key, verdict->allowed);
}

bool
remote_decide(const RateRule *rule, const RateLaw *law,
			  const char *identifier, Size len, int64 cost,
			  RateIntent intent, bool in_turn, RateVerdict *verdict,
			  bool *degraded, const char **reason)
{
	RemoteStore *store = remote_store(rule->backend);
	RateKey		key;
	int64		retry_after = 0;
	bool		answered;

	*degraded = false;
	*reason = NULL;
	rate_key(&key, rule->slot, identifier, len);
	if (rule->mode == RATE_LEASED)
		answered = lease_decide(store, rule, law, &key, cost, intent, in_turn,
								verdict, &retry_after);
	else
	{
		if (!in_turn && intent != RATE_GIVE && intent != RATE_FORGET &&
			table_is_waiting(&key))
		{
			memset(verdict, 0, sizeof(*verdict));
			verdict->capacity = law->burst;
			verdict->remaining = cost;
			verdict->retry_after = Max(law->token_us, 1);
			verdict->reset_at = rate_now() + verdict->retry_after;
			*reason = "waiting";
			return false;
		}
		answered = exact_decide(store, rule, law, &key, cost, intent, verdict,
								&retry_after);
		if (answered && (intent == RATE_TAKE || intent == RATE_TAKE_NOW))
			table_count(&key, verdict->allowed);
	}
	if (intent == RATE_FORGET)
	{
		if (!answered)
			raise_away(store);
		/* What was counted here while the backend was away goes as well. */
		local_decide(rule, law, identifier, len, cost, intent, in_turn,
					 verdict);
	}
	else if (!answered)
	{
		away_decide(rule, law, &key, identifier, len, cost, intent, in_turn,
					retry_after, verdict);
		*degraded = true;
		*reason = "backend";
	}
	return verdict->allowed;
}

/* ---- for those who change rules ---- */

void
remote_check_law(const char *rule, const char *backend, const RateLaw *law)
{
	const char *wrong = remote_store(backend)->kind->check_law(law);

	if (wrong)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("rate limit \"%s\" cannot be kept by backend \"%s\"",
						rule, backend),
				 errdetail_internal("%s", wrong)));
}

void
remote_check_rule(const RateRule *rule)
{
	remote_check_law(rule->name, rule->backend, &rule->law);
	if (rule->mode != RATE_LEASED)
		return;
	if (rule->law.algorithm == RATE_LEAKY_BUCKET)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("a leaky_bucket cannot be leased"),
				 errdetail("Several servers that each have a part of it could not keep the spacing."),
				 errhint("Use mode exact, or a token_bucket.")));
	if (rule->law.per < USECS_PER_SEC)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("a rate limit with \"per\" below a second cannot be leased"),
				 errdetail("A slice is borrowed for a second."),
				 errhint("Use mode exact, or ten times the rate in ten times the time.")));
	lease_begin();
}

void
remote_forget_rule(const RateRule *rule)
{
	RemoteStore *store = remote_store(rule->backend);
	RemoteFailure failure = {0};
	StringInfoData beginning;
	int64		retry_after;
	bool		answered;

	initStringInfo(&beginning);
	append_rule(&beginning, rule->name);
	answered = store->kind->forget(store->store, beginning.data,
								   beginning.len, &failure);
	account(store, answered ? NULL : &failure, &retry_after);
	if (!answered)
		raise_failure(store, &failure);
}

void
remote_init(void)
{
	shared_part(&part);
	lease_init();
	relation_watch(mark_stale, (Datum) 0);
}
