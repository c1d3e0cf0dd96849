# The master key: where it comes from, what happens when it is wrong or gone,
# and that neither it nor what it protects shows up anywhere else.
use strict;
use warnings;

use Cwd qw(abs_path);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $key_a = '0123456789abcdef' x 4;
my $key_b = 'fedcba9876543210' x 4;
my $default_file = 'mlint_master.key';

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf(
	'postgresql.conf', qq{
shared_preload_libraries = 'mlint'
max_worker_processes = 32
log_statement = all
log_min_messages = debug1
log_parameter_max_length = 0
fsync = on
});
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION mlint');
my $data = abs_path($node->data_dir);

# Change settings and wait until new sessions have them.
sub configure
{
	my ($command, $file) = @_;
	$node->safe_psql('postgres',
		qq{ALTER SYSTEM SET mlint.master_key_command = '$command'});
	$node->safe_psql('postgres',
		qq{ALTER SYSTEM SET mlint.master_key_file = '$file'});
	$node->reload;
	$node->poll_query_until('postgres',
		qq{SELECT current_setting('mlint.master_key_command') = '$command'
			AND current_setting('mlint.master_key_file') = '$file'})
	  or die 'settings did not arrive';
	return;
}

sub write_file
{
	my ($path, $text, $mode) = @_;
	unlink $path;
	open my $f, '>', $path or die "$path: $!";
	print $f $text;
	close $f;
	chmod $mode // 0600, $path;
	return;
}

