/*
 * auditor.h
 *		The audit room: what writes the audit log.
 */
#ifndef MLINT_AUDITOR_H
#define MLINT_AUDITOR_H

/* Offers callers of audit() what this room does for them. */
extern void auditor_init(void);

#endif
