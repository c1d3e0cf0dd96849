# A streaming standby: no workers, readable views, no publishing; when it is
# promoted it delivers what is left, and with a synchronous standby nothing
# that was committed is lost.
use strict;
use warnings;

use JSON::PP ();
use MlintTest;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $receiver = MlintTest::Receiver->start;
my $url = $receiver->url('/switch');
my $primary = mlint_node('primary', allows_streaming => 1, conf => <<'EOC');
log_statement = none
wal_receiver_status_interval = 1s
hot_standby_feedback = on
EOC

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;

$primary->safe_psql('postgres', <<"EOQ");
CREATE TABLE truth (event_id bigint PRIMARY KEY);
SELECT mlint.destination_create('switch', 'http',
	'{"url": "$url", "retry": {"initial_delay_ms": 20, "max_retries": 1000, "max_delay_ms": 200},
	  "breaker": {"threshold": 0}}', '{standby.*}');
EOQ
my $event = $primary->safe_psql('postgres', <<'EOQ');
INSERT INTO truth SELECT mlint.publish('standby.first', '{"n": 1}') RETURNING event_id
EOQ
ok(wait_for_delivery($primary, $event), 'the primary delivers');
# Outcomes are committed asynchronously: nothing else would send them now.
$primary->safe_psql('postgres', 'SELECT txid_current()');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

is( $standby->safe_psql('postgres', <<'EOQ'),
SELECT (SELECT count(*) FROM mlint.destinations),
	(SELECT count(*) FROM mlint.events), (SELECT count(*) FROM mlint.dead_letters),
	(SELECT string_agg(state, ',') FROM mlint.deliveries),
	(SELECT count(*) FROM mlint.stat_destinations), (SELECT count(*) > 0 FROM mlint.jobs),
	(SELECT count(*) FROM mlint.stat_workers)
EOQ
	'1|1|0|delivered|1|t|0',
	'the views can be read on a standby');
is(scalar worker_pids($standby, 'mlint'), 0, 'no worker runs on a standby');
for my $call (
	"mlint.publish('standby.no', '{}')",
	"mlint.send('switch', 'standby.no', '{}')",
	"mlint.destination_drop('switch')")
{
	my ($rc, $out, $err) = $standby->psql('postgres', "SELECT $call");
	isnt($rc, 0, "$call is refused on a standby");
	like($err, qr/cannot execute .* during recovery|cannot execute .* read-only/,
		'... and says why');
}
ok($standby->safe_psql('postgres', "SELECT mlint.event_wait($event, '5 s')") eq 't',
	'event_wait() works on a standby');

# Synchronous replication, and publishers.
$primary->safe_psql('postgres', <<'EOQ');
ALTER SYSTEM SET synchronous_standby_names = '*';
SELECT pg_reload_conf();
EOQ
wait_for_sql($primary, 'the standby is synchronous',
	"SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'");

# Each publisher prints the ids of what it knows to be committed.
my $dir = PostgreSQL::Test::Utils::tempdir();
my @children;
for my $n (1 .. 3)
{
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		open my $known, '>', "$dir/known.$n" or POSIX::_exit(1);
		$known->autoflush(1);
		until (-e "$dir/stop")
		{
			my ($rc, $out) = eval {
				$primary->psql('postgres', <<'EOQ') };
INSERT INTO truth SELECT mlint.publish('standby.load', '{"n": 2}') RETURNING event_id
EOQ
			last if $@ || $rc != 0;
			print $known "$out\n";
		}
		POSIX::_exit(0);
	}
	push @children, $pid;
}
wait_for('deliveries go on', sub { $receiver->count('/switch') > 50 });

# The receiver goes down: what follows is pending, or not even read.
$receiver->control('down');
wait_for_sql($primary, 'events are pending',
	"SELECT count(*) > 20 FROM mlint.deliveries WHERE state IN ('pending', 'in_flight')");

# The primary dies in the middle of it.
$primary->stop('immediate');
append_to_file("$dir/stop", '');
waitpid $_, 0 for @children;
$standby->promote;
$receiver->control('up');
$standby->safe_psql('postgres', <<'EOQ');
ALTER SYSTEM SET synchronous_standby_names = '';
SELECT pg_reload_conf();
EOQ
wait_for_worker($standby, 'mlint dispatcher');
pass('workers start on the new primary');
my $last = $standby->safe_psql('postgres', <<'EOQ');
INSERT INTO truth SELECT mlint.publish('standby.last', '{"n": 3}') RETURNING event_id
EOQ
ok(wait_for_delivery($standby, $last), 'the new primary publishes and delivers');
wait_for(
	'what was pending is delivered by the new primary',
	sub {
		$standby->safe_psql('postgres', <<'EOQ') eq '0';
SELECT count(*) FROM mlint.deliveries WHERE state <> 'delivered'
EOQ
	},
	180);

my @known = ($event, $last, map { split /\n/, slurp_file("$dir/known.$_") } 1 .. 3);
my %truth = map { $_ => 1 } split /\n/,
  $standby->safe_psql('postgres', 'SELECT event_id FROM truth');
my (%arrived, %ids);
for my $request ($receiver->requests('/switch'))
{
	my $id = JSON::PP::decode_json($request->{body})->{id};
	$arrived{$id} = 1;
	$ids{$id}{ $request->{headers}{'webhook-id'} } = 1;
}
cmp_ok(scalar @known, '>', 50, 'there was load');
is_deeply([ grep { !$truth{$_} } @known ],
	[], 'what was acknowledged is on the new primary');
is_deeply([ grep { !$arrived{$_} } keys %truth ],
	[], 'every committed event arrived');
is_deeply([ grep { !$truth{$_} } keys %arrived ],
	[], 'nothing arrived that the new primary does not have');
is_deeply([ grep { keys %{ $ids{$_} } > 1 } keys %ids ],
	[], 'the new primary uses the same webhook-ids');

$standby->stop;
done_testing();
