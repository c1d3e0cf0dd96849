#!/bin/sh
# Real Redis servers on loopback.
#
#   redis.sh start DIR PORT [LINE OF redis.conf]...
#   redis.sh tls DIR PORT            with a throwaway CA: DIR/ca.pem; clients
#                                    may show DIR/client.pem, DIR/client.key
#   redis.sh sentinel DIR PORT       a master on PORT, replicas on the next
#                                    two, Sentinels on the three after these,
#                                    which call the master "limits"
#   redis.sh cluster DIR PORT        three masters on PORT and the next two; the three
#                                    ports after these are their own
#   redis.sh pid DIR                 of the server on PORT
#   redis.sh stop DIR                all that was started there
#
# All they need lies in DIR, which is made. Any user can run it. REDIS_SERVER
# and REDIS_CLI name the programs (redis-server, redis-cli): valkey-server and
# valkey-cli will do as well.
set -eu

server=${REDIS_SERVER:-redis-server}
cli=${REDIS_CLI:-redis-cli}

. "$(dirname "$0")/lib.sh"

# run NAME PORT ARGUMENT...: start one server, and wait until it answers.
run()
{
	name=$1
	at=$2
	shift 2
	mkdir -p "$dir/$name"
	launch "$name" "$server" "$@" --dir "$dir/$name" --save "" \
		--appendonly no --bind 127.0.0.1
	answers "$name" alive "$at"
}

# shellcheck disable=SC2086
alive()
{
	case $("$cli" $tls -p "$1" ping 2>&1) in PONG|*NOAUTH*) ;; *) false ;; esac
}

# tells PORT PATTERN COMMAND...: does a server answer so?
tells()
{
	at=$1
	pattern=$2
	shift 2
	"$cli" -p "$at" "$@" | grep -q "$pattern"
}

# Does the last Sentinel know of the two others?
acquainted()
{
	"$cli" -p $((port + 5)) sentinel master limits |
		grep -A 1 num-other-sentinels | grep -q '^2'
}

[ $# -ge 2 ] || usage
what=$1
case $what in
start|tls|sentinel|cluster)
	[ $# -ge 3 ] || usage
	mkdir -p "$2"
	dir=$(cd "$2" && pwd)
	port=$3
	shift 3
	tls= ;;
pid)
	exec cat "$2/server.pid" ;;
stop)
	stop "$2"/*.pid
	exit 0 ;;
*) usage ;;
esac

case $what in
start)
	printf '%s\n' "$@" >"$dir/more.conf"
	run server "$port" "$dir/more.conf" --port "$port" ;;
tls)
	certificate server DNS:localhost
	certificate client DNS:localhost
	tls="--tls --cacert $dir/ca.pem --cert $dir/client.pem --key $dir/client.key -h localhost"
	run server "$port" --port 0 --tls-port "$port" \
		--tls-ca-cert-file "$dir/ca.pem" --tls-cert-file "$dir/server.pem" \
		--tls-key-file "$dir/server.key" --tls-auth-clients yes ;;
sentinel)
	run server "$port" --port "$port"
	for i in 1 2; do
		run "replica$i" $((port + i)) --port $((port + i)) \
			--replicaof 127.0.0.1 "$port" --repl-diskless-sync-delay 0
	done
	for i in 1 2; do
		answers "replica$i" tells $((port + i)) master_link_status:up \
			info replication
	done
	for i in 3 4 5; do
		cat >"$dir/sentinel$i.conf" <<-EOF
			sentinel monitor limits 127.0.0.1 $port 2
			sentinel down-after-milliseconds limits 1000
			sentinel failover-timeout limits 5000
		EOF
		mkdir -p "$dir/sentinel$i"
		launch "sentinel$i" "$server" "$dir/sentinel$i.conf" --sentinel \
			--port $((port + i)) --bind 127.0.0.1 --dir "$dir/sentinel$i"
		answers "sentinel$i" alive $((port + i))
	done
	# They have found each other.
	answers sentinel5 acquainted ;;
cluster)
	for i in 0 1 2; do
		name=server
		[ $i = 0 ] || name=server$i
		run $name $((port + i)) --port $((port + i)) --cluster-enabled yes \
			--cluster-port $((port + 3 + i)) \
			--cluster-node-timeout 2000 --cluster-require-full-coverage no
	done
	timeout 60 "$cli" --cluster create 127.0.0.1:"$port" 127.0.0.1:$((port + 1)) \
		127.0.0.1:$((port + 2)) --cluster-yes >"$dir/cluster.log" 2>&1
	for i in 0 1 2; do
		name=server
		[ $i = 0 ] || name=server$i
		answers "$name" tells $((port + i)) cluster_state:ok cluster info
	done ;;
esac
