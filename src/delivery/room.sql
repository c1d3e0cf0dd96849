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

