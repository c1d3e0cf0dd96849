/*
 * mlint.c
 *		Where PostgreSQL meets the extension: settings, shared memory, workers.
 *
 * This file knows every room, and no room knows it. Each room has an _init()
 * that _PG_init() calls once, in the postmaster, to define its settings and
 * to say what shared memory it wants.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "archive/archive.h"
#include "audit/auditor.h"
#include "certs/certs.h"
#include "common/audit.h"
#include "common/http.h"
#include "common/netpolicy.h"
#include "delivery/delivery.h"
#include "mounts/mounts.h"
#include "ratelimit/ratelimit.h"
#include "rotation/rotation.h"
#include "secrets/secrets.h"
#include "sessions/sessions.h"
#include "usage/usage.h"
#include "worker/worker.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
	{
		const char *file = GetConfigOption("config_file", true, false);

		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("mlint must be loaded when the server starts"),
				 errdetail("Its workers and shared memory are set up at that moment."),
				 errhint("Add mlint to shared_preload_libraries in \"%s\" (shared_preload_libraries = 'mlint'), and restart the server.",
						 file ? file : "postgresql.conf")));
	}

	http_startup();
	netpolicy_define_settings();
	audit_init();
	auditor_init();
	secrets_init();
	worker_init();
	delivery_init();
	rotation_init();
	mounts_init();
	ratelimit_init();
	sessions_init();
	usage_init();
	archive_init();
	certs_init();

	MarkGUCPrefixReserved("mlint");
}
