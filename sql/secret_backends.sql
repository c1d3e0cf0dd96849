-- Secret backends: kinds and options, create, alter, drop, what is refused and how, the read-only kinds, and who may do what.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
CREATE ROLE regress_backend_admin IN ROLE mlint_admin;
CREATE ROLE regress_backend_files IN ROLE mlint_admin, pg_read_server_files, pg_read_all_settings;
CREATE ROLE regress_backend_user IN ROLE mlint_user;
CREATE ROLE regress_backend_reader IN ROLE mlint_reader;

-- the kinds, and what each takes
SELECT DISTINCT kind FROM mlint.secret_backend_kinds ORDER BY 1;
SELECT option, type, "default", bounds, required FROM mlint.secret_backend_kinds
	WHERE kind = 'file';
SELECT count(*) FROM mlint.secret_backend_kinds WHERE help IS NULL OR help = '';

-- an administrator who is no superuser
SET ROLE regress_backend_admin;
SELECT mlint.secret_put('regress/token', 'not-a-token');
SELECT mlint.secret_backend_create('regress-vault', 'vault',
	'{"url": "http://192.0.2.1:8200", "token": {"secret": "regress/token"}, "mount": null}');
SELECT name, kind, options, breaker, breaker_until, cached, hits, misses, stale, last_error
	FROM mlint.secret_backends;
SELECT mlint.secret_backend_create('regress-vault', 'vault',
	'{"url": "http://192.0.2.1:8200", "token": {"secret": "regress/token"}}');
SELECT mlint.secret_backend_alter('regress-vault', '{"mount": "kv", "cache_ttl_s": 60}');
SELECT options FROM mlint.secret_backends;
SELECT mlint.secret_backend_alter('regress-vault', '{"cache_ttl_s": null}');
SELECT options FROM mlint.secret_backends;

-- names
SELECT mlint.secret_backend_create('local', 'vault', '{}');
SELECT mlint.secret_backend_alter('local', '{}');
SELECT mlint.secret_backend_drop('local');
SELECT mlint.secret_backend_test('local');
SELECT mlint.secret_backend_create('', 'vault', '{}');
SELECT mlint.secret_backend_create('a:b', 'vault', '{}');
SELECT mlint.secret_backend_create(repeat('x', 64), 'vault', '{}');
SELECT mlint.secret_backend_create(NULL, 'vault', '{}');
SELECT mlint.secret_backend_alter('regress-none', '{}');
SELECT mlint.secret_backend_drop('regress-none');
SELECT mlint.secret_backend_test('regress-none');
SELECT mlint.secret_cache_drop('regress-none');
SELECT * FROM mlint.secret_list('regress-none');
SELECT mlint.secret_get('x', backend => 'regress-none');

-- options
SELECT mlint.secret_backend_create('regress-bad', 'keychain', '{}');
SELECT mlint.secret_backend_create('regress-bad', 'vault', '{"adress": "http://x"}');
SELECT mlint.secret_backend_create('regress-bad', 'vault', '[]');
SELECT mlint.secret_backend_create('regress-bad', 'vault', NULL);
SELECT mlint.secret_backend_create('regress-bad', 'vault', '{"url": "ftp://x"}');
SELECT mlint.secret_backend_create('regress-bad', 'vault', '{"url": "http://x", "token": "s.plaintoken"}');
SELECT mlint.secret_backend_create('regress-bad', 'vault', '{"url": "http://x", "token": {"secret": "regress/none"}}');
SELECT mlint.secret_backend_create('regress-bad', 'vault', '{"url": "http://x", "timeout_ms": 0, "token": {"secret": "regress/token"}}');
SELECT mlint.secret_backend_create('regress-bad', 'file', '{}');
SELECT mlint.secret_backend_create('regress-bad', 'file', '{"directory": "relative"}');
SELECT mlint.secret_backend_alter('regress-vault', '{"token": null}');
SELECT mlint.secret_backend_alter('regress-vault', '[]');
SELECT mlint.secret_backend_alter('regress-vault', NULL);
SELECT options FROM mlint.secret_backends;

-- what is the server's own is not every administrator's
SELECT mlint.secret_backend_create('regress-env', 'env');
SELECT mlint.secret_backend_create('regress-file', 'file', '{"directory": "/tmp"}');
SELECT mlint.secret_backend_alter('regress-vault', '{"token": {"env": "PATH"}}');
SELECT mlint.secret_backend_create('regress-aws', 'aws', '{"region": "eu-central-1"}');
SELECT mlint.secret_backend_create('regress-azure', 'azure', '{"vault_url": "https://x.vault.azure.net"}');
RESET ROLE;

