# Every function, procedure and view of mlint, and its workers, in a database
# whose owner has prepared traps: functions, operators, casts, types and
# relations of the names that ours use, in schemas that come first, and in
# pg_temp. Nothing of it runs as the owner of mlint, and nobody becomes
# superuser. Nor does what destinations, rotations and the like call.

use strict;
use warnings;

use CallsTest;
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mlint_node('hostile', create => 0, conf => "log_statement = none\nfsync = off\n");
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

$node->safe_psql('postgres', $_) for split /;\n/, <<'EOQ';
CREATE ROLE mallory LOGIN;
CREATE DATABASE theirs OWNER mallory;
CREATE DATABASE ours OWNER mallory
EOQ
foreach my $db ('theirs', 'ours')
{
	$node->safe_psql($db, 'CREATE EXTENSION mlint; GRANT mlint_admin TO mallory; GRANT CREATE ON SCHEMA public TO mallory');
}

# Who is caught says so in the server's log, which no rollback undoes, and makes
# mallory a superuser if it can. What it stands for is done as it should be, so
# that what comes after is reached, too.
my $traps = <<'EOQ';
CREATE SCHEMA trap;
GRANT USAGE ON SCHEMA trap TO PUBLIC;
CREATE FUNCTION trap.spring(what text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RAISE LOG 'trap % sprung as %', what, current_user;
	IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user) THEN
		ALTER ROLE mallory SUPERUSER;
	END IF;
	RETURN true;
END $$;
DO $$
DECLARE
	r record;
	n int := 0;
	made int := 0;
BEGIN
	-- functions
	FOR r IN SELECT p.proname, oidvectortypes(p.proargtypes) AS args, p.proretset,
			format_type(p.prorettype, NULL) AS result
		FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f'
			AND NOT EXISTS (SELECT FROM unnest(array_append(p.proargtypes::oid[], p.prorettype)) a(t)
				JOIN pg_type t ON t.oid = a.t WHERE t.typtype = 'p'
				AND t.typname NOT IN ('void', 'record', 'anyelement', 'anyarray', 'anynonarray'))
			-- else each comment and each default needs one
			AND p.proname !~ '^(int[248]|float[48]|text|numeric|bool|name|oid)?(in|out|recv|send)$'
	LOOP
		BEGIN
			EXECUTE format('CREATE FUNCTION trap.%I(%s) RETURNS %s %s LANGUAGE plpgsql AS %L',
				r.proname, r.args, CASE WHEN r.proretset THEN 'SETOF' ELSE '' END, r.result,
				format('BEGIN PERFORM trap.spring(%L); RETURN%s; END', 'function ' || r.proname,
					CASE WHEN r.proretset OR r.result = 'void' THEN '' ELSE ' NULL' END));
			made := made + 1;
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END;
	END LOOP;
	RAISE LOG 'traps: % functions', made;
	-- aggregates
	FOR r IN SELECT p.proname, oidvectortypes(p.proargtypes) AS args FROM pg_proc p
		WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'a'
			AND p.proname IN ('count', 'max', 'min', 'sum', 'string_agg', 'bool_or', 'bool_and')
			AND NOT EXISTS (SELECT FROM unnest(p.proargtypes) a(t)
				JOIN pg_type t ON t.oid = a.t WHERE t.typtype = 'p')
	LOOP
		n := n + 1;
		EXECUTE format('CREATE FUNCTION trap.step_%s(%s) RETURNS text LANGUAGE sql AS %L', n,
			concat_ws(', ', 'text', nullif(r.args, '')),
			format('SELECT trap.spring(%L)::pg_catalog.text', 'aggregate ' || r.proname));
		EXECUTE format('CREATE AGGREGATE trap.%I(%s) (sfunc = trap.step_%s, stype = text)',
			r.proname, coalesce(nullif(r.args, ''), '*'), n);
	END LOOP;
	-- operators: those that there are, and better matches for mixed types
	FOR r IN
		SELECT o.oprname, format_type(nullif(o.oprleft, 0), NULL) AS l,
			format_type(o.oprright, NULL) AS rt, format_type(o.oprresult, NULL) AS result
		FROM pg_operator o WHERE o.oprnamespace = 'pg_catalog'::regnamespace
			AND NOT EXISTS (SELECT FROM pg_type t WHERE t.typtype = 'p'
				AND t.oid IN (o.oprleft, o.oprright, o.oprresult))
		UNION
		SELECT op, l, rt, CASE op WHEN '||' THEN 'text' WHEN '+' THEN 'bigint' WHEN '-' THEN 'bigint' ELSE 'boolean' END
		FROM unnest('{=,<>,<,<=,>,>=,||,~,~~,!~,+,-,->>,@>,&&}'::text[]) op,
			unnest('{text,name,"\"char\"",integer,bigint,oid,jsonb,interval,numeric,regclass,timestamptz}'::text[]) l,
			unnest('{text,name,"\"char\"",integer,bigint,oid,jsonb,interval,numeric,regclass,timestamptz}'::text[]) rt
		WHERE NOT EXISTS (SELECT FROM pg_operator o WHERE o.oprname = op
			AND o.oprleft = l::regtype AND o.oprright = rt::regtype)
	LOOP
		n := n + 1;
		EXECUTE format('CREATE FUNCTION trap.op_%s(%s) RETURNS %s LANGUAGE plpgsql AS %L', n,
			concat_ws(', ', r.l, r.rt), r.result, format('BEGIN PERFORM trap.spring(%L); RETURN NULL; END',
				concat_ws(' ', 'operator', r.l, r.oprname, r.rt)));
		BEGIN
			EXECUTE format('CREATE OPERATOR trap.%s (FUNCTION = trap.op_%s%s, RIGHTARG = %s)', r.oprname, n,
				', LEFTARG = ' || r.l, r.rt);
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END;
	END LOOP;
	-- relations: those of the catalog as views with the same columns, ours as others
	FOR r IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'pg_catalog'::regnamespace
		AND c.relkind IN ('r', 'v')
	LOOP
		BEGIN
			EXECUTE format('CREATE VIEW trap.%I AS SELECT c.*, trap.spring(%L) AS sprung FROM pg_catalog.%I c',
				r.relname, 'relation ' || r.relname, r.relname);
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END;
	END LOOP;
	FOR r IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'mlint'::regnamespace
		AND c.relkind IN ('r', 'p', 'v')
	LOOP
		EXECUTE format('CREATE VIEW trap.%I AS SELECT trap.spring(%L) AS sprung', r.relname,
			'relation ' || r.relname);
	END LOOP;
	-- types
	FOR r IN SELECT t.typname FROM pg_type t WHERE t.typnamespace = 'pg_catalog'::regnamespace
		AND t.typtype = 'b' AND t.typelem = 0
	LOOP
		BEGIN
			EXECUTE format('CREATE DOMAIN trap.%I AS pg_catalog.%I CHECK (trap.spring(%L))', r.typname, r.typname,
				'type ' || r.typname);
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END;
	END LOOP;
