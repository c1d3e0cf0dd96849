# CREATE, DROP and CREATE again, in every way: in sessions that go on, in
# transactions that are rolled back, under load, with users' objects that depend
# on ours, with a schema that is there already. Nothing of one life is seen in
# the next, and nothing crashes, loops or deadlocks.

use strict;
use warnings;

use IPC::Run ();
use File::Basename qw(dirname);
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use SecretTest;
use Test::More;
use Time::HiRes qw(usleep);

my $rooms = dirname($MlintTest::peers) . '/rooms.sql';
my $receiver = MlintTest::Receiver->start;
my $mounts = PostgreSQL::Test::Utils::tempdir();
my $node = mlint_node('main', conf => "mlint.secret_mount_directory = '$mounts'\n");

sub sql { return $node->safe_psql($_[1] // 'postgres', $_[0]); }
my $again = 'psql -Xqc "SET client_min_messages = error" -c "DROP EXTENSION mlint" -c "CREATE EXTENSION mlint" -d ' . "'" . $node->connstr('postgres') . "'";

# ---- one session, two lives ----

my ($out, $err) = ('', '');
IPC::Run::run([ 'psql', '-Xq', '-d', $node->connstr('postgres'), '-v', 'p=one', '-v', 'url=' . $receiver->url('/ok'),
		'-f', $rooms, '-c', '\echo =====', '-c', "\\! $again", '-c', '\set p two', '-f', $rooms ],
	'<', \'', '>', \$out, '2>', \$err);
is($err, '', 'a session uses all rooms before and after DROP and CREATE by another');
my ($first, $second) = split /=====\n/, $out;
like($first, qr/^usage_by_tag\|t$/m, '... all of them');
s/one|two/P/g for $first, $second;
is($second, $first, '... and they do the same for it, and know nothing of before');

# Ids begin anew, and what is in shared memory by id must not be taken for old.
sql("SELECT mlint.rate_rule_create('rule', 'token_bucket', 1, '1 day')");
is(sql("SELECT mlint.rate_allow('rule', 'x'), mlint.rate_allow('rule', 'x')"), 't|f', 'a limit is used up');
create_destination($node, 'dead', 'http', { url => 'http://127.0.0.1:1/', retry => { max_retries => 0 }, breaker => { threshold => 1, timeout_s => 3600 } });
publish($node, 'dead');
wait_for_sql($node, '... and a breaker open', "SELECT breaker = 'open' FROM mlint.stat_destinations WHERE destination = 'dead'");
sql("SELECT mlint.secret_put('s', 'old')");
my $session = $node->background_psql('postgres');
$session->query_safe("SELECT mlint.secret_get('s'); SELECT mlint.rate_allow('rule', 'x')");
sql('DROP EXTENSION mlint; CREATE EXTENSION mlint');
sql("SELECT mlint.rate_rule_create('rule', 'token_bucket', 1, '1 day')");
is($session->query_safe("SELECT mlint.rate_allow('rule', 'x')"), 't', 'in the next life the limit is as new');
is(sql('SELECT refused FROM mlint.stat_rate_limits'), 0, '... its counters too');
create_destination($node, 'alive', 'http', { url => $receiver->url('/status/204') });
is(sql('SELECT breaker, dead, delivered FROM mlint.stat_destinations'), 'closed|0|0', '... and the destination of that id');
deliver($node, 'alive');
is(sql("SELECT count(*) FROM mlint.secrets WHERE name = 's'"), 0, '... and there is no secret');
is($session->query_safe("SELECT mlint.secret_put('s', 'new'); SELECT mlint.secret_get('s')"), "1\nnew", '... until there is another');

# A DROP that is rolled back, under load; and to a savepoint.
sql("SELECT mlint.publish('alive', '{}') FROM generate_series(1, 500)");
sql('BEGIN; DROP EXTENSION mlint CASCADE; ROLLBACK');
sql('BEGIN; SAVEPOINT s; DROP EXTENSION mlint CASCADE; ROLLBACK TO s; COMMIT');
is($session->query_safe("SELECT mlint.secret_get('s'), mlint.rate_allow('rule', 'x')"), 'new|f', 'a DROP that is rolled back changes nothing');
deliver($node, 'alive');
wait_for_sql($node, '... and everything is delivered', "SELECT count(*) = 502 FROM mlint.deliveries WHERE state = 'delivered'");
$session->quit;

# ---- what depends on it ----

sql(<<'EOQ');
CREATE VIEW of_ours AS SELECT * FROM mlint.deliveries;
CREATE TABLE limited (a text);
CREATE TRIGGER limited BEFORE INSERT ON limited FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger('rule', 'a');
CREATE TABLE defaults (id int, event bigint DEFAULT mlint.publish('alive', '{}'));
EOQ
like(answer($node, 'DROP EXTENSION mlint'), qr/2BP01.*view of_ours depends on view mlint.deliveries.*HINT:.*CASCADE/s,
	'DROP EXTENSION with dependent objects is refused, and names them');
deliver($node, 'alive');
sql('SET client_min_messages = error; DROP EXTENSION mlint CASCADE');
is(sql("INSERT INTO limited VALUES ('a'); INSERT INTO defaults VALUES (1) RETURNING event IS NULL"), 't',
	'... CASCADE takes them along, and leaves the tables');
is(sql("SELECT count(*) FROM pg_roles WHERE rolname IN ('mlint_admin', 'mlint_user', 'mlint_reader')"), 3, 'the roles stay');
is(sql("SELECT count(*) FROM pg_class WHERE relnamespace = 'mlint'::regnamespace"), 0, '... and the schema, empty');

# ---- what may be there before ----

like(answer($node, 'CREATE EXTENSION mlint SCHEMA public'), qr/must be installed in schema "mlint"/, 'there is one schema for it');
sql('CREATE TABLE mlint.event (id int)');
like(answer($node, 'CREATE EXTENSION mlint'), qr/relation "event" already exists/, 'a table of one of our names: refused, and nothing is made');
is(sql("SELECT count(*) FROM pg_class WHERE relnamespace = 'mlint'::regnamespace"), 1, '... nor taken');
sql('DROP SCHEMA mlint CASCADE; CREATE ROLE somebody; CREATE SCHEMA mlint AUTHORIZATION somebody');
like(answer($node, 'CREATE EXTENSION mlint'), qr/schema "mlint" exists already and belongs to another role.*HINT/s, 'a schema of somebody else: refused');
sql('DROP SCHEMA mlint; CREATE EXTENSION mlint');

# ---- the schema ----

like(answer($node, 'ALTER EXTENSION mlint SET SCHEMA public'), qr/does not support SET SCHEMA/, 'ALTER EXTENSION SET SCHEMA is refused');
like(answer($node, 'ALTER SCHEMA mlint RENAME TO other'), qr/0A000.*schema "mlint" cannot be renamed.*DETAIL/s, 'ALTER SCHEMA RENAME too');
like(answer($node, 'DO $$BEGIN ALTER SCHEMA mlint RENAME TO other; END$$'), qr/cannot be renamed/, '... in a function, too');
create_destination($node, 'alive', 'http', { url => $receiver->url('/status/204') });
sql("SELECT mlint.publish('alive', '{}') FROM generate_series(1, 500)");
like(answer($node, 'DROP SCHEMA mlint'), qr/2BP01.*extension mlint depends on schema mlint/s, 'DROP SCHEMA needs CASCADE');
deliver($node, 'alive');
sql('SET client_min_messages = error; DROP SCHEMA mlint CASCADE');
is(sql("SELECT count(*) FROM pg_extension WHERE extname = 'mlint'"), 0, '... and then takes the extension along');
wait_for_sql($node, '... and its workers', "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'mlint%' AND datname IS NOT NULL");
sql('CREATE SCHEMA mlint; ALTER SCHEMA mlint RENAME TO other; DROP SCHEMA other');
pass('without the extension, a schema of that name is like any other');

# ---- again and again, in the middle of batches ----

my $log = -s $node->logfile;
for my $i (1 .. 6)
{
	sql('CREATE EXTENSION mlint');
	create_destination($node, 'slow', 'http', { url => $receiver->url('/slow/100') });
	sql("SELECT mlint.destination_create('fast', 'http', '{\"url\": \"" . $receiver->url('/status/205') . "\"}', '{slow}')");
	sql("SELECT mlint.publish('slow', '{}') FROM generate_series(1, 2000)");
	# Not at the same moment each time.
	wait_for_sql($node, "life $i", 'SELECT count(*) > ' . 100 * $i . " FROM mlint.deliveries WHERE state = 'delivered'");
	sql('DROP EXTENSION mlint');
}
unlike(slurp_file($node->logfile, $log), qr/(?:ERROR|PANIC|FATAL|WARNING):  (?!terminating|event pattern|canceling autovacuum task)/, 'DROP EXTENSION in the middle of batches: no worker says a word');

# ---- databases ----

sql('CREATE ROLE owner_of_it; GRANT CREATE ON TABLESPACE pg_default TO owner_of_it');
for my $db ('left', 'right')
{
	sql("CREATE DATABASE \"$db\"");
	sql('CREATE EXTENSION mlint', $db);
	sql("SELECT mlint.destination_create('to', 'http', '{\"url\": \"" . $receiver->url("/status/20" . ($db eq 'left' ? 6 : 7)) . "\"}', '{to}')", $db);
	sql("SELECT mlint.secret_put('same', '$db'); SELECT mlint.rate_rule_create('same', 'token_bucket', 1, '1 day')", $db);
}
for my $db ('left', 'right')
{
	is(sql("SELECT mlint.secret_get('same')", $db), $db, "$db: a secret of its own");
	is(sql("SELECT mlint.rate_allow('same', 'x'), mlint.rate_allow('same', 'x')", $db), 't|f', '... a limit of its own');
}
sql('DROP EXTENSION mlint; CREATE EXTENSION mlint', 'left');
is(sql("SELECT mlint.rate_allow('same', 'x')", 'right'), 'f', 'a new life in one leaves the other as it was');
sql('ALTER DATABASE "right" OWNER TO owner_of_it');
my $event = sql("SELECT mlint.publish('to', '{}')", 'right');
ok(wait_for_delivery($node, $event, 'right'), 'ALTER DATABASE OWNER, and it delivers');
sql("SELECT mlint.publish('to', '{}') FROM generate_series(1, 2000)", 'right');
my $reader = $node->background_psql('right');
$reader->query_safe("SELECT mlint.secret_get('same')");
sql('DROP DATABASE "right" WITH (FORCE)');
pass('DROP DATABASE FORCE, with workers and sessions in it');
eval { $reader->quit };
sql('CREATE EXTENSION mlint');
create_destination($node, 'alive', 'http', { url => $receiver->url('/status/204') });
deliver($node, 'alive');

# In a prepared transaction: whoever looked meanwhile has found none.
sql('CREATE DATABASE prepared');
sql("BEGIN; CREATE EXTENSION mlint; SELECT mlint.destination_create('alive', 'http', '{\"url\": \"" . $receiver->url('/status/204')
	. "\"}', '{alive}'); SELECT mlint.publish('alive', '{}'); PREPARE TRANSACTION 'extension'", 'prepared');
wait_for_sql($node, 'an extension that is only prepared has no workers',
	"SELECT count(*) = 0 FROM mlint.stat_workers WHERE database = 'prepared'");
sql("COMMIT PREPARED 'extension'", 'prepared');
wait_for_sql($node, '... and after COMMIT PREPARED delivers',
	"SELECT count(*) FROM mlint.deliveries WHERE state = 'delivered'", 1, 'prepared');
sql('DROP DATABASE prepared WITH (FORCE)');

# ---- the end ----

sql("SELECT mlint.secret_put('file', 'value'); SELECT mlint.secret_mount_create('file', 'file')");
wait_for('a file is written', sub { -e "$mounts/file" });
sql("SELECT mlint.secret_mount_drop('file')");
wait_for_sql($node, 'mounts that were dropped', 'SELECT count(*) = 0 FROM mlint.secret_mounts');
ok(!-e "$mounts/file", '... leave no file');
sql('DROP EXTENSION mlint');
sql('DROP EXTENSION mlint; DROP SCHEMA mlint', 'left');
sql('DROP SCHEMA mlint; DROP ROLE mlint_admin, mlint_user, mlint_reader', 'postgres');
sql('CREATE EXTENSION mlint');
create_destination($node, 'alive', 'http', { url => $receiver->url('/status/204') });
deliver($node, 'alive');
pass('schema and roles can be dropped, and made again');

$node->stop;
done_testing();
