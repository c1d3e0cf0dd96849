# What the tests of certificate targets have in common: a certificate authority
# of our own (root and intermediate, with openssl), certificates of it in the
# database, and looking at what is where.
package TargetTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run ();
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(authority issue install target target_state openssl serial_of agrees);

my ($dir, $n);

sub openssl
{
	my ($input, @arguments) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'openssl', @arguments ], '<', \$input, '>', \$out, '2>',
		\$err)
	  or die "openssl @arguments: $err";
	return $out;
}

sub put { my ($name, $text) = @_; unlink "$dir/$name"; append_to_file("$dir/$name", $text); return; }

# A root and an intermediate; returns the path of the root.
sub authority
{
	$dir = PostgreSQL::Test::Utils::tempdir('ca');
	$n = 0;
	my @key = qw(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes);
	openssl('', 'req', '-x509', @key, '-days', '30', '-subj', '/CN=Test Root',
		'-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign,cRLSign',
		'-keyout', "$dir/root.key", '-out', "$dir/root.pem");
	openssl('', 'req', @key, '-subj', '/CN=Test Intermediate', '-keyout', "$dir/ca.key", '-out', "$dir/ca.csr");
	put('ca.ext', "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n");
	openssl('', 'x509', '-req', '-in', "$dir/ca.csr", '-days', '30', '-CA', "$dir/root.pem", '-CAkey', "$dir/root.key",
		'-CAcreateserial', '-extfile', "$dir/ca.ext", '-out', "$dir/ca.pem");
	return "$dir/root.pem";
}

# A certificate for these names: chain, key. {rsa => 1} has it so.
sub issue
{
	my ($how, @names) = @_;
	my @key = $how->{rsa} ? qw(-newkey rsa:2048 -nodes)
	  : qw(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes);

	$n++;
	openssl('', 'req', @key, '-subj', "/CN=$names[0]", '-keyout', "$dir/$n.key", '-out', "$dir/$n.csr");
	put("$n.ext", 'subjectAltName=' . join(',', map { /^[0-9.]+$/ ? "IP:$_" : "DNS:$_" } @names)
		  . "\nextendedKeyUsage=serverAuth\nbasicConstraints=critical,CA:FALSE\n");
	openssl('', 'x509', '-req', '-in', "$dir/$n.csr", '-days', '20', '-CA', "$dir/ca.pem", '-CAkey', "$dir/ca.key",
		'-CAcreateserial', '-extfile', "$dir/$n.ext", '-out', "$dir/$n.pem");
	return (slurp_file("$dir/$n.pem") . slurp_file("$dir/ca.pem"), slurp_file("$dir/$n.key"));
}

sub serial_of
{
	my ($pem) = @_;
	my ($serial) = openssl($pem, 'x509', '-noout', '-serial') =~ /serial=(\w+)/;
	return lc $serial;
}

# A certificate of this name in the database, or its next version; returns the
# id, the serial and the chain and key.
sub install
{
	my ($node, $name, $how) = @_;
	my ($chain, $key) = issue($how // {}, @{ $how->{names} // ['www.example.com'] });
	my $id = $node->safe_psql('postgres',
		"SELECT mlint.certificate_import(" . join(', ', map { literal($_) } $chain, $key, $name) . ")");
	return ($id, serial_of($chain), $chain, $key);
}

# Create a target, its options as a hash; more arguments as SQL may follow.
sub target
{
	my ($node, $id, $kind, $options, $more) = @_;
	my $json = JSON::PP->new->utf8->canonical->encode($options);

	return $node->safe_psql('postgres', "SELECT mlint.certificate_target_create('$id', "
		  . join(', ', literal($kind), literal($json)) . ($more ? ", $more" : '') . ')');
}

# Columns of mlint.certificate_targets.
sub target_state
{
	my ($node, $columns, $where) = @_;
	return $node->safe_psql('postgres',
		"SELECT $columns FROM mlint.certificate_targets WHERE " . ($where // 'true') . ' ORDER BY certificate_name, name, region');
}

# Wait until all regions of all targets serve what they should.
sub agrees
{
	my ($node, $what, $where) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_sql($node, $what,
		"SELECT bool_and(state = 'serving') FROM mlint.certificate_targets WHERE " . ($where // 'true'))
	  || diag(target_state($node, 'name, region, state, error'));
}

1;
