# Secrets in a stand-in for Azure Key Vault, which follows its documented API
# and no more than that: login by a client's secret and as a managed identity,
# versions, tags, pages, and what is refused.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use JSON::PP ();
use MlintTest;
use SecretTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $azure = MlintTest::Receiver->start('keyvault.py');
my $node = mlint_node('azure', conf => 'log_statement = none');
$node->safe_psql('postgres', "SELECT mlint.secret_put('azure/client', 'azure-client-secret'),
	mlint.secret_put('azure/wrong', 'azure-wrong-secret')");
my %client = (vault_url => $azure->url('/vault/'), authority => $azure->url(''),
	tenant_id => 'tenant', client_id => 'client', client_secret => { secret => 'azure/client' });

sub logins { return scalar grep { $_->{path} =~ m{/token} } $azure->requests; }

# A client.
backend($node, 'az', 'azure', {%client});
is(answer($node, "SELECT mlint.secret_backend_test('az')"), 'Key Vault, as a client', 'it answers');
answer($node, "SELECT mlint.secret_put('app-db', 'first', 'database_password', 'of the app', '{\"team\": \"data\", \"n\": 1}', 'az')");
answer($node, "SELECT mlint.secret_put('app-db', E'zweiter \\u00fc \\U0001F511 \"x\"', backend => 'az')");
is(answer($node, "SELECT mlint.secret_get('app-db', backend => 'az') = E'zweiter \\u00fc \\U0001F511 \"x\"'"), 't', 'put, get');
is(logins(), 1, 'all that with one login');
my ($put) = grep { $_->{method} eq 'PUT' } $azure->requests;
is($put->{path}, '/vault/secrets/app-db?api-version=7.4', 'by the API of 7.4');
is_deeply(JSON::PP::decode_json($put->{body}), { value => 'first', contentType => 'database_password',
	tags => { type => 'database_password', description => 'of the app', team => 'data', n => '1' } },
	'with content type and tags');

my ($current, $old) = split /\n/, answer($node, "SELECT version FROM mlint.secret_versions('app-db', 'az')");
is(answer($node, "SELECT string_agg(state, ' ') FROM mlint.secret_versions('app-db', 'az')"), 'current old', 'versions');
is(answer($node, "SELECT mlint.secret_get('app-db', '$old', 'az')"), 'first', 'an older version');
is(answer($node, "SELECT mlint.secret_get('app-db', '$current', 'az') = mlint.secret_get('az:app-db')"), 't', 'the current one by its id');
like(answer($node, "SELECT mlint.secret_get('app-db', '$_', 'az')"), qr/42704.*no version/, "version $_")
  for 'not-one', '0123456789abcdef', '../../keys/x';
answer($node, "SELECT mlint.secret_put('app-db', 'n$_', backend => 'az')") for 3 .. 8;
is(answer($node, "SELECT count(DISTINCT version), count(*) FILTER (WHERE state = 'current') FROM mlint.secret_versions('app-db', 'az')"),
	'8|1', 'versions, by pages');

answer($node, "SELECT mlint.secret_put('many-$_', 'x', backend => 'az')") for 1 .. 7;
is(answer($node, "SELECT count(*) FROM mlint.secret_list('az', 'many-')"), 7, 'list, by pages');
is(answer($node, "SELECT count(*) FROM mlint.secret_list('az')"), 8, 'list all');
for my $name ('app/db', 'app_db', 'app.db')
{
	like(answer($node, "SELECT mlint.secret_$_"), qr/42602.*letters, digits and hyphens/, "$name is no name: $_")
	  for "get('$name', backend => 'az')", "put('$name', 'x', backend => 'az')", "drop('$name', 'az')";
}
like(answer($node, "SELECT mlint.secret_get('none', backend => 'az')"), qr/42704/, 'no such secret');
is(answer($node, "SELECT mlint.secret_drop('app-db', 'az')"), '', 'drop');
like(answer($node, "SELECT mlint.secret_drop('app-db', 'az')"), qr/42704/, 'twice');
like(answer($node, "SELECT mlint.secret_put('app-db', 'x', backend => 'az')"),
	qr/ML003.*status 409.*deleted but recoverable/s, 'a deleted name is not free at once');
like(answer($node, "SELECT mlint.secret_put_bytes('bytes', '\\xff', backend => 'az')"), qr/ML008/, 'bytes that are no text');

# A token that is not accepted any more is replaced, once.
my $before = logins();
$azure->control('revoke');
is(answer($node, "SELECT mlint.secret_get('many-1', backend => 'az')"), 'x', 'a revoked token is replaced');
is(logins(), $before + 1, 'by one login');

# A wrong secret, which is not in the message though the peer says it.
backend($node, 'wrong', 'azure', { %client, client_secret => { secret => 'azure/wrong' } });
my $refused = answer($node, "SELECT mlint.secret_get('many-1', backend => 'wrong')");
like($refused, qr/ML002.*login failed \(status 401\).*AADSTS7000215: Invalid client secret provided: \*\*\*/s, 'a wrong secret');
unlike($refused, qr/azure-wrong-secret/, 'is struck out of what the peer says');

# A managed identity: for those who might be the server anyway.
my %identity = (vault_url => $azure->url('/vault'),
	identity_endpoint => $azure->url('/metadata/identity/oauth2/token'));
backend($node, 'mi', 'azure', {%identity});
is(answer($node, "SELECT mlint.secret_get('many-2', backend => 'mi')"), 'x', 'as a managed identity');
$node->safe_psql('postgres', 'CREATE ROLE clerk IN ROLE mlint_admin');
like(answer($node, "SET ROLE clerk; SELECT mlint.secret_backend_create('mine', 'azure', "
	  . literal(JSON::PP->new->encode(\%identity)) . ")"), qr/42501.*pg_read_server_files/s, 'which is not for everyone');
for my $options ('{}', '{"vault_url": "https://x.vault.azure.net", "client_secret": {"secret": "azure/client"}}',
	'{"vault_url": "https://x.vault.azure.net", "client_secret": {"secret": "azure/client"}, "client_id": "c", "tenant_id": "a/b"}')
{
	like(answer($node, "SELECT mlint.secret_backend_create('bad', 'azure', '$options')"), qr/ML007/, "refused: $options");
}

my $log = slurp_file($node->logfile);
unlike($log, qr/azure-client-secret|azure-wrong-secret|azure-token|zweiter/, 'nothing secret is in the log');
$node->stop;
done_testing();
