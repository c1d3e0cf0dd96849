-- The audit log: what is entered, by whom, how it ends, who may read it, and
-- that what is changed behind mlint's back is found.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS mlint;
CREATE ROLE regress_audit_admin IN ROLE mlint_admin;
CREATE ROLE regress_audit_user IN ROLE mlint_user;
CREATE ROLE regress_audit_reader IN ROLE mlint_reader;
\set SHOW_CONTEXT never

-- The log as of now; what comes later is shown from here on. Entries that say
-- that others were rolled back come when the auditor gets to it.
SELECT coalesce(max(seq), 0) AS start FROM mlint.audit_log \gset
CREATE FUNCTION public.regress_audit(from_seq bigint)
RETURNS TABLE (role text, action text, object_type text, object text, outcome text, details jsonb)
LANGUAGE sql AS $$
	SELECT role, action, object_type, object, outcome, details FROM mlint.audit_log
	WHERE seq > from_seq AND role LIKE 'regress%' ORDER BY seq
$$;

-- ---- what is entered ----
SET ROLE regress_audit_admin;
SELECT FROM mlint.destination_create('regress audit',  'http',
	'{"url": "http://a.invalid/token", "retry": {"max_retries": 1}}', '{regress.*,x}');
SELECT mlint.destination_alter('regress audit', '{"max_in_flight": 2, "method": "PUT"}');
SELECT mlint.destination_alter('regress audit', events => '{regress.a}', enabled => false);
SELECT mlint.breaker_reset('regress audit');
SELECT mlint.dead_letter_replay('regress audit');
SELECT mlint.dead_letter_replay();
SELECT mlint.job_run_now('audit_retention');
SELECT mlint.destination_drop('regress audit');
-- denied: an entry, although the statement fails
SELECT mlint.destination_create('regress file',  'http',
	'{"url": "http://a.invalid/", "auth": {"type": "bearer", "token": {"file": "/etc/passwd"}}}');
-- refused before anything was tried: none
SELECT mlint.destination_create('regress none', 'http', '{}');
SELECT mlint.destination_drop('regress none');
RESET ROLE;
-- What is denied need not be in the log at once; what comes after a change is.
SELECT mlint.audit_note('test.change', 'test', NULL, NULL);
SELECT * FROM public.regress_audit(:start);

-- ---- how it ends ----
SELECT max(seq) AS start FROM mlint.audit_log \gset
SET ROLE regress_audit_admin;
BEGIN;
SELECT mlint.job_run_now('event_retention');
SAVEPOINT a;
SELECT FROM mlint.destination_create('regress undone', 'http', '{"url": "http://a.invalid"}');
ROLLBACK TO a;
SAVEPOINT b;
SELECT FROM mlint.destination_create('regress kept', 'http', '{"url": "http://a.invalid"}');
RELEASE b;
COMMIT;
BEGIN;
SELECT mlint.destination_drop('regress kept');
ROLLBACK;
SELECT mlint.destination_drop('regress kept');
RESET ROLE;
DO $$
BEGIN
	FOR i IN 1 .. 1000 LOOP
		EXIT WHEN (SELECT count(*) FILTER (WHERE outcome = 'rolled_back') = 2 FROM mlint.audit_log
			WHERE object IN ('regress undone', 'regress kept'));
		PERFORM pg_sleep(0.01);
	END LOOP;
END
$$;
SELECT action, object, outcome FROM public.regress_audit(:start);

