/*
 * destination.c
 *		A dispatcher's view of the destinations; see destination.h.
 *
 * Matching is by glob patterns over all destinations, so its result is kept
 * for each event type seen: ten thousand destinations cost an event nothing
 * once its type is known. The kept results are dropped whenever a destination
 * changes, and when types turn out to be too many to keep.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "common/trial.h"
#include "common/glob.h"
#include "delivery/destination.h"

/* A destination that cannot be opened is tried again after this. */
#define BROKEN_RETRY_S	60
#define MAX_KEPT_TYPES	1024
/* Destinations kept open that have nothing to deliver. */
#define MAX_OPEN		256

typedef struct Match
{
	char		type[256];		/* hash key; longer types are not kept */
	int			n;
	Destination **destinations;
} Match;

static int	my_lane;
static int	my_lanes;
static int64 loaded_generation = -1;
static HTAB *by_id = NULL;
static Destination **all = NULL;	/* this lane's */
static int	nall = 0;
static int	room = 0;
static int	nopen = 0;

static MemoryContext match_context = NULL;
static HTAB *matches = NULL;

/* The registry's index: id to destination. */
typedef struct DestinationRef
{
	int32		id;
	Destination *destination;
} DestinationRef;

static void
forget_matches(void)
{
	if (match_context)
		MemoryContextDelete(match_context);
	match_context = NULL;
	matches = NULL;
}

static Destination *
find_destination(int32 id)
{
	DestinationRef *ref = hash_search(by_id, &id, HASH_FIND, NULL);

	return ref ? ref->destination : NULL;
}

static Destination *
add_destination(int32 id)
{
	DestinationRef *ref = hash_search(by_id, &id, HASH_ENTER, NULL);
	Destination *d = MemoryContextAllocZero(TopMemoryContext,
											sizeof(Destination));

	ref->destination = d;
	d->id = id;
	dlist_init(&d->ready);
	dlist_init(&d->flying);
	d->next_due = PG_INT64_MAX;
	d->breaker_resets = STATS_UNKNOWN;
	if (nall == room)
	{
		room = room ? room * 2 : 64;
		all = all ? repalloc(all, sizeof(Destination *) * room) :
			MemoryContextAlloc(TopMemoryContext,
							   sizeof(Destination *) * room);
	}
	all[nall++] = d;
	return d;
}

static void
free_patterns(Destination *d)
{
	for (int i = 0; i < d->npatterns; i++)
		pfree(d->patterns[i]);
	if (d->patterns)
		pfree(d->patterns);
	d->patterns = NULL;
	d->npatterns = 0;
}

static void
set_patterns(Destination *d, ArrayType *array)
{
	Datum	   *values;
	int			n;

	free_patterns(d);
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL,
					  &n);
	d->patterns = MemoryContextAlloc(TopMemoryContext,
									 sizeof(char *) * Max(n, 1));
	for (int i = 0; i < n; i++)
		d->patterns[i] = MemoryContextStrdup(TopMemoryContext,
											 TextDatumGetCString(values[i]));
	d->npatterns = n;
}

void
destinations_init(int lane, int lanes)
{
	HASHCTL		ctl = {0};

	for (int i = 0; i < nall; i++)
	{
		destination_close(all[i]);
		free_patterns(all[i]);
		pfree(all[i]->name);
		pfree(all[i]);
	}
	nall = 0;
	loaded_generation = -1;
	if (by_id)
		hash_destroy(by_id);
	forget_matches();

	my_lane = lane;
	my_lanes = lanes;
	ctl.keysize = sizeof(int32);
	ctl.entrysize = sizeof(DestinationRef);
	by_id = hash_create("mlint destinations", 256, &ctl,
						HASH_ELEM | HASH_BLOBS);
}

/* Dropped destinations whose pending rows are ours to delete. */
static List *dropped_ids = NIL;

/*
 * Whoever drops a destination must not touch its pending rows: he would lock
 * them, and keep us waiting for as long as he likes.
 */
static void
forget_dropped(void)
{
	Oid			types[1] = {INT4OID};
	ListCell   *lc;

	foreach(lc, dropped_ids)
	{
		Datum		values[1] = {Int32GetDatum(lfirst_int(lc))};

		if (SPI_execute_with_args("DELETE FROM mlint.pending WHERE destination_id = $1",
								  1, types, values, NULL, false,
								  0) != SPI_OK_DELETE)
			elog(ERROR, "could not delete from mlint.pending");
	}
	dropped_ids = NIL;
}

