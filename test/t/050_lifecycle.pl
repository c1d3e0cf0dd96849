# Workers live well with whatever PostgreSQL does: extensions and databases
# that come and go, are renamed, moved and copied; settings that change;
# processes that are terminated; a server that has no room for more.
use strict;
use warnings;

use JSON::PP ();
use MlintTest;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $receiver = MlintTest::Receiver->start;
my $url = $receiver->url('/ok');

# Without shared_preload_libraries: what to do about it.
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;
my ($rc, $out, $err) = $node->psql('postgres', 'CREATE EXTENSION mlint');
isnt($rc, 0, 'CREATE EXTENSION without shared_preload_libraries fails');
my $conf = $node->data_dir . '/postgresql.conf';
like($err, qr/HINT: .*shared_preload_libraries = 'mlint'/,
	'... says what to set');
like($err, qr/\Q$conf\E.*restart the server/, '... and where');
$node->stop;
mlint_configure($node, '');
$node->start;

# Publish in a database and wait until it is delivered.
sub delivers
{
	my ($db, $name) = @_;
	my $event = $node->safe_psql($db, "SELECT mlint.publish('life.cycle', '{\"db\": \"$db\"}')");

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for_delivery($node, $event, $db)
		  && $node->safe_psql($db,
			"SELECT bool_and(state = 'delivered') FROM mlint.deliveries WHERE event_id = $event"
		  ) eq 't', $name);
}

