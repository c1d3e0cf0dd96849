# What was done is in the audit log: after a rollback, a crash, a shutdown, with
# an auditor that is killed, stands still or is not there; once, in an unbroken
# chain, and on disk before it takes effect.
use strict;
use warnings;

use IO::Handle;
use IPC::Run ();
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $receiver = MlintTest::Receiver->start;

# What is not flushed on purpose stays in memory.
my $node = mlint_node('main', allows_streaming => 1, conf => <<'EOC');
log_statement = none
fsync = on
wal_writer_delay = 10s
wal_writer_flush_after = 0
max_connections = 40
EOC

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub entered
{
	my ($object, $kind) = @_;
	return "SELECT mlint.audit_note('test.note', 'test', '$object', NULL, '$kind');";
}

# The entries on objects like this, in order: "object|outcome ...".
sub entries
{
	my ($like, $db) = @_;
	return $node->safe_psql($db // 'postgres', <<"EOQ");
SELECT coalesce(string_agg(object || '|' || outcome, ' ' ORDER BY seq), '')
FROM mlint.audit_log WHERE object LIKE '$like' AND action <> 'transaction.rolled_back'
EOQ
}

# The log is whole, and its numbers have no gap.
sub whole
{
	my ($what, $db) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(
		$node->safe_psql($db // 'postgres',
			"SELECT count(*) = max(seq), mlint.audit_verify() IS NULL FROM mlint.audit_log"),
		't|t', $what);
}

sub auditor { return wait_for_worker($node, 'mlint auditor', 'postgres', @_); }

auditor();

# ---- transactions ----
sql(<<"EOQ");
BEGIN;
@{[ entered('undone', 'changed') ]}
@{[ entered('read', 'done') ]}
@{[ entered('refused', 'denied') ]}
@{[ entered('broken', 'failed') ]}
ROLLBACK;
BEGIN;
@{[ entered('savepoint 1', 'changed') ]}
SAVEPOINT a;
@{[ entered('savepoint 2', 'changed') ]}
SAVEPOINT b;
@{[ entered('savepoint 3', 'changed') ]}
RELEASE b;
@{[ entered('savepoint 4', 'done') ]}
ROLLBACK TO a;
@{[ entered('savepoint 5', 'changed') ]}
RELEASE a;
COMMIT;
EOQ
wait_for_sql($node, 'what was rolled back comes to be known', <<'EOQ');
SELECT count(*) = 3 FROM mlint.audit_log WHERE outcome = 'rolled_back'
EOQ
is(join(' ', map { entries($_) } 'undone', 'read', 'refused', 'broken'),
	'undone|rolled_back read|ok refused|denied broken|failed',
	'entries survive ROLLBACK');
is( entries('savepoint%'),
	'savepoint 1|ok savepoint 2|rolled_back savepoint 3|rolled_back savepoint 4|ok savepoint 5|ok',
	'... and of a savepoint only the changes are rolled back');

sql(<<"EOQ");
BEGIN; @{[ entered('prepared 1', 'changed') ]} PREPARE TRANSACTION 'one';
BEGIN; @{[ entered('prepared 2', 'changed') ]} PREPARE TRANSACTION 'two';
EOQ
is(entries('prepared%'), 'prepared 1|ok prepared 2|ok',
	'a transaction that is prepared has its entry');
$node->stop('immediate');
$node->start;
auditor();
sql("ROLLBACK PREPARED 'one'; COMMIT PREPARED 'two'");
wait_for('... whatever becomes of it',
	sub { entries('prepared%') eq 'prepared 1|rolled_back prepared 2|ok' });

# More subtransactions than the auditor keeps in memory.
sql(<<'EOQ');
BEGIN;
SET LOCAL client_min_messages = error;
DO $$
BEGIN
	FOR i IN 1 .. 70000 LOOP
		BEGIN
			PERFORM mlint.audit_note('test.many', 'test', 'many ' || i, NULL);
			IF i % 2 = 1 THEN RAISE 'odd'; END IF;
		EXCEPTION WHEN raise_exception THEN
		END;
	END LOOP;
END
$$;
ROLLBACK;
EOQ
wait_for_sql($node, 'no transaction is too large to be followed', <<'EOQ');
SELECT count(*) = 70000 FROM mlint.audit_log WHERE action = 'test.many' AND outcome = 'rolled_back'
EOQ
is(sql("SELECT count(*) FROM mlint.audit_log WHERE action = 'transaction.rolled_back' AND seq > (SELECT min(seq) FROM mlint.audit_entry WHERE action = 'test.many')"),
	'70000', '... and each is reported once');
whole('the chain is whole');

# ---- durability ----
sql('CHECKPOINT; SELECT pg_switch_wal()');
my ($session_in, $session_out, $session_err) = ('', '', '');
my $session = IPC::Run::start(
	[ 'psql', '-X', '-q', '-A', '-t', '-d', $node->connstr('postgres'), '-f', '-' ],
	'<', \$session_in, '>', \$session_out, '2>', \$session_err,
	IPC::Run::timeout($MlintTest::deadline));
$session_in .= "BEGIN;\n" . entered('crashed', 'changed') . "\n\\echo ready\n";
IPC::Run::pump($session) until $session_out =~ /ready/;
sql(entered('flushed', 'done'));
$node->stop('immediate');
eval { IPC::Run::finish($session) };
$node->start;
is(entries('flushed'), 'flushed|ok', 'with durability flush, what took place is on disk');
wait_for('what a crash undid is marked as rolled back',
	sub { entries('crashed') eq 'crashed|rolled_back' });
whole('... and the chain goes on');

# Clients that change something until the server crashes: what is there after
# it has its entry, and what they were told was committed is there.
sql('CREATE TABLE truth (object text PRIMARY KEY)');
my $dir = PostgreSQL::Test::Utils::tempdir();
for my $round (1 .. 3)
{
	my @clients;
	my $outs = [];
	for my $n (1 .. 4)
	{
		my $script = join '', map {
			"BEGIN; INSERT INTO truth VALUES ('c $round.$n.$_'); "
			  . entered("c $round.$n.$_", 'changed')
			  . " COMMIT; " . entered("d $round.$n.$_", 'done')
			  . "\n\\echo done $_\n"
		} 1 .. 20000;
		append_to_file("$dir/script.$round.$n", $script);
		$outs->[$n] = '';
		push @clients,
		  IPC::Run::start(
			[ 'psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'),
				'-f', "$dir/script.$round.$n" ],
			'>', \$outs->[$n], '2>', \my $err);
	}
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;
	while (grep { $outs->[$_] !~ /done 30\b/ } 1 .. 4)
	{
		$_->pump_nb for @clients;
		usleep(1000);
		die 'clients do nothing' if time > $end;
	}
	$node->stop('immediate');
	eval { $_->finish } for @clients;
	$node->start;
	auditor();
	my @told = map { my $n = $_; map { "$round.$n.$_" } $outs->[$n] =~ /^done (\d+)$/mg } 1 .. 4;
	is( sql("SELECT count(*) FROM truth t WHERE NOT EXISTS (SELECT FROM mlint.audit_log l WHERE l.object = t.object AND l.outcome = 'ok')"),
		'0', "crash $round: what took effect has its entry");
	my $list = join ',', map { "'d $_'" } @told;
	is( sql("SELECT count(*) FROM mlint.audit_log WHERE object IN ($list)"),
		scalar @told, '... so has what was done before the client was told');
	is( sql("SELECT count(*) FROM (SELECT object FROM mlint.audit_log WHERE action = 'test.note' AND object LIKE '_ $round.%' GROUP BY 1 HAVING count(*) > 1) x"),
		'0', '... once');
	wait_for_sql($node, '... and what did not is marked',
		"SELECT count(*) = 0 FROM mlint.audit_log l WHERE object LIKE 'c $round.%' AND outcome = 'ok' AND NOT EXISTS (SELECT FROM truth t WHERE t.object = l.object)");
	whole('... and the chain is whole');
}

