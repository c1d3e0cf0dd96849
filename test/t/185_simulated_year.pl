# A year in the life of a thousand certificates, in minutes: libfaketime moves
# the server's clock, and an authority of ours has the same one. In no step is
# a certificate expired, each is renewed at the right moment (a third of its
# life before the end, or when renew_before says, or within the window that
# the authority suggests), no account goes beyond its authority's limits, and
# a month of failures is survived.
#
# YEAR_STEP_HOURS, YEAR_DAYS and YEAR_CERTIFICATES make it finer, longer,
# larger: the whole proof is YEAR_STEP_HOURS=6 YEAR_DAYS=365
# YEAR_CERTIFICATES=1000; otherwise 250 live to the end of the failures.
#
# Renewal information is asked for every few hours, so in every step; most of
# the estate is without it, for the sake of the time that this takes.

use strict;
use warnings;

use AcmeCa;
use FindBin;
use IPC::Open2;
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $step = ($ENV{YEAR_STEP_HOURS} // 20) * 3600;
my $days = $ENV{YEAR_DAYS} // 200;
my $all = $ENV{YEAR_CERTIFICATES} // 250;
my $DAY = 86400;

my ($faketime) = glob '/usr/lib/*/faketime/libfaketime.so.1';
BAIL_OUT('there is no libfaketime') unless $faketime;

my $ca = AcmeCa->start(validate => JSON::PP::false);

# ---- a server whose clock we move ----

my $node = mlint_node('year', create => 0, conf => <<'EOC');
fsync = off
autovacuum_naptime = 5s
EOC
my $dir = PostgreSQL::Test::Utils::tempdir();
my $clock = "$dir/clock";
my $shim = "$dir/waiting.so";
system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-O', '-o', $shim, "$FindBin::RealBin/waiting_shim.c");
my $offset = 0;

sub clock_set
{
	my ($to) = @_;

	$offset = $to;
	$ca->clock($offset);
	# At once: the server may read it at any moment.
	append_to_file("$clock.new", sprintf "%+d\n", $offset);
	rename "$clock.new", $clock or die "$clock: $!";
	return;
}

clock_set(0);
$node->stop;
{
	local %ENV = (
		%ENV,
		LD_PRELOAD => "$shim $faketime",
		FAKETIME_TIMESTAMP_FILE => $clock,
		FAKETIME_NO_CACHE => 1,
		FAKETIME_DONT_FAKE_MONOTONIC => 1,
		NO_FAKE_STAT => 1);
	$node->start;
}
$node->safe_psql('postgres', 'CREATE EXTENSION mlint');

# One session for all: a psql for each step costs more than the step.
my $pid = open2(my $out, my $in, 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d',
	$node->connstr('postgres'));

sub sql
{
	my ($query) = @_;
	my @lines;

	print $in "$query;\n\\echo it is done\n";
	$in->flush;
	while (defined(my $line = <$out>))
	{
		chomp $line;
		return join "\n", @lines if $line eq 'it is done';
		push @lines, $line;
	}
	die "psql is gone: $query";
}

sub since { my ($start) = @_; return sprintf '%.1f s', time - $start; }

clock_set(30 * $DAY);
like(sql("SELECT clock_timestamp() - pg_postmaster_start_time()"), qr/^30 days/,
	'the server lives in our time');

# Only what is looked at here, so that nobody else's jobs take the time.
sql(<<'EOQ');
UPDATE mlint.job SET enabled = false WHERE name NOT LIKE 'certificate%';
-- When something is to be done next.
CREATE VIEW todo AS
SELECT o.next_at AS at FROM mlint.acme_order o
WHERE o.finished_at IS NULL AND o.state <> 'authorizing'
UNION ALL SELECT c.poll_at FROM mlint.acme_challenge c
	JOIN mlint.acme_order o ON o.id = c.order_id AND o.finished_at IS NULL
UNION ALL SELECT a.next_at FROM mlint.acme_account a WHERE a.next_at IS NOT NULL
-- What waits for its account's limits stays due.
UNION ALL SELECT c.due_at FROM mlint.certificate c JOIN mlint.acme_account a ON a.id = c.account_id
WHERE c.due_at IS NOT NULL AND a.not_before <= clock_timestamp()
	AND NOT EXISTS (SELECT FROM mlint.acme_order o WHERE o.certificate_id = c.id AND o.finished_at IS NULL)
	AND (SELECT count(*) FROM mlint.acme_order o WHERE o.account_id = a.id
		AND o.ordered_at > clock_timestamp() - 1.03 * a.max_orders_per) < a.max_orders
UNION ALL SELECT c.ari_at FROM mlint.certificate c WHERE c.ari_at IS NOT NULL
EOQ

# ---- the estate ----

# name, share, lifetime in days, whether there is renewal information, what
# certificate_issue() is told besides.
my @estate = (
	[ 'third', 0.45, 90, 0, '' ],
	[ 'window', 0.05, 90, 1, '' ],
	[ 'before', 0.24, 90, 0, ", renew_before => '20 days'" ],
	[ 'short', 0.02, 6, 0, '' ],
	[ 'troubled', 0.24, 90, 0, '' ]);

for my $account (@estate)
{
	my ($name, $share, $life, $ari, $how) = @$account;

	$ca->set($name, lifetime => $life * $DAY, ari => $ari ? JSON::PP::true : JSON::PP::false);
	$ca->account($node, $name);
	sql("SELECT mlint.acme_account_wait('$name')");
	sql(sprintf <<'EOQ', $name, $name, $how, $name, int($all * $share));
SELECT count(mlint.certificate_issue(ARRAY['%s-' || i || '.example'], '%s'%s, name => '%s-' || i))
FROM generate_series(1, %d) i
EOQ
}
my $count = sql('SELECT count(*) FROM mlint.certificate');

# ---- a step ----

my ($kicks, $longest) = (0, 0);

# Have the job do all that is due now, or will be in a few minutes.
sub settle
{
	my $end = time + 900;
	my $started = time;

	while (1)
	{
		sql("SELECT mlint.job_run_now(name) FROM mlint.job WHERE enabled");
		$kicks++;
		# Until nothing is due.
		my ($due, $next);
		my $patience = time + 3;
		while (1)
		{
			($due, $next) = split /\|/, sql(<<'EOQ');
SELECT count(*) FILTER (WHERE at <= clock_timestamp()),
	ceil(extract(epoch FROM min(at) FILTER (WHERE at > clock_timestamp() AND isfinite(at)) - clock_timestamp()))
FROM todo
EOQ
			last if $due == 0 || time > $patience;
			usleep(10_000);
		}
		die 'it does not come to rest: ' . sql('TABLE todo') if time > $end;
		next if $due > 0;
		last if ($next || 1e9) > 600;
		clock_set($offset + $next);
	}
	$longest = time - $started if time - $started > $longest;
	return;
}

my $began = time;
my $day0 = $offset;
settle();
my $first = sql("SELECT count(*) FROM mlint.certificate WHERE state = 'ACTIVE'");
cmp_ok($first, '>=', $count - ($all * 0.45 - 300 > 0 ? $all * 0.45 - 300 : 0),
	'the estate is issued, but for what is beyond the limit of one account');
clock_set($offset + 4 * 3600);
settle();
is(sql("SELECT count(*) FROM mlint.certificate WHERE state = 'ACTIVE'"), $count,
	'and the rest when the limit allows it');
note "issued $count in ", since($began);

# ---- the year ----

my (@expired, @inactive, %moved);
my ($trouble, $steps) = (0, 0);
my $troubles = $ca->counter('troubled', 'new-order');

# The month of failures, a week each.
my @weeks = (
	sub { $ca->fault('troubled', 'order-new', 'problem', kind => 'serverInternal', status => 503, times => 0, headers => { 'Retry-After' => 3600 }); },
	sub { $ca->fault('troubled', 'order-new', 'problem', kind => 'rateLimited', times => 0, headers => { 'Retry-After' => 7200 }); },
	sub { $ca->fault('troubled', 'finalize', 'problem', kind => 'serverInternal', times => 0); },
	sub { $ca->fault('troubled', $_, 'reset', times => 0) for qw(order-new nonce authz); });

while ($offset - $day0 < $days * $DAY)
{
	clock_set($offset + $step);
	my $day = ($offset - $day0) / $DAY;

	# From day 165 on, when the third renewals are near.
	my $week = $day >= 165 && $day < 193 ? 1 + int(($day - 165) / 7) : 0;
	if ($week != $trouble)
	{
		$ca->clear('troubled');
		$weeks[ $week - 1 ]->() if $week;
		$trouble = $week;
	}

	# On day 100 an authority wants some back at once: it will revoke them.
	if ($day >= 100 && !%moved)
	{
		my $now = sql('SELECT floor(extract(epoch FROM clock_timestamp()))');
		for my $i (1 .. int($all * 0.02))
		{
			$ca->tell('/ari', { names => ["window-$i.example"], start => $now - 3600, end => $now + 3600 });
			$moved{"window-$i"} = $now;
		}
	}
	elsif (%moved && $day >= 104 && ref $moved{'window-1'} eq '')
	{
		my $late = sql(sprintf <<'EOQ', $moved{'window-1'}, 6 * 3600 + 2 * $step, int($all * 0.02));
SELECT count(*) FROM mlint.certificate c JOIN mlint.certificate_version v ON v.id = c.version_id
WHERE v.issued_at NOT BETWEEN to_timestamp(%s) AND to_timestamp(%1$s + %d)
	AND c.name IN (SELECT 'window-' || i FROM generate_series(1, %d) i)
EOQ
		is($late, 0, 'what the authority suddenly wants renewed is renewed at once');
		$moved{'window-1'} = [];
	}

	settle();
	push @expired, "day $day: $_" for split /\n/, sql(<<'EOQ');
SELECT c.name FROM mlint.certificate c JOIN mlint.certificate_version v ON v.id = c.version_id
WHERE v.not_after <= clock_timestamp()
EOQ
	push @inactive, "day $day: $_" for split /\n/, sql(<<'EOQ');
SELECT name || ' ' || state FROM mlint.certificate WHERE state NOT IN ('ACTIVE', 'RENEWING')
EOQ
	last if @expired > 20 || @inactive > 20;
	$steps++;
}
note "$steps steps in ", since($began), ", $kicks runs of the job, longest step ", sprintf '%.1f s', $longest;

is_deeply(\@expired, [], 'in no step of the year is a certificate expired');
is_deeply(\@inactive, [], 'nor anything but in use');

# ---- when they were renewed ----

# How early and how late each renewal was, against when it was to be: what the
# certificate before it says.
sub renewals
{
	my ($account, $due) = @_;

	return split /\|/, sql(<<"EOQ");
SELECT count(*), coalesce(round(min(extract(epoch FROM issued_at - due))), 0), coalesce(round(max(extract(epoch FROM issued_at - due))), 0)
FROM (SELECT v.issued_at, lag($due) OVER (PARTITION BY c.id ORDER BY v.id) AS due
	FROM mlint.certificate c JOIN mlint.certificate_version v ON v.certificate_id = c.id
	WHERE c.name LIKE '$account-%') r
WHERE due IS NOT NULL
EOQ
}

sub renewed
{
	my ($account, $due, $early, $late, $what) = @_;
	my ($n, $min, $max) = renewals($account, $due);

	cmp_ok($n, '>', 0, "$account: there were renewals");
	cmp_ok($min, '>=', -$early, "$account: $what: not too early");
	cmp_ok($max, '<=', $late, "$account: $what: not too late");
	note "$account: $n renewals, from $min s to $max s after the time";
	return;
}

# What is spread, and what steps cost.
my $slack = $step + 3600;
my $third = 'v.not_after - (v.not_after - v.not_before) / 3';
renewed('third', $third, 90 * $DAY / 30, $slack, 'a third of the life before the end');
renewed('short', $third, 6 * $DAY / 30, $slack, 'a third of the life before the end');
renewed('before', "v.not_after - interval '20 days'", 90 * $DAY / 30, $slack, 'renew_before');
# Those that were called back apart.
my ($n, $min, $max) = split /\|/, sql(sprintf <<'EOQ', int($all * 0.02));
SELECT count(*), min(extract(epoch FROM issued_at - from_)), max(extract(epoch FROM issued_at - to_))
FROM (SELECT v.issued_at,
	lag(v.not_before + (v.not_after - v.not_before) * 0.60) OVER w AS from_,
	lag(v.not_before + (v.not_after - v.not_before) * 0.63) OVER w AS to_
	FROM mlint.certificate c JOIN mlint.certificate_version v ON v.certificate_id = c.id
	WHERE c.name LIKE 'window-%%' AND substr(c.name, 8)::int > %d
	WINDOW w AS (PARTITION BY c.id ORDER BY v.id)) r
WHERE from_ IS NOT NULL
EOQ
cmp_ok($n, '>', 0, 'window: there were renewals');
cmp_ok($min, '>=', -1, 'window: none before the window that the authority suggests');
cmp_ok($max, '<=', $slack, 'window: none after it');

# ---- what the authority saw ----

my $stats = $ca->stats->{tags};
for my $account (map { $_->[0] } @estate)
{
	is($stats->{$account}{'limit exceeded'} // 0, 0, "$account: never beyond the limits");
	# One that was given up is begun anew while the authority still has it.
	is($stats->{$account}{'duplicate orders'} // 0, 0, "$account: never a second order")
	  unless $account eq 'troubled';
	is($stats->{$account}{bugs} // 0, 0, "$account: the authority works");
}
my @replacing = grep { $_->{replaces} } $ca->orders('window');
cmp_ok(scalar @replacing, '>', 0, 'where there is renewal information, orders say what they replace');

# Failures of a month: tried again and again, but with patience.
my $tries = $ca->stats->{tags}{troubled}{'new-order'} - $troubles;
my $worth = $stats->{troubled}{issued};
note "troubled: $tries requests for orders in the year, $worth issued";
cmp_ok($tries, '<', 40 * int($all * 0.24), 'troubled: attempts back off');
is(sql("SELECT count(*) FROM mlint.certificate WHERE error IS NOT NULL AND name LIKE 'troubled-%' AND state = 'ACTIVE'"),
	0, 'troubled: and in the end all is well');

close $in;
waitpid $pid, 0;
$node->stop;
done_testing();
