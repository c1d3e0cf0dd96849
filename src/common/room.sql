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

