# What each function and view of mlint does on a streaming standby: it works,
# or it says that this is for the primary. Nothing crashes, waits or fails from
# the depth. The list is held against the catalog: what is new must say which.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use TargetTest;
use Test::More;

# Calls by what comes of them. :session, :archive etc. are what there is on the
# primary (see below).
my %calls = (
	# Reads, decides or computes.
	works => <<'EOC',
webhook_id((SELECT e FROM mlint.event e LIMIT 1))
lane_delivers((SELECT c FROM mlint.log_cursor c LIMIT 1), (SELECT e FROM mlint.event e LIMIT 1), (SELECT d FROM mlint.destination d LIMIT 1))
dump_deliveries()
dump_events()
health()
metrics()
dump_rows()
secret_rotate_wait('rotated', '1 s')
archival_wait(:run, '1 s')
certificate_wait(:certificate, '1 s')
worker_slots()
event_wait(:event, '1 ms')
event_type_matches('{*}', 'a')
driver_options()
cursor_covers((SELECT c FROM mlint.log_cursor c LIMIT 1), '1', 1)
destination_expect('out', 'notify')
message_text('a', 'b', 'c', 10)
in_flight()
lane_delivers((SELECT c FROM mlint.log_cursor c LIMIT 1), (SELECT e FROM mlint.event e LIMIT 1), (SELECT d FROM mlint.destination d LIMIT 1))
webhook_id((SELECT e FROM mlint.event e LIMIT 1))
dump_deliveries()
dump_events()
dump_rows()
destination_stats()
webhook_sign('a', 'b', 'c')
webhook_verify('a', '{}', 'b')
audit_verify()
secret_privileges('key')
secret_versions('key')
master_keys()
health()
metrics()
erasure_key_state()
secret_backend_options()
secret_backend_state(1)
secret_scan('password = "hunter2hunter2"')
secret_rule_builtin()
rate_check('rule', 'x')
rate_allow('rule', 'x')
rate_peek('rule', 'x')
rate_check_all('{rule}', 'x')
rate_acquire('rule', 'x', 1, '1 s')
rate_headers(mlint.rate_check('rule', 'x'))
rate_check_pre_request()
rate_pre_request()
rate_totals()
rate_top('rule', 1)
rate_backend_options()
rate_backend_state(1)
session_get('session')
session_list()
session_list_after()
session_cursor((SELECT s FROM mlint.sessions s LIMIT 1))
session_count()
session_transcript('session')
session_branches('session')
session_search('hello')
model_get('model')
model_list()
usage_rest('m', 'model')
session_usage('session')
model_usage('model')
usage_scope('m', 'model')
usage_budget_check('session')
usage_budget_decision('session')
usage_budget_states()
archive_store_options()
archive_list()
archive_list_after()
archive_get(:archive)
archive_document(:archive)
archive_verify(:archive)
retention_report()
erasure_receipt_verify(:receipt)
dns_provider_options()
certificate_target_options()
certificate_get(:certificate)
certificate_health()
EOC

	# Works, too: what is asked for is not to be had.
	answers => <<'EOC',
http('GET', 'http://127.0.0.1:1/')
acme_account_wait('ca', '1 ms')
EOC

	# Is entered into the audit log, which cannot be written there.
	audited => <<'EOC',
dns_provider_test('dns', 'example.com')
archive_store_test('store')
rate_backend_test('redis')
rate_reset('rule', 'x')
destination_test('out')
secret_cache_drop('env')
secret_backend_list('env', '*')
secret_backend_test('env')
secret_env('{key}')
secret_scan_database()
secret_list('key')
secret_get_bytes('key')
secret_get_bytes('key', 1)
secret_get_bytes('key', '1'::text, 'local')
secret_get('key')
secret_get('key', 1)
secret_get('key', '1'::text, 'local')
EOC

	# Changes what is in tables.
	refused => <<'EOC',
owned_reassign('postgres', 'mlint_admin')
restore_accept()
job_run_now('event_retention')
restore_accept()
publish('a', '{}')
send('out', 'a', '{}')
destination_create('another', 'notify')
destination_alter('out', '{}')
destination_drop('out')
dead_letter_replay()
delivery_retry(:event, 'out')
breaker_reset('out')
slack_message('slack', 'text')
slack_alert('slack', 'title', 'text')
discord_message('discord', 'text')
secret_put('key', 'value')
secret_put_bytes('key', 'value')
secret_destroy('key', 1)
secret_drop('key')
secret_alter('key', description => 'x')
secret_grant('key', 'mlint_user', 'read')
secret_revoke('key', 'mlint_user', 'read')
master_key_rotate()
secret_backend_create('another', 'env')
secret_backend_alter('env', '{}')
secret_backend_drop('env')
secret_rotation_set('key', '1 day')
secret_rotation_drop('rotated')
secret_rotate('rotated')
secret_mount_create('key', 'file')
secret_mount_drop('file')
secret_rule_create('another', 'abc[0-9]{20}', '{abc}')
secret_rule_drop('rule')
secret_rule_enable('rule', false)
rate_rule_create('another', 'token_bucket', 1, '1 s')
rate_rule_alter('rule', rate => 2)
rate_rule_drop('rule')
rate_override_set('rule', 'x', 'allow')
rate_override_drop('rule', 'x')
rate_backend_create('another', 'redis', '{"hosts": "127.0.0.1:1"}')
rate_backend_alter('redis', '{}')
rate_backend_drop('redis')
session_register('another', 'model')
session_set_status('session', 'completed')
session_delete('session')
prompt_add('session', 'hello')
response_add(:prompt, 'hello')
tool_call_add(:response, 'tool')
model_register('another', '1')
model_deprecate('model', '1')
model_reinstate('model', '1')
usage_track('session', 1, 1)
model_price_set('model', 1, 1)
usage_budget_set('all', 1)
usage_budget_drop('all')
retention_policy_create('another', 365)
retention_policy_alter('policy', 366)
retention_policy_drop('policy')
archive_store_create('another', 'file')
archive_store_alter('store', '{}')
archive_store_drop('store')
archive_session('session')
archive_batch('{session}')
archive_restore(:archive)
archive_delete(:archive)
archive_dictionary_train()
archive_dictionary_drop(1)
archival_set()
archival_run()
archive_hold('session', 'x')
archive_hold(:archive, 'x')
archive_release('session', 'x')
archive_release(:archive, 'x')
archive_release(1::bigint, 'x')
retention_policy_apply(:archive, 'policy')
retention_policy_apply(:archive, 1)
erase_subject('a', 'b')
erase_subject('{"a": "b"}')
acme_account_create('another', 'https://127.0.0.1:1/dir', 'a@example.com')
acme_account_rollover('ca')
acme_account_deactivate('ca')
certificate_issue('{a.example}', 'ca')
certificate_renew(:certificate)
certificate_revoke(:certificate)
certificate_import('a', 'b')
certificate_csr('{a.example}')
certificate_drop(:certificate)
dns_provider_create('another', 'rfc2136', '{"server": "127.0.0.1:1", "key_name": "a", "key": {"secret": "key"}}')
dns_provider_alter('dns', '{}')
dns_provider_drop('dns')
certificate_target_create(:certificate, 'destination', '{"destination": "out"}')
certificate_target_alter(:certificate, 'target', '{}')
certificate_target_drop(:certificate, 'target')
certificate_watch_create(:certificate, '127.0.0.1', 1)
certificate_watch_drop(:certificate, '127.0.0.1', 1)
EOC
);

