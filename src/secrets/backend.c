/* placeholder */
#include "postgres.h"
#include "secrets/backend.h"
bool backend_get(const char *b, const char *n, const char *v, SecretValue *o) { elog(ERROR, "no backends"); }
char *backend_put(const char *b, const char *n, const void *d, size_t l, const SecretAbout *a) { elog(ERROR, "no backends"); }
bool backend_delete(const char *b, const char *n) { elog(ERROR, "no backends"); }
bool backend_versions(const char *b, const char *n, VersionVisitor v, void *a) { elog(ERROR, "no backends"); }
bool backend_exists(const char *b) { return false; }
