# What the tests of dumps share: a database with something of everything that
# waits, and ways to dump and to restore it.
#
#	my ($node, $receiver) = restore_source();
#	$node->... command_ok(dump_to(...))
package RestoreTest;

use strict;
use warnings;

use Exporter 'import';
use MlintTest;
use Test::More;

our @EXPORT = qw(restore_source restore_freeze restore_ids restore_calm restored_delivers
  locks_of_restore);

# A node whose database has events that were delivered, that are pending, that
# are dead, and that no dispatcher has read, to destinations of both lanes; a
# secret, an archive that is held, a policy, a rule of rate limits. The
# dispatchers are frozen, so that whatever arrives comes from a copy.
sub restore_source
{
	my $receiver = MlintTest::Receiver->start;
	my $node = mlint_node('main');
	my ($ok, $off, $dead) = map { $receiver->url($_) } '/ok', '/status/200', '/status/404';

	$node->safe_psql('postgres', <<"EOQ");
SET client_min_messages = error;
CREATE ROLE alice LOGIN IN ROLE mlint_admin;
CREATE TABLE public.got (webhook text, event jsonb);
CREATE FUNCTION public.take(event jsonb) RETURNS void LANGUAGE sql
	AS 'INSERT INTO public.got SELECT current_user, event';
GRANT INSERT ON public.got TO alice;
SELECT mlint.destination_create('ok', 'http', '{"url": "$ok"}', '{a,done}');
SELECT mlint.destination_create('off', 'http', '{"url": "$off"}', '{a,p}', false);
SELECT mlint.destination_create('down', 'http', '{"url": "$dead"}', '{dead}');
SET ROLE alice;
SELECT mlint.destination_create('fn', 'function', '{"fn": "public.take"}', '{b}');
RESET ROLE;
SELECT mlint.destination_create('gone', 'http', '{"url": "$off"}', '{p}', false);
SELECT mlint.secret_put('api', 'sesame');
SELECT mlint.rate_rule_create('calls', 'token_bucket', 10, '1 minute');
SELECT mlint.retention_policy_create('short', 400);
SELECT mlint.session_register('s1', 'm'), mlint.session_register('s2', 'm');
SELECT mlint.prompt_add('s1', 'hello'), mlint.prompt_add('s2', 'hello');
SELECT mlint.archive_session('s1', policy => 'short');
SELECT mlint.archive_hold('s1', 'a case');
EOQ
	wait_for_delivery($node, publish($node, 'dead', { n => 0 }));
	deliver($node, 'done', { n => 1 }, "key => 'once'");
	publish($node, 'p', { n => 2 });
	wait_for_sql($node, 'one is pending', "SELECT count(*) = 2 FROM mlint.pending");
	$node->safe_psql('postgres', "SELECT mlint.destination_drop('gone')");
	wait_for_sql($node, 'what was dropped is forgotten', "SELECT count(*) = 1 FROM mlint.pending");
	restore_freeze($node);
	publish($node, 'a', { n => $_ }, "key => 'k$_'") for 3 .. 5;
	publish($node, 'b', { n => 6 });
	$node->safe_psql('postgres', "SELECT mlint.send('off', 'c', '{\"n\": 7}')");
	publish($node, 'nobody', {});
	return ($node, $receiver);
}

sub restore_freeze
{
	my ($node, $signal) = @_;
	my @pids = worker_pids($node, 'mlint dispatcher', 'postgres');

	if ($signal) { kill $signal, @pids; }
	else { freeze($node, @pids); }
	return;
}

# webhook-id => event id, of what goes to a destination.
sub restore_ids
{
	my ($node, $destination, $db) = @_;
	return split /\n/, $node->safe_psql($db // 'postgres', <<"EOQ");
SELECT mlint.webhook_id(e) FROM mlint.event e JOIN mlint.deliveries d ON d.event_id = e.id
WHERE d.destination = '$destination' AND d.state IN ('pending', 'in_flight') ORDER BY e.id
EOQ
}

# Who keeps the workers out?
sub locks_of_restore
{
	my ($node, $db) = @_;
	return $node->safe_psql($db // 'postgres',
		"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 19788 AND objid = 1001 AND mode = 'RowExclusiveLock'");
}

# Nothing is restored any more.
sub restore_calm
{
	my ($node, $db, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_sql($node, "$what: complete", 'SELECT count(*) = 0 FROM mlint.restores',
		't', $db);
}

# The copy delivers what was pending: each once more than before, under the
# same id; and what is held back there when it is let go.
my %times;

sub restored_delivers
{
	my ($node, $db, $receiver, $what, $ids) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	restore_calm($node, $db, $what);
	$times{$receiver}++;
	wait_for_sql($node, "$what: what waited is delivered", <<'EOQ', 't', $db);
SELECT count(*) = 0 FROM mlint.deliveries WHERE state IN ('pending', 'in_flight') AND destination IN ('ok', 'fn')
EOQ
	is($node->safe_psql($db, "SELECT mlint.destination_alter('off', enabled => true)"), '',
		"$what: the disabled one is enabled");
	wait_for_sql($node, "$what: and what waited for it is delivered",
		"SELECT count(*) = 0 FROM mlint.deliveries WHERE state IN ('pending', 'in_flight')",
		't', $db);
	my %got = %{ $receiver->arrivals('/ok', qr/"type\\":\\"a\\"/) };
	is(join(' ', map { "$_=$got{$_}" } sort keys %got),
		join(' ', map { "$_=$times{$receiver}" } sort @{ $ids->{ok} }),
		"$what: each event once, and none besides");
	%got = %{ $receiver->arrivals('/status/200') };
	is(join(' ', map { "$_=$got{$_}" } sort keys %got),
		join(' ', map { "$_=$times{$receiver}" } sort @{ $ids->{off} }),
		"$what: and of the other");
	is($node->safe_psql($db, "SELECT webhook, event -> 'data' FROM public.got"),
		'alice|{"n": 6}', "$what: functions run as the role that was meant");
	is($node->safe_psql($db, 'SELECT destination, event_type, attempts, status_code FROM mlint.dead_letters'),
		'down|dead|1|404', "$what: the dead letter is there");
	return;
}

1;
