# The drivers slack, discord, function and notify, as the other side sees
# them; and destinations whose function or owner has gone.

use strict;
use warnings;

use Encode ();
use JSON::PP ();
use Test::More;

use MlintTest;

my $node = mlint_node('drivers');
my $receiver = MlintTest::Receiver->start;

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Call a function that publishes, wait, and return what arrived, decoded.
sub message
{
	my ($call, $path) = @_;
	my $before = $receiver->count($path);
	my $id = sql("SELECT mlint.$call");
	wait_for_delivery($node, $id) or die "$call was not delivered";
	my @got = $receiver->requests($path);
	die "$call: " . (@got - $before) . ' requests' if @got != $before + 1;
	is($got[-1]{headers}{'content-type'}, 'application/json', "$call: as JSON");
	return JSON::PP::decode_json(Encode::encode('UTF-8', $got[-1]{body}));
}

# ---- chat services ----
my %path = map { $_ => "/status/200?$_" } qw(slack discord);
foreach my $service (qw(slack discord))
{
	sql("SELECT mlint.secret_put('$service', '" . $receiver->url($path{$service}) . "')");
	create_destination($node, $service, $service, { url => { secret => $service } });
}
is( sql("SELECT count(*) FROM mlint.destinations d WHERE d::text LIKE '%http:%'"), 0,
	'the URL shows nowhere');

is_deeply(message("slack_message('slack', 'hello <b> & c')", $path{slack}),
	{ text => 'hello <b> & c' }, 'slack_message: the text as it is');
is_deeply(message("slack_message('slack', 'hello', 'mlint', ':robot_face:')", $path{slack}),
	{ text => 'hello', username => 'mlint', icon_emoji => ':robot_face:' }, '... as somebody');
foreach my $severity ([ info => '#36a64f' ], [ warning => '#ffcc00' ], [ error => '#ff0000' ], [ critical => '#8b0000' ])
{
	my ($name, $color) = @$severity;
	my $got = message("slack_alert('slack', 'Title', 'What happened', '$name', '{\"host\": \"a\"}')", $path{slack});
	is($got->{text}, '[' . uc($name) . '] Title', "slack_alert: $name");
	is($got->{attachments}[0]{color}, $color, '... in its colour');
	is_deeply($got->{attachments}[0]{blocks},
		[ { type => 'header', text => { type => 'plain_text', text => 'Title' } },
			{ type => 'section', text => { type => 'mrkdwn', text => 'What happened' } },
			{ type => 'section', fields => [ { type => 'mrkdwn', text => "*host*\na" } ] } ],
		'... title, message and fields');
}
is( scalar(@{ message("slack_alert('slack', 'Title', 'What happened')", $path{slack})->{attachments}[0]{blocks} }),
	2, '... no fields, no block of them');
is_deeply(message("discord_message('discord', 'hello')", $path{discord}), { content => 'hello' }, 'discord_message: content');
is_deeply(message("discord_message('discord', NULL, 'mlint', '[{\"title\": \"t\", \"fields\": [{\"name\": \"n\", \"value\": \"v\"}]}]')", $path{discord}),
	{ username => 'mlint', embeds => [ { title => 't', fields => [ { name => 'n', value => 'v' } ] } ] }, '... embeds');

# Any other event becomes a text, cut where the service would refuse it.
is_deeply(message("publish('slack', '{\"a\": \"<b> & c\"}')", $path{slack}),
	{ text => qq(*slack*\n```{"a": "&lt;b&gt; &amp; c"}```) }, 'slack: an ordinary event, escaped');
is_deeply(message("publish('discord', '{\"a\": \"<b>\"}')", $path{discord}),
	{ content => qq(**discord**\n```json\n{"a": "<b>"}\n```) }, 'discord: an ordinary event');
