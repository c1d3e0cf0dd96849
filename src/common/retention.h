/*
 * retention.h
 *		Settings that say how long something is kept.
 */
#ifndef MLINT_RETENTION_H
#define MLINT_RETENTION_H

#include "utils/guc.h"

/* Check hook: a positive interval in its plain form, such as "7 days". */
extern bool retention_check(char **newval, void **extra, GucSource source);

#endif
