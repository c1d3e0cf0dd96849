# One event on an idle system, from commit to arrival, beside a NOTIFY and a
# bare request; see latency.c.
measure_latency()
{
	destination here bench.latency "http://127.0.0.1:$latency_port/ok"
	"$work/bin/latency" "$latency_port" "$ROUNDS" \
		"SELECT mlint.publish('bench.latency', '{\"run\": 1}')" >"$work/latency"
	event=$(awk '$1 == "event" { print $2 }' "$work/latency")
	limit=$(awk '$1 != "event" { sum += $2 } END { print sum }' "$work/latency")
	row "one event on an idle system, commit to arrival, p50" "≤ 3" \
		"$limit µs" "$event µs" "$(calc "$event / $limit")"
}
