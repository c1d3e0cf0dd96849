-- archive, observed: the scheduler, and the stores that archives are moved to.

-- What an overview needs of a store, counted no further than 10,000.
CREATE FUNCTION mlint.archive_store_backlog(store int, active boolean,
	OUT waiting bigint, OUT since timestamptz, OUT garbage bigint, OUT stuck bigint)
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT w.n, w.since, g.n, g.stuck
	FROM (SELECT count(*) AS n, min(a.archived_at) AS since
			FROM (SELECT a.archived_at FROM mlint.archive a
				WHERE a.store IS NULL AND active
				ORDER BY a.archived_at, a.id LIMIT 10000) a) w,
		(SELECT count(*) AS n, count(*) FILTER (WHERE g.attempts >= 5) AS stuck
			FROM (SELECT g.store, g.attempts FROM mlint.archive_garbage g
				ORDER BY g.id LIMIT 10000) g
			WHERE g.store = archive_store_backlog.store) g
$$;
COMMENT ON FUNCTION mlint.archive_store_backlog(int, boolean) IS
	'Archives that wait for a store, up to 10,000, and objects in it that are to be deleted, among the oldest 10,000';
REVOKE ALL ON FUNCTION mlint.archive_store_backlog(int, boolean) FROM PUBLIC;

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('archive', 'archival', true, $$
	SELECT 1, format('the last run of the archival scheduler %s%s', CASE r.state
			WHEN 'failed' THEN 'was broken off' ELSE 'crashed' END, ': ' || r.error),
		'It is tried again at the next interval, or at once by mlint.archival_run().'
	FROM (SELECT * FROM mlint.archival_runs WHERE state <> 'requested'
		ORDER BY id DESC LIMIT 1) r
	WHERE r.state IN ('failed', 'crashed') AND NOT pg_is_in_recovery()
	UNION ALL
	SELECT 1, format('sessions could not be archived (%s), the last because of: %s', f.n, f.error),
		'mlint.archival_failures lists them; each run tries them again.'
	FROM (SELECT count(*) AS n, (array_agg(f.error ORDER BY f.failed_at DESC))[1] AS error
		FROM (SELECT f.* FROM mlint.archival_failure f JOIN mlint.session s ON s.id = f.session
			WHERE s.status <> 'archived' LIMIT 10000) f) f
	WHERE f.n > 0
	UNION ALL
	-- It has had three intervals, and a day.
	SELECT 1, format('sessions wait to be archived since %s', to_char(s.active_at, 'YYYY-MM-DD')),
		'mlint.stat_archival tells how many; give runs more time (interval_hours), or see why they fail.'
	FROM mlint.archival a
	CROSS JOIN LATERAL (SELECT s.active_at FROM mlint.session s WHERE s.status <> 'archived'
		AND NOT EXISTS (SELECT FROM mlint.archival_failure f WHERE f.session = s.id)
		ORDER BY s.active_at, s.id LIMIT 1) s
	WHERE a.enabled AND a.set_at < clock_timestamp() - make_interval(hours => 3 * a.interval_hours + 24)
		AND s.active_at < clock_timestamp()
			- make_interval(hours => a.archive_after_days * 24 + 3 * a.interval_hours + 24)
	UNION ALL
	SELECT o.* FROM mlint.job_off('archival') o
	WHERE EXISTS (SELECT FROM mlint.archival WHERE enabled)$$),

