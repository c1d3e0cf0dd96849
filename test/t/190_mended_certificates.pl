# What was once wrong with certificates, and is not any more.

use strict;
use warnings;

use AcmeCa;
use FindBin;
use HTTP::Tiny;
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $gateway = PostgreSQL::Test::Cluster::get_free_port();
my $ca = AcmeCa->start(http_port => $gateway);
my $node = mlint_node('mended', conf => <<"EOC");
mlint.gateway_listen = '127.0.0.1:$gateway'
EOC

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub issue
{
	my ($account, @names) = @_;
	sql("SELECT mlint.certificate_issue(ARRAY[n || '.example'], '$account', name => n) FROM unnest('{"
		  . join(',', @names) . "}'::text[]) n");
	return;
}

sub state_is
{
	my ($name, $state, $what) = @_;
	wait_for_sql($node, $what // "$name is $state",
		"SELECT count(*) FROM mlint.certificates WHERE name = '$name' AND state = '$state'", 1)
	  or diag sql("SELECT state, last_error FROM mlint.certificates WHERE name = '$name'");
	return;
}

# An account that is registered.
sub account
{
	my ($name, %more) = @_;
	$ca->account($node, $name, %more);
	wait_for_sql($node, "account $name is registered",
		"SELECT count(*) FROM mlint.acme_accounts WHERE name = '$name' AND status = 'valid'", 1);
	return;
}

sub run_job { return sql("SELECT mlint.job_run_now('$_[0]')"); }

sub no_job_runs
{
	wait_for_sql($node, 'no job runs', "SELECT count(*) FROM mlint.worker_slots() WHERE kind = 'job'", 0);
	return;
}

# ---- the directory is forgotten while others wait for a nonce ----

# One order is refused with 404, which has the directory fetched again, and that
# takes its time. The other's nonce is rejected meanwhile, without another.
account('gone');
issue('gone', 'gone-1');
state_is('gone-1', 'ACTIVE');
no_job_runs();
my $started = sql('SELECT pg_postmaster_start_time()');
my @nothing = (kind => 'application/problem+json', headers => { 'Replay-Nonce' => '' });
$ca->fault('gone', 'order-new', 'answer', status => 404, @nothing, body => '{"detail": "moved"}');
$ca->fault('gone', 'order-new', 'answer', status => 400, @nothing,
	body => '{"type": "urn:ietf:params:acme:error:badNonce"}');
$ca->fault('gone', 'directory', 'drip', ms => 3);
issue('gone', 'gone-2', 'gone-3');
wait_for_sql($node, 'one is issued, the other is refused',
	"SELECT string_agg(state, ' ' ORDER BY state) FROM mlint.certificates WHERE name IN ('gone-2', 'gone-3')",
	'ACTIVE FAILED');
unlike(slurp_file($node->logfile), qr/terminated by signal/, 'nothing has crashed');

# ---- more is due than there is room for ----

# CPU time of the job, in seconds.
sub cpu
{
	my $pid = sql("SELECT s.pid FROM mlint.worker_slots() s JOIN mlint.job j ON j.id = s.lane WHERE s.kind = 'job' AND j.name = 'certificates'");
	return unless $pid =~ /^\d+$/;
	my @stat = split ' ', (slurp_file("/proc/$pid/stat") =~ s/^.*\) //r);
	return ($stat[11] + $stat[12]) / 100;
}

my @slow = qw(slow slower slowest);
account($_) for @slow;
$ca->set($_, latency_ms => 4000) for @slow;
for my $slow (@slow)
{
	issue($slow, map { "$slow-$_" } 1 .. 20);
}
wait_for_sql($node, 'as many are under way as can be, and of no account more than its part',
	"SELECT sum(n), max(n) FROM (SELECT count(*) AS n FROM mlint.acme_order WHERE state = 'ordering' GROUP BY account_id) a", '32|16');
my $before = cpu();
usleep(2_000_000);
my $after = cpu();
ok(defined $before && defined $after && $after - $before < 0.3, 'who waits for a slow authority sleeps')
  or diag 'CPU seconds in two: ' . ($after - $before);
$ca->set($_, latency_ms => 0) for @slow;
wait_for_sql($node, 'and all are issued',
	"SELECT count(*) FROM mlint.certificates WHERE account LIKE 'slow%' AND state = 'ACTIVE'", 60);

# ---- an account that was closed, and is created again ----

