-- Sessions and models: registering, listing, what is said, and what is refused.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
\pset null '(null)'

CREATE ROLE sessions_user IN ROLE mlint_user;
CREATE ROLE sessions_reader IN ROLE mlint_reader;

-- What does not depend on the time.
CREATE FUNCTION shown(s mlint.sessions) RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', s.session_id, s.model_id, quote_literal(s.model_version),
		s.status, s.tags, s.metadata,
		CASE WHEN s.ended_at IS NULL THEN 'goes on' ELSE 'has ended' END)
$$;

-- ---- registering ----

SELECT shown(s) FROM mlint.session_register('chat-1', 'gpt-4',
	tags => '{production,beta,production}', metadata => '{"user": "u-1"}') s;
-- The same again: the same session.
SELECT a.updated_at = b.updated_at AS same
FROM mlint.session_register('chat-1', 'gpt-4', '', '{beta,production}', '{"user": "u-1"}') a,
	mlint.session_get('chat-1') b;
SELECT shown(s) FROM mlint.session_register('chat-1', 'gpt-4', NULL, '{beta,production}',
	'{"user": "u-1"}', (mlint.session_get('chat-1')).started_at) s;
-- Another session under the same id.
SELECT mlint.session_register('chat-1', 'gpt-5', '', '{beta,production}', '{"user": "u-1"}');
SELECT mlint.session_register('chat-1', 'gpt-4', '1', '{beta,production}', '{"user": "u-1"}');
SELECT mlint.session_register('chat-1', 'gpt-4', '', '{beta}', '{"user": "u-1"}');
SELECT mlint.session_register('chat-1', 'gpt-4', '', '{beta,production}', '{"user": "u-2"}');
SELECT mlint.session_register('chat-1', 'gpt-4', '', '{beta,production}', '{"user": "u-1"}', '2020-01-01');
-- Nulls are defaults; the least there can be.
SELECT shown(s) FROM mlint.session_register('chat-2', 'm', NULL, NULL, NULL) s;
SELECT started_at = now() AS now FROM mlint.session_register('chat-3', 'm');

-- What is refused.
SELECT mlint.session_register(NULL, 'm');
SELECT mlint.session_register('x', NULL);
SELECT mlint.session_register('', 'm');
SELECT mlint.session_register('x', '');
SELECT mlint.session_register(repeat('x', 256), 'm');
SELECT mlint.session_register(E'a\nb', 'm');
SELECT mlint.session_register('x', E'm\x7f');
SELECT mlint.session_register('x', 'm', E'1\t');
SELECT mlint.session_register('x', 'm', tags => '{a,NULL}');
SELECT mlint.session_register('x', 'm', tags => '{a,""}');
SELECT mlint.session_register('x', 'm', tags => '{{a},{b}}');
SELECT mlint.session_register('x', 'm', tags => array_fill('t'::text, '{101}'));
SELECT mlint.session_register('x', 'm', metadata => '[1]');
SELECT mlint.session_register('x', 'm', metadata => 'null');
SELECT mlint.session_register('x', 'm', metadata => jsonb_build_object('a', repeat('x', 1024 * 1024)));
SELECT mlint.session_register('x', 'm', started_at => 'infinity');
SELECT mlint.session_get('x');
SELECT mlint.session_get(NULL);
BEGIN READ ONLY;
SELECT mlint.session_register('x', 'm');
ROLLBACK;
SELECT count(*) FROM mlint.sessions WHERE session_id = 'x';

-- What is undone is not there, and the id is free.
DO $$
BEGIN
	BEGIN
		PERFORM mlint.session_register('undone', 'm');
		PERFORM mlint.prompt_add('undone', 'hello');
		RAISE EXCEPTION 'no';
	EXCEPTION WHEN raise_exception THEN
		NULL;
	END;
	PERFORM mlint.session_register('undone', 'other');
END
$$;
SELECT shown(mlint.session_get('undone'));

-- ---- status ----

