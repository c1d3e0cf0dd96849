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
