# Where a credential comes from a file or the environment, whatever is found
# there is said, and nothing is sent without it. A list of which there is always
# another page is an error, and neither a loop nor half a list; and Retry-After
# may be a date.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use POSIX ();
use SecretTest;
use TargetTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $receiver = MlintTest::Receiver->start;
my $cloud = MlintTest::Receiver->start('keyvault.py');
my $dir = PostgreSQL::Test::Utils::tempdir();
$ENV{MLINT_TEST_TOKEN} = 'token of the environment';
$ENV{MLINT_TEST_EMPTY} = '';
my $node = mlint_node('credentials', conf => 'log_statement = none');
delete @ENV{qw(MLINT_TEST_TOKEN MLINT_TEST_EMPTY)};

sub sql { return $node->safe_psql('postgres', $_[0]); }

# What arrives as the token of a destination with this credential, or why none.
my $n = 200;
sub token
{
	my ($credential) = @_;
	my $path = '/status/' . $n++;
	create_destination($node, $path, 'http',
		{ url => $receiver->url($path), auth => { type => 'header', name => 'X-Token', value => $credential } });
	my $id = publish($node, $path);
	my $error = '';
	wait_for("an end, or a reason ($path)", sub {
		$error = sql("SELECT CASE WHEN state = 'delivered' THEN state ELSE error END FROM mlint.deliveries WHERE event_id = $id");
		return $error ne '';
	});
	my ($request) = $receiver->requests($path);
	sql("SELECT mlint.destination_drop('$path')");
	return $error eq 'delivered' ? "sent: $request->{headers}{'x-token'}" : $request ? 'sent all the same' : $error;
}

sub file { my ($name, $content) = @_; append_to_file("$dir/$name", $content); return { file => "$dir/$name" }; }

is(token({ env => 'MLINT_TEST_TOKEN' }), 'sent: token of the environment', 'a variable of the server');
is(token({ env => $_ }), qq(environment variable "$_" is not set in the server), "... that is not there ($_)")
  for qw(MLINT_TEST_EMPTY MLINT_TEST_NONE);
is(token(file('lf', "token of a file\n")), 'sent: token of a file', 'a file, without its last newline');
is(token(file('crlf', "token of a file\r\n")), 'sent: token of a file', '... which may be of Windows');
like(token(file('two', "a\nb")), qr/^(?!sent).*header/, 'a second line is no header of its own');
is(token(file('empty', "\n")), qq(credential file "$dir/empty" is empty), 'a file with nothing in it');
is(token({ file => "$dir/none" }), qq(could not open credential file "$dir/none": No such file or directory), 'no file');
is(token({ file => $dir }), qq(credential file "$dir" is not a regular file of at most 65536 bytes), 'a directory');
is(token(file('large', 'x' x 65537)), qq(credential file "$dir/large" is not a regular file of at most 65536 bytes), 'a file that is too large');
POSIX::mkfifo("$dir/fifo", oct(600));
is(token({ file => "$dir/fifo" }), qq(credential file "$dir/fifo" is not a regular file of at most 65536 bytes), 'a pipe, which holds up nobody');

# ---- Retry-After as a date ----
sub due
{
	my ($value) = @_;
	$value =~ s/([^A-Za-z0-9])/sprintf '%%%02X', ord $1/ge;
	my $path = "/status/503?retry_after=$value";
	create_destination($node, 'date', 'http', { url => $receiver->url($path), retry => { strategy => 'exponential', initial_delay_ms => 600000 } });
	my $id = publish($node, 'date');
	wait_for_sql($node, "a 503 with Retry-After: $_[0]", "SELECT attempts = 1 AND state = 'pending' FROM mlint.deliveries WHERE event_id = $id");
	my $minutes = sql("SELECT round(extract(epoch FROM next_attempt_at - now()) / 60) FROM mlint.deliveries WHERE event_id = $id");
	sql("SELECT mlint.destination_drop('date')");
	return $minutes;
}
is(due(POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime(time + 7200))) >= 118, 1, 'Retry-After is a date in two hours: not before');
cmp_ok(due(POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime(time - 7200))), '<=', 11, '... one that has passed says nothing');
cmp_ok(due('when it suits'), '<=', 11, '... nor does one that is none');

# ---- pages without end ----
sql("SELECT mlint.secret_put('aws', 'the-secret-key-of-aws')");
my %aws = (region => 'eu-central-1', access_key_id => 'AKIAX', secret_access_key => { secret => 'aws' });
backend($node, 'aws', 'aws', { %aws, endpoint => $cloud->url('/'), timeout_ms => 60000 });
$cloud->control('endless');
like(answer($node, "SELECT count(*) FROM mlint.secret_list(backend => 'aws')"), qr/its list has more than 200 pages/, 'names');
like(answer($node, "SELECT count(*) FROM mlint.secret_versions('n', backend => 'aws')"), qr/its list has more than 200 pages/, '... and versions');

authority();
$cloud->control('fail');
my ($id) = install($node, 'www');
target($node, $id, 'aws-acm', { regions => 'eu-central-1', endpoint => $cloud->url('/'), access_key_id => 'AKIAX',
	secret_access_key => { secret => 'aws' }, timeout_ms => 3000, retry_delay_ms => 100, retry_max_delay_ms => 500 });
wait_for_sql($node, 'an import that may have been done', "SELECT state = 'failing' AND attempts > 0 FROM mlint.certificate_targets");
$cloud->control('endless');
wait_for_sql($node, '... is looked for', "SELECT error LIKE '%with a list that does not end%' FROM mlint.certificate_targets");
my $imports = grep { ($_->{headers}{'x-amz-target'} // '') =~ /ImportCertificate/ } $cloud->requests;
wait_for_sql($node, '... again and again', "SELECT attempts > 4 FROM mlint.certificate_targets");
is(scalar(grep { ($_->{headers}{'x-amz-target'} // '') =~ /ImportCertificate/ } $cloud->requests), $imports,
	'... and not made twice');

done_testing();
