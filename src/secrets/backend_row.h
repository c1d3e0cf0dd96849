/*
 * backend_row.h
 *		Backends as rows, between backend.c and backend_admin.c.
 */
#ifndef MLINT_BACKEND_ROW_H
#define MLINT_BACKEND_ROW_H

#include "nodes/pg_list.h"
#include "secrets/kind.h"

extern const ConfiguredSort secret_backends;

/* Names, as List of char *; and what a harmless call finds out. */
extern List *backend_list(const char *backend, const char *prefix);
extern char *backend_test(const char *backend);

#endif
