# Every way in which mlint can be told to connect somewhere, against every way to
# write an address that it must not connect to. What listens there counts, and
# sees nobody; with the policy open the same ways lead there, so the count would
# tell. Redirects, proxies of the environment and names that change their
# address lead nowhere either.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use IO::Select;
use IO::Socket::INET;
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use TargetTest;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();

# ---- listeners: one that must see nobody, a proxy, and one that redirects ----
# Each writes a byte a connection; what it is sent does not matter.
my @listening;
sub listener
{
	my ($address, $port, $answer) = @_;
	my $socket = IO::Socket::INET->new(LocalAddr => $address, LocalPort => $port, Listen => 100, ReuseAddr => 1)
	  or die "$address: $!";
	my $count = "$dir/count" . @listening;

	append_to_file($count, '');
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		while (my $client = $socket->accept)
		{
			append_to_file($count, '.');
			if ($answer)
			{
				# So that there is a request before the answer.
				IO::Select->new($client)->can_read(5);
				sysread $client, my $request, 4096;
				print $client $answer;
			}
			close $client;
		}
		POSIX::_exit(0);
	}
	push @listening, $pid;
	return ($socket->sockport, $count);
}
END
{
	my $status = $?;
	kill 'KILL', @listening;
	$? = $status;
}
my ($port, $seen) = listener('127.0.0.1', 0);
my ($proxy, $proxied) = listener('127.0.0.1', 0);
listener('127.0.0.2', $port, "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:$port/\r\nContent-Length: 0\r\n\r\n");
sub seen { return -s $_[0]; }

my $shim = "$dir/resolver.so";
system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-O', '-o', $shim, "$FindBin::RealBin/resolver_shim.c", '-ldl');
my $node = mlint_node('ssrf', create => 0, conf => "log_statement = none\n");
$node->stop;
{
	local $ENV{LD_PRELOAD} = $shim;
	local @ENV{qw(http_proxy https_proxy all_proxy HTTPS_PROXY ALL_PROXY)} = ("http://127.0.0.1:$proxy") x 5;
	$node->start;
}
my $bindir = $node->safe_psql('postgres', "CREATE EXTENSION mlint; SELECT mlint.secret_put('key', 'a-long-enough-secret-key')");
sub sql { return $node->safe_psql('postgres', "SET client_min_messages = error; $_[0]"); }

