-- catalog.sql: everything that the catalogs say of the extension's objects, one
-- line each, in an order of its own: what an update must make the same as
-- CREATE EXTENSION does.
--
--	psql -XAtq -f test/catalog.sql mydatabase >updated
--
-- Column numbers are in it, since C code reads some tables by number; numbers
-- of objects are not, nor are partitions, which are made while it runs, nor
-- rows but those that the installation script makes.
\set QUIET on
\pset format unaligned
\pset tuples_only on
\pset footer off
SET search_path = pg_catalog;

CREATE TEMP TABLE member AS
SELECT d.classid, d.objid,
	pg_identify_object(d.classid, d.objid, 0)::text AS name
FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'mlint'
	AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = d.objid
		AND d.classid = 'pg_class'::regclass AND c.relispartition)
	-- Nor their row types, and arrays of these, which are members since 18.
	AND NOT EXISTS (SELECT FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem
		JOIN pg_class c ON c.oid IN (t.typrelid, e.typrelid)
		WHERE t.oid = d.objid AND d.classid = 'pg_type'::regclass AND c.relispartition);
-- What belongs to members: row types, sequences of identity columns, indexes.
INSERT INTO member
SELECT 'pg_class'::regclass, i.indexrelid,
	pg_identify_object('pg_class'::regclass, i.indexrelid, 0)::text
FROM pg_index i JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = i.indrelid;

CREATE FUNCTION pg_temp.privileges(acl aclitem[]) RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(CASE x.grantee WHEN 0 THEN 'PUBLIC'
			ELSE pg_get_userbyid(x.grantee) END || ' ' || x.privilege_type
			|| CASE WHEN x.is_grantable THEN '*' ELSE '' END, ', ' ORDER BY 1), 'none')
	FROM (SELECT DISTINCT * FROM (SELECT a.grantee, a.privilege_type, a.is_grantable
			FROM aclexplode(acl) a) d) x,
		LATERAL (SELECT 1) one $$;

CREATE TEMP TABLE line (about text, what text);

INSERT INTO line SELECT name, 'member' FROM member;

INSERT INTO line
SELECT m.name, format('comment%s: %s', CASE d.objsubid WHEN 0 THEN ''
		ELSE ' on column ' || d.objsubid END, d.description)
FROM member m JOIN pg_description d ON d.classoid = m.classid AND d.objoid = m.objid;

INSERT INTO line
SELECT m.name, format('initial privileges%s: %s', CASE p.objsubid WHEN 0 THEN ''
		ELSE ' on column ' || p.objsubid END, pg_temp.privileges(p.initprivs))
FROM member m JOIN pg_init_privs p ON p.classoid = m.classid AND p.objoid = m.objid;

INSERT INTO line
SELECT m.name, format('relation: kind %s, of %s, %s, options %s, method %s, row security %s %s, replica %s, privileges %s',
	c.relkind, pg_get_userbyid(c.relowner), c.relpersistence, c.reloptions, a.amname,
	c.relrowsecurity, c.relforcerowsecurity, c.relreplident, pg_temp.privileges(coalesce(c.relacl,
		acldefault(CASE c.relkind WHEN 'S' THEN 's'::"char" ELSE 'r'::"char" END, c.relowner))))
FROM member m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
LEFT JOIN pg_am a ON a.oid = c.relam;

INSERT INTO line
SELECT m.name, format('column %s %I %s%s%s default %s identity "%s" generated "%s" storage %s compression "%s" statistics %s options %s privileges %s',
	a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
	CASE WHEN a.attcollation <> 0 THEN ' collate ' || a.attcollation::regcollation ELSE '' END,
	CASE WHEN a.attnotnull THEN ' not null' ELSE '' END,
	coalesce(pg_get_expr(d.adbin, d.adrelid), 'none'), a.attidentity, a.attgenerated,
	a.attstorage, a.attcompression, a.attstattarget,
	-- Some servers count versions of columns there.
	(SELECT array_agg(o) FROM unnest(a.attoptions) o WHERE o NOT LIKE 'pg_attver=%'),
	CASE WHEN a.attacl IS NULL THEN 'none' ELSE pg_temp.privileges(a.attacl) END)
FROM member m JOIN pg_attribute a ON m.classid = 'pg_class'::regclass AND a.attrelid = m.objid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attnum > 0 AND NOT a.attisdropped;

INSERT INTO line
SELECT m.name, format('constraint %I %s%s', c.conname, pg_get_constraintdef(c.oid),
	CASE WHEN c.convalidated THEN '' ELSE ' not valid' END)
FROM member m JOIN pg_constraint c ON (m.classid = 'pg_class'::regclass AND c.conrelid = m.objid)
	OR (m.classid = 'pg_type'::regclass AND c.contypid = m.objid);

INSERT INTO line
SELECT m.name, format('index: %s, valid %s, clustered %s', pg_get_indexdef(i.indexrelid),
	i.indisvalid, i.indisclustered)
FROM member m JOIN pg_index i ON m.classid = 'pg_class'::regclass AND i.indexrelid = m.objid;

INSERT INTO line
SELECT m.name, format('trigger: %s, enabled %s', pg_get_triggerdef(t.oid), t.tgenabled)
FROM member m JOIN pg_trigger t ON m.classid = 'pg_class'::regclass AND t.tgrelid = m.objid
WHERE NOT t.tgisinternal;

