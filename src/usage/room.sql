-- usage: what sessions and models use, what that costs, and budgets.

-- What was reported and is not in the totals yet. usage_track() appends to one
-- of two tables, past the executor; the other is being emptied, or is empty.
-- A row of session 0 is the table's mark: a snapshot that does not see it is
-- older than the table's last TRUNCATE. A row without a model says that its
-- session was removed.
CREATE TABLE mlint.usage_log_1 (
	xid xid8 NOT NULL,
	session bigint NOT NULL,
	tracked_at timestamptz NOT NULL,
	latency_us bigint,
	prompt_tokens int NOT NULL,
	completion_tokens int NOT NULL,
	model_id text COLLATE "C",
	model_version text COLLATE "C",
	tags text[],
	custom jsonb
);
-- What the fold's position does not see is found by it.
CREATE INDEX usage_log_1_xid ON mlint.usage_log_1 (xid);
COMMENT ON TABLE mlint.usage_log_1 IS 'Reports of usage, appended by usage_track() in turn with usage_log_2';
CREATE TABLE mlint.usage_log_2 (LIKE mlint.usage_log_1 INCLUDING DEFAULTS);
CREATE INDEX usage_log_2_xid ON mlint.usage_log_2 (xid);
COMMENT ON TABLE mlint.usage_log_2 IS 'Reports of usage, appended by usage_track() in turn with usage_log_1';
INSERT INTO mlint.usage_log_1 (xid, session, tracked_at, prompt_tokens, completion_tokens)
VALUES ('0', 0, '-infinity', 0, 0);
INSERT INTO mlint.usage_log_2 (xid, session, tracked_at, prompt_tokens, completion_tokens)
VALUES ('0', 0, '-infinity', 0, 0);

-- How far the fold has come: in the totals is what the snapshot sees.
CREATE TABLE mlint.usage_fold (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	folded pg_snapshot NOT NULL,
	-- The table that takes new rows; of the other: is it empty, or, if all of
	-- it is in the totals and nobody can write to it any more, since which
	-- transaction?
	log int NOT NULL CHECK (log IN (1, 2)),
	spare boolean NOT NULL,
	drained xid8,
	-- Everything is folded, and the job waits to be asked for.
	resting boolean NOT NULL,
	folded_at timestamptz
) WITH (fillfactor = 20);
COMMENT ON TABLE mlint.usage_fold IS 'How far the usage log is counted in the totals';
INSERT INTO mlint.usage_fold VALUES (true, '1:1:', 1, true, NULL, true, NULL);

-- The totals. What they are of: all (a), a model (m), a tag (t), a session (s:
-- its number); by hour (h), day (d) or ever (e), in UTC; sessions only ever.
-- Kind u is usage, c cost by currency, m the sums of custom metrics by name.
CREATE TABLE mlint.usage_total (
	scope "char" NOT NULL CHECK (scope IN ('a', 'm', 't', 's')),
	name text COLLATE "C" NOT NULL,
	step "char" NOT NULL CHECK (step IN ('h', 'd', 'e')),
	period timestamptz NOT NULL,
	kind "char" NOT NULL CHECK (kind IN ('u', 'c', 'm')),
	key text COLLATE "C" NOT NULL,
	prompts bigint,
	responses bigint,
	prompt_tokens bigint,
	completion_tokens bigint,
	latencies bigint,
	latency_us numeric,
	first_at timestamptz,
	last_at timestamptz,
	amount numeric,
	PRIMARY KEY (scope, name, step, period, kind, key)
) WITH (fillfactor = 70);
COMMENT ON TABLE mlint.usage_total IS 'Usage by hour, day and ever, of all, models, tags and sessions';

CREATE TABLE mlint.usage_price (
	model_id text COLLATE "C" NOT NULL,
	model_version text COLLATE "C" NOT NULL,
	currency text COLLATE "C" NOT NULL CHECK (currency ~ '^[A-Z]{3,8}$'),
	valid_from timestamptz NOT NULL,
	set_at timestamptz NOT NULL,
	prompt numeric NOT NULL CHECK (prompt >= 0),
	completion numeric NOT NULL CHECK (completion >= 0),
	per int NOT NULL CHECK (per > 0),
	set_by text NOT NULL,
	PRIMARY KEY (model_id, model_version, currency, valid_from, set_at)
);
COMMENT ON TABLE mlint.usage_price IS 'Prices of models, all that were ever set; version empty: of any';

CREATE TABLE mlint.usage_budget (
	scope "char" NOT NULL CHECK (scope IN ('a', 'm', 't', 's')),
	name text COLLATE "C" NOT NULL,
	per text COLLATE "C" NOT NULL
		CHECK (per IN ('hour', 'day', 'week', 'month', 'ever')),
	tokens bigint CHECK (tokens > 0),
	money numeric CHECK (money > 0),
	currency text COLLATE "C" NOT NULL CHECK (currency ~ '^[A-Z]{3,8}$'),
	action text NOT NULL CHECK (action IN ('event', 'refuse')),
	set_by text NOT NULL,
	set_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	PRIMARY KEY (scope, name, per),
	CHECK (tokens IS NOT NULL OR money IS NOT NULL),
	CHECK (scope <> 's' OR per = 'ever')
);
COMMENT ON TABLE mlint.usage_budget IS 'How much may be spent';

-- What was announced, so that it is announced once.
CREATE TABLE mlint.usage_notice (
	scope "char" NOT NULL,
	name text COLLATE "C" NOT NULL,
	per text COLLATE "C" NOT NULL,
	period timestamptz NOT NULL,
	percent int NOT NULL,
	PRIMARY KEY (scope, name, per, period, percent)
);
COMMENT ON TABLE mlint.usage_notice IS 'Events about budgets that were published';

INSERT INTO mlint.event_type VALUES
	('usage.budget_warning', 'Four fifths of a budget are spent'),
	('usage.budget_exceeded', 'A budget is spent');

