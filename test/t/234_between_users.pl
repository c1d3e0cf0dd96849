# What two members of mlint_user and a mlint_reader can learn of each other's.
# Secrets, payloads, sessions and what is said of them stay with whom they are
# for: no view, no error, no plan, no statistics, no counter and no activity of
# the server tells more than docs/security.md says.

use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mlint_node('between', conf => <<'EOC');
shared_preload_libraries = 'mlint, pg_stat_statements'
pg_stat_statements.track = all
log_statement = none
log_min_error_statement = error
track_functions = all
fsync = off
EOC

# A word that is nowhere unless it leaks.
my $secret = 'hunter2-the-value';
my $payload = 'hunter3-the-payload';
my $said = 'hunter4-what-was-said';
my $named = 'alice/hunter5-the-name';
my $tagged = 'hunter6-the-metadata';
my $limited = 'hunter7-the-identifier';

$node->safe_psql('postgres', $_) for split /;\n/, <<'EOQ';
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
CREATE ROLE alice LOGIN IN ROLE mlint_user;
CREATE ROLE bob LOGIN IN ROLE mlint_user;
CREATE ROLE rita LOGIN IN ROLE mlint_reader;
CREATE ROLE ada LOGIN IN ROLE mlint_admin;
CREATE ROLE nobody LOGIN;
GRANT CREATE ON SCHEMA public TO bob, rita
EOQ
sub by
{
	my ($role, $sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', $sql, on_error_stop => 1,
		extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);
	return $rc == 0 ? $out : $err;
}
sub refused
{
	my ($role, $sql, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $got = by($role, $sql);
	like($got, qr/ERROR:  (42501|0A000|42704)/, "$role: $what is refused");
	return unlike($got, qr/hunter/, '... and says nothing');
}
sub without
{
	my ($role, $sql, $what, $like) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $got = by($role, $sql);
	unlike($got, qr/hunter|Alice said/, "$role: $what tells nothing") or diag $got;
	return defined $like ? like($got, $like, '... and is there') : 1;
}

# ---- alice's ----
my $literal = literal($secret);
by('ada', "SELECT mlint.model_register('gpt', '1'); SELECT mlint.secret_grant('alice/*', 'alice', 'write')");
is(by('alice', "SELECT mlint.secret_put('$named', $literal, description => '$tagged', metadata => '{\"a\": \"$tagged\"}')"), 1, 'alice has a secret');
by('alice', "SELECT mlint.secret_put('$named', 'hunter2-another', 'api_key')");
by('alice', "SELECT mlint.secret_rotation_set('$named', '30 days')");
my $event = by('alice', "SELECT mlint.publish('thing.done', '{\"said\": \"$payload\"}', '{\"m\": \"$payload\"}', key => '$payload')");
by('alice', "SELECT FROM mlint.session_register('alice-1', 'gpt', '1', '{tag}', '{\"user_id\": \"$tagged\"}')");
my $prompt = by('alice', "SELECT mlint.prompt_add('alice-1', '$said')");
by('alice', "SELECT mlint.response_add('$prompt', '$said', '{\"prompt_tokens\": 3, \"completion_tokens\": 4}')");
by('alice', "SELECT FROM mlint.session_register('alice-2', 'gpt', '1', '{tag}', '{\"user_id\": \"$tagged\"}'); SELECT mlint.prompt_add('alice-2', '$said')");
my $archive = by('alice', "SELECT mlint.archive_session('alice-2', metadata => '{\"x\": \"$tagged\"}')");
by('ada', "SELECT mlint.rate_rule_create('api', 'token_bucket', 100, '1 hour')");
by('alice', "SELECT mlint.rate_check('api', '$limited')");
by('ada', "SELECT mlint.secret_put('ada/key', 'hunter8-the-key'); SELECT mlint.destination_create('hook', 'http', '{\"url\": \"http://127.0.0.1:1/\", \"auth\": {\"type\": \"bearer\", \"token\": {\"secret\": \"ada/key\"}}, \"retry\": {\"max_retries\": 0}}', '{thing.*}')");
$node->safe_psql('postgres', 'ANALYZE; CHECKPOINT');

# ---- secrets ----
foreach my $role ('bob')
{
	my @calls = ("mlint.secret_get(%s)", "mlint.secret_get_bytes(%s)", "mlint.secret_versions(%s)", "mlint.secret_drop(%s)",
		"mlint.secret_destroy(%s, 1)", "mlint.secret_alter(%s, description => 'x')", "mlint.secret_grant(%s, 'bob', 'read')",
		"mlint.secret_revoke(%s, 'alice', 'read')", "mlint.secret_rotate(%s)", "mlint.secret_rotation_drop(%s)",
		"mlint.secret_rotation_set(%s, '1 day')", "mlint.secret_rotate_wait(%s, '1 ms')", "mlint.secret_env(ARRAY[%s])",
		"mlint.secret_get(%s, 99)");
	foreach my $call (@calls)
	{
		# A name that is there and one that is not: one answer.
		my $there = by($role, 'SELECT ' . sprintf($call, "'$named'")) =~ s/\Q$named\E/NAME/gr;
		my $absent = by($role, 'SELECT ' . sprintf($call, "'alice/nothing'")) =~ s/alice\/nothing/NAME/gr;
		like($there, qr/ERROR:  /, "$role may not: " . sprintf($call, 'a secret'));
		is($there =~ s/^LOCATION.*//mr, $absent =~ s/^LOCATION.*//mr, '... and is told nothing of whether there is one');
	}
	is(by($role, "SELECT count(*) FROM mlint.secrets WHERE name = '$named'"), 0, '... nor by the view');
	is(by($role, "SELECT mlint.secret_privileges('$named') = mlint.secret_privileges('alice/nothing')"), 't', '... nor by asking for privileges');
}
foreach my $role ('bob', 'rita')
{
	for my $view (qw(secrets secret_grants rotations secret_public_keys))
	{
		without($role, "SELECT * FROM mlint.$view", "mlint.$view");
		my $name = { secrets => 'name', secret_grants => 'pattern', rotations => 'name', secret_public_keys => 'name' }->{$view};
		# A condition that would tell sees only what may be seen; one on a column
		# alone could be asked of the table beneath.
		without($role, "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.000001 AS \$\$ BEGIN IF \$1 LIKE '%hunter%' THEN RAISE 'saw %', \$1; END IF; RETURN true; END \$\$;"
			  . "SELECT * FROM mlint.$view v WHERE pg_temp.leak(v.$name) AND pg_temp.leak(v::text) AND pg_temp.leak(to_jsonb(v)::text)", '... with a leaky condition');
		without($role, "SELECT 1 / (length(v::text) - 1) FROM mlint.$view v WHERE v.$name LIKE '%hunter%' AND v::text LIKE '%hunter%'", '... with one that fails');
		my $plan = sub { by($role, "SET enable_seqscan = off; EXPLAIN (ANALYZE, VERBOSE, BUFFERS OFF, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM mlint.$view WHERE $name = '$_[0]'") =~ s/\Q$_[0]\E/NAME/gr };
		is($plan->($named), $plan->('alice/nothing'), "$role: EXPLAIN ANALYZE of mlint.$view is the same for a name that is there");
		$plan = sub { by($role, "EXPLAIN SELECT * FROM mlint.$view WHERE $name = '$_[0]'") =~ s/\Q$_[0]\E/NAME/gr };
		is($plan->($named), $plan->('alice/nothing'), '... and its estimates');
	}
}
refused('rita', "SELECT mlint.secret_get('x')", 'a secret');
refused('rita', "SELECT mlint.secret_env('{x}')", 'a secret\'s text');

# ---- tables, sequences, statistics, sizes, the storage ----
my @tables = split /\n/, $node->safe_psql('postgres',
	"SELECT oid::regclass FROM pg_class WHERE relnamespace = 'mlint'::regnamespace AND relkind IN ('r', 'p')");
my @sequences = split /\n/, $node->safe_psql('postgres',
	"SELECT oid::regclass FROM pg_class WHERE relnamespace = 'mlint'::regnamespace AND relkind = 'S'");
foreach my $role ('alice', 'bob', 'rita', 'ada', 'nobody')
{
	my $open = join ' ', grep { by($role, "SELECT * FROM $_ LIMIT 0") !~ /42501/ } @tables[0 .. 5];
	is($open, '', "$role reads no table of ours");
	is(by($role, "SELECT count(*) FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'mlint') AND relkind IN ('r', 'p', 'S')"
		  . " AND (has_table_privilege(oid, 'SELECT') OR has_table_privilege(oid, 'REFERENCES') OR has_table_privilege(oid, 'TRIGGER') OR has_any_column_privilege(oid, 'SELECT'))"),
		0, '... and has a privilege on none');
	is(by($role, "SELECT count(*) FROM pg_sequences WHERE schemaname = 'mlint' AND last_value IS NOT NULL"), 0, '... nor does he see where a sequence is');
	is(by($role, "SELECT count(*) FROM pg_stats WHERE schemaname = 'mlint'"), 0, '... nor statistics,');
	is(by($role, "SELECT count(*) FROM pg_stats_ext WHERE schemaname = 'mlint'"), 0, '... of several columns either');
	like(by($role, 'SELECT * FROM pg_statistic'), qr/42501/, '... nor the table of them');
	like(by($role, 'SELECT * FROM pg_largeobject'), qr/42501/, '... nor large objects');
}
is($node->safe_psql('postgres', <<'EOQ'), '', 'and statistics keep no text that was said, named or kept secret');
SELECT tablename || '.' || attname FROM pg_stats
-- What the audit log is about is named in it, and in its statistics.
WHERE schemaname = 'mlint' AND tablename NOT LIKE 'audit_entry%' AND concat_ws(' ', most_common_vals, histogram_bounds, most_common_elems) ~ 'hunter[23458]'
EOQ
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_largeobject_metadata'), 0, 'there are no large objects');
is(join(' ', grep { !/^t/ } split /\n/, $node->safe_psql('postgres', "SELECT name FROM pg_ls_tmpdir()")), '', 'nor files that were forgotten');

# ---- activity: what runs, what ran, who waits for what ----
my $session = $node->background_psql('postgres', extra_params => [ '-U', 'alice' ], on_error_stop => 0);
$session->query_safe("SET application_name = 'alice'");
$session->query_safe("SELECT mlint.secret_get('$named')");
$session->query_safe("BEGIN; SELECT mlint.publish('thing.done', '{\"said\": \"$payload\"}')");
foreach my $role ('bob', 'nobody')
{
	without($role, 'SELECT * FROM pg_stat_activity WHERE usename <> current_user', 'pg_stat_activity', qr/insufficient privilege/);
	without($role, 'SELECT * FROM pg_stat_statements WHERE pg_get_userbyid(userid) <> current_user', 'pg_stat_statements', qr/insufficient privilege/);
	without($role, 'SELECT * FROM pg_locks l LEFT JOIN pg_class c ON c.oid = l.relation', 'pg_locks', qr/\d/);
	without($role, 'SELECT * FROM pg_prepared_xacts; SELECT * FROM pg_prepared_statements; SELECT * FROM pg_cursors', 'what is prepared');
	without($role, 'SELECT * FROM pg_stat_user_tables; SELECT * FROM pg_stat_user_functions; SELECT * FROM pg_shmem_allocations', 'statistics of the server');
}
$session->query_safe('ROLLBACK');
$session->quit;
# Whoever may see everybody's statements sees no credential there: our own have
# parameters.
unlike($node->safe_psql('postgres', "SELECT string_agg(query, ' ') FROM pg_stat_statements WHERE query LIKE '%mlint.secret_version%' OR query LIKE '%INSERT INTO mlint.%'"),
	qr/hunter/, 'what we run ourselves has parameters, and no values');
# Channels that mlint notifies are its own; nothing is said there.
{
	my $out = by('bob', "LISTEN mlint; LISTEN mlint_events; LISTEN \"mlint.event\"; SELECT pg_sleep(0); SELECT mlint.publish('thing.done', '{}'); SELECT 1");
	unlike($out, qr/Asynchronous notification/, 'nothing is notified that was not asked for');
}

# ---- payloads, sessions, usage, limits ----
refused('bob', "SELECT * FROM mlint.$_", "mlint.$_")
  for qw(events deliveries dead_letters destinations stat_destinations audit_log stat_models stat_sessions usage_by_day usage_by_tag usage_budgets stat_rate_limits
  rate_rules rate_overrides jobs job_runs stat_workers certificates certificate_targets acme_accounts dns_providers secret_backends archive_stores secret_mounts erasures erasure_refusals);
refused('rita', "SELECT * FROM mlint.$_", "mlint.$_") for qw(audit_log secret_mounts erasures erasure_refusals);
refused('rita', "SELECT metadata FROM mlint.$_", "metadata of mlint.$_") for qw(sessions archives);
refused('rita', "SELECT * FROM mlint.$_", "all of mlint.$_") for qw(sessions archives);
refused('rita', "SELECT s::text FROM mlint.sessions s", 'a whole row');
refused('rita', $_, $_) for "SELECT mlint.session_get('alice-1')", "SELECT mlint.session_transcript('alice-1')", "SELECT mlint.session_search('said')",
  "SELECT mlint.archive_get('$archive')", "SELECT mlint.archive_document('$archive')", "SELECT mlint.session_list()", "SELECT mlint.publish('a.b', '{}')",
  "SELECT mlint.rate_check('api', 'x')", "SELECT mlint.http('GET', 'http://127.0.0.1:1')", "SELECT mlint.erase_subject('user_id', 'x')";
refused('bob', $_, $_) for "SELECT mlint.rate_top('api')", "SELECT mlint.rate_totals()", "SELECT mlint.rate_override_set('api', 'x', 'deny')", "SELECT mlint.rate_reset('api')",
  "SELECT mlint.destination_stats()", "SELECT mlint.in_flight()", "SELECT mlint.worker_slots()", "SELECT mlint.audit_verify()", "SELECT mlint.usage_rest('s', '1')",
  "SELECT mlint.usage_budget_states()", "SELECT mlint.retention_report()", "SELECT mlint.secret_scan_database()", "SELECT mlint.master_keys()", "SELECT mlint.job_run_now('audit_retention')";
# A key that is taken says so, and to whom it belongs only by the id.
is(by('bob', "SELECT mlint.publish('thing.done', '{\"bob\": 1}', key => '$payload')"), $event, 'an idempotency key is everybody\'s: it gives the event\'s id');
without('bob', "SELECT mlint.event_wait($event, '10 s')", 'waiting for an event');
# Who asks for a limit learns how much is left of it, and that is what it is for.
without('bob', "SELECT mlint.rate_peek('api', 'someone else')", 'a limit', qr/100/);
# Whoever reads has payloads, as the page says; of credentials, the references.
like(by('rita', 'SELECT data FROM mlint.events'), qr/$payload/, 'a reader sees payloads');
my $options = by('rita', "SELECT options FROM mlint.destinations WHERE name = 'hook'");
like($options, qr/\{"secret": "ada\/key"\}/, '... and where credentials are taken from');
unlike($options, qr/hunter8/, '... but none of them');
without('rita', 'SELECT destination, error FROM mlint.deliveries; SELECT * FROM mlint.stat_destinations; SELECT * FROM mlint.jobs', 'what is said of deliveries');
# Sessions are shared by those who work with them, as the page says.
like(by('bob', "SELECT mlint.session_transcript('alice-1')"), qr/$said/, 'sessions are shared between members of mlint_user');

# ---- the log of the server ----
my $offset = -s $node->logfile;
by('alice', "SELECT mlint.secret_put('bad name!', '$secret')");
by('alice', "SELECT mlint.secret_put('$named', '$secret', 'no such type')");
by('bob', "SELECT mlint.secret_get('$named', backend => 'nowhere')");
by('ada', "SELECT mlint.destination_alter('hook', '{\"auth\": {\"token\": \"$secret\"}}')");
by('alice', "SELECT mlint.webhook_sign('$payload', '$secret', 'id')");
unlike(slurp_file($node->logfile, $offset), qr/\Q$secret\E/, 'the log has no value of a secret');

$node->stop;
done_testing();
