# Archives in moto's S3, by way of a proxy that fails at any step, and in a
# directory: moved, read, restored, deleted; crashes at every step. The bytes are
# always in the database or in the store, and what is left over goes.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use File::Path qw(make_path);
use MlintTest;
use SecretTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my ($dir, $moto) = peer_start('moto');
my $venv = $ENV{MOTO_VENV} // "$dir/venv";
my $work = PostgreSQL::Test::Utils::tempdir();
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $proxy = fork() // die;
if ($proxy == 0)
{
	exec 'python3', "$MlintTest::peers/s3_faults.py", $port, $moto, "$work/fault", "$work/log" or POSIX::_exit(127);
}
END { local $?; kill 'KILL', $proxy if $proxy; }

sub boto
{
	my ($code) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ "$venv/bin/python", '-c', <<"EOP" ], '>', \$out, '2>', \$err) or die $err;
import boto3
c = boto3.client("s3", endpoint_url="http://127.0.0.1:$moto", region_name="us-east-1",
                 aws_access_key_id="x", aws_secret_access_key="y")
$code
EOP
	chomp $out;
	return $out;
}
boto('c.create_bucket(Bucket="archives")');
sub objects { return boto('print(" ".join(o["Key"] for o in c.list_objects_v2(Bucket="archives").get("Contents", [])))'); }
sub uploads { return boto('print(len(c.list_multipart_uploads(Bucket="archives").get("Uploads", [])))'); }

make_path("$work/files");
chmod 0700, "$work/files";
my $node = mlint_node('stores', conf => "restart_after_crash = on\nmlint.archive_directory = '$work/files'\nmlint.archive_compression = 0");
sub sql { return answer($node, @_); }
sub fault { my ($f) = @_; append_to_file("$work/fault.new", "$f\n"); rename "$work/fault.new", "$work/fault"; return; }
sub fault_clear { unlink "$work/fault"; return; }

# Sessions of so many bytes, archived; returns the ids.
my $n = 0;
sub archive
{
	my ($bytes) = @_;
	$n++;
	return sql(<<"EOQ");
DO \$\$ BEGIN
	PERFORM mlint.session_register('s$n', 'm');
	PERFORM mlint.prompt_add('s$n', (SELECT string_agg(md5(i::text || random()), '') FROM generate_series(1, $bytes / 32) i));
	CREATE TEMP TABLE a ON COMMIT PRESERVE ROWS AS SELECT mlint.archive_session('s$n') AS id;
END \$\$;
SELECT id FROM a;
EOQ
}
sub digest { return sql("SELECT md5(string_agg(d, '')) FROM mlint.archive_document('$_[0]') d"); }
sub moved
{
	my ($what) = @_;
	sql("SELECT mlint.job_run_now('archive_move')");
	return wait_for_sql($node, "$what: all is moved", "SELECT waiting + garbage = 0 FROM mlint.archive_stores WHERE active")
	  && job_rests($node, 'archive_move');
}

sql("SELECT mlint.secret_put('s3', 'y')");
my $small = archive(2000);
my $before = digest($small);
sql(<<"EOQ");
SELECT mlint.archive_store_create('s3', 's3', '{"bucket": "archives", "endpoint": "http://127.0.0.1:$port", "prefix": "a/b/",
	"access_key_id": "x", "secret_access_key": {"secret": "s3"}, "timeout_ms": 8000}')
EOQ
wait_for('the proxy is up', sub { sql("SELECT mlint.archive_store_test('s3')") =~ /bucket "archives"/ });

# ---- 1. a small and a large one ----

moved('small');
is(objects(), "a/b/$small", 'the object has the prefix and the id');
is(sql("SELECT count(*) FROM mlint.archive_chunk WHERE archive = '$small'"), '0', 'the bytes are not here any more');
is(digest($small), $before, 'and the document is what it was');
my $large = archive(20_000_000);
my $large_digest = digest($large);
moved('large');
is(digest($large), $large_digest, 'a large one, too');
like(slurp_file("$work/log"), qr/begin 200\n(part 200\n){3}complete 200\n/, 'it went in parts');
is(boto("print(c.head_object(Bucket='archives', Key='a/b/$large')['ContentLength'])"),
	sql("SELECT stored_bytes FROM mlint.archive WHERE id = '$large'"), 'of the right size');