-- ---- details and names ----
SELECT max(seq) AS start FROM mlint.audit_log \gset
SET SESSION AUTHORIZATION regress_audit_user;
SET application_name = 'regress audit';
SELECT mlint.audit_note('a.b', 'c', 'd', '{}');
RESET SESSION AUTHORIZATION;
SELECT mlint.audit_note('regress.note', 'thing', 'größe', '{"b": [1, "x\"y"],  "a": null}');
SELECT mlint.audit_note('regress.done', 'thing', NULL, NULL, 'done');
SELECT mlint.audit_note('regress.failed', 'thing', '', '{}', 'failed');
SELECT mlint.audit_note('regress.long', 'thing', repeat('x', 9000), '{}');
SELECT mlint.audit_note('regress.kind', 'thing', 'x', '{}', 'whatever');
SELECT mlint.audit_note('regress.array', 'thing', 'x', '[]');
SELECT mlint.audit_note('regress.last', 'thing', NULL, NULL);
SELECT action, object, outcome, details, role = current_user AS role,
	session_role = session_user AS session_role, application,
	client_addr IS NULL AS local, pid = pg_backend_pid() AS pid,
	xid IS NOT NULL AS xid, at BETWEEN now() - interval '1 minute' AND clock_timestamp() AS at,
	octet_length(hash) AS hash
FROM mlint.audit_log WHERE seq > :start AND action LIKE 'regress%' ORDER BY seq;
RESET application_name;

-- ---- the chain, recomputed in SQL ----
SELECT count(*) > 10 AS entries, count(*) FILTER (WHERE hash IS DISTINCT FROM sha256(
		coalesce(before, decode(repeat('00', 32), 'hex')) || int8send(seq) || timestamptz_send(at) || int4send(pid)
		|| coalesce(xid8send(xid), int8send(0)) || coalesce(xid8send(subxid), int8send(0))
		|| (SELECT string_agg(coalesce(int4send(octet_length(t)) || convert_to(t, 'UTF8'), '\xffffffff'), '' ORDER BY n)
			FROM unnest(ARRAY[role, session_role, application, host(client_addr), action, object_type,
				object, CASE outcome WHEN 'rolled_back' THEN 'ok' ELSE outcome END, details::text])
				WITH ORDINALITY u(t, n)))) AS wrong
FROM (SELECT *, lag(hash) OVER (ORDER BY seq) AS before FROM mlint.audit_log) e;
SELECT count(*) = max(seq) AS gapless FROM mlint.audit_log;
SELECT mlint.audit_verify();
SELECT mlint.audit_verify(3, 7), mlint.audit_verify(from_seq => 5), mlint.audit_verify(to_seq => 4),
	mlint.audit_verify(1000000), mlint.audit_verify(-1, 0);

-- ---- what somebody does to it ----
BEGIN;
UPDATE mlint.audit_entry SET object = 'other' WHERE seq = 5;
SELECT mlint.audit_verify() AS changed, mlint.audit_verify(1, 4) AS before, mlint.audit_verify(6) AS after,
	mlint.audit_verify(5, 5) AS only;
ROLLBACK;
BEGIN;
UPDATE mlint.audit_entry SET hash = decode(repeat('00', 32), 'hex') WHERE seq = 6;
SELECT mlint.audit_verify() AS hash;
UPDATE mlint.audit_entry SET hash = 'short' WHERE seq = 6;
SELECT mlint.audit_verify() AS hash;
ROLLBACK;
BEGIN;
UPDATE mlint.audit_entry SET details = '{"changed": true}' WHERE seq = 1;
SELECT mlint.audit_verify() AS first;
ROLLBACK;
BEGIN;
UPDATE mlint.audit_entry SET object = coalesce(object, '') || repeat('x', 100000) WHERE seq = 4;
SELECT mlint.audit_verify() AS long;
ROLLBACK;
BEGIN;
DELETE FROM mlint.audit_entry WHERE seq = 4;
SELECT mlint.audit_verify() AS removed, mlint.audit_verify(5) AS after;
ROLLBACK;
BEGIN;
DELETE FROM mlint.audit_entry WHERE seq <= 3;
SELECT mlint.audit_verify() AS removed_from_the_beginning;
ROLLBACK;
SELECT max(seq) AS last FROM mlint.audit_log \gset
BEGIN;
DELETE FROM mlint.audit_entry WHERE seq >= :last - 1;
SELECT mlint.audit_verify() = :last - 1 AS removed_from_the_end, mlint.audit_verify(:last) = :last AS last;
ROLLBACK;
BEGIN;
DELETE FROM mlint.audit_entry;
SELECT mlint.audit_verify() AS removed;
ROLLBACK;
-- removed, and the others moved up
BEGIN;
DELETE FROM mlint.audit_entry WHERE seq = 4;
UPDATE mlint.audit_entry SET seq = seq - 1 WHERE seq = 5;
SELECT mlint.audit_verify() AS moved;
ROLLBACK;
-- inserted: in the middle, and after the end, even with the right hash
SELECT mlint.audit_month_begin(999901);
BEGIN;
INSERT INTO mlint.audit_entry SELECT seq, 999901, at, pid, xid, subxid, hash, role, session_role, application,
	client_addr, action, object_type, object, outcome, details FROM mlint.audit_entry WHERE seq = 5;
