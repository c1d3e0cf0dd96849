 CREATE FUNCTION call_api() RETURNS void LANGUAGE plpgsql AS $$
 DECLARE
+	api_key text := '{a:40}';
 	token_count int := 0;
 BEGIN
+	PERFORM http_post('https://hooks.slack.com/services/T{U:8}/B{U:10}/{a:24}', 'x');
+	PERFORM dblink('host=db2 user=etl password={l:9}', 'SELECT 1');
+	EXECUTE 'ALTER ROLE etl PASSWORD ''{a:12}''';
 	EXECUTE format('ALTER ROLE etl PASSWORD %L', new_password);
 	UPDATE account SET password = crypt($1, gen_salt('bf', 8));
 END $$;
+ALTER DATABASE app SET app.jwt_secret TO '{w:43}';
 SELECT md5('secret'), '{x:32}'::text AS token_hash;
