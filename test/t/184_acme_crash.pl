# A crash at every state: the server is killed at each place that a step can
# reach, its job processes are killed at random, it is shut down without being
# asked. Everything ends as if nothing had happened: the certificate is issued,
# from one order, and nothing is shown any more.

use strict;
use warnings;

use AcmeCa;
use HTTP::Tiny;
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $gateway = PostgreSQL::Test::Cluster::get_free_port();
# It looks at a gateway that is down for a while again.
my $ca = AcmeCa->start(http_port => $gateway, validate_ms => 100, issue_ms => 100, patience_s => 30);
my $node = mlint_node('crash', conf => <<"EOC");
restart_after_crash = on
mlint.gateway_listen = '127.0.0.1:$gateway'
EOC

sub sql { return $node->safe_psql('postgres', $_[0]); }

# The same when the server may be just down.
sub try_sql
{
	my ($sql) = @_;
	my ($rc, $out) = eval { $node->psql('postgres', $sql) };
	return !$@ && $rc == 0 ? $out : '';
}

# For which nobody but the test can know what is shown. What is shown twice is
# no harm, what is left is.
sql(<<'EOQ');
CREATE TABLE shown (token text PRIMARY KEY);
CREATE FUNCTION solver(challenge jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF challenge->>'action' = 'present' THEN
		INSERT INTO shown VALUES (challenge->>'token') ON CONFLICT DO NOTHING;
	ELSE
		DELETE FROM shown WHERE token = challenge->>'token';
	END IF;
END $$;
EOQ

# What is put off after a crash or a failure is done at once.
sub hurry
{
	try_sql(<<'EOQ');
UPDATE mlint.job SET failures = 0, next_run_at = now() WHERE failures > 0 AND name LIKE 'certificate%';
UPDATE mlint.acme_order SET next_at = clock_timestamp() WHERE finished_at IS NULL AND next_at > clock_timestamp() + interval '1 s';
UPDATE mlint.acme_challenge SET next_at = clock_timestamp() WHERE isfinite(next_at) AND next_at > clock_timestamp() + interval '1 s'
	AND presence IN ('wanted', 'presenting', 'checking', 'removing');
UPDATE mlint.acme_account SET next_at = clock_timestamp() WHERE next_at > clock_timestamp() + interval '1 s';
UPDATE mlint.certificate_version SET revoke_at = clock_timestamp() WHERE revoke_at > clock_timestamp() + interval '1 s' AND revoked_at IS NULL;
SELECT mlint.job_run_now(name) FROM mlint.job WHERE name IN ('certificates', 'certificate_challenges') AND enabled;
EOQ
	return;
}

# Wait for a query's answer, and hurry.
sub comes
{
	my ($what, $query, $expected) = @_;
	my ($last, $hurried) = ('', time + 1);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for($what, sub {
		if (time > $hurried)
		{
			hurry();
			$hurried = time + 0.3;
		}
		return ($last = try_sql($query)) eq $expected;
	}) || diag "the last answer: $last";
}

# A life, from the account on, with places in it that are deadly once. Returns
# those that were not reached.
sub life
{
	my ($name, $solver, @places) = @_;
	my $of = "FROM mlint.certificate WHERE name = '$name'";
	my $deadly = join ', ', @places;

	$ca->set($name, ari => JSON::PP::true, $solver eq 'NULL' ? () : (validate => JSON::PP::false));
	inject($node, $_, 'kill') for @places;

	# Who asks may die with the server; then, and only then, it is asked again.
	my $ask = sub {
		my ($done, $sql) = @_;
		wait_for("$name: asked", sub {
			return 1 if try_sql($done) eq 't';
			my ($rc) = eval { $node->psql('postgres', $sql) };
			return !$@ && $rc == 0;
		});
	};
	wait_for("$name: asked for an account", sub {
		return 1 if try_sql("SELECT count(*) FROM mlint.acme_account WHERE name = '$name'") eq '1';
		eval { $ca->account($node, $name) };
		return 0;
	});
	comes("$name: it is valid ($deadly)", "SELECT status FROM mlint.acme_account WHERE name = '$name'", 'valid');
	$ask->("SELECT count(*) = 1 $of",
		"SELECT mlint.certificate_issue(ARRAY['$name.example', 'www.$name.example'], '$name', solver => $solver, name => '$name')");
	comes("$name: issued ($deadly)", "SELECT state $of", 'ACTIVE');
	$ask->("SELECT state = 'RENEWING' OR (SELECT count(*) FROM mlint.certificate_version v WHERE v.certificate_id = c.id) = 2 FROM mlint.certificate c WHERE name = '$name'",
		"SELECT mlint.certificate_renew(id) $of");
	comes("$name: renewed ($deadly)", "SELECT c.state, count(*) FROM mlint.certificate c JOIN mlint.certificate_version v ON v.certificate_id = c.id WHERE c.name = '$name' GROUP BY 1", 'ACTIVE|2');
	$ask->("SELECT key_version > 1 OR new_key_version IS NOT NULL FROM mlint.acme_account WHERE name = '$name'",
		"SELECT mlint.acme_account_rollover('$name')");
	comes("$name: has a new key ($deadly)", "SELECT status = 'valid' AND new_key_version IS NULL AND next_at IS NULL AND error IS NULL FROM mlint.acme_account WHERE name = '$name'", 't');
	$ask->("SELECT state = 'REVOKED' OR EXISTS (SELECT FROM mlint.certificate_version v WHERE v.certificate_id = c.id AND revoke_at IS NOT NULL) FROM mlint.certificate c WHERE name = '$name'",
		"SELECT mlint.certificate_revoke(id) $of");
	comes("$name: revoked ($deadly)", "SELECT state $of", 'REVOKED');

	my $stats = $ca->stats->{tags}{$name};
	is(join('|', map { $stats->{$_} // 0 } 'accounts', 'ordered', 'issued', 'revoked'), '1|2|2|1',
		"$name: one account, one order for each certificate, one revocation")
	  or diag explain($stats, [ $ca->orders($name) ],
		try_sql("SELECT o.id, o.state, o.url, o.created_at, o.error FROM mlint.acme_order o JOIN mlint.certificate c ON c.id = o.certificate_id WHERE c.name = '$name' ORDER BY 1"));
	# The last dies when what it did can be seen already.
	my ($end, @missed) = (time + $MlintTest::deadline);
	usleep(20_000) while (@missed = grep { !struck($node, $_) } @places) && time < $end;
	resume($node, $_) for @missed;
	return @missed;
}

# ---- at each place ----

# Literal ones are found in the source; those that are made of a state's name
# are named here.
my %places;
my $src = $ENV{MLINT_TREE} // '.';
for my $file (glob "$src/src/certs/*.c $src/src/certs/acme/*.c")
{
	my $text = slurp_file($file);
	$places{$1} = 1 while $text =~ /INJECTION\("([^"]+)"\)/g;
}
# "-answered": the authority has done it, and we don't know it yet.
$places{"acme-$_"} = $places{"acme-$_-answered"} = 1
  for qw(account ordering reading waiting answered finalizing processing downloading revoking renewal);
$places{"acme-$_"} = 1 for qw(authorizing proven issued revoked searching);
$places{"challenge-$_"} = 1 for qw(presenting checking present removed);
# Where a crash has been before.
my %after = ('acme-searching' => 'acme-ordering-answered');

sub crashes
{
	return scalar(() = slurp_file($node->logfile) =~ /was terminated by signal 9/g);
}

# Some in a life; what comes of a place does not depend on those before it.
my @all = sort grep { !/^challenge/ } keys %places;
my @shown = sort grep { /^challenge/ } keys %places;
my ($n, @missed) = (0);
while (@all || @shown)
{
	# What the gateway answers is lost in a crash; what functions show is not.
	my $solver = $n % 2 ? "'function:public.solver'" : 'NULL';
	my @some = splice @{ $n % 2 && @shown ? \@shown : \@all }, 0, 3;
	if (!@some) { $n++; next; }
	my $before = crashes();
	my %also = map { $_ => 1 } grep { defined } map { $after{$_} } @some;
	my @not = life('life-' . ++$n, $solver, @some, grep { my $a = $_; !grep { $_ eq $a } @some } keys %also);
	push @missed, @not;
	cmp_ok(crashes() - $before, '>=', @some - @not, "life-$n: these were crashes");
}
is(join(' ', @missed), '', 'every place was reached');

# ---- at random ----

sub estate
{
	my ($tag, $solver) = @_;

	$ca->set($tag, validate => JSON::PP::false) if $solver ne 'NULL';
	$ca->account($node, $tag);
	sql("SELECT mlint.certificate_issue(ARRAY['$tag-' || i || '.example'], '$tag', solver => $solver, name => '$tag-' || i) FROM generate_series(1, 20) i");
	return;
}

sub ends_well
{
	my ($tag) = @_;

	comes("$tag: all are issued", "SELECT count(*) FROM mlint.certificate WHERE name LIKE '$tag-%' AND state = 'ACTIVE'", 20);
	my @orders = $ca->orders($tag);
	my %of;
	$of{ $_->{names}[0] }++ for @orders;
	is(scalar(grep { $_ != 1 } values %of), 0, "$tag: one order for each")
	  or diag join ', ', map { "$_: $of{$_}" } grep { $of{$_} != 1 } sort keys %of;
	is(scalar(keys %of), 20, "$tag: for all of them");
	return;
}

for my $round (1 .. 2)
{
	# The process of the job, and with it the server.
	my $tag = "killed$round";
	estate($tag, $round == 1 ? 'NULL' : "'function:public.solver'");
	my $end = time + 30;
	for (1 .. 6)
	{
		usleep(int(rand(700_000)));
		my ($pid) = split /\n/, try_sql("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'mlint job%' ORDER BY random()");
		kill 'KILL', $pid if $pid;
		hurry();
	}
	ends_well($tag);

	# The whole server.
	$tag = "stopped$round";
	estate($tag, $round == 1 ? 'NULL' : "'function:public.solver'");
	for (1 .. 4)
	{
		usleep(int(rand(700_000)));
		$node->stop('immediate');
		$node->start;
		hurry();
	}
	ends_well($tag);

	# Without a crash: told to end, in the middle.
	$tag = "told$round";
	estate($tag, $round == 1 ? 'NULL' : "'function:public.solver'");
	for (1 .. 4)
	{
		usleep(int(rand(500_000)));
		$node->restart;
		hurry();
	}
	ends_well($tag);
}

# ---- nothing is left ----

comes('nothing is shown any more', "SELECT (SELECT count(*) FROM shown) + (SELECT count(*) FROM mlint.acme_challenge WHERE presence NOT IN ('none', 'removed'))", 0);
my $http = HTTP::Tiny->new(timeout => 10);
my @tokens = split /\n/, sql("SELECT token FROM mlint.acme_challenge WHERE solver IS NULL OR solver = 'gateway'");
is(scalar(grep { $http->get("http://127.0.0.1:$gateway/.well-known/acme-challenge/$_")->{status} != 404 } @tokens), 0,
	'by the gateway neither');
my $stats = $ca->stats->{tags};
is(scalar(grep { ($stats->{$_}{'duplicate orders'} // 0) > 0 } keys %$stats), 0, 'no order was ever made twice');
is(scalar(grep { ($stats->{$_}{bugs} // 0) > 0 } keys %$stats), 0, 'the authority is well') or diag $ca->log;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'and nothing has died by itself');

$node->stop;
done_testing();
