# Many events through while a snapshot is held open: does the last tenth go as
# fast as the first?
measure_snapshot()
{
	destination all 'bench.*'
	psql -X -q -c "BEGIN ISOLATION LEVEL REPEATABLE READ" \
		-c "SELECT count(*) FROM mlint.destinations" \
		-c "SELECT pg_sleep(86400)" >"$work/snapshot" 2>&1 &
	wait_until 60 "SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(86400)'"
	tenth=$((BACKLOG / 10))
	for i in 1 2 3 4 5 6 7 8 9 10; do
		rate=$(deliver_rate all bench.run $tenth)
		say "  tenth $i: $rate/s"
		[ $i != 1 ] || first=$rate
	done
	sql -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(86400)'" >/dev/null
	row "$BACKLOG events through, a snapshot held open: last tenth beside first" \
		"≥ 0.8" "$first/s" "$rate/s" "$(calc "$rate / $first")"
}
