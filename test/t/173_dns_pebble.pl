# Certificates by dns-01 from Pebble, whose DNS server is Knot: names, wildcards,
# aliases, a hundred names, a secondary that is behind, crashes; and by http-01
# through a webroot that nginx serves. Nothing is left in the zones.
use strict;
use warnings;

use Cwd qw(realpath);
use FindBin;
use lib $FindBin::RealBin;
use AcmeTest;
use DnsTest;
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SecretTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $top = realpath(PostgreSQL::Test::Utils::tempdir());
mkdir "$top/certs" or die $!;
chmod 0755, "$top/certs" or die $!;
my $port = knot_start();
my $node = mlint_node('pebble', conf => "restart_after_crash = on\nmlint.certificate_directory = '$top/certs'\n");
my $pebble = AcmeTest->start(env => { DNS_SERVER => "127.0.0.1:$port" });
sub sql { return answer($node, @_); }
my $key = knot_key('mlint');
sql("SELECT mlint.secret_put('mlint', '$key')");
sql(<<"EOQ");
SELECT mlint.dns_provider_create('knot', 'rfc2136', '{"server": "127.0.0.1:$port", "key_name": "mlint", "key": {"secret": "mlint"},
	"resolver": "127.0.0.1:$port", "port": $port, "propagation_timeout_s": 120}')
EOQ
acme_account($node, 'main', $pebble);

sub issue
{
	my ($name, $domains, $challenge, $solver) = @_;
	return sql("SELECT mlint.certificate_issue('{$domains}', 'main', '$challenge', '$solver', name => '$name')");
}
sub wait_certificate { return sql("SELECT mlint.certificate_wait('$_[0]', '120 s')"); }

# openssl takes it, and it is for these names.
sub verify
{
	my ($id, $names) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/chain.pem';
	append_to_file($file, $node->safe_psql('postgres', "SELECT chain FROM mlint.certificate_get('$id')"));
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'openssl', 'verify', '-CAfile', $pebble->root, '-untrusted', $file, $file ], '>', \$out, '2>', \$err);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like($out, qr/: OK$/, '... which openssl takes');
	my $text = `openssl x509 -in $file -noout -ext subjectAltName`;
	return is(join(' ', sort map { s/DNS://r } grep { /DNS:/ } split /[\s,]+/, $text), $names, '... for these names');
}

# Nothing of ours in any zone.
sub zones_clean
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	nothing_left($node, "$what: nothing is left");
	my $all = '';
	for my $zone (qw(example.test quick.test delegated.test))
	{
		my ($out, $err) = ('', '');
		IPC::Run::run([ 'kdig', '+tcp', '@127.0.0.1', '-p', $port, $zone, 'AXFR' ], '>', \$out, '2>', \$err);
		like($out, qr/SOA/, "$what: zone $zone can be read");
		$all .= join '', grep { /\sTXT\s/ } split /^/, $out;
	}
	return is($all, '', "$what: ... in no zone");
}

my $id = issue('one', 'one.quick.test', 'dns-01', 'knot');
is(wait_certificate($id), 'ACTIVE', 'a certificate by dns-01');
verify($id, 'one.quick.test');
zones_clean('a name');

$id = issue('wildcard', '*.quick.test,quick.test,*.deep.quick.test', 'dns-01', 'knot');
is(wait_certificate($id), 'ACTIVE', 'wildcards, and the domain of one: two records of a name');
verify($id, '*.deep.quick.test *.quick.test quick.test');
zones_clean('wildcards');
like(sql(q(SELECT mlint.certificate_issue('{*.quick.test}', 'main'))), qr/ML007/, 'no wildcard by http-01');

my @names = map { "n$_.quick.test" } 1 .. 100;
my $begun = time;
$id = issue('hundred', join(',', @names), 'dns-01', 'knot');
is(wait_certificate($id), 'ACTIVE', 'a hundred names');
note sprintf 'a hundred names by dns-01: %.1f s', time - $begun;
verify($id, join ' ', sort @names);
zones_clean('a hundred names');

# The primary of example.test is not all: the secondary has to have it, too.
$id = issue('late', 'late.example.test', 'dns-01', 'knot');
wait_for_sql($node, 'a secondary that is behind: the authority is not told yet',
	"SELECT presence, status FROM mlint.certificate_challenges WHERE identifier = 'late.example.test'", 'checking|waiting');
knot('refresh');
is(wait_certificate($id), 'ACTIVE', '... until it has caught up');
verify($id, 'late.example.test');
zones_clean('a secondary');

# Knot resolves aliases within a zone only; 170_dns has one that leads out of it.
$id = issue('alias', 'alias.quick.test,*.alias.quick.test', 'dns-01', 'knot');
is(wait_certificate($id), 'ACTIVE', 'an alias of _acme-challenge');
verify($id, '*.alias.quick.test alias.quick.test');
zones_clean('an alias');

$id = issue('loop', 'loop.example.test,fine.quick.test', 'dns-01', 'knot');
like(wait_certificate($id), qr/leads through more than 8 others/, 'one name that cannot be proved fails the certificate, with the reason');
zones_clean('a failure');

for my $place (qw(challenge-presenting challenge-shown challenge-present challenge-hidden))
{
	inject($node, $place, 'kill');
	$id = issue("c-$place", "$place.quick.test", 'dns-01', 'knot');
	wait_for("$place: a crash", sub { struck($node, $place) });
	my $state;
	wait_for("$place: the server is back", sub { $state = eval { wait_certificate($id) } // ''; $state =~ /^[A-Z]+$/ });
	is($state, 'ACTIVE', "$place: the certificate is issued");
	zones_clean($place);
}

# ---- a webroot ----
my $nginx = "$top/nginx";
mkdir $nginx or die $!;
mkdir "$top/certs/web" or die $!;
my $http = $pebble->http_port;
my $as = $> == 0 ? 'user ' . getpwuid($>) . ';' : '';
append_to_file("$nginx/conf", <<"EOC");
$as worker_processes 1; pid $nginx/pid; error_log $nginx/error.log; daemon on;
events { worker_connections 64; }
http { access_log off; client_body_temp_path $nginx/b; proxy_temp_path $nginx/p; fastcgi_temp_path $nginx/f;
	uwsgi_temp_path $nginx/u; scgi_temp_path $nginx/s;
	server { listen 127.0.0.1:$http; root $top/certs/web; } }
EOC
my $program = -x '/usr/sbin/nginx' ? '/usr/sbin/nginx' : 'nginx';
system($program, '-p', $nginx, '-e', "$nginx/error.log", '-c', "$nginx/conf") == 0 or BAIL_OUT('no nginx');
END
{
	my $status = $?;
	if ($nginx && -s "$nginx/pid") { my ($pid) = slurp_file("$nginx/pid") =~ /(\d+)/; kill 'TERM', $pid; }
	$? = $status;
}
$id = issue('webroot', 'a.web.test,b.quick.test', 'http-01', 'file:web');
like(wait_certificate($id), qr/a\.web\.test/, 'a name that does not lead to our web server');
$id = issue('webroot2', 'a.quick.test,b.quick.test', 'http-01', 'file:web');
is(wait_certificate($id), 'ACTIVE', 'http-01 through a webroot that nginx serves');
verify($id, 'a.quick.test b.quick.test');
nothing_left($node, '... and its files are removed');
is(join(' ', grep { !/^\.\.?$/ } slurp_dir("$top/certs/web/.well-known/acme-challenge")), '', '... indeed');

$node->stop;
done_testing();
