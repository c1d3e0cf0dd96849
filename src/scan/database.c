/*
 * database.c
 *		Credentials in the definitions of a database's objects.
 *
 * One query collects every text of the catalogs that someone wrote: bodies,
 * expressions, comments, options, settings. It runs as the owner, since some
 * of it (the options of user mappings, subscriptions' connections) only a
 * superuser sees; the function is the administrators', and each call is
 * audited. Nothing that is read is executed. The system's own objects and
 * ours are left out.
 *
 * Names are what pg_identify_object() makes of them: quoted where they must
 * be, so that they can be told apart and pasted.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "common/audit.h"
#include "common/owner.h"
#include "common/peertext.h"
#include "scan/scan.h"

#define ROWS_AT_ONCE	100

/* Is it in a schema of the system, or a member of our extension? */
#define FOREIGN_TO(class, oid, namespace) \
	" AND " namespace " NOT IN ('pg_catalog'::regnamespace," \
	" 'information_schema'::regnamespace, 'pg_toast'::regnamespace)" \
	" AND NOT EXISTS (SELECT FROM pg_depend o JOIN pg_extension x" \
	" ON x.oid = o.refobjid AND x.extname = 'mlint'" \
	" WHERE o.refclassid = 'pg_extension'::regclass AND o.deptype = 'e'" \
	" AND o.classid = '" class "'::regclass AND o.objid = " oid ")"

