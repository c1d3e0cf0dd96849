-- audit: the log of who did what, chained by hash.

-- Written by the auditor alone, appended to and never changed. A partition is
-- a month of the auditor's clock (UTC, year * 100 + month), which does not go
-- back, so months and seq grow together. Times and texts are as audit_verify()
-- hashes them; details is the text of a jsonb value.
CREATE TABLE mlint.audit_entry (
	seq bigint NOT NULL,
	month int NOT NULL,
	at timestamptz NOT NULL,
	pid int NOT NULL,
	xid xid8,
	subxid xid8,
	hash bytea NOT NULL,
	role text NOT NULL,
	session_role text NOT NULL,
	application text NOT NULL,
	client_addr text,
	action text NOT NULL,
	object_type text NOT NULL,
	object text,
	outcome text NOT NULL,
	details text,
	PRIMARY KEY (seq, month)
) PARTITION BY LIST (month);
-- Whether the transaction of an entry was rolled back.
CREATE INDEX audit_entry_rollback ON mlint.audit_entry (object)
	WHERE action = 'transaction.rolled_back';
-- What the log says of itself: the last month that was purged.
CREATE INDEX audit_entry_log ON mlint.audit_entry (action, seq)
	WHERE object_type = 'audit_log';
COMMENT ON TABLE mlint.audit_entry IS 'The audit log: append-only, each entry with the hash of itself and all before';

-- Set in place by the auditor.
CREATE SEQUENCE mlint.audit_head AS bigint;
COMMENT ON SEQUENCE mlint.audit_head IS 'The last entry of the audit log, as of a moment ago: so that entries removed from its end are missed';
CREATE SEQUENCE mlint.audit_open AS bigint;
COMMENT ON SEQUENCE mlint.audit_open IS 'The first entry of the audit log whose transaction may not have ended';

INSERT INTO mlint.event_type VALUES
	('audit.checkpoint', 'How far the audit log has come: its last entry''s number and hash');

-- Begin a month of the log.
CREATE FUNCTION mlint.audit_month_begin(month int) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	name text := 'audit_entry_' || month;
BEGIN
	EXECUTE format('CREATE TABLE mlint.%I (LIKE mlint.audit_entry INCLUDING ALL) USING heap', name);
	EXECUTE format('ALTER TABLE mlint.audit_entry ATTACH PARTITION mlint.%I FOR VALUES IN (%s)',
		name, month);
	-- A member of the extension, like the first: pg_dump leaves it out.
	IF NOT EXISTS (SELECT FROM pg_depend WHERE deptype = 'e'
		AND classid = 'pg_class'::regclass AND objid = format('mlint.%I', name)::regclass)
	THEN
		EXECUTE format('ALTER EXTENSION mlint ADD TABLE mlint.%I', name);
	END IF;
	PERFORM mlint.privileges_close();
END
$$;
COMMENT ON FUNCTION mlint.audit_month_begin(int) IS 'The auditor''s: makes the partition for a month of the audit log';
SELECT mlint.audit_month_begin(pg_catalog.to_char(
	pg_catalog.now() AT TIME ZONE 'UTC', 'YYYYMM')::int);

CREATE FUNCTION mlint.audit_note(action text, object_type text, object text,
	details jsonb, kind text DEFAULT 'changed') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_audit_note';
COMMENT ON FUNCTION mlint.audit_note(text, text, text, jsonb, text) IS
'For functions of mlint in SQL: enters an action into the audit log; a change is there on return. kind is changed, done, denied or failed';

-- Drop what is old: a job. An entry says which entries went and what the hash
-- of the last of them was, for the chain to go on from. It is made before the
-- locks are taken, because the auditor may need them; when a lock cannot be
-- had soon the entry is marked as rolled back, and the next run tries again.
CREATE FUNCTION mlint.audit_retention_run() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '500ms' AS $$
DECLARE
	retention interval := current_setting('mlint.audit_retention')::interval;
	m int;
	first_seq bigint;
	last_seq bigint;
	last_hash text;
BEGIN
	FOR m IN SELECT substr(c.relname, 13)::int
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = 'mlint.audit_entry'::regclass
			AND c.relname ~ '^audit_entry_[0-9]{5,8}$'
		ORDER BY 1
	LOOP
		EXIT WHEN (make_date(m / 100, m % 100, 1) + interval '1 month') AT TIME ZONE 'UTC'
			>= clock_timestamp() - retention;
		SELECT min(e.seq), max(e.seq) INTO first_seq, last_seq
		FROM mlint.audit_entry e WHERE e.month = m;
		SELECT encode(e.hash, 'hex') INTO last_hash
		FROM mlint.audit_entry e WHERE e.month = m AND e.seq = last_seq;
		BEGIN
			IF last_seq IS NOT NULL THEN
				PERFORM mlint.audit_note('audit.purged', 'audit_log', m::text,
					jsonb_build_object('from', first_seq, 'to', last_seq, 'hash', last_hash));
			END IF;
			EXECUTE format('LOCK TABLE ONLY mlint.audit_entry, mlint.%I IN ACCESS EXCLUSIVE MODE',
				'audit_entry_' || m);
			EXECUTE format('ALTER EXTENSION mlint DROP TABLE mlint.%I', 'audit_entry_' || m);
			EXECUTE format('DROP TABLE mlint.%I', 'audit_entry_' || m);
		EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
			RAISE LOG 'mlint: month % of the audit log is in use, it will be dropped later', m;
			EXIT;
		END;
	END LOOP;
