# Certificates in moto's Certificate Manager, two regions, one of which is down
# for a while: imported, imported again to the same ARN, never twice after a
# lost answer or a crash, and again after somebody has deleted it.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use IO::Socket::INET;
use MlintTest;
use POSIX ();
use SecretTest;
use TargetTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

authority();
my ($dir, $moto) = peer_start('moto');
my $venv = $ENV{MOTO_VENV} // "$dir/venv";
my $work = PostgreSQL::Test::Utils::tempdir();
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $proxy = fork() // die;
if ($proxy == 0)
{
	exec 'python3', "$MlintTest::peers/acm_faults.py", $port, $moto, "$work/fault", "$work/log" or POSIX::_exit(127);
}
END { local $?; kill 'KILL', $proxy if $proxy; }

sub boto
{
	my ($region, $code) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ "$venv/bin/python", '-c', <<"EOP" ], '>', \$out, '2>', \$err) or die $err;
import boto3
c = boto3.client("acm", endpoint_url="http://127.0.0.1:$moto", region_name="$region",
                 aws_access_key_id="x", aws_secret_access_key="y")
$code
EOP
	chomp $out;
	return $out;
}
sub arns { return boto($_[0], 'print(" ".join(s["CertificateArn"] for s in c.list_certificates()["CertificateSummaryList"]))'); }
sub there { my ($region, $arn) = @_; return serial_of(boto($region, "print(c.get_certificate(CertificateArn='$arn')['Certificate'])")); }
sub fault { append_to_file("$work/fault.new", join("\n", @_) . "\n"); rename "$work/fault.new", "$work/fault"; return; }
sub fault_clear { unlink "$work/fault"; return; }
sub asked { my ($what) = @_; return scalar grep { /^$what/ } split /\n/, slurp_file("$work/log"); }

my $node = mlint_node('acm', conf => "restart_after_crash = on\nlog_statement = none");
sub sql { return $node->safe_psql('postgres', $_[0]); }
sub reference { return target_state($node, 'reference', "region = '$_[0]'"); }

wait_for('the proxy is up', sub { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) });
sql("SELECT mlint.secret_put('aws', 'the-secret-key-of-aws')");
my %options = (regions => 'eu-central-1, us-east-1', endpoint => "http://127.0.0.1:$port/", access_key_id => 'AKIAX',
	secret_access_key => { secret => 'aws' }, tags => { team => 'web', 'say "x"' => 'y' }, retry_delay_ms => 100, retry_max_delay_ms => 500);

# ---- 1. both regions ----

