-- Object stores: rows, options, what is refused. The moving is in TAP tests.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
\set VERBOSITY terse
SELECT mlint.secret_put('stores/key', 'sesame');

SELECT kind, option, type, "default", required FROM mlint.archive_store_kinds ORDER BY 1, 2;

-- What is wrong is said.
SELECT mlint.archive_store_create('x', 'ftp');
SELECT mlint.archive_store_create('a b', 's3');
SELECT mlint.archive_store_create('database', 's3');
SELECT mlint.archive_store_create(NULL, 's3');
SELECT mlint.archive_store_create('x', 's3', NULL);
SELECT mlint.archive_store_create('x', 's3', '[]');
SELECT mlint.archive_store_create('x', 's3', '{}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "access_key_id": "k", "secret_access_key": "plain"}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "access_key_id": "k", "secret_access_key": {"secret": "none"}}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b/c", "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "region": "EU 1", "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "endpoint": "ftp://x", "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "endpoint": "http://x/?y", "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "access_key_id": "k\n", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "prefix": "../", "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "prefix": "/p", "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "sse_kms_key_id": "q", "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "timeout": 1, "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('x', 's3', '{"bucket": "b", "timeout_ms": 1, "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('x', 'file');
SELECT mlint.archive_store_alter('none');
SELECT mlint.archive_store_drop('none');
SELECT mlint.archive_store_test('none');
SELECT count(*) FROM mlint.archive_stores;

-- One at a time gets new archives.
SELECT mlint.archive_store_create('one', 's3', '{"bucket": "b", "endpoint": "http://127.0.0.1:9", "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}, "ca": null}');
SELECT mlint.archive_store_create('one', 's3', '{"bucket": "b", "endpoint": "http://127.0.0.1:9", "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT mlint.archive_store_create('two', 's3', '{"bucket": "b", "prefix": "two/", "endpoint": "http://127.0.0.1:9", "access_key_id": "k", "secret_access_key": {"secret": "stores/key"}}');
SELECT name, kind, active, options, breaker, archives, waiting, failing, garbage, altered_at IS NULL AS unaltered FROM mlint.archive_stores ORDER BY name;
SELECT mlint.archive_store_alter('one', '{"prefix": "one/", "region": null}', true);
SELECT mlint.archive_store_alter('one', '[]');
SELECT mlint.archive_store_alter('one', '{"bucket": null}');
SELECT name, active, options, altered_at IS NULL AS unaltered FROM mlint.archive_stores ORDER BY name;
SELECT mlint.archive_store_alter('one', active => false);
SELECT name, active FROM mlint.archive_stores ORDER BY name;

-- In use.
INSERT INTO mlint.archive_garbage (store, archive)
	SELECT id, '00000000-0000-0000-0000-000000000001' FROM mlint.archive_store WHERE name = 'two';
SELECT mlint.archive_store_drop('two');
DELETE FROM mlint.archive_garbage;
SELECT mlint.archive_store_drop('two');
SELECT mlint.archive_store_drop('one');

-- Who may.
CREATE ROLE regress_stores_user IN ROLE mlint_user;
CREATE ROLE regress_stores_reader IN ROLE mlint_reader;
SET ROLE regress_stores_user;
SELECT mlint.archive_store_create('x', 'file');
SELECT mlint.archive_store_drop('x');
SELECT count(*) FROM mlint.archive_stores;
SELECT mlint.archive_move_one(1, '00000000-0000-0000-0000-000000000001');
CALL mlint.archive_move_all();
SET ROLE regress_stores_reader;
SELECT count(*) FROM mlint.archive_stores;
SELECT destroyed FROM mlint.erasure_key;
SELECT mlint.archive_store_test('x');
RESET ROLE;
DROP ROLE regress_stores_user, regress_stores_reader;
SET default_transaction_read_only = on;
SELECT mlint.archive_store_create('x', 'file');
SELECT mlint.archive_store_alter('two', active => true);
SELECT mlint.archive_store_drop('two');
RESET default_transaction_read_only;
SELECT mlint.secret_drop('stores/key');
