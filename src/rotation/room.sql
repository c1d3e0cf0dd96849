-- rotation: secrets that change by themselves.

-- The state is how far the version being tried has got: generated (stored, and
-- nobody was told), applying (the target has it, or not), verifying (the target
-- has it), restoring (the target may have it, and is to have the current one).
CREATE TABLE mlint.secret_rotation (
	secret_id bigint PRIMARY KEY REFERENCES mlint.secret ON DELETE CASCADE,
	owner mlint.role_id NOT NULL,
	every interval NOT NULL CHECK (every > '0'),
	generator jsonb NOT NULL,
	apply jsonb,
	verify jsonb,
	grace interval NOT NULL CHECK (grace >= '0'),
	warn_before interval NOT NULL CHECK (warn_before >= '0'),
	on_failure jsonb NOT NULL,
	state text NOT NULL DEFAULT 'idle'
		CHECK (state IN ('idle', 'generated', 'applying', 'verifying', 'restoring')),
	paused boolean NOT NULL DEFAULT false,
	version int CHECK ((version IS NULL) = (state = 'idle')),
	old_version int CHECK ((old_version IS NULL) = (state = 'idle')),
	event_id bigint,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	next_at timestamptz NOT NULL,
	last_rotated_at timestamptz,
	overlap_until timestamptz,
	failures int NOT NULL DEFAULT 0,
	last_error text,
	warned_version int
);
COMMENT ON TABLE mlint.secret_rotation IS 'Which secrets are rotated, how, and how far that has got';
-- A copy must not change the passwords of what it was copied from, unasked.
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_rotation', $$WHERE false
	UNION ALL SELECT secret_id, owner, every, generator, apply, verify, grace,
		warn_before, on_failure, state, true, version, old_version, event_id,
		created_at, next_at, last_rotated_at, overlap_until, failures, last_error,
		warned_version
	FROM mlint.secret_rotation$$);

CREATE TABLE mlint.secret_public_key (
	secret_id bigint NOT NULL REFERENCES mlint.secret ON DELETE CASCADE,
	version int NOT NULL,
	public_key text NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	PRIMARY KEY (secret_id, version)
);
COMMENT ON TABLE mlint.secret_public_key IS 'The public parts of key pairs that rotation generated';
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_public_key', '');

INSERT INTO mlint.event_type VALUES
	('secret.rotated', 'A secret has a new current version'),
	('secret.rotation_failed', 'A rotation failed; the version before stays current'),
	('secret.expiring', 'A secret''s rotation is due soon, or overdue'),
	('secret.apply', 'For the destination of a rotation: the version of a secret to use from now on');

-- As in mlint.secrets, nothing but these conditions chooses among names.
CREATE VIEW mlint.rotations WITH (security_barrier) AS
SELECT s.name, CASE WHEN r.paused THEN 'paused' ELSE r.state END AS state,
	r.every, r.last_rotated_at, r.next_at, r.failures, r.last_error,
	CASE WHEN r.state <> 'idle' THEN r.state END AS step,
	s.version AS current_version, r.version AS trying_version,
	r.overlap_until, r.generator, r.apply, r.verify, r.grace, r.warn_before,
	r.on_failure, nullif(r.owner::text, '') AS owner, r.created_at
FROM mlint.secret_rotation r
JOIN (SELECT a.id, a.name, a.version,
		mlint.secret_privileges(a.name) AS privileges
	FROM mlint.secret a OFFSET 0) s ON s.id = r.secret_id
WHERE s.privileges <> '{}';
COMMENT ON VIEW mlint.rotations IS 'The secrets that are rotated, of those that the current user may do something with';
COMMENT ON COLUMN mlint.rotations.name IS 'Name of the secret';
COMMENT ON COLUMN mlint.rotations.state IS 'idle, paused, or the step that is to come: generated, applying, verifying, restoring';
COMMENT ON COLUMN mlint.rotations.every IS 'Time from one rotation to the next';
COMMENT ON COLUMN mlint.rotations.last_rotated_at IS 'When a new version last became current';
COMMENT ON COLUMN mlint.rotations.next_at IS 'When the next rotation, or the next attempt, is due';
COMMENT ON COLUMN mlint.rotations.failures IS 'Attempts in a row that failed';
COMMENT ON COLUMN mlint.rotations.last_error IS 'Why the last attempt failed; null after one that succeeded';
COMMENT ON COLUMN mlint.rotations.step IS 'As state, and also while paused; null when nothing is under way';
COMMENT ON COLUMN mlint.rotations.current_version IS 'Current version of the secret';
COMMENT ON COLUMN mlint.rotations.trying_version IS 'Version that is being applied; null when nothing is under way';
COMMENT ON COLUMN mlint.rotations.overlap_until IS 'Until then the version before the current one is valid too';
COMMENT ON COLUMN mlint.rotations.generator IS 'How values are made';
COMMENT ON COLUMN mlint.rotations.apply IS 'How a new value gets to where it is used';
COMMENT ON COLUMN mlint.rotations.verify IS 'How it is found out that it works there';
COMMENT ON COLUMN mlint.rotations.grace IS 'How long a version stays valid beside its successor';
COMMENT ON COLUMN mlint.rotations.warn_before IS 'How long before it is due secret.expiring is published';
COMMENT ON COLUMN mlint.rotations.on_failure IS 'When a failed attempt is made again';
COMMENT ON COLUMN mlint.rotations.owner IS 'Role that set the rotation, as which functions run; null when that is gone';
COMMENT ON COLUMN mlint.rotations.created_at IS 'When the rotation was first set';

