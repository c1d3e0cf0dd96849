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
