-- worker: jobs, and what the processes are doing.

CREATE TABLE mlint.job (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL UNIQUE,
	command text NOT NULL,
	every interval NOT NULL CHECK (every > '0'),
	enabled boolean NOT NULL DEFAULT true,
	next_run_at timestamptz NOT NULL DEFAULT now(),
	started_at timestamptz,
	failures int NOT NULL DEFAULT 0
);
COMMENT ON TABLE mlint.job IS 'Periodic work, run by the scheduler in processes of its own';

CREATE TABLE mlint.job_run (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id int NOT NULL REFERENCES mlint.job ON DELETE CASCADE,
	started_at timestamptz NOT NULL,
	finished_at timestamptz NOT NULL,
	error text
);
-- The last runs of a job, for mlint.jobs and for forgetting older ones.
CREATE INDEX job_run_job ON mlint.job_run (job_id, id);
COMMENT ON TABLE mlint.job_run IS 'The last hundred runs of each job';

-- Not a column of mlint.job: whoever asks for a run must not lock the row that
-- the scheduler updates. A request goes when a run begins that sees what was
-- committed with it, so none is lost.
CREATE TABLE mlint.job_request (
	job_id int NOT NULL,
	at timestamptz NOT NULL DEFAULT '-infinity'
);
-- The earliest of a job, and all of it.
CREATE INDEX job_request_job ON mlint.job_request (job_id, at);
-- It has no key; a publication FOR ALL TABLES must not stop us all the same.
ALTER TABLE mlint.job_request REPLICA IDENTITY FULL;
COMMENT ON TABLE mlint.job_request IS 'Jobs to be run at once, or at a time before their interval is over';

-- One run has begun: count it as a failure until it says otherwise, so that a
-- job whose process dies is put off like one that fails.
CREATE FUNCTION mlint.job_begin(job_id int) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
	DELETE FROM mlint.job_request r WHERE r.job_id = job_begin.job_id;
	UPDATE mlint.job
	SET started_at = pg_catalog.clock_timestamp(),
		failures = failures + 1,
		next_run_at = pg_catalog.clock_timestamp() +
			least(every, '1 second'::interval * (2 ^ least(failures, 12)))
	WHERE id = job_id
$$;
COMMENT ON FUNCTION mlint.job_begin(int) IS 'The scheduler''s: marks a run as begun';

-- It found no process to run in: due again, with what was asked for, and as it
-- was before it had begun.
CREATE FUNCTION mlint.job_begin_again(job_id int) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
	UPDATE mlint.job
	SET started_at = (SELECT r.started_at FROM mlint.job_run r
			WHERE r.job_id = job_begin_again.job_id ORDER BY r.id DESC LIMIT 1),
		failures = greatest(failures - 1, 0),
		next_run_at = pg_catalog.clock_timestamp() + '1 second'
	WHERE id = job_id
$$;
COMMENT ON FUNCTION mlint.job_begin_again(int) IS 'The scheduler''s: a run that was marked as begun did not take place';

CREATE FUNCTION mlint.job_end(job_id int, message text) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
	INSERT INTO mlint.job_run (job_id, started_at, finished_at, error)
	SELECT id, started_at, pg_catalog.clock_timestamp(), message
	FROM mlint.job WHERE id = job_id;
	DELETE FROM mlint.job_run r
	WHERE r.job_id = job_end.job_id
		AND r.id <= (SELECT o.id FROM mlint.job_run o
			WHERE o.job_id = job_end.job_id ORDER BY o.id DESC OFFSET 100 LIMIT 1);
	UPDATE mlint.job SET failures = 0, next_run_at = started_at + every
	WHERE id = job_id AND message IS NULL
$$;
COMMENT ON FUNCTION mlint.job_end(int, text) IS 'The job worker''s: records a run and its error, if any';

