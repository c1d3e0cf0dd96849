# The gateway's answer to an http-01 challenge under wrk, beside nginx that
# serves the same bytes from a webroot (with its cache of open files); and the
# gateway again while slowloris.py holds 500 connections open. The three take
# turns, so that the machine's moods are everybody's; a figure is the median of
# its rounds, a ratio the median of the rounds' ratios.
GATEWAY_ROUNDS=${GATEWAY_ROUNDS:-7}
GATEWAY_SECONDS=${GATEWAY_SECONDS:-2}

# wrk_rate PORT: requests a second; fails unless every answer was a 200.
wrk_rate()
{
	wrk -t 1 -c 64 -d "${GATEWAY_SECONDS}s" \
		"http://127.0.0.1:$1/.well-known/acme-challenge/$challenge_token" >"$work/wrk"
	! grep -E "Non-2xx|Socket errors" "$work/wrk" >&2 || die "wrk: not all were answered"
	awk '/^Requests\/sec/ { printf "%d\n", $2 }' "$work/wrk"
}

# gateway_row LIMIT MLINT MEASURE TO-REACH
gateway_row()
{
	ratio=$(paste "$work/gateway.$1" "$work/gateway.$2" |
		awk '{ printf "%.4f\n", $2 / $1 }' | median)
	row "$3" "$4" "$(median <"$work/gateway.$1")/s" "$(median <"$work/gateway.$2")/s" \
		"$(calc "$ratio")"
}

measure_gateway()
{
	challenge_token=evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA
	challenge_value=$challenge_token.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI
	printf %s "$challenge_value" >"$work/tmp/webroot/.well-known/acme-challenge/$challenge_token"
	cc -shared -fPIC -O2 -I"$work/tree/src" -I"$("$PG_CONFIG" --includedir-server)" \
		-o "$work/bin/challenge_probe.so" "$work/tree/test/t/challenge_probe.c"
	gateway_port=$(python3 -c 'import socket
print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
	sql >/dev/null <<-EOSQL
		CREATE FUNCTION challenge_show(text, text, timestamptz) RETURNS void
			LANGUAGE c AS '$work/bin/challenge_probe.so';
		SELECT challenge_show('$challenge_token', '$challenge_value', now() + '1 day');
		ALTER SYSTEM SET mlint.gateway_listen = '$gateway_port';
		SELECT pg_reload_conf();
	EOSQL
	wait_until 20 "SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'listening at 127.0.0.1:$gateway_port'"
	for p in $http_port $gateway_port; do
		[ "$(curl -sf "http://127.0.0.1:$p/.well-known/acme-challenge/$challenge_token")" = "$challenge_value" ] ||
			die "port $p does not serve the challenge"
	done

	: >"$work/gateway.nginx"
	: >"$work/gateway.mlint"
	: >"$work/gateway.slow"
	mkfifo "$work/slowloris"
	for i in $(seq "$GATEWAY_ROUNDS"); do
		wrk_rate "$http_port" >>"$work/gateway.nginx"
		wrk_rate "$gateway_port" >>"$work/gateway.mlint"
		python3 "$work/tree/test/peers/slowloris.py" "$gateway_port" 500 --reopen \
			<"$work/slowloris" >"$work/slowloris.out" &
		slowloris=$!
		exec 3>"$work/slowloris"
		wait_until 20 "SELECT in_flight >= 500 FROM mlint.stat_workers WHERE kind = 'gateway'"
		wrk_rate "$gateway_port" >>"$work/gateway.slow"
		exec 3>&-
		wait "$slowloris"
		grep -q '"open": 500' "$work/slowloris.out" || die "slowloris did not hold its connections"
		wait_until 20 "SELECT in_flight = 0 FROM mlint.stat_workers WHERE kind = 'gateway'"
	done
	gateway_row nginx mlint \
		"gateway: http-01 challenge under wrk, 64 connections, beside nginx" "≥ 0.3"
	gateway_row mlint slow \
		"the same with a slowloris of 500 connections, beside without" "≥ 0.8"
	sql -c "ALTER SYSTEM RESET mlint.gateway_listen" -c "SELECT pg_reload_conf()" >/dev/null
}
