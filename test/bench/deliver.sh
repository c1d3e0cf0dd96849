# Deliveries a second, durable, one dispatcher, beside the plain loop.
measure_deliver()
{
	destination all 'bench.*'
	rate=$(deliver_rate all bench.run "$EVENTS")
	limit=$(limit_rate)
	row "deliveries a second, durable, $EVENTS events, one dispatcher" "≥ 0.4" \
		"$limit" "$rate" "$(calc "$rate / $limit")"
}
