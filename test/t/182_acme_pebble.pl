# Certificates from a real ACME server (Pebble, with its defaults: it rejects
# some nonces on purpose), by every way there is to prove a name, through
# everything that becomes of them; checked with `openssl verify`, served by a
# real nginx and by PostgreSQL itself to clients that verify.

use strict;
use warnings;

use AcmeTest;
use IPC::Run ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $gateway = PostgreSQL::Test::Cluster::get_free_port();
my $web = PostgreSQL::Test::Cluster::get_free_port();
my $tls = PostgreSQL::Test::Cluster::get_free_port();

# Two servers, since each looks for http-01 at one port: the gateway's, nginx's.
my $pebble = AcmeTest->start(http_port => $gateway);
my $second = AcmeTest->start(http_port => $web, eab => 1);

mkdir "$dir/certs" or die;
chmod 0700, "$dir/certs";
my $node = mlint_node('pebble', conf => <<"EOC");
mlint.gateway_listen = '127.0.0.1:$gateway'
mlint.certificate_directory = '$dir/certs'
listen_addresses = '127.0.0.1'
EOC

sub sql { return $node->safe_psql('postgres', $_[0]); }

# A command's output; the test ends when it fails.
sub run_ok
{
	my ($what, @command) = @_;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($ok, $what) or diag "$out$err";
	return $out;
}

# Ask for one, and wait; its id. The rest are arguments as SQL.
sub issue
{
	my ($domains, $account, $more) = @_;
	my $id = sql("SELECT mlint.certificate_issue($domains, '$account'" . ($more ? ", $more" : '') . ')');
	my ($rc, $state, $err) = $node->psql('postgres', "SELECT mlint.certificate_wait('$id', '$MlintTest::deadline s')");

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($state, 'ACTIVE', "issued: $domains by $account" . ($more ? ", $more" : '')) or diag $err;
	return $id;
}

sub field { return sql("SELECT $_[1] FROM mlint.certificate_get('$_[0]')"); }

