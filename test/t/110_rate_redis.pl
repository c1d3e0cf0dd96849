# Rate limits in Redis: several PostgreSQL servers together admit what the law
# says, and what an administrator can get wrong is said.
#
# This build raises an error when a decision of Redis is not that of law.c on
# the same state at the same time; so all decisions here are compared.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use MlintTest;
use PostgreSQL::Test::Utils;
use RedisTest;
use Test::More;

my $redis = RedisTest->start;
my $hosts = $redis->hosts;
my @nodes = map { mlint_node("pg$_") } 1 .. 3;
my $one = $nodes[0];

sub on_all
{
	my ($sql) = @_;

	$_->safe_psql('postgres', $sql) for @nodes;
	return;
}

sub q1 { return $one->safe_psql('postgres', $_[0]); }

sub fails
{
	my ($what, $sql, $like) = @_;
	my ($rc, $out, $err) = $one->psql('postgres', "\\set VERBOSITY verbose\n$sql");

	like($err, $like, $what);
	return;
}

# A server that pauses is no matter of this test.
on_all("SELECT mlint.rate_backend_create('redis', options => '{\"hosts\": \"$hosts\", \"timeout_ms\": 20000, \"connect_timeout_ms\": 20000}')");
like(q1("SELECT mlint.rate_backend_test('redis')"),
	qr/^Redis \S+ at 127\.0\.0\.1:\d+; a decision takes \d+ us$/,
	'the test of a backend says what it found');

# --- exactly what the law says, over three servers ---

my @rules = (
	[ 'tokens', 'token_bucket', 1, '1 day', 1000 ],
	[ 'leak', 'leaky_bucket', 1, '1 day', 1000 ],
	[ 'fixed', 'fixed_window', 1000, '3650 days', 'NULL' ],
	[ 'sliding', 'sliding_window', 1000, '1 day', 'NULL' ]);

