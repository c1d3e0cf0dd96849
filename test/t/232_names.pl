# Names and values are data. Each argument of each function that is text, a list
# of texts or a name in a document is tried with what would be SQL, a format, a
# path, an escape or another line, if it were put anywhere unquoted. What is
# taken comes back as it was, in views, events, errors, files, headers and logs;
# roles, databases, schemas and functions may be called anything.

use strict;
use warnings;

use CallsTest;
use JSON::PP ();
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $evil = '"; drop table x; --';
my $literal = literal($evil);
my $db = 'd' . $evil;
my $mounts = PostgreSQL::Test::Utils::tempdir() . '/mounts';
mkdir $mounts, 0700;
my $receiver = MlintTest::Receiver->start;
my $node = mlint_node('names', create => 0, conf => <<"EOC");
log_statement = none
fsync = off
mlint.secret_mount_directory = '$mounts'
EOC
my $ident = sub { return '"' . $_[0] =~ s/"/""/gr . '"' };
my $quoted = $ident->($evil);
my $role = 'r' . $evil;

# ---- a database and roles of such names, with the extension ----
$node->safe_psql('postgres', 'CREATE DATABASE ' . $ident->($db));
$node->safe_psql('postgres', 'CREATE ROLE ' . $ident->($role) . ' LOGIN');
# The name of a database is a part of a connection string, too.
sub psql
{
	my ($sql, %options) = @_;
	$options{extra_params} = [ '-v', 'VERBOSITY=verbose', @{ $options{extra_params} // [] } ];
	return $node->psql('postgres', '\connect ' . $ident->($db) . "\n$sql", %options);
}
sub sql
{
	my ($rc, $out, $err) = psql($_[0], on_error_stop => 1);
	die "$_[0]: $err" if $rc;
	return $out;
}
sql($_) for split /;\n/, <<"EOQ";
CREATE EXTENSION mlint;
GRANT mlint_admin TO ${\$ident->($role)};
GRANT CREATE ON SCHEMA public TO ${\$ident->($role)};
CREATE TABLE public.x (kept text);
INSERT INTO public.x VALUES ('kept')
EOQ
is(sql('SELECT current_database()'), $db, 'a database of such a name has the extension');

# calls_setup wants a node.
package Evil { sub safe_psql { shift; shift; return main::sql($_[0]); } sub psql { shift; shift; return main::psql(@_); } }
my $there = bless {}, 'Evil';
my $id = calls_setup($there, '', $ident->($role));
is(join("\n", calls_missing($there, '')), '', 'each function of mlint is called here');

# ---- every argument ----
# By function, the names and types of its arguments, from the catalog.
my %arguments;
foreach my $line (split /\n/, sql(<<'EOQ'))
SELECT p.proname || CASE WHEN count(*) OVER (PARTITION BY p.proname) > 1
		THEN '(' || replace(oidvectortypes(p.proargtypes), ' ', '') || ')' ELSE '' END
	|| '|' || coalesce((SELECT string_agg(quote_ident(a.name) || ' ' || a.type::regtype, '|' ORDER BY a.n)
		FROM unnest(p.proargnames[:p.pronargs], p.proargtypes::oid[]) WITH ORDINALITY a(name, type, n)), '')
FROM pg_proc p WHERE p.pronamespace = 'mlint'::regnamespace AND p.prorettype <> 'trigger'::regtype
EOQ
{
	my ($function, @list) = split /\|/, $line;
	$arguments{$function} = { map { /^(.*) (.*)$/ } @list };
}
my %procedures = map { $_ => 1 } split /\n/,
  sql("SELECT proname FROM pg_proc WHERE pronamespace = 'mlint'::regnamespace AND prokind = 'p'");

my @values = ($evil, "'); drop table x; --", "x'; drop table x; --", '$$; drop table x; --', '%s%n%1$s{0}${x}',
	"a\r\nX-Evil: yes\r\n\r\nb", '../../../etc/passwd', "\x{5c}'; drop table x; --", 'a,b"c{d}e[f]', "\t");
my (@odd, $n);
my @statements;
foreach my $call (calls($id))
{
	my ($function) = @$call;
	# A procedure commits, and takes no text.
	next if $procedures{ $function =~ s/\(.*//r };
	foreach my $argument (sort keys %{ $arguments{$function} })
	{
		my $type = $arguments{$function}{$argument};
		foreach my $value (@values)
		{
			my $text = literal($value);
			$text = "ARRAY[$text]" if $type eq 'text[]';
			$text = 'jsonb_build_object(' . literal($value) . ', ' . literal($value) . ')' if $type eq 'jsonb';
			next unless $type =~ /^(text|text\[\]|jsonb)$/;
			push @statements, statement($call, \%procedures, $argument => $text);
		}
	}
}
cmp_ok(scalar @statements, '>', 2000, 'every argument, with every value: ' . @statements . ' calls');
{
	# Undone each by itself, as far as it can be.
	my ($rc, undef, $err) = psql(join("\n", 'SET ROLE ' . $ident->($role) . ';', 'SET statement_timeout = \'20 s\';',
			map { ("\\warn call $_", 'BEGIN;', "$statements[$_];", 'ROLLBACK;') } 0 .. $#statements),
		on_error_stop => 0);
	like($err, qr/^call $#statements$/m, '... and the session goes through all of them');
	foreach my $part (split /^call /m, $err)
	{
		next unless $part =~ /^(\d+)\n.*?(?:ERROR|FATAL|PANIC):  (\w{5}): (.*?)$/ms;
		my ($call, $state, $message) = ($1, $2, $3);
		# Syntax, undefined things and internal errors are what unquoted text makes.
		push @odd, "$statements[$call]: $state $message"
		  if $state =~ /^(XX|42601|42703|42883|42P01|42P02|26000|22P02|P0001)/
		  && $message !~ /^invalid input (syntax|value)|^permission denied/;
	}
}
is(join("\n", @odd), '', '... and none of them is taken for anything but a value');
is(sql('SELECT kept FROM public.x'), 'kept', '... and x lives');

# ---- what may be called anything comes back as it was ----
my $json = sub { return literal(JSON::PP->new->canonical->allow_nonref->encode($_[0])) };
sub comes_back
{
	my ($what, $sql) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($rc, $out, $err) = psql("SET ROLE ${\$ident->($role)};\n$sql", on_error_stop => 1);
	return is($rc ? $err : (split /\n/, $out)[-1], $evil, $what);
}
comes_back('a session', "SELECT FROM mlint.session_register($literal, 'gpt-4', '0613', ARRAY[$literal], jsonb_build_object($literal, $literal)); SELECT session_id FROM mlint.session_get($literal)");
comes_back('... its tag', "SELECT tags[1] FROM mlint.session_list(tag => $literal)");
comes_back('... its metadata', "SELECT metadata->>$literal FROM mlint.session_list(metadata => jsonb_build_object($literal, $literal))");
comes_back('a model', "SELECT FROM mlint.model_register($literal, $literal, $literal, description => $literal, tags => ARRAY[$literal]); SELECT model_id FROM mlint.model_get($literal, $literal)");
comes_back('... its provider', "SELECT provider FROM mlint.model_list(provider => $literal, tag => $literal)");
comes_back('usage of both', "SELECT FROM mlint.usage_track($literal, 1, 2, $literal, custom => jsonb_build_object($literal, 1)); SELECT k FROM mlint.session_usage($literal) u, jsonb_object_keys(u.custom) k");
comes_back('... a budget', "SELECT FROM mlint.usage_budget_set('tag:' || $literal, 5); SELECT substr(scope, 5) FROM mlint.usage_budgets WHERE scope LIKE 'tag:%'");
comes_back('a policy', "SELECT FROM mlint.retention_policy_create($literal, 400, description => $literal, match_tag => $literal); SELECT name FROM mlint.retention_policies WHERE match_tag = $literal");
comes_back('an archive', "SELECT FROM mlint.archive_session($literal, policy => $literal, tags => ARRAY[$literal], metadata => jsonb_build_object($literal, $literal)); SELECT session_id FROM mlint.archive_list(policy => $literal, tag => $literal)");
comes_back('... its document', "SELECT mlint.archive_get(id)#>>'{session,session_id}' FROM mlint.archives WHERE session_id = $literal")
  if sql("SELECT mlint.archive_get(id)->'session' IS NOT NULL FROM mlint.archives WHERE session_id = $literal") eq 't';
comes_back('a hold', "SELECT FROM mlint.archive_hold($literal, $literal); SELECT reason FROM mlint.holds WHERE reason = $literal");
comes_back('an identifier and its override', "SELECT FROM mlint.rate_override_set('api', $literal, 'deny', reason => $literal); SELECT (mlint.rate_check('api', $literal)).reason");
comes_back('a rate limit', "SELECT FROM mlint.rate_rule_create($literal, 'token_bucket', 1, '1 s', description => $literal); SELECT (mlint.rate_check($literal, $literal)).rule");
comes_back('... what it says of itself', "SELECT rule FROM mlint.stat_rate_limits WHERE rule = $literal");
comes_back('a destination', "SET client_min_messages = error; SELECT FROM mlint.destination_create($literal, 'http', '{\"url\": \"http://127.0.0.1:1/\"}', ARRAY[$literal]); SELECT name FROM mlint.destinations WHERE events = ARRAY[$literal]");
comes_back('an event of such a type', "SELECT FROM mlint.publish($literal, '{}'); SELECT type FROM mlint.events WHERE type = $literal");
comes_back('... its delivery', "SELECT destination FROM mlint.deliveries WHERE event_type = $literal");
comes_back('a secret\'s description', "SELECT FROM mlint.secret_put('own/described', $literal, description => $literal, metadata => jsonb_build_object($literal, $literal)); SELECT description FROM mlint.secrets WHERE name = 'own/described'");
comes_back('... its value', "SELECT mlint.secret_get('own/described')");
comes_back('who it belongs to', "SELECT substr(owner, 2) FROM (SELECT replace(trim(owner, '\"'), '\"\"', '\"') AS owner FROM mlint.secrets WHERE name = 'own/described') o");
comes_back('an event\'s data and key', "SELECT FROM mlint.publish('never.here', jsonb_build_object($literal, $literal), key => $literal); SELECT data->>$literal FROM mlint.events WHERE key = $literal");
comes_back('what the audit log says of a role', "RESET ROLE; SELECT substr(role, 2) FROM mlint.audit_log WHERE object = 'own/described' LIMIT 1");

# Names that are taken apart, or go into files, are refused as a whole.
foreach my $refused (
	[ 'a secret', "mlint.secret_put($literal, 'v')" ],
	[ 'an archive store', "mlint.archive_store_create($literal, 's3')" ],
	[ 'a DNS provider', "mlint.dns_provider_create($literal, 'cloudflare', '{}')" ],
	[ 'a secret backend', "mlint.secret_backend_create($literal, 'vault')" ],
	[ 'a rule of the scanner', "mlint.secret_rule_create($literal, 'a', '{a}')" ],
	[ 'an account', "mlint.acme_account_create($literal, 'https://127.0.0.1:1/', 'a\@example.com')" ],
	[ 'a certificate', "mlint.certificate_issue(ARRAY['a.example.com'], 'ca', name => $literal)" ])
{
	my ($rc, undef, $err) = psql("SELECT $refused->[1]", on_error_stop => 1);
	isnt($rc, 0, "$refused->[0] cannot be called that");
	like($err, qr/ERROR:  (ML|22|42602|42704)/, '... and the error says so') or diag $err;
}

# ---- schemas, functions and roles that mlint calls ----
sql("CREATE SCHEMA $quoted; CREATE TABLE $quoted.$quoted (who text, what jsonb)");
sql("CREATE FUNCTION $quoted.$quoted(e jsonb) RETURNS void LANGUAGE sql AS \$f\$ INSERT INTO $quoted.$quoted VALUES (current_user, e) \$f\$");
sql("CREATE FUNCTION $quoted.shape(e jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT e'");
sql("GRANT ALL ON SCHEMA $quoted TO PUBLIC; GRANT ALL ON $quoted.$quoted TO PUBLIC");
my $fn = $json->({ fn => "$quoted.$quoted" });
my $transform = $json->({ url => $receiver->url('/ok?q=' . 'a%22%3B'), transform => "$quoted.shape",
	headers => { 'X-Name' => $evil }, signing_secret => { secret => 'own/key' } });
sql("SET client_min_messages = error; SET ROLE ${\$ident->($role)}; SELECT mlint.destination_create('fn', 'function', $fn, '{evil}'); SELECT mlint.destination_create('shaped', 'http', $transform, '{evil}')");
sql("SELECT mlint.publish('evil', jsonb_build_object('name', $literal))");
{
	my $last = '';
	wait_for('a function of such a name is called', sub { ($last = sql("SELECT count(*) FROM $quoted.$quoted")) eq '1' })
	  or diag sql('SELECT destination, state, error FROM mlint.deliveries');
	wait_for('a request goes out', sub { $receiver->count >= 1 });
}
is(sql("SELECT who FROM $quoted.$quoted"), $role, '... as a role of such a name');
my ($request) = $receiver->requests;
is($request->{headers}{'x-name'}, $evil, '... with a header that has it');
like($request->{body}, qr/\Q${\JSON::PP->new->allow_nonref->encode($evil)}\E/, '... and a body');

# Lines end headers, so no value has one.
foreach my $break ("a\r\nX-Evil: 1", "a\nb", "a\rb")
{
	my ($rc, undef, $err) = psql('SELECT mlint.http(\'GET\', ' . literal($receiver->url('/evil')) . ', ' . $json->({ 'X-A' => $break }) . ')',
		on_error_stop => 1);
	like($err, qr/ML007/, 'a header with a line break is refused');
	my $values = $json->({ url => $receiver->url('/evil'), headers => { 'X-A' => $break } });
	($rc, undef, $err) = psql("SELECT mlint.destination_create('broken', 'http', $values)", on_error_stop => 1);
	like($err, qr/ML007/, '... in a destination, too');
}
is($receiver->count('/evil'), 0, '... and nothing is sent');

# ---- files and dotenv: the shell reads what was put in ----
my $lines = "a'b\"c\$(touch $mounts/x)`id`\\\nd=e\r#f";
sql("SELECT mlint.secret_put('own/lines', " . literal($lines) . ')');
sql("SELECT mlint.secret_mount_create('own/described', $literal)");
sql("SELECT mlint.secret_mount_create('own/lines', 'env', format => 'dotenv', more => '{own/described}')");
wait_for('a file is written', sub { -s "$mounts/env" });
wait_for('... and one of such a name', sub { -e "$mounts/$evil" });
my $script = ". '$mounts/env' && for v in \$(sed -n 's/=.*//p' '$mounts/env' | grep -E '^[A-Z_]*(LINES|DESCRIBED)\$'); do eval \"printf '[%s]' \\\"\\\$\$v\\\"\"; done";
my $shell = `sh -c ${\literal_shell($script)}`;
sub literal_shell { my ($t) = @_; $t =~ s/'/'\\''/g; return "'$t'"; }
like($shell, qr/\[\Q$lines\E\]/, '... a shell reads the value from it');
like($shell, qr/\Q[$evil]\E/, '... and the other one');
ok(!-e "$mounts/x", '... and runs nothing');

# ---- what the log and the errors say is one line each ----
{
	my $offset = -s $node->logfile;
	my $line = literal("a\nFATAL:  forged");
	foreach my $call ("mlint.session_get($line)", "mlint.rate_check($line)", "mlint.secret_get($line)",
		"mlint.destination_drop($line)", "mlint.send($line, 'a.b', '{}')", "mlint.job_run_now($line)", "mlint.model_get($line)")
	{
		my ($rc) = psql("SET ROLE ${\$ident->($role)};\nSELECT $call", on_error_stop => 1);
		isnt($rc, 0, 'a name with another line: ' . ($call =~ s{\(.*}{}sr) . ' does not work');
	}
	unlike(slurp_file($node->logfile, $offset), qr/^(FATAL|\S+ \S+ \S+ \[\d+\] \S+ FATAL):  forged/m,
		'... and no line of the log is forged');
}

is(sql('SELECT kept FROM public.x'), 'kept', 'x lives');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_stat_activity WHERE backend_type = \'mlint scheduler\' AND datname = ' . literal($db)),
	'1', 'and the database has its workers');
# Roles that are gone, databases that are renamed.
$node->safe_psql('postgres', 'ALTER DATABASE ' . $ident->($db) . ' RENAME TO ' . $ident->("$db'"));
$db .= "'";
is(sql('SELECT kept FROM public.x'), 'kept', 'a database of such a name can be renamed');
sql('REASSIGN OWNED BY ' . $ident->($role) . ' TO CURRENT_USER');
$node->stop;
done_testing();
