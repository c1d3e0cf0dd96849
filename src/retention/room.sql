-- retention: how long archives are kept, and what must not be deleted.

CREATE TABLE mlint.retention_level (
	level text PRIMARY KEY,
	days integer NOT NULL,
	erasable boolean NOT NULL
);
COMMENT ON TABLE mlint.retention_level IS 'Compliance levels: the least number of days, and whether a person''s right to erasure comes first';
INSERT INTO mlint.retention_level VALUES
	('standard', 365, true), ('hipaa', 2555, false), ('gdpr', 2555, true),
	('pci', 1095, true), ('soc2', 2555, true);

CREATE TABLE mlint.retention_policy (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (pg_catalog.octet_length(name) BETWEEN 1 AND 63
			AND name !~ '[[:cntrl:]]'),
	days integer NOT NULL CHECK (days BETWEEN 1 AND 36500),
	level text NOT NULL REFERENCES mlint.retention_level,
	auto_delete boolean NOT NULL DEFAULT false,
	description text,
	match_tag text,
	match_metadata jsonb CHECK (pg_catalog.jsonb_typeof(match_metadata) = 'object'),
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz
);
COMMENT ON TABLE mlint.retention_policy IS 'How long archives are kept';
SELECT pg_catalog.pg_extension_config_dump('mlint.retention_policy', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.retention_policy_id_seq', '');

CREATE TABLE mlint.hold (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	session bigint NOT NULL REFERENCES mlint.session ON DELETE CASCADE,
	reason text NOT NULL CHECK (reason <> ''),
	placed_by text NOT NULL,
	placed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	released_by text,
	released_at timestamptz,
	release_reason text,
	CHECK ((released_by IS NULL) = (released_at IS NULL))
);
-- The holds of a session: for whoever wants to delete it.
CREATE INDEX hold_session ON mlint.hold (session);
COMMENT ON TABLE mlint.hold IS 'Legal holds; while one is not released, its session and archive cannot be deleted';
SELECT pg_catalog.pg_extension_config_dump('mlint.hold', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.hold_id_seq', '');

-- ---- what is held stays ----

CREATE FUNCTION mlint.owner_scope_open() RETURNS boolean
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_owner_scope_open';
COMMENT ON FUNCTION mlint.owner_scope_open() IS
	'Is the statement one of mlint''s own functions''? For triggers';

CREATE FUNCTION mlint.hold_guard() RETURNS trigger
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_hold_guard';
COMMENT ON FUNCTION mlint.hold_guard() IS
	'Trigger: sessions and archives that are held are not deleted, their content is not touched but by mlint''s functions, and holds are ended by mlint.archive_release() only';
REVOKE ALL ON FUNCTION mlint.owner_scope_open(), mlint.hold_guard() FROM PUBLIC;

-- ALWAYS: session_replication_role = replica is no way around them.
CREATE TRIGGER hold_guard BEFORE DELETE ON mlint.session
	FOR EACH ROW EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_update AFTER UPDATE ON mlint.session
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.session
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard AFTER UPDATE OR DELETE ON mlint.message
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.message
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard BEFORE UPDATE OR DELETE ON mlint.hold
	FOR EACH ROW EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.hold
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
ALTER TABLE mlint.session ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_update,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;
ALTER TABLE mlint.message ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;
ALTER TABLE mlint.hold ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;

-- ---- policies ----

CREATE VIEW mlint.retention_levels AS
SELECT level, days, erasable FROM mlint.retention_level;
COMMENT ON VIEW mlint.retention_levels IS 'Compliance levels: how long what is under them is kept at least';
COMMENT ON COLUMN mlint.retention_levels.level IS 'Name of the level';
COMMENT ON COLUMN mlint.retention_levels.days IS 'Days that it demands';
COMMENT ON COLUMN mlint.retention_levels.erasable IS 'Whether mlint.erase_subject() erases before these are over';

CREATE VIEW mlint.retention_policies AS
SELECT id, name::text, days AS retention_days, level, auto_delete, description,
	match_tag, match_metadata, created_at, altered_at
FROM mlint.retention_policy;
COMMENT ON VIEW mlint.retention_policies IS 'Retention policies';
COMMENT ON COLUMN mlint.retention_policies.id IS 'Its number, as mlint.retention_policy_create() returned it';
COMMENT ON COLUMN mlint.retention_policies.name IS 'Name of the policy';
COMMENT ON COLUMN mlint.retention_policies.retention_days IS 'How long archives are kept, in days of 24 hours from when they were made';
COMMENT ON COLUMN mlint.retention_policies.level IS 'Compliance level that it satisfies';
COMMENT ON COLUMN mlint.retention_policies.auto_delete IS 'Whether archives are deleted then; else that is only announced';
COMMENT ON COLUMN mlint.retention_policies.description IS 'What it is for';
COMMENT ON COLUMN mlint.retention_policies.match_tag IS 'Archives with this tag get the policy if they are given none; with match_metadata, those that have both';
COMMENT ON COLUMN mlint.retention_policies.match_metadata IS 'Archives whose metadata has all of this get the policy if they are given none';
COMMENT ON COLUMN mlint.retention_policies.created_at IS 'When it was created';
COMMENT ON COLUMN mlint.retention_policies.altered_at IS 'When it was last altered';

CREATE FUNCTION mlint.retention_policy_create(name text, retention_days int,
	level text DEFAULT 'standard', auto_delete boolean DEFAULT false,
	description text DEFAULT NULL, match_tag text DEFAULT NULL,
	match_metadata jsonb DEFAULT NULL) RETURNS int
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_retention_policy_create';
COMMENT ON FUNCTION mlint.retention_policy_create(text, int, text, boolean, text, text, jsonb) IS
	'Create a retention policy, for no fewer days than its compliance level demands; returns its number';

CREATE FUNCTION mlint.retention_policy_alter(name text,
	retention_days int DEFAULT NULL, level text DEFAULT NULL,
	auto_delete boolean DEFAULT NULL, description text DEFAULT NULL,
	match_tag text DEFAULT NULL, match_metadata jsonb DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_retention_policy_alter';
COMMENT ON FUNCTION mlint.retention_policy_alter(text, int, text, boolean, text, text, jsonb) IS
	'Change what is given of a retention policy; archives that have it are kept accordingly at once';

CREATE FUNCTION mlint.retention_policy_drop(name text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_retention_policy_drop';
COMMENT ON FUNCTION mlint.retention_policy_drop(text) IS
	'Drop a retention policy that no archive has';

REVOKE ALL ON FUNCTION
	mlint.retention_policy_create(text, int, text, boolean, text, text, jsonb),
	mlint.retention_policy_alter(text, int, text, boolean, text, text, jsonb),
	mlint.retention_policy_drop(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.retention_policy_create(text, int, text, boolean, text, text, jsonb),
	mlint.retention_policy_alter(text, int, text, boolean, text, text, jsonb),
	mlint.retention_policy_drop(text) TO mlint_admin;
GRANT SELECT ON mlint.retention_levels, mlint.retention_policies TO mlint_reader;

-- Its archives are to be brought up to date by the job archive_expire, in the
-- order of their ids: those after this one, or all. "again": some were locked.
CREATE TABLE mlint.retention_stale (
	policy int PRIMARY KEY REFERENCES mlint.retention_policy ON DELETE CASCADE,
	after uuid,
	again boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE mlint.retention_stale IS 'Policies that were altered, and whose archives'' expires_at is yet to follow';
SELECT pg_catalog.pg_extension_config_dump('mlint.retention_stale', '');