# ---- 2. failures at every step ----

my @faults = (
	# step, kind, size, error that the view shows
	[ put => 500, 3000, qr/status 500, InternalError/ ],
	[ put => 503, 3000, qr/status 503, SlowDown/ ],
	[ put => 403, 3000, qr/status 403/ ],
	[ put => 'reset', 3000, qr/./ ],
	[ put => 'hang', 3000, qr/./ ],
	[ get => 'half', 3000, qr/./ ],
	[ get => 'wrong', 3000, qr/other bytes/ ],
	[ get => 500, 3000, qr/status 500/ ],
	[ begin => 500, 17_000_000, qr/status 500/ ],
	[ part => 500, 17_000_000, qr/status 500/ ],
	[ part => 'reset', 17_000_000, qr/./ ],
	[ complete => 500, 17_000_000, qr/status 500/ ],
	[ complete => 'error200', 17_000_000, qr/it failed: InternalError/ ]);
for my $f (@faults)
{
	my ($step, $kind, $size, $error) = @$f;
	my $id = archive($size);
	my $is = digest($id);
	fault("$step $kind");
	sql("SELECT mlint.archive_store_alter('s3')");
	wait_for_sql($node, "$step $kind: the failure is seen", 'SELECT failing = 1 FROM mlint.archive_stores');
	like(sql('SELECT last_error FROM mlint.archive_stores'), $error, "$step $kind: and says what");
	is(digest($id), $is, "$step $kind: the archive is whole") unless $step eq 'get' && sql("SELECT store FROM mlint.archive WHERE id = '$id'");
	fault_clear();
	sql("SELECT mlint.archive_store_alter('s3')");
	moved("$step $kind");
	is(digest($id), $is, "$step $kind: moved in the end");
	is(uploads(), 0, "$step $kind: no upload is left open") if $size > 1_000_000;
}
# In passing: three attempts hide it.
my $passing = archive(3000);
fault('put 503 2');
moved('in passing');
is(sql('SELECT failing FROM mlint.archive_stores'), '0', 'a store that is busy twice is no failure');
fault_clear();

# One bad archive does not stop the rest.
my @rest = map { archive(1000) } 1 .. 3;
sql("SELECT mlint.archive_store_alter('s3', active => false)");
my @more = map { archive(1000) } 1 .. 3;
sql("DELETE FROM mlint.archive_chunk WHERE archive = '$more[0]'");
sql("SELECT mlint.archive_store_alter('s3', active => true)");
wait_for_sql($node, 'the others are moved', 'SELECT waiting = 1 AND failing = 1 FROM mlint.archive_stores');
like(sql('SELECT last_error FROM mlint.archive_stores'), qr/chunk 0 of archive/, 'and the bad one is named');
is(sql("SELECT breaker FROM mlint.archive_stores"), 'closed', 'it is not the store that is bad');
sql("SELECT mlint.archive_delete('$more[0]')");

# The breaker.
sql("SELECT mlint.archive_store_alter('s3', active => false)");
my @many = map { archive(1000) } 1 .. 7;
fault('put 403');
sql("SELECT mlint.archive_store_alter('s3', active => true)");
wait_for_sql($node, 'five failures open the breaker', "SELECT breaker = 'open' AND breaker_until > now() FROM mlint.archive_stores");
is(sql('SELECT failing FROM mlint.archive_stores'), '5', 'the rest was not tried');
fault_clear();
sql("SELECT mlint.archive_store_alter('s3')");
moved('after the breaker');

# ---- 3. restore, delete ----

