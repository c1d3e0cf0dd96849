# Run TAP tests: tap.pl JOBS RESULT FILE...
#
# Writes "passed failed skipped", counted in assertions, to RESULT, and the
# names of the files that failed after it, one a line. A file that dies, or
# whose plan does not hold, is a failure of its own; one that is skipped as a
# whole counts as one skipped. PostgreSQL's modules bail out when a server does
# not start: that ends the file, and not the run.
use strict;
use warnings;

package Harness;
use parent 'TAP::Harness';
sub _bailout { }

package main;

my ($jobs, $result, @files) = @ARGV;
my $harness = Harness->new(
	{ jobs => $jobs, timer => 1, color => 0, lib => [ split /:/, $ENV{PERL5LIB} // '' ] });
my ($passed, $failed, $skipped, @bad) = (0, 0, 0);
my $all = $harness->runtests(@files);

for my $file ($all->descriptions)
{
	my ($parser) = $all->parsers($file);
	my ($ok, $not_ok) = (scalar $parser->passed, scalar $parser->failed);
	my $skip = scalar $parser->skipped;

	$passed += $ok - $skip;
	$skipped += $skip + (defined $parser->skip_all ? 1 : 0);
	$failed += $not_ok;
	next unless $parser->has_problems;
	$failed++ unless $not_ok;
	push @bad, $file;
}
open my $out, '>', $result or die "$result: $!";
print $out "$passed $failed $skipped\n", map { "$_\n" } @bad;
close $out;
exit($failed ? 1 : 0);
