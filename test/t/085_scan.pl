# The scanner: every rule finds what it must and nothing else; precision and
# recall on texts with true and false friends, tuned on and held out; hostile
# input; rules that change are in force everywhere at once; no secret is told.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin, "$FindBin::RealBin/../scan";
use MlintTest;
use PostgreSQL::Test::Utils;
use ScanCorpus;
use Test::More;

my $scan = "$FindBin::RealBin/../scan";
my $node = mlint_node('scan', conf => "log_statement = none\n");
my $folder = PostgreSQL::Test::Utils::tempdir();

# Findings in texts, by name: {name => [[line, column, rule, severity, excerpt]]}.
# $paths says whether the names are paths for the scanner too.
sub findings
{
	my ($texts, $paths) = @_;
	my %found = map { $_ => [] } keys %$texts;
	my $n = 0;
	my $path = $paths ? 'name' : 'NULL';

	open my $f, '>', "$folder/texts" or die;
	for my $name (sort keys %$texts)
	{
		print $f "$name\t" . unpack('H*', $texts->{$name}) . "\n";
	}
	close $f;
	for my $row (split /\n/, $node->safe_psql('postgres', <<"EOQ"))
CREATE TEMP TABLE t (name text, hex text);
COPY t FROM '$folder/texts';
SELECT name, s.line, s."column", s.rule, s.severity, s.excerpt
FROM t, mlint.secret_scan(convert_from(decode(hex, 'hex'), 'UTF8'), $path) s;
EOQ
	{
		my ($name, @finding) = split /\|/, $row, 6;
		push @{ $found{$name} }, \@finding;
	}
	return \%found;
}

# Each rule by itself.
my (%cases, %others, %want, %of);
open my $f, '<', "$scan/rules.tsv" or die $!;
while (<$f>)
{
	chomp;
	next if /^#/ || $_ eq '';
	my ($rule, $sign, $template) = split /\t/;

	$template =~ s/(\\\\|\\n)/$1 eq '\\n' ? "\n" : '\\'/ge;
	$cases{"line $."} = ScanCorpus->new("rules/$.")->expand($template);
	$others{"line $."} = ScanCorpus->new("other/$.")->expand($template);
	$want{"line $."} = [ $rule, $sign ];
	$of{$rule}{$sign}++;
}
close $f;
my $found = findings(\%cases);
for my $case (sort { ($a =~ /(\d+)/)[0] <=> ($b =~ /(\d+)/)[0] } keys %cases)
{
	my ($rule, $sign) = @{ $want{$case} };
	my @rules = map { $_->[2] } @{ $found->{$case} };

	if ($sign eq '+')
	{
		is("@rules", $rule, "$rule finds its own ($case)");
	}
	else
	{
		ok(!(grep { $_ eq $rule } @rules), "$rule leaves what is not ($case)")
		  or diag $cases{$case};
	}
}
my @without = grep { !$of{$_}{'+'} || !$of{$_}{'-'} } split /\n/,
  $node->safe_psql('postgres',
	'SELECT name FROM mlint.secret_rules WHERE built_in');
is("@without", '', 'every built-in rule has both sorts of cases');

# A built-in pattern means the same to PostgreSQL's own engine.
open $f, '>', "$folder/own" or die;
for my $case (grep { $want{$_}[1] eq '+' } keys %cases)
{
	print $f "$want{$case}[0]\t" . unpack('H*', $cases{$case}) . "\n";
}
close $f;
is( $node->safe_psql('postgres', <<"EOQ"), '', 'patterns are regular expressions');
CREATE TEMP TABLE t (name text, hex text);
COPY t FROM '$folder/own';
SELECT name FROM mlint.secret_rules JOIN t USING (name)
WHERE convert_from(decode(hex, 'hex'), 'UTF8') !~ pattern
EOQ

