# A Redis server is not to be trusted: whatever it answers, a decision is made,
# in time, by a process that stays whole, keeps its descriptors and its memory,
# and tells the password to nobody whom the options do not name.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IO::Select;
use IO::Socket::INET;
use MlintTest;
use PostgreSQL::Test::Utils;
use RedisTest;
use Test::More;
use Time::HiRes qw(time);

my $port = RedisTest::ports(1);
my $dir = PostgreSQL::Test::Utils::tempdir('hostile');
my $mode_file = "$dir/mode";
my $auth_file = "$dir/auth";

# What it answers to a decision. It listens on all of 127.0.0.0/8.
sub answer
{
	my ($mode, $state) = @_;
	my $now = int(time * 1e6);
	my $array = sub { return '*' . scalar(@_) . "\r\n" . join('', map { ":$_\r\n" } @_); };

	return $array->($now, 1, 0, 0) if $mode eq 'honest';
	if ($mode eq 'segments')
	{
		# 51 segments, all of them of one step, not the present one.
		my $step = int($now / 1e6 * 50) - 1;

		return $array->($now, 1, $now + 1000000, 0, map { ($step, 1) } 1 .. 51);
	}
	return $array->($now, 0, $now + 1000000, 0, 5, 1, 4, 1) if $mode eq 'disorder';
	return $array->($now, 1 << 50, $now, 0) if $mode eq 'generous';
	return $array->($now, -1, 0, 0) if $mode eq 'negative';
	return $array->($now, 1, 9223372036854775807, 9223372036854775807) if $mode eq 'huge';
	return "*4\r\n\$3\r\nnan\r\n\$3\r\ninf\r\n:0\r\n:0\r\n" if $mode eq 'words';
	return "*1\r\n" x 1000000 . ":1\r\n" if $mode eq 'deep';
	return "*2147483647\r\n" x 7 if $mode eq 'wide';
	return "*2147483647\r\n:1\r\n" x 7 if $mode eq 'wider';
	return "\$2147483647\r\n" . 'x' x 6000000 if $mode eq 'long';
	return "\$-7\r\n" if $mode eq 'length';
	return "HTTP/1.1 400 Bad Request\r\n\r\n" if $mode eq 'http';
	return '' if $mode eq 'mute';
	return "-MOVED 0 127.0.0.1:$port\r\n" if $mode eq 'loop';
	if ($mode eq 'moved')
	{
		my $n = ++$state->{n};

		# Somewhere else each time; there, an answer.
		return $array->($now, 1, 0, 0) if $n % 2 == 0;
		return sprintf "-MOVED 0 127.%d.%d.%d:%d\r\n", 1 + ($n >> 16), $n >> 8 & 255, ($n & 255) | 1, $port;
	}
	return "-MOVED 0 127.0.0.2:$port\r\n" if $mode eq 'elsewhere';
	return "-MOVED 0 a\@127.0.0.2/?:$port\r\n" if $mode eq 'nonsense';
	return "-MOVED 99999999999 :\r\n" if $mode eq 'slot';
	die $mode;
}

my $server = fork // die;

