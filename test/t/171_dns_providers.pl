# DNS providers that are services: Cloudflare, Route 53, Azure DNS as stand-ins
# of ours, Route 53 as moto, too, and functions. A value is made beside others,
# found again after a crash, and removed without the others.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use DnsTest;
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SecretTest;
use Test::More;

my $port = knot_start();
my $services = MlintTest::Receiver->start('dns_services.py');
my $node = mlint_node('services', conf => "restart_after_crash = on\n");
sub sql { return answer($node, @_); }

sub provider
{
	my ($name, $kind, %options) = @_;
	my $json = JSON::PP->new->utf8->canonical->encode({
		resolver => "127.0.0.1:$port", propagation_timeout_s => 0, timeout_ms => 3000, %options });
	return sql("SELECT mlint.dns_provider_create('$name', '$kind', " . literal($json) . ')');
}
sub value { my ($c) = @_; return substr($c x 43, 0, 43); }

# What a service has of a name.
sub at
{
	my ($service, $name) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $services->port) or die $!;
	print $socket "GET /state HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
	IO::Select->new($socket)->can_read($MlintTest::deadline) or die 'no answer';
	local $/;
	my ($body) = <$socket> =~ /\r\n\r\n(.*)\z/s;
	return join ' ', @{ JSON::PP::decode_json($body)->{$service}{$name} // [] };
}

sql("SELECT mlint.secret_put('cf', 'cloudflare-token-1')");
sql("SELECT mlint.secret_put('aws', 'secret')");
sql("SELECT mlint.secret_put('az', 'azure-client-secret')");
my %options = (
	cloudflare => { token => { secret => 'cf' }, endpoint => $services->url('/cf') },
	route53 => { access_key_id => 'key-1', secret_access_key => { secret => 'aws' }, endpoint => $services->url('/r53') },
	azure => { subscription_id => '00000000-0000-0000-0000-000000000001', resource_group => 'web zones',
		tenant_id => 'tenant', client_id => 'client', client_secret => { secret => 'az' },
		authority => $services->url(''), endpoint => $services->url('/az') });

# ---- options ----
is(sql("SELECT string_agg(DISTINCT kind, ' ' ORDER BY kind) FROM mlint.dns_provider_kinds"),
	'azure cloudflare function rfc2136 route53', 'the kinds');
like(provider('p', 'cloudflare', %{ $options{cloudflare} }, token => 'x'), qr/ML007.*must be a reference/, 'a token in the clear');
like(provider('p', 'cloudflare', %{ $options{cloudflare} }, zone_id => '../x'), qr/ML007.*"zone_id"/, 'a zone id that is none');
like(provider('p', 'route53', %{ $options{route53} }, hosted_zone_id => 'a/b'), qr/ML007.*"hosted_zone_id"/, 'a hosted zone id that is none');
like(provider('p', 'azure', %{ $options{azure} }, subscription_id => '../'), qr/ML007.*"subscription_id"/, 'a subscription that is none');
like(provider('p', 'function', function => 'public.nothing'), qr/ML007.*there is no function public.nothing\(jsonb\)/, 'a function that is none');

