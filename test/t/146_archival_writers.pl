# Writers at sessions that are being archived, restored and deleted all the
# time: every message that was accepted is in the live session or in its archive
# (or went with the session), every other writer got a clear error.
use strict;
use warnings;

use FindBin;
use IPC::Run ();
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = $ENV{MLINT_STRESS_SECONDS} // 12;
my $sessions = 40;
my $node = mlint_node('main', conf => "synchronous_commit = off\n");

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

sql(<<"EOQ");
-- What writers were told: accepted in the transaction of the message itself.
CREATE TABLE accepted (id uuid PRIMARY KEY, session_id text NOT NULL, writer int NOT NULL);
CREATE TABLE refused (writer int NOT NULL, what text NOT NULL, sqlstate text NOT NULL, error text NOT NULL);
CREATE TABLE did (writer int NOT NULL, what text NOT NULL);
CREATE TABLE deleted (session_id text PRIMARY KEY);

-- A message after another, each in a transaction; how = 1: after a look around,
-- so that a snapshot is old; 2: in a subtransaction that is undone, then again.
CREATE PROCEDURE write_on(writer int, how int, seconds int) LANGUAGE plpgsql AS \$\$
DECLARE
	until timestamptz := clock_timestamp() + make_interval(secs => seconds);
	sid text;
	message uuid;
BEGIN
	WHILE clock_timestamp() < until LOOP
		sid := 's' || 1 + floor(random() * $sessions)::int;
		BEGIN
			IF how = 1 THEN
				PERFORM count(*) FROM mlint.session;
				PERFORM pg_sleep(random() * 0.01);
			END IF;
			message := mlint.prompt_add(sid, 'said by ' || writer || ' ' || repeat('x', (random() * 3000)::int));
			IF how = 2 THEN
				BEGIN
					PERFORM mlint.response_add(message, 'never');
					RAISE division_by_zero;
				EXCEPTION WHEN division_by_zero THEN
				END;
			END IF;
			INSERT INTO accepted VALUES (message, sid, writer);
			IF random() < 0.5 THEN
				message := mlint.response_add(message, 'answered');
				INSERT INTO accepted VALUES (message, sid, writer);
			END IF;
		EXCEPTION WHEN OTHERS THEN
			INSERT INTO refused VALUES (writer, 'write', SQLSTATE, SQLERRM);
		END;
		IF random() < 0.1 THEN ROLLBACK; ELSE COMMIT; END IF;
	END LOOP;
END \$\$;

-- Archive, restore and delete this one and that.
CREATE PROCEDURE churn(writer int, what text, seconds int) LANGUAGE plpgsql AS \$\$
DECLARE
	until timestamptz := clock_timestamp() + make_interval(secs => seconds);
	sid text;
	done boolean;
BEGIN
	WHILE clock_timestamp() < until LOOP
		sid := 's' || 1 + floor(random() * $sessions)::int;
		BEGIN
			IF what = 'archive' THEN
				PERFORM mlint.archive_session(sid);
				done := true;
			ELSIF what = 'restore' THEN
				PERFORM mlint.archive_restore(a.id) FROM mlint.archives a WHERE a.session_id = sid;
				done := FOUND;
			ELSE
				sid := 'd' || 1 + floor(random() * 500)::int;
				PERFORM mlint.session_delete(sid);
				INSERT INTO deleted VALUES (sid);
				done := true;
			END IF;
			IF done THEN
				INSERT INTO did VALUES (writer, what);
			END IF;
		EXCEPTION WHEN OTHERS THEN
			INSERT INTO refused VALUES (writer, what, SQLSTATE, SQLERRM);
		END;
		COMMIT;
	END LOOP;
END \$\$;

-- Have the scheduler think that they are all due, again and again.
CREATE PROCEDURE age(seconds int) LANGUAGE plpgsql AS \$\$
DECLARE
	until timestamptz := clock_timestamp() + make_interval(secs => seconds);
BEGIN
	WHILE clock_timestamp() < until LOOP
		UPDATE mlint.session SET active_at = now() - interval '40 days'
		WHERE id IN (SELECT id FROM mlint.session
			WHERE status <> 'archived' AND active_at > now() - interval '30 days'
			ORDER BY random() LIMIT 5 FOR UPDATE SKIP LOCKED);
		COMMIT;
		IF NOT EXISTS (SELECT FROM mlint.archival_runs WHERE state IN ('requested', 'running')) THEN
			PERFORM mlint.archival_run();
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.02);
		COMMIT;
	END LOOP;
END \$\$;

SELECT count(mlint.session_register('s' || n, 'm')) FROM generate_series(1, $sessions) n;
SELECT count(mlint.session_register('d' || n, 'm')) FROM generate_series(1, 500) n;
SELECT count(mlint.prompt_add('d' || n, 'to be deleted')) FROM generate_series(1, 500) n;
SELECT mlint.archival_set(batch_size => 7, enabled => false);
EOQ

