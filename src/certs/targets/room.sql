-- certs/targets: where certificates are used, and what is really served there.

CREATE TABLE mlint.certificate_target (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	certificate_id uuid NOT NULL REFERENCES mlint.certificate ON DELETE CASCADE,
	name text COLLATE "C" NOT NULL,
	kind text NOT NULL,
	options jsonb NOT NULL,
	strategy text NOT NULL CHECK (strategy IN ('sync', 'async')),
	created_by mlint.role_id NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz,
	UNIQUE (certificate_id, name)
);
COMMENT ON TABLE mlint.certificate_target IS 'Where certificates are pushed to';

-- A target has one region, '', or several. What it serves is version_id; what it
-- should serve follows from the certificate. Before a version leaves, pushing_id
-- says so: one that a crash leaves there may have arrived.
CREATE TABLE mlint.certificate_region (
	target_id int NOT NULL REFERENCES mlint.certificate_target ON DELETE CASCADE,
	region text COLLATE "C" NOT NULL,
	version_id bigint REFERENCES mlint.certificate_version ON DELETE SET NULL,
	pushing_id bigint REFERENCES mlint.certificate_version ON DELETE SET NULL,
	-- What the peer calls it: an ARN, a certificate's id, a path.
	reference text,
	pushed_at timestamptz,
	-- When to push whatever is there; null: when there is another version.
	next_at timestamptz DEFAULT pg_catalog.clock_timestamp(),
	attempts int NOT NULL DEFAULT 0,
	error text,
	PRIMARY KEY (target_id, region)
);
COMMENT ON TABLE mlint.certificate_region IS 'Which region of a target serves which version of a certificate';

-- Who is seen to serve what.
CREATE TABLE mlint.certificate_watch (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	certificate_id uuid NOT NULL REFERENCES mlint.certificate ON DELETE CASCADE,
	host text NOT NULL,
	port int NOT NULL CHECK (port BETWEEN 1 AND 65535),
	protocol text NOT NULL CHECK (protocol IN ('tls', 'postgres')),
	server_name text,
	every interval NOT NULL CHECK (every > '0'),
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	next_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	checked_at timestamptz,
	served_serial text,
	served_fingerprint bytea,
	served_not_after timestamptz,
	-- What is to be said of the chain that is sent with it.
	note text,
	-- Since when another certificate is served than should be, and the last
	-- such of which certificate.mismatch was published.
	differs_since timestamptz,
	told_fingerprint bytea,
	error text,
	UNIQUE (certificate_id, host, port)
);
COMMENT ON TABLE mlint.certificate_watch IS 'Servers that are looked at for the certificate that they really serve';

SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_target', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_target_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_region', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_watch', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_watch_id_seq', '');

-- Also after a restore.
CREATE TRIGGER job_enable AFTER INSERT ON mlint.certificate_target
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('certificate_targets');
ALTER TABLE mlint.certificate_target ENABLE ALWAYS TRIGGER job_enable;
CREATE TRIGGER job_enable AFTER INSERT ON mlint.certificate_watch
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('certificate_watches');
ALTER TABLE mlint.certificate_watch ENABLE ALWAYS TRIGGER job_enable;

CREATE FUNCTION mlint.certificate_target_create(certificate uuid, kind text,
	options jsonb DEFAULT '{}', strategy text DEFAULT 'async',
	name text DEFAULT NULL) RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_target_create';
COMMENT ON FUNCTION mlint.certificate_target_create(uuid, text, jsonb, text, text) IS
	'Have a certificate pushed to a place now and at each renewal; returns the target''s name, by default the kind''s';

