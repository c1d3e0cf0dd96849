# Targets, watches and DNS providers when somebody is in the way: servers that
# never stop talking, targets that always fail, users who hold locks, roles that
# are dropped, imports of which nobody knows.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Cwd qw(realpath);
use DnsTest;
use IO::Socket::INET;
use MlintTest;
use POSIX ();
use SecretTest;
use TargetTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

authority();
my $top = realpath(PostgreSQL::Test::Utils::tempdir());
my $dir = "$top/certificates";
mkdir $dir, 0700 or die $!;
my $node = mlint_node('mended', conf => "mlint.certificate_directory = '$dir'\nlog_statement = none");
sub sql { return $node->safe_psql('postgres', $_[0]); }

my @children;
END { local $?; kill 'KILL', @children if @children; }

# A server that does this with each connection; returns its port.
sub server
{
	my ($talk) = @_;
	my $listener = IO::Socket::INET->new(Listen => 20, LocalAddr => '127.0.0.1') or die;
	my $pid = fork() // die;
	if ($pid == 0)
	{
		$SIG{PIPE} = 'IGNORE';
		while (my $c = $listener->accept) { $talk->($c); close $c; }
		POSIX::_exit(0);
	}
	push @children, $pid;
	return $listener->sockport;
}

my $last_run = "SELECT coalesce(max(r.id), 0) FROM mlint.job_run r JOIN mlint.job j ON j.id = r.job_id WHERE j.name";

# A job that is tried again each half second is not run all the time.
sub rests
{
	my ($job, $what) = @_;
	my $begun = time;
	my $before = sql("$last_run = '$job'");

	jobs_go_by($node, 20);
	my $runs = sql("SELECT count(*) FROM mlint.job_run r JOIN mlint.job j ON j.id = r.job_id WHERE j.name = '$job' AND r.id > $before");
	cmp_ok($runs, '<', 4 + 2 * (time - $begun), $what);
	return;
}

my ($id) = install($node, 'www');

# ---- a server that never stops greeting ----

# Each greeting is a record of its own, so that the client cannot keep up.
my $greeter = server(sub { my ($c) = @_; my $many = "\x16\x03\x03\0\4\0\0\0\0" x 200_000; 1 while syswrite $c, $many; });
my $begun = time;
sql("SELECT mlint.certificate_watch_create('$id', '127.0.0.1', $greeter)");
wait_for_sql($node, 'a server that never stops greeting',
	"SELECT checked_at IS NOT NULL FROM mlint.certificate_watches WHERE port = $greeter", 't');
cmp_ok(time - $begun, '<', 25, '... is left in bounded time');
like(sql("SELECT error FROM mlint.certificate_watches WHERE port = $greeter"), qr/took too long/, '... which is said');

# ---- intervals that are none ----

for my $every ('1 month -29 days', '12000 months -359999 days', '1 month')
{
	like(answer($node, "SELECT mlint.certificate_watch_create('$id', 'localhost', 1, every => '$every')"),
		qr/22023.*"every" must be/, "every $every: not a length");
}

# ---- whoever holds a lock ----

my $session = $node->background_psql('postgres');
sql("UPDATE mlint.certificate_watch SET next_at = now() + interval '2 seconds'");
$session->query_safe("BEGIN; SELECT mlint.certificate_watch_drop('$id', '127.0.0.1', $greeter)");
wait_for_sql($node, 'a watch that somebody drops is due', 'SELECT next_at < now() FROM mlint.certificate_watch', 't');
sql("SELECT mlint.job_run_now('certificate_watches')");
rests('certificate_watches', '... and the job is not run again and again');
$session->query_safe('COMMIT');

append_to_file("$dir/file", 'x');
target($node, $id, 'file', { path => 'file/www', retry_delay_ms => 500, retry_max_delay_ms => 500 });
wait_for_sql($node, 'a target that fails', 'SELECT attempts > 0 FROM mlint.certificate_targets', 't');
$session->query_safe("BEGIN; SELECT mlint.certificate_target_alter('$id', 'file', '{\"key_mode\": \"0640\"}')");
wait_for_sql($node, '... that somebody alters, is due', 'SELECT next_at < now() FROM mlint.certificate_targets', 't');
sql("SELECT mlint.job_run_now('certificate_targets')");
rests('certificate_targets', '... and the job is not run again and again');
$session->query_safe('ROLLBACK');
sql("SELECT mlint.certificate_target_drop('$id', 'file')");

# Somebody drops the certificate of a push, in the moment between two steps.
my ($other) = install($node, 'other', { names => ['other.example.com'] });
target($node, $other, 'file', { path => 'other' });
agrees($node, 'a target', "certificate = '$other'");
my ($doomed) = install($node, 'doomed', { names => ['doomed.example.com'] });
inject($node, 'certificate-push-claimed', 'wait');
target($node, $doomed, 'file', { path => 'doomed' });
wait_for_sql($node, 'a push is claimed', "SELECT pushing_id IS NOT NULL FROM mlint.certificate_push WHERE certificate_id = '$doomed'", 't');
$session->query_safe("BEGIN; SELECT mlint.certificate_drop('$doomed')");
resume($node, 'certificate-push-claimed');
my (undef, $second) = install($node, 'other', { names => ['other.example.com'] });
agrees($node, 'whoever drops a certificate holds up no other', "certificate = '$other' AND serves = '$second'");
$session->query_safe('ROLLBACK');
agrees($node, '... and when it was not dropped, it is pushed', "certificate = '$doomed'");
$session->quit;

