-- certs: certificates, from whom they come, and how long they are good.

-- Who we are to a certificate authority. The account's key is the secret
-- key_secret in version key_version; new_key_version is what a rollover is on
-- its way to.
CREATE TABLE mlint.acme_account (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_.-]{1,63}$'),
	directory_url text NOT NULL,
	email text,
	eab jsonb,
	ca jsonb,
	key_secret text NOT NULL,
	key_version int,
	new_key_version int,
	status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending',
		'valid', 'failed', 'deactivating', 'deactivated')),
	url text,
	orders_url text,
	directory jsonb,
	directory_at timestamptz,
	-- No more than max_orders new orders in any window of this length.
	max_orders int NOT NULL CHECK (max_orders > 0),
	max_orders_per interval NOT NULL CHECK (max_orders_per > '0'),
	-- The server has asked to be left alone until then.
	not_before timestamptz NOT NULL DEFAULT '-infinity',
	-- When something is to be done about the account itself; null: nothing is.
	next_at timestamptz DEFAULT pg_catalog.clock_timestamp(),
	attempts int NOT NULL DEFAULT 0,
	error text,
	created_by mlint.role_id NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE mlint.acme_account IS 'Accounts at certificate authorities that speak ACME (RFC 8555)';

CREATE TABLE mlint.certificate (
	id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_.-]{1,200}$'),
	-- As they are in the certificate: lower case, A-labels, no final dot.
	domains text[] NOT NULL CHECK (pg_catalog.cardinality(domains) > 0),
	-- null: imported.
	account_id int REFERENCES mlint.acme_account,
	challenge text CHECK (challenge IN ('http-01', 'dns-01')),
	solver text,
	key_type text CHECK (key_type IN ('ec256', 'ec384', 'rsa2048', 'rsa4096')),
	auto_renew boolean NOT NULL,
	reuse_key boolean NOT NULL DEFAULT false,
	renew_before interval CHECK (renew_before > '0'),
	state text NOT NULL CHECK (state IN ('REQUESTED', 'ISSUING', 'ISSUED',
		'ACTIVE', 'RENEWING', 'FAILED', 'REVOKED', 'EXPIRED')),
	key_secret text NOT NULL,
	-- What is in use, and what waits to be: for targets that must have it first.
	-- No foreign keys: a dump restores one table after the other, and those two
	-- refer to each other.
	version_id bigint,
	next_version_id bigint,
	-- When the next order is to begin, or since when it waits for the limits of
	-- the account; null: one is under way, or there will be none.
	due_at timestamptz,
	-- When to ask the server for its renewal window (RFC 9773); null: never.
	ari_at timestamptz,
	-- The smallest number of days left that was told of in certificate.expiring.
	warned_days int,
	attempts int NOT NULL DEFAULT 0,
	error text,
	error_at timestamptz,
	created_by mlint.role_id NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	state_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	CHECK ((account_id IS NULL) = (challenge IS NULL))
);
COMMENT ON TABLE mlint.certificate IS 'Certificates that are kept valid, or watched';
-- What is to be ordered: renewals, and then what nobody has yet.
CREATE INDEX certificate_due_renewal ON mlint.certificate (account_id, due_at)
	WHERE due_at IS NOT NULL AND version_id IS NOT NULL;
CREATE INDEX certificate_due_first ON mlint.certificate (account_id, due_at)
	WHERE due_at IS NOT NULL AND version_id IS NULL;
CREATE INDEX certificate_ari ON mlint.certificate (ari_at) WHERE ari_at IS NOT NULL;

