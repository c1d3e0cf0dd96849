# A dump of a database in mid-delivery, restored in every way: what waited is
# delivered from the copy, under the same webhook-id, once, and nothing else;
# publishing goes on behind it, keys are remembered.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use RestoreTest;
use Test::More;

my ($node, $receiver) = restore_source();
my $dir = PostgreSQL::Test::Utils::tempdir();
my $conn = $node->connstr('postgres');
my %ids = map { $_ => [ restore_ids($node, $_) ] } qw(ok off);
is(scalar @{ $ids{ok} }, 3, 'three events are not delivered');
is(scalar @{ $ids{off} }, 5, '... and five to the disabled one');
my $once = $node->safe_psql('postgres', "SELECT event_id FROM mlint.event_key WHERE key = 'once'");
my $last = $node->safe_psql('postgres', 'SELECT last_value FROM mlint.event_id');

sub psql_file { return [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', @_ ] }

# way => [options of pg_dump], function of the database that gives commands
my @ways = (
	[ 'plain', [], sub { psql_file('-f', "$dir/plain", $_[0]) } ],
	[ 'inserts', ['--inserts'], sub { psql_file('-f', "$dir/inserts", $_[0]) } ],
	[ 'columns', [ '--column-inserts', '--rows-per-insert=2', '--quote-all-identifiers' ],
		sub { psql_file('-1', '-f', "$dir/columns", $_[0]) } ],
	[ 'custom', ['-Fc'], sub { [ 'pg_restore', '-e', '-d', $_[0], "$dir/custom" ] } ],
	[ 'single', ['-Fc'], sub { [ 'pg_restore', '-1', '-d', $_[0], "$dir/single" ] } ],
	[ 'parallel', [ '-Fd', '-j', 4 ],
		sub { [ 'pg_restore', '-e', '-j', 4, '-d', $_[0], "$dir/parallel" ] } ],
	[ 'parallel_inserts', [ '-Fd', '--inserts' ],
		sub { [ 'pg_restore', '-e', '-j', 4, '-d', $_[0], "$dir/parallel_inserts" ] } ],
	[ 'sections', ['-Fc'], sub {
			map { [ 'pg_restore', '-e', "--section=$_", '-d', $_[0], "$dir/sections" ] }
			  qw(pre-data data post-data);
		} ]);
for my $way (@ways)
{
	my ($name, $options, $restore) = @$way;
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->command_ok([ 'pg_dump', @$options, '-f', "$dir/$name", $conn ], "$name: dump");
	$node->command_ok($_, "$name: restore") for $restore->($node->connstr($name));
	restored_delivers($node, $name, $receiver, $name, \%ids);
	is( $node->safe_psql($name, "SELECT mlint.publish('a', '{}', key => 'once')"),
		$once, "$name: a key is remembered");
	is( $node->safe_psql($name, "SELECT mlint.publish('nobody', '{}')"),
		$last + 2, "$name: numbers go on");
	is($node->safe_psql($name, "SELECT mlint.secret_get('api')"), 'sesame', "$name: the secret");
	my ($rc, $out, $err) = $node->psql($name,
		"\\set VERBOSITY verbose\nSELECT mlint.archive_delete(id) FROM mlint.archives");
	like($err, qr/ML014/, "$name: what is held is held");
	is(locks_of_restore($node), 0, "$name: nobody restores");
	# (The database itself would wait for those that are frozen.)
	$node->safe_psql($name, 'DROP EXTENSION mlint CASCADE');
}

# The data alone, into a database that has the rest; the schema alone.
$node->command_ok([ 'pg_dump', '-s', '-f', "$dir/schema", $conn ], 'dump of the schema');
$node->command_ok([ 'pg_dump', '-a', '-f', "$dir/data", $conn ], '... of the data');
$node->safe_psql('postgres', 'CREATE DATABASE apart');
$node->command_ok(psql_file('-f', "$dir/schema", $node->connstr('apart')), 'the schema is restored');
restore_calm($node, 'apart', 'schema alone');
is($node->safe_psql('apart', 'SELECT count(*) FROM mlint.destinations'), 0, '... with nothing in it');
my $here = $receiver->url('/here');
$node->safe_psql('apart', "SET client_min_messages = error; SELECT mlint.destination_create('here', 'http', '{\"url\": \"$here\"}', '{x}')");
my $event = $node->safe_psql('apart', "SELECT mlint.publish('x', '{}')");
ok(wait_for_delivery($node, $event, 'apart'), '... and works');
$node->safe_psql('apart', 'DROP EXTENSION mlint; CREATE EXTENSION mlint');
$node->command_ok(psql_file('-f', "$dir/data", $node->connstr('apart')), 'the data follows');
restored_delivers($node, 'apart', $receiver, 'data alone', \%ids);

# A schema of the user's has nothing of ours; ours alone is data.
$node->command_ok([ 'pg_dump', '-n', 'public', '-f', "$dir/public", $conn ], 'dump of public');
unlike(slurp_file("$dir/public"), qr/mlint\./, '... has nothing of ours');
$node->command_ok([ 'pg_dump', '-a', '-n', 'mlint', '-f', "$dir/mlint", $conn ], 'dump of the data of mlint');
$node->safe_psql('postgres', 'CREATE DATABASE ours');
$node->safe_psql('ours', <<'EOQ');
CREATE EXTENSION mlint;
CREATE TABLE public.got (webhook text, event jsonb);
CREATE FUNCTION public.take(event jsonb) RETURNS void LANGUAGE sql
	AS 'INSERT INTO public.got SELECT current_user, event';
GRANT INSERT ON public.got TO alice;
EOQ
$node->command_ok(psql_file('-f', "$dir/mlint", $node->connstr('ours')), '... restored');
restored_delivers($node, 'ours', $receiver, 'one schema', \%ids);

# Somebody who may read everything, and is no superuser, can dump.
$node->safe_psql('postgres', 'CREATE ROLE backup LOGIN IN ROLE pg_read_all_data, mlint_reader');
$node->command_ok([ 'pg_dump', '-U', 'backup', '-f', "$dir/backup", $conn ], 'a role for backups dumps');
is(sorted("$dir/backup"), sorted("$dir/plain"), '... the same');

sub sorted
{
	my ($file) = @_;
	return join "\n", sort grep { !/^--|^\\(un)?restrict/ } split /\n/, slurp_file($file);
}

restore_freeze($node, 'CONT');
wait_for('the original has lost nothing by it', sub {
		my %got = %{ $receiver->arrivals('/ok', qr/"type\\":\\"a\\"/) };
		return !grep { $got{$_} != @ways + 3 } @{ $ids{ok} };
	});
$node->stop;
done_testing();
