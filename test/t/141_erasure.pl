# Erasure for real: what was archived cannot be read again from any copy of the
# rows, or of the whole database, once its data key is cut; the receipt is
# verified by others' means; many sessions are erased in little memory; who
# writes to a session that is being erased gets an error.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use File::Copy qw(copy);
use IPC::Run ();
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $keys = PostgreSQL::Test::Utils::tempdir();
append_to_file("$keys/master.key", ('0123456789abcdef' x 4) . "\n");
chmod 0600, "$keys/master.key";
my $node = mlint_node('main', allows_streaming => 1,
	conf => "mlint.erasure_key_file = '$keys/erasure.key'\nmlint.master_key_file = '$keys/master.key'");

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

sql(<<'EOQ');
CREATE FUNCTION talk(sid text, metadata jsonb) RETURNS void LANGUAGE sql AS $$
	SELECT mlint.session_register(sid, 'm', metadata => metadata);
	SELECT mlint.response_add(mlint.prompt_add(sid, 'question of ' || sid), 'an answer');
$$;
SELECT talk('ann ' || n, '{"user": "ann"}'), talk('bob ' || n, '{"user": "bob"}') FROM generate_series(1, 3) n;
SELECT mlint.archive_session('ann 1'), mlint.archive_session('ann 2'), mlint.archive_session('bob 1');
EOQ
my $ann = sql("SELECT id FROM mlint.archives WHERE session_id = 'ann 1'");
my $bob = sql("SELECT id FROM mlint.archives WHERE session_id = 'bob 1'");
like(sql("SELECT mlint.archive_get('$ann')"), qr/question of ann 1/, 'an archive is read');

# ---- copies: a base backup, and the rows ----

$node->backup('before');
my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($node, 'before');
sql(<<'EOQ');
CREATE TABLE kept_session AS TABLE mlint.session;
CREATE TABLE kept_archive AS TABLE mlint.archive;
CREATE TABLE kept_chunk AS TABLE mlint.archive_chunk;
CREATE TABLE kept_key AS TABLE mlint.data_key;
EOQ

# ---- it is erased ----

my $receipt = sql("SELECT mlint.erase_subject('user', 'ann')");
my $said = JSON::PP->new->decode($receipt);
is_deeply($said->{erased}, { sessions => 1, archives => 2, data_keys => 2 }, 'the receipt says what was erased');
is($said->{backups}{archives}, 'unreadable', 'and that backups are reached');
is(sql('SELECT reaches_backups FROM mlint.erasures'), 't', 'and so does the view');
wait_for_sql($node, 'the keys are cut',
	'SELECT keys_waiting = 0 AND completed_at >= requested_at FROM mlint.erasures');
is(sql("SELECT count(*) FROM mlint.sessions WHERE session_id ~ 'ann'"), 0, 'no session is left');

# The rows are put back, as if from a backup.
sql(<<"EOQ");
INSERT INTO mlint.session OVERRIDING SYSTEM VALUE SELECT * FROM kept_session k WHERE k.session_id = 'ann 1';
INSERT INTO mlint.data_key OVERRIDING SYSTEM VALUE SELECT k.* FROM kept_key k JOIN kept_archive a ON a.data_key = k.id WHERE a.id = '$ann';
INSERT INTO mlint.archive SELECT * FROM kept_archive WHERE id = '$ann';
INSERT INTO mlint.archive_chunk SELECT * FROM kept_chunk WHERE archive = '$ann';
EOQ
my ($rc, $out, $err) = $node->psql('postgres', "SELECT mlint.archive_get('$ann')");
isnt($rc, 0, 'its old rows do not open');
unlike($out . $err, qr/question/, 'nothing of it is shown');
like($err, qr/destroyed|erased|cut/, 'and it is said why');
like(sql("SELECT mlint.archive_get('$bob')"), qr/question of bob 1/, 'what others said is read as before');

# The whole database as it was, with the key files as they are.
$copy->append_conf('postgresql.conf', "mlint.erasure_key_file = '$keys/erasure.key'\nmlint.master_key_file = '$keys/master.key'\n");
$copy->start;
($rc, $out, $err) = $copy->psql('postgres', "SELECT mlint.archive_get('$ann')");
isnt($rc, 0, 'it does not open in a backup from before');
unlike($out . $err, qr/question/, 'nothing of it is shown there');
like($copy->safe_psql('postgres', "SELECT mlint.archive_get('$bob')"), qr/question of bob 1/, 'while others do');
$copy->stop;

# ---- the receipt, outside of the database ----

my $folder = PostgreSQL::Test::Utils::tempdir();
append_to_file("$folder/key.pem", sql("SELECT public_key FROM mlint.secret_public_keys WHERE name = 'mlint/erasure-receipts'"));
# What docs/retention.md tells others to do.
my $docs = slurp_file("$FindBin::RealBin/../../docs/retention.md");
my ($python) = $docs =~ /^```python\n(.*?)^```$/ms;
my ($shell) = $docs =~ /^```sh\n(openssl.*?)^```$/ms;