# ---- the way of a record, at each ----
for my $kind (qw(cloudflare route53 azure))
{
	is(provider($kind, $kind, %{ $options{$kind} }), '', "$kind: a provider");
	like(sql("SELECT mlint.dns_provider_test('$kind', 'a.example.test')"),
		qr/^_acme-challenge\.a\.example\.test in zone example\.test, made in /, '... its test');
	is(at($kind, '_acme-challenge.a.example.test'), '', '... leaves nothing');
	like(sql("SELECT mlint.dns_provider_test('$kind', 'quick.test')"), qr/ML00[37].*(zone "quick.test"|status 404|answered with status)/s, '... a zone that it does not have');

	my ($id, $order) = challenge($node, 'dns-01', 'a.example.test', $kind, value('a'));
	my ($id2, $other) = challenge($node, 'dns-01', '*.a.example.test', $kind, value('b'));
	run_challenges($node);
	presence_is($node, $id, 'present', "$kind: one record");
	presence_is($node, $id2, 'present', '... another of the same name');
	is(at($kind, '_acme-challenge.a.example.test'), value('a') . ' ' . value('b'), '... are both there');
	challenge_end($node, $order);
	presence_is($node, $id, 'removed', '... one is removed');
	is(at($kind, '_acme-challenge.a.example.test'), value('b'), '... without the other');
	challenge_end($node, $other);
	nothing_left($node, '... which follows');
	is(at($kind, '_acme-challenge.a.example.test'), '', '... nothing is there');

	# It is made, and we die before that is written down.
	inject($node, 'challenge-shown', 'kill');
	($id, $order) = challenge($node, 'dns-01', 'a.example.test', $kind, value('c'));
	eval { run_challenges($node) };
	wait_for("$kind: a crash", sub { struck($node, 'challenge-shown') });
	wait_for('... the server is back', sub { eval { run_challenges($node); 1 } });
	presence_is($node, $id, 'present', '... is gone on after');
	is(at($kind, '_acme-challenge.a.example.test'), value('c'), '... with one record');
	inject($node, 'challenge-hidden', 'kill');
	eval { challenge_end($node, $order) };
	wait_for('... another', sub { struck($node, 'challenge-hidden') });
	wait_for('... the server is back', sub { eval { run_challenges($node); 1 } });
	nothing_left($node, '... leaves nothing');
	is(at($kind, '_acme-challenge.a.example.test'), '', '... nothing indeed');

	# Also when the order is over by the time that we are back.
	inject($node, 'challenge-shown', 'kill');
	($id, $order) = challenge($node, 'dns-01', 'a.example.test', $kind, value('d'));
	eval { run_challenges($node) };
	wait_for("$kind: a crash", sub { struck($node, 'challenge-shown') });
	wait_for('... and the order ends', sub { eval { challenge_end($node, $order); 1 } });
	nothing_left($node, '... it is removed');
	is(at($kind, '_acme-challenge.a.example.test'), '', '... indeed');

	# The answer is lost: it is done, and we do not know.
	$services->control('lost');
	($id, $order) = challenge($node, 'dns-01', 'a.example.test', $kind, value('e'));
	run_challenges($node);
	wait_for_sql($node, "$kind: answers that get lost", "SELECT attempts > 0 FROM mlint.acme_challenge WHERE id = $id");
	$services->control('normal');
	run_challenges($node, 1);
	presence_is($node, $id, 'present', '... are asked for again');
	is(at($kind, '_acme-challenge.a.example.test'), value('e'), '... one record is there');
	challenge_end($node, $order);
	nothing_left($node, '... and goes');

	# Too many requests: whatever is to be done there waits for as long as it says,
	# but not for a day.
	$services->control('throttle');
	($id, $order) = challenge($node, 'dns-01', 'a.example.test', $kind, value('e'));
	($id2) = challenge($node, 'dns-01', 'b.example.test', $kind, value('g'), $order);
	run_challenges($node);
	wait_for_sql($node, "$kind: too many requests",
		"SELECT count(*) = 2 AND min(next_at) > now() + '50 minutes' AND max(next_at) < now() + '61 minutes' AND max(solver_error) ~ 'has had too many requests'"
		. " FROM mlint.acme_challenge WHERE order_id = $order");
	$services->control('normal');
	challenge_end($node, $order);
	nothing_left($node, '... none of which is made');

	# Answers that are none.
	for my $mode (qw(fail throttle garbage huge stall))
	{
		$services->control($mode);
		my $said = sql("SELECT mlint.dns_provider_test('$kind', 'a.example.test')");
		like($said, qr/ERROR:  ML0(0[1358]|13)/, "$kind: $mode");
		unlike($said, qr/cloudflare-token-1|azure-client-secret|azure-token-1/, '... tells no credential');
	}
	$services->control('normal');
}
is(at('route53', 'x') . sql('SELECT count(*) FROM mlint.certificate_challenges'), '0', 'nothing is left of all that');

