# Logical replication beside mlint: a publication of all tables stops nothing of
# ours, what a subscriber applies may publish events, and our own tables are not
# for it.
use strict;
use warnings;

use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($receiver, $other) = map { MlintTest::Receiver->start } 1 .. 2;
my $publisher = mlint_node('publisher', allows_streaming => 'logical');
my $subscriber = mlint_node('subscriber');
sub sql { my ($node, $sql) = @_; return $node->safe_psql('postgres', $sql); }

# ---- a publication of all tables, ours too ----

sql($publisher, 'CREATE PUBLICATION everything FOR ALL TABLES');
# What has no replica identity cannot be updated or deleted from any more. The
# log of usage is only appended to and truncated.
is(sql($publisher, <<'EOQ'), "usage_log_1\nusage_log_2", 'every table of ours has a replica identity');
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'mlint'::regnamespace AND c.relkind = 'r' AND c.relreplident <> 'f'
	AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
ORDER BY 1
EOQ
create_destination($publisher, 'out', 'http', { url => $receiver->url('/ok') }, 'order.*');
deliver($publisher, 'order.made', { n => 1 });
is($receiver->count('/ok'), 1, 'events are delivered');
sql($publisher, <<'EOQ');
SELECT mlint.rate_rule_create('rule', 'token_bucket', 10, '1 s');
SELECT mlint.rate_override_set('rule', 'x', 'deny');
SELECT mlint.rate_override_set('rule', 'x', 'allow');
SELECT mlint.rate_override_drop('rule', 'x');
SELECT mlint.session_register('session', 'model');
SELECT mlint.usage_track('session', 1, 1);
EOQ
for my $job ('event_retention', 'usage_fold')
{
	my $before = sql($publisher, "SELECT coalesce(max(id), 0) FROM mlint.job_runs WHERE name = '$job'");
	sql($publisher, "SELECT mlint.job_run_now('$job')");
	wait_for_sql($publisher, "job $job runs",
		"SELECT count(*) > 0 FROM mlint.job_runs WHERE name = '$job' AND id > $before AND error IS NULL");
}
sql($publisher, 'DROP PUBLICATION everything');

# ---- a subscriber that has mlint, too ----

sql($_, 'CREATE TABLE orders (id int PRIMARY KEY)') for $publisher, $subscriber;
create_destination($subscriber, 'out', 'http', { url => $other->url('/ok') }, 'order.*');
sql($subscriber, <<'EOQ');
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM mlint.publish('order.came', to_jsonb(new));
	RETURN NULL;
END $$;
CREATE TRIGGER ordinary AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TRIGGER always AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION tell();
ALTER TABLE orders ENABLE ALWAYS TRIGGER always;
EOQ
sql($publisher, 'CREATE PUBLICATION orders FOR TABLE orders');
sql($subscriber, 'CREATE SUBSCRIPTION orders CONNECTION ' . literal($publisher->connstr('postgres')) . ' PUBLICATION orders');
$subscriber->wait_for_subscription_sync($publisher, 'orders');
sql($publisher, 'INSERT INTO orders SELECT generate_series(1, 5)');
$publisher->wait_for_catchup('orders');
wait_for_sql($subscriber, 'what its triggers publish is delivered', q{SELECT count(*) = 5 FROM mlint.deliveries WHERE state = 'delivered'});
is($other->count('/ok'), 5, '... by those that are ENABLE ALWAYS or REPLICA, as everywhere');
is(sql($publisher, 'SELECT count(*) FROM mlint.events'), '1', 'the publisher knows nothing of it');

done_testing();