static const char collect[] =
"SELECT type, identity, option, content FROM ("
"SELECT NULL::text AS type, NULL::text AS identity, false AS option,"
" NULL::text AS content"
/* functions and procedures, with their defaults and settings */
" UNION ALL SELECT i.type, i.identity, false, pg_get_functiondef(p.oid)"
" FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang,"
" pg_identify_object('pg_proc'::regclass, p.oid, 0) i"
" WHERE p.prokind <> 'a' AND l.lanname NOT IN ('internal', 'c')"
FOREIGN_TO("pg_proc", "p.oid", "p.pronamespace")
/* views and materialized views */
" UNION ALL SELECT i.type, i.identity, false, pg_get_viewdef(c.oid)"
" FROM pg_class c, pg_identify_object('pg_class'::regclass, c.oid, 0) i"
" WHERE c.relkind IN ('v', 'm')"
FOREIGN_TO("pg_class", "c.oid", "c.relnamespace")
/* rules */
" UNION ALL SELECT i.type, i.identity, false, pg_get_ruledef(r.oid)"
" FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class,"
" pg_identify_object('pg_rewrite'::regclass, r.oid, 0) i"
" WHERE r.rulename <> '_RETURN'"
FOREIGN_TO("pg_class", "c.oid", "c.relnamespace")
/* defaults and generated columns */
" UNION ALL SELECT 'column default', i.identity, false,"
" pg_get_expr(d.adbin, d.adrelid)"
" FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid,"
" pg_identify_object('pg_class'::regclass, c.oid, d.adnum) i"
" WHERE true"
FOREIGN_TO("pg_class", "c.oid", "c.relnamespace")
/* constraints of tables and domains */
" UNION ALL SELECT i.type, i.identity, false, pg_get_constraintdef(k.oid)"
" FROM pg_constraint k,"
" pg_identify_object('pg_constraint'::regclass, k.oid, 0) i"
" WHERE k.contype IN ('c', 'x')"
FOREIGN_TO("pg_class", "k.conrelid", "k.connamespace")
/* defaults of domains */
" UNION ALL SELECT 'domain default', i.identity, false, t.typdefault"
" FROM pg_type t, pg_identify_object('pg_type'::regclass, t.oid, 0) i"
" WHERE t.typtype = 'd' AND t.typdefault IS NOT NULL"
FOREIGN_TO("pg_type", "t.oid", "t.typnamespace")
/* indexes and statistics on expressions */
" UNION ALL SELECT i.type, i.identity, false, pg_get_indexdef(x.indexrelid)"
" FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid,"
" pg_identify_object('pg_class'::regclass, c.oid, 0) i"
" WHERE (x.indexprs IS NOT NULL OR x.indpred IS NOT NULL)"
FOREIGN_TO("pg_class", "c.oid", "c.relnamespace")
" UNION ALL SELECT i.type, i.identity, false,"
" pg_get_statisticsobjdef(e.oid) FROM pg_statistic_ext e,"
" pg_identify_object('pg_statistic_ext'::regclass, e.oid, 0) i"
" WHERE e.stxexprs IS NOT NULL"
/* triggers, with their arguments */
" UNION ALL SELECT i.type, i.identity, false, pg_get_triggerdef(g.oid)"
" FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid,"
" pg_identify_object('pg_trigger'::regclass, g.oid, 0) i"
" WHERE NOT g.tgisinternal"
FOREIGN_TO("pg_class", "c.oid", "c.relnamespace")
" UNION ALL SELECT i.type, i.identity, false,"
" array_to_string(v.evttags, ', ') FROM pg_event_trigger v,"
" pg_identify_object('pg_event_trigger'::regclass, v.oid, 0) i"
/* policies, and row filters of publications */
" UNION ALL SELECT i.type, i.identity, false,"
" concat_ws(E'\\n', pg_get_expr(y.polqual, y.polrelid),"
" pg_get_expr(y.polwithcheck, y.polrelid)) FROM pg_policy y,"
" pg_identify_object('pg_policy'::regclass, y.oid, 0) i"
" UNION ALL SELECT i.type, i.identity, false,"
" pg_get_expr(b.prqual, b.prrelid) FROM pg_publication_rel b,"
" pg_identify_object('pg_publication_rel'::regclass, b.oid, 0) i"
" WHERE b.prqual IS NOT NULL"
/* comments and labels */
" UNION ALL SELECT 'comment on ' || i.type, i.identity, false, d.description"
" FROM pg_description d, pg_identify_object(d.classoid, d.objoid, d.objsubid) i"
" WHERE coalesce(i.schema, '') NOT IN ('pg_catalog', 'information_schema',"
" 'pg_toast') AND i.type IS NOT NULL"
" AND NOT EXISTS (SELECT FROM pg_depend o JOIN pg_extension x"
" ON x.oid = o.refobjid AND x.extname = 'mlint'"
" WHERE o.refclassid = 'pg_extension'::regclass AND o.deptype = 'e'"
" AND o.classid = d.classoid AND o.objid = d.objoid)"
" UNION ALL SELECT 'comment on ' || i.type, i.identity, false, d.description"
" FROM pg_shdescription d, pg_identify_object(d.classoid, d.objoid, 0) i"
" WHERE i.type IS NOT NULL"
" UNION ALL SELECT 'security label on ' || i.type, i.identity, false, l.label"
" FROM pg_seclabel l, pg_identify_object(l.classoid, l.objoid, l.objsubid) i"
" UNION ALL SELECT 'security label on ' || i.type, i.identity, false, l.label"
" FROM pg_shseclabel l, pg_identify_object(l.classoid, l.objoid, 0) i"
/* options of what is foreign */
" UNION ALL SELECT i.type, i.identity, true, o.item"
" FROM pg_foreign_data_wrapper w, unnest(w.fdwoptions) o(item),"
" pg_identify_object('pg_foreign_data_wrapper'::regclass, w.oid, 0) i"
" UNION ALL SELECT i.type, i.identity, true, o.item"
" FROM pg_foreign_server s, unnest(s.srvoptions) o(item),"
" pg_identify_object('pg_foreign_server'::regclass, s.oid, 0) i"
" UNION ALL SELECT i.type, i.identity, true, o.item"
" FROM pg_user_mapping m, unnest(m.umoptions) o(item),"
" pg_identify_object('pg_user_mapping'::regclass, m.oid, 0) i"
" UNION ALL SELECT i.type, i.identity, true, o.item"
" FROM pg_foreign_table f, unnest(f.ftoptions) o(item),"
" pg_identify_object('pg_class'::regclass, f.ftrelid, 0) i"
" UNION ALL SELECT i.type, i.identity, true, o.item"
" FROM pg_attribute a, unnest(a.attfdwoptions) o(item),"
" pg_identify_object('pg_class'::regclass, a.attrelid, a.attnum) i"
" WHERE NOT a.attisdropped"
/* settings of roles and databases, and those of the server */
" UNION ALL SELECT CASE WHEN z.setrole = 0 THEN 'database setting'"
" WHEN z.setdatabase = 0 THEN 'role setting'"
" ELSE 'role setting in database' END,"
" concat_ws(' ', (SELECT quote_ident(rolname) FROM pg_authid WHERE oid = z.setrole),"
" (SELECT quote_ident(datname) FROM pg_database WHERE oid = z.setdatabase)),"
" true, o.item FROM pg_db_role_setting z, unnest(z.setconfig) o(item)"
" UNION ALL SELECT 'server setting', g.name, true, g.name || '=' || g.setting"
" FROM pg_settings g WHERE g.vartype = 'string' AND g.source IN"
" ('configuration file', 'command line', 'environment variable')"
/* subscriptions of this database, destinations of ours */
" UNION ALL SELECT 'subscription', quote_ident(u.subname), false, u.subconninfo"
" FROM pg_subscription u WHERE u.subdbid ="
" (SELECT oid FROM pg_database WHERE datname = current_database())"
" UNION ALL SELECT 'mlint destination', d.name, false, d.options::text"
" FROM mlint.destination d WHERE d.dropped_at IS NULL"
") AS source WHERE content <> ''";

