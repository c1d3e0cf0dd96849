-- Rate limits: rules, decisions, identifiers, overrides, headers, triggers,
-- bad input.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE ROLE regress_rate_admin IN ROLE mlint_admin;
CREATE ROLE regress_rate_user IN ROLE mlint_user;
CREATE ROLE regress_rate_reader IN ROLE mlint_reader;

-- rules
SET ROLE regress_rate_admin;
SELECT mlint.rate_rule_create('bucket', 'token_bucket', 3, '30 days', burst => 5, description => 'for tests');
SELECT mlint.rate_rule_create('leaky', 'leaky_bucket', 2, '30 days');
SELECT mlint.rate_rule_create('fixed', 'fixed_window', 3, '3650 days');
SELECT mlint.rate_rule_create('sliding', 'sliding_window', 3, '30 days');
SELECT name, algorithm, rate, per, burst, strategy, scope, setting, ipv4_prefix, ipv6_prefix, max_wait, pre_request,
	backend, mode, fail, lease, description, created_at <= clock_timestamp() AS created, altered_at
	FROM mlint.rate_rules ORDER BY name;

-- each algorithm: what is admitted, and the rest
SET ROLE regress_rate_user;
SELECT r.rule, n, c.allowed, c.remaining, c.capacity, c.retry_after > '0' AS retry, c.reset_at > now() AS reset,
		c.delay > '0' AS delay, c.degraded, c.reason, c.rule = r.rule AS same
	FROM unnest('{bucket,leaky,fixed,sliding}'::text[]) WITH ORDINALITY r (rule, o), generate_series(1, 6) n,
		LATERAL (SELECT * FROM mlint.rate_check(r.rule, 'k' || n * 0)) c
	ORDER BY o, n;
-- a token takes ten days
SELECT retry_after BETWEEN '239 hours' AND '240 hours' AS ten_days FROM mlint.rate_peek('bucket', 'k0');
-- what may go without a delay only
SELECT n, mlint.rate_allow('leaky', 'now') FROM generate_series(1, 2) n;
SELECT n, mlint.rate_allow('bucket', 'now') FROM generate_series(1, 6) n;
-- cost, peek, reset
SELECT allowed, remaining FROM mlint.rate_check('bucket', 'cost', 4);
SELECT allowed, remaining FROM mlint.rate_peek('bucket', 'cost', 2);
SELECT allowed, remaining FROM mlint.rate_peek('bucket', 'cost');
SELECT allowed, remaining FROM mlint.rate_peek('bucket', 'cost');
RESET ROLE;
SELECT mlint.rate_reset('bucket', 'cost');
SELECT allowed, remaining FROM mlint.rate_check('bucket', 'cost', 5);
SELECT mlint.rate_reset('bucket');
SELECT allowed, remaining FROM mlint.rate_peek('bucket', 'cost', 5);
SELECT allowed, remaining FROM mlint.rate_peek('bucket', 'k0', 5);
-- what was taken stays taken
BEGIN;
SELECT remaining FROM mlint.rate_check('bucket', 'rollback');
ROLLBACK;
SELECT remaining FROM mlint.rate_peek('bucket', 'rollback');
-- in the row's own columns it is asked for each
SELECT (mlint.rate_peek('bucket', 'rollback')).remaining;

-- identifiers: none, null, long, of every byte, alike
SELECT remaining FROM mlint.rate_check('bucket');
SELECT remaining FROM mlint.rate_check('bucket', '');
SELECT remaining FROM mlint.rate_check('bucket', NULL);
SELECT remaining FROM mlint.rate_check('bucket', repeat('x', 10000));
SELECT remaining FROM mlint.rate_check('bucket', repeat('x', 10000));
SELECT remaining FROM mlint.rate_check('bucket', repeat('x', 9999) || 'y');
SELECT remaining FROM mlint.rate_check('bucket', repeat('x', 9999));
SELECT count(*), sum(c.remaining) FROM generate_series(1, 255) n, LATERAL (SELECT * FROM mlint.rate_check('bucket', chr(n))) c;
SELECT count(*), sum(c.remaining) FROM generate_series(1, 255) n, LATERAL (SELECT * FROM mlint.rate_check('bucket', chr(n) || 'x')) c;
SELECT count(DISTINCT c.remaining) FROM generate_series(1, 100) n, LATERAL (SELECT * FROM mlint.rate_check('bucket', repeat('z', n))) c;
SELECT min(c.remaining), max(c.remaining) FROM generate_series(1, 100) n, LATERAL (SELECT * FROM mlint.rate_peek('bucket', repeat('z', n))) c;
-- stored compressed and out of line
CREATE TEMP TABLE long AS SELECT repeat('long', 100000) AS identifier;
SELECT c.remaining FROM long, LATERAL (SELECT * FROM mlint.rate_check('bucket', identifier)) c;
SELECT c.remaining FROM long, LATERAL (SELECT * FROM mlint.rate_check('bucket', identifier)) c;

