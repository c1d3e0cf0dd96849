# Certificates in a stand-in for Azure Key Vault, which follows its documented
# API and reads what is imported with openssl: two vaults, both formats, one
# vault down, lost answers, and what the vault repeats of a request.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use JSON::PP ();
use MIME::Base64 ();
use MlintTest;
use SecretTest;
use TargetTest;
use PostgreSQL::Test::Utils;
use Test::More;

authority();
my $azure = MlintTest::Receiver->start('keyvault.py');
my $node = mlint_node('keyvault', conf => 'log_statement = none');
sub sql { return $node->safe_psql('postgres', $_[0]); }
sql("SELECT mlint.secret_put('azure/client', 'azure-client-secret'), mlint.secret_put('azure/wrong', 'azure-wrong-secret')");
sub imports { my ($vault) = @_; return grep { $_->{path} =~ m{^/vaults/$vault/certificates/www/import} } $azure->requests; }

my %options = (vaults => [ $azure->url('/vaults/one/'), $azure->url('/vaults/two') ], name => 'www', authority => $azure->url(''),
	tenant_id => 'tenant', client_id => 'client', client_secret => { secret => 'azure/client' }, tags => { team => 'web' },
	retry_delay_ms => 100, retry_max_delay_ms => 500);
my ($id, $first, $chain, $key) = install($node, 'www');
target($node, $id, 'azure', {%options});
agrees($node, 'two vaults');
is(scalar(imports($_)), 1, "vault $_ got it once") for qw(one two);
my ($import) = imports('one');
my $body = JSON::PP::decode_json($import->{body});
is($import->{path}, '/vaults/one/certificates/www/import?api-version=7.4', 'by the API of 7.4');
is_deeply([ $body->{policy}, $body->{tags} ],
	[ { key_props => { exportable => JSON::PP::true }, secret_props => { contentType => 'application/x-pkcs12' } }, { team => 'web' } ], 'with policy and tags');
my $pem = openssl(MIME::Base64::decode_base64($body->{value}), 'pkcs12', '-nodes', '-passin', 'pass:');
is(serial_of($pem), $first, 'PKCS #12 has the certificate');
is(() = $pem =~ /BEGIN CERTIFICATE/g, 2, '... with its chain');
is(openssl($pem, 'pkey', '-pubout'), openssl($key, 'pkey', '-pubout'), '... and its key');
like(target_state($node, 'reference', "region LIKE '%two'"), qr{/vaults/two/certificates/www/[0-9a-f]{32}$}, 'the version\'s id is known');

# PEM.
sql("SELECT mlint.certificate_target_alter('$id', 'azure', '{\"format\": \"pem\", \"exportable\": false}')");
wait_for('another format is pushed at once', sub { imports('two') == 2 });
agrees($node, '... and is there');
$body = JSON::PP::decode_json((imports('one'))[-1]{body});
is_deeply($body->{policy}, { key_props => { exportable => JSON::PP::false }, secret_props => { contentType => 'application/x-pem-file' } }, '... with its policy');
is(serial_of($body->{value}), $first, '... and the certificate');
is(() = $body->{value} =~ /BEGIN CERTIFICATE/g, 2, '... its chain');
is(openssl($body->{value}, 'pkey', '-pubout'), openssl($key, 'pkey', '-pubout'), '... and its key');

# One vault down.
$azure->control('down/two');
my (undef, $second) = install($node, 'www');
agrees($node, 'the other vault has the new one', "region LIKE '%one/' AND serves = '$second'");
wait_for_sql($node, 'the one that is down fails, again and again', "SELECT state = 'failing' AND attempts > 2 FROM mlint.certificate_targets WHERE region LIKE '%two'");
like(target_state($node, 'error', "region LIKE '%two'"), qr/Key Vault at "http.*two" answered with status 503 \(It says: Busy\)/, '... which is said');
$azure->control('refuse/two');
wait_for_sql($node, 'one that refuses it', "SELECT error LIKE '%status 400%' FROM mlint.certificate_targets WHERE region LIKE '%two'");
my $error = target_state($node, 'error', "region LIKE '%two'");
like($error, qr/It says: Bad: \*{200}/, '... may repeat what it was sent');
unlike($error =~ s/.*says: Bad//r, qr/PRIVATE|[A-Za-z0-9+\/]{8}/, '... which is not shown');
$azure->control('up/two');
agrees($node, 'when it is up it gets it, too');

# A lost answer.
my $before = imports('two');
$azure->control('lose/two');
my (undef, $third) = install($node, 'www');
wait_for('an answer is lost', sub { imports('two') > $before });
$azure->control('up/two');
agrees($node, 'what has arrived is seen');
is(scalar(imports('two')), $before + 1, '... and is not imported again');

# What is refused, and what is not permitted.
sub refused { my ($more) = @_; return answer($node, "SELECT mlint.certificate_target_create('$id', 'azure', " . literal(JSON::PP->new->encode({ %options, %$more })) . ", name => 'x')"); }
like(refused({ name => 'a_b' }), qr/ML007.*letters, digits and hyphens/, 'no name of a vault');
like(refused({ vaults => ['ftp://x'] }), qr/ML007.*vaults/, 'no URL');
like(refused({ vaults => undef }), qr/ML007.*vaults/, 'no vaults');
like(refused({ tenant_id => undef }), qr/ML007.*tenant_id/, 'no tenant');
like(refused({ client_secret => 'plain-secret' }), qr/ML007.*reference/, 'a plain secret');
sql('CREATE ROLE clerk IN ROLE mlint_admin');
my $identity = literal(JSON::PP->new->encode({ vaults => $azure->url('/vaults/three'), name => 'www', identity_endpoint => $azure->url('/metadata/identity/oauth2/token') }));
like(answer($node, "SET ROLE clerk; SELECT mlint.certificate_target_create('$id', 'azure', $identity, name => 'mine')"),
	qr/42501.*machine's identity/, 'the machine\'s identity is not everybody\'s');
is(answer($node, "SELECT mlint.certificate_target_create('$id', 'azure', $identity, name => 'mine')"), 'mine', '... but a superuser\'s');
agrees($node, '... and works', "name = 'mine'");
sql("SELECT mlint.certificate_target_alter('$id', 'azure', '{\"client_secret\": {\"secret\": \"azure/wrong\"}}')");
wait_for_sql($node, 'a wrong secret', "SELECT bool_and(state = 'failing') FROM mlint.certificate_targets WHERE name = 'azure'");
like(target_state($node, 'error', "name = 'azure' AND region LIKE '%two'"), qr/login of Azure failed \(status 401\)$/, '... which is said, and no more');

unlike(slurp_file($node->logfile), qr/PRIVATE KEY|azure-client-secret|plain-secret/, 'no key is in the log');
$azure->stop;
$node->stop;
done_testing();
