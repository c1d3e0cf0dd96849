# What has gone wrong once in rotations, mounts and backends: versions that are
# stored or destroyed in the middle of a rotation, intervals that lead back,
# functions that raise books, owners who are no more permitted, values before
# that are of no use, files that nobody knew of, backends that hold up the others
# or answer with zero bytes.

use strict;
use warnings;

use Cwd qw(realpath);
use IO::Socket::INET;
use IPC::Run ();
use JSON::PP ();
use MlintTest;
use POSIX ();
use PostgreSQL::Test::Utils;
use SecretTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $dir = realpath(PostgreSQL::Test::Utils::tempdir()) . '/mounts';
mkdir $dir, 0700 or die $!;
my $node = mlint_node('mended', conf => <<"EOC");
mlint.secret_mount_directory = '$dir'
dynamic_shared_memory_type = mmap
deadlock_timeout = 100ms
EOC

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub json { return literal(JSON::PP->new->canonical->encode($_[0])); }
sub refused { return answer($node, $_[0]); }
sub put { return sql("SELECT mlint.secret_put('$_[0]', '$_[1]')"); }
sub current { return sql("SELECT version FROM mlint.secrets WHERE name = '$_[0]'"); }
sub field { return sql("SELECT $_[1] FROM mlint.rotations WHERE name = '$_[0]'"); }