if ($server == 0)
{
	my $listen = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => $port,
		Listen => 100, ReuseAddr => 1) or POSIX::_exit(1);
	my $select = IO::Select->new($listen);
	my %got;
	my %state;

	$SIG{PIPE} = 'IGNORE';
	while (1)
	{
		for my $socket ($select->can_read)
		{
			if ($socket == $listen)
			{
				my $client = $listen->accept or next;

				$select->add($client);
				$got{$client} = '';
				next;
			}
			if (!sysread($socket, $got{$socket}, 65536, length $got{$socket}))
			{
				$select->remove($socket);
				delete $got{$socket};
				close($socket);
				next;
			}
			# One command at a time, whole.
			next unless $got{$socket} =~ /\A\*(\d+)\r\n/;
			my ($n, $at, @words) = ($1, $+[0]);

			while ($n-- > 0)
			{
				pos($got{$socket}) = $at;
				last unless $got{$socket} =~ /\G\$(\d+)\r\n/g;
				$at = pos($got{$socket});
				last if length $got{$socket} < $at + $1 + 2;
				push @words, substr($got{$socket}, $at, $1);
				$at += $1 + 2;
			}
			next if $n >= 0;
			$got{$socket} = '';
			my $mode = slurp_file($mode_file);
			my $word = uc $words[0];
			my $reply =
			    $word eq 'AUTH' && $mode eq 'locked' ? "-WRONGPASS no\r\n"
			  : $word eq 'AUTH' ? "+OK\r\n"
			  : $word eq 'SCRIPT' ? "\$40\r\n" . 'a' x 40 . "\r\n"
			  : $word eq 'CLUSTER' && $mode eq 'crowd' ?
			  	"*5000\r\n" . join('', map { sprintf "*3\r\n:%d\r\n:%d\r\n*2\r\n\$%d\r\n%s\r\n:%d\r\n", $_, $_,
					length("127.1." . ($_ >> 8) . '.' . ($_ & 255)), '127.1.' . ($_ >> 8) . '.' . ($_ & 255), $port } 1 .. 5000)
			  : $word eq 'CLUSTER' ? "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n\$9\r\n127.0.0.1\r\n:$port\r\n"
			  : $mode eq 'crowd' ? answer('honest')
			  : answer($mode, \%state);

			append_to_file($auth_file, $socket->sockhost . "\n") if $word eq 'AUTH';
			$socket->blocking(1);
			syswrite($socket, $reply, 65536, $_ * 65536) // last for 0 .. length($reply) / 65536;
		}
	}
}

END { my $s = $?; kill 'KILL', $server if $server; $? = $s; }

sub mode
{
	open my $f, '>', "$mode_file.new" or die;
	print $f $_[0];
	close $f;
	rename "$mode_file.new", $mode_file;
	return;
}

mode('honest');
my $node = mlint_node('main');
my $session = $node->background_psql('postgres');

sub q1 { return $node->safe_psql('postgres', $_[0]); }

q1(<<"EOQ");
SELECT mlint.secret_put('redis', 'sesame');
SELECT mlint.rate_backend_create(m, options => jsonb_build_object('hosts', '127.0.0.1:$port', 'mode', m,
	'breaker', '{"threshold": 0}'::jsonb, 'password', '{"secret": "redis"}'::jsonb))
FROM unnest('{standalone,cluster}'::text[]) m;
SELECT mlint.rate_rule_create(left(m, 1) || left(a, 1), a, 1000, '1 s', backend => m, fail => 'closed')
FROM unnest('{standalone,cluster}'::text[]) m, unnest('{token_bucket,sliding_window,fixed_window}'::text[]) a;
SELECT mlint.rate_rule_create('leased', 'token_bucket', 1000, '1 s', 1000, backend => 'standalone', mode => 'leased',
	lease => 10, fail => 'closed');
EOQ

my $pid = $session->query_safe('SELECT pg_backend_pid()');

sub descriptors { my @f = glob "/proc/$pid/fd/*"; return scalar @f; }

sub decide
{
	my ($rule) = @_;

	return $session->query_safe("SELECT allowed, degraded FROM mlint.rate_check('$rule', 'k')");
}

# It is given 250 ms, and the next is asked anew: none is taken for away.
for my $rule (qw(st ss sf cs))
{
	wait_for("$rule: an honest answer", sub { decide($rule) eq 't|f' });
}

