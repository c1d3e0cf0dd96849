# Who may not: an administrator of mlint gets nothing of another role's by way
# of its destinations, nobody prepares the schema or the privileges before the
# extension comes, and credentials that were given in the wrong place are not in
# the server's log.

use strict;
use warnings;

use Test::More;

use MlintTest;
use PostgreSQL::Test::Utils;

# The log has the statements that fail, and no others.
my $node = mlint_node('privileges', create => 0, conf => "log_statement = none\n");

sub sql { return $node->safe_psql('postgres', $_[0]); }

# What psql prints of statements by a role: the answer, or the error.
sub by
{
	my ($role, $sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', $sql,
		on_error_stop => 1, extra_params => [ '-U', $role ]);
	return $rc == 0 ? $out : $err;
}

sql(<<'EOQ');
CREATE ROLE snoop LOGIN;
CREATE ROLE "Odd Role" LOGIN;
CREATE ROLE squatter LOGIN;
EOQ

# ---- a schema that somebody made before ----
sql('CREATE SCHEMA mlint AUTHORIZATION squatter');
my ($rc, $out, $err) = $node->psql('postgres', 'CREATE EXTENSION mlint');
isnt($rc, 0, 'CREATE EXTENSION does not adopt the schema of another role');
like($err, qr/schema "mlint" exists already and belongs to another role.*HINT: .*drop it, and run CREATE EXTENSION again/s,
	'... and says what to do');
sql('DROP SCHEMA mlint');

# ---- default privileges ----
sql(<<"EOQ") for 'PUBLIC', 'snoop', '"Odd Role"';
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO $_;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO $_;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO $_;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO $_;
EOQ
sql('CREATE TABLE public.open ()');
is(sql("SELECT has_table_privilege('snoop', 'public.open', 'DELETE')"), 't',
	'default privileges are set');
# These are there when the extension was there before. What they are given
# could not be told from what they are to have.
sql('CREATE ROLE mlint_user; ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO mlint_user');
{
	my ($rc, $out, $err) = $node->psql('postgres', 'CREATE EXTENSION mlint');
	like($err, qr/default privileges of role "postgres" grant something to a role of mlint/,
		'CREATE EXTENSION refuses default privileges for its own roles');
	like($err, qr/ALTER DEFAULT PRIVILEGES/, '... and says what to do');
}
sql('ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM mlint_user');
sql('CREATE EXTENSION mlint');
my $opened = <<'EOQ';
WITH acls AS (
	SELECT oid::regclass::text AS object, relowner AS owner, relacl AS acl, relkind AS kind
	FROM pg_class WHERE relnamespace = 'mlint'::regnamespace
	UNION ALL
	SELECT oid::regprocedure::text, proowner, coalesce(proacl, acldefault('f', proowner)), 'f'
	FROM pg_proc WHERE pronamespace = 'mlint'::regnamespace)
SELECT string_agg(object || ' ' || grantee::regrole, ', ' ORDER BY object)
FROM acls, aclexplode(acl)
WHERE grantee <> owner AND NOT (grantee::regrole::text IN ('mlint_admin', 'mlint_user', 'mlint_reader')
	AND (kind = 'v' AND privilege_type = 'SELECT' OR kind = 'f'))
