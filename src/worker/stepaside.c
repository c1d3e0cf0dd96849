/*
 * stepaside.c
 *		What the workers must know of commands that other sessions run.
 *
 * CREATE and DROP EXTENSION start and stop delivery in their database when
 * they commit. DROP DATABASE, ALTER DATABASE … RENAME and … SET TABLESPACE,
 * and CREATE DATABASE … TEMPLATE refuse to work on a database with processes
 * in it: before such a command our workers leave the database, and when its
 * transaction has ended the launcher looks again. They leave for DROP
 * EXTENSION and ALTER EXTENSION UPDATE too, which would otherwise meet their
 * locks; after an update they begin anew, with nothing of what they knew of the
 * tables. A command that its user may not run moves nobody. ALTER SCHEMA …
 * RENAME is refused, and so is switching all triggers of a table of ours.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "common/audit.h"
#include "common/compat.h"
#include "worker/worker.h"

static object_access_hook_type previous_access_hook = NULL;
static ProcessUtility_hook_type previous_utility_hook = NULL;
static bool extension_changed = false;
static bool holding = false;

static void
watch_extensions(ObjectAccessType access, Oid class_id, Oid object_id,
				 int sub_id, void *arg)
{
	if (previous_access_hook)
		previous_access_hook(access, class_id, object_id, sub_id, arg);
	if (class_id == ExtensionRelationId &&
		(access == OAT_POST_CREATE || access == OAT_DROP))
		extension_changed = true;
}

static void
look_on_xact_end(XactEvent event, void *arg)
{
	bool		ended = event == XACT_EVENT_COMMIT ||
	event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE;

	if (ended && holding)
	{
		holding = false;
		launcher_release();
	}
	if (!extension_changed)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		launcher_look(MyDatabaseId);
		for (int kind = WORKER_SCHEDULER; kind <= WORKER_JOB; kind++)
			worker_wake(kind);
	}
	if (ended)
		extension_changed = false;
}

/* The template that a CREATE DATABASE copies. */
static const char *
template_name(CreatedbStmt * stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, "template") == 0 && option->arg)
			return defGetString(option);
	}
	return "template1";
}

/*
 * CREATEDB of the current role. The server has a function for this, but minor
 * releases differ in whether extensions can call it.
 */
static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		may = superuser();

	if (may)
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		may = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return may;
}

