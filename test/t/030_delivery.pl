# What a delivery looks like when it arrives: its body, id, signatures,
# authentication and headers; when it leaves, in which order, how many at a
# time; and what the counters say of it.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256 hmac_sha256_hex);
use Encode ();
use JSON::PP ();
use MIME::Base64 qw(decode_base64 encode_base64);
use Test::More;

use MlintTest;

my $node = mlint_node('delivery');
my $receiver = MlintTest::Receiver->start;
my $json = JSON::PP->new->canonical->allow_nonref;

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub http
{
	my ($name, $options, @patterns) = @_;
	$options->{url} //= $receiver->url("/status/200?$name");
	create_destination($node, $name, 'http', $options, @patterns);
	return;
}

# The requests that a destination of http() got.
sub arrived { return $receiver->requests("/status/200?$_[0]"); }

# Deliver one event and return the request that came of it.
sub one
{
	my ($name, $data) = @_;
	my $before = () = arrived($name);
	my $id = deliver($node, $name, $data);
	my @got = arrived($name);
	die "$name: " . (@got - $before) . ' requests' if @got != $before + 1;
	return ($got[-1], $id);
}

# ---- body and id ----
http('plain', {}, 'plain');
my $data = { text => "gr\x{fc}\x{df}e \x{1F511} \\ \" \n", list => [ 1, undef ] };
my $id = sql("SELECT mlint.publish('plain', "
	  . literal(Encode::encode('UTF-8', $json->encode($data)))
	  . ", '{\"m\": 1}')");
ok(wait_for_delivery($node, $id), 'an event is delivered');
my ($request) = arrived('plain');
my $body = $json->decode($request->{body});
is($request->{method}, 'POST', 'by POST');
is($request->{headers}{'content-type'}, 'application/json', 'as JSON');
is_deeply([ sort keys %$body ], [qw(data id metadata timestamp type)],
	'the body has id, type, timestamp, data and metadata');
is($body->{id}, $id, '... the id that publish() returned');
is($body->{type}, 'plain', '... the type');
is_deeply($body->{data}, $data, '... the data, every character of it');
is_deeply($body->{metadata}, { m => 1 }, '... the metadata');
is( sql("SELECT published_at = '$body->{timestamp}' FROM mlint.events WHERE id = $id"),
	't', '... and when it was published');
like($body->{timestamp}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$/,
	'... in ISO 8601');
like($request->{headers}{'webhook-id'}, qr/^evt_[0-9a-f]{21,28}_$id$/,
	'webhook-id is unique in the world and has the id');
ok(!exists $request->{headers}{'webhook-signature'}
	  && !exists $request->{headers}{'x-webhook-signature'},
	'without a secret nothing is signed');
like( sql("SELECT state, attempts, status_code, error IS NULL, next_attempt_at IS NULL, first_attempt_at <= finished_at, latency > '0 s' FROM mlint.deliveries WHERE event_id = $id"),
	qr/^delivered\|1\|200\|t\|t\|t\|t$/, 'mlint.deliveries says so');

# The same id on each attempt, and the same body.
create_destination($node, 'again', 'http',
	{ url => $receiver->url('/flaky?fail=2'), retry => { strategy => 'immediate' } });
$id = deliver($node, 'again', 'x');
my @attempts = $receiver->requests('/flaky?fail=2');
is(@attempts, 3, 'two attempts fail, the third does not');
is(keys %{ { map { $_->{headers}{'webhook-id'} => 1 } @attempts } },
	1, '... all under the same webhook-id');
is(keys %{ { map { $_->{body} => 1 } @attempts } }, 1,
	'... with the same body');
delivery_is($node, $id, 'delivered|3|200|', '... and it is delivered');

# ---- signatures ----
my $key = 'MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
my $old = encode_base64('an older key of thirty-two bytes', '');
sql("SELECT mlint.secret_put('new', 'whsec_$key'), mlint.secret_put('old', 'whsec_$old'), mlint.secret_put('plain', 'just words')");

sub standard
{
	my ($r, $secret) = @_;
	return 'v1,' . encode_base64(
		hmac_sha256(
			Encode::encode('UTF-8', join '.',
				$r->{headers}{'webhook-id'},
				$r->{headers}{'webhook-timestamp'},
				$r->{body}),
			$secret), '');
}

sub hub
{
	my ($r, $secret) = @_;
	return 'sha256=' . hmac_sha256_hex(Encode::encode('UTF-8', $r->{body}), $secret);
}

