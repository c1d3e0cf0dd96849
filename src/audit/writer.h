/*
 * writer.h
 *		Entries into mlint.audit_entry, at the end of the chain.
 *
 * All of this runs in a transaction of the caller's. A ChainHead is a copy:
 * it is where the log ends once that transaction has committed.
 */
#ifndef MLINT_WRITER_H
#define MLINT_WRITER_H

#include "audit/chain.h"

/* Where the log ends, by what is in the table. */
extern void writer_find_head(ChainHead *head);

/* Append records; head moves along. */
extern void writer_append(ChainHead *head, const AuditRecord *const *records,
						  int n);

/* Have partitions for a month and the one after. */
extern void writer_prepare_month(int month);

/* A month as year * 100 + month, UTC. */
extern int	writer_month(TimestampTz at);

#endif