# What those that do not work say, in the name of the function that was called
# or of one that it calls.
my %says = (
	answers => qr/^ML00[45]: .*Connection refused/s,
	audited => qr/^ML012: "[a-z_.]+" is possible only on the primary server, because the audit log cannot be written here/,
	refused => qr/^25006: cannot execute mlint\.\w+\(\) during recovery\nHINT:  This server is a standby: call it on the primary/);

my $keys = PostgreSQL::Test::Utils::tempdir();
mkdir "$keys/store" or die $!;
mkdir "$keys/certificates" or die $!;
append_to_file("$keys/master.key", ('0123456789abcdef' x 4) . "\n");
chmod 0600, "$keys/master.key" or die $!;
my $primary = mlint_node('primary', allows_streaming => 1, conf => <<"EOC");
mlint.master_key_file = '$keys/master.key'
mlint.erasure_key_file = '$keys/erasure.key'
mlint.archive_directory = '$keys/store'
mlint.certificate_directory = '$keys/certificates'
wal_receiver_status_interval = 1s
hot_standby_feedback = on
EOC
sub sql { return $primary->safe_psql('postgres', $_[0]); }

# ---- what there is ----

TargetTest::authority();
my %is;
($is{certificate}) = install($primary, 'www');
create_destination($primary, 'out', 'notify', { channel => 'out' }, 'a');
sql("SELECT mlint.secret_put('key', 'http://127.0.0.1:1/')");
create_destination($primary, $_, $_, { url => { secret => 'key' } }, 'none') for 'slack', 'discord';
$is{event} = deliver($primary, 'a', {});
sql(<<'EOQ');
SET client_min_messages = error;
SELECT mlint.secret_put('rotated', 'value');
SELECT mlint.secret_rotation_set('rotated', '30 days');
SELECT mlint.secret_backend_create('env', 'env');
SELECT mlint.secret_rule_create('rule', 'abc[0-9]{20}', '{abc}');
SELECT mlint.rate_rule_create('rule', 'token_bucket', 1000, '1 s');
SELECT mlint.rate_override_set('rule', 'y', 'allow');
SELECT mlint.rate_backend_create('redis', 'redis', '{"hosts": "127.0.0.1:1"}');
SELECT mlint.session_register('session', 'model');
SELECT mlint.model_register('model', '1');
SELECT mlint.usage_budget_set('all', 1000000);
SELECT mlint.retention_policy_create('policy', 365);
SELECT mlint.archive_store_create('store', 'file');
SELECT mlint.acme_account_create('ca', 'https://127.0.0.1:1/dir', 'a@example.com');
SELECT mlint.dns_provider_create('dns', 'rfc2136', '{"server": "127.0.0.1:1", "key_name": "a", "key": {"secret": "key"}}');
SELECT mlint.session_register('archived', 'model', metadata => '{"who": "me"}');
SELECT mlint.prompt_add('archived', 'hello');
EOQ
sql("SELECT mlint.certificate_target_create('$is{certificate}', 'destination', '{\"destination\": \"out\"}', name => 'target')");
sql("SELECT mlint.certificate_watch_create('$is{certificate}', '127.0.0.1', 1)");
$is{prompt} = sql("SELECT mlint.prompt_add('session', 'hello')");
$is{response} = sql("SELECT mlint.response_add('$is{prompt}', 'hello')");
sql("SELECT mlint.usage_track('session', 1, 1, 'model')");
$is{archive} = sql("SELECT mlint.archive_session('archived')");
$is{receipt} = sql("SELECT mlint.erase_subject('who', 'nobody')");

