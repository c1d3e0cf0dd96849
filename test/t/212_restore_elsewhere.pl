# A dump restored where something is already: twice, into a database that has
# events of its own, into a cluster that lacks a role; and by the wrong means.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use RestoreTest;
use Test::More;

my ($node, $receiver) = restore_source();
my $dir = PostgreSQL::Test::Utils::tempdir();
my %ids = map { $_ => [ restore_ids($node, $_) ] } qw(ok off);
my $dump = "$dir/dump";
$node->command_ok([ 'pg_dump', '-Fc', '-C', '-f', $dump, $node->connstr('postgres') ], 'dump');

sub sql { my ($db, $sql) = @_; return $node->safe_psql($db, $sql); }

# How often each event of the dump has arrived.
sub arrived
{
	my ($path) = @_;
	my %got = %{ $receiver->arrivals($path) };
	my ($of) = $path =~ /200/ ? 'off' : 'ok';
	return join ' ', map { $got{$_} // 0 } @{ $ids{$of} };
}

# ---- twice ----

sql('postgres', 'CREATE DATABASE twice');
$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr('twice'), $dump ], 'restored');
restore_calm($node, 'twice', 'once');
wait_for_sql($node, '... and delivered', <<'EOQ', 't', 'twice');
SELECT count(*) = 0 FROM mlint.deliveries WHERE state IN ('pending', 'in_flight') AND destination <> 'off'
EOQ
is(arrived('/ok'), '1 1 1', 'each event once');
$node->command_checks_all([ 'pg_restore', '-a', '-d', $node->connstr('twice'), $dump ],
	1, [qr/^$/], [ qr/duplicate key value violates unique constraint "destination_pkey"/,
		qr/duplicate key value violates unique constraint "secret_pkey"/ ],
	'restored again: what is there already is said');
restore_calm($node, 'twice', 'twice');
sql('twice', "SELECT mlint.destination_alter('off', enabled => true)");
wait_for_sql($node, '... and delivered', <<'EOQ', 't', 'twice');
SELECT count(*) = 0 FROM mlint.deliveries WHERE state IN ('pending', 'in_flight')
EOQ
is(arrived('/ok'), '1 1 1', 'restored again: no event twice');
is(arrived('/status/200'), '1 1 1 1 1', '... nor any that was still pending');
is(sql('twice', "SELECT event -> 'data' FROM public.got"), '{"n": 6}', '... nor any in the database');

# ---- where events are published ----

my $here = $receiver->url('/size/3');
sql('postgres', 'CREATE DATABASE busy');
sql('busy', <<"EOQ");
CREATE EXTENSION mlint;
SET client_min_messages = error;
CREATE TABLE public.got (webhook text, event jsonb);
CREATE FUNCTION public.take(event jsonb) RETURNS void LANGUAGE sql
	AS 'INSERT INTO public.got SELECT current_user, event';
GRANT INSERT ON public.got TO alice;
SELECT setval('mlint.destination_id_seq', 100);
SELECT mlint.destination_create('here', 'http', '{"url": "$here"}', '{own}');
SELECT mlint.publish('own', '{}') FROM generate_series(1, 6);
EOQ
wait_for_sql($node, 'a database delivers its own', "SELECT count(*) = 6 FROM mlint.deliveries WHERE state = 'delivered'", 't', 'busy');
$node->command_ok([ 'pg_restore', '-e', '-a', '-n', 'mlint', '-d', $node->connstr('busy'), $dump ],
	'... and the data of a dump comes into it');
sql('busy', "SELECT mlint.publish('own', '{}') FROM generate_series(1, 20)");
restore_calm($node, 'busy', 'busy');
sql('busy', "SELECT mlint.destination_alter('off', enabled => true)");
wait_for_sql($node, '... and all is delivered', <<'EOQ', 't', 'busy');
SELECT count(*) = 0 FROM mlint.deliveries WHERE state IN ('pending', 'in_flight')
EOQ
is(arrived('/ok'), '2 2 2', '... each event under its own id');
is(arrived('/status/200'), '2 2 2 2 2', '... to each destination');
is(join(' ', values %{ $receiver->arrivals('/size/3') }), join(' ', (1) x 26), '... and its own, once');
is(sql('busy', 'SELECT count(*) = count(DISTINCT id) FROM mlint.event'), 't', '... no number stands for two');
is(sql('busy', "SELECT e.type, e.key FROM mlint.event e JOIN mlint.event_key k ON k.key = e.key AND k.event_id = e.id WHERE k.key = 'k3'"),
	'a|k3', '... and a key for its event');
