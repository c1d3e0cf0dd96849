-- Scanning: findings, places, users' rules and their limits, what lies in the
-- catalogs under names of every kind, who may.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE ROLE regress_scan_admin IN ROLE mlint_admin;
CREATE ROLE regress_scan_user IN ROLE mlint_user;
CREATE ROLE regress_scan_reader IN ROLE mlint_reader;
-- Credentials are made here, so that none stands in this file.
CREATE FUNCTION made(prefix text, n int) RETURNS text LANGUAGE sql IMMUTABLE AS
	$$ SELECT prefix || substr(translate(encode(sha512(prefix::bytea), 'base64'), E'+/=\n', 'xyz'), 1, n) $$;

-- what a finding looks like
SET ROLE regress_scan_user;
SELECT rule, line, "column", excerpt, entropy > 3 AS entropy, severity
	FROM mlint.secret_scan(E'# ключ\nключ = "' || public.made('sk_live_', 24) || E'"\n\n-- ' || public.made('glpat-', 20));
SELECT count(*) FROM mlint.secret_scan('nothing here');
SELECT count(*) FROM mlint.secret_scan('');
SELECT count(*) FROM mlint.secret_scan(NULL);
SELECT count(*) FROM mlint.secret_scan(NULL, 'x');

-- the special rule wins where rules agree on a text
SELECT rule FROM mlint.secret_scan('secret_token = "' || public.made('sk_live_', 24) || '"');
SELECT rule FROM mlint.secret_scan('postgres://' || public.made('glpat-', 20) || ':x-oauth-basic@host/');

-- a checksum that does not hold
SELECT rule, severity FROM mlint.secret_scan(public.made('ghp_', 36));

-- in parallel and in plans
SELECT provolatile, proparallel FROM pg_proc WHERE oid = 'mlint.secret_scan(text, text)'::regprocedure;
RESET ROLE;

-- rules
SET ROLE regress_scan_admin;
SELECT count(*) >= 40 AS many, bool_and(built_in AND enabled AND description <> '' AND cardinality(keywords) > 0) AS whole
	FROM mlint.secret_rules;
SELECT name, severity, keywords, pattern FROM mlint.secret_rules WHERE name = 'stripe-live-key';
SELECT mlint.secret_rule_create('corp-badge', 'badge-(\d{6,8})\M', '{badge-}', 'critical', 'Badge of our doors');
SELECT * FROM mlint.secret_rules WHERE NOT built_in;
SELECT rule, line, "column", excerpt, severity FROM mlint.secret_scan(E'x\n é badge-1234567 BADGE-1 badge-765432');
SELECT mlint.secret_rule_create('corp-badge', 'x+', '{xxx}');
SELECT mlint.secret_rule_create('stripe-live-key', 'x+', '{xxx}');
SELECT mlint.secret_rule_create('Bad Name', 'x+', '{xxx}');
SELECT mlint.secret_rule_create('bad', '(x', '{xxx}');
SELECT mlint.secret_rule_create('bad', 'x*', '{xxx}');
SELECT mlint.secret_rule_create('bad', '', '{xxx}');
SELECT mlint.secret_rule_create('bad', repeat('x', 1001), '{xxx}');
SELECT mlint.secret_rule_create('bad', 'x+', '{}');
SELECT mlint.secret_rule_create('bad', 'x+', '{xx}');
SELECT mlint.secret_rule_create('bad', 'x+', '{NULL}');
SELECT mlint.secret_rule_create('bad', 'x+', '{schlüssel}');
SELECT mlint.secret_rule_create('bad', 'x+', '{{xxx},{yyy}}');
SELECT mlint.secret_rule_create('bad', 'x+', '{xxx}', 'fatal');
SELECT mlint.secret_rule_create('bad', 'x+', '{xxx}', min_entropy => 9);
SELECT mlint.secret_rule_create('bad', 'x+', '{xxx}', min_entropy => 'NaN');
SELECT mlint.secret_rule_create(NULL, 'x+', '{xxx}');
SELECT mlint.secret_rule_create('bad', NULL, '{xxx}');
SELECT mlint.secret_rule_create('bad', 'x+', NULL);

-- a minimum of entropy; a user's and a built-in rule on one text
SELECT mlint.secret_rule_create('corp-key', 'corpkey[0-9a-f]{16}', '{corpkey}', min_entropy => 3);
SELECT count(*) FROM mlint.secret_scan('corpkey0000000000000000 corpkey' || substr(md5('x'), 1, 16));
SELECT mlint.secret_rule_create('corp-stripe', 'sk_live_\w+', '{sk_live_}');
SELECT rule FROM mlint.secret_scan(public.made('sk_live_', 24)) ORDER BY 1;

