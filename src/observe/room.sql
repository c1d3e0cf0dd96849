-- observe: what is wrong, and every counter in the form that Prometheus reads.
--
-- What there is to look at each room says itself, in its observe.sql: rows of
-- the tables below. A check is a query for what is wrong: (level, why, remedy),
-- level 1 a warning, 2 critical; without rows all is well. A source of metrics
-- is a query whose columns are labels and values. They run as the owner, and
-- tell nothing that mlint_reader could not see: of secrets that are not
-- certificates' only how many. Each reads a bounded number of rows, by index,
-- whatever is in the log.

CREATE TABLE mlint.health_check (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	room text NOT NULL,
	name text NOT NULL UNIQUE,
	-- Whether there is anything to see on a standby.
	on_standby boolean NOT NULL,
	findings text NOT NULL
);
COMMENT ON TABLE mlint.health_check IS 'What mlint.health() looks at: a query for what is wrong';

CREATE TABLE mlint.metric_source (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	room text NOT NULL,
	name text NOT NULL UNIQUE,
	on_standby boolean NOT NULL,
	labels text[] NOT NULL,
	query text NOT NULL
);
COMMENT ON TABLE mlint.metric_source IS 'What mlint.metrics() reads: queries whose columns are labels and values';

-- A histogram's value is {"sum", "count", "buckets": [[upper bound, count up to
-- it], ...]}, a summary's {"sum", "count"}.
CREATE TABLE mlint.metric (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	source text NOT NULL REFERENCES mlint.metric_source (name),
	"column" text NOT NULL,
	name text NOT NULL UNIQUE CHECK (name ~ '^mlint_[a-z_]+$'),
	type text NOT NULL CHECK (type IN ('counter', 'gauge', 'histogram', 'summary')),
	help text NOT NULL,
	CHECK ((type = 'counter') = (name ~ '_total$'))
);
COMMENT ON TABLE mlint.metric IS 'What mlint.metrics() shows of its sources';

