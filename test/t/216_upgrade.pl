# ALTER EXTENSION UPDATE, rehearsed with a version 0.9 that lacks something of
# everything: under load nothing is lost, a library of another version than the
# extension's says so once and waits, and test/catalog.sql finds no difference to
# a new installation, but does for every statement that an upgrade script forgets.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Copy qw(copy);
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use SecretTest;
use Test::More;
use Time::HiRes qw(usleep);

my $tree = $ENV{MLINT_TREE} // abs_path(dirname(__FILE__) . '/../..');
my $catalog = "$tree/test/catalog.sql";

# ---- an installation of its own, with two versions of SQL and library ----

my $root = PostgreSQL::Test::Utils::tempdir();
chomp(my $config = do { local $ENV{PG_CONFIG} = 'pg_config'; `sh $tree/test/pgroot.sh $root` });
chomp(my ($share, $lib) = (`$config --sharedir`, `$config --pkglibdir`));
my $scripts = "$share/extension";
my $new = slurp_file("$scripts/mlint--1.0.sql");

# What 0.9 has otherwise.
my $old = $new;
sub without
{
	my ($what, $pattern, $instead) = @_;
	$old =~ s/$pattern/$instead \/\/ ''/e
	  or die "the rehearsal has to be adapted, mlint--1.0.sql is not as it expects: $what";
	return;
}
without('a column', qr/,\n\taltered_at timestamptz\n\);\n(?=COMMENT ON TABLE mlint\.dns_provider )/, "\n);\n");
without('a column of a view', qr/(?<=SELECT p\.name, p\.kind, p\.options, p\.created_at), p\.altered_at(?=\nFROM mlint\.dns_provider p)/);
without('its comment', qr/COMMENT ON COLUMN mlint\.dns_providers\.altered_at [^;]*;/);
without('a constraint', qr/(?<=\tevery interval NOT NULL) CHECK \(every > '0'\)(?=,\n\tenabled)/);
without('a default', qr/(?<=\tfailures int NOT NULL DEFAULT )0(?=\n\);\nCOMMENT ON TABLE mlint\.job )/, '1');
without('an index', qr/CREATE INDEX acme_challenge_solver [^;]*;/);
without('a job', qr/INSERT INTO mlint\.job [^;]*'audit_retention'[^;]*;/);
without('a row', qr/\t\('EMERGENCY_SHUTDOWN', [^\n]*\n/);
without('a room', qr/-- owned: what belongs to .*(?=\nSELECT mlint\.privileges_close\(\);)/s);
without('an argument', qr/(?<=\tbody text DEFAULT NULL),\n\ttimeout interval DEFAULT '30 s'(?=,\n\tOUT status int)/);
$old =~ s/mlint\.http\(text, text, jsonb, text, interval\)/mlint.http(text, text, jsonb, text)/g;
without('what a SECURITY DEFINER function does',
	qr/(?<=RAISE EXCEPTION 'destination "%" does not exist', destination\n\t\t\tUSING ERRCODE = 'undefined_object'),\n\t\t\t\tHINT = [^;]*(?=;)/);
without('a trigger', qr/CREATE TRIGGER job_enable AFTER INSERT ON mlint\.certificate_watch[^;]*;\nALTER TABLE mlint\.certificate_watch ENABLE ALWAYS[^;]*;/);
without('what is dumped', qr/SELECT pg_catalog\.pg_extension_config_dump\('mlint\.dns_provider_id_seq', ''\);/);
without('a grant', qr/GRANT SELECT ON mlint\.master_key TO mlint_reader;/);
without('a target of statistics', qr/ALTER TABLE mlint\.secret_grant ALTER pattern SET STATISTICS 0;/);
without('a privilege of a type', qr/REVOKE ALL ON TYPE mlint\.role_id FROM PUBLIC;/);
without('a comment', qr/COMMENT ON TABLE mlint\.job_run [^;]*;/);

# The upgrade script, as one would write it.
my ($owned) = $new =~ /(-- owned: what belongs to .*)(?=\nSELECT mlint\.privileges_close\(\);)/s;
my ($expect) = $new =~ /(CREATE FUNCTION mlint\.destination_expect\(.*?\n\$\$;)/s;
my ($http) = $new =~ /(CREATE FUNCTION mlint\.http\(.*?COST 10000;)/s;
my ($comment) = $new =~ /(COMMENT ON TABLE mlint\.job_run [^;]*;)/;
my ($emergency) = $new =~ /\t(\('EMERGENCY_SHUTDOWN', '[^']*'\))/;
my ($index) = $new =~ /(CREATE INDEX acme_challenge_solver [^;]*;)/;
$expect =~ s/CREATE/CREATE OR REPLACE/;
my $upgrade = <<"EOQ";
\\echo Use "ALTER EXTENSION mlint UPDATE" to load this file. \\quit
ALTER TABLE mlint.dns_provider ADD COLUMN altered_at timestamptz;
CREATE OR REPLACE VIEW mlint.dns_providers AS
SELECT p.name, p.kind, p.options, p.created_at, p.altered_at
FROM mlint.dns_provider p;
COMMENT ON COLUMN mlint.dns_providers.altered_at IS 'When its options were last changed';
ALTER TABLE mlint.job ADD CONSTRAINT job_every_check CHECK (every > '0');
ALTER TABLE mlint.job ALTER failures SET DEFAULT 0;
$index
INSERT INTO mlint.job (name, command, every)
VALUES ('audit_retention', 'SELECT mlint.audit_retention_run()', '6 hours');
INSERT INTO mlint.event_type VALUES $emergency;
DROP FUNCTION mlint.http(text, text, jsonb, text);
$http
COMMENT ON FUNCTION mlint.http(text, text, jsonb, text, interval) IS
'Send one HTTP request and wait for the response; any status is a result, no response is an error';
REVOKE ALL ON FUNCTION mlint.http(text, text, jsonb, text, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.http(text, text, jsonb, text, interval) TO mlint_admin;
$expect
CREATE TRIGGER job_enable AFTER INSERT ON mlint.certificate_watch
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('certificate_watches');
ALTER TABLE mlint.certificate_watch ENABLE ALWAYS TRIGGER job_enable;
SELECT pg_catalog.pg_extension_config_dump('mlint.dns_provider_id_seq', '');
GRANT SELECT ON mlint.master_key TO mlint_reader;
ALTER TABLE mlint.secret_grant ALTER pattern SET STATISTICS 0;
REVOKE ALL ON TYPE mlint.role_id FROM PUBLIC;
$comment
$owned
SELECT mlint.privileges_close();
EOQ

sub spill
{
	my ($name, $text) = @_;
	open my $f, '>', "$scripts/$name" or die "$name: $!";
	print $f $text;
	close $f or die "$name: $!";
	return;
}
spill('mlint--0.9.sql', $old);
spill('mlint--0.9--1.0.sql', $upgrade);

# A library is that of the version that it says it is.
sub library
{
	my ($version) = @_;
	my $text = slurp_file("$lib/mlint.so.1.0");
	($text =~ s/mlint SQL version 1\.0\0/mlint SQL version $version\0/) == 1
	  or die 'the library does not say its version';
	open my $f, '>:raw', "$lib/mlint.so.tmp" or die $!;
	print $f $text;
	close $f or die $!;
	# As an installation does: who runs keeps what he has loaded.
	rename "$lib/mlint.so.tmp", "$lib/mlint.so" or die $!;
	return;
}
copy("$lib/mlint.so", "$lib/mlint.so.1.0") or die $!;
library('0.9');

my $receiver = MlintTest::Receiver->start;
my $node = PostgreSQL::Test::Cluster->new('main', install_path => dirname(dirname($config)));
$node->init;
mlint_configure($node, '');
$node->start;

sub sql { return $node->safe_psql($_[1] // 'postgres', $_[0]); }
sub warnings
{
	return scalar(() = slurp_file($node->logfile) =~ /WARNING:  mlint does not run in database "$_[0]": the extension there is version $_[1], and the library that the server has loaded is that of version $_[2]/g);
}

# ---- 0.9, with data and load ----

sql("CREATE EXTENSION mlint VERSION '0.9'");
sql("CREATE ROLE user_of_it LOGIN; GRANT mlint_user TO user_of_it");
create_destination($node, 'load', 'http', { url => $receiver->url('/status/200') });
sql("SELECT mlint.destination_create('later', 'http', '{\"url\": \"" . $receiver->url('/status/201') . "\"}', '{later}', false)");
sql("SELECT mlint.publish('later', '{\"n\": 1}')");
sql("SELECT mlint.secret_put('kept', 'value'); SELECT mlint.secret_grant('kept', 'user_of_it', 'read')");
sql("SELECT mlint.dns_provider_create('dns', 'cloudflare', '{\"token\": {\"secret\": \"kept\"}}')");
my $version = sql("SELECT extversion FROM pg_extension WHERE extname = 'mlint'");
is($version, '0.9', 'a database at 0.9');
deliver($node, 'load', { warm => 1 });

# Each publisher notes what it has committed; one whose server is down comes back.
my $published = PostgreSQL::Test::Utils::tempdir() . '/published';
my $stop = "$published.stop";
my $publisher = fork() // die "fork: $!";
if ($publisher == 0)
{
	open my $f, '>>', $published or POSIX::_exit(1);
	$f->autoflush(1);
	until (-e $stop)
	{
		my ($rc, $out) = eval {
			$node->psql('postgres', "SELECT mlint.publish('load', '{}') FROM generate_series(1, 20)");
		};
		print $f "$out\n" if defined $rc && $rc == 0 && !$@;
		usleep(20_000);
	}
	POSIX::_exit(0);
}
END { if ($publisher) { my $s = $?; kill 'KILL', $publisher; waitpid $publisher, 0; $? = $s } }
sub committed { return -e $published ? scalar(() = slurp_file($published) =~ /\n/g) : 0; }
sub more_committed
{
	my ($what) = @_;
	my $before = committed();
	return wait_for($what, sub { committed() > $before + 100 });
}
more_committed('load at 0.9');

# ---- the new library, and the old SQL ----

library('1.0');
$node->restart;
wait_for('a library that is newer than the extension says so', sub { warnings('postgres', '0.9', '1.0') > 0 });
like(slurp_file($node->logfile), qr/HINT:  Run ALTER EXTENSION mlint UPDATE in that database/, '... and what to do');
more_committed('... publishing goes on');
is(sql("SELECT count(*) FROM mlint.stat_workers WHERE database = 'postgres'"), 0, '... no worker meets tables that it does not know');
is(warnings('postgres', '0.9', '1.0'), 1, '... and it is said once');

# A session that knows the old ones.
my $session = $node->background_psql('postgres');
$session->query_safe("SELECT mlint.publish('load', '{}'); SELECT count(*) FROM mlint.destinations; SELECT mlint.secret_privileges('kept')");

# An update that fails changes nothing.
spill('mlint--0.9--1.0.sql', "${upgrade}SELECT 1/0;\n");
my ($rc, $out, $err) = $node->psql('postgres', 'ALTER EXTENSION mlint UPDATE');
like($err, qr/division by zero/, 'an update that fails');
is(sql("SELECT extversion FROM pg_extension WHERE extname = 'mlint'"), '0.9', '... leaves everything as it was');
spill('mlint--0.9--1.0.sql', $upgrade);

sql('ALTER EXTENSION mlint UPDATE');
wait_for_worker($node, 'mlint dispatcher', 'postgres');
pass('ALTER EXTENSION UPDATE under load, and the workers begin');
more_committed('... while it is published on');
is($session->query_safe("SELECT mlint.secret_get('kept')"), 'value', 'a session goes on, with what it had prepared');
$session->query_safe("SELECT mlint.publish('load', '{}'); SELECT count(*) FROM mlint.destinations");
$session->quit;
is(sql("SET ROLE user_of_it; SELECT mlint.secret_get('kept')"), 'value', 'secrets and grants are there');
is(sql("SELECT name || coalesce(altered_at::text, ' -') FROM mlint.dns_providers"), 'dns -', '... what was configured');
sql("SELECT mlint.dns_provider_alter('dns', '{\"zone\": \"example.com\"}')");
is(sql('SELECT altered_at IS NOT NULL FROM mlint.dns_providers'), 't', '... with what is new');
sql("SELECT mlint.destination_alter('later', enabled => true)");
wait_for('... and what was pending', sub { $receiver->count('/status/201') == 1 });

# ---- back to the old library, and the other way round ----

library('0.9');
$node->restart;
wait_for('a library that is older than the extension says so', sub { warnings('postgres', '1.0', '0.9') > 0 });
more_committed('... publishing goes on');
library('1.0');
$node->restart;
wait_for_worker($node, 'mlint dispatcher', 'postgres');
sub finish_publisher
{
	open my $f, '>', $stop or die $!;
	close $f;
	waitpid $publisher, 0;
	$publisher = 0;
	return;
}
finish_publisher();
my @events = slurp_file($published) =~ /^(\d+)$/mg;
my $last = publish($node, 'load');
ok(wait_for_delivery($node, $last), 'the last event is delivered');
wait_for_sql($node, 'everything is', "SELECT count(*) = 0 FROM mlint.deliveries WHERE state <> 'delivered'");
my $times = $receiver->arrivals('/status/200');
my %arrived = map { /_(\d+)_|_(\d+)$/ ? (($1 // $2) => 1) : () } keys %$times;
cmp_ok(scalar keys %$times, '>=', scalar @events, 'every event that was committed (' . @events . ') has arrived');
is(sql("SELECT count(*) FROM unnest(ARRAY[" . join(',', @events) . "]) e WHERE NOT EXISTS (SELECT FROM mlint.deliveries d WHERE d.event_id = e AND d.state = 'delivered')"),
	0, '... none is missing');
is(sql('SELECT mlint.audit_verify() IS NULL'), 't', 'the audit log is whole');

# The SQL before the library: workers stop then, and wait for the restart.
library('0.9');
$node->restart;
sql('CREATE DATABASE early');
sql("CREATE EXTENSION mlint VERSION '0.9'", 'early');
sql("SELECT mlint.destination_create('load', 'http', '{\"url\": \"" . $receiver->url('/status/202') . "\"}', '{load}')", 'early');
wait_for_worker($node, 'mlint dispatcher', 'early');
sql("SELECT mlint.publish('load', '{}') FROM generate_series(1, 2000)", 'early');
sql('ALTER EXTENSION mlint UPDATE', 'early');
wait_for('an update before the restart: the workers that are there stop', sub { warnings('early', '1.0', '0.9') > 0 });
library('1.0');
$node->restart;
wait_for_sql($node, '... and go on after it', "SELECT count(*) = 2000 FROM mlint.deliveries WHERE state = 'delivered'", 't', 'early');
is(scalar keys %{ $receiver->arrivals('/status/202') }, 2000, '... with nothing lost');

# ---- is it the same as a new installation? ----

sub catalog
{
	my ($db) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($db), '-f', $catalog ],
		'>', \$out, '2>', \$err) or die "$catalog: $err";
	return $out;
}

sub differences
{
	my ($left, $right) = @_;
	my %left = map { $_ => 1 } split /\n(?=[^\n]* \| )/, $left;
	my %right = map { $_ => 1 } split /\n(?=[^\n]* \| )/, $right;

	return (map("< $_", grep { !$right{$_} } sort keys %left), map("> $_", grep { !$left{$_} } sort keys %right));
}

sql('CREATE DATABASE fresh');
sql('CREATE EXTENSION mlint', 'fresh');
my $fresh = catalog('fresh');
cmp_ok(scalar(() = $fresh =~ /\n/g), '>', 3000, 'the catalogs say much of a new installation');
is(join("\n", differences(catalog('postgres'), $fresh)), '', 'the updated one is the same');
unlike($fresh, qr/does not know|and no member/, '... and nothing there is left unseen');

# What is forgotten is found: each statement of the script in turn.
$node->safe_psql('postgres', 'CREATE DATABASE mutants');
sql("CREATE EXTENSION mlint VERSION '0.9'", 'mutants');
my @statements = $upgrade =~ /((?:[^;\$']|'[^']*'|\$\$.*?\$\$)*;)/gs;
my @unseen;
my ($tried, $shown) = (0, 0);
for my $i (0 .. $#statements)
{
	my $statement = $statements[$i];
	next if $statement =~ /privileges_close\(\)/;
	my @rest = @statements;
	splice @rest, $i, 1;
	spill('mlint--0.9--m.sql', join("\n", @rest));
	my ($rc, $out, $err) = $node->psql('mutants', <<"EOQ", on_error_stop => 1);
BEGIN;
ALTER EXTENSION mlint UPDATE TO 'm';
\\i $catalog
ROLLBACK;
EOQ
	$tried++;
	next if $rc != 0 && $err =~ /ALTER EXTENSION|does not exist|already exists/;
	my @found = grep { !/extension \| version/ } differences($out, $fresh);
	push @unseen, $statement unless @found;
	$shown++;
}
cmp_ok($tried, '>', 20, "each of $tried statements is left out");
is(join("\n", @unseen), '', '... and test/catalog.sql shows it');
cmp_ok($shown, '>', 15, '... unless the update failed already');

$node->stop;
done_testing();