-- env: what the environment has; read only
SET ROLE regress_backend_files;
SELECT mlint.secret_backend_create('regress-env', 'env');
SELECT mlint.secret_get('path', backend => 'regress-env') LIKE '%/%' AS found;
SELECT mlint.secret_get('path', 'current', 'regress-env') IS NOT NULL AS found;
SELECT mlint.secret_get('path', 'other', 'regress-env');
SELECT mlint.secret_get('regress/no-such-variable', backend => 'regress-env');
SELECT name FROM mlint.secret_list('regress-env') WHERE name IN ('path', 'PATH');
SELECT version, state FROM mlint.secret_versions('path', 'regress-env');
SELECT mlint.secret_put('path', 'x', backend => 'regress-env');
SELECT mlint.secret_drop('path', 'regress-env');
SELECT mlint.secret_backend_create('regress-exact', 'env', '{"names": "exact", "prefix": "PA"}');
SELECT mlint.secret_get('TH', backend => 'regress-exact') IS NOT NULL AS found;
SELECT mlint.secret_get('th', backend => 'regress-exact');
SELECT mlint.secret_backend_test('regress-env') ~ '^\d+ variables' AS tested;

-- file: below the directory, nowhere else; read only
SELECT mlint.secret_backend_create('regress-file', 'file',
	jsonb_build_object('directory', current_setting('data_directory')));
SELECT mlint.secret_get('PG_VERSION', backend => 'regress-file')
	= current_setting('server_version_num')::int / 10000 || '' AS read;
SELECT mlint.secret_backend_alter('regress-file', '{"trim": false}');
SELECT mlint.secret_get('PG_VERSION', backend => 'regress-file')
	= current_setting('server_version_num')::int / 10000 || E'\n' AS read;
SELECT mlint.secret_get('../x', backend => 'regress-file');
SELECT mlint.secret_get('base/../PG_VERSION', backend => 'regress-file');
SELECT mlint.secret_get('no-such-file', backend => 'regress-file');
SELECT mlint.secret_get('base', backend => 'regress-file');
SELECT mlint.secret_put('PG_VERSION', 'x', backend => 'regress-file');
SELECT name FROM mlint.secret_list('regress-file', 'PG_V');
SELECT mlint.secret_backend_create('regress-gone', 'file', '{"directory": "/nonexistent"}');
SELECT mlint.secret_get('x', backend => 'regress-gone');
SELECT mlint.secret_backend_test('regress-gone');

-- the local store has a list too
SELECT * FROM mlint.secret_list('local', 'regress/t');

-- a reference must name a backend that there is
SELECT mlint.secret_backend_create('regress-second', 'vault',
	'{"url": "http://192.0.2.1", "token": {"secret": "regress-none:token"}}');
RESET ROLE;

-- a change that is rolled back has not happened
BEGIN;
SELECT mlint.secret_backend_drop('regress-file');
ROLLBACK;
SELECT count(*) FROM mlint.secret_backends WHERE name = 'regress-file';

-- who may
SET ROLE regress_backend_user;
SELECT mlint.secret_backend_create('regress-mine', 'env');
SELECT mlint.secret_backend_alter('regress-env', '{}');
SELECT mlint.secret_backend_drop('regress-env');
SELECT mlint.secret_backend_test('regress-env');
SELECT mlint.secret_cache_drop();
SELECT mlint.secret_list('regress-env');
SELECT mlint.secret_refresh();
SELECT mlint.secret_get('path', backend => 'regress-env');
SELECT * FROM mlint.secret_backend;
RESET ROLE;
SELECT mlint.secret_grant('regress-env:path', 'regress_backend_user', 'read');
SET ROLE regress_backend_user;
SELECT mlint.secret_get('path', backend => 'regress-env') IS NOT NULL AS found;
SELECT mlint.secret_get('home', backend => 'regress-env');
RESET ROLE;
SET ROLE regress_backend_reader;
SELECT name, kind FROM mlint.secret_backends ORDER BY name;
SELECT mlint.secret_list('regress-env');
RESET ROLE;

SELECT mlint.secret_revoke('regress-env:path', 'regress_backend_user', 'read');
SELECT mlint.secret_backend_drop(name) FROM mlint.secret_backends ORDER BY name;
SELECT mlint.secret_drop('regress/token');
DROP ROLE regress_backend_admin, regress_backend_files, regress_backend_user, regress_backend_reader;
