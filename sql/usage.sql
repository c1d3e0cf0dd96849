-- Usage: reports, prices, budgets, the fold, views, bad input.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE ROLE regress_usage_admin IN ROLE mlint_admin;
CREATE ROLE regress_usage_user IN ROLE mlint_user;
CREATE ROLE regress_usage_reader IN ROLE mlint_reader;
CREATE ROLE regress_usage_nobody;

-- what does not change from run to run
CREATE FUNCTION regress_stats(s mlint.usage_stats) RETURNS text LANGUAGE sql AS $$
	SELECT format('%s prompts, %s responses, %s + %s = %s tokens, %s ms, %s, custom %s, cost %s',
		s.total_prompts, s.total_responses, s.total_prompt_tokens, s.total_completion_tokens,
		s.total_tokens, coalesce(s.average_latency_ms::text, 'no'),
		CASE WHEN s.first_at <= s.last_at AND s.last_at <= clock_timestamp() THEN 'in order'
			ELSE 'never' END, s.custom, coalesce(s.cost::text, 'none'))
$$;

SET ROLE regress_usage_user;
SELECT session_id FROM mlint.session_register('usage-1', 'gpt-4', '0613', ARRAY['team-a', 'eu', 'eu']);
SELECT session_id FROM mlint.session_register('usage-2', 'gpt-4', tags => ARRAY['team-b']);
SELECT session_id FROM mlint.session_register('usage-3', 'claude', tags => '{}');

-- prices: two currencies, a version of its own, a future price
SET ROLE regress_usage_admin;
SELECT mlint.model_price_set('gpt-4', 30, 60);
SELECT mlint.model_price_set('gpt-4', 0.027, 0.054, 'EUR', 1000);
SELECT mlint.model_price_set('gpt-4', 10, 20, model_version => '0613');
SELECT mlint.model_price_set('gpt-4', 1, 2, valid_from => now() + interval '1 year');
SELECT model_id, model_version, currency, prompt, completion, per, valid_from > now() AS future, current, set_by
	FROM mlint.model_prices ORDER BY model_id, model_version, currency, valid_from;

-- reports, before they are folded
SET ROLE regress_usage_user;
SELECT regress_stats(mlint.session_usage('usage-1'));
SELECT mlint.usage_track('usage-1', 100, 200, latency_ms => 1500);
SELECT mlint.usage_track('usage-1', 50, 0, custom => '{"cached": 3.5, "images": 1}');
SELECT mlint.usage_track('usage-1', 7, 0, latency_ms => 0.5, custom => '{"cached": 0.25}');
SELECT mlint.usage_track('usage-2', 1, 1);
SELECT mlint.usage_track('usage-2', 0, 0);
SELECT mlint.usage_track('usage-3', 10, 20, 'gpt-4', NULL, NULL);
SELECT mlint.usage_track('usage-3', 2147483647, 2147483647);
CREATE VIEW pg_temp.told AS
	SELECT s AS of, regress_stats(mlint.session_usage(s)) FROM unnest('{usage-1,usage-2,usage-3}'::text[]) s
	UNION ALL SELECT m, regress_stats(mlint.model_usage(m)) FROM unnest('{gpt-4,claude,none}'::text[]) m
	UNION ALL SELECT m || ' this hour', regress_stats(mlint.model_usage(m, now() - interval '1 hour', now()))
		FROM unnest('{gpt-4,claude}'::text[]) m;
TABLE pg_temp.told;
-- first_at is that of the first report, whatever metrics or prices came later
BEGIN;
SELECT session_id FROM mlint.session_register('usage-4', 'gpt-4', '0613', '{later}');
SELECT mlint.usage_track('usage-4', 1, 1, 'free');
SELECT mlint.usage_track('usage-4', 1, 1, custom => '{"later": 1}');
SELECT first_at < last_at AS in_order FROM mlint.session_usage('usage-4');
RESET ROLE;
SELECT 'tag' AS of, first_at < last_at AS in_order FROM mlint.usage_by_tag WHERE tag = 'later'
	UNION ALL SELECT 'session', first_at < last_at FROM mlint.stat_sessions WHERE session_id = 'usage-4';
