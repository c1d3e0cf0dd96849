# Retention drops whole finished segments of the log and nothing else; jobs
# run, fail, are put off and come back; and a snapshot held for long makes
# nothing grow.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $receiver = MlintTest::Receiver->start;
my ($ok, $switch) = map { $receiver->url($_) } '/ok', '/switch';
my $node = mlint_node('main', conf => <<'EOC');
log_statement = none
autovacuum = off
EOC

# The job would come in between.
$node->safe_psql('postgres', <<"EOQ");
UPDATE mlint.job SET enabled = false;
SELECT mlint.destination_create('ok', 'http', '{"url": "$ok"}', '{plain}');
SELECT mlint.destination_create('switch', 'http',
	'{"url": "$switch", "retry": {"strategy": "linear", "initial_delay_ms": 100, "max_delay_ms": 100, "max_retries": 1000},
	  "breaker": {"threshold": 0}}', '{switched}');
EOQ

sub segments
{
	return $node->safe_psql('postgres', <<'EOQ');
SELECT string_agg(s.segment::text, ',' ORDER BY s.segment)
FROM mlint.segment s
WHERE to_regclass('mlint.event_' || s.segment) IS NOT NULL
	AND to_regclass('mlint.delivery_' || s.segment) IS NOT NULL
EOQ
}

sub retain
{
	return $node->psql('postgres', 'SELECT mlint.event_retention_run()');
}

# Those that are left when what the dispatcher has read is written down.
sub dropped
{
	my ($left, $what) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for($what, sub { retain(); segments() eq $left });
}

# Let a month pass since segments were closed (or created).
sub age
{
	my ($column) = @_;
	$column //= 'closed_at';
	$node->safe_psql('postgres',
		"UPDATE mlint.segment SET $column = $column - interval '30 days'");
	return;
}

# A segment that is old and done.
my $first = publish($node, 'plain');
ok(wait_for_delivery($node, $first), 'an event in the first segment');
is(segments(), '1', 'there is one segment');
retain();
is(segments(), '1', 'a young segment is neither closed nor dropped');
age('created_at');
retain();
is(segments(), '1,2', 'an old one is closed, and a new one begun');
retain();
is(segments(), '1,2', 'one that was closed just now stays');
my $second = publish($node, 'plain');
ok(wait_for_delivery($node, $second), 'an event in the second segment');
age();
dropped('2', 'the first is dropped, with its tables');
is( $node->safe_psql('postgres', 'SELECT string_agg(id::text, $$,$$) FROM mlint.events'),
	$second, '... and its events');
my ($rc, $out, $err) =
  $node->psql('postgres', "SELECT mlint.event_wait($first, '1 s')");
like($err, qr/event $first does not exist/, 'event_wait() knows it no more');
is($node->safe_psql('postgres', <<'EOQ'), '', 'all tables of segments belong to the extension');
SELECT relname FROM pg_class c
WHERE relnamespace = 'mlint'::regnamespace AND relkind = 'r'
	AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
		AND objid = c.oid AND deptype = 'e')
EOQ

# One with something pending.
$receiver->control('down');
my $pending = publish($node, 'switched');
wait_for_sql($node, 'a delivery is pending',
	"SELECT attempts > 1 FROM mlint.deliveries WHERE event_id = $pending");
$node->safe_psql('postgres', 'SELECT mlint.segment_begin()');
age();
retain();
is(segments(), '2,3', 'a segment with something pending stays');
$receiver->control('up');
ok(wait_for_delivery($node, $pending), '... until it is delivered');
dropped('3', '... and then it goes');

