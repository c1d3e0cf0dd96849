-- expiry: what is done when a retention period ends, and erasure on request.

-- What is due and was not dealt with: the job archive_expire, and
-- retention_report().
CREATE INDEX archive_due ON mlint.archive (expires_at, id)
	WHERE announced_at IS NULL;
-- What is due and was dealt with: retention_report().
CREATE INDEX archive_announced ON mlint.archive (expires_at)
	WHERE announced_at IS NOT NULL;
-- The archives of a policy: after it was altered, and for its foreign key.
CREATE INDEX archive_policy ON mlint.archive (policy_id, id)
	WHERE policy_id IS NOT NULL;
-- metadata @> '{"user": "x"}': erase_subject().
CREATE INDEX archive_metadata ON mlint.archive USING gin (metadata jsonb_path_ops);

INSERT INTO mlint.event_type VALUES
	('archive.expired', 'The retention period of an archive is over, and it was not deleted');

-- ---- what is held stays ----

CREATE TRIGGER hold_guard BEFORE DELETE ON mlint.archive
	FOR EACH ROW EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_update AFTER UPDATE ON mlint.archive
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.archive
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard AFTER UPDATE OR DELETE ON mlint.archive_chunk
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.archive_chunk
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard AFTER UPDATE OR DELETE ON mlint.data_key
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.data_key
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
ALTER TABLE mlint.archive ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_update,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;
ALTER TABLE mlint.archive_chunk ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;
ALTER TABLE mlint.data_key ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;

CREATE VIEW mlint.holds AS
SELECT h.id, s.session_id, a.id AS archive_id, h.reason, h.placed_by,
	h.placed_at, h.released_by, h.released_at, h.release_reason
FROM mlint.hold h
JOIN mlint.session s ON s.id = h.session
LEFT JOIN mlint.archive a ON a.session = h.session;
COMMENT ON VIEW mlint.holds IS 'Legal holds, those that were released too, of sessions that there are';
COMMENT ON COLUMN mlint.holds.id IS 'Number of the hold, for mlint.archive_release()';
COMMENT ON COLUMN mlint.holds.session_id IS 'Session that it is on';
COMMENT ON COLUMN mlint.holds.archive_id IS 'Its archive; null while it is live';
COMMENT ON COLUMN mlint.holds.reason IS 'Why it was placed';
COMMENT ON COLUMN mlint.holds.placed_by IS 'Role that placed it';
COMMENT ON COLUMN mlint.holds.placed_at IS 'When';
COMMENT ON COLUMN mlint.holds.released_by IS 'Role that released it; null while it holds';
COMMENT ON COLUMN mlint.holds.released_at IS 'When; null while it holds';
COMMENT ON COLUMN mlint.holds.release_reason IS 'Why, if that was said';

CREATE FUNCTION mlint.archive_hold(target text, reason text) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_hold';
COMMENT ON FUNCTION mlint.archive_hold(text, text) IS
	'Put a session, or an archive (its id as text), under legal hold: nothing can delete it. Returns the number of the hold';

CREATE FUNCTION mlint.archive_hold(archive_id uuid, reason text) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_hold';
COMMENT ON FUNCTION mlint.archive_hold(uuid, text) IS
	'Put an archive under legal hold: nothing can delete it. Returns the number of the hold';

CREATE FUNCTION mlint.archive_release(target text, reason text DEFAULT NULL) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_release';
COMMENT ON FUNCTION mlint.archive_release(text, text) IS
	'Release all holds of a session, or of an archive (its id as text); how many there were';

CREATE FUNCTION mlint.archive_release(archive_id uuid, reason text DEFAULT NULL) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_release';
COMMENT ON FUNCTION mlint.archive_release(uuid, text) IS
	'Release all holds of an archive; how many there were';

CREATE FUNCTION mlint.archive_release(hold_id bigint, reason text DEFAULT NULL) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_release';
COMMENT ON FUNCTION mlint.archive_release(bigint, text) IS
	'Release one hold, by its number in mlint.holds; 0 if that was done before';

-- ---- when periods end ----