# ---- targets that always fail hold up no others ----

sql("SELECT mlint.secret_put('azure', 'azure-client-secret')");
my $silent = IO::Socket::INET->new(Listen => 100, LocalAddr => '127.0.0.1') or die;
my $nowhere = 'http://127.0.0.1:' . $silent->sockport;
target($node, $id, 'azure', { vaults => [ map { "$nowhere/$_" } 1 .. 4 ], name => 'www', authority => $nowhere, tenant_id => 't', client_id => 'c',
		client_secret => { secret => 'azure' }, timeout_ms => 300, retry_delay_ms => 10, retry_max_delay_ms => 10 }, "strategy => 'sync'");
wait_for_sql($node, 'regions of which one is always due', "SELECT bool_and(attempts > 1) FROM mlint.certificate_targets WHERE kind = 'azure'", 't');
target($node, $other, 'file', { path => 'async' }, "name => 'async'");
agrees($node, '... holds up no other', "name = 'async'");
target($node, $other, 'file', { path => 'sync' }, "name => 'sync', strategy => 'sync'");
agrees($node, '... nor one that is waited for', "name = 'sync'");
my (undef, $serial) = install($node, 'other', { names => ['other.example.com'] });
wait_for_sql($node, '... and what all have is in use',
	"SELECT v.serial FROM mlint.certificate c JOIN mlint.certificate_version v ON v.id = c.version_id WHERE c.id = '$other'", $serial);
sql("SELECT mlint.certificate_target_drop('$id', 'azure')");

# ---- name servers whose names take long to resolve hold up nobody for long ----

my $fake = MlintTest::Receiver->start('fake_dns.py');
sql("CREATE FUNCTION dns(c jsonb) RETURNS void LANGUAGE sql AS ''");
sql("SELECT mlint.dns_provider_create('slow', 'function', '{\"function\": \"public.dns\", \"resolver\": \"127.0.0.1:" . $fake->port . "\", \"propagation_timeout_s\": 1}')");
$begun = time;
like(answer($node, "SELECT mlint.dns_provider_test('slow', 'slow-servers.test')"), qr/not seen in 1 s/, 'a zone of sixteen name servers without addresses');
cmp_ok(time - $begun, '<', 40, '... is not looked at for longer than a round may take');

# ---- what is no domain goes into no document ----

for my $domain ('x</Name><Type>A</Type>.test', 'a b.test', '', '.', 'a..test', "\x{c3}\x{a4}.test")
{
	like(answer($node, "SELECT mlint.dns_provider_test('slow', " . literal($domain) . ')'), qr/ML007.*not the name of a domain/, "\"$domain\" is no domain");
}

# ---- what was given up is gone about again ----

# A record that could not be removed, of a certificate that is no more.
my ($given_up, $order) = challenge($node, 'dns-01', 'left.test', 'later', 'x' x 43);
sql("UPDATE mlint.acme_challenge SET presence = 'removing', next_at = 'infinity', solver = 'later', owner = 10::oid, made = '{\"record\": \"r.left.test\", \"zone\": \"left.test\"}' WHERE id = $given_up");
sql("DELETE FROM mlint.acme_order WHERE id = $order; DELETE FROM mlint.certificate WHERE solver = 'later'");
sql(q(SELECT mlint.dns_provider_create('later', 'function', '{"function": "public.dns"}')));
wait_for_sql($node, 'a provider of the name that was dropped: what was given up is removed', 'SELECT count(*) FROM mlint.certificate_challenges', '0');
($given_up) = challenge($node, 'dns-01', 'left.test', 'later', 'x' x 43);
sql("UPDATE mlint.acme_challenge SET presence = 'removing', next_at = 'infinity', solver = 'later', owner = 10::oid, made = '{\"record\": \"r.left.test\", \"zone\": \"left.test\"}' WHERE id = $given_up");
sql("UPDATE mlint.job SET every = '1 day', next_run_at = now() + interval '1 day' WHERE name = 'certificate_challenges'");
sql("SELECT mlint.dns_provider_alter('later', '{}')");
wait_for_sql($node, 'a provider is altered: it is, at once', 'SELECT count(*) FROM mlint.certificate_challenges', '0');

# ---- a DNS provider whose creator was dropped ----

sql(<<'EOQ');
CREATE ROLE gone IN ROLE mlint_admin;
CREATE ROLE heir IN ROLE mlint_admin;
SELECT mlint.secret_grant('azure', 'gone', 'read'), mlint.secret_grant('azure', 'heir', 'read');
SET ROLE gone;
SELECT mlint.dns_provider_create('orphan', 'function', '{"function": "public.dns"}');
SELECT mlint.dns_provider_create('azure', 'azure', '{"subscription_id": "a", "resource_group": "r", "tenant_id": "t", "client_id": "c", "client_secret": {"secret": "azure"}}');
RESET ROLE;
DROP OWNED BY gone;
DROP ROLE gone;
EOQ
for my $provider ('orphan', 'azure')
{
	is(answer($node, "SET ROLE heir; SELECT mlint.dns_provider_alter('$provider', '{\"ttl\": 30}')"), '', "$provider: who alters it");
	is(sql("SELECT pg_get_userbyid(created_by) FROM mlint.dns_provider WHERE name = '$provider'"), 'heir', '... is the one that it belongs to');
}

$node->stop;
done_testing();