-- several rules, all or none
SET intervalstyle = 'iso_8601'; -- which the audit log does not follow
SELECT mlint.rate_rule_create('day', 'fixed_window', 2, '3650 days');
RESET intervalstyle;
SELECT mlint.rate_rule_create('everybody', 'token_bucket', 100, '30 days', scope => 'global');
SELECT allowed, remaining, rule FROM mlint.rate_check_all('{bucket,day,everybody}', 'all');
SELECT allowed, remaining, rule FROM mlint.rate_check_all('{bucket,day,everybody}', 'all');
SELECT allowed, remaining, reason, rule FROM mlint.rate_check_all('{bucket,day,everybody}', 'all');
SELECT rule, remaining FROM unnest('{bucket,day,everybody}'::text[]) r, LATERAL (SELECT * FROM mlint.rate_peek(r, 'all')) c;
SELECT allowed, rule FROM mlint.rate_check_all('{day}', 'one');
SELECT mlint.rate_check_all('{}');
SELECT mlint.rate_check_all(NULL);
SELECT mlint.rate_check_all('{day,NULL}');
SELECT mlint.rate_check_all('{day,bucket,day}');
SELECT mlint.rate_check_all('{{day},{bucket}}');
SELECT mlint.rate_check_all(array_fill('day'::text, '{17}'));
SELECT mlint.rate_check_all('{day,nosuch}', 'one');
SELECT mlint.rate_check_all('{day,bucket}', 'one', 3);
SELECT remaining FROM mlint.rate_peek('day', 'one');

-- scopes
SELECT mlint.rate_rule_create('user', 'token_bucket', 5, '30 days', scope => 'user', setting => 'app.client');
SELECT mlint.rate_rule_create('ip', 'token_bucket', 5, '30 days', scope => 'ip', setting => 'request.headers>x-forwarded-for', ipv4_prefix => 24, ipv6_prefix => 48);
SELECT mlint.rate_rule_create('endpoint', 'token_bucket', 5, '30 days', scope => 'endpoint');
SELECT remaining FROM mlint.rate_check('everybody', 'whoever');
SELECT remaining FROM mlint.rate_check('everybody');
-- the setting, else session_user
SELECT remaining FROM mlint.rate_check('user');
SET app.client = 'alice';
SELECT remaining FROM mlint.rate_check('user');
SELECT remaining FROM mlint.rate_check('user', 'alice');
SET app.client = '';
SELECT remaining FROM mlint.rate_check('user');
SELECT remaining FROM mlint.rate_peek('user', session_user);
RESET app.client;
-- addresses
SELECT i, mlint.rate_allow('ip', i) FROM unnest('{192.0.2.1,192.0.2.77/32,::ffff:192.0.2.9,192.0.2.3:443,192.0.2.4,192.0.2.5,192.0.3.1}'::text[]) i;
SELECT i, mlint.rate_allow('ip', i) FROM unnest('{2001:db8::1,2001:db8:0:7::1,[2001:db8::2]:80,fe80::1%eth0,2001:db8::/64,2001:0DB8::5,2001:db8::6,2001:db8:1::1}'::text[]) i;
SELECT identifier, allowed, refused FROM mlint.rate_top('ip');
SELECT mlint.rate_check('ip', 'nobody');
SELECT mlint.rate_check('ip', '1.2.3.4/33');
SELECT mlint.rate_check('ip', '1.2.3.4/4294967296');
SELECT mlint.rate_check('ip', '1.2.3.4/4294967295');
SELECT mlint.rate_check('ip', '1.2.3.4/');
SELECT mlint.rate_check('ip', '1.2.3');
SELECT mlint.rate_check('ip', repeat('9', 1000));
SELECT mlint.rate_check('ip', '192.0.2.1, 192.0.2.2');
-- the client's, by a socket; then what the nearest proxy has added
SELECT remaining FROM mlint.rate_check('ip');
SELECT remaining FROM mlint.rate_peek('ip', 'local');
SET "request.headers" = '{"host": "h", "x-forwarded-for": "10.1.1.1, 198.51.100.7"}';
SELECT remaining FROM mlint.rate_check('ip');
SELECT remaining FROM mlint.rate_peek('ip', '198.51.100.99');
SELECT remaining FROM mlint.rate_peek('ip', '10.1.1.1');
-- what is of no use counts as not there
DO $$
DECLARE
	h text;