CREATE FUNCTION mlint.certificate_target_alter(certificate uuid, name text,
	options jsonb DEFAULT '{}', strategy text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_target_alter';
COMMENT ON FUNCTION mlint.certificate_target_alter(uuid, text, jsonb, text) IS
	'Change options of a target; null takes one away; what failed is tried again at once';

CREATE FUNCTION mlint.certificate_target_drop(certificate uuid, name text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_target_drop';
COMMENT ON FUNCTION mlint.certificate_target_drop(uuid, text) IS
	'Push a certificate there no more; what is there stays there';

CREATE FUNCTION mlint.certificate_target_options(OUT kind text, OUT option text,
	OUT type text, OUT "default" text, OUT bounds text, OUT required boolean,
	OUT help text) RETURNS SETOF record
	LANGUAGE c IMMUTABLE PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_target_options';
COMMENT ON FUNCTION mlint.certificate_target_options() IS 'Behind the view mlint.certificate_target_kinds';

CREATE VIEW mlint.certificate_target_kinds AS SELECT * FROM mlint.certificate_target_options();
COMMENT ON VIEW mlint.certificate_target_kinds IS 'Kinds of places that certificates are pushed to, and the options that they take';
COMMENT ON COLUMN mlint.certificate_target_kinds.kind IS 'Name of the kind';
COMMENT ON COLUMN mlint.certificate_target_kinds.option IS 'Name of the option; group.option lies in an object of its own';
COMMENT ON COLUMN mlint.certificate_target_kinds.type IS 'Type of its value';
COMMENT ON COLUMN mlint.certificate_target_kinds."default" IS 'Value when it is not given; null: none';
COMMENT ON COLUMN mlint.certificate_target_kinds.bounds IS 'Range or choices';
COMMENT ON COLUMN mlint.certificate_target_kinds.required IS 'Whether it must be given';
COMMENT ON COLUMN mlint.certificate_target_kinds.help IS 'What it does';

-- Regions, and the version that each should serve: one that is not in use yet
-- goes to those that must have it first.
CREATE VIEW mlint.certificate_push AS
SELECT r.target_id, r.region, t.certificate_id, t.strategy = 'sync' AS sync,
	CASE WHEN t.strategy = 'sync' THEN coalesce(c.next_version_id, c.version_id)
		ELSE c.version_id END AS wanted_id,
	r.version_id, r.pushing_id, r.next_at
FROM mlint.certificate_region r
JOIN mlint.certificate_target t ON t.id = r.target_id
JOIN mlint.certificate c ON c.id = t.certificate_id;
COMMENT ON VIEW mlint.certificate_push IS 'The job certificate_targets''s: what each region should serve';
COMMENT ON COLUMN mlint.certificate_push.target_id IS 'The target';
COMMENT ON COLUMN mlint.certificate_push.region IS 'Its region';
COMMENT ON COLUMN mlint.certificate_push.certificate_id IS 'The certificate';
COMMENT ON COLUMN mlint.certificate_push.sync IS 'Whether the target must have a version before it is in use';
COMMENT ON COLUMN mlint.certificate_push.wanted_id IS 'The version that it should serve; null: there is none yet';
COMMENT ON COLUMN mlint.certificate_push.version_id IS 'The version that it serves';
COMMENT ON COLUMN mlint.certificate_push.pushing_id IS 'The version that was last on its way there';
COMMENT ON COLUMN mlint.certificate_push.next_at IS 'When to push whatever is there; null: when there is another version';

CREATE VIEW mlint.certificate_targets AS
SELECT p.certificate_id AS certificate, c.name AS certificate_name, t.name,
	t.kind, t.options, t.strategy, p.region,
	CASE WHEN p.wanted_id IS NULL THEN 'waiting'
		WHEN p.version_id IS NOT DISTINCT FROM p.wanted_id AND r.error IS NULL
			THEN 'serving'
		WHEN r.error IS NOT NULL THEN 'failing'
		ELSE 'pending' END AS state,
	has.serial AS serves, wanted.serial AS should_serve,
	p.version_id IS NOT DISTINCT FROM p.wanted_id AS agrees,
	r.reference, r.pushed_at, r.attempts, r.error,
	CASE WHEN p.wanted_id IS NOT NULL THEN r.next_at END AS next_at,
	t.created_at, t.altered_at
FROM mlint.certificate_push p
JOIN mlint.certificate_region r USING (target_id, region)
JOIN mlint.certificate_target t ON t.id = p.target_id
JOIN mlint.certificate c ON c.id = p.certificate_id
LEFT JOIN mlint.certificate_version has ON has.id = p.version_id
LEFT JOIN mlint.certificate_version wanted ON wanted.id = p.wanted_id;
COMMENT ON VIEW mlint.certificate_targets IS 'Where certificates are pushed to, a row for each region: which serves which';
COMMENT ON COLUMN mlint.certificate_targets.certificate IS 'Id of the certificate';
COMMENT ON COLUMN mlint.certificate_targets.certificate_name IS 'Its name';
COMMENT ON COLUMN mlint.certificate_targets.name IS 'Name of the target, among those of the certificate';
COMMENT ON COLUMN mlint.certificate_targets.kind IS 'What sort of place it is';
COMMENT ON COLUMN mlint.certificate_targets.options IS 'Its options; credentials appear as references only';
COMMENT ON COLUMN mlint.certificate_targets.strategy IS 'sync: it must have a certificate before that is in use; async: after';
COMMENT ON COLUMN mlint.certificate_targets.region IS 'Region, or vault; empty where a target has but one';
COMMENT ON COLUMN mlint.certificate_targets.state IS 'waiting (there is no certificate yet), pending (it is to be pushed), failing (it could not be, and is tried again), or serving';
COMMENT ON COLUMN mlint.certificate_targets.serves IS 'Serial of the certificate that was last pushed there; null: none was';
COMMENT ON COLUMN mlint.certificate_targets.should_serve IS 'Serial of the one that should be there';
COMMENT ON COLUMN mlint.certificate_targets.agrees IS 'Whether these are the same';
COMMENT ON COLUMN mlint.certificate_targets.reference IS 'What it is called there: an ARN, an id, a path';
COMMENT ON COLUMN mlint.certificate_targets.pushed_at IS 'When it was last pushed';
COMMENT ON COLUMN mlint.certificate_targets.attempts IS 'Attempts in a row that failed';
COMMENT ON COLUMN mlint.certificate_targets.error IS 'Why the last failed';
COMMENT ON COLUMN mlint.certificate_targets.next_at IS 'When it is tried again';
COMMENT ON COLUMN mlint.certificate_targets.created_at IS 'When the target was created';
COMMENT ON COLUMN mlint.certificate_targets.altered_at IS 'When its options were last changed';

CREATE VIEW mlint.certificate_watches AS
SELECT w.certificate_id AS certificate, c.name AS certificate_name, w.host,
	w.port, w.protocol, w.server_name, w.every,
	CASE WHEN w.error IS NOT NULL THEN 'unreachable'
		WHEN w.checked_at IS NULL OR v.id IS NULL
			OR w.checked_at < v.activated_at THEN 'waiting'
		WHEN w.served_fingerprint IS DISTINCT FROM v.fingerprint THEN 'differs'
		ELSE 'agrees' END AS state,
	w.served_serial AS serves, v.serial AS should_serve,
	w.served_not_after, w.differs_since, w.note, w.checked_at, w.error,
	w.next_at
FROM mlint.certificate_watch w
JOIN mlint.certificate c ON c.id = w.certificate_id
LEFT JOIN mlint.certificate_version v ON v.id = c.version_id;
COMMENT ON VIEW mlint.certificate_watches IS 'Servers that are looked at for the certificate that they really serve';
COMMENT ON COLUMN mlint.certificate_watches.certificate IS 'Id of the certificate';
COMMENT ON COLUMN mlint.certificate_watches.certificate_name IS 'Its name';
COMMENT ON COLUMN mlint.certificate_watches.host IS 'The server';
COMMENT ON COLUMN mlint.certificate_watches.port IS 'Its port';
COMMENT ON COLUMN mlint.certificate_watches.protocol IS 'tls: from the start; postgres: as PostgreSQL begins it';
COMMENT ON COLUMN mlint.certificate_watches.server_name IS 'Name that it is asked for (SNI); null: the host';
COMMENT ON COLUMN mlint.certificate_watches.every IS 'Time between two looks';
COMMENT ON COLUMN mlint.certificate_watches.state IS 'waiting (for the first look at the certificate in use, or for one), agrees, differs, or unreachable';
COMMENT ON COLUMN mlint.certificate_watches.serves IS 'Serial of the certificate that was last seen';
COMMENT ON COLUMN mlint.certificate_watches.should_serve IS 'Serial of the certificate in use';
COMMENT ON COLUMN mlint.certificate_watches.served_not_after IS 'When the one that was seen expires';
COMMENT ON COLUMN mlint.certificate_watches.differs_since IS 'When another certificate than the one in use was first seen; null: the last look saw the one in use';
COMMENT ON COLUMN mlint.certificate_watches.note IS 'What is to be said of the chain that the server sends with it';
COMMENT ON COLUMN mlint.certificate_watches.checked_at IS 'When it was last looked at';
COMMENT ON COLUMN mlint.certificate_watches.error IS 'Why nothing could be seen';
COMMENT ON COLUMN mlint.certificate_watches.next_at IS 'When it is looked at next';

CREATE FUNCTION mlint.certificate_watch_create(certificate uuid, host text,
	port int DEFAULT 443, protocol text DEFAULT 'tls',
	server_name text DEFAULT NULL, every interval DEFAULT '1 hour') RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_watch_create';
COMMENT ON FUNCTION mlint.certificate_watch_create(uuid, text, int, text, text, interval) IS
	'Look from time to time which certificate a server really serves, by TLS from the start or as PostgreSQL does';

CREATE FUNCTION mlint.certificate_watch_drop(certificate uuid, host text,
	port int DEFAULT 443) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_watch_drop';
COMMENT ON FUNCTION mlint.certificate_watch_drop(uuid, text, int) IS
	'Look no more what a server serves';

CREATE PROCEDURE mlint.certificate_target_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_certificate_target_run';
COMMENT ON PROCEDURE mlint.certificate_target_run() IS
	'The job certificate_targets: pushes certificates to where they should be';
CREATE PROCEDURE mlint.certificate_watch_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_certificate_watch_run';
COMMENT ON PROCEDURE mlint.certificate_watch_run() IS
	'The job certificate_watches: looks at what is served';
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('certificate_targets', 'CALL mlint.certificate_target_run()', '1 minute', false),
	('certificate_watches', 'CALL mlint.certificate_watch_run()', '5 minutes', false);

INSERT INTO mlint.event_type VALUES
	('certificate.mismatch', 'A watched server serves another certificate than it should'),
	('certificate.pushed', 'For the destination of a certificate target: the certificate to use from now on');

REVOKE ALL ON FUNCTION
	mlint.certificate_target_create(uuid, text, jsonb, text, text),
	mlint.certificate_target_alter(uuid, text, jsonb, text),
	mlint.certificate_target_drop(uuid, text),
	mlint.certificate_target_options(),
	mlint.certificate_watch_create(uuid, text, int, text, text, interval),
	mlint.certificate_watch_drop(uuid, text, int) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.certificate_target_run(), mlint.certificate_watch_run() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.certificate_target_create(uuid, text, jsonb, text, text),
	mlint.certificate_target_alter(uuid, text, jsonb, text),
	mlint.certificate_target_drop(uuid, text),
	mlint.certificate_watch_create(uuid, text, int, text, text, interval),
	mlint.certificate_watch_drop(uuid, text, int) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.certificate_target_options() TO mlint_reader;
GRANT SELECT ON mlint.certificate_target_kinds, mlint.certificate_targets,
	mlint.certificate_watches TO mlint_reader;