/* Take in one row of mlint.destination. */
static void
load_row(HeapTuple tuple, TupleDesc desc)
{
#define FIELD(n) SPI_getbinval(tuple, desc, n, &isnull)
	bool		isnull;
	int32		id = DatumGetInt32(FIELD(1));
	bool		runs_sql = DatumGetBool(FIELD(6));
	bool		dropped = DatumGetBool(FIELD(9));
	bool		mine = runs_sql ? my_lane == 0 : my_lane == 1 + id % my_lanes;
	Destination *d = find_destination(id);

	if (dropped && mine)
	{
		dropped_ids = lappend_int(dropped_ids, id);
		stats_forget(id);
	}
	if (d == NULL && (!mine || dropped))
		return;
	if (d == NULL)
		d = add_destination(id);
	if (d->name)
		pfree(d->name);
	d->name = MemoryContextStrdup(TopMemoryContext,
								  TextDatumGetCString(FIELD(2)));
	d->driver = driver_find(TextDatumGetCString(FIELD(3)));
	set_patterns(d, DatumGetArrayTypeP(FIELD(4)));
	d->dropped = dropped;
	d->enabled = DatumGetBool(FIELD(5)) && !dropped && !d->gone;
	d->runs_sql = runs_sql;
	d->owner = DatumGetObjectId(FIELD(7));
	d->after_event_id = DatumGetInt64(FIELD(8));

	/* It may have become deliverable, or be wanted again at once. */
	d->stale = true;
	d->broken_until = 0;
	d->next_due = DatumGetTimestampTz(FIELD(10));
	if (isnull)
		d->next_due = PG_INT64_MAX;
	d->lagging = d->next_due <= GetCurrentTimestamp();
	d->hold_until = 0;
	d->limited_until = 0;
	d->after_time = DT_NOBEGIN;
	d->after_id = 0;
}

