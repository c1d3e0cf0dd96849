# The HTTP client as workers use it, from C: kept connections and when they
# are forgotten, requests ended in flight, a CA of one's own, many at a time.

use strict;
use warnings;

use FindBin;
use MlintTest ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $top = "$FindBin::RealBin/../..";
my $peers = "$top/test/peers";
my $dir = PostgreSQL::Test::Utils::tempdir;
my $cc = $ENV{CC} || 'cc';

my $probe = "$dir/http_probe.so";
chomp(my $include = `pg_config --includedir-server`);
system_or_bail($cc, '-shared', '-fPIC', '-O', "-I$top/src", "-I$include",
	'-o', $probe, "$FindBin::RealBin/http_probe.c",
	(map { "$top/src/common/$_.c" } qw(http netpolicy glob crypto)), '-lcurl', '-lcrypto');
my $shim = "$dir/resolver.so";
system_or_bail($cc, '-shared', '-fPIC', '-O', '-o', $shim,
	"$FindBin::RealBin/resolver_shim.c", '-ldl');

my $receiver = MlintTest::Receiver->start;
my $port = $receiver->port;
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

my $node = PostgreSQL::Test::Cluster->new('client');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = '$probe'");
{
	local $ENV{LD_PRELOAD} = $shim;
	$node->start;
}
$node->safe_psql(
	'postgres', qq(
	CREATE FUNCTION probe_tls(text, text, bool) RETURNS text
		AS '$probe' LANGUAGE c;
	CREATE FUNCTION probe_sequence(VARIADIC text[]) RETURNS text
		AS '$probe' LANGUAGE c STRICT;
	CREATE FUNCTION probe_burst(text, int, int) RETURNS text
		AS '$probe' LANGUAGE c STRICT;
	CREATE FUNCTION probe_glob(text, text) RETURNS bool
		AS '$probe' LANGUAGE c STRICT));

my $base = "http://127.0.0.1:$port";

# Run the steps; return the log and the distinct connections that were seen.
sub sequence
{
	my @steps = @_;
	my $before = () = slurp_file($receiver->{record}) =~ /\n/g;
	my $log = $node->safe_psql('postgres',
		'SELECT probe_sequence(' . join(', ', map { "'$_'" } @steps) . ')');
	my @lines = split /\n/, slurp_file($receiver->{record});
	my %peers;
	/"peer": (\d+)/ and $peers{$1} = 1 foreach @lines[ $before .. $#lines ];
	$log =~ s/\s+/ /g;
	return ($log, scalar keys %peers);
}

my $ok = "$base/ok";
my ($log, $connections) = sequence(($ok) x 5);
is($connections, 1, 'a connection is kept') or diag $log;
($log, $connections) = sequence("$base/status/500", "$base/size/60000", $ok);
is($connections, 1, '... through errors and bodies longer than what is kept');
($log, $connections) = sequence($ok, 'forget', $ok);
is($connections, 2, '... and forgotten when asked');
($log, $connections) = sequence($ok, 'deny 10.0.0.0/8', $ok);
is($connections, 2, '... and when the network policy changes');
($log, $connections) = sequence($ok, 'deny 127.0.0.0/8', $ok, 'deny ', $ok);
like($log, qr/^ok:200:ok refused:0: ok:200:ok ?$/,
	'a kept connection does not get around a new policy');
($log) = sequence("http://rebind.test:$port/ok", 'forget',
	"http://rebind.test:$port/ok");
like($log, qr/^ok:200:ok refused:0: ?$/, '... nor does a kept name');

($log) = sequence("cancel $base/stall", "abandon $base/stall", $ok, 'forget',
	'idle');
like($log, qr/^cancelled:0: ok:200:ok idle:-1 ?$/,
	'requests can be cancelled and freed in flight');
($log) = sequence('timeout 100', "$base/stall", 'timeout 10000', $ok);
like($log, qr/^timeout:0: ok:200:ok ?$/, 'a timeout leaves the client usable');
my $began = time;
($log) = sequence(
	"cancel http://hang.test:$port/", "abandon http://hang.test:$port/",
	'timeout 100', "http://hang.test:$port/", 'timeout 10000', $ok);
like($log, qr/^cancelled:0: timeout:0: ok:200:ok ?$/,
	'name resolution that hangs holds up nothing');
cmp_ok(time - $began, '<', 20, '... and does not block the end of the process');
($log) = sequence('ftp://127.0.0.1/', 'http://u:p@127.0.0.1/', $ok);
like($log, qr/^invalid:0: invalid:0: ok:200:ok ?$/,
	'what cannot be sent is reported like any end');

# TLS.
my $https = "https://localhost:$nginx_https/";
my $ca = slurp_file("$dir/nginx/ca.pem");
sub tls
{
	my ($url, $pem, $verify) = @_;
	return $node->safe_psql('postgres',
		"SELECT probe_tls('$url', "
		  . (defined $pem ? "'$pem'" : 'NULL')
		  . ", $verify)");
}
like(tls($https, $ca, 'true'), qr/^ok 200/, 'TLS with its own CA');
like(tls("https://127.0.0.1:$nginx_https/", $ca, 'true'),
	qr/^ok 200/, '... by address');
like(tls("https://pinned.test:$nginx_https/", $ca, 'true'),
	qr/^tls 0 .*not trusted/, '... but not under another name');
like(tls($https, undef, 'true'), qr/^tls 0 .*not trusted/,
	'the system store does not know it');
like(tls($https, undef, 'false'), qr/^ok 200/, 'verify off');
like(tls($https, 'not PEM', 'true'), qr/^tls 0 the CA/, 'a CA that is none');

# Many at a time; kept connections; nothing lost.
like( $node->safe_psql('postgres',
		"SELECT probe_burst('http://127.0.0.1:$nginx_http/', 20000, 64)"),
	qr/^ok=20000 /,
	'20,000 requests over 64 connections');
like( $node->safe_psql('postgres',
		"SELECT probe_burst('https://localhost:$nginx_https/', 2000, 16)"),
	qr/^ok=2000 /,
	'2,000 requests over TLS');

# The globs of host names and event types.
foreach my $case (
	[ '*', '', 't' ], [ '*', 'a.b', 't' ], [ '', '', 't' ], [ '', 'a', 'f' ],
	[ 'a.*', 'a.b.c', 't' ], [ 'a.*', 'a', 'f' ], [ '*.c', 'a.b.c', 't' ],
	[ 'a*b*c', 'axxbxxbc', 't' ], [ 'a*b*c', 'axxbxxbcd', 'f' ],
	[ '?', 'a', 't' ], [ '?', '', 'f' ], [ '**a', 'bca', 't' ],
	[ 'a*' x 50, 'a' x 10000 . 'b', 't' ],
	[ 'a*' x 50 . 'c', 'a' x 10000 . 'b', 'f' ])
{
	my ($pattern, $text, $result) = @$case;
	is( $node->safe_psql(
			'postgres', "SELECT probe_glob('$pattern', '$text')"),
		$result,
		sprintf 'glob %.20s on %.20s', $pattern, $text);
}

$node->stop('fast');
done_testing();
