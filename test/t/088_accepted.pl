# Every refusal is in the audit log, not only those of secrets themselves:
# functions that may not be called, what belongs to the server, passwords and
# connections of rotations, backends that may not be written to. So is what
# clears the cache for everybody.

use strict;
use warnings;

use Test::More;

use MlintTest;
use PostgreSQL::Test::Utils;

my $node = mlint_node('accepted');

$node->safe_psql('postgres', <<'EOQ');
CREATE ROLE reader IN ROLE mlint_user;
CREATE ROLE operator IN ROLE mlint_admin;
CREATE ROLE other LOGIN;
CREATE SCHEMA hidden;
CREATE FUNCTION hidden.sink(e jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION public.make(name text) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
REVOKE EXECUTE ON FUNCTION public.make FROM PUBLIC;
SELECT mlint.secret_put('mine', 'value');
SELECT mlint.secret_alter('mine', owner => 'reader');
SELECT mlint.secret_put('theirs', 'value');
SELECT mlint.secret_backend_create('kept', 'vault',
	'{"url": "http://127.0.0.1:1", "token": {"secret": "theirs"}}');
SELECT mlint.secret_backend_create('files', 'file', '{"directory": "/nowhere"}');
EOQ

# The one entry that a statement of this role leaves, and whether it failed.
sub entered
{
	my ($role, $sql) = @_;
	my $last = $node->safe_psql('postgres', 'SELECT max(seq) FROM mlint.audit_log');
	my ($rc) = $node->psql('postgres', "SET ROLE $role; $sql", on_error_stop => 1);
	my $query = "FROM mlint.audit_log WHERE seq > $last AND role = '$role'";

	$node->poll_query_until('postgres', "SELECT count(*) = 1 $query")
	  or return 'not one entry';
	return ($rc == 0 ? '' : 'refused: ')
	  . $node->safe_psql('postgres',
		"SELECT concat_ws(' ', action, object_type, object, outcome, details) $query");
}

is( entered('operator', q{SELECT mlint.destination_create('d', 'function', '{"fn": "hidden.sink"}')}),
	'refused: function.use function hidden.sink denied {"for": "fn", "role": "operator"}',
	'a function in a schema of others');
is( entered('reader', q{SELECT mlint.secret_rotation_set('mine', '1 day', '{"function": "public.make"}')}),
	'refused: function.use function public.make denied {"for": "function", "role": "reader"}',
	'a function that may not be executed');
is( entered('operator', q{SELECT mlint.secret_backend_create('env', 'env')}),
	'refused: secret_backend.create secret_backend env denied',
	'the environment of the server');
is( entered('operator', q{SELECT mlint.secret_backend_alter('files', '{"directory": "/etc"}')}),
	'refused: secret_backend.alter secret_backend files denied',
	'files of the server');
is( entered('reader', q{SELECT mlint.secret_rotation_set('mine', '1 day', apply => '{"kind": "role", "role": "other"}')}),
	'refused: rotation.set secret mine denied {"for": "role"}',
	'the password of a role');
is( entered('reader', q{SELECT mlint.secret_rotation_set('mine', '1 day', apply => '{"kind": "role", "role": "x",
		"connection": {"host": "h", "user": "u", "password": {"secret": "mine"}}}')}),
	'refused: rotation.set secret mine denied {"for": "connection"}',
	'a connection');
is( entered('operator', q{SELECT mlint.secret_rotation_set('mine', '1 day', verify => '{"kind": "login", "role": "x",
		"connection": {"host": "h", "sslrootcert": "/etc/passwd"}}')}),
	'refused: rotation.set secret mine denied {"for": "sslrootcert"}',
	'a file of the server');
is( entered('reader', q{SELECT mlint.secret_rotation_set('mine', '1 day', apply => '{"kind": "backend", "backend": "kept", "name": "n"}')}),
	'refused: secret.put secret kept:n denied',
	'a secret in a backend');
is(entered('operator', q{SELECT mlint.secret_cache_drop('kept')}),
	'secret_cache.drop secret_backend kept ok', 'a cache is dropped');
is(entered('operator', q{SELECT mlint.secret_cache_drop()}),
	'secret_cache.drop secret_backend ok', '... and all are');

# What the scanner says of a server's own settings.
$node->append_conf('postgresql.conf', "mlint.secret_mount_directory = '/run/mlint/mounts'");
$node->reload;
$node->poll_query_until('postgres', q{SELECT current_setting('mlint.secret_mount_directory') <> ''});
is( $node->safe_psql('postgres', q{SELECT count(*) FROM mlint.secret_scan_database() WHERE object = 'mlint.secret_mount_directory'}),
	'0', 'a directory of secrets is no secret');

$node->stop;
done_testing;
