/*
 * backend_row.h
 *		Backends as rows, between backend.c and backend_admin.c.
 */
#ifndef MLINT_BACKEND_ROW_H
#define MLINT_BACKEND_ROW_H

#include "nodes/pg_list.h"
#include "secrets/kind.h"

extern const BackendKind *const backend_kinds[];	/* NULL-terminated */
extern const Option backend_options[];	/* what every kind has */

extern const BackendKind *backend_kind(const char *name);

/* The options of a kind; palloc'd, raises ERRCODE_MLINT_CONFIGURATION. */
extern BackendOptions *backend_parse(const BackendKind *kind, Jsonb *options,
									 const char *what);

/* Names, as List of char *; and what a harmless call finds out. */
extern List *backend_list(const char *backend, const char *prefix);
extern char *backend_test(const char *backend);

#endif
