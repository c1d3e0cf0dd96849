# Data keys that can be destroyed: what is cut out of the erasure key file can't
# be derived, everything else still can; crashes while the file is replaced; a
# base backup that was taken before a key was destroyed; an older copy of the
# file; going back in time; copies of a database.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Digest::SHA qw(hmac_sha256 sha256);
use File::Copy qw(copy);
use File::Path qw(make_path);
use MlintTest;
use SecretTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $seed = $ENV{MLINT_SEED} // int(rand(1 << 30));
srand($seed);
note "MLINT_SEED=$seed";

my $keys = PostgreSQL::Test::Utils::tempdir() . '/keys';
make_path($keys);
my $file = "$keys/erasure.key";
my $node = mlint_node('keys', has_archiving => 1, allows_streaming => 1,
	conf => "restart_after_crash = on\nmlint.erasure_key_file = '$file'\nmlint.master_key_file = '$keys/master.key'");

sub spew
{
	my ($path, $bytes, $mode) = @_;
	open my $f, '>:raw', $path or die "$path: $!";
	print $f $bytes;
	close $f;
	chmod $mode // 0600, $path;
	return;
}
spew("$keys/master.key", ('0123456789abcdef' x 4) . "\n");

my $declare = <<'EOQ';
CREATE FUNCTION key_create(text) RETURNS bigint LANGUAGE c AS '$libdir/mlint', 'mlint_test_data_key_create';
CREATE FUNCTION key_open(bigint, text) RETURNS bytea LANGUAGE c AS '$libdir/mlint', 'mlint_test_data_key_open';
CREATE FUNCTION key_destroy(bigint) RETURNS void LANGUAGE c AS '$libdir/mlint', 'mlint_test_data_key_destroy';
CREATE FUNCTION leaf(bigint) RETURNS bytea LANGUAGE c AS '$libdir/mlint', 'mlint_test_erasure_leaf';
CREATE FUNCTION leaf_destroy(bigint[]) RETURNS void LANGUAGE c AS '$libdir/mlint', 'mlint_test_erasure_destroy';
EOQ
$node->safe_psql('postgres', $declare);

sub sql { return answer($node, @_); }

sub erased
{
	my ($what) = @_;
	return wait_for_sql($node, $what, 'SELECT waiting = 0 FROM mlint.erasure_key');
}

# ---- the model: the file as it should be ----

# The file's nodes: [first leaf, level, key], checked as a reader would.
sub nodes
{
	my ($path) = @_;
	my ($bytes, $inode);
	# It may be replaced, and then overwritten, while it is read.
	do { $inode = (stat $path)[1]; $bytes = slurp_file($path) } until (stat $path)[1] == $inode;
	my ($magic, $format, $n) = unpack 'a8 N N', $bytes;
	my @nodes;

	die "$path: not ours" unless $magic eq 'mlinterk' && $format == 1 && length($bytes) == 80 + 41 * $n;
	my $zeroed = $bytes;
	substr($zeroed, 48, 32) = "\0" x 32;
	die "$path: digest" unless sha256($zeroed) eq substr($bytes, 48, 32);
	push @nodes, [ unpack 'Q> C a32', substr($bytes, 80 + 41 * $_, 41) ] for 0 .. $n - 1;
	return @nodes;
}

# The key of a leaf, from a node above it.
sub derive
{
	my ($key, $level, $leaf) = @_;
	$key = hmac_sha256("mlint erasure key node\0" . chr(($leaf >> ($_ - 1)) & 1), $key)
	  for reverse 1 .. $level;
	return hmac_sha256("mlint erasure key leaf\0", $key);
}

sub leaf_from_file
{
	my ($leaf, @nodes) = @_;
	for my $n (@nodes)
	{
		return derive($n->[2], $n->[1], $leaf) if $leaf >= $n->[0] && $leaf - $n->[0] < 1 << $n->[1];
	}
	return undef;
}

# ---- 1. keys ----

