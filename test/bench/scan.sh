# Scanning source text for credentials: PostgreSQL's headers and our own tree,
# repeated to SCAN_MB; beside one simple regular expression of PostgreSQL's on
# the same text. In turns, medians of five.
measure_scan()
{
	find "$("$PG_CONFIG" --includedir-server)" "$work/tree/src" "$work/tree/test" \
		"$work/tree/docs" -type f ! -name '*.o' | sort | xargs cat |
		iconv -c -f UTF-8 -t UTF-8 >"$work/scan.once"
	: >"$work/scan.txt"
	while [ "$(wc -c <"$work/scan.txt")" -lt $((${SCAN_MB:-64} * 1000000)) ]; do
		cat "$work/scan.once" >>"$work/scan.txt"
	done
	[ -z "$user" ] || chown "$user" "$work/scan.txt"
	sql >/dev/null <<-EOSQL
		SET client_min_messages = warning;
		DROP SCHEMA IF EXISTS bench CASCADE;
		CREATE SCHEMA bench;
		CREATE TABLE bench.source (content text);
		ALTER TABLE bench.source ALTER content SET STORAGE EXTERNAL;
		INSERT INTO bench.source SELECT pg_read_file('$work/scan.txt');
	EOSQL
	bytes=$(sql -c "SELECT octet_length(content) FROM bench.source")
	for i in 1 2 3 4 5; do
		scan_ms "content ~ 'AKIA[A-Z2-7]{16}'" >>"$work/scan.limit"
		scan_ms "(SELECT count(*) FROM mlint.secret_scan(content))" \
			>>"$work/scan.mlint"
	done
	limit=$(calc "$bytes / 1000 / $(median <"$work/scan.limit")" %.0f)
	mlint=$(calc "$bytes / 1000 / $(median <"$work/scan.mlint")" %.0f)
	row "secret_scan of $((bytes / 1000000)) MB of source text, $(sql -c \
		"SELECT count(*) FROM mlint.secret_rules") rules (limit: one regular expression)" \
		"≥ 50 MB/s" "$limit MB/s" "$mlint MB/s" "$(calc "$mlint / $limit")"
}

# scan_ms EXPRESSION: milliseconds, on the one text.
scan_ms()
{
	psql -X -q -A -t -v ON_ERROR_STOP=1 -c '\timing on' \
		-c "SELECT $1 FROM bench.source" |
		sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p' | tail -n 1
}
