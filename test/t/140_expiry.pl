# The expiry job dies in the middle of a batch, at each place, and the next run
# does the rest, each archive once; a policy that 100,000 archives have is
# altered at once, and again while the job brings them up to date; it waits for
# nobody.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = mlint_node('main', conf => "restart_after_crash = on\nautovacuum = off\n");
my $data = $node->data_dir;

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

# Have the job run, and wait until it has, with or without an error.
sub run_job
{
	my ($what) = @_;
	my $before = sql("SELECT count(*) FROM mlint.job_runs WHERE name = 'archive_expire'");

	sql("SELECT mlint.job_run_now('archive_expire')");
	return wait_for_sql($node, $what,
		"SELECT count(*) > $before FROM mlint.job_runs WHERE name = 'archive_expire'");
}

# ---- it dies ----

sql(<<'EOQ');
CREATE FUNCTION talk(sid text) RETURNS void LANGUAGE sql AS $$
	SELECT mlint.session_register(sid, 'm');
	SELECT mlint.prompt_add(sid, 'question of ' || sid);
$$;
SELECT mlint.retention_policy_create('go', 365, auto_delete => true);
SELECT mlint.retention_policy_create('stay', 365);
SELECT talk('go' || n), talk('stay' || n), talk('young' || n) FROM generate_series(1, 120) n;
SELECT mlint.archive_session('go' || n, policy => 'go'), mlint.archive_session('stay' || n, policy => 'stay'),
	mlint.archive_session('young' || n, policy => 'go') FROM generate_series(1, 120) n;
SELECT mlint.archive_hold('go7', 'case 7');
EOQ
wait_for_sql($node, 'the job is at rest',
	"SELECT NOT running FROM mlint.jobs WHERE name = 'archive_expire'");

# What is there of an archive is there whole, or gone whole.
my $torn = <<'EOQ';
SELECT count(*) FROM mlint.session s
FULL JOIN mlint.archive a ON a.session = s.id
FULL JOIN mlint.archive_chunk c ON c.archive = a.id
FULL JOIN mlint.data_key k ON k.id = a.data_key
WHERE s.id IS NULL OR a.id IS NULL OR c.archive IS NULL OR k.id IS NULL OR s.status <> 'archived'
EOQ
is(sql($torn), 0, 'all archives are whole');

inject($node, 'expire-archive', 'wait');
sql(<<'EOQ');
BEGIN;
ALTER TABLE mlint.archive DISABLE TRIGGER hold_guard_update;
UPDATE mlint.archive a SET archived_at = a.archived_at - interval '400 days',
	expires_at = a.expires_at - interval '400 days'
FROM mlint.session s WHERE s.id = a.session AND s.session_id !~ 'young';
ALTER TABLE mlint.archive ENABLE ALWAYS TRIGGER hold_guard_update;
COMMIT;
SELECT mlint.job_run_now('archive_expire');
EOQ
# In the middle of its first batch, with a hold and a policy coming in between.
wait_for_sql($node, 'the job is in its batch',
	"SELECT count(*) > 0 FROM pg_locks WHERE relation = 'mlint.archive'::regclass AND mode = 'RowExclusiveLock'");
sql("SELECT mlint.archive_hold('go120', 'in between')");
resume($node, 'expire-archive');
wait_for_sql($node, 'what is due is dealt with',
	"SELECT count(*) = 0 FROM mlint.archive WHERE announced_at IS NULL AND expires_at < now()");
is(sql("SELECT string_agg(s.session_id, ' ' ORDER BY s.session_id) FROM mlint.archive a JOIN mlint.session s ON s.id = a.session WHERE s.session_id ~ '^go'"),
	'go120 go7', 'what is held stays, also if it was held during the batch');
is(sql("SELECT count(*) FROM mlint.session WHERE session_id ~ 'young'"), 120, 'what is not due stays');
is(sql("SELECT count(*) FROM mlint.events WHERE type = 'archive.expired'"), 122, 'the others were announced');
is(sql($torn), 0, 'all is whole');

# Now it dies in the middle of a batch, by error and by SIGKILL.
sql(<<'EOQ');
SELECT mlint.archive_release('go7'), mlint.archive_release('go120');
UPDATE mlint.archive a SET archived_at = a.archived_at - interval '400 days',
	expires_at = a.expires_at - interval '400 days'
FROM mlint.session s WHERE s.id = a.session AND s.session_id ~ 'young';
EOQ
my $round = 0;
for my $action (qw(kill error kill))
{
	my $name = 'again ' . ++$round;
	sql("SELECT talk('$name'); SELECT mlint.archive_session('$name', policy => 'go')");
	# Nothing is due before that, whoever runs.
	inject($node, 'expire-archive', $action);
	sql("UPDATE mlint.archive SET archived_at = archived_at - interval '500 days', expires_at = expires_at - interval '500 days' WHERE archived_at > now() - interval '1 day'");
	$node->psql('postgres', "SELECT mlint.job_run_now('archive_expire')");
	wait_for("the job is struck: $action", sub { struck($node, 'expire-archive') });
	is(sql($torn), 0, "all is whole after $action");
	$node->psql('postgres', "SELECT mlint.job_run_now('archive_expire')");
	wait_for_sql($node, "and goes after $action",
		"SELECT count(*) = 0 FROM mlint.session WHERE session_id IN ('$name', 'go7', 'go120') OR session_id ~ 'young'");
}
is(sql('SELECT count(*) FROM mlint.session'), 120, 'what was only announced is there');
is(sql(<<'EOQ'), '', 'each deletion that took place has one entry');
SELECT string_agg(session || ': ' || n, ' ') FROM (
	SELECT details->>'session' AS session, count(*) AS n FROM mlint.audit_log
	WHERE action = 'archive.delete' AND outcome = 'ok' AND details->>'reason' = 'expired'
		AND details->>'policy' = 'go' GROUP BY 1) e WHERE n <> 1
