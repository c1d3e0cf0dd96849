# What has gone wrong once: lookups that are cancelled, indexes that are being
# built, the first and the last function of a database, order while a batch is
# open, session defaults that do not suit, functions that unlock everything,
# answers that are no text, prepared transactions, databases that are not in
# UTF-8, numbers that come again.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use MlintTest;
use PostgreSQL::Test::Utils;

my $node = mlint_node('mended');
my $receiver = MlintTest::Receiver->start;
my $true = $JSON::PP::true;

sub sql { return $node->safe_psql($_[1] // 'postgres', $_[0]); }

sub http
{
	my ($name, $path, $options) = @_;
	create_destination($node, $name, 'http',
		{ url => $receiver->url($path), %{ $options // {} } });
	return;
}

# A database of its own, with mlint and a table that its functions write to.
sub database
{
	my ($name, $how) = @_;
	sql("CREATE DATABASE $name " . ($how // ''));
	sql(<<'EOQ', $name);
CREATE EXTENSION mlint;
CREATE TABLE public.got (data jsonb);
CREATE FUNCTION public.get(e jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO public.got VALUES (e->'data') $$;
EOQ
	return;
}

sub create_destination_in
{
	my ($db, $name, $path, $options) = @_;
	my $json = JSON::PP->new->encode({ url => $receiver->url($path), %{ $options // {} } });
	sql("SELECT mlint.destination_create('$name', 'http', " . literal($json) . ')', $db);
	return;
}

# The data that arrived at a path, in the order of arrival.
sub data
{
	return join ' ', map { JSON::PP->new->decode($_->{body})->{data} } $receiver->requests($_[0]);
}

http('ok', '/ok');

# ---- publish() looks up where to write ----
my $locker = $node->background_psql('postgres');
my $session = $node->background_psql('postgres', on_error_stop => 0);
$locker->query_safe('BEGIN; LOCK TABLE ONLY mlint.event_1 IN ACCESS EXCLUSIVE MODE');
$session->query("SET statement_timeout = '100ms'; SELECT mlint.publish('ok', '1')");
like($session->{stderr}, qr/canceling statement due to statement timeout/,
	'publish() is cancelled at its lookup');
$locker->query_safe('ROLLBACK');
my $id = $session->query("RESET statement_timeout; SELECT mlint.publish('ok', '2')");
wait_for('... and then publishes, in the same session, what arrives', sub { data('/ok') eq '2' });
is( sql("SET enable_seqscan = off; SELECT count(*) FROM mlint.event WHERE id = $id"), 1,
	'... and is in the indexes');

$locker->query_safe("BEGIN; SELECT mlint.publish('ok', '3')");
my ($rc, $out, $err) = $node->psql('postgres', <<'EOQ');
SET statement_timeout = '3s';
CREATE INDEX CONCURRENTLY unfinished ON mlint.event_1 (type);
EOQ
like($err, qr/statement timeout/, 'an index on the log is not finished');
is(sql("SELECT indisready, indisvalid FROM pg_index WHERE indexrelid = 'mlint.unfinished'::regclass"), 'f|f',
	'... nor ready');
$id = publish($node, 'ok', 4);
ok(wait_for_delivery($node, $id), '... publish() leaves it alone');
$session->query("SELECT mlint.publish('ok', '5')");
$locker->query_safe('COMMIT');
sql('DROP INDEX mlint.unfinished');
deliver($node, 'ok', 6);
wait_for('... and all arrives', sub { $receiver->count('/ok') == 5 });

# One that becomes ready while a session has the lookup done.
sql('CREATE EXTENSION amcheck');
$locker->query_safe("BEGIN; SELECT mlint.publish('ok', '7')");
my $builder = $node->background_psql('postgres');
$builder->query_until(qr/go/, "\\echo go\nCREATE INDEX CONCURRENTLY finished ON mlint.event_1 (type);\n");
wait_for_sql($node, 'an index is being built',
	"SELECT NOT indisready FROM pg_index WHERE indexrelid = to_regclass('mlint.finished')");
$session->query("SELECT mlint.publish('ok', '8')");
$locker->query_safe('COMMIT');
wait_for_sql($node, '... and is finished',
	"SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('mlint.finished')");
$id = $session->query("SELECT mlint.publish('ok', '9')");
ok(wait_for_delivery($node, $id), '... events are published all the while');
is(sql("SELECT bt_index_check('mlint.finished', true)"), '', '... and all are in it');
$_->quit for $builder, $session, $locker;
sql('DROP INDEX mlint.finished');

# ---- the first function, and the last ----
database('functions');
$session = $node->background_psql('functions');
$session->query_safe('BEGIN; SELECT pg_current_xact_id()');
sql('INSERT INTO public.got VALUES (\'"another transaction"\')', 'functions');
$session->query_safe("SELECT mlint.destination_create('get', 'function', '{\"fn\": \"public.get\"}')");
$id = $session->query_safe("SELECT mlint.publish('a', '1')");
$session->query_safe('COMMIT');
$session->quit;
ok(wait_for_delivery($node, $id, 'functions'),
	'a transaction creates the first function destination and publishes');
is(sql("SELECT count(*) FROM public.got WHERE data = '1'", 'functions'), 1, '... to it too');
sql("SELECT mlint.destination_drop('get')", 'functions');
$node->restart;
$id = sql("SELECT mlint.publish('a', '2')", 'functions');
ok(wait_for_delivery($node, $id, 'functions'),
	'the last function destination is dropped: events end all the same, after a restart');
wait_for_sql($node, '... and so do segments', 'SELECT mlint.segment_finished(1)', 't', 'functions');

# ---- order ----
# The batch stays open while the slow one is out; by then the first has failed.
my %ordered = (ordered => $true, retry => { strategy => 'immediate' }, breaker => { threshold => 0 });
http('ordered', '/flaky?fail=1&ordered', \%ordered);
http('slow', '/slow/230');
$session = $node->background_psql('postgres');
foreach my $round (1 .. 3)
{
	my ($first, $third) = ($round * 10 + 1, $round * 10 + 3);

	$receiver->forget;
	$session->query_safe("SELECT mlint.publish('ordered', '$first'), mlint.publish('slow', '0'), mlint.publish('ordered', '" . ($first + 1) . "')");
	my $end = time + $MlintTest::deadline;
	1 until $receiver->count('/flaky?fail=1&ordered') || time > $end;
	$id = $session->query_safe("SELECT mlint.publish('ordered', '$third')");
	ok(wait_for_delivery($node, $id), 'ordered: the first fails while its batch is open, a third comes');
	is(data('/flaky?fail=1&ordered'), join(' ', map { "$_ $_" } $first .. $third), '... in order');
}
$session->quit;
sql(<<'EOQ');
CREATE SEQUENCE public.tries;
CREATE FUNCTION public.fail_once(e jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
	BEGIN
		IF nextval('public.tries') = 1 THEN RAISE EXCEPTION 'not yet'; END IF;
		RETURN e;
	END $$;
EOQ
http('shaped', '/status/200?shaped', { %ordered, transform => 'public.fail_once' });
$id = sql("SELECT max(mlint.publish('shaped', to_jsonb(n))) FROM generate_series(1, 5) n");
ok(wait_for_delivery($node, $id), 'ordered: a transform fails once');
is(sql('SELECT last_value FROM public.tries'), 6, '... and only once');
is(data('/status/200?shaped'), '1 2 3 4 5', '... in order');
sql("SELECT mlint.destination_alter('shaped', enabled => false)");
sql("SELECT mlint.publish('shaped', to_jsonb(n)) FROM generate_series(6, 9) n");
wait_for_sql($node, '... when all have waited',
	"SELECT count(*) FROM mlint.pending WHERE destination_id = (SELECT id FROM mlint.destinations WHERE name = 'shaped')", 4);
sql("ALTER SEQUENCE public.tries RESTART; SELECT mlint.destination_alter('shaped', enabled => true)");
wait_for('... too, it fails and is tried again', sub { $receiver->count('/status/200?shaped') == 9 });
is(data('/status/200?shaped'), join(' ', 1 .. 9), '... in order');

# ---- a database's defaults ----
database('odd');
create_destination_in('odd', 'ok', '/status/200?odd');
sql("SELECT mlint.destination_create('get', 'function', '{\"fn\": \"public.get\"}')", 'odd');
$id = sql("SELECT mlint.publish('a', '0')", 'odd');
ok(wait_for_delivery($node, $id, 'odd'), 'a database delivers');
sql('ALTER DATABASE odd SET default_transaction_read_only = on');
sql('ALTER DATABASE odd SET default_transaction_isolation = serializable');
sql("ALTER DATABASE odd SET statement_timeout = '1ms'");
my %before = map { $_ => 1 } worker_pids($node, 'mlint dispatcher', 'odd'), worker_pids($node, 'mlint scheduler', 'odd');
is(keys %before, 3, '... with three workers');
sql('SELECT pg_terminate_backend(' . $_ . ')') for keys %before;
wait_for('... which come back with other defaults', sub {
		3 == grep { !$before{$_} } worker_pids($node, 'mlint dispatcher', 'odd'),
		  worker_pids($node, 'mlint scheduler', 'odd'); });
# A SET would be under the timeout itself.
$ENV{PGOPTIONS} = '-c statement_timeout=0 -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed';
$id = sql("SELECT max(mlint.publish('a', to_jsonb(n))) FROM generate_series(1, 50) n", 'odd');
is(sql("SELECT mlint.event_wait($id, '$MlintTest::deadline s')", 'odd'), 't', '... and deliver');
is(join(' ', sort { $a <=> $b } split / /, data('/status/200?odd')), join(' ', 0 .. 50), '... each event once');
is(sql("SELECT count(*), count(DISTINCT data) FROM public.got", 'odd'), '51|51', '... also to a function');
delete $ENV{PGOPTIONS};

# ---- a function that unlocks everything ----
sql(<<'EOQ');
CREATE FUNCTION public.unlock(e jsonb) RETURNS void LANGUAGE sql AS
	$$ SELECT pg_advisory_unlock_all() $$;
SELECT mlint.destination_create('unlock', 'function', '{"fn": "public.unlock"}', '{unlock}');
EOQ
delivery_is($node, deliver($node, 'unlock'), 'delivered|1||', 'a function unlocks everything');
wait_for_sql($node, '... but for the lock of its lane', <<'EOQ');
SELECT count(*) = 1 FROM pg_locks l
JOIN mlint.stat_workers w ON w.pid = l.pid AND w.database = current_database()
WHERE l.locktype = 'advisory' AND l.objsubid = 19788 AND l.granted
	AND w.kind = 'dispatcher' AND w.lane = 0 AND l.objid = 0
EOQ

# ---- an answer that is no text ----
http('latin', '/latin1/400', { retry => { strategy => 'none' } });
my $said = 'HTTP 400: gr??er als erlaubt';
delivery_is($node, deliver($node, 'latin'), "dead|1|400|$said", 'an answer that is not UTF-8');
wait_for_sql($node, '... in stat_destinations', "SELECT last_error FROM mlint.stat_destinations WHERE destination = 'latin'", $said);
is(sql("SELECT detail FROM mlint.destination_test('latin')"), $said, '... and by destination_test()');

# ---- destination_test() wherever a function may stand ----
sql(<<'EOQ');
CREATE FUNCTION public.fail(e jsonb) RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'never'; END $$;
SELECT mlint.destination_create('fail', 'function', '{"fn": "public.fail"}', '{fail}');
EOQ
my $offset = -s $node->logfile;
($rc, $out, $err) = $node->psql('postgres', <<'EOQ');
SELECT d.name, t.ok FROM mlint.destinations d, LATERAL mlint.destination_test(d.name) t
WHERE d.name IN ('ok', 'unlock', 'latin', 'fail') ORDER BY 1;
CREATE TABLE public.tested AS SELECT d.name, (mlint.destination_test(d.name)).ok FROM mlint.destinations d
	WHERE d.name IN ('ok', 'unlock', 'latin', 'fail');
CREATE TABLE public.again AS SELECT ok FROM mlint.destination_test('fail');
INSERT INTO public.again SELECT t.ok FROM public.tested d, mlint.destination_test(d.name) t;
SELECT count(*), count(*) FILTER (WHERE ok) FROM public.tested;
SELECT count(*), count(*) FILTER (WHERE ok) FROM public.again;
EOQ
is($out, "fail|f\nlatin|f\nok|t\nunlock|t\n4|2\n5|2", 'destination_test() in FROM, LATERAL and CREATE TABLE AS');
is($err, '', '... without a warning');
unlike(slurp_file($node->logfile, $offset), qr/WARNING|ERROR|PANIC|FATAL/, '... in the log either');

# ---- two-phase commit ----
$id = sql("BEGIN; SELECT mlint.publish('ok', '10'); PREPARE TRANSACTION 'two'");
is(sql("COMMIT PREPARED 'two'; SELECT mlint.event_wait($id, '30 s')"), 't', 'COMMIT PREPARED wakes the dispatcher');

# ---- another encoding ----
database('latin', "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
sql(<<'EOQ', 'latin');
CREATE FUNCTION public.only(e jsonb) RETURNS jsonb LANGUAGE sql AS
	$$ SELECT jsonb_build_object('data', e->'data') $$;
EOQ
create_destination_in('latin', 'whole', '/status/200?whole');
create_destination_in('latin', 'only', '/status/200?only', { transform => 'public.only' });
$id = sql(q(SELECT mlint.publish('a', '"gr\u00fc\u00dfe"', '{"m": "\u00e9"}')), 'latin');
is(sql("SELECT length(data->>0) FROM mlint.events WHERE id = $id", 'latin'), 5, 'a database in LATIN1');
ok(wait_for_delivery($node, $id, 'latin'), '... delivers');
is(data('/status/200?whole'), "gr\x{fc}\x{df}e", '... in UTF-8');
is(JSON::PP->new->decode(($receiver->requests('/status/200?whole'))[0]{body})->{metadata}{m}, "\x{e9}", '... all of it');
is(data('/status/200?only'), "gr\x{fc}\x{df}e", '... transformed too');

# ---- numbers that come again ----
my $state = "SELECT d.id, delivered, failed, dead, breaker, last_error FROM mlint.stat_destinations JOIN mlint.destinations d ON d.name = destination";
database('renewed');
create_destination_in('renewed', 'dead', '/status/500?renewed',
	{ retry => { strategy => 'none' }, breaker => { threshold => 1, timeout_s => 3600 } });
$id = sql("SELECT mlint.publish('a', '1')", 'renewed');
ok(wait_for_delivery($node, $id, 'renewed'), 'a destination fails');
wait_for_sql($node, '... and its breaker is open', $state, "1|0|1|1|open|HTTP 500: status\n", 'renewed');
sql('DROP EXTENSION mlint; CREATE EXTENSION mlint', 'renewed');
create_destination_in('renewed', 'alive', '/status/200?renewed');
is(sql($state, 'renewed'), '1|0|0|0|closed|', 'after DROP and CREATE EXTENSION another of the same number begins anew');
$id = sql("SELECT mlint.publish('a', '2')", 'renewed');
ok(wait_for_delivery($node, $id, 'renewed'), '... and is delivered to');
is(data('/status/200?renewed'), '2', '... at once');

# ---- a setting ----
foreach my $value ('7 daysxx', '7 dayss', 'days', '0 days', '-1 day', '7')
{
	($rc, $out, $err) = $node->psql('postgres', "ALTER SYSTEM SET mlint.event_retention = '$value'");
	like($err, qr/invalid value for parameter "mlint.event_retention"/, "mlint.event_retention = '$value' is refused");
}
sql("ALTER SYSTEM SET mlint.event_retention = '$_'") for '7 days', '1 day', '12 hours', '30 min', '2 weeks', '1 year';
sql("ALTER SYSTEM RESET mlint.event_retention");
pass('... and what is an interval is not');

$node->stop;
done_testing();
