/*
 * glob.c
 *		Glob patterns on event types and host names.
 *
 * A '*' first matches nothing. When the rest of the pattern then fails, the
 * last '*' takes one more character and the match goes on from there. Going
 * back to the last '*' alone is enough: whatever an earlier one could take
 * instead, the last one can take too. So there is no recursion, and a hostile
 * pattern costs at most its length times the text's.
 */
#include "postgres.h"

#include "common/glob.h"

/* Does the whole text match the whole pattern? */
bool
glob_match(const char *pattern, const char *text)
{
	const char *star = NULL;	/* what follows the last '*' */
	const char *taken = NULL;	/* where that '*' ends in the text */

	while (*text !='\0')
	{
		if (*pattern == '*')
		{
			star = ++pattern;
			taken = text;
		}
		else if (*pattern == '?' || *pattern == *text)
		{
			pattern++;
			text	  ++;
		}
		else if (star != NULL)
		{
			pattern = star;
			text = ++taken;
		}
		else
			return false;
	}
	while (*pattern == '*')
		pattern++;
	return *pattern == '\0';
}
