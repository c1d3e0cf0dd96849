-- Secrets: put, get, drop, versions, names, limits, who may, transactions.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
CREATE ROLE regress_secrets_admin IN ROLE mlint_admin;
CREATE ROLE regress_secrets_user IN ROLE mlint_user;
CREATE ROLE regress_secrets_reader IN ROLE mlint_reader;

-- an administrator who is no superuser does it all
SET ROLE regress_secrets_admin;
SELECT mlint.secret_put('test/api-key', 'first');
SELECT mlint.secret_put('test/api-key', 'second');
SELECT mlint.secret_get('test/api-key');
SELECT mlint.secret_get('test/api-key', 1);
SELECT mlint.secret_get('test/api-key', NULL);
SELECT mlint.secret_get('test/api-key', 1, 'local'), mlint.secret_get('local:test/api-key'),
	mlint.secret_get('test/api-key', '1', 'local');
SELECT name, type, description, owner, privileges, version, versions, metadata,
	created_at <= updated_at AS ordered
	FROM mlint.secrets WHERE name LIKE 'test/%';
SELECT mlint.secret_put('test/api-key', 'second', 'oauth_token', 'for tests', '{"team": "a"}');
SELECT mlint.secret_put('test/api-key', 'second');
SELECT type, description, metadata FROM mlint.secrets WHERE name = 'test/api-key';
SELECT mlint.secret_alter('test/api-key', type => 'ssh_key', metadata => '{}');
SELECT type, description, metadata FROM mlint.secrets WHERE name = 'test/api-key';
SELECT mlint.secret_put('test/api-key', 'x', 'password');
SELECT mlint.secret_put('test/api-key', 'x', metadata => '[]');
SELECT mlint.secret_alter('test/api-key', type => 'password');
SELECT mlint.secret_alter('test/nothing', type => 'ssh_key');
SELECT mlint.secret_alter('test/api-key', owner => 'nobody here');
SELECT mlint.secret_put('test/' || t, 'x', t) FROM unnest('{api_key,database_password,ssh_key,tls_certificate,encryption_key,oauth_token,service_account,webhook_secret}'::text[]) t;

-- what is missing
SELECT mlint.secret_get('test/api-key', 5);
SELECT mlint.secret_get('test/api-key', 'x', 'local');
SELECT mlint.secret_get('nowhere:test/api-key');
SELECT mlint.secret_put('test/api-key', 'x', backend => 'nowhere');
SELECT mlint.secret_get('a:b:c');
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

-- any bytes
SELECT mlint.secret_put_bytes('test/bytes', '\x00ff00fe');
SELECT mlint.secret_get('test/bytes');
SELECT mlint.secret_get_bytes('test/bytes');
SELECT mlint.secret_get_bytes('test/value') = convert_to(mlint.secret_get('test/value'), 'UTF8') AS same;
SELECT mlint.secret_put_bytes('test/bytes', '');
SELECT mlint.secret_put_bytes('test/bytes', NULL);
SELECT mlint.secret_put_bytes('test/bytes', decode(repeat('00', 65537), 'hex'));
SELECT mlint.secret_put_bytes('test/bytes', decode(repeat('01', 65536), 'hex'));
SELECT mlint.secret_get_bytes('test/bytes') = decode(repeat('01', 65536), 'hex') AS same;
SELECT mlint.secret_put_bytes('test/bytes', 'plain words');
SELECT mlint.secret_get('test/bytes');

-- versions, one of them destroyed
SELECT version, state, created_by, destroyed_by FROM mlint.secret_versions('test/bytes');
SELECT mlint.secret_destroy('test/bytes', 1);
SELECT mlint.secret_destroy('test/bytes', 1);
SELECT mlint.secret_destroy('test/bytes', 9);
SELECT mlint.secret_destroy('test/bytes', NULL);
SELECT mlint.secret_get_bytes('test/bytes', 1);
SELECT version, state, created_by, destroyed_at IS NOT NULL AS destroyed, destroyed_by
	FROM mlint.secret_versions('test/bytes');
