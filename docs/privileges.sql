-- Who may use what of mlint, as Markdown for security.md, from the catalog:
-- docs/privileges.sh puts it there. The rooms come in by way of the variable
-- rooms, a JSON array of [room, name], in the order of installation; what no
-- room's file names is shown as if it had a room of its own.
\pset format unaligned
\pset tuples_only on
\set ON_ERROR_STOP 1

WITH room AS (
	SELECT r->>0 AS room, r->>1 AS name, min(n) AS n
	FROM jsonb_array_elements(:'rooms') WITH ORDINALITY AS a(r, n)
	GROUP BY 1, 2
), object AS (
	SELECT NULL::oid AS relation, p.proname::text AS name,
		replace(p.oid::regprocedure::text, 'timestamp with time zone', 'timestamptz') AS shown,
		CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'f' THEN
			CASE p.prorettype WHEN 'trigger'::regtype THEN 'trigger function' ELSE 'function' END
			ELSE p.prokind::text END || CASE WHEN p.prosecdef THEN ', SECURITY DEFINER' ELSE '' END AS kind,
		p.proowner AS owner, coalesce(p.proacl, acldefault('f', p.proowner)) AS acl
	FROM pg_proc p WHERE p.pronamespace = 'mlint'::regnamespace
	UNION ALL
	SELECT c.oid, c.relname, c.oid::regclass::text,
		CASE c.relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' WHEN 'r' THEN 'table'
			WHEN 'p' THEN 'table' ELSE c.relkind::text END
		|| CASE WHEN 'security_barrier=true' = ANY (c.reloptions) THEN ', security barrier' ELSE '' END,
		c.relowner,
		coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))
	FROM pg_class c
	WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind NOT IN ('i', 'I', 'c')
		AND NOT c.relispartition
		-- What an identity column has beneath it is no object of its own.
		AND NOT (c.relkind = 'S' AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
			AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'i'))
	UNION ALL
	SELECT NULL, t.typname, format_type(t.oid, NULL), 'type', t.typowner,
		coalesce(t.typacl, acldefault('T', t.typowner))
	FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
	WHERE t.typnamespace = 'mlint'::regnamespace AND t.typelem = 0
		AND coalesce(c.relkind = 'c', true)
), role AS (
	SELECT oid, row_number() OVER () AS n FROM unnest(
		'{mlint_user,mlint_reader,mlint_admin}'::regrole[]) AS r(oid)
), cell AS (
	-- Of a view it may be some columns only.
	SELECT o.shown, array_agg(CASE
			WHEN EXISTS (SELECT FROM aclexplode(o.acl) a WHERE pg_has_role(r.oid, a.grantee, 'USAGE')
				AND a.grantee <> 0) THEN 'yes'
			ELSE 'all but ' || (SELECT string_agg('`' || c.attname || '`', ', ' ORDER BY c.attnum)
					FILTER (WHERE NOT has_column_privilege(r.oid, o.relation, c.attnum, 'SELECT'))
				FROM pg_attribute c WHERE c.attrelid = o.relation AND c.attnum > 0
				HAVING bool_or(has_column_privilege(r.oid, o.relation, c.attnum, 'SELECT')))
			END ORDER BY r.n) AS may
	FROM object o CROSS JOIN role r GROUP BY o.shown
), granted AS (
	SELECT o.name, o.shown, o.kind, coalesce(r.room, 'in no room') AS room, r.n, c.may,
		(SELECT string_agg(DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END, ', ')
			FROM aclexplode(o.acl) a
			WHERE a.grantee NOT IN (SELECT oid FROM role) AND a.grantee <> o.owner) AS others
	FROM object o
	JOIN cell c ON c.shown = o.shown
	LEFT JOIN room r ON r.name = o.name
), line AS (
	SELECT room, n, name, shown, format('| `%s` | %s | %s | %s | %s |',
			replace(shown, 'mlint.', ''), kind || coalesce(', **also ' || others || '**', ''),
			may[1], may[2], may[3]) AS text
	FROM granted WHERE cardinality(array_remove(may, NULL)) > 0 OR others IS NOT NULL
), private AS (
	SELECT room, kind, 'Nobody''s, ' || CASE kind WHEN 'table' THEN 'tables' WHEN 'view' THEN 'views'
			WHEN 'function' THEN 'functions' WHEN 'procedure' THEN 'procedures'
			WHEN 'sequence' THEN 'sequences' WHEN 'trigger function' THEN 'trigger functions'
			ELSE kind END || ': '
		|| string_agg('`' || replace(shown, 'mlint.', '') || '`', ', ' ORDER BY n, shown) || '.' AS text
	FROM granted
	WHERE cardinality(array_remove(may, NULL)) = 0 AND others IS NULL
	GROUP BY room, kind
), chapter AS (
	SELECT g.room, min(g.n) AS n,
		(SELECT E'| | | user | reader | admin |\n| --- | --- | --- | --- | --- |\n'
			|| string_agg(l.text, E'\n' ORDER BY l.n, l.shown)
			FROM line l WHERE l.room = g.room) AS open,
		(SELECT string_agg(p.text, E'\n' ORDER BY p.kind)
			FROM private p WHERE p.room = g.room) AS closed
	FROM granted g GROUP BY g.room
)
SELECT '### ' || room || E'\n\n' || concat_ws(E'\n\n', open, closed)
	|| CASE WHEN lead(1) OVER w IS NULL THEN '' ELSE E'\n' END
FROM chapter WINDOW w AS (ORDER BY n, room) ORDER BY n, room;
