-- delivery, observed: how far the log is read, and what waits for whom.

-- The oldest event that a lane has not read; null if it has read all. What the
-- cursor's snapshot does not see is above its xmax, or was under way then; of
-- one transaction a part may have been read. Each is one look at an index.
CREATE FUNCTION mlint.log_unread_since(c mlint.log_cursor) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT min(u.published_at) FROM (
		(SELECT e.published_at FROM mlint.event e
			WHERE e.xid >= pg_snapshot_xmax(c.snapshot) AND e.xid < c.partial_xid
			ORDER BY e.xid, e.id LIMIT 1)
		UNION ALL
		(SELECT e.published_at FROM mlint.event e
			WHERE e.xid >= pg_snapshot_xmax(c.snapshot) AND e.xid > c.partial_xid
			ORDER BY e.xid, e.id LIMIT 1)
		UNION ALL
		(SELECT e.published_at FROM mlint.event e
			WHERE e.xid = c.partial_xid AND e.id > c.partial_id
				AND NOT pg_visible_in_snapshot(c.partial_xid, c.snapshot)
			ORDER BY e.id LIMIT 1)
		UNION ALL
		SELECT o.published_at FROM pg_snapshot_xip(c.snapshot) x,
			LATERAL (SELECT e.published_at FROM mlint.event e WHERE e.xid = x
				ORDER BY e.id LIMIT 1) o
		WHERE x <> c.partial_xid) u
$$;
COMMENT ON FUNCTION mlint.log_unread_since(mlint.log_cursor) IS 'When the oldest event was published that a dispatcher lane has not read yet';

