-- Rotation: generators, applying and verifying by functions, failures, who may.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
CREATE ROLE regress_rotation_owner IN ROLE mlint_user;
CREATE ROLE regress_rotation_rotator IN ROLE mlint_user;
CREATE ROLE regress_rotation_reader IN ROLE mlint_reader;
CREATE ROLE regress_rotation_admin IN ROLE mlint_admin;
GRANT CREATE ON SCHEMA public TO regress_rotation_owner;

-- A rotation from its request to its end.
CREATE FUNCTION rotate(name text) RETURNS boolean LANGUAGE sql AS
	$$ SELECT mlint.secret_rotate_wait(name, '60 s') $$;

SELECT mlint.secret_put('rot/value', 'first');
SELECT mlint.secret_grant('rot/*', 'regress_rotation_owner', 'admin');
SELECT mlint.secret_grant('rot/*', 'regress_rotation_rotator', 'rotate');

-- ---- generators ----
SELECT mlint.secret_rotation_set('rot/value', '30 days');
SELECT mlint.secret_rotate('rot/value');
SELECT rotate('rot/value');
SELECT mlint.secret_get('rot/value') ~ '^[A-Za-z0-9]{32}$' AS password;
SELECT mlint.secret_rotation_set('rot/value', '30 days',
	'{"kind": "password", "length": 12, "alphabet": "abcdefghijABCDEF0123456789#!", "each_class": true}');
SELECT mlint.secret_rotate('rot/value');
SELECT rotate('rot/value');
SELECT v ~ '^[a-jA-F0-9#!]{12}$' AND v ~ '[a-j]' AND v ~ '[A-F]' AND v ~ '[0-9]' AND v ~ '[#!]' AS password
	FROM mlint.secret_get('rot/value') v;
SELECT mlint.secret_rotation_set('rot/value', '30 days', '{"kind": "hex", "bytes": 20}');
SELECT mlint.secret_rotate('rot/value');
SELECT rotate('rot/value');
SELECT mlint.secret_get('rot/value') ~ '^[0-9a-f]{40}$' AS hex;
SELECT mlint.secret_rotation_set('rot/value', '30 days', '{"kind": "uuid"}');
SELECT mlint.secret_rotate('rot/value');
SELECT rotate('rot/value');
SELECT mlint.secret_get('rot/value') ~ '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' AS uuid;
SELECT mlint.secret_rotation_set('rot/value', '30 days', '{"kind": "ed25519"}');
SELECT mlint.secret_rotate('rot/value');
SELECT rotate('rot/value');
SELECT mlint.secret_get('rot/value') ~ '^-----BEGIN PRIVATE KEY-----\n.*\n-----END PRIVATE KEY-----\n$' AS private;
SELECT version, current, public_key ~ '^-----BEGIN PUBLIC KEY-----\n.*\n-----END PUBLIC KEY-----\n$' AS public
	FROM mlint.secret_public_keys WHERE name = 'rot/value';
SELECT mlint.secret_rotation_set('rot/value', '30 days', '{"kind": "ec", "curve": "P-384"}');
SELECT mlint.secret_rotate('rot/value');
SELECT rotate('rot/value');
SELECT mlint.secret_rotation_set('rot/value', '30 days', '{"kind": "rsa", "bits": 2048}');
SELECT mlint.secret_rotate('rot/value');
SELECT rotate('rot/value');
SELECT version, current, length(public_key) > 100 AS public
	FROM mlint.secret_public_keys WHERE name = 'rot/value' ORDER BY version;
CREATE FUNCTION generate(name text) RETURNS text LANGUAGE sql AS
	$$ SELECT 'made for ' || name $$;
CREATE FUNCTION generate_bytes(name text) RETURNS bytea LANGUAGE sql AS
	$$ SELECT '\x00ff00'::bytea $$;
CREATE FUNCTION generate_number(name text) RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;
SELECT mlint.secret_rotation_set('rot/value', '30 days', '{"function": "public.generate"}');
SELECT mlint.secret_rotate('rot/value');
SELECT rotate('rot/value');
SELECT mlint.secret_get('rot/value');
SELECT mlint.secret_rotation_set('rot/value', '30 days', '{"kind": "function", "function": "public.generate_bytes"}');
SELECT mlint.secret_rotate('rot/value');
SELECT rotate('rot/value');
SELECT mlint.secret_get_bytes('rot/value');

