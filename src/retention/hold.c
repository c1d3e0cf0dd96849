/*
 * hold.c
 *		Holds, and the triggers that keep what is held.
 *
 * A hold is a row of mlint.hold that is not released; it is on a session, so
 * archiving and restoring change nothing about it. Whoever places one locks
 * the session's row FOR KEY SHARE, and whoever deletes locks it FOR UPDATE, so
 * that they wait for each other; the one who deletes then looks with the
 * latest snapshot, so that a hold that was committed a moment before counts in
 * any isolation level.
 *
 * Three sorts of triggers stand in the way:
 *
 * - BEFORE DELETE on mlint.session and mlint.archive, of everybody, our own
 *	 functions included. A row trigger finds the row locked already; for an
 *	 archive the session's row is locked here. An archive may go when the
 *	 session is live again and has as many messages as the archive: that is
 *	 how a restore ends.
 *
 * - AFTER UPDATE OR DELETE on what a session and an archive are made of, for
 *	 those who go past our functions. (Those delete messages by the million,
 *	 and only after one of the first sort would have had its say.)
 *
 * - BEFORE TRUNCATE of each of these tables, which waits for holds that are
 *	 being placed.
 *
 * A hold's own row changes only when it is released, here, and goes only when
 * it was. Whoever may disable triggers can do anything; docs/retention.md says
 * so.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/owner.h"
#include "common/rows.h"
#include "retention/retention.h"

PG_FUNCTION_INFO_V1(mlint_owner_scope_open);
PG_FUNCTION_INFO_V1(mlint_hold_guard);

/* Columns of mlint.hold. */
#define HOLD_SESSION		2
#define HOLD_REASON			3
#define HOLD_RELEASED_AT	7

/* hold_release() is at work: the one who may change a hold. */
static bool releasing = false;

/* ---- for the other rooms ---- */

/* The reason of the first hold that is not released, palloc'd, or NULL. */
static char *
first_hold(int nkeys, ScanKey keys)
{
	RowScan		scan;
	HeapTuple	row;
	char	   *reason = NULL;

	rows_begin(&scan, "hold", "hold_session", nkeys, keys, true);
	while (reason == NULL && (row = rows_next(&scan)) != NULL)
	{
		bool		unreleased;
		bool		isnull;

		(void) heap_getattr(row, HOLD_RELEASED_AT, scan.desc, &unreleased);
		if (unreleased)
			reason = TextDatumGetCString(heap_getattr(row, HOLD_REASON,
													  scan.desc, &isnull));
	}
	rows_end(&scan);
	return reason;
}

char *
retention_hold(int64 session)
{
	ScanKeyData key;

	row_key(&key, HOLD_SESSION, F_INT8EQ, Int64GetDatum(session));
	return first_hold(1, &key);
}

static void
pg_attribute_noreturn()
held(const char *what, const char *reason)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_HELD),
			 errmsg("%s is under a legal hold", what),
			 errdetail("Reason: %s", reason),
			 errhint("mlint.holds shows who placed it; mlint.archive_release() ends it.")));
}

void
retention_refuse_held(int64 session, const char *what)
{
	char	   *reason = retention_hold(session);

	if (reason)
		held(what, reason);
}

int64
hold_place(int64 session, const char *reason)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(session),
		CStringGetTextDatum(reason),
	CStringGetTextDatum(GetUserNameFromId(owner_caller(), false))};
	bool		isnull;

	owner_run(NULL, "INSERT INTO mlint.hold (session, reason, placed_by)"
			  " VALUES ($1, $2, $3) RETURNING id",
			  SPI_OK_INSERT_RETURNING, 3, types, values, NULL);
	return DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, 1, &isnull));
}

int64
hold_release(int64 session, int64 id, const char *reason)
{
	Oid			types[] = {INT8OID, INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(session), Int64GetDatum(id),
		CStringGetTextDatum(GetUserNameFromId(owner_caller(), false)),
	reason ? CStringGetTextDatum(reason) : (Datum) 0};

	releasing = true;
	PG_TRY();
	{
		owner_run(NULL, "UPDATE mlint.hold SET released_by = $3,"
				  " released_at = pg_catalog.clock_timestamp(),"
				  " release_reason = $4"
				  " WHERE session = $1 AND $2 IN (id, 0)"
				  " AND released_at IS NULL",
				  SPI_OK_UPDATE, 4, types, values, reason ? NULL : "   n");
	}
	PG_FINALLY();
	{
		releasing = false;
	}
	PG_END_TRY();
	return SPI_processed;
}

/* ---- the triggers ---- */

/* A bigint column of the old row. */
static int64
old_int8(const TriggerData * trigger, const char *column)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	bool		isnull;
	Datum		value = heap_getattr(trigger->tg_trigtuple,
									 SPI_fnumber(desc, column), desc,
									 &isnull);

	return DatumGetInt64(value);
}

static char *
old_text(const TriggerData * trigger, const char *column)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);

	return SPI_getvalue(trigger->tg_trigtuple, desc,
						SPI_fnumber(desc, column));
}

/*
 * One bigint of a query by one value, as it is now, in any isolation level.
 * False: there is no row.
 */