sub rotation
{
	my ($name, %how) = @_;
	return "SELECT mlint.secret_rotation_set('$name', '" . ($how{every} // '30 days') . "', on_failure => "
	  . json($how{on_failure} // { initial_delay_ms => 0, max_retries => 0 })
	  . join('', map { defined $how{$_} ? ", $_ => " . json($how{$_}) : '' } qw(generator apply verify))
	  . (defined $how{grace} ? ", grace => '$how{grace}'" : '') . ')';
}

sub rotate { sql("SELECT mlint.secret_rotate('$_[0]')"); return; }

sub rotated
{
	my ($name) = @_;
	rotate($name);
	return sql("SELECT mlint.secret_rotate_wait('$name', '$MlintTest::deadline s')");
}

# Hold the job after the step that leads to a state.
sub hold { inject($node, "rotation-$_[0]", 'wait'); return; }
sub release { resume($node, "rotation-$_[0]"); return; }

sub held
{
	my ($name, $state) = @_;
	hold($state);
	rotate($name);
	wait_for_sql($node, "a rotation is held, $state", "SELECT state FROM mlint.rotations WHERE name = '$name'", $state);
	return;
}

sub wait_rotation { return sql("SELECT mlint.secret_rotate_wait('$_[0]', '$MlintTest::deadline s')"); }

# Where values go: the last one, and how often it is refused.
sql(<<'EOQ');
CREATE SCHEMA target;
CREATE TABLE target.got (n serial, name text, version int, value text);
CREATE FUNCTION target.take(name text, version int, value text) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO target.got (name, version, value) VALUES (name, version, value) $$;
CREATE TABLE target.broken (name text, message text);
CREATE FUNCTION target.may_break(name text, version int, value text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	m text := (SELECT b.message FROM target.broken b WHERE b.name = may_break.name);
BEGIN
	IF m IS NOT NULL THEN
		RAISE EXCEPTION '%', m;
	END IF;
	PERFORM target.take(name, version, value);
END $$;
EOQ
my %take = (apply => { function => 'target.take' });
my %may_break = (apply => { function => 'target.may_break' });
sub got { return sql("SELECT value FROM target.got WHERE name = '$_[0]' ORDER BY n DESC LIMIT 1"); }

# ---- a version that is stored by hand while another is on its way ----
put('hand', 'one');
sql(rotation('hand', %take));
held('hand', 'verifying');
put('hand', 'three');
release('verifying');
is(wait_rotation('hand'), 'f', 'a version is stored by hand during a rotation, which fails');
is(current('hand'), 3, '... it stays current');
is(got('hand'), 'three', '... and is what is applied');
like(field('hand', 'last_error'), qr/version 3 of secret "hand" was stored during the rotation/, '... as the view says');
is(sql("SELECT state FROM mlint.secret_versions('hand') WHERE version = '2'"), 'destroyed', '... the other is destroyed');
is(rotated('hand'), 't', '... and the next rotation succeeds');

sql('CREATE ROLE here LOGIN');
put('here', 'one-of-eight');
sql(rotation('here', apply => { kind => 'role', role => 'here' }));
for my $state (qw(generated verifying))
{
	my $mine = "by hand, $state";
	held('here', $state);
	put('here', $mine);
	release($state);
	is(wait_rotation('here'), 'f', "the same for a role of this server, $state");
	is(sql("SELECT mlint.secret_get('here')"), $mine, '... the value is current');
}

# ---- the version on its way is destroyed ----
put('destroyed', 'one');
put('other', 'one');
sql(rotation($_, %take)) for qw(destroyed other);
held('destroyed', 'verifying');
sql("SELECT mlint.secret_destroy('destroyed', 2)");
release('verifying');
is(wait_rotation('destroyed'), 'f', 'the version on its way is destroyed by hand, and not current then');
is(current('destroyed') . ' ' . got('destroyed'), '1 one', '... and the current one is applied');
sql("INSERT INTO target.broken VALUES ('breaks', 'no'); SELECT mlint.secret_put('breaks', 'one')");
sql(rotation('breaks', %may_break));
held('breaks', 'restoring');
sql("SELECT mlint.secret_destroy('breaks', 2); DELETE FROM target.broken");
release('restoring');
is(wait_rotation('breaks'), 'f', 'the version being tried is destroyed by hand');
is(field('breaks', "state || ' ' || failures"), 'paused 1', '... the rotation comes to its end');
is(got('breaks'), 'one', '... with the current version applied');
is(rotated('other'), 't', '... and others are rotated');

# ---- a secret is dropped during a step ----
sql(<<'EOQ');
CREATE FUNCTION target.slow(name text, version int, value text) RETURNS void LANGUAGE sql AS
	$$ SELECT pg_advisory_xact_lock(4711); $$
EOQ
put('dropped', 'one');
sql(rotation('dropped', apply => { function => 'target.slow' }));
my $lock = $node->background_psql('postgres');
$lock->query_safe('SELECT pg_advisory_lock(4711)');
rotate('dropped');
wait_for_sql($node, 'a rotation is being applied', "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted", 1);
my ($in, $out, $err) = ('', '', '');
my $drop = IPC::Run::start([ 'psql', '-X', '-q', '-d', $node->connstr('postgres'), '-c', "SELECT mlint.secret_drop('dropped')" ],
	'>', \$out, '2>', \$err);
wait_for_sql($node, 'its secret is being dropped', "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%secret_drop(''dropped%' AND wait_event_type = 'Lock'", 1);
$lock->query_safe('SELECT pg_advisory_unlock(4711)');
$lock->quit;
$drop->finish;
is($err, '', 'a secret is dropped during a step of its rotation');
is(sql("SELECT count(*) FROM mlint.secrets WHERE name = 'dropped'"), 0, '... and gone');
unlike(slurp_file($node->logfile), qr/deadlock detected/, '... without a deadlock');

# ---- intervals ----
put('times', 'one');
like(refused(rotation('times', every => '1 month -30 days 1 minute')), qr/22023/, 'an interval that leads back in February');
like(refused(rotation('times', every => '30 days', grace => '69 years')), qr/22023/, 'a grace of more seconds than there are numbers');
like(refused(rotation('times', every => '69 years')), qr/22023/, 'an interval of that length');
is(rotated('other'), 't', '... others are rotated');

# ---- what a function says ----
sql("INSERT INTO target.broken VALUES ('verbose', repeat(chr(228), 3000000)); SELECT mlint.secret_put('verbose', 'one')");
sql(rotation('verbose', %may_break));
rotate('verbose');
wait_for_sql($node, 'a function that says too much', "SELECT failures > 0 FROM mlint.rotations WHERE name = 'verbose'", 't');
cmp_ok(field('verbose', 'octet_length(last_error)'), '<', 3000, '... is cut short');
cmp_ok(sql("SELECT max(octet_length(data::text)) FROM mlint.events WHERE type = 'secret.rotation_failed'"), '<', 9000, '... in the event too');
sql('DELETE FROM target.broken');
is(rotated('other'), 't', '... others are rotated');

# ---- an owner who has lost his privileges ----
sql(<<'EOQ');
CREATE ROLE holder LOGIN IN ROLE mlint_user;
GRANT USAGE ON SCHEMA target TO holder;
GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA target TO holder;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA target TO holder;
INSERT INTO target.broken VALUES ('lost', 'no');
SELECT mlint.secret_put('lost', 'one');
SELECT mlint.secret_grant('lost', 'holder', 'read'), mlint.secret_grant('lost', 'holder', 'rotate');
EOQ
sql('SET ROLE holder; ' . rotation('lost', %may_break));
held('lost', 'restoring');
sql("SELECT mlint.secret_revoke('lost', 'holder', 'read'); DELETE FROM target.broken");
put('lost', 'not for the holder');
release('restoring');
wait_for_sql($node, 'who may not read any more', "SELECT last_error ~ 'has not the privileges' FROM mlint.rotations WHERE name = 'lost'", 't');
is(sql("SELECT count(*) FROM target.got WHERE name = 'lost'"), 0, '... is given no value');
sql("SELECT mlint.secret_rotation_drop('lost', true)");
like(refused('SET ROLE holder; ' . rotation('lost', generator => { function => 'target.make' })), qr/42704/,
	'who makes values must be permitted to write');

# ---- the grace of a rotation that is gone ----
put('grace', 'one');
sql(rotation('grace', grace => '1 hour'));
is(rotated('grace'), 't', 'a rotation with a grace');
sql("SELECT mlint.secret_rotation_drop('grace')");
sql("UPDATE mlint.secret SET previous_until = clock_timestamp() WHERE name = 'grace'");
rotated('other');
wait_for_sql($node, '... which ends without it too', "SELECT previous_until = '-infinity' FROM mlint.secret WHERE name = 'grace'");

# ---- signatures during a grace, with a value before that is none any more ----
my $receiver = MlintTest::Receiver->start;
put($_, 'whsec_bm90aGluZw==') for qw(gone malformed);
sql("SELECT mlint.secret_put('malformed', 'whsec_!')");
for my $name (qw(gone malformed))
{
	sql(rotation($name, generator => { kind => 'hex' }, grace => '1 hour'));
	is(rotated($name), 't', "a secret that webhooks are signed with is rotated: $name");
}
sql("SELECT mlint.secret_destroy('gone', 1)");
for my $name (qw(gone malformed))
{
	create_destination($node, $name, 'http',
		{ url => $receiver->url("/$name"), signing_secret => { secret => $name }, signature => 'standard' });
	my $event = publish($node, $name, {});
	is(sql("SELECT mlint.event_wait($event, '20 s')"), 't', '... a value before that is of no use holds up nothing');
	my ($request) = $receiver->requests("/$name");
	is(scalar(() = ($request->{headers}{'webhook-signature'} // '') =~ /v1,/g), 1, '... and signs nothing');
}
is(sql("SELECT previous FROM mlint.secrets WHERE name = 'gone'"), '', '... nor is it shown as valid');

# ---- large keys ----
put('rsa', 'one');
sql(rotation('rsa', generator => { kind => 'rsa', bits => 8192 }));
my $generating = "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE c.relname = 'secret_rotation' AND l.mode = 'RowShareLock'";
my $took;
# The best of three: a busy machine adds its own.
for (1 .. 3)
{
	rotate('rsa');
	wait_for_sql($node, 'a large key is generated', $generating, 1);
	my $start = time;
	sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'running job secret_rotation'");
	wait_for_sql($node, '... until it is interrupted', $generating, 0);
	my $this = time - $start;
	$took = $this if !defined $took || $this < $took;
	last if $took < 1.5 * $MlintTest::slower;
}
cmp_ok($took, '<', 1.5 * $MlintTest::slower, '... at once');
sql("SELECT mlint.secret_rotation_drop('rsa', true)");

# ---- a file that was written and not written down ----
put('file', 'on the disk');
inject($node, 'mount-written', 'error');
sql("SELECT mlint.secret_mount_create('file', 'file')");
wait_for_sql($node, 'a file is written, and then something fails', "SELECT state FROM mlint.secret_mounts WHERE path = 'file'", 'failed');
ok(-e "$dir/file", '... it is there');
sql("SELECT mlint.secret_mount_drop('file')");
wait_for_sql($node, '... the mount is dropped', 'SELECT count(*) FROM mlint.secret_mounts', 0);
ok(!-e "$dir/file", '... and the file gone with it');

# ---- looking for backends that have never been there ----
sub shared_bytes
{
	my $bytes = 0;
	$bytes += -s $_ for glob $node->data_dir . '/pg_dynshmem/*';
	return $bytes;
}
my $before = shared_bytes();
sql('SET ROLE pg_monitor; SELECT count(*) FROM generate_series(1, 50000) i, mlint.secret_backend_state(i)');
cmp_ok(shared_bytes() - $before, '<', 1_000_000, 'looking for states of backends makes none');

# ---- a backend whose credentials do not resolve ----
put('token', 'one');
backend($node, 'vault', 'vault', { url => 'http://127.0.0.1:1', token => { secret => 'token' } });
sql("SELECT mlint.secret_drop('token')");
is(refused('SELECT mlint.secret_refresh()'), 0, 'a backend whose credentials do not resolve does not hold up the others');
like(shown($node, 'vault', 'last_error'), qr/token/, '... the view tells why');

# ---- a backend that answers with zero bytes ----
my $peer = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1', ReuseAddr => 1) or die $!;
my $pid = fork() // die "fork: $!";
if ($pid == 0)
{
	close $_ for *STDOUT, *STDERR;
	alarm 60;
	while (my $client = $peer->accept)
	{
		while (my $line = <$client>) { last if $line eq "\r\n"; }
		print $client "HTTP/1.1 200 OK\r\nContent-Length: 900000\r\nConnection: close\r\n\r\n", "\0" x 900_000;
		close $client;
	}
	POSIX::_exit(0);
}
put('token', 'one');
backend($node, 'zero', 'vault', { url => 'http://127.0.0.1:' . $peer->sockport, token => { secret => 'token' } });
like(refused("SELECT mlint.secret_get('any', backend => 'zero')"), qr/its answer is not JSON/, 'an answer of zero bytes is refused');
like(refused("SELECT length((mlint.http('GET', 'http://127.0.0.1:@{[ $peer->sockport ]}/')).body)"), qr/\d/, '... and survived');
unlike(slurp_file($node->logfile), qr/terminated by signal/, '... by every process');
kill 'KILL', $pid;
waitpid $pid, 0;

done_testing();
