# Destinations that keep to a rate limit: at its pace, in their order, without
# holding up others, and without rewriting what waits.

use strict;
use warnings;

use JSON::PP ();
use List::Util qw(max min sum);
use Test::More;
use Time::HiRes qw(time clock_gettime CLOCK_MONOTONIC);

use MlintTest;

my $node = mlint_node('rate_destinations');
my $receiver = MlintTest::Receiver->start;

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub rule
{
	my ($name, $rate, $per, $burst, $more) = @_;
	sql("SELECT mlint.rate_rule_create('$name', 'token_bucket', $rate, '$per', $burst" . ($more ? ", $more" : '') . ')');
	return;
}

sub http
{
	my ($name, $options, @patterns) = @_;
	$options->{url} //= $receiver->url("/status/200?$name");
	create_destination($node, $name, 'http', $options, @patterns);
	return;
}

sub arrived { return $receiver->requests("/status/200?$_[0]"); }
sub count { return scalar(my @all = arrived($_[0])); }
sub publish_many { sql("SELECT count(mlint.publish('$_[0]', to_jsonb(n))) FROM generate_series(1, $_[1]) n"); return; }

# The data of what arrived, in its order.
sub data { return join ' ', map { JSON::PP::decode_json($_->{body})->{data} } arrived($_[0]); }

# Is there no interval in which more were delivered than a bucket admits? slack:
# what lies between permission and arrival may differ by so many seconds. A
# pause of the receiver makes that more, one of the dispatcher what lies between
# the beginning of an attempt and permission: more than was admitted shows in both.
sub keeps_to
{
	my ($name, @bucket) = @_;
	my @began = split /\n/,
	  sql("SELECT extract(epoch FROM first_attempt_at) FROM mlint.deliveries WHERE destination = '$name' ORDER BY 1");

	return fits(@bucket, "arrived at $name", map { $_->{time} } arrived($name))
	  || fits(@bucket, "left for $name", @began);
}