static bool
ask(SPIPlanPtr *plan, const char *sql, Oid type, Datum by, int64 *answer)
{
	bool		isnull;
	int			result;

	if (*plan == NULL)
	{
		SPIPlanPtr	made = SPI_prepare(sql, 1, &type);

		if (made == NULL || SPI_keepplan(made) != 0)
			elog(ERROR, "could not prepare: %s", sql);
		*plan = made;
	}
	PushActiveSnapshot(GetLatestSnapshot());
	result = SPI_execute_snapshot(*plan, &by, NULL, GetActiveSnapshot(),
								  InvalidSnapshot, false, true, 1);
	PopActiveSnapshot();
	if (result != SPI_OK_SELECT)
		elog(ERROR, "unexpected result of: %s", sql);
	if (SPI_processed == 0)
		return false;
	*answer = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										  SPI_tuptable->tupdesc, 1,
										  &isnull));
	return !isnull;
}

/*
 * Lock the session against holds that are being placed. Its number of
 * messages if it is live, else -1.
 */
static int64
lock_session(int64 session)
{
	static SPIPlanPtr lock = NULL;
	static SPIPlanPtr count = NULL;
	OwnerScope	scope;
	int64		archived = 1;
	int64		messages = -1;

	owner_begin(&scope);
	if (ask(&lock, "SELECT (status = 'archived')::int::bigint FROM mlint.session"
			" WHERE id = $1 FOR UPDATE", INT8OID, Int64GetDatum(session),
			&archived) && !archived)
		(void) ask(&count, "SELECT pg_catalog.count(*) FROM mlint.message"
				   " WHERE session = $1", INT8OID, Int64GetDatum(session),
				   &messages);
	owner_end(&scope);
	return messages;
}

/* An archive that is deleted, by whomever. */
static void
guard_archive(const TriggerData * trigger)
{
	int64		session = old_int8(trigger, "session");
	int64		live = lock_session(session);
	char	   *reason = retention_hold(session);
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	bool		isnull;

	if (reason && live != DatumGetInt32(heap_getattr(trigger->tg_trigtuple,
													 SPI_fnumber(desc, "messages"),
													 desc, &isnull)))
		held(psprintf("archive \"%s\"", old_text(trigger, "id")), reason);
}

/*
 * Something that a session or an archive is made of, and that is not touched
 * by a function of ours. Columns that say of which: session, archive, or the
 * key of the archive.
 */
static void
guard_content(const TriggerData * trigger)
{
	const char *table = RelationGetRelationName(trigger->tg_relation);
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int64		session = 0;
	char	   *reason;

	if (strcmp(table, "session") == 0)
		session = old_int8(trigger, "id");
	else if (SPI_fnumber(desc, "session") > 0)
		session = old_int8(trigger, "session");
	else
	{
		static SPIPlanPtr of_chunk = NULL;
		static SPIPlanPtr of_key = NULL;
		OwnerScope	scope;
		bool		isnull;
		bool		chunk = SPI_fnumber(desc, "archive") > 0;
		Datum		key = heap_getattr(trigger->tg_trigtuple,
									   SPI_fnumber(desc, chunk ? "archive" : "id"),
									   desc, &isnull);
		bool		found;

		owner_begin(&scope);
		found = ask(chunk ? &of_chunk : &of_key, chunk ?
					"SELECT session FROM mlint.archive WHERE id = $1" :
					"SELECT session FROM mlint.archive WHERE data_key = $1",
					chunk ? UUIDOID : INT8OID, key, &session);
		owner_end(&scope);
		if (!found)
			return;
	}
	(void) lock_session(session);
	reason = retention_hold(session);
	if (reason)
		held(psprintf("what this row of mlint.%s belongs to", table), reason);
}

/* TRUNCATE of a table while anything is held. */
static void
guard_truncate(const TriggerData * trigger)
{
	/* Whoever is placing a hold has the table locked in a weaker mode. */
	LockRelationOid(mlint_relation("hold"), ShareLock);
	if (first_hold(0, NULL))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_HELD),
				 errmsg("mlint.%s cannot be truncated while there are legal holds",
						RelationGetRelationName(trigger->tg_relation)),
				 errhint("mlint.holds shows them.")));
}

/* A hold's own row. */
static void
guard_hold(const TriggerData * trigger)
{
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? !releasing :
		old_text(trigger, "released_at") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_HELD),
				 errmsg("hold %s can be neither changed nor deleted",
						old_text(trigger, "id")),
				 errhint("mlint.archive_release() ends it.")));
}

/* mlint.hold_guard() */
Datum
mlint_hold_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const char *table;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("mlint.hold_guard was not called by a trigger")));
	table = RelationGetRelationName(trigger->tg_relation);
	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
	{
		guard_truncate(trigger);
		return PointerGetDatum(NULL);
	}
	if (strcmp(table, "hold") == 0)
		guard_hold(trigger);
	else if (TRIGGER_FIRED_AFTER(trigger->tg_event))
		guard_content(trigger);
	else if (strcmp(table, "archive") == 0)
		guard_archive(trigger);
	else
		retention_refuse_held(old_int8(trigger, "id"),
							  psprintf("session \"%s\"",
									   old_text(trigger, "session_id")));
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
						   trigger->tg_newtuple : trigger->tg_trigtuple);
}

/* mlint.owner_scope_open() */
Datum
mlint_owner_scope_open(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(owner_scope_open());
}