SELECT shown(mlint.session_set_status('chat-2', 'active'));
SELECT shown(mlint.session_set_status('chat-2', 'completed'));
SELECT shown(mlint.session_set_status('chat-2', 'completed'));
SELECT mlint.session_set_status('chat-2', 'failed');
SELECT shown(mlint.session_set_status('chat-2', 'active'));
SELECT shown(mlint.session_set_status('chat-2', 'failed'));
SELECT mlint.session_set_status('chat-2', 'completed');
SELECT mlint.session_set_status('chat-2', 'gone');
SELECT mlint.session_set_status('chat-2', NULL);
SELECT mlint.session_set_status('nobody', 'active');
SELECT mlint.session_set_status('nobody', 'archived');
-- Archived ones are left to the archive.
UPDATE mlint.session SET status = 'archived' WHERE session_id = 'chat-3';
SELECT shown(mlint.session_set_status('chat-3', 'archived'));
SELECT mlint.session_set_status('chat-3', 'active');
SELECT shown(mlint.session_register('chat-3', 'm'));
SELECT mlint.prompt_add('chat-3', 'hello');
SELECT * FROM mlint.session_transcript('chat-3');
SELECT * FROM mlint.session_branches('chat-3');
SELECT mlint.session_delete('chat-3');
UPDATE mlint.session SET status = 'active' WHERE session_id = 'chat-3';
SELECT mlint.session_delete('chat-3');

-- ---- what is said ----

SELECT mlint.prompt_add('chat-1', 'What is the capital of Norway?') AS p1 \gset
SELECT mlint.response_add(:'p1', 'Let me look that up.', '{"prompt_tokens": 7}', latency_ms => 0) AS r1 \gset
SELECT mlint.tool_call_add(:'r1', 'atlas', '{"country": "Norway"}', 'Oslo', latency_ms => 12.5) AS t1 \gset
SELECT mlint.tool_call_add(:'r1', 'weather', error => 'no network') AS t2 \gset
SELECT mlint.response_add(:'t2', 'It is Oslo.', model_id => 'gpt-4-turbo', metadata => '{"finish": "stop"}') AS r2 \gset
SELECT mlint.prompt_add('chat-1', 'And of Sweden?', '{"from": "phone"}') AS p2 \gset
SELECT kind, content, model_id, usage, latency_ms, tool, metadata
FROM mlint.session_transcript('chat-1');
SELECT id = :'p2' AS p2, parent = :'r2' AS after_r2
FROM mlint.session_transcript('chat-1') WHERE content = 'And of Sweden?';
-- Ids grow with time.
SELECT array_agg(id ORDER BY created_at) = array_agg(id ORDER BY id) AS ordered,
	count(DISTINCT substr(id::text, 15, 1)) = 1 AND min(substr(id::text, 15, 1)) = '7' AS version_7
FROM mlint.message;
-- A branch: another question in the place of the second, and of the first.
SELECT mlint.prompt_add('chat-1', 'And of Denmark?', parent => :'r2') AS p3 \gset
SELECT mlint.response_add(:'p3', 'Copenhagen.') AS r3 \gset
SELECT mlint.prompt_add('chat-1', 'Never mind.', parent => '00000000-0000-0000-0000-000000000000') AS p4 \gset
SELECT kind, content FROM mlint.session_transcript('chat-1');
SELECT kind, content FROM mlint.session_transcript('chat-1', :'r3');
SELECT kind, content FROM mlint.session_transcript('chat-1', :'t1');
SELECT b.kind, t.content FROM mlint.session_branches('chat-1') b,
	mlint.session_transcript('chat-1', b.leaf) t WHERE t.id = b.leaf;
-- A tool's result that nothing follows: its response is the leaf.
SELECT shown(mlint.session_register('chat-4', 'm'));
SELECT * FROM mlint.session_transcript('chat-4');
SELECT * FROM mlint.session_branches('chat-4');
SELECT mlint.tool_call_add(mlint.response_add(mlint.prompt_add('chat-4', 'a'), 'b'), 'c') IS NOT NULL AS added;
SELECT kind FROM mlint.session_branches('chat-4');
SELECT kind FROM mlint.session_transcript('chat-4');
SELECT kind, content FROM mlint.session_transcript('chat-4', (SELECT leaf FROM mlint.session_branches('chat-4')));
-- Two prompts in a row.
SELECT mlint.prompt_add('chat-4', 'd') IS NOT NULL, mlint.prompt_add('chat-4', 'e') IS NOT NULL;
SELECT kind, content FROM mlint.session_transcript('chat-4');

