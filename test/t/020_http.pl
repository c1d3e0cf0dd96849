# mlint.http() against a receiver that misbehaves in every way it can, and the
# network policy against every way to write an address that it must refuse.

use strict;
use warnings;

use FindBin;
use MlintTest ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $peers = "$FindBin::RealBin/../peers";
my $dir = PostgreSQL::Test::Utils::tempdir;

# A C library that hangs on one name, and lies about others.
my $shim = "$dir/resolver.so";
system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-O', '-o', $shim,
	"$FindBin::RealBin/resolver_shim.c", '-ldl');

my $receiver = MlintTest::Receiver->start;
my $port = $receiver->port;
my $record = $receiver->{record};
my $nginx_http = PostgreSQL::Test::Cluster::get_free_port();
my $nginx_https = PostgreSQL::Test::Cluster::get_free_port();
system_or_bail('sh', "$peers/nginx.sh", 'start', "$dir/nginx", $nginx_http,
	$nginx_https);

END
{
	my $status = $?;
	system('sh', "$peers/nginx.sh", 'stop', "$dir/nginx") if $dir;
	$? = $status;
}

my $node = PostgreSQL::Test::Cluster->new('http');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'mlint'");
{
	local $ENV{LD_PRELOAD} = $shim;
	$node->start;
}
$node->safe_psql('postgres', 'CREATE EXTENSION mlint');

my $base = "http://127.0.0.1:$port";