# All at once, some of them at REPEATABLE READ.
my @scripts = (
	(map { "CALL write_on($_, 0, $seconds)" } 1 .. 3),
	(map { "SET default_transaction_isolation = 'repeatable read'; CALL write_on($_, 1, $seconds)" } 4 .. 5),
	"SET default_transaction_isolation = 'serializable'; CALL write_on(6, 1, $seconds)",
	"CALL write_on(7, 2, $seconds)",
	"CALL churn(11, 'archive', $seconds)",
	"SET default_transaction_isolation = 'repeatable read'; CALL churn(12, 'archive', $seconds)",
	"CALL churn(13, 'restore', $seconds)",
	"SET default_transaction_isolation = 'repeatable read'; CALL churn(14, 'restore', $seconds)",
	"CALL churn(15, 'delete', $seconds)",
	"CALL age($seconds)");
my @running;
for my $script (@scripts)
{
	my $handle = { out => '', err => '' };
	$handle->{run} = IPC::Run::start(
		[ 'psql', '-X', '-q', '-d', $node->connstr('postgres'),
			'-v', 'ON_ERROR_STOP=1', map { ('-c', $_) } split /; /, $script ],
		'<', \undef, '>', \$handle->{out}, '2>', \$handle->{err}, IPC::Run::timeout($MlintTest::deadline));
	push @running, $handle;
}
$_->{run}->finish for @running;
is(join('', map { $_->{err} } @running), '', 'nobody failed in a way that cannot be caught');
wait_for_sql($node, 'the last run has ended',
	"SELECT count(*) = 0 FROM mlint.archival_runs WHERE state IN ('requested', 'running')");

note sql("SELECT string_agg(n || ' ' || what, ', ') FROM (SELECT what, count(*) AS n FROM did GROUP BY 1) x");
note sql("SELECT count(*) || ' messages accepted' FROM accepted");
note sql("SELECT string_agg(n || ' refused ' || x, E'\\n') FROM (SELECT what || ' ' || sqlstate || ' '"
	  . " || regexp_replace(error, '\"[^\"]*\"', '\"...\"') AS x, count(*) AS n FROM refused GROUP BY 1) y");
note sql("SELECT count(*) || ' runs: ' || sum(archived) || ' archived, ' || sum(skipped) || ' skipped, ' || sum(failed) || ' failed'"
	  . " FROM mlint.archival_runs");

ok(sql("SELECT count(*) > 500 FROM accepted") eq 't', 'messages were accepted');
for my $what ('archive', 'restore', 'delete')
{
	cmp_ok(sql("SELECT count(*) FROM did WHERE what = '$what'"), '>', 10, "$what: done");
}
cmp_ok(sql('SELECT sum(archived) FROM mlint.archival_runs'), '>', 20, 'archived by the scheduler');
cmp_ok(sql("SELECT count(*) FROM refused WHERE what = 'write' AND sqlstate = '55000'"),
	'>', 10, 'writers were refused: the session is archived');

# Exactly these reasons.
is( sql(<<'EOQ'),
SELECT count(*), string_agg(DISTINCT what || ' ' || sqlstate || ' ' || error, '; ') FROM refused
WHERE NOT (
	-- archived when a writer, or another who archives it, came to it
	sqlstate = '55000' AND error ~ '^session "[sd]\d+" is archived' AND what IN ('write', 'delete')
	OR sqlstate = '42710' AND error ~ '^session "s\d+" (is|has been) archived' AND what = 'archive'
	-- restored, or deleted, by another
	OR sqlstate = '42704' AND error ~ 'does not exist' AND what IN ('restore', 'delete')
	-- at REPEATABLE READ and above
	OR sqlstate = '40001')
EOQ
	'0|', 'nobody was refused for another reason');
is(sql("SELECT count(*) FROM refused WHERE writer IN (1, 2, 3, 7, 11, 13, 15) AND sqlstate = '40001'"),
	0, 'no serialization error at READ COMMITTED');
is(sql("SELECT count(*) FROM mlint.archival_failure"), 0, 'no session failed in a run');

# Where the messages are.
sql(<<'EOQ');
CREATE TABLE kept AS
SELECT s.session_id, m.id, 'live' AS place FROM mlint.message m JOIN mlint.session s ON s.id = m.session
UNION ALL
SELECT a.session_id, (e ->> 'id')::uuid, 'archive'
FROM mlint.archives a, jsonb_array_elements(mlint.archive_get(a.id) -> 'messages') e;
EOQ
is(sql('SELECT count(*) FROM (SELECT id FROM kept GROUP BY id HAVING count(*) > 1) x'),
	0, 'no message is in two places');
is( sql('SELECT count(*) FROM accepted a LEFT JOIN kept k USING (id, session_id) WHERE k.id IS NULL'),
	0, 'every message that was accepted is there');
is( sql("SELECT count(*) FROM kept k LEFT JOIN accepted a USING (id) WHERE a.id IS NULL AND k.session_id ~ '^s'"),
	0, 'and no other');
is( sql("SELECT count(*) FROM mlint.session s WHERE (s.status = 'archived') <> EXISTS (SELECT FROM mlint.archive a WHERE a.session = s.id)"),
	0, 'a session is archived if and only if it has an archive');
is( sql("SELECT count(*) FROM mlint.session s JOIN kept k ON k.session_id = s.session_id WHERE (s.status = 'archived') <> (k.place = 'archive')"),
	0, '... and then has no live message');
is(sql("SELECT count(*) FROM deleted WHERE session_id IN (SELECT session_id FROM mlint.session UNION SELECT session_id FROM kept)"),
	0, 'what was deleted is gone');
is(sql('SELECT mlint.audit_verify() IS NULL'), 't', 'the audit log is whole');

$node->stop;
done_testing();
