-- secrets: the local store, who may use it, and the backends beside it.

CREATE TABLE mlint.wrapping_key (
	id integer PRIMARY KEY CHECK (id > 0),
	store uuid NOT NULL,
	check_value bytea NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE mlint.wrapping_key IS
	'The master keys that data keys are wrapped with: not the keys, only what they are recognized by; and the identity of this store';

CREATE TABLE mlint.secret (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_./-]{1,255}$'),
	version integer NOT NULL CHECK (version >= 0),
	latest integer NOT NULL CHECK (latest > 0),
	previous integer NOT NULL DEFAULT 0,
	previous_until timestamptz NOT NULL DEFAULT '-infinity',
	type text NOT NULL CHECK (type IN ('api_key', 'database_password',
		'ssh_key', 'tls_certificate', 'encryption_key', 'oauth_token',
		'service_account', 'webhook_secret')),
	description text,
	metadata jsonb NOT NULL DEFAULT '{}'
		CHECK (pg_catalog.jsonb_typeof(metadata) = 'object'),
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE mlint.secret IS 'The secrets by name, with the current version';

-- Room on the page for the row that a change of the master key makes.
CREATE TABLE mlint.secret_version (
	secret_id bigint NOT NULL REFERENCES mlint.secret ON DELETE CASCADE,
	version integer NOT NULL CHECK (version > 0),
	key_id integer NOT NULL,
	wrapped_key bytea,
	sealed bytea,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	created_by text NOT NULL DEFAULT pg_catalog.session_user(),
	destroyed_at timestamptz,
	destroyed_by text,
	PRIMARY KEY (secret_id, version),
	CHECK ((destroyed_at IS NULL) = (wrapped_key IS NOT NULL)
		AND (destroyed_at IS NULL) = (sealed IS NOT NULL))
) WITH (fillfactor = 50);
COMMENT ON TABLE mlint.secret_version IS
	'The versions of the secrets: each value sealed under a data key, and that wrapped with master key key_id';

CREATE TABLE mlint.secret_grant (
	pattern text COLLATE "C" NOT NULL
		CHECK (pattern ~ '^[A-Za-z0-9_./:*?-]+$'
			AND pg_catalog.length(pattern) <= 511),
	role mlint.role_id NOT NULL,
	privilege text NOT NULL
		CHECK (privilege IN ('read', 'write', 'rotate', 'admin', 'owner')),
	granted_by text NOT NULL,
	granted_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
-- By name. Those that were restored for roles that are not here may repeat
-- each other, and are looked for by nobody.
CREATE UNIQUE INDEX secret_grant_role ON mlint.secret_grant (pattern, role, privilege)
	WHERE role <> '0'::oid;
-- Grants on patterns, which every session keeps in memory.
CREATE INDEX secret_grant_wild ON mlint.secret_grant (pattern)
	WHERE pattern ~ '[*?]';
-- A secret has one owner.
CREATE UNIQUE INDEX secret_grant_owner ON mlint.secret_grant (pattern)
	WHERE privilege = 'owner';
ALTER TABLE mlint.secret_grant REPLICA IDENTITY FULL;
COMMENT ON TABLE mlint.secret_grant IS 'What which role may do with the secrets of which names';

-- No statistics: a planner's estimate would tell names to whoever asks for
-- one, and what was destroyed would stay in them.
ALTER TABLE mlint.secret ALTER name SET STATISTICS 0,
	ALTER type SET STATISTICS 0, ALTER description SET STATISTICS 0,
	ALTER metadata SET STATISTICS 0;
ALTER TABLE mlint.secret_version ALTER wrapped_key SET STATISTICS 0,
	ALTER sealed SET STATISTICS 0;
ALTER TABLE mlint.secret_grant ALTER pattern SET STATISTICS 0;

-- pg_dump takes the rows along: they open where the same master key is.
SELECT pg_catalog.pg_extension_config_dump('mlint.wrapping_key', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_version', '');
-- What was granted to a role that is gone is granted to nobody.
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_grant',
	'WHERE role::oid IN (SELECT r.oid FROM pg_catalog.pg_roles r)');

-- May the caller know of this secret?
CREATE FUNCTION mlint.secret_privileges(name text) RETURNS text[]
	LANGUAGE c STABLE STRICT PARALLEL UNSAFE COST 10
	AS 'MODULE_PATHNAME', 'mlint_secret_privileges';
COMMENT ON FUNCTION mlint.secret_privileges(text) IS
	'What the current user may do with a secret, whether it exists or not; empty for nothing';

-- Nobody's condition sees a row before ours has let it pass. OFFSET 0 keeps
-- conditions on names from an index, too: EXPLAIN ANALYZE would show whether
-- there is a name that the caller must not know.
CREATE VIEW mlint.secrets WITH (security_barrier) AS
SELECT s.name, s.type, s.description,
	(SELECT nullif(g.role::text, '') FROM mlint.secret_grant g
	 WHERE g.pattern = s.name AND g.privilege = 'owner') AS owner,
	s.privileges,
	nullif(s.version, 0) AS version,
	(SELECT pg_catalog.count(*) FROM mlint.secret_version v
	 WHERE v.secret_id = s.id AND v.destroyed_at IS NULL) AS versions,
	CASE WHEN s.previous_until > pg_catalog.clock_timestamp()
		THEN s.previous END AS previous,
	CASE WHEN s.previous_until > pg_catalog.clock_timestamp()
		THEN s.previous_until END AS previous_until,
	s.metadata, s.created_at, s.updated_at
FROM (SELECT a.*, mlint.secret_privileges(a.name) AS privileges
	FROM mlint.secret a OFFSET 0) s
WHERE s.privileges <> '{}';

COMMENT ON VIEW mlint.secrets IS 'The secrets of the local store that the current user may do something with, without their values';
COMMENT ON COLUMN mlint.secrets.name IS 'Name of the secret';
COMMENT ON COLUMN mlint.secrets.type IS 'What kind of credential it is';
COMMENT ON COLUMN mlint.secrets.description IS 'What it is for';
COMMENT ON COLUMN mlint.secrets.owner IS 'Role that has all privileges on it, at first whoever stored it; null when there is none, after a restore for instance';
COMMENT ON COLUMN mlint.secrets.privileges IS 'What the current user may do with it: read, write, rotate, admin';
COMMENT ON COLUMN mlint.secrets.version IS 'Current version, the one that is used where none is named';
COMMENT ON COLUMN mlint.secrets.versions IS 'How many versions are kept, without destroyed ones';
COMMENT ON COLUMN mlint.secrets.previous IS 'Version that is valid beside the current one, during the grace of a rotation';
COMMENT ON COLUMN mlint.secrets.previous_until IS 'When that ends';
COMMENT ON COLUMN mlint.secrets.metadata IS 'What was stored about it';
COMMENT ON COLUMN mlint.secrets.created_at IS 'When the first version was stored';
COMMENT ON COLUMN mlint.secrets.updated_at IS 'When the current version became it';

CREATE VIEW mlint.secret_grants WITH (security_barrier) AS
SELECT g.pattern, nullif(g.role::text, '') AS role, g.privilege, g.granted_by, g.granted_at
FROM (SELECT a.*, 'admin' = ANY (mlint.secret_privileges(a.pattern))
		OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = a.role::oid
			AND pg_catalog.pg_has_role(current_user, r.oid, 'USAGE')) AS visible
	FROM mlint.secret_grant a OFFSET 0) g
WHERE g.visible;
COMMENT ON VIEW mlint.secret_grants IS 'Who may do what with which secrets, as far as it is the current user''s or his to change';
COMMENT ON COLUMN mlint.secret_grants.pattern IS 'Name of a secret, or a pattern of names: * stands for any characters, ? for one';
COMMENT ON COLUMN mlint.secret_grants.role IS 'Role that may, and with it its members; null when it is gone';
COMMENT ON COLUMN mlint.secret_grants.privilege IS 'read, write, rotate or admin (all of these, and to grant them); owner for whoever stored it first';
COMMENT ON COLUMN mlint.secret_grants.granted_by IS 'Who granted it';
COMMENT ON COLUMN mlint.secret_grants.granted_at IS 'When';

CREATE FUNCTION mlint.secret_put(name text, value text, type text DEFAULT NULL,
	description text DEFAULT NULL, metadata jsonb DEFAULT NULL,
	backend text DEFAULT 'local') RETURNS integer
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_put';
COMMENT ON FUNCTION mlint.secret_put(text, text, text, text, jsonb, text) IS
	'Store a value of 1 byte to 64 KiB as a new version of a secret, and return the version; give the value as a bind parameter';

CREATE FUNCTION mlint.secret_put_bytes(name text, value bytea, type text DEFAULT NULL,
	description text DEFAULT NULL, metadata jsonb DEFAULT NULL,
	backend text DEFAULT 'local') RETURNS integer
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_put_bytes';
COMMENT ON FUNCTION mlint.secret_put_bytes(text, bytea, text, text, jsonb, text) IS
	'secret_put for a value that is not text';

CREATE FUNCTION mlint.secret_get(name text, version integer DEFAULT NULL,
	backend text DEFAULT 'local') RETURNS text
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_secret_get';
COMMENT ON FUNCTION mlint.secret_get(text, integer, text) IS
	'The value of a secret, of the current version unless another is named';

CREATE FUNCTION mlint.secret_get(name text, version text, backend text) RETURNS text
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_secret_get';
COMMENT ON FUNCTION mlint.secret_get(text, text, text) IS
	'The value of a secret in a backend whose versions are no numbers';

CREATE FUNCTION mlint.secret_get_bytes(name text, version integer DEFAULT NULL,
	backend text DEFAULT 'local') RETURNS bytea
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_secret_get_bytes';
COMMENT ON FUNCTION mlint.secret_get_bytes(text, integer, text) IS
	'secret_get for a value that need not be text';

CREATE FUNCTION mlint.secret_get_bytes(name text, version text, backend text) RETURNS bytea
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_secret_get_bytes';
COMMENT ON FUNCTION mlint.secret_get_bytes(text, text, text) IS
	'secret_get_bytes for a backend whose versions are no numbers';

CREATE FUNCTION mlint.secret_versions(name text, backend text DEFAULT 'local',
	OUT version text, OUT state text, OUT created_at timestamptz,
	OUT created_by text, OUT destroyed_at timestamptz, OUT destroyed_by text)
	RETURNS SETOF record
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 10
	AS 'MODULE_PATHNAME', 'mlint_secret_versions';
COMMENT ON FUNCTION mlint.secret_versions(text, text) IS
	'The versions of a secret, newest first: current, previous (still valid), waiting (not current yet), old or destroyed';

CREATE FUNCTION mlint.secret_destroy(name text, version integer) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_destroy';
COMMENT ON FUNCTION mlint.secret_destroy(text, integer) IS
	'Forget the key of one version, whose value is then gone for good';

CREATE FUNCTION mlint.secret_drop(name text, backend text DEFAULT 'local') RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_drop';
COMMENT ON FUNCTION mlint.secret_drop(text, text) IS 'Remove a secret with all its versions and the grants on its name';

CREATE FUNCTION mlint.secret_alter(name text, type text DEFAULT NULL,
	description text DEFAULT NULL, metadata jsonb DEFAULT NULL,
	owner text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_alter';
COMMENT ON FUNCTION mlint.secret_alter(text, text, text, jsonb, text) IS
	'Change what is kept about a secret, or its owner; what is null stays';

CREATE FUNCTION mlint.secret_grant(name_pattern text, role text, privilege text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_grant';
COMMENT ON FUNCTION mlint.secret_grant(text, text, text) IS
	'Let a role read, write, rotate or administer (admin) the secrets of a name or a pattern of names';

CREATE FUNCTION mlint.secret_revoke(name_pattern text, role text, privilege text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_revoke';
COMMENT ON FUNCTION mlint.secret_revoke(text, text, text) IS
	'Take back what mlint.secret_grant gave, with the same pattern';

CREATE FUNCTION mlint.master_keys(counted boolean DEFAULT true,
	OUT key_id integer, OUT state text,
	OUT source text, OUT created_at timestamptz, OUT versions bigint,
	OUT data_keys bigint, OUT available boolean, OUT warning text)
	RETURNS SETOF record
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE COST 1000 ROWS 2
	AS 'MODULE_PATHNAME', 'mlint_master_keys';
COMMENT ON FUNCTION mlint.master_keys(boolean) IS 'What mlint.master_key shows; not counted: without going through all that is sealed, so of older keys it is not known whether anything needs them';

CREATE VIEW mlint.master_key AS
SELECT k.key_id, k.state, k.source, k.created_at,
	pg_catalog.clock_timestamp() - k.created_at AS age, k.versions,
	k.data_keys, k.available, k.warning
FROM mlint.master_keys() k;
COMMENT ON VIEW mlint.master_key IS 'The master keys that the secrets of this database are or were sealed with';
COMMENT ON COLUMN mlint.master_key.key_id IS 'Number of the key, counted in this database';
COMMENT ON COLUMN mlint.master_key.state IS 'current: new versions are sealed with it; retiring: there is something left to be sealed anew; retired: nothing in this database needs it, older backups may';
COMMENT ON COLUMN mlint.master_key.source IS 'Where this server takes its keys from';
COMMENT ON COLUMN mlint.master_key.created_at IS 'When this database began to use it';
COMMENT ON COLUMN mlint.master_key.age IS 'How long ago that was';
COMMENT ON COLUMN mlint.master_key.versions IS 'Versions of secrets that are sealed with it';
COMMENT ON COLUMN mlint.master_key.data_keys IS 'Data keys of other rooms that are sealed with it, those of archives for instance';
COMMENT ON COLUMN mlint.master_key.available IS 'Whether the source gives the key now; on a standby, whether the secrets would open after promotion';
COMMENT ON COLUMN mlint.master_key.warning IS 'What should be done about it; null when all is well';

CREATE FUNCTION mlint.master_key_rotate() RETURNS integer
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_master_key_rotate';
COMMENT ON FUNCTION mlint.master_key_rotate() IS
	'Seal new versions with a new master key, and all others too as soon as the transaction has committed: the job master_key_rewrap';

CREATE FUNCTION mlint.secret_rewrap(after_id bigint, batch integer,
	OUT last_id bigint, OUT rewrapped bigint)
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rewrap';
COMMENT ON FUNCTION mlint.secret_rewrap(bigint, integer) IS
	'The job master_key_rewrap''s: seals the data keys of some secrets anew';

CREATE FUNCTION mlint.data_key_rewrap(after_id bigint, batch integer,
	OUT last_id bigint, OUT rewrapped bigint)
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_data_key_rewrap';
COMMENT ON FUNCTION mlint.data_key_rewrap(bigint, integer) IS
	'The job master_key_rewrap''s: seals some data keys of other rooms anew';

-- A batch a transaction, so that nobody waits for long and a crash loses one;
-- as long asleep as at work, so that readers keep their processors.
CREATE PROCEDURE mlint.secret_rewrap_all()
LANGUAGE plpgsql AS $$
DECLARE
	position bigint := 0;
	began pg_catalog.timestamptz;
BEGIN
	-- While a dump is restored, keys are there before what they are wrapped with.
	IF NOT EXISTS (SELECT FROM mlint.wrapping_key) THEN
		RETURN;
	END IF;
	WHILE position IS NOT NULL LOOP
		began := pg_catalog.clock_timestamp();
		SELECT r.last_id INTO position
		FROM mlint.secret_rewrap(position, 2000) r;
		COMMIT;
		PERFORM pg_catalog.pg_sleep(pg_catalog.date_part('epoch',
			pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began));
	END LOOP;
	position := 0;
	WHILE position IS NOT NULL LOOP
		began := pg_catalog.clock_timestamp();
		SELECT r.last_id INTO position
		FROM mlint.data_key_rewrap(position, 2000) r;
		COMMIT;
		PERFORM pg_catalog.pg_sleep(pg_catalog.date_part('epoch',
			pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began));
	END LOOP;
END
$$;
COMMENT ON PROCEDURE mlint.secret_rewrap_all() IS
	'The job master_key_rewrap: seals what an older master key seals with the current one';
INSERT INTO mlint.job (name, command, every)
VALUES ('master_key_rewrap', 'CALL mlint.secret_rewrap_all()', '1 day');

-- ---- data keys of other rooms ----

-- Room on the page for the row that a change of the master key makes.
CREATE TABLE mlint.data_key (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	purpose text NOT NULL CHECK (pg_catalog.length(purpose) <= 100),
	tree uuid NOT NULL,
	leaf bigint NOT NULL CHECK (leaf >= 0),
	key_id integer NOT NULL,
	wrapped bytea NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
) WITH (fillfactor = 50);
COMMENT ON TABLE mlint.data_key IS
	'Keys that other rooms seal with: random bytes wrapped with master key key_id, which only make a key together with a leaf of the erasure key file';
ALTER TABLE mlint.data_key ALTER wrapped SET STATISTICS 0;

-- Kept: another copy of the file may still have the leaf.
CREATE TABLE mlint.data_key_destroyed (
	id bigint PRIMARY KEY,
	tree uuid NOT NULL,
	leaf bigint NOT NULL,
	destroyed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	erased_at timestamptz
);
-- What the job data_key_erase has to do.
CREATE INDEX data_key_destroyed_waiting ON mlint.data_key_destroyed (tree)
	WHERE erased_at IS NULL;
COMMENT ON TABLE mlint.data_key_destroyed IS
	'Data keys that were destroyed, and when their leaves were cut out of the erasure key file';

-- Not dumped: of this server's file.
CREATE TABLE mlint.erasure_key_revision (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	revision uuid NOT NULL
);
COMMENT ON TABLE mlint.erasure_key_revision IS
	'The erasure key file as it was when all destroyed leaves were last held against it';

SELECT pg_catalog.pg_extension_config_dump('mlint.data_key', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.data_key_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.data_key_destroyed', '');
CREATE TRIGGER job_enable AFTER INSERT ON mlint.data_key_destroyed
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('data_key_erase');
ALTER TABLE mlint.data_key_destroyed ENABLE ALWAYS TRIGGER job_enable;

CREATE FUNCTION mlint.data_key_erase(OUT erased bigint, OUT more boolean)
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_data_key_erase';
COMMENT ON FUNCTION mlint.data_key_erase() IS
	'The job data_key_erase''s: cuts leaves of destroyed data keys out of the erasure key file';

CREATE PROCEDURE mlint.data_key_erase_all()
LANGUAGE plpgsql AS $$
DECLARE
	again boolean := true;
	elsewhere bigint;
BEGIN
	WHILE again LOOP
		SELECT e.more INTO again FROM mlint.data_key_erase() e;
		COMMIT;
	END LOOP;
	SELECT pg_catalog.count(*) INTO elsewhere
	FROM mlint.data_key_destroyed d WHERE d.erased_at IS NULL
		AND d.tree OPERATOR(pg_catalog.<>) (SELECT s.tree FROM mlint.erasure_key_state() s);
	IF elsewhere OPERATOR(pg_catalog.>) 0 THEN
		RAISE EXCEPTION '% destroyed data keys are of another erasure key file', elsewhere
			USING ERRCODE = 'ML010',
				HINT = 'Put that file in its place once, or set mlint.erasure_key_file to where it is, so that they are cut out of it.';
	END IF;
END
$$;
COMMENT ON PROCEDURE mlint.data_key_erase_all() IS
	'The job data_key_erase: makes it impossible to derive data keys that were destroyed, from any copy of the database';
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('data_key_erase', 'CALL mlint.data_key_erase_all()', '1 day', false);

CREATE FUNCTION mlint.erasure_key_state(OUT source text,
	OUT in_data_directory boolean, OUT available boolean, OUT tree uuid,
	OUT bytes bigint, OUT problem text)
	LANGUAGE c VOLATILE PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_erasure_key_state';
COMMENT ON FUNCTION mlint.erasure_key_state() IS 'Behind the view mlint.erasure_key';

CREATE VIEW mlint.erasure_key AS
SELECT s.source, s.in_data_directory, s.available, s.bytes, k.keys,
	d.destroyed, d.waiting, d.waiting_since,
	CASE WHEN k.keys = 0 AND coalesce(d.waiting, 0) = 0 AND NOT s.available THEN NULL
		WHEN s.problem IS NOT NULL THEN s.problem
		WHEN k.elsewhere OR d.elsewhere THEN 'there are data keys of another erasure key file: they do not open, nor can they be erased, without that'
		WHEN s.in_data_directory AND (k.keys > 0 OR d.destroyed > 0)
			THEN 'the file lies in the data directory: base backups contain it, so what was destroyed can still be read from them, and pg_rewind replaces or removes it; see mlint.erasure_key_file'
	END AS warning
FROM mlint.erasure_key_state() s,
	LATERAL (SELECT pg_catalog.count(*) AS keys,
			pg_catalog.bool_or(a.tree <> s.tree) AS elsewhere
		FROM mlint.data_key a) k,
	LATERAL (SELECT pg_catalog.count(*) AS destroyed,
			pg_catalog.count(*) FILTER (WHERE a.erased_at IS NULL) AS waiting,
			pg_catalog.min(a.destroyed_at) FILTER (WHERE a.erased_at IS NULL) AS waiting_since,
			pg_catalog.bool_or(a.tree <> s.tree AND a.erased_at IS NULL) AS elsewhere
		FROM mlint.data_key_destroyed a) d;
COMMENT ON VIEW mlint.erasure_key IS 'The file that data keys are made with, and from which destroyed ones are erased: one row';
COMMENT ON COLUMN mlint.erasure_key.source IS 'Where this server expects the file';
COMMENT ON COLUMN mlint.erasure_key.in_data_directory IS 'Whether it lies in the data directory, so that base backups contain it';
COMMENT ON COLUMN mlint.erasure_key.available IS 'Whether it is there and in order';
COMMENT ON COLUMN mlint.erasure_key.bytes IS 'Its size, which grows with what is destroyed here and there';
COMMENT ON COLUMN mlint.erasure_key.keys IS 'Data keys in this database';
COMMENT ON COLUMN mlint.erasure_key.destroyed IS 'Data keys of this database that were destroyed';
COMMENT ON COLUMN mlint.erasure_key.waiting IS 'Those among them that the job data_key_erase has yet to erase from the file';
COMMENT ON COLUMN mlint.erasure_key.waiting_since IS 'When the oldest of these was destroyed';
COMMENT ON COLUMN mlint.erasure_key.warning IS 'What should be done about it; null when all is well';

REVOKE ALL ON FUNCTION mlint.data_key_rewrap(bigint, integer),
	mlint.data_key_erase(), mlint.erasure_key_state() FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.data_key_erase_all() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.erasure_key_state() TO mlint_reader;
GRANT SELECT ON mlint.erasure_key TO mlint_reader;

REVOKE ALL ON FUNCTION
	mlint.secret_privileges(text),
	mlint.secret_put(text, text, text, text, jsonb, text),
	mlint.secret_put_bytes(text, bytea, text, text, jsonb, text),
	mlint.secret_get(text, integer, text), mlint.secret_get(text, text, text),
	mlint.secret_get_bytes(text, integer, text),
	mlint.secret_get_bytes(text, text, text),
	mlint.secret_versions(text, text), mlint.secret_destroy(text, integer),
	mlint.secret_drop(text, text),
	mlint.secret_alter(text, text, text, jsonb, text),
	mlint.secret_grant(text, text, text), mlint.secret_revoke(text, text, text),
	mlint.master_keys(boolean), mlint.master_key_rotate(),
	mlint.secret_rewrap(bigint, integer) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.secret_rewrap_all() FROM PUBLIC;
-- Each asks for the privilege on the secret itself.
GRANT EXECUTE ON FUNCTION
	mlint.secret_put(text, text, text, text, jsonb, text),
	mlint.secret_put_bytes(text, bytea, text, text, jsonb, text),
	mlint.secret_get(text, integer, text), mlint.secret_get(text, text, text),
	mlint.secret_get_bytes(text, integer, text),
	mlint.secret_get_bytes(text, text, text),
	mlint.secret_versions(text, text), mlint.secret_destroy(text, integer),
	mlint.secret_drop(text, text),
	mlint.secret_alter(text, text, text, jsonb, text),
	mlint.secret_grant(text, text, text), mlint.secret_revoke(text, text, text)
	TO mlint_user;
GRANT EXECUTE ON FUNCTION mlint.secret_privileges(text) TO mlint_user, mlint_reader;
GRANT EXECUTE ON FUNCTION mlint.master_keys(boolean) TO mlint_reader;
GRANT EXECUTE ON FUNCTION mlint.master_key_rotate() TO mlint_admin;
GRANT SELECT ON mlint.secrets, mlint.secret_grants TO mlint_user, mlint_reader;
GRANT SELECT ON mlint.master_key TO mlint_reader;

-- ---- backends ----

CREATE TABLE mlint.secret_backend (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_.-]{1,63}$' AND name <> 'local'),
	kind text NOT NULL,
	options jsonb NOT NULL CHECK (pg_catalog.jsonb_typeof(options) = 'object'),
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz
);
COMMENT ON TABLE mlint.secret_backend IS 'Systems that keep secrets for us, and how to reach them';
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_backend', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_backend_id_seq', '');

CREATE FUNCTION mlint.secret_backend_create(name text, kind text,
	options jsonb DEFAULT '{}') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_backend_create';
COMMENT ON FUNCTION mlint.secret_backend_create(text, text, jsonb) IS
	'Add a system that keeps secrets: mlint.secret_backend_kinds shows the kinds and their options';

CREATE FUNCTION mlint.secret_backend_alter(name text, options jsonb) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_backend_alter';
COMMENT ON FUNCTION mlint.secret_backend_alter(text, jsonb) IS
	'Change options of a secret backend; those not given stay, null takes one away';

CREATE FUNCTION mlint.secret_backend_drop(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_backend_drop';
COMMENT ON FUNCTION mlint.secret_backend_drop(text) IS
	'Forget a secret backend; what it keeps stays there';

CREATE FUNCTION mlint.secret_backend_test(name text) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_backend_test';
COMMENT ON FUNCTION mlint.secret_backend_test(text) IS
	'Log in to a secret backend and make a call that changes nothing; raises the error if that fails';

CREATE FUNCTION mlint.secret_cache_drop(backend text DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_cache_drop';
COMMENT ON FUNCTION mlint.secret_cache_drop(text) IS
	'Forget the values that were read from a secret backend, or from all';

-- The backends' part of mlint.secret_list().
CREATE FUNCTION mlint.secret_backend_list(backend text, prefix text) RETURNS SETOF text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_list';
COMMENT ON FUNCTION mlint.secret_backend_list(text, text) IS 'Behind mlint.secret_list()';

CREATE FUNCTION mlint.secret_list(backend text, prefix text DEFAULT '')
RETURNS TABLE (name text)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF backend = 'local' THEN
		RETURN QUERY SELECT s.name FROM mlint.secrets s
			WHERE starts_with(s.name, prefix) ORDER BY s.name;
	ELSE
		RETURN QUERY SELECT l FROM mlint.secret_backend_list(backend, prefix) l
			ORDER BY l COLLATE "C";
	END IF;
END
$$;
COMMENT ON FUNCTION mlint.secret_list(text, text) IS
	'The names of the secrets in a backend that begin with a prefix';

CREATE FUNCTION mlint.secret_refresh() RETURNS int
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_refresh';
COMMENT ON FUNCTION mlint.secret_refresh() IS
	'The job secret_refresh''s: reads again what dispatchers use from backends before it runs out, tells them what has changed, renews tokens; returns how many changed';

-- From the first use on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('secret_refresh', 'SELECT mlint.secret_refresh()', '1 minute', false);

CREATE FUNCTION mlint.secret_backend_options(OUT kind text, OUT option text,
	OUT type text, OUT "default" text, OUT bounds text, OUT required boolean,
	OUT help text) RETURNS SETOF record
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'mlint_secret_backend_options';
COMMENT ON FUNCTION mlint.secret_backend_options() IS 'Behind the view mlint.secret_backend_kinds';

CREATE VIEW mlint.secret_backend_kinds AS SELECT * FROM mlint.secret_backend_options();
COMMENT ON VIEW mlint.secret_backend_kinds IS 'Kinds of secret backends and the options that they take';
COMMENT ON COLUMN mlint.secret_backend_kinds.kind IS 'Name of the kind';
COMMENT ON COLUMN mlint.secret_backend_kinds.option IS 'Name of the option; group.option lies in an object of its own';
COMMENT ON COLUMN mlint.secret_backend_kinds.type IS 'Type of its value';
COMMENT ON COLUMN mlint.secret_backend_kinds."default" IS 'Value when it is not given; null: none';
COMMENT ON COLUMN mlint.secret_backend_kinds.bounds IS 'Range or choices';
COMMENT ON COLUMN mlint.secret_backend_kinds.required IS 'Whether it must be given';
COMMENT ON COLUMN mlint.secret_backend_kinds.help IS 'What it does';

CREATE FUNCTION mlint.secret_backend_state(backend int, OUT breaker text,
	OUT breaker_until timestamptz, OUT cached int, OUT hits bigint,
	OUT misses bigint, OUT stale bigint, OUT last_success_at timestamptz,
	OUT last_error text, OUT last_error_at timestamptz)
LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_secret_backend_state';
COMMENT ON FUNCTION mlint.secret_backend_state(int) IS 'Behind the view mlint.secret_backends';

CREATE VIEW mlint.secret_backends AS
SELECT b.name, b.kind, b.options, s.breaker, s.breaker_until, s.cached,
	s.hits, s.misses, s.stale, s.last_success_at, s.last_error,
	s.last_error_at, b.created_at, b.altered_at
FROM mlint.secret_backend b, LATERAL mlint.secret_backend_state(b.id) s;
COMMENT ON VIEW mlint.secret_backends IS 'Systems that keep secrets for us, and how they do; counters are since the server started';
COMMENT ON COLUMN mlint.secret_backends.name IS 'Name of the backend';
COMMENT ON COLUMN mlint.secret_backends.kind IS 'What sort of system it is';
COMMENT ON COLUMN mlint.secret_backends.options IS 'Its options; credentials appear as references only';
COMMENT ON COLUMN mlint.secret_backends.breaker IS 'Circuit breaker: closed, open or half-open';
COMMENT ON COLUMN mlint.secret_backends.breaker_until IS 'Open: when one call will be tried';
COMMENT ON COLUMN mlint.secret_backends.cached IS 'Values that are kept in memory, sealed';
COMMENT ON COLUMN mlint.secret_backends.hits IS 'Reads that a kept value answered';
COMMENT ON COLUMN mlint.secret_backends.misses IS 'Reads that went to the backend';
COMMENT ON COLUMN mlint.secret_backends.stale IS 'Reads among these that a kept value answered after its time, because the backend was down';
COMMENT ON COLUMN mlint.secret_backends.last_success_at IS 'When a call last succeeded';
COMMENT ON COLUMN mlint.secret_backends.last_error IS 'Why a call last failed';
COMMENT ON COLUMN mlint.secret_backends.last_error_at IS 'When that was';
COMMENT ON COLUMN mlint.secret_backends.created_at IS 'When the backend was created';
COMMENT ON COLUMN mlint.secret_backends.altered_at IS 'When its options were last changed';

REVOKE ALL ON FUNCTION
	mlint.secret_backend_create(text, text, jsonb),
	mlint.secret_backend_alter(text, jsonb), mlint.secret_backend_drop(text),
	mlint.secret_backend_test(text), mlint.secret_cache_drop(text),
	mlint.secret_backend_list(text, text), mlint.secret_list(text, text),
	mlint.secret_refresh(), mlint.secret_backend_options(),
	mlint.secret_backend_state(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.secret_backend_create(text, text, jsonb),
	mlint.secret_backend_alter(text, jsonb), mlint.secret_backend_drop(text),
	mlint.secret_backend_test(text), mlint.secret_cache_drop(text),
	mlint.secret_backend_list(text, text), mlint.secret_list(text, text)
	TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.secret_backend_options(),
	mlint.secret_backend_state(int) TO mlint_reader;
GRANT SELECT ON mlint.secret_backend_kinds, mlint.secret_backends TO mlint_reader;
