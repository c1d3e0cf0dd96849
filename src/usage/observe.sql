-- usage, observed: the fold, budgets, and what models are used. What is not in
-- the totals yet is not looked at: it could be much when the fold is behind.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('usage', 'usage_fold', true, $$
	SELECT CASE WHEN l.bytes > 4 * 268435456::bigint THEN 2 ELSE 1 END,
		format('the log of usage has grown to %s: it is not folded, or cannot be emptied', pg_size_pretty(l.bytes)),
		'mlint.jobs tells how the job usage_fold goes; old transactions keep it from emptying a table (pg_stat_activity.xact_start, pg_prepared_xacts).'
	FROM (SELECT pg_relation_size('mlint.usage_log_1') + pg_relation_size('mlint.usage_log_2') AS bytes) l
	WHERE l.bytes > 268435456
	UNION ALL
	SELECT o.* FROM mlint.job_off('usage_fold') o$$),

-- As of the last fold, which notes each budget that is spent, once in a period.
('usage', 'usage_budgets', true, $$
	SELECT 1, format('the budget of %s %s is spent%s', mlint.usage_scope(b.scope, b.name),
			CASE b.per WHEN 'ever' THEN 'for ever' ELSE 'for this ' || b.per END,
			CASE b.action WHEN 'refuse' THEN ', and prompts are refused' ELSE '' END),
		'mlint.usage_budgets tells how far; mlint.usage_budget_set() raises it.'
	FROM mlint.usage_budget b
	CROSS JOIN LATERAL mlint.usage_period(b.per, clock_timestamp()) p
	JOIN mlint.usage_notice n ON (n.scope, n.name, n.per, n.period, n.percent)
		= (b.scope, b.name, b.per, p.begins, 100)$$);

-- Of the totals, by what they are of, the one of all times: a model's hours
-- and days lie in between, so one goes from name to name. A hundred at most.
INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('usage', 'models', true, '{model}', $$
	WITH RECURSIVE model (name, n) AS (
		(SELECT t.name, 1 FROM mlint.usage_total t WHERE t.scope = 'm' ORDER BY t.name LIMIT 1)
		UNION ALL
		SELECT x.name, m.n + 1 FROM model m
		CROSS JOIN LATERAL (SELECT t.name FROM mlint.usage_total t
			WHERE t.scope = 'm' AND t.name > m.name ORDER BY t.name LIMIT 1) x
		WHERE m.n < 100
	)
	SELECT m.name AS model, t.prompts, t.responses, t.prompt_tokens, t.completion_tokens,
		jsonb_build_object('sum', coalesce(t.latency_us, 0) / 1000000.0,
			'count', coalesce(t.latencies, 0)) AS latency
	FROM model m
	JOIN mlint.usage_total t ON t.scope = 'm' AND t.name = m.name AND t.step = 'e'
		AND t.period = '-infinity' AND t.kind = 'u' AND t.key = ''
	ORDER BY m.name$$),
('usage', 'model_costs', true, '{model,currency}', $$
	WITH RECURSIVE model (name, n) AS (
		(SELECT t.name, 1 FROM mlint.usage_total t WHERE t.scope = 'm' ORDER BY t.name LIMIT 1)
		UNION ALL
		SELECT x.name, m.n + 1 FROM model m
		CROSS JOIN LATERAL (SELECT t.name FROM mlint.usage_total t
			WHERE t.scope = 'm' AND t.name > m.name ORDER BY t.name LIMIT 1) x
		WHERE m.n < 100
	)
	SELECT m.name AS model, t.key AS currency, t.amount
	FROM model m
	JOIN mlint.usage_total t ON t.scope = 'm' AND t.name = m.name AND t.step = 'e'
		AND t.period = '-infinity' AND t.kind = 'c'
	ORDER BY m.name, t.key$$),
('usage', 'usage', true, '{}', $$
	SELECT coalesce(t.prompts, 0) AS prompts, coalesce(t.responses, 0) AS responses,
		coalesce(t.prompt_tokens, 0) AS prompt_tokens,
		coalesce(t.completion_tokens, 0) AS completion_tokens,
		pg_relation_size('mlint.usage_log_1') + pg_relation_size('mlint.usage_log_2') AS log_bytes,
		(SELECT count(*) FROM mlint.usage_budget) AS budgets,
		(SELECT count(*) FROM mlint.usage_budget b
			CROSS JOIN LATERAL mlint.usage_period(b.per, clock_timestamp()) p
			JOIN mlint.usage_notice n ON (n.scope, n.name, n.per, n.period, n.percent)
				= (b.scope, b.name, b.per, p.begins, 100)) AS spent
	FROM (SELECT) one
	LEFT JOIN mlint.usage_total t ON t.scope = 'a' AND t.name = '' AND t.step = 'e'
		AND t.period = '-infinity' AND t.kind = 'u' AND t.key = ''$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('models', 'prompts', 'mlint_model_prompts_total', 'counter', 'Prompts that were reported, as of the last fold; the first 100 models by name'),
('models', 'responses', 'mlint_model_responses_total', 'counter', 'Those among them that had a response'),
('models', 'prompt_tokens', 'mlint_model_prompt_tokens_total', 'counter', 'Tokens of the prompts'),
('models', 'completion_tokens', 'mlint_model_completion_tokens_total', 'counter', 'Tokens of the responses'),
('models', 'latency', 'mlint_model_latency_seconds', 'summary', 'How long responses took, of those that were reported with a latency'),
('model_costs', 'amount', 'mlint_model_cost_total', 'counter', 'What it cost, by currency'),
('usage', 'prompts', 'mlint_usage_prompts_total', 'counter', 'Prompts of all models, as of the last fold'),
('usage', 'responses', 'mlint_usage_responses_total', 'counter', 'Those among them that had a response'),
('usage', 'prompt_tokens', 'mlint_usage_prompt_tokens_total', 'counter', 'Tokens of the prompts'),
('usage', 'completion_tokens', 'mlint_usage_completion_tokens_total', 'counter', 'Tokens of the responses'),
('usage', 'log_bytes', 'mlint_usage_log_bytes', 'gauge', 'Size of the log that reports of usage are appended to'),
('usage', 'budgets', 'mlint_usage_budgets', 'gauge', 'Budgets'),
('usage', 'spent', 'mlint_usage_budgets_spent', 'gauge', 'Those among them that are spent in their present period');

