# Rotation: a client that logs in all the time never fails, failures put the
# value before back, a crash after any step leaves what works and is gone on
# from, webhooks carry both signatures while both are valid, and no value is in
# the server's log or in what the server shows of itself.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256_base64);
use File::Temp ();
use JSON::PP ();
use MlintTest;
use SecretTest;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = mlint_node('rotation', create => 0, conf => <<'EOC');
shared_preload_libraries = 'mlint, pg_stat_statements'
pg_stat_statements.track = all
listen_addresses = '127.0.0.1'
log_statement = all
log_min_messages = debug5
restart_after_crash = on
EOC
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');
my $port = $node->port;
unlink $node->data_dir . '/pg_hba.conf';
$node->append_conf('pg_hba.conf', <<"EOC");
local all $superuser trust
local replication $superuser trust
local all guest trust
local all all scram-sha-256
host all guest 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
EOC
$node->restart;
$node->safe_psql('postgres', 'CREATE EXTENSION mlint; CREATE EXTENSION pg_stat_statements');

# Another server, for roles over a connection: it does not crash with ours.
my $other = PostgreSQL::Test::Cluster->new('other');
$other->init;
$other->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'\n");
unlink $other->data_dir . '/pg_hba.conf';
$other->append_conf('pg_hba.conf', "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n");
$other->start;
my %port = (far => $other->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub json { return literal(JSON::PP->new->canonical->encode($_[0])); }

# Set a rotation.
sub rotation
{
	my ($name, %how) = @_;

	sql("SELECT mlint.secret_rotation_set('$name', '30 days', on_failure => "
		  . json($how{on_failure} // { initial_delay_ms => 0, max_retries => 20 })
		  . join('', map { defined $how{$_} ? ", $_ => " . json($how{$_}) : '' } qw(generator apply verify))
		  . (defined $how{grace} ? ", grace => '$how{grace}'" : '') . ')');
	return;
}

# Rotate, and wait until it has come to something.
sub rotate
{
	my ($name) = @_;
	sql("SELECT mlint.secret_rotate('$name')");
	return sql("SELECT mlint.secret_rotate_wait('$name', '$MlintTest::deadline s')");
}

sub field { return sql("SELECT $_[1] FROM mlint.rotations WHERE name = '$_[0]'"); }
sub version { return sql("SELECT version FROM mlint.secrets WHERE name = '$_[0]'"); }
sub value { return sql("SELECT mlint.secret_get('$_[0]'" . ($_[1] ? ", $_[1])" : ')')); }

# Does this password let the role in?
sub logs_in
{
	my ($role, $password) = @_;
	local $ENV{PGPASSWORD} = $password;
	return system('psql', '-X', '-q', '-h', '127.0.0.1', '-p', $port{$role} // $port, '-U', $role,
		'-d', 'postgres', '-o', '/dev/null', '-c', 'SELECT 1') == 0;
}

# A process that logs in all the time with what $choose makes of the secret,
# and writes "tries failures" when it is stopped. What failed is tried once
# more (or as often as is given) with what the secret is then; a server that is
# not there does not count, nor does a value that is another by then.
sub client
{
	my ($role, $query, $more) = @_;
	my $report = File::Temp->new;
	my $pid = fork() // die "fork: $!";

	if ($pid == 0)
	{
		my ($stop, $tries, $failures, $again) = (0, 0, 0, 0);
		local $SIG{TERM} = sub { $stop = 1; };
		open STDERR, '>', '/dev/null';
		my $read = sub {
			my $values = `psql -X -q -A -t -h "@{[ $node->host ]}" -p $port -d postgres -c "$query" 2>/dev/null`;
			return $? == 0 ? $values : '';
		};
		my $attempt = sub {
			my $values = $read->();
			return -1 if $values eq '';
			for my $value (split /\n/, $values)
			{
				return 1 if logs_in($role, $value);
			}
			my $now = $read->();
			return $now eq '' ? -1 : $now eq $values ? 0 : 2;
		};
		until ($stop)
		{
			my $ok = $attempt->();
			next if $ok < 0;
			$tries++;
			next if $ok == 1;
			$again++;
			next if $ok == 2;
			for (1 .. $more // 1)
			{
				last if ($ok = $attempt->()) != 0;
			}
			$failures++ if $ok == 0;
		}
		print $report "$tries $failures $again\n";
		close $report;
		POSIX::_exit(0);
	}
	return { pid => $pid, report => $report };
}

# Stop it; how often it tried, and how often it failed.
sub client_end
{
	my ($client) = @_;
	kill 'TERM', $client->{pid};
	waitpid $client->{pid}, 0;
	return split ' ', slurp_file($client->{report}->filename);
}

# A secret whose first value nobody has ever typed.
sub put { return sql("SELECT mlint.secret_put('$_[0]', encode(sha256(random()::text::bytea), 'hex'))"); }

# ---- the password of a role of this server ----
sql('CREATE ROLE app LOGIN; CREATE ROLE guest LOGIN');
put('app');
rotation('app', apply => { kind => 'role', role => 'app' }, verify => { kind => 'login' });
is(rotate('app'), 't', 'the password of a role is rotated');
ok(logs_in('app', value('app')), '... the new one is its');
ok(!logs_in('app', value('app', 1)), '... and the old one is not');
like(sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'"), qr/^SCRAM-SHA-256\$/, '... stored as a verifier');
my $client = client('app', "SELECT mlint.secret_get('app')");
my $before = version('app');
my $end = time + 6 * $MlintTest::slower;
my $rotated = 0;
while (time < $end || $rotated < 5 && time < $end + $MlintTest::deadline)
{
	$rotated++ if rotate('app') eq 't';
	usleep(200_000);
}
my ($tries, $failures, $again) = client_end($client);
cmp_ok($rotated, '>=', 5, "$rotated rotations while a client logs in");
is(version('app'), $before + $rotated, '... each of which is a version');
cmp_ok($tries, '>=', 20, "... $tries times");
is($failures, 0, "... and never fails ($again logins met a rotation between reading and logging in)");

# The new version is current from the moment when the role has it.
inject($node, 'rotation-verifying', 'wait');
sql("SELECT mlint.secret_rotate('app')");
wait_for_sql($node, 'a rotation is held before it is verified', "SELECT state FROM mlint.rotations WHERE name = 'app'", 'verifying');
ok(logs_in('app', value('app')), '... what is current lets the role in');
resume($node, 'rotation-verifying');
is(sql("SELECT mlint.secret_rotate_wait('app', '60 s')"), 't', '... and it goes on');

# The login does not verify: both the role and the secret get the old value.
my $old = value('app');
rotation('app', apply => { kind => 'role', role => 'app' },
	verify => { kind => 'login', role => 'app', connection => { host => '127.0.0.1', port => 1 } },
	on_failure => { max_retries => 0 });
$before = version('app');
$client = client('app', "SELECT mlint.secret_get('app')");
is(rotate('app'), 'f', 'a login that cannot be verified');
(undef, $failures) = client_end($client);
is($failures, 0, '... no login fails meanwhile');
is(version('app'), $before, '... the version before is current again');
is(value('app'), $old, '... with its value');
ok(logs_in('app', $old), '... which lets the role in');
like(field('app', "state || ': ' || last_error"), qr/^paused: could not log in: .*refused/, '... and it is paused, saying why');
is(sql("SELECT state FROM mlint.secret_versions('app') LIMIT 1"), 'destroyed', '... the new version is destroyed');
is( sql("SELECT data - 'reason' - 'version' FROM mlint.events WHERE type = 'secret.rotation_failed' ORDER BY id DESC LIMIT 1"),
	'{"name": "app", "step": "verify", "paused": false, "next_at": ' . (sql("SELECT data -> 'next_at' FROM mlint.events WHERE type = 'secret.rotation_failed' ORDER BY id DESC LIMIT 1")) . ', "failures": 1}',
	'... and an event tells');

# A server that asks for no password has verified nothing.
put('guest');
rotation('guest', apply => { kind => 'role', role => 'guest' }, verify => { kind => 'login' }, on_failure => { max_retries => 0 });
is(rotate('guest'), 'f', 'a login without a password does not verify');
like(field('guest', 'last_error'), qr/did not ask for the password/, '... which is said');

# ---- a role over a connection ----
put('manager');
put('far');
$other->safe_psql('postgres', "CREATE ROLE manager LOGIN CREATEROLE PASSWORD '" . value('manager') . "'");
$other->safe_psql('postgres', "SET ROLE manager; CREATE ROLE far LOGIN PASSWORD '" . value('far') . "'");
my %connection = (host => '127.0.0.1', port => 0 + $port{far}, user => 'manager', password => { secret => 'manager' });
my %far = (apply => { kind => 'role', role => 'far', connection => \%connection }, verify => { kind => 'login' });
rotation('far', %far);
is(rotate('far'), 't', 'the password of a role over a connection') or diag field('far', 'last_error');
ok(logs_in('far', value('far')), '... is the new one');
is(version('far'), 2, '... which is current');
$old = value('far');
rotation('far', apply => { kind => 'role', role => 'far', connection => { %connection, user => 'far' } }, on_failure => { max_retries => 0 });
is(rotate('far'), 'f', 'a connection that is refused');
like(field('far', 'last_error'), qr/could not log in: .*password authentication failed/, '... says why');
is(field('far', 'state'), 'restoring', '... and may have left anything behind');
ok(logs_in('far', $old), '... though here it has not');
sql("SELECT mlint.secret_rotation_drop('far', force => true)");

# ---- a crash after every step ----
foreach my $case (
	[ 'app', { apply => { kind => 'role', role => 'app' }, verify => { kind => 'login' } } ],
	[ 'far', \%far ])
{
	my ($name, $how) = @$case;
	rotation($name, %$how);
	# Whatever has been generated and not destroyed; one of them works.
	$client = client($name, "SELECT mlint.secret_get('$name', version::int) FROM mlint.secret_versions('$name') WHERE state <> 'destroyed' LIMIT 3", 3);
	foreach my $point (qw(generated applying applied verifying verified idle))
	{
		my $was = version($name);
		inject($node, "rotation-$point", 'kill');
		sql("SELECT mlint.secret_rotate('$name')");
		wait_for("$name: killed at $point", sub { struck($node, "rotation-$point") });
		wait_for_sql($node, '... the server comes back, and the rotation to its end',
			"SELECT state, failures, current_version > $was FROM mlint.rotations WHERE name = '$name'", 'idle|0|t');
		ok(logs_in($name, value($name)), '... the current version works');
	}
	# ... and on the way back.
	rotation($name, %$how, verify => { kind => 'login', role => $name, connection => { host => '127.0.0.1', port => 1 } },
		on_failure => { max_retries => 0 });
	foreach my $point (qw(restoring restored))
	{
		my ($was, $works) = (version($name), value($name));
		# The old value can be verified again, where that is asked for.
		inject($node, "rotation-$point", 'kill');
		if ($name eq 'far')
		{
			sql(<<"EOQ");
CREATE OR REPLACE FUNCTION public.once(name text, version int, value text) RETURNS boolean LANGUAGE sql AS 'SELECT version <= $was';
EOQ
			rotation($name, %$how, verify => { function => 'public.once' }, on_failure => { max_retries => 0 });
		}
		sql("SELECT mlint.secret_rotate('$name')");
		wait_for("$name: killed at $point", sub { struck($node, "rotation-$point") });
		wait_for_sql($node, '... the server comes back, and the rotation to rest',
			"SELECT state FROM mlint.rotations WHERE name = '$name'", 'paused');
		is(version($name), $was, '... the version before is current');
		ok(logs_in($name, $works), '... and works');
	}
	($tries, $failures) = client_end($client);
	cmp_ok($tries, '>=', 10, "$name: a client logged in meanwhile, $tries times");
	is($failures, 0, '... and there was always a version that worked');
}

# ---- what is seen of it while it runs ----
rotation('app', apply => { kind => 'role', role => 'app' });
inject($node, 'rotation-applied', 'wait');
sql("SELECT mlint.secret_rotate('app')");
wait_for_sql($node, 'a rotation is held in the middle', "SELECT state FROM mlint.rotations WHERE name = 'app'", 'applying');
my $trying = field('app', 'trying_version');
my $secret = value('app', $trying);
unlike(sql('SELECT string_agg(a::text, $$ $$) FROM pg_stat_activity a'), qr/\Q$secret\E|SCRAM-SHA-256\$/, '... pg_stat_activity does not have the value');
resume($node, 'rotation-applied');
is(sql("SELECT mlint.secret_rotate_wait('app', '60 s')"), 't', '... and goes on');
is(value('app'), $secret, '... to the end');

# ---- signatures ----
my $receiver = MlintTest::Receiver->start;
put('hook');
create_destination($node, 'hook', 'http',
	{ url => $receiver->url('/ok?hook'), signing_secret => { secret => 'hook' }, signature => 'standard' });
rotation('hook', generator => { kind => 'hex' }, grace => '12 seconds');

# The versions of the secret whose signatures the last request carries.
sub signed_by
{
	my ($request) = ($receiver->requests('/ok?hook'))[-1];
	my $h = $request->{headers};
	my %signatures = map { $_ => 1 } split / /, $h->{'webhook-signature'};
	my @by;
	foreach my $version (split /\n/, sql("SELECT version FROM mlint.secret_versions('hook') ORDER BY version"))
	{
		my $signature = hmac_sha256_base64("$h->{'webhook-id'}.$h->{'webhook-timestamp'}.$request->{body}", value('hook', $version));
		$signature .= '=' while length($signature) % 4;
		push @by, $version if delete $signatures{"v1,$signature"};
	}
	push @by, 'unknown' if %signatures;
	return join ' ', @by;
}
deliver($node, 'hook');
is(signed_by(), '1', 'a webhook is signed with the current version');
is(rotate('hook'), 't', '... which is rotated');
deliver($node, 'hook');
is(signed_by(), '1 2', '... during the grace with both');
is(sql("SELECT previous FROM mlint.secrets WHERE name = 'hook'"), 1, '... which the store says too');
wait_for('after it', sub {
	return 0 if sql("SELECT coalesce(previous_until <= now(), true) FROM mlint.secrets WHERE name = 'hook'") ne 't';
	sql("SELECT mlint.job_run_now('secret_rotation')");
	deliver($node, 'hook');
	return signed_by() eq '2';
});
sql("SELECT mlint.job_run_now('secret_rotation')");
wait_for_sql($node, '... which the view says', "SELECT overlap_until IS NULL FROM mlint.rotations WHERE name = 'hook'");
is(rotate('hook'), 't', 'rotated again');
is(rotate('hook'), 't', '... and again');
deliver($node, 'hook');
is(signed_by(), '3 4', '... never more than two');

# ---- by a delivery ----
put('told');
create_destination($node, 'told', 'http', { url => $receiver->url('/switch?told'), retry => { strategy => 'none' } }, 'nothing.else');
rotation('told', apply => { kind => 'destination', destination => 'told' }, on_failure => { initial_delay_ms => 3600000, strategy => 'linear' });
is(rotate('told'), 't', 'a destination is told') or diag field('told', 'last_error');
my ($request) = $receiver->requests('/switch?told');
my $body = JSON::PP::decode_json($request->{body});
is($body->{type}, 'secret.apply', '... by an event');
is_deeply($body->{data}, { name => 'told', version => 2 }, '... which version it is to fetch');
is(version('told'), 2, '... and that becomes current');
$receiver->control('down');
is(rotate('told'), 'f', 'one that cannot be told');
wait_for_sql($node, '... is to be told of the version before', "SELECT state FROM mlint.rotations WHERE name = 'told'", 'restoring');
like(field('told', 'last_error'), qr/the delivery to destination "told" failed: HTTP 5/, '... and why is said');
is(version('told'), 2, '... which stays current');
$receiver->control('up');
is(rotate('told'), 't', 'reached again');
wait_for_sql($node, '... it is told of that, and then of a new one', "SELECT state, failures, current_version > 3 FROM mlint.rotations WHERE name = 'told'", 'idle|0|t');
is_deeply([ (map { JSON::PP::decode_json($_->{body})->{data}{version} } $receiver->requests('/switch?told'))[ -2, -1 ] ],
	[ 2, 0 + version('told') ], '... in that order');

# As after a restore among events of others: what has the number is not its own.
put('brought');
rotation('brought', apply => { kind => 'destination', destination => 'told' }, on_failure => { initial_delay_ms => 3600000, strategy => 'linear' });
sql("SELECT mlint.destination_alter('told', enabled => false); SELECT mlint.secret_rotate('brought')");
wait_for_sql($node, 'a delivery is waited for', "SELECT count(*) FROM mlint.secret_rotation WHERE event_id IS NOT NULL", 1);
sql("UPDATE mlint.secret_rotation SET event_id = (SELECT max(event_id) FROM mlint.deliveries WHERE destination = 'told' AND state = 'delivered'), next_at = now() WHERE event_id IS NOT NULL; SELECT mlint.job_run_now('secret_rotation')");
wait_for_sql($node, '... and that of another event does not count',
	"SELECT last_error LIKE '%the event is not there any more' FROM mlint.rotations WHERE name = 'brought'");
is(version('brought'), 1, '... for a new version');
sql("SELECT mlint.secret_rotation_drop('brought', true); SELECT mlint.destination_alter('told', enabled => true)");

# ---- to a backend ----
my $azure = MlintTest::Receiver->start('keyvault.py');
sql("SELECT mlint.secret_put('azure/client', 'azure-client-secret')");
backend($node, 'az', 'azure', { vault_url => $azure->url('/vault/'), authority => $azure->url(''),
	tenant_id => 'tenant', client_id => 'client', client_secret => { secret => 'azure/client' } });
put('kept');
rotation('kept', apply => { kind => 'backend', backend => 'az', name => 'kept' }, verify => { kind => 'read' });
is(rotate('kept'), 't', 'a value is put to a backend') or diag field('kept', 'last_error');
is(sql("SELECT mlint.secret_get('kept', backend => 'az') = mlint.secret_get('kept')"), 't', '... which has the current version');
is(rotate('kept'), 't', '... and the next');
is(sql("SELECT mlint.secret_get('kept', backend => 'az') = mlint.secret_get('kept')"), 't', '... not one from the cache');
$azure->stop;
rotation('kept', apply => { kind => 'backend', backend => 'az', name => 'kept' }, verify => { kind => 'read' },
	on_failure => { initial_delay_ms => 3600000, strategy => 'linear' });
is(rotate('kept'), 'f', 'a backend that is down');
is(field('kept', "state || ' ' || current_version"), 'restoring 3', '... leaves the version before current');
sql("SELECT mlint.secret_rotation_drop('kept', force => true)");

# ---- functions that fail with what they were given ----
sql(<<'EOQ');
CREATE TABLE kept_values (name text, value bytea UNIQUE, CHECK (octet_length(value) < 20));
CREATE FUNCTION known(name text) RETURNS text LANGUAGE sql AS $$ SELECT 'a value of thirty bytes or more' $$;
CREATE FUNCTION keep(name text, version int, value bytea) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	IF name = 'quoted' THEN
		RAISE EXCEPTION 'not % nor %', value, convert_from(value, 'UTF8');
	END IF;
	INSERT INTO public.kept_values VALUES (name, value);
END $$;
EOQ
for my $name (qw(failing quoted))
{
	sql("SELECT mlint.secret_put('$name', 'the one before')");
	rotation($name, generator => { kind => 'function', function => 'public.known' }, apply => { kind => 'function', function => 'public.keep' },
		on_failure => { max_retries => 0, max_delay_ms => 0 });
	is(rotate($name), 'f', "$name: a function fails");
}
is(field('failing', 'last_error'), 'new row for relation "kept_values" violates check constraint "kept_values_octet_length_check"'
	=~ s/octet_length/value/r, '... which is said') or diag field('failing', 'last_error');
is(field('quoted', 'last_error'), 'not \\x[...] nor [...]', '... without the value, as it may be written');
unlike(sql("SELECT string_agg(data::text, ' ') FROM mlint.events WHERE type = 'secret.rotation_failed'") . sql("SELECT string_agg(details::text, ' ') FROM mlint.audit_log WHERE action = 'rotation.fail'"),
	qr/thirty bytes|7468697274792062/, '... nor a part of it, in events and in the audit log');
# What cannot be restored is tried again, and not at once, whatever the delays are.
for my $round (1 .. 3)
{
	my $failures = field('quoted', 'failures');
	wait_for_sql($node, 'restoring fails, too', "SELECT failures > $failures AND state = 'restoring' FROM mlint.rotations WHERE name = 'quoted'");
}
is(sql(<<'EOQ'), 't', '... a second apart');
SELECT min(gap) > '0.9 s' FROM (SELECT at - lag(at) OVER (ORDER BY seq) AS gap FROM mlint.audit_log
	WHERE action = 'rotation.fail' AND object = 'quoted' ORDER BY seq OFFSET 2) g
EOQ
sql("SELECT mlint.secret_rotation_drop('$_', force => true)") for qw(failing quoted);

# A lock of the session that a function fails with is nobody's after that.
sql(<<'EOQ');
CREATE FUNCTION locks(name text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
	PERFORM pg_advisory_lock(4242);
	RAISE EXCEPTION 'after locking';
END $$;
EOQ
put('locks');
rotation('locks', generator => { kind => 'function', function => 'public.locks' }, on_failure => { max_retries => 0 });
inject($node, 'rotation-idle', 'wait');
sql("SELECT mlint.secret_rotate('locks')");
wait_for_sql($node, 'a function locks, and fails', "SELECT last_error FROM mlint.rotations WHERE name = 'locks'", 'after locking');
is(sql('SELECT pg_try_advisory_lock(4242)'), 't', '... and locks nobody out');
resume($node, 'rotation-idle');

# ---- an error that is none of the rotation's ----
put('flaky');
rotation('flaky', generator => { kind => 'uuid' });
inject($node, 'rotation-generated', 'error');
sql("SELECT mlint.secret_rotate('flaky')");
wait_for_sql($node, 'an error between two steps', "SELECT state, current_version FROM mlint.rotations WHERE name = 'flaky'", 'idle|2');

# ---- events, and no values in them ----
foreach my $name (qw(app far hook told))
{
	my $n = sql("SELECT count(*) FROM mlint.events WHERE type = 'secret.rotated' AND data ->> 'name' = '$name'");
	cmp_ok($n, '>', 0, "$name: events tell of its rotations");
}

wait_for_sql($node, 'the audit log has what was done',
	"SELECT string_agg(DISTINCT action, ' ' ORDER BY action) FROM mlint.audit_log WHERE action LIKE 'rotation.%'",
	'rotation.drop rotation.fail rotation.finish rotation.rotate rotation.set');

# ---- no value anywhere ----
my @values;
foreach my $name (qw(app far guest manager hook told kept flaky))
{
	push @values, split /\n/, sql("SELECT mlint.secret_get('$name', version::int) FROM mlint.secret_versions('$name') WHERE state <> 'destroyed'");
}
cmp_ok(scalar @values, '>', 30, scalar(@values) . ' values were generated');
my %values = map { $_ => 1 } @values;
my $log = slurp_file($node->logfile);
cmp_ok(length $log, '>', 1_000_000, 'the log says a lot');
my @found = grep { $values{$_} } $log =~ /[A-Za-z0-9-]{32,}/g;
is(scalar @found, 0, '... and none of them');
my $statements = sql('SELECT string_agg(query, $$ $$) FROM pg_stat_statements');
@found = grep { $values{$_} } $statements =~ /[A-Za-z0-9-]{32,}/g;
is(scalar @found, 0, '... nor does pg_stat_statements');
my $events = sql('SELECT string_agg(data::text, $$ $$) FROM mlint.events');
@found = grep { $values{$_} } $events =~ /[A-Za-z0-9-]{32,}/g;
is(scalar @found, 0, '... nor any event');

$other->stop;
$node->stop;
done_testing();