-- Each that was issued or imported. The key is version key_version of the
-- certificate's secret.
CREATE TABLE mlint.certificate_version (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	certificate_id uuid NOT NULL REFERENCES mlint.certificate ON DELETE CASCADE,
	serial text NOT NULL,
	fingerprint bytea NOT NULL,
	issuer text NOT NULL,
	subject text NOT NULL,
	names text[] NOT NULL,
	key_type text NOT NULL,
	not_before timestamptz NOT NULL,
	not_after timestamptz NOT NULL,
	-- PEM, the leaf first.
	chain text NOT NULL,
	key_version int NOT NULL,
	-- For RFC 9773; null when the certificate lacks what it is made of.
	ari_id text,
	ari_start timestamptz,
	ari_end timestamptz,
	ari_url text,
	issued_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	activated_at timestamptz,
	replaced_at timestamptz,
	-- Its key was destroyed, or is another version's too.
	key_gone boolean NOT NULL DEFAULT false,
	-- Its key is in other hands, whatever became of its revocation.
	key_compromised boolean NOT NULL DEFAULT false,
	-- A revocation is asked for, and has been done.
	revoke_reason int CHECK (revoke_reason IN (0, 1, 3, 4, 5)),
	revoke_at timestamptz,
	revoked_at timestamptz
);
CREATE INDEX certificate_version_certificate ON mlint.certificate_version (certificate_id, id);
-- Those whose keys may be destroyed, when they have expired.
CREATE INDEX certificate_version_key ON mlint.certificate_version (not_after)
	WHERE replaced_at IS NOT NULL AND NOT key_gone;
-- Revocations that are still to be done.
CREATE INDEX certificate_version_revoke ON mlint.certificate_version (revoke_at)
	WHERE revoke_at IS NOT NULL AND revoked_at IS NULL;
COMMENT ON TABLE mlint.certificate_version IS 'Every certificate that was issued or imported: the history of mlint.certificate';

-- One order, from the decision to its end. Before a request that must not be
-- made twice is sent, state says so: an order that a crash leaves "ordering" is
-- looked for at the server before another is made.
CREATE TABLE mlint.acme_order (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	-- null: the certificate was dropped; the order is finished then, and is kept
	-- because it counts.
	certificate_id uuid REFERENCES mlint.certificate ON DELETE SET NULL,
	account_id int NOT NULL REFERENCES mlint.acme_account,
	state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'ordering',
		'authorizing', 'ready', 'finalizing', 'processing', 'downloading',
		'issued', 'failed')),
	key_version int,
	-- The ari_id of the certificate that this one takes the place of.
	replaces text,
	url text,
	finalize_url text,
	certificate_url text,
	expires_at timestamptz,
	next_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	-- Failures in a row of the present step; polls are none.
	attempts int NOT NULL DEFAULT 0,
	polls int NOT NULL DEFAULT 0,
	problem text,
	error text,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	-- When newOrder was first sent: what counts for max_orders.
	ordered_at timestamptz,
	finished_at timestamptz
);
COMMENT ON TABLE mlint.acme_order IS 'Orders at certificate authorities, and how far they are';
-- A certificate has one order at a time.
CREATE UNIQUE INDEX acme_order_open ON mlint.acme_order (certificate_id)
	WHERE finished_at IS NULL;
-- What the job takes up next.
CREATE INDEX acme_order_next ON mlint.acme_order (next_at) WHERE finished_at IS NULL;
-- How many were made lately.
CREATE INDEX acme_order_account ON mlint.acme_order (account_id, ordered_at);
-- The last of a certificate.
CREATE INDEX acme_order_certificate ON mlint.acme_order (certificate_id, id);

