# Certificates as files: a pair that belongs together at any moment and after
# a crash at any step, exact modes, nowhere but below the directory; who is told
# to reload; events to a destination; sync and async; who may have a target.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Cwd qw(realpath);
use Fcntl qw(:mode);
use JSON::PP ();
use MlintTest;
use POSIX ();
use SecretTest;
use TargetTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $root = authority();
my $top = realpath(PostgreSQL::Test::Utils::tempdir());
my $dir = "$top/certificates";
mkdir $dir, 0750 or die $!;
chmod 0750, $dir;
my $node = mlint_node('targets', conf => "mlint.certificate_directory = '$dir'\nrestart_after_crash = on\nlog_statement = none");
sub sql { return $node->safe_psql('postgres', $_[0]); }
sub in_use { return sql("SELECT v.serial FROM mlint.certificate c JOIN mlint.certificate_version v ON v.id = c.version_id WHERE c.id = '$_[0]'"); }
sub mode { return sprintf '%04o', S_IMODE((stat "$dir/$_[0]")[2] // 0); }
sub listing { return join ' ', grep { !/^\.\.?$/ } sort(slurp_dir("$dir/$_[0]")); }

# Does the pair at a path belong together? Its serial, or why not.
sub pair
{
	my ($path) = @_;
	my ($cert, $key) = map { eval { slurp_file($_) } } -d $path ? ("$path/fullchain.pem", "$path/privkey.pem") : ($path, $path);
	return 'missing' unless $cert && $key;
	my $of_cert = openssl($cert, 'x509', '-noout', '-pubkey');
	my $of_key = openssl($key, 'pkey', '-pubout');
	return $of_cert eq $of_key ? serial_of($cert) : 'no pair';
}

# ---- 1. files ----

my ($id, $serial, $chain, $key) = install($node, 'www');
is(target($node, $id, 'file', { path => 'web/www' }), 'file', 'a target is called by its kind');
agrees($node, 'it is there');
is(pair("$dir/web/www"), $serial, '... chain and key');
is(listing('web/www/'), 'cert.pem chain.pem fullchain.pem privkey.pem', '... as these files');
is(slurp_file("$dir/web/www/fullchain.pem"), $chain, '... the chain');
is(slurp_file("$dir/web/www/cert.pem") . slurp_file("$dir/web/www/chain.pem"), $chain, '... in two parts');
is(openssl('', 'verify', '-CAfile', $root, '-untrusted', "$dir/web/www/chain.pem", "$dir/web/www/cert.pem"),
	"$dir/web/www/cert.pem: OK\n", '... which OpenSSL verifies');
is(mode('web/www/privkey.pem'), '0600', '... the key is for the server\'s user');
is(mode('web/www/fullchain.pem'), '0644', '... and the chain is not secret');
is(mode('web'), '0750', '... in directories of the mode of the topmost');
ok(-l "$dir/web/www", '... by a link');
is(listing('web'), '.www.a www', '... and nothing else is there');
is(target_state($node, "state, serves = should_serve, agrees, reference, error IS NULL, attempts, region = ''"),
	"serving|t|t|$dir/web/www|t|0|t", 'its view');
is(sql("SELECT count(*) FROM mlint.audit_log WHERE action = 'secret.read' AND object LIKE '%www%'"), '1', 'the read of the key is audited')
  or diag(sql("SELECT action, object FROM mlint.audit_log"));
is(sql("SELECT string_agg(action, ' ' ORDER BY seq) FROM mlint.audit_log WHERE object = 'www/file'"),
	'certificate_target.create certificate_target.push', 'so is what was done');

# Renewed, while somebody reads by way of the link all the time.
sql("SELECT mlint.certificate_target_alter('$id', 'file', '{\"key_mode\": \"0640\"}')");
wait_for('another mode is given at once', sub { mode('web/www/privkey.pem') eq '0640' });
agrees($node, '... and recorded');
for my $round (1 .. 3)
{
	($id, $serial) = install($node, 'www');
	my %seen;
	my $end = time + 30;
	# By a descriptor of the directory a reader has one pair, whatever happens.
	while (time < $end)
	{
		my $real = realpath("$dir/web/www") // 'gone';
		my $pair = pair($real);
		# One that has been replaced meanwhile is being removed.
		$seen{$pair}++ if (realpath("$dir/web/www") // 'gone') eq $real;
		last if $pair eq $serial;
	}
	ok(!grep({ /no pair|missing/ } keys %seen), "renewal $round: always a pair") or diag(join ' ', %seen);
	agrees($node, "renewal $round is there");
	is(pair("$dir/web/www"), $serial, '... and it is the new one');
	is(listing('web'), $round % 2 ? '.www.a www' : '.www.b www', '... and the old one is gone');
}

# A crash at every step.
for my $point ('push-claimed', 'file-written', 'file-switched', 'pushed')
{
	my $before = pair("$dir/web/www");
	inject($node, "certificate-$point", 'kill');
	my ($new_id, $new) = install($node, 'www');
	wait_for("a crash, $point", sub { struck($node, "certificate-$point") });
	# It goes on meanwhile.
	my ($real, $after);
	do { ($real, $after) = (realpath("$dir/web/www") // '', pair("$dir/web/www")) } until (realpath("$dir/web/www") // '') eq $real;
	ok($after eq $before || $after eq $new, '... leaves a whole pair') or diag("$after, neither $before nor $new");
	agrees($node, '... and it is gone on with');
	is(pair("$dir/web/www"), $new, '... to the new one');
	is(listing('web') =~ tr/ //, 1, '... with nothing left over') or diag(listing('web'));
}

# One file.
inject($node, 'certificate-pushed', 'kill');
target($node, $id, 'file', { path => 'haproxy.pem', format => 'combined' }, "name => 'haproxy'");
wait_for('a crash between the file and the record of it', sub { struck($node, 'certificate-pushed') });
agrees($node, 'one file');
is(pair("$dir/haproxy.pem"), in_use($id), '... with both');
is(mode('haproxy.pem'), '0600', '... is as secret as the key');
sql("SELECT mlint.certificate_target_alter('$id', 'haproxy', '{\"format\": \"directory\"}')");
wait_for('a file becomes a directory', sub { -d "$dir/haproxy.pem" });
agrees($node, '... that is recorded');
sql("SELECT mlint.certificate_target_alter('$id', 'haproxy', '{\"format\": \"combined\"}')");
wait_for('and a file again', sub { -f "$dir/haproxy.pem" && !-l "$dir/haproxy.pem" });
agrees($node, '... that is recorded');
wait_for('... and no key is left elsewhere', sub { join(' ', grep { /haproxy/ } split / /, listing('')) eq 'haproxy.pem' });

# ---- 2. who is told ----

my ($out, $err) = ('', '');
my $listener = $node->background_psql('postgres');
$listener->query_safe('LISTEN reload_nginx');
$node->safe_psql('postgres', "SET client_min_messages = error; SELECT mlint.destination_create('sink', 'function', '{\"fn\": \"public.sink\"}', ARRAY['nginx.reload'])")
  if sql("CREATE TABLE public.sunk (body jsonb); CREATE FUNCTION public.sink(event jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO public.sunk VALUES (event)'; SELECT true") eq 't';
target($node, $id, 'file', { path => 'told', reload => { notify => 'reload_nginx', event => 'nginx.reload' } }, "name => 'told'");
agrees($node, 'who is told');
my $now = in_use($id);
$out = '';
wait_for('is notified', sub { ($out .= $listener->query('SELECT 1')) =~ /notification "reload_nginx"|Asynchronous notification "reload_nginx" with payload "\{"name": "www", "serial": "$now", "target": "told"\}"/ })
  or diag($out);
wait_for_sql($node, '... and gets an event',
	"SELECT count(*) FROM public.sunk WHERE body->>'type' = 'nginx.reload' AND body->'data'->>'serial' = '$now'", '1');
is(sql("SELECT count(*) FROM mlint.events WHERE data::text LIKE '%PRIVATE KEY%'"), '0', '... without the key');
$listener->quit;

# ---- 3. a destination ----

$node->safe_psql('postgres', "SET client_min_messages = error; SELECT mlint.destination_create('edge', 'function', '{\"fn\": \"public.sink\"}', ARRAY['nothing'])");
target($node, $id, 'destination', { destination => 'edge' });
agrees($node, 'a destination');
wait_for_sql($node, '... gets an event of its own',
	"SELECT string_agg(concat_ws(' ', body->'data'->>'serial', body->'data'->>'name', body->'data'->'domains', body->'data'->>'chain' LIKE '-----BEGIN CERT%'), ';') FROM public.sunk WHERE body->>'type' = 'certificate.pushed'",
	qq($now www ["www.example.com"] t));
is(sql("SELECT body->'data' ? 'key_secret', body::text LIKE '%PRIVATE%' FROM public.sunk WHERE body->>'type' = 'certificate.pushed'"), 't|f',
	'... with the name of the key, not the key');
like(answer($node, "SELECT mlint.certificate_target_create('$id', 'destination', '{\"destination\": \"none\"}', name => 'x')"),
	qr/42704.*"none"/, 'no such destination');

# ---- 4. what is refused ----

my $t = 'SELECT mlint.certificate_target_create';
for my $path ('../out', '/etc/x', 'a//b', '.hidden', 'a/../b', 'a/.b', '', 'x' x 300, "a\tb")
{
	like(answer($node, "$t('$id', 'file', '" . JSON::PP->new->encode({ path => $path }) . "', name => 'x')"), qr/ML007.*must be relative/,
		"path " . ($path =~ s/\t/\\t/r));
}
like(answer($node, "$t('$id', 'file', '{\"path\": \"web/www\"}', name => 'x')"), qr/42710.*path "web\/www" is the place of target "file" of certificate "www"/,
	'two targets at one place');
like(answer($node, "$t('$id', 'file', '{\"path\": \"y\"}')"), qr/42710.*has a target "file" already/, 'two of one name');
like(answer($node, "$t('$id', 'ftp', '{}')"), qr/ML007.*file, aws-acm, azure, destination, postgres/s, 'no such kind');
like(answer($node, "$t('$id', 'file', '{\"path\": \"y\", \"mode\": 1}', name => 'x')"), qr/ML007.*mode/, 'no such option');
like(answer($node, "$t('$id', 'file', '{\"path\": \"y\"}', 'later', 'x')"), qr/22023.*"sync" or "async"/, 'no such strategy');
like(answer($node, "$t('00000000-0000-0000-0000-000000000000', 'file', '{\"path\": \"y\"}')"), qr/42704.*does not exist/, 'no such certificate');
like(answer($node, "SELECT mlint.certificate_target_drop('$id', 'none')"), qr/42704.*has no target "none"/, 'no such target');
like(answer($node, "SELECT mlint.certificate_target_alter('$id', 'none')"), qr/42704/, 'nor to alter');
like(answer($node, "BEGIN; CALL mlint.certificate_target_run()"), qr/2D000/, 'the job is no part of a transaction');
sql("CREATE ROLE clerk; CREATE ROLE reader IN ROLE mlint_reader; GRANT USAGE ON SCHEMA mlint TO clerk;
	GRANT EXECUTE ON FUNCTION mlint.certificate_target_create(uuid, text, jsonb, text, text) TO clerk");
like(answer($node, "SET ROLE reader; $t('$id', 'file', '{\"path\": \"y\"}', name => 'x')"), qr/42501/, 'a reader has no targets');
like(answer($node, "SET ROLE clerk; $t('$id', 'file', '{\"path\": \"y\"}', name => 'x')"), qr/42704|42501/, 'nor has who may not read the key');
wait_for_sql($node, '... which is audited', "SELECT count(*) FROM mlint.audit_log WHERE action = 'certificate_target.create' AND outcome = 'denied'", '1');
is(answer($node, "SET ROLE reader; SELECT count(*) > 0 FROM mlint.certificate_targets"), 't', 'a reader sees them');
is(answer($node, "SET ROLE reader; SELECT string_agg(DISTINCT kind, ' ' ORDER BY kind) FROM mlint.certificate_target_kinds"),
	'aws-acm azure destination file postgres', 'and the kinds there are');

# Something else in its place is left alone.
mkdir "$dir/mine", 0700;
symlink "$top", "$dir/elsewhere";
symlink "$top", "$dir/link";
append_to_file("$dir/theirs.pem", "theirs\n");
target($node, $id, 'file', { path => 'theirs.pem', format => 'combined', retry_delay_ms => 100 }, "name => 'files'");
target($node, $id, 'file', { path => 'mine', retry_delay_ms => 100, retry_max_delay_ms => 500 }, "name => 'mine'");
target($node, $id, 'file', { path => 'elsewhere', retry_delay_ms => 100 }, "name => 'elsewhere'");
target($node, $id, 'file', { path => 'link/x', retry_delay_ms => 100 }, "name => 'through'");
for ([ mine => qr/something else in its place/ ], [ elsewhere => qr/link of somebody else/ ], [ through => qr/something else than a directory/ ], [ files => qr/something else in its place/ ])
{
	my ($name, $why) = @$_;
	wait_for_sql($node, "$name: fails", "SELECT state FROM mlint.certificate_targets WHERE name = '$name'", 'failing');
	like(target_state($node, 'error', "name = '$name'"), $why, '... and says why');
}
is(readlink("$dir/elsewhere"), $top, 'somebody else\'s link is as it was');
is(slurp_file("$dir/theirs.pem"), "theirs\n", '... and his file');
wait_for_sql($node, 'it is tried again and again', "SELECT attempts > 3 FROM mlint.certificate_targets WHERE name = 'mine'");
is(sql("SELECT count(*) FROM mlint.audit_log WHERE action = 'certificate_target.fail' AND object = 'www/mine'"), '1', '... which is audited once');
rmdir "$dir/mine";
agrees($node, '... until it can be done', "name = 'mine'");
sql("SELECT mlint.certificate_target_drop('$id', '$_')") for qw(mine elsewhere through);
ok(-d "$dir/mine", 'what was pushed stays when the target goes');

# ---- 5. sync ----

my ($sid, $first) = install($node, 'sync', { names => ['sync.example.com'] });
mkdir "$dir/blocked", 0700;
target($node, $sid, 'file', { path => 'blocked', retry_delay_ms => 100, retry_max_delay_ms => 500 }, "'sync', 'blocked'");
target($node, $sid, 'file', { path => 'free' }, "'sync', 'free'");
target($node, $sid, 'file', { path => 'after' }, "'async', 'after'");
agrees($node, 'free ones have it', "name IN ('free', 'after')");
my (undef, $second) = install($node, 'sync', { names => ['sync.example.com'] });
agrees($node, 'a sync target gets the next version first', "name = 'free' AND serves = '$second'");
wait_for_sql($node, '... another fails', "SELECT state, should_serve FROM mlint.certificate_targets WHERE name = 'blocked'", "failing|$second");
is(in_use($sid), $first, '... and until then the version before is in use');
is(pair("$dir/after"), $first, '... which an async target has');
wait_for_sql($node, '... and the certificate says why', q{SELECT error ~ 'target "blocked".*something else in its place' FROM mlint.certificate WHERE name = 'sync'});
rmdir "$dir/blocked";
agrees($node, 'when all have it', "certificate = '$sid'");
wait_for('... it is in use', sub { in_use($sid) eq $second });
wait_for('... and the async target gets it', sub { pair("$dir/after") eq $second });
# Dropping what is in the way does, too.
mkdir "$dir/again", 0700;
target($node, $sid, 'file', { path => 'again', retry_delay_ms => 60000 }, "'sync', 'again'");
my (undef, $third) = install($node, 'sync', { names => ['sync.example.com'] });
wait_for_sql($node, 'in the way', "SELECT state, should_serve FROM mlint.certificate_targets WHERE name = 'again'", "failing|$third");
sql("SELECT mlint.certificate_target_alter('$sid', 'again', strategy => 'async')");
wait_for('one that is async is waited for no more', sub { in_use($sid) eq $third });

# ---- 6. who may no more ----

sql("CREATE ROLE owner LOGIN; GRANT mlint_admin TO owner");
sql("SET ROLE owner; SELECT mlint.certificate_target_create('$id', 'file', '{\"path\": \"owned\", \"retry_delay_ms\": 100, \"retry_max_delay_ms\": 500}', name => 'owned')");
agrees($node, 'an administrator\'s', "name = 'owned'");
sql("REVOKE mlint_admin FROM owner");
install($node, 'www');
wait_for_sql($node, 'who may not read the key any more gets none', "SELECT state FROM mlint.certificate_targets WHERE name = 'owned'", 'failing');
like(target_state($node, 'error', "name = 'owned'"), qr/role "owner".*may not read/, '... and it says so');
sql("SELECT mlint.certificate_target_alter('$id', 'owned')");
agrees($node, 'until another answers for it', "name = 'owned'");
sql("DROP ROLE owner");

# ---- 7. a certificate that goes ----

sql("SELECT mlint.certificate_watch_create('$sid', 'localhost')");
inject($node, 'certificate-pushed', 'wait');
my (undef, $fourth) = install($node, 'sync', { names => ['sync.example.com'] });
wait_for('a push is under way', sub { grep { pair("$dir/$_") eq $fourth } qw(blocked free) });
my ($drop_out, $drop_err) = ('', '');
my $drop = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "SELECT mlint.certificate_drop('$sid')" ], '>', \$drop_out, '2>', \$drop_err);
wait_for_sql($node, 'whoever drops the certificate waits', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%certificate_drop%' AND pid <> pg_backend_pid()");
resume($node, 'certificate-pushed');
$drop->finish;
is($drop_err, '', 'a certificate that is dropped meanwhile');
is(sql("SELECT count(*) FROM mlint.certificate_targets WHERE certificate = '$sid'") . sql("SELECT count(*) FROM mlint.certificate_watches"), '00',
	'takes its targets and watches with it');

unlike(slurp_file($node->logfile), qr/PRIVATE KEY/, 'no key is in the log');
$node->stop;
done_testing();
