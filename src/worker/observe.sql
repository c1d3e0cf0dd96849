-- worker, observed: whether the processes are there, and jobs run.

-- A job that is switched off, for checks of rooms that need it.
CREATE FUNCTION mlint.job_off(job text, OUT level int, OUT why text, OUT remedy text)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT 2, format('the job %s is switched off, or gone', job),
		'A superuser switches it on: UPDATE mlint.job SET enabled = true WHERE name = ...'
	WHERE NOT EXISTS (SELECT FROM mlint.job j WHERE j.name = job AND j.enabled)
$$;
COMMENT ON FUNCTION mlint.job_off(text) IS 'For checks of mlint.health(): a finding if the job is not enabled';
REVOKE ALL ON FUNCTION mlint.job_off(text) FROM PUBLIC;

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('worker', 'loaded', true, $$
	SELECT 2, 'mlint is not loaded: nothing is delivered, renewed or archived, and no function works',
		'Add mlint to shared_preload_libraries, and restart the server.'
	WHERE NOT EXISTS (SELECT FROM pg_settings WHERE name = 'mlint.dispatchers')$$),

('worker', 'workers', false, $$
	WITH wanted (kind, lane) AS (
		VALUES ('launcher', NULL::int), ('scheduler', NULL), ('auditor', NULL)
		UNION ALL
		SELECT 'dispatcher', n FROM generate_series(1, current_setting('mlint.dispatchers')::int) n
		UNION ALL
		SELECT 'dispatcher', 0 WHERE EXISTS (SELECT FROM mlint.log_cursor WHERE lane = 0)
		UNION ALL
		SELECT 'gateway', NULL WHERE current_setting('mlint.gateway_listen') <> ''
	)
	SELECT 2, format('there is no %s%s', w.kind, ' for lane ' || w.lane),
		'It is started again within a minute; if not, the server''s log says why: perhaps max_worker_processes are used up.'
	FROM wanted w
	WHERE NOT EXISTS (SELECT FROM mlint.worker_slots() s
		WHERE s.kind = w.kind AND s.state = 'running'
			AND (w.lane IS NULL OR s.lane = w.lane)
			AND (s.database IS NULL OR s.database = (SELECT d.oid FROM pg_database d
				WHERE d.datname = current_database())))
	UNION ALL
	SELECT 2, 'gateway: ' || a.query,
		'The server''s log says why; it goes on trying.'
	FROM pg_stat_activity a
	WHERE a.backend_type = 'mlint gateway' AND a.query LIKE '%cannot listen at%'$$),

-- With every worker that mlint may start, and those that others have now,
-- without parallel ones, which come and go.
('worker', 'worker_processes', false, $$
	WITH place AS (
		SELECT current_setting('max_worker_processes')::int AS all,
			(SELECT count(*) FROM mlint.worker_slots()) AS ours,
			count(*) AS taken,
			count(*) FILTER (WHERE backend_type !~ '^(mlint |parallel worker)') AS others,
			(SELECT 1 + (current_setting('mlint.gateway_listen') <> '')::int
					+ count(*) FILTER (WHERE kind IN ('scheduler', 'auditor', 'dispatcher'))
					+ count(*) FILTER (WHERE kind = 'scheduler') * current_setting('mlint.job_workers')::int
				FROM mlint.worker_slots()) AS wanted
		FROM pg_stat_activity
		WHERE backend_type NOT IN ('client backend', 'autovacuum launcher',
			'autovacuum worker', 'background writer', 'checkpointer', 'walwriter',
			'walsender', 'walreceiver', 'startup', 'archiver', 'logger',
			'standalone backend', 'walsummarizer', 'slotsync worker', 'io worker')
	)
	SELECT 1, format('mlint may need %s worker processes, others have %s, and max_worker_processes is %s',
			wanted, others, "all"),
		'Raise max_worker_processes, and restart the server; or lower mlint.job_workers.'
	FROM place WHERE wanted + others > "all"
	UNION ALL
	SELECT 1, format('all of max_worker_processes (%s) are taken', "all"),
		'Jobs wait meanwhile. If it lasts, raise max_worker_processes, and restart the server.'
	FROM place WHERE taken >= "all"$$),

