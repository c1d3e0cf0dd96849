# Sentinel: the limit follows the master. Cluster: each key is asked where it
# lies, also while slots move and when a server is gone.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use MlintTest;
use PostgreSQL::Test::Utils;
use RedisTest;
use Test::More;

my $node = mlint_node('main');

sub q1 { return $node->safe_psql('postgres', $_[0]); }

# --- Sentinel ---

{
	my $redis = RedisTest->sentinel;
	my $sentinels = join ',', 'localhost:1', map { $redis->hosts($_) } 3 .. 5;

	q1("SELECT mlint.rate_backend_create('wrong', options => '{\"hosts\": \"$sentinels\", \"mode\": \"sentinel\", \"master\": \"other\"}')");
	my ($rc, $out, $err) = $node->psql('postgres', "SELECT mlint.rate_backend_test('wrong')");
	like($err, qr/knows no master "other"/, 'a master that the Sentinels do not know');

	q1("SELECT mlint.rate_backend_create('sentinel', options => '{\"hosts\": \"$sentinels\", \"mode\": \"sentinel\","
		  . " \"timeout_ms\": 20000, \"connect_timeout_ms\": 20000, \"master\": \"limits\", \"breaker\": {\"timeout_s\": 1}}')");
	my $port = $redis->port;
	like(q1("SELECT mlint.rate_backend_test('sentinel')"), qr/at 127\.0\.0\.1:$port;/, 'the Sentinels name the master');
	q1("SELECT mlint.rate_rule_create('s', 'token_bucket', 1, '1 day', 10, backend => 'sentinel', fail => 'closed')");
	is(q1("SELECT count(*) FILTER (WHERE (mlint.rate_check('s')).allowed) FROM generate_series(1, 4)"), 4, 'it decides');
	wait_for('the replicas have it', sub { $redis->cli_at(1, 'exists', 'mlint:s:{}') eq '1'
		  && $redis->cli_at(2, 'exists', 'mlint:s:{}') eq '1' });

	# One session that goes through it all.
	my ($sout, $serr, $sin) = ('', '', '');
	my $h = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', '-' ],
		'<', \$sin, '>', \$sout, '2>', \$serr, IPC::Run::timeout(600));
	my $ask = sub {
		$sout = '';
		$sin .= "SELECT 'got', allowed, degraded, remaining FROM mlint.rate_check('s');\n";
		$h->pump until $sout =~ /got.*\n/;
		return $sout;
	};
	like($ask->(), qr/got\|t\|f\|5/, 'in a session that stays');
	wait_for('the replicas have that too', sub { $redis->cli_at(1, 'get', 'mlint:s:{}') eq $redis->cli('get', 'mlint:s:{}')
		  && $redis->cli_at(2, 'get', 'mlint:s:{}') eq $redis->cli('get', 'mlint:s:{}') });
	$redis->signal('KILL');
	like($ask->(), qr/got\|f\|t\|/, 'the master is gone: fail => closed');
	wait_for('the session has found the new master', sub { $ask->() =~ /got\|t\|f\|(\d)/ });
	like($sout, qr/got\|t\|f\|4/, '... which knows what was taken');
	like(q1("SELECT mlint.rate_backend_test('sentinel')"), qr/at 127\.0\.0\.1:(?!$port;)\d+;/, 'the test names it');

	# It becomes a replica with our connection open: READONLY.
	my ($master) = q1("SELECT mlint.rate_backend_test('sentinel')") =~ /:(\d+);/;
	# A Sentinel that still knows of no good replica refuses: ask again.
	wait_for('by hand, the Sentinels come to have another master',
		sub {
			return 1 if $redis->cli_at(3, 'sentinel', 'get-master-addr-by-name', 'limits') !~ /\b$master\b/;
			$redis->cli_at(3, 'sentinel', 'failover', 'limits');
			return 0;
		})
	  or diag($redis->cli_at(3, 'sentinel', 'replicas', 'limits'));
	wait_for('the session follows', sub { $ask->() =~ /got\|[tf]\|f\|/ });
	$sin .= "\\q\n";
	$h->finish;
	is($serr, '', 'without an error');
	$redis->down;
}

