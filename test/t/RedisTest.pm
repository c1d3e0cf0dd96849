# Real Redis servers for the TAP tests; test/peers/redis.sh starts them.
#
#	use RedisTest;
#	my $redis = RedisTest->start;              # or ->tls, ->sentinel, ->cluster
#	$redis->cli('info', 'commandstats');
#	$redis->signal('STOP');
package RedisTest;

use strict;
use warnings;

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

my $script = $MlintTest::peers . '/redis.sh';
my @started;
my $port = 0;

# Ports in a row, none of which anybody has.
sub ports
{
	my ($n) = @_;

	TRY: while (1)
	{
		my $first = PostgreSQL::Test::Cluster::get_free_port();

		next if $first + $n > 65535;
		for my $p ($first .. $first + $n - 1)
		{
			my $socket = IO::Socket::INET->new(
				LocalAddr => '127.0.0.1',
				LocalPort => $p,
				Listen => 1) or next TRY;
		}
		return $first;
	}
}

sub make
{
	my ($class, $kind, @arguments) = @_;
	my $self = bless {
		dir => PostgreSQL::Test::Utils::tempdir('redis'),
		port => ports(6),
		kind => $kind,
		arguments => \@arguments
	}, $class;

	$self->up;
	push @started, $self;
	return $self;
}

sub start { my ($class, @lines) = @_; return $class->make('start', @lines); }
sub tls { return $_[0]->make('tls'); }
sub sentinel { return $_[0]->make('sentinel'); }
sub cluster { return $_[0]->make('cluster'); }

# Start it, for the first time or after down().
sub up
{
	my ($self) = @_;

	system('sh', $script, $self->{kind}, $self->{dir}, $self->{port},
		@{ $self->{arguments} }) == 0
	  or die "could not start Redis";
	return;
}

sub down { system('sh', $script, 'stop', $_[0]->{dir}); return; }
sub port { return $_[0]->{port} + ($_[1] // 0); }
sub dir { return $_[0]->{dir}; }
sub hosts { return '127.0.0.1:' . $_[0]->port($_[1]); }

sub pid
{
	my ($self, $name) = @_;
	my $pid = slurp_file("$self->{dir}/" . ($name // 'server') . '.pid');

	chomp $pid;
	return $pid;
}

sub signal
{
	my ($self, $signal, $name) = @_;

	kill $signal, $self->pid($name);
	return;
}

# What redis-cli prints; of the server on the n-th port: cli_at(n, ...).
sub cli { my $self = shift; return $self->cli_at(0, @_); }

sub cli_at
{
	my ($self, $n, @words) = @_;
	my ($out, $err) = ('', '');
	my $redis = $ENV{REDIS_CLI} // 'redis-cli';

	IPC::Run::run([ $redis, '-p', $self->port($n), @words ],
		'<', \undef, '>', \$out, '2>', \$err)
	  or die "redis-cli @words: $err";
	chomp $out;
	return $out;
}

# How often scripts were called.
sub calls
{
	my ($self) = @_;
	my $stats = $self->cli('info', 'commandstats');
	my $calls = 0;

	$calls += $1 while $stats =~ /cmdstat_eval(?:sha)?:calls=(\d+)/g;
	return $calls;
}

END
{
	my $status = $?;

	$_->down for @started;
	$? = $status;
}

1;