-- ---- what cannot be ----
SELECT mlint.secret_rotation_set('rot/value', '10 s');
SELECT mlint.secret_rotation_set('rot/value', '1000000 years');
SELECT mlint.secret_rotation_set('rot/value', NULL);
SELECT mlint.secret_rotation_set('rot/value', '1 day', '{"kind": "word"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', '{"kind": "password", "length": 4}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', '{"kind": "password", "bytes": 16}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', '{"kind": "password", "alphabet": "aabcdefghijklm"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', '{"kind": "password", "alphabet": "abc"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', '{"function": "generate"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', '{"function": "public.nothing"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', '{"function": "public.generate_number"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', '[]');
SELECT mlint.secret_rotation_set('rot/value', '1 day', apply => '{"kind": "role", "role": "nobody_here"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', apply => '{"kind": "role", "role": "regress_rotation_owner"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', apply => '{"kind": "role", "role": "x", "connection": {"host": "db"}}');
SELECT mlint.secret_rotation_set('rot/value', '1 day',
	apply => '{"kind": "role", "role": "x", "connection": {"host": "db", "user": "y", "password": "plain"}}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', apply => '{"kind": "destination", "destination": "nowhere"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', verify => '{"kind": "login"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', verify => '{"kind": "read"}');
SELECT mlint.secret_rotation_set('rot/value', '1 day', grace => '-1 hour');
SELECT mlint.secret_rotation_set('rot/value', '1 day', warn_before => '2 days');
SELECT mlint.secret_rotation_set('rot/value', '1 day', on_failure => '{"retries": 3}');
SELECT mlint.secret_rotation_set('rot/nothing', '1 day');
SELECT mlint.secret_rotation_set('vault:rot/value', '1 day');
SELECT mlint.secret_rotate('rot/nothing');
SELECT mlint.secret_rotation_drop('rot/nothing');
BEGIN;
CALL mlint.secret_rotation_run();
ROLLBACK;

-- ---- apply and verify by functions, as the role that set the rotation ----
SET ROLE regress_rotation_owner;
CREATE TABLE target (name text PRIMARY KEY, version int, value text, who text);
INSERT INTO target VALUES ('rot/app', 1, 'initial', 'nobody');
CREATE TABLE switch (verdict text);
INSERT INTO switch VALUES ('works');
CREATE FUNCTION apply(name text, version int, value text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT verdict FROM public.switch) = 'refuse' THEN
		RAISE EXCEPTION 'the target does not like % at all', value;
	END IF;
	UPDATE public.target t SET version = apply.version, value = apply.value, who = current_user
	WHERE t.name = apply.name;
END $$;
CREATE FUNCTION verify(name text, version int, value text) RETURNS boolean LANGUAGE sql AS $$
	SELECT t.value = verify.value
	FROM public.target t WHERE t.name = verify.name
$$;
SELECT mlint.secret_put('rot/app', 'initial');
SELECT mlint.secret_rotation_set('rot/app', '7 days', '{"kind": "hex"}',
	'{"function": "public.apply"}', '{"function": "public.verify"}', '1 hour',
	'{"initial_delay_ms": 3600000, "max_retries": 1, "strategy": "linear"}');
SELECT mlint.secret_rotate('rot/app');
SELECT rotate('rot/app');
SELECT t.version, t.value = mlint.secret_get('rot/app') AS current, who FROM target t;
SELECT state, failures, last_error, current_version, trying_version,
	overlap_until > now() + interval '59 min' AS overlaps, next_at > now() + interval '6 days' AS later
	FROM mlint.rotations WHERE name = 'rot/app';
SELECT version, state FROM mlint.secret_versions('rot/app');

-- Applying fails, and applying the value before too: that is tried again ...
UPDATE switch SET verdict = 'refuse';
SELECT mlint.secret_rotate('rot/app');
SELECT rotate('rot/app');
SELECT state, step, failures, last_error, current_version, trying_version FROM mlint.rotations WHERE name = 'rot/app';
SELECT mlint.secret_rotation_set('rot/app', '7 days');
SELECT mlint.secret_rotation_drop('rot/app');
-- ... as soon as it can be.
UPDATE switch SET verdict = 'works';
SELECT mlint.secret_rotate('rot/app');
SELECT rotate('rot/app');
SELECT state, step, failures > 0 AS failed, last_error IS NOT NULL AS error, current_version, trying_version FROM mlint.rotations WHERE name = 'rot/app';
SELECT t.version, t.value = mlint.secret_get('rot/app') AS current FROM target t;
SELECT version, state FROM mlint.secret_versions('rot/app');

-- No new version is verified, and there are no retries: it is paused.
CREATE FUNCTION never(name text, version int, value bytea) RETURNS boolean LANGUAGE sql AS
	$$ SELECT version < 5 $$;
SELECT mlint.secret_rotation_set('rot/app', '7 days', '{"kind": "hex"}',
	'{"function": "public.apply"}', '{"function": "public.never"}', on_failure => '{"max_retries": 0}');