unlike(sql('SELECT available FROM mlint.erasure_key'), qr/t/, 'no file before the first key');
is(sql("SELECT key_create('one')"), '1', 'the first key');
is(sprintf('%o', (stat $file)[2] & 07777), '600', 'nobody else reads the file');
is(sql("SELECT key_create('one')"), '2', 'the second');
my $first = sql("SELECT key_open(1, 'one')");
my $second = sql("SELECT key_open(2, 'one')");
isnt($first, $second, 'another key');
like(sql("SELECT key_open(1, 'two')"), qr/ML011.*does not decrypt/s, 'of another purpose');
like(sql("SELECT key_open(99, 'one')"), qr/42704.*does not exist/s, 'no such key');
sql("BEGIN; SELECT key_destroy(1); ROLLBACK");
is(sql("SELECT key_open(1, 'one')"), $first, 'a rollback destroys nothing');
is(sql("SELECT count(*) FROM mlint.job_run r JOIN mlint.job j ON j.id = r.job_id WHERE j.name = 'data_key_erase'"),
	'0', 'and asks for no job');
my ($root) = nodes($file);
is($root->[1], 63, 'a new file has the root alone');
is(sql('SELECT in_data_directory FROM mlint.erasure_key'), 'f', 'the view: the file is elsewhere');
is(sql('SELECT coalesce(warning, $$fine$$) FROM mlint.erasure_key'), 'fine', '... which is well');
is(sql("DO \$\$ DECLARE k bigint := key_create('sub'); BEGIN BEGIN PERFORM key_destroy(k); RAISE 'no'; EXCEPTION WHEN raise_exception THEN END; PERFORM key_open(k, 'sub'); END \$\$"),
	'', 'a subtransaction that rolls back destroys nothing');

# ---- 2. random leaves, against the model ----

