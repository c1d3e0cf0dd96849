/*
 * usagelog.h
 *		The usage log as the files of this room share it.
 *
 * The log is two tables, mlint.usage_log_1 and _2, that take new rows in turn.
 * mlint.usage_fold says which, and how far they are counted in the totals: a
 * snapshot. The rest is the rows of transactions that it does not see, found by
 * the index on their id.
 */
#ifndef MLINT_USAGELOG_H
#define MLINT_USAGELOG_H

#include "common/cursor.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"

#define USAGE_LOGS		2

/* Columns of the two tables. */
typedef enum UsageColumn
{
	USAGE_XID = 1, USAGE_SESSION, USAGE_TRACKED_AT, USAGE_LATENCY_US,
	USAGE_PROMPT_TOKENS, USAGE_COMPLETION_TOKENS, USAGE_MODEL_ID,
	USAGE_MODEL_VERSION, USAGE_TAGS, USAGE_CUSTOM
} UsageColumn;

#define USAGE_COLUMNS	USAGE_CUSTOM

/* The row of mlint.usage_fold. */
typedef struct UsagePosition
{
	Cursor	   *folded;			/* palloc'd; NULL when not asked for */
	int			log;			/* takes new rows */
	bool		other_done;		/* of the other, nothing is in the rest */
	bool		resting;		/* all is folded, and the job must be asked
								 * for */
} UsagePosition;

/* As this snapshot sees it; NULL: what is committed (and ours) now. */
extern void usage_position(Snapshot snapshot, bool folded,
						   UsagePosition *position);

extern Oid	usage_log_table(int log);
extern Oid	usage_log_index(int log);

/* What kinds of things usage is counted for; mlint.usage_total.scope. */
#define USAGE_OF_ALL		'a'
#define USAGE_OF_MODEL		'm'
#define USAGE_OF_TAG		't'
#define USAGE_OF_SESSION	's'

/* The session, as a report or a budget needs it. */
typedef struct UsageSession
{
	int64		id;
	char	   *session_id;
	char	   *model_id;
	char	   *model_version;
	Datum		tags;			/* text[] */
	int			ntags;
	Datum	   *tag;			/* its elements */
} UsageSession;

/*
 * By session_id, or, if that is NULL, by id; palloc'd. latest as in rows.h.
 * False: there is none.
 */
extern bool usage_session(const char *session_id, int64 id, bool latest,
						  UsageSession *session);

/* Forget the budgets of a session; in budget.c. */
extern void usage_budget_forget(int64 session);

/* Once, in _init(). */
extern void usage_track_init(void);
extern void usage_budget_init(void);

/* A name that becomes part of a key: 1 to 255 bytes, no control characters. */
extern void usage_check_name(const char *name, const char *what);

/* 3 to 8 upper case letters. */
extern void usage_check_currency(const char *currency);

#endif
