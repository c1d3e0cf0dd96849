# What reads bytes of authorities is fuzzed for a while, from a corpus of real
# answers and nasty ones; `sh test/fuzz/run.sh 3600` does it for long.
# FUZZ_SECONDS sets how long each target runs here.

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

my $fuzz = "$FindBin::RealBin/../fuzz";
my $seconds = $ENV{FUZZ_SECONDS} // 12;

for my $target (sort map { m{([^/]+)\.c$} } glob "$fuzz/*.c")
{
	my $out = `sh '$fuzz/run.sh' $seconds $target 2>&1 </dev/null`;
	my $status = $?;

	is($status, 0, "$target: nothing crashes, leaks, hangs, or breaks a promise");
	my ($n) = $out =~ /number_of_executed_units:\s*(\d+)/;
	cmp_ok($n // 0, '>', 100, "$target: and it did run");
	note $out;
	diag $out if $status != 0;
}

done_testing();