# The SQLSTATE of a request ("00000": none), the error's text, and seconds.
sub request
{
	my ($arguments, %options) = @_;
	my $settings = $options{settings} // '';
	my $began = time;
	my ($rc, $out, $err) = $node->psql(
		'postgres', qq(
		\\set VERBOSITY verbose
		$settings
		SELECT status, body FROM mlint.http($arguments)));
	my $took = time - $began;
	my ($state) = $err =~ /ERROR:  (\w{5}):/;
	return ($state // '00000', $err, $took, $out);
}

sub fails
{
	my ($arguments, $state, $text, $name) = @_;
	my ($got, $err, $took) = request($arguments);
	is($got, $state, "$name: SQLSTATE") or diag $err;
	like($err, $text, "$name: text");
	return $took;
}

sub recorded
{
	return scalar grep { index($_, $_[0]) >= 0 } split /\n/,
	  slurp_file($record);
}

# What is answered is a result, whatever the status.
foreach my $status (200, 204, 302, 401, 404, 429, 500, 503)
{
	is( $node->safe_psql(
			'postgres',
			"SELECT status FROM mlint.http('GET', '$base/status/$status')"),
		$status,
		"status $status is a result");
}
is( $node->safe_psql(
		'postgres',
		"SELECT status FROM mlint.http('GET', '$base/status/302?location=/ok')"
	),
	'302',
	'a redirect is not followed');
is(recorded('"path": "/ok"'), 0, '... and its target saw nothing');

is( $node->safe_psql(
		'postgres', qq(
		SELECT r->>'method', r->'headers'->>'x-a', r->>'body',
			r->'headers'->>'content-type', r->'headers'->>'expect',
			r->'headers'->>'user-agent'
		FROM (SELECT body::jsonb AS r FROM mlint.http('PUT', '$base/echo',
			'{"X-A": "b"}', 'é')) x)
	),
	'PUT|b|é|application/json||mlint/1.0',
	'method, headers and body arrive, without Expect');
is( $node->safe_psql(
		'postgres',
		"SELECT status FROM mlint.http('PUT', '$base/status/200?large', body => repeat('x', 3000000))"
	),
	'200',
	'a large body is sent');
like(slurp_file($record), qr/large".*"content-length": "3000000".*"x{3000}/,
	'... and arrives');
is( $node->safe_psql(
		'postgres', "SELECT headers FROM mlint.http('GET', '$base/fields')"),
	'{"x-one": "1, 2", "x-utf8": "café", "x-empty": "", "x-latin": "caf?", "set-cookie": ["a=1", "b=2"], "content-length": "0"}',
	'response headers: lower case, joined, cookies apart');
is( $node->safe_psql('postgres',
		"SELECT body = '' FROM mlint.http('HEAD', '$base/echo')"),
	't', 'HEAD');
{
	local $ENV{http_proxy} = "http://127.0.0.1:1";
	my $proxied = PostgreSQL::Test::Cluster->new('proxied');
	$proxied->init;
	$proxied->append_conf('postgresql.conf',
		"shared_preload_libraries = 'mlint'");
	$proxied->start;
	$proxied->safe_psql('postgres', 'CREATE EXTENSION mlint');
	is( $proxied->safe_psql(
			'postgres', "SELECT status FROM mlint.http('GET', '$base/ok')"),
		'200',
		'proxies of the environment are not used');
	$proxied->stop;
}

# Misbehaviour: each kind has its SQLSTATE, and costs neither time nor memory.
my $took = fails("'GET', '$base/stall', timeout => '300 ms'",
	'ML005', qr/no response within 300 ms/, 'no answer');
cmp_ok($took, '<', 20, '... ends in time');
fails("'GET', '$base/drip', timeout => '5 s'",
	'ML005', qr/not complete within 5000 ms/, 'an answer that drips');
fails("'GET', '$base/reset'", 'ML004', qr/connection broke/, 'a reset');
fails("'GET', '$base/close'", 'ML004', qr/without an answer/, 'a close');
fails("'GET', '$base/half'", 'ML004', qr/in the middle of the response/,
	'half a response');
fails("'GET', '$base/garbage'", 'ML001', qr/not valid HTTP/, 'garbage');
fails("'GET', '$base/headers'", 'ML001', qr/headers exceed/,
	'headers without end');
fails("'GET', '$base/longheader'", 'ML001', qr/not valid HTTP|headers exceed/,
	'a header line without end');
fails("'GET', '$base/continues'", 'ML001', qr/headers exceed/,
	'interim responses without end');
fails("'GET', '$base/bytes'", 'ML008', qr/not valid UTF-8/,
	'a body that is not text');
fails("'GET', '$base/nul'", 'ML008', qr/at byte 2/, 'a body with a NUL');
fails("'GET', 'http://127.0.0.1:1/'", 'ML004', qr/could not connect/,
	'nobody listens');
fails("'GET', 'http://no-such-host.invalid/'",
	'ML004', qr/could not be resolved/, 'a name that does not exist');
fails("'GET', 'https://127.0.0.1:$nginx_http/'",
	'ML004', qr/TLS handshake failed/, 'TLS to a port without it');
fails("'GET', 'https://localhost:$nginx_https/'",
	'ML004', qr/certificate is not trusted/, 'a certificate of an unknown CA');

my ($state, $err, $seconds, $out) = request("'GET', '$base/huge'");
is($state, '00000', '1 GB of body is a result');
is(length($out), length('200|') + 65536, '... of which 64 kB are kept');
like($err, qr/WARNING:  01000: the response's body was cut/, '... and says so');
cmp_ok($seconds, '<', 10, '... the rest is not read');
is( $node->safe_psql('postgres',
		"SELECT length(body) FROM mlint.http('GET', '$base/utf8/65535')"),
	65535,
	'a character cut by the limit is left out');

# Milliseconds that these statements of PL/pgSQL take, as the server sees it:
# starting a psql takes its time.
sub took
{
	my ($statements, $before) = @_;

	return $node->safe_psql('postgres', ($before // '') . <<"EOQ", timeout => $PostgreSQL::Test::Utils::timeout_default);
;
DO \$\$
DECLARE
	began timestamptz := clock_timestamp();
BEGIN
	$statements
	PERFORM set_config('test.took', (extract(epoch FROM clock_timestamp() - began) * 1000)::text, false);
END \$\$;
SELECT current_setting('test.took');
EOQ
}

# Cancel: the statement's end follows within 100 ms, whatever it waits for.
foreach my $case (
	[ "$base/stall", 'for an answer' ],
	[ "http://hang.test:$port/ok", 'for name resolution' ])
{
	my ($url, $what) = @$case;
	my $most = 500 + 100 * $MlintTest::slower;
	my $elapsed;

	# The best of five: a busy machine adds its own.
	for (1 .. 5)
	{
		my $took = took(<<"EOQ", 'SET statement_timeout = 500');
BEGIN
	PERFORM mlint.http('GET', '$url');
EXCEPTION WHEN query_canceled THEN
	NULL;
END;
EOQ
		$elapsed = $took if !defined $elapsed || $took < $elapsed;
		last if $elapsed < $most;
	}
	cmp_ok($elapsed, '<', $most, "statement_timeout while waiting $what");
	cmp_ok($elapsed, '>', 400, '... not before its time');

	$most = 100 * $MlintTest::slower;
	my $lag;
	for (1 .. 5)
	{
		my $session = $node->background_psql('postgres', on_error_stop => 0);
		my $pid = $session->query_safe('SELECT pg_backend_pid()');
		$session->query_until(qr/sent/,
			"\\echo sent\nSELECT mlint.http('GET', '$url');\n");
		$node->poll_query_until('postgres',
			"SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid"
		) or die 'the request does not wait';
		my $took = took(<<"EOQ");
PERFORM pg_cancel_backend($pid);
WHILE EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid AND state = 'active')
	AND clock_timestamp() < began + interval '20 s'
LOOP
	PERFORM pg_stat_clear_snapshot(), pg_sleep(0.001);
END LOOP;
EOQ
		$session->quit;
		$lag = $took if !defined $lag || $took < $lag;
		last if $lag < $most;
	}
	cmp_ok($lag, '<', $most, "pg_cancel_backend while waiting $what");
}

# A name that does not resolve in time; the process can end all the same.
$took = fails("'GET', 'http://hang.test:$port/ok', timeout => '300 ms'",
	'ML005', qr/not resolved within 300 ms/, 'name resolution that hangs');
cmp_ok($took, '<', 20, '... neither blocks the request nor the exit');

# Addresses that are refused whatever the settings, however they are written.
my @refused = (
	'169.254.169.254', '2852039166', '0251.0376.0251.0376', '0xa9fea9fe',
	'0xa9.0xfe.43518', '169.254.1.1', '100.100.100.200', '192.0.0.192',
	'168.63.129.16', '0.0.0.0', '0', '0.1.2.3', '224.0.0.1', '239.1.2.3',
	'240.0.0.1', '255.255.255.255',
	'[::ffff:169.254.169.254]', '[::ffff:a9fe:a9fe]', '[::169.254.169.254]',
	'[64:ff9b::169.254.169.254]', '[64:ff9b:1::169.254.169.254]',
	'[64:ff9b:1:2:3::a9fe:a9fe]', '[fd00:ec2::23]', '[2002:a9fe:a9fe::1]',
	'[::ffff:0:169.254.169.254]', '[::ffff:0.0.0.0]', '[::]', '[fe80::1]',
	'[febf::1]', '[ff02::1]', '[fd00:ec2::254]',
	'metadata.test', 'metadata6.test', 'METADATA.test.');
foreach my $host (@refused)
{
	fails("'GET', 'http://$host/'", 'ML009', qr/always refused/,
		"$host is refused");
}
# An address that the policy lets pass fails otherwise, so this can tell.
foreach my $host ('127.0.0.1', '2130706433', '0177.0.0.1', '0x7f000001',
	'127.1', '[::1]', '[::ffff:127.0.0.1]', 'localhost')
{
	fails("'GET', 'http://$host:1/'", 'ML004', qr/could not connect/,
		"$host is allowed by default");
}

# A name that resolves differently the second time gains nothing.
is((request("'GET', 'http://rebind.test:$port/ok'"))[0],
	'00000', 'the first resolution is allowed');
$node->psql(
	'postgres', qq(
	SELECT status FROM mlint.http('GET', 'http://rebind.test:$port/ok');
	SELECT status FROM mlint.http('GET', 'http://rebind.test:$port/ok')),
	stdout => \my $rebound, stderr => \my $rebind_error);
is($rebound, '200', 'DNS rebinding: the first request passes');
like($rebind_error, qr/always refused/, '... the second is refused');

# mlint.http_deny and mlint.http_allow, from the next request on.
sub set_policy
{
	my ($deny, $allow) = @_;
	$node->safe_psql(
		'postgres', qq(
		ALTER SYSTEM SET mlint.http_deny = '$deny';
		ALTER SYSTEM SET mlint.http_allow = '$allow';
		SELECT pg_reload_conf()));
	$node->poll_query_until('postgres',
		"SELECT current_setting('mlint.http_deny') = '$deny' AND current_setting('mlint.http_allow') = '$allow'"
	) or die "the settings do not change";
	return;
}

my @policies = (
	# deny, allow, host, what must happen
	[ '127.0.0.0/8', '', '127.0.0.1', 'http_deny \(127.0.0.0/8\)' ],
	[ '127.0.0.0/8', '', '2130706433', 'http_deny' ],
	[ '127.0.0.0/8', '', '[::ffff:127.0.0.1]', 'http_deny' ],
	[ '127.0.0.0/8', '', 'pinned.test', 'http_deny' ],
	[ '10.0.0.0/8, 127.0.0.2', '', '127.0.0.1', '' ],
	[ '*.test', '', 'PINNED.test.', 'http_deny \(\*\.test\)' ],
	[ '*.test', '', '127.0.0.1', '' ],
	[ '*', '', '127.0.0.1', 'http_deny \(\*\)' ],
	[ '*', '', '[::1]', 'http_deny \(\*\)' ],
	[ '*', '*', 'pinned.test', 'http_deny \(\*\)' ],
	[ '', '10.0.0.0/8', '127.0.0.1', 'not among mlint.http_allow' ],
	[ '', '127.0.0.1', '127.0.0.1', '' ],
	[ '', '127.0.0.1', '[::ffff:127.0.0.1]', '' ],
	[ '', 'pinned.test', 'pinned.test', '' ],
	[ '', 'pinned.test', '127.0.0.1', 'not among' ],
	[ '127.0.0.1', 'pinned.test', 'pinned.test', 'http_deny' ],
	[ '', '*', 'metadata.test', 'always refused' ],
	[ '', '0.0.0.0/0', '169.254.169.254', 'always refused' ]);
foreach my $policy (@policies)
{
	my ($deny, $allow, $host, $refusal) = @$policy;
	my $name = "deny '$deny', allow '$allow', $host";
	set_policy($deny, $allow);
	if ($refusal eq '')
	{
		# The receiver listens on IPv4 only.
		is((request("'GET', 'http://$host:$port/ok'"))[0],
			'00000', "$name: passes");
	}
	else
	{
		fails("'GET', 'http://$host:$port/ok'", 'ML009', qr/$refusal/, $name);
	}
}
set_policy('', '');

# Only mlint_admin may call it.
$node->safe_psql('postgres',
	'CREATE ROLE stranger; CREATE ROLE chief IN ROLE mlint_admin');
is((request("'GET', '$base/ok'", settings => 'SET ROLE chief;'))[0],
	'00000', 'mlint_admin may');
is((request("'GET', '$base/ok'", settings => 'SET ROLE stranger;'))[0],
	'42501', 'others may not');

$node->stop;
done_testing();
