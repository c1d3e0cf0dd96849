 #!/bin/bash
 set -euo pipefail
+export AWS_ACCESS_KEY_ID=AKIA{u:16}
+export AWS_SECRET_ACCESS_KEY={b:40}
 export AWS_DEFAULT_REGION=eu-central-1
+curl -s -H "Authorization: Bearer {a:43}" https://api.corp.net/v1/jobs
+curl -u deploy:x -H "X-Api-Key: {a:32}" https://api.corp.net/v1/jobs
 curl -H "Authorization: Bearer $(vault read -field=token secret/ci)" https://api.corp.net
 echo "${TOKEN:?token is required}"
+mysql --user=root --password={a:16} app
 git checkout {x:40}
+PGPASSWORD='{c:16}' psql -h db.corp.net -U app
 docker pull alpine@sha256:{x:64}
 openssl dgst -sha256 -verify public.pem -signature sig.bin data  # key id {X:16}
+echo '//registry.npmjs.org/:_authToken=npm_{crc}' >>~/.npmrc
+git clone https://oauth2:glpat-{w:20}@gitlab.com/corp/app.git