for my $rule (@rules)
{
	my ($name, $algorithm, $rate, $per, $burst) = @$rule;

	on_all("SELECT mlint.rate_rule_create('$name', '$algorithm', $rate, '$per', $burst, backend => 'redis', fail => 'closed')");
	my @runs;

	for my $node (@nodes, @nodes)
	{
		my ($out, $err) = ('', '');
		my $h = IPC::Run::start(
			[
				'psql', '-XAtq', '-d', $node->connstr('postgres'),
				'-c', "SELECT count(*) FILTER (WHERE (mlint.rate_check('$name', 'all', 1 + n % 3)).allowed),"
				  . " coalesce(sum(1 + n % 3) FILTER (WHERE (mlint.rate_check('$name', 'sum', 1 + n % 3)).allowed), 0)"
				  . " FROM generate_series(1, 400) n"
			],
			'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout($MlintTest::deadline));
		push @runs, [ $h, \$out, \$err ];
	}
	my $tokens = 0;

	for my $run (@runs)
	{
		$run->[0]->finish;
		is(${ $run->[2] }, '', "$algorithm: no error");
		$tokens += (split /\|/, ${ $run->[1] })[1] // 0;
	}
	# What is left when a cost of 3 or 2 no longer passed goes by ones.
	my $rest = q1("SELECT count(*) FILTER (WHERE (mlint.rate_check('$name', 'sum')).allowed) FROM generate_series(1, 10)");
	is($tokens + $rest, 1000,
		"$algorithm: three servers admit 1000 together, to the token");
}

# --- by the law, at every moment ---

for my $algorithm (qw(token_bucket leaky_bucket fixed_window sliding_window))
{
	my $burst = $algorithm =~ /bucket/ ? 50 : 'NULL';

	q1("SELECT mlint.rate_rule_create('fast_$algorithm', '$algorithm', 37, '101 ms', $burst, backend => 'redis', fail => 'closed')");
	my $seen = q1("SELECT count(*) FILTER (WHERE (d).allowed), count(*) FILTER (WHERE NOT (d).allowed), count(*) FILTER (WHERE (d).degraded)"
		  . " FROM (SELECT mlint.rate_check('fast_$algorithm', (n % 3)::text, 1 + (n * 7919) % 11) AS d FROM generate_series(1, 6000) n) s");

	like($seen, qr/^[1-9]\d*\|[1-9]\d*\|0$/,
		"$algorithm: thousands of decisions of a busy limit are law.c's ($seen)");
}

# --- a state from before Redis's clock was set back ---

{
	my $ahead = (time + 3600) * 1000000;
	my %state = (
		token_bucket => "b $ahead 0",
		fixed_window => "f $ahead 1",
		sliding_window => 's 1000000 ' . $ahead / 20000 . ':1');

	for my $algorithm (sort keys %state)
	{
		q1("SELECT mlint.rate_rule_create('later_$algorithm', '$algorithm', 1, '1 s', backend => 'redis', fail => 'closed')");
		$redis->cli('set', "mlint:later_$algorithm:{k}", $state{$algorithm});
		is(q1("SELECT (d).allowed, (d).retry_after <= '1.02 s' FROM mlint.rate_check('later_$algorithm', 'k') d"),
			'f|t', "$algorithm: a debt of an hour is cut to a full one");
		wait_for('... which ends, however often one asks', sub { q1("SELECT mlint.rate_allow('later_$algorithm', 'k')") eq 't' }, 20);
	}
}

# --- several at once, peek, reset ---

q1("SELECT mlint.rate_rule_create('wide', 'token_bucket', 1, '1 day', 5, backend => 'redis')");
fails('a slice larger than all there is',
	"SELECT mlint.rate_rule_create('slice', 'token_bucket', 10, '1 day', backend => 'redis', mode => 'leased', lease => 11)",
	qr/22023: the lease of rate limit "slice" must be at most its capacity, 10/);
q1("SELECT mlint.rate_rule_create('narrow', 'token_bucket', 1, '1 day', 2)");
is(q1("SELECT string_agg((mlint.rate_check_all('{wide,narrow}', 'x')).allowed::text, ' ') FROM generate_series(1, 4)"),
	'true true false false', 'all or none, in Redis and here');
is(q1("SELECT (mlint.rate_peek('wide', 'x')).remaining"),
	2, 'what a refusal had taken was given back; a peek takes nothing');
q1("SELECT mlint.rate_reset('wide', 'x')");
is(q1("SELECT (mlint.rate_check('wide', 'x', 5)).allowed"), 't', 'an identifier is reset');
q1("SELECT mlint.rate_check('wide', 'y', 5)");
q1("SELECT mlint.rate_reset('wide')");
is(q1("SELECT bool_and((mlint.rate_check('wide', i, 5)).allowed) FROM unnest('{x,y}'::text[]) i"),
	't', 'all are reset');
is(q1("SELECT checks FROM mlint.stat_rate_limits WHERE rule = 'wide'") > 0 ? 1 : 0,
	1, 'shared decisions are counted');

# --- identifiers ---

q1("SELECT mlint.rate_rule_create('who', 'token_bucket', 1, '1 day', 1, backend => 'redis')");
q1("SELECT mlint.rate_rule_create('who:{x}%', 'token_bucket', 1, '1 day', 1, backend => 'redis')");
is(q1(<<'EOQ'), 't|f', 'each identifier has its own limit, whatever is in it');
WITH ids AS MATERIALIZED (
	SELECT '' AS id UNION SELECT repeat('x', n) FROM unnest('{39,40,41,42,10000,9999}'::int[]) n
	UNION SELECT repeat('x', 9999) || 'y'
	UNION SELECT chr(n) FROM generate_series(1, 300) n
	UNION SELECT unnest('{"{","}","{}","{a}","{a}{b}","a}b","}#"," ","*"}'::text[])),
first AS MATERIALIZED (SELECT bool_and(mlint.rate_allow(r, id)) AS a FROM ids, unnest('{who,"who:{x}%"}'::text[]) r),
second AS MATERIALIZED (SELECT bool_or(mlint.rate_allow(r, id)) AS b FROM first, ids, unnest('{who,"who:{x}%"}'::text[]) r)
SELECT a, b FROM first, second
EOQ

# --- keys expire by themselves ---

q1("SELECT mlint.rate_rule_create('short', 'token_bucket', 10, '1 s', 10, backend => 'redis')");
q1("SELECT mlint.rate_check('short', 'gone', 5)");
wait_for('a state that is as good as new has expired',
	sub { $redis->cli('exists', 'mlint:short:{gone}') eq '0' });
is($redis->cli('eval',
		"local n = 0 for _, k in ipairs(redis.call('KEYS', '*')) do"
		  . " if redis.call('PTTL', k) < 0 then n = n + 1 end end return n", '0'),
	'0', 'no key is there for ever');

# --- a server that has forgotten scripts, or was restarted ---

$redis->cli('script', 'flush');
is(q1("SELECT (mlint.rate_check('wide', 'flushed')).degraded"), 'f',
	'scripts that were flushed are loaded again');
{
	my ($out, $err, $in) = ('', '', '');
	my $timer = IPC::Run::timeout(60);
	my $h = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $one->connstr('postgres'), '-f', '-' ],
		'<', \$in, '>', \$out, '2>', \$err, $timer);

	$in .= "SELECT (mlint.rate_check('wide', 'kept')).degraded;\n";
	$h->pump until $out =~ /\n/;
	$redis->down;
	$redis->up;
	$in .= "SELECT (mlint.rate_check('wide', 'kept')).degraded;\n";
	$h->pump until $out =~ /\n.*\n/s;
	is($out, "f\nf\n", 'a connection that the server closed is made anew');
	$in .= "\\q\n";
	$h->finish;
}