INSERT INTO line
SELECT m.name, 'rule: ' || pg_get_ruledef(r.oid)
FROM member m JOIN pg_rewrite r ON m.classid = 'pg_class'::regclass AND r.ev_class = m.objid;

INSERT INTO line
SELECT m.name, format('policy %I %s %s %s using %s check %s', p.polname, p.polcmd, p.polpermissive,
	p.polroles::regrole[], pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
FROM member m JOIN pg_policy p ON m.classid = 'pg_class'::regclass AND p.polrelid = m.objid;

INSERT INTO line
SELECT m.name, format('sequence: %s from %s by %s, %s to %s, cache %s%s', format_type(s.seqtypid, NULL),
	s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
	CASE WHEN s.seqcycle THEN ', cycle' ELSE '' END)
FROM member m JOIN pg_sequence s ON m.classid = 'pg_class'::regclass AND s.seqrelid = m.objid;

INSERT INTO line
SELECT m.name, format('routine: of %s, privileges %s, support %s, %s', pg_get_userbyid(p.proowner),
	pg_temp.privileges(coalesce(p.proacl, acldefault('f', p.proowner))), p.prosupport,
	CASE p.prokind WHEN 'a' THEN (SELECT pg_catalog.to_jsonb(a) - 'aggfnoid' FROM pg_aggregate a
		WHERE a.aggfnoid = p.oid)::text ELSE pg_get_functiondef(p.oid) END)
FROM member m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid;

INSERT INTO line
SELECT m.name, format('type: %s, of %s, %s bytes, by value %s, align %s, storage %s, category %s, in %s, out %s, receive %s, send %s, element %s, base %s, default %s, privileges %s, labels %s',
	t.typtype, pg_get_userbyid(t.typowner), t.typlen, t.typbyval, t.typalign, t.typstorage, t.typcategory,
	t.typinput, t.typoutput, t.typreceive, t.typsend, t.typelem::regtype, format_type(t.typbasetype, t.typtypmod),
	t.typdefault, pg_temp.privileges(coalesce(t.typacl, acldefault('T', t.typowner))),
	(SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid))
FROM member m JOIN pg_type t ON m.classid = 'pg_type'::regclass AND t.oid = m.objid;

INSERT INTO line
SELECT m.name, format('cast: function %s, %s, %s', c.castfunc::regprocedure, c.castcontext, c.castmethod)
FROM member m JOIN pg_cast c ON m.classid = 'pg_cast'::regclass AND c.oid = m.objid;

INSERT INTO line
SELECT m.name, 'operator: ' || o.oprcode || ', ' || o.oprcanmerge || ', ' || o.oprcanhash || ', '
	|| o.oprrest || ', ' || o.oprjoin || ', ' || o.oprcom || ', ' || o.oprnegate
FROM member m JOIN pg_operator o ON m.classid = 'pg_operator'::regclass AND o.oid = m.objid;

INSERT INTO line
SELECT 'schema', format('of %s, privileges %s', pg_get_userbyid(n.nspowner),
	pg_temp.privileges(coalesce(n.nspacl, acldefault('n', n.nspowner))))
FROM pg_namespace n WHERE n.nspname = 'mlint';

INSERT INTO line
SELECT 'role', format('%s in %s, admin option %s', a.member::regrole, a.roleid::regrole, a.admin_option)
FROM pg_auth_members a WHERE a.member::regrole::text IN ('mlint_admin', 'mlint_user', 'mlint_reader')
	OR a.roleid::regrole::text IN ('mlint_admin', 'mlint_user', 'mlint_reader')
	AND a.member::regrole::text = 'pg_monitor';

INSERT INTO line
SELECT 'extension', format('version %s, relocatable %s', e.extversion, e.extrelocatable)
FROM pg_extension e WHERE e.extname = 'mlint'
UNION ALL
SELECT 'extension', format('dumped: %s %s', x.t::regclass, x.c)
FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS x(t, c)
WHERE e.extname = 'mlint'
	AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = x.t AND c.relispartition);

-- Rows that the installation script makes.
INSERT INTO line
SELECT 'job', format('%s: %s every %s', j.name, j.command, j.every) FROM mlint.job j
UNION ALL
SELECT 'event type', e::text FROM mlint.event_type e
UNION ALL
SELECT 'generation', g.room FROM mlint.generation g
UNION ALL
SELECT 'retention level', l::text FROM mlint.retention_level l;

-- Anything else of ours whose kind is not looked at above.
INSERT INTO line
SELECT m.name, 'of a class that test/catalog.sql does not know: ' || m.classid::regclass
FROM member m WHERE m.classid::regclass::text NOT IN
	('pg_class', 'pg_proc', 'pg_type', 'pg_cast', 'pg_operator', 'pg_namespace');
-- In the schema, and not the extension's: pg_dump would take it along.
INSERT INTO line
SELECT pg_identify_object('pg_class'::regclass, c.oid, 0)::text, 'in schema mlint, and no member'
FROM pg_class c WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
	AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
		AND d.objid = c.oid AND d.deptype = 'e')
UNION ALL
SELECT pg_identify_object('pg_proc'::regclass, p.oid, 0)::text, 'in schema mlint, and no member'
FROM pg_proc p WHERE p.pronamespace = 'mlint'::regnamespace
	AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass
		AND d.objid = p.oid AND d.deptype = 'e');

SELECT about || ' | ' || what FROM line ORDER BY about COLLATE "C", what COLLATE "C";