-- switched off and on, built in or not; in the transaction
SELECT mlint.secret_rule_enable('stripe-live-key', false);
SELECT mlint.secret_rule_enable('corp-stripe', false);
SELECT rule FROM mlint.secret_scan(public.made('sk_live_', 24));
SELECT name, built_in FROM mlint.secret_rules WHERE NOT enabled ORDER BY 1;
BEGIN;
SELECT mlint.secret_rule_enable('stripe-live-key', true);
SELECT rule FROM mlint.secret_scan(public.made('sk_live_', 24));
SAVEPOINT s;
SELECT mlint.secret_rule_enable('corp-stripe');
SELECT rule FROM mlint.secret_scan(public.made('sk_live_', 24)) ORDER BY 1;
ROLLBACK TO s;
SELECT rule FROM mlint.secret_scan(public.made('sk_live_', 24)) ORDER BY 1;
ROLLBACK;
SELECT rule FROM mlint.secret_scan(public.made('sk_live_', 24));
SELECT mlint.secret_rule_enable('stripe-live-key');
SELECT mlint.secret_rule_enable('nothing');
SELECT mlint.secret_rule_enable('corp-key', NULL);
SELECT mlint.secret_rule_drop('stripe-live-key');
SELECT mlint.secret_rule_drop('nothing');
SELECT mlint.secret_rule_drop('corp-stripe');
SELECT mlint.secret_rule_drop('corp-badge');
SELECT count(*) FROM mlint.secret_scan('badge-1234567');

-- no more rules than the limit
SELECT count(mlint.secret_rule_create('r-' || n, 'x+', '{xxx}')) FROM generate_series(1, 199) n;
SELECT mlint.secret_rule_create('one-more', 'x+', '{xxx}');
SELECT count(mlint.secret_rule_drop('r-' || n)) FROM generate_series(1, 199) n;
SELECT mlint.secret_rule_drop('corp-key');
RESET ROLE;

-- the catalogs, with names that are no names
CREATE SCHEMA "sch""; DROP TABLE x; --";
SET search_path = "sch""; DROP TABLE x; --", public;
SELECT public.made('sk_live_', 24) AS key, public.made('hunter', 9) AS pw \gset
SELECT format($f$
CREATE FUNCTION "f'; --"() RETURNS text LANGUAGE sql AS 'SELECT ''%1$s''';
CREATE FUNCTION g(a text DEFAULT '%1$s') RETURNS text LANGUAGE sql RETURN '%1$s';
CREATE PROCEDURE p() LANGUAGE plpgsql SET app.key = '%1$s' AS 'BEGIN END';
CREATE TABLE "t""" (a text DEFAULT '%1$s', b text CHECK (b <> '%1$s'), c text GENERATED ALWAYS AS (b || '%1$s') STORED);
CREATE VIEW "v %% $1" AS SELECT '%1$s'::text AS a;
CREATE MATERIALIZED VIEW m AS SELECT '%1$s'::text AS a WITH NO DATA;
CREATE RULE r AS ON INSERT TO "t""" DO ALSO NOTIFY "%1$s";
CREATE INDEX i ON "t""" ((b || '%1$s'));
CREATE DOMAIN d AS text DEFAULT '%1$s' CHECK (VALUE <> '%1$s');
CREATE POLICY y ON "t""" USING (a = '%1$s');
CREATE FUNCTION tf() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER tg AFTER INSERT ON "t""" FOR EACH ROW EXECUTE FUNCTION tf('%1$s');
COMMENT ON TABLE "t""" IS 'key %1$s';
COMMENT ON COLUMN "t""".a IS 'key %1$s';
COMMENT ON ROLE regress_scan_user IS 'key %1$s';
CREATE FOREIGN DATA WRAPPER w OPTIONS (api_token '%2$s');
CREATE SERVER "s;" FOREIGN DATA WRAPPER w OPTIONS (password '%2$s', host 'db');
CREATE USER MAPPING FOR regress_scan_user SERVER "s;" OPTIONS ("user" 'app', password '%2$s');
CREATE FOREIGN TABLE ft (a text OPTIONS (secret '%2$s')) SERVER "s;" OPTIONS (token '%2$s', password_required 'false');
ALTER ROLE regress_scan_user SET app.jwt_secret = '%2$s';
SET client_min_messages = error;
CREATE SUBSCRIPTION sub CONNECTION 'host=db user=r password=%2$s' PUBLICATION p WITH (connect = false);
RESET client_min_messages;
$f$, :'key', :'pw') AS definitions \gset
:definitions
SET ROLE regress_scan_admin;
SELECT object_type, object, rule, line, excerpt FROM mlint.secret_scan_database()
	WHERE object_type <> 'server setting' ORDER BY object_type COLLATE "C", object COLLATE "C", line, "column";
RESET ROLE;
SET client_min_messages = error;
ALTER SUBSCRIPTION sub SET (slot_name = NONE);
DROP SUBSCRIPTION sub;
DROP SCHEMA "sch""; DROP TABLE x; --" CASCADE;
DROP FOREIGN DATA WRAPPER w CASCADE;
RESET client_min_messages;
RESET search_path;
COMMENT ON ROLE regress_scan_user IS NULL;

-- who may
SET ROLE regress_scan_user;
SELECT count(*) > 40 AS seen FROM mlint.secret_rules;
SELECT mlint.secret_scan_database();
SELECT mlint.secret_rule_create('mine', 'x+', '{xxx}');
SELECT mlint.secret_rule_drop('mine');
SELECT mlint.secret_rule_enable('jwt', false);
SELECT * FROM mlint.secret_rule;
RESET ROLE;
SET ROLE regress_scan_reader;
SELECT count(*) > 40 AS seen FROM mlint.secret_rules;
SELECT mlint.secret_scan('x');
RESET ROLE;
ALTER ROLE regress_scan_user RESET ALL;
DROP FUNCTION made;
DROP ROLE regress_scan_admin, regress_scan_user, regress_scan_reader;
