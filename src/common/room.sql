-- common: roles, and the one HTTP client as a function.

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

GRANT mlint_user, mlint_reader TO mlint_admin;
GRANT mlint_reader TO pg_monitor;
GRANT USAGE ON SCHEMA mlint TO mlint_admin, mlint_user, mlint_reader;

CREATE TABLE mlint.generation (
	room text PRIMARY KEY,
	generation bigint NOT NULL
);

COMMENT ON TABLE mlint.generation IS
	'A number for each room whose rows workers keep in memory; it grows with every change of them';

INSERT INTO mlint.generation VALUES ('secrets', 1), ('destinations', 1);

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

