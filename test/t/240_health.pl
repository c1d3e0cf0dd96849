# mlint.health(): each thing that is broken turns its own row, and no other, and
# the row turns back: processes, receivers, keys, backends, files, settings. It
# works on a standby, without the library, and when tables are locked.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use File::Copy qw(copy move);
use IPC::Run ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use Test::More;

my $receiver = MlintTest::Receiver->start;
my $mounts = PostgreSQL::Test::Utils::tempdir('mounts');
my $keys = PostgreSQL::Test::Utils::tempdir('keys');
my $gateway = PostgreSQL::Test::Cluster::get_free_port();
my $redis = RedisTest->start;
# The keys lie outside of the data directory, so that one can go.
append_to_file("$keys/master", ('5a' x 32) . "\n");
chmod 0600, "$keys/master";
my $node = mlint_node('main', allows_streaming => 1, conf => <<"EOC");
mlint.master_key_file = '$keys/master'
mlint.erasure_key_file = '$keys/erasure'
mlint.secret_mount_directory = '$mounts'
mlint.gateway_listen = '127.0.0.1:$gateway'
mlint.rate_max_keys = 1000
EOC
my $data = $node->data_dir;

# All rows that are not ok, in one line.
my $unwell = q{SELECT coalesce(string_agg(name || ' ' || status || ': ' || why, E'\n'), 'all is well')
	FROM mlint.health() WHERE status <> 'ok'};

sub healthy
{
	my ($what, $on) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_sql($on // $node, $what, $unwell, 'all is well');
}

# Wait until exactly these are unwell: name => qr/status: why/.
sub unwell
{
	my ($what, %expected) = @_;
	my $last = '';
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $ok = wait_for(
		$what,
		sub {
			my (undef, $out) = eval { $node->psql('postgres', $unwell) };
			$last = $out // '';
			my %found = $last =~ /^(\w+) (.*)$/mg;
			return join(' ', sort keys %found) eq join(' ', sort keys %expected)
			  && !grep { $found{$_} !~ $expected{$_} } keys %expected;
		});
	diag("the last answer: $last") unless $ok;
	return $ok;
}

sub set
{
	my ($name, $value) = @_;
	$node->safe_psql('postgres', defined $value
		? "ALTER SYSTEM SET $name = " . literal($value) : "ALTER SYSTEM RESET $name");
	$node->reload;
	return;
}

healthy('all is well');

# ---- processes ----

# One that stands still does what it did last; only its work tells.
my $auditor = wait_for_worker($node, 'mlint auditor');
$node->safe_psql('postgres', q{SELECT mlint.secret_put('health/first', 'x')});
freeze($node, $auditor);
my $denied = $node->background_psql('postgres', on_error_stop => 0);
$denied->query_until(qr/begun/, "\\echo begun\nSELECT mlint.secret_put('health/one', 'x');\n");
unwell('an auditor that stands still',
	audit_buffer => qr/^warning: entries wait to be written to the audit log since /);
my $talker = $node->background_psql('postgres', on_error_stop => 0);
$talker->query_until(qr/begun/, "\\echo begun\nBEGIN;\nSELECT count(mlint.secret_put('health/many', 'x')) FROM generate_series(1, 5000);\nROLLBACK;\n");
unwell('... for which others have to wait',
	audit_buffer => qr/^(?:warning|critical): entries wait .*; the buffer before the audit log is nearly full/);
kill 'CONT', $auditor;
$_->quit for $denied, $talker;
healthy('... and goes on');

# Of what an older snapshot does not see nothing was removed.
is($node->safe_psql('postgres', <<'EOQ'), 'ok', 'a transaction that began before the last audit entry');
SET statement_timeout = '60s';
BEGIN ISOLATION LEVEL REPEATABLE READ;
DO $$
DECLARE
	seen bigint := (SELECT max(seq) FROM mlint.audit_entry);
BEGIN
	PERFORM mlint.audit_note('health.note', 'test', 'x', NULL, 'done');
	WHILE (SELECT last_value FROM mlint.audit_head) <= seen LOOP
		PERFORM pg_sleep(0.05);
	END LOOP;
END
$$;
SELECT status FROM mlint.health() WHERE name = 'audit_log';
EOQ

# Nobody starts another while the launcher stands still.
my $dispatcher = wait_for_worker($node, 'mlint dispatcher');
my $launcher = wait_for_worker($node, 'mlint launcher');
freeze($node, $launcher);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($dispatcher)");
unwell('a dispatcher that is gone', workers => qr/^critical: there is no dispatcher for lane 1$/);
kill 'CONT', $launcher;
healthy('... and is started again');
wait_for_worker($node, 'mlint dispatcher', undef, $dispatcher);

# A dispatcher that stands still: events are unread.
$dispatcher = wait_for_worker($node, 'mlint dispatcher');
freeze($node, $dispatcher);
$node->safe_psql('postgres', <<'EOQ');
SELECT mlint.publish('health.unread', '{}');
UPDATE mlint.event SET published_at = now() - '3 minutes'::interval WHERE type = 'health.unread';
EOQ
unwell('a log that is not read', event_log => qr/^warning: lane 1 has not read the log since /);
kill 'CONT', $dispatcher;
healthy('... and is read again');

# The gateway cannot listen where somebody else does.
my $taken = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 1) or die;
set('mlint.gateway_listen', '127.0.0.1:' . $taken->sockport);
unwell('a gateway that cannot listen', workers => qr/^critical: gateway: cannot listen at 127\.0\.0\.1/);
set('mlint.gateway_listen');
healthy('... and does again');

