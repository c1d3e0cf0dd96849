/*
 * errors.h
 *		The SQLSTATEs of mlint, all in one table.
 *
 * Class "ML" is ours. Each failure of an integration has exactly one code, so
 * that a caller can tell in an EXCEPTION clause what to do about it. Errors
 * that PostgreSQL has a code for (a missing object, a privilege, a value out
 * of range) keep PostgreSQL's.
 */
#ifndef MLINT_ERRORS_H
#define MLINT_ERRORS_H

#include "utils/elog.h"

/* The peer spoke, but not proper HTTP (or whatever the protocol is). */
#define ERRCODE_MLINT_HTTP				MAKE_SQLSTATE('M','L','0','0','1')
/* The peer refused our credentials (401, 403, 407). */
#define ERRCODE_MLINT_AUTHENTICATION	MAKE_SQLSTATE('M','L','0','0','2')
/* The peer answered with a status that is a failure. */
#define ERRCODE_MLINT_API				MAKE_SQLSTATE('M','L','0','0','3')
/* No connection: name resolution, TCP, TLS, or broken in mid-flight. */
#define ERRCODE_MLINT_CONNECTION		MAKE_SQLSTATE('M','L','0','0','4')
/* The peer took too long. */
#define ERRCODE_MLINT_TIMEOUT			MAKE_SQLSTATE('M','L','0','0','5')
/* The destination's circuit breaker is open. */
#define ERRCODE_MLINT_BREAKER_OPEN		MAKE_SQLSTATE('M','L','0','0','6')
/* An option, a pattern, a URL or a setting that cannot work. */
#define ERRCODE_MLINT_CONFIGURATION		MAKE_SQLSTATE('M','L','0','0','7')
/* A document that cannot be read or written (JSON, text encoding). */
#define ERRCODE_MLINT_SERIALIZATION		MAKE_SQLSTATE('M','L','0','0','8')
/* An address that the network policy refuses. */
#define ERRCODE_MLINT_ADDRESS_REFUSED	MAKE_SQLSTATE('M','L','0','0','9')
/* The master key is missing, unreadable or not the one in use. */
#define ERRCODE_MLINT_MASTER_KEY		MAKE_SQLSTATE('M','L','0','1','0')
/* A stored secret does not decrypt: damaged, moved or tampered with. */
#define ERRCODE_MLINT_SECRET_CORRUPT	MAKE_SQLSTATE('M','L','0','1','1')
/* The audit log cannot be written, so what it must record does not happen. */
#define ERRCODE_MLINT_AUDIT				MAKE_SQLSTATE('M','L','0','1','2')
/* A rate limit refuses; the detail says when to try again. */
#define ERRCODE_MLINT_RATE_LIMITED		MAKE_SQLSTATE('M','L','0','1','3')
/* A legal hold, or a period that must be kept, forbids it. */
#define ERRCODE_MLINT_HELD				MAKE_SQLSTATE('M','L','0','1','4')
/* An archive does not open: damaged, moved or tampered with. */
#define ERRCODE_MLINT_ARCHIVE_CORRUPT	MAKE_SQLSTATE('M','L','0','1','5')

#endif
