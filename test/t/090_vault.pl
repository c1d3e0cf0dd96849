# Secrets in a real OpenBao: KV versions 1 and 2, namespaces, tokens that are
# given, renewed, revoked and had by AppRole and Kubernetes, and what is
# forbidden. Of Kubernetes only the TokenReview is a stand-in.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use JSON::PP ();
use MlintTest;
use SecretTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($dir, $port) = peer_start('openbao');
my $bao = "http://127.0.0.1:$port";
my $kubernetes = MlintTest::Receiver->start('keyvault.py');
# Statements with values in them are the client's to keep out of the log.
my $node = mlint_node('vault', conf => 'log_statement = none');

# Ask OpenBao itself; its answer decoded.
sub bao
{
	my ($method, $path, $body, %more) = @_;
	my $token = $more{token} // 'root';
	my $namespace = $more{namespace} // '';
	my ($out, $err) = ('', '');
	my $program = <<'EOP';
import sys, urllib.request, urllib.error
method, url, token, namespace, body = sys.argv[1:6]
r = urllib.request.Request(url, method=method, data=body.encode() if body else None,
                           headers={"X-Vault-Token": token, "X-Vault-Namespace": namespace})
try:
    print(urllib.request.urlopen(r, timeout=30).read().decode() or "{}")
except urllib.error.HTTPError as e:
    print('{"failed": %d}' % e.code)
EOP

	IPC::Run::run([ 'python3', '-c', $program, $method, "$bao/v1/$path", $token,
			$namespace, defined $body ? JSON::PP->new->ascii->canonical->encode($body) : '' ],
		'>', \$out, '2>', \$err) or die $err;
	return JSON::PP::decode_json($out);
}

$node->safe_psql('postgres', "SELECT mlint.secret_put('vault/root', 'root')");
my %root = (url => $bao, token => { secret => 'vault/root' });

# KV version 2: what is put comes back, by version, there and here.
backend($node, 'kv', 'vault', {%root});
like(answer($node, "SELECT mlint.secret_backend_test('kv')"),
	qr/KV version 2 at "secret"; the token does not end/, 'it answers');
