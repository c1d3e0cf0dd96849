# Pebble for the TAP tests; test/peers/pebble.sh starts it.
#
#	use AcmeTest;
#	my $pebble = AcmeTest->start(http_port => 8080);
#	acme_account($node, 'main', $pebble);
#	is($pebble->count('order-plz'), 1);
package AcmeTest;

use strict;
use warnings;

use Exporter 'import';
use IO::Socket::INET;
use IPC::Run ();
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(acme_account);

my $script = $MlintTest::peers . '/pebble.sh';
my @started;

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

# Start one: http_port => where http-01 is looked for (else a free one, see
# http_port()), eab => 1, env => {PEBBLE_AUTHZREUSE => 0, ...}.
sub start
{
	my ($class, %options) = @_;
	my $port = ports(6);
	my $self = bless {
		dir => PostgreSQL::Test::Utils::tempdir('pebble'),
		port => $port,
		http_port => $options{http_port} // $port + 4,
		eab => $options{eab},
		env => $options{env} // {}
	}, $class;

	$self->up;
	push @started, $self;
	return $self;
}

# Start it, for the first time or after down(): it has forgotten everything.
sub up
{
	my ($self) = @_;

	local %ENV = (%ENV, %{ $self->{env} });
	system('sh', $script, 'start', $self->{dir}, $self->{port},
		$self->{http_port}, $self->{eab} ? 'eab' : ()) == 0
	  or die "could not start Pebble";
	return;
}

sub down { system('sh', $script, 'stop', $_[0]->{dir}); return; }

sub dir { return $_[0]->{dir}; }
sub http_port { return $_[0]->{http_port}; }
sub dns { return '127.0.0.1:' . ($_[0]->{port} + 2); }
sub directory { return "https://localhost:$_[0]->{port}/dir"; }
# The files that Pebble's HTTPS, and what it issues, is trusted by.
sub ca { return "$_[0]->{dir}/ca.pem"; }
sub root { return "$_[0]->{dir}/root.pem"; }
# Key id and key of the account binding.
sub eab { return split ' ', slurp_file("$_[0]->{dir}/eab"); }

# Freeze it, or have it go on: signal('STOP'), signal('CONT').
sub signal
{
	my ($self, $signal) = @_;
	my $pid = slurp_file("$self->{dir}/pebble.pid");

	chomp $pid;
	kill $signal, $pid;
	return;
}

# What it has logged since the last start, and how often it was asked for
# something: count('order-plz').
sub log { return slurp_file("$_[0]->{dir}/pebble.log"); }

sub count
{
	my ($self, $what) = @_;
	return scalar(() = $self->log =~ m{(?:GET|POST|HEAD) /\Q$what\E\S* ->}g);
}

# curl, with Pebble's CA.
sub curl
{
	my ($self, @words) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'curl', '-sSf', '--noproxy', '*', '--cacert', $self->ca,
			@words ], '<', \undef, '>', \$out, '2>', \$err)
	  or die "curl @words: $err";
	return $out;
}

# A path of the management interface, such as /cert-status-by-serial/...
sub management
{
	my ($self, $path) = @_;
	return $self->curl("https://localhost:" . ($self->{port} + 1) . $path);
}

# Tell the DNS server: dns_set('add-a', {host => ..., addresses => [...]}).
sub dns_set
{
	my ($self, $what, $of) = @_;
	$self->curl('-d', JSON::PP->new->canonical->encode($of),
		"http://127.0.0.1:" . ($self->{port} + 3) . "/$what");
	return;
}

# An account at it, with its CA as the secret <name>-ca; returns its status.
sub acme_account
{
	my ($node, $name, $pebble, $eab) = @_;
	my $ca = literal(slurp_file($pebble->ca));

	$eab = defined $eab ? literal($eab) : 'NULL';
	$node->safe_psql('postgres', <<"EOQ");
SELECT mlint.secret_put('$name-ca', $ca);
SELECT mlint.acme_account_create('$name', '@{[$pebble->directory]}', 'admin\@example.com',
	eab => $eab, ca => '{"secret": "$name-ca"}');
EOQ
	return $node->safe_psql('postgres', "SELECT mlint.acme_account_wait('$name')");
}

END
{
	my $status = $?;

	for my $pebble (@started)
	{
		$pebble->signal('CONT') if -s "$pebble->{dir}/pebble.pid";
		$pebble->down;
	}
	$? = $status;
}

1;