sql('busy', "SELECT mlint.publish('own', '{}') FROM generate_series(1, 20)");

# ---- another cluster, without the role ----

my $other = mlint_node('other', create => 0);
$other->command_checks_all([ 'pg_restore', '-d', $other->connstr('postgres'), '--no-owner', $dump ],
	1, [], [ qr/role "alice" does not exist/ ], 'into a cluster without a role');
restore_calm($other, 'postgres', 'elsewhere');
is($other->safe_psql('postgres', "SELECT owner IS NULL FROM mlint.destinations WHERE name = 'fn'"),
	't', '... what was its own is nobody\'s');
wait_for_sql($other, '... the others deliver',
	"SELECT count(*) = 0 FROM mlint.deliveries WHERE destination = 'ok' AND state <> 'delivered'");
is(arrived('/ok'), '3 3 3', '... each event once');
is($other->safe_psql('postgres', "SELECT state, attempts FROM mlint.deliveries WHERE destination = 'fn'"),
	'pending|0', '... its function does not run');
is($other->safe_psql('postgres', 'SELECT count(*) FROM public.got'), 0, '... as nobody');
$other->safe_psql('postgres', "SELECT mlint.owned_reassign(NULL, current_user)");
wait_for_sql($other, '... until somebody takes it over',
	"SELECT webhook = current_user FROM public.got");
$other->stop;

# ---- in the wrong way ----

# Triggers are not switched off, and rows come all the same.
sql('postgres', "CREATE DATABASE $_") for qw(untriggered again);
sql($_, 'CREATE EXTENSION mlint') for qw(untriggered again);
$node->command_checks_all(
	[ 'pg_restore', '-a', '-n', 'mlint', '--disable-triggers', '-d', $node->connstr('untriggered'), $dump ],
	1, [], [ qr/triggers of table "dump_event" cannot be enabled or disabled all at once/ ], 'without triggers: refused');
restore_calm($node, 'untriggered', 'untriggered');
is(sql('untriggered', "SELECT string_agg(DISTINCT tgenabled, '') FROM pg_trigger WHERE tgname IN ('1 restore', '1 restored')"),
	'A', '... and they are as they were');
wait_for_sql($node, '... and all is delivered',
	"SELECT count(*) = 0 FROM mlint.deliveries WHERE destination = 'ok' AND state <> 'delivered'", 't', 'untriggered');
is(arrived('/ok'), '4 4 4', '... each event once');

# Somebody gives up in the middle, and begins anew.
$node->command_ok([ 'pg_restore', '-e', '-a', '-n', 'mlint', '-t', 'dump_event', '-t', 'dump_delivery', '-d',
		$node->connstr('again'), $dump ], 'begun');
$node->command_checks_all([ 'pg_restore', '-a', '-n', 'mlint', '-d', $node->connstr('again'), $dump ],
	1, [], [ qr/unique constraint "dump_delivery_pkey"/ ], '... and begun anew: what is there already is said');
restore_calm($node, 'again', 'again');
wait_for_sql($node, '... and all is delivered',
	"SELECT count(*) = 0 FROM mlint.deliveries WHERE destination = 'ok' AND state <> 'delivered'", 't', 'again');
is(arrived('/ok'), '5 5 5', '... each event once');

# Of a version that has another table.
sql('again', "INSERT INTO mlint.dump VALUES ('mlint.of_another', 3)");
wait_for_sql($node, 'a table that is not known here lacks',
	"SELECT problem LIKE 'mlint.of_another, of which%' FROM mlint.restores", 't', 'again');
sql('again', 'SELECT mlint.restore_accept()');
restore_calm($node, 'again', '... until that is accepted');

# ---- who may ----

sql('postgres', 'CREATE ROLE guest LOGIN IN ROLE mlint_user, mlint_reader');
my ($rc, $out, $err) = $node->psql('busy', 'SET ROLE guest; SELECT mlint.restore_accept()');
like($err, qr/permission denied/, 'only who configures can accept what lacks');
($rc, $out, $err) = $node->psql('busy', "SET ROLE guest; INSERT INTO mlint.dump VALUES ('x', 1)");
like($err, qr/permission denied/, 'and nobody but who restores writes there');
is(locks_of_restore($node), 0, '... which keeps nobody');

restore_freeze($node, 'CONT');
$node->stop;
done_testing();