# One with events that no dispatcher has read: it waits for a lock.
my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN; LOCK TABLE mlint.generation IN ACCESS EXCLUSIVE MODE');
my $unread = publish($node, 'plain');
wait_for_sql($node, 'the dispatcher waits',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'mlint dispatcher' AND wait_event_type = 'Lock'");
my $woken = publish($node, 'plain');
$node->safe_psql('postgres', 'SELECT mlint.segment_begin()');
age();
retain();
is(segments(), '3,4', 'a segment with events that nobody has read stays');
$session->query_safe('COMMIT');
ok(wait_for_delivery($node, $unread), '... until they are delivered');
ok(wait_for_delivery($node, $woken),
	'... also those that were published while the dispatcher waited');
dropped('4', '... and then it goes');

# One that a transaction still publishes to.
$session->query_safe("BEGIN; SELECT mlint.publish('plain', '{}')");
$node->safe_psql('postgres', 'SELECT mlint.segment_begin()');
my $other = publish($node, 'plain');
ok(wait_for_delivery($node, $other), 'a new segment beside a long transaction');
age();
($rc) = retain();
is($rc, 0, 'a session that publishes to a closed segment breaks nothing');
is(segments(), '4,5', '... and the segment stays');
my $late = $session->query_safe('SELECT last_value FROM mlint.event_id') - 1;
$session->query_safe('COMMIT');
ok(wait_for_delivery($node, $late), '... its event is delivered');
dropped('5', '... and then the segment goes');

# A reader.
$node->safe_psql('postgres', 'SELECT mlint.segment_begin()');
age();
$session->query_safe('BEGIN; SELECT count(*) FROM mlint.deliveries');
my $began = time;
($rc) = retain();
is($rc, 0, 'a session that reads the log breaks nothing');
cmp_ok(time - $began, '<', 10, '... and is not waited for');
is(segments(), '5,6', '... the segment stays');
ok(wait_for_delivery($node, publish($node, 'plain')), '... and delivery goes on');
$session->query_safe('COMMIT');
dropped('6', '... until the session has ended');

# Keys and dropped destinations are forgotten with the events.
$node->safe_psql('postgres', <<'EOQ');
SELECT mlint.publish('plain', '{}', key => 'old');
SELECT mlint.publish('plain', '{}', key => 'new');
UPDATE mlint.event_key SET published_at = published_at - interval '25 hours' WHERE key = 'old';
SELECT mlint.destination_create('gone', 'http', '{"url": "http://localhost:1/"}', '{plain}');
SELECT mlint.destination_drop('gone');
SELECT mlint.segment_begin();
EOQ
wait_for_sql($node, 'nothing is to be delivered',
	"SELECT count(*) = 0 FROM mlint.deliveries WHERE state <> 'delivered'");
retain();
is( $node->safe_psql('postgres',
		'SELECT string_agg(key, $$,$$) FROM mlint.event_key'),
	'new', 'an old key is forgotten');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM mlint.destination WHERE name = 'gone'"),
	1, 'a dropped destination is kept for the sake of old deliveries');
$node->safe_psql('postgres',
	"UPDATE mlint.destination SET dropped_at = dropped_at - interval '30 days' WHERE name = 'gone'");
retain();
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM mlint.destination WHERE name = 'gone'"),
	0, '... as long as there are any');

# A destination that is dropped while it is being delivered to.
my $stall = $receiver->url('/stall');
$node->safe_psql('postgres',
	"SELECT mlint.destination_create('stall', 'http', '{\"url\": \"$stall\", \"timeout_ms\": 1000}', '{stalled}')"
);
my $stalled = publish($node, 'stalled');
wait_for_sql($node, 'a delivery is under way',
	"SELECT count(*) = 1 FROM mlint.in_flight() WHERE event_id = $stalled");
$node->safe_psql('postgres', "SELECT mlint.destination_drop('stall')");
wait_for_sql($node, '... and ends',
	"SELECT count(*) = 0 FROM mlint.in_flight() WHERE event_id = $stalled");
ok(wait_for_delivery($node, $stalled),
	'a destination that is dropped leaves nothing pending');