foreach my $case ([ 'slack', 'text', 2500, 40000 ], [ 'discord', 'content', 1600, 2000 ])
{
	my ($service, $field, $shown, $limit) = @$case;
	my $text = message("publish('$service', to_jsonb(repeat('x', 50000)))", $path{$service})->{$field};
	cmp_ok(length($text), '<=', $limit, "$service: a long event is within the limit");
	is(scalar($text =~ tr/x//), $shown - 1, '... with as much as may be shown');
	like($text, qr/x \.\.\.\n?```$/, '... and says that it goes on');
}

# A transform makes the whole body.
sql(q(CREATE FUNCTION public.shape(e jsonb) RETURNS jsonb LANGUAGE sql AS
	$$ SELECT jsonb_build_object('text', 'it is ' || (e->>'data')) $$));
create_destination($node, 'shaped', 'slack', { url => { secret => 'slack' }, transform => 'public.shape' });
is_deeply(message("publish('shaped', '5')", $path{slack}), { text => 'it is 5' }, 'slack: a transform makes the body');

# Their 429 is obeyed.
foreach my $service (qw(slack discord))
{
	my $limited = "/status/429?retry_after=1&$service";
	sql("SELECT mlint.secret_put('limited', '" . $receiver->url($limited) . "')");
	create_destination($node, "limited-$service", $service,
		{ url => { secret => 'limited' }, retry => { strategy => 'immediate', max_retries => 1 } });
	my $id = sql("SELECT mlint.${service}_message('limited-$service', 'x')");
	wait_for_delivery($node, $id);
	delivery_is($node, $id, qr/^dead\|2\|429\|/, "$service: 429 is tried again");
	my @at = map { $_->{time} } $receiver->requests($limited);
	cmp_ok($at[1] - $at[0], '>=', 0.99, '... when the service says');
}
# A secret that is no URL.
sql("SELECT mlint.secret_put('nonsense', 'xoxb-hunter2')");
create_destination($node, 'nonsense', 'slack', { url => { secret => 'nonsense' } });
my $id = publish($node, 'nonsense');
wait_for_sql($node, 'a secret that is no URL: held, with the reason',
	"SELECT state, error FROM mlint.deliveries WHERE event_id = $id AND error IS NOT NULL", 'pending|invalid URL in url');
unlike(sql("SELECT string_agg(d::text, '') FROM mlint.deliveries d"), qr/hunter2/, '... not with the secret');

# ---- notify ----
create_destination($node, 'told', 'notify', { channel => 'Chan "1"' });
my $listener = $node->background_psql('postgres', on_error_stop => 0);
$listener->query_safe('LISTEN "Chan ""1"""');
$id = deliver($node, 'told', { n => 1 });
my $big = deliver($node, 'told', 'x' x 9000);
my $heard = $listener->query('SELECT 1');
like($heard, qr/"Chan "1"" with payload "\{"id":$id,"type":"told","timestamp":"[^"]+","data":\{"n": 1\},"metadata":\{\}\}"/,
	'notify: the event is the payload');
like($heard, qr/payload "\{"id":$big,"type":"told","truncated":true\}"/, '... too long a one is announced');
$listener->quit;
delivery_is($node, $big, 'delivered|1||', '... both are delivered');

# ---- function ----
sql(q(
	CREATE ROLE owner LOGIN IN ROLE mlint_admin;
	GRANT CREATE ON SCHEMA public TO owner;
	CREATE TABLE got (event jsonb, who text);
	ALTER TABLE got OWNER TO owner;
	CREATE FUNCTION public.slow(e jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN INSERT INTO public.got VALUES (e, current_user); PERFORM pg_sleep(3600); END $$;
	CREATE FUNCTION public.takes(e jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.got VALUES (e, current_user) $$;
	CREATE FUNCTION public.becomes(e jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN SET LOCAL ROLE postgres; INSERT INTO public.got VALUES (e, current_user); END $$;
	CREATE FUNCTION public.commits(e jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN COMMIT; END $$;
	));
sub function
{
	my ($name, $options) = @_;
	my $json = JSON::PP->new->canonical->encode({ fn => "public.$name", %$options });
	sql("SET ROLE owner; SET client_min_messages = error; SELECT mlint.destination_create('$name', 'function', '$json', '{$name}')");
	return;
}
function('takes', {});
delivery_is($node, deliver($node, 'takes'), 'delivered|1||', 'function: delivered');
is(sql('SELECT count(*), min(who) FROM got'), '1|owner', '... once, as the owner');
function('slow', { timeout_ms => 100, retry => { strategy => 'immediate', max_retries => 1 } });
delivery_is($node, deliver($node, 'slow'), qr/^dead\|2\|\|.*(timeout|canceling)/i, '... a slow one is ended by timeout_ms');
is(sql('SELECT count(*) FROM got'), 1, '... and has done nothing');
delivery_is($node, deliver($node, 'takes'), 'delivered|1||', '... others go on');
function('becomes', { retry => { strategy => 'none' } });
delivery_is($node, deliver($node, 'becomes'), qr/^dead\|1\|\|cannot set parameter "role" within security/,
	'... it stays the owner');
function('commits', { retry => { strategy => 'none' } });
delivery_is($node, deliver($node, 'commits'), qr/^dead\|1\|\|invalid transaction termination/, '... and in its transaction');

# A test calls the function, as the owner.
like(sql("SELECT ok, detail FROM mlint.destination_test('takes')"), qr/^t\|delivered$/, 'destination_test calls it');
like(sql("SELECT ok, detail FROM mlint.destination_test('becomes')"), qr/^f\|cannot set parameter/, '... and says why it fails');

# A function that is made anew, with the destination open; is gone; and comes back.
my $definition = sql("SELECT pg_get_functiondef('public.takes(jsonb)'::regprocedure)");
sub drop_and_create { sql("DROP FUNCTION public.takes(jsonb); $definition; GRANT EXECUTE ON FUNCTION public.takes TO owner"); return; }
drop_and_create();
delivery_is($node, deliver($node, 'takes', 'anew'), 'delivered|1||', 'a function that was made anew is called');
sub held
{
	my ($name, $what, $why) = @_;
	$id = publish($node, $name, $what);
	wait_for_sql($node, "$what: the delivery waits, and says why",
		"SELECT state, attempts, error ~ '$why' FROM mlint.deliveries WHERE event_id = $id AND error IS NOT NULL", 'pending|0|t');
	return;
}
sub delivered_after
{
	my ($name, $sql) = @_;
	sql("BEGIN; $sql; SELECT mlint.delivery_retry($id, '$name'); COMMIT");
	ok(wait_for_delivery($node, $id), '... as it was, it goes on');
	delivery_is($node, $id, qr/^delivered\|1\|/, '... at the first attempt');
	return;
}
sql('DROP FUNCTION public.takes(jsonb)');
held('takes', 'dropped', 'there is no function public\.takes');
delivered_after('takes', $definition);
is(sql("SELECT count(*) FROM got WHERE event->'data' = '\"dropped\"'"), 1, '... once');

# What the owner may not use any more, with the destination open.
sql('REVOKE EXECUTE ON FUNCTION public.takes FROM PUBLIC, owner');
held('takes', 'execute revoked', 'role "owner" may not execute public\.takes');
is(sql("SELECT ok FROM mlint.destination_test('takes')"), 'f', '... as a test does');
delivered_after('takes', 'GRANT EXECUTE ON FUNCTION public.takes TO owner');
sql('REVOKE USAGE ON SCHEMA public FROM PUBLIC, owner');
held('takes', 'usage revoked', 'role "owner" may not execute public\.takes');
delivered_after('takes', 'GRANT USAGE ON SCHEMA public TO PUBLIC');
sql("CREATE FUNCTION public.forms(e jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT e';"
	. "SET ROLE owner; SET client_min_messages = error;"
	. "SELECT mlint.destination_create('forms', 'http', '{\"url\": \"@{[ $receiver->url('/status/200?forms') ]}\", \"transform\": \"public.forms\", \"retry\": {\"strategy\": \"none\"}}', '{forms}')");
deliver($node, 'forms');
sql('REVOKE EXECUTE ON FUNCTION public.forms FROM PUBLIC');
held('forms', 'of a transform', 'role "owner" may not execute public\.forms');
is($receiver->count('/status/200?forms'), 1, '... and nothing is sent');
delivered_after('forms', 'GRANT EXECUTE ON FUNCTION public.forms TO owner');
sql("SELECT mlint.secret_put('lent', 'x');"
	. "SET ROLE owner; SET client_min_messages = error;"
	. "SELECT mlint.destination_create('lends', 'http', '{\"url\": \"@{[ $receiver->url('/status/200?lends') ]}\", \"auth\": {\"type\": \"bearer\", \"token\": {\"secret\": \"lent\"}}}', '{lends}');"
	. "RESET ROLE; REVOKE mlint_admin FROM owner; SELECT mlint.secret_grant('lent', 'owner', 'read')");
deliver($node, 'lends');
sql("SELECT mlint.secret_revoke('lent', 'owner', 'read')");
held('lends', 'read revoked', 'secret "lent", .* or you may not read it');
is($receiver->count('/status/200?lends'), 1, '... and nothing is sent');
is(sql("SELECT ok FROM mlint.destination_test('lends')"), 'f', '... nor by a test');
delivered_after('lends', "SELECT mlint.secret_grant('lent', 'owner', 'read')");

# An owner who is gone.
sql('ALTER TABLE got OWNER TO postgres; DROP OWNED BY owner; DROP ROLE owner');
$id = publish($node, 'takes', 'orphan');
wait_for_sql($node, 'a dropped owner: the delivery is held, and says why',
	"SELECT state, error LIKE '%role%not exist%' FROM mlint.deliveries WHERE event_id = $id AND error IS NOT NULL", 'pending|t');
is(sql("SELECT count(*) FROM got WHERE event->'data' = '\"orphan\"'"), 0, '... and nothing is called');
delivery_is($node, deliver($node, 'told', 'after all'), 'delivered|1||', 'others go on');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/mlint dispatcher.*(exited with exit code|terminated by signal)/,
	'the dispatchers never ended');

$node->stop;
done_testing();