EOQ
is(sql(<<'EOQ'), 243, 'and there is none too few');
SELECT count(*) FROM mlint.audit_log
WHERE action = 'archive.delete' AND outcome = 'ok' AND details->>'reason' = 'expired'
EOQ
is(sql("SELECT count(*) FROM mlint.events WHERE type = 'archive.expired'"), 122, 'nothing is announced twice');
is(sql($torn), 0, 'all is whole at the end');

# ---- 100,000 archives ----

sql(<<'EOQ');
SELECT mlint.retention_policy_create('many', 400);
INSERT INTO mlint.session (session_id, model_id, status, started_at, active_at, updated_at)
SELECT 'm' || n, 'm', 'archived', now(), now(), now() FROM generate_series(1, 100000) n;
INSERT INTO mlint.archive (id, session, policy_id, retention_days, archived_at, archived_by,
	expires_at, messages, zstd_level, plain_bytes, stored_bytes, chunks, sha256)
SELECT gen_random_uuid(), s.id, p.id, 365, now(), 'x', now() + '24:00'::interval * 400, 0, 0, 10, 10, 0, sha256('')
FROM mlint.session s, mlint.retention_policy p WHERE s.session_id ~ '^m[0-9]' AND p.name = 'many';
ANALYZE mlint.session, mlint.archive;
EOQ
my $up_to_date = <<'EOQ';
SELECT count(*) FROM mlint.archive a JOIN mlint.archive_periods v ON v.archive_id = a.id
WHERE v.policy = 'many' AND a.expires_at = v.ends_at
EOQ
inject($node, 'expire-refresh', 'wait');
my $began = time;
sql("SELECT mlint.retention_policy_alter('many', 500)");
my $took = time - $began;
cmp_ok($took, '<', 10, sprintf('altering takes no longer than for one (%.0f ms with psql)', 1000 * $took));
is(sql("SELECT DISTINCT retention_days FROM mlint.archive_periods WHERE policy = 'many'"), 500, 'and counts at once');
# The job holds the locks of its first batch: nobody who has to do with another
# archive waits, and who alters again has it begin again.
wait_for_sql($node, 'the job is at it',
	"SELECT count(*) > 0 FROM pg_locks WHERE relation = 'mlint.retention_stale'::regclass AND mode = 'RowExclusiveLock'");
my $other = sql("SELECT a.id FROM mlint.archive a JOIN mlint.session s ON s.id = a.session WHERE policy_id IS NOT NULL AND s.session_id ~ '^m' ORDER BY a.id DESC LIMIT 1");
is(sql("SET lock_timeout = '5 s'; SELECT mlint.archive_hold('$other'::uuid, 'x') > 0; SELECT mlint.archive_release('$other'::uuid); SELECT mlint.retention_policy_apply('$other', 'many')"),
	"t\n1\n", 'others go on meanwhile');
my $alter = $node->background_psql('postgres');
$alter->query_until(qr/begun/, "\\echo begun\nSELECT mlint.retention_policy_alter('many', 600);\n");
resume($node, 'expire-refresh');
$alter->quit;
sql("SELECT mlint.job_run_now('archive_expire')");
wait_for_sql($node, 'expires_at has followed', $up_to_date, 100000);
wait_for_sql($node, 'and nothing is left to do', 'SELECT count(*) = 0 FROM mlint.retention_stale');
is(sql("SELECT DISTINCT retention_days FROM mlint.archive_periods WHERE policy = 'many'"), 600, 'the last alteration counts');

# Some are locked by others for long: the job passes over them, and comes back.
my $locker = $node->background_psql('postgres');
$locker->query_safe("BEGIN; SELECT count(*) FROM (SELECT FROM mlint.archive WHERE policy_id IS NOT NULL ORDER BY id DESC LIMIT 3000 FOR UPDATE) l");
sql("SELECT mlint.retention_policy_alter('many', 450)");
wait_for_sql($node, 'those that are free have followed', "SELECT (($up_to_date) BETWEEN 96880 AND 99999)");
wait_for_sql($node, 'the rest is remembered', 'SELECT again AND after IS NULL FROM mlint.retention_stale');
$locker->query_safe('COMMIT');
$locker->quit;
run_job('the next run ends');
wait_for_sql($node, 'the rest has followed', $up_to_date, 100000);
wait_for_sql($node, 'and nothing is left', 'SELECT count(*) = 0 FROM mlint.retention_stale');

# What is due is found by the index: a run that finds nothing reads nearly
# nothing of the table.
my $blocks = "SELECT coalesce(heap_blks_read + heap_blks_hit, 0) FROM pg_statio_all_tables WHERE relid = 'mlint.archive'::regclass";
run_job('a run with nothing to do ends');
sql('SELECT pg_stat_force_next_flush()');
my $before = sql($blocks);
run_job('another run with nothing to do ends');
wait_for_sql($node, 'it is at rest', "SELECT NOT running FROM mlint.jobs WHERE name = 'archive_expire'");
cmp_ok(sql($blocks) - $before, '<', 100, 'and it has not read the table');

$node->stop;
done_testing();
