# mlint.metrics(): what promtool finds nothing wrong with, a real Prometheus
# reads, and queries over it come to what happened. The alert rules of
# docs/alerts.yml do what is said of them. Neither it nor mlint.health() reads
# more than a bounded number of rows, however many there are.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use HTTP::Tiny;
use IPC::Run ();
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SecretTest;
use Test::More;

my $tree = "$FindBin::RealBin/../..";
my $receiver = MlintTest::Receiver->start;
my $node = mlint_node('main');

# What a program has to say of a text: its status, output and errors.
sub said
{
	my ($text, @command) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run(\@command, '<', \$text, '>', \$out, '2>', \$err);
	return $? . $out . $err;
}

# ---- what happens here ----

my $odd = q{quote " and back\\slash};
create_destination($node, $odd, 'http', { url => $receiver->url('/ok') }, 'metrics.good');
create_destination($node, 'metrics.bad', 'http', { url => $receiver->url('/status/400') });
deliver($node, 'metrics.good', { n => $_ }) for 1 .. 7;
deliver($node, 'metrics.bad', { n => $_ }) for 1 .. 3;
$node->safe_psql('postgres', <<'EOQ');
SELECT mlint.rate_rule_create('limit', 'token_bucket', 5, '1 day');
SELECT mlint.rate_allow('limit', 'person@example.org') FROM generate_series(1, 8);
SELECT mlint.model_price_set('model-a', 1, 2, per => 1);
SELECT mlint.session_register('conversation-of-somebody', 'model-a', metadata => '{"user": "somebody"}');
SELECT mlint.usage_track('conversation-of-somebody', 100, 20, latency_ms => 250) FROM generate_series(1, 4);
SELECT mlint.secret_put('a/very/secret/name', 'x');
SELECT mlint.job_run_now('usage_fold');
EOQ

my $metrics;
sub metric
{
	my ($name, $labels) = @_;
	$metrics = $node->safe_psql('postgres', 'SELECT mlint.metrics()');
	my ($value) = $metrics =~ /^\Q$name\E\{database="postgres"\Q$labels\E\} (\S+)$/m;
	return $value // 'none';
}

wait_for('the destination\'s counters', sub {
	metric('mlint_destination_delivered_total', ',destination="quote \" and back\\\\slash"') eq '7' });
wait_for('what died', sub { metric('mlint_destination_dead_total', ',destination="metrics.bad"') eq '3' });
is(metric('mlint_destination_failed_total', ',destination="metrics.bad"'), '3', '... which is what failed');
is(metric('mlint_destination_attempt_duration_seconds_count', ',destination="metrics.bad"'), '3', 'attempts are timed');
is(metric('mlint_destination_attempt_duration_seconds_bucket', ',destination="metrics.bad",le="+Inf"'), '3', '... all of them');
my @buckets = $metrics =~ /^mlint_destination_attempt_duration_seconds_bucket\{.*quote.*,le="([0-9.]+)"\} (\d+)$/mg;
is(scalar @buckets / 2, 17, 'there are 17 bounds');
is(join(' ', map { $buckets[ 2 * $_ ] } 0 .. 2), '0.001024 0.002048 0.004096', '... from 1 ms');
is($buckets[-2], '67.108864', '... to 67 s');
is(join(' ', sort { $a <=> $b } map { $buckets[ 2 * $_ + 1 ] } 0 .. 16),
	join(' ', map { $buckets[ 2 * $_ + 1 ] } 0 .. 16), '... and counts grow with them');
is($buckets[-1], 7, '... up to all');
my $view = $node->safe_psql('postgres', q{SELECT extract(epoch FROM p99) FROM mlint.stat_destinations WHERE destination = 'metrics.bad'});
my $sum = metric('mlint_destination_attempt_duration_seconds_sum', ',destination="metrics.bad"');
cmp_ok($sum, '>', 0, 'the sum of what they took');
cmp_ok($sum, '<', 3 * 1.1 * $view, '... is no more than three times the longest');
is(metric('mlint_rate_limit_allowed_total', ',rule="limit"'), '5', 'what a limit let pass');
is(metric('mlint_rate_limit_refused_total', ',rule="limit"'), '3', '... and refused');
wait_for('the fold', sub { metric('mlint_model_prompts_total', ',model="model-a"') eq '4' });
is(metric('mlint_model_prompt_tokens_total', ',model="model-a"'), '400', 'tokens of a model');
is(metric('mlint_model_cost_total', ',model="model-a",currency="USD"'), '560', '... and its cost');
like(metric('mlint_model_latency_seconds_sum', ',model="model-a"'), qr/^1(\.0*)?$/, '... and latency, in seconds');
is(metric('mlint_model_latency_seconds_count', ',model="model-a"'), '4', '... of four');
is(metric('mlint_usage_completion_tokens_total', ''), '80', 'and of all');
is(metric('mlint_workers', ',kind="scheduler"'), '1', 'workers');
cmp_ok(metric('mlint_audit_entries_total', ''), '>', 3, 'entries of the audit log');
unlike($metrics, qr/somebody|person|very.secret/, 'no identifier of a person, session or secret is a label');
unlike($metrics, qr/^mlint_metrics_failed.* 1$/m, 'every source can be read');

# ---- promtool ----

is(said($metrics, 'promtool', 'check', 'metrics'), '0', 'promtool has nothing to say');
isnt(said("x_total 1\nx_total 2\n", 'promtool', 'check', 'metrics'), '0', '(which it has elsewhere)');
like(said('', 'promtool', 'check', 'rules', "$tree/docs/alerts.yml"), qr/^0.*SUCCESS: \d+ rules found/s, 'the alert rules are rules');
like(said('', 'promtool', 'test', 'rules', "$tree/test/alerts_test.yml"), qr/^0.*SUCCESS/s, '... and say what they should');
# Nor do they ask for what is not there.
my %shown = map { $_ => 1 } $metrics =~ /^# TYPE (\S+) /mg;
my @asked = slurp_file("$tree/docs/alerts.yml") =~ /\b(mlint_[a-z_]+)/g;
$shown{"mlint_certificate_not_after_timestamp_seconds"} = 1;
is(join(' ', grep { !$shown{ s/_bucket$//r } } @asked), '', 'they ask for what is shown');

# ---- a real Prometheus ----

my ($prometheus, $port) = peer_start('prometheus', $node->connstr('postgres'));
my $http = HTTP::Tiny->new(timeout => 10);
my $last = '';

# The value of a query that comes to one.
sub asked
{
	my ($query) = @_;
	my $answer = $http->post_form("http://127.0.0.1:$port/api/v1/query", { query => $query });
	$last = $answer->{content};
	my $result = eval { JSON::PP::decode_json($answer->{content})->{data}{result} };
	return @{ $result // [] } == 1 ? $result->[0]{value}[1] : 'none';
}

wait_for('Prometheus reads it', sub { asked('up{job="mlint"}') eq '1' }) or diag $last;
wait_for('a counter, by its odd label',
	sub { asked(q{mlint_destination_delivered_total{destination="quote \" and back\\\\slash"}}) eq '7' }) or diag $last;
wait_for('a sum', sub { asked('sum(mlint_destination_dead_total)') eq '3' }) or diag $last;
wait_for('all is well but dead letters',
	sub { asked('count(mlint_health_status == 0) == bool count(mlint_health_status) - 1') eq '1' }) or diag $last;
wait_for('... which are a warning', sub { asked('mlint_health_status{check="dead_letters"}') eq '1' }) or diag $last;
my $quantile = asked('histogram_quantile(0.99, mlint_destination_attempt_duration_seconds_bucket{destination="metrics.bad"})');
cmp_ok($quantile, '>', 0, 'a quantile of the histogram');
cmp_ok($quantile, '<=', 2 * 1.1 * $view, '... is near what the view says');
wait_for('a rate', sub { deliver($node, 'metrics.good', {}); my $rate = asked(
	'sum(rate(mlint_destination_delivered_total[2m]))'); $rate ne 'none' && $rate > 0 }) or diag $last;
wait_for('the alert of what is wrong is pending', sub {
	asked('ALERTS{alertname="MlintWarning", check="dead_letters", alertstate="pending"}') eq '1' }) or diag $last;
peer_stop($prometheus);

# ---- the cost of looking ----

$node->safe_psql('postgres', <<'EOQ');
-- This is no dump that is restored.
DO $$
DECLARE
	t regclass;
BEGIN
	FOR t IN SELECT tgrelid FROM pg_trigger WHERE tgname = '1 restore' LOOP
		EXECUTE format('ALTER TABLE %s DISABLE TRIGGER "1 restore", DISABLE TRIGGER "1 restored"', t);
	END LOOP;
END
$$;
INSERT INTO mlint.event (id, segment, life, xid, published_at, type, data, metadata)
SELECT nextval('mlint.event_id'), 1, 1, pg_current_xact_id(), now(), 'metrics.many', '{}', '{}' FROM generate_series(1, 100000);
INSERT INTO mlint.delivery (event_id, destination_id, segment, state, attempts, error, finished_at)
SELECT n, d.id, 1, 'x', 1, 'HTTP 400', now() FROM generate_series(1000, 100000) n, mlint.destination d WHERE d.name = 'metrics.bad';
INSERT INTO mlint.pending (event_id, destination_id, segment, attempts, next_attempt_at)
SELECT n, d.id, 1, 3, now() + '1 day' FROM generate_series(1000, 100000) n, mlint.destination d WHERE d.name = 'metrics.bad';
INSERT INTO mlint.session (session_id, model_id, started_at, active_at, updated_at)
SELECT 'many ' || n, 'm', now(), now() - '40 days'::interval, now() FROM generate_series(1, 100000) n;
INSERT INTO mlint.archive (id, session, retention_days, archived_at, archived_by, expires_at, messages, zstd_level,
	plain_bytes, stored_bytes, chunks, sha256)
SELECT gen_random_uuid(), id, 365, now(), 'x', now() + '1 year'::interval, 1, 0, 1, 1, 1, sha256('x') FROM mlint.session;
INSERT INTO mlint.data_key (purpose, tree, leaf, key_id, wrapped)
SELECT 'x', gen_random_uuid(), n, 1, '\x00' FROM generate_series(1, 100000) n;
INSERT INTO mlint.data_key_destroyed (id, tree, leaf, destroyed_at)
SELECT n, gen_random_uuid(), n, now() FROM generate_series(1, 100000) n;
INSERT INTO mlint.usage_total (scope, name, step, period, kind, key, prompts)
SELECT 'm', 'model ' || m, 'h', now() - h * '1 hour'::interval, 'u', '', 5 FROM generate_series(1, 20) m, generate_series(1, 5000) h;
INSERT INTO mlint.archive_store (name, kind, options, active) VALUES ('s', 'file', '{}', true);
INSERT INTO mlint.archive_garbage (store, archive) SELECT s.id, gen_random_uuid() FROM mlint.archive_store s, generate_series(1, 100000);
INSERT INTO mlint.audit_entry SELECT n, (SELECT max(month) FROM mlint.audit_entry), now(), 1, NULL, NULL, sha256('x'), 'a', 'a', 'a',
	NULL, 'x.y', 'x', 'x', 'ok', NULL FROM generate_series(1000000, 1100000) n;
EOQ
for my $call ('SELECT count(*) FROM mlint.health()', 'SELECT length(mlint.metrics())')
{
	my $read = $node->safe_psql('postgres', <<"EOQ");
BEGIN;
DO 'BEGIN PERFORM (SELECT (x.*)::text FROM ($call) x); END';
SELECT coalesce(string_agg(format('%s: %s, %s', relname, seq_tup_read, idx_tup_fetch), '; '), 'little')
FROM pg_stat_xact_user_tables WHERE seq_tup_read > 2000 OR idx_tup_fetch > 45000;
EOQ
	is($read, 'little', "$call reads little of large tables");
}
my $waits = $node->safe_psql('postgres', q{SELECT count(*) FROM mlint.pending WHERE destination_id =
	(SELECT id FROM mlint.destination WHERE name = 'metrics.bad')});
cmp_ok($waits, '>', 90000, '(they were large)');
is(metric('mlint_destination_waiting', ',destination="metrics.bad"'), '10000', 'what is counted is counted up to a bound');

$node->stop;
done_testing();