('worker', 'restore', false, $$
	SELECT 2, 'what was restored is not complete, and the workers do nothing: ' || r.problem,
		'Restore the whole dump into a new database; or SELECT mlint.restore_accept() if what is there is what is wanted.'
	FROM mlint.restores r WHERE r.pids = '{}' AND r.problem IS NOT NULL
	UNION ALL
	SELECT 1, format('rows of a dump are being restored by process %s, and the workers do nothing',
			array_to_string(r.pids, ', ')),
		'They go on when these sessions have ended.'
	FROM mlint.restores r WHERE r.pids <> '{}'$$),

-- What began last is the job's row, what ended last its newest run.
('worker', 'jobs', false, $$
	WITH job AS (
		SELECT j.name, j.enabled, j.every, j.started_at, clock_timestamp() AS now,
			least(j.next_run_at, (SELECT min(q.at) FROM mlint.job_request q
				WHERE q.job_id = j.id AND q.at > '-infinity')) AS due_at,
			r.error, coalesce(r.started_at = j.started_at, j.started_at IS NULL) AS ended,
			j.failures - (r.started_at IS DISTINCT FROM j.started_at)::int AS failures,
			EXISTS (SELECT FROM mlint.worker_slots() w
				WHERE w.kind = 'job' AND w.lane = j.id AND w.database = (SELECT d.oid
					FROM pg_database d WHERE d.datname = current_database())) AS running
		FROM mlint.job j
		LEFT JOIN LATERAL (SELECT * FROM mlint.job_run r WHERE r.job_id = j.id
			ORDER BY r.id DESC LIMIT 1) r ON true
	)
	SELECT CASE WHEN failures >= 10 THEN 2 ELSE 1 END,
		format('job %s has failed %s in a row: %s', name,
			CASE failures WHEN 1 THEN 'once' ELSE failures || ' times' END,
			coalesce(error, 'its process died')),
		'mlint.job_runs has the errors; put right what they name. It is tried again by itself, or at once by mlint.job_run_now().'
	FROM job WHERE failures > 0 AND enabled
	UNION ALL
	SELECT 1, format('the process of job %s died', name),
		'The server''s log says why; the job is tried again by itself.'
	FROM job WHERE enabled AND NOT ended AND NOT running AND failures = 0
		AND started_at < now - '1 minute'::interval
	UNION ALL
	SELECT CASE WHEN due_at < now - '1 hour'::interval THEN 2 ELSE 1 END,
		format('job %s is due since %s, and does not run', name, to_char(due_at, 'YYYY-MM-DD HH24:MI')),
		'Is there a scheduler in mlint.stat_workers, and are fewer jobs running than mlint.job_workers?'
	FROM job WHERE enabled AND NOT running AND due_at < now - '5 minutes'::interval
	UNION ALL
	SELECT 1, format('job %s runs since %s', name, to_char(started_at, 'YYYY-MM-DD HH24:MI')),
		'pg_stat_activity shows what it waits for; pg_terminate_backend() ends it, and it is tried again.'
	FROM job WHERE running AND NOT ended
		AND started_at < now - greatest('6 hours'::interval, 10 * every)$$),