sub life_destination
{
	my ($db, $name, $path) = @_;
	my $to = $receiver->url($path // '/ok');

	$node->safe_psql($db,
		"SELECT mlint.destination_create('$name', 'http', '{\"url\": \"$to\"}', '{life.*}')");
	return;
}

# Each kind of worker is there as often as it should be, and stays so.
sub workers
{
	my ($name, $db, $expected) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_sql($node, $name, <<"EOQ", $expected);
SELECT coalesce(string_agg(kind || ' ' || n, ', ' ORDER BY kind), '')
FROM (SELECT w.kind, count(*) AS n FROM mlint.stat_workers w
	JOIN pg_stat_activity a USING (pid)
	WHERE database = '$db' AND kind <> 'job' GROUP BY 1) w
EOQ
}

# CREATE EXTENSION, DROP EXTENSION, and again.
is(scalar worker_pids($node, 'mlint dispatcher'), 0,
	'without the extension there is no dispatcher');
$node->safe_psql('postgres', 'CREATE EXTENSION mlint');
life_destination('postgres', 'ok');
delivers('postgres', 'CREATE EXTENSION starts delivery, without a restart');
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION mlint; ROLLBACK');
delivers('postgres', 'a DROP EXTENSION that is rolled back changes nothing');
$node->safe_psql('postgres', 'DROP EXTENSION mlint');
wait_for_sql($node, 'DROP EXTENSION ends the workers',
	"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'mlint%' AND backend_type <> 'mlint launcher'");
$node->safe_psql('postgres', 'BEGIN; CREATE EXTENSION mlint; ROLLBACK');
$node->safe_psql('postgres', 'CREATE EXTENSION mlint');
life_destination('postgres', 'ok');
delivers('postgres', 'CREATE EXTENSION once more delivers once more');
$node->safe_psql('postgres', <<"EOQ");
BEGIN;
DROP EXTENSION mlint;
CREATE EXTENSION mlint;
SELECT mlint.destination_create('ok', 'http', '{"url": "$url"}', '{life.*}');
COMMIT;
EOQ
delivers('postgres', 'DROP and CREATE in one transaction');
$node->safe_psql('postgres', 'SELECT mlint.segment_begin()');
$node->safe_psql('postgres', 'DROP EXTENSION mlint; CREATE EXTENSION mlint');
life_destination('postgres', 'ok');
delivers('postgres', 'DROP EXTENSION takes later segments along');

# More databases.
$node->safe_psql('postgres', 'CREATE DATABASE one');
$node->safe_psql('one', 'CREATE EXTENSION mlint');
life_destination('one', 'ok', '/status/201');
delivers('one', 'a second database delivers');
delivers('postgres', '... beside the first');
workers('... with workers of its own', 'one', 'auditor 1, dispatcher 1, scheduler 1');

# Commands that want a database for themselves, while it delivers.
sub busy
{
	my ($db) = @_;
	$node->safe_psql($db,
		"SELECT count(mlint.publish('life.busy', '{}')) FROM generate_series(1, 2000)");
	return;
}

busy('one');
$node->safe_psql('postgres', 'ALTER DATABASE one RENAME TO two');
pass('ALTER DATABASE RENAME');
delivers('two', '... and it delivers under its new name');

my $place = PostgreSQL::Test::Utils::tempdir_short();
$node->safe_psql('postgres', "CREATE TABLESPACE place LOCATION '$place'");
busy('two');
$node->safe_psql('postgres', 'ALTER DATABASE two SET TABLESPACE place');
pass('ALTER DATABASE SET TABLESPACE');
delivers('two', '... and it delivers from there');

busy('two');
$node->safe_psql('postgres', 'CREATE DATABASE three TEMPLATE two');
pass('CREATE DATABASE TEMPLATE');
delivers('three', '... and the copy delivers');
delivers('two', '... and the original');
my (%ids, %shared);
for my $request ($receiver->requests('/status/201'))
{
	my $id = $request->{headers}{'webhook-id'};
	my $db = JSON::PP::decode_json($request->{body})->{data}{db} // next;
	$shared{$id} = 1 if ($ids{$id} //= $db) ne $db;
}
is(scalar keys %shared, 0, '... under webhook-ids of its own');

# Somebody who may not do it does not disturb anybody.
$node->safe_psql('postgres', 'CREATE ROLE stranger LOGIN CREATEDB');
workers('all workers are back', 'two', 'auditor 1, dispatcher 1, scheduler 1');
# Jobs come and go.
my $lasting = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE backend_type LIKE 'mlint%' AND backend_type <> 'mlint job' AND datname = 'two'";
my $before = $node->safe_psql('postgres', $lasting);
for my $command (
	'DROP DATABASE two',
	'ALTER DATABASE two RENAME TO mine',
	'ALTER DATABASE two SET TABLESPACE pg_default',
	'CREATE DATABASE mine TEMPLATE two',
	'DROP EXTENSION mlint')
{
	($rc, $out, $err) = $node->psql('two', $command,
		connstr => $node->connstr($command =~ /EXT/ ? 'two' : 'postgres') . ' user=stranger');
	like($err, qr/must be owner|permission denied/, "a stranger: $command is refused");
}
is($node->safe_psql('postgres', $lasting), $before, '... and the workers never noticed');

busy('three');
$node->safe_psql('postgres', 'DROP DATABASE three');
pass('DROP DATABASE');
wait_for_sql($node, '... and its workers are gone',
	"SELECT count(*) = 0 FROM mlint.worker_slots() WHERE kind <> 'launcher' AND database NOT IN (SELECT oid FROM pg_database)");
# One that fails for another reason brings the workers back.
my $session = $node->background_psql('two');
$session->query_safe('SELECT 1');
($rc, $out, $err) = $node->psql('postgres', 'DROP DATABASE two');
like($err, qr/being accessed by other users/,
	'a session of somebody prevents DROP DATABASE');
$session->quit;
delivers('two', '... and then it delivers as before');
$node->safe_psql('postgres', 'DROP DATABASE two');

# In template1: each new database has the extension, and delivers.
$node->safe_psql('template1', 'CREATE EXTENSION mlint');
wait_for_worker($node, 'mlint dispatcher', 'template1');
$node->safe_psql('postgres', 'CREATE DATABASE four');
life_destination('four', 'ok');
delivers('four', 'a database made from template1 with the extension');
$node->safe_psql('postgres', 'DROP DATABASE four');
$node->safe_psql('template1', 'DROP EXTENSION mlint');

# COMMIT PREPARED.
$node->safe_psql('postgres', <<'EOQ');
BEGIN;
SELECT mlint.publish('life.prepared', '{}');
PREPARE TRANSACTION 'p';
EOQ
delivers('postgres', 'an event beside a prepared transaction');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM mlint.deliveries WHERE event_type = 'life.prepared'"),
	0, 'what is only prepared is not delivered');
$node->safe_psql('postgres', "COMMIT PREPARED 'p'");
# That wakes nobody; a minute later, or with the next event, it goes.
delivers('postgres', 'an event after COMMIT PREPARED');
wait_for_sql($node, 'COMMIT PREPARED is delivered',
	"SELECT count(*) = 1 FROM mlint.deliveries WHERE event_type = 'life.prepared' AND state = 'delivered'");

# mlint.dispatchers changes while events flow. Whoever has to leave finishes
# what it has begun.
my %paths = map { ("lane$_" => "/status/20$_") } 2 .. 5;
life_destination('postgres', $_, $paths{$_}) for sort keys %paths;
for my $dispatchers (3, 2, 1, 4)
{
	my $flowed = $node->safe_psql('postgres', 'SELECT last_value FROM mlint.event_id');
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		my ($status) = $node->psql('postgres', <<'EOQ');
DO $$ BEGIN
	FOR i IN 1 .. 300 LOOP
		PERFORM mlint.publish('life.flow', '{}') FROM generate_series(1, 5);
		COMMIT;
		PERFORM pg_sleep(0.003);
	END LOOP;
END $$
EOQ
		POSIX::_exit($status);
	}
	wait_for_sql($node, "events flow, before mlint.dispatchers = $dispatchers",
		"SELECT last_value > $flowed + 200 FROM mlint.event_id");
	$node->safe_psql('postgres',
		"ALTER SYSTEM SET mlint.dispatchers = $dispatchers");
	$node->reload;
	workers("mlint.dispatchers = $dispatchers",
		'postgres', "auditor 1, dispatcher $dispatchers, scheduler 1");
	waitpid $pid, 0;
	is($?, 0, '... events flowed all the time');
}
wait_for_sql($node, '... and all is delivered',
	"SELECT count(*) = 0 FROM mlint.deliveries WHERE state <> 'delivered'");