$ca->set('moved', ari => JSON::PP::true);
account('moved');
issue('moved', 'moved');
state_is('moved', 'ACTIVE');
sql("SELECT mlint.acme_account_deactivate('moved'); SELECT mlint.acme_account_wait('moved')");
sql("UPDATE mlint.certificate SET due_at = clock_timestamp() WHERE name = 'moved'");
run_job('certificates');
wait_for_sql($node, 'nobody tries it any more',
	"SELECT count(*) FROM mlint.certificate WHERE name = 'moved' AND due_at IS NULL AND error = 'the account was deactivated'", 1);
account('moved');
run_job('certificate_expiry');
wait_for_sql($node, 'when the account is there again, it is renewed in time',
	"SELECT count(*) FROM mlint.certificates WHERE name = 'moved' AND renew_at BETWEEN now() + '50 days' AND now() + '61 days'", 1);
# What it would replace is another account's, and the authority says so.
sql("SELECT mlint.certificate_renew(id) FROM mlint.certificates WHERE name = 'moved'");
wait_for_sql($node, 'and can be',
	"SELECT count(*) FROM mlint.certificate_history WHERE name = 'moved'", 2)
  or diag sql("SELECT state, last_error FROM mlint.certificates WHERE name = 'moved'");

# ---- what an authority says goes into rows only as text ----

account('words');
# As much of it as is kept ends in the middle of a character.
my $words = 'x' . "\x{e9}" x 750;
my $error = { type => 'urn:ietf:params:acme:error:unauthorized', detail => $words };
$ca->fault('words', 'finalize', 'edit', members => { status => 'invalid', error => $error });
issue('words', 'words-1');
state_is('words-1', 'FAILED');
$ca->fault('words', 'authz', 'edit', members => { status => 'invalid', challenges => [
	{ type => 'http-01', status => 'invalid', token => 'abc', error => $error,
		url => "https://localhost:$ca->{port}/words/challenge/1" } ] });
issue('words', 'words-2');
state_is('words-2', 'FAILED');
is(sql("SELECT count(*) FROM mlint.certificate_orders WHERE account = 'words'"
		. " AND length(convert_from(convert_to(error, 'UTF8'), 'UTF8')) > 400"), 2,
	'a text that was cut is still text');

# ---- a limit that is about the names of one order ----

account('limited');
$ca->fault('limited', 'order-new', 'problem', kind => 'rateLimited', headers => { 'Retry-After' => 50000 });
issue('limited', 'limited-1');
wait_for_sql($node, 'an order that has met a limit waits for as long as it must, and says why',
	"SELECT count(*) FROM mlint.certificate_orders WHERE certificate = 'limited-1'"
	  . " AND next_at > now() + '13 hours' AND error LIKE '%rateLimited%'", 1);
is(sql("SELECT paused_until < now() + '16 minutes' FROM mlint.acme_accounts WHERE name = 'limited'"), 't',
	'others for a while');
sql("UPDATE mlint.acme_account SET not_before = now() WHERE name = 'limited'");
issue('limited', 'limited-2');
state_is('limited-2', 'ACTIVE');
state_is('limited-1', 'ISSUING');

# ---- rows that somebody has locked ----

sql("BEGIN; SELECT FROM mlint.acme_account WHERE name = 'moved' FOR NO KEY UPDATE; PREPARE TRANSACTION 'account'");
sql("BEGIN; SELECT FROM mlint.certificate WHERE name = 'limited-1' FOR NO KEY UPDATE; PREPARE TRANSACTION 'certificate'");
sql("SELECT mlint.certificate_renew(id) FROM mlint.certificates WHERE name = 'moved'");
sql("UPDATE mlint.acme_order SET next_at = clock_timestamp() WHERE finished_at IS NULL");
issue('limited', 'limited-3');
state_is('limited-3', 'ACTIVE', 'others go on while an account and a certificate are locked');
is(sql("SELECT string_agg(name || ' ' || state, ', ' ORDER BY name) FROM mlint.certificates WHERE name IN ('moved', 'limited-1')"),
	'limited-1 ISSUING, moved ACTIVE', 'which wait');
sql("ROLLBACK PREPARED 'account'");
sql("ROLLBACK PREPARED 'certificate'");
wait_for_sql($node, 'an account that is locked no more is used again',
	"SELECT count(*) FROM mlint.certificate_history WHERE name = 'moved'", 3);
