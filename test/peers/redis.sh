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

usage() { sed -n '2,18s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# run NAME PORT ARGUMENT...: start one server, and wait until it answers.
run()
{
	run=$1
	at=$2
	shift 2
	mkdir -p "$dir/$run"
	"$server" "$@" --dir "$dir/$run" --save "" --appendonly no \
		--bind 127.0.0.1 >"$dir/$run/log" 2>&1 </dev/null &
	echo $! >"$dir/$run/pid"
	alive "$run" "$at"
}

alive()
{
	for i in $(seq 200); do
		# shellcheck disable=SC2086
		case $("$cli" $tls -p "$2" ping 2>&1) in PONG|*NOAUTH*) return 0 ;; esac
		kill -0 "$(cat "$dir/$1/pid")" 2>/dev/null || break
		sleep 0.05
	done
	tail -n 20 "$dir/$1/log" >&2
	return 1
}

certificates()
{
	new_key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
	# shellcheck disable=SC2086
	openssl req -x509 $new_key -days 30 -subj "/CN=mlint test CA" \
		-addext basicConstraints=critical,CA:TRUE \
		-keyout "$dir/ca.key" -out "$dir/ca.pem" 2>"$dir/openssl.log"
	for who in server client; do
		# shellcheck disable=SC2086
		openssl req $new_key -subj "/CN=$who" -keyout "$dir/$who.key" \
			-out "$dir/$who.csr" 2>>"$dir/openssl.log"
		echo "subjectAltName=DNS:localhost" >"$dir/san"
		openssl x509 -req -in "$dir/$who.csr" -days 30 -CAcreateserial \
			-CA "$dir/ca.pem" -CAkey "$dir/ca.key" -extfile "$dir/san" \
			-out "$dir/$who.pem" 2>>"$dir/openssl.log"
	done
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
	exec cat "$2/server/pid" ;;
stop)
	for f in "$2"/*/pid; do
		[ -s "$f" ] || continue
		pid=$(cat "$f")
		rm -f "$f"
		# It may be stopped (SIGSTOP); nothing of it is worth keeping.
		kill -KILL "$pid" 2>/dev/null || continue
		while kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
	done
	exit 0 ;;
*) usage ;;
esac

case $what in
start)
	printf '%s\n' "$@" >"$dir/more.conf"
	run server "$port" "$dir/more.conf" --port "$port" ;;
tls)
	[ -s "$dir/ca.pem" ] || certificates
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
		for n in $(seq 200); do
			"$cli" -p $((port + i)) info replication |
				grep -q master_link_status:up && break
			sleep 0.05
		done
	done
	for i in 3 4 5; do
		cat >"$dir/sentinel$i.conf" <<-EOF
			sentinel monitor limits 127.0.0.1 $port 2
			sentinel down-after-milliseconds limits 1000
			sentinel failover-timeout limits 5000
		EOF
		mkdir -p "$dir/sentinel$i"
		"$server" "$dir/sentinel$i.conf" --sentinel --port $((port + i)) \
			--bind 127.0.0.1 --dir "$dir/sentinel$i" \
			>"$dir/sentinel$i/log" 2>&1 </dev/null &
		echo $! >"$dir/sentinel$i/pid"
		alive "sentinel$i" $((port + i))
	done
	# They have found each other.
	for n in $(seq 400); do
		"$cli" -p $((port + 5)) sentinel master limits |
			grep -A 1 num-other-sentinels | grep -q '^2' && exit 0
		sleep 0.05
	done
	echo "the Sentinels do not find each other" >&2
	exit 1 ;;
cluster)
	for i in 0 1 2; do
		name=server
		[ $i = 0 ] || name=server$i
		run $name $((port + i)) --port $((port + i)) --cluster-enabled yes \
			--cluster-port $((port + 3 + i)) \
			--cluster-node-timeout 2000 --cluster-require-full-coverage no
	done
	"$cli" --cluster create 127.0.0.1:"$port" 127.0.0.1:$((port + 1)) \
		127.0.0.1:$((port + 2)) --cluster-yes >"$dir/cluster.log" 2>&1
	for i in 0 1 2; do
		for n in $(seq 200); do
			"$cli" -p $((port + i)) cluster info | grep -q cluster_state:ok && break
			sleep 0.05
		done
	done ;;
esac
