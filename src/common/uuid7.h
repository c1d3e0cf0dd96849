/*
 * uuid7.h
 *		Ids that are unique everywhere and grow with time (RFC 9562, version 7).
 */
#ifndef MLINT_UUID7_H
#define MLINT_UUID7_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/*
 * A new one, for something that happens at this time. Those that one process
 * makes grow strictly, even when its clock is set back.
 */
extern void uuid7_make(pg_uuid_t *uuid, TimestampTz at);

#endif
