# Certificates from elsewhere, made by openssl: whatever order their chain comes
# in, and none that a client would not take; signing requests; what is warned
# of, and what expires; keys that are destroyed in time; and a dump that brings
# it all back.

use strict;
use warnings;

use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SecretTest;
use TargetTest qw(openssl serial_of);
use Test::More;

my $node = mlint_node('certificates', conf => "log_statement = 'none'\nlog_min_error_statement = error\n");
my $dir = PostgreSQL::Test::Utils::tempdir();

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub put { my ($name, $text) = @_; unlink "$dir/$name"; append_to_file("$dir/$name", $text); return; }
sub pem { my ($name) = @_; return slurp_file("$dir/$name.pem"); }
sub key { my ($name) = @_; return slurp_file("$dir/$name.key"); }

# A certificate NAME.pem with its key NAME.key. by: the issuer's name (none: by
# itself); ext: extensions; days; key: arguments for openssl req; more: for x509.
sub certificate
{
	my ($name, %how) = @_;
	my @key = @{ $how{key} // [qw(ec -pkeyopt ec_paramgen_curve:prime256v1)] };

	openssl('', 'req', '-newkey', @key, '-nodes', '-subj', $how{subject} // "/CN=$name",
		'-keyout', "$dir/$name.key", '-out', "$dir/$name.csr");
	put("$name.ext", $how{ext});
	openssl('', 'x509', '-req', '-in', "$dir/$name.csr", '-days', $how{days} // 365,
		'-extfile', "$dir/$name.ext", '-out', "$dir/$name.pem", @{ $how{more} // [] },
		defined $how{by} ? ('-CA', "$dir/$how{by}.pem", '-CAkey', "$dir/$how{by}.key", '-CAcreateserial')
		: ('-key', "$dir/$name.key"));
	return;
}

my $ca = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
  . "subjectKeyIdentifier=hash\n";
my $up = "authorityKeyIdentifier=keyid\n";

sub leaf
{
	my ($name, %how) = @_;
	my $san = $how{san} // "DNS:$name.example";
	certificate($name, by => $how{by} // 'two',
		ext => "basicConstraints=CA:FALSE\nsubjectAltName=$san\n$up" . ($how{more_ext} // ''), %how);
	return;
}

certificate('root', ext => $ca, days => 3650);
certificate('one', by => 'root', ext => $ca . $up, days => 3000);
certificate('two', by => 'one', ext => $ca . $up, days => 2000);

# Import; the answer, or the error in full.
sub import_of
{
	my ($chain, $key, $name) = @_;
	return answer($node, 'SELECT mlint.certificate_import(' . literal($chain) . ', '
		  . (defined $key ? literal($key) : 'NULL') . ', ' . (defined $name ? literal($name) : 'NULL') . ')');
}

sub imports
{
	my ($what, $chain, $key, $name) = @_;
	my $answer = import_of($chain, $key, $name);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like($answer, qr/^[0-9a-f-]{36}$/, $what);
	return $answer;
}

sub refused
{
	my ($what, $why, $chain, $key, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like(import_of($chain, $key, $name), qr/ML007: .*\Q$why\E/, $what);
	return;
}

#
# Chains
#

leaf('a');
my ($leaf, $one, $two, $root) = map { pem($_) } qw(a one two root);
my %chains = (
	'in order' => $leaf . $two . $one,
	'with the root' => $leaf . $two . $one . $root,
	'upside down' => $root . $one . $two . $leaf,
	'in no order' => $one . $leaf . $root . $two,
	'some twice' => $leaf . $two . $leaf . $one . $two,
	'with text around' => "Subject: a\n$leaf\nIssuer: two\r\n$two\n\n\n$one trailing words\n",
	'with other line ends' => ($leaf . $two . $one) =~ s/\n/\r\n/gr,
	'with a key between' => $leaf . key('a') . $two . $one);
my $expected = $leaf . $two . $one;
my $n = 0;

for my $how (sort keys %chains)
{
	my $id = imports("a chain $how", $chains{$how}, key('a'), 'chain' . $n++);
	is(sql("SELECT chain FROM mlint.certificate_get('$id')"), $expected, "a chain $how is kept in order, without the root");
	is(sql("SELECT leaf FROM mlint.certificate_get('$id')"), $leaf, "and its leaf is found");
}
my $id = imports('named after its first name', $leaf . $two . $one, key('a'));
is(sql("SELECT name, domains, state, account IS NULL FROM mlint.certificates WHERE id = '$id'"),
	'a.example|{a.example}|ACTIVE|t', 'by default');
my ($sha1, $sha256) = map { my ($f) = openssl($leaf, 'x509', '-noout', '-fingerprint', "-$_") =~ /=(\S+)/; $f =~ s/://g; lc $f } qw(sha1 sha256);
is(sql("SELECT serial, fingerprint_sha1, fingerprint_sha256, issuer, key_secret, key_version FROM mlint.certificate_get('$id')"),
	join('|', serial_of($leaf), $sha1, $sha256, 'CN=two', 'certificates/a.example', 1), 'serial and fingerprints are those of openssl');
is(openssl(sql("SELECT mlint.secret_get('certificates/a.example')") . "\n", 'pkey', '-pubout'),
	openssl(key('a'), 'pkey', '-pubout'), 'the key is in the secret store');

leaf('other');
leaf('stranger', by => 'one');
refused('a chain that lacks a link', 'do not belong to one chain', $leaf . $one, key('a'));
refused('two leaves', 'do not belong to one chain', $leaf . $two . $one . pem('other'), key('a'));
refused('issuers only', 'is for no host name', $two . $one, key('two'));
refused('a certificate cut off', 'no certificate in PEM', substr($leaf, 0, 300), key('a'));
refused('one of nonsense', 'no certificate in PEM', $leaf . ($two =~ s/^MII..../AAAAAAAA/mr), key('a'));
for my $i (1 .. 11)
{
	certificate("deep$i", by => $i > 1 ? 'deep' . ($i - 1) : 'root', ext => $ca . $up);
}
leaf('deep', by => 'deep11');
refused('eleven issuers', 'too many certificates', join('', map { pem($_) } 'deep', map { "deep$_" } reverse 1 .. 11), key('deep'));
leaf('fits', by => 'deep9');
imports('nine', join('', map { pem($_) } 'fits', map { "deep$_" } reverse 1 .. 9), key('fits'));

# Each with what a client would not take.
leaf('expired', days => 0);
refused('an expired certificate', 'certificate has expired', pem('expired') . $two . $one, key('expired'));
certificate('old', by => 'one', ext => $ca . $up, days => 0);
leaf('below', by => 'old');
refused('an expired issuer', 'certificate 2 of the chain does not verify: certificate has expired', pem('below') . pem('old') . $one, key('below'));
certificate('noca', by => 'one', ext => "basicConstraints=CA:FALSE\nsubjectKeyIdentifier=hash\n$up");
leaf('under', by => 'noca');
refused('an issuer that is none', 'does not verify: invalid CA certificate', pem('under') . pem('noca') . $one, key('under'));
certificate('path', by => 'root', ext => ($ca =~ s/CA:TRUE/CA:TRUE,pathlen:0/r) . $up);
certificate('long', by => 'path', ext => $ca . $up);
leaf('far', by => 'long');
refused('a path that is too long', 'does not verify: path length constraint exceeded', pem('far') . pem('long') . pem('path'), key('far'));
certificate('bound', by => 'root', ext => "${ca}${up}nameConstraints=critical,permitted;DNS:allowed.example\n");
leaf('beyond', by => 'bound');
refused('a name beyond what its issuer may', 'does not verify: permitted subtree violation', pem('beyond') . pem('bound'), key('beyond'));
leaf('within', by => 'bound', san => 'DNS:x.allowed.example');
imports('a name within that', pem('within') . pem('bound'), key('within'));
leaf('client', more_ext => "extendedKeyUsage=clientAuth\n");
refused('a certificate for clients', 'does not verify: unsuitable certificate purpose', pem('client') . $two . $one, key('client'));
leaf('weak', more => ['-sha1']);
refused('one signed with SHA-1', 'does not verify: CA signature digest algorithm too weak', pem('weak') . $two . $one, key('weak'));
# An issuer of the same name and key identifier, but another key.
certificate('real', by => 'root', ext => ($ca =~ s/hash/01020304/r) . $up);
certificate('false', subject => '/CN=real', by => 'root', ext => ($ca =~ s/hash/01020304/r) . $up);
leaf('forged', by => 'false');
refused('a signature of somebody else', 'does not verify: certificate signature failure', pem('forged') . pem('real'), key('forged'));
leaf('noname', san => 'email:a@example.com');
refused('no name', 'is for no host name', pem('noname') . $two . $one, key('noname'));
# SEQUENCE { [2] "good.example" NUL ".evil" }, by hand.
my $nul = "good.example\0.evil.example";
my $der = join ':', map { sprintf '%02x', $_ } 0x30, length($nul) + 2, 0x82, length $nul, unpack 'C*', $nul;
leaf('nul', ext => "basicConstraints=CA:FALSE\nsubjectAltName=DER:$der\n$up");
refused('a name with a NUL', 'a name that is no host name', pem('nul') . $two . $one, key('nul'));
my $latin = "f\xfc.example";
$der = join ':', map { sprintf '%02x', $_ } 0x30, length($latin) + 2, 0x82, length $latin, unpack 'C*', $latin;
leaf('latin', ext => "basicConstraints=CA:FALSE\nsubjectAltName=DER:$der\n$up");
refused('a name that is not ASCII', 'a name that is no host name', pem('latin') . $two . $one, key('latin'));
leaf('odd', subject => "/CN=a\x{0a}b, \"c\" d\x{c3}\x{bc}", more => []);
$id = imports('whatever is in the subject', pem('odd') . $two . $one, key('odd'), 'odd');
like(sql("SELECT subject FROM mlint.certificate_history WHERE name = 'odd'"), qr/^CN=[ -~]+$/, 'is escaped');

leaf('rsa', key => ['rsa:2048']);
leaf('ed', key => ['ed25519']);
leaf('p384', key => [qw(ec -pkeyopt ec_paramgen_curve:secp384r1)]);
imports("a key of type $_->[1]", pem($_->[0]) . $two . $one, key($_->[0])) for [ 'rsa', 'RSA' ], [ 'ed', 'Ed25519' ], [ 'p384', 'P-384' ];
is(sql("SELECT string_agg(name || ' ' || key_type, ', ' ORDER BY name) FROM mlint.certificates WHERE name IN ('rsa.example', 'ed.example', 'p384.example')"),
	'ed.example ED25519, p384.example ec384, rsa.example rsa2048', 'is named');
certificate('self', ext => 'subjectAltName=DNS:self.example');
imports('one by itself', pem('self'), key('self'));
leaf('many', san => join ',', map { $_ % 2 ? "DNS:*.n$_.example" : "IP:10.0.0.$_" } 1 .. 120);
$id = imports('one for 120 names', pem('many') . $two . $one, key('many'));
is(sql("SELECT name, cardinality(domains) FROM mlint.certificates WHERE id = '$id'"), 'wildcard.n1.example|120', 'all of which are there');
{
	my ($rc, $out, $err) = $node->psql('postgres', 'SELECT mlint.certificate_import(' . join(', ', map { literal($_) } $leaf, key('a'), 'bare') . ')');
	like($err, qr/NOTICE:.*is the certificate alone.*"CN=two"/s, 'a certificate that comes without its chain is remarked on');
}

#
# Keys
#

my $chain = $leaf . $two . $one;
refused('a key of another', "the key is not the certificate's", $chain, key('other'));
refused('no key', 'it is no private key in PEM', $chain, 'no key');
refused('a certificate for a key', 'it is no private key in PEM', $chain, $leaf);
openssl('', 'ec', '-in', "$dir/a.key", '-aes256', '-passout', 'pass:secret', '-out', "$dir/locked.key");
refused('a key under a passphrase', 'it is encrypted', $chain, key('locked'));
openssl('', qw(genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out), "$dir/small.key");
refused('a small key', 'must have 2048 to 8192 bits', $chain, key('small'));
openssl('', qw(genpkey -algorithm X25519 -out), "$dir/x.key");
refused('a key that cannot sign', 'neither an RSA nor an elliptic curve key', $chain, key('x'));
# The public half of the certificate's key, with another private one.
my ($ours, $theirs) = map { openssl(key($_), qw(ec -outform DER)) } qw(a other);
put('mixed.der', '');
open my $mixed, '>:raw', "$dir/mixed.der" or die;
print $mixed substr($theirs, 0, length($theirs) - 65) . substr($ours, -65);
close $mixed;
openssl('', qw(ec -inform DER -in), "$dir/mixed.der", '-out', "$dir/mixed.key");
refused('a key of two halves', 'its private and its public half do not belong together', $chain, key('mixed'));
is(sql("SELECT versions FROM mlint.secrets WHERE name = 'certificates/a.example'"), 1, 'nothing of all that was stored');
my ($line) = key('other') =~ /\n(\S{40})/;
unlike(slurp_file($node->logfile), qr/\Q$line\E/, 'and no key is in the log');

#
# Signing requests
#

sub request
{
	my ($arguments, $name) = @_;
	put("$name.csr", sql("SELECT csr FROM mlint.certificate_csr($arguments, name => '$name')") . "\n");
	return openssl('', qw(req -noout -verify -text -in), "$dir/$name.csr");
}

for my $type ([ ec256 => 'prime256v1' ], [ ec384 => 'secp384r1' ], [ rsa2048 => '2048 bit' ])
{
	my $text = request("'{bücher.example,*.b.example,192.0.2.1,2001:db8::1}', '$type->[0]'", "csr-$type->[0]");
	like($text, qr/$type->[1]/, "a signing request of type $type->[0]");
	like($text, qr/DNS:xn--bcher-kva.example, DNS:\*.b.example, IP Address:192.0.2.1, IP Address:2001:DB8:0:0:0:0:0:1/, 'has the names');
	put('copy.ext', '');
	openssl('', qw(x509 -req -copy_extensions copyall -days 90 -CAcreateserial), '-in', "$dir/csr-$type->[0].csr",
		'-CA', "$dir/two.pem", '-CAkey', "$dir/two.key", '-out', "$dir/csr-$type->[0].pem");
	imports('what comes back needs no key', pem("csr-$type->[0]") . $two . $one, undef, "csr-$type->[0]");
	is(openssl(sql("SELECT mlint.secret_get('certificates/csr-$type->[0]')") . "\n", 'pkey', '-pubout'),
		openssl(pem("csr-$type->[0]"), 'x509', '-pubkey', '-noout'), 'which is there');
}
request("'{c.example}'", 'csr-ec256');
refused('what belongs to an older request', "the key is not the certificate's", pem('csr-ec256') . $two . $one . $root, undef, 'csr-ec256')
  if sql("SELECT versions FROM mlint.secrets WHERE name = 'certificates/csr-ec256'") == 2;
like(import_of($chain, undef, 'nobody-asked'), qr/42704: .*there is no key for certificate "nobody-asked"/, 'without a request there is no key');

#
# The next version, and what is told of it
#

sub events
{
	my ($name) = @_;
	return sql("SELECT string_agg(substr(type, 13) || coalesce(' ' || (data->>'days'), ''), ', ' ORDER BY id) FROM mlint.event WHERE type LIKE 'certificate.%' AND data->>'name' = '$name'");
}

is(events('a.example'), 'issued', 'an event tells of the first version');
leaf('next', san => 'DNS:a.example,DNS:aa.example');
my $again = imports('the next of a name', pem('next') . $two . $one, key('next'), 'a.example');
my $first = sql("SELECT id FROM mlint.certificates WHERE name = 'a.example'");
is($again, $first, 'keeps the id');
is(sql("SELECT domains, serial, key_version FROM mlint.certificates WHERE id = '$first'"),
	'{a.example,aa.example}|' . serial_of(pem('next')) . '|2', 'and is in use');
is(openssl(sql("SELECT mlint.secret_get('certificates/a.example')") . "\n", 'pkey', '-pubout'),
	openssl(key('next'), 'pkey', '-pubout'), 'its key is the current one');
is(events('a.example'), 'issued, renewed', 'as an event tells');
my $data = JSON::PP::decode_json(sql("SELECT data FROM mlint.event WHERE type = 'certificate.renewed' AND data->>'name' = 'a.example'"));
is_deeply([ @$data{qw(id serial state issuer error)}, $data->{domains} ],
	[ $first, serial_of(pem('next')), 'ACTIVE', 'CN=two', undef, [ 'a.example', 'aa.example' ] ], 'with all that is to be known');
like($data->{not_after}, qr/^\d{4}-\d\d-\d\dT/, 'and when it ends');
imports('the same once more', pem('next') . $two . $one, key('next'), 'a.example');
is(sql("SELECT count(*), count(replaced_at), count(*) FILTER (WHERE in_use) FROM mlint.certificate_history WHERE certificate_id = '$first'"), '2|1|1', 'is no version');
is(sql("SELECT string_agg((details->>'from') || '-' || (details->>'to'), ' ' ORDER BY seq) FROM mlint.audit_log WHERE action = 'certificate.transition' AND object = 'a.example'"),
	'REQUESTED-ISSUED ISSUED-ACTIVE ACTIVE-ISSUED ISSUED-ACTIVE', 'each transition is in the audit log');

#
# Time goes by
#

sub remains
{
	my ($name, $interval) = @_;
	sql("UPDATE mlint.certificate_version v SET not_after = clock_timestamp() + '$interval', not_before = clock_timestamp() - '60 days'::interval"
		  . " FROM mlint.certificate c WHERE c.name = '$name' AND v.id = c.version_id; ");
	job_rests($node, 'certificate_expiry');
	$node->safe_psql('postgres', 'CALL mlint.certificate_expiry_run()');
	return;
}

leaf('timed');
imports('one to watch the time of', pem('timed') . $two . $one, key('timed'), 'timed');
my $told = 'issued';
for my $step ([ '30 days 1 minute', '' ], [ '30 days', ', expiring 30' ], [ '29 days', '' ], [ '13 days', ', expiring 14' ],
	[ '7 days', ', expiring 7' ], [ '2 days', ', expiring 3' ], [ '25 hours', '' ], [ '23 hours', ', expiring 1' ], [ '1 minute', '' ])
{
	remains('timed', $step->[0]);
	$told .= $step->[1];
	is(events('timed'), $told, "$step->[0] before the end");
	is(sql("SELECT state FROM mlint.certificates WHERE name = 'timed'"), 'ACTIVE', 'it is active');
}
like(sql("SELECT status, why FROM mlint.certificate_health() WHERE name = 'timed'"), qr/^critical\|it expires in 00:00:\d\d, and nobody renews it$/, 'and critical');
remains('timed', '-1 second');
is(sql("SELECT state, days_left FROM mlint.certificates WHERE name = 'timed'"), 'EXPIRED|-1', 'it expires');
is(events('timed'), $told, 'of which it was warned enough');
is(sql("SELECT status, why FROM mlint.certificate_health() WHERE name = 'timed'"), 'critical|it has expired', 'health says so');
leaf('timed2', san => 'DNS:timed.example');
imports('its successor', pem('timed2') . $two . $one, key('timed2'), 'timed');
is(sql("SELECT state FROM mlint.certificates WHERE name = 'timed'"), 'ACTIVE', 'is active');
remains('timed', '3 days');
is(events('timed'), "$told, renewed, expiring 3", 'and is warned of anew, with the nearest threshold');
is(sql("SELECT status FROM mlint.certificate_health() WHERE name = 'timed'"), 'critical', 'and is critical');
remains('timed', '20 days');
is(sql("SELECT status, why FROM mlint.certificate_health() WHERE name = 'timed'"), 'warning|it expires in 19 days, and nobody renews it', 'or a warning');
leaf('short', days => 6);
imports('six days long', pem('short') . $two . $one, key('short'), 'short');
job_rests($node, 'certificate_expiry');
$node->safe_psql('postgres', 'CALL mlint.certificate_expiry_run()');
is(events('short'), 'issued', 'is not warned of at once');

# The key of the first version of "timed", which has expired, is gone; those of
# "a.example", whose first is still good, are not.
is(sql("SELECT string_agg(version || ' ' || (destroyed_at IS NULL), ', ' ORDER BY version) FROM mlint.secret_versions('certificates/timed')"), '1 false, 2 true', 'the key of what has expired is destroyed');
is(sql("SELECT string_agg(version || ' ' || (destroyed_at IS NULL), ', ' ORDER BY version) FROM mlint.secret_versions('certificates/a.example')"), '1 true, 2 true', 'that of what is good still is not');
sql("SELECT mlint.secret_destroy('certificates/short', 1)");
is(sql("SELECT status, why FROM mlint.certificate_health() WHERE name = 'short'"), 'critical|version 1 of secret "certificates/short", its key, is gone', 'a key that is gone is critical');

# Versions are forgotten a year after their end, unless they are in use.
sql("UPDATE mlint.certificate_version SET not_after = now() - interval '366 days' WHERE certificate_id IN (SELECT id FROM mlint.certificates WHERE name = 'timed')");
job_rests($node, 'certificate_expiry');
$node->safe_psql('postgres', 'CALL mlint.certificate_expiry_run()');
is(sql("SELECT count(*), bool_and(in_use) FROM mlint.certificate_history WHERE name = 'timed'"), '1|t', 'old versions are forgotten, the one in use is not');

#
# A dump
#

my $dump = "$dir/dump.sql";
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres') ], 'dump');
my $shown = "SELECT md5(string_agg(c::text, '\n' ORDER BY c.name)) FROM mlint.certificates c";
my $before = sql($shown);
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr('restored'), $dump ], 'restore');
is($node->safe_psql('restored', $shown), $before, 'a restored database has the certificates');
is($node->safe_psql('restored', "SELECT mlint.secret_get('certificates/a.example')"), sql("SELECT mlint.secret_get('certificates/a.example')"), 'and their keys');
is($node->safe_psql('restored', "SELECT enabled, next_run_at > now() + interval '50 minutes' FROM mlint.jobs WHERE name = 'certificate_expiry'"), 't|t', 'and goes on in an hour');
$node->safe_psql('restored', "SELECT mlint.certificate_import(" . join(', ', map { literal($_) } pem('other') . $two . $one, key('other'), 'a.example') . ')');
is($node->safe_psql('restored', "SELECT serial, key_version FROM mlint.certificates WHERE name = 'a.example'"), serial_of(pem('other')) . '|3', 'with the next version');

#
# Another encoding
#

$node->safe_psql('postgres', "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
$node->safe_psql('latin', 'CREATE EXTENSION mlint');
is($node->safe_psql('latin', "SET client_encoding = 'UTF8'; SELECT secret FROM mlint.certificate_csr('{bücher.example}')"),
	'certificates/xn--bcher-kva.example', 'names of another encoding are what they are');
my ($rc, $out, $err) = $node->psql('latin', "SET client_encoding = 'UTF8'; SELECT mlint.certificate_csr('{büch er.example}')");
like($err, qr/"b\xfc|"büch er.example" cannot be in a certificate: it has a space/, 'and are said so');

#
# Forgetting
#

sql("SELECT mlint.certificate_drop('$first')");
is(sql("SELECT count(*) FROM mlint.certificate_history WHERE certificate_id = '$first'"), 0, 'a dropped certificate has no history');
is(sql("SELECT count(*) FROM mlint.secrets WHERE name = 'certificates/a.example'"), 0, 'and no key');
imports('and its name is free', $chain, key('a'), 'a.example');

done_testing();