BEGIN
	FOREACH h IN ARRAY ARRAY['', '{', 'null', '[]', '{"x-forwarded-for": null}', '{"x-forwarded-for": "unknown"}', '{"x-forwarded-for": {"x-forwarded-for": "203.0.113.1"}}',
		'{"a": {"x-forwarded-for": "203.0.113.1"}}', '{"x-forwarded-for": "203.0.113.1"', '["x-forwarded-for", "203.0.113.1"]', '{"x-forwarded-for": ["203.0.113.1"]}',
		'{"x-forwarded-for": ""}', '{"x-forwarded-for": "203.0.113.1, "}', '{"x-forwarded-for": "198.51.100.1"}'] LOOP
		PERFORM set_config('request.headers', h, false);
		RAISE NOTICE '% %', (SELECT remaining FROM mlint.rate_peek('ip')), h;
	END LOOP;
END
$$;
SELECT remaining FROM mlint.rate_peek('ip', '203.0.113.1');
SET "request.headers" = '{"x-forwarded-for": "203.0.113.1", "x-forwarded-for": "203.0.114.1"}';
SELECT remaining FROM mlint.rate_check('ip');
SELECT remaining FROM mlint.rate_peek('ip', '203.0.114.1');
RESET "request.headers";
-- the path of the request
SELECT remaining FROM mlint.rate_check('endpoint');
SET "request.path" = '/rpc/predict';
SELECT remaining FROM mlint.rate_check('endpoint');
SELECT remaining FROM mlint.rate_check('endpoint', '/rpc/predict');
RESET "request.path";

-- changes hold at once, and as long as they are not rolled back
SELECT mlint.rate_rule_alter('bucket', rate => 10, burst => 20);
SELECT capacity, remaining FROM mlint.rate_peek('bucket', 'fresh');
SELECT mlint.rate_rule_alter('bucket', burst => 0);
SELECT capacity, remaining FROM mlint.rate_peek('bucket', 'fresh');
BEGIN;
SELECT mlint.rate_rule_alter('bucket', rate => 7);
SELECT capacity FROM mlint.rate_peek('bucket', 'fresh');
SAVEPOINT s;
SELECT mlint.rate_rule_alter('bucket', rate => 8), (SELECT capacity FROM mlint.rate_peek('bucket', 'fresh'));
SELECT capacity FROM mlint.rate_peek('bucket', 'fresh');
ROLLBACK TO s;
SELECT capacity FROM mlint.rate_peek('bucket', 'fresh');
ROLLBACK;
SELECT capacity FROM mlint.rate_peek('bucket', 'fresh');
SELECT mlint.rate_rule_alter('user', setting => '', description => 'whoever', algorithm => 'sliding_window', per => '2 days', strategy => 'queue', max_wait => '1 s', pre_request => false);
SELECT algorithm, per, strategy, scope, setting, max_wait, description, altered_at IS NOT NULL AS altered FROM mlint.rate_rules WHERE name = 'user';
SELECT mlint.rate_rule_alter('user', description => '');
SELECT description IS NULL FROM mlint.rate_rules WHERE name = 'user';

-- overrides
SELECT mlint.rate_override_set('bucket', 'vip', 'allow', reason => 'pays well');
SELECT mlint.rate_override_set('bucket', 'abuser', 'deny', expires_at => now() + interval '1 day', reason => 'scrapes');
SELECT mlint.rate_override_set('bucket', 'banned', 'deny');
SELECT mlint.rate_override_set('bucket', 'small', 'limit', 2);
SELECT mlint.rate_override_set('bucket', repeat('long', 3000), 'limit', 100, 200);
SELECT mlint.rate_override_set('bucket', '', 'deny', expires_at => 'infinity');
SELECT i, c.allowed, c.remaining, c.capacity, c.retry_after > '23 hours' AS retry, c.reset_at = 'infinity' AS never, c.reason
	FROM unnest(ARRAY['vip', 'abuser', 'banned', 'small', repeat('long', 3000), '', 'nobody']) WITH ORDINALITY u (i, o),
	LATERAL (SELECT * FROM mlint.rate_check('bucket', i)) c WHERE length(i) < 10 ORDER BY o;