# What an excerpt shows beyond four characters is the same for every secret of
# its form: a prefix.
my (@told, %prefixes);
my $other = findings(\%others);
for my $case (keys %cases)
{
	my ($one, $two) = map { ($_->[0][4] // '') =~ s/\*\*\*$//r }
	  $found->{$case}, $other->{$case};

	next unless length $one > 4 || length $two > 4;
	$prefixes{$one} = 1;
	push @told, "$want{$case}[0]: $one, $two" if $one ne $two;
}
is("@told", '', 'excerpts show prefixes, or four characters');
cmp_ok(scalar keys %prefixes, '>', 40, 'and there are prefixes');

# A corpus: lines that are credentials, and lines that look like some.
sub measure
{
	my ($set) = @_;
	my (%texts, %true, @wrong, @missed);
	my ($hits, $all, $wanted, $recalled) = (0, 0, 0, 0);

	for my $path (glob "$scan/$set/*")
	{
		my $name = $path =~ s{.*/}{}r =~ s{~}{/}gr;
		($texts{$name}, $true{$name}) = ScanCorpus::file($path, $set);
	}
	if ($set eq 'corpus')
	{
		my %generated = ScanCorpus::false_friends('friends');
		%texts = (%texts, %generated);
	}
	my $found = findings(\%texts, 1);
	for my $name (sort keys %texts)
	{
		my %lines;
		for my $finding (@{ $found->{$name} })
		{
			$all++;
			$lines{ $finding->[0] } = 1;
			if ($true{$name}{ $finding->[0] }) { $hits++ }
			else { push @wrong, "$name:$finding->[0] $finding->[2] $finding->[4]" }
		}
		for my $line (keys %{ $true{$name} // {} })
		{
			$wanted++;
			if ($lines{$line}) { $recalled++ }
			else { push @missed, "$name:$line" }
		}
	}
	my ($precision, $recall) = ($hits / $all, $recalled / $wanted);
	diag sprintf '%s: %d texts, %d credentials, precision %.3f, recall %.3f',
	  $set, scalar(keys %texts), $wanted, $precision, $recall;
	note "wrong: $_" for @wrong;
	note "missed: $_" for sort @missed;
	cmp_ok($precision, '>=', 0.95, "$set: precision") or diag join "\n", @wrong;
	cmp_ok($recall, '>=', 0.95, "$set: recall") or diag join "\n", sort @missed;
	return;
}
measure('corpus');
measure('heldout');

# Place: characters are counted, not bytes; lines of every length.
my $secret = ScanCorpus->new('place')->expand('sk_live_{a:24}');
$found = findings({ a => "grüße\n  日本 $secret\n", b => ('é' x 100_000) . " $secret" });
is("@{$found->{a}[0]}[0,1]", '2 6', 'line and column');
is("@{$found->{b}[0]}[0,1]", '1 100002', 'column on a long line');

# Paths.
my $generic = ScanCorpus->new('path')->expand('secret_key = "{a:32}"');
$found = findings({ map { $_ => "$secret\n$generic\n" }
	  'src/app.py', 'Cargo.lock', 'tests/test_app.py' }, 1);
is(join(' ', map { "$_->[2]=$_->[3]" } @{ $found->{'src/app.py'} }),
	'stripe-live-key=critical generic-secret=medium', 'source');
is(join(' ', map { "$_->[2]=$_->[3]" } @{ $found->{'Cargo.lock'} }),
	'stripe-live-key=critical', 'a lock file has nothing generic');
is(join(' ', map { "$_->[2]=$_->[3]" } @{ $found->{'tests/test_app.py'} }),
	'stripe-live-key=high generic-secret=low', 'tests count for less');

# Hostile input: every keyword at every end, alone, repeated, truncated.
is( $node->safe_psql('postgres', <<'EOQ'), 't', 'hostile texts are survived');
SELECT count(*) >= 0 FROM (
	SELECT k FROM mlint.secret_rules, unnest(keywords) k) x,
	unnest(ARRAY['', ' ', '=', '="', '=''', '\', ': "\', '://a:', '("', '=>', '-', '.', '\u00', '%']) tail,
	unnest(ARRAY['', 'a', '%3', '\u002', repeat('a', 600), '://', '"']) head,
	LATERAL mlint.secret_scan(head || k || tail)
EOQ
for my $bomb ('password=', 'secret:"', '-----BEGIN PRIVATE KEY-----', '://a:b@',
	'eyJ', 'sk-ant-', '"token","', 'basic ', 'password \'')
{
	is( $node->safe_psql('postgres',
			"SET statement_timeout = '$MlintTest::deadline s'; SELECT count(*) >= 0 FROM mlint.secret_scan(repeat("
			  . literal($bomb) . ", 300000))"),
		't', "many times: $bomb");
}

# Cancelled in the middle.
my ($rc, undef, $err) = $node->psql('postgres',
	"SET statement_timeout = '50ms'; SELECT count(*) FROM mlint.secret_scan(repeat('x = y; ', 100000000))");
like($err, qr/statement timeout/, 'a scan can be cancelled');

# Rules are in force in other sessions at once, and only when committed.
my $session = $node->background_psql('postgres');
sub seen
{
	return $session->query_safe(
		"SELECT count(*) FROM mlint.secret_scan('acme_0123456789ab')");
}
is(seen(), '0', 'no rule yet');
$node->safe_psql('postgres',
	"BEGIN; SELECT mlint.secret_rule_create('acme', 'acme_[0-9a-f]{12}', '{acme_}'); ROLLBACK");
is(seen(), '0', 'rolled back');
$node->safe_psql('postgres',
	"SELECT mlint.secret_rule_create('acme', 'acme_[0-9a-f]{12}', '{acme_}')");
is(seen(), '1', 'committed');
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$node->safe_psql('postgres', "SELECT mlint.secret_rule_enable('acme', false)");
$session->query_safe('COMMIT');
is(seen(), '0', 'switched off');
is( $session->query_safe(<<'EOQ'), "\n1", 'own changes are seen, and undone');
BEGIN;
SELECT mlint.secret_rule_enable('acme', true);
SELECT count(*) FROM mlint.secret_scan('acme_0123456789ab');
EOQ
$session->query_safe('ROLLBACK');
is(seen(), '0', 'a rollback takes them back');
$session->quit;

# What is configured, and who has read everything, is on record.
$node->safe_psql('postgres', 'SELECT count(*) FROM mlint.secret_scan_database()');
wait_for_sql($node, 'rules and scans of the database are audited', <<'EOQ', 't');
SELECT array_agg(DISTINCT action || ' ' || outcome ORDER BY action || ' ' || outcome)
	@> '{secret.scan_database ok,secret_rule.create ok,secret_rule.create rolled_back,secret_rule.disable ok}'
FROM mlint.audit_log WHERE action LIKE 'secret_rule.%' OR action = 'secret.scan_database'
EOQ

# In parallel workers too.
is( $node->safe_psql('postgres', <<'EOQ'), '2000', 'parallel workers scan');
CREATE TABLE many AS SELECT 'acme_' || substr(md5(n::text), 1, 12) AS t FROM generate_series(1, 2000) n;
SELECT mlint.secret_rule_enable('acme', true) \gset
SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SELECT count(*) FROM many, mlint.secret_scan(t);
EOQ
like( $node->safe_psql('postgres', <<'EOQ'), qr/Parallel Seq Scan/, 'it was parallel');
SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
EXPLAIN SELECT count(*) FROM many, mlint.secret_scan(t);
EOQ

# The text is in no log, even when the scan fails.
$node->safe_psql('postgres',
	"UPDATE mlint.secret_rule SET pattern = '(', enabled = true");
($rc, undef, $err) =
  $node->psql('postgres', "SELECT * FROM mlint.secret_scan('needle $secret')");
like($err, qr/invalid regular expression/, 'a damaged rule is an error');
like(slurp_file($node->logfile), qr/invalid regular expression/,
	'which the log has');
unlike(slurp_file($node->logfile), qr/needle/, 'and the text it has not');

$node->stop;
done_testing();
