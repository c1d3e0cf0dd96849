/*
 * save.c
 *		The table of keys in a file over a clean restart; see save.h.
 *
 * As with PostgreSQL's own statistics: the postmaster writes the file when
 * the last process has gone and the shutdown checkpoint is done, and removes
 * it when it has read it. After a crash there is no file, and what shared
 * memory held is never trusted. A file that cannot be read or does not come
 * out right costs a line in the log, never the start.
 *
 * States are absolute times, so nothing needs to be done about the time in
 * between. Keys that are idle by now are not kept. If the others are more than
 * there is room for, those go that would be idle soonest.
 */
#include "postgres.h"

#include <unistd.h>

#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "ratelimit/rule_slot.h"
#include "ratelimit/save.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#define SAVE_FILE		PGSTAT_STAT_PERMANENT_DIRECTORY "/mlint_rate_limits.stat"
#define SAVE_TEMP		SAVE_FILE ".tmp"

/* Changes with whatever the sizes below do not tell. */
#define SAVE_MAGIC		0x6d6c7231

typedef struct SaveHeader
{
	uint32		magic;
	uint32		rule_size;
	uint32		key_size;
	uint32		steps;
	uint32		nrules;
	uint32		nkeys;
} SaveHeader;

/* A file that is being written or read, and the checksum of what has been. */
typedef struct SaveFile
{
	FILE	   *file;
	pg_crc32c	crc;
} SaveFile;

static bool
put(SaveFile *to, const void *from, size_t len)
{
	COMP_CRC32C(to->crc, from, len);
	return len == 0 || fwrite(from, len, 1, to->file) == 1;
}

static bool
get(SaveFile *from, void *to, size_t len)
{
	if (len == 0)
		return true;
	if (fread(to, len, 1, from->file) != 1)
		return false;
	COMP_CRC32C(from->crc, to, len);
	return true;
}

/* ---- at shutdown ---- */

static bool
write_all(SaveFile *to)
{
	SaveHeader	header = {
		.magic = SAVE_MAGIC,
		.rule_size = sizeof(SavedRule),
		.key_size = offsetof(SavedKey, segments),
		.steps = RATE_STEPS
	};
	SavedRule	rule;
	SavedKey	key;
	uint64		position = 0;

	INIT_CRC32C(to->crc);
	header.nrules = pg_atomic_read_u32(&rate_rule_slots->used);
	header.nkeys = table_saved_keys();
	if (!put(to, &header, sizeof(header)))
		return false;
	for (uint32 i = 0; i < header.nrules; i++)
	{
		table_get_rule(i, &rule);
		if (!put(to, &rule, sizeof(rule)))
			return false;
	}
	while (table_next_key(&position, &key))
		if (!put(to, &key, offsetof(SavedKey, segments)) ||
			!put(to, key.segments, key.nsegments * sizeof(uint32)))
			return false;
	FIN_CRC32C(to->crc);
	return fwrite(&to->crc, sizeof(to->crc), 1, to->file) == 1;
}

/* Has the server come to its end in order? Then its control file says so. */
static bool
shut_down_cleanly(void)
{
	bool		intact;
	ControlFileData *control = get_controlfile(DataDir, &intact);
	bool		clean = intact && (control->state == DB_SHUTDOWNED ||
								   control->state == DB_SHUTDOWNED_IN_RECOVERY);

	pfree(control);
	return clean;
}

void
save_at_exit(int code, Datum arg)
{
	SaveFile	to;
	bool		written;

	if (code != 0 || !shut_down_cleanly())
		return;
	to.file = AllocateFile(SAVE_TEMP, PG_BINARY_W);
	if (to.file == NULL)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write rate limits to file \"%s\": %m",
						SAVE_TEMP)));
		return;
	}
	written = write_all(&to);
	/* Freeing flushes what is buffered, and can fail as well. */
	if (FreeFile(to.file) != 0 || !written)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write rate limits to file \"%s\": %m",
						SAVE_TEMP)));
		unlink(SAVE_TEMP);
		return;
	}
	(void) durable_rename(SAVE_TEMP, SAVE_FILE, LOG);
}

/* ---- at the start ---- */

static bool
get_key(SaveFile *from, uint32 nrules, SavedKey *key)
{
	return get(from, key, offsetof(SavedKey, segments)) &&
		key->rule < nrules &&
		key->nsegments >= 0 && key->nsegments <= RATE_MAX_SEGMENTS &&
		get(from, key->segments, key->nsegments * sizeof(uint32));
}

