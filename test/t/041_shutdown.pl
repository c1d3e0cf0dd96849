# The server stops at once however full the queue is and however slow the
# receiver, and after the restart everything is delivered.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $receiver = MlintTest::Receiver->start;
my $node = mlint_node('main');
my ($fast, $slow) = map { $receiver->url($_) } '/ok', '/slow/700';

# Stop the server, and say how long that took. pg_ctl itself looks only ten
# times a second.
sub stop_takes
{
	my ($mode) = @_;
	my $began = time;

	$node->stop($mode);
	return time - $began;
}

sub in_flight
{
	my ($n) = @_;
	return wait_for_sql($node, "at least $n deliveries are under way",
		"SELECT count(*) >= $n FROM mlint.in_flight()");
}

# A receiver that does not answer at all.
$receiver->freeze;
$node->safe_psql('postgres', <<"EOQ");
SELECT mlint.destination_create('all', 'http', '{"url": "$fast", "max_in_flight": 100}',
	'{shutdown.*}');
SELECT count(mlint.publish('shutdown.' || n % 7, jsonb_build_object('n', n)))
	FROM generate_series(1, 100000) n;
EOQ
in_flight(100);
cmp_ok(stop_takes('fast'), '<', 10,
	'a fast stop with 100,000 events pending and a stalled receiver');

$node->start;
in_flight(100);
cmp_ok(stop_takes('smart'), '<', 10, '... and a smart one');

# A receiver that is just slow, so that answers are on their way; a function
# that takes long, so that a transaction is.
$node->start;
$node->safe_psql('postgres', <<"EOQ");
CREATE TABLE done (event_id bigint);
CREATE FUNCTION dawdle(event jsonb) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	PERFORM pg_sleep(0.3);
	INSERT INTO public.done VALUES ((event->>'id')::bigint);
END \$\$;
SELECT mlint.destination_create('slow', 'http', '{"url": "$slow"}', '{slow}');
SELECT mlint.destination_create('function', 'function', '{"fn": "public.dawdle"}',
	'{slow}');
SELECT mlint.publish('slow', '{}') FROM generate_series(1, 20);
EOQ
wait_for_sql($node, 'the function is running',
	"SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'mlint dispatcher' AND wait_event = 'PgSleep'");
cmp_ok(stop_takes('fast'), '<', 10, 'a fast stop in the middle of a function');

# Now all of it. Rows of deliveries that were under way are due in a minute;
# nobody need wait for that.
$receiver->thaw;
$node->start;
$node->safe_psql('postgres', <<'EOQ');
UPDATE mlint.pending SET next_attempt_at = now();
SELECT mlint.breaker_reset('all'), mlint.breaker_reset('slow');
EOQ
wait_for(
	'everything is delivered after the restart',
	sub {
		$node->safe_psql('postgres', <<'EOQ') eq '0|0';
SELECT (SELECT count(*) FROM mlint.pending),
	(SELECT count(*) FROM mlint.event e, mlint.log_cursor c
	 WHERE NOT mlint.cursor_covers(c, e.xid, e.id))
EOQ
	},
	400);
is( $node->safe_psql('postgres', <<'EOQ'),
SELECT destination, state, count(*) FROM mlint.deliveries GROUP BY 1, 2 ORDER BY 1
EOQ
	"all|delivered|100000\nfunction|delivered|20\nslow|delivered|20",
	'mlint.deliveries says so');
is(scalar keys %{ $receiver->arrivals('/ok') }, 100_000, '... and the receiver');
is( $node->safe_psql('postgres',
		'SELECT count(*), count(DISTINCT event_id) FROM done'),
	'20|20',
	'the function ran once for each event');

$node->stop;
done_testing();
