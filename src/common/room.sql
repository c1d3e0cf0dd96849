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