('archive', 'archive_stores', true, $$
	WITH s AS (
		SELECT s.name, s.kind, coalesce(t.breaker, 0) AS breaker, t.last_error, b.*,
			clock_timestamp() AS now
		FROM mlint.archive_store s
		LEFT JOIN mlint.archive_store_state t ON t.store = s.id
		CROSS JOIN LATERAL mlint.archive_store_backlog(s.id, s.active) b
	)
	SELECT CASE WHEN since < now - '1 day'::interval THEN 2 ELSE 1 END,
		format('archive store "%s" fails, its breaker is open: %s', name, last_error),
		'Put right what the error names; mlint.archive_store_test() tries it. Archives stay in the database meanwhile.'
	FROM s WHERE breaker <> 0
	UNION ALL
	SELECT CASE WHEN since < now - '1 day'::interval THEN 2 ELSE 1 END,
		format('archives wait to be moved to store "%s" (%s), the oldest since %s', name,
			CASE WHEN waiting >= 10000 THEN '10000 or more' ELSE waiting::text END,
			to_char(since, 'YYYY-MM-DD HH24:MI')),
		'mlint.archive_stores.last_error tells why, mlint.jobs whether the job archive_move runs.'
	FROM s WHERE breaker = 0 AND since < now - '1 hour'::interval
	UNION ALL
	SELECT 1, format('archives could not be moved so far (%s), the last because of: %s', m.n, m.error),
		'Each is tried again by itself.'
	FROM (SELECT count(*) AS n, (array_agg(m.error ORDER BY m.failed_at DESC))[1] AS error
		FROM (SELECT * FROM mlint.archive_move LIMIT 10000) m) m
	WHERE m.n > 0 AND EXISTS (SELECT FROM s)
	UNION ALL
	SELECT 1, format('objects in archive store "%s" could not be deleted (%s)', name, stuck),
		'Their archives are gone; what is left there is to go, too. mlint.archive_stores.last_error tells why.'
	FROM s WHERE stuck > 0
	UNION ALL
	SELECT 2, format('archive store "%s" is of kind file, and mlint.archive_directory is empty', name),
		'Set it, and reload the settings.'
	FROM s WHERE kind = 'file' AND current_setting('mlint.archive_directory') = ''
	UNION ALL
	SELECT o.* FROM mlint.job_off('archive_move') o WHERE EXISTS (SELECT FROM s)$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('archive', 'archival', true, '{}', $$
	SELECT t.runs, t.archived, t.failed, t.skipped, t.bytes,
		(SELECT count(*) FROM mlint.archival_failures) AS failing,
		date_part('epoch', (SELECT r.finished_at FROM mlint.archival_run r
			WHERE r.state = 'completed' ORDER BY r.id DESC LIMIT 1)) AS completed_at,
		coalesce(greatest(0, date_part('epoch', (SELECT clock_timestamp()
				- make_interval(hours => a.archive_after_days * 24) - s.active_at
			FROM mlint.archival a, LATERAL (SELECT s.active_at FROM mlint.session s
				WHERE s.status <> 'archived' ORDER BY s.active_at, s.id LIMIT 1) s
			WHERE a.enabled))), 0) AS due
	FROM (SELECT count(*) FILTER (WHERE r.state <> 'requested') AS runs,
			coalesce(sum(r.archived), 0) AS archived, coalesce(sum(r.failed), 0) AS failed,
			coalesce(sum(r.skipped), 0) AS skipped, coalesce(sum(r.bytes), 0) AS bytes
		FROM mlint.archival_run r) t$$),
('archive', 'archive_stores', true, '{store}', $$
	SELECT s.name AS store, s.active, coalesce(t.breaker, 0) <> 0 AS breaker_open,
		b.waiting, b.garbage, coalesce(t.moved, 0) AS moved,
		coalesce(t.moved_bytes, 0) AS moved_bytes, coalesce(t.deleted, 0) AS deleted,
		date_part('epoch', t.last_success_at) AS success_at
	FROM mlint.archive_store s
	LEFT JOIN mlint.archive_store_state t ON t.store = s.id
	CROSS JOIN LATERAL mlint.archive_store_backlog(s.id, s.active) b
	ORDER BY s.name$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('archival', 'runs', 'mlint_archival_runs_total', 'counter', 'Runs of the archival scheduler'),
('archival', 'archived', 'mlint_archival_archived_total', 'counter', 'Sessions that they archived'),
('archival', 'failed', 'mlint_archival_failed_total', 'counter', 'How often a session could not be archived'),
('archival', 'skipped', 'mlint_archival_skipped_total', 'counter', 'How often a session was skipped'),
('archival', 'bytes', 'mlint_archival_document_bytes_total', 'counter', 'Size of the documents that they archived, before compression'),
('archival', 'failing', 'mlint_archival_failing_sessions', 'gauge', 'Sessions that could not be archived so far'),
('archival', 'completed_at', 'mlint_archival_last_completed_timestamp_seconds', 'gauge', 'When a run was last completed'),
('archival', 'due', 'mlint_archival_due_seconds', 'gauge', 'For how long the oldest session has been due'),
('archive_stores', 'active', 'mlint_archive_store_active', 'gauge', 'Whether new archives go to the store'),
('archive_stores', 'breaker_open', 'mlint_archive_store_breaker_open', 'gauge', 'Whether the circuit breaker is open, or half-open'),
('archive_stores', 'waiting', 'mlint_archive_store_waiting', 'gauge', 'Archives in the database that are to go there; counted up to 10000'),
('archive_stores', 'garbage', 'mlint_archive_store_garbage', 'gauge', 'Objects in it that are to be deleted; counted up to 10000'),
('archive_stores', 'moved', 'mlint_archive_store_moved_total', 'counter', 'Archives that were moved there'),
('archive_stores', 'moved_bytes', 'mlint_archive_store_moved_bytes_total', 'counter', 'Bytes of these'),
('archive_stores', 'deleted', 'mlint_archive_store_deleted_total', 'counter', 'Objects that were deleted there'),
('archive_stores', 'success_at', 'mlint_archive_store_last_success_timestamp_seconds', 'gauge', 'When something was last moved or deleted there');

