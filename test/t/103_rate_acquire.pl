# rate_acquire(): who waits for a rate limit waits in order of arrival, for no
# longer than allowed, and is gone from the line however the wait ends.

use strict;
use warnings;

use IPC::Run ();
use Test::More;
use Time::HiRes qw(time);

use MlintTest;

my $node = mlint_node('acquire', conf => 'max_connections = 60', allows_streaming => 1);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# A rule; more arguments of rate_rule_create() as SQL.
sub rule
{
	my ($name, $algorithm, $rate, $per, $more) = @_;
	sql("SELECT mlint.rate_rule_create('$name', '$algorithm', $rate, '$per'" . ($more ? ", $more" : '') . ')');
	return;
}

# Sessions that each run a script at the same time; what it says is known when
# finish() returns: [exit code, stdout, stderr].
sub start
{
	my ($script, $name) = @_;
	my ($out, $err) = ('', '');
	my $connection = $node->connstr('postgres');
	$connection .= " application_name=$name" if defined $name;
	my $run = IPC::Run::start([ 'psql', '-X', '-A', '-t', '-q', '-v', 'ON_ERROR_STOP=1', '-v',
			'VERBOSITY=verbose', '-d', $connection, '-c', $script ], '<', \undef, '>', \$out, '2>', \$err,
		IPC::Run::timeout($MlintTest::deadline));
	return { run => $run, out => \$out, err => \$err };
}

sub finish
{
	my ($session) = @_;
	$session->{run}->finish;
	chomp(my $out = ${ $session->{out} });
	return ($session->{run}->full_result(0) >> 8, $out, ${ $session->{err} });
}

# How many wait for a rate limit?
my $asleep = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
  . " AND query LIKE '%rate_acquire%' AND wait_event_type = 'Extension'";