ROLLBACK;
RESET ROLE;
SELECT tag, total_prompts, total_tokens, custom, cost FROM mlint.usage_by_tag ORDER BY 1;
SELECT model_id, total_prompts, total_responses, total_tokens, cost FROM mlint.usage_by_day WHERE model_id IN ('gpt-4', 'claude') ORDER BY 1;
CREATE TEMP TABLE before_fold AS
	SELECT 'day' AS view, to_jsonb(d) AS row FROM mlint.usage_by_day d
	UNION ALL SELECT 'tag', to_jsonb(t) FROM mlint.usage_by_tag t
	UNION ALL SELECT 'models', to_jsonb(m) FROM mlint.stat_models m
	UNION ALL SELECT 'sessions', to_jsonb(s) FROM mlint.stat_sessions s
	UNION ALL SELECT 'session', to_jsonb(mlint.session_usage(s)) FROM unnest('{usage-1,usage-2,usage-3}'::text[]) s;

-- and after: the same
CALL mlint.usage_fold_run();
SELECT count(*) FROM mlint.usage_rest(NULL, NULL);
SELECT count(*) > 0 AS totals FROM mlint.usage_total;
CREATE TEMP TABLE after_fold AS
	SELECT 'day' AS view, to_jsonb(d) AS row FROM mlint.usage_by_day d
	UNION ALL SELECT 'tag', to_jsonb(t) FROM mlint.usage_by_tag t
	UNION ALL SELECT 'models', to_jsonb(m) FROM mlint.stat_models m
	UNION ALL SELECT 'sessions', to_jsonb(s) FROM mlint.stat_sessions s
	UNION ALL SELECT 'session', to_jsonb(mlint.session_usage(s)) FROM unnest('{usage-1,usage-2,usage-3}'::text[]) s;
SELECT view, count(*) > 0 FROM before_fold GROUP BY view ORDER BY view;
(TABLE before_fold EXCEPT TABLE after_fold) UNION ALL (TABLE after_fold EXCEPT TABLE before_fold);
SET ROLE regress_usage_user;
TABLE pg_temp.told;
-- half folded
SELECT mlint.usage_track('usage-1', 1000, 0, latency_ms => 2.5, custom => '{"cached": -1}');
TABLE pg_temp.told;

-- a part of the caller's transaction
BEGIN;
SELECT mlint.usage_track('usage-2', 500, 0);
SELECT total_prompt_tokens FROM mlint.session_usage('usage-2');
SAVEPOINT s;
SELECT mlint.usage_track('usage-2', 5000, 0);
SELECT total_prompt_tokens FROM mlint.session_usage('usage-2');
ROLLBACK TO s;
SELECT total_prompt_tokens FROM mlint.session_usage('usage-2');
ROLLBACK;
SELECT total_prompt_tokens FROM mlint.session_usage('usage-2');

-- a price holds from when it is set on, whatever its valid_from; the later
-- valid_from counts
SET ROLE regress_usage_admin;
SELECT mlint.model_price_set('claude', 1000000, 0, valid_from => '2020-01-01');
SELECT cost FROM mlint.session_usage('usage-3');
SELECT mlint.usage_track('usage-3', 1, 0);
SELECT cost FROM mlint.session_usage('usage-3');
SELECT mlint.model_price_set('claude', 5000000, 0, valid_from => '2019-01-01');
SELECT mlint.usage_track('usage-3', 1, 0);
SELECT cost FROM mlint.session_usage('usage-3');
SELECT mlint.model_price_set('claude', 3, 0.0000000001, per => 1, valid_from => '2021-01-01');
SELECT mlint.usage_track('usage-3', 1, 1);
SELECT cost FROM mlint.session_usage('usage-3');
RESET ROLE;
CALL mlint.usage_fold_run();
SELECT cost FROM mlint.session_usage('usage-3');

-- time: whole hours, whole days
CREATE FUNCTION regress_span("from" timestamptz, "to" timestamptz) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(format('%s [%s, %s)', step, begins AT TIME ZONE 'UTC', ends AT TIME ZONE 'UTC'), '; ' ORDER BY begins)
	FROM mlint.usage_span("from", "to")
$$;
SELECT regress_span('-infinity', 'infinity');
SELECT regress_span('2026-01-01 00:00+00', '2026-01-03 00:00+00');
SELECT regress_span('2026-01-01 22:00+00', '2026-01-04 03:00+00');
SELECT regress_span('2026-01-01 05:00+00', '2026-01-01 07:00+00');
SELECT regress_span('2026-01-01 22:00+00', '2026-01-02 03:00+00');
SELECT regress_span('-infinity', '2026-01-02 03:00+00');
SELECT regress_span('2026-01-01 22:00+00', 'infinity');
SELECT regress_span('2026-01-01 22:00+00', '2026-01-01 22:00+00');
-- the same, however it is cut: totals at every hour of a month
INSERT INTO mlint.usage_total (scope, name, step, period, kind, key, prompts, responses, prompt_tokens, completion_tokens, latencies, first_at, last_at)
	SELECT 'm', 'clock', s, date_trunc(u, h, 'UTC'), 'u', '', count(*), 0, sum(n), 0, 0, min(h), max(h)
	FROM (SELECT n, timestamptz '2026-01-01 00:00+00' + n * interval '1 hour' AS h FROM generate_series(0, 743) n) x,
		(VALUES ('h'::"char", 'hour'), ('d', 'day')) v(s, u)
	GROUP BY s, date_trunc(u, h, 'UTC');
