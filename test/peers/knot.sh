#!/bin/sh
# A real Knot DNS on loopback: a primary at 127.0.0.1 and a secondary at
# 127.0.0.2, both at PORT.
#
#   knot.sh start DIR PORT     knot.sh stop DIR     knot.sh refresh DIR
#   knot.sh down DIR           knot.sh up DIR       (the secondary)
#
# Zones: example.test, with both as its name servers; quick.test and
# delegated.test, with the primary alone, and locked.test, which takes no
# updates. The secondary is told of nothing: it has what it had until "refresh".
# TSIG keys, whose secrets are in DIR/KEY.key:
# mlint, mlint-sha512, mlint-sha1 (they may update) and stranger (it may not).
# In example.test there are aliases: _acme-challenge.www leads into
# delegated.test, _acme-challenge.loop to itself, by way of another; in quick.test
# _acme-challenge.alias leads to challenges.
# All it needs lies in DIR, which is made: conf, zones, knot.pid, knot.log. Any
# user can run it.
set -eu

knotd=$(command -v knotd || echo /usr/sbin/knotd)
knotc=$(command -v knotc || echo /usr/sbin/knotc)

. "$(dirname "$0")/lib.sh"

# begin SERVER
begin()
{
	launch "$1" "$knotd" -c "$dir/$1.conf"
	answers "$1" "$knotc" -s "$dir/$1.run/knot.sock" status
}

refresh()
{
	"$knotc" -b -s "$dir/secondary.run/knot.sock" zone-retransfer example.test >/dev/null
}

[ $# -ge 2 ] || usage
mkdir -p "$2"
dir=$(cd "$2" && pwd)
case $1 in
stop) stop "$dir/secondary.pid" "$dir/primary.pid"; exit 0 ;;
down) stop "$dir/secondary.pid"; exit 0 ;;
up) begin secondary; exit 0 ;;
refresh) refresh; exit 0 ;;
start) [ $# -ge 3 ] || usage ;;
*) usage ;;
esac
port=$3

# key NAME ALGORITHM
key()
{
	[ -s "$dir/$1.key" ] || openssl rand -base64 32 | tr -d '\n' >"$dir/$1.key"
	printf '  - id: %s\n    algorithm: %s\n    secret: %s\n' "$1" "$2" "$(cat "$dir/$1.key")"
}

# server NAME ADDRESS
server()
{
	mkdir -p "$dir/$1.run" "$dir/$1.db"
	cat <<-END
	server:
	    rundir: $dir/$1.run
	    listen: $2@$port
	    udp-workers: 1
	    tcp-workers: 2
	    background-workers: 1
	log:
	  - target: stderr
	    any: info
	database:
	    storage: $dir/$1.db
	    journal-db-max-size: 16M
	    timer-db-max-size: 4M
	END
}

# zone NAME RECORDS...: the serial is 1
zone()
{
	name=$1
	shift
	{
		echo "\$ORIGIN $name."
		echo "\$TTL 60"
		echo "@ SOA ns1.example.test. hostmaster.example.test. 1 86400 86400 864000 60"
		for record in "$@"; do echo "$record"; done
	} >"$dir/$name.zone"
}

zone example.test \
	"@ NS ns1" "@ NS ns2" "@ A 127.0.0.1" "* A 127.0.0.1" \
	"ns1 A 127.0.0.1" "ns2 A 127.0.0.2" \
	"_acme-challenge.www CNAME www.delegated.test." \
	"_acme-challenge.loop CNAME _acme-challenge.pool" \
	"_acme-challenge.pool CNAME _acme-challenge.loop" \
	"_acme-challenge.far CNAME far.elsewhere.invalid."
zone quick.test "@ NS ns1.example.test." "@ A 127.0.0.1" "* A 127.0.0.1" \
	"_acme-challenge.alias CNAME challenges"
zone delegated.test "@ NS ns1.example.test."
zone locked.test "@ NS ns1.example.test."

{
	server primary 127.0.0.1
	echo "key:"
	key mlint hmac-sha256
	key mlint-sha512 hmac-sha512
	key mlint-sha1 hmac-sha1
	key stranger hmac-sha256
	cat <<-END
	acl:
	  - id: update
	    key: [mlint, mlint-sha512, mlint-sha1]
	    action: update
	  - id: transfer
	    address: 127.0.0.0/8
	    action: transfer
	template:
	  - id: default
	    storage: $dir
	    zonefile-sync: -1
	    acl: [update, transfer]
	zone:
	  - domain: example.test
	    file: example.test.zone
	  - domain: quick.test
	    file: quick.test.zone
	  - domain: delegated.test
	    file: delegated.test.zone
	  - domain: locked.test
	    file: locked.test.zone
	    acl: transfer
	END
} >"$dir/primary.conf"
{
	server secondary 127.0.0.2
	cat <<-END
	remote:
	  - id: primary
	    address: 127.0.0.1@$port
	zone:
	  - domain: example.test
	    master: primary
	    zonefile-sync: -1
	    refresh-min-interval: 1d
	END
} >"$dir/secondary.conf"

begin primary
begin secondary
refresh
