# No worker acts on rows of a dump before all of them are there: while sessions
# restore, when they end before the end, and when the server crashes in between.
use strict;
use warnings;

use FindBin;
use IPC::Run;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use RestoreTest;
use Test::More;

my ($node, $receiver) = restore_source();
my $dir = PostgreSQL::Test::Utils::tempdir();
my $conn = $node->connstr('postgres');
my %ids = map { $_ => [ restore_ids($node, $_) ] } qw(ok off);
my $dump = "$dir/dump";
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $conn ], 'dump');
restore_freeze($node, 'CONT');
wait_for_sql($node, 'the original has delivered its own',
	"SELECT count(*) = 0 FROM mlint.deliveries WHERE state <> 'delivered' AND destination IN ('ok', 'fn')");
my $arrived = $receiver->count;

# A job that any scheduler would run at once, and an event for what there is.
sub provoke
{
	my ($db) = @_;
	$node->safe_psql($db, <<'EOQ');
SELECT mlint.job_run_now('event_retention');
SELECT mlint.publish('done', '{}');
EOQ
	return;
}

# The workers have looked, and left everything as it is.
sub nothing_happens
{
	my ($db, $what) = @_;
	my $runs = $node->safe_psql($db, 'SELECT count(*) FROM mlint.job_runs');

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	provoke($db);
	wait_for_sql($node, "$what: the workers wait", <<"EOQ");
SELECT count(DISTINCT backend_type) = 2 FROM pg_stat_activity
WHERE datname = '$db' AND backend_type IN ('mlint scheduler', 'mlint dispatcher')
	AND query = 'waiting for the end of a restore'
EOQ
	is($node->safe_psql($db, 'SELECT count(*) FROM mlint.job_runs'), $runs, "$what: no job runs");
	is($node->safe_psql($db, "SELECT count(*) FROM mlint.job_request"), 1, "$what: ... that was asked for");
	is($node->safe_psql($db, "SELECT count(*) FROM mlint.deliveries WHERE state = 'delivered'"),
		0, "$what: nothing is delivered");
	is($receiver->count, $arrived, "$what: nothing arrives");
	return;
}