/* May this role copy the database? As CREATE DATABASE will judge it. */
static bool
may_copy(Oid database)
{
	bool		is_template = false;
	HeapTuple	tuple;

	if (mlint_database_owner(database, GetUserId()))
		return true;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (HeapTupleIsValid(tuple))
	{
		is_template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return is_template && may_create_databases();
}

/* The database that a command needs for itself, or InvalidOid. */
static Oid
wanted_database(Node *stmt)
{
	const char *name = NULL;
	Oid			database;

	if (IsA(stmt, DropdbStmt))
		name = ((DropdbStmt *) stmt)->dbname;
	else if (IsA(stmt, RenameStmt) &&
			 ((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
		name = ((RenameStmt *) stmt)->subname;
	else if (IsA(stmt, CreatedbStmt))
		name = template_name((CreatedbStmt *) stmt);
	else if (IsA(stmt, AlterDatabaseStmt))
	{
		ListCell   *lc;

		foreach(lc, ((AlterDatabaseStmt *) stmt)->options)
		{
			if (strcmp(lfirst_node(DefElem, lc)->defname, "tablespace") == 0)
				name = ((AlterDatabaseStmt *) stmt)->dbname;
		}
	}
	if (name == NULL)
		return InvalidOid;
	database = get_database_oid(name, true);
	if (!OidIsValid(database) || database == MyDatabaseId)
		return InvalidOid;
	if (IsA(stmt, CreatedbStmt) ? may_copy(database) :
		mlint_database_owner(database, GetUserId()))
		return database;
	return InvalidOid;
}

/* Does the command update this extension? Only a superuser can. */
static bool
updates_extension(Node *stmt)
{
	return IsA(stmt, AlterExtensionStmt) &&
		strcmp(((AlterExtensionStmt *) stmt)->extname, "mlint") == 0 &&
		superuser() && OidIsValid(get_extension_oid("mlint", true));
}

/* Does it drop this extension, or the schema? So can only a superuser. */
static bool
drops_extension(Node *stmt)
{
	ListCell   *lc;

	if (!IsA(stmt, DropStmt) || !superuser() ||
		(((DropStmt *) stmt)->removeType != OBJECT_EXTENSION &&
		 ((DropStmt *) stmt)->removeType != OBJECT_SCHEMA))
		return false;
	foreach(lc, ((DropStmt *) stmt)->objects)
	{
		if (strcmp(strVal(lfirst(lc)), "mlint") == 0 &&
			OidIsValid(get_extension_oid("mlint", true)))
			return true;
	}
	return false;
}

/* All that is ours names the schema. */
static void
refuse_rename(Node *stmt)
{
	RenameStmt *rename = (RenameStmt *) stmt;

	if (!IsA(stmt, RenameStmt) || rename->renameType != OBJECT_SCHEMA ||
		strcmp(rename->subname, "mlint") != 0 ||
		!OidIsValid(get_extension_oid("mlint", true)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("schema \"mlint\" cannot be renamed"),
			 errdetail("It belongs to the extension mlint, whose functions and workers find their tables there.")));
}

/* Does the command switch all triggers of a table, ours too? */
static bool
switches_triggers(AlterTableStmt * alter)
{
	ListCell   *lc;

	foreach(lc, alter->cmds)
	{
		AlterTableType type = ((AlterTableCmd *) lfirst(lc))->subtype;

		if (type == AT_DisableTrigAll || type == AT_DisableTrigUser ||
			type == AT_EnableTrigAll || type == AT_EnableTrigUser)
			return true;
	}
	return false;
}

/*
 * That is what pg_restore --disable-triggers does: workers would not see that
 * rows come, events would stay where a dump leaves them, and triggers that are
 * enabled ALWAYS would no longer be afterwards.
 */
static void
refuse_triggers(Node *stmt)
{
	AlterTableStmt *alter = (AlterTableStmt *) stmt;
	Oid			table;

	if (!IsA(stmt, AlterTableStmt) || !switches_triggers(alter))
		return;
	table = RangeVarGetRelid(alter->relation, NoLock, true);
	if (!OidIsValid(table) || !OidIsValid(get_extension_oid("mlint", true)) ||
		get_rel_namespace(table) != get_namespace_oid("mlint", true))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("triggers of table \"%s\" cannot be enabled or disabled all at once",
					alter->relation->relname),
			 errdetail("They see to it that nobody works with rows of a dump before all of them are there."),
			 errhint("Restore without --disable-triggers: foreign keys of mlint's tables are not checked then anyway.")));
}

/*
 * Until the transaction ends, however it ends: a database that is created or
 * renamed can be seen only then.
 */
static void
hold(Oid database)
{
	holding = true;
	launcher_hold(database);
}

/* Does somebody deliver in this database? */
static bool
has_dispatcher(void)
{
	for (int i = 0; i < worker_slot_count(); i++)
	{
		volatile WorkerSlot *slot = worker_slot(i);

		if (slot->kind == WORKER_DISPATCHER && slot->database == MyDatabaseId)
			return true;
	}
	return false;
}

static void
step_aside(PlannedStmt *pstmt, const char *query, bool read_only_tree,
		   ProcessUtilityContext context, ParamListInfo params,
		   QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	ProcessUtility_hook_type next = previous_utility_hook ?
	previous_utility_hook : standard_ProcessUtility;

	/* Looked at now: afterwards the statement may be freed. */
	TransactionStmtKind kind = IsA(pstmt->utilityStmt, TransactionStmt) ?
	((TransactionStmt *) pstmt->utilityStmt)->kind : TRANS_STMT_BEGIN;

	bool		updates = !RecoveryInProgress() &&
	updates_extension(pstmt->utilityStmt);

	refuse_rename(pstmt->utilityStmt);
	refuse_triggers(pstmt->utilityStmt);
	/* The versions may agree afterwards, or no longer. */
	if (updates)
		extension_changed = true;
	if (!RecoveryInProgress() && context == PROCESS_UTILITY_TOPLEVEL)
	{
		Oid			database = wanted_database(pstmt->utilityStmt);

		if (OidIsValid(database))
			hold(database);
		else if (updates || drops_extension(pstmt->utilityStmt))
			hold(MyDatabaseId);
	}
	next(pstmt, query, read_only_tree, context, params, env, dest, qc);

	/* What it had to say at commit was forgotten when it was prepared. */
	if (kind == TRANS_STMT_COMMIT_PREPARED)
	{
		worker_wake(WORKER_DISPATCHER);
		worker_wake(WORKER_SCHEDULER);
		if (!has_dispatcher() && OidIsValid(get_extension_oid("mlint", true)))
			launcher_look(MyDatabaseId);
	}
	else if (kind == TRANS_STMT_ROLLBACK_PREPARED)
		audit_prepared_ended();
}

void
stepaside_init(void)
{
	previous_access_hook = object_access_hook;
	object_access_hook = watch_extensions;
	previous_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = step_aside;
	RegisterXactCallback(look_on_xact_end, NULL);
}
