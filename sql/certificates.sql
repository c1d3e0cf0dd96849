-- Certificates: what is refused at the call, and what follows from what is not.
-- What needs an authority, or openssl, is in test/t.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
CREATE ROLE regress_certificates_admin IN ROLE mlint_admin;
CREATE ROLE regress_certificates_user IN ROLE mlint_user;
CREATE ROLE regress_certificates_reader IN ROLE mlint_reader;
-- Accounts whose authority is never asked: nothing is due for them.
INSERT INTO mlint.acme_account (name, directory_url, email, key_secret, status,
	next_at, max_orders, max_orders_per, created_by)
SELECT n, 'https://ca.test/directory', 'x@example.com', 'acme/' || n, s, NULL,
	10, '1 hour', (SELECT oid FROM pg_roles WHERE rolname = current_user)
FROM (VALUES ('ca', 'pending'), ('closed', 'deactivated')) a (n, s);

-- What a set of names becomes in a certificate, or why it does not.
CREATE FUNCTION names(VARIADIC names text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	PERFORM mlint.certificate_issue(names, 'ca', name => 'names');
	SELECT c.domains::text INTO result FROM mlint.certificates c WHERE c.name = 'names';
	RAISE SQLSTATE 'XX999';
EXCEPTION
	WHEN SQLSTATE 'XX999' THEN RETURN result;
	WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;

-- ---- names ----
SELECT names('example.com', 'WWW.Example.COM', 'a.example.com.');
SELECT names('localhost', 'xn--bcher-kva.example', '3com.com', 'a--b.example');
SELECT names('bücher.example', 'faß.de', 'ÄÖ.example', '例え。テスト');
SELECT names('192.0.2.1', '2001:DB8:0:0:0:0:0:1', '::ffff:192.0.2.1');
SELECT names('exa mple.com');
SELECT names(' example.com');
SELECT names(E'example.com\n');
SELECT names(E'exam\u00a0ple.com');
SELECT names('');
SELECT names('.');
SELECT names('a..example.com');
SELECT names('.example.com');
SELECT names('example.com..');
SELECT names('-a.example.com');
SELECT names('a-.example.com');
SELECT names('a_b.example.com');
SELECT names('https://example.com/');
SELECT names('example.com:443');
SELECT names('user@example.com');
SELECT names('xn--.example');
SELECT names('xn--a-b-c-ä.example');
SELECT names('☃.example');
SELECT names('example.123');
SELECT names('1.2.3');
SELECT names('1.2.3.256');
SELECT names('192.0.2.1.');
SELECT names('[::1]');
SELECT names('fe80::1%eth0');
SELECT names(repeat('a', 64) || '.example');
SELECT names(repeat('a', 63) || '.example') = format('{%s.example}', repeat('a', 63)) AS fits;
SELECT names(repeat('ü', 60) || '.example');
SELECT names(repeat('abcdefghi.', 25) || 'com') LIKE '{abc%com}' AS fits;
SELECT names(repeat('abcdefghi.', 25) || 'come');
SELECT names(repeat('a.', 2000) || 'com');
SELECT names('a.example', 'b.example', 'A.EXAMPLE.');
SELECT names('bücher.example', 'xn--bcher-kva.example');
SELECT names('2001:db8::1', '2001:DB8:0::1');
SELECT names(NULL);
SELECT names(VARIADIC '{}');
SELECT names(VARIADIC '{{a.example},{b.example}}');
SELECT names(VARIADIC array_agg('n' || i || '.example')) LIKE '{n1.example,%,n100.example}' AS fits
FROM generate_series(1, 100) i;
SELECT names(VARIADIC array_agg('n' || i || '.example')) FROM generate_series(1, 101) i;
SELECT names('*.example.com');
SELECT names('*');
SELECT names('*.');
SELECT names('*.com');
SELECT names('a.*.example.com');
SELECT names('*.*.example.com');
SELECT names('a*.example.com');
SELECT names('*.192.0.2.1');

-- ---- mlint.certificate_issue() ----
SELECT mlint.certificate_issue(NULL, 'ca');
SELECT mlint.certificate_issue('{a.example}', NULL);
SELECT mlint.certificate_issue('{a.example}', 'nobody');
SELECT mlint.certificate_issue('{a.example}', 'closed');
SELECT mlint.certificate_issue('{a.example}', 'ca', 'tls-alpn-01');
SELECT mlint.certificate_issue('{*.example.com}', 'ca');
SELECT mlint.certificate_issue('{192.0.2.1}', 'ca', 'dns-01', 'somewhere');
SELECT mlint.certificate_issue('{*.example.com}', 'ca', 'dns-01');
SELECT mlint.certificate_issue('{*.example.com}', 'ca', 'dns-01', 'nowhere');
SELECT mlint.certificate_issue('{a.example}', 'ca', solver => 'nothing');
SELECT mlint.certificate_issue('{a.example}', 'ca', key_type => 'dsa');
SELECT mlint.certificate_issue('{a.example}', 'ca', auto_renew => NULL);
SELECT mlint.certificate_issue('{a.example}', 'ca', renew_before => '-1 day');
SELECT mlint.certificate_issue('{a.example}', 'ca', name => 'a b');
SELECT mlint.certificate_issue('{a.example}', 'ca', name => repeat('a', 201));
SELECT mlint.secret_put('certificates/taken', 'mine');
SELECT mlint.certificate_issue('{a.example}', 'ca', name => 'taken');
SELECT mlint.certificate_issue('{a.example,b.example}', 'ca', renew_before => '10 days') AS a \gset
SELECT mlint.certificate_issue('{A.example}', 'ca');
SELECT mlint.certificate_issue('{A.example}', 'ca', name => 'another', auto_renew => false, reuse_key => true) AS another \gset
SELECT name, domains, state, issuer, days_left, renew_at <= now() AS due,
	last_error, attempts, account, challenge, solver, key_type, auto_renew,
	reuse_key, renew_before, key_secret, key_version, created_by = current_user AS mine
FROM mlint.certificates ORDER BY name;
SELECT name, state, chain, serial, domains, key_secret, key_version
FROM mlint.certificate_get(:'a');
SELECT * FROM mlint.certificate_get('00000000-0000-0000-0000-000000000000');

-- ---- what cannot be done before there is one ----
SELECT mlint.certificate_wait(:'a', '1 ms');
BEGIN;
SELECT mlint.certificate_issue('{c.example}', 'ca') AS c \gset
SELECT mlint.certificate_wait(:'c');
ROLLBACK;
BEGIN;
SELECT mlint.certificate_renew(:'a');
SELECT mlint.certificate_wait(:'a');
ROLLBACK;
SELECT mlint.certificate_wait(NULL);
SELECT mlint.certificate_wait('00000000-0000-0000-0000-000000000000');
SELECT mlint.certificate_revoke(:'a');
SELECT mlint.certificate_revoke(:'a', 'boredom');
SELECT mlint.certificate_revoke(:'a', NULL);
SELECT mlint.certificate_renew('00000000-0000-0000-0000-000000000000');
SELECT mlint.certificate_drop('00000000-0000-0000-0000-000000000000');
SELECT mlint.certificate_drop(:'another');
SELECT name FROM mlint.certificates;

-- ---- mlint.certificate_csr() and mlint.certificate_import() ----
SELECT csr LIKE E'-----BEGIN CERTIFICATE REQUEST-----\n%\n-----END CERTIFICATE REQUEST-----\n' AS pem, secret
FROM mlint.certificate_csr('{*.example.org,192.0.2.1}', 'ec384');
SELECT name, type, version, versions, owner = current_user AS mine FROM mlint.secrets
WHERE name LIKE 'certificates/wild%';
SELECT mlint.secret_get('certificates/wildcard.example.org');
SELECT (mlint.certificate_csr('{a.example}')).secret;
SELECT mlint.certificate_issue('{*.example.org}', 'ca', 'http-01');
SELECT mlint.certificate_csr('{a b}');
SELECT mlint.certificate_csr('{d.example}', 'rsa1024');
SELECT mlint.certificate_import(NULL, NULL);
SELECT mlint.certificate_import('', NULL);
SELECT mlint.certificate_import('nonsense', NULL, 'x');
SELECT mlint.certificate_import(E'-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n', NULL, 'x');
SELECT mlint.certificate_import(repeat('a', 262145), NULL, 'x');

-- ---- who may ----
SET ROLE regress_certificates_user;
SELECT mlint.certificate_issue('{a.example}', 'ca');
SELECT * FROM mlint.certificates;
RESET ROLE;
SET ROLE regress_certificates_reader;
SELECT name, state FROM mlint.certificates;
SELECT name, status, certificates FROM mlint.acme_accounts ORDER BY name;
SELECT kind, name, status, why FROM mlint.certificate_health() ORDER BY kind, name;
SELECT name FROM mlint.certificate_get(:'a');
SELECT count(*) FROM mlint.certificate_orders;
SELECT count(*) FROM mlint.certificate_history;
SELECT * FROM mlint.certificate;
SELECT mlint.certificate_renew(:'a');
SELECT mlint.certificate_drop(:'a');
RESET ROLE;
SET ROLE regress_certificates_admin;
SELECT mlint.certificate_renew(:'a');
SELECT mlint.certificate_drop(:'a');
RESET ROLE;
CALL mlint.certificate_expiry_run();
BEGIN;
CALL mlint.certificate_expiry_run();
ROLLBACK;
SELECT name, every, enabled FROM mlint.jobs WHERE name LIKE 'certificate%' ORDER BY name;
SELECT action, object, outcome FROM mlint.audit_log WHERE object_type = 'certificate'
	AND object <> 'names' AND outcome <> 'rolled_back' ORDER BY seq;

-- ---- one certificate that cannot be warned of keeps nothing else from being done ----
-- What comes in directly here is no dump that is restored.
DO $$
DECLARE
	t regclass;
BEGIN
	FOR t IN SELECT tgrelid FROM pg_trigger WHERE tgname = '1 restore' LOOP
		EXECUTE format('ALTER TABLE %s DISABLE TRIGGER "1 restore", DISABLE TRIGGER "1 restored"', t);
	END LOOP;
END
$$;
INSERT INTO mlint.certificate (id, name, domains, auto_renew, state, key_secret, version_id, created_by)
VALUES ('00000000-0000-0000-0000-000000000001', 'large', ARRAY(SELECT md5(n::text) || '.example'
		FROM generate_series(1, 100) n), false, 'ACTIVE', 'none', 1001, 10::oid),
	('00000000-0000-0000-0000-000000000002', 'small', '{a.example}', false, 'ACTIVE', 'none', 1002, 10::oid);
INSERT INTO mlint.certificate_version (id, certificate_id, serial, fingerprint, issuer, subject, names, key_type,
	not_before, not_after, chain, key_version, replaced_at, key_gone)
OVERRIDING SYSTEM VALUE
SELECT c.version_id - old * 10, c.id, 's', 'x', 'i', 's', '{a.example}', 'ec256',
	now() - (80 + old * 900) * '1 day'::interval, now() + (10 - old * 900) * '1 day'::interval, 'c', 1,
	CASE old WHEN 1 THEN now() END, old = 1
FROM mlint.certificate c, generate_series(0, 1) old WHERE c.key_secret = 'none';
SET mlint.event_max_bytes = 2048;
\set VERBOSITY sqlstate
CALL mlint.certificate_expiry_run();
\set VERBOSITY default
SELECT c.name, c.warned_days, count(v.*) AS versions,
	(SELECT count(*) FROM mlint.events e WHERE e.type = 'certificate.expiring' AND e.data ->> 'name' = c.name) AS events
FROM mlint.certificate c JOIN mlint.certificate_version v ON v.certificate_id = c.id
WHERE c.key_secret = 'none' GROUP BY c.id ORDER BY c.name;
RESET mlint.event_max_bytes;
CALL mlint.certificate_expiry_run();
SELECT data ->> 'name' AS name, data -> 'days' AS days, jsonb_array_length(data -> 'domains') AS domains
FROM mlint.events WHERE type = 'certificate.expiring' ORDER BY id;
SELECT name, warned_days FROM mlint.certificate WHERE key_secret = 'none' ORDER BY name;
CALL mlint.certificate_expiry_run();
SELECT count(*) FROM mlint.events WHERE type = 'certificate.expiring';

DROP FUNCTION names(text[]);
DROP ROLE regress_certificates_admin, regress_certificates_user, regress_certificates_reader;
