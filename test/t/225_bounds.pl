# What is kept of others' words is cut within its bounds: subjects of every
# length around the longest that is kept. A server that watches its memory
# (check.sh --assert, --sanitize) sees a byte too many.

use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mlint_node('bounds');
my $dir = PostgreSQL::Test::Utils::tempdir();

# A certificate whose subject is that long as text, "CN=...,OU=...".
sub import_of_length
{
	my ($len) = @_;
	my $subject = '';

	for (my $left = $len - length('CN=bounds'); $left > 0;)
	{
		my $part = $left > 60 ? 60 : $left;
		$subject .= '/OU=' . ('u' x ($part - length(',OU=')));
		$left -= $part;
	}
	system_or_bail('openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
		'-nodes', '-keyout', "$dir/key.pem", '-out', "$dir/cert.pem", '-days', '300',
		'-subj', "$subject/CN=bounds", '-addext', 'subjectAltName=DNS:bounds.example');
	$node->safe_psql('postgres', 'SELECT mlint.certificate_import('
		  . join(', ', map { literal(slurp_file("$dir/$_.pem")) } 'cert', 'key')
		  . ", 'of-$len')");
	return $node->safe_psql('postgres',
		"SELECT subject FROM mlint.certificate_history WHERE name = 'of-$len'");
}

for my $len (998 .. 1004)
{
	my $subject = import_of_length($len);

	if ($len <= 1000)
	{
		is(length $subject, $len, "a subject of $len bytes is kept");
	}
	else
	{
		like($subject, qr/^.{997}\.\.\.\z/, "a subject of $len bytes is cut");
	}
}
unlike(slurp_file($node->logfile), qr/detected write past chunk end/, 'nothing is written behind its memory');

$node->stop;
done_testing();
