-- Mounts: what cannot be mounted, and secrets as dotenv text.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS mlint CASCADE;
CREATE EXTENSION mlint;
RESET client_min_messages;
CREATE ROLE regress_mounts_user IN ROLE mlint_user;
CREATE ROLE regress_mounts_reader IN ROLE mlint_reader;
SELECT mlint.secret_put('env/plain', 'abc-DEF_123./:=@%+,');
SELECT mlint.secret_put('env/quoted', 'two words # $HOME "x" \n `id`');
SELECT mlint.secret_put('env/both', 'it''s "5$" \ `id`');
SELECT mlint.secret_put('env/lines', E'one\ntwo\n');
SELECT mlint.secret_put('9lives', 'cat');
SELECT mlint.secret_put('env-plain', 'x');
SELECT mlint.secret_put_bytes('env/binary', '\x00ff');

-- ---- mlint.secret_env() ----
SELECT mlint.secret_env('{env/plain,env/quoted,env/both,env/lines,9lives}');
SELECT mlint.secret_env('{}') = '' AS empty;
SELECT mlint.secret_env('{env/plain,env/plain}');
SELECT mlint.secret_env('{env/plain,env-plain}');
SELECT mlint.secret_env('{env/binary}');
SELECT mlint.secret_env('{env/plain,env/nothing}');
SELECT mlint.secret_env('{env/plain,NULL}');
SET ROLE regress_mounts_user;
SELECT mlint.secret_env('{env/plain}');
RESET ROLE;
SELECT mlint.secret_grant('env/plain', 'regress_mounts_user', 'read');
SET ROLE regress_mounts_user;
SELECT mlint.secret_env('{env/plain}');
SELECT mlint.secret_env('{env/plain,env/quoted}');
SELECT mlint.secret_mount_create('env/plain', 'plain');
RESET ROLE;
SET ROLE regress_mounts_reader;
SELECT mlint.secret_env('{env/plain}');
SELECT count(*) FROM mlint.secret_mounts;
RESET ROLE;

-- ---- mlint.secret_mount_create() ----
SELECT mlint.secret_mount_create('env/nothing', 'plain');
SELECT mlint.secret_mount_create('env/plain', '/etc/passwd');
SELECT mlint.secret_mount_create('env/plain', '../up');
SELECT mlint.secret_mount_create('env/plain', 'a/../../up');
SELECT mlint.secret_mount_create('env/plain', './x');
SELECT mlint.secret_mount_create('env/plain', 'a//b');
SELECT mlint.secret_mount_create('env/plain', 'a/');
SELECT mlint.secret_mount_create('env/plain', '');
SELECT mlint.secret_mount_create('env/plain', E'a\nb');
SELECT mlint.secret_mount_create('env/plain', repeat('n', 201));
SELECT mlint.secret_mount_create('env/plain', 'x', '0777');
SELECT mlint.secret_mount_create('env/plain', 'x', '0620');
SELECT mlint.secret_mount_create('env/plain', 'x', '0040');
SELECT mlint.secret_mount_create('env/plain', 'x', '4400');
SELECT mlint.secret_mount_create('env/plain', 'x', 'rw');
SELECT mlint.secret_mount_create('env/plain', 'x', '0400', 'yaml');
SELECT mlint.secret_mount_create('env/*', 'x');
SELECT mlint.secret_mount_create('env/plain', 'x', '0400', 'raw', '{env/quoted}');
SELECT mlint.secret_mount_create('env/plain', 'x', '0400', 'json', '{NULL}');
-- Nothing is set here.
SELECT mlint.secret_mount_create('env/plain', 'x');
SELECT mlint.secret_mount_drop('x');
BEGIN;
CALL mlint.secret_mount_run();
ROLLBACK;


SELECT mlint.secret_drop(name) FROM unnest('{env/quoted,env/both,env/lines,9lives,env-plain,env/binary,env/plain}'::text[]) name;
DROP ROLE regress_mounts_user, regress_mounts_reader;
