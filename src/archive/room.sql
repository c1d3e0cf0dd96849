-- archive: sessions as sealed documents, where these are kept, and the scheduler.

CREATE TABLE mlint.archive_store (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_.-]{1,63}$' AND name <> 'database'),
	kind text NOT NULL,
	options jsonb NOT NULL CHECK (pg_catalog.jsonb_typeof(options) = 'object'),
	active boolean NOT NULL DEFAULT false,
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
-- Whose it is would stay in statistics when the archive is gone.
ALTER TABLE mlint.archive ALTER metadata SET STATISTICS 0;
COMMENT ON TABLE mlint.archive IS 'The archives: one row each, whose bytes are in mlint.archive_chunk or in a store';

-- The archives of a dictionary, for dropping one.
CREATE INDEX archive_dictionary_used ON mlint.archive (dictionary) WHERE dictionary IS NOT NULL;

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
CREATE TRIGGER job_enable AFTER INSERT ON mlint.archive_store
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('archive_move');
ALTER TABLE mlint.archive_store ENABLE ALWAYS TRIGGER job_enable;
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
	archive_id pg_catalog.uuid := '00000000-0000-0000-0000-000000000000';
	at pg_catalog.timestamptz := '-infinity';
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

CREATE FUNCTION mlint.archive_list(page int DEFAULT 1, page_size int DEFAULT 50,
	policy text DEFAULT NULL, tag text DEFAULT NULL, store text DEFAULT NULL,
	held boolean DEFAULT NULL, expires_before timestamptz DEFAULT NULL)
	RETURNS SETOF mlint.archives
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 50
	AS 'MODULE_PATHNAME', 'mlint_archive_list';
COMMENT ON FUNCTION mlint.archive_list(int, int, text, text, text, boolean, timestamptz) IS
	'A page of the archives, newest first; of those with this policy, tag and store, held or not, whose period ends before a time';

CREATE FUNCTION mlint.archive_list_after(after uuid DEFAULT NULL, page_size int DEFAULT 50,
	policy text DEFAULT NULL, tag text DEFAULT NULL, store text DEFAULT NULL,
	held boolean DEFAULT NULL, expires_before timestamptz DEFAULT NULL)
	RETURNS SETOF mlint.archives
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 50
	AS 'MODULE_PATHNAME', 'mlint_archive_list_after';
COMMENT ON FUNCTION mlint.archive_list_after(uuid, int, text, text, text, boolean, timestamptz) IS
	'As archive_list, the page after an archive; costs the same however deep';

CREATE FUNCTION mlint.archive_get(id uuid) RETURNS jsonb
	LANGUAGE c STABLE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_get';
COMMENT ON FUNCTION mlint.archive_get(uuid) IS 'The document of an archive, verified';

CREATE FUNCTION mlint.archive_document(id uuid) RETURNS SETOF text
	LANGUAGE c STABLE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_document';
COMMENT ON FUNCTION mlint.archive_document(uuid) IS
	'The document of an archive as its text, verified, in pieces of at most 1 MiB in order; for documents of any size';

CREATE FUNCTION mlint.archive_verify(id uuid) RETURNS boolean
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_verify';
COMMENT ON FUNCTION mlint.archive_verify(uuid) IS
	'Whether an archive is whole and what its row says; if not, a warning says what is wrong';

CREATE FUNCTION mlint.archive_restore(id uuid) RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_restore';
COMMENT ON FUNCTION mlint.archive_restore(uuid) IS
	'Make an archived session live again, as it was, and remove the archive. Returns the session''s id';