-- The proof of one name: what the server knows of it is status, and whether
-- what it looks for is there is presence. presence moves on to 'presenting'
-- before a solver is called, so that after a crash it is known what may have
-- been made and must be removed. So the row outlives its order, and has with it
-- all that removing takes.
CREATE TABLE mlint.acme_challenge (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	-- null: the order is gone.
	order_id bigint REFERENCES mlint.acme_order ON DELETE SET NULL,
	authorization_url text NOT NULL,
	-- null until the authorization was read.
	identifier text,
	type text,
	url text,
	token text,
	-- What is shown: the key authorization, or its digest (dns-01).
	value text,
	status text NOT NULL DEFAULT 'new' CHECK (status IN ('new', 'waiting',
		'answered', 'valid', 'invalid', 'given up')),
	presence text NOT NULL DEFAULT 'none' CHECK (presence IN ('none',
		'wanted', 'presenting', 'checking', 'present', 'removing', 'removed')),
	-- Who shows it, and as whom; null: the gateway, or it is not known yet.
	solver text,
	owner mlint.role_id,
	-- Where and how the solver has made it, for removing it again.
	made jsonb,
	-- When the solver goes on; infinity: it has given up removing.
	next_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	wanted_at timestamptz,
	presented_at timestamptz,
	attempts int NOT NULL DEFAULT 0,
	-- When the authority is asked or told next, if it is its turn, and how often
	-- it was asked; attempts at that which failed in a row. infinity: it is over.
	poll_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	polls int NOT NULL DEFAULT 0,
	poll_attempts int NOT NULL DEFAULT 0,
	-- Why it is not proven; what the solver's present step waits for, or last
	-- failed with.
	error text,
	solver_error text,
	UNIQUE (order_id, authorization_url)
);
COMMENT ON TABLE mlint.acme_challenge IS 'What proves the control of each name of an order';
-- What solvers have to do.
CREATE INDEX acme_challenge_solve ON mlint.acme_challenge (next_at)
	WHERE presence IN ('wanted', 'presenting', 'checking', 'present', 'removing');
-- Whose turn at the authority it is.
CREATE INDEX acme_challenge_poll ON mlint.acme_challenge (poll_at)
	WHERE status IN ('new', 'answered', 'given up')
		OR (status = 'waiting' AND presence = 'present');
-- What a provider still has of ours.
CREATE INDEX acme_challenge_solver ON mlint.acme_challenge (solver)
	WHERE solver IS NOT NULL;
-- Those whose order is gone.
CREATE INDEX acme_challenge_orphan ON mlint.acme_challenge (id)
	WHERE order_id IS NULL;

SELECT pg_catalog.pg_extension_config_dump('mlint.acme_account', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.acme_account_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_version', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_version_id_seq', '');

-- Whatever makes the rows, a dump that is restored too.
CREATE TRIGGER job_enable AFTER INSERT ON mlint.acme_account
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('certificates');
ALTER TABLE mlint.acme_account ENABLE ALWAYS TRIGGER job_enable;
CREATE TRIGGER job_enable AFTER INSERT ON mlint.certificate
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('certificate_expiry');
ALTER TABLE mlint.certificate ENABLE ALWAYS TRIGGER job_enable;

INSERT INTO mlint.event_type VALUES
	('certificate.issued', 'A certificate is in use for the first time'),
	('certificate.renewed', 'A certificate has a successor in use'),
	('certificate.failed', 'A certificate could not be issued, renewed or pushed to where it must be first'),
	('certificate.expiring', 'A certificate expires in 30, 14, 7, 3 days or one, and is not about to be renewed as planned'),
	('certificate.revoked', 'A certificate was revoked');

---- Accounts ----

CREATE FUNCTION mlint.acme_account_create(name text, directory_url text,
	email text, eab jsonb DEFAULT NULL, ca jsonb DEFAULT NULL,
	max_orders int DEFAULT 300, max_orders_per interval DEFAULT '3 hours') RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_acme_account_create';
COMMENT ON FUNCTION mlint.acme_account_create(text, text, text, jsonb, jsonb, int, interval) IS
	'Register with a certificate authority: the URL of its directory, or letsencrypt, letsencrypt-staging; eab is {"kid": ..., "hmac": a reference}, ca a reference to the certificates (PEM) that the server is trusted by';

