# Run TAP tests: tap.pl JOBS RESULT UNTIL FILE...
#
# Writes "passed failed skipped", counted in assertions, to RESULT, and the
# names of the files that failed after it, one a line. A file whose turn comes
# after UNTIL (seconds since 1970; 0: never) does not run: the first line goes
# on with the names of those. A file that dies, takes longer than any should, or
# whose plan does not hold, is a failure of its own; one that is skipped as a
# whole counts as one skipped. PostgreSQL's modules bail out when a server does
# not start: that ends the file, and not the run.
use strict;
use warnings;

use Cwd ();

package Harness;
use parent 'TAP::Harness';
sub _bailout { }

package main;

my ($jobs, $result, $until, @files) = @ARGV;
my $late = "1..0 # SKIP the time is up\n";
my $minutes = $ENV{MLINT_WATCHED} ? 120 : 20;
my $harness = Harness->new(
	{
		jobs => $jobs,
		timer => 1,
		color => 0,
		lib => [ split /:/, $ENV{PERL5LIB} // '' ],
		exec => sub {
			my ($self, $file) = @_;
			return $late if $until && time > $until;
			# By the whole name check.sh finds it, should that be stopped.
			return [ 'timeout', '--kill-after=60', $minutes * 60, $^X, Cwd::abs_path($file) ];
		}
	});
my ($passed, $failed, $skipped, @bad, @late) = (0, 0, 0);
my $all = $harness->runtests(@files);

for my $file ($all->descriptions)
{
	my ($parser) = $all->parsers($file);
	my ($ok, $not_ok) = (scalar $parser->passed, scalar $parser->failed);
	my $skip = scalar $parser->skipped;

	if (($parser->skip_all // '') eq 'the time is up')
	{
		push @late, $file =~ s{.*/|\.pl$}{}gr;
		next;
	}
	$passed += $ok - $skip;
	$skipped += $skip + (defined $parser->skip_all ? 1 : 0);
	$failed += $not_ok;
	next unless $parser->has_problems;
	$failed++ unless $not_ok;
	push @bad, $file;
}
open my $out, '>', $result or die "$result: $!";
print $out "$passed $failed $skipped @late\n", map { "$_\n" } @bad;
close $out;
exit($failed ? 1 : 0);
