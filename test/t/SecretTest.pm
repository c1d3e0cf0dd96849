# What the tests of secret backends have in common.
package SecretTest;

use strict;
use warnings;

use Exporter 'import';
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(peer_start peer_stop backend answer shown);

my %peers;

# Start a peer by its script in test/peers; its folder and port are returned.
# That it can't be had is a failure: nothing here is worth much without it.
sub peer_start
{
	my ($name, @arguments) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $port = PostgreSQL::Test::Cluster::get_free_port();

	system('sh', "$MlintTest::peers/$name.sh", 'start', "$dir/$name", $port,
		@arguments) == 0
	  or BAIL_OUT("$name could not be installed or started");
	$peers{"$dir/$name"} = $name;
	return ("$dir/$name", $port);
}

sub peer_stop
{
	my ($dir) = @_;
	my $name = delete $peers{$dir};

	system('sh', "$MlintTest::peers/$name.sh", 'stop', $dir);
	return;
}

# Create a backend, its options as a hash.
sub backend
{
	my ($node, $name, $kind, $options) = @_;
	my $json = JSON::PP->new->utf8->canonical->encode($options);

	$node->safe_psql('postgres', 'SELECT mlint.secret_backend_create('
		  . join(', ', map { literal($_) } $name, $kind, $json) . ')');
	return;
}

# The answer of a statement, or its SQLSTATE and message in full.
sub answer
{
	my ($node, $sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', $sql,
		on_error_stop => 1, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $rc == 0 ? $out : $err;
}

# Columns of mlint.secret_backends.
sub shown
{
	my ($node, $name, $columns) = @_;
	return $node->safe_psql('postgres',
		"SELECT $columns FROM mlint.secret_backends WHERE name = '$name'");
}

END
{
	my $status = $?;
	peer_stop($_) for keys %peers;
	$? = $status;
}

1;
