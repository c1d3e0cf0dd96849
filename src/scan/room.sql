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