EOQ
is(sql($opened), '', '... and CREATE EXTENSION opens nothing of mlint to them');
is(sql("SELECT has_schema_privilege('snoop', 'mlint', 'CREATE')"), 'f', '... nor the schema');
is(sql("SELECT has_table_privilege('mlint_user', 'mlint.event_types', 'SELECT')"), 't', '... but what is meant for all');
is(sql('SELECT mlint.segment_begin()'), 2, 'nor does another segment');
is(sql($opened), '', '... of the log');
# The schema is closed too; opened by hand, what is in it stays closed.
sql('GRANT USAGE ON SCHEMA mlint TO snoop, "Odd Role"');
foreach my $role ('snoop', 'Odd Role')
{
	foreach my $table (qw(event event_1 event_2 delivery_2 pending destination secret_version))
	{
		like(by($role, "SELECT * FROM mlint.$table"), qr/permission denied for table $table/,
			"$role may not read $table");
	}
	like(by($role, "SELECT nextval('mlint.event_id')"), qr/permission denied for sequence event_id/,
		'... nor take an id');
	like(by($role, "SELECT mlint.segment_begin()"), qr/permission denied for function segment_begin/,
		'... nor begin a segment');
	like(by($role, "SELECT mlint.secret_get('x')"), qr/permission denied for function secret_get/,
		'... nor get a secret');
}
sql(<<"EOQ") for 'PUBLIC', 'snoop', '"Odd Role"';
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM $_;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES FROM $_;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SCHEMAS FROM $_;
EOQ

# ---- other people's functions ----
sql(<<'EOQ');
CREATE ROLE admin LOGIN IN ROLE mlint_admin;
CREATE ROLE clerk LOGIN IN ROLE mlint_admin;
CREATE ROLE chief LOGIN IN ROLE mlint_admin, clerk;
GRANT CREATE ON SCHEMA public TO admin, clerk, chief;
CREATE TABLE public.calls (who text, what text);
GRANT INSERT, SELECT ON public.calls TO PUBLIC;
CREATE FUNCTION public.note(e jsonb) RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO calls VALUES (current_user, 'note'); END $$;
CREATE FUNCTION public.shape(e jsonb) RETURNS jsonb LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO calls VALUES (current_user, 'shape'); RETURN e; END $$;
SELECT mlint.destination_create('boss', 'function', '{"fn": "public.note"}', '{boss}');
SELECT mlint.destination_create('shaped', 'http',
	'{"url": "http://127.0.0.1:1/", "transform": "public.shape"}', '{shaped}');
EOQ
my $superuser = sql('SELECT current_user');
foreach my $name ('boss', 'shaped')
{
	like(by('admin', "SELECT mlint.destination_test('$name')"),
		qr/only members of role "$superuser", which created destination "$name", may test it/,
		"$name: an administrator may not call a superuser's function");
	like( by('admin', "SELECT mlint.destination_alter('$name', '{\"retry\": {\"max_retries\": 1}}')"),
		qr/only members of role "$superuser", which created destination "$name", may change its options/,
		'... nor alter its options');
}
like( by('admin', "SELECT mlint.destination_alter('boss', '{\"fn\": \"public.other\"}')"),
	qr/only members of role|does not exist/, '... nor have it call another');
is(sql('SELECT count(*) FROM public.calls'), 0, '... and it was not called');
is( sql("SELECT options->>'fn' FROM mlint.destinations WHERE name = 'boss'"),
	'public.note', '... and is as it was');
is(by('admin', "SELECT mlint.destination_alter('boss', enabled => false)"), '',
	'... but may stop it');

# Whoever may call it gets nothing mixed up: neither what is deferred, nor what
# is temporary.
is(by('clerk', "SELECT mlint.destination_create('clerk', 'function', '{\"fn\": \"public.note\"}', '{clerk}')"),
	'3', 'another role has a destination');
like(by('admin', "SELECT mlint.destination_test('clerk')"), qr/only members of role "clerk"/,
	'... which is not everybody\'s either');