sql("UPDATE mlint.acme_order SET next_at = clock_timestamp() WHERE finished_at IS NULL");
run_job('certificates');
state_is('limited-1', 'ACTIVE');

# ---- revocations ----

account('revoking');
issue('revoking', 'revoking');
state_is('revoking', 'ACTIVE');
$ca->fault('revoking', 'revoke', 'problem', kind => 'serverInternal', headers => { 'Retry-After' => '999999999' });
sql("SELECT mlint.certificate_revoke(id, 'keyCompromise') FROM mlint.certificates WHERE name = 'revoking'");
wait_for_sql($node, 'a revocation that fails says so',
	"SELECT count(*) FROM mlint.certificate_version WHERE revoke_at > clock_timestamp() + '1 hour'", 1);
is(sql("SELECT max(revoke_at) < now() + '2 days' FROM mlint.certificate_version"), 't',
	'no authority has it wait for years');
state_is('revoking', 'ACTIVE', 'its successor is there');

issue('revoking', 'revoked');
state_is('revoked', 'ACTIVE');
$ca->fault('revoking', 'revoke', 'problem', kind => 'serverInternal', times => 0);
sql("SELECT mlint.certificate_revoke(id) FROM mlint.certificates WHERE name = 'revoked'");
wait_for_sql($node, 'a revocation fails once',
	"SELECT count(*) FROM mlint.certificates WHERE name = 'revoked' AND last_error LIKE '%not revoked%'", 1);
$ca->clear('revoking');
sql("UPDATE mlint.certificate_version SET revoke_at = clock_timestamp() WHERE revoke_at < now() + '10 minutes' AND revoked_at IS NULL");
run_job('certificates');
state_is('revoked', 'REVOKED');
is(sql("SELECT mlint.certificate_wait(id) FROM mlint.certificates WHERE name = 'revoked' AND last_error IS NULL"), 'REVOKED',
	'what was done in the end is no failure');

# ---- an imported certificate whose key was destroyed ----

my $dir = PostgreSQL::Test::Utils::tempdir();
system_or_bail('openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
	'-keyout', "$dir/key.pem", '-out', "$dir/cert.pem", '-days', '300', '-subj', '/CN=imported.example',
	'-addext', 'subjectAltName=DNS:imported.example');
my $import = 'SELECT mlint.certificate_import(' . literal(slurp_file("$dir/cert.pem")) . ', '
  . literal(slurp_file("$dir/key.pem")) . ", 'imported')";
sql($import);
sql("SELECT mlint.secret_destroy('certificates/imported', 1)");
like(sql("SELECT why FROM mlint.certificate_health() WHERE name = 'imported'"), qr/is gone/, 'a key is gone');
sql($import);
unlike(sql("SELECT why FROM mlint.certificate_health() WHERE name = 'imported'"), qr/is gone/,
	'importing it again brings it back');

# ---- a key that was to be kept, and was destroyed ----

sql("SELECT mlint.certificate_issue('{kept.example}', 'words', name => 'kept', reuse_key => true)");
state_is('kept', 'ACTIVE');
sql("SELECT mlint.secret_destroy('certificates/kept', 1)");
sql("SELECT mlint.certificate_renew(id) FROM mlint.certificates WHERE name = 'kept'");
wait_for_sql($node, 'a renewal has another then',
	"SELECT string_agg(key_version::text, ' ' ORDER BY version) FROM mlint.certificate_history WHERE name = 'kept'", '1 2')
  or diag sql("SELECT state, last_error FROM mlint.certificates WHERE name = 'kept'");

# ---- a lock that anybody can take ----

account('locked');
sql("CREATE ROLE nobody LOGIN");
sql("SET ROLE nobody; BEGIN; SELECT pg_advisory_xact_lock(19788, 2000); PREPARE TRANSACTION 'advisory'");
no_job_runs();
issue('locked', 'locked');
state_is('locked', 'ACTIVE', 'a lock of a user does not keep the job from its work');
sql("ROLLBACK PREPARED 'advisory'");

# ---- what stands between us and an authority is not its answer ----

# The key was changed, but its answer was lost; then somebody else answers.
account('rolled');
$ca->fault('rolled', 'key-change', 'reset', after => 1);
$ca->fault('rolled', 'account', 'redirect');
$ca->fault('rolled', 'account', 'problem', kind => 'unauthorized', detail => 'blocked');
sql("SELECT mlint.acme_account_rollover('rolled')");
wait_for_sql($node, 'a key that the authority may have is kept until it says which it has',
	"SELECT status, key_version, new_key_version IS NULL, error IS NULL FROM mlint.acme_account WHERE name = 'rolled'", 'valid|2|t|t');