is(answer($node, "SELECT mlint.secret_put('app/db', 'first value', 'database_password',
	'of the app', '{\"team\": \"data\", \"level\": 3}', 'kv')"), 1, 'put');
is(answer($node, "SELECT mlint.secret_put('app/db', E'zweiter \\u00fc \\U0001F511 \"x\"', backend => 'kv')"),
	2, 'put again');
is(answer($node, "SELECT mlint.secret_get('app/db', backend => 'kv') = E'zweiter \\u00fc \\U0001F511 \"x\"'"),
	't', 'the value comes back, every character');
is(answer($node, "SELECT mlint.secret_get('app/db', 1, 'kv')"), 'first value', 'an older version');
is(answer($node, "SELECT mlint.secret_get('kv:app/db', 1)"), 'first value', 'by its full name');
my $stored = bao(GET => 'secret/data/app/db');
is($stored->{data}{data}{value}, "zweiter \x{fc} \x{1F511} \"x\"", 'OpenBao has it');
is_deeply($stored->{data}{metadata}{custom_metadata},
	{ type => 'database_password', description => 'of the app', team => 'data', level => '3' },
	'and what is told about it');
is(answer($node, "SELECT version, state, created_at > now() - interval '1 hour'
	FROM mlint.secret_versions('app/db', 'kv')"), "2|current|t\n1|old|t", 'versions');
like(answer($node, "SELECT mlint.secret_get('app/db', 3, 'kv')"), qr/42704.*no version 3/, 'no version 3');
like(answer($node, "SELECT mlint.secret_get('app/none', backend => 'kv')"), qr/42704/, 'no such secret');
like(answer($node, "SELECT mlint.secret_put_bytes('app/bytes', '\\xff00', backend => 'kv')"),
	qr/ML008.*could not write secret "app\/bytes" in secret backend "kv".*not.*base64/s,
	'bytes that are no text');
answer($node, "SELECT mlint.secret_put('$_', 'x', backend => 'kv')")
  for 'app/a', 'app/deep/b', 'other';
is(answer($node, "SELECT string_agg(name, ' ') FROM mlint.secret_list('kv')"),
	'app/a app/db app/deep/b other', 'list');
is(answer($node, "SELECT string_agg(name, ' ') FROM mlint.secret_list('kv', 'app/d')"),
	'app/db app/deep/b', 'list by prefix');
is(answer($node, "SELECT count(*) FROM mlint.secret_list('kv', 'none/')"), 0, 'an empty list');
is(answer($node, "SELECT mlint.secret_drop('app/a', 'kv')"), '', 'drop');
is(bao(GET => 'secret/metadata/app/a')->{failed}, 404, 'it is gone there');
like(answer($node, "SELECT mlint.secret_drop('app/a', 'kv')"), qr/42704/, 'and cannot be dropped twice');

# A version that was destroyed there.
bao(POST => 'secret/destroy/app/db', { versions => [1] });
$node->safe_psql('postgres', "SELECT mlint.secret_cache_drop('kv')");
like(answer($node, "SELECT mlint.secret_get('app/db', 1, 'kv')"), qr/42704/, 'a destroyed version');
is(answer($node, "SELECT version FROM mlint.secret_versions('app/db', 'kv')"), 2, 'is listed no more');

# A name never leads to another part of the API.
like(answer($node, "SELECT mlint.secret_get('$_', backend => 'kv')"), qr/42602/, "name $_")
  for '../../sys/mounts', 'a/../../../sys/mounts', './a', 'a//b', '/a', 'a/', '..';
for my $mount ('../sys', 'a//b', 'a?b', '')
{
	like(answer($node, "SELECT mlint.secret_backend_create('bad', 'vault', "
			  . literal(JSON::PP->new->encode({ %root, mount => $mount })) . ")"),
		qr/ML007.*"mount".*must be a path/, "mount \"$mount\"");
}

# Fields: another one, the whole, none.
bao(POST => 'secret/data/fields',
	{ data => { user => 'me', password => "p\x{e4}ss", port => 5432 } });
backend($node, 'password', 'vault', { %root, field => 'password', kv_version => '2' });
backend($node, 'port', 'vault', { %root, field => 'port' });
backend($node, 'whole', 'vault', { %root, field => '' });
is(answer($node, "SELECT mlint.secret_get('fields', backend => 'password') = E'p\\u00e4ss'"), 't', 'one field');
is(answer($node, "SELECT mlint.secret_get('fields', backend => 'port')"), 5432, 'a number');
is(answer($node, "SELECT mlint.secret_get('fields', backend => 'whole')::jsonb->>'user'"), 'me', 'the whole object');
like(answer($node, "SELECT mlint.secret_get('fields', backend => 'kv')"),
	qr/ML007.*no field "value".*HINT:.*"field"/s, 'a field that is not there');
is(answer($node, "SELECT mlint.secret_put('whole', '{\"a\": [1]}', backend => 'whole')"), 1, 'put a whole object');
is_deeply(bao(GET => 'secret/data/whole')->{data}{data}, { a => [1] }, 'it is one there');
like(answer($node, "SELECT mlint.secret_put('whole', 'text', backend => 'whole')"),
	qr/ML008.*not a JSON object/, 'text is none');

# KV version 1, found out by asking.
bao(POST => 'sys/mounts/kv1', { type => 'kv', options => { version => '1' } });
backend($node, 'kv1', 'vault', { %root, mount => 'kv1' });
like(answer($node, "SELECT mlint.secret_backend_test('kv1')"), qr/KV version 1 at "kv1"/, 'version 1');
answer($node, "SELECT mlint.secret_put('a/b', '$_', backend => 'kv1')") for 'one', 'two';
is(bao(GET => 'kv1/a/b')->{data}{value}, 'two', 'put');
is(answer($node, "SELECT mlint.secret_get('a/b', backend => 'kv1')"), 'two', 'get');
is(answer($node, "SELECT version, state FROM mlint.secret_versions('a/b', 'kv1')"), 'current|current', 'it has no versions');
is(answer($node, "SELECT * FROM mlint.secret_list('kv1')"), 'a/b', 'list');
answer($node, "SELECT mlint.secret_drop('a/b', 'kv1')");
is(bao(GET => 'kv1/a/b')->{failed}, 404, 'drop');
backend($node, 'none', 'vault', { %root, mount => 'not-there' });
like(answer($node, "SELECT mlint.secret_get('a', backend => 'none')"),
	qr/ML00[23].*"not-there" cannot be found out/, 'a mount that is not there');
bao(POST => 'sys/mounts/transit', { type => 'transit' });
backend($node, 'transit', 'vault', { %root, mount => 'transit' });
like(answer($node, "SELECT mlint.secret_get('a', backend => 'transit')"),
	qr/ML007.*"transit" is not KV/, 'another engine');

# Namespaces.
bao(POST => 'sys/namespaces/team');
bao(POST => 'sys/mounts/kv', { type => 'kv', options => { version => '2' } }, namespace => 'team');
backend($node, 'team', 'vault', { %root, namespace => 'team', mount => 'kv' });
is(answer($node, "SELECT mlint.secret_put('mine', 'of the team', backend => 'team')"), 1, 'put in a namespace');
is(bao(GET => 'kv/data/mine', undef, namespace => 'team')->{data}{data}{value}, 'of the team', 'it is there');
is(bao(GET => 'kv/data/mine')->{failed}, 404, 'and nowhere else');

# A policy that allows reading below app/ and nothing else.
bao(POST => 'sys/policies/acl/app', { policy => <<'EOP' });
path "secret/data/app/*" { capabilities = ["read"] }
EOP

# AppRole: log in once for all sessions, again when the token was revoked.
bao(POST => 'sys/auth/approle', { type => 'approle' });
bao(POST => 'auth/approle/role/db', { token_policies => 'app', token_ttl => '1h' });
my $role_id = bao(GET => 'auth/approle/role/db/role-id')->{data}{role_id};
my $secret_id = bao(POST => 'auth/approle/role/db/secret-id')->{data}{secret_id};
$node->safe_psql('postgres', "SELECT mlint.secret_put('vault/approle', '$secret_id')");
my %approle = (url => $bao, auth => 'approle', role_id => $role_id,
	secret_id => { secret => 'vault/approle' }, kv_version => '2', cache_ttl_s => 0);
backend($node, 'approle', 'vault', {%approle});

# The accessors of the tokens that AppRole has given out.
sub logins
{
	my $keys = bao(LIST => 'auth/token/accessors')->{data}{keys};
	return grep {
		(bao(POST => 'auth/token/lookup-accessor', { accessor => $_ })->{data}{path} // '') eq 'auth/approle/login'
	} @$keys;
}
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'approle')"), qr/zweiter/, 'get by AppRole');
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'approle')"), qr/zweiter/, 'and again') for 1 .. 3;
is(scalar(my @a = logins()), 1, 'four sessions logged in once');
bao(POST => 'auth/token/revoke-accessor', { accessor => $a[0] });
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'approle')"), qr/zweiter/, 'a revoked token is replaced');
like(answer($node, "SELECT mlint.secret_get('other', backend => 'approle')"),
	qr/ML002.*could not read secret "other" in secret backend "approle".*403.*permission denied/s, 'what the policy forbids');
like(answer($node, "SELECT mlint.secret_put('app/db', 'x', backend => 'approle')"), qr/ML002/, 'writing too');
is(shown($node, 'approle', 'breaker'), 'closed', 'being refused opens no breaker');
$node->safe_psql('postgres', "SELECT mlint.secret_put('vault/approle', 'no-such-secret-id')");
like(answer($node, "SELECT mlint.secret_backend_create('approle2', 'vault', "
	  . literal(JSON::PP->new->encode({ %approle, mount => 'secret' })) . "); SELECT mlint.secret_get('app/db', backend => 'approle2')"),
	qr/ML002.*login by "approle" failed \(status 400\)/, 'a wrong secret id');
unlike(answer($node, "SELECT mlint.secret_get('app/db', backend => 'approle2')"), qr/no-such-secret-id/, 'which is not shown');

# A lease is renewed, not replaced: also when only the job looks after it.
my $short = bao(POST => 'auth/token/create',
	{ policies => [ 'default', 'app' ], ttl => '15s', renewable => JSON::PP::true, explicit_max_ttl => '1h' })->{auth};
$node->safe_psql('postgres', "SELECT mlint.secret_put('vault/short', '$short->{client_token}')");
backend($node, 'short', 'vault', { url => $bao, token => { secret => 'vault/short' }, kv_version => '2' });
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'short')"), qr/zweiter/, 'a token of fifteen seconds');
my $begin = time;
wait_for('a token is kept alive far beyond its first lease', sub {
	$node->safe_psql('postgres', 'SELECT mlint.secret_refresh()');
	my $left = bao(POST => 'auth/token/lookup-accessor', { accessor => $short->{accessor} });
	die 'the token has expired' if $left->{failed};
	return time - $begin > 25;
});