sql('SELECT mlint.archival_set(enabled => false)');
$is{run} = sql('SELECT mlint.archival_run()');
sql("SELECT mlint.archival_wait($is{run}, '60 s')");

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

# ---- every function ----

# SQLSTATE and message of what a statement comes to there; '' if it works.
sub error_of
{
	my ($node, $statement) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\nSET statement_timeout = '10s';\n$statement",
		on_error_stop => 1, timeout => 60);
	return '' if $rc == 0;
	return $err =~ /ERROR:  (.*?)\nLOCATION/s ? $1 : "psql: $rc $err";
}

my %overloads = map { split /\|/ } split /\n/, sql(<<'EOQ');
SELECT proname, count(*) FROM pg_proc p
WHERE pronamespace = 'mlint'::regnamespace AND prorettype <> 'trigger'::regtype
	AND EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee <> p.proowner)
GROUP BY 1
EOQ
my %seen;
for my $kind (sort keys %calls)
{
	for my $call (split /\n/, $calls{$kind})
	{
		my ($name) = $call =~ /^(\w+)\(/ or die $call;
		$seen{$name}++;
		$call =~ s/:(\w+)/exists $is{$1} ? literal($is{$1}) : ":$1"/ge;
		my $error = error_of($standby, "SELECT * FROM mlint.$call");
		if ($kind eq 'works')
		{
			is($error, '', "$name works");
		}
		else
		{
			like($error, $says{$kind}, "$name: $kind");
		}
	}
}
is_deeply([ grep { ($seen{$_} // 0) < $overloads{$_} } sort keys %overloads ], [], 'each function is in the list');
is_deeply([ grep { !$overloads{$_} } sort keys %seen ], [], '... and nothing else');

# ---- every view ----

for my $view (split /\n/, sql("SELECT relname FROM pg_class WHERE relnamespace = 'mlint'::regnamespace AND relkind = 'v' ORDER BY 1"))
{
	is(error_of($standby, "SELECT * FROM mlint.$view"), '', "$view can be read");
}

# ---- what only the workers call ----

for my $call (split /\n/, sql(<<'EOQ'))
SELECT CASE p.prokind WHEN 'p' THEN 'CALL ' ELSE 'SELECT ' END || p.oid::regprocedure FROM pg_proc p
WHERE pronamespace = 'mlint'::regnamespace AND prorettype <> 'trigger'::regtype AND pronargs = pronargdefaults
	AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee <> p.proowner)
EOQ
{
	like(error_of($standby, $call =~ s/\(.*/()/r), qr/^($|25006|ML012)/, "$call: no surprise");
}
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'mlint%'"), '0', 'no worker runs there');

# ---- another standby behind it, with other settings ----

my $behind = PostgreSQL::Test::Cluster->new('behind');
$behind->init_from_backup($primary, 'backup');
$behind->enable_streaming($standby);
$behind->append_conf('postgresql.conf', <<'EOC');
hot_standby_feedback = off
mlint.dispatchers = 4
mlint.rate_max_keys = 1000
mlint.gateway_listen = '127.0.0.1:1'
mlint.erasure_key_file = 'nowhere'
EOC
$behind->start;
my $event = deliver($primary, 'a', {});
sql('SELECT txid_current()');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
$standby->wait_for_catchup($behind, 'replay', $standby->lsn('replay'));
is($behind->safe_psql('postgres', "SELECT state FROM mlint.deliveries WHERE event_id = $event"), 'delivered', 'a cascading standby shows what the primary does');
is($behind->safe_psql('postgres', "SELECT mlint.rate_allow('rule', 'x')"), 't', '... decides');
like(error_of($behind, "SELECT mlint.publish('a', '{}')"), $says{refused}, '... refuses');
like(error_of($behind, 'SELECT mlint.archive_document(' . literal($is{archive}) . ')'), qr/^ML010: the erasure key file is missing/, '... says that the erasure key file is missing');
is($behind->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'mlint%'"), '0', '... and runs no worker');

# ---- without the library ----

$behind->append_conf('postgresql.conf', join '', map { "$_\n" }
	"shared_preload_libraries = ''");
$behind->restart;
for my $call ("mlint.publish('a', '{}')", "mlint.rate_allow('rule', 'x')", 'mlint.worker_slots()')
{
	like(error_of($behind, "SELECT $call"), qr/^55000: mlint must be loaded when the server starts.*HINT:  Add mlint to shared_preload_libraries/s,
		"$call without the library");
}
is($behind->safe_psql('postgres', "SELECT count(*) FROM mlint.events WHERE id = $event"), '1', 'what is in tables can be read all the same');

# ---- a read-only transaction on the primary ----

like(error_of($primary, "SET default_transaction_read_only = on; SELECT mlint.destination_drop('out')"),
	qr/^25006: cannot execute mlint\.destination_drop\(\) in a read-only transaction/, 'a read-only transaction');

done_testing();
