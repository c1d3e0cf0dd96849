# What commits is delivered and what rolls back never leaves, while
# dispatchers, the launcher and the whole server are killed at random.
#
# Publishers note each event that they publish in a table, in the same
# transaction: in the end that table is the truth, also about transactions of
# which a client never heard whether they committed. MLINT_SEED repeats a run.
use strict;
use warnings;

use JSON::PP ();
use MlintTest;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $publishers = 4;
my $seconds = $ENV{MLINT_CRASH_SECONDS} // 30;
my $seed = $ENV{MLINT_SEED} // time * 1000 % 1_000_000;

note "MLINT_SEED=$seed";
srand $seed;

my $receiver = MlintTest::Receiver->start;
my $node = mlint_node('main', conf => <<'EOC');
restart_after_crash = on
log_statement = none
fsync = on
wal_writer_delay = 10s
mlint.dispatchers = 2
EOC

# A destination that always answers, one that fails each event once, one in
# order, one that runs a function: which must be exactly once.
my ($ok, $flaky, $ordered) =
  map { $receiver->url($_) } '/ok', '/flaky?fail=1', '/status/200';
$node->safe_psql('postgres', <<"EOQ");
CREATE TABLE truth (event_id bigint PRIMARY KEY, synchronous bool);
CREATE TABLE counted (event_id bigint, type text);
CREATE FUNCTION count_event(event jsonb) RETURNS void LANGUAGE sql AS \$\$
	INSERT INTO public.counted VALUES ((event->>'id')::bigint, event->>'type')
\$\$;
CREATE FUNCTION say(synchronous bool, fate text) RETURNS void LANGUAGE sql AS \$\$
	INSERT INTO truth SELECT mlint.publish('crash.' || fate,
		jsonb_build_object('fate', fate, 'nonce', gen_random_uuid())), synchronous
\$\$;
SELECT mlint.destination_create('ok', 'http', '{"url": "$ok"}', '{crash.*}');
SELECT mlint.destination_create('flaky', 'http',
	'{"url": "$flaky", "retry": {"initial_delay_ms": 20, "max_retries": 100},
	  "breaker": {"threshold": 0}}', '{crash.*}');
SELECT mlint.destination_create('ordered', 'http',
	'{"url": "$ordered", "ordered": true, "retry": {"initial_delay_ms": 20},
	  "breaker": {"threshold": 0}}', '{crash.commit}');
SELECT mlint.destination_create('counted', 'function', '{"fn": "public.count_event"}',
	'{crash.*}');
EOQ

# What one session does; sessions are cut off in the middle at every crash.
sub script
{
	my ($synchronous) = @_;
	my $setting = $synchronous ? 'on' : 'off';
	my $say = "SELECT say($synchronous,";
	my @steps = (
		"$say 'commit');\n",
		"BEGIN; $say 'commit') FROM generate_series(1, 20); COMMIT;\n",
		"BEGIN; $say 'rollback') FROM generate_series(1, 3); ROLLBACK;\n",
		"BEGIN; $say 'commit'); SAVEPOINT s; $say 'rollback');"
		  . " ROLLBACK TO s; $say 'commit'); COMMIT;\n",
		"BEGIN; SAVEPOINT s; $say 'commit'); RELEASE s; COMMIT;\n",
		"BEGIN; $say 'late'); SELECT pg_sleep(1.5); $say 'late'); COMMIT;\n",
		"BEGIN; $say 'rollback'); SELECT pg_sleep(0.3); ROLLBACK;\n",
		"BEGIN; $say 'rollback'); SELECT 1/0; COMMIT;\n");

	return "SET synchronous_commit = $setting;\n" . join '',
	  map { $steps[ rand @steps ] } 1 .. 12;
}

# psql's exit status and output, whatever happens to the server meanwhile: a
# psql that cannot connect may be gone before it is asked.
sub try
{
	my ($sql) = @_;
	my ($rc, $out) = eval { $node->psql('postgres', $sql, on_error_stop => 0) };

	return $@ ? (2, '') : ($rc, $out);
}

my $stop = "$PostgreSQL::Test::Utils::tmp_check/stop_publishing_$$";
my @children;
for my $n (1 .. $publishers)
{
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		srand $seed + $n;
		until (-e $stop)
		{
			# A server that is down is all right, and so is to lose it.
			try(script($n % 2 ? 'true' : 'false'));
			usleep(20_000);
		}
		POSIX::_exit(0);
	}
	push @children, $pid;
}

# Pids of our workers, without asking the server, which may be down.
sub pids_of
{
	my ($title) = @_;
	my @lines = grep { /postgres: .*mlint $title/ } `ps -eo pid=,args=`;
	my ($postmaster) =
	  slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	my %ours = map { $_ => 1 } split ' ', `ps -o pid= --ppid $postmaster`;
	return grep { $ours{$_} } map { /^\s*(\d+)/ } @lines;
}

my %done;
my %actions = (
	'kill -9 of a dispatcher' => sub {
		my @pids = pids_of('dispatcher');
		return 0 unless @pids;
		kill 'KILL', $pids[ rand @pids ];
		return 1;
	},
	'pg_terminate_backend of a dispatcher' => sub {
		my ($rc) = try(<<'EOQ');
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type LIKE 'mlint dispatcher%' ORDER BY random() LIMIT 1
EOQ
		return $rc == 0;
	},
	'pg_terminate_backend of the launcher' => sub {
		my ($rc) = try(<<'EOQ');
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'mlint launcher'
EOQ
		return $rc == 0;
	},
	'an immediate stop' => sub {
		$node->stop('immediate');
		$node->start;
		return 1;
	},
	'a reload' => sub {
		my ($rc) = try('SELECT pg_reload_conf()');
		return $rc == 0;
	});