sub wait_for_sleepers
{
	my ($n, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_sql($node, $what // "$n wait", $asleep, $n);
}

# Start sessions one by one, so that the order of arrival is known.
sub line_up
{
	my ($script, @names) = @_;
	my @sessions;
	for my $name (@names)
	{
		my $before = sql($asleep);
		push @sessions, start($script =~ s/:name/$name/gr, $name);
		wait_for_sql($node, "$name waits", $asleep, $before + 1) or return @sessions;
	}
	return @sessions;
}

sub pid_of { return sql("SELECT pid FROM pg_stat_activity WHERE application_name = '$_[0]'"); }
sub seconds { my ($code) = @_; my $start = time; $code->(); return time - $start; }

sql('CREATE TABLE passed (n serial, who text, at timestamptz DEFAULT clock_timestamp())');
sub order { return sql("SELECT string_agg(who, ' ' ORDER BY at) FROM passed"); }
sub clear { sql('TRUNCATE passed RESTART IDENTITY'); return; }
# When one passed is when it asked and what it waited, not when it came to say so.
my $take = "INSERT INTO passed (who, at) SELECT ':name', asked + (mlint.rate_acquire('RULE', 'k', 1, '60 s')).delay"
  . ' FROM (SELECT clock_timestamp() AS asked OFFSET 0) c';
sub take { return $take =~ s/RULE/$_[0]/r; }

# ---- hard ----
rule('hard', 'token_bucket', 1, '1 hour', 'burst => 2');
is(sql("SELECT allowed, remaining, delay, degraded, reason, rule FROM mlint.rate_acquire('hard', 'k')"),
	't|1|00:00:00|f||hard', 'what is there is taken at once');
sql("SELECT mlint.rate_acquire('hard', 'k')");
my ($rc, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT mlint.rate_acquire('hard', 'k')");
like($err, qr/ERROR:  ML013: rate limit "hard" is exceeded/, 'hard: a refusal is an error with an SQLSTATE of its own');
like($err, qr/DETAIL:  Retry after (35\d\d|3600)\.\d{3} seconds, at 20\d\d-/, '... that says when to try again');
like($err, qr/HINT:  /, '... and what else can be done');
is(sql("SELECT allowed FROM mlint.rate_acquire('hard', 'other')"), 't', '... and another identifier is not concerned');
is( sql("DO \$\$ BEGIN PERFORM mlint.rate_acquire('hard', 'k'); EXCEPTION WHEN SQLSTATE 'ML013' THEN RAISE NOTICE 'caught'; END \$\$; SELECT 1"),
	1, '... and can be caught');
sql("BEGIN; SELECT mlint.rate_acquire('hard', 'rolled'); ROLLBACK");
is(sql("SELECT remaining FROM mlint.rate_peek('hard', 'rolled')"), 0, 'what was taken stays taken after a rollback');

# ---- retry_after ----
rule('after', 'fixed_window', 1, '100 days', "strategy => 'retry_after'");
is(sql("SELECT allowed FROM mlint.rate_acquire('after')"), 't', 'retry_after: passes');
is(sql("SELECT allowed, remaining, retry_after > '0', delay FROM mlint.rate_acquire('after')"),
	'f|0|t|00:00:00', '... returns the refusal, with the time');

# ---- arguments ----
for my $case (
	[ "'nobody'", qr/ERROR:  rate limit "nobody" does not exist/ ],
	[ "NULL", qr/ERROR:  rule must not be null/ ],
	[ "'hard', 'k', NULL", qr/ERROR:  cost must not be null/ ],
	[ "'hard', 'k', 0", qr/ERROR:  the cost of .* must be greater than zero/ ],
	[ "'hard', 'k', -9223372036854775808", qr/ERROR:  the cost of .* must be greater than zero/ ],
	[ "'hard', 'k', 3", qr/ERROR:  a cost of 3 can never be met/ ],
	[ "'hard', 'k', 9223372036854775807", qr/ERROR:  a cost of 9223372036854775807 can never be met/ ],
	[ "'hard', 'k', 1, '-1 s'", qr/ERROR:  max_wait must be between zero and 3660 days/ ],
	[ "'hard', 'k', 1, '1 month'", qr/ERROR:  max_wait must not have months or years/ ],
	[ "'hard', 'k', 1, '1 month -30 days'", qr/ERROR:  max_wait must not have months or years/ ],
	[ "'hard', 'k', 1, '2147483647 days'", qr/ERROR:  max_wait must be between zero and 3660 days/ ])
{
	my ($args, $expected) = @$case;
	(undef, undef, $err) = $node->psql('postgres', "SELECT mlint.rate_acquire($args)");
	like($err, $expected, "rate_acquire($args) is refused");
}
is(sql("SELECT allowed FROM mlint.rate_acquire('hard', '', 1, '3660 days')"), 't', 'the longest max_wait is none too long');

# ---- queue: order of arrival ----
rule('line', 'token_bucket', 1, '1 day', "strategy => 'queue', max_wait => '60 s'");
# All stand in line before the first can pass.
sql("SELECT mlint.rate_acquire('line', 'k')");
my @names = map { sprintf 'w%02d', $_ } 1 .. 12;
my $patient = take('line') =~ s/60 s/100 days/r;
my @line = line_up($patient, @names);
is(sql("SELECT allowed FROM mlint.rate_check('line', 'k')"), 'f', 'a check is refused meanwhile');
is(sql("SELECT allowed FROM mlint.rate_check('line', 'other')"), 't', '... but not of another key');
sql("SELECT mlint.rate_rule_alter('line', rate => 20, per => '1 s', burst => 1)");
is((finish($_))[0], 0, 'who waited passes') for @line;
is(order(), join(' ', @names), '... all in the order of arrival');
is( sql("SELECT max(at) - min(at) >= 11 * interval '50 ms' - interval '25 ms' FROM passed"),
	't', '... at the pace of the rule, to which it was altered meanwhile');
is(sql("SELECT waited FROM mlint.stat_rate_limits WHERE rule = 'line'"), 12, '... which is counted');
is(sql("SELECT allowed, delay FROM mlint.rate_acquire('line', 'new')"), 't|00:00:00', 'a line of one key does not concern another');


# ---- nobody overtakes, and one who leaves is no obstacle ----
rule('ahead', 'token_bucket', 1, '1 hour', "burst => 10, strategy => 'queue', max_wait => '10 days'");
sql("SELECT mlint.rate_acquire('ahead', 'k', 7)");
my $first = start("SELECT mlint.rate_acquire('ahead', 'k', 5)", 'ahead');
wait_for_sleepers(1, 'one waits for more than there is');
is(sql("SELECT allowed, reason FROM mlint.rate_check('ahead', 'k')"), 'f|waiting', '... and nobody takes what there is');
is(sql("SELECT mlint.rate_allow('ahead', 'k')"), 'f', '... by any function');
is(sql("SELECT allowed FROM mlint.rate_acquire('ahead', 'k', 1, '0')"), 'f', '... but in its turn');
sql("SELECT pg_cancel_backend(" . pid_of('ahead') . ")");
finish($first);
is(sql("SELECT allowed FROM mlint.rate_check('ahead', 'k', 3)"), 't', '... until it gives up, which leaves all that there was');
clear();
rule('turn', 'token_bucket', 1, '1 hour', "burst => 10, strategy => 'queue', max_wait => '10 days'");
sql("SELECT mlint.rate_acquire('turn', 'k', 10)");
@line = line_up(take('turn') =~ s/60 s/10 days/r, qw(a b c d e));
my $large = start(take('turn') =~ s/:name/large/r =~ s/1, '60 s'/6, '10 days'/r, 'large');
wait_for_sleepers(6);
my $last = (line_up(take('turn') =~ s/60 s/10 days/r, 'last'))[0];
# Each way out: cancel, terminate, a client that is gone; in the middle and first.
sql("SELECT pg_cancel_backend(" . pid_of('b') . ")");
like((finish($line[1]))[2], qr/57014: canceling statement due to user request/, 'a waiter is cancelled at once');
sql("SELECT pg_terminate_backend(" . pid_of('d') . ")");
like((finish($line[3]))[2], qr/57P01: terminating connection/, '... another is terminated');
sql("SELECT pg_terminate_backend(" . pid_of('a') . ")");
isnt((finish($line[0]))[0], 0, '... and the first');
wait_for_sleepers(4, '... the others wait on');
sql("SELECT mlint.rate_override_set('turn', 'k', 'limit', rate => 36000, burst => 8)");
is((finish($_))[0], 0, 'the others pass when their time has come') for $line[2], $line[4], $large, $last;
is(order(), 'c e large last', '... in their order, whatever they cost');
sql("SELECT mlint.rate_override_drop('turn', 'k')");

# Who leaves wakes the next, who would find out by himself only at his next look.
clear();
rule('handover', 'token_bucket', 1, '1 hour', "burst => 100, strategy => 'queue', max_wait => '10 days'");
sql("SELECT mlint.rate_acquire('handover', 'k', 50)");
for my $round (1 .. 6)
{
	$first = start("SELECT mlint.rate_acquire('handover', 'k', 60)", 'ahead');
	wait_for_sleepers(1);
	my $next = start("SELECT mlint.rate_acquire('handover', 'k'); INSERT INTO passed (who) VALUES ('next')");
	wait_for_sleepers(2);
	sql("INSERT INTO passed (who, at) SELECT 'left', clock_timestamp() FROM pg_cancel_backend(" . pid_of('ahead') . ")");
	finish($_) for $first, $next;
}
is( sql("SELECT count(*), count(*) FILTER (WHERE took < '0.2 s') >= 4 FROM (SELECT who, at - lag(at) OVER (ORDER BY at) AS took FROM passed) p WHERE who = 'next'"),
	'6|t', 'who leaves the line wakes the next');

# ---- the time is over ----
rule('slow', 'token_bucket', 1, '5 s', "burst => 1, strategy => 'queue', max_wait => '300 ms'");
my $taken = "DO \$\$ BEGIN PERFORM mlint.rate_acquire('slow', 'k'); END \$\$;";
is( sql("$taken SELECT allowed, reason, retry_after BETWEEN '4.5 s' AND '5 s', delay, clock_timestamp() - statement_timestamp() < '0.25 s'"
		  . " FROM mlint.rate_acquire('slow', 'k')"),
	'f|limited|t|00:00:00|t', 'a wait that would be too long is refused at once');
$first = start("SELECT allowed, delay > '0.2 s' FROM mlint.rate_acquire('slow', 'k', 1, '30 s')", 'first');
wait_for_sleepers(1);
is(sql("SELECT allowed, retry_after > '5 s' FROM mlint.rate_acquire('slow', 'k', 1, '1 s')"),
	'f|t', 'those ahead in the line count');
is(sql("SELECT allowed FROM mlint.rate_acquire('slow', 'k', 1, '0')"), 'f', 'a max_wait of 0 waits for nothing');
is((finish($first))[1], 't|t', 'who has the time passes, and sees how long it took');
sql("SELECT mlint.rate_reset('slow')");
is((finish(start("$taken SELECT allowed, delay BETWEEN '4.5 s' AND '9 s' FROM mlint.rate_acquire('slow', 'k', 1, '10 s')")))[1],
	't|t', 'alone in the line one waits for the next token');
# The limit becomes stricter while somebody waits.
rule('stricter', 'fixed_window', 1, '10 min', "strategy => 'queue'");
sql("SELECT mlint.rate_acquire('stricter', 'k')");
$first = start("SELECT allowed FROM mlint.rate_acquire('stricter', 'k', 1, '20 min')", 'strict');
wait_for_sleepers(1);
sql("SELECT mlint.rate_rule_alter('stricter', per => '1000 days')");
is((finish($first))[1], 'f', 'who can no longer make it is refused before the time is over');

# ---- windows in a line ----
rule('window', 'fixed_window', 2, '1 s', "strategy => 'queue', max_wait => '10 s'");
clear();
$_->{run}->finish for map { start(take('window') =~ s/:name/x/r) } 1 .. 7;
is(sql("SELECT count(*) FROM passed"), 7, 'a line before a fixed window');
cmp_ok(sql("SELECT extract(epoch FROM max(at) - min(at)) FROM passed"), '>=', 1.9, '... passes window by window');
rule('sliding', 'sliding_window', 2, '1 s', "strategy => 'queue', max_wait => '10 s'");
clear();
$_->{run}->finish for map { start(take('sliding') =~ s/:name/x/r) } 1 .. 5;
is(sql("SELECT count(*) FROM passed"), 5, 'a line before a sliding window');
is( sql("SELECT bool_and(third - at >= '0.95 s') FROM (SELECT at, lead(at, 2) OVER (ORDER BY at) AS third FROM passed) p"),
	't', '... and never three in a second');

# ---- interrupts ----
rule('long', 'token_bucket', 1, '10 days', "strategy => 'queue', max_wait => '20 days'");
sql("SELECT mlint.rate_acquire('long', 'k')");
cmp_ok(seconds(sub { like((finish(start("SET statement_timeout = '200ms'; SELECT mlint.rate_acquire('long', 'k')")))[2],
					qr/57014: canceling statement due to statement timeout/, 'statement_timeout works') }),
	'<', 20, '... at once');
is( sql(<<'EOQ'), 'cancelled|t', 'a wait that is undone with its subtransaction leaves the line');
SET statement_timeout = '300ms';
CREATE TEMP TABLE said (what text);
DO $$
BEGIN
	PERFORM mlint.rate_acquire('long', 'k');
EXCEPTION WHEN query_canceled THEN
	INSERT INTO said VALUES ('cancelled');
END $$;
RESET statement_timeout;
SELECT mlint.rate_reset('long', 'k') \gset
SELECT what, (mlint.rate_acquire('long', 'k', 1, '0')).allowed FROM said;
EOQ
$first = start("SELECT mlint.rate_acquire('long', 'k')", 'gone');
wait_for_sleepers(1);
$first->{run}->kill_kill;
sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gone'");
wait_for_sleepers(0, 'a session that ends leaves');
sql("SELECT mlint.rate_reset('long', 'k')");
is(sql("SELECT allowed FROM mlint.rate_check('long', 'k')"), 't', '... nothing of the line');

# ---- changes while one waits ----
sub waiter
{
	my ($name) = @_;
	my $session = start("SELECT allowed, reason FROM mlint.rate_acquire('$name', 'k', 1, '20 days')", $name);
	wait_for_sleepers(1);
	return $session;
}
$first = waiter('long');
cmp_ok(seconds(sub { sql("SELECT mlint.rate_reset('long', 'k')"); is((finish($first))[1], 't|', 'a reset lets the first pass') }),
	'<', 20, '... at once');
$first = waiter('long');
sql("SELECT mlint.rate_reset('long')");
is((finish($first))[1], 't|', '... also a reset of the whole rule');
$first = waiter('long');
sql("SELECT mlint.rate_override_set('long', 'k', 'allow')");
is((finish($first))[1], 't|allowed', 'an override that allows lets it pass');
sql("SELECT mlint.rate_override_drop('long', 'k')");
$first = waiter('long');
sql("SELECT mlint.rate_override_set('long', 'k', 'deny', reason => 'abuse')");
is((finish($first))[1], 'f|abuse', 'one that denies ends the wait');
cmp_ok(seconds(sub { is(sql("SELECT allowed FROM mlint.rate_acquire('long', 'k', 1, '20 days')"), 'f', '... and nobody begins to wait') }),
	'<', 20, '... not for a moment');
sql("SELECT mlint.rate_override_drop('long', 'k')");
$first = waiter('long');
sql("SELECT mlint.rate_rule_drop('long')");
like((finish($first))[2], qr/42704: rate limit "long" does not exist/, 'a rule that is dropped is the usual error');
rule('impatient', 'token_bucket', 1, '10 days', "strategy => 'queue', max_wait => '20 days'");
sql("SELECT mlint.rate_acquire('impatient', 'k')");
$first = start("SELECT allowed FROM mlint.rate_acquire('impatient', 'k')", 'impatient');
wait_for_sleepers(1);
sql("SELECT mlint.rate_rule_alter('impatient', max_wait => '1 s')");
is((finish($first))[1], 'f', 'the max_wait of the rule is the one in force');
# The rule comes to see those who wait as others.
rule('scoped', 'token_bucket', 1, '10 days', "strategy => 'queue', max_wait => '20 days'");
sql("SELECT mlint.rate_acquire('scoped', 'k')");
$first = waiter('scoped');
sql("SELECT mlint.rate_rule_alter('scoped', scope => 'global')");
is((finish($first))[1], 't|', 'who is somebody else now goes by that');
sql("SELECT mlint.rate_rule_alter('scoped', scope => 'custom')");
sql("SELECT mlint.rate_reset('scoped')");
is(sql("SELECT allowed FROM mlint.rate_check('scoped', 'k')"), 't', '... and stands in the old line no more');

# ---- throttle ----
rule('throttle', 'token_bucket', 20, '1 s', "burst => 20, strategy => 'throttle', max_wait => '5 s'");
my @delays;
# A pause between two calls is one that need not be slept.
for my $try (1 .. 5)
{
	@delays = split /\n/,
	  sql("SELECT extract(milliseconds FROM (mlint.rate_acquire('throttle', 'k$try')).delay) FROM generate_series(1, 40)");
	last if (sort { $b <=> $a } @delays)[0] <= 70 && $delays[13] > 0 && $delays[30] > $delays[13];
}
is(scalar(grep { $_ == 0 } @delays[ 0 .. 9 ]), 10, 'throttle: no delay before half is used');
cmp_ok($delays[13], '>', 0, '... then some');
cmp_ok($delays[30], '>', $delays[13], '... that grows');
cmp_ok((sort { $b <=> $a } @delays)[0], '<=', 70, '... to no more than the pace of the rule, while there is no line');
rule('brake', 'token_bucket', 1, '1 hour', "burst => 4, strategy => 'throttle', max_wait => '2 hours'");
sql("SELECT mlint.rate_acquire('brake', 'k', 3)");
$first = start("SELECT mlint.rate_acquire('brake', 'k')", 'brake');
wait_for_sleepers(1, 'a caller is slowed down');
is(sql("SELECT remaining FROM mlint.rate_peek('brake', 'other')"), 3, '(a peek is as a check)');
is(sql("SELECT allowed FROM mlint.rate_peek('brake', 'k')"), 'f', '... with what it has taken');
sql("SELECT pg_cancel_backend(" . pid_of('brake') . ")");
like((finish($first))[2], qr/57014/, '... and is cancelled');
is(sql("SELECT allowed FROM mlint.rate_peek('brake', 'k')"), 't', '... which gives it back');
$first = start("SELECT mlint.rate_acquire('brake', 'k')", 'brake');
wait_for_sleepers(1);
sql("SELECT pg_terminate_backend(" . pid_of('brake') . ")");
finish($first);
is(sql("SELECT allowed FROM mlint.rate_peek('brake', 'k')"), 't', '... as does one that is terminated');
is(sql("SELECT allowed FROM mlint.rate_acquire('brake', 'k', 1, '0')"), 't', 'with a max_wait of 0 there is no slowing down');
is(sql("SELECT allowed FROM mlint.rate_acquire('brake', 'k', 1, '1 min')"), 'f', 'beyond its capacity it is a queue');

# ---- graceful ----
rule('graceful', 'token_bucket', 1, '1 hour', "burst => 5, strategy => 'graceful'");
is(sql("SELECT allowed, degraded, remaining, reason FROM mlint.rate_acquire('graceful', 'k', 3)"), 't|f|2|', 'graceful: passes');
is(sql("SELECT allowed, degraded, remaining, reason, retry_after FROM mlint.rate_acquire('graceful', 'k', 4)"),
	't|t|0|graceful|', '... also when there is too little, which it takes, and says so');
is(sql("SELECT allowed, degraded, remaining FROM mlint.rate_acquire('graceful', 'k', 1)"), 't|t|0', '... and when there is nothing');
sql("SELECT mlint.rate_override_set('graceful', 'k', 'deny')");
is(sql("SELECT allowed, degraded, reason FROM mlint.rate_acquire('graceful', 'k')"), 'f|f|denied', '... but whom an override denies');

# ---- leaky bucket ----
rule('leaky', 'leaky_bucket', 50, '1 s', "burst => 40, strategy => 'hard', max_wait => '10 s'");
clear();
my $began = sql('SELECT clock_timestamp()');
my @leaks = map {
	start("DO \$\$ BEGIN FOR i IN 1..5 LOOP PERFORM mlint.rate_acquire('leaky', 'k'); INSERT INTO passed (who) VALUES ('$_'); COMMIT; END LOOP; END \$\$")
} 1 .. 8;
is((finish($_))[2], '', 'a leaky bucket, eight sessions at once') for @leaks;
is(sql('SELECT count(*) FROM passed'), 40, '... all pass');
cmp_ok(sql("SELECT extract(epoch FROM max(at) - '$began') * 1000 FROM passed"), '>=', 39 * 20 - 5, '... spaced by the pace of the rule');
is( sql("SELECT bool_and(at - '$began' >= (n - 1) * interval '20 ms' - interval '5 ms')"
		  . ' FROM (SELECT at, row_number() OVER (ORDER BY at) AS n FROM passed) p'),
	't', '... none before its time');
rule('full', 'leaky_bucket', 1, '1 day', "burst => 3, strategy => 'hard', max_wait => '100 days'");
is(sql("SELECT allowed, delay FROM mlint.rate_acquire('full', 'k')"), 't|00:00:00', 'the first leaves at once');
@line = line_up("SELECT mlint.rate_acquire('full', 'k')", qw(l1 l2));
(undef, undef, $err) = $node->psql('postgres', "SET statement_timeout = '10 s'; SELECT mlint.rate_acquire('full', 'k')");
like($err, qr/rate limit "full" is exceeded/, 'a full bucket refuses, those in line counted');
sql("SELECT pg_cancel_backend(" . pid_of('l1') . ")");
finish($line[0]);
my ($third) = line_up("SELECT mlint.rate_acquire('full', 'k')", 'l3');
pass('... until one gives up its place');
(undef, undef, $err) = $node->psql('postgres', "SELECT mlint.rate_acquire('full', 'j', 1, '1 s')")
  for 1 .. 2;
like($err, qr/rate limit "full" is exceeded/, 'a departure after max_wait is a refusal');
sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name IN ('l2', 'l3')");
finish($_) for $line[1], $third;

# ---- statistics ----
rule('counted', 'token_bucket', 1, '2 s', "burst => 1, strategy => 'queue'");
sql("SELECT mlint.rate_acquire('counted', 'k') FROM generate_series(1, 4)");
is(sql("SELECT checks, allowed, refused, waited FROM mlint.stat_rate_limits WHERE rule = 'counted'"),
	'4|4|0|3', 'a call that waited counts as one check, and as allowed');

# ---- on a standby ----
rule('standby', 'token_bucket', 5, '1 s', "burst => 1, strategy => 'queue'");
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
is( $standby->safe_psql('postgres', "SELECT bool_and(allowed), max(delay) > '0.1 s' FROM (SELECT (mlint.rate_acquire('standby', 'k')).* FROM generate_series(1, 3)) a"),
	't|t', 'on a standby one waits as well');
is(sql("SELECT allowed, delay FROM mlint.rate_acquire('standby', 'k')"), 't|00:00:00', '... for that server\'s own state');
$standby->stop;

$node->stop;
done_testing();
