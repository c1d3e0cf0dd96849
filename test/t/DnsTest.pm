# What the tests of solvers have in common: challenges as the engine makes them,
# without an authority, and knot.
package DnsTest;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(knot_start knot txt knot_key challenge challenge_end presence
  presence_is run_challenges nothing_left);

my ($knot_dir, $knot_port);

# Start knot; returns its port.
sub knot_start
{
	$knot_dir = PostgreSQL::Test::Utils::tempdir() . '/knot';
	$knot_port = PostgreSQL::Test::Cluster::get_free_port();
	knot('start', $knot_port);
	return $knot_port;
}

sub knot
{
	my ($verb, @arguments) = @_;
	system('sh', "$MlintTest::peers/knot.sh", $verb, $knot_dir, @arguments) == 0
	  or BAIL_OUT("knot.sh $verb failed");
	return;
}

sub knot_key { return PostgreSQL::Test::Utils::slurp_file("$knot_dir/$_[0].key"); }

# The TXT records of a name at a server (127.0.0.1 or 127.0.0.2), sorted.
sub txt
{
	my ($name, $server) = @_;
	my ($out, $err) = ('', '');

	$server //= '127.0.0.1';
	IPC::Run::run([ 'kdig', '+short', '+tcp', "\@$server", '-p', $knot_port, $name, 'TXT' ],
		'>', \$out, '2>', \$err);
	die "kdig: $out $err" if $err || $out =~ /^;;/;
	return join ' ', sort map { s/"//gr } split /\n/, $out;
}

# A challenge as the engine makes it: of a certificate of its own, or of the
# order that is given. %more: owner, of the certificate; token. Returns its id and
# the order's.
my $n = 0;
sub challenge
{
	my ($node, $type, $identifier, $solver, $value, $order, %more) = @_;
	my $literal = defined $solver ? literal($solver) : 'NULL';
	my $owner = $more{owner} ? literal($more{owner}) . '::mlint.role_id' : '10::oid';

	$n++;
	my $token = literal($more{token} // "token-$n");
	$order //= $node->safe_psql('postgres', <<"EOQ");
INSERT INTO mlint.acme_account (name, directory_url, key_secret, max_orders, max_orders_per, created_by)
VALUES ('test', 'http://localhost', 'k', 100, '1 hour', 10::oid) ON CONFLICT DO NOTHING;
INSERT INTO mlint.certificate (name, domains, account_id, challenge, solver, key_type, auto_renew, state, key_secret, created_by)
SELECT 'c$n', '{$identifier}', id, '$type', $literal, 'ec256', true, 'ISSUING', 'k', $owner FROM mlint.acme_account;
INSERT INTO mlint.acme_order (certificate_id, account_id, state, next_at)
SELECT c.id, c.account_id, 'authorizing', 'infinity' FROM mlint.certificate c WHERE c.name = 'c$n' RETURNING id;
EOQ
	my $id = $node->safe_psql('postgres', <<"EOQ");
INSERT INTO mlint.acme_challenge (order_id, authorization_url, identifier, type, url, token, value, status, presence, wanted_at, poll_at)
VALUES ($order, 'u$n', '$identifier', '$type', 'u', $token, '$value', 'waiting', 'wanted', now(), 'infinity')
RETURNING id;
EOQ
	return ($id, $order);
}

# The order is over.
sub challenge_end
{
	my ($node, $order) = @_;
	$node->safe_psql('postgres', "UPDATE mlint.acme_order SET finished_at = now(), state = 'failed' WHERE id = $order");
	run_challenges($node);
	return;
}

# Have the job run; also what was put off, when it is said so.
sub run_challenges
{
	my ($node, $now) = @_;
	$node->safe_psql('postgres', "UPDATE mlint.acme_challenge SET next_at = now() WHERE next_at < 'infinity'") if $now;
	$node->safe_psql('postgres', "SELECT mlint.job_run_now('certificate_challenges')");
	return;
}

sub presence
{
	my ($node, $id) = @_;
	return $node->safe_psql('postgres', "SELECT presence || '|' || coalesce(solver_error, error, '') FROM mlint.acme_challenge WHERE id = $id");
}

sub presence_is
{
	my ($node, $id, $presence, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $ok = wait_for_sql($node, $what, "SELECT presence FROM mlint.acme_challenge WHERE id = $id", $presence);
	diag(presence($node, $id)) unless $ok;
	return $ok;
}

# Nothing is or may be there any more.
sub nothing_left
{
	my ($node, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_sql($node, $what, 'SELECT count(*) FROM mlint.certificate_challenges', '0');
}

END
{
	my $status = $?;
	system('sh', "$MlintTest::peers/knot.sh", 'stop', $knot_dir) if $knot_dir;
	$? = $status;
}

1;
