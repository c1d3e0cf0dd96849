-- rooms.sql: something of each room, by a user of the extension, whose output
-- does not depend on how often it ran, in which session, or under which
-- settings. Variables: p, a prefix of names that was not used before; url, of a
-- receiver. Everything here is named in full: what differs is ours.
\pset format unaligned
\pset tuples_only on
\pset null null
\set VERBOSITY terse
\set ON_ERROR_STOP 1
\set name :p _x
\set out :p _out
\set limited :p _limited

-- delivery
CREATE TABLE public.:"out" (seen pg_catalog.text);
SELECT pg_catalog.format('CREATE FUNCTION public.%I(event pg_catalog.jsonb) RETURNS pg_catalog.void LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp AS $$BEGIN INSERT INTO public.%I VALUES (event OPERATOR(pg_catalog.->>) ''type''); END$$',
	:'name', :'out') \gexec
SELECT pg_catalog.format('{"fn": "public.%s"}', :'name') AS fn \gset
SELECT pg_catalog.format('{"url": "%s", "timeout_ms": 20000}', :'url') AS to \gset
SET client_min_messages = error;
SELECT 'destination', mlint.destination_create(:'p', 'function', :'fn', ARRAY[:'name']) IS NOT NULL;
SELECT 'http', mlint.destination_create(:'name', 'http', :'to', ARRAY[:'name']) IS NOT NULL;
SELECT mlint.publish(:'name', '{"a": [1, 2.5, null], "at": "2026-01-02"}', '{"m": true}', :'p') AS event \gset
SELECT 'same key', mlint.publish(:'name', '{}', '{}', :'p') OPERATOR(pg_catalog.=) :event;
SELECT 'waited', mlint.event_wait(:event, '60 s');
SELECT 'ran', seen OPERATOR(pg_catalog.=) :'name' FROM public.:"out";
SELECT 'delivery', d.state, d.attempts, d.status_code FROM mlint.deliveries d
	WHERE d.event_id OPERATOR(pg_catalog.=) :event ORDER BY d.status_code;
SELECT 'event', e.data, e.metadata FROM mlint.events e WHERE e.id OPERATOR(pg_catalog.=) :event;
SELECT 'later', mlint.send(:'name', :'name', '{}', deliver_at => '2099-01-01 00:00:00+00') IS NOT NULL;
SELECT 'altered', mlint.destination_alter(:'p', '{"timeout_ms": 5000}', enabled => false);
SELECT 'destinations', d.driver, d.enabled, d.options OPERATOR(pg_catalog.->) 'timeout_ms' FROM mlint.destinations d
	WHERE d.name OPERATOR(pg_catalog.=) :'p';