# --- logging in ---

my $locked = RedisTest->start('requirepass open', 'user limits on >sesame ~mlint:* +@all');
my $at = $locked->hosts;

q1("SELECT mlint.secret_put('redis_password', 'wrong')");
q1("SELECT mlint.rate_backend_create('locked', options => '{\"hosts\": \"$at\", \"timeout_ms\": 20000, \"connect_timeout_ms\": 20000,"
	  . " \"password\": {\"secret\": \"redis_password\"}, \"breaker\": {\"threshold\": 0}}')");
fails('a wrong password is an error of authentication',
	"SELECT mlint.rate_backend_test('locked')", qr/ERROR:  ML002: .*WRONGPASS/);
q1("SELECT mlint.rate_rule_create('locked', 'token_bucket', 1, '1 day', 1, backend => 'locked', fail => 'closed')");
is(q1("SELECT allowed, degraded, reason FROM mlint.rate_check('locked')"),
	'f|t|backend', '... and in a decision no error, but what the rule says');
q1("SELECT mlint.secret_put('redis_password', 'open')");
is(q1("SELECT allowed, degraded FROM mlint.rate_check('locked')"), 't|f',
	'the password of now is used');
q1("SELECT mlint.secret_put('redis_password', 'sesame')");
q1("SELECT mlint.rate_backend_alter('locked', '{\"username\": \"limits\"}')");
like(q1("SELECT mlint.rate_backend_test('locked')"), qr/^Redis/, 'a user of an access list');
q1("SELECT mlint.secret_drop('redis_password')");
is(q1("SELECT allowed, degraded, reason FROM mlint.rate_check('locked', 'z')"),
	'f|t|backend', 'a password that is gone is a failure like any other');
like(q1("SELECT last_error FROM mlint.rate_backends WHERE name = 'locked'"),
	qr/a credential does not resolve/, '... and the view says so');
$locked->down;

# --- TLS ---

my $tls = RedisTest->tls;
my $port = $tls->port;
my $ca = slurp_file($tls->dir . '/ca.pem');

sub tls_options
{
	my (%more) = @_;

	return JSON::PP->new->encode(
		{
			hosts => "localhost:$port",
			tls => JSON::PP::true,
			ca => $ca,
			certificate => { file => $tls->dir . '/client.pem' },
			key => { file => $tls->dir . '/client.key' },
			breaker => { threshold => 0 },
			timeout_ms => 20000,
			connect_timeout_ms => 20000,
			%more
		});
}

sub tls_backend
{
	my ($name, %more) = @_;

	q1("SELECT mlint.rate_backend_create('$name', options => " . literal(tls_options(%more)) . ")");
	return;
}