issue('rolled', 'rolled');
state_is('rolled', 'ACTIVE', 'and signs');

account('diverted');
no_job_runs();
$ca->fault('diverted', 'nonce', 'answer', times => 0, status => 302, headers => { Location => $ca->directory('elsewhere'), 'Replay-Nonce' => '' });
my $asked = $ca->counter('diverted', 'nonce') + $ca->counter('diverted', 'faults');
sql("SELECT mlint.acme_account_rollover('diverted')");
wait_for_sql($node, 'a rollover without a nonce waits, and says why',
	"SELECT status = 'valid' AND new_key_version = 2 AND attempts > 0 AND next_at > now() AND error LIKE '%redirects%' FROM mlint.acme_account WHERE name = 'diverted'");
cmp_ok($ca->counter('diverted', 'nonce') + $ca->counter('diverted', 'faults') - $asked, '<', 20, 'nor is it asked for all the time');
$ca->clear('diverted');
wait_for_sql($node, 'it is done when there is one', "SELECT key_version FROM mlint.acme_accounts WHERE name = 'diverted' AND last_error IS NULL", 2);

# Its directory is to be fetched first.
account('closing');
no_job_runs();
sql("UPDATE mlint.acme_account SET directory_at = NULL WHERE name = 'closing'");
$ca->fault('closing', 'directory', 'redirect', times => 0);
sql("SELECT mlint.acme_account_deactivate('closing')");
wait_for_sql($node, 'an account that is to be closed stays so when its authority cannot be had',
	"SELECT status FROM mlint.acme_accounts WHERE name = 'closing' AND last_error LIKE '%redirects%'", 'deactivating');
$ca->clear('closing');
$ca->fault('closing', 'account', 'problem', kind => 'accountDoesNotExist');
sql("UPDATE mlint.acme_account SET next_at = now() WHERE name = 'closing'");
run_job('certificates');
wait_for_sql($node, 'and is closed when it can, if only because nobody knows it',
	"SELECT status FROM mlint.acme_accounts WHERE name = 'closing' AND next_at IS NULL", 'deactivated');

# ---- an account whose key is gone ----

account('keyless');
issue('keyless', 'keyless');
state_is('keyless', 'ACTIVE');
no_job_runs();
sql("SELECT mlint.secret_drop('acme/keyless')");
sql("SELECT mlint.acme_account_deactivate('keyless')");
wait_for_sql($node, 'it cannot be closed',
	"SELECT status FROM mlint.acme_accounts WHERE name = 'keyless' AND attempts > 0 AND last_error LIKE 'the key of ACME account%'", 'deactivating');
account('keyless');
sql("SELECT mlint.certificate_renew(id) FROM mlint.certificates WHERE name = 'keyless'");
wait_for_sql($node, 'but created again, and used',
	"SELECT count(*) FROM mlint.certificate_history WHERE name = 'keyless'", 2);

# Its end is asked for, and nobody answers; created again it is another.
account('remade');
no_job_runs();
$ca->fault('remade', 'account', 'html');
$ca->set('remade', latency_ms => 3000);
my ($rc, $out, $err) = $node->psql('postgres',
	"BEGIN; SELECT mlint.acme_account_deactivate('remade'); SELECT mlint.acme_account_create('remade', 'letsencrypt', NULL)");
like($err, qr/already exists/, 'one that nobody has tried to close is in use');
sql("SELECT mlint.acme_account_deactivate('remade')");
wait_for_sql($node, 'its end has failed once', "SELECT attempts > 0 FROM mlint.acme_accounts WHERE name = 'remade'");
sql("UPDATE mlint.acme_account SET next_at = now() WHERE name = 'remade'");
$asked = $ca->counter('remade', 'account');
run_job('certificates');
wait_for('it is asked for again', sub { $ca->counter('remade', 'account') > $asked });
account('remade');
is(sql("SELECT status, key_version FROM mlint.acme_accounts WHERE name = 'remade'"), 'valid|2', 'an answer to what was asked before does not close it');
$ca->set('remade', latency_ms => 0);

# ---- a revocation that the authority has not refused ----