CREATE FUNCTION mlint.acme_account_rollover(name text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_acme_account_rollover';
COMMENT ON FUNCTION mlint.acme_account_rollover(text) IS
	'Give an account a new key';

CREATE FUNCTION mlint.acme_account_deactivate(name text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_acme_account_deactivate';
COMMENT ON FUNCTION mlint.acme_account_deactivate(text) IS
	'Close an account for good at the server; its certificates stay valid, and are renewed no more';

CREATE FUNCTION mlint.acme_account_wait(name text, timeout interval DEFAULT '1 minute') RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_acme_account_wait';
COMMENT ON FUNCTION mlint.acme_account_wait(text, interval) IS
	'Wait until nothing is under way about an account, and return its status; what fails is raised';

CREATE PROCEDURE mlint.certificate_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_certificate_run';
COMMENT ON PROCEDURE mlint.certificate_run() IS
	'The job certificates: begins the orders that are due, and takes accounts, orders and revocations as far as they go';
-- From the first use on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('certificates', 'CALL mlint.certificate_run()', '1 minute', false);

CREATE PROCEDURE mlint.certificate_challenge_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_certificate_challenge_run';
COMMENT ON PROCEDURE mlint.certificate_challenge_run() IS
	'The job certificate_challenges: shows what certificate authorities look for, and removes it again';
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('certificate_challenges', 'CALL mlint.certificate_challenge_run()', '1 minute', false);

CREATE PROCEDURE mlint.certificate_expiry_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_certificate_expiry_run';
COMMENT ON PROCEDURE mlint.certificate_expiry_run() IS
	'The job certificate_expiry: warns of what expires soon, says what has expired, destroys the keys of old certificates and forgets old orders';
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('certificate_expiry', 'CALL mlint.certificate_expiry_run()', '10 minutes', false);

---- Certificates ----

CREATE FUNCTION mlint.certificate_issue(domains text[], account text,
	challenge text DEFAULT 'http-01', solver text DEFAULT NULL,
	key_type text DEFAULT 'ec256', auto_renew boolean DEFAULT true,
	renew_before interval DEFAULT NULL, name text DEFAULT NULL,
	reuse_key boolean DEFAULT false) RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_issue';
COMMENT ON FUNCTION mlint.certificate_issue(text[], text, text, text, text, boolean, interval, text, boolean) IS
	'Have a certificate for these names issued, and by default kept valid; returns at once';

CREATE FUNCTION mlint.certificate_wait(id uuid, timeout interval DEFAULT '5 minutes') RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_wait';
COMMENT ON FUNCTION mlint.certificate_wait(uuid, interval) IS
	'Wait until nothing is under way about a certificate, and return its state; what failed is raised';

CREATE FUNCTION mlint.certificate_renew(id uuid) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_renew';
COMMENT ON FUNCTION mlint.certificate_renew(uuid) IS
	'Have a certificate renewed, or one that failed issued, now';

CREATE FUNCTION mlint.certificate_revoke(id uuid, reason text DEFAULT 'unspecified') RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_revoke';
COMMENT ON FUNCTION mlint.certificate_revoke(uuid, text) IS
	'Have the certificate in use revoked: unspecified, keyCompromise, affiliationChanged, superseded or cessationOfOperation (RFC 5280)';

CREATE FUNCTION mlint.certificate_import(chain text, key text, name text DEFAULT NULL) RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_import';
COMMENT ON FUNCTION mlint.certificate_import(text, text, text) IS
	'Take over a certificate from elsewhere, PEM, the leaf first, to be watched and pushed like others; of a name that was imported before it is the next version';

CREATE FUNCTION mlint.certificate_csr(domains text[], key_type text DEFAULT 'ec256',
	name text DEFAULT NULL, OUT csr text, OUT secret text)
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_csr';
COMMENT ON FUNCTION mlint.certificate_csr(text[], text, text) IS
	'A new key, kept as a secret, and a signing request (PEM) with it for a CA that does not speak ACME; certificate_import(chain, NULL, name) takes what comes back';

CREATE FUNCTION mlint.certificate_drop(id uuid) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_drop';
COMMENT ON FUNCTION mlint.certificate_drop(uuid) IS
	'Forget a certificate, its history and its key; it is not revoked by that';

CREATE FUNCTION mlint.certificate_get(id uuid, OUT name text, OUT state text,
	OUT chain text, OUT leaf text, OUT serial text, OUT fingerprint_sha256 text,
	OUT fingerprint_sha1 text, OUT issuer text, OUT not_before timestamptz,
	OUT not_after timestamptz, OUT domains text[], OUT key_secret text,
	OUT key_version int)
	LANGUAGE c STABLE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_get';
COMMENT ON FUNCTION mlint.certificate_get(uuid) IS
	'The certificate in use; its key is the secret key_secret in version key_version, for those who may read that';

---- Views ----

CREATE VIEW mlint.certificates AS
SELECT c.id, c.name, c.domains, c.state, v.issuer, v.serial, v.not_before,
	v.not_after,
	pg_catalog.floor(EXTRACT(epoch FROM v.not_after
		- pg_catalog.statement_timestamp()) / 86400)::int AS days_left,
	c.due_at AS renew_at, c.error AS last_error, c.error_at AS last_error_at,
	c.attempts, a.name AS account, c.challenge,
	CASE WHEN c.challenge = 'http-01' THEN coalesce(c.solver, 'gateway')
		ELSE c.solver END AS solver,
	coalesce(c.key_type, v.key_type) AS key_type, c.auto_renew, c.reuse_key,
	c.renew_before, c.key_secret, v.key_version, n.serial AS next_serial,
	nullif(c.created_by::text, '') AS created_by, c.created_at,
	c.state_at
FROM mlint.certificate c
LEFT JOIN mlint.certificate_version v ON v.id = c.version_id
LEFT JOIN mlint.certificate_version n ON n.id = c.next_version_id
LEFT JOIN mlint.acme_account a ON a.id = c.account_id;
COMMENT ON VIEW mlint.certificates IS 'Certificates that are kept valid, or watched';
COMMENT ON COLUMN mlint.certificates.id IS 'Id of the certificate; a renewal keeps it';
COMMENT ON COLUMN mlint.certificates.name IS 'Its name';
COMMENT ON COLUMN mlint.certificates.domains IS 'Host names, in ASCII, and addresses that it is for';
COMMENT ON COLUMN mlint.certificates.state IS 'REQUESTED, ISSUING, ISSUED (waits for targets that must have it first), ACTIVE, RENEWING (and active meanwhile), FAILED, REVOKED or EXPIRED';
COMMENT ON COLUMN mlint.certificates.issuer IS 'Who issued what is in use (RFC 2253); null: nothing is yet';
COMMENT ON COLUMN mlint.certificates.serial IS 'Serial number of what is in use, hex';
COMMENT ON COLUMN mlint.certificates.not_before IS 'From when it is valid';
COMMENT ON COLUMN mlint.certificates.not_after IS 'Until when it is valid';
COMMENT ON COLUMN mlint.certificates.days_left IS 'Whole days until then; negative: since then';
COMMENT ON COLUMN mlint.certificates.renew_at IS 'When the next order begins; in the past: it waits for the limits of the account; null: one is under way, or there will be none';
COMMENT ON COLUMN mlint.certificates.last_error IS 'Why the last order, or push to where it must be first, failed; null if it did not';
COMMENT ON COLUMN mlint.certificates.last_error_at IS 'When that was';
COMMENT ON COLUMN mlint.certificates.attempts IS 'Orders in a row that failed';
COMMENT ON COLUMN mlint.certificates.account IS 'Account that it is ordered with; null: it was imported';
COMMENT ON COLUMN mlint.certificates.challenge IS 'How its names are proved: http-01 or dns-01';
COMMENT ON COLUMN mlint.certificates.solver IS 'Who shows the proof: gateway, file:directory, function:name; for dns-01 a DNS provider';
COMMENT ON COLUMN mlint.certificates.key_type IS 'Type of its key';
COMMENT ON COLUMN mlint.certificates.auto_renew IS 'Whether it is renewed by itself';
COMMENT ON COLUMN mlint.certificates.reuse_key IS 'Whether its successor has the same key';
COMMENT ON COLUMN mlint.certificates.renew_before IS 'How long before its end it is renewed; null: by its lifetime';
COMMENT ON COLUMN mlint.certificates.key_secret IS 'Secret that its keys are versions of';
COMMENT ON COLUMN mlint.certificates.key_version IS 'Version that is the key of what is in use';
COMMENT ON COLUMN mlint.certificates.next_serial IS 'Serial number of what was issued and waits for targets; null: nothing does';
COMMENT ON COLUMN mlint.certificates.created_by IS 'Role that asked for it; null when that is gone';
COMMENT ON COLUMN mlint.certificates.created_at IS 'When that was';
COMMENT ON COLUMN mlint.certificates.state_at IS 'Since when it is in its state';

CREATE VIEW mlint.certificate_orders AS
SELECT o.id, o.certificate_id, c.name AS certificate, a.name AS account,
	o.state, h.names, h.proved, h.challenges, o.problem, o.error, o.attempts,
	CASE WHEN o.finished_at IS NULL THEN o.next_at END AS next_at, o.url,
	o.expires_at, o.created_at, o.ordered_at, o.finished_at
FROM mlint.acme_order o
LEFT JOIN mlint.certificate c ON c.id = o.certificate_id
JOIN mlint.acme_account a ON a.id = o.account_id
CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS names,
	pg_catalog.count(*) FILTER (WHERE h.status = 'valid') AS proved,
	pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('identifier', h.identifier,
		'type', h.type, 'status', h.status, 'presence', h.presence,
		'attempts', h.attempts,
		'error', coalesce(h.error, h.solver_error)) ORDER BY h.id) AS challenges
	FROM mlint.acme_challenge h WHERE h.order_id = o.id) h;
