-- Observation: each check of mlint.health() that tables decide turns when what it looks at is broken, and the form of mlint.metrics(). What takes processes and other servers is in test/t.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
CREATE ROLE regress_observe_user IN ROLE mlint_user;
CREATE ROLE regress_observe_reader IN ROLE mlint_reader;
RESET client_min_messages;
\t on

-- Wait until all is well, or a minute.
CREATE PROCEDURE settle() LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + '1 minute'::interval;
BEGIN
	WHILE clock_timestamp() < deadline AND EXISTS (SELECT FROM mlint.health() WHERE status <> 'ok') LOOP
		PERFORM pg_sleep(0.1);
	END LOOP;
END
$$;

-- ---- all is well, as soon as the workers are there ----
CALL settle();
SELECT room, name, status, why, remedy FROM mlint.health();

-- ---- a dump that is restored: what comes in directly is taken for one ----
BEGIN;
INSERT INTO mlint.usage_notice VALUES ('a', '', 'day', now(), 80);
SELECT name, status, regexp_replace(why, '[0-9]+', 'N'), remedy FROM mlint.health() WHERE status <> 'ok';
ROLLBACK;
-- It ends with the session.
\c
CALL settle();
-- What comes in directly here is no dump that is restored.
DO $$
DECLARE
	t regclass;
BEGIN
	FOR t IN SELECT tgrelid FROM pg_trigger WHERE tgname = '1 restore' LOOP
		EXECUTE format('ALTER TABLE %s DISABLE TRIGGER "1 restore", DISABLE TRIGGER "1 restored"', t);
	END LOOP;
END
$$;

-- What is not ok, with times and numbers of rooms without a meaning here.
CREATE FUNCTION unwell() RETURNS TABLE (name text, status text, why text, remedy boolean)
LANGUAGE sql AS $$
	SELECT h.name, h.status,
		regexp_replace(h.why, '[0-9]{4}-[0-9]{2}-[0-9]{2}( [0-9:]+)?', 'TIME', 'g'), h.remedy <> ''
	-- (Who inserts directly, as is done here, counts as a restore.)
	FROM mlint.health() h WHERE h.status <> 'ok' AND h.name <> 'restore'
$$;

-- ---- jobs ----
BEGIN;
UPDATE mlint.job SET failures = 3, started_at = now() - '2 minutes'::interval,
	next_run_at = now() + '1 hour'::interval WHERE name = 'archive_expire';
SELECT * FROM unwell();
DELETE FROM mlint.job_run;
INSERT INTO mlint.job_run (job_id, started_at, finished_at, error)
SELECT id, started_at, now(), 'it broke' FROM mlint.job WHERE name = 'archive_expire';
SELECT * FROM unwell();
UPDATE mlint.job SET failures = 10 WHERE name = 'archive_expire';
SELECT * FROM unwell();
UPDATE mlint.job SET failures = 0 WHERE name = 'archive_expire';
SELECT * FROM unwell();
-- One that runs for the first time, or has just begun again, has not failed.
DELETE FROM mlint.job_run;
UPDATE mlint.job SET failures = 1, started_at = clock_timestamp() WHERE name = 'archive_expire';
SELECT * FROM unwell();
ROLLBACK;
BEGIN;
UPDATE mlint.job SET next_run_at = now() - '6 minutes'::interval WHERE name = 'audit_retention';
SELECT * FROM unwell();
UPDATE mlint.job SET next_run_at = now() - '2 hours'::interval WHERE name = 'audit_retention';
SELECT * FROM unwell();
ROLLBACK;
-- All that is switched off, and needed.
BEGIN;
UPDATE mlint.job SET enabled = false;
SELECT * FROM unwell();
ROLLBACK;

