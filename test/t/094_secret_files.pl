# Secrets in files, as Docker and Kubernetes mount them: links that stay below
# the directory are followed, none leads out of it, and a new file is seen.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use SecretTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = PostgreSQL::Test::Utils::tempdir();
my $dir = "$top/mount";
my $node = mlint_node('files', conf => 'log_statement = none');

sub file
{
	my ($path, $text) = @_;
	unlink $path;
	open my $f, '>:raw', $path or die "$path: $!";
	print $f $text;
	close $f;
	return;
}

sub get { my ($name) = @_; return answer($node, "SELECT mlint.secret_get('$name', backend => 'f')"); }

# What Kubernetes makes: password -> ..data/password, ..data -> ..2026_01.
mkdir $_ for $dir, "$dir/..2026_01", "$dir/..2026_02", "$dir/sub", "$top/outside";
file("$dir/..2026_01/password", "first\n");
file("$dir/..2026_02/password", "second\n");
symlink '..2026_01', "$dir/..data";
symlink '..data/password', "$dir/password";
file("$dir/sub/plain", 'plain');
file("$dir/windows", "line\r\n");
file("$dir/two", "two\n\n");
file("$dir/empty", '');
file("$dir/large", 'x' x 65537);
file("$dir/.hidden", 'hidden');
file("$top/outside/secret", 'of somebody else');
symlink '../outside/secret', "$dir/relative";
symlink "$top/outside/secret", "$dir/absolute";
symlink '../outside', "$dir/folder";
symlink '/proc/self/environ', "$dir/proc";
symlink 'loop', "$dir/loop";
system('mkfifo', "$dir/fifo") == 0 or die 'mkfifo';

backend($node, 'f', 'file', { directory => $dir });
# Its part is this test's, which tells who has seen a change.
$node->safe_psql('postgres', "UPDATE mlint.job SET enabled = false WHERE name = 'secret_refresh'");
is(get('password'), 'first', 'a link to a link, below the directory');
is(get('sub/plain'), 'plain', 'a file in a folder');
is(get('windows'), 'line', 'a line break of Windows');
is(answer($node, "SELECT mlint.secret_get('two', backend => 'f') = E'two\\n'"), 't', 'one line break, and no more');
like(get('large'), qr/ML008.*larger than 65536/, 'a large file');
like(get($_), qr/ML007.*leads out of the directory/, "$_ leads out") for 'relative', 'absolute', 'folder/secret';
like(get($_), qr/ML007/, "$_ is refused") for 'proc', 'loop', 'fifo';
like(get($_), qr/42704/, "$_ is none") for 'sub', 'nothing', 'sub/nothing', 'password/x';
like(get('../outside/secret'), qr/42602/, 'no name leads out');
is(answer($node, "SELECT string_agg(name, ' ') FROM mlint.secret_list('f')"),
	'empty large password sub/plain two windows', 'list');
is(answer($node, "SELECT mlint.secret_backend_test('f')"), "6 files below \"$dir\"", 'test');
is(answer($node, "SELECT version, state, created_at IS NOT NULL FROM mlint.secret_versions('password', 'f')"),
	'current|current|t', 'versions');

# A new version is there for the next reader, and for who keeps the value.
my $receiver = MlintTest::Receiver->start;
create_destination($node, 'hook', 'http', { url => $receiver->url('/ok'),
	auth => { type => 'bearer', token => { secret => 'f:password' } } });
deliver($node, 'hook', {});
is(($receiver->requests)[-1]{headers}{authorization}, 'Bearer first', 'a destination uses it');
symlink '..2026_02', "$dir/..tmp";
rename "$dir/..tmp", "$dir/..data" or die $!;
is(get('password'), 'second', 'a new version is read at once');
$node->safe_psql('postgres', q{SELECT mlint.secret_backend_alter('f', '{"cache_ttl_s": 20}')});
wait_for('the destination has it, too', sub {
	deliver($node, 'hook', {});
	return ($receiver->requests)[-1]{headers}{authorization} eq 'Bearer second';
});
file("$dir/..2026_02/password", 'third');
is($node->safe_psql('postgres', 'SELECT mlint.secret_refresh()'), 1, 'the job sees a file that has changed');
wait_for('and the destination follows', sub {
	deliver($node, 'hook', {});
	return ($receiver->requests)[-1]{headers}{authorization} eq 'Bearer third';
});

# The environment of the server, by names as they are written.
$node->stop;
{
	local $ENV{APP_DB_PASSWORD} = "from the environment";
	local $ENV{APP_lower} = 'exact';
	$node->start;
}
backend($node, 'e', 'env', { prefix => 'APP_' });
is(answer($node, "SELECT mlint.secret_get('db/password', backend => 'e')"), 'from the environment', 'env');
is(answer($node, "SELECT string_agg(name, ' ') FROM mlint.secret_list('e')"), 'db_password', 'its list');
backend($node, 'x', 'env', { prefix => 'APP_', names => 'exact' });
is(answer($node, "SELECT mlint.secret_get('lower', backend => 'x')"), 'exact', 'names as they are');

$node->stop;
done_testing();
