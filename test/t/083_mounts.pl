# Secrets as files: written when a secret changes, exactly with their mode and
# content, nowhere but below mlint.secret_mount_directory, again when they were
# changed by hand, and gone when the mount or the secret is; what is written is
# read back by a shell and by a JSON parser.

use strict;
use warnings;

use Cwd qw(realpath);
use Encode ();
use Fcntl qw(:mode);
use File::Path qw(make_path);
use IPC::Run ();
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($out, $err) = ('', '');
my $top = realpath(PostgreSQL::Test::Utils::tempdir());
my $dir = "$top/mounts";
mkdir $dir, 0700 or die $!;
mkdir "$top/outside", 0700 or die $!;
my $node = mlint_node('mounts', conf => "mlint.secret_mount_directory = '$dir'\n");

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub content
{
	my ($path) = @_;
	open my $f, '<:raw', "$dir/$path" or return undef;
	local $/;
	return scalar <$f>;
}

sub file_mode { return sprintf '%04o', S_IMODE((stat "$dir/$_[0]")[2] // 0); }

# The job, once more, to its end.
sub pass_by
{
	# A run that is under way has begun before what it is to see.
	my $since = sql('SELECT clock_timestamp()');
	sql("SELECT mlint.job_run_now('secret_mounts')");
	my $end = time + $MlintTest::deadline;
	until (sql("SELECT count(*) > 0 FROM mlint.job_runs WHERE name = 'secret_mounts' AND started_at > '$since'") eq 't')
	{
		die 'the job does not run' if time > $end;
	}
	return;
}

sub state { return sql("SELECT state || '|' || coalesce(error, '') FROM mlint.secret_mounts WHERE path = '$_[0]'"); }

# ---- raw ----
sql("SELECT mlint.secret_put('db/password', 'one')");
umask 0077;
sql("SELECT mlint.secret_mount_create('db/password', 'app/db/password', '0444')");
wait_for('a mount is written', sub { (content('app/db/password') // '') eq 'one' });
is(file_mode('app/db/password'), '0444', '... with exactly its mode');
is(file_mode('app/db'), '0700', '... in directories of the mode of the topmost');
wait_for_sql($node, '... which its view shows',
	"SELECT state, versions, mode, format, error IS NULL, written_at > now() - interval '1 minute' FROM mlint.secret_mounts",
	'written|{"db/password": 1}|0444|raw|t|t');
my $inode = (stat "$dir/app/db/password")[1];
open my $held, '<', "$dir/app/db/password" or die $!;
sql("SELECT mlint.secret_put('db/password', 'two')");
wait_for('a new version is written', sub { (content('app/db/password') // '') eq 'two' }, 20);
isnt((stat "$dir/app/db/password")[1], $inode, '... as another file');
is(scalar <$held>, 'one', '... so that who has the old one open reads that to its end');
is(join(' ', grep { !/^\.\.?$/ } slurp_dir("$dir/app/db")), 'password', '... and nothing else is left');
($out, $err) = ('', '');
$node->psql('postgres', "LISTEN mlint_secret;\n SELECT mlint.secret_put('db/password', 'two');\n SELECT 1", stdout => \$out, stderr => \$err);
like($out . $err, qr/notification "mlint_secret" with payload "\{"name": "db\/password", "version": 3\}"/,
	'who listens is notified of each version');

my $bytes = join '', map { chr } 0 .. 255;
sql("SELECT mlint.secret_put_bytes('bytes', '\\x" . unpack('H*', $bytes) . "')");
sql("SELECT mlint.secret_mount_create('bytes', 'bytes')");
wait_for('any bytes', sub { (content('bytes') // '') eq $bytes });
wait_for_sql($node, '... which is recorded', "SELECT written_at IS NOT NULL FROM mlint.secret_mounts WHERE path = 'bytes'");
is(file_mode('bytes'), '0400', '... by default for the server\'s user alone');

# ---- changed by hand ----
my $written = sql("SELECT written_at FROM mlint.secret_mounts WHERE path = 'bytes'");
pass_by();
is(sql("SELECT written_at FROM mlint.secret_mounts WHERE path = 'bytes'"), $written,
	'what is as it should be is not written again');
chmod 0600, "$dir/bytes" or die $!;
open my $f, '>', "$dir/bytes" or die $!;
print $f 'other';
close $f;
pass_by();
is(content('bytes'), $bytes, 'a file that was changed is written again');
is(file_mode('bytes'), '0400', '... with its mode');
chmod 0644, "$dir/bytes" or die $!;
pass_by();
is(file_mode('bytes'), '0400', '... also when only that was changed');
unlink "$dir/bytes" or die $!;
pass_by();
is(content('bytes'), $bytes, '... or when it was removed');

# ---- dotenv and json ----
my %values = (
	plain => 'abc/DEF:1@x',
	empty_like => ' ',
	spaces => ' two  words ',
	hash => 'a#b #c',
	dollar => '$HOME ${PATH} $(id) `id`',
	single => "it's",
	double => 'say "x"',
	both => q{'"$`\\},
	backslash => 'a\\nb\\\\c\\',
	lines => "one\ntwo\n\nthree",
	return => "a\r\nb\tc",
	unicode => "gr\x{fc}\x{df}e \x{1f511}",
	bang => 'a!b;c&d|e>f<g(h)*?[i]~{j}');
foreach my $name (sort keys %values)
{
	my $hex = unpack 'H*', Encode::encode('UTF-8', $values{$name});
	sql("SELECT mlint.secret_put_bytes('env/$name', '\\x$hex')");
}
sql("SELECT mlint.secret_mount_create('env/*', 'app.env', '0400', 'dotenv', '{db/password}')");
sql("SELECT mlint.secret_mount_create('env/*', 'app.json', '0400', 'json')");
wait_for('a dotenv file is written', sub { defined content('app.env') });
wait_for('a json file is written', sub { defined content('app.json') });
($out, $err) = ('', '');
IPC::Run::run([ 'env', '-i', 'PATH=/bin:/usr/bin', 'sh', '-c', "set -a; . '$dir/app.env'; exec env -0" ], '>', \$out, '2>', \$err);
is($err, '', 'a shell reads it');
my %read = map { /^([^=]+)=(.*)$/s } split /\0/, $out;
is($read{DB_PASSWORD}, 'two', '... with what was named besides');
is(Encode::decode('UTF-8', $read{ 'ENV_' . uc $_ } // ''), $values{$_}, "... $_") for sort keys %values;
my $json = JSON::PP::decode_json(content('app.json'));
is_deeply($json, { map { ("env/$_" => $values{$_}) } keys %values }, 'the json file has them');
# Most values are the same to a reader of other rules.
my $python = <<'EOP';
import re, sys
out = {}
for m in re.finditer(r'''^(\w+)=('(?:\\'|[^'])*'|"(?:\\"|[^"])*"|[^\n]*)$''', sys.stdin.read(), re.M):
    v = m[2]
    if v[:1] == "'":
        v = re.sub(r"\\([\\'])", r"\1", v[1:-1])
    elif v[:1] == '"':
        v = re.sub(r'\\(["\\])', r'\1', v[1:-1])
    out[m[1]] = v
print(all(out["ENV_" + n.upper()] for n in "plain spaces hash single double lines return bang".split()),
      out["ENV_SINGLE"] == "it's", out["ENV_HASH"] == "a#b #c", out["ENV_DOUBLE"] == 'say "x"')
EOP
IPC::Run::run([ 'python3', '-c', $python ], '<', \content('app.env'), '>', \$out);
is($out, "True True True True\n", 'python-dotenv\'s rules read those without special signs the same');
sql("SELECT mlint.secret_put('env/added', 'later')");
wait_for('a secret that comes to match is added', sub { content('app.env') =~ /^ENV_ADDED=later$/m });
sql("SELECT mlint.secret_drop('env/added')");
wait_for('... and goes when it is dropped', sub { content('app.env') !~ /ENV_ADDED/ });
sql("SELECT mlint.secret_put_bytes('env/binary', '\\xff')");
wait_for_sql($node, 'one that is no text is told',
	"SELECT string_agg(state || ' ' || error, ', ') FROM mlint.secret_mounts WHERE path IN ('app.env', 'app.json')",
	join ', ', ('failed the value of secret "env/binary" is not text') x 2);
like(content('app.env'), qr/ENV_PLAIN/, '... and what was written stays');
sql("SELECT mlint.secret_drop('env/binary')");
wait_for_sql($node, '... until it is gone', "SELECT count(*) FROM mlint.secret_mounts WHERE error IS NOT NULL", 0);

# ---- going ----
sql("SELECT mlint.secret_drop('bytes')");
wait_for('with its secret a file goes', sub { !-e "$dir/bytes" });
wait_for_sql($node, '... which the view says', "SELECT state, error, versions IS NULL FROM mlint.secret_mounts WHERE path = 'bytes'",
	'failed|secret "bytes" does not exist|t');
sql("SELECT mlint.secret_put('bytes', 'again')");
pass_by();
is(content('bytes'), 'again', '... and it comes back');
sql("BEGIN; SELECT mlint.secret_mount_drop('bytes'); ROLLBACK");
pass_by();
is(content('bytes'), 'again', 'a drop that was rolled back drops nothing');
sql("SELECT mlint.secret_mount_drop('bytes')");
wait_for('with its mount a file goes', sub { !-e "$dir/bytes" });
sql("SELECT mlint.secret_mount_create('bytes', 'again', '0400'); SELECT mlint.secret_mount_drop('again'); SELECT mlint.secret_mount_create('db/password', 'again', '0440')");
pass_by();
is(content('again'), 'two', 'a path may be another\'s afterwards');

# ---- nowhere else ----
open $f, '>', "$top/outside/target" or die $!;
print $f 'untouched';
close $f;
symlink "$top/outside", "$dir/link" or die $!;
sql("SELECT mlint.secret_mount_create('db/password', 'link/target')");
pass_by();
like(state('link/target'), qr/^failed\|secret mount "link\/target": there is something else than a directory on the way/,
	'no link is followed on the way');
ok(PostgreSQL::Test::Utils::slurp_file("$top/outside/target") eq 'untouched', '... nothing is written outside');
symlink "$top/outside/target", "$dir/file" or die $!;
sql("SELECT mlint.secret_mount_create('db/password', 'file')");
pass_by();
ok(!-l "$dir/file" && content('file') eq 'two', 'a link in place of the file is replaced');
ok(PostgreSQL::Test::Utils::slurp_file("$top/outside/target") eq 'untouched', '... and not followed');
symlink "$top/outside/target", "$dir/.temp.mlint" or die $!;
sql("SELECT mlint.secret_mount_create('db/password', 'temp')");
pass_by();
is(content('temp'), 'two', '... nor one in place of the temporary file');
ok(PostgreSQL::Test::Utils::slurp_file("$top/outside/target") eq 'untouched', '... nothing is written outside');
mkdir "$dir/open" or die $!;
chmod 0777, "$dir/open" or die $!;
sql("SELECT mlint.secret_mount_create('db/password', 'open/x')");
pass_by();
like(state('open/x'), qr/that others may write to/, 'a directory that others may write to is not used');
sql("SELECT mlint.secret_mount_drop('open/x'); SELECT mlint.secret_mount_drop('link/target')");

# ---- the directory ----
sub set_directory
{
	my ($to) = @_;
	sql("ALTER SYSTEM SET mlint.secret_mount_directory = '$to'");
	sql('SELECT pg_reload_conf()');
	wait_for_sql($node, "the directory is set to \"$to\"", "SHOW mlint.secret_mount_directory", $to);
	unlink "$dir/temp";
	pass_by();
	return state('temp');
}
like(set_directory("$top/missing"), qr/^failed\|.*could not be opened: No such file/, 'a directory that does not exist');
like(set_directory('mounts'), qr/^failed\|.*not absolute/, '... of no absolute path');
like(set_directory($node->data_dir), qr/^failed\|.*in the data directory/, '... that is the data directory');
mkdir $node->data_dir . '/mounts', 0700;
like(set_directory($node->data_dir . '/mounts'), qr/^failed\|.*in the data directory/, '... or lies in it');
symlink $node->data_dir . '/mounts', "$top/disguised" or die $!;
like(set_directory("$top/disguised"), qr/^failed\|.*in the data directory/, '... by a link too');
rmdir $node->data_dir . '/mounts';
my $above = realpath($node->data_dir . '/..');
chmod 0755, $above;
sql("SELECT mlint.secret_mount_create('db/password', 'pgdata/PG_VERSION')");
set_directory($above);
like(state('pgdata/PG_VERSION'), qr/the way leads into the data directory/, '... or leads into it');
isnt(PostgreSQL::Test::Utils::slurp_file($node->data_dir . '/PG_VERSION'), 'two', '... which is not written to');
sql("SELECT mlint.secret_mount_drop('pgdata/PG_VERSION')");
chmod 0770, $dir or die $!;
like(set_directory($dir), qr/^failed\|.*others than its owner may write/, '... that the group may write to');
chmod 0700, $dir or die $!;
pass_by();
is(state('temp'), 'written|', 'one that is fit again');
like(set_directory(''), qr/^failed\|.*not set/, 'none');
set_directory($dir);

# ---- a crash after the file, and before the record of it ----
$node->append_conf('postgresql.conf', "restart_after_crash = on\n");
$node->reload;
inject($node, 'mount-written', 'kill');
sql("SELECT mlint.secret_put('db/password', 'three')");
wait_for('the job dies', sub { struck($node, 'mount-written') });
wait_for_sql($node, '... and what was written is recorded',
	"SELECT versions FROM mlint.secret_mounts WHERE path = 'app/db/password'", '{"db/password": 4}');
is(content('app/db/password'), 'three', '... and there');

wait_for_sql($node, 'the audit log has what was done',
	"SELECT string_agg(DISTINCT action, ' ' ORDER BY action) FROM mlint.audit_log WHERE action LIKE 'mount.%'",
	'mount.create mount.drop mount.write');

# ---- no value in the log ----
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/say "x"/, 'no value is in the server\'s log');

$node->stop;
done_testing();
