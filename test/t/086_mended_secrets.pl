# What has gone wrong once with secrets and the audit log: entries numbered
# below the first, names that plans and statistics tell, keys that outlive what
# was destroyed, keys restored behind a session's back, values in the log when
# COMMIT fails, a lost key in the way of others, names of roles mixed up.

use strict;
use warnings;

use IPC::Run ();
use Test::More;

use MlintTest;
use PostgreSQL::Test::Utils;

my $node = mlint_node('mended_secrets', conf => "log_statement = none\nautovacuum = off\n");
my $data = $node->data_dir;

sub sql { return $node->safe_psql($_[1] // 'postgres', $_[0]); }

# The answer, or the error.
sub try_sql
{
	my ($rc, $out, $err) = $node->psql($_[1] // 'postgres', $_[0]);
	return $rc == 0 ? $out : $err;
}

wait_for_worker($node, 'mlint auditor');
sql(<<'EOQ');
CREATE ROLE u;
GRANT mlint_user TO u;
SELECT mlint.secret_put('prod/' || n, 'value ' || n, description => 'about ' || n)
FROM generate_series(1, 50) n;
SELECT mlint.secret_grant('prod/7', 'u', 'read');
EOQ

# ---- entries numbered below the first ----
for my $seq (0, -5)
{
	is(try_sql(<<"EOQ"), $seq, "an entry $seq that somebody has put there is found");
BEGIN;
INSERT INTO mlint.audit_entry SELECT $seq, month, at, pid, xid, subxid, hash, role, session_role, application,
	client_addr, action, object_type, object, outcome, details
FROM mlint.audit_entry LIMIT 1;
SELECT mlint.audit_verify();
ROLLBACK;
EOQ
}
is(sql('SELECT mlint.audit_verify(), mlint.audit_verify(0), mlint.audit_verify(1), mlint.audit_verify(-5)'),
	'|||', '... and without it all is well');

# ---- what plans and statistics tell ----
sub plan_of
{
	my ($explain, $query) = @_;
	my $plan = sql("SET ROLE u; EXPLAIN ($explain) $query");
	$plan =~ s/^.*(Filter|Cond): .*name = .*$/$1/mg;
	$plan =~ s/^.*(Filter|Cond): .*pattern = .*$/$1/mg;
	return $plan;
}

my $analyze = 'ANALYZE, COSTS off, TIMING off, SUMMARY off, BUFFERS off';
for my $view ('secrets WHERE name', 'secret_grants WHERE pattern')
{
	is( plan_of($analyze, "SELECT * FROM mlint.$view = 'prod/3'"),
		plan_of($analyze, "SELECT * FROM mlint.$view = 'prod/x'"),
		"EXPLAIN ANALYZE of $view tells no forbidden name from an unknown one");
	is(sql("SET ROLE u; SELECT count(*) FROM mlint.$view = 'prod/7'"), 1, '... and one that is permitted is found');
}
sql('ANALYZE mlint.secret; ANALYZE mlint.secret_grant; ANALYZE mlint.secret_version');
is( sql(<<'EOQ'), '', 'no statistics tell names or what is kept about them');
SELECT string_agg(tablename || '.' || attname, ' ' ORDER BY 1) FROM pg_stats
WHERE schemaname = 'mlint' AND (tablename = 'secret' AND attname IN ('name', 'type', 'description', 'metadata')
	OR tablename = 'secret_grant' AND attname = 'pattern'
	OR tablename = 'secret_version' AND attname IN ('wrapped_key', 'sealed'))
EOQ
my $estimate = sql("SET ROLE u; EXPLAIN SELECT * FROM mlint.secrets WHERE name < 'prod/1'");
is(sql("SET ROLE u; EXPLAIN SELECT * FROM mlint.secrets WHERE name < 'prod/9'") =~ s{prod/9}{prod/1}gr,
	$estimate, '... nor does an estimate');
isnt(sql("SELECT count(*) FROM pg_stats WHERE tablename = 'secret_version'"), 0, 'there are others');

# ---- a master key's row that comes with a dump ----
sql($_) for 'CREATE DATABASE origin', 'CREATE DATABASE copy';
sql(q(CREATE EXTENSION mlint; SELECT mlint.secret_put('a', 'of the origin')), 'origin');
sql('CREATE EXTENSION mlint', 'copy');
my $session = $node->background_psql('copy', on_error_stop => 0);
is($session->query_safe('SELECT count(*) FROM mlint.master_key'), 0, 'a session knows of no master key');
run_command([ 'pg_dump', '-f', "$data/../dump.sql", $node->connstr('origin') ]);
run_command([ 'psql', '-X', '-q', '-f', "$data/../dump.sql", $node->connstr('copy') ]);
is($session->query(q(SELECT mlint.secret_get('a'))), 'of the origin', '... and reads what is restored');
$session->quit;

# ---- COMMIT fails ----
my $auditor = wait_for_worker($node, 'mlint auditor', 'postgres');
my ($out, $err) = ('', '');
freeze($node, $auditor);
my $client = IPC::Run::start(
	[ 'psql', '-X', '-d', $node->connstr('postgres'), '-c', "SELECT mlint.secret_put('late', 'not-for-the-log')" ],
	'>', \$out, '2>', \$err);
wait_for_sql($node, 'COMMIT waits for the entry', <<'EOQ');
SELECT count(pg_cancel_backend(pid)) > 0 FROM pg_stat_activity
WHERE query LIKE '%not-for' || '-the-log%' AND wait_event_type = 'Extension'
EOQ
IPC::Run::finish($client);
kill 'CONT', $auditor;
like($err, qr/canceling statement/, '... and is cancelled');
my $log = slurp_file($node->logfile);
like($log, qr/canceling statement due to user request/, '... which the log says');
unlike($log, qr/not-for-the-log/, '... without the statement, which contains the value');

# ---- a lost key is in nobody's way ----
sql(q(SELECT mlint.secret_put('lost/1', 'x'), mlint.secret_put('lost/2', 'y')));
sql(q(UPDATE mlint.secret_version v SET key_id = 77 FROM mlint.secret s WHERE s.id = v.secret_id AND s.name = 'prod/1'));
is(sql('SELECT mlint.master_key_rotate()'), 2, 'a new master key');
wait_for_sql($node, 'what an unknown key seals is left, the rest is sealed anew', <<'EOQ');
SELECT count(*) = 1 FROM mlint.secret_version WHERE key_id <> 2
EOQ
# The key is lost, with one version under it.
sql(q(UPDATE mlint.secret_version SET key_id = 1 WHERE key_id = 77));
my ($new) = split /\n/, slurp_file("$data/mlint_master.key");
unlink "$data/mlint_master.key";
append_to_file("$data/mlint_master.key", "$new\n");
chmod 0600, "$data/mlint_master.key" or die;
is(sql('SELECT mlint.master_key_rotate()'), 3, 'another one');
wait_for_sql($node, 'what a lost key seals is left, the rest is sealed anew', <<'EOQ');
SELECT count(*) = 1 FROM mlint.secret_version WHERE key_id <> 3
EOQ
wait_for_sql($node, '... and the job has not failed',
	q(SELECT failures = 0 AND last_error IS NULL FROM mlint.jobs WHERE name = 'master_key_rewrap'));
is(sql("SELECT key_id || ' ' || state || ' ' || available || ' ' || (warning IS NOT NULL) FROM mlint.master_key WHERE key_id = 1"),
	'1 retiring false true', '... the view warns');

# A command is asked once, however many keys it does not give.
append_to_file("$data/../command", "echo x >>'$data/../asked'; head -n 1 '$data/mlint_master.key'\n");
sql(qq(ALTER SYSTEM SET mlint.master_key_command = 'sh $data/../command'; SELECT pg_reload_conf()));
wait_for_sql($node, 'the setting arrives', "SELECT current_setting('mlint.master_key_command') <> ''");
unlink "$data/../asked";
is(sql("SELECT string_agg(available::text, ',' ORDER BY key_id) FROM mlint.master_key"), 'false,false,true',
	'two keys are not given');
is(slurp_file("$data/../asked"), "x\n", '... which was asked once');
sql('ALTER SYSTEM RESET mlint.master_key_command; SELECT pg_reload_conf()');

# ---- "local:" in front of a name ----
like(try_sql("SET ROLE u; SELECT mlint.secret_get('prod/9')"), qr/does not exist, or you may not/, 'no grant yet');
sql("SELECT mlint.secret_grant('local:prod/9', 'u', 'read')");
is(try_sql("SET ROLE u; SELECT mlint.secret_get('prod/9')"), 'value 9', 'local:name is the name, in a grant too');
sql("SELECT mlint.secret_revoke('local:prod/9', 'u', 'read')");
like(try_sql("SET ROLE u; SELECT mlint.secret_get('prod/9')"), qr/does not exist, or you may not/, '... and taken back');
like(try_sql("SELECT mlint.secret_grant('local:prod/*', 'u', 'read')"), qr/cannot begin with "local:"/,
	'a pattern that would match nothing is refused');

# ---- a role that is dropped while it acts ----
sql(<<'EOQ');
CREATE ROLE gone;
GRANT USAGE ON SCHEMA mlint TO PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.secret_get(text, integer, text) TO PUBLIC;
CREATE FUNCTION as_owner() RETURNS void LANGUAGE sql SECURITY DEFINER
AS $$ SELECT mlint.secret_get('prod/2') $$;
EOQ
my $oid = sql("SELECT 'gone'::regrole::oid");
$session = $node->background_psql('postgres', on_error_stop => 0);
$session->query('SET ROLE gone');
sql('DROP ROLE gone');
$session->query($_)
  for 'SELECT as_owner()', "SELECT mlint.secret_get('by-gone')", 'SELECT as_owner()';
$session->quit;
is( sql("SELECT string_agg(role, ' ' ORDER BY seq) FROM (SELECT role, seq FROM mlint.audit_log WHERE action = 'secret.read' ORDER BY seq DESC LIMIT 3) l"),
	$node->safe_psql('postgres', 'SELECT current_user') . " $oid " . $node->safe_psql('postgres', 'SELECT current_user'),
	'a role that is gone is a number, and nobody else is');

done_testing();
