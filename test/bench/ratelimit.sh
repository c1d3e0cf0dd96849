# Deciding on rate limits: one decision a statement by pgbench, beside SELECT 1
# and beside the limiter that people write in plpgsql; a million in one
# statement; and ten million identifiers through a table for 100,000. In turns,
# medians of the rounds; a ratio is the median of the rounds' ratios.
. "$top/test/bench/commit.sh"

RATE_ROUNDS=${RATE_ROUNDS:-9}
RATE_SECONDS=${RATE_SECONDS:-2}
RATE_ROWS=${RATE_ROWS:-1000000}
RATE_FLOOD=${RATE_FLOOD:-10000000}

# The limiter that people write: a row a key, counted up in each window. It is
# durable, as tables are.
upsert_limiter()
{
	sql >/dev/null <<-'EOSQL'
		CREATE TABLE bench.limiter (key text PRIMARY KEY,
			began timestamptz NOT NULL, taken int NOT NULL);
		CREATE FUNCTION bench.limiter_take(key text, rate int, per interval)
		RETURNS boolean LANGUAGE plpgsql AS $$
		DECLARE
			n int;
		BEGIN
			INSERT INTO bench.limiter AS l
			VALUES (limiter_take.key, date_bin(per, clock_timestamp(), 'epoch'), 1)
			ON CONFLICT ON CONSTRAINT limiter_pkey DO UPDATE SET
				taken = CASE WHEN l.began = excluded.began THEN l.taken + 1 ELSE 1 END,
				began = excluded.began
			RETURNING taken INTO n;
			RETURN n <= rate;
		END $$;
	EOSQL
}

# in_one_statement CONDITION ROWS: how many decisions a second.
in_one_statement()
{
	sql <<-EOSQL
		SET max_parallel_workers_per_gather = 0;
		SELECT clock_timestamp() AS began \gset
		SELECT count(*) FILTER (WHERE $1) AS n
		FROM (SELECT key FROM bench.request LIMIT $2) r \gset
		SELECT round($2 / extract(epoch FROM clock_timestamp() - :'began'));
	EOSQL
}

# ratios FILE FILE: the median of the second's lines over the first's.
ratios()
{
	paste "$work/rate.$1" "$work/rate.$2" |
		awk '{ printf "%.4f\n", $2 / $1 }' | median
}

# beside LIMIT MLINT MEASURE TO-REACH
beside()
{
	row "$3" "$4" "$(median <"$work/rate.$1")/s" "$(median <"$work/rate.$2")/s" \
		"$(calc "$(ratios "$1" "$2")")"
}