account('unheard');
issue('unheard', 'unheard-1', 'unheard-2');
state_is('unheard-1', 'ACTIVE');
state_is('unheard-2', 'ACTIVE');
$ca->fault('unheard', 'revoke', 'redirect');
sql("SELECT mlint.certificate_revoke(id) FROM mlint.certificates WHERE name = 'unheard-1'");
wait_for_sql($node, 'one that was diverted is asked for again',
	"SELECT revoke_reason, revoke_at > now() FROM mlint.certificate_history WHERE name = 'unheard-1' AND revoke_at > now()", 'unspecified|t');
no_job_runs();
sql("UPDATE mlint.acme_account SET status = 'failed', next_at = now() + '1 hour' WHERE name = 'unheard'");
sql("SELECT mlint.certificate_revoke(id) FROM mlint.certificates WHERE name = 'unheard-2'");
wait_for_sql($node, 'one of an account that must be registered first waits for that',
	"SELECT revoke_at = a.next_at FROM mlint.certificate_history h, mlint.acme_account a WHERE h.name = 'unheard-2' AND a.name = 'unheard' AND h.revoke_reason IS NOT NULL AND revoke_at > now() + '5 minutes'");
sql("UPDATE mlint.acme_account SET next_at = now() WHERE name = 'unheard'");
run_job('certificates');
wait_for_sql($node, 'which is registered', "SELECT status FROM mlint.acme_accounts WHERE name = 'unheard'", 'valid');
sql("UPDATE mlint.certificate_version SET revoke_at = now() WHERE revoke_at IS NOT NULL AND revoked_at IS NULL AND certificate_id IN (SELECT id FROM mlint.certificate WHERE name LIKE 'unheard-%')");
run_job('certificates');
state_is('unheard-1', 'REVOKED');
state_is('unheard-2', 'REVOKED');

# ---- renewal information of what has expired ----

$ca->set('over', ari => JSON::PP::true);
account('over');
issue('over', 'over');
state_is('over', 'ACTIVE');
wait_for_sql($node, 'its window is asked for', "SELECT suggested_from IS NOT NULL FROM mlint.certificate_history WHERE name = 'over'");
no_job_runs();
$asked = $ca->counter('over', 'ari');
sql("UPDATE mlint.certificate_version SET not_after = now() - interval '1 s' WHERE certificate_id = (SELECT id FROM mlint.certificate WHERE name = 'over');"
	  . "UPDATE mlint.certificate SET ari_at = now() WHERE name = 'over'");
run_job('certificates');
wait_for_sql($node, 'when it has expired that is over', "SELECT ari_at IS NULL FROM mlint.certificate WHERE name = 'over'");
is($ca->counter('over', 'ari'), $asked, 'and nobody was asked');

# ---- ready, but not to be finalized ----

account('unready');
$ca->fault('unready', 'finalize', 'problem', kind => 'orderNotReady', times => 0);
issue('unready', 'unready');
state_is('unready', 'FAILED', 'an order that is ready and cannot be finalized comes to an end');
cmp_ok($ca->counter('unready', 'finalize'), '<', 10, 'soon');

# ---- two certificates for the same names ----

$ca->set('twice', reuse_orders => JSON::PP::true, validate_ms => 500);
account('twice');
sql("SELECT mlint.certificate_issue('{twice.example}', 'twice', key_type => t, name => 'twice-' || t) FROM unnest('{ec256,rsa2048}'::text[]) t");
state_is('twice-ec256', 'ACTIVE', 'of two that their authority has one order for, each');
state_is('twice-rsa2048', 'ACTIVE', 'has its own');
is(sql("SELECT count(DISTINCT url), bool_and(state = 'issued') FROM mlint.certificate_orders WHERE account = 'twice'"), '2|t', 'and none has failed');

# ---- a key in other hands ----

sub ask
{
	my ($account, $name, $more) = @_;
	sql("SELECT mlint.certificate_issue('{$name.example}', '$account', name => '$name'" . ($more ? ", $more" : '') . ')');
	state_is($name, 'ACTIVE');
	return;
}
sub on { my ($name, $call) = @_; return sql("SELECT mlint.certificate_$call FROM mlint.certificates WHERE name = '$name'"); }

# Have it renewed, as far as the authority's making of the certificate.
sub renew_slowly
{
	my ($account, $name) = @_;
	$ca->set($account, issue_ms => 3_600_000);
	on($name, 'renew(id)');
	wait_for_sql($node, "$name is being renewed", "SELECT state FROM mlint.certificate_orders WHERE certificate = '$name' AND finished_at IS NULL", 'processing');
	$ca->set($account, issue_ms => 0);
	return;
}

