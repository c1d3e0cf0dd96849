/*
 * publish.c
 *		publish() and send(): one row, in the caller's transaction.
 *
 * The row goes straight into the newest partition of mlint.event (append.h),
 * which is looked up once, and again when anything about the log changes.
 *
 * At commit, when the row is visible, the dispatchers of this database are
 * woken. COMMIT PREPARED does not wake them; they look once a minute anyway.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "common/argument.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "common/append.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/retention.h"
#include "common/rows.h"
#include "delivery/delivery.h"
#include "delivery/stats.h"
#include "ratelimit/ratelimit.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_publish);
PG_FUNCTION_INFO_V1(mlint_send);

#define TYPE_MAX		255
#define KEY_MAX			255
#define EVENT_NATTS		12

int			delivery_event_max_bytes = 1024 * 1024;
static char *event_retention = NULL;

/*
 * This run of the server, at random; drawn by the postmaster and inherited.
 * Two servers that go on from the same data each have their own.
 */
static int32 life;

static void find_newest(AppendTarget *target);

/* The newest segment, as this backend knows it. */
static AppendTarget target = {.name = "the event log",.find = find_newest};
static int	target_segment;
static Oid	target_sequence;

void
delivery_init(void)
{
	crypto_random((uint8 *) &life, sizeof(life));
	DefineCustomIntVariable("mlint.event_max_bytes",
							"Largest data and metadata of one event, as stored.",
							"A dispatcher holds the events that it is delivering in memory: raise it with care.",
							&delivery_event_max_bytes, 1024 * 1024, 1024,
							256 * 1024 * 1024, PGC_SUSET, GUC_UNIT_BYTE,
							NULL, NULL, NULL);
	DefineCustomStringVariable("mlint.event_retention",
							   "How long finished events are kept.",
							   "They are dropped in segments of a seventh of this time, so an event stays up to a seventh longer.",
							   &event_retention, "7 days", PGC_SIGHUP, 0,
							   retention_check, NULL, NULL);
	stats_init();
	rate_rule_watch(destination_of_rate_rule);
	append_watch(&target);
}

/* Find the newest partition: the last, since segments only grow. */
static void
find_newest(AppendTarget *newest)
{
	Relation	parent;
	PartitionDesc desc;
	PartitionBoundInfo bound;

	newest->from[0] = mlint_relation("event");
	newest->from[1] = target_sequence = mlint_relation("event_id");
	parent = table_open(newest->from[0], AccessShareLock);
	desc = RelationGetPartitionDesc(parent, true);
	if (desc->nparts == 0)
		elog(ERROR, "mlint.event has no partition");
	bound = desc->boundinfo;
	newest->table = desc->oids[bound->indexes[bound->ndatums - 1]];
	target_segment = DatumGetInt32(bound->datums[bound->ndatums - 1][0]);
	table_close(parent, AccessShareLock);
}

static void
insert_event(int64 id, const char *type, Jsonb *data, Jsonb *metadata,
			 const char *key, TimestampTz deliver_at, int32 destination_id)
{
	Relation	leaf = append_open(&target);
	Datum		values[EVENT_NATTS];
	bool		nulls[EVENT_NATTS] = {0};

	values[0] = Int64GetDatum(id);
	values[1] = Int32GetDatum(target_segment);
	values[2] = Int32GetDatum(life);
	values[3] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[4] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[5] = TimestampTzGetDatum(deliver_at);
	nulls[5] = deliver_at == 0;
	values[6] = Int32GetDatum(destination_id);
	nulls[6] = destination_id == 0;
	values[7] = CStringGetTextDatum(type);
	values[8] = key ? CStringGetTextDatum(key) : (Datum) 0;
	nulls[8] = key == NULL;
	values[9] = JsonbPGetDatum(data);
	values[10] = JsonbPGetDatum(metadata);
	nulls[11] = true;

	(void) append_row(&target, leaf, values, nulls);
	/* The lock stays until the transaction ends. */
	table_close(leaf, NoLock);
}

/*
 * Claim a key. Returns 0 when it is ours, or the event that it stands for.
 */
