# What rate limits remember: over restarts and crashes, when the table of keys
# is full, when the clock jumps, in several databases and under long names.

use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $hour = 3_600_000_000;
my @laws = qw(token_bucket leaky_bucket fixed_window sliding_window);

my $node = mlint_node('main', conf => <<'EOC');
mlint.rate_max_keys = 1000
restart_after_crash = on
EOC
my $file = $node->data_dir . '/pg_stat/mlint_rate_limits.stat';

sub sql
{
	my ($query, $db) = @_;
	return $node->safe_psql($db // 'postgres', $query);
}

# A limit of 5 in an hour for each law, and left(): what could be taken.
sub set_up
{
	my ($db) = @_;
	sql(<<'EOQ', $db);
CREATE FUNCTION test_clock(bigint) RETURNS void LANGUAGE c
	AS '$libdir/mlint', 'mlint_rate_test_clock';
CREATE FUNCTION left_of(rule text, identifier text) RETURNS bigint LANGUAGE sql AS
	'SELECT remaining + allowed::int FROM mlint.rate_peek(rule, identifier)';
CREATE FUNCTION take(rule text, identifier text, times int) RETURNS bigint LANGUAGE sql AS
	'SELECT count(*) FILTER (WHERE (mlint.rate_check(rule, identifier)).allowed)
		FROM generate_series(1, times)';
EOQ
	sql("SELECT mlint.rate_rule_create('$_', '$_', 5, '1 hour')", $db)
	  foreach @laws;
	return;
}

# Counters of a limit: counted('token_bucket', 'crowded').
sub counted
{
	my ($rule, $column) = @_;
	return sql(
		"SELECT $column FROM mlint.stat_rate_limits WHERE rule = '$rule'");
}

sub log_since
{
	my ($from) = @_;
	return slurp_file($node->logfile, $from);
}

sub start_again
{
	my ($how) = @_;
	my $from = -s $node->logfile;
	$node->stop($how);
	$node->start;
	return $from;
}

set_up('postgres');
sql('CREATE DATABASE other');
sql('CREATE EXTENSION mlint', 'other');
set_up('other');

# The beginning of the next hour: windows then do not end during the test. And
# restarts end a test's clock: by the real one nothing has come back by then,
# whatever the time is.
my $epoch =
  sql('SELECT (extract(epoch FROM date_trunc($$hour$$, now()) + $$1 h$$) * 1e6)::bigint');
sub clock
{
	my ($time) = @_;
	sql('SELECT test_clock(' . ($time // 'NULL') . ')');
	return;
}

# ---- identifiers, databases ----

clock($epoch);
is(sql("SELECT take('$_', 'x', 3)"), 3, "$_: 3 of 5") foreach @laws;
is(sql("SELECT left_of('token_bucket', 'x')", 'other'),
	5, 'a limit of the same name in another database is another');
is(sql("SELECT take('token_bucket', 'x', 10)", 'other'), 5, '... all of it');
is(sql("SELECT left_of('token_bucket', 'x')"),
	2, '... and goes its own way');

is(sql("SELECT take('token_bucket', '', 7), take('token_bucket', repeat('a', 40), 7),
	take('token_bucket', repeat('a', 39), 7), take('token_bucket', repeat('a', 41), 7)"),
	'5|5|5|5', 'identifiers of 0, 39, 40 and 41 bytes');
is( sql("SELECT take('token_bucket', repeat('a', 10000) || i, 7) FROM generate_series(1, 3) i"),
	"5\n5\n5",
	'long ones that are the same for 10,000 bytes are told apart');
is(sql("SELECT take('token_bucket', repeat('a', 10000) || 2, 7)"),
	0, '... and known again');
is( sql("SELECT count(*) FROM (SELECT take('token_bucket', 'byte' || chr(i), 7) AS n
		FROM generate_series(1, 255) i) t WHERE n = 5"),
	255,
	'identifiers of every character');
sql("SELECT mlint.rate_reset('token_bucket')");
is(counted('token_bucket', 'identifiers'), 0, 'all are forgotten');
is(sql("SELECT take('token_bucket', 'x', 3)"), 3, '... and may take again');

# ---- restarts ----

start_again('fast');
ok(!-e $file, 'the file is gone when it has been read');
clock($epoch + 1);
is(sql("SELECT left_of('$_', 'x')"), 2, "$_: kept over a restart")
  foreach @laws;
is(sql("SELECT left_of('token_bucket', 'x')", 'other'),
	0, '... in each database');
is(counted('fixed_window', 'checks, allowed, identifiers'),
	'3|3|1', '... with the counters');

clock();
my $from = start_again('immediate');
is(sql("SELECT left_of('$_', 'x')"), 5, "$_: full after a crash")
  foreach @laws;
sql("SELECT take('token_bucket', 'x', 3)");
my $pid = sql('SELECT pg_backend_pid()');
my $session = $node->background_psql('postgres', on_error_stop => 0)
  if $node->can('background_psql');
my $gone;
{
	my ($in, $out, $err) = ('', '', '');
	my $killed = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres') ],
		'<', \$in, '>', \$out, '2>', \$err, IPC::Run::timeout($MlintTest::deadline));
	$in = "SELECT pg_backend_pid();\n";
	$killed->pump until $out =~ /\d+\n/;
	($gone) = $out =~ /(\d+)/;
	kill 'KILL', $gone;
	$killed->kill_kill;
}
# For a moment it is there still, and nobody has noticed.
wait_for_sql($node, 'the server comes back',
	"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $gone)");
is(sql("SELECT left_of('token_bucket', 'x')"), 5, '... of one process too');
$session->quit if $session;

$node->append_conf('postgresql.conf', 'mlint.rate_crash_start = empty');
sql("SELECT take('token_bucket', 'x', 3)");
$node->reload;
start_again('fast');
is(sql("SELECT left_of('token_bucket', 'x'), left_of('token_bucket', 'new')"),
	'2|5', 'rate_crash_start = empty changes nothing after a clean shutdown');
# A window is empty until its end, which is the full hour.
wait_for('that is not about to come', sub { time % 3600 < 3600 - 30 });
start_again('immediate');
is(sql("SELECT left_of('$_', 'x'), left_of('$_', 'new'), take('$_', 'x', 9)"),
	'0|0|0', "$_: empty after a crash, if it is to be")
  foreach @laws;
is( sql("SELECT retry_after BETWEEN '11 min' AND '12 min'
	FROM mlint.rate_check('token_bucket', 'x')"),
	't',
	'... and filling');
sql("SELECT mlint.rate_reset('token_bucket', 'x'), mlint.rate_reset('token_bucket', 'y')");
is( sql("SELECT left_of('token_bucket', 'x'), left_of('token_bucket', 'y'), left_of('token_bucket', 'z')"),
	'5|5|0',
	'... but not for those who are let off');
sql("SELECT mlint.rate_reset('token_bucket')");
is(sql("SELECT left_of('token_bucket', 'z')"), 5, '... or if all are');
clock(sql('SELECT (extract(epoch FROM now()) * 1e6)::bigint') + 2 * $hour);
is(sql("SELECT left_of('$_', 'x'), left_of('$_', 'new')"),
	'5|5', "$_: full when the time has passed")
  foreach @laws;
$node->append_conf('postgresql.conf', 'mlint.rate_crash_start = full');

# ---- a damaged file ----

my %damage = (
	'one bit' => sub { substr($_[0], length($_[0]) / 2, 1) ^= "\x10"; },
	'the last bit' => sub { substr($_[0], -1, 1) ^= "\x80"; },
	'cut off' => sub { substr($_[0], -100) = ''; },
	'too long' => sub { $_[0] .= 'x'; },
	'empty' => sub { $_[0] = ''; },
	'of another kind' => sub { $_[0] = "not a table\n" x 1000; },
	'of another version' => sub { substr($_[0], 0, 1) ^= "\x01"; });
foreach my $how (sort keys %damage)
{
	sql("SELECT take('token_bucket', 'x', 3)");
	$node->stop('fast');
	my $content = slurp_file($file);
	$damage{$how}->($content);
	open my $out, '>:raw', $file or die "$file: $!";
	print $out $content;
	close $out;
	$from = -s $node->logfile;
	$node->start;
	like(log_since($from), qr/LOG: .* are not used, because it is damaged/,
		"a damaged file ($how) is reported");
	is(sql("SELECT left_of('token_bucket', 'x')"), 5, '... and not used');
	ok(!-e $file, '... and gone');
}

# ---- a full table ----

sub flood
{
	my ($rule, $prefix, $n) = @_;
	return sql("SELECT count(*) FILTER (WHERE mlint.rate_allow('$rule', '$prefix' || i))
		FROM generate_series(1, $n) i");
}

sub forget_all
{
	sql("SELECT mlint.rate_reset('$_')") foreach @laws;
	sql("SELECT mlint.rate_reset('$_')", 'other') foreach @laws;
	return;
}

# How many of 1000 keys can be had by identifiers of their own.
sub places
{
	my ($prefix) = @_;
	my $crowded = counted('token_bucket', 'crowded');
	flood('token_bucket', $prefix, 1000);
	return 1000 - (counted('token_bucket', 'crowded') - $crowded);
}

my $now = $epoch + 100 * $hour;
clock($now);
foreach my $law (qw(token_bucket fixed_window sliding_window))
{
	forget_all();
	my ($crowded, $evictions) = split /\|/, counted($law, 'crowded, evictions');
	is( sql("SELECT sum(take('$law', 'known' || i, 4)) FROM generate_series(1, 1000) i"),
		4000,
		"$law: 1000 identifiers are known");
	is(flood($law, 'flood', 120_000),
		5, '... 120,000 others share one limit');
	is(counted($law, "crowded - $crowded, evictions - $evictions, identifiers"),
		'120000|0|1000', '... are counted, and replace nobody');
	is( sql("SELECT count(*) FROM generate_series(1, 1000) i WHERE left_of('$law', 'known' || i) = 1"),
		1000,
		'... whose debts are known');
	is( sql("SELECT reason FROM mlint.rate_check('$law', 'one more')"),
		'crowded', '... and it is said');
	is( sql("SELECT allowed, reason FROM mlint.rate_peek('$law', 'another')"),
		'f|crowded', '... also to those who only look');
	is(places('none'), 0, '... no other rule has room either');

	$now += 2 * $hour;
	clock($now);
	is(places("after $law"), 1000, '... until they are idle; no place is lost');
	is(counted($law, "evictions - $evictions"), 1000, '... which is counted');
	$now += 2 * $hour;
	clock($now);
}

# Some are idle, and they alone go.
forget_all();
sql("SELECT take('token_bucket', 'known' || i, 5) FROM generate_series(1, 500) i");
$now += $hour / 2;
clock($now);
sql("SELECT take('token_bucket', 'young' || i, 5) FROM generate_series(1, 500) i");
$now += $hour / 2;
clock($now);
is(flood('fixed_window', 'new', 500), 500, 'idle ones make room for others');
is( sql("SELECT count(*) FROM generate_series(1, 500) i WHERE left_of('token_bucket', 'young' || i) = 2"),
	500,
	'... and those go that may');
is(sql("SELECT allowed, reason FROM mlint.rate_check('fixed_window', 'one more')"),
	't|crowded', '... a first in the crowd passes');
is(counted('fixed_window', 'identifiers'), 500, '... and has no place');

# ---- sliding windows that need more places than one ----

# Take one in each of so many steps, by each of so many identifiers; a limit
# of 51 in an hour of 50 steps.
sql("SELECT mlint.rate_rule_create('steps', 'sliding_window', 51, '1 hour')");

sub take_in_steps
{
	my ($prefix, $identifiers, $steps) = @_;
	my $allowed = 0;
	foreach (1 .. $steps)
	{
		$now += $hour / 50;
		clock($now);
		$allowed += flood('steps', $prefix, $identifiers);
	}
	return $allowed;
}

forget_all();
$now += 4 * $hour - $now % $hour;
clock($now);
my $crowded = counted('steps', 'crowded');
is(take_in_steps('s', 250, 51), 250 * 51, 'windows with all their segments');
is(counted('steps', "crowded - $crowded, identifiers"),
	'0|250', '... four places each');
is( sql("SELECT count(*) FROM generate_series(1, 250) i
	WHERE (mlint.rate_peek('steps', 's' || i)).retry_after = interval '1 h' / 50"),
	250,
	'... and exact');
is(places('none'), 0, '... leave no room');
# One step later the first segment of each is free again, and no more.
is(take_in_steps('s', 250, 1), 250, '... go on');
is(take_in_steps('s', 250, 1), 250, '... step by step');
start_again('fast');
clock($now);
is( sql("SELECT count(*) FROM generate_series(1, 250) i
	WHERE (mlint.rate_peek('steps', 's' || i)).retry_after = interval '1 h' / 50"),
	250,
	'... also over a restart');
$now += 2 * $hour;
clock($now);
is(places('after steps'), 1000, '... and no place is lost');
$now += 2 * $hour;
clock($now);
is(take_in_steps('m', 400, 51), 400 * 51,
	'windows for which there are not enough places admit as much');
is(flood('steps', 'm', 400), 0, '... and not more');
is(counted('steps', 'identifiers'), 400, '... and keep theirs');
my $freed = take_in_steps('m', 400, 60);
cmp_ok($freed, '<=', 400 * 60, '... are stricter');
cmp_ok($freed, '>=', 400 * 20, '... but go on');
$now += 2 * $hour;
clock($now);
is(places('after merging'), 1000, '... and no place is lost');

# ---- the clock ----

forget_all();
$now += 4 * $hour - $now % $hour;
foreach my $law (@laws)
{
	clock($now);
	sql("SELECT take('$law', 'jump', 5), take('$law', 'still', 5)");
	clock($now - 365 * 24 * $hour);
	is( sql("SELECT not allowed AND retry_after <= '61.2 min'
		FROM mlint.rate_check('$law', 'jump')"),
		't',
		"$law: a clock that goes back locks nobody out for longer than a full debt");
	clock($now - 364 * 24 * $hour);
	is(sql("SELECT take('$law', 'jump', 9)"), 5, '... and that passes');
	clock($now + 365 * 24 * $hour);
	is(sql("SELECT take('$law', 'jump', 9)"), 5,
		'... one that goes forth admits one burst');
}

# Those that nobody asks for make room, too.
forget_all();
clock($now);
is(places('debtor'), 1000, 'a full table');
clock($now - 365 * 24 * $hour);
is(flood('fixed_window', 'new', 100),
	5, 'a clock that goes back forgets no debt');
clock($now - 365 * 24 * $hour + 2 * $hour);
is(flood('fixed_window', 'new', 1000), 1000, '... for longer than it can be');
$now += $hour / 2;
clock($now);
forget_all();

# ---- many at once ----

# On the real clock, with more identifiers than places, and rules that take
# one, several or none, forget, and give way: nothing hangs, no place is lost,
# and of each identifier no more passes than may.
clock();
forget_all();
sql(<<'EOQ');
SELECT mlint.rate_rule_create('quick', 'sliding_window', 100, '50 ms');
SELECT mlint.rate_rule_create('slow', 'token_bucket', 100, '1 day');
SELECT mlint.rate_rule_create('some', 'leaky_bucket', 20, '100 ms');
CREATE TABLE passed (identifier text, n int);
-- Known from the beginning: in the crowd, others take as well.
INSERT INTO passed SELECT 'slow' || i, take('slow', 'slow' || i, 1) FROM generate_series(1, 20) i;
EOQ
my %scripts = (
	all => <<'EOS',
\set i random(1, 3000)
SELECT allowed FROM mlint.rate_check_all('{quick,some}', :i::text);
SELECT count(*) FILTER (WHERE mlint.rate_allow('quick', (:i + i)::text)) FROM generate_series(1, 200) i;
EOS
	forget => <<'EOS',
\set i random(1, 3000)
SELECT mlint.rate_reset('quick', :i::text);
SELECT remaining FROM mlint.rate_peek('some', :i::text);
SELECT * FROM mlint.stat_rate_limits;
SELECT count(*) FROM mlint.rate_top('quick', 10);
EOS
	slow => <<'EOS');
\set i random(1, 20)
INSERT INTO passed SELECT 'slow' || :i, count(*) FILTER (WHERE (mlint.rate_check('slow', 'slow' || :i)).allowed)
	FROM generate_series(1, 10);
EOS
my $dir = PostgreSQL::Test::Utils::tempdir;
my @files = map { append_to_file("$dir/$_.sql", $scripts{$_}); ('-f', "$dir/$_.sql") }
  sort keys %scripts;
command_ok(
	[ 'pgbench', '-n', '-c', 8, '-T', $ENV{MLINT_RATE_SECONDS} // 8,
		@files, $node->connstr('postgres') ],
	'many at once');
is( sql("SELECT count(*), min(sum), max(sum) FROM (SELECT sum(n) FROM passed GROUP BY identifier) s"),
	'20|100|100',
	'... with as many let pass as may, to the token');
cmp_ok(counted('quick', 'evictions'), '>', 0, '... while others made way');
sql("SELECT mlint.rate_reset(name) FROM mlint.rate_rules");
clock($now);
is(places('after all'), 1000, '... and no place is lost');
forget_all();

# ---- another size ----

sql("SELECT take('token_bucket', 'small' || i, 1), take('fixed_window', 'large' || i, 5)
	FROM generate_series(1, 90) i");
sql("SELECT mlint.rate_check('leaky_bucket', 'l' || i, 5) FROM generate_series(1, 60) i");
clock();
$node->append_conf('postgresql.conf', 'mlint.rate_max_keys = 100');
$from = start_again('fast');
clock($now);
like(log_since($from), qr/LOG: .*140 identifiers of rate limits start with nothing used/,
	'in a smaller table some are lost');
is( sql("SELECT count(*) FILTER (WHERE left_of('leaky_bucket', 'l' || i) = 0)
	FROM generate_series(1, 60) i"),
	60,
	'... not those that owe for longest');
is(counted('fixed_window', 'checks > 450'), 't', '... with the counters of all');
$node->append_conf('postgresql.conf', 'mlint.rate_max_keys = 10000');
start_again('fast');
clock($now);
is( sql("SELECT count(*) FILTER (WHERE left_of('leaky_bucket', 'l' || i) = 0)
	FROM generate_series(1, 60) i"),
	60,
	'a larger table takes all');

# ---- more rules than places ----

sql("SELECT mlint.rate_rule_create('r' || i, 'token_bucket', 5, '1 hour')
	FROM generate_series(1, 150) i");
sql("SELECT take('r' || i, 'x', 5) FROM generate_series(1, 90) i");
my ($ret, $out, $err) = $node->psql('postgres',
	"SELECT take('r' || i, 'x', 5) FROM generate_series(91, 101) i");
like($err, qr/no room in shared memory for another rate limit/,
	'rules beyond those that there is room for');
like($err, qr/HINT: .*mlint\.rate_max_keys/, '... with a hint');
is(sql("SELECT left_of('r90', 'x')"), 0, '... take from nobody');
clock($now + 2 * $hour);
is(sql("SELECT sum(take('r' || i, 'x', 9)) FROM generate_series(91, 150) i"),
	300, '... take the place of those that remember nothing');
is(sql("SELECT sum(take('r' || i, 'x', 9)) FROM generate_series(51, 90) i"),
	200, '... which may come back');
is(sql("SELECT left_of('r150', 'x')"), 0, '... and are not mixed up');
# In one session, which knows the places of rules from before.
my $later = $now + 4 * $hour;
my $both = sql(<<"EOQ");
SELECT test_clock($later);
SELECT sum(take('r' || i, 'x', 9)) FROM generate_series(1, 90) i;
SELECT test_clock($later + 2 * $hour);
SELECT sum(take('r' || i, 'x', 9)) FROM generate_series(61, 150) i;
SELECT count(*) FROM generate_series(61, 150) i WHERE left_of('r' || i, 'x') = 0;
EOQ
is($both, "\n450\n\n450\n90", '... also in a session that has known both');

# To look takes no place from anybody.
clock($later + 9 * $hour);
my $counters = "SELECT sum(checks) FILTER (WHERE rule = 'r61'), sum(checks) FROM mlint.stat_rate_limits";
my $before = sql($counters);
sql("SELECT count(*) FROM mlint.rate_rules r, mlint.rate_top(r.name)");
is(sql($counters), $before, 'counters stay when they are looked at');
unlike($before, qr/^0/, '... which are not zero');

# ---- places that come back ----

# Rules of which each remembers for long, and is not there in the end.
sub come_and_go
{
	my ($how) = @_;
	return $node->psql('postgres', <<"EOQ") == 0;
DO \$\$
BEGIN
	FOR i IN 1..150 LOOP
		$how
	END LOOP;
END
\$\$
EOQ
}
my $use = "PERFORM mlint.rate_rule_create('d' || i, 'fixed_window', 5, '300 days');
	PERFORM mlint.rate_check('d' || i, 'x');";
my $drop = "PERFORM mlint.rate_rule_drop('d' || i);";
ok(come_and_go("$use $drop COMMIT;"), 'a place comes back from a rule that is dropped');
ok(come_and_go("$use ROLLBACK;"), '... or never was');
ok(come_and_go("BEGIN $use RAISE SQLSTATE 'XX999'; EXCEPTION WHEN SQLSTATE 'XX999' THEN END;"),
	'... not even in a subtransaction');
ok(come_and_go("$use COMMIT; BEGIN $drop EXCEPTION WHEN SQLSTATE 'XX999' THEN END; COMMIT;"),
	'... or is dropped in one');
sql("SELECT mlint.rate_rule_create('stays', 'fixed_window', 5, '300 days'); SELECT take('stays', 'x', 5)");
sql(<<'EOQ');
BEGIN; SELECT mlint.rate_rule_drop('stays'); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT mlint.rate_rule_drop('stays'); ROLLBACK TO s; COMMIT;
EOQ
is(sql("SELECT left_of('stays', 'x')"), 0, 'a rule that is not dropped after all forgets nothing');

sub fill
{
	my ($db, $n) = @_;
	my (undef, undef, $error) = $node->psql($db, <<"EOQ");
SELECT mlint.rate_rule_create('f' || i, 'fixed_window', 5, '300 days') FROM generate_series(1, $n) i;
SELECT mlint.rate_check('f' || i, 'x') FROM generate_series(1, $n) i;
EOQ
	return $error;
}
sql('CREATE DATABASE gone');
sql('CREATE EXTENSION mlint', 'gone');
like(fill('gone', 120), qr/no room in shared memory/, 'a database that takes all places');
sql('DROP DATABASE gone');
is(fill('postgres', 60), '', '... leaves them when it is dropped');
sql('DROP EXTENSION mlint CASCADE; CREATE EXTENSION mlint');
is(fill('postgres', 60), '', '... and so does an extension');

# When all have a place but one, two cannot be asked together.
sql("SELECT mlint.rate_rule_create('u' || i, 'fixed_window', 5, '300 days') FROM generate_series(1, 100) i");
$node->psql('postgres', "SELECT mlint.rate_check('u' || i, 'x') FROM generate_series(3, 100) i");
sql("SELECT mlint.rate_reset('f1')");
($ret, $out, $err) = $node->psql('postgres', "SELECT mlint.rate_check_all('{u1,u2}', 'x')");
like($err, qr/no room in shared memory/, 'two rules never share a place');
is(sql("SELECT (mlint.rate_check_all('{u1,f2}', 'x')).allowed"), 't', '... one has it');
sql("SELECT mlint.rate_rule_drop(name) FROM mlint.rate_rules WHERE name LIKE 'u%'");

# ---- an extension that is made anew ----

sql("SELECT take('token_bucket', 'x', 5), take('fixed_window', 'x', 5)", 'other');
sql('DROP EXTENSION mlint CASCADE; CREATE EXTENSION mlint', 'other');
sql("SELECT mlint.rate_rule_create('$_', '$_', 5, '1 hour')", 'other')
  foreach @laws;
is(sql("SELECT left_of('$_', 'x')", 'other'),
	5, "$_: nothing remains of a rule with the same number")
  foreach @laws;

$node->stop('fast');
done_testing();
