/*
 * argument.h
 *		Arguments of SQL functions.
 */
#ifndef MLINT_ARGUMENT_H
#define MLINT_ARGUMENT_H

#include "fmgr.h"
#include "utils/uuid.h"

/*
 * Before anything that changes tables: refuse on a standby, in a read-only
 * transaction and in a parallel query, in the name of the SQL function.
 */
extern void require_writable(FunctionCallInfo fcinfo);

/* A text argument, palloc'd. Null is the error "<what> must not be null". */
extern char *required_text(FunctionCallInfo fcinfo, int n, const char *what);

/* A uuid argument, in the same way. */
extern pg_uuid_t *required_uuid(FunctionCallInfo fcinfo, int n,
								const char *what);

/* One that is a column of a row. */
typedef struct RowArgument
{
	const char *name;
	Oid			type;
	bool		optional;		/* may be null in a row */
} RowArgument;

/*
 * Those of a row that are given, from the second on, as JSON for the audit
 * log: of a text its beginning. NULL: none is.
 */
extern char *given_arguments(FunctionCallInfo fcinfo,
							 const RowArgument *arguments, int n);

#endif
