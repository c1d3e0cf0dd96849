# Challenges of type dns-01 with a real Knot DNS: records are made by signed
# updates where aliases lead, count when all name servers show them, and are
# gone afterwards, whatever was killed or refused meanwhile. And name servers
# that answer whatever they like.
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
my $node = mlint_node('dns', conf => "restart_after_crash = on\n");
sub sql { return answer($node, @_); }

# Name a provider of kind rfc2136, with these options besides.
sub provider
{
	my ($name, %options) = @_;
	my $json = JSON::PP->new->utf8->canonical->encode({
		server => "127.0.0.1:$port", key_name => 'mlint', key => { secret => 'mlint' },
		resolver => "127.0.0.1:$port", port => $port, propagation_timeout_s => 60,
		timeout_ms => 5000, %options });
	return sql("SELECT mlint.dns_provider_create('$name', 'rfc2136', " . literal($json) . ')');
}
sub value { my ($c) = @_; return substr($c x 43, 0, 43); }

for my $key (qw(mlint mlint-sha512 mlint-sha1 stranger))
{
	my $secret = knot_key($key);
	sql("SELECT mlint.secret_put('$key', '$secret')");
}
is(provider('knot'), '', 'a provider is created');

# ---- options ----
like(provider('p', server => 'a b'), qr/ML007.*option "server" of DNS provider "p" is not the name or address/, 'a server that is none');
like(provider('p', key_name => '..'), qr/ML007.*option "key_name"/, 'a key name that is none');
like(provider('p', key => 'AAAA'), qr/ML007.*must be a reference to a credential/, 'a key in the clear');
like(provider('p', key => { secret => 'no' }), qr/42704.*secret "no"/, 'a secret that does not exist');
like(provider('p', algorithm => 'hmac-md5'), qr/ML007/, 'an algorithm that nobody should use');
like(provider('p', resolver => 'ns1.example.com'), qr/ML007.*option "resolver"/, 'a resolver that is a name');
like(provider('p', nameservers => '127.0.0.1, x'), qr/ML007.*option "nameservers"/, 'name servers that are none');
like(provider('p', nameservers => ''), qr/ML007.*option "nameservers"/, 'no name servers');
like(provider('p', zone => 'a..b'), qr/ML007.*option "zone"/, 'a zone that is none');
like(provider('knot'), qr/42710/, 'a name that is taken');
like(sql("SELECT mlint.dns_provider_create('p', 'bind', '{}')"), qr/ML007.*no kind "bind" of DNS provider/, 'a kind that does not exist');

# ---- the way of a record ----
my ($id, $order) = challenge($node, 'dns-01', 'quick.test', 'knot', value('a'));
run_challenges($node);
presence_is($node, $id, 'present', 'a record is made and seen');
is(txt('_acme-challenge.quick.test'), value('a'), '... it is there');
is(sql("SELECT made FROM mlint.acme_challenge WHERE id = $id"),
	'{"zone": "quick.test", "record": "_acme-challenge.quick.test"}', '... and it is written down where');
challenge_end($node, $order);
nothing_left($node, 'it goes with its order');
is(txt('_acme-challenge.quick.test'), '', '... and is gone');

# ---- a secondary that is behind ----
($id, $order) = challenge($node, 'dns-01', 'late.example.test', 'knot', value('b'));
my ($id2) = challenge($node, 'dns-01', 'quick.test', 'knot', value('c'), $order);
run_challenges($node);
wait_for_sql($node, 'a secondary that is behind is waited for, and named',
	"SELECT presence, error FROM mlint.certificate_challenges WHERE identifier = 'late.example.test'",
	"checking|ns2.example.test (127.0.0.2:$port) does not show it");
presence_is($node, $id2, 'present', '... which holds up no other');
is(txt('_acme-challenge.late.example.test', '127.0.0.1'), value('b'), '... the primary has it');
knot('refresh');
presence_is($node, $id, 'present', '... and when it has caught up, the record counts');
knot('down');
my ($id3) = challenge($node, 'dns-01', 'down.example.test', 'knot', value('d'), $order);
run_challenges($node);
wait_for_sql($node, 'one that cannot be reached is waited for, and named',
	"SELECT presence, error ~ '^ns2.example.test \\(127.0.0.2:$port\\) cannot be asked: ' FROM mlint.certificate_challenges WHERE identifier = 'down.example.test'",
	'checking|t');
