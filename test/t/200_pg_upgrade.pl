# pg_upgrade, by copying and with --link: whatever mlint keeps is there
# afterwards, row by row, and as a fresh extension has it; secrets and archives
# open, the audit log's chain holds, and what was pending is delivered, once and
# under its webhook-id. To this version from itself, or from the one whose
# pg_config OLD_PG_CONFIG names (test/upgrade.sh).
use strict;
use warnings;

use File::Copy qw(copy);
use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use TargetTest qw(openssl);
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $receiver = MlintTest::Receiver->start;
my $bin = `pg_config --bindir`;
my $old_bin = $bin;
$old_bin = `$ENV{OLD_PG_CONFIG} --bindir` if $ENV{OLD_PG_CONFIG};
chomp($bin, $old_bin);
mkdir $_ or die "mkdir: $!" for "$dir/files", "$dir/files/stores";

# Rate limits are kept in memory, and in a file that pg_upgrade does not copy.
my $conf = <<"EOC";
mlint.erasure_key_file = '$dir/files/erasure.key'
mlint.archive_directory = '$dir/files/stores'
EOC

# A cluster that pg_upgrade may take: of the old version, or a new one.
sub cluster
{
	my ($name, $prefix) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name,
		defined $prefix ? (install_path => $prefix) : ());
	my $sums = `'@{[ $prefix ? "$prefix/bin" : $bin ]}/initdb' --help` =~ /--no-data-checksums/;

	$node->init(extra => [ '-E', 'UTF8', '--locale=C', $sums ? '--no-data-checksums' : () ]);
	mlint_configure($node, $conf);
	return $node;
}

# Without workers nothing changes by itself.
sub rest
{
	my ($node) = @_;
	$node->stop;
	$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
	$node->start;
	return;
}

