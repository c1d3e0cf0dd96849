-- Archives of sessions: made, read, verified, restored, deleted. The scheduler
-- is in archival.sql, object stores in archive_stores.sql.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
\set VERBOSITY default
SET mlint.archive_compression = 3;

-- a session with all there is
SELECT session_id FROM mlint.session_register('s-1', 'gpt-4', '1', ARRAY['support', 'vip'], '{"user": "ann"}');
SELECT mlint.prompt_add('s-1', E'say "hi"\\\n\t\x01\x1f / \x7f', '{"b": 1, "a": [1.50, 1e3, -0, null, true, "x\u0002"], "\ue000": {}, "\ud83d\ude00": "", "é": 1}') AS p \gset
SELECT mlint.response_add(:'p', repeat('hello ', 2000), '{"prompt_tokens": 7, "completion_tokens": 2000}', NULL, 0.1) AS r \gset
SELECT mlint.tool_call_add(:'r', 'lookup', '{"q": "x"}', U&'one\2028two \+01F600') AS t \gset
CREATE TEMP TABLE message_before AS SELECT * FROM mlint.message;
CREATE TEMP TABLE session_before AS SELECT * FROM mlint.session;
SELECT mlint.archive_session('s-1', 400, NULL, ARRAY['q3', 'q3', 'a'], '{"case": 7}') AS a \gset
SELECT session_id, model_id, policy, compliance, retention_days, extract(day FROM expires_at - archived_at)::int AS days, held, tags, metadata, messages, encrypted, compression, dictionary, store, ratio < 0.2 AS small
FROM mlint.archives;
SELECT count(*) FROM mlint.message;
SELECT status FROM mlint.sessions;

-- the document: canonical, nothing lost
SELECT mlint.archive_get(:'a') #> '{session,metadata}' AS metadata, mlint.archive_get(:'a') -> 'usage' AS usage,
	mlint.archive_get(:'a') -> 'schema' AS schema, jsonb_array_length(mlint.archive_get(:'a') -> 'messages') AS messages;
SELECT left(d, 70) AS beginning,
	substring(d FROM '"metadata":(\{"a".*?\}),"seq"') AS metadata,
	substring(d FROM '("tool":.*?)\}\]') AS tool,
	encode(sha256(convert_to(d, 'UTF8')), 'hex') = (SELECT sha256 FROM mlint.archives) AS digest,
	octet_length(d) = (SELECT bytes FROM mlint.archives) AS length
FROM mlint.archive_document(:'a') d;
SELECT mlint.archive_verify(:'a');

-- what is archived is closed
SELECT mlint.prompt_add('s-1', 'more');
SELECT mlint.archive_session('s-1');

-- restored: identical, and the archive is gone
SELECT mlint.archive_restore(:'a');
SELECT count(*) FROM (TABLE message_before EXCEPT TABLE mlint.message) x;
SELECT count(*) FROM mlint.message;
SELECT s.status, s.updated_at = b.updated_at AS updated, s.ended_at IS NOT DISTINCT FROM b.ended_at AS ended, s.metadata = b.metadata AS metadata
FROM mlint.session s JOIN session_before b USING (id);
SELECT count(*) FROM mlint.archive;
SELECT count(*) FROM mlint.archive_chunk;
\set VERBOSITY sqlstate
SELECT mlint.archive_get(:'a');
\set VERBOSITY default

-- neither compressed nor encrypted; a status that comes back
SELECT status FROM mlint.session_set_status('s-1', 'completed');
SET mlint.archive_compression = 0;
SET mlint.archive_encryption = off;
SELECT mlint.archive_session('s-1') AS a \gset
SELECT encrypted, compression, bytes = stored_bytes AS plain FROM mlint.archives;
SELECT bytes LIKE '{"messages":[{"content":"say%' FROM (SELECT convert_from(bytes, 'UTF8') AS bytes FROM mlint.archive_chunk) c;
SELECT mlint.archive_verify(:'a');
-- a plain one that was changed
BEGIN;
UPDATE mlint.archive_chunk SET bytes = overlay(bytes PLACING '\x53' FROM 26);
\set VERBOSITY sqlstate
SELECT mlint.archive_verify(:'a');
SELECT mlint.archive_restore(:'a');
\set VERBOSITY default
ROLLBACK;
SELECT mlint.archive_restore(:'a');
SELECT status FROM mlint.sessions;
RESET mlint.archive_compression;
RESET mlint.archive_encryption;

-- session_set_status(..., 'archived') is archiving
SELECT status FROM mlint.session_set_status('s-1', 'archived');
SELECT id AS a, session_id, retention_days FROM mlint.archives \gset

-- tampering: chunks, exchanged chunks, each column that says how to read them
SELECT session_id FROM mlint.session_register('s-2', 'gpt-4');
SELECT mlint.prompt_add('s-2', 'another') IS NOT NULL AS added;
SELECT mlint.archive_session('s-2') AS b \gset
CREATE FUNCTION pg_temp.tamper(statement text, archive uuid) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	EXECUTE statement;
	PERFORM mlint.archive_get(archive);
	PERFORM mlint.archive_restore(archive);
	RAISE 'it was not noticed';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN SQLSTATE || ' ' || coalesce(nullif(detail, ''), SQLERRM);