typedef struct DatabaseScan
{
	ReturnSetInfo *result;
	Datum		type;
	Datum		object;
} DatabaseScan;

PG_FUNCTION_INFO_V1(mlint_secret_scan_database);

static void
finding_to_row(const ScanFinding *finding, void *arg)
{
	DatabaseScan *scan = arg;
	Datum		values[8];
	bool		nulls[8] = {0};

	values[0] = scan->type;
	values[1] = scan->object;
	values[2] = CStringGetTextDatum(finding->rule->name);
	values[3] = Int32GetDatum(finding->line);
	values[4] = Int32GetDatum(finding->column);
	values[5] = CStringGetTextDatum(finding->excerpt);
	values[6] = Float4GetDatum(finding->entropy);
	values[7] = CStringGetTextDatum(scan_severity_name(finding->severity));
	tuplestore_putvalues(scan->result->setResult, scan->result->setDesc,
						 values, nulls);
}

/* secret_scan_database(): what lies in the catalogs. */
Datum
mlint_secret_scan_database(PG_FUNCTION_ARGS)
{
	DatabaseScan scan = {(ReturnSetInfo *) fcinfo->resultinfo};
	OwnerScope	scope;
	SPIPlanPtr	plan;
	Portal		portal;
	const RuleSet *rules;

	HIDE_STATEMENT_BEGIN();
	InitMaterializedSRF(fcinfo, 0);
	audit(AUDIT_DONE, "secret.scan_database", "database",
		  get_database_name(MyDatabaseId), NULL);
	rules = ruleset_current();

	owner_begin(&scope);
	plan = SPI_prepare(collect, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "could not read the catalogs: %s",
			 SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, ROWS_AT_ONCE);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			HeapTuple	row = SPI_tuptable->vals[i];
			TupleDesc	desc = SPI_tuptable->tupdesc;
			bool		isnull;
			bool		option;
			text	   *content;

			scan.type = SPI_getbinval(row, desc, 1, &isnull);
			if (isnull)
				continue;
			scan.object = SPI_getbinval(row, desc, 2, &isnull);
			if (isnull)
				continue;
			option = DatumGetBool(SPI_getbinval(row, desc, 3, &isnull));
			content = DatumGetTextPP(SPI_getbinval(row, desc, 4, &isnull));
			scan_text(rules, VARDATA_ANY(content), VARSIZE_ANY_EXHDR(content),
					  option ? SCAN_OPTION : 0, finding_to_row, &scan);
		}
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	owner_end(&scope);
	HIDE_STATEMENT_END();
	return (Datum) 0;
}
