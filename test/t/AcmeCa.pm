# The certificate authority that misbehaves when told to (test/peers/acme_ca.py).
#
#	use AcmeCa;
#	my $ca = AcmeCa->start(http_port => $gateway);
#	$ca->account($node, 'main');          # its tag is the account's name
#	$ca->fault('main', 'finalize', 'problem', kind => 'orderNotReady', times => 1);
#	is($ca->counter('main', 'ordered'), 1);
package AcmeCa;

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

my $script = $MlintTest::peers . '/acme_ca.sh';
my @started;

# Start one. Settings for all tags may be given, see acme_ca.py.
sub start
{
	my ($class, %settings) = @_;
	my $self = bless {
		dir => PostgreSQL::Test::Utils::tempdir('acme_ca'),
		port => PostgreSQL::Test::Cluster::get_free_port(),
		control => PostgreSQL::Test::Cluster::get_free_port(),
		http => HTTP::Tiny->new(timeout => 60)
	}, $class;

	system('sh', $script, 'start', $self->{dir}, $self->{port}, $self->{control}) == 0
	  or die "acme_ca.py could not be installed or started";
	push @started, $self;
	$self->set('', %settings) if %settings;
	return $self;
}

sub tell
{
	my ($self, $path, $document) = @_;
	my $answer = $self->{http}->post("http://127.0.0.1:$self->{control}$path",
		{ content => JSON::PP->new->utf8->encode($document // {}) });

	die "$path: $answer->{status} $answer->{content}" unless $answer->{success};
	return JSON::PP::decode_json($answer->{content});
}

sub set { my ($self, $tag, %settings) = @_; return $self->tell('/set', { tag => $tag, %settings }); }
sub clock { my ($self, $offset) = @_; return $self->tell('/clock', { offset => $offset }); }

# What it does wrong at a step, once (times => 0: for ever).
sub fault
{
	my ($self, $tag, $step, $do, %how) = @_;
	return $self->tell('/fault', { tag => $tag, step => $step, do => $do, %how });
}

sub clear { my ($self, $tag) = @_; return $self->tell('/clear', { tag => $tag }); }
sub faults { my ($self, $tag) = @_; return @{ $self->tell("/faults?$tag") }; }
sub orders { my ($self, $tag) = @_; return @{ $self->tell("/orders?$tag") }; }
sub stats { my ($self) = @_; return $self->tell('/stats'); }
sub problem_types { my ($self) = @_; return @{ $self->tell('/problem-types') }; }

sub counter
{
	my ($self, $tag, $what) = @_;
	return $self->stats->{tags}{$tag}{$what} // 0;
}

sub pid { my ($self) = @_; my $pid = slurp_file("$self->{dir}/acme_ca.pid"); chomp $pid; return $pid; }
sub log { my ($self) = @_; return slurp_file("$self->{dir}/acme_ca.log"); }
sub root { my ($self) = @_; return "$self->{dir}/root.pem"; }
sub directory { my ($self, $tag) = @_; return "https://localhost:$self->{port}/$tag/directory"; }

# Create accounts whose tags are their names.
sub account
{
	my ($self, $node, @names) = @_;

	$node->safe_psql('postgres', join ";\n", map {
			"SELECT mlint.acme_account_create('$_', "
		  . literal($self->directory($_))
		  . ", 'admin\@example.com', ca => "
		  . literal(JSON::PP->new->encode({ file => $self->root })) . ')'
	} @names);
	return;
}

sub stop
{
	my ($self) = @_;
	system('sh', $script, 'stop', $self->{dir});
	return;
}

END
{
	my $status = $?;
	$_->stop for @started;
	$? = $status;
}

1;
