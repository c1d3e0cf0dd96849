# Secrets in moto's AWS Secrets Manager, which checks our signatures and the
# policy: keys of the options, with a session token, of the environment, of a
# container, of the instance; versions, staging labels, binary values, pages.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use SecretTest;
use PostgreSQL::Test::Utils;
use Test::More;

# One that checks signatures, and one that does not, with instance metadata.
my $venv = PostgreSQL::Test::Utils::tempdir() . '/venv';
$ENV{MOTO_VENV} = $venv;
my ($dir, $port) = peer_start('moto', 'keys');
my ($open_dir, $open_port) = peer_start('moto');
my ($id, $secret, $lent_id, $lent_secret, $session) = split /\n/, slurp_file("$dir/keys");
my $container = MlintTest::Receiver->start('keyvault.py');

my $node = mlint_node('aws', conf => 'log_statement = none');
$node->safe_psql('postgres', "SELECT mlint.secret_put('aws/$_->[0]', '$_->[1]')")
  for [ secret => $secret ], [ lent => $lent_secret ], [ session => $session ], [ wrong => 'wrong-secret-key' ];
my %aws = (endpoint => "http://127.0.0.1:$port", region => 'eu-central-1', recovery_window_days => 7);

backend($node, 'aws', 'aws', { %aws, access_key_id => $id, secret_access_key => { secret => 'aws/secret' } });
backend($node, 'lent', 'aws', { %aws, access_key_id => $lent_id,
	secret_access_key => { secret => 'aws/lent' }, session_token => { secret => 'aws/session' } });
backend($node, 'wrong', 'aws', { %aws, access_key_id => $id, secret_access_key => { secret => 'aws/wrong' } });
like(answer($node, "SELECT mlint.secret_backend_test('$_')"), qr/region "eu-central-1"/, "$_: the signature is right")
  for 'aws', 'lent';
like(answer($node, "SELECT mlint.secret_backend_test('wrong')"), qr/ML002.*could not use secret backend "wrong".*403/s,
	'a wrong key is refused');
unlike(answer($node, "SELECT mlint.secret_backend_test('wrong')"), qr/wrong-secret-key/, 'and not shown');

# Put, and what moto has then.
sub boto
{
	my ($code) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ "$venv/bin/python", '-c', <<"EOP" ], '>', \$out, '2>', \$err) or die $err;
import boto3
c = boto3.client("secretsmanager", endpoint_url="http://127.0.0.1:$port", region_name="eu-central-1",
                 aws_access_key_id="$id", aws_secret_access_key="$secret")
$code
EOP
	chomp $out;
	return $out;
}
answer($node, "SELECT mlint.secret_put('app/db', 'first', 'database_password', 'of the app', '{\"team\": \"data\"}', 'aws')");
is(boto('print(c.get_secret_value(SecretId="app/db")["SecretString"])'), 'first', 'a new secret');
answer($node, "SELECT mlint.secret_put('app/db', E'zweiter \\u00fc \\U0001F511 \"x\"', 'api_key', 'changed', backend => 'aws')");
is(boto('print(ascii(c.get_secret_value(SecretId="app/db")["SecretString"]))'),
	q{'zweiter \xfc \U0001f511 "x"'}, 'a new version');
is(boto('d = c.describe_secret(SecretId="app/db"); print(d["Description"], sorted((t["Key"], t["Value"]) for t in d["Tags"]))'),
	q{changed [('team', 'data'), ('type', 'api_key')]}, 'description and tags');
is(answer($node, "SELECT mlint.secret_get('app/db', backend => 'lent') = E'zweiter \\u00fc \\U0001F511 \"x\"'"),
	't', 'get, with a session token');
is(answer($node, "SELECT mlint.secret_get('app/db', 'AWSPREVIOUS', 'aws')"), 'first', 'a staging label');
my ($current, $old) = split /\n/, answer($node, "SELECT version FROM mlint.secret_versions('app/db', 'aws')");
is(answer($node, "SELECT string_agg(state, ' ') FROM mlint.secret_versions('app/db', 'aws')"), 'current old', 'versions');
is(answer($node, "SELECT mlint.secret_get('app/db', '$old', 'aws')"), 'first', 'a version by its id');
like(answer($node, "SELECT mlint.secret_get('app/db', '$_', 'aws')"), qr/42704.*no version/, "version $_")
  for 'NOLABEL', '00000000-0000-4000-8000-000000000000';
like(answer($node, "SELECT mlint.secret_get('none', backend => 'aws')"), qr/42704/, 'no such secret');

# Bytes that are no text.
answer($node, "SELECT mlint.secret_put_bytes('bytes', '\\x00ff10', backend => 'aws')");
is(boto('print(c.get_secret_value(SecretId="bytes")["SecretBinary"].hex())'), '00ff10', 'put bytes');
is(answer($node, "SELECT mlint.secret_get_bytes('bytes', backend => 'lent')"), '\x00ff10', 'get bytes');