for my $path ('/ok', map { $paths{$_} } sort keys %paths)
{
	my $times = $receiver->arrivals($path, qr/life\.flow/);
	is(scalar keys %$times, 6000, "$path: every event arrived");
	is(scalar(grep { $_ > 1 } values %$times), 0, "$path: none arrived twice");
}

# What runs SQL has a dispatcher to itself, lane 0.
workers('no lane 0 without a destination for it',
	'postgres', 'auditor 1, dispatcher 4, scheduler 1');
$node->safe_psql('postgres', <<"EOQ");
CREATE FUNCTION shape(event jsonb) RETURNS jsonb LANGUAGE sql AS \$\$
	SELECT jsonb_build_object('shaped', event->'type')
\$\$;
SELECT mlint.destination_create('shaped', 'http',
	'{"url": "@{[ $receiver->url('/status/206') ]}", "transform": "public.shape"}', '{life.*}');
EOQ
delivers('postgres', 'a destination with a transform');
like(($receiver->requests('/status/206'))[0]{body},
	qr/^\{"shaped": ?"life.cycle"\}$/, '... that shapes the body');
is( $node->safe_psql('postgres',
		"SELECT string_agg(lane::text, ',' ORDER BY lane) FROM mlint.stat_workers WHERE kind = 'dispatcher'"
	),
	'0,1,2,3,4',
	'... is served by lane 0');
$node->safe_psql('postgres', 'ALTER SYSTEM SET mlint.dispatchers = 1');
$node->reload;
workers('... and that stays', 'postgres', 'auditor 1, dispatcher 2, scheduler 1');

# A template that nobody may connect to: nor do the workers, once they have
# noticed. ALTER DATABASE itself does not tell them.
$node->safe_psql('postgres', 'CREATE DATABASE pattern');
$node->safe_psql('pattern', 'CREATE EXTENSION mlint');
life_destination('pattern', 'ok');
delivers('pattern', 'a database that becomes a template');
$node->safe_psql('postgres', 'ALTER DATABASE pattern ALLOW_CONNECTIONS false');
$node->safe_psql('postgres', 'CREATE DATABASE printed TEMPLATE pattern');
wait_for_sql($node, 'closed to connections, it is left by the workers',
	"SELECT count(*) = 0 FROM mlint.stat_workers WHERE database = 'pattern'");
delivers('printed', '... and its copy delivers');
$node->safe_psql('postgres', 'DROP DATABASE printed');
$node->safe_psql('postgres', 'CREATE DATABASE printed TEMPLATE pattern');
delivers('printed', '... and the next');
$node->safe_psql('postgres', "DROP DATABASE $_") for 'printed', 'pattern';

# Whoever is terminated comes back, once.
for my $type ('mlint auditor', 'mlint dispatcher', 'mlint scheduler',
	'mlint launcher')
{
	my $pid = wait_for_worker($node, $type);
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	wait_for_worker($node, $type, undef, $pid);
	workers("$type is terminated, and comes back",
		'postgres', 'auditor 1, dispatcher 2, scheduler 1');
	delivers('postgres', '... and it delivers');
}
my $sql_lane = "SELECT pid FROM mlint.stat_workers WHERE kind = 'dispatcher' AND lane = 0";
my $scheduler = wait_for_worker($node, 'mlint scheduler');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($scheduler)");
wait_for_worker($node, 'mlint scheduler', undef, $scheduler);
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM ($sql_lane) d");
workers('... lane 0 too, when the scheduler is another by then',
	'postgres', 'auditor 1, dispatcher 2, scheduler 1');
wait_for_sql($node, 'there are two of nobody', <<'EOQ', 'mlint auditor 1, mlint dispatcher 2, mlint launcher 1, mlint scheduler 1');
SELECT string_agg(backend_type || ' ' || n, ', ' ORDER BY backend_type)
FROM (SELECT backend_type, count(*) AS n FROM pg_stat_activity
	WHERE backend_type LIKE 'mlint%' AND backend_type <> 'mlint job' GROUP BY 1) a
EOQ

