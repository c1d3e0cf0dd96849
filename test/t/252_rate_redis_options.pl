# Options of a rate limit's backend in Redis: each that cannot be is refused when
# it is given, with the reason; hosts of every kind are found, and a database of
# one's own keeps keys apart.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Utils;
use RedisTest;
use Test::More;

my $redis = RedisTest->start;
my $node = mlint_node('options', conf => 'log_statement = none');
$node->safe_psql('postgres', "SELECT mlint.secret_put('word', 'a word')");

sub create
{
	my ($name, %options) = @_;
	my $json = literal(JSON::PP->new->canonical->encode(\%options));
	my ($rc, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT mlint.rate_backend_create('$name', options => $json)");

	return $rc == 0 && $err eq '' ? 'created' : $err;
}

# ---- what is refused ----
my %word = (secret => 'word');
my %https = (hosts => 'localhost', tls => JSON::PP::true);
for my $wrong (
	[ 'a host is missing', qr/A host is missing/, hosts => 'a,,b' ],
	[ '... also at the end', qr/A host is missing/, hosts => 'a, ' ],
	[ 'an open bracket', qr/A bracket is not closed/, hosts => '[::1:6379' ],
	[ 'something behind a bracket', qr/After an address in brackets comes a colon/, hosts => '[::1]6379' ],
	[ 'no port behind its colon', qr/A port is a number/, hosts => '[::1]:' ],
	[ 'a port of six digits', qr/A port is a number/, hosts => 'a:100000' ],
	[ 'a port with letters', qr/A port is a number/, hosts => 'a:63x' ],
	[ 'no name before the colon', qr/A host is a name/, hosts => ':6379' ],
	[ 'a URL', qr/A port is a number|A host is a name/, hosts => 'redis://a' ],
	[ 'a name with a user', qr/A host is a name/, hosts => 'user@a' ],
	[ 'a master without Sentinels', qr/Mode "sentinel" needs "master"/, hosts => 'a', master => 'm' ],
	[ 'Sentinels without a master', qr/Mode "sentinel" needs "master"/, hosts => 'a', mode => 'sentinel' ],
	[ 'a database of a cluster', qr/no other database than 0/, hosts => 'a', mode => 'cluster', database => 1 ],
	[ 'a password for Sentinels that are none', qr/are for mode "sentinel"/, hosts => 'a', sentinel_password => {%word} ],
	[ 'a user without a password', qr/A user name needs a password/, hosts => 'a', username => 'u' ],
	[ '... of a Sentinel', qr/A user name needs a password/, hosts => 'a', mode => 'sentinel', master => 'm', sentinel_username => 'u' ],
	[ 'a certificate without a key', qr/come together/, %https, certificate => {%word} ],
	[ 'a key without a certificate', qr/come together/, %https, key => {%word} ],
	[ 'a CA without TLS', qr/are for "tls": true/, hosts => 'a', ca => '/etc/ssl/certs/ca-certificates.crt' ],
	[ 'a prefix that is a pattern', qr/prefix: It has at most 100 bytes/, hosts => 'a', prefix => 'a*' ],
	[ 'a long prefix', qr/prefix: It has at most 100 bytes/, hosts => 'a', prefix => 'a' x 101 ])
{
	my ($what, $why, %options) = @$wrong;
	my $said = create('wrong', %options);

	like($said, qr/ML007/, "$what: refused");
	like($said, $why, '... and why');
}

# ---- hosts, and databases ----
my @patient = (timeout_ms => 10000, connect_timeout_ms => 10000);
my $port = $redis->port;
is(create('plain', @patient, hosts => " 127.0.0.1:$port "), 'created', 'blanks around a host');
is(create('third', @patient, hosts => "127.0.0.1:$port", database => 3), 'created', 'a database of its own');
for my $name (qw(plain third))
{
	$node->safe_psql('postgres', <<"EOQ");
SELECT mlint.rate_rule_create('$name', 'token_bucket', 1, '1 day', 3, backend => '$name', fail => 'closed');
EOQ
	is($node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE (d).allowed) FROM (SELECT mlint.rate_check('$name', 'me') d FROM generate_series(1, 5)) s"),
		3, "$name: three of five are admitted");
}
is($redis->cli('-n', 0, 'dbsize') . ' ' . $redis->cli('-n', 3, 'dbsize') . ' ' . $redis->cli('-n', 1, 'dbsize'),
	'1 1 0', 'each has its key in its own database');

$redis->cli('config', 'set', 'bind', '127.0.0.1 ::1');
is(create('six', @patient, hosts => "[::1]:$port"), 'created', 'an IPv6 address');
like($node->safe_psql('postgres', "SELECT mlint.rate_backend_test('six')"), qr/^Redis \S+ at \S*::1\]?:$port;/, '... is found');
like(create('default', hosts => '[::1]'), qr/^created$/, '... and may do without a port');

done_testing();