account('stolen');
ask('stolen', 'stolen', 'reuse_key => true');
renew_slowly('stolen', 'stolen');
on('stolen', "revoke(id, 'keyCompromise')");
is(sql("SELECT count(*) FROM mlint.acme_order WHERE finished_at IS NULL AND key_version = 1 AND account_id = (SELECT id FROM mlint.acme_account WHERE name = 'stolen')"), 0,
	'an order with a key in other hands ends');
wait_for_sql($node, 'another has another key', "SELECT string_agg(key_version || ' ' || in_use || ' ' || (revoked_at IS NOT NULL), ', ' ORDER BY version) FROM mlint.certificate_history WHERE name = 'stolen'",
	'1 false true, 2 true false');

# The authority refuses to revoke before the next order gets as far as its key.
ask('stolen', 'copied', 'reuse_key => true');
$ca->fault('stolen', 'order-new', 'problem', kind => 'serverInternal', headers => { 'Retry-After' => 3600 });
$ca->fault('stolen', 'revoke', 'problem', kind => 'unauthorized', detail => 'not yours');
on('copied', "revoke(id, 'keyCompromise')");
wait_for_sql($node, 'a revocation is refused, while a new order waits',
	"SELECT count(*) FROM mlint.certificate_history h JOIN mlint.certificate_orders o USING (certificate_id) WHERE h.name = 'copied' AND h.revoke_reason IS NULL AND o.finished_at IS NULL AND o.next_at > now() + '10 minutes'", 1);
sql("UPDATE mlint.acme_order SET next_at = now() WHERE finished_at IS NULL");
run_job('certificates');
wait_for_sql($node, 'the key is not kept', "SELECT string_agg(key_version || ' ' || in_use, ', ' ORDER BY version) FROM mlint.certificate_history WHERE name = 'copied'", '1 false, 2 true');
sql('CALL mlint.certificate_expiry_run()');
is(sql("SELECT string_agg((destroyed_at IS NULL)::text, ' ' ORDER BY version) FROM mlint.secret_versions('certificates/copied')"), 'false true', 'but destroyed');

# ---- an end that is meant ----

account('ended');
ask('ended', 'ended');
renew_slowly('ended', 'ended');
on('ended', "revoke(id, 'cessationOfOperation')");
state_is('ended', 'REVOKED', 'what is revoked for good is not renewed, also when that was under way');
is(sql("SELECT o.error, c.renew_at IS NULL FROM mlint.certificates c JOIN mlint.certificate_orders o ON o.certificate_id = c.id WHERE c.name = 'ended' AND o.state = 'failed'"),
	'what it was to replace is being revoked|t', 'its order has ended');
is(sql("SELECT count(*) FROM mlint.secret_versions('certificates/ended') WHERE destroyed_at IS NULL"), 1, 'with the key that it had');

# ---- dropped in the middle of its order ----

account('phantom');
$ca->set('phantom', validate_ms => 3_600_000);
issue('phantom', 'phantom-1', 'phantom-2');
wait_for_sql($node, 'orders whose names are being looked at',
	"SELECT count(*) FROM mlint.acme_challenge h JOIN mlint.certificate_orders o ON o.id = h.order_id WHERE o.account = 'phantom' AND h.status = 'answered' AND h.presence = 'present'", 2);
my @shown = split /\n/, sql("SELECT token FROM mlint.acme_challenge h JOIN mlint.certificate_orders o ON o.id = h.order_id WHERE o.account = 'phantom'");
my $http = HTTP::Tiny->new(timeout => 30);
sub answers { return join ' ', map { $http->get("http://127.0.0.1:$gateway/.well-known/acme-challenge/$_")->{status} } @_; }
is(answers(@shown), '200 200', 'the gateway shows what is looked for');
# One as if a solver had not yet been told.
sql("BEGIN; UPDATE mlint.acme_challenge SET status = 'waiting', presence = 'wanted' WHERE order_id IN (SELECT id FROM mlint.certificate_orders WHERE certificate = 'phantom-2');"
	  . "SELECT mlint.certificate_drop(id) FROM mlint.certificates WHERE name LIKE 'phantom-%'; COMMIT");