SELECT count(*) AS checked, count(*) FILTER (WHERE (mlint.model_usage('clock', a, b)).total_prompt_tokens
	IS DISTINCT FROM (SELECT coalesce(sum(n), 0) FROM generate_series(x, y - 1) n)) AS wrong
	FROM (SELECT x, y, timestamptz '2026-01-01 00:00+00' + x * interval '1 hour' AS a,
			timestamptz '2026-01-01 00:00+00' + y * interval '1 hour' AS b
		FROM generate_series(0, 743, 31) x, generate_series(0, 744, 29) y WHERE x <= y) c;
SELECT total_prompts FROM mlint.model_usage('clock', '2026-01-01 05:59+00', '2026-01-01 06:01+00');
SELECT total_prompts FROM mlint.model_usage('clock', '2026-01-01 05:59+00');
SELECT total_prompts FROM mlint.model_usage('clock', "to" => '2026-01-01 06:01+00');
DELETE FROM mlint.usage_total WHERE name = 'clock';

-- budgets
SET ROLE regress_usage_admin;
SELECT mlint.usage_budget_check('usage-2');
SELECT mlint.usage_budget_decision('usage-2') IS NULL AS none;
SELECT mlint.usage_budget_set('tag:team-b', tokens => 1000, action => 'refuse');
SELECT mlint.usage_budget_set('model:claude', money => 100, action => 'refuse');
SELECT mlint.usage_budget_set('session:usage-2', tokens => 100000, money => 7.5, currency => 'EUR');
SELECT mlint.usage_budget_set('all', tokens => 1000000000000, per => 'ever');
SELECT scope, per, action, tokens, money, currency, tokens_spent, money_spent, tokens_left, money_left, percent, exceeded,
	period_start <= now() AS begun, period_end > period_start + interval '27 days' AS month, set_by FROM mlint.usage_budgets
	WHERE scope LIKE 'tag:%';
SELECT scope, per, money, currency, tokens_spent > 0 AS spent, exceeded, period_start, period_end FROM mlint.usage_budgets WHERE per = 'ever' ORDER BY scope;
SELECT scope, per, money, money_spent, money_left, percent, extract(day FROM period_start AT TIME ZONE 'UTC') AS day
	FROM mlint.usage_budgets WHERE scope = 'model:claude';
SET ROLE regress_usage_user;
SELECT mlint.usage_budget_check('usage-2');
SELECT allowed, remaining, capacity, retry_after, reset_at > now() AS reset, reason, rule FROM mlint.usage_budget_decision('usage-2');
-- exact at once, within the transaction that spends, and given back with it
BEGIN;
SELECT mlint.usage_track('usage-2', 998, 0);
SELECT allowed, remaining, capacity, retry_after > '0' AS retry, reset_at > now() AS reset, reason, rule FROM mlint.usage_budget_decision('usage-2');
SAVEPOINT s;
\set VERBOSITY terse
SELECT mlint.usage_budget_check('usage-2');
ROLLBACK TO s;
SELECT mlint.prompt_add('usage-2', 'more?');
ROLLBACK TO s;
\set VERBOSITY default
SELECT mlint.usage_budget_check('usage-1');
DO $$
DECLARE
	detail text;
BEGIN
	PERFORM mlint.usage_budget_check('usage-2');
EXCEPTION WHEN SQLSTATE 'ML013' THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RAISE NOTICE '%', regexp_replace(detail, '(after|at) [^,]*[0-9]', '\1 ...', 'g');
END
$$;
ROLLBACK;
SELECT mlint.usage_budget_check('usage-2');
-- what was spent is recorded all the same
SELECT mlint.usage_track('usage-2', 998, 0);
SELECT mlint.usage_track('usage-2', 1000, 0);
SELECT mlint.rate_headers(mlint.usage_budget_decision('usage-2')) ?& '{Retry-After,RateLimit-Limit,RateLimit-Remaining,RateLimit-Reset}' AS headers;
-- announced once
RESET ROLE;
CREATE TEMP VIEW announced AS SELECT type, data->>'scope' AS scope, data->>'per' AS per, data->>'tokens_spent' AS tokens, data->>'percent' AS percent
	FROM mlint.event WHERE type LIKE 'usage.%' ORDER BY id;