COMMENT ON VIEW mlint.certificate_orders IS 'Orders at certificate authorities that are under way, and those of late';
COMMENT ON COLUMN mlint.certificate_orders.id IS 'Number of the order';
COMMENT ON COLUMN mlint.certificate_orders.certificate_id IS 'Certificate that it is for; null: that was dropped';
COMMENT ON COLUMN mlint.certificate_orders.certificate IS 'Its name';
COMMENT ON COLUMN mlint.certificate_orders.account IS 'Account that it is ordered with';
COMMENT ON COLUMN mlint.certificate_orders.state IS 'How far it is: new, ordering, authorizing, ready, finalizing, processing, downloading, issued, failed';
COMMENT ON COLUMN mlint.certificate_orders.names IS 'Names that are to be proved, as far as the authority has said which';
COMMENT ON COLUMN mlint.certificate_orders.proved IS 'Those of them that are';
COMMENT ON COLUMN mlint.certificate_orders.challenges IS 'Each name''s proof: what the authority says of it (status), whether what it looks for is there (presence), what went wrong';
COMMENT ON COLUMN mlint.certificate_orders.problem IS 'Why it failed, or waits, in the words of ACME: rateLimited, caa, dns, ...';
COMMENT ON COLUMN mlint.certificate_orders.error IS 'Why it failed, or the last request did';
COMMENT ON COLUMN mlint.certificate_orders.attempts IS 'Failures in a row of the present step';
COMMENT ON COLUMN mlint.certificate_orders.next_at IS 'When it is gone on with; null: it is finished';
COMMENT ON COLUMN mlint.certificate_orders.url IS 'The order at the authority';
COMMENT ON COLUMN mlint.certificate_orders.expires_at IS 'When the authority will have forgotten it';
COMMENT ON COLUMN mlint.certificate_orders.created_at IS 'When it was decided on';
COMMENT ON COLUMN mlint.certificate_orders.ordered_at IS 'When it was sent, which counts for the limits of the account';
COMMENT ON COLUMN mlint.certificate_orders.finished_at IS 'When it ended';

