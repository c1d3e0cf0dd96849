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
	job_id int NOT NULL
);
COMMENT ON TABLE mlint.job_request IS 'Jobs to be run at once';

-- One run has begun: count it as a failure until it says otherwise, so that a
-- job whose process dies is put off like one that fails.
CREATE FUNCTION mlint.job_begin(job_id int) RETURNS void
LANGUAGE sql VOLATILE AS $$
	DELETE FROM mlint.job_request r WHERE r.job_id = job_begin.job_id;
	UPDATE mlint.job
	SET started_at = pg_catalog.clock_timestamp(),
		failures = failures + 1,
		next_run_at = pg_catalog.clock_timestamp() +
			least(every, '1 second'::interval * (2 ^ least(failures, 12)))
	WHERE id = job_id
$$;
COMMENT ON FUNCTION mlint.job_begin(int) IS 'The scheduler''s: marks a run as begun';

CREATE FUNCTION mlint.job_end(job_id int, message text) RETURNS void
LANGUAGE sql VOLATILE AS $$
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
-- still be on their way.
CREATE FUNCTION mlint.job_enable() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE mlint.job
	SET enabled = true, next_run_at = clock_timestamp() + '1 hour'
	WHERE name = TG_ARGV[0] AND NOT enabled;
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
COMMENT ON COLUMN mlint.stat_workers.kind IS 'launcher, scheduler, auditor, dispatcher or job';
COMMENT ON COLUMN mlint.stat_workers.database IS 'Database that the process works in; null for the launcher';
COMMENT ON COLUMN mlint.stat_workers.lane IS 'Dispatcher: its share of the destinations, 0 for those that run SQL; job: the job''s id';
COMMENT ON COLUMN mlint.stat_workers.state IS 'starting or running';
COMMENT ON COLUMN mlint.stat_workers.started_at IS 'When the process was started';
COMMENT ON COLUMN mlint.stat_workers.active_at IS 'When it last had work';
COMMENT ON COLUMN mlint.stat_workers.wakeups IS 'How often it woke up, work or not';
COMMENT ON COLUMN mlint.stat_workers.batches IS 'Batches that a dispatcher or an auditor committed';
COMMENT ON COLUMN mlint.stat_workers.events IS 'Events that a dispatcher read from the log; entries that an auditor wrote';
COMMENT ON COLUMN mlint.stat_workers.deliveries IS 'Attempts that a dispatcher ended';
COMMENT ON COLUMN mlint.stat_workers.in_flight IS 'Attempts under way';
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

REVOKE ALL ON FUNCTION mlint.job_begin(int), mlint.job_end(int, text),
	mlint.job_run_now(text), mlint.job_enable(), mlint.worker_slots() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.job_run_now(text) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.worker_slots() TO mlint_reader;
GRANT SELECT ON mlint.stat_workers, mlint.jobs, mlint.job_runs TO mlint_reader;