CALL mlint.usage_fold_run();
TABLE announced;
SELECT mlint.usage_track('usage-2', 1, 0);
CALL mlint.usage_fold_run();
SELECT count(*) FROM announced;
-- a warning, and then that it is exceeded
SELECT mlint.usage_budget_set('session:usage-1', tokens => 2000);
SELECT mlint.usage_track('usage-1', 300, 0);
CALL mlint.usage_fold_run();
SELECT mlint.usage_track('usage-1', 300, 0);
CALL mlint.usage_fold_run();
SELECT mlint.usage_track('usage-1', 300, 0);
CALL mlint.usage_fold_run();
SELECT * FROM announced WHERE scope = 'session:usage-1';
-- one that never begins anew
SELECT mlint.usage_budget_set('session:usage-1', tokens => 2000, action => 'refuse');
SELECT mlint.usage_budget_check('usage-1');
SELECT mlint.usage_budget_set('session:usage-1', tokens => 20000, action => 'refuse');
SELECT mlint.usage_budget_check('usage-1');
SELECT mlint.usage_budget_drop('session:usage-1');
SELECT mlint.usage_budget_drop('tag:team-b', 'month');
SELECT mlint.usage_budget_check('usage-2');
SELECT mlint.usage_budget_drop('tag:team-b', 'month');
SELECT mlint.usage_budget_drop('tag:nobody');

-- a session that is removed: its totals go, those of models and tags stay
SELECT mlint.usage_track('usage-2', 3, 0);
CREATE TEMP TABLE tag_before AS SELECT total_tokens FROM mlint.usage_by_tag WHERE tag = 'team-b';
SELECT mlint.session_delete('usage-2');
SELECT (SELECT total_tokens FROM mlint.usage_by_tag WHERE tag = 'team-b') = (TABLE tag_before) AS same;
SELECT mlint.session_usage('usage-2');
SELECT count(*) FROM mlint.stat_sessions WHERE session_id = 'usage-2';
SELECT count(*) FROM mlint.usage_budgets WHERE scope = 'session:usage-2';
CALL mlint.usage_fold_run();
SELECT count(*) FROM mlint.usage_total t WHERE t.scope = 's' AND NOT EXISTS (SELECT FROM mlint.session s WHERE s.id::text = t.name);
SELECT (SELECT total_tokens FROM mlint.usage_by_tag WHERE tag = 'team-b') = (TABLE tag_before) AS same;
-- one of the same name begins anew
SELECT session_id FROM mlint.session_register('usage-2', 'gpt-4');
SELECT regress_stats(mlint.session_usage('usage-2'));

-- the tables of the log take turns, and nothing is lost
CREATE TEMP TABLE all_before AS SELECT total_prompts FROM mlint.stat_models WHERE model_id = 'gpt-4';
SELECT count(mlint.usage_track('usage-2', 1, 1)) FROM generate_series(1, 1000);
CREATE TEMP TABLE turn AS SELECT log FROM mlint.usage_fold;
CALL mlint.usage_fold_run(8192);
SELECT (SELECT log FROM mlint.usage_fold) <> (TABLE turn) AS turned;
SELECT mlint.usage_track('usage-2', 1, 1);
SELECT total_prompts - (TABLE all_before) AS more FROM mlint.stat_models WHERE model_id = 'gpt-4';
-- in a transaction that has written something it would not know what is its own
BEGIN;
SELECT mlint.usage_track('usage-2', 1, 1);
SELECT mlint.usage_fold_step();
ROLLBACK;

