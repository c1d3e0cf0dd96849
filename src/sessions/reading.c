/*
 * reading.c
 *		Queries over our tables for callers who cannot read them; see reading.h.
 */
#include "postgres.h"

#include "common/owner.h"
#include "executor/spi.h"
#include "executor/tstoreReceiver.h"
#include "funcapi.h"
#include "nodes/params.h"
#include "sessions/reading.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

void
reading_begin(Reading *reading, const char *sql)
{
	initStringInfo(&reading->sql);
	appendStringInfoString(&reading->sql, sql);
	reading->has_where = false;
	reading->nargs = 0;
}

int
reading_value(Reading *reading, Oid type, Datum value)
{
	Assert(reading->nargs < READING_ARGUMENTS);
	reading->types[reading->nargs] = type;
	reading->values[reading->nargs] = value;
	return ++reading->nargs;
}

void
reading_where(Reading *reading, const char *condition, Oid type, Datum value)
{
	appendStringInfoString(&reading->sql, reading->has_where ? " AND " :
						   " WHERE ");
	appendStringInfo(&reading->sql, condition, reading_value(reading, type, value));
	reading->has_where = true;
}

static void
run(Reading *reading, DestReceiver *receiver)
{
	SPIExecuteOptions options = {0};
	ParamListInfo params = makeParamList(reading->nargs);

	for (int i = 0; i < reading->nargs; i++)
	{
		params->params[i].value = reading->values[i];
		params->params[i].isnull = false;
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = reading->types[i];
	}
	options.params = params;
	options.read_only = true;
	options.dest = receiver;
	if (SPI_execute_extended(reading->sql.data, &options) < 0)
		elog(ERROR, "could not read sessions");
}

Datum
reading_rows(Reading *reading, FunctionCallInfo fcinfo)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	DestReceiver *receiver;
	OwnerScope	scope;

	InitMaterializedSRF(fcinfo, 0);
	receiver = CreateTuplestoreDestReceiver();
	SetTuplestoreDestReceiverParams(receiver, result->setResult,
									result->econtext->ecxt_per_query_memory,
									false, result->setDesc,
									"the query does not return what its function does");
	owner_begin(&scope);
	run(reading, receiver);
	owner_end(&scope);
	receiver->rDestroy(receiver);
	return (Datum) 0;
}

Datum
reading_one(Reading *reading, bool latest, bool *isnull)
{
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	Datum		value;
	int16		len;
	bool		by_value;

	owner_begin(&scope);
	if (latest)
		PushActiveSnapshot(GetLatestSnapshot());
	run(reading, NULL);
	if (latest)
		PopActiveSnapshot();
	if (SPI_processed != 1)
		elog(ERROR, "a query that returns one row returned " UINT64_FORMAT,
			 (uint64) SPI_processed);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						  isnull);
	if (!*isnull)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);

		len = TupleDescAttr(SPI_tuptable->tupdesc, 0)->attlen;
		by_value = TupleDescAttr(SPI_tuptable->tupdesc, 0)->attbyval;
		value = datumCopy(value, by_value, len);
		MemoryContextSwitchTo(spi);
	}
	owner_end(&scope);
	return value;
}
