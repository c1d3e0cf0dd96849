# Everything works the same whatever a session, a role or a database is set to:
# every kind of search_path, with a schema of hostile namesakes of everything
# first, and every setting that changes how statements are read, run or shown.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use IPC::Run ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $tests = dirname($MlintTest::peers);
my $receiver = MlintTest::Receiver->start;
my $url = $receiver->url('/ok');
my $node = mlint_node('main');

sub sql { return $node->safe_psql($_[1] // 'template1', $_[0]); }

# What test/rooms.sql prints in a session that is so set; its names taken out.
my $runs = 0;
sub rooms
{
	my (@settings) = @_;
	my ($out, $err) = ('', '');
	my $p = 'run' . ++$runs . 'x';

	IPC::Run::run([ 'psql', '-Xq', '-d', $node->connstr('postgres'), '-v', "p=$p", '-v', "url=$url",
			map({ ('-c', $_) } @settings), '-f', "$tests/rooms.sql" ], '<', \'', '>', \$out, '2>', \$err);
	$out .= $err;
	$out =~ s/$p/P/g;
	return $out;
}

sub differences
{
	my ($expected, $got) = map { [ split /\n/ ] } @_;
	my @all;
	for my $i (0 .. ($#$expected > $#$got ? $#$expected : $#$got))
	{
		my ($e, $g) = ($expected->[$i] // '', $got->[$i] // '');
		push @all, "expected: $e", "got: $g" if $e ne $g;
	}
	return join "\n", @all[0 .. ($#all > 9 ? 9 : $#all)];
}

my $expected = rooms('SET check_function_bodies = on');
like($expected, qr/^usage_by_tag\|t$/m, 'something of every room, to the end');
unlike($expected, qr/ERROR/, '... without an error');
is(differences($expected, rooms("SET check_function_bodies = on")), '', '... and the same again');

# ---- search_path ----

sql('CREATE SCHEMA hostile', 'postgres');
IPC::Run::run([ 'psql', '-Xq', '-d', $node->connstr('postgres'), '-v', 'hostile=hostile', '-f', "$tests/hostile.sql" ],
	'>', \my $ignored) or die 'hostile.sql';
cmp_ok(sql("SELECT count(*) FROM pg_proc WHERE pronamespace = 'hostile'::regnamespace", 'postgres'), '>', 3000,
	'a schema with namesakes of all functions');
cmp_ok(sql("SELECT count(*) FROM pg_operator WHERE oprnamespace = 'hostile'::regnamespace", 'postgres'), '>', 600, '... and operators');
my ($rc, $out, $err) = $node->psql('postgres', "SET search_path = hostile, pg_catalog; SELECT 1 + 1");
like($err, qr/hostile operator \+/, '... which are used where they can be');
is(differences($expected, rooms("SET search_path = $_")), '', "search_path = $_")
  for "''", 'public, pg_catalog', 'hostile, public, pg_catalog', 'hostile, mlint, pg_catalog',
  'mlint, hostile, pg_catalog', 'pg_temp, hostile, pg_catalog', 'pg_temp, pg_catalog, mlint', '"$user", nowhere';
is(differences($expected, rooms('SET search_path = pg_temp, hostile, pg_catalog',
			'CREATE TEMP TABLE event (id text); CREATE TEMP TABLE session (id text); CREATE TEMP TABLE pg_class (oid text); CREATE TEMP TABLE secret (name int)')),
	'', 'temporary tables of the same names');

# ---- settings of a session ----

my @odd = (
	["default_transaction_isolation = 'serializable'", 'default_transaction_deferrable = on', 'row_security = off'],
	["default_transaction_isolation = 'repeatable read'", 'check_function_bodies = off', 'array_nulls = off'],
	['standard_conforming_strings = off', 'backslash_quote = off', "bytea_output = 'escape'", 'extra_float_digits = -15',
		"DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'", "TimeZone = 'Asia/Kathmandu'"],
	["DateStyle = 'Postgres, MDY'", "IntervalStyle = 'postgres_verbose'", "TimeZone = 'America/St_Johns'",
		'quote_all_identifiers = on'],
	["DateStyle = 'German'", "IntervalStyle = 'iso_8601'", "client_encoding = 'LATIN1'", "xmloption = 'document'"],
	['session_replication_role = replica', 'transform_null_equals = on'],
	["plan_cache_mode = 'force_generic_plan'", 'enable_indexscan = off', 'enable_bitmapscan = off', 'work_mem = 64'],
	["plan_cache_mode = 'force_custom_plan'", 'enable_seqscan = off', 'jit = off', 'constraint_exclusion = on'],
	[$node->pg_version >= 16 ? 'debug_parallel_query = regress' : 'force_parallel_mode = regress']);
is(differences($expected, rooms(map { "SET $_" } @$_)), '', join ', ', @$_) for @odd;
is(sql('SELECT count(*) FROM mlint.secret_version v WHERE NOT EXISTS (SELECT FROM mlint.secret s WHERE s.id = v.secret_id)', 'postgres'),
	0, 'no foreign key is broken, as replica neither');
($rc, $out, $err) = $node->psql('postgres', "SET default_transaction_read_only = on; SELECT mlint.publish('x', '{}')");
like($err, qr/cannot execute .* in a read-only transaction/, 'default_transaction_read_only = on: publishing says so');
is(sql("SET default_transaction_read_only = on; SELECT count(*) >= 0 FROM mlint.deliveries", 'postgres'), 't', '... and views can be read');

# ---- settings of the database and of roles, which workers have too ----

my @worse = ('search_path = hostile, public, pg_catalog', 'default_transaction_read_only = on',
	'statement_timeout = 1', 'lock_timeout = 1', 'idle_in_transaction_session_timeout = 1', 'idle_session_timeout = 1',
	'exit_on_error = on', 'default_tablespace = nowhere', 'default_table_access_method = nothing', 'log_statement = none');
my $me = sql('SELECT quote_ident(current_user)');
sql("SET client_min_messages = error; " . join '', map { "ALTER DATABASE postgres SET $_; " } map({ @$_ } @odd), @worse);
sql("SET client_min_messages = error; " . join '', map { "ALTER ROLE $me IN DATABASE postgres SET $_; " } 'search_path = hostile', 'statement_timeout = 1');
$node->restart;
{
	# The session itself is as always; only workers are as the database says.
	local $ENV{PGOPTIONS} = join ' ', map { "-c $_" } 'search_path=', 'default_transaction_read_only=off',
	  'default_transaction_isolation=read\ committed', 'statement_timeout=0', 'lock_timeout=0',
	  'idle_in_transaction_session_timeout=0', 'idle_session_timeout=0', 'exit_on_error=off', 'default_tablespace=',
	  'default_table_access_method=heap', 'standard_conforming_strings=on', 'client_encoding=UTF8', 'client_min_messages=error';
	is(differences($expected, rooms()), '', 'all of them for the database, and so for workers');
	$node->safe_psql('postgres', 'SELECT mlint.job_run_now(name) FROM mlint.jobs');
	wait_for_sql($node, '... all jobs run', <<'EOQ');
SELECT count(DISTINCT j.name) = (SELECT count(*) FROM mlint.jobs)
FROM mlint.job_runs j WHERE j.started_at > pg_postmaster_start_time()
EOQ
	is($node->safe_psql('postgres', "SELECT string_agg(name || ': ' || error, E'\n') FROM mlint.job_runs WHERE error IS NOT NULL"),
		'', '... and none fails');
}
sql("ALTER DATABASE postgres RESET ALL; ALTER ROLE $me IN DATABASE postgres RESET ALL");

$node->stop;
done_testing();
