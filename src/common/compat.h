/*
 * compat.h
 *		What differs between PostgreSQL 15 and 18, in one place.
 */
#ifndef MLINT_COMPAT_H
#define MLINT_COMPAT_H

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "mlint supports PostgreSQL 15 to 18"
#endif

/* 16 renamed the per-class ownership checks into one. */
#include "catalog/pg_database.h"
#include "utils/acl.h"
#if PG_VERSION_NUM < 160000
#define mlint_database_owner(db, role)	pg_database_ownercheck(db, role)
#else
#define mlint_database_owner(db, role)	\
	object_ownercheck(DatabaseRelationId, db, role)
#endif

/* 17 took the ResourceOwner argument's place in CreateWaitEventSet. */
#include "storage/latch.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#if PG_VERSION_NUM < 170000
#define mlint_create_wait_event_set(n) \
	CreateWaitEventSet(TopMemoryContext, n)
#else
#define mlint_create_wait_event_set(n)	CreateWaitEventSet(NULL, n)
#endif

/* 17 can allocate wait events by name. */
#include "utils/wait_event.h"
#if PG_VERSION_NUM >= 170000
#define mlint_wait_event(name)			WaitEventExtensionNew(name)
#else
#define mlint_wait_event(name)			PG_WAIT_EXTENSION
#endif

/* 18 has pg_noreturn in place of pg_attribute_noreturn(). */
#ifndef pg_attribute_noreturn
#define pg_attribute_noreturn()			__attribute__((noreturn))
#endif

#endif
