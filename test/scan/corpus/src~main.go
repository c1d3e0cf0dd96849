 package main
 
 // token is the next token of the input; password is never kept.
 type token struct { kind tokenKind; val string }
 const tokenPrefix = "tok_"
+const apiKey = "{a:32}"
 var secretKeyRef = corev1.SecretKeySelector{Key: "database-password-2"}
 func (p *parser) parseSecret(token string) error { return p.token(token) }
+var dsn = "postgres://svc:{a:16}@10.0.0.5:5432/app"
+req.Header.Set("Authorization", "Bearer {a:40}")
 req.Header.Set("Authorization", "Bearer "+token)
+cfg.SetPassword("{c:15}")
 etag := "{x:32}"
 fmt.Printf("password: %s\n", password)
+os.Setenv("SIGNING_KEY", "{x:64}")
 tokenURL := "https://accounts.google.com/o/oauth2/token"
