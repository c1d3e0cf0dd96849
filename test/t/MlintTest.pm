# What the TAP tests have in common: a node with mlint, a real receiver that
# records what arrives, and waiting for a condition with a deadline.
#
#	use MlintTest;
#	my $node = mlint_node('main');
#	my $receiver = MlintTest::Receiver->start;
#	... url => $receiver->url('/ok') ...
#	wait_for('the event arrives', sub { $receiver->count('/ok') == 1 });
package MlintTest;

use strict;
use warnings;

use Exporter 'import';
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use JSON::PP ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(mlint_node mlint_configure wait_for wait_for_sql
  jobs_go_by job_rests freeze inject struck resume
  worker_pids wait_for_worker wait_for_delivery literal create_destination
  publish deliver delivery_is memory_is_watched);

our $peers = abs_path(dirname(__FILE__) . '/../peers');

# How long anything may take before a test gives up on it, in seconds.
our $deadline = $PostgreSQL::Test::Utils::timeout_default // 60;

# A test that has had its time leaves no servers behind.
my $main = $$;
$SIG{TERM} = sub { $$ == $main ? die "the time is up\n" : POSIX::_exit(143) };

# What a node's end is: immediate, which is fast but leaves no time to write the
# counters of --coverage.
if ($ENV{MLINT_COVERAGE})
{
	no warnings 'redefine';
	*PostgreSQL::Test::Cluster::teardown_node = sub {
		$_[0]->stop('fast', fail_ok => 1) || $_[0]->stop('immediate', fail_ok => 1);
	};
}

