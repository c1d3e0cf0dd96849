# The rate with one destination, and with 10,000 of which one matches.
measure_destinations()
{
	destination one bench.run
	alone=$(deliver_rate one bench.run "$EVENTS")
	sql >/dev/null <<-EOSQL
		SELECT count(mlint.destination_create('other' || n, 'http',
			jsonb_build_object('url', 'http://127.0.0.1:$http_port/other/' || n),
			events => ARRAY['other' || n || '.*']))
		FROM generate_series(1, 9999) n;
	EOSQL
	among=$(deliver_rate one bench.run "$EVENTS")
	row "10,000 destinations registered, one matching" "≥ 0.8" \
		"$alone/s" "$among/s" "$(calc "$among / $alone")"
}
