#!/bin/sh
# mlint's benchmarks, each beside its limit, both measured in this one run:
#
#   sh test/bench/run.sh [MEASURE...]
#
# The measures are the other files here: deliver publish commit latency secrets
# ratelimit ratelimit_redis snapshot memory beside destinations usage archive
# archival scan gateway acme idle.
# Without a name all run, one after the other; the table at the end is
# markdown. Everything is durable (fsync on), everything else is PostgreSQL's
# default but for what server_start is given below.
#
# EVENTS (100000), BACKLOG (1000000), CONNECTIONS (64), ROUNDS (200),
# PGBENCH_SECONDS (10), RATE_ROUNDS (9), RATE_SECONDS (2), RATE_ROWS (1000000),
# RATE_FLOOD (10000000), REDIS_ROUNDS (11), REDIS_SECONDS (2), SCAN_MB (64),
# GATEWAY_ROUNDS (7), GATEWAY_SECONDS (2), ACME_ROUNDS (15),
# ACME_CERTIFICATES (100),
# IDLE_SECONDS (180), ARCHIVE_SESSIONS (1000), ARCHIVE_ROUNDS (5), ARCHIVAL_SESSIONS (1000000), ARCHIVAL_DUE (100000) and
# ARCHIVAL_SECONDS (10) size the run.
# PG_CONFIG chooses the PostgreSQL, TMPDIR the disk.
set -eu
. "$(dirname "$0")/../lib.sh"

EVENTS=${EVENTS:-100000}
BACKLOG=${BACKLOG:-1000000}
CONNECTIONS=${CONNECTIONS:-64}
ROUNDS=${ROUNDS:-200}
PGBENCH_SECONDS=${PGBENCH_SECONDS:-10}
IDLE_SECONDS=${IDLE_SECONDS:-180}
all="deliver publish commit latency beside destinations secrets ratelimit ratelimit_redis snapshot memory usage archive archival scan gateway acme idle"

#
# What the measures have in common.
#

# row MEASURE TO-REACH LIMIT MLINT RATIO
row()
{
	printf '| %s | %s | %s | %s | %s |\n' "$@" >>"$work/table"
	say "  $1: limit $3, mlint $4, ratio $5 (to reach: $2)"
}

# calc EXPRESSION [FORMAT]
calc() { awk "BEGIN { printf \"${2:-%.2f}\", ($1) }"; }

# median: of the numbers on standard input.
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# The plain loop's requests a second: the best of three runs, once for all
# that needs it.
limit_rate()
{
	[ -s "$work/limit" ] ||
		for i in 1 2 3; do
			"$work/bin/limit" "http://127.0.0.1:$http_port/ok" "$EVENTS" \
				"$CONNECTIONS"
		done | sort -t "$(printf '\t')" -k 2,2nr | sed '/^best/d' >"$work/limit"
	awk 'NR == 1 { print $2 }' "$work/limit"
}

# destination NAME PATTERN [URL]: like the limit's requests, signed both ways.
destination()
{
	sql >/dev/null <<-EOSQL
		SELECT mlint.destination_create('$1', 'http', jsonb_build_object(
			'url', '${3:-http://127.0.0.1:$http_port/ok}',
			'signing_secret', jsonb_build_object('secret', 'bench'),
			'max_in_flight', $CONNECTIONS), events => '{$2}');
	EOSQL
}

drop_destinations()
{
	sql -c "SELECT count(mlint.destination_drop(name)) FROM mlint.destinations" >/dev/null
}

# The data of the n-th event: a body of some 280 bytes, as limit.c's.
data="jsonb_build_object('run', n, 'model', 'resnet-50', 'epoch', 12,
	'accuracy', 0.9312, 'dataset', 'imagenet-1k',
	'commit', '0f343b0931126a20f133d67c2b018a3b')"

# publish TYPE N: in one statement; prints when it had committed.
publish()
{
	sql <<-EOSQL | tail -n 1
		SELECT count(mlint.publish('$1', $data)) FROM generate_series(1, $2) n;
		SELECT clock_timestamp();
	EOSQL
}

delivered()
{
	sql -c "SELECT delivered FROM mlint.stat_destinations WHERE destination = '$1'"
}