CREATE FUNCTION mlint.job_run_now(name text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_job_run_now';
COMMENT ON FUNCTION mlint.job_run_now(text) IS 'Makes a job due at once, when the transaction commits';

-- Whatever makes the rows, a dump that is restored too, whose other tables may
-- still be on their way; and which has tables without any.
CREATE FUNCTION mlint.job_enable() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE mlint.job
	SET enabled = true, next_run_at = clock_timestamp() + '1 hour'
	WHERE name = TG_ARGV[0] AND NOT enabled AND EXISTS (SELECT FROM added);
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION mlint.job_enable() IS 'Trigger: from now on there are rows for a job to work on';

CREATE FUNCTION mlint.worker_slots(
	OUT pid int, OUT kind text, OUT database oid, OUT lane int,
	OUT state text, OUT started_at timestamptz, OUT active_at timestamptz,
	OUT wakeups bigint, OUT batches bigint, OUT events bigint,
	OUT deliveries bigint, OUT in_flight int, OUT memory bigint)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_worker_slots';
COMMENT ON FUNCTION mlint.worker_slots() IS 'The processes of mlint in the whole cluster';

CREATE VIEW mlint.stat_workers AS
SELECT w.pid, w.kind, d.datname AS database, w.lane, w.state, w.started_at,
	w.active_at, w.wakeups, w.batches, w.events, w.deliveries, w.in_flight,
	w.memory
FROM mlint.worker_slots() w
LEFT JOIN pg_catalog.pg_database d ON d.oid = w.database;
COMMENT ON VIEW mlint.stat_workers IS 'The processes of mlint, in all databases of the cluster';
COMMENT ON COLUMN mlint.stat_workers.pid IS 'Process id, as in pg_stat_activity';
COMMENT ON COLUMN mlint.stat_workers.kind IS 'launcher, scheduler, auditor, dispatcher, job or gateway';
COMMENT ON COLUMN mlint.stat_workers.database IS 'Database that the process works in; null for the launcher and the gateway';
COMMENT ON COLUMN mlint.stat_workers.lane IS 'Dispatcher: its share of the destinations, 0 for those that run SQL; job: the job''s id';
COMMENT ON COLUMN mlint.stat_workers.state IS 'starting or running';
COMMENT ON COLUMN mlint.stat_workers.started_at IS 'When the process was started';
COMMENT ON COLUMN mlint.stat_workers.active_at IS 'When it last had work';
COMMENT ON COLUMN mlint.stat_workers.wakeups IS 'How often it woke up, work or not';
COMMENT ON COLUMN mlint.stat_workers.batches IS 'Batches that a dispatcher or an auditor committed';
COMMENT ON COLUMN mlint.stat_workers.events IS 'Events that a dispatcher read from the log; entries that an auditor wrote; requests that the gateway answered';
COMMENT ON COLUMN mlint.stat_workers.deliveries IS 'Attempts that a dispatcher ended';
COMMENT ON COLUMN mlint.stat_workers.in_flight IS 'Attempts under way; the gateway''s connections';
COMMENT ON COLUMN mlint.stat_workers.memory IS 'Bytes that the process has allocated in its memory contexts';

CREATE VIEW mlint.jobs AS
SELECT j.name, j.every, j.enabled,
	EXISTS (SELECT FROM mlint.worker_slots() w
		WHERE w.kind = 'job' AND w.lane = j.id
			AND w.database = (SELECT oid FROM pg_catalog.pg_database
				WHERE datname = pg_catalog.current_database())) AS running,
	j.next_run_at, r.started_at AS last_started_at,
	r.finished_at AS last_finished_at, r.error AS last_error, j.failures
FROM mlint.job j
LEFT JOIN LATERAL (SELECT * FROM mlint.job_run r WHERE r.job_id = j.id
	ORDER BY r.id DESC LIMIT 1) r ON true;
COMMENT ON VIEW mlint.jobs IS 'Periodic work: when it runs, and how the last run went';
COMMENT ON COLUMN mlint.jobs.name IS 'Name of the job';
COMMENT ON COLUMN mlint.jobs.every IS 'Time from one start to the next';
COMMENT ON COLUMN mlint.jobs.enabled IS 'Whether the scheduler runs it';
COMMENT ON COLUMN mlint.jobs.running IS 'Whether it is running now';
COMMENT ON COLUMN mlint.jobs.next_run_at IS 'When it is due';
COMMENT ON COLUMN mlint.jobs.last_started_at IS 'When its last finished run began';
COMMENT ON COLUMN mlint.jobs.last_finished_at IS 'When its last finished run ended';
COMMENT ON COLUMN mlint.jobs.last_error IS 'Why that run failed; null if it did not';
COMMENT ON COLUMN mlint.jobs.failures IS 'Runs in a row that failed or died; the next is put off accordingly';

CREATE VIEW mlint.job_runs AS
SELECT r.id, j.name, r.started_at, r.finished_at, r.error
FROM mlint.job_run r JOIN mlint.job j ON j.id = r.job_id;
COMMENT ON VIEW mlint.job_runs IS 'The last hundred runs of each job';
COMMENT ON COLUMN mlint.job_runs.id IS 'Number of the run';
COMMENT ON COLUMN mlint.job_runs.name IS 'Name of the job';
COMMENT ON COLUMN mlint.job_runs.started_at IS 'When it began';
COMMENT ON COLUMN mlint.job_runs.finished_at IS 'When it ended';
COMMENT ON COLUMN mlint.job_runs.error IS 'Why it failed; null if it did not';

-- ---- restoring a dump ----

-- See restore.c. A row while rows are restored and not settled; problem: why
-- they cannot be.
CREATE TABLE mlint.restore (
	began_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	copied boolean NOT NULL,
	server_started_at timestamptz NOT NULL DEFAULT pg_catalog.pg_postmaster_start_time(),
	problem text
);
ALTER TABLE mlint.restore REPLICA IDENTITY FULL;
COMMENT ON TABLE mlint.restore IS 'That rows of a dump are being restored, or were and are not complete';

-- Empty; what pg_dump finds in it is what else it has found.
CREATE TABLE mlint.dump (
	name text NOT NULL,
	rows bigint NOT NULL
);
ALTER TABLE mlint.dump REPLICA IDENTITY FULL;
COMMENT ON TABLE mlint.dump IS 'Of the dump that is being restored: how many rows its tables have, and the number of the last event';

CREATE FUNCTION mlint.dump_rows() RETURNS SETOF mlint.dump
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t record;
BEGIN
	FOR t IN SELECT format('mlint.%I', c.relname) AS name, u.condition
		FROM pg_extension e, unnest(e.extconfig, e.extcondition) u (oid, condition)
		JOIN pg_class c ON c.oid = u.oid
		WHERE e.extname = 'mlint' AND c.relkind = 'r' AND c.relname <> 'dump'
		ORDER BY c.relname
	LOOP
		RETURN QUERY EXECUTE format(
			'SELECT %L, count(*) FROM (SELECT * FROM %s %s) r', t.name, t.name,
			t.condition);
	END LOOP;
	RETURN QUERY SELECT 'mlint.event_id', s.last_value FROM mlint.event_id s;
END
$$;
COMMENT ON FUNCTION mlint.dump_rows() IS 'How many rows pg_dump takes along of each table, so that a restore can tell when it is complete';
SELECT pg_catalog.pg_extension_config_dump('mlint.dump',
	'WHERE false UNION ALL SELECT * FROM mlint.dump_rows()');

CREATE FUNCTION mlint.restore_fence() RETURNS trigger
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'mlint_restore_fence';
COMMENT ON FUNCTION mlint.restore_fence() IS 'Trigger: keeps the workers away while a session restores rows of a dump';

-- What lacks of a dump; null: nothing.
CREATE FUNCTION mlint.restore_lacks() RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	d mlint.dump;
	n bigint;
	lacks text[];
BEGIN
	IF NOT EXISTS (SELECT FROM mlint.dump) THEN
		IF EXISTS (SELECT FROM mlint.restore r WHERE r.copied
			OR r.server_started_at <> pg_postmaster_start_time())
		THEN
			RETURN 'mlint.dump, which tells what else there is, was not restored';
		END IF;
		RETURN NULL;
	END IF;
	FOR d IN SELECT * FROM mlint.dump WHERE name <> 'mlint.event_id' AND rows > 0
		ORDER BY name
	LOOP
		IF to_regclass(d.name) IS NULL THEN
			lacks := lacks || format('%s, of which it has %s rows, is no table of this version', d.name, d.rows);
			CONTINUE;
		END IF;
		EXECUTE format('SELECT count(*) FROM %s', d.name::regclass) INTO n;
		IF n < d.rows THEN
			lacks := lacks || format('%s has %s of %s rows', d.name, n, d.rows);
		END IF;
	END LOOP;
	RETURN array_to_string(lacks, '; ');
END
$$;
COMMENT ON FUNCTION mlint.restore_lacks() IS 'Which rows of the dump that was restored are not there; null: all are';

-- Nobody restores any more: put everything in its place, and let the workers
-- go on. Why not, if not; again: it may be otherwise soon.
CREATE FUNCTION mlint.restore_settle(accept boolean, OUT why text, OUT again boolean)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	before text;
BEGIN
	again := false;
	SELECT r.problem INTO before FROM mlint.restore r
	ORDER BY r.began_at LIMIT 1;
	IF NOT FOUND THEN
		RETURN;
	END IF;
	IF NOT accept THEN
		why := mlint.restore_lacks();
	END IF;
	IF why IS NULL THEN
		BEGIN
			PERFORM mlint.event_settle();
			DELETE FROM mlint.dump;
			DELETE FROM mlint.restore;
			RAISE LOG 'mlint: what was restored is complete, the workers go on';
		EXCEPTION WHEN OTHERS THEN
			why := SQLERRM;
			again := true;
		END;
	END IF;
	IF why IS DISTINCT FROM before AND why IS NOT NULL THEN
		UPDATE mlint.restore SET problem = why;
		RAISE LOG 'mlint: what was restored is not complete, and the workers do nothing: %', why
			USING HINT = 'Restore the whole dump into a new database; or SELECT mlint.restore_accept() if what is there is what is wanted.';
	END IF;
END
$$;
COMMENT ON FUNCTION mlint.restore_settle(boolean) IS 'The scheduler''s: has the workers go on when all that a dump had is there; returns why not';

CREATE FUNCTION mlint.restore_accept() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_restore_accept';
COMMENT ON FUNCTION mlint.restore_accept() IS
'Has the workers go on with what is there, after a restore that lacks rows of the dump';

CREATE VIEW mlint.restores AS
SELECT r.began_at, l.pids, r.problem
FROM (SELECT min(began_at) AS began_at, min(problem) AS problem
	FROM mlint.restore) r
CROSS JOIN (SELECT coalesce(array_agg(l.pid ORDER BY l.pid), '{}') AS pids
	FROM pg_catalog.pg_locks l
	WHERE l.locktype = 'advisory' AND l.objsubid = 19788 AND l.objid = 1001
		AND l.mode = 'RowExclusiveLock' AND l.granted
		AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
			WHERE d.datname = pg_catalog.current_database())) l
WHERE r.began_at IS NOT NULL OR l.pids <> '{}';
COMMENT ON VIEW mlint.restores IS 'A row while a dump is being restored, or is not complete: the workers do nothing';
COMMENT ON COLUMN mlint.restores.began_at IS 'When its first rows came; null: they have not been committed';
COMMENT ON COLUMN mlint.restores.pids IS 'Sessions that restore';
COMMENT ON COLUMN mlint.restores.problem IS 'When they have ended: which rows of the dump are not there';

REVOKE ALL ON FUNCTION mlint.job_begin(int), mlint.job_begin_again(int), mlint.job_end(int, text),
	mlint.job_run_now(text), mlint.job_enable(), mlint.worker_slots(),
	mlint.dump_rows(), mlint.restore_fence(), mlint.restore_lacks(),
	mlint.restore_settle(boolean), mlint.restore_accept() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.job_run_now(text), mlint.restore_accept()
TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.worker_slots(), mlint.dump_rows() TO mlint_reader;
GRANT SELECT ON mlint.stat_workers, mlint.jobs, mlint.job_runs, mlint.restores
TO mlint_reader;