-- ---- delivery ----
CREATE FUNCTION take(event jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE ROLE regress_observe_owner SUPERUSER;
SET client_min_messages = error;
SELECT mlint.destination_create('regress "q\" one', 'http', '{"url": "http://127.0.0.1:9"}', '{regress.none}') AS one \gset
SET ROLE regress_observe_owner;
SELECT mlint.destination_create('fn', 'function', '{"fn": "public.take"}', '{regress.none}') AS fn \gset
RESET ROLE;
SELECT mlint.destination_create('late', 'http', '{"url": "http://127.0.0.1:9"}', '{regress.none}', enabled => false) AS late \gset
RESET client_min_messages;
-- The function is in another lane, which takes a moment to be there.
CALL settle();
SELECT * FROM unwell();
BEGIN;
UPDATE mlint.destination SET enabled = false, disabled_reason = 'it answered 410 Gone' WHERE id = :one;
SELECT * FROM unwell();
ROLLBACK;
BEGIN;
DROP FUNCTION take(jsonb);
SELECT * FROM unwell();
ROLLBACK;
BEGIN;
DROP ROLE regress_observe_owner;
SELECT * FROM unwell();
ROLLBACK;
-- What waits: not what is scheduled for later.
SELECT mlint.publish('regress.x', '{}') AS event \gset
SELECT mlint.event_wait(:event, '60 s');
BEGIN;
UPDATE mlint.event SET published_at = now() - '6 minutes'::interval;
INSERT INTO mlint.pending (event_id, destination_id, segment, attempts, next_attempt_at)
VALUES (:event, :one, 1, 0, now() + '1 hour');
SELECT * FROM unwell();
UPDATE mlint.pending SET attempts = 1;
SELECT * FROM unwell();
UPDATE mlint.event SET published_at = now() - '25 hours'::interval;
SELECT * FROM unwell();
UPDATE mlint.pending SET destination_id = :late;
SELECT * FROM unwell();
ROLLBACK;
BEGIN;
INSERT INTO mlint.delivery (event_id, destination_id, segment, state, attempts, error, finished_at)
VALUES (:event, :one, 1, 'x', 5, 'HTTP 500', now()), (:event + 1, :one, 1, 'x', 5, 'HTTP 503', now() - '1 hour'::interval),
	(:event + 2, :one, 1, 'x', 5, 'HTTP 400', now() - '25 hours'::interval);
SELECT * FROM unwell();
ROLLBACK;
-- The log: this transaction's events are nothing that any lane has read.
BEGIN;
SELECT mlint.publish('regress.x', '{}') > 0;
SELECT * FROM unwell();
UPDATE mlint.event SET published_at = now() - '2 minutes'::interval WHERE xid = pg_current_xact_id();
SELECT * FROM unwell();
UPDATE mlint.event SET published_at = now() - '11 minutes'::interval WHERE xid = pg_current_xact_id();
SELECT * FROM unwell();
-- Read in part, up to this one and up to one before.
UPDATE mlint.log_cursor SET partial_xid = pg_current_xact_id(), partial_id = (SELECT max(id) FROM mlint.event);
SELECT * FROM unwell();
UPDATE mlint.log_cursor SET partial_id = 0;
SELECT * FROM unwell();
ROLLBACK;
-- One that began before the cursor's snapshot and was under way in it.
BEGIN;
SELECT mlint.publish('regress.x', '{}') > 0;
UPDATE mlint.event SET published_at = now() - '2 minutes'::interval WHERE xid = pg_current_xact_id();
UPDATE mlint.log_cursor SET snapshot = format('%1$s:%2$s:%1$s', pg_current_xact_id(),
	pg_current_xact_id()::text::bigint + 1)::pg_snapshot;
SELECT * FROM unwell();
UPDATE mlint.log_cursor SET snapshot = format('%1$s:%1$s:',
	pg_current_xact_id()::text::bigint + 1)::pg_snapshot;
SELECT * FROM unwell();
ROLLBACK;
BEGIN;
SELECT mlint.segment_begin() > 0;
UPDATE mlint.segment SET closed_at = now() - '9 days'::interval WHERE segment = 1;
SELECT * FROM unwell();
INSERT INTO mlint.pending (event_id, destination_id, segment, attempts, next_attempt_at)
VALUES (:event, :one, 1, 0, now() + '1 hour');
UPDATE mlint.segment SET closed_at = now() - '22 days'::interval WHERE segment = 1;
SELECT * FROM unwell();
ROLLBACK;

-- ---- the audit log ----
BEGIN;
-- Whatever is there, the end of it is gone. The auditor notes where that was.
DO $$
BEGIN
	FOR i IN 1 .. 600 LOOP
		EXIT WHEN (SELECT is_called FROM mlint.audit_head);
		PERFORM pg_sleep(0.1);
	END LOOP;
END
$$;
DELETE FROM mlint.audit_entry;
SELECT name, status, regexp_replace(why, '[0-9]+', 'N', 'g') FROM unwell();
ROLLBACK;

-- ---- secrets, rotations, mounts: how many, and no name ----
SELECT mlint.secret_put('regress/observe', 'x');
BEGIN;
INSERT INTO mlint.secret_rotation (secret_id, owner, every, generator, grace, warn_before, on_failure, next_at, paused)
SELECT id, 10::oid, '1 day', '{}', '0', '0', '{}', now() + '1 day', true FROM mlint.secret;
UPDATE mlint.job SET enabled = true WHERE name = 'secret_rotation';
SELECT * FROM unwell();
UPDATE mlint.secret_rotation SET paused = false, failures = 2, last_error = 'regress/observe does not work';
SELECT * FROM unwell();
UPDATE mlint.secret_rotation SET failures = 0, next_at = now() - '2 hours'::interval;
SELECT * FROM unwell();
UPDATE mlint.secret_rotation SET next_at = now(), owner = 1::oid;
SELECT * FROM unwell();
ROLLBACK;
BEGIN;
INSERT INTO mlint.secret_mount (path, names, format, mode, created_by) VALUES ('/x', '{regress/observe}', 'raw', 256, 10::oid);
UPDATE mlint.job SET enabled = false WHERE name = 'secret_mounts';
SELECT * FROM unwell();
UPDATE mlint.job SET enabled = true WHERE name = 'secret_mounts';
SELECT * FROM unwell();
UPDATE mlint.secret_mount SET error = 'secret regress/observe is gone';
SELECT * FROM unwell();
UPDATE mlint.secret_mount SET error = NULL, created_at = now() - '1 hour'::interval, created_by = 1::oid;
SELECT * FROM unwell();
ROLLBACK;
-- Keys of archives. What it is about their file depends on whether there is one.
BEGIN;
INSERT INTO mlint.data_key (purpose, tree, leaf, key_id, wrapped) VALUES ('x', gen_random_uuid(), 1, 1, '\x00');
SELECT name, status, regexp_replace(why, 'the erasure key file is missing|there are data keys of another .*|some are of another file', 'KEY FILE') FROM unwell();
ROLLBACK;
BEGIN;
INSERT INTO mlint.data_key_destroyed (id, tree, leaf, destroyed_at)
VALUES (1, gen_random_uuid(), 1, now() - '2 hours'::interval);
UPDATE mlint.job SET enabled = true, next_run_at = now() + '1 day' WHERE name = 'data_key_erase';
SELECT name, status, regexp_replace(why, 'the erasure key file is missing|there are data keys of another .*|some are of another file', 'KEY FILE') FROM unwell();
ROLLBACK;

-- ---- usage ----
SELECT mlint.usage_budget_set('model:m', tokens => 100, action => 'refuse');
SELECT * FROM unwell();
BEGIN;
INSERT INTO mlint.usage_notice SELECT 'm', 'm', 'month', begins, 100 FROM mlint.usage_period('month', now());
SELECT * FROM unwell();
UPDATE mlint.usage_notice SET period = period - '1 month'::interval;
SELECT * FROM unwell();
ROLLBACK;

-- ---- archives ----
BEGIN;
INSERT INTO mlint.archival (interval_hours, archive_after_days, retention_days, batch_size, compliance, enabled, set_by, set_at)
VALUES (24, 30, 365, 100, 'standard', true, 'x', now() - '10 days'::interval);
SELECT * FROM unwell();
INSERT INTO mlint.session (session_id, model_id, started_at, active_at, updated_at)
VALUES ('old', 'm', now(), now() - '35 days'::interval, now());
SELECT * FROM unwell();
INSERT INTO mlint.archival_failure SELECT id, 1, 1, now(), '22000', 'it is odd' FROM mlint.session;
SELECT * FROM unwell();
INSERT INTO mlint.archival_run (state, started_at, finished_at, error) VALUES ('failed', now(), now(), 'no key');
SELECT * FROM unwell();
ROLLBACK;
BEGIN;
INSERT INTO mlint.archive_store (name, kind, options, active) VALUES ('files', 'file', '{}', true);
UPDATE mlint.job SET next_run_at = now() + '1 hour' WHERE name = 'archive_move';
SELECT * FROM unwell();
INSERT INTO mlint.session (session_id, model_id, status, started_at, active_at, updated_at)
VALUES ('old', 'm', 'archived', now(), now(), now());
INSERT INTO mlint.archive (id, session, retention_days, archived_at, archived_by, expires_at, messages, zstd_level,
	plain_bytes, stored_bytes, chunks, sha256)
SELECT gen_random_uuid(), id, 365, now() - '2 hours'::interval, 'x', now() + '1 year'::interval, 1, 0, 1, 1, 1, sha256('x')
FROM mlint.session;
SELECT name, status, why FROM unwell();
INSERT INTO mlint.archive_move (archive, error) SELECT id, 'HTTP 500' FROM mlint.archive;
UPDATE mlint.archive SET archived_at = now() - '2 days'::interval;
SELECT name, status, why FROM unwell();
INSERT INTO mlint.archive_store_state (store, breaker, last_error) SELECT id, 1, 'HTTP 503' FROM mlint.archive_store;
INSERT INTO mlint.archive_garbage (store, archive, attempts) SELECT id, gen_random_uuid(), 6 FROM mlint.archive_store;
DELETE FROM mlint.archive_move;
SELECT name, status, why FROM unwell();
-- And its period.
DELETE FROM mlint.archive_garbage;
DELETE FROM mlint.archive_store;
UPDATE mlint.archive SET expires_at = now() - '4 hours'::interval;
SELECT * FROM unwell();
UPDATE mlint.archive SET expires_at = now() - '4 days'::interval;
SELECT * FROM unwell();
UPDATE mlint.archive SET announced_at = now();
SELECT * FROM unwell();
INSERT INTO mlint.erasure (requested_at, requested_by, salt, digest, refused, in_backups)
VALUES (now() - '100 days'::interval, 'x', 'x', 'x', 1, true);
INSERT INTO mlint.erasure_refusal VALUES (lastval(), 'old', NULL, 'compliance', now() + '1 day');
SELECT * FROM unwell();
UPDATE mlint.erasure_refusal SET until = now() - '1 day'::interval;
UPDATE mlint.erasure SET requested_at = now();
SELECT * FROM unwell();
ROLLBACK;
BEGIN;
SELECT mlint.retention_policy_create('stale', 400) AS policy \gset
INSERT INTO mlint.retention_stale VALUES (:policy);
SELECT * FROM unwell();
UPDATE mlint.retention_policy SET altered_at = now() - '2 days'::interval;
SELECT * FROM unwell();
ROLLBACK;

-- ---- certificates ----
BEGIN;
INSERT INTO mlint.certificate (id, name, domains, auto_renew, state, key_secret, version_id, created_by)
SELECT gen_random_uuid(), 'cert' || n, '{a.example}', false, 'ACTIVE', 'regress/observe', n, 10::oid FROM generate_series(1, 5) n;
INSERT INTO mlint.certificate_version (id, certificate_id, serial, fingerprint, issuer, subject, names, key_type,
	not_before, not_after, chain, key_version, activated_at)
OVERRIDING SYSTEM VALUE
SELECT version_id, id, 's' || version_id, 'x', 'i', 's', domains, 'ec256', now() - '80 days'::interval,
	now() + '10 days 1 hour'::interval, 'c', 1, now() - '80 days'::interval
FROM mlint.certificate;
SELECT * FROM unwell();
UPDATE mlint.certificate_version SET not_after = now() + '60 days'::interval;
SELECT * FROM unwell();
UPDATE mlint.certificate_version SET not_after = now() WHERE id = 5;
SELECT name, status, why FROM unwell();
ROLLBACK;
BEGIN;
INSERT INTO mlint.acme_account (name, directory_url, key_secret, max_orders, max_orders_per, created_by, next_at, status)
VALUES ('ca', 'https://ca.example', 'regress/observe', 1, '1 hour', 10::oid, NULL, 'valid');
INSERT INTO mlint.certificate (name, domains, auto_renew, state, key_secret, account_id, challenge, created_by)
SELECT 'web', '{a.example}', true, 'REQUESTED', 'x', id, 'http-01', 10::oid FROM mlint.acme_account;
SELECT * FROM unwell();
UPDATE mlint.certificate SET solver = 'file:/x';
SELECT * FROM unwell();
INSERT INTO mlint.acme_challenge (authorization_url, presence, solver, made, next_at, solver_error)
VALUES ('u', 'removing', 'dns', '{"record": "_acme-challenge.a.example"}', 'infinity', 'REFUSED');
SELECT * FROM unwell();
UPDATE mlint.acme_challenge SET presence = 'presenting', next_at = now(), attempts = 3;
SELECT * FROM unwell();
ROLLBACK;

-- ---- settings ----
SET mlint.event_max_bytes = 2048;
SELECT * FROM unwell();
RESET mlint.event_max_bytes;

-- ---- one that fails is told of, and the others are looked at ----
BEGIN;
INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
	('regress', 'broken', true, 'SELECT 1 / 0, NULL, NULL'),
	('regress', 'after', true, 'SELECT 1, w, w || ''!'' FROM unnest(''{b,a,d,c}''::text[]) w'),
	('regress', 'both', true, 'VALUES (1, ''minor'', ''wait''), (2, ''major'', ''run'')');
INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
	('regress', 'broken', true, '{}', 'SELECT 1 / 0 AS x'),
	('regress', 'forms', true, '{l}', $$SELECT E'back\\slash "quote" \n' AS l, 'Infinity'::float8 AS up,
		'-Infinity'::float8 AS down, 'NaN'::float8 AS no, NULL::int AS nothing, true AS yes, 1e-9::float8 AS tiny,
		9007199254740993 AS large, '{"sum": 1.5, "count": 3, "buckets": [[0.1, 1], [1, 2]]}'::jsonb AS h$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
	('broken', 'x', 'mlint_regress_x', 'gauge', 'x'),
	('forms', 'up', 'mlint_regress_up', 'gauge', E'Back\\slash\nand line'), ('forms', 'down', 'mlint_regress_down', 'gauge', 'down'),
	('forms', 'no', 'mlint_regress_no', 'gauge', 'no'), ('forms', 'nothing', 'mlint_regress_nothing', 'gauge', 'nothing'),
	('forms', 'yes', 'mlint_regress_yes', 'gauge', 'yes'), ('forms', 'tiny', 'mlint_regress_tiny', 'gauge', 'tiny'),
	('forms', 'large', 'mlint_regress_large_total', 'counter', 'large'),
	('forms', 'h', 'mlint_regress_seconds', 'histogram', 'h');
SELECT name, status, why, remedy FROM mlint.health() WHERE room = 'regress' OR status <> 'ok';
SELECT replace(line, current_database(), 'DB') FROM regexp_split_to_table(mlint.metrics(), E'\n') line
WHERE line ~ 'mlint_regress|source="(broken|forms|jobs)"|check="(broken|after|both)"';
ROLLBACK;

-- ---- metrics ----
SELECT regexp_replace(replace(line, current_database(), 'DB'), ' [0-9.e+-]+$', ' N') FROM regexp_split_to_table(mlint.metrics(), E'\n') line
WHERE line ~ '^mlint_(destination_(enabled|dead)|job_enabled|event_log|health_status|workers|usage_prompts)';
-- No family twice, and in one piece; each has its help.
SELECT count(*) > 40 AS many, count(*) = count(DISTINCT line) AS once
FROM regexp_split_to_table(mlint.metrics(), E'\n') line WHERE line LIKE '# TYPE %';

-- ---- who may ----
SET ROLE regress_observe_reader;
SELECT count(*) > 20, bool_and(status <> 'critical') FROM mlint.health();
SELECT length(mlint.metrics()) > 1000;
SELECT mlint.health()::text || mlint.metrics() LIKE '%regress/observe%' AS names_a_secret LIMIT 1;
SELECT * FROM mlint.health_check;
SELECT * FROM mlint.metric_source;
SELECT mlint.job_off('x');
SELECT * FROM mlint.audit_buffer();
RESET ROLE;
SET ROLE regress_observe_user;
SELECT * FROM mlint.health();
SELECT mlint.metrics();
RESET ROLE;
SELECT count(*) FROM pg_roles r WHERE rolname = 'pg_monitor' AND has_function_privilege(r.oid, 'mlint.metrics()', 'EXECUTE')
	AND has_function_privilege(r.oid, 'mlint.health()', 'EXECUTE');

-- In a transaction that may not write, too.
BEGIN READ ONLY;
SELECT count(*) FROM mlint.health() WHERE status <> 'ok';
SELECT length(mlint.metrics()) > 1000;
COMMIT;

SELECT mlint.destination_drop('fn');
DROP ROLE regress_observe_owner, regress_observe_user, regress_observe_reader;
DROP FUNCTION take(jsonb), unwell();
DROP PROCEDURE settle();
