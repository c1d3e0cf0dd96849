# What somebody who follows the pages on certificates would stumble over: whom a
# server that hangs holds up, what is said of an account that was refused, what
# is refused and why, and what events have in them.

use strict;
use warnings;

use AcmeTest;
use IO::Socket::INET;
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $gateway = PostgreSQL::Test::Cluster::get_free_port();
my $hangs = AcmeTest->start(http_port => $gateway);
my $strict = AcmeTest->start(http_port => $gateway, eab => 1);
my $node = mlint_node('accepted', conf => <<"EOC");
mlint.gateway_listen = '127.0.0.1:$gateway'
mlint.job_workers = 1
EOC

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub error_of
{
	my ($query) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\n$query", on_error_stop => 0);
	return $err;
}

sub state { return sql("SELECT mlint.certificate_wait('$_[0]', '$MlintTest::deadline s')"); }

# ---- an account that is refused ----

is(acme_account($node, 'hangs', $hangs), 'valid', 'an account');
my $ca = literal(slurp_file($strict->ca));
sql("SELECT mlint.secret_put('strict-ca', $ca)");
sub strict_account
{
	my ($eab) = @_;
	sql("SELECT mlint.acme_account_create('strict', '@{[$strict->directory]}', NULL, $eab, '{\"secret\": \"strict-ca\"}')");
	return;
}

strict_account('NULL');
like(error_of("SELECT mlint.acme_account_wait('strict')"), qr/externalAccountRequired/, 'an account is refused');
wait_for_sql($node, 'which the audit log calls failed', "SELECT DISTINCT outcome FROM mlint.audit_log WHERE action = 'acme_account.refused'", 'failed');
my $early = sql("SELECT mlint.certificate_issue('{early.example.org}', 'strict')");
like(error_of("SELECT mlint.certificate_wait('$early', '30 s')"),
	qr/ML003: +certificate "early.example.org" is REQUESTED, and waits for its account "strict", which could not be registered: .*externalAccountRequired/,
	'who waits for its certificate is told');
is(sql("SELECT status, why FROM mlint.certificate_health() WHERE certificate_id = '$early'"),
	'critical|it waits for its account, which could not be registered', 'and health tells');
like(sql("SELECT remedy FROM mlint.certificate_health() WHERE kind = 'account' AND name = 'strict'"), qr/^Create it again/, 'and what to do');
my ($kid, $hmac) = $strict->eab;
sql("SELECT mlint.secret_put('hmac', '$hmac')");
strict_account(literal(qq({"kid": "$kid", "hmac": {"secret": "hmac"}})));
is(state($early), 'ACTIVE', 'which helps');

# ---- an authority that hangs ----

my $fine = sql("SELECT mlint.certificate_issue('{fine.example.org}', 'hangs')");
is(state($fine), 'ACTIVE', 'a certificate');
$hangs->signal('STOP');
my $slow = sql("SELECT mlint.certificate_issue('{slow.example.org}', 'hangs')");
wait_for_sql($node, 'an order waits for its answer', "SELECT state FROM mlint.certificate_orders WHERE certificate_id = '$slow'", 'ordering');
my $quick = sql("SELECT mlint.certificate_issue('{quick.example.org}', 'strict')");
is(state($quick), 'ACTIVE', 'another authority issues meanwhile');
is(sql("SELECT state, attempts, error IS NULL FROM mlint.certificate_orders WHERE certificate_id = '$slow'"), 'ordering|0|t', 'before the first has given up');
sql("SELECT mlint.certificate_renew('$quick')");
is(state($quick), 'ACTIVE', 'and renews');
sql("SELECT mlint.certificate_revoke('$quick')");
is(state($quick), 'REVOKED', 'and revokes');
$hangs->signal('CONT');
is(state($slow), 'ACTIVE', 'which goes on then');

# ---- refused, with a reason ----

like(error_of("SELECT mlint.acme_account_create('plain', 'http://localhost/dir', NULL)"), qr/ML007: +directory_url must begin with https:/, 'a directory without TLS');
sql(q(SELECT mlint.dns_provider_create('dns', 'rfc2136', '{"server": "127.0.0.1", "key_name": "k", "key": {"secret": "hmac"}}')));
like(error_of("SELECT mlint.dns_provider_test('dns', 'a b')"), qr/ML007: .*not the name of a domain/, 'a test of what is no name');

# As on a standby.
for my $call ("certificate_issue('{a.example.org}', 'hangs')", "certificate_renew('$fine')",
	"certificate_revoke('$fine')", "certificate_drop('$fine')", "certificate_csr('{a.example.org}')",
	"certificate_import('', NULL)", "acme_account_rollover('hangs')", "acme_account_deactivate('hangs')")
{
	my ($name) = $call =~ /^(\w+)/;
	like(error_of("SET default_transaction_read_only = on; SELECT mlint.$call"),
		qr/25006: +cannot execute mlint\.\Q$name\E\(\) in a read-only transaction/, "$name where nothing is written");
}

# ---- events ----

sql("UPDATE mlint.certificate SET auto_renew = false WHERE id = '$fine';"
	  . "UPDATE mlint.certificate_version SET not_before = now() - interval '70 days', not_after = now() + interval '20 days' WHERE certificate_id = '$fine'");
job_rests($node, 'certificate_expiry');
$node->safe_psql('postgres', 'CALL mlint.certificate_expiry_run()');
is(sql(<<'EOQ'), "certificate.expiring|t\ncertificate.issued|t\ncertificate.renewed|t\ncertificate.revoked|t", 'events have what the page says');
SELECT type, bool_and(data ?& '{id,name,domains,state,account,serial,issuer,fingerprint_sha256,not_before,not_after,renew_at,attempts,error}')
FROM mlint.events WHERE type LIKE 'certificate.%' GROUP BY 1 ORDER BY 1
EOQ

# ---- jobs that take their time leave others a turn ----

# They are let in, and nobody speaks to them.
my @mute = map { IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 5) } 1 .. 3;
sql(join ';', map { "SELECT mlint.certificate_watch_create('$fine', '127.0.0.1', @{[$_->sockport]})" } @mute);
wait_for_sql($node, 'servers are looked at that do not answer', "SELECT running FROM mlint.jobs WHERE name = 'certificate_watches'");
my $meanwhile = sql("SELECT mlint.certificate_issue('{meanwhile.example.org}', 'hangs')");
is(state($meanwhile), 'ACTIVE', 'a certificate is issued');
cmp_ok(sql("SELECT count(*) FROM mlint.certificate_watches WHERE checked_at IS NULL"), '>', 0, 'before all of them were looked at');
wait_for_sql($node, 'which they are then', "SELECT bool_and(state = 'unreachable') FROM mlint.certificate_watches");

$node->stop;
done_testing();
