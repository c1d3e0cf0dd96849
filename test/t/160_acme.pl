# The ACME client against Pebble, which rejects nonces and reuses authorizations
# as it likes: accounts, bindings, key rollover, certificates by http-01 through
# the gateway, revocation; a crash at every state, after which no order is asked
# for twice and no key is lost.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use AcmeTest;
use MlintTest;
use SecretTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $http = PostgreSQL::Test::Cluster::get_free_port();
my $node = mlint_node('acme',
	conf => "restart_after_crash = on\nlog_statement = none\nmlint.gateway_listen = '127.0.0.1:$http'");
my $pebble = AcmeTest->start(http_port => $http);
my $directory = $pebble->directory;

sub sql { return answer($node, @_); }
sub account { return sql("SELECT $_[1] FROM mlint.acme_accounts WHERE name = '$_[0]'"); }

sub issue
{
	my ($name, $domains, $more) = @_;
	return sql("SELECT mlint.certificate_issue('{$domains}', 'main', name => '$name'" . ($more // '') . ')');
}
sub wait_certificate { return sql("SELECT mlint.certificate_wait('$_[0]', '$MlintTest::deadline s')"); }

#
# What is refused at the call.
#
my @refused = (
	["'a b', '$directory', NULL", qr/42602.*invalid name/s, 'a name with a space'],
	["'x', 'letsencript', NULL", qr/ML007.*no ACME directory "letsencript".*letsencrypt-staging/s, 'a directory that nobody knows'],
	["'x', 'ftp://localhost/', NULL", qr/ML007/, 'a URL that is not HTTP'],
	["'x', 'https://u:p\@localhost/', NULL", qr/ML007/, 'a URL with a password'],
	["'x', '$directory', 'a,b\@example.com'", qr/ML007.*email/s, 'two addresses'],
	["'x', '$directory', 'example.com'", qr/ML007.*email/s, 'no address'],
	["'x', '$directory', NULL, '{\"kid\": \"k\"}'", qr/ML007.*hmac/s, 'a binding without a key'],
	["'x', '$directory', NULL, '{\"kid\": \"k\", \"hmac\": \"AAAA\"}'", qr/ML007(?!.*AAAA)/s, 'a binding with a plain key'],
	["'x', '$directory', NULL, NULL, '\"PEM\"'", qr/ML007.*reference/s, 'plain certificates'],
	["'x', '$directory', NULL, NULL, '{\"secret\": \"none\"}'", qr/42704/, 'a secret that does not exist'],
	["'x', '$directory', NULL, NULL, NULL, 0", qr/22023/, 'no orders at all'],
	["'x', '$directory', NULL, NULL, NULL, 1, '0'", qr/22023/, 'a period of nothing']);
like(sql("SELECT mlint.acme_account_create($_->[0])"), $_->[1], "refused: $_->[2]") for @refused;
like(sql("SELECT mlint.acme_account_$_('nobody')"), qr/42704/, "$_ wants an account that exists")
  for qw(rollover deactivate wait);
sql("SELECT mlint.acme_account_create('le', 'letsencrypt-staging', NULL)");
is(account('le', 'directory_url'), 'https://acme-staging-v02.api.letsencrypt.org/directory', 'Let\'s Encrypt by name');
sql("UPDATE mlint.acme_account SET status = 'deactivated', next_at = NULL WHERE name = 'le'");

#
# Registration.
#
is(acme_account($node, 'main', $pebble), 'valid', 'an account is registered');
like(account('main', 'url'), qr{^https://localhost:\d+/my-account/}, 'and has its URL');
like(sql("SELECT mlint.acme_account_create('main', '$directory', NULL)"), qr/42710.*already exists.*rollover/s, 'it is not replaced');
is(sql("SELECT type FROM mlint.secrets WHERE name = 'acme/main'"), 'service_account', 'its key is a secret');
sql("SELECT mlint.acme_account_create('untrusting', '$directory', NULL)");
like(sql("SELECT mlint.acme_account_wait('untrusting', '1 ms')"), qr/ML005.*still pending/s, 'a wait has an end');
wait_for_sql($node, 'a server that is not trusted gets no account',
	"SELECT last_error LIKE '%certificate is not trusted%' FROM mlint.acme_accounts WHERE name = 'untrusting'");
sql("SELECT mlint.acme_account_create('untrusting', '$directory', NULL, ca => '{\"secret\": \"main-ca\"}')");
is(sql("SELECT mlint.acme_account_wait('untrusting')"), 'valid', 'created again with what was missing, it is');

#
# A certificate, from the order to openssl verify.
#
my $id = issue('one', 'one.example.com,www.one.example.com');
is(wait_certificate($id), 'ACTIVE', 'a certificate is issued');
sub verify
{
	my ($id, $what) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/chain.pem';
	append_to_file($file, $node->safe_psql('postgres', "SELECT chain FROM mlint.certificate_get('$id')"));
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'openssl', 'verify', '-CAfile', $pebble->root, '-untrusted', $file, $file ], '>', \$out, '2>', \$err);
	like($out, qr/: OK$/, $what);
	return $file;
}
my $file = verify($id, 'and openssl takes it');
like(scalar `openssl x509 -in $file -noout -ext subjectAltName`, qr/DNS:one.example.com, DNS:www.one.example.com/, 'for the names that were asked for');
is(sql("SELECT count(*) FROM mlint.acme_challenge WHERE presence NOT IN ('removed', 'none')"), '0', 'nothing is shown any more');
is($pebble->count('dir'), 1 + 2, 'each account has read the directory once');

my $many = issue('many', join ',', map { "n$_.example.org" } 1 .. 100);
is(wait_certificate($many), 'ACTIVE', 'a certificate with a hundred names');
verify($many, 'which openssl takes');

my $serial = sql("SELECT serial FROM mlint.certificates WHERE id = '$id'");
sql("SELECT mlint.certificate_revoke('$id', 'keyCompromise')");
wait_for_sql($node, 'it is revoked',
	"SELECT revoked_at IS NOT NULL FROM mlint.certificate_history WHERE certificate_id = '$id' AND serial = '$serial'");
like($pebble->management("/cert-status-by-serial/$serial"), qr/"Status": "Revoked"/, 'as Pebble says too');

#
# What cannot be proven fails, with the name and the reason.
#
$pebble->dns_set('add-a', { host => 'away.example.com', addresses => ['127.0.0.99'] });
$id = issue('away', 'away.example.com');
like(wait_certificate($id), qr/away\.example\.com: .*\((?:connection|unauthorized)\)/s, 'a name that leads elsewhere is not proven');
is(sql("SELECT count(*) FROM mlint.acme_challenge WHERE presence NOT IN ('removed', 'none')"), '0', 'and nothing is left shown');

#
# Crashes. Each certificate has one order at Pebble, whatever happens. While
# Pebble looks at the gateway only the job dies, for else it would see nothing.
#
sub orders { return scalar(() = $pebble->log =~ /Added order/g); }
my $n = 0;
for my $point (
	'ordering', 'ordering-answered', 'authorizing', 'reading-answered', 'waiting', 'waiting-answered', 'answered', 'answered-answered',
	'finalizing', 'finalizing-answered', 'processing', 'processing-answered', 'downloading', 'downloading-answered', 'issued')
{
	my $before = orders();

	inject($node, "acme-$point", $point =~ /^(?:waiting-)?answered/ ? 'error' : 'kill');
	$id = issue('crash' . ++$n, "crash$n.example.net");
	ok(wait_for("a crash at $point", sub { struck($node, "acme-$point") }), "$point is reached");
	wait_for_sql($node, "after a crash at $point the certificate is issued",
		"SELECT state = 'ACTIVE' FROM mlint.certificates WHERE id = '$id'");
	is(orders() - $before, 1, "with one order");
	verify($id, 'and is good');
}
is(sql("SELECT count(*) FROM mlint.acme_challenge WHERE presence NOT IN ('removed', 'none')"), '0', 'nothing is left shown');

#
# Key rollover, and a crash when the server has the new key and we don't know.
#
sql("SELECT mlint.acme_account_rollover('main')");
is(sql("SELECT mlint.acme_account_wait('main')"), 'valid', 'the account has another key');
is(account('main', 'key_version'), '2', 'which is in use');
is(wait_certificate(issue('after', 'after.example.com')), 'ACTIVE', 'and signs');
inject($node, 'acme-account-answered', 'kill');
sql("SELECT mlint.acme_account_rollover('main')");
ok(wait_for('a crash when the key was changed', sub { struck($node, 'acme-account-answered') }), 'the answer has come');
wait_for_sql($node, 'the key that the server knows is in use',
	"SELECT key_version = 3 AND last_error IS NULL AND next_at IS NULL FROM mlint.acme_accounts WHERE name = 'main'");
is(sql("SELECT mlint.acme_account_wait('main')"), 'valid', 'nothing more is to be done');
is(sql("SELECT version FROM mlint.secrets WHERE name = 'acme/main'"), '3', 'and is the current one');
is(wait_certificate(issue('after2', 'after2.example.com')), 'ACTIVE', 'and signs');
inject($node, 'acme-account', 'kill');
sql("SELECT mlint.acme_account_rollover('main')");
ok(wait_for('a crash before the key was changed', sub { struck($node, 'acme-account') }), 'nothing was sent');
wait_for_sql($node, 'the key is changed after all',
	"SELECT key_version = 4 AND last_error IS NULL FROM mlint.acme_accounts WHERE name = 'main'");

#
# A server that is away, and one that has lost its memory.
#
$pebble->signal('STOP');
$id = issue('late', 'late.example.com');
wait_for_sql($node, 'an order is sent', "SELECT EXISTS (SELECT FROM mlint.certificate_orders WHERE certificate = 'late' AND state = 'ordering')");
$pebble->signal('CONT');
is(wait_certificate($id), 'ACTIVE', 'a server that is slow is waited for');
$pebble->down;
$id = issue('later', 'later.example.com');
wait_for_sql($node, 'an order finds nobody', "SELECT o.error LIKE '%could not%' FROM mlint.acme_order o JOIN mlint.certificate c ON c.id = o.certificate_id WHERE c.name = 'later'");
$pebble->up;
like(wait_certificate($id), qr/not registered|account/, 'a server that has lost the account says so');
wait_for_sql($node, 'the account failed', "SELECT status = 'failed' FROM mlint.acme_accounts WHERE name = 'main'");
sql("UPDATE mlint.acme_account SET next_at = clock_timestamp() WHERE name = 'main'; SELECT mlint.job_run_now('certificates')");
wait_for_sql($node, 'it registers again', "SELECT status = 'valid' FROM mlint.acme_accounts WHERE name = 'main'");
is(wait_certificate(issue('again', 'again.example.com')), 'ACTIVE', 'and works');

#
# The end of an account.
#
sql("SELECT mlint.acme_account_deactivate('main')");
is(sql("SELECT mlint.acme_account_wait('main')"), 'deactivated', 'an account is deactivated');
cmp_ok($pebble->count('my-account'), '>=', 1, 'and the server was told');
like(sql("SELECT mlint.acme_account_rollover('main')"), qr/55000.*deactivated/s, 'it gets no more keys');
is(acme_account($node, 'main', $pebble), 'valid', 'but can be created again');
is(wait_certificate(issue('new', 'new.example.com')), 'ACTIVE', 'with another key');

#
# External account binding.
#
my $strict = AcmeTest->start(eab => 1);
my ($kid, $hmac) = $strict->eab;
sql("SELECT mlint.secret_put('eab', " . literal($hmac) . "); SELECT mlint.secret_put('bad-eab', repeat('A', 64))");
my $ca = literal(slurp_file($strict->ca));
sql("SELECT mlint.secret_put('strict-ca', $ca)");
sub bind_account
{
	my ($eab) = @_;
	sql("SELECT mlint.acme_account_create('bound', '@{[$strict->directory]}', NULL, $eab, '{\"secret\": \"strict-ca\"}')");
	return sql("SELECT mlint.acme_account_wait('bound')");
}
like(bind_account('NULL'), qr/ML003.*externalAccountRequired/s, 'a server that wants a binding says so');
like(bind_account("'{\"kid\": \"$kid\", \"hmac\": {\"secret\": \"bad-eab\"}}'"), qr/ML003/, 'a wrong key is refused');
is(bind_account("'{\"kid\": \"$kid\", \"hmac\": {\"secret\": \"eab\"}}'"), 'valid', 'the right one is taken');

#
# A server that rejects most nonces.
#
my $moody = AcmeTest->start(http_port => $http, env => { PEBBLE_WFE_NONCEREJECT => 60 });
is(acme_account($node, 'moody', $moody), 'valid', 'an account is registered after all');
$id = sql("SELECT mlint.certificate_issue('{moody.example.com}', 'moody')");
is(wait_certificate($id), 'ACTIVE', 'and a certificate issued');
is(sql("SELECT attempts FROM mlint.certificate_orders WHERE certificate_id = '$id'"), '0', 'without a failure');

#
# Nothing confidential was said.
#
my $log = slurp_file($node->logfile);
unlike($log, qr/PRIVATE KEY|\Q$hmac\E/, 'no key is in the log');
unlike($log, qr/PANIC|TRAP|WARNING:  .*leak/, 'and nothing bad');
is(sql("SELECT string_agg(DISTINCT action, ' ' ORDER BY action) FROM mlint.audit_log WHERE object_type = 'acme_account' AND outcome = CASE action WHEN 'acme_account.refused' THEN 'failed' ELSE 'ok' END"),
	'acme_account.create acme_account.deactivate acme_account.deactivated acme_account.lost acme_account.refused acme_account.register acme_account.rolled_over acme_account.rollover',
	'what became of accounts is in the audit log');

$node->stop;
done_testing();