# One that fails whenever it starts is not started again and again.
my $log_offset = -s $node->logfile;
$node->safe_psql('postgres', <<'EOQ');
ALTER TABLE mlint.log_cursor RENAME TO hidden;
SELECT pg_terminate_backend(pid) FROM mlint.stat_workers
WHERE kind = 'dispatcher' AND lane = 1;
EOQ
sub failures
{
	return
	  map { my ($h, $m, $s) = /(\d\d):(\d\d):(\d\d\.\d+)/; $h * 3600 + $m * 60 + $s }
	  grep { /ERROR:  relation "mlint.log_cursor" does not exist/ }
	  split /\n/, slurp_file($node->logfile, $log_offset);
}
wait_for('a dispatcher fails at its start, repeatedly',
	sub { my @all = failures(); @all >= 4 });
my @at = failures();
cmp_ok(($at[3] - $at[1] + 86400) % 86400, '>=', 4, '... and less and less often');
$node->safe_psql('postgres', 'ALTER TABLE mlint.hidden RENAME TO log_cursor');
delivers('postgres', '... until it can');

$node->stop;

# No room for more processes: one warning that says what to raise, and they
# start when there is room. (One is logical replication's launcher.)
$node = mlint_node('narrow', conf => "max_worker_processes = 7\n");
life_destination('postgres', 'ok');
delivers('postgres', 'seven processes are enough for one database');
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION mlint');
life_destination('other', 'ok');
sub warnings
{
	return scalar(() = slurp_file($node->logfile) =~
		  /WARNING:  mlint cannot start a worker for database \d+: all of max_worker_processes are taken\n.*HINT:  Raise max_worker_processes/g);
}
wait_for('with max_worker_processes taken there is a warning',
	sub { warnings() > 0 });
delivers('postgres', '... and who has processes goes on');
my $event = $node->safe_psql('other', "SELECT mlint.publish('life.later', '{}')");
is($node->safe_psql('other', "SELECT mlint.event_wait($event, '6 s')"),
	'f', '... who has none waits');
is(warnings(), 1, '... and there is no second warning');
$node->safe_psql('postgres', 'DROP EXTENSION mlint');
ok(wait_for_delivery($node, $event, 'other'), '... until there is room');

$node->stop;

# A job that finds no process has not failed, and runs when there is one; what
# asks for it meanwhile is one request.
$node = mlint_node('jobs', conf => "max_worker_processes = 5\n");
sub job { return $node->safe_psql('postgres', "SELECT $_[0] FROM mlint.job WHERE name = 'event_retention'"); }
$node->safe_psql('postgres', "SELECT mlint.job_run_now('event_retention')");
wait_for('a job that finds no process: a warning says so', sub {
		slurp_file($node->logfile) =~ /WARNING:  mlint cannot start a worker for a job: all of max_worker_processes are taken/ });
wait_for('... it has not failed, and is due at once',
	sub { job("failures = 0 AND started_at IS NULL AND next_run_at < clock_timestamp() + '10 s'") eq 't' });
$node->append_conf('postgresql.conf', "max_worker_processes = 24\nmlint.job_workers = 1\n");
$node->restart;
wait_for_sql($node, '... with more of them it runs', "SELECT failures FROM mlint.jobs WHERE name = 'event_retention' AND last_error IS NULL AND last_finished_at IS NOT NULL", 0);
$node->safe_psql('postgres', "INSERT INTO mlint.job (name, command, every) VALUES ('sleeps', 'SELECT pg_sleep(3600)', '1 day')");
$node->safe_psql('postgres', "SELECT mlint.job_run_now('sleeps')");
wait_for_sql($node, 'a job that takes the only place', "SELECT running FROM mlint.jobs WHERE name = 'sleeps'");
my $runs = $node->safe_psql('postgres', 'SELECT coalesce(max(id), 0) FROM mlint.job_run');
$node->safe_psql('postgres', "SELECT mlint.job_run_now(name) FROM unnest(ARRAY['event_retention', 'sleeps']) name, generate_series(1, 100)");
wait_for_sql($node, '... what is asked for meanwhile is one request each',
	"SELECT string_agg(n, ' ') FROM (SELECT j.name || count(*) AS n FROM mlint.job_request r JOIN mlint.job j ON j.id = r.job_id WHERE j.name IN ('event_retention', 'sleeps') GROUP BY j.name ORDER BY 1) x",
	'event_retention1 sleeps1');
$node->safe_psql('postgres', "UPDATE mlint.job SET command = 'SELECT' WHERE name = 'sleeps'; SELECT pg_terminate_backend(pid) FROM mlint.stat_workers WHERE kind = 'job'");
wait_for_sql($node, '... and is done when there is room',
	"SELECT count(DISTINCT j.name) FROM mlint.job_run r JOIN mlint.job j ON j.id = r.job_id WHERE r.id > $runs AND j.name IN ('event_retention', 'sleeps')", 2);
$node->stop;
done_testing();