challenge_end($node, $order);
nothing_left($node, 'an order that ends while waiting');
is(txt('_acme-challenge.late.example.test') . txt('_acme-challenge.down.example.test'), '', '... takes its records with it');

# ---- nobody waits for ever ----
sql(q(SELECT mlint.dns_provider_alter('knot', '{"propagation_timeout_s": 1}')));
($id, $order) = challenge($node, 'dns-01', 'never.example.test', 'knot', value('e'));
run_challenges($node);
wait_for_sql($node, 'patience ends', "SELECT status FROM mlint.acme_challenge WHERE id = $id", 'given up');
presence_is($node, $id, 'removed', '... and the record is removed');
like(sql("SELECT error FROM mlint.acme_challenge WHERE id = $id"), qr/^the record was not seen in 1 s: ns2.example.test .* cannot be asked/,
	'... whose order is told why');
is(txt('_acme-challenge.never.example.test'), '', '... and gone');
knot('up');
knot('refresh');
sql(q(SELECT mlint.dns_provider_alter('knot', '{"propagation_timeout_s": 60}')));

# ---- two values, one name ----
($id, $order) = challenge($node, 'dns-01', 'quick.test', 'knot', value('f'));
my $other;
($id2, $other) = challenge($node, 'dns-01', '*.quick.test', 'knot', value('g'));
run_challenges($node);
presence_is($node, $id, 'present', 'a domain');
presence_is($node, $id2, 'present', '... and its wildcard');
is(txt('_acme-challenge.quick.test'), value('f') . ' ' . value('g'), '... have two records of one name');
challenge_end($node, $order);
presence_is($node, $id, 'removed', '... one is removed');
is(txt('_acme-challenge.quick.test'), value('g'), '... without the other');
challenge_end($node, $other);
nothing_left($node, '... which follows');

# ---- aliases ----
($id, $order) = challenge($node, 'dns-01', 'www.example.test', 'knot', value('h'));
run_challenges($node);
presence_is($node, $id, 'present', 'an alias is followed');
is(txt('www.delegated.test'), value('h'), '... the record is where it leads');
is(sql("SELECT record FROM mlint.certificate_challenges"), 'www.delegated.test', '... which the view shows');
challenge_end($node, $order);
nothing_left($node, '... and removed there');
is(txt('www.delegated.test'), '', '... it is gone');
($id, $order) = challenge($node, 'dns-01', 'loop.example.test', 'knot', value('i'));
run_challenges($node);
wait_for_sql($node, 'an alias that leads in a circle is given up at once',
	"SELECT status, presence, error ~ 'leads through more than 8 others' FROM mlint.acme_challenge WHERE id = $id", 'given up|none|t');

