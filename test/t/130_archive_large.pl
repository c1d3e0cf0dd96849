# Sessions of any size are archived in bounded memory, and come back as they
# were: 100 MB in many messages, one message of 100 MB, 100,000 tiny ones.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use POSIX ();
use IO::Handle;

my $node = mlint_node('large', conf => "shared_buffers = 64MB\nmax_wal_size = 2GB");

# Text that neither TOAST nor zstd makes much of; of it, with line breaks.
$node->safe_psql('postgres', q(
	CREATE FUNCTION noise(seed int, chunks int) RETURNS text LANGUAGE sql AS $$
		SELECT string_agg(encode(sha512(convert_to(seed || ' ' || i, 'UTF8')), 'base64'), E'"\n')
		FROM generate_series(1, chunks) i
	$$;
	CREATE TABLE digest (session_id text, digest text);
	CREATE FUNCTION digest_of(sid text) RETURNS text LANGUAGE sql AS $$
		SELECT md5(string_agg(md5(m.*::text), '' ORDER BY m.seq)) || count(*)
		FROM mlint.message m JOIN mlint.session s ON s.id = m.session WHERE s.session_id = sid
	$$;
	SELECT mlint.session_register(s, 'm') FROM unnest('{many,one,plain,tiny,warm}'::text[]) s;
	SELECT mlint.prompt_add('warm', 'hello');
	SELECT mlint.prompt_add('many', noise(i, 11000)) FROM generate_series(1, 100) i;
	SELECT mlint.prompt_add('one', repeat(noise(1, 1100), 1000));
	SELECT mlint.prompt_add('tiny', i::text) FROM generate_series(1, 100000) i;
	ALTER TABLE mlint.message ALTER content SET STORAGE EXTERNAL;
	SELECT mlint.prompt_add('plain', noise(2, 1100000));
	INSERT INTO digest SELECT session_id, digest_of(session_id) FROM mlint.session;
	VACUUM mlint.message;
));

# Archive in one backend, and see what its memory came to beyond where it was:
# the kernel's high-water mark of what is its own, shared buffers left out.
sub memory_of
{
	my ($session) = @_;
	my $psql = $node->background_psql('postgres');
	my $anonymous = sub {
		my ($pid, $field) = @_;
		my $status = slurp_file("/proc/$pid/status");
		return $status =~ /^$field:\s+(\d+) kB/m ? $1 / 1024 : die $field;
	};

	$psql->query_safe("SELECT mlint.archive_session('warm')");
	$psql->query_safe("SELECT mlint.archive_restore(id) FROM mlint.archives WHERE session_id = 'warm'");
	my $pid = $psql->query_safe('SELECT pg_backend_pid()');
	my $before = $anonymous->($pid, 'RssAnon');
	my $most = $before;
	# Of all its memory only what is anonymous counts, so it is watched.
	my $watch = fork();
	if ($watch == 0)
	{
		open my $out, '>', "$PostgreSQL::Test::Utils::tmp_check/most" or die;
		while (-e "/proc/$pid/status")
		{
			my $now = eval { $anonymous->($pid, 'RssAnon') } // last;
			$most = $now if $now > $most;
			seek $out, 0, 0;
			print $out sprintf "%-20s\n", $most;
			$out->flush;
			select undef, undef, undef, 0.002;
		}
		POSIX::_exit(0);
	}
	$psql->query_safe("SELECT mlint.archive_session('$session')");
	$psql->quit;
	waitpid $watch, 0;
	return slurp_file("$PostgreSQL::Test::Utils::tmp_check/most") - $before;
}

for my $case ([ many => 1 ], [ plain => 0 ], [ one => 98 ], [ tiny => 0 ])
{
	my ($session, $largest) = @$case;
	my $memory = memory_of($session);
	note sprintf '%s: %.1f MiB', $session, $memory;
  SKIP:
	{
		skip 'freed memory is kept', 1 if memory_is_watched();
		cmp_ok($memory, '<=', 32 + $largest, "session $session is archived in its largest message and 32 MiB");
	}
}

is($node->safe_psql('postgres', "SELECT count(*) FROM mlint.archives WHERE NOT mlint.archive_verify(id)"),
	0, 'all are whole');
