-- Delivery: what is refused and how, patterns, keys, transactions, the
-- drivers that stay inside the database, and who may do what.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
CREATE ROLE regress_delivery_admin IN ROLE mlint_admin;
CREATE ROLE regress_delivery_user IN ROLE mlint_user;
CREATE ROLE regress_delivery_reader IN ROLE mlint_reader;
CREATE ROLE regress_delivery_nobody;
CREATE SCHEMA regress_delivery;
GRANT USAGE, CREATE ON SCHEMA regress_delivery TO regress_delivery_admin;
SELECT FROM mlint.secret_put('regress/key', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw');
CREATE VIEW regress_delivery.mine AS
	SELECT name, driver, events, enabled, owner, options FROM mlint.destinations
	WHERE name LIKE 'regress %';
GRANT SELECT ON regress_delivery.mine TO regress_delivery_admin;

-- ---- destination_create: each error says what and how ----
SET ROLE regress_delivery_admin;
\set SHOW_CONTEXT never
-- the name
SELECT mlint.destination_create(NULL, 'http');
SELECT mlint.destination_create('', 'http');
SELECT mlint.destination_create(repeat('n', 64), 'http');
SELECT mlint.destination_create(E'regress\nline', 'http');
SELECT mlint.destination_create('regress a', NULL);
SELECT mlint.destination_create('regress a', 'htp');
SELECT mlint.destination_create('regress a', 'http', NULL);
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a"}', NULL);
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a"}', '{*}', NULL);
-- options: shape, unknown, required, types, bounds
SELECT mlint.destination_create('regress a', 'http', '[]');
SELECT mlint.destination_create('regress a', 'http', '"http://a"');
SELECT mlint.destination_create('regress a', 'http', '{}');
SELECT mlint.destination_create('regress a', 'http', '{"url": null}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "timeout": 3}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "max_retries": 3}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "zzzzzzzzzz": 3}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "retry": {"max_retry": 3}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "retry": 3}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "retry": {"strategy": "exponental"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "retry": {"max_retries": -1}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "retry": {"max_retries": 1.5}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "retry": {"multiplier": 1e400}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "breaker": {"timeout_s": 0}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "max_in_flight": "32"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "max_in_flight": 0}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "ordered": "yes"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "timeout_ms": 0}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "method": "GET"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signature": "sha1"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "tls": {"verify": "no"}}');
-- URLs
SELECT mlint.destination_create('regress a', 'http', '{"url": 1}');
SELECT mlint.destination_create('regress a', 'http', '{"url": ""}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "example.com/hook"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "ftp://example.com/"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "file:///etc/passwd"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http:///hook"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a\r\nx-evil: 1/"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "https://user:hunter2@example.com/"}');
-- headers
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": ["x"]}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"X-A": "1\r\nX-Evil: 1"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"X-A\r\nX-Evil": "1"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"X-A: 1\nX-Evil": "1"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"": "1"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"X-A": 1}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"Host": "b"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"Content-Length": "1"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"webhook-id": "1"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"x-webhook-signature": "sha256=1"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "header", "name": "Webhook-Signature", "value": {"secret": "regress/key"}}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "bearer", "token": {"secret": "regress/key"}}, "headers": {"authorization": {"secret": "regress/key"}}}');
-- credentials: a plain one is refused, and not repeated
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": "hunter2"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": ["hunter2"]}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": []}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": {"secrt": "a"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": {"secret": "a", "env": "b"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": {"secret": ""}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": {"secret": "regress/none"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": [{"secret": "regress/key"}, {"secret": "regress/none"}]}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": {"env": "HOME"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": {"file": "/etc/passwd"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": {"file": "passwd"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "signing_secret": {"env": "A=B"}}');
SELECT mlint.destination_create('regress a', 'http', jsonb_build_object('url', 'http://a', 'signing_secret',
	(SELECT jsonb_agg('{"secret": "regress/key"}'::jsonb) FROM generate_series(1, 9))));
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "bearer", "token": "hunter2"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "basic", "username": "u", "password": "hunter2"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "bearer"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "basic", "username": "u"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "basic", "password": {"secret": "regress/key"}}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "header", "name": "X-Key"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "header", "value": {"secret": "regress/key"}}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "header", "name": "X-Key\r\nX", "value": {"secret": "regress/key"}}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"token": {"secret": "regress/key"}}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "auth": {"type": "digest"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"Authorization": "Bearer hunter2"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"x-api-key": "hunter2"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"X-Session-Token": "hunter2"}}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "headers": {"X-Key": {"secret": "regress/none"}}}');
SELECT mlint.destination_create('regress a', 'slack', '{}');
SELECT mlint.destination_create('regress a', 'slack', '{"url": "https://hooks.slack.com/services/T0/B0/hunter2"}');
SELECT mlint.destination_create('regress a', 'discord', '{"url": "https://discord.com/api/webhooks/1/hunter2"}');
-- functions
SELECT mlint.destination_create('regress a', 'function');
SELECT mlint.destination_create('regress a', 'function', '{"fn": ""}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "sink"}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "regress_delivery.sink"}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "no_such_schema.sink"}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "a.b.c"}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "regress_delivery.sink(jsonb)"}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "regress_delivery.\"; drop table x; --"}');
RESET ROLE;
CREATE FUNCTION regress_delivery.takes_text(text) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION regress_delivery.a_set(jsonb) RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION regress_delivery.to_text(jsonb) RETURNS text LANGUAGE sql AS 'SELECT $1::text';
CREATE FUNCTION regress_delivery.not_mine(jsonb) RETURNS void LANGUAGE sql AS '';
REVOKE ALL ON FUNCTION regress_delivery.not_mine FROM PUBLIC;
CREATE AGGREGATE regress_delivery.an_aggregate (jsonb) (SFUNC = jsonb_concat, STYPE = jsonb);
CREATE PROCEDURE regress_delivery.a_procedure(jsonb) LANGUAGE sql AS '';
CREATE SCHEMA regress_hidden;
CREATE FUNCTION regress_hidden.sink(jsonb) RETURNS void LANGUAGE sql AS '';
SET ROLE regress_delivery_admin;
SELECT mlint.destination_create('regress a', 'function', '{"fn": "regress_delivery.takes_text"}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "regress_delivery.a_set"}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "regress_delivery.an_aggregate"}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "regress_delivery.a_procedure"}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "regress_delivery.not_mine"}');
SELECT mlint.destination_create('regress a', 'function', '{"fn": "regress_hidden.sink"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "transform": "regress_delivery.to_text"}');
SELECT mlint.destination_create('regress a', 'http', '{"url": "http://a", "transform": "regress_delivery.none"}');
SELECT mlint.destination_create('regress a', 'notify', '{}');
SELECT mlint.destination_create('regress a', 'notify', '{"channel": ""}');
SELECT mlint.destination_create('regress a', 'notify', '{"channel": 5}');
SELECT mlint.destination_create('regress a', 'notify', jsonb_build_object('channel', repeat('c', 64)));
-- patterns
SELECT mlint.destination_create('regress a', 'notify', '{"channel": "c"}', '{}');
SELECT mlint.destination_create('regress a', 'notify', '{"channel": "c"}', '{NULL}');
SELECT mlint.destination_create('regress a', 'notify', '{"channel": "c"}', '{""}');
SELECT mlint.destination_create('regress a', 'notify', '{"channel": "c"}', '{{a,b},{c,d}}');
SELECT mlint.destination_create('regress a', 'notify', '{"channel": "c"}', ARRAY[repeat('p', 256)]);
SELECT mlint.destination_create('regress a', 'notify', '{"channel": "c"}', ARRAY[E'a\tb']);
SELECT count(*) AS created FROM regress_delivery.mine;

