-- mounts, observed: how many, since they name secrets.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('mounts', 'mounts', true, $$
	SELECT 2, 'there are secrets to be written as files, and mlint.secret_mount_directory is empty',
		'Set it, and reload the settings; or drop the mounts.'
	WHERE current_setting('mlint.secret_mount_directory') = ''
		AND EXISTS (SELECT FROM mlint.secret_mount)
	UNION ALL
	SELECT 2, format('files with secrets are not as they should be (%s)', m.n),
		'mlint.secret_mounts tells administrators which, and why; it is tried again each minute.'
	FROM (SELECT count(*) AS n FROM mlint.secret_mount WHERE error IS NOT NULL) m WHERE m.n > 0
	UNION ALL
	SELECT 1, format('files with secrets wait to be written or removed (%s)', m.n),
		'mlint.jobs tells whether the job secret_mounts runs.'
	FROM (SELECT count(*) AS n FROM mlint.secret_mount WHERE error IS NULL
		AND (coalesce(file, '') = '' AND created_at < clock_timestamp() - '5 minutes'::interval
			OR dropped_at < clock_timestamp() - '5 minutes'::interval)) m
	WHERE m.n > 0
	UNION ALL
	SELECT o.* FROM mlint.job_off('secret_mounts') o
	WHERE EXISTS (SELECT FROM mlint.secret_mount)$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('mounts', 'mounts', true, '{}', $$
	SELECT count(*) FILTER (WHERE dropped_at IS NULL) AS mounts,
		count(*) FILTER (WHERE error IS NOT NULL) AS failing
	FROM mlint.secret_mount$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('mounts', 'mounts', 'mlint_secret_mounts', 'gauge', 'Files that secrets are written to'),
('mounts', 'failing', 'mlint_secret_mounts_failing', 'gauge', 'Those among them that are not as they should be');

