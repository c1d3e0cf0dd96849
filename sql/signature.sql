-- Signatures: published vectors, both forms, and what a receiver must refuse.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS mlint;
RESET client_min_messages;
\pset format unaligned
\pset tuples_only on
\set payload '{"test": 2432232314}'
\set secret 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'

-- the test vector of the Standard Webhooks libraries
SELECT mlint.webhook_sign(:'payload', :'secret', 'msg_p5jXN8AQM9LWM0D4loKWxJek',
	to_timestamp(1614265330), 'standard')
	= '{"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330",
		"webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="}' AS vector;
-- RFC 4231, 4.2 and 4.3
SELECT mlint.webhook_sign('Hi There', repeat(E'\x0b', 20), 'id', now(), 'hub')->>'X-Webhook-Signature'
	= 'sha256=b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7';
SELECT mlint.webhook_sign('what do ya want for nothing?', 'Jefe', 'id', now(), 'hub')->>'X-Webhook-Signature'
	= 'sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843';
-- computed by Python's hmac: a key longer than a block; a plain secret; UTF-8
SELECT mlint.webhook_sign('Test Using Larger Than Block-Size Key - Hash Key First',
	repeat('k', 131), 'id', now(), 'hub');
SELECT jsonb_pretty(mlint.webhook_sign('grüße 日本', 'plain secret', 'msg_1', to_timestamp(1700000000)));
-- the hub's key is the whole text of the secret, prefix included
SELECT mlint.webhook_sign(:'payload', :'secret', 'id', signature => 'hub');
-- fractions of a second are cut off
SELECT mlint.webhook_sign('x', 's', 'id', '1970-01-01 00:00:01.999999+00')->>'webhook-timestamp';
SELECT mlint.webhook_sign('', 's', 'id', to_timestamp(0), 'standard')->>'webhook-timestamp';