sub verified
{
	my ($text) = @_;
	my ($output, $ignored, $error) = ('', '', '');

	unlink "$folder/receipt.json";
	append_to_file("$folder/receipt.json", $text);
	IPC::Run::run([ 'python3', '-c', $python ], init => sub { chdir $folder }, '>', \$ignored, '2>', \$error) or return "python: $error";
	IPC::Run::run([ 'sh', '-c', $shell ], init => sub { chdir $folder }, '>&', \$output);
	return $output =~ /Signature Verified Successfully/ ? 1 : 0;
}
is(verified($receipt), 1, 'openssl verifies the receipt');
my $other = $receipt;
$other =~ s/"archives": 2/"archives": 3/ or die;
is(verified($other), 0, 'and not another');
sql(q(SELECT talk('weird', '{"user": "zo\u00eb \"\\\\ \u4e16\t"}')));
sql(q(SELECT mlint.archive_hold('weird', 'x')));
is(verified(sql(q(SELECT mlint.erase_subject('{"user": "zo\u00eb \"\\\\ \u4e16\t"}')))), 1, 'with a refusal');
sql(q(SELECT mlint.session_register(E'zo\u00eb "\\\\ \u4e16', 'm', metadata => '{"user": "zoe"}')));
sql(q(SELECT mlint.archive_hold(E'zo\u00eb "\\\\ \u4e16', 'x')));
$receipt = sql(q(SELECT mlint.erase_subject('user', 'zoe')));
is(verified($receipt), 1, 'and with names of any sort in it');
is(sql('SELECT mlint.erasure_receipt_verify(' . literal($receipt) . ')'), 't', 'so does the database');

# A new key: earlier receipts are verified with theirs.
sql("SELECT mlint.secret_rotation_set('mlint/erasure-receipts', '1 year', '{\"kind\": \"ed25519\"}'); SELECT mlint.secret_rotate('mlint/erasure-receipts')");
wait_for_sql($node, 'the key is rotated', "SELECT version = 2 FROM mlint.secrets WHERE name = 'mlint/erasure-receipts'");
is(sql("SELECT r->'signature'->>'key_version', mlint.erasure_receipt_verify(r) FROM mlint.erase_subject('user', 'nobody') r"), '2|t', 'receipts are signed with the new one');
is(sql('SELECT bool_and(mlint.erasure_receipt_verify(receipt)), count(DISTINCT receipt->\'signature\'->>\'key_version\') FROM mlint.erasures'), 't|2', 'and the earlier are verified');

# ---- who writes meanwhile ----

sql("SELECT talk('late', '{\"user\": \"eve\"}')");
my $writer = $node->background_psql('postgres', on_error_stop => 0);
$writer->query_safe("BEGIN; SELECT mlint.prompt_add('late', 'not committed yet')");
my $eraser = $node->background_psql('postgres');
$eraser->query_until(qr/begun/, "\\echo begun\nSELECT mlint.erase_subject('user', 'eve')->'erased'->>'sessions';\n");
wait_for_sql($node, 'the erasure waits', "SELECT count(*) > 0 FROM pg_stat_activity WHERE query ~ 'erase_subject' AND wait_event_type = 'Lock'");
$writer->query_safe('COMMIT');
wait_for_sql($node, 'and goes on', "SELECT count(*) = 0 FROM mlint.sessions WHERE session_id = 'late'");
is(sql("SELECT count(*) FROM mlint.message WHERE content ~ 'late|not committed'"), 0, 'what was written meanwhile is erased too');
$eraser->quit;
$writer->query_safe("BEGIN; SELECT talk('later', '{\"user\": \"eve\"}')");
is(sql("SELECT mlint.erase_subject('user', 'eve')->'erased'->>'sessions'"), 0, 'what is registered meanwhile is not covered');
$writer->query_safe('COMMIT');
$writer->quit;
is(sql("SELECT mlint.erase_subject('user', 'eve')->'erased'->>'sessions'"), 1, 'but by the next');

# ---- many ----

sql(<<'EOQ');
INSERT INTO mlint.session (session_id, model_id, status, started_at, active_at, updated_at, metadata)
SELECT 'many ' || n, 'm', 'active', now(), now(), now(), '{"user": 42}' FROM generate_series(1, 20000) n;
INSERT INTO mlint.message (id, session, kind, content, created_at)
SELECT gen_random_uuid(), id, 'prompt', 'x', now() FROM mlint.session WHERE session_id ~ '^many';
ANALYZE mlint.session, mlint.message;
EOQ
my $big = $node->background_psql('postgres');
my $pid = $big->query_safe('SELECT pg_backend_pid()');

# Memory of its own that the process has, in kB.
sub memory
{
	return slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m ? $1 : die;
}
$big->query_safe("BEGIN; SELECT mlint.erase_subject('user', 'nobody')->'id'");
my $before = memory();
my $peak = 0;
$big->query_until(qr/begun/, "\\echo begun\nSELECT mlint.erase_subject('user', '42')->'erased'->>'sessions';\n");
wait_for('many are erased', sub {
	$peak = memory() if memory() > $peak;
	return sql("SELECT state <> 'active' FROM pg_stat_activity WHERE pid = $pid") eq 't';
});
note "$before kB before, $peak kB at most";
SKIP:
{
	skip 'freed memory is kept', 1 if memory_is_watched();
	cmp_ok($peak - $before, '<', 16 * 1024, 'and little memory is taken for that');
}
$big->query_safe('COMMIT');
$big->quit;
is(sql("SELECT count(*) FROM mlint.message WHERE session NOT IN (SELECT id FROM mlint.session)"), 0, 'with all that hangs on them');
is(sql("SELECT count(*) FROM mlint.session WHERE session_id ~ '^many'"), 0, 'they are gone');

$node->stop;
done_testing();
