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