my @names = sort keys %actions;

my $end = time + $seconds;
my $n = 0;
while (time < $end)
{
	# Each at least once, and then whatever comes.
	my $name = $n < @names ? $names[$n] : $names[ rand @names ];
	my $did = $actions{$name}->();
	$n++ if $did || $n >= @names;
	$done{$name} += $did ? 1 : 0;
	usleep(200_000 + rand 1_000_000);
}
append_to_file($stop, '');
waitpid $_, 0 for @children;
unlink $stop;
ok($done{$_}, "$_, " . ($done{$_} // 0) . ' times') for @names;

# Now let all of it arrive. A retry of the lane's own may be a minute away:
# deliveries that were under way when their dispatcher died are parked so.
wait_for_sql($node, 'the server is up', 'SELECT true');
my ($committed, $synchronous, $in_order) = split /\|/, $node->safe_psql(
	'postgres', <<'EOQ');
SELECT count(*), count(*) FILTER (WHERE synchronous),
	count(*) FILTER (WHERE e.type = 'crash.commit')
FROM truth LEFT JOIN mlint.events e ON e.id = event_id
EOQ
note "$committed committed, of which $synchronous synchronously";
cmp_ok($committed, '>', 200, 'there was something to deliver');
$node->safe_psql('postgres', "SELECT mlint.publish('wake', '{}')");
wait_for(
	'nothing is left to deliver',
	sub {
		my ($rc, $left) = try(<<'EOQ');
SELECT count(*) FROM mlint.deliveries WHERE state IN ('pending', 'in_flight')
EOQ
		return $rc == 0 && $left eq '0';
	},
	180);
is( $node->safe_psql('postgres', <<'EOQ'),
SELECT destination, state, count(*) = CASE destination
		WHEN 'ordered' THEN (SELECT count(*) FROM truth JOIN mlint.events ON id = event_id
			WHERE type = 'crash.commit')
		ELSE (SELECT count(*) FROM truth) END
FROM mlint.deliveries GROUP BY 1, 2 ORDER BY 1, 2
EOQ
	"counted|delivered|t\nflaky|delivered|t\nok|delivered|t\nordered|delivered|t",
	'mlint.deliveries: each event delivered to each destination, none dead');

my %truth = map { $_ => 1 } split /\n/,
  $node->safe_psql('postgres', 'SELECT event_id FROM truth');
my %late = map { $_ => 1 } split /\n/,
  $node->safe_psql('postgres',
	"SELECT id FROM mlint.events WHERE type <> 'crash.commit'");
my %bodies;
for my $path ('/ok', '/flaky?fail=1', '/status/200')
{
	my (%arrived, %ids, @rolled_back, @changed, @renamed);

	for my $request ($receiver->requests($path))
	{
		my $webhook_id = $request->{headers}{'webhook-id'};
		my $event = JSON::PP::decode_json($request->{body});

		push @rolled_back, $event->{id} if $event->{data}{fate} eq 'rollback';
		push @changed, $event->{id}
		  if ($bodies{ $event->{id} } //= $request->{body}) ne $request->{body};
		push @renamed, $event->{id}
		  if ($ids{ $event->{id} } //= $webhook_id) ne $webhook_id;
		$arrived{ $event->{id} }++;
	}
	my @expected =
	  $path eq '/status/200' ? grep { !$late{$_} } keys %truth : keys %truth;
	my @missing = grep { !$arrived{$_} } @expected;
	my @invented = grep { !$truth{$_} } keys %arrived;

	is("@missing", '', "$path: every committed event arrived");
	is("@rolled_back", '', "$path: no event arrived that was rolled back");
	is("@invented", '', "$path: none that the database does not have");
	is("@changed", '', "$path: repeats have the same body");
	is("@renamed", '', "$path: repeats have the same webhook-id");
	my %seen;
	$seen{$_}++ for values %ids;
	is(scalar(grep { $_ > 1 } values %seen),
		0, "$path: no two events have the same webhook-id");
	my $repeats = $receiver->count($path) - keys %arrived;
	note "$path: $repeats repeats";
}

is( $node->safe_psql('postgres', <<'EOQ'),
SELECT count(*), count(DISTINCT event_id),
	count(*) FILTER (WHERE t.event_id IS NULL)
FROM counted c LEFT JOIN truth t USING (event_id)
EOQ
	"$committed|$committed|0",
	'the function driver: each event exactly once, and no other');

is( $node->safe_psql('postgres', 'SELECT count(*) FROM mlint.pending'),
	0, 'nothing stays behind in mlint.pending');

# An asynchronous commit is not on disk when it becomes visible. What has left
# is: right after it arrived, the server goes down.
my $lost = 0;
for (1 .. 5)
{
	my $id = $node->safe_psql('postgres',
		'SET synchronous_commit = off; SELECT mlint.publish(\'crash.late\', \'{"fate": "commit"}\')');
	wait_for("event $id arrives", sub {
		grep { $_->{body} =~ /"id":$id,/ } $receiver->requests('/ok') });
	$node->stop('immediate');
	$node->start;
	$lost++ if $node->safe_psql('postgres',
		"SELECT count(*) FROM mlint.events WHERE id = $id") eq '0';
}
is($lost, 0, 'no event arrived that a crash then undid');

$node->stop;
done_testing();