measure_ratelimit()
{
	rm -f "$work"/rate.*
	sql >/dev/null <<-EOSQL
		DROP SCHEMA IF EXISTS bench CASCADE;
		CREATE SCHEMA bench;
		SELECT mlint.rate_rule_create('bench', 'token_bucket', 1000, '1 s', burst => 2000);
		SELECT mlint.rate_rule_create('flood', 'token_bucket', 1000, '1 s', burst => 10);
		CREATE TABLE bench.request (key text NOT NULL);
		INSERT INTO bench.request SELECT 'user-' || n % 1000 FROM generate_series(1, $RATE_ROWS) n;
		VACUUM (ANALYZE, FREEZE) bench.request;
	EOSQL
	upsert_limiter

	random='\set n random(1, 1000)'
	printf "%s\nSELECT 1;\n" "$random" >"$work/rate_select.sql"
	printf "%s\nSELECT mlint.rate_check('bench', :n);\n" "$random" >"$work/rate_keys.sql"
	printf "%s\nSELECT (mlint.rate_check('bench', :n)).allowed;\n" "$random" >"$work/rate_field.sql"
	printf "%s\nSELECT mlint.rate_check('bench', 'one');\n" "$random" >"$work/rate_one.sql"
	printf "%s\nSELECT mlint.rate_allow('bench', :n);\n" "$random" >"$work/rate_allow.sql"
	printf "%s\nSELECT bench.limiter_take(:n, 1000, '1 s');\n" "$random" >"$work/rate_upsert.sql"
	PGBENCH_ALL=$PGBENCH_SECONDS
	PGBENCH_SECONDS=$RATE_SECONDS
	n=0
	while [ $((n += 1)) -le "$RATE_ROUNDS" ]; do
		for script in select keys select field select one select allow upsert; do
			transactions "rate_$script" >>"$work/rate.$script"
			# Each is measured beside the SELECT 1 right before it.
			[ $script != select ] || before=$(tail -n 1 "$work/rate.select")
			echo "$before" >>"$work/rate.before_$script"
		done
	done
	PGBENCH_SECONDS=$PGBENCH_ALL
	beside before_keys keys "\`rate_check\`, 8 clients, 1,000 keys, beside SELECT 1" "≥ 0.9"
	beside before_field field "the same, only \`(rate_check(…)).allowed\`" "≥ 0.9"
	beside before_one one "\`rate_check\`, 8 clients, one key, beside SELECT 1" "≥ 0.8"
	beside before_allow allow "\`rate_allow\`, 8 clients, 1,000 keys, beside SELECT 1" "≥ 0.9"
	beside upsert keys "\`rate_check\`, 8 clients, beside an upsert in plpgsql" "≥ 3"

	# Versions that an upsert leaves behind in one transaction stay in its own
	# way: with a tenth of the rows it is at its best.
	n=0
	while [ $((n += 1)) -le "$RATE_ROUNDS" ]; do
		sql -c "TRUNCATE bench.limiter"
		in_one_statement "mlint.rate_allow('bench', key)" "$RATE_ROWS" >>"$work/rate.statement"
		in_one_statement "bench.limiter_take(key, 1000, '1 s')" $((RATE_ROWS / 10)) \
			>>"$work/rate.upserts"
	done
	mlint=$(median <"$work/rate.statement")
	row "\`rate_allow\`, $RATE_ROWS rows in one statement" "≥ 2,000,000/s" "–" "$mlint/s" "–"
	beside upserts statement "\`rate_allow\` in one statement, beside an upsert in plpgsql" "≥ 30"

	tenth=$((RATE_FLOOD / 10))
	n=0
	while [ $n -lt 10 ]; do
		sql <<-EOSQL >>"$work/rate.flood"
			SELECT clock_timestamp() AS began \gset
			SELECT count(*) FILTER (WHERE mlint.rate_allow('flood', 'visitor-' || n)) AS n
			FROM generate_series($n::bigint * $tenth + 1, ($n + 1)::bigint * $tenth) n \gset
			SELECT round($tenth / extract(epoch FROM clock_timestamp() - :'began')), :n;
		EOSQL
		n=$((n + 1))
	done
	[ "$(awk -F '|' '{ n += $2 } END { print n }' "$work/rate.flood")" = "$RATE_FLOOD" ] ||
		die "a new identifier was refused"
	# A tenth takes half a second, in which the machine may do other things.
	first=$(sed -n '1,3s/|.*//p' "$work/rate.flood" | median)
	last=$(sed -n '8,10s/|.*//p' "$work/rate.flood" | median)
	row "$RATE_FLOOD identifiers through 100,000 slots: last three tenths beside the first three" "≥ 0.8" \
		"$first/s" "$last/s" "$(calc "$last / $first")"

	# A slot that had leaked would be missing now: all are in use by the flood,
	# and when its rule is gone all are free.
	max=$(sql -c "SHOW mlint.rate_max_keys")
	sql -c "SELECT mlint.rate_reset('flood')" -c "SELECT mlint.rate_reset('bench')" >/dev/null
	kept=$(sql <<-EOSQL
		SELECT mlint.rate_rule_create('slow', 'token_bucket', 1, '1 day', burst => 1) \gset
		SELECT count(*) FILTER (WHERE mlint.rate_allow('slow', 'visitor-' || n)) AS n
		FROM generate_series(1, $max) n \gset
		SELECT count(*) FILTER (WHERE mlint.rate_allow('slow', 'visitor-' || n)) AS again
		FROM generate_series(1, $max) n \gset
		SELECT identifiers FROM mlint.stat_rate_limits WHERE rule = 'slow';
	EOSQL
	)
	row "slots that hold an identifier after that" "$max" "–" "$kept" "–"

	bytes=$(sql -c "SELECT sum(allocated_size) FROM pg_shmem_allocations WHERE name LIKE 'mlint rate%'")
	row "shared memory a key" "≤ 100 bytes" "–" "$(calc "$bytes / $max" "%.1f") bytes" "–"
	sql >/dev/null <<-EOSQL
		SELECT mlint.rate_rule_drop('bench'), mlint.rate_rule_drop('flood'), mlint.rate_rule_drop('slow');
		DROP SCHEMA bench CASCADE;
	EOSQL
}