# More names than a page has.
boto('for i in range(130): c.create_secret(Name="many/%03d" % i, SecretString="x")');
is(answer($node, "SELECT count(*), min(name), max(name) FROM mlint.secret_list('aws', 'many/')"),
	'130|many/000|many/129', 'list, by pages');
is(answer($node, "SELECT string_agg(name, ' ') FROM mlint.secret_list('aws') WHERE name NOT LIKE 'many/%'"),
	'app/db bytes', 'list all');

# Deleted there, it can be restored for seven days; here it is gone.
is(answer($node, "SELECT mlint.secret_drop('app/db', 'aws')"), '', 'drop');
like(boto('print(c.describe_secret(SecretId="app/db")["DeletedDate"])'), qr/^20/, 'it is marked there');
like(answer($node, "SELECT mlint.secret_$_"), qr/42704/, "secret_$_")
  for "get('app/db', backend => 'aws')", "drop('app/db', 'aws')", "drop('none', 'aws')";
boto('c.restore_secret(SecretId="app/db")');
like(answer($node, "SELECT mlint.secret_get('app/db', backend => 'aws')"), qr/zweiter/, 'restored, it is back');
$node->safe_psql('postgres', q{SELECT mlint.secret_backend_alter('aws', '{"recovery_window_days": 0}')});
answer($node, "SELECT mlint.secret_drop('app/db', 'aws')");
is(boto('print([s["Name"] for s in c.list_secrets(IncludePlannedDeletion=True)["SecretList"] if s["Name"] == "app/db"])'),
	'[]', 'without a recovery window it is gone for good');

# The instance's role. moto's keys of it are good for the other server.
my %instance = (endpoint => "http://127.0.0.1:$open_port", region => 'eu-central-1',
	metadata_endpoint => "http://127.0.0.1:$open_port");
backend($node, 'instance', 'aws', {%instance});
like(answer($node, "SELECT mlint.secret_backend_test('instance')"), qr/eu-central-1/, 'keys of the instance') for 1 .. 2;
my @asked = slurp_file("$open_dir/moto.log") =~ m{PUT /latest/api/token}g;
is(scalar @asked, 1, 'are fetched once');
backend($node, 'refused', 'aws', { %instance, endpoint => $aws{endpoint} });
like(answer($node, "SELECT mlint.secret_backend_test('refused')"), qr/ML002/, 'keys that are not good here');
@asked = slurp_file("$open_dir/moto.log") =~ m{PUT /latest/api/token}g;
is(scalar @asked, 3, 'are fetched once more, and no more');

# Who may not read the server's files may not be the server elsewhere.
$node->safe_psql('postgres', 'CREATE ROLE clerk IN ROLE mlint_admin');
like(answer($node, "SET ROLE clerk; SELECT mlint.secret_backend_create('mine', 'aws', '{\"region\": \"eu-central-1\"}')"),
	qr/42501.*pg_read_server_files/s, 'the identity of the machine is not for everyone');

# Options.
for my $options ('{}', '{"region": "x y"}', '{"region": "eu", "access_key_id": "x"}',
	'{"region": "eu", "session_token": {"secret": "aws/session"}}', '{"region": "eu", "recovery_window_days": 3}')
{
	like(answer($node, "SELECT mlint.secret_backend_create('bad', 'aws', '$options')"), qr/ML007/, "refused: $options");
}
$node->stop;

# The server's environment: a container's endpoint, then plain keys.
{
	local $ENV{AWS_REGION} = 'eu-central-1';
	local $ENV{AWS_CONTAINER_CREDENTIALS_FULL_URI} = $container->url('/container');
	local $ENV{AWS_CONTAINER_AUTHORIZATION_TOKEN} = 'container-token';
	$node->start;
	backend($node, 'container', 'aws', { endpoint => "http://127.0.0.1:$open_port" });
	like(answer($node, "SELECT mlint.secret_backend_test('container')"), qr/eu-central-1/, 'keys of a container') for 1 .. 2;
	is($container->count('/container'), 1, 'are fetched once');
	$node->stop;
}
{
	local $ENV{AWS_DEFAULT_REGION} = 'eu-central-1';
	local $ENV{AWS_ACCESS_KEY_ID} = $lent_id;
	local $ENV{AWS_SECRET_ACCESS_KEY} = $lent_secret;
	local $ENV{AWS_SESSION_TOKEN} = $session;
	$node->start;
	backend($node, 'environment', 'aws', { endpoint => $aws{endpoint} });
	is(answer($node, "SELECT mlint.secret_get('many/007', backend => 'environment')"), 'x', 'keys of the environment');
}

my $log = slurp_file($node->logfile);
unlike($log, qr/\Q$secret\E|\Q$lent_secret\E|\Q$session\E|wrong-secret-key|zweiter/, 'nothing secret is in the log');
$node->stop;
done_testing();
