# What was wrong once with archives, stores and holds: statistics keep nothing of
# what is erased, held sessions are not changed, an archive is not handed over
# to a store that was altered meanwhile, and movers do not get in each other's way.
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

my $work = PostgreSQL::Test::Utils::tempdir();
make_path("$work/files");
chmod 0700, "$work/files";
my $node = mlint_node('mended', conf => "mlint.archive_directory = '$work/files'\nmlint.archive_compression = 0");
sub sql { return answer($node, @_); }
sub refused { my ($sql) = @_; my ($rc, $out, $err) = $node->psql('postgres', $sql); return $rc == 0 ? 'done' : $err; }

# statistics
sql(<<'EOQ');
SELECT mlint.session_register('p' || i, 'm', metadata => '{"user": "zebrafinch@example.com"}') FROM generate_series(1, 40) i;
SELECT mlint.prompt_add('p' || i, 'quokkaword and others') FROM generate_series(1, 40) i;
SELECT mlint.archive_session('p' || i, metadata => '{"user": "zebrafinch@example.com"}') FROM generate_series(1, 20) i;
ANALYZE mlint.session, mlint.message, mlint.archive;
EOQ
is(sql(q{SELECT count(*) FROM pg_statistic s WHERE s::text ~ 'zebrafinch|quokkaword'}), '0', 'statistics have neither metadata nor words');

# held sessions
sql(q{SELECT mlint.session_register('h', 'm'); SELECT mlint.prompt_add('h', 'evidence'); SELECT mlint.archive_session('h'); SELECT mlint.archive_hold('h', 'case')});
like(refused(q{UPDATE mlint.session SET status = 'active' WHERE session_id = 'h'}), qr/mlint.session belongs to is under a legal hold/, 'a held session is not changed past the functions');
like(refused(q{UPDATE mlint.session SET metadata = '{}' WHERE session_id = 'h'}), qr/legal hold/, 'nor what it says');
is(refused(q{UPDATE mlint.session SET metadata = '{"a": 1}' WHERE session_id = 'p40'}), 'done', 'one that is not held can be');
is(sql(q{SELECT mlint.archive_restore(id) FROM mlint.archives WHERE session_id = 'h'; SELECT mlint.session_set_status('h', 'completed') IS NOT NULL; SELECT mlint.archive_session('h') IS NOT NULL}), "h\nt\nt", 'our functions may');

# a store that is altered while an archive is moved to it
sql(q{BEGIN; SELECT mlint.archive_store_create('files', 'file', '{"prefix": "a/"}'); UPDATE mlint.job SET enabled = false WHERE name = 'archive_move'; COMMIT});
my $id = sql(q{SELECT id FROM mlint.archives WHERE session_id = 'h'});
my $mover = $node->background_psql('postgres');
$mover->query_safe(q{SELECT mlint.archive_move_begin('-infinity', '00000000-0000-0000-0000-000000000000')});
my $alter = $node->background_psql('postgres');
$alter->query_safe('BEGIN');
$alter->query_safe(q{SELECT mlint.archive_store_alter('files', '{"prefix": "b/"}')});
$alter->query_safe(q{UPDATE mlint.job SET enabled = false WHERE name = 'archive_move'});
$mover->query_until(qr/begun/, "\\echo begun\nSELECT mlint.archive_move_one(1, '$id');\n");
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'archive_move_one'}) or die;
like(refused('CALL mlint.archive_move_all()'), qr/archives are being moved already/, 'one moves at a time');
$alter->query_safe('COMMIT');
$alter->quit;
$mover->quit;
is(sql(qq{SELECT store FROM mlint.archives WHERE id = '$id'}), 'database', 'what went to where the store was is not handed over');
is(sql(qq{SELECT count(*) FROM mlint.archive_document('$id')}), '1', 'and can be read');
is(sql(q{CALL mlint.archive_move_all(); SELECT DISTINCT store FROM mlint.archives}), 'files', 'then it is moved');
is(sql(qq{SELECT count(*) FROM mlint.archive_document('$id')}), '1', 'and read from there');

done_testing();
