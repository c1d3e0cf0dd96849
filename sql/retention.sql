-- Retention: policies, holds, expiry, erasure.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
SET client_min_messages = warning;
-- It runs where the test says so, and nowhere else.
UPDATE mlint.job SET command = 'SELECT 1' WHERE name = 'archive_expire';
CREATE ROLE regress_retention_admin IN ROLE mlint_admin;
CREATE ROLE regress_retention_user IN ROLE mlint_user;

-- A session with two messages, by its id; metadata may be given.
CREATE FUNCTION chat(session_id text, metadata jsonb DEFAULT '{}', tags text[] DEFAULT '{}')
RETURNS void LANGUAGE sql AS $$
	SELECT mlint.session_register(session_id, 'm', tags => tags, metadata => metadata);
	SELECT mlint.response_add(mlint.prompt_add(session_id, 'Q of ' || session_id), 'A');
$$;
-- As if the archive had been made so many days ago.
CREATE FUNCTION age(uuid, days int) RETURNS void LANGUAGE sql AS $$
	UPDATE mlint.archive SET archived_at = archived_at - '24:00'::interval * days,
		expires_at = expires_at - '24:00'::interval * days WHERE id = $1
$$;
CREATE FUNCTION archive_of(text) RETURNS uuid LANGUAGE sql AS $$
	SELECT a.id FROM mlint.archive a JOIN mlint.session s ON s.id = a.session
	WHERE s.session_id = $1