SELECT allowed, capacity FROM mlint.rate_check('bucket', repeat('long', 3000), 200);
SELECT mlint.rate_check('bucket', 'small', 3);
SELECT allowed FROM mlint.rate_check('bucket', 'vip', 1000);
SELECT mlint.rate_allow('bucket', 'vip'), mlint.rate_allow('bucket', 'abuser');
SELECT allowed, reason, rule FROM mlint.rate_check_all('{everybody,bucket}', 'abuser');
SELECT allowed, reason, rule FROM mlint.rate_check_all('{day,bucket}', 'vip');
SELECT rule, left(identifier, 8) AS identifier, action, rate, burst, expired, reason, set_by = session_user AS by, set_at <= clock_timestamp() AS at
	FROM mlint.rate_overrides ORDER BY identifier;
-- of an address as its rule masks it
SELECT mlint.rate_override_set('ip', '203.0.113.200', 'deny');
SELECT mlint.rate_allow('ip', '203.0.113.7');
SELECT identifier FROM mlint.rate_overrides WHERE rule = 'ip';
SELECT mlint.rate_override_drop('ip', '203.0.113.1');
SELECT mlint.rate_allow('ip', '203.0.113.7');
SELECT mlint.rate_override_set('ip', 'x', 'deny');
SELECT mlint.rate_override_set('ip', '', 'deny');
SELECT mlint.rate_override_set('user', '', 'deny');
SELECT mlint.rate_override_set('everybody', 'x', 'deny');
SELECT mlint.rate_override_set('everybody', '', 'limit', 1);
SELECT capacity FROM mlint.rate_peek('everybody', 'x');
-- replaced, dropped, rolled back
SELECT mlint.rate_override_set('bucket', 'banned', 'allow');
SELECT allowed FROM mlint.rate_check('bucket', 'banned');
BEGIN;
SELECT mlint.rate_override_drop('bucket', 'banned');
SELECT reason FROM mlint.rate_check('bucket', 'banned');
ROLLBACK;
SELECT reason FROM mlint.rate_check('bucket', 'banned');
SELECT mlint.rate_override_drop('bucket', 'banned');
SELECT mlint.rate_override_drop('bucket', 'banned');
SELECT mlint.rate_override_drop('nosuch', 'banned');
-- bad ones
SELECT mlint.rate_override_set('bucket', 'x', 'forbid');
SELECT mlint.rate_override_set('bucket', 'x', 'deny', 5);
SELECT mlint.rate_override_set('bucket', 'x', 'allow', NULL, 5);
SELECT mlint.rate_override_set('bucket', 'x', 'limit');
SELECT mlint.rate_override_set('bucket', 'x', 'limit', 0);
SELECT mlint.rate_override_set('bucket', 'x', 'limit', -9223372036854775808);
SELECT mlint.rate_override_set('bucket', 'x', 'limit', 5, 0);
SELECT mlint.rate_override_set('fixed', 'x', 'limit', 5, 5);
SELECT mlint.rate_override_set('bucket', 'x', 'deny', expires_at => '2020-01-01');
SELECT mlint.rate_override_set('bucket', NULL, 'deny');
SELECT mlint.rate_override_set('bucket', 'x', NULL);
SELECT mlint.rate_override_set(NULL, 'x', 'deny');
SELECT mlint.rate_override_set('nosuch', 'x', 'deny');
-- an override must stay possible
SELECT mlint.rate_override_set('user', 'many', 'limit', 50000000);
SELECT mlint.rate_rule_alter('bucket', algorithm => 'fixed_window');
SELECT mlint.rate_override_set('sliding', 'many', 'limit', 67108864);

