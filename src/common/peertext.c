/*
 * peertext.c
 *		Words of others in our messages; see peertext.h.
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"

#include "common/peertext.h"
#include "utils/guc.h"

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

void
hide_plan(void)
{
	static const char setting[] = "auto_explain.log_min_duration";
	const char *value = GetConfigOption(setting, true, false);

	/* In a parallel query no setting can be changed. */
	if (value != NULL && strcmp(value, "-1") != 0 && !IsInParallelMode())
		(void) set_config_option(setting, "-1", PGC_SUSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
}
