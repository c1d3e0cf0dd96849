# The laws of rate limits: thousands of random schedules against slow exact
# models; see rate_law_probe.c. The seed is printed, so that what fails can be
# run again: rate_law_probe SEED 1.

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$FindBin::RealBin/../..";
my $dir = PostgreSQL::Test::Utils::tempdir;
my $probe = "$dir/rate_law_probe";
my $schedules = $ENV{MLINT_RATE_SCHEDULES} // 5000;
my $seed = $ENV{MLINT_RATE_SEED} // time;
chomp(my $include = `pg_config --includedir-server`);

# With the sanitizers where the compiler has them.
my @build = (
	$ENV{CC} || 'cc', '-O1', '-g', "-I$top/src", "-I$include", '-o', $probe,
	"$FindBin::RealBin/rate_law_probe.c", "$top/src/ratelimit/law.c");
my @sanitize =
  ('-fsanitize=undefined,address', '-fno-sanitize-recover=all');
if (run_log([ @build, @sanitize ]))
{
	note 'with sanitizers';
}
else
{
	system_or_bail(@build);
}

foreach my $first (1, $seed)
{
	my ($out, $err);
	my $ok = IPC::Run::run([ $probe, $first, $schedules ],
		'>', \$out, '2>', \$err);
	ok($ok, "the laws are as the models, from seed $first")
	  or diag $out, $err;
	foreach my $law (
		qw(token_bucket leaky_bucket fixed_window sliding_window))
	{
		my ($admitted, $decisions) =
		  $out =~ /^$law: (\d+) of (\d+) admitted in $schedules schedules$/m;
		# A test in which nothing, or everything, passes would prove nothing.
		ok( $decisions && $decisions > 50 * $schedules
			  && $admitted > 0.2 * $decisions
			  && $admitted < 0.9 * $decisions,
			"$law: some admitted, some refused")
		  or diag $out;
	}
}

done_testing();