-- ---- what is accepted ----
SELECT mlint.destination_create('regress a', 'notify', '{"channel": "c"}', '{regress.unheard.of,CUSTOM}', false) > 0 AS created;
SELECT mlint.destination_create('regress a', 'notify', '{"channel": "c"}');
SELECT mlint.destination_create('regress "; drop table x; --', 'notify',
	'{"channel": "\"; drop table x; --"}', ARRAY['CUSTOM'], false) > 0 AS created;
SELECT mlint.destination_create('regress ' || repeat('n', 55), 'http', '{"url": "http://a",
	"headers": {"X-A": "b", "Authorization": {"secret": "regress/key"}},
	"signing_secret": [{"secret": "regress/key"}]}', '{EMERGENCY_*}', false) > 0 AS created;
SELECT mlint.destination_create(E'regress \'%s\' \U0001F511', 'http', '{"url": "http://a", "method": null}',
	'{?USTOM}', false) > 0 AS created;
SELECT name, driver, events, enabled, owner, options FROM regress_delivery.mine ORDER BY name COLLATE "C";

-- ---- destination_alter, destination_drop ----
SELECT mlint.destination_alter(NULL);
SELECT mlint.destination_alter('regress none');
SELECT mlint.destination_alter('regress a', '[]');
SELECT mlint.destination_alter('regress a', '{"chanel": "d"}');
SELECT mlint.destination_alter('regress a', '{"channel": null}');
SELECT mlint.destination_alter('regress a', events => '{}');
SELECT mlint.destination_alter('regress a', '{"transform": "regress_delivery.to_text"}');
SELECT mlint.destination_alter(E'regress \'%s\' \U0001F511', '{"signing_secret": "hunter2"}');
SELECT mlint.destination_alter(E'regress \'%s\' \U0001F511', '{"signing_secret": {"secret": "regress/none"}}');
SELECT mlint.destination_alter(E'regress \'%s\' \U0001F511', '{"headers": {"X": "1\nY: 2"}}');
SELECT mlint.destination_drop('regress none');
SELECT mlint.destination_drop(NULL) IS NULL AS nothing;
SELECT mlint.destination_alter('regress a', '{"max_in_flight": 5, "retry": {"max_retries": 1}}');
SELECT mlint.destination_alter('regress a', '{"channel": "d", "max_in_flight": null}', '{CUSTOM}');
SELECT options, events, enabled FROM regress_delivery.mine WHERE name = 'regress a';
SELECT mlint.destination_drop('regress "; drop table x; --');
SELECT mlint.destination_drop('regress "; drop table x; --');
-- a transform cannot come or go
RESET ROLE;
CREATE FUNCTION regress_delivery.shape(jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT $1';
SET ROLE regress_delivery_admin;
SELECT mlint.destination_alter(E'regress \'%s\' \U0001F511', '{"transform": "regress_delivery.shape"}');
-- another administrator's: the owner must be allowed to call the function too
RESET ROLE;
CREATE FUNCTION regress_delivery.not_his(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION regress_delivery.first(jsonb) RETURNS void LANGUAGE sql AS '';
REVOKE ALL ON FUNCTION regress_delivery.not_his FROM PUBLIC;
SET ROLE regress_delivery_admin;
SELECT mlint.destination_create('regress owned', 'function', '{"fn": "regress_delivery.first"}', '{CUSTOM}', false) > 0 AS created;
RESET ROLE;
SELECT mlint.destination_alter('regress owned', '{"fn": "regress_delivery.not_his"}');
SELECT mlint.destination_drop('regress owned');
-- a name can be used again; a rolled-back drop is none
BEGIN;
SELECT mlint.destination_drop('regress a');
SELECT count(*) FROM regress_delivery.mine WHERE name = 'regress a';
ROLLBACK;
SELECT count(*) FROM regress_delivery.mine WHERE name = 'regress a';
BEGIN;
SELECT mlint.destination_create('regress b', 'notify', '{"channel": "c"}') > 0 AS created;
ROLLBACK;
SELECT count(*) FROM regress_delivery.mine WHERE name = 'regress b';

-- ---- publish, send ----
SELECT mlint.publish(NULL, '{}');
SELECT mlint.publish('CUSTOM', NULL);
SELECT mlint.publish('CUSTOM', '{}', NULL);
SELECT mlint.publish('', '{}');
SELECT mlint.publish(repeat('t', 256), '{}');
SELECT mlint.publish(E'CUS\rTOM', '{}');
SELECT mlint.publish('CUSTOM', '{}', '[]');
SELECT mlint.publish('CUSTOM', '{}', '"x"');
SELECT mlint.publish('CUSTOM', '{}', key => '');
SELECT mlint.publish('CUSTOM', '{}', key => repeat('k', 256));
SELECT mlint.publish('CUSTOM', '{}', key => E'k\nk');
SELECT mlint.publish('CUSTOM', '{}', deliver_at => 'infinity');
SELECT mlint.publish('CUSTOM', '{}', deliver_at => '-infinity');
SELECT mlint.publish('CUSTOM', to_jsonb(repeat('x', 1024 * 1024)));
SELECT mlint.publish('CUSTOM', '{}', jsonb_build_object('m', repeat('x', 1024 * 1024)));
SET mlint.event_max_bytes = '1kB';
SELECT mlint.publish('CUSTOM', to_jsonb(repeat('x', 2000)));
SELECT mlint.publish('CUSTOM', to_jsonb(repeat('x', 900))) > 0 AS published;
\set VERBOSITY sqlstate
SET mlint.event_max_bytes = 10;
\set VERBOSITY default
SET ROLE regress_delivery_user;
SET mlint.event_max_bytes = '1GB';
RESET ROLE;
RESET mlint.event_max_bytes;
SELECT mlint.send(NULL, 'CUSTOM', '{}');
SELECT mlint.send('regress none', 'CUSTOM', '{}');
SELECT mlint.send('regress a', NULL, '{}');
SELECT mlint.send('regress a', 'CUSTOM', '{}', '[]');
BEGIN READ ONLY;
SELECT mlint.publish('CUSTOM', '{}');
ROLLBACK;
SELECT count(*) AS refused_and_in_the_log FROM mlint.events WHERE destination IS NOT NULL OR metadata <> '{}';

-- any scalar is data, any other name a type
SELECT mlint.publish('regress any ''"\ name', 'null', '{"a": [1, {"b": null}]}') AS id \gset
SELECT type, data, metadata, destination, key FROM mlint.events WHERE id = :id;
SELECT mlint.send('regress a', 'CUSTOM', '5') AS id \gset
SELECT type, data, metadata, destination, key FROM mlint.events WHERE id = :id;

-- ---- event_wait, delivery_retry, dead_letter_replay, breaker_reset ----
SELECT mlint.event_wait(0, '1 s');
SELECT mlint.event_wait(-1, '1 s');
SELECT mlint.event_wait(NULL, '1 s') IS NULL AS nothing;
BEGIN;
SELECT mlint.publish('CUSTOM', '{}') AS id \gset
\set VERBOSITY sqlstate
SELECT mlint.event_wait(:id, '1 s');
ROLLBACK;
\set VERBOSITY default
SELECT mlint.delivery_retry(0, 'regress none');
SELECT mlint.delivery_retry(0, 'regress a');
SELECT mlint.dead_letter_replay('regress none');
SELECT mlint.dead_letter_replay('regress a');
SELECT mlint.dead_letter_replay('regress a', 'infinity');
SELECT mlint.breaker_reset('regress none');
SELECT mlint.breaker_reset('regress a');
SELECT mlint.destination_test('regress none');

-- ---- messages ----
SELECT FROM mlint.secret_put('regress/url', 'http://127.0.0.1:1/hook');
SELECT mlint.destination_create('regress slack', 'slack', '{"url": {"secret": "regress/url"}}', '{CUSTOM}', false) > 0 AS created;
SELECT mlint.destination_create('regress discord', 'discord', '{"url": {"secret": "regress/url"}}', '{CUSTOM}', false) > 0 AS created;
\set VERBOSITY default
SELECT mlint.slack_message('regress none', 'x');
SELECT mlint.slack_message('regress discord', 'x');
SELECT mlint.slack_message('regress slack', NULL);
SELECT mlint.slack_message('regress slack', '');
SELECT mlint.slack_message('regress slack', repeat('x', 40001));
SELECT mlint.slack_message('regress slack', 'x', repeat('u', 81));
SELECT mlint.slack_message('regress slack', 'x', icon_emoji => repeat('u', 101));
SELECT mlint.slack_alert('regress none', 't', 'm');
SELECT mlint.slack_alert('regress a', 't', 'm');
SELECT mlint.slack_alert('regress slack', NULL, 'm');
SELECT mlint.slack_alert('regress slack', 't', NULL);
SELECT mlint.slack_alert('regress slack', 't', 'm', 'fatal');
SELECT mlint.slack_alert('regress slack', 't', 'm', NULL);
SELECT mlint.slack_alert('regress slack', 't', 'm', 'info', '[]');
SELECT mlint.slack_alert('regress slack', 't', 'm', 'info', NULL);
SELECT mlint.slack_alert('regress slack', '', 'm');
SELECT mlint.slack_alert('regress slack', repeat('t', 151), 'm');
SELECT mlint.slack_alert('regress slack', 't', repeat('m', 3001));
SELECT mlint.slack_alert('regress slack', 't', 'm', 'info',
	(SELECT jsonb_object_agg(i, i) FROM generate_series(1, 11) i));
SELECT mlint.slack_alert('regress slack', 't', 'm', 'info', jsonb_build_object('f', repeat('v', 2000)));
SELECT mlint.discord_message('regress none', 'x');
SELECT mlint.discord_message('regress slack', 'x');
SELECT mlint.discord_message('regress discord', NULL);
SELECT mlint.discord_message('regress discord', '');
SELECT mlint.discord_message('regress discord', repeat('x', 2001));
SELECT mlint.discord_message('regress discord', 'x', repeat('u', 81));
SELECT mlint.discord_message('regress discord', 'x', embeds => '{}');
SELECT mlint.discord_message('regress discord', 'x', embeds => '[1]');
SELECT mlint.discord_message('regress discord', 'x', embeds => '[{"fields": 1}]');
SELECT mlint.discord_message('regress discord', 'x', embeds => '[{"fields": [1]}]');
SELECT mlint.discord_message('regress discord', 'x', embeds => '[{"fields": [{"name": "n"}]}]');
SELECT mlint.discord_message('regress discord', 'x', embeds =>
	(SELECT jsonb_agg(jsonb_build_object('title', i)) FROM generate_series(1, 11) i));
SELECT mlint.discord_message('regress discord', 'x', embeds => jsonb_build_array(jsonb_build_object('title', repeat('t', 257))));
SELECT mlint.discord_message('regress discord', 'x', embeds => jsonb_build_array(jsonb_build_object('description', repeat('t', 4097))));
SELECT mlint.discord_message('regress discord', 'x', embeds => jsonb_build_array(jsonb_build_object('footer', jsonb_build_object('text', repeat('t', 2049)))));
SELECT mlint.discord_message('regress discord', 'x', embeds => jsonb_build_array(jsonb_build_object('author', jsonb_build_object('name', repeat('t', 257)))));
SELECT mlint.discord_message('regress discord', 'x', embeds => jsonb_build_array(jsonb_build_object('fields',
	(SELECT jsonb_agg('{"name": "n", "value": "v"}'::jsonb) FROM generate_series(1, 26)))));
SELECT mlint.discord_message('regress discord', 'x', embeds => jsonb_build_array(
	jsonb_build_object('description', repeat('t', 4000)), jsonb_build_object('description', repeat('t', 2001))));
-- at the limits they pass
SELECT mlint.slack_message('regress slack', repeat('x', 40000), 'u', ':e:') > 0 AS published;
SELECT mlint.slack_alert('regress slack', repeat('t', 150), repeat('m', 3000), 'critical',
	(SELECT jsonb_object_agg(i, repeat('v', 1990)) FROM generate_series(1, 10) i)) > 0 AS published;
SELECT mlint.discord_message('regress discord', repeat('x', 2000), 'u', jsonb_build_array(
	jsonb_build_object('description', repeat('t', 4096)), jsonb_build_object('description', repeat('t', 1904)))) > 0 AS published;
SELECT mlint.discord_message('regress discord', NULL, embeds => '[{"title": "t"}]') AS id \gset
SELECT type, data FROM mlint.events WHERE id = :id;
SELECT mlint.slack_alert('regress slack', 'Title', 'Message', 'error', '{"host": "a", "n": 5}') AS id \gset
SELECT type, jsonb_pretty(data) FROM mlint.events WHERE id = :id;

-- ---- what there is ----
SELECT driver, count(*), count(*) FILTER (WHERE required) AS required,
	string_agg(option, ', ') FILTER (WHERE option !~ '^(retry|breaker)\.') AS options
FROM mlint.drivers GROUP BY driver ORDER BY driver;
SELECT option, type, "default", bounds, required FROM mlint.drivers WHERE driver = 'http';
SELECT count(*) AS undocumented FROM mlint.drivers WHERE coalesce(help, '') = '';
SELECT name FROM mlint.event_types WHERE name !~ '^(audit|secret)\.' ORDER BY name COLLATE "C";

-- ---- patterns ----
SELECT pattern, type, mlint.event_type_matches(ARRAY[pattern], type) AS matches
FROM (VALUES ('*', 'a'), ('*', ''), ('session.*', 'session.start'), ('session.*', 'session'),
	('session.*', 'xsession.start'), ('*.start', 'session.start'), ('*.start', 'session.started'),
	('s*n.st?rt', 'session.start'), ('?', 'ab'), ('a*b*c', 'aXbXbc'), ('a*b*c', 'aXbXb'),
	('A', 'a'), ('a.b', 'aXb'), ('[ab]', 'a'), ('[ab]', '[ab]'), ('%', 'a'), ('**', 'a'), ('a\*', 'a*'),
	('*a*a*a*a*a*a*a*a*b', repeat('a', 200))) v (pattern, type);
SELECT mlint.event_type_matches('{a,b*}', 'bc'), mlint.event_type_matches('{}', 'a'),
	mlint.event_type_matches('{NULL,a}', 'a'), mlint.event_type_matches(NULL, 'a');

-- ---- keys ----
BEGIN;
SELECT mlint.publish('CUSTOM', '{"n": 1}', key => 'regress 1') AS first \gset
SELECT mlint.publish('CUSTOM', '{"n": 2}', key => 'regress 1') = :first AS same_in_transaction;
COMMIT;
SELECT mlint.publish('MEMORY_THRESHOLD', '{"n": 3}', key => 'regress 1') = :first AS same_in_next;
SELECT mlint.send('regress a', 'CUSTOM', '{"n": 4}', key => 'regress 1') = :first AS same_by_send;
SELECT mlint.publish('CUSTOM', '{"n": 5}', key => 'regress 2') <> :first AS other_key;
SELECT count(*), min(data::text) FROM mlint.events WHERE key = 'regress 1';
BEGIN;
SELECT mlint.publish('CUSTOM', '{"n": 6}', key => 'regress 3') AS lost \gset
ROLLBACK;
SELECT mlint.publish('CUSTOM', '{"n": 7}', key => 'regress 3') <> :lost AS rolled_back_key_is_free;
SELECT data FROM mlint.events WHERE key = 'regress 3';
UPDATE mlint.event_key SET published_at = published_at - interval '23 hours 59 minutes' WHERE key = 'regress 1';
SELECT mlint.publish('CUSTOM', '{"n": 8}', key => 'regress 1') = :first AS same_for_a_day;
UPDATE mlint.event_key SET published_at = published_at - interval '2 minutes' WHERE key = 'regress 1';
SELECT mlint.publish('CUSTOM', '{"n": 9}', key => 'regress 1') AS second \gset
SELECT :second <> :first AS forgotten_after_a_day;
SELECT mlint.publish('CUSTOM', '{"n": 10}', key => 'regress 1') = :second AS and_kept_again;
SELECT data FROM mlint.events WHERE key = 'regress 1' ORDER BY id;

-- ---- the drivers inside the database, end to end ----
SELECT mlint.destination_drop(name) FROM regress_delivery.mine;
SET client_min_messages = error;
CREATE TABLE regress_delivery.got (at serial, event jsonb, who text, path text);
ALTER TABLE regress_delivery.got OWNER TO regress_delivery_admin;
SET ROLE regress_delivery_admin;
CREATE FUNCTION regress_delivery.sink(event jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_delivery.got (event, who, path)
	VALUES (event, current_user, current_setting('search_path')) $$;
CREATE SEQUENCE regress_delivery.calls;
CREATE FUNCTION regress_delivery.fails_twice(event jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_delivery.got (event, who) VALUES (event, 'fails_twice');
	IF nextval('regress_delivery.calls') < 3 THEN
		RAISE EXCEPTION 'not yet: %', event->'data';
	END IF;
END $$;
CREATE FUNCTION regress_delivery.fails(event jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_delivery.got (event, who) VALUES (event, 'fails');
	RAISE EXCEPTION 'never: %', event->'data';
END $$;
SELECT mlint.destination_create('regress sink', 'function', '{"fn": "regress_delivery.sink"}', '{regress.sink}') > 0 AS created;
SELECT mlint.destination_create('regress twice', 'function', '{"fn": "regress_delivery.fails_twice",
	"retry": {"initial_delay_ms": 1}}', '{regress.twice}') > 0 AS created;
SELECT mlint.destination_create('regress fails', 'function', '{"fn": "regress_delivery.fails",
	"retry": {"initial_delay_ms": 1, "max_retries": 2}}', '{regress.fails}') > 0 AS created;
RESET ROLE;
SET ROLE regress_delivery_user;
SELECT mlint.publish('regress.sink', '{"n": 1}', '{"m": 1}') AS id \gset
SELECT mlint.event_wait(:id, '60 s');
RESET ROLE;
SELECT event->'id' = to_jsonb(:id) AS id, event->'type' AS type, event->'data' AS data,
	event->'metadata' AS metadata, (event->>'timestamp')::timestamptz = e.published_at AS timestamp,
	(SELECT array_agg(k ORDER BY k) FROM jsonb_object_keys(event) k) AS keys, who, path
FROM regress_delivery.got, mlint.events e WHERE e.id = :id;
SELECT destination, event_type, state, attempts, next_attempt_at, status_code, error,
	first_attempt_at <= finished_at AS times, latency >= '0 s' AS latency
FROM mlint.deliveries WHERE event_id = :id;
-- every one of many, once
SELECT max(mlint.publish('regress.sink', to_jsonb(n))) AS id FROM generate_series(1, 300) n \gset
SELECT mlint.event_wait(:id, '60 s');
SELECT count(*), count(DISTINCT event->'data') FROM regress_delivery.got WHERE event->'data' <> '{"n": 1}';
-- what failed left nothing; what was tried again did so once
SELECT mlint.publish('regress.twice', '"a"') AS id \gset
SELECT mlint.event_wait(:id, '60 s');
SELECT count(*) FROM regress_delivery.got WHERE who = 'fails_twice';
SELECT state, attempts, error FROM mlint.deliveries WHERE event_id = :id;
SELECT mlint.publish('regress.fails', '"b"', '{"m": 2}') AS id \gset
SELECT mlint.event_wait(:id, '60 s');
SELECT count(*) FROM regress_delivery.got WHERE who = 'fails';
SELECT state, attempts, error FROM mlint.deliveries WHERE event_id = :id;
SELECT destination, event_type, attempts, status_code, error, data, metadata,
	died_at >= first_attempt_at AND first_attempt_at >= published_at AS times
FROM mlint.dead_letters WHERE event_id = :id;
-- mended, the dead letter is delivered
CREATE OR REPLACE FUNCTION regress_delivery.fails(event jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_delivery.got (event, who) VALUES (event, 'fails') $$;
SELECT mlint.dead_letter_replay('regress fails', 'infinity') AS replayed;
SELECT mlint.dead_letter_replay('regress fails') AS replayed;
SELECT mlint.event_wait(:id, '60 s');
SELECT state, attempts FROM mlint.deliveries WHERE event_id = :id;
SELECT count(*) FROM regress_delivery.got WHERE who = 'fails';
-- notify
SELECT mlint.destination_create('regress notify', 'notify', '{"channel": "regress \"Channel\""}', '{regress.notify}') > 0 AS created;
SELECT mlint.publish('regress.notify', '{"n": 2}') AS id \gset
SELECT mlint.event_wait(:id, '60 s');
SELECT state, attempts, error FROM mlint.deliveries WHERE event_id = :id;

-- ---- transactions ----
BEGIN;
SELECT mlint.publish('regress.sink', '"rolled back"') AS lost \gset
ROLLBACK;
BEGIN;
SELECT mlint.publish('regress.sink', '"before"') IS NOT NULL AS published;
SAVEPOINT s;
SELECT mlint.publish('regress.sink', '"in the savepoint"') IS NOT NULL AS published;
ROLLBACK TO s;
SELECT mlint.publish('regress.sink', '"after"') AS id \gset
COMMIT;
SELECT mlint.event_wait(:id, '60 s');
SELECT event->'data' AS data FROM regress_delivery.got WHERE jsonb_typeof(event->'data') = 'string' AND who = 'regress_delivery_admin' ORDER BY at;
SELECT count(*) FROM mlint.events WHERE id = :lost;
\set VERBOSITY sqlstate
SELECT mlint.event_wait(:lost, '1 s');
\set VERBOSITY default
-- a disabled destination holds, enabled it delivers
SELECT mlint.destination_alter('regress sink', enabled => false);
SELECT mlint.publish('regress.sink', '"held"') AS id \gset
SELECT mlint.event_wait(:id, '0 s');
SELECT state, attempts, error FROM mlint.deliveries WHERE event_id = :id;
SELECT mlint.destination_alter('regress sink', enabled => true);
SELECT mlint.event_wait(:id, '60 s');
SELECT state, attempts, error FROM mlint.deliveries WHERE event_id = :id;
RESET client_min_messages;

-- ---- who may ----
SELECT p.oid::regprocedure AS open_to_public FROM pg_proc p
WHERE p.pronamespace = 'mlint'::regnamespace AND has_function_privilege('public', p.oid, 'EXECUTE');
SELECT c.oid::regclass AS open_to_public FROM pg_class c
WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
	AND EXISTS (SELECT FROM aclexplode(c.relacl) a WHERE a.grantee = 0);
SELECT c.oid::regclass AS a_table_somebody_may_read FROM pg_class c,
	unnest('{regress_delivery_admin,regress_delivery_user,regress_delivery_reader,regress_delivery_nobody}'::text[]) r
WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind IN ('r', 'p')
	AND has_table_privilege(r, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE');
SELECT p.oid::regprocedure::text AS function,
	has_function_privilege('regress_delivery_admin', p.oid, 'EXECUTE') AS admin,
	has_function_privilege('regress_delivery_user', p.oid, 'EXECUTE') AS "user",
	has_function_privilege('regress_delivery_reader', p.oid, 'EXECUTE') AS reader,
	has_function_privilege('regress_delivery_nobody', p.oid, 'EXECUTE') AS nobody
FROM pg_proc p WHERE p.pronamespace = 'mlint'::regnamespace
	AND p.proname ~ '^(publish|send|event_|destination_|delivery_|dead_|breaker_|slack_|discord_|message_|segment_|cursor_|driver_|in_flight)'
ORDER BY p.oid::regprocedure::text COLLATE "C";
SELECT c.relname AS view,
	has_table_privilege('regress_delivery_admin', c.oid, 'SELECT') AS admin,
	has_table_privilege('regress_delivery_user', c.oid, 'SELECT') AS "user",
	has_table_privilege('regress_delivery_reader', c.oid, 'SELECT') AS reader,
	has_table_privilege('regress_delivery_nobody', c.oid, 'SELECT') AS nobody
FROM pg_class c WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind = 'v'
	AND c.relname IN ('event_types', 'drivers', 'destinations', 'events', 'deliveries', 'dead_letters', 'stat_destinations')
ORDER BY c.relname;
-- in practice
CREATE FUNCTION regress_delivery.try(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN 'yes';
EXCEPTION WHEN insufficient_privilege THEN
	RETURN 'no';
WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
CREATE FUNCTION regress_delivery.matrix() RETURNS TABLE (command text, answer text) LANGUAGE sql AS $$
	SELECT c, regress_delivery.try(c) FROM unnest(ARRAY[
		'SELECT mlint.publish(''regress.none'', ''{}'')',
		'SELECT mlint.send(''regress sink'', ''regress.none'', ''{}'')',
		'SELECT mlint.event_wait(0, ''0'')',
		'SELECT mlint.slack_message(''none'', ''x'')',
		'SELECT mlint.slack_alert(''none'', ''x'', ''y'')',
		'SELECT mlint.discord_message(''none'', ''x'')',
		'SELECT mlint.destination_create(''none'', ''none'')',
		'SELECT mlint.destination_alter(''none'')',
		'SELECT mlint.destination_drop(''none'')',
		'SELECT mlint.destination_test(''none'')',
		'SELECT mlint.dead_letter_replay(''none'')',
		'SELECT mlint.delivery_retry(0, ''none'')',
		'SELECT mlint.breaker_reset(''none'')',
		'SELECT mlint.segment_begin()',
		'SELECT mlint.event_retention_run()',
		'SELECT FROM mlint.event_types', 'SELECT FROM mlint.drivers',
		'SELECT FROM mlint.destinations', 'SELECT FROM mlint.events',
		'SELECT FROM mlint.deliveries', 'SELECT FROM mlint.dead_letters',
		'SELECT FROM mlint.stat_destinations', 'SELECT FROM mlint.event',
		'SELECT FROM mlint.destination', 'DELETE FROM mlint.pending']) c $$;
GRANT USAGE ON SCHEMA regress_delivery TO PUBLIC;
SET ROLE regress_delivery_admin;
SELECT * FROM regress_delivery.matrix();
RESET ROLE;
SET ROLE regress_delivery_user;
SELECT * FROM regress_delivery.matrix();
RESET ROLE;
SET ROLE regress_delivery_reader;
SELECT * FROM regress_delivery.matrix();
RESET ROLE;
SET ROLE regress_delivery_nobody;
SELECT * FROM regress_delivery.matrix();
RESET ROLE;
-- everything is described
SELECT p.oid::regprocedure AS undescribed FROM pg_proc p
WHERE p.pronamespace = 'mlint'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind = 'v' AND a.attnum > 0
	AND col_description(c.oid, a.attnum) IS NULL;

SELECT mlint.destination_drop(name) FROM regress_delivery.mine;
SELECT mlint.secret_drop(name) FROM mlint.secrets WHERE name LIKE 'regress/%';
SET client_min_messages = warning;
DROP SCHEMA regress_delivery CASCADE;
DROP SCHEMA regress_hidden CASCADE;
DROP ROLE regress_delivery_admin, regress_delivery_user, regress_delivery_reader, regress_delivery_nobody;
