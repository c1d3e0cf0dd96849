/*
 * retention.h
 *		What may be deleted, and when: compliance levels, policies, holds.
 *
 * A policy says how long archives are kept, at least as long as its compliance
 * level demands. A hold is on a session, and goes along when that is archived
 * and restored. Nothing that is held is deleted by any path: triggers on
 * mlint.session and mlint.archive see to it, in the latest snapshot and with the
 * row locked, whoever deletes.
 *
 * This room knows sessions only. What is done when a period ends is in
 * expiry/.
 */
#ifndef MLINT_RETENTION_ROOM_H
#define MLINT_RETENTION_ROOM_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

/* A hundred years. A day of retention has 24 hours. */
#define RETENTION_DAYS_MAX	36500

/*
 * When a period ends. In SQL: archived_at + '24:00'::interval * days.
 */
static inline TimestampTz
retention_end(TimestampTz archived_at, int days)
{
	return archived_at + days * USECS_PER_DAY;
}

/*
 * The least number of days of a compliance level, and whether a person's
 * right to erasure comes before it (may be NULL). Raises
 * ERRCODE_INVALID_PARAMETER_VALUE, naming the levels there are.
 */
extern int	retention_level_days(const char *level, bool *erasable);

/* The job of expiry/: what is due, and what follows from altered policies. */
#define RETENTION_JOB		"archive_expire"

/* Raise unless there are from 1 to RETENTION_DAYS_MAX days. */
extern void retention_check_days(int days);

typedef struct RetentionPolicy
{
	int32		id;				/* 0: none */
	char	   *name;
	int			days;
	bool		auto_delete;
	char	   *level;
	int			level_days;
	bool		erasable;		/* of the level */
} RetentionPolicy;

/*
 * The policy of this name (ERRCODE_UNDEFINED_OBJECT); with NULL the one that
 * matches tags (text[]; 0: none) or metadata (NULL: none), of several the one
 * that keeps longest; id 0 when there is none. Strings are palloc'd. The policy
 * is neither altered nor dropped before our transaction ends.
 */
extern void retention_policy_find(const char *name, Datum tags,
								  Jsonb *metadata, RetentionPolicy *policy);

/*
 * Is the session held? Then the reason, palloc'd, else NULL. The session is
 * locked by the caller, so that no hold can come in between.
 */
extern char *retention_hold(int64 session);

/* Raise ERRCODE_MLINT_HELD when it is. "what" as in 'archive "..."'. */
extern void retention_refuse_held(int64 session, const char *what);

/*
 * Put a hold on a session that the caller has locked FOR KEY SHARE, or end one
 * (id, or 0: all). In an owner scope, unaudited. How many were ended.
 */
extern int64 hold_place(int64 session, const char *reason);
extern int64 hold_release(int64 session, int64 id, const char *reason);

#endif