CREATE VIEW mlint.secret_public_keys WITH (security_barrier) AS
SELECT s.name, k.version, k.version = s.version AS current, k.public_key,
	k.created_at
FROM mlint.secret_public_key k
JOIN (SELECT a.id, a.name, a.version,
		mlint.secret_privileges(a.name) AS privileges
	FROM mlint.secret a OFFSET 0) s ON s.id = k.secret_id
WHERE s.privileges <> '{}';
COMMENT ON VIEW mlint.secret_public_keys IS 'The public parts of key pairs that rotation generated, of secrets that the current user may do something with';
COMMENT ON COLUMN mlint.secret_public_keys.name IS 'Name of the secret that holds the private part';
COMMENT ON COLUMN mlint.secret_public_keys.version IS 'Its version';
COMMENT ON COLUMN mlint.secret_public_keys.current IS 'Whether that is the current version';
COMMENT ON COLUMN mlint.secret_public_keys.public_key IS 'SubjectPublicKeyInfo, PEM';
COMMENT ON COLUMN mlint.secret_public_keys.created_at IS 'When the pair was generated';

CREATE FUNCTION mlint.secret_rotation_set(name text, every interval,
	generator jsonb DEFAULT '{"kind": "password"}', apply jsonb DEFAULT NULL,
	verify jsonb DEFAULT NULL, grace interval DEFAULT '24 hours',
	on_failure jsonb DEFAULT '{}', warn_before interval DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rotation_set';
COMMENT ON FUNCTION mlint.secret_rotation_set(text, interval, jsonb, jsonb, jsonb, interval, jsonb, interval) IS
	'Have a secret rotated: a new value is generated, applied where it is used, verified there, and made current. Functions that it names run as the role that set it';

CREATE FUNCTION mlint.secret_rotation_drop(name text, force boolean DEFAULT false) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rotation_drop';
COMMENT ON FUNCTION mlint.secret_rotation_drop(text, boolean) IS
	'Rotate a secret no more; with force also while a new value may have been applied that is not current';

CREATE FUNCTION mlint.secret_rotate(name text) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rotate';
COMMENT ON FUNCTION mlint.secret_rotate(text) IS
	'Rotate a secret now, when the transaction commits, or go on with a rotation that is paused or waits for its next attempt';

CREATE FUNCTION mlint.secret_rotate_wait(name text, timeout interval) RETURNS boolean
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rotate_wait';
COMMENT ON FUNCTION mlint.secret_rotate_wait(text, interval) IS
	'Wait until nothing of a secret''s rotation is due or under way; whether the last attempt succeeded, false also when the timeout passed first. In a transaction after that of mlint.secret_rotate';

CREATE PROCEDURE mlint.secret_rotation_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_secret_rotation_run';
COMMENT ON PROCEDURE mlint.secret_rotation_run() IS
	'The job secret_rotation: takes each rotation that is due step by step, each in a transaction of its own';
-- From the first use on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('secret_rotation', 'CALL mlint.secret_rotation_run()', '1 minute', false);
CREATE TRIGGER job_enable AFTER INSERT ON mlint.secret_rotation
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('secret_rotation');
ALTER TABLE mlint.secret_rotation ENABLE ALWAYS TRIGGER job_enable;

REVOKE ALL ON FUNCTION
	mlint.secret_rotation_set(text, interval, jsonb, jsonb, jsonb, interval, jsonb, interval),
	mlint.secret_rotation_drop(text, boolean), mlint.secret_rotate(text),
	mlint.secret_rotate_wait(text, interval) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.secret_rotation_run() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.secret_rotation_set(text, interval, jsonb, jsonb, jsonb, interval, jsonb, interval),
	mlint.secret_rotation_drop(text, boolean), mlint.secret_rotate(text),
	mlint.secret_rotate_wait(text, interval) TO mlint_user;
GRANT SELECT ON mlint.rotations, mlint.secret_public_keys TO mlint_user, mlint_reader;
