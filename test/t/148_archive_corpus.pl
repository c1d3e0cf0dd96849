# A corpus of chats, archived by the scheduler, dumped, dropped, restored from
# the dump and then from the archives: each session and message is what it was,
# byte for byte; encrypted or not, compressed or not, with a dictionary, and by
# way of an object store.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $sessions = 36;
my $dir = PostgreSQL::Test::Utils::tempdir();
mkdir "$dir/stores" or die "mkdir: $!";
my $node = mlint_node('main', create => 0,
	conf => "mlint.archive_directory = '$dir/stores'\nmax_worker_processes = 64\n");

sub sql
{
	my ($sql, $db) = @_;
	return $node->safe_psql($db // 'postgres', $sql);
}

# Short ones, usual ones and a large one.
my $corpus = "$dir/corpus.sql";
my @parts = ([ 20, 3000, 1 ], [ 14, 40000, 0.8 ], [ 1, 1500000, 0 ]);
my $first = 1;
for my $part (@parts)
{
	my ($n, $bytes, $spread) = @$part;
	system("python3 $FindBin::RealBin/../corpus/chat.py --sessions $n --bytes $bytes"
		  . " --spread $spread --seed 7 --first $first >>$corpus") == 0
	  or die 'chat.py';
	$first += $n;
}

# Every column of every session and message, in order. When it was last seen is
# another time, since it was restored.
my $digest = <<'EOQ';
SELECT count(*), sum(n), md5(string_agg(d, E'\n' ORDER BY id)) FROM (
	SELECT s.id, count(m.*) AS n, (to_jsonb(s) - 'active_at' - 'updated_at')::text || E'\n'
		|| coalesce(string_agg(m::text, E'\n' ORDER BY m.seq), '') AS d
	FROM mlint.session s LEFT JOIN mlint.message m ON m.session = s.id GROUP BY s.id) x
EOQ

# name, settings, whether in a store, whether with a dictionary
for my $way (
	[ 'sealed', { archive_compression => 3, archive_encryption => 'on' } ],
	[ 'compressed', { archive_compression => 3, archive_encryption => 'off' } ],
	[ 'encrypted', { archive_compression => 0, archive_encryption => 'on' } ],
	[ 'plain', { archive_compression => 0, archive_encryption => 'off' } ],
	[ 'hard', { archive_compression => 19, archive_encryption => 'on' } ],
	[ 'stored', { archive_compression => 3, archive_encryption => 'on' }, 'store' ],
	[ 'trained', { archive_compression => 3, archive_encryption => 'on' }, undef, 'dictionary' ])
{
	my ($name, $settings, $store, $dictionary) = @$way;

	sql("CREATE DATABASE $name");
	sql("ALTER DATABASE $name SET mlint.$_ = '$settings->{$_}'") for keys %$settings;
	sql('CREATE EXTENSION mlint', $name);
	$node->command_ok(
		[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $corpus, $node->connstr($name) ],
		"$name: the corpus");
	sql("SELECT FROM mlint.session_register('odd', 'm'); SELECT mlint.prompt_add('odd', E'controls \\x01 \\x1f \\x7f, \\u2028, \"\\\\\\b\\f\\n\\r\\t')", $name);
	sql("UPDATE mlint.session SET active_at = now() - interval '100 days'", $name);
	my $before = sql($digest, $name);
	like($before, qr/^$sessions\|\d{3,}\|/, "$name: ... is there") if $name eq 'sealed';
	sql("SELECT mlint.archive_store_create('files', 'file', '{\"directory\": \"$name\"}')", $name)
	  if $store;
	sql('SELECT mlint.archive_dictionary_train()', $name) if $dictionary;

	# All of it is due.
	sql('SELECT mlint.archival_set(batch_size => 25, enabled => false)', $name);
	my $run = sql('SELECT mlint.archival_run()', $name);
	sql("SELECT mlint.archival_wait($run, '3 minutes')", $name);
	is(sql("SELECT state, archived, failed, skipped FROM mlint.archival_runs WHERE id = $run", $name),
		"completed|$sessions|0|0", "$name: all is archived");
	is(sql('SELECT count(*) FROM mlint.message', $name), 0, "$name: ... nothing is live");
	is( sql(<<'EOQ', $name),
SELECT bool_and(data_key IS NOT NULL), bool_and(zstd_level > 0), bool_and(dictionary IS NOT NULL) FROM mlint.archive
EOQ
		join('|', $settings->{archive_encryption} eq 'on' ? 't' : 'f',
			$settings->{archive_compression} > 0 ? 't' : 'f', $dictionary ? 't' : 'f'),
		"$name: ... in that way");
	if ($store)
	{
		sql("SELECT mlint.job_run_now('archive_move')", $name);
		wait_for_sql($node, "$name: all is in the store",
			'SELECT count(*) = 0 FROM mlint.archive WHERE store IS NULL', 't', $name);
		is(sql('SELECT count(*) FROM mlint.archive_chunk', $name), 0, "$name: ... and nowhere else");
	}
	note "$name: ", sql("SELECT pg_size_pretty(sum(plain_bytes)), round(sum(stored_bytes) / sum(plain_bytes), 3) FROM mlint.archive", $name);

	# Away, and back.
	$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/$name.dump", $node->connstr($name) ],
		"$name: dumped");
	sql("DROP DATABASE $name");
	sql("CREATE DATABASE $name");
	sql("ALTER DATABASE $name SET mlint.$_ = '$settings->{$_}'") for keys %$settings;
	$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr($name), "$dir/$name.dump" ],
		"$name: ... dropped, restored");
	is(sql('SELECT count(*) FROM mlint.archives a WHERE mlint.archive_verify(a.id)', $name),
		$sessions, "$name: every archive is whole");
	sql('SELECT mlint.archive_restore(id) FROM mlint.archives', $name);
	is(sql($digest, $name), $before, "$name: restored, every session and message is what it was");
	is(sql('SELECT count(*) FROM mlint.archive', $name), 0, "$name: ... and no archive is left");
	is(sql('SELECT count(*) FROM mlint.archive_chunk', $name), 0, "$name: ... and no chunk");
	if ($store)
	{
		wait_for("$name: ... nor an object in the store",
			sub { sql("SELECT mlint.job_run_now('archive_move')", $name);
				my @objects = grep { -f } glob "$dir/stores/$name/*"; @objects == 0 });
	}
	sql("DROP DATABASE $name");
}

$node->stop;
done_testing();