static int64
claim_key(const char *key, int64 id)
{
	Oid			types[2] = {TEXTOID, INT8OID};
	Datum		values[2] = {CStringGetTextDatum(key), Int64GetDatum(id)};
	OwnerScope	scope;
	int64		holder = 0;
	bool		isnull;

	owner_begin(&scope);
	/* A forgotten key is taken over; a live one keeps its event. */
	owner_run(NULL, "INSERT INTO mlint.event_key AS k VALUES"
			  " ($1, $2, clock_timestamp())"
			  " ON CONFLICT (key) DO UPDATE"
			  " SET event_id = excluded.event_id,"
			  " published_at = excluded.published_at"
			  " WHERE k.published_at < clock_timestamp()"
			  " - interval '24 hours'",
			  SPI_OK_INSERT, 2, types, values, NULL);
	if (SPI_processed == 0)
	{
		if (SPI_execute_with_args("SELECT event_id FROM mlint.event_key WHERE key = $1",
								  1, types, values, NULL, false,
								  1) != SPI_OK_SELECT || SPI_processed != 1)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not serialize access to the event key \"%s\"",
							key),
					 errhint("Retry the transaction.")));
		holder = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											 SPI_tuptable->tupdesc, 1,
											 &isnull));
	}
	owner_end(&scope);
	return holder;
}

int64
event_publish(const char *type, Jsonb *data, Jsonb *metadata,
			  const char *key, TimestampTz deliver_at, int32 destination_id)
{
	int64		id;
	int64		holder;

	append_know(&target);
	id = nextval_internal(target_sequence, false);
	holder = key ? claim_key(key, id) : 0;
	if (holder != 0)
		return holder;
	insert_event(id, type, data, metadata, key, deliver_at, destination_id);
	worker_wake_at_commit(WORKER_DISPATCHER);
	return id;
}

/* What may be an event's type or key. */
static void
check_name(const char *name, const char *what, int max)
{
	size_t		len = strlen(name);

	if (len == 0 || len > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be 1 to %d bytes long, not %zu", what, max,
						len)));
	for (const char *p = name; *p; p++)
	{
		if ((unsigned char) *p < ' ' || *p == 0x7f)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s contains a control character", what)));
	}
}

/* The arguments that publish() and send() share, from the given one on. */
static int64
publish_args(FunctionCallInfo fcinfo, int first, int32 destination_id)
{
	static const char *const names[] = {"event_type", "data", "metadata"};
	char	   *type;
	char	   *key = NULL;
	Size		bytes;
	TimestampTz deliver_at = 0;

	require_writable(fcinfo);
	for (int i = 0; i < 3; i++)
	{
		if (PG_ARGISNULL(first + i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be null", names[i])));
	}
	type = text_to_cstring(PG_GETARG_TEXT_PP(first));
	check_name(type, "event_type", TYPE_MAX);
	bytes = toast_raw_datum_size(PG_GETARG_DATUM(first + 1)) +
		toast_raw_datum_size(PG_GETARG_DATUM(first + 2));
	if (bytes > delivery_event_max_bytes)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the event has %zu bytes of data and metadata, more than mlint.event_max_bytes (%d)",
						bytes, delivery_event_max_bytes),
				 errhint("Publish a reference to where the data lies, or raise mlint.event_max_bytes.")));
	if (!PG_ARGISNULL(first + 3))
	{
		key = text_to_cstring(PG_GETARG_TEXT_PP(first + 3));
		check_name(key, "key", KEY_MAX);
	}
	if (!JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(first + 2)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("metadata must be a JSON object")));

	if (!PG_ARGISNULL(first + 4))
	{
		deliver_at = PG_GETARG_TIMESTAMPTZ(first + 4);
		if (TIMESTAMP_NOT_FINITE(deliver_at))
			ereport(ERROR,
					(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
					 errmsg("deliver_at must be a finite time")));
	}
	return event_publish(type, PG_GETARG_JSONB_P(first + 1),
						 PG_GETARG_JSONB_P(first + 2), key, deliver_at,
						 destination_id);
}

/* mlint.publish(event_type, data, metadata, key, deliver_at) */
Datum
mlint_publish(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(publish_args(fcinfo, 0, 0));
}

/* mlint.send(destination, event_type, data, metadata, key, deliver_at) */
Datum
mlint_send(PG_FUNCTION_ARGS)
{
	char	   *name;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("destination must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	PG_RETURN_INT64(publish_args(fcinfo, 1, destination_id(name, NULL)));
}
