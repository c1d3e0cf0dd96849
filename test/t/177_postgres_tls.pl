# This server's own certificate: replaced at each renewal, whole at any moment,
# also after a crash, and served to clients that verify it; configurations in
# which a crash could keep the server from starting are refused.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Fcntl qw(:mode);
use MlintTest;
use POSIX ();
use SecretTest;
use TargetTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = authority();
my $node = mlint_node('tls', conf => "listen_addresses = '127.0.0.1'\nrestart_after_crash = on\nlog_statement = none\nlog_connections = on");
my ($data, $port) = ($node->data_dir, $node->port);
sub sql { return $node->safe_psql('postgres', $_[0]); }
sub create { return answer($node, "SELECT mlint.certificate_target_create('$_[0]', 'postgres', '{\"retry_delay_ms\": 100, \"retry_max_delay_ms\": 1000}')"); }

# What a client that verifies everything gets: the serial it is served.
sub served
{
	my $out = openssl('', 's_client', '-connect', "127.0.0.1:$port", '-starttls', 'postgres', '-CAfile', $root, '-verify_return_error', '-verify_hostname', 'localhost');
	return serial_of($out);
}
sub client
{
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'psql', '-XAtc', 'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()',
			"host=localhost hostaddr=127.0.0.1 port=$port dbname=postgres sslmode=verify-full sslrootcert=$root" ], '<', \'', '>', \$out, '2>', \$err);
	return $out eq "t\n" ? 'verified' : $err;
}
sub set { sql("ALTER SYSTEM SET $_") for @_; sql('SELECT pg_reload_conf()'); return; }

# ---- 1. what is refused ----

my ($id, $first) = install($node, 'own', { names => ['localhost', '127.0.0.1'] });
like(create($id), qr/ML007.*"server.crt".*"server.key".*must name the same file.*crash in between.*HINT:  ALTER SYSTEM SET ssl_cert_file = 'server.pem'.*ssl = on/s,
	'two files are refused, with what to do');
for my $file ('../server.pem', 'ssl/server.pem')
{
	set("ssl_cert_file = '$file'", "ssl_key_file = '$file'");
	wait_for_sql($node, "file $file", 'SHOW ssl_key_file', $file);
	like(create($id), qr/ML007.*must be the name of a file in the data directory, or an absolute path/, '... is refused');
}
my $open = PostgreSQL::Test::Utils::tempdir();
chmod 0777, $open;
set("ssl_cert_file = '$open/server.pem'", "ssl_key_file = '$open/server.pem'");
wait_for_sql($node, 'a directory that others may write to', 'SHOW ssl_key_file', "$open/server.pem");
like(create($id), qr/ML007.*others may write to its directory/, '... is refused');
symlink "$open/elsewhere", "$data/server.pem";
set("ssl_cert_file = 'server.pem'", "ssl_key_file = 'server.pem'");
wait_for_sql($node, 'a link', 'SHOW ssl_key_file', 'server.pem');
like(create($id), qr/ML007.*it is a link/, '... is refused');
unlink "$data/server.pem";
sql('CREATE ROLE clerk IN ROLE mlint_admin');
like(answer($node, "SET ROLE clerk; SELECT mlint.certificate_target_create('$id', 'postgres')"), qr/42501.*only superusers/, 'who is no superuser');

# ---- 2. from nothing to TLS ----

is(create($id), 'postgres', 'one file is taken');
agrees($node, 'it is written while the server does no TLS');
is(sprintf('%04o', S_IMODE((stat "$data/server.pem")[2])), '0600', '... for the server alone');
is(target_state($node, 'reference'), "$data/server.pem", '... there');
like(create($id), qr/42710/, 'there is one such target');
my ($other) = install($node, 'other', { names => ['other.example.com'] });
like(create($other), qr/42710.*this server is the place of target "postgres" of certificate "own"/, '... for all certificates');
set('ssl = on');
wait_for('the server does TLS', sub { client() eq 'verified' });
is(served(), $first, '... with it, and its chain');

# ---- 3. renewed ----