-- What waits for a destination that could have been delivered by now; of more
-- than "up_to" those that are due first.
CREATE FUNCTION mlint.destination_waiting(destination_id int, up_to int,
	OUT waiting bigint, OUT since timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT w.n, greatest(e.published_at, e.deliver_at)
	FROM (SELECT count(*) AS n, min(p.event_id) AS oldest
		FROM (SELECT p.event_id, p.attempts, p.next_attempt_at
			FROM mlint.pending p
			WHERE p.destination_id = destination_waiting.destination_id
			ORDER BY p.next_attempt_at, p.event_id LIMIT up_to) p
		WHERE p.attempts > 0 OR p.next_attempt_at <= clock_timestamp()) w
	LEFT JOIN mlint.event e ON e.id = w.oldest
$$;
COMMENT ON FUNCTION mlint.destination_waiting(int, int) IS 'Deliveries of a destination that wait and are not scheduled for later, and since when the oldest does';
REVOKE ALL ON FUNCTION mlint.log_unread_since(mlint.log_cursor),
	mlint.destination_waiting(int, int) FROM PUBLIC;

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('delivery', 'event_log', true, $$
	SELECT CASE WHEN u.since < clock_timestamp() - '10 minutes'::interval THEN 2 ELSE 1 END,
		format('lane %s has not read the log since %s', c.lane, to_char(u.since, 'YYYY-MM-DD HH24:MI:SS')),
		'Is there a dispatcher for it in mlint.stat_workers? What it waits for is in pg_stat_activity, and its errors are in the server''s log.'
	FROM mlint.log_cursor c, mlint.log_unread_since(c) u (since)
	WHERE u.since < clock_timestamp() - '1 minute'::interval$$),

('delivery', 'segments', true, $$
	SELECT CASE WHEN s.closed_at < clock_timestamp() - 3 * r.retention THEN 2 ELSE 1 END,
		format('segment %s of the event log is kept beyond mlint.event_retention: %s', s.segment,
			CASE WHEN p.segment <= s.segment
				THEN format('deliveries to destination "%s" are pending since then', p.name)
				ELSE 'it is not read, or is locked by whoever reads it in a long transaction' END),
		CASE WHEN p.segment <= s.segment THEN 'Enable the destination, or drop it.'
			ELSE 'End old transactions (pg_stat_activity.xact_start, pg_prepared_xacts).' END
	FROM (SELECT current_setting('mlint.event_retention')::interval AS retention) r
	JOIN mlint.segment s ON s.closed_at < clock_timestamp() - r.retention
		- greatest('1 hour'::interval, r.retention / 7)
	LEFT JOIN LATERAL (SELECT p.segment, d.name FROM mlint.pending p
		LEFT JOIN mlint.destination d ON d.id = p.destination_id
		ORDER BY p.event_id LIMIT 1) p ON true
	UNION ALL
	SELECT o.* FROM mlint.job_off('event_retention') o$$),

('delivery', 'destinations', true, $$
	WITH d AS (
		SELECT d.*, coalesce(s.breaker, 'closed') AS breaker, s.last_error, w.waiting, w.since,
			clock_timestamp() AS now
		FROM mlint.destination d
		LEFT JOIN mlint.destination_stats() s ON s.destination_id = d.id
		CROSS JOIN LATERAL mlint.destination_waiting(d.id, 10000) w
		WHERE d.dropped_at IS NULL
	)
	SELECT 2, format('destination "%s" was disabled: %s', name, disabled_reason),
		'mlint.destination_alter(..., enabled => true) delivers what waits, mlint.destination_drop() gives it up.'
	FROM d WHERE NOT enabled AND disabled_reason IS NOT NULL
	UNION ALL
	SELECT 1, format('destination "%s" is disabled, and has deliveries waiting since %s', name,
			to_char(since, 'YYYY-MM-DD HH24:MI')),
		'Enable it, or drop it: the log is kept as long as they wait.'
	FROM d WHERE NOT enabled AND disabled_reason IS NULL AND since < now - '1 day'::interval
	UNION ALL
	SELECT CASE WHEN since < now - '1 hour'::interval THEN 2 ELSE 1 END,
		format('destination "%s" fails, its breaker is %s: %s', name, breaker, last_error),
		'Put right what the error names; one delivery is tried from time to time, at once after mlint.breaker_reset().'
	FROM d WHERE enabled AND breaker <> 'closed'
	UNION ALL
	SELECT CASE WHEN since < now - '1 hour'::interval THEN 2 ELSE 1 END,
		format('destination "%s" has deliveries waiting (%s), the oldest since %s%s', name,
			CASE WHEN waiting >= 10000 THEN '10000 or more' ELSE waiting::text END,
			to_char(since, 'YYYY-MM-DD HH24:MI'), ': ' || last_error),
		'mlint.deliveries tells why each waits, and when it is tried again.'
	FROM d WHERE enabled AND breaker = 'closed' AND since < now - '5 minutes'::interval
	UNION ALL
	SELECT 2, format('destination "%s": there is no function %s(jsonb)', name, f.fn),
		'Create the function, or name another with mlint.destination_alter().'
	FROM d, LATERAL (VALUES (d.options ->> 'transform'),
		(CASE WHEN d.driver = 'function' THEN d.options ->> 'fn' END)) f (fn)
	WHERE f.fn IS NOT NULL AND to_regprocedure(f.fn || '(jsonb)') IS NULL$$),

('delivery', 'dead_letters', true, $$
	SELECT 1, format('deliveries to destination "%s" were given up in the last 24 hours (%s), the last: %s',
			d.name, CASE WHEN x.n >= 1000 THEN '1000 or more' ELSE x.n::text END,
			coalesce(x.error, 'no reason is known')),
		'See mlint.dead_letters; when the cause is gone, mlint.dead_letter_replay() delivers them.'
	FROM mlint.destination d
	CROSS JOIN LATERAL (SELECT count(*) AS n, (array_agg(l.error))[1] AS error
		FROM (SELECT l.error FROM mlint.delivery l
			WHERE l.state = 'x' AND l.destination_id = d.id
				AND l.finished_at > clock_timestamp() - '24 hours'::interval
			ORDER BY l.finished_at DESC LIMIT 1000) l) x
	WHERE d.dropped_at IS NULL AND x.n > 0$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('delivery', 'event_log', true, '{lane}', $$
	SELECT c.lane, coalesce(greatest(0, date_part('epoch', clock_timestamp()
		- mlint.log_unread_since(c))), 0) AS unread
	FROM mlint.log_cursor c ORDER BY c.lane$$),
('delivery', 'segments', true, '{}', $$
	SELECT (SELECT count(*) FROM mlint.segment) AS segments,
		(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM mlint.event_id) AS published$$),
('delivery', 'destinations', true, '{destination}', $$
	SELECT d.name AS destination, coalesce(s.delivered, 0) AS delivered,
		coalesce(s.failed, 0) AS failed, coalesce(s.retried, 0) AS retried,
		coalesce(s.dead, 0) AS dead, coalesce(s.bytes, 0) AS bytes, d.enabled,
		coalesce(s.breaker <> 'closed', false) AS breaker_open, w.waiting,
		coalesce(greatest(0, date_part('epoch', clock_timestamp() - w.since)), 0) AS age,
		CASE WHEN s.latency_octaves IS NOT NULL THEN jsonb_build_object(
			'sum', s.latency_seconds,
			'count', s.latency_octaves[cardinality(s.latency_octaves)],
			'buckets', (SELECT jsonb_agg(jsonb_build_array(2 ^ (9 + o.n) / 1000000.0, o.count) ORDER BY o.n)
				FROM unnest(trim_array(s.latency_octaves, 1)) WITH ORDINALITY o (count, n)))
			END AS latency
	FROM mlint.destination d
	LEFT JOIN mlint.destination_stats() s ON s.destination_id = d.id
	CROSS JOIN LATERAL mlint.destination_waiting(d.id, 10000) w
	WHERE d.dropped_at IS NULL ORDER BY d.name$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('event_log', 'unread', 'mlint_event_log_unread_seconds', 'gauge', 'Age of the oldest event that a lane has not read; 0: it has read all'),
('segments', 'segments', 'mlint_event_log_segments', 'gauge', 'Segments of the event log'),
('segments', 'published', 'mlint_events_published_total', 'counter', 'Events that were published, those that were rolled back too'),
('destinations', 'delivered', 'mlint_destination_delivered_total', 'counter', 'Deliveries that succeeded'),
('destinations', 'failed', 'mlint_destination_failed_total', 'counter', 'Attempts that failed'),
('destinations', 'retried', 'mlint_destination_retried_total', 'counter', 'Failed attempts that were or will be tried again'),
('destinations', 'dead', 'mlint_destination_dead_total', 'counter', 'Deliveries given up'),
('destinations', 'bytes', 'mlint_destination_sent_bytes_total', 'counter', 'Bytes of bodies sent'),
('destinations', 'latency', 'mlint_destination_attempt_duration_seconds', 'histogram', 'How long attempts took'),
('destinations', 'enabled', 'mlint_destination_enabled', 'gauge', 'Whether deliveries are made'),
('destinations', 'breaker_open', 'mlint_destination_breaker_open', 'gauge', 'Whether the circuit breaker is open, or half-open'),
('destinations', 'waiting', 'mlint_destination_waiting', 'gauge', 'Deliveries that wait and are not scheduled for later; counted up to 10000'),
('destinations', 'age', 'mlint_destination_oldest_waiting_seconds', 'gauge', 'For how long the oldest of these has waited');

