# An authority that answers wrongly, in every way and at every step: each order
# ends, with an error that says what happened, or succeeds when it was only
# once; the certificate in use stays in use; what was shown is shown no more;
# nothing dies, grows or goes round in circles; and the orders of other
# accounts go on meanwhile.

use strict;
use warnings;

use AcmeCa;
use HTTP::Tiny;
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $gateway = PostgreSQL::Test::Cluster::get_free_port();
# So slow that everything is asked for more than once.
my $ca = AcmeCa->start(http_port => $gateway, validate_ms => 150, issue_ms => 150);
my $node = mlint_node('hostile', conf => <<"EOC");
mlint.gateway_listen = '127.0.0.1:$gateway'
mlint.job_workers = 4
EOC

sub sql { return $node->safe_psql('postgres', $_[0]); }

# A solver that remembers what it shows.
sql(<<'EOQ');
CREATE TABLE shown (token text, value text, UNIQUE (token, value));
CREATE TABLE calls (action text, token text);
CREATE FUNCTION solver(challenge jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO calls VALUES (challenge->>'action', challenge->>'token');
	IF challenge->>'action' = 'present' THEN
		INSERT INTO shown VALUES (challenge->>'token', challenge->>'value') ON CONFLICT DO NOTHING;
	ELSE
		DELETE FROM shown s WHERE s.token = challenge->>'token' AND s.value = challenge->>'value';
	END IF;
END $$;
EOQ

# ---- what goes wrong ----

my $no = JSON::PP::false;
my (@cases, %seen);

# One case: its name, what goes wrong ([step, what, how...], ...), and what must
# become of it: a pattern that the error has, or undef: a new certificate.
sub case
{
	my ($name, $error, @faults) = @_;

	$name =~ s/[^a-z0-9]+/-/gi;
	$name =~ s/-+$//;
	$name = lc $name;
	$name .= "-$seen{$name}" if $seen{$name}++;
	push @cases, { name => $name, error => $error, faults => \@faults };
	return;
}

# What is wrong with an order, however it is looked at: when it is made and, since
# that may be found in the list of our orders, later.
sub order_case
{
	my ($name, $error, @fault) = @_;
	case($name, $error, map { [ $_, @fault ] } 'order-new', 'order');
	return;
}

# Of these an order must recover when they happen once, and end when always.
my %wrong = (
	html => [ 'html' ],
	'no json' => [ 'kind', kind => 'text/plain' ],
	truncated => ['truncated'],
	half => ['half'],
	deep => ['deep'],
	wide => ['wide'],
	huge => [ 'huge', bytes => 8 << 20 ],
	reset => ['reset'],
	foreign => ['foreign'],
	redirect => ['redirect'],
	empty => [ 'answer', kind => 'application/json' ],
	null => [ 'answer', kind => 'application/json', body => 'null' ],
	'an array' => [ 'answer', kind => 'application/json', body => '[[],{}]' ],
	500 => [ 'problem', kind => 'serverInternal' ],
	'bad gateway' => [ 'html', status => 502 ],
	nonces => [ 'problem', kind => 'badNonce' ]);

# What is of no account there.
my %harmless = map { $_ => 1 } 'nonce no json', 'nonce truncated', 'nonce half', 'nonce foreign',
  'nonce html', 'nonce deep', 'nonce wide', 'nonce huge', 'nonce empty', 'nonce null', 'nonce an array',
  'certificate foreign', 'challenge foreign', 'nonce nonces',
  # They have a nonce, whatever else they say.
  'nonce 500', 'nonce bad gateway';
# The request has had its effect, and we find out by other ways, such as the
# list of our orders.
my %found = map { $_ => 1 } map { my $step = $_; map { "$step $_" } 'no json', 'truncated', 'half', 'foreign' } 'order-new', 'finalize';
# An answer, if not a good one: there is no use in asking again.
my %final = map { $_ => 1 } 'certificate truncated', map { "$_ redirect" } qw(nonce order-new authz challenge finalize order certificate);
# So that a nonce must be asked for before each request.
my @no_nonces = map { [ $_, 'header', headers => { 'Replay-Nonce' => undef }, times => 0 ] } qw(order-new authz challenge finalize order);

for my $step (qw(nonce order-new authz challenge finalize order certificate))
{
	my @more = $step eq 'nonce' ? @no_nonces : ();

	for my $what (sort keys %wrong)
	{
		next if $harmless{"$step $what"};
		my ($do, @how) = @{ $wrong{$what} };

		case("$step $what always", $found{"$step $what"} ? undef : qr/./, [ $step, $do, times => 0, @how ], @more);
		case("$step $what once", $final{"$step $what"} ? qr/./ : undef, [ $step, $do, @how ], @more);
	}
}
case('order-new is done and its answer lost', undef, [ 'order-new', 'reset', after => 1 ]);
case('finalize is done and its answer lost', undef, [ 'finalize', 'reset', after => 1 ]);
case('challenge is done and its answer lost', undef, [ 'challenge', 'reset', after => 1 ]);
case('endless certificate', qr/./, [ 'certificate', 'endless', times => 0 ]);
case('endless order', qr/./, [ 'order-new', 'endless', times => 0 ]);
order_case('headers without end', qr/./, 'headers', bytes => 4 << 20, times => 0);
case('drip', undef, [ 'order-new', 'drip', ms => 2 ]);

# Nonces.
case('no nonce', undef, [ $_, 'header', headers => { 'Replay-Nonce' => undef }, times => 0 ]) for 'order-new', 'finalize';
case('junk nonce', undef, [ 'order-new', 'header', headers => { 'Replay-Nonce' => '"; drop <x> \\' }, times => 0 ]);
case('empty nonce', undef, [ 'order-new', 'header', headers => { 'Replay-Nonce' => '' }, times => 0 ]);
case('long nonce', undef, [ 'order-new', 'header', headers => { 'Replay-Nonce' => 'A' x 60000 }, times => 0 ]);
case('old nonce', undef, [ 'order-new', 'old-nonce', times => 1 ]);
case('old nonces', undef, [ $_, 'old-nonce', times => 3 ]) for 'authz', 'challenge';

# Orders.
my @edit = ('edit', times => 0, 'members');
case('location missing', undef, [ 'order-new', 'header', headers => { Location => undef }, times => 0 ]);
case('location elsewhere', undef, [ 'order-new', 'header', headers => { Location => 'https://evil.example/order' }, times => 0 ]);
case('location of a file', undef, [ 'order-new', 'header', headers => { Location => 'file:///etc/passwd' }, times => 0 ]);
order_case('status unknown', qr/status/i, @edit, { status => 'fine' });
order_case('status missing', qr/status/i, @edit, { status => undef });
order_case('finalize missing', qr/finalize/i, @edit, { finalize => undef });
order_case('finalize elsewhere', qr/finalize/i, @edit, { finalize => 'https://evil.example/' });
order_case('finalize at metadata', qr/finalize/i, @edit, { finalize => 'http://169.254.169.254/latest/' });
order_case('finalize without tls', qr/finalize/i, @edit, { finalize => 'http://localhost/' });
order_case('authorizations none', qr/authorizations/i, @edit, { authorizations => [] });
order_case('authorizations no list', qr/authorizations/i, @edit, { authorizations => { a => 1 } });
order_case('authorizations 5000', qr/authorizations/i, 'list', times => 0);
order_case('identifiers of others', qr/./, @edit, { identifiers => [ { type => 'dns', value => 'elsewhere.example' } ] });
order_case('expires nonsense', qr/expires/i, @edit, { expires => 'tomorrow' });
case('order turns invalid', qr/no, after all/,
	[ 'order', @edit, { status => 'invalid', error => { type => 'urn:ietf:params:acme:error:unauthorized', detail => 'no, after all' } } ]);
case('finalize turns invalid', qr/really not/,
	[ 'finalize', @edit, { status => 'invalid', error => { type => 'urn:ietf:params:acme:error:caa', detail => 'really not' } } ]);
case('never leaves processing', qr/./, [ 'order', @edit, { status => 'processing', certificate => undef } ]);
case('valid without certificate', qr/certificate/i, [ 'order', @edit, { status => 'valid', certificate => undef } ]);
case('certificate elsewhere', qr/certificate/i, [ 'order', @edit, { certificate => 'https://evil.example/cert' } ]);

# Authorizations.
case('never leaves pending', qr/./, [ 'authz', 'edit', times => 0, skip => 1, members => { status => 'pending' } ]);
case('authorization expired', qr/./, [ 'authz', @edit, { status => 'expired' } ]);
case('authorization deactivated', qr/./, [ 'authz', @edit, { status => 'deactivated' } ]);
case('authorization of others', qr/./, [ 'authz', @edit, { identifier => { type => 'dns', value => 'elsewhere.example' } } ]);
case('challenges none', qr/./, [ 'authz', @edit, { challenges => [] } ]);
case('challenges unknown', qr/http-01/, [ 'authz', @edit,
		{ challenges => [ { type => 'tls-alpn-01', url => $ca->directory('x'), token => 'x', status => 'pending' } ] } ]);
case('challenge elsewhere', qr/./, [ 'authz', @edit,
		{ challenges => [ { type => 'http-01', url => 'https://evil.example/', token => 'x', status => 'pending' } ] } ]);
case("token $_->[0]", qr/token|JSON/, [ 'authz', @edit,
		{ challenges => [ { type => 'http-01', url => $ca->directory('x'), token => $_->[1], status => 'pending' } ] } ])
  for [ 'that climbs', '../../../etc/passwd' ], [ 'empty', '' ], [ 'long', 'A' x 5000 ], [ 'of bytes', "a\0b" ], [ 'number', 5 ];

# Waiting.
for my $after ('-5', 'Wed, 21 Oct 2015 07:28:00 GMT', '315360000', 'soon', '99999999999999999999', '1e9', '')
{
	case("retry after $after", undef, [ $_, 'header', headers => { 'Retry-After' => $after }, times => 0 ]) for 'authz', 'order';
	case("busy retry after $after", undef,
		[ 'order-new', 'problem', kind => 'rateLimited', headers => { 'Retry-After' => $after } ]);
	case("down retry after $after", undef,
		[ 'finalize', 'html', status => 503, headers => { 'Retry-After' => $after } ]);
}

# Every type of problem, with others in it and without: each is told, unless
# we know better than to give up.
my %known_better = map { $_ => 1 } qw(badNonce rateLimited serverInternal accountDoesNotExist orderNotReady alreadyReplaced);
for my $type ($ca->problem_types)
{
	next if $known_better{$type};
	case("problem $type new", qr/because of \Q$type\E.*$type/i,
		[ 'order-new', 'problem', times => 0, kind => $type, detail => "because of $type" ]);
	case("problem $type finalize", qr/because.*dns of 0\.example.*caa of 1\.example/is,
		[ 'finalize', 'problem', kind => $type, detail => "because", subproblems => [ 'dns', 'caa' ] ]);
}
# Refused once it is asked for without what it would replace.
case('problem malformed once', undef, [ 'order-new', 'problem', kind => 'malformed' ]);
case('problem rateLimited', undef, [ 'order-new', 'problem', kind => 'rateLimited', headers => { 'Retry-After' => '30' } ]);
case('problem serverInternal', undef, [ 'finalize', 'problem', kind => 'serverInternal' ]);
# The account is made anew, and the order later.
case('problem accountDoesNotExist', qr/not registered/, [ 'order-new', 'problem', kind => 'accountDoesNotExist' ]);
case('problem orderNotReady', undef, [ 'finalize', 'problem', kind => 'orderNotReady' ]);
case('problem alreadyReplaced', undef, [ 'order-new', 'problem', kind => 'alreadyReplaced' ]);
case('problem with terminal codes', qr/^[^\x00-\x1f]*$/, [ 'order-new', 'problem', times => 0, kind => 'malformed', detail => "\e[31mred\r\nline\0 \x07" ]);
case('problem of a megabyte', qr/./, [ 'order-new', 'problem', times => 0, kind => 'malformed', detail => 'x' x 1_000_000 ]);
case('problem of 400 kB', qr/^.{1,4000}$/s, [ 'order-new', 'problem', times => 0, kind => 'malformed', detail => 'x' x 400_000 ]);

# Certificates.
case("chain $_->[0]", $_->[1], [ 'certificate', 'chain', which => $_->[0], times => 0 ])
  for [ 'empty', qr/./ ], [ 'html', qr/./ ], [ 'names', qr/name|not for/ ], [ 'more-names', qr/elsewhere\.example/ ],
  [ 'key', qr/key/ ], [ 'expired', qr/expired/ ], [ 'future', qr/not yet valid/ ], [ 'signature', qr/signature|verif|belong/ ],
  [ 'ca', qr/./ ], [ 'client', qr/purpose/ ], [ 'issuer-only', qr/./ ], [ 'stranger', qr/belong/ ], [ 'long', qr/./ ],
  [ 'many', qr/many/ ], [ 'loop', qr/belong/ ], [ 'der', qr/./ ], [ 'cut', qr/./ ], [ 'garbage', qr/./ ], [ 'nul', qr/./ ],
  [ 'reversed', undef ], [ 'with-root', undef ], [ 'text', undef ], [ 'key-inside', undef ];

# ---- before: everybody has a certificate ----

$ca->account($node, map { $_->{name} } @cases);
# A third of them by a function; what that shows is for nobody to see.
my @by_function = map { $_->{name} } @cases[ grep { $_ % 3 == 0 } 0 .. $#cases ];
$ca->set($_, validate => $no) for @by_function;
my %by_function = map { $_ => 1 } @by_function;
sql(join ";\n", map {
		my $solver = $by_function{ $_->{name} } ? "'function:public.solver'" : 'NULL';
		"SELECT mlint.certificate_issue(ARRAY['$_->{name}.example'], '$_->{name}', solver => $solver, name => '$_->{name}')"
	} @cases);

my ($high, $late) = (0, 0);

# What waits for later is to be done now. Nothing may be put off for longer
# than a week.
sub hurry
{
	my ($where) = @_;

	$late += sql(<<"EOQ");
SELECT (SELECT count(*) FROM mlint.acme_order WHERE finished_at IS NULL AND isfinite(next_at) AND next_at > now() + interval '8 days')
	+ (SELECT count(*) FROM mlint.acme_account WHERE isfinite(not_before) AND not_before > now() + interval '8 days')
	+ (SELECT count(*) FROM mlint.acme_challenge c JOIN mlint.acme_order o ON o.id = c.order_id AND o.finished_at IS NULL
		WHERE isfinite(poll_at) AND poll_at > now() + interval '8 days')
EOQ
	sql(<<"EOQ");
UPDATE mlint.acme_order SET next_at = clock_timestamp() WHERE finished_at IS NULL AND isfinite(next_at) AND next_at > clock_timestamp() + interval '300 ms';
UPDATE mlint.acme_order SET polls = 55 WHERE finished_at IS NULL AND polls BETWEEN 8 AND 54;
UPDATE mlint.acme_challenge SET polls = 55 WHERE polls BETWEEN 8 AND 54;
UPDATE mlint.acme_challenge SET poll_at = clock_timestamp() WHERE isfinite(poll_at) AND poll_at > clock_timestamp() + interval '300 ms';
UPDATE mlint.acme_challenge SET next_at = clock_timestamp() WHERE isfinite(next_at) AND next_at > clock_timestamp() + interval '300 ms'
	AND presence IN ('wanted', 'presenting', 'checking', 'removing');
UPDATE mlint.acme_account SET not_before = '-infinity' WHERE not_before > clock_timestamp();
UPDATE mlint.acme_account SET next_at = clock_timestamp() WHERE next_at > clock_timestamp() + interval '300 ms';
SELECT mlint.job_run_now('certificates');
EOQ
	for my $pid (split /\n/, sql("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'mlint job%'"))
	{
		my $status = eval { slurp_file("/proc/$pid/status") } // '';
		$high = $1 if $status =~ /VmHWM:\s+(\d+)/ && $1 > $high;
	}
	return;
}

sub all_rest
{
	my ($what, $seconds) = @_;

	wait_for($what, sub {
		hurry();
		return sql("SELECT count(*) FROM mlint.acme_order WHERE finished_at IS NULL") == 0;
	}, $seconds);
	return;
}

wait_for_sql($node, scalar(@cases) . ' certificates are issued',
	"SELECT count(*) FROM mlint.certificate WHERE state = 'ACTIVE'", scalar @cases)
  or diag sql("SELECT name, state, error FROM mlint.certificate WHERE state <> 'ACTIVE' LIMIT 5");
my %before = map { split /\|/ } split /\n/, sql('SELECT name, version_id FROM mlint.certificate');

# ---- now ----

for my $case (@cases)
{
	for my $fault (@{ $case->{faults} })
	{
		my ($step, $do, @how) = @$fault;
		# Renewals: an order that is asked for again must not find another fault.
		$ca->fault($case->{name}, $step, $do, @how);
	}
}
my $began = time;
sql("SELECT mlint.certificate_renew(id) FROM mlint.certificate");

# Somebody else meanwhile, whose authority is well.
$ca->account($node, 'bystander');
sql("SELECT mlint.certificate_issue(ARRAY['by-' || i || '.example'], 'bystander', name => 'by-' || i) FROM generate_series(1, 20) i");
wait_for_sql($node, 'those of others are issued meanwhile',
	"SELECT count(*) FROM mlint.certificate WHERE name LIKE 'by-%' AND state = 'ACTIVE'", 20, 'postgres');
note sprintf 'after %.1f s', time - $began;

all_rest('every order comes to an end', 240)
  or diag sql("SELECT c.name, o.state, o.attempts, o.polls, o.next_at - now(), o.error FROM mlint.acme_order o JOIN mlint.certificate c ON c.id = o.certificate_id WHERE o.finished_at IS NULL LIMIT 20");
note sprintf 'after %.1f s, at most %d kB in a worker', time - $began, $high;

# ---- and after ----

my %after;
for my $line (split /\x1e/, $node->safe_psql('postgres', <<'EOQ', extra_params => [ '-F', "\x1f", '-R', "\x1e" ]))
SELECT c.name, c.state, c.version_id, coalesce(c.error, ''), o.state, coalesce(o.error, ''), c.attempts
FROM mlint.certificate c, LATERAL (SELECT * FROM mlint.acme_order o WHERE o.certificate_id = c.id ORDER BY id DESC LIMIT 1) o
EOQ
{
	my ($name, @what) = split /\x1f/, $line;
	$after{$name} = \@what;
}

for my $case (@cases)
{
	my $name = $case->{name};
	my ($state, $version, $error, $order, $order_error) = @{ $after{$name} };
	my $ok = $state eq 'ACTIVE';

	if (defined $case->{error})
	{
		$ok &&= $version == $before{$name} && $order eq 'failed' && $error =~ $case->{error};
	}
	else
	{
		$ok &&= $version > $before{$name} && $order eq 'issued' && $error eq '';
	}
	ok($ok, $name . (defined $case->{error} ? ': fails' : ': succeeds'))
	  or diag "it is $state with " . ($version == $before{$name} ? 'the version before' : 'a new version')
	  . ", its order $order: " . substr($error, 0, 300);
}

wait_for('an account that the authority has forgotten is made anew', sub {
	hurry();
	return sql("SELECT status FROM mlint.acme_account WHERE name = 'problem-accountdoesnotexist'") eq 'valid';
});
is($late, 0, 'nothing was put off for longer than a week');
SKIP:
{
	skip 'freed memory is kept', 1 if memory_is_watched();
	cmp_ok($high, '<', 200_000, 'no worker needs more than 200 MB');
}
wait_for_sql($node, 'what was shown is shown no more',
	"SELECT (SELECT count(*) FROM shown) + (SELECT count(*) FROM mlint.acme_challenge WHERE presence NOT IN ('none', 'removed'))", 0)
  or diag sql("SELECT o.state, c.status, c.presence, c.solver, c.attempts, c.next_at - now(), c.error FROM mlint.acme_challenge c LEFT JOIN mlint.acme_order o ON o.id = c.order_id WHERE presence NOT IN ('none', 'removed') LIMIT 10");
cmp_ok(sql("SELECT count(*) FROM calls WHERE action = 'present'"), '>', 50, 'and it was shown');

my $http = HTTP::Tiny->new(timeout => 10);
my @tokens = split /\n/, sql("SELECT token FROM mlint.acme_challenge WHERE token IS NOT NULL ORDER BY random() LIMIT 50");
is(scalar(grep { $http->get("http://127.0.0.1:$gateway/.well-known/acme-challenge/$_")->{status} != 404 } @tokens),
	0, 'the gateway has forgotten, too');

my $stats = $ca->stats;
is($stats->{canary}, 0, 'nobody was sent elsewhere');
cmp_ok(($stats->{tags}{'endless-order'}{'endless KiB'} // 0), '<', 20 * 4096, 'what has no end is not read for long');
is(sql("SELECT count(*) FROM mlint.jobs WHERE name LIKE 'certificate%' AND last_error IS NOT NULL"), 0,
	'the jobs themselves have not failed');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal|server process .* exited|invalid memory|WARNING:.*leak/,
	'nothing died');
is(scalar(grep { ($stats->{tags}{$_}{bugs} // 0) > 0 } keys %{ $stats->{tags} }), 0, 'the authority itself is well')
  or diag $ca->log;
is(scalar(grep { ($stats->{tags}{$_}{'no user-agent'} // 0) > 0 } keys %{ $stats->{tags} }), 0, 'requests name who asks');

# ---- the rest of the protocol ----

# Accounts: what fails at their creation is told, and mended by itself.
for my $how ([ 'html', 'html' ], [ 'reset', 'reset' ], [ 'noloc', 'header', headers => { Location => undef } ],
	[ 'busy', 'problem', kind => 'rateLimited', headers => { 'Retry-After' => '3' } ],
	[ 'terms', 'problem', kind => 'userActionRequired', detail => 'read this first', more => { instance => 'https://ca.example/terms' } ])
{
	my ($name, $do, @how) = @$how;
	$ca->fault("new-$name", $_, $do, times => 0, @how) for 'account';
	$ca->account($node, "new-$name");
}
wait_for('accounts that cannot be made say why', sub {
	hurry();
	return sql("SELECT count(*) FROM mlint.acme_account WHERE name LIKE 'new-%' AND error IS NOT NULL") == 4;
}) or diag sql("SELECT name, status, error, attempts FROM mlint.acme_account WHERE name LIKE 'new-%'");
like(sql("SELECT error FROM mlint.acme_account WHERE name = 'new-terms'"), qr/read this first.*ca\.example\/terms/,
	'with all that a person needs to know');
$ca->clear("new-$_") for qw(html reset noloc busy terms);
wait_for('and are made when they can be', sub {
	hurry();
	return sql("SELECT count(*) FROM mlint.acme_account WHERE name IN ('new-reset', 'new-busy') AND status = 'valid'") == 2;
}) or diag sql("SELECT name, status, error, attempts FROM mlint.acme_account WHERE name LIKE 'new-%'");

# A rollover that fails leaves the key that works.
$ca->fault('bystander', 'key-change', 'problem', kind => 'malformed', times => 0);
sql("SELECT mlint.acme_account_rollover('bystander')");
wait_for('a rollover that is refused says so', sub {
	hurry();
	return sql("SELECT coalesce(error, '') <> '' FROM mlint.acme_account WHERE name = 'bystander'") eq 't';
});
sql("SELECT mlint.certificate_renew(id) FROM mlint.certificate WHERE name = 'by-1'");
wait_for('and the account goes on with its key', sub {
	hurry();
	return sql("SELECT count(*) FROM mlint.certificate_version v JOIN mlint.certificate c ON c.id = v.certificate_id WHERE c.name = 'by-1'") == 2;
}) or diag sql("SELECT state, error FROM mlint.certificate WHERE name = 'by-1'");
# An answer that is lost: which key is it now?
$ca->clear('bystander');
$ca->fault('bystander', 'key-change', 'reset', after => 1);
sql("SELECT mlint.acme_account_rollover('bystander')");
wait_for('a rollover whose answer is lost is done', sub {
	hurry();
	return sql("SELECT status = 'valid' AND new_key_version IS NULL AND error IS NULL FROM mlint.acme_account WHERE name = 'bystander'") eq 't';
}) or diag sql("SELECT status, error, key_version, new_key_version FROM mlint.acme_account WHERE name = 'bystander'");
sql("SELECT mlint.certificate_renew(id) FROM mlint.certificate WHERE name = 'by-2'");
wait_for('and the account goes on with the new one', sub {
	hurry();
	return sql("SELECT count(*) FROM mlint.certificate_version v JOIN mlint.certificate c ON c.id = v.certificate_id WHERE c.name = 'by-2'") == 2;
}) or diag sql("SELECT state, error FROM mlint.certificate WHERE name = 'by-2'");

# Revocations.
$ca->fault('bystander', 'revoke', 'reset');
sql("SELECT mlint.certificate_revoke(id, 'superseded') FROM mlint.certificate WHERE name = 'by-3'");
wait_for('a revocation is tried until it is done', sub {
	hurry();
	sql("UPDATE mlint.certificate_version SET revoke_at = clock_timestamp() WHERE revoke_at > clock_timestamp() AND revoked_at IS NULL");
	return sql("SELECT state FROM mlint.certificate WHERE name = 'by-3'") eq 'REVOKED';
});
$ca->fault('bystander', 'revoke', 'reset', after => 1);
sql("SELECT mlint.certificate_revoke(id) FROM mlint.certificate WHERE name = 'by-4'");
wait_for('and one whose answer is lost, too', sub {
	hurry();
	sql("UPDATE mlint.certificate_version SET revoke_at = clock_timestamp() WHERE revoke_at > clock_timestamp() AND revoked_at IS NULL");
	return sql("SELECT state FROM mlint.certificate WHERE name = 'by-4'") eq 'REVOKED';
});

# Renewal information that is none changes nothing.
$ca->set('ari', ari => JSON::PP::true);
my $fault = 0;
for my $how ([ 'html', 'html' ], [ 'kind', 'kind', kind => 'text/plain' ], [ 'deep', 'deep' ], [ 'gone', 'problem', kind => 'malformed', status => 404 ],
	[ 'reset', 'reset' ], [ 'backwards', 'edit', members => { suggestedWindow => { start => '2030-01-02T00:00:00Z', end => '2030-01-01T00:00:00Z' } } ],
	[ 'old', 'edit', members => { suggestedWindow => { start => '1970-01-02T00:00:00Z', end => '1970-01-03T00:00:00Z' } } ],
	[ 'far', 'edit', members => { suggestedWindow => { start => '9970-01-02T00:00:00Z', end => '9990-01-03T00:00:00Z' } } ])
{
	my ($name, $do, @how) = @$how;
	$ca->set("ari-$name", ari => JSON::PP::true);
	$ca->fault("ari-$name", 'ari', $do, times => 0, @how);
	$ca->account($node, "ari-$name");
	sql("SELECT mlint.certificate_issue(ARRAY['ari-$name.example'], 'ari-$name', name => 'ari-$name')");
	$fault++;
}
wait_for('renewal information of all sorts is asked for', sub {
	hurry();
	my $tags = $ca->stats->{tags};
	return $fault == grep { ($tags->{$_}{ari} // 0) > 0 } grep { /^ari-/ } keys %$tags;
});
wait_for_sql($node, 'and all are renewed in time, whatever it says',
	"SELECT count(*) FROM mlint.certificate c JOIN mlint.certificate_version v ON v.id = c.version_id WHERE c.name LIKE 'ari-%' AND c.state = 'ACTIVE' AND c.due_at < v.not_after - interval '4 days'",
	$fault)
  or diag sql("SELECT c.name, c.state, c.due_at, v.not_after, c.error FROM mlint.certificate c LEFT JOIN mlint.certificate_version v ON v.id = c.version_id WHERE c.name LIKE 'ari-%'");

$node->stop;
done_testing();
