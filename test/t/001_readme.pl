# What the documentation shows is true: its SQL runs, in the order in which it
# stands, shows what it is said to show, and what it publishes arrives.
#
# In README.md and docs/*.md a fenced block "sql" (README.md) or "sql run"
# (docs) is run by psql; one that is "sql fails" must fail. A block "text"
# right after it is what it prints. Each file has a database of its own;
# requests to example.com, or to port 8080 of this machine, reach a receiver, and
# Let's Encrypt's part is played by Pebble.
use strict;
use warnings;

use File::Basename qw(dirname);
use FindBin;
use lib $FindBin::RealBin;
use AcmeTest;
use MlintTest;
use IPC::Run ();
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

my $tree = "$FindBin::RealBin/../..";
my $receiver = MlintTest::Receiver->start;
my $pebble = AcmeTest->start;
my $certificates = PostgreSQL::Test::Utils::tempdir('certificates');
my $gateway = $pebble->http_port;
# Each page has a database, and each database its workers.
my $node = mlint_node('readme', create => 0, conf => <<"EOC");
max_worker_processes = 80
mlint.gateway_listen = '$gateway'
mlint.certificate_directory = '$certificates'
EOC
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

# The fenced blocks of a file: {kind, text, line, shown}.
sub blocks
{
	my ($file) = @_;
	my ($block, @blocks);
	my $number = 0;
	my $adjacent = 0;

	for my $line (split /\n/, slurp_file($file))
	{
		$number++;
		if ($block && $line eq '```')
		{
			if ($block->{kind} eq 'text' && $adjacent)
			{
				$blocks[-1]{shown} = $block->{text};
			}
			elsif ($block->{kind} ne 'text')
			{
				push @blocks, $block;
			}
			$adjacent = $block->{kind} ne 'text';
			$block = undef;
		}
		elsif ($block)
		{
			$block->{text} .= "$line\n";
		}
		elsif ($line =~ /^```(.*)/)
		{
			$block = { kind => $1, text => '', line => $number };
		}
		elsif ($line ne '')
		{
			$adjacent = 0;
		}
	}
	die "$file: a block has no end" if $block;
	return @blocks;
}

# As it is compared: without what editors strip, and empty lines.
sub plain
{
	my ($text) = @_;
	return join "\n", grep { $_ ne '' } map { s/\s+$//r } split /\n/, $text;
}

# Let psql run a text; its status, output and errors.
sub run_sql
{
	my ($database, $sql) = @_;
	my ($out, $err) = ('', '');
	my $url = $receiver->url('');
	my ($directory, $ca) = ($pebble->directory, $pebble->ca);

	$sql =~ s{https?://[a-z.-]*example\.com[^'"]*}{$url/ok}g;
	$sql =~ s{http://127\.0\.0\.1:8080}{$url}g;
	$sql =~ s{'letsencrypt-staging', ('[^']+')}{'$directory', $1, ca => '{"file": "$ca"}'}g;
	IPC::Run::run(
		[
			'psql', '-X', '-q', '-d', $node->connstr($database),
			'-P', 'pager=off', '-P', 'footer=off', '-v', 'ON_ERROR_STOP=1',
			'-f', '-'
		],
		'<', \$sql, '>', \$out, '2>', \$err,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	# Here the superuser may have another name.
	$err =~ s/^psql:<stdin>:\d+: //mg;
	$err =~ s/"\Q$superuser\E"/"postgres"/g;
	return ($? >> 8, $out, $err);
}

# Run a file's blocks, each sort of them together, in order.
sub run_file
{
	my ($file, $kind) = @_;
	my ($name) = $file =~ m{([a-z_]+)\.md$}i;
	my $database = lc "docs_$name";
	my @blocks = blocks($file);
	my @run = grep { $_->{kind} eq $kind || $_->{kind} eq 'sql run' } @blocks;
	my $mark = 'block that ends here';

	return unless @run;
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION mlint')
	  unless $kind eq 'sql';

	wait_for_worker($node, $_, $database) for $kind eq 'sql' ? () : ('mlint scheduler', 'mlint dispatcher');

	# In one session, as a reader would.
	my ($status, $out, $err) = run_sql($database,
		join '', map { "$_->{text}\\echo $mark\n" } @run);
	is($status, 0, "$name: its SQL runs") or diag $err;
	my @out = split /^\Q$mark\E\n/m, $out, -1;
	for my $i (0 .. $#run)
	{
		next unless defined $run[$i]{shown};
		is( plain($out[$i] // ''), plain($run[$i]{shown}),
			"$name: what line $run[$i]{line} prints");
	}

	for my $block (grep { $_->{kind} eq 'sql fails' } @blocks)
	{
		my ($failed, undef, $error) = run_sql($database, $block->{text});

		isnt($failed, 0, "$name: line $block->{line} fails");
		is(plain($error), plain($block->{shown}), "$name: and says why")
		  if defined $block->{shown};
	}

	# What was published and is not for later has arrived.
	wait_for_sql($node, "$name: all is delivered", <<'EOQ', 't', $database);
SELECT count(*) = 0 FROM mlint.deliveries d
JOIN mlint.events e ON e.id = d.event_id
JOIN mlint.destinations t ON t.name = d.destination AND t.enabled
WHERE d.state <> 'delivered' AND coalesce(e.deliver_at <= now(), true)
EOQ
	my $token = $node->safe_psql($database,
		'SELECT token FROM mlint.segment');
	my $sent = $node->safe_psql($database, <<'EOQ');
SELECT coalesce(string_agg(event_id::text, ' ' ORDER BY event_id), '') FROM (
	SELECT DISTINCT event_id FROM mlint.deliveries d
	JOIN mlint.destinations t ON t.name = d.destination
	WHERE t.driver = 'http' AND d.state = 'delivered') e
EOQ
	my %arrived = map { $_ => 1 } grep { defined }
	  map { ($_->{headers}{'webhook-id'} // '') =~ /^evt_${token}[0-9a-f]*_(\d+)$/ }
	  $receiver->requests;
	is( join(' ', sort { $a <=> $b } keys %arrived),
		$sent, "$name: the receiver has what the views say it has");
	return;
}

run_file("$tree/README.md", 'sql');
run_file($_, 'sql run') for sort glob "$tree/docs/*.md";

# The tables of options are what the drivers say now.
my ($status, $tables, $err) = run_sql('docs_readme',
	slurp_file("$tree/docs/drivers.sql"));
is($status, 0, 'docs/drivers.sql runs') or diag $err;
my ($committed) = slurp_file("$tree/docs/delivery.md") =~
  /^<!-- drivers\.sql -->\n(.*)^<!-- end -->$/ms;
is($committed, $tables,
	'the options in docs/delivery.md are those of mlint.drivers (else run docs/drivers.sh)');

# The list of tests is what they say of themselves.
my $docs_copy = PostgreSQL::Test::Utils::tempdir() . '/docs';
system('cp', '-r', "$tree/docs", $docs_copy) == 0 or die 'cp';
symlink "$tree/$_", dirname($docs_copy) . "/$_" for qw(sql test);
is(system('sh', "$docs_copy/tests.sh"), 0, 'docs/tests.sh runs');
is( slurp_file("$docs_copy/testing.md"),
	slurp_file("$tree/docs/testing.md"),
	'the list of tests in docs/testing.md is whole (else run docs/tests.sh)');

# Each SQLSTATE and setting has its line.
my $operations = slurp_file("$tree/docs/operations.md");
my @codes = slurp_file("$tree/src/common/errors.h") =~
  /MAKE_SQLSTATE\('M','L','(\d)','(\d)','(\d)'\)/g;
while (my ($a, $b, $c) = splice @codes, 0, 3)
{
	like($operations, qr/`ML$a$b$c`/, "ML$a$b$c is explained");
}
like($operations, qr/`\Q$_\E`/, "$_ is explained")
  for split /\n/, $node->safe_psql('postgres',
	"SELECT name FROM pg_settings WHERE name LIKE 'mlint.%' ORDER BY 1");

# Each function that someone may call, and each view, is in the docs.
my $docs = join '', map { slurp_file($_) } glob "$tree/docs/*.md";
my @missing = grep { $docs !~ /\b\Q$_\E\b/ } split /\n/,
  $node->safe_psql('docs_readme', <<'EOQ');
SELECT DISTINCT p.proname FROM pg_proc p
WHERE p.pronamespace = 'mlint'::regnamespace
	AND (has_function_privilege('mlint_admin', p.oid, 'EXECUTE')
		OR has_function_privilege('mlint_reader', p.oid, 'EXECUTE'))
UNION
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind = 'v'
ORDER BY 1
EOQ
is("@missing", '', 'every function and view that has users is in the docs');

# A receiver in Python can verify what it gets, with the code that is shown.
my ($python) = grep { $_->{kind} eq 'python' }
  blocks("$tree/docs/delivery.md");
my ($request) = grep { exists $_->{headers}{'webhook-signature'} }
  $receiver->requests;
my $program = $python->{text} . <<'EOP';
import json, sys
request = json.loads(sys.stdin.buffer.read())
body, headers = request["body"].encode(), request["headers"]
print(verify(body, headers, request["secret"]),
      verify(body + b" ", headers, request["secret"]),
      verify(body, headers, "whsec_b3RoZXI="),
      verify(body, headers | {"webhook-timestamp": "1700000000"}, request["secret"]))
EOP
my $input = JSON::PP->new->utf8->encode(
	{ %$request, secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw' });
my ($verdict, $complaint) = ('', '');
IPC::Run::run([ 'python3', '-c', $program ],
	'<', \$input, '>', \$verdict, '2>', \$complaint);
is($verdict, "True False False False\n", 'the verification in Python verifies')
  or diag $complaint;

# And links lead somewhere.
for my $file ("$tree/README.md", glob "$tree/docs/*.md")
{
	my ($folder, $name) = $file =~ m{(.*)/(.*)};
	my @broken = grep { !-e "$folder/$_" }
	  grep { !/^https?:/ } slurp_file($file) =~ /\]\(([^)#]+)/g;

	is("@broken", '', "$name: its links lead to files");
}

$node->stop;
done_testing();
