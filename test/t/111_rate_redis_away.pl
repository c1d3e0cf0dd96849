# When Redis is away: killed, stopped in its tracks, or behind a network that
# swallows everything, while sessions ask. Each rule does what its fail says,
# nobody is stuck, nobody gets an error, and it ends by itself.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IO::Select;
use IO::Socket::INET;
use MlintTest;
use PostgreSQL::Test::Utils;
use RedisTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $redis = RedisTest->start;

# A relay to Redis. Stopped (SIGSTOP) it is a network that takes everything
# and delivers nothing, until it is healed.
my $relay_port = RedisTest::ports(1);
my $relay = fork // die;

if ($relay == 0)
{
	my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $relay_port,
		Listen => 50, ReuseAddr => 1) or POSIX::_exit(1);
	my $select = IO::Select->new($listen);
	my %to;

	$SIG{PIPE} = 'IGNORE';
	while (1)
	{
		for my $socket ($select->can_read)
		{
			if ($socket == $listen)
			{
				my $client = $listen->accept or next;
				my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $redis->port);

				$server or close($client), next;
				$select->add($client, $server);
				$to{$client} = $server;
				$to{$server} = $client;
				next;
			}
			my $other = $to{$socket} or next;

			if (sysread($socket, my $bytes, 65536))
			{
				syswrite($other, $bytes);
				next;
			}
			$select->remove($socket, $other);
			delete @to{ $socket, $other };
			close($socket);
			close($other);
		}
	}
}

END { my $s = $?; kill 'KILL', $relay if $relay; $? = $s; }

my $node = mlint_node('main');

sub q1 { return $node->safe_psql('postgres', $_[0]); }

q1(<<"EOQ");
SELECT mlint.rate_backend_create('redis', options => '{"hosts": "127.0.0.1:$relay_port",
	"timeout_ms": 200, "connect_timeout_ms": 300, "breaker": {"threshold": 3, "timeout_s": 1}}');
SELECT mlint.rate_backend_create('slow', options => '{"hosts": "127.0.0.1:$relay_port",
	"timeout_ms": 60000, "breaker": {"threshold": 0}}');
SELECT mlint.rate_rule_create(f, 'token_bucket', 1, '1 day', 5, backend => 'redis', fail => f)
FROM unnest('{open,closed,local}'::text[]) f;
SELECT mlint.rate_rule_create('leased', 'token_bucket', 1, '1 day', 100, backend => 'redis',
	mode => 'leased', lease => 10, fail => 'local');
SELECT mlint.rate_rule_create('load', 'token_bucket', 1000000, '1 s', 1000000, backend => 'redis', fail => 'open');
SELECT mlint.rate_rule_create('slow', 'token_bucket', 1, '1 day', 5, backend => 'slow', fail => 'open');
EOQ

# What each rule says now, to somebody new and to somebody known.
my $who = 0;

sub answers
{
	$who++;
	return q1("SELECT string_agg(format('%s:%s%s', r, CASE WHEN d.allowed THEN 'yes' ELSE 'no' END,"
		  . " CASE WHEN d.degraded AND d.reason = 'backend' THEN '/away' END), ' ' ORDER BY r)"
		  . " FROM unnest('{open,closed,local}'::text[]) r, mlint.rate_check(r, 'n$who') d");
}

sub breaker { return q1("SELECT breaker FROM mlint.rate_backends WHERE name = 'redis'"); }

# A session that checks as fast as it can: its counts are read at its end.
sub load_begin
{
	my ($out, $err) = ('', '');
	my $h = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', <<'EOQ' ], '<', \undef, '>', \$out, '2>', \$err);
DO $$
DECLARE
	d mlint.rate_decision; n int := 0; away int := 0; worst interval := '0'; began timestamptz;
	stop timestamptz := clock_timestamp() + '6 s';
BEGIN
	WHILE clock_timestamp() < stop LOOP
		began := clock_timestamp();
		d := mlint.rate_check('load', (n % 50)::text);
		worst := greatest(worst, clock_timestamp() - began);
		n := n + 1;
		IF d.degraded THEN away := away + 1; END IF;
		IF NOT d.allowed THEN RAISE 'refused: %', d; END IF;
	END LOOP;
	RAISE NOTICE 'n=% away=% worst_ms=%', n, away, (extract(epoch FROM worst) * 1000)::int;
END $$
EOQ
	return { h => $h, out => \$out, err => \$err };
}

