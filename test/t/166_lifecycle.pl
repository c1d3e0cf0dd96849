# The life of a certificate: what becomes of orders that succeed and of those
# that fail, what waits for the limits of its account, when it is renewed, what
# follows a revocation, and what remains of what is dropped. With an authority
# that does what it is told (test/peers/acme_ca.py).

use strict;
use warnings;

use AcmeCa;
use IPC::Run ();
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SecretTest qw(answer);
use TargetTest qw(target target_state openssl);
use Test::More;

my $ca = AcmeCa->start(validate => JSON::PP::false);
my $certs = PostgreSQL::Test::Utils::tempdir() . '/certs';
mkdir $certs or die;
chmod 0700, $certs;
my $node = mlint_node('lifecycle', conf => "mlint.certificate_directory = '$certs'\n");
my $wait = "$MlintTest::deadline s";

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub shown { my ($id, $columns) = @_; return sql("SELECT $columns FROM mlint.certificates WHERE id = '$id'"); }
sub run_job { my ($job) = @_; return sql("SELECT mlint.job_run_now('$job')"); }

# Ask for one; more are arguments as SQL.
sub ask
{
	my ($account, $name, $more) = @_;
	return sql("SELECT mlint.certificate_issue('{$name.example}', '$account', name => '$name'" . ($more ? ", $more" : '') . ')');
}

