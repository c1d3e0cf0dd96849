/*
 * dotenv.c
 *		Secrets as lines of a dotenv file: the dialect of a POSIX shell.
 *
 * There is no standard for these files; the one reader whose rules are written
 * down is the shell ("set -a; . file"), so that is whom lines are written for.
 * Most others agree on most of it: a value of harmless characters stands as it
 * is, any other in single quotes, in which nothing has a meaning; one that has
 * a single quote itself in double quotes, in which \ " $ ` are escaped.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mounts/mounts.h"

#define HARMLESS \
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./:=@%+,-"

char *
dotenv_variable(const char *name)
{
	char	   *variable = psprintf("%s%s",
									name[0] >= '0' && name[0] <= '9' ? "_" : "",
									name);

	for (char *p = variable; *p; p++)
	{
		if (*p >= 'a' && *p <= 'z')
			*p += 'A' - 'a';
		else if (!(*p >= 'A' && *p <= 'Z') && !(*p >= '0' && *p <= '9'))
			*p = '_';
	}
	return variable;
}

void
dotenv_append(StringInfo out, const char *name, const char *value, size_t len)
{
	appendStringInfo(out, "%s=", dotenv_variable(name));
	if (strspn(value, HARMLESS) >= len)
		appendBinaryStringInfo(out, value, len);
	else if (memchr(value, '\'', len) == NULL)
	{
		appendStringInfoChar(out, '\'');
		appendBinaryStringInfo(out, value, len);
		appendStringInfoChar(out, '\'');
	}
	else
	{
		appendStringInfoChar(out, '"');
		for (size_t i = 0; i < len; i++)
		{
			if (strchr("\\\"$`", value[i]) != NULL)
				appendStringInfoChar(out, '\\');
			appendStringInfoChar(out, value[i]);
		}
		appendStringInfoChar(out, '"');
	}
	appendStringInfoChar(out, '\n');
}
