# Transactions larger than a dispatcher's batch, which commit while others are
# being read: each event arrives, and without a crash none arrives twice.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $receiver = MlintTest::Receiver->start;
my $node = mlint_node('main', conf => "log_statement = none\n");
my $url = $receiver->url('/ok');

$node->safe_psql('postgres', <<"EOQ");
SELECT mlint.destination_create('ok', 'http', '{"url": "$url"}', '{large.*}');
EOQ

my $publish = "SELECT count(mlint.publish('large.one', '{}')) FROM generate_series(1, 3000)";

# Four that began in this order, and commit in another.
my @sessions = map { $node->background_psql('postgres') } 0 .. 3;
$_->query_safe("BEGIN; $publish") for @sessions;

# The second commits, and is read in part: the receiver answers nobody.
$receiver->freeze;
$sessions[1]->query_safe('COMMIT');
wait_for_sql($node, 'a large transaction is being read',
	"SELECT events BETWEEN 500 AND 2999 FROM mlint.stat_workers WHERE kind = 'dispatcher'");
wait_for_sql($node, '... and delivered',
	'SELECT count(*) > 0 FROM mlint.in_flight()');

# Then older ones, and a younger one.
$sessions[$_]->query_safe('COMMIT') for 3, 0;
$node->safe_psql('postgres', $publish);
$receiver->thaw;
$sessions[2]->query_safe("SAVEPOINT s; $publish; ROLLBACK TO s; COMMIT");
$_->quit for @sessions;

wait_for_sql($node, 'all of it is delivered',
	"SELECT count(*) = 15000 AND bool_and(state = 'delivered') FROM mlint.deliveries");
my $times = $receiver->arrivals('/ok');
is(scalar keys %$times, 15_000, 'every event arrived');
is(scalar(grep { $_ > 1 } values %$times), 0, 'none arrived twice');

$node->stop;
done_testing();
