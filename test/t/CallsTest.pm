# A call of every function and procedure of mlint, for tests that try all of
# them in some way. Who has no call here is found by calls_missing(), so that
# none is forgotten.
package CallsTest;

use strict;
use warnings;

use Exporter 'import';
use MlintTest;

our @EXPORT = qw(calls_setup calls calls_missing statement);

# Objects that the calls name, made by the given role. Returns their ids.
sub calls_setup
{
	my ($node, $db, $role) = @_;
	my %id;
	my $sql = sub
	{
		return $node->safe_psql($db, "SET ROLE $role; SET client_min_messages = error; $_[0]");
	};

	$sql->($_) for split /;\n/, <<'EOQ';
SELECT FROM mlint.secret_put('own/key', 'a value to keep');
SELECT FROM mlint.secret_put('own/turned', 'a value to turn');
SELECT FROM mlint.secret_put('own/host', 'mounted', 'api_key');
SELECT FROM mlint.secret_rotation_set('own/turned', '30 days');
SELECT FROM mlint.destination_create('hook', 'http', '{"url": "http://127.0.0.1:1/"}', '{never.*}', false);
SELECT FROM mlint.destination_create('slack', 'slack', '{"url": {"secret": "own/key"}}', '{never.*}', false);
SELECT FROM mlint.destination_create('discord', 'discord', '{"url": {"secret": "own/key"}}', '{never.*}', false);
SELECT FROM mlint.secret_backend_create('vault', 'vault', '{"url": "http://127.0.0.1:1", "auth": "token", "token": {"secret": "own/key"}, "timeout_ms": 500}');
SELECT FROM mlint.rate_backend_create('shared', 'redis', '{"hosts": "127.0.0.1:1", "timeout_ms": 200, "connect_timeout_ms": 200}');
SELECT FROM mlint.rate_rule_create('api', 'token_bucket', 1000, '1 s');
SELECT FROM mlint.rate_override_set('api', 'someone', 'allow');
SELECT FROM mlint.model_register('gpt-4', '0613', 'openai');
SELECT FROM mlint.session_register('talk', 'gpt-4', '0613', '{tag}', '{"user_id": "u"}');
SELECT FROM mlint.session_register('other', 'gpt-4', '0613');
SELECT FROM mlint.session_register('stored', 'gpt-4', '0613');
SELECT FROM mlint.session_register('stored too', 'gpt-4', '0613');
SELECT FROM mlint.usage_budget_set('all', 1000000);
SELECT FROM mlint.retention_policy_create('policy', 400);
SELECT FROM mlint.archive_store_create('store', 's3', '{"bucket": "b", "endpoint": "http://127.0.0.1:1", "access_key_id": "k", "secret_access_key": {"secret": "own/key"}}');
SELECT FROM mlint.acme_account_create('ca', 'https://127.0.0.1:1/directory', 'a@example.com');
SELECT FROM mlint.dns_provider_create('dns', 'cloudflare', '{"token": {"secret": "own/key"}, "endpoint": "http://127.0.0.1:1"}');
SELECT FROM mlint.secret_rule_create('own-rule', 'own-[0-9]+', '{own-}')
EOQ
	$id{event} = $sql->("SELECT mlint.send('hook', 'never.sent', '{}')");
	$id{prompt} = $sql->("SELECT mlint.prompt_add('talk', 'What is it?')");
	$id{response} = $sql->("SELECT mlint.response_add('$id{prompt}', 'It is.')");
	$id{archive} = $sql->("SELECT mlint.archive_session('stored')");
	$id{archive2} = $sql->("SELECT mlint.archive_session('stored too')");
	$id{policy} = $sql->("SELECT id FROM mlint.retention_policies WHERE name = 'policy'");
	$id{certificate} = $sql->("SELECT mlint.certificate_issue('{www.example.com}', 'ca', name => 'www')");
	$id{receipt} = $sql->("SELECT replace(mlint.erase_subject('user_id', 'nobody at all')::text, '''', '''''')");
	return \%id;
}

