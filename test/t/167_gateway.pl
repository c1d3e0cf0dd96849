# The gateway: what it answers and what not, where it listens, how it begins,
# changes and ends with its setting, the server and the standby.
use strict;
use warnings;

use FindBin;
use IO::Select;
use IO::Socket::IP;
use IO::Socket::INET;
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $top = "$FindBin::RealBin/../..";
my $dir = PostgreSQL::Test::Utils::tempdir;
my $probe = "$dir/challenge_probe.so";
chomp(my $include = `pg_config --includedir-server`);
system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-O', "-I$top/src",
	"-I$include", '-o', $probe, "$FindBin::RealBin/challenge_probe.c");

my ($port, $other, $third) =
  map { PostgreSQL::Test::Cluster::get_free_port() } 1 .. 3;
my $node = mlint_node('gateway', allows_streaming => 1,
	conf => "restart_after_crash = on\n");
$node->safe_psql('postgres', <<"EOQ");
CREATE FUNCTION challenge_show(text, text, timestamptz) RETURNS void
	LANGUAGE c AS '$probe';
CREATE FUNCTION challenge_hide(text) RETURNS void LANGUAGE c AS '$probe';
EOQ

my $row = "SELECT pid, kind, database IS NULL, lane IS NULL, state FROM mlint.stat_workers WHERE kind = 'gateway'";
my $path = '/.well-known/acme-challenge';

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub listen_at
{
	sql("ALTER SYSTEM SET mlint.gateway_listen = '$_[0]'");
	sql('SELECT pg_reload_conf()');
	return;
}

sub gateway_pid { return (worker_pids($node, 'mlint gateway'))[0]; }

