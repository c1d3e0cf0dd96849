-- ratelimit: rules, overrides, decisions.

CREATE TABLE mlint.rate_backend (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL UNIQUE CHECK (name <> 'local'),
	kind text NOT NULL,
	options jsonb NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	altered_at timestamptz
);
COMMENT ON TABLE mlint.rate_backend IS 'Stores that rate limits of several servers share';

CREATE TABLE mlint.rate_rule (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL CONSTRAINT rate_rule_name UNIQUE,
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
	backend text REFERENCES mlint.rate_backend (name),
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
	identifier text NOT NULL,
	digest bytea NOT NULL, -- SHA-256: the identifier may not fit an index
	action text NOT NULL CHECK (action IN ('allow', 'deny', 'limit')),
	rate bigint CHECK (rate > 0),
	burst bigint CHECK (burst > 0),
	expires_at timestamptz,
	reason text,
	set_by oid NOT NULL,
	set_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	PRIMARY KEY (rule_id, digest),
	CHECK ((action = 'limit') = (rate IS NOT NULL)),
	CHECK (burst IS NULL OR rate IS NOT NULL)
);
COMMENT ON TABLE mlint.rate_override IS 'Identifiers for which a rule does not hold as it is written';

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
	'Take from a limit by the strategy of its rule: raises ML013, returns the refusal, waits up to max_wait (null: the rule''s), slows down, or lets through';

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

-- ---- HTTP ----

CREATE FUNCTION mlint.rate_headers(decision mlint.rate_decision) RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE
RETURN NULL::jsonb;
COMMENT ON FUNCTION mlint.rate_headers(mlint.rate_decision) IS
	'The headers of an HTTP response that tell a client of its limit: RateLimit-*, X-RateLimit-*, and Retry-After for a refusal';

-- ---- what others see ----

CREATE VIEW mlint.rate_rules AS
SELECT r.name, r.algorithm, r.rate, r.per, r.burst, r.strategy, r.scope,
	r.setting, r.ipv4_prefix, r.ipv6_prefix, r.max_wait, r.pre_request,
	coalesce(r.backend, 'local') AS backend, r.mode, r.fail, r.lease,
	r.description, r.created_at, r.altered_at
FROM mlint.rate_rule r;