CREATE VIEW mlint.acme_accounts AS
SELECT a.name, a.directory_url, a.email, a.status, a.url, a.eab, a.ca,
	a.key_secret, a.key_version, a.max_orders, a.max_orders_per,
	(SELECT pg_catalog.count(*) FROM mlint.acme_order o
		WHERE o.account_id = a.id AND o.ordered_at >
			pg_catalog.clock_timestamp() - a.max_orders_per) AS orders_lately,
	(SELECT pg_catalog.count(*) FROM mlint.certificate c
		WHERE c.account_id = a.id) AS certificates,
	CASE WHEN a.not_before > pg_catalog.clock_timestamp()
		THEN a.not_before END AS paused_until,
	a.error AS last_error, a.attempts, a.next_at,
	nullif(a.created_by::text, '') AS created_by, a.created_at
FROM mlint.acme_account a;
COMMENT ON VIEW mlint.acme_accounts IS 'Accounts at certificate authorities that speak ACME';
COMMENT ON COLUMN mlint.acme_accounts.name IS 'Name of the account';
COMMENT ON COLUMN mlint.acme_accounts.directory_url IS 'The authority: URL of its directory';
COMMENT ON COLUMN mlint.acme_accounts.email IS 'Where the authority writes to';
COMMENT ON COLUMN mlint.acme_accounts.status IS 'pending, valid, failed, deactivating or deactivated';
COMMENT ON COLUMN mlint.acme_accounts.url IS 'The account at the authority';
COMMENT ON COLUMN mlint.acme_accounts.eab IS 'External account that it is bound to; the key is a reference';
COMMENT ON COLUMN mlint.acme_accounts.ca IS 'Reference to the certificates that the authority''s server is trusted by; null: those of the system';
COMMENT ON COLUMN mlint.acme_accounts.key_secret IS 'Secret that has the account''s key';
COMMENT ON COLUMN mlint.acme_accounts.key_version IS 'Version that is in use';
COMMENT ON COLUMN mlint.acme_accounts.max_orders IS 'New orders in any window of max_orders_per';
COMMENT ON COLUMN mlint.acme_accounts.max_orders_per IS 'The window';
COMMENT ON COLUMN mlint.acme_accounts.orders_lately IS 'New orders in the last window';
COMMENT ON COLUMN mlint.acme_accounts.certificates IS 'Certificates that are ordered with it';
COMMENT ON COLUMN mlint.acme_accounts.paused_until IS 'The authority has asked to be left alone until then; null: it has not';
COMMENT ON COLUMN mlint.acme_accounts.last_error IS 'Why the last thing that was done about the account failed; null if it did not';
COMMENT ON COLUMN mlint.acme_accounts.attempts IS 'Failures in a row of that';
COMMENT ON COLUMN mlint.acme_accounts.next_at IS 'When something is to be done about it; null: nothing is';
COMMENT ON COLUMN mlint.acme_accounts.created_by IS 'Role that created it; null when that is gone';
COMMENT ON COLUMN mlint.acme_accounts.created_at IS 'When that was';

