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
	archive uuid NOT NULL,
	attempts integer NOT NULL DEFAULT 0,
	next_at timestamptz NOT NULL DEFAULT '-infinity',
	error text
);
COMMENT ON TABLE mlint.archive_garbage IS 'Objects in stores that are to be deleted';

-- ---- object stores ----

-- What the job archive_move has to do, and whether it has.
CREATE INDEX archive_in_database ON mlint.archive (archived_at, id) WHERE store IS NULL;
-- Whether a store may be dropped.
CREATE INDEX archive_in_store ON mlint.archive (store) WHERE store IS NOT NULL;
-- An archive's entry, when it is moved.
CREATE INDEX archive_garbage_archive ON mlint.archive_garbage (archive, store);

CREATE TABLE mlint.archive_move (
	archive uuid PRIMARY KEY REFERENCES mlint.archive ON DELETE CASCADE,
	attempts integer NOT NULL DEFAULT 1,
	next_at timestamptz NOT NULL DEFAULT '-infinity',
	failed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	error text NOT NULL
);
COMMENT ON TABLE mlint.archive_move IS 'Archives that could not be moved to the store, until they are';

CREATE TABLE mlint.archive_store_state (
	store int PRIMARY KEY REFERENCES mlint.archive_store ON DELETE CASCADE,
	breaker integer NOT NULL DEFAULT 0,
	failures integer NOT NULL DEFAULT 0,
	retry_at timestamptz NOT NULL DEFAULT '-infinity',
	timeout_s integer NOT NULL DEFAULT 0,
	probing boolean NOT NULL DEFAULT false,
	moved bigint NOT NULL DEFAULT 0,
	moved_bytes bigint NOT NULL DEFAULT 0,
	deleted bigint NOT NULL DEFAULT 0,
	last_success_at timestamptz,
	last_error text,
	last_error_at timestamptz
);
COMMENT ON TABLE mlint.archive_store_state IS 'How the stores do: their breakers and counters';

SELECT pg_catalog.pg_extension_config_dump('mlint.archive_store', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_store_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_garbage', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_garbage_id_seq', '');

CREATE FUNCTION mlint.archive_store_create(name text, kind text,
	options jsonb DEFAULT '{}') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_store_create';
COMMENT ON FUNCTION mlint.archive_store_create(text, text, jsonb) IS
	'Add an object store, to which archives are moved from now on; mlint.archive_store_kinds shows the kinds and their options';