wait_for_sql($node, 'when the certificates are dropped, that is over',
	"SELECT string_agg(h.presence, ' ' ORDER BY h.presence) FROM mlint.acme_challenge h JOIN mlint.certificate_orders o ON o.id = h.order_id WHERE o.account = 'phantom'", 'none removed');
wait_for('nor does the gateway answer', sub { answers(@shown) eq '404 404' });

# ---- a gateway that shows as much as it can ----

account('crowded');
my $probe = PostgreSQL::Test::Utils::tempdir() . '/challenge_probe.so';
chomp(my $include = `pg_config --includedir-server`);
system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-O', "-I$FindBin::RealBin/../../src", "-I$include",
	'-o', $probe, "$FindBin::RealBin/challenge_probe.c");
sql("CREATE FUNCTION challenge_show(text, text, timestamptz) RETURNS void LANGUAGE c AS '$probe'");
sql("DO \$\$ BEGIN FOR n IN 1 .. 4096 LOOP PERFORM challenge_show('crowd' || n, 'v', now() + '1 hour'); END LOOP;"
	  . ' EXCEPTION WHEN configuration_limit_exceeded THEN NULL; END $$');
issue('crowded', 'crowded');
wait_for_sql($node, 'a challenge for which there is no room waits, which is no failure',
	"SELECT h.poll_attempts FROM mlint.acme_challenge h JOIN mlint.certificate_orders o ON o.id = h.order_id WHERE o.certificate = 'crowded' AND h.status = 'new' AND h.poll_at > now()", 0);
sql("SELECT challenge_show('crowd' || n, 'v', now() - '1 s'::interval) FROM generate_series(1, 4096) n");
state_is('crowded', 'ACTIVE', 'and is shown when there is');

# ---- a row that cannot say that it has failed ----

$node->append_conf('postgresql.conf', 'mlint.event_max_bytes = 1024');
$node->reload;
account('poison');
$ca->fault('poison', 'order-new', 'problem', kind => 'rejectedIdentifier', times => 0);
sql("SELECT mlint.certificate_issue(array_agg('a-name-of-some-length-' || i || '.example'), 'poison', name => 'poison') FROM generate_series(1, 60) i");
wait_for_sql($node, 'an event is too large',
	"SELECT count(*) FROM mlint.certificate_orders WHERE certificate = 'poison' AND error LIKE 'the event has%'", 1);
sql("UPDATE mlint.acme_order SET attempts = 7, next_at = clock_timestamp() WHERE finished_at IS NULL AND error LIKE 'the event has%'");
run_job('certificates');
wait_for('that is logged', sub { return slurp_file($node->logfile) =~ /could not be recorded: the event has/; });
issue('words', 'words-3');
state_is('words-3', 'ACTIVE', 'and others go on');

# Nor one that cannot say that it is renewed no more.
account('closed');
sql("SELECT mlint.acme_account_deactivate('closed'); SELECT mlint.acme_account_wait('closed')");
no_job_runs();
sql("UPDATE mlint.certificate SET account_id = (SELECT id FROM mlint.acme_account WHERE name = 'closed'), due_at = now() WHERE name = 'poison'");
issue('words', 'words-4');
state_is('words-4', 'ACTIVE', 'others go on beside one of a closed account');
wait_for_sql($node, 'which waits', "SELECT renew_at > now() + '1 minute' AND last_error LIKE 'the event has%' FROM mlint.certificates WHERE name = 'poison'");

# ---- accounts ----

for my $per ('200000 years', '1000000 months -29999999 days', '0')
{
	my ($rc, $out, $err) = $node->psql('postgres',
		"SELECT mlint.acme_account_create('odd', 'letsencrypt-staging', 'a\@example.com', max_orders_per => '$per')");
	like($err, qr/max_orders_per must/, "no account has a window of $per");
}
is(sql("SET synchronous_commit = off; BEGIN; SELECT mlint.acme_account_rollover('words'); SHOW synchronous_commit; ROLLBACK"),
	"\non", 'a key that the authority is to get is on disk first');

is(sql('SELECT pg_postmaster_start_time()'), $started, 'the server was not restarted');
is(sql("SELECT count(*) FROM mlint.jobs WHERE name LIKE 'certificate%' AND last_error IS NOT NULL"), 0,
	'no job has failed')
  or diag sql("SELECT name, last_error FROM mlint.jobs WHERE last_error IS NOT NULL");
$node->stop;
done_testing();
