# Eight clients that ask for a minute, all for the same keys, are admitted
# exactly as many times as the law of each algorithm says, and every decision
# is counted once.
#
# Each key is emptied first, and the answer to that says when all of it will be
# there again. From then on somebody asks all the time, so nothing that becomes
# free stays free; what was admitted up to a refusal at time t follows from t
# alone.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use MlintTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 8;
my $seconds = $ENV{MLINT_RATE_SECONDS} // 60;
my $node = mlint_node('rate_exact', conf => 'autovacuum = off');

# What is admitted of a key that was emptied: twice its capacity when all is
# there again, and after (or before) that `quantum` more (or less) with each
# `unit`. One step of a sliding window is 2 % of it.
$node->safe_psql('postgres', <<'EOQ');
CREATE TABLE law (rule text PRIMARY KEY, algorithm text, rate bigint, per interval,
	burst bigint, capacity bigint, quantum bigint, unit numeric);
INSERT INTO law VALUES
	('token',   'token_bucket', 1000, '1 s', 5000, 5000, 1, 1000),
	('thirds',  'token_bucket', 7, '1 s', 35, 35, 1, 1000000 / 7::numeric),
	('leaky',   'leaky_bucket', 500, '1 s', 2500, 2500, 1, 2000),
	('fixed',   'fixed_window', 2500, '5 s', NULL, 2500, 2500, 5000000),
	('sliding', 'sliding_window', 200, '5 s', NULL, 200, 200, 5100000);
SELECT mlint.rate_rule_create(rule, algorithm, rate, per, burst) FROM law;

-- The keys; those whose answers are looked at, and those of rate_allow, which
-- of a leaky bucket tells only what may go at once.
CREATE TABLE key AS SELECT rule, identifier FROM law, unnest('{a,b,plain}'::text[]) identifier
WHERE identifier <> 'plain' OR algorithm <> 'leaky_bucket';

CREATE UNLOGGED TABLE admission (rule text, identifier text, cost bigint,
	asked_at timestamptz, answered_at timestamptz, reset_at timestamptz, delay interval);
CREATE UNLOGGED TABLE asked (rule text, checks bigint);

CREATE FUNCTION us(timestamptz) RETURNS numeric LANGUAGE sql IMMUTABLE
RETURN extract(epoch FROM $1) * 1000000;

-- What the law says was admitted up to this time.
CREATE FUNCTION law_says(law, reset_at timestamptz, at timestamptz) RETURNS numeric
LANGUAGE sql IMMUTABLE
RETURN 2 * ($1).capacity + ($1).quantum * floor((us(at) - us(reset_at)) / ($1).unit);

