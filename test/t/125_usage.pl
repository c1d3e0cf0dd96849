# Usage is counted exactly once: whatever is killed in the middle of a fold,
# however long a prepared transaction waits, on a standby, and through pg_dump
# into another cluster. The fold comes when it is wanted and rests when it is
# not, and the log does not grow.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mlint_node('main', allows_streaming => 1, conf => <<'EOC');
log_statement = none
autovacuum = off
restart_after_crash = on
EOC

sub sql
{
	my ($on, $query) = @_;
	return $on->safe_psql('postgres', $query);
}

# What is told of the session, its model, its tag, and all models.
my $report = <<'EOQ';
SELECT (mlint.session_usage('s')).total_prompt_tokens, (mlint.model_usage('m')).total_prompts,
	(mlint.model_usage('m')).cost->>'USD', (SELECT total_tokens FROM mlint.usage_by_tag WHERE tag = 't'),
	(SELECT sum(total_prompts) FROM mlint.stat_models)
EOQ

sub track
{
	my ($on, $times) = @_;
	return sql($on, "SELECT count(mlint.usage_track('s', 10, 5, latency_ms => 2, custom => '{\"n\": 1}')) FROM generate_series(1, $times)");
}

sub fold { return sql($_[0], 'CALL mlint.usage_fold_run(8192)'); }

sql($node, <<'EOQ');
SELECT mlint.session_register('s', 'm', tags => ARRAY['t']);
SELECT mlint.model_price_set('m', 1, 2, per => 1);
EOQ

# ---- the job ----

is( sql($node, "SELECT every FROM mlint.jobs WHERE name = 'usage_fold'"),
	'1 day', 'the fold rests until something is reported');
track($node, 1);
wait_for_sql($node, 'a report has the job run',
	'SELECT count(*) = 0 FROM mlint.usage_rest(NULL, NULL)');
wait_for_sql($node, '... and come back each minute',
	"SELECT every = '1 minute' FROM mlint.jobs WHERE name = 'usage_fold'");
is(sql($node, $report), '10|1|20|15|1', 'what was reported is told');
track($node, 10000);
wait_for_sql($node, 'many reports have it run at once',
	'SELECT count(*) = 0 FROM mlint.usage_rest(NULL, NULL)');
is(sql($node, $report), '100010|10001|200020|150015|10001', '... and all are told');
wait_for_sql($node, '... by a run that has ended', "SELECT NOT running FROM mlint.jobs WHERE name = 'usage_fold'");
# Ours is as good as the job's, which would come in a minute.
sql($node, 'CALL mlint.usage_fold_run()');
is( sql($node, "SELECT every FROM mlint.jobs WHERE name = 'usage_fold'"),
	'1 day', 'with nothing to do it rests again');
is(sql($node, 'SELECT resting FROM mlint.usage_fold'), 't', '... and says so');

# From here on nobody folds but this test.
sql($node, "DELETE FROM mlint.job WHERE name = 'usage_fold'");

# One that rests sees to it that nobody has reported meanwhile.
my $open = $node->background_psql('postgres', on_error_stop => 0);
sql($node, 'UPDATE mlint.usage_fold SET resting = false');
$open->query_safe("BEGIN; SELECT mlint.usage_track('s', 0, 0)");
fold($node);
is(sql($node, 'SELECT resting FROM mlint.usage_fold'), 'f',
	'it does not rest while a report is on its way');
$open->query_safe('ROLLBACK');
fold($node);
is(sql($node, 'SELECT resting FROM mlint.usage_fold'), 't', '... but when it is gone');

# ---- the log does not grow ----

sub log_pages
{
	return sql($node, <<'EOQ');
SELECT (pg_relation_size('mlint.usage_log_1') + pg_relation_size('mlint.usage_log_2')) / 8192
EOQ
}

wait_for(
	'both tables of the log are emptied in their turn',
	sub {
		track($node, 100);
		fold($node);
		return log_pages() <= 3;
	});
is( sql($node, "SELECT count(*) FROM mlint.usage_log_1 WHERE session = 0"),
	1, '... and marked');
is( sql($node, "SELECT count(*) FROM mlint.usage_log_2 WHERE session = 0"),
	1, '... both');
my $told = sql($node, $report);
$open->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
is($open->query_safe($report), $told, 'a snapshot is held');
for my $round (1 .. 5)
{
	track($node, 1000);
	fold($node);
}
is($open->query_safe($report), $told, '... and tells the same, after folds and turns');
cmp_ok(log_pages(), '>', 30, '... for the sake of which the log is kept');
$open->query_safe('COMMIT');
wait_for(
	'it is emptied when the snapshot is gone',
	sub { fold($node); return log_pages() <= 64; });
isnt(sql($node, $report), $told, 'there is more to tell now');

# ---- prepared transactions ----

$told = sql($node, $report);
sql($node, "BEGIN; SELECT mlint.usage_track('s', 1000000, 0); PREPARE TRANSACTION 'late'");
track($node, 2000);
fold($node) for 1 .. 4;
my ($tokens) = split /\|/, $told;
like(sql($node, $report), qr/^@{[$tokens + 20000]}\|/, 'a prepared transaction is not told');
$node->stop('immediate');
$node->start;
fold($node);
sql($node, "COMMIT PREPARED 'late'");
like(sql($node, $report), qr/^@{[$tokens + 1020000]}\|/, '... but when it is committed, after a crash too');
fold($node) for 1 .. 3;
like(sql($node, $report), qr/^@{[$tokens + 1020000]}\|/, '... and folded');