# ---- what servers refuse ----
sub refused
{
	my ($what, $like, %options) = @_;
	my $domain = delete $options{domain} // 'quick.test';
	is(provider('r', %options), '', "provider: $what");
	like(sql("SELECT mlint.dns_provider_test('r', '$domain')"), $like, $what);
	is(txt("_acme-challenge.$domain"), '', '... and nothing is there');
	is(sql(q(SELECT mlint.dns_provider_drop('r'))), '', '... it is dropped');
	return;
}
# Knot has said BADKEY in an answer that has a signature, and since 3.4 in none.
my $unknown_key = qr/ML002.*it does not know the key, or .*\((?:BADKEY|NOTAUTH)\)/;
refused('a key that may not', $unknown_key, key_name => 'stranger', key => { secret => 'stranger' });
refused('a zone that is not to be changed', qr/ML002.*name server .* it does not let this key do it \(REFUSED\)|$unknown_key/, domain => 'locked.test');
refused('a key of another name', $unknown_key, key_name => 'unknown');
refused('a key with other bytes', qr/ML002.*\(BADSIG\)/, key => { secret => 'stranger' });
refused('a key of another algorithm', $unknown_key, algorithm => 'hmac-sha512');
sql("SELECT mlint.secret_put('words', 'not base64!')");
refused('a key that is none', qr/ML007.*the TSIG key "mlint" is not base64/, key => { secret => 'words' });
refused('a zone that is not there', qr/ML007.*"_acme-challenge.quick.test" is not in the zone "other.test"/, zone => 'other.test');
refused('nobody at the port', qr/ML004.*could not update zone "quick.test": name server 127.0.0.1:1:/, server => '127.0.0.1:1');
for my $algorithm (qw(sha512 sha1))
{
	is(provider($algorithm, key_name => "mlint-$algorithm", key => { secret => "mlint-$algorithm" }, algorithm => "hmac-$algorithm"),
		'', "a key of algorithm hmac-$algorithm");
	like(sql("SELECT mlint.dns_provider_test('$algorithm', 'quick.test')"),
		qr/^_acme-challenge\.quick\.test in zone quick\.test, seen after /, '... does');
	is(txt('_acme-challenge.quick.test'), '', '... and its test leaves nothing');
}
like(sql(q(SELECT mlint.dns_provider_test('knot', 'far.example.test'))), qr/ML003.*could not look up.*REFUSED/, 'an alias that leads where we cannot see');
like(sql(q(SELECT mlint.dns_provider_test('none', 'x.test'))), qr/42704/, 'no such provider');
sql(q(ALTER SYSTEM SET mlint.http_deny = '127.0.0.0/8'));
$node->reload;
wait_for('the network policy holds for name servers', sub { sql(q(SELECT mlint.dns_provider_test('knot', 'quick.test'))) =~ /ML009/ });
sql(q(ALTER SYSTEM RESET mlint.http_deny));
$node->reload;
wait_for_sql($node, '... and is open again', 'SHOW mlint.http_deny', '');

# ---- failures ----
sql("SELECT mlint.secret_put('turns', " . literal(knot_key('stranger')) . ')');
is(provider('turns', key => { secret => 'turns' }), '', 'a provider whose key is wrong');
($id, $order) = challenge($node, 'dns-01', 'quick.test', 'turns', value('j'));
run_challenges($node);
wait_for_sql($node, 'what fails is tried again', "SELECT presence, attempts > 0, error ~ 'BADSIG' FROM mlint.certificate_challenges", 'presenting|t|t');
like(sql(q(SELECT mlint.dns_provider_drop('turns'))), qr/2BP01.*certificate "c\d+" is proved with it/, 'a provider that a certificate needs stays');
for my $i (1 .. 7)
{
	run_challenges($node, 1);
	last if wait_for_sql($node, "attempt $i", "SELECT status = 'given up' OR attempts > $i FROM mlint.acme_challenge WHERE id = $id") &&
	  sql("SELECT status FROM mlint.acme_challenge WHERE id = $id") eq 'given up';
}
is(sql("SELECT status FROM mlint.acme_challenge WHERE id = $id"), 'given up', '... and given up');
wait_for_sql($node, '... and what may be there is to be removed', "SELECT presence, attempts > 0 FROM mlint.certificate_challenges", 'removing|t');
job_rests($node, 'certificate_challenges');
sql(q(UPDATE mlint.acme_challenge SET attempts = 60 WHERE presence = 'removing'));
run_challenges($node, 1);
wait_for_sql($node, 'removing is given up at last, and stays to be seen', "SELECT presence, next_at IS NULL, error ~ 'BADSIG' FROM mlint.certificate_challenges", 'removing|t|t');
like(slurp_file($node->logfile), qr/LOG:  ML002: what solver "turns" has shown|LOG:  what solver "turns" has shown for "quick.test" could not be removed, and may be left/, '... the log has it');
sql("SELECT mlint.secret_put('turns', " . literal(knot_key('mlint')) . ')');
sql(q(SELECT mlint.dns_provider_alter('turns', '{"ttl": 30}')));
wait_for('when the provider is mended and altered, it is removed at once', sub { sql('SELECT count(*) FROM mlint.certificate_challenges') eq '0' }, 20);
is(sql(q(SELECT string_agg(DISTINCT action, ' ' ORDER BY action) FROM mlint.audit_log WHERE action LIKE 'challenge.%')),
	'challenge.abandon challenge.give_up challenge.present challenge.remove', 'the audit log has it all');