# [function, arguments by name, SQLSTATE that is as good as success]. What is
# created comes first, and what drops, last; each call works by itself too.
# Overloaded functions are told apart by the types of their arguments.
sub calls
{
	my ($id) = @_;
	my $none = '00000000-0000-0000-0000-000000000000';
	my $url = 'http://127.0.0.1:1';
	my $peer = 'ML004|ML005|ML006|ML009';

	return (
		# common, worker
		[ 'http', [ method => "'GET'", url => "'$url/'", headers => "'{\"X-A\": \"b\"}'", body => "'x'" ], $peer ],
		[ 'privileges_close', [] ],
		[ 'owner_scope_open', [] ],
		[ 'job_run_now', [ name => "'audit_retention'" ] ],
		[ 'job_begin', [ job_id => 1 ] ],
		[ 'job_begin_again', [ job_id => 1 ] ],
		[ 'job_end', [ job_id => 1, message => "'message'" ] ],
		[ 'worker_slots', [] ],
		[ 'job_off', [ job => "'rotation'" ] ],
		[ 'restore_lacks', [] ],
		[ 'restore_settle', [ accept => 'false' ] ],
		[ 'restore_accept', [], '55000|55006' ],
		# (What a dump reads is for whoever may read all tables.)
		[ 'dump_rows', [], '42501' ],
		# observe
		[ 'metric_label', [ name => "'n'", value => "'v'" ] ],
		[ 'metric_sample', [ name => "'n'", type => "'gauge'", labels => "'l'", value => "'1'" ] ],
		[ 'health', [] ],
		[ 'metrics', [] ],
		# delivery
		[ 'sql_lane_begin', [] ],
		[ 'lane_delivers', [ c => 'NULL', e => 'NULL', d => 'NULL' ] ],
		[ 'log_unread_since', [ c => 'NULL' ] ],
		[ 'destination_waiting', [ destination_id => 1, up_to => 10 ] ],
		[ 'webhook_id', [ e => 'NULL' ], '42501' ],
		[ 'dump_events', [], '42501' ],
		[ 'dump_deliveries', [], '42501' ],
		[ 'event_settle', [] ],
		[ 'segment_begin', [] ],
		[ 'segment_finished', [ segment => 1 ] ],
		[ 'event_retention_run', [] ],
		[ 'cursor_covers', [ c => 'NULL', xid => "'1'", id => 1 ] ],
		[ 'publish', [ event_type => "'a.b'", data => "'{\"a\": 1}'", metadata => "'{\"b\": 2}'", key => "'key'" ] ],
		[ 'send', [ destination => "'hook'", event_type => "'a.b'", data => "'{}'", key => "'other key'" ] ],
		[ 'event_wait', [ event_id => $id->{event}, timeout => "'1 ms'" ] ],
		[ 'destination_create', [ name => "'another'", driver => "'http'", options => "'{\"url\": \"$url\"}'", events => "'{never}'", enabled => 'false' ] ],
		[ 'destination_alter', [ name => "'another'", options => "'{\"timeout_ms\": 1000}'", events => "'{never.*}'" ] ],
		[ 'destination_test', [ name => "'another'" ] ],
		[ 'dead_letter_replay', [ destination => "'another'" ] ],
		[ 'delivery_retry', [ event_id => $id->{event}, destination => "'hook'" ] ],
		[ 'breaker_reset', [ destination => "'hook'" ] ],
		[ 'event_type_matches', [ patterns => "'{a.*}'", event_type => "'a.b'" ] ],
		[ 'driver_options', [] ],
		[ 'destination_expect', [ destination => "'hook'", driver => "'http'" ] ],
		[ 'message_text', [ value => "'v'", field => "'f'", service => "'s'", max => 5 ] ],
		[ 'slack_message', [ destination => "'slack'", text => "'t'", username => "'u'", icon_emoji => "':x:'" ] ],
		[ 'slack_alert', [ destination => "'slack'", title => "'t'", message => "'m'", severity => "'info'", fields => "'{\"a\": \"b\"}'" ] ],
		[ 'discord_message', [ destination => "'discord'", content => "'c'", username => "'u'", embeds => "'[{\"title\": \"t\"}]'" ] ],
		[ 'in_flight', [] ],
		[ 'destination_stats', [] ],
		[ 'webhook_sign', [ payload => "'p'", secret => "'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'", id => "'i'", signature => "'both'" ] ],
		[ 'webhook_verify', [ payload => "'p'", headers => "'{}'", secret => "'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'", signature => "'both'" ] ],
		[ 'destination_drop', [ name => "'another'" ] ],
		# audit
		[ 'audit_month_begin', [ month => 299912 ] ],
		[ 'audit_note', [ action => "'thing.done'", object_type => "'thing'", object => "'it'", details => "'{}'", kind => "'done'" ] ],
		[ 'audit_retention_run', [] ],
		[ 'audit_buffer', [] ],
		[ 'audit_verify', [] ],
		# secrets
		[ 'secret_privileges', [ name => "'own/key'" ] ],
		[ 'secret_put', [ name => "'own/new'", value => "'value'", type => "'api_key'", description => "'d'", metadata => "'{\"a\": 1}'", backend => "'local'" ] ],
		[ 'secret_put_bytes', [ name => "'own/new'", value => "'\\x00ff'", type => "'api_key'", description => "'d'", backend => "'local'" ] ],
		[ 'secret_get(text,integer,text)', [ name => "'own/key'", version => 1, backend => "'local'" ] ],
		[ 'secret_get(text,text,text)', [ name => "'own/key'", version => "'1'", backend => "'local'" ] ],
		[ 'secret_get_bytes(text,integer,text)', [ name => "'own/key'", version => 1, backend => "'local'" ] ],
		[ 'secret_get_bytes(text,text,text)', [ name => "'own/key'", version => "'1'", backend => "'local'" ] ],
		[ 'secret_versions', [ name => "'own/key'", backend => "'local'" ] ],
		[ 'secret_alter', [ name => "'own/new'", type => "'oauth_token'", description => "'e'", owner => "'mlint_admin'" ], '42501|22023' ],
		[ 'secret_grant', [ name_pattern => "'own/*'", role => "'mlint_admin'", privilege => "'read'" ] ],
		[ 'secret_revoke', [ name_pattern => "'own/*'", role => "'mlint_admin'", privilege => "'read'" ] ],
		[ 'master_keys', [] ],
		[ 'master_key_rotate', [] ],
		[ 'erasure_key_state', [] ],
		[ 'secret_rewrap', [ after_id => 0, batch => 10 ] ],
		[ 'data_key_rewrap', [ after_id => 0, batch => 10 ] ],
		[ 'secret_rewrap_all', [] ],
		[ 'data_key_erase', [] ],
		[ 'data_key_erase_all', [] ],
		[ 'secret_backend_create', [ name => "'vault2'", kind => "'vault'", options => "'{\"url\": \"$url\", \"auth\": \"token\", \"token\": {\"secret\": \"own/key\"}}'" ] ],
		[ 'secret_backend_alter', [ name => "'vault2'", options => "'{\"timeout_ms\": 500}'" ] ],
		[ 'secret_backend_test', [ name => "'vault2'" ], $peer ],
		[ 'secret_cache_drop', [ backend => "'vault2'" ] ],
		[ 'secret_backend_list', [ backend => "'vault2'", prefix => "'p'" ], $peer ],
		[ 'secret_list', [ backend => "'vault2'", prefix => "'p'" ], $peer ],
		[ 'secret_backend_options', [] ],
		[ 'secret_backend_state', [ backend => 1 ] ],
		[ 'secret_refresh', [] ],
		[ 'secret_backend_drop', [ name => "'vault2'" ] ],
		# rotation, mounts, scan
		[ 'secret_rotation_set', [ name => "'own/new'", every => "'30 days'" ] ],
		[ 'secret_rotate', [ name => "'own/turned'" ] ],
		[ 'secret_rotate_wait', [ name => "'own/turned'", timeout => "'5 s'" ], 'ML005|57014|55000' ],
		[ 'secret_rotation_run', [] ],
		[ 'secret_rotation_drop', [ name => "'own/new'", force => 'true' ] ],
		[ 'secret_mount_create', [ name => "'own/host'", path => "'mounted'", mode => "'0400'", format => "'raw'" ], '55000|42501|ML007' ],
		[ 'secret_mount_run', [] ],
		[ 'secret_mount_drop', [ path => "'mounted'" ], '42704|ML012|55000|ML007' ],
		[ 'secret_env', [ names => "'{own/key}'" ] ],
		[ 'secret_scan', [ content => "'AKIAIOSFODNN7EXAMPLE'", path => "'a/b.txt'" ] ],
		[ 'secret_scan_database', [] ],
		[ 'secret_rule_create', [ name => "'new-rule'", pattern => "'new-[0-9]+'", keywords => "'{new-}'", severity => "'low'", description => "'d'" ] ],
		[ 'secret_rule_enable', [ name => "'new-rule'", enabled => 'false' ] ],
		[ 'secret_rule_drop', [ name => "'new-rule'" ] ],
		[ 'secret_rule_builtin', [] ],
		# rate limits
		[ 'rate_rule_create', [ name => "'new'", algorithm => "'token_bucket'", rate => 5, per => "'1 s'", strategy => "'hard'", scope => "'custom'", backend => "'local'", mode => "'exact'", fail => "'local'", setting => 'NULL', description => "'d'" ] ],
		[ 'rate_rule_alter', [ name => "'new'", algorithm => "'fixed_window'", strategy => "'retry_after'", scope => "'custom'", backend => "'local'", mode => "'exact'", fail => "'open'", description => "'e'" ] ],
		[ 'rate_check', [ rule => "'api'", identifier => "'i'" ] ],
		[ 'rate_allow', [ rule => "'api'", identifier => "'i'" ] ],
		[ 'rate_peek', [ rule => "'api'", identifier => "'i'" ] ],
		[ 'rate_check_all', [ rules => "'{api,new}'", identifier => "'i'" ] ],
		[ 'rate_acquire', [ rule => "'api'", identifier => "'i'" ] ],
		[ 'rate_reset', [ rule => "'api'", identifier => "'i'" ] ],
		[ 'rate_override_set', [ rule => "'api'", identifier => "'i'", action => "'limit'", rate => 3, reason => "'r'" ] ],
		[ 'rate_override_drop', [ rule => "'api'", identifier => "'i'" ] ],
		[ 'rate_headers', [ decision => "'(t,1,2,,,,f,,api)'" ] ],
		[ 'rate_check_pre_request', [] ],
		[ 'rate_pre_request', [] ],
		[ 'rate_totals', [] ],
		[ 'rate_top', [ rule => "'api'" ] ],
		[ 'rate_backend_create', [ name => "'shared2'", kind => "'redis'", options => "'{\"hosts\": \"127.0.0.1:1\"}'" ] ],
		[ 'rate_backend_alter', [ name => "'shared2'", options => "'{\"timeout_ms\": 100}'" ] ],
		[ 'rate_backend_test', [ name => "'shared2'" ], $peer ],
		[ 'rate_backend_options', [] ],
		[ 'rate_backend_state', [ backend => 1 ] ],
		[ 'rate_lease_return', [] ],
		[ 'rate_backend_drop', [ name => "'shared2'" ] ],
		[ 'rate_rule_drop', [ name => "'new'" ] ],
		# sessions
		[ 'session_register', [ session_id => "'another'", model_id => "'gpt-4'", model_version => "'0613'", tags => "'{t}'", metadata => "'{\"a\": 1}'" ] ],
		[ 'session_get', [ session_id => "'talk'" ] ],
		[ 'session_list', [ status => "'active'", tag => "'tag'", model_id => "'gpt-4'" ] ],
		[ 'session_list_after', [ cursor => 'NULL', status => "'active'", tag => "'tag'", model_id => "'gpt-4'" ] ],
		[ 'session_cursor', [ session => 'NULL' ] ],
		[ 'session_count', [ status => "'active'", tag => "'tag'", model_id => "'gpt-4'", metadata => "'{}'" ] ],
		[ 'prompt_add', [ session_id => "'talk'", content => "'And then?'", metadata => "'{}'" ] ],
		[ 'response_add', [ prompt_id => "'$id->{prompt}'", content => "'So.'", usage => "'{\"prompt_tokens\": 1, \"completion_tokens\": 1}'", model_id => "'gpt-4'" ] ],
		[ 'tool_call_add', [ response_id => "'$id->{response}'", name => "'tool'", arguments => "'{}'", result => "'r'", error => "'e'" ] ],
		[ 'session_transcript', [ session_id => "'talk'" ] ],
		[ 'session_branches', [ session_id => "'talk'" ] ],
		[ 'session_words', [ content => "'some words'" ] ],
		[ 'session_snippet', [ content => "'some words'", query => "'word'" ] ],
		[ 'session_search', [ query => "'what'", session_id => "'talk'", kind => "'prompt'", tag => "'tag'", sort => "'rank'" ] ],
		[ 'session_set_status', [ session_id => "'another'", status => "'completed'" ] ],
		[ 'session_delete', [ session_id => "'another'" ] ],
		[ 'model_register', [ model_id => "'new'", version => "'1'", provider => "'p'", parameters => "'{}'", description => "'d'", capabilities => "'{c}'", tags => "'{t}'" ] ],
		[ 'model_get', [ model_id => "'new'", version => "'1'" ] ],
		[ 'model_list', [ provider => "'p'", capability => "'c'", tag => "'t'" ] ],
		[ 'model_deprecate', [ model_id => "'new'", version => "'1'", reason => "'r'", successor => "'gpt-4'" ] ],
		[ 'model_reinstate', [ model_id => "'new'", version => "'1'" ] ],
		# usage
		[ 'usage_track', [ session_id => "'talk'", prompt_tokens => 10, completion_tokens => 20, model_id => "'gpt-4'", custom => "'{\"cached\": 1}'" ] ],
		[ 'usage_log_open', [] ],
		[ 'usage_seen_by_all', [ xid => "'1'" ] ],
		[ 'usage_log_pending', [ log => 1 ] ],
		[ 'usage_period', [ per => "'month'", at => "'2026-01-01'" ] ],
		[ 'usage_span', [ '"from"' => "'2026-01-01'", '"to"' => "'2026-02-01'" ] ],
		[ 'usage_rest', [ of_scope => "'m'", of_name => "'gpt-4'" ] ],
		[ 'usage_report', [ of_scope => "'m'", of_name => "'gpt-4'", '"from"' => "'2026-01-01'", '"to"' => "'2027-01-01'" ] ],
		[ 'usage_fold_step', [] ],
		[ 'usage_log_turn', [ max_bytes => 100000 ] ],
		[ 'usage_fold_rest', [ busy => 'false' ] ],
		[ 'usage_fold_run', [ max_bytes => 100000 ] ],
		[ 'session_usage', [ session_id => "'talk'" ] ],
		[ 'model_usage', [ model_id => "'gpt-4'" ] ],
		[ 'model_price_set', [ model_id => "'gpt-4'", prompt => 1, completion => 2, currency => "'EUR'", model_version => "'0613'" ] ],
		[ 'usage_scope', [ scope => "'m'", name => "'gpt-4'" ] ],
		[ 'usage_budget_set', [ scope => "'model:gpt-4'", tokens => 1000000, currency => "'USD'", per => "'month'", action => "'refuse'" ] ],
		[ 'usage_budget_check', [ session_id => "'talk'" ] ],
		[ 'usage_budget_decision', [ session_id => "'talk'" ] ],
		[ 'usage_budget_state', [ b => 'NULL', at => "'2026-01-01'" ], '42883|22004|23502|22023' ],
		[ 'usage_budget_states', [] ],
		[ 'usage_budget_announce', [ hours => "'{2026-11-01}'", touched => "'{mgpt-4}'" ] ],
		[ 'usage_budget_drop', [ scope => "'model:gpt-4'", per => "'month'" ] ],
		# retention, archives
		[ 'retention_policy_create', [ name => "'new'", retention_days => 400, level => "'standard'", description => "'d'", match_tag => "'x'" ] ],
		[ 'retention_policy_alter', [ name => "'new'", retention_days => 500, level => "'standard'", description => "'e'", match_tag => "'y'" ] ],
		[ 'retention_policy_apply(uuid,text)', [ archive_id => "'$id->{archive}'", policy => "'policy'" ] ],
		[ 'retention_policy_apply(uuid,integer)', [ archive_id => "'$id->{archive}'", policy_id => $id->{policy} ] ],
		[ 'retention_report', [] ],
		[ 'archive_store_create', [ name => "'new'", kind => "'s3'", options => "'{\"bucket\": \"b\", \"endpoint\": \"$url\", \"access_key_id\": \"k\", \"secret_access_key\": {\"secret\": \"own/key\"}}'" ] ],
		[ 'archive_store_alter', [ name => "'new'", options => "'{\"timeout_ms\": 1000}'" ] ],
		[ 'archive_store_test', [ name => "'new'" ], $peer ],
		[ 'archive_store_options', [] ],
		[ 'archive_store_backlog', [ store => 1, active => 'true' ] ],
		[ 'archive_store_drop', [ name => "'new'" ], '2BP01' ],
		[ 'archive_session', [ session_id => "'other'", policy => "'policy'", tags => "'{t}'", metadata => "'{}'" ] ],
		[ 'archive_batch', [ session_ids => "'{other,nothing}'", policy => "'policy'", tags => "'{t}'" ] ],
		[ 'archive_list', [ policy => "'policy'", tag => "'t'", store => "'database'" ] ],
		[ 'archive_list_after', [ policy => "'policy'", tag => "'t'", store => "'database'" ] ],
		[ 'archive_get', [ id => "'$id->{archive}'" ] ],
		[ 'archive_document', [ id => "'$id->{archive}'" ] ],
		[ 'archive_verify', [ id => "'$id->{archive}'" ] ],
		[ 'archive_dictionary_train', [ samples => 10 ], '55000|22023|ML007|P0002|02000' ],
		[ 'archive_dictionary_drop', [ id => 1 ], '42704|ML012|55000|P0002' ],
		[ 'archival_set', [ compliance_level => "'standard'", enabled => 'false' ] ],
		[ 'archival_run', [], '55000' ],
		[ 'archival_wait', [ run => 1, timeout => "'1 ms'" ], '42704|55000|P0002' ],
		[ 'archival_work', [], '55006' ],
		[ 'archive_move_begin', [ after_at => "'-infinity'", after_id => "'$none'" ] ],
		[ 'archive_move_one', [ store => 1, archive => "'$none'" ], '55006' ],
		[ 'archive_move_all', [], '55006' ],
		[ 'archive_garbage_delete', [ after_id => 0 ], '55006' ],
		[ 'archive_hold(text,text)', [ target => "'talk'", reason => "'r'" ] ],
		[ 'archive_hold(uuid,text)', [ archive_id => "'$id->{archive}'", reason => "'r'" ] ],
		[ 'archive_release(text,text)', [ target => "'talk'", reason => "'r'" ] ],
		[ 'archive_release(uuid,text)', [ archive_id => "'$id->{archive}'", reason => "'r'" ], 'P0002|42704|55000' ],
		[ 'archive_release(bigint,text)', [ hold_id => 1, reason => "'r'" ], 'P0002|42704|55000' ],
		[ 'archive_expire', [] ],
		[ 'archive_restore', [ id => "'$id->{archive2}'" ] ],
		[ 'archive_delete', [ id => "'$id->{archive}'", reason => "'r'" ] ],
		[ 'retention_policy_drop', [ name => "'new'" ] ],
		[ 'erase_subject(text,text)', [ key => "'user_id'", value => "'nobody'" ] ],
		[ 'erase_subject(jsonb)', [ subject => "'{\"user_id\": \"nobody\"}'" ] ],
		[ 'erasure_receipt_verify', [ receipt => "'$id->{receipt}'" ] ],
		# certificates
		[ 'acme_account_create', [ name => "'ca2'", directory_url => "'https://127.0.0.1:1/directory'", email => "'b\@example.com'" ] ],
		[ 'acme_account_rollover', [ name => "'ca2'" ], '55000|ML002' ],
		[ 'acme_account_wait', [ name => "'ca2'", timeout => "'1 ms'" ], $peer ],
		[ 'acme_account_deactivate', [ name => "'ca2'" ], '55000' ],
		[ 'certificate_issue', [ domains => "'{a.example.com}'", account => "'ca'", challenge => "'http-01'", key_type => "'ec256'", name => "'new'" ] ],
		[ 'certificate_wait', [ id => "'$id->{certificate}'", timeout => "'1 ms'" ], $peer ],
		[ 'certificate_renew', [ id => "'$id->{certificate}'" ], '55000' ],
		[ 'certificate_revoke', [ id => "'$id->{certificate}'", reason => "'unspecified'" ], '55000' ],
		[ 'certificate_import', [ chain => "'x'", key => "'y'", name => "'imported'" ], 'ML007|22023|ML011|ML008' ],
		[ 'certificate_csr', [ domains => "'{b.example.com}'", key_type => "'ec256'", name => "'requested'" ] ],
		[ 'certificate_get', [ id => "'$id->{certificate}'" ], '55000' ],
		[ 'certificate_health', [] ],
		[ 'certificate_run', [], '25001|2D000' ],
		[ 'certificate_expiry_run', [] ],
		[ 'certificate_challenge_run', [] ],
		[ 'certificate_target_run', [] ],
		[ 'certificate_watch_run', [] ],
		[ 'dns_provider_create', [ name => "'dns2'", kind => "'cloudflare'", options => "'{\"token\": {\"secret\": \"own/key\"}, \"endpoint\": \"$url\"}'" ] ],
		[ 'dns_provider_alter', [ name => "'dns2'", options => "'{\"timeout_ms\": 500}'" ] ],
		[ 'dns_provider_test', [ name => "'dns2'", domain => "'example.com'" ], "$peer|ML001|ML007" ],
		[ 'dns_provider_options', [] ],
		[ 'dns_provider_drop', [ name => "'dns2'" ] ],
		[ 'certificate_target_create', [ certificate => "'$id->{certificate}'", kind => "'destination'", options => "'{\"destination\": \"hook\"}'", strategy => "'async'", name => "'target'" ] ],
		[ 'certificate_target_alter', [ certificate => "'$id->{certificate}'", name => "'target'", options => "'{\"timeout_ms\": 1000}'", strategy => "'async'" ] ],
		[ 'certificate_target_drop', [ certificate => "'$id->{certificate}'", name => "'target'" ] ],
		[ 'certificate_target_options', [] ],
		[ 'certificate_watch_create', [ certificate => "'$id->{certificate}'", host => "'127.0.0.1'", port => 1, protocol => "'tls'", server_name => "'www.example.com'" ] ],
		[ 'certificate_watch_drop', [ certificate => "'$id->{certificate}'", host => "'127.0.0.1'", port => 1 ] ],
		[ 'certificate_drop', [ id => "'$id->{certificate}'" ] ],
		# owned
		[ 'owned_reassign', [ role => 'NULL', new_role => 'current_user' ] ],
		# what others needed
		[ 'secret_destroy', [ name => "'own/new'", version => 1 ] ],
		[ 'secret_drop', [ name => "'own/new'", backend => "'local'" ] ],
	);
}

