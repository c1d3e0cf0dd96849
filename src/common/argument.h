/*
 * argument.h
 *		Arguments of SQL functions.
 */
#ifndef MLINT_ARGUMENT_H
#define MLINT_ARGUMENT_H

#include "fmgr.h"
#include "utils/uuid.h"

/* A text argument, palloc'd. Null is the error "<what> must not be null". */
extern char *required_text(FunctionCallInfo fcinfo, int n, const char *what);

/* A uuid argument, in the same way. */
extern pg_uuid_t *required_uuid(FunctionCallInfo fcinfo, int n,
								const char *what);

#endif
