# Mistakes that were there once, in sessions, usage and data keys: each of these
# failed.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mlint_node('main', conf => "mlint.master_key_file = 'keys'");

open my $keys, '>', $node->data_dir . '/keys' or die $!;
print $keys '0123456789abcdef' x 4, "\n";
close $keys;
chmod 0600, $node->data_dir . '/keys';

sub sql { return $node->safe_psql('postgres', $_[0]); }

# ---- budgets, when the first look at them is cancelled ----
sql(<<'EOQ');
SELECT mlint.session_register('s', 'm');
SELECT mlint.usage_budget_set('model:m', tokens => 10, action => 'refuse');
SELECT mlint.usage_track('s', 10, 0);
EOQ
my $locker = $node->background_psql('postgres');
my $session = $node->background_psql('postgres', on_error_stop => 0);
$locker->query_safe('BEGIN; LOCK TABLE mlint.usage_budget IN ACCESS EXCLUSIVE MODE');
$session->query("SET statement_timeout = '100ms'; SELECT mlint.prompt_add('s', 'one')");
like($session->{stderr}, qr/canceling statement due to statement timeout/, 'a look at the budgets is cancelled');
$locker->query_safe('ROLLBACK');
$session->{stderr} = '';
$session->query("RESET statement_timeout; SELECT mlint.prompt_add('s', 'two')");
like($session->{stderr}, qr/usage budget "model:m per month" is exceeded/, '... and later the session knows them all the same');

# ---- a price that is being set while usage is folded ----
$locker->query_safe("BEGIN; SELECT mlint.model_price_set('priced', 1000000, 0)");
sql("SELECT mlint.session_register('p', 'priced'); SELECT mlint.usage_track('p', 3, 0)");
my $fold = $node->background_psql('postgres');
$fold->query_until(qr/began/, "\\echo began\nCALL mlint.usage_fold_run();\n");
wait_for_sql($node, 'the fold waits for a price',
	"SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'CALL mlint.usage_fold_run%' AND wait_event_type = 'Lock'");
$locker->query_safe('COMMIT');
$fold->quit;
is(sql("SELECT (mlint.session_usage('p')).cost"), '{"USD": 3}', '... and counts by it what was reported since');

# ---- a data key that is newer than the snapshot ----
$session->{stderr} = '';
$session->query("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1");
sql("SELECT mlint.session_register('new', 'n'); SELECT mlint.prompt_add('new', 'hello')");
my $archive = sql("SELECT mlint.archive_session('new')");
$session->query("SELECT mlint.archive_delete('$archive')");
$session->query('COMMIT');
is($session->{stderr}, '', 'an archive that is newer than the transaction is deleted');
is(sql("SELECT count(*) FROM mlint.archive"), 0, '... and gone');
$session->quit;
$locker->quit;

# ---- a rare word among many messages ----
sql(<<'EOQ');
SELECT mlint.session_register('long', 'n');
INSERT INTO mlint.message (id, session, kind, content, created_at)
SELECT gen_random_uuid(), s.id, 'prompt', 'hello' || CASE WHEN g % 10000 = 0 THEN ' zebra' ELSE '' END, now()
FROM mlint.session s, generate_series(1, 50000) g WHERE s.session_id = 'long';
VACUUM ANALYZE mlint.message;
EOQ
my $counted = 0;
sub words_read
{
	my ($query) = @_;
	my $total;
	is(sql("SET track_functions = 'all'; SELECT count(*) FROM $query"), 1, "a search: $query");
	wait_for('... is accounted for', sub {
		$total = sql("SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions WHERE funcname = 'session_words'");
		return $total > $counted; });
	my $read = $total - $counted;
	$counted = $total;
	return $read;
}
cmp_ok(words_read("mlint.session_search('zebra', sort => 'newest', page_size => 1)"), '<', 100, '... and reads no more than there are matches');
cmp_ok(words_read("mlint.session_search('hello', sort => 'newest', page_size => 1)"), '<', 100, '... or, of a word that is everywhere, than are asked for');
sql("SELECT mlint.session_delete('long')");

# ---- a copy of a database, and what the first one still needs ----
sql("SELECT mlint.session_register('kept', 'n'); SELECT mlint.prompt_add('kept', 'hello')");
my $kept = sql("SELECT mlint.archive_session('kept')");
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
sub in { my ($db, $query) = @_; return $node->safe_psql($db, $query); }
in('copy', "SELECT mlint.session_register('own', 'n'); SELECT mlint.prompt_add('own', 'hello')");
my $own = in('copy', "SELECT mlint.archive_session('own')");
sql("SELECT mlint.archive_hold('$kept'::uuid, 'court')");
in('copy', "SELECT mlint.archive_delete('$kept'); SELECT mlint.archive_delete('$own')");
in('copy', 'CALL mlint.data_key_erase_all()');
# The job of the same name may be at it, and have it in hand.
wait_for_sql($node, 'a copy erases what it has made, and not what it took along',
	'SELECT destroyed, waiting FROM mlint.erasure_key', '3|1', 'copy');
is(sql("SELECT mlint.archive_get('$kept')->'messages'->0->>'content'"), 'hello', '... so that opens where it is held');
is(in('copy', "SELECT count(*) FROM mlint.archives WHERE id = '$kept'"), 0, '... and in the copy it is gone');

# When nobody has it any more it goes: destroyed in the first one ...
$node->safe_psql('template1', 'CREATE DATABASE second TEMPLATE postgres');
in('second', "SELECT mlint.archive_release('$kept'::uuid); SELECT mlint.archive_delete('$kept')");
in('second', 'CALL mlint.data_key_erase_all()');
wait_for_sql($node, 'another copy waits as well', 'SELECT waiting FROM mlint.erasure_key', 1, 'second');
sql("SELECT mlint.archive_release('$kept'::uuid); SELECT mlint.archive_delete('$kept')");
sql('CALL mlint.data_key_erase_all()');
in($_, 'CALL mlint.data_key_erase_all()') foreach qw(copy second);
wait_for_sql($node, "... until it is destroyed in the first one: $_", 'SELECT waiting FROM mlint.erasure_key', 0, $_) foreach qw(postgres copy second);

# ... or that is dropped.
in('copy', "SELECT mlint.session_register('more', 'n'); SELECT mlint.prompt_add('more', 'hello')");
my $more = in('copy', "SELECT mlint.archive_session('more')");
$node->safe_psql('template1', 'CREATE DATABASE third TEMPLATE copy');
in('third', "SELECT mlint.archive_delete('$more')");
in('third', 'CALL mlint.data_key_erase_all()');
wait_for_sql($node, 'a copy waits for its first', 'SELECT waiting FROM mlint.erasure_key', 1, 'third');
$node->safe_psql('template1', 'DROP DATABASE copy');
in('third', 'CALL mlint.data_key_erase_all()');
wait_for_sql($node, '... until that is dropped', 'SELECT waiting FROM mlint.erasure_key', 0, 'third');

done_testing();
