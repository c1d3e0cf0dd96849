# The gateway under load: hundreds that hold connections open for nothing,
# more than it has room for, and a hundred thousand requests, after which it is
# as it was.
use strict;
use warnings;

use FindBin;
use IO::Select;
use IO::Socket::INET;
use IPC::Run ();
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $top = "$FindBin::RealBin/../..";
my $dir = PostgreSQL::Test::Utils::tempdir;
my $probe = "$dir/challenge_probe.so";
chomp(my $include = `pg_config --includedir-server`);
system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-O', "-I$top/src",
	"-I$include", '-o', $probe, "$FindBin::RealBin/challenge_probe.c");

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $node = mlint_node('load', conf => "mlint.gateway_listen = '$port'\n");
my $token = 'evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA';
my $value = "$token.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI";
$node->safe_psql('postgres', <<"EOQ");
CREATE FUNCTION challenge_show(text, text, timestamptz) RETURNS void
	LANGUAGE c AS '$probe';
SELECT challenge_show('$token', '$value', now() + '1 day');
EOQ
my $pid = wait_for_worker($node, 'mlint gateway');

sub stat_gateway
{
	return $node->safe_psql('postgres',
		"SELECT $_[0] FROM mlint.stat_workers WHERE kind = 'gateway'");
}

sub dial { return IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port); }

# One request on a connection of its own; true when the value comes, and how
# long that took.
sub get
{
	my $begun = time;
	my $socket = dial() or return (0, time - $begun);
	my $got = '';

	local $SIG{PIPE} = 'IGNORE';
	print $socket "GET /.well-known/acme-challenge/$token HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
	$socket->flush;
	my $select = IO::Select->new($socket);
	while ($select->can_read(5))
	{
		last unless sysread $socket, $got, 4096, length $got;
	}
	return ($got =~ /\Q$value\E\z/ ? 1 : 0, time - $begun);
}

# Ask so often; how many were answered, and the longest time.
sub ask
{
	my ($n) = @_;
	my ($answered, $longest) = (0, 0);

	for (1 .. $n)
	{
		my ($ok, $seconds) = get();
		$answered += $ok;
		$longest = $seconds if $seconds > $longest;
	}
	return ($answered, $longest);
}

# slowloris.py, until it is told to end; then what it has to say.
sub slowloris
{
	my ($n, @options) = @_;
	my %self = (in => '', out => '');

	$self{run} = IPC::Run::start(
		[ 'python3', "$MlintTest::peers/slowloris.py", $port, $n, @options ],
		'<', \$self{in}, '>', \$self{out}, IPC::Run::timeout(120));
	$self{run}->pump until $self{out} =~ /ready/;
	return \%self;
}

sub finish
{
	my ($self) = @_;
	$self->{run}->finish;
	return JSON::PP::decode_json((split /\n/, $self->{out})[1]);
}

# What the process holds: bytes, descriptors.
sub holds
{
	my ($rss) = slurp_file("/proc/$pid/status") =~ /^VmRSS:\s+(\d+) kB/m;
	opendir my $fds, "/proc/$pid/fd" or die "fd: $!";
	return ($rss * 1024, scalar grep { !/^\./ } readdir $fds);
}

wait_for('it answers', sub { (get())[0] });

#
# A hundred thousand requests: a hundred a write on one connection after the
# other, and thousands of connections with one each. Once beforehand, so that
# what is allocated for good is.
#
sub many_requests
{
	my ($connections) = @_;
	my $request = "GET /.well-known/acme-challenge/$token HTTP/1.1\r\nHost: x\r\n\r\n";
	my $answers = 0;

	for (1 .. $connections)
	{
		my $socket = dial() or next;
		for (1 .. 10)
		{
			my ($got, $seen) = ('', 0);
			print $socket $request x 100;
			$socket->flush;
			my $select = IO::Select->new($socket);
			while ($seen < 100 && $select->can_read(10))
			{
				last unless sysread $socket, $got, 65536, length $got;
				$seen = () = $got =~ /\Q$value\E/g;
			}
			$answers += $seen;
		}
	}
	return $answers;
}