-- Nothing that is slow, waits for long or takes processes: a lock is an answer,
-- too. What is large is read by index whatever the statistics say.
CREATE FUNCTION mlint.health(OUT room text, OUT name text, OUT status text,
	OUT why text, OUT remedy text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE ROWS 30
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
SET enable_seqscan = off
SET enable_bitmapscan = off
SET max_parallel_workers_per_gather = 0
SET jit = off AS $$
DECLARE
	c mlint.health_check;
BEGIN
	FOR c IN SELECT * FROM mlint.health_check h ORDER BY h.id LOOP
		room := c.room;
		name := c.name;
		status := 'ok';
		why := NULL;
		remedy := NULL;
		BEGIN
			IF pg_is_in_recovery() AND NOT c.on_standby THEN
				why := 'not looked at on a standby';
			ELSE
				EXECUTE format('SELECT (''{ok,warning,critical}''::text[])[1 + coalesce(max(f.level), 0)],
						string_agg(left(f.why, 300), ''; '' ORDER BY f.rank) FILTER (WHERE f.rank <= 3)
							|| CASE WHEN count(*) > 3 THEN format(''; and %%s more'', count(*) - 3) ELSE '''' END,
						(array_agg(f.remedy ORDER BY f.rank))[1]
					FROM (SELECT f.*, row_number() OVER (ORDER BY f.level DESC, f.why) AS rank
						FROM (%s) f (level, why, remedy)) f', c.findings)
				INTO status, why, remedy;
			END IF;
		EXCEPTION WHEN OTHERS THEN
			status := 'critical';
			why := format('it could not be looked at: %s', SQLERRM);
			remedy := 'If something has the tables locked, look again; else the error is what is wrong.';
		END;
		RETURN NEXT;
		-- Without the library nothing else can be told.
		EXIT WHEN c.name = 'loaded' AND status <> 'ok';
	END LOOP;
END
$$;
COMMENT ON FUNCTION mlint.health() IS
	'A row for each thing that is looked at, over all rooms: ok, warning or critical, why, and what to do';

CREATE FUNCTION mlint.metric_label(name text, value text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN name || '="' || pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(
	coalesce(value, ''), E'\\', E'\\\\'), '"', E'\\"'), E'\n', E'\\n') || '"';
COMMENT ON FUNCTION mlint.metric_label(text, text) IS 'A label as Prometheus reads it';

-- The lines of one sample.
CREATE FUNCTION mlint.metric_sample(name text, type text, labels text, value jsonb)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE
		WHEN type IN ('counter', 'gauge') THEN format(E'%s{%s} %s\n', name, labels,
			CASE value WHEN 'true' THEN '1' WHEN 'false' THEN '0'
				WHEN '"Infinity"' THEN '+Inf' WHEN '"-Infinity"' THEN '-Inf'
				ELSE value #>> '{}' END)
		ELSE coalesce((SELECT string_agg(format(E'%s_bucket{%s,%s} %s\n', name, labels,
					mlint.metric_label('le', b.bucket ->> 0), b.bucket ->> 1), '' ORDER BY b.n)
				FROM jsonb_array_elements(value -> 'buckets') WITH ORDINALITY b (bucket, n)), '')
			|| CASE type WHEN 'histogram' THEN format(E'%s_bucket{%s,le="+Inf"} %s\n',
				name, labels, value ->> 'count') ELSE '' END
			|| format(E'%1$s_sum{%2$s} %3$s\n%1$s_count{%2$s} %4$s\n', name, labels,
				value ->> 'sum', value ->> 'count')
		END
$$;
COMMENT ON FUNCTION mlint.metric_sample(text, text, text, jsonb) IS 'One sample as Prometheus reads it; a histogram has several lines';

CREATE FUNCTION mlint.metrics() RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
SET enable_seqscan = off
SET enable_bitmapscan = off
SET max_parallel_workers_per_gather = 0
SET jit = off
SET extra_float_digits = 1 AS $$
DECLARE
	s mlint.metric_source;
	found jsonb;
	failed text[] := '{}';
	database text := mlint.metric_label('database', current_database());
	result text := '';
BEGIN
	FOR s IN SELECT * FROM mlint.metric_source m ORDER BY m.id LOOP
		CONTINUE WHEN pg_is_in_recovery() AND NOT s.on_standby;
		BEGIN
			EXECUTE format('SELECT jsonb_agg(to_jsonb(q)) FROM (%s) q', s.query) INTO found;
		EXCEPTION WHEN OTHERS THEN
			failed := failed || s.name;
			CONTINUE;
		END;
		result := result || coalesce((SELECT string_agg(family.lines, '' ORDER BY family.id)
			FROM (SELECT m.id, format(E'# HELP %1$s %2$s\n# TYPE %1$s %3$s\n', m.name,
					replace(replace(m.help, E'\\', E'\\\\'), E'\n', E'\\n'), m.type)
					|| string_agg(mlint.metric_sample(m.name, m.type, l.labels,
						r.row -> m."column"), '' ORDER BY r.n) AS lines
				FROM mlint.metric m
				JOIN jsonb_array_elements(found) WITH ORDINALITY r (row, n)
					ON r.row -> m."column" <> 'null'
				CROSS JOIN LATERAL (SELECT database || coalesce(string_agg(',' ||
						mlint.metric_label(k.label, r.row ->> k.label), '' ORDER BY k.n), '')
					FROM unnest(s.labels) WITH ORDINALITY k (label, n)) l (labels)
				WHERE m.source = s.name
				GROUP BY m.id, m.name, m.help, m.type) family), '');
	END LOOP;
	RETURN result || (SELECT E'# HELP mlint_metrics_failed Whether these metrics could not be read\n# TYPE mlint_metrics_failed gauge\n'
			|| string_agg(mlint.metric_sample('mlint_metrics_failed', 'gauge',
				database || ',' || mlint.metric_label('source', m.name),
				to_jsonb(m.name = ANY (failed))), '' ORDER BY m.id)
		FROM mlint.metric_source m);
END
$$;
COMMENT ON FUNCTION mlint.metrics() IS
	'All counters and gauges of this database in Prometheus''s text format';

REVOKE ALL ON FUNCTION mlint.health(), mlint.metric_label(text, text),
	mlint.metric_sample(text, text, text, jsonb), mlint.metrics() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.health(), mlint.metrics() TO mlint_reader;

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('observe', 'health', true, '{room,check}', $$
	SELECT h.room, h.name AS "check",
		CASE h.status WHEN 'ok' THEN 0 WHEN 'warning' THEN 1 ELSE 2 END AS status
	FROM mlint.health() h$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('health', 'status', 'mlint_health_status', 'gauge', 'What mlint.health() says: 0 ok, 1 warning, 2 critical');
