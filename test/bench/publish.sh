# Publishing many events in one statement, beside a bare INSERT of the same
# rows into a table like a partition of the log. In turns, medians of five.
measure_publish()
{
	like_event
	for i in 1 2 3 4 5; do
		timed "INSERT INTO bench.event SELECT $like_row
			FROM generate_series(1, $EVENTS) n" >>"$work/publish.limit"
		timed "SELECT count(mlint.publish('bench.idle', $data))
			FROM generate_series(1, $EVENTS) n" >>"$work/publish.mlint"
	done
	limit=$(median <"$work/publish.limit")
	mlint=$(median <"$work/publish.mlint")
	row "publish, $EVENTS in one statement" "≥ 0.5" \
		"$(calc "$EVENTS * 1000 / $limit" %.0f)/s" \
		"$(calc "$EVENTS * 1000 / $mlint" %.0f)/s" "$(calc "$limit / $mlint")"
}

# A table of the log's shape with the log's indexes, and the row that
# publish() would put there.
like_event()
{
	partition=$(sql -c "SELECT inhrelid::regclass FROM pg_inherits
		WHERE inhparent = 'mlint.event'::regclass LIMIT 1")
	sql >/dev/null <<-EOSQL
		SET client_min_messages = warning;
		DROP SCHEMA IF EXISTS bench CASCADE;
		CREATE SCHEMA bench;
		CREATE TABLE bench.event (LIKE $partition INCLUDING ALL);
		CREATE SEQUENCE bench.event_id;
	EOSQL
	like_row="nextval('bench.event_id'), 1, pg_current_xact_id(),
		clock_timestamp(), NULL, NULL, 'bench.idle', NULL, $data, '{}'"
}

# timed SQL: milliseconds.
timed()
{
	psql -X -q -A -t -v ON_ERROR_STOP=1 -c '\timing on' -c "$1" |
		sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p' | tail -n 1
}