sub verified
{
	my ($r, $secret, $more) = @_;
	return sql('SELECT mlint.webhook_verify('
		  . literal(Encode::encode('UTF-8', $r->{body})) . ', '
		  . literal(JSON::PP->new->utf8->encode($r->{headers})) . ', '
		  . literal($secret) . ($more // '') . ')');
}

foreach my $case (qw(default both standard hub none))
{
	my $name = "sign-$case";
	my $form = $case eq 'default' ? 'both' : $case;
	http($name, { signing_secret => { secret => 'new' },
		$case eq 'default' ? () : (signature => $form) });
	my ($r) = one($name, "\x{e9}");
	my $h = $r->{headers};
	is($h->{'webhook-signature'},
		$form =~ /both|standard/ ? standard($r, decode_base64($key)) : undef,
		"$name: webhook-signature");
	is($h->{'x-webhook-signature'},
		$form =~ /both|hub/ ? hub($r, "whsec_$key") : undef,
		"$name: X-Webhook-Signature");
	is(exists $h->{'webhook-timestamp'}, $form =~ /both|standard/ ? 1 : '',
		"$name: webhook-timestamp");
	is( verified($r, "whsec_$key",
			", signature => '" . ($form eq 'none' ? 'both' : $form) . "'"),
		$form eq 'none' ? 'f' : 't',
		"$name: mlint.webhook_verify");
	is(verified($r, "whsec_$old"), 'f', "$name: ... not with another secret");
	next if $form eq 'none';
	$r->{body} .= ' ';
	is(verified($r, "whsec_$key", ", signature => '$form'"),
		'f', "$name: ... not with another body");
}
http('sign-words', { signing_secret => { secret => 'plain' } });
($request) = one('sign-words');
is($request->{headers}{'webhook-signature'}, standard($request, 'just words'),
	'a secret without whsec_ is the key itself');
is(verified($request, 'just words'), 't', '... and verifies');

http('rotated', { signing_secret => [ { secret => 'new' }, { secret => 'old' } ] });
($request) = one('rotated');
is($request->{headers}{'webhook-signature'},
	join(' ', standard($request, decode_base64($key)), standard($request, decode_base64($old))),
	'two secrets, two signatures');
is($request->{headers}{'x-webhook-signature'}, hub($request, "whsec_$key"),
	'... the hub form has room for one, the newest');
is(verified($request, "whsec_$key", ", signature => 'standard'"), 't', '... the new secret verifies');
is(verified($request, "whsec_$old", ", signature => 'standard'"), 't', '... the old one too');

sql("SELECT mlint.secret_put('new', 'whsec_$old')");
($request) = one('sign-default');
is($request->{headers}{'webhook-signature'}, standard($request, decode_base64($old)),
	'a changed secret signs the next delivery');

# ---- authentication, headers, method ----
sql("SELECT mlint.secret_put('token', 'hunter2')");
http('bearer', { auth => { type => 'bearer', token => { secret => 'token' } } });
is((one('bearer'))[0]{headers}{authorization}, 'Bearer hunter2', 'auth: bearer');
http('basic', { auth => { type => 'basic', username => 'me', password => { secret => 'token' } } });
is((one('basic'))[0]{headers}{authorization},
	'Basic ' . encode_base64('me:hunter2', ''), 'auth: basic');
http('header', { auth => { type => 'header', name => 'X-API-Key', value => { secret => 'token' } } });
is((one('header'))[0]{headers}{'x-api-key'}, 'hunter2', 'auth: header');
sql("SELECT mlint.secret_put('token', 'hunter3')");
is((one('header'))[0]{headers}{'x-api-key'}, 'hunter3', '... changed');
http('headers',
	{ method => 'PUT', headers => { 'X-A' => 'b c', 'Content-Type' => 'application/cloudevents+json',
		Authorization => { secret => 'token' } } });
($request) = one('headers');
is($request->{method}, 'PUT', 'the method is PUT');
is($request->{headers}{'x-a'}, 'b c', 'a header of one\'s own');
is($request->{headers}{'content-type'}, 'application/cloudevents+json', '... another content type');
is($request->{headers}{authorization}, 'hunter3', '... a value by reference');
is( sql("SELECT count(*) FROM mlint.destinations d WHERE d::text LIKE '%hunter%'"),
	0, 'no credential shows in mlint.destinations');

# ---- transform ----
sql(q(CREATE FUNCTION public.shape(e jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
	BEGIN
		IF e->'data' = '"fail"' THEN RAISE EXCEPTION 'no shape for %', e->'data'; END IF;
		IF e->'data' = '"null"' THEN RETURN NULL; END IF;
		RETURN jsonb_build_object('only', e->'data');
	END $$));
http('shaped', { transform => 'public.shape', signing_secret => { secret => 'old' },
	retry => { strategy => 'immediate', max_retries => 1 } });
($request) = one('shaped', 'x');
is($request->{body}, '{"only": "x"}', 'the transform makes the body');
is(verified($request, "whsec_$old"), 't', '... which is what is signed');
delivery_is($node, deliver($node, 'shaped', 'null'),
	'dead|1||the transform function returned NULL', '... null is dead at once');
delivery_is($node, deliver($node, 'shaped', 'fail'),
	'dead|2||the transform function failed: no shape for "fail"', '... an error is tried again');
is(scalar(my @shaped = arrived('shaped')), 1, '... and neither sends anything');

# ---- when, to whom, in which order ----
http('later');
my $then = sql("SELECT clock_timestamp() + interval '1 hour'");
$id = publish($node, 'later', {}, "deliver_at => '$then'");
my $now = deliver($node, 'later', 'now');
delivery_is($node, $id, 'pending|0||', 'deliver_at: the event waits, a later one passes it');
is( sql("SELECT next_attempt_at = '$then' FROM mlint.deliveries WHERE event_id = $id"),
	't', '... until then');
$then = sql("SELECT clock_timestamp() + interval '700 ms' * $MlintTest::slower");
$id = publish($node, 'later', {}, "deliver_at => '$then'");
ok(wait_for_delivery($node, $id), '... and one whose time comes is delivered');
is( sql("SELECT first_attempt_at >= '$then' FROM mlint.deliveries WHERE event_id = $id"),
	't', '... not before');

http('early', {}, 'chrono');
$id = deliver($node, 'chrono');
http('late', {}, 'chrono');
deliver($node, 'chrono', 2);
is(scalar(() = arrived('early')), 2, 'a destination gets what matches');
is(scalar(() = arrived('late')), 1, '... but nothing from before it was created');
is( sql("SELECT string_agg(destination, ',') FROM mlint.deliveries WHERE event_id = $id"),
	'early', '... as mlint.deliveries says');
my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$id = $session->query_safe("SELECT mlint.publish('chrono', '4')");
http('latest', {}, 'chrono');
$session->query_safe('COMMIT');
$session->quit;
ok(wait_for_delivery($node, $id), 'nor what was published before it');
is( sql("SELECT string_agg(destination, ',' ORDER BY destination) FROM mlint.deliveries WHERE event_id = $id"),
	'early,late', '... and committed after');
$id = sql("SELECT mlint.send('late', 'chrono', '3')");
wait_for_delivery($node, $id);
is(scalar(() = arrived('late')), 3, 'send() goes to one destination');
is(scalar(() = arrived('early')), 3, '... and to no other');

# Each event of an ordered destination fails twice; nothing overtakes it.
create_destination($node, 'ordered', 'http', { url => $receiver->url('/flaky?fail=2&ordered'),
	ordered => $JSON::PP::true, retry => { initial_delay_ms => 5 } });
$id = sql("SELECT max(mlint.publish('ordered', to_jsonb(n))) FROM generate_series(1, 20) n");
ok(wait_for_delivery($node, $id), 'ordered: all are delivered');
is( join(' ', map { $json->decode($_->{body})->{data} } $receiver->requests('/flaky?fail=2&ordered')),
	join(' ', map { "$_ $_ $_" } 1 .. 20), '... in order, retries in place');
# So when many come while one waits.
create_destination($node, 'middle', 'http', { url => $receiver->url('/switch'), ordered => $JSON::PP::true,
	retry => { initial_delay_ms => 5, max_delay_ms => 20, max_retries => 1000 }, breaker => { threshold => 0 } });
deliver($node, 'middle', 1);
$receiver->control('down');
publish($node, 'middle', 2);
wait_for('a failure in the middle', sub { $receiver->count('/switch') >= 3 });
$id = sql("SELECT max(mlint.publish('middle', to_jsonb(n))) FROM generate_series(3, 30) n");
my $seen = $receiver->count('/switch');
wait_for('... is tried again and again', sub { $receiver->count('/switch') >= $seen + 3 });
$receiver->control('up');
ok(wait_for_delivery($node, $id), '... until it passes');
my @order = map { $json->decode($_->{body})->{data} } $receiver->requests('/switch');
is_deeply(\@order, [ sort { $a <=> $b } @order ], '... and nothing has overtaken it');
is_deeply([ sort { $a <=> $b } keys %{ { map { $_ => 1 } @order } } ], [ 1 .. 30 ], '... nor is lost');

# No more at a time than max_in_flight, and as many.
create_destination($node, 'three', 'http', { url => $receiver->url('/stall?three'), max_in_flight => 3,
	timeout_ms => 3600000 });
sql("SELECT mlint.publish('three', to_jsonb(n)) FROM generate_series(1, 10) n");
wait_for_sql($node, 'max_in_flight: three are in flight',
	"SELECT count(*) FILTER (WHERE state = 'in_flight'), count(*) FILTER (WHERE state = 'pending') FROM mlint.deliveries WHERE destination = 'three'",
	'3|7');
wait_for('... arrive', sub { $receiver->count('/stall?three') == 3 });
deliver($node, 'plain', 'meanwhile');
deliver($node, 'plain', 'others');
is($receiver->count('/stall?three'), 3, '... and no more, while others are served');
is( sql("SELECT queue_depth, oldest_pending_age > '0 s' FROM mlint.stat_destinations WHERE destination = 'three'"),
	'10|t', '... stat_destinations: queue depth and age');
sql("SELECT mlint.destination_drop('three')");
is( sql("SELECT (SELECT count(*) FROM mlint.deliveries WHERE destination = 'three'), (SELECT count(*) FROM mlint.destinations WHERE name = 'three')"),
	'0|0', 'destination_drop: nothing is pending any more');
http('three');
one('three', 'a new one');
is(scalar(() = arrived('three')), 1, '... and its name is free, for new events');
is( sql("SELECT mlint.event_wait(max(id), '1 s') FROM mlint.events WHERE type = 'three'"),
	't', '... which can end');

# ---- destination_test ----
sub tested
{
	my ($name) = @_;
	return sql("SELECT ok, status, detail, elapsed > '0 s' AND elapsed < '30 s' FROM mlint.destination_test('$name')");
}
is(tested('rotated'), 't|200|delivered|t', 'destination_test: ok');
($request) = (arrived('rotated'))[-1];
$body = $json->decode($request->{body});
is_deeply([ $body->{type}, $body->{id}, $body->{data} ],
	[ 'destination.test', 0, { destination => 'rotated' } ], '... sends a test event');
is(verified($request, "whsec_$old"), 't', '... signed');
is(tested('shaped'), 't|200|delivered|t', '... transformed');
is((arrived('shaped'))[-1]{body}, '{"only": {"destination": "shaped"}}', '... by the function');
create_destination($node, 'bad', 'http', { url => $receiver->url('/status/403') });
is(tested('bad'), "f|403|HTTP 403: status\n|t", '... refused');
create_destination($node, 'deaf', 'http', { url => 'http://127.0.0.1:1/' });
like(tested('deaf'), qr/^f\|\|could not connect.*\|t$/, '... nobody there');
create_destination($node, 'mute', 'http', { url => $receiver->url('/stall'), timeout_ms => 2000 });
like(tested('mute'), qr/^f\|\|there was no response within 2000 ms\|t$/, '... no answer');
is( sql("SELECT count(*) FROM mlint.events WHERE type = 'destination.test'"), 0,
	'... and nothing of it is in the log');

# ---- counters ----
http('counted');
deliver($node, 'counted', $_) for 1 .. 3;
my $bytes = 0;
$bytes += length $_->{body} for arrived('counted');
wait_for_sql($node, 'stat_destinations: deliveries', q(SELECT delivered, failed, retried, dead, bytes, p50 > '0 s' AND p50 <= p95 AND p95 <= p99 AND p99 < '30 s',
		breaker, breaker_until, queue_depth, oldest_pending_age, last_error
	FROM mlint.stat_destinations WHERE destination = 'counted'),
	"3|0|0|0|$bytes|t|closed||0||");
publish($node, 'counted', {}, "deliver_at => now() + interval '1 day'");
wait_for_sql($node, '... what is scheduled for later is in the queue',
	"SELECT queue_depth FROM mlint.stat_destinations WHERE destination = 'counted'", 1);
is(sql("SELECT oldest_pending_age IS NULL FROM mlint.stat_destinations WHERE destination = 'counted'"), 't', '... and does not wait');
is( sql("SELECT delivered, failed, retried, dead FROM mlint.stat_destinations WHERE destination = 'again'"),
	'1|2|2|0', '... retries');
is( sql("SELECT delivered, failed, retried, dead, last_error, last_error_at > now() - interval '1 hour' FROM mlint.stat_destinations WHERE destination = 'shaped'"),
	'1|3|1|2|the transform function failed: no shape for "fail"|t', '... dead letters and the last error');
is( sql("SELECT delivered, p50 FROM mlint.stat_destinations WHERE destination = 'deaf'"),
	'0|', '... nothing of a destination that had nothing');

$node->stop;
done_testing();
