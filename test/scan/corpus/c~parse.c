 /* The password of the role; see PQconninfoParse. */
 {"password", "PGPASSWORD", NULL, NULL, "Database-Password", "*", 20},
 static const char *token_names[] = {"TOKEN_EOF", "TOKEN_STRING2", "TOKEN_NUM"};
 if (strcmp(token, "password") == 0 && secret->len == 32)
 	token->next = secret_key_lookup(cache, key, SECRET_KEY_BYTES);
 #define SECRET_KEY_ALGORITHM "AES-256-GCM-HMAC-SHA2"
 const char *sha256 = "{x:64}";
 uint8 test_vector_key[] = {0x{x:2}, 0x{x:2}, 0x{x:2}};
 conninfo = psprintf("host=%s user=%s password=%s", host, user, password);
 connectionTokenProviderFactory = "org.corp.auth.TokenProviderFactory2"
 private_key_path = "/etc/ssl/private/server2.key"
+secret = "{x:32}"
+PASSWORD = "{a:4}-{a:4}_{a:4}!"