sub fits
{
	my ($rate, $burst, $slack, $what, @at) = @_;

	for my $i (0 .. $#at)
	{
		for my $j ($i .. $#at)
		{
			my $most = $burst + $rate * ($at[$j] - $at[$i] + $slack);
			next if $j - $i + 1 <= $most;
			diag(sprintf '%s: %d in %.3f s', $what, $j - $i + 1, $at[$j] - $at[$i]);
			return 0;
		}
	}
	return 1;
}

sub slurp
{
	my ($file, $from) = @_;
	open my $f, '<', $file or die "$file: $!";
	seek $f, $from, 0;
	local $/;
	return <$f> // '';
}

sub duration { my @at = map { $_->{time} } arrived($_[0]); return $at[-1] - $at[0]; }

# What pending_is() shows of rows: none of them was written again.
sub rows_of
{
	return sql("SELECT md5(string_agg(p.event_id || ' ' || p.ctid, ',' ORDER BY p.event_id)), count(*)"
		  . " FROM mlint.pending p JOIN mlint.destinations d ON d.id = p.destination_id WHERE d.name = '$_[0]'");
}

# ---- what is refused ----
my ($rc, $out, $err) = $node->psql('postgres',
	q{SELECT mlint.destination_create('x', 'http', '{"url": "https://ml.example.com", "rate_rule": "nothing"}')});
like($err, qr/ERROR:  rate limit "nothing" does not exist/, 'a rule that there is not is refused');
(undef, undef, $err) = $node->psql('postgres',
	q{SELECT mlint.destination_create('x', 'http', '{"url": "https://ml.example.com", "rate_identifier": "x"}')});
like($err, qr/ERROR:  destination "x" has a rate_identifier, but no rate_rule/, '... and an identifier without a rule');

# ---- the pace, and others ----
my @at;
rule('pace', 40, '1 s', 5);
http('limited', { rate_rule => 'pace' }, 'both');
http('free', {}, 'both');
publish_many('both', 160);
wait_for('a destination without a limit is not slowed', sub { count('free') == 160 });
wait_for('a limited destination gets all', sub { count('limited') == 160 });
my $last = (arrived('free'))[-1]{time};
cmp_ok(scalar(grep { $_->{time} <= $last } arrived('limited')), '<', 160, '... while the other is slowed down');
wait_for_sql($node, '... at the first attempt',
	"SELECT count(*), max(attempts) FROM mlint.deliveries WHERE destination = 'limited' AND state = 'delivered'", '160|1');
ok(keeps_to('limited', 40, 5, 0.1), '... never more than its limit admits');
cmp_ok(duration('limited'), '<', 2 * 155 / 40, '... and not much less');
wait_for_sql($node, '... and no failure',
	"SELECT failed, retried, queue_depth FROM mlint.stat_destinations WHERE destination = 'limited'", '0|0|0');

# ---- order ----
http('ordered', { rate_rule => 'pace', ordered => JSON::PP::true }, 'ordered');
publish_many('ordered', 60);
publish_many('ordered', 20);
wait_for('an ordered destination gets all', sub { count('ordered') == 80 });
is(data('ordered'), join(' ', 1 .. 60, 1 .. 20), '... in its order');
wait_for_sql($node, '... once each',
	"SELECT count(*), max(attempts) FROM mlint.deliveries WHERE destination = 'ordered' AND state = 'delivered'", '80|1');
ok(keeps_to('ordered', 40, 5, 0.1), '... within its limit');

# ---- a slow receiver ----
rule('singly', 20, '1 s', 1);
http('slow', { url => $receiver->url('/slow/400?slow'), rate_rule => 'singly' }, 'slow');
my $t0 = clock_gettime(CLOCK_MONOTONIC);
publish_many('slow', 30);
wait_for('a slow receiver gets all', sub { $receiver->count('/slow/400?slow') == 30 });
@at = map { $_->{time} } $receiver->requests('/slow/400?slow');
cmp_ok($at[-1] - $t0, '>', 29 / 20 - 0.1, '... no faster than its limit');
cmp_ok($at[-1] - $at[0], '<', 10, '... and no slower: one need not end for the next to pass');

# ---- one limit for two ----
http("shared$_", { rate_rule => 'pace', rate_identifier => 'both of them' }, 'shared') for 1 .. 2;
$t0 = clock_gettime(CLOCK_MONOTONIC);
publish_many('shared', 60);
wait_for('two destinations share a limit', sub { count('shared1') + count('shared2') == 120 });
@at = sort { $a <=> $b } map { $_->{time} } arrived('shared1'), arrived('shared2');
cmp_ok($at[-1] - $t0, '>', 110 / 40 - 0.1, '... with the same identifier');

rule('narrow', 20, '1 s', 1);
http("turn$_", { rate_rule => 'narrow', rate_identifier => 'all' }, 'turn') for 1 .. 3;
publish_many('turn', 30);
wait_for('three that share a narrow one', sub { sum(map { count("turn$_") } 1 .. 3) >= 30 });
cmp_ok(min(map { count("turn$_") } 1 .. 3), '>=', 4, '... have it in turn');
wait_for('... until the end', sub { sum(map { count("turn$_") } 1 .. 3) == 90 });

# ---- inside the database ----
sql('CREATE TABLE called (n int, at timestamptz)');
sql(q{CREATE FUNCTION note(event jsonb) RETURNS void LANGUAGE sql AS $$INSERT INTO called VALUES ((event->>'data')::int, clock_timestamp())$$});
create_destination($node, 'inside', 'function', { fn => 'public.note', rate_rule => 'pace', ordered => JSON::PP::true });
my $called_from = sql('SELECT clock_timestamp()');
publish_many('inside', 60);
wait_for_sql($node, 'a function destination gets all', 'SELECT count(*) FROM called', 60);
is(sql("SELECT array_agg(n ORDER BY at) = array_agg(n ORDER BY n), max(at) - '$called_from' > '1.2 s' FROM called"),
	't|t', '... in order and at the pace');

# ---- a backlog lies still ----
rule('trickle', 1, '10 days', 1);
http('still', { rate_rule => 'trickle' }, 'still');
publish_many('still', 6000);
wait_for_sql($node, 'all but the first wait', "SELECT queue_depth FROM mlint.stat_destinations WHERE destination = 'still'", 5999);
wait_for('... which has arrived', sub { count('still') == 1 });
my $rows = rows_of('still');
my $work = "SELECT sum(wakeups), sum(batches) FROM mlint.stat_workers WHERE kind = 'dispatcher'";
my ($wakeups, $batches) = split /\|/, sql($work);
my $id = sql("SELECT max(event_id) FROM mlint.deliveries WHERE destination = 'still'");
is(sql("SELECT mlint.event_wait($id, '12 s')"), 'f', 'nothing passes for twelve seconds');
my ($wakeups_after, $batches_after) = split /\|/, sql($work);
cmp_ok($wakeups_after - $wakeups, '<', 60, '... in which the dispatcher sleeps');
cmp_ok($batches_after - $batches, '<=', 2, '... and records nothing');
is(rows_of('still'), $rows, '... and what waits is not written again');

# ---- a rule that changes ----
sql("SELECT mlint.rate_rule_alter('trickle', rate => 1000, per => '1 s', burst => 10)");
wait_for('a change of the rule is noticed', sub { count('still') > 100 }, 20);

# ---- a restart in between ----
my ($pid) = worker_pids($node, 'mlint dispatcher');
kill 'TERM', $_ for worker_pids($node, 'mlint dispatcher');
wait_for_worker($node, 'mlint dispatcher', 'postgres', $pid);
wait_for_sql($node, 'a dispatcher that takes over goes on',
	"SELECT queue_depth FROM mlint.stat_destinations WHERE destination = 'still'", 0);
is(scalar(keys %{ $receiver->arrivals('/status/200?still') }), 6000, '... and all arrive');
my @old = worker_pids($node, 'mlint dispatcher');
kill 'TERM', @old;
wait_for_sql($node, 'no row of what waited was ever updated',
	"SELECT n_tup_upd, n_tup_ins >= 6000 FROM pg_stat_all_tables WHERE relid = 'mlint.pending'::regclass", '0|t');

# ---- a limit that cannot be asked ----
{
	wait_for_sql($node, 'both dispatchers are back',
		"SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'mlint dispatcher' AND pid NOT IN (" . join(', ', @old) . ')');
	my $before = join ' ', worker_pids($node, 'mlint dispatcher');
	my $log = -s $node->logfile;
	inject($node, 'rate-limit-ask', 'error');
	publish_many('still', 3);
	wait_for('a limit that cannot be asked is said in the log', sub {
			slurp($node->logfile, $log) =~ /destination "still" waits, since its rate limit "trickle" cannot be asked: injected error/ });
	publish_many('both', 3);
	wait_for('... others go on', sub { count('free') == 163 });
	wait_for('... and it is asked again', sub { count('still') >= 6003 }, 20);
	is(join(' ', worker_pids($node, 'mlint dispatcher')), $before, '... by the same dispatcher');
}

# ---- retries keep to the limit too ----
rule('retries', 5, '1 s', 1);
http('failing', { url => $receiver->url('/status/503?failing'), rate_rule => 'retries',
	retry => { strategy => 'immediate', max_retries => 9 }, breaker => { threshold => 0 } }, 'failing');
$t0 = clock_gettime(CLOCK_MONOTONIC);
$id = publish($node, 'failing', 1);
ok(wait_for_delivery($node, $id), 'a delivery that fails ten times');
delivery_is($node, $id, qr/^dead\|10\|503\|/, '... is dead');
my @tries = map { $_->{time} } $receiver->requests('/status/503?failing');
is(scalar(@tries), 10, '... after ten attempts');
cmp_ok($tries[-1] - $t0, '>', 9 / 5 - 0.1, '... each of which kept to the limit');

# ---- a rule that is in use ----
(undef, undef, $err) = $node->psql('postgres', "SELECT mlint.rate_rule_drop('pace')");
like($err, qr/ERROR:  cannot drop rate limit "pace", since destination "\w+" keeps to it/, 'a rule in use cannot be dropped');
sql(qq{SELECT mlint.destination_alter('$_', '{"rate_rule": null, "rate_identifier": null}')})
  for qw(limited ordered shared1 shared2 inside);
sql("SELECT mlint.rate_rule_drop('pace')");
publish_many('both', 50);
wait_for('without its limit a destination gets all at once', sub { count('limited') == 213 });
sql(q{SELECT mlint.destination_alter('free', '{"rate_rule": "retries"}')});
$t0 = clock_gettime(CLOCK_MONOTONIC);
publish_many('both', 4);
wait_for('a limit can be given later', sub { count('free') == 217 });
@at = map { $_->{time} } arrived('free');
cmp_ok($at[-1] - $t0, '>', 3 / 5 - 0.1, '... and holds from then on');

$node->stop;
done_testing();
