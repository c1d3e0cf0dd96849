# The primary is killed under load, its synchronous standby is promoted: all
# that was committed is there, delivered, archived, counted; what had to do with
# other systems is gone on with and not done again. Then the old primary comes
# back by pg_rewind, follows, and takes over in its turn.
use strict;
use warnings;

use AcmeCa;
use JSON::PP ();
use MlintTest;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $receiver = MlintTest::Receiver->start;
my $ca = AcmeCa->start(validate => JSON::PP::false);
my $work = PostgreSQL::Test::Utils::tempdir();
for my $dir (qw(store certificates))
{
	mkdir "$work/$dir" or die $!;
	chmod 0700, "$work/$dir";
}
append_to_file("$work/master.key", ('0123456789abcdef' x 4) . "\n");
chmod 0600, "$work/master.key" or die $!;

# The keys are outside of the data directory, as docs/operations.md wants it.
my $primary = mlint_node('primary', allows_streaming => 1, conf => <<"EOC");
log_statement = none
wal_log_hints = on
wal_keep_size = 256MB
mlint.master_key_file = '$work/master.key'
mlint.erasure_key_file = '$work/erasure.key'
mlint.archive_directory = '$work/store'
mlint.certificate_directory = '$work/certificates'
mlint.job_workers = 4
EOC
sub sql { my ($node, $sql) = @_; return $node->safe_psql('postgres', $sql); }

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
sub synchronous
{
	my ($node, $names) = @_;
	sql($node, "ALTER SYSTEM SET synchronous_standby_names = '$names'");
	$node->reload;
	return;
}
synchronous($primary, '*');
wait_for_sql($primary, 'the standby is synchronous', q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});

create_destination($primary, 'switch', 'http',
	{ url => $receiver->url('/switch'), retry => { initial_delay_ms => 20, max_delay_ms => 200, max_retries => 1000 }, breaker => { threshold => 0 } },
	'load');
sql($primary, <<'EOQ');
SET client_min_messages = error;
CREATE TABLE truth (event_id bigint PRIMARY KEY, session text);
SELECT mlint.secret_put('rotated', 'first');
SELECT mlint.secret_rotation_set('rotated', '30 days');
SELECT mlint.archive_store_create('store', 'file');
SELECT mlint.model_register('model', '1');
SELECT mlint.rate_rule_create('rule', 'token_bucket', 5, '1 hour', 5);
CREATE PROCEDURE load_one(n text) LANGUAGE plpgsql AS $$
DECLARE s text := 's' || n;
BEGIN
	PERFORM mlint.session_register(s, 'model');
	PERFORM mlint.prompt_add(s, 'hello of ' || s);
	PERFORM mlint.usage_track(s, 1, 1, 'model');
	INSERT INTO truth SELECT mlint.publish('load', jsonb_build_object('s', s)), s;
	PERFORM mlint.archive_session(s);
END $$;
EOQ
$ca->account($primary, 'main');
wait_for_sql($primary, 'there is an account', q{SELECT status = 'valid' FROM mlint.acme_accounts});
sql($primary, 'SELECT mlint.rate_allow($$rule$$, $$x$$) FROM generate_series(1, 5)');

# ---- load ----

# Each prints what it knows to be committed.
sub load
{
	my ($node, $tag, $clients) = @_;
	my @children;

	for my $n (1 .. $clients)
	{
		my $pid = fork() // die "fork: $!";
		if ($pid == 0)
		{
			open my $known, '>', "$work/known.$tag.$n" or POSIX::_exit(1);
			$known->autoflush(1);
			for (my $i = 1; !-e "$work/stop.$tag"; $i++)
			{
				my ($rc) = eval { $node->psql('postgres', "CALL load_one('$tag.$n.$i')") };
				last if $@ || $rc != 0;
				print $known "s$tag.$n.$i\n";
			}
			POSIX::_exit(0);
		}
		push @children, $pid;
	}
	return @children;
}
sub known { return map { split /\n/, slurp_file($_) } glob "$work/known.*"; }

my @children = load($primary, 'a', 3);
my @certificates = map { sql($primary, "SELECT mlint.certificate_issue('{$_.example}', 'main', name => '$_')") } 'one', 'two';
sql($primary, "SELECT mlint.job_run_now('archive_move')");
wait_for('deliveries go on', sub { $receiver->count('/switch') > 30 });
wait_for_sql($primary, 'archives are moved', 'SELECT archives > 3 FROM mlint.archive_stores');
$receiver->control('down');
push @certificates, map { sql($primary, "SELECT mlint.certificate_issue('{$_.example}', 'main', name => '$_')") } 'three', 'four', 'five';
sql($primary, "SELECT mlint.secret_rotate('rotated')");
sql($primary, "SELECT mlint.job_run_now('$_')") for qw(archive_move event_retention archive_expire);

# ---- the primary is gone ----