-- what cannot be signed
SELECT mlint.webhook_sign('x', '', 'id');
SELECT mlint.webhook_sign('x', 'whsec_', 'id');
SELECT mlint.webhook_sign('x', 'whsec_not base64!', 'id');
SELECT mlint.webhook_sign('x', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS', 'id');
SELECT mlint.webhook_sign('x', 's', '');
SELECT mlint.webhook_sign('x', 's', 'a.b');
SELECT mlint.webhook_sign('x', 's', E'a\nb');
SELECT mlint.webhook_sign('x', 's', repeat('i', 256));
SELECT mlint.webhook_sign('x', 's', 'id', 'infinity');
SELECT mlint.webhook_sign('x', 's', 'id', '1969-12-31 23:59:59+00');
SELECT mlint.webhook_sign('x', 's', 'id', now(), 'none');
SELECT mlint.webhook_sign(NULL, 's', 'id') IS NULL;

-- what was signed a moment ago verifies, in each form and with each secret
SELECT form, secret, mlint.webhook_verify(:'payload',
		mlint.webhook_sign(:'payload', secret, 'msg_1', clock_timestamp(), form), secret)
	FROM unnest('{both,standard,hub}'::text[]) form, unnest(ARRAY[:'secret', 'plain']) secret
	ORDER BY 1, 2;

CREATE TEMP TABLE received (what text, body text DEFAULT '{"a": 1}', headers jsonb,
	secret text DEFAULT 'plain', tolerance interval DEFAULT '5 minutes', signature text DEFAULT 'both');
CREATE TEMP TABLE signed AS
	SELECT mlint.webhook_sign('{"a": 1}', 'plain', 'msg_1', clock_timestamp()) AS h;
CREATE FUNCTION pg_temp.signed_at(age interval) RETURNS jsonb LANGUAGE sql AS
	$$ SELECT mlint.webhook_sign('{"a": 1}', 'plain', 'msg_1', clock_timestamp() - age, 'standard') $$;

-- genuine
INSERT INTO received (what, headers, signature) SELECT * FROM (
	SELECT 'as it was sent', h, 'both' FROM signed UNION ALL
	SELECT 'names in another case', (SELECT jsonb_object_agg(upper(key), value) FROM jsonb_each(h)), 'both' FROM signed UNION ALL
	SELECT 'other headers beside', h || '{"content-type": "text/plain", "x": ["y"], "n": 1}', 'both' FROM signed UNION ALL
	SELECT 'second of several', jsonb_set(h, '{webhook-signature}', to_jsonb('v1,AAAA v1a,xyz ' || (h->>'webhook-signature'))), 'both' FROM signed UNION ALL
	SELECT 'first of several', jsonb_set(h, '{webhook-signature}', to_jsonb((h->>'webhook-signature') || ' v2,whatever  v1,')), 'both' FROM signed UNION ALL
	SELECT 'standard, asked for', h, 'standard' FROM signed UNION ALL
	SELECT 'hub, asked for', h, 'hub' FROM signed UNION ALL
	SELECT 'wrong hub beside a good standard', h || '{"X-Webhook-Signature": "sha256=00"}', 'both' FROM signed UNION ALL
	SELECT 'hub alone', jsonb_build_object('x-webhook-signature', h->'X-Webhook-Signature'), 'both' FROM signed) t;
INSERT INTO received (what, headers, tolerance) VALUES
	('4 minutes old', pg_temp.signed_at('4 min'), '5 min'),
	('4 minutes early', pg_temp.signed_at('-4 min'), '5 min'),
	('a day old, two allowed', pg_temp.signed_at('1 day'), '2 days'),
	('a day old, a month allowed', pg_temp.signed_at('1 day'), '1 month');
SELECT what, mlint.webhook_verify(body, headers, secret, tolerance, signature) FROM received;
TRUNCATE received;

-- forged, old, malformed
INSERT INTO received (what, body, secret, headers) SELECT * FROM (
	SELECT 'another body', '{"a": 2}', 'plain', h FROM signed UNION ALL
	SELECT 'body with a space more', '{"a":  1}', 'plain', h FROM signed UNION ALL
	SELECT 'empty body', '', 'plain', h FROM signed UNION ALL
	SELECT 'another secret', '{"a": 1}', 'Plain', h FROM signed UNION ALL
	SELECT 'another secret, hub', '{"a": 1}', 'Plain', h - '{webhook-id,webhook-timestamp,webhook-signature}'::text[] FROM signed) t;
INSERT INTO received (what, headers) SELECT * FROM (
	SELECT 'another id', jsonb_set(h, '{webhook-id}', '"msg_2"') FROM signed UNION ALL
	SELECT 'another time', jsonb_set(h, '{webhook-timestamp}', to_jsonb(((h->>'webhook-timestamp')::bigint - 1)::text)) FROM signed UNION ALL
	SELECT 'time with a zero in front', jsonb_set(h, '{webhook-timestamp}', to_jsonb('0' || (h->>'webhook-timestamp'))) FROM signed UNION ALL
	SELECT 'time with a space', jsonb_set(h, '{webhook-timestamp}', to_jsonb(' ' || (h->>'webhook-timestamp'))) FROM signed UNION ALL
	SELECT 'time as a number', jsonb_set(h, '{webhook-timestamp}', to_jsonb((h->>'webhook-timestamp')::bigint)) FROM signed UNION ALL
	SELECT 'time of too many digits', jsonb_set(h, '{webhook-timestamp}', '"99999999999999999999"') FROM signed UNION ALL
	SELECT 'negative time', jsonb_set(h, '{webhook-timestamp}', '"-1"') FROM signed UNION ALL
	SELECT 'empty time', jsonb_set(h, '{webhook-timestamp}', '""') FROM signed UNION ALL
	SELECT 'no time', h - 'webhook-timestamp' FROM signed UNION ALL
	SELECT 'no id', h - 'webhook-id' FROM signed UNION ALL
	SELECT 'no signature, hub cannot rescue', h - 'webhook-signature' FROM signed UNION ALL
	SELECT 'wrong standard, hub cannot rescue', jsonb_set(h, '{webhook-signature}', '"v1,AAAA"') FROM signed UNION ALL
	SELECT 'null standard, hub cannot rescue', jsonb_set(h, '{webhook-signature}', 'null') FROM signed UNION ALL
	SELECT 'another version', jsonb_set(h, '{webhook-signature}', to_jsonb(replace(h->>'webhook-signature', 'v1,', 'v2,'))) FROM signed UNION ALL
	SELECT 'without version', jsonb_set(h, '{webhook-signature}', to_jsonb(replace(h->>'webhook-signature', 'v1,', ''))) FROM signed UNION ALL
	SELECT 'truncated', jsonb_set(h, '{webhook-signature}', to_jsonb(left(h->>'webhook-signature', -1))) FROM signed UNION ALL
	SELECT 'several wrong', jsonb_set(h, '{webhook-signature}', to_jsonb(repeat('v1,AAAA ', 1000))) FROM signed UNION ALL
	SELECT 'empty signature', jsonb_set(h, '{webhook-signature}', '""') FROM signed UNION ALL
	SELECT 'the same header twice', h || jsonb_build_object('Webhook-Id', h->'webhook-id') FROM signed UNION ALL
	SELECT 'signature in a list', jsonb_set(h, '{webhook-signature}', jsonb_build_array(h->'webhook-signature')) FROM signed UNION ALL
	SELECT 'headers in a list', jsonb_build_array(h) FROM signed UNION ALL
	SELECT 'headers a string', '"x"' UNION ALL
	SELECT 'headers null', 'null' UNION ALL
	SELECT 'no headers', '{}' UNION ALL
	SELECT 'headers SQL null', NULL UNION ALL
	SELECT 'hub without its prefix', jsonb_build_object('X-Webhook-Signature', replace(h->>'X-Webhook-Signature', 'sha256=', '')) FROM signed UNION ALL
	SELECT 'hub truncated', jsonb_build_object('X-Webhook-Signature', left(h->>'X-Webhook-Signature', -2)) FROM signed UNION ALL
	SELECT 'hub empty', '{"X-Webhook-Signature": ""}') t;
INSERT INTO received (what, headers, tolerance) VALUES
	('6 minutes old', pg_temp.signed_at('6 min'), '5 min'),
	('6 minutes early', pg_temp.signed_at('-6 min'), '5 min'),
	('a second old, none allowed', pg_temp.signed_at('1.5 s'), '0'),
	('tolerance null', pg_temp.signed_at('0'), NULL);
INSERT INTO received (what, headers, body, secret) VALUES
	('body null', pg_temp.signed_at('0'), NULL, 'plain'),
	('secret null', pg_temp.signed_at('0'), '{"a": 1}', NULL);
INSERT INTO received (what, headers, signature)
	SELECT 'standard taken away, but asked for',
		jsonb_build_object('X-Webhook-Signature', h->'X-Webhook-Signature'), 'standard' FROM signed UNION ALL
	SELECT 'hub asked for, standard alone', h - 'X-Webhook-Signature', 'hub' FROM signed;
SELECT what, mlint.webhook_verify(body, headers, secret, tolerance, signature) FROM received;
SELECT count(*) FROM received
	WHERE mlint.webhook_verify(body, headers, secret, tolerance, signature) IS DISTINCT FROM false;

-- a full stop in the id would let one message be read as another: signed is
-- "a.TIME." and the body "TIME.5", the same bytes as "a.TIME", "TIME" and "5"
SELECT mlint.webhook_verify('5', jsonb_build_object('webhook-id', 'a.' || (s->>'webhook-timestamp'),
		'webhook-timestamp', s->>'webhook-timestamp',
		'webhook-signature', s->>'webhook-signature'), 'plain')
	FROM mlint.webhook_sign(floor(extract(epoch FROM now())) || '.5', 'plain', 'a', now(), 'standard') s;

-- a secret that cannot be one is an error, not an answer
SELECT mlint.webhook_verify('x', '{}', '');
SELECT mlint.webhook_verify('x', '{}', 'whsec_%%%%');
SELECT mlint.webhook_verify('x', '{}', 's', '-1 s');
SELECT mlint.webhook_verify('x', '{}', 's', '1 s', 'other');

-- who may
CREATE ROLE regress_signature_user IN ROLE mlint_user;
CREATE ROLE regress_signature_other;
SET ROLE regress_signature_user;
SELECT mlint.webhook_verify('x', mlint.webhook_sign('x', 's', 'id'), 's');
SET ROLE regress_signature_other;
SELECT mlint.webhook_verify('x', '{}', 's');
RESET ROLE;
DROP ROLE regress_signature_user, regress_signature_other;
SELECT p.oid::regprocedure FROM pg_proc p
	WHERE p.pronamespace = 'mlint'::regnamespace AND p.proname LIKE 'webhook\_%'
		AND (obj_description(p.oid, 'pg_proc') IS NULL OR p.proacl IS NULL
			OR has_function_privilege('public', p.oid, 'EXECUTE'));