CREATE FUNCTION mlint.retention_policy_apply(archive_id uuid, policy text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_retention_policy_apply';
COMMENT ON FUNCTION mlint.retention_policy_apply(uuid, text) IS
	'Give an archive a retention policy, which may not demand less than what the archive is under';

CREATE FUNCTION mlint.retention_policy_apply(archive_id uuid, policy_id int) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_retention_policy_apply';
COMMENT ON FUNCTION mlint.retention_policy_apply(uuid, int) IS
	'The same, by the policy''s number';

CREATE PROCEDURE mlint.archive_expire()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_archive_expire';
COMMENT ON PROCEDURE mlint.archive_expire() IS
	'The job archive_expire: deletes archives whose period is over and whose policy says so, and announces others';
INSERT INTO mlint.job (name, command, every)
VALUES ('archive_expire', 'CALL mlint.archive_expire()', '1 hour');

CREATE FUNCTION mlint.retention_report(
	at timestamptz DEFAULT pg_catalog.now() + '30 days'::interval,
	OUT policy text, OUT level text, OUT action text, OUT archives bigint,
	OUT bytes bigint, OUT held bigint, OUT announced bigint,
	OUT earliest timestamptz, OUT latest timestamptz)
	RETURNS SETOF record
	LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
	AS 'MODULE_PATHNAME', 'mlint_retention_report';
COMMENT ON FUNCTION mlint.retention_report(timestamptz) IS
	'What goes until then: for each policy the archives whose periods end, whether they are deleted or announced, their bytes, how many of them are held and how many were announced before, and when the first and the last end';

REVOKE ALL ON FUNCTION
	mlint.archive_hold(text, text), mlint.archive_hold(uuid, text),
	mlint.archive_release(text, text), mlint.archive_release(uuid, text),
	mlint.archive_release(bigint, text),
	mlint.retention_policy_apply(uuid, text),
	mlint.retention_policy_apply(uuid, int),
	mlint.retention_report(timestamptz) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.archive_expire() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.archive_hold(text, text), mlint.archive_hold(uuid, text),
	mlint.archive_release(text, text), mlint.archive_release(uuid, text),
	mlint.archive_release(bigint, text),
	mlint.retention_policy_apply(uuid, text),
	mlint.retention_policy_apply(uuid, int) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.retention_report(timestamptz) TO mlint_reader;
GRANT SELECT ON mlint.holds TO mlint_reader;

-- ---- erasure ----

CREATE TABLE mlint.erasure (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	requested_at timestamptz NOT NULL,
	requested_by text NOT NULL,
	key text,
	salt bytea NOT NULL,
	digest bytea NOT NULL,
	sessions bigint NOT NULL DEFAULT 0,
	archives bigint NOT NULL DEFAULT 0,
	unencrypted bigint NOT NULL DEFAULT 0,
	refused bigint NOT NULL DEFAULT 0,
	in_backups boolean NOT NULL DEFAULT false,
	receipt jsonb
);
COMMENT ON TABLE mlint.erasure IS 'Requests for erasure, without the value that was asked for';

CREATE TABLE mlint.erasure_archive (
	erasure bigint NOT NULL REFERENCES mlint.erasure ON DELETE CASCADE,
	archive uuid NOT NULL,
	data_key bigint,
	PRIMARY KEY (erasure, archive)
);
COMMENT ON TABLE mlint.erasure_archive IS 'Archives that were erased, and the data keys that were destroyed with them';

CREATE TABLE mlint.erasure_refusal (
	erasure bigint NOT NULL REFERENCES mlint.erasure ON DELETE CASCADE,
	session_id text NOT NULL,
	archive uuid,
	reason text NOT NULL,
	until timestamptz,
	PRIMARY KEY (erasure, session_id)
);
COMMENT ON TABLE mlint.erasure_refusal IS 'Sessions and archives that another duty kept from being erased';

SELECT pg_catalog.pg_extension_config_dump('mlint.erasure', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.erasure_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.erasure_archive', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.erasure_refusal', '');

CREATE VIEW mlint.erasures AS
SELECT e.id, e.requested_at, e.requested_by, e.key, e.salt, e.digest,
	e.sessions, e.archives, e.refused, k.waiting AS keys_waiting,
	CASE WHEN k.waiting = 0 THEN greatest(e.requested_at, k.erased_at) END AS completed_at,
	NOT e.in_backups AS reaches_backups, e.receipt
FROM mlint.erasure e,
LATERAL (SELECT pg_catalog.count(*) FILTER (WHERE a.data_key IS NOT NULL
			AND d.erased_at IS NULL OR g.archive IS NOT NULL AND a.data_key IS NULL) AS waiting,
		pg_catalog.max(d.erased_at) AS erased_at
	FROM mlint.erasure_archive a
	LEFT JOIN mlint.data_key_destroyed d ON d.id = a.data_key
	LEFT JOIN mlint.archive_garbage g ON g.archive = a.archive
	WHERE a.erasure = e.id) k;
COMMENT ON VIEW mlint.erasures IS 'Requests for erasure, and what became of them';
COMMENT ON COLUMN mlint.erasures.id IS 'Number of the request';
COMMENT ON COLUMN mlint.erasures.requested_at IS 'When mlint.erase_subject() was called';
COMMENT ON COLUMN mlint.erasures.requested_by IS 'By which role';
COMMENT ON COLUMN mlint.erasures.key IS 'Key of the metadata that was asked for; null: a JSON object was';
COMMENT ON COLUMN mlint.erasures.salt IS 'Random bytes, for the digest';
COMMENT ON COLUMN mlint.erasures.digest IS 'SHA-256 of the salt and the value that was asked for, in UTF-8; the value itself is not kept';
COMMENT ON COLUMN mlint.erasures.sessions IS 'Live sessions that were erased';
COMMENT ON COLUMN mlint.erasures.archives IS 'Archives that were erased';
COMMENT ON COLUMN mlint.erasures.refused IS 'Sessions and archives that another duty kept; mlint.erasure_refusals has them';
COMMENT ON COLUMN mlint.erasures.keys_waiting IS 'Data keys that are not yet cut out of the erasure key file, and unencrypted objects that are not yet deleted';
COMMENT ON COLUMN mlint.erasures.completed_at IS 'When the last of these was; null: not yet';
COMMENT ON COLUMN mlint.erasures.reaches_backups IS 'Whether encrypted archives cannot be read from backups either: whether the erasure key file lay outside of the data directory';
COMMENT ON COLUMN mlint.erasures.receipt IS 'The signed receipt';

CREATE VIEW mlint.erasure_refusals AS
SELECT r.erasure AS erasure_id, r.session_id, r.archive AS archive_id, r.reason, r.until
FROM mlint.erasure_refusal r;
COMMENT ON VIEW mlint.erasure_refusals IS 'What mlint.erase_subject() had to leave';
COMMENT ON COLUMN mlint.erasure_refusals.erasure_id IS 'Number of the request';
COMMENT ON COLUMN mlint.erasure_refusals.session_id IS 'Session that stayed';
COMMENT ON COLUMN mlint.erasure_refusals.archive_id IS 'Its archive; null if it was live';
COMMENT ON COLUMN mlint.erasure_refusals.reason IS 'hold: a legal hold; compliance: a level that comes before erasure';
COMMENT ON COLUMN mlint.erasure_refusals.until IS 'When that ends; null: that is not known';

CREATE FUNCTION mlint.erase_subject(key text, value text) RETURNS jsonb
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_erase_subject';
COMMENT ON FUNCTION mlint.erase_subject(text, text) IS
	'Erase every session and archive whose metadata has this value under this key, but what a hold or a compliance level keeps; returns a signed receipt';

CREATE FUNCTION mlint.erase_subject(subject jsonb) RETURNS jsonb
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_erase_subject_matching';
COMMENT ON FUNCTION mlint.erase_subject(jsonb) IS
	'Erase every session and archive whose metadata contains the object, but what a hold or a compliance level keeps; returns a signed receipt';

CREATE FUNCTION mlint.erasure_receipt_verify(receipt jsonb) RETURNS boolean
	LANGUAGE c STABLE STRICT PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_erasure_receipt_verify';
COMMENT ON FUNCTION mlint.erasure_receipt_verify(jsonb) IS
	'Is this a receipt that this database signed, and unchanged?';

REVOKE ALL ON FUNCTION mlint.erase_subject(text, text),
	mlint.erase_subject(jsonb), mlint.erasure_receipt_verify(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.erase_subject(text, text),
	mlint.erase_subject(jsonb) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.erasure_receipt_verify(jsonb) TO mlint_reader, mlint_user;
-- Not for mlint_reader, which pg_monitor is a member of: session ids, receipts.
GRANT SELECT ON mlint.erasures, mlint.erasure_refusals TO mlint_admin;