/*
 * Read to the end, to know that the file is whole. The times from which keys
 * are idle go to idle_at; *places is how many slots those that are not idle
 * now would like to have.
 */
static bool
check_file(SaveFile *from, SaveHeader *header, int64 **idle_at, uint32 *nbusy,
		   uint64 *places)
{
	int64		now = rate_now();
	SavedRule	rule;
	SavedKey	key;
	pg_crc32c	crc;

	*idle_at = NULL;
	*nbusy = 0;
	*places = 0;
	INIT_CRC32C(from->crc);
	if (!get(from, header, sizeof(*header)) ||
		header->magic != SAVE_MAGIC ||
		header->rule_size != sizeof(SavedRule) ||
		header->key_size != offsetof(SavedKey, segments) ||
		header->steps != RATE_STEPS)
		return false;
	for (uint32 i = 0; i < header->nrules; i++)
		if (!get(from, &rule, sizeof(rule)))
			return false;
	*idle_at = palloc_extended(((Size) header->nkeys + 1) * sizeof(int64),
							   MCXT_ALLOC_HUGE | MCXT_ALLOC_NO_OOM);
	if (*idle_at == NULL)
		return false;
	for (uint32 i = 0; i < header->nkeys; i++)
	{
		if (!get_key(from, header->nrules, &key))
			return false;
		if (key.idle_at <= now)
			continue;
		(*idle_at)[(*nbusy)++] = key.idle_at;
		*places += 1 + (Max(key.nsegments - 2, 0) + 20) / 21;
	}
	FIN_CRC32C(from->crc);
	return fread(&crc, sizeof(crc), 1, from->file) == 1 &&
		EQ_CRC32C(crc, from->crc) && getc(from->file) == EOF;
}

static int
latest_first(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return x < y ? 1 : x > y ? -1 : 0;
}

/* Put what the file holds into the table; it is known to be whole. */
static void
load_all(SaveFile *from, int64 *idle_at, uint32 nbusy, uint64 places,
		 uint32 nslots)
{
	int64		least = rate_now() + 1;
	uint32		alike = nslots; /* of those with the least, so many */
	bool		merge = places > nslots;
	uint32		lost = 0;
	SaveHeader	header;
	SavedRule	rule;
	SavedKey	key;
	int		   *rules;
	bool		keep;

	if (nbusy > nslots)
	{
		qsort(idle_at, nbusy, sizeof(int64), latest_first);
		least = idle_at[nslots - 1];
		for (uint32 i = 0; idle_at[i] > least; i++)
			alike--;
		lost = nbusy - nslots;
	}
	(void) get(from, &header, sizeof(header));
	rules = palloc((header.nrules + 1) * sizeof(int));
	for (uint32 i = 0; i < header.nrules; i++)
	{
		(void) get(from, &rule, sizeof(rule));
		rules[i] = table_put_rule(&rule);
	}
	for (uint32 i = 0; i < header.nkeys; i++)
	{
		if (!get_key(from, header.nrules, &key))
			break;
		if (rules[key.rule] < 0)
			continue;
		key.rule = (uint16) rules[key.rule];
		keep = key.idle_at > least;
		if (key.idle_at == least && alike > 0)
		{
			keep = true;
			alike--;
		}
		table_put_key(&key, keep, merge);
	}
	pfree(rules);
	if (lost > 0)
		ereport(LOG,
				(errmsg("%u identifiers of rate limits start with nothing used, because mlint.rate_max_keys is now %u",
						lost, nslots)));
}

bool
save_load(uint32 nslots)
{
	SaveFile	from;
	SaveHeader	header;
	int64	   *idle_at = NULL;
	uint32		nbusy;
	uint64		places;
	bool		whole;

	from.file = AllocateFile(SAVE_FILE, PG_BINARY_R);
	if (from.file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not read rate limits from file \"%s\": %m",
							SAVE_FILE)));
		return false;
	}
	whole = check_file(&from, &header, &idle_at, &nbusy, &places);
	if (whole)
	{
		rewind(from.file);
		load_all(&from, idle_at, nbusy, places, nslots);
	}
	else
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the rate limits in file \"%s\" are not used, because it is damaged or of another version of mlint",
						SAVE_FILE)));
	if (idle_at != NULL)
		pfree(idle_at);
	FreeFile(from.file);
	if (unlink(SAVE_FILE) != 0)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", SAVE_FILE)));
	return whole;
}
