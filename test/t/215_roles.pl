# What belongs to a role stays its own when it is renamed, is run as nobody when
# it is dropped (least of all as the next of its name), can be given to another,
# and goes by name into another cluster, where a name that is not known costs
# neither the other rows nor anybody his privileges.

use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SecretTest;
use Test::More;

my $mounts = PostgreSQL::Test::Utils::tempdir();
my $node = mlint_node('main', conf => "mlint.secret_mount_directory = '$mounts'\n");

sub sql { return $node->safe_psql('postgres', $_[0]); }

my $bob = q{"Bob""; drop table x; --"};
my $bob_is = q{Bob"; drop table x; --};
sql(<<"EOQ");
CREATE ROLE $bob LOGIN;
CREATE ROLE carol LOGIN;
CREATE ROLE dave LOGIN;
GRANT mlint_admin TO $bob, carol, dave;
CREATE TABLE ran (role text, what text);
GRANT ALL ON ran TO $bob, carol;
GRANT CREATE ON SCHEMA public TO PUBLIC;
SET ROLE $bob;
CREATE FUNCTION ran(event jsonb) RETURNS void LANGUAGE sql AS \$\$
	INSERT INTO public.ran VALUES (current_user, event->>'type') \$\$;
CREATE FUNCTION generate(name text) RETURNS text LANGUAGE sql AS \$\$
	SELECT current_user || clock_timestamp() \$\$;
SELECT mlint.destination_create('runs', 'function',
	'{"fn": "public.ran", "retry": {"max_retries": 100, "initial_delay_ms": 100, "max_delay_ms": 300}, "breaker": {"threshold": 0}}', '{runs}');
SELECT mlint.secret_put('his', 'value');
SELECT mlint.secret_rotation_set('his', '30 days', '{"function": "public.generate"}');
SELECT mlint.secret_mount_create('his', 'his');
SELECT mlint.dns_provider_create('dns', 'function', '{"function": "public.ran", "zone": "example.com"}');
SELECT mlint.acme_account_create('account', 'https://127.0.0.1:1/dir', NULL);
SELECT mlint.certificate_issue('{a.example.com}', 'account', name => 'certificate');
SELECT mlint.certificate_target_create(id, 'destination', '{"destination": "runs"}', name => 'target')
FROM mlint.certificates;
RESET ROLE;
EOQ

# Each column that names a role is listed by the view and given away by the
# function; whoever adds one adds it there, and here.
my $columns = sql(<<'EOQ');
SELECT string_agg(attrelid::regclass || '.' || attname, ' ' ORDER BY 1)
FROM (SELECT attrelid, attname FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
	WHERE atttypid = 'mlint.role_id'::regtype AND relkind = 'r'
	ORDER BY attrelid::regclass::text) a
EOQ
is($columns, join(' ', qw(mlint.acme_account.created_by mlint.acme_challenge.owner
	mlint.certificate.created_by mlint.certificate_target.created_by
	mlint.destination.owner mlint.dns_provider.created_by mlint.secret_grant.role
	mlint.secret_mount.created_by mlint.secret_rotation.owner)), 'these columns name a role');
is(sql(<<'EOQ'), '', '... and no other does by number');
SELECT attrelid::regclass, attname FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
WHERE relnamespace = 'mlint'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0
AND (atttypid = ANY ('{oid,regrole,regproc,regprocedure,regclass,regtype,regnamespace}'::regtype[])
	OR atttypid = 'oid[]'::regtype)
EOQ

my @kinds = sort('acme account', 'certificate', 'certificate target', 'destination',
	'dns provider', 'mount', 'rotation', 'secret');
sub owned
{
	my ($role) = @_;
	return sql("SELECT string_agg(DISTINCT kind, ', ' ORDER BY kind) FROM mlint.owned WHERE role IS NOT DISTINCT FROM "
		  . (defined $role ? literal($role) : 'NULL'));
}
is(owned($bob_is), join(', ', @kinds), 'mlint.owned lists what is his, of every room');

# ---- ALTER ROLE RENAME ----
sql("SELECT mlint.secret_grant('other/*', " . literal($bob_is) . ", 'read')");
deliver($node, 'runs');
is(sql('SELECT DISTINCT role FROM ran'), $bob_is, 'his function runs as he');
sql("ALTER ROLE $bob RENAME TO robert; TRUNCATE ran");
sql("CREATE ROLE $bob LOGIN; GRANT mlint_user TO $bob");
is(owned('robert'), join(', ', @kinds), 'renamed, he has what he had');
is(owned($bob_is), '', '... and who now has his name has nothing');
deliver($node, 'runs');
is(sql('SELECT DISTINCT role FROM ran'), 'robert', '... his function runs as he');
is(sql("SET ROLE $bob; SELECT mlint.secret_privileges('his') || mlint.secret_privileges('other/x')"),
	'{}', '... and grants are his, not his name\'s');
is(sql("SET ROLE robert; SELECT 'read' = ANY (mlint.secret_privileges('his'))"), 't', '... truly');

# ---- REASSIGN OWNED, DROP OWNED: know of the role's objects, not of ours ----
sql('REASSIGN OWNED BY robert TO carol; DROP OWNED BY robert');
is(owned('robert'), join(', ', @kinds), 'REASSIGN OWNED and DROP OWNED leave alone what is in mlint');

# ---- DROP ROLE ----
sql("GRANT ALL ON ran TO carol; TRUNCATE ran; DROP ROLE $bob; DROP ROLE robert; CREATE ROLE robert LOGIN; GRANT mlint_admin TO robert;"
	. "GRANT ALL ON ran TO robert; GRANT EXECUTE ON FUNCTION ran(jsonb) TO robert");
is(owned(undef), join(', ', @kinds), 'dropped, he leaves it to nobody');
is(owned('robert'), '', '... nor to the next of that name');
is(sql("SELECT count(*) FROM mlint.destinations WHERE owner IS NULL"), 1, '... as the views say');
is(sql("SET ROLE robert; SELECT mlint.secret_privileges('his')"),
	'{read,write,rotate,admin}', '(who is an administrator)');
my $event = publish($node, 'runs');
wait_for_sql($node, 'a destination of his runs nothing, and says why',
	"SELECT state = 'pending' AND error LIKE '%the role that created the destination does not exist any more%' FROM mlint.deliveries WHERE event_id = $event");
sql("SELECT mlint.secret_rotate('his')");
wait_for_sql($node, 'nor does a rotation',
	"SELECT last_error LIKE '%the role that set the rotation does not exist any more%' FROM mlint.rotations");
like(answer($node, "SELECT mlint.dns_provider_test('dns', 'example.com')"),
	qr/does not exist any more.*HINT: .*mlint\.owned_reassign\(NULL, 'role'\)/s, 'nor a DNS provider, which says what to do');
is(sql('SELECT count(*) FROM ran'), 0, 'nothing was run as anybody');

# ---- giving it to somebody ----
like(answer($node, "SET ROLE dave; SELECT mlint.owned_reassign(NULL, 'carol')"),
	qr/42501.*permission denied.*member of role "carol"/s, 'only to a role that the caller is a member of');
like(answer($node, "SET ROLE dave; SELECT mlint.owned_reassign('carol', 'dave')"),
	qr/42501.*both roles/s, '... and from one');
like(answer($node, "SELECT mlint.owned_reassign('nobody', 'dave')"), qr/42704.*role "nobody" does not exist/, '... that there is');
like(answer($node, "SELECT mlint.owned_reassign('dave', NULL)"), qr/22004.*new_role must not be null/, '... and to one');
my $n = sql("SELECT count(*) FROM mlint.owned WHERE role IS NULL");
is(sql("SET ROLE carol; SELECT mlint.owned_reassign(NULL, 'carol')"), $n, 'carol takes it');
is(owned('carol'), join(', ', @kinds), '... all');
is(owned(undef), '', '... so that nothing is left');
is(sql("SELECT count(*) FROM mlint.secret_grants WHERE role IS NULL"), 0, '... and what he was granted is gone');
ok(wait_for_delivery($node, $event), 'what waited is delivered');
is(sql('SELECT role FROM ran'), 'carol', '... as her');
is(sql("SELECT action || ' ' || details::text FROM mlint.audit_log WHERE action = 'owned.reassign' AND outcome = 'ok' AND object IS NULL"),
	'owned.reassign {"new_role": "carol"}', '... and audited');
is(sql("SET ROLE carol; SELECT mlint.owned_reassign('carol', 'carol') > 0"), 't', 'by a member of both: herself');

# Altering what has no owner takes it over.
sql("CREATE ROLE eve; GRANT mlint_admin TO eve; GRANT EXECUTE ON FUNCTION ran(jsonb) TO eve");
sql("SET ROLE eve; SELECT mlint.destination_create('hers', 'function', '{\"fn\": \"public.ran\"}', '{hers}')");
sql("DROP OWNED BY eve; DROP ROLE eve");
like(answer($node, "SET ROLE dave; SELECT mlint.destination_test('hers')"), qr/42704.*the role that created the destination does not exist any more/,
	'testing it runs nothing');
sql("GRANT EXECUTE ON FUNCTION ran(jsonb) TO dave; GRANT INSERT ON ran TO dave; SET ROLE dave; SELECT mlint.destination_alter('hers', '{\"timeout_ms\": 1000}')");
deliver($node, 'hers');
is(sql("SELECT role FROM ran WHERE what = 'hers'"), 'dave', 'who alters it becomes its owner');

# ---- as text: by name, whatever the numbers ----
is(sql("COPY (SELECT owner FROM mlint.destination WHERE dropped_at IS NULL ORDER BY name) TO STDOUT"), "dave\ncarol",
	'a dump has names');
my ($rc, $out, $err) = $node->psql('postgres', <<'EOQ');
CREATE TEMP TABLE copy (role mlint.role_id, what text);
COPY copy FROM STDIN;
carol	known
nobody, "really"	unknown
	gone
16384	a number is a name like any other
\.
SELECT string_agg(what || '=' || role::oid::regrole || '=' || role::text, ', ' ORDER BY what) FROM copy;
EOQ
is($out, 'a number is a name like any other=-=, gone=-=, known=carol=carol, unknown=-=',
	'a name that is not known is nobody, and the other rows come in');
like($err, qr/WARNING:  role "nobody, "really"" does not exist\nDETAIL: .*\nHINT: .*mlint\.owned_reassign/, '... with a warning');
unlike($err, qr/ERROR/, '... and no error');

$node->stop;
done_testing();