CREATE FUNCTION take(rule text, identifier text, cost bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
	asked_at timestamptz := clock_timestamp();
	got mlint.rate_decision;
BEGIN
	IF identifier = 'plain' AND cost = 1 THEN
		got.allowed := mlint.rate_allow(rule, identifier);
	ELSE
		got := mlint.rate_check(rule, identifier, cost);
	END IF;
	IF got.allowed THEN
		INSERT INTO admission VALUES (rule, identifier, cost, asked_at,
			clock_timestamp(), got.reset_at, got.delay);
	END IF;
	RETURN got.allowed;
END $$;

CREATE FUNCTION hammer(for_so_long interval) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	stop timestamptz := clock_timestamp() + for_so_long;
	keys key[] := array(SELECT key FROM key ORDER BY random());
	rounds bigint := 0;
	k key;
BEGIN
	WHILE clock_timestamp() < stop LOOP
		FOREACH k IN ARRAY keys LOOP
			PERFORM take(k.rule, k.identifier, 1);
		END LOOP;
		rounds := rounds + 1;
	END LOOP;
	INSERT INTO asked SELECT rule, rounds * count(*) FROM key GROUP BY rule;
END $$;

CREATE TABLE outcome (rule text, identifier text, reset_at timestamptz, law numeric);

-- Ask until the answer is no at a moment for which the law has one number,
-- by a clock that is read before and after.
CREATE FUNCTION settle(k key, l law, reset_at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	allowed boolean;
	before timestamptz;
	number numeric;
	n bigint := 0;
BEGIN
	LOOP
		before := clock_timestamp();
		allowed := take(k.rule, k.identifier, 1);
		number := law_says(l, reset_at, clock_timestamp());
		n := n + 1;
		EXIT WHEN NOT allowed AND law_says(l, reset_at, before) = number;
	END LOOP;
	INSERT INTO outcome VALUES (k.rule, k.identifier, reset_at, number);
	INSERT INTO asked VALUES (k.rule, n);
END $$;
EOQ

# Clients know the rules, and wait for one lock; it goes to all at once, when
# the keys are empty, and comes back when the last has done.
my @herd;
for (1 .. $clients)
{
	push @herd, $node->background_psql('postgres', on_error_stop => 1);
	$herd[-1]->query_safe('SELECT mlint.rate_peek(rule) FROM law');
}
my $first = $node->background_psql('postgres', on_error_stop => 1);
$first->query_safe('SELECT pg_advisory_lock(1)');
$_->query_until(qr/waiting/, <<"EOQ") for @herd;
\\echo waiting
SELECT pg_advisory_lock_shared(1);
SELECT hammer('$seconds s');
SELECT pg_advisory_unlock_shared(1);
EOQ
wait_for_sql($node, 'all clients are ready', <<"EOQ");
SELECT count(*) = $clients FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
EOQ
$first->query_safe(<<'EOQ');
BEGIN;
SELECT count(take(k.rule, k.identifier, l.capacity)) FROM key k JOIN law l USING (rule);
INSERT INTO asked SELECT rule, count(*) FROM key GROUP BY rule;
COMMIT;
SELECT pg_advisory_unlock(1), pg_advisory_lock(1);
CREATE TABLE emptied AS SELECT * FROM admission WHERE cost > 1;
SELECT count(settle(k, l, e.reset_at))
FROM key k JOIN law l USING (rule) JOIN emptied e USING (rule, identifier);
EOQ
$_->quit for @herd, $first;

# rows(QUERY): each a list of its columns.
sub rows
{
	return map { [ split /\|/, $_, -1 ] } split /\n/,
	  $node->safe_psql('postgres', $_[0]);
}

is($node->safe_psql('postgres', 'SELECT count(*) FROM asked'),
	($clients + 1) * 5 + 14, 'every client has asked to the end');

# The answer to the first question is what all else is counted from.
is($node->safe_psql('postgres', <<'EOQ'), '', 'an emptied key says when it is whole');
SELECT rule, identifier, asked_at, answered_at, reset_at FROM emptied JOIN law USING (rule)
WHERE NOT CASE algorithm
	WHEN 'fixed_window' THEN us(reset_at) % us('epoch'::timestamptz + per) = 0
		AND reset_at - per BETWEEN asked_at - per AND answered_at
	WHEN 'sliding_window' THEN us(reset_at) % (unit / 51) = 0
		AND reset_at - per BETWEEN asked_at AND answered_at + per / 50
	ELSE reset_at - per * (capacity / rate::float8) BETWEEN asked_at AND answered_at
END
EOQ

for (rows(<<'EOQ'))
SELECT o.rule, o.identifier, sum(a.cost), o.law
FROM outcome o JOIN admission a USING (rule, identifier)
GROUP BY o.rule, o.identifier, o.law ORDER BY 1, 2
EOQ
{
	my ($rule, $identifier, $admitted, $law) = @$_;

	is($admitted, $law, "$rule, $identifier: admitted what the law says");
	cmp_ok($law, '>=', 7 * $seconds, '... which is not little');
}

# No two were given the same token.
for my $rule (qw(token leaky))
{
	is($node->safe_psql('postgres', <<"EOQ"), 't', "$rule: one token after the other");
SELECT bool_and(gap = unit) FROM law JOIN (
	SELECT rule, us(reset_at) - lag(us(reset_at)) OVER (PARTITION BY identifier ORDER BY reset_at) AS gap
	FROM admission WHERE rule = '$rule' AND identifier <> 'plain') x USING (rule)
EOQ
}

# What leaves the leaky bucket: the answer's time and its delay.
is($node->safe_psql('postgres', <<'EOQ'), 't', 'leaky: delays lead to places of their own');
SELECT bool_and(reset_at - per / rate BETWEEN asked_at + delay AND answered_at + delay)
FROM admission JOIN law USING (rule) WHERE rule = 'leaky' AND cost = 1
EOQ

for (rows('SELECT rule, max(n) FROM (SELECT rule, identifier, reset_at, sum(cost) AS n FROM admission '
		  . "WHERE rule = 'fixed' AND identifier <> 'plain' GROUP BY 1, 2, 3) x GROUP BY 1"))
{
	is($_->[1], 2500, 'fixed: no window has more than its rate');
}

# By the clients' clocks alone: admissions that must have been within one
# window of that length.
is($node->safe_psql('postgres', <<'EOQ'), 't', 'sliding: nor has any window, wherever it begins');
WITH a AS MATERIALIZED (SELECT * FROM admission WHERE rule = 'sliding')
SELECT max(within) <= 200 FROM (
	SELECT (SELECT sum(cost) FROM a b WHERE b.identifier = a.identifier
			AND b.asked_at >= a.asked_at AND b.answered_at < a.asked_at + '5 s') AS within
	FROM a) x
EOQ

is($node->safe_psql('postgres', <<'EOQ'), '', 'every decision is counted, once');
SELECT rule, s.checks, asked.n, s.allowed, admitted.n
FROM mlint.stat_rate_limits s
JOIN (SELECT rule, sum(checks) AS n FROM asked GROUP BY rule) asked USING (rule)
JOIN (SELECT rule, count(*) AS n FROM admission GROUP BY rule) admitted USING (rule)
WHERE s.checks <> asked.n OR s.allowed <> admitted.n
EOQ

$node->stop;
done_testing();
