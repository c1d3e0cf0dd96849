# Who may use what: the table in docs/security.md is what the catalog says,
# PUBLIC may use nothing of ours, tables and sequences are nobody's, and no
# default privileges change any of that, whenever they were set.

use strict;
use warnings;

use File::Basename qw(dirname);
use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $tree = "$FindBin::RealBin/../..";
my $node = mlint_node('privileges', create => 0);

sub sql { return $node->safe_psql($_[1] // 'postgres', $_[0]); }

# ---- what everything of ours is granted, one line a grantee and privilege ----
my $grants = <<'EOQ';
WITH acl AS (
	SELECT 'schema' AS kind, nspname AS object, nspowner AS owner,
		coalesce(nspacl, acldefault('n', nspowner)) AS acl
	FROM pg_namespace WHERE nspname = 'mlint'
	UNION ALL
	SELECT CASE relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' ELSE 'table' END,
		relname, relowner,
		coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
	FROM pg_class WHERE relnamespace = 'mlint'::regnamespace AND relkind NOT IN ('i', 'I', 'c')
	UNION ALL
	SELECT 'column', c.relname || '.' || a.attname, c.relowner, a.attacl
	FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
	WHERE c.relnamespace = 'mlint'::regnamespace AND a.attacl IS NOT NULL
	UNION ALL
	SELECT 'routine', oid::regprocedure::text, proowner, coalesce(proacl, acldefault('f', proowner))
	FROM pg_proc WHERE pronamespace = 'mlint'::regnamespace
	UNION ALL
	SELECT CASE WHEN c.relkind IN ('r', 'p') THEN 'row of table' ELSE 'type' END, t.typname,
		t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))
	FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
	WHERE t.typnamespace = 'mlint'::regnamespace AND t.typelem = 0)
SELECT concat_ws(' ', kind, object, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
	a.privilege_type, CASE WHEN a.is_grantable THEN 'grantable' END)
FROM acl, aclexplode(acl) a
WHERE a.grantee <> owner ORDER BY 1
EOQ

sub grants { return split /\n/, sql($grants, $_[0]); }

# No event or entry begins a segment or a month meanwhile.
sql('CREATE EXTENSION mlint');
my @plain = grants();
cmp_ok(scalar @plain, '>', 300, 'there are grants');
is(join("\n", grep { /\bPUBLIC\b/ } @plain), '', 'PUBLIC may use nothing');
is(join("\n", grep { !/ mlint_(user|reader|admin) \S+$/ } @plain),
	'', '... nor anybody but the roles of mlint, who may pass nothing on');
is(join("\n", grep { /^(table|row of table|sequence) / } @plain),
	'', 'tables, their rows and sequences are nobody\'s');
is(join("\n", grep { /^(view|column) / && !/ SELECT$/ } @plain), '', 'views can be read, no more');
is(join(' ', sort keys %{ { map { /^column (\w+)\.\S+ (\w+)/ ? ("$1:$2" => 1) : () } @plain } }),
	'archives:mlint_reader sessions:mlint_reader', '... two of them by readers in part');
is(join(', ', grep { /^schema / } @plain),
	join(', ', map { "schema mlint $_ USAGE" } qw(mlint_admin mlint_reader mlint_user)),
	'the schema can be used, nothing created in it');
is(sql(<<'EOQ'), '', 'and the extension has brought nothing else that could be granted');
SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend
WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
	AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'mlint')
	-- Who may cast is who may use the types.
	AND classid NOT IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass, 'pg_cast'::regclass)
EOQ
is(sql(<<'EOQ'), '', 'views read tables as their owner, and call functions as whoever reads them');
SELECT relname FROM pg_class
WHERE relnamespace = 'mlint'::regnamespace AND relkind = 'v'
	AND 'security_invoker=true' = ANY (reloptions)
EOQ

# ---- the table in the docs ----
my $copy = PostgreSQL::Test::Utils::tempdir() . '/docs';
system('cp', '-r', "$tree/docs", $copy) == 0 or die 'cp';
symlink "$tree/$_", dirname($copy) . "/$_" for qw(src Makefile);
my $print_docs = sub {
	system('sh', "$copy/privileges.sh", '-d', $node->connstr('postgres')) == 0
	  or return 'docs/privileges.sh failed';
	return slurp_file("$copy/security.md");
};
is($print_docs->(), slurp_file("$tree/docs/security.md"),
	'the table in docs/security.md is what the catalog says (else run docs/privileges.sh)');