sub dial
{
	my ($to, $host) = @_;
	return IO::Socket::IP->new(PeerHost => $host // '127.0.0.1',
		PeerPort => $to // $port);
}

# All that comes until the other side closes, or until what has come matches.
sub take
{
	my ($socket, $until, $seconds) = @_;
	my ($got, $end) = ('', time + ($seconds // $MlintTest::deadline));
	my $select = IO::Select->new($socket);

	while (time < $end)
	{
		last if defined $until && $got =~ $until;
		next unless $select->can_read(0.1);
		my $n = sysread $socket, $got, 65536, length $got;
		last unless $n;
	}
	return $got;
}

# Is the connection closed by the other side (in time)?
sub is_closed
{
	my ($socket, $seconds) = @_;
	my $select = IO::Select->new($socket);

	return 0 unless $select->can_read($seconds // $MlintTest::deadline);
	return !sysread $socket, my $rest, 65536;
}

# What is answered to these bytes, on a connection of its own.
sub ask
{
	my ($bytes, %where) = @_;
	my $socket = dial($where{port}, $where{host}) or return '';

	local $SIG{PIPE} = 'IGNORE';
	print $socket $bytes;
	$socket->flush;
	my $answer = take($socket);
	close $socket;
	return $answer;
}

# The same for a whole request: "status body".
sub request
{
	my ($method, $what, $more, %where) = @_;
	my $answer = ask("$method $what HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
		  . ($more // '') . "\r\n", %where);

	return $answer =~ m{\AHTTP/1\.1 (\d+) .*?\r\n\r\n(.*)\z}s ? "$1 $2" : "no answer: $answer";
}

sub get { return request('GET', @_); }
sub is_up { return get('/health', '', port => $_[0] // $port) =~ /^200/; }
sub show { return sql("SELECT challenge_show('$_[0]', '$_[1]', now() + '$_[2]')"); }

#
# The setting.
#
is(sql($row), '', 'there is no gateway by default');
ok(!defined gateway_pid(), '... and no process');
for my $bad (
	[ 'http', 'not a number' ], [ '0', 'not a number' ],
	[ '65536', 'not a number' ], [ '-1', 'not a number' ],
	[ 'localhost:80', 'names are not looked up' ], [ '1.2.3:80', 'not an IPv4' ],
	[ '127.0.0.1', 'not a number' ], [ '127.0.0.1:', 'not a number' ],
	[ '::1:80', 'in brackets' ], [ '[::1]', 'not a number|in brackets' ],
	[ '[::g]:80', 'not an IPv6' ], [ '8080,', 'empty' ], [ ',', 'empty' ],
	[ '8080 8081', 'not a number' ], [ '80,127.0.0.1:80', 'twice' ],
	[ '1,2,3,4,5,6,7,8,9', 'more addresses' ], [ 'x' x 200, 'longer' ])
{
	my ($rc, $out, $err) = $node->psql('postgres',
		"ALTER SYSTEM SET mlint.gateway_listen = '$bad->[0]'");
	isnt($rc, 0, "\"" . substr($bad->[0], 0, 20) . "\" is no place to listen");
	like($err, qr/DETAIL: .*(?:$bad->[1]).*HINT: .*8080/s, '... and it is said why');
}

#
# From the setting to an answer, with nothing restarted.
#
listen_at($port);
wait_for('the gateway comes up', sub { is_up() });
like(sql($row), qr/^\d+\|gateway\|t\|t\|running$/, 'it is in mlint.stat_workers');
my $pid = gateway_pid();
is( sql("SELECT datname IS NULL, state, query FROM pg_stat_activity WHERE pid = $pid"),
	"t|idle|listening at 127.0.0.1:$port",
	'pg_stat_activity says where it listens');
SKIP:
{
	my ($own) = grep { !/^127\./ } split ' ', `hostname -I 2>/dev/null` || '';
	skip 'this machine has no other address', 1 unless $own && $own =~ /^[\d.]+$/;
	is(dial($port, $own), undef, 'a port alone is on loopback only');
}

#
# What is answered.
#
my $health = ask("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
like($health, qr{\AHTTP/1\.1 200 OK\r\n}, '/health is answered');
like($health, qr{\r\nContent-Type: application/json\r\n}, '... as JSON');
like($health, qr{\r\n\r\n\{"status":"ok"\}\n\z}, '... ok');
unlike($health, qr{^(?:Server|X-Powered-By):}mi, '... without a word on what runs here');
unlike($health, qr/mlint|postgres|microhttpd/i, '... at all');

my $token = 'evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA';
my $value = "$token.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI";
is(get("$path/$token"), "404 not found\n", 'a token that nobody shows is not found');
show($token, $value, '1 hour');
is(get("$path/$token"), "200 $value", 'one that is shown is answered at once');
my $challenge = ask("GET $path/$token HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
like($challenge, qr{\r\nContent-Type: application/octet-stream\r\n}, '... as bytes (RFC 8555, 8.3)');
like($challenge, qr{\r\nContent-Length: 87\r\n}, '... of a known length');
my $head = ask("HEAD $path/$token HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
like($head, qr{\AHTTP/1\.1 200 OK\r\n.*Content-Length: 87\r\n\r\n\z}s, 'HEAD has the header alone');
like(ask("GET $path/$token HTTP/1.0\r\n\r\n"), qr/ 200 .*\Q$value\E\z/s, 'HTTP/1.0 is answered, and closed');
show($token, "$token.other", '1 hour');
is(get("$path/$token"), "200 $token.other", 'showing again replaces');
sql("SELECT challenge_hide('$token')");
is(get("$path/$token"), "404 not found\n", 'what is hidden is gone');
sql("SELECT challenge_hide('$token')");
show($token, $value, '-1 second');
is(get("$path/$token"), "404 not found\n", 'what is over is not answered');
show($token, $value, '1 hour');

# The table is full, until something is over.
sql("SELECT challenge_show('t' || n, 'v' || n, now() + '1 hour') FROM generate_series(1, 4095) n");
my ($rc, $out, $err) = $node->psql('postgres',
	"SELECT challenge_show('onemore', 'v', now() + '1 hour')");
like($err, qr/already shows 4096.*HINT/s, 'a full table is an error with a hint');
is(get("$path/t4095"), '200 v4095', '... and answers what it has');
show('t7', 'v7', '-1 second');
show('onemore', 'v', '1 hour');
is(get("$path/onemore"), '200 v', 'the place of one that is over is taken');
is(get("$path/t7"), "404 not found\n", '... which is gone');
sql("SELECT challenge_hide('t' || n) FROM generate_series(1, 4095) n");
is(get("$path/t4000"), "404 not found\n", 'all are gone');
is(get("$path/$token"), "200 $value", 'but the one that was not hidden');
for my $bad ('a/b', 'a b', '', 'a=', 'x' x 129)
{
	($rc, $out, $err) = $node->psql('postgres',
		"SELECT challenge_show('$bad', 'v', now() + '1 hour')");
	isnt($rc, 0, "\"" . substr($bad, 0, 5) . "\" is no token");
}

#
# What is not.
#
for my $what ('/', '/healthz', '/health/', '/HEALTH', '//health', $path, "$path/",
	"/.well-known/acme-challenge/../acme-challenge/$token",
	"$path/../../health", "$path/%2e%2e/%2e%2e/etc/passwd",
	"$path/..%2f..%2fetc%2fpasswd", "$path//$token", "$path/./$token",
	"$path/%65" . substr($token, 1), "$path/$token/", "$path/$token%00",
	"$path/$token%20", "/.well-known%2facme-challenge/$token", "/%68ealth",
	"$path/" . substr($token, 0, 42), "$path/${token}A", "$path/" . lc $token,
	"/.well-known/$token", '*', '/metrics', '/postgresql.conf', '/?q=/health',
	"$path/*", "$path/%")
{
	is(get($what), "404 not found\n", "$what is not found");
}
is(get("$path/$token?x=1"), "200 $value", 'a query is of no matter');

for my $method (qw(POST PUT DELETE OPTIONS TRACE PATCH CONNECT PROPFIND get))
{
	my $answer = ask("$method /health HTTP/1.1\r\nHost: x\r\n\r\n");
	like($answer, qr{\AHTTP/1\.1 405 .*\r\nAllow: GET, HEAD\r\n}s, "$method is refused");
	like($answer, qr{\r\nConnection: close\r\n}s, '... and closed');
}

# Bodies, also those that smuggle a request.
my $smuggled = "GET $path/$token HTTP/1.1\r\nHost: x\r\n\r\n";
my $length = length $smuggled;
for my $body (
	"Content-Length: $length\r\n\r\n$smuggled",
	"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n$smuggled",
	"Content-Length: 0\r\nContent-Length: $length\r\n\r\n$smuggled",
	"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n$smuggled",
	"Transfer-Encoding: identity\r\n\r\n$smuggled",
	"Content-Length: 18446744073709551615\r\n\r\n$smuggled",
	"Content-Length: 99999999999999999999999\r\n\r\n$smuggled",
	"Content-Length: -1\r\n\r\n$smuggled",
	"Content-Length: +0\r\n\r\n$smuggled",
	"Content-Length: $length\r\nExpect: 100-continue\r\n\r\n")
{
	my $answer = ask("GET /health HTTP/1.1\r\nHost: x\r\n$body");
	my ($first) = split /\r\n\r\n/, $body;
	like($answer, qr{\AHTTP/1\.1 (?:400|413|501) }, "a body is refused: " . $first =~ s/\r\n/, /gr);
	unlike($answer, qr{\Q$value\E|HTTP/1\.1 [23]}, '... and nothing after it is read');
}
is(get('/health', "Content-Length: 0\r\n"), "200 {\"status\":\"ok\"}\n", 'no body is none');
my $flood = dial();
{
	local $SIG{PIPE} = 'IGNORE';
	print $flood "POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n";
	my ($sent, $end) = (0, time + 20);
	while ($sent < 64 << 20 && time < $end)
	{
		my $n = syswrite $flood, 'x' x 65536;
		last unless defined $n;
		$sent += $n;
	}
	cmp_ok($sent, '<', 64 << 20, 'a body of gigabytes is not taken');
}
close $flood;

# Sizes.
like(get('/' . 'a' x 1023), qr/^404/, 'a path of a kilobyte is looked at');
like(get('/' . 'a' x 1024), qr/^414/, 'one byte more is too long');
like(get('/' . 'a' x 4000), qr/^414/, 'so are 4000');
for my $many (
	'GET /' . 'a' x 100_000 . " HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /health HTTP/1.1\r\nHost: x\r\nX: " . 'x' x 100_000 . "\r\n\r\n",
	"GET /health HTTP/1.1\r\nHost: x\r\n" . "X: x\r\n" x 20_000 . "\r\n",
	"GET /health HTTP/1.1\r\n" . ' ' x 100_000 . "\r\n\r\n",
	'A' x 100_000)
{
	unlike(ask($many), qr/ 200 /, 'a header of 100 kB is refused: ' . substr($many, 0, 20) =~ s/\r\n/ /gr);
}
is(get('/health', 'X: ' . 'x' x 2000 . "\r\n"), "200 {\"status\":\"ok\"}\n",
	'one of 2 kB is none too many');

# What is not HTTP.
for my $junk ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" . "\x00" x 200 . "\n\n",
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0" x 1000 . "\r\n\r\n", "GET\r\n\r\n",
	"GET /health\r\n\r\n", "\r\n" x 100 . "QUIT\r\n\r\n", "GET /health HTTP/9.9\r\n\r\n",
	join('', map { chr } 0 .. 255) . "\n\n",
	"GET /health HTTP/1.1\r\nHost : x\r\n folded\r\n: empty\r\nno colon\r\n\r\n")
{
	my $socket = dial();
	local $SIG{PIPE} = 'IGNORE';
	print $socket $junk;
	$socket->flush;
	shutdown $socket, 1;
	unlike(take($socket), qr/\Q$value\E/, 'junk is no request');
}
srand 8555;
for my $n (1 .. 300)
{
	my $socket = dial();
	local $SIG{PIPE} = 'IGNORE';
	my $bytes = "GET $path/$token HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
	substr($bytes, int(rand length $bytes), 1) = chr int rand 256 for 1 .. 3;
	print $socket substr $bytes, 0, 1 + int rand length $bytes;
	close $socket;
}
ok(is_up(), 'it is up after all that');
is(gateway_pid(), $pid, '... and the same process');

#
# Connections that are kept, and requests in one go.
#
my $kept = dial();
for my $n (1 .. 3)
{
	print $kept "GET $path/$token HTTP/1.1\r\nHost: x\r\n\r\n";
	$kept->flush;
	like(take($kept, qr/\Q$value\E/), qr/ 200 .*\Q$value\E\z/s, "answer $n on one connection");
	print $kept "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n";
	$kept->flush;
	like(take($kept, qr/not found\n/), qr/ 404 /, '... which survives what is not found');
}
print $kept "GET $path/$token HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n" x 200;
$kept->flush;
my $answers = take($kept, qr/\A(?:(?>.*?"ok")){200}/s);
is(() = $answers =~ /\Q$value\E.*?\{"status":"ok"\}/gs, 200, '400 requests in one go are answered in their order');
my $slow = dial();
for my $byte (split //, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
{
	syswrite $slow, $byte;
	usleep(2000);
}
like(take($slow), qr/ 200 /, 'a request that comes byte by byte is answered, if it comes in time');
close $slow;

# Ten seconds for each, measured from here; the rest goes on meanwhile.
my $silent = dial();
my $trickle = dial();
my $begun = time;
print $trickle "GET /health HTTP/1.1\r\nX: ";
print $kept "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
take($kept, qr/"ok"\}\n/);
my ($kept_closed, $silent_closed, $trickle_closed, $served) = (0, 0, 0, 0);
{
	local $SIG{PIPE} = 'IGNORE';
	while (time < $begun + 40 && !($kept_closed && $silent_closed && $trickle_closed))
	{
		syswrite $trickle, 'x' unless $trickle_closed;
		$kept_closed ||= is_closed($kept, 0.05) ? time - $begun : 0;
		$silent_closed ||= is_closed($silent, 0.05) ? time - $begun : 0;
		$trickle_closed ||= is_closed($trickle, 0.05) ? time - $begun : 0;
		$served += is_up();
	}
}
for my $c ([ $kept_closed, 'one that is merely kept' ],
	[ $silent_closed, 'one that says nothing' ],
	[ $trickle_closed, 'one whose header trickles in' ])
{
	cmp_ok($c->[0], '>', 9, "$c->[1] is left for ten seconds");
	cmp_ok($c->[0], '<', 30, '... and closed then');
}
cmp_ok($served, '>', 20, 'others are answered meanwhile');

#
# Idle: it sleeps.
#
wait_for_sql($node, 'all connections are gone',
	"SELECT in_flight = 0 FROM mlint.stat_workers WHERE kind = 'gateway'");
my $wakeups = sql("SELECT wakeups FROM mlint.stat_workers WHERE kind = 'gateway'");
jobs_go_by($node, 5);
is(sql("SELECT wakeups FROM mlint.stat_workers WHERE kind = 'gateway'"),
	$wakeups, 'a gateway with nothing to do does not wake up');

#
# The setting changes.
#
my $open = dial();
print $open "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
take($open, qr/"ok"\}\n/);
listen_at("127.0.0.1:$other, [::1]:$third");
wait_for('it listens where the setting says now', sub { is_up($other) });
is(dial($port), undef, '... and no more where it said before');
ok(is_closed($open), '... whose connections are closed');
is(gateway_pid(), $pid, 'that is the same process');
SKIP:
{
	my $can = IO::Socket::IP->new(LocalHost => '::1', Listen => 1);
	skip 'this machine has no IPv6', 2 unless $can;
	is(get("$path/$token", '', port => $third, host => '::1'), "200 $value", 'it answers over IPv6');
	is(dial($third), undef, '... only, at that port');
}
my $log = -s $node->logfile;
sql('SELECT pg_reload_conf()');
ok(is_up($other), 'a reload that changes nothing changes nothing');

# Somebody is there already.
my $holder = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port,
	Listen => 5, ReuseAddr => 1) or die "$port: $!";
$log = -s $node->logfile;
listen_at("$port, $other");
wait_for('a taken address is in the log', sub {
	slurp_file($node->logfile, $log) =~ /mlint gateway cannot listen at 127\.0\.0\.1:$port: Address already in use.*HINT:  Another process listens there/s });
wait_for('the other address is served meanwhile', sub { is_up($other) });
is( sql("SELECT query FROM pg_stat_activity WHERE pid = $pid"),
	"cannot listen at 127.0.0.1:$port, listening at 127.0.0.1:$other",
	'pg_stat_activity says so too');
# Some tries later there is still that one line.
$wakeups = sql("SELECT wakeups FROM mlint.stat_workers WHERE kind = 'gateway'");
wait_for_sql($node, 'it tries again',
	"SELECT wakeups >= $wakeups + 2 FROM mlint.stat_workers WHERE kind = 'gateway'");
is(() = slurp_file($node->logfile, $log) =~ /cannot listen/g, 1, '... and does not say so each time');
close $holder;
wait_for('it listens when the address is free', sub { is_up($port) });
is(gateway_pid(), $pid, '... in the same process');
listen_at("192.0.2.1:$third, $port");
wait_for('an address of others is in the log', sub {
	slurp_file($node->logfile, $log) =~ /cannot listen at 192\.0\.2\.1:$third.*HINT:  That is no address of this machine/s });
listen_at($port);
wait_for('it listens again', sub { is_up($port) });

#
# It ends.
#
my $busy = dial();
print $busy "GET /hea";
$busy->flush;
my $at = time;
sql("SELECT pg_terminate_backend($pid)");
wait_for('it ends at SIGTERM', sub { !kill 0, $pid });
cmp_ok(time - $at, '<', 8 * $MlintTest::slower, '... at once');
wait_for_worker($node, 'mlint gateway', undef, $pid);
wait_for('another one comes', sub { is_up($port) });
is(get("$path/$token"), "200 $value", '... and knows what is shown');
listen_at('');
wait_for_sql($node, 'without the setting it goes',
	"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'mlint gateway'");
wait_for('... and nothing listens', sub { !dial($port) });
is(sql($row), '', '... nor is it in mlint.stat_workers');
listen_at($port);
wait_for('it comes back with it', sub { is_up($port) });

# A crash of the gateway is one of the server; what was shown is gone.
$pid = gateway_pid();
kill 'KILL', $pid;
wait_for_sql($node, 'the server recovers',
	"SELECT pg_postmaster_start_time() IS NOT NULL AND count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'mlint gateway' AND pid <> $pid");
wait_for('... and the gateway', sub { is_up($port) });
is(get("$path/$token"), "404 not found\n", 'what was shown before is not');
show($token, $value, '1 hour');
is(get("$path/$token"), "200 $value", 'and can be shown again');

# A launcher that dies takes it along, and starts it again.
my ($launcher) = worker_pids($node, 'mlint launcher');
$pid = gateway_pid();
sql("SELECT pg_terminate_backend($launcher)");
wait_for_worker($node, 'mlint launcher', undef, $launcher);
wait_for_worker($node, 'mlint gateway', undef, $pid);
wait_for('the gateway survives a new launcher', sub { is_up($port) });
is(scalar worker_pids($node, 'mlint gateway'), 1, '... alone');

#
# A standby has none; promoted, it has.
#
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
unlink $standby->data_dir . '/postgresql.auto.conf';
$standby->append_conf('postgresql.conf', "mlint.gateway_listen = '$third'\n"
	  . "primary_conninfo = '" . $node->connstr . "'\n");
$standby->start;
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
is(scalar worker_pids($standby, 'mlint'), 0, 'a standby has no gateway');
is(dial($third), undef, '... and listens nowhere');
$node->stop('immediate');
is(dial($port), undef, 'a server that is stopped listens no more');
$standby->promote;
wait_for('a promoted one listens', sub { is_up($third) });
$standby->stop;
is(dial($third), undef, 'and stops with its server');
done_testing();
