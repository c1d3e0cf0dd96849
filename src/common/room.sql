-- common: roles, and the one HTTP client as a function.

-- CREATE EXTENSION takes a schema that is there already, whoever made it: what
-- its owner has put there would run as us.
DO $$
BEGIN
	IF (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'mlint')
		<> (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
	THEN
		RAISE EXCEPTION 'schema "mlint" exists already and belongs to another role'
			USING HINT = 'Look at what is in it, drop it, and run CREATE EXTENSION again.';
	END IF;
END
$$;

DO $$
DECLARE
	role text;
BEGIN
	FOREACH role IN ARRAY '{mlint_reader,mlint_user,mlint_admin}'::text[] LOOP
		IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role) THEN
			EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role);
		END IF;
	END LOOP;
END
$$;

-- The roles outlive the extension. What default privileges would give them on
-- everything here could not be told from what they are meant to have.
DO $$
BEGIN
	IF EXISTS (SELECT FROM pg_catalog.pg_default_acl d, pg_catalog.aclexplode(d.defaclacl) a
		WHERE d.defaclrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
			AND a.grantee IN (SELECT oid FROM pg_catalog.pg_roles
				WHERE rolname IN ('mlint_admin', 'mlint_user', 'mlint_reader')))
	THEN
		RAISE EXCEPTION 'default privileges of role "%" grant something to a role of mlint', current_user
			USING HINT = 'Take them back with ALTER DEFAULT PRIVILEGES ... REVOKE, and run CREATE EXTENSION again; \ddp in psql lists them.';
	END IF;
END
$$;

GRANT mlint_user, mlint_reader TO mlint_admin;
GRANT mlint_reader TO pg_monitor;
GRANT USAGE ON SCHEMA mlint TO mlint_admin, mlint_user, mlint_reader;

-- A role in a row of ours: its number here, its name in a dump, so that
-- ALTER ROLE RENAME needs nothing and no number is taken to another cluster.
CREATE TYPE mlint.role_id;
CREATE FUNCTION mlint.role_id_in(cstring) RETURNS mlint.role_id
	LANGUAGE c STABLE STRICT PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'mlint_role_id_in';
COMMENT ON FUNCTION mlint.role_id_in(cstring) IS
	'The role of this name; none, with a warning, when there is no such role';
CREATE FUNCTION mlint.role_id_out(mlint.role_id) RETURNS cstring
	LANGUAGE c STABLE STRICT PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'mlint_role_id_out';
COMMENT ON FUNCTION mlint.role_id_out(mlint.role_id) IS
	'The name of a role; empty when it is gone';
REVOKE ALL ON FUNCTION mlint.role_id_in(cstring), mlint.role_id_out(mlint.role_id)
	FROM PUBLIC;
CREATE TYPE mlint.role_id (INPUT = mlint.role_id_in, OUTPUT = mlint.role_id_out,
	LIKE = oid);
COMMENT ON TYPE mlint.role_id IS 'A role: kept as its oid, written as its name';
REVOKE ALL ON TYPE mlint.role_id FROM PUBLIC;
CREATE CAST (mlint.role_id AS oid) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (oid AS mlint.role_id) WITHOUT FUNCTION AS ASSIGNMENT;

CREATE TABLE mlint.generation (
	room text PRIMARY KEY,
	generation bigint NOT NULL
);

COMMENT ON TABLE mlint.generation IS
	'A number for each room whose rows workers keep in memory; it grows with every change of them';

INSERT INTO mlint.generation VALUES ('destinations', 1);

CREATE FUNCTION mlint.http(
	method text,
	url text,
	headers jsonb DEFAULT '{}',
	body text DEFAULT NULL,
	timeout interval DEFAULT '30 s',
	OUT status int,
	OUT headers jsonb,
	OUT body text,
	OUT elapsed interval)
RETURNS record
AS 'MODULE_PATHNAME', 'mlint_http'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 10000;

COMMENT ON FUNCTION mlint.http(text, text, jsonb, text, interval) IS
'Send one HTTP request and wait for the response; any status is a result, no response is an error';
REVOKE ALL ON FUNCTION mlint.http(text, text, jsonb, text, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.http(text, text, jsonb, text, interval) TO mlint_admin;

-- Default privileges of whoever creates the extension must not open what is
-- private: take back what anybody but the owner was given of tables, and
-- anybody but the owner and our roles of the rest; of views nobody may more
-- than read. Types are PUBLIC's unless that is taken back, too.
CREATE FUNCTION mlint.privileges_close() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee,
			a.privilege_type
		FROM pg_namespace n, aclexplode(n.nspacl) a
		WHERE n.nspname = 'mlint' AND a.grantee <> n.nspowner
			AND NOT (a.privilege_type = 'USAGE' AND a.grantee IN (SELECT oid FROM pg_roles
				WHERE rolname IN ('mlint_admin', 'mlint_user', 'mlint_reader')))
	LOOP
		EXECUTE format('REVOKE %s ON SCHEMA mlint FROM %s', r.privilege_type, r.grantee);
	END LOOP;
	FOR r IN SELECT c.oid::regclass AS object, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee,
			CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, a.privilege_type AS privilege
		FROM pg_class c, aclexplode(c.relacl) a
		WHERE c.relnamespace = 'mlint'::regnamespace
			AND c.relkind IN ('r', 'p', 'v', 'S')
			AND a.grantee <> c.relowner
			AND NOT (c.relkind = 'v' AND a.privilege_type = 'SELECT'
				AND a.grantee::regrole::text IN
					('mlint_admin', 'mlint_user', 'mlint_reader'))
	LOOP
		EXECUTE format('REVOKE %s ON %s %s FROM %s', r.privilege, r.kind, r.object, r.grantee);
	END LOOP;
	FOR r IN SELECT p.oid::regprocedure AS object, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
		FROM pg_proc p, aclexplode(p.proacl) a
		WHERE p.pronamespace = 'mlint'::regnamespace
			AND a.grantee <> p.proowner
			AND a.grantee::regrole::text NOT IN
				('mlint_admin', 'mlint_user', 'mlint_reader')
	LOOP
		EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s', r.object, r.grantee);
	END LOOP;
	FOR r IN SELECT t.oid::regtype AS object, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
		FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid,
			aclexplode(coalesce(t.typacl, acldefault('T', t.typowner))) a
		WHERE t.typnamespace = 'mlint'::regnamespace AND t.typelem = 0
			AND a.grantee <> t.typowner
			AND NOT (coalesce(c.relkind IN ('c', 'v'), true) AND a.grantee::regrole::text IN
				('mlint_admin', 'mlint_user', 'mlint_reader'))
	LOOP
		EXECUTE format('REVOKE ALL ON TYPE %s FROM %s', r.object, r.grantee);
	END LOOP;
END
$$;
COMMENT ON FUNCTION mlint.privileges_close() IS
	'Takes back what default privileges gave to others than the owner and mlint''s roles';
REVOKE ALL ON FUNCTION mlint.privileges_close() FROM PUBLIC;

