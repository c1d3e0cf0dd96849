/*
 * peertext.c
 *		Words of others in our messages; see peertext.h.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "common/peertext.h"

void
peer_text_clean(char *text)
{
	int			len = strlen(text);
	int			valid = pg_encoding_verifymbstr(GetDatabaseEncoding(), text,
												len);

	if (valid == len)
		return;
	if (len - valid < pg_database_encoding_max_length())
	{
		text[		valid] = '\0';

		return;
	}
	for (char *p = text; *p; p++)
	{
		if (IS_HIGHBIT_SET(*p))
			*p = '?';
	}
}

void
hide_statement(void *arg)
{
	errhidestmt(true);
	errhidecontext(true);
}