# ---- a crash in the middle of a fold ----

sql($node, <<'EOQ');
CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
CREATE TRIGGER pause AFTER INSERT OR UPDATE ON mlint.usage_total EXECUTE FUNCTION pause();
SELECT mlint.usage_budget_set('tag:t', tokens => 1);
EOQ
track($node, 50);
$told = sql($node, $report);
$open = $node->background_psql('postgres', on_error_stop => 0);
$open->query_safe('SELECT pg_advisory_lock(1)');
my $folder = $node->background_psql('postgres', on_error_stop => 0);
$folder->query_until(qr/^$/, "\\echo\nCALL mlint.usage_fold_run();\n");
my $waits = "FROM pg_stat_activity WHERE query LIKE 'CALL mlint.usage_fold_run%' AND wait_event = 'advisory'";
wait_for_sql($node, 'a fold is in the middle of its work', "SELECT count(*) = 1 $waits");
is(sql($node, $report), $told, '... which nobody sees');
kill 9, sql($node, "SELECT pid $waits");
wait_for_sql($node, 'the server recovers from its death', "SELECT count(*) = 0 $waits");
sql($node, 'DROP TRIGGER pause ON mlint.usage_total');
is(sql($node, $report), $told, '... and what was reported is told as before');
cmp_ok(sql($node, "SELECT count(*) FROM mlint.usage_rest('a', NULL) WHERE kind = 'u'"),
	'==', 50, '... not folded yet');
is(sql($node, "SELECT count(*) FROM mlint.event WHERE type LIKE 'usage.%'"), 0, '... nor announced');
fold($node);
is(sql($node, $report), $told, '... and the same when it is');
is(sql($node, "SELECT string_agg(type, ',') FROM mlint.event WHERE type LIKE 'usage.%'"),
	'usage.budget_exceeded', '... and announced, once');
eval { $_->{run}->finish } for $open, $folder;

# ---- a standby ----

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
track($node, 5);
fold($node);
track($node, 3);
# The fold commits asynchronously: nothing else would send it now.
sql($node, 'SELECT txid_current()');
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
is(sql($standby, $report), sql($node, $report), 'a standby tells the same, totals and rest');
my ($rc, $out, $err) = $standby->psql('postgres', "SELECT mlint.usage_track('s', 1, 1)");
like($err, qr/cannot execute mlint.usage_track\(\) during recovery/,
	'... and counts nothing');
is( sql($standby, 'SELECT count(*) FROM mlint.usage_budgets WHERE exceeded'),
	1, '... and knows the budgets');
$standby->stop;

# ---- pg_dump ----

# Ids of transactions that the other cluster has not come to yet.
sql($node, <<'EOQ');
CREATE PROCEDURE burn() LANGUAGE plpgsql AS
	$$ BEGIN FOR i IN 1 .. 3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$;
CALL burn();
DROP FUNCTION pause();
DROP PROCEDURE burn();
EOQ
track($node, 20);
fold($node);
track($node, 30);
# Some of it in either table.
sql($node, 'UPDATE mlint.usage_fold SET log = 3 - log, spare = false, drained = NULL; SELECT mlint.usage_log_open()');
track($node, 40);
$told = sql($node, $report);
my $rest = "SELECT count(*) FROM mlint.usage_rest('a', NULL) WHERE kind = 'u'";
is(sql($node, $rest), 70, 'some reports are not folded when it is dumped');
my $dump = $node->basedir . '/dump.sql';
$node->run_log(['pg_dump', '-f', $dump, '-d', $node->connstr('postgres')]);

for my $before (0, 5000)
{
	my $other = mlint_node("other$before", create => 0);
	# A cluster that is behind ours, and one that is before.
	sql($other, "DO \$\$ BEGIN FOR i IN 1 .. $before LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END \$\$");
	$other->psql('postgres', "CREATE ROLE $_") for qw(mlint_reader mlint_user mlint_admin);
	($rc, $out, $err) = $other->psql('postgres', '', extra_params => [ '-f', $dump ]);
	is($rc, 0, "the dump is restored ($before)") or diag $err;
	is(sql($other, $report), $told, '... and all of it is told');
	is(sql($other, $rest), 70, '... what was not folded is not');
	fold($other);
	is(sql($other, $report), $told, '... and once it is, the same is told');
	is(sql($other, $rest), 0, '... of the totals');
	fold($other);
	track($other, 7);
	my @old = split /\|/, $told;
	like(sql($other, $report), qr/^@{[$old[0] + 70]}\|@{[$old[1] + 7]}\|/, '... and it goes on');
	fold($other) for 1 .. 3;
	like(sql($other, $report), qr/^@{[$old[0] + 70]}\|@{[$old[1] + 7]}\|/, '... and on');
	is(sql($other, "SELECT count(*) FROM mlint.event WHERE type LIKE 'usage.%'"),
		0, '... and nothing is announced again');
	$other->stop;
}

$node->stop;
done_testing();
