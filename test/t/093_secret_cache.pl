# What was read from a secret backend is kept, sealed, for all sessions, for as
# long as it may be; a backend that hangs, breaks or talks nonsense costs no
# more than its timeout, and then nothing; and what dispatchers use follows
# the backend.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use JSON::PP ();
use MlintTest;
use SecretTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $azure = MlintTest::Receiver->start('keyvault.py');
my $node = mlint_node('cache', conf => "log_statement = none\nshared_memory_type = mmap");
my $marker = 'needle' . 'InTheHaystack' . $$;
$node->safe_psql('postgres', "SELECT mlint.secret_put('azure/client', 'azure-client-secret')");
my %client = (vault_url => $azure->url('/vault'), authority => $azure->url(''),
	tenant_id => 'tenant', client_id => 'client', client_secret => { secret => 'azure/client' });

sub options { return literal(JSON::PP->new->canonical->encode({@_})); }
sub alter { $node->safe_psql('postgres', 'SELECT mlint.secret_backend_alter(\'az\', ' . options(@_) . ')'); return; }
sub get { my ($name, $more) = @_; return answer($node, "SELECT mlint.secret_get('$name', backend => 'az')"); }
sub reads { my ($name) = @_; return scalar grep { $_->{method} eq 'GET' && $_->{path} =~ m{/secrets/$name\b} } $azure->requests; }
# Put a value there behind our back.
sub put_there
{
	my ($name, $value) = @_;
	$node->safe_psql('postgres', "SELECT mlint.secret_put('$name', '$value', backend => 'other')");
	return;
}

backend($node, 'az', 'azure', {%client});
backend($node, 'other', 'azure', {%client});
is($node->safe_psql('postgres', "SELECT command FROM mlint.job WHERE name = 'secret_refresh' AND enabled AND every = '1 minute'"),
	'SELECT mlint.secret_refresh()', 'a job sees to what dispatchers use');
# From here on nobody does but this test.
$node->safe_psql('postgres', "UPDATE mlint.job SET enabled = false WHERE name = 'secret_refresh'");

# Kept: for other sessions too, until we write.
put_there('kept', $marker);
is(get('kept'), $marker, 'read');
is(get('kept'), $marker, 'read again, in another session') for 1 .. 3;
is(reads('kept'), 1, 'the backend was asked once');
is(shown($node, 'az', 'cached, hits, misses, stale'), '1|3|1|0', 'and the view says so');
put_there('kept', 'changed there');
is(get('kept'), $marker, 'what changes there is not seen at once');
$node->safe_psql('postgres', "SELECT mlint.secret_put('kept', 'changed here', backend => 'az')");
is(get('kept'), 'changed here', 'what changes here is');
answer($node, "BEGIN; SELECT mlint.secret_put('kept', 'rolled back', backend => 'az'); ROLLBACK");
is(get('kept'), 'rolled back', 'a rollback here is none there');
put_there('kept', 'dropped');
$node->safe_psql('postgres', "SELECT mlint.secret_cache_drop('az')");
is(shown($node, 'az', 'cached'), 0, 'secret_cache_drop');
is(get('kept'), 'dropped', 'reads anew');
put_there('kept', 'altered');
alter(timeout_ms => 4000);
is(get('kept'), 'altered', 'an alter reads anew');
put_there('kept', 'not yet');
answer($node, 'BEGIN; SELECT mlint.secret_backend_alter(\'az\', ' . options(timeout_ms => 4001) . '); ROLLBACK');
like(get('none'), qr/42704/, 'what is not there');
put_there('none', 'now it is');
is(get('none'), 'now it is', 'is not remembered');
$node->safe_psql('postgres', "SELECT mlint.secret_drop('none', 'az')");
like(get('none'), qr/42704/, 'a drop is seen');

# The time to live.
alter(cache_ttl_s => 1, stale_s => 3600);
put_there('ttl', 'one');
is(get('ttl'), 'one', 'kept for a second');
put_there('ttl', 'two');
wait_for('and no longer', sub { get('ttl') eq 'two' }, 10);
alter(cache_ttl_s => 0);
get('ttl') for 1 .. 3;
is(shown($node, 'az', 'cached'), 0, 'a time of 0 keeps nothing');

# A database made from this one has its own.
alter(cache_ttl_s => undef);
is(get('kept'), 'not yet', 'kept here');
$node->safe_psql('postgres', "CREATE DATABASE copy TEMPLATE template0");
$node->safe_psql('copy', "CREATE EXTENSION mlint; SELECT mlint.secret_put('azure/client', 'x'); SELECT mlint.secret_backend_create('az', 'azure', " . options(%client) . ")");
is($node->safe_psql('copy', 'SELECT cached FROM mlint.secret_backends'), 0, 'another database has kept nothing');

