# A healthy destination's rate alone, and beside a dead one with a backlog.
# Alone is measured before and after, since the tables grow meanwhile.
measure_beside()
{
	destination healthy bench.healthy
	alone_1=$(deliver_rate healthy bench.healthy "$EVENTS")
	# Nothing listens on port 1. Some of its events are always in flight.
	destination dead bench.dead http://127.0.0.1:1/ok
	publish bench.dead "$EVENTS" >/dev/null
	wait_until 300 "SELECT queue_depth >= 0.99 * $EVENTS FROM mlint.stat_destinations WHERE destination = 'dead'"
	beside=$(deliver_rate healthy bench.healthy "$EVENTS")
	sql -c "SELECT mlint.destination_drop('dead')" >/dev/null
	alone_2=$(deliver_rate healthy bench.healthy "$EVENTS")
	alone=$(calc "($alone_1 + $alone_2) / 2" %.0f)
	row "a healthy destination beside a dead one with $EVENTS pending" "≥ 0.9" \
		"$alone/s" "$beside/s" "$(calc "$beside / $alone")"
}