# How much longer everything takes under a watch (check.sh --sanitize and its
# kind); what a test says of time is multiplied by it.
our $slower = { assert => 3, sanitize => 5, valgrind => 50 }->{ $ENV{MLINT_WATCHED} // '' } // 1;

# A running node with mlint in database postgres. %options: conf, more lines of
# postgresql.conf; create => 0 leaves the extension out; the rest goes to
# init(), such as allows_streaming => 1.
sub mlint_node
{
	my ($name, %options) = @_;
	my $conf = delete $options{conf} // '';
	my $create = delete $options{create} // 1;

	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init(%options);
	mlint_configure($node, $conf);
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION mlint') if $create;
	return $node;
}

# What every node of ours has in its postgresql.conf.
sub mlint_configure
{
	my ($node, $conf) = @_;

	$node->append_conf('postgresql.conf', <<"EOC");
shared_preload_libraries = 'mlint'
max_worker_processes = 24
max_prepared_transactions = 10
$conf
EOC
	return;
}

# Wait until a condition is true; a test that passes when it became so before
# the deadline, and fails when not.
sub wait_for
{
	my ($what, $condition, $seconds) = @_;
	my $end = time + ($seconds // $deadline);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	while (1)
	{
		return pass($what) if $condition->();
		last if time >= $end;
		usleep(20_000);
	}
	return fail("$what (in time)");
}

# The same for a query that must come to return 't' (or what is given). A
# server that is just down counts as not yet.
sub wait_for_sql
{
	my ($node, $what, $query, $expected, $db) = @_;
	my $last = '';

	$expected //= 't';
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $ok = wait_for(
		$what,
		sub {
			# A psql that cannot connect may be gone before it is asked.
			my ($rc, $out, $err) =
			  eval { $node->psql($db // 'postgres', $query) };
			$last = $@ || ($rc == 0 ? $out : $err);
			return !$@ && $rc == 0 && $out eq $expected;
		});
	diag("the query's last answer: $last") unless $ok;
	return $ok;
}

# Let the scheduler run a job that has nothing to do, one run after the other:
# the time in which whatever runs again and again would show.
sub jobs_go_by
{
	my ($node, $times) = @_;
	my $runs = "SELECT max(r.id) FROM mlint.job_run r JOIN mlint.job j ON j.id = r.job_id WHERE j.name = 'event_retention'";

	for (1 .. $times)
	{
		my $last = $node->safe_psql('postgres', $runs) || 0;
		$node->safe_psql('postgres', "SELECT mlint.job_run_now('event_retention')");
		$node->poll_query_until('postgres', "SELECT ($runs) > $last")
		  or die 'a job that was asked for did not run';
	}
	return;
}

# No run of this job is under way, begins, or is asked for.
sub job_rests
{
	my ($node, $job) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_sql($node, "the job $job rests", <<"EOQ");
SELECT NOT j.running AND i.started_at IS NOT DISTINCT FROM j.last_started_at
	AND NOT EXISTS (SELECT FROM mlint.job_request r WHERE r.job_id = i.id AND r.at <= now())
FROM mlint.jobs j JOIN mlint.job i ON i.name = j.name WHERE j.name = '$job'
EOQ
}

# Stop processes of the server where they hold nothing: one that has a lock of
# PostgreSQL's own would stop everybody. kill 'CONT' has them go on.
sub freeze
{
	my ($node, @pids) = @_;
	my $rest = 'SELECT count(*) = ' . @pids . ' FROM pg_stat_activity WHERE pid IN (' . join(', ', @pids)
	  . q{) AND xact_start IS NULL AND wait_event_type IN ('Activity', 'Extension')};

	for (1 .. 100)
	{
		$node->poll_query_until('postgres', $rest) or last;
		kill 'STOP', @pids;
		return if $node->safe_psql('postgres', $rest) eq 't';
		kill 'CONT', @pids;
	}
	die "processes @pids do not rest";
}

# Have the next process that comes by a place die there, fail or stop ("kill",
# "error", "wait"; see src/common/injection.h). Whole at once: it takes what it
# finds.
my %crashing;
my $server_began = "SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
sub inject
{
	my ($node, $place, $what) = @_;
	my $file = injection_file($node, $place);

	$crashing{$file} = $what eq 'kill' ? eval { $node->safe_psql('postgres', $server_began) } // '' : '';
	append_to_file("$file.new", "$what\n");
	rename "$file.new", $file or die "$file: $!";
	return;
}

# Has one come by, to its end? And is the server back, when that was a crash.
sub struck
{
	my ($node, $place) = @_;
	my $file = injection_file($node, $place);

	return 0 if -e $file;
	return 1 unless $crashing{$file};
	my ($rc, $began) = eval { $node->psql('postgres', $server_began) };
	return !$@ && $rc == 0 && $began ne '' && $began ne $crashing{$file};
}

# Let go of those that wait there.
sub resume { unlink injection_file(@_); return; }

sub injection_file { my ($node, $place) = @_; return $node->data_dir . "/mlint_injection.$place"; }

# Pids of our workers whose backend_type is like this ("mlint dispatcher"); of
# one database, when it is given.
sub worker_pids
{
	my ($node, $type, $db) = @_;
	my $of = defined $db ? "AND datname = '$db'" : '';

	return split /\n/,
	  $node->safe_psql('postgres', <<"EOQ");
SELECT pid FROM pg_stat_activity
WHERE backend_type LIKE '$type%' $of ORDER BY pid
EOQ
}

# Wait for a worker of that type and return its pid. $except, when given, is
# the pid of one that is to be replaced.
sub wait_for_worker
{
	my ($node, $type, $db, $except) = @_;
	my ($pid, $end) = (undef, time + $deadline);

	while (time < $end)
	{
		($pid) = grep { !defined $except || $_ != $except }
		  worker_pids($node, $type, $db);
		return $pid if defined $pid;
		usleep(20_000);
	}
	die "no worker like \"$type\" came up";
}

# Wait until every delivery of an event has ended; true when it did.
sub wait_for_delivery
{
	my ($node, $event, $db) = @_;

	return $node->safe_psql($db // 'postgres',
		"SELECT mlint.event_wait($event, '$deadline s')") eq 't';
}

# Does something watch the server that takes memory itself, and keeps what is
# freed (check.sh --sanitize, --valgrind)? Then it can't be measured or read.
sub memory_is_watched
{
	return ($ENV{MLINT_WATCHED} // '') =~ /sanitize|valgrind/;
}

# A string as an SQL literal.
sub literal
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	$text =~ s/\\/\\\\/g;
	return "E'$text'";
}

# Create a destination: its options as a hash, its patterns (by default the
# event type of its own name).
sub create_destination
{
	my ($node, $name, $driver, $options, @patterns) = @_;
	my $json = JSON::PP->new->utf8->canonical->encode($options // {});
	my $events = join ', ', map { literal($_) } @patterns ? @patterns : $name;

	$node->safe_psql('postgres',
			"SET client_min_messages = error; SELECT mlint.destination_create("
		  . join(', ', literal($name), literal($driver), literal($json))
		  . ", ARRAY[$events])");
	return;
}

# Publish an event with this data, a Perl value; more arguments of publish()
# as SQL may follow. Returns the event's id.
sub publish
{
	my ($node, $type, $data, $more) = @_;
	my $json =
	  literal(JSON::PP->new->utf8->canonical->allow_nonref->encode($data // {}));

	return $node->safe_psql('postgres',
		    "SELECT mlint.publish("
		  . literal($type)
		  . ", $json"
		  . (defined $more ? ", $more" : '')
		  . ")");
}

# Publish, and wait until every delivery has ended.
sub deliver
{
	my ($node, @event) = @_;
	my $id = publish($node, @event);

	wait_for_delivery($node, $id) or die "event $id was not delivered";
	return $id;
}

# What mlint.deliveries says of an event: "state|attempts|status_code|error".
sub delivery_is
{
	my ($node, $event, $expected, $what) = @_;
	my $got = $node->safe_psql('postgres',
		"SELECT state, attempts, status_code, error FROM mlint.deliveries WHERE event_id = $event"
	);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ref $expected ? like($got, $expected, $what) : is($got, $expected, $what);
}

#
# receiver.py, as an object.
#
package MlintTest::Receiver;

use strict;
use warnings;

use Encode ();
use IO::Select;
use IO::Socket::INET;
use JSON::PP ();
use POSIX ();
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(time usleep);

my @running;

# Start one; it records to a file of its own until the test ends. Another
# script of test/peers may be named that takes the same options.
sub start
{
	my ($class, $script) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $self = bless {
		dir => $dir,
		script => $script // 'receiver.py',
		record => "$dir/record",
		port => 0,
		read_to => 0,
		requests => []
	}, $class;

	$self->resume;
	push @running, $self;
	return $self;
}

# Start it again after stop(), on the same port and the same record.
sub resume
{
	my ($self) = @_;
	my $port_file = "$self->{dir}/port";

	unlink $port_file;
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		exec 'python3', "$MlintTest::peers/$self->{script}",
		  '--record', $self->{record}, '--port', $self->{port},
		  '--port-file', $port_file
		  or POSIX::_exit(127);
	}
	$self->{pid} = $pid;

	my $end = time + $MlintTest::deadline;
	until (-s $port_file)
	{
		die "$self->{script} did not start"
		  if time > $end || waitpid($pid, POSIX::WNOHANG()) == $pid;
		usleep(10_000);
	}
	$self->{port} = 0 + PostgreSQL::Test::Utils::slurp_file($port_file);
	return;
}

# Stop it: connections are refused from here on. A signal other than TERM may
# be given: KILL, or STOP to freeze it, which CONT undoes.
sub stop
{
	my ($self, $signal) = @_;

	return unless $self->{pid};
	kill $signal // 'TERM', $self->{pid};
	my $end = time + 30;
	until (waitpid($self->{pid}, POSIX::WNOHANG()) == $self->{pid})
	{
		kill 'KILL', $self->{pid} if time > $end;
		usleep(10_000);
	}
	$self->{pid} = 0;
	return;
}

sub freeze { my ($self) = @_; kill 'STOP', $self->{pid}; return; }
sub thaw { my ($self) = @_; kill 'CONT', $self->{pid}; return; }

sub port { my ($self) = @_; return $self->{port}; }

sub url
{
	my ($self, $path) = @_;
	return "http://127.0.0.1:$self->{port}" . ($path // '/ok');
}

# Turn /switch: control('up'), control('down').
sub control
{
	my ($self, $what) = @_;
	my $socket = IO::Socket::INET->new(
		PeerAddr => '127.0.0.1',
		PeerPort => $self->{port}) or die "$self->{script}: $!";

	print $socket "GET /control/$what HTTP/1.1\r\nHost: localhost\r\n\r\n";
	IO::Select->new($socket)->can_read($MlintTest::deadline)
	  or die "$self->{script} does not answer";
	my $status = <$socket> // '';
	close $socket;
	die "$self->{script}: $status" unless $status =~ /^HTTP\S+ 200/;
	return;
}

# All requests recorded so far, in the order of arrival: {method, path,
# headers, body, time}; those of one path, when it is given. Only what is new
# in the file is read.
sub requests
{
	my ($self, $path) = @_;

	if (open my $f, '<', $self->{record})
	{
		seek $f, $self->{read_to}, 0;
		while (my $line = <$f>)
		{
			last unless $line =~ /\n\z/;
			$self->{read_to} += length $line;
			push @{ $self->{requests} }, JSON::PP::decode_json($line);
		}
		close $f;
	}
	return grep { !defined $path || $_->{path} eq $path }
	  @{ $self->{requests} };
}

sub count
{
	my ($self, $path) = @_;
	return scalar(my @all = $self->requests($path));
}

# The events that arrived: webhook-id => [bodies, decoded].
sub events
{
	my ($self, $path) = @_;
	my %events;

	for my $request ($self->requests($path))
	{
		push @{ $events{ $request->{headers}{'webhook-id'} } },
		  JSON::PP::decode_json(Encode::encode('UTF-8', $request->{body}));
	}
	return \%events;
}

# How often each webhook-id arrived: id => times; at one path, and only in
# requests that match, if given. Much faster than requests(), which decodes.
sub arrivals
{
	my ($self, $path, $like) = @_;
	my %times;

	open my $f, '<', $self->{record} or return \%times;
	while (my $line = <$f>)
	{
		next if defined $path && index($line, qq("path": "$path")) < 0;
		next if defined $like && $line !~ $like;
		$times{$1}++ if $line =~ /"webhook-id": "([^"]+)"/;
	}
	close $f;
	return \%times;
}

# Forget what was recorded.
sub forget
{
	my ($self) = @_;
	$self->requests;
	$self->{requests} = [];
	return;
}

# Leave none behind, also when the test dies.
END
{
	my $status = $?;
	for my $receiver (@running)
	{
		next unless $receiver->{pid};
		kill 'CONT', $receiver->{pid};
		$receiver->stop('KILL');
	}
	$? = $status;
}

1;
