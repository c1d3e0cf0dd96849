 resource "aws_db_instance" "main" {
   username = "app"
+  password = "{a:5}!{a:6}#{a:4}"
   kms_key_id = "arn:aws:kms:eu-central-1:{d:12}:key/{uuid}"
   ami = "ami-{x:17}"
 }
 provider "digitalocean" {
+  token = "dop_v1_{x:64}"
 }
 data "vault_generic_secret" "x" { path = "secret/data/prod/app-2024" }
+variable "datadog_api_key" { default = "{x:32}" }
 variable "db_password" { sensitive = true }
+provider "cloudflare" { api_token = "{w:40}" }
 # terraform state lock {uuid}
+azure = "DefaultEndpointsProtocol=https;AccountName=corp;AccountKey={b:86}==;EndpointSuffix=core.windows.net"
+client_secret = "{a:3}8Q~{a:34}"