# ---- sharing ----
append_to_file("$dir/done.sql", entered('shared', 'done') . "\n");
# PostgreSQL 18 counts flushes of WAL among all that is read and written.
my $io = $node->pg_version >= 18 ? 'io' : 'wal';
sql("SELECT pg_stat_reset_shared('$io')");
my $before = sql("SELECT batches FROM mlint.stat_workers WHERE kind = 'auditor'");
$node->command_ok(
	[ 'pgbench', '-n', '-c', '16', '-j', '2', '-t', '200', '-f', "$dir/done.sql", 'postgres' ],
	'16 clients read at the same time');
is(sql("SELECT count(*) FROM mlint.audit_log WHERE object = 'shared'"), 3200, '... and have entries');
my $batches = sql("SELECT batches FROM mlint.stat_workers WHERE kind = 'auditor'") - $before;
cmp_ok($batches, '<', 2400, '... which are written several at a time');
wait_for_sql($node, '... and share flushes',
	$io eq 'io'
	? "SELECT sum(fsyncs) BETWEEN 1 AND 2400 FROM pg_stat_io WHERE object = 'wal'"
	: 'SELECT wal_sync BETWEEN 1 AND 2400 FROM pg_stat_wal');

# ---- a full ring, an auditor that stands still ----
my $pid = auditor();
my $fill = "SET mlint.audit_durability = memory; SELECT count(*) FROM (SELECT mlint.audit_note('test.full', 'test', 'full ' || i, NULL, 'done') FROM generate_series(1, 20000) i OFFSET 0) x";
freeze($node, $pid);
my ($rc, $out, $err) = $node->psql('postgres', "SET statement_timeout = '500ms'; $fill");
isnt($rc, 0, 'who finds the ring full waits');
like($err, qr/canceling statement due to statement timeout/, '... and can be cancelled');
($rc, $out, $err) = $node->psql('postgres', "SET statement_timeout = '200ms'; " . entered('x', 'changed'));
like($err, qr/canceling statement due to statement timeout/, '... so can who waits for its entry');
($session_in, $session_out, $session_err) = ("$fill;\n", '', '');
$session = IPC::Run::start(
	[ 'psql', '-X', '-q', '-A', '-t', '-d', $node->connstr('postgres'), '-f', '-' ],
	'<', \$session_in, '>', \$session_out, '2>', \$session_err,
	IPC::Run::timeout($MlintTest::deadline));