-- What is refused.
SELECT mlint.prompt_add('nobody', 'x');
SELECT mlint.prompt_add('chat-1', NULL);
SELECT mlint.prompt_add('chat-1', 'x', '[]');
SELECT mlint.prompt_add('chat-1', repeat('x', 256 * 1024 * 1024 + 1));
-- Ids differ from run to run.
SELECT count(set_config('test.' || n, v, false))
FROM (VALUES ('p1', :'p1'), ('r1', :'r1'), ('t1', :'t1')) i(n, v);
CREATE FUNCTION refused(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	EXECUTE statement USING current_setting('test.p1')::uuid, current_setting('test.r1')::uuid,
		current_setting('test.t1')::uuid, gen_random_uuid();
	RETURN 'not refused';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN regexp_replace(concat_ws(' | ', sqlstate, sqlerrm, nullif(hint, '')), '[0-9a-f-]{36}', '<id>');
END
$$;
SELECT refused($$SELECT mlint.prompt_add('chat-4', 'x', parent => $2)$$);
SELECT refused($$SELECT mlint.prompt_add('chat-1', 'x', parent => $1)$$);
SELECT refused($$SELECT mlint.prompt_add('chat-1', 'x', parent => $4)$$);
SELECT refused($$SELECT mlint.response_add($2, 'x')$$);
SELECT refused($$SELECT mlint.response_add($4, 'x')$$);
SELECT refused($$SELECT mlint.response_add(NULL, 'x')$$);
SELECT refused($$SELECT mlint.response_add($1, NULL)$$);
SELECT refused($$SELECT mlint.response_add($1, 'x', '7')$$);
SELECT refused($$SELECT mlint.response_add($1, 'x', model_id => '')$$);
SELECT refused($$SELECT mlint.response_add($1, 'x', latency_ms => -1)$$);
SELECT refused($$SELECT mlint.response_add($1, 'x', latency_ms => 'NaN')$$);
SELECT refused($$SELECT mlint.response_add($1, 'x', latency_ms => 'infinity')$$);
SELECT refused($$SELECT mlint.tool_call_add($1, 'x')$$);
SELECT refused($$SELECT mlint.tool_call_add($3, 'x')$$);
SELECT refused($$SELECT mlint.tool_call_add($2, NULL)$$);
SELECT refused($$SELECT mlint.tool_call_add($2, 'x', '[]')$$);
SELECT refused($$SELECT * FROM mlint.session_transcript('chat-4', $1)$$);
SELECT refused($$SELECT * FROM mlint.session_transcript('chat-4', $4)$$);
SELECT refused($$SELECT * FROM mlint.session_transcript('nobody')$$);
-- An ended session takes answers, but no questions.
SELECT shown(mlint.session_set_status('chat-1', 'completed'));
SELECT mlint.prompt_add('chat-1', 'x');
SELECT mlint.response_add(:'p4', 'As you like.') IS NOT NULL AS added;
SELECT shown(mlint.session_set_status('chat-1', 'active'));

-- active_at moves only when it is an hour old.
SELECT active_at AS before FROM mlint.session_get('chat-4') \gset
SELECT mlint.prompt_add('chat-4', 'f') IS NOT NULL AS added;
SELECT active_at = :'before' AS as_before FROM mlint.session_get('chat-4');
UPDATE mlint.session SET active_at = now() - interval '1 hour' WHERE session_id = 'chat-4';
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT mlint.prompt_add('chat-4', 'g') IS NOT NULL AS added;
SELECT active_at > now() - interval '10 minutes' AS moved FROM mlint.session_get('chat-4');
COMMIT;

-- ---- search ----

SELECT session_id, kind, snippet FROM mlint.session_search('capital norway');
SELECT session_id, kind, snippet FROM mlint.session_search('"capital of norway" or copenhagen', sort => 'newest');
SELECT content, rank > 0 AS ranked FROM mlint.session_search('oslo -look') m
JOIN mlint.session_transcript('chat-1', :'r3') t ON t.id = m.message_id ORDER BY rank DESC, id DESC;
SELECT count(*) FROM mlint.session_search('capital', session_id => 'chat-1', kind => 'prompt',
	tag => 'beta', metadata => '{"user": "u-1"}', said_from => now() - interval '1 hour', said_to => 'infinity');
SELECT count(*) FROM mlint.session_search('capital', session_id => 'chat-4');
SELECT count(*) FROM mlint.session_search('capital', kind => 'response');
SELECT count(*) FROM mlint.session_search('capital', tag => 'gamma');
SELECT count(*) FROM mlint.session_search('capital', metadata => '{"user": "u-2"}');
SELECT count(*) FROM mlint.session_search('capital', said_to => now() - interval '1 hour');
SELECT count(*) FROM mlint.session_search('the');
SELECT count(*) FROM mlint.session_search('');
SELECT count(*) FROM mlint.session_search('a & | ! ( <-> "x');
SELECT shown(mlint.session_register('long', 'm'));
-- Pages of all matches.
SELECT count(mlint.prompt_add('long', 'zebra ' || i)) FROM generate_series(1, 25) i;
SELECT snippet, message_id AS last FROM mlint.session_search('zebra', sort => 'newest', page_size => 10) OFFSET 9 \gset
SELECT snippet FROM mlint.session_search('zebra', sort => 'newest', page_size => 2, after => :'last');
SELECT mlint.session_search('zebra', after => :'last');
SELECT mlint.session_search('zebra', sort => 'best');
SELECT mlint.session_search('zebra', kind => 'word');
SELECT mlint.session_search('zebra', page_size => 1001);
SELECT mlint.session_search(repeat('zebra ', 1000));
SELECT mlint.session_search(NULL);
-- Texts that a tsvector, or its parser, has trouble with.
SELECT count(mlint.prompt_add('long', t)) FROM (VALUES
	((SELECT string_agg(substr(md5(i::text), 1, 6), ' ') FROM generate_series(1, 400000) i)),
	((SELECT string_agg('http://' || md5(i::text) || '.com/' || i, ' ') FROM generate_series(1, 40000) i)),
	((SELECT string_agg(substr(md5(i::text), 1, 3), '-') FROM generate_series(1, 40000) i)),
	((SELECT string_agg(chr(20000 + i % 3000), '') FROM generate_series(1, 100000) i)),
	(repeat('x', 1000000)), (repeat(' ', 1000000)), (repeat('<', 1000000)),
	('<!-- ' || repeat('comment ', 10000) || '-->'), ('<p ' || repeat('a="b" ', 10000) || '>'),
	(''), (E'\u00e9'), (repeat(U&'\0301', 100000))) v(t);
SELECT count(mlint.prompt_add('long', t)) FROM (VALUES (repeat('--- ', 1000)), (repeat(chr(9472), 5000)),
	(repeat(chr(128512) || ' ', 5000))) v(t);
SELECT mlint.session_words('a <b>bold</b> move'), length(mlint.session_words(repeat('ab ', 1000000)));
SELECT mlint.session_words('a ' || repeat('x', 1025) || ' b'), length(mlint.session_words('c ' || repeat('x', 1024) || ' b'));
SELECT mlint.session_snippet(repeat('--- ', 1000) || 'a <b>bold</b> move', 'move');
SET client_min_messages = notice;
SELECT to_tsvector('english', repeat('x', 2048));
RESET client_min_messages;
-- What lies behind the first 128 kB is not found; the rest is.
SELECT mlint.prompt_add('long', 'giraffe ' || repeat('and ', 50000) || 'hippopotamus') IS NOT NULL AS added;
SELECT count(*) FILTER (WHERE q = 'giraffe') AS giraffes, count(*) FILTER (WHERE q = 'hippopotamus') AS hippopotamuses
FROM (VALUES ('giraffe'), ('hippopotamus')) v(q), mlint.session_search(q);
-- 100 MB is a message like another.
SELECT mlint.prompt_add('long', repeat('0123456789', 10000000)) AS large \gset
SELECT length(content), right(content, 3) FROM mlint.session_transcript('long') WHERE id = :'large';

-- ---- lists ----

SELECT count(mlint.session_register('list-' || i, 'model-' || i % 3, tags => ARRAY['tag-' || i % 2],
	metadata => jsonb_build_object('n', i % 5), started_at => '1990-01-01'::timestamptz + interval '1 hour' * (i / 2)))
FROM generate_series(1, 60) i;
SELECT session_id FROM mlint.session_list(2, 3, started_to => '1991-01-01');
SELECT session_id FROM mlint.session_list(1, 3, tag => 'tag-1', model_id => 'model-2', metadata => '{"n": 1}');
SELECT session_id FROM mlint.session_list(started_from => '1990-01-02', started_to => '1990-01-02 02:00');
SELECT count(*) FROM mlint.session_list(status => 'active', started_to => '1991-01-01');
SELECT count(*) FROM mlint.session_list(status => 'failed', started_to => '1991-01-01');
SELECT count(*) FROM mlint.session_list(1000000);
SELECT mlint.session_count(started_to => '1991-01-01'), mlint.session_count(tag => 'tag-1'),
	mlint.session_count(tag => 'tag-1', up_to => 10), mlint.session_count(status => 'archived', started_to => '1991-01-01');
-- All of it by cursor is all of it, in order, once.
WITH RECURSIVE pages AS (
	SELECT 1 AS n, a FROM (SELECT array_agg(s) AS a FROM mlint.session_list_after(NULL, 7) s) p
	UNION ALL
	SELECT n + 1, (SELECT array_agg(s) FROM mlint.session_list_after(mlint.session_cursor(a[cardinality(a)]), 7) s)
	FROM pages WHERE cardinality(a) = 7
)
SELECT array_agg(s.session_id ORDER BY n, i) = (SELECT array_agg(session_id) FROM mlint.session_list(1, 1000)) AS same
FROM pages, unnest(a) WITH ORDINALITY s(session_id, model_id, model_version, status, tags, metadata, started_at,
	ended_at, active_at, updated_at, i);
SELECT session_id FROM mlint.session_list_after((SELECT mlint.session_cursor(s) FROM mlint.session_get('list-9') s), 2, tag => 'tag-1');
SELECT mlint.session_list(0);
SELECT mlint.session_list(-1);
SELECT mlint.session_list(NULL);
SELECT mlint.session_list(1, 0);
SELECT mlint.session_list(1, 10000);
SELECT mlint.session_list(status => 'gone');
SELECT mlint.session_list(metadata => '1');
SELECT mlint.session_list_after(page_size => 1001);
SELECT mlint.session_count(up_to => 0);
SELECT c, refused(format('SELECT mlint.session_list_after(%L)', c)) FROM (VALUES (''), ('x'), ('s1'), ('s1zz'),
	('s10002eaeeae408000'), ('s10002eaeeae4080007'), ('s10002eaeeae408000ff'), ('s10002eaeeae40800041004141'),
	('s17fffffffffffffff41'), ('s2' || repeat('00', 9))) v(c);

-- ---- models ----

SELECT model_id, version, provider, parameters, description, capabilities, tags, metadata, registered_by = current_user AS me
FROM mlint.model_register('test-1', '0613', 'lab', '{"temperature": 1}', 'A model', '{tools,chat}', '{slow}', '{"tier": 2}');
SELECT version FROM mlint.model_register('test-1', '0613', 'lab', '{"temperature": 1}', 'A model', '{chat,tools}', '{slow}', '{"tier": 2}');
SELECT mlint.model_register('test-1', '0613', 'lab', '{"temperature": 2}', 'A model', '{chat,tools}', '{slow}', '{"tier": 2}');
SELECT mlint.model_register('test-1', '0613');
SELECT version, provider, parameters FROM mlint.model_register('test-1', '1106', 'lab', capabilities => '{chat}');
SELECT model_id, version FROM mlint.model_register('test-2', provider => 'lab', capabilities => '{chat,vision}');
SELECT version FROM mlint.model_get('test-1');
SELECT version FROM mlint.model_get('test-1', '0613');
SELECT mlint.model_deprecate('test-1', '1106', 'It is slow', 'test-2');
SELECT version FROM mlint.model_get('test-1');
SELECT version, deprecated_at IS NOT NULL AS deprecated, deprecation_reason, successor FROM mlint.models WHERE model_id = 'test-1' ORDER BY 1;
SELECT mlint.model_deprecate('test-1');
-- When all are deprecated, the newest.
SELECT version FROM mlint.model_get('test-1');
SELECT mlint.model_reinstate('test-1', '0613');
SELECT version FROM mlint.model_get('test-1');
SELECT model_id, version FROM mlint.model_list(provider => 'lab');
SELECT model_id, version FROM mlint.model_list(2, 2, 'lab');
SELECT model_id, version FROM mlint.model_list(provider => 'lab', capability => 'tools', tag => 'slow');
SELECT model_id, version FROM mlint.model_list(provider => 'lab', deprecated => true);
SELECT mlint.model_get('nothing');
SELECT mlint.model_get('test-1', '2');
SELECT mlint.model_deprecate('nothing');
SELECT mlint.model_deprecate('test-1', '2');
SELECT mlint.model_deprecate('test-1', '0613', successor => 'nothing');
SELECT mlint.model_reinstate('nothing');
SELECT mlint.model_register('');
SELECT mlint.model_register(E'a\nb');
SELECT mlint.model_register('x', capabilities => '{NULL}');
SELECT mlint.model_register('x', parameters => '[]');
SELECT mlint.model_register('x', description => repeat('x', 10001));
SELECT mlint.model_list(0);

-- ---- who may ----

SET ROLE sessions_user;
SELECT session_id FROM mlint.session_register('mine', 'm');
SELECT mlint.response_add(mlint.prompt_add('mine', 'hello'), 'hi') IS NOT NULL AS added;
SELECT content FROM mlint.session_transcript('mine');
SELECT snippet FROM mlint.session_search('hello', 'mine');
SELECT count(*) > 0 AS listed FROM mlint.session_list();
SELECT count(*) > 0 AS seen FROM mlint.sessions WHERE metadata @> '{"user": "u-1"}';
SELECT version FROM mlint.model_get('test-1');
SELECT mlint.model_register('x');
SELECT mlint.model_deprecate('test-1');
SELECT content FROM mlint.message;
SET ROLE sessions_reader;
SELECT session_id, status, tags FROM mlint.sessions WHERE session_id = 'mine';
SELECT metadata FROM mlint.sessions;
SELECT mlint.session_get('mine');
SELECT mlint.session_list();
SELECT mlint.session_transcript('mine');
SELECT mlint.session_search('hello');
SELECT content FROM mlint.message;
SELECT count(*) FROM mlint.models WHERE provider = 'lab';
RESET ROLE;

-- ---- deleting ----

SELECT mlint.session_delete('nobody');
SELECT mlint.session_delete(NULL);
SELECT mlint.session_delete('chat-1');
SELECT mlint.session_get('chat-1');
SELECT count(mlint.session_delete(session_id)) FROM mlint.sessions
WHERE session_id ~ '^(chat|list)-|^(long|mine|undone)$';
SELECT count(*) FROM mlint.message m WHERE NOT EXISTS (SELECT FROM mlint.session s WHERE s.id = m.session);

-- What configures, and what deletes, is in the audit log.
SELECT action, object_type, object, outcome, details FROM mlint.audit_log
WHERE (object_type = 'session' AND object IN ('chat-1', 'nobody')) OR (object_type = 'model' AND object IN ('test-1', 'test-2', 'nothing')) ORDER BY seq;

DROP FUNCTION shown(mlint.sessions), refused(text);
DROP ROLE sessions_user, sessions_reader;
