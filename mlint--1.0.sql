\echo Use "CREATE EXTENSION mlint" to load this file. \quit

-- common: roles, and the one HTTP client as a function.

-- CREATE EXTENSION takes a schema that is there already, whoever made it: what
-- its owner has put there would run as us.
DO $$
BEGIN
	IF (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'mlint')
		<> (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
	THEN
		RAISE EXCEPTION 'schema "mlint" exists already and belongs to another role'
			USING HINT = 'Look at what is in it, drop it, and run CREATE EXTENSION again.';
	END IF;
END
$$;

DO $$
DECLARE
	role text;
BEGIN
	FOREACH role IN ARRAY '{mlint_reader,mlint_user,mlint_admin}'::text[] LOOP
		IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role) THEN
			EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role);
		END IF;
	END LOOP;
END
$$;

-- The roles outlive the extension. What default privileges would give them on
-- everything here could not be told from what they are meant to have.
DO $$
BEGIN
	IF EXISTS (SELECT FROM pg_catalog.pg_default_acl d, pg_catalog.aclexplode(d.defaclacl) a
		WHERE d.defaclrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
			AND a.grantee IN (SELECT oid FROM pg_catalog.pg_roles
				WHERE rolname IN ('mlint_admin', 'mlint_user', 'mlint_reader')))
	THEN
		RAISE EXCEPTION 'default privileges of role "%" grant something to a role of mlint', current_user
			USING HINT = 'Take them back with ALTER DEFAULT PRIVILEGES ... REVOKE, and run CREATE EXTENSION again; \ddp in psql lists them.';
	END IF;
END
$$;

GRANT mlint_user, mlint_reader TO mlint_admin;
GRANT mlint_reader TO pg_monitor;
GRANT USAGE ON SCHEMA mlint TO mlint_admin, mlint_user, mlint_reader;

-- A role in a row of ours: its number here, its name in a dump, so that
-- ALTER ROLE RENAME needs nothing and no number is taken to another cluster.
CREATE TYPE mlint.role_id;
CREATE FUNCTION mlint.role_id_in(cstring) RETURNS mlint.role_id
	LANGUAGE c STABLE STRICT PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'mlint_role_id_in';
COMMENT ON FUNCTION mlint.role_id_in(cstring) IS
	'The role of this name; none, with a warning, when there is no such role';
CREATE FUNCTION mlint.role_id_out(mlint.role_id) RETURNS cstring
	LANGUAGE c STABLE STRICT PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'mlint_role_id_out';
COMMENT ON FUNCTION mlint.role_id_out(mlint.role_id) IS
	'The name of a role; empty when it is gone';
REVOKE ALL ON FUNCTION mlint.role_id_in(cstring), mlint.role_id_out(mlint.role_id)
	FROM PUBLIC;
CREATE TYPE mlint.role_id (INPUT = mlint.role_id_in, OUTPUT = mlint.role_id_out,
	LIKE = oid);
COMMENT ON TYPE mlint.role_id IS 'A role: kept as its oid, written as its name';
REVOKE ALL ON TYPE mlint.role_id FROM PUBLIC;
CREATE CAST (mlint.role_id AS oid) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (oid AS mlint.role_id) WITHOUT FUNCTION AS ASSIGNMENT;

CREATE TABLE mlint.generation (
	room text PRIMARY KEY,
	generation bigint NOT NULL
);

COMMENT ON TABLE mlint.generation IS
	'A number for each room whose rows workers keep in memory; it grows with every change of them';

INSERT INTO mlint.generation VALUES ('destinations', 1);

CREATE FUNCTION mlint.http(
	method text,
	url text,
	headers jsonb DEFAULT '{}',
	body text DEFAULT NULL,
	timeout interval DEFAULT '30 s',
	OUT status int,
	OUT headers jsonb,
	OUT body text,
	OUT elapsed interval)
RETURNS record
AS 'MODULE_PATHNAME', 'mlint_http'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 10000;

COMMENT ON FUNCTION mlint.http(text, text, jsonb, text, interval) IS
'Send one HTTP request and wait for the response; any status is a result, no response is an error';
REVOKE ALL ON FUNCTION mlint.http(text, text, jsonb, text, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.http(text, text, jsonb, text, interval) TO mlint_admin;

-- Default privileges of whoever creates the extension must not open what is
-- private: take back what anybody but the owner was given of tables, and
-- anybody but the owner and our roles of the rest; of views nobody may more
-- than read. Types are PUBLIC's unless that is taken back, too.
CREATE FUNCTION mlint.privileges_close() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee,
			a.privilege_type
		FROM pg_namespace n, aclexplode(n.nspacl) a
		WHERE n.nspname = 'mlint' AND a.grantee <> n.nspowner
			AND NOT (a.privilege_type = 'USAGE' AND a.grantee IN (SELECT oid FROM pg_roles
				WHERE rolname IN ('mlint_admin', 'mlint_user', 'mlint_reader')))
	LOOP
		EXECUTE format('REVOKE %s ON SCHEMA mlint FROM %s', r.privilege_type, r.grantee);
	END LOOP;
	FOR r IN SELECT c.oid::regclass AS object, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee,
			CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, a.privilege_type AS privilege
		FROM pg_class c, aclexplode(c.relacl) a
		WHERE c.relnamespace = 'mlint'::regnamespace
			AND c.relkind IN ('r', 'p', 'v', 'S')
			AND a.grantee <> c.relowner
			AND NOT (c.relkind = 'v' AND a.privilege_type = 'SELECT'
				AND a.grantee::regrole::text IN
					('mlint_admin', 'mlint_user', 'mlint_reader'))
	LOOP
		EXECUTE format('REVOKE %s ON %s %s FROM %s', r.privilege, r.kind, r.object, r.grantee);
	END LOOP;
	FOR r IN SELECT p.oid::regprocedure AS object, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
		FROM pg_proc p, aclexplode(p.proacl) a
		WHERE p.pronamespace = 'mlint'::regnamespace
			AND a.grantee <> p.proowner
			AND a.grantee::regrole::text NOT IN
				('mlint_admin', 'mlint_user', 'mlint_reader')
	LOOP
		EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s', r.object, r.grantee);
	END LOOP;
	FOR r IN SELECT t.oid::regtype AS object, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
		FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid,
			aclexplode(coalesce(t.typacl, acldefault('T', t.typowner))) a
		WHERE t.typnamespace = 'mlint'::regnamespace AND t.typelem = 0
			AND a.grantee <> t.typowner
			AND NOT (coalesce(c.relkind IN ('c', 'v'), true) AND a.grantee::regrole::text IN
				('mlint_admin', 'mlint_user', 'mlint_reader'))
	LOOP
		EXECUTE format('REVOKE ALL ON TYPE %s FROM %s', r.object, r.grantee);
	END LOOP;
END
$$;
COMMENT ON FUNCTION mlint.privileges_close() IS
	'Takes back what default privileges gave to others than the owner and mlint''s roles';
REVOKE ALL ON FUNCTION mlint.privileges_close() FROM PUBLIC;

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
-- worker: jobs, and what the processes are doing.

CREATE TABLE mlint.job (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL UNIQUE,
	command text NOT NULL,
	every interval NOT NULL CHECK (every > '0'),
	enabled boolean NOT NULL DEFAULT true,
	next_run_at timestamptz NOT NULL DEFAULT now(),
	started_at timestamptz,
	failures int NOT NULL DEFAULT 0
);
COMMENT ON TABLE mlint.job IS 'Periodic work, run by the scheduler in processes of its own';

CREATE TABLE mlint.job_run (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id int NOT NULL REFERENCES mlint.job ON DELETE CASCADE,
	started_at timestamptz NOT NULL,
	finished_at timestamptz NOT NULL,
	error text
);
-- The last runs of a job, for mlint.jobs and for forgetting older ones.
CREATE INDEX job_run_job ON mlint.job_run (job_id, id);
COMMENT ON TABLE mlint.job_run IS 'The last hundred runs of each job';

-- Not a column of mlint.job: whoever asks for a run must not lock the row that
-- the scheduler updates. A request goes when a run begins that sees what was
-- committed with it, so none is lost.
CREATE TABLE mlint.job_request (
	job_id int NOT NULL,
	at timestamptz NOT NULL DEFAULT '-infinity'
);
-- The earliest of a job, and all of it.
CREATE INDEX job_request_job ON mlint.job_request (job_id, at);
-- It has no key; a publication FOR ALL TABLES must not stop us all the same.
ALTER TABLE mlint.job_request REPLICA IDENTITY FULL;
COMMENT ON TABLE mlint.job_request IS 'Jobs to be run at once, or at a time before their interval is over';

-- One run has begun: count it as a failure until it says otherwise, so that a
-- job whose process dies is put off like one that fails.
CREATE FUNCTION mlint.job_begin(job_id int) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
	DELETE FROM mlint.job_request r WHERE r.job_id = job_begin.job_id;
	UPDATE mlint.job
	SET started_at = pg_catalog.clock_timestamp(),
		failures = failures + 1,
		next_run_at = pg_catalog.clock_timestamp() +
			least(every, '1 second'::interval * (2 ^ least(failures, 12)))
	WHERE id = job_id
$$;
COMMENT ON FUNCTION mlint.job_begin(int) IS 'The scheduler''s: marks a run as begun';

-- It found no process to run in: due again, with what was asked for, and as it
-- was before it had begun.
CREATE FUNCTION mlint.job_begin_again(job_id int) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
	UPDATE mlint.job
	SET started_at = (SELECT r.started_at FROM mlint.job_run r
			WHERE r.job_id = job_begin_again.job_id ORDER BY r.id DESC LIMIT 1),
		failures = greatest(failures - 1, 0),
		next_run_at = pg_catalog.clock_timestamp() + '1 second'
	WHERE id = job_id
$$;
COMMENT ON FUNCTION mlint.job_begin_again(int) IS 'The scheduler''s: a run that was marked as begun did not take place';

CREATE FUNCTION mlint.job_end(job_id int, message text) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
	INSERT INTO mlint.job_run (job_id, started_at, finished_at, error)
	SELECT id, started_at, pg_catalog.clock_timestamp(), message
	FROM mlint.job WHERE id = job_id;
	DELETE FROM mlint.job_run r
	WHERE r.job_id = job_end.job_id
		AND r.id <= (SELECT o.id FROM mlint.job_run o
			WHERE o.job_id = job_end.job_id ORDER BY o.id DESC OFFSET 100 LIMIT 1);
	UPDATE mlint.job SET failures = 0, next_run_at = started_at + every
	WHERE id = job_id AND message IS NULL
$$;
COMMENT ON FUNCTION mlint.job_end(int, text) IS 'The job worker''s: records a run and its error, if any';

CREATE FUNCTION mlint.job_run_now(name text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_job_run_now';
COMMENT ON FUNCTION mlint.job_run_now(text) IS 'Makes a job due at once, when the transaction commits';

-- Whatever makes the rows, a dump that is restored too, whose other tables may
-- still be on their way; and which has tables without any.
CREATE FUNCTION mlint.job_enable() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE mlint.job
	SET enabled = true, next_run_at = clock_timestamp() + '1 hour'
	WHERE name = TG_ARGV[0] AND NOT enabled AND EXISTS (SELECT FROM added);
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION mlint.job_enable() IS 'Trigger: from now on there are rows for a job to work on';

CREATE FUNCTION mlint.worker_slots(
	OUT pid int, OUT kind text, OUT database oid, OUT lane int,
	OUT state text, OUT started_at timestamptz, OUT active_at timestamptz,
	OUT wakeups bigint, OUT batches bigint, OUT events bigint,
	OUT deliveries bigint, OUT in_flight int, OUT memory bigint)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_worker_slots';
COMMENT ON FUNCTION mlint.worker_slots() IS 'The processes of mlint in the whole cluster';

CREATE VIEW mlint.stat_workers AS
SELECT w.pid, w.kind, d.datname AS database, w.lane, w.state, w.started_at,
	w.active_at, w.wakeups, w.batches, w.events, w.deliveries, w.in_flight,
	w.memory
FROM mlint.worker_slots() w
LEFT JOIN pg_catalog.pg_database d ON d.oid = w.database;
COMMENT ON VIEW mlint.stat_workers IS 'The processes of mlint, in all databases of the cluster';
COMMENT ON COLUMN mlint.stat_workers.pid IS 'Process id, as in pg_stat_activity';
COMMENT ON COLUMN mlint.stat_workers.kind IS 'launcher, scheduler, auditor, dispatcher, job or gateway';
COMMENT ON COLUMN mlint.stat_workers.database IS 'Database that the process works in; null for the launcher and the gateway';
COMMENT ON COLUMN mlint.stat_workers.lane IS 'Dispatcher: its share of the destinations, 0 for those that run SQL; job: the job''s id';
COMMENT ON COLUMN mlint.stat_workers.state IS 'starting or running';
COMMENT ON COLUMN mlint.stat_workers.started_at IS 'When the process was started';
COMMENT ON COLUMN mlint.stat_workers.active_at IS 'When it last had work';
COMMENT ON COLUMN mlint.stat_workers.wakeups IS 'How often it woke up, work or not';
COMMENT ON COLUMN mlint.stat_workers.batches IS 'Batches that a dispatcher or an auditor committed';
COMMENT ON COLUMN mlint.stat_workers.events IS 'Events that a dispatcher read from the log; entries that an auditor wrote; requests that the gateway answered';
COMMENT ON COLUMN mlint.stat_workers.deliveries IS 'Attempts that a dispatcher ended';
COMMENT ON COLUMN mlint.stat_workers.in_flight IS 'Attempts under way; the gateway''s connections';
COMMENT ON COLUMN mlint.stat_workers.memory IS 'Bytes that the process has allocated in its memory contexts';

CREATE VIEW mlint.jobs AS
SELECT j.name, j.every, j.enabled,
	EXISTS (SELECT FROM mlint.worker_slots() w
		WHERE w.kind = 'job' AND w.lane = j.id
			AND w.database = (SELECT oid FROM pg_catalog.pg_database
				WHERE datname = pg_catalog.current_database())) AS running,
	j.next_run_at, r.started_at AS last_started_at,
	r.finished_at AS last_finished_at, r.error AS last_error, j.failures
FROM mlint.job j
LEFT JOIN LATERAL (SELECT * FROM mlint.job_run r WHERE r.job_id = j.id
	ORDER BY r.id DESC LIMIT 1) r ON true;
COMMENT ON VIEW mlint.jobs IS 'Periodic work: when it runs, and how the last run went';
COMMENT ON COLUMN mlint.jobs.name IS 'Name of the job';
COMMENT ON COLUMN mlint.jobs.every IS 'Time from one start to the next';
COMMENT ON COLUMN mlint.jobs.enabled IS 'Whether the scheduler runs it';
COMMENT ON COLUMN mlint.jobs.running IS 'Whether it is running now';
COMMENT ON COLUMN mlint.jobs.next_run_at IS 'When it is due';
COMMENT ON COLUMN mlint.jobs.last_started_at IS 'When its last finished run began';
COMMENT ON COLUMN mlint.jobs.last_finished_at IS 'When its last finished run ended';
COMMENT ON COLUMN mlint.jobs.last_error IS 'Why that run failed; null if it did not';
COMMENT ON COLUMN mlint.jobs.failures IS 'Runs in a row that failed or died; the next is put off accordingly';

CREATE VIEW mlint.job_runs AS
SELECT r.id, j.name, r.started_at, r.finished_at, r.error
FROM mlint.job_run r JOIN mlint.job j ON j.id = r.job_id;
COMMENT ON VIEW mlint.job_runs IS 'The last hundred runs of each job';
COMMENT ON COLUMN mlint.job_runs.id IS 'Number of the run';
COMMENT ON COLUMN mlint.job_runs.name IS 'Name of the job';
COMMENT ON COLUMN mlint.job_runs.started_at IS 'When it began';
COMMENT ON COLUMN mlint.job_runs.finished_at IS 'When it ended';
COMMENT ON COLUMN mlint.job_runs.error IS 'Why it failed; null if it did not';

-- ---- restoring a dump ----

-- See restore.c. A row while rows are restored and not settled; problem: why
-- they cannot be.
CREATE TABLE mlint.restore (
	began_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	copied boolean NOT NULL,
	server_started_at timestamptz NOT NULL DEFAULT pg_catalog.pg_postmaster_start_time(),
	problem text
);
ALTER TABLE mlint.restore REPLICA IDENTITY FULL;
COMMENT ON TABLE mlint.restore IS 'That rows of a dump are being restored, or were and are not complete';

-- Empty; what pg_dump finds in it is what else it has found.
CREATE TABLE mlint.dump (
	name text NOT NULL,
	rows bigint NOT NULL
);
ALTER TABLE mlint.dump REPLICA IDENTITY FULL;
COMMENT ON TABLE mlint.dump IS 'Of the dump that is being restored: how many rows its tables have, and the number of the last event';

CREATE FUNCTION mlint.dump_rows() RETURNS SETOF mlint.dump
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t record;
BEGIN
	FOR t IN SELECT format('mlint.%I', c.relname) AS name, u.condition
		FROM pg_extension e, unnest(e.extconfig, e.extcondition) u (oid, condition)
		JOIN pg_class c ON c.oid = u.oid
		WHERE e.extname = 'mlint' AND c.relkind = 'r' AND c.relname <> 'dump'
		ORDER BY c.relname
	LOOP
		RETURN QUERY EXECUTE format(
			'SELECT %L, count(*) FROM (SELECT * FROM %s %s) r', t.name, t.name,
			t.condition);
	END LOOP;
	RETURN QUERY SELECT 'mlint.event_id', s.last_value FROM mlint.event_id s;
END
$$;
COMMENT ON FUNCTION mlint.dump_rows() IS 'How many rows pg_dump takes along of each table, so that a restore can tell when it is complete';
SELECT pg_catalog.pg_extension_config_dump('mlint.dump',
	'WHERE false UNION ALL SELECT * FROM mlint.dump_rows()');

CREATE FUNCTION mlint.restore_fence() RETURNS trigger
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'mlint_restore_fence';
COMMENT ON FUNCTION mlint.restore_fence() IS 'Trigger: keeps the workers away while a session restores rows of a dump';

-- What lacks of a dump; null: nothing.
CREATE FUNCTION mlint.restore_lacks() RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	d mlint.dump;
	n bigint;
	lacks text[];
BEGIN
	IF NOT EXISTS (SELECT FROM mlint.dump) THEN
		IF EXISTS (SELECT FROM mlint.restore r WHERE r.copied
			OR r.server_started_at <> pg_postmaster_start_time())
		THEN
			RETURN 'mlint.dump, which tells what else there is, was not restored';
		END IF;
		RETURN NULL;
	END IF;
	FOR d IN SELECT * FROM mlint.dump WHERE name <> 'mlint.event_id' AND rows > 0
		ORDER BY name
	LOOP
		IF to_regclass(d.name) IS NULL THEN
			lacks := lacks || format('%s, of which it has %s rows, is no table of this version', d.name, d.rows);
			CONTINUE;
		END IF;
		EXECUTE format('SELECT count(*) FROM %s', d.name::regclass) INTO n;
		IF n < d.rows THEN
			lacks := lacks || format('%s has %s of %s rows', d.name, n, d.rows);
		END IF;
	END LOOP;
	RETURN array_to_string(lacks, '; ');
END
$$;
COMMENT ON FUNCTION mlint.restore_lacks() IS 'Which rows of the dump that was restored are not there; null: all are';

-- Nobody restores any more: put everything in its place, and let the workers
-- go on. Why not, if not; again: it may be otherwise soon.
CREATE FUNCTION mlint.restore_settle(accept boolean, OUT why text, OUT again boolean)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	before text;
BEGIN
	again := false;
	SELECT r.problem INTO before FROM mlint.restore r
	ORDER BY r.began_at LIMIT 1;
	IF NOT FOUND THEN
		RETURN;
	END IF;
	IF NOT accept THEN
		why := mlint.restore_lacks();
	END IF;
	IF why IS NULL THEN
		BEGIN
			PERFORM mlint.event_settle();
			DELETE FROM mlint.dump;
			DELETE FROM mlint.restore;
			RAISE LOG 'mlint: what was restored is complete, the workers go on';
		EXCEPTION WHEN OTHERS THEN
			why := SQLERRM;
			again := true;
		END;
	END IF;
	IF why IS DISTINCT FROM before AND why IS NOT NULL THEN
		UPDATE mlint.restore SET problem = why;
		RAISE LOG 'mlint: what was restored is not complete, and the workers do nothing: %', why
			USING HINT = 'Restore the whole dump into a new database; or SELECT mlint.restore_accept() if what is there is what is wanted.';
	END IF;
END
$$;
COMMENT ON FUNCTION mlint.restore_settle(boolean) IS 'The scheduler''s: has the workers go on when all that a dump had is there; returns why not';

CREATE FUNCTION mlint.restore_accept() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_restore_accept';
COMMENT ON FUNCTION mlint.restore_accept() IS
'Has the workers go on with what is there, after a restore that lacks rows of the dump';

CREATE VIEW mlint.restores AS
SELECT r.began_at, l.pids, r.problem
FROM (SELECT min(began_at) AS began_at, min(problem) AS problem
	FROM mlint.restore) r
CROSS JOIN (SELECT coalesce(array_agg(l.pid ORDER BY l.pid), '{}') AS pids
	FROM pg_catalog.pg_locks l
	WHERE l.locktype = 'advisory' AND l.objsubid = 19788 AND l.objid = 1001
		AND l.mode = 'RowExclusiveLock' AND l.granted
		AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
			WHERE d.datname = pg_catalog.current_database())) l
WHERE r.began_at IS NOT NULL OR l.pids <> '{}';
COMMENT ON VIEW mlint.restores IS 'A row while a dump is being restored, or is not complete: the workers do nothing';
COMMENT ON COLUMN mlint.restores.began_at IS 'When its first rows came; null: they have not been committed';
COMMENT ON COLUMN mlint.restores.pids IS 'Sessions that restore';
COMMENT ON COLUMN mlint.restores.problem IS 'When they have ended: which rows of the dump are not there';

REVOKE ALL ON FUNCTION mlint.job_begin(int), mlint.job_begin_again(int), mlint.job_end(int, text),
	mlint.job_run_now(text), mlint.job_enable(), mlint.worker_slots(),
	mlint.dump_rows(), mlint.restore_fence(), mlint.restore_lacks(),
	mlint.restore_settle(boolean), mlint.restore_accept() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.job_run_now(text), mlint.restore_accept()
TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.worker_slots(), mlint.dump_rows() TO mlint_reader;
GRANT SELECT ON mlint.stat_workers, mlint.jobs, mlint.job_runs, mlint.restores
TO mlint_reader;

-- worker, observed: whether the processes are there, and jobs run.

-- A job that is switched off, for checks of rooms that need it.
CREATE FUNCTION mlint.job_off(job text, OUT level int, OUT why text, OUT remedy text)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT 2, format('the job %s is switched off, or gone', job),
		'A superuser switches it on: UPDATE mlint.job SET enabled = true WHERE name = ...'
	WHERE NOT EXISTS (SELECT FROM mlint.job j WHERE j.name = job AND j.enabled)
$$;
COMMENT ON FUNCTION mlint.job_off(text) IS 'For checks of mlint.health(): a finding if the job is not enabled';
REVOKE ALL ON FUNCTION mlint.job_off(text) FROM PUBLIC;

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('worker', 'loaded', true, $$
	SELECT 2, 'mlint is not loaded: nothing is delivered, renewed or archived, and no function works',
		'Add mlint to shared_preload_libraries, and restart the server.'
	WHERE NOT EXISTS (SELECT FROM pg_settings WHERE name = 'mlint.dispatchers')$$),

('worker', 'workers', false, $$
	WITH wanted (kind, lane) AS (
		VALUES ('launcher', NULL::int), ('scheduler', NULL), ('auditor', NULL)
		UNION ALL
		SELECT 'dispatcher', n FROM generate_series(1, current_setting('mlint.dispatchers')::int) n
		UNION ALL
		SELECT 'dispatcher', 0 WHERE EXISTS (SELECT FROM mlint.log_cursor WHERE lane = 0)
		UNION ALL
		SELECT 'gateway', NULL WHERE current_setting('mlint.gateway_listen') <> ''
	)
	SELECT 2, format('there is no %s%s', w.kind, ' for lane ' || w.lane),
		'It is started again within a minute; if not, the server''s log says why: perhaps max_worker_processes are used up.'
	FROM wanted w
	WHERE NOT EXISTS (SELECT FROM mlint.worker_slots() s
		WHERE s.kind = w.kind AND s.state = 'running'
			AND (w.lane IS NULL OR s.lane = w.lane)
			AND (s.database IS NULL OR s.database = (SELECT d.oid FROM pg_database d
				WHERE d.datname = current_database())))
	UNION ALL
	SELECT 2, 'gateway: ' || a.query,
		'The server''s log says why; it goes on trying.'
	FROM pg_stat_activity a
	WHERE a.backend_type = 'mlint gateway' AND a.query LIKE '%cannot listen at%'$$),

-- With every worker that mlint may start, and those that others have now,
-- without parallel ones, which come and go.
('worker', 'worker_processes', false, $$
	WITH place AS (
		SELECT current_setting('max_worker_processes')::int AS all,
			(SELECT count(*) FROM mlint.worker_slots()) AS ours,
			count(*) AS taken,
			count(*) FILTER (WHERE backend_type !~ '^(mlint |parallel worker)') AS others,
			(SELECT 1 + (current_setting('mlint.gateway_listen') <> '')::int
					+ count(*) FILTER (WHERE kind IN ('scheduler', 'auditor', 'dispatcher'))
					+ count(*) FILTER (WHERE kind = 'scheduler') * current_setting('mlint.job_workers')::int
				FROM mlint.worker_slots()) AS wanted
		FROM pg_stat_activity
		WHERE backend_type NOT IN ('client backend', 'autovacuum launcher',
			'autovacuum worker', 'background writer', 'checkpointer', 'walwriter',
			'walsender', 'walreceiver', 'startup', 'archiver', 'logger',
			'standalone backend', 'walsummarizer', 'slotsync worker', 'io worker')
	)
	SELECT 1, format('mlint may need %s worker processes, others have %s, and max_worker_processes is %s',
			wanted, others, "all"),
		'Raise max_worker_processes, and restart the server; or lower mlint.job_workers.'
	FROM place WHERE wanted + others > "all"
	UNION ALL
	SELECT 1, format('all of max_worker_processes (%s) are taken', "all"),
		'Jobs wait meanwhile. If it lasts, raise max_worker_processes, and restart the server.'
	FROM place WHERE taken >= "all"$$),

('worker', 'restore', false, $$
	SELECT 2, 'what was restored is not complete, and the workers do nothing: ' || r.problem,
		'Restore the whole dump into a new database; or SELECT mlint.restore_accept() if what is there is what is wanted.'
	FROM mlint.restores r WHERE r.pids = '{}' AND r.problem IS NOT NULL
	UNION ALL
	SELECT 1, format('rows of a dump are being restored by process %s, and the workers do nothing',
			array_to_string(r.pids, ', ')),
		'They go on when these sessions have ended.'
	FROM mlint.restores r WHERE r.pids <> '{}'$$),

-- What began last is the job's row, what ended last its newest run.
('worker', 'jobs', false, $$
	WITH job AS (
		SELECT j.name, j.enabled, j.every, j.started_at, clock_timestamp() AS now,
			least(j.next_run_at, (SELECT min(q.at) FROM mlint.job_request q
				WHERE q.job_id = j.id AND q.at > '-infinity')) AS due_at,
			r.error, coalesce(r.started_at = j.started_at, j.started_at IS NULL) AS ended,
			j.failures - (r.started_at IS DISTINCT FROM j.started_at)::int AS failures,
			EXISTS (SELECT FROM mlint.worker_slots() w
				WHERE w.kind = 'job' AND w.lane = j.id AND w.database = (SELECT d.oid
					FROM pg_database d WHERE d.datname = current_database())) AS running
		FROM mlint.job j
		LEFT JOIN LATERAL (SELECT * FROM mlint.job_run r WHERE r.job_id = j.id
			ORDER BY r.id DESC LIMIT 1) r ON true
	)
	SELECT CASE WHEN failures >= 10 THEN 2 ELSE 1 END,
		format('job %s has failed %s in a row: %s', name,
			CASE failures WHEN 1 THEN 'once' ELSE failures || ' times' END,
			coalesce(error, 'its process died')),
		'mlint.job_runs has the errors; put right what they name. It is tried again by itself, or at once by mlint.job_run_now().'
	FROM job WHERE failures > 0 AND enabled
	UNION ALL
	SELECT 1, format('the process of job %s died', name),
		'The server''s log says why; the job is tried again by itself.'
	FROM job WHERE enabled AND NOT ended AND NOT running AND failures = 0
		AND started_at < now - '1 minute'::interval
	UNION ALL
	SELECT CASE WHEN due_at < now - '1 hour'::interval THEN 2 ELSE 1 END,
		format('job %s is due since %s, and does not run', name, to_char(due_at, 'YYYY-MM-DD HH24:MI')),
		'Is there a scheduler in mlint.stat_workers, and are fewer jobs running than mlint.job_workers?'
	FROM job WHERE enabled AND NOT running AND due_at < now - '5 minutes'::interval
	UNION ALL
	SELECT 1, format('job %s runs since %s', name, to_char(started_at, 'YYYY-MM-DD HH24:MI')),
		'pg_stat_activity shows what it waits for; pg_terminate_backend() ends it, and it is tried again.'
	FROM job WHERE running AND NOT ended
		AND started_at < now - greatest('6 hours'::interval, 10 * every)$$),

('worker', 'settings', true, $$
	SELECT 1, format('%s was changed, and takes effect with a restart', name),
		'Restart the server.'
	FROM pg_settings
	WHERE pending_restart AND (name LIKE 'mlint.%'
		OR name IN ('shared_preload_libraries', 'max_worker_processes'))
	UNION ALL
	-- Not what it says, nor where: some are for superusers to see.
	SELECT 1, format('%s cannot be what the file says: %s', f.name, f.error),
		'Correct it, and reload the settings: pg_file_settings has the file and line, the server''s log what it may be.'
	FROM pg_file_settings f
	WHERE f.name LIKE 'mlint.%' AND f.error IS NOT NULL
		AND NOT EXISTS (SELECT FROM pg_settings s WHERE s.name = f.name AND s.pending_restart)
	UNION ALL
	SELECT 1, 'mlint.master_key_file is set, and is not used: mlint.master_key_command is set, too',
		'Take back the one that is not meant.'
	WHERE current_setting('mlint.master_key_command') <> ''
		AND current_setting('mlint.master_key_file') <> ''
	UNION ALL
	SELECT 1, format('mlint.event_max_bytes is %s: events of mlint''s own may not fit',
			current_setting('mlint.event_max_bytes')),
		'Let it be 16kB or more.'
	FROM pg_settings WHERE name = 'mlint.event_max_bytes'
		AND setting::bigint < 16384$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('worker', 'workers', true, '{kind}', $$
	SELECT k.kind, count(s.pid) AS running, coalesce(sum(s.memory), 0) AS memory,
		coalesce(sum(s.in_flight), 0) AS in_flight
	FROM (VALUES ('launcher'), ('scheduler'), ('auditor'), ('dispatcher'), ('job'),
		('gateway')) k (kind)
	LEFT JOIN mlint.worker_slots() s ON s.kind = k.kind
		AND (s.database IS NULL OR s.database = (SELECT d.oid FROM pg_database d
			WHERE d.datname = current_database()))
	GROUP BY k.kind ORDER BY k.kind$$),
('worker', 'dispatchers', false, '{lane}', $$
	SELECT s.lane, s.events, s.batches, s.deliveries
	FROM mlint.worker_slots() s
	WHERE s.kind = 'dispatcher' AND s.pid IS NOT NULL
		AND s.database = (SELECT d.oid FROM pg_database d
			WHERE d.datname = current_database())
	ORDER BY s.lane$$),
('worker', 'gateway', false, '{}', $$
	SELECT s.events FROM mlint.worker_slots() s WHERE s.kind = 'gateway' LIMIT 1$$),
('worker', 'jobs', false, '{job}', $$
	SELECT j.name AS job, j.enabled, w.lane IS NOT NULL AS running, j.failures,
		r.seconds, date_part('epoch', r.success_at) AS success_at,
		CASE WHEN j.enabled AND w.lane IS NULL THEN greatest(0,
			date_part('epoch', clock_timestamp() - j.next_run_at)) ELSE 0 END AS late
	FROM mlint.job j
	LEFT JOIN mlint.worker_slots() w ON w.kind = 'job' AND w.lane = j.id
		AND w.database = (SELECT d.oid FROM pg_database d
			WHERE d.datname = current_database())
	LEFT JOIN LATERAL (SELECT max(r.finished_at) FILTER (WHERE r.error IS NULL) AS success_at,
			(array_agg(date_part('epoch', r.finished_at - r.started_at) ORDER BY r.id DESC))[1] AS seconds
		FROM mlint.job_run r WHERE r.job_id = j.id) r ON true
	ORDER BY j.name$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('workers', 'running', 'mlint_workers', 'gauge', 'Processes of mlint, of this database or of the whole server'),
('workers', 'memory', 'mlint_worker_memory_bytes', 'gauge', 'What they have allocated in their memory contexts'),
('workers', 'in_flight', 'mlint_worker_in_flight', 'gauge', 'Attempts that dispatchers have under way; connections of the gateway'),
('dispatchers', 'events', 'mlint_dispatcher_events_total', 'counter', 'Events that the dispatcher of a lane has read, since it started'),
('dispatchers', 'batches', 'mlint_dispatcher_batches_total', 'counter', 'Batches that it has committed'),
('dispatchers', 'deliveries', 'mlint_dispatcher_attempts_total', 'counter', 'Attempts that it has ended'),
('gateway', 'events', 'mlint_gateway_requests_total', 'counter', 'Requests that the gateway has answered, since it started'),
('jobs', 'enabled', 'mlint_job_enabled', 'gauge', 'Whether the scheduler runs the job'),
('jobs', 'running', 'mlint_job_running', 'gauge', 'Whether it is running now'),
('jobs', 'failures', 'mlint_job_failures', 'gauge', 'Runs in a row that failed or died; one that is under way counts'),
('jobs', 'seconds', 'mlint_job_last_duration_seconds', 'gauge', 'How long the last run took'),
('jobs', 'success_at', 'mlint_job_last_success_timestamp_seconds', 'gauge', 'When a run last ended without an error'),
('jobs', 'late', 'mlint_job_late_seconds', 'gauge', 'For how long it has been due');

-- delivery: the event log, destinations, outcomes.

-- The log is cut into segments, each a partition of mlint.event and one of
-- mlint.delivery. Publishers write to the newest; a job begins a new one as
-- time goes by and drops whole segments that are finished and old. The token
-- makes event ids unique in the world: webhook-id is evt_<token><life><oid of
-- the database>_<id>.
CREATE TABLE mlint.segment (
	segment int PRIMARY KEY,
	token text NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	closed_at timestamptz
);
COMMENT ON TABLE mlint.segment IS 'Stretches of the event log, dropped as a whole';

CREATE SEQUENCE mlint.event_id AS bigint;

-- life stands for the run of the server that took the event. A standby that is
-- promoted behind its primary, and a backup that is restored, give ids again
-- that receivers have seen; the life sets these events apart.
CREATE TABLE mlint.event (
	id bigint NOT NULL,
	segment int NOT NULL,
	life int NOT NULL,
	xid xid8 NOT NULL,
	published_at timestamptz NOT NULL,
	deliver_at timestamptz,
	destination_id int,
	type text NOT NULL,
	key text,
	data jsonb NOT NULL,
	metadata jsonb NOT NULL,
	-- Of an event that came from a dump: the one it had, which receivers know.
	webhook_id text,
	PRIMARY KEY (id, segment)
) PARTITION BY LIST (segment);
-- The dispatchers read the log in this order.
CREATE INDEX event_xid ON mlint.event (xid, id);
COMMENT ON TABLE mlint.event IS 'The event log: append-only, written by publish() and send()';

CREATE TABLE mlint.delivery (
	event_id bigint NOT NULL,
	destination_id int NOT NULL,
	segment int NOT NULL,
	state "char" NOT NULL CHECK (state IN ('d', 'x')),
	attempts int NOT NULL,
	status_code int,
	error text,
	first_attempt_at timestamptz,
	finished_at timestamptz NOT NULL,
	latency_us bigint,
	PRIMARY KEY (event_id, destination_id, segment)
) PARTITION BY LIST (segment);
-- Dead letters are listed and replayed by destination.
CREATE INDEX delivery_dead ON mlint.delivery (destination_id, finished_at)
	WHERE state = 'x';
COMMENT ON TABLE mlint.delivery IS 'How deliveries ended: d delivered, x dead; append-only';

CREATE TABLE mlint.pending (
	event_id bigint NOT NULL,
	destination_id int NOT NULL,
	segment int NOT NULL,
	attempts int NOT NULL DEFAULT 0,
	next_attempt_at timestamptz NOT NULL,
	first_attempt_at timestamptz,
	status_code int,
	error text,
	PRIMARY KEY (event_id, destination_id)
);
-- What is due for a destination.
CREATE INDEX pending_due
	ON mlint.pending (destination_id, next_attempt_at, event_id);
COMMENT ON TABLE mlint.pending IS 'Deliveries that wait: for a retry, a time, a breaker, a slow or disabled destination';

CREATE TABLE mlint.destination (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL,
	driver text NOT NULL,
	options jsonb NOT NULL,
	events text[] NOT NULL,
	enabled boolean NOT NULL,
	disabled_reason text,
	owner mlint.role_id NOT NULL,
	runs_sql boolean NOT NULL,
	after_event_id bigint NOT NULL,
	generation bigint NOT NULL,
	created_at timestamptz NOT NULL DEFAULT now(),
	altered_at timestamptz,
	dropped_at timestamptz
);
-- A name is unique among the living; the dropped explain old deliveries.
CREATE UNIQUE INDEX destination_name ON mlint.destination (name)
	WHERE dropped_at IS NULL;
-- Dispatchers read what has changed since they last looked.
CREATE INDEX destination_generation ON mlint.destination (generation);
COMMENT ON TABLE mlint.destination IS 'Where events go';

CREATE TABLE mlint.log_cursor (
	lane int PRIMARY KEY,
	lanes int NOT NULL,
	snapshot pg_snapshot NOT NULL,
	partial_xid xid8 NOT NULL,
	partial_id bigint NOT NULL
) WITH (fillfactor = 20);
COMMENT ON TABLE mlint.log_cursor IS 'How far each dispatcher lane has read the log: all that the snapshot sees, and of partial_xid the events up to partial_id';
INSERT INTO mlint.log_cursor VALUES (1, 1, '1:1:', '0', 0);

CREATE TABLE mlint.event_key (
	key text PRIMARY KEY,
	event_id bigint NOT NULL,
	published_at timestamptz NOT NULL
);
-- Keys are forgotten by age.
CREATE INDEX event_key_age ON mlint.event_key (published_at);
COMMENT ON TABLE mlint.event_key IS 'Idempotency keys of the last 24 hours';

CREATE TABLE mlint.event_type (
	name text PRIMARY KEY,
	description text NOT NULL
);
COMMENT ON TABLE mlint.event_type IS 'Event types with a meaning of their own; any other name is as good';
INSERT INTO mlint.event_type VALUES
	('MORAL_FILTER_REJECT', 'Moral filter rejection'),
	('MORAL_FILTER_ACCEPT', 'Moral filter acceptance'),
	('EMERGENCY_SHUTDOWN', 'System emergency shutdown'),
	('RECOVERY_TRIGGERED', 'Recovery workflow triggered'),
	('MEMORY_THRESHOLD', 'Memory threshold exceeded'),
	('REQUEST_PROCESSED', 'Request processed successfully'),
	('CUSTOM', 'Custom event'),
	('destination.disabled', 'mlint disabled a destination that answered 410 Gone'),
	('destination.test', 'destination_test() was called'),
	('slack.message', 'A message for a slack destination'),
	('slack.alert', 'An alert for a slack destination'),
	('discord.message', 'A message for a discord destination');

-- Begin a new segment. The newest partition takes all new events.
CREATE FUNCTION mlint.segment_begin() RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	n int;
	parent text;
BEGIN
	SELECT coalesce(max(s.segment), 0) + 1 INTO n FROM mlint.segment s;
	FOREACH parent IN ARRAY '{event,delivery}'::text[] LOOP
		EXECUTE format('CREATE TABLE mlint.%1$I (LIKE mlint.%2$I INCLUDING ALL) USING heap',
			parent || '_' || n, parent);
		EXECUTE format('ALTER TABLE mlint.%2$I ATTACH PARTITION mlint.%1$I FOR VALUES IN (%3$s)',
			parent || '_' || n, parent, n);
		-- A member of the extension, like the first: pg_dump leaves it out.
		IF NOT EXISTS (SELECT FROM pg_depend WHERE deptype = 'e'
			AND classid = 'pg_class'::regclass
			AND objid = format('mlint.%I', parent || '_' || n)::regclass)
		THEN
			EXECUTE format('ALTER EXTENSION mlint ADD TABLE mlint.%I',
				parent || '_' || n);
		END IF;
	END LOOP;
	PERFORM mlint.privileges_close();
	UPDATE mlint.segment s SET closed_at = clock_timestamp()
	WHERE s.closed_at IS NULL;
	INSERT INTO mlint.segment (segment, token)
	VALUES (n, substr(replace(gen_random_uuid()::text, '-', ''), 1, 12));
	RETURN n;
END
$$;
COMMENT ON FUNCTION mlint.segment_begin() IS 'The scheduler''s: begins a new segment of the event log';
SELECT mlint.segment_begin();

-- Lane 0 begins when there is something for it, from here: what is visible now
-- was published before the destination existed. But for what this transaction
-- has published itself: a snapshot never lists its own transaction as in
-- progress, so the cursor must end before it.
CREATE FUNCTION mlint.sql_lane_begin() RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
	INSERT INTO mlint.log_cursor
	SELECT 0, 1, format('%1$s:%1$s:', least(
			pg_snapshot_xmin(pg_current_snapshot())::text::numeric,
			pg_current_xact_id()::text::numeric))::pg_snapshot, '0', 0
	ON CONFLICT DO NOTHING
$$;
COMMENT ON FUNCTION mlint.sql_lane_begin() IS 'Has the dispatcher for destinations that run SQL begin with what is published from now on';

-- Has a cursor passed this event?
CREATE FUNCTION mlint.cursor_covers(c mlint.log_cursor, xid xid8, id bigint)
RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pg_catalog.pg_visible_in_snapshot(xid, c.snapshot)
	OR (xid = c.partial_xid AND id <= c.partial_id);
COMMENT ON FUNCTION mlint.cursor_covers(mlint.log_cursor, xid8, bigint) IS 'Whether a dispatcher lane has taken note of an event';

-- Has every dispatcher passed this segment, and is nothing in it pending?
CREATE FUNCTION mlint.segment_finished(segment int) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT NOT EXISTS (SELECT FROM mlint.pending p
			WHERE p.segment = segment_finished.segment)
		AND NOT EXISTS (SELECT FROM mlint.log_cursor c, mlint.event e
			WHERE e.segment = segment_finished.segment
				AND e.xid >= pg_snapshot_xmin(c.snapshot)
				AND NOT mlint.cursor_covers(c, e.xid, e.id))
$$;
COMMENT ON FUNCTION mlint.segment_finished(int) IS
	'Whether all deliveries of a segment of the event log have ended';

-- Begin segments and drop them: a job. A segment goes when it was closed
-- longer ago than mlint.event_retention and is finished. The locks are waited
-- for only briefly, and taken in the order in which everybody takes them:
-- whoever reads the log for long puts the drop off, not the publishers. Less
-- than deadlock_timeout, so that in a deadlock it is the job that gives way.
CREATE FUNCTION mlint.event_retention_run() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '500ms' AS $$
DECLARE
	retention interval := current_setting('mlint.event_retention')::interval;
	s mlint.segment;
	parent text;
BEGIN
	SELECT * INTO s FROM mlint.segment WHERE closed_at IS NULL;
	IF s.created_at < clock_timestamp() - retention / 7
		AND EXISTS (SELECT FROM mlint.event e WHERE e.segment = s.segment)
	THEN
		PERFORM mlint.segment_begin();
	END IF;

	FOR s IN SELECT * FROM mlint.segment
		WHERE closed_at < clock_timestamp() - retention ORDER BY segment
	LOOP
		CONTINUE WHEN NOT mlint.segment_finished(s.segment);
		BEGIN
			PERFORM mlint.audit_note('event.purged', 'segment', s.segment::text,
				jsonb_build_object('closed_at', s.closed_at));
			EXECUTE format('LOCK TABLE ONLY mlint.event, mlint.%I, ONLY mlint.delivery, mlint.%I IN ACCESS EXCLUSIVE MODE',
				'event_' || s.segment, 'delivery_' || s.segment);
			-- Who held the locks may have published, replayed or retried.
			IF NOT mlint.segment_finished(s.segment) THEN
				RAISE lock_not_available;
			END IF;
			FOREACH parent IN ARRAY '{event,delivery}'::text[] LOOP
				EXECUTE format('ALTER EXTENSION mlint DROP TABLE mlint.%I',
					parent || '_' || s.segment);
				EXECUTE format('DROP TABLE mlint.%I',
					parent || '_' || s.segment);
			END LOOP;
			DELETE FROM mlint.segment d WHERE d.segment = s.segment;
		EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
			RAISE LOG 'mlint: segment % of the event log is in use, it will be dropped later', s.segment;
		END;
	END LOOP;

	-- A dispatcher may have parked what a destination's drop did not see.
	DELETE FROM mlint.pending p USING mlint.destination d
	WHERE d.id = p.destination_id AND d.dropped_at IS NOT NULL;
	DELETE FROM mlint.event_key
	WHERE published_at < clock_timestamp() - interval '24 hours';
	DELETE FROM mlint.destination d
	WHERE d.dropped_at < (SELECT min(s2.created_at) FROM mlint.segment s2)
		AND NOT EXISTS (SELECT FROM mlint.pending p WHERE p.destination_id = d.id);
END
$$;
COMMENT ON FUNCTION mlint.event_retention_run() IS 'The job event_retention: begins and drops segments of the event log, forgets old keys';
INSERT INTO mlint.job (name, command, every)
VALUES ('event_retention', 'SELECT mlint.event_retention_run()', '10 minutes');

-- ---- publishing ----

CREATE FUNCTION mlint.publish(event_type text, data jsonb,
	metadata jsonb DEFAULT '{}', key text DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_publish';
COMMENT ON FUNCTION mlint.publish(text, jsonb, jsonb, text, timestamptz) IS
'Publishes an event to every destination whose patterns match its type, when the transaction commits; returns the event''s id. The same key again within 24 hours returns the same id and publishes nothing. deliver_at: not before that time';

CREATE FUNCTION mlint.send(destination text, event_type text, data jsonb,
	metadata jsonb DEFAULT '{}', key text DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_send';
COMMENT ON FUNCTION mlint.send(text, text, jsonb, jsonb, text, timestamptz) IS
'As publish(), to one destination, whatever its patterns';

CREATE FUNCTION mlint.event_wait(event_id bigint, timeout interval)
RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_event_wait';
COMMENT ON FUNCTION mlint.event_wait(bigint, interval) IS
'Waits until every delivery of a committed event has ended, delivered or dead; false when the timeout passed first';

-- ---- destinations ----

CREATE FUNCTION mlint.destination_create(name text, driver text,
	options jsonb DEFAULT '{}', events text[] DEFAULT '{*}',
	enabled boolean DEFAULT true) RETURNS int
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_destination_create';
COMMENT ON FUNCTION mlint.destination_create(text, text, jsonb, text[], boolean) IS
'Creates a destination for the events published from now on whose type matches one of the glob patterns; the view mlint.drivers lists drivers and options. Functions that it calls run as the role that created it';

CREATE FUNCTION mlint.destination_alter(name text,
	options jsonb DEFAULT NULL, events text[] DEFAULT NULL,
	enabled boolean DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_destination_alter';
COMMENT ON FUNCTION mlint.destination_alter(text, jsonb, text[], boolean) IS
'Changes a destination; NULL leaves as is. The given options replace those of the same name, and null in them restores a default. A disabled destination holds its deliveries until it is enabled';

CREATE FUNCTION mlint.destination_drop(name text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_destination_drop';
COMMENT ON FUNCTION mlint.destination_drop(text) IS
'Drops a destination and what is pending for it';

CREATE FUNCTION mlint.destination_test(name text,
	OUT ok boolean, OUT status int, OUT detail text, OUT elapsed interval)
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_destination_test';
COMMENT ON FUNCTION mlint.destination_test(text) IS
'Sends one event of type destination.test to a destination, at once and in this session, and says what came of it';

CREATE FUNCTION mlint.dead_letter_replay(destination text DEFAULT NULL,
	since timestamptz DEFAULT NULL) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_dead_letter_replay';
COMMENT ON FUNCTION mlint.dead_letter_replay(text, timestamptz) IS
'Makes dead deliveries pending again, with all their retries; of one destination or of all, that died since a time or ever. Returns how many';

CREATE FUNCTION mlint.delivery_retry(event_id bigint, destination text)
RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_delivery_retry';
COMMENT ON FUNCTION mlint.delivery_retry(bigint, text) IS
'Delivers once more: a pending delivery now, a dead or delivered one again';

CREATE FUNCTION mlint.breaker_reset(destination text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_breaker_reset';
COMMENT ON FUNCTION mlint.breaker_reset(text) IS
'Closes a destination''s circuit breaker';

CREATE FUNCTION mlint.event_type_matches(patterns text[], event_type text)
RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'mlint_event_type_matches';
COMMENT ON FUNCTION mlint.event_type_matches(text[], text) IS
'Whether an event type matches one of the glob patterns: * any run of characters, ? one character';

CREATE FUNCTION mlint.driver_options(OUT driver text, OUT option text,
	OUT type text, OUT "default" text, OUT bounds text, OUT required boolean,
	OUT help text) RETURNS SETOF record
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'mlint_driver_options';
COMMENT ON FUNCTION mlint.driver_options() IS 'Behind the view mlint.drivers';

CREATE VIEW mlint.drivers AS SELECT * FROM mlint.driver_options();
COMMENT ON VIEW mlint.drivers IS 'Drivers and the options that their destinations take';
COMMENT ON COLUMN mlint.drivers.driver IS 'Name of the driver';
COMMENT ON COLUMN mlint.drivers.option IS 'Name of the option; group.option lies in an object of its own';
COMMENT ON COLUMN mlint.drivers.type IS 'Type of its value';
COMMENT ON COLUMN mlint.drivers."default" IS 'Value when it is not given; null: none';
COMMENT ON COLUMN mlint.drivers.bounds IS 'Range or choices';
COMMENT ON COLUMN mlint.drivers.required IS 'Whether it must be given';
COMMENT ON COLUMN mlint.drivers.help IS 'What it does';

-- ---- messages to chat services ----

-- Is this a destination of that driver? Else an error that says so.
CREATE FUNCTION mlint.destination_expect(destination text, driver text)
RETURNS void
LANGUAGE plpgsql STABLE STRICT SECURITY DEFINER PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	found text;
BEGIN
	SELECT d.driver INTO found FROM mlint.destination d
	WHERE d.name = destination AND d.dropped_at IS NULL;
	IF found IS NULL THEN
		RAISE EXCEPTION 'destination "%" does not exist', destination
			USING ERRCODE = 'undefined_object',
				HINT = format('mlint.destination_create(%L, %L, ...) makes it.',
					destination, driver);
	ELSIF found <> driver THEN
		RAISE EXCEPTION 'destination "%" has the driver %, not %', destination,
			found, driver USING ERRCODE = 'ML007';
	END IF;
END
$$;
COMMENT ON FUNCTION mlint.destination_expect(text, text) IS 'Raises an error unless the destination has that driver';

-- A text for a field that the service limits: as it is, or an error.
CREATE FUNCTION mlint.message_text(value text, field text, service text, max int)
RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF value = '' OR length(value) > max THEN
		RAISE EXCEPTION '% must be 1 to % characters long for %, not %', field,
			max, service, length(value) USING ERRCODE = 'ML007';
	END IF;
	RETURN value;
END
$$;
COMMENT ON FUNCTION mlint.message_text(text, text, text, int) IS 'The text, or an error when it is empty or longer than the service takes';

CREATE FUNCTION mlint.slack_message(destination text, text text,
	username text DEFAULT NULL, icon_emoji text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM mlint.destination_expect(destination, 'slack');
	IF text IS NULL THEN
		RAISE EXCEPTION 'text must not be null'
			USING ERRCODE = 'null_value_not_allowed';
	END IF;
	RETURN mlint.send(destination, 'slack.message', jsonb_strip_nulls(
		jsonb_build_object(
			'text', mlint.message_text(text, 'text', 'Slack', 40000),
			'username', mlint.message_text(username, 'username', 'Slack', 80),
			'icon_emoji', mlint.message_text(icon_emoji, 'icon_emoji', 'Slack', 100))));
END
$$;
COMMENT ON FUNCTION mlint.slack_message(text, text, text, text) IS
'Sends a message to a slack destination, when the transaction commits; returns the event''s id. Refuses what Slack would: text over 40,000 characters';

CREATE FUNCTION mlint.slack_alert(destination text, title text, message text,
	severity text DEFAULT 'info', fields jsonb DEFAULT '{}') RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	color text := CASE severity WHEN 'info' THEN '#36a64f'
		WHEN 'warning' THEN '#ffcc00' WHEN 'error' THEN '#ff0000'
		WHEN 'critical' THEN '#8b0000' END;
	blocks jsonb;
BEGIN
	PERFORM mlint.destination_expect(destination, 'slack');
	IF title IS NULL OR message IS NULL OR fields IS NULL THEN
		RAISE EXCEPTION 'title, message and fields must not be null'
			USING ERRCODE = 'null_value_not_allowed';
	END IF;
	IF color IS NULL THEN
		RAISE EXCEPTION 'severity must be info, warning, error or critical'
			USING ERRCODE = 'ML007';
	END IF;
	IF jsonb_typeof(fields) <> 'object' THEN
		RAISE EXCEPTION 'fields must be a JSON object' USING ERRCODE = 'ML007';
	END IF;
	IF (SELECT count(*) FROM jsonb_object_keys(fields)) > 10 THEN
		RAISE EXCEPTION 'Slack takes at most 10 fields' USING ERRCODE = 'ML007';
	END IF;
	blocks := jsonb_build_array(
		jsonb_build_object('type', 'header', 'text', jsonb_build_object(
			'type', 'plain_text',
			'text', mlint.message_text(title, 'title', 'Slack', 150))),
		jsonb_build_object('type', 'section', 'text', jsonb_build_object(
			'type', 'mrkdwn',
			'text', mlint.message_text(message, 'message', 'Slack', 3000))));
	IF fields <> '{}' THEN
		blocks := blocks || jsonb_build_object('type', 'section', 'fields',
			(SELECT jsonb_agg(jsonb_build_object('type', 'mrkdwn', 'text',
				mlint.message_text(format(E'*%s*\n%s', f.key, f.value),
					format('field %L', f.key), 'Slack', 2000)))
			FROM jsonb_each_text(fields) f));
	END IF;
	RETURN mlint.send(destination, 'slack.alert', jsonb_build_object(
		'text', format('[%s] %s', upper(severity), title),
		'attachments', jsonb_build_array(
			jsonb_build_object('color', color, 'blocks', blocks))));
END
$$;
COMMENT ON FUNCTION mlint.slack_alert(text, text, text, text, jsonb) IS
'Sends an alert to a slack destination, when the transaction commits; severity is info, warning, error or critical. Refuses what Slack would: a title over 150 characters, a message over 3,000, more than 10 fields, a field over 2,000';

CREATE FUNCTION mlint.discord_message(destination text, content text,
	username text DEFAULT NULL, embeds jsonb DEFAULT '[]') RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	embed jsonb;
	field jsonb;
	total bigint := 0;
BEGIN
	PERFORM mlint.destination_expect(destination, 'discord');
	embeds := coalesce(embeds, '[]');
	IF jsonb_typeof(embeds) <> 'array' OR jsonb_array_length(embeds) > 10 THEN
		RAISE EXCEPTION 'embeds must be a JSON array of at most 10'
			USING ERRCODE = 'ML007';
	END IF;
	IF content IS NULL AND embeds = '[]' THEN
		RAISE EXCEPTION 'a Discord message needs content or embeds'
			USING ERRCODE = 'ML007';
	END IF;
	FOR embed IN SELECT * FROM jsonb_array_elements(embeds) LOOP
		IF jsonb_typeof(embed) <> 'object'
			OR jsonb_typeof(coalesce(embed->'fields', '[]')) <> 'array' THEN
			RAISE EXCEPTION 'an embed must be a JSON object, and its fields an array'
				USING ERRCODE = 'ML007';
		END IF;
		PERFORM mlint.message_text(embed->>'title', 'an embed''s title', 'Discord', 256),
			mlint.message_text(embed->>'description', 'an embed''s description', 'Discord', 4096),
			mlint.message_text(embed#>>'{footer,text}', 'an embed''s footer', 'Discord', 2048),
			mlint.message_text(embed#>>'{author,name}', 'an embed''s author', 'Discord', 256);
		total := total + coalesce(length(embed->>'title'), 0)
			+ coalesce(length(embed->>'description'), 0)
			+ coalesce(length(embed#>>'{footer,text}'), 0)
			+ coalesce(length(embed#>>'{author,name}'), 0);
		IF jsonb_array_length(coalesce(embed->'fields', '[]')) > 25 THEN
			RAISE EXCEPTION 'an embed takes at most 25 fields'
				USING ERRCODE = 'ML007';
		END IF;
		FOR field IN SELECT * FROM jsonb_array_elements(coalesce(embed->'fields', '[]')) LOOP
			PERFORM mlint.message_text(coalesce(field->>'name', ''), 'a field''s name', 'Discord', 256),
				mlint.message_text(coalesce(field->>'value', ''), 'a field''s value', 'Discord', 1024);
			total := total + length(field->>'name') + length(field->>'value');
		END LOOP;
	END LOOP;
	IF total > 6000 THEN
		RAISE EXCEPTION 'the embeds have % characters in all, Discord takes 6000', total
			USING ERRCODE = 'ML007';
	END IF;
	RETURN mlint.send(destination, 'discord.message', jsonb_strip_nulls(
		jsonb_build_object(
			'content', mlint.message_text(content, 'content', 'Discord', 2000),
			'username', mlint.message_text(username, 'username', 'Discord', 80),
			'embeds', nullif(embeds, '[]'))));
END
$$;
COMMENT ON FUNCTION mlint.discord_message(text, text, text, jsonb) IS
'Sends a message to a discord destination, when the transaction commits. Refuses what Discord would: content over 2,000 characters, more than 10 embeds, 25 fields in one, or 6,000 characters in all of them';

-- ---- views ----

CREATE FUNCTION mlint.in_flight(OUT event_id bigint, OUT destination_id int)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_in_flight';
COMMENT ON FUNCTION mlint.in_flight() IS 'What this database''s dispatchers have in flight';

CREATE FUNCTION mlint.destination_stats(OUT destination_id int,
	OUT delivered bigint, OUT failed bigint, OUT retried bigint,
	OUT dead bigint, OUT bytes bigint, OUT p50 interval, OUT p95 interval,
	OUT p99 interval, OUT breaker text, OUT breaker_until timestamptz,
	OUT last_error text, OUT last_error_at timestamptz,
	OUT latency_seconds double precision, OUT latency_octaves bigint[])
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_destination_stats';
COMMENT ON FUNCTION mlint.destination_stats() IS 'Behind the view mlint.stat_destinations and mlint.metrics(); latency_octaves: attempts up to 2^10, 2^11 ... 2^26 microseconds, and all';

CREATE VIEW mlint.event_types AS SELECT * FROM mlint.event_type;
COMMENT ON VIEW mlint.event_types IS 'Event types with a meaning of their own; any other name is as good';
COMMENT ON COLUMN mlint.event_types.name IS 'The type';
COMMENT ON COLUMN mlint.event_types.description IS 'What it means';

CREATE VIEW mlint.destinations AS
SELECT d.id, d.name, d.driver, d.events, d.enabled, d.disabled_reason,
	nullif(d.owner::text, '') AS owner, d.options, d.created_at,
	d.altered_at
FROM mlint.destination d
WHERE d.dropped_at IS NULL;
COMMENT ON VIEW mlint.destinations IS 'Where events go';
COMMENT ON COLUMN mlint.destinations.id IS 'Number of the destination';
COMMENT ON COLUMN mlint.destinations.name IS 'Its name';
COMMENT ON COLUMN mlint.destinations.driver IS 'What carries events to it';
COMMENT ON COLUMN mlint.destinations.events IS 'Glob patterns of the event types that go there';
COMMENT ON COLUMN mlint.destinations.enabled IS 'Whether deliveries are made; else they are held';
COMMENT ON COLUMN mlint.destinations.disabled_reason IS 'Why mlint disabled it, if it did';
COMMENT ON COLUMN mlint.destinations.owner IS 'The role that created it, as which its functions run; null when that is gone';
COMMENT ON COLUMN mlint.destinations.options IS 'Its options; credentials appear as references only';
COMMENT ON COLUMN mlint.destinations.created_at IS 'When it was created';
COMMENT ON COLUMN mlint.destinations.altered_at IS 'When it was last changed';

CREATE VIEW mlint.events AS
SELECT e.id, e.type, e.published_at, e.deliver_at, d.name AS destination,
	e.key, e.data, e.metadata
FROM mlint.event e
LEFT JOIN mlint.destination d ON d.id = e.destination_id;
COMMENT ON VIEW mlint.events IS 'Published events, until mlint.event_retention after they are finished';
COMMENT ON COLUMN mlint.events.id IS 'Id, as publish() returned it';
COMMENT ON COLUMN mlint.events.type IS 'Event type';
COMMENT ON COLUMN mlint.events.published_at IS 'When it was published';
COMMENT ON COLUMN mlint.events.deliver_at IS 'Before when it must not be delivered';
COMMENT ON COLUMN mlint.events.destination IS 'Sent to this destination alone; null: to all that match';
COMMENT ON COLUMN mlint.events.key IS 'Idempotency key';
COMMENT ON COLUMN mlint.events.data IS 'The payload';
COMMENT ON COLUMN mlint.events.metadata IS 'What goes with it';

-- Does this lane deliver the event there, once it reads it?
CREATE FUNCTION mlint.lane_delivers(c mlint.log_cursor, e mlint.event,
	d mlint.destination) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN c.lane = CASE WHEN d.runs_sql THEN 0 ELSE 1 + d.id % c.lanes END
	AND d.dropped_at IS NULL AND e.id > d.after_event_id
	AND CASE WHEN e.destination_id IS NOT NULL THEN e.destination_id = d.id
		ELSE mlint.event_type_matches(d.events, e.type) END;
COMMENT ON FUNCTION mlint.lane_delivers(mlint.log_cursor, mlint.event, mlint.destination) IS
'Whether a dispatcher lane that reads an event delivers it to a destination';

CREATE VIEW mlint.deliveries AS
SELECT l.event_id, d.name AS destination, e.type AS event_type,
	CASE l.state WHEN 'd' THEN 'delivered' ELSE 'dead' END AS state,
	l.attempts, NULL::timestamptz AS next_attempt_at, l.status_code, l.error,
	l.first_attempt_at, l.finished_at,
	pg_catalog.make_interval(secs => l.latency_us / 1000000.0) AS latency
FROM mlint.delivery l
JOIN mlint.event e ON e.id = l.event_id AND e.segment = l.segment
LEFT JOIN mlint.destination d ON d.id = l.destination_id
UNION ALL
SELECT p.event_id, d.name, e.type,
	CASE WHEN f.event_id IS NULL THEN 'pending' ELSE 'in_flight' END,
	p.attempts, p.next_attempt_at, p.status_code, p.error,
	p.first_attempt_at, NULL, NULL
FROM mlint.pending p
JOIN mlint.event e ON e.id = p.event_id AND e.segment = p.segment
JOIN mlint.destination d ON d.id = p.destination_id AND d.dropped_at IS NULL
LEFT JOIN mlint.in_flight() f
	ON f.event_id = p.event_id AND f.destination_id = p.destination_id
UNION ALL
-- Published, and not yet taken up by a dispatcher.
SELECT e.id, d.name, e.type,
	CASE WHEN f.event_id IS NULL THEN 'pending' ELSE 'in_flight' END,
	0, coalesce(e.deliver_at, e.published_at), NULL, NULL, NULL, NULL, NULL
FROM mlint.log_cursor c
JOIN mlint.event e
	ON e.xid >= pg_catalog.pg_snapshot_xmin(c.snapshot)
	AND NOT mlint.cursor_covers(c, e.xid, e.id)
JOIN mlint.destination d ON mlint.lane_delivers(c, e, d)
LEFT JOIN mlint.in_flight() f
	ON f.event_id = e.id AND f.destination_id = d.id
WHERE NOT EXISTS (SELECT FROM mlint.delivery l WHERE l.event_id = e.id
		AND l.destination_id = d.id AND l.segment = e.segment)
	AND NOT EXISTS (SELECT FROM mlint.pending p WHERE p.event_id = e.id
		AND p.destination_id = d.id);
COMMENT ON VIEW mlint.deliveries IS 'Each event on its way to each destination';
COMMENT ON COLUMN mlint.deliveries.event_id IS 'The event';
COMMENT ON COLUMN mlint.deliveries.destination IS 'The destination';
COMMENT ON COLUMN mlint.deliveries.event_type IS 'The event''s type';
COMMENT ON COLUMN mlint.deliveries.state IS 'pending, in_flight, delivered or dead';
COMMENT ON COLUMN mlint.deliveries.attempts IS 'Attempts that have ended';
COMMENT ON COLUMN mlint.deliveries.next_attempt_at IS 'Pending: not before this time';
COMMENT ON COLUMN mlint.deliveries.status_code IS 'Status of the last answer, if there was one';
COMMENT ON COLUMN mlint.deliveries.error IS 'Why the last attempt failed';
COMMENT ON COLUMN mlint.deliveries.first_attempt_at IS 'When the first attempt began';
COMMENT ON COLUMN mlint.deliveries.finished_at IS 'When the delivery ended';
COMMENT ON COLUMN mlint.deliveries.latency IS 'How long the last attempt took';

CREATE VIEW mlint.dead_letters AS
SELECT l.event_id, d.name AS destination, e.type AS event_type, l.attempts,
	l.status_code, l.error, l.first_attempt_at, l.finished_at AS died_at,
	e.published_at, e.data, e.metadata
FROM mlint.delivery l
JOIN mlint.event e ON e.id = l.event_id AND e.segment = l.segment
LEFT JOIN mlint.destination d ON d.id = l.destination_id
WHERE l.state = 'x';
COMMENT ON VIEW mlint.dead_letters IS 'Deliveries that were given up; dead_letter_replay() tries them again';
COMMENT ON COLUMN mlint.dead_letters.event_id IS 'The event';
COMMENT ON COLUMN mlint.dead_letters.destination IS 'Where it could not be delivered';
COMMENT ON COLUMN mlint.dead_letters.event_type IS 'The event''s type';
COMMENT ON COLUMN mlint.dead_letters.attempts IS 'Attempts made';
COMMENT ON COLUMN mlint.dead_letters.status_code IS 'Status of the last answer, if there was one';
COMMENT ON COLUMN mlint.dead_letters.error IS 'Why it was given up';
COMMENT ON COLUMN mlint.dead_letters.first_attempt_at IS 'When the first attempt began';
COMMENT ON COLUMN mlint.dead_letters.died_at IS 'When it was given up';
COMMENT ON COLUMN mlint.dead_letters.published_at IS 'When the event was published';
COMMENT ON COLUMN mlint.dead_letters.data IS 'The event''s payload';
COMMENT ON COLUMN mlint.dead_letters.metadata IS 'The event''s metadata';

-- What is not selected is not looked for. The age is that of
-- mlint.destination_waiting(), the depth counts every row.
CREATE VIEW mlint.stat_destinations AS
SELECT d.name AS destination, coalesce(s.delivered, 0) AS delivered,
	coalesce(s.failed, 0) AS failed, coalesce(s.retried, 0) AS retried,
	coalesce(s.dead, 0) AS dead, coalesce(s.bytes, 0) AS bytes,
	s.p50, s.p95, s.p99, coalesce(s.breaker, 'closed') AS breaker,
	s.breaker_until,
	(SELECT count(*) FROM mlint.pending p
		WHERE p.destination_id = d.id) AS queue_depth,
	(SELECT pg_catalog.clock_timestamp() - greatest(e.published_at, e.deliver_at)
		FROM mlint.event e
		WHERE e.id = (SELECT min(p.event_id)
			FROM (SELECT p.event_id, p.attempts, p.next_attempt_at
				FROM mlint.pending p WHERE p.destination_id = d.id
				ORDER BY p.next_attempt_at, p.event_id LIMIT 10000) p
			WHERE p.attempts > 0
				OR p.next_attempt_at <= pg_catalog.clock_timestamp())
	) AS oldest_pending_age,
	s.last_error, s.last_error_at
FROM mlint.destination d
LEFT JOIN mlint.destination_stats() s ON s.destination_id = d.id
WHERE d.dropped_at IS NULL;
COMMENT ON VIEW mlint.stat_destinations IS 'Counters of each destination since the server started, and what waits';
COMMENT ON COLUMN mlint.stat_destinations.destination IS 'The destination';
COMMENT ON COLUMN mlint.stat_destinations.delivered IS 'Deliveries that succeeded';
COMMENT ON COLUMN mlint.stat_destinations.failed IS 'Attempts that failed';
COMMENT ON COLUMN mlint.stat_destinations.retried IS 'Failed attempts that were or will be tried again';
COMMENT ON COLUMN mlint.stat_destinations.dead IS 'Deliveries given up';
COMMENT ON COLUMN mlint.stat_destinations.bytes IS 'Bytes of bodies sent';
COMMENT ON COLUMN mlint.stat_destinations.p50 IS 'Half of the attempts took no longer (within 10 %)';
COMMENT ON COLUMN mlint.stat_destinations.p95 IS '95 % of the attempts took no longer';
COMMENT ON COLUMN mlint.stat_destinations.p99 IS '99 % of the attempts took no longer';
COMMENT ON COLUMN mlint.stat_destinations.breaker IS 'Circuit breaker: closed, open or half-open';
COMMENT ON COLUMN mlint.stat_destinations.breaker_until IS 'Open: when one delivery will be tried';
COMMENT ON COLUMN mlint.stat_destinations.queue_depth IS 'Deliveries that wait in mlint.pending';
COMMENT ON COLUMN mlint.stat_destinations.oldest_pending_age IS 'For how long the oldest of them that is not scheduled for later has waited, of the 10000 that are due first';
COMMENT ON COLUMN mlint.stat_destinations.last_error IS 'Why the last failed attempt failed';
COMMENT ON COLUMN mlint.stat_destinations.last_error_at IS 'When that was';

-- ---- dump and restore ----

-- A destination that is restored (generation 0) begins at this server's place in
-- the log. (One whose owner is not here belongs to nobody, and what it is to run
-- waits: mlint.role_id.)
CREATE FUNCTION mlint.destination_restored() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	SELECT CASE WHEN s.is_called THEN s.last_value ELSE 0 END
	INTO NEW.after_event_id FROM mlint.event_id s;
	UPDATE mlint.generation g SET generation = g.generation + 1
	WHERE g.room = 'destinations' RETURNING g.generation INTO NEW.generation;
	IF NEW.runs_sql THEN
		PERFORM mlint.sql_lane_begin();
	END IF;
	RETURN NEW;
END
$$;
COMMENT ON FUNCTION mlint.destination_restored() IS 'Trigger: makes a destination that comes from a dump one of this server';
CREATE TRIGGER restored BEFORE INSERT ON mlint.destination
	FOR EACH ROW WHEN (NEW.generation = 0) EXECUTE FUNCTION mlint.destination_restored();
ALTER TABLE mlint.destination ENABLE ALWAYS TRIGGER restored;
SELECT pg_catalog.pg_extension_config_dump('mlint.destination', $$WHERE false
	UNION ALL SELECT id, name, driver, options, events, enabled, disabled_reason,
		owner, runs_sql, 0, 0, created_at, altered_at, NULL
	FROM mlint.destination WHERE dropped_at IS NULL$$);
SELECT pg_catalog.pg_extension_config_dump('mlint.destination_id_seq', '');

SELECT pg_catalog.pg_extension_config_dump('mlint.event_key',
	$$WHERE published_at >= pg_catalog.now() - '24 hours'::pg_catalog.interval$$);

-- The log itself means nothing elsewhere: its order is that of this server's
-- transactions. What of it is not delivered travels in two tables, which are
-- empty but between a restore and its end, when event_settle() moves their rows
-- to where they belong.
CREATE TABLE mlint.dump_event (
	id bigint PRIMARY KEY,
	webhook_id text NOT NULL,
	published_at timestamptz NOT NULL,
	deliver_at timestamptz,
	destination text,
	type text NOT NULL,
	key text,
	data jsonb NOT NULL,
	metadata jsonb NOT NULL,
	new_id bigint
);
COMMENT ON TABLE mlint.dump_event IS 'Events of a dump that are not delivered everywhere, until the restore has ended; new_id where another event has their number';
CREATE TABLE mlint.dump_delivery (
	event_id bigint NOT NULL,
	destination text NOT NULL,
	dead boolean NOT NULL,
	attempts int NOT NULL,
	at timestamptz NOT NULL,
	first_attempt_at timestamptz,
	status_code int,
	error text,
	latency_us bigint,
	-- One that is replayed is both.
	PRIMARY KEY (event_id, destination, dead)
);
COMMENT ON TABLE mlint.dump_delivery IS 'Deliveries of a dump that are pending or dead, until the restore has ended; at: when they are due, or died';

CREATE FUNCTION mlint.webhook_id(e mlint.event) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(e.webhook_id, pg_catalog.format('evt_%s%s%s_%s',
	(SELECT s.token FROM mlint.segment s WHERE s.segment = e.segment),
	pg_catalog.lpad(pg_catalog.to_hex(e.life), 8, '0'),
	(SELECT pg_catalog.to_hex(d.oid::bigint) FROM pg_catalog.pg_database d
		WHERE d.datname = pg_catalog.current_database()), e.id));
COMMENT ON FUNCTION mlint.webhook_id(mlint.event) IS 'The webhook-id that an event is delivered under';

CREATE FUNCTION mlint.dump_deliveries() RETURNS SETOF mlint.dump_delivery
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT p.event_id, d.name, false, p.attempts, p.next_attempt_at,
		p.first_attempt_at, p.status_code, p.error, NULL::bigint
	FROM mlint.pending p
	JOIN mlint.destination d ON d.id = p.destination_id AND d.dropped_at IS NULL
	UNION ALL
	SELECT l.event_id, d.name, true, l.attempts, l.finished_at,
		l.first_attempt_at, l.status_code, l.error, l.latency_us
	FROM mlint.delivery l
	JOIN mlint.destination d ON d.id = l.destination_id AND d.dropped_at IS NULL
	WHERE l.state = 'x'
	UNION ALL
	-- As in mlint.deliveries, which pg_dump refuses to read: it is a view.
	SELECT e.id, d.name, false, 0, coalesce(e.deliver_at, e.published_at), NULL,
		NULL, NULL, NULL
	FROM mlint.log_cursor c
	JOIN mlint.event e ON e.xid >= pg_snapshot_xmin(c.snapshot)
		AND NOT mlint.cursor_covers(c, e.xid, e.id)
	JOIN mlint.destination d ON mlint.lane_delivers(c, e, d)
	WHERE NOT EXISTS (SELECT FROM mlint.delivery l WHERE l.event_id = e.id
			AND l.destination_id = d.id AND l.segment = e.segment)
		AND NOT EXISTS (SELECT FROM mlint.pending p WHERE p.event_id = e.id
			AND p.destination_id = d.id)
$$;
COMMENT ON FUNCTION mlint.dump_deliveries() IS 'What pg_dump takes along of deliveries: those that have not ended well';
CREATE FUNCTION mlint.dump_events() RETURNS SETOF mlint.dump_event
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT e.id, mlint.webhook_id(e), e.published_at, e.deliver_at, d.name, e.type,
		e.key, e.data, e.metadata, NULL::bigint
	FROM mlint.event e
	LEFT JOIN mlint.destination d ON d.id = e.destination_id
	WHERE e.id IN (SELECT l.event_id FROM mlint.dump_deliveries() l)
$$;
COMMENT ON FUNCTION mlint.dump_events() IS 'What pg_dump takes along of the event log: events with deliveries that have not ended well';
SELECT pg_catalog.pg_extension_config_dump('mlint.dump_event',
	'UNION ALL SELECT * FROM mlint.dump_events()');
SELECT pg_catalog.pg_extension_config_dump('mlint.dump_delivery',
	'UNION ALL SELECT * FROM mlint.dump_deliveries()');

-- Move what came from a dump into the log, where the dispatchers' cursors are
-- past it (no snapshot is before transaction 0): its deliveries are pending.
CREATE FUNCTION mlint.event_settle() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	newest int := (SELECT s.segment FROM mlint.segment s WHERE s.closed_at IS NULL);
	last bigint := (SELECT CASE WHEN s.is_called THEN s.last_value ELSE 0 END FROM mlint.event_id s);
	wanted bigint := (SELECT max(m.n) FROM (
		SELECT d.rows FROM mlint.dump d WHERE d.name = 'mlint.event_id'
		UNION ALL SELECT max(id) FROM mlint.dump_event) m (n));
	g bigint;
BEGIN
	-- Numbers go on behind the dump's. Who publishes takes some meanwhile.
	IF wanted > last THEN
		PERFORM setval('mlint.event_id',
			wanted + CASE WHEN last > 0 AND wanted - last < 10000 THEN 10000 ELSE 0 END);
	END IF;

	-- The same event again: the dump was restored before, or here it was made.
	DELETE FROM mlint.dump_event n USING mlint.event e
	WHERE e.id = n.id AND mlint.webhook_id(e) = n.webhook_id;
	DELETE FROM mlint.dump_event n USING mlint.event e
	WHERE e.webhook_id = n.webhook_id;
	UPDATE mlint.dump_event n SET new_id = nextval('mlint.event_id')
	WHERE EXISTS (SELECT FROM mlint.event e WHERE e.id = n.id);
	UPDATE mlint.event_key k SET event_id = n.new_id FROM mlint.dump_event n
	WHERE k.key = n.key AND k.event_id = n.id AND n.new_id IS NOT NULL;

	INSERT INTO mlint.event (id, segment, life, xid, published_at, deliver_at,
		destination_id, type, key, data, metadata, webhook_id)
	SELECT coalesce(n.new_id, n.id), newest, 0, '0', n.published_at, n.deliver_at,
		d.id, n.type, n.key, n.data, n.metadata, n.webhook_id
	FROM mlint.dump_event n
	LEFT JOIN mlint.destination d
		ON d.name = n.destination AND d.dropped_at IS NULL;
	INSERT INTO mlint.pending (event_id, destination_id, segment, attempts,
		next_attempt_at, first_attempt_at, status_code, error)
	SELECT coalesce(n.new_id, n.id), d.id, newest, l.attempts, l.at,
		l.first_attempt_at, l.status_code, l.error
	FROM mlint.dump_delivery l
	JOIN mlint.dump_event n ON n.id = l.event_id
	JOIN mlint.destination d ON d.name = l.destination AND d.dropped_at IS NULL
	WHERE NOT l.dead;
	INSERT INTO mlint.delivery (event_id, destination_id, segment, state, attempts,
		status_code, error, first_attempt_at, finished_at, latency_us)
	SELECT coalesce(n.new_id, n.id), d.id, newest, 'x', l.attempts, l.status_code,
		l.error, l.first_attempt_at, l.at, l.latency_us
	FROM mlint.dump_delivery l
	JOIN mlint.dump_event n ON n.id = l.event_id
	JOIN mlint.destination d ON d.name = l.destination AND d.dropped_at IS NULL
	WHERE l.dead;
	DELETE FROM mlint.dump_event;
	DELETE FROM mlint.dump_delivery;

	-- Dispatchers look anew at what is pending.
	UPDATE mlint.generation o SET generation = o.generation + 1
	WHERE o.room = 'destinations' RETURNING o.generation INTO g;
	UPDATE mlint.destination d SET generation = g WHERE d.dropped_at IS NULL;
END
$$;
COMMENT ON FUNCTION mlint.event_settle() IS 'When a restore has ended: puts the events that came with it into the log';

REVOKE ALL ON FUNCTION
	mlint.sql_lane_begin(), mlint.destination_restored(), mlint.event_settle(),
	mlint.lane_delivers(mlint.log_cursor, mlint.event, mlint.destination),
	mlint.webhook_id(mlint.event), mlint.dump_deliveries(), mlint.dump_events(),
	mlint.segment_begin(), mlint.segment_finished(int),
	mlint.event_retention_run(),
	mlint.cursor_covers(mlint.log_cursor, xid8, bigint),
	mlint.publish(text, jsonb, jsonb, text, timestamptz),
	mlint.send(text, text, jsonb, jsonb, text, timestamptz),
	mlint.event_wait(bigint, interval),
	mlint.destination_create(text, text, jsonb, text[], boolean),
	mlint.destination_alter(text, jsonb, text[], boolean),
	mlint.destination_drop(text), mlint.destination_test(text),
	mlint.dead_letter_replay(text, timestamptz),
	mlint.delivery_retry(bigint, text), mlint.breaker_reset(text),
	mlint.event_type_matches(text[], text), mlint.driver_options(),
	mlint.in_flight(), mlint.destination_stats(),
	mlint.destination_expect(text, text),
	mlint.message_text(text, text, text, int),
	mlint.slack_message(text, text, text, text),
	mlint.slack_alert(text, text, text, text, jsonb),
	mlint.discord_message(text, text, text, jsonb)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.publish(text, jsonb, jsonb, text, timestamptz),
	mlint.send(text, text, jsonb, jsonb, text, timestamptz),
	mlint.event_wait(bigint, interval),
	mlint.destination_expect(text, text),
	mlint.message_text(text, text, text, int),
	mlint.slack_message(text, text, text, text),
	mlint.slack_alert(text, text, text, text, jsonb),
	mlint.discord_message(text, text, text, jsonb)
TO mlint_user;
GRANT EXECUTE ON FUNCTION
	mlint.destination_create(text, text, jsonb, text[], boolean),
	mlint.destination_alter(text, jsonb, text[], boolean),
	mlint.destination_drop(text), mlint.destination_test(text),
	mlint.dead_letter_replay(text, timestamptz),
	mlint.delivery_retry(bigint, text), mlint.breaker_reset(text)
TO mlint_admin;
GRANT EXECUTE ON FUNCTION
	mlint.cursor_covers(mlint.log_cursor, xid8, bigint),
	mlint.event_type_matches(text[], text), mlint.driver_options(),
	mlint.in_flight(), mlint.destination_stats(),
	mlint.lane_delivers(mlint.log_cursor, mlint.event, mlint.destination),
	mlint.webhook_id(mlint.event), mlint.dump_deliveries(), mlint.dump_events()
TO mlint_reader;
GRANT SELECT ON mlint.event_types, mlint.drivers TO mlint_user, mlint_reader;
GRANT EXECUTE ON FUNCTION mlint.driver_options() TO mlint_user;
GRANT SELECT ON mlint.destinations, mlint.events, mlint.deliveries,
	mlint.dead_letters, mlint.stat_destinations
TO mlint_reader;

CREATE FUNCTION mlint.webhook_sign(payload text, secret text, id text,
	at timestamptz DEFAULT pg_catalog.now(), signature text DEFAULT 'both') RETURNS jsonb
	LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 100
	AS 'MODULE_PATHNAME', 'mlint_webhook_sign';

COMMENT ON FUNCTION mlint.webhook_sign(text, text, text, timestamptz, text) IS
	'The headers that sign a webhook: webhook-id, webhook-timestamp and webhook-signature (standard), X-Webhook-Signature (hub), or both';

CREATE FUNCTION mlint.webhook_verify(payload text, headers jsonb, secret text,
	tolerance interval DEFAULT '5 minutes', signature text DEFAULT 'both') RETURNS boolean
	LANGUAGE c VOLATILE CALLED ON NULL INPUT PARALLEL SAFE COST 100
	AS 'MODULE_PATHNAME', 'mlint_webhook_verify';

COMMENT ON FUNCTION mlint.webhook_verify(text, jsonb, text, interval, text) IS
	'Is a webhook genuine and recent? Never null. A standard signature decides where there is one; a hub signature alone carries no time and may be a replay: signature => ''standard'' refuses it';

REVOKE ALL ON FUNCTION mlint.webhook_sign(text, text, text, timestamptz, text),
	mlint.webhook_verify(text, jsonb, text, interval, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.webhook_sign(text, text, text, timestamptz, text),
	mlint.webhook_verify(text, jsonb, text, interval, text) TO mlint_user;

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

-- audit: the log of who did what, chained by hash.

-- Written by the auditor alone, appended to and never changed. A partition is
-- a month of the auditor's clock (UTC, year * 100 + month), which does not go
-- back, so months and seq grow together. Times and texts are as audit_verify()
-- hashes them; details is the text of a jsonb value.
CREATE TABLE mlint.audit_entry (
	seq bigint NOT NULL,
	month int NOT NULL,
	at timestamptz NOT NULL,
	pid int NOT NULL,
	xid xid8,
	subxid xid8,
	hash bytea NOT NULL,
	role text NOT NULL,
	session_role text NOT NULL,
	application text NOT NULL,
	client_addr text,
	action text NOT NULL,
	object_type text NOT NULL,
	object text,
	outcome text NOT NULL,
	details text,
	PRIMARY KEY (seq, month)
) PARTITION BY LIST (month);
-- Whether the transaction of an entry was rolled back.
CREATE INDEX audit_entry_rollback ON mlint.audit_entry (object)
	WHERE action = 'transaction.rolled_back';
-- What the log says of itself: the last month that was purged.
CREATE INDEX audit_entry_log ON mlint.audit_entry (action, seq)
	WHERE object_type = 'audit_log';
COMMENT ON TABLE mlint.audit_entry IS 'The audit log: append-only, each entry with the hash of itself and all before';

-- Set in place by the auditor.
CREATE SEQUENCE mlint.audit_head AS bigint;
COMMENT ON SEQUENCE mlint.audit_head IS 'The last entry of the audit log, as of a moment ago: so that entries removed from its end are missed';
CREATE SEQUENCE mlint.audit_open AS bigint;
COMMENT ON SEQUENCE mlint.audit_open IS 'The first entry of the audit log whose transaction may not have ended';

INSERT INTO mlint.event_type VALUES
	('audit.checkpoint', 'How far the audit log has come: its last entry''s number and hash');

-- Begin a month of the log.
CREATE FUNCTION mlint.audit_month_begin(month int) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	name text := 'audit_entry_' || month;
BEGIN
	EXECUTE format('CREATE TABLE mlint.%I (LIKE mlint.audit_entry INCLUDING ALL) USING heap', name);
	EXECUTE format('ALTER TABLE mlint.audit_entry ATTACH PARTITION mlint.%I FOR VALUES IN (%s)',
		name, month);
	-- A member of the extension, like the first: pg_dump leaves it out.
	IF NOT EXISTS (SELECT FROM pg_depend WHERE deptype = 'e'
		AND classid = 'pg_class'::regclass AND objid = format('mlint.%I', name)::regclass)
	THEN
		EXECUTE format('ALTER EXTENSION mlint ADD TABLE mlint.%I', name);
	END IF;
	PERFORM mlint.privileges_close();
END
$$;
COMMENT ON FUNCTION mlint.audit_month_begin(int) IS 'The auditor''s: makes the partition for a month of the audit log';
SELECT mlint.audit_month_begin(pg_catalog.to_char(
	pg_catalog.now() AT TIME ZONE 'UTC', 'YYYYMM')::int);

CREATE FUNCTION mlint.audit_note(action text, object_type text, object text,
	details jsonb, kind text DEFAULT 'changed') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_audit_note';
COMMENT ON FUNCTION mlint.audit_note(text, text, text, jsonb, text) IS
'For functions of mlint in SQL: enters an action into the audit log; a change is there on return. kind is changed, done, denied or failed';

-- Drop what is old: a job. An entry says which entries went and what the hash
-- of the last of them was, for the chain to go on from. It is made before the
-- locks are taken, because the auditor may need them; when a lock cannot be
-- had soon the entry is marked as rolled back, and the next run tries again.
CREATE FUNCTION mlint.audit_retention_run() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '500ms' AS $$
DECLARE
	retention interval := current_setting('mlint.audit_retention')::interval;
	m int;
	first_seq bigint;
	last_seq bigint;
	last_hash text;
BEGIN
	FOR m IN SELECT substr(c.relname, 13)::int
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = 'mlint.audit_entry'::regclass
			AND c.relname ~ '^audit_entry_[0-9]{5,8}$'
		ORDER BY 1
	LOOP
		EXIT WHEN (make_date(m / 100, m % 100, 1) + interval '1 month') AT TIME ZONE 'UTC'
			>= clock_timestamp() - retention;
		SELECT min(e.seq), max(e.seq) INTO first_seq, last_seq
		FROM mlint.audit_entry e WHERE e.month = m;
		SELECT encode(e.hash, 'hex') INTO last_hash
		FROM mlint.audit_entry e WHERE e.month = m AND e.seq = last_seq;
		BEGIN
			IF last_seq IS NOT NULL THEN
				PERFORM mlint.audit_note('audit.purged', 'audit_log', m::text,
					jsonb_build_object('from', first_seq, 'to', last_seq, 'hash', last_hash));
			END IF;
			EXECUTE format('LOCK TABLE ONLY mlint.audit_entry, mlint.%I IN ACCESS EXCLUSIVE MODE',
				'audit_entry_' || m);
			EXECUTE format('ALTER EXTENSION mlint DROP TABLE mlint.%I', 'audit_entry_' || m);
			EXECUTE format('DROP TABLE mlint.%I', 'audit_entry_' || m);
		EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
			RAISE LOG 'mlint: month % of the audit log is in use, it will be dropped later', m;
			EXIT;
		END;
	END LOOP;
END
$$;
COMMENT ON FUNCTION mlint.audit_retention_run() IS 'The job audit_retention: drops months of the audit log that are older than mlint.audit_retention';
INSERT INTO mlint.job (name, command, every)
VALUES ('audit_retention', 'SELECT mlint.audit_retention_run()', '6 hours');

CREATE FUNCTION mlint.audit_verify(from_seq bigint DEFAULT NULL,
	to_seq bigint DEFAULT NULL) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE COST 100000
AS 'MODULE_PATHNAME', 'mlint_audit_verify';
COMMENT ON FUNCTION mlint.audit_verify(bigint, bigint) IS
'The first entry of the audit log that was changed, removed or inserted by somebody else than mlint; null when none was. From an entry on, up to another, or all that is kept';

CREATE FUNCTION mlint.audit_buffer(OUT open boolean, OUT waiting_bytes bigint,
	OUT size_bytes bigint, OUT oldest_at timestamptz, OUT last_seq bigint)
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_audit_buffer';
COMMENT ON FUNCTION mlint.audit_buffer() IS
'Entries on their way into the audit log: whether an auditor takes them, how many bytes wait and how many could, since when the oldest does, and the number of the last that was written';

CREATE VIEW mlint.audit_log AS
SELECT e.seq, e.at, pg_catalog.current_database() AS database, e.role,
	e.session_role, e.application,
	e.client_addr::inet AS client_addr, e.pid, e.xid, e.action, e.object_type,
	e.object,
	CASE WHEN e.subxid IS NOT NULL AND EXISTS (SELECT FROM mlint.audit_entry r
			WHERE r.action = 'transaction.rolled_back' AND r.object = e.subxid::text)
		THEN 'rolled_back' ELSE e.outcome END AS outcome,
	e.details::jsonb AS details, e.hash, e.subxid
FROM mlint.audit_entry e;
COMMENT ON VIEW mlint.audit_log IS 'Who did what: one entry for each action that configures, reads a secret, was denied, overrides a limit, deletes or purges';
COMMENT ON COLUMN mlint.audit_log.seq IS 'Number of the entry; there are no gaps';
COMMENT ON COLUMN mlint.audit_log.at IS 'When it happened';
COMMENT ON COLUMN mlint.audit_log.database IS 'In which database: this one';
COMMENT ON COLUMN mlint.audit_log.role IS 'Role whose privileges it was done with';
COMMENT ON COLUMN mlint.audit_log.session_role IS 'Role that had logged in';
COMMENT ON COLUMN mlint.audit_log.application IS 'application_name of the session';
COMMENT ON COLUMN mlint.audit_log.client_addr IS 'Address of the client; null for a local one and for workers';
COMMENT ON COLUMN mlint.audit_log.pid IS 'Process that did it';
COMMENT ON COLUMN mlint.audit_log.xid IS 'Transaction that it was part of; null when that had no id yet';
COMMENT ON COLUMN mlint.audit_log.action IS 'What was done: noun.verb';
COMMENT ON COLUMN mlint.audit_log.object_type IS 'On what kind of thing';
COMMENT ON COLUMN mlint.audit_log.object IS 'On which; null when there is no single one';
COMMENT ON COLUMN mlint.audit_log.outcome IS 'ok, denied, failed, or rolled_back: the change was undone with its transaction or savepoint';
COMMENT ON COLUMN mlint.audit_log.details IS 'More about it';
COMMENT ON COLUMN mlint.audit_log.hash IS 'SHA-256 over the hash of the entry before and this entry';
COMMENT ON COLUMN mlint.audit_log.subxid IS 'For a change: the transaction or subtransaction that it stands and falls with; null for what happened whatever became of the transaction';

REVOKE ALL ON FUNCTION mlint.audit_month_begin(int),
	mlint.audit_note(text, text, text, jsonb, text), mlint.audit_retention_run(),
	mlint.audit_buffer(), mlint.audit_verify(bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.audit_verify(bigint, bigint)
	TO mlint_admin, mlint_reader;
-- Names of secrets and of roles lie in it.
GRANT SELECT ON mlint.audit_log TO mlint_admin;

-- audit, observed: whether entries get into the log, and stay there.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('audit', 'audit_buffer', false, $$
	SELECT 2, 'nobody writes the audit log: what must be entered there does not happen (ML012)',
		'The server''s log says why there is no auditor; it takes one of max_worker_processes.'
	FROM mlint.audit_buffer() b WHERE NOT b.open
	UNION ALL
	SELECT CASE WHEN b.oldest_at < clock_timestamp() - '1 minute'::interval THEN 2 ELSE 1 END,
		format('entries wait to be written to the audit log since %s', to_char(b.oldest_at, 'YYYY-MM-DD HH24:MI:SS')),
		'pg_stat_activity shows what the auditor waits for; those who act wait for it.'
	FROM mlint.audit_buffer() b
	WHERE b.oldest_at < clock_timestamp() - '10 seconds'::interval
	UNION ALL
	SELECT 1, 'the buffer before the audit log is nearly full: those who act have to wait',
		'See whether the disk keeps up, and what else the auditor waits for in pg_stat_activity.'
	FROM mlint.audit_buffer() b WHERE b.waiting_bytes > b.size_bytes * 0.9
	UNION ALL
	SELECT o.* FROM mlint.job_off('audit_retention') o$$),

-- Whoever takes entries away takes the last ones, since that leaves no gap. The
-- number comes from a sequence, which is ahead of an older snapshot; so what
-- seems to be missing is looked for in the newest one.
('audit', 'audit_log', true, $$
	SELECT 2, format('the last entry of the audit log is %s, and there have been %s: some were removed',
			coalesce(e.seq, 0), h.last_value),
		'Compare with the last audit.checkpoint that was delivered elsewhere, and with a backup; mlint.audit_verify() checks the rest.'
	FROM mlint.audit_head h
	LEFT JOIN LATERAL (SELECT e.seq FROM mlint.audit_entry e ORDER BY e.seq DESC LIMIT 1) e ON true
	WHERE h.is_called AND CASE WHEN h.last_value > coalesce(e.seq, 0)
		THEN mlint.audit_verify(h.last_value, h.last_value) IS NOT NULL END$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('audit', 'audit', false, '{}', $$
	SELECT b.last_seq, b.waiting_bytes, coalesce(greatest(0, date_part('epoch',
		clock_timestamp() - b.oldest_at)), 0) AS age
	FROM mlint.audit_buffer() b$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('audit', 'last_seq', 'mlint_audit_entries_total', 'counter', 'Entries of the audit log'),
('audit', 'waiting_bytes', 'mlint_audit_buffer_bytes', 'gauge', 'Entries that wait to be written'),
('audit', 'age', 'mlint_audit_buffer_oldest_seconds', 'gauge', 'For how long the oldest of these has waited');

-- secrets: the local store, who may use it, and the backends beside it.

CREATE TABLE mlint.wrapping_key (
	id integer PRIMARY KEY CHECK (id > 0),
	store uuid NOT NULL,
	check_value bytea NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE mlint.wrapping_key IS
	'The master keys that data keys are wrapped with: not the keys, only what they are recognized by; and the identity of this store';

CREATE TABLE mlint.secret (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_./-]{1,255}$'),
	version integer NOT NULL CHECK (version >= 0),
	latest integer NOT NULL CHECK (latest > 0),
	previous integer NOT NULL DEFAULT 0,
	previous_until timestamptz NOT NULL DEFAULT '-infinity',
	type text NOT NULL CHECK (type IN ('api_key', 'database_password',
		'ssh_key', 'tls_certificate', 'encryption_key', 'oauth_token',
		'service_account', 'webhook_secret')),
	description text,
	metadata jsonb NOT NULL DEFAULT '{}'
		CHECK (pg_catalog.jsonb_typeof(metadata) = 'object'),
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE mlint.secret IS 'The secrets by name, with the current version';

-- Room on the page for the row that a change of the master key makes.
CREATE TABLE mlint.secret_version (
	secret_id bigint NOT NULL REFERENCES mlint.secret ON DELETE CASCADE,
	version integer NOT NULL CHECK (version > 0),
	key_id integer NOT NULL,
	wrapped_key bytea,
	sealed bytea,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	created_by text NOT NULL DEFAULT pg_catalog.session_user(),
	destroyed_at timestamptz,
	destroyed_by text,
	PRIMARY KEY (secret_id, version),
	CHECK ((destroyed_at IS NULL) = (wrapped_key IS NOT NULL)
		AND (destroyed_at IS NULL) = (sealed IS NOT NULL))
) WITH (fillfactor = 50);
COMMENT ON TABLE mlint.secret_version IS
	'The versions of the secrets: each value sealed under a data key, and that wrapped with master key key_id';

CREATE TABLE mlint.secret_grant (
	pattern text COLLATE "C" NOT NULL
		CHECK (pattern ~ '^[A-Za-z0-9_./:*?-]+$'
			AND pg_catalog.length(pattern) <= 511),
	role mlint.role_id NOT NULL,
	privilege text NOT NULL
		CHECK (privilege IN ('read', 'write', 'rotate', 'admin', 'owner')),
	granted_by text NOT NULL,
	granted_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
-- By name. Those that were restored for roles that are not here may repeat
-- each other, and are looked for by nobody.
CREATE UNIQUE INDEX secret_grant_role ON mlint.secret_grant (pattern, role, privilege)
	WHERE role <> '0'::oid;
-- Grants on patterns, which every session keeps in memory.
CREATE INDEX secret_grant_wild ON mlint.secret_grant (pattern)
	WHERE pattern ~ '[*?]';
-- A secret has one owner.
CREATE UNIQUE INDEX secret_grant_owner ON mlint.secret_grant (pattern)
	WHERE privilege = 'owner';
ALTER TABLE mlint.secret_grant REPLICA IDENTITY FULL;
COMMENT ON TABLE mlint.secret_grant IS 'What which role may do with the secrets of which names';

-- No statistics: a planner's estimate would tell names to whoever asks for
-- one, and what was destroyed would stay in them.
ALTER TABLE mlint.secret ALTER name SET STATISTICS 0,
	ALTER type SET STATISTICS 0, ALTER description SET STATISTICS 0,
	ALTER metadata SET STATISTICS 0;
ALTER TABLE mlint.secret_version ALTER wrapped_key SET STATISTICS 0,
	ALTER sealed SET STATISTICS 0;
ALTER TABLE mlint.secret_grant ALTER pattern SET STATISTICS 0;

-- pg_dump takes the rows along: they open where the same master key is.
SELECT pg_catalog.pg_extension_config_dump('mlint.wrapping_key', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_version', '');
-- What was granted to a role that is gone is granted to nobody.
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_grant',
	'WHERE role::oid IN (SELECT r.oid FROM pg_catalog.pg_roles r)');

-- May the caller know of this secret?
CREATE FUNCTION mlint.secret_privileges(name text) RETURNS text[]
	LANGUAGE c STABLE STRICT PARALLEL UNSAFE COST 10
	AS 'MODULE_PATHNAME', 'mlint_secret_privileges';
COMMENT ON FUNCTION mlint.secret_privileges(text) IS
	'What the current user may do with a secret, whether it exists or not; empty for nothing';

-- Nobody's condition sees a row before ours has let it pass. OFFSET 0 keeps
-- conditions on names from an index, too: EXPLAIN ANALYZE would show whether
-- there is a name that the caller must not know.
CREATE VIEW mlint.secrets WITH (security_barrier) AS
SELECT s.name, s.type, s.description,
	(SELECT nullif(g.role::text, '') FROM mlint.secret_grant g
	 WHERE g.pattern = s.name AND g.privilege = 'owner') AS owner,
	s.privileges,
	nullif(s.version, 0) AS version,
	(SELECT pg_catalog.count(*) FROM mlint.secret_version v
	 WHERE v.secret_id = s.id AND v.destroyed_at IS NULL) AS versions,
	CASE WHEN s.previous_until > pg_catalog.clock_timestamp()
		THEN s.previous END AS previous,
	CASE WHEN s.previous_until > pg_catalog.clock_timestamp()
		THEN s.previous_until END AS previous_until,
	s.metadata, s.created_at, s.updated_at
FROM (SELECT a.*, mlint.secret_privileges(a.name) AS privileges
	FROM mlint.secret a OFFSET 0) s
WHERE s.privileges <> '{}';

COMMENT ON VIEW mlint.secrets IS 'The secrets of the local store that the current user may do something with, without their values';
COMMENT ON COLUMN mlint.secrets.name IS 'Name of the secret';
COMMENT ON COLUMN mlint.secrets.type IS 'What kind of credential it is';
COMMENT ON COLUMN mlint.secrets.description IS 'What it is for';
COMMENT ON COLUMN mlint.secrets.owner IS 'Role that has all privileges on it, at first whoever stored it; null when there is none, after a restore for instance';
COMMENT ON COLUMN mlint.secrets.privileges IS 'What the current user may do with it: read, write, rotate, admin';
COMMENT ON COLUMN mlint.secrets.version IS 'Current version, the one that is used where none is named';
COMMENT ON COLUMN mlint.secrets.versions IS 'How many versions are kept, without destroyed ones';
COMMENT ON COLUMN mlint.secrets.previous IS 'Version that is valid beside the current one, during the grace of a rotation';
COMMENT ON COLUMN mlint.secrets.previous_until IS 'When that ends';
COMMENT ON COLUMN mlint.secrets.metadata IS 'What was stored about it';
COMMENT ON COLUMN mlint.secrets.created_at IS 'When the first version was stored';
COMMENT ON COLUMN mlint.secrets.updated_at IS 'When the current version became it';

CREATE VIEW mlint.secret_grants WITH (security_barrier) AS
SELECT g.pattern, nullif(g.role::text, '') AS role, g.privilege, g.granted_by, g.granted_at
FROM (SELECT a.*, 'admin' = ANY (mlint.secret_privileges(a.pattern))
		OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = a.role::oid
			AND pg_catalog.pg_has_role(current_user, r.oid, 'USAGE')) AS visible
	FROM mlint.secret_grant a OFFSET 0) g
WHERE g.visible;
COMMENT ON VIEW mlint.secret_grants IS 'Who may do what with which secrets, as far as it is the current user''s or his to change';
COMMENT ON COLUMN mlint.secret_grants.pattern IS 'Name of a secret, or a pattern of names: * stands for any characters, ? for one';
COMMENT ON COLUMN mlint.secret_grants.role IS 'Role that may, and with it its members; null when it is gone';
COMMENT ON COLUMN mlint.secret_grants.privilege IS 'read, write, rotate or admin (all of these, and to grant them); owner for whoever stored it first';
COMMENT ON COLUMN mlint.secret_grants.granted_by IS 'Who granted it';
COMMENT ON COLUMN mlint.secret_grants.granted_at IS 'When';

CREATE FUNCTION mlint.secret_put(name text, value text, type text DEFAULT NULL,
	description text DEFAULT NULL, metadata jsonb DEFAULT NULL,
	backend text DEFAULT 'local') RETURNS integer
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_put';
COMMENT ON FUNCTION mlint.secret_put(text, text, text, text, jsonb, text) IS
	'Store a value of 1 byte to 64 KiB as a new version of a secret, and return the version; give the value as a bind parameter';

CREATE FUNCTION mlint.secret_put_bytes(name text, value bytea, type text DEFAULT NULL,
	description text DEFAULT NULL, metadata jsonb DEFAULT NULL,
	backend text DEFAULT 'local') RETURNS integer
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_put_bytes';
COMMENT ON FUNCTION mlint.secret_put_bytes(text, bytea, text, text, jsonb, text) IS
	'secret_put for a value that is not text';

CREATE FUNCTION mlint.secret_get(name text, version integer DEFAULT NULL,
	backend text DEFAULT 'local') RETURNS text
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_secret_get';
COMMENT ON FUNCTION mlint.secret_get(text, integer, text) IS
	'The value of a secret, of the current version unless another is named';

CREATE FUNCTION mlint.secret_get(name text, version text, backend text) RETURNS text
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_secret_get';
COMMENT ON FUNCTION mlint.secret_get(text, text, text) IS
	'The value of a secret in a backend whose versions are no numbers';

CREATE FUNCTION mlint.secret_get_bytes(name text, version integer DEFAULT NULL,
	backend text DEFAULT 'local') RETURNS bytea
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_secret_get_bytes';
COMMENT ON FUNCTION mlint.secret_get_bytes(text, integer, text) IS
	'secret_get for a value that need not be text';

CREATE FUNCTION mlint.secret_get_bytes(name text, version text, backend text) RETURNS bytea
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_secret_get_bytes';
COMMENT ON FUNCTION mlint.secret_get_bytes(text, text, text) IS
	'secret_get_bytes for a backend whose versions are no numbers';

CREATE FUNCTION mlint.secret_versions(name text, backend text DEFAULT 'local',
	OUT version text, OUT state text, OUT created_at timestamptz,
	OUT created_by text, OUT destroyed_at timestamptz, OUT destroyed_by text)
	RETURNS SETOF record
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 10
	AS 'MODULE_PATHNAME', 'mlint_secret_versions';
COMMENT ON FUNCTION mlint.secret_versions(text, text) IS
	'The versions of a secret, newest first: current, previous (still valid), waiting (not current yet), old or destroyed';

CREATE FUNCTION mlint.secret_destroy(name text, version integer) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_destroy';
COMMENT ON FUNCTION mlint.secret_destroy(text, integer) IS
	'Forget the key of one version, whose value is then gone for good';

CREATE FUNCTION mlint.secret_drop(name text, backend text DEFAULT 'local') RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_drop';
COMMENT ON FUNCTION mlint.secret_drop(text, text) IS 'Remove a secret with all its versions and the grants on its name';

CREATE FUNCTION mlint.secret_alter(name text, type text DEFAULT NULL,
	description text DEFAULT NULL, metadata jsonb DEFAULT NULL,
	owner text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_alter';
COMMENT ON FUNCTION mlint.secret_alter(text, text, text, jsonb, text) IS
	'Change what is kept about a secret, or its owner; what is null stays';

CREATE FUNCTION mlint.secret_grant(name_pattern text, role text, privilege text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_grant';
COMMENT ON FUNCTION mlint.secret_grant(text, text, text) IS
	'Let a role read, write, rotate or administer (admin) the secrets of a name or a pattern of names';

CREATE FUNCTION mlint.secret_revoke(name_pattern text, role text, privilege text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_revoke';
COMMENT ON FUNCTION mlint.secret_revoke(text, text, text) IS
	'Take back what mlint.secret_grant gave, with the same pattern';

CREATE FUNCTION mlint.master_keys(counted boolean DEFAULT true,
	OUT key_id integer, OUT state text,
	OUT source text, OUT created_at timestamptz, OUT versions bigint,
	OUT data_keys bigint, OUT available boolean, OUT warning text)
	RETURNS SETOF record
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE COST 1000 ROWS 2
	AS 'MODULE_PATHNAME', 'mlint_master_keys';
COMMENT ON FUNCTION mlint.master_keys(boolean) IS 'What mlint.master_key shows; not counted: without going through all that is sealed, so of older keys it is not known whether anything needs them';

CREATE VIEW mlint.master_key AS
SELECT k.key_id, k.state, k.source, k.created_at,
	pg_catalog.clock_timestamp() - k.created_at AS age, k.versions,
	k.data_keys, k.available, k.warning
FROM mlint.master_keys() k;
COMMENT ON VIEW mlint.master_key IS 'The master keys that the secrets of this database are or were sealed with';
COMMENT ON COLUMN mlint.master_key.key_id IS 'Number of the key, counted in this database';
COMMENT ON COLUMN mlint.master_key.state IS 'current: new versions are sealed with it; retiring: there is something left to be sealed anew; retired: nothing in this database needs it, older backups may';
COMMENT ON COLUMN mlint.master_key.source IS 'Where this server takes its keys from';
COMMENT ON COLUMN mlint.master_key.created_at IS 'When this database began to use it';
COMMENT ON COLUMN mlint.master_key.age IS 'How long ago that was';
COMMENT ON COLUMN mlint.master_key.versions IS 'Versions of secrets that are sealed with it';
COMMENT ON COLUMN mlint.master_key.data_keys IS 'Data keys of other rooms that are sealed with it, those of archives for instance';
COMMENT ON COLUMN mlint.master_key.available IS 'Whether the source gives the key now; on a standby, whether the secrets would open after promotion';
COMMENT ON COLUMN mlint.master_key.warning IS 'What should be done about it; null when all is well';

CREATE FUNCTION mlint.master_key_rotate() RETURNS integer
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_master_key_rotate';
COMMENT ON FUNCTION mlint.master_key_rotate() IS
	'Seal new versions with a new master key, and all others too as soon as the transaction has committed: the job master_key_rewrap';

CREATE FUNCTION mlint.secret_rewrap(after_id bigint, batch integer,
	OUT last_id bigint, OUT rewrapped bigint)
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rewrap';
COMMENT ON FUNCTION mlint.secret_rewrap(bigint, integer) IS
	'The job master_key_rewrap''s: seals the data keys of some secrets anew';

CREATE FUNCTION mlint.data_key_rewrap(after_id bigint, batch integer,
	OUT last_id bigint, OUT rewrapped bigint)
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_data_key_rewrap';
COMMENT ON FUNCTION mlint.data_key_rewrap(bigint, integer) IS
	'The job master_key_rewrap''s: seals some data keys of other rooms anew';

-- A batch a transaction, so that nobody waits for long and a crash loses one;
-- as long asleep as at work, so that readers keep their processors.
CREATE PROCEDURE mlint.secret_rewrap_all()
LANGUAGE plpgsql AS $$
DECLARE
	position bigint := 0;
	began pg_catalog.timestamptz;
BEGIN
	-- While a dump is restored, keys are there before what they are wrapped with.
	IF NOT EXISTS (SELECT FROM mlint.wrapping_key) THEN
		RETURN;
	END IF;
	WHILE position IS NOT NULL LOOP
		began := pg_catalog.clock_timestamp();
		SELECT r.last_id INTO position
		FROM mlint.secret_rewrap(position, 2000) r;
		COMMIT;
		PERFORM pg_catalog.pg_sleep(pg_catalog.date_part('epoch',
			pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began));
	END LOOP;
	position := 0;
	WHILE position IS NOT NULL LOOP
		began := pg_catalog.clock_timestamp();
		SELECT r.last_id INTO position
		FROM mlint.data_key_rewrap(position, 2000) r;
		COMMIT;
		PERFORM pg_catalog.pg_sleep(pg_catalog.date_part('epoch',
			pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began));
	END LOOP;
END
$$;
COMMENT ON PROCEDURE mlint.secret_rewrap_all() IS
	'The job master_key_rewrap: seals what an older master key seals with the current one';
INSERT INTO mlint.job (name, command, every)
VALUES ('master_key_rewrap', 'CALL mlint.secret_rewrap_all()', '1 day');

-- ---- data keys of other rooms ----

-- Room on the page for the row that a change of the master key makes.
CREATE TABLE mlint.data_key (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	purpose text NOT NULL CHECK (pg_catalog.length(purpose) <= 100),
	tree uuid NOT NULL,
	leaf bigint NOT NULL CHECK (leaf >= 0),
	key_id integer NOT NULL,
	wrapped bytea NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
) WITH (fillfactor = 50);
COMMENT ON TABLE mlint.data_key IS
	'Keys that other rooms seal with: random bytes wrapped with master key key_id, which only make a key together with a leaf of the erasure key file';
ALTER TABLE mlint.data_key ALTER wrapped SET STATISTICS 0;

-- Kept: another copy of the file may still have the leaf.
CREATE TABLE mlint.data_key_destroyed (
	id bigint PRIMARY KEY,
	tree uuid NOT NULL,
	leaf bigint NOT NULL,
	destroyed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	erased_at timestamptz
);
-- What the job data_key_erase has to do.
CREATE INDEX data_key_destroyed_waiting ON mlint.data_key_destroyed (tree)
	WHERE erased_at IS NULL;
COMMENT ON TABLE mlint.data_key_destroyed IS
	'Data keys that were destroyed, and when their leaves were cut out of the erasure key file';

-- Not dumped: of this server's file.
CREATE TABLE mlint.erasure_key_revision (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	revision uuid NOT NULL
);
COMMENT ON TABLE mlint.erasure_key_revision IS
	'The erasure key file as it was when all destroyed leaves were last held against it';

SELECT pg_catalog.pg_extension_config_dump('mlint.data_key', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.data_key_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.data_key_destroyed', '');
CREATE TRIGGER job_enable AFTER INSERT ON mlint.data_key_destroyed
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('data_key_erase');
ALTER TABLE mlint.data_key_destroyed ENABLE ALWAYS TRIGGER job_enable;

CREATE FUNCTION mlint.data_key_erase(OUT erased bigint, OUT more boolean)
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_data_key_erase';
COMMENT ON FUNCTION mlint.data_key_erase() IS
	'The job data_key_erase''s: cuts leaves of destroyed data keys out of the erasure key file';

CREATE PROCEDURE mlint.data_key_erase_all()
LANGUAGE plpgsql AS $$
DECLARE
	again boolean := true;
	elsewhere bigint;
BEGIN
	WHILE again LOOP
		SELECT e.more INTO again FROM mlint.data_key_erase() e;
		COMMIT;
	END LOOP;
	SELECT pg_catalog.count(*) INTO elsewhere
	FROM mlint.data_key_destroyed d WHERE d.erased_at IS NULL
		AND d.tree OPERATOR(pg_catalog.<>) (SELECT s.tree FROM mlint.erasure_key_state() s);
	IF elsewhere OPERATOR(pg_catalog.>) 0 THEN
		RAISE EXCEPTION '% destroyed data keys are of another erasure key file', elsewhere
			USING ERRCODE = 'ML010',
				HINT = 'Put that file in its place once, or set mlint.erasure_key_file to where it is, so that they are cut out of it.';
	END IF;
END
$$;
COMMENT ON PROCEDURE mlint.data_key_erase_all() IS
	'The job data_key_erase: makes it impossible to derive data keys that were destroyed, from any copy of the database';
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('data_key_erase', 'CALL mlint.data_key_erase_all()', '1 day', false);

CREATE FUNCTION mlint.erasure_key_state(OUT source text,
	OUT in_data_directory boolean, OUT available boolean, OUT tree uuid,
	OUT bytes bigint, OUT problem text)
	LANGUAGE c VOLATILE PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_erasure_key_state';
COMMENT ON FUNCTION mlint.erasure_key_state() IS 'Behind the view mlint.erasure_key';

CREATE VIEW mlint.erasure_key AS
SELECT s.source, s.in_data_directory, s.available, s.bytes, k.keys,
	d.destroyed, d.waiting, d.waiting_since,
	CASE WHEN k.keys = 0 AND coalesce(d.waiting, 0) = 0 AND NOT s.available THEN NULL
		WHEN s.problem IS NOT NULL THEN s.problem
		WHEN k.elsewhere OR d.elsewhere THEN 'there are data keys of another erasure key file: they do not open, nor can they be erased, without that'
		WHEN s.in_data_directory AND (k.keys > 0 OR d.destroyed > 0)
			THEN 'the file lies in the data directory: base backups contain it, so what was destroyed can still be read from them, and pg_rewind replaces or removes it; see mlint.erasure_key_file'
	END AS warning
FROM mlint.erasure_key_state() s,
	LATERAL (SELECT pg_catalog.count(*) AS keys,
			pg_catalog.bool_or(a.tree <> s.tree) AS elsewhere
		FROM mlint.data_key a) k,
	LATERAL (SELECT pg_catalog.count(*) AS destroyed,
			pg_catalog.count(*) FILTER (WHERE a.erased_at IS NULL) AS waiting,
			pg_catalog.min(a.destroyed_at) FILTER (WHERE a.erased_at IS NULL) AS waiting_since,
			pg_catalog.bool_or(a.tree <> s.tree AND a.erased_at IS NULL) AS elsewhere
		FROM mlint.data_key_destroyed a) d;
COMMENT ON VIEW mlint.erasure_key IS 'The file that data keys are made with, and from which destroyed ones are erased: one row';
COMMENT ON COLUMN mlint.erasure_key.source IS 'Where this server expects the file';
COMMENT ON COLUMN mlint.erasure_key.in_data_directory IS 'Whether it lies in the data directory, so that base backups contain it';
COMMENT ON COLUMN mlint.erasure_key.available IS 'Whether it is there and in order';
COMMENT ON COLUMN mlint.erasure_key.bytes IS 'Its size, which grows with what is destroyed here and there';
COMMENT ON COLUMN mlint.erasure_key.keys IS 'Data keys in this database';
COMMENT ON COLUMN mlint.erasure_key.destroyed IS 'Data keys of this database that were destroyed';
COMMENT ON COLUMN mlint.erasure_key.waiting IS 'Those among them that the job data_key_erase has yet to erase from the file';
COMMENT ON COLUMN mlint.erasure_key.waiting_since IS 'When the oldest of these was destroyed';
COMMENT ON COLUMN mlint.erasure_key.warning IS 'What should be done about it; null when all is well';

REVOKE ALL ON FUNCTION mlint.data_key_rewrap(bigint, integer),
	mlint.data_key_erase(), mlint.erasure_key_state() FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.data_key_erase_all() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.erasure_key_state() TO mlint_reader;
GRANT SELECT ON mlint.erasure_key TO mlint_reader;

REVOKE ALL ON FUNCTION
	mlint.secret_privileges(text),
	mlint.secret_put(text, text, text, text, jsonb, text),
	mlint.secret_put_bytes(text, bytea, text, text, jsonb, text),
	mlint.secret_get(text, integer, text), mlint.secret_get(text, text, text),
	mlint.secret_get_bytes(text, integer, text),
	mlint.secret_get_bytes(text, text, text),
	mlint.secret_versions(text, text), mlint.secret_destroy(text, integer),
	mlint.secret_drop(text, text),
	mlint.secret_alter(text, text, text, jsonb, text),
	mlint.secret_grant(text, text, text), mlint.secret_revoke(text, text, text),
	mlint.master_keys(boolean), mlint.master_key_rotate(),
	mlint.secret_rewrap(bigint, integer) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.secret_rewrap_all() FROM PUBLIC;
-- Each asks for the privilege on the secret itself.
GRANT EXECUTE ON FUNCTION
	mlint.secret_put(text, text, text, text, jsonb, text),
	mlint.secret_put_bytes(text, bytea, text, text, jsonb, text),
	mlint.secret_get(text, integer, text), mlint.secret_get(text, text, text),
	mlint.secret_get_bytes(text, integer, text),
	mlint.secret_get_bytes(text, text, text),
	mlint.secret_versions(text, text), mlint.secret_destroy(text, integer),
	mlint.secret_drop(text, text),
	mlint.secret_alter(text, text, text, jsonb, text),
	mlint.secret_grant(text, text, text), mlint.secret_revoke(text, text, text)
	TO mlint_user;
GRANT EXECUTE ON FUNCTION mlint.secret_privileges(text) TO mlint_user, mlint_reader;
GRANT EXECUTE ON FUNCTION mlint.master_keys(boolean) TO mlint_reader;
GRANT EXECUTE ON FUNCTION mlint.master_key_rotate() TO mlint_admin;
GRANT SELECT ON mlint.secrets, mlint.secret_grants TO mlint_user, mlint_reader;
GRANT SELECT ON mlint.master_key TO mlint_reader;

-- ---- backends ----

CREATE TABLE mlint.secret_backend (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_.-]{1,63}$' AND name <> 'local'),
	kind text NOT NULL,
	options jsonb NOT NULL CHECK (pg_catalog.jsonb_typeof(options) = 'object'),
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz
);
COMMENT ON TABLE mlint.secret_backend IS 'Systems that keep secrets for us, and how to reach them';
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_backend', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_backend_id_seq', '');

CREATE FUNCTION mlint.secret_backend_create(name text, kind text,
	options jsonb DEFAULT '{}') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_backend_create';
COMMENT ON FUNCTION mlint.secret_backend_create(text, text, jsonb) IS
	'Add a system that keeps secrets: mlint.secret_backend_kinds shows the kinds and their options';

CREATE FUNCTION mlint.secret_backend_alter(name text, options jsonb) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_backend_alter';
COMMENT ON FUNCTION mlint.secret_backend_alter(text, jsonb) IS
	'Change options of a secret backend; those not given stay, null takes one away';

CREATE FUNCTION mlint.secret_backend_drop(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_backend_drop';
COMMENT ON FUNCTION mlint.secret_backend_drop(text) IS
	'Forget a secret backend; what it keeps stays there';

CREATE FUNCTION mlint.secret_backend_test(name text) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_backend_test';
COMMENT ON FUNCTION mlint.secret_backend_test(text) IS
	'Log in to a secret backend and make a call that changes nothing; raises the error if that fails';

CREATE FUNCTION mlint.secret_cache_drop(backend text DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_cache_drop';
COMMENT ON FUNCTION mlint.secret_cache_drop(text) IS
	'Forget the values that were read from a secret backend, or from all';

-- The backends' part of mlint.secret_list().
CREATE FUNCTION mlint.secret_backend_list(backend text, prefix text) RETURNS SETOF text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_list';
COMMENT ON FUNCTION mlint.secret_backend_list(text, text) IS 'Behind mlint.secret_list()';

CREATE FUNCTION mlint.secret_list(backend text, prefix text DEFAULT '')
RETURNS TABLE (name text)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF backend = 'local' THEN
		RETURN QUERY SELECT s.name FROM mlint.secrets s
			WHERE starts_with(s.name, prefix) ORDER BY s.name;
	ELSE
		RETURN QUERY SELECT l FROM mlint.secret_backend_list(backend, prefix) l
			ORDER BY l COLLATE "C";
	END IF;
END
$$;
COMMENT ON FUNCTION mlint.secret_list(text, text) IS
	'The names of the secrets in a backend that begin with a prefix';

CREATE FUNCTION mlint.secret_refresh() RETURNS int
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_secret_refresh';
COMMENT ON FUNCTION mlint.secret_refresh() IS
	'The job secret_refresh''s: reads again what dispatchers use from backends before it runs out, tells them what has changed, renews tokens; returns how many changed';

-- From the first use on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('secret_refresh', 'SELECT mlint.secret_refresh()', '1 minute', false);

CREATE FUNCTION mlint.secret_backend_options(OUT kind text, OUT option text,
	OUT type text, OUT "default" text, OUT bounds text, OUT required boolean,
	OUT help text) RETURNS SETOF record
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'mlint_secret_backend_options';
COMMENT ON FUNCTION mlint.secret_backend_options() IS 'Behind the view mlint.secret_backend_kinds';

CREATE VIEW mlint.secret_backend_kinds AS SELECT * FROM mlint.secret_backend_options();
COMMENT ON VIEW mlint.secret_backend_kinds IS 'Kinds of secret backends and the options that they take';
COMMENT ON COLUMN mlint.secret_backend_kinds.kind IS 'Name of the kind';
COMMENT ON COLUMN mlint.secret_backend_kinds.option IS 'Name of the option; group.option lies in an object of its own';
COMMENT ON COLUMN mlint.secret_backend_kinds.type IS 'Type of its value';
COMMENT ON COLUMN mlint.secret_backend_kinds."default" IS 'Value when it is not given; null: none';
COMMENT ON COLUMN mlint.secret_backend_kinds.bounds IS 'Range or choices';
COMMENT ON COLUMN mlint.secret_backend_kinds.required IS 'Whether it must be given';
COMMENT ON COLUMN mlint.secret_backend_kinds.help IS 'What it does';

CREATE FUNCTION mlint.secret_backend_state(backend int, OUT breaker text,
	OUT breaker_until timestamptz, OUT cached int, OUT hits bigint,
	OUT misses bigint, OUT stale bigint, OUT last_success_at timestamptz,
	OUT last_error text, OUT last_error_at timestamptz)
LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_secret_backend_state';
COMMENT ON FUNCTION mlint.secret_backend_state(int) IS 'Behind the view mlint.secret_backends';

CREATE VIEW mlint.secret_backends AS
SELECT b.name, b.kind, b.options, s.breaker, s.breaker_until, s.cached,
	s.hits, s.misses, s.stale, s.last_success_at, s.last_error,
	s.last_error_at, b.created_at, b.altered_at
FROM mlint.secret_backend b, LATERAL mlint.secret_backend_state(b.id) s;
COMMENT ON VIEW mlint.secret_backends IS 'Systems that keep secrets for us, and how they do; counters are since the server started';
COMMENT ON COLUMN mlint.secret_backends.name IS 'Name of the backend';
COMMENT ON COLUMN mlint.secret_backends.kind IS 'What sort of system it is';
COMMENT ON COLUMN mlint.secret_backends.options IS 'Its options; credentials appear as references only';
COMMENT ON COLUMN mlint.secret_backends.breaker IS 'Circuit breaker: closed, open or half-open';
COMMENT ON COLUMN mlint.secret_backends.breaker_until IS 'Open: when one call will be tried';
COMMENT ON COLUMN mlint.secret_backends.cached IS 'Values that are kept in memory, sealed';
COMMENT ON COLUMN mlint.secret_backends.hits IS 'Reads that a kept value answered';
COMMENT ON COLUMN mlint.secret_backends.misses IS 'Reads that went to the backend';
COMMENT ON COLUMN mlint.secret_backends.stale IS 'Reads among these that a kept value answered after its time, because the backend was down';
COMMENT ON COLUMN mlint.secret_backends.last_success_at IS 'When a call last succeeded';
COMMENT ON COLUMN mlint.secret_backends.last_error IS 'Why a call last failed';
COMMENT ON COLUMN mlint.secret_backends.last_error_at IS 'When that was';
COMMENT ON COLUMN mlint.secret_backends.created_at IS 'When the backend was created';
COMMENT ON COLUMN mlint.secret_backends.altered_at IS 'When its options were last changed';

REVOKE ALL ON FUNCTION
	mlint.secret_backend_create(text, text, jsonb),
	mlint.secret_backend_alter(text, jsonb), mlint.secret_backend_drop(text),
	mlint.secret_backend_test(text), mlint.secret_cache_drop(text),
	mlint.secret_backend_list(text, text), mlint.secret_list(text, text),
	mlint.secret_refresh(), mlint.secret_backend_options(),
	mlint.secret_backend_state(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.secret_backend_create(text, text, jsonb),
	mlint.secret_backend_alter(text, jsonb), mlint.secret_backend_drop(text),
	mlint.secret_backend_test(text), mlint.secret_cache_drop(text),
	mlint.secret_backend_list(text, text), mlint.secret_list(text, text)
	TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.secret_backend_options(),
	mlint.secret_backend_state(int) TO mlint_reader;
GRANT SELECT ON mlint.secret_backend_kinds, mlint.secret_backends TO mlint_reader;
-- secrets, observed: the keys, and the systems that keep secrets for us.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
-- What older keys still seal is the oldest there is: looking at some will do.
-- That a key lies in the data directory is no failure; mlint.master_key says so.
('secrets', 'master_key', true, $$
	WITH k AS MATERIALIZED (SELECT * FROM mlint.master_keys(counted => false)),
	used AS (
		SELECT key_id FROM (SELECT v.key_id FROM mlint.secret_version v
			WHERE v.destroyed_at IS NULL ORDER BY v.secret_id, v.version LIMIT 10000) v
		UNION
		SELECT key_id FROM (SELECT a.key_id FROM mlint.data_key a ORDER BY a.id LIMIT 10000) a
	)
	SELECT 2, format('master key %s is not to be had: %s', k.key_id, k.warning),
		'Put back the file, or correct mlint.master_key_file or mlint.master_key_command: nothing that is sealed with it opens.'
	FROM k WHERE k.state = 'current' AND NOT k.available
	UNION ALL
	SELECT 2, format('master key %s, which is still needed, is not to be had', k.key_id),
		'Let the source give it beside the current one, and run mlint.job_run_now(''master_key_rewrap'').'
	FROM k WHERE k.state IS DISTINCT FROM 'current' AND NOT k.available
		AND k.key_id IN (SELECT key_id FROM used)
	UNION ALL
	SELECT 1, format('what master key %s seals is not all sealed anew, a day after the next one came', k.key_id),
		'mlint.jobs tells how the job master_key_rewrap goes.'
	FROM k WHERE k.state IS DISTINCT FROM 'current' AND k.available
		AND k.key_id IN (SELECT key_id FROM used)
		AND (SELECT max(n.created_at) FROM k n) < clock_timestamp() - '1 day'::interval
	UNION ALL
	SELECT o.* FROM mlint.job_off('master_key_rewrap') o WHERE EXISTS (SELECT FROM k)$$),

('secrets', 'erasure_key', true, $$
	WITH s AS MATERIALIZED (SELECT * FROM mlint.erasure_key_state()),
	-- The first and the last: one file is made after the other.
	a AS (
		(SELECT a.tree FROM mlint.data_key a ORDER BY a.id LIMIT 1)
		UNION
		(SELECT a.tree FROM mlint.data_key a ORDER BY a.id DESC LIMIT 1)
	), waiting AS (
		SELECT count(*) AS n, min(d.destroyed_at) AS since, bool_or(d.tree <> s.tree) AS elsewhere
		FROM (SELECT d.tree, d.destroyed_at FROM mlint.data_key_destroyed d
			WHERE d.erased_at IS NULL LIMIT 10000) d, s
	)
	SELECT 2, s.problem,
		'Put the file back where mlint.erasure_key says: without it no archive opens.'
	FROM s WHERE s.problem IS NOT NULL AND (EXISTS (SELECT FROM a) OR (SELECT w.n FROM waiting w) > 0)
	UNION ALL
	SELECT 2, 'there are data keys of another erasure key file: they do not open without that',
		'Let mlint.erasure_key_file be the file that they were made with.'
	FROM s WHERE s.problem IS NULL AND EXISTS (SELECT FROM a WHERE a.tree <> s.tree)
	UNION ALL
	SELECT 2, format('data keys that were destroyed are not erased from the file yet (%s), the oldest since %s%s',
			CASE WHEN w.n >= 10000 THEN '10000 or more' ELSE w.n::text END,
			to_char(w.since, 'YYYY-MM-DD HH24:MI'),
			CASE WHEN w.elsewhere THEN '; some are of another file' ELSE '' END),
		'mlint.jobs tells why the job data_key_erase does not get on: until then they can be read from backups.'
	FROM waiting w WHERE w.since < clock_timestamp() - '1 hour'::interval
	UNION ALL
	SELECT o.* FROM mlint.job_off('data_key_erase') o, waiting w WHERE w.n > 0$$),

('secrets', 'secret_backends', false, $$
	SELECT 2, format('secret backend "%s" fails, its breaker is %s: %s', b.name, s.breaker, s.last_error),
		'Put right what the error names; mlint.secret_backend_test() tries it. Values that are kept in memory serve meanwhile.'
	FROM mlint.secret_backend b, mlint.secret_backend_state(b.id) s
	WHERE s.breaker <> 'closed'
	UNION ALL
	SELECT 1, format('secret backend "%s" failed at its last call: %s', b.name, s.last_error),
		'Put right what the error names; mlint.secret_backend_test() tries it.'
	FROM mlint.secret_backend b, mlint.secret_backend_state(b.id) s
	WHERE s.breaker = 'closed' AND s.last_error_at > coalesce(s.last_success_at, '-infinity')$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('secrets', 'secret_backends', false, '{backend}', $$
	SELECT b.name AS backend, s.breaker <> 'closed' AS breaker_open, s.cached, s.hits,
		s.misses, s.stale, date_part('epoch', s.last_success_at) AS success_at
	FROM mlint.secret_backend b, mlint.secret_backend_state(b.id) s ORDER BY b.name$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('secret_backends', 'breaker_open', 'mlint_secret_backend_breaker_open', 'gauge', 'Whether the circuit breaker is open, or half-open'),
('secret_backends', 'cached', 'mlint_secret_backend_cached_values', 'gauge', 'Values that are kept in memory, sealed'),
('secret_backends', 'hits', 'mlint_secret_backend_hits_total', 'counter', 'Reads that a kept value answered'),
('secret_backends', 'misses', 'mlint_secret_backend_misses_total', 'counter', 'Reads that went to the backend'),
('secret_backends', 'stale', 'mlint_secret_backend_stale_total', 'counter', 'Reads among these that a kept value answered after its time, because the backend was down'),
('secret_backends', 'success_at', 'mlint_secret_backend_last_success_timestamp_seconds', 'gauge', 'When a call last succeeded');

-- rotation: secrets that change by themselves.

-- The state is how far the version being tried has got: generated (stored, and
-- nobody was told), applying (the target has it, or not), verifying (the target
-- has it), restoring (the target may have it, and is to have the current one).
CREATE TABLE mlint.secret_rotation (
	secret_id bigint PRIMARY KEY REFERENCES mlint.secret ON DELETE CASCADE,
	owner mlint.role_id NOT NULL,
	every interval NOT NULL CHECK (every > '0'),
	generator jsonb NOT NULL,
	apply jsonb,
	verify jsonb,
	grace interval NOT NULL CHECK (grace >= '0'),
	warn_before interval NOT NULL CHECK (warn_before >= '0'),
	on_failure jsonb NOT NULL,
	state text NOT NULL DEFAULT 'idle'
		CHECK (state IN ('idle', 'generated', 'applying', 'verifying', 'restoring')),
	paused boolean NOT NULL DEFAULT false,
	version int CHECK ((version IS NULL) = (state = 'idle')),
	old_version int CHECK ((old_version IS NULL) = (state = 'idle')),
	event_id bigint,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	next_at timestamptz NOT NULL,
	last_rotated_at timestamptz,
	overlap_until timestamptz,
	failures int NOT NULL DEFAULT 0,
	last_error text,
	warned_version int
);
COMMENT ON TABLE mlint.secret_rotation IS 'Which secrets are rotated, how, and how far that has got';
-- A copy must not change the passwords of what it was copied from, unasked.
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_rotation', $$WHERE false
	UNION ALL SELECT secret_id, owner, every, generator, apply, verify, grace,
		warn_before, on_failure, state, true, version, old_version, event_id,
		created_at, next_at, last_rotated_at, overlap_until, failures, last_error,
		warned_version
	FROM mlint.secret_rotation$$);

CREATE TABLE mlint.secret_public_key (
	secret_id bigint NOT NULL REFERENCES mlint.secret ON DELETE CASCADE,
	version int NOT NULL,
	public_key text NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	PRIMARY KEY (secret_id, version)
);
COMMENT ON TABLE mlint.secret_public_key IS 'The public parts of key pairs that rotation generated';
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_public_key', '');

INSERT INTO mlint.event_type VALUES
	('secret.rotated', 'A secret has a new current version'),
	('secret.rotation_failed', 'A rotation failed; the version before stays current'),
	('secret.expiring', 'A secret''s rotation is due soon, or overdue'),
	('secret.apply', 'For the destination of a rotation: the version of a secret to use from now on');

-- As in mlint.secrets, nothing but these conditions chooses among names.
CREATE VIEW mlint.rotations WITH (security_barrier) AS
SELECT s.name, CASE WHEN r.paused THEN 'paused' ELSE r.state END AS state,
	r.every, r.last_rotated_at, r.next_at, r.failures, r.last_error,
	CASE WHEN r.state <> 'idle' THEN r.state END AS step,
	s.version AS current_version, r.version AS trying_version,
	r.overlap_until, r.generator, r.apply, r.verify, r.grace, r.warn_before,
	r.on_failure, nullif(r.owner::text, '') AS owner, r.created_at
FROM mlint.secret_rotation r
JOIN (SELECT a.id, a.name, a.version,
		mlint.secret_privileges(a.name) AS privileges
	FROM mlint.secret a OFFSET 0) s ON s.id = r.secret_id
WHERE s.privileges <> '{}';
COMMENT ON VIEW mlint.rotations IS 'The secrets that are rotated, of those that the current user may do something with';
COMMENT ON COLUMN mlint.rotations.name IS 'Name of the secret';
COMMENT ON COLUMN mlint.rotations.state IS 'idle, paused, or the step that is to come: generated, applying, verifying, restoring';
COMMENT ON COLUMN mlint.rotations.every IS 'Time from one rotation to the next';
COMMENT ON COLUMN mlint.rotations.last_rotated_at IS 'When a new version last became current';
COMMENT ON COLUMN mlint.rotations.next_at IS 'When the next rotation, or the next attempt, is due';
COMMENT ON COLUMN mlint.rotations.failures IS 'Attempts in a row that failed';
COMMENT ON COLUMN mlint.rotations.last_error IS 'Why the last attempt failed; null after one that succeeded';
COMMENT ON COLUMN mlint.rotations.step IS 'As state, and also while paused; null when nothing is under way';
COMMENT ON COLUMN mlint.rotations.current_version IS 'Current version of the secret';
COMMENT ON COLUMN mlint.rotations.trying_version IS 'Version that is being applied; null when nothing is under way';
COMMENT ON COLUMN mlint.rotations.overlap_until IS 'Until then the version before the current one is valid too';
COMMENT ON COLUMN mlint.rotations.generator IS 'How values are made';
COMMENT ON COLUMN mlint.rotations.apply IS 'How a new value gets to where it is used';
COMMENT ON COLUMN mlint.rotations.verify IS 'How it is found out that it works there';
COMMENT ON COLUMN mlint.rotations.grace IS 'How long a version stays valid beside its successor';
COMMENT ON COLUMN mlint.rotations.warn_before IS 'How long before it is due secret.expiring is published';
COMMENT ON COLUMN mlint.rotations.on_failure IS 'When a failed attempt is made again';
COMMENT ON COLUMN mlint.rotations.owner IS 'Role that set the rotation, as which functions run; null when that is gone';
COMMENT ON COLUMN mlint.rotations.created_at IS 'When the rotation was first set';

CREATE VIEW mlint.secret_public_keys WITH (security_barrier) AS
SELECT s.name, k.version, k.version = s.version AS current, k.public_key,
	k.created_at
FROM mlint.secret_public_key k
JOIN (SELECT a.id, a.name, a.version,
		mlint.secret_privileges(a.name) AS privileges
	FROM mlint.secret a OFFSET 0) s ON s.id = k.secret_id
WHERE s.privileges <> '{}';
COMMENT ON VIEW mlint.secret_public_keys IS 'The public parts of key pairs that rotation generated, of secrets that the current user may do something with';
COMMENT ON COLUMN mlint.secret_public_keys.name IS 'Name of the secret that holds the private part';
COMMENT ON COLUMN mlint.secret_public_keys.version IS 'Its version';
COMMENT ON COLUMN mlint.secret_public_keys.current IS 'Whether that is the current version';
COMMENT ON COLUMN mlint.secret_public_keys.public_key IS 'SubjectPublicKeyInfo, PEM';
COMMENT ON COLUMN mlint.secret_public_keys.created_at IS 'When the pair was generated';

CREATE FUNCTION mlint.secret_rotation_set(name text, every interval,
	generator jsonb DEFAULT '{"kind": "password"}', apply jsonb DEFAULT NULL,
	verify jsonb DEFAULT NULL, grace interval DEFAULT '24 hours',
	on_failure jsonb DEFAULT '{}', warn_before interval DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rotation_set';
COMMENT ON FUNCTION mlint.secret_rotation_set(text, interval, jsonb, jsonb, jsonb, interval, jsonb, interval) IS
	'Have a secret rotated: a new value is generated, applied where it is used, verified there, and made current. Functions that it names run as the role that set it';

CREATE FUNCTION mlint.secret_rotation_drop(name text, force boolean DEFAULT false) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rotation_drop';
COMMENT ON FUNCTION mlint.secret_rotation_drop(text, boolean) IS
	'Rotate a secret no more; with force also while a new value may have been applied that is not current';

CREATE FUNCTION mlint.secret_rotate(name text) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rotate';
COMMENT ON FUNCTION mlint.secret_rotate(text) IS
	'Rotate a secret now, when the transaction commits, or go on with a rotation that is paused or waits for its next attempt';

CREATE FUNCTION mlint.secret_rotate_wait(name text, timeout interval) RETURNS boolean
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rotate_wait';
COMMENT ON FUNCTION mlint.secret_rotate_wait(text, interval) IS
	'Wait until nothing of a secret''s rotation is due or under way; whether the last attempt succeeded, false also when the timeout passed first. In a transaction after that of mlint.secret_rotate';

CREATE PROCEDURE mlint.secret_rotation_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_secret_rotation_run';
COMMENT ON PROCEDURE mlint.secret_rotation_run() IS
	'The job secret_rotation: takes each rotation that is due step by step, each in a transaction of its own';
-- From the first use on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('secret_rotation', 'CALL mlint.secret_rotation_run()', '1 minute', false);
CREATE TRIGGER job_enable AFTER INSERT ON mlint.secret_rotation
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('secret_rotation');
ALTER TABLE mlint.secret_rotation ENABLE ALWAYS TRIGGER job_enable;

REVOKE ALL ON FUNCTION
	mlint.secret_rotation_set(text, interval, jsonb, jsonb, jsonb, interval, jsonb, interval),
	mlint.secret_rotation_drop(text, boolean), mlint.secret_rotate(text),
	mlint.secret_rotate_wait(text, interval) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.secret_rotation_run() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.secret_rotation_set(text, interval, jsonb, jsonb, jsonb, interval, jsonb, interval),
	mlint.secret_rotation_drop(text, boolean), mlint.secret_rotate(text),
	mlint.secret_rotate_wait(text, interval) TO mlint_user;
GRANT SELECT ON mlint.rotations, mlint.secret_public_keys TO mlint_user, mlint_reader;
-- rotation, observed: how many, since their names are not for everybody.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('rotation', 'rotations', true, $$
	SELECT 2, format('rotations of secrets are paused (%s)', r.n),
		'mlint.rotations tells which, to those who may know, and why; mlint.secret_rotate() goes on with one.'
	FROM (SELECT count(*) AS n FROM mlint.secret_rotation WHERE paused) r WHERE r.n > 0
	UNION ALL
	SELECT 1, format('rotations of secrets have failed, and are tried again (%s)', r.n),
		'mlint.rotations tells which, to those who may know, and why.'
	FROM (SELECT count(*) AS n FROM mlint.secret_rotation WHERE failures > 0 AND NOT paused) r
	WHERE r.n > 0
	UNION ALL
	SELECT 1, format('rotations of secrets are overdue (%s)', r.n),
		'mlint.jobs tells whether the job secret_rotation runs.'
	FROM (SELECT count(*) AS n FROM mlint.secret_rotation WHERE NOT paused
		AND next_at < clock_timestamp() - '1 hour'::interval) r
	WHERE r.n > 0
	UNION ALL
	SELECT o.* FROM mlint.job_off('secret_rotation') o
	WHERE EXISTS (SELECT FROM mlint.secret_rotation)$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('rotation', 'rotations', true, '{}', $$
	SELECT count(*) AS rotations, count(*) FILTER (WHERE failures > 0) AS failing,
		count(*) FILTER (WHERE paused) AS paused,
		count(*) FILTER (WHERE NOT paused AND next_at < clock_timestamp() - '1 hour'::interval) AS overdue
	FROM mlint.secret_rotation$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('rotations', 'rotations', 'mlint_secret_rotations', 'gauge', 'Secrets that are rotated'),
('rotations', 'failing', 'mlint_secret_rotations_failing', 'gauge', 'Those among them whose last attempt failed'),
('rotations', 'paused', 'mlint_secret_rotations_paused', 'gauge', 'Those that are paused'),
('rotations', 'overdue', 'mlint_secret_rotations_overdue', 'gauge', 'Those that have been due for an hour');

-- mounts: secrets as files, for programs that read files.

-- What was written, and how the file is known again; a file that is to go is
-- removed by the job, when that has committed.
CREATE TABLE mlint.secret_mount (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	path text COLLATE "C" NOT NULL,
	names text[] NOT NULL,
	format text NOT NULL CHECK (format IN ('raw', 'dotenv', 'json')),
	mode int NOT NULL,
	created_by mlint.role_id NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	dropped_at timestamptz,
	versions text,
	file text,
	written_at timestamptz,
	error text
);
COMMENT ON TABLE mlint.secret_mount IS 'Which secrets are written to which files, and what was';
-- A path is unique among the living.
CREATE UNIQUE INDEX secret_mount_path ON mlint.secret_mount (path)
	WHERE dropped_at IS NULL;

CREATE VIEW mlint.secret_mounts AS
SELECT m.path, m.names, m.format, '0' || pg_catalog.to_char(m.mode / 64 * 100
		+ m.mode / 8 % 8 * 10 + m.mode % 8, 'FM000') AS mode,
	CASE WHEN m.dropped_at IS NOT NULL THEN 'removing'
		WHEN m.error IS NOT NULL THEN 'failed'
		WHEN coalesce(m.file, '') = '' THEN 'waiting' ELSE 'written' END AS state,
	m.versions::jsonb AS versions, m.written_at, m.error,
	nullif(m.created_by::text, '') AS created_by, m.created_at
FROM mlint.secret_mount m;
COMMENT ON VIEW mlint.secret_mounts IS 'Secrets that are written to files, and what was written';
COMMENT ON COLUMN mlint.secret_mounts.path IS 'File, below mlint.secret_mount_directory';
COMMENT ON COLUMN mlint.secret_mounts.names IS 'Secrets in it; * and ? match those of the local store';
COMMENT ON COLUMN mlint.secret_mounts.format IS 'raw, dotenv or json';
COMMENT ON COLUMN mlint.secret_mounts.mode IS 'Mode of the file, octal';
COMMENT ON COLUMN mlint.secret_mounts.state IS 'waiting, written, failed; removing, when it was dropped and the file is not gone yet';
COMMENT ON COLUMN mlint.secret_mounts.versions IS 'Versions that the file has, by name of the secret';
COMMENT ON COLUMN mlint.secret_mounts.written_at IS 'When it was last written';
COMMENT ON COLUMN mlint.secret_mounts.error IS 'Why the file is not as it should be; null if it is';
COMMENT ON COLUMN mlint.secret_mounts.created_by IS 'Role that created the mount; null when that is gone';
COMMENT ON COLUMN mlint.secret_mounts.created_at IS 'When it was created';

CREATE FUNCTION mlint.secret_mount_create(name text, path text,
	mode text DEFAULT '0400', format text DEFAULT 'raw',
	more text[] DEFAULT '{}') RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_mount_create';
COMMENT ON FUNCTION mlint.secret_mount_create(text, text, text, text, text[]) IS
	'Have a secret written to a file below mlint.secret_mount_directory, now and at each new version; as dotenv or json, several, also by glob patterns';

CREATE FUNCTION mlint.secret_mount_drop(path text) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_mount_drop';
COMMENT ON FUNCTION mlint.secret_mount_drop(text) IS
	'Remove a file that mlint.secret_mount_create had written, and write it no more';

CREATE FUNCTION mlint.secret_env(names text[]) RETURNS text
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_env';
COMMENT ON FUNCTION mlint.secret_env(text[]) IS
	'The current values of secrets as dotenv text, in the quoting of a POSIX shell';

CREATE PROCEDURE mlint.secret_mount_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_secret_mount_run';
COMMENT ON PROCEDURE mlint.secret_mount_run() IS
	'The job secret_mounts: writes the files that are not as they should be';
-- From the first use on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('secret_mounts', 'CALL mlint.secret_mount_run()', '1 minute', false);
CREATE TRIGGER job_enable AFTER INSERT ON mlint.secret_mount
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('secret_mounts');
ALTER TABLE mlint.secret_mount ENABLE ALWAYS TRIGGER job_enable;
-- What was written was written there.
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_mount', $$WHERE false
	UNION ALL SELECT id, path, names, format, mode, created_by, created_at, NULL,
		NULL, NULL, NULL, NULL
	FROM mlint.secret_mount WHERE dropped_at IS NULL$$);
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_mount_id_seq', '');

CREATE FUNCTION mlint.secret_mount_changed() RETURNS trigger
	LANGUAGE c VOLATILE
	AS 'MODULE_PATHNAME', 'mlint_secret_mount_changed';
COMMENT ON FUNCTION mlint.secret_mount_changed() IS
	'Has the job secret_mounts run when a secret has another version, or none';
CREATE TRIGGER secret_mount_changed
AFTER UPDATE OF version OR DELETE ON mlint.secret
FOR EACH STATEMENT EXECUTE FUNCTION mlint.secret_mount_changed();

REVOKE ALL ON FUNCTION
	mlint.secret_mount_create(text, text, text, text, text[]),
	mlint.secret_mount_drop(text), mlint.secret_env(text[]),
	mlint.secret_mount_changed() FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.secret_mount_run() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.secret_mount_create(text, text, text, text, text[]),
	mlint.secret_mount_drop(text) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.secret_env(text[]) TO mlint_user;
-- It names secrets.
GRANT SELECT ON mlint.secret_mounts TO mlint_admin;
-- mounts, observed: how many, since they name secrets.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('mounts', 'mounts', true, $$
	SELECT 2, 'there are secrets to be written as files, and mlint.secret_mount_directory is empty',
		'Set it, and reload the settings; or drop the mounts.'
	WHERE current_setting('mlint.secret_mount_directory') = ''
		AND EXISTS (SELECT FROM mlint.secret_mount)
	UNION ALL
	SELECT 2, format('files with secrets are not as they should be (%s)', m.n),
		'mlint.secret_mounts tells administrators which, and why; it is tried again each minute.'
	FROM (SELECT count(*) AS n FROM mlint.secret_mount WHERE error IS NOT NULL) m WHERE m.n > 0
	UNION ALL
	SELECT 1, format('files with secrets wait to be written or removed (%s)', m.n),
		'mlint.jobs tells whether the job secret_mounts runs.'
	FROM (SELECT count(*) AS n FROM mlint.secret_mount WHERE error IS NULL
		AND (coalesce(file, '') = '' AND created_at < clock_timestamp() - '5 minutes'::interval
			OR dropped_at < clock_timestamp() - '5 minutes'::interval)) m
	WHERE m.n > 0
	UNION ALL
	SELECT o.* FROM mlint.job_off('secret_mounts') o
	WHERE EXISTS (SELECT FROM mlint.secret_mount)$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('mounts', 'mounts', true, '{}', $$
	SELECT count(*) FILTER (WHERE dropped_at IS NULL) AS mounts,
		count(*) FILTER (WHERE error IS NOT NULL) AS failing
	FROM mlint.secret_mount$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('mounts', 'mounts', 'mlint_secret_mounts', 'gauge', 'Files that secrets are written to'),
('mounts', 'failing', 'mlint_secret_mounts_failing', 'gauge', 'Those among them that are not as they should be');

-- scan: credentials that lie where they should not.

CREATE TABLE mlint.secret_rule (
	name text COLLATE "C" PRIMARY KEY,
	pattern text,
	keywords text[],
	severity text CHECK (severity IN ('low', 'medium', 'high', 'critical')),
	description text,
	min_entropy real NOT NULL DEFAULT 0,
	enabled boolean NOT NULL DEFAULT true,
	CHECK ((pattern IS NULL) = (keywords IS NULL)
		AND (pattern IS NULL) = (severity IS NULL))
);
COMMENT ON TABLE mlint.secret_rule IS
	'Users'' own rules of the scanner; a row without a pattern switches the built-in rule of its name on or off';
SELECT pg_catalog.pg_extension_config_dump('mlint.secret_rule', '');

CREATE FUNCTION mlint.secret_scan(content text, path text DEFAULT NULL,
	OUT rule text, OUT line int, OUT "column" int, OUT excerpt text,
	OUT entropy real, OUT severity text) RETURNS SETOF record
	LANGUAGE c STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 1000 ROWS 1
	AS 'MODULE_PATHNAME', 'mlint_secret_scan';
COMMENT ON FUNCTION mlint.secret_scan(text, text) IS
	'The credentials in a text: rule, line and column (from 1), the first characters only, bits of entropy a character, severity. A path tells lock files, tests and the like';

CREATE FUNCTION mlint.secret_scan_database(OUT object_type text, OUT object text,
	OUT rule text, OUT line int, OUT "column" int, OUT excerpt text,
	OUT entropy real, OUT severity text) RETURNS SETOF record
	LANGUAGE c VOLATILE PARALLEL UNSAFE COST 1000000 ROWS 10
	AS 'MODULE_PATHNAME', 'mlint_secret_scan_database';
COMMENT ON FUNCTION mlint.secret_scan_database() IS
	'The credentials in this database''s definitions: functions, views, defaults, constraints, triggers, policies, comments, foreign options, settings, subscriptions, destinations; audited';

CREATE FUNCTION mlint.secret_rule_create(name text, pattern text, keywords text[],
	severity text DEFAULT 'high', description text DEFAULT NULL,
	min_entropy real DEFAULT 0) RETURNS void
	LANGUAGE c VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rule_create';
COMMENT ON FUNCTION mlint.secret_rule_create(text, text, text[], text, text, real) IS
	'Adds a rule: a regular expression that is tried on the text around each keyword. Its first group, if it has one, is the secret';

CREATE FUNCTION mlint.secret_rule_drop(name text) RETURNS void
	LANGUAGE c VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rule_drop';
COMMENT ON FUNCTION mlint.secret_rule_drop(text) IS 'Drops a rule that was added';

CREATE FUNCTION mlint.secret_rule_enable(name text, enabled boolean DEFAULT true)
	RETURNS void
	LANGUAGE c VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_secret_rule_enable';
COMMENT ON FUNCTION mlint.secret_rule_enable(text, boolean) IS
	'Switches a rule on or off, built in or not';

CREATE FUNCTION mlint.secret_rule_builtin(OUT name text, OUT description text,
	OUT severity text, OUT keywords text[], OUT pattern text,
	OUT min_entropy real) RETURNS SETOF record
	LANGUAGE c IMMUTABLE PARALLEL SAFE ROWS 150
	AS 'MODULE_PATHNAME', 'mlint_secret_rule_builtin';
COMMENT ON FUNCTION mlint.secret_rule_builtin() IS 'Behind the view mlint.secret_rules';

CREATE VIEW mlint.secret_rules AS
SELECT b.name, b.description, b.severity, b.keywords, b.pattern, b.min_entropy,
	true AS built_in, coalesce(r.enabled, true) AS enabled
FROM mlint.secret_rule_builtin() b
LEFT JOIN mlint.secret_rule r ON r.name = b.name
UNION ALL
SELECT r.name, r.description, r.severity, r.keywords, r.pattern, r.min_entropy,
	false, r.enabled
FROM mlint.secret_rule r
WHERE r.pattern IS NOT NULL;
COMMENT ON VIEW mlint.secret_rules IS 'What the scanner looks for';
COMMENT ON COLUMN mlint.secret_rules.name IS 'Name of the rule';
COMMENT ON COLUMN mlint.secret_rules.description IS 'What it finds';
COMMENT ON COLUMN mlint.secret_rules.severity IS 'low, medium, high or critical';
COMMENT ON COLUMN mlint.secret_rules.keywords IS 'It looks only where one of these stands, in any case';
COMMENT ON COLUMN mlint.secret_rules.pattern IS 'Regular expression; null where a rule takes more than one';
COMMENT ON COLUMN mlint.secret_rules.min_entropy IS 'Bits a character that a finding must have';
COMMENT ON COLUMN mlint.secret_rules.built_in IS 'Whether it comes with mlint';
COMMENT ON COLUMN mlint.secret_rules.enabled IS 'Whether it is in force';

REVOKE ALL ON FUNCTION mlint.secret_scan(text, text),
	mlint.secret_scan_database(),
	mlint.secret_rule_create(text, text, text[], text, text, real),
	mlint.secret_rule_drop(text), mlint.secret_rule_enable(text, boolean),
	mlint.secret_rule_builtin() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.secret_scan(text, text) TO mlint_user;
GRANT EXECUTE ON FUNCTION mlint.secret_scan_database(),
	mlint.secret_rule_create(text, text, text[], text, text, real),
	mlint.secret_rule_drop(text), mlint.secret_rule_enable(text, boolean)
TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.secret_rule_builtin() TO mlint_user, mlint_reader;
GRANT SELECT ON mlint.secret_rules TO mlint_user, mlint_reader;
-- ratelimit: rules, overrides, decisions.

CREATE TABLE mlint.rate_backend (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE CHECK (name <> 'local'),
	kind text NOT NULL,
	options jsonb NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz
);
COMMENT ON TABLE mlint.rate_backend IS 'Stores that rate limits of several servers share';

CREATE TABLE mlint.rate_rule (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL CONSTRAINT rate_rule_name UNIQUE,
	algorithm text NOT NULL CHECK (algorithm IN
		('token_bucket', 'leaky_bucket', 'fixed_window', 'sliding_window')),
	rate bigint NOT NULL CHECK (rate > 0),
	per interval NOT NULL CHECK (per > '0'),
	burst bigint CHECK (burst > 0),
	strategy text NOT NULL CHECK (strategy IN
		('hard', 'retry_after', 'queue', 'throttle', 'graceful')),
	scope text NOT NULL CHECK (scope IN
		('global', 'user', 'ip', 'endpoint', 'custom')),
	setting text,
	ipv4_prefix int NOT NULL CHECK (ipv4_prefix BETWEEN 0 AND 32),
	ipv6_prefix int NOT NULL CHECK (ipv6_prefix BETWEEN 0 AND 128),
	max_wait interval NOT NULL CHECK (max_wait >= '0'),
	pre_request boolean NOT NULL,
	backend text COLLATE "C" REFERENCES mlint.rate_backend (name),
	mode text NOT NULL CHECK (mode IN ('exact', 'leased')),
	fail text NOT NULL CHECK (fail IN ('open', 'closed', 'local')),
	lease bigint CHECK (lease > 0),
	description text,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz
);
COMMENT ON TABLE mlint.rate_rule IS 'Rate limits: what is let through';

CREATE TABLE mlint.rate_override (
	rule_id bigint NOT NULL REFERENCES mlint.rate_rule ON DELETE CASCADE,
	identifier text COLLATE "C" NOT NULL,
	action text NOT NULL CHECK (action IN ('allow', 'deny', 'limit')),
	rate bigint CHECK (rate > 0),
	burst bigint CHECK (burst > 0),
	expires_at timestamptz,
	reason text,
	set_by text NOT NULL,
	set_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	CHECK ((action = 'limit') = (rate IS NOT NULL)),
	CHECK (burst IS NULL OR rate IS NOT NULL)
);
-- All of a rule, which is how they are read.
CREATE INDEX rate_override_rule ON mlint.rate_override (rule_id);
-- An identifier may be longer than an entry of a btree, and of any bytes.
ALTER TABLE mlint.rate_override ADD CONSTRAINT rate_override_key
	EXCLUDE USING hash ((rule_id::text || ':' || identifier) WITH =);
-- No primary key: a publication FOR ALL TABLES must not stop us all the same.
ALTER TABLE mlint.rate_override REPLICA IDENTITY FULL;
COMMENT ON TABLE mlint.rate_override IS 'Identifiers for which a rule does not hold as it is written';

-- pg_dump takes the rows along.
SELECT pg_catalog.pg_extension_config_dump('mlint.rate_backend', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.rate_backend_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.rate_rule', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.rate_rule_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.rate_override', '');

CREATE TYPE mlint.rate_decision AS (
	allowed boolean,
	remaining bigint,
	capacity bigint,
	retry_after interval,
	reset_at timestamptz,
	delay interval,
	degraded boolean,
	reason text,
	rule text
);
COMMENT ON TYPE mlint.rate_decision IS 'What a rate limit has to say';
COMMENT ON COLUMN mlint.rate_decision.allowed IS 'Whether it may pass; if so, its cost has been taken';
COMMENT ON COLUMN mlint.rate_decision.remaining IS 'What could be taken now, after this';
COMMENT ON COLUMN mlint.rate_decision.capacity IS 'What can be taken at once at most: the burst of a bucket, the rate of a window';
COMMENT ON COLUMN mlint.rate_decision.retry_after IS 'Refused: when the same could pass, if nobody else came; null if allowed';
COMMENT ON COLUMN mlint.rate_decision.reset_at IS 'When all of the capacity is there again';
COMMENT ON COLUMN mlint.rate_decision.delay IS 'Allowed, but only after so long: a place in a leaky bucket. rate_acquire has waited already';
COMMENT ON COLUMN mlint.rate_decision.degraded IS 'Whether it was decided with less than the rule asks for; reason says why';
COMMENT ON COLUMN mlint.rate_decision.reason IS 'Null when it plainly passed; else limited, waiting, denied, allowed, crowded, graceful, backend, or the reason of an override';
COMMENT ON COLUMN mlint.rate_decision.rule IS 'The rule that this is about';

-- ---- rules ----

CREATE FUNCTION mlint.rate_rule_create(name text, algorithm text, rate bigint,
	per interval, burst bigint DEFAULT NULL, strategy text DEFAULT 'hard',
	scope text DEFAULT 'custom', backend text DEFAULT 'local',
	max_wait interval DEFAULT '5 s', mode text DEFAULT 'exact',
	fail text DEFAULT 'local', lease bigint DEFAULT NULL,
	setting text DEFAULT NULL, ipv4_prefix int DEFAULT 32,
	ipv6_prefix int DEFAULT 64, pre_request boolean DEFAULT false,
	description text DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_rule_create';
COMMENT ON FUNCTION mlint.rate_rule_create(text, text, bigint, interval, bigint,
	text, text, text, interval, text, text, bigint, text, int, int, boolean, text) IS
	'Add a rate limit: rate in each per, by token_bucket, leaky_bucket, fixed_window or sliding_window';

CREATE FUNCTION mlint.rate_rule_alter(name text, algorithm text DEFAULT NULL,
	rate bigint DEFAULT NULL, per interval DEFAULT NULL,
	burst bigint DEFAULT NULL, strategy text DEFAULT NULL,
	scope text DEFAULT NULL, backend text DEFAULT NULL,
	max_wait interval DEFAULT NULL, mode text DEFAULT NULL,
	fail text DEFAULT NULL, lease bigint DEFAULT NULL,
	setting text DEFAULT NULL, ipv4_prefix int DEFAULT NULL,
	ipv6_prefix int DEFAULT NULL, pre_request boolean DEFAULT NULL,
	description text DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_rule_alter';
COMMENT ON FUNCTION mlint.rate_rule_alter(text, text, bigint, interval, bigint,
	text, text, text, interval, text, text, bigint, text, int, int, boolean, text) IS
	'Change a rate limit; what is null stays. burst and lease 0, and an empty setting or description, take them away. In force everywhere when the commit returns';

CREATE FUNCTION mlint.rate_rule_drop(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_rule_drop';
COMMENT ON FUNCTION mlint.rate_rule_drop(text) IS 'Remove a rate limit and its overrides';

-- ---- decisions ----

CREATE FUNCTION mlint.rate_check(rule text, identifier text DEFAULT '',
	cost bigint DEFAULT 1) RETURNS mlint.rate_decision
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_check';
COMMENT ON FUNCTION mlint.rate_check(text, text, bigint) IS
	'Take from a limit, or learn when that will be possible. Never waits, and never raises for a refusal';

CREATE FUNCTION mlint.rate_allow(rule text, identifier text DEFAULT '',
	cost bigint DEFAULT 1) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_allow';
COMMENT ON FUNCTION mlint.rate_allow(text, text, bigint) IS
	'As rate_check, the answer alone; of a leaky bucket true only for what may go without a delay';

CREATE FUNCTION mlint.rate_peek(rule text, identifier text DEFAULT '',
	cost bigint DEFAULT 1) RETURNS mlint.rate_decision
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_peek';
COMMENT ON FUNCTION mlint.rate_peek(text, text, bigint) IS 'What rate_check would answer, without taking anything';

CREATE FUNCTION mlint.rate_check_all(rules text[], identifier text DEFAULT '',
	cost bigint DEFAULT 1) RETURNS mlint.rate_decision
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_check_all';
COMMENT ON FUNCTION mlint.rate_check_all(text[], text, bigint) IS
	'Take from all of several limits, or from none: at most 16. The answer is of the limit that refused, or that has the least left';

CREATE FUNCTION mlint.rate_acquire(rule text, identifier text DEFAULT '',
	cost bigint DEFAULT 1, max_wait interval DEFAULT NULL)
RETURNS mlint.rate_decision
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_acquire';
COMMENT ON FUNCTION mlint.rate_acquire(text, text, bigint, interval) IS
	'Take from a limit by the strategy of its rule. hard raises ML013; retry_after returns the refusal; queue waits its turn, in order of arrival, up to max_wait (null: the rule''s), or returns the refusal, at once if that is too short; throttle slows down from half the capacity on, then is as queue; graceful lets through. A leaky_bucket is waited for by any. Nothing is taken while waiting. What the transaction has locked stays locked meanwhile: call it first';

CREATE FUNCTION mlint.rate_reset(rule text, identifier text DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_reset';
COMMENT ON FUNCTION mlint.rate_reset(text, text) IS
	'Forget what an identifier has used of a limit; null: what all have. At once, whatever becomes of the transaction';

-- ---- overrides ----

CREATE FUNCTION mlint.rate_override_set(rule text, identifier text, action text,
	rate bigint DEFAULT NULL, burst bigint DEFAULT NULL,
	expires_at timestamptz DEFAULT NULL, reason text DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_override_set';
COMMENT ON FUNCTION mlint.rate_override_set(text, text, text, bigint, bigint,
	timestamptz, text) IS
	'Let an identifier pass always (allow), never (deny) or by another rate (limit), until expires_at; replaces the one before';

CREATE FUNCTION mlint.rate_override_drop(rule text, identifier text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_override_drop';
COMMENT ON FUNCTION mlint.rate_override_drop(text, text) IS 'End an override';

-- ---- HTTP, triggers ----

CREATE FUNCTION mlint.rate_headers(decision mlint.rate_decision) RETURNS jsonb
LANGUAGE sql VOLATILE STRICT PARALLEL SAFE
RETURN (
	SELECT pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
		'RateLimit-Limit', (decision).capacity::text,
		'RateLimit-Remaining', (decision).remaining::text,
		'RateLimit-Reset', CASE WHEN t.reset IS NOT NULL THEN
			greatest(pg_catalog.ceil(t.reset - t.now), 0)::bigint::text END,
		'X-RateLimit-Limit', (decision).capacity::text,
		'X-RateLimit-Remaining', (decision).remaining::text,
		'X-RateLimit-Reset', pg_catalog.ceil(t.reset)::bigint::text,
		'Retry-After', CASE WHEN NOT (decision).allowed
			AND (decision).retry_after IS NOT NULL THEN greatest(pg_catalog.ceil(
				EXTRACT(epoch FROM (decision).retry_after)), 1)::bigint::text END))
	FROM (SELECT CASE WHEN pg_catalog.isfinite((decision).reset_at) THEN
			EXTRACT(epoch FROM (decision).reset_at) END AS reset,
		EXTRACT(epoch FROM pg_catalog.clock_timestamp()) AS now) t
);
COMMENT ON FUNCTION mlint.rate_headers(mlint.rate_decision) IS
	'The headers of an HTTP response that tell a client of its limit: RateLimit-* (Reset in seconds from now), X-RateLimit-* (Reset as Unix time), and Retry-After for a refusal';

CREATE FUNCTION mlint.rate_check_pre_request() RETURNS mlint.rate_decision
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_check_pre_request';
COMMENT ON FUNCTION mlint.rate_check_pre_request() IS
	'Take 1 from all limits that have pre_request, or from none, each for the identifier that its scope makes of the session; null when there are none';

CREATE FUNCTION mlint.rate_pre_request() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	decision mlint.rate_decision := mlint.rate_check_pre_request();
	headers jsonb;
BEGIN
	IF decision.allowed IS NULL THEN
		RETURN;
	END IF;
	headers := mlint.rate_headers(decision);
	IF NOT decision.allowed THEN
		RAISE SQLSTATE 'PGRST' USING
			MESSAGE = jsonb_build_object('code', 'ML013',
				'message', 'Too many requests',
				'details', format('Rate limit "%s": %s', decision.rule, decision.reason),
				'hint', coalesce(format('Try again in %s s.', headers->>'Retry-After'),
					'Waiting does not help.'))::text,
			DETAIL = jsonb_build_object('status', 429, 'status_text', 'Too Many Requests',
				'headers', headers)::text;
	END IF;
	PERFORM set_config('response.headers',
		(coalesce(nullif(current_setting('response.headers', true), ''), '[]')::jsonb
			|| (SELECT jsonb_agg(jsonb_build_object(h.key, h.value))
				FROM jsonb_each(headers) h))::text, true);
END
$$;
COMMENT ON FUNCTION mlint.rate_pre_request() IS
	'For db-pre-request of PostgREST: take 1 from all limits that have pre_request; answers 429 with the headers of mlint.rate_headers, or adds these to the response';

CREATE FUNCTION mlint.rate_limit_trigger() RETURNS trigger
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_limit_trigger';
COMMENT ON FUNCTION mlint.rate_limit_trigger() IS
	'Limits inserts: BEFORE INSERT FOR EACH ROW EXECUTE FUNCTION mlint.rate_limit_trigger(rule, column) takes 1 for the column''s value, as rate_acquire, and raises ML013 for a refusal';

-- ---- what others see ----

CREATE VIEW mlint.rate_rules AS
SELECT r.name, r.algorithm, r.rate, r.per, r.burst, r.strategy, r.scope,
	r.setting, r.ipv4_prefix, r.ipv6_prefix, r.max_wait, r.pre_request,
	coalesce(r.backend, 'local') AS backend, r.mode, r.fail, r.lease,
	r.description, r.created_at, r.altered_at
FROM mlint.rate_rule r;
COMMENT ON VIEW mlint.rate_rules IS 'The rate limits';
COMMENT ON COLUMN mlint.rate_rules.name IS 'Name of the limit';
COMMENT ON COLUMN mlint.rate_rules.algorithm IS 'token_bucket, leaky_bucket, fixed_window or sliding_window';
COMMENT ON COLUMN mlint.rate_rules.rate IS 'How much passes ...';
COMMENT ON COLUMN mlint.rate_rules.per IS '... in so long';
COMMENT ON COLUMN mlint.rate_rules.burst IS 'How much a bucket holds; null: as much as rate';
COMMENT ON COLUMN mlint.rate_rules.strategy IS 'What rate_acquire does when it is used up: hard (raises), retry_after (returns the refusal), queue (waits in order of arrival), throttle (slows down before), graceful (lets pass, and says so)';
COMMENT ON COLUMN mlint.rate_rules.scope IS 'Whom an identifier stands for: global (all), user, ip, endpoint, or custom (what each call gives)';
COMMENT ON COLUMN mlint.rate_rules.setting IS 'Setting where user, ip or endpoint is found when a call gives none: name, or name>key for a member of a JSON object';
COMMENT ON COLUMN mlint.rate_rules.ipv4_prefix IS 'Scope ip: addresses that agree in so many bits are one identifier';
COMMENT ON COLUMN mlint.rate_rules.ipv6_prefix IS 'The same for IPv6';
COMMENT ON COLUMN mlint.rate_rules.max_wait IS 'How long rate_acquire waits at most';
COMMENT ON COLUMN mlint.rate_rules.pre_request IS 'Whether mlint.rate_pre_request takes from it; not with scope custom';
COMMENT ON COLUMN mlint.rate_rules.backend IS 'Where it is kept: local for this server''s memory, or the name of a store that several servers share';
COMMENT ON COLUMN mlint.rate_rules.mode IS 'With a backend: exact (asked for each decision), or leased (parts of the limit are borrowed)';
COMMENT ON COLUMN mlint.rate_rules.fail IS 'When the backend is away: open (lets pass), closed (refuses), or local (each server for itself)';
COMMENT ON COLUMN mlint.rate_rules.lease IS 'How much is borrowed at a time; null: mlint chooses';
COMMENT ON COLUMN mlint.rate_rules.description IS 'What it is for';
COMMENT ON COLUMN mlint.rate_rules.created_at IS 'When it was made';
COMMENT ON COLUMN mlint.rate_rules.altered_at IS 'When it was changed last; null: never';

CREATE VIEW mlint.rate_overrides AS
SELECT r.name AS rule, o.identifier, o.action, o.rate, o.burst, o.expires_at,
	coalesce(o.expires_at <= pg_catalog.clock_timestamp(), false) AS expired,
	o.reason, o.set_by, o.set_at
FROM mlint.rate_override o JOIN mlint.rate_rule r ON r.id = o.rule_id;
COMMENT ON VIEW mlint.rate_overrides IS 'Identifiers for which a limit does not hold as it is written';
COMMENT ON COLUMN mlint.rate_overrides.rule IS 'Name of the limit';
COMMENT ON COLUMN mlint.rate_overrides.identifier IS 'For whom; of scope ip an address as the limit masks it';
COMMENT ON COLUMN mlint.rate_overrides.action IS 'allow (passes always), deny (never) or limit (by another rate)';
COMMENT ON COLUMN mlint.rate_overrides.rate IS 'The other rate';
COMMENT ON COLUMN mlint.rate_overrides.burst IS 'The other burst; null: as much as rate';
COMMENT ON COLUMN mlint.rate_overrides.expires_at IS 'Until when; null: until it is dropped';
COMMENT ON COLUMN mlint.rate_overrides.expired IS 'Whether that has passed, so that the limit holds again';
COMMENT ON COLUMN mlint.rate_overrides.reason IS 'Why; of deny it is the reason that the decision shows';
COMMENT ON COLUMN mlint.rate_overrides.set_by IS 'Who set it';
COMMENT ON COLUMN mlint.rate_overrides.set_at IS 'When';

CREATE FUNCTION mlint.rate_totals(OUT rule_id bigint, OUT allowed bigint,
	OUT refused bigint, OUT crowded bigint, OUT waited bigint,
	OUT wait_p50 interval, OUT wait_p99 interval, OUT identifiers bigint,
	OUT evictions bigint) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 50
AS 'MODULE_PATHNAME', 'mlint_rate_totals';
COMMENT ON FUNCTION mlint.rate_totals() IS 'Behind the view mlint.stat_rate_limits';

CREATE VIEW mlint.stat_rate_limits AS
SELECT r.name AS rule, coalesce(t.allowed + t.refused, 0) AS checks,
	coalesce(t.allowed, 0) AS allowed, coalesce(t.refused, 0) AS refused,
	coalesce(t.crowded, 0) AS crowded, coalesce(t.waited, 0) AS waited,
	t.wait_p50, t.wait_p99, coalesce(t.identifiers, 0) AS identifiers,
	coalesce(t.evictions, 0) AS evictions
FROM mlint.rate_rule r LEFT JOIN mlint.rate_totals() t ON t.rule_id = r.id;
COMMENT ON VIEW mlint.stat_rate_limits IS 'What the rate limits have decided on this server since their counters began, which a crash ends';
COMMENT ON COLUMN mlint.stat_rate_limits.rule IS 'Name of the limit';
COMMENT ON COLUMN mlint.stat_rate_limits.checks IS 'Decisions, without those that an override of allow or deny made and without peeks';
COMMENT ON COLUMN mlint.stat_rate_limits.allowed IS 'Decisions that let pass';
COMMENT ON COLUMN mlint.stat_rate_limits.refused IS 'Decisions that refused';
COMMENT ON COLUMN mlint.stat_rate_limits.crowded IS 'Decisions on an identifier for which mlint.rate_max_keys left no room, so that it shared with others';
COMMENT ON COLUMN mlint.stat_rate_limits.waited IS 'Calls of rate_acquire that waited';
COMMENT ON COLUMN mlint.stat_rate_limits.wait_p50 IS 'Half of these waited no longer than that, to within a factor of 1.5';
COMMENT ON COLUMN mlint.stat_rate_limits.wait_p99 IS 'The same of 99 in a hundred';
COMMENT ON COLUMN mlint.stat_rate_limits.identifiers IS 'Identifiers that are remembered now';
COMMENT ON COLUMN mlint.stat_rate_limits.evictions IS 'Identifiers that had used nothing lately and were forgotten to make room for others';

CREATE FUNCTION mlint.rate_top(rule text, n int DEFAULT 10,
	OUT identifier text, OUT allowed bigint, OUT refused bigint)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'mlint_rate_top';
COMMENT ON FUNCTION mlint.rate_top(text, int) IS
	'Of the identifiers that a limit remembers, the n that were checked most often and the n that were refused most often, by the number of checks; of a long one the beginning and ...';

REVOKE ALL ON FUNCTION
	mlint.rate_rule_create(text, text, bigint, interval, bigint, text, text,
		text, interval, text, text, bigint, text, int, int, boolean, text),
	mlint.rate_rule_alter(text, text, bigint, interval, bigint, text, text,
		text, interval, text, text, bigint, text, int, int, boolean, text),
	mlint.rate_rule_drop(text), mlint.rate_check(text, text, bigint),
	mlint.rate_allow(text, text, bigint), mlint.rate_peek(text, text, bigint),
	mlint.rate_check_all(text[], text, bigint),
	mlint.rate_acquire(text, text, bigint, interval),
	mlint.rate_reset(text, text),
	mlint.rate_override_set(text, text, text, bigint, bigint, timestamptz, text),
	mlint.rate_override_drop(text, text),
	mlint.rate_headers(mlint.rate_decision), mlint.rate_check_pre_request(),
	mlint.rate_pre_request(), mlint.rate_limit_trigger(),
	mlint.rate_totals(), mlint.rate_top(text, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.rate_rule_create(text, text, bigint, interval, bigint, text, text,
		text, interval, text, text, bigint, text, int, int, boolean, text),
	mlint.rate_rule_alter(text, text, bigint, interval, bigint, text, text,
		text, interval, text, text, bigint, text, int, int, boolean, text),
	mlint.rate_rule_drop(text), mlint.rate_reset(text, text),
	mlint.rate_override_set(text, text, text, bigint, bigint, timestamptz, text),
	mlint.rate_override_drop(text, text) TO mlint_admin;
GRANT EXECUTE ON FUNCTION
	mlint.rate_check(text, text, bigint), mlint.rate_allow(text, text, bigint),
	mlint.rate_peek(text, text, bigint),
	mlint.rate_check_all(text[], text, bigint),
	mlint.rate_acquire(text, text, bigint, interval),
	mlint.rate_headers(mlint.rate_decision), mlint.rate_check_pre_request(),
	mlint.rate_pre_request(), mlint.rate_limit_trigger() TO mlint_user;
GRANT EXECUTE ON FUNCTION mlint.rate_totals(), mlint.rate_top(text, int)
	TO mlint_reader;
GRANT SELECT ON mlint.rate_rules, mlint.rate_overrides, mlint.stat_rate_limits
	TO mlint_reader;

-- ---- backends ----

CREATE FUNCTION mlint.rate_backend_create(name text, kind text DEFAULT 'redis',
	options jsonb DEFAULT '{}') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_backend_create';
COMMENT ON FUNCTION mlint.rate_backend_create(text, text, jsonb) IS
	'Add a store that rate limits of several servers share: mlint.rate_backend_kinds shows the options';

CREATE FUNCTION mlint.rate_backend_alter(name text, options jsonb) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_backend_alter';
COMMENT ON FUNCTION mlint.rate_backend_alter(text, jsonb) IS
	'Change options of a rate backend; those not given stay, null takes one away. All processes connect anew';

CREATE FUNCTION mlint.rate_backend_drop(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_backend_drop';
COMMENT ON FUNCTION mlint.rate_backend_drop(text) IS
	'Forget a rate backend that no limit uses; what it keeps expires there';

CREATE FUNCTION mlint.rate_backend_test(name text) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_backend_test';
COMMENT ON FUNCTION mlint.rate_backend_test(text) IS
	'Connect to a rate backend anew and time a decision that takes nothing; raises the error if that fails, closes the breaker if it does not';

CREATE FUNCTION mlint.rate_backend_options(OUT kind text, OUT option text,
	OUT type text, OUT "default" text, OUT bounds text, OUT required boolean,
	OUT help text) RETURNS SETOF record
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_rate_backend_options';
COMMENT ON FUNCTION mlint.rate_backend_options() IS 'Behind the view mlint.rate_backend_kinds';

CREATE VIEW mlint.rate_backend_kinds AS SELECT * FROM mlint.rate_backend_options();
COMMENT ON VIEW mlint.rate_backend_kinds IS 'Kinds of rate backends whose modules are installed, and the options that they take';
COMMENT ON COLUMN mlint.rate_backend_kinds.kind IS 'Name of the kind';
COMMENT ON COLUMN mlint.rate_backend_kinds.option IS 'Name of the option; group.option lies in an object of its own';
COMMENT ON COLUMN mlint.rate_backend_kinds.type IS 'Type of its value';
COMMENT ON COLUMN mlint.rate_backend_kinds."default" IS 'Value when it is not given; null: none';
COMMENT ON COLUMN mlint.rate_backend_kinds.bounds IS 'Range or choices';
COMMENT ON COLUMN mlint.rate_backend_kinds.required IS 'Whether it must be given';
COMMENT ON COLUMN mlint.rate_backend_kinds.help IS 'What it does';

CREATE FUNCTION mlint.rate_backend_state(backend int, OUT breaker text,
	OUT breaker_until timestamptz, OUT failures bigint,
	OUT last_success_at timestamptz, OUT last_error text,
	OUT last_error_at timestamptz)
LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'mlint_rate_backend_state';
COMMENT ON FUNCTION mlint.rate_backend_state(int) IS 'Behind the view mlint.rate_backends';

CREATE VIEW mlint.rate_backends AS
SELECT b.name, b.kind, b.options, s.breaker, s.breaker_until, s.failures,
	s.last_success_at, s.last_error, s.last_error_at, b.created_at,
	b.altered_at
FROM mlint.rate_backend b, LATERAL mlint.rate_backend_state(b.id) s;
COMMENT ON VIEW mlint.rate_backends IS 'Stores that rate limits of several servers share, and how they do, as this server sees it';
COMMENT ON COLUMN mlint.rate_backends.name IS 'Name of the backend';
COMMENT ON COLUMN mlint.rate_backends.kind IS 'What sort of store it is';
COMMENT ON COLUMN mlint.rate_backends.options IS 'Its options; credentials appear as references only';
COMMENT ON COLUMN mlint.rate_backends.breaker IS 'Circuit breaker: closed, open (each limit does what its fail says) or half-open';
COMMENT ON COLUMN mlint.rate_backends.breaker_until IS 'Open: when one call will be tried';
COMMENT ON COLUMN mlint.rate_backends.failures IS 'Calls that failed since the server started';
COMMENT ON COLUMN mlint.rate_backends.last_success_at IS 'When a call last succeeded, to within a second';
COMMENT ON COLUMN mlint.rate_backends.last_error IS 'Why a call last failed';
COMMENT ON COLUMN mlint.rate_backends.last_error_at IS 'When that was';
COMMENT ON COLUMN mlint.rate_backends.created_at IS 'When the backend was created';
COMMENT ON COLUMN mlint.rate_backends.altered_at IS 'When its options were last changed';

CREATE FUNCTION mlint.rate_lease_return() RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_rate_lease_return';
COMMENT ON FUNCTION mlint.rate_lease_return() IS
	'The job rate_lease_return''s: gives back what this server has borrowed of leased limits and did not use in time; returns of how many identifiers';

-- From the first leased rule on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('rate_lease_return', 'SELECT mlint.rate_lease_return()', '10 s', false);

REVOKE ALL ON FUNCTION
	mlint.rate_backend_create(text, text, jsonb),
	mlint.rate_backend_alter(text, jsonb), mlint.rate_backend_drop(text),
	mlint.rate_backend_test(text), mlint.rate_backend_options(),
	mlint.rate_backend_state(int), mlint.rate_lease_return() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.rate_backend_create(text, text, jsonb),
	mlint.rate_backend_alter(text, jsonb), mlint.rate_backend_drop(text),
	mlint.rate_backend_test(text) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.rate_backend_options(),
	mlint.rate_backend_state(int) TO mlint_reader;
GRANT SELECT ON mlint.rate_backend_kinds, mlint.rate_backends TO mlint_reader;
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

-- sessions: sessions of language models, what was said in them, and the models.

CREATE TABLE mlint.session (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	session_id text COLLATE "C" NOT NULL UNIQUE
		CHECK (pg_catalog.octet_length(session_id) BETWEEN 1 AND 255
			AND session_id !~ '[[:cntrl:]]'),
	model_id text COLLATE "C" NOT NULL
		CHECK (pg_catalog.octet_length(model_id) BETWEEN 1 AND 255
			AND model_id !~ '[[:cntrl:]]'),
	model_version text COLLATE "C" NOT NULL DEFAULT ''
		CHECK (pg_catalog.octet_length(model_version) <= 255),
	status text NOT NULL DEFAULT 'active'
		CHECK (status IN ('active', 'completed', 'failed', 'archived')),
	tags text[] NOT NULL DEFAULT '{}',
	metadata jsonb NOT NULL DEFAULT '{}'
		CHECK (pg_catalog.jsonb_typeof(metadata) = 'object'),
	started_at timestamptz NOT NULL,
	ended_at timestamptz,
	-- The last sign of life, at most an hour too early: it is moved on only
	-- when it is an hour old, so that a message does not mean an update.
	active_at timestamptz NOT NULL,
	updated_at timestamptz NOT NULL
);
-- session_list and session_list_after, newest first.
CREATE INDEX session_started ON mlint.session (started_at, session_id);
-- The same of one model, and of one status.
CREATE INDEX session_model ON mlint.session (model_id, started_at, session_id);
CREATE INDEX session_status ON mlint.session (status, started_at, session_id);
-- tags @> '{x}': lists, policies that match by tag.
CREATE INDEX session_tags ON mlint.session USING gin (tags);
-- metadata @> '{"user": "x"}': lists, erase_subject.
CREATE INDEX session_metadata ON mlint.session USING gin (metadata jsonb_path_ops);
-- What is due for archiving: active_at < x ORDER BY active_at, id.
CREATE INDEX session_due ON mlint.session (active_at, id) WHERE status <> 'archived';
COMMENT ON TABLE mlint.session IS 'The sessions, archived ones too: of those only what was said is elsewhere';

-- One row for each prompt, response and tool call, in a tree: parent is the
-- message that it follows, of the same session; null begins. A prompt follows a
-- response or a tool call, or, added without a parent, the newest message,
-- whichever that is; a response follows a prompt or a tool call; a tool call
-- belongs to the response that asked for it. tool is of tool calls only:
-- {"name": ..., "arguments": {...}}, with "error" if it failed; content is its
-- result. model_id, usage and latency_ms are of responses, latency_ms of tool
-- calls too. seq grows with time within a session, and is greater than the
-- parent's. Never updated. An archived session has none.
CREATE TABLE mlint.message (
	id uuid PRIMARY KEY,
	session bigint NOT NULL REFERENCES mlint.session,
	seq bigint GENERATED BY DEFAULT AS IDENTITY,
	parent uuid,
	kind text NOT NULL CHECK (kind IN ('prompt', 'response', 'tool_call')),
	content text NOT NULL,
	model_id text COLLATE "C",
	usage jsonb,
	latency_ms double precision,
	tool jsonb,
	metadata jsonb NOT NULL DEFAULT '{}',
	created_at timestamptz NOT NULL
);
-- The newest message of a session; all of them in order.
CREATE INDEX message_session ON mlint.message (session, seq);
-- The tool calls of a response, for session_transcript.
CREATE INDEX message_tool_call ON mlint.message (parent) WHERE kind = 'tool_call';
COMMENT ON TABLE mlint.message IS 'What was said in the live sessions';
-- What was said, and of whom, and then erased would stay in statistics, which
-- nothing needs to find these.
ALTER TABLE mlint.session ALTER metadata SET STATISTICS 0;
ALTER TABLE mlint.message ALTER content SET STATISTICS 0,
	ALTER usage SET STATISTICS 0, ALTER tool SET STATISTICS 0,
	ALTER metadata SET STATISTICS 0;

CREATE FUNCTION mlint.session_words(content text) RETURNS tsvector
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 5000
AS 'MODULE_PATHNAME', 'mlint_session_words';
COMMENT ON FUNCTION mlint.session_words(text) IS
	'What session_search finds a message by: the words of its first 128 kB';
CREATE FUNCTION mlint.session_snippet(content text, query tsquery) RETURNS text
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 5000
AS 'MODULE_PATHNAME', 'mlint_session_snippet';
COMMENT ON FUNCTION mlint.session_snippet(text, tsquery) IS
	'Where a message matches, for session_search';
REVOKE ALL ON FUNCTION mlint.session_words(text),
	mlint.session_snippet(text, tsquery) FROM PUBLIC;
-- session_search.
CREATE INDEX message_words ON mlint.message USING gin (mlint.session_words(content));
-- Nor are the words to stay there: an index on an expression has statistics.
ALTER INDEX mlint.message_words ALTER COLUMN 1 SET STATISTICS 0;

CREATE TABLE mlint.model (
	model_id text COLLATE "C" NOT NULL
		CHECK (pg_catalog.octet_length(model_id) BETWEEN 1 AND 255
			AND model_id !~ '[[:cntrl:]]'),
	version text COLLATE "C" NOT NULL
		CHECK (pg_catalog.octet_length(version) <= 255),
	provider text NOT NULL,
	parameters jsonb NOT NULL
		CHECK (pg_catalog.jsonb_typeof(parameters) = 'object'),
	description text NOT NULL,
	capabilities text[] NOT NULL,
	tags text[] NOT NULL,
	metadata jsonb NOT NULL
		CHECK (pg_catalog.jsonb_typeof(metadata) = 'object'),
	registered_by text NOT NULL,
	registered_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	deprecated_at timestamptz,
	deprecation_reason text,
	successor text COLLATE "C",
	PRIMARY KEY (model_id, version)
);
COMMENT ON TABLE mlint.model IS 'The models, a row for each version';

-- pg_dump takes the rows along.
SELECT pg_catalog.pg_extension_config_dump('mlint.session', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.session_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.message', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.message_seq_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.model', '');

-- Its row type is what functions return.
CREATE VIEW mlint.sessions AS
SELECT s.session_id, s.model_id, s.model_version, s.status, s.tags, s.metadata,
	s.started_at, s.ended_at, s.active_at, s.updated_at
FROM mlint.session s;
COMMENT ON VIEW mlint.sessions IS 'The sessions, archived ones too';
COMMENT ON COLUMN mlint.sessions.session_id IS 'The id that it was registered with';
COMMENT ON COLUMN mlint.sessions.model_id IS 'The model';
COMMENT ON COLUMN mlint.sessions.model_version IS 'Its version; empty when none was given';
COMMENT ON COLUMN mlint.sessions.status IS 'active; completed or failed, when it has ended; archived, when what was said is in an archive';
COMMENT ON COLUMN mlint.sessions.tags IS 'Sorted, each once';
COMMENT ON COLUMN mlint.sessions.metadata IS 'What the application keeps with it; not for mlint_reader';
COMMENT ON COLUMN mlint.sessions.started_at IS 'When it began';
COMMENT ON COLUMN mlint.sessions.ended_at IS 'When it was completed or failed; null while it is active';
COMMENT ON COLUMN mlint.sessions.active_at IS 'Its last sign of life, at most an hour too early: archiving goes by it';
COMMENT ON COLUMN mlint.sessions.updated_at IS 'When it was registered, or its status last changed';

CREATE FUNCTION mlint.session_register(session_id text, model_id text,
	model_version text DEFAULT '', tags text[] DEFAULT '{}',
	metadata jsonb DEFAULT '{}', started_at timestamptz DEFAULT NULL)
RETURNS mlint.sessions
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_session_register';
COMMENT ON FUNCTION mlint.session_register(text, text, text, text[], jsonb, timestamptz) IS
	'Add a session, started now unless said otherwise; the same once more returns the one there is';

CREATE FUNCTION mlint.session_get(session_id text) RETURNS mlint.sessions
LANGUAGE c STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_session_get';
COMMENT ON FUNCTION mlint.session_get(text) IS 'A session; an error if there is none';

CREATE FUNCTION mlint.session_set_status(session_id text, status text)
RETURNS mlint.sessions
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_session_set_status';
COMMENT ON FUNCTION mlint.session_set_status(text, text) IS
	'Complete or fail a session, resume one that has ended (active), or archive it';

CREATE FUNCTION mlint.session_delete(session_id text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_session_delete';
COMMENT ON FUNCTION mlint.session_delete(text) IS
	'Remove a session with its messages and usage; refused while it is held, or archived';

CREATE FUNCTION mlint.session_list(page int DEFAULT 1,
	page_size int DEFAULT 50, status text DEFAULT NULL, tag text DEFAULT NULL,
	model_id text DEFAULT NULL, metadata jsonb DEFAULT NULL,
	started_from timestamptz DEFAULT NULL, started_to timestamptz DEFAULT NULL)
RETURNS SETOF mlint.sessions
LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 50
AS 'MODULE_PATHNAME', 'mlint_session_list';
COMMENT ON FUNCTION mlint.session_list(int, int, text, text, text, jsonb, timestamptz, timestamptz) IS
	'A page of the sessions, newest first; of those with this status, tag, model and metadata, started from and before these times';

CREATE FUNCTION mlint.session_list_after(cursor text DEFAULT NULL,
	page_size int DEFAULT 50, status text DEFAULT NULL, tag text DEFAULT NULL,
	model_id text DEFAULT NULL, metadata jsonb DEFAULT NULL,
	started_from timestamptz DEFAULT NULL, started_to timestamptz DEFAULT NULL)
RETURNS SETOF mlint.sessions
LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 50
AS 'MODULE_PATHNAME', 'mlint_session_list_after';
COMMENT ON FUNCTION mlint.session_list_after(text, int, text, text, text, jsonb, timestamptz, timestamptz) IS
	'As session_list, the page after a cursor; costs the same however deep';

CREATE FUNCTION mlint.session_cursor(session mlint.sessions) RETURNS text
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'mlint_session_cursor';
COMMENT ON FUNCTION mlint.session_cursor(mlint.sessions) IS
	'Where a session is in the list: session_list_after goes on from there';

CREATE FUNCTION mlint.session_count(status text DEFAULT NULL,
	tag text DEFAULT NULL, model_id text DEFAULT NULL,
	metadata jsonb DEFAULT NULL, started_from timestamptz DEFAULT NULL,
	started_to timestamptz DEFAULT NULL, up_to bigint DEFAULT NULL)
RETURNS bigint
LANGUAGE c STABLE PARALLEL UNSAFE COST 10000
AS 'MODULE_PATHNAME', 'mlint_session_count';
COMMENT ON FUNCTION mlint.session_count(text, text, text, jsonb, timestamptz, timestamptz, bigint) IS
	'How many sessions session_list has in all; counts no further than up_to';

-- ---- messages ----

CREATE FUNCTION mlint.prompt_add(session_id text, content text,
	metadata jsonb DEFAULT '{}', parent uuid DEFAULT NULL) RETURNS uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_prompt_add';
COMMENT ON FUNCTION mlint.prompt_add(text, text, jsonb, uuid) IS
	'Add a prompt after the newest message, or after the response (or tool call) parent; the nil UUID begins anew';

CREATE FUNCTION mlint.response_add(prompt_id uuid, content text,
	usage jsonb DEFAULT NULL, model_id text DEFAULT NULL,
	latency_ms double precision DEFAULT NULL, metadata jsonb DEFAULT '{}')
RETURNS uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_response_add';
COMMENT ON FUNCTION mlint.response_add(uuid, text, jsonb, text, double precision, jsonb) IS
	'Add a response to a prompt (or after a tool call); usage is kept with it, and counted by usage_track()';

CREATE FUNCTION mlint.tool_call_add(response_id uuid, name text,
	arguments jsonb DEFAULT '{}', result text DEFAULT '',
	error text DEFAULT NULL, latency_ms double precision DEFAULT NULL,
	metadata jsonb DEFAULT '{}') RETURNS uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_tool_call_add';
COMMENT ON FUNCTION mlint.tool_call_add(uuid, text, jsonb, text, text, double precision, jsonb) IS
	'Add a tool call that a response asked for, with its result or error';

CREATE FUNCTION mlint.session_transcript(session_id text,
	leaf uuid DEFAULT NULL)
RETURNS TABLE (id uuid, parent uuid, kind text, content text, model_id text,
	usage jsonb, latency_ms double precision, tool jsonb, metadata jsonb,
	created_at timestamptz)
LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 20
AS 'MODULE_PATHNAME', 'mlint_session_transcript';
COMMENT ON FUNCTION mlint.session_transcript(text, uuid) IS
	'What was said, from the beginning to leaf, or to the newest message; with all tool calls on the way';

CREATE FUNCTION mlint.session_branches(session_id text)
RETURNS TABLE (leaf uuid, kind text, created_at timestamptz)
LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 5
AS 'MODULE_PATHNAME', 'mlint_session_branches';
COMMENT ON FUNCTION mlint.session_branches(text) IS
	'The last message of each branch of a session, oldest first: leaves for session_transcript';

CREATE TYPE mlint.session_match AS (
	session_id text,
	message_id uuid,
	kind text,
	created_at timestamptz,
	rank real,
	snippet text
);
COMMENT ON TYPE mlint.session_match IS 'A message that session_search has found';
COMMENT ON COLUMN mlint.session_match.session_id IS 'The session that it is of';
COMMENT ON COLUMN mlint.session_match.message_id IS 'The message';
COMMENT ON COLUMN mlint.session_match.kind IS 'prompt, response or tool_call';
COMMENT ON COLUMN mlint.session_match.created_at IS 'When it was added';
COMMENT ON COLUMN mlint.session_match.rank IS 'How well it matches: greater is better';
COMMENT ON COLUMN mlint.session_match.snippet IS 'Some of it, with what was looked for between ** and **';

CREATE FUNCTION mlint.session_search(query text, session_id text DEFAULT NULL,
	kind text DEFAULT NULL, tag text DEFAULT NULL, metadata jsonb DEFAULT NULL,
	said_from timestamptz DEFAULT NULL, said_to timestamptz DEFAULT NULL,
	sort text DEFAULT 'rank', page_size int DEFAULT 20, after uuid DEFAULT NULL)
RETURNS SETOF mlint.session_match
LANGUAGE c STABLE PARALLEL UNSAFE COST 10000 ROWS 20
AS 'MODULE_PATHNAME', 'mlint_session_search';
COMMENT ON FUNCTION mlint.session_search(text, text, text, text, jsonb, timestamptz, timestamptz, text, int, uuid) IS
	'Messages with these words ("a phrase", or, -not): the best of the newest 1,000, or with sort newest all, page by page after a message_id';

-- ---- models ----

-- Its row type is what functions return.
CREATE VIEW mlint.models AS
SELECT m.model_id, m.version, m.provider, m.parameters, m.description,
	m.capabilities, m.tags, m.metadata, m.registered_by, m.registered_at,
	m.deprecated_at, m.deprecation_reason, m.successor
FROM mlint.model m;
COMMENT ON VIEW mlint.models IS 'The models that are registered, a row for each version';
COMMENT ON COLUMN mlint.models.model_id IS 'The model';
COMMENT ON COLUMN mlint.models.version IS 'Its version; may be empty';
COMMENT ON COLUMN mlint.models.provider IS 'Who offers it; empty when that was not said';
COMMENT ON COLUMN mlint.models.parameters IS 'What it is called with, a JSON object';
COMMENT ON COLUMN mlint.models.description IS 'For people';
COMMENT ON COLUMN mlint.models.capabilities IS 'What it can do: chat, vision, tools, ...; sorted, each once';
COMMENT ON COLUMN mlint.models.tags IS 'Sorted, each once';
COMMENT ON COLUMN mlint.models.metadata IS 'Whatever else there is to say, a JSON object';
COMMENT ON COLUMN mlint.models.registered_by IS 'The role that registered it';
COMMENT ON COLUMN mlint.models.registered_at IS 'When';
COMMENT ON COLUMN mlint.models.deprecated_at IS 'Since when it is not to be used; null if it is';
COMMENT ON COLUMN mlint.models.deprecation_reason IS 'Why';
COMMENT ON COLUMN mlint.models.successor IS 'The model to use instead';

CREATE FUNCTION mlint.model_register(model_id text, version text DEFAULT '',
	provider text DEFAULT '', parameters jsonb DEFAULT '{}',
	description text DEFAULT '', capabilities text[] DEFAULT '{}',
	tags text[] DEFAULT '{}', metadata jsonb DEFAULT '{}')
RETURNS mlint.models
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_model_register';
COMMENT ON FUNCTION mlint.model_register(text, text, text, jsonb, text, text[], text[], jsonb) IS
	'Add a version of a model; the same once more returns the one there is';

CREATE FUNCTION mlint.model_get(model_id text, version text DEFAULT NULL)
RETURNS mlint.models
LANGUAGE c STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_model_get';
COMMENT ON FUNCTION mlint.model_get(text, text) IS
	'A version of a model, or its newest that is not deprecated; an error if there is none';

CREATE FUNCTION mlint.model_list(page int DEFAULT 1, page_size int DEFAULT 50,
	provider text DEFAULT NULL, capability text DEFAULT NULL,
	tag text DEFAULT NULL, deprecated boolean DEFAULT NULL)
RETURNS SETOF mlint.models
LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 50
AS 'MODULE_PATHNAME', 'mlint_model_list';
COMMENT ON FUNCTION mlint.model_list(int, int, text, text, text, boolean) IS
	'A page of the models, by name, newest version first; of this provider, capability and tag';

CREATE FUNCTION mlint.model_deprecate(model_id text, version text DEFAULT NULL,
	reason text DEFAULT NULL, successor text DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_model_deprecate';
COMMENT ON FUNCTION mlint.model_deprecate(text, text, text, text) IS
	'Say that a version of a model, or all, should not be used any more, and what should';

CREATE FUNCTION mlint.model_reinstate(model_id text, version text DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_model_reinstate';
COMMENT ON FUNCTION mlint.model_reinstate(text, text) IS 'Undo model_deprecate';

REVOKE ALL ON FUNCTION
	mlint.session_register(text, text, text, text[], jsonb, timestamptz),
	mlint.session_get(text), mlint.session_set_status(text, text),
	mlint.session_delete(text), mlint.prompt_add(text, text, jsonb, uuid),
	mlint.response_add(uuid, text, jsonb, text, double precision, jsonb),
	mlint.tool_call_add(uuid, text, jsonb, text, text, double precision, jsonb),
	mlint.session_list(int, int, text, text, text, jsonb, timestamptz, timestamptz),
	mlint.session_list_after(text, int, text, text, text, jsonb, timestamptz, timestamptz),
	mlint.session_cursor(mlint.sessions),
	mlint.session_count(text, text, text, jsonb, timestamptz, timestamptz, bigint),
	mlint.session_transcript(text, uuid), mlint.session_branches(text),
	mlint.session_search(text, text, text, text, jsonb, timestamptz, timestamptz, text, int, uuid),
	mlint.model_get(text, text),
	mlint.model_list(int, int, text, text, text, boolean),
	mlint.model_register(text, text, text, jsonb, text, text[], text[], jsonb),
	mlint.model_deprecate(text, text, text, text),
	mlint.model_reinstate(text, text)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.session_register(text, text, text, text[], jsonb, timestamptz),
	mlint.session_get(text), mlint.session_set_status(text, text),
	mlint.session_delete(text), mlint.prompt_add(text, text, jsonb, uuid),
	mlint.response_add(uuid, text, jsonb, text, double precision, jsonb),
	mlint.tool_call_add(uuid, text, jsonb, text, text, double precision, jsonb),
	mlint.session_list(int, int, text, text, text, jsonb, timestamptz, timestamptz),
	mlint.session_list_after(text, int, text, text, text, jsonb, timestamptz, timestamptz),
	mlint.session_cursor(mlint.sessions),
	mlint.session_count(text, text, text, jsonb, timestamptz, timestamptz, bigint),
	mlint.session_transcript(text, uuid), mlint.session_branches(text),
	mlint.session_search(text, text, text, text, jsonb, timestamptz, timestamptz, text, int, uuid),
	mlint.model_get(text, text),
	mlint.model_list(int, int, text, text, text, boolean)
TO mlint_user;
GRANT EXECUTE ON FUNCTION
	mlint.model_register(text, text, text, jsonb, text, text[], text[], jsonb),
	mlint.model_deprecate(text, text, text, text),
	mlint.model_reinstate(text, text)
TO mlint_admin;
GRANT SELECT ON mlint.sessions TO mlint_user;
GRANT SELECT ON mlint.models TO mlint_user, mlint_reader;
-- pg_monitor is a member: nothing of what users say, or of who they are.
GRANT SELECT (session_id, model_id, model_version, status, tags, started_at,
	ended_at, active_at, updated_at) ON mlint.sessions TO mlint_reader;
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

-- retention: how long archives are kept, and what must not be deleted.

CREATE TABLE mlint.retention_level (
	level text PRIMARY KEY,
	days integer NOT NULL,
	erasable boolean NOT NULL
);
COMMENT ON TABLE mlint.retention_level IS 'Compliance levels: the least number of days, and whether a person''s right to erasure comes first';
INSERT INTO mlint.retention_level VALUES
	('standard', 365, true), ('hipaa', 2555, false), ('gdpr', 2555, true),
	('pci', 1095, true), ('soc2', 2555, true);

CREATE TABLE mlint.retention_policy (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (pg_catalog.octet_length(name) BETWEEN 1 AND 63
			AND name !~ '[[:cntrl:]]'),
	days integer NOT NULL CHECK (days BETWEEN 1 AND 36500),
	level text NOT NULL REFERENCES mlint.retention_level,
	auto_delete boolean NOT NULL DEFAULT false,
	description text,
	match_tag text,
	match_metadata jsonb CHECK (pg_catalog.jsonb_typeof(match_metadata) = 'object'),
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz
);
COMMENT ON TABLE mlint.retention_policy IS 'How long archives are kept';
SELECT pg_catalog.pg_extension_config_dump('mlint.retention_policy', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.retention_policy_id_seq', '');

CREATE TABLE mlint.hold (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	session bigint NOT NULL REFERENCES mlint.session ON DELETE CASCADE,
	reason text NOT NULL CHECK (reason <> ''),
	placed_by text NOT NULL,
	placed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	released_by text,
	released_at timestamptz,
	release_reason text,
	CHECK ((released_by IS NULL) = (released_at IS NULL))
);
-- The holds of a session: for whoever wants to delete it.
CREATE INDEX hold_session ON mlint.hold (session);
COMMENT ON TABLE mlint.hold IS 'Legal holds; while one is not released, its session and archive cannot be deleted';
SELECT pg_catalog.pg_extension_config_dump('mlint.hold', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.hold_id_seq', '');

-- ---- what is held stays ----

CREATE FUNCTION mlint.owner_scope_open() RETURNS boolean
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_owner_scope_open';
COMMENT ON FUNCTION mlint.owner_scope_open() IS
	'Is the statement one of mlint''s own functions''? For triggers';

CREATE FUNCTION mlint.hold_guard() RETURNS trigger
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_hold_guard';
COMMENT ON FUNCTION mlint.hold_guard() IS
	'Trigger: sessions and archives that are held are not deleted, their content is not touched but by mlint''s functions, and holds are ended by mlint.archive_release() only';
REVOKE ALL ON FUNCTION mlint.owner_scope_open(), mlint.hold_guard() FROM PUBLIC;

-- ALWAYS: session_replication_role = replica is no way around them.
CREATE TRIGGER hold_guard BEFORE DELETE ON mlint.session
	FOR EACH ROW EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_update AFTER UPDATE ON mlint.session
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.session
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard AFTER UPDATE OR DELETE ON mlint.message
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.message
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard BEFORE UPDATE OR DELETE ON mlint.hold
	FOR EACH ROW EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.hold
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
ALTER TABLE mlint.session ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_update,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;
ALTER TABLE mlint.message ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;
ALTER TABLE mlint.hold ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;

-- ---- policies ----

CREATE VIEW mlint.retention_levels AS
SELECT level, days, erasable FROM mlint.retention_level;
COMMENT ON VIEW mlint.retention_levels IS 'Compliance levels: how long what is under them is kept at least';
COMMENT ON COLUMN mlint.retention_levels.level IS 'Name of the level';
COMMENT ON COLUMN mlint.retention_levels.days IS 'Days that it demands';
COMMENT ON COLUMN mlint.retention_levels.erasable IS 'Whether mlint.erase_subject() erases before these are over';

CREATE VIEW mlint.retention_policies AS
SELECT id, name::text, days AS retention_days, level, auto_delete, description,
	match_tag, match_metadata, created_at, altered_at
FROM mlint.retention_policy;
COMMENT ON VIEW mlint.retention_policies IS 'Retention policies';
COMMENT ON COLUMN mlint.retention_policies.id IS 'Its number, as mlint.retention_policy_create() returned it';
COMMENT ON COLUMN mlint.retention_policies.name IS 'Name of the policy';
COMMENT ON COLUMN mlint.retention_policies.retention_days IS 'How long archives are kept, in days of 24 hours from when they were made';
COMMENT ON COLUMN mlint.retention_policies.level IS 'Compliance level that it satisfies';
COMMENT ON COLUMN mlint.retention_policies.auto_delete IS 'Whether archives are deleted then; else that is only announced';
COMMENT ON COLUMN mlint.retention_policies.description IS 'What it is for';
COMMENT ON COLUMN mlint.retention_policies.match_tag IS 'Archives with this tag get the policy if they are given none; with match_metadata, those that have both';
COMMENT ON COLUMN mlint.retention_policies.match_metadata IS 'Archives whose metadata has all of this get the policy if they are given none';
COMMENT ON COLUMN mlint.retention_policies.created_at IS 'When it was created';
COMMENT ON COLUMN mlint.retention_policies.altered_at IS 'When it was last altered';

CREATE FUNCTION mlint.retention_policy_create(name text, retention_days int,
	level text DEFAULT 'standard', auto_delete boolean DEFAULT false,
	description text DEFAULT NULL, match_tag text DEFAULT NULL,
	match_metadata jsonb DEFAULT NULL) RETURNS int
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_retention_policy_create';
COMMENT ON FUNCTION mlint.retention_policy_create(text, int, text, boolean, text, text, jsonb) IS
	'Create a retention policy, for no fewer days than its compliance level demands; returns its number';

CREATE FUNCTION mlint.retention_policy_alter(name text,
	retention_days int DEFAULT NULL, level text DEFAULT NULL,
	auto_delete boolean DEFAULT NULL, description text DEFAULT NULL,
	match_tag text DEFAULT NULL, match_metadata jsonb DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_retention_policy_alter';
COMMENT ON FUNCTION mlint.retention_policy_alter(text, int, text, boolean, text, text, jsonb) IS
	'Change what is given of a retention policy; archives that have it are kept accordingly at once';

CREATE FUNCTION mlint.retention_policy_drop(name text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_retention_policy_drop';
COMMENT ON FUNCTION mlint.retention_policy_drop(text) IS
	'Drop a retention policy that no archive has';

REVOKE ALL ON FUNCTION
	mlint.retention_policy_create(text, int, text, boolean, text, text, jsonb),
	mlint.retention_policy_alter(text, int, text, boolean, text, text, jsonb),
	mlint.retention_policy_drop(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.retention_policy_create(text, int, text, boolean, text, text, jsonb),
	mlint.retention_policy_alter(text, int, text, boolean, text, text, jsonb),
	mlint.retention_policy_drop(text) TO mlint_admin;
GRANT SELECT ON mlint.retention_levels, mlint.retention_policies TO mlint_reader;

-- Its archives are to be brought up to date by the job archive_expire, in the
-- order of their ids: those after this one, or all. "again": some were locked.
CREATE TABLE mlint.retention_stale (
	policy int PRIMARY KEY REFERENCES mlint.retention_policy ON DELETE CASCADE,
	after uuid,
	again boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE mlint.retention_stale IS 'Policies that were altered, and whose archives'' expires_at is yet to follow';
SELECT pg_catalog.pg_extension_config_dump('mlint.retention_stale', '');
-- archive: sessions as sealed documents, where these are kept, and the scheduler.

CREATE TABLE mlint.archive_store (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_.-]{1,63}$' AND name <> 'database'),
	kind text NOT NULL,
	options jsonb NOT NULL CHECK (pg_catalog.jsonb_typeof(options) = 'object'),
	active boolean NOT NULL DEFAULT false,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz
);
-- New archives go to one store at a time.
CREATE UNIQUE INDEX archive_store_active ON mlint.archive_store (active) WHERE active;
COMMENT ON TABLE mlint.archive_store IS 'Object stores that archives'' bytes are moved to';

CREATE TABLE mlint.archive_dictionary (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	data_key bigint NOT NULL,
	sealed bytea NOT NULL,
	trained_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	sessions integer NOT NULL,
	ratio double precision NOT NULL,
	ratio_without double precision NOT NULL
);
COMMENT ON TABLE mlint.archive_dictionary IS 'What many sessions have in common, for zstd';

CREATE TABLE mlint.archive (
	id uuid PRIMARY KEY,
	session bigint NOT NULL UNIQUE REFERENCES mlint.session,
	policy_id int REFERENCES mlint.retention_policy,
	compliance text REFERENCES mlint.retention_level,
	retention_days integer NOT NULL CHECK (retention_days > 0),
	archived_at timestamptz NOT NULL,
	archived_by text NOT NULL,
	-- archived_at and the longest of retention_days, the level's days and the
	-- policy's. A policy that was altered counts at once; this follows in batches.
	expires_at timestamptz NOT NULL,
	announced_at timestamptz,
	tags text[] NOT NULL DEFAULT '{}',
	metadata jsonb NOT NULL DEFAULT '{}'
		CHECK (pg_catalog.jsonb_typeof(metadata) = 'object'),
	messages integer NOT NULL,
	data_key bigint,
	zstd_level smallint NOT NULL,
	dictionary int REFERENCES mlint.archive_dictionary,
	plain_bytes bigint NOT NULL,
	stored_bytes bigint NOT NULL,
	chunks integer NOT NULL,
	sha256 bytea NOT NULL CHECK (pg_catalog.octet_length(sha256) = 32),
	store int REFERENCES mlint.archive_store
);
-- Whose it is would stay in statistics when the archive is gone.
ALTER TABLE mlint.archive ALTER metadata SET STATISTICS 0;
COMMENT ON TABLE mlint.archive IS 'The archives: one row each, whose bytes are in mlint.archive_chunk or in a store';

-- The archives of a dictionary, for dropping one.
CREATE INDEX archive_dictionary_used ON mlint.archive (dictionary) WHERE dictionary IS NOT NULL;

CREATE TABLE mlint.archive_chunk (
	archive uuid NOT NULL REFERENCES mlint.archive,
	n integer NOT NULL CHECK (n >= 0),
	bytes bytea NOT NULL,
	PRIMARY KEY (archive, n)
);
-- It is compressed already, or is meant not to be.
ALTER TABLE mlint.archive_chunk ALTER bytes SET STORAGE EXTERNAL;
COMMENT ON TABLE mlint.archive_chunk IS 'Bytes of archives that are kept in the database';

-- Objects in stores whose archive is gone, until the job has deleted them.
CREATE TABLE mlint.archive_garbage (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	store int NOT NULL REFERENCES mlint.archive_store,
	archive uuid NOT NULL,
	attempts integer NOT NULL DEFAULT 0,
	next_at timestamptz NOT NULL DEFAULT '-infinity',
	error text
);
COMMENT ON TABLE mlint.archive_garbage IS 'Objects in stores that are to be deleted';

-- ---- object stores ----

-- What the job archive_move has to do, and whether it has.
CREATE INDEX archive_in_database ON mlint.archive (archived_at, id) WHERE store IS NULL;
-- Whether a store may be dropped.
CREATE INDEX archive_in_store ON mlint.archive (store) WHERE store IS NOT NULL;
-- An archive's entry, when it is moved.
CREATE INDEX archive_garbage_archive ON mlint.archive_garbage (archive, store);

CREATE TABLE mlint.archive_move (
	archive uuid PRIMARY KEY REFERENCES mlint.archive ON DELETE CASCADE,
	attempts integer NOT NULL DEFAULT 1,
	next_at timestamptz NOT NULL DEFAULT '-infinity',
	failed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	error text NOT NULL
);
COMMENT ON TABLE mlint.archive_move IS 'Archives that could not be moved to the store, until they are';

CREATE TABLE mlint.archive_store_state (
	store int PRIMARY KEY REFERENCES mlint.archive_store ON DELETE CASCADE,
	breaker integer NOT NULL DEFAULT 0,
	failures integer NOT NULL DEFAULT 0,
	retry_at timestamptz NOT NULL DEFAULT '-infinity',
	timeout_s integer NOT NULL DEFAULT 0,
	probing boolean NOT NULL DEFAULT false,
	moved bigint NOT NULL DEFAULT 0,
	moved_bytes bigint NOT NULL DEFAULT 0,
	deleted bigint NOT NULL DEFAULT 0,
	last_success_at timestamptz,
	last_error text,
	last_error_at timestamptz
);
COMMENT ON TABLE mlint.archive_store_state IS 'How the stores do: their breakers and counters';

SELECT pg_catalog.pg_extension_config_dump('mlint.archive_store', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_store_id_seq', '');
CREATE TRIGGER job_enable AFTER INSERT ON mlint.archive_store
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('archive_move');
ALTER TABLE mlint.archive_store ENABLE ALWAYS TRIGGER job_enable;
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_garbage', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_garbage_id_seq', '');

CREATE FUNCTION mlint.archive_store_create(name text, kind text,
	options jsonb DEFAULT '{}') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_store_create';
COMMENT ON FUNCTION mlint.archive_store_create(text, text, jsonb) IS
	'Add an object store, to which archives are moved from now on; mlint.archive_store_kinds shows the kinds and their options';

CREATE FUNCTION mlint.archive_store_alter(name text, options jsonb DEFAULT NULL,
	active boolean DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_store_alter';
COMMENT ON FUNCTION mlint.archive_store_alter(text, jsonb, boolean) IS
	'Change options of an object store (those not given stay, null takes one away), or whether it gets new archives';

CREATE FUNCTION mlint.archive_store_drop(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_store_drop';
COMMENT ON FUNCTION mlint.archive_store_drop(text) IS
	'Forget an object store; refused while there is anything of ours in it';

CREATE FUNCTION mlint.archive_store_test(name text) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_store_test';
COMMENT ON FUNCTION mlint.archive_store_test(text) IS
	'Put a small object, read it and delete it; raises the error if that fails';

CREATE FUNCTION mlint.archive_store_options(OUT kind text, OUT option text,
	OUT type text, OUT "default" text, OUT bounds text, OUT required boolean,
	OUT help text) RETURNS SETOF record
LANGUAGE c STABLE PARALLEL SAFE COST 10 ROWS 20
AS 'MODULE_PATHNAME', 'mlint_archive_store_options';
COMMENT ON FUNCTION mlint.archive_store_options() IS 'Behind the view mlint.archive_store_kinds';

CREATE VIEW mlint.archive_store_kinds AS
SELECT o.kind, o.option, o.type, o."default", o.bounds, o.required, o.help
FROM mlint.archive_store_options() o;
COMMENT ON VIEW mlint.archive_store_kinds IS 'Kinds of object stores and the options that they take';
COMMENT ON COLUMN mlint.archive_store_kinds.kind IS 'Name of the kind';
COMMENT ON COLUMN mlint.archive_store_kinds.option IS 'Name of the option';
COMMENT ON COLUMN mlint.archive_store_kinds.type IS 'Type of its value';
COMMENT ON COLUMN mlint.archive_store_kinds."default" IS 'Value when it is not given; null: none';
COMMENT ON COLUMN mlint.archive_store_kinds.bounds IS 'Range or choices';
COMMENT ON COLUMN mlint.archive_store_kinds.required IS 'Whether it must be given';
COMMENT ON COLUMN mlint.archive_store_kinds.help IS 'What it does';

CREATE FUNCTION mlint.archive_move_begin(after_at timestamptz, after_id uuid,
	OUT store int, OUT archive uuid, OUT archived_at timestamptz)
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_move_begin';
COMMENT ON FUNCTION mlint.archive_move_begin(timestamptz, uuid) IS
	'The job archive_move''s: the next archive that is to go to the store';

CREATE FUNCTION mlint.archive_move_one(store int, archive uuid) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_move_one';
COMMENT ON FUNCTION mlint.archive_move_one(int, uuid) IS
	'The job archive_move''s: moves an archive''s bytes to a store; false when that failed';

CREATE FUNCTION mlint.archive_garbage_delete(after_id bigint,
	OUT last_id bigint, OUT failed boolean)
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'mlint_archive_garbage_delete';
COMMENT ON FUNCTION mlint.archive_garbage_delete(bigint) IS
	'The job archive_move''s: deletes an object whose archive is gone';

-- What is to be made is entered by a transaction of its own, before it is.
CREATE PROCEDURE mlint.archive_move_all()
LANGUAGE plpgsql AS $$
DECLARE
	entry bigint := 0;
	store_id int;
	archive_id pg_catalog.uuid := '00000000-0000-0000-0000-000000000000';
	at pg_catalog.timestamptz := '-infinity';
	failed boolean;
	failures bigint := 0;
BEGIN
	LOOP
		SELECT d.last_id, d.failed INTO entry, failed
		FROM mlint.archive_garbage_delete(entry) d;
		COMMIT;
		EXIT WHEN entry IS NULL;
		failures := failures OPERATOR(pg_catalog.+) failed::int;
	END LOOP;
	LOOP
		SELECT b.store, b.archive, b.archived_at INTO store_id, archive_id, at
		FROM mlint.archive_move_begin(at, archive_id) b;
		COMMIT;
		EXIT WHEN store_id IS NULL;
		IF NOT mlint.archive_move_one(store_id, archive_id) THEN
			failures := failures OPERATOR(pg_catalog.+) 1;
		END IF;
		COMMIT;
	END LOOP;
	IF failures OPERATOR(pg_catalog.>) 0 THEN
		RAISE EXCEPTION '% archives or objects could not be moved or deleted', failures
			USING HINT = 'mlint.archive_stores tells what went wrong last. Each is tried again.';
	END IF;
END
$$;
COMMENT ON PROCEDURE mlint.archive_move_all() IS
	'The job archive_move: moves archives to the active store, and deletes objects whose archive is gone';
-- From the first store on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('archive_move', 'CALL mlint.archive_move_all()', '1 minute', false);

CREATE VIEW mlint.archive_stores AS
SELECT s.name, s.kind, s.active, s.options,
	(ARRAY['closed', 'open', 'half-open'])[coalesce(t.breaker, 0) + 1] AS breaker,
	CASE WHEN t.breaker = 1 THEN t.retry_at END AS breaker_until,
	(SELECT pg_catalog.count(*) FROM mlint.archive a WHERE a.store = s.id) AS archives,
	CASE WHEN s.active THEN (SELECT pg_catalog.count(*) FROM mlint.archive a
		WHERE a.store IS NULL) ELSE 0 END AS waiting,
	CASE WHEN s.active THEN (SELECT pg_catalog.count(*)
		FROM mlint.archive_move m) ELSE 0 END AS failing,
	(SELECT pg_catalog.count(*) FROM mlint.archive_garbage g
		WHERE g.store = s.id) AS garbage,
	coalesce(t.moved, 0) AS moved, coalesce(t.moved_bytes, 0) AS moved_bytes,
	coalesce(t.deleted, 0) AS deleted, t.last_success_at,
	coalesce(CASE WHEN s.active THEN m.error END, t.last_error) AS last_error,
	coalesce(CASE WHEN s.active THEN m.failed_at END, t.last_error_at) AS last_error_at,
	s.created_at, s.altered_at
FROM mlint.archive_store s
LEFT JOIN mlint.archive_store_state t ON t.store = s.id
LEFT JOIN LATERAL (SELECT m.error, m.failed_at FROM mlint.archive_move m
	ORDER BY m.failed_at DESC LIMIT 1) m ON true;
COMMENT ON VIEW mlint.archive_stores IS 'Object stores that archives are moved to, and how they do';
COMMENT ON COLUMN mlint.archive_stores.name IS 'Name of the store';
COMMENT ON COLUMN mlint.archive_stores.kind IS 'What sort of store it is';
COMMENT ON COLUMN mlint.archive_stores.active IS 'Whether it gets new archives; one at most does';
COMMENT ON COLUMN mlint.archive_stores.options IS 'Its options; credentials appear as references only';
COMMENT ON COLUMN mlint.archive_stores.breaker IS 'Circuit breaker of the job archive_move: closed, open or half-open';
COMMENT ON COLUMN mlint.archive_stores.breaker_until IS 'Open: when one request will be tried';
COMMENT ON COLUMN mlint.archive_stores.archives IS 'Archives that are in it';
COMMENT ON COLUMN mlint.archive_stores.waiting IS 'Archives in the database that are to go there';
COMMENT ON COLUMN mlint.archive_stores.failing IS 'Those among them that could not be moved so far';
COMMENT ON COLUMN mlint.archive_stores.garbage IS 'Objects in it that are to be deleted';
COMMENT ON COLUMN mlint.archive_stores.moved IS 'Archives that were moved there';
COMMENT ON COLUMN mlint.archive_stores.moved_bytes IS 'Bytes of these';
COMMENT ON COLUMN mlint.archive_stores.deleted IS 'Objects that were deleted there';
COMMENT ON COLUMN mlint.archive_stores.last_success_at IS 'When the job last moved or deleted something there';
COMMENT ON COLUMN mlint.archive_stores.last_error IS 'Why something could last not be moved or deleted';
COMMENT ON COLUMN mlint.archive_stores.last_error_at IS 'When that was';
COMMENT ON COLUMN mlint.archive_stores.created_at IS 'When the store was created';
COMMENT ON COLUMN mlint.archive_stores.altered_at IS 'When it was last changed';

REVOKE ALL ON FUNCTION mlint.archive_store_create(text, text, jsonb),
	mlint.archive_store_alter(text, jsonb, boolean),
	mlint.archive_store_drop(text), mlint.archive_store_test(text),
	mlint.archive_store_options(),
	mlint.archive_move_begin(timestamptz, uuid),
	mlint.archive_move_one(int, uuid),
	mlint.archive_garbage_delete(bigint) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.archive_move_all() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.archive_store_create(text, text, jsonb),
	mlint.archive_store_alter(text, jsonb, boolean),
	mlint.archive_store_drop(text), mlint.archive_store_test(text)
	TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.archive_store_options() TO mlint_reader;
GRANT SELECT ON mlint.archive_store_kinds, mlint.archive_stores TO mlint_reader;
-- What archive_list and archive_list_after walk, newest first, is the primary
-- key: ids grow with time.

-- pg_dump takes the rows along.
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_dictionary', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_dictionary_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.archive_chunk', '');

CREATE VIEW mlint.archives AS
SELECT a.id, s.session_id, s.model_id, p.name::text AS policy, a.compliance,
	a.retention_days, a.archived_at, a.archived_by, a.expires_at,
	EXISTS (SELECT FROM mlint.hold h
		WHERE h.session = a.session AND h.released_at IS NULL) AS held,
	a.tags, a.metadata, a.messages, a.plain_bytes AS bytes, a.stored_bytes,
	a.stored_bytes::double precision / a.plain_bytes AS ratio,
	a.data_key IS NOT NULL AS encrypted, a.zstd_level AS compression,
	a.dictionary, pg_catalog.encode(a.sha256, 'hex') AS sha256,
	coalesce(t.name::text, 'database') AS store
FROM mlint.archive a
JOIN mlint.session s ON s.id = a.session
LEFT JOIN mlint.retention_policy p ON p.id = a.policy_id
LEFT JOIN mlint.archive_store t ON t.id = a.store;
COMMENT ON VIEW mlint.archives IS 'The archives of sessions';
COMMENT ON COLUMN mlint.archives.id IS 'The archive''s id; ids grow with time';
COMMENT ON COLUMN mlint.archives.session_id IS 'The session that is archived';
COMMENT ON COLUMN mlint.archives.model_id IS 'Its model';
COMMENT ON COLUMN mlint.archives.policy IS 'Name of its retention policy; null: none';
COMMENT ON COLUMN mlint.archives.compliance IS 'Compliance level that it was archived under besides; null: none';
COMMENT ON COLUMN mlint.archives.retention_days IS 'Days that were asked for when it was archived';
COMMENT ON COLUMN mlint.archives.archived_at IS 'When it was made';
COMMENT ON COLUMN mlint.archives.archived_by IS 'Role that made it';
COMMENT ON COLUMN mlint.archives.expires_at IS 'When its retention period ends: after the longest of retention_days, the compliance level''s and the policy''s days';
COMMENT ON COLUMN mlint.archives.held IS 'Whether it is under a legal hold';
COMMENT ON COLUMN mlint.archives.tags IS 'Tags that were given to the archive';
COMMENT ON COLUMN mlint.archives.metadata IS 'Metadata that was given to the archive';
COMMENT ON COLUMN mlint.archives.messages IS 'How many messages it holds';
COMMENT ON COLUMN mlint.archives.bytes IS 'Size of the document';
COMMENT ON COLUMN mlint.archives.stored_bytes IS 'Size of what is stored of it';
COMMENT ON COLUMN mlint.archives.ratio IS 'stored_bytes / bytes';
COMMENT ON COLUMN mlint.archives.encrypted IS 'Whether it is sealed under a data key of its own';
COMMENT ON COLUMN mlint.archives.compression IS 'Level at which zstd compressed it; 0: it is not compressed';
COMMENT ON COLUMN mlint.archives.dictionary IS 'Dictionary that it needs; null: none';
COMMENT ON COLUMN mlint.archives.sha256 IS 'SHA-256 of the document, in hex';
COMMENT ON COLUMN mlint.archives.store IS 'Where its bytes are: database, or the name of a store';

CREATE FUNCTION mlint.archive_session(session_id text, retention_days int DEFAULT 365,
	policy text DEFAULT NULL, tags text[] DEFAULT '{}', metadata jsonb DEFAULT '{}') RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_session';
COMMENT ON FUNCTION mlint.archive_session(text, int, text, text[], jsonb) IS
	'Archive a session: what was said in it becomes a document, compressed and sealed. Without a policy, one that matches its tags or metadata applies';

CREATE FUNCTION mlint.archive_batch(session_ids text[], retention_days int DEFAULT 365,
	policy text DEFAULT NULL, tags text[] DEFAULT '{}', metadata jsonb DEFAULT '{}')
	RETURNS TABLE (session_id text, archive_id uuid, error text)
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_batch';
COMMENT ON FUNCTION mlint.archive_batch(text[], int, text, text[], jsonb) IS
	'Archive several sessions; one that cannot be archived has an error, and the others are archived';

CREATE FUNCTION mlint.archive_list(page int DEFAULT 1, page_size int DEFAULT 50,
	policy text DEFAULT NULL, tag text DEFAULT NULL, store text DEFAULT NULL,
	held boolean DEFAULT NULL, expires_before timestamptz DEFAULT NULL)
	RETURNS SETOF mlint.archives
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 50
	AS 'MODULE_PATHNAME', 'mlint_archive_list';
COMMENT ON FUNCTION mlint.archive_list(int, int, text, text, text, boolean, timestamptz) IS
	'A page of the archives, newest first; of those with this policy, tag and store, held or not, whose period ends before a time';

CREATE FUNCTION mlint.archive_list_after(after uuid DEFAULT NULL, page_size int DEFAULT 50,
	policy text DEFAULT NULL, tag text DEFAULT NULL, store text DEFAULT NULL,
	held boolean DEFAULT NULL, expires_before timestamptz DEFAULT NULL)
	RETURNS SETOF mlint.archives
	LANGUAGE c STABLE PARALLEL UNSAFE COST 1000 ROWS 50
	AS 'MODULE_PATHNAME', 'mlint_archive_list_after';
COMMENT ON FUNCTION mlint.archive_list_after(uuid, int, text, text, text, boolean, timestamptz) IS
	'As archive_list, the page after an archive; costs the same however deep';

CREATE FUNCTION mlint.archive_get(id uuid) RETURNS jsonb
	LANGUAGE c STABLE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_get';
COMMENT ON FUNCTION mlint.archive_get(uuid) IS 'The document of an archive, verified';

CREATE FUNCTION mlint.archive_document(id uuid) RETURNS SETOF text
	LANGUAGE c STABLE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_document';
COMMENT ON FUNCTION mlint.archive_document(uuid) IS
	'The document of an archive as its text, verified, in pieces of at most 1 MiB in order; for documents of any size';

CREATE FUNCTION mlint.archive_verify(id uuid) RETURNS boolean
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_verify';
COMMENT ON FUNCTION mlint.archive_verify(uuid) IS
	'Whether an archive is whole and what its row says; if not, a warning says what is wrong';

CREATE FUNCTION mlint.archive_restore(id uuid) RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_restore';
COMMENT ON FUNCTION mlint.archive_restore(uuid) IS
	'Make an archived session live again, as it was, and remove the archive. Returns the session''s id';

CREATE FUNCTION mlint.archive_delete(id uuid, reason text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_delete';
COMMENT ON FUNCTION mlint.archive_delete(uuid, text) IS
	'Delete an archive with its session, for good: its data key is destroyed. Refused under a legal hold';

CREATE VIEW mlint.archive_periods AS
SELECT a.id AS archive_id, s.session_id, p.name::text AS policy,
	a.compliance, e.days AS retention_days, a.archived_at,
	a.archived_at + '24:00'::interval * e.days AS ends_at,
	coalesce(p.auto_delete, false) AS auto_delete,
	CASE WHEN NOT c.erasable OR NOT l.erasable THEN
		a.archived_at + '24:00'::interval * greatest(
			CASE WHEN NOT c.erasable THEN c.days END,
			CASE WHEN NOT l.erasable THEN p.days END) END AS erasable_at,
	a.announced_at
FROM mlint.archive a
JOIN mlint.session s ON s.id = a.session
LEFT JOIN mlint.retention_level c ON c.level = a.compliance
LEFT JOIN mlint.retention_policy p ON p.id = a.policy_id
LEFT JOIN mlint.retention_level l ON l.level = p.level,
LATERAL (SELECT greatest(a.retention_days, c.days, p.days) AS days) e;
COMMENT ON VIEW mlint.archive_periods IS 'The archives, and when their retention periods end, policies as they are now';
COMMENT ON COLUMN mlint.archive_periods.archive_id IS 'Id of the archive';
COMMENT ON COLUMN mlint.archive_periods.session_id IS 'The session';
COMMENT ON COLUMN mlint.archive_periods.policy IS 'Its retention policy; null if it has none';
COMMENT ON COLUMN mlint.archive_periods.compliance IS 'Compliance level that it was archived under besides; null if none';
COMMENT ON COLUMN mlint.archive_periods.retention_days IS 'The longest of what was said when it was archived, what the compliance level demands, and what the policy says';
COMMENT ON COLUMN mlint.archive_periods.archived_at IS 'When the period began';
COMMENT ON COLUMN mlint.archive_periods.ends_at IS 'When it ends';
COMMENT ON COLUMN mlint.archive_periods.auto_delete IS 'Whether it is deleted then; else that is only announced';
COMMENT ON COLUMN mlint.archive_periods.erasable_at IS 'When mlint.erase_subject() may erase it; null: at any time';
COMMENT ON COLUMN mlint.archive_periods.announced_at IS 'When archive.expired was published; null if it was not yet';
GRANT SELECT ON mlint.archive_periods TO mlint_reader;

-- The seal and the data key are nobody's business.
CREATE VIEW mlint.archive_dictionaries AS
SELECT d.id, d.trained_at, d.sessions, d.ratio, d.ratio_without,
	d.id = (SELECT pg_catalog.max(n.id) FROM mlint.archive_dictionary n) AS current,
	(SELECT pg_catalog.count(*) FROM mlint.archive a WHERE a.dictionary = d.id) AS archives
FROM mlint.archive_dictionary d;
COMMENT ON VIEW mlint.archive_dictionaries IS 'Dictionaries for zstd, trained from sessions';
COMMENT ON COLUMN mlint.archive_dictionaries.id IS 'The dictionary''s id';
COMMENT ON COLUMN mlint.archive_dictionaries.trained_at IS 'When it was trained';
COMMENT ON COLUMN mlint.archive_dictionaries.sessions IS 'From how many sessions';
COMMENT ON COLUMN mlint.archive_dictionaries.ratio IS 'What other sessions came to with it, compressed / plain';
COMMENT ON COLUMN mlint.archive_dictionaries.ratio_without IS 'What the same sessions came to without it';
COMMENT ON COLUMN mlint.archive_dictionaries.current IS 'Whether new archives are made with it';
COMMENT ON COLUMN mlint.archive_dictionaries.archives IS 'How many archives need it';

CREATE FUNCTION mlint.archive_dictionary_train(samples int DEFAULT 1000) RETURNS int
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_dictionary_train';
COMMENT ON FUNCTION mlint.archive_dictionary_train(int) IS
	'Train a dictionary from the newest live sessions, for new archives. Returns its id; null when it would not pay. Dictionaries that no archive needs go';

CREATE FUNCTION mlint.archive_dictionary_drop(id int) RETURNS void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_dictionary_drop';
COMMENT ON FUNCTION mlint.archive_dictionary_drop(int) IS
	'Drop a dictionary that no archive needs';
REVOKE ALL ON FUNCTION mlint.archive_dictionary_train(int),
	mlint.archive_dictionary_drop(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.archive_dictionary_train(int),
	mlint.archive_dictionary_drop(int) TO mlint_admin;
GRANT SELECT ON mlint.archive_dictionaries TO mlint_reader;

REVOKE ALL ON FUNCTION
	mlint.archive_session(text, int, text, text[], jsonb),
	mlint.archive_list(int, int, text, text, text, boolean, timestamptz),
	mlint.archive_list_after(uuid, int, text, text, text, boolean, timestamptz),
	mlint.archive_batch(text[], int, text, text[], jsonb),
	mlint.archive_get(uuid), mlint.archive_document(uuid),
	mlint.archive_verify(uuid), mlint.archive_restore(uuid),
	mlint.archive_delete(uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.archive_session(text, int, text, text[], jsonb),
	mlint.archive_list(int, int, text, text, text, boolean, timestamptz),
	mlint.archive_list_after(uuid, int, text, text, text, boolean, timestamptz),
	mlint.archive_batch(text[], int, text, text[], jsonb),
	mlint.archive_get(uuid), mlint.archive_document(uuid),
	mlint.archive_verify(uuid), mlint.archive_restore(uuid),
	mlint.archive_delete(uuid, text) TO mlint_user;
GRANT SELECT ON mlint.archives TO mlint_user;
-- As of mlint.sessions: metadata says whose it is.
GRANT SELECT (id, session_id, model_id, policy, compliance, retention_days,
	archived_at, archived_by, expires_at, held, tags, messages, bytes,
	stored_bytes, ratio, encrypted, compression, dictionary, sha256, store)
	ON mlint.archives TO mlint_reader;

-- ---- the scheduler ----

CREATE TABLE mlint.archival (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	interval_hours integer NOT NULL CHECK (interval_hours BETWEEN 1 AND 8784),
	archive_after_days integer NOT NULL CHECK (archive_after_days BETWEEN 0 AND 36500),
	retention_days integer NOT NULL CHECK (retention_days BETWEEN 1 AND 36500),
	batch_size integer NOT NULL CHECK (batch_size BETWEEN 1 AND 10000),
	compliance text NOT NULL REFERENCES mlint.retention_level,
	enabled boolean NOT NULL,
	set_by text NOT NULL,
	set_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE mlint.archival IS 'How sessions are archived by themselves: one row, or none';
SELECT pg_catalog.pg_extension_config_dump('mlint.archival', '');

CREATE TABLE mlint.archival_run (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	state text NOT NULL
		CHECK (state IN ('requested', 'running', 'completed', 'failed', 'crashed')),
	requested_by text,
	pid integer,
	started_at timestamptz CHECK ((started_at IS NULL) = (state = 'requested')),
	updated_at timestamptz,
	finished_at timestamptz
		CHECK ((finished_at IS NULL) = (state IN ('requested', 'running'))),
	-- Sessions with a later sign of life are left alone.
	due_before timestamptz,
	due bigint,
	archived bigint NOT NULL DEFAULT 0,
	failed bigint NOT NULL DEFAULT 0,
	skipped bigint NOT NULL DEFAULT 0,
	bytes bigint NOT NULL DEFAULT 0,
	batches bigint NOT NULL DEFAULT 0,
	error text
);
-- Whoever asks for a run while one is asked for gets that.
CREATE UNIQUE INDEX archival_run_requested ON mlint.archival_run (state) WHERE state = 'requested';
COMMENT ON TABLE mlint.archival_run IS 'Runs of the archival scheduler; the row of one that goes on is brought up to date with each batch';
-- A request is this server's.
SELECT pg_catalog.pg_extension_config_dump('mlint.archival_run', 'WHERE state <> ''requested''');
SELECT pg_catalog.pg_extension_config_dump('mlint.archival_run_id_seq', '');

-- No foreign key: it would have a run wait for whoever has locked the session.
CREATE TABLE mlint.archival_failure (
	session bigint PRIMARY KEY,
	run bigint NOT NULL,
	failures integer NOT NULL DEFAULT 1,
	failed_at timestamptz NOT NULL,
	sqlstate text NOT NULL,
	error text NOT NULL
);
COMMENT ON TABLE mlint.archival_failure IS 'Sessions that the scheduler could not archive so far; those that are gone or archived by now are swept by the next run';
SELECT pg_catalog.pg_extension_config_dump('mlint.archival_failure', '');

INSERT INTO mlint.event_type VALUES
	('archival.completed', 'A run of the archival scheduler has ended; some sessions may have failed'),
	('archival.failed', 'A run of the archival scheduler was broken off');

CREATE PROCEDURE mlint.archival_work()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_archival_work';
COMMENT ON PROCEDURE mlint.archival_work() IS
	'The job archival: archives the sessions that are due, in batches, each a transaction of its own';
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('archival', 'CALL mlint.archival_work()', '24 hours', false);

-- The job is as the settings say, those that come with a dump too; then it
-- leaves the restore a day. One that was asked for is not taken back.
CREATE FUNCTION mlint.archival_follow() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE mlint.job
	SET enabled = NEW.enabled OR EXISTS (SELECT FROM mlint.archival_run r
			WHERE r.state = 'requested'),
		every = make_interval(hours => NEW.interval_hours),
		next_run_at = CASE WHEN mlint.owner_scope_open()
			THEN coalesce(started_at + make_interval(hours => NEW.interval_hours),
				clock_timestamp())
			ELSE clock_timestamp() + greatest(make_interval(hours => NEW.interval_hours),
				'1 day'::interval) END
	WHERE name = 'archival';
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION mlint.archival_follow() IS 'Gives the job archival its interval when the settings change';
CREATE TRIGGER archival_follow AFTER INSERT OR UPDATE ON mlint.archival
	FOR EACH ROW EXECUTE FUNCTION mlint.archival_follow();
ALTER TABLE mlint.archival ENABLE ALWAYS TRIGGER archival_follow;

CREATE FUNCTION mlint.archival_set(interval_hours integer DEFAULT 24,
	archive_after_days integer DEFAULT 30, retention_days integer DEFAULT 365,
	batch_size integer DEFAULT 100, compliance_level text DEFAULT 'standard',
	enabled boolean DEFAULT true) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archival_set';
COMMENT ON FUNCTION mlint.archival_set(integer, integer, integer, integer, text, boolean) IS
	'Have sessions archived that nothing was said in for some days; every call sets everything';

CREATE FUNCTION mlint.archival_run() RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archival_run';
COMMENT ON FUNCTION mlint.archival_run() IS
	'Archive what is due as soon as the transaction commits, also when the scheduler is disabled; the id that the run has in mlint.archival_runs';

CREATE FUNCTION mlint.archival_wait(run bigint, timeout interval) RETURNS boolean
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archival_wait';
COMMENT ON FUNCTION mlint.archival_wait(bigint, interval) IS
	'Wait until a run has ended; false when the timeout passed first. In a transaction after that of mlint.archival_run';

CREATE VIEW mlint.archival_settings AS
SELECT a.interval_hours, a.archive_after_days, a.retention_days, a.batch_size,
	a.compliance AS compliance_level, a.enabled, a.set_by, a.set_at,
	CASE WHEN a.enabled THEN j.next_run_at END AS next_run_at
FROM mlint.archival a
JOIN mlint.job j ON j.name = 'archival';
COMMENT ON VIEW mlint.archival_settings IS 'What mlint.archival_set was told: one row, or none';
COMMENT ON COLUMN mlint.archival_settings.interval_hours IS 'Hours from the start of one run to the next';
COMMENT ON COLUMN mlint.archival_settings.archive_after_days IS 'A session is due when nothing was said in it for so many days';
COMMENT ON COLUMN mlint.archival_settings.retention_days IS 'How long its archive is kept at least';
COMMENT ON COLUMN mlint.archival_settings.batch_size IS 'At most so many sessions are archived in one transaction';
COMMENT ON COLUMN mlint.archival_settings.compliance_level IS 'Compliance level of the archives';
COMMENT ON COLUMN mlint.archival_settings.enabled IS 'Whether runs begin by themselves';
COMMENT ON COLUMN mlint.archival_settings.set_by IS 'Role that set it';
COMMENT ON COLUMN mlint.archival_settings.set_at IS 'When';
COMMENT ON COLUMN mlint.archival_settings.next_run_at IS 'When the next run is due; null when disabled';

-- Who is at work holds this lock (schedule.c).
CREATE VIEW mlint.archival_runs AS
SELECT r.id,
	CASE WHEN r.state = 'running' AND r.pid IS DISTINCT FROM w.pid THEN 'crashed'
		ELSE r.state END AS state,
	r.requested_by, r.started_at, r.finished_at, r.due,
	r.archived + r.failed + r.skipped AS processed,
	r.archived, r.failed, r.skipped, r.bytes, r.batches,
	CASE WHEN r.finished_at IS NULL AND r.pid = w.pid THEN pg_catalog.clock_timestamp()
		ELSE coalesce(r.finished_at, r.updated_at) END - r.started_at AS duration,
	r.archived / nullif((r.archived + r.failed)::double precision, 0) AS success_rate,
	r.error
FROM mlint.archival_run r
LEFT JOIN (SELECT l.pid FROM pg_catalog.pg_locks l
	WHERE l.locktype = 'object' AND l.granted
		AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
			WHERE d.datname = pg_catalog.current_database())
		AND l.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
		AND l.objid = 'mlint.archival_run'::pg_catalog.regclass AND l.objsubid = 1) w ON true;
COMMENT ON VIEW mlint.archival_runs IS 'Runs of the archival scheduler';
COMMENT ON COLUMN mlint.archival_runs.id IS 'Number of the run, as mlint.archival_run returned it';
COMMENT ON COLUMN mlint.archival_runs.state IS 'requested, running, completed, failed (it was broken off: see error), or crashed (its process or the server died)';
COMMENT ON COLUMN mlint.archival_runs.requested_by IS 'Role that asked for it; null for one that was due';
COMMENT ON COLUMN mlint.archival_runs.started_at IS 'When it began';
COMMENT ON COLUMN mlint.archival_runs.finished_at IS 'When it ended; of one that crashed: its last batch';
COMMENT ON COLUMN mlint.archival_runs.due IS 'Sessions that were due when it began';
COMMENT ON COLUMN mlint.archival_runs.processed IS 'Sessions that it has come to: the sum of the next three';
COMMENT ON COLUMN mlint.archival_runs.archived IS 'Sessions that it archived';
COMMENT ON COLUMN mlint.archival_runs.failed IS 'Sessions that could not be archived: see mlint.archival_failures';
COMMENT ON COLUMN mlint.archival_runs.skipped IS 'Sessions that somebody had locked, had used, archived or deleted meanwhile';
COMMENT ON COLUMN mlint.archival_runs.bytes IS 'Size of the documents that it archived, before compression';
COMMENT ON COLUMN mlint.archival_runs.batches IS 'Transactions in which it did that';
COMMENT ON COLUMN mlint.archival_runs.duration IS 'How long it took, or has taken so far';
COMMENT ON COLUMN mlint.archival_runs.success_rate IS 'Archived sessions among those that were not skipped, 0 to 1; null when there were none';
COMMENT ON COLUMN mlint.archival_runs.error IS 'Why it was broken off';

CREATE VIEW mlint.archival_progress AS
SELECT r.pid, pg_catalog.current_database() AS datname, v.id AS run,
	CASE WHEN v.due IS NULL THEN 'counting sessions' ELSE 'archiving sessions' END AS phase,
	v.due AS sessions_due, v.processed AS sessions_processed,
	v.archived AS sessions_archived, v.failed AS sessions_failed,
	v.skipped AS sessions_skipped, v.bytes, v.batches + 1 AS current_batch,
	v.started_at
FROM mlint.archival_runs v
JOIN mlint.archival_run r ON r.id = v.id
WHERE v.state = 'running';
COMMENT ON VIEW mlint.archival_progress IS 'The run that goes on, if any, as of its last batch';
COMMENT ON COLUMN mlint.archival_progress.pid IS 'Its process';
COMMENT ON COLUMN mlint.archival_progress.datname IS 'This database';
COMMENT ON COLUMN mlint.archival_progress.run IS 'Its id in mlint.archival_runs';
COMMENT ON COLUMN mlint.archival_progress.phase IS 'counting sessions, or archiving sessions';
COMMENT ON COLUMN mlint.archival_progress.sessions_due IS 'Sessions that were due when it began; null while they are counted';
COMMENT ON COLUMN mlint.archival_progress.sessions_processed IS 'Of these, those that it has come to';
COMMENT ON COLUMN mlint.archival_progress.sessions_archived IS 'Sessions archived so far';
COMMENT ON COLUMN mlint.archival_progress.sessions_failed IS 'Sessions that could not be archived so far';
COMMENT ON COLUMN mlint.archival_progress.sessions_skipped IS 'Sessions skipped so far';
COMMENT ON COLUMN mlint.archival_progress.bytes IS 'Size of the documents archived so far';
COMMENT ON COLUMN mlint.archival_progress.current_batch IS 'Number of the transaction that is under way';
COMMENT ON COLUMN mlint.archival_progress.started_at IS 'When the run began';

CREATE VIEW mlint.archival_failures AS
SELECT s.session_id, f.error, f.sqlstate, f.failures, f.failed_at, f.run
FROM mlint.archival_failure f
JOIN mlint.session s ON s.id = f.session
WHERE s.status <> 'archived';
COMMENT ON VIEW mlint.archival_failures IS 'Sessions that the archival scheduler came to and could not archive; each run tries them again';
COMMENT ON COLUMN mlint.archival_failures.session_id IS 'The session';
COMMENT ON COLUMN mlint.archival_failures.error IS 'Why it failed last';
COMMENT ON COLUMN mlint.archival_failures.sqlstate IS 'SQLSTATE of that error';
COMMENT ON COLUMN mlint.archival_failures.failures IS 'How often it failed';
COMMENT ON COLUMN mlint.archival_failures.failed_at IS 'When it failed last';
COMMENT ON COLUMN mlint.archival_failures.run IS 'The run in which it failed last';

-- A row whether or not there are settings and runs.
CREATE VIEW mlint.stat_archival AS
SELECT t.runs, t.archived, t.failed, t.skipped, t.bytes,
	l.id AS last_run, l.state AS last_state, l.started_at AS last_started_at,
	l.finished_at AS last_finished_at, l.error AS last_error,
	d.due, d.oldest_due,
	(SELECT pg_catalog.count(*) FROM mlint.archival_failures) AS failing,
	(SELECT a.next_run_at FROM mlint.archival_settings a) AS next_run_at
FROM (SELECT pg_catalog.count(*) FILTER (WHERE r.state <> 'requested') AS runs,
		coalesce(pg_catalog.sum(r.archived), 0)::bigint AS archived,
		coalesce(pg_catalog.sum(r.failed), 0)::bigint AS failed,
		coalesce(pg_catalog.sum(r.skipped), 0)::bigint AS skipped,
		coalesce(pg_catalog.sum(r.bytes), 0)::bigint AS bytes
	FROM mlint.archival_run r) t
LEFT JOIN LATERAL (SELECT * FROM mlint.archival_runs r WHERE r.state <> 'requested'
	ORDER BY r.id DESC LIMIT 1) l ON true
LEFT JOIN LATERAL (SELECT pg_catalog.count(*) AS due, pg_catalog.min(s.active_at) AS oldest_due
	FROM mlint.session s
	WHERE s.status <> 'archived' AND s.active_at < (SELECT
		pg_catalog.clock_timestamp() - pg_catalog.make_interval(hours => a.archive_after_days * 24 + 1)
		FROM mlint.archival a)) d ON true;
COMMENT ON VIEW mlint.stat_archival IS 'What the archival scheduler has done, and has before it';
COMMENT ON COLUMN mlint.stat_archival.runs IS 'Runs so far';
COMMENT ON COLUMN mlint.stat_archival.archived IS 'Sessions that they archived';
COMMENT ON COLUMN mlint.stat_archival.failed IS 'How often a session could not be archived';
COMMENT ON COLUMN mlint.stat_archival.skipped IS 'How often a session was skipped';
COMMENT ON COLUMN mlint.stat_archival.bytes IS 'Size of the documents that they archived, before compression';
COMMENT ON COLUMN mlint.stat_archival.last_run IS 'The last run''s id in mlint.archival_runs';
COMMENT ON COLUMN mlint.stat_archival.last_state IS 'Its state';
COMMENT ON COLUMN mlint.stat_archival.last_started_at IS 'When it began';
COMMENT ON COLUMN mlint.stat_archival.last_finished_at IS 'When it ended';
COMMENT ON COLUMN mlint.stat_archival.last_error IS 'Why it was broken off';
COMMENT ON COLUMN mlint.stat_archival.due IS 'Sessions that are due now';
COMMENT ON COLUMN mlint.stat_archival.oldest_due IS 'Last sign of life of the one that is due longest, at most an hour too early';
COMMENT ON COLUMN mlint.stat_archival.failing IS 'Sessions in mlint.archival_failures';
COMMENT ON COLUMN mlint.stat_archival.next_run_at IS 'When the next run is due; null when disabled';

REVOKE ALL ON FUNCTION
	mlint.archival_set(integer, integer, integer, integer, text, boolean),
	mlint.archival_run(), mlint.archival_wait(bigint, interval),
	mlint.archival_follow() FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.archival_work() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.archival_set(integer, integer, integer, integer, text, boolean),
	mlint.archival_run(), mlint.archival_wait(bigint, interval) TO mlint_admin;
GRANT SELECT ON mlint.archival_settings, mlint.archival_runs,
	mlint.archival_progress, mlint.archival_failures, mlint.stat_archival
	TO mlint_reader;
-- archive, observed: the scheduler, and the stores that archives are moved to.

-- What an overview needs of a store, counted no further than 10,000.
CREATE FUNCTION mlint.archive_store_backlog(store int, active boolean,
	OUT waiting bigint, OUT since timestamptz, OUT garbage bigint, OUT stuck bigint)
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
	SELECT w.n, w.since, g.n, g.stuck
	FROM (SELECT count(*) AS n, min(a.archived_at) AS since
			FROM (SELECT a.archived_at FROM mlint.archive a
				WHERE a.store IS NULL AND active
				ORDER BY a.archived_at, a.id LIMIT 10000) a) w,
		(SELECT count(*) AS n, count(*) FILTER (WHERE g.attempts >= 5) AS stuck
			FROM (SELECT g.store, g.attempts FROM mlint.archive_garbage g
				ORDER BY g.id LIMIT 10000) g
			WHERE g.store = archive_store_backlog.store) g
$$;
COMMENT ON FUNCTION mlint.archive_store_backlog(int, boolean) IS
	'Archives that wait for a store, up to 10,000, and objects in it that are to be deleted, among the oldest 10,000';
REVOKE ALL ON FUNCTION mlint.archive_store_backlog(int, boolean) FROM PUBLIC;

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('archive', 'archival', true, $$
	SELECT 1, format('the last run of the archival scheduler %s%s', CASE r.state
			WHEN 'failed' THEN 'was broken off' ELSE 'crashed' END, ': ' || r.error),
		'It is tried again at the next interval, or at once by mlint.archival_run().'
	FROM (SELECT * FROM mlint.archival_runs WHERE state <> 'requested'
		ORDER BY id DESC LIMIT 1) r
	WHERE r.state IN ('failed', 'crashed') AND NOT pg_is_in_recovery()
	UNION ALL
	SELECT 1, format('sessions could not be archived (%s), the last because of: %s', f.n, f.error),
		'mlint.archival_failures lists them; each run tries them again.'
	FROM (SELECT count(*) AS n, (array_agg(f.error ORDER BY f.failed_at DESC))[1] AS error
		FROM (SELECT f.* FROM mlint.archival_failure f JOIN mlint.session s ON s.id = f.session
			WHERE s.status <> 'archived' LIMIT 10000) f) f
	WHERE f.n > 0
	UNION ALL
	-- It has had three intervals, and a day.
	SELECT 1, format('sessions wait to be archived since %s', to_char(s.active_at, 'YYYY-MM-DD')),
		'mlint.stat_archival tells how many; give runs more time (interval_hours), or see why they fail.'
	FROM mlint.archival a
	CROSS JOIN LATERAL (SELECT s.active_at FROM mlint.session s WHERE s.status <> 'archived'
		AND NOT EXISTS (SELECT FROM mlint.archival_failure f WHERE f.session = s.id)
		ORDER BY s.active_at, s.id LIMIT 1) s
	WHERE a.enabled AND a.set_at < clock_timestamp() - make_interval(hours => 3 * a.interval_hours + 24)
		AND s.active_at < clock_timestamp()
			- make_interval(hours => a.archive_after_days * 24 + 3 * a.interval_hours + 24)
	UNION ALL
	SELECT o.* FROM mlint.job_off('archival') o
	WHERE EXISTS (SELECT FROM mlint.archival WHERE enabled)$$),

('archive', 'archive_stores', true, $$
	WITH s AS (
		SELECT s.name, s.kind, coalesce(t.breaker, 0) AS breaker, t.last_error, b.*,
			clock_timestamp() AS now
		FROM mlint.archive_store s
		LEFT JOIN mlint.archive_store_state t ON t.store = s.id
		CROSS JOIN LATERAL mlint.archive_store_backlog(s.id, s.active) b
	)
	SELECT CASE WHEN since < now - '1 day'::interval THEN 2 ELSE 1 END,
		format('archive store "%s" fails, its breaker is open: %s', name, last_error),
		'Put right what the error names; mlint.archive_store_test() tries it. Archives stay in the database meanwhile.'
	FROM s WHERE breaker <> 0
	UNION ALL
	SELECT CASE WHEN since < now - '1 day'::interval THEN 2 ELSE 1 END,
		format('archives wait to be moved to store "%s" (%s), the oldest since %s', name,
			CASE WHEN waiting >= 10000 THEN '10000 or more' ELSE waiting::text END,
			to_char(since, 'YYYY-MM-DD HH24:MI')),
		'mlint.archive_stores.last_error tells why, mlint.jobs whether the job archive_move runs.'
	FROM s WHERE breaker = 0 AND since < now - '1 hour'::interval
	UNION ALL
	SELECT 1, format('archives could not be moved so far (%s), the last because of: %s', m.n, m.error),
		'Each is tried again by itself.'
	FROM (SELECT count(*) AS n, (array_agg(m.error ORDER BY m.failed_at DESC))[1] AS error
		FROM (SELECT * FROM mlint.archive_move LIMIT 10000) m) m
	WHERE m.n > 0 AND EXISTS (SELECT FROM s)
	UNION ALL
	SELECT 1, format('objects in archive store "%s" could not be deleted (%s)', name, stuck),
		'Their archives are gone; what is left there is to go, too. mlint.archive_stores.last_error tells why.'
	FROM s WHERE stuck > 0
	UNION ALL
	SELECT 2, format('archive store "%s" is of kind file, and mlint.archive_directory is empty', name),
		'Set it, and reload the settings.'
	FROM s WHERE kind = 'file' AND current_setting('mlint.archive_directory') = ''
	UNION ALL
	SELECT o.* FROM mlint.job_off('archive_move') o WHERE EXISTS (SELECT FROM s)$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('archive', 'archival', true, '{}', $$
	SELECT t.runs, t.archived, t.failed, t.skipped, t.bytes,
		(SELECT count(*) FROM mlint.archival_failures) AS failing,
		date_part('epoch', (SELECT r.finished_at FROM mlint.archival_run r
			WHERE r.state = 'completed' ORDER BY r.id DESC LIMIT 1)) AS completed_at,
		coalesce(greatest(0, date_part('epoch', (SELECT clock_timestamp()
				- make_interval(hours => a.archive_after_days * 24) - s.active_at
			FROM mlint.archival a, LATERAL (SELECT s.active_at FROM mlint.session s
				WHERE s.status <> 'archived' ORDER BY s.active_at, s.id LIMIT 1) s
			WHERE a.enabled))), 0) AS due
	FROM (SELECT count(*) FILTER (WHERE r.state <> 'requested') AS runs,
			coalesce(sum(r.archived), 0) AS archived, coalesce(sum(r.failed), 0) AS failed,
			coalesce(sum(r.skipped), 0) AS skipped, coalesce(sum(r.bytes), 0) AS bytes
		FROM mlint.archival_run r) t$$),
('archive', 'archive_stores', true, '{store}', $$
	SELECT s.name AS store, s.active, coalesce(t.breaker, 0) <> 0 AS breaker_open,
		b.waiting, b.garbage, coalesce(t.moved, 0) AS moved,
		coalesce(t.moved_bytes, 0) AS moved_bytes, coalesce(t.deleted, 0) AS deleted,
		date_part('epoch', t.last_success_at) AS success_at
	FROM mlint.archive_store s
	LEFT JOIN mlint.archive_store_state t ON t.store = s.id
	CROSS JOIN LATERAL mlint.archive_store_backlog(s.id, s.active) b
	ORDER BY s.name$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('archival', 'runs', 'mlint_archival_runs_total', 'counter', 'Runs of the archival scheduler'),
('archival', 'archived', 'mlint_archival_archived_total', 'counter', 'Sessions that they archived'),
('archival', 'failed', 'mlint_archival_failed_total', 'counter', 'How often a session could not be archived'),
('archival', 'skipped', 'mlint_archival_skipped_total', 'counter', 'How often a session was skipped'),
('archival', 'bytes', 'mlint_archival_document_bytes_total', 'counter', 'Size of the documents that they archived, before compression'),
('archival', 'failing', 'mlint_archival_failing_sessions', 'gauge', 'Sessions that could not be archived so far'),
('archival', 'completed_at', 'mlint_archival_last_completed_timestamp_seconds', 'gauge', 'When a run was last completed'),
('archival', 'due', 'mlint_archival_due_seconds', 'gauge', 'For how long the oldest session has been due'),
('archive_stores', 'active', 'mlint_archive_store_active', 'gauge', 'Whether new archives go to the store'),
('archive_stores', 'breaker_open', 'mlint_archive_store_breaker_open', 'gauge', 'Whether the circuit breaker is open, or half-open'),
('archive_stores', 'waiting', 'mlint_archive_store_waiting', 'gauge', 'Archives in the database that are to go there; counted up to 10000'),
('archive_stores', 'garbage', 'mlint_archive_store_garbage', 'gauge', 'Objects in it that are to be deleted; counted up to 10000'),
('archive_stores', 'moved', 'mlint_archive_store_moved_total', 'counter', 'Archives that were moved there'),
('archive_stores', 'moved_bytes', 'mlint_archive_store_moved_bytes_total', 'counter', 'Bytes of these'),
('archive_stores', 'deleted', 'mlint_archive_store_deleted_total', 'counter', 'Objects that were deleted there'),
('archive_stores', 'success_at', 'mlint_archive_store_last_success_timestamp_seconds', 'gauge', 'When something was last moved or deleted there');

-- expiry: what is done when a retention period ends, and erasure on request.

-- What is due and was not dealt with: the job archive_expire, and
-- retention_report().
CREATE INDEX archive_due ON mlint.archive (expires_at, id)
	WHERE announced_at IS NULL;
-- What is due and was dealt with: retention_report().
CREATE INDEX archive_announced ON mlint.archive (expires_at)
	WHERE announced_at IS NOT NULL;
-- The archives of a policy: after it was altered, and for its foreign key.
CREATE INDEX archive_policy ON mlint.archive (policy_id, id)
	WHERE policy_id IS NOT NULL;
-- metadata @> '{"user": "x"}': erase_subject().
CREATE INDEX archive_metadata ON mlint.archive USING gin (metadata jsonb_path_ops);

INSERT INTO mlint.event_type VALUES
	('archive.expired', 'The retention period of an archive is over, and it was not deleted');

-- ---- what is held stays ----

CREATE TRIGGER hold_guard BEFORE DELETE ON mlint.archive
	FOR EACH ROW EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_update AFTER UPDATE ON mlint.archive
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.archive
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard AFTER UPDATE OR DELETE ON mlint.archive_chunk
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.archive_chunk
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard AFTER UPDATE OR DELETE ON mlint.data_key
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.data_key
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
ALTER TABLE mlint.archive ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_update,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;
ALTER TABLE mlint.archive_chunk ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;
ALTER TABLE mlint.data_key ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;

CREATE VIEW mlint.holds AS
SELECT h.id, s.session_id, a.id AS archive_id, h.reason, h.placed_by,
	h.placed_at, h.released_by, h.released_at, h.release_reason
FROM mlint.hold h
JOIN mlint.session s ON s.id = h.session
LEFT JOIN mlint.archive a ON a.session = h.session;
COMMENT ON VIEW mlint.holds IS 'Legal holds, those that were released too, of sessions that there are';
COMMENT ON COLUMN mlint.holds.id IS 'Number of the hold, for mlint.archive_release()';
COMMENT ON COLUMN mlint.holds.session_id IS 'Session that it is on';
COMMENT ON COLUMN mlint.holds.archive_id IS 'Its archive; null while it is live';
COMMENT ON COLUMN mlint.holds.reason IS 'Why it was placed';
COMMENT ON COLUMN mlint.holds.placed_by IS 'Role that placed it';
COMMENT ON COLUMN mlint.holds.placed_at IS 'When';
COMMENT ON COLUMN mlint.holds.released_by IS 'Role that released it; null while it holds';
COMMENT ON COLUMN mlint.holds.released_at IS 'When; null while it holds';
COMMENT ON COLUMN mlint.holds.release_reason IS 'Why, if that was said';

CREATE FUNCTION mlint.archive_hold(target text, reason text) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_hold';
COMMENT ON FUNCTION mlint.archive_hold(text, text) IS
	'Put a session, or an archive (its id as text), under legal hold: nothing can delete it. Returns the number of the hold';

CREATE FUNCTION mlint.archive_hold(archive_id uuid, reason text) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_hold';
COMMENT ON FUNCTION mlint.archive_hold(uuid, text) IS
	'Put an archive under legal hold: nothing can delete it. Returns the number of the hold';

CREATE FUNCTION mlint.archive_release(target text, reason text DEFAULT NULL) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_release';
COMMENT ON FUNCTION mlint.archive_release(text, text) IS
	'Release all holds of a session, or of an archive (its id as text); how many there were';

CREATE FUNCTION mlint.archive_release(archive_id uuid, reason text DEFAULT NULL) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_release';
COMMENT ON FUNCTION mlint.archive_release(uuid, text) IS
	'Release all holds of an archive; how many there were';

CREATE FUNCTION mlint.archive_release(hold_id bigint, reason text DEFAULT NULL) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_archive_release';
COMMENT ON FUNCTION mlint.archive_release(bigint, text) IS
	'Release one hold, by its number in mlint.holds; 0 if that was done before';

-- ---- when periods end ----

CREATE FUNCTION mlint.retention_policy_apply(archive_id uuid, policy text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_retention_policy_apply';
COMMENT ON FUNCTION mlint.retention_policy_apply(uuid, text) IS
	'Give an archive a retention policy, which may not demand less than what the archive is under';

CREATE FUNCTION mlint.retention_policy_apply(archive_id uuid, policy_id int) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_retention_policy_apply';
COMMENT ON FUNCTION mlint.retention_policy_apply(uuid, int) IS
	'The same, by the policy''s number';

CREATE PROCEDURE mlint.archive_expire()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_archive_expire';
COMMENT ON PROCEDURE mlint.archive_expire() IS
	'The job archive_expire: deletes archives whose period is over and whose policy says so, and announces others';
INSERT INTO mlint.job (name, command, every)
VALUES ('archive_expire', 'CALL mlint.archive_expire()', '1 hour');

CREATE FUNCTION mlint.retention_report(
	at timestamptz DEFAULT pg_catalog.now() + '30 days'::interval,
	OUT policy text, OUT level text, OUT action text, OUT archives bigint,
	OUT bytes bigint, OUT held bigint, OUT announced bigint,
	OUT earliest timestamptz, OUT latest timestamptz)
	RETURNS SETOF record
	LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
	AS 'MODULE_PATHNAME', 'mlint_retention_report';
COMMENT ON FUNCTION mlint.retention_report(timestamptz) IS
	'What goes until then: for each policy the archives whose periods end, whether they are deleted or announced, their bytes, how many of them are held and how many were announced before, and when the first and the last end';

REVOKE ALL ON FUNCTION
	mlint.archive_hold(text, text), mlint.archive_hold(uuid, text),
	mlint.archive_release(text, text), mlint.archive_release(uuid, text),
	mlint.archive_release(bigint, text),
	mlint.retention_policy_apply(uuid, text),
	mlint.retention_policy_apply(uuid, int),
	mlint.retention_report(timestamptz) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.archive_expire() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.archive_hold(text, text), mlint.archive_hold(uuid, text),
	mlint.archive_release(text, text), mlint.archive_release(uuid, text),
	mlint.archive_release(bigint, text),
	mlint.retention_policy_apply(uuid, text),
	mlint.retention_policy_apply(uuid, int) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.retention_report(timestamptz) TO mlint_reader;
GRANT SELECT ON mlint.holds TO mlint_reader;

-- ---- erasure ----

CREATE TABLE mlint.erasure (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	requested_at timestamptz NOT NULL,
	requested_by text NOT NULL,
	key text,
	salt bytea NOT NULL,
	digest bytea NOT NULL,
	sessions bigint NOT NULL DEFAULT 0,
	archives bigint NOT NULL DEFAULT 0,
	unencrypted bigint NOT NULL DEFAULT 0,
	refused bigint NOT NULL DEFAULT 0,
	in_backups boolean NOT NULL DEFAULT false,
	receipt jsonb
);
COMMENT ON TABLE mlint.erasure IS 'Requests for erasure, without the value that was asked for';

CREATE TABLE mlint.erasure_archive (
	erasure bigint NOT NULL REFERENCES mlint.erasure ON DELETE CASCADE,
	archive uuid NOT NULL,
	data_key bigint,
	PRIMARY KEY (erasure, archive)
);
COMMENT ON TABLE mlint.erasure_archive IS 'Archives that were erased, and the data keys that were destroyed with them';

CREATE TABLE mlint.erasure_refusal (
	erasure bigint NOT NULL REFERENCES mlint.erasure ON DELETE CASCADE,
	session_id text NOT NULL,
	archive uuid,
	reason text NOT NULL,
	until timestamptz,
	PRIMARY KEY (erasure, session_id)
);
COMMENT ON TABLE mlint.erasure_refusal IS 'Sessions and archives that another duty kept from being erased';

SELECT pg_catalog.pg_extension_config_dump('mlint.erasure', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.erasure_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.erasure_archive', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.erasure_refusal', '');

CREATE VIEW mlint.erasures AS
SELECT e.id, e.requested_at, e.requested_by, e.key, e.salt, e.digest,
	e.sessions, e.archives, e.refused, k.waiting AS keys_waiting,
	CASE WHEN k.waiting = 0 THEN greatest(e.requested_at, k.erased_at) END AS completed_at,
	NOT e.in_backups AS reaches_backups, e.receipt
FROM mlint.erasure e,
LATERAL (SELECT pg_catalog.count(*) FILTER (WHERE a.data_key IS NOT NULL
			AND d.erased_at IS NULL OR g.archive IS NOT NULL AND a.data_key IS NULL) AS waiting,
		pg_catalog.max(d.erased_at) AS erased_at
	FROM mlint.erasure_archive a
	LEFT JOIN mlint.data_key_destroyed d ON d.id = a.data_key
	LEFT JOIN mlint.archive_garbage g ON g.archive = a.archive
	WHERE a.erasure = e.id) k;
COMMENT ON VIEW mlint.erasures IS 'Requests for erasure, and what became of them';
COMMENT ON COLUMN mlint.erasures.id IS 'Number of the request';
COMMENT ON COLUMN mlint.erasures.requested_at IS 'When mlint.erase_subject() was called';
COMMENT ON COLUMN mlint.erasures.requested_by IS 'By which role';
COMMENT ON COLUMN mlint.erasures.key IS 'Key of the metadata that was asked for; null: a JSON object was';
COMMENT ON COLUMN mlint.erasures.salt IS 'Random bytes, for the digest';
COMMENT ON COLUMN mlint.erasures.digest IS 'SHA-256 of the salt and the value that was asked for, in UTF-8; the value itself is not kept';
COMMENT ON COLUMN mlint.erasures.sessions IS 'Live sessions that were erased';
COMMENT ON COLUMN mlint.erasures.archives IS 'Archives that were erased';
COMMENT ON COLUMN mlint.erasures.refused IS 'Sessions and archives that another duty kept; mlint.erasure_refusals has them';
COMMENT ON COLUMN mlint.erasures.keys_waiting IS 'Data keys that are not yet cut out of the erasure key file, and unencrypted objects that are not yet deleted';
COMMENT ON COLUMN mlint.erasures.completed_at IS 'When the last of these was; null: not yet';
COMMENT ON COLUMN mlint.erasures.reaches_backups IS 'Whether encrypted archives cannot be read from backups either: whether the erasure key file lay outside of the data directory';
COMMENT ON COLUMN mlint.erasures.receipt IS 'The signed receipt';

CREATE VIEW mlint.erasure_refusals AS
SELECT r.erasure AS erasure_id, r.session_id, r.archive AS archive_id, r.reason, r.until
FROM mlint.erasure_refusal r;
COMMENT ON VIEW mlint.erasure_refusals IS 'What mlint.erase_subject() had to leave';
COMMENT ON COLUMN mlint.erasure_refusals.erasure_id IS 'Number of the request';
COMMENT ON COLUMN mlint.erasure_refusals.session_id IS 'Session that stayed';
COMMENT ON COLUMN mlint.erasure_refusals.archive_id IS 'Its archive; null if it was live';
COMMENT ON COLUMN mlint.erasure_refusals.reason IS 'hold: a legal hold; compliance: a level that comes before erasure';
COMMENT ON COLUMN mlint.erasure_refusals.until IS 'When that ends; null: that is not known';

CREATE FUNCTION mlint.erase_subject(key text, value text) RETURNS jsonb
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_erase_subject';
COMMENT ON FUNCTION mlint.erase_subject(text, text) IS
	'Erase every session and archive whose metadata has this value under this key, but what a hold or a compliance level keeps; returns a signed receipt';

CREATE FUNCTION mlint.erase_subject(subject jsonb) RETURNS jsonb
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_erase_subject_matching';
COMMENT ON FUNCTION mlint.erase_subject(jsonb) IS
	'Erase every session and archive whose metadata contains the object, but what a hold or a compliance level keeps; returns a signed receipt';

CREATE FUNCTION mlint.erasure_receipt_verify(receipt jsonb) RETURNS boolean
	LANGUAGE c STABLE STRICT PARALLEL UNSAFE COST 1000
	AS 'MODULE_PATHNAME', 'mlint_erasure_receipt_verify';
COMMENT ON FUNCTION mlint.erasure_receipt_verify(jsonb) IS
	'Is this a receipt that this database signed, and unchanged?';

REVOKE ALL ON FUNCTION mlint.erase_subject(text, text),
	mlint.erase_subject(jsonb), mlint.erasure_receipt_verify(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.erase_subject(text, text),
	mlint.erase_subject(jsonb) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.erasure_receipt_verify(jsonb) TO mlint_reader, mlint_user;
-- Not for mlint_reader, which pg_monitor is a member of: session ids, receipts.
GRANT SELECT ON mlint.erasures, mlint.erasure_refusals TO mlint_admin;
-- expiry, observed: what should be gone by now. Of erasures only how many, since
-- they are for administrators.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('expiry', 'retention', true, $$
	SELECT CASE WHEN a.expires_at < clock_timestamp() - '3 days'::interval THEN 2 ELSE 1 END,
		format('archives have been due since %s, and were neither deleted nor announced',
			to_char(a.expires_at, 'YYYY-MM-DD HH24:MI')),
		'mlint.jobs tells why the job archive_expire does not get on; mlint.retention_report(now()) what is due.'
	FROM (SELECT a.expires_at FROM mlint.archive a WHERE a.announced_at IS NULL
		ORDER BY a.expires_at, a.id LIMIT 1) a
	WHERE a.expires_at < clock_timestamp() - '3 hours'::interval
	UNION ALL
	SELECT 1, format('archives of retention policy "%s", which was altered, do not all follow yet', p.name),
		'mlint.jobs tells how the job archive_expire goes.'
	FROM mlint.retention_stale s JOIN mlint.retention_policy p ON p.id = s.policy
	WHERE p.altered_at < clock_timestamp() - '1 day'::interval
	UNION ALL
	SELECT o.* FROM mlint.job_off('archive_expire') o$$),

('expiry', 'erasures', true, $$
	SELECT 1, format('sessions or archives that erasure had to leave could be erased by now (%s)', r.n),
		'Call mlint.erase_subject() again: mlint.erasure_refusals tells administrators which, and what they were kept for.'
	FROM (SELECT count(*) AS n FROM (SELECT FROM mlint.erasure_refusal r
			JOIN mlint.session s ON s.session_id = r.session_id
			WHERE r.until < clock_timestamp()
				OR r.reason = 'hold' AND NOT EXISTS (SELECT FROM mlint.hold h
					WHERE h.session = s.id AND h.released_at IS NULL)
			LIMIT 10000) r) r
	WHERE r.n > 0
	UNION ALL
	SELECT 1, format('what was erased (in %s requests) can still be read from base backups: the erasure key file lay in the data directory', e.n),
		'Destroy backups that are older than the erasure; then set mlint.erasure_key_file to a place outside, for those to come.'
	FROM (SELECT count(*) AS n FROM mlint.erasure WHERE in_backups
		AND requested_at > clock_timestamp() - '90 days'::interval) e
	WHERE e.n > 0$$);

INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('expiry', 'retention', true, '{}', $$
	SELECT coalesce(greatest(0, date_part('epoch', clock_timestamp() - (SELECT a.expires_at
			FROM mlint.archive a WHERE a.announced_at IS NULL
			ORDER BY a.expires_at, a.id LIMIT 1))), 0) AS overdue,
		(SELECT count(*) FROM mlint.erasure) AS erasures,
		(SELECT count(*) FROM (SELECT FROM mlint.data_key_destroyed d
			WHERE d.erased_at IS NULL LIMIT 10000) d) AS waiting$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('retention', 'overdue', 'mlint_retention_overdue_seconds', 'gauge', 'For how long the oldest archive has been due that was not dealt with'),
('retention', 'erasures', 'mlint_erasures_total', 'counter', 'Requests for erasure'),
('retention', 'waiting', 'mlint_erasure_keys_waiting', 'gauge', 'Destroyed data keys that are not yet erased from the file; counted up to 10000');

-- certs: certificates, from whom they come, and how long they are good.

-- Who we are to a certificate authority. The account's key is the secret
-- key_secret in version key_version; new_key_version is what a rollover is on
-- its way to.
CREATE TABLE mlint.acme_account (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_.-]{1,63}$'),
	directory_url text NOT NULL,
	email text,
	eab jsonb,
	ca jsonb,
	key_secret text NOT NULL,
	key_version int,
	new_key_version int,
	status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending',
		'valid', 'failed', 'deactivating', 'deactivated')),
	url text,
	orders_url text,
	directory jsonb,
	directory_at timestamptz,
	-- No more than max_orders new orders in any window of this length.
	max_orders int NOT NULL CHECK (max_orders > 0),
	max_orders_per interval NOT NULL CHECK (max_orders_per > '0'),
	-- The server has asked to be left alone until then.
	not_before timestamptz NOT NULL DEFAULT '-infinity',
	-- When something is to be done about the account itself; null: nothing is.
	next_at timestamptz DEFAULT pg_catalog.clock_timestamp(),
	attempts int NOT NULL DEFAULT 0,
	error text,
	created_by mlint.role_id NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE mlint.acme_account IS 'Accounts at certificate authorities that speak ACME (RFC 8555)';

CREATE TABLE mlint.certificate (
	id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
	name text COLLATE "C" NOT NULL UNIQUE
		CHECK (name ~ '^[A-Za-z0-9_.-]{1,200}$'),
	-- As they are in the certificate: lower case, A-labels, no final dot.
	domains text[] NOT NULL CHECK (pg_catalog.cardinality(domains) > 0),
	-- null: imported.
	account_id int REFERENCES mlint.acme_account,
	challenge text CHECK (challenge IN ('http-01', 'dns-01')),
	solver text,
	key_type text CHECK (key_type IN ('ec256', 'ec384', 'rsa2048', 'rsa4096')),
	auto_renew boolean NOT NULL,
	reuse_key boolean NOT NULL DEFAULT false,
	renew_before interval CHECK (renew_before > '0'),
	state text NOT NULL CHECK (state IN ('REQUESTED', 'ISSUING', 'ISSUED',
		'ACTIVE', 'RENEWING', 'FAILED', 'REVOKED', 'EXPIRED')),
	key_secret text NOT NULL,
	-- What is in use, and what waits to be: for targets that must have it first.
	-- No foreign keys: a dump restores one table after the other, and those two
	-- refer to each other.
	version_id bigint,
	next_version_id bigint,
	-- When the next order is to begin, or since when it waits for the limits of
	-- the account; null: one is under way, or there will be none.
	due_at timestamptz,
	-- When to ask the server for its renewal window (RFC 9773); null: never.
	ari_at timestamptz,
	-- The smallest number of days left that was told of in certificate.expiring.
	warned_days int,
	attempts int NOT NULL DEFAULT 0,
	error text,
	error_at timestamptz,
	created_by mlint.role_id NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	state_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	CHECK ((account_id IS NULL) = (challenge IS NULL))
);
COMMENT ON TABLE mlint.certificate IS 'Certificates that are kept valid, or watched';
-- What is to be ordered: renewals, and then what nobody has yet.
CREATE INDEX certificate_due_renewal ON mlint.certificate (account_id, due_at)
	WHERE due_at IS NOT NULL AND version_id IS NOT NULL;
CREATE INDEX certificate_due_first ON mlint.certificate (account_id, due_at)
	WHERE due_at IS NOT NULL AND version_id IS NULL;
CREATE INDEX certificate_ari ON mlint.certificate (ari_at) WHERE ari_at IS NOT NULL;

-- Each that was issued or imported. The key is version key_version of the
-- certificate's secret.
CREATE TABLE mlint.certificate_version (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	certificate_id uuid NOT NULL REFERENCES mlint.certificate ON DELETE CASCADE,
	serial text NOT NULL,
	fingerprint bytea NOT NULL,
	issuer text NOT NULL,
	subject text NOT NULL,
	names text[] NOT NULL,
	key_type text NOT NULL,
	not_before timestamptz NOT NULL,
	not_after timestamptz NOT NULL,
	-- PEM, the leaf first.
	chain text NOT NULL,
	key_version int NOT NULL,
	-- For RFC 9773; null when the certificate lacks what it is made of.
	ari_id text,
	ari_start timestamptz,
	ari_end timestamptz,
	ari_url text,
	issued_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	activated_at timestamptz,
	replaced_at timestamptz,
	-- Its key was destroyed, or is another version's too.
	key_gone boolean NOT NULL DEFAULT false,
	-- Its key is in other hands, whatever became of its revocation.
	key_compromised boolean NOT NULL DEFAULT false,
	-- A revocation is asked for, and has been done.
	revoke_reason int CHECK (revoke_reason IN (0, 1, 3, 4, 5)),
	revoke_at timestamptz,
	revoked_at timestamptz
);
CREATE INDEX certificate_version_certificate ON mlint.certificate_version (certificate_id, id);
-- Those whose keys may be destroyed, when they have expired.
CREATE INDEX certificate_version_key ON mlint.certificate_version (not_after)
	WHERE replaced_at IS NOT NULL AND NOT key_gone;
-- Revocations that are still to be done.
CREATE INDEX certificate_version_revoke ON mlint.certificate_version (revoke_at)
	WHERE revoke_at IS NOT NULL AND revoked_at IS NULL;
COMMENT ON TABLE mlint.certificate_version IS 'Every certificate that was issued or imported: the history of mlint.certificate';

-- One order, from the decision to its end. Before a request that must not be
-- made twice is sent, state says so: an order that a crash leaves "ordering" is
-- looked for at the server before another is made.
CREATE TABLE mlint.acme_order (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	-- null: the certificate was dropped; the order is finished then, and is kept
	-- because it counts.
	certificate_id uuid REFERENCES mlint.certificate ON DELETE SET NULL,
	account_id int NOT NULL REFERENCES mlint.acme_account,
	state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'ordering',
		'authorizing', 'ready', 'finalizing', 'processing', 'downloading',
		'issued', 'failed')),
	key_version int,
	-- The ari_id of the certificate that this one takes the place of.
	replaces text,
	url text,
	finalize_url text,
	certificate_url text,
	expires_at timestamptz,
	next_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	-- Failures in a row of the present step; polls are none.
	attempts int NOT NULL DEFAULT 0,
	polls int NOT NULL DEFAULT 0,
	problem text,
	error text,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	-- When newOrder was first sent: what counts for max_orders.
	ordered_at timestamptz,
	finished_at timestamptz
);
COMMENT ON TABLE mlint.acme_order IS 'Orders at certificate authorities, and how far they are';
-- A certificate has one order at a time.
CREATE UNIQUE INDEX acme_order_open ON mlint.acme_order (certificate_id)
	WHERE finished_at IS NULL;
-- What the job takes up next.
CREATE INDEX acme_order_next ON mlint.acme_order (next_at) WHERE finished_at IS NULL;
-- How many were made lately.
CREATE INDEX acme_order_account ON mlint.acme_order (account_id, ordered_at);
-- The last of a certificate.
CREATE INDEX acme_order_certificate ON mlint.acme_order (certificate_id, id);

-- The proof of one name: what the server knows of it is status, and whether
-- what it looks for is there is presence. presence moves on to 'presenting'
-- before a solver is called, so that after a crash it is known what may have
-- been made and must be removed. So the row outlives its order, and has with it
-- all that removing takes.
CREATE TABLE mlint.acme_challenge (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	-- null: the order is gone.
	order_id bigint REFERENCES mlint.acme_order ON DELETE SET NULL,
	authorization_url text NOT NULL,
	-- null until the authorization was read.
	identifier text,
	type text,
	url text,
	token text,
	-- What is shown: the key authorization, or its digest (dns-01).
	value text,
	status text NOT NULL DEFAULT 'new' CHECK (status IN ('new', 'waiting',
		'answered', 'valid', 'invalid', 'given up')),
	presence text NOT NULL DEFAULT 'none' CHECK (presence IN ('none',
		'wanted', 'presenting', 'checking', 'present', 'removing', 'removed')),
	-- Who shows it, and as whom; null: the gateway, or it is not known yet.
	solver text,
	owner mlint.role_id,
	-- Where and how the solver has made it, for removing it again.
	made jsonb,
	-- When the solver goes on; infinity: it has given up removing.
	next_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	wanted_at timestamptz,
	presented_at timestamptz,
	attempts int NOT NULL DEFAULT 0,
	-- When the authority is asked or told next, if it is its turn, and how often
	-- it was asked; attempts at that which failed in a row. infinity: it is over.
	poll_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	polls int NOT NULL DEFAULT 0,
	poll_attempts int NOT NULL DEFAULT 0,
	-- Why it is not proven; what the solver's present step waits for, or last
	-- failed with.
	error text,
	solver_error text,
	UNIQUE (order_id, authorization_url)
);
COMMENT ON TABLE mlint.acme_challenge IS 'What proves the control of each name of an order';
-- What solvers have to do.
CREATE INDEX acme_challenge_solve ON mlint.acme_challenge (next_at)
	WHERE presence IN ('wanted', 'presenting', 'checking', 'present', 'removing');
-- Whose turn at the authority it is.
CREATE INDEX acme_challenge_poll ON mlint.acme_challenge (poll_at)
	WHERE status IN ('new', 'answered', 'given up')
		OR (status = 'waiting' AND presence = 'present');
-- What a provider still has of ours.
CREATE INDEX acme_challenge_solver ON mlint.acme_challenge (solver)
	WHERE solver IS NOT NULL;
-- Those whose order is gone.
CREATE INDEX acme_challenge_orphan ON mlint.acme_challenge (id)
	WHERE order_id IS NULL;

SELECT pg_catalog.pg_extension_config_dump('mlint.acme_account', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.acme_account_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_version', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_version_id_seq', '');

-- Whatever makes the rows, a dump that is restored too.
CREATE TRIGGER job_enable AFTER INSERT ON mlint.acme_account
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('certificates');
ALTER TABLE mlint.acme_account ENABLE ALWAYS TRIGGER job_enable;
CREATE TRIGGER job_enable AFTER INSERT ON mlint.certificate
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('certificate_expiry');
ALTER TABLE mlint.certificate ENABLE ALWAYS TRIGGER job_enable;

INSERT INTO mlint.event_type VALUES
	('certificate.issued', 'A certificate is in use for the first time'),
	('certificate.renewed', 'A certificate has a successor in use'),
	('certificate.failed', 'A certificate could not be issued, renewed or pushed to where it must be first'),
	('certificate.expiring', 'A certificate expires in 30, 14, 7, 3 days or one, and is not about to be renewed as planned'),
	('certificate.revoked', 'A certificate was revoked');

---- Accounts ----

CREATE FUNCTION mlint.acme_account_create(name text, directory_url text,
	email text, eab jsonb DEFAULT NULL, ca jsonb DEFAULT NULL,
	max_orders int DEFAULT 300, max_orders_per interval DEFAULT '3 hours') RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_acme_account_create';
COMMENT ON FUNCTION mlint.acme_account_create(text, text, text, jsonb, jsonb, int, interval) IS
	'Register with a certificate authority: the URL of its directory, or letsencrypt, letsencrypt-staging; eab is {"kid": ..., "hmac": a reference}, ca a reference to the certificates (PEM) that the server is trusted by';

CREATE FUNCTION mlint.acme_account_rollover(name text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_acme_account_rollover';
COMMENT ON FUNCTION mlint.acme_account_rollover(text) IS
	'Give an account a new key';

CREATE FUNCTION mlint.acme_account_deactivate(name text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_acme_account_deactivate';
COMMENT ON FUNCTION mlint.acme_account_deactivate(text) IS
	'Close an account for good at the server; its certificates stay valid, and are renewed no more';

CREATE FUNCTION mlint.acme_account_wait(name text, timeout interval DEFAULT '1 minute') RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_acme_account_wait';
COMMENT ON FUNCTION mlint.acme_account_wait(text, interval) IS
	'Wait until nothing is under way about an account, and return its status; what fails is raised';

CREATE PROCEDURE mlint.certificate_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_certificate_run';
COMMENT ON PROCEDURE mlint.certificate_run() IS
	'The job certificates: begins the orders that are due, and takes accounts, orders and revocations as far as they go';
-- From the first use on.
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('certificates', 'CALL mlint.certificate_run()', '1 minute', false);

CREATE PROCEDURE mlint.certificate_challenge_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_certificate_challenge_run';
COMMENT ON PROCEDURE mlint.certificate_challenge_run() IS
	'The job certificate_challenges: shows what certificate authorities look for, and removes it again';
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('certificate_challenges', 'CALL mlint.certificate_challenge_run()', '1 minute', false);

CREATE PROCEDURE mlint.certificate_expiry_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_certificate_expiry_run';
COMMENT ON PROCEDURE mlint.certificate_expiry_run() IS
	'The job certificate_expiry: warns of what expires soon, says what has expired, destroys the keys of old certificates and forgets old orders';
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('certificate_expiry', 'CALL mlint.certificate_expiry_run()', '10 minutes', false);

---- Certificates ----

CREATE FUNCTION mlint.certificate_issue(domains text[], account text,
	challenge text DEFAULT 'http-01', solver text DEFAULT NULL,
	key_type text DEFAULT 'ec256', auto_renew boolean DEFAULT true,
	renew_before interval DEFAULT NULL, name text DEFAULT NULL,
	reuse_key boolean DEFAULT false) RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_issue';
COMMENT ON FUNCTION mlint.certificate_issue(text[], text, text, text, text, boolean, interval, text, boolean) IS
	'Have a certificate for these names issued, and by default kept valid; returns at once';

CREATE FUNCTION mlint.certificate_wait(id uuid, timeout interval DEFAULT '5 minutes') RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_wait';
COMMENT ON FUNCTION mlint.certificate_wait(uuid, interval) IS
	'Wait until nothing is under way about a certificate, and return its state; what failed is raised';

CREATE FUNCTION mlint.certificate_renew(id uuid) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_renew';
COMMENT ON FUNCTION mlint.certificate_renew(uuid) IS
	'Have a certificate renewed, or one that failed issued, now';

CREATE FUNCTION mlint.certificate_revoke(id uuid, reason text DEFAULT 'unspecified') RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_revoke';
COMMENT ON FUNCTION mlint.certificate_revoke(uuid, text) IS
	'Have the certificate in use revoked: unspecified, keyCompromise, affiliationChanged, superseded or cessationOfOperation (RFC 5280)';

CREATE FUNCTION mlint.certificate_import(chain text, key text, name text DEFAULT NULL) RETURNS uuid
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_import';
COMMENT ON FUNCTION mlint.certificate_import(text, text, text) IS
	'Take over a certificate from elsewhere, PEM, the leaf first, to be watched and pushed like others; of a name that was imported before it is the next version';

CREATE FUNCTION mlint.certificate_csr(domains text[], key_type text DEFAULT 'ec256',
	name text DEFAULT NULL, OUT csr text, OUT secret text)
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_csr';
COMMENT ON FUNCTION mlint.certificate_csr(text[], text, text) IS
	'A new key, kept as a secret, and a signing request (PEM) with it for a CA that does not speak ACME; certificate_import(chain, NULL, name) takes what comes back';

CREATE FUNCTION mlint.certificate_drop(id uuid) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_drop';
COMMENT ON FUNCTION mlint.certificate_drop(uuid) IS
	'Forget a certificate, its history and its key; it is not revoked by that';

CREATE FUNCTION mlint.certificate_get(id uuid, OUT name text, OUT state text,
	OUT chain text, OUT leaf text, OUT serial text, OUT fingerprint_sha256 text,
	OUT fingerprint_sha1 text, OUT issuer text, OUT not_before timestamptz,
	OUT not_after timestamptz, OUT domains text[], OUT key_secret text,
	OUT key_version int)
	LANGUAGE c STABLE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_get';
COMMENT ON FUNCTION mlint.certificate_get(uuid) IS
	'The certificate in use; its key is the secret key_secret in version key_version, for those who may read that';

---- Views ----

CREATE VIEW mlint.certificates AS
SELECT c.id, c.name, c.domains, c.state, v.issuer, v.serial, v.not_before,
	v.not_after,
	pg_catalog.floor(EXTRACT(epoch FROM v.not_after
		- pg_catalog.statement_timestamp()) / 86400)::int AS days_left,
	c.due_at AS renew_at, c.error AS last_error, c.error_at AS last_error_at,
	c.attempts, a.name AS account, c.challenge,
	CASE WHEN c.challenge = 'http-01' THEN coalesce(c.solver, 'gateway')
		ELSE c.solver END AS solver,
	coalesce(c.key_type, v.key_type) AS key_type, c.auto_renew, c.reuse_key,
	c.renew_before, c.key_secret, v.key_version, n.serial AS next_serial,
	nullif(c.created_by::text, '') AS created_by, c.created_at,
	c.state_at
FROM mlint.certificate c
LEFT JOIN mlint.certificate_version v ON v.id = c.version_id
LEFT JOIN mlint.certificate_version n ON n.id = c.next_version_id
LEFT JOIN mlint.acme_account a ON a.id = c.account_id;
COMMENT ON VIEW mlint.certificates IS 'Certificates that are kept valid, or watched';
COMMENT ON COLUMN mlint.certificates.id IS 'Id of the certificate; a renewal keeps it';
COMMENT ON COLUMN mlint.certificates.name IS 'Its name';
COMMENT ON COLUMN mlint.certificates.domains IS 'Host names, in ASCII, and addresses that it is for';
COMMENT ON COLUMN mlint.certificates.state IS 'REQUESTED, ISSUING, ISSUED (waits for targets that must have it first), ACTIVE, RENEWING (and active meanwhile), FAILED, REVOKED or EXPIRED';
COMMENT ON COLUMN mlint.certificates.issuer IS 'Who issued what is in use (RFC 2253); null: nothing is yet';
COMMENT ON COLUMN mlint.certificates.serial IS 'Serial number of what is in use, hex';
COMMENT ON COLUMN mlint.certificates.not_before IS 'From when it is valid';
COMMENT ON COLUMN mlint.certificates.not_after IS 'Until when it is valid';
COMMENT ON COLUMN mlint.certificates.days_left IS 'Whole days until then; negative: since then';
COMMENT ON COLUMN mlint.certificates.renew_at IS 'When the next order begins; in the past: it waits for the limits of the account; null: one is under way, or there will be none';
COMMENT ON COLUMN mlint.certificates.last_error IS 'Why the last order, or push to where it must be first, failed; null if it did not';
COMMENT ON COLUMN mlint.certificates.last_error_at IS 'When that was';
COMMENT ON COLUMN mlint.certificates.attempts IS 'Orders in a row that failed';
COMMENT ON COLUMN mlint.certificates.account IS 'Account that it is ordered with; null: it was imported';
COMMENT ON COLUMN mlint.certificates.challenge IS 'How its names are proved: http-01 or dns-01';
COMMENT ON COLUMN mlint.certificates.solver IS 'Who shows the proof: gateway, file:directory, function:name; for dns-01 a DNS provider';
COMMENT ON COLUMN mlint.certificates.key_type IS 'Type of its key';
COMMENT ON COLUMN mlint.certificates.auto_renew IS 'Whether it is renewed by itself';
COMMENT ON COLUMN mlint.certificates.reuse_key IS 'Whether its successor has the same key';
COMMENT ON COLUMN mlint.certificates.renew_before IS 'How long before its end it is renewed; null: by its lifetime';
COMMENT ON COLUMN mlint.certificates.key_secret IS 'Secret that its keys are versions of';
COMMENT ON COLUMN mlint.certificates.key_version IS 'Version that is the key of what is in use';
COMMENT ON COLUMN mlint.certificates.next_serial IS 'Serial number of what was issued and waits for targets; null: nothing does';
COMMENT ON COLUMN mlint.certificates.created_by IS 'Role that asked for it; null when that is gone';
COMMENT ON COLUMN mlint.certificates.created_at IS 'When that was';
COMMENT ON COLUMN mlint.certificates.state_at IS 'Since when it is in its state';

CREATE VIEW mlint.certificate_orders AS
SELECT o.id, o.certificate_id, c.name AS certificate, a.name AS account,
	o.state, h.names, h.proved, h.challenges, o.problem, o.error, o.attempts,
	CASE WHEN o.finished_at IS NULL THEN o.next_at END AS next_at, o.url,
	o.expires_at, o.created_at, o.ordered_at, o.finished_at
FROM mlint.acme_order o
LEFT JOIN mlint.certificate c ON c.id = o.certificate_id
JOIN mlint.acme_account a ON a.id = o.account_id
CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS names,
	pg_catalog.count(*) FILTER (WHERE h.status = 'valid') AS proved,
	pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('identifier', h.identifier,
		'type', h.type, 'status', h.status, 'presence', h.presence,
		'attempts', h.attempts,
		'error', coalesce(h.error, h.solver_error)) ORDER BY h.id) AS challenges
	FROM mlint.acme_challenge h WHERE h.order_id = o.id) h;
COMMENT ON VIEW mlint.certificate_orders IS 'Orders at certificate authorities that are under way, and those of late';
COMMENT ON COLUMN mlint.certificate_orders.id IS 'Number of the order';
COMMENT ON COLUMN mlint.certificate_orders.certificate_id IS 'Certificate that it is for; null: that was dropped';
COMMENT ON COLUMN mlint.certificate_orders.certificate IS 'Its name';
COMMENT ON COLUMN mlint.certificate_orders.account IS 'Account that it is ordered with';
COMMENT ON COLUMN mlint.certificate_orders.state IS 'How far it is: new, ordering, authorizing, ready, finalizing, processing, downloading, issued, failed';
COMMENT ON COLUMN mlint.certificate_orders.names IS 'Names that are to be proved, as far as the authority has said which';
COMMENT ON COLUMN mlint.certificate_orders.proved IS 'Those of them that are';
COMMENT ON COLUMN mlint.certificate_orders.challenges IS 'Each name''s proof: what the authority says of it (status), whether what it looks for is there (presence), what went wrong';
COMMENT ON COLUMN mlint.certificate_orders.problem IS 'Why it failed, or waits, in the words of ACME: rateLimited, caa, dns, ...';
COMMENT ON COLUMN mlint.certificate_orders.error IS 'Why it failed, or the last request did';
COMMENT ON COLUMN mlint.certificate_orders.attempts IS 'Failures in a row of the present step';
COMMENT ON COLUMN mlint.certificate_orders.next_at IS 'When it is gone on with; null: it is finished';
COMMENT ON COLUMN mlint.certificate_orders.url IS 'The order at the authority';
COMMENT ON COLUMN mlint.certificate_orders.expires_at IS 'When the authority will have forgotten it';
COMMENT ON COLUMN mlint.certificate_orders.created_at IS 'When it was decided on';
COMMENT ON COLUMN mlint.certificate_orders.ordered_at IS 'When it was sent, which counts for the limits of the account';
COMMENT ON COLUMN mlint.certificate_orders.finished_at IS 'When it ended';

CREATE VIEW mlint.acme_accounts AS
SELECT a.name, a.directory_url, a.email, a.status, a.url, a.eab, a.ca,
	a.key_secret, a.key_version, a.max_orders, a.max_orders_per,
	(SELECT pg_catalog.count(*) FROM mlint.acme_order o
		WHERE o.account_id = a.id AND o.ordered_at >
			pg_catalog.clock_timestamp() - a.max_orders_per) AS orders_lately,
	(SELECT pg_catalog.count(*) FROM mlint.certificate c
		WHERE c.account_id = a.id) AS certificates,
	CASE WHEN a.not_before > pg_catalog.clock_timestamp()
		THEN a.not_before END AS paused_until,
	a.error AS last_error, a.attempts, a.next_at,
	nullif(a.created_by::text, '') AS created_by, a.created_at
FROM mlint.acme_account a;
COMMENT ON VIEW mlint.acme_accounts IS 'Accounts at certificate authorities that speak ACME';
COMMENT ON COLUMN mlint.acme_accounts.name IS 'Name of the account';
COMMENT ON COLUMN mlint.acme_accounts.directory_url IS 'The authority: URL of its directory';
COMMENT ON COLUMN mlint.acme_accounts.email IS 'Where the authority writes to';
COMMENT ON COLUMN mlint.acme_accounts.status IS 'pending, valid, failed, deactivating or deactivated';
COMMENT ON COLUMN mlint.acme_accounts.url IS 'The account at the authority';
COMMENT ON COLUMN mlint.acme_accounts.eab IS 'External account that it is bound to; the key is a reference';
COMMENT ON COLUMN mlint.acme_accounts.ca IS 'Reference to the certificates that the authority''s server is trusted by; null: those of the system';
COMMENT ON COLUMN mlint.acme_accounts.key_secret IS 'Secret that has the account''s key';
COMMENT ON COLUMN mlint.acme_accounts.key_version IS 'Version that is in use';
COMMENT ON COLUMN mlint.acme_accounts.max_orders IS 'New orders in any window of max_orders_per';
COMMENT ON COLUMN mlint.acme_accounts.max_orders_per IS 'The window';
COMMENT ON COLUMN mlint.acme_accounts.orders_lately IS 'New orders in the last window';
COMMENT ON COLUMN mlint.acme_accounts.certificates IS 'Certificates that are ordered with it';
COMMENT ON COLUMN mlint.acme_accounts.paused_until IS 'The authority has asked to be left alone until then; null: it has not';
COMMENT ON COLUMN mlint.acme_accounts.last_error IS 'Why the last thing that was done about the account failed; null if it did not';
COMMENT ON COLUMN mlint.acme_accounts.attempts IS 'Failures in a row of that';
COMMENT ON COLUMN mlint.acme_accounts.next_at IS 'When something is to be done about it; null: nothing is';
COMMENT ON COLUMN mlint.acme_accounts.created_by IS 'Role that created it; null when that is gone';
COMMENT ON COLUMN mlint.acme_accounts.created_at IS 'When that was';

CREATE VIEW mlint.certificate_history AS
SELECT v.certificate_id, c.name, v.id AS version, v.serial,
	pg_catalog.encode(v.fingerprint, 'hex') AS fingerprint_sha256, v.issuer,
	v.subject, v.names, v.key_type, v.key_version, v.key_gone, v.not_before,
	v.not_after, v.issued_at, v.activated_at, v.replaced_at,
	v.id = c.version_id AS in_use, v.ari_start AS suggested_from,
	v.ari_end AS suggested_until, v.ari_url AS suggested_why,
	CASE v.revoke_reason WHEN 0 THEN 'unspecified' WHEN 1 THEN 'keyCompromise'
		WHEN 3 THEN 'affiliationChanged' WHEN 4 THEN 'superseded'
		WHEN 5 THEN 'cessationOfOperation' END AS revoke_reason,
	v.revoke_at, v.revoked_at
FROM mlint.certificate_version v
JOIN mlint.certificate c ON c.id = v.certificate_id;
COMMENT ON VIEW mlint.certificate_history IS 'Every certificate that was issued or imported, until a year after its end';
COMMENT ON COLUMN mlint.certificate_history.certificate_id IS 'Id in mlint.certificates';
COMMENT ON COLUMN mlint.certificate_history.name IS 'Its name';
COMMENT ON COLUMN mlint.certificate_history.version IS 'Grows with time';
COMMENT ON COLUMN mlint.certificate_history.serial IS 'Serial number, hex';
COMMENT ON COLUMN mlint.certificate_history.fingerprint_sha256 IS 'SHA-256 of the certificate, hex';
COMMENT ON COLUMN mlint.certificate_history.issuer IS 'Who issued it (RFC 2253)';
COMMENT ON COLUMN mlint.certificate_history.subject IS 'Its subject';
COMMENT ON COLUMN mlint.certificate_history.names IS 'Host names and addresses in it';
COMMENT ON COLUMN mlint.certificate_history.key_type IS 'Type of its key';
COMMENT ON COLUMN mlint.certificate_history.key_version IS 'Version of the secret that is its key';
COMMENT ON COLUMN mlint.certificate_history.key_gone IS 'Whether the key is no longer kept for it';
COMMENT ON COLUMN mlint.certificate_history.not_before IS 'From when it is valid';
COMMENT ON COLUMN mlint.certificate_history.not_after IS 'Until when it is valid';
COMMENT ON COLUMN mlint.certificate_history.issued_at IS 'When we got it';
COMMENT ON COLUMN mlint.certificate_history.activated_at IS 'When it came into use; null: it did not';
COMMENT ON COLUMN mlint.certificate_history.replaced_at IS 'When a later one took its place';
COMMENT ON COLUMN mlint.certificate_history.in_use IS 'Whether it is the one in use';
COMMENT ON COLUMN mlint.certificate_history.suggested_from IS 'Begin of the window in which the authority suggests to renew it (RFC 9773); null: it suggests none';
COMMENT ON COLUMN mlint.certificate_history.suggested_until IS 'End of that window';
COMMENT ON COLUMN mlint.certificate_history.suggested_why IS 'Page of the authority on why';
COMMENT ON COLUMN mlint.certificate_history.revoke_reason IS 'Why it was revoked, or is to be';
COMMENT ON COLUMN mlint.certificate_history.revoke_at IS 'When that was asked for';
COMMENT ON COLUMN mlint.certificate_history.revoked_at IS 'When it was done';

GRANT SELECT ON mlint.certificates, mlint.certificate_orders,
	mlint.acme_accounts, mlint.certificate_history TO mlint_reader;

REVOKE ALL ON FUNCTION
	mlint.acme_account_create(text, text, text, jsonb, jsonb, int, interval),
	mlint.acme_account_rollover(text), mlint.acme_account_deactivate(text),
	mlint.acme_account_wait(text, interval),
	mlint.certificate_issue(text[], text, text, text, text, boolean, interval, text, boolean),
	mlint.certificate_wait(uuid, interval), mlint.certificate_renew(uuid),
	mlint.certificate_revoke(uuid, text),
	mlint.certificate_import(text, text, text),
	mlint.certificate_csr(text[], text, text), mlint.certificate_drop(uuid),
	mlint.certificate_get(uuid) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.certificate_run(), mlint.certificate_challenge_run(),
	mlint.certificate_expiry_run() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.acme_account_create(text, text, text, jsonb, jsonb, int, interval),
	mlint.acme_account_rollover(text), mlint.acme_account_deactivate(text),
	mlint.acme_account_wait(text, interval),
	mlint.certificate_issue(text[], text, text, text, text, boolean, interval, text, boolean),
	mlint.certificate_wait(uuid, interval), mlint.certificate_renew(uuid),
	mlint.certificate_revoke(uuid, text),
	mlint.certificate_import(text, text, text),
	mlint.certificate_csr(text[], text, text), mlint.certificate_drop(uuid)
	TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.certificate_get(uuid) TO mlint_reader;
-- certs/dns: where the records of dns-01 are made.

CREATE TABLE mlint.dns_provider (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE,
	kind text NOT NULL,
	options jsonb NOT NULL,
	created_by mlint.role_id NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz
);
COMMENT ON TABLE mlint.dns_provider IS 'DNS services that records are made at';
SELECT pg_catalog.pg_extension_config_dump('mlint.dns_provider', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.dns_provider_id_seq', '');

CREATE FUNCTION mlint.dns_provider_create(name text, kind text, options jsonb) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_dns_provider_create';
COMMENT ON FUNCTION mlint.dns_provider_create(text, text, jsonb) IS
	'Name a DNS service that challenges of type dns-01 can be solved at';

CREATE FUNCTION mlint.dns_provider_alter(name text, options jsonb) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_dns_provider_alter';
COMMENT ON FUNCTION mlint.dns_provider_alter(text, jsonb) IS
	'Change options of a DNS provider; null takes one away';

CREATE FUNCTION mlint.dns_provider_drop(name text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_dns_provider_drop';
COMMENT ON FUNCTION mlint.dns_provider_drop(text) IS
	'Forget a DNS provider that no certificate uses and where nothing of ours is left';

CREATE FUNCTION mlint.dns_provider_test(name text, domain text) RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_dns_provider_test';
COMMENT ON FUNCTION mlint.dns_provider_test(text, text) IS
	'Make a record as a challenge for this domain would, see it, remove it; returns how long it took to be seen';

CREATE FUNCTION mlint.dns_provider_options(OUT kind text, OUT option text,
	OUT type text, OUT "default" text, OUT bounds text, OUT required boolean,
	OUT help text) RETURNS SETOF record
	LANGUAGE c IMMUTABLE PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'mlint_dns_provider_options';
COMMENT ON FUNCTION mlint.dns_provider_options() IS 'Behind the view mlint.dns_provider_kinds';

CREATE VIEW mlint.dns_provider_kinds AS SELECT * FROM mlint.dns_provider_options();
COMMENT ON VIEW mlint.dns_provider_kinds IS 'Kinds of DNS providers and the options that they take';
COMMENT ON COLUMN mlint.dns_provider_kinds.kind IS 'Name of the kind';
COMMENT ON COLUMN mlint.dns_provider_kinds.option IS 'Name of the option; group.option lies in an object of its own';
COMMENT ON COLUMN mlint.dns_provider_kinds.type IS 'Type of its value';
COMMENT ON COLUMN mlint.dns_provider_kinds."default" IS 'Value when it is not given; null: none';
COMMENT ON COLUMN mlint.dns_provider_kinds.bounds IS 'Range or choices';
COMMENT ON COLUMN mlint.dns_provider_kinds.required IS 'Whether it must be given';
COMMENT ON COLUMN mlint.dns_provider_kinds.help IS 'What it does';

CREATE VIEW mlint.dns_providers AS
SELECT p.name, p.kind, p.options, p.created_at, p.altered_at
FROM mlint.dns_provider p;
COMMENT ON VIEW mlint.dns_providers IS 'DNS services that records are made at';
COMMENT ON COLUMN mlint.dns_providers.name IS 'Name of the provider';
COMMENT ON COLUMN mlint.dns_providers.kind IS 'What sort of service it is';
COMMENT ON COLUMN mlint.dns_providers.options IS 'Its options; credentials appear as references only';
COMMENT ON COLUMN mlint.dns_providers.created_at IS 'When it was created';
COMMENT ON COLUMN mlint.dns_providers.altered_at IS 'When its options were last changed';

CREATE VIEW mlint.certificate_challenges AS
SELECT c.name AS certificate, h.identifier, h.type, h.solver,
	h.made ->> 'record' AS record, h.status, h.presence, h.attempts,
	nullif(h.next_at, 'infinity') AS next_at,
	coalesce(h.solver_error, h.error) AS error
FROM mlint.acme_challenge h
LEFT JOIN mlint.acme_order o ON o.id = h.order_id
LEFT JOIN mlint.certificate c ON c.id = o.certificate_id
WHERE h.presence NOT IN ('none', 'removed');
COMMENT ON VIEW mlint.certificate_challenges IS 'What is shown, or is to be shown or removed, for certificate authorities to look at';
COMMENT ON COLUMN mlint.certificate_challenges.certificate IS 'Name of the certificate; null: it was dropped';
COMMENT ON COLUMN mlint.certificate_challenges.identifier IS 'Domain or address that is to be proved';
COMMENT ON COLUMN mlint.certificate_challenges.type IS 'http-01 or dns-01';
COMMENT ON COLUMN mlint.certificate_challenges.solver IS 'Who shows it; null: the gateway';
COMMENT ON COLUMN mlint.certificate_challenges.record IS 'Name of the TXT record, after all aliases (dns-01)';
COMMENT ON COLUMN mlint.certificate_challenges.status IS 'What the authority makes of it: new, waiting, answered, valid, invalid, given up';
COMMENT ON COLUMN mlint.certificate_challenges.presence IS 'wanted, presenting, checking (it is made, and not seen everywhere yet), present or removing';
COMMENT ON COLUMN mlint.certificate_challenges.attempts IS 'Failures in a row of what is being done';
COMMENT ON COLUMN mlint.certificate_challenges.next_at IS 'When it is gone on with; null: removing was given up';
COMMENT ON COLUMN mlint.certificate_challenges.error IS 'What it last failed with, or waits for';

REVOKE ALL ON FUNCTION mlint.dns_provider_create(text, text, jsonb),
	mlint.dns_provider_alter(text, jsonb), mlint.dns_provider_drop(text),
	mlint.dns_provider_test(text, text), mlint.dns_provider_options() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.dns_provider_create(text, text, jsonb),
	mlint.dns_provider_alter(text, jsonb), mlint.dns_provider_drop(text),
	mlint.dns_provider_test(text, text) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.dns_provider_options() TO mlint_reader;
GRANT SELECT ON mlint.dns_provider_kinds, mlint.dns_providers,
	mlint.certificate_challenges TO mlint_reader;
-- certs/targets: where certificates are used, and what is really served there.

CREATE TABLE mlint.certificate_target (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	certificate_id uuid NOT NULL REFERENCES mlint.certificate ON DELETE CASCADE,
	name text COLLATE "C" NOT NULL,
	kind text NOT NULL,
	options jsonb NOT NULL,
	strategy text NOT NULL CHECK (strategy IN ('sync', 'async')),
	created_by mlint.role_id NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz,
	UNIQUE (certificate_id, name)
);
COMMENT ON TABLE mlint.certificate_target IS 'Where certificates are pushed to';

-- A target has one region, '', or several. What it serves is version_id; what it
-- should serve follows from the certificate. Before a version leaves, pushing_id
-- says so: one that a crash leaves there may have arrived.
CREATE TABLE mlint.certificate_region (
	target_id int NOT NULL REFERENCES mlint.certificate_target ON DELETE CASCADE,
	region text COLLATE "C" NOT NULL,
	version_id bigint REFERENCES mlint.certificate_version ON DELETE SET NULL,
	pushing_id bigint REFERENCES mlint.certificate_version ON DELETE SET NULL,
	-- What the peer calls it: an ARN, a certificate's id, a path.
	reference text,
	pushed_at timestamptz,
	-- When to push whatever is there; null: when there is another version.
	next_at timestamptz DEFAULT pg_catalog.clock_timestamp(),
	attempts int NOT NULL DEFAULT 0,
	error text,
	PRIMARY KEY (target_id, region)
);
COMMENT ON TABLE mlint.certificate_region IS 'Which region of a target serves which version of a certificate';

-- Who is seen to serve what.
CREATE TABLE mlint.certificate_watch (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	certificate_id uuid NOT NULL REFERENCES mlint.certificate ON DELETE CASCADE,
	host text NOT NULL,
	port int NOT NULL CHECK (port BETWEEN 1 AND 65535),
	protocol text NOT NULL CHECK (protocol IN ('tls', 'postgres')),
	server_name text,
	every interval NOT NULL CHECK (every > '0'),
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	next_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	checked_at timestamptz,
	served_serial text,
	served_fingerprint bytea,
	served_not_after timestamptz,
	-- What is to be said of the chain that is sent with it.
	note text,
	-- Since when another certificate is served than should be, and the last
	-- such of which certificate.mismatch was published.
	differs_since timestamptz,
	told_fingerprint bytea,
	error text,
	UNIQUE (certificate_id, host, port)
);
COMMENT ON TABLE mlint.certificate_watch IS 'Servers that are looked at for the certificate that they really serve';

SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_target', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_target_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_region', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_watch', '');
SELECT pg_catalog.pg_extension_config_dump('mlint.certificate_watch_id_seq', '');

-- Also after a restore.
CREATE TRIGGER job_enable AFTER INSERT ON mlint.certificate_target
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('certificate_targets');
ALTER TABLE mlint.certificate_target ENABLE ALWAYS TRIGGER job_enable;
CREATE TRIGGER job_enable AFTER INSERT ON mlint.certificate_watch
	REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION mlint.job_enable('certificate_watches');
ALTER TABLE mlint.certificate_watch ENABLE ALWAYS TRIGGER job_enable;

CREATE FUNCTION mlint.certificate_target_create(certificate uuid, kind text,
	options jsonb DEFAULT '{}', strategy text DEFAULT 'async',
	name text DEFAULT NULL) RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_target_create';
COMMENT ON FUNCTION mlint.certificate_target_create(uuid, text, jsonb, text, text) IS
	'Have a certificate pushed to a place now and at each renewal; returns the target''s name, by default the kind''s';

CREATE FUNCTION mlint.certificate_target_alter(certificate uuid, name text,
	options jsonb DEFAULT '{}', strategy text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_target_alter';
COMMENT ON FUNCTION mlint.certificate_target_alter(uuid, text, jsonb, text) IS
	'Change options of a target; null takes one away; what failed is tried again at once';

CREATE FUNCTION mlint.certificate_target_drop(certificate uuid, name text) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_target_drop';
COMMENT ON FUNCTION mlint.certificate_target_drop(uuid, text) IS
	'Push a certificate there no more; what is there stays there';

CREATE FUNCTION mlint.certificate_target_options(OUT kind text, OUT option text,
	OUT type text, OUT "default" text, OUT bounds text, OUT required boolean,
	OUT help text) RETURNS SETOF record
	LANGUAGE c IMMUTABLE PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_target_options';
COMMENT ON FUNCTION mlint.certificate_target_options() IS 'Behind the view mlint.certificate_target_kinds';

CREATE VIEW mlint.certificate_target_kinds AS SELECT * FROM mlint.certificate_target_options();
COMMENT ON VIEW mlint.certificate_target_kinds IS 'Kinds of places that certificates are pushed to, and the options that they take';
COMMENT ON COLUMN mlint.certificate_target_kinds.kind IS 'Name of the kind';
COMMENT ON COLUMN mlint.certificate_target_kinds.option IS 'Name of the option; group.option lies in an object of its own';
COMMENT ON COLUMN mlint.certificate_target_kinds.type IS 'Type of its value';
COMMENT ON COLUMN mlint.certificate_target_kinds."default" IS 'Value when it is not given; null: none';
COMMENT ON COLUMN mlint.certificate_target_kinds.bounds IS 'Range or choices';
COMMENT ON COLUMN mlint.certificate_target_kinds.required IS 'Whether it must be given';
COMMENT ON COLUMN mlint.certificate_target_kinds.help IS 'What it does';

-- Regions, and the version that each should serve: one that is not in use yet
-- goes to those that must have it first.
CREATE VIEW mlint.certificate_push AS
SELECT r.target_id, r.region, t.certificate_id, t.strategy = 'sync' AS sync,
	CASE WHEN t.strategy = 'sync' THEN coalesce(c.next_version_id, c.version_id)
		ELSE c.version_id END AS wanted_id,
	r.version_id, r.pushing_id, r.next_at
FROM mlint.certificate_region r
JOIN mlint.certificate_target t ON t.id = r.target_id
JOIN mlint.certificate c ON c.id = t.certificate_id;
COMMENT ON VIEW mlint.certificate_push IS 'The job certificate_targets''s: what each region should serve';
COMMENT ON COLUMN mlint.certificate_push.target_id IS 'The target';
COMMENT ON COLUMN mlint.certificate_push.region IS 'Its region';
COMMENT ON COLUMN mlint.certificate_push.certificate_id IS 'The certificate';
COMMENT ON COLUMN mlint.certificate_push.sync IS 'Whether the target must have a version before it is in use';
COMMENT ON COLUMN mlint.certificate_push.wanted_id IS 'The version that it should serve; null: there is none yet';
COMMENT ON COLUMN mlint.certificate_push.version_id IS 'The version that it serves';
COMMENT ON COLUMN mlint.certificate_push.pushing_id IS 'The version that was last on its way there';
COMMENT ON COLUMN mlint.certificate_push.next_at IS 'When to push whatever is there; null: when there is another version';

CREATE VIEW mlint.certificate_targets AS
SELECT p.certificate_id AS certificate, c.name AS certificate_name, t.name,
	t.kind, t.options, t.strategy, p.region,
	CASE WHEN p.wanted_id IS NULL THEN 'waiting'
		WHEN p.version_id IS NOT DISTINCT FROM p.wanted_id AND r.error IS NULL
			THEN 'serving'
		WHEN r.error IS NOT NULL THEN 'failing'
		ELSE 'pending' END AS state,
	has.serial AS serves, wanted.serial AS should_serve,
	p.version_id IS NOT DISTINCT FROM p.wanted_id AS agrees,
	r.reference, r.pushed_at, r.attempts, r.error,
	CASE WHEN p.wanted_id IS NOT NULL THEN r.next_at END AS next_at,
	t.created_at, t.altered_at
FROM mlint.certificate_push p
JOIN mlint.certificate_region r USING (target_id, region)
JOIN mlint.certificate_target t ON t.id = p.target_id
JOIN mlint.certificate c ON c.id = p.certificate_id
LEFT JOIN mlint.certificate_version has ON has.id = p.version_id
LEFT JOIN mlint.certificate_version wanted ON wanted.id = p.wanted_id;
COMMENT ON VIEW mlint.certificate_targets IS 'Where certificates are pushed to, a row for each region: which serves which';
COMMENT ON COLUMN mlint.certificate_targets.certificate IS 'Id of the certificate';
COMMENT ON COLUMN mlint.certificate_targets.certificate_name IS 'Its name';
COMMENT ON COLUMN mlint.certificate_targets.name IS 'Name of the target, among those of the certificate';
COMMENT ON COLUMN mlint.certificate_targets.kind IS 'What sort of place it is';
COMMENT ON COLUMN mlint.certificate_targets.options IS 'Its options; credentials appear as references only';
COMMENT ON COLUMN mlint.certificate_targets.strategy IS 'sync: it must have a certificate before that is in use; async: after';
COMMENT ON COLUMN mlint.certificate_targets.region IS 'Region, or vault; empty where a target has but one';
COMMENT ON COLUMN mlint.certificate_targets.state IS 'waiting (there is no certificate yet), pending (it is to be pushed), failing (it could not be, and is tried again), or serving';
COMMENT ON COLUMN mlint.certificate_targets.serves IS 'Serial of the certificate that was last pushed there; null: none was';
COMMENT ON COLUMN mlint.certificate_targets.should_serve IS 'Serial of the one that should be there';
COMMENT ON COLUMN mlint.certificate_targets.agrees IS 'Whether these are the same';
COMMENT ON COLUMN mlint.certificate_targets.reference IS 'What it is called there: an ARN, an id, a path';
COMMENT ON COLUMN mlint.certificate_targets.pushed_at IS 'When it was last pushed';
COMMENT ON COLUMN mlint.certificate_targets.attempts IS 'Attempts in a row that failed';
COMMENT ON COLUMN mlint.certificate_targets.error IS 'Why the last failed';
COMMENT ON COLUMN mlint.certificate_targets.next_at IS 'When it is tried again';
COMMENT ON COLUMN mlint.certificate_targets.created_at IS 'When the target was created';
COMMENT ON COLUMN mlint.certificate_targets.altered_at IS 'When its options were last changed';

CREATE VIEW mlint.certificate_watches AS
SELECT w.certificate_id AS certificate, c.name AS certificate_name, w.host,
	w.port, w.protocol, w.server_name, w.every,
	CASE WHEN w.error IS NOT NULL THEN 'unreachable'
		WHEN w.checked_at IS NULL OR v.id IS NULL
			OR w.checked_at < v.activated_at THEN 'waiting'
		WHEN w.served_fingerprint IS DISTINCT FROM v.fingerprint THEN 'differs'
		ELSE 'agrees' END AS state,
	w.served_serial AS serves, v.serial AS should_serve,
	w.served_not_after, w.differs_since, w.note, w.checked_at, w.error,
	w.next_at
FROM mlint.certificate_watch w
JOIN mlint.certificate c ON c.id = w.certificate_id
LEFT JOIN mlint.certificate_version v ON v.id = c.version_id;
COMMENT ON VIEW mlint.certificate_watches IS 'Servers that are looked at for the certificate that they really serve';
COMMENT ON COLUMN mlint.certificate_watches.certificate IS 'Id of the certificate';
COMMENT ON COLUMN mlint.certificate_watches.certificate_name IS 'Its name';
COMMENT ON COLUMN mlint.certificate_watches.host IS 'The server';
COMMENT ON COLUMN mlint.certificate_watches.port IS 'Its port';
COMMENT ON COLUMN mlint.certificate_watches.protocol IS 'tls: from the start; postgres: as PostgreSQL begins it';
COMMENT ON COLUMN mlint.certificate_watches.server_name IS 'Name that it is asked for (SNI); null: the host';
COMMENT ON COLUMN mlint.certificate_watches.every IS 'Time between two looks';
COMMENT ON COLUMN mlint.certificate_watches.state IS 'waiting (for the first look at the certificate in use, or for one), agrees, differs, or unreachable';
COMMENT ON COLUMN mlint.certificate_watches.serves IS 'Serial of the certificate that was last seen';
COMMENT ON COLUMN mlint.certificate_watches.should_serve IS 'Serial of the certificate in use';
COMMENT ON COLUMN mlint.certificate_watches.served_not_after IS 'When the one that was seen expires';
COMMENT ON COLUMN mlint.certificate_watches.differs_since IS 'When another certificate than the one in use was first seen; null: the last look saw the one in use';
COMMENT ON COLUMN mlint.certificate_watches.note IS 'What is to be said of the chain that the server sends with it';
COMMENT ON COLUMN mlint.certificate_watches.checked_at IS 'When it was last looked at';
COMMENT ON COLUMN mlint.certificate_watches.error IS 'Why nothing could be seen';
COMMENT ON COLUMN mlint.certificate_watches.next_at IS 'When it is looked at next';

CREATE FUNCTION mlint.certificate_watch_create(certificate uuid, host text,
	port int DEFAULT 443, protocol text DEFAULT 'tls',
	server_name text DEFAULT NULL, every interval DEFAULT '1 hour') RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_watch_create';
COMMENT ON FUNCTION mlint.certificate_watch_create(uuid, text, int, text, text, interval) IS
	'Look from time to time which certificate a server really serves, by TLS from the start or as PostgreSQL does';

CREATE FUNCTION mlint.certificate_watch_drop(certificate uuid, host text,
	port int DEFAULT 443) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_certificate_watch_drop';
COMMENT ON FUNCTION mlint.certificate_watch_drop(uuid, text, int) IS
	'Look no more what a server serves';

CREATE PROCEDURE mlint.certificate_target_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_certificate_target_run';
COMMENT ON PROCEDURE mlint.certificate_target_run() IS
	'The job certificate_targets: pushes certificates to where they should be';
CREATE PROCEDURE mlint.certificate_watch_run()
	LANGUAGE c AS 'MODULE_PATHNAME', 'mlint_certificate_watch_run';
COMMENT ON PROCEDURE mlint.certificate_watch_run() IS
	'The job certificate_watches: looks at what is served';
INSERT INTO mlint.job (name, command, every, enabled)
VALUES ('certificate_targets', 'CALL mlint.certificate_target_run()', '1 minute', false),
	('certificate_watches', 'CALL mlint.certificate_watch_run()', '5 minutes', false);

INSERT INTO mlint.event_type VALUES
	('certificate.mismatch', 'A watched server serves another certificate than it should'),
	('certificate.pushed', 'For the destination of a certificate target: the certificate to use from now on');

REVOKE ALL ON FUNCTION
	mlint.certificate_target_create(uuid, text, jsonb, text, text),
	mlint.certificate_target_alter(uuid, text, jsonb, text),
	mlint.certificate_target_drop(uuid, text),
	mlint.certificate_target_options(),
	mlint.certificate_watch_create(uuid, text, int, text, text, interval),
	mlint.certificate_watch_drop(uuid, text, int) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mlint.certificate_target_run(), mlint.certificate_watch_run() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	mlint.certificate_target_create(uuid, text, jsonb, text, text),
	mlint.certificate_target_alter(uuid, text, jsonb, text),
	mlint.certificate_target_drop(uuid, text),
	mlint.certificate_watch_create(uuid, text, int, text, text, interval),
	mlint.certificate_watch_drop(uuid, text, int) TO mlint_admin;
GRANT EXECUTE ON FUNCTION mlint.certificate_target_options() TO mlint_reader;
GRANT SELECT ON mlint.certificate_target_kinds, mlint.certificate_targets,
	mlint.certificate_watches TO mlint_reader;
-- certs/health: what is wrong with certificates, and what to do about it.

-- Each thing that can be wrong is a row: of what, how bad, why, and what to do.
-- What time is left is measured by the lifetime, so that a certificate of six
-- days is not critical all its life.
CREATE VIEW mlint.certificate_finding AS
WITH c AS (
	SELECT c.*, v.not_after, v.not_after - v.not_before AS lifetime,
		v.revoked_at, v.revoke_at, v.activated_at, v.fingerprint, v.key_version, v.key_gone,
		v.not_after - pg_catalog.clock_timestamp() AS remains,
		coalesce(a.status = 'failed', false) AS account_refused,
		pg_catalog.clock_timestamp() AS now
	FROM mlint.certificate c
	LEFT JOIN mlint.acme_account a ON a.id = c.account_id
	LEFT JOIN mlint.certificate_version v ON v.id = c.version_id
), near AS (
	SELECT c.*,
		remains <= least('30 days'::interval, lifetime / 3) AS is_near,
		remains <= least('7 days'::interval, lifetime / 6) AS is_close,
		remains <= '0' AS is_over
	FROM c
)
SELECT 'certificate' AS kind, c.name, c.id AS certificate_id, f.level, f.why, f.remedy
FROM near c, LATERAL (
	SELECT 2 AS level, 'it has expired' AS why,
		CASE WHEN c.account_id IS NULL THEN 'Import its successor with mlint.certificate_import().'
			ELSE 'Look at last_error in mlint.certificates; mlint.certificate_renew() tries again at once.' END AS remedy
	WHERE c.is_over
	UNION ALL
	SELECT 2, 'it was revoked',
		'mlint.certificate_renew() has another issued; mlint.certificate_drop() forgets it.'
	WHERE c.revoked_at IS NOT NULL
	UNION ALL
	SELECT CASE WHEN c.version_id IS NULL OR c.is_over OR c.is_close THEN 2 ELSE 1 END,
		CASE WHEN c.next_version_id IS NOT NULL
			THEN 'the next certificate was issued, and is not in use yet: '
			WHEN c.version_id IS NULL THEN 'it could not be issued: '
			ELSE 'it could not be renewed: ' END || c.error,
		CASE WHEN c.next_version_id IS NOT NULL
			THEN 'mlint.certificate_targets tells which target fails; it is tried again by itself.'
			WHEN c.due_at IS NULL
			THEN 'Put right what the error names, and call mlint.certificate_renew().'
			ELSE 'Put right what the error names; it is tried again by itself, or at once by mlint.certificate_renew().' END
	WHERE c.error IS NOT NULL
	UNION ALL
	SELECT CASE WHEN c.is_close THEN 2 ELSE 1 END,
		pg_catalog.format('it expires in %s, and nobody renews it',
			CASE WHEN c.remains >= '1 day' THEN pg_catalog.floor(EXTRACT(epoch FROM c.remains) / 86400) || ' days'
				ELSE pg_catalog.date_trunc('second', c.remains)::text END),
		CASE WHEN c.account_id IS NULL THEN 'Import its successor with mlint.certificate_import().'
			ELSE 'Call mlint.certificate_renew(); its auto_renew is off.' END
	WHERE c.is_near AND NOT c.is_over AND NOT c.auto_renew
		AND c.next_version_id IS NULL
	UNION ALL
	SELECT CASE WHEN c.is_close THEN 2 ELSE 1 END,
		'its renewal waits for the limits of its account',
		'mlint.acme_accounts tells how many orders were made lately; raise max_orders if the authority allows more.'
	WHERE c.due_at < c.now - least('1 day'::interval, c.lifetime / 20)
		AND NOT c.account_refused
	UNION ALL
	SELECT CASE WHEN c.version_id IS NULL OR c.is_close OR c.is_over THEN 2 ELSE 1 END,
		'it waits for its account, which could not be registered',
		'See the account.'
	WHERE c.due_at <= c.now AND c.account_refused
	UNION ALL
	SELECT CASE WHEN c.is_close OR c.is_over THEN 2 ELSE 1 END,
		pg_catalog.format('its order is %s since %s', o.state,
			pg_catalog.to_char(o.created_at, 'YYYY-MM-DD HH24:MI')),
		'mlint.certificate_orders tells how far it is, and mlint.jobs whether the job certificates runs.'
	FROM mlint.acme_order o
	WHERE o.certificate_id = c.id AND o.finished_at IS NULL
		AND o.created_at < c.now - '1 hour'::interval
	UNION ALL
	SELECT 1, 'its revocation was asked for, and is not done yet',
		'mlint.acme_accounts tells whether its authority can be reached.'
	WHERE c.revoked_at IS NULL AND c.revoke_at < c.now - '1 hour'::interval
	UNION ALL
	SELECT 2, pg_catalog.format('version %s of secret "%s", its key, is gone', c.key_version, c.key_secret),
		CASE WHEN c.account_id IS NULL THEN 'Import it again, with its key.'
			ELSE 'Call mlint.certificate_renew(), which makes another.' END
	WHERE c.version_id IS NOT NULL AND NOT EXISTS (SELECT FROM mlint.secret s
		JOIN mlint.secret_version k ON k.secret_id = s.id
		WHERE s.name = c.key_secret AND k.version = c.key_version
			AND k.destroyed_at IS NULL)
	UNION ALL
	SELECT CASE WHEN has.not_after <= c.now THEN 2 ELSE 1 END,
		pg_catalog.format('target "%s"%s %s', t.name,
			CASE WHEN r.region <> '' THEN ' in ' || r.region ELSE '' END,
			CASE WHEN r.error IS NOT NULL THEN 'cannot be reached: ' || r.error
				ELSE 'has an old certificate' END),
		'Put right what the error names in mlint.certificate_targets; it is tried again by itself.'
	FROM mlint.certificate_target t
	JOIN mlint.certificate_region r ON r.target_id = t.id
	LEFT JOIN mlint.certificate_version has ON has.id = r.version_id
	LEFT JOIN mlint.certificate_version wanted ON wanted.id = c.version_id
	WHERE t.certificate_id = c.id AND c.version_id IS NOT NULL
		AND (r.error IS NOT NULL
			OR (r.version_id IS DISTINCT FROM c.version_id
				AND r.version_id IS DISTINCT FROM c.next_version_id
				AND wanted.activated_at < c.now - '1 hour'::interval))
	UNION ALL
	SELECT CASE WHEN w.served_not_after <= c.now + '1 day'::interval THEN 2 ELSE 1 END,
		pg_catalog.format('%s:%s serves another certificate, with serial %s, until %s',
			w.host, w.port, w.served_serial,
			pg_catalog.to_char(w.served_not_after, 'YYYY-MM-DD')),
		'See that the server has the one in use, and has loaded it.'
	FROM mlint.certificate_watch w
	WHERE w.certificate_id = c.id AND c.version_id IS NOT NULL
		AND w.error IS NULL AND w.served_fingerprint <> c.fingerprint
		-- A look before that may have seen it on its way.
		AND w.checked_at >= coalesce(c.activated_at + '5 minutes', '-infinity')
	UNION ALL
	SELECT 1, pg_catalog.format('%s:%s cannot be looked at: %s', w.host, w.port, w.error),
		'See that the server runs, and can be reached from here.'
	FROM mlint.certificate_watch w
	WHERE w.certificate_id = c.id AND w.error IS NOT NULL
) f
UNION ALL
SELECT 'account', a.name, NULL, f.level, f.why, f.remedy
FROM mlint.acme_account a, LATERAL (
	SELECT 2 AS level, 'it could not be registered: ' || coalesce(a.error, 'no reason is known') AS why,
		'Create it again, with what is right; it is also tried again by itself.' AS remedy
	WHERE a.status = 'failed'
	UNION ALL
	SELECT 2, 'it was deactivated, and certificates are to be renewed with it',
		'Have them issued with another account.'
	WHERE a.status IN ('deactivating', 'deactivated')
		AND EXISTS (SELECT FROM mlint.certificate c
			WHERE c.account_id = a.id AND c.auto_renew)
	UNION ALL
	SELECT 1, a.error, 'Put right what the error names; it is tried again by itself.'
	WHERE a.status <> 'failed' AND a.error IS NOT NULL
	UNION ALL
	SELECT 1, 'its authority has asked to be left alone until '
			|| pg_catalog.to_char(a.not_before, 'YYYY-MM-DD HH24:MI'),
		'Nothing; orders go on then. If it comes often, lower max_orders.'
	WHERE a.not_before > pg_catalog.clock_timestamp()
) f;
COMMENT ON VIEW mlint.certificate_finding IS 'Behind mlint.certificate_health(): all that is wrong';
COMMENT ON COLUMN mlint.certificate_finding.kind IS 'certificate or account';
COMMENT ON COLUMN mlint.certificate_finding.name IS 'Its name';
COMMENT ON COLUMN mlint.certificate_finding.certificate_id IS 'Id of the certificate';
COMMENT ON COLUMN mlint.certificate_finding.level IS '1: warning, 2: critical';
COMMENT ON COLUMN mlint.certificate_finding.why IS 'What is wrong';
COMMENT ON COLUMN mlint.certificate_finding.remedy IS 'What to do about it';

CREATE FUNCTION mlint.certificate_health(OUT kind text, OUT name text,
	OUT certificate_id uuid, OUT status text, OUT why text, OUT remedy text)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
	WITH thing AS (
		SELECT 'certificate' AS kind, c.name, c.id FROM mlint.certificate c
		UNION ALL
		SELECT 'account', a.name, NULL FROM mlint.acme_account a
	), found AS (
		SELECT f.kind, f.name, max(f.level) AS level,
			string_agg(f.why, '; ' ORDER BY f.level DESC, f.why) AS why,
			(array_agg(f.remedy ORDER BY f.level DESC, f.why))[1] AS remedy
		FROM mlint.certificate_finding f GROUP BY f.kind, f.name
	)
	SELECT t.kind, t.name, t.id,
		CASE f.level WHEN 2 THEN 'critical' WHEN 1 THEN 'warning' ELSE 'ok' END,
		f.why, f.remedy
	FROM thing t LEFT JOIN found f ON f.kind = t.kind AND f.name = t.name
	ORDER BY coalesce(f.level, 0) DESC, t.kind, t.name
$$;
COMMENT ON FUNCTION mlint.certificate_health() IS
	'Each certificate and account: ok, warning or critical, why, and what to do; the worst first';
REVOKE ALL ON FUNCTION mlint.certificate_health() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.certificate_health() TO mlint_reader;
-- certs, observed: what mlint.certificate_health() says, and challenges.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('certs', 'certificates', true, $$
	SELECT f.level, format('%s "%s": %s', f.kind, f.name, f.why), f.remedy
	FROM mlint.certificate_finding f
	UNION ALL
	SELECT o.* FROM mlint.job_off('certificates') o
	WHERE EXISTS (SELECT FROM mlint.acme_account WHERE status <> 'deactivated')
	UNION ALL
	SELECT o.* FROM mlint.job_off('certificate_expiry') o
	WHERE EXISTS (SELECT FROM mlint.certificate)
	UNION ALL
	SELECT o.* FROM mlint.job_off('certificate_targets') o
	WHERE EXISTS (SELECT FROM mlint.certificate_target)
	UNION ALL
	SELECT o.* FROM mlint.job_off('certificate_watches') o
	WHERE EXISTS (SELECT FROM mlint.certificate_watch)$$),

('certs', 'challenges', true, $$
	SELECT 2, format('certificates (%s) are to be proved by the gateway, and mlint.gateway_listen is empty', c.name),
		'Set it to where http://<name>/.well-known/acme-challenge/ leads, or name another solver.'
	FROM (SELECT c.name FROM mlint.certificate c WHERE c.challenge = 'http-01'
		AND c.solver IS NULL AND c.auto_renew ORDER BY c.name LIMIT 1) c
	WHERE current_setting('mlint.gateway_listen') = ''
	UNION ALL
	SELECT 1, format('the record %s at DNS provider "%s" could not be removed, and that was given up: %s',
			h.made ->> 'record', h.solver, h.solver_error),
		'Put right what the error names, or remove it there by hand; then mlint.dns_provider_alter() has it tried again.'
	FROM mlint.acme_challenge h
	WHERE h.presence = 'removing' AND h.next_at = 'infinity'
	UNION ALL
	SELECT 1, format('%s proves names, and fails: %s', coalesce('solver "' || h.solver || '"', 'the gateway'), h.error),
		'Put right what the error names; for a DNS provider mlint.dns_provider_test() tries it.'
	FROM (SELECT h.solver, max(h.solver_error) AS error FROM mlint.acme_challenge h
		WHERE h.presence IN ('wanted', 'presenting', 'removing') AND h.next_at < 'infinity'
			AND h.attempts >= 3
		GROUP BY h.solver) h
	UNION ALL
	SELECT o.* FROM mlint.job_off('certificate_challenges') o
	WHERE EXISTS (SELECT FROM mlint.acme_challenge
		WHERE presence IN ('wanted', 'presenting', 'checking', 'removing'))$$);

-- One by one those that end first, a thousand at most.
INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('certs', 'certificates', true, '{certificate}', $$
	SELECT c.name AS certificate, date_part('epoch', v.not_after) AS not_after,
		c.attempts
	FROM mlint.certificate c
	LEFT JOIN mlint.certificate_version v ON v.id = c.version_id
	ORDER BY v.not_after NULLS FIRST, c.name LIMIT 1000$$),
('certs', 'certificate_states', true, '{state}', $$
	SELECT s.state, count(c.id) AS certificates
	FROM unnest('{REQUESTED,ISSUING,ISSUED,ACTIVE,RENEWING,FAILED,REVOKED,EXPIRED}'::text[]) s (state)
	LEFT JOIN mlint.certificate c ON c.state = s.state
	GROUP BY s.state ORDER BY s.state$$),
('certs', 'acme_accounts', true, '{account}', $$
	SELECT a.name AS account, a.status = 'valid' AS valid, a.max_orders,
		(SELECT count(*) FROM mlint.acme_order o WHERE o.account_id = a.id
			AND o.ordered_at > clock_timestamp() - a.max_orders_per) AS orders,
		(SELECT count(*) FROM mlint.acme_order o WHERE o.account_id = a.id
			AND o.finished_at IS NULL) AS open
	FROM mlint.acme_account a ORDER BY a.name$$),
('certs', 'certificate_targets', true, '{state}', $$
	SELECT s.state, count(t.state) AS targets
	FROM unnest('{waiting,pending,failing,serving}'::text[]) s (state)
	LEFT JOIN mlint.certificate_targets t ON t.state = s.state
	GROUP BY s.state ORDER BY s.state$$),
('certs', 'certificate_watches', true, '{state}', $$
	SELECT s.state, count(w.state) AS watches
	FROM unnest('{waiting,agrees,differs,unreachable}'::text[]) s (state)
	LEFT JOIN mlint.certificate_watches w ON w.state = s.state
	GROUP BY s.state ORDER BY s.state$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('certificates', 'not_after', 'mlint_certificate_not_after_timestamp_seconds', 'gauge', 'When the certificate in use expires; of the 1000 that do first'),
('certificates', 'attempts', 'mlint_certificate_failed_orders', 'gauge', 'Orders in a row that failed'),
('certificate_states', 'certificates', 'mlint_certificates', 'gauge', 'Certificates in each state'),
('acme_accounts', 'valid', 'mlint_acme_account_valid', 'gauge', 'Whether the account is registered'),
('acme_accounts', 'max_orders', 'mlint_acme_account_orders_limit', 'gauge', 'New orders that its limit allows in its window'),
('acme_accounts', 'orders', 'mlint_acme_account_orders_lately', 'gauge', 'New orders in the last such window'),
('acme_accounts', 'open', 'mlint_acme_account_orders_open', 'gauge', 'Orders that are under way'),
('certificate_targets', 'targets', 'mlint_certificate_targets', 'gauge', 'Places that certificates are pushed to, in each state'),
('certificate_watches', 'watches', 'mlint_certificate_watches', 'gauge', 'Servers that are looked at, in each state');

-- owned: what belongs to which role, in all rooms.

CREATE VIEW mlint.owned AS
SELECT o.kind, o.name, nullif(o.role::text, '') AS role
FROM (SELECT 'destination' AS kind, d.name, d.owner AS role
	FROM mlint.destination d WHERE d.dropped_at IS NULL
	UNION ALL
	SELECT 'secret', g.pattern, g.role FROM mlint.secret_grant g
	WHERE g.privilege = 'owner'
	UNION ALL
	SELECT 'rotation', s.name, r.owner
	FROM mlint.secret_rotation r JOIN mlint.secret s ON s.id = r.secret_id
	UNION ALL
	SELECT 'mount', m.path, m.created_by FROM mlint.secret_mount m
	WHERE m.dropped_at IS NULL
	UNION ALL
	SELECT 'acme account', a.name, a.created_by FROM mlint.acme_account a
	UNION ALL
	SELECT 'certificate', c.name, c.created_by FROM mlint.certificate c
	UNION ALL
	SELECT 'dns provider', p.name, p.created_by FROM mlint.dns_provider p
	UNION ALL
	SELECT 'certificate target', c.name || ': ' || t.name, t.created_by
	FROM mlint.certificate_target t
	JOIN mlint.certificate c ON c.id = t.certificate_id
	UNION ALL
	SELECT 'challenge', h.identifier, h.owner FROM mlint.acme_challenge h
	WHERE h.owner IS NOT NULL) o;
COMMENT ON VIEW mlint.owned IS 'What belongs to a role: as that role its functions run, and with its privileges it reads secrets';
COMMENT ON COLUMN mlint.owned.kind IS 'What it is';
COMMENT ON COLUMN mlint.owned.name IS 'Its name';
COMMENT ON COLUMN mlint.owned.role IS 'The role; null when that is gone';

CREATE FUNCTION mlint.owned_reassign(role text, new_role text) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_owned_reassign';
COMMENT ON FUNCTION mlint.owned_reassign(text, text) IS
	'Give what belongs to a role in mlint to another, as REASSIGN OWNED does elsewhere; null: what belongs to roles that are gone. Returns how much that was';

REVOKE ALL ON FUNCTION mlint.owned_reassign(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.owned_reassign(text, text) TO mlint_admin;
GRANT SELECT ON mlint.owned TO mlint_admin;
-- owned, observed: what has lost its owner does not work. Of each kind how many,
-- since some have names that are not for everybody; a secret works without.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('owned', 'owners', true, $$
	SELECT 2, format('the owner is gone of: %s (%s)', o.kind, count(*)),
		'mlint.owned tells administrators what it is; mlint.owned_reassign(NULL, new_role) gives it to another.'
	FROM mlint.owned o WHERE o.kind <> 'secret' AND o.role IS NULL
	GROUP BY o.kind$$);

-- Rows of a dump keep the workers away, whichever table they come to.
DO $$
DECLARE
	t regclass;
BEGIN
	FOR t IN SELECT c.oid FROM pg_catalog.pg_extension e, pg_catalog.unnest(e.extconfig) u
		JOIN pg_catalog.pg_class c ON c.oid = u
		WHERE e.extname = 'mlint' AND c.relkind = 'r'
	LOOP
		-- Before others: their names begin with a letter.
		EXECUTE pg_catalog.format('CREATE TRIGGER "1 restore" BEFORE INSERT ON %s FOR EACH STATEMENT EXECUTE FUNCTION mlint.restore_fence()', t);
		EXECUTE pg_catalog.format('CREATE TRIGGER "1 restored" AFTER INSERT ON %s FOR EACH STATEMENT EXECUTE FUNCTION mlint.restore_fence()', t);
		EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER "1 restore", ENABLE ALWAYS TRIGGER "1 restored"', t);
	END LOOP;
END
$$;

-- What functions return, and the rows of views, may be arguments and results of
-- functions of those who call and read them.
DO $$
DECLARE
	type regtype;
BEGIN
	FOR type IN SELECT t.oid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
		WHERE t.typnamespace = 'mlint'::regnamespace AND c.relkind IN ('c', 'v')
	LOOP
		EXECUTE pg_catalog.format('GRANT USAGE ON TYPE %s TO mlint_user, mlint_reader', type);
	END LOOP;
END
$$;

SELECT mlint.privileges_close();
