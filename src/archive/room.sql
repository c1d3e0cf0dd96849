-- archive: sessions as sealed documents, where these are kept, and the scheduler.

CREATE TABLE mlint.archive_store (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_.-]{1,63}$' AND name <> 'database'),
	kind text NOT NULL,
	options jsonb NOT NULL CHECK (pg_catalog.jsonb_typeof(options) = 'object'),
	active boolean NOT NULL DEFAULT true,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz
);
-- New archives go to one store at a time.
CREATE UNIQUE INDEX archive_store_active ON mlint.archive_store (active) WHERE active;
COMMENT ON TABLE mlint.archive_store IS 'Object stores that archives'' bytes are moved to';

CREATE TABLE mlint.archive_dictionary (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	data_key bigint NOT NULL,
	sealed bytea NOT NULL,
	trained_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	sessions integer NOT NULL,
	ratio double precision NOT NULL,
	ratio_without double precision NOT NULL
);
COMMENT ON TABLE mlint.archive_dictionary IS 'What many sessions have in common, for zstd';

CREATE TABLE mlint.archive (
	id uuid PRIMARY KEY,
	session bigint NOT NULL UNIQUE REFERENCES mlint.session,
	policy_id int REFERENCES mlint.retention_policy,
	compliance text REFERENCES mlint.retention_level,
	retention_days integer NOT NULL CHECK (retention_days > 0),
	archived_at timestamptz NOT NULL,
	archived_by text NOT NULL,
	-- archived_at and the longest of retention_days, the level's days and the
	-- policy's. A policy that was altered counts at once; this follows in batches.
	expires_at timestamptz NOT NULL,
	announced_at timestamptz,
	tags text[] NOT NULL DEFAULT '{}',
	metadata jsonb NOT NULL DEFAULT '{}'
		CHECK (pg_catalog.jsonb_typeof(metadata) = 'object'),
	messages integer NOT NULL,
	data_key bigint,
	zstd_level smallint NOT NULL,
	dictionary int REFERENCES mlint.archive_dictionary,
	plain_bytes bigint NOT NULL,
	stored_bytes bigint NOT NULL,
	chunks integer NOT NULL,
	sha256 bytea NOT NULL CHECK (pg_catalog.octet_length(sha256) = 32),
	store int REFERENCES mlint.archive_store
);
COMMENT ON TABLE mlint.archive IS 'The archives: one row each, whose bytes are in mlint.archive_chunk or in a store';

CREATE TABLE mlint.archive_chunk (
	archive uuid NOT NULL REFERENCES mlint.archive,
	n integer NOT NULL CHECK (n >= 0),
	bytes bytea NOT NULL,
	PRIMARY KEY (archive, n)
);
-- It is compressed already, or is meant not to be.
ALTER TABLE mlint.archive_chunk ALTER bytes SET STORAGE EXTERNAL;
COMMENT ON TABLE mlint.archive_chunk IS 'Bytes of archives that are kept in the database';

-- Objects in stores whose archive is gone, until the job has deleted them.
CREATE TABLE mlint.archive_garbage (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	store int NOT NULL REFERENCES mlint.archive_store,
	archive uuid NOT NULL
);
COMMENT ON TABLE mlint.archive_garbage IS 'Objects in stores that are to be deleted';

-- What archive_list and archive_list_after walk, newest first, is the primary
-- key: ids grow with time.

-- pg_dump takes the rows along.
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_dictionary', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_dictionary_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_chunk', '');

CREATE VIEW mlint.archives AS
SELECT a.id, s.session_id, s.model_id, p.name::text AS policy, a.compliance,
	a.retention_days, a.archived_at, a.archived_by, a.expires_at,
	EXISTS (SELECT FROM mlint.hold h
		WHERE h.session = a.session AND h.released_at IS NULL) AS held,
	a.tags, a.metadata, a.messages, a.plain_bytes AS bytes, a.stored_bytes,
	a.stored_bytes::double precision / a.plain_bytes AS ratio,
	a.data_key IS NOT NULL AS encrypted, a.zstd_level AS compression,
	a.dictionary, pg_catalog.encode(a.sha256, 'hex') AS sha256,
	coalesce(t.name::text, 'database') AS store