# Whatever goes wrong: within the timeout, with an error that says what, and
# without a word of ours in it.
alter(timeout_ms => 20000, cache_ttl_s => 0, breaker => { threshold => 0 });
get('kept');
my %modes = (
	stall => qr/ML005.*could not read secret "kept" in secret backend "az"/,
	drip => qr/ML005/,
	half => qr/ML004/,
	fail => qr/ML003.*it failed \(status 503\).*Busy: \*\*+/s,
	throttle => qr/ML003.*too many requests \(status 429\)/,
	garbage => qr/ML008.*not JSON/,
	strange => qr/ML008.*no value/,
	huge => qr/ML008.*larger than 1 MB/,
	redirect => qr/ML003.*redirect/);
for my $mode (sort keys %modes)
{
	# Only who never answers is waited for to the end; logged in before that.
	$azure->control('normal');
	alter(timeout_ms => $mode =~ /^(stall|drip)$/ ? 700 : 20000);
	get('kept');
	$azure->control($mode);
	my $begin = time;
	my $error = get('kept');
	cmp_ok(time - $begin, '<', 10, "$mode: in time");
	like($error, $modes{$mode}, "$mode: what it is");
	unlike($error, qr/azure-token|azure-client-secret|not yet/, "$mode: nothing secret in it");
}
$azure->control('normal');
is(get('kept'), 'not yet', 'it works again');

# Cancel is not kept waiting.
$azure->control('stall');
alter(timeout_ms => 60000);
my $begin = time;
like(answer($node, "SET statement_timeout = '300ms'; SELECT mlint.secret_get('kept', backend => 'az')"), qr/57014/, 'a timeout of the statement');
cmp_ok(time - $begin, '<', 20, 'ends the wait');

# Stale, while the backend is down; and the breaker.
$azure->control('normal');
alter(timeout_ms => 4000, cache_ttl_s => 1, stale_s => 600, breaker => { threshold => 3, timeout_s => 600 });
is(get('kept'), 'not yet', 'fresh');
$azure->control('stall');
wait_for('it has become stale', sub { get('kept'); shown($node, 'az', 'stale > 0') eq 't' });
is(get('kept'), 'not yet', 'and is served still');
get('kept') for 1 .. 3;
is(shown($node, 'az', 'breaker, breaker_until > now()'), 'open|t', 'the breaker is open');
like(shown($node, 'az', 'last_error'), qr/no response within/, 'for a reason that is shown');
$azure->forget;
my $asked = reads('kept');
$begin = time;
is(get('kept'), 'not yet', 'stale with an open breaker') for 1 .. 5;
like(get('ttl'), qr/ML006.*could not read secret "ttl".*circuit breaker is open for another \d+ s, since: /, 'what was not kept');
cmp_ok(time - $begin, '<', 10 * $MlintTest::slower, 'nobody waits');
is(reads('kept'), $asked, 'nobody asks');
like(answer($node, "SELECT mlint.secret_backend_test('az')"), qr/ML005/, 'a test does ask');
$azure->control('normal');
is(answer($node, "SELECT mlint.secret_backend_test('az')"), 'Key Vault, as a client', 'and closes the breaker');
is(shown($node, 'az', 'breaker'), 'closed', 'it is closed');
is(get('ttl'), 'two', 'all is well');

# Stale for so long, and not when we are refused.
alter(cache_ttl_s => 1, stale_s => 0, breaker => { threshold => 0 });
get('kept');
$azure->control('fail');
wait_for('a stale time of 0 serves nothing stale', sub { get('kept') =~ /ML003/ }, 10);
$azure->control('normal');
alter(cache_ttl_s => 1, stale_s => 600);
is(get('kept'), 'not yet', 'kept');
my $stale = shown($node, 'az', 'stale');
$node->safe_psql('postgres', "SELECT mlint.secret_put('azure/client', 'void')");
wait_for('who is refused gets nothing stale', sub { $azure->control('revoke'); get('kept') =~ /ML002/ }, 10);
is(shown($node, 'az', 'stale'), $stale, 'not once');
$node->safe_psql('postgres', "SELECT mlint.secret_put('azure/client', 'azure-client-secret')");
is(get('kept'), 'not yet', 'admitted again');