# ---- jobs ----

$node->safe_psql('postgres', <<'EOQ');
INSERT INTO mlint.job (name, command, every) VALUES ('health_test', 'SELECT * FROM health_ok', '1 hour');
SELECT mlint.job_run_now('health_test');
EOQ
unwell('a job that fails', jobs => qr/^warning: job health_test has failed .*: relation "health_ok" does not exist$/);
$node->safe_psql('postgres', q{UPDATE mlint.job SET command = 'SELECT pg_catalog.pg_sleep(1000)' WHERE name = 'health_test';
	SELECT mlint.job_run_now('health_test')});
# While it runs again, what it failed with before still counts.
wait_for_sql($node, 'it runs', q{SELECT running FROM mlint.jobs WHERE name = 'health_test'});
unwell('what failed before and runs again', jobs => qr/health_test has failed/);
$node->safe_psql('postgres', q{UPDATE mlint.job SET failures = 1 WHERE name = 'health_test'});
healthy('a job that runs has not failed');
$node->safe_psql('postgres', q{UPDATE mlint.job SET started_at = now() - '11 hours'::interval WHERE name = 'health_test'});
unwell('one that runs for too long', jobs => qr/^warning: job health_test runs since /);
$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM mlint.stat_workers WHERE kind = 'job'
	AND lane = (SELECT id FROM mlint.job WHERE name = 'health_test')});
unwell('one whose process died', jobs => qr/^warning: .*job health_test/);
$node->safe_psql('postgres', q{DELETE FROM mlint.job WHERE name = 'health_test'});
healthy('... and is gone');

# ---- delivery ----

create_destination($node, 'health.hook', 'http', { url => $receiver->url('/switch'),
	retry => { initial_delay_ms => 20, max_retries => 3, max_delay_ms => 50 },
	breaker => { threshold => 2, timeout_s => 1 } });
create_destination($node, 'health.gone', 'http', { url => $receiver->url('/status/410') });
$receiver->control('down');
publish($node, 'health.hook', { n => 1 });
unwell('a receiver that fails', destinations => qr/^warning: destination "health\.hook" fails, its breaker is (half-)?open: HTTP 503/);
$receiver->control('up');
healthy('... and is well again');
publish($node, 'health.gone', { n => 1 });
unwell('a receiver that is gone for good', destinations => qr/^critical: destination "health\.gone" was disabled: HTTP 410/,
	dead_letters => qr/^warning: .* \(1\), the last: HTTP 410/);
$node->safe_psql('postgres', q{SELECT mlint.destination_drop('health.gone')});
healthy('... and was dropped');
create_destination($node, 'health.dead', 'http', { url => $receiver->url('/status/400') });
deliver($node, 'health.dead', { n => 1 });
unwell('a delivery that was given up', dead_letters => qr/^warning: deliveries to destination "health\.dead" were given up in the last 24 hours \(1\), the last: HTTP 400/);
$node->safe_psql('postgres', q{SELECT mlint.destination_drop('health.dead')});
healthy('... and whose destination is gone');

# ---- secrets ----

$node->safe_psql('postgres', q{SELECT mlint.secret_put('health/key', 'x')});
move("$keys/master", "$keys/away");
unwell('no master key', master_key => qr/^critical: master key 1 is not to be had: /);
append_to_file("$keys/master", ('a5' x 32) . "\n");
chmod 0600, "$keys/master";
unwell('another master key', master_key => qr/^critical: master key 1 is not to be had: /);
unlike($node->safe_psql('postgres', $unwell), qr/5a5a|a5a5/, '... and no key is told');
copy("$keys/away", "$keys/master");
healthy('... and the right one');