# Functions and procedures of mlint that have no call, but triggers and those
# that make a type's text, which nobody can call by name: a list.
sub calls_missing
{
	my ($node, $db) = @_;
	my %id = map { $_ => 0 } qw(event prompt response archive archive2 policy certificate receipt);
	my @have = map { $_->[0] } calls(\%id);
	my %have = map { $_ => 1 } @have;
	my @all = split /\n/, $node->safe_psql($db, <<'EOQ');
SELECT p.proname || CASE WHEN (SELECT count(*) FROM pg_proc o WHERE o.proname = p.proname
		AND o.pronamespace = p.pronamespace) > 1
	THEN '(' || replace(oidvectortypes(p.proargtypes), ' ', '') || ')' ELSE '' END
FROM pg_proc p WHERE p.pronamespace = 'mlint'::regnamespace
	AND p.prorettype <> 'trigger'::regtype
	AND 'cstring'::regtype <> ALL (p.proargtypes || p.prorettype) ORDER BY 1
EOQ
	my %all = map { $_ => 1 } @all;

	return ((map { "$_ has no call" } grep { !$have{$_} } @all),
		(map { "$_ does not exist" } grep { !$all{$_} } @have));
}

# The statement for a call; %replace has other values for some arguments.
sub statement
{
	my ($call, $procedures, %replace) = @_;
	my ($function, $arguments) = @$call;
	my @arguments = @$arguments;
	my @list;

	while (my ($name, $value) = splice @arguments, 0, 2)
	{
		push @list, "$name => " . (delete $replace{$name} // $value);
	}
	push @list, map { "$_ => $replace{$_}" } sort keys %replace;
	my ($name) = $function =~ /^(\w+)/;
	return "CALL mlint.$name(" . join(', ', @list) . ')' if $procedures->{$name};
	return "SELECT * FROM mlint.$name(" . join(', ', @list) . ')';
}

1;