is(sql("SELECT mlint.archive_restore('$small')"), 's1', 'restored from the store');
is(sql("SELECT length(content) FROM mlint.message WHERE session = (SELECT id FROM mlint.session WHERE session_id = 's1')"), '1984', 'with what was said');
sql("SELECT mlint.archive_delete('$large')");
fault('delete 500');
sql("SELECT mlint.job_run_now('archive_move')");
wait_for_sql($node, 'an object that cannot be deleted waits', 'SELECT count(*) > 0 FROM mlint.archive_garbage WHERE attempts > 0');
fault_clear();
sql("SELECT mlint.archive_store_alter('s3')");
moved('deleted');
unlike(objects(), qr/$small|$large/, 'both objects are gone');
like(sql("SELECT mlint.archive_store_drop('s3')"), qr/2BP01.*archives in it/s, 'the store is in use');

# ---- 4. crashes, and the directory ----

my $data = $node->data_dir;
sub crash
{
	my ($point, $size, $store) = @_;
	my $id = archive($size);
	my $is = digest($id);
	inject($node, $point, 'kill');
	sql("SELECT mlint.job_run_now('archive_move')");
	wait_for("$store, $point: the job died", sub { struck($node, $point) });
	is(digest($id), $is, "$store, $point: the archive is whole");
	moved("$store, $point");
	is(digest($id), $is, "$store, $point: and after it was moved");
	return;
}
crash($_, 3000, 's3') for qw(archive-move-before-put archive-move-put archive-move-verified archive-move-before-commit);
crash($_, 17_000_000, 's3') for qw(archive-s3-begun archive-s3-part);
is(uploads(), 0, 'no upload is left open');
# An object of an archive that is deleted after the crash is an orphan.
my $orphan = archive(3000);
inject($node, 'archive-move-before-commit', 'kill');
sql("SELECT mlint.job_run_now('archive_move')");
wait_for('the job died', sub { struck($node, 'archive-move-before-commit') });
like(objects(), qr/$orphan/, 'its object is there');
sql("SELECT mlint.archive_delete('$orphan')");
moved('orphan');
unlike(objects(), qr/$orphan/, 'and goes with it');
is(scalar(split / /, objects()), sql('SELECT archives FROM mlint.archive_stores'), 'there are as many objects as archives');

sql(qq{SELECT mlint.archive_store_create('files', 'file', '{"directory": "$work/files/sub", "prefix": "x/y-"}')});
like(sql("SELECT mlint.archive_store_test('files')"), qr/files below/, 'a directory');
crash($_, 3000, 'file') for qw(archive-move-put archive-file-written archive-file-renamed archive-move-before-commit);
my @files = glob("$work/files/sub/x/* $work/files/sub/x/.*mlint");
is(scalar(@files), sql("SELECT archives FROM mlint.archive_stores WHERE name = 'files'"), 'as many files as archives');
is(sprintf('%o', (stat $files[0])[2] & 07777), '600', 'which nobody else reads');
like(sql(qq{SELECT mlint.archive_store_create('out', 'file', '{"directory": "/etc"}')}), qr/ML007.*outside/s, 'nowhere else');
like(sql(qq{SELECT mlint.archive_store_create('out', 'file', '{"directory": "$work/files/../files"}')}), qr/ML007.*names separated/s, 'nor by ..');
like(sql(qq{SELECT mlint.archive_store_create('out', 'file', '{"directory": "$work/filesystem"}')}), qr/ML007.*outside/s, 'nor beside it');
symlink '/tmp', "$work/files/link" or die $!;
sql(qq{SELECT mlint.archive_store_create('link', 'file', '{"directory": "link"}')});
like(sql("SELECT mlint.archive_store_test('link')"), qr/there is something else than a directory on the way/, 'nor by a link');
chmod 0777, "$work/files";
like(sql("SELECT mlint.archive_store_test('files')"), qr/ML007.*others than its owner may write/s, 'nor where others write');
chmod 0700, "$work/files";
sql("SELECT mlint.archive_store_drop('link')");
like(sql("SELECT count(*) FROM mlint.audit_log WHERE action LIKE 'archive_store.%'"), qr/^[1-9]/, 'the audit log has it');

done_testing();