CREATE FUNCTION mlint.archive_store_alter(name text, options jsonb DEFAULT NULL,
	active boolean DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_store_alter';
COMMENT ON FUNCTION mlint.archive_store_alter(text, jsonb, boolean) IS
	'Change options of an object store (those not given stay, null takes one away), or whether it gets new archives';

CREATE FUNCTION mlint.archive_store_drop(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_store_drop';
COMMENT ON FUNCTION mlint.archive_store_drop(text) IS
	'Forget an object store; refused while there is anything of ours in it';

CREATE FUNCTION mlint.archive_store_test(name text) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_store_test';
COMMENT ON FUNCTION mlint.archive_store_test(text) IS
	'Put a small object, read it and delete it; raises the error if that fails';

CREATE FUNCTION mlint.archive_store_options(OUT kind text, OUT option text,
	OUT type text, OUT "default" text, OUT bounds text, OUT required boolean,
	OUT help text) RETURNS SETOF record
LANGUAGE c STABLE PARALLEL SAFE COST 10 ROWS 20
AS 'MODULE_PATHNAME', 'mlint_archive_store_options';
COMMENT ON FUNCTION mlint.archive_store_options() IS 'Behind the view mlint.archive_store_kinds';

CREATE VIEW mlint.archive_store_kinds AS
SELECT o.kind, o.option, o.type, o."default", o.bounds, o.required, o.help
FROM mlint.archive_store_options() o;
COMMENT ON VIEW mlint.archive_store_kinds IS 'Kinds of object stores and the options that they take';
COMMENT ON COLUMN mlint.archive_store_kinds.kind IS 'Name of the kind';
COMMENT ON COLUMN mlint.archive_store_kinds.option IS 'Name of the option';
COMMENT ON COLUMN mlint.archive_store_kinds.type IS 'Type of its value';
COMMENT ON COLUMN mlint.archive_store_kinds."default" IS 'Value when it is not given; null: none';
COMMENT ON COLUMN mlint.archive_store_kinds.bounds IS 'Range or choices';
COMMENT ON COLUMN mlint.archive_store_kinds.required IS 'Whether it must be given';
COMMENT ON COLUMN mlint.archive_store_kinds.help IS 'What it does';

CREATE FUNCTION mlint.archive_move_begin(after_at timestamptz, after_id uuid,
	OUT store int, OUT archive uuid, OUT archived_at timestamptz)
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_move_begin';
COMMENT ON FUNCTION mlint.archive_move_begin(timestamptz, uuid) IS
	'The job archive_move''s: the next archive that is to go to the store';

CREATE FUNCTION mlint.archive_move_one(store int, archive uuid) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_move_one';
COMMENT ON FUNCTION mlint.archive_move_one(int, uuid) IS
	'The job archive_move''s: moves an archive''s bytes to a store; false when that failed';

CREATE FUNCTION mlint.archive_garbage_delete(after_id bigint,
	OUT last_id bigint, OUT failed boolean)
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_garbage_delete';
COMMENT ON FUNCTION mlint.archive_garbage_delete(bigint) IS
	'The job archive_move''s: deletes an object whose archive is gone';

-- What is to be made is entered by a transaction of its own, before it is.
CREATE PROCEDURE mlint.archive_move_all()
LANGUAGE plpgsql AS $$
DECLARE
	entry bigint := 0;
	store_id int;
	archive_id uuid := '00000000-0000-0000-0000-000000000000';
	at timestamptz := '-infinity';
	failed boolean;
	failures bigint := 0;
BEGIN
	LOOP
		SELECT d.last_id, d.failed INTO entry, failed
		FROM mlint.archive_garbage_delete(entry) d;
		COMMIT;
		EXIT WHEN entry IS NULL;
		failures := failures OPERATOR(pg_catalog.+) failed::int;
	END LOOP;
	LOOP
		SELECT b.store, b.archive, b.archived_at INTO store_id, archive_id, at
		FROM mlint.archive_move_begin(at, archive_id) b;
		COMMIT;
		EXIT WHEN store_id IS NULL;
		IF NOT mlint.archive_move_one(store_id, archive_id) THEN
			failures := failures OPERATOR(pg_catalog.+) 1;
		END IF;
		COMMIT;
	END LOOP;
	IF failures OPERATOR(pg_catalog.>) 0 THEN
		RAISE EXCEPTION '% archives or objects could not be moved or deleted', failures
			USING HINT = 'mlint.archive_stores tells what went wrong last. Each is tried again.';
	END IF;
END
$$;
COMMENT ON PROCEDURE mlint.archive_move_all() IS
	'The job archive_move: moves archives to the active store, and deletes objects whose archive is gone';
-- From the first store on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('archive_move', 'CALL mlint.archive_move_all()', '1 minute', false);

CREATE VIEW mlint.archive_stores AS
SELECT s.name, s.kind, s.active, s.options,
	(ARRAY['closed', 'open', 'half-open'])[coalesce(t.breaker, 0) + 1] AS breaker,
	CASE WHEN t.breaker = 1 THEN t.retry_at END AS breaker_until,
	(SELECT pg_catalog.count(*) FROM mlint.archive a WHERE a.store = s.id) AS archives,
	CASE WHEN s.active THEN (SELECT pg_catalog.count(*) FROM mlint.archive a
		WHERE a.store IS NULL) ELSE 0 END AS waiting,
	CASE WHEN s.active THEN (SELECT pg_catalog.count(*)
		FROM mlint.archive_move m) ELSE 0 END AS failing,
	(SELECT pg_catalog.count(*) FROM mlint.archive_garbage g
		WHERE g.store = s.id) AS garbage,
	coalesce(t.moved, 0) AS moved, coalesce(t.moved_bytes, 0) AS moved_bytes,
	coalesce(t.deleted, 0) AS deleted, t.last_success_at,
	coalesce(CASE WHEN s.active THEN m.error END, t.last_error) AS last_error,
	coalesce(CASE WHEN s.active THEN m.failed_at END, t.last_error_at) AS last_error_at,
	s.created_at, s.altered_at
FROM mlint.archive_store s
LEFT JOIN mlint.archive_store_state t ON t.store = s.id
LEFT JOIN LATERAL (SELECT m.error, m.failed_at FROM mlint.archive_move m
	ORDER BY m.failed_at DESC LIMIT 1) m ON true;
COMMENT ON VIEW mlint.archive_stores IS 'Object stores that archives are moved to, and how they do';
COMMENT ON COLUMN mlint.archive_stores.name IS 'Name of the store';
COMMENT ON COLUMN mlint.archive_stores.kind IS 'What sort of store it is';
COMMENT ON COLUMN mlint.archive_stores.active IS 'Whether it gets new archives; one at most does';
COMMENT ON COLUMN mlint.archive_stores.options IS 'Its options; credentials appear as references only';
COMMENT ON COLUMN mlint.archive_stores.breaker IS 'Circuit breaker of the job archive_move: closed, open or half-open';
COMMENT ON COLUMN mlint.archive_stores.breaker_until IS 'Open: when one request will be tried';
COMMENT ON COLUMN mlint.archive_stores.archives IS 'Archives that are in it';
COMMENT ON COLUMN mlint.archive_stores.waiting IS 'Archives in the database that are to go there';
COMMENT ON COLUMN mlint.archive_stores.failing IS 'Those among them that could not be moved so far';
COMMENT ON COLUMN mlint.archive_stores.garbage IS 'Objects in it that are to be deleted';
COMMENT ON COLUMN mlint.archive_stores.moved IS 'Archives that were moved there';
COMMENT ON COLUMN mlint.archive_stores.moved_bytes IS 'Bytes of these';
COMMENT ON COLUMN mlint.archive_stores.deleted IS 'Objects that were deleted there';
COMMENT ON COLUMN mlint.archive_stores.last_success_at IS 'When the job last moved or deleted something there';
COMMENT ON COLUMN mlint.archive_stores.last_error IS 'Why something could last not be moved or deleted';
COMMENT ON COLUMN mlint.archive_stores.last_error_at IS 'When that was';
COMMENT ON COLUMN mlint.archive_stores.created_at IS 'When the store was created';
COMMENT ON COLUMN mlint.archive_stores.altered_at IS 'When it was last changed';

REVOKE ALL ON FUNCTION mlint.archive_store_create(text, text, jsonb),
	mlint.archive_store_alter(text, jsonb, boolean),
	mlint.archive_store_drop(text), mlint.archive_store_test(text),
	mlint.archive_store_options(),
	mlint.archive_move_begin(timestamptz, uuid),
	mlint.archive_move_one(int, uuid),
	mlint.archive_garbage_delete(bigint) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.archive_move_all() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.archive_store_create(text, text, jsonb),
	mlint.archive_store_alter(text, jsonb, boolean),
	mlint.archive_store_drop(text), mlint.archive_store_test(text)
	TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.archive_store_options() TO mlint_reader;
GRANT SELECT ON mlint.archive_store_kinds, mlint.archive_stores TO mlint_reader;
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
