/*
 * server.c
 *		As much of a server as files need that are fuzzed outside of one: memory
 *		that is gone after each input, and errors that end it.
 */
#include "postgres.h"

#undef vsnprintf

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/stringinfo.h"
#include "utils/datetime.h"
#include "utils/memutils.h"

#include "server.h"

/* ---- memory ---- */

/* Each piece is malloc's own, so that its bounds are seen. */
static void **pieces;
static size_t npieces;
static size_t room;

static void *
keep(void *piece)
{
	if (npieces == room)
	{
		room = room ? 2 * room : 64;
		pieces = realloc(pieces, room * sizeof(void *));
	}
	return pieces[npieces++] = piece;
}

void
server_forget(void)
{
	for (size_t i = 0; i < npieces; i++)
		free(pieces[i]);
	npieces = 0;
}

void *
palloc(Size size)
{
	return keep(malloc(size ? size : 1));
}

void *
palloc0(Size size)
{
	return keep(calloc(1, size ? size : 1));
}

void *
palloc_extended(Size size, int flags)
{
	return flags & MCXT_ALLOC_ZERO ? palloc0(size) : palloc(size);
}

static size_t
place_of(void *piece)
{
	for (size_t i = npieces; i-- > 0;)
	{
		if (pieces[i] == piece)
			return i;
	}
	abort();
}

void *
repalloc(void *piece, Size size)
{
	size_t		i = place_of(piece);

	return pieces[i] = realloc(piece, size);
}

void
pfree(void *piece)
{
	size_t		i = place_of(piece);

	free(piece);
	pieces[i] = pieces[--npieces];
}

char *
pstrdup(const char *in)
{
	return strcpy(palloc(strlen(in) + 1), in);
}

char *
psprintf(const char *fmt,...)
{
	char text[	4096];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	return pstrdup(text);
}

void
initStringInfo(StringInfo str)
{
	str->maxlen = 1024;
	str->data = palloc(str->maxlen);
	str->data[0] = '\0';
	str->len = 0;
	str->cursor = 0;
}

#if PG_VERSION_NUM >= 160000
#define BINARY	void
#else
#define BINARY	char
#endif

void
appendBinaryStringInfo(StringInfo str, const BINARY * data, int datalen)
{
	str->data = repalloc(str->data, str->len + datalen + 1);
	memcpy(str->data + str->len, data, datalen);
	str->len += datalen;
	str->data[str->len] = '\0';
}

/* ---- errors ---- */

sigjmp_buf *PG_exception_stack;
ErrorContextCallback *error_context_stack;

void
pg_re_throw(void)
{
	siglongjmp(*PG_exception_stack, 1);
}

bool
errstart(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

int
errcode(int sqlerrcode)
{
	return 0;
}

int
errmsg(const char *fmt,...)
{
	return 0;
}

int
errhint(const char *fmt,...)
{
	return 0;
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	pg_re_throw();
}

bool
server_try(void (*step) (const uint8 *data, size_t size), const uint8 *data, size_t size)
{
	sigjmp_buf	here;
	bool		ended = false;

	PG_exception_stack = &here;
	if (sigsetjmp(here, 0) == 0)
	{
		step(data, size);
		ended = true;
	}
	PG_exception_stack = NULL;
	server_forget();
	return ended;
}

/* ---- small things ---- */

unsigned char
pg_ascii_tolower(unsigned char ch)
{
	return ch >= 'A' && ch <= 'Z' ? ch + 'a' - 'A' : ch;
}

/* As utils/adt/datetime.c has it. */
int
date2j(int year, int month, int day)
{
	int			julian;
	int			century;

	if (month > 2)
	{
		month += 1;
		year += 4800;
	}
	else
	{
		month += 13;
		year += 4799;
	}
	century = year / 100;
	julian = year * 365 - 32167;
	julian += year / 4 - century + century / 4;
	julian += 7834 * month / 256 + day;
	return julian;
}

pg_time_t
timestamptz_to_time_t(TimestampTz t)
{
	return (pg_time_t) (t / USECS_PER_SEC +
						((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY));
}
