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
	name text COLLATE "C" NOT NULL UNIQUE,
	days integer NOT NULL CHECK (days > 0),
	level text NOT NULL REFERENCES mlint.retention_level,
	auto_delete boolean NOT NULL DEFAULT false,
	description text,
	match_tag text,
	match_metadata jsonb CHECK (pg_catalog.jsonb_typeof(match_metadata) = 'object'),
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	altered_at timestamptz
);
COMMENT ON TABLE mlint.retention_policy IS 'How long archives are kept';

CREATE TABLE mlint.hold (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	session bigint NOT NULL REFERENCES mlint.session,
	reason text NOT NULL,
	placed_by text NOT NULL,
	placed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	released_by text,
	released_at timestamptz
);
COMMENT ON TABLE mlint.hold IS 'Legal holds; while one is not released, its session and archive cannot be deleted';