# --- Cluster ---

{
	my $redis = RedisTest->cluster;
	my $hosts = 'localhost:1,' . $redis->hosts(1);

	q1("SELECT mlint.rate_backend_create('cluster', options => '{\"hosts\": \"$hosts\", \"mode\": \"cluster\","
		  . " \"timeout_ms\": 20000, \"connect_timeout_ms\": 20000, \"breaker\": {\"threshold\": 0}}')");
	like(q1("SELECT mlint.rate_backend_test('cluster')"), qr/a cluster of 3 masters/, 'the cluster is found by one host of it');
	q1("SELECT mlint.rate_rule_create('c', 'sliding_window', 2, '1 day', backend => 'cluster', fail => 'closed')");
	is(q1("SELECT count(*) FILTER (WHERE (mlint.rate_check('c', (n % 300)::text)).allowed) FROM generate_series(1, 900) n"),
		600, 'each of 300 identifiers has its limit');
	my @sizes = map { $redis->cli_at($_, 'dbsize') } 0 .. 2;
	ok($sizes[0] > 20 && $sizes[1] > 20 && $sizes[2] > 20, "they lie on all servers (@sizes)");
	q1("SELECT mlint.rate_reset('c')");
	is(join(' ', map { $redis->cli_at($_, 'dbsize') } 0 .. 2), '0 0 0', 'a reset reaches all servers');

	# A session that has the map of the slots, while one of them moves.
	my ($sout, $serr, $sin) = ('', '', '');
	my $h = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', '-' ],
		'<', \$sin, '>', \$sout, '2>', \$serr, IPC::Run::timeout(600));
	my $ask = sub {
		$sout = '';
		$sin .= "SELECT 'got', allowed, degraded, remaining FROM mlint.rate_check('c', '$_[0]');\n";
		$h->pump until $sout =~ /got.*\n/;
		return $sout;
	};
	my $slot = $redis->cli('cluster', 'keyslot', 'mlint:c:{mover}');
	my @ids = map { $redis->cli_at($_, 'cluster', 'myid') } 0 .. 2;
	my ($from) = grep { my $id = $ids[$_]; my ($a, $b) = $redis->cli('cluster', 'nodes') =~ /^$id .* (\d+)-(\d+)$/m; $slot >= $a && $slot <= $b } 0 .. 2;
	my $to = ($from + 1) % 3;

	like($ask->('mover'), qr/got\|t\|f\|1/, 'an identifier');
	$redis->cli_at($to, 'cluster', 'setslot', $slot, 'importing', $ids[$from]);
	$redis->cli_at($from, 'cluster', 'setslot', $slot, 'migrating', $ids[$to]);
	$redis->cli_at($from, 'migrate', '127.0.0.1', $redis->port($to), 'mlint:c:{mover}', 0, 5000);
	like($ask->('mover'), qr/got\|t\|f\|0/, 'while its slot moves: ASK');
	$redis->cli_at($_, 'cluster', 'setslot', $slot, 'node', $ids[$to]) for $to, $from;
	like($ask->('mover'), qr/got\|f\|f\|0/, 'when it has moved: MOVED');

	# One server is gone: its keys are, the others are not.
	my ($gone) = grep { $_ != $to && $_ != 1 } 0 .. 2;
	$gone //= ($to + 1) % 3;
	$redis->signal('KILL', $gone == 0 ? 'server' : "server$gone");
	like($ask->('mover'), qr/got\|f\|f\|0/, 'a server is gone, others are still asked');
	my $seen = q1("SELECT count(*) FILTER (WHERE (d).degraded) > 20, count(*) FILTER (WHERE NOT (d).degraded) > 100"
		  . " FROM (SELECT mlint.rate_check('c', n::text) d FROM generate_series(1, 300) n) s");
	is($seen, 't|t', 'only what it had is away');
	$sin .= "\\q\n";
	$h->finish;
	is($serr, '', 'no errors');
	$redis->down;
}

done_testing();