SELECT mlint.secret_destroy('test/bytes', 3);
SELECT mlint.secret_get('test/bytes');
SELECT mlint.secret_put('test/bytes', 'after');
SELECT mlint.secret_get('test/bytes');
SELECT mlint.secret_versions('test/nothing');

-- the tables are not the interface, and others are not let in
SELECT * FROM mlint.secret_version;
SELECT * FROM mlint.secret;
SELECT * FROM mlint.wrapping_key;
SELECT * FROM mlint.secret_grant;
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

-- nobody's condition sees what the view hides
CREATE FUNCTION tell(name text) RETURNS boolean COST 0.0000001 LANGUAGE plpgsql AS
	$$ BEGIN RAISE NOTICE 'saw %', name; RETURN true; END $$;
SET ROLE regress_secrets_user;
SELECT count(*) FROM mlint.secrets WHERE tell(name);
SELECT count(*) FROM mlint.secret_grants WHERE tell(pattern);
RESET ROLE;
DROP FUNCTION tell(text);

-- grants: by name, by pattern, effective at once, with the privilege alone
CREATE ROLE regress_secrets_team;
GRANT regress_secrets_team TO regress_secrets_user;
SET ROLE regress_secrets_admin;
SELECT mlint.secret_grant('test/api-key', 'regress_secrets_user', 'read');
SELECT mlint.secret_grant('test/team/*', 'regress_secrets_team', 'write');
SELECT mlint.secret_grant('test/team/*', 'regress_secrets_team', 'write');
SELECT mlint.secret_grant('test/?bytes', 'regress_secrets_team', 'read');
SELECT mlint.secret_grant('test/api-key', 'regress_secrets_user', 'owner');
SELECT mlint.secret_grant('test/api-key', 'regress_secrets_user', 'all');
SELECT mlint.secret_grant('test/api-key', 'nobody here', 'read');
SELECT mlint.secret_grant('test/api key', 'regress_secrets_user', 'read');
SELECT mlint.secret_grant('test/api-key', NULL, 'read');
SELECT pattern, role, privilege, granted_by FROM mlint.secret_grants
	WHERE role <> 'regress_secrets_admin' ORDER BY 1, 2, 3;
RESET ROLE;
SET ROLE regress_secrets_user;
SELECT name, owner, privileges FROM mlint.secrets ORDER BY name;
SELECT mlint.secret_get('test/api-key');
SELECT mlint.secret_put('test/api-key', 'x');
SELECT mlint.secret_destroy('test/api-key', 1);
SELECT mlint.secret_drop('test/api-key');
SELECT mlint.secret_alter('test/api-key', type => 'api_key');
SELECT mlint.secret_grant('test/api-key', 'regress_secrets_user', 'write');
SELECT mlint.secret_revoke('test/api-key', 'regress_secrets_user', 'read');
SELECT mlint.secret_get('test/bytes');
SELECT count(*) FROM mlint.secret_versions('test/api-key');
SELECT mlint.secret_put('test/team/mine', 'owned');
SELECT mlint.secret_put('test/team/mine', 'owned');
SELECT mlint.secret_get('test/team/mine');
SELECT mlint.secret_put('test/elsewhere', 'x');
SELECT mlint.secret_grant('test/team/*', 'regress_secrets_reader', 'read');
SELECT mlint.secret_alter('test/team/mine', owner => 'regress_secrets_admin');
SELECT mlint.secret_get('test/team/mine');
SELECT mlint.secret_put('test/team/mine', 'write alone');
SELECT name, owner, privileges FROM mlint.secrets ORDER BY name;
SELECT pattern, role, privilege FROM mlint.secret_grants ORDER BY 1, 2, 3;
SELECT mlint.master_key_rotate();
RESET ROLE;
BEGIN;
SELECT mlint.secret_revoke('test/team/*', 'regress_secrets_team', 'write');
SET LOCAL ROLE regress_secrets_user;
SELECT mlint.secret_privileges('test/team/mine');
ROLLBACK;
SET ROLE regress_secrets_user;
SELECT mlint.secret_privileges('test/team/mine');
RESET ROLE;
SELECT mlint.secret_revoke('test/team/*', 'regress_secrets_team', 'write');
SELECT mlint.secret_revoke('test/team/*', 'regress_secrets_team', 'write');
SELECT mlint.secret_drop('test/api-key');
SELECT mlint.secret_put('test/api-key', 'first'), mlint.secret_put('test/api-key', 'second');
SET ROLE regress_secrets_user;
SELECT name FROM mlint.secrets;
SELECT mlint.secret_get('test/api-key');
RESET ROLE;
SELECT mlint.secret_revoke('test/?bytes', 'regress_secrets_team', 'read');
REVOKE regress_secrets_team FROM regress_secrets_user;
DROP ROLE regress_secrets_team;