# Jobs.
$node->safe_psql('postgres', <<'EOQ');
UPDATE mlint.job SET enabled = true;
CREATE TABLE ran (n serial, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE mode (name text);
INSERT INTO mode VALUES ('fail');
CREATE FUNCTION work() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	mode text := (SELECT name FROM public.mode);
BEGIN
	INSERT INTO public.ran DEFAULT VALUES;
	IF mode = 'fail' THEN
		RAISE EXCEPTION 'no luck today';
	ELSIF mode = 'sleep' THEN
		PERFORM pg_sleep(600);
	END IF;
END $$;
INSERT INTO mlint.job (name, command, every) VALUES ('work', 'SELECT public.work()', '1 hour');
SELECT mlint.job_run_now('work');
EOQ
wait_for_sql($node, 'a job that fails shows why',
	"SELECT last_error = 'no luck today' AND failures >= 1 FROM mlint.jobs WHERE name = 'work'");
wait_for_sql($node, '... is tried again',
	"SELECT failures >= 3 AND failures = (SELECT count(*) FROM mlint.job_runs r WHERE r.name = 'work') FROM mlint.jobs WHERE name = 'work'");
is( $node->safe_psql('postgres', <<'EOQ'),
SELECT next_run_at > last_started_at + interval '2 seconds'
	AND next_run_at < last_started_at + interval '1 hour' FROM mlint.jobs WHERE name = 'work'
EOQ
	't', '... after longer and longer');
is($node->safe_psql('postgres', 'SELECT count(*) FROM ran'),
	0, '... and what it did is undone');
$node->safe_psql('postgres', <<'EOQ');
UPDATE mode SET name = 'work';
SELECT mlint.job_run_now('work');
EOQ
wait_for_sql($node, '... until it works', <<'EOQ');
SELECT last_error IS NULL AND failures = 0 AND NOT running
	AND next_run_at > now() + interval '59 minutes'
FROM mlint.jobs WHERE name = 'work'
EOQ
is($node->safe_psql('postgres', 'SELECT count(*) FROM ran'), 1, '... once');
is( $node->safe_psql('postgres',
		"SELECT count(error) >= 3, count(*) - count(error) FROM mlint.job_runs WHERE name = 'work'"
	),
	't|1',
	'mlint.job_runs has them all');
($rc, $out, $err) = $node->psql('postgres', "SELECT mlint.job_run_now('wrok')");
like($err, qr/job "wrok" does not exist.*HINT/s, 'a job that does not exist');

# A job whose process is ended is run again.
$node->safe_psql('postgres', <<'EOQ');
UPDATE mode SET name = 'sleep';
SELECT mlint.job_run_now('work');
EOQ
wait_for_sql($node, 'a job is running',
	"SELECT running FROM mlint.jobs WHERE name = 'work'");
my $sleeper = "SELECT pid FROM pg_stat_activity WHERE query = 'running job work' AND wait_event = 'PgSleep'";
wait_for_sql($node, '... and asleep', "SELECT count(*) FROM ($sleeper) s", 1);
my $pid = $node->safe_psql('postgres', $sleeper);
$node->safe_psql('postgres', <<"EOQ");
UPDATE mode SET name = 'work';
SELECT pg_terminate_backend($pid);
EOQ
wait_for_sql($node, 'it is killed, and run again', <<'EOQ');
SELECT (SELECT count(*) FROM ran) = 2 AND failures = 0 AND NOT running
FROM mlint.jobs WHERE name = 'work'
EOQ
$node->safe_psql('postgres', <<'EOQ');
INSERT INTO mlint.job (name, command, every) VALUES ('syntax', 'SELEKT', '1 hour');
SELECT mlint.job_run_now('syntax');
EOQ
wait_for_sql($node, 'a job whose command is nonsense',
	"SELECT last_error LIKE 'syntax error%' FROM mlint.jobs WHERE name = 'syntax'");
# A job may be a procedure, which commits as it goes.
$node->safe_psql('postgres', <<'EOQ');
CREATE TABLE steps (n int);
CREATE PROCEDURE work_in_steps() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 3 LOOP
		INSERT INTO public.steps VALUES (i);
		COMMIT;
	END LOOP;
	INSERT INTO public.steps VALUES (4);
	RAISE EXCEPTION 'the fourth step';
END $$;
INSERT INTO mlint.job (name, command, every) VALUES ('steps', 'CALL public.work_in_steps()', '1 hour');
EOQ
wait_for_sql($node, 'a job that is a procedure fails half-way',
	"SELECT last_error = 'the fourth step' FROM mlint.jobs WHERE name = 'steps'");
is($node->safe_psql('postgres', 'SELECT count(*) >= 3 AND max(n) = 3 FROM steps'),
	't', '... and what it had committed stays');
$node->safe_psql('postgres', "UPDATE mlint.job SET enabled = false WHERE name = 'steps'");
wait_for_sql($node, 'retention is a job, and has run',
	"SELECT last_finished_at IS NOT NULL AND last_error IS NULL FROM mlint.jobs WHERE name = 'event_retention'"
);

# A snapshot held open all the time: the working tables stay small, and so
# does what has to be read in them.
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class');
my $sizes = "SELECT pg_relation_size('mlint.pending'), pg_relation_size('mlint.log_cursor')";
my $before = $node->safe_psql('postgres', $sizes);
for (1 .. 10)
{
	my $last = $node->safe_psql('postgres', <<'EOQ');
SELECT max(mlint.publish('plain', '{}')) FROM generate_series(1, 1000)
EOQ
	wait_for_delivery($node, $last) or fail('delivery beside a snapshot');
}
my ($pending_size, $cursor_size) = split /\|/, $node->safe_psql('postgres', $sizes);
note "before: $before, after: $pending_size|$cursor_size";
cmp_ok($pending_size, '<=', 256 * 1024,
	'10,000 deliveries beside an old snapshot: mlint.pending stays small');
cmp_ok($cursor_size, '<=', 256 * 1024, '... and so does mlint.log_cursor');
$session->query_safe('COMMIT');
$session->quit;

$node->stop;
done_testing();
