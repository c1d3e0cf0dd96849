-- Secrets: put, get, drop, versions, names, limits, who may, transactions.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS mlint;
RESET client_min_messages;
CREATE ROLE regress_secrets_admin IN ROLE mlint_admin;
CREATE ROLE regress_secrets_user IN ROLE mlint_user;
CREATE ROLE regress_secrets_reader IN ROLE mlint_reader;
CREATE FUNCTION generation() RETURNS bigint LANGUAGE sql AS
	$$ SELECT generation FROM mlint.generation WHERE room = 'secrets' $$;

-- an administrator who is no superuser does it all
SET ROLE regress_secrets_admin;
SELECT mlint.secret_put('test/api-key', 'first');
SELECT mlint.secret_put('test/api-key', 'second');
SELECT mlint.secret_get('test/api-key');
SELECT mlint.secret_get('test/api-key', 1);
SELECT mlint.secret_get('test/api-key', NULL);
SELECT name, version, versions, created_at <= updated_at AS ordered
	FROM mlint.secrets WHERE name LIKE 'test/%';

-- what is missing
SELECT mlint.secret_get('test/api-key', 3);
SELECT mlint.secret_get('test/nothing');
SELECT mlint.secret_get('test/api-key', 0);
SELECT mlint.secret_drop('test/nothing');

-- names: a bad one is not repeated, it may be a value in the wrong place
SELECT mlint.secret_put('', 'x');
SELECT mlint.secret_put('with space', 'x');
SELECT mlint.secret_put('naïve', 'x');
SELECT mlint.secret_put(E'new\nline', 'x');
SELECT mlint.secret_put(repeat('n', 256), 'x');
SELECT mlint.secret_put(NULL, 'x');
SELECT mlint.secret_get(NULL);
SELECT mlint.secret_drop(NULL);
SELECT mlint.secret_put('test/' || repeat('n', 250), 'x');
SELECT mlint.secret_get('test/' || repeat('n', 250));

-- values: 1 byte to 64 KiB, and every character comes back
SELECT mlint.secret_put('test/value', NULL);
SELECT mlint.secret_put('test/value', '');
SELECT mlint.secret_put('test/value', repeat('x', 65537));
SELECT mlint.secret_put('test/value', repeat('x', 65536));
SELECT mlint.secret_get('test/value') = repeat('x', 65536) AS same;
SELECT mlint.secret_put('test/value', E'grüße\t日本 \U0001F511\n');
SELECT mlint.secret_get('test/value') = E'grüße\t日本 \U0001F511\n' AS same;

-- the tables are not the interface, and others are not let in
SELECT * FROM mlint.secret_version;
SELECT * FROM mlint.secret;
SELECT * FROM mlint.master_key;
RESET ROLE;
SET ROLE regress_secrets_user;
SELECT mlint.secret_put('test/mine', 'x');
SELECT mlint.secret_get('test/api-key');
SELECT mlint.secret_drop('test/api-key');
SELECT count(*) FROM mlint.secrets;
RESET ROLE;
SET ROLE regress_secrets_reader;
SELECT mlint.secret_get('test/api-key');
SELECT name FROM mlint.secrets WHERE name = 'test/api-key';
RESET ROLE;

-- neither value nor key can be read in the tables
SELECT count(*) FROM mlint.secret_version
	WHERE position('second'::bytea IN sealed) > 0
		OR position('second'::bytea IN wrapped_key) > 0;

-- the same value twice: other data keys, nonces and ciphertexts
SELECT mlint.secret_put('test/twice', 'the same'), mlint.secret_put('test/twice', 'the same');
SELECT count(DISTINCT sealed) AS sealed, count(DISTINCT wrapped_key) AS wrapped
	FROM mlint.secret_version v JOIN mlint.secret s ON s.id = v.secret_id
	WHERE name = 'test/twice';

-- a rollback takes the version, and the generation, back
SELECT generation() AS before \gset
BEGIN;
SELECT mlint.secret_put('test/api-key', 'third');
SELECT mlint.secret_get('test/api-key');
SELECT generation() - :before AS bumped;
SAVEPOINT before_drop;
SELECT mlint.secret_drop('test/api-key');
SELECT mlint.secret_get('test/api-key');
ROLLBACK TO before_drop;
SELECT mlint.secret_get('test/api-key');
ROLLBACK;
SELECT mlint.secret_get('test/api-key'), generation() - :before AS bumped;

-- an error inside leaves the caller who he was
SET ROLE regress_secrets_admin;
DO $$
BEGIN
	PERFORM mlint.secret_get('test/nothing');
EXCEPTION WHEN undefined_object THEN
	RAISE NOTICE '% as % on %', SQLERRM, current_user, current_setting('search_path');
END
$$;
RESET ROLE;

-- objects in the caller's search_path are not taken for ours
CREATE SCHEMA regress_trap;
CREATE FUNCTION regress_trap.now() RETURNS timestamptz LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
CREATE FUNCTION regress_trap.plus(integer, integer) RETURNS integer LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
CREATE OPERATOR regress_trap.+ (FUNCTION = regress_trap.plus, LEFTARG = integer, RIGHTARG = integer);
SET search_path = regress_trap, pg_catalog, public;
SELECT mlint.secret_put('test/trap', 'x'), mlint.secret_put('test/trap', 'y');
SELECT mlint.secret_get('test/trap');
RESET search_path;
DROP SCHEMA regress_trap CASCADE;

-- reading works where nothing may be written
BEGIN READ ONLY;
SELECT mlint.secret_get('test/api-key');
SELECT mlint.secret_put('test/api-key', 'x');
ROLLBACK;

-- dropped is gone, and begins again at 1
SELECT mlint.secret_drop('test/api-key');
SELECT generation() - :before AS bumped;
SELECT mlint.secret_get('test/api-key');
SELECT count(*) FROM mlint.secret_version v
	WHERE NOT EXISTS (SELECT FROM mlint.secret s WHERE s.id = v.secret_id);
SELECT mlint.secret_put('test/api-key', 'again');

-- everything is described, and nothing is open to PUBLIC
SELECT p.oid::regprocedure FROM pg_proc p
	WHERE p.pronamespace = 'mlint'::regnamespace AND p.proname LIKE 'secret\_%'
		AND (obj_description(p.oid, 'pg_proc') IS NULL OR p.proacl IS NULL
			OR has_function_privilege('public', p.oid, 'EXECUTE'));
SELECT a.attname FROM pg_attribute a
	WHERE a.attrelid = 'mlint.secrets'::regclass AND a.attnum > 0
		AND col_description(a.attrelid, a.attnum) IS NULL;

SELECT count(mlint.secret_drop(name)) FROM mlint.secrets WHERE name LIKE 'test/%';
DROP FUNCTION generation();
DROP ROLE regress_secrets_admin, regress_secrets_user, regress_secrets_reader;