END
$$;
COMMENT ON FUNCTION mlint.audit_retention_run() IS 'The job audit_retention: drops months of the audit log that are older than mlint.audit_retention';
INSERT INTO mlint.job (name, command, every)
VALUES ('audit_retention', 'SELECT mlint.audit_retention_run()', '6 hours');

CREATE FUNCTION mlint.audit_verify(from_seq bigint DEFAULT NULL,
	to_seq bigint DEFAULT NULL) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE COST 100000
AS 'MODULE_PATHNAME', 'mlint_audit_verify';
COMMENT ON FUNCTION mlint.audit_verify(bigint, bigint) IS
'The first entry of the audit log that was changed, removed or inserted by somebody else than mlint; null when none was. From an entry on, up to another, or all that is kept';

CREATE FUNCTION mlint.audit_buffer(OUT open boolean, OUT waiting_bytes bigint,
	OUT size_bytes bigint, OUT oldest_at timestamptz, OUT last_seq bigint)
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_audit_buffer';
COMMENT ON FUNCTION mlint.audit_buffer() IS
'Entries on their way into the audit log: whether an auditor takes them, how many bytes wait and how many could, since when the oldest does, and the number of the last that was written';

CREATE VIEW mlint.audit_log AS
SELECT e.seq, e.at, pg_catalog.current_database() AS database, e.role,
	e.session_role, e.application,
	e.client_addr::inet AS client_addr, e.pid, e.xid, e.action, e.object_type,
	e.object,
	CASE WHEN e.subxid IS NOT NULL AND EXISTS (SELECT FROM mlint.audit_entry r
			WHERE r.action = 'transaction.rolled_back' AND r.object = e.subxid::text)
		THEN 'rolled_back' ELSE e.outcome END AS outcome,
	e.details::jsonb AS details, e.hash, e.subxid
FROM mlint.audit_entry e;
COMMENT ON VIEW mlint.audit_log IS 'Who did what: one entry for each action that configures, reads a secret, was denied, overrides a limit, deletes or purges';
COMMENT ON COLUMN mlint.audit_log.seq IS 'Number of the entry; there are no gaps';
COMMENT ON COLUMN mlint.audit_log.at IS 'When it happened';
COMMENT ON COLUMN mlint.audit_log.database IS 'In which database: this one';
COMMENT ON COLUMN mlint.audit_log.role IS 'Role whose privileges it was done with';
COMMENT ON COLUMN mlint.audit_log.session_role IS 'Role that had logged in';
COMMENT ON COLUMN mlint.audit_log.application IS 'application_name of the session';
COMMENT ON COLUMN mlint.audit_log.client_addr IS 'Address of the client; null for a local one and for workers';
COMMENT ON COLUMN mlint.audit_log.pid IS 'Process that did it';
COMMENT ON COLUMN mlint.audit_log.xid IS 'Transaction that it was part of; null when that had no id yet';
COMMENT ON COLUMN mlint.audit_log.action IS 'What was done: noun.verb';
COMMENT ON COLUMN mlint.audit_log.object_type IS 'On what kind of thing';
COMMENT ON COLUMN mlint.audit_log.object IS 'On which; null when there is no single one';
COMMENT ON COLUMN mlint.audit_log.outcome IS 'ok, denied, failed, or rolled_back: the change was undone with its transaction or savepoint';
COMMENT ON COLUMN mlint.audit_log.details IS 'More about it';
COMMENT ON COLUMN mlint.audit_log.hash IS 'SHA-256 over the hash of the entry before and this entry';
COMMENT ON COLUMN mlint.audit_log.subxid IS 'For a change: the transaction or subtransaction that it stands and falls with; null for what happened whatever became of the transaction';

REVOKE ALL ON FUNCTION mlint.audit_month_begin(int),
	mlint.audit_note(text, text, text, jsonb, text), mlint.audit_retention_run(),
	mlint.audit_buffer(), mlint.audit_verify(bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.audit_verify(bigint, bigint)
	TO mlint_admin, mlint_reader;
-- Names of secrets and of roles lie in it.
GRANT SELECT ON mlint.audit_log TO mlint_admin;