-- neither value nor key can be read in the tables
SELECT count(*) FROM mlint.secret_version
	WHERE position('second'::bytea IN sealed) > 0
		OR position('second'::bytea IN wrapped_key) > 0;

-- the same value twice: other data keys, nonces and ciphertexts
SELECT mlint.secret_put('test/twice', 'the same'), mlint.secret_put('test/twice', 'the same');
SELECT count(DISTINCT sealed) AS sealed, count(DISTINCT wrapped_key) AS wrapped
	FROM mlint.secret_version v JOIN mlint.secret s ON s.id = v.secret_id
	WHERE name = 'test/twice';

-- a rollback takes the version back
BEGIN;
SELECT mlint.secret_put('test/api-key', 'third');
SELECT mlint.secret_get('test/api-key');
SAVEPOINT before_drop;
SELECT mlint.secret_drop('test/api-key');
SELECT mlint.secret_get('test/api-key');
ROLLBACK TO before_drop;
SELECT mlint.secret_get('test/api-key');
ROLLBACK;
SELECT mlint.secret_get('test/api-key');

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
SELECT mlint.secret_get('test/api-key');
SELECT count(*) FROM mlint.secret_version v
	WHERE NOT EXISTS (SELECT FROM mlint.secret s WHERE s.id = v.secret_id);
SELECT mlint.secret_put('test/api-key', 'again');

-- another master key, and back to where all is sealed with it
SELECT key_id, state, available, versions > 0 AS versions FROM mlint.master_key ORDER BY 1;
BEGIN;
SELECT mlint.master_key_rotate();
SELECT key_id, state, available, versions > 0 AS versions FROM mlint.master_key ORDER BY 1;
SELECT mlint.secret_get('test/api-key');
SELECT mlint.secret_put('test/api-key', 'under the new one');
COMMIT;
CALL mlint.secret_rewrap_all();
SELECT key_id, state, available, versions > 0 AS versions FROM mlint.master_key ORDER BY 1;
SELECT mlint.secret_get('test/api-key'), mlint.secret_get('test/twice'), length(mlint.secret_get('test/value'));

-- everything is described, and nothing is open to PUBLIC
SELECT p.oid::regprocedure FROM pg_proc p
	WHERE p.pronamespace = 'mlint'::regnamespace AND p.proname LIKE 'secret\_%'
		AND (obj_description(p.oid, 'pg_proc') IS NULL OR p.proacl IS NULL
			OR has_function_privilege('public', p.oid, 'EXECUTE'));
SELECT a.attname FROM pg_attribute a
	WHERE a.attrelid = 'mlint.secrets'::regclass AND a.attnum > 0
		AND col_description(a.attrelid, a.attnum) IS NULL;

SELECT count(mlint.secret_drop(name)) FROM mlint.secrets WHERE name LIKE 'test/%';
DROP ROLE regress_secrets_admin, regress_secrets_user, regress_secrets_reader;