# A key before, which is gone before all is sealed anew.
$node->safe_psql('postgres', q{UPDATE mlint.job SET command = 'SELECT 1' WHERE name = 'master_key_rewrap'});
unlink "$keys/master";
append_to_file("$keys/master", ('77' x 32) . "\n" . ('5a' x 32) . "\n");
chmod 0600, "$keys/master";
$node->safe_psql('postgres', 'SELECT mlint.master_key_rotate()');
healthy('two keys');
$node->safe_psql('postgres', q{UPDATE mlint.wrapping_key SET created_at = now() - '2 days'::interval});
unwell('all is not sealed anew in a day', master_key => qr/^warning: what master key 1 seals is not all sealed anew/);
unlink "$keys/master";
append_to_file("$keys/master", ('77' x 32) . "\n");
chmod 0600, "$keys/master";
unwell('the one before is gone', master_key => qr/^critical: master key 1, which is still needed, is not to be had/);
unlink "$keys/master";
append_to_file("$keys/master", ('77' x 32) . "\n" . ('5a' x 32) . "\n");
chmod 0600, "$keys/master";
$node->safe_psql('postgres', q{UPDATE mlint.job SET command = 'CALL mlint.secret_rewrap_all()' WHERE name = 'master_key_rewrap';
	SELECT mlint.job_run_now('master_key_rewrap')});
healthy('... and all is sealed anew');

# The erasure key file.
$node->safe_psql('postgres', <<'EOQ');
SELECT mlint.session_register('health', 'm');
SELECT mlint.archive_session('health');
EOQ
healthy('an archive');
move("$keys/erasure", "$keys/away");
unwell('no erasure key file', erasure_key => qr/^critical: the erasure key file is missing/);
move("$keys/away", "$keys/erasure");
healthy('... and there again');

# A backend that nobody answers for.
my $closed = PostgreSQL::Test::Cluster::get_free_port();
$node->safe_psql('postgres', qq{SELECT mlint.secret_backend_create('vault', 'vault',
	'{"url": "http://127.0.0.1:$closed", "token": {"secret": "health/key"}}')});
$node->psql('postgres', q{SELECT mlint.secret_backend_test('vault')});
unwell('a secret backend that failed', secret_backends => qr/^warning: secret backend "vault" failed at its last call: /);
$node->psql('postgres', q{SELECT mlint.secret_get('x', backend => 'vault')}) for 1 .. 6;
unwell('... and fails', secret_backends => qr/^critical: secret backend "vault" fails, its breaker is open: /);
$node->safe_psql('postgres', q{SELECT mlint.secret_backend_drop('vault')});
healthy('... and is gone');

# A file that cannot be written.
$node->safe_psql('postgres', qq{SELECT mlint.secret_mount_create('health/key', 'key')});
wait_for('the file is there', sub { -s "$mounts/key" });
healthy('a mount');
move("$mounts/key", "$mounts/moved");
mkdir "$mounts/key" or die;
$node->safe_psql('postgres', q{SELECT mlint.secret_put('health/key', 'y')});
unwell('a file that cannot be written', mounts => qr/^critical: files with secrets are not as they should be \(1\)/);
rmdir "$mounts/key" or die;
$node->safe_psql('postgres', q{SELECT mlint.job_run_now('secret_mounts')});
healthy('... and can be');

# ---- rate limits ----

my $port = $redis->port;
$node->safe_psql('postgres', qq{SELECT mlint.rate_backend_create('shared', 'redis',
	'{"hosts": "127.0.0.1:$port", "timeout_ms": 10000, "connect_timeout_ms": 10000, "breaker": {"threshold": 2, "timeout_s": 1}}');
	SELECT mlint.rate_rule_create('open', 'token_bucket', 10, '1 s', backend => 'shared', fail => 'open')});
$node->safe_psql('postgres', q{SELECT mlint.rate_allow('open', 'x')});
healthy('a rate backend');
$redis->down;
$node->safe_psql('postgres', q{SELECT mlint.rate_allow('open', 'x') FROM generate_series(1, 5)});
unwell('one that is away', rate_backends => qr/^warning: rate backend "shared" is away/);
$node->safe_psql('postgres', q{SELECT mlint.rate_rule_alter('open', fail => 'closed')});
unwell('... which a limit cannot do without', rate_backends => qr/^critical: rate backend "shared" is away/);
$redis->up;
wait_for_sql($node, 'it is back', q{SELECT mlint.rate_backend_test('shared') IS NOT NULL});
healthy('... is well again');

$node->safe_psql('postgres', q{SELECT mlint.rate_rule_create('many', 'token_bucket', 1, '1 hour');
	SELECT count(mlint.rate_allow('many', n::text)) FROM generate_series(1, 2000) n});