# What was provoked is done, too.
sub goes_on
{
	my ($db, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	restore_calm($node, $db, $what);
	wait_for_sql($node, "$what: the job runs",
		"SELECT count(*) = 0 FROM mlint.job_request", 't', $db);
	wait_for_sql($node, "$what: all is delivered",
		"SELECT count(*) = 0 FROM mlint.deliveries WHERE state IN ('pending', 'in_flight') AND destination <> 'off'",
		't', $db);
	return;
}

# pg_restore, held at a table by a lock; returns it and who holds.
sub restore_to_the_middle
{
	my ($db, @options) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->command_ok([ 'pg_restore', '-e', '--section=pre-data', '-d', $node->connstr($db), $dump ],
		"$db: the schema is restored");
	my ($in, $out, $err) = ("BEGIN; LOCK mlint.hold IN ACCESS EXCLUSIVE MODE;\n\\echo locked\n", '', '');
	my $holder = IPC::Run::start([ 'psql', '-XAtq', $node->connstr($db) ],
		'<', \$in, '>', \$out, '2>', \$err, IPC::Run::timeout($MlintTest::deadline));
	IPC::Run::pump($holder) until $out =~ /locked/;
	my ($rout, $rerr) = ('', '');
	my $restore = IPC::Run::start([ 'pg_restore', '-e', '--section=data', @options, '-d',
			$node->connstr($db), $dump ], '>', \$rout, '2>', \$rerr, IPC::Run::timeout($MlintTest::deadline));
	wait_for_sql($node, "$db: a restore is under way",
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = '$db' AND wait_event_type = 'Lock' AND query LIKE 'COPY mlint.hold%'");
	wait_for_sql($node, "$db: what it has brought is there",
		'SELECT count(*) = 4 FROM mlint.destinations', 't', $db);
	return ($restore, $holder, \$in);
}

# ---- while sessions restore ----

for my $way ([ 'serial' ], [ 'parallel', '-j', 3 ])
{
	my ($db, @options) = @$way;
	my ($restore, $holder, $in) = restore_to_the_middle($db, @options);
	is($node->safe_psql($db, "SELECT cardinality(pids) > 0, problem FROM mlint.restores"),
		't|', "$db: the view says who restores");
	like($node->safe_psql($db, "SELECT why FROM mlint.health() WHERE name = 'restore'"),
		qr/being restored/, "$db: and so does health()");
	my ($rc, $out, $err) = $node->psql($db, 'SELECT mlint.restore_accept()');
	like($err, qr/sessions are still restoring/, "$db: and nobody can say that it has ended");
	nothing_happens($db, $db);
	$$in .= "ROLLBACK;\n\\q\n";
	IPC::Run::finish($holder);
	ok(IPC::Run::finish($restore), "$db: it ends well");
	goes_on($db, $db);
	my $delivered = $receiver->count;
	is($delivered - $arrived, @{ $ids{ok} } + 1, "$db: what waited, and one that came meanwhile");
	$arrived = $delivered;
	$node->safe_psql('postgres', "DROP DATABASE $db");
}

# ---- who restores is killed; the server crashes ----

for my $how ('killed', 'crashed')
{
	my ($restore, $holder, $in) = restore_to_the_middle($how);
	if ($how eq 'killed')
	{
		IPC::Run::kill_kill($restore);
		$$in .= "ROLLBACK;\n\\q\n";
		IPC::Run::finish($holder);
	}
	else
	{
		$node->stop('immediate');
		IPC::Run::finish($restore);
		IPC::Run::finish($holder);
		$node->start;
	}
	wait_for_sql($node, "$how: the workers know that it is not complete", <<'EOQ', 't', $how);
SELECT pids = '{}' AND problem LIKE 'mlint.hold has 0 of 1 rows%' FROM mlint.restores
EOQ
	nothing_happens($how, $how);

	# The rest comes later: a list of what lacks.
	my ($list) = run_command([ 'pg_restore', '-l', '--section=data', $dump ]);
	my @lacks = map { s/ has .*//r =~ s/^mlint\.//r } split /; /,
	  $node->safe_psql($how, 'SELECT problem FROM mlint.restores');
	my $like = join '|', @lacks;
	append_to_file("$dir/$how.list", join "\n", (grep { /TABLE DATA mlint ($like) / || /SEQUENCE SET/ } split /\n/, $list), '');
	$node->command_ok([ 'pg_restore', '-e', '-L', "$dir/$how.list", '-d', $node->connstr($how), $dump ],
		"$how: the rest is restored");
	goes_on($how, $how);
	my $delivered = $receiver->count;
	is($delivered - $arrived, @{ $ids{ok} } + 1, "$how: what waited, and one that came meanwhile");
	$arrived = $delivered;
	$node->safe_psql('postgres', "DROP DATABASE $how");
}

# ---- a part is wanted, and nothing else ----

$node->safe_psql('postgres', 'CREATE DATABASE part');
$node->safe_psql('part', 'CREATE EXTENSION mlint');
$node->command_ok([ 'pg_restore', '-e', '-a', '-n', 'mlint', '-t', 'destination', '-d',
		$node->connstr('part'), $dump ], 'one table is restored');
wait_for_sql($node, 'that it is a part is known',
	"SELECT problem LIKE 'mlint.dump, which tells%' FROM mlint.restores", 't', 'part');
nothing_happens('part', 'part');
$node->safe_psql('part', 'SELECT mlint.restore_accept()');
goes_on('part', 'part');
is($receiver->count, $arrived + 1, '... when it is accepted');

# ---- who else inserts ----

is(locks_of_restore($node), 0, 'nothing of ours is taken for a restore');
my ($in, $out) = (<<'EOQ', '');
BEGIN;
INSERT INTO mlint.event_key VALUES ('by hand', 1, now());
SELECT pg_advisory_unlock_all();
\echo done
EOQ
my $psql = IPC::Run::start([ 'psql', '-XAtq', $conn ], '<', \$in, '>', \$out, IPC::Run::timeout($MlintTest::deadline));
IPC::Run::pump($psql) until $out =~ /done/;
is(locks_of_restore($node), 1, 'what somebody inserts directly is, until it is committed whatever he unlocks');
$in .= "COMMIT;\nINSERT INTO mlint.event_key VALUES ('by hand again', 1, now());\n\\echo committed\n";
IPC::Run::pump($psql) until $out =~ /committed/;
is(locks_of_restore($node), 1, '... and after that');
$in .= "\\q\n";
IPC::Run::finish($psql);
wait_for_sql($node, '... until he leaves', 'SELECT count(*) = 0 FROM mlint.restores');
is($node->safe_psql('postgres', "SET session_replication_role = origin; BEGIN; INSERT INTO mlint.event_key VALUES ('again', 1, now()); SHOW session_replication_role; ROLLBACK"),
	'origin', 'triggers and foreign keys of others are left alone');

# ---- a job whose functions unlock everything ----

my $keeps_off = "SELECT count(*) FROM pg_locks l JOIN mlint.stat_workers w USING (pid)"
  . " WHERE l.locktype = 'advisory' AND l.objsubid = 19788 AND l.objid = 1001 AND l.mode = 'ShareLock'"
  . " AND w.kind = 'job' AND w.lane = (SELECT id FROM mlint.job WHERE name = 'secret_rotation')";
$node->safe_psql('postgres', <<'EOQ');
CREATE FUNCTION public.unlocks(name text) RETURNS text LANGUAGE sql AS $$
	SELECT pg_advisory_unlock_all(), pg_advisory_xact_lock(42);
	SELECT name || ', unlocked';
$$;
SELECT mlint.secret_put('unlocks', 'old');
SELECT mlint.secret_rotation_set('unlocks', '30 days', '{"kind": "function", "function": "public.unlocks"}');
EOQ
my $holder = $node->background_psql('postgres');
$holder->query_safe('SELECT pg_advisory_lock(42)');
inject($node, 'rotation-generated', 'wait');
$node->safe_psql('postgres', "SELECT mlint.secret_rotate('unlocks')");
wait_for_sql($node, 'a function unlocks, and waits',
	"SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted");
is($node->safe_psql('postgres', $keeps_off), 1, '... but not what keeps a restore waiting');
$holder->quit;
wait_for_sql($node, '... and has ended', "SELECT trying_version IS NOT NULL FROM mlint.rotations WHERE name = 'unlocks'");
is($node->safe_psql('postgres', $keeps_off), 1, '... its job keeps it waiting after that');
resume($node, 'rotation-generated');
is($node->safe_psql('postgres', "SELECT mlint.secret_rotate_wait('unlocks', '$MlintTest::deadline s')"), 't', '... until it is done');

$node->stop;
done_testing();