# Kubernetes.
bao(POST => 'sys/auth/kubernetes', { type => 'kubernetes' });
# It wants a certificate authority, though it asks by http here.
my $ca = PostgreSQL::Test::Utils::tempdir();
system('openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1',
	'-nodes', '-days', '2', '-subj', '/CN=test', '-keyout', "$ca/key", '-out', "$ca/pem") == 0
  or die 'openssl';
bao(POST => 'auth/kubernetes/config', { kubernetes_host => $kubernetes->url(''),
	kubernetes_ca_cert => slurp_file("$ca/pem"),
	token_reviewer_jwt => 'reviewer', disable_local_ca_jwt => JSON::PP::true });
bao(POST => 'auth/kubernetes/role/db', { bound_service_account_names => 'postgres',
	bound_service_account_namespaces => 'databases', policies => 'app' });
# OpenBao reads the token's claims before it has it reviewed.
my $jwt = do
{
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'python3', '-c', <<'EOP' ], '>', \$out, '2>', \$err) or die $err;
import base64, json
def part(x): return base64.urlsafe_b64encode(x).rstrip(b"=").decode()
print(part(b'{"alg":"RS256","typ":"JWT"}') + "." + part(json.dumps({
  "iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:databases:postgres",
  "kubernetes.io/serviceaccount/namespace": "databases",
  "kubernetes.io/serviceaccount/service-account.name": "postgres",
  "kubernetes.io/serviceaccount/service-account.uid": "f0e1"}).encode()) + "." + part(b"signature"), end="")
