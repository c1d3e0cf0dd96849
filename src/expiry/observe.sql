-- expiry, observed: what should be gone by now. Of erasures only how many, since
-- they are for administrators.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('expiry', 'retention', true, $$
	SELECT CASE WHEN a.expires_at < clock_timestamp() - '3 days'::interval THEN 2 ELSE 1 END,
		format('archives have been due since %s, and were neither deleted nor announced',
			to_char(a.expires_at, 'YYYY-MM-DD HH24:MI')),
		'mlint.jobs tells why the job archive_expire does not get on; mlint.retention_report(now()) what is due.'
	FROM (SELECT a.expires_at FROM mlint.archive a WHERE a.announced_at IS NULL
		ORDER BY a.expires_at, a.id LIMIT 1) a
	WHERE a.expires_at < clock_timestamp() - '3 hours'::interval
	UNION ALL
	SELECT 1, format('archives of retention policy "%s", which was altered, do not all follow yet', p.name),
		'mlint.jobs tells how the job archive_expire goes.'
	FROM mlint.retention_stale s JOIN mlint.retention_policy p ON p.id = s.policy
	WHERE p.altered_at < clock_timestamp() - '1 day'::interval
	UNION ALL
	SELECT o.* FROM mlint.job_off('archive_expire') o$$),

('expiry', 'erasures', true, $$
	SELECT 1, format('sessions or archives that erasure had to leave could be erased by now (%s)', r.n),
		'Call mlint.erase_subject() again: mlint.erasure_refusals tells administrators which, and what they were kept for.'
	FROM (SELECT count(*) AS n FROM (SELECT FROM mlint.erasure_refusal r
			JOIN mlint.session s ON s.session_id = r.session_id
			WHERE r.until < clock_timestamp()
				OR r.reason = 'hold' AND NOT EXISTS (SELECT FROM mlint.hold h
					WHERE h.session = s.id AND h.released_at IS NULL)
			LIMIT 10000) r) r
	WHERE r.n > 0
	UNION ALL
	SELECT 1, format('what was erased (in %s requests) can still be read from base backups: the erasure key file lay in the data directory', e.n),
		'Destroy backups that are older than the erasure; then set mlint.erasure_key_file to a place outside, for those to come.'
	FROM (SELECT count(*) AS n FROM mlint.erasure WHERE in_backups
		AND requested_at > clock_timestamp() - '90 days'::interval) e
	WHERE e.n > 0$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('expiry', 'retention', true, '{}', $$
	SELECT coalesce(greatest(0, date_part('epoch', clock_timestamp() - (SELECT a.expires_at
			FROM mlint.archive a WHERE a.announced_at IS NULL
			ORDER BY a.expires_at, a.id LIMIT 1))), 0) AS overdue,
		(SELECT count(*) FROM mlint.erasure) AS erasures,
		(SELECT count(*) FROM (SELECT FROM mlint.data_key_destroyed d
			WHERE d.erased_at IS NULL LIMIT 10000) d) AS waiting$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('retention', 'overdue', 'mlint_retention_overdue_seconds', 'gauge', 'For how long the oldest archive has been due that was not dealt with'),
('retention', 'erasures', 'mlint_erasures_total', 'counter', 'Requests for erasure'),
('retention', 'waiting', 'mlint_erasure_keys_waiting', 'gauge', 'Destroyed data keys that are not yet erased from the file; counted up to 10000');