for my $how ({}, { rsa => 1 }, {})
{
	my (undef, $new) = install($node, 'own', { names => ['localhost', '127.0.0.1'], %$how });
	agrees($node, 'renewed');
	is(served(), $new, '... when the row says so, new connections are served it');
	is(client(), 'verified', '... which psql verifies');
}

# Its own address is its own, whatever others may not connect to.
set("mlint.http_deny = '127.0.0.0/8, ::1'");
wait_for_sql($node, 'a policy', 'SHOW mlint.http_deny', '127.0.0.0/8, ::1');
my (undef, $denied) = install($node, 'own', { names => ['localhost', '127.0.0.1'] });
agrees($node, '... that denies the server\'s own address does not stand in the way');
is(served(), $denied, '... of a renewal');
set("mlint.http_deny = ''");
wait_for_sql($node, '... it is gone', 'SHOW mlint.http_deny', '');

# ---- 4. crashes ----

for my $point ('server-written', 'server-replaced', 'pushed')
{
	inject($node, "certificate-$point", 'kill');
	my (undef, $new) = install($node, 'own', { names => ['localhost', '127.0.0.1'] });
	wait_for("a crash, $point", sub { struck($node, "certificate-$point") });
	# The file is whole at once: the server must be able to start with it.
	my $pem = slurp_file("$data/server.pem");
	is(openssl($pem, 'x509', '-noout', '-pubkey'), openssl($pem, 'pkey', '-pubout'), '... leaves a whole pair');
	agrees($node, '... and it is gone on with');
	is(served(), $new, '... to the new one');
}
my $before = served();
inject($node, 'certificate-server-replaced', 'kill');
install($node, 'own', { names => ['localhost', '127.0.0.1'] });
wait_for('a crash of the whole server', sub { struck($node, 'certificate-server-replaced') });
$node->stop('immediate');
$node->start;
is(client(), 'verified', 'it starts');
agrees($node, 'and goes on');
is((grep { /server\.pem\.mlint/ } slurp_dir($data)), 0, 'nothing is left beside the file');

# ---- 5. what a reload could break ----

my $was = slurp_file("$data/server.pem");
# A key that is not the certificate's: put there past all that checks it.
my (undef, $key) = issue({}, 'localhost');
my ($key_secret) = split /\n/, sql("SELECT key_secret FROM mlint.certificate WHERE name = 'own'");
sql("SELECT mlint.secret_put('$key_secret', " . literal($key) . ")");
sql("UPDATE mlint.certificate_version SET key_version = (SELECT version::int FROM mlint.secret_versions('$key_secret') WHERE state = 'current') WHERE id = (SELECT version_id FROM mlint.certificate WHERE name = 'own')");
sql("UPDATE mlint.certificate_region SET next_at = now(); SELECT mlint.job_run_now('certificate_targets')");
wait_for_sql($node, 'a pair that is none is not written', "SELECT state FROM mlint.certificate_targets", 'failing');
like(target_state($node, 'error'), qr/the server would not take the certificate: .*mismatch/, '... and OpenSSL says why');
is(slurp_file("$data/server.pem"), $was, '... and the file is as it was');
# But for what the next attempt is just trying.
wait_for('... with nothing beside it', sub { !grep { /server\.pem\.mlint/ } slurp_dir($data) });

# Settings that are changed later.
my ($again, $last) = install($node, 'own', { names => ['localhost', '127.0.0.1'] });
agrees($node, 'a good one mends it');
append_to_file("$data/cert.pem", slurp_file("$data/server.pem"));
set("ssl_cert_file = 'cert.pem'");
wait_for_sql($node, 'two files, later', 'SHOW ssl_cert_file', 'cert.pem');
install($node, 'own', { names => ['localhost', '127.0.0.1'] });
wait_for_sql($node, '... are not touched', "SELECT state FROM mlint.certificate_targets", 'failing');
like(target_state($node, 'error'), qr/must name the same file/, '... and it says why');
set("ssl_cert_file = 'server.pem'");
agrees($node, '... until they are one again');
is(client(), 'verified', 'and all is well');

unlike(slurp_file($node->logfile), qr/PRIVATE KEY|could not load|incomplete startup/, 'the server has nothing to complain of');
$node->stop;
done_testing();