tls_backend('tls');
like(q1("SELECT mlint.rate_backend_test('tls')"), qr/^Redis/, 'TLS, verified, with a client certificate');
tls_backend('tls_address', hosts => "127.0.0.1:$port");
fails('a name that is not in the certificate is refused',
	"SELECT mlint.rate_backend_test('tls_address')", qr/ERROR:  ML004: .*certificate/i);
tls_backend('tls_any', hosts => "127.0.0.1:$port", verify => JSON::PP::false);
like(q1("SELECT mlint.rate_backend_test('tls_any')"), qr/^Redis/, '... unless told not to verify');
{
	my $other = RedisTest->tls;

	tls_backend('tls_other', ca => slurp_file($other->dir . '/ca.pem'));
	fails('a certificate of another authority is refused',
		"SELECT mlint.rate_backend_test('tls_other')", qr/ERROR:  ML004: .*not trusted/);
	$other->down;
}
tls_backend('tls_anonymous', certificate => undef, key => undef);
fails('without a client certificate the server hangs up',
	"SELECT mlint.rate_backend_test('tls_anonymous')", qr/ERROR:  ML004/);
$tls->down;

# --- the network policy holds for Redis too ---

$one->append_conf('postgresql.conf', "mlint.http_deny = '127.0.0.0/8'");
$one->reload;
wait_for_sql($one, 'nothing is asked where mlint.http_deny forbids it',
	"SELECT degraded FROM mlint.rate_check('wide', 'p')");
like(q1("SELECT last_error FROM mlint.rate_backends WHERE name = 'redis'"),
	qr/127\.0\.0\.1.*mlint\.http_deny/, '... and the view says so');
$one->append_conf('postgresql.conf', "mlint.http_deny = ''");
$one->reload;
wait_for_sql($one, 'until it no longer does',
	"SELECT NOT degraded FROM mlint.rate_check('wide', 'p')");

# --- what is refused ---

fails('a backend in use is not dropped',
	"SELECT mlint.rate_backend_drop('redis')", qr/2BP01: .*in use.*\n.*fast_/);
fails('an unknown option', "SELECT mlint.rate_backend_create('b', options => '{\"hosts\": \"x\", \"hots\": 1}')", qr/ML007/);
fails('no hosts', "SELECT mlint.rate_backend_create('b')", qr/ML007/);
fails('a plain password', "SELECT mlint.rate_backend_create('b', options => '{\"hosts\": \"x\", \"password\": \"p\"}')", qr/ML007/);
fails('hosts that are none', "SELECT mlint.rate_backend_create('b', options => '{\"hosts\": \"a:0\"}')", qr/ML007.*\n.*port/);
fails('a kind that is none', "SELECT mlint.rate_backend_create('b', 'memcached', '{}')", qr/ML007.*memcached/);
fails('the name of this server\'s memory', "SELECT mlint.rate_backend_create('local')", qr/42939/);
fails('a rule on no backend', "SELECT mlint.rate_rule_create('n', 'token_bucket', 1, '1 s', backend => 'none')", qr/42704/);
fails('numbers beyond 2^53',
	"SELECT mlint.rate_rule_create('n', 'fixed_window', 9007199254740993, '1 s', backend => 'redis')", qr/ML007.*\n.*2\^53/);
fails('a leaky bucket that is leased',
	"SELECT mlint.rate_rule_create('n', 'leaky_bucket', 1, '1 s', backend => 'redis', mode => 'leased')", qr/cannot be leased/);
fails('a lease of less than a second',
	"SELECT mlint.rate_rule_create('n', 'token_bucket', 1, '10 ms', backend => 'redis', mode => 'leased')", qr/ML007.*below a second/);
is(q1("SELECT count(*) FROM mlint.rate_backend_kinds WHERE kind = 'redis' AND option IN ('hosts', 'breaker.timeout_s')"),
	2, 'the options are in a view');
q1("SELECT mlint.rate_backend_drop('tls_any')");
is(q1("SELECT count(*) FROM mlint.rate_backends WHERE name = 'tls_any'"), 0, 'one that is not in use is dropped');

done_testing();