('worker', 'settings', true, $$
	SELECT 1, format('%s was changed, and takes effect with a restart', name),
		'Restart the server.'
	FROM pg_settings
	WHERE pending_restart AND (name LIKE 'mlint.%'
		OR name IN ('shared_preload_libraries', 'max_worker_processes'))
	UNION ALL
	-- Not what it says, nor where: some are for superusers to see.
	SELECT 1, format('%s cannot be what the file says: %s', f.name, f.error),
		'Correct it, and reload the settings: pg_file_settings has the file and line, the server''s log what it may be.'
	FROM pg_file_settings f
	WHERE f.name LIKE 'mlint.%' AND f.error IS NOT NULL
		AND NOT EXISTS (SELECT FROM pg_settings s WHERE s.name = f.name AND s.pending_restart)
	UNION ALL
	SELECT 1, 'mlint.master_key_file is set, and is not used: mlint.master_key_command is set, too',
		'Take back the one that is not meant.'
	WHERE current_setting('mlint.master_key_command') <> ''
		AND current_setting('mlint.master_key_file') <> ''
	UNION ALL
	SELECT 1, format('mlint.event_max_bytes is %s: events of mlint''s own may not fit',
			current_setting('mlint.event_max_bytes')),
		'Let it be 16kB or more.'
	FROM pg_settings WHERE name = 'mlint.event_max_bytes'
		AND setting::bigint < 16384$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('worker', 'workers', true, '{kind}', $$
	SELECT k.kind, count(s.pid) AS running, coalesce(sum(s.memory), 0) AS memory,
		coalesce(sum(s.in_flight), 0) AS in_flight
	FROM (VALUES ('launcher'), ('scheduler'), ('auditor'), ('dispatcher'), ('job'),
		('gateway')) k (kind)
	LEFT JOIN mlint.worker_slots() s ON s.kind = k.kind
		AND (s.database IS NULL OR s.database = (SELECT d.oid FROM pg_database d
			WHERE d.datname = current_database()))
	GROUP BY k.kind ORDER BY k.kind$$),
('worker', 'dispatchers', false, '{lane}', $$
	SELECT s.lane, s.events, s.batches, s.deliveries
	FROM mlint.worker_slots() s
	WHERE s.kind = 'dispatcher' AND s.pid IS NOT NULL
		AND s.database = (SELECT d.oid FROM pg_database d
			WHERE d.datname = current_database())
	ORDER BY s.lane$$),
('worker', 'gateway', false, '{}', $$
	SELECT s.events FROM mlint.worker_slots() s WHERE s.kind = 'gateway' LIMIT 1$$),
('worker', 'jobs', false, '{job}', $$
	SELECT j.name AS job, j.enabled, w.lane IS NOT NULL AS running, j.failures,
		r.seconds, date_part('epoch', r.success_at) AS success_at,
		CASE WHEN j.enabled AND w.lane IS NULL THEN greatest(0,
			date_part('epoch', clock_timestamp() - j.next_run_at)) ELSE 0 END AS late
	FROM mlint.job j
	LEFT JOIN mlint.worker_slots() w ON w.kind = 'job' AND w.lane = j.id
		AND w.database = (SELECT d.oid FROM pg_database d
			WHERE d.datname = current_database())
	LEFT JOIN LATERAL (SELECT max(r.finished_at) FILTER (WHERE r.error IS NULL) AS success_at,
			(array_agg(date_part('epoch', r.finished_at - r.started_at) ORDER BY r.id DESC))[1] AS seconds
		FROM mlint.job_run r WHERE r.job_id = j.id) r ON true
	ORDER BY j.name$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('workers', 'running', 'mlint_workers', 'gauge', 'Processes of mlint, of this database or of the whole server'),
('workers', 'memory', 'mlint_worker_memory_bytes', 'gauge', 'What they have allocated in their memory contexts'),
('workers', 'in_flight', 'mlint_worker_in_flight', 'gauge', 'Attempts that dispatchers have under way; connections of the gateway'),
('dispatchers', 'events', 'mlint_dispatcher_events_total', 'counter', 'Events that the dispatcher of a lane has read, since it started'),
('dispatchers', 'batches', 'mlint_dispatcher_batches_total', 'counter', 'Batches that it has committed'),
('dispatchers', 'deliveries', 'mlint_dispatcher_attempts_total', 'counter', 'Attempts that it has ended'),
('gateway', 'events', 'mlint_gateway_requests_total', 'counter', 'Requests that the gateway has answered, since it started'),
('jobs', 'enabled', 'mlint_job_enabled', 'gauge', 'Whether the scheduler runs the job'),
('jobs', 'running', 'mlint_job_running', 'gauge', 'Whether it is running now'),
('jobs', 'failures', 'mlint_job_failures', 'gauge', 'Runs in a row that failed or died; one that is under way counts'),
('jobs', 'seconds', 'mlint_job_last_duration_seconds', 'gauge', 'How long the last run took'),
('jobs', 'success_at', 'mlint_job_last_success_timestamp_seconds', 'gauge', 'When a run last ended without an error'),
('jobs', 'late', 'mlint_job_late_seconds', 'gauge', 'For how long it has been due');

