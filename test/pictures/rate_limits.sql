-- What each algorithm admits of two loads, by the clock that an injection build
-- lets tests set: one line a request, "load algorithm time admitted delay",
-- times in microseconds from the beginning of a window.
CREATE FUNCTION pg_temp.clock_set(bigint) RETURNS void
LANGUAGE c AS '$libdir/mlint', 'mlint_rate_test_clock';

CREATE TEMP TABLE request (load text, at bigint);
-- 30 a second, three times what is let through, from 0.7 s on.
INSERT INTO request
SELECT 'steady', 700000 + n * 1000000 / 30 FROM generate_series(0, 131) n;
-- 20 within 0.4 s, around the end of a window; then as many at other places.
INSERT INTO request
SELECT 'bursts', first + n * 20000
FROM unnest('{800000, 2500000, 3300000}'::bigint[]) first, generate_series(0, 19) n;

CREATE TEMP TABLE answer (load text, algorithm text, at bigint,
	allowed boolean, delay bigint);

DO $$
DECLARE
	began bigint := extract(epoch FROM timestamptz '2026-01-01 00:00 UTC') * 1000000;
	asked record;
	got mlint.rate_decision;
BEGIN
	FOR asked IN SELECT load, at, algorithm FROM request, unnest('{token_bucket,
		leaky_bucket, fixed_window, sliding_window}'::text[]) algorithm
		ORDER BY load, algorithm, at
	LOOP
		IF NOT EXISTS (SELECT FROM mlint.rate_rules WHERE name = asked.algorithm) THEN
			PERFORM mlint.rate_rule_create(asked.algorithm, asked.algorithm, 10, '1 s',
				burst => CASE WHEN asked.algorithm LIKE '%bucket' THEN 10 END);
		END IF;
		PERFORM pg_temp.clock_set(began + asked.at);
		got := mlint.rate_check(asked.algorithm, asked.load);
		INSERT INTO answer VALUES (asked.load, asked.algorithm, asked.at,
			got.allowed, coalesce(extract(epoch FROM got.delay) * 1000000, 0));
	END LOOP;
END $$;

SELECT load, algorithm, at, allowed::int, delay FROM answer
ORDER BY load, algorithm, at;