# Nobody may have collected it when its children are gone: then its pid file
# still stops a server.
my $old_pid = $primary->{_pid};
$primary->kill9;
append_to_file("$work/stop.a", '');
waitpid $_, 0 for @children;
my $began = time;
$standby->promote;
synchronous($standby, '');
wait_for_worker($standby, "mlint $_") for qw(launcher scheduler auditor dispatcher);
cmp_ok(time - $began, '<', 30, sprintf 'workers run %.1f s after the promotion began', time - $began);
$receiver->control('up');

# ---- what there is, and goes on ----

sub all_is_well
{
	my ($node, $what) = @_;
	my @known = known();

	cmp_ok(scalar @known, '>', 20, "$what: there was load, of " . @known);
	my %truth = map { split /\|/ } split /\n/, sql($node, 'SELECT session, event_id FROM truth');
	is_deeply([ grep { !$truth{$_} } @known ], [], "$what: what was acknowledged is there");
	my %arrived;
	wait_for("$what: all that was committed is delivered", sub {
		%arrived = ();
		for my $body (map { JSON::PP::decode_json($_->{body}) } $receiver->requests('/switch'))
		{
			$arrived{ $body->{data}{s} }++;
		}
		return !grep { !$arrived{$_} } keys %truth;
	});
	is_deeply([ grep { !$truth{$_} } keys %arrived ], [], "$what: and nothing else");
	my %ids = %{ $receiver->arrivals('/switch') };
	is(scalar keys %ids, scalar keys %truth, "$what: each under one webhook-id");
	note sprintf '%d requests for %d events', scalar(map { @$_ } values %{ $receiver->events('/switch') }), scalar keys %ids;
	wait_for_sql($node, "$what: all archives are in the store", q{SELECT mlint.job_run_now('archive_move'); SELECT waiting + garbage = 0 FROM mlint.archive_stores}, "\nt");
	is(sql($node, q{SELECT count(*) FROM truth t LEFT JOIN mlint.archives a ON a.session_id = t.session WHERE a.id IS NULL OR NOT mlint.archive_verify(a.id)}),
		'0', "$what: all archives verify");
	is(sql($node, q{SELECT total_prompt_tokens = (SELECT count(*) FROM truth) FROM mlint.model_usage('model')}), 't', "$what: usage is exact");
	is(sql($node, 'SELECT coalesce(mlint.audit_verify(), 0)'), '0', "$what: the audit log holds");
	return;
}
all_is_well($standby, 'promoted');
for my $id (@certificates)
{
	is(sql($standby, "SELECT mlint.certificate_wait('$id', '$MlintTest::deadline s')"), 'ACTIVE', 'a certificate is issued');
}
is($ca->counter('main', 'duplicate orders'), 0, 'no order was made twice');
my $ordered = $ca->counter('main', 'ordered');
is(sql($standby, q{SELECT count(*) FROM mlint.acme_accounts WHERE status = 'valid'}), '1', 'one account');
wait_for_sql($standby, 'the rotation ends', q{SELECT mlint.secret_get('rotated') <> 'first'});
is(sql($standby, q{SELECT count(*) FROM mlint.secret_versions('rotated')}), '2', '... with one new version');
is(sql($standby, q{SELECT count(*) FILTER (WHERE a) FROM (SELECT mlint.rate_allow('rule', 'x') AS a FROM generate_series(1, 9)) r}), '5',
	'a rate limit begins anew, and holds');
is(sql($standby, 'SELECT count(*) FROM mlint.jobs WHERE enabled AND last_error IS NOT NULL'), '0', 'no job fails');

# ---- the old primary comes back ----

wait_for('its processes are gone', sub {
	!-e "/proc/$old_pid" && !grep { (readlink("$_/cwd") // '') eq $primary->data_dir } glob '/proc/[0-9]*' });
$standby->safe_psql('postgres', 'CHECKPOINT');
my $conf = slurp_file($primary->data_dir . '/postgresql.conf');
$primary->command_ok([ 'pg_rewind', '--source-server', $standby->connstr('postgres'), '--target-pgdata', $primary->data_dir ], 'pg_rewind');
unlink $primary->data_dir . '/postgresql.conf';
append_to_file($primary->data_dir . '/postgresql.conf', $conf);
$primary->{_pid} = undef;
$primary->enable_streaming($standby);
$primary->start;
wait_for_sql($standby, 'the old primary follows', q{SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'});
is(scalar worker_pids($primary, 'mlint'), 0, 'as a standby, without workers');

# ---- and back ----

synchronous($standby, '*');
wait_for_sql($standby, 'it is synchronous', q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
@children = load($standby, 'b', 3);
wait_for('there is load again', sub { scalar(grep { /^sb/ } known()) > 20 });
$standby->stop('immediate');
append_to_file("$work/stop.b", '');
waitpid $_, 0 for @children;
$primary->promote;
synchronous($primary, '');
wait_for_worker($primary, 'mlint dispatcher');
all_is_well($primary, 'back');
is(sql($primary, q{SELECT mlint.secret_get('rotated') <> 'first'}), 't', 'secrets can be read');
is($ca->counter('main', 'ordered'), $ordered, 'nothing more was ordered');

done_testing();
