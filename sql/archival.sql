-- The archival scheduler: settings, what is due, runs, failures, who may.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE ROLE regress_archival_admin IN ROLE mlint_admin;
CREATE ROLE regress_archival_user IN ROLE mlint_user;
CREATE ROLE regress_archival_reader IN ROLE mlint_reader;

-- A session with a prompt, whose last sign of life is so long ago.
CREATE FUNCTION old(name text, ago interval) RETURNS void LANGUAGE sql AS $$
	SELECT FROM mlint.session_register(name, 'm');
	SELECT mlint.prompt_add(name, 'said in ' || name);
	UPDATE mlint.session SET active_at = now() - ago WHERE session_id = name;
$$;
-- No other is due.
UPDATE mlint.session SET active_at = now();
-- What became of the sessions.
CREATE VIEW statuses AS
	SELECT status, string_agg(session_id, ' ' ORDER BY session_id) AS sessions
	FROM mlint.sessions WHERE session_id ~ '^sch-' GROUP BY status;

-- ---- without settings ----
SELECT * FROM mlint.archival_settings;
SELECT runs, archived, failed, skipped, last_state, due, oldest_due, failing, next_run_at FROM mlint.stat_archival;
SELECT enabled FROM mlint.jobs WHERE name = 'archival';
SELECT mlint.archival_run();

-- ---- bad settings ----
SELECT mlint.archival_set(interval_hours => 0);
SELECT mlint.archival_set(interval_hours => 8785);
SELECT mlint.archival_set(interval_hours => NULL);
SELECT mlint.archival_set(archive_after_days => -1);
SELECT mlint.archival_set(archive_after_days => 36501);
SELECT mlint.archival_set(archive_after_days => NULL);
SELECT mlint.archival_set(retention_days => 0);
SELECT mlint.archival_set(retention_days => 2147483647);
SELECT mlint.archival_set(retention_days => NULL);
SELECT mlint.archival_set(retention_days => 364);
SELECT mlint.archival_set(retention_days => 2554, compliance_level => 'hipaa');
SELECT mlint.archival_set(batch_size => 0);
SELECT mlint.archival_set(batch_size => 10001);
SELECT mlint.archival_set(batch_size => NULL);
SELECT mlint.archival_set(compliance_level => 'HIPAA');
SELECT mlint.archival_set(compliance_level => '');
SELECT mlint.archival_set(compliance_level => NULL);
SELECT mlint.archival_set(enabled => NULL);
SELECT count(*) FROM mlint.archival_settings;

-- ---- settings ----
SET ROLE regress_archival_admin;
SELECT mlint.archival_set(48, 7, 2555, 3, 'soc2', false);
SELECT interval_hours, archive_after_days, retention_days, batch_size, compliance_level, enabled, set_by,
	next_run_at FROM mlint.archival_settings;
-- what is not said is the default
SELECT mlint.archival_set(batch_size => 2, enabled => false);
SELECT interval_hours, archive_after_days, retention_days, batch_size, compliance_level, enabled FROM mlint.archival_settings;
SELECT every, enabled FROM mlint.jobs WHERE name = 'archival';
BEGIN;
SELECT mlint.archival_set(interval_hours => 6);
SELECT every, enabled FROM mlint.jobs WHERE name = 'archival';
ROLLBACK;
SELECT every, enabled FROM mlint.jobs WHERE name = 'archival';
RESET ROLE;
-- that the last was rolled back is in the audit log within moments
DO $$
BEGIN
	FOR i IN 1 .. 6000 LOOP
		EXIT WHEN EXISTS (SELECT FROM mlint.audit_log
			WHERE action = 'archival.set' AND outcome = 'rolled_back');
		PERFORM pg_sleep(0.01);
	END LOOP;
END
$$;
SELECT action, object_type, object, role, outcome, details FROM mlint.audit_log WHERE action ~ '^archival' ORDER BY seq;

-- ---- a run: what is due, and nothing else ----
SELECT old('sch-due' || n, '31 days') FROM generate_series(1, 5) n;
SELECT status FROM mlint.session_set_status('sch-due2', 'completed');
SELECT status FROM mlint.session_set_status('sch-due3', 'failed');
UPDATE mlint.session SET active_at = now() - interval '31 days' WHERE session_id ~ '^sch-due';
-- the time of the last sign of life may be an hour too early
SELECT old('sch-hour', '720:30:00');
SELECT old('sch-new', '29 days');
SELECT due, oldest_due < now() - interval '30 days' AS old FROM mlint.stat_archival;
SELECT mlint.archival_run() AS run \gset
SELECT mlint.archival_wait(:run, '60 s');
SELECT * FROM statuses ORDER BY status;
SELECT state, requested_by = current_user AS mine, due, processed, archived, failed, skipped, bytes > 500 AS bytes, batches,
	duration > '0' AS duration, success_rate, error, finished_at >= started_at AS finished
	FROM mlint.archival_runs WHERE id = :run;
SELECT runs, archived, failed, skipped, bytes > 500 AS bytes, last_run = :run AS last, last_state, last_error, due, failing
	FROM mlint.stat_archival;
SELECT count(*) FROM mlint.archival_progress;
SELECT a.retention_days, a.compliance, count(*) FROM mlint.archives a WHERE a.session_id ~ '^sch-' GROUP BY 1, 2;
SELECT type, data - 'run' - 'bytes' - 'duration_ms' AS data FROM mlint.events
	WHERE type ~ '^archival' ORDER BY id DESC LIMIT 1;