is($node->safe_psql('postgres', "SELECT min(chunks) > 1 FROM mlint.archive a JOIN mlint.session s ON s.id = a.session WHERE session_id IN ('many', 'plain')"),
	't', 'of several chunks');

my ($rc, $out, $err) = $node->psql('postgres', q(
	SELECT sum(octet_length(d)) = (SELECT bytes FROM mlint.archives WHERE session_id = 'many'), max(octet_length(d)) <= 1048576
	FROM mlint.archives a, mlint.archive_document(a.id) d WHERE a.session_id = 'many'));
is($out, 't|t', 'a large document is read in pieces');

# Exchanged chunks of one archive, and one dropped with its number mended.
for my $tampering (
	"UPDATE mlint.archive_chunk c SET n = CASE n WHEN 1 THEN 2 ELSE 1 END WHERE n IN (1, 2)",
	"DELETE FROM mlint.archive_chunk WHERE n = 3; UPDATE mlint.archive_chunk SET n = n - 1 WHERE n > 3; UPDATE mlint.archive SET chunks = chunks - 1",
	"DELETE FROM mlint.archive_chunk c USING mlint.archive a WHERE a.id = c.archive AND n = chunks - 1; UPDATE mlint.archive SET chunks = chunks - 1")
{
	($rc, $out, $err) = $node->psql('postgres', qq(
		BEGIN;
		ALTER TABLE mlint.archive_chunk DROP CONSTRAINT archive_chunk_pkey;
		$tampering;
		ALTER TABLE mlint.archive_chunk ADD CONSTRAINT archive_chunk_pkey PRIMARY KEY (archive, n);
		SELECT mlint.archive_restore(id) FROM mlint.archives WHERE session_id = 'plain';
	), extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($err, qr/ML015.*does not open with its key/s, "noticed: $tampering");
}

for my $session (qw(many one plain tiny))
{
	$node->safe_psql('postgres', "SELECT mlint.archive_restore(id) FROM mlint.archives WHERE session_id = '$session'");
	is($node->safe_psql('postgres', "SELECT digest = digest_of(session_id) FROM digest WHERE session_id = '$session'"),
		't', "session $session is restored as it was");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM mlint.archive_chunk'), 0, 'nothing is left of the archives');

# Too large for a jsonb, or for any text.
$node->safe_psql('postgres', q(
	SELECT mlint.session_register(s, 'm') FROM unnest('{huge,digits}'::text[]) s;
	SELECT mlint.prompt_add('huge', repeat('x', 150000000)) FROM generate_series(1, 2);
	SELECT mlint.archive_session('huge');
	INSERT INTO mlint.message (id, session, kind, content, metadata, created_at)
	SELECT gen_random_uuid(), id, 'prompt', '', (SELECT jsonb_build_object('a', jsonb_agg(('1e131000')::numeric)) FROM generate_series(1, 9000)), now()
	FROM mlint.session WHERE session_id = 'digits'));
($rc, $out, $err) = $node->psql('postgres', "SELECT mlint.archive_get(id) FROM mlint.archives WHERE session_id = 'huge'");
like($err, qr/too large for a jsonb.*at most 268435455.*archive_document/s, 'a document beyond a jsonb has an error that says so');
is($node->safe_psql('postgres', "SELECT sum(length(d)) > 300000000 FROM mlint.archives a, mlint.archive_document(a.id) d WHERE session_id = 'huge'"),
	't', 'and is read as text');
$node->safe_psql('postgres', "SELECT mlint.archive_restore(id) FROM mlint.archives WHERE session_id = 'huge'");
is($node->safe_psql('postgres', "SELECT count(*) FROM mlint.message WHERE content = repeat('x', 150000000)"),
	2, 'and restored');
($rc, $out, $err) = $node->psql('postgres', "SELECT mlint.archive_session('digits')");
like($err, qr/session "digits" cannot be archived: the text of a "metadata" has more than/, 'what could not come back is not archived');
is($node->safe_psql('postgres', "SELECT count(*) FROM mlint.message m JOIN mlint.session s ON s.id = m.session WHERE session_id = 'digits'"),
	1, 'and nothing is lost');

done_testing();
