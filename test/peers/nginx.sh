#!/bin/sh
# A real nginx on loopback: http and https, answering 200 to everything.
#
#   nginx.sh start DIR HTTP_PORT HTTPS_PORT     nginx.sh stop DIR
#
# All it needs lies in DIR, which is made: nginx.pid, error.log, and a
# throwaway CA (ca.pem) with a certificate for localhost and 127.0.0.1.
# Any user can run it. WORKERS sets the number of processes (1). With WEBROOT,
# challenges of ACME (http-01) are answered from that folder.
set -eu

. "$(dirname "$0")/lib.sh"

case ${1:-} in
stop)
	[ -s "$2/nginx.pid" ] || exit 0
	# Only so do its workers end, too.
	pid=$(cat "$2/nginx.pid")
	kill "$pid"
	timeout 30 tail --pid="$pid" -s 0.05 -f /dev/null || kill -KILL "$pid"
	exit 0 ;;
start) ;;
*) usage ;;
esac

mkdir -p "$2"
dir=$(cd "$2" && pwd)
http=$3
https=$4
nginx=$(command -v nginx || echo /usr/sbin/nginx)

certificate server DNS:localhost,IP:127.0.0.1

challenges=
[ -z "${WEBROOT:-}" ] || challenges="location /.well-known/acme-challenge/ {
	root $WEBROOT;
	default_type application/octet-stream;
	open_file_cache max=1000;
}"
# Started by root, nginx would change to a user who cannot read DIR.
user=
[ "$(id -u)" != 0 ] || user="user $(id -un 0);"
cat >"$dir/nginx.conf" <<-EOF
	$user
	worker_processes ${WORKERS:-1};
	pid $dir/nginx.pid;
	error_log $dir/error.log;
	events { worker_connections 4096; }
	http {
		access_log off;
		keepalive_requests 1000000000;
		keepalive_timeout 1h;
		client_max_body_size 16m;
		client_body_buffer_size 128k;
		client_body_temp_path $dir/body;
		proxy_temp_path $dir/proxy;
		fastcgi_temp_path $dir/fastcgi;
		uwsgi_temp_path $dir/uwsgi;
		scgi_temp_path $dir/scgi;
		default_type text/plain;
		server {
			listen 127.0.0.1:$http backlog=4096;
			$challenges
			location / { return 200 "ok\n"; }
		}
		server {
			listen 127.0.0.1:$https ssl http2;
			ssl_certificate $dir/server.pem;
			ssl_certificate_key $dir/server.key;
			ssl_protocols TLSv1.2 TLSv1.3;
			location / { return 200 "ok\n"; }
		}
	}
EOF
# Without the distribution's modules and configuration.
"$nginx" -p "$dir" -e "$dir/error.log" -c "$dir/nginx.conf"
