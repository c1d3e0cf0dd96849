-- secrets: the local store, sealed under a master key that is in no table.

CREATE TABLE mlint.master_key (
	id integer PRIMARY KEY CHECK (id > 0),
	check_value bytea NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);

COMMENT ON TABLE mlint.master_key IS
	'The master keys that data keys are wrapped with: not the keys, only what they are recognized by';

CREATE TABLE mlint.secret (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_./-]{1,255}$'),
	version integer NOT NULL DEFAULT 1 CHECK (version > 0),
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);

COMMENT ON TABLE mlint.secret IS 'The secrets by name, with the current version';

CREATE TABLE mlint.secret_version (
	secret_id bigint NOT NULL REFERENCES mlint.secret ON DELETE CASCADE,
	version integer NOT NULL CHECK (version > 0),
	key_id integer NOT NULL REFERENCES mlint.master_key,
	wrapped_key bytea NOT NULL,
	sealed bytea NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	PRIMARY KEY (secret_id, version)
);

COMMENT ON TABLE mlint.secret_version IS
	'The versions of the secrets: each value sealed under a data key, and that wrapped with master key key_id';

-- pg_dump takes the rows along: they open where the same master key is.
SELECT pg_catalog.pg_extension_config_dump('mlint.master_key', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_version', '');

CREATE VIEW mlint.secrets AS
SELECT s.name, s.version,
	(SELECT pg_catalog.count(*) FROM mlint.secret_version v
	 WHERE v.secret_id = s.id) AS versions,
	s.created_at, s.updated_at
FROM mlint.secret s;

COMMENT ON VIEW mlint.secrets IS 'The secrets that are stored, without their values';
COMMENT ON COLUMN mlint.secrets.name IS 'Name of the secret';
COMMENT ON COLUMN mlint.secrets.version IS 'Current version, the one that is used where none is named';
COMMENT ON COLUMN mlint.secrets.versions IS 'How many versions are kept';
COMMENT ON COLUMN mlint.secrets.created_at IS 'When the first version was stored';
COMMENT ON COLUMN mlint.secrets.updated_at IS 'When the current version was stored';

CREATE FUNCTION mlint.secret_put(name text, value text) RETURNS integer
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_put';

COMMENT ON FUNCTION mlint.secret_put(text, text) IS
	'Store a value as a new version of a secret, and return the version; give the value as a bind parameter';

CREATE FUNCTION mlint.secret_get(name text, version integer DEFAULT NULL) RETURNS text
	LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000
	AS 'MODULE_PATHNAME', 'mlint_secret_get';

COMMENT ON FUNCTION mlint.secret_get(text, integer) IS
	'The value of a secret, of the current version unless another is named';

CREATE FUNCTION mlint.secret_drop(name text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_drop';

COMMENT ON FUNCTION mlint.secret_drop(text) IS 'Remove a secret with all its versions';

REVOKE ALL ON FUNCTION mlint.secret_put(text, text),
	mlint.secret_get(text, integer), mlint.secret_drop(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.secret_put(text, text),
	mlint.secret_get(text, integer), mlint.secret_drop(text) TO mlint_admin;
GRANT SELECT ON mlint.secrets TO mlint_reader;