CREATE FUNCTION mlint.archive_delete(id uuid, reason text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_delete';
COMMENT ON FUNCTION mlint.archive_delete(uuid, text) IS
	'Delete an archive with its session, for good: its data key is destroyed. Refused under a legal hold';

CREATE VIEW mlint.archive_periods AS
SELECT a.id AS archive_id, s.session_id, p.name::text AS policy,
	a.compliance, e.days AS retention_days, a.archived_at,
	a.archived_at + '24:00'::interval * e.days AS ends_at,
	coalesce(p.auto_delete, false) AS auto_delete,
	CASE WHEN NOT c.erasable OR NOT l.erasable THEN
		a.archived_at + '24:00'::interval * greatest(
			CASE WHEN NOT c.erasable THEN c.days END,
			CASE WHEN NOT l.erasable THEN p.days END) END AS erasable_at,
	a.announced_at
FROM mlint.archive a
JOIN mlint.session s ON s.id = a.session
LEFT JOIN mlint.retention_level c ON c.level = a.compliance
LEFT JOIN mlint.retention_policy p ON p.id = a.policy_id
LEFT JOIN mlint.retention_level l ON l.level = p.level,
LATERAL (SELECT greatest(a.retention_days, c.days, p.days) AS days) e;
COMMENT ON VIEW mlint.archive_periods IS 'The archives, and when their retention periods end, policies as they are now';
COMMENT ON COLUMN mlint.archive_periods.archive_id IS 'Id of the archive';
COMMENT ON COLUMN mlint.archive_periods.session_id IS 'The session';
COMMENT ON COLUMN mlint.archive_periods.policy IS 'Its retention policy; null if it has none';
COMMENT ON COLUMN mlint.archive_periods.compliance IS 'Compliance level that it was archived under besides; null if none';
COMMENT ON COLUMN mlint.archive_periods.retention_days IS 'The longest of what was said when it was archived, what the compliance level demands, and what the policy says';
COMMENT ON COLUMN mlint.archive_periods.archived_at IS 'When the period began';
COMMENT ON COLUMN mlint.archive_periods.ends_at IS 'When it ends';
COMMENT ON COLUMN mlint.archive_periods.auto_delete IS 'Whether it is deleted then; else that is only announced';
COMMENT ON COLUMN mlint.archive_periods.erasable_at IS 'When mlint.erase_subject() may erase it; null: at any time';
COMMENT ON COLUMN mlint.archive_periods.announced_at IS 'When archive.expired was published; null if it was not yet';
GRANT SELECT ON mlint.archive_periods TO mlint_reader;

-- The seal and the data key are nobody's business.
CREATE VIEW mlint.archive_dictionaries AS
SELECT d.id, d.trained_at, d.sessions, d.ratio, d.ratio_without,
	d.id = (SELECT pg_catalog.max(n.id) FROM mlint.archive_dictionary n) AS current,
	(SELECT pg_catalog.count(*) FROM mlint.archive a WHERE a.dictionary = d.id) AS archives
FROM mlint.archive_dictionary d;
COMMENT ON VIEW mlint.archive_dictionaries IS 'Dictionaries for zstd, trained from sessions';
COMMENT ON COLUMN mlint.archive_dictionaries.id IS 'The dictionary''s id';
COMMENT ON COLUMN mlint.archive_dictionaries.trained_at IS 'When it was trained';
COMMENT ON COLUMN mlint.archive_dictionaries.sessions IS 'From how many sessions';
COMMENT ON COLUMN mlint.archive_dictionaries.ratio IS 'What other sessions came to with it, compressed / plain';
COMMENT ON COLUMN mlint.archive_dictionaries.ratio_without IS 'What the same sessions came to without it';
COMMENT ON COLUMN mlint.archive_dictionaries.current IS 'Whether new archives are made with it';
COMMENT ON COLUMN mlint.archive_dictionaries.archives IS 'How many archives need it';

CREATE FUNCTION mlint.archive_dictionary_train(samples int DEFAULT 1000) RETURNS int
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_dictionary_train';
COMMENT ON FUNCTION mlint.archive_dictionary_train(int) IS
	'Train a dictionary from the newest live sessions, for new archives. Returns its id; null when it would not pay. Dictionaries that no archive needs go';

CREATE FUNCTION mlint.archive_dictionary_drop(id int) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_dictionary_drop';
COMMENT ON FUNCTION mlint.archive_dictionary_drop(int) IS
	'Drop a dictionary that no archive needs';
REVOKE ALL ON FUNCTION mlint.archive_dictionary_train(int),
	mlint.archive_dictionary_drop(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.archive_dictionary_train(int),
	mlint.archive_dictionary_drop(int) TO mlint_admin;
GRANT SELECT ON mlint.archive_dictionaries TO mlint_reader;

REVOKE ALL ON FUNCTION
	mlint.archive_session(text, int, text, text[], jsonb),
	mlint.archive_list(int, int, text, text, text, boolean, timestamptz),
	mlint.archive_list_after(uuid, int, text, text, text, boolean, timestamptz),
	mlint.archive_batch(text[], int, text, text[], jsonb),
	mlint.archive_get(uuid), mlint.archive_document(uuid),
	mlint.archive_verify(uuid), mlint.archive_restore(uuid),
	mlint.archive_delete(uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.archive_session(text, int, text, text[], jsonb),
	mlint.archive_list(int, int, text, text, text, boolean, timestamptz),
	mlint.archive_list_after(uuid, int, text, text, text, boolean, timestamptz),
	mlint.archive_batch(text[], int, text, text[], jsonb),
	mlint.archive_get(uuid), mlint.archive_document(uuid),
	mlint.archive_verify(uuid), mlint.archive_restore(uuid),
	mlint.archive_delete(uuid, text) TO mlint_user;
GRANT SELECT ON mlint.archives TO mlint_user;
-- As of mlint.sessions: metadata says whose it is.
GRANT SELECT (id, session_id, model_id, policy, compliance, retention_days,
	archived_at, archived_by, expires_at, held, tags, messages, bytes,
	stored_bytes, ratio, encrypted, compression, dictionary, sha256, store)
	ON mlint.archives TO mlint_reader;

-- ---- the scheduler ----

CREATE TABLE mlint.archival (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	interval_hours integer NOT NULL CHECK (interval_hours BETWEEN 1 AND 8784),
	archive_after_days integer NOT NULL CHECK (archive_after_days BETWEEN 0 AND 36500),
	retention_days integer NOT NULL CHECK (retention_days BETWEEN 1 AND 36500),
	batch_size integer NOT NULL CHECK (batch_size BETWEEN 1 AND 10000),
	compliance text NOT NULL REFERENCES mlint.retention_level,
	enabled boolean NOT NULL,
	set_by text NOT NULL,
	set_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE mlint.archival IS 'How sessions are archived by themselves: one row, or none';
SELECT pg_catalog.pg_extension_config_dump('mlint.archival', '');

CREATE TABLE mlint.archival_run (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	state text NOT NULL
		CHECK (state IN ('requested', 'running', 'completed', 'failed', 'crashed')),
	requested_by text,
	pid integer,
	started_at timestamptz CHECK ((started_at IS NULL) = (state = 'requested')),
	updated_at timestamptz,
	finished_at timestamptz
		CHECK ((finished_at IS NULL) = (state IN ('requested', 'running'))),
	-- Sessions with a later sign of life are left alone.
	due_before timestamptz,
	due bigint,
	archived bigint NOT NULL DEFAULT 0,
	failed bigint NOT NULL DEFAULT 0,
	skipped bigint NOT NULL DEFAULT 0,
	bytes bigint NOT NULL DEFAULT 0,
	batches bigint NOT NULL DEFAULT 0,
	error text
);
-- Whoever asks for a run while one is asked for gets that.
CREATE UNIQUE INDEX archival_run_requested ON mlint.archival_run (state) WHERE state = 'requested';
COMMENT ON TABLE mlint.archival_run IS 'Runs of the archival scheduler; the row of one that goes on is brought up to date with each batch';
-- A request is this server's.
SELECT pg_catalog.pg_extension_config_dump('mlint.archival_run', 'WHERE state <> ''requested''');
SELECT pg_catalog.pg_extension_config_dump('mlint.archival_run_id_seq', '');

-- No foreign key: it would have a run wait for whoever has locked the session.
CREATE TABLE mlint.archival_failure (
	session bigint PRIMARY KEY,
	run bigint NOT NULL,
	failures integer NOT NULL DEFAULT 1,
	failed_at timestamptz NOT NULL,
	sqlstate text NOT NULL,
	error text NOT NULL
);
COMMENT ON TABLE mlint.archival_failure IS 'Sessions that the scheduler could not archive so far; those that are gone or archived by now are swept by the next run';
SELECT pg_catalog.pg_extension_config_dump('mlint.archival_failure', '');

INSERT INTO mlint.event_type VALUES
	('archival.completed', 'A run of the archival scheduler has ended; some sessions may have failed'),
	('archival.failed', 'A run of the archival scheduler was broken off');

CREATE PROCEDURE mlint.archival_work()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_archival_work';
COMMENT ON PROCEDURE mlint.archival_work() IS
	'The job archival: archives the sessions that are due, in batches, each a transaction of its own';
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('archival', 'CALL mlint.archival_work()', '24 hours', false);

-- The job is as the settings say, those that come with a dump too; then it
-- leaves the restore a day. One that was asked for is not taken back.
CREATE FUNCTION mlint.archival_follow() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE mlint.job
	SET enabled = NEW.enabled OR EXISTS (SELECT FROM mlint.archival_run r
			WHERE r.state = 'requested'),
		every = make_interval(hours => NEW.interval_hours),
		next_run_at = CASE WHEN mlint.owner_scope_open()
			THEN coalesce(started_at + make_interval(hours => NEW.interval_hours),
				clock_timestamp())
			ELSE clock_timestamp() + greatest(make_interval(hours => NEW.interval_hours),
				'1 day'::interval) END
	WHERE name = 'archival';
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION mlint.archival_follow() IS 'Gives the job archival its interval when the settings change';
CREATE TRIGGER archival_follow AFTER INSERT OR UPDATE ON mlint.archival
	FOR EACH ROW EXECUTE FUNCTION mlint.archival_follow();
ALTER TABLE mlint.archival ENABLE ALWAYS TRIGGER archival_follow;

CREATE FUNCTION mlint.archival_set(interval_hours integer DEFAULT 24,
	archive_after_days integer DEFAULT 30, retention_days integer DEFAULT 365,
	batch_size integer DEFAULT 100, compliance_level text DEFAULT 'standard',
	enabled boolean DEFAULT true) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archival_set';
COMMENT ON FUNCTION mlint.archival_set(integer, integer, integer, integer, text, boolean) IS
	'Have sessions archived that nothing was said in for some days; every call sets everything';

CREATE FUNCTION mlint.archival_run() RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archival_run';
COMMENT ON FUNCTION mlint.archival_run() IS
	'Archive what is due as soon as the transaction commits, also when the scheduler is disabled; the id that the run has in mlint.archival_runs';

CREATE FUNCTION mlint.archival_wait(run bigint, timeout interval) RETURNS boolean
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archival_wait';
COMMENT ON FUNCTION mlint.archival_wait(bigint, interval) IS
	'Wait until a run has ended; false when the timeout passed first. In a transaction after that of mlint.archival_run';

CREATE VIEW mlint.archival_settings AS
SELECT a.interval_hours, a.archive_after_days, a.retention_days, a.batch_size,
	a.compliance AS compliance_level, a.enabled, a.set_by, a.set_at,
	CASE WHEN a.enabled THEN j.next_run_at END AS next_run_at
FROM mlint.archival a
JOIN mlint.job j ON j.name = 'archival';
COMMENT ON VIEW mlint.archival_settings IS 'What mlint.archival_set was told: one row, or none';
COMMENT ON COLUMN mlint.archival_settings.interval_hours IS 'Hours from the start of one run to the next';
COMMENT ON COLUMN mlint.archival_settings.archive_after_days IS 'A session is due when nothing was said in it for so many days';
COMMENT ON COLUMN mlint.archival_settings.retention_days IS 'How long its archive is kept at least';
COMMENT ON COLUMN mlint.archival_settings.batch_size IS 'At most so many sessions are archived in one transaction';
COMMENT ON COLUMN mlint.archival_settings.compliance_level IS 'Compliance level of the archives';
COMMENT ON COLUMN mlint.archival_settings.enabled IS 'Whether runs begin by themselves';
COMMENT ON COLUMN mlint.archival_settings.set_by IS 'Role that set it';
COMMENT ON COLUMN mlint.archival_settings.set_at IS 'When';
COMMENT ON COLUMN mlint.archival_settings.next_run_at IS 'When the next run is due; null when disabled';

-- Who is at work holds this lock (schedule.c).
CREATE VIEW mlint.archival_runs AS
SELECT r.id,
	CASE WHEN r.state = 'running' AND r.pid IS DISTINCT FROM w.pid THEN 'crashed'
		ELSE r.state END AS state,
	r.requested_by, r.started_at, r.finished_at, r.due,
	r.archived + r.failed + r.skipped AS processed,
	r.archived, r.failed, r.skipped, r.bytes, r.batches,
	CASE WHEN r.finished_at IS NULL AND r.pid = w.pid THEN pg_catalog.clock_timestamp()
		ELSE coalesce(r.finished_at, r.updated_at) END - r.started_at AS duration,
	r.archived / nullif((r.archived + r.failed)::double precision, 0) AS success_rate,
	r.error
FROM mlint.archival_run r
LEFT JOIN (SELECT l.pid FROM pg_catalog.pg_locks l
	WHERE l.locktype = 'object' AND l.granted
		AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
			WHERE d.datname = pg_catalog.current_database())
		AND l.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
		AND l.objid = 'mlint.archival_run'::pg_catalog.regclass AND l.objsubid = 1) w ON true;
COMMENT ON VIEW mlint.archival_runs IS 'Runs of the archival scheduler';
COMMENT ON COLUMN mlint.archival_runs.id IS 'Number of the run, as mlint.archival_run returned it';
COMMENT ON COLUMN mlint.archival_runs.state IS 'requested, running, completed, failed (it was broken off: see error), or crashed (its process or the server died)';
COMMENT ON COLUMN mlint.archival_runs.requested_by IS 'Role that asked for it; null for one that was due';
COMMENT ON COLUMN mlint.archival_runs.started_at IS 'When it began';
COMMENT ON COLUMN mlint.archival_runs.finished_at IS 'When it ended; of one that crashed: its last batch';
COMMENT ON COLUMN mlint.archival_runs.due IS 'Sessions that were due when it began';
COMMENT ON COLUMN mlint.archival_runs.processed IS 'Sessions that it has come to: the sum of the next three';
COMMENT ON COLUMN mlint.archival_runs.archived IS 'Sessions that it archived';
COMMENT ON COLUMN mlint.archival_runs.failed IS 'Sessions that could not be archived: see mlint.archival_failures';
COMMENT ON COLUMN mlint.archival_runs.skipped IS 'Sessions that somebody had locked, had used, archived or deleted meanwhile';
COMMENT ON COLUMN mlint.archival_runs.bytes IS 'Size of the documents that it archived, before compression';
COMMENT ON COLUMN mlint.archival_runs.batches IS 'Transactions in which it did that';
COMMENT ON COLUMN mlint.archival_runs.duration IS 'How long it took, or has taken so far';
COMMENT ON COLUMN mlint.archival_runs.success_rate IS 'Archived sessions among those that were not skipped, 0 to 1; null when there were none';
COMMENT ON COLUMN mlint.archival_runs.error IS 'Why it was broken off';

CREATE VIEW mlint.archival_progress AS
SELECT r.pid, pg_catalog.current_database() AS datname, v.id AS run,
	CASE WHEN v.due IS NULL THEN 'counting sessions' ELSE 'archiving sessions' END AS phase,
	v.due AS sessions_due, v.processed AS sessions_processed,
	v.archived AS sessions_archived, v.failed AS sessions_failed,
	v.skipped AS sessions_skipped, v.bytes, v.batches + 1 AS current_batch,
	v.started_at
FROM mlint.archival_runs v
JOIN mlint.archival_run r ON r.id = v.id
WHERE v.state = 'running';
COMMENT ON VIEW mlint.archival_progress IS 'The run that goes on, if any, as of its last batch';
COMMENT ON COLUMN mlint.archival_progress.pid IS 'Its process';
COMMENT ON COLUMN mlint.archival_progress.datname IS 'This database';
COMMENT ON COLUMN mlint.archival_progress.run IS 'Its id in mlint.archival_runs';
COMMENT ON COLUMN mlint.archival_progress.phase IS 'counting sessions, or archiving sessions';
COMMENT ON COLUMN mlint.archival_progress.sessions_due IS 'Sessions that were due when it began; null while they are counted';
COMMENT ON COLUMN mlint.archival_progress.sessions_processed IS 'Of these, those that it has come to';
COMMENT ON COLUMN mlint.archival_progress.sessions_archived IS 'Sessions archived so far';
COMMENT ON COLUMN mlint.archival_progress.sessions_failed IS 'Sessions that could not be archived so far';
COMMENT ON COLUMN mlint.archival_progress.sessions_skipped IS 'Sessions skipped so far';
COMMENT ON COLUMN mlint.archival_progress.bytes IS 'Size of the documents archived so far';
COMMENT ON COLUMN mlint.archival_progress.current_batch IS 'Number of the transaction that is under way';
COMMENT ON COLUMN mlint.archival_progress.started_at IS 'When the run began';

CREATE VIEW mlint.archival_failures AS
SELECT s.session_id, f.error, f.sqlstate, f.failures, f.failed_at, f.run
FROM mlint.archival_failure f
JOIN mlint.session s ON s.id = f.session
WHERE s.status <> 'archived';
COMMENT ON VIEW mlint.archival_failures IS 'Sessions that the archival scheduler came to and could not archive; each run tries them again';
COMMENT ON COLUMN mlint.archival_failures.session_id IS 'The session';
COMMENT ON COLUMN mlint.archival_failures.error IS 'Why it failed last';
COMMENT ON COLUMN mlint.archival_failures.sqlstate IS 'SQLSTATE of that error';
COMMENT ON COLUMN mlint.archival_failures.failures IS 'How often it failed';
COMMENT ON COLUMN mlint.archival_failures.failed_at IS 'When it failed last';
COMMENT ON COLUMN mlint.archival_failures.run IS 'The run in which it failed last';

-- A row whether or not there are settings and runs.
CREATE VIEW mlint.stat_archival AS
SELECT t.runs, t.archived, t.failed, t.skipped, t.bytes,
	l.id AS last_run, l.state AS last_state, l.started_at AS last_started_at,
	l.finished_at AS last_finished_at, l.error AS last_error,
	d.due, d.oldest_due,
	(SELECT pg_catalog.count(*) FROM mlint.archival_failures) AS failing,
	(SELECT a.next_run_at FROM mlint.archival_settings a) AS next_run_at
FROM (SELECT pg_catalog.count(*) FILTER (WHERE r.state <> 'requested') AS runs,
		coalesce(pg_catalog.sum(r.archived), 0)::bigint AS archived,
		coalesce(pg_catalog.sum(r.failed), 0)::bigint AS failed,
		coalesce(pg_catalog.sum(r.skipped), 0)::bigint AS skipped,
		coalesce(pg_catalog.sum(r.bytes), 0)::bigint AS bytes
	FROM mlint.archival_run r) t
LEFT JOIN LATERAL (SELECT * FROM mlint.archival_runs r WHERE r.state <> 'requested'
	ORDER BY r.id DESC LIMIT 1) l ON true
LEFT JOIN LATERAL (SELECT pg_catalog.count(*) AS due, pg_catalog.min(s.active_at) AS oldest_due
	FROM mlint.session s
	WHERE s.status <> 'archived' AND s.active_at < (SELECT
		pg_catalog.clock_timestamp() - pg_catalog.make_interval(hours => a.archive_after_days * 24 + 1)
		FROM mlint.archival a)) d ON true;
COMMENT ON VIEW mlint.stat_archival IS 'What the archival scheduler has done, and has before it';
COMMENT ON COLUMN mlint.stat_archival.runs IS 'Runs so far';
COMMENT ON COLUMN mlint.stat_archival.archived IS 'Sessions that they archived';
COMMENT ON COLUMN mlint.stat_archival.failed IS 'How often a session could not be archived';
COMMENT ON COLUMN mlint.stat_archival.skipped IS 'How often a session was skipped';
COMMENT ON COLUMN mlint.stat_archival.bytes IS 'Size of the documents that they archived, before compression';
COMMENT ON COLUMN mlint.stat_archival.last_run IS 'The last run''s id in mlint.archival_runs';
COMMENT ON COLUMN mlint.stat_archival.last_state IS 'Its state';
COMMENT ON COLUMN mlint.stat_archival.last_started_at IS 'When it began';
COMMENT ON COLUMN mlint.stat_archival.last_finished_at IS 'When it ended';
COMMENT ON COLUMN mlint.stat_archival.last_error IS 'Why it was broken off';
COMMENT ON COLUMN mlint.stat_archival.due IS 'Sessions that are due now';
COMMENT ON COLUMN mlint.stat_archival.oldest_due IS 'Last sign of life of the one that is due longest, at most an hour too early';
COMMENT ON COLUMN mlint.stat_archival.failing IS 'Sessions in mlint.archival_failures';
COMMENT ON COLUMN mlint.stat_archival.next_run_at IS 'When the next run is due; null when disabled';

REVOKE ALL ON FUNCTION
	mlint.archival_set(integer, integer, integer, integer, text, boolean),
	mlint.archival_run(), mlint.archival_wait(bigint, interval),
	mlint.archival_follow() FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.archival_work() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.archival_set(integer, integer, integer, integer, text, boolean),
	mlint.archival_run(), mlint.archival_wait(bigint, interval) TO mlint_admin;
GRANT SELECT ON mlint.archival_settings, mlint.archival_runs,
	mlint.archival_progress, mlint.archival_failures, mlint.stat_archival
	TO mlint_reader;