# deliver_rate DESTINATION TYPE N: publish N events, wait for the last, and
# print how many arrived a second, from the commit to the last. Fails unless
# exactly N were delivered and none died.
deliver_rate()
{
	last=$(sql -c "SELECT coalesce(max(event_id), 0) FROM mlint.delivery")
	before=$(delivered "$1")
	committed=$(publish "$2" "$3")
	wait_until 900 "SELECT delivered >= $before + $3 FROM mlint.stat_destinations WHERE destination = '$1'"
	# Outcomes are recorded in batches, a moment after they are counted.
	wait_until 60 "SELECT count(*) >= $3 FROM mlint.deliveries WHERE event_id > $last AND destination = '$1' AND state IN ('delivered', 'dead')"
	rate=$(sql <<-EOSQL
		SELECT CASE WHEN count(*) = $3 AND bool_and(state = 'delivered')
			THEN round($3 / extract(epoch FROM max(finished_at) - '$committed'))::text
			ELSE format('lost or dead: %s of $3', $3 - count(*) FILTER (WHERE state = 'delivered')) END
		FROM mlint.deliveries WHERE event_id > $last AND destination = '$1';
	EOSQL
	)
	case $rate in
	*lost*) die "$1: $rate" ;;
	*) say "$rate" ;;
	esac
}

# Pids of mlint's processes whose backend_type is like this.
worker_pids()
{
	sql -c "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '$1%' ORDER BY pid"
}

compile()
{
	program=$1
	shift
	cc -O2 -Wall -Wextra -Werror -o "$work/bin/$program" \
		"$work/tree/test/bench/$program.c" "$@" || die "$program does not build"
}

#
# The run.
#

for m in "$@"; do
	[ -f "$(dirname "$0")/$m.sh" ] && [ "$m" != run ] ||
		die "no such measure: $m; there are: $all"
done

need_for_build
need nginx-light test -x /usr/sbin/nginx
need openssl command -v openssl
need zstd command -v zstd
need libhiredis-dev have_header hiredis/hiredis.h
need redis-server command -v redis-server
need wrk command -v wrk
need pebble command -v pebble
need uacme command -v uacme
install_missing
find_postgres || die "no PostgreSQL found"
libpq_include=$("$PG_CONFIG" --includedir)

work_begin bench
say "Building"
copy_tree
build
mkdir "$work/bin"
compile limit -lcurl -lcrypto
compile latency -I"$libpq_include" -lcurl -lpq -lpthread

server_start "shared_buffers = '1GB'" "max_wal_size = '8GB'"
createdb bench
PGDATABASE=bench
PGOPTIONS="-c client_min_messages=error"
export PGDATABASE PGOPTIONS
sql >/dev/null <<EOSQL
CREATE EXTENSION mlint;
SELECT mlint.secret_put('bench', 'whsec_' || encode(sha256('bench'), 'base64'));
EOSQL

free_ports() { python3 -c 'import socket
s = [socket.create_server(("127.0.0.1", 0)) for i in range(3)]
print(*[x.getsockname()[1] for x in s])'; }
ports=$(free_ports)
http_port=${ports%% *}
latency_port=${ports##* }
https_port=${ports#* }
https_port=${https_port% *}
as_user mkdir -p "$work/tmp/webroot/.well-known/acme-challenge"
as_user env WEBROOT="$work/tmp/webroot" sh "$work/tree/test/peers/nginx.sh" start \
	"$work/nginx" "$http_port" "$https_port"

# shellcheck disable=SC2086
[ $# != 0 ] || set -- $all
for m in "$@"; do
	say "$m"
	. "$top/test/bench/$m.sh"
	sql -c CHECKPOINT
	"measure_$m"
	drop_destinations
done

say
say "$(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)), $("$PG_CONFIG" --version), $CONNECTIONS connections."
[ ! -s "$work/limit" ] || awk 'NR == 1 { printf "The plain loop, by %s: %s requests a second, p50 %s µs, p99 %s µs.\n", $1, $2, $3, $4 }' "$work/limit"
say
say "| measure | to reach | limit | mlint | ratio |"
say "| --- | --- | --- | --- | --- |"
cat "$work/table"