sub load_end
{
	my ($what, @loads) = @_;

	for my $load (@loads)
	{
		$load->{h}->finish;
		my ($n, $away, $worst) = ${ $load->{err} } =~ /n=(\d+) away=(\d+) worst_ms=(\d+)/;

		ok(defined $n && $n > 100 && $away > 0 && $away < $n,
			"$what: decisions before, during and after, no error")
		  or diag(${ $load->{err} });
		# A round trip and a connection, by the options, and a busy machine.
		cmp_ok($worst // 1e9, '<', 8000 * $MlintTest::slower, "$what: no decision took longer than its timeouts");
	}
	return;
}

# --- all is well ---

wait_for('all is well', sub { answers() eq 'closed:yes local:yes open:yes' });

# --- three ways to be away, under load ---

my %trouble = (
	killed => [ sub { $redis->down }, sub { $redis->up } ],
	paused => [ sub { $redis->signal('STOP') }, sub { $redis->signal('CONT') } ],
	'cut off' => [ sub { kill 'STOP', $relay }, sub { kill 'CONT', $relay } ]);

for my $kind ('killed', 'paused', 'cut off')
{
	my $checks = q1("SELECT coalesce(max(checks), 0) FROM mlint.stat_rate_limits WHERE rule = 'load'");
	my @loads = map { load_begin() } 1 .. 2;
	my $log = -s $node->logfile;

	wait_for('the load has begun', sub { q1("SELECT checks > $checks + 100 FROM mlint.stat_rate_limits WHERE rule = 'load'") eq 't' });
	$trouble{$kind}[0]->();
	wait_for("$kind: the breaker opens", sub { breaker() ne 'closed' });
	is(answers(), 'closed:no/away local:yes/away open:yes/away', "$kind: each rule does what its fail says");
	my $began = time;

	is(q1("SELECT count(*) FILTER (WHERE (mlint.rate_check('open', n::text)).allowed) FROM generate_series(1, 2000) n"),
		2000, "$kind: open lets all pass");
	cmp_ok(time - $began, '<', 20 * $MlintTest::slower, '... and at the speed of memory');
	is(q1("SELECT count(*) FILTER (WHERE (mlint.rate_check('local', 'same $kind')).allowed) FROM generate_series(1, 20) n"),
		5, "$kind: local keeps to the law by itself");
	is(q1("SELECT count(*) FILTER (WHERE (d).allowed), bool_and((d).retry_after > '0' AND (d).retry_after <= '1 s')"
		  . " FROM (SELECT mlint.rate_check('closed', 'c') d FROM generate_series(1, 20) n) s"),
		'0|t', "$kind: closed refuses, and says when it is worth another try");
	is(q1("SELECT count(*) FILTER (WHERE (mlint.rate_check('leased', 'same $kind')).allowed) FROM generate_series(1, 200) n"),
		100, "$kind: a leased limit that is local then, too");
	for my $reset ("'open'", "'local', 'same $kind'")
	{
		my ($rc, undef, $said) = $node->psql('postgres', "SELECT mlint.rate_reset($reset)");

		like($said, qr/could not use rate backend "redis"/, "$kind: a reset that Redis does not learn of is an error");
	}
	$trouble{$kind}[1]->();
	wait_for("$kind: the breaker closes", sub { answers(); breaker() eq 'closed' });
	wait_for("$kind: all is well again", sub { answers() eq 'closed:yes local:yes open:yes' });
	load_end($kind, @loads);
	my $said = slurp_file($node->logfile, $log);
	my $opened = () = $said =~ /rate backend "redis" is away/g;
	my $closed = () = $said =~ /rate backend "redis" answers again/g;

	cmp_ok($opened, '>=', 1, "$kind: the log says so");
	cmp_ok($opened, '<=', 5, '... once, not for each decision');
	cmp_ok($closed, '>=', 1, '... and when it was over');
}
is(q1("SELECT failures > 0 AND last_error IS NOT NULL AND last_success_at > last_error_at FROM mlint.rate_backends WHERE name = 'redis'"),
	't', 'the view tells of it');

# --- who waits for an answer can be interrupted ---

is(q1("SELECT allowed, degraded FROM mlint.rate_check('slow', 'i')"), 't|f', 'a backend with a long timeout');
kill 'STOP', $relay;
{
	my ($out, $err, $in) = ('', '', '');
	my $h = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', '-' ],
		'<', \$in, '>', \$out, '2>', \$err, IPC::Run::timeout(60));
	my $began = time;

	$in .= "SET statement_timeout = '300 ms';\nSELECT mlint.rate_check('slow', 'i');\nRESET statement_timeout;\n";
	$h->pump until $err =~ /ERROR/;
	like($err, qr/canceling statement due to statement timeout/, 'statement_timeout ends a decision that hangs');
	cmp_ok(time - $began, '<', 20, '... in time');

	# The answer to the first is still under way when the second is asked.
	$err = '';
	$in .= "SELECT pg_backend_pid();\n";
	$h->pump until $out =~ /(\d+)\n/;
	my ($pid) = $out =~ /(\d+)\n/;

	$in .= "SELECT mlint.rate_check('slow', 'i');\n";
	$h->pump_nb;
	wait_for_sql($node, 'it waits for Redis', "SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid");
	q1("SELECT pg_cancel_backend($pid)");
	$h->pump until $err =~ /ERROR/;
	like($err, qr/canceling statement due to user request/, 'so does a cancel');

	kill 'CONT', $relay;
	$out = '';
	$in .= "SELECT 'got', allowed, degraded, remaining < 5 FROM mlint.rate_check('slow', 'i');\n";
	$h->pump until $out =~ /got.*\n/;
	is($out, "got|t|f|t\n", 'then the answers that came too late belong to nobody');

	kill 'STOP', $relay;
	$in .= "SELECT mlint.rate_check('slow', 'i');\n";
	$h->pump_nb;
	wait_for_sql($node, 'it waits again', "SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid");
	q1("SELECT pg_terminate_backend($pid)");
	wait_for_sql($node, 'a backend that hangs can be ended', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
	$h->kill_kill;
}
kill 'CONT', $relay;
is(q1("SELECT allowed, degraded FROM mlint.rate_check('slow', 'j')"), 't|f', 'and all others go on');

done_testing();