SELECT mlint.audit_verify() AS inserted;
ROLLBACK;
BEGIN;
INSERT INTO mlint.audit_entry SELECT seq + 1, 999901, at, pid, xid, subxid, hash, role, session_role, application,
	client_addr, action, object_type, object, outcome, details FROM mlint.audit_entry WHERE seq = :last;
SELECT mlint.audit_verify() = :last + 1 AS inserted;
UPDATE mlint.audit_entry e SET hash = sha256(l.hash || int8send(e.seq) || timestamptz_send(e.at) || int4send(e.pid)
	|| coalesce(xid8send(e.xid), int8send(0)) || coalesce(xid8send(e.subxid), int8send(0))
	|| (SELECT string_agg(coalesce(int4send(octet_length(t)) || convert_to(t, 'UTF8'), '\xffffffff'), '' ORDER BY n)
		FROM unnest(ARRAY[e.role, e.session_role, e.application, e.client_addr, e.action, e.object_type,
			e.object, e.outcome, e.details]) WITH ORDINALITY u(t, n)))
FROM mlint.audit_entry l WHERE l.seq = :last AND e.seq = :last + 1;
SELECT mlint.audit_verify() = :last + 1 AS inserted;
ROLLBACK;
BEGIN;
INSERT INTO mlint.audit_entry SELECT 1000000000, 999901, at, pid, xid, subxid, hash, role, session_role, application,
	client_addr, action, object_type, object, outcome, details FROM mlint.audit_entry WHERE seq = :last;
SELECT mlint.audit_verify() AS inserted;
ROLLBACK;
-- moved to another month than the entries before
BEGIN;
UPDATE mlint.audit_entry SET month = 999901 WHERE seq = 5;
SELECT mlint.audit_verify() AS moved;
ROLLBACK;
ALTER EXTENSION mlint DROP TABLE mlint.audit_entry_999901;
DROP TABLE mlint.audit_entry_999901;
SELECT mlint.audit_verify() AS whole;

-- ---- who may ----
SET ROLE regress_audit_reader;
SELECT count(*) FROM mlint.audit_log;
SELECT mlint.audit_verify();
SELECT mlint.audit_note('a.b', 'c', 'd', NULL);
SET ROLE regress_audit_user;
SELECT count(*) FROM mlint.audit_log;
SELECT mlint.audit_verify();
SET mlint.audit_durability = memory;
SET ROLE regress_audit_admin;
SELECT count(*) > 0 FROM mlint.audit_log;
SELECT mlint.audit_verify();
SELECT count(*) FROM mlint.audit_entry;
DELETE FROM mlint.audit_log;
RESET ROLE;

-- ---- settings ----
SHOW mlint.audit_durability;
SET mlint.audit_durability = never;
SELECT setting, context FROM pg_settings WHERE name = 'mlint.audit_retention';
ALTER SYSTEM SET mlint.audit_retention = 'forever';

DROP FUNCTION public.regress_audit(bigint);
DROP ROLE regress_audit_admin, regress_audit_user, regress_audit_reader;