wait_for('another waits',
	sub {
		$session->pump_nb;
		sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT count%test.full%' AND wait_event_type = 'Extension' AND pid <> pg_backend_pid()");
	});
kill 'CONT', $pid;
$session->finish;
is($session_out, "20000\n", '... until there is room');
wait_for_sql($node, 'none of its entries is lost',
	"SELECT count(DISTINCT object) = 20000 AND count(*) > 20000 FROM mlint.audit_log WHERE action = 'test.full'");
whole('the chain is whole');

# ---- an auditor that ends ----
my $load = IPC::Run::start(
	[ 'pgbench', '-n', '-c', '4', '-t', '1000', '-f', "$dir/done.sql", $node->connstr('postgres') ],
	'>', \my $load_out, '2>', \my $load_err, IPC::Run::timeout($MlintTest::deadline));
for (1 .. 3)
{
	sql("SELECT pg_terminate_backend($pid)");
	$pid = auditor($pid);
}
$load->finish;
like($load_out, qr{transactions actually processed: 4000/4000}, 'callers wait for the next auditor');
is(sql("SELECT count(*) FROM mlint.audit_log WHERE object = 'shared'"), 7200, '... and every entry is there, once');
whole('... in one chain');

# Somebody puts an entry where the next one goes.
sql(<<'EOQ');
INSERT INTO mlint.audit_entry SELECT seq + 1, month, at, pid, xid, subxid, hash, role, session_role, application,
	client_addr, action, object_type, object, outcome, details
FROM mlint.audit_entry ORDER BY seq DESC LIMIT 1
EOQ
my $forged = sql("SELECT mlint.audit_verify()");
is($forged, sql('SELECT max(seq) FROM mlint.audit_entry'), 'a forged entry at the end is found');
sql(entered('in the way', 'changed'));
is(entries('in the way'), 'in the way|ok', '... it is not in the way of others');
is(sql("SELECT mlint.audit_verify()"), $forged, '... and is still found');
is(sql("SELECT mlint.audit_verify($forged + 1)"), '', '... and nothing after it');
is(sql("SELECT count(*) = max(seq) FROM mlint.audit_log"), 't', '... and no number is missing');