CREATE VIEW mlint.certificate_history AS
SELECT v.certificate_id, c.name, v.id AS version, v.serial,
	pg_catalog.encode(v.fingerprint, 'hex') AS fingerprint_sha256, v.issuer,
	v.subject, v.names, v.key_type, v.key_version, v.key_gone, v.not_before,
	v.not_after, v.issued_at, v.activated_at, v.replaced_at,
	v.id = c.version_id AS in_use, v.ari_start AS suggested_from,
	v.ari_end AS suggested_until, v.ari_url AS suggested_why,
	CASE v.revoke_reason WHEN 0 THEN 'unspecified' WHEN 1 THEN 'keyCompromise'
		WHEN 3 THEN 'affiliationChanged' WHEN 4 THEN 'superseded'
		WHEN 5 THEN 'cessationOfOperation' END AS revoke_reason,
	v.revoke_at, v.revoked_at
FROM mlint.certificate_version v
JOIN mlint.certificate c ON c.id = v.certificate_id;
COMMENT ON VIEW mlint.certificate_history IS 'Every certificate that was issued or imported, until a year after its end';
COMMENT ON COLUMN mlint.certificate_history.certificate_id IS 'Id in mlint.certificates';
COMMENT ON COLUMN mlint.certificate_history.name IS 'Its name';
COMMENT ON COLUMN mlint.certificate_history.version IS 'Grows with time';
COMMENT ON COLUMN mlint.certificate_history.serial IS 'Serial number, hex';
COMMENT ON COLUMN mlint.certificate_history.fingerprint_sha256 IS 'SHA-256 of the certificate, hex';
COMMENT ON COLUMN mlint.certificate_history.issuer IS 'Who issued it (RFC 2253)';
COMMENT ON COLUMN mlint.certificate_history.subject IS 'Its subject';
COMMENT ON COLUMN mlint.certificate_history.names IS 'Host names and addresses in it';
COMMENT ON COLUMN mlint.certificate_history.key_type IS 'Type of its key';
COMMENT ON COLUMN mlint.certificate_history.key_version IS 'Version of the secret that is its key';
COMMENT ON COLUMN mlint.certificate_history.key_gone IS 'Whether the key is no longer kept for it';
COMMENT ON COLUMN mlint.certificate_history.not_before IS 'From when it is valid';
COMMENT ON COLUMN mlint.certificate_history.not_after IS 'Until when it is valid';
COMMENT ON COLUMN mlint.certificate_history.issued_at IS 'When we got it';
COMMENT ON COLUMN mlint.certificate_history.activated_at IS 'When it came into use; null: it did not';
COMMENT ON COLUMN mlint.certificate_history.replaced_at IS 'When a later one took its place';
COMMENT ON COLUMN mlint.certificate_history.in_use IS 'Whether it is the one in use';
COMMENT ON COLUMN mlint.certificate_history.suggested_from IS 'Begin of the window in which the authority suggests to renew it (RFC 9773); null: it suggests none';
COMMENT ON COLUMN mlint.certificate_history.suggested_until IS 'End of that window';
COMMENT ON COLUMN mlint.certificate_history.suggested_why IS 'Page of the authority on why';
COMMENT ON COLUMN mlint.certificate_history.revoke_reason IS 'Why it was revoked, or is to be';
COMMENT ON COLUMN mlint.certificate_history.revoke_at IS 'When that was asked for';
COMMENT ON COLUMN mlint.certificate_history.revoked_at IS 'When it was done';