# ---- credentials that are refused ----
sql("SELECT mlint.secret_put('cf', 'cloudflare-token-2')");
like(my $said = sql("SELECT mlint.dns_provider_test('cloudflare', 'a.example.test')"), qr/ML002.*Cloudflare refused our credentials/s, 'a token that is refused');
unlike($said, qr/cloudflare-token-2/, '... is not told');
sql("SELECT mlint.secret_put('cf', '" . 'long-token' x 150 . "')");
$services->control('quote');
like($said = sql("SELECT mlint.dns_provider_test('cloudflare', 'a.example.test')"), qr/It says: not Bearer \*\*\*/, 'a long one that is quoted');
unlike($said, qr/long-token/, '... is not told either');
$services->control('normal');
sql("SELECT mlint.dns_provider_alter('route53', '{\"access_key_id\": \"key-2\"}')");
like(sql("SELECT mlint.dns_provider_test('route53', 'a.example.test')"), qr/ML002.*Route 53 refused our credentials/s, 'keys that are refused');
sql("SELECT mlint.dns_provider_alter('route53', '{\"access_key_id\": \"key-1\"}')");
sql("SELECT mlint.secret_put('az', 'wrong')");
like(sql("SELECT mlint.dns_provider_test('azure', 'a.example.test')"), qr/ML002.*login of Azure failed/s, 'a login that is refused');
sql("SELECT mlint.secret_put('az', 'azure-client-secret')");

# ---- somebody else at the same set ----
for my $kind (qw(route53 azure))
{
	$services->control('race');
	my ($id, $order) = challenge($node, 'dns-01', 'race.example.test', $kind, value('f'));
	run_challenges($node);
	presence_is($node, $id, 'present', "$kind: a set that another changes meanwhile");
	is(at($kind, '_acme-challenge.race.example.test'), value('f') . ' other', '... has both values');
	challenge_end($node, $order);
	nothing_left($node, '... ours is removed');
	is(at($kind, '_acme-challenge.race.example.test'), 'other', '... and the other is left');
}

# ---- what the service itself says of its servers ----
sql("SELECT mlint.dns_provider_alter('route53', '{\"propagation_timeout_s\": 100, \"nameservers\": \"127.0.0.1:$port\"}')");
my ($pending, $pending_order) = challenge($node, 'dns-01', 'p.example.test', 'route53', value('p'));
run_challenges($node);
wait_for_sql($node, 'route53: a change that is pending is waited for',
	"SELECT presence, error FROM mlint.certificate_challenges", 'checking|DNS provider "route53" has not yet told its name servers');
wait_for_sql($node, '... and then its name servers are looked at',
	"SELECT presence, error FROM mlint.certificate_challenges", "checking|127.0.0.1:$port does not show it");
challenge_end($node, $pending_order);
nothing_left($node, '... an end ends that');
sql("SELECT mlint.dns_provider_alter('route53', '{\"propagation_timeout_s\": 0}')");

# ---- moto ----
my ($dir, $moto) = peer_start('moto');
my $venv = $ENV{MOTO_VENV} // "$dir/venv";
sub boto
{
	my ($code) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ "$venv/bin/python", '-c', <<"EOP" ], '>', \$out, '2>', \$err) or die $err;
import boto3
c = boto3.client("route53", endpoint_url="http://127.0.0.1:$moto", region_name="us-east-1",
                 aws_access_key_id="x", aws_secret_access_key="y")
$code
EOP
	chomp $out;
	return $out;
}
my $zone = boto(q{print(c.create_hosted_zone(Name="example.test", CallerReference="1")["HostedZone"]["Id"])});
sub sets { return boto(qq{print(" ".join(sorted(v["Value"] for r in c.list_resource_record_sets(HostedZoneId="$zone")["ResourceRecordSets"] if r["Type"] == "TXT" for v in r["ResourceRecords"])))}); }
is(provider('moto', 'route53', %{ $options{route53} }, endpoint => "http://127.0.0.1:$moto", access_key_id => 'x'), '', 'moto: a provider');
my ($id, $order) = challenge($node, 'dns-01', 'm.example.test', 'moto', value('g'));
my ($id2, $other) = challenge($node, 'dns-01', '*.m.example.test', 'moto', value('h'));
run_challenges($node);
presence_is($node, $id, 'present', '... a record');
presence_is($node, $id2, 'present', '... and another of its name');
is(sets(), '"' . value('g') . '" "' . value('h') . '"', '... are both there');
challenge_end($node, $order);
presence_is($node, $id, 'removed', '... one is removed');
is(sets(), '"' . value('h') . '"', '... without the other');
challenge_end($node, $other);
nothing_left($node, '... which follows');
is(sets(), '', '... nothing is there');

