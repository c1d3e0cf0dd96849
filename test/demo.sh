#!/bin/sh
# mlint in a minute, on a machine with nothing installed:
#
#   sh test/demo.sh [--keep]
#
# Installs what is missing, builds into a private PostgreSQL, starts a server
# in a folder of its own and a local receiver, and shows what mlint promises.
# --keep leaves both running; otherwise nothing remains. PG_CONFIG chooses the
# PostgreSQL to build for.
set -eu
. "$(dirname "$0")/lib.sh"

keep=
case ${1:-} in
'') ;;
--keep) keep=yes ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

step=0
heading()
{
	step=$((step + 1))
	printf '\n\033[1m%d. %s\033[0m\n\n' "$step" "$*"
}
[ -t 1 ] || heading() { step=$((step + 1)); printf '\n%d. %s\n\n' "$step" "$*"; }

# Show statements and what they return.
show() { psql -X -q -e -P pager=off -P footer=off -v ON_ERROR_STOP=1 "$@"; }

# The receiver: test/peers/receiver.py, on one port, with one record.
receiver_port=0
receiver_start()
{
	rm -f "$work/receiver.port"
	# A process of its own: it outlives this script with --keep.
	as_user sh -c 'exec "$@" >"$0" 2>&1 </dev/null &' "$work/receiver.log" \
		python3 "$work/tree/test/peers/receiver.py" --port "$receiver_port" \
		--port-file "$work/receiver.port" --record "$work/received"
	within 30 test -s "$work/receiver.port"
	receiver_port=$(cat "$work/receiver.port")
}

receiver_pid()
{
	for pid in $(work_processes); do
		if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null |
			grep -q "^[^ ]*python3 .*receiver.py"; then echo "$pid"; fi
	done
}

receiver_stop()
{
	kill $(receiver_pid)
	while [ -n "$(receiver_pid)" ]; do sleep 0.05; done
}

# What arrived since the last look, one line for each request.
receiver_shown=0
receiver_show()
{
	say "What the receiver got:"
	python3 - "$work/received" "$receiver_shown" <<-'PYTHON'
		import json, sys
		lines = open(sys.argv[1], encoding="utf-8").readlines()[int(sys.argv[2]):]
		for line in lines:
		    request = json.loads(line)
		    body = json.loads(request["body"])
		    headers = request["headers"]
		    print(f'  {request["method"]} {request["path"]}  {body["type"]}  {json.dumps(body["data"])}')
		    for name in ("webhook-id", "webhook-signature", "x-webhook-signature"):
		        if name in headers and len(lines) == 1:
		            print(f'      {name}: {headers[name]}')
		if not lines:
		    print("  nothing")
	PYTHON
	receiver_shown=$(wc -l <"$work/received")
	say
}

need_for_build
install_missing
find_postgres || die "no PostgreSQL found"

work_begin demo
chmod 700 "$work"
say "Building mlint for $("$PG_CONFIG" --version), in $work"
copy_tree
build
server_start
as_user touch "$work/received"
receiver_start
createdb mlint_demo
PGDATABASE=mlint_demo
export PGDATABASE

heading "The extension, a secret, and a destination that is signed with it"
show <<EOSQL
CREATE EXTENSION mlint;
SELECT mlint.secret_put('webhook-key', 'whsec_' || encode(sha256('mlint demo'), 'base64')) AS version;
SELECT mlint.destination_create('hooks', 'http', '{
	"url": "http://127.0.0.1:$receiver_port/ok",
	"signing_secret": {"secret": "webhook-key"},
	"retry": {"initial_delay_ms": 500, "max_delay_ms": 1000, "max_retries": 100},
	"breaker": {"threshold": 5, "timeout_s": 1}}') AS id;
EOSQL

heading "What commits is delivered"
show <<'EOSQL'
CREATE TABLE run (id int PRIMARY KEY, accuracy real);
BEGIN;
INSERT INTO run VALUES (1, 0.93);
SELECT mlint.publish('training.completed', '{"run": 1, "accuracy": 0.93}') AS event;
COMMIT;
SELECT mlint.event_wait(1, '10 s') AS ended;
SELECT event_id, destination, state, attempts, status_code, latency FROM mlint.deliveries;
EOSQL
receiver_show