FROM mlint.archive a
JOIN mlint.session s ON s.id = a.session
LEFT JOIN mlint.retention_policy p ON p.id = a.policy_id
LEFT JOIN mlint.archive_store t ON t.id = a.store;
COMMENT ON VIEW mlint.archives IS 'The archives of sessions';
COMMENT ON COLUMN mlint.archives.id IS 'The archive''s id; ids grow with time';
COMMENT ON COLUMN mlint.archives.session_id IS 'The session that is archived';
COMMENT ON COLUMN mlint.archives.model_id IS 'Its model';
COMMENT ON COLUMN mlint.archives.policy IS 'Name of its retention policy; null: none';
COMMENT ON COLUMN mlint.archives.compliance IS 'Compliance level that it was archived under besides; null: none';
COMMENT ON COLUMN mlint.archives.retention_days IS 'Days that were asked for when it was archived';
COMMENT ON COLUMN mlint.archives.archived_at IS 'When it was made';
COMMENT ON COLUMN mlint.archives.archived_by IS 'Role that made it';
COMMENT ON COLUMN mlint.archives.expires_at IS 'When its retention period ends: after the longest of retention_days, the compliance level''s and the policy''s days';
COMMENT ON COLUMN mlint.archives.held IS 'Whether it is under a legal hold';
COMMENT ON COLUMN mlint.archives.tags IS 'Tags that were given to the archive';
COMMENT ON COLUMN mlint.archives.metadata IS 'Metadata that was given to the archive';
COMMENT ON COLUMN mlint.archives.messages IS 'How many messages it holds';
COMMENT ON COLUMN mlint.archives.bytes IS 'Size of the document';
COMMENT ON COLUMN mlint.archives.stored_bytes IS 'Size of what is stored of it';
COMMENT ON COLUMN mlint.archives.ratio IS 'stored_bytes / bytes';
COMMENT ON COLUMN mlint.archives.encrypted IS 'Whether it is sealed under a data key of its own';
COMMENT ON COLUMN mlint.archives.compression IS 'Level at which zstd compressed it; 0: it is not compressed';
COMMENT ON COLUMN mlint.archives.dictionary IS 'Dictionary that it needs; null: none';
COMMENT ON COLUMN mlint.archives.sha256 IS 'SHA-256 of the document, in hex';
COMMENT ON COLUMN mlint.archives.store IS 'Where its bytes are: database, or the name of a store';

CREATE FUNCTION mlint.archive_session(session_id text, retention_days int DEFAULT 365,
	policy text DEFAULT NULL, tags text[] DEFAULT '{}', metadata jsonb DEFAULT '{}') RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_session';
COMMENT ON FUNCTION mlint.archive_session(text, int, text, text[], jsonb) IS
	'Archive a session: what was said in it becomes a document, compressed and sealed. Without a policy, one that matches its tags or metadata applies';

CREATE FUNCTION mlint.archive_batch(session_ids text[], retention_days int DEFAULT 365,
	policy text DEFAULT NULL, tags text[] DEFAULT '{}', metadata jsonb DEFAULT '{}')
	RETURNS TABLE (session_id text, archive_id uuid, error text)
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_batch';
COMMENT ON FUNCTION mlint.archive_batch(text[], int, text, text[], jsonb) IS
	'Archive several sessions; one that cannot be archived has an error, and the others are archived';

CREATE FUNCTION mlint.archive_get(id uuid) RETURNS jsonb
	LANGUAGE c STABLE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_get';
COMMENT ON FUNCTION mlint.archive_get(uuid) IS 'The document of an archive, verified';

CREATE FUNCTION mlint.archive_document(id uuid) RETURNS SETOF text
	LANGUAGE c STABLE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_document';
COMMENT ON FUNCTION mlint.archive_document(uuid) IS
	'The document of an archive as its text, verified, in pieces of at most 1 MiB in order; for documents of any size';

CREATE FUNCTION mlint.archive_verify(id uuid) RETURNS boolean
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_verify';
COMMENT ON FUNCTION mlint.archive_verify(uuid) IS
	'Whether an archive is whole and what its row says; if not, a warning says what is wrong';

CREATE FUNCTION mlint.archive_restore(id uuid) RETURNS text
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_restore';
COMMENT ON FUNCTION mlint.archive_restore(uuid) IS
	'Make an archived session live again, as it was, and remove the archive. Returns the session''s id';

CREATE FUNCTION mlint.archive_delete(id uuid, reason text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_delete';
COMMENT ON FUNCTION mlint.archive_delete(uuid, text) IS
	'Delete an archive with its session, for good: its data key is destroyed. Refused under a legal hold';

REVOKE ALL ON FUNCTION
	mlint.archive_session(text, int, text, text[], jsonb),
	mlint.archive_batch(text[], int, text, text[], jsonb),
	mlint.archive_get(uuid), mlint.archive_document(uuid),
	mlint.archive_verify(uuid), mlint.archive_restore(uuid),
	mlint.archive_delete(uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.archive_session(text, int, text, text[], jsonb),
	mlint.archive_batch(text[], int, text, text[], jsonb),
	mlint.archive_get(uuid), mlint.archive_document(uuid),
	mlint.archive_verify(uuid), mlint.archive_restore(uuid),
	mlint.archive_delete(uuid, text) TO mlint_user;
GRANT SELECT ON mlint.archives TO mlint_user, mlint_reader;

-- ---- the scheduler ----

CREATE TABLE mlint.archival (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	archive_after_days integer NOT NULL CHECK (archive_after_days >= 0),
	retention_days integer NOT NULL CHECK (retention_days > 0),
	batch_size integer NOT NULL CHECK (batch_size BETWEEN 1 AND 10000),
	compliance text NOT NULL REFERENCES mlint.retention_level,
	set_by text NOT NULL,
	set_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE mlint.archival IS 'How sessions are archived by themselves: one row, or none; how often is in mlint.job';

CREATE TABLE mlint.archival_run (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	started_at timestamptz NOT NULL,
	finished_at timestamptz,
	due bigint NOT NULL DEFAULT 0,
	archived bigint NOT NULL DEFAULT 0,
	failed bigint NOT NULL DEFAULT 0,
	skipped bigint NOT NULL DEFAULT 0,
	bytes bigint NOT NULL DEFAULT 0,
	error text
);
COMMENT ON TABLE mlint.archival_run IS 'Runs of the archival scheduler; the row of one that goes on is brought up to date with each batch';
