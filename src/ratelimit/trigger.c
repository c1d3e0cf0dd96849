/*
 * trigger.c
 *		mlint.rate_limit_trigger(): a limit on inserts by a column's value.
 *
 * It takes by the strategy of the rule, so that inserts can wait for their
 * turn too. A trigger cannot say "not now" but by an error: a refusal that the
 * strategy would return is one here.
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/rel.h"

#include "common/errors.h"
#include "ratelimit/acquire.h"

PG_FUNCTION_INFO_V1(mlint_rate_limit_trigger);

/* The value of the column in the new row, as text; null counts as empty. */
static char *
column_value(const TriggerData * trigger, char *column)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int			n = SPI_fnumber(desc, column);
	char	   *value;

	if (n <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist",
						column, RelationGetRelationName(trigger->tg_relation)),
				 errdetail("Trigger \"%s\" limits inserts by it.",
						   trigger->tg_trigger->tgname)));
	if (TupleDescAttr(desc, n - 1)->attgenerated)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("column \"%s\" of relation \"%s\" is generated",
						column, RelationGetRelationName(trigger->tg_relation)),
				 errdetail("Trigger \"%s\" would limit by it, but it gets its value only after triggers BEFORE INSERT.",
						   trigger->tg_trigger->tgname)));
	value = SPI_getvalue(trigger->tg_trigtuple, desc, n);
	return value ? value : "";
}

/* mlint.rate_limit_trigger(rule, column) */
Datum
mlint_rate_limit_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	char	   *rule;
	char	   *identifier;
	RateAnswer	answer;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("mlint.rate_limit_trigger was not called by a trigger")));
	if (!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" must be fired BEFORE INSERT FOR EACH ROW",
						trigger->tg_trigger->tgname)));
	if (trigger->tg_trigger->tgnargs != 2)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" must name a rate limit and a column",
						trigger->tg_trigger->tgname),
				 errhint("CREATE TRIGGER ... BEFORE INSERT ... FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger('rule', 'column').")));
	rule = trigger->tg_trigger->tgargs[0];
	identifier = column_value(trigger, trigger->tg_trigger->tgargs[1]);

	rate_acquire(rule, strlen(rule), identifier, strlen(identifier), 1, -1,
				 &answer);
	if (!answer.verdict.allowed)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_RATE_LIMITED),
				 errmsg("rate limit \"%s\" refuses the insert into \"%s\"",
						rule, RelationGetRelationName(trigger->tg_relation)),
				 answer.verdict.retry_after == PG_INT64_MAX ?
				 errdetail("Reason: %s.", answer.reason) :
				 errdetail("Reason: %s. Retry after %.3f seconds.", answer.reason,
						   answer.verdict.retry_after / 1e6)));
	return PointerGetDatum(trigger->tg_trigtuple);
}
