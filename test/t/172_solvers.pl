# Challenges of type http-01 without the gateway: files in a webroot, readable for
# whom they should be, and functions. Whatever a token or a link says, nothing is
# written elsewhere; what a crash leaves is gone afterwards.
use strict;
use warnings;

use Cwd qw(realpath);
use Fcntl qw(:mode);
use FindBin;
use lib $FindBin::RealBin;
use DnsTest;
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SecretTest;
use Test::More;

my $top = realpath(PostgreSQL::Test::Utils::tempdir());
my $dir = "$top/certs";
mkdir $dir or die $!;
chmod 0755, $dir or die $!;
my $node = mlint_node('solvers', conf => "restart_after_crash = on\nmlint.certificate_directory = '$dir'\n");
sub sql { return answer($node, @_); }
sub mode { return sprintf '%04o', S_IMODE((stat "$dir/$_[0]")[2] // 0); }
sub content { return -e "$dir/$_[0]" ? slurp_file("$dir/$_[0]") : undef; }
sub token { return sql("SELECT token FROM mlint.acme_challenge WHERE id = $_[0]"); }

# ---- files ----
my $value = 'token.thumbprint-of-an-account';
my $below = 'web/.well-known/acme-challenge';
my ($id, $order) = challenge($node, 'http-01', 'a.test', 'file:web', $value);
run_challenges($node);
presence_is($node, $id, 'present', 'a file is written');
my $file = "$below/" . token($id);
is(content($file), $value, '... with the key authorization');
is(mode($file), '0644', '... that a web server can read');
is(mode('web') . mode('web/.well-known') . mode($below), '075507550755', '... in directories that it can enter');
is(sql('SELECT solver, made FROM mlint.acme_challenge'), 'file:web|{"solver": "file:web"}', '... and it is written down where');
challenge_end($node, $order);
nothing_left($node, 'it is removed');
is(join(' ', grep { !/^\.\.?$/ } slurp_dir("$dir/$below")), '', '... with all that belongs to it');

chmod 0750, $dir or die $!;
($id, $order) = challenge($node, 'http-01', 'a.test', 'file:group/of/it', $value);
run_challenges($node);
presence_is($node, $id, 'present', 'in a directory that only a group may enter');
is(mode('group/of/it/.well-known/acme-challenge/' . token($id)) . mode('group/of'), '06400750', '... only that group may read');
challenge_end($node, $order);
nothing_left($node, '... removed');
chmod 0755, $dir or die $!;

for my $hostile ('../../x', '', 'a/b', '.x', 'x' x 200, 'a b')
{
	($id, $order) = challenge($node, 'http-01', 'a.test', 'file:web', $value, undef, token => $hostile);
	run_challenges($node);
	wait_for_sql($node, "a token like \"" . substr($hostile, 0, 8) . '" is none',
		"SELECT attempts > 0, solver_error ~ 'token is none' FROM mlint.acme_challenge WHERE id = $id", 't|t');
	sql("UPDATE mlint.acme_challenge SET presence = 'removed' WHERE id = $id");
}
is(join(' ', grep { !/^\.\.?$/ } slurp_dir("$dir/$below")), '', '... and nothing is written');

mkdir "$top/elsewhere" or die $!;
symlink "$top/elsewhere", "$dir/link" or die $!;
($id, $order) = challenge($node, 'http-01', 'a.test', 'file:link', $value);
run_challenges($node);
wait_for_sql($node, 'a link is not followed', "SELECT attempts > 0, solver_error ~ 'something else than a directory' FROM mlint.acme_challenge WHERE id = $id", 't|t');
is(join(' ', grep { !/^\.\.?$/ } slurp_dir("$top/elsewhere")), '', '... nothing is written there');
unlink "$dir/link" or die $!;
challenge_end($node, $order);
run_challenges($node, 1);
nothing_left($node, '... and removing what was never there is no failure');

for my $place (qw(challenge-presenting challenge-shown challenge-hidden))
{
	inject($node, $place, 'kill');
	($id, $order) = challenge($node, 'http-01', 'a.test', 'file:web', $value);
	eval { run_challenges($node) };
	presence_is($node, $id, 'present', "$place: present") if $place eq 'challenge-hidden';
	eval { challenge_end($node, $order) } if $place eq 'challenge-hidden';
	wait_for("$place: a crash", sub { struck($node, $place) });
	wait_for('... the order ends', sub { eval { challenge_end($node, $order); 1 } });
	nothing_left($node, '... nothing is left');
	is(join(' ', grep { !/^\.\.?$/ } -d "$dir/$below" ? slurp_dir("$dir/$below") : ()), '', '... nothing indeed');
}

# ---- functions ----
sql(<<'EOQ');
CREATE ROLE web LOGIN;
GRANT mlint_admin TO web;
CREATE TABLE served (path text PRIMARY KEY, value text, by name DEFAULT current_user);
GRANT ALL ON served TO web;
CREATE FUNCTION serve(c jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	IF c ->> 'action' = 'present' THEN
		INSERT INTO served (path, value) VALUES ('/.well-known/acme-challenge/' || (c ->> 'token'), c ->> 'value')
		ON CONFLICT (path) DO UPDATE SET value = excluded.value;
	ELSE
		DELETE FROM served WHERE path = '/.well-known/acme-challenge/' || (c ->> 'token');
	END IF;
END $$;
CREATE FUNCTION private(c jsonb) RETURNS void LANGUAGE sql AS '';
REVOKE EXECUTE ON FUNCTION private(jsonb) FROM PUBLIC;
EOQ
($id, $order) = challenge($node, 'http-01', 'b.test', 'function:public.serve', $value, undef, owner => 'web');
run_challenges($node);
presence_is($node, $id, 'present', 'a function presents');
is(sql('SELECT path, value, by FROM served'), '/.well-known/acme-challenge/' . token($id) . "|$value|web", '... as the role that created the certificate');
challenge_end($node, $order);
nothing_left($node, '... and removes');
is(sql('SELECT count(*) FROM served'), '0', '... what it presented');
inject($node, 'challenge-shown', 'kill');
($id, $order) = challenge($node, 'http-01', 'b.test', 'function:public.serve', $value);
eval { run_challenges($node) };
wait_for('a crash while it is at it', sub { struck($node, 'challenge-shown') });
wait_for('... the job runs again', sub { eval { run_challenges($node); 1 } });
presence_is($node, $id, 'present', '... and it is called again');
is(sql('SELECT count(*) FROM served'), '1', '... for one row: what it does and that it did is one transaction');
challenge_end($node, $order);
nothing_left($node, '... removed');

($id, $order) = challenge($node, 'http-01', 'b.test', 'function:public.private', $value, undef, owner => 'web');
run_challenges($node);
wait_for_sql($node, 'a function that the creator may not call (any more)', "SELECT status, error ~ 'may not execute public.private' FROM mlint.acme_challenge WHERE id = $id", 'given up|t');
challenge_end($node, $order);

# ---- a function that fails for one, and not for others ----
sql(<<'EOQ');
CREATE TABLE gone (token text);
GRANT SELECT ON gone TO web;
CREATE FUNCTION fickle(c jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	IF c ->> 'identifier' = 'never.test' AND c ->> 'action' = 'present' THEN
		RAISE EXCEPTION 'not today%', repeat(E'\x01', 2000);
	ELSIF EXISTS (SELECT FROM gone WHERE token = c ->> 'token') THEN
		RAISE EXCEPTION 'its host is gone' USING ERRCODE = 'ML005';
	END IF;
	PERFORM serve(c);
END $$;
EOQ
sub fickle
{
	my ($name) = @_;
	return challenge($node, 'http-01', $name, 'function:public.fickle', $value, undef, owner => 'web');
}
my @stuck = fickle('stuck.test');
run_challenges($node);
presence_is($node, $stuck[0], 'present', 'one is shown');
sql('INSERT INTO gone VALUES (' . literal(token($stuck[0])) . ')');
challenge_end($node, $stuck[1]);
wait_for_sql($node, '... and cannot be taken away', "SELECT presence, attempts > 0, solver_error FROM mlint.acme_challenge WHERE id = $stuck[0]", 'removing|t|its host is gone');
my @waits = fickle('waits.test');
job_rests($node, 'certificate_challenges');
sql("UPDATE mlint.acme_challenge SET attempts = 30 WHERE id = $stuck[0]; UPDATE mlint.acme_challenge SET attempts = 31 WHERE id = $waits[0]");
run_challenges($node, 1);
wait_for_sql($node, 'others of its solver wait for that, for two minutes at most',
	"SELECT attempts > 30 FROM mlint.acme_challenge WHERE id = $stuck[0]");
cmp_ok(sql("SELECT extract(epoch FROM next_at - now()) FROM mlint.acme_challenge WHERE id = $waits[0]"), '<', 121, '... not as long as it does');
job_rests($node, 'certificate_challenges');
sql("UPDATE mlint.acme_challenge SET attempts = 0 WHERE id = $waits[0]");
run_challenges($node, 1);
presence_is($node, $waits[0], 'present', '... and who has not failed yet is the first then');
job_rests($node, 'certificate_challenges');
sql("UPDATE mlint.acme_challenge SET attempts = 55 WHERE id = $stuck[0]");
my $logged = -s $node->logfile;
run_challenges($node, 1);
presence_is($node, $stuck[0], 'removed', 'what cannot be taken away is forgotten in the end');
like(substr(slurp_file($node->logfile), $logged), qr/what solver "function:public.fickle" has shown for "stuck.test" could not be removed, and may be left: its host is gone/, '... and logged');
challenge_end($node, $waits[1]);
presence_is($node, $waits[0], 'removed', 'the other is taken away');
my @never = fickle('never.test');
run_challenges($node);
wait_for_sql($node, 'one cannot be shown', "SELECT presence, attempts > 0 FROM mlint.acme_challenge WHERE id = $never[0]", 'presenting|t');
job_rests($node, 'certificate_challenges');
sql("UPDATE mlint.acme_challenge SET attempts = 6 WHERE id = $never[0]");
run_challenges($node, 1);
presence_is($node, $never[0], 'removed', '... and is given up');
is(sql("SELECT status, error ~ '^not today', octet_length(error) FROM mlint.acme_challenge WHERE id = $never[0]"), 'given up|t|1003', '... and why stays with it, within bounds');

# ---- the gateway needs no job ----
($id, $order) = challenge($node, 'http-01', 'c.test', undef, $value);
my $runs = sql("SELECT count(*) FROM mlint.job_runs WHERE name = 'certificate_challenges'");
run_challenges($node);
wait_for_sql($node, 'the job runs', "SELECT count(*) > $runs FROM mlint.job_runs WHERE name = 'certificate_challenges'");
is(sql("SELECT presence FROM mlint.acme_challenge WHERE id = $id"), 'wanted', '... and leaves alone what the gateway shows');
challenge_end($node, $order);

# ---- a challenge that stands still ----
($id, $order) = challenge($node, 'http-01', 'a.test', 'file:web', $value);
run_challenges($node);
presence_is($node, $id, 'present', 'a challenge that nobody ends');
sql("UPDATE mlint.acme_challenge SET presented_at = now() - '8 days'::interval WHERE id = $id");
run_challenges($node);
presence_is($node, $id, 'removed', '... is removed after a week');

$node->stop;
done_testing();
