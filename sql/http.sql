-- mlint.http() refuses bad arguments at the call; the network policy refuses
-- addresses. Nothing here needs a server.
\set VERBOSITY terse
\set SHOW_CONTEXT never

-- The details teach, so some are shown in full.
\set VERBOSITY default
SELECT mlint.http('GET', 'ftp://example.com/');
SELECT mlint.http('GET', 'http://user:pass@example.com/');
SELECT mlint.http('GET', 'http://example.com/', '{"Host": "other"}');
SELECT mlint.http('GET', 'http://example.com/', E'{"X-A": "b\\r\\nX-C: d"}');
SELECT mlint.http('GET', 'http://169.254.169.254/latest/meta-data/');

-- URLs.
CREATE FUNCTION fault(url text, headers jsonb DEFAULT '{}') RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	state text;
	message text;
	detail text;
BEGIN
	PERFORM mlint.http('GET', url, headers, timeout => '10 s');
	RETURN 'sent';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE,
		message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	RETURN pg_catalog.format('%s %s', state,
		CASE detail WHEN '' THEN message ELSE detail END);
END
$$;
SELECT url, fault(url) FROM unnest(ARRAY[
	'', 'example.com', '/path', 'http:', 'http://', 'http:///path',
	'http:/example.com/', 'http://?q', 'http://:80/', 'https://#',
	'file:///etc/passwd', 'gopher://example.com/', 'javascript:alert(1)',
	'http://example.com:0/', 'http://example.com:65536/',
	'http://example.com:port/', 'http://example.com:-1/',
	'http://example.com/a b', E'http://example.com/\r\nHost: x',
	E'http://example.com/\t', 'http://münchen.de/',
	'http://example.com/#fragment', 'http://user@example.com/',
	'http://:pass@example.com/', 'http://example.com\@evil.com/',
	'http://[::1', 'http://[not-ipv6]/', 'http://exa%00mple.com/',
	'http://example.com%0d%0a/', ' http://example.com/']) AS url;
SELECT fault('http://example.com/' || repeat('x', 8192));

-- Headers.
SELECT headers, fault('http://example.com/', headers) FROM unnest(ARRAY[
	'[]', '"x"', 'null', '{"": "x"}', '{"a b": "x"}', '{"a:b": "x"}',
	'{"a\r\nb": "x"}', '{"é": "x"}', '{"x": null}', '{"x": ["y"]}',
	'{"x": {"y": 1}}', '{"x": "a\nb"}', '{"x": "a\u0001"}', '{"x": "a\tb"}',
	'{"x": "\u007f"}', '{"content-length": "0"}',
	'{"Transfer-Encoding": "chunked"}', '{"CONNECTION": "close"}',
	'{"Upgrade": "h2c"}', '{"Expect": "100-continue"}']::jsonb[]) AS headers;

-- Methods, bodies, timeouts, nulls.
SELECT mlint.http('', 'http://example.com/');
SELECT mlint.http('GET /', 'http://example.com/');
SELECT mlint.http(E'GET\r\nX: y', 'http://example.com/');
SELECT mlint.http('CONNECT', 'http://example.com/');
SELECT mlint.http('HEAD', 'http://example.com/', body => 'x');
SELECT mlint.http('GET', 'http://example.com/', timeout => '0');
SELECT mlint.http('GET', 'http://example.com/', timeout => '-1 s');
SELECT mlint.http('GET', 'http://example.com/', timeout => '1 hour 1 ms');
SELECT mlint.http('GET', 'http://example.com/', timeout => '100000000 years');
SELECT mlint.http('GET', 'http://example.com/', timeout => NULL);
SELECT mlint.http(NULL, 'http://example.com/');
SELECT mlint.http('GET', NULL);

-- Addresses.
SELECT url, fault(url) FROM unnest(ARRAY[
	'http://169.254.169.254/', 'http://2852039166/', 'http://0xa9fea9fe/',
	'http://0251.0376.0251.0376/', 'http://[::ffff:169.254.169.254]/',
	'http://[64:ff9b::a9fe:a9fe]/', 'http://[2002:a9fe:a9fe::]/',
	'http://[::a9fe:a9fe]/', 'http://[fe80::1]/', 'http://[fd00:ec2::254]/',
	'http://0.0.0.0/', 'http://[::]/', 'http://255.255.255.255/',
	'http://224.0.0.1/', 'http://240.0.0.1/', 'http://100.100.100.200/',
	'http://192.0.0.192/', 'http://168.63.129.16/']) AS url;

-- The lists are refused when malformed, and stay what they were.
\set VERBOSITY default
ALTER SYSTEM SET mlint.http_deny = '10.0.0.0/33';
ALTER SYSTEM SET mlint.http_deny = '10.0.0.0/';
ALTER SYSTEM SET mlint.http_deny = '10.1.0.0/8';
ALTER SYSTEM SET mlint.http_deny = '10.0.0';
ALTER SYSTEM SET mlint.http_deny = '10.*';
ALTER SYSTEM SET mlint.http_deny = '10.0.0.256';
ALTER SYSTEM SET mlint.http_deny = 'fe80::%eth0';
ALTER SYSTEM SET mlint.http_deny = '2001:db8::/129';
ALTER SYSTEM SET mlint.http_allow = '*.example.com, , 10.0.0.0/8';
ALTER SYSTEM SET mlint.http_allow = 'example.com:443';
ALTER SYSTEM SET mlint.http_allow = 'https://example.com';
ALTER SYSTEM SET mlint.http_allow = 'exa mple.com';
ALTER SYSTEM SET mlint.http_allow = '.example.com';
ALTER SYSTEM SET mlint.http_allow = 'münchen.de';
\set VERBOSITY terse
SHOW mlint.http_deny;
SHOW mlint.http_allow;
SET mlint.http_deny = '10.0.0.0/8';

-- Privileges.
CREATE ROLE http_stranger;
GRANT mlint_user, mlint_reader TO http_stranger;
SET ROLE http_stranger;
SELECT mlint.http('GET', 'http://example.com/');
RESET ROLE;
DROP ROLE http_stranger;
DROP FUNCTION fault;
