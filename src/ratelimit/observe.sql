-- ratelimit, observed: whether there is room for all, and the backends.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('ratelimit', 'rate_limits', true, $$
	SELECT 1, format('the table of rate limits is nearly full (%s of %s), and %s decisions were on shared keys',
			t.identifiers, current_setting('mlint.rate_max_keys'), t.crowded),
		'Raise mlint.rate_max_keys, and restart the server; mlint.stat_rate_limits tells which limits remember most.'
	FROM (SELECT sum(identifiers) AS identifiers, sum(crowded) AS crowded
		FROM mlint.rate_totals()) t
	WHERE t.crowded > 0
		AND t.identifiers > 0.9 * current_setting('mlint.rate_max_keys')::bigint
	UNION ALL
	SELECT o.* FROM mlint.job_off('rate_lease_return') o
	WHERE NOT pg_is_in_recovery()
		AND EXISTS (SELECT FROM mlint.rate_rule WHERE mode = 'leased' AND backend IS NOT NULL)$$),

('ratelimit', 'rate_backends', true, $$
	SELECT CASE WHEN EXISTS (SELECT FROM mlint.rate_rule r
			WHERE r.backend = b.name AND r.fail = 'closed') THEN 2 ELSE 1 END,
		format('rate backend "%s" is away, its breaker is %s: %s', b.name, s.breaker, s.last_error),
		'Each limit does what its fail says meanwhile. mlint.rate_backend_test() tries it at once.'
	FROM mlint.rate_backend b, mlint.rate_backend_state(b.id) s
	WHERE s.breaker <> 'closed'$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('ratelimit', 'rate_limits', true, '{rule}', $$
	SELECT r.name AS rule, coalesce(t.allowed, 0) AS allowed, coalesce(t.refused, 0) AS refused,
		coalesce(t.crowded, 0) AS crowded, coalesce(t.waited, 0) AS waited,
		coalesce(t.identifiers, 0) AS identifiers, coalesce(t.evictions, 0) AS evictions,
		date_part('epoch', t.wait_p50) AS wait_p50, date_part('epoch', t.wait_p99) AS wait_p99
	FROM mlint.rate_rule r LEFT JOIN mlint.rate_totals() t ON t.rule_id = r.id
	ORDER BY r.name$$),
('ratelimit', 'rate_backends', true, '{backend}', $$
	SELECT b.name AS backend, s.breaker <> 'closed' AS breaker_open, s.failures,
		date_part('epoch', s.last_success_at) AS success_at
	FROM mlint.rate_backend b, mlint.rate_backend_state(b.id) s ORDER BY b.name$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('rate_limits', 'allowed', 'mlint_rate_limit_allowed_total', 'counter', 'Decisions that let pass'),
('rate_limits', 'refused', 'mlint_rate_limit_refused_total', 'counter', 'Decisions that refused'),
('rate_limits', 'crowded', 'mlint_rate_limit_crowded_total', 'counter', 'Decisions on an identifier that had to share a key with others'),
('rate_limits', 'waited', 'mlint_rate_limit_waited_total', 'counter', 'Calls of rate_acquire that waited'),
('rate_limits', 'identifiers', 'mlint_rate_limit_identifiers', 'gauge', 'Identifiers that are remembered now'),
('rate_limits', 'evictions', 'mlint_rate_limit_evictions_total', 'counter', 'Idle identifiers that were forgotten to make room'),
('rate_limits', 'wait_p50', 'mlint_rate_limit_wait_median_seconds', 'gauge', 'Half of those who waited did so no longer than that'),
('rate_limits', 'wait_p99', 'mlint_rate_limit_wait_long_seconds', 'gauge', '99 in a hundred of those who waited did so no longer than that'),
('rate_backends', 'breaker_open', 'mlint_rate_backend_breaker_open', 'gauge', 'Whether the circuit breaker is open, or half-open'),
('rate_backends', 'failures', 'mlint_rate_backend_failures_total', 'counter', 'Calls that failed'),
('rate_backends', 'success_at', 'mlint_rate_backend_last_success_timestamp_seconds', 'gauge', 'When a call last succeeded');