-- each session is audited as one that somebody archives
SELECT count(*) FROM mlint.audit_log WHERE action = 'archive.create' AND details->>'session' ~ '^sch-';
-- it was asked for, and is disabled again
SELECT enabled FROM mlint.jobs WHERE name = 'archival';
-- nothing is due
SELECT mlint.archival_run() AS run \gset
SELECT mlint.archival_wait(:run, '60 s');
SELECT state, due, processed, batches, success_rate FROM mlint.archival_runs WHERE id = :run;

-- ---- one session fails, and fails alone ----
SELECT old('sch-f' || n, '31 days') FROM generate_series(1, 5) n;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'session % is not to be archived', OLD.session_id;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON mlint.session FOR EACH ROW
	WHEN (OLD.session_id IN ('sch-f1', 'sch-f4') AND NEW.status = 'archived') EXECUTE FUNCTION refuse();
SELECT mlint.archival_run() AS run \gset
SELECT mlint.archival_wait(:run, '60 s');
SELECT state, due, processed, archived, failed, skipped, batches, success_rate, error FROM mlint.archival_runs WHERE id = :run;
SELECT session_id, error, sqlstate, failures, run = :run AS run FROM mlint.archival_failures ORDER BY session_id;
SELECT type, data - 'run' - 'bytes' - 'duration_ms' AS data FROM mlint.events
	WHERE type ~ '^archival' ORDER BY id DESC LIMIT 1;
SELECT * FROM statuses ORDER BY status;
-- the next run tries again
DROP TRIGGER refuse ON mlint.session;
CREATE TRIGGER refuse BEFORE UPDATE ON mlint.session FOR EACH ROW
	WHEN (OLD.session_id = 'sch-f4' AND NEW.status = 'archived') EXECUTE FUNCTION refuse();
SELECT mlint.archival_run() AS run \gset
SELECT mlint.archival_wait(:run, '60 s');
SELECT state, due, archived, failed FROM mlint.archival_runs WHERE id = :run;
SELECT session_id, failures, run = :run AS run FROM mlint.archival_failures;
SELECT failing FROM mlint.stat_archival;
DROP TRIGGER refuse ON mlint.session;
SELECT mlint.archival_run() AS run \gset
SELECT mlint.archival_wait(:run, '60 s');
SELECT count(*) FROM mlint.archival_failures;

-- ---- what concerns all sessions breaks the run off ----
SELECT old('sch-x' || n, '31 days') FROM generate_series(1, 5) n;
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE disk_full USING MESSAGE = 'no room';
END $$;
CREATE TRIGGER full_disk BEFORE UPDATE ON mlint.session FOR EACH ROW
	WHEN (OLD.session_id = 'sch-x4' AND NEW.status = 'archived') EXECUTE FUNCTION full_disk();
SELECT mlint.archival_run() AS run \gset
SELECT mlint.archival_wait(:run, '60 s');
SELECT state, due, processed, archived, failed, batches, error FROM mlint.archival_runs WHERE id = :run;
SELECT type, data - 'run' - 'bytes' - 'duration_ms' AS data FROM mlint.events
	WHERE type ~ '^archival' ORDER BY id DESC LIMIT 1;
-- what its batches before have committed stays
SELECT * FROM statuses ORDER BY status;
DROP TRIGGER full_disk ON mlint.session;
SELECT mlint.archival_run() AS run \gset
SELECT mlint.archival_wait(:run, '60 s');
SELECT * FROM statuses ORDER BY status;

-- ---- asking twice before it begins is asking once ----
BEGIN;
SELECT mlint.archival_run() AS run \gset
SELECT mlint.archival_run() = :run AS same, state FROM mlint.archival_runs WHERE id = :run;
ROLLBACK;
SELECT mlint.archival_wait(:run, '1 s');
SELECT mlint.archival_wait(NULL, '1 s');
BEGIN;
CALL mlint.archival_work();
ROLLBACK;

-- ---- enabled, the job has the interval ----
SELECT mlint.archival_set(interval_hours => 1);
SELECT every, enabled FROM mlint.jobs WHERE name = 'archival';
SELECT next_run_at > now() AS later FROM mlint.archival_settings;
SELECT mlint.archival_set(enabled => false);
SELECT every, enabled FROM mlint.jobs WHERE name = 'archival';

-- ---- who may ----
SET ROLE regress_archival_reader;
SELECT count(*) FROM mlint.archival_settings;
SELECT count(*) > 0 AS some FROM mlint.archival_runs;
SELECT count(*) FROM mlint.archival_progress;
SELECT count(*) FROM mlint.archival_failures;
SELECT count(*) FROM mlint.stat_archival;
SELECT mlint.archival_set();
SELECT mlint.archival_run();
SELECT * FROM mlint.archival_run;
SET ROLE regress_archival_user;
SELECT mlint.archival_set();
SELECT mlint.archival_run();
SELECT count(*) FROM mlint.archival_runs;
SET ROLE regress_archival_admin;
CALL mlint.archival_work();
RESET ROLE;

-- ---- on a standby ----
SET default_transaction_read_only = on;
SELECT mlint.archival_set();
SELECT mlint.archival_run();
CALL mlint.archival_work();
RESET default_transaction_read_only;

-- ---- clean up ----
DROP VIEW statuses;
DROP FUNCTION old, refuse, full_disk;
DROP ROLE regress_archival_admin, regress_archival_user, regress_archival_reader;
