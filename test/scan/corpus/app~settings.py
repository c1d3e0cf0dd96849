 import os
+SECRET_KEY = 'django{c:44}'
 DEBUG = False
 PASSWORD_HASHERS = ['django.contrib.auth.hashers.PBKDF2PasswordHasher']
 AUTH_PASSWORD_VALIDATORS = [{'NAME': 'django.contrib.auth.password_validation.MinimumLengthValidator'}]
 DATABASES = {'default': {
     'USER': 'app',
+    'PASSWORD': '{a:6}%{a:7}',
     'HOST': 'db.corp.net',
 }}
+CELERY_BROKER_URL = 'redis://:{a:24}@redis.corp.net:6379/0'
 CACHE_KEY_PREFIX = 'app2024:v3:cache'
+GITHUB_TOKEN = "ghp_{crc}"
 API_TOKEN = os.environ['API_TOKEN']
 token = request.headers.get('X-Token', '')
 if password == confirm_password: pass
 password_reset_token_timeout_seconds = 259200
 next_page_token = "{w:44}"
 public_key = "{b:64}"
 access_token_url = "https://login.corp.net/oauth2/v2.0/token"
+client_secret: str = "{w:40}"
 commit_sha = "{x:40}"
