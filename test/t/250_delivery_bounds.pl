# What delivery keeps in memory has bounds, and beyond them nothing is lost:
# more destinations than a process holds open, more event types than it
# remembers, more headers than most have; events that are large, or that cannot
# be written at all; and who is gone is disabled as soon as nobody has the lock.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $receiver = MlintTest::Receiver->start;
my $node = mlint_node('bounds', conf => <<'EOC');
mlint.dispatchers = 1
mlint.event_max_bytes = '16MB'
EOC

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub http { my ($name, $path, $options, @patterns) = @_;
	create_destination($node, $name, 'http', { url => $receiver->url($path), %{ $options // {} } }, @patterns);
	return; }

# Does each of these paths have so many requests?
sub each_has
{
	my ($n, @paths) = @_;
	my %count;

	$count{ $_->{path} }++ for $receiver->requests;
	return !grep { ($count{$_} // 0) != $n } @paths;
}

# ---- more destinations than are held open (256 of a process) ----
my $slow = 20;
sql(<<"EOQ");
SET client_min_messages = error;
SELECT mlint.destination_create('many ' || i, 'http', jsonb_build_object('url', '@{[ $receiver->url('') ]}' ||
	CASE WHEN i <= $slow THEN '/slow/2000' ELSE '/utf8/' || i END), ARRAY['all', 'one.' || i])
FROM generate_series(1, 300) i;
EOQ
sub one_each { my ($from, $to) = @_; sql("SELECT mlint.publish('one.' || i, '{}') FROM generate_series($from, $to) i"); return; }
one_each(1, 250);
wait_for('250 destinations have an event each', sub { each_has(1, map { "/utf8/$_" } $slow + 1 .. 250) });
wait_for_sql($node, '... and are done with it', 'SELECT count(*) = 250 FROM mlint.deliveries WHERE state = \'delivered\'');
one_each(1, $slow);
wait_for("$slow of them are busy", sub { $receiver->count('/slow/2000') == 2 * $slow });
one_each(251, 300);
wait_for('fifty more have one, for which those that are idle are closed', sub { each_has(1, map { "/utf8/$_" } 251 .. 300) });
deliver($node, 'all');
ok(each_has(2, map { "/utf8/$_" } $slow + 1 .. 300), 'all have the next');
is($receiver->count('/slow/2000'), 3 * $slow, '... also those that were busy, and none of them twice');
wait_for_sql($node, '... and all is counted',
	'SELECT count(*), sum(delivered), sum(retried) FROM mlint.stat_destinations', '300|' . (250 + $slow + 50 + 300) . '|0');
sql("SELECT mlint.destination_drop('many ' || i) FROM generate_series(1, 300) i");
$receiver->forget;

# ---- more types than are remembered (1024) ----
http('types', '/status/200', undef, 'kind.*');
http('sevens', '/status/201', undef, 'kind.7*');
sql("SELECT mlint.publish('kind.' || i, '{}') FROM generate_series(1, 2500) i");
my $last = publish($node, 'kind.7 and last', {});
wait_for_delivery($node, $last);
wait_for('2,501 events of as many types go to whom they are for',
	sub { $receiver->count('/status/200') == 2501 });
wait_for_sql($node, '... until nothing is left', 'SELECT count(*) = 0 FROM mlint.pending');
is($receiver->count('/status/201'), 1 + 1 + 10 + 100 + 0 + 0 + (grep { /^7/ && $_ >= 1000 } 1 .. 2500),
	'... and to nobody else');

# ---- many headers ----
http('headers', '/status/202', { headers => { map { ("X-$_" => "value $_") } 1 .. 30 } });
deliver($node, 'headers');
my ($request) = $receiver->requests('/status/202');
is(join(' ', map { $request->{headers}{"x-$_"} // 'none' } 1 .. 30),
	join(' ', map { "value $_" } 1 .. 30), 'thirty headers arrive');

# ---- large events ----
http('large', '/status/203');
my $large = sql("SELECT mlint.publish('large', jsonb_build_object('text', repeat('x', 12000000)))");
my $after = publish($node, 'large', { n => 2 });
ok(wait_for_delivery($node, $large) && wait_for_delivery($node, $after), 'an event of 12 MB, and one after it');
is(join(' ', sort map { length $_->{body} > 12_000_000 ? 'large' : 'small' } $receiver->requests('/status/203')),
	'large small', '... arrive whole');

# ---- events that cannot be written ----
http('digits', '/status/204', undef, 'digits', 'fine');
http('digits too', '/status/206', undef, 'digits');
my $digits = sql(<<'EOQ');
SELECT mlint.publish('digits', (SELECT jsonb_build_object('a', jsonb_agg('1e131000'::numeric)) FROM generate_series(1, 9000)))
EOQ
my $fine = publish($node, 'fine', { n => 1 });
ok(wait_for_delivery($node, $fine), 'an event with a gigabyte of digits does not hold up the next');
ok(wait_for_delivery($node, $digits), '... and ends');
is(sql("SELECT string_agg(destination || ' ' || state || ' ' || attempts, ', ' ORDER BY destination) FROM mlint.deliveries WHERE event_id = $digits"),
	'digits dead 1, digits too dead 1', '... for all its destinations');
is(sql("SELECT count(*) FROM mlint.deliveries WHERE event_id = $digits AND error LIKE 'the event cannot be written as JSON: %'"),
	2, '... which say why');
is($receiver->count('/status/204'), 1, '... and get nothing of it');
sql("SELECT mlint.delivery_retry($digits, 'digits')");
wait_for_delivery($node, $digits);
delivery_is($node, $digits . " AND destination = 'digits'", qr/^dead\|\d\|\|the event cannot be written as JSON/,
	'tried again, it ends no better');
$fine = publish($node, 'fine', { n => 2 });
ok(wait_for_delivery($node, $fine), '... and holds up nothing');

# ---- gone, while somebody has the lock ----
http('gone', '/status/410');
my $holder = $node->background_psql('postgres');
$holder->query_safe("BEGIN; SELECT FROM mlint.generation WHERE room = 'destinations' FOR UPDATE");
delivery_is($node, deliver($node, 'gone'), qr/^dead\|1\|410\|/, 'a receiver is gone while destinations are being changed');
$fine = publish($node, 'fine', { n => 3 });
ok(wait_for_delivery($node, $fine), '... which holds up nobody');
is(sql("SELECT enabled FROM mlint.destinations WHERE name = 'gone'"), 't', '... and is not disabled yet');
$holder->query_safe('COMMIT');
$holder->quit;
wait_for_sql($node, '... but then', "SELECT NOT enabled AND disabled_reason LIKE 'HTTP 410%' FROM mlint.destinations WHERE name = 'gone'");

# ---- a signing secret from before it was one ----
sql(<<'EOQ');
SELECT mlint.secret_put('sign', 'whsec_no base64 at all');
SELECT mlint.secret_put('sign', 'whsec_' || encode(sha256('key'), 'base64'));
UPDATE mlint.secret SET previous_until = clock_timestamp() + '1 hour' WHERE name = 'sign';
EOQ
http('signed', '/status/207', { signing_secret => { secret => 'sign' } });
deliver($node, 'signed');
($request) = $receiver->requests('/status/207');
like($request->{headers}{'webhook-signature'}, qr/^v1,\S+$/,
	'what was malformed before a rotation signs nothing, and is in nobody\'s way');

done_testing();