$$;
-- What a statement comes to.
CREATE FUNCTION attempt(sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	EXECUTE sql;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN regexp_replace(concat(SQLSTATE, ': ', SQLERRM, '. ' || nullif(detail, '')), '[0-9a-f-]{36}', '(id)');
END $$;
CREATE VIEW left_over AS
SELECT s.session_id, s.status, a.id IS NOT NULL AS archive,
	(SELECT count(*) FROM mlint.message m WHERE m.session = s.id) AS messages
FROM mlint.session s LEFT JOIN mlint.archive a ON a.session = s.id;

-- ---- policies ----
SELECT * FROM mlint.retention_levels ORDER BY days, level;
SELECT mlint.retention_policy_create('year', 365) > 0 AS created;
SELECT mlint.retention_policy_create('cards', 1095, 'pci', auto_delete => true,
	description => 'Card numbers may be in there', match_tag => 'card') > 0 AS created;
SELECT mlint.retention_policy_create('patients', 3000, 'hipaa', match_metadata => '{"patient": true}') > 0 AS created;
SELECT mlint.retention_policy_create('both', 400, match_tag => 'a', match_metadata => '{"b": 1}') > 0 AS created;
SELECT name, retention_days, level, auto_delete, description, match_tag, match_metadata,
	altered_at IS NULL AS unaltered FROM mlint.retention_policies ORDER BY name;

-- What is wrong is refused.
SELECT mlint.retention_policy_create('year', 365);
SELECT mlint.retention_policy_create('short', 364);
SELECT mlint.retention_policy_create('short', 2554, 'hipaa');
SELECT mlint.retention_policy_create('short', 2554, 'gdpr');
SELECT mlint.retention_policy_create('short', 2554, 'soc2');
SELECT mlint.retention_policy_create('short', 1094, 'pci');
SELECT mlint.retention_policy_create('short', 2555, 'hippa');
SELECT mlint.retention_policy_create('long', 36501);
SELECT mlint.retention_policy_create('', 365);
SELECT mlint.retention_policy_create(E'a\nb', 365);
SELECT mlint.retention_policy_create(repeat('n', 64), 365);
SELECT mlint.retention_policy_create(NULL, 365);
SELECT mlint.retention_policy_create('n', NULL);
SELECT mlint.retention_policy_create('n', 365, NULL);
SELECT mlint.retention_policy_create('n', 365, auto_delete => NULL);
SELECT mlint.retention_policy_create('n', 365, match_metadata => '{}');
SELECT mlint.retention_policy_create('n', 365, match_metadata => '[1]');
SELECT mlint.retention_policy_alter('cards', 1094);
SELECT mlint.retention_policy_alter('cards', 0);
SELECT mlint.retention_policy_alter('cards', level => 'standard');
SELECT mlint.retention_policy_alter('cards', level => 'hipaa');
SELECT mlint.retention_policy_alter('patients', level => 'gdpr');
SELECT mlint.retention_policy_alter('nobody', 400);
SELECT mlint.retention_policy_alter(NULL, 400);
SELECT mlint.retention_policy_drop('nobody');
SELECT mlint.retention_policy_drop(NULL);

-- Null keeps.
SELECT mlint.retention_policy_alter('year', description => 'One year');
SELECT mlint.retention_policy_alter('year', 400, auto_delete => true);
SELECT mlint.retention_policy_alter('both', level => 'pci', retention_days => 1200);
SELECT name, retention_days, level, auto_delete, description, altered_at IS NULL AS unaltered
FROM mlint.retention_policies WHERE name IN ('year', 'both') ORDER BY name;

-- ---- which policy an archive gets, and when its period ends ----
SELECT chat('plain'), chat('card', tags => '{card}'), chat('patient', '{"patient": true, "b": 1}'),
	chat('longest', '{"patient": true}', '{card}'), chat('half', '{"b": 2}', '{a}'),
	chat('whole', '{"b": 1}', '{a}'), chat('named', tags => '{card}');
SELECT mlint.archive_session('plain', 500) IS NOT NULL AS archived;
SELECT mlint.archive_session('card') IS NOT NULL AS archived;
SELECT mlint.archive_session('patient') IS NOT NULL AS archived;
SELECT mlint.archive_session('longest') IS NOT NULL AS archived;
SELECT mlint.archive_session('half') IS NOT NULL AS archived;
SELECT mlint.archive_session('whole') IS NOT NULL AS archived;
SELECT mlint.archive_session('named', policy => 'year') IS NOT NULL AS archived;
SELECT v.session_id, v.policy, v.retention_days, v.auto_delete,
	v.ends_at - v.archived_at AS period, v.erasable_at - v.archived_at AS not_erasable_for,
	a.expires_at = v.ends_at AS up_to_date
FROM mlint.archive_periods v JOIN mlint.archive a ON a.id = v.archive_id ORDER BY 1;

-- ---- applying one ----
SELECT mlint.retention_policy_apply(archive_of('plain'), 'cards');
SELECT attempt($$SELECT mlint.retention_policy_apply(archive_of('plain'), 'year')$$);
SELECT mlint.retention_policy_apply(archive_of('plain'), 'patients');
SELECT mlint.retention_policy_create('long', 4000) > 0 AS created;
SELECT attempt($$SELECT mlint.retention_policy_apply(archive_of('plain'), 'long')$$);
SELECT mlint.retention_policy_apply(archive_of('plain'), 'nobody');
SELECT mlint.retention_policy_apply('00000000-0000-0000-0000-000000000000', 'long');
SELECT mlint.retention_policy_apply(NULL, 'long');
-- By number, as retention_policy_create() returned it.
SELECT mlint.retention_policy_apply(archive_of('plain'), id) FROM mlint.retention_policies WHERE name = 'patients';
SELECT policy FROM mlint.archives WHERE session_id = 'plain';
SELECT mlint.retention_policy_apply(archive_of('plain'), 0);
SELECT mlint.retention_policy_apply(archive_of('plain'), NULL::int);
SELECT mlint.retention_policy_drop('patients');
SELECT mlint.retention_policy_drop('long');
SELECT session_id, policy, retention_days FROM mlint.archive_periods WHERE session_id = 'plain';

-- ---- holds ----
SELECT chat('live');
SELECT mlint.archive_hold('live', 'case 1') AS live_hold
\gset
SELECT mlint.archive_hold('live', 'case 2') > :live_hold AS second;
SELECT mlint.archive_hold('card', 'case 1') > 0 AS of_session;
SELECT mlint.archive_hold(archive_of('card'), 'case 2') > 0 AS of_archive;
SELECT mlint.archive_hold(archive_of('card')::text, 'case 3') > 0 AS of_archive_as_text;
SELECT session_id, archive_id = archive_of(session_id) AS archive, reason, placed_by = current_user AS by_us, released_at
FROM mlint.holds ORDER BY id;
-- What is wrong is refused.
SELECT mlint.archive_hold('nobody', 'x');
SELECT mlint.archive_hold('00000000-0000-0000-0000-000000000000', 'x');
SELECT mlint.archive_hold('00000000-0000-0000-0000-000000000000'::uuid, 'x');
SELECT mlint.archive_hold('live', '');
SELECT mlint.archive_hold('live', repeat('x', 1001));
SELECT mlint.archive_hold('live', NULL);
SELECT mlint.archive_hold(NULL::text, 'x');
SELECT mlint.archive_release('nobody');
SELECT mlint.archive_release(0);
SELECT mlint.archive_release(NULL::uuid);
SET ROLE regress_retention_user;
SELECT mlint.archive_hold('live', 'x');
SELECT mlint.archive_release('live');
RESET ROLE;

-- No way around it, for a superuser neither.
SELECT mlint.session_delete('live');
\set VERBOSITY terse
SELECT sql, attempt(sql) FROM unnest(ARRAY[
	$$SELECT mlint.archive_delete(archive_of('card'))$$,
	$$DELETE FROM mlint.session WHERE session_id = 'live'$$,
	$$DELETE FROM mlint.message m USING mlint.session s WHERE s.id = m.session AND s.session_id = 'live'$$,
	$$UPDATE mlint.message m SET content = '' FROM mlint.session s WHERE s.id = m.session AND s.session_id = 'live'$$,
	$$UPDATE mlint.message m SET session = o.id FROM mlint.session s, mlint.session o
		WHERE s.id = m.session AND s.session_id = 'live' AND o.session_id = 'half'$$,
	$$DELETE FROM mlint.archive WHERE id = archive_of('card')$$,
	$$UPDATE mlint.archive SET session = (SELECT id FROM mlint.session WHERE session_id = 'live') WHERE id = archive_of('card')$$,
	$$UPDATE mlint.archive SET sha256 = sha256 WHERE id = archive_of('card')$$,
	$$DELETE FROM mlint.archive_chunk WHERE archive = archive_of('card')$$,
	$$UPDATE mlint.archive_chunk SET bytes = '' WHERE archive = archive_of('card')$$,
	$$DELETE FROM mlint.data_key k USING mlint.archive a WHERE k.id = a.data_key AND a.id = archive_of('card')$$,
	$$DELETE FROM mlint.hold WHERE released_at IS NULL$$,
	$$UPDATE mlint.hold SET released_at = now(), released_by = 'me'$$,
	$$UPDATE mlint.hold SET session = (SELECT id FROM mlint.session WHERE session_id = 'half')$$,
	$$TRUNCATE mlint.session CASCADE$$,
	$$TRUNCATE mlint.message$$,
	$$TRUNCATE mlint.archive CASCADE$$,
	$$TRUNCATE mlint.archive_chunk$$,
	$$TRUNCATE mlint.hold$$,
	-- What is not held may go.
	$$DELETE FROM mlint.message m USING mlint.session s WHERE s.id = m.session AND s.session_id = 'none'$$]) sql;
SET session_replication_role = replica;
SELECT attempt($$DELETE FROM mlint.session WHERE session_id = 'live'$$),
	attempt($$DELETE FROM mlint.archive WHERE id = archive_of('card')$$),
	attempt($$TRUNCATE mlint.archive_chunk$$);
RESET session_replication_role;
-- As if it were live again: its messages are not there.
SELECT attempt($$UPDATE mlint.session SET status = 'active' WHERE session_id = 'card'; DELETE FROM mlint.archive WHERE id = archive_of('card')$$);
SELECT * FROM left_over WHERE session_id IN ('live', 'card') ORDER BY 1;

-- Archiving and restoring are no deletion.
SELECT mlint.archive_restore(archive_of('card'));
SELECT mlint.archive_session('live') IS NOT NULL AS archived;
SELECT * FROM left_over WHERE session_id IN ('live', 'card') ORDER BY 1;
SELECT session_id, archive_id IS NOT NULL AS archive FROM mlint.holds ORDER BY id;
SELECT attempt($$SELECT mlint.session_delete('card')$$),
	attempt($$SELECT mlint.archive_delete(archive_of('live'))$$);

-- One, and all.
SET ROLE regress_retention_admin;
SELECT mlint.archive_release(:live_hold, 'case 1 is closed'), mlint.archive_release(:live_hold);
RESET ROLE;
SELECT attempt($$SELECT mlint.archive_delete(archive_of('live'))$$);
SELECT mlint.archive_release('live'), mlint.archive_release(archive_of('live'));
SELECT reason, placed_by = current_user AS by_us, released_by = current_user AS released_by_us, released_at >= placed_at AS released, release_reason
FROM mlint.holds WHERE session_id = 'live' ORDER BY id;
SELECT attempt($$DELETE FROM mlint.hold WHERE id = $$ || :live_hold);
SELECT attempt($$SELECT mlint.archive_delete(archive_of('live'))$$);
SELECT mlint.archive_release('card', 'all closed');
SELECT mlint.session_delete('card');
SELECT * FROM left_over WHERE session_id IN ('live', 'card') ORDER BY 1;
SELECT count(*) FROM mlint.holds;
SELECT action, object, details - 'archive' - 'hold' AS details FROM mlint.audit_log
WHERE action IN ('hold.place', 'hold.release') ORDER BY seq;
\set VERBOSITY default

-- ---- what is due ----
SELECT mlint.retention_policy_create('go', 365, auto_delete => true) > 0 AS created;
SELECT mlint.retention_policy_create('stay', 365) > 0 AS created;
SELECT chat('e' || n) FROM generate_series(1, 9) n \g /dev/null
SELECT count(mlint.archive_session('e' || n, policy => CASE WHEN n <= 4 THEN 'go' WHEN n <= 7 THEN 'stay' END))
FROM generate_series(1, 9) n;
SELECT mlint.archive_hold('e3', 'case 3') > 0 AS held;
SELECT mlint.archive_hold('e7', 'case 7') > 0 AS held;
-- 1 to 8 are past their periods, but for 2, which is so in 10 days; the hold's
-- guard is out of the way for the clock.
ALTER TABLE mlint.archive DISABLE TRIGGER hold_guard_update;
SELECT age(archive_of('e' || n), CASE n WHEN 2 THEN 355 ELSE 400 END) FROM generate_series(1, 8) n \g /dev/null
ALTER TABLE mlint.archive ENABLE ALWAYS TRIGGER hold_guard_update;

SELECT policy, level, action, archives, bytes > 0 AS bytes, held, announced,
	now() - earliest < '36 days' AND now() - earliest > '34 days' AS earliest,
	latest > now() AS latest_to_come
FROM mlint.retention_report() ORDER BY 1;
SELECT policy, archives, held FROM mlint.retention_report(now()) ORDER BY 1;
SELECT policy, archives FROM mlint.retention_report(now() - '40 days'::interval);
SELECT policy, archives FROM mlint.retention_report(now() + '36500 days'::interval) ORDER BY 1;
SELECT * FROM mlint.retention_report(NULL);

-- Deleted are those whose policy says so; the others are announced, once.
CALL mlint.archive_expire();
CALL mlint.archive_expire();
SELECT v.session_id, v.policy, v.announced_at IS NOT NULL AS announced
FROM mlint.archive_periods v WHERE v.session_id LIKE 'e%' ORDER BY 1;
SELECT data->>'session_id' AS session, data->>'policy' AS policy, data->>'held' AS held,
	data->>'auto_delete' AS auto_delete, (data->>'expired_at')::timestamptz < now() AS expired,
	(data->>'bytes')::bigint > 0 AS bytes
FROM mlint.events WHERE type = 'archive.expired' ORDER BY 1;
SELECT details FROM mlint.audit_log WHERE action = 'archive.delete' AND details->>'reason' = 'expired' ORDER BY seq;
SELECT policy, action, archives, held, announced FROM mlint.retention_report() ORDER BY 1;

-- What is released goes with the next run.
SELECT mlint.archive_release('e3'), mlint.archive_release('e7');
CALL mlint.archive_expire();
SELECT session_id FROM mlint.archive_periods WHERE session_id IN ('e3', 'e7');
SELECT count(*) FROM mlint.events WHERE type = 'archive.expired';

-- An altered policy counts at once; expires_at follows, and what was announced
-- is looked at again.
SELECT mlint.retention_policy_alter('stay', 500);
SELECT session_id, retention_days, ends_at > now() AS to_come, announced_at IS NOT NULL AS announced
FROM mlint.archive_periods WHERE policy = 'stay' ORDER BY 1;
SELECT policy, archives FROM mlint.retention_report(now()) ORDER BY 1;
CALL mlint.archive_expire();
SELECT v.session_id, a.expires_at = v.ends_at AS up_to_date, v.announced_at
FROM mlint.archive_periods v JOIN mlint.archive a ON a.id = v.archive_id WHERE v.policy = 'stay' ORDER BY 1;
SELECT mlint.retention_policy_alter('stay', 365);
SELECT policy, archives FROM mlint.retention_report(now()) ORDER BY 1;
SELECT mlint.retention_policy_alter('stay', auto_delete => true);
CALL mlint.archive_expire();
SELECT session_id, policy FROM mlint.archive_periods WHERE session_id LIKE 'e%' ORDER BY 1;
-- expires_at that is behind is put right, and nothing is deleted for it.
UPDATE mlint.archive SET expires_at = now() - '1 day'::interval WHERE id = archive_of('e2');
CALL mlint.archive_expire();
SELECT v.session_id, a.expires_at = v.ends_at AS up_to_date
FROM mlint.archive_periods v JOIN mlint.archive a ON a.id = v.archive_id WHERE v.session_id = 'e2';
-- Another policy: announced before, it is looked at anew.
SELECT mlint.retention_policy_apply(archive_of('e8'), 'go');
CALL mlint.archive_expire();
SELECT session_id, policy FROM mlint.archive_periods WHERE session_id LIKE 'e%' ORDER BY 1;
SELECT count(*) FROM mlint.archive_chunk c WHERE NOT EXISTS (SELECT FROM mlint.archive a WHERE a.id = c.archive);

-- One that fails does not stop the rest, and is told.
SELECT chat('f' || n) FROM generate_series(1, 3) n \g /dev/null
SELECT count(mlint.archive_session('f' || n, policy => 'go')) FROM generate_series(1, 3) n;
SELECT age(archive_of('f' || n), 400 + n) FROM generate_series(1, 3) n \g /dev/null
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
SELECT archive_of('f2') AS f2 \gset
CREATE TRIGGER fail BEFORE DELETE ON mlint.archive FOR EACH ROW
	WHEN (OLD.id = archive_of('f2')) EXECUTE FUNCTION fail();
\set VERBOSITY sqlstate
CALL mlint.archive_expire();
\set VERBOSITY default
DROP TRIGGER fail ON mlint.archive;
SELECT session_id FROM mlint.archive_periods WHERE session_id LIKE 'f%';
SELECT object = :'f2' AS f2, outcome, details FROM mlint.audit_log
WHERE action = 'archive.delete' AND outcome = 'failed';
SET client_min_messages = warning;
CALL mlint.archive_expire();
SELECT session_id FROM mlint.archive_periods WHERE session_id LIKE 'f%';
BEGIN;
CALL mlint.archive_expire();
ROLLBACK;

-- ---- erasure ----
SELECT chat('s1', '{"user": "ann"}'), chat('s2', '{"user": "ann", "n": 1}'), chat('s3', '{"user": "bob"}'),
	chat('s4', '{"user": 42}'), chat('s5', '{"user": "42"}'), chat('s6', '{"user": "ann"}'),
	chat('s7', '{"user": "ann", "patient": true}'), chat('s8', '{"user": "ann", "patient": true}'),
	chat('s9', '{"user": {"id": 7, "name": "eve"}}'), chat('s10', '{"other": "ann"}'), chat('s11') \g /dev/null
SELECT mlint.archive_session('s2') IS NOT NULL AS archived;
SELECT mlint.archive_session('s8') IS NOT NULL AS archived;
SELECT mlint.archive_session('s11', metadata => '{"user": "ann"}') IS NOT NULL AS archived;
SELECT mlint.archive_hold('s6', 'case 6') > 0 AS held;
-- For whom it is.
SET ROLE regress_retention_user;
SELECT mlint.erase_subject('user', 'ann');
SET ROLE regress_retention_admin;
SELECT mlint.erase_subject('user', 'ann') AS receipt \gset
RESET ROLE;
SELECT jsonb_pretty((:'receipt'::jsonb - '{id,requested_at,signature,database,requested_by}'::text[]) #- '{subject,salt}' #- '{subject,sha256}' #- '{refused,list,2,archive}' #- '{refused,list,2,until}');
SELECT * FROM left_over WHERE session_id LIKE 's%' ORDER BY length(session_id), 1;
SELECT count(*) FROM mlint.message m WHERE NOT EXISTS (SELECT FROM mlint.session s WHERE s.id = m.session);
-- The receipt is signed, and says whose it is to those who know.
SELECT mlint.erasure_receipt_verify(:'receipt') AS signed,
	mlint.erasure_receipt_verify(jsonb_set(:'receipt', '{erased,archives}', '3')) AS changed,
	mlint.erasure_receipt_verify(:'receipt'::jsonb || '{"more": 1}') AS added,
	mlint.erasure_receipt_verify(:'receipt'::jsonb - 'remains') AS taken,
	mlint.erasure_receipt_verify(:'receipt'::jsonb - 'signature') AS unsigned,
	mlint.erasure_receipt_verify(jsonb_set(:'receipt', '{signature,key_version}', '2')) AS other_key,
	mlint.erasure_receipt_verify(jsonb_set(:'receipt', '{signature,value}', '"x"')) AS nonsense,
	mlint.erasure_receipt_verify('[]') AS no_object, mlint.erasure_receipt_verify('{"signature": []}') AS no_signature,
	mlint.erasure_receipt_verify(NULL) AS nothing;
SELECT encode(sha256(decode(r->'subject'->>'salt', 'hex') || 'ann'), 'hex') = r->'subject'->>'sha256' AS of_ann,
	encode(sha256(decode(r->'subject'->>'salt', 'hex') || 'bob'), 'hex') = r->'subject'->>'sha256' AS of_bob
FROM (SELECT :'receipt'::jsonb AS r) r;
SELECT name, type, owner = current_user AS of_superuser, version FROM mlint.secrets WHERE name = 'mlint/erasure-receipts';
SELECT version, current, public_key LIKE '-----BEGIN PUBLIC KEY-----%' AS pem
FROM mlint.secret_public_keys WHERE name = 'mlint/erasure-receipts';
SELECT key, sessions, archives, refused, requested_by, receipt = :'receipt' AS receipt,
	digest = sha256(salt || 'ann') AS digest FROM mlint.erasures;
SELECT session_id, archive_id IS NOT NULL AS archive, reason, until > now() AS until FROM mlint.erasure_refusals ORDER BY 1;
SELECT action, object_type, details - 'erasure' - 'subject_sha256' AS details FROM mlint.audit_log
WHERE details->>'reason' = 'erasure' OR action = 'subject.erase' ORDER BY seq;
-- Nowhere is the value kept.
SELECT count(*) FROM mlint.audit_log WHERE details::text LIKE '%ann%' AND action <> 'hold.place';
SELECT count(*) FROM mlint.erasure e WHERE e::text LIKE '%ann"%';

-- Again: only what is kept is there.
SELECT r->'erased' AS erased, r->'refused'->'count' AS refused FROM mlint.erase_subject('user', 'ann') r;
SELECT r->'erased' AS erased, r->'refused' AS refused FROM mlint.erase_subject('user', 'nobody') r;
-- A number is the same as a string or a number.
SELECT r->'erased' AS erased FROM mlint.erase_subject('user', '42') r;
-- An object that is contained.
SELECT r->'erased' AS erased, r->'subject'->'key' AS key FROM mlint.erase_subject('{"user": {"id": 7}}') r;
-- What no duty keeps any more.
SELECT mlint.archive_release('s6');
SELECT age(archive_of('s8'), 3001);
SELECT r->'erased' AS erased, r->'refused'->'count' AS refused FROM mlint.erase_subject('user', 'ann') r;
SELECT * FROM left_over WHERE session_id LIKE 's%' ORDER BY length(session_id), 1;
SELECT count(*), count(DISTINCT id), bool_and(mlint.erasure_receipt_verify(receipt)) AS signed FROM mlint.erasures;
-- What is taken back has not been.
BEGIN;
SELECT r->'erased' AS erased FROM mlint.erase_subject('user', 'bob') r;
ROLLBACK;
SELECT * FROM left_over WHERE session_id = 's3';
-- Where nothing can be written it says what cannot be done there.
SET default_transaction_read_only = on;
SELECT mlint.archive_hold('s3', 'x');
SELECT mlint.archive_release('s3');
SELECT mlint.retention_policy_create('r', 400);
SELECT mlint.retention_policy_alter('year', 400);
SELECT mlint.retention_policy_drop('year');
SELECT mlint.retention_policy_apply('00000000-0000-0000-0000-000000000000', 'year');
SELECT mlint.erase_subject('user', 'bob');
SELECT mlint.erase_subject('{"user": "bob"}');
CALL mlint.archive_expire();
RESET default_transaction_read_only;
-- Bad input.
SELECT mlint.erase_subject('', 'x');
SELECT mlint.erase_subject('user', '');
SELECT mlint.erase_subject(NULL, 'x');
SELECT mlint.erase_subject('user', NULL);
SELECT mlint.erase_subject(NULL::jsonb);
SELECT mlint.erase_subject('{}');
SELECT mlint.erase_subject('{"a": {"b": []}}');
SELECT mlint.erase_subject('["user"]');
SELECT mlint.erase_subject('"user"');
SELECT r->'erased' AS erased FROM mlint.erase_subject('user', '1e5') r;
SELECT r->'erased' AS erased FROM mlint.erase_subject(E'we"ird\\', E'va\\l"ue') r;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT mlint.erase_subject('user', 'bob');
ROLLBACK;

RESET client_min_messages;
DROP VIEW left_over;
DROP FUNCTION chat(text, jsonb, text[]), age(uuid, int), archive_of(text), attempt(text), fail();
DROP ROLE regress_retention_admin, regress_retention_user;
