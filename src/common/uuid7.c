/*
 * uuid7.c
 *		UUIDs of version 7: 48 bits of milliseconds, 12 of their fraction, and
 *		62 that are random.
 *
 * Rows that are inserted one after the other have keys that are next to each
 * other, so that a btree grows at its end. PostgreSQL 18 has uuidv7(), which
 * counts in the same way.
 */
#include "postgres.h"

#include "common/crypto.h"
#include "common/uuid7.h"
#include "utils/timestamp.h"

/* The parts of a millisecond that 12 bits can tell apart. */
#define MS_PARTS	4096

void
uuid7_make(pg_uuid_t *uuid, TimestampTz at)
{
	static uint64 last = 0;
	uint64		us = at + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
	USECS_PER_DAY;
	uint64		now = us / 1000 * MS_PARTS + us % 1000 * MS_PARTS / 1000;
	uint64		ms;

	last = Max(now, last + 1);
	ms = last / MS_PARTS;
	for (int i = 0; i < 6; i++)
		uuid->data[i] = (unsigned char) (ms >> (40 - 8 * i));
	uuid->data[6] = 0x70 | (last % MS_PARTS) >> 8;
	uuid->data[7] = last & 0xff;
	crypto_random(uuid->data + 8, 8);
	uuid->data[8] = 0x80 | (uuid->data[8] & 0x3f);
}