END $$;
-- an argument that becomes what is asked for by a cast of its own
CREATE TYPE trap.evil AS (a pg_catalog.text);
CREATE FUNCTION trap.evil_text(trap.evil) RETURNS pg_catalog.text LANGUAGE sql AS
	$$ SELECT CASE WHEN trap.spring('cast to text') THEN ($1).a END $$;
CREATE CAST (trap.evil AS pg_catalog.text) WITH FUNCTION trap.evil_text(trap.evil) AS IMPLICIT;
CREATE FUNCTION trap.evil_jsonb(trap.evil) RETURNS pg_catalog.jsonb LANGUAGE sql AS
	$$ SELECT CASE WHEN trap.spring('cast to jsonb') THEN ($1).a::pg_catalog.jsonb END $$;
CREATE CAST (trap.evil AS pg_catalog.jsonb) WITH FUNCTION trap.evil_jsonb(trap.evil) AS IMPLICIT;
CREATE FUNCTION trap.leak(pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql COST 0.0000001 AS
	$$ BEGIN RETURN trap.spring('leaky function'); END $$;
EOQ
# In each session of mallory's own, besides.
my $temporary = <<'EOQ';
DO $$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT c.relname FROM pg_catalog.pg_class c
		WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind IN ('r', 'p', 'v')
			OR c.relnamespace = 'pg_catalog'::regnamespace AND c.relname IN
				('pg_class', 'pg_proc', 'pg_roles', 'pg_authid', 'pg_type', 'pg_extension', 'pg_namespace',
				'pg_depend', 'pg_inherits', 'pg_database', 'pg_stat_activity', 'pg_settings', 'pg_attribute')
	LOOP
		EXECUTE format('CREATE TEMP VIEW %I AS SELECT trap.spring(%L) AS sprung', r.relname,
			'temporary relation ' || r.relname);
	END LOOP;
	FOR r IN SELECT unnest('{text,jsonb,int4,int8,bool,uuid,timestamptz,interval,regclass,oid,name,bytea}'::text[]) AS name
	LOOP
		EXECUTE format('CREATE DOMAIN pg_temp.%I AS pg_catalog.%I CHECK (trap.spring(%L))', r.name, r.name,
			'temporary type ' || r.name);
	END LOOP;
END $$;
EOQ

sub as_mallory
{
	my ($db, $sql) = @_;
	return $node->psql($db, $sql, on_error_stop => 1, extra_params => [ '-U', 'mallory', '-v', 'VERBOSITY=verbose' ]);
}

my %id;
my %procedures = map { $_ => 1 } split /\n/, $node->safe_psql('ours',
	"SELECT proname FROM pg_proc WHERE pronamespace = 'mlint'::regnamespace AND prokind = 'p'");
foreach my $db ('theirs', 'ours')
{
	$id{$db} = calls_setup($node, $db, $db eq 'ours' ? $superuser : 'mallory');
	my ($rc, undef, $err) = as_mallory($db, $traps);
	is($rc, 0, "$db: traps are set") or diag $err;
}
is(join("\n", calls_missing($node, 'ours')), '', 'each function of mlint is called here');

# The tables of our own, with the traps of one's own first in the search_path:
# whom they catch. Returns SQLSTATEs that were not expected.
my $first = 'SET search_path = trap, pg_temp, pg_catalog';
sub sprung
{
	my ($offset) = @_;
	my %as;
	my $log = slurp_file($node->logfile, $offset);

	while ($log =~ /LOG:  trap (.*) sprung as (\S+)/g)
	{
		$as{$2}{$1}++;
	}
	return \%as;
}
sub caught { return join ', ', sort keys %{ sprung($_[0])->{$superuser} // {} }; }

# They do work.
my $offset = -s $node->logfile;
as_mallory('theirs', "$temporary\n$first; SELECT count(*), 1 + 1, lower('A'), 'a'::pg_catalog.name = 'b'::pg_catalog.text; SELECT * FROM pg_temp.pg_class; RESET search_path; SELECT trap.evil_text(ROW('x'))");
my $mine = join ' ', sort keys %{ sprung($offset)->{mallory} };
like($mine, qr/\Q$_\E/, "the traps work: $_")
  for 'function lower', 'operator name = text', 'operator integer + integer', 'aggregate count', 'temporary relation pg_class', 'cast to text';
like(join(' ', as_mallory('theirs', 'SELECT trap.spring(NULL)')), qr/t/, '... as whoever steps into them');

# One session with all of the calls; what went wrong otherwise than it may.
sub run_calls
{
	my ($db, $role, $begin, @calls) = @_;
	my @odd;
	my ($rc, undef, $err) = $node->psql($db, join("\n", $begin,
			map { ("\\warn call $_", statement($calls[$_], \%procedures) . ';') } 0 .. $#calls),
		on_error_stop => 0, extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);

	like($err, qr/^call $#calls$/m, 'a session goes through all of the calls');
	foreach my $part (split /^call /m, $err)
	{
		next unless $part =~ /^(\d+)\n.*?(?:ERROR|FATAL):  (\w{5}): (.*?)$/ms;
		my ($call, $state, $message) = ($calls[$1], $2, $3);
		push @odd, "$call->[0]: $state $message" unless $state =~ /^(?:$call->[2])$/;
	}
	return join "\n", @odd;
}

# ---- a superuser who calls them, the private ones and procedures too ----
$offset = -s $node->logfile;
is(run_calls('ours', $superuser, 'SET search_path = trap, pg_catalog;', calls($id{ours})),
	'', 'a superuser with a search_path full of traps: each call does what it should');
is(caught($offset), '', '... and steps into none of them');

# ---- mallory, an administrator of mlint ----
$offset = -s $node->logfile;
my %may = map { $_ => 1 } split /\n/, $node->safe_psql('theirs',
	"SELECT proname FROM pg_proc WHERE pronamespace = 'mlint'::regnamespace AND has_function_privilege('mallory', oid, 'EXECUTE')");
my @calls = grep { $may{ $_->[0] =~ s/\(.*//r } } calls($id{theirs});
is(run_calls('theirs', 'mallory', "$first;", @calls), '', 'mallory: each call does what it should');
is(caught($offset), '', '... and nothing of his runs as the owner');
{
	# All in one session, whose temporary objects stand in the way as well.
	run_calls('theirs', 'mallory', "$temporary\n$first;", @calls);
	is(caught($offset), '', '... with temporary objects of all names, too');
	# Arguments that are cast, and domains with checks.
	foreach my $type ('ROW(%s)::trap.evil', '%s::trap.text')
	{
		my $arguments = sub { my ($call) = @_; my @a = @{ $call->[1] };
			return [ $call->[0], [ map { $_ % 2 && $a[$_] =~ /^'/ && $a[ $_ - 1 ] =~ /name|rule|type|content|query|_id$/
				? sprintf($type, $a[$_]) : $a[$_] } 0 .. $#a ] ]; };
		run_calls('theirs', 'mallory', "$temporary\n$first;", map { $arguments->($_) } @calls);
	}
	is(caught($offset), '', '... with arguments that have casts and checks of his own');
	like(join(', ', sort keys %{ sprung($offset)->{mallory} }), qr/cast to text.*type text/, '... which ran, as him');
}
my @views = split /\n/, $node->safe_psql('theirs',
	"SELECT relname FROM pg_class WHERE relnamespace = 'mlint'::regnamespace AND relkind = 'v' ORDER BY 1");
$node->psql('theirs', join("\n", $temporary, "$first;",
		map { "SELECT * FROM mlint.$_ v WHERE trap.leak(pg_catalog.to_jsonb(v)::pg_catalog.text);" } @views),
	on_error_stop => 0, extra_params => [ '-U', 'mallory' ]);
is(caught($offset), '', '... nor with a view whose condition is his');

# ---- the workers, in a database that is set to look into the trap first ----
my @settings = (
	'search_path = trap, pg_catalog', "role = 'mallory'", "session_authorization = 'mallory'", 'transform_null_equals = on', "default_transaction_read_only = on",
	'array_nulls = off', "DateStyle = 'Postgres, DMY'", "IntervalStyle = 'sql_standard'", "bytea_output = 'escape'",
	'standard_conforming_strings = off', 'statement_timeout = 1', 'lock_timeout = 1', "client_encoding = 'LATIN1'",
	'row_security = off', 'default_transaction_isolation = serializable', 'extra_float_digits = -15',
	'enable_indexscan = off', 'quote_all_identifiers = on', "TimeZone = 'Pacific/Chatham'");
{
	my ($rc, undef, $err) = as_mallory('theirs', join ';', map { "ALTER DATABASE theirs SET $_" } @settings);
	is($rc, 0, 'the owner of a database sets whatever may be set') or diag $err;
}
$offset = -s $node->logfile;
$node->restart;
my $jobs = $node->safe_psql('ours', 'SELECT count(*) FROM mlint.job');
$node->safe_psql('postgres', 'CREATE DATABASE watcher');
# A connection to the database gets its settings: leave those out here.
sub clean
{
	local $ENV{PGOPTIONS} = join ' ', map { "-c $_" } 'search_path=public', 'role=none', 'statement_timeout=0',
	  'lock_timeout=0', 'default_transaction_read_only=off', 'client_encoding=UTF8', 'DateStyle=ISO',
	  'standard_conforming_strings=on', 'default_transaction_isolation=read\\ committed', 'IntervalStyle=postgres';
	return $node->safe_psql('theirs', $_[0]);
}
clean('UPDATE mlint.job SET enabled = true, next_run_at = now()');
clean("SELECT mlint.destination_create('gone', 'http', '{\"url\": \"http://127.0.0.1:1/\", \"retry\": {\"max_retries\": 0}}', '{gone}')");
my $event = clean("SELECT mlint.publish('gone', '{}')");
{
	my $last = '';
	ok(wait_for('every job runs, whatever the database is set to', sub
			{
				# Nobody is where the store is said to be.
				$last = clean('SELECT string_agg(name || \': \' || coalesce(last_error, \'?\'), chr(10)) FROM mlint.jobs WHERE last_finished_at IS NULL OR last_error NOT LIKE \'% could not be moved or deleted\'');
				return $last eq '';
			})) or diag $last;
}
is(clean("SELECT mlint.event_wait($event, '60 s')"), 't', '... and the dispatcher delivers');
is(clean("SELECT state FROM mlint.deliveries WHERE event_id = $event"), 'dead', '... or finds that nobody is there');
is(clean("SELECT count(*) > 0 FROM mlint.audit_log WHERE action = 'destination.create' AND object = 'gone'"), 't',
	'... and the auditor writes');
is(caught($offset), '', '... and none of them steps into a trap');

# ---- what destinations, transforms, rotations and solvers call ----
my $escapes = <<'EOQ';
CREATE SCHEMA lair;
GRANT USAGE ON SCHEMA lair TO PUBLIC;
CREATE TABLE lair.report (way text, who text, result text);
GRANT INSERT ON lair.report TO PUBLIC;
CREATE TABLE lair.bait (a int);
CREATE FUNCTION lair.later() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO lair.report VALUES ('deferred', current_user, 'ran'); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON lair.bait
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION lair.later();
GRANT INSERT ON lair.bait TO PUBLIC;
CREATE FUNCTION lair.escape() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	way text;
BEGIN
	FOREACH way IN ARRAY ARRAY[
		'SET ROLE NONE', 'RESET ROLE', 'SET SESSION AUTHORIZATION DEFAULT', 'RESET SESSION AUTHORIZATION',
		'SELECT set_config(''role'', ''none'', false)', 'SELECT set_config(''session_authorization'', ''default'', false)',
		'ALTER ROLE mallory SUPERUSER', 'CREATE TEMP TABLE event (a int)',
		'CREATE TEMP TABLE t (a int) ON COMMIT DROP',
		'CREATE TEMP VIEW pg_class AS SELECT trap.spring(''view'')', 'LISTEN mlint',
		'SET CONSTRAINTS ALL DEFERRED', 'INSERT INTO lair.bait VALUES (1)',
		'SET search_path = trap, pg_catalog', 'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY',
		'SET statement_timeout = 1', 'SET default_transaction_read_only = on',
		'PREPARE mine AS SELECT 1', 'COPY lair.bait TO PROGRAM ''true''', 'LOAD ''plpgsql''',
		'SELECT mlint.segment_begin()', 'SELECT * FROM mlint.secret_version', 'SELECT pg_catalog.pg_read_file(''postmaster.pid'')',
		'UPDATE pg_catalog.pg_authid SET rolsuper = true WHERE rolname = ''mallory'''
	] LOOP
		BEGIN
			EXECUTE way;
			INSERT INTO lair.report VALUES (way, current_user, 'done');
		EXCEPTION WHEN OTHERS THEN
			INSERT INTO lair.report VALUES (way, current_user, sqlstate);
		END;
	END LOOP;
	BEGIN
		EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT trap.spring(''cursor'')';
		INSERT INTO lair.report VALUES ('holdable', current_user, 'done');
	EXCEPTION WHEN OTHERS THEN
		INSERT INTO lair.report VALUES ('holdable', current_user, sqlstate);
	END;
END $$;
CREATE FUNCTION lair.called(e jsonb) RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN PERFORM lair.escape(); END $$;
CREATE FUNCTION lair.transformed(e jsonb) RETURNS jsonb LANGUAGE plpgsql AS
	$$ BEGIN PERFORM lair.escape(); RETURN e; END $$;
CREATE FUNCTION lair.generated(name text) RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN PERFORM lair.escape(); RETURN 'a value that was generated'; END $$;
SELECT mlint.destination_create('called', 'function', '{"fn": "lair.called"}', '{lair}');
SELECT mlint.destination_create('transformed', 'http',
	'{"url": "http://127.0.0.1:1/", "transform": "lair.transformed", "retry": {"max_retries": 0}}', '{lair}');
SELECT mlint.secret_rotation_set('own/turned', '30 days', '{"kind": "function", "function": "lair.generated"}');
SELECT mlint.secret_rotate('own/turned');
EOQ
{
	local $ENV{PGOPTIONS} = '-c search_path=public -c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed';
	my ($rc, undef, $err) = as_mallory('theirs', $escapes);
	is($rc, 0, 'functions that try to get out') or diag $err;
}
$offset = -s $node->logfile;
$event = clean("SELECT mlint.publish('lair', '{}')");
clean("SELECT mlint.event_wait($event, '60 s')");
wait_for('the secret was rotated', sub { clean("SELECT version FROM mlint.secrets WHERE name = 'own/turned'") > 1 });
is(clean("SELECT string_agg(DISTINCT who, ',') FROM lair.report"), 'mallory', 'they run as who named them');
cmp_ok(clean("SELECT count(*) FROM lair.report WHERE way = 'holdable'"), '>=', 3, '... a destination\'s, a transform and a generator');
is(clean("SELECT string_agg(DISTINCT way COLLATE \"C\", '; ' ORDER BY way COLLATE \"C\") FROM lair.report WHERE result = 'done'"),
	'SET CONSTRAINTS ALL DEFERRED; SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; SET default_transaction_read_only = on; SET search_path = trap, pg_catalog; SET statement_timeout = 1',
	'... and what they may do is nothing that leads out');
is(caught($offset), '', 'nothing ran as the owner');
$event = clean("SELECT mlint.publish('gone', '{}')");
is(clean("SELECT mlint.event_wait($event, '60 s')"), 't', 'and what they have set does not outlast them');

is($node->safe_psql('postgres', "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'"), 'f',
	'mallory is no superuser');
$node->stop;
done_testing();