# ---- restart: what was in memory, and the checkpoint ----
create_destination($node, 'proof', 'http', { url => $receiver->url('/ok') }, 'audit.*');
$node->psql('postgres', "SET mlint.audit_durability = memory; SELECT count(*) FROM (SELECT mlint.audit_note('test.memory', 'test', 'm ' || i, NULL, 'done') FROM generate_series(1, 500) i OFFSET 0) x");
$node->stop('fast');
$node->start;
is(sql("SELECT count(*) FROM mlint.audit_log WHERE action = 'test.memory'"), 500, 'a shutdown loses nothing that was in memory');
wait_for('a checkpoint is delivered', sub { $receiver->count('/ok') > 0 });
my ($request) = reverse $receiver->requests('/ok');
my $event = JSON::PP::decode_json($request->{body});
is($event->{type}, 'audit.checkpoint', '... as an event');
is( sql("SELECT encode(hash, 'hex') || ' ' || action FROM mlint.audit_log WHERE seq = $event->{data}{seq}"),
	"$event->{data}{hash} audit.checkpoint", '... with the number and the hash of its entry');
is($event->{data}{database}, 'postgres', '... and the database');

# ---- removed at the end, while nobody looks ----
$pid = auditor();
wait_for_sql($node, 'the end of the log is noted',
	'SELECT h.last_value = max(seq) FROM mlint.audit_head h, mlint.audit_entry GROUP BY h.last_value');
my $last = sql('SELECT max(seq) FROM mlint.audit_log');
$node->stop('immediate');
$node->start;
auditor();
sql("DELETE FROM mlint.audit_entry WHERE seq > $last - 2");
is(sql("SELECT mlint.audit_verify($forged + 1)"), $last - 1, 'what was removed from the end is missed');
$node->restart;
auditor();
sql(entered('after', 'changed'));
is(sql("SELECT mlint.audit_verify($forged + 1)"), $last - 1, '... also after a restart, and when the log has gone on');
is(sql("SELECT min(seq) > $last FROM mlint.audit_log WHERE object = 'after'"), 't', '... with other numbers');

# ---- a standby ----
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
my $start = time;
($rc, $out, $err) = $standby->psql('postgres', entered('standby', 'done'));
isnt($rc, 0, 'a standby, which cannot write the log, does not do what belongs there');
like($err, qr/"test.note" is possible only on the primary server, because the audit log cannot be written here/, '... says why');
cmp_ok(time - $start, '<', 9, '... at once');
is($standby->safe_psql('postgres', "SELECT count(*) > 0, mlint.audit_verify($forged + 1) FROM mlint.audit_log"),
	't|' . ($last - 1), 'the log can be read and verified there');
$node->stop;
$standby->promote;
wait_for_worker($standby, 'mlint auditor');
$standby->safe_psql('postgres', entered('promoted', 'changed'));
is($standby->safe_psql('postgres', "SELECT count(*) FROM mlint.audit_log WHERE object = 'promoted'"), 1, 'when promoted it writes');
$standby->stop;
$node->start;

# ---- databases and extensions ----
sql('DROP EXTENSION mlint');
sql("BEGIN; CREATE EXTENSION mlint; @{[ entered('same 1', 'changed') ]} @{[ entered('same 2', 'done') ]} SELECT mlint.destination_create('same', 'http', '{\"url\": \"http://a.invalid\"}'); COMMIT");
is(entries('same%'), 'same 1|ok same 2|ok same|ok', 'the transaction that creates the extension can use it');
auditor();
sql(entered('next', 'changed'));
is(sql("SELECT seq FROM mlint.audit_log WHERE object = 'next'"), 4, '... and the auditor goes on');
whole('... with the chain');
sql('CREATE DATABASE first'); 
$node->safe_psql('first', "CREATE EXTENSION mlint");
$node->safe_psql('first', entered('before', 'changed'));
sql('CREATE DATABASE second TEMPLATE first');
$node->safe_psql($_, entered("in $_", 'changed')) for 'first', 'second';
is(entries('%', 'first'), 'before|ok in first|ok', 'each database has a log');
is(entries('%', 'second'), 'before|ok in second|ok', '... and a copy has that of the original');
whole('... whole', $_) for 'first', 'second';
sql('DROP DATABASE second');
sql('ALTER DATABASE first RENAME TO third');
$node->safe_psql('third', entered('renamed', 'changed'));
whole('... also when it was renamed', 'third');