void
destinations_load(int64 generation, bool *sql_lane)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(loaded_generation)};

	*sql_lane = false;
	dropped_ids = NIL;
	if (generation == loaded_generation)
		return;
	if (SPI_execute_with_args("SELECT id, name, driver, events, enabled,"
							  " runs_sql, owner, after_event_id,"
							  " dropped_at IS NOT NULL,"
							  " (SELECT min(next_attempt_at) FROM mlint.pending p"
							  "  WHERE p.destination_id = d.id)"
							  " FROM mlint.destination d WHERE generation > $1",
							  1, types, values, NULL, true,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.destination");
	for (uint64 i = 0; i < SPI_processed; i++)
		load_row(SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
	forget_dropped();

	/* Not what destinations there are: the cursor of lane 0 must move. */
	if (SPI_execute("SELECT FROM mlint.log_cursor WHERE lane = 0", true,
					1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.log_cursor");
	*sql_lane = SPI_processed == 1;
	loaded_generation = generation;
	forget_matches();
}

int64
destinations_generation(void)
{
	return loaded_generation;
}

void
destinations_mark_stale(void)
{
	for (int i = 0; i < nall; i++)
	{
		all[i]->stale = true;
		all[i]->broken_until = 0;
	}
}

static bool
matches_type(const Destination *d, const char *type)
{
	for (int i = 0; i < d->npatterns; i++)
	{
		if (glob_match(d->patterns[i], type))
			return true;
	}
	return false;
}

/* Compare an event's type with every destination, once. */
static Match *
match_type(const char *type)
{
	Match	   *match;
	bool		found;

	if (matches && hash_get_num_entries(matches) >= MAX_KEPT_TYPES)
		forget_matches();
	if (match_context == NULL)
	{
		HASHCTL		ctl = {0};

		match_context = AllocSetContextCreate(TopMemoryContext,
											  "mlint matches",
											  ALLOCSET_DEFAULT_SIZES);
		ctl.keysize = sizeof(((Match *) NULL)->type);
		ctl.entrysize = sizeof(Match);
		ctl.hcxt = match_context;
		matches = hash_create("mlint matches", 64, &ctl,
							  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	}
	match = hash_search(matches, type, HASH_ENTER, &found);
	if (found)
		return match;

	match->n = 0;
	match->destinations = NULL;
	for (int i = 0; i < nall; i++)
	{
		if (!all[i]->dropped && matches_type(all[i], type))
			match->n++;
	}
	match->destinations = MemoryContextAlloc(match_context,
											 sizeof(Destination *) *
											 Max(match->n, 1));
	for (int i = 0, n = 0; i < nall; i++)
	{
		if (!all[i]->dropped && matches_type(all[i], type))
			match->destinations[n++] = all[i];
	}
	return match;
}

Destination *const *
destinations_match(const EventHead *head, int *n)
{
	static Destination *alone;

	if (head->destination_id != 0)
	{
		alone = find_destination(head->destination_id);
		*n = alone != NULL && !alone->dropped;
		return &alone;
	}
	else
	{
		Match	   *match = match_type(head->type);

		*n = match->n;
		return match->destinations;
	}
}

Destination *
destinations_get(int i)
{
	return all[i];
}

Destination *
destinations_next(int *cursor)
{
	return *cursor < nall ? all[(*cursor)++] : NULL;
}

int
destinations_count(void)
{
	return nall;
}

int
destinations_enabled(void)
{
	int			n = 0;

	for (int i = 0; i < nall; i++)
		n += all[i]->enabled;
	return n;
}

void
destination_close(Destination *d)
{
	if (d->state && d->driver)
		d->driver->close(d->state);
	d->state = NULL;
	d->options = NULL;
	if (d->context)
		MemoryContextDelete(d->context);
	d->context = NULL;
}

/* The part of destination_open() that may raise. */
static void
open_driver(Destination *d, HttpClient *http)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(d->id)};
	bool		isnull;
	Jsonb	   *options;
	MemoryContext old;

	if (d->driver == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("its driver is not part of the mlint that the server has loaded"),
				 errhint("Restart the server with the library that the extension's version belongs to.")));
	if (SPI_execute_with_args("SELECT options FROM mlint.destination WHERE id = $1",
							  1, types, values, NULL, true,
							  1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "destination %d has vanished", d->id);
	options = DatumGetJsonbP(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1, &isnull));

	d->context = AllocSetContextCreate(TopMemoryContext, "mlint destination",
									   ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(d->context);
	d->options = driver_parse_options(d->driver, options, d->name);
	d->state = d->driver->open(d->options, d->owner,
							   d->driver->submit ? http : NULL);
	MemoryContextSwitchTo(old);
	/* What its owner was allowed when it was created may have been revoked. */
	driver_check_rights(d->driver, d->options, d->owner, d->name);
}

/* It cannot be used, and this is why. Takes the error. */
static void
mark_broken(Destination *d, ErrorData *error)
{
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	if (d->broken)
		pfree(d->broken);
	d->broken = MemoryContextStrdup(TopMemoryContext, error->message);
	FreeErrorData(error);
}

/* Close those that have nothing to deliver; they open again when they have. */
static void
close_idle(void)
{
	nopen = 0;
	for (int i = 0; i < nall; i++)
	{
		Destination *d = all[i];

		if (d->context && d->nready == 0 && d->in_flight == 0)
			destination_close(d);
		else if (d->context)
			nopen++;
	}
}

bool
destination_open(Destination *d, HttpClient *http, TimestampTz now)
{
	Trial		trial;

	if (d->context && !d->stale)
		return true;
	/* Deliveries under way still use what is open. */
	if (d->stale && d->in_flight > 0)
		return d->context != NULL;
	if (d->broken_until > now)
		return false;

	if (d->context == NULL && ++nopen > MAX_OPEN)
		close_idle();
	destination_close(d);
	if (d->breaker_resets == STATS_UNKNOWN)
	{
		stats_exchange(d->id, NULL, &d->breaker, &d->breaker_resets);
		/* A probe that another process had out ended with it. */
		d->breaker.probing = false;
	}
	d->stale = false;
	if (d->broken)
		pfree(d->broken);
	d->broken = NULL;
	d->broken_until = 0;
	trial_begin(&trial);
	/* What is left over goes with the transaction. */
	MemoryContextSwitchTo(CurTransactionContext);
	PG_TRY();
	{
		open_driver(d, http);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		mark_broken(d, trial_failed(&trial));
		destination_close(d);
		d->broken_until = now + BROKEN_RETRY_S * USECS_PER_SEC;
	}
	PG_END_TRY();
	return d->context != NULL;
}

bool
destination_check(Destination *d)
{
	Trial		trial;

	trial_begin(&trial);
	MemoryContextSwitchTo(CurTransactionContext);
	PG_TRY();
	{
		driver_check_rights(d->driver, d->options, d->owner, d->name);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		mark_broken(d, trial_failed(&trial));
		d->stale = true;
	}
	PG_END_TRY();
	return !d->stale;
}
