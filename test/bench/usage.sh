# Usage: one report a transaction, by pgbench, beside a bare INSERT of the same
# row into a table like the log; many in one statement; and what reports cost
# after ten thousand and after ten million, folded and while more are coming.
# In turns, medians of five; a ratio is the median of the rounds' ratios.
. "$top/test/bench/ratelimit.sh"

USAGE_ROWS=${USAGE_ROWS:-10000000}
USAGE_FEW=${USAGE_FEW:-10000}
USAGE_SECONDS=${USAGE_SECONDS:-4}

# usage_load ROWS: over 24 hours, 100 models and 1,000 sessions. Hours are made
# by moving back what was folded.
usage_load()
{
	hour=0
	while [ $hour -lt 24 ]; do
		sql >/dev/null <<-EOSQL
			SELECT count(mlint.usage_track('s' || n % 1000, n % 500, n % 900, latency_ms => n % 3000))
			FROM generate_series(1, $1 / 24 + 1) n;
			CALL mlint.usage_fold_run();
			INSERT INTO mlint.usage_total AS t
			SELECT scope, name, step, period - interval '$((hour + 1)) hours', kind, key,
				prompts, responses, prompt_tokens, completion_tokens, latencies, latency_us,
				first_at, last_at, amount
			FROM mlint.usage_total
			WHERE step = 'h' AND period >= date_trunc('hour', now(), 'UTC') - interval '10 minutes'
			ON CONFLICT (scope, name, step, period, kind, key) DO UPDATE SET
				prompts = t.prompts + excluded.prompts, responses = t.responses + excluded.responses,
				prompt_tokens = t.prompt_tokens + excluded.prompt_tokens,
				completion_tokens = t.completion_tokens + excluded.completion_tokens,
				latencies = t.latencies + excluded.latencies, latency_us = t.latency_us + excluded.latency_us,
				amount = t.amount + excluded.amount;
			DELETE FROM mlint.usage_total
			WHERE step = 'h' AND period >= date_trunc('hour', now(), 'UTC') - interval '10 minutes';
		EOSQL
		hour=$((hour + 1))
	done
	sql -c "VACUUM ANALYZE mlint.usage_total" >/dev/null
}

# usage_latency SCRIPT: milliseconds, of one client.
usage_latency()
{
	pgbench -n -M prepared -c 1 -T "$USAGE_SECONDS" -f "$work/$1.sql" 2>"$work/pgbench.log" |
		sed -n 's/^latency average = \([0-9.]*\) ms/\1/p'
}

# usage_reports NAME: into $work/usage.{session,model}_NAME, and _loaded.
usage_reports()
{
	for report in session model; do
		for i in 1 2 3 4 5; do usage_latency "usage_${report}_report"; done |
			median >"$work/usage.${report}_$1"
	done
	pgbench -n -M prepared -c 4 -T $((USAGE_SECONDS * 14)) -f "$work/usage_track.sql" \
		>"$work/load.log" 2>&1 &
	load=$!
	wait_until 60 "SELECT count(*) >= 4 FROM pg_stat_activity WHERE query LIKE 'SELECT mlint.usage_track%'"
	for report in session model; do
		for i in 1 2 3 4 5; do usage_latency "usage_${report}_report"; done |
			median >"$work/usage.${report}_${1}_loaded"
	done
	wait $load
}

# usage_beside REPORT STATE
usage_beside()
{
	few=$(cat "$work/usage.$1_few$2")
	many=$(cat "$work/usage.$1_many$2")
	row "\`$1_usage\` after $USAGE_ROWS reports, beside after $USAGE_FEW${2:+, while 4 clients report}" \
		"≤ 2" "$few ms" "$many ms" "$(calc "$many / $few")"
}

measure_usage()
{
	rm -f "$work"/usage.* "$work"/rate.*
	sql >/dev/null <<-'EOSQL'
		SET client_min_messages = warning;
		DROP SCHEMA IF EXISTS bench CASCADE;
		CREATE SCHEMA bench;
		CREATE TABLE bench.usage (LIKE mlint.usage_log_1 INCLUDING ALL);
		SELECT count(mlint.session_register('s' || n, 'model-' || n % 100,
			tags => ARRAY['team-' || n % 7])) FROM generate_series(0, 999) n;
		SELECT count(mlint.model_price_set('model-' || n, 2.5, 10)) FROM generate_series(0, 99) n;
	EOSQL
	like_usage="pg_current_xact_id(), n, clock_timestamp(), 812000, 100, 200,
		'model-' || n % 100, '', ARRAY['team-' || n % 7], NULL"
	random='\set n random(0, 999)'
	printf '%s\nINSERT INTO bench.usage SELECT %s FROM (SELECT :n::bigint AS n) x;\n' "$random" \
		"$(echo $like_usage)" >"$work/usage_insert.sql"
	printf "%s\nSELECT mlint.usage_track('s' || :n, 100, 200, latency_ms => 812);\n" "$random" \
		>"$work/usage_track.sql"
	printf "SELECT mlint.usage_track('s1', 100, 200, latency_ms => 812);\n" >"$work/usage_one.sql"
	printf "%s\nSELECT * FROM mlint.session_usage('s' || :n);\n" "$random" \
		>"$work/usage_session_report.sql"
	printf "%s\nSELECT * FROM mlint.model_usage('model-' || :n %% 100, now() - interval '23 hours', now());\n" \
		"$random" >"$work/usage_model_report.sql"

	PGBENCH_ALL=$PGBENCH_SECONDS
	PGBENCH_SECONDS=$USAGE_SECONDS
	for i in 1 2 3 4 5; do
		for script in insert track one; do
			transactions "usage_$script" >>"$work/rate.usage_$script"
		done
	done
	PGBENCH_SECONDS=$PGBENCH_ALL
	beside usage_insert usage_track "\`usage_track\`, 8 clients, 100 models, beside a bare INSERT" "≥ 0.7"
	beside usage_track usage_one "the same, all for one session, beside 100 models" "≥ 0.9"

	for i in 1 2 3; do
		timed "INSERT INTO bench.usage SELECT $like_usage FROM generate_series(1, $EVENTS) n" \
			>>"$work/usage.limit"
		timed "SELECT count(mlint.usage_track('s' || n % 1000, 100, 200, latency_ms => 812))
			FROM generate_series(1, $EVENTS) n" >>"$work/usage.mlint"
	done
	limit=$(median <"$work/usage.limit")
	mlint=$(median <"$work/usage.mlint")
	row "\`usage_track\`, $EVENTS in one statement" "–" \
		"$(calc "$EVENTS * 1000 / $limit" %.0f)/s" \
		"$(calc "$EVENTS * 1000 / $mlint" %.0f)/s" "$(calc "$limit / $mlint")"
	wait_until 300 "SELECT NOT mlint.usage_log_pending(1) AND NOT mlint.usage_log_pending(2)"

	# From nothing; the sessions stay.
	sql -c "TRUNCATE mlint.usage_total" -c "DROP SCHEMA bench CASCADE" >/dev/null
	usage_load "$USAGE_FEW"
	usage_reports few
	before=$(date +%s)
	usage_load "$USAGE_ROWS"
	say "  $USAGE_ROWS reports were made and folded in $(($(date +%s) - before)) s"
	usage_reports many
	for report in session model; do
		usage_beside $report ""
		usage_beside $report _loaded
	done
	row "table of the usage log after all that" "–" "–" \
		"$(sql -c "SELECT pg_size_pretty(sum(pg_total_relation_size(r)))
			FROM unnest('{mlint.usage_log_1,mlint.usage_log_2}'::regclass[]) r")" "–"
}
