# Rate limits where one session is not enough: a change in the middle of a
# statement that runs, on a standby, of a prepared transaction; identifiers of
# every byte in databases of every kind; dump and restore; addresses of clients.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = mlint_node('primary', allows_streaming => 1, conf => <<'EOC');
log_statement = none
wal_receiver_status_interval = 1s
EOC
my $bin = $primary->config_data('--bindir');

sub sql
{
	my ($query, $node) = @_;
	return ($node // $primary)->safe_psql('postgres', $query);
}

# What a statement that must fail says, with its SQLSTATE.
sub failure
{
	my ($node, $query) = @_;
	my ($rc, $out, $err) =
	  $node->psql('postgres', $query, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $rc == 0 ? "it succeeded: $out" : $err;
}

sql(<<'EOQ');
SELECT mlint.rate_rule_create('r', 'token_bucket', 5, '30 days');
SELECT mlint.rate_rule_create('loop', 'token_bucket', 1000000000, '1 s');
CREATE TABLE seen (n int);
EOQ

# ---- a statement that runs for long ----

# It spins until it is refused; nothing else would make it take in a change.
my $loop = $primary->background_psql('postgres', on_error_stop => 0);
$loop->query_safe("SET application_name = 'loop'");
$loop->{stdin} .= <<'EOQ';
WITH RECURSIVE spin (n, allowed) AS (
	SELECT 1::bigint, true
	UNION ALL
	SELECT n + 1, mlint.rate_allow('loop', 'k') FROM spin WHERE allowed
) SELECT 'ended' FROM spin WHERE NOT allowed;
\echo spun
EOQ
$loop->{run}->pump_nb;
wait_for_sql($primary, 'the statement runs',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'loop' AND state = 'active'");
wait_for_sql($primary, '... and passes',
	"SELECT allowed > 1000 FROM mlint.stat_rate_limits WHERE rule = 'loop'");
is( sql("SELECT refused FROM mlint.stat_rate_limits WHERE rule = 'loop'"), '0',
	'... all the time');
sql("SELECT mlint.rate_override_set('loop', 'k', 'deny')");
wait_for('an override stops it in the middle',
	sub { $loop->{run}->pump_nb; return $loop->{stdout} =~ /ended.*spun/s; });
$loop->quit;

# ---- a standby ----

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
my $session = $standby->background_psql('postgres');

is($session->query_safe("SELECT allowed, remaining, capacity FROM mlint.rate_check('r', 'k')"),
	't|4|5', 'a standby decides');
is($session->query_safe("SELECT allowed, remaining FROM mlint.rate_check('r', 'k')"),
	't|3', '... and remembers');
is(sql("SELECT remaining FROM mlint.rate_peek('r', 'k')"), '4', '... by itself');
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$session->query_safe('SELECT count(*) FROM seen');
sql("SELECT mlint.rate_rule_alter('r', rate => 9)");
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is($session->query_safe("SELECT capacity FROM mlint.rate_peek('r', 'k')"),
	'9', 'a rule that was altered on the primary is in force there, also in an old snapshot');
sql("SELECT mlint.rate_override_set('r', 'k', 'deny', reason => 'abuse')");
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is($session->query_safe("SELECT allowed, reason FROM mlint.rate_check('r', 'k')"),
	'f|abuse', '... and an override');
$session->query_safe('COMMIT');
sql("BEGIN; SELECT mlint.rate_override_drop('r', 'k'); PREPARE TRANSACTION 'drop'");
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is($session->query_safe("SELECT allowed FROM mlint.rate_check('r', 'k')"),
	'f', 'a prepared transaction changes nothing');
sql("COMMIT PREPARED 'drop'");
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is($session->query_safe("SELECT allowed FROM mlint.rate_check('r', 'k')"),
	't', '... until it is committed');
is( $session->query_safe(
		"SELECT rule, identifiers FROM mlint.stat_rate_limits WHERE rule = 'r'"),
	'r|1', 'a standby has statistics');
is($session->query_safe("SELECT identifier FROM mlint.rate_top('r')"),
	'k', '... of identifiers too');
$session->query_safe("BEGIN READ ONLY; SELECT mlint.rate_pre_request(); COMMIT");
for my $call (
	"mlint.rate_rule_create('s', 'token_bucket', 1, '1 s')",
	"mlint.rate_rule_alter('r', rate => 2)",
	"mlint.rate_rule_drop('r')",
	"mlint.rate_override_set('r', 'x', 'allow')",
	"mlint.rate_override_drop('r', 'x')",
	"mlint.rate_reset('r')")
{
	like(failure($standby, "SELECT $call"),
		qr/during recovery|only on the primary/, "$call is refused on a standby, and says why");
}
$session->quit;
$standby->stop;

# ---- every byte, in databases of every kind ----

for my $encoding ('UTF8', 'LATIN1', 'SQL_ASCII', 'EUC_JP')
{
	my $db = 'db_' . lc $encoding;

	$primary->safe_psql('postgres',
		"CREATE DATABASE $db TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'");
	$primary->safe_psql($db, <<'EOQ');
CREATE EXTENSION mlint;
SELECT mlint.rate_rule_create('bytes', 'token_bucket', 2, '30 days');
-- The identifiers that can be written there: of one byte, and long ones.
CREATE FUNCTION made(n int) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN convert_from(set_byte('\x00', 0, n), getdatabaseencoding());
EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
	RETURN NULL;
END
$$;
CREATE TABLE identifier AS
	SELECT DISTINCT t FROM generate_series(1, 255) n, made(n) m, unnest(ARRAY[m, repeat(m, 10000)]) t WHERE m IS NOT NULL;
EOQ
	my $n = $primary->safe_psql($db, 'SELECT count(*) FROM identifier');
	cmp_ok($n, '>=', 2 * ($encoding =~ /LATIN1|ASCII/ ? 255 : 127), "$encoding: $n identifiers");
	is( $primary->safe_psql($db, <<'EOQ'), "$n|$n|$n|0",
SELECT count(*) FILTER (WHERE mlint.rate_allow('bytes', t)), count(*) FILTER (WHERE mlint.rate_allow('bytes', t)),
	count(*) FILTER (WHERE c.remaining = 1), count(*) FILTER (WHERE mlint.rate_allow('bytes', t))
FROM identifier, LATERAL (SELECT * FROM mlint.rate_peek('bytes', t)) c
EOQ
		"$encoding: each is one of its own");
	is( $primary->safe_psql($db, <<'EOQ'), "$n\n$n",
SELECT count(mlint.rate_override_set('bytes', t, 'allow', reason => t)) FROM identifier;
SELECT count(*) FILTER (WHERE mlint.rate_allow('bytes', t)) FROM identifier
EOQ
		"$encoding: ... and may have an override");
	is($primary->safe_psql($db, 'SELECT count(*) FROM mlint.rate_overrides'), $n,
		"$encoding: ... that is shown");
	is( $primary->safe_psql($db, "SELECT count(*) FROM mlint.rate_top('bytes', 100000)"),
		$n, "$encoding: ... and be among the busiest");
	$primary->safe_psql($db, "SELECT mlint.rate_override_set('bytes', t, 'deny') FROM identifier");
	is( $primary->safe_psql($db, <<'EOQ'), '0|t',
SELECT count(*) FILTER (WHERE mlint.rate_allow('bytes', t)), mlint.audit_verify() IS NULL FROM identifier
EOQ
		"$encoding: ... that is replaced");
}

# ---- dump and restore ----

sql(<<'EOQ');
SELECT mlint.rate_override_set('r', 'vip', 'limit', 50, 60, '2100-01-01', 'pays');
SELECT mlint.rate_rule_alter('r', description => 'kept', scope => 'user', setting => 'app.client');
EOQ
my $dump = $primary->basedir . '/dump.sql';
$primary->command_ok([ 'pg_dump', '-f', $dump, $primary->connstr('postgres') ], 'dump');
sql('CREATE DATABASE restored');
$primary->command_ok(
	[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $primary->connstr('restored') ],
	'restore');
for my $view ('rate_rules', 'rate_overrides')
{
	my $query = "SELECT to_jsonb(v) FROM mlint.$view v ORDER BY 1::text, v::text";
	is($primary->safe_psql('restored', $query), sql($query), "$view after a restore");
}
is( $primary->safe_psql('restored', <<'EOQ'), 't|60',
SELECT mlint.rate_rule_create('new', 'fixed_window', 1, '1 s') IS NOT NULL, capacity FROM mlint.rate_peek('r', 'vip')
EOQ
	'a restored database decides, and takes new rules');

# ---- the client's address ----

sql("SELECT mlint.rate_rule_create('ip', 'token_bucket', 5, '30 days', scope => 'ip')");
SKIP:
{
	skip 'no TCP', 2 if !$PostgreSQL::Test::Utils::use_unix_sockets;
	$primary->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'\n");
	$primary->append_conf('pg_hba.conf', "host all all 127.0.0.1/32 trust\n");
	$primary->restart;
	is( $primary->safe_psql(
			'postgres',
			"SELECT remaining FROM mlint.rate_check('ip')",
			connstr => 'host=127.0.0.1 port=' . $primary->port . ' dbname=postgres'),
		'4', 'a client by TCP');
	is(sql("SELECT identifier FROM mlint.rate_top('ip')"), '127.0.0.1',
		'... is known by its address');
}

# ---- who may call what ----

my %granted = (
	mlint_admin => [
		qw(rate_rule_create rate_rule_alter rate_rule_drop rate_override_set rate_override_drop rate_reset)
	],
	mlint_user => [
		qw(rate_check rate_allow rate_peek rate_check_all rate_acquire rate_headers rate_pre_request
		  rate_check_pre_request rate_limit_trigger)
	],
	mlint_reader => [qw(rate_totals rate_top)]);
for my $role (sort keys %granted)
{
	is( sql(<<"EOQ"), join(',', sort @{ $granted{$role} }),
SELECT string_agg(DISTINCT proname, ',' ORDER BY proname) FROM pg_proc, aclexplode(proacl) a
WHERE pronamespace = 'mlint'::regnamespace AND a.grantee = '$role'::regrole
	AND proname IN ('@{[ join "','", map { @$_ } values %granted ]}')
EOQ
		"functions of $role");
}
is( sql(<<'EOQ'), '',
SELECT string_agg(p.oid::regprocedure::text, ',') FROM pg_proc p
WHERE pronamespace = 'mlint'::regnamespace AND proname LIKE 'rate%'
	AND (proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) a WHERE a.grantee = 0)
		OR obj_description(p.oid, 'pg_proc') IS NULL)
EOQ
	'nothing is for PUBLIC or without a comment');

done_testing();
