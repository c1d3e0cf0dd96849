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

#include "utils/jsonb.h"

typedef struct RetentionPolicy
{
	int32		id;				/* 0: none */
	char	   *name;
	int			days;
	bool		auto_delete;
} RetentionPolicy;

/*
 * The policy of this name (ERRCODE_UNDEFINED_OBJECT); with NULL the one that
 * matches tags (text[]) or metadata, of several the one that keeps longest; id
 * 0 when there is none. Strings are palloc'd. The policy cannot be dropped
 * before our transaction ends.
 */
extern void retention_policy_find(const char *name, Datum tags,
								  Jsonb *metadata, RetentionPolicy *policy);

/*
 * Is the session held? Then the reason, palloc'd, else NULL. The session is
 * locked by the caller, so that no hold can come in between.
 */
extern char *retention_hold(int64 session);

/* Raise ERRCODE_MLINT_HELD when it is. "what" as in 'archive "…"'. */
extern void retention_refuse_held(int64 session, const char *what);

#endif
