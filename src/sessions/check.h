/*
 * check.h
 *		What callers give this room, and what is refused of it.
 */
#ifndef MLINT_SESSIONS_CHECK_H
#define MLINT_SESSIONS_CHECK_H

#include "fmgr.h"
#include "utils/array.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#define SESSIONS_NAME_BYTES			255
#define SESSIONS_METADATA_BYTES		(1024 * 1024)
#define SESSIONS_TAGS				100

/* An id or a tag: 1 to 255 bytes, none of which is a control character. */
extern void check_name(const char *name, const char *what);

/* The same of argument n. Null is an error, too. */
extern char *name_argument(FunctionCallInfo fcinfo, int n, const char *what);

/* The same, but null (or empty) is no error, and returned as given. */
extern char *optional_name_argument(FunctionCallInfo fcinfo, int n,
									const char *what);

/* Tags or capabilities, sorted, each once. Null is none. */
extern ArrayType *tags_argument(FunctionCallInfo fcinfo, int n,
								const char *what);

/* A JSON object of at most 1 MB. Null is the empty one. */
extern Jsonb *object_argument(FunctionCallInfo fcinfo, int n,
							  const char *what);

/* A finite time; null is 0. */
extern TimestampTz time_argument(FunctionCallInfo fcinfo, int n,
								 const char *what);

/* A size of a page, and the number of one. */
extern int	page_size_argument(FunctionCallInfo fcinfo, int n);
extern int64 page_argument(FunctionCallInfo fcinfo, int n);

#endif
