#!/bin/sh
# Pebble, an ACME server, on loopback, and pebble-challtestsrv, which is the DNS
# server that it asks.
#
#   pebble.sh start DIR PORT [HTTP_PORT] [eab]     pebble.sh stop DIR
#
# The directory is https://localhost:PORT/dir; PORT + 1 has Pebble's management,
# PORT + 2 the DNS server, PORT + 3 the management of that one (POST /add-a,
# /set-txt, ...). http-01 is looked for on HTTP_PORT (PORT + 4) of 127.0.0.1,
# whatever the name. With "eab" an account needs a binding: the key named in
# DIR/eab, "kid hmac". DNS_SERVER names another DNS server than challtestsrv.
#
# DIR, which is made, has ca.pem, by which Pebble's HTTPS is trusted, and
# root.pem, that of what Pebble issues, which is new at every start; pebble.log
# and pids. Pebble runs with its defaults, nonces that it rejects and
# authorizations that it reuses included, but does not sleep before it
# validates (PEBBLE_VA_NOSLEEP=1); other variables of PEBBLE_... are passed on.
# VALIDITY sets the seconds that certificates are valid. Any user can run it.
set -eu

. "$(dirname "$0")/lib.sh"

# Fetch a URL into DIR/FILE, once there is an answer.
fetch()
{
	answers pebble curl -sf --max-time 10 --noproxy '*' --cacert "$dir/ca.pem" -o "$dir/$2" "$1"
}

[ $# -ge 2 ] || usage
case $1 in
stop)
	stop "$2/pebble.pid" "$2/dns.pid"
	exit 0 ;;
start) [ $# -ge 3 ] || usage ;;
*) usage ;;
esac

mkdir -p "$2"
dir=$(cd "$2" && pwd)
port=$3
http=$((port + 4))
eab=false
keys=
shift 3
for word in "$@"; do
	case $word in
	eab) eab=true ;;
	*) http=$word ;;
	esac
done
certificate server DNS:localhost,IP:127.0.0.1
if $eab; then
	[ -s "$dir/eab" ] ||
		echo "kid-1 $(openssl rand -base64 48 | tr '+/' '-_' | tr -d '=\n')" >"$dir/eab"
	read -r kid hmac <"$dir/eab"
	keys="\"externalAccountMACKeys\": {\"$kid\": \"$hmac\"},"
fi
cat >"$dir/pebble.json" <<END
{"pebble": {
	"listenAddress": "127.0.0.1:$port",
	"managementListenAddress": "127.0.0.1:$((port + 1))",
	"certificate": "$dir/server.pem",
	"privateKey": "$dir/server.key",
	"httpPort": $http,
	"tlsPort": $((port + 5)),
	"ocspResponderURL": "",
	${VALIDITY:+\"certificateValidityPeriod\": $VALIDITY,}
	$keys
	"externalAccountBindingRequired": $eab
}}
END

# By a name of its own, by which it can be told whose it is.
ln -sf "$(command -v pebble-challtestsrv)" "$dir/challtestsrv"
# Newer ones serve DNS over HTTPS, too, and have another word for this.
dns=-dns01
case $("$dir/challtestsrv" -h 2>&1) in *-dnsserver*) dns='-doh= -dnsserver' ;; esac
# shellcheck disable=SC2086
launch dns "$dir/challtestsrv" -defaultIPv4 127.0.0.1 -defaultIPv6 "" -http01 "" \
	-https01 "" -tlsalpn01 "" $dns "127.0.0.1:$((port + 2))" \
	-management "127.0.0.1:$((port + 3))"
answers dns curl -s --max-time 10 --noproxy '*' "http://127.0.0.1:$((port + 3))/"
export PEBBLE_VA_NOSLEEP="${PEBBLE_VA_NOSLEEP:-1}"
launch pebble pebble -config "$dir/pebble.json" \
	-dnsserver "${DNS_SERVER:-127.0.0.1:$((port + 2))}"
fetch "https://localhost:$((port + 1))/roots/0" root.pem
fetch "https://localhost:$port/dir" directory.json