# ---- functions ----
sql(<<'EOQ');
CREATE ROLE web LOGIN IN ROLE mlint_admin;
CREATE TABLE told (n int GENERATED ALWAYS AS IDENTITY, by name DEFAULT current_user, c jsonb);
GRANT INSERT ON told TO web;
CREATE FUNCTION dns(c jsonb) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
	IF c ->> 'identifier' = 'slow.example.test' THEN PERFORM pg_sleep(100); END IF;
	IF c ->> 'identifier' = 'bad.example.test' THEN RAISE 'not today'; END IF;
	INSERT INTO told (c) VALUES (c); RETURN 'done'; END $$;
EOQ
is(sql(<<"EOQ"), '', 'a function\'s provider');
SET ROLE web;
SELECT mlint.dns_provider_create('mine', 'function', '{"function": "public.dns", "resolver": "127.0.0.1:$port", "propagation_timeout_s": 0, "timeout_ms": 500}');
EOQ
($id, $order) = challenge($node, 'dns-01', 'www.example.test', 'mine', value('i'));
run_challenges($node);
presence_is($node, $id, 'present', '... presents');
challenge_end($node, $order);
nothing_left($node, '... and removes');
is(sql("SELECT by, c - 'token' FROM told ORDER BY n"), join("\n", map {
	qq(web|{"type": "dns-01", "zone": "delegated.test", "value": ") . value('i') . qq(", "action": "$_", "record": "www.delegated.test", "identifier": "www.example.test"}) } qw(present remove)),
	'... told what to do, as the role that created it');
my ($slow, $o1) = challenge($node, 'dns-01', 'slow.example.test', 'mine', value('j'));
my ($bad, $o2) = challenge($node, 'dns-01', 'bad.example.test', 'mine', value('k'));
run_challenges($node);
wait_for_sql($node, 'one that takes too long is ended', "SELECT attempts > 0, solver_error ~ 'timeout' FROM mlint.acme_challenge WHERE id = $slow", 't|t');
wait_for("one that fails says why", sub { run_challenges($node, 1); sql("SELECT attempts > 0 AND solver_error ~ 'not today' FROM mlint.acme_challenge WHERE id = $bad") eq 't' });
sql('CREATE OR REPLACE FUNCTION dns(c jsonb) RETURNS text LANGUAGE sql AS $$ SELECT \'\' $$');
challenge_end($node, $_) for $o1, $o2;
wait_for('all is removed', sub { run_challenges($node, 1); sql('SELECT count(*) FROM mlint.certificate_challenges') eq '0' });
like(sql(q(SET ROLE web; SELECT mlint.dns_provider_drop('mine'))), qr/2BP01/, 'it stays while certificates name it');
sql("CREATE ROLE other LOGIN IN ROLE mlint_admin");
like(sql(q(SET ROLE other; SELECT mlint.dns_provider_alter('mine', '{"function": "public.other"}'))), qr/42501/, 'nobody else says what runs as its creator');

# ---- one that is away does not hold up others ----
$services->control('stall');
challenge($node, 'dns-01', "n$_.example.test", 'cloudflare', value('l')) for 1 .. 20;
($id, $order) = challenge($node, 'dns-01', 'quick.example.test', 'mine', value('m'));
my $begun = time;
run_challenges($node);
presence_is($node, $id, 'present', 'a service that does not answer to twenty others');
cmp_ok(time - $begun, '<', 30, '... holds up nobody for long');
$services->control('normal');

$node->stop;
done_testing();
