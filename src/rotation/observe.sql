-- rotation, observed: how many, since their names are not for everybody.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('rotation', 'rotations', true, $$
	SELECT 2, format('rotations of secrets are paused (%s)', r.n),
		'mlint.rotations tells which, to those who may know, and why; mlint.secret_rotate() goes on with one.'
	FROM (SELECT count(*) AS n FROM mlint.secret_rotation WHERE paused) r WHERE r.n > 0
	UNION ALL
	SELECT 1, format('rotations of secrets have failed, and are tried again (%s)', r.n),
		'mlint.rotations tells which, to those who may know, and why.'
	FROM (SELECT count(*) AS n FROM mlint.secret_rotation WHERE failures > 0 AND NOT paused) r
	WHERE r.n > 0
	UNION ALL
	SELECT 1, format('rotations of secrets are overdue (%s)', r.n),
		'mlint.jobs tells whether the job secret_rotation runs.'
	FROM (SELECT count(*) AS n FROM mlint.secret_rotation WHERE NOT paused
		AND next_at < clock_timestamp() - '1 hour'::interval) r
	WHERE r.n > 0
	UNION ALL
	SELECT o.* FROM mlint.job_off('secret_rotation') o
	WHERE EXISTS (SELECT FROM mlint.secret_rotation)$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('rotation', 'rotations', true, '{}', $$
	SELECT count(*) AS rotations, count(*) FILTER (WHERE failures > 0) AS failing,
		count(*) FILTER (WHERE paused) AS paused,
		count(*) FILTER (WHERE NOT paused AND next_at < clock_timestamp() - '1 hour'::interval) AS overdue
	FROM mlint.secret_rotation$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('rotations', 'rotations', 'mlint_secret_rotations', 'gauge', 'Secrets that are rotated'),
('rotations', 'failing', 'mlint_secret_rotations_failing', 'gauge', 'Those among them whose last attempt failed'),
('rotations', 'paused', 'mlint_secret_rotations_paused', 'gauge', 'Those that are paused'),
('rotations', 'overdue', 'mlint_secret_rotations_overdue', 'gauge', 'Those that have been due for an hour');

