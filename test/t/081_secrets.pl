# Secrets: who may do what, role by role; a master key that changes while
# everybody reads and whatever dies; ciphertext that was moved; plaintext that
# is nowhere but where it was sent; a standby.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Cwd qw(abs_path);
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mlint_node(
	'main',
	allows_streaming => 1,
	conf => "restart_after_crash = on\n");
my $data = abs_path($node->data_dir);

sub sql { return $node->safe_psql('postgres', @_) }

# The answer as a role, or its SQLSTATE and message.
sub by
{
	my ($role, $sql, $db) = @_;
	my ($rc, $out, $err) = $node->psql(
		$db // 'postgres', "SET ROLE \"$role\"; $sql",
		on_error_stop => 1, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $rc == 0 ? $out : $err;
}

# ---- the matrix ----

sql(<<'EOQ');
CREATE ROLE owner IN ROLE mlint_user;
CREATE ROLE r_read IN ROLE mlint_user;
CREATE ROLE r_write IN ROLE mlint_user;
CREATE ROLE r_rotate IN ROLE mlint_user;
CREATE ROLE r_admin IN ROLE mlint_user;
CREATE ROLE r_member IN ROLE r_read;
CREATE ROLE r_none IN ROLE mlint_user;
CREATE ROLE r_reader IN ROLE mlint_reader;
CREATE ROLE r_nobody;
CREATE ROLE administrator IN ROLE mlint_admin;
CREATE ROLE "odd ""role"" *" IN ROLE mlint_user;
EOQ
my $denied = qr/42704.*secret "m" does not exist, or you may not do that with it/;
my $no_function = qr/42501/;
my %calls = (
	get => "SELECT mlint.secret_get('m')",
	get_bytes => "SELECT mlint.secret_get_bytes('m')",
	versions => "SELECT count(*) FROM mlint.secret_versions('m')",
	put => "SELECT mlint.secret_put('m', 'new')",
	put_bytes => "SELECT mlint.secret_put_bytes('m', 'new')",
	destroy => "SELECT mlint.secret_destroy('m', 1)",
	alter => "SELECT mlint.secret_alter('m', description => 'x')",
	grant => "SELECT mlint.secret_grant('m', 'r_none', 'read')",
	revoke => "SELECT mlint.secret_revoke('m', 'r_read', 'read')",
	drop => "SELECT mlint.secret_drop('m')",
	view => "SELECT count(*) FROM mlint.secrets WHERE name = 'm'",
	grants => "SELECT count(*) > 0 FROM mlint.secret_grants WHERE pattern = 'm'");
my @all = keys %calls;
my %may = (
	postgres => [@all],
	administrator => [@all],
	owner => [@all],
	r_admin => [@all],
	r_read => [qw(get get_bytes versions view grants)],
	r_member => [qw(get get_bytes versions view grants)],
	r_write => [qw(put put_bytes versions view grants)],
	r_rotate => [qw(versions view grants)],
	r_none => [],
	'odd ""role"" *' => []);
for my $role (sort(keys %may), 'r_reader', 'r_nobody')
{
	for my $call (sort keys %calls)
	{
		# Each in a transaction that is rolled back: the next finds all as it was.
		my $prepare = <<'EOQ';
RESET ROLE; BEGIN; SET LOCAL ROLE administrator;
SELECT FROM mlint.secret_put('m', 'value');
SELECT FROM mlint.secret_put('m', 'value');
SELECT FROM mlint.secret_alter('m', owner => 'owner');
SELECT FROM mlint.secret_grant('m', 'r_read', 'read');
SELECT FROM mlint.secret_grant('m', 'r_write', 'write');
SELECT FROM mlint.secret_grant('m', 'r_rotate', 'rotate');
SELECT FROM mlint.secret_grant('m', 'r_admin', 'admin');
EOQ
		my $answer = by('postgres', "$prepare SET LOCAL ROLE \"$role\"; $calls{$call}");
		if (grep { $_ eq $call } @{ $may{$role} // [] })
		{
			unlike($answer, qr/ERROR/, "$role may $call");
			unlike($answer, qr/^[0f]$/m, "... and sees it") if $call =~ /^(view|grants|versions)$/;
		}
		elsif ($call =~ /^(view|grants)$/ && $role ne 'r_nobody')
		{
			like($answer, qr/^[0f]$/m, "$role sees nothing in $call");
		}
		else
		{
			like($answer, $role =~ /^r_(reader|nobody)$/ ? $no_function : $denied,
				"$role may not $call");
		}
	}
}
is(by('r_none', $calls{get}) =~ s/"m"/"x"/r, by('r_none', "SELECT mlint.secret_get('x')"),
	'a name that there is not is the same error');
like(by('r_none', "SELECT mlint.secret_put('fresh', 'x')"), qr/42704/, 'nobody makes one without a grant');
like(by('r_none', q(SELECT mlint.destination_create('d', 'http', '{"url": "http://127.0.0.1/"}'))),
	qr/42501/, 'nor a destination');

# A reference is as good as reading.
sql("SELECT mlint.secret_put('key', 'whsec_' || encode('0123456789abcdef', 'base64'))");
sql("GRANT EXECUTE ON FUNCTION mlint.destination_create(text, text, jsonb, text[], jsonb) TO r_none, r_read")
  if sql("SELECT to_regprocedure('mlint.destination_create(text, text, jsonb, text[], jsonb)') IS NOT NULL") eq 't';

# Names of roles and secrets are data.
sql(q{SELECT mlint.secret_put('q', 'quoted'), mlint.secret_grant('q', 'odd "role" *', 'read')});
is(by('odd ""role"" *', "SELECT mlint.secret_get('q')"), 'quoted', 'a role with an odd name');
sql('DROP OWNED BY "odd ""role"" *"; DROP ROLE "odd ""role"" *"');
unlike(sql("SELECT role FROM mlint.secret_grants WHERE pattern = 'q' AND privilege = 'read'"),
	qr/odd/, 'a dropped role is a number in the grants');
unlike(scalar(run_dump()), qr/^q\t\d+\tread/m, '... and not in a dump');

sub run_dump
{
	my ($out) = run_command([ 'pg_dump', '-d', $node->connstr('postgres') ]);
	return $out;
}

# ---- moved to another database, under the same master key ----

sql('CREATE DATABASE elsewhere');
$node->safe_psql('elsewhere', "CREATE EXTENSION mlint; SELECT mlint.secret_put('moved', 'of elsewhere')");
sql("SELECT mlint.secret_put('moved', 'of here')");
my $row = sql(<<'EOQ');
SELECT encode(wrapped_key, 'hex') || ' ' || encode(sealed, 'hex')
FROM mlint.secret_version v JOIN mlint.secret s ON s.id = v.secret_id WHERE s.name = 'moved'
EOQ
my ($wrapped, $sealed) = split / /, $row;
like(
	by('postgres', <<"EOQ", 'elsewhere'),
BEGIN;
UPDATE mlint.secret_version SET wrapped_key = '\\x$wrapped', sealed = '\\x$sealed';
SELECT mlint.secret_get('moved');
EOQ
	qr/ML011.*database/s, 'a row of another database does not decrypt');
is($node->safe_psql('elsewhere', "SELECT mlint.secret_get('moved')"), 'of elsewhere', 'its own does');

# ---- another master key ----

sub keys_in_file { return scalar grep { /\S/ } split /\n/, slurp_file("$data/mlint_master.key") }

sub all_open
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_sql($node, "$what: all secrets open", <<'EOQ');
SELECT bool_and(mlint.secret_get('many/' || n) = 'value ' || n) FROM generate_series(1, 5000) n
EOQ
	return;
}

sub wait_rewrapped
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_sql($node, "$what: all is under the new key",
		"SELECT count(*) = 0 FROM mlint.master_key WHERE state = 'retiring'");
	return;
}

sql("ALTER SYSTEM SET mlint.audit_durability = 'memory'; SELECT pg_reload_conf()");
sql("SELECT count(mlint.secret_put('many/' || n, 'value ' || n)) FROM generate_series(1, 5000) n");
is(keys_in_file(), 1, 'one key');
my $id = 1;
for my $point (qw(master-key-before-rename master-key-after-rename master-key-before-commit))
{
	inject($node, $point, 'kill');
	my ($rc) = $node->psql('postgres', 'SELECT mlint.master_key_rotate()');
	isnt($rc, 0, "$point: the server crashed");
	wait_for("$point: the server is back", sub { struck($node, $point) });
	all_open($point);
	is(sql("SELECT max(key_id) FROM mlint.master_key"), $id, "$point: nothing half done");
	my $before = keys_in_file();
	is(sql('SELECT mlint.master_key_rotate()'), ++$id, "$point: again, it is done");
	ok(keys_in_file() <= $before + 1, "$point: a key that was made and not used is used now");
	wait_rewrapped($point);
	all_open($point);
}
for my $point (qw(rewrap-version rewrap-before-commit))
{
	inject($node, $point, 'kill');
	is(sql('SELECT mlint.master_key_rotate()'), ++$id, "$point: a new key");
	wait_for("$point: the job died", sub { struck($node, $point) });
	all_open($point);
	wait_rewrapped($point);
	all_open($point);
}

# Readers and writers go on meanwhile, and a rollback takes it back.
$node->pgbench(
	'-n -c 4 -T 3', 0, [qr/processed/], [qr/^$/],
	'reading and writing while keys change',
	{
		'get@20' => "\\set n random(1, 5000)\nSELECT 1 / (mlint.secret_get('many/' || :n) = 'value ' || :n)::int;\n",
		'put@5' => "\\set n random(1, 5000)\nSELECT mlint.secret_put('many/' || :n, 'value ' || :n);\n",
		'rotate@1' => "\\sleep 700 ms\nBEGIN; SELECT mlint.master_key_rotate() < 14; ROLLBACK;\n"
	});
all_open('after that');
wait_rewrapped('after that');
is(sql("SELECT max(key_id) FROM mlint.master_key"), $id, 'a rollback took the key back');

# A key that the administrator keeps is his to change.
my ($one, $two) = ('1' x 64, '2' x 64);
sub key_file
{
	my ($text) = @_;
	unlink "$data/../kept.key";
	append_to_file("$data/../kept.key", $text);
	chmod 0600, "$data/../kept.key" or die;
	return;
}
sql('CREATE DATABASE kept');
key_file("$one\n");
sql("ALTER SYSTEM SET mlint.master_key_file = '$data/../kept.key'; SELECT pg_reload_conf()");
wait_for_sql($node, 'the setting arrives', "SELECT current_setting('mlint.master_key_file') <> ''");
$node->safe_psql('kept', "CREATE EXTENSION mlint");
like(by('postgres', 'SELECT mlint.master_key_rotate()', 'kept'), qr/55000.*no secret/, 'nothing to rotate yet');
$node->safe_psql('kept', "SELECT mlint.secret_put('k', 'kept value')");
like(by('postgres', 'SELECT mlint.master_key_rotate()', 'kept'),
	qr/ML010.*gives no new master key.*first line/s, 'no new key given: says how');
key_file("# the new one\n$two\n\n  $one\n");
is(by('postgres', 'SELECT mlint.master_key_rotate()', 'kept'), 2, 'the new one first, it is taken');
wait_for_sql($node, 'rewrapped', "SELECT string_agg(state, ',' ORDER BY key_id) FROM mlint.master_key",
	'retired,current', 'kept');
key_file("$two\n");
is(by('postgres', "SELECT mlint.secret_get('k')", 'kept'), 'kept value', 'the old one can go');
is(by('postgres', 'SELECT string_agg(available::text, $$,$$ ORDER BY key_id) FROM mlint.master_key', 'kept'),
	'false,true', '... and the view says so');
unlike(by('postgres', 'SELECT warning FROM mlint.master_key', 'kept'), qr/\S/, 'no warning: the key is elsewhere');
key_file("$one\n");
like(by('postgres', "SELECT mlint.secret_get('k')", 'kept'), qr/ML010/, 'the old one alone opens nothing');
like(by('postgres', "SELECT string_agg(warning, '') FROM mlint.master_key", 'kept'), qr/does not give this key/, '... the view warns');
key_file("not a key\n");
like(by('postgres', "SELECT string_agg(warning, '') FROM mlint.master_key", 'kept'), qr/not a master key/, '... or tells what is wrong');
key_file("$two\n" x 17);
like(by('postgres', "SELECT mlint.secret_get('k')", 'kept'), qr/ML010/, 'more keys than fit are refused');
sql("ALTER SYSTEM RESET mlint.master_key_file; SELECT pg_reload_conf()");
wait_for_sql($node, 'the setting is gone', "SELECT current_setting('mlint.master_key_file') = ''");

# ---- who stores secrets waits for nobody, and dispatchers hear of it ----

my $other = $node->background_psql('postgres');
$other->query_safe("BEGIN; SELECT mlint.secret_put('one', 'x')");
like(sql("SET statement_timeout = '20s'; SELECT mlint.secret_put('two', 'y')"), qr/^1$/m,
	'a transaction that stores a secret does not hold up another');
$other->query_safe('ROLLBACK');
$other->quit;

my $receiver = MlintTest::Receiver->start;
create_destination($node, 'signed', 'http',
	{ url => $receiver->url('/ok'), signing_secret => { secret => 'key' } });
sub state_of
{
	my ($what, $expected) = @_;
	my $event = sql("SELECT mlint.send('signed', 'secret.test', '{}')");
	wait_for_sql($node, $what, "SELECT state FROM mlint.deliveries WHERE event_id = $event", $expected);
	return;
}
state_of('signed with a secret', 'delivered');
sql("BEGIN; SELECT mlint.secret_drop('key'); PREPARE TRANSACTION 'drop'");
state_of('a drop that is only prepared changes nothing', 'delivered');
sql("COMMIT PREPARED 'drop'");
state_of('dropped, deliveries wait', 'pending');
sql("SELECT mlint.secret_put('key', 'back')");
wait_for_sql($node, 'stored again, they go out',
	"SELECT count(*) = 0 FROM mlint.deliveries WHERE state = 'pending'");
sql("SELECT mlint.destination_drop('signed')");
$receiver->stop if $receiver->can('stop');

# ---- where the plaintext is not ----

# Whether a process's memory, as a core file would have it, holds a text.
sub memory_holds
{
	my ($pid, $text) = @_;
	my (@maps, $found);

	open my $smaps, '<', "/proc/$pid/smaps" or die "smaps of $pid: $!";
	while (<$smaps>)
	{
		if (/^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)/)
		{
			push @maps, { from => hex $1, to => hex $2, mode => $3, name => $4 };
		}
		# Left out of core files.
		$maps[-1]{dontdump} = 1 if /^VmFlags:.*\bdd\b/;
	}
	open my $memory, '<:raw', "/proc/$pid/mem" or die "memory of $pid: $!";
	for my $map (grep { $_->{mode} =~ /^r/ && !$_->{dontdump} && $_->{name} !~ /^\[v/ } @maps)
	{
		my $bytes = '';

		sysseek $memory, $map->{from}, 0 or next;
		# No further: what comes behind may be left out of core files.
		my $size = $map->{to} - $map->{from};
		while (length $bytes < $size)
		{
			sysread $memory, $bytes, $size - length $bytes, length $bytes or last;
		}
		$found = 1 if index($bytes, $text) >= 0;
	}
	return $found;
}

my $key_text = (split /\n/, slurp_file("$data/mlint_master.key"))[0];
my $key_bytes = pack 'H*', $key_text;
$node->append_conf('postgresql.conf', <<'EOC');
session_preload_libraries = 'auto_explain'
auto_explain.log_min_duration = 0
auto_explain.log_verbose = on
auto_explain.log_nested_statements = on
log_statement = all
log_min_messages = debug2
log_min_duration_statement = 0
log_parameter_max_length = 0
EOC
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'mlint, pg_stat_statements'\npg_stat_statements.track = all\n");
$node->restart;
sql('CREATE EXTENSION pg_stat_statements');
sql("SELECT mlint.secret_put('shown', 'x')");
my $plain = 'never-' . 'seen-9431';
append_to_file("$data/bind.sql", "SELECT mlint.secret_put(:name, :value);\nSELECT length(mlint.secret_get(:name));\n");
command_ok(
	[
		'pgbench', '-n', '-t', '3', '-M', 'extended', '-f', "$data/bind.sql",
		'-D', 'name=shown', '-D', "value=$plain", '-d', $node->connstr('postgres')
	],
	'put with bind parameters, get');
my $session = $node->background_psql('postgres');
my $pid = $session->query_safe('SELECT pg_backend_pid()');
like($session->query_safe("SELECT mlint.secret_get('shown')"), qr/$plain/, 'a session reads it');
SKIP:
{
	skip 'freed memory is kept, and there are terabytes to read', 5 if memory_is_watched();
	ok(memory_holds($pid, 'server_version'), 'a process can be looked into');
	ok(!memory_holds($pid, $key_bytes), 'no core file has the master key');
	# PostgreSQL's own buffers held what was sent; other traffic goes over them.
	$session->query_safe("SELECT repeat('x', 20000)");
	$session->query_safe("SELECT relname, relnatts FROM pg_class");
	ok(!memory_holds($pid, $plain), 'nothing of ours keeps the value after its use');
	is($session->query_safe("SELECT count(mlint.secret_get('many/' || n)) FROM generate_series(1, 3000) n"), 3000, 'many are read');
	ok(!memory_holds($pid, 'value 2999'), '... and none stays');
}
is(sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%never' || '-seen%' AND pid <> pg_backend_pid()"), 0,
	'not in pg_stat_activity');
ok(sql("SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%secret_put%'") > 0, 'pg_stat_statements has the call');
is(sql("SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%never' || '-seen%'"), 0, '... not the value');
$session->quit;
like(by('postgres', "SELECT mlint.secret_put('bad name', '$plain')"), qr/42602/, 'a call that fails');
my $log = slurp_file($node->logfile);
# log_statement logs a literal before we see it: that one line is PostgreSQL's.
$log =~ s/^.*LOG:  statement: .*bad name.*\n//mg;
unlike($log, qr/$plain/, 'not in the log, auto_explain and debug messages included');
unlike($log, qr/$key_text/, 'nor a key');
command_ok([ 'grep', '-rqa', 'mlint.secret', "$data/base", "$data/pg_wal" ], 'files can be looked into');
command_fails([ 'grep', '-rqa', $plain, "$data/base", "$data/pg_wal", "$data/pg_stat_tmp", "$data/global" ],
	'no file has the value');

# Nor do messages about characters show them.
sql(q(CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'));
$node->safe_psql('latin', q(CREATE EXTENSION mlint; SELECT mlint.secret_put_bytes('tokyo', '\xe69db1e4baac')));
my $untold = by('postgres', "SELECT mlint.secret_get('tokyo')", 'latin');
like($untold, qr/22P05.*no equivalent.*LATIN1/s, 'a character that the database has not');
unlike($untold, qr/0xe6|e69d/i, '... is not shown');
is(by('postgres', q(SET client_encoding = 'LATIN1'; SELECT mlint.secret_put('e', U&'\00E9'); SELECT mlint.secret_get_bytes('e')), 'latin'),
	"1\n\\xc3a9", 'values are UTF-8 in any database');

# ---- a standby ----

$node->append_conf('postgresql.conf', "session_preload_libraries = ''\nlog_min_messages = warning\nlog_statement = none\n");
$node->restart;
$node->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
# A copy by hand has the modes that the copier's umask leaves.
chmod 0600, $standby->data_dir . '/mlint_master.key' or die;
$standby->start;
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', "SELECT available FROM mlint.master_key WHERE state = 'current'"), 't',
	'a standby says that it could decrypt');
rename $standby->data_dir . '/mlint_master.key', $standby->data_dir . '/away' or die;
is($standby->safe_psql('postgres', "SELECT available FROM mlint.master_key WHERE state = 'current'"), 'f',
	'... or that it could not');
like($standby->safe_psql('postgres', "SELECT warning FROM mlint.master_key WHERE state = 'current'"), qr/missing/, '... and why');
rename $standby->data_dir . '/away', $standby->data_dir . '/mlint_master.key' or die;
my ($rc, $out, $err) = $standby->psql('postgres', "SELECT mlint.secret_get('shown')");
like($err, qr/primary/, 'it reads no secret, which could not be accounted for');
is($standby->safe_psql('postgres', "SELECT count(*) FROM mlint.secrets WHERE name = 'shown'"), 1, 'the views work');
($rc, $out, $err) = $standby->psql('postgres', "SELECT mlint.secret_put('x', 'x')");
like($err, qr/on the primary/, 'nothing is stored');
$node->stop('immediate');
$standby->promote;
wait_for('promoted, it reads', sub {
	my ($rc, $out) = $standby->psql('postgres', "SELECT mlint.secret_get('shown')");
	return $rc == 0 && $out eq $plain;
});
$standby->stop;

done_testing();
