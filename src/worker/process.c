/*
 * process.c
 *		What every worker process does alike: begin, wait, obey, end.
 *
 * Workers run as the bootstrap superuser with a search_path that holds
 * nothing but pg_catalog, and leave by way of the ordinary SIGTERM handling,
 * so that pg_terminate_backend() and a fast shutdown work in the middle of a
 * statement. They end, without a word, when the extension that they serve is
 * dropped; and, saying so, when it is of another version than the library: its
 * tables are not those that the library knows, until ALTER EXTENSION UPDATE has
 * made them so.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "worker/worker.h"

/* The version of the SQL that this library belongs to; the test has another. */
static const char library_version[] = "mlint SQL version " MLINT_SQL_VERSION;

static Oid	extension = InvalidOid;

/* What a worker relies on, whatever the database or the role is set to. */
static const char *const settings[][2] = {
	{"search_path", "pg_catalog, pg_temp"},
	{"synchronous_commit", "off"},
	{"jit", "off"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"default_table_access_method", "heap"},
	{"default_tablespace", ""},
	{"session_replication_role", "origin"},
#if PG_VERSION_NUM >= 170000
	{"transaction_timeout", "0"},
#endif
};

/*
 * The owner of a database may set who its sessions are; ours are nobody's but
 * the bootstrap superuser's. Within a transaction.
 */
static void
be_superuser(void)
{
	SetConfigOption("session_authorization",
					GetUserNameFromId(BOOTSTRAP_SUPERUSERID, false),
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("role", "none", PGC_SUSET, PGC_S_OVERRIDE);
}

/* Has a schema been created or dropped? An extension comes and goes with one. */
static bool extension_in_doubt = true;

static void
doubt_extension(Datum arg, int cache, uint32 hash)
{
	extension_in_doubt = true;
}

/* The installed version, palloc'd; NULL: there is no such extension. */
static char *
installed_version(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(rel), &isnull);

		version = TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return version;
}

/* Is there an extension in this database that the library can work with? */
static bool
find_extension(void)
{
	const char *ours = library_version + strlen("mlint SQL version ");
	char	   *installed;

	extension = get_extension_oid("mlint", true);
	installed = OidIsValid(extension) ? installed_version() : NULL;
	if (installed == NULL || strcmp(installed, ours) == 0)
		return installed != NULL;
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("mlint does not run in database \"%s\": the extension there is version %s, and the library that the server has loaded is that of version %s",
					get_database_name(MyDatabaseId), installed, ours),
			 errdetail("Events wait, and so does what must be audited."),
			 errhint("Run ALTER EXTENSION mlint UPDATE in that database; if the library is the older one, install the new one and restart the server first.")));
	return false;
}

void
worker_enter(Datum main_arg)
{
	bool		found;

	worker_slot_adopt(DatumGetInt32(main_arg));

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(MyWorker->database,
											  InvalidOid, 0);
	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET,
						PGC_S_OVERRIDE);

	CacheRegisterSyscacheCallback(NAMESPACEOID, doubt_extension, (Datum) 0);
	StartTransactionCommand();
	be_superuser();
	found = find_extension();
	CommitTransactionCommand();
	worker_answer(found);
	if (!found)
		proc_exit(0);
}

void
worker_check_extension(void)
{
	if (!extension_in_doubt)
		return;
	/* First, so that what happens while we look is doubted again. */
	extension_in_doubt = false;
	if (get_extension_oid("mlint", true) == extension)
		return;
	AbortCurrentTransaction();
	worker_answer(false);
	/* It may have been created anew: then we are to be started anew. */
	launcher_look(MyDatabaseId);
	proc_exit(0);
}

bool
worker_interrupts(void)
{
	CHECK_FOR_INTERRUPTS();
	if (!ConfigReloadPending)
		return false;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	return true;
}

void
worker_wait(long timeout_ms)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

	if (timeout_ms >= 0)
		events |= WL_TIMEOUT;
	if (!worker_called(true))
		(void) WaitLatch(MyLatch, events, timeout_ms, PG_WAIT_EXTENSION);
	(void) worker_called(true);
	ResetLatch(MyLatch);
	MyWorker->wakeups++;
}

void
worker_activity(const char *fmt,...)
{
	char text[	128];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	pgstat_report_activity(STATE_RUNNING, text);
}

void
worker_idle(void)
{
	pgstat_report_activity(STATE_IDLE, NULL);
	pgstat_report_stat(true);
}
