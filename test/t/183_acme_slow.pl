# An authority that is slow delays its own orders, and nobody else's.

use strict;
use warnings;

use AcmeCa;
use MlintTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $gateway = PostgreSQL::Test::Cluster::get_free_port();
my $ca = AcmeCa->start(http_port => $gateway);
my $node = mlint_node('slow', conf => "mlint.gateway_listen = '127.0.0.1:$gateway'\n");

sub sql { return $node->safe_psql('postgres', $_[0]); }

$ca->account($node, 'slow', 'quick');
wait_for_sql($node, 'both accounts are registered',
	"SELECT count(*) FROM mlint.acme_accounts WHERE status = 'valid'", 2);

# More than may be under way at a time; each answer takes longer than we wait.
$ca->set('slow', latency_ms => 600_000);
sql("SELECT mlint.certificate_issue(ARRAY['slow-' || n || '.example'], 'slow') FROM generate_series(1, 100) n");
wait_for_sql($node, 'as many requests of the slow one are under way as it may have',
	"SELECT count(*) FROM mlint.acme_order WHERE state = 'ordering'", 16);

sql("SELECT mlint.certificate_issue(ARRAY['quick-' || n || '.example'], 'quick') FROM generate_series(1, 5) n");
wait_for_sql($node, 'the quick one has issued all of its own',
	"SELECT count(*) FROM mlint.certificates WHERE account = 'quick' AND state = 'ACTIVE'", 5);
is(sql("SELECT count(*) FROM mlint.certificates WHERE account = 'slow' AND attempts > 0"), '0',
	'while nothing of the slow one had ended');

$ca->clear('slow');
$node->stop;
$ca->stop;
done_testing();