# ---- a certificate that is dropped ----
($id, $order) = challenge($node, 'dns-01', 'quick.test', 'knot', value('k'));
run_challenges($node);
presence_is($node, $id, 'present', 'a record of a certificate');
sql("DELETE FROM mlint.acme_order WHERE id = $order");
sql("DELETE FROM mlint.certificate WHERE solver IN ('knot', 'turns')");
like(sql(q(SELECT mlint.dns_provider_drop('knot'))), qr/2BP01.*records made with it are still to be removed/, '... keeps its provider');
run_challenges($node);
wait_for_sql($node, '... and is removed without it', "SELECT count(*) FROM mlint.acme_challenge WHERE id = $id", '0');
is(txt('_acme-challenge.quick.test'), '', '... it is gone');

# ---- crashes ----
for my $place (qw(challenge-presenting challenge-shown challenge-checking challenge-present challenge-hidden challenge-removed))
{
	for my $ends (0, 1)
	{
		inject($node, $place, 'kill');
		($id, $order) = challenge($node, 'dns-01', 'quick.test', 'knot', value('l'));
		eval { run_challenges($node) };
		if ($place =~ /hidden|removed/)
		{
			presence_is($node, $id, 'present', "$place: present before");
			eval { challenge_end($node, $order) };
		}
		wait_for("$place: it strikes", sub { struck($node, $place) });
		if ($place !~ /hidden|removed/ && !$ends)
		{
			wait_for("$place: the job can be asked for", sub { eval { run_challenges($node); 1 } });
			presence_is($node, $id, 'present', "$place: gone on with after a crash");
			is(txt('_acme-challenge.quick.test'), value('l'), "$place: ... one record is there");
		}
		wait_for("$place: the order can end", sub { eval { challenge_end($node, $order); 1 } });
		nothing_left($node, "$place: nothing is left" . ($ends ? ', when the order has ended meanwhile' : ''));
		is(txt('_acme-challenge.quick.test'), '', "$place: ... nothing indeed");
		last if $place =~ /hidden|removed/;
	}
}

# ---- name servers that answer what they like ----
my $fake = MlintTest::Receiver->start('fake_dns.py');
sub hostile
{
	my ($what, $like) = @_;
	my $at = '127.0.0.1:' . $fake->port;
	sql(q(SELECT mlint.dns_provider_drop('h')));
	is(provider('h', resolver => $at, server => $at, timeout_ms => $what eq 'stall' ? 1000 : 10000), '',
		"a name server that sends $what");
	like(sql("SELECT mlint.dns_provider_test('h', '$what.test')"), $like, '... is refused');
	return;
}
hostile('garbage', qr/ML001.*its answer is no DNS message/);
hostile('short', qr/ML001.*its answer is no DNS message/);
hostile('truncated', qr/ML001.*not to our question/);
hostile('wrong-id', qr/ML001.*not to our question/);
hostile('wrong-question', qr/ML001.*not to our question/);
hostile('no-question', qr/ML001.*not to our question/);
hostile('a-query', qr/ML001.*not to our question/);
hostile('pointer-loop', qr/ML001.*its answer is no DNS message/);
hostile('half', qr/ML004.*closed the connection without an answer/);
hostile('nothing', qr/ML004.*closed the connection without an answer/);
hostile('stall', qr/ML005.*took too long to answer/);
hostile('servfail', qr/ML003.*SERVFAIL/);
hostile('cname-loop', qr/ML007.*leads through more than 8 others/);
hostile('cname-strange', qr/ML007.*is a CNAME of what is no host name/);
hostile('no-zone', qr/ML003.*could not find the zone/);
hostile('unsigned', qr/ML002.*the answer is not signed/);
hostile('signed-by-none', qr/ML002.*(another key|signature is wrong)/);
hostile('tsig-garbage', qr/ML00[12]/);
hostile('update-garbage', qr/ML001.*its answer is none to our update/);
is(sql('SELECT 1'), '1', 'and the server lives');

$fake->stop;
$node->stop;
done_testing();
