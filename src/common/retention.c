/*
 * retention.c
 *		The check behind settings that say how long something is kept.
 *
 * The value is read as an interval by the job that uses it. Here, where there
 * may be no transaction to call the type's own function in, only its plain
 * forms are let through: a number and a unit.
 */
#include "postgres.h"

#include "common/retention.h"

bool
retention_check(char **newval, void **extra, GucSource source)
{
	static const char *const units[] = {"second", "minute", "min", "hour",
	"day", "week", "month", "mon", "year"};
	char	   *end;
	double		amount = strtod(*newval, &end);

	while (*end == ' ')
		end++;
	for (int i = 0; i < lengthof(units); i++)
	{
		size_t		len = strlen(units[i]);

		if (amount > 0 && amount < 1000000 &&
			pg_strncasecmp(end, units[i], len) == 0 &&
			(end[len] == '\0' || pg_strcasecmp(end + len, "s") == 0))
			return true;
	}
	GUC_check_errdetail("It is an interval such as \"7 days\" or \"12 hours\".");
	return false;
}
