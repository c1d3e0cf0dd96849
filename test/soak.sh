#!/bin/sh
# What a worker holds after many deliveries is what it held after few:
#
#   sh test/soak.sh [DELIVERIES]      1,000,000
#
# Events go to many destinations of every driver, over HTTP and TLS, to
# receivers that answer, refuse, reset, fail at first or for good, that go away
# and come back; audit entries, requests to the gateway and runs of jobs go
# along. After a thousand deliveries, after a tenth and after all, when nothing
# is under way, each process of mlint is asked what it has: bytes in memory
# contexts, its own pages, descriptors (but for those of tables, which
# PostgreSQL keeps open up to a limit). It fails when a process is another one
# than before, or has grown: in descriptors by more than the one or two
# connections that may be open by chance, by more than 512 KiB in contexts, and by
# more than 4 MiB in pages between a tenth and all. (Between a thousand and a tenth
# it comes to have what four full batches need, once.)
#
# PG_CONFIG chooses the PostgreSQL, TMPDIR the disk.
set -eu
. "$(dirname "$0")/lib.sh"

total=${1:-1000000}
[ "$total" -ge 20000 ] || die "fewer than 20000 say nothing"

need_for_build
need nginx-light test -x /usr/sbin/nginx
need openssl command -v openssl
need wrk command -v wrk
install_missing
find_postgres || die "no PostgreSQL found"

work_begin soak
say "Building"
copy_tree
build

