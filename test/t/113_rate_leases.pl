# Leased limits: three servers decide from their own memory, and together stay
# within the bound that the documentation states; what they do not use goes
# back; refusals cost no round trips.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use MlintTest;
use PostgreSQL::Test::Utils;
use RedisTest;
use Test::More;
use Time::HiRes qw(time);

my $redis = RedisTest->start;
my $hosts = $redis->hosts;
my @nodes = map { mlint_node("pg$_") } 1 .. 3;
my $one = $nodes[0];

sub on_all
{
	my ($sql) = @_;

	return map { $_->safe_psql('postgres', $sql) } @nodes;
}

sub q1 { return $one->safe_psql('postgres', $_[0]); }

# Run on all servers at once, from $n sessions each; what they print.
sub at_once
{
	my ($n, $sql) = @_;
	my @runs;

	for my $node (map { ($_) x $n } @nodes)
	{
		my ($out, $err) = ('', '');
		my $h = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-c', $sql ],
			'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout($MlintTest::deadline));
		push @runs, [ $h, \$out, \$err ];
	}
	for my $run (@runs)
	{
		$run->[0]->finish;
		is(${ $run->[2] }, '', 'no error');
	}
	return map { my $o = ${ $_->[1] }; chomp $o; $o } @runs;
}

# A server that pauses is no matter of this test.
on_all("SELECT mlint.rate_backend_create('redis', options => '{\"hosts\": \"$hosts\", \"timeout_ms\": 20000, \"connect_timeout_ms\": 20000}')");

# --- nothing flows in: the total is what there was, less what was not given back ---

on_all("SELECT mlint.rate_rule_create('$_->[0]', '$_->[1]', $_->[2], '1 day', $_->[3], backend => 'redis', mode => 'leased', fail => 'closed', lease => 50)")
  for [ 'tokens', 'token_bucket', 1, 3000 ], [ 'fixed', 'fixed_window', 3000, 'NULL' ], [ 'sliding', 'sliding_window', 3000, 'NULL' ];

for my $rule (qw(tokens fixed sliding))
{
	my $before = $redis->calls;
	my $total = 0;

	$total += $_ for at_once(2, "SELECT count(*) FILTER (WHERE mlint.rate_allow('$rule', 'k')) FROM generate_series(1, 2000)");
	cmp_ok($total, '<=', 3000, "$rule: six sessions of three servers never get more than there is");
	cmp_ok($total, '>=', 3000 - 3 * 50, "... and no more than a slice a server is left ($total)");
	my $calls = $redis->calls - $before;

	# 60 slices and some refusals, a second apart; not 12,000 questions.
	cmp_ok($calls, '<', 300, "... in $calls questions to Redis");
}

# --- refusals ---

{
	q1("SELECT mlint.rate_rule_create('none', 'token_bucket', 1, '1 day', 1, backend => 'redis', mode => 'leased', fail => 'closed')");
	is(q1("SELECT mlint.rate_allow('none', 'k')"), 't', 'the only token');
	my $before = $redis->calls;
	my $began = time;

	is(q1("SELECT count(*) FILTER (WHERE mlint.rate_allow('none', 'k')) FROM generate_series(1, 50000)"), 0, 'then refusals');
	my $calls = $redis->calls - $before;

	cmp_ok($calls, '<=', 2 + int(time - $began), "50000 refusals ask Redis once a second ($calls)");
	is(q1("SELECT (d).allowed, (d).reason, (d).retry_after > '0', (d).degraded FROM (SELECT mlint.rate_check('none', 'k') d) s"),
		'f|limited|t|f', '... and look like any other');
}

# --- over an interval: the law's, and a slice a server ---

{
	my ($rate, $burst, $lease) = (2000, 500, 100);

	on_all("SELECT mlint.rate_rule_create('flow', 'token_bucket', $rate, '1 s', $burst, backend => 'redis', mode => 'leased', fail => 'closed', lease => $lease)");

	my $total;

	# What flows while a session has no time is lost beyond the burst: again, then.
	for my $try (1 .. 5)
	{
		# Each says when it began, when it ended, and how many passed.
		my @out = at_once(2, <<"EOQ");
DO \$\$
DECLARE n bigint := 0; stop timestamptz := clock_timestamp() + '4 s';
BEGIN
	PERFORM set_config('my.began', extract(epoch FROM clock_timestamp())::text, false);
	WHILE clock_timestamp() < stop LOOP
		IF mlint.rate_allow('flow', 'k$try') THEN n := n + 1; END IF;
	END LOOP;
	PERFORM set_config('my.n', n::text, false);
END \$\$;
SELECT current_setting('my.began'), extract(epoch FROM clock_timestamp()), current_setting('my.n');
EOQ
		my ($began, $ended) = (9e99, 0);

		$total = 0;

		for (@out)
		{
			my ($b, $e, $n) = split /\|/;

			$began = $b if $b < $began;
			$ended = $e if $e > $ended;
			$total += $n;
		}
		my $law = $burst + $rate * ($ended - $began);

		cmp_ok($total, '<=', $law + 3 * $lease, "over an interval no more than the law and a slice a server ($total of $law)");
		last if $total >= 0.8 * $rate * 4;
	}
	cmp_ok($total, '>=', 0.8 * $rate * 4, '... and about as much as flows');
}