my ($id, $first, $chain, $key) = install($node, 'www');
target($node, $id, 'aws-acm', {%options});
agrees($node, 'two regions');
my %arn = map { $_ => reference($_) } qw(eu-central-1 us-east-1);
for my $region (sort keys %arn)
{
	is(arns($region), $arn{$region}, "$region: one certificate, whose ARN is known");
	is(there($region, $arn{$region}), $first, '... which is ours');
	# Behind it comes a root of the service's own.
	is(serial_of(boto($region, "print(c.get_certificate(CertificateArn='$arn{$region}')['CertificateChain'])")),
		serial_of($chain =~ s/.*?END CERTIFICATE-----\n//sr), '... with its chain');
	is(boto($region, "print(sorted((t['Key'], t['Value']) for t in c.list_tags_for_certificate(CertificateArn='$arn{$region}')['Tags']))"),
		"[('mlint-certificate', '$id/aws-acm'), ('say \"x\"', 'y'), ('team', 'web')]", '... and tags');
}

# ---- 2. renewed, one region down ----

fault('us-east-1 * 500');
my (undef, $second) = install($node, 'www');
agrees($node, 'the other region has the new one', "region = 'eu-central-1' AND serves = '$second'");
wait_for_sql($node, 'the one that is down fails, again and again', "SELECT state = 'failing' AND attempts > 2 FROM mlint.certificate_targets WHERE region = 'us-east-1'");
is(target_state($node, "serves = '$first'", "region = 'us-east-1'"), 't', '... and serves the one before');
my $error = target_state($node, 'error', "region = 'us-east-1'");
like($error, qr/Certificate Manager in region "us-east-1" answered with status 500/, '... which is said');
unlike($error, qr/[A-Za-z0-9+\/]{40}|the-secret-key/, '... without what the peer repeats of the request');
fault_clear();
agrees($node, 'when it is up again it gets it, too');
is(there($_, $arn{$_}), $second, "$_: the same ARN, the new one") for sort keys %arn;
is(arns($_), $arn{$_}, "$_: and no other") for sort keys %arn;

# ---- 3. lost answers and crashes ----

my ($id2, $other) = install($node, 'other', { names => ['other.example.com'], rsa => 1 });
fault('eu-central-1 ImportCertificate lost');
target($node, $id2, 'aws-acm', {%options, regions => ['eu-central-1']});
wait_for('an answer is lost', sub { asked('eu-central-1 ImportCertificate lost') >= 1 });
fault_clear();
agrees($node, 'it is found again', "certificate = '$id2'");
is(scalar(split / /, arns('eu-central-1')), 2, '... rather than imported twice') or diag(slurp_file("$work/log"));
is(there('eu-central-1', target_state($node, 'reference', "certificate = '$id2'")), $other, '... and is ours');

my ($id3) = install($node, 'third', { names => ['third.example.com'] });
inject($node, 'certificate-pushed', 'kill');
target($node, $id3, 'aws-acm', {%options, regions => ['eu-central-1']});
wait_for('a crash after the import', sub { struck($node, 'certificate-pushed') });
agrees($node, '... and finds it', "certificate = '$id3'");
is(scalar(split / /, arns('eu-central-1')), 3, '... rather than import it twice');

# Deleted there, and what takes its place is not recorded either.
my $arn3 = target_state($node, 'reference', "certificate = '$id3'");
boto('eu-central-1', "c.delete_certificate(CertificateArn='$arn3')");
inject($node, 'certificate-pushed', 'kill');
install($node, 'third', { names => ['third.example.com'] });
wait_for('a crash after the import in place of one that is gone', sub { struck($node, 'certificate-pushed') });
agrees($node, '... and finds that', "certificate = '$id3'");
is(scalar(split / /, arns('eu-central-1')), 3, '... rather than import it again');

# Renewed before anybody knows of the first import.
my ($id4) = install($node, 'fourth', { names => ['fourth.example.com'] });
my $lost = asked('eu-central-1 ImportCertificate lost');
fault('eu-central-1 ImportCertificate lost', 'eu-central-1 ListCertificates 500');
target($node, $id4, 'aws-acm', {%options, regions => ['eu-central-1']});
wait_for('a first answer is lost', sub { asked('eu-central-1 ImportCertificate lost') > $lost });
my (undef, $renewed) = install($node, 'fourth', { names => ['fourth.example.com'] });
wait_for_sql($node, '... the renewed one is tried', "SELECT p.pushing_id = p.wanted_id AND r.attempts > 0 FROM mlint.certificate_push p JOIN mlint.certificate_region r USING (target_id, region) WHERE certificate_id = '$id4'", 't');
fault_clear();
agrees($node, '... and gets there', "certificate = '$id4'");
is(scalar(split / /, arns('eu-central-1')), 4, '... in place of the first') or diag(arns('eu-central-1'));
is(there('eu-central-1', target_state($node, 'reference', "certificate = '$id4'")), $renewed, '... which is known by its ARN');

# ---- 4. deleted by somebody ----

boto('eu-central-1', "c.delete_certificate(CertificateArn='$arn{'eu-central-1'}')");
my (undef, $again) = install($node, 'www');
agrees($node, 'a deleted one');
isnt(reference('eu-central-1') =~ s/\n.*//sr, $arn{'eu-central-1'}, '... is imported anew');
is(there('us-east-1', $arn{'us-east-1'}), $again, '... the other is as it was');

# ---- 5. regions come and go; what is refused ----

sql("SELECT mlint.certificate_target_alter('$id', 'aws-acm', '{\"regions\": [\"us-east-1\", \"ap-south-1\"]}')");
agrees($node, 'other regions', "certificate = '$id'");
is(target_state($node, 'region', "certificate = '$id'"), "ap-south-1\nus-east-1", '... have rows');
is(reference('us-east-1'), $arn{'us-east-1'}, '... those that stay keep their ARN');
my $t = "SELECT mlint.certificate_target_create('$id', 'aws-acm'";
like(answer($node, "$t, '{\"regions\": \"EU\", \"access_key_id\": \"x\", \"secret_access_key\": {\"secret\": \"aws\"}}', name => 'x')"), qr/ML007.*not the name of a region/, 'no region');
like(answer($node, "$t, '{\"regions\": [], \"access_key_id\": \"x\", \"secret_access_key\": {\"secret\": \"aws\"}}', name => 'x')"), qr/ML007.*must not be empty/, 'no regions');
like(answer($node, "$t, '{\"regions\": [\"a\", \"a\"], \"access_key_id\": \"x\", \"secret_access_key\": {\"secret\": \"aws\"}}', name => 'x')"), qr/ML007.*twice/, 'one twice');
like(answer($node, "$t, '{\"regions\": \"eu-west-1\", \"access_key_id\": \"x\", \"secret_access_key\": \"plain-secret\"}', name => 'x')"), qr/ML007.*reference/, 'a plain credential');
like(answer($node, "$t, '{\"regions\": \"eu-west-1\", \"access_key_id\": \"x\", \"secret_access_key\": {\"secret\": \"none\"}}', name => 'x')"), qr/42704/, 'no such secret');
like(answer($node, "$t, '{\"regions\": \"eu-west-1\", \"endpoint\": \"ftp://x\", \"access_key_id\": \"x\", \"secret_access_key\": {\"secret\": \"aws\"}}', name => 'x')"), qr/ML007.*endpoint/, 'no URL');

unlike(slurp_file($node->logfile), qr/PRIVATE KEY|the-secret-key|plain-secret/, 'no key is in the log');
$node->stop;
done_testing();