EOP
	$out;
};
my $jwt_file = PostgreSQL::Test::Utils::tempdir() . '/token';
append_to_file($jwt_file, "$jwt\n");
backend($node, 'kube', 'vault', { url => $bao, auth => 'kubernetes', role => 'db',
	jwt => { file => $jwt_file }, kv_version => '2' });
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'kube')"), qr/zweiter/, 'get by Kubernetes');
is(scalar(grep { $_->{path} =~ /tokenreviews/ } $kubernetes->requests), 1, 'the token was reviewed');
backend($node, 'kube2', 'vault', { url => $bao, auth => 'kubernetes', role => 'other',
	jwt => { file => $jwt_file }, kv_version => '2' });
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'kube2')"), qr/ML002.*login by "kubernetes"/, 'a role that is none');

# A wrong token; options that lack something.
$node->safe_psql('postgres', "SELECT mlint.secret_put('vault/wrong', 'not-a-token')");
backend($node, 'wrong', 'vault', { url => $bao, token => { secret => 'vault/wrong' } });
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'wrong')"), qr/ML002/, 'a wrong token');
$node->safe_psql('postgres', "SELECT mlint.secret_put('vault/wrong', 'root')");
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'wrong')"), qr/zweiter/, 'mended, it works at once');
for my $options ({}, { url => $bao }, { url => $bao, auth => 'approle' }, { url => $bao, auth => 'kubernetes' },
	{ url => $bao, token => 'root' }, { url => $bao, token => { secret => 'vault/root' }, kv_version => '3' })
{
	my $json = JSON::PP->new->canonical->encode($options);
	like(answer($node, "SELECT mlint.secret_backend_create('bad', 'vault', " . literal($json) . ")"),
		qr/ML007/, "refused: $json");
}

# Credentials of one backend in another, and in itself.
bao(POST => 'secret/data/token', { data => { value => 'root' } });
backend($node, 'second', 'vault', { url => $bao, token => { secret => 'kv:token' } });
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'second')"), qr/zweiter/, 'a token from another backend');
$node->safe_psql('postgres', q{SELECT mlint.secret_backend_alter('kv', '{"token": {"secret": "second:token"}}')});
like(answer($node, "SELECT mlint.secret_cache_drop(); SELECT mlint.secret_get('app/db', backend => 'second')"),
	qr/ML007.*lead back to itself/, 'a circle');
$node->safe_psql('postgres', q{SELECT mlint.secret_backend_alter('kv', '{"token": {"secret": "vault/root"}}')});
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'second')"), qr/zweiter/, 'is broken by an alter');

# The server is gone.
peer_stop($dir);
like(answer($node, "SELECT mlint.secret_get('new', backend => 'kv')"),
	qr/ML004.*could not read secret "new" in secret backend "kv".*127\.0\.0\.1/, 'OpenBao is down');

my $log = slurp_file($node->logfile);
unlike($log, qr/$secret_id|$short->{client_token}|zweiter|$jwt/, 'nothing secret is in the log');
$node->stop;
done_testing();
