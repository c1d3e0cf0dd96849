/*
 * save.h
 *		The table of keys in a file, from a clean shutdown to the next start.
 *
 * Only table.c and save.c know of this. All of it runs in the postmaster when
 * there is no other process, and takes no locks.
 */
#ifndef MLINT_RATE_SAVE_H
#define MLINT_RATE_SAVE_H

#include "ratelimit/table.h"

/* As they are in the file, followed by nsegments segments for a key. */
typedef struct SavedRule
{
	Oid			database;
	Oid			relation;
	int32		algorithm;		/* of the crowd, or -1 */
	int64		id;
	int64		used_at;
	int64		longest;
	uint64		allowed;
	uint64		refused;
	uint64		crowded;
	uint64		evictions;
	uint64		waited;
	uint64		waits[RATE_WAIT_BUCKETS];
	RateState	crowd;
	bool		forgiven;
} SavedRule;

typedef struct SavedKey
{
	int64		idle_at;
	int64		value;
	uint64		allowed;
	uint64		refused;
	uint16		rule;			/* place in the file; then the slot */
	uint8		len;
	uint8		algorithm;
	int32		nsegments;
	char text[	RATE_KEY_TEXT];
	uint32		segments[RATE_MAX_SEGMENTS];
} SavedKey;

/* ---- rule_slot.c ---- */

extern void table_get_rule(uint32 rule_slot, SavedRule *saved);

/* Returns the slot, or -1 if there is none left. */
extern int	table_put_rule(const SavedRule *saved);

/* ---- table.c ---- */

/* How many keys there are. */
extern uint32 table_saved_keys(void);

/* The next key; begin with position 0. */
extern bool table_next_key(uint64 *position, SavedKey *saved);

/*
 * Keep a key, with its segments merged to take no further room; or only what
 * it has counted.
 */
extern void table_put_key(const SavedKey *saved, bool keep, bool merge);

/* ---- save.c ---- */

/* on_shmem_exit() callback: write the file if this is a clean shutdown. */
extern void save_at_exit(int code, Datum arg);

/* Load the file and remove it. False if there was none that could be used. */
extern bool save_load(uint32 nslots);

#endif
