-- What an HTTP face over sessions, models, usage, archives and policies answers
-- with: each endpoint is one call, and its JSON has the fields of the reference.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
\set VERBOSITY sqlstate
CREATE ROLE regress_endpoints IN ROLE mlint_user;
-- The keys of an answer; times and ids differ from run to run.
CREATE FUNCTION keys(j jsonb) RETURNS text LANGUAGE sql AS
	$$ SELECT string_agg(k, ' ' ORDER BY k COLLATE "C") FROM jsonb_object_keys(j) k $$;
SELECT FROM mlint.model_register('gpt-4', '0613', 'openai', '{"temperature": 1}', 'A model', '{chat}', '{t}', '{"a": 1}');
SELECT FROM mlint.model_register('gpt-5', '1', 'openai');

SET ROLE regress_endpoints;
-- POST /sessions: SessionInfo
SELECT keys(to_jsonb(s)), s.status
FROM mlint.session_register('session-123', 'gpt-4', '', '{production}', '{"user_id": "user-456"}') s;
SELECT count(mlint.session_register('s-' || i, 'gpt-4')) FROM generate_series(1, 4) i;

-- GET /sessions?page=2&page_size=2: SessionListResponse
SELECT keys(r), r->'total' AS total, r->'page' AS page, jsonb_array_length(r->'sessions') AS sessions
FROM (SELECT jsonb_build_object('sessions', coalesce(jsonb_agg(to_jsonb(s)), '[]'),
		'total', mlint.session_count(), 'page', 2, 'page_size', 2) AS r
	FROM mlint.session_list(2, 2) s) q;
-- beyond the last page
SELECT coalesce(jsonb_agg(to_jsonb(s)), '[]') AS sessions FROM mlint.session_list(9, 2) s;

-- GET /sessions/{id}; 404
SELECT s.session_id, s.tags, s.metadata FROM mlint.session_get('session-123') s;
SELECT mlint.session_get('none');

-- PUT /sessions/{id}/status: SessionInfo; 404, 409, 400
SELECT s.session_id, s.status FROM mlint.session_set_status('session-123', 'completed') s;
SELECT mlint.session_set_status('none', 'completed');
SELECT mlint.session_set_status('session-123', 'failed');
SELECT mlint.session_set_status('session-123', 'gone');

-- DELETE /sessions/{id}; 404
SELECT mlint.session_delete('s-4');
SELECT mlint.session_delete('s-4');

-- GET /models?page=1&page_size=10: ModelListResponse
SELECT keys(r), r->'total' AS total, jsonb_array_length(r->'models') AS models
FROM (SELECT jsonb_build_object('models', coalesce(jsonb_agg(to_jsonb(m)), '[]'),
		'total', (SELECT count(*) FROM mlint.models), 'page', 1, 'page_size', 10) AS r
	FROM mlint.model_list(1, 10) m) q;
-- GET /models/{id}: ModelMetadata; 404
SELECT keys(to_jsonb(m)) FROM mlint.model_get('gpt-4') m;
SELECT mlint.model_get('none');

-- POST /usage; 404, 400
SELECT mlint.usage_track('session-123', 100, 200, 'gpt-4', 1500, '{"cached": 1}');
SELECT mlint.usage_track('none', 1, 1);
SELECT mlint.usage_track('session-123', -1, 1);
-- GET /sessions/{id}/usage, GET /models/{id}/usage: UsageStats
SELECT keys(to_jsonb(u)), u.total_tokens FROM mlint.session_usage('session-123') u;
SELECT keys(to_jsonb(u)), u.total_tokens FROM mlint.model_usage('gpt-4') u;
SELECT mlint.session_usage('none');

-- POST /archive: ArchiveResponse, the second statement in the same transaction;
-- 404, and 409 for one that is archived
BEGIN;
SELECT mlint.archive_session('session-123', 365, NULL, '{production}', '{"user_id": "user-456"}') AS archive \gset
SELECT keys(to_jsonb(a)) FROM mlint.archives a WHERE a.id = :'archive';
COMMIT;
SELECT mlint.archive_session('none');
SELECT mlint.archive_session('session-123');
-- POST /archive/batch: BatchArchiveResponse
SELECT r->'total' AS total, r->'archived' AS archived, r->'failed' AS failed, r #>> '{results,2,error}' AS error
FROM (SELECT jsonb_build_object('total', count(*), 'archived', count(archive_id),
		'failed', count(error), 'results', jsonb_agg(to_jsonb(b))) AS r
	FROM mlint.archive_batch('{s-1,s-2,none}') b) q;
-- GET /archive/{id}: ArchiveEntry; 404
SELECT a.session_id, a.retention_days, a.tags, a.metadata, keys(mlint.archive_get(a.id)) AS data
FROM mlint.archives a WHERE a.id = :'archive';
SELECT mlint.archive_get('00000000-0000-0000-0000-000000000000');

-- POST /policies: the policy's id; PUT /archive/{id}/policy by it, or by name; 404
RESET ROLE;
SELECT mlint.retention_policy_create('HIPAA', 2555, 'hipaa', false, '7-year retention for healthcare data') AS policy \gset
SELECT keys(to_jsonb(p)) FROM mlint.retention_policies p WHERE p.id = :policy;
SELECT mlint.retention_policy_apply(:'archive', :policy);
SELECT mlint.retention_policy_apply(:'archive', 'HIPAA');
SELECT mlint.retention_policy_apply(:'archive', 'none');
SELECT policy, expires_at - archived_at AS kept FROM mlint.archives WHERE id = :'archive';

-- the scheduler's configuration
SELECT mlint.archival_set(24, 30, 2555, 100, 'hipaa', false);
SELECT keys(to_jsonb(c) - 'set_by' - 'set_at' - 'next_run_at') FROM mlint.archival_settings c;

-- DELETE /archive/{id}; 404, and 409 under a hold
SELECT mlint.archive_hold(:'archive', 'Case 1');
SELECT mlint.archive_delete(:'archive');
SELECT mlint.archive_release(:'archive');
SELECT mlint.archive_delete(:'archive');
SELECT mlint.archive_delete(:'archive');

DROP FUNCTION keys(jsonb);
DROP ROLE regress_endpoints;