my %gone;
my %sample;
for my $round (1 .. 40)
{
	my $base = int(rand(4)) << 32;
	my @leaves = map { $base + int(rand($round % 3 ? 600 : 1 << 20)) } 1 .. 1 + int(rand(40));
	push @leaves, 1 .. 5 if $round == 1;
	push @leaves, (1 << 62) + 1, 9223372036854775806 if $round == 2;
	# Neighbours, and whole subtrees.
	push @leaves, map { $base + 4096 * $round + $_ } 0 .. 63 if $round % 5 == 0;
	push @leaves, keys %gone if $round == 7;
	sql('SELECT leaf_destroy(ARRAY[' . join(',', @leaves) . ']::bigint[])');
	$gone{$_} = 1 for @leaves;
	$sample{ $_ + 1 } = $sample{ $_ ^ 1 } = 1 for grep { $_ < 1 << 62 } @leaves[ 0 .. ($#leaves < 3 ? $#leaves : 3) ];
}
my @nodes = nodes($file);
my ($wrong, $last) = (0, -1);
for my $n (@nodes)
{
	$wrong++ if $n->[0] <= $last || $n->[0] % (1 << $n->[1]);
	$last = $n->[0] + (1 << $n->[1]) - 1;
}
is($wrong, 0, 'nodes are in order and apart');
is((grep { defined leaf_from_file($_, @nodes) } keys %gone), 0, scalar(keys %gone) . ' destroyed leaves have no node above them');
my @living = grep { !$gone{$_} } keys %sample;
is((grep { (leaf_from_file($_, @nodes) // '') ne derive($root->[2], 63, $_) } @living),
	0, scalar(@living) . ' others derive to what they did from the root');
# Exactly the destroyed leaves are not covered.
{
	use bigint;
	my $covered = 0;
	$covered += 2**$_->[1] for @nodes;
	is("$covered", '' . (2**63 - scalar(keys %gone)), 'and not one other is gone');
}
my %by_server = map { split /\|/ } split /\n/,
  sql('SELECT l, coalesce(encode(leaf(l), $$hex$$), $$none$$) FROM unnest(ARRAY[' . join(',', @living, keys %gone) . ']::bigint[]) l');
is((grep { ($by_server{$_} // '') ne unpack('H*', derive($root->[2], 63, $_)) } @living), 0, 'the server agrees about the living');
is((grep { $by_server{$_} ne 'none' } keys %gone), 0, '... and the destroyed');
is(sql("SELECT key_open(2, 'one')"), $second, 'a key in a leaf far from all that is as it was');

# How large the file becomes.
sub grow
{
	my ($what, $leaves) = @_;
	my $before = -s $file;
	my $began = time;
	sql("SELECT leaf_destroy(ARRAY(SELECT $leaves))");
	my $took = time - $began;
	note sprintf('%s: %d bytes more, %.0f ms', $what, (-s $file) - $before, 1000 * $took);
	return (-s $file) - $before;
}
cmp_ok(grow('10,000 in order', '(7::bigint << 40) + i FROM generate_series(1, 10000) i'), '<', 10_000, '10,000 neighbours cost little');
cmp_ok(grow('10,000 of a million', '(9::bigint << 40) + (random() * 1000000)::bigint FROM generate_series(1, 10000) i'), '<', 4_000_000,
	'10,000 at random of a million');

# ---- 3. a crash at each step of replacing the file ----

my $data = $node->data_dir;
for my $point (qw(erasure-key-written erasure-key-linked erasure-key-renamed erasure-key-overwritten data-key-before-erase data-key-erased))
{
	job_rests($node, 'data_key_erase');
	my ($kept, $condemned) = map { sql("SELECT key_create('crash')") } 1 .. 2;
	my $open = sql("SELECT key_open($kept, 'crash')");
	my $leaf = sql("SELECT leaf FROM mlint.data_key WHERE id = $condemned");
	my $old = slurp_file($file);
	inject($node, $point, 'kill');
	sql("SELECT key_destroy($condemned)");
	wait_for("$point: the job died", sub { struck($node, $point) });
	ok(eval { nodes($file); 1 }, "$point: the file is whole");
	sql("SELECT mlint.job_run_now('data_key_erase')");
	erased("$point: the job did it in the end");
	is(leaf_from_file($leaf, nodes($file)), undef, "$point: the leaf is gone");
	is(sql("SELECT key_open($kept, 'crash')"), $open, "$point: its neighbour is not");
	is(join(' ', map { s/.*\///r } glob("$keys/*")), 'erasure.key master.key', "$point: nothing is left beside the file");
}
# The old bytes are overwritten: a second name shows them.
my $condemned = sql("SELECT key_create('old')");
link $file, "$keys/witness" or die $!;
sql("SELECT key_destroy($condemned)");
erased('destroyed');
like(slurp_file("$keys/witness"), qr/\A\0+\z/, 'the old file was overwritten');
unlink "$keys/witness";

# ---- 4. the file is away, damaged, another's ----

rename $file, "$file.away" or die $!;
like(sql("SELECT key_open(2, 'one')"), qr/ML010.*erasure key file is missing.*Put the file back/s, 'the file is missing');
like(sql("SELECT key_create('one')"), qr/ML010.*missing/s, 'no other is made');
ok(!-e $file, 'indeed');
like(sql('SELECT warning FROM mlint.erasure_key'), qr/missing/, 'the view says so');
my $late = sql('SELECT max(id) FROM mlint.data_key');
my $late_leaf = sql("SELECT leaf FROM mlint.data_key WHERE id = $late");
sql("SELECT key_destroy($late)");
wait_for_sql($node, 'the job fails, and says what to do',
	"SELECT count(*) > 0 FROM mlint.job_runs WHERE name = 'data_key_erase' AND error LIKE '%erasure key file is missing%'");
spew($file, "rubbish " x 100);
like(sql("SELECT key_open(2, 'one')"), qr/ML010.*damaged/s, 'a damaged file');
{
	my $bytes = slurp_file("$file.away");
	substr($bytes, 100, 1) = chr(1 ^ ord substr($bytes, 100, 1));
	spew($file, $bytes);
	like(sql("SELECT key_open(2, 'one')"), qr/ML010.*damaged/s, 'one bit');
	spew($file, slurp_file("$file.away"), 0640);
	like(sql("SELECT key_open(2, 'one')"), qr/ML010.*can be read by others/s, 'readable by others');
	my $tree = slurp_file("$file.away");
	substr($tree, 16, 1) = chr(1 ^ ord substr($tree, 16, 1));
	substr($tree, 48, 32) = "\0" x 32;
	substr($tree, 48, 32) = sha256($tree);
	spew($file, $tree);
	like(sql("SELECT key_open(2, 'one')"), qr/ML010.*not the erasure key file/s, 'of another cluster');
	like(sql("SELECT key_create('one')"), qr/ML010.*not the erasure key file/s, '... no new keys with that');
}
unlink $file;
rename "$file.away", $file or die $!;
is(sql("SELECT key_open(2, 'one')"), $second, 'back again');
sql("SELECT mlint.job_run_now('data_key_erase')");
erased('what was destroyed meanwhile');
is(leaf_from_file($late_leaf, nodes($file)), undef, 'is gone from the file');

# ---- 5. a backup from before, and an older copy of the file ----

my @of_backup = map { sql("SELECT key_create('backup')") } 1 .. 3;
my @open = map { sql("SELECT key_open($_, 'backup')") } @of_backup;
copy($file, "$keys/older") or die $!;
chmod 0600, "$keys/older";
$node->backup('before');
sql("SELECT key_destroy($of_backup[1])");
erased('destroyed after the backup');
my $restored = PostgreSQL::Test::Cluster->new('restored');
$restored->init_from_backup($node, 'before');
$restored->start;
is(answer($restored, "SELECT key_open($of_backup[0], 'backup')"), $open[0], 'the backup opens what lives');
is(answer($restored, "SELECT key_open($of_backup[2], 'backup')"), $open[2], '... on both sides');
is(answer($restored, "SELECT count(*) FROM mlint.data_key WHERE id = $of_backup[1]"), '1', 'it has the row of what was destroyed');
like(answer($restored, "SELECT key_open($of_backup[1], 'backup')"), qr/55000.*was destroyed/s, '... and cannot open it');
# Numbers that were used in the other future are used again, those cut are not.
my @again = map { answer($restored, "SELECT key_create('again')") } 1 .. 3;
ok(!grep({ $_ == $of_backup[1] } @again), 'new keys take leaves that are there');
$restored->stop;

# As a standby has it that was promoted with its own copy.
copy("$keys/older", "$file.put") or die $!;
chmod 0600, "$file.put";
rename "$file.put", $file or die $!;
ok(defined leaf_from_file(sql("SELECT leaf FROM mlint.data_key_destroyed WHERE id = $of_backup[1]"), nodes($file)), 'an older copy has the leaf');
sql("SELECT mlint.job_run_now('data_key_erase')");
wait_for('the job cuts it there, too', sub {
	!defined leaf_from_file(sql("SELECT leaf FROM mlint.data_key_destroyed WHERE id = $of_backup[1]"), nodes($file)) });
is(sql("SELECT key_open($of_backup[0], 'backup')"), $open[0], 'and nothing else');

# ---- 6. copies ----

my $shared = sql("SELECT key_create('shared')");
my $shared_key = sql("SELECT key_open($shared, 'shared')");
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
my $of = sub { my ($rc, $out, $err) = $node->psql('copy', $_[0], on_error_stop => 1); return $rc ? $err : $out; };
is($of->("SELECT key_open($shared, 'shared')"), $shared_key, 'a copy opens what it took along');
my ($mine, $its) = (sql("SELECT key_create('own')"), $of->("SELECT key_create('own')"));
is($mine, $its, 'both count on');
isnt(sql("SELECT leaf FROM mlint.data_key WHERE id = $mine"), $of->("SELECT leaf FROM mlint.data_key WHERE id = $its"), 'in leaves of their own');
my $its_key = $of->("SELECT key_open($its, 'own')");
sql("SELECT key_destroy($mine), key_destroy($shared)");
erased('destroyed in the first');
is($of->("SELECT key_open($its, 'own')"), $its_key, "the copy's own key is not destroyed");
like($of->("SELECT key_open($shared, 'shared')"), qr/was destroyed/, 'what is the same archive is');

# Dumped and restored.
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ], 'dump');
$node->safe_psql('template1', 'CREATE DATABASE loaded');
$node->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('loaded'), '-f', $dump ], 'restore');
is($node->safe_psql('loaded', "SELECT key_open(2, 'one')"), $second, 'a dump opens');
is($node->safe_psql('loaded', "SELECT key_create('one') > 2"), 't', 'and goes on');
my ($rc, $out, $err) = $node->psql('loaded', "SELECT key_open($shared, 'shared')");
like($err, qr/was destroyed/, 'what was destroyed stays so');

# ---- 7. another master key ----

my $before = sql("SELECT sha256(string_agg(key_open(id, purpose), ''::bytea ORDER BY id)) FROM mlint.data_key");
spew("$keys/master.key", ('fedcba9876543210' x 4) . "\n" . ('0123456789abcdef' x 4) . "\n");
sql('SELECT mlint.master_key_rotate()');
wait_for_sql($node, 'all data keys are wrapped anew', "SELECT state = 'retired' AND data_keys = 0 FROM mlint.master_key WHERE key_id = 1");
spew("$keys/master.key", ('fedcba9876543210' x 4) . "\n");
$node->restart;
is(sql("SELECT sha256(string_agg(key_open(id, purpose), ''::bytea ORDER BY id)) FROM mlint.data_key"), $before,
	'and are what they were, without the old master key');

done_testing();