heading "What rolls back never leaves"
show <<'EOSQL'
BEGIN;
INSERT INTO run VALUES (2, 0.12);
SELECT mlint.publish('training.completed', '{"run": 2, "accuracy": 0.12}') AS never_sent;
ROLLBACK;
SELECT mlint.publish('training.completed', '{"run": 3, "accuracy": 0.95}') AS event;
SELECT mlint.event_wait(3, '10 s') AS ended;
EOSQL
receiver_show

heading "A receiver that goes down and comes back: nothing is lost"
say "(the receiver is stopped)"
say
receiver_stop
show <<'EOSQL'
SELECT count(mlint.publish('training.epoch', jsonb_build_object('epoch', n))) AS published
	FROM generate_series(1, 5) n;
EOSQL
# The first attempt has failed when there is an error to show.
for i in $(seq 100); do
	[ "$(sql -c "SELECT count(*) FROM mlint.deliveries WHERE state IN ('pending', 'in_flight') AND error IS NOT NULL")" = 0 ] || break
	sleep 0.1
done
show <<'EOSQL'
SELECT event_id, state, attempts, error FROM mlint.deliveries
	WHERE event_type = 'training.epoch' ORDER BY event_id;
EOSQL
say "(the receiver is started again)"
say
receiver_start
show <<'EOSQL'
SELECT bool_and(mlint.event_wait(event_id, '20 s')) AS all_ended FROM (
	SELECT DISTINCT event_id FROM mlint.deliveries WHERE event_type = 'training.epoch') e;
SELECT event_id, state, attempts, status_code FROM mlint.deliveries
	WHERE event_type = 'training.epoch' ORDER BY event_id;
EOSQL
receiver_show

heading "A rate limit: three at once, then one each 20 seconds, for everybody by himself"
show <<'EOSQL'
SELECT mlint.rate_rule_create('api', 'token_bucket', 3, '1 minute');
SELECT n, (d).allowed, (d).remaining, (d).retry_after, (d).reason
	FROM (SELECT n, mlint.rate_check('api', 'alice') AS d FROM generate_series(1, 4) n) s;
SELECT mlint.rate_allow('api', 'bob') AS bob, jsonb_pretty(mlint.rate_headers(mlint.rate_check('api', 'alice'))) AS alice;
SELECT rule, checks, allowed, refused, identifiers FROM mlint.stat_rate_limits;
EOSQL

heading "Mistakes are told at the call"
psql -X -q -e 2>&1 <<EOSQL || true
SELECT mlint.destination_create('typo', 'http', '{"url": "http://127.0.0.1:$receiver_port/ok", "timeout": 5000}');
\echo
SELECT mlint.destination_create('leak', 'http', '{"url": "http://127.0.0.1:$receiver_port/ok", "signing_secret": "whsec_plain"}');
EOSQL

heading "The views to watch"
show <<'EOSQL'
SELECT name, driver, events, enabled, owner FROM mlint.destinations;
\x on
SELECT * FROM mlint.stat_destinations;
\x off
SELECT kind, database, state, events, deliveries, pg_size_pretty(memory) AS memory FROM mlint.stat_workers;
EOSQL

[ -n "$keep" ] || {
	say
	say "That was it; the server is stopped and its folder removed."
	say "With --keep it stays, and this is how to connect:"
	say "  psql -h FOLDER -U postgres mlint_demo"
	exit 0
}
trap - EXIT HUP INT TERM
say
say "Left running. To connect:"
say "  $bin/psql -h $work -U postgres mlint_demo"
say "The receiver records what it gets in $work/received."
say "To stop both and remove everything:"
say "  kill $(receiver_pid); kill -INT $(head -n 1 "$work/data/postmaster.pid"); sleep 2; rm -rf $work"
