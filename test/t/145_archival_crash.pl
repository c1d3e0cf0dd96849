# The archival scheduler dies at every step of a batch: every session is live
# or archived, whole, never both and never neither, and the next run archives
# the rest. It runs by itself when it is enabled, and can be cancelled.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mlint_node('main', conf => "restart_after_crash = on\n");
my $data = $node->data_dir;

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

# Five batches and a bit; each session has a few messages, some of them long.
my $sessions = 22;
sql(<<'EOQ');
CREATE TABLE truth (session_id text PRIMARY KEY, said text NOT NULL);
-- What a session and its messages are, whatever has become of them since.
CREATE FUNCTION said(sid text) RETURNS text LANGUAGE sql STABLE AS $$
	SELECT md5(string_agg(to_jsonb(m)::text, E'\n' ORDER BY seq))
	FROM mlint.message m JOIN mlint.session s ON s.id = m.session WHERE s.session_id = sid
$$;
CREATE FUNCTION talk(sid text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	at uuid;
BEGIN
	PERFORM mlint.session_register(sid, 'm', tags => ARRAY['crash'], metadata => '{"of": "a test"}');
	FOR i IN 1 .. 3 LOOP
		at := mlint.prompt_add(sid, 'question ' || i || ' of ' || sid);
		PERFORM mlint.response_add(at, repeat(md5(sid || i), 1 + 100 * (i % 2)), '{"prompt_tokens": 3}');
	END LOOP;
	UPDATE mlint.session SET active_at = now() - interval '40 days' WHERE session_id = sid;
END $$;
-- Sessions that are not either live and whole or archived and whole.
CREATE FUNCTION torn() RETURNS SETOF text LANGUAGE sql AS $$
	SELECT t.session_id || ': ' || coalesce(s.status, 'gone') || ', ' || count(a.id) || ' archives, '
		|| (SELECT count(*) FROM mlint.message m WHERE m.session = s.id) || ' messages'
	FROM truth t
	LEFT JOIN mlint.session s USING (session_id)
	LEFT JOIN mlint.archive a ON a.session = s.id
	GROUP BY t.session_id, t.said, s.id, s.status
	HAVING NOT coalesce(CASE WHEN s.status = 'archived'
			THEN count(a.id) = 1
				AND count(a.id) FILTER (WHERE CASE WHEN a.messages = 6
					THEN jsonb_array_length(mlint.archive_get(a.id) -> 'messages') = 6 END) = 1
				AND NOT EXISTS (SELECT FROM mlint.message m WHERE m.session = s.id)
			ELSE count(a.id) = 0 AND said(t.session_id) = t.said END, false)
$$;
EOQ

# Sessions that are due, none of them archived.
sub prepare
{
	sql(<<"EOQ");
SELECT mlint.archive_restore(id) FROM mlint.archive;
TRUNCATE truth;
SELECT talk('s' || n) FROM generate_series(1, $sessions) n
WHERE NOT EXISTS (SELECT FROM mlint.session WHERE session_id = 's' || n);
UPDATE mlint.session SET active_at = now() - interval '40 days' + substr(session_id, 2)::int * interval '1 s';
INSERT INTO truth SELECT session_id, said(session_id) FROM mlint.session;
EOQ
	return;
}

# By itself, from the settings on.
prepare();
sql('SELECT mlint.archival_set(batch_size => 4)');
wait_for_sql($node, 'what is due is archived by itself, once it is enabled',
	"SELECT count(*) = $sessions FROM mlint.session WHERE status = 'archived'");
is(sql('SELECT * FROM torn()'), '', '... whole');
is(sql('SELECT count(*) FROM mlint.archival_runs'), 1, '... in one run');
wait_for_sql($node, '... that ends',
	"SELECT state = 'completed' AND requested_by IS NULL FROM mlint.archival_runs");
sql('SELECT mlint.archival_set(batch_size => 4, enabled => false)');

# In the middle of a session, between sessions, before and after the commit.
for my $point ('archive-written', 'archive-created',
	'archival-session', 'archival-after-1', 'archival-after-3',
	'archival-before-commit', 'archival-after-commit')
{
	prepare();

	inject($node, $point, 'kill');
	my $run = sql('SELECT mlint.archival_run()');
	wait_for("$point: a process dies there", sub { struck($node, $point) });
	# Whatever the server has got to now that it is up again.
	is(sql('SELECT * FROM torn()'), '', '... every session is whole');
	wait_for_sql($node, '... and then all are archived',
		"SELECT count(*) = $sessions FROM mlint.session WHERE status = 'archived'");
	is(sql('SELECT * FROM torn()'), '', '... every session is whole');
	is(sql("SELECT state, error FROM mlint.archival_runs WHERE id = $run"),
		'crashed|its process or the server died', '... the run is closed');
	wait_for_sql($node, '... and the next one counts the rest',
		"SELECT sum(archived) = $sessions AND sum(failed + skipped) = 0 FROM mlint.archival_runs WHERE id >= $run AND state <> 'running'");
	is( sql('SELECT count(*) FROM mlint.data_key k WHERE NOT EXISTS (SELECT FROM mlint.archive a WHERE a.data_key = k.id)'
			. ' AND NOT EXISTS (SELECT FROM mlint.archive_dictionary d WHERE d.data_key = k.id)'),
		0, '... no data key is left over');
	# What was archived is what was said.
	sql('SELECT mlint.archive_restore(id) FROM mlint.archive');
	is(sql('SELECT count(*) FROM truth WHERE said IS DISTINCT FROM said(session_id)'),
		0, '... and restored, each is what it was');
}

# An error at the same places is that session's, or the batch's.
prepare();
inject($node, 'archival-session', 'error');
my $run = sql('SELECT mlint.archival_run()');
is(sql("SELECT mlint.archival_wait($run, '$MlintTest::deadline s')"), 't', 'an error in a session');
is( sql("SELECT state, archived, failed FROM mlint.archival_runs WHERE id = $run"),
	'completed|' . ($sessions - 1) . '|1', '... fails that session alone');
is(sql('SELECT * FROM torn()'), '', '... every session is whole');
is(sql('SELECT error FROM mlint.archival_failures'),
	'injected error "archival-session"', '... and it is known which and why');
prepare();
sql('SELECT mlint.archival_set(batch_size => 4)');
inject($node, 'archival-before-commit', 'error');
$run = sql('SELECT mlint.archival_run()');
is(sql("SELECT mlint.archival_wait($run, '$MlintTest::deadline s')"), 't', 'an error in a batch');
is(sql("SELECT state, archived, error FROM mlint.archival_runs WHERE id = $run"),
	'failed|0|injected error "archival-before-commit"', '... breaks the run off');
is(sql('SELECT * FROM torn()'), '', '... every session is whole');
wait_for_sql($node, '... and it is tried again',
	"SELECT count(*) = $sessions FROM mlint.session WHERE status = 'archived'");
wait_for_sql($node, '... by a run that ends', "SELECT count(*) = 0 FROM mlint.archival_runs WHERE state = 'running'");

sql('SELECT mlint.archival_set(batch_size => 4, enabled => false)');

# Cancelled, shown while it goes on, and one at a time.
prepare();
inject($node, 'archival-after-3', 'wait');
$run = sql('SELECT mlint.archival_run()');
wait_for_sql($node, 'the run that goes on is shown',
	"SELECT run = $run AND phase = 'archiving sessions' AND sessions_due = $sessions AND sessions_processed = 0"
	  . " AND current_batch = 1 AND datname = 'postgres' AND pid IN (SELECT pid FROM pg_stat_activity) FROM mlint.archival_progress");
is(sql("SELECT state FROM mlint.archival_runs WHERE id = $run"), 'running', '... as running');
my ($rc, $out, $err) = $node->psql('postgres', 'CALL mlint.archival_work()');
like($err, qr/a run of the archival scheduler is going on already/, 'a second one is refused');
my $next = sql('SELECT mlint.archival_run()');
is(sql("SELECT id > $run, state FROM mlint.archival_runs WHERE id = $next"),
	't|requested', '... and one that is asked for comes after it');
sql('SELECT pg_cancel_backend(pid) FROM mlint.archival_progress');
is(sql("SELECT mlint.archival_wait($run, '$MlintTest::deadline s')"), 't', 'cancelled, it ends');
is(sql("SELECT state, processed, error FROM mlint.archival_runs WHERE id = $run"),
	'failed|0|canceling statement due to user request', '... and says so');
is(sql('SELECT count(*) FROM mlint.archival_failures'), 0, '... no session has failed');
resume($node, 'archival-after-3');
wait_for_sql($node, 'the one that was asked for archives all',
	"SELECT bool_or(state = 'completed' AND archived = $sessions) FROM mlint.archival_runs WHERE id = $next");
is(sql('SELECT * FROM torn()'), '', '... every session is whole');

# Cancelled while it rests.
prepare();
sql('SELECT mlint.archival_set(batch_size => 1, enabled => false)');
sql(<<'EOQ');
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE UPDATE ON mlint.session FOR EACH ROW EXECUTE FUNCTION slow();
EOQ
$run = sql('SELECT mlint.archival_run()');
wait_for_sql($node, 'a run rests', <<'EOQ');
SELECT count(*) = 1 FROM mlint.archival_progress p JOIN pg_stat_activity a USING (pid)
WHERE sessions_archived > 0 AND a.wait_event = 'PgSleep' AND a.backend_xid IS NULL
EOQ
sql('SELECT pg_cancel_backend(pid) FROM mlint.archival_progress');
is(sql("SELECT mlint.archival_wait($run, '$MlintTest::deadline s')"), 't', '... is cancelled, and ends');
is(sql("SELECT state, error FROM mlint.archival_runs WHERE id = $run"),
	'failed|canceling statement due to user request', '... and says so');
wait_for_sql($node, '... and is not begun again',
	"SELECT NOT enabled AND NOT running FROM mlint.jobs WHERE name = 'archival'");
sql('DROP TRIGGER slow ON mlint.session; DROP FUNCTION slow; SELECT mlint.archival_set(batch_size => 4, enabled => false)');

# A session that is locked, or that somebody says something in meanwhile.
prepare();
my $session = $node->background_psql('postgres');
$session->query_safe("BEGIN; SELECT FROM mlint.session WHERE session_id = 's7' FOR KEY SHARE");
inject($node, 'archival-after-1', 'wait');
$run = sql('SELECT mlint.archival_run()');
wait_for_sql($node, 'a run has begun', 'SELECT sessions_due > 0 AND a.backend_xid IS NOT NULL AND a.wait_event_type = $$Extension$$ FROM mlint.archival_progress p JOIN pg_stat_activity a USING (pid)');
sql("SELECT mlint.prompt_add(session_id, 'still here') FROM truth WHERE session_id IN ('s2', 's3', 's10');"
	  . " UPDATE truth SET said = said(session_id) WHERE session_id IN ('s2', 's3', 's10')");
resume($node, 'archival-after-1');
is(sql("SELECT mlint.archival_wait($run, '$MlintTest::deadline s')"), 't', '... and ends');
is( sql("SELECT archived, skipped, failed FROM mlint.archival_runs WHERE id = $run"),
	($sessions - 4) . '|3|0', '... and has passed over those that are in use');
is(sql("SELECT string_agg(session_id, ' ' ORDER BY substr(session_id, 2)::int) FROM mlint.session WHERE status <> 'archived'"),
	's2 s3 s7 s10', '... which are live, as is one that was not due any more');
$session->query_safe('COMMIT');
$session->quit;
is(sql('SELECT * FROM torn()'), '', '... every session is whole');
is(sql('SELECT mlint.audit_verify() IS NULL'), 't', 'the audit log is whole');

$node->stop;
done_testing();
