/*
 * compat.h
 *		What differs between PostgreSQL 15 and 18, in one place.
 */
#ifndef MLINT_COMPAT_H
#define MLINT_COMPAT_H

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "mlint supports PostgreSQL 15 to 18"
#endif

/* 16 made the checks of ownership and privilege one for all classes. */
#include "catalog/pg_database.h"
#include "utils/acl.h"
#if PG_VERSION_NUM < 160000
#define mlint_database_owner(db, role)	pg_database_ownercheck(db, role)
#define mlint_function_aclcheck(fn, role, mode) \
	pg_proc_aclcheck(fn, role, mode)
#define mlint_namespace_aclcheck(ns, role, mode) \
	pg_namespace_aclcheck(ns, role, mode)
#else
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#define mlint_function_aclcheck(fn, role, mode) \
	object_aclcheck(ProcedureRelationId, fn, role, mode)
#define mlint_namespace_aclcheck(ns, role, mode) \
	object_aclcheck(NamespaceRelationId, ns, role, mode)
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

/* 17 renamed the shared transaction state; only clog's own range is safe. */
#include "access/transam.h"
#if PG_VERSION_NUM < 170000
#define mlint_oldest_clog_xid	(ShmemVariableCache->oldestClogXid)
#else
#define mlint_oldest_clog_xid	(TransamVariables->oldestClogXid)
#endif

/* Can the commit log be asked about this transaction? */
static inline bool
mlint_xid_in_clog(uint64 xid)
{
	uint64		next = U64FromFullTransactionId(ReadNextFullTransactionId());

	return xid < next && next - xid < (UINT64CONST(1) << 31) &&
		TransactionIdFollowsOrEquals((TransactionId) xid,
									 mlint_oldest_clog_xid);
}

/* 17 can also ask for a stronger lock. */
#include "storage/lock.h"
#if PG_VERSION_NUM < 170000
#define mlint_lock_held(tag, mode)		LockHeldByMe(tag, mode)
#else
#define mlint_lock_held(tag, mode)		LockHeldByMe(tag, mode, false)
#endif

/* 18 took the argument run_once, which was always true. */
#include "tcop/pquery.h"
#if PG_VERSION_NUM < 180000
#define mlint_portal_run(portal, receiver, qc) \
	PortalRun(portal, FETCH_ALL, true, true, receiver, receiver, qc)
#else
#define mlint_portal_run(portal, receiver, qc) \
	PortalRun(portal, FETCH_ALL, true, receiver, receiver, qc)
#endif

/* 16 moved the macros for varlena values out of postgres.h. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 16 gave settings a memory context; what hooks keep must lie in it. */
#include "utils/guc.h"
#if PG_VERSION_NUM < 160000
#define mlint_guc_malloc(size)			malloc(size)
#define mlint_guc_free(ptr)				free(ptr)
#else
#define mlint_guc_malloc(size)			guc_malloc(LOG, size)
#define mlint_guc_free(ptr)				guc_free(ptr)
#endif

/* 16 can leave out all indexes but those that summarize. */
#if PG_VERSION_NUM < 160000
#define mlint_insert_index_tuples(target, slot, estate) \
	ExecInsertIndexTuples(target, slot, estate, false, false, NULL, NIL)
#else
#define mlint_insert_index_tuples(target, slot, estate) \
	ExecInsertIndexTuples(target, slot, estate, false, false, NULL, NIL, false)
#endif

/* 16 has JSON's semantic actions return an error; 17 moved the lexer. */
#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#if PG_VERSION_NUM < 160000
typedef void mlint_json_result;
#define mlint_json_done()				return
#else
typedef JsonParseErrorType mlint_json_result;
#define mlint_json_done()				return JSON_SUCCESS
#endif
#if PG_VERSION_NUM < 170000
#define mlint_json_lexer(text, len) \
	makeJsonLexContextCstringLen(unconstify(char *, text), len, \
								 GetDatabaseEncoding(), true)
#else
#define mlint_json_lexer(text, len) \
	makeJsonLexContextCstringLen(NULL, text, len, GetDatabaseEncoding(), true)
#endif

/* 18 has pg_noreturn in place of pg_attribute_noreturn(). */
#ifndef pg_attribute_noreturn
#define pg_attribute_noreturn()			__attribute__((noreturn))
#endif

#endif