# --- many processes, one slice ---

{
	q1("SELECT mlint.rate_rule_create('herd', 'token_bucket', 100000, '1 day', 100000, backend => 'redis', mode => 'leased', fail => 'closed', lease => 1000)");
	my $before = $redis->calls;
	my $total = 0;
	my @runs = map {
		my ($out, $err) = ('', '');
		[ IPC::Run::start([ 'psql', '-XAtq', '-d', $one->connstr('postgres'), '-c',
				"SELECT count(*) FILTER (WHERE mlint.rate_allow('herd', 'k')) FROM generate_series(1, 5000)" ],
			'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout($MlintTest::deadline)), \$out ]
	} 1 .. 8;

	for (@runs) { $_->[0]->finish; $total += ${ $_->[1] }; }
	is($total, 40000, 'eight processes of one server');
	cmp_ok($redis->calls - $before, '<=', 60, '... borrow one slice at a time between them');
}

# --- what is not used goes back ---

{
	for my $algorithm (qw(token_bucket sliding_window fixed_window))
	{
		my $burst = $algorithm eq 'token_bucket' ? 'burst => 100, rate => 1' : 'rate => 100';

		on_all("SELECT mlint.rate_rule_create('back_$algorithm', algorithm => '$algorithm', $burst, per => '1 day', backend => 'redis', mode => 'leased', fail => 'closed', lease => 90)");
		is(q1("SELECT mlint.rate_allow('back_$algorithm', 'k')"), 't', "$algorithm: one server has a slice");
		cmp_ok(q1("SELECT (mlint.rate_peek('back_$algorithm', 'k')).remaining"), '>=', 10, '... and more than nothing of it to spend');
		is($nodes[1]->safe_psql('postgres', "SELECT (mlint.rate_check('back_$algorithm', 'k', 50)).allowed"), 'f', '... so another cannot have it');
		wait_for_sql($nodes[1], "... until the job has given it back",
			"SELECT (mlint.rate_check('back_$algorithm', 'k', 50)).allowed");
		is($nodes[2]->safe_psql('postgres', "SELECT count(*) FILTER (WHERE mlint.rate_allow('back_$algorithm', 'k')) FROM generate_series(1, 200)") <= 49 ? 1 : 0,
			1, '... what was used stays used');
	}
	is(q1("SELECT enabled FROM mlint.job WHERE name = 'rate_lease_return'"), 't', 'the job runs from the first leased limit on');
}

# --- the borrower returns what is left himself ---

{
	q1("UPDATE mlint.job SET enabled = false WHERE name = 'rate_lease_return'");
	q1("SELECT mlint.rate_rule_create('self', 'token_bucket', 1, '1 day', 100, backend => 'redis', mode => 'leased', fail => 'closed', lease => 90)");
	is(q1("SELECT mlint.rate_allow('self', 'k')"), 't', 'one of a hundred');
	wait_for_sql($one, 'the slice is over', "SELECT now() > created_at + '1.2 s' FROM mlint.rate_rules WHERE name = 'self'");
	is(q1("SELECT (mlint.rate_check('self', 'k', 99)).allowed"), 't', 'all the rest can be had, with what was left of the slice');
	is(q1("SELECT (mlint.rate_check('self', 'k', 1)).allowed"), 'f', '... and nothing more');
}

# --- an override, a reset ---

{
	q1("SELECT mlint.rate_override_set('self', 'vip', 'limit', 1, 1000)");
	is(q1("SELECT (mlint.rate_check('self', 'vip', 1000)).allowed"), 't', 'an override has its own law');
	q1("SELECT mlint.rate_reset('self', 'k')");
	is(q1("SELECT (mlint.rate_check('self', 'k', 100)).allowed"), 't', 'a reset');
}

done_testing();