END
$$;
SELECT what, pg_temp.tamper(statement, :'a') FROM (VALUES
	('a bit', 'UPDATE mlint.archive_chunk SET bytes = set_bit(bytes, 200, 1 - get_bit(bytes, 200))'),
	('a byte less', 'UPDATE mlint.archive_chunk SET bytes = substring(bytes FOR octet_length(bytes) - 1)'),
	('nothing', 'UPDATE mlint.archive_chunk SET bytes = '''''),
	('no chunk', 'DELETE FROM mlint.archive_chunk'),
	('a chunk more', 'INSERT INTO mlint.archive_chunk SELECT archive, 1, bytes FROM mlint.archive_chunk'),
	('a chunk more, and the row', 'INSERT INTO mlint.archive_chunk SELECT archive, 1, bytes FROM mlint.archive_chunk; UPDATE mlint.archive SET chunks = 2'),
	('exchanged', 'UPDATE mlint.archive_chunk c SET bytes = (SELECT bytes FROM mlint.archive_chunk d WHERE d.archive <> c.archive)'),
	('exchanged keys', 'UPDATE mlint.archive c SET data_key = (SELECT data_key FROM mlint.archive d WHERE d.id <> c.id)'),
	('exchanged sessions', 'ALTER TABLE mlint.archive DROP CONSTRAINT archive_session_key; UPDATE mlint.archive c SET session = (SELECT session FROM mlint.archive d WHERE d.id <> c.id)'),
	('no key', 'UPDATE mlint.archive SET data_key = NULL'),
	('digest', 'UPDATE mlint.archive SET sha256 = sha256(sha256)'),
	('size', 'UPDATE mlint.archive SET plain_bytes = plain_bytes + 1'),
	('less size', 'UPDATE mlint.archive SET plain_bytes = plain_bytes - 1'),
	('stored size', 'UPDATE mlint.archive SET stored_bytes = stored_bytes + 1'),
	('not compressed', 'UPDATE mlint.archive SET zstd_level = 0'),
	('no chunks', 'UPDATE mlint.archive SET chunks = 0'),
	('messages', 'UPDATE mlint.archive SET messages = messages + 1')) t (what, statement);
SELECT mlint.archive_verify(:'a'), mlint.archive_verify(:'b');

-- a batch: a bad one fails alone
SELECT session_id FROM mlint.session_register('s-3', 'gpt-4'), mlint.session_register('s-4', 'gpt-4') x(y);
SELECT session_id, archive_id IS NOT NULL AS archived, error
FROM mlint.archive_batch(ARRAY['s-3', 'nobody', NULL, '', 's-1', 's-4', 's-3']);
SELECT messages, mlint.archive_verify(id) FROM mlint.archives WHERE session_id = 's-3';
SELECT mlint.archive_restore(id) FROM mlint.archives WHERE session_id = 's-3';
SELECT * FROM mlint.archive_batch('{}');
SELECT mlint.archive_batch(NULL);

-- policies: by name, by tag of the session or metadata of the archive, the longest counts
SELECT mlint.retention_policy_create('seven', 2555, 'hipaa') IS NOT NULL AS created;
SELECT mlint.retention_policy_create('vip', 1000, 'standard', match_tag => 'vip') IS NOT NULL AS created;
SELECT mlint.retention_policy_create('case', 1200, 'standard', match_metadata => '{"case": 7}') IS NOT NULL AS created;
BEGIN;
SELECT mlint.archive_restore(:'a');
SAVEPOINT s;
SELECT mlint.archive_session('s-1') IS NOT NULL AS archived;
SELECT policy, extract(day FROM expires_at - archived_at)::int AS days FROM mlint.archives WHERE session_id = 's-1';
ROLLBACK TO s;
SELECT mlint.archive_session('s-1', metadata => '{"case": 7}') IS NOT NULL AS archived;
SELECT policy, extract(day FROM expires_at - archived_at)::int AS days FROM mlint.archives WHERE session_id = 's-1';
ROLLBACK TO s;
SELECT mlint.archive_session('s-1', 3000, 'seven') IS NOT NULL AS archived;
SELECT policy, extract(day FROM expires_at - archived_at)::int AS days FROM mlint.archives WHERE session_id = 's-1';
ROLLBACK TO s;
SELECT mlint.archive_session('s-1', policy => 'none');
ROLLBACK;

-- bad input
SELECT mlint.archive_session(NULL);
SELECT mlint.archive_session('nobody');
SELECT mlint.archive_session('s-3', 0);
SELECT mlint.archive_session('s-3', 100000);
SELECT mlint.archive_session('s-3', tags => ARRAY['a', NULL]);
SELECT mlint.archive_session('s-3', metadata => '[1]');
SELECT mlint.archive_restore('01a1fe31-0e41-742d-b6f1-de8cd674108e');
SELECT mlint.archive_restore(NULL);
SELECT mlint.archive_get(NULL);
SELECT mlint.archive_document(NULL);
SELECT mlint.archive_verify(NULL);
SELECT mlint.archive_delete('01a1fe31-0e41-742d-b6f1-de8cd674108e');
SELECT mlint.archive_verify('01a1fe31-0e41-742d-b6f1-de8cd674108e');
SELECT mlint.archive_document('01a1fe31-0e41-742d-b6f1-de8cd674108e');
SELECT mlint.archive_delete(:'a', repeat('x', 1001));
SELECT mlint.archive_list(0);
SELECT mlint.archive_list(1, 100000);
SET mlint.archive_compression = 30;

-- lists
SELECT session_id FROM mlint.archive_list(1, 2);
SELECT session_id FROM mlint.archive_list(2, 2);
SELECT session_id FROM mlint.archive_list_after(:'b');
SELECT count(*) FROM mlint.archive_list(tag => 'none');
SELECT count(*) FROM mlint.archive_list(store => 'database', held => false, expires_before => 'infinity');

-- a held session: archived and restored, not deleted
SELECT mlint.archive_hold('s-3', 'court') IS NOT NULL AS held;
SELECT mlint.archive_session('s-3') AS c \gset
SELECT held FROM mlint.archives WHERE id = :'c';
\set VERBOSITY sqlstate
SELECT mlint.archive_delete(:'c');
\set VERBOSITY default
SELECT mlint.archive_restore(:'c');
SELECT mlint.archive_release('s-3');

-- before the period of a policy is over it takes an administrator
SELECT mlint.retention_policy_create('kept', 400) > 0 AS created;
SELECT mlint.archive_session('s-3', policy => 'kept') AS c \gset
CREATE ROLE regress_archive_user IN ROLE mlint_user;
SET ROLE regress_archive_user;
\set VERBOSITY sqlstate
SELECT mlint.archive_delete(:'c');
\set VERBOSITY default
RESET ROLE;
DROP ROLE regress_archive_user;
SELECT mlint.archive_restore(:'c');

-- deleted: the session too, and the log says why
SELECT mlint.archive_delete(:'b', 'asked for');
SELECT count(*) FROM mlint.sessions WHERE session_id = 's-2';
SELECT count(*) FROM mlint.archive_chunk WHERE archive = :'b';
SELECT action, details - 'expires_at' AS details FROM mlint.audit_log
WHERE object_type = 'archive' AND object = :'b' ORDER BY seq;

-- in REPEATABLE READ what is there now counts
SELECT session_id FROM mlint.session_register('s-5', 'gpt-4');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) > 0 AS snapshot FROM mlint.sessions;
SELECT mlint.prompt_add('s-5', 'late') IS NOT NULL AS added;
SELECT mlint.archive_session('s-5') AS e \gset
SELECT mlint.archive_restore(:'e');
SELECT mlint.archive_session('s-5') AS e \gset
SELECT jsonb_array_length(mlint.archive_get(:'e') -> 'messages') AS messages;
COMMIT;

-- dictionaries
SELECT mlint.archive_dictionary_train(1);
SELECT mlint.archive_dictionary_train();
INSERT INTO mlint.session (session_id, model_id, started_at, active_at, updated_at)
SELECT 'd-' || i, 'm', now(), now(), now() FROM generate_series(1, 60) i;
INSERT INTO mlint.message (id, session, kind, content, created_at)
SELECT gen_random_uuid(), s.id, 'prompt', (SELECT string_agg(md5(j::text), ' ') FROM generate_series(1, 100) j) || md5(s.id::text), now()
FROM mlint.session s WHERE session_id LIKE 'd-%';
SELECT mlint.archive_dictionary_train(60) AS d \gset
SELECT sessions, ratio < ratio_without AS pays, current, archives FROM mlint.archive_dictionaries;
SELECT count(archive_id) FROM mlint.archive_batch(ARRAY['d-1', 'd-2']);
SELECT count(*) FROM mlint.archives WHERE dictionary = :d AND ratio < 0.1 AND mlint.archive_verify(id);
SELECT mlint.archive_dictionary_drop(:d);
DELETE FROM mlint.archive_dictionary;
SELECT count(mlint.archive_restore(id)) FROM mlint.archives WHERE dictionary = :d;
SELECT mlint.archive_dictionary_drop(:d);
SELECT mlint.archive_dictionary_drop(:d);

-- who may
CREATE ROLE regress_archive_user IN ROLE mlint_user;
CREATE ROLE regress_archive_reader IN ROLE mlint_reader;
SET ROLE regress_archive_reader;
SELECT count(session_id) > 0 AS seen FROM mlint.archives;
SELECT metadata FROM mlint.archives;
SELECT mlint.archive_session('d-3');
SELECT mlint.archive_get(:'e');
SET ROLE regress_archive_user;
SELECT mlint.archive_session('d-3') AS f \gset
SELECT archived_by FROM mlint.archives WHERE id = :'f';
SELECT mlint.archive_restore(:'f');
SET mlint.archive_encryption = off;
SELECT mlint.archive_dictionary_train();
SELECT * FROM mlint.archive_chunk;
RESET ROLE;
DROP ROLE regress_archive_user, regress_archive_reader;