SELECT mlint.secret_rotate('rot/app');
SELECT rotate('rot/app');
SELECT state, step, failures, last_error, current_version FROM mlint.rotations WHERE name = 'rot/app';
SELECT t.version, t.value = mlint.secret_get('rot/app') AS current FROM target t;

-- Nothing to apply: the verification alone decides.
SELECT mlint.secret_rotation_set('rot/app', '7 days', '{"kind": "hex"}', NULL, '{"function": "public.never"}',
	on_failure => '{"initial_delay_ms": 3600000}');
SELECT mlint.secret_rotate('rot/app');
SELECT rotate('rot/app');
SELECT state, failures, last_error, current_version FROM mlint.rotations WHERE name = 'rot/app';
RESET ROLE;

-- ---- events ----
SELECT type, data - 'next_at' - 'overlap_until' AS data FROM mlint.events
	WHERE data ->> 'name' = 'rot/app' ORDER BY id;
SELECT count(*) FROM mlint.events WHERE data::text LIKE '%' || mlint.secret_get('rot/app') || '%';
-- What is due soon is announced, once.
SELECT mlint.secret_put('rot/old', 'x');
SELECT mlint.secret_rotation_set('rot/old', '10 days', warn_before => '10 days');
CREATE PROCEDURE run_job() LANGUAGE plpgsql AS $$
DECLARE
	before bigint := (SELECT coalesce(max(id), 0) FROM mlint.job_runs WHERE name = 'secret_rotation');
BEGIN
	PERFORM mlint.job_run_now('secret_rotation');
	COMMIT;
	FOR i IN 1 .. 6000 LOOP
		EXIT WHEN (SELECT max(id) > before FROM mlint.job_runs WHERE name = 'secret_rotation');
		PERFORM pg_sleep(0.01);
		COMMIT;
	END LOOP;
END $$;
CALL run_job();
CALL run_job();
SELECT type, data - 'next_at' - 'due_at' AS data FROM mlint.events WHERE data ->> 'name' = 'rot/old';

-- ---- who may ----
SET ROLE regress_rotation_rotator;
SELECT mlint.secret_rotation_set('rot/app', '7 days', '{"kind": "hex"}', '{"function": "public.apply"}');
SELECT mlint.secret_rotation_set('rot/app', '7 days', '{"kind": "hex"}');
SELECT mlint.secret_rotate('rot/app');
SELECT rotate('rot/app');
SELECT name, owner FROM mlint.rotations ORDER BY name;
SELECT mlint.secret_rotation_set('other', '7 days');
RESET ROLE;
SET ROLE regress_rotation_reader;
SELECT mlint.secret_rotate('rot/app');
SELECT count(*) FROM mlint.rotations;
RESET ROLE;
SELECT mlint.secret_revoke('rot/*', 'regress_rotation_rotator', 'rotate');
-- The privileges of the role that set it are those of the moment.
SELECT mlint.secret_rotate('rot/app');
SELECT rotate('rot/app');
SELECT last_error FROM mlint.rotations WHERE name = 'rot/app';
SET ROLE regress_rotation_owner;
SELECT mlint.secret_rotation_set('rot/app', '7 days',
	apply => '{"kind": "role", "role": "x", "connection": {"host": "db", "user": "y", "password": {"secret": "rot/app"}}}');
SELECT mlint.secret_rotation_set('rot/app', '7 days', verify => '{"kind": "login", "role": "x", "connection": {"host": "db"}}');
RESET ROLE;
CREATE ROLE regress_rotation_login LOGIN;
SET ROLE regress_rotation_admin;
SELECT mlint.secret_rotation_set('rot/app', '7 days', apply => '{"kind": "role", "role": "regress_rotation_login"}');
RESET ROLE;
SELECT rolpassword IS NULL AS untouched FROM pg_authid WHERE rolname = 'regress_rotation_login';

-- ---- it goes with its secret ----
SELECT mlint.secret_rotation_drop('rot/value');
SELECT mlint.secret_rotation_drop('rot/value');
SELECT mlint.secret_drop('rot/app');
SELECT mlint.secret_drop('rot/old');
SELECT count(*) FROM mlint.rotations;
SELECT mlint.secret_drop('rot/value');
SELECT count(*) FROM mlint.secret_public_keys;
SELECT mlint.secret_revoke('rot/*', 'regress_rotation_owner', 'admin');
DROP TABLE target, switch;
DROP FUNCTION apply, verify, never, generate, generate_bytes, generate_number, rotate;
DROP PROCEDURE run_job;
REVOKE CREATE ON SCHEMA public FROM regress_rotation_owner;
DROP ROLE regress_rotation_owner, regress_rotation_rotator, regress_rotation_reader, regress_rotation_admin, regress_rotation_login;