-- headers
SELECT mlint.rate_headers(ROW(true, 7, 10, NULL, '2100-01-01 00:00:00.5+00', '0', false, NULL, 'r')::mlint.rate_decision) - 'RateLimit-Reset';
SELECT mlint.rate_headers(ROW(false, 0, 10, '1.2 s', '2000-01-01 00:00:00+00', '0', false, 'limited', 'r')::mlint.rate_decision);
SELECT mlint.rate_headers(ROW(false, 0, 10, '1 us', 'infinity', '0', false, 'limited', 'r')::mlint.rate_decision);
SELECT mlint.rate_headers(ROW(false, 0, 10, NULL, 'infinity', '0', false, 'denied', 'r')::mlint.rate_decision);
SELECT h->>'RateLimit-Reset' AS reset, h->>'Retry-After' AS retry
	FROM mlint.rate_headers(ROW(false, 0, 10, '100 s', clock_timestamp() + interval '100 s', '0', false, 'limited', 'r')::mlint.rate_decision) h;
SELECT (mlint.rate_headers(mlint.rate_peek('fixed', 'h'))->>'RateLimit-Reset')::int > 0 AS later;
SELECT mlint.rate_headers(NULL);

-- PostgREST: each rule for the identifier of the request
SELECT mlint.rate_pre_request();
SELECT current_setting('response.headers', true);
SELECT mlint.rate_rule_create('http ip', 'token_bucket', 2, '30 days', scope => 'ip', setting => 'request.headers>x-forwarded-for', pre_request => true);
SELECT mlint.rate_rule_create('http user', 'token_bucket', 1000, '30 days', scope => 'user', setting => 'request.jwt.claims>sub', pre_request => true);
BEGIN;
SET LOCAL "request.headers" = '{"x-forwarded-for": "198.51.100.7"}';
SET LOCAL "request.jwt.claims" = '{"sub": "alice", "role": "web"}';
SET LOCAL "response.headers" = '[{"Cache-Control": "no-store"}]';
SELECT mlint.rate_pre_request();
SELECT jsonb_path_query(current_setting('response.headers')::jsonb, '$[*] ? (!exists(@."RateLimit-Reset") && !exists(@."X-RateLimit-Reset"))');
SELECT jsonb_array_length(current_setting('response.headers')::jsonb);
SELECT remaining FROM mlint.rate_peek('http user', 'alice');
SELECT mlint.rate_pre_request();
DO $$
DECLARE
	state text; message text; detail text;
BEGIN
	PERFORM mlint.rate_pre_request();
	RAISE 'it passed';
EXCEPTION WHEN SQLSTATE 'PGRST' THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	RAISE NOTICE '%', message::jsonb - 'hint';
	RAISE NOTICE '%', detail::jsonb - 'headers';
	RAISE NOTICE '%', (detail::jsonb->'headers'->>'Retry-After')::int > 86400;
	RAISE NOTICE '%', (SELECT string_agg(k, ', ' ORDER BY k) FROM jsonb_object_keys(detail::jsonb->'headers') k);
END
$$;
COMMIT;
SELECT remaining FROM mlint.rate_peek('http user', 'alice');
SELECT mlint.rate_rule_drop('http ip'), mlint.rate_rule_drop('http user');
-- one rule too many would have every request fail
DO $$
BEGIN
	FOR i IN 1..16 LOOP
		PERFORM mlint.rate_rule_create('http ' || i, 'token_bucket', 2, '30 days', scope => 'global', pre_request => true);
	END LOOP;
END
$$;
SELECT mlint.rate_rule_create('http 17', 'token_bucket', 2, '30 days', scope => 'global', pre_request => true);
SELECT mlint.rate_rule_create('http 17', 'token_bucket', 2, '30 days', scope => 'global');
SELECT mlint.rate_rule_alter('http 17', pre_request => true);
SELECT mlint.rate_rule_alter('http 16', rate => 3);
SELECT mlint.rate_pre_request();
SELECT count(mlint.rate_rule_drop(name)) FROM mlint.rate_rules WHERE name LIKE 'http %';
-- settings that are no strings, of two rules at once
SELECT mlint.rate_rule_create('by memory', 'token_bucket', 2, '30 days', scope => 'user', setting => 'work_mem');
SELECT mlint.rate_rule_create('by timeout', 'token_bucket', 2, '30 days', scope => 'user', setting => 'statement_timeout');
SET work_mem = '99MB';
SET statement_timeout = '1h';
SELECT allowed FROM mlint.rate_check_all('{by memory,by timeout}');
SELECT identifier FROM mlint.rate_top('by memory');
SELECT identifier FROM mlint.rate_top('by timeout');
RESET work_mem;
RESET statement_timeout;
SELECT mlint.rate_rule_drop('by memory'), mlint.rate_rule_drop('by timeout');