SELECT 'tested', t.ok, t.status FROM mlint.destination_test(:'name') t;
SELECT 'stat', s.delivered OPERATOR(pg_catalog.>=) 1 FROM mlint.stat_destinations s WHERE s.destination OPERATOR(pg_catalog.=) :'name';
SELECT 'replayed', mlint.dead_letter_replay(:'name');
SELECT mlint.webhook_sign('{"a": 1}', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'msg_1', '2026-01-02 03:04:05+00') AS signed \gset
SELECT 'signed', :'signed';
SELECT 'verified', mlint.webhook_verify('{"a": 1}', :'signed', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', '1000 years');
SELECT 'asked', h.status FROM mlint.http('GET', :'url') h;
SELECT 'dropped', mlint.destination_drop(:'p');

-- secrets, rotation, scan
SELECT 'put', mlint.secret_put(:'p', 'value one', 'api_key', 'it''s described', '{"k": "v"}');
SELECT 'put again', mlint.secret_put_bytes(:'p', pg_catalog.decode('00ff5c27', 'hex'));
SELECT 'got', mlint.secret_get(:'p', 1);
SELECT 'bytes', pg_catalog.encode(mlint.secret_get_bytes(:'p'), 'hex');
SELECT 'versions', v.version, v.state FROM mlint.secret_versions(:'p') v;
SELECT 'secret', s.type, s.description, s.version, s.versions, s.metadata, s.privileges FROM mlint.secrets s
	WHERE s.name OPERATOR(pg_catalog.=) :'p';
SELECT 'granted', mlint.secret_grant(:'p', 'mlint_reader', 'read');
SELECT 'grants', g.role, g.privilege FROM mlint.secret_grants g WHERE g.pattern OPERATOR(pg_catalog.=) :'p'
	AND g.privilege OPERATOR(pg_catalog.<>) 'owner';
SELECT 'revoked', mlint.secret_revoke(:'p', 'mlint_reader', 'read');
SELECT 'destroyed', mlint.secret_destroy(:'p', 1);
SELECT 'altered', mlint.secret_alter(:'p', description => 'another');
SELECT 'put', mlint.secret_put(:'name', 'a "value"');
SELECT 'env', pg_catalog.length(mlint.secret_env(ARRAY[:'name'])) OPERATOR(pg_catalog.>) 0;
SELECT 'rotation', mlint.secret_rotation_set(:'name', '30 days', '{"kind": "hex", "bytes": 8}', grace => '1 hour');
SELECT 'rotate', mlint.secret_rotate(:'name');
SELECT 'rotated', mlint.secret_rotate_wait(:'name', '60 s');
SELECT 'rotations', r.state, r.every OPERATOR(pg_catalog.=) '30 days', r.last_error, r.current_version FROM mlint.rotations r WHERE r.name OPERATOR(pg_catalog.=) :'name';
SELECT 'no rotation', mlint.secret_rotation_drop(:'name');
SELECT 'no secret', mlint.secret_drop(:'name');
SELECT 'rule', mlint.secret_rule_create(:'p', 'BATTERY[0-9]{8}', ARRAY['battery']);
SELECT 'found', s.rule OPERATOR(pg_catalog.=) :'p', s.line, s."column", s.excerpt FROM mlint.secret_scan(pg_catalog.concat('first', pg_catalog.chr(10), 'x = BATTERY12345678')) s
	WHERE s.rule OPERATOR(pg_catalog.=) :'p';
SELECT 'no rule', mlint.secret_rule_drop(:'p');

-- rate limits
SELECT 'limit', mlint.rate_rule_create(:'p', 'token_bucket', 2, '1 day');
SELECT 'allowed', mlint.rate_allow(:'p', 'who'), mlint.rate_allow(:'p', 'who'), mlint.rate_allow(:'p', 'who');
SELECT 'peeked', r.allowed, r.remaining FROM mlint.rate_peek(:'p', 'else') r;
SELECT 'override', mlint.rate_override_set(:'p', 'who', 'allow');
SELECT 'bypassed', mlint.rate_allow(:'p', 'who');
SELECT 'all', r.allowed FROM mlint.rate_check_all(ARRAY[:'p'], 'third') r;
SELECT 'headers', pg_catalog.jsonb_object_keys(mlint.rate_headers(mlint.rate_check(:'p', 'fourth')));
SELECT 'acquired', r.allowed FROM mlint.rate_acquire(:'p', 'fifth') r;
SELECT 'reset', mlint.rate_reset(:'p');
SELECT 'rule altered', mlint.rate_rule_alter(:'p', rate => 5);
SELECT 'limits', r.algorithm, r.rate, r.per OPERATOR(pg_catalog.=) '24:00:00' FROM mlint.rate_rules r WHERE r.name OPERATOR(pg_catalog.=) :'p';
CREATE TABLE public.:"limited" (a pg_catalog.int4);
CREATE TRIGGER limited BEFORE INSERT ON public.:"limited" FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger(:'p', 'a');
ALTER TABLE public.:"limited" ENABLE ALWAYS TRIGGER limited;
INSERT INTO public.:"limited" VALUES (1);
DROP TABLE public.:"limited";
SELECT 'no limit', mlint.rate_rule_drop(:'p');

-- sessions, usage, archives, retention, erasure
SELECT 'model', m.model_id OPERATOR(pg_catalog.=) :'p', m.tags FROM mlint.model_register(:'p', 'v1', tags => '{t}') m;
SELECT 'price', mlint.model_price_set(:'p', 2, 4);
SELECT 'session', s.status, s.tags, s.metadata FROM mlint.session_register(:'p', :'p', tags => ARRAY[:'p'], metadata => pg_catalog.jsonb_build_object('user', :'p')) s;
SELECT mlint.prompt_add(:'p', 'What, "then", is it?') AS prompt \gset
SELECT mlint.response_add(:'prompt', 'An answer of elephants', '{"prompt_tokens": 10, "completion_tokens": 20}') AS response \gset
SELECT 'tool', mlint.tool_call_add(:'response', 'look', '{"n": 1}', 'seen') IS NOT NULL;
SELECT 'track', mlint.usage_track(:'p', 100, 50, latency_ms => 12.5, custom => '{"gpu": 1.25}');
SELECT 'got', t.kind FROM mlint.session_transcript(:'p') t;
SELECT 'counted', mlint.session_count(tag => :'p');
SELECT 'listed', pg_catalog.count(*) FROM mlint.session_list(tag => :'p');
SELECT 'searched', pg_catalog.count(*) FROM mlint.session_search('elephants', :'p');
SELECT 'usage', u.* IS NOT NULL FROM mlint.session_usage(:'p') u;
SELECT 'budget', mlint.usage_budget_set(pg_catalog.concat('session:', :'p'), 10);
SELECT 'spent', mlint.usage_budget_check(:'p') IS NOT NULL;
SELECT 'no budget', mlint.usage_budget_drop(pg_catalog.concat('session:', :'p'));
SELECT 'policy', mlint.retention_policy_create(:'p', 400, match_tag => :'p') IS NOT NULL;
SELECT 'ended', mlint.session_set_status(:'p', 'completed') IS NOT NULL;
SELECT 'held', mlint.archive_hold(:'p', 'a reason') IS NOT NULL;
SELECT mlint.archive_session(:'p') AS archive \gset
SELECT 'verified', mlint.archive_verify(:'archive') IS NOT NULL;
SELECT 'document', pg_catalog.count(*) OPERATOR(pg_catalog.>) 0 FROM mlint.archive_document(:'archive') d;
SELECT 'archive', a.policy OPERATOR(pg_catalog.=) :'p' FROM mlint.archives a WHERE a.id OPERATOR(pg_catalog.=) :'archive';
SELECT 'listed', pg_catalog.count(*) FROM mlint.archive_list(tag => :'p') l;
SELECT 'released', mlint.archive_release(:'p') IS NOT NULL;
SELECT 'restored', mlint.archive_restore(:'archive') IS NOT NULL;
SELECT 'report', pg_catalog.count(*) OPERATOR(pg_catalog.>=) 0 FROM mlint.retention_report();
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT mlint.erase_subject('user', :'p') AS receipt \gset
COMMIT;
SELECT 'erased', mlint.erasure_receipt_verify(:'receipt') IS NOT NULL;

-- certificates
SELECT 'csr', pg_catalog.left(c.csr, 27) FROM mlint.certificate_csr(ARRAY['a.example.com'], name => :'p') c;
SELECT 'account', mlint.acme_account_create(:'p', 'https://127.0.0.1:1/dir', NULL);
SELECT mlint.certificate_issue(ARRAY['b.example.com'], :'p', name => :'name') AS certificate \gset
SELECT 'certificate', c.state, c.domains FROM mlint.certificates c WHERE c.id OPERATOR(pg_catalog.=) :'certificate';
SELECT 'target', mlint.certificate_target_create(:'certificate', 'destination', pg_catalog.jsonb_build_object('destination', :'name'), name => 't');
SELECT 'targets', t.kind, t.state FROM mlint.certificate_targets t WHERE t.certificate OPERATOR(pg_catalog.=) :'certificate';
SELECT 'provider', mlint.dns_provider_create(:'p', 'function', pg_catalog.jsonb_build_object('function', pg_catalog.format('public.%s', :'name')));
SELECT 'health', h.status IS NOT NULL FROM mlint.certificate_health() h WHERE h.name OPERATOR(pg_catalog.=) :'name';
SELECT 'no certificate', mlint.certificate_drop(:'certificate');

-- the audit log, jobs, and every view
SELECT 'audited', l.action, l.outcome FROM mlint.audit_log l WHERE l.object OPERATOR(pg_catalog.=) :'p'
	AND l.action OPERATOR(pg_catalog.~) '^(secret|rate_rule|destination)[.]' ORDER BY l.seq;
SELECT 'chain', mlint.audit_verify() IS NULL;
SELECT 'owned', o.kind FROM mlint.owned o WHERE o.name OPERATOR(pg_catalog.=) :'p' ORDER BY 2;
SELECT 'job', mlint.job_run_now('event_retention');
SELECT pg_catalog.format('SELECT %L, pg_catalog.count(*) OPERATOR(pg_catalog.>=) 0 FROM mlint.%I', v.viewname, v.viewname)
	FROM pg_catalog.pg_views v WHERE v.schemaname OPERATOR(pg_catalog.=) 'mlint' ORDER BY v.viewname \gexec
