# Documents are UTF-8 whatever the database's encoding, and what comes back is
# what was there, byte for byte.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mlint_node('encodings', create => 0);

sub database
{
	my ($encoding) = @_;
	my $name = lc $encoding;

	$node->safe_psql('postgres', "CREATE DATABASE $name TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'");
	$node->safe_psql($name, "CREATE EXTENSION mlint; SELECT mlint.session_register('s', 'm')");
	return $name;
}

# Archive session s, and see the document's bytes and what comes back.
sub round_trip
{
	my ($name, $content, $utf8) = @_;

	$node->safe_psql($name, "CREATE TABLE before AS SELECT * FROM mlint.message");
	$node->safe_psql($name, "SET mlint.archive_compression = 0; SET mlint.archive_encryption = off; SELECT mlint.archive_session('s')");
	like($node->safe_psql($name, "SELECT encode(bytes, 'hex') FROM mlint.archive_chunk"),
		qr/\Q$utf8\E/, "$name: the document is UTF-8");
	is($node->safe_psql($name, "SELECT mlint.archive_verify(id) FROM mlint.archives"), 't', "$name: it is whole");
	is($node->safe_psql($name, "SELECT convert_to(mlint.archive_get(id) #>> '{messages,0,content}', getdatabaseencoding()) = '\\x$content' FROM mlint.archives"),
		't', "$name: it is read in the database's encoding");
	$node->safe_psql($name, "SELECT mlint.archive_restore(id) FROM mlint.archives");
	is($node->safe_psql($name, "SELECT (SELECT count(*) FROM (TABLE before EXCEPT TABLE mlint.message) x)"
		. " + (SELECT count(*) FROM (TABLE mlint.message EXCEPT TABLE before) x)"), 0, "$name: it comes back as it was");
	return;
}

my $latin1 = database('LATIN1');
# Every character of the upper half, in content and in keys and values of a jsonb.
my $upper = join '', map { sprintf '%02x', $_ } 0xa0 .. 0xff;
$node->safe_psql($latin1, "SELECT mlint.prompt_add('s', convert_from('\\x$upper', 'LATIN1'), jsonb_build_object(convert_from('\\xe4', 'LATIN1'), convert_from('\\x22fc', 'LATIN1')))");
round_trip($latin1, $upper, 'c2a0c2a1c2a2');

my $euc = database('EUC_JP');
$node->safe_psql($euc, "SELECT mlint.prompt_add('s', repeat(convert_from('\\xc6fcb8ec', 'EUC_JP'), 40000))");
round_trip($euc, 'c6fcb8ec' x 40000, 'e697a5e8aa9e' x 3);

my $ascii = database('SQL_ASCII');
$node->safe_psql($ascii, "SELECT mlint.prompt_add('s', convert_from('\\xc3a4e697a5', 'SQL_ASCII'))");
round_trip($ascii, 'c3a4e697a5', 'c3a4e697a5');

# What is not UTF-8 there cannot be archived, and nothing is lost.
$node->safe_psql($ascii, "SELECT mlint.prompt_add('s', convert_from('\\xe4', 'SQL_ASCII'))");
my ($rc, $out, $err) = $node->psql($ascii, "SELECT mlint.archive_session('s')", extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/22P05: session "s" cannot be archived.*Message [0-9a-f-]{36} has bytes that are not UTF-8/s,
	'text that is no UTF-8 is an error that names session and message');
is($node->safe_psql($ascii, 'SELECT count(*) FROM mlint.message'), 2, 'and the session stays');
($rc, $out, $err) = $node->psql($ascii, "SELECT error FROM mlint.archive_batch('{s}')");
like($out, qr/session "s" cannot be archived/, 'in a batch as well');

done_testing();
