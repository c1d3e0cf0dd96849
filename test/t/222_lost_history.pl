# A database that goes on from an earlier moment: an asynchronous standby that
# had not got everything, a base backup, recovery to a point in time. It gives
# event ids again that receivers have seen, under other webhook-ids; what was
# pending at that moment is delivered, under the webhook-id that it had; what
# came later is not there.
use strict;
use warnings;

use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $receiver = MlintTest::Receiver->start;
my $primary = mlint_node('primary',
	allows_streaming => 1, has_archiving => 1,
	conf => "wal_receiver_status_interval = 1s\nautovacuum = off");

# Publish n events whose data nobody else's have; returns their ids.
my $published = 0;
sub burst
{
	my ($node, $n, $type) = @_;
	my $from = $published;

	$published += $n;
	return split /\n/, $node->safe_psql('postgres',
		"SELECT mlint.publish('$type', jsonb_build_object('n', $from + i)) FROM generate_series(1, $n) i");
}

sub arrived
{
	my ($path, $type) = @_;
	return grep { $_->{type} eq $type } map { JSON::PP::decode_json($_->{body}) } $receiver->requests($path);
}

sub wait_for_arrival
{
	my ($path, $type, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for("$n of $type arrive", sub {
		my %n = map { $_->{data}{n} => 1 } arrived($path, $type);
		return keys %n == $n;
	});
}

# The test's own way to copy a backup loses the modes of files.
sub from_backup
{
	my ($name, @options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init_from_backup($primary, 'base', @options);
	chmod 0600, $node->data_dir . '/mlint_master.key' or die $!;
	$node->append_conf('postgresql.conf', 'archive_mode = off');
	return $node;
}

# What is recorded is on disk, and shipped.
sub flush
{
	my ($node, $standby) = @_;

	wait_for_sql($node, 'outcomes are recorded', 'SELECT count(*) = 0 FROM mlint.in_flight()');
	$node->safe_psql('postgres', 'SELECT txid_current()');
	$node->wait_for_catchup($standby, 'replay', $node->lsn('insert')) if $standby;
}

create_destination($primary, 'ok', 'http', { url => $receiver->url('/ok') }, 'lost.*');
create_destination($primary, 'switch', 'http',
	{ url => $receiver->url('/switch'), retry => { initial_delay_ms => 20, max_delay_ms => 200, max_retries => 1000 },
		breaker => { threshold => 0 } }, 'pitr.*');
$primary->safe_psql('postgres', "SELECT mlint.secret_put('signing', 'first')");

# ---- 1. an asynchronous standby that is behind ----

$primary->backup('base');
my $standby = from_backup('standby', has_streaming => 1);
$standby->start;
burst($primary, 10, 'lost.before');
wait_for_arrival('/ok', 'lost.before', 10);
flush($primary, $standby);
$standby->stop;

# ---- 2. a moment to come back to, in mid-delivery ----

my @old = burst($primary, 5, 'pitr.delivered');
wait_for_arrival('/switch', 'pitr.delivered', 5);
flush($primary);
$receiver->control('down');
my @mid = burst($primary, 20, 'pitr.pending');
wait_for_sql($primary, 'they are pending',
	q{SELECT count(*) = 20 FROM mlint.deliveries d JOIN mlint.events e ON e.id = d.event_id
	WHERE e.type = 'pitr.pending' AND d.state IN ('pending', 'in_flight') AND d.attempts > 0});
my $later = $primary->safe_psql('postgres',
	"SELECT mlint.publish('pitr.scheduled', '{\"n\": -1}', deliver_at => now() + '1 hour')");
$primary->safe_psql('postgres', "SELECT pg_create_restore_point('mid')");
my ($xid, $time) = split /\|/, $primary->safe_psql('postgres', "SELECT xmin, clock_timestamp() FROM mlint.event WHERE id = $later");

# What becomes of it in the life that is to be undone.
$receiver->control('up');
wait_for_arrival('/switch', 'pitr.pending', 20);
my @undone = burst($primary, 200, 'lost.undone');
wait_for_arrival('/ok', 'lost.undone', 200);
$primary->safe_psql('postgres', "SELECT mlint.secret_put('signing', 'second')");
$primary->safe_psql('postgres', 'SELECT mlint.delivery_retry(' . "$later, 'switch')");
wait_for_arrival('/switch', 'pitr.scheduled', 1);
flush($primary);
my $wal = $primary->safe_psql('postgres', 'SELECT pg_walfile_name(pg_switch_wal())');
wait_for_sql($primary, 'the WAL is archived', "SELECT last_archived_wal >= '$wal' FROM pg_stat_archiver");
$primary->stop('immediate');

# ---- 3. the standby goes on ----

$standby->start;
$standby->promote;
wait_for_worker($standby, 'mlint dispatcher');
my @again = burst($standby, 300, 'lost.after');
wait_for_arrival('/ok', 'lost.after', 300);
my %undone = map { $_ => 1 } @undone;
cmp_ok(scalar(grep { $undone{$_} } @again), '>', 100, 'ids of lost events are given again');
$standby->safe_psql('postgres', "SELECT mlint.secret_put('signing', 'other')");
is($standby->safe_psql('postgres', 'SELECT coalesce(mlint.audit_verify(), 0)'), '0', 'its audit log holds');
$standby->stop;

# ---- 4. recovery to the moment ----

my $repeated = $receiver->count('/switch');
my $back = from_backup('back', has_restoring => 1, standby => 0);
$back->append_conf('postgresql.conf', "recovery_target_name = 'mid'\nrecovery_target_action = promote");
$back->start;
wait_for_sql($back, 'recovered', 'SELECT NOT pg_is_in_recovery()');
wait_for_worker($back, 'mlint dispatcher');
is($back->safe_psql('postgres', q{SELECT count(*) FROM mlint.events WHERE type = 'lost.undone'}), '0', 'what came later is not there');
wait_for_sql($back, 'what was pending is delivered',
	q{SELECT count(*) = 20 FROM mlint.deliveries d JOIN mlint.events e ON e.id = d.event_id
	WHERE e.type = 'pitr.pending' AND d.state = 'delivered'});
my $bodies = $receiver->events('/switch');
is(scalar(grep { $bodies->{$_}[0]{type} eq 'pitr.pending' } keys %$bodies), 20, '... under the webhook-ids that it had');
my %times;
$times{ $_->{type} }{ $_->{id} }++ for map { @$_ } values %$bodies;
is(join(' ', map { $times{'pitr.delivered'}{$_} } @old), '1 1 1 1 1', 'what was delivered by then is not sent again');
is($back->safe_psql('postgres', "SELECT state FROM mlint.deliveries WHERE event_id = $later"), 'pending', 'a scheduled event waits again');
is($back->safe_psql('postgres', "SELECT mlint.secret_get('signing')"), 'first', 'secrets are those of that moment');
@again = burst($back, 300, 'lost.back');
wait_for_arrival('/ok', 'lost.back', 300);
cmp_ok(scalar(grep { $undone{$_} } @again), '>', 100, 'ids of undone events are given again');
is($back->safe_psql('postgres', 'SELECT coalesce(mlint.audit_verify(), 0)'), '0', 'its audit log holds');
wait_for_sql($back, 'jobs run',
	q{SELECT mlint.job_run_now('event_retention'); SELECT max(started_at) > pg_postmaster_start_time() FROM mlint.job_runs WHERE name = 'event_retention' AND error IS NULL}, "\nt");
$back->stop;

# The moment, said in other ways.
for my $target ([ 'time', $time ], [ 'xid', $xid ])
{
	my ($by, $value) = @$target;
	my $node = from_backup("by_$by", has_restoring => 1, standby => 0);
	$node->append_conf('postgresql.conf', "recovery_target_$by = '$value'\nrecovery_target_action = promote");
	$node->start;
	wait_for_sql($node, "recovered by $by", 'SELECT NOT pg_is_in_recovery()');
	is($node->safe_psql('postgres', q{SELECT count(*) FILTER (WHERE type = 'lost.undone'), count(*) FILTER (WHERE type = 'pitr.pending') FROM mlint.events}),
		'0|20', '... what is there is what was there');
	is($node->safe_psql('postgres', "SELECT state FROM mlint.deliveries WHERE event_id = $later"), 'pending', '... the scheduled event is the last');
	wait_for_sql($node, '... and what was pending is delivered',
		q{SELECT count(*) = 20 FROM mlint.deliveries d JOIN mlint.events e ON e.id = d.event_id
		WHERE e.type = 'pitr.pending' AND d.state = 'delivered'});
	$node->stop;
}
is(scalar(grep { $_->[0]{type} eq 'pitr.pending' } values %{ $receiver->events('/switch') }), 20, 'each time under the webhook-ids that it had');

# ---- 5. the base backup without more ----

my $copy = from_backup('copy');
$copy->start;
burst($copy, 300, 'lost.copy');
wait_for_arrival('/ok', 'lost.copy', 300);
$copy->stop;

# ---- what a receiver sees of it all ----

for my $path ('/ok', '/switch')
{
	my $events = $receiver->events($path);
	my $json = JSON::PP->new->canonical;
	my @two = grep { my %b = map { $json->encode($_) => 1 } @{ $events->{$_} }; keys %b > 1 } keys %$events;
	is(scalar @two, 0, "$path: no webhook-id stands for two events");
}
my %arrived = map { $_->{data}{n} => 1 } map { JSON::PP::decode_json($_->{body}) } $receiver->requests;
is(scalar(grep { !$arrived{$_} } 1 .. $published), 0, "all $published events arrived");

done_testing();
