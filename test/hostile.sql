-- hostile.sql: a schema in which everything has the name of something of
-- PostgreSQL's or of ours, and raises an error when it is used. Variable
-- hostile: the schema, which is there.
\set QUIET on
\set ON_ERROR_STOP 1
SET client_min_messages = error;
SET check_function_bodies = off;
SELECT set_config('test.hostile', :'hostile', false);
DO $$
DECLARE
	s text := quote_ident(current_setting('test.hostile'));
	r record;
	n int := 0;
BEGIN
	FOR r IN SELECT DISTINCT c.relname FROM pg_class c
		WHERE c.relnamespace IN ('mlint'::regnamespace, 'pg_catalog'::regnamespace)
			AND c.relkind IN ('r', 'p', 'v')
	LOOP
		BEGIN
			EXECUTE format('CREATE TABLE %s.%I (hostile int)', s, r.relname);
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
	FOR r IN SELECT p.oid, p.proname, pg_get_function_identity_arguments(p.oid) AS args,
			format_type(p.prorettype, NULL) AS result, p.proretset,
			(SELECT string_agg(CASE WHEN t.typname = 'any' OR t.typtype = 'p' THEN 'anyelement'
					ELSE quote_ident(tn.nspname) || '.' || quote_ident(t.typname) END, ', ' ORDER BY a.n)
				FROM unnest(p.proargtypes) WITH ORDINALITY AS a(oid, n)
				JOIN pg_type t ON t.oid = a.oid
				JOIN pg_namespace tn ON tn.oid = t.typnamespace) AS types
		FROM pg_proc p
		WHERE p.pronamespace IN ('mlint'::regnamespace, 'pg_catalog'::regnamespace)
			AND p.prokind IN ('f', 'a') AND p.prorettype <> 'internal'::regtype
	LOOP
		BEGIN
			EXECUTE format('CREATE FUNCTION %s.%I(%s) RETURNS %s LANGUAGE plpgsql AS $f$BEGIN
				RAISE EXCEPTION %L; END$f$', s, r.proname, r.types,
				CASE WHEN r.result IN ('record', 'trigger') OR r.result LIKE 'any%' THEN 'boolean' ELSE r.result END,
				'hostile function ' || r.proname);
			n := n + 1;
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
	FOR r IN SELECT o.oprname, o.oprleft, o.oprright, o.oprresult FROM pg_operator o
		WHERE o.oprnamespace = 'pg_catalog'::regnamespace
	LOOP
		BEGIN
			EXECUTE format('CREATE FUNCTION %s.%I(%s%s) RETURNS %s LANGUAGE plpgsql AS $f$BEGIN
				RAISE EXCEPTION %L; END$f$', s, 'op' || n,
				CASE WHEN r.oprleft <> 0 THEN format_type(r.oprleft, NULL) || ', ' ELSE '' END,
				format_type(r.oprright, NULL), format_type(r.oprresult, NULL), 'hostile operator ' || r.oprname);
			EXECUTE format('CREATE OPERATOR %s.%s (%s RIGHTARG = %s, FUNCTION = %s.%I)', s, r.oprname,
				CASE WHEN r.oprleft <> 0 THEN 'LEFTARG = ' || format_type(r.oprleft, NULL) || ',' ELSE '' END,
				format_type(r.oprright, NULL), s, 'op' || n);
			n := n + 1;
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
	FOR r IN SELECT DISTINCT t.typname FROM pg_type t
		WHERE t.typnamespace IN ('mlint'::regnamespace, 'pg_catalog'::regnamespace)
			AND t.typtype IN ('b', 'c', 'd') AND t.typname NOT LIKE '\_%'
	LOOP
		BEGIN
			EXECUTE format('CREATE TYPE %s.%I AS ENUM ()', s, r.typname);
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
	RAISE NOTICE '%', n;
END
$$;