-- a trigger
CREATE TABLE upload (tenant text, n int);
CREATE TRIGGER limit_uploads BEFORE INSERT ON upload FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger('fixed', 'tenant');
INSERT INTO upload SELECT 'a', n FROM generate_series(1, 3) n;
INSERT INTO upload VALUES ('b', 1), (NULL, 1), ('', 1), (NULL, 2);
\set VERBOSITY terse
INSERT INTO upload VALUES ('', 2);
SELECT mlint.rate_rule_alter('fixed', strategy => 'retry_after');
INSERT INTO upload VALUES ('a', 4);
\set VERBOSITY sqlstate
INSERT INTO upload VALUES ('a', 4);
\set VERBOSITY default
SELECT mlint.rate_override_set('fixed', 'a', 'deny');
INSERT INTO upload VALUES ('a', 4);
SELECT tenant, count(*) FROM upload GROUP BY 1 ORDER BY 1;
CREATE TRIGGER wrong BEFORE UPDATE ON upload FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger('fixed', 'tenant');
UPDATE upload SET n = 0;
DROP TRIGGER wrong ON upload;
CREATE TRIGGER wrong BEFORE INSERT ON upload EXECUTE FUNCTION mlint.rate_limit_trigger('fixed', 'tenant');
INSERT INTO upload VALUES ('c', 1);
DROP TRIGGER wrong ON upload;
CREATE TRIGGER wrong AFTER INSERT ON upload FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger('fixed', 'tenant');
INSERT INTO upload VALUES ('c', 1);
DROP TRIGGER wrong ON upload;
CREATE TRIGGER wrong BEFORE INSERT ON upload FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger('fixed');
INSERT INTO upload VALUES ('c', 1);
DROP TRIGGER wrong ON upload;
CREATE TRIGGER wrong BEFORE INSERT ON upload FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger('fixed', 'nosuch');
INSERT INTO upload VALUES ('c', 1);
DROP TRIGGER wrong ON upload;
CREATE TRIGGER wrong BEFORE INSERT ON upload FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger('nosuch', 'tenant');
INSERT INTO upload VALUES ('d', 1);
SELECT mlint.rate_limit_trigger();
CREATE TABLE generated (a text, b text GENERATED ALWAYS AS (lower(a)) STORED);
CREATE TRIGGER wrong BEFORE INSERT ON generated FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger('fixed', 'b');
INSERT INTO generated VALUES ('x');
DROP TABLE generated;

-- statistics
SELECT mlint.rate_rule_create('counted', 'token_bucket', 2, '30 days');
SELECT count(*) FILTER (WHERE mlint.rate_allow('counted', 'busy')) FROM generate_series(1, 10);
SELECT count(*) FILTER (WHERE mlint.rate_allow('counted', 'calm')) FROM generate_series(1, 2);
SELECT count(*) FILTER (WHERE mlint.rate_allow('counted', repeat('long ', 20))) FROM generate_series(1, 3);
SELECT count(*) FILTER (WHERE mlint.rate_allow('counted', repeat('л', 40))) FROM generate_series(1, 4);
SELECT count(*) FROM generate_series(1, 5), mlint.rate_peek('counted', 'busy');
SELECT * FROM mlint.stat_rate_limits WHERE rule = 'counted';
SELECT * FROM mlint.rate_top('counted');
SELECT * FROM mlint.rate_top('counted', 1);
SELECT * FROM mlint.rate_top('counted', 0);
SELECT * FROM mlint.rate_top('counted', NULL);
SELECT * FROM mlint.rate_top('nosuch');
SELECT * FROM mlint.rate_top(NULL);
-- the most refused is found among those that are busier
SELECT mlint.rate_override_set('counted', 'big', 'limit', 100);
SELECT count(*) FILTER (WHERE mlint.rate_allow('counted', 'big')) FROM generate_series(1, 50);
SELECT * FROM mlint.rate_top('counted', 1);

