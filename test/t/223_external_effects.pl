# What cannot be taken back outside of the database follows only from what no
# crash can take back inside: an object is deleted when the commit that made it
# garbage is on the synchronous standby.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $work = PostgreSQL::Test::Utils::tempdir();
mkdir "$work/store" or die $!;
my $primary = mlint_node('primary', allows_streaming => 1, conf => <<"EOC");
mlint.archive_directory = '$work/store'
mlint.archive_encryption = off
EOC
sub sql { return $primary->safe_psql('postgres', $_[0]); }
sub objects { my @all = split /\n/, `find $work/store -type f`; return scalar @all; }

sql("SELECT mlint.archive_store_create('store', 'file')");
my $archive = sql(<<'EOQ');
SELECT mlint.session_register('session', 'model') \gset
SELECT mlint.prompt_add('session', 'what must not be lost') \gset
SELECT mlint.archive_session('session')
EOQ
sql("SELECT mlint.job_run_now('archive_move')");
wait_for_sql($primary, 'the archive is in the store', "SELECT store = 'store' FROM mlint.archives WHERE id = '$archive'");

# What there is of the session, wherever it is.
sub is_whole
{
	my ($node, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_sql($node, $what, <<"EOQ");
SELECT CASE WHEN EXISTS (SELECT FROM mlint.archives WHERE id = '$archive')
	THEN (SELECT string_agg(d, '') FROM mlint.archive_document('$archive') d) LIKE '%what must not be lost%'
	ELSE EXISTS (SELECT FROM mlint.session_transcript('session') t WHERE t::text LIKE '%what must not be lost%') END
EOQ
}

# ---- the standby is away ----

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
$primary->reload;
wait_for_sql($primary, 'the standby is synchronous', q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
is(objects(), 1, 'there is an object');
$standby->stop('immediate');

# The session's client does not wait for the standby; what is outside does.
sql("SET synchronous_commit = local; BEGIN; SELECT mlint.archive_restore('$archive'); SELECT mlint.job_run_now('archive_move'); COMMIT");
wait_for_sql($primary, 'the job waits for the standby',
	q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type LIKE 'mlint job%' AND query LIKE '%archive_move%' AND wait_event = 'SyncRep'});
is(objects(), 1, '... before the object is deleted');

# So nothing is lost when the primary is.
$primary->stop('immediate');
$standby->start;
$standby->promote;
$standby->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = ''");
$standby->reload;
is_whole($standby, 'the archive has its bytes on the new primary');
$standby->safe_psql('postgres', "SELECT mlint.archive_restore('$archive'); SELECT mlint.job_run_now('archive_move')");
wait_for('there the object goes', sub { objects() == 0 });
is_whole($standby, 'what was restored is live');

done_testing();