sub becomes
{
	my ($id, $what, $state) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(answer($node, "SELECT mlint.certificate_wait('$id', '$wait')"), $state // 'ACTIVE', $what);
}

sub events
{
	my ($id) = @_;
	return sql("SELECT string_agg(substr(type, 13), ' ' ORDER BY id) FROM mlint.event WHERE type LIKE 'certificate.%' AND data->>'id' = '$id'");
}

sub transitions
{
	my ($id) = @_;
	return sql("SELECT string_agg(details->>'to', ' ' ORDER BY seq) FROM mlint.audit_log WHERE action = 'certificate.transition' AND details->>'id' = '$id'");
}

# When it is renewed, as a part of its lifetime that is left then.
sub left { my ($id) = @_; return sql("SELECT extract(epoch FROM not_after - renew_at) / extract(epoch FROM not_after - not_before) FROM mlint.certificates WHERE id = '$id'"); }
sub public_key { my ($name, $version) = @_; return openssl(sql("SELECT mlint.secret_get('certificates/$name'" . ($version ? ", $version" : '') . ')'), 'pkey', '-pubout'); }

$ca->account($node, 'main');

#
# Issued, renewed
#

sql("CREATE ROLE keeper IN ROLE mlint_admin LOGIN");
my $id = sql("SET ROLE keeper; SELECT mlint.certificate_issue('{a.example,b.example}', 'main', name => 'a')");
becomes($id, 'a certificate is issued');
is(transitions($id), 'ISSUING ISSUED ACTIVE', 'by all the states there are');
is(events($id), 'issued', 'an event says so');
is(shown($id, "domains, issuer, days_left, attempts, last_error IS NULL, key_version, created_by"),
	'{a.example,b.example}|CN=mlint test issuer|89|0|t|1|keeper', 'and the view');
is(sql("SELECT owner, type FROM mlint.secrets WHERE name = 'certificates/a'"), 'keeper|tls_certificate', 'its key is its creator\'s');
is(openssl(sql("SELECT leaf FROM mlint.certificate_get('$id')"), 'x509', '-noout', '-pubkey'), public_key('a'), 'and the certificate\'s');
my $left = left($id);
ok($left > 1 / 3 - 0.001 && $left < 1 / 3 + 0.031, "it is renewed when a third of its life is left, or a little more ($left)");
sql("SELECT mlint.certificate_renew('$id')");
becomes($id, 'it is renewed');
is(transitions($id), 'ISSUING ISSUED ACTIVE RENEWING ISSUED ACTIVE', 'and active meanwhile');
is(events($id), 'issued renewed', 'an event says so');
isnt(public_key('a', 1), public_key('a', 2), 'with a new key');
is(sql("SELECT count(*), count(replaced_at), bool_and(in_use = (replaced_at IS NULL)) FROM mlint.certificate_history WHERE certificate_id = '$id'"), '2|1|t', 'history has both');
is(join(' ', map { $_->{replaces} ? 'replaces' : 'new' } $ca->orders('main')), 'new new', 'nobody is told what it replaces, who does not ask');

my $same = ask('main', 'same', 'reuse_key => true');
becomes($same, 'another');
sql("SELECT mlint.certificate_renew('$same')");
becomes($same, 'is renewed');
is(sql("SELECT string_agg(key_version::text, ' ') FROM mlint.certificate_history WHERE certificate_id = '$same'"), '1 1', 'with its own key');
sql("UPDATE mlint.certificate_version SET not_after = now() - interval '1 s' WHERE certificate_id = '$same' AND replaced_at IS NOT NULL");
job_rests($node, 'certificate_expiry');
$node->safe_psql('postgres', 'CALL mlint.certificate_expiry_run()');
is(sql("SELECT string_agg(key_gone::text, ' ' ORDER BY version) FROM mlint.certificate_history WHERE certificate_id = '$same'"), 'true false', 'which is not destroyed with the first');
ok(public_key('same'), 'but still there');

for my $case ([ 'week', 6 * 86400, '', 1 / 3, 1 / 3 + 0.031 ], [ 'hour', 3600, '', 1 / 3, 1 / 3 + 0.031 ],
	[ 'before', 90 * 86400, "renew_before => '45 days'", 0.49, 0.531 ], [ 'long', 90 * 86400, "renew_before => '2 years'", 0.74, 0.781 ])
{
	my ($name, $lifetime, $more, $from, $to) = @$case;
	$ca->account($node, $name);
	$ca->set($name, lifetime => $lifetime);
	my $one = ask($name, $name, $more);
	becomes($one, "a certificate of $lifetime seconds");
	my $at = left($one);
	ok($at > $from - 0.01 && $at < $to, "is renewed in time $more ($at)");
}
my $once = ask('main', 'once', 'auto_renew => false');
becomes($once, 'one that is not to be renewed');
is(shown($once, 'renew_at IS NULL'), 't', 'is not');

#
# Orders that fail
#

$ca->account($node, 'bad');
$ca->fault('bad', 'order-new', 'problem', kind => 'rejectedIdentifier', detail => 'no such luck', status => 400, times => 0);
my $bad = ask('bad', 'bad');
like(answer($node, "SELECT mlint.certificate_wait('$bad', '$wait')"), qr/ML003: .*certificate "bad" is FAILED: .*no such luck/, 'what fails is raised');
is(shown($bad, "state, attempts, last_error LIKE '%no such luck%', last_error_at > now() - interval '1 hour'"), 'FAILED|1|t|t', 'and shown');
is(shown($bad, "renew_at - last_error_at BETWEEN '4 minutes 59 seconds' AND '6.3 minutes'"), 't', 'and tried again after five minutes or a little more');
is(events($bad), 'failed', 'an event says so');
is(sql("SELECT data->>'error' LIKE '%no such luck%', data->>'problem' FROM mlint.event WHERE type = 'certificate.failed' AND data->>'id' = '$bad'"), 't|rejectedIdentifier', 'and why');
is(sql("SELECT state, problem FROM mlint.certificate_orders WHERE certificate = 'bad'"), 'failed|rejectedIdentifier', 'so does the order');
is(sql("SELECT status, why LIKE 'it could not be issued: %no such luck%' FROM mlint.certificate_health() WHERE kind = 'certificate' AND name = 'bad'"), 'critical|t', 'and health');
for my $attempt (2 .. 12)
{
	sql("UPDATE mlint.certificate SET due_at = now() WHERE id = '$bad'; SELECT mlint.job_run_now('certificates')");
	wait_for_sql($node, "attempt $attempt fails too", "SELECT attempts = $attempt FROM mlint.certificates WHERE id = '$bad'");
}
is(shown($bad, "renew_at - last_error_at BETWEEN '1 day' AND '1.26 days'"), 't', 'the delay grows to a day');
$ca->clear('bad');
sql("SELECT mlint.certificate_renew('$bad')");
becomes($bad, 'it is issued when it can be');
is(shown($bad, 'attempts, last_error IS NULL'), '0|t', 'and all is forgiven');
is(sql("SELECT status FROM mlint.certificate_health() WHERE kind = 'certificate' AND name = 'bad'"), 'ok', 'and well');

$ca->fault('bad', 'order-new', 'problem', kind => 'malformed', times => 0);
my $never = ask('bad', 'never', 'auto_renew => false');
like(answer($node, "SELECT mlint.certificate_wait('$never', '$wait')"), qr/ML003: /, 'one that is not to be renewed fails');
is(shown($never, 'state, renew_at IS NULL'), 'FAILED|t', 'and is not tried again');
sql("SELECT mlint.certificate_renew('$bad')");
like(answer($node, "SELECT mlint.certificate_wait('$bad', '$wait')"), qr/ML003: .*certificate "bad" is ACTIVE: /, 'a renewal that fails is raised');
is(shown($bad, "state, attempts, renew_at > now()"), 'ACTIVE|1|t', 'and leaves what is active');
is(events($bad) =~ /issued failed$/ ? 1 : 0, 1, 'an event says so');
is(sql("SELECT status, why LIKE 'it could not be renewed: %' FROM mlint.certificate_health() WHERE kind = 'certificate' AND name = 'bad'"), 'warning|t', 'health warns');
sql("UPDATE mlint.certificate_version v SET not_after = now() + interval '20 minutes' FROM mlint.certificate c WHERE c.id = '$bad' AND v.id = c.version_id;
	UPDATE mlint.certificate SET attempts = 8, due_at = now() WHERE id = '$bad'; SELECT mlint.job_run_now('certificates')");
wait_for_sql($node, 'when the end is near', "SELECT attempts = 9 FROM mlint.certificates WHERE id = '$bad'");
is(shown($bad, "renew_at - last_error_at < '6.3 minutes'"), 't', 'it is tried again before');
sql("UPDATE mlint.certificate_version v SET not_after = now() - interval '1 s' FROM mlint.certificate c WHERE c.id = '$bad' AND v.id = c.version_id;
	UPDATE mlint.certificate SET due_at = now() WHERE id = '$bad'; SELECT mlint.job_run_now('certificates')");
wait_for_sql($node, 'a renewal that fails after the end', "SELECT attempts = 10 AND state = 'EXPIRED' FROM mlint.certificates WHERE id = '$bad'");
is(shown($bad, "renew_at - last_error_at < '1.3 hours'"), 't', 'is tried again within the hour');
$ca->clear('bad');
sql("SELECT mlint.certificate_renew('$bad')");
becomes($bad, 'what has expired can be renewed');

$ca->fault('bad', 'certificate', 'chain', which => 'names', times => 1);
my $wrong = ask('bad', 'wrong');
like(answer($node, "SELECT mlint.certificate_wait('$wrong', '$wait')"), qr/ML003: .*what the authority has issued cannot be used: the certificate is not for "wrong.example"/, 'what does not verify is not used');
is(sql("SELECT count(*) FROM mlint.certificate_history WHERE certificate_id = '$wrong'"), 0, 'nor kept');
is(sql("SELECT count(*) FROM mlint.secret_versions('certificates/wrong') WHERE destroyed_at IS NULL"), 0, 'nor its key');

# How long the server asks to be left alone counts.
$ca->account($node, 'busy');
$ca->fault('busy', 'order-new', 'problem', kind => 'rateLimited', status => 429, headers => { 'Retry-After' => '86000' }, times => 1);
my $busy = ask('busy', 'busy');
wait_for_sql($node, 'what an authority puts off', "SELECT o.next_at > now() + interval '23 hours' FROM mlint.acme_order o WHERE o.certificate_id = '$busy'");
is(sql("SELECT paused_until < now() + interval '16 minutes' FROM mlint.acme_accounts WHERE name = 'busy'"), 't', 'holds up the account for a moment only');
like(answer($node, "SELECT mlint.certificate_wait('$busy', '100 ms')"), qr/ML013: .*certificate "busy" is still ISSUING: .*rateLimited.*It goes on at /s, 'is waited for in vain, and who waits is told why');
sql("UPDATE mlint.acme_account SET not_before = '-infinity' WHERE name = 'busy'");
$ca->fault('busy', 'order-new', 'problem', kind => 'serverInternal', detail => 'out of order', headers => { 'Retry-After' => '3600' });
my $broken = ask('busy', 'broken');
wait_for_sql($node, 'an order that has failed', "SELECT attempts = 1 FROM mlint.certificate_orders WHERE certificate = 'broken'");
like(answer($node, "SELECT mlint.certificate_wait('$broken', '100 ms')"), qr/ML005: .*still ISSUING.*out of order/s, 'says why, too');

#
# The limits of an account
#

sql("SELECT mlint.acme_account_create('few', " . literal($ca->directory('few')) . ", 'admin\@example.com', ca => "
	  . literal(JSON::PP->new->encode({ file => $ca->root })) . ", max_orders => 4, max_orders_per => '1 hour')");
$ca->set('few', limit => 4, limit_s => 3600);
my @few = split /\n/, sql("SELECT mlint.certificate_issue(ARRAY['f' || i || '.example'], 'few') FROM generate_series(1, 6) i");
wait_for_sql($node, 'as many as the account allows', "SELECT count(*) = 4 FROM mlint.certificates WHERE account = 'few' AND state = 'ACTIVE'");
is(sql("SELECT orders_lately FROM mlint.acme_accounts WHERE name = 'few'"), 4, 'no more were ordered');
run_job('certificates');
wait_for_sql($node, 'a run goes by', "SELECT NOT running AND next_run_at > now() FROM mlint.jobs WHERE name = 'certificates'");
is(sql("SELECT count(*), bool_and(renew_at < now()) FROM mlint.certificates WHERE account = 'few' AND state = 'REQUESTED'"), '2|t', 'the others wait');
is($ca->counter('few', 'ordered'), 4, 'the authority was not asked');
is(sql("SELECT bool_and(why = 'its renewal waits for the limits of its account') FROM mlint.certificates c JOIN mlint.certificate_health() h ON h.certificate_id = c.id WHERE c.account = 'few' AND c.state = 'REQUESTED' AND h.status <> 'ok'"), '', 'which is well, for now');
# What is in use goes first.
sql("UPDATE mlint.certificate c SET due_at = now() FROM mlint.certificates v WHERE v.id = c.id AND v.account = 'few' AND v.state = 'ACTIVE' AND v.name = (SELECT min(name) FROM mlint.certificates WHERE account = 'few' AND state = 'ACTIVE')");
my $old = sql("SELECT id FROM mlint.certificates WHERE account = 'few' AND state = 'ACTIVE' AND renew_at <= now()");
$ca->set('few', limit => 5);
sql("UPDATE mlint.acme_account SET max_orders = 5 WHERE name = 'few'; SELECT mlint.job_run_now('certificates')");
wait_for_sql($node, 'when there is room for one, it is the renewal', "SELECT count(*) = 2 FROM mlint.certificate_history WHERE certificate_id = '$old'");
is(sql("SELECT count(*) FROM mlint.certificates WHERE account = 'few' AND state = 'REQUESTED'"), 2, 'and not what nobody has yet');
# Orders that are dropped count.
sql("SELECT mlint.certificate_drop('$old')");
is(sql("SELECT orders_lately FROM mlint.acme_accounts WHERE name = 'few'"), 5, 'what is dropped goes on counting');
# The window moves on.
$ca->set('few', limit => 100);
sql("UPDATE mlint.acme_order o SET ordered_at = ordered_at - interval '62 minutes' FROM mlint.acme_account a WHERE a.id = o.account_id AND a.name = 'few'; SELECT mlint.job_run_now('certificates')");
wait_for_sql($node, 'when the window has moved on, the rest is issued', "SELECT count(*) = 5 FROM mlint.certificates WHERE account = 'few' AND state = 'ACTIVE'");

#
# The authority's own idea of when
#

$ca->set('told', ari => JSON::PP::true);
$ca->account($node, 'told');
my $soon = ask('told', 'soon');
becomes($soon, 'where there is renewal information');
wait_for_sql($node, 'it is asked for', "SELECT suggested_from IS NOT NULL FROM mlint.certificate_history WHERE certificate_id = '$soon'");
is(sql("SELECT c.renew_at BETWEEN h.suggested_from AND h.suggested_until FROM mlint.certificates c JOIN mlint.certificate_history h ON h.certificate_id = c.id WHERE c.id = '$soon'"), 't', 'and what it suggests is done');
my $at = shown($soon, 'renew_at');
sql("UPDATE mlint.certificate SET ari_at = now() WHERE id = '$soon'; SELECT mlint.job_run_now('certificates')");
wait_for_sql($node, 'it is asked for again', "SELECT ari_at > now() + interval '5 hours' FROM mlint.certificate WHERE id = '$soon'");
is(shown($soon, 'renew_at'), $at, 'the moment stays while the window does');
# Tell it, of what is issued so far, that it should have been renewed.
sub late
{
	$ca->tell('/ari', { names => ['soon.example'], start => time - 7200, end => time - 3600 });
	sql("UPDATE mlint.certificate SET ari_at = now() WHERE id = '$soon'; SELECT mlint.job_run_now('certificates')");
	return;
}
late();
wait_for_sql($node, 'a window in the past means at once', "SELECT count(*) = 2 FROM mlint.certificate_history WHERE certificate_id = '$soon'");
late();
wait_for_sql($node, 'but not all the time', "SELECT ari_start < now() AND c.due_at > now() + interval '50 minutes' FROM mlint.certificate c JOIN mlint.certificate_version v ON v.id = c.version_id WHERE c.id = '$soon'");
is(scalar(grep { $_->{replaces} } $ca->orders('told')), 1, 'and the authority is told what is replaced');

#
# Revoked
#

my $gone = ask('main', 'gone');
becomes($gone, 'one to be revoked');
sql("SELECT mlint.certificate_revoke('$gone', 'cessationOfOperation')");
like(answer($node, "SELECT mlint.certificate_revoke('$gone')"), qr/55000: .*cannot be revoked: /, 'once');
becomes($gone, 'is', 'REVOKED');
is(events($gone), 'issued revoked', 'an event says so');
is(shown($gone, 'renew_at IS NULL'), 't', 'it is not renewed');
is(sql("SELECT status, why FROM mlint.certificate_health() WHERE kind = 'certificate' AND name = 'gone'"), 'critical|it was revoked', 'health says so');
is(sql("SELECT revoke_reason, revoked_at IS NOT NULL FROM mlint.certificate_history WHERE certificate_id = '$gone'"), 'cessationOfOperation|t', 'and history');
sql("SELECT mlint.certificate_renew('$gone')");
becomes($gone, 'unless that is asked for');
is(transitions($gone), 'ISSUING ISSUED ACTIVE REVOKED ISSUING ISSUED ACTIVE', 'as a new one');

my $stolen = ask('main', 'stolen', 'reuse_key => true');
becomes($stolen, 'one whose key is stolen');
my $first_key = public_key('stolen', 1);
sql("SELECT mlint.certificate_revoke('$stolen', 'keyCompromise')");
wait_for_sql($node, 'has a successor by itself', "SELECT state = 'ACTIVE' AND key_version = 2 FROM mlint.certificates WHERE id = '$stolen'");
wait_for_sql($node, 'and is revoked', "SELECT revoked_at IS NOT NULL FROM mlint.certificate_history WHERE certificate_id = '$stolen' AND NOT in_use");
isnt(public_key('stolen', 2), $first_key, 'its key is not used again');
job_rests($node, 'certificate_expiry');
$node->safe_psql('postgres', 'CALL mlint.certificate_expiry_run()');
is(sql("SELECT string_agg((destroyed_at IS NULL)::text, ' ' ORDER BY version) FROM mlint.secret_versions('certificates/stolen')"), 'false true', 'but destroyed');

#
# Targets that must have it first
#

my $pushed = ask('main', 'pushed');
becomes($pushed, 'one to be pushed');
append_to_file("$certs/blocked", 'in the way');
target($node, $pushed, 'file', { path => 'blocked', retry_delay_ms => 100, retry_max_delay_ms => 200 }, "'sync', 'blocked'");
my $serial = shown($pushed, 'serial');
sql("SELECT mlint.certificate_renew('$pushed')");
wait_for_sql($node, 'what cannot be pushed is issued', "SELECT state = 'ISSUED' AND last_error IS NOT NULL FROM mlint.certificates WHERE id = '$pushed'");
is(shown($pushed, "serial, next_serial IS NOT NULL, key_version"), "$serial|t|1", 'and not in use');
is(sql("SELECT version FROM mlint.secrets WHERE name = 'certificates/pushed'"), 1, 'nor is its key');
like(answer($node, "SELECT mlint.certificate_wait('$pushed', '$wait')"), qr/ML003: .*certificate "pushed" is ISSUED: /, 'who waits for it is told');
is(sql("SELECT status, why LIKE '%the next certificate was issued, and is not in use yet: %' FROM mlint.certificate_health() WHERE kind = 'certificate' AND name = 'pushed'"), 'warning|t', 'so does health');
is(events($pushed), 'issued failed', 'and an event, once');
unlink "$certs/blocked" or die;
wait_for_sql($node, 'when it can be, it is in use', "SELECT state = 'ACTIVE' AND key_version = 2 AND last_error IS NULL FROM mlint.certificates WHERE id = '$pushed'");
is(events($pushed), 'issued failed renewed', 'as an event says');
is(sql("SELECT version FROM mlint.secrets WHERE name = 'certificates/pushed'"), 2, 'and so is its key');

# One that waits has the key of what is in use, and that is in other hands.
my $leaked = ask('main', 'leaked', 'reuse_key => true');
becomes($leaked, 'one with a key that stays');
append_to_file("$certs/leaked", 'in the way');
target($node, $leaked, 'file', { path => 'leaked', retry_delay_ms => 100, retry_max_delay_ms => 200 }, "'sync', 'leaked'");
sql("SELECT mlint.certificate_renew('$leaked')");
wait_for_sql($node, 'its successor waits', "SELECT state = 'ISSUED' FROM mlint.certificates WHERE id = '$leaked'");
sql("SELECT mlint.certificate_revoke('$leaked', 'keyCompromise')");
unlink "$certs/leaked" or die;
wait_for_sql($node, 'is not used, but one with another key', "SELECT state = 'ACTIVE' AND key_version = 2 FROM mlint.certificates WHERE id = '$leaked'");
wait_for_sql($node, 'and both before it are revoked', "SELECT count(*) = 2 AND bool_and(activated_at IS NOT NULL = (version = (SELECT min(version) FROM mlint.certificate_history WHERE certificate_id = '$leaked'))) FROM mlint.certificate_history WHERE certificate_id = '$leaked' AND revoked_at IS NOT NULL AND key_version = 1");

#
# Waiting, dropping, lost orders
#

$ca->account($node, 'slow');
$ca->set('slow', issue_ms => 600000);
my $slow = ask('slow', 'slow');
wait_for_sql($node, 'an order takes its time', "SELECT state = 'processing' FROM mlint.certificate_orders WHERE certificate = 'slow'");
like(answer($node, "SELECT mlint.certificate_wait('$slow', '200 ms')"), qr/ML005: .*certificate "slow" is still ISSUING/, 'one who waits is told after a time');
like(answer($node, "SELECT mlint.certificate_renew('$slow')"), qr/55006: .*is being issued already/, 'it is not ordered twice');
my $repeatable = IPC::Run::start([ 'psql', '-XqAt', '-d', $node->connstr('postgres'), '-c', "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM mlint.certificates WHERE id = '$slow'; SELECT mlint.certificate_wait('$slow', '$wait')" ], '>', \my $out, '2>', \my $err);
wait_for_sql($node, 'somebody waits with an old snapshot', "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%REPEATABLE READ%' AND wait_event_type = 'Extension'");
sql("SELECT mlint.certificate_drop('$slow')");
$repeatable->finish;
like($err, qr/does not exist/, 'and sees what becomes of it');
is(sql("SELECT certificate_id IS NULL, state, finished_at IS NOT NULL FROM mlint.certificate_orders WHERE account = 'slow'"), 't|failed|t', 'an order of what was dropped is over');

# What a dump lacks.
sql("UPDATE mlint.certificate SET state = 'RENEWING', due_at = NULL WHERE id = '$id'");
job_rests($node, 'certificate_expiry');
$node->safe_psql('postgres', 'CALL mlint.certificate_expiry_run()');
wait_for_sql($node, 'a certificate whose order is lost is ordered again', "SELECT count(*) = 3 FROM mlint.certificate_history WHERE certificate_id = '$id'");

# An account that is closed.
sql("SELECT mlint.acme_account_deactivate('told')");
like(answer($node, "SELECT mlint.certificate_renew('$soon')"), qr/55000: .*its account was deactivated/, 'what is of a closed account is not renewed');
sql("UPDATE mlint.certificate SET due_at = now() WHERE id = '$soon'; SELECT mlint.job_run_now('certificates')");
wait_for_sql($node, 'nor by itself, which it says', "SELECT renew_at IS NULL AND state = 'ACTIVE' AND last_error = 'the account was deactivated' FROM mlint.certificates WHERE id = '$soon'");
is(sql("SELECT status FROM mlint.certificate_health() WHERE kind = 'account' AND name = 'told'"), 'critical', 'as health does');

# Orders are forgotten when they count no more; no job of solvers is needed for that.
sql("UPDATE mlint.job SET enabled = false WHERE name = 'certificate_challenges'");
sql("UPDATE mlint.acme_order SET ordered_at = ordered_at - interval '2 days', finished_at = finished_at - interval '2 days' WHERE finished_at IS NOT NULL");
job_rests($node, 'certificate_expiry');
$node->safe_psql('postgres', 'CALL mlint.certificate_expiry_run()');
is(sql("SELECT count(*) FILTER (WHERE state = 'issued'), count(*) FILTER (WHERE state = 'failed') > 0 FROM mlint.certificate_orders"), '0|t', 'orders that succeeded are forgotten first');
sql("UPDATE mlint.acme_order SET finished_at = finished_at - interval '90 days' WHERE finished_at IS NOT NULL");
job_rests($node, 'certificate_expiry');
$node->safe_psql('postgres', 'CALL mlint.certificate_expiry_run()');
is(sql("SELECT count(*) FROM mlint.certificate_orders WHERE finished_at IS NOT NULL"), 0, 'and then all');
is(sql("SELECT count(*) FROM mlint.acme_challenge WHERE order_id IS NULL"), 0, 'with what proved their names');

is(sql("SELECT count(*) FROM mlint.audit_log WHERE action = 'certificate.transition' AND outcome <> 'ok'"), 0, 'no transition was undone');

done_testing();