my $old = cluster('old', $old_bin =~ s{/bin$}{}r);
my $sql = sub { my ($query, $db) = @_; return $old->safe_psql($db // 'postgres', $query); };
$old->start;
note 'from ' . $sql->('SHOW server_version');

# ---- something of everything ----

$sql->($_) for 'CREATE ROLE tenant LOGIN', 'CREATE EXTENSION mlint', 'GRANT mlint_user TO tenant', <<'EOQ';
CREATE FUNCTION talk(sid text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	at uuid;
BEGIN
	PERFORM mlint.session_register(sid, 'm', '1', ARRAY['a', 'b ' || sid]);
	FOR i IN 1 .. 3 LOOP
		at := mlint.prompt_add(sid, 'question ' || i || E': \u00e4\u4e16\n "quoted"', '{"k": [1, null]}');
		PERFORM mlint.response_add(at, repeat(md5(sid || i) || ' ', 200), '{"prompt_tokens": 3}');
		PERFORM mlint.usage_track(sid, 3, 5, latency_ms => 12.5);
	END LOOP;
END $$;
EOQ

my $certificate = do
{
	openssl('', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
		'-subj', '/CN=www.example.com', '-addext', 'subjectAltName=DNS:www.example.com',
		'-addext', 'basicConstraints=critical,CA:FALSE',
		'-days', 90, '-keyout', "$dir/www.key", '-out', "$dir/www.pem");
	$sql->('SELECT mlint.certificate_import(' . literal(slurp_file("$dir/www.pem")) . ', '
		  . literal(slurp_file("$dir/www.key")) . ", 'www')");
};

create_destination($old, 'up', 'http', { url => $receiver->url('/ok') }, 'upgrade.*');
create_destination($old, 'dead', 'http', { url => $receiver->url('/status/400') }, 'dead.*');
create_destination($old, 'rests', 'http', { url => $receiver->url('/rests') }, 'upgrade.*');
publish($old, 'upgrade.delivered', { n => $_ }) for 1 .. 5;
deliver($old, 'dead.letter');
wait_for_sql($old, 'all of that has ended', 'SELECT count(*) = 0 FROM mlint.pending');
$sql->("SELECT mlint.destination_alter('rests', enabled => false)");
$sql->('SELECT mlint.segment_begin()'), publish($old, 'upgrade.segment', { n => $_ }) for 1 .. 6;
$sql->("SELECT mlint.publish('upgrade.later', '{}', deliver_at => now() + interval '1 s')");

$sql->(<<'EOQ');
SELECT mlint.model_register('m', '1', 'anthropic');
SELECT mlint.model_price_set('m', 3, 15, 'EUR');
SELECT mlint.usage_budget_set('model:m', tokens => 1000000, per => 'day');
SELECT talk('s' || n) FROM generate_series(1, 9) n;
SELECT mlint.retention_policy_create('short', 400);
SELECT mlint.archive_hold('s2', 'a live one');
SELECT mlint.archive_session('s3', policy => 'short');
SELECT mlint.archive_session('s4');
SELECT mlint.archive_hold('s4', 'an archived one');
SELECT mlint.archive_store_create('files', 'file', '{"directory": "one"}');
SELECT mlint.archive_session('s5');
SELECT mlint.job_run_now('archive_move');
EOQ
wait_for_sql($old, 'an archive is in the store', 'SELECT count(*) > 0 FROM mlint.archive WHERE store IS NOT NULL');
$sql->(<<'EOQ');
SELECT mlint.archive_session('s6');
SELECT mlint.archive_delete(id) FROM mlint.archives WHERE session_id = 's6';
SELECT mlint.rate_rule_create('api', 'token_bucket', 3, '1 minute');
SELECT mlint.rate_check('api', 'alice');
SELECT mlint.secret_put('password', 'one');
SELECT mlint.secret_put('password', 'two');
SELECT mlint.secret_grant('password', 'tenant', 'read');
SELECT mlint.secret_rotation_set('password', '30 days');
SELECT mlint.secret_rotate('password');
EOQ
is($sql->("SELECT mlint.secret_rotate_wait('password', '$MlintTest::deadline s')"), 't', 'a secret is rotated');
my $password = $sql->("SELECT mlint.secret_get('password')");

# An extension in a second database, and a third without.
$sql->("CREATE DATABASE $_") for qw(second plain);
$sql->('CREATE EXTENSION mlint', 'second');
$sql->("SELECT mlint.secret_put('other', 'database')", 'second');

wait_for_sql($old, 'nothing is under way', q{
SELECT (SELECT count(*) = 0 FROM mlint.jobs WHERE running OR enabled AND next_run_at < now())
	AND (SELECT count(*) = 7 FROM mlint.pending)});
is($sql->('SELECT mlint.audit_verify() IS NULL'), 't', 'the audit log is whole');

# What no dispatcher has seen.
rest($old);
my %unseen = map { publish($old, 'upgrade.unseen', { n => $_ }) => 1 } 1 .. 50;
my $pending = $sql->('SELECT count(*) FROM mlint.pending');

# ---- pg_upgrade ----

# All that mlint keeps, a line a table; and all that it is.
my $rows = <<'EOQ';
CREATE FUNCTION pg_temp.rows_of(t regclass) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text;
BEGIN
	EXECUTE 'SELECT count(*) || '' '' || coalesce(md5(string_agg(t::text, E''\n'' ORDER BY t::text COLLATE "C")), '''') FROM ' || t || ' t' INTO said;
	RETURN said;
END $$;
SELECT c.oid::regclass || ': ' || CASE c.relkind WHEN 'S'
		THEN (SELECT coalesce(s.last_value::text, 'new') FROM pg_sequences s WHERE s.schemaname = 'mlint' AND s.sequencename = c.relname)
		ELSE pg_temp.rows_of(c.oid) END
FROM pg_class c
WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind IN ('r', 'p', 'S')
ORDER BY c.relname COLLATE "C";
EOQ
my $objects = <<'EOQ';
SELECT pg_describe_object(d.classid, d.objid, 0)
FROM pg_depend d
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'mlint')
	AND NOT (d.classid = 'pg_class'::regclass AND (SELECT relispartition FROM pg_class WHERE oid = d.objid))
	-- From 17 on, the types of rows are members, too.
	AND NOT (d.classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type t, pg_class c
		WHERE c.relispartition AND c.oid = t.typrelid AND d.objid IN (t.oid, t.typarray)))
ORDER BY pg_describe_object(d.classid, d.objid, 0) COLLATE "C";
SELECT p.oid::regprocedure, a.grantee::regrole, a.privilege_type, md5(p.prosrc), p.provolatile, p.proparallel, p.prosecdef, p.proconfig,
	obj_description(p.oid, 'pg_proc')
FROM pg_proc p LEFT JOIN aclexplode(p.proacl) a ON a.grantee <> p.proowner
WHERE p.pronamespace = 'mlint'::regnamespace
ORDER BY p.oid::regprocedure::text COLLATE "C", 2, 3;
SELECT c.oid::regclass, a.grantee::regrole, a.privilege_type, obj_description(c.oid, 'pg_class'), c.reloptions
FROM pg_class c LEFT JOIN aclexplode(c.relacl) a ON a.grantee <> c.relowner
WHERE c.relnamespace = 'mlint'::regnamespace AND NOT c.relispartition AND c.relkind IN ('r', 'p', 'v', 'S')
ORDER BY c.oid::regclass::text COLLATE "C", 2, 3;
SELECT r::regclass, conditions
FROM pg_extension, unnest(extconfig, extcondition) AS u(r, conditions) WHERE extname = 'mlint'
ORDER BY r::regclass::text COLLATE "C";
EOQ
my $kept = $sql->($rows);
my $kept_second = $sql->($rows, 'second');
my $chain = $sql->('SELECT seq, hash FROM mlint.audit_log ORDER BY seq');
my %delivered = %{ $receiver->arrivals('/ok') };
$old->stop;
system_or_bail('cp', '-a', "$dir/files", "$dir/kept");

for my $how ('--copy', '--link')
{
	# What one of them deletes or cuts, the other one needs.
	system_or_bail('cp', '-a', "$dir/kept/.", "$dir/files");
	my $new = cluster('new' . $how =~ tr/-//dr);
	my $sent = -s $receiver->{record};
	my @command = ("$bin/pg_upgrade", '--no-sync',
		'-d', $old->data_dir, '-D', $new->data_dir, '-b', $old_bin, '-B', $bin,
		'-s', $new->host, '-p', $old->port, '-P', $new->port,
		# --copy is what 15 does by default, and has no name for.
		$how eq '--link' ? $how : ());

	chdir $dir or die "chdir: $!";
	command_ok([ @command, '--check' ], "$how: the check is clean");
	command_ok(\@command, "$how: pg_upgrade");
	if (!Test::More->builder->is_passing)
	{
		diag slurp_file($_) for glob $new->data_dir . '/pg_upgrade_output.d/*/log/*.log';
		last;
	}
	copy($old->data_dir . '/mlint_master.key', $new->data_dir . '/mlint_master.key') or die "copy: $!";
	chmod 0600, $new->data_dir . '/mlint_master.key';
	is(-s $receiver->{record}, $sent, "$how: nothing was sent meanwhile");

	my $now = sub { my ($query, $db) = @_; return $new->safe_psql($db // 'postgres', $query); };
	$new->append_conf('postgresql.conf', 'max_worker_processes = 0');
	$new->start;
	note 'to ' . $now->('SHOW server_version');
	is($now->($rows), $kept, "$how: every row is there");
	is($now->($rows, 'second'), $kept_second, "$how: in the second database too");
	is($now->('SELECT seq, hash FROM mlint.audit_log ORDER BY seq'), $chain, "$how: and the audit log's chain");
	$now->('CREATE DATABASE fresh');
	$now->('CREATE EXTENSION mlint', 'fresh');
	is($now->($objects), $now->($objects, 'fresh'), "$how: the extension is what a fresh one is");
	is($now->('SELECT count(*) FROM mlint.pending'), $pending, "$how: what was pending is");

	my $seen = -s $receiver->{record};
	$new->stop;
	$new->append_conf('postgresql.conf', 'max_worker_processes = 24');
	$new->start;

	wait_for_sql($new, "$how: what no dispatcher had seen is delivered",
		"SELECT count(*) = 50 FROM mlint.deliveries d JOIN mlint.events e ON e.id = d.event_id WHERE e.type = 'upgrade.unseen' AND d.destination = 'up' AND d.state = 'delivered'");
	$now->("SELECT mlint.destination_alter('rests', enabled => true)");
	wait_for_sql($new, "$how: and so is what waited", 'SELECT count(*) = 0 FROM mlint.pending');
	open my $record, '<', $receiver->{record} or die "$receiver->{record}: $!";
	seek $record, $seen, 0;
	my %times;
	while (my $line = <$record>)
	{
		my $request = JSON::PP::decode_json($line);
		$times{ $request->{path} }{ $request->{headers}{'webhook-id'} }++;
	}
	close $record;
	is(join(' ', sort { $a <=> $b } map { s/^.*_//r } keys %{ $times{'/ok'} }), join(' ', sort { $a <=> $b } keys %unseen),
		"$how: to the first destination just that, under its ids");
	is(scalar(grep { $_ != 1 } map { values %$_ } values %times), 0, "$how: each once");
	is(scalar(keys %{ $times{'/rests'} }), 57, "$how: to the second what had waited and what it had not seen");
	is(scalar(grep { $delivered{$_} } keys %{ $times{'/rests'} }), 7,
		"$how: what had waited has the ids under which the first got it");

	is($now->("SELECT mlint.secret_get('password')"), $password, "$how: a secret");
	is($now->("SELECT mlint.secret_get('password', 1)"), 'one', "$how: a version of it before that");
	is($new->safe_psql('postgres', "SELECT mlint.secret_get('password')", extra_params => [ '-U', 'tenant' ]),
		$password, "$how: to whom it was granted");
	is($now->("SELECT mlint.secret_get('other')", 'second'), 'database', "$how: one of the second database");
	$now->("SELECT mlint.secret_rotate('password')");
	is($now->("SELECT mlint.secret_rotate_wait('password', '$MlintTest::deadline s')"), 't', "$how: it is rotated");
	isnt($now->("SELECT mlint.secret_get('password')"), $password, "$how: and another one");
	is($now->("SELECT state, key_secret FROM mlint.certificate_get('$certificate')"), 'ACTIVE|certificates/www', "$how: a certificate");
	is($now->('SELECT count(*) = 3, bool_and(mlint.archive_verify(id)) FROM mlint.archives'), 't|t', "$how: archives verify");
	is($now->("SELECT mlint.archive_restore(id) FROM mlint.archives WHERE session_id = 's5'"), 's5', "$how: one is restored from the store");
	$now->('SELECT talk($$new$$); SELECT mlint.archive_session($$new$$)');
	is($now->("SELECT mlint.archive_verify(id) FROM mlint.archives WHERE session_id = 'new'"), 't', "$how: and a new one made");
	like(($new->psql('postgres', "SELECT mlint.archive_delete(id) FROM mlint.archives WHERE session_id = 's4'"))[2],
		qr/hold/, "$how: a hold holds");
	is($now->("SELECT allowed FROM mlint.rate_check('api', 'bob')"), 't', "$how: a rate limit is asked");
	$now->('SELECT mlint.job_run_now($$event_retention$$)');
	wait_for_sql($new, "$how: jobs run",
		'SELECT count(*) > 0 FROM mlint.job_runs WHERE started_at > pg_postmaster_start_time() AND error IS NULL');
	ok(deliver($new, 'upgrade.new'), "$how: what is new is delivered");
	is($now->('SELECT mlint.audit_verify() IS NULL'), 't', "$how: the audit log is whole, and goes on");
	unlike(slurp_file($new->logfile), qr/PANIC|TRAP|terminated by signal/, "$how: and nothing died");
	$now->('DROP EXTENSION mlint CASCADE; CREATE EXTENSION mlint');
	$new->stop;
}

done_testing();
