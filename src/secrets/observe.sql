-- secrets, observed: the keys, and the systems that keep secrets for us.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
-- What older keys still seal is the oldest there is: looking at some will do.
-- That a key lies in the data directory is no failure; mlint.master_key says so.
('secrets', 'master_key', true, $$
	WITH k AS MATERIALIZED (SELECT * FROM mlint.master_keys(counted => false)),
	used AS (
		SELECT key_id FROM (SELECT v.key_id FROM mlint.secret_version v
			WHERE v.destroyed_at IS NULL ORDER BY v.secret_id, v.version LIMIT 10000) v
		UNION
		SELECT key_id FROM (SELECT a.key_id FROM mlint.data_key a ORDER BY a.id LIMIT 10000) a
	)
	SELECT 2, format('master key %s is not to be had: %s', k.key_id, k.warning),
		'Put back the file, or correct mlint.master_key_file or mlint.master_key_command: nothing that is sealed with it opens.'
	FROM k WHERE k.state = 'current' AND NOT k.available
	UNION ALL
	SELECT 2, format('master key %s, which is still needed, is not to be had', k.key_id),
		'Let the source give it beside the current one, and run mlint.job_run_now(''master_key_rewrap'').'
	FROM k WHERE k.state IS DISTINCT FROM 'current' AND NOT k.available
		AND k.key_id IN (SELECT key_id FROM used)
	UNION ALL
	SELECT 1, format('what master key %s seals is not all sealed anew, a day after the next one came', k.key_id),
		'mlint.jobs tells how the job master_key_rewrap goes.'
	FROM k WHERE k.state IS DISTINCT FROM 'current' AND k.available
		AND k.key_id IN (SELECT key_id FROM used)
		AND (SELECT max(n.created_at) FROM k n) < clock_timestamp() - '1 day'::interval
	UNION ALL
	SELECT o.* FROM mlint.job_off('master_key_rewrap') o WHERE EXISTS (SELECT FROM k)$$),

('secrets', 'erasure_key', true, $$
	WITH s AS MATERIALIZED (SELECT * FROM mlint.erasure_key_state()),
	-- The first and the last: one file is made after the other.
	a AS (
		(SELECT a.tree FROM mlint.data_key a ORDER BY a.id LIMIT 1)
		UNION
		(SELECT a.tree FROM mlint.data_key a ORDER BY a.id DESC LIMIT 1)
	), waiting AS (
		SELECT count(*) AS n, min(d.destroyed_at) AS since, bool_or(d.tree <> s.tree) AS elsewhere
		FROM (SELECT d.tree, d.destroyed_at FROM mlint.data_key_destroyed d
			WHERE d.erased_at IS NULL LIMIT 10000) d, s
	)
	SELECT 2, s.problem,
		'Put the file back where mlint.erasure_key says: without it no archive opens.'
	FROM s WHERE s.problem IS NOT NULL AND (EXISTS (SELECT FROM a) OR (SELECT w.n FROM waiting w) > 0)
	UNION ALL
	SELECT 2, 'there are data keys of another erasure key file: they do not open without that',
		'Let mlint.erasure_key_file be the file that they were made with.'
	FROM s WHERE s.problem IS NULL AND EXISTS (SELECT FROM a WHERE a.tree <> s.tree)
	UNION ALL
	SELECT 2, format('data keys that were destroyed are not erased from the file yet (%s), the oldest since %s%s',
			CASE WHEN w.n >= 10000 THEN '10000 or more' ELSE w.n::text END,
			to_char(w.since, 'YYYY-MM-DD HH24:MI'),
			CASE WHEN w.elsewhere THEN '; some are of another file' ELSE '' END),
		'mlint.jobs tells why the job data_key_erase does not get on: until then they can be read from backups.'
	FROM waiting w WHERE w.since < clock_timestamp() - '1 hour'::interval
	UNION ALL
	SELECT o.* FROM mlint.job_off('data_key_erase') o, waiting w WHERE w.n > 0$$),

('secrets', 'secret_backends', false, $$
	SELECT 2, format('secret backend "%s" fails, its breaker is %s: %s', b.name, s.breaker, s.last_error),
		'Put right what the error names; mlint.secret_backend_test() tries it. Values that are kept in memory serve meanwhile.'
	FROM mlint.secret_backend b, mlint.secret_backend_state(b.id) s
	WHERE s.breaker <> 'closed'
	UNION ALL
	SELECT 1, format('secret backend "%s" failed at its last call: %s', b.name, s.last_error),
		'Put right what the error names; mlint.secret_backend_test() tries it.'
	FROM mlint.secret_backend b, mlint.secret_backend_state(b.id) s
	WHERE s.breaker = 'closed' AND s.last_error_at > coalesce(s.last_success_at, '-infinity')$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('secrets', 'secret_backends', false, '{backend}', $$
	SELECT b.name AS backend, s.breaker <> 'closed' AS breaker_open, s.cached, s.hits,
		s.misses, s.stale, date_part('epoch', s.last_success_at) AS success_at
	FROM mlint.secret_backend b, mlint.secret_backend_state(b.id) s ORDER BY b.name$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('secret_backends', 'breaker_open', 'mlint_secret_backend_breaker_open', 'gauge', 'Whether the circuit breaker is open, or half-open'),
('secret_backends', 'cached', 'mlint_secret_backend_cached_values', 'gauge', 'Values that are kept in memory, sealed'),
('secret_backends', 'hits', 'mlint_secret_backend_hits_total', 'counter', 'Reads that a kept value answered'),
('secret_backends', 'misses', 'mlint_secret_backend_misses_total', 'counter', 'Reads that went to the backend'),
('secret_backends', 'stale', 'mlint_secret_backend_stale_total', 'counter', 'Reads among these that a kept value answered after its time, because the backend was down'),
('secret_backends', 'success_at', 'mlint_secret_backend_last_success_timestamp_seconds', 'gauge', 'When a call last succeeded');