sub all_gone
{
	wait_for_sql($node, $_[0] // 'all connections are gone',
		"SELECT in_flight = 0 FROM mlint.stat_workers WHERE kind = 'gateway'");
	return;
}

is(many_requests(10), 10_000, 'ten thousand requests are answered');
finish(slowloris(1000, '--every', 0));
all_gone();
my ($memory, $descriptors) = holds();
my $events = stat_gateway('events');
is(many_requests(100), 100_000, 'a hundred thousand requests are answered');
is((ask(2000))[0], 2000, 'so are two thousand on connections of their own');
all_gone();
my ($memory_now, $descriptors_now) = holds();
SKIP:
{
	skip 'freed memory is kept', 1 if memory_is_watched();
	cmp_ok($memory_now - $memory, '<', 512 << 10,
		"... after which the process has not grown (from $memory bytes to $memory_now)");
}
# A table that it looks into again may be one more open file.
cmp_ok($descriptors_now, '<', $descriptors + 16, '... nor does it hold more descriptors');
cmp_ok(stat_gateway('events') - $events, '>=', 102_000, 'mlint.stat_workers counts them');

#
# Five hundred that never come to the end of their header.
#
my $slow = slowloris(500);
my $begun = time;
wait_for_sql($node, '500 hold a connection each', "SELECT in_flight FROM mlint.stat_workers WHERE kind = 'gateway'", 500);
my ($answered, $longest) = ask(1000);
is($answered, 1000, 'all others are answered');
cmp_ok($longest, '<', 8, '... at once');
wait_for('the 500 are closed', sub { (ask(1))[0] && stat_gateway('in_flight = 0') eq 't' });
cmp_ok(time - $begun, '<', 25, '... ten seconds after they came');
my $report = finish($slow);
is($report->{closed}, 500, 'they say so themselves');
cmp_ok($report->{first}, '>', 9, '... none earlier');
cmp_ok($report->{last}, '<', 25, '... none later');

#
# More than there is room for: who has waited longest goes.
#
my $crowd = slowloris(1500, '--reopen', '--every', 5);
wait_for('the table is as full as it gets',
	sub { slurp_file($node->logfile) =~ /LOG:  mlint gateway: more than 875 connections/ }, 60);
($answered, $longest) = ask(500);
is($answered, 500, 'with a full table others are answered');
cmp_ok($longest, '<', 10, '... soon');
cmp_ok(stat_gateway('in_flight'), '<=', 1000, 'it never has more than a thousand');
cmp_ok((holds())[1], '<', 1100, '... nor descriptors for more');
$report = finish($crowd);
cmp_ok($report->{closed}, '>', 500, 'those that wait were closed');
my $log = slurp_file($node->logfile);
cmp_ok(scalar(() = $log =~ /mlint gateway: more/g), '<=', 4, '... which the log says a few times');
all_gone();
cmp_ok((holds())[1], '<', $descriptors + 16, 'its descriptors are as many as before');

# Out of descriptors before the table is full: it goes on with fewer.
$node->stop;
{
	my $small = IPC::Run::run(
		[ 'sh', '-c', "ulimit -n 400 && pg_ctl -D '" . $node->data_dir . "' -l '"
			  . $node->logfile . "' -w start" ], '>', \my $out);
	ok($small, 'the server starts with 400 descriptors');
}
$node->_update_pid(1);
$pid = wait_for_worker($node, 'mlint gateway');
$node->safe_psql('postgres', "SELECT challenge_show('$token', '$value', now() + '1 day')");
wait_for('the gateway answers there too', sub { (get())[0] });
$crowd = slowloris(300, '--reopen', '--every', 5);
is((ask(100))[0], 100, 'with descriptors for few, others are answered');
cmp_ok(stat_gateway('in_flight'), '<=', 144, '... and no more let in than it has room for');
finish($crowd);
is((worker_pids($node, 'mlint gateway'))[0], $pid, 'in the same process');
$node->stop;
done_testing();
