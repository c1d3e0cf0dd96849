-- mounts: secrets as files, for programs that read files.

-- What was written, and how the file is known again; a file that is to go is
-- removed by the job, when that has committed.
CREATE TABLE mlint.secret_mount (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	path text COLLATE "C" NOT NULL,
	names text[] NOT NULL,
	format text NOT NULL CHECK (format IN ('raw', 'dotenv', 'json')),
	mode int NOT NULL,
	created_by mlint.role_id NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	dropped_at timestamptz,
	versions text,
	file text,
	written_at timestamptz,
	error text
);
COMMENT ON TABLE mlint.secret_mount IS 'Which secrets are written to which files, and what was';
-- A path is unique among the living.
CREATE UNIQUE INDEX secret_mount_path ON mlint.secret_mount (path)
	WHERE dropped_at IS NULL;

CREATE VIEW mlint.secret_mounts AS
SELECT m.path, m.names, m.format, '0' || pg_catalog.to_char(m.mode / 64 * 100
		+ m.mode / 8 % 8 * 10 + m.mode % 8, 'FM000') AS mode,
	CASE WHEN m.dropped_at IS NOT NULL THEN 'removing'
		WHEN m.error IS NOT NULL THEN 'failed'
		WHEN coalesce(m.file, '') = '' THEN 'waiting' ELSE 'written' END AS state,
	m.versions::jsonb AS versions, m.written_at, m.error,
	nullif(m.created_by::text, '') AS created_by, m.created_at
FROM mlint.secret_mount m;
COMMENT ON VIEW mlint.secret_mounts IS 'Secrets that are written to files, and what was written';
COMMENT ON COLUMN mlint.secret_mounts.path IS 'File, below mlint.secret_mount_directory';
COMMENT ON COLUMN mlint.secret_mounts.names IS 'Secrets in it; * and ? match those of the local store';
COMMENT ON COLUMN mlint.secret_mounts.format IS 'raw, dotenv or json';
COMMENT ON COLUMN mlint.secret_mounts.mode IS 'Mode of the file, octal';
COMMENT ON COLUMN mlint.secret_mounts.state IS 'waiting, written, failed; removing, when it was dropped and the file is not gone yet';
COMMENT ON COLUMN mlint.secret_mounts.versions IS 'Versions that the file has, by name of the secret';
COMMENT ON COLUMN mlint.secret_mounts.written_at IS 'When it was last written';
COMMENT ON COLUMN mlint.secret_mounts.error IS 'Why the file is not as it should be; null if it is';
COMMENT ON COLUMN mlint.secret_mounts.created_by IS 'Role that created the mount; null when that is gone';
COMMENT ON COLUMN mlint.secret_mounts.created_at IS 'When it was created';

CREATE FUNCTION mlint.secret_mount_create(name text, path text,
	mode text DEFAULT '0400', format text DEFAULT 'raw',
	more text[] DEFAULT '{}') RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_mount_create';
COMMENT ON FUNCTION mlint.secret_mount_create(text, text, text, text, text[]) IS
	'Have a secret written to a file below mlint.secret_mount_directory, now and at each new version; as dotenv or json, several, also by glob patterns';

CREATE FUNCTION mlint.secret_mount_drop(path text) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_mount_drop';
COMMENT ON FUNCTION mlint.secret_mount_drop(text) IS
	'Remove a file that mlint.secret_mount_create had written, and write it no more';

CREATE FUNCTION mlint.secret_env(names text[]) RETURNS text
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_env';
COMMENT ON FUNCTION mlint.secret_env(text[]) IS
	'The current values of secrets as dotenv text, in the quoting of a POSIX shell';

CREATE PROCEDURE mlint.secret_mount_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_secret_mount_run';
COMMENT ON PROCEDURE mlint.secret_mount_run() IS
	'The job secret_mounts: writes the files that are not as they should be';
-- From the first use on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('secret_mounts', 'CALL mlint.secret_mount_run()', '1 minute', false);
CREATE TRIGGER job_enable AFTER INSERT ON mlint.secret_mount
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('secret_mounts');
ALTER TABLE mlint.secret_mount ENABLE ALWAYS TRIGGER job_enable;
-- What was written was written there.
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_mount', $$WHERE false
	UNION ALL SELECT id, path, names, format, mode, created_by, created_at, NULL,
		NULL, NULL, NULL, NULL
	FROM mlint.secret_mount WHERE dropped_at IS NULL$$);
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_mount_id_seq', '');

CREATE FUNCTION mlint.secret_mount_changed() RETURNS trigger
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'mlint_secret_mount_changed';
COMMENT ON FUNCTION mlint.secret_mount_changed() IS
	'Has the job secret_mounts run when a secret has another version, or none';
CREATE TRIGGER secret_mount_changed
AFTER UPDATE OF version OR DELETE ON mlint.secret
FOR EACH STATEMENT EXECUTE FUNCTION mlint.secret_mount_changed();

REVOKE ALL ON FUNCTION
	mlint.secret_mount_create(text, text, text, text, text[]),
	mlint.secret_mount_drop(text), mlint.secret_env(text[]),
	mlint.secret_mount_changed() FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.secret_mount_run() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.secret_mount_create(text, text, text, text, text[]),
	mlint.secret_mount_drop(text) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.secret_env(text[]) TO mlint_user;
-- It names secrets.
GRANT SELECT ON mlint.secret_mounts TO mlint_admin;