# ---- the rooms ----
# What makes a room connect to a host: returns what came of it, as text. {U} is
# the URL that is tried, {H} its host as written, {P} the port.
authority();
my ($certificate) = install($node, 'www');
my $n = 0;
my $key = '{"secret": "key"}';
sub answer
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', "SET client_min_messages = error; $sql",
		on_error_stop => 1, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $rc == 0 ? $out : $err;
}
# Something that is created, tried and dropped.
sub try_configured
{
	my ($noun, $kind, $options, $more) = @_;
	my $name = 'try' . ++$n;
	my ($rc, $out, $err) = $node->psql('postgres', "SET client_min_messages = error;
SELECT NULL FROM mlint.${noun}_create('$name', '$kind', " . literal($options) . ");
SELECT * FROM mlint.${noun}_test('$name'" . ($more // '') . ");
SELECT NULL FROM mlint.${noun}_drop('$name')",
		on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return "$err$out";
}
# Something that a job tries.
sub wait_answer
{
	my ($sql, $seconds) = @_;
	my ($got, $end) = ('', time + ($seconds // 30));
	until (($got = answer($sql)) ne '' || time > $end) { select undef, undef, undef, 0.05; }
	return $got;
}
sub try_target
{
	my ($kind, $options) = @_;
	my $name = 'try' . ++$n;
	my $created = answer("SELECT mlint.certificate_target_create('$certificate', '$kind', " . literal($options) . ", name => '$name')");
	return $created if $created =~ /ERROR/;
	my $got = wait_answer("SELECT error FROM mlint.certificate_targets WHERE name = '$name' AND error IS NOT NULL");
	answer("SELECT mlint.certificate_target_drop('$certificate', '$name')");
	return $got;
}
my %identity = (access_key_id => 'k', secret_access_key => { secret => 'key' });
my %azure = (tenant_id => '11111111-2222-3333-4444-555555555555', client_id => '11111111-2222-3333-4444-555555555555',
	client_secret => { secret => 'key' }, timeout_ms => 3000);
my $json = JSON::PP->new->canonical->utf8;
my $example = 'http://192.0.2.1';
# [what, options of which table, way, takes]
my %rooms = (
	'mlint.http' => [ 'url', sub { answer('SELECT status FROM mlint.http(\'GET\', ' . literal($_[0]) . ", timeout => '3 s')") } ],
	'webhook' => [ 'url', sub { try_configured('destination', 'http', $json->encode({ url => $_[0], timeout_ms => 3000 })) }, 'http url' ],
	map({ my $kind = $_;
		("$kind message" => [ 'https', sub
			{
				sql("SELECT mlint.secret_put('chat', " . literal($_[0]) . ')');
				try_configured('destination', $kind, $json->encode({ url => { secret => 'chat' }, timeout_ms => 3000 }));
			}, "$kind url" ]) } qw(slack discord)),
	'Vault' => [ 'url', sub { try_configured('secret_backend', 'vault', $json->encode({ url => $_[0], auth => 'token', token => { secret => 'key' }, timeout_ms => 3000 })) }, 'vault url' ],
	'AWS Secrets Manager' => [ 'url', sub { try_configured('secret_backend', 'aws', $json->encode({ %identity, region => 'eu-west-1', endpoint => $_[0], timeout_ms => 3000 })) }, 'aws endpoint' ],
	'AWS\'s instance metadata' => [ 'url', sub { try_configured('secret_backend', 'aws', $json->encode({ region => 'eu-west-1', endpoint => $example, metadata_endpoint => $_[0], timeout_ms => 3000 })) }, 'aws metadata_endpoint' ],
	'Azure Key Vault' => [ 'url', sub { try_configured('secret_backend', 'azure', $json->encode({ %azure, vault_url => $_[0], authority => $_[0] })) }, 'azure vault_url', 'azure authority' ],
	'Azure\'s login' => [ 'url', sub { try_configured('secret_backend', 'azure', $json->encode({ %azure, vault_url => $example, authority => $_[0] })) }, 'azure authority' ],
	'Azure\'s identity' => [ 'url', sub { try_configured('secret_backend', 'azure', $json->encode({ vault_url => $example, identity_endpoint => $_[0], timeout_ms => 3000 })) }, 'azure identity_endpoint' ],
	'object store' => [ 'url', sub { try_configured('archive_store', 's3', $json->encode({ %identity, bucket => 'b', region => 'eu-west-1', endpoint => $_[0], timeout_ms => 3000, path_style => JSON::PP::true })) }, 's3 endpoint' ],
	'ACME' => [ 'https', sub
		{
			my $name = 'try' . ++$n;
			my $created = answer("SELECT mlint.acme_account_create('$name', " . literal($_[0]) . ", 'a\@example.com')");
			return $created if $created =~ /ERROR/;
			return wait_answer("SELECT last_error FROM mlint.acme_accounts WHERE name = '$name' AND last_error IS NOT NULL");
		} ],
	# These log in or look up first, at a name that is given.
	'DNS services' => [ 'url', sub { try_configured('dns_provider', 'azure', $json->encode({ %azure, subscription_id => $azure{tenant_id}, resource_group => 'g', endpoint => $_[0], authority => $_[0], zone => 'example.com', resolver => $_[0] =~ s{^https?://}{}r }), ", 'example.com'") },
		'azure endpoint', 'cloudflare endpoint', 'route53 endpoint' ],
	# Zones and aliases are looked up before a service or a name server is told
	# anything, with the same connections; 170_dns has a DNS that answers.
	'resolver' => [ 'host', sub { my $at = ($_[1] =~ /:.*:/ ? "[$_[1]]" : $_[1]) . ":$port";
			try_configured('dns_provider', 'rfc2136', $json->encode({ server => $_[1], resolver => $at, port => 0 + $port, key_name => 'k', key => { secret => 'key' }, timeout_ms => 3000 }), ", 'example.com'") },
		'rfc2136 server', map { ("$_ resolver", "$_ nameservers") } qw(rfc2136 function cloudflare route53 azure) ],
	'certificates to AWS' => [ 'url', sub { try_target('aws-acm', $json->encode({ %identity, regions => 'eu-west-1', endpoint => $_[0], timeout_ms => 3000 })) }, 'aws-acm endpoint' ],
	'certificates to Azure' => [ 'url', sub { try_target('azure', $json->encode({ %azure, vaults => $_[0], name => 'n', authority => $_[0] })) }, 'azure vaults', 'azure authority', 'azure identity_endpoint' ],
	'watch' => [ 'host', sub
		{
			my $created = answer("SELECT mlint.certificate_watch_create('$certificate', " . literal($_[1]) . ", $port)");
			return $created if $created =~ /ERROR/;
			my $got = wait_answer("SELECT error FROM mlint.certificate_watches WHERE error IS NOT NULL");
			answer("SELECT mlint.certificate_watch_drop('$certificate', " . literal($_[1]) . ", $port)");
			return $got;
		} ],
	'Redis' => [ 'host', sub { try_configured('rate_backend', 'redis', $json->encode({ hosts => "$_[1]:$port", timeout_ms => 1000, connect_timeout_ms => 1000 })) }, 'redis hosts' ],
	'login to PostgreSQL' => [ 'host', sub
		{
			my $name = 'login' . ++$n;
			my $connection = { host => $_[1], port => 0 + $port, dbname => 'd', user => 'u', password => { secret => 'key' }, sslmode => 'disable', timeout_ms => 3000 };
			answer("SELECT mlint.secret_put('$name', 'value-to-rotate')");
			my $set = answer("SELECT mlint.secret_rotation_set('$name', '30 days', apply => "
				  . literal($json->encode({ kind => 'role', role => 'r', connection => $connection })) . ')');
			return $set if $set =~ /ERROR/;
			answer("SELECT mlint.secret_rotate('$name')");
			my $got = wait_answer("SELECT last_error FROM mlint.rotations WHERE name = '$name' AND last_error IS NOT NULL");
			answer("SELECT mlint.secret_rotation_drop('$name', true)");
			return $got;
		} ]);

# Every option that says where to connect has a way here.
my %have = map { $_ => 1 } map { my (undef, undef, @o) = @{ $rooms{$_} }; @o } keys %rooms;
my @missing = grep { !$have{$_} } split /\n/, sql(<<'EOQ');
SELECT kind || ' ' || option FROM (
	SELECT driver AS kind, option, type FROM mlint.drivers
	UNION SELECT kind, option, type FROM mlint.secret_backend_options()
	UNION SELECT kind, option, type FROM mlint.dns_provider_options()
	UNION SELECT kind, option, type FROM mlint.archive_store_options()
	UNION SELECT kind, option, type FROM mlint.certificate_target_options()
	UNION SELECT kind, option, type FROM mlint.rate_backend_options()) o
WHERE (type ~ 'url' OR option ~ '(^|_)(url|endpoint|authority|hosts?|server|servers|nameservers|resolver|vaults)$')
	-- the server itself; and a name that is asked for
	AND (kind, option) NOT IN (('postgres', 'host'), ('azure', 'resource'))
ORDER BY 1
EOQ
is("@missing", '', 'every option that names a host or a URL is tried');

# ---- with the policy open, each leads to where it is told ----
my %reached;
foreach my $room (sort keys %rooms)
{
	my ($takes, $way) = @{ $rooms{$room} };
	my $before = seen($seen);
	my $scheme = $takes eq 'https' ? 'https' : 'http';

	my $got = $way->("$scheme://127.0.0.1:$port", '127.0.0.1');
	wait_for("$room: connects where it may", sub { seen($seen) > $before }) or diag $got;
}

# ---- with it closed, none does, however that is written ----
sql("ALTER SYSTEM SET mlint.http_deny = '127.0.0.1/32, ::1, 10.0.0.0/8'; SELECT pg_reload_conf()");
wait_for_sql($node, 'the policy is closed', "SELECT current_setting('mlint.http_deny') <> ''");
my %forms = (
	'plain' => '127.0.0.1', 'short' => '127.1', 'three parts' => '127.0.1', 'decimal' => '2130706433',
	'octal' => '0177.0.0.1', 'octal in one' => '017700000001', 'hex' => '0x7f.0.0.1', 'hex in one' => '0x7f000001',
	'trailing dot' => '127.0.0.1.', 'IPv6' => '[::1]', 'IPv6 in full' => '[0:0:0:0:0:0:0:1]',
	'mapped' => '[::ffff:127.0.0.1]', 'mapped in hex' => '[::ffff:7f00:1]', 'compatible' => '[::127.0.0.1]',
	'translated' => '[::ffff:0:127.0.0.1]', 'NAT64' => '[64:ff9b::7f00:1]', 'NAT64 of one\'s own' => '[64:ff9b:1::7f00:1]',
	'6to4' => '[2002:7f00:1::]', 'zone' => '[::1%25lo]', 'name' => 'localhost', 'name in capitals' => 'LocalHost.',
	'name that lies' => 'pinned.test', 'name that changes' => 'flip.test', 'metadata' => '169.254.169.254',
	'metadata by name' => 'metadata.test', 'unspecified' => '0.0.0.0', 'nothing but 0' => '0',
	'full-width digits' => "\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1", 'ideographic dots' => "127\xe3\x80\x820\xe3\x80\x820\xe3\x80\x821",
	'percent-encoded' => '%31%32%37.0.0.1', 'user name' => 'allowed.example@127.0.0.1',
	'user name behind a fragment' => "127.0.0.1:$port#\@allowed.example", 'backslash' => "127.0.0.1:$port\\\@allowed.example",
	'line break' => "127.0.0.1\r\nHost: x", 'space' => ' 127.0.0.1', 'redirect' => '127.0.0.2');
# All of them where connections are made differently; elsewhere, where it is the
# same client, some.
my %all = map { $_ => 1 } 'mlint.http', 'webhook', 'Vault', 'object store', 'Redis', 'resolver';
my @some = ('plain', 'decimal', 'mapped', 'NAT64', 'name that lies', 'metadata', 'user name', 'redirect');
my (@through, @odd);
my $tried = 0;
my $before = seen($seen);
foreach my $room (sort keys %rooms)
{
	my ($takes, $way) = @{ $rooms{$room} };
	foreach my $form ($all{$room} ? sort keys %forms : @some)
	{
		my $host = $forms{$form};
		my $scheme = $takes eq 'https' ? 'https' : 'http';
		my $bare = $host =~ s/^\[(.*)\]$/$1/r;
		my $now = seen($seen);
		my $got;

		# A name that changes is asked for more than once.
		$got = $way->($host =~ /:$port/ ? "$scheme://$host" : "$scheme://$host:$port", $room eq 'Redis' ? $host : $bare)
		  for 1 .. ($form eq 'name that changes' ? 3 : 1);
		$tried++;
		push @through, "$room, $form: $got" if seen($seen) > $now;
		# It is refused for what it is, or is no address: not because nobody is there.
		push @odd, "$room, $form: $got"
		  if $form !~ /redirect|changes/ && $got !~ /refused: |refuses|denied by|always refused|ML007|ML009|22023|must be|could not be resolved|not resolved|invalid|cannot be/;
	}
}
is(join("\n", @through), '', "none of $tried ways leads there");
is(seen($seen), $before, '... by the count of what listens');
is(join("\n", @odd), '', '... because it was refused');
is(seen($proxied), 0, 'and no proxy of the environment was asked');

$node->stop;
done_testing();