sub chain_file
{
	my ($id, $name) = @_;
	my $file = "$dir/" . ($name // $id) . '.pem';

	unlink $file;
	append_to_file($file, field($id, 'chain') . "\n");
	return $file;
}

# As a client would look at it.
sub verifies
{
	my ($id, $of, @more) = @_;
	my $file = chain_file($id);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	run_ok("openssl verifies it @more", 'openssl', 'verify', '-x509_strict', '-purpose', 'sslserver',
		'-CAfile', $of->root, '-untrusted', $file, @more, $file);
	return;
}

# ---- by the gateway ----

is(acme_account($node, 'main', $pebble), 'valid', 'an account');

my $one = issue("'{a.example.org}'", 'main');
verifies($one, $pebble, '-verify_hostname', 'a.example.org');

my $many = issue("(SELECT array_agg('n' || i || '.example.org') FROM generate_series(1, 100) i)", 'main');
verifies($many, $pebble, '-verify_hostname', 'n100.example.org');
is(field($many, 'cardinality(domains)'), 100, 'a hundred names in one certificate');

my $idn = issue("ARRAY[U&'B\\00FCcher.example.org', 'STRASSE.example.org.']", 'main');
verifies($idn, $pebble, '-verify_hostname', 'xn--bcher-kva.example.org');
verifies($idn, $pebble, '-verify_hostname', 'strasse.example.org');

my $address = issue("'{127.0.0.1}'", 'main');
verifies($address, $pebble, '-verify_ip', '127.0.0.1');

my $rsa = issue("'{rsa.example.org}'", 'main', "key_type => 'rsa2048'");
verifies($rsa, $pebble);
like(run_ok('its key', 'openssl', 'x509', '-noout', '-text', '-in', chain_file($rsa)), qr/Public-Key: \(2048 bit\)/,
	'of the type asked for');

# Nothing of it is answered any more.
is(sql("SELECT count(*) FROM mlint.acme_challenge WHERE presence NOT IN ('none', 'removed')"), 0,
	'nothing is shown after that');

# ---- by a webroot that nginx serves, and by a function ----

# Debian's nginx, root or not: what it writes lies in our folder.
my $user = $> == 0 ? 'user root;' : '';
my $nginx = -x '/usr/sbin/nginx' ? '/usr/sbin/nginx' : 'nginx';

sub nginx_start
{
	my ($more) = @_;

	unlink "$dir/nginx.conf";
	append_to_file("$dir/nginx.conf", <<"EOC");
$user
pid $dir/nginx.pid;
error_log $dir/nginx.log;
events { worker_connections 64; }
http {
	access_log off;
	client_body_temp_path $dir/body;
	proxy_temp_path $dir/proxy;
	fastcgi_temp_path $dir/fastcgi;
	uwsgi_temp_path $dir/uwsgi;
	scgi_temp_path $dir/scgi;
	server { listen 127.0.0.1:$web; root $dir/certs/webroot; }
	$more
}
EOC
	system_or_bail($nginx, '-p', $dir, '-e', "$dir/nginx.log", '-c', "$dir/nginx.conf",
		-s "$dir/nginx.pid" ? ('-s', 'reload') : ());
	return;
}

END
{
	my $status = $?;
	if (-s "$dir/nginx.pid")
	{
		my $pid = slurp_file("$dir/nginx.pid");
		kill 'TERM', $pid;
	}
	$? = $status;
}

nginx_start('');
my ($kid, $hmac) = $second->eab;
sql("SELECT mlint.secret_put('hmac', '$hmac')");
is(acme_account($node, 'bound', $second, qq({"kid": "$kid", "hmac": {"secret": "hmac"}})), 'valid',
	'an account that is bound to another');

my $file = issue("'{www.example.org}'", 'bound', "solver => 'file:webroot'");
verifies($file, $second, '-verify_hostname', 'www.example.org');
wait_for('nothing is left in the webroot', sub { my @left = glob("$dir/certs/webroot/.well-known/acme-challenge/*"); !@left });

sql(<<"EOQ");
CREATE FUNCTION present(challenge jsonb) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	IF challenge->>'action' = 'present' THEN
		EXECUTE format('COPY (SELECT %L) TO %L', challenge->>'value',
			'$dir/certs/webroot/.well-known/acme-challenge/' || (challenge->>'token'));
	ELSE
		EXECUTE format('COPY (SELECT 1) TO PROGRAM %L',
			'rm -f $dir/certs/webroot/.well-known/acme-challenge/' || (challenge->>'token'));
	END IF;
END \$\$;
EOQ
my $function = issue("'{function.example.org}'", 'bound', "solver => 'function:public.present'");
verifies($function, $second, '-verify_hostname', 'function.example.org');
wait_for('the function removes what it made', sub { my @left = glob("$dir/certs/webroot/.well-known/acme-challenge/*"); !@left });

# ---- by DNS ----

my ($dns_host, $dns_port) = split /:/, $pebble->dns;
my $dns_control = "http://127.0.0.1:" . ($dns_port + 1);
sql(<<"EOQ");
CREATE FUNCTION dns(challenge jsonb) RETURNS void LANGUAGE sql AS \$\$
	SELECT mlint.http('POST', '$dns_control' || CASE challenge->>'action' WHEN 'present' THEN '/set-txt' ELSE '/clear-txt' END,
		body => jsonb_build_object('host', challenge->>'record' || '.', 'value', challenge->>'value')::text)
\$\$;
SELECT mlint.dns_provider_create('challtestsrv', 'function',
	'{"function": "public.dns", "zone": "example.org", "resolver": "127.0.0.1:$dns_port", "nameservers": "127.0.0.1:$dns_port"}');
EOQ
my $wildcard = issue("'{*.example.org, *.sub.example.org}'", 'main', "challenge => 'dns-01', solver => 'challtestsrv'");
verifies($wildcard, $pebble, '-verify_hostname', 'anything.example.org');
# Both names of this one need a record of the same name.
my $both = issue("'{both.example.org}'", 'main', "challenge => 'dns-01', solver => 'challtestsrv'");
verifies($both, $pebble, '-verify_hostname', 'both.example.org');

# ---- what becomes of them ----

# Renewal: a new key, and the old one in use until then.
my ($serial, $key, $chain) = (field($one, 'serial'), field($one, 'key_version'), field($one, 'chain'));
$pebble->signal('STOP');
sql("SELECT mlint.certificate_renew('$one')");
wait_for_sql($node, 'it is being renewed', "SELECT state FROM mlint.certificate WHERE id = '$one'", 'RENEWING');
is(field($one, 'serial'), $serial, 'the old one is in use while a new one is under way');
$pebble->signal('CONT');
is(sql("SELECT mlint.certificate_wait('$one', '$MlintTest::deadline s')"), 'ACTIVE', 'renewed');
isnt(field($one, 'serial'), $serial, 'with another certificate');
isnt(field($one, 'key_version'), $key, 'and another key');
verifies($one, $pebble, '-verify_hostname', 'a.example.org');

my $kept = issue("'{kept.example.org}'", 'main', 'reuse_key => true');
$key = field($kept, 'key_version');
sql("SELECT mlint.certificate_renew('$kept')");
is(sql("SELECT mlint.certificate_wait('$kept', '$MlintTest::deadline s')"), 'ACTIVE', 'one that keeps its key is renewed');
is(field($kept, 'key_version'), $key, 'and keeps it');

# Rollover, then an order with the new key.
sql("SELECT mlint.acme_account_rollover('main')");
is(sql("SELECT mlint.acme_account_wait('main')"), 'valid', 'a new key for the account');
my $after = issue("'{after.example.org}'", 'main');
verifies($after, $pebble);

# Revocation, as the server says it.
$serial = field($after, 'serial');
sql("SELECT mlint.certificate_revoke('$after', 'superseded')");
is(sql("SELECT mlint.certificate_wait('$after', '$MlintTest::deadline s')"), 'REVOKED', 'revoked');
$serial =~ s/^0+//;
like($pebble->management("/cert-status-by-serial/$serial"), qr/"Status"\s*:\s*"Revoked".*"Reason"\s*:\s*4/s,
	'and the server agrees');

# Ten at once.
my @ids = split /\n/, sql("SELECT mlint.certificate_issue(ARRAY['at-once-' || i || '.example.org'], 'main') FROM generate_series(1, 10) i");
is(sql("SELECT mlint.certificate_wait('$_', '$MlintTest::deadline s')"), 'ACTIVE', 'one of ten') for @ids;

# ---- in use ----

# nginx with the files of a target.
my $target = issue("'{web.example.org}'", 'main');
sql("SELECT mlint.certificate_target_create('$target', 'file', '{\"path\": \"web\"}')");
wait_for('its files are written', sub { -s "$dir/certs/web/privkey.pem" && -s "$dir/certs/web/fullchain.pem" });
nginx_start(<<"EOC");
server {
	listen 127.0.0.1:$tls ssl;
	ssl_certificate $dir/certs/web/fullchain.pem;
	ssl_certificate_key $dir/certs/web/privkey.pem;
	location / { return 200 "served\\n"; }
}
EOC
my @curl = ('curl', '-sS', '--noproxy', '*', '--retry', '20', '--retry-connrefused', '--retry-delay', '0',
	'--cacert', $pebble->root, '--resolve', "web.example.org:$tls:127.0.0.1", "https://web.example.org:$tls/");
is(run_ok('a client trusts nginx', @curl), "served\n", 'and gets what it serves');

# And PostgreSQL itself.
my $data = $node->data_dir;
unlink "$data/pg_hba.conf";
$node->append_conf('pg_hba.conf', "local all all trust\nhostssl all all 127.0.0.1/32 trust\n");
my $db = issue("'{db.example.org}'", 'main');
my ($key_secret, $key_version) = (field($db, 'key_secret'), field($db, 'key_version'));
append_to_file("$data/server.pem", sql("SELECT mlint.secret_get('$key_secret', '$key_version')") . "\n" . field($db, 'chain') . "\n");
chmod 0600, "$data/server.pem";
$node->append_conf('postgresql.conf', "ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.pem'\n");
$node->reload;
my $conn = "host=db.example.org hostaddr=127.0.0.1 port=@{[$node->port]} dbname=postgres sslmode=verify-full sslrootcert=@{[$pebble->root]}";
wait_for('PostgreSQL serves it to a client that verifies it',
	sub { system("psql -XqAt -c 'SELECT 1' '$conn' >/dev/null 2>&1") == 0 });
sql("SELECT mlint.certificate_target_create('$db', 'postgres')");
wait_for_sql($node, 'a target for it agrees',
	"SELECT bool_and(r.version_id = c.version_id) FROM mlint.certificate c JOIN mlint.certificate_target t ON t.certificate_id = c.id JOIN mlint.certificate_region r ON r.target_id = t.id WHERE c.id = '$db'");
sql("SELECT mlint.certificate_renew('$db')");
is(sql("SELECT mlint.certificate_wait('$db', '$MlintTest::deadline s')"), 'ACTIVE', 'it is renewed');
$serial = uc field($db, 'serial');
$serial =~ s/^0+//;
wait_for('and PostgreSQL serves the new one', sub {
	my $got = `openssl s_client -starttls postgres -connect 127.0.0.1:@{[$node->port]} </dev/null 2>/dev/null | openssl x509 -noout -serial`;
	return $got =~ /serial=0*\Q$serial\E$/i;
});

# ---- and in the end ----

is(sql("SELECT count(*) FROM mlint.acme_order WHERE state = 'failed'"), 0, 'no order has failed');
wait_for_sql($node, 'nothing is left that was shown',
	"SELECT count(*) = 0 FROM mlint.acme_challenge WHERE presence NOT IN ('none', 'removed')");
sql("SELECT mlint.acme_account_deactivate('bound')");
is(sql("SELECT mlint.acme_account_wait('bound')"), 'deactivated', 'an account is closed');

$node->stop;
done_testing();