# A dispatcher: what a running destination uses follows the backend.
my $receiver = MlintTest::Receiver->start;
alter(cache_ttl_s => 300, stale_s => undef, breaker => undef, timeout_ms => undef);
put_there('hook', 'first-signing-secret');
create_destination($node, 'hook', 'http', { url => $receiver->url('/ok'), signing_secret => { secret => "az:hook" } });
deliver($node, 'hook', {});
sub signed_with
{
	my ($secret) = @_;
	my $last = ($receiver->requests)[-1];
	my $json = JSON::PP->new->canonical;
	return $node->safe_psql('postgres', 'SELECT mlint.webhook_verify(' . literal($last->{body}) . ', '
		  . literal($json->encode($last->{headers})) . ', ' . literal($secret) . ')') eq 't';
}
ok(signed_with('first-signing-secret'), 'signed with what the backend has');
$node->safe_psql('postgres', 'SELECT mlint.secret_refresh()');
my $reads = reads('hook');
deliver($node, 'hook', {}) for 1 .. 3;
is(reads('hook'), $reads, 'deliveries ask the backend for nothing');
put_there('hook', 'second-signing-secret');
is($node->safe_psql('postgres', 'SELECT mlint.secret_refresh()'), 0, 'it is not yet time');
alter(cache_ttl_s => 20);
wait_for('the dispatcher reads anew after an alter', sub { deliver($node, 'hook', {}); signed_with('second-signing-secret') });
put_there('hook', 'third-signing-secret');
$azure->control('stall');
{
	my ($rc, $out, $err) = $node->psql('postgres',
		"SET statement_timeout = '200ms'; SELECT mlint.secret_refresh(); RESET statement_timeout; SELECT 'goes on'",
		on_error_stop => 0);
	like($err, qr/statement timeout/, 'the job can be cancelled');
	is($out, 'goes on', '... and its session goes on');
}
$azure->control('normal');
is($node->safe_psql('postgres', 'SELECT mlint.secret_refresh()'), 1, 'the job sees that it has changed');
wait_for('and the dispatcher uses it', sub { deliver($node, 'hook', {}); signed_with('third-signing-secret') });
is($node->safe_psql('postgres', 'SELECT mlint.secret_refresh()'), 0, 'once');
$node->safe_psql('postgres', "SELECT mlint.secret_put('hook', 'fourth-signing-secret', backend => 'az')");
wait_for('what is put here it uses at once', sub { deliver($node, 'hook', {}); signed_with('fourth-signing-secret') });

# Shared memory does not show the values.
alter(breaker => undef, cache_ttl_s => 300);
# A statement is in shared memory with all that it says, so none says this.
my $silent = "neverInAStatement$$";
$azure->control("put/silent/$silent");
my $reader = $node->background_psql('postgres');
is($reader->query_safe("SELECT mlint.secret_get('silent', backend => 'az')"), $silent, 'kept in shared memory');
is(shown($node, 'az', 'cached > 0'), 't', 'as the view says');
my $pid = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
{
	# What shared memory is to any process: read as the operating system has it.
	my $found = 0;
	my $bytes = 0;
	open my $maps, '<', "/proc/$pid/maps" or BAIL_OUT("cannot read /proc/$pid/maps");
	open my $mem, '<:raw', "/proc/$pid/mem" or BAIL_OUT("cannot read /proc/$pid/mem");
	while (my $line = <$maps>)
	{
		my ($from, $to, $mode) = $line =~ /^([0-9a-f]+)-([0-9a-f]+) (\S+)/ or next;
		next unless $mode =~ /^rw.s/;
		for (my $at = hex $from; $at < hex $to; $at += 1 << 20)
		{
			my $size = hex($to) - $at;
			$size = 1 << 20 if $size > 1 << 20;
			sysseek $mem, $at, 0;
			sysread($mem, my $piece, $size) or last;
			$bytes += length $piece;
			$found++ if index($piece, $silent) >= 0;
		}
	}
	cmp_ok($bytes, '>', 10_000_000, 'shared memory was read');
	is($found, 0, 'the value is not in it');
}
# Dynamic shared memory is files.
my @segments = grep { -r } glob '/dev/shm/PostgreSQL.*';
is(scalar(grep { index(slurp_file($_), $silent) >= 0 } @segments), 0, 'nor in dynamic shared memory');
$reader->quit;

# So much is kept and no more: those used longest ago go.
my $files = PostgreSQL::Test::Utils::tempdir();
append_to_file(sprintf("%s/%03d", $files, $_), chr(97 + $_ % 26) x 60000) for 1 .. 400;
backend($node, 'files', 'file', { directory => $files });
is($node->safe_psql('postgres', "SELECT count(*) FROM generate_series(1, 400) i
	WHERE mlint.secret_get(to_char(i, 'FM000'), backend => 'files') = repeat(chr(97 + i % 26), 60000)"),
	400, '24 MB of values');
my $kept = shown($node, 'files', 'cached');
cmp_ok($kept, '>', 150, 'many are kept');
cmp_ok($kept, '<', 290, 'but no more than 16 MB');
is(get('silent'), $silent, 'what has gone is read again');

my $log = slurp_file($node->logfile);
unlike($log, qr/$marker|$silent|azure-client-secret|azure-token|signing-secret/, 'nothing secret is in the log');
$node->stop;
done_testing();
