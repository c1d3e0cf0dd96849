-- audit, observed: whether entries get into the log, and stay there.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('audit', 'audit_buffer', false, $$
	SELECT 2, 'nobody writes the audit log: what must be entered there does not happen (ML012)',
		'The server''s log says why there is no auditor; it takes one of max_worker_processes.'
	FROM mlint.audit_buffer() b WHERE NOT b.open
	UNION ALL
	SELECT CASE WHEN b.oldest_at < clock_timestamp() - '1 minute'::interval THEN 2 ELSE 1 END,
		format('entries wait to be written to the audit log since %s', to_char(b.oldest_at, 'YYYY-MM-DD HH24:MI:SS')),
		'pg_stat_activity shows what the auditor waits for; those who act wait for it.'
	FROM mlint.audit_buffer() b
	WHERE b.oldest_at < clock_timestamp() - '10 seconds'::interval
	UNION ALL
	SELECT 1, 'the buffer before the audit log is nearly full: those who act have to wait',
		'See whether the disk keeps up, and what else the auditor waits for in pg_stat_activity.'
	FROM mlint.audit_buffer() b WHERE b.waiting_bytes > b.size_bytes * 0.9
	UNION ALL
	SELECT o.* FROM mlint.job_off('audit_retention') o$$),

-- Whoever takes entries away takes the last ones, since that leaves no gap. The
-- number comes from a sequence, which is ahead of an older snapshot; so what
-- seems to be missing is looked for in the newest one.
('audit', 'audit_log', true, $$
	SELECT 2, format('the last entry of the audit log is %s, and there have been %s: some were removed',
			coalesce(e.seq, 0), h.last_value),
		'Compare with the last audit.checkpoint that was delivered elsewhere, and with a backup; mlint.audit_verify() checks the rest.'
	FROM mlint.audit_head h
	LEFT JOIN LATERAL (SELECT e.seq FROM mlint.audit_entry e ORDER BY e.seq DESC LIMIT 1) e ON true
	WHERE h.is_called AND CASE WHEN h.last_value > coalesce(e.seq, 0)
		THEN mlint.audit_verify(h.last_value, h.last_value) IS NOT NULL END$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('audit', 'audit', false, '{}', $$
	SELECT b.last_seq, b.waiting_bytes, coalesce(greatest(0, date_part('epoch',
		clock_timestamp() - b.oldest_at)), 0) AS age
	FROM mlint.audit_buffer() b$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('audit', 'last_seq', 'mlint_audit_entries_total', 'counter', 'Entries of the audit log'),
('audit', 'waiting_bytes', 'mlint_audit_buffer_bytes', 'gauge', 'Entries that wait to be written'),
('audit', 'age', 'mlint_audit_buffer_oldest_seconds', 'gauge', 'For how long the oldest of these has waited');