-- bad input
SELECT mlint.rate_check('nosuch', 'x');
SELECT mlint.rate_check(repeat('n', 100), 'x');
SELECT mlint.rate_check('', 'x');
SELECT mlint.rate_allow('bucket', 'x');
SELECT mlint.rate_allow('bucke', 'x');
SELECT mlint.rate_allow('bucketx', 'x');
SELECT mlint.rate_allow('bucket ', 'x');
SELECT mlint.rate_check(NULL, 'x');
SELECT mlint.rate_check('bucket', 'x', NULL);
SELECT mlint.rate_check('bucket', 'x', 0);
SELECT mlint.rate_check('bucket', 'x', -1);
SELECT mlint.rate_check('bucket', 'x', -9223372036854775808);
SELECT mlint.rate_check('bucket', 'x', 11);
SELECT mlint.rate_check('bucket', 'x', 9223372036854775807);
SELECT mlint.rate_allow('bucket', 'x', 0);
SELECT mlint.rate_peek('bucket', 'x', 0);
SELECT mlint.rate_allow('nosuch');
SELECT mlint.rate_reset('nosuch');
SELECT mlint.rate_reset(NULL);
SELECT mlint.rate_rule_create('x', 'bucket', 1, '1 s');
SELECT mlint.rate_rule_create('x', 'token_bucket', 0, '1 s');
SELECT mlint.rate_rule_create('x', 'token_bucket', -5, '1 s');
SELECT mlint.rate_rule_create('x', 'token_bucket', -9223372036854775808, '1 s');
SELECT mlint.rate_rule_create('x', 'sliding_window', 67108864, '1 s');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '0');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '-1 s');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '999 us');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '3661 days');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '2147483647 days');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 month');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 year -365 days');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', max_wait => '1 month');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', max_wait => '-1 s');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', 0);
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', -1);
SELECT mlint.rate_rule_create('x', 'fixed_window', 1, '1 s', 5);
SELECT mlint.rate_rule_create('x', 'sliding_window', 1, '1 s', 5);
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', strategy => 'softly');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', scope => 'planet');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', mode => 'rented');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', fail => 'badly');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', backend => 'nosuch');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', mode => 'leased');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', lease => 5);
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', setting => 'app.client');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', scope => 'global', setting => 'app.client');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', scope => 'user', setting => '');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', scope => 'user', setting => '>sub');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', scope => 'user', setting => 'request.jwt.claims>');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', scope => 'user', setting => 'my app.client');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', scope => 'user', setting => 'client');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', scope => 'user', setting => 'app..client>sub');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', ipv4_prefix => 33);
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', ipv6_prefix => -1);
SELECT mlint.rate_rule_create('', 'token_bucket', 1, '1 s');
SELECT mlint.rate_rule_create(repeat('n', 64), 'token_bucket', 1, '1 s');
SELECT mlint.rate_rule_create(E'a\nb', 'token_bucket', 1, '1 s');
SELECT mlint.rate_rule_create(NULL, 'token_bucket', 1, '1 s');
SELECT mlint.rate_rule_create('x', NULL, 1, '1 s');
SELECT mlint.rate_rule_create('x', 'token_bucket', NULL, '1 s');
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, NULL);
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', pre_request => NULL);
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', pre_request => true);
SELECT mlint.rate_rule_create('bucket', 'token_bucket', 1, '1 s');
-- no override comes to hold for nobody
SELECT mlint.rate_rule_create('masked', 'token_bucket', 1, '1 s', scope => 'ip');
SELECT mlint.rate_override_set('masked', '192.0.2.1', 'deny');
SELECT mlint.rate_override_set('masked', '2001:db8::1', 'deny');
SELECT mlint.rate_override_set('masked', '10.0.0.0/8', 'deny');
SELECT mlint.rate_rule_alter('masked', ipv4_prefix => 24);
SELECT mlint.rate_rule_alter('masked', ipv6_prefix => 65);
SELECT mlint.rate_rule_alter('masked', ipv4_prefix => 31, ipv6_prefix => 63);
SELECT mlint.rate_rule_alter('masked', scope => 'global');
SELECT mlint.rate_override_drop('masked', '192.0.2.1');
SELECT mlint.rate_rule_alter('masked', ipv4_prefix => 24);
SELECT mlint.rate_rule_alter('masked', ipv6_prefix => 48);
SELECT mlint.rate_rule_alter('masked', scope => 'custom');
SELECT allowed FROM mlint.rate_check('masked', '2001:db8::/64');
SELECT mlint.rate_override_set('masked', 'nobody', 'deny');
SELECT mlint.rate_rule_alter('masked', scope => 'ip');
SELECT mlint.rate_rule_drop('masked');
SELECT mlint.rate_rule_alter('nosuch', rate => 1);
SELECT mlint.rate_rule_alter('bucket', rate => 0);
SELECT mlint.rate_rule_alter('bucket', per => '1 month');
SELECT mlint.rate_rule_alter(NULL);
SELECT mlint.rate_rule_drop('nosuch');
SELECT mlint.rate_rule_drop(NULL);
SELECT count(*) FROM mlint.rate_rules WHERE name = 'x' OR rate = 0;