-- pg_dump takes the totals along, and of the log what is not in them. Rows that
-- come back carry the transaction that brings them: the ids of another cluster
-- mean nothing here.
CREATE FUNCTION mlint.usage_log_restored() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF TG_LEVEL = 'STATEMENT' THEN
		-- Neither of the tables can be taken for empty now.
		UPDATE mlint.usage_fold SET spare = false, drained = NULL
		WHERE spare OR drained IS NOT NULL;
		RETURN NULL;
	END IF;
	NEW.xid := pg_current_xact_id();
	RETURN NEW;
END
$$;
COMMENT ON FUNCTION mlint.usage_log_restored() IS 'Trigger: gives restored reports of usage the id of the present transaction';
DO $$
BEGIN
	FOR n IN 1 .. 2 LOOP
		EXECUTE pg_catalog.format('CREATE TRIGGER restored
			BEFORE INSERT ON mlint.usage_log_%s FOR EACH STATEMENT
			EXECUTE FUNCTION mlint.usage_log_restored()', n);
		EXECUTE pg_catalog.format('CREATE TRIGGER restored_row
			BEFORE INSERT ON mlint.usage_log_%s FOR EACH ROW WHEN (NEW.session <> 0)
			EXECUTE FUNCTION mlint.usage_log_restored()', n);
		EXECUTE pg_catalog.format('ALTER TABLE mlint.usage_log_%s
			ENABLE ALWAYS TRIGGER restored', n);
		EXECUTE pg_catalog.format('ALTER TABLE mlint.usage_log_%s
			ENABLE ALWAYS TRIGGER restored_row', n);
	END LOOP;
END
$$;
SELECT pg_catalog.pg_extension_config_dump(
	'mlint.usage_log_1', 'WHERE session <> 0 AND NOT pg_catalog.pg_visible_in_snapshot(xid, (SELECT folded FROM mlint.usage_fold))');
SELECT pg_catalog.pg_extension_config_dump(
	'mlint.usage_log_2', 'WHERE session <> 0 AND NOT pg_catalog.pg_visible_in_snapshot(xid, (SELECT folded FROM mlint.usage_fold))');
SELECT pg_catalog.pg_extension_config_dump('mlint.usage_total', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.usage_price', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.usage_budget', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.usage_notice', '');

-- ---- reporting what was used ----

CREATE FUNCTION mlint.usage_track(session_id text, prompt_tokens bigint,
	completion_tokens bigint, model_id text DEFAULT NULL,
	latency_ms double precision DEFAULT NULL, custom jsonb DEFAULT '{}')
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_usage_track';
COMMENT ON FUNCTION mlint.usage_track(text, bigint, bigint, text, double precision, jsonb) IS
	'Report what one prompt of a session has used: one row, in the caller''s transaction. model_id null: the session''s. It counts as a response too if it has completion tokens or a latency. custom: numbers by name, which are summed up';

-- ---- the fold ----

-- One row for each thing that a report of usage counts for: all, its model,
-- each tag and the session; of each its usage (kind u), what it cost in each
-- currency (c), and its metrics (m). A session that is gone comes as scope f.
CREATE FUNCTION mlint.usage_rest(of_scope "char", of_name text,
	OUT scope "char", OUT name text, OUT tracked_at timestamptz,
	OUT kind "char", OUT key text, OUT responses int,
	OUT prompt_tokens bigint, OUT completion_tokens bigint,
	OUT latency_us bigint, OUT amount numeric)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_usage_rest';
COMMENT ON FUNCTION mlint.usage_rest("char", text) IS
	'For mlint''s views: what was reported and is not in the totals yet, of one scope and name, or of all (null)';

CREATE FUNCTION mlint.usage_log_open() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_usage_log_open';
COMMENT ON FUNCTION mlint.usage_log_open() IS
	'The fold''s: has every process look again which table takes reports of usage';

CREATE FUNCTION mlint.usage_seen_by_all(xid xid8) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_usage_seen_by_all';
COMMENT ON FUNCTION mlint.usage_seen_by_all(xid8) IS
	'The fold''s: whether every snapshot of this server sees what the transaction has committed';

-- A calendar period in UTC, and what it is not.
CREATE FUNCTION mlint.usage_period(per text, at timestamptz,
	OUT begins timestamptz, OUT ends timestamptz)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE per WHEN 'ever' THEN '-infinity'::timestamptz
			ELSE date_trunc(per, at, 'UTC') END,
		CASE per WHEN 'ever' THEN 'infinity'::timestamptz
			ELSE (date_trunc(per, at AT TIME ZONE 'UTC') + ('1 ' || per)::interval)
				AT TIME ZONE 'UTC' END
$$;
COMMENT ON FUNCTION mlint.usage_period(text, timestamptz) IS 'The hour, day, week or month in UTC that a time is in';

-- The stretches of totals that make up a time: days where whole days are,
-- hours at the edges; all that there ever was in one.
CREATE FUNCTION mlint.usage_span("from" timestamptz, "to" timestamptz,
	OUT step "char", OUT begins timestamptz, OUT ends timestamptz)
RETURNS SETOF record
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 3
SET search_path = pg_catalog, pg_temp AS $$
	SELECT s.step, s.begins, s.ends
	FROM (SELECT CASE WHEN date_trunc('day', "from", 'UTC') = "from" THEN "from"
				ELSE (date_trunc('day', "from" AT TIME ZONE 'UTC') + '1 day'::interval)
					AT TIME ZONE 'UTC' END AS first,
			date_trunc('day', "to", 'UTC') AS last) d,
		LATERAL (VALUES
			('e'::"char", "from", "to", "from" = '-infinity' AND "to" = 'infinity'),
			('d', d.first, d.last, "from" > '-infinity' OR "to" < 'infinity'),
			('h', "from", least(d.first, "to"), true),
			('h', greatest(d.last, d.first), "to", d.last >= d.first)) s(step, begins, ends, counts)
	WHERE s.counts AND s.begins < s.ends
$$;
COMMENT ON FUNCTION mlint.usage_span(timestamptz, timestamptz) IS 'Which totals make up the time between two whole hours';

CREATE TYPE mlint.usage_stats AS (
	total_prompts bigint,
	total_responses bigint,
	total_prompt_tokens bigint,
	total_completion_tokens bigint,
	total_tokens bigint,
	average_latency_ms double precision,
	first_at timestamptz,
	last_at timestamptz,
	custom jsonb,
	cost jsonb
);
COMMENT ON TYPE mlint.usage_stats IS 'What was used';
COMMENT ON COLUMN mlint.usage_stats.total_prompts IS 'How many prompts were reported';
COMMENT ON COLUMN mlint.usage_stats.total_responses IS 'How many of them had a response: completion tokens, or a latency';
COMMENT ON COLUMN mlint.usage_stats.total_prompt_tokens IS 'Tokens of the prompts';
COMMENT ON COLUMN mlint.usage_stats.total_completion_tokens IS 'Tokens of the responses';
COMMENT ON COLUMN mlint.usage_stats.total_tokens IS 'Both together';
COMMENT ON COLUMN mlint.usage_stats.average_latency_ms IS 'Of those that were reported with a latency; null if none was';
COMMENT ON COLUMN mlint.usage_stats.first_at IS 'When the first was reported; null if none was';
COMMENT ON COLUMN mlint.usage_stats.last_at IS 'When the last was reported';
COMMENT ON COLUMN mlint.usage_stats.custom IS 'Sums of the custom metrics, by name';
COMMENT ON COLUMN mlint.usage_stats.cost IS 'What it cost, by currency; null if nothing had a price';

-- What was used by one scope and name between two whole hours: totals, and
-- what is not in them yet, in the caller's snapshot.
CREATE FUNCTION mlint.usage_report(of_scope "char", of_name text,
	"from" timestamptz, "to" timestamptz) RETURNS mlint.usage_stats
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	stats mlint.usage_stats;
BEGIN
	SELECT coalesce(max(prompts) FILTER (WHERE kind = 'u'), 0),
		coalesce(max(responses), 0), coalesce(max(prompt_tokens), 0),
		coalesce(max(completion_tokens), 0),
		coalesce(max(prompt_tokens + completion_tokens), 0),
		max(latency_us / nullif(latencies, 0)) / 1000,
		min(first_at), max(last_at),
		coalesce(jsonb_object_agg(key, amount) FILTER (WHERE kind = 'm'), '{}'),
		jsonb_object_agg(key, amount) FILTER (WHERE kind = 'c')
	INTO stats
	FROM (
		SELECT kind, key, sum(prompts)::bigint AS prompts,
			sum(responses)::bigint AS responses,
			sum(prompt_tokens)::bigint AS prompt_tokens,
			sum(completion_tokens)::bigint AS completion_tokens,
			sum(latencies)::bigint AS latencies,
			sum(latency_us) AS latency_us, min(first_at) AS first_at,
			max(last_at) AS last_at, trim_scale(sum(amount)) AS amount
		FROM (
			SELECT t.kind, t.key, t.prompts, t.responses, t.prompt_tokens,
				t.completion_tokens, t.latencies, t.latency_us, t.first_at,
				t.last_at, t.amount
			FROM mlint.usage_span("from", "to") s
			JOIN mlint.usage_total t ON t.scope = of_scope
				AND t.name = of_name AND t.step = s.step
				AND t.period >= s.begins AND t.period < s.ends
			UNION ALL
			SELECT r.kind, r.key, 1, r.responses, r.prompt_tokens,
				r.completion_tokens, (r.latency_us IS NOT NULL)::int,
				r.latency_us, r.tracked_at, r.tracked_at, r.amount
			FROM mlint.usage_rest(of_scope, of_name) r
			WHERE r.tracked_at >= "from" AND r.tracked_at < "to") entry
		GROUP BY kind, key) total;
	RETURN stats;
END
$$;
COMMENT ON FUNCTION mlint.usage_report("char", text, timestamptz, timestamptz) IS
	'What one scope and name has used between two whole hours';

-- Everything, totals and rest, by what the totals are kept by.
CREATE VIEW mlint.usage_entry AS
SELECT scope, name, step, period, kind, key, prompts, responses,
	prompt_tokens, completion_tokens, latencies, latency_us, first_at, last_at,
	amount
FROM mlint.usage_total
UNION ALL
SELECT r.scope, r.name, s.step,
	CASE s.step WHEN 'h' THEN pg_catalog.date_trunc('hour', r.tracked_at, 'UTC')
		WHEN 'd' THEN pg_catalog.date_trunc('day', r.tracked_at, 'UTC')
		ELSE '-infinity' END,
	r.kind, r.key, 1, r.responses, r.prompt_tokens, r.completion_tokens,
	(r.latency_us IS NOT NULL)::int, r.latency_us, r.tracked_at, r.tracked_at,
	r.amount
FROM mlint.usage_rest(NULL, NULL) r
CROSS JOIN (VALUES ('h'::"char"), ('d'), ('e')) s(step)
WHERE r.scope <> 'f' AND (r.scope <> 's' OR s.step = 'e');
COMMENT ON VIEW mlint.usage_entry IS 'Private: totals of usage, and what is not in them yet';

CREATE VIEW mlint.usage_by_step AS
SELECT scope, name, step, period,
	pg_catalog.max(prompts) FILTER (WHERE kind = 'u') AS prompts,
	pg_catalog.max(responses) AS responses,
	pg_catalog.max(prompt_tokens) AS prompt_tokens,
	pg_catalog.max(completion_tokens) AS completion_tokens,
	pg_catalog.max(prompt_tokens + completion_tokens) AS total_tokens,
	(pg_catalog.max(latency_us / NULLIF(latencies, 0)) / 1000)::double precision
		AS average_latency_ms,
	pg_catalog.min(first_at) AS first_at, pg_catalog.max(last_at) AS last_at,
	COALESCE(pg_catalog.jsonb_object_agg(key, amount)
		FILTER (WHERE kind = 'm'), '{}') AS custom,
	pg_catalog.jsonb_object_agg(key, amount) FILTER (WHERE kind = 'c') AS cost
FROM (
	SELECT scope, name, step, period, kind, key,
		pg_catalog.sum(prompts)::bigint AS prompts,
		pg_catalog.sum(responses)::bigint AS responses,
		pg_catalog.sum(prompt_tokens)::bigint AS prompt_tokens,
		pg_catalog.sum(completion_tokens)::bigint AS completion_tokens,
		pg_catalog.sum(latencies)::bigint AS latencies,
		pg_catalog.sum(latency_us) AS latency_us,
		pg_catalog.min(first_at) AS first_at, pg_catalog.max(last_at) AS last_at,
		pg_catalog.trim_scale(pg_catalog.sum(amount)) AS amount
	FROM mlint.usage_entry
	GROUP BY scope, name, step, period, kind, key) total
GROUP BY scope, name, step, period;
COMMENT ON VIEW mlint.usage_by_step IS 'Private: usage by what the totals are kept by';

-- Add what was reported since to the totals: each row once, since the position
-- moves in the same statement, by the same snapshot. Returns how many reports
-- it was.
CREATE FUNCTION mlint.usage_fold_step() RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	reports bigint;
	hours timestamptz[];
	touched text[];
BEGIN
	-- What this transaction has reported itself would count as folded.
	IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
		RAISE EXCEPTION 'usage is folded in a transaction of its own'
			USING ERRCODE = 'active_sql_transaction',
			HINT = 'Use mlint.job_run_now(''usage_fold'').';
	END IF;
	-- What a crash undoes is done again.
	PERFORM set_config('synchronous_commit', 'off', true);
	-- One at a time, and each in a snapshot that sees what the last one did.
	PERFORM FROM mlint.usage_fold FOR UPDATE;

	WITH rest AS MATERIALIZED (
		SELECT r.*, date_trunc('hour', r.tracked_at, 'UTC') AS hour,
			date_trunc('day', r.tracked_at, 'UTC') AS day
		FROM mlint.usage_rest(NULL, NULL) r
		WHERE r.scope <> 's' OR EXISTS (SELECT FROM mlint.session s
			WHERE s.id = r.name::bigint)
	), forgotten AS (
		DELETE FROM mlint.usage_total t USING rest r
		WHERE r.scope = 'f' AND t.scope = 's' AND t.name = r.name
	), total AS (
		INSERT INTO mlint.usage_total AS t
		SELECT scope, name,
			CASE WHEN GROUPING(hour) = 0 THEN 'h'
				WHEN GROUPING(day) = 0 THEN 'd' ELSE 'e' END::"char",
			CASE WHEN GROUPING(hour) = 0 THEN hour
				WHEN GROUPING(day) = 0 THEN day ELSE '-infinity' END,
			kind, key, CASE WHEN kind = 'u' THEN count(*) END, sum(responses),
			sum(prompt_tokens), sum(completion_tokens),
			CASE WHEN kind = 'u' THEN count(latency_us) END, sum(latency_us),
			CASE WHEN kind = 'u' THEN min(tracked_at) END,
			CASE WHEN kind = 'u' THEN max(tracked_at) END, sum(amount)
		FROM rest
		WHERE scope <> 'f'
		GROUP BY GROUPING SETS ((scope, name, kind, key, hour),
			(scope, name, kind, key, day), (scope, name, kind, key))
		HAVING scope <> 's' OR GROUPING(hour, day) = 3
		ON CONFLICT (scope, name, step, period, kind, key) DO UPDATE SET
			prompts = t.prompts + excluded.prompts,
			responses = t.responses + excluded.responses,
			prompt_tokens = t.prompt_tokens + excluded.prompt_tokens,
			completion_tokens = t.completion_tokens + excluded.completion_tokens,
			latencies = t.latencies + excluded.latencies,
			latency_us = CASE WHEN t.latency_us IS NULL THEN excluded.latency_us
				ELSE t.latency_us + coalesce(excluded.latency_us, 0) END,
			first_at = least(t.first_at, excluded.first_at),
			last_at = greatest(t.last_at, excluded.last_at),
			amount = t.amount + excluded.amount
	), moved AS (
		UPDATE mlint.usage_fold SET folded = pg_current_snapshot(),
			folded_at = clock_timestamp()
		WHERE EXISTS (SELECT FROM rest)
	)
	SELECT count(*) FILTER (WHERE scope = 'a' AND kind = 'u' OR scope = 'f'),
		array_agg(DISTINCT hour) FILTER (WHERE scope = 'a'),
		array_agg(DISTINCT scope::text || name)
	INTO reports, hours, touched
	FROM rest;

	IF reports > 0 THEN
		PERFORM mlint.usage_budget_announce(hours, touched);
	END IF;
	RETURN reports;
END
$$;
COMMENT ON FUNCTION mlint.usage_fold_step() IS 'The job usage_fold''s: adds what was reported to the totals, and announces budgets that are spent; returns how many reports';

-- The tables of the log take turns, and are emptied as a whole. One more step
-- of that; true when there may be another. TRUNCATE takes rows from snapshots
-- that should still see them, so it waits until everybody sees that all of
-- them are folded, and nobody can add more.
CREATE FUNCTION mlint.usage_log_turn(max_bytes bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms' AS $$
DECLARE
	f mlint.usage_fold;
	other text;
BEGIN
	SELECT * INTO f FROM mlint.usage_fold FOR UPDATE;
	other := format('mlint.usage_log_%s', 3 - f.log);
	IF f.spare THEN
		IF pg_relation_size(format('mlint.usage_log_%s', f.log)::regclass) < max_bytes THEN
			RETURN false;
		END IF;
		PERFORM mlint.usage_log_open();
		UPDATE mlint.usage_fold SET log = 3 - log, spare = false, drained = NULL;
		RETURN true;
	END IF;

	IF f.drained IS NULL THEN
		-- Whoever has written to it and is not done has it locked.
		EXECUTE format('LOCK TABLE %s IN SHARE MODE NOWAIT', other);
		IF mlint.usage_log_pending(3 - f.log) THEN
			RETURN false;
		END IF;
		UPDATE mlint.usage_fold SET drained = pg_current_xact_id();
		RETURN true;
	END IF;

	IF NOT mlint.usage_seen_by_all(f.drained) THEN
		RETURN false;
	END IF;
	EXECUTE format('TRUNCATE %s', other);
	EXECUTE format('INSERT INTO %s (xid, session, tracked_at, prompt_tokens, completion_tokens)'
		' VALUES (''0'', 0, ''-infinity'', 0, 0)', other);
	UPDATE mlint.usage_fold SET spare = true;
	RETURN false;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
	RETURN false;
END
$$;
COMMENT ON FUNCTION mlint.usage_log_turn(bigint) IS 'The job usage_fold''s: one step towards an empty table for the usage log; true if there may be another';

CREATE FUNCTION mlint.usage_log_pending(log int) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_usage_log_pending';
COMMENT ON FUNCTION mlint.usage_log_pending(int) IS 'The fold''s: whether one of the tables of the usage log has rows that are not in the totals';

-- With work the job comes back each minute; without, it waits to be asked for by
-- the next report. In between there is nobody: the lock keeps reports out until
-- they can see that they have to ask.
CREATE FUNCTION mlint.usage_fold_rest(busy boolean) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms' AS $$
DECLARE
	f mlint.usage_fold;
BEGIN
	SELECT * INTO f FROM mlint.usage_fold;
	IF f.resting = NOT busy THEN
		RETURN;
	END IF;
	IF NOT busy THEN
		EXECUTE format('LOCK TABLE mlint.usage_log_%s IN SHARE MODE NOWAIT', f.log);
		IF mlint.usage_log_pending(1) OR mlint.usage_log_pending(2) THEN
			RETURN;
		END IF;
	END IF;
	PERFORM mlint.usage_log_open();
	UPDATE mlint.usage_fold SET resting = NOT busy;
	UPDATE mlint.job SET every = CASE WHEN busy THEN '1 minute' ELSE '1 day' END::interval
	WHERE name = 'usage_fold';
EXCEPTION WHEN lock_not_available THEN
	RETURN;
END
$$;
COMMENT ON FUNCTION mlint.usage_fold_rest(boolean) IS 'The job usage_fold''s: whether it comes back each minute, or waits to be asked for';

CREATE PROCEDURE mlint.usage_fold_run(max_bytes bigint DEFAULT 16777216)
LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
	total bigint := 0;
BEGIN
	LOOP
		n := mlint.usage_fold_step();
		COMMIT;
		total := total OPERATOR(pg_catalog.+) n;
		EXIT WHEN n OPERATOR(pg_catalog.<) 1000;
	END LOOP;
	PERFORM mlint.usage_fold_rest(total OPERATOR(pg_catalog.>) 0);
	COMMIT;
	WHILE mlint.usage_log_turn(max_bytes) LOOP
		COMMIT;
	END LOOP;
END
$$;
COMMENT ON PROCEDURE mlint.usage_fold_run(bigint) IS 'The job usage_fold: adds to the totals what was reported, and empties the table of the log that is done with; max_bytes: how large one may get before the other takes its turn';

-- A report that finds it resting asks for it, and one in some thousand does.
INSERT INTO mlint.job (name, command, every, next_run_at)
VALUES ('usage_fold', 'CALL mlint.usage_fold_run()', '1 day',
	pg_catalog.now() + '1 day');

-- ---- reports ----

CREATE FUNCTION mlint.session_usage(session_id text) RETURNS mlint.usage_stats
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_session_usage';
COMMENT ON FUNCTION mlint.session_usage(text) IS
	'What a session has used, exact in the caller''s snapshot';

CREATE FUNCTION mlint.model_usage(model_id text,
	"from" timestamptz DEFAULT NULL, "to" timestamptz DEFAULT NULL)
RETURNS mlint.usage_stats
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_model_usage';
COMMENT ON FUNCTION mlint.model_usage(text, timestamptz, timestamptz) IS
	'What a model was used from one time (inclusive) to another (exclusive), in whole hours: from is rounded down, to is rounded up; null: no limit';

CREATE VIEW mlint.usage_by_day AS
SELECT (u.period AT TIME ZONE 'UTC')::date AS day, u.name AS model_id,
	u.prompts AS total_prompts, u.responses AS total_responses,
	u.prompt_tokens AS total_prompt_tokens,
	u.completion_tokens AS total_completion_tokens, u.total_tokens,
	u.average_latency_ms, u.first_at, u.last_at, u.custom, u.cost
FROM mlint.usage_by_step u
WHERE u.scope = 'm' AND u.step = 'd';
COMMENT ON VIEW mlint.usage_by_day IS 'Usage by day (in UTC) and model';
COMMENT ON COLUMN mlint.usage_by_day.day IS 'The day, in UTC';
COMMENT ON COLUMN mlint.usage_by_day.model_id IS 'The model';

CREATE VIEW mlint.usage_by_tag AS
SELECT u.name AS tag, (u.period AT TIME ZONE 'UTC')::date AS day,
	u.prompts AS total_prompts, u.responses AS total_responses,
	u.prompt_tokens AS total_prompt_tokens,
	u.completion_tokens AS total_completion_tokens, u.total_tokens,
	u.average_latency_ms, u.first_at, u.last_at, u.custom, u.cost
FROM mlint.usage_by_step u
WHERE u.scope = 't' AND u.step = 'd';
COMMENT ON VIEW mlint.usage_by_tag IS 'Usage by the tags that the sessions had, and day (in UTC). What has two tags counts for both';
COMMENT ON COLUMN mlint.usage_by_tag.tag IS 'The tag';
COMMENT ON COLUMN mlint.usage_by_tag.day IS 'The day, in UTC';

CREATE VIEW mlint.stat_models AS
SELECT u.name AS model_id, u.prompts AS total_prompts,
	u.responses AS total_responses, u.prompt_tokens AS total_prompt_tokens,
	u.completion_tokens AS total_completion_tokens, u.total_tokens,
	u.average_latency_ms, u.first_at, u.last_at, u.custom, u.cost,
	COALESCE(d.prompts, 0) AS prompts_today,
	COALESCE(d.total_tokens, 0) AS tokens_today,
	d.average_latency_ms AS latency_ms_today, d.cost AS cost_today
FROM mlint.usage_by_step u
LEFT JOIN (SELECT * FROM mlint.usage_by_step d
	WHERE d.scope = 'm' AND d.step = 'd'
		AND d.period = pg_catalog.date_trunc('day', pg_catalog.now(), 'UTC')) d
	ON d.name = u.name
WHERE u.scope = 'm' AND u.step = 'e';
COMMENT ON VIEW mlint.stat_models IS 'What each model was used, ever and today';
COMMENT ON COLUMN mlint.stat_models.model_id IS 'The model';
COMMENT ON COLUMN mlint.stat_models.prompts_today IS 'Prompts since midnight in UTC';
COMMENT ON COLUMN mlint.stat_models.tokens_today IS 'Tokens since midnight in UTC';
COMMENT ON COLUMN mlint.stat_models.latency_ms_today IS 'Average latency since midnight in UTC; null if there was none';
COMMENT ON COLUMN mlint.stat_models.cost_today IS 'Cost by currency since midnight in UTC; null if nothing had a price';

CREATE VIEW mlint.stat_sessions AS
SELECT s.session_id, s.status, s.model_id, s.tags, s.started_at, s.active_at,
	COALESCE(u.prompts, 0) AS total_prompts,
	COALESCE(u.responses, 0) AS total_responses,
	COALESCE(u.prompt_tokens, 0) AS total_prompt_tokens,
	COALESCE(u.completion_tokens, 0) AS total_completion_tokens,
	COALESCE(u.total_tokens, 0) AS total_tokens,
	u.average_latency_ms, u.first_at, u.last_at,
	COALESCE(u.custom, '{}') AS custom, u.cost
FROM mlint.session s
LEFT JOIN (SELECT * FROM mlint.usage_by_step u
	WHERE u.scope = 's' AND u.step = 'e') u ON u.name = s.id::text;
COMMENT ON VIEW mlint.stat_sessions IS 'What each session has used; of one, session_usage() says it sooner';
COMMENT ON COLUMN mlint.stat_sessions.session_id IS 'The session';
COMMENT ON COLUMN mlint.stat_sessions.status IS 'active, completed, failed or archived';
COMMENT ON COLUMN mlint.stat_sessions.model_id IS 'The model that it was registered with';
COMMENT ON COLUMN mlint.stat_sessions.tags IS 'Its tags';
COMMENT ON COLUMN mlint.stat_sessions.started_at IS 'When it began';
COMMENT ON COLUMN mlint.stat_sessions.active_at IS 'The last sign of life, at most an hour too early';

-- The columns of usage_stats mean the same in each view; those of the private
-- ones are mlint.usage_total's.
DO $$
DECLARE
	view text;
	col record;
BEGIN
	FOR col IN SELECT c.relname, a.attname FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
		WHERE c.oid IN ('mlint.usage_entry'::regclass, 'mlint.usage_by_step'::regclass)
	LOOP
		EXECUTE pg_catalog.format('COMMENT ON COLUMN mlint.%I.%I IS %L',
			col.relname, col.attname, 'Private, as in mlint.usage_total');
	END LOOP;
	FOREACH view IN ARRAY '{usage_by_day,usage_by_tag,stat_models,stat_sessions}'::text[] LOOP
		FOR col IN SELECT a.attname, pg_catalog.col_description(a.attrelid, a.attnum) AS text
			FROM pg_catalog.pg_attribute a
			JOIN pg_catalog.pg_type t ON t.typrelid = a.attrelid
			WHERE t.oid = 'mlint.usage_stats'::regtype AND a.attnum > 0
		LOOP
			EXECUTE pg_catalog.format('COMMENT ON COLUMN mlint.%I.%I IS %L',
				view, col.attname, col.text);
		END LOOP;
	END LOOP;
END
$$;

-- ---- prices ----

CREATE FUNCTION mlint.model_price_set(model_id text, prompt numeric,
	completion numeric, currency text DEFAULT 'USD', per int DEFAULT 1000000,
	valid_from timestamptz DEFAULT now(), model_version text DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_model_price_set';
COMMENT ON FUNCTION mlint.model_price_set(text, numeric, numeric, text, int, timestamptz, text) IS
	'Set what so many tokens of a model''s prompts and completions cost, from a time on; earlier prices are kept. It prices what is reported from now on; model_version null: any version that has no price of its own';

CREATE VIEW mlint.model_prices AS
SELECT p.model_id, NULLIF(p.model_version, '') AS model_version, p.currency,
	p.prompt, p.completion, p.per, p.valid_from,
	p.valid_from <= pg_catalog.clock_timestamp() AND NOT EXISTS (
		SELECT FROM mlint.usage_price n
		WHERE n.model_id = p.model_id AND n.model_version = p.model_version
			AND n.currency = p.currency
			AND n.valid_from <= pg_catalog.clock_timestamp()
			AND (n.valid_from, n.set_at) > (p.valid_from, p.set_at)) AS current,
	p.set_by, p.set_at
FROM mlint.usage_price p;
COMMENT ON VIEW mlint.model_prices IS 'Prices of models, past, present and future';
COMMENT ON COLUMN mlint.model_prices.model_id IS 'The model';
COMMENT ON COLUMN mlint.model_prices.model_version IS 'Its version; null: any that has no price of its own';
COMMENT ON COLUMN mlint.model_prices.currency IS 'The currency';
COMMENT ON COLUMN mlint.model_prices.prompt IS 'Price of per tokens of a prompt';
COMMENT ON COLUMN mlint.model_prices.completion IS 'Price of per tokens of a completion';
COMMENT ON COLUMN mlint.model_prices.per IS 'How many tokens that is for';
COMMENT ON COLUMN mlint.model_prices.valid_from IS 'From when on it holds, but never for what was reported before set_at';
COMMENT ON COLUMN mlint.model_prices.current IS 'Whether it is the one that holds now';
COMMENT ON COLUMN mlint.model_prices.set_by IS 'Who has set it';
COMMENT ON COLUMN mlint.model_prices.set_at IS 'When it was set';

-- ---- budgets ----

CREATE FUNCTION mlint.usage_scope("scope" "char", name text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE scope WHEN 'a' THEN 'all' WHEN 'm' THEN 'model:' || name
	WHEN 't' THEN 'tag:' || name ELSE 'session:' || name END;
COMMENT ON FUNCTION mlint.usage_scope("char", text) IS 'A budget''s scope as usage_budget_set() takes it';

CREATE FUNCTION mlint.usage_budget_set(scope text, tokens bigint DEFAULT NULL,
	money numeric DEFAULT NULL, currency text DEFAULT 'USD',
	per text DEFAULT NULL, action text DEFAULT 'event') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_usage_budget_set';
COMMENT ON FUNCTION mlint.usage_budget_set(text, bigint, numeric, text, text, text) IS
	'Set how many tokens, or how much money, may be spent by all, model:X, tag:X or session:X, per hour, day, week, month (in UTC; the default) or ever; replaces the one of the same scope and per. action event announces it; refuse also refuses prompts when it is spent';

CREATE FUNCTION mlint.usage_budget_drop(scope text, per text DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_usage_budget_drop';
COMMENT ON FUNCTION mlint.usage_budget_drop(text, text) IS
	'Remove the budget of a scope and per; per null: all of the scope';

CREATE FUNCTION mlint.usage_budget_check(session_id text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_usage_budget_check';
COMMENT ON FUNCTION mlint.usage_budget_check(text) IS
	'Raise ML013 if a budget with action refuse that the session falls under is spent';

CREATE FUNCTION mlint.usage_budget_decision(session_id text)
RETURNS mlint.rate_decision
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_usage_budget_decision';
COMMENT ON FUNCTION mlint.usage_budget_decision(text) IS
	'What budgets with action refuse say about a session, as a rate limit would, for rate_headers(): of the one that is spent, or has the least left; null if there is none';

-- Spent, left and percent of each budget at a time. What a session has spent
-- is kept by its number.
CREATE FUNCTION mlint.usage_budget_state(b mlint.usage_budget, at timestamptz,
	OUT begins timestamptz, OUT ends timestamptz, OUT tokens_spent bigint,
	OUT money_spent numeric, OUT percent numeric)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	subject text := b.name;
	stats mlint.usage_stats;
BEGIN
	SELECT p.begins, p.ends INTO begins, ends FROM mlint.usage_period(b.per, at) p;
	IF b.scope = 's' THEN
		SELECT s.id::text INTO subject FROM mlint.session s
		WHERE s.session_id = b.name;
	END IF;
	stats := mlint.usage_report(b.scope, subject, begins, ends);
	tokens_spent := coalesce(stats.total_tokens, 0);
	money_spent := coalesce((stats.cost->>b.currency)::numeric, 0);
	percent := greatest(tokens_spent * 100.0 / b.tokens,
		money_spent * 100.0 / b.money);
END
$$;
COMMENT ON FUNCTION mlint.usage_budget_state(mlint.usage_budget, timestamptz) IS 'How a budget stands in the period that a time is in';

CREATE FUNCTION mlint.usage_budget_states(
	OUT "scope" "char", OUT name text, OUT per text, OUT begins timestamptz,
	OUT ends timestamptz, OUT tokens_spent bigint, OUT money_spent numeric,
	OUT percent numeric)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_usage_budget_states';
COMMENT ON FUNCTION mlint.usage_budget_states() IS 'For mlint.usage_budgets: how each budget stands now';

CREATE VIEW mlint.usage_budgets AS
SELECT mlint.usage_scope(b.scope, b.name) AS scope, b.per, b.action, b.tokens,
	b.money, b.currency, s.tokens_spent,
	CASE WHEN b.money IS NOT NULL THEN s.money_spent END AS money_spent,
	CASE WHEN b.tokens IS NOT NULL
		THEN GREATEST(b.tokens - s.tokens_spent, 0) END AS tokens_left,
	CASE WHEN b.money IS NOT NULL
		THEN GREATEST(b.money - s.money_spent, 0) END AS money_left,
	pg_catalog.round(s.percent, 1) AS percent, s.percent >= 100 AS exceeded,
	s.begins AS period_start, s.ends AS period_end, b.set_by, b.set_at
FROM mlint.usage_budget b
JOIN mlint.usage_budget_states() s USING (scope, name, per);
COMMENT ON VIEW mlint.usage_budgets IS 'Budgets, and what is left of them';
COMMENT ON COLUMN mlint.usage_budgets.scope IS 'Whose spending counts: all, model:X, tag:X, session:X';
COMMENT ON COLUMN mlint.usage_budgets.per IS 'hour, day, week, month, or ever';
COMMENT ON COLUMN mlint.usage_budgets.action IS 'event: it is announced; refuse: prompts are refused as well';
COMMENT ON COLUMN mlint.usage_budgets.tokens IS 'How many tokens may be spent; null: any number';
COMMENT ON COLUMN mlint.usage_budgets.money IS 'How much money may be spent; null: any amount';
COMMENT ON COLUMN mlint.usage_budgets.currency IS 'Of the money';
COMMENT ON COLUMN mlint.usage_budgets.tokens_spent IS 'Tokens spent in the present period';
COMMENT ON COLUMN mlint.usage_budgets.money_spent IS 'Money spent in it; null if there is no limit on that';
COMMENT ON COLUMN mlint.usage_budgets.tokens_left IS 'Tokens that may still be spent; null if there is no limit on that';
COMMENT ON COLUMN mlint.usage_budgets.money_left IS 'Money that may still be spent; null if there is no limit on that';
COMMENT ON COLUMN mlint.usage_budgets.percent IS 'How much of it is spent; the larger one, of tokens and money';
COMMENT ON COLUMN mlint.usage_budgets.exceeded IS 'Whether it is spent';
COMMENT ON COLUMN mlint.usage_budgets.period_start IS 'When the present period began';
COMMENT ON COLUMN mlint.usage_budgets.period_end IS 'When it begins anew';
COMMENT ON COLUMN mlint.usage_budgets.set_by IS 'Who has set it';
COMMENT ON COLUMN mlint.usage_budgets.set_at IS 'When it was set';

-- In the fold's transaction: announce each budget that these hours and
-- subjects have used up by 80 % or all, once in a period.
CREATE FUNCTION mlint.usage_budget_announce(hours timestamptz[], touched text[])
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	n record;
BEGIN
	IF NOT EXISTS (SELECT FROM mlint.usage_budget) THEN
		RETURN;
	END IF;
	FOR n IN
		WITH due AS MATERIALIZED (
			SELECT DISTINCT b.scope, b.name, b.per, p.begins
			FROM mlint.usage_budget b
			LEFT JOIN mlint.session s ON b.scope = 's' AND s.session_id = b.name
			JOIN unnest(touched) t(subject)
				ON t.subject = b.scope::text || CASE b.scope WHEN 's' THEN s.id::text ELSE b.name END
			CROSS JOIN unnest(hours) h(hour)
			CROSS JOIN LATERAL mlint.usage_period(b.per, h.hour) p
			WHERE NOT EXISTS (SELECT FROM mlint.usage_notice a
				WHERE (a.scope, a.name, a.per, a.period, a.percent)
					= (b.scope, b.name, b.per, p.begins, 100))
		)
		SELECT b.*, s.*, l.percent AS level, l.type
		FROM due d
		JOIN mlint.usage_budget b USING (scope, name, per)
		CROSS JOIN LATERAL mlint.usage_budget_state(b,
			CASE d.per WHEN 'ever' THEN now() ELSE d.begins END) s
		JOIN (VALUES (80, 'usage.budget_warning'), (100, 'usage.budget_exceeded'))
			l(percent, type) ON s.percent >= l.percent
				AND (l.percent = 100 OR s.percent < 100)
	LOOP
		INSERT INTO mlint.usage_notice
		VALUES (n.scope, n.name, n.per, n.begins, n.level)
		ON CONFLICT DO NOTHING;
		CONTINUE WHEN NOT FOUND;
		PERFORM mlint.publish(n.type, jsonb_build_object(
			'scope', mlint.usage_scope(n.scope, n.name), 'per', n.per,
			'action', n.action, 'tokens', n.tokens, 'tokens_spent', n.tokens_spent,
			'money', n.money, 'money_spent', CASE WHEN n.money IS NOT NULL THEN n.money_spent END,
			'currency', n.currency, 'percent', round(n.percent, 1),
			'period_start', CASE WHEN isfinite(n.begins) THEN n.begins END,
			'period_end', CASE WHEN isfinite(n.ends) THEN n.ends END));
	END LOOP;
	DELETE FROM mlint.usage_notice
	WHERE period < now() - '100 days'::interval AND isfinite(period);
END
$$;
COMMENT ON FUNCTION mlint.usage_budget_announce(timestamptz[], text[]) IS 'The job usage_fold''s: publishes usage.budget_warning and usage.budget_exceeded';

REVOKE ALL ON FUNCTION mlint.usage_log_restored(), mlint.usage_rest("char", text),
	mlint.usage_track(text, bigint, bigint, text, double precision, jsonb),
	mlint.usage_log_open(), mlint.usage_seen_by_all(xid8),
	mlint.usage_log_pending(int), mlint.usage_period(text, timestamptz),
	mlint.usage_span(timestamptz, timestamptz),
	mlint.usage_report("char", text, timestamptz, timestamptz),
	mlint.usage_fold_step(), mlint.usage_log_turn(bigint),
	mlint.usage_fold_rest(boolean),
	mlint.session_usage(text),
	mlint.model_usage(text, timestamptz, timestamptz),
	mlint.model_price_set(text, numeric, numeric, text, int, timestamptz, text),
	mlint.usage_scope("char", text),
	mlint.usage_budget_set(text, bigint, numeric, text, text, text),
	mlint.usage_budget_drop(text, text), mlint.usage_budget_check(text),
	mlint.usage_budget_decision(text),
	mlint.usage_budget_state(mlint.usage_budget, timestamptz),
	mlint.usage_budget_states(),
	mlint.usage_budget_announce(timestamptz[], text[]) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.usage_fold_run(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.usage_track(text, bigint, bigint, text, double precision, jsonb),
	mlint.session_usage(text), mlint.model_usage(text, timestamptz, timestamptz),
	mlint.usage_budget_check(text), mlint.usage_budget_decision(text) TO mlint_user;
GRANT EXECUTE ON FUNCTION mlint.session_usage(text),
	mlint.model_usage(text, timestamptz, timestamptz),
	mlint.usage_rest("char", text), mlint.usage_scope("char", text),
	mlint.usage_budget_states() TO mlint_reader;
GRANT EXECUTE ON FUNCTION
	mlint.model_price_set(text, numeric, numeric, text, int, timestamptz, text),
	mlint.usage_budget_set(text, bigint, numeric, text, text, text),
	mlint.usage_budget_drop(text, text) TO mlint_admin;
GRANT SELECT ON mlint.usage_by_day, mlint.usage_by_tag, mlint.stat_models,
	mlint.stat_sessions, mlint.model_prices, mlint.usage_budgets TO mlint_reader;