# ---- retention ----
sub months { return sql("SELECT string_agg(relname::text, ' ' ORDER BY relname) FROM pg_class WHERE relname ~ '^audit_entry_2020..\$'") // ''; }
sql("SELECT mlint.audit_month_begin(202001), mlint.audit_month_begin(202002), mlint.audit_month_begin(202003)");
sql(entered("old $_", 'changed')) for 1 .. 8;
sql(<<'EOQ');
UPDATE mlint.audit_entry SET month = 202001 WHERE seq <= 3;
UPDATE mlint.audit_entry SET month = 202003 WHERE seq IN (4, 5, 6);
EOQ
is(sql('SELECT mlint.audit_verify()'), '', 'months are in order');
($rc, $out) = $node->psql('postgres', 'BEGIN; ALTER EXTENSION mlint DROP TABLE mlint.audit_entry_202001; DROP TABLE mlint.audit_entry_202001; SELECT mlint.audit_verify()');
is($out, 1, 'a month that is dropped by somebody else is missed');
# Somebody reads the log: the job comes again.
my $reader = IPC::Run::start(
	[ 'psql', '-X', '-q', '-A', '-t', '-d', $node->connstr('postgres'), '-f', '-' ],
	'<', \(my $reader_in = "BEGIN; SELECT count(*) > 0 FROM mlint.audit_log;\n"), '>', \(my $reader_out = ''), '2>', \my $reader_err,
	IPC::Run::timeout($MlintTest::deadline));
IPC::Run::pump($reader) until $reader_out =~ /t/;
sql('SELECT mlint.audit_retention_run()');
is(months(), 'audit_entry_202001 audit_entry_202002 audit_entry_202003', 'a month that is read is not dropped');
is(sql('SELECT mlint.audit_verify()'), '', '... and the log is whole');
$reader_in .= "ROLLBACK;\n";
$reader->finish;
wait_for_sql($node, '... and says that it was not', "SELECT count(*) = 1 FROM mlint.audit_log WHERE action = 'audit.purged' AND outcome = 'rolled_back'");
wait_for('months that are old are dropped', sub { sql('SELECT mlint.audit_retention_run()'); months() eq '' });
is(sql('SELECT min(seq) FROM mlint.audit_log'), 7, '... with their entries');
wait_for_sql($node, '... of which the log tells',
	"SELECT string_agg(concat_ws(' ', object, details ->> 'from', details ->> 'to'), ', ' ORDER BY seq) FROM mlint.audit_log WHERE action = 'audit.purged' AND outcome = 'ok'",
	'202001 1 3, 202003 4 6');
is(sql('SELECT mlint.audit_verify()'), '', '... and the rest can be verified');
is(sql('SELECT mlint.audit_verify(2)'), '', '... from an entry that was purged');
($rc, $out) = $node->psql('postgres', 'BEGIN; DELETE FROM mlint.audit_entry WHERE seq IN (7, 8); SELECT mlint.audit_verify()');
is($out, 7, '... and what else is missing at its beginning is missed');
($rc, $out) = $node->psql('postgres', "BEGIN; UPDATE mlint.audit_entry SET object = 'x' WHERE seq = 7; SELECT mlint.audit_verify()");
is($out, 7, '... or was changed');
($rc, $out) = $node->psql('postgres', "BEGIN; SELECT mlint.audit_month_begin(202001); INSERT INTO mlint.audit_entry SELECT 2, 202001, at, pid, xid, subxid, hash, role, session_role, application, client_addr, action, object_type, object, outcome, details FROM mlint.audit_entry WHERE seq = 7; SELECT mlint.audit_verify()");
like($out, qr/^2$/m, '... or put back');

$node->stop;

# ---- no auditor ----
$node = mlint_node('narrow', conf => "max_worker_processes = 3\n");
$start = time;
($rc, $out, $err) = $node->psql('postgres', entered('alone', 'done'));
isnt($rc, 0, 'without an auditor nothing is done that belongs into the log');
like($err, qr/the audit log of database "postgres" is not being written.*No auditor came within 10 seconds.*max_worker_processes/s, '... and it is said why');
cmp_ok(time - $start, '>=', 10, '... when one could have come');
$node->stop;

done_testing();