unlike(slurp_file("$copy/security.md"), qr/in no room/, '... each object in its room');
sql('GRANT EXECUTE ON FUNCTION mlint.segment_begin() TO PUBLIC; GRANT SELECT ON mlint.job TO mlint_user');
my $opened = $print_docs->();
like($opened, qr/^\| `segment_begin\(\)` \| function, \*\*also PUBLIC\*\*/m, '... and would show what is PUBLIC\'s');
like($opened, qr/^\| `job` \| table \| yes \|/m, '... and a table that is granted');

# ---- default privileges, before and after the extension ----
sql('CREATE ROLE snoop; CREATE ROLE "Odd; ""Role"');
sub defaults
{
	my ($database, @roles) = @_;
	foreach my $role (@roles)
	{
		sql("ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO $role", $database)
		  for qw(TABLES SEQUENCES FUNCTIONS SCHEMAS TYPES);
	}
	return;
}
sql('CREATE DATABASE before');
defaults('before', 'PUBLIC', 'snoop', '"Odd; ""Role"');
sql('CREATE TABLE public.open ()', 'before');
is(sql("SELECT has_table_privilege('snoop', 'public.open', 'DELETE')", 'before'), 't',
	'default privileges are set');
sql('CREATE EXTENSION mlint', 'before');
is(join("\n", grants('before')), join("\n", @plain), 'CREATE EXTENSION opens nothing to them');

sql('CREATE DATABASE after');
sql('CREATE EXTENSION mlint', 'after');
defaults('after', 'PUBLIC', 'snoop', '"Odd; ""Role"', 'mlint_user', 'mlint_reader');
foreach my $kind (qw(TABLES SEQUENCES FUNCTIONS TYPES))
{
	sql("ALTER DEFAULT PRIVILEGES IN SCHEMA mlint GRANT ALL ON $kind TO PUBLIC, mlint_reader", 'after');
}
is(sql("SELECT has_table_privilege('mlint_reader', 'mlint.' || c, 'SELECT') FROM (VALUES ('event_1')) v(c)", 'after'),
	'f', 'set later, they change nothing');
is(sql('SELECT mlint.segment_begin(); SELECT mlint.audit_month_begin(299901)', 'after'), "2\n",
	'... and another segment of the log, and another month of the audit log,');
my $new = <<'EOQ';
SELECT string_agg(relname, ' ' ORDER BY relname COLLATE "C") FROM pg_class
WHERE relnamespace = 'mlint'::regnamespace AND relname IN ('event_2', 'delivery_2', 'audit_entry_299901')
EOQ
is(sql($new, 'after'), 'audit_entry_299901 delivery_2 event_2', '... are there');
is(join("\n", grants('after')), join("\n", @plain), '... and are nobody\'s');

# ---- what the roles may really do ----
sql('CREATE ROLE somebody LOGIN; GRANT CREATE ON SCHEMA public TO mlint_user, somebody', 'before');
sub by
{
	my ($role, $sql) = @_;
	my ($rc, $out, $err) = $node->psql('before', $sql, extra_params => [ '-U', $role ]);
	return $rc == 0 ? $out : $err;
}
sql('CREATE ROLE service LOGIN IN ROLE mlint_user', 'before');
like(by('somebody', 'SELECT NULL::mlint.rate_decision'), qr/permission denied for schema mlint/,
	'a role without ours does not get into the schema');
sql('GRANT USAGE ON SCHEMA mlint TO somebody', 'before');
like(by('somebody', 'CREATE TABLE public.rows (e mlint.event)'), qr/permission denied for type mlint\.event/,
	'... and with the schema opened cannot make a table depend on a type of ours');
like(by('service', 'CREATE TABLE public.rows (e mlint.event)'), qr/permission denied for type mlint\.event/,
	'nor can a mlint_user with a table\'s');
is(by('service', 'CREATE FUNCTION public.left(d mlint.rate_decision) RETURNS bigint LANGUAGE sql RETURN d.remaining'),
	'', '... but what functions return may be an argument of his own');

$node->stop;
done_testing();
