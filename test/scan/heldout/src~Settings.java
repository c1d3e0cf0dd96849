 package net.corp.settings;
 
 public final class Settings {
     private static final String PASSWORD_PROPERTY = "net.corp.settings.database.password";
     private static final String TOKEN_HEADER = "X-Corp-Session-Token2";
+    private static final String JWT_SECRET = "{b:44}";
     private static final long serialVersionUID = 8683452581122892189L;
     // see https://user:pass@host/ for the form
+    static final String BROKER = "amqp://feed:{a:12}@mq.corp.net:5672/prod";
     static final String SALT_ALGORITHM = "PBKDF2WithHmacSHA256";
     String token = tokenProvider.currentAccessToken(userId);
+    String apiKey = "{x:40}";
     String secretName = "prod/database/primary/password7";
     static final String KEY_STORE_TYPE = "PKCS12";
     UUID tokenId = UUID.fromString("{uuid}");
+    String gh = "ghp_{crc}";
 }