# A password that is refused, in memory that must not be touched afterwards.
{
	mode('locked');
	q1("SELECT mlint.secret_put('long', repeat('x', 60000))");
	q1("SELECT mlint.rate_backend_create('locked', options => jsonb_build_object('hosts', '127.0.0.1:$port',"
		  . " 'password', '{\"secret\": \"long\"}'::jsonb, 'breaker', '{\"threshold\": 0}'::jsonb))");
	q1("SELECT mlint.rate_rule_create('locked', 'token_bucket', 1000, '1 s', backend => 'locked')");
	is($session->query_safe("SELECT bool_and((mlint.rate_check('locked', n::text)).degraded) FROM generate_series(1, 50) n"),
		't', 'a long password that is refused');
	mode('honest');
	wait_for('... and taken later', sub { decide('locked') eq 't|f' });
}

for my $mode (qw(segments disorder negative huge words deep wide wider long length http mute loop nonsense slot))
{
	mode($mode);
	my $began = time;
	my @rules = $mode =~ /loop|nonsense|slot/ ? qw(ct ss) : $mode eq 'mute' ? 'st' : qw(st ss sf cs);

	is(join(' ', map { decide($_) } @rules), join(' ', map { 'f|t' } @rules), "$mode: is no answer")
	  unless $mode eq 'segments' || $mode eq 'disorder';
	is(decide('ss'), 'f|t', "$mode: is no answer") if $mode eq 'segments' || $mode eq 'disorder';
	cmp_ok(time - $began, '<', (5 + 0.5 * @rules) * $MlintTest::slower, '... which is found out in time');
}

# A lender that gives more than was asked for.
mode('generous');
is(decide('leased'), 'f|t', 'more than was asked for is no answer');
is(decide('st'), 'f|t', '... nor where nothing is borrowed');

# One who is asked alone does not send us to others.
mode('elsewhere');
unlink $auth_file;
is(decide('st'), 'f|t', 'a server that is asked alone sends us nowhere');
unlike(-e $auth_file ? slurp_file($auth_file) : '', qr/127\.0\.0\.2/, '... and no password');

# Descriptors and memory.
mode('honest');
decide('st');
decide('cs');
my $before = descriptors();
my $memory = $session->query_safe('SELECT sum(total_bytes) FROM pg_backend_memory_contexts');

mode('moved');
$session->query_safe("SELECT count(mlint.rate_check('ct', 'k')) FROM generate_series(1, 3000)");
mode('crowd');
$session->query_safe("SELECT count(mlint.rate_check('ct', n::text)) FROM generate_series(1, 3000) n");
mode('honest');
wait_for('after many moves', sub { decide('ct') eq 't|f' });
cmp_ok(descriptors() - $before, '<', 200, '... no descriptors are left');
cmp_ok($session->query_safe('SELECT sum(total_bytes) FROM pg_backend_memory_contexts') - $memory, '<', 1000000,
	'... and no memory');
is($session->query_safe('SELECT pg_backend_pid()'), $pid, 'all by one process, which lives');

# One who is interrupted while he waits, again and again.
{
	my $use = "SELECT (SELECT count(*) FROM pg_ls_dir('/proc/self/fd')), (SELECT sum(total_bytes) FROM pg_backend_memory_contexts);\n";
	my $ask = "SELECT allowed FROM mlint.rate_check('st', 'k');\n";
	my $some = "SET statement_timeout = '3 ms';\n" . $ask x ($ENV{MLINT_CANCELS} // 500) . "RESET statement_timeout;\n";
	my ($out, $err) = ('', '');

	mode('mute');
	$node->psql('postgres', $some . $use . $some . $use, stdout => \$out, stderr => \$err, on_error_stop => 0);
	my $cancelled = () = $err =~ /canceling statement due to statement timeout/g;
	my ($fds, $bytes, $fds_after, $bytes_after) = $out =~ /(\d+)/g;

	cmp_ok($cancelled, '>', 900, 'a decision is interrupted again and again');
	# Each that was left would count; a table that is looked into may be open.
	cmp_ok($fds_after, '<', $fds + 50, '... and no descriptor is left');
	cmp_ok($bytes_after, '<', $bytes + 100000, '... nor memory');
}
$session->quit;
$node->stop;
done_testing();