GRANT SELECT ON mlint.certificates, mlint.certificate_orders,
	mlint.acme_accounts, mlint.certificate_history TO mlint_reader;

REVOKE ALL ON FUNCTION
	mlint.acme_account_create(text, text, text, jsonb, jsonb, int, interval),
	mlint.acme_account_rollover(text), mlint.acme_account_deactivate(text),
	mlint.acme_account_wait(text, interval),
	mlint.certificate_issue(text[], text, text, text, text, boolean, interval, text, boolean),
	mlint.certificate_wait(uuid, interval), mlint.certificate_renew(uuid),
	mlint.certificate_revoke(uuid, text),
	mlint.certificate_import(text, text, text),
	mlint.certificate_csr(text[], text, text), mlint.certificate_drop(uuid),
	mlint.certificate_get(uuid) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.certificate_run(), mlint.certificate_challenge_run(),
	mlint.certificate_expiry_run() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.acme_account_create(text, text, text, jsonb, jsonb, int, interval),
	mlint.acme_account_rollover(text), mlint.acme_account_deactivate(text),
	mlint.acme_account_wait(text, interval),
	mlint.certificate_issue(text[], text, text, text, text, boolean, interval, text, boolean),
	mlint.certificate_wait(uuid, interval), mlint.certificate_renew(uuid),
	mlint.certificate_revoke(uuid, text),
	mlint.certificate_import(text, text, text),
	mlint.certificate_csr(text[], text, text), mlint.certificate_drop(uuid)
	TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.certificate_get(uuid) TO mlint_reader;