unwell('more identifiers than there is room for',
	rate_limits => qr/^warning: the table of rate limits is nearly full \(\d+ of 1000\), and \d+ decisions were on shared keys$/);
$node->safe_psql('postgres', q{SELECT mlint.rate_rule_drop('many')});
healthy('... and few');

# ---- usage ----

# A log of usage that has grown: as large as its file is.
my $file = "$data/" . $node->safe_psql('postgres', q{SELECT pg_relation_filepath('mlint.usage_log_2')});
my $size = -s $file;
truncate $file, 300 * 1024 * 1024 or die;
unwell('a log of usage that has grown', usage_fold => qr/^warning: the log of usage has grown to 300 MB/);
truncate $file, $size or die;
healthy('... and is small again');

# ---- settings ----

set('max_worker_processes', 25);
unwell('what needs a restart', settings => qr/^warning: max_worker_processes was changed, and takes effect with a restart$/);
set('max_worker_processes');
healthy('... and does not');
$node->append_conf('postgresql.conf', "mlint.dispatchers = many\n");
$node->reload;
unwell('a setting that cannot be', settings => qr/^warning: mlint\.dispatchers cannot be what the file says: setting could not be applied$/);
$node->append_conf('postgresql.conf', "mlint.dispatchers = 1\n");
$node->reload;
healthy('... and one that can');
set('mlint.master_key_command', "cat $keys/master");
unwell('two sources of keys', settings => qr/^warning: mlint\.master_key_file is set, and is not used/);
set('mlint.master_key_command');
set('mlint.job_workers', 30);
unwell('more workers than places', worker_processes => qr/^warning: mlint may need \d+ worker processes, others have \d+, and max_worker_processes is 24$/);
set('mlint.job_workers');
healthy('... and fewer');

# ---- what is locked keeps nobody waiting for long ----

my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE mlint.archival IN ACCESS EXCLUSIVE MODE');
is($node->safe_psql('postgres', q{SELECT status || ': ' || why FROM mlint.health() WHERE name = 'archival'}),
	'critical: it could not be looked at: canceling statement due to lock timeout', 'a table that is locked is a row');
like($node->safe_psql('postgres', 'SELECT mlint.metrics()'),
	qr/^mlint_metrics_failed\{database="postgres",source="archival"\} 1$/m, '... and a metric');
$locker->query_safe('ROLLBACK');
$locker->quit;
healthy('... until it is not');

# Who waits for it can stop waiting.
my ($rc, undef, $err) = $node->psql('postgres', <<'EOQ');
INSERT INTO mlint.health_check (room, name, on_standby, findings)
VALUES ('test', 'slow', true, 'SELECT 1, pg_sleep(1000)::text, ''x''');
SET statement_timeout = '200ms';
SELECT * FROM mlint.health();
EOQ
like($err, qr/canceling statement due to statement timeout/, 'a statement that is cancelled is cancelled');
$node->safe_psql('postgres', q{DELETE FROM mlint.health_check WHERE name = 'slow'});

# ---- a standby ----

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->append_conf('postgresql.conf', "mlint.gateway_listen = ''\n");
$standby->start;
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
healthy('all is well on a standby', $standby);
is($standby->safe_psql('postgres', q{SELECT string_agg(name, ' ' ORDER BY name) FROM mlint.health()
	WHERE why = 'not looked at on a standby'}), 'audit_buffer jobs restore secret_backends worker_processes workers',
	'what there is nothing to see of says so');
like($standby->safe_psql('postgres', 'SELECT mlint.metrics()'),
	qr/^mlint_destination_enabled\{database="postgres",destination="health\.hook"\} 1$/m, 'metrics of a standby');
unlike($standby->safe_psql('postgres', 'SELECT mlint.metrics()'), qr/^mlint_metrics_failed.* 1$/m, '... all of them');
move("$keys/master", "$keys/away");
wait_for_sql($standby, 'a standby tells that it could not take over',
	q{SELECT status FROM mlint.health() WHERE name = 'master_key'}, 'critical');
move("$keys/away", "$keys/master");
$standby->promote;
healthy('all is well when it is promoted', $standby);
$standby->stop;

# ---- without the library ----

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$node->restart;
is($node->safe_psql('postgres', 'SELECT name, status, why FROM mlint.health()'),
	'loaded|critical|mlint is not loaded: nothing is delivered, renewed or archived, and no function works',
	'without the library that is the one row');
like($node->safe_psql('postgres', 'SELECT mlint.metrics()'),
	qr/^mlint_health_status\{database="postgres",room="worker",check="loaded"\} 2$/m, '... and a metric');

$node->stop;
done_testing();