# The answer of a statement, or its SQLSTATE and message.
sub answer
{
	my ($sql, $db) = @_;
	my ($rc, $out, $err) = $node->psql($db // 'postgres', $sql,
		on_error_stop => 1, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $rc == 0 ? $out : $err;
}

# 1. The default file.
ok(!-e "$data/$default_file", 'no key before the first secret');
like(answer("SELECT mlint.secret_get('none')"), qr/42704.*does not exist/,
	'reading makes no key');
ok(!-e "$data/$default_file", 'still none');

# Several databases and sessions store their first secret at the same moment.
$node->safe_psql('postgres', "CREATE DATABASE db$_") for 1 .. 3;
$node->safe_psql("db$_", 'CREATE EXTENSION mlint') for 1 .. 3;
my @gates = map { $node->background_psql("db$_") } 1 .. 3;
$_->query_safe('SELECT pg_advisory_lock(1)') for @gates;
my @sessions;
for my $n (0 .. 11)
{
	my $db = 'db' . ($n % 3 + 1);
	push @sessions,
	  IPC::Run::start(
		[
			'psql', '-XAtq', '-d', $node->connstr($db),
			'-v', 'ON_ERROR_STOP=1',
			'-c', 'SELECT pg_advisory_lock_shared(1)',
			'-c', "SELECT mlint.secret_put('s$n', 'value $n')"
		],
		'>', \my $out, '2>', \my $err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
}
$node->poll_query_until('postgres',
	"SELECT count(*) = 12 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
  or die 'the sessions did not come';
$_->quit for @gates;
my $stored = grep { $_->finish } @sessions;
is($stored, 12, 'twelve first secrets at the same moment');
is($node->safe_psql("db$_", "SELECT count(mlint.secret_get(name)) FROM mlint.secrets"),
	4, "all of database $_ open")
  for 1 .. 3;
is(sprintf('%o', (stat "$data/$default_file")[2] & 07777),
	'600', 'nobody else reads the key');
ok(!-e "$data/$default_file.tmp", 'no temporary file stays');
my $default_key = slurp_file("$data/$default_file");
like($default_key, qr/^[0-9a-f]{64}\n$/, 'the key is 32 bytes in hex');

$node->safe_psql('postgres', "SELECT mlint.secret_put('kept', 'kept value')");
is(slurp_file("$data/$default_file"), $default_key, 'one key serves all');
$node->restart;
is(answer("SELECT mlint.secret_get('kept')"), 'kept value', 'and after a restart');

# 2. The key is gone, or another, or can be read by others.
rename "$data/$default_file", "$data/away" or die $!;
for my $sql ("SELECT mlint.secret_get('kept')", "SELECT mlint.secret_put('kept', 'x')")
{
	like(answer($sql), qr/ML010.*master key is missing.*HINT:.*Put the file back/s,
		"missing key: $sql");
	ok(!-e "$data/$default_file", 'no new key is made');
}
write_file("$data/$default_file", "$key_a\n");
for my $sql ("SELECT mlint.secret_get('kept')", "SELECT mlint.secret_put('kept', 'x')")
{
	like(answer($sql), qr/ML010.*not the master key.*mlint_master\.key.*HINT:/s,
		"wrong key: $sql");
}
write_file("$data/$default_file", $default_key, 0640);
like(answer("SELECT mlint.secret_get('kept')"), qr/ML010.*read by others.*0600/s,
	'a key that others can read');
write_file("$data/$default_file", "rubbish\n");
like(answer("SELECT mlint.secret_get('kept')"), qr/ML010.*not a master key.*64 hex/s,
	'a file that is no key');
unlike(answer("SELECT mlint.secret_get('kept')"), qr/rubbish/,
	'what it contains is not repeated');
write_file("$data/$default_file", '');
like(answer("SELECT mlint.secret_get('kept')"), qr/ML010.*not a master key/, 'an empty file');
unlink "$data/$default_file";
rename "$data/away", "$data/$default_file" or die $!;
is(answer("SELECT mlint.secret_get('kept')"), 'kept value', 'nothing was lost');
is(answer("SELECT version FROM mlint.secrets WHERE name = 'kept'"), 1,
	'and nothing was added');

# A session that has the key does not miss the file, and asks for it again
# when a setting changes.
my $session = $node->background_psql('postgres', on_error_stop => 0);
is($session->query("SELECT mlint.secret_get('kept')"), 'kept value', 'key read');
rename "$data/$default_file", "$data/away" or die $!;
is($session->query("SELECT mlint.secret_get('kept')"), 'kept value', 'key kept');
write_file("$data/key_a", $key_a);
configure('', "$data/key_a");
$session->query("SELECT mlint.secret_get('kept')");
like($session->{stderr}, qr/not the master key.*mlint\.master_key_file/s,
	'key forgotten when the settings changed');
$session->{stderr} = '';
$session->quit;
rename "$data/away", "$data/$default_file" or die $!;

# 3. mlint.master_key_file, hex and base64.
my $base64 = 'ASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4mrze8=';
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION mlint');
is(answer("SELECT mlint.secret_put('filed', 'from a file')", 'other'), 1, 'put under a file');
write_file("$data/key_64", " $base64 \n\n", 0400);
configure('', "$data/key_64");
is(answer("SELECT mlint.secret_get('filed')", 'other'), 'from a file', 'the same key in base64');
write_file("$data/key_upper", uc $key_a);
configure('', "$data/key_upper");
is(answer("SELECT mlint.secret_get('filed')", 'other'), 'from a file', 'and in capitals');
configure('', "$data/not_there");
like(answer("SELECT mlint.secret_get('filed')", 'other'),
	qr/ML010.*mlint\.master_key_file does not exist/, 'a file that is not there');
unlike(answer("SELECT mlint.secret_get('filed')", 'other'), qr/not_there/,
	'whose path is not shown');
like(answer("SELECT mlint.secret_put('new', 'x')", 'db1'),
	qr/ML010/, 'is not made by us');
configure('', $data);
like(answer("SELECT mlint.secret_get('filed')", 'other'), qr/ML010/, 'a folder');

# 4. mlint.master_key_command goes before the file.
configure("echo $key_a", "$data/not_there");
is(answer("SELECT mlint.secret_get('filed')", 'other'), 'from a file', 'a command');
configure("cat $data/key_64", '');
is(answer("SELECT mlint.secret_get('filed')", 'other'), 'from a file', 'that prints base64');
configure("echo $key_b", '');
like(answer("SELECT mlint.secret_get('filed')", 'other'),
	qr/ML010.*not the master key.*mlint\.master_key_command/s, 'with another key');
configure("echo $key_a; echo no token >&2; exit 3", '');
like(answer("SELECT mlint.secret_get('filed')", 'other'),
	qr/ML010.*mlint\.master_key_command failed.*exit code 3/s, 'that fails');
ok($node->log_contains('no token'), 'its errors are in the log');
configure('kill -9 $$', '');
like(answer("SELECT mlint.secret_get('filed')", 'other'), qr/ML010.*signal 9/s, 'that dies');
configure('true', '');
like(answer("SELECT mlint.secret_get('filed')", 'other'), qr/ML010.*not a master key/, 'that is silent');
configure('yes', '');
like(answer("SELECT mlint.secret_get('filed')", 'other'), qr/ML010.*not a master key/, 'that never stops');

# A command that hangs is ended with the statement, whatever it started.
for my $end ('timeout', 'terminate')
{
	my $mark = "$data/hangs";
	unlink $mark;
	configure("sleep 1000 & echo \$! >$mark; wait", '');
	my $start = time;
	my $other;
	if ($end eq 'timeout')
	{
		like(answer("SET statement_timeout = 4000; SELECT mlint.secret_get('filed')", 'other'),
			qr/57014/, 'a command that hangs is cancelled');
	}
	else
	{
		my $out = '';
		my $hung = IPC::Run::start(
			[ 'psql', '-XAtq', '-d', $node->connstr('other'),
				'-c', "SELECT mlint.secret_get('filed')" ],
			'>', \$out, '2>', \$out, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
		$node->poll_query_until('postgres',
			"SELECT (pg_stat_file('$mark', true)).size > 0")
		  or die 'the command did not start';
		$node->safe_psql('postgres',
			"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'other'");
		$hung->finish;
		like($out, qr/terminating connection/, 'or ended with its session');
	}
	cmp_ok(time - $start, '<', 30, 'at once');
	chomp(my $pid = slurp_file($mark));
	my $deadline = time + 10;
	usleep(10_000) while process_lives($pid) && time < $deadline;
	ok(!process_lives($pid), 'and nothing of it stays');
	kill 'KILL', $pid;
}

# A killed child of a killed shell waits for init; a zombie does not live.
sub process_lives
{
	my ($pid) = @_;
	return 0 unless kill 0, $pid;
	my $stat = eval { slurp_file("/proc/$pid/stat") } // return 0;
	return $stat !~ /\) Z /;
}

# Only a superuser sees the settings.
$node->safe_psql('postgres', 'CREATE ROLE someone IN ROLE mlint_admin');
like(answer('SET ROLE someone; SHOW mlint.master_key_command'), qr/42501/, 'command not shown');
like(answer('SET ROLE someone; SHOW mlint.master_key_file'), qr/42501/, 'file not shown');
like(answer("SET mlint.master_key_file = '/x'"), qr/55P02/, 'no session chooses its key');

# 5. Damage and moving are noticed.
configure('', "$data/key_a");
$node->safe_psql('other', "SELECT mlint.secret_put('one', 'value of one')");
$node->safe_psql('other', "SELECT mlint.secret_put('one', 'second of one')");
$node->safe_psql('other', "SELECT mlint.secret_put('two', 'value of two')");
for my $column ('sealed', 'wrapped_key')
{
	my $where = "secret_id = (SELECT id FROM mlint.secret WHERE name = 'one')";
	my %damage = (
		'the first byte flipped' => "set_byte($column, 0, get_byte($column, 0) # 1)",
		'a middle bit flipped' => "set_bit($column, 120, 1 - get_bit($column, 120))",
		'the last byte flipped' =>
		  "set_byte($column, length($column) - 1, get_byte($column, length($column) - 1) # 128)",
		'a byte less' => "substring($column FOR length($column) - 1)",
		'a byte more' => "$column || '\\x00'",
		'empty' => "''",
		"another version's" =>
		  "(SELECT $column FROM mlint.secret_version WHERE version = 1 AND $where)",
		"another secret's" =>
		  "(SELECT $column FROM mlint.secret_version JOIN mlint.secret s ON s.id = secret_id WHERE s.name = 'two')"
	);
	for my $kind (sort keys %damage)
	{
		like(answer(qq{BEGIN;
				UPDATE mlint.secret_version SET $column = $damage{$kind} WHERE version = 2 AND $where;
				SELECT mlint.secret_get('one')}, 'other'),
			qr/ML011.*version 2 of secret "one" does not decrypt/, "$column: $kind");
	}
}
like(answer(qq{BEGIN;
	UPDATE mlint.secret_version v SET sealed = w.sealed, wrapped_key = w.wrapped_key
		FROM mlint.secret_version w JOIN mlint.secret t ON t.id = w.secret_id
		WHERE t.name = 'two' AND v.version = 1
			AND v.secret_id = (SELECT id FROM mlint.secret WHERE name = 'one');
	SELECT mlint.secret_get('one', 1)}, 'other'),
	qr/ML011/, 'a whole envelope moved to another secret');
like(answer(qq{BEGIN;
	UPDATE mlint.secret_version v SET sealed = w.sealed, wrapped_key = w.wrapped_key
		FROM mlint.secret_version w
		WHERE w.secret_id = v.secret_id AND w.version = 1 AND v.version = 2;
	SELECT mlint.secret_get('one')}, 'other'),
	qr/ML011/, 'a whole envelope moved to another version');
like(answer(qq{BEGIN; UPDATE mlint.secret SET name = 'three' WHERE name = 'one';
	SELECT mlint.secret_get('three')}, 'other'), qr/ML011/, 'a secret renamed by hand');
is(answer("SELECT mlint.secret_get('one')", 'other'), 'second of one', 'untouched, it opens');

# 6. A dump opens in another cluster with the same key, and only with it.
my $dump = "$data/other.sql";
$node->command_ok([ 'pg_dump', '-d', $node->connstr('other'), '-f', $dump ], 'dump');
unlike(slurp_file($dump), qr/of one|of two|from a file|$key_a/, 'no value in the dump');
my $second = PostgreSQL::Test::Cluster->new('second');
$second->init;
$second->append_conf('postgresql.conf', qq{
shared_preload_libraries = 'mlint'
mlint.master_key_file = '$data/key_64'
});
$second->start;
$second->safe_psql('postgres', 'CREATE DATABASE restored');
$second->command_ok(
	[ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $second->connstr('restored'), '-f', $dump ],
	'restore');
is($second->safe_psql('restored',
	"SELECT mlint.secret_get('filed'), mlint.secret_get('one', 1), mlint.secret_get('one')"),
	'from a file|value of one|second of one', 'same key: all open');
is($second->safe_psql('restored',
	"SELECT mlint.secret_put('one', 'third'), mlint.secret_put('added', 'x')"),
	'3|1', 'and new ones are stored');
write_file("$data/key_b", $key_b);
$second->append_conf('postgresql.conf', "mlint.master_key_file = '$data/key_b'");
$second->restart;
my ($rc, $out, $err) = $second->psql('restored', "SELECT mlint.secret_get('one')");
like($err, qr/not the master key/, 'another key: refused');
($rc, $out, $err) = $second->psql('restored', "SELECT mlint.secret_put('one', 'x')");
like($err, qr/not the master key/, 'for storing, too');
$second->stop;

# 7. Templates: a copy of the database opens as well.
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE other');
is(answer("SELECT mlint.secret_get('one')", 'copy'), 'second of one', 'a copied database');

# 8. The log. Values as bind parameters, as an application sends them.
write_file("$data/bind.sql", "SELECT mlint.secret_put(:name, :value);\n", 0644);
my @bind = ('pgbench', '-n', '-t', '1', '-M', 'extended', '-f', "$data/bind.sql");
$node->command_ok(
	[ @bind, '-D', 'name=bound', '-D', 'value=logged-never-1', 'other' ],
	'a value as a bind parameter');
$node->command_fails(
	[ @bind, '-D', 'name=a name', '-D', 'value=logged-never-2', 'other' ],
	'one that is refused');
is($node->safe_psql('other', "SELECT mlint.secret_get('bound')"), 'logged-never-1', 'it arrived');
$node->psql('other', "SELECT mlint.secret_get('one')");
my $log = slurp_file($node->logfile);
unlike($log, qr/logged-never/, 'no bound value in the log');
unlike($log, qr/$default_key/, 'nor a key');

# A failing statement with a literal: log_statement logs it before it runs, so
# switch that off, and see that the error does not log it.
$node->append_conf('postgresql.conf', "log_statement = none\nlog_min_messages = warning");
$node->reload;
$node->poll_query_until('other', "SELECT current_setting('log_statement') = 'none'");
$node->psql('other', "SELECT mlint.secret_put('bad name', 'literal-never-1')");
$node->psql('other', "SELECT mlint.webhook_sign('x', 'whsec_literal-never-2', 'id')");
configure('exit 1', '');
$node->psql('other', "SELECT mlint.secret_put('one', 'literal-never-3')");
$node->psql('other', "BEGIN READ ONLY; SELECT mlint.secret_put('one', 'literal-never-4')");
$log = slurp_file($node->logfile);
like($log, qr/invalid name of a secret/, 'errors are logged');
like($log, qr/mlint\.master_key_command failed/, 'all of them');
unlike($log, qr/literal-never/, 'without the statement that holds the value');

done_testing();
