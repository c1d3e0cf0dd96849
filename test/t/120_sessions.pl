# Sessions where one connection to one database is not enough: many clients on
# few sessions, read on a standby, ids and texts in another encoding.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = mlint_node('primary', allows_streaming => 1);

sub sql
{
	my ($query, $database) = @_;
	return $primary->safe_psql($database // 'postgres', $query);
}

# What a statement that must fail says.
sub failure
{
	my ($node, $query, $database) = @_;
	my ($rc, $out, $err) = $node->psql($database // 'postgres', $query);
	return $rc == 0 ? "it succeeded: $out" : $err;
}

# ---- many clients ----

# All at once register, speak, end, resume and delete the same few sessions;
# each may find another's work in its way, and nobody may find half of it.
$primary->append_conf('postgresql.conf', "deadlock_timeout = 100ms\n");
$primary->reload;
my $script = PostgreSQL::Test::Utils::tempdir() . '/clients.sql';
append_to_file($script, <<'EOS');
\set n random(1, 4)
\set m random(1, 4)
\set what random(1, 40)
SELECT work(:n, :m, :what);
EOS
sql(<<'EOQ');
CREATE TABLE refused (sqlstate text, message text);
CREATE FUNCTION work(n int, m int, what int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	one text := 's' || least(n, m);
	other text := 's' || greatest(n, m);
BEGIN
	IF what = 1 THEN
		PERFORM mlint.session_delete(one);
		RETURN;
	END IF;
	PERFORM mlint.session_register(one, 'm'), mlint.session_register(other, 'm');
	CASE
		WHEN what = 2 THEN PERFORM mlint.session_set_status(one, 'completed');
		WHEN what <= 4 THEN PERFORM mlint.session_set_status(one, 'active');
		-- Signs of life in both orders.
		WHEN what <= 20 THEN PERFORM mlint.prompt_add(one, 'hello'), mlint.prompt_add(other, 'hello');
		ELSE PERFORM mlint.prompt_add(other, 'hello'), mlint.prompt_add(one, 'hello');
	END CASE;
EXCEPTION WHEN OTHERS THEN
	INSERT INTO refused VALUES (sqlstate, regexp_replace(sqlerrm, 's\d', 's'));
END
$$;
-- An hour has always passed.
CREATE FUNCTION older() RETURNS void LANGUAGE sql AS $$
	UPDATE mlint.session SET active_at = active_at - interval '2 hours'
	WHERE id IN (SELECT id FROM mlint.session FOR UPDATE SKIP LOCKED)
$$;
EOQ
my $old = "$script.old";
append_to_file($old, "SELECT older();\n");
$primary->command_ok(
	[
		'pgbench', '-n', '-c', '8', '-j', '2', '-t', '150',
		'-f', "$script\@9", '-f', "$old\@1", 'postgres'
	],
	'eight clients work on four sessions');
my $refused = sql('SELECT DISTINCT sqlstate, message FROM refused ORDER BY 1, 2');
is( join("\n", grep { !/^55000\|session "s" is completed$|^42704\|session "s" does not exist$/ } split /\n/, $refused),
	'', 'what they were refused is that a session has ended, or is gone');
is(sql(<<'EOQ'), '0', 'no message is without its session, or what it follows');
SELECT count(*) FROM mlint.message m LEFT JOIN mlint.session s ON s.id = m.session
LEFT JOIN mlint.message p ON p.id = m.parent AND p.session = m.session AND p.seq < m.seq
WHERE s.id IS NULL OR (m.parent IS NOT NULL AND p.id IS NULL)
EOQ
cmp_ok(sql('SELECT count(*) FROM mlint.message'), '>', 10, 'there are messages');

# ---- a standby ----

sql(<<'EOQ');
SELECT mlint.session_register('read', 'm', tags => '{t}');
SELECT mlint.response_add(mlint.prompt_add('read', 'What is a standby?'), 'A copy.');
SELECT mlint.model_register('m');
EOQ
$primary->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'copy', has_streaming => 1);
$standby->start;
for my $query (
	"SELECT session_id, tags FROM mlint.session_get('read')",
	"SELECT session_id FROM mlint.session_list(tag => 't')",
	"SELECT session_id FROM mlint.session_list_after(tag => 't')",
	"SELECT mlint.session_count(tag => 't')",
	"SELECT kind, content FROM mlint.session_transcript('read')",
	"SELECT kind FROM mlint.session_branches('read')",
	"SELECT snippet FROM mlint.session_search('standby')",
	"SELECT model_id FROM mlint.model_get('m')",
	"SELECT model_id FROM mlint.model_list()")
{
	my $expected = sql($query);
	isnt($expected, '', "$query: the primary has something");
	is($standby->safe_psql('postgres', $query), $expected, '... and the standby the same');
}
for my $call (
	"session_register('x', 'm')", "session_register('read', 'm')",
	"session_set_status('read', 'completed')", "session_set_status('read', 'archived')",
	"session_delete('read')", "prompt_add('read', 'x')",
	"response_add(gen_random_uuid(), 'x')", "tool_call_add(gen_random_uuid(), 'x')",
	"model_register('x')", "model_deprecate('m')", "model_reinstate('m')")
{
	my ($name) = $call =~ /^(\w+)/;
	like(failure($standby, "SELECT mlint.$call"),
		qr/cannot execute mlint\.$name\(\) during recovery/,
		"$call is refused there");
}
$standby->stop;

# ---- another encoding ----

sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
sql('CREATE EXTENSION mlint', 'latin');
sql(<<'EOQ', 'latin');
SET client_encoding = 'UTF8';
SELECT mlint.session_register('café-' || i, 'm') FROM generate_series(1, 3) i;
SELECT mlint.prompt_add('café-1', 'Bonjour à tous ' || repeat('é', 300000));
EOQ
is( sql(<<'EOQ', 'latin'), 'café-2', 'ids and cursors in LATIN1');
SET client_encoding = 'UTF8';
SELECT session_id FROM mlint.session_list_after(
	(SELECT mlint.session_cursor(s) FROM mlint.session_get('café-3') s), 1);
EOQ
is( sql(<<'EOQ', 'latin'), '**Bonjour** à tous', 'search in LATIN1');
SET client_encoding = 'UTF8';
SELECT substr(snippet, 1, 18) FROM mlint.session_search('bonjour');
EOQ
like(
	failure($primary, q{SELECT mlint.session_list_after('s1' || repeat('00', 7) || '41e9')}),
	qr/invalid cursor/, 'a cursor of another encoding is none');

$primary->stop;
done_testing();
