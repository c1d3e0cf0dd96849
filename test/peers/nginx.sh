#!/bin/sh
# A real nginx on loopback: http and https, answering 200 to everything.
#
#   nginx.sh start DIR HTTP_PORT HTTPS_PORT     nginx.sh stop DIR
#
# All it needs lies in DIR, which is made: nginx.pid, error.log, and a
# throwaway CA (ca.pem) with a certificate for localhost and 127.0.0.1.
# Any user can run it. WORKERS sets the number of processes (1).
set -eu

case ${1:-} in
stop)
	[ -s "$2/nginx.pid" ] || exit 0
	pid=$(cat "$2/nginx.pid")
	kill "$pid"
	while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
	exit 0 ;;
start) ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

mkdir -p "$2"
dir=$(cd "$2" && pwd)
http=$3
https=$4
nginx=$(command -v nginx || echo /usr/sbin/nginx)

if [ ! -s "$dir/cert.pem" ]; then
	new_key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
	# shellcheck disable=SC2086
	openssl req -x509 $new_key -days 30 -subj "/CN=mlint test CA" \
		-addext basicConstraints=critical,CA:TRUE \
		-keyout "$dir/ca.key" -out "$dir/ca.pem" 2>"$dir/openssl.log"
	# shellcheck disable=SC2086
	openssl req $new_key -subj "/CN=localhost" \
		-keyout "$dir/key.pem" -out "$dir/cert.csr" 2>>"$dir/openssl.log"
	echo "subjectAltName=DNS:localhost,IP:127.0.0.1" >"$dir/san"
	openssl x509 -req -in "$dir/cert.csr" -days 30 -CAcreateserial \
		-CA "$dir/ca.pem" -CAkey "$dir/ca.key" -extfile "$dir/san" \
		-out "$dir/cert.pem" 2>>"$dir/openssl.log"
fi

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
			location / { return 200 "ok\n"; }
		}
		server {
			listen 127.0.0.1:$https ssl http2;
			ssl_certificate $dir/cert.pem;
			ssl_certificate_key $dir/key.pem;
			ssl_protocols TLSv1.2 TLSv1.3;
			location / { return 200 "ok\n"; }
		}
	}
EOF
# Without the distribution's modules and configuration.
"$nginx" -p "$dir" -e "$dir/error.log" -c "$dir/nginx.conf"
