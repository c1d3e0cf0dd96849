# What servers really serve: a real nginx, which serves what it was told last,
# and PostgreSQL; one that is not there, one that does no TLS, one that hangs;
# what differs is published once.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Cwd qw(realpath);
use IO::Socket::INET;
use MlintTest;
use POSIX ();
use SecretTest;
use TargetTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $root = authority();
my $top = realpath(PostgreSQL::Test::Utils::tempdir());
mkdir "$top/files", 0700 or die $!;
my $node = mlint_node('watch', conf => "mlint.certificate_directory = '$top/files'\nlisten_addresses = '127.0.0.1'\nlog_statement = none");
sub sql { return $node->safe_psql('postgres', $_[0]); }
sub watch { return sql("SELECT mlint.certificate_watch_create('$_[0]', " . join(', ', map { ref $_ ? $$_ : literal($_) } @_[ 1 .. $#_ ]) . ')'); }
sub seen { my ($columns, $port) = @_; return sql("SELECT $columns FROM mlint.certificate_watches WHERE port = $port ORDER BY certificate_name"); }

# Look again, now; to the end.
sub look
{
	my ($port) = @_;
	my $before = sql("SELECT max(checked_at) FROM mlint.certificate_watches WHERE port = $port");
	sql("UPDATE mlint.certificate_watch SET next_at = now() WHERE port = $port");
	sql("SELECT mlint.job_run_now('certificate_watches')");
	return wait_for_sql($node, "port $port is looked at again", "SELECT bool_and(checked_at > '$before') FROM mlint.certificate_watches WHERE port = $port");
}

# ---- 1. nginx, from the files that a target writes ----

my ($id, $first) = install($node, 'www', { names => [ 'localhost', 'www.example.com' ] });
target($node, $id, 'file', { path => 'nginx' });
agrees($node, 'the files are there');
my $https = PostgreSQL::Test::Cluster::get_free_port();
my $nginx = "$top/nginx";
mkdir $nginx;
append_to_file("$nginx/nginx.conf", <<"EOC");
pid $nginx/nginx.pid;
error_log $nginx/error.log;
events { }
http {
	access_log off;
	client_body_temp_path $nginx/body; proxy_temp_path $nginx/proxy; fastcgi_temp_path $nginx/fastcgi; uwsgi_temp_path $nginx/uwsgi; scgi_temp_path $nginx/scgi;
	server {
		listen 127.0.0.1:$https ssl;
		ssl_certificate $top/files/nginx/fullchain.pem;
		ssl_certificate_key $top/files/nginx/privkey.pem;
		location / { return 200 "ok\\n"; }
	}
}
EOC
my $bin = -x '/usr/sbin/nginx' ? '/usr/sbin/nginx' : 'nginx';
sub nginx { return system($bin, '-p', $nginx, '-e', "$nginx/error.log", '-c', "$nginx/nginx.conf", @_) == 0; }

# For a moment old workers accept, too.
sub nginx_reload
{
	my ($master) = slurp_file("$nginx/nginx.pid") =~ /(\d+)/;
	my @old = map { m{(\d+)/stat$} } grep { (eval { slurp_file($_) } // '') =~ /\) \S $master / } glob '/proc/[0-9]*/stat';

	nginx('-s', 'reload') or die;
	return wait_for('the workers of before are gone', sub { !grep { kill 0, $_ } @old });
}
nginx() or BAIL_OUT('nginx does not start');
END { local $?; kill 'TERM', slurp_file("$nginx/nginx.pid") =~ /(\d+)/ if $nginx && -s "$nginx/nginx.pid"; }

watch($id, 'localhost', \$https);
wait_for_sql($node, 'nginx is looked at', "SELECT state FROM mlint.certificate_watches WHERE port = $https", 'agrees');
is(seen("serves = '$first', should_serve = '$first', differs_since IS NULL, note IS NULL, error IS NULL, next_at > now() + '50 minutes'", $https), 't|t|t|t|t|t', 'and serves what it should');
is(openssl('', 's_client', '-connect', "127.0.0.1:$https", '-CAfile', $root, '-verify_return_error', '-verify_hostname', 'www.example.com') =~ /Verify return code: 0/, 1, 'a client verifies it');

# Renewed, and not reloaded.
my (undef, $second) = install($node, 'www', { names => [ 'localhost', 'www.example.com' ] });
agrees($node, 'the new files are there');
is(seen("state, serves = '$first', next_at > now() + '50 minutes'", $https), 'waiting|t|t', 'what was seen before says nothing of the new one');
is(sql("SELECT status FROM mlint.certificate_health() WHERE kind = 'certificate' AND certificate_id = '$id'"), 'ok', '... so health is well');
look($https);
is(seen("state, serves = '$first', should_serve = '$second', differs_since IS NOT NULL, next_at < now() + '6 minutes'", $https), 'differs|t|t|t|t', 'nginx serves the old ones');
is(sql("SELECT count(*) FROM mlint.events WHERE type = 'certificate.mismatch'"), '0', '... which a reload may still mend');
is(sql("SELECT status FROM mlint.certificate_health() WHERE kind = 'certificate' AND certificate_id = '$id'"), 'ok', '... and is no warning yet');
sql("UPDATE mlint.certificate_version SET activated_at = now() - interval '6 minutes' WHERE serial = '$second'");
# It was looked at before, and its turn is in an hour.
sql("UPDATE mlint.certificate_watch SET checked_at = now() - interval '7 minutes', next_at = now() + interval '1 hour' WHERE port = $https");
sql("SELECT mlint.job_run_now('certificate_watches')");
wait_for_sql($node, 'it is looked at when a reload should be over', "SELECT bool_and(checked_at > now() - interval '1 minute') FROM mlint.certificate_watches WHERE port = $https");
is(sql("SELECT status, why LIKE '%serves another certificate%' FROM mlint.certificate_health() WHERE kind = 'certificate' AND certificate_id = '$id'"), 'warning|t', 'health warns then');
is(sql("SELECT concat_ws('|', data->>'name', data->>'host', data->>'port', data->>'serves', data->>'should_serve') FROM mlint.events WHERE type = 'certificate.mismatch'"),
	"www|localhost|$https|$first|$second", '... and is published when it does not');
look($https);
is(sql("SELECT count(*) FROM mlint.events WHERE type = 'certificate.mismatch'"), '1', '... once');
nginx_reload();
wait_for('nginx reloads', sub { serial_of(openssl('', 's_client', '-connect', "127.0.0.1:$https")) eq $second });
look($https);
is(seen("state, serves = '$second', differs_since IS NULL", $https), 'agrees|t|t', 'reloaded, it agrees');
install($node, 'www', { names => [ 'localhost', 'www.example.com' ] });
sql("UPDATE mlint.certificate_version SET activated_at = now() - interval '6 minutes'");
look($https);
is(sql("SELECT count(*) FROM mlint.events WHERE type = 'certificate.mismatch'"), '2', 'what differs again is published again');

# Without its intermediate.
my $leaf = slurp_file("$top/files/nginx/cert.pem");
append_to_file("$nginx/leaf.pem", $leaf);
append_to_file("$nginx/leaf.key", slurp_file("$top/files/nginx/privkey.pem"));
my $conf = slurp_file("$nginx/nginx.conf");
$conf =~ s{\Q$top/files/nginx/fullchain.pem}{$nginx/leaf.pem};
$conf =~ s{\Q$top/files/nginx/privkey.pem}{$nginx/leaf.key};
unlink "$nginx/nginx.conf";
append_to_file("$nginx/nginx.conf", $conf);
nginx_reload();
wait_for('nginx serves the leaf alone', sub { my @c = openssl('', 's_client', '-showcerts', '-connect', "127.0.0.1:$https") =~ /BEGIN CERT/g; @c == 1 && 1 });
look($https);
is(seen("state, note LIKE '%sends no intermediate certificate%'", $https), 'agrees|t', 'a chain that lacks the intermediate is noted');

# ---- 2. PostgreSQL ----

my ($own, $serial) = install($node, 'own', { names => ['127.0.0.1'] });
watch($own, '127.0.0.1', \$node->port, 'postgres');
my $pg = $node->port;
wait_for_sql($node, 'a PostgreSQL without TLS', "SELECT state FROM mlint.certificate_watches WHERE port = $pg", 'unreachable');
like(seen('error', $pg), qr/"127.0.0.1", port $pg: the server does no TLS/, '... is said to do none');
sql("ALTER SYSTEM SET ssl_cert_file = 'server.pem'");
sql("ALTER SYSTEM SET ssl_key_file = 'server.pem'");
sql('SELECT pg_reload_conf()');
wait_for_sql($node, 'one file', 'SHOW ssl_key_file', 'server.pem');
target($node, $own, 'postgres', {});
agrees($node, 'its certificate', "certificate = '$own'");
sql('ALTER SYSTEM SET ssl = on');
sql('SELECT pg_reload_conf()');
wait_for('it does TLS', sub { eval { openssl('', 's_client', '-connect', "127.0.0.1:$pg", '-starttls', 'postgres') } });
look($pg);
is(seen("state, serves = '$serial', error IS NULL", $pg), 'agrees|t|t', 'what PostgreSQL serves is seen');

# ---- 3. who serves nothing ----

my $plain = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die;
my $hanging = $plain->sockport;
my $closed = PostgreSQL::Test::Cluster::get_free_port();
my $words = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die;
my $speaker = fork() // die;
if ($speaker == 0)
{
	while (my $c = $words->accept) { print $c "HTTP/1.1 400 Bad Request\r\n\r\n"; close $c; }
	POSIX::_exit(0);
}
END { local $?; kill 'KILL', $speaker if $speaker; }
my $start = time;
watch($id, '127.0.0.1', \$_) for $closed, $words->sockport, $hanging;
wait_for_sql($node, 'all were looked at', "SELECT bool_and(checked_at IS NOT NULL) FROM mlint.certificate_watches");
cmp_ok(time - $start, '<', 25, '... in bounded time');
like(seen('error', $closed), qr/port $closed: .*(refused|connect)/i, 'nobody listens');
like(seen('error', $words->sockport), qr/no TLS/, 'no TLS');
like(seen('error', $hanging), qr/took too long/, 'no answer');
is(seen('state', $https), 'agrees', 'the others are looked at all the same');
sql("ALTER SYSTEM SET mlint.http_deny = '127.0.0.0/8'");
sql('SELECT pg_reload_conf()');
wait_for_sql($node, 'a policy', 'SHOW mlint.http_deny', '127.0.0.0/8');
look($https);
like(seen('state, error', $https), qr/^unreachable.*(polic|refused|denied|http_deny)/i, 'the network policy holds');
sql('ALTER SYSTEM RESET mlint.http_deny');
sql('SELECT pg_reload_conf()');

# ---- 4. what is refused ----

my $w = "SELECT mlint.certificate_watch_create('$id'";
like(answer($node, "$w, 'local host')"), qr/22023.*host/, 'no host');
like(answer($node, "$w, 'localhost', 0)"), qr/22023.*port/, 'no port');
like(answer($node, "$w, 'localhost', 1, 'smtp')"), qr/22023.*"tls" or "postgres"/, 'no protocol');
like(answer($node, "$w, 'localhost', 1, every => '1 second')"), qr/22023.*every/, 'too often');
like(answer($node, "$w, 'localhost', $https)"), qr/42710.*already/, 'twice');
like(answer($node, "SELECT mlint.certificate_watch_create('00000000-0000-0000-0000-000000000000', 'x')"), qr/42704/, 'no certificate');
like(answer($node, "SELECT mlint.certificate_watch_drop('$id', 'x')"), qr/42704.*not watched/, 'not watched');
is(answer($node, "SELECT mlint.certificate_watch_drop('$id', 'localhost', $https)"), '', 'watched no more');
is(seen('state', $https), '', '... it is gone');

$node->stop;
done_testing();