-- the edges of int64
SELECT mlint.rate_rule_create(repeat('e', 63), 'fixed_window', 1, '1 ms');
SELECT allowed, capacity FROM mlint.rate_check(repeat('e', 63), 'x');
SELECT algorithm, mlint.rate_rule_create('max ' || algorithm, algorithm, 9223372036854775807, '3660 days')
	FROM unnest('{token_bucket,leaky_bucket,fixed_window}'::text[]) algorithm;
SELECT r.name, n, c.allowed, c.remaining < 1000000 AS none, c.capacity, c.retry_after > '0' AS retry, isfinite(c.reset_at) AS reset
	FROM mlint.rate_rules r, generate_series(1, 2) n,
		LATERAL (SELECT * FROM mlint.rate_check(r.name, 'x' || n * 0, 9223372036854775807)) c
	WHERE r.name LIKE 'max %' ORDER BY r.name, n;
SELECT mlint.rate_rule_create('min', 'token_bucket', 1, '3660 days', 9223372036854775807);
SELECT mlint.rate_rule_create('min', 'token_bucket', 1, '3660 days', 99);
SELECT allowed, retry_after, reset_at > '2900-01-01' AS far FROM mlint.rate_check('min', 'x', 99);
SELECT allowed, retry_after > '360000 days' AS retry, reset_at > '2900-01-01' AS far FROM mlint.rate_check('min', 'x', 99);
SELECT mlint.rate_headers(mlint.rate_peek('min', 'x', 99)) ? 'Retry-After';

-- who may
SET ROLE regress_rate_admin;
SELECT mlint.rate_rule_drop('counted');
SELECT mlint.rate_check('counted', 'busy');
SELECT count(*) FROM mlint.rate_overrides WHERE rule = 'counted';
SELECT mlint.rate_reset('bucket', 'x');
SET ROLE regress_rate_user;
SELECT mlint.rate_rule_create('y', 'token_bucket', 1, '1 s');
SELECT mlint.rate_rule_alter('bucket', rate => 1);
SELECT mlint.rate_rule_drop('bucket');
SELECT mlint.rate_override_set('bucket', 'x', 'allow');
SELECT mlint.rate_override_drop('bucket', 'x');
SELECT mlint.rate_reset('bucket', 'x');
SELECT count(*) FROM mlint.rate_rules;
SELECT count(*) FROM mlint.rate_rule;
SELECT mlint.rate_allow('bucket', 'u'), mlint.rate_headers(mlint.rate_peek('bucket', 'u')) IS NOT NULL;
SELECT mlint.rate_pre_request();
SET ROLE regress_rate_reader;
SELECT mlint.rate_allow('bucket', 'u');
SELECT count(*) > 0 AS rules FROM mlint.rate_rules;
SELECT count(*) > 0 AS overrides FROM mlint.rate_overrides;
SELECT count(*) > 0 AS totals FROM mlint.stat_rate_limits;
SELECT count(*) > 0 AS top FROM mlint.rate_top('bucket');
RESET ROLE;

-- a setting that the role may not see
SET ROLE regress_rate_admin;
\set VERBOSITY sqlstate
SELECT mlint.rate_rule_create('x', 'token_bucket', 1, '1 s', scope => 'user', setting => 'data_directory');
\set VERBOSITY default
RESET ROLE;

-- what the audit log has of it
SELECT action, outcome, object, left(details::text, 120) FROM mlint.audit_log
	WHERE object_type = 'rate_rule' AND (action LIKE 'rate_override.%' AND object = 'ip' OR action = 'rate_limit.reset' OR object IN ('day', 'counted') OR action = 'rate_rule.alter' AND object = 'user')
	ORDER BY seq;

DROP TABLE upload;
SELECT count(mlint.rate_rule_drop(name)) > 5 AS dropped FROM mlint.rate_rules;
SELECT count(*) FROM mlint.rate_overrides;
DROP ROLE regress_rate_admin, regress_rate_user, regress_rate_reader;