ports=$(python3 -c 'import socket
s = [socket.create_server(("127.0.0.1", 0)) for i in range(4)]
print(*[x.getsockname()[1] for x in s])')
# shellcheck disable=SC2086
set -- $ports
http_port=$1 https_port=$2 gateway_port=$3 closed_port=$4

peer() { as_user sh "$work/tree/test/peers/nginx.sh" "$1" "$work/nginx" "$http_port" "$https_port"; }
peer start
as_user python3 "$work/tree/test/peers/receiver.py" --record /dev/null \
	--port-file "$work/tmp/receiver" 2>/dev/null &
within 30 test -s "$work/tmp/receiver"
receiver=http://127.0.0.1:$(cat "$work/tmp/receiver")

server_start "shared_buffers = '512MB'" "max_wal_size = '4GB'" \
	"synchronous_commit = off" "mlint.gateway_listen = '$gateway_port'" \
	"mlint.audit_durability = memory"
PGDATABASE=postgres
PGOPTIONS="-c client_min_messages=error"
export PGDATABASE PGOPTIONS

# Of the first thousand events each destination gets as many, so that it has had
# all the connections that it may have; then one in twenty goes elsewhere than
# to /ok.
sql -v ca="$(cat "$work/nginx/ca.pem")" -v ok="http://127.0.0.1:$http_port/ok" \
	-v tls="https://localhost:$https_port/ok" -v receiver="$receiver" \
	-v closed="http://127.0.0.1:$closed_port/" >/dev/null <<'EOSQL'
CREATE EXTENSION mlint;
SELECT mlint.secret_put('soak', 'whsec_' || encode(sha256('soak'), 'base64'));
SELECT mlint.secret_put('hook', :'ok');
CREATE TABLE taken (n bigint NOT NULL);
INSERT INTO taken VALUES (0);
CREATE FUNCTION take(event jsonb) RETURNS void LANGUAGE sql AS 'UPDATE public.taken SET n = n + 1';
CREATE FUNCTION refuse(event jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
CREATE FUNCTION shorten(event jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT jsonb_build_object('n', event->'data'->'n')$$;
CREATE FUNCTION destination(kind text, options jsonb, driver text DEFAULT 'http') RETURNS void LANGUAGE sql AS $$
	SELECT mlint.destination_create(kind, driver, options, ARRAY['soak.' || kind]);
$$;
CREATE FUNCTION fails(options jsonb, retries int) RETURNS jsonb LANGUAGE sql AS $$
	SELECT options || jsonb_build_object('breaker', '{"threshold": 0}'::jsonb,
		'retry', jsonb_build_object('initial_delay_ms', 20, 'max_retries', retries));
$$;
SELECT destination('ok', fails(jsonb_build_object('url', :'ok', 'signing_secret', '{"secret": "soak"}'::jsonb, 'max_in_flight', 64), 100));
SELECT destination('tls', fails(jsonb_build_object('url', :'tls', 'tls', jsonb_build_object('ca', :'ca')), 100));
SELECT destination('flaky', fails(jsonb_build_object('url', :'receiver' || '/flaky?fail=1'), 5));
SELECT destination('reset', fails(jsonb_build_object('url', :'receiver' || '/reset'), 1));
SELECT destination('garbage', fails(jsonb_build_object('url', :'receiver' || '/garbage'), 1));
SELECT destination('dead', fails(jsonb_build_object('url', :'receiver' || '/status/503'), 2));
SELECT destination('gone', fails(jsonb_build_object('url', :'receiver' || '/status/400'), 2));
SELECT destination('huge', fails(jsonb_build_object('url', :'receiver' || '/size/200000'), 2));
SELECT destination('stall', fails(jsonb_build_object('url', :'receiver' || '/stall', 'timeout_ms', 500), 0));
SELECT destination('closed', fails(jsonb_build_object('url', :'closed'), 1));
SELECT destination('ordered', fails(jsonb_build_object('url', :'ok', 'ordered', true), 100));
SELECT destination('short', fails(jsonb_build_object('url', :'ok', 'transform', 'public.shorten'), 100));
SELECT destination('function', '{"fn": "public.take"}', 'function');
SELECT destination('raises', fails('{"fn": "public.refuse"}', 1), 'function');
SELECT destination('notify', '{"channel": "soak"}', 'notify');
SELECT destination('slack', fails('{"url": {"secret": "hook"}}', 100), 'slack');
SELECT destination('discord', fails('{"url": {"secret": "hook"}}', 100), 'discord');
CREATE FUNCTION kind(n int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN n <= 1000 OR n % 20 = 0 THEN (ARRAY['ok', 'tls', 'flaky',
		'reset', 'garbage', 'dead', 'gone', 'huge', 'closed', 'ordered', 'short',
		'function', 'raises', 'notify', 'slack', 'discord'])
		[(CASE WHEN n <= 1000 THEN n ELSE n / 20 END) % 16 + 1]
		WHEN n % 100003 = 1001 THEN 'stall' ELSE 'ok' END;
$$;
EOSQL

sent=0
# deliver N: so many events, each to its end; and what goes along.
deliver()
{
	sql >/dev/null <<-EOSQL
		SELECT count(mlint.publish('soak.' || kind(n), jsonb_build_object('n', n,
			'model', 'resnet-50', 'accuracy', 0.9312,
			'text', repeat('x', n % 400))))
		FROM generate_series($sent + 1, $sent + $1) n;
		SELECT count(mlint.audit_note('soak.note', 'soak', 'n ' || n, NULL, 'done'))
		FROM generate_series(1, $1 / 100) n;
		SELECT count(mlint.job_run_now(name)) FROM mlint.jobs WHERE enabled;
	EOSQL
	wrk -t 1 -c 8 -d 1s "http://127.0.0.1:$gateway_port/health" >>"$work/wrk"
	sent=$((sent + $1))
	all_is_done
	# Connections are closed under the workers, and opened again.
	peer stop
	peer start
}

# Close all idle connections, as a change of the network policy does, and open
# few: how many were needed at once the last time says nothing.
rest()
{
	denied=$((${denied:-0} + 1))
	sql -c "ALTER SYSTEM SET mlint.http_deny = '192.0.2.$denied'" -c "SELECT pg_reload_conf()" >/dev/null
	wait_until 10 "SELECT current_setting('mlint.http_deny') = '192.0.2.$denied'"
	sql -c "SELECT mlint.publish('soak.' || kind(n), to_jsonb(n)) FROM generate_series(1, 16) n" >/dev/null
	sent=$((sent + 16))
	all_is_done
}

all_is_done()
{
	wait_until 1800 "SELECT sum(delivered + dead) >= $sent FROM mlint.stat_destinations"
	wait_until 60 "SELECT sum(in_flight) = 0 FROM mlint.stat_workers WHERE kind IN ('dispatcher', 'job')"
	wait_until 60 "SELECT count(*) = 0 FROM mlint.stat_workers WHERE kind = 'job'"
}

# What each process has, one a line: name pid contexts pages descriptors.
held()
{
	rest
	sql -F ' ' -c "SELECT kind || coalesce('-' || lane, ''), pid, memory / 1024
		FROM mlint.stat_workers WHERE kind <> 'job' ORDER BY 1" |
		while read -r name pid contexts; do
			pages=$(sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status")
			fds=$(ls -l "/proc/$pid/fd" | grep -c -- "->" || true)
			files=$(ls -l "/proc/$pid/fd" | grep -c -- "-> $work/data/" || true)
			echo "$name $pid $contexts $pages $((fds - files))"
		done
}

say "Delivering"
wait_until 60 "SELECT count(*) >= 5 FROM mlint.stat_workers"
deliver 1000
held >"$work/few"
while [ $sent -lt $((total / 10)) ]; do deliver 9000; done
held >"$work/tenth"
while [ $sent -lt "$total" ]; do
	deliver $((total - sent < 50000 ? total - sent : 50000))
done
held >"$work/all"

sql -c "SELECT sum(delivered) || ' delivered, ' || sum(dead) || ' dead, ' || sum(failed)
	|| ' attempts failed, ' || sum(retried) || ' retried' FROM mlint.stat_destinations"
awk '/requests in/ { n += $1 } END { print n " requests to the gateway" }' "$work/wrk"
say
say "| process | contexts, KiB: after 1,000, a tenth, all | own pages, KiB | descriptors |"
say "| --- | --- | --- | --- |"
paste -d ' ' "$work/few" "$work/tenth" "$work/all" | awk '
	{
		printf "| %s | %d, %d, %d | %d, %d, %d | %d, %d, %d |\n", $1,
			$3, $8, $13, $4, $9, $14, $5, $10, $15
		if ($1 != $6 || $1 != $11 || $2 != $7 || $2 != $12)
			wrong = wrong "\n" $1 " was not the same process all the time"
		if ($15 > $5 + 4) wrong = wrong "\n" $1 " has more descriptors"
		if ($13 > $8 + 512) wrong = wrong "\n" $1 " has more in its contexts"
		if ($14 > $9 + 4096) wrong = wrong "\n" $1 " has more pages"
	}
	END {
		if (NR < 5) wrong = wrong "\nonly " NR " processes were there"
		if (wrong) { print wrong; exit 1 }
	}'
