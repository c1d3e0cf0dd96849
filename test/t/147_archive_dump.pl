# Sessions, usage, archives, retention and the scheduler in pg_dump: what is
# restored, in whatever way, has every row, opens its archives with the same
# keys, keeps what is held, and goes on.
use strict;
use warnings;

use Digest::MD5 qw(md5_hex);
use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $stores = "$dir/stores";
mkdir $stores or die "mkdir: $!";
my $node = mlint_node('main', conf => "mlint.archive_directory = '$stores'");

sub sql
{
	my ($sql, $db) = @_;
	return $node->safe_psql($db // 'postgres', $sql);
}

# ---- something of everything ----

sql(<<"EOQ");
CREATE FUNCTION talk(sid text, turns int) RETURNS void LANGUAGE plpgsql AS \$\$
DECLARE
	at uuid;
BEGIN
	PERFORM mlint.session_register(sid, 'm-' || length(sid) % 2, '1', ARRAY['a', 'b ' || sid], jsonb_build_object('user', sid, 'n', 1.50));
	FOR i IN 1 .. turns LOOP
		at := mlint.prompt_add(sid, 'question ' || i || E': \\u00e4\\u4e16\\n\\t\\\\ "quoted"', '{"k": [1, null]}');
		at := mlint.response_add(at, repeat(md5(sid || i) || ' ', 50), '{"prompt_tokens": 3, "completion_tokens": 5}', latency_ms => 12.5);
		PERFORM mlint.tool_call_add(at, 'search', '{"q": "x"}', 'found');
		PERFORM mlint.usage_track(sid, 3, 5, latency_ms => 12.5, custom => '{"images": 2}');
	END LOOP;
END \$\$;
SELECT mlint.model_register('m-0', '1', 'anthropic', '{"temperature": 0.5}', capabilities => '{chat}');
SELECT mlint.model_register('m-1', '1', 'openai');
SELECT mlint.model_price_set('m-0', 3, 15, 'EUR');
SELECT mlint.usage_budget_set('model:m-0', tokens => 1000000, per => 'day');
SELECT talk('s' || n, 3) FROM generate_series(1, 12) n;
SELECT mlint.session_set_status('s1', 'completed');
SELECT mlint.retention_policy_create('short', 400);
SELECT mlint.retention_policy_create('tagged', 2555, 'hipaa', match_tag => 'b s5');
SELECT mlint.archive_hold('s2', 'a live one');
SELECT mlint.archive_store_create('files', 'file', '{"directory": "one"}');
SELECT mlint.archive_session('s9');
SELECT mlint.job_run_now('archive_move');
EOQ
wait_for_sql($node, 'an archive is in the store',
	"SELECT count(*) > 0 FROM mlint.archive WHERE store IS NOT NULL");
sql(<<'EOQ');
SELECT mlint.archive_store_alter('files', active => false);
EOQ
my $said = sql("SELECT md5(string_agg(to_jsonb(m)::text, E'\\n' ORDER BY seq)) FROM mlint.message m JOIN mlint.session s ON s.id = session WHERE session_id = 's5'");
sql(<<'EOQ');
SELECT mlint.archive_session('s' || n, policy => CASE n WHEN 4 THEN 'short' END, metadata => '{"case": 7}') FROM generate_series(3, 8) n;
SELECT mlint.archive_hold('s3', 'an archived one');
SELECT mlint.archive_release(mlint.archive_hold('s6', 'over'), 'settled');
SELECT mlint.archival_set(interval_hours => 5, archive_after_days => 90);
EOQ
# One that is destroyed, so that this is remembered too.
sql("SELECT mlint.archive_delete(id) FROM mlint.archives WHERE session_id = 's8'");
wait_for_sql($node, 'a run has been',
	"SELECT count(*) > 0 AND bool_and(state = 'completed') FROM mlint.archival_runs");
my $busy = "SELECT count(*) = 0 FROM mlint.jobs j JOIN mlint.job i ON i.name = j.name WHERE j.running OR j.enabled AND j.next_run_at < now()"
  . " OR i.started_at IS DISTINCT FROM j.last_started_at OR EXISTS (SELECT FROM mlint.job_request r WHERE r.job_id = i.id AND r.at <= now())";
wait_for_sql($node, 'nothing is under way', $busy);

# ---- every table and sequence is in the dump, or is known not to be ----

is( sql(<<'EOQ'),
SELECT string_agg('mlint.' || c.relname, ' ' ORDER BY c.relname COLLATE "C")
FROM pg_class c JOIN pg_extension e ON e.extname = 'mlint'
WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind IN ('r', 'p', 'S')
	AND c.relname ~ '^(session|message|model|usage|archiv|hold|retention|data_key|erasure)'
	AND NOT c.oid = ANY (e.extconfig)
EOQ
	# Made by CREATE EXTENSION, or what this server alone knows.
	join(' ', sort qw(mlint.archive_move mlint.archive_store_state
		mlint.erasure_key_revision mlint.retention_level mlint.usage_fold)),
	'tables and sequences that are not dumped');

# The content of every table that is, in one line each; but for those in which
# jobs are at work as soon as they are restored.
sub content
{
	my ($db) = @_;
	sql(<<'EOQ', $db);
CREATE OR REPLACE FUNCTION public.content() RETURNS TABLE (name text, rows bigint, digest text)
LANGUAGE plpgsql AS $$
DECLARE
	t regclass;
BEGIN
	FOR t IN SELECT c.oid FROM pg_extension e, unnest(e.extconfig) u JOIN pg_class c ON c.oid = u
		WHERE e.extname = 'mlint' AND c.relkind = 'r'
			AND c.relname !~ '^(usage_log_.|usage_total|archival_run|archive_garbage|dump)$' ORDER BY c.relname COLLATE "C"
	LOOP
		RETURN QUERY EXECUTE format(
			'SELECT %L::text, count(*), md5(string_agg(to_jsonb(t)::text, E''\n'' ORDER BY to_jsonb(t)::text COLLATE "C")) FROM %s t',
			t, t);
	END LOOP;
END $$;
EOQ
	return sql('SELECT * FROM public.content()', $db);
}

my $opened = q{SELECT count(*), md5(string_agg(mlint.archive_get(id)::text, E'\n' ORDER BY id)) FROM mlint.archive};
# (usage_fold is as often as there is something to fold.)
my $jobs = q{SELECT name, CASE WHEN name <> 'usage_fold' THEN every END, enabled FROM mlint.jobs ORDER BY name COLLATE "C"};
my %before = map { $_->[0] => sql($_->[1]) } (
	[ opened => $opened ], [ jobs => $jobs ],
	[ runs => 'SELECT to_jsonb(r) FROM mlint.archival_runs r WHERE id = 1' ],
	[ usage => "SELECT mlint.model_usage('m-0'), mlint.model_usage('m-1'), mlint.session_usage('s1')" ],
	[ periods => 'SELECT * FROM mlint.archive_periods ORDER BY archive_id' ]);
my $content = content('postgres');
note $content;
like($content, qr/^mlint\.$_\|[1-9]/m, "$_ has rows to lose")
  for qw(session message model archive archive_chunk archive_store hold retention_policy
  data_key data_key_destroyed archival usage_price usage_budget);

# ---- restored in each way ----

my $conn = $node->connstr('postgres');
my %ways = (
	plain => [ [ 'pg_dump', '-f', "$dir/plain", $conn ],
		sub { [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/plain", $_[0] ] } ],
	inserts => [ [ 'pg_dump', '--inserts', '-f', "$dir/inserts", $conn ],
		sub { [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/inserts", $_[0] ] } ],
	custom => [ [ 'pg_dump', '-Fc', '-f', "$dir/custom", $conn ],
		sub { [ 'pg_restore', '-e', '-1', '-d', $_[0], "$dir/custom" ] } ],
	directory => [ [ 'pg_dump', '-Fd', '-j', '4', '-f', "$dir/directory", $conn ],
		sub { [ 'pg_restore', '-e', '-j', '4', '-d', $_[0], "$dir/directory" ] } ]);
for my $way (sort keys %ways)
{
	my ($dump, $restore) = @{ $ways{$way} };

	sql("CREATE DATABASE $way");
	$node->command_ok($dump, "$way: dump");
	$node->command_ok($restore->($node->connstr($way)), "$way: restore");
	is(content($way), $content, "$way: every row is back");
	is(sql($opened, $way), $before{opened}, "$way: every archive opens, and is the same");
	is(sql($jobs, $way), $before{jobs}, "$way: the jobs are enabled as they were");
	is(sql("SELECT next_run_at > now() + interval '23 hours' FROM mlint.archival_settings", $way),
		't', "$way: no run came into the restore");
	is(sql('SELECT to_jsonb(r) FROM mlint.archival_runs r WHERE id = 1', $way),
		$before{runs}, "$way: the runs are shown");
	is( sql("SELECT mlint.model_usage('m-0'), mlint.model_usage('m-1'), mlint.session_usage('s1')", $way),
		$before{usage}, "$way: usage is what it was");
	is(sql('SELECT * FROM mlint.archive_periods ORDER BY archive_id', $way),
		$before{periods}, "$way: archives are kept as long");

	# What is held is held.
	for my $delete ("SELECT mlint.session_delete('s2')",
		"SELECT mlint.archive_delete(id) FROM mlint.archives WHERE session_id = 's3'",
		"DELETE FROM mlint.session WHERE session_id = 's2'")
	{
		my ($rc, $out, $err) = $node->psql($way, "\\set VERBOSITY verbose\n$delete");
		like($err, qr/ML014/, "$way: held: $delete");
	}

	# It goes on, with what is its own. (To restore or delete an archive that
	# came with the dump would destroy its key here and in the original.)
	sql("SELECT public.talk('new', 2); SELECT mlint.archive_session('new'), mlint.archive_hold('s7', 'later')", $way);
	is(sql("SELECT mlint.archive_restore(id) FROM mlint.archives WHERE session_id = 'new'", $way),
		'new', "$way: sessions are archived and restored");
	sql("SELECT mlint.archive_session('new')", $way);
	my $run = sql('SELECT mlint.archival_run()', $way);
	is(sql("SELECT mlint.archival_wait($run, '$MlintTest::deadline s')", $way), 't', "$way: the scheduler runs");
	sql("SELECT mlint.archive_delete(id) FROM mlint.archives WHERE session_id = 'new'", $way);
	sql("DROP DATABASE $way");
}

# The store's object is of the first, and is there.
is(sql($opened), $before{opened}, 'the original opens as before');

# ---- the schema alone ----

sql('CREATE DATABASE bare');
$node->command_ok([ 'pg_dump', '-s', '-f', "$dir/bare", $conn ], 'dump of the schema');
$node->command_ok(
	[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/bare", $node->connstr('bare') ],
	'... restored');
is(sql('SELECT count(*) FROM mlint.sessions', 'bare'), 0, '... has nothing in it');
sql("SELECT public.talk('first', 1); SELECT mlint.archive_session('first')", 'bare');
is(sql('SELECT jsonb_array_length(mlint.archive_get(id) -> \'messages\') FROM mlint.archives', 'bare'),
	3, '... and works');

# ---- another cluster, with the same keys and without ----

my $other = mlint_node('other', create => 0, conf => "mlint.archive_directory = '$stores'");
sub other
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $other->psql('postgres', $sql);
	return $rc == 0 ? $out : $err;
}
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/away", $conn ], 'dump for another cluster');
$other->command_ok([ 'pg_restore', '-e', '-d', $other->connstr('postgres'), "$dir/away" ],
	'... restored');
like(other("$opened WHERE store IS NULL"), qr/key/, 'without the keys no archive opens');
is(other('SELECT count(*) FROM mlint.archives'), sql('SELECT count(*) FROM mlint.archives'),
	'... but all are listed');
$other->stop;
for my $key (glob $node->data_dir . '/mlint_*.key')
{
	(my $to = $key) =~ s/^\Q@{[ $node->data_dir ]}\E/$other->data_dir/e;
	system('cp', '-p', $key, $to) == 0 or die "cp: $key";
}
$other->start;
is(other($opened), $before{opened}, 'with the keys every archive opens');
is(other("SELECT mlint.archive_restore(id) FROM mlint.archives WHERE session_id = 's5'"),
	's5', '... and is restored');
is(other("SELECT md5(string_agg(to_jsonb(m)::text, E'\\n' ORDER BY seq)) FROM mlint.message m JOIN mlint.session s ON s.id = session WHERE session_id = 's5'"),
	$said, '... to what was said');
is(sql($opened), $before{opened}, '... and the first cluster has lost nothing by that');
unlike(slurp_file("$dir/plain"), qr/@{[ md5_hex('s42') ]}/, 'what is archived cannot be read in a dump');
like(slurp_file("$dir/plain"), qr/@{[ md5_hex('s102') ]}/, '... as what is live can');

$other->stop;
$node->stop;
done_testing();