is(by('clerk', "SELECT ok FROM mlint.destination_test('clerk')"), 't', '... but its own');
is(sql("SELECT string_agg(who, ',') FROM public.calls"), 'clerk', '... and runs as it');
sql('TRUNCATE public.calls');
foreach my $caller ('chief', $superuser)
{
	is( by($caller, <<'EOQ'),
CREATE FUNCTION public.later() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO public.calls VALUES (current_user, 'later'); RETURN NULL; END $$;
CREATE TABLE public.mine (a int);
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON public.mine
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.later();
BEGIN;
CREATE TEMP TABLE calls (who text, what text);
GRANT ALL ON calls TO PUBLIC;
INSERT INTO public.mine VALUES (1);
SELECT ok FROM mlint.destination_test('clerk');
SELECT string_agg(what || ' as ' || who, ', ') FROM public.calls;
COMMIT;
SELECT count(*) FROM pg_temp.calls;
DROP TABLE public.mine;
DROP FUNCTION public.later;
EOQ
		"t\nnote as clerk\n0",
		"$caller: the function sees no temporary table of the caller's, and runs none of its triggers");
	is( sql("SELECT string_agg(what || ' as ' || who, ', ' ORDER BY what) FROM public.calls"),
		"later as $caller, note as clerk", '... which run at commit, as the caller');
	sql('TRUNCATE public.calls');
}

# What the function defers does not run as the caller.
by('clerk', <<'EOQ');
CREATE FUNCTION public.trap() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO public.calls VALUES (current_user, 'trap'); RETURN NULL; END $$;
CREATE TABLE public.bait (a int);
CREATE CONSTRAINT TRIGGER trap AFTER INSERT ON public.bait
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.trap();
CREATE FUNCTION public.defer(e jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO public.bait VALUES (1) $$;
SELECT mlint.destination_create('defers', 'function', '{"fn": "public.defer"}', '{defers}');
EOQ
is(by($superuser, "SELECT ok FROM mlint.destination_test('defers')"), 'f',
	'a function that defers cannot be tested');
is(sql("SELECT count(*) FROM public.calls"), 0, '... and leaves the caller nothing');
delivery_is($node, deliver($node, 'defers'), 'delivered|1||', '... delivered to,');
is(sql("SELECT string_agg(what || ' as ' || who, ', ') FROM public.calls"), 'trap as clerk',
	'... what it defers runs as its owner');

# ---- credentials in the log ----
my $offset = -s $node->logfile;
sub refused
{
	my ($statement, $error, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like(by($superuser, $statement), $error, "$what is refused");
}
refused("SELECT 1 / 0 AS telltale", qr/division by zero/, 'a statement');
refused( q(SELECT mlint.destination_create('plain', 'http', '{"url": "http://127.0.0.1:1/", "auth": {"type": "bearer", "token": "hunter2"}}')),
	qr/token/, 'destination_create: a token in plain text');
refused( q(SELECT mlint.destination_create('no name!', 'http', '{"url": "http://127.0.0.1:1/", "auth": {"type": "bearer", "token": "hunter2"}}')),
	qr/ERROR/, '... with a bad name');
refused( q(SELECT mlint.destination_create('plain', 'http', '{"url": "http://127.0.0.1:1/", "signing_secret": "hunter2"}')),
	qr/signing_secret/, '... a signing secret');
refused( q(SELECT mlint.destination_alter('shaped', '{"auth": {"type": "bearer", "token": "hunter2"}}')),
	qr/token/, 'destination_alter: a token in plain text');
refused( q(SELECT mlint.destination_alter('nothing', '{"auth": {"type": "bearer", "token": "hunter2"}}')),
	qr/does not exist/, '... of what does not exist');
refused( q(SELECT mlint.secret_put('bad name!', 'hunter2')), qr/name/, 'secret_put: a bad name');
refused( q(DO $$ BEGIN EXECUTE format('SELECT mlint.secret_put(%L, %L)', 'bad name!', 'hunter2'); END $$),
	qr/name/, '... inside a function');
refused( q(DO $$ BEGIN PERFORM mlint.destination_create('plain', 'http', '{"url": "http://127.0.0.1:1/", "auth": {"type": "bearer", "token": "hunter2"}}'); END $$),
	qr/token/, 'destination_create inside a function');
my $log = slurp_file($node->logfile, $offset);
like($log, qr/STATEMENT:  SELECT 1 \/ 0 AS telltale/, 'the log has statements that fail');
is(scalar(() = $log =~ /ERROR:  /g), 9, '... all of these');
unlike($log, qr/hunter2/, '... but no credential');

$node->stop;
done_testing();
