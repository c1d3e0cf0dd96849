# Deliveries a second, durable, one dispatcher, beside the plain loop.
measure_deliver()
{
	# The limit first, on a machine with nothing else to do.
	limit=$(limit_rate)
	destination all 'bench.*'
	rate=$(deliver_rate all bench.run "$EVENTS")
	row "deliveries a second, durable, $EVENTS events, one dispatcher" "≥ 0.4" \
		"$limit" "$rate" "$(calc "$rate / $limit")"
}
