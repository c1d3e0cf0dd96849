# What fails: which failures are tried again, when and how often; dead
# letters; 410; disabled destinations; the circuit breaker; secrets that are
# missing; and receivers that misbehave beside one that is well.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use MlintTest;

my $node = mlint_node('retry');
my $receiver = MlintTest::Receiver->start;
my $true = $JSON::PP::true;
my %never_opens = (breaker => { threshold => 0 });

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub http
{
	my ($name, $path, $options) = @_;
	create_destination($node, $name, 'http',
		{ url => $receiver->url($path), %{ $options // {} } });
	return;
}

sub counters
{
	my ($name, $columns) = @_;
	return sql("SELECT $columns FROM mlint.stat_destinations WHERE destination = '$name'");
}

http('well', '/ok');

# Whatever the dispatcher was to do by now, it has done: it has read, delivered
# and recorded what came later.
sub fence { deliver($node, 'well'); deliver($node, 'well'); return; }

# ---- which failures ----
foreach my $status (408, 425, 429, 500, 502, 503, 504, 599)
{
	my $path = "/status/$status";
	http("s$status", $path, { retry => { strategy => 'immediate', max_retries => 2 }, %never_opens });
	delivery_is($node, deliver($node, "s$status"), "dead|3|$status|HTTP $status: status\n",
		"$status is tried again, then dead");
	is($receiver->count($path), 3, '... after max_retries');
}
foreach my $status (400, 401, 403, 404, 405, 409, 413, 418, 422, 451)
{
	http("s$status", "/status/$status", { retry => { strategy => 'immediate' } });
	delivery_is($node, deliver($node, "s$status"), "dead|1|$status|HTTP $status: status\n",
		"$status is dead at once");
}
foreach my $status (301, 302, 307, 308)
{
	http("s$status", "/status/$status?location=/moved", { retry => { strategy => 'immediate' } });
	delivery_is($node, deliver($node, "s$status"), qr/^dead\|1\|$status\|HTTP $status: redirects are not followed/,
		"$status is dead at once");
}
is($receiver->count('/moved'), 0, '... redirects are not followed');
foreach my $status (201, 202, 204)
{
	http("s$status", "/status/$status");
	delivery_is($node, deliver($node, "s$status"), "delivered|1|$status|", "$status is delivered");
}

# ---- dead letters ----
http('dies', '/status/500?dies', { retry => { strategy => 'none' } });
my $id = deliver($node, 'dies', 'one');
my $other = deliver($node, 'dies', 'two');
is($receiver->count('/status/500?dies'), 2, 'strategy none: one attempt each');
is( sql("SELECT event_id, destination, event_type, attempts, status_code, data FROM mlint.dead_letters WHERE destination = 'dies' ORDER BY event_id"),
	"$id|dies|dies|1|500|\"one\"\n$other|dies|dies|1|500|\"two\"", 'mlint.dead_letters has them');
sql("SELECT mlint.destination_alter('dies', '{\"url\": \"" . $receiver->url('/status/200?dies') . "\"}')");
my $died = sql("SELECT died_at FROM mlint.dead_letters WHERE event_id = $other");
is(sql("SELECT mlint.dead_letter_replay('dies', '$died')"), 1, 'dead_letter_replay: since a time');
ok(wait_for_delivery($node, $other), '... ends');
delivery_is($node, $other, 'delivered|1|200|', '... and delivers');
delivery_is($node, $id, qr/^dead\|1/, '... no others');
sql("SELECT mlint.delivery_retry($id, 'dies')");
ok(wait_for_delivery($node, $id), 'delivery_retry of a dead letter');
delivery_is($node, $id, 'delivered|1|200|', '... delivers');
sql("SELECT mlint.delivery_retry($id, 'dies')");
ok(wait_for_delivery($node, $id), 'delivery_retry of what was delivered');
is(scalar(grep { $_->{body} =~ /"one"/ } $receiver->requests('/status/200?dies')), 2, '... delivers once more');
is( scalar(keys %{ { map { $_->{headers}{'webhook-id'} => 1 } grep { $_->{body} =~ /"one"/ } $receiver->requests } }),
	1, '... always under one id');
is(sql("SELECT mlint.dead_letter_replay('dies')"), 0, 'nothing is left to replay');
my $dead = sql('SELECT count(*) FROM mlint.dead_letters');
is(sql('SELECT mlint.dead_letter_replay()'), $dead, 'dead_letter_replay: all of them');
wait_for_sql($node, '... which die again', 'SELECT count(*) FROM mlint.dead_letters', $dead);

# ---- when ----
# Full jitter: between zero and a bound, which grows. Fifty are spread so far.
sub waits
{
	my ($name, $second, $retry) = @_;
	http($name, "/status/500?$name",
		{ retry => { initial_delay_ms => 8_000_000, max_delay_ms => 86_400_000, %$retry }, %never_opens });
	sql("SELECT mlint.publish('$name', to_jsonb(n)) FROM generate_series(1, 50) n");
	foreach my $attempt (1, 2)
	{
		my $bound = $attempt == 1 ? 8000 : $second;
		wait_for_sql($node, "$name: attempt $attempt",
			"SELECT count(*) FROM mlint.deliveries WHERE destination = '$name' AND state = 'pending' AND attempts >= $attempt", 50);
		is( sql("SELECT count(*) FILTER (WHERE wait > $bound), max(wait) > $bound * 0.7, min(wait) < $bound * 0.3 FROM
				(SELECT extract(epoch FROM next_attempt_at - clock_timestamp()) AS wait FROM mlint.deliveries
				WHERE destination = '$name' AND attempts = $attempt) w"),
			'0|t|t', "... then up to $bound s");
		sql("SELECT mlint.delivery_retry(event_id, '$name') FROM mlint.deliveries WHERE destination = '$name'")
		  if $attempt == 1;
	}
	sql("SELECT mlint.destination_drop('$name')");
	return;
}
waits('exponential', 56_000, { multiplier => 7 });
waits('linear', 16_000, { strategy => 'linear', multiplier => 7 });
waits('capped', 12_000, { multiplier => 7, max_delay_ms => 12_000_000 });

# Retry-After is a lower bound, whatever the strategy, and holds the rest.
foreach my $status (429, 503)
{
	http("after$status", "/status/$status?retry_after=1",
		{ retry => { strategy => 'immediate', max_retries => 1 } });
	delivery_is($node, deliver($node, "after$status"), qr/^dead\|2\|$status/, "Retry-After of a $status");
	my @at = map { $_->{time} } $receiver->requests("/status/$status?retry_after=1");
	cmp_ok($at[1] - $at[0], '>=', 0.99, '... is obeyed');
}
http('hour', '/status/429?retry_after=3600', { retry => { strategy => 'immediate' } });
$id = publish($node, 'hour');
wait_for_sql($node, 'Retry-After: an hour',
	"SELECT state, attempts, next_attempt_at BETWEEN now() + interval '59 minutes' AND now() + interval '1 hour' FROM mlint.deliveries WHERE event_id = $id",
	'pending|1|t');
$other = publish($node, 'hour');
fence();
delivery_is($node, $other, 'pending|0||', '... other events wait too');
is($receiver->count('/status/429?retry_after=3600'), 1, '... nothing is sent');
http('year', '/status/503?retry_after=31536000', { retry => { strategy => 'immediate' } });
$id = publish($node, 'year');
wait_for_sql($node, 'Retry-After: a year is a day',
	"SELECT attempts, next_attempt_at BETWEEN now() + interval '23 hours' AND now() + interval '1 day' FROM mlint.deliveries WHERE event_id = $id",
	'1|t');

# ---- 410 ----
http('gone', '/status/410', { retry => { strategy => 'immediate' } });
create_destination($node, 'watch', 'http', { url => $receiver->url('/status/200?watch') }, 'destination.*');
$id = deliver($node, 'gone');
delivery_is($node, $id, 'dead|1|410|HTTP 410: the receiver says that it is gone for good', '410 is dead at once');
wait_for('... an event says so', sub { $receiver->count('/status/200?watch') == 1 });
my $said = JSON::PP::decode_json(($receiver->requests('/status/200?watch'))[0]{body});
is_deeply([ $said->{type}, $said->{data}{destination} ], [ 'destination.disabled', 'gone' ], '... of which destination');
like($said->{data}{reason}, qr/410/, '... and why');
is( sql("SELECT enabled, disabled_reason FROM mlint.destinations WHERE name = 'gone'"),
	'f|HTTP 410: the receiver says that it is gone for good', 'the destination is disabled');
$other = publish($node, 'gone', 'held');
fence();
delivery_is($node, $other, 'pending|0||', '... and holds what comes');
is($receiver->count('/status/410'), 1, '... without another request');
sql("SELECT mlint.destination_alter('gone', '{\"url\": \"" . $receiver->url('/status/200?gone') . "\"}', enabled => true)");
ok(wait_for_delivery($node, $other), '... until it is enabled');
delivery_is($node, $other, 'delivered|1|200|', '... then it delivers');
is( sql("SELECT enabled, disabled_reason FROM mlint.destinations WHERE name = 'gone'"), 't|', '... and is as new');

# ---- disabled ----
sql("SELECT mlint.destination_alter('gone', enabled => false)");
sql("SELECT mlint.publish('gone', to_jsonb(n)) FROM generate_series(1, 20) n");
fence();
is( sql("SELECT count(*) FROM mlint.deliveries WHERE destination = 'gone' AND state = 'pending' AND attempts = 0"),
	20, 'a disabled destination holds');
is(counters('gone', 'queue_depth, oldest_pending_age > interval $$0$$'), '20|t', '... which shows');
sql("SELECT mlint.destination_alter('gone', enabled => true)");
wait_for('enabled, it delivers', sub { $receiver->count('/status/200?gone') == 21 });

# ---- the breaker ----
http('broken', '/switch?broken', { retry => { initial_delay_ms => 0, max_retries => 5 },
	max_in_flight => 1, breaker => { threshold => 3, timeout_s => 3600 } });
$receiver->control('down');
$id = publish($node, 'broken', 0);
wait_for_sql($node, 'the breaker opens',
	"SELECT breaker, breaker_until > now() + interval '59 minutes' FROM mlint.stat_destinations WHERE destination = 'broken'", 'open|t');
is($receiver->count('/switch?broken'), 3, '... after the threshold');
sql("SELECT mlint.publish('broken', to_jsonb(n)) FROM generate_series(1, 5) n");
fence();
is($receiver->count('/switch?broken'), 3, '... and holds what comes');
is( sql("SELECT string_agg(attempts::text, ' ' ORDER BY event_id), min(state), max(state) FROM mlint.deliveries WHERE destination = 'broken'"),
	'3 0 0 0 0 0|pending|pending', '... which uses up no retries');
is(counters('broken', 'queue_depth'), 6, '... and waits');
$receiver->control('up');
sql("SELECT mlint.breaker_reset('broken')");
wait_for_sql($node, 'breaker_reset: it delivers',
	"SELECT count(*) FROM mlint.deliveries WHERE destination = 'broken' AND state = 'delivered'", 6);
is(counters('broken', 'breaker, breaker_until'), 'closed|', '... and is closed');
is($receiver->count('/switch?broken'), 9, '... each once');

http('probed', '/switch?probed', { retry => { initial_delay_ms => 0, max_retries => 50 },
	breaker => { threshold => 2, timeout_s => 1 } });
$receiver->control('down');
publish($node, 'probed', 1);
wait_for_sql($node, 'another breaker opens', "SELECT breaker FROM mlint.stat_destinations WHERE destination = 'probed'", 'open');
sql("SELECT mlint.publish('probed', to_jsonb(n)) FROM generate_series(2, 10) n");
wait_for('... is probed, and again', sub { $receiver->count('/switch?probed') >= 4 });
my @at = map { $_->{time} } $receiver->requests('/switch?probed');
cmp_ok($at[2] - $at[1], '>=', 0.99, '... after timeout_s');
cmp_ok($at[3] - $at[2], '>=', 0.99, '... by one delivery at a time');
wait_for_sql($node, '... a probe that fails opens it again', "SELECT breaker FROM mlint.stat_destinations WHERE destination = 'probed'", 'open');
$receiver->control('up');
wait_for_sql($node, '... one that succeeds lets all pass',
	"SELECT count(*) FROM mlint.deliveries WHERE destination = 'probed' AND state = 'delivered'", 10);
is(counters('probed', 'breaker'), 'closed', '... and closes it');

# While the probe is out, nothing else is.
http('probe', '/status/500?probe', { retry => { initial_delay_ms => 0 },
	timeout_ms => 3600000, breaker => { threshold => 1, timeout_s => 3 } });
publish($node, 'probe', 0);
wait_for_sql($node, 'a third breaker opens', "SELECT breaker FROM mlint.stat_destinations WHERE destination = 'probe'", 'open');
sql("SELECT mlint.destination_alter('probe', '{\"url\": \"" . $receiver->url('/stall?probe') . "\"}')");
wait_for('... half-open, one is tried', sub { $receiver->count('/stall?probe') == 1 });
sql("SELECT mlint.publish('probe', to_jsonb(n)) FROM generate_series(1, 5) n");
fence();
# It is out for three seconds.
my ($first, @more) = map { $_->{time} } $receiver->requests('/stall?probe');
is(scalar(grep { $_ < $first + 2 } @more), 0, '... and no other while it is out');
sql("SELECT mlint.destination_drop('probe')");

# What never comes to the peer says nothing of it.
sql(q(CREATE FUNCTION public.drops(e jsonb) RETURNS jsonb LANGUAGE sql AS
	$$SELECT nullif(e, jsonb_set(e, '{data}', '"null"'))$$));
http('mixed', '/status/500?mixed', { transform => 'public.drops', retry => { strategy => 'none' },
	breaker => { threshold => 2, timeout_s => 3600 } });
delivery_is($node, deliver($node, 'mixed', $_), qr/^dead\|1\|/, "mixed $_: dead") for qw(1 null 2);
is(counters('mixed', 'breaker'), 'open', 'a transform that returns NULL between two failures does not make them fewer');
http('half', '/status/500?half', { transform => 'public.drops', retry => { strategy => 'none' },
	breaker => { threshold => 1, timeout_s => 1 } });
deliver($node, 'half', 1);
delivery_is($node, deliver($node, 'half', 'null'), qr/^dead\|1\|\|the transform/, 'nor does it close a breaker that is half-open');
isnt(counters('half', 'breaker'), 'closed', '... which stays so');
sql("SELECT mlint.destination_alter('half', '{\"url\": \"http://169.254.169.254/\", \"transform\": \"public.drops\"}')");
delivery_is($node, deliver($node, 'half', $_), qr/^dead\|1\|\|.*always refused/, "refused by the network policy: $_") for 2, 3;
isnt(counters('half', 'breaker'), 'closed', '... nor does that');

# ---- a secret that is not there ----
sql("SELECT mlint.secret_put('key', 'first')");
http('signed', '/status/200?signed', { signing_secret => { secret => 'key' } });
deliver($node, 'signed');
sql("SELECT mlint.secret_drop('key')");
$id = publish($node, 'signed', 'held');
wait_for_sql($node, 'a dropped secret: the delivery is held',
	"SELECT state, attempts, error FROM mlint.deliveries WHERE event_id = $id AND error IS NOT NULL",
	'pending|0|secret "key" does not exist');
is($receiver->count('/status/200?signed'), 1, '... nothing is sent');
fence();
sql("SELECT mlint.secret_put('key', 'second')");
ok(wait_for_delivery($node, $id), '... put again, it is delivered');
delivery_is($node, $id, 'delivered|1|200|', '... at the first attempt');

# ---- a connection that is there already ----
http('kept', '/ok?kept', { retry => { strategy => 'none' }, timeout_ms => 2000 });
deliver($node, 'kept');
sql("SELECT mlint.destination_alter('kept', '{\"url\": \"" . $receiver->url('/stall?kept') . "\"}')");
$id = publish($node, 'kept', 1);
ok(wait_for_delivery($node, $id), 'on a connection that was kept');
delivery_is($node, $id, qr/^dead\|1\|\|there was no response within 2000 ms/, '... silence is told from no connection');

# ---- misbehaviour, beside a destination that is well ----
# Long enough for a disk that lets a dispatcher's commit wait: whoever was not
# looked at meanwhile has not been connected either.
my %once = (retry => { strategy => 'none' }, timeout_ms => 8000);
my %cases = (
	stall => qr/^dead\|1\|\|there was no response within 8000 ms/,
	drip => qr/^dead\|1\|\d*\|the response was not complete within 8000 ms/,
	reset => qr/^dead\|1\|\|the connection broke/,
	close => qr/^dead\|1\|\|the server closed the connection without an answer/,
	half => qr/^dead\|1\|\d*\|the server closed the connection in the middle/,
	garbage => qr/^dead\|1\|\|the server's answer is not valid HTTP/,
	headers => qr/^dead\|1\|\d*\|the response's headers exceed/,
	longheader => qr/^dead\|1\|\d*\|(the response's headers exceed|the server's answer is not valid HTTP)/,
	continues => qr/^dead\|1\|\d*\|the response's headers exceed/,
	huge => qr/^delivered\|1\|200\|$/,
	bytes => qr/^delivered\|1\|200\|$/,
	nul => qr/^delivered\|1\|200\|$/,
	nobody => qr/^dead\|1\|\|could not connect to host "127.0.0.1"/,
	noname => qr/^dead\|1\|\|the name of host "no-such-host.invalid" could not be resolved/,
	metadata => qr/^dead\|1\|\|.*always refused/);
my %url = (
	nobody => 'http://127.0.0.1:1/',
	noname => 'http://no-such-host.invalid/',
	metadata => 'http://169.254.169.254/latest/');
foreach my $case (sort keys %cases)
{
	create_destination($node, "bad-$case", 'http',
		{ url => $url{$case} // $receiver->url("/$case"), %once }, "bad.$case");
}
http('hangs', '/stall?hangs', { timeout_ms => 3600000 });
sql("SELECT mlint.publish('hangs', to_jsonb(n)) FROM generate_series(1, 100) n");
my %event = map { $_ => publish($node, "bad.$_") } sort keys %cases;
$receiver->forget;
$id = sql("SELECT max(mlint.publish('well', to_jsonb(n))) FROM generate_series(1, 500) n");
ok(wait_for_delivery($node, $id), 'beside all these a destination is served');
is($receiver->count('/ok'), 500, '... every event once');
is( sql("SELECT count(*) FILTER (WHERE state = 'in_flight') > 0, count(*) FILTER (WHERE state IN ('delivered', 'dead')) FROM mlint.deliveries WHERE destination = 'hangs'"),
	't|0', '... while another still hangs');
foreach my $case (sort keys %cases)
{
	ok(wait_for_delivery($node, $event{$case}), "$case: ends");
	delivery_is($node, $event{$case}, $cases{$case}, "$case: so");
}
is( sql("SELECT count(*) FROM mlint.stat_workers WHERE kind LIKE '%dispatcher%'") > 0 ? 1 : 0, 1,
	'the dispatcher is there');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/mlint dispatcher.*(exited with exit code|terminated by signal)/,
	'... and never was not');

# ---- a half-open breaker ----
# Half-open, with nothing due but what is in flight, there is nothing to look for.
# What a dispatcher has scanned it tells at the latest when it ends.
sub scans
{
	my @pids = worker_pids($node, 'mlint dispatcher');
	kill 'TERM', @pids;
	wait_for_sql($node, '(others take over)',
		'SELECT count(*) FROM pg_stat_activity WHERE pid IN (' . join(', ', @pids) . ')', 0);
	return sql("SELECT idx_scan FROM pg_stat_all_indexes WHERE indexrelid = 'mlint.pending_due'::regclass");
}
sql(q(CREATE FUNCTION public.fails(e jsonb) RETURNS jsonb LANGUAGE plpgsql AS
	$$BEGIN IF e->'data' = '"fail"' THEN RAISE 'so'; END IF; RETURN e; END$$));
http('hung', '/stall?hung', { transform => 'public.fails', timeout_ms => 3600000,
	retry => { initial_delay_ms => 86_400_000, max_delay_ms => 86_400_000 }, breaker => { threshold => 1, timeout_s => 1 } });
sql("SELECT mlint.destination_alter('hung', enabled => false)");
sql("SELECT mlint.publish('hung', to_jsonb(n)) FROM generate_series(1, 5) n");
fence();
my $scans = scans();
sql("SELECT mlint.destination_alter('hung', enabled => true)");
wait_for('what was held is in flight', sub { $receiver->count('/stall?hung') == 5 });
publish($node, 'hung', 'fail');
my $opened = "FROM mlint.destination_stats() s JOIN mlint.destinations d ON d.id = s.destination_id WHERE d.name = 'hung' AND s.breaker <> 'closed'";
wait_for_sql($node, 'another fails, and the breaker opens', "SELECT count(*) $opened", 1);
publish($node, 'hung', 'fail');
wait_for_sql($node, 'the probe fails too', "SELECT count(*) FROM mlint.deliveries WHERE destination = 'hung' AND attempts = 1 AND state = 'pending'", 2);
wait_for_sql($node, 'the breaker is half-open',
	"SELECT s.breaker = 'half-open' OR s.breaker_until < clock_timestamp() $opened");
fence() for 1 .. 25;
$scans = scans() - $scans;
cmp_ok($scans, '<', 2000, '... nothing is looked for all the time');
$node->stop;
done_testing();