-- bad input
\set VERBOSITY default
SELECT mlint.usage_track('nobody', 1, 1);
SELECT mlint.usage_track(NULL, 1, 1);
SELECT mlint.usage_track('usage-1', -1, 1);
SELECT mlint.usage_track('usage-1', 1, -1);
SELECT mlint.usage_track('usage-1', 2147483648, 1);
SELECT mlint.usage_track('usage-1', NULL, 1);
SELECT mlint.usage_track('usage-1', 1, NULL);
SELECT mlint.usage_track('usage-1', 1, 1, '');
SELECT mlint.usage_track('usage-1', 1, 1, repeat('m', 256));
SELECT mlint.usage_track('usage-1', 1, 1, latency_ms => 'NaN');
SELECT mlint.usage_track('usage-1', 1, 1, latency_ms => -0.1);
SELECT mlint.usage_track('usage-1', 1, 1, latency_ms => 'infinity');
SELECT mlint.usage_track('usage-1', 1, 1, custom => '[1]');
SELECT mlint.usage_track('usage-1', 1, 1, custom => '1');
SELECT mlint.usage_track('usage-1', 1, 1, custom => '{"a": "1"}');
SELECT mlint.usage_track('usage-1', 1, 1, custom => '{"a": {"b": 1}}');
SELECT mlint.usage_track('usage-1', 1, 1, custom => '{"a": null}');
SELECT mlint.usage_track('usage-1', 1, 1, custom => '{"": 1}');
SELECT mlint.usage_track('usage-1', 1, 1, custom => '{"a": 1e1000}');
SELECT mlint.usage_track('usage-1', 1, 1, custom => (SELECT jsonb_object_agg(n, n) FROM generate_series(1, 65) n));
SELECT mlint.session_usage('nobody');
SELECT mlint.session_usage(NULL);
SELECT mlint.model_usage(NULL);
SELECT mlint.model_usage('gpt-4', '2026-01-02', '2026-01-01');
SELECT mlint.model_price_set('', 1, 1);
SELECT mlint.model_price_set(NULL, 1, 1);
SELECT mlint.model_price_set('m', -1, 1);
SELECT mlint.model_price_set('m', 1, 'NaN');
SELECT mlint.model_price_set('m', 1, 'Infinity');
SELECT mlint.model_price_set('m', NULL, 1);
SELECT mlint.model_price_set('m', 1, 1e100);
SELECT mlint.model_price_set('m', 1, 1, 'usd');
SELECT mlint.model_price_set('m', 1, 1, per => 3);
SELECT mlint.model_price_set('m', 1, 1, per => 0);
SELECT mlint.model_price_set('m', 1, 1, valid_from => 'infinity');
SELECT mlint.usage_budget_set('all');
SELECT mlint.usage_budget_set('everybody', tokens => 1);
SELECT mlint.usage_budget_set('tag:', tokens => 1);
SELECT mlint.usage_budget_set('all', tokens => 0);
SELECT mlint.usage_budget_set('all', money => 0.0);
SELECT mlint.usage_budget_set('all', money => 'NaN');
SELECT mlint.usage_budget_set('all', tokens => 1, per => 'year');
SELECT mlint.usage_budget_set('all', tokens => 1, action => 'shout');
SELECT mlint.usage_budget_set('all', tokens => 1, currency => 'dollars');
SELECT mlint.usage_budget_set('session:nobody', tokens => 1);
SELECT mlint.usage_budget_set('session:usage-1', tokens => 1, per => 'day');
SELECT mlint.usage_budget_check('nobody');
SELECT mlint.usage_budget_decision('nobody');
BEGIN READ ONLY;
SELECT mlint.usage_track('usage-1', 1, 1);
ROLLBACK;

-- privileges
SET ROLE regress_usage_reader;
SELECT mlint.usage_track('usage-1', 1, 1);
SELECT total_prompts > 0 FROM mlint.session_usage('usage-1');
SELECT count(*) > 0 FROM mlint.stat_sessions;
SELECT count(*) > 0 FROM mlint.stat_models;
SELECT count(*) > 0 FROM mlint.usage_by_tag;
SELECT count(*) > 0 FROM mlint.usage_by_day;
SELECT count(*) > 0 FROM mlint.usage_budgets;
SELECT count(*) > 0 FROM mlint.model_prices;
SELECT count(*) FROM mlint.usage_total;
SET ROLE regress_usage_user;
SELECT mlint.model_price_set('m', 1, 1);
SELECT mlint.usage_budget_set('all', tokens => 1);
SELECT mlint.usage_budget_drop('all');
SELECT count(*) FROM mlint.usage_log_1;
SET ROLE regress_usage_nobody;
SELECT mlint.session_usage('usage-1');
RESET ROLE;

-- what was configured is in the audit log
SELECT action, object, details FROM mlint.audit_log WHERE action LIKE 'model_price.%' OR action LIKE 'usage_budget.%' ORDER BY seq LIMIT 8;

SELECT mlint.usage_budget_drop('all');
SELECT mlint.usage_budget_drop('model:claude');
SELECT mlint.session_delete(s) FROM unnest('{usage-1,usage-2,usage-3}'::text[]) s;
CALL mlint.usage_fold_run();
TRUNCATE mlint.usage_total, mlint.usage_price;
DROP FUNCTION regress_span(timestamptz, timestamptz);
DROP VIEW pg_temp.told;
DROP FUNCTION regress_stats(mlint.usage_stats);
DROP ROLE regress_usage_admin, regress_usage_user, regress_usage_reader, regress_usage_nobody;
